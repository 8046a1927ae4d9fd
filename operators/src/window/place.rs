//! Where a record belongs: its slice, and the windows of that slice.

use millstream_runtime::rows::{BehindWalk, KeyedRecord};
use millstream_runtime::time::EventTime;
use millstream_state::slices::InSlice;
use millstream_state::snapshot::Key;

use super::assign::WindowAssigner;
use crate::aggregate::{Aggregate, Origin};

/// A slice, the times that it covers (both included), and the first and last window that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub slice: i64,
    times: (EventTime, EventTime),
    pub windows: (i64, i64),
}

impl Place {
    #[inline]
    fn covers(&self, at: EventTime) -> bool {
        self.times.0 <= at && at <= self.times.1
    }
}

/// Finds places, and remembers the last two: records come mostly in order, and where two slices meet they alternate.
#[derive(Clone, Debug)]
pub(super) struct Places {
    windows: WindowAssigner,
    recent: [Place; 2],
}

impl Places {
    pub(super) fn new(windows: WindowAssigner) -> Self {
        let some = find(windows, EventTime::EPOCH);
        Places { windows, recent: [some; 2] }
    }

    /// The place of `at`.
    #[inline]
    pub(super) fn of(&mut self, at: EventTime) -> Place {
        if !self.recent[0].covers(at) {
            self.turn_to(at);
        }
        self.recent[0]
    }

    /// The place of all these records, the first of which is row `first`: if they are in one, and none is behind.
    #[inline]
    pub(super) fn of_all<K, T>(
        &mut self,
        records: &[KeyedRecord<K, T>],
        first: usize,
        behind: &BehindWalk<'_>,
    ) -> Option<Place> {
        if behind.any_before(first + records.len()) {
            return None;
        }
        let place = self.of(records.first()?.at);
        // Without an early end: that is one comparison of many records at once.
        let all = records.iter().fold(true, |all, record| all & place.covers(record.at));
        all.then_some(place)
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
    Place { slice, times: windows.slice_bounds(slice), windows: windows.windows_of(slice) }
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
