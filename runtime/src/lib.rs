//! Time, jobs, workers and checkpoint coordination of Millstream.
//!
//! A [`Job`](job::Job) is described as a value ([`stream`]), checked, and run on worker threads over timely dataflow. This
//! crate is the only one that names timely, and only in its private module `dataflow`. Users take all of this from
//! the facade crate `millstream`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
mod checkpoint;
pub mod cli;
mod dataflow;
mod driver;
pub mod error;
mod execute;
mod graph;
pub mod handle;
pub mod job;
pub mod metrics;
pub mod moment;
pub mod operator;
mod progress;
pub mod record;
mod recovery;
pub mod rows;
mod schema;
mod shared;
pub mod sink;
pub mod source;
pub mod stream;
pub mod summary;
pub mod time;
pub mod watermark;

pub use shared::StopMode;
