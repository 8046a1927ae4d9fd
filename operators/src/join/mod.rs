//! Joins of keyed streams: records of two streams that have the same key and belong together in event time.

mod interval;

pub use interval::{IntervalJoinExt, Joined};
