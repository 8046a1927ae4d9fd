//! The ways into and out of a job that need no other system: files, channels, generators, closures, standard output.
//!
//! | Source | reads | after a crash |
//! |---|---|---|
//! | [`CsvFiles`], [`JsonLines`] | files, plain, `.gz` or `.zst`; one split a file, or one split for a series of files | replayed |
//! | [`Generator`] | a function of the event's number | replayed |
//! | [`VecSource`], [`IterSource`] | values in memory | replayed |
//! | [`channel`] | what this program sends | lost, as far as it was not in a checkpoint |
//! | [`Log::source`](log::Log::source) | a durable log in this process | replayed |
//! | [`recorded`](log::RecordExt::recorded) | another source, through a log | replayed |
//! | [`Paced`] | another source, at a rate | as that source |
//!
//! | Sink | writes | after a crash |
//! |---|---|---|
//! | [`FileSink`] | part files of CSV or JSON lines | exactly once |
//! | [`Log::sink`](log::Log::sink) | a durable log in this process | exactly once |
//! | [`Collected`] | into memory, for tests | exactly once |
//! | [`stdout`], [`stdout_json`] | standard output | what came after the last checkpoint is repeated |
//! | [`for_each`], [`try_for_each`] | calls a closure | what came after the last checkpoint is repeated |

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod channel;
mod closure;
mod collect;
mod file;
mod generator;
pub mod log;
mod memory;
mod paced;
mod stdout;

pub use channel::{ChannelReader, ChannelSender, ChannelSource, SendError, TrySendError, channel};
pub use closure::{ForEach, for_each, try_for_each};
pub use collect::{Collect, CollectWriter, Collected};
pub use file::{
    Csv, CsvFiles, FileFormat, FilePosition, FileReader, FileSink, FileSinkWriter, FileSource, Json, JsonLines,
};
pub use generator::{Generator, GeneratorReader};
pub use memory::{IterReader, IterSource, VecReader, VecSource, from_iter, from_vec};
pub use paced::{Paced, PacedReader, SourceExt};
pub use stdout::{Stdout, StdoutJson, StdoutWriter, stdout, stdout_json};
