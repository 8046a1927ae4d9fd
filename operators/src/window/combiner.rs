//! Takes records together on the worker that read them, before they are sent to the worker that owns their key.
//!
//! With few keys most records of a slice meet one of the same key, and what travels is one accumulator instead of them
//! all. With many keys hardly any do, and taking them together only costs: so each slice is judged by how many
//! records there were to an accumulator. Where that was few, twice in a row or in one slice of very many keys, records travel as
//! they are for some slices.
//!
//! Records that are behind and count in some windows of their slice only are kept beside the others, by the first and the last of these
//! windows: the owner can do with one such accumulator what it would do with each of its records. All that have the same first window are
//! judged together.
//!
//! **Source**: a combiner, as in MapReduce (Dean and Ghemawat, OSDI 2004); turned on and off by what it brings, as
//! Flink's local aggregation is not.

use std::collections::BTreeMap;

use millstream_runtime::error::Result;
use millstream_runtime::operator::{Combiner, Fired};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::hash::hash_key;
use millstream_state::slices::SliceState;
use millstream_state::snapshot::{Key, State, Value};

use super::assign::WindowAssigner;
use super::place::{Chunk, Open, Places, origin};
use crate::aggregate::Aggregate;

/// No more accumulators than this are held of what counts in all windows, nor of what does not, unless they stand for many records each.
const MANY: usize = 1 << 17;

/// No more of either are held in any case.
const MOST: usize = 1 << 20;

/// No more slices than this are held: there are more only where event time is far apart, and then they wait long.
const SLICES: usize = 64;

/// No more pairs of a first and a last window than this are held.
const PAIRS: usize = 1 << 10;

/// With fewer records to an accumulator than this, to take them together does not pay.
const WORTHWHILE: u64 = 3;

/// The same for records that count in some windows only, which cost their owner more: it adds most of them twice.
const WORTHWHILE_BEHIND: u64 = 2;

/// For how many slices records travel as they are at most, before it is tried again.
const LONGEST_PAUSE: i64 = 64;

/// What records of one key in one slice amount to, that count in all of its windows from `first` on.
#[derive(Clone, Debug)]
pub(super) struct Slice<Acc> {
    pub slice: i64,
    pub first: i64,
    pub acc: Acc,
}

pub(super) struct SliceCombiner<K, T, A: Aggregate<T>> {
    windows: WindowAssigner,
    aggregate: A,
    places: Places,
    /// What counts in all windows of its slice: by slice.
    whole: Held<K, A::Acc>,
    /// What does not, because it is behind: by the first and the last window that it counts in.
    partial: Held<K, A::Acc>,
    types: std::marker::PhantomData<fn(T)>,
}

impl<K: Key, T, A: Aggregate<T>> SliceCombiner<K, T, A> {
    pub(super) fn new(windows: WindowAssigner, aggregate: A) -> Self {
        SliceCombiner {
            windows,
            aggregate,
            places: Places::new(windows),
            whole: Held::new(1, SLICES, WORTHWHILE),
            partial: Held::new(windows.most_windows(), PAIRS, WORTHWHILE_BEHIND),
            types: std::marker::PhantomData,
        }
    }
}

/// Where a record is taken together with others.
struct Spot {
    /// Whether it counts in all windows of its slice.
    whole: bool,
    group: i64,
    number: i64,
}

impl<K: Key, T, A: Aggregate<T>> SliceCombiner<K, T, A> {
    /// Where to take a record of `slice`; `None` if it has to travel as it is.
    #[inline]
    fn spot(&self, slice: i64, open: Open, fired: i64) -> Option<Spot> {
        if slice < fired.max(open.from) {
            return None;
        }
        if slice >= open.whole {
            return (!self.whole.is_paused(slice)).then_some(Spot { whole: true, group: slice, number: slice });
        }
        let group = open.number;
        let number = group.checked_mul(self.partial.numbers)?.checked_add(self.windows.last_of(slice) - group)?;
        (!self.partial.is_paused(group)).then_some(Spot { whole: false, group, number })
    }
}

/// Accumulators that are judged in groups: so many numbers in a row are one.
struct Held<K, Acc> {
    numbers: i64,
    /// With more numbers than this it is full.
    most: usize,
    /// With fewer records to an accumulator than this, to take them together does not pay.
    worthwhile: u64,
    accs: SliceState<K, Acc>,
    /// There are too many: all have to be handed over.
    full: bool,
    /// How many records each group has of what is held.
    records: BTreeMap<i64, u64>,
    /// The group that is being handed over.
    releasing: Option<i64>,
    /// Groups from the first up to but not including the second are not taken together.
    paused: (i64, i64),
    /// How many groups the next pause will last.
    pause: i64,
    /// Taking records together did not pay for the group before.
    doubtful: bool,
}

impl<K: Key, Acc: Value> Held<K, Acc> {
    fn new(numbers: i64, most: usize, worthwhile: u64) -> Self {
        Held {
            numbers,
            most,
            worthwhile,
            accs: SliceState::default(),
            full: false,
            records: BTreeMap::new(),
            releasing: None,
            paused: (0, 0),
            pause: 1,
            doubtful: false,
        }
    }

    /// Counts records of a group that were taken.
    fn count(&mut self, group: i64, records: u64) {
        *self.records.entry(group).or_default() += records;
    }

    /// Looks whether there is too much of anything.
    fn weigh(&mut self) {
        self.full |= self.accs.slices() > self.most;
        let entries = self.accs.entries();
        if entries as usize > MANY {
            let records: u64 = self.records.values().sum();
            self.full |= entries as usize > MOST || records < entries * self.worthwhile;
        }
    }

    fn is_paused(&self, group: i64) -> bool {
        self.paused.0 <= group && group < self.paused.1
    }

    /// Decides by what `group` came to whether the next ones are worth it.
    fn judge(&mut self, group: i64) {
        let next = |number: i64| self.accs.next_from(number).filter(|number| self.group_of(*number) == group);
        let numbers = std::iter::successors(self.accs.first(), |number| next(number.checked_add(1)?));
        let accumulators: usize = numbers.map(|number| self.accs.keys_in(number)).sum();
        let records = self.records.remove(&group).unwrap_or_default();
        let pays = records >= accumulators as u64 * self.worthwhile;
        if pays {
            self.pause = 1;
        } else if self.full || self.doubtful {
            // With the rest of a group that has many keys for certain; otherwise with the next one.
            let first = group + i64::from(!self.full);
            self.paused = (first, first.saturating_add(self.pause));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        // One group that has few records may be where a stream begins, or was interrupted.
        self.doubtful = !pays;
    }

    fn group_of(&self, number: i64) -> i64 {
        number.div_euclid(self.numbers)
    }

    /// Hands over groups that are due, until there are `most` rows; returns whether that was all.
    fn release(
        &mut self,
        is_due: impl Fn(i64) -> bool,
        most: usize,
        out: &mut KeyedRows<K, Slice<Acc>>,
        place: impl Fn(i64, i64) -> (EventTime, i64, i64),
    ) -> Fired {
        while let Some(number) = self.accs.first() {
            let group = self.group_of(number);
            if !is_due(group) {
                break;
            }
            if self.releasing != Some(group) {
                self.releasing = Some(group);
                self.judge(group);
            }
            let room = most - out.records.len();
            let (at, slice, first) = place(group, number);
            let all = self.accs.take_some(number, room, |key, acc| {
                out.push(hash_key(&key), at, key, Slice { slice, first, acc });
            });
            if !all || out.records.len() >= most {
                return Fired::More;
            }
        }
        (self.releasing, self.full) = (None, false);
        Fired::All
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> Combiner for SliceCombiner<K, T, A> {
    type Key = K;
    type In = T;
    type Out = Slice<A::Acc>;

    fn take(&mut self, rows: &mut KeyedRows<K, T>, fired: EventTime, row: &mut usize) -> Result<()> {
        // Records of slices before this one may be late, which is for the owner of their key to decide.
        let fired = self.windows.slices_of(self.windows.first_open(fired)).0;
        let mut behind = BehindWalk::new(&rows.behind);
        let mut travel: Vec<u32> = Vec::new();
        self.whole.accs.prefetch(&rows.records, 0, |record| record.hash);
        for (number, chunk) in Chunk::all_of(rows).enumerate() {
            self.whole.accs.prefetch(&rows.records, number + 1, |record| record.hash);
            let (mut left, mut others) = chunk.split(&behind);
            while let Some((slice, share)) = self.places.next_share(&chunk, &mut left) {
                if slice < fired || self.whole.is_paused(slice) {
                    others = others.with(share);
                    continue;
                }
                chunk.add(share, self.whole.accs.in_slice(slice), &self.aggregate, row);
                self.whole.count(slice, share.len() as u64);
            }
            for (number, record) in chunk.records(others.with(left)) {
                *row = number;
                let (slice, open) = self.places.of_behind(record.at, behind.at(number));
                let Some(spot) = self.spot(slice, open, fired) else {
                    travel.push(number as u32);
                    continue;
                };
                let held = if spot.whole { &mut self.whole } else { &mut self.partial };
                held.count(spot.group, 1);
                let aggregate = &self.aggregate;
                let acc = held.accs.update(spot.number, record.hash, &record.key, || aggregate.create());
                aggregate.add(acc, &record.value, &origin::<K, T, A>(record, &rows.positions, number));
            }
        }
        rows.keep(&travel);
        self.whole.weigh();
        self.partial.weigh();
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.whole.accs.first().is_none() && self.partial.accs.first().is_none()
    }

    fn is_full(&self) -> bool {
        self.whole.full || self.partial.full
    }

    fn release(&mut self, watermark: EventTime, most: usize, out: &mut KeyedRows<K, Slice<A::Acc>>) -> Fired {
        let SliceCombiner { windows, whole, partial, .. } = self;
        let open = windows.first_open(watermark);
        let at = |slice| windows.slice_bounds(slice).0;
        let is_due = |slice: i64| windows.windows_of(slice).0 < open;
        if whole.release(is_due, most, out, |slice, _| (at(slice), slice, i64::MIN)) == Fired::More {
            return Fired::More;
        }
        let numbers = partial.numbers;
        let place = |first: i64, number: i64| {
            let slice = windows.slices_of(first + number.rem_euclid(numbers)).0;
            (at(slice), slice, first)
        };
        partial.release(|first| first < open, most, out, place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::assign::Sliced;
    use super::super::{Sliding, Tumbling};
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
        assert!(combiner.whole.records.is_empty(), "of a slice that is handed over nothing is kept");
    }

    /// Whether they are late is for the owner of their key to decide.
    #[test]
    fn records_that_may_be_late_are_left() {
        let mut combiner = combiner();
        let mut behind = rows(5, [1, 2, 3, 4]);
        behind.behind.extend([Behind { row: 1, watermark: us(60) }, Behind { row: 2, watermark: us(59) }]);
        combiner.take(&mut behind, us(50), &mut 0).unwrap();
        assert_eq!(behind.records.iter().map(|record| record.key).collect::<Vec<_>>(), [2]);
        assert_eq!(behind.behind, [Behind { row: 0, watermark: us(60) }]);
        let mut fired = rows(4, [1, 2]);
        combiner.take(&mut fired, us(50), &mut 0).unwrap();
        assert_eq!(fired.records.len(), 2);
        assert_eq!(release(&mut combiner, EventTime::MAX), [(5, 1, 1), (5, 3, 1), (5, 4, 1)]);
    }

    /// Windows of 30 us every 10: a record of slice 5 is in windows 3, 4 and 5. What is behind is held until the first window
    /// that it counts in is over.
    #[test]
    fn records_that_count_in_some_windows_are_taken_with_their_like() {
        let windows = Sliding::of(EventSpan::micros(30), EventSpan::micros(10)).assigner();
        let mut combiner: Counts = SliceCombiner::new(windows, Count);
        let mut behind = rows(5, [1, 1, 1, 1, 1, 1]);
        let watermarks = [59, 60, 69, 70, 79, 80];
        behind.behind = (0..).zip(watermarks).map(|(row, at)| Behind { row, watermark: us(at) }).collect();
        combiner.take(&mut behind, EventTime::MIN, &mut 0).unwrap();
        assert_eq!(behind.behind, [Behind { row: 0, watermark: us(80) }]);
        let mut released = |watermark| {
            let mut out = KeyedRows::default();
            assert_eq!(combiner.release(watermark, 4096, &mut out), Fired::All);
            let parts = out.records.into_iter().map(|record| record.value);
            parts.map(|Slice { slice, first, acc }| (slice, first, acc)).collect::<Vec<_>>()
        };
        assert_eq!(released(us(59)), []);
        assert_eq!(released(us(60)), [(5, i64::MIN, 1)]);
        assert_eq!(released(us(70)), [(5, 4, 2)]);
        assert_eq!(released(us(80)), [(5, 5, 2)]);
        assert!(combiner.is_empty());
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

    /// Windows of 5,000 us, one beginning every microsecond. What counts in all of them is not judged by it.
    #[test]
    fn many_pairs_of_a_first_and_a_last_window_fill_it() {
        let windows = Sliding::of(EventSpan::micros(5_000), EventSpan::micros(1)).assigner();
        let mut combiner: Counts = SliceCombiner::new(windows, Count);
        let on_time = |number: i64| {
            let mut rows = KeyedRows::default();
            rows.push(hash_key(&7), us(number), 7, ());
            rows
        };
        assert_eq!(offer(&mut combiner, on_time(6_000)), 0);
        for number in 1..=PAIRS as i64 + 1 {
            assert!(!combiner.is_full());
            let mut late = on_time(number);
            late.behind.push(Behind { row: 0, watermark: us(5_000) });
            assert_eq!(offer(&mut combiner, late), 0);
        }
        assert!(combiner.is_full());
        assert_eq!(release(&mut combiner, EventTime::MAX).len(), PAIRS + 2);
        assert!(!combiner.is_full() && combiner.is_empty());
        assert_eq!(offer(&mut combiner, on_time(6_000)), 0);
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
