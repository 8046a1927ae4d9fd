//! Overlapping windows of aggregates that cannot be inverted, without adding everything up again: what enters a window is merged into one end,
//! and what leaves it is dropped at the other.
//!
//! For each key the slices of a window are in two parts. Of the older part there is, for every slice that has the key, what all from there to
//! the part's end amount to; so a slice that leaves is dropped, and the next of these holds. Of the newer part there is what all of it amounts to. A
//! window is one merge of both. When all of the older part has left, the newer becomes the older. So a window costs two merges for
//! every key of a slice, over time, and one or none for every result, whatever its size divided by its slide.
//!
//! **State**: accumulators of the slices of the current window and a few besides, derived from the slices and so in no checkpoint:
//! after a restart the first window that fires makes them anew.
//!
//! **Source**: two stacks, as in Tangwongsan, Hirzel, Schneider and Wu, *General incremental sliding-window aggregation* (PVLDB 8(7), 2015).

use hashbrown::HashTable;
use millstream_state::hash::hash_key;
use millstream_state::snapshot::{Key, Value};

use crate::aggregate::Aggregate;

pub(super) struct Stacks<K, Acc> {
    keys: HashTable<Parts<K, Acc>>,
    /// Where the newer part begins, and the first slice that is in neither.
    middle: i64,
    to: i64,
    /// How many steps the older part was turned in, and how many were done since to change it.
    turned: usize,
    changed: usize,
}

/// What the slices of a key amount to.
struct Parts<K, Acc> {
    key: K,
    /// Of the older part, from every slice that has the key to the part's end; the oldest comes last.
    older: Vec<(i64, Acc)>,
    newer: Option<Acc>,
}

impl<K, Acc> Default for Stacks<K, Acc> {
    fn default() -> Self {
        Stacks { keys: HashTable::new(), middle: i64::MIN, to: i64::MIN, turned: 0, changed: 0 }
    }
}

impl<K: Key, Acc: Value> Stacks<K, Acc> {
    /// Whether a window that begins with slice `from` has none of the older part, so that all of its slices have to be
    /// [turned](Self::turn) anew, from the newest to the oldest. Otherwise those from [`to`](Self::to) on have to be [pushed](Self::push).
    pub(super) fn must_turn(&self, from: i64) -> bool {
        from >= self.middle
    }

    /// The first slice that is in neither part.
    pub(super) fn to(&self) -> i64 {
        self.to
    }

    /// Forgets everything: the slices before `to` are turned next.
    pub(super) fn begin_turn(&mut self, to: i64) {
        // The keys stay, with their room, as most of them come again.
        self.keys.iter_mut().for_each(|parts| {
            parts.older.clear();
            parts.newer = None;
        });
        (self.middle, self.to) = (to, to);
        (self.turned, self.changed) = (0, 0);
    }

    /// Takes a key of a slice into the older part. Slices must come from the newest to the oldest.
    pub(super) fn turn<T>(&mut self, slice: i64, key: &K, acc: &Acc, aggregate: &impl Aggregate<T, Acc = Acc>) {
        let parts = self.parts(hash_key(key), key);
        let mut all = acc.clone();
        if let Some((_, later)) = parts.older.last() {
            aggregate.merge(&mut all, later);
        }
        parts.older.push((slice, all));
        self.turned += 1;
    }

    /// Takes a key of a slice into the newer part.
    pub(super) fn push<T>(&mut self, key: &K, acc: &Acc, aggregate: &impl Aggregate<T, Acc = Acc>) {
        match &mut self.parts(hash_key(key), key).newer {
            Some(newer) => aggregate.merge(newer, acc),
            newer => *newer = Some(acc.clone()),
        }
    }

    /// The slices before `to` are in one of the parts now.
    pub(super) fn end_push(&mut self, to: i64) {
        self.to = to;
    }

    /// Changes what `slice`, which is in one of the parts, has of `key`, whose hash is `hash`; made by `create` when it has nothing.
    /// When changes have cost more than the older part did, it is cheaper to turn all of it anew: then [no slice](Self::to) is in a part.
    pub(super) fn change(
        &mut self,
        slice: i64,
        hash: u64,
        key: &K,
        create: impl Fn() -> Acc,
        change: impl Fn(&mut Acc),
    ) {
        let middle = self.middle;
        let Parts { older, newer, .. } = self.parts(hash, key);
        if slice >= middle {
            return change(newer.get_or_insert_with(create));
        }
        let place = older.partition_point(|(from, _)| *from > slice);
        if older.get(place).is_none_or(|(from, _)| *from < slice) {
            let later = place.checked_sub(1).map_or_else(create, |later| older[later].1.clone());
            older.insert(place, (slice, later));
        }
        older[place..].iter_mut().for_each(|(_, acc)| change(acc));
        self.changed += older.len() - place;
        if self.changed > self.turned {
            (self.middle, self.to) = (i64::MIN, i64::MIN);
        }
    }

    fn parts(&mut self, hash: u64, key: &K) -> &mut Parts<K, Acc> {
        let entry = self.keys.entry(hash, |parts| parts.key == *key, |parts| hash_key(&parts.key));
        entry.or_insert_with(|| Parts { key: key.clone(), older: Vec::new(), newer: None }).into_mut()
    }

    /// What the slices from `from` on amount to, for each key that they have. Windows may only move forward.
    pub(super) fn window<T>(
        &mut self,
        from: i64,
        aggregate: &impl Aggregate<T, Acc = Acc>,
        mut each: impl FnMut(&K, Acc),
    ) {
        self.keys.retain(|Parts { key, older, newer }| {
            while older.last().is_some_and(|(slice, _)| *slice < from) {
                older.pop();
            }
            let Some(mut all) = older.last().map(|(_, acc)| acc).or(newer.as_ref()).cloned() else { return false };
            if let (Some(_), Some(newer)) = (older.last(), newer) {
                aggregate.merge(&mut all, newer);
            }
            each(key, all);
            true
        });
        // After a crowd of keys, not for ever to keep the room that it needed.
        if self.keys.capacity() > 1024 && self.keys.len() < self.keys.capacity() / 8 {
            self.keys.shrink_to(self.keys.len() * 2, |parts| hash_key(&parts.key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Count, List};
    use millstream_runtime::time::EventTime;
    use millstream_state::slices::SliceState;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    use crate::aggregate::Origin;

    /// A change of the newest of 100 slices changes what all before it begin.
    #[test]
    fn changes_never_cost_more_than_turning_all_anew() {
        let mut stacks = Stacks::default();
        stacks.begin_turn(100);
        (0..100).rev().for_each(|slice| stacks.turn::<()>(slice, &7, &1, &Count));
        stacks.change(99, hash_key(&7), &7, || 0, |acc| *acc += 1);
        assert!(!stacks.must_turn(1) && stacks.to() == 100);
        stacks.change(99, hash_key(&7), &7, || 0, |acc| *acc += 1);
        assert!(stacks.must_turn(1) && stacks.to() == i64::MIN);
        stacks.begin_turn(101);
        (1..101).rev().for_each(|slice| stacks.turn::<()>(slice, &7, &2, &Count));
        let mut found = Vec::new();
        stacks.window::<()>(1, &Count, |key, acc| found.push((*key, acc)));
        assert_eq!(found, [(7, 200)]);
    }

    proptest! {
        /// Windows of four slices that move by one or more, now and then beyond what was there before: each has the records of its slices,
        /// also those that come when windows with their slice have been fired.
        #[test]
        fn windows_have_what_their_slices_have(
            windows in prop::collection::vec((prop::collection::vec((0..4i64, 0..6u64), 0..15), 1..7i64), 1..30),
        ) {
            let list = List::of(|record: &u64| *record);
            let mut slices = SliceState::<u64, <List<fn(&u64) -> u64> as Aggregate<u64>>::Acc>::default();
            let mut stacks = Stacks::default();
            let (mut from, mut number) = (0i64, 0u64);
            for (records, step) in windows {
                for (slice, key) in records {
                    let slice = from + slice;
                    number += 1;
                    let origin = Origin { at: EventTime::from_micros(number as i64), split: 0, record: number };
                    list.add(slices.update(slice, hash_key(&key), &key, Vec::new), &number, &origin);
                    if slice < stacks.to() {
                        stacks.change(slice, hash_key(&key), &key, Vec::new, |acc| list.add(acc, &number, &origin));
                    }
                }
                let to = from + 4;
                if stacks.must_turn(from) {
                    stacks.begin_turn(to);
                    for slice in (from..to).rev() {
                        slices.range(slice, slice + 1).for_each(|(_, key, acc)| stacks.turn(slice, key, acc, &list));
                    }
                } else {
                    slices.range(stacks.to(), to).for_each(|(_, key, acc)| stacks.push(key, acc, &list));
                    stacks.end_push(to);
                }
                let mut expected = BTreeMap::<u64, Vec<u64>>::new();
                for (_, key, acc) in slices.range(from, to) {
                    expected.entry(*key).or_default().extend(Aggregate::<u64>::finish(&list, acc));
                }
                expected.values_mut().for_each(|records| records.sort_unstable());
                let mut found = BTreeMap::new();
                stacks.window(from, &list, |key, acc| {
                    assert!(found.insert(*key, Aggregate::<u64>::finish(&list, &acc)).is_none(), "a key twice");
                });
                prop_assert_eq!(found, expected);
                from += step;
                slices.drop_before(from);
            }
        }
    }
}
