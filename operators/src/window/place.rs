//! Where records belong: their slice, and which windows of that slice they count in.

use millstream_runtime::rows::{BehindWalk, KeyedRecord, KeyedRows};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::slices::{AT_ONCE, InSlice};
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

    /// What is of one slice of what is `left` of a chunk, and that slice; it is left no longer. The first record that is left decides.
    /// `None` if all that is left had better be dealt with one by one: there is nothing, or it is of many slices.
    #[inline(always)] // once for every few records
    pub(super) fn next_share<K: Key, T>(&mut self, chunk: &Chunk<'_, K, T>, left: &mut Share) -> Option<(i64, Share)> {
        let first = left.first()?;
        self.of(chunk.records[first].at);
        let place = self.recent[0];
        // Mostly that is all. Without an early end: that is one comparison of many records at once.
        if *left == chunk.all && chunk.records.iter().fold(true, |all, next| all & place.covers(next.at)) {
            *left = Share(0);
            return Some((place.slice, chunk.all));
        }
        let is_here = |row: usize| u32::from(place.covers(chunk.records[row].at)) << row;
        // The first and the last slice of all may have more than their times say.
        let share = Share((0..chunk.records.len()).fold(1 << first, |share, row| share | is_here(row)) & left.0);
        if share.len() * MANY_SLICES < left.len() {
            return None;
        }
        left.0 &= !share.0;
        Some((place.slice, share))
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

/// Some of the records of a [`Chunk`]: bit 0 is the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(u32);

const _: () = assert!(AT_ONCE <= u32::BITS as usize);

/// Where about so many slices meet, records are dealt with one by one.
const MANY_SLICES: usize = 4;

impl Share {
    /// The number, in its chunk, of the first record.
    #[inline]
    fn first(self) -> Option<usize> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as usize)
    }

    #[inline]
    pub(super) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    #[inline]
    pub(super) fn with(self, other: Share) -> Share {
        Share(self.0 | other.0)
    }
}

/// A part of a batch: as many records as are dealt with at once.
pub(super) struct Chunk<'a, K, T> {
    records: &'a [KeyedRecord<K, T>],
    /// The row of the first one.
    first: usize,
    all: Share,
    positions: &'a [(u32, u64)],
}

impl<'a, K: Key, T> Chunk<'a, K, T> {
    /// A batch, part by part.
    pub(super) fn all_of(rows: &'a KeyedRows<K, T>) -> impl Iterator<Item = Self> {
        let positions = &rows.positions;
        let chunk = move |(number, records): (usize, &'a [_])| {
            let all = Share(u32::MAX >> (u32::BITS as usize - records.len()));
            Chunk { records, first: number * AT_ONCE, all, positions }
        };
        rows.records.chunks(AT_ONCE).enumerate().map(chunk)
    }

    /// Which records are not behind, and which are. The former may be dealt with first: to aggregates order does not matter,
    /// other than for which record a sum does not fit with.
    #[inline]
    pub(super) fn split(&self, behind: &BehindWalk<'_>) -> (Share, Share) {
        let rows = behind.rows_before(self.first + self.records.len());
        let behind = rows.fold(0, |share, row| share | 1 << (row - self.first));
        (Share(self.all.0 & !behind), Share(behind))
    }

    /// The row of the first record of a share.
    #[inline]
    pub(super) fn row(&self, share: Share) -> usize {
        self.first + share.first().unwrap_or_default()
    }

    /// The records of a share with their rows, in order.
    #[inline]
    pub(super) fn records(&self, share: Share) -> impl Iterator<Item = (usize, &'a KeyedRecord<K, T>)> + use<'a, K, T> {
        let (records, first, mut rest) = (self.records, self.first, share);
        std::iter::from_fn(move || {
            let number = rest.first()?;
            rest.0 &= rest.0 - 1;
            Some((first + number, &records[number]))
        })
    }

    /// Does something with all records of a share; `row` says with which one.
    #[inline(always)] // it is the innermost loop of all
    pub(super) fn each<A: Aggregate<T>>(
        &self,
        share: Share,
        row: &mut usize,
        mut act: impl FnMut(&KeyedRecord<K, T>, &Origin),
    ) {
        for (number, record) in self.records(share) {
            *row = number;
            act(record, &origin::<K, T, A>(record, self.positions, number));
        }
    }

    /// Adds a share to the slice that its records are of: nothing is asked of each but its accumulator.
    #[inline(always)] // as above
    pub(super) fn add<A: Aggregate<T>>(
        &self,
        share: Share,
        mut slice: InSlice<'_, K, A::Acc>,
        aggregate: &A,
        row: &mut usize,
    ) {
        // Mostly it is all, and a loop that need not look which is a twentieth faster for the whole job.
        if share == self.all {
            for (number, record) in (self.first..).zip(self.records) {
                *row = number;
                add_one(&mut slice, aggregate, record, &origin::<K, T, A>(record, self.positions, number));
            }
        } else {
            self.each::<A>(share, row, |record, origin| add_one(&mut slice, aggregate, record, origin));
        }
    }
}

#[inline(always)] // as above
fn add_one<K: Key, T, A: Aggregate<T>>(
    slice: &mut InSlice<'_, K, A::Acc>,
    aggregate: &A,
    record: &KeyedRecord<K, T>,
    origin: &Origin,
) {
    aggregate.add(slice.update(record.hash, &record.key, || aggregate.create()), &record.value, origin);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Tumbling;
    use crate::window::assign::Sliced;
    use millstream_runtime::rows::Behind;
    use millstream_state::hash::hash_key;
    use proptest::prelude::*;

    fn rows(times: &[i64], behind: &[bool]) -> KeyedRows<u64, ()> {
        let mut rows = KeyedRows::default();
        for (row, at) in times.iter().enumerate() {
            rows.push(hash_key(&0u64), EventTime::from_micros(*at), 0, ());
            if behind[row] {
                rows.behind.push(Behind { row: row as u32, watermark: EventTime::MAX });
            }
        }
        rows
    }

    proptest! {
        /// Every record that is not behind is in the share of its slice, once, and the others are left to the caller.
        #[test]
        fn shares_divide_a_chunk_by_slices(
            size in 1i64..20,
            times in prop::collection::vec(prop_oneof![5 => 0i64..60, 1 => i64::MIN..i64::MIN + 3, 1 => i64::MAX - 3..=i64::MAX], 1..40),
            behind in prop::collection::vec(prop::bool::weighted(0.2), 40),
        ) {
            let windows = Tumbling::of(EventSpan::micros(size)).assigner();
            let (rows, mut places) = (rows(&times, &behind), Places::new(windows));
            let mut walk = BehindWalk::new(&rows.behind);
            let mut seen = Vec::new();
            for chunk in Chunk::all_of(&rows) {
                let (mut left, others) = chunk.split(&walk);
                while let Some((slice, share)) = places.next_share(&chunk, &mut left) {
                    prop_assert_eq!(chunk.records(share).count(), share.len());
                    for (row, record) in chunk.records(share) {
                        prop_assert!(!behind[row]);
                        prop_assert_eq!(slice, windows.slice_of(record.at));
                        seen.push(row);
                    }
                }
                for (row, _) in chunk.records(others.with(left)) {
                    prop_assert_eq!(walk.at(row), behind[row].then_some(EventTime::MAX));
                    seen.push(row);
                }
            }
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..times.len()));
        }
    }
}
