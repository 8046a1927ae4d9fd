//! A hash table that remembers which of its entries the last checkpoint does not know.
//!
//! **State**: values stand inline, beside their key and a mark. An entry is *dirty* when it changed since the last freeze. The
//! table as a whole is *stored* when a checkpoint holds something of it, and *torn* when entries were taken out of it since.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Found;

use crate::hash::hash_key;
use crate::prefetch::prefetch;
use crate::snapshot::Key;

#[derive(Debug, Clone)]
struct Entry<K, V> {
    value: V,
    key: K,
    dirty: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Table<K, V> {
    entries: HashTable<Entry<K, V>>,
    any_dirty: bool,
    stored: bool,
    torn: bool,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { entries: HashTable::new(), any_dirty: false, stored: false, torn: false }
    }
}

/// A table of more bytes than this is likely not to be in a cache near the processor.
const LARGE: usize = 1 << 20;

impl<K: Key, V: Clone> Table<K, V> {
    /// An empty table with room for so many keys.
    pub(crate) fn with_capacity(keys: usize) -> Self {
        Table { entries: HashTable::with_capacity(keys), ..Table::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a checkpoint holds something of it.
    pub(crate) fn is_stored(&self) -> bool {
        self.stored
    }

    /// Has the processor fetch the entries of keys with these hashes, if the table is so large that it pays: many at a time,
    /// instead of one after the other when they are needed.
    #[inline]
    pub(crate) fn prefetch(&self, hashes: impl Iterator<Item = u64>) {
        if self.entries.capacity() * size_of::<Entry<K, V>>() > LARGE {
            hashes.for_each(|hash| {
                // The first place whose mark is like that of the hash: rarely is it another key's.
                if let Some(entry) = self.entries.find(hash, |_| true) {
                    prefetch(entry);
                }
            });
        }
    }

    /// The value of `key` for a change; a new one is made by `create`.
    #[inline]
    pub(crate) fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        self.any_dirty = true;
        match self.entries.entry(hash, |entry| entry.key == *key, |entry| hash_key(&entry.key)) {
            Found::Occupied(found) => {
                let entry = found.into_mut();
                entry.dirty = true;
                &mut entry.value
            }
            Found::Vacant(vacant) => {
                let entry = Entry { value: create(), key: key.clone(), dirty: true };
                &mut vacant.insert(entry).into_mut().value
            }
        }
    }

    /// The value of `key`.
    #[cfg(test)]
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.entries.find(hash, |entry| entry.key == *key).map(|entry| &entry.value)
    }

    /// Puts in an entry that a checkpoint holds.
    pub(crate) fn restore(&mut self, hash: u64, key: K, value: V) {
        self.stored = true;
        self.entries.insert_unique(hash, Entry { value, key, dirty: false }, |entry| hash_key(&entry.key));
    }

    /// Every key with its value, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|entry| (&entry.key, &entry.value))
    }

    /// Takes up to `most` entries out and hands each to `each`.
    pub(crate) fn take(&mut self, most: usize, mut each: impl FnMut(K, V)) {
        self.torn = self.stored;
        let hand_over = |entry: Entry<K, V>| each(entry.key, entry.value);
        if most >= self.entries.len() {
            self.any_dirty = false;
            self.entries.drain().for_each(hand_over);
        } else {
            self.entries.extract_if(|_| true).take(most).for_each(hand_over);
        }
    }

    /// Makes an empty table like a new one, with the memory it has.
    pub(crate) fn renew(&mut self) {
        debug_assert!(self.is_empty());
        (self.any_dirty, self.stored, self.torn) = (false, false, false);
    }

    /// A copy of every dirty entry (of all of them if the table is torn), which all count as stored from now on; with whether
    /// these are all entries there are. Nothing, if nothing changed.
    pub(crate) fn freeze(&mut self) -> Option<(bool, Vec<(K, V)>)> {
        if !self.any_dirty && !self.torn {
            return None;
        }
        let all = self.torn;
        (self.any_dirty, self.stored, self.torn) = (false, true, false);
        // Memory that is not written to is not there: only what is copied counts.
        let mut changed = Vec::with_capacity(self.entries.len());
        for entry in self.entries.iter_mut() {
            if entry.dirty || all {
                entry.dirty = false;
                changed.push((entry.key.clone(), entry.value.clone()));
            }
        }
        Some((changed.len() == self.entries.len(), changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Clone, Debug)]
    enum Step {
        Update(u16),
        Freeze,
        Take(usize),
        Drain,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            10 => (0..300u16).prop_map(Step::Update),
            2 => Just(Step::Freeze),
            1 => (0..30usize).prop_map(Step::Take),
            1 => Just(Step::Drain),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// What a freeze copies, put over what was stored before unless it is whole, is always what there is.
        #[test]
        fn what_is_frozen_makes_up_the_table(restored in prop::collection::btree_set(0..300u16, 0..50), steps in steps()) {
            let mut table = Table::default();
            let mut model: BTreeMap<u16, u64> = restored.iter().map(|key| (*key, 1)).collect();
            let (mut stored, mut dirty, mut torn) = (model.clone(), BTreeSet::new(), false);
            for key in restored {
                table.restore(hash_key(&key), key, 1);
            }
            for step in steps {
                match step {
                    Step::Update(key) => {
                        *table.update(hash_key(&key), &key, || 0) += 1;
                        *model.entry(key).or_insert(0) += 1;
                        dirty.insert(key);
                    }
                    Step::Freeze => {
                        if let Some((whole, changed)) = table.freeze() {
                            let count = changed.len();
                            let changed: BTreeMap<u16, u64> = changed.into_iter().collect();
                            prop_assert_eq!(changed.len(), count, "a key is there twice");
                            prop_assert!(torn || changed.keys().all(|key| dirty.contains(key)));
                            prop_assert_eq!(whole, count == model.len());
                            if whole {
                                stored.clear();
                            }
                            stored.extend(changed);
                        }
                        prop_assert_eq!(&stored, &model);
                        prop_assert!(table.freeze().is_none());
                        prop_assert!(table.is_stored() || model.is_empty());
                        dirty.clear();
                        torn = false;
                    }
                    Step::Take(most) => {
                        let before = table.len();
                        table.take(most, |key, value| assert_eq!(model.remove(&key), Some(value)));
                        prop_assert_eq!(table.len(), before.saturating_sub(most));
                        dirty.retain(|key| model.contains_key(key));
                        torn |= table.is_stored();
                    }
                    Step::Drain => {
                        table.take(usize::MAX, |key, value| assert_eq!(model.remove(&key), Some(value)));
                        prop_assert!(table.is_stored() || stored.is_empty());
                        table.renew();
                        prop_assert!(table.freeze().is_none() && model.is_empty());
                        stored.clear();
                        dirty.clear();
                        torn = false;
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.is_empty(), model.is_empty());
            }
            for key in 0..300u16 {
                prop_assert_eq!(table.get(hash_key(&key), &key), model.get(&key));
            }
            prop_assert_eq!(table.iter().map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>(), model);
        }
    }
}
