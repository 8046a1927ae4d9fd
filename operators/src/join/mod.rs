//! Joins of keyed streams: records of two streams that have the same key and belong together in event time.
//!
//! Each has its page, which says what matches, what is kept and for how long, and what is late: [by distance in time](interval), [within
//! windows](window), and [with the version that was valid](temporal).

pub mod interval;
pub mod temporal;
pub mod window;

use millstream_runtime::operator::Either;
use millstream_runtime::stream::Stream;

pub use interval::IntervalJoinExt;
pub use temporal::{TemporalJoin, TemporalJoinExt};
pub use window::{CoGroup, CoGroupExt, Maybe, WindowJoinExt};

/// What comes out of a join, and the late records of both streams.
pub type Joined<O, A, B> = (Stream<O>, Stream<Either<A, B>>);
