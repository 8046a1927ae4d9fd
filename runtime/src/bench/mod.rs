//! Measuring a job under an open-loop load: when events are due, how late their results are, and a report of it.
//!
//! In an **open loop** every event is due at an instant that a [`Schedule`] fixed beforehand, whether or not the job
//! keeps up. Its latency counts from that instant, so a stall is charged to every event that it delays, and there is
//! nothing that would have to be corrected afterwards.
//!
//! | file | what it is |
//! |---|---|
//! | [`load`], [`rate`] | what the user asks for: `100k`, `bursts:50k,200k@100ms/1s`, ... |
//! | [`schedule`] | the same as arithmetic: when event `n` is due, how many are due by now |
//! | [`distribution`] | how values of time are distributed, with percentiles |
//! | [`latency`] | what a sink records: latencies of the run and of each second of it |
//! | [`measurement`], [`machine`] | everything known of a run, as a value |
//! | [`memory`] | how much memory this process takes |
//! | [`noise`] | what latency this machine adds by itself |
//! | [`sustainable`] | the search for the highest rate that the job sustains |
//! | [`table`], [`report`] | a measurement as text for the terminal; as files: a page, figures, histograms |
//! | [`hlog`], [`figures`] | the files for tools: an HdrHistogram log; JSON |
//! | [`args`] | the options of `job bench` |
//!
//! **Units**: nanoseconds from the start of the run, events per second. **Time**: the wall clock, monotonic; event time
//! only where a name says so.

pub mod args;
pub mod distribution;
#[cfg(test)]
mod example;
pub mod figures;
pub mod hlog;
pub mod latency;
pub mod load;
pub mod machine;
pub mod measurement;
pub mod memory;
pub mod noise;
pub(crate) mod probe;
pub mod rate;
pub mod report;
mod run;
pub mod schedule;
pub mod sustainable;
pub mod table;
mod tally;
pub(crate) mod times;
pub(crate) mod words;

pub use args::{BenchArgs, present};
pub use distribution::{Distribution, Percentiles};
pub use latency::Latencies;
pub use load::Load;
pub use machine::Machine;
pub use measurement::{CheckpointTaken, LatencyKind, Measurement, OperatorTime, Run, Second};
pub use noise::Noise;
pub use rate::Rate;
pub use schedule::Schedule;
pub use sustainable::{Search, Sustainable, Trial};
