//! Overlapping windows without adding everything up again: what enters a window is added, what leaves it is subtracted.
//!
//! From one window to the next only a few slices change. For aggregates that can be inverted a window costs two steps for
//! every key in these, and one result for every key that it has, whatever its size divided by its slide.
//!
//! The sums may be ahead of the windows: those of the next one, kept up to date while its records come, so that it only
//! has to be read out when it closes.
//!
//! **State**: one accumulator per key of the current window, derived from the slices and so in no checkpoint: after a restart
//! the first window that fires adds it up anew.
//!
//! **Source**: subtract-on-evict, as in Tangwongsan, Hirzel, Schneider and Wu, *General incremental sliding-window
//! aggregation* (PVLDB 8(7), 2015).

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Found;
use millstream_state::hash::hash_key;
use millstream_state::slices::SliceState;
use millstream_state::snapshot::{Key, Value};

use crate::aggregate::Aggregate;

/// What the records of a key amount to in the current window.
struct Sum<K, Acc> {
    key: K,
    acc: Acc,
    /// The last slice that has the key; when it leaves, the key goes.
    last: i64,
}

pub(super) struct Running<K, Acc> {
    /// One after another, so that to read them out is as fast as it can be, and can be done bit by bit.
    sums: Vec<Sum<K, Acc>>,
    /// Where in `sums` each key is.
    places: HashTable<usize>,
    /// The slices that are in the sums: from the first up to but not including the last.
    from: i64,
    to: i64,
}

impl<K, Acc> Default for Running<K, Acc> {
    fn default() -> Self {
        Running { sums: Vec::new(), places: HashTable::new(), from: i64::MIN, to: i64::MIN }
    }
}

impl<K: Key, Acc: Value> Running<K, Acc> {
    /// Moves on to the window of the slices from `from` up to but not including `to`. Windows may only move forward, and
    /// what changes in slices that are in the sums must change [here](Self::update) as well.
    pub(super) fn move_to<T>(
        &mut self,
        from: i64,
        to: i64,
        slices: &SliceState<K, Acc>,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) {
        self.leave(from, slices, aggregate);
        if to <= self.to {
            return;
        }
        for (slice, key, acc) in slices.range(self.to, to) {
            aggregate.merge(self.update(slice, hash_key(key), key, || aggregate.create()), acc);
        }
        self.to = to;
    }

    /// Takes the slices before `from` out of the sums; they may go afterwards.
    pub(super) fn leave<T>(
        &mut self,
        from: i64,
        slices: &SliceState<K, Acc>,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) {
        if from >= self.to {
            self.sums.clear();
            self.places.clear();
            (self.from, self.to) = (from, from);
            return;
        }
        if from <= self.from {
            return;
        }
        for (slice, key, acc) in slices.range(self.from, from) {
            let Ok(found) = self.places.find_entry(hash_key(key), |place| self.sums[*place].key == *key) else {
                unreachable!("a key of the window's slices is not in its sums");
            };
            let place = *found.get();
            if self.sums[place].last > slice {
                aggregate.subtract(&mut self.sums[place].acc, acc);
                continue;
            }
            found.remove();
            self.sums.swap_remove(place);
            if let Some(moved) = self.sums.get(place)
                && let Some(at) = self.places.find_mut(hash_key(&moved.key), |at| *at == self.sums.len())
            {
                *at = place;
            }
        }
        self.from = from;
        // After a crowd of keys, not for ever to keep the room that it needed.
        if self.sums.capacity() > 1024 && self.sums.len() < self.sums.capacity() / 8 {
            self.sums.shrink_to(self.sums.len() * 2);
            self.places.shrink_to(self.sums.len() * 2, |place| hash_key(&self.sums[*place].key));
        }
    }

    /// The first slice that is in the sums.
    pub(super) fn from(&self) -> i64 {
        self.from
    }

    /// The slices before this one are in the sums, as far as they have not left them.
    pub(super) fn to(&self) -> i64 {
        self.to
    }

    /// The sum of `key`, whose hash is `hash`, to be changed by what `slice` has of it; made by `create` when there is none.
    #[inline]
    pub(super) fn update(&mut self, slice: i64, hash: u64, key: &K, create: impl FnOnce() -> Acc) -> &mut Acc {
        let sums = &mut self.sums;
        let place = self.places.entry(hash, |place| sums[*place].key == *key, |place| hash_key(&sums[*place].key));
        let place = match place {
            Found::Occupied(found) => *found.get(),
            Found::Vacant(vacant) => {
                let place = sums.len();
                sums.push(Sum { key: key.clone(), acc: create(), last: slice });
                vacant.insert(place);
                place
            }
        };
        let sum = &mut self.sums[place];
        sum.last = sum.last.max(slice);
        &mut sum.acc
    }

    /// How many keys the current window has.
    pub(super) fn len(&self) -> usize {
        self.sums.len()
    }

    /// The keys of the current window, without the first `seen`, with what the records of each amount to.
    pub(super) fn sums(&self, seen: usize) -> impl Iterator<Item = (&K, &Acc)> {
        self.sums[seen..].iter().map(|sum| (&sum.key, &sum.acc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Sum as Total;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Windows of three slices: with records that come before the sums have their slice, and with such that come after, each
        /// window has what its slices have.
        #[test]
        fn sums_are_those_of_the_slices(
            windows in prop::collection::vec((prop::collection::vec((0..4i64, 0..8u64, -5..5i64), 0..20), any::<bool>(), 1..4i64), 1..20),
        ) {
            let total = Total::of(|value: &i64| *value);
            let mut slices = SliceState::<u64, i64>::default();
            let mut running = Running::default();
            let mut from = 0;
            for (records, ahead, step) in windows {
                if ahead {
                    running.move_to(from, from + 3, &slices, &total);
                }
                for (slice, key, value) in records {
                    let slice = from + slice;
                    *slices.update(slice, hash_key(&key), &key, || 0) += value;
                    if slice < running.to() {
                        *running.update(slice, hash_key(&key), &key, || 0) += value;
                    }
                }
                running.move_to(from, from + 3, &slices, &total);
                let mut expected = BTreeMap::new();
                slices.range(from, from + 3).for_each(|(_, key, value)| *expected.entry(*key).or_insert(0) += value);
                let found: BTreeMap<u64, i64> = running.sums(0).map(|(key, sum)| (*key, *sum)).collect();
                prop_assert_eq!(found.len(), running.len());
                prop_assert_eq!(found, expected);
                from += step;
                running.leave(from, &slices, &total);
                slices.drop_before(from);
            }
        }
    }
}
