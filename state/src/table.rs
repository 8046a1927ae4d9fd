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

    /// Takes everything out; keys that a checkpoint holds are also handed to `removed`.
    pub(crate) fn drain<'a>(&'a mut self, mut removed: impl FnMut(&K) + 'a) -> impl Iterator<Item = (K, V)> + 'a {
        self.any_dirty = false;
        self.entries.drain().map(move |entry| {
            if entry.marks & STORED != 0 {
                removed(&entry.key);
            }
            (entry.key, entry.value)
        })
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
