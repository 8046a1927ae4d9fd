//! A hash table that remembers which of its entries the last checkpoint does not know.
//!
//! **State**: values stand inline, beside their key and two marks. An entry is *dirty* when it changed since the last
//! freeze, and *stored* when an earlier checkpoint holds it, so that its removal must be written down too.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Found;

use crate::hash::hash_key;
use crate::snapshot::Key;

const DIRTY: u8 = 1;
const STORED: u8 = 2;

#[derive(Debug, Clone)]
struct Entry<K, V> {
    value: V,
    key: K,
    marks: u8,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Table<K, V> {
    entries: HashTable<Entry<K, V>>,
    any_dirty: bool,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { entries: HashTable::new(), any_dirty: false }
    }
}

impl<K: Key, V> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of `key` for a change; a new one is made by `create`.
    #[inline]
    pub(crate) fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        self.any_dirty = true;
        match self.entries.entry(hash, |entry| entry.key == *key, |entry| hash_key(&entry.key)) {
            Found::Occupied(found) => {
                let entry = found.into_mut();
                entry.marks |= DIRTY;
                &mut entry.value
            }
            Found::Vacant(vacant) => {
                let entry = Entry { value: create(), key: key.clone(), marks: DIRTY };
                &mut vacant.insert(entry).into_mut().value
            }
        }
    }

    /// The value of `key`.
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.entries.find(hash, |entry| entry.key == *key).map(|entry| &entry.value)
    }

    /// Puts in an entry that a checkpoint holds.
    pub(crate) fn restore(&mut self, hash: u64, key: K, value: V) {
        self.entries.insert_unique(hash, Entry { value, key, marks: STORED }, |entry| hash_key(&entry.key));
    }

    /// Every key with its value, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|entry| (&entry.key, &entry.value))
    }

    /// Takes up to `most` entries out and hands each to `each`; keys that a checkpoint holds are also handed to `removed`.
    pub(crate) fn take(&mut self, most: usize, mut removed: impl FnMut(&K), mut each: impl FnMut(K, V)) {
        let mut hand_over = |entry: Entry<K, V>| {
            if entry.marks & STORED != 0 {
                removed(&entry.key);
            }
            each(entry.key, entry.value);
        };
        if most >= self.entries.len() {
            self.any_dirty = false;
            self.entries.drain().for_each(hand_over);
        } else {
            self.entries.extract_if(|_| true).take(most).for_each(&mut hand_over);
        }
    }

    /// Hands every dirty entry to `each`, and counts it as stored from now on.
    pub(crate) fn freeze(&mut self, mut each: impl FnMut(&K, &V)) {
        if !std::mem::take(&mut self.any_dirty) {
            return;
        }
        for entry in self.entries.iter_mut() {
            if entry.marks & DIRTY != 0 {
                entry.marks = STORED;
                each(&entry.key, &entry.value);
            }
        }
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
        Drain,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            10 => (0..300u16).prop_map(Step::Update),
            2 => Just(Step::Freeze),
            1 => Just(Step::Drain),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// The marks against two sets: what changed since the last freeze, and what a checkpoint holds.
        #[test]
        fn marks_are_what_two_sets_would_say(restored in prop::collection::btree_set(0..300u16, 0..50), steps in steps()) {
            let mut table = Table::default();
            let (mut model, mut dirty) = (BTreeMap::new(), BTreeSet::new());
            let mut stored = restored.clone();
            for key in restored {
                table.restore(hash_key(&key), key, 1u64);
                model.insert(key, 1u64);
            }
            for step in steps {
                match step {
                    Step::Update(key) => {
                        *table.update(hash_key(&key), &key, || 0) += 1;
                        *model.entry(key).or_insert(0) += 1;
                        dirty.insert(key);
                    }
                    Step::Freeze => {
                        let mut frozen = BTreeMap::new();
                        table.freeze(|key, value| assert!(frozen.insert(*key, *value).is_none()));
                        let expected: BTreeMap<u16, u64> = dirty.iter().map(|key| (*key, model[key])).collect();
                        prop_assert_eq!(frozen, expected);
                        stored.append(&mut dirty);
                    }
                    Step::Drain => {
                        // First a part, then the rest.
                        let (mut removed, mut taken) = (BTreeSet::new(), BTreeMap::new());
                        for most in [model.len() / 3, usize::MAX] {
                            let before = table.len();
                            table.take(
                                most,
                                |key| assert!(removed.insert(*key)),
                                |key, value| assert!(taken.insert(key, value).is_none()),
                            );
                            prop_assert_eq!(table.len(), before.saturating_sub(most));
                        }
                        prop_assert_eq!(taken, std::mem::take(&mut model));
                        prop_assert_eq!(removed, std::mem::take(&mut stored));
                        dirty.clear();
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
