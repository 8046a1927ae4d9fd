//! What several slices in a row amount to, so that long windows need not merge every slice that they have.
//!
//! A stretch is 4, 16, 64 and so on slices, the first of which has a number that this divides. Stretches are made when a window first
//! has them as a whole, out of the next smaller ones, and then serve all windows that do. So a window of `n` slices is some
//! `6 log4 n` merges for every key at most, whatever kinds of windows there are.
//!
//! Where slices are far apart there are no stretches of one slice, nor of one smaller stretch: these stand for themselves. So there are never more
//! stretches than slices.
//!
//! **State**: where all slices have the same keys, a third of their accumulators again; where all have others, as many again for each length of stretches,
//! of which there are `log4 n`. They are derived from the slices, and so in no checkpoint.
//!
//! **Source**: aggregates over a tree of parts that windows share, as the FlatFAT of Tangwongsan, Hirzel, Schneider and Wu, *General incremental
//! sliding-window aggregation* (PVLDB 8(7), 2015).

use millstream_state::hash::hash_key;
use millstream_state::slices::SliceState;
use millstream_state::snapshot::{Key, Value};

use crate::aggregate::Aggregate;

/// A stretch has 2 to the power of this as many slices as the next smaller one.
const BITS: u32 = 2;

/// The longest stretches are so many steps longer than slices: beyond, their bounds would not fit 64 bits.
const LONGEST: usize = 62 / BITS as usize;

pub(super) struct Stretches<K, Acc> {
    /// By length, the shortest first; each under the number of its first slice, divided by the length.
    by_length: Vec<SliceState<K, Acc>>,
}

/// A slice, or a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// How many steps it is longer than a slice.
    length: usize,
    number: i64,
}

impl<K, Acc> Default for Stretches<K, Acc> {
    fn default() -> Self {
        Stretches { by_length: Vec::new() }
    }
}

impl<K: Key, Acc: Value> Stretches<K, Acc> {
    /// Every key and accumulator of as few pieces as there can be, that have together all slices from `from` up to but not including `to`.
    pub(super) fn each<T>(
        &mut self,
        (from, to): (i64, i64),
        slices: &SliceState<K, Acc>,
        aggregate: &impl Aggregate<T, Acc = Acc>,
        mut each: impl FnMut(&K, &Acc),
    ) {
        debug_assert!(
            self.made() <= slices.slices() + self.by_length.len(),
            "of slices that are gone there are stretches"
        );
        for piece in self.pieces((from, to), LONGEST, slices, aggregate) {
            entries(&self.by_length, slices, piece).for_each(|(key, acc)| each(key, acc));
        }
    }

    /// `slice` has got what `acc` says.
    pub(super) fn add<T>(
        &mut self,
        slice: i64,
        hash: u64,
        key: &K,
        acc: &Acc,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) {
        for (length, stretches) in (1..).zip(&mut self.by_length) {
            let number = slice >> bits(length);
            if stretches.keys_in(number) > 0 {
                aggregate.merge(stretches.update(number, hash, key, || aggregate.create()), acc);
            }
        }
    }

    /// Drops what has slices before `to`.
    pub(super) fn drop_before(&mut self, to: i64) {
        for (length, stretches) in (1..).zip(&mut self.by_length) {
            stretches.drop_before(to >> bits(length));
        }
    }

    /// How many stretches there are.
    fn made(&self) -> usize {
        self.by_length.iter().map(SliceState::slices).sum()
    }

    /// The pieces of a range, none of them longer than `most` says, from the newest to the oldest. All stretches among them are made.
    fn pieces<T>(
        &mut self,
        (from, mut to): (i64, i64),
        most: usize,
        slices: &SliceState<K, Acc>,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some(last) = slices.last_before(to).filter(|last| *last >= from) {
            let fits = |length: &usize| {
                let (start, end) = bounds(Piece { length: *length, number: last >> bits(*length) });
                from <= start && end <= i128::from(to)
            };
            let length = (1..=most).take_while(fits).last().unwrap_or_default();
            let (start, _) = bounds(Piece { length, number: last >> bits(length) });
            // Of what has records in one smaller piece only, that is all.
            let first = slices.next_from(start).unwrap_or(last);
            let length = (64 - (first ^ last).leading_zeros()).div_ceil(BITS) as usize;
            let piece = Piece { length, number: last >> bits(length) };
            self.make(piece, slices, aggregate);
            pieces.push(piece);
            to = start;
        }
        pieces
    }

    /// Makes a stretch, if it is not there.
    fn make<T>(&mut self, piece: Piece, slices: &SliceState<K, Acc>, aggregate: &impl Aggregate<T, Acc = Acc>) {
        if piece.length == 0 {
            return;
        }
        if self.by_length.len() < piece.length {
            self.by_length.resize_with(piece.length, SliceState::default);
        }
        if self.by_length[piece.length - 1].keys_in(piece.number) > 0 {
            return;
        }
        let (from, to) = bounds(piece);
        let parts = self.pieces((from, to as i64), piece.length - 1, slices, aggregate);
        let (shorter, own) = self.by_length.split_at_mut(piece.length - 1);
        let mut own = own[0].in_slice(piece.number);
        for part in parts {
            for (key, acc) in entries(shorter, slices, part) {
                aggregate.merge(own.update(hash_key(key), key, || aggregate.create()), acc);
            }
        }
    }
}

/// What is in a piece, key by key.
fn entries<'a, K: Key, Acc: Value>(
    stretches: &'a [SliceState<K, Acc>],
    slices: &'a SliceState<K, Acc>,
    Piece { length, number }: Piece,
) -> impl Iterator<Item = (&'a K, &'a Acc)> {
    let all = if length == 0 { slices } else { &stretches[length - 1] };
    all.range(number, number + 1).map(|(_, key, acc)| (key, acc))
}

fn bits(length: usize) -> u32 {
    length as u32 * BITS
}

/// The slices of a piece: from the first up to but not including the last.
fn bounds(Piece { length, number }: Piece) -> (i64, i128) {
    let first = number << bits(length);
    (first, i128::from(first) + (1i128 << bits(length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{List, Origin};
    use millstream_runtime::time::EventTime;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Slices = SliceState<u64, <List<fn(&u64) -> u64> as Aggregate<u64>>::Acc>;

    #[derive(Clone, Debug)]
    enum Step {
        /// A record of a key in a slice, of which there may be stretches.
        Add(i64, u64),
        /// All records from a slice on, of so many slices.
        Each(i64, i64),
        Drop(i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let slice = prop_oneof![8 => -40i64..80, 1 => Just(i64::MIN), 1 => Just(i64::MAX - 1), 1 => -2_000_000_000i64..2_000_000_000];
        let length = prop_oneof![4 => 0i64..100, 1 => Just(i64::MAX)];
        let step = prop_oneof![
            6 => (slice.clone(), 0..4u64).prop_map(|(slice, key)| Step::Add(slice, key)),
            3 => (slice.clone(), length).prop_map(|(from, slices)| Step::Each(from, slices)),
            1 => slice.prop_map(Step::Drop),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn stretches_have_what_their_slices_have(steps in steps()) {
            let list = List::of((|record: &u64| *record) as fn(&u64) -> u64);
            let (mut slices, mut stretches, mut dropped) = (Slices::default(), Stretches::default(), i64::MIN);
            let mut model = BTreeMap::<(i64, u64), Vec<u64>>::new();
            for (number, step) in (0u64..).zip(steps) {
                match step {
                    Step::Add(slice, key) if slice >= dropped => {
                        let mut acc = list.create();
                        list.add(&mut acc, &number, &Origin { at: EventTime::from_micros(number as i64), split: 0, record: 0 });
                        list.merge(slices.update(slice, hash_key(&key), &key, || list.create()), &acc);
                        stretches.add(slice, hash_key(&key), &key, &acc, &list);
                        model.entry((slice, key)).or_default().push(number);
                    }
                    Step::Add(..) => {}
                    Step::Each(from, length) => {
                        let from = from.max(dropped);
                        let to = from.saturating_add(length);
                        let mut found = BTreeMap::<u64, Vec<u64>>::new();
                        let mut pieces = 0;
                        stretches.each((from, to), &slices, &list, |key, acc| {
                            found.entry(*key).or_default().extend(Aggregate::<u64>::finish(&list, acc));
                            pieces += 1;
                        });
                        prop_assert!(pieces <= 4 * 6 * 31, "{} pieces", pieces);
                        let mut expected = BTreeMap::<u64, Vec<u64>>::new();
                        for ((_, key), numbers) in model.range((from, 0)..(to, 0)) {
                            expected.entry(*key).or_default().extend(numbers);
                        }
                        found.values_mut().chain(expected.values_mut()).for_each(|numbers| numbers.sort_unstable());
                        prop_assert_eq!(found, expected);
                    }
                    Step::Drop(to) => {
                        dropped = dropped.max(to);
                        slices.drop_before(dropped);
                        stretches.drop_before(dropped);
                        model.retain(|(slice, _), _| *slice >= dropped);
                    }
                }
                // Besides what has slices that were dropped.
                prop_assert!(stretches.made() <= slices.slices() + stretches.by_length.len());
            }
        }
    }

    /// Made from four of the next shorter, where all slices are there.
    #[test]
    fn long_ranges_are_few_pieces() {
        let list = List::of((|record: &u64| *record) as fn(&u64) -> u64);
        let (mut slices, mut stretches) = (Slices::default(), Stretches::default());
        for slice in 0..1_000 {
            slices.update(slice, hash_key(&0u64), &0, Vec::new);
        }
        let pieces = |range, stretches: &mut Stretches<_, _>| stretches.pieces(range, LONGEST, &slices, &list).len();
        assert_eq!(pieces((256, 512), &mut stretches), 1);
        assert_eq!(stretches.by_length.iter().map(SliceState::slices).collect::<Vec<_>>(), [64, 16, 4, 1]);
        assert_eq!(pieces((255, 513), &mut stretches), 3);
        assert_eq!(pieces((1, 999), &mut stretches), 23);
        stretches.drop_before(300);
        assert_eq!(stretches.by_length.iter().map(SliceState::slices).collect::<Vec<_>>(), [174, 44, 11, 2]);
    }
}
