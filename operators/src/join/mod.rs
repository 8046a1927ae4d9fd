//! Joins of keyed streams: records of two streams that have the same key and belong together in event time.

mod interval;
mod temporal;
mod window;

pub use interval::{IntervalJoinExt, Joined};
pub use temporal::{TemporalJoin, TemporalJoinExt};
pub use window::{CoGroup, CoGroupExt, WindowJoinExt};
