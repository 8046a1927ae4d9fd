//! Windows of a number of records instead of a stretch of time.
//!
//! **Shape**: keyed in; out comes, for every so many records of a key, what an aggregate makes of them, with the stretch of time from the first
//! of them to the last: as of all [windows](Window), its end is the instant after. What is left at the end of the input, too few for a
//! window, has no result.
//!
//! **Time**: records are counted in order of event time, then split and position, once it has passed them; so results do not depend on the order in
//! which they come. A result happened when its last record did. **Lateness** is that of [process functions](crate::process).
//!
//! **State**: per key, accumulators of the records that later windows need: of windows of `size` records every `slide`, as many as `size`
//! divided by the greatest common divisor of both; and the records that event time has not passed.

use std::collections::VecDeque;

use millstream_runtime::error::Result;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::EventTime;
use millstream_state::snapshot::{Key, Value};
use serde::{Deserialize, Serialize};

use super::assign::greatest_common_divisor;
use super::open::INSTANT;
use super::{Pane, Window};
use crate::aggregate::Aggregate;
use crate::process::{Process, ProcessContext, ProcessExt};

#[derive(Clone, Debug)]
struct CountWindows<A> {
    /// Records of a window, and from the end of one to the end of the next.
    size: u64,
    slide: u64,
    /// Records that are taken together.
    slice: u64,
    aggregate: A,
}

/// The records that later windows need.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Counted<Acc> {
    /// How many records there were since the last result.
    since: u64,
    slices: VecDeque<Slice<Acc>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slice<Acc> {
    first: EventTime,
    records: u64,
    acc: Acc,
}

impl<K: Key, T: Value, A: Aggregate<T>> Process<K, T> for CountWindows<A> {
    type State = Counted<A::Acc>;
    type Out = Pane<K, A::Out>;

    fn describe(&self) -> String {
        let Self { size, slide, aggregate, .. } = self;
        format!("windows of {size} records every {slide}: {}", aggregate.describe())
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, Self::State, Self::Out>, value: &T) -> Result<()> {
        let (at, key) = (cx.now(), cx.key().clone());
        let origin = cx.origin();
        let state = cx.state();
        let counted = state.get_or_insert_with(|| Counted { since: 0, slices: VecDeque::new() });
        if counted.slices.back().is_none_or(|slice| slice.records == self.slice) {
            counted.slices.push_back(Slice { first: at, records: 0, acc: self.aggregate.create() });
        }
        let most = self.size / self.slice;
        if counted.slices.len() as u64 > most {
            counted.slices.pop_front();
        }
        if let Some(slice) = counted.slices.back_mut() {
            slice.records += 1;
            self.aggregate.add(&mut slice.acc, value, &origin);
        }
        counted.since += 1;
        // All but the last are full.
        let last = counted.slices.back().map_or(0, |slice| slice.records);
        let records = (counted.slices.len() as u64 - 1) * self.slice + last;
        if counted.since < self.slide || records < self.size {
            return Ok(());
        }
        counted.since = 0;
        let mut all = self.aggregate.create();
        counted.slices.iter().for_each(|slice| self.aggregate.merge(&mut all, &slice.acc));
        let start = counted.slices.front().map_or(at, |slice| slice.first);
        if self.slide >= self.size {
            *state = None;
        }
        cx.emit((key, Window { start, end: at + INSTANT }, self.aggregate.finish(&all)));
        Ok(())
    }
}

/// Adds `count_window` to keyed streams.
pub trait CountWindowExt<K: Key, T: Value> {
    /// Windows of so many records of a key each.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::{aggregate::Mean, window::{CountWindowExt, Pane}};
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Reading { sensor: u32, celsius: f64 }
    /// # fn example(readings: Stream<Reading>) {
    /// let mean_of_ten: Stream<Pane<u32, f64>> = readings
    ///     .key_by(|reading| reading.sensor)
    ///     .count_window(10)
    ///     .aggregate(Mean::of(|reading: &Reading| reading.celsius));
    /// # }
    /// ```
    ///
    /// # Panics
    /// When `size` is zero.
    fn count_window(self, size: u64) -> CountWindowed<K, T>;

    /// The last `size` records of a key, whenever there were `slide` more; the first time when there are `size`.
    ///
    /// # Panics
    /// When `slide` is zero, or greater than `size`: there would be records that count nowhere.
    fn sliding_count_window(self, size: u64, slide: u64) -> CountWindowed<K, T>;
}

impl<K: Key, T: Value> CountWindowExt<K, T> for KeyedStream<K, T> {
    fn count_window(self, size: u64) -> CountWindowed<K, T> {
        self.sliding_count_window(size, size)
    }

    fn sliding_count_window(self, size: u64, slide: u64) -> CountWindowed<K, T> {
        assert!(slide > 0, "windows of {size} records must end at some distance, not every 0");
        assert!(slide <= size, "windows of {size} records every {slide} leave out records");
        CountWindowed { keyed: self, size, slide }
    }
}

/// A keyed stream in windows of a number of records, waiting for the aggregate that makes results of them.
#[derive(Debug)]
pub struct CountWindowed<K, T> {
    keyed: KeyedStream<K, T>,
    size: u64,
    slide: u64,
}

impl<K: Key, T: Value> CountWindowed<K, T> {
    /// One result per key and window: the key, the time from its first record to its last, and what `aggregate` makes of its records.
    #[must_use]
    pub fn aggregate<A: Aggregate<T>>(self, aggregate: A) -> Stream<Pane<K, A::Out>> {
        self.aggregate_with_late(aggregate).0
    }

    /// As [`aggregate`](Self::aggregate), with a second stream of late records.
    #[must_use]
    pub fn aggregate_with_late<A: Aggregate<T>>(self, aggregate: A) -> (Stream<Pane<K, A::Out>>, Stream<T>) {
        let CountWindowed { keyed, size, slide } = self;
        let slice = greatest_common_divisor(size, slide);
        keyed.process_in_order_with_late(CountWindows { size, slide, slice, aggregate })
    }
}
