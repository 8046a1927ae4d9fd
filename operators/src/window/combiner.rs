//! Takes records together on the worker that read them, before they are sent to the worker that owns their key.
//!
//! With few keys most records of a slice meet one of the same key, and what travels is one accumulator instead of them
//! all. With many keys hardly any do, and taking them together only costs: so each slice is judged by how many
//! records there were to an accumulator. Where that was few, twice in a row or in one slice of very many keys, records travel as
//! they are for some slices.
//!
//! **Source**: a combiner, as in MapReduce (Dean and Ghemawat, OSDI 2004); turned on and off by what it brings, as
//! Flink's local aggregation is not.

use std::collections::VecDeque;

use millstream_runtime::error::Result;
use millstream_runtime::operator::{Combiner, Fired};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::hash::hash_key;
use millstream_state::slices::{AT_ONCE, SliceState};
use millstream_state::snapshot::{Key, State};

use super::assign::WindowAssigner;
use super::place::{Place, Places, add_all, origin};
use crate::aggregate::Aggregate;

/// No more accumulators than this are held, unless they stand for many records each.
const MANY: usize = 1 << 17;

/// No more accumulators than this are held in any case.
const MOST: usize = 1 << 20;

/// No more slices than this are held: there are more only where event time is far apart, and then they wait long.
const SLICES: usize = 64;

/// With fewer records to an accumulator than this, to take them together does not pay.
const WORTHWHILE: u64 = 3;

/// For how many slices records travel as they are at most, before it is tried again.
const LONGEST_PAUSE: i64 = 64;

/// What records of one key in one slice amount to.
#[derive(Clone, Debug)]
pub(super) struct Slice<Acc> {
    pub slice: i64,
    pub acc: Acc,
}

pub(super) struct SliceCombiner<K, T, A: Aggregate<T>> {
    windows: WindowAssigner,
    aggregate: A,
    places: Places,
    held: SliceState<K, A::Acc>,
    /// How many records each slice has of what is held.
    records: VecDeque<(i64, u64)>,
    /// The slice that is being handed over.
    releasing: Option<i64>,
    full: bool,
    /// Slices from the first up to but not including the second are not taken together.
    paused: (i64, i64),
    /// How many slices the next pause will last.
    pause: i64,
    /// Taking records together did not pay for the slice before.
    doubtful: bool,
    types: std::marker::PhantomData<fn(T)>,
}

impl<K, T, A: Aggregate<T>> SliceCombiner<K, T, A> {
    pub(super) fn new(windows: WindowAssigner, aggregate: A) -> Self {
        SliceCombiner {
            windows,
            aggregate,
            places: Places::new(windows),
            held: SliceState::default(),
            records: VecDeque::new(),
            releasing: None,
            full: false,
            paused: (0, 0),
            pause: 1,
            doubtful: false,
            types: std::marker::PhantomData,
        }
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> SliceCombiner<K, T, A> {
    /// Counts records of `slice` that were taken.
    fn count(&mut self, slice: i64, records: u64) {
        match self.records.iter_mut().rev().find(|(number, _)| *number == slice) {
            Some((_, count)) => *count += records,
            None => self.records.push_back((slice, records)),
        }
    }

    fn is_paused(&self, place: Place) -> bool {
        self.paused.0 <= place.slice && place.slice < self.paused.1
    }

    /// Decides by what `slice` came to whether the next ones are worth it.
    fn judge(&mut self, slice: i64) {
        let accumulators = self.held.keys_in(slice) as u64;
        let place = self.records.iter().position(|(number, _)| *number == slice);
        let (_, records) = place.and_then(|place| self.records.remove(place)).unwrap_or_default();
        let pays = records >= accumulators * WORTHWHILE;
        if pays {
            self.pause = 1;
        } else if self.full || self.doubtful {
            // With the rest of a slice that has many keys for certain; otherwise with the next one.
            let first = slice + i64::from(!self.full);
            self.paused = (first, first.saturating_add(self.pause));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        // One slice that has few records may be where a stream begins, or was interrupted.
        self.doubtful = !pays;
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> Combiner for SliceCombiner<K, T, A> {
    type Key = K;
    type In = T;
    type Out = Slice<A::Acc>;

    fn take(&mut self, rows: &mut KeyedRows<K, T>, fired: EventTime, row: &mut usize) -> Result<()> {
        // Records before this window may be late, which is for the owner of their key to decide.
        let open = self.windows.first_open(fired);
        let mut behind = BehindWalk::new(&rows.behind);
        let mut left: Vec<u32> = Vec::new();
        self.held.prefetch(&rows.records, 0, |record| record.hash);
        for (chunk, records) in rows.records.chunks(AT_ONCE).enumerate() {
            self.held.prefetch(&rows.records, chunk + 1, |record| record.hash);
            let first = chunk * AT_ONCE;
            if let Some(place) = self.places.of_all(records, first, &behind)
                && !self.is_paused(place)
                && place.windows.0 >= open
            {
                add_all(self.held.in_slice(place.slice), &self.aggregate, records, first, &rows.positions, row);
                self.count(place.slice, records.len() as u64);
                continue;
            }
            for (number, record) in (first..).zip(records) {
                *row = number;
                let place = self.places.of(record.at);
                if behind.at(number).is_some() || self.is_paused(place) || place.windows.0 < open {
                    left.push(number as u32);
                    continue;
                }
                self.count(place.slice, 1);
                let aggregate = &self.aggregate;
                let acc = self.held.update(place.slice, record.hash, &record.key, || aggregate.create());
                aggregate.add(acc, &record.value, &origin::<K, T, A>(record, &rows.positions, number));
            }
        }
        rows.keep(&left);
        if self.records.len() > SLICES {
            self.full = true;
            return Ok(());
        }
        let accumulators = self.held.entries() as usize;
        if accumulators > MANY {
            let records: u64 = self.records.iter().map(|(_, count)| count).sum();
            self.full = accumulators > MOST || records < accumulators as u64 * WORTHWHILE;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.held.first().is_none()
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn release(&mut self, watermark: EventTime, most: usize, out: &mut KeyedRows<K, Slice<A::Acc>>) -> Fired {
        let open = self.windows.first_open(watermark);
        while let Some(slice) = self.held.first().filter(|slice| self.windows.windows_of(*slice).0 < open) {
            if self.releasing != Some(slice) {
                self.releasing = Some(slice);
                self.judge(slice);
            }
            let room = most - out.records.len();
            let at = self.windows.slice_bounds(slice).0;
            let all = self.held.take_some(slice, room, |key, acc| {
                out.push(hash_key(&key), at, key, Slice { slice, acc });
            });
            if !all || out.records.len() >= most {
                return Fired::More;
            }
        }
        self.releasing = None;
        self.full = false;
        Fired::All
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tumbling;
    use super::super::assign::Sliced;
    use super::*;
    use crate::aggregate::Count;
    use millstream_runtime::rows::Behind;
    use millstream_runtime::time::EventSpan;

    type Counts = SliceCombiner<u64, (), Count>;

    /// Slices of 10 us.
    fn combiner() -> Counts {
        SliceCombiner::new(Tumbling::of(EventSpan::micros(10)).assigner(), Count)
    }

    fn us(us: i64) -> EventTime {
        EventTime::from_micros(us)
    }

    /// A record of each of `keys`, at the beginning of `slice`.
    fn rows(slice: i64, keys: impl IntoIterator<Item = u64>) -> KeyedRows<u64, ()> {
        let mut rows = KeyedRows::default();
        keys.into_iter().for_each(|key| rows.push(hash_key(&key), us(slice * 10), key, ()));
        rows
    }

    /// Offers records; returns how many were left.
    fn offer(combiner: &mut Counts, mut rows: KeyedRows<u64, ()>) -> usize {
        combiner.take(&mut rows, EventTime::MIN, &mut 0).unwrap();
        rows.records.len()
    }

    /// All that is handed over when event time has come to `watermark`: slice, key and count, sorted.
    fn release(combiner: &mut Counts, watermark: EventTime) -> Vec<(i64, u64, u64)> {
        let mut all = Vec::new();
        loop {
            let mut out = KeyedRows::default();
            let fired = combiner.release(watermark, 4096, &mut out);
            assert!(out.records.len() <= 4096);
            all.extend(out.records.iter().map(|record| (record.value.slice, record.key, record.value.acc)));
            if fired == Fired::All {
                all.sort_unstable();
                return all;
            }
        }
    }

    #[test]
    fn what_is_taken_is_handed_over_when_its_windows_close() {
        let mut combiner = combiner();
        for slice in [0, 1, 0] {
            assert_eq!(offer(&mut combiner, rows(slice, [1, 2, 1])), 0);
        }
        assert_eq!(release(&mut combiner, us(9)), []);
        assert_eq!(release(&mut combiner, us(10)), [(0, 1, 4), (0, 2, 2)]);
        assert!(!combiner.is_empty());
        assert_eq!(release(&mut combiner, EventTime::MAX), [(1, 1, 2), (1, 2, 1)]);
        assert!(combiner.is_empty());
    }

    /// Whether they are late is for the owner of their key to decide.
    #[test]
    fn records_that_may_be_late_are_left() {
        let mut combiner = combiner();
        let mut behind = rows(5, [1, 2, 3]);
        behind.behind.push(Behind { row: 1, watermark: us(51) });
        combiner.take(&mut behind, us(50), &mut 0).unwrap();
        assert_eq!(behind.records.iter().map(|record| record.key).collect::<Vec<_>>(), [2]);
        assert_eq!(behind.behind, [Behind { row: 0, watermark: us(51) }]);
        let mut fired = rows(4, [1, 2]);
        combiner.take(&mut fired, us(50), &mut 0).unwrap();
        assert_eq!(fired.records.len(), 2);
        assert_eq!(release(&mut combiner, EventTime::MAX), [(5, 1, 1), (5, 3, 1)]);
    }

    #[test]
    fn many_records_a_key_are_always_taken() {
        let mut combiner = combiner();
        for slice in 0..100 {
            assert_eq!(offer(&mut combiner, rows(slice, (0..100).map(|n| n % 10))), 0, "slice {slice}");
            assert_eq!(release(&mut combiner, us(slice * 10 + 10)).len(), 10);
        }
    }

    /// One slice of few records a key decides nothing. From the second on the pauses grow, until taking pays again.
    #[test]
    fn few_records_a_key_are_left_for_longer_and_longer() {
        let mut combiner = combiner();
        let mut taken = |slice: i64, records: u64| {
            let left = offer(&mut combiner, rows(slice, (0..records).map(|n| n % 10)));
            assert!(left == 0 || left as u64 == records);
            release(&mut combiner, us(slice * 10 + 10));
            left == 0
        };
        let slices: Vec<i64> = (0..300).filter(|slice| taken(*slice, 10)).collect();
        assert_eq!(slices, [0, 1, 3, 6, 11, 20, 37, 70, 135, 200, 265]);
        // The pause of 64 slices after 265 is over at 330.
        assert!(!taken(329, 100));
        assert!(taken(330, 100) && taken(331, 10) && taken(332, 10));
        assert!(!taken(333, 10) && taken(334, 10));
    }

    #[test]
    fn a_slice_that_fills_it_is_not_taken_to_its_end() {
        let mut combiner = combiner();
        assert_eq!(offer(&mut combiner, rows(0, 0..MANY as u64)), 0);
        assert!(!combiner.is_full());
        assert_eq!(offer(&mut combiner, rows(0, [MANY as u64])), 0);
        assert!(combiner.is_full());
        assert_eq!(release(&mut combiner, EventTime::MAX).len(), MANY + 1);
        assert!(!combiner.is_full() && combiner.is_empty());
        assert_eq!(offer(&mut combiner, rows(0, [1, 1, 1])), 3);
        assert_eq!(offer(&mut combiner, rows(1, [1, 1, 1])), 0);
    }

    /// They wait long, where event time is far apart.
    #[test]
    fn many_slices_fill_it() {
        let mut combiner = combiner();
        for slice in 0..SLICES as i64 {
            offer(&mut combiner, rows(slice, [1; 10]));
            assert!(!combiner.is_full());
        }
        offer(&mut combiner, rows(SLICES as i64, [1; 10]));
        assert!(combiner.is_full());
        assert_eq!(release(&mut combiner, EventTime::MAX).len(), SLICES + 1);
        assert_eq!(offer(&mut combiner, rows(100, [1])), 0);
    }
}
