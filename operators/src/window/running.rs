//! Overlapping windows without adding everything up again: what enters a window is added, what leaves it is subtracted.
//!
//! From one window to the next only a few slices change. For aggregates that can be inverted a window costs two steps for
//! every key in these, and one result for every key that it has, whatever its size divided by its slide.
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
    /// In how many of its slices the key is; without any it goes.
    slices: u32,
}

pub(super) struct Running<K, Acc> {
    sums: HashTable<Sum<K, Acc>>,
    /// The slices that are in the sums: from the first up to but not including the last.
    from: i64,
    to: i64,
}

impl<K, Acc> Default for Running<K, Acc> {
    fn default() -> Self {
        Running { sums: HashTable::new(), from: i64::MIN, to: i64::MIN }
    }
}

impl<K: Key, Acc: Value> Running<K, Acc> {
    /// Moves on to the window of the slices from `from` up to but not including `to`. Windows may only move forward, and
    /// slices that are in the sums must not change.
    pub(super) fn move_to<T>(
        &mut self,
        from: i64,
        to: i64,
        slices: &SliceState<K, Acc>,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) {
        self.leave(from, slices, aggregate);
        for (key, acc) in slices.range(self.to, to) {
            let hash = hash_key(key);
            match self.sums.entry(hash, |sum| sum.key == *key, |sum| hash_key(&sum.key)) {
                Found::Occupied(found) => {
                    let sum = found.into_mut();
                    aggregate.merge(&mut sum.acc, acc);
                    sum.slices += 1;
                }
                Found::Vacant(vacant) => {
                    vacant.insert(Sum { key: key.clone(), acc: acc.clone(), slices: 1 });
                }
            }
        }
        self.to = self.to.max(to);
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
            (self.from, self.to) = (from, from);
            return;
        }
        if from <= self.from {
            return;
        }
        for (key, acc) in slices.range(self.from, from) {
            let Ok(mut found) = self.sums.find_entry(hash_key(key), |sum| sum.key == *key) else {
                unreachable!("a key of the window's slices is not in its sums");
            };
            let sum = found.get_mut();
            if sum.slices == 1 {
                found.remove();
                continue;
            }
            sum.slices -= 1;
            aggregate.subtract(&mut sum.acc, acc);
        }
        self.from = from;
        // After a crowd of keys, not for ever to walk through the room that it needed.
        if self.sums.capacity() > 1024 && self.sums.len() < self.sums.capacity() / 8 {
            self.sums.shrink_to(self.sums.len() * 2, |sum| hash_key(&sum.key));
        }
    }

    /// Every key of the current window, with what its records amount to.
    pub(super) fn sums(&self) -> impl Iterator<Item = (&K, &Acc)> {
        self.sums.iter().map(|sum| (&sum.key, &sum.acc))
    }
}
