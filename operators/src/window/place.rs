//! Where a record belongs: its slice, and which windows of that slice it counts in.

use millstream_runtime::rows::{BehindWalk, KeyedRecord};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::slices::InSlice;
use millstream_state::snapshot::Key;

use super::assign::WindowAssigner;
use crate::aggregate::{Aggregate, Origin};

/// A slice, and the times that it covers, both included.
#[derive(Clone, Copy, Debug)]
struct Place {
    slice: i64,
    times: (EventTime, EventTime),
}

impl Place {
    #[inline]
    fn covers(&self, at: EventTime) -> bool {
        self.times.0 <= at && at <= self.times.1
    }
}

/// The windows that a record counts in which is behind its split's watermark.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// The watermarks for which this holds, both included.
    watermarks: (EventTime, EventTime),
    /// The first window that is not over.
    pub number: i64,
    /// A record of a slice before this one is late.
    pub from: i64,
    /// A record of this slice or a later one counts in all windows of its slice.
    pub whole: i64,
}

/// What is open to a record that is not behind.
const ALL_OPEN: Open =
    Open { watermarks: (EventTime::MIN, EventTime::MAX), number: i64::MIN, from: i64::MIN, whole: i64::MIN };

/// Finds slices. Records come mostly in order, and where two slices meet they alternate, so it remembers the last two; those that are
/// behind are of any slice.
#[derive(Clone, Debug)]
pub(super) struct Places {
    windows: WindowAssigner,
    recent: [Place; 2],
    open: Open,
}

impl Places {
    pub(super) fn new(windows: WindowAssigner) -> Self {
        let some = find(windows, EventTime::EPOCH);
        Places { windows, recent: [some; 2], open: open_at(windows, EventTime::EPOCH) }
    }

    /// The slice of `at`.
    #[inline]
    pub(super) fn of(&mut self, at: EventTime) -> i64 {
        if !self.recent[0].covers(at) {
            self.turn_to(at);
        }
        self.recent[0].slice
    }

    /// The slice of `at`, and what is open to a record that is behind this watermark, if it is.
    #[inline]
    pub(super) fn of_behind(&mut self, at: EventTime, behind: Option<EventTime>) -> (i64, Open) {
        let Some(watermark) = behind else { return (self.of(at), ALL_OPEN) };
        if watermark < self.open.watermarks.0 || self.open.watermarks.1 < watermark {
            self.open = open_at(self.windows, watermark);
        }
        (self.windows.slice_of(at), self.open)
    }

    /// The slice of all these records, the first of which is row `first`: if they are in one, and none is behind.
    #[inline]
    pub(super) fn of_all<K, T>(
        &mut self,
        records: &[KeyedRecord<K, T>],
        first: usize,
        behind: &BehindWalk<'_>,
    ) -> Option<i64> {
        if behind.any_before(first + records.len()) {
            return None;
        }
        self.of(records.first()?.at);
        let place = self.recent[0];
        // Without an early end: that is one comparison of many records at once.
        let all = records.iter().fold(true, |all, record| all & place.covers(record.at));
        all.then_some(place.slice)
    }

    #[cold]
    fn turn_to(&mut self, at: EventTime) {
        self.recent.swap(0, 1);
        if !self.recent[0].covers(at) {
            self.recent[0] = find(self.windows, at);
        }
    }
}

fn find(windows: WindowAssigner, at: EventTime) -> Place {
    let slice = windows.slice_of(at);
    Place { slice, times: windows.slice_bounds(slice) }
}

#[cold]
fn open_at(windows: WindowAssigner, watermark: EventTime) -> Open {
    let number = windows.first_open(watermark);
    let before = number.saturating_sub(1);
    Open {
        // The end of the window before is the first watermark at which that is over.
        watermarks: (windows.window(before).end, windows.window(number).end - EventSpan::micros(1)),
        number,
        from: windows.slices_of(number).0,
        whole: windows.slices_of(before).1,
    }
}

/// When and where a record comes from, as far as the aggregate asks.
#[inline]
pub(super) fn origin<K, T, A: Aggregate<T>>(
    record: &KeyedRecord<K, T>,
    positions: &[(u32, u64)],
    row: usize,
) -> Origin {
    let (split, number) = if A::NEEDS_POSITION { positions[row] } else { (0, 0) };
    Origin { at: record.at, split, record: number }
}

/// Adds records that are all of one slice, the first of which is row `first`: nothing is asked of each but its accumulator.
#[inline(always)] // it is the innermost loop of all, at two places
pub(super) fn add_all<K: Key, T, A: Aggregate<T>>(
    mut slice: InSlice<'_, K, A::Acc>,
    aggregate: &A,
    records: &[KeyedRecord<K, T>],
    first: usize,
    positions: &[(u32, u64)],
    row: &mut usize,
) {
    for (number, record) in (first..).zip(records) {
        *row = number;
        let acc = slice.update(record.hash, &record.key, || aggregate.create());
        aggregate.add(acc, &record.value, &origin::<K, T, A>(record, positions, number));
    }
}
