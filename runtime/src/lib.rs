//! Time, jobs, workers and checkpoint coordination of Millstream.
//!
//! A [`Job`](job::Job) is described as a value ([`stream`]), checked, and run on worker threads over timely dataflow. This
//! crate is the only one that names timely, and only in its private module `dataflow`. Users take all of this from
//! the facade crate `millstream`.
#![cfg_attr(test, allow(clippy::unwrap_used))]
// They panic where nobody reads, or the disk of the log is full: see `terminal`.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod bench;
pub mod call;
mod checkpoint;
pub mod cli;
pub mod clock;
mod dataflow;
pub mod digest;
mod driver;
pub mod error;
mod execute;
mod graph;
pub mod handle;
pub mod inspect;
pub mod job;
pub mod journal;
pub mod metrics;
pub mod moment;
pub mod names;
pub mod operator;
pub mod poison;
mod progress;
pub mod record;
mod recovery;
pub mod replay;
mod rest;
pub mod restart;
pub mod rows;
pub mod savepoint;
mod schema;
mod shared;
pub mod sink;
pub mod source;
pub mod stream;
pub mod summary;
mod supervisor;
mod terminal;
pub mod time;
pub mod watermark;

pub use dataflow::{Delta, Row};
pub use shared::{SplitState, StopMode};
