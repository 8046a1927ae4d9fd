//! A hash table that remembers which of its entries the last checkpoint does not know, and that can be copied while it changes.
//!
//! **State**: values stand inline, beside their key and a mark. An entry is *dirty* when it changed since the last freeze. The
//! table as a whole is *stored* when a checkpoint holds something of it, and *torn* when entries were taken out of it since without
//! a note which. Keys of entries that were removed one by one are noted instead, as a checkpoint may hold them.
//!
//! **A freeze** fixes what the dirty entries are, at no cost, and then copies them bit by bit; an entry that is about to change or
//! to go is copied first. Two marks of dirtiness take turns, so none has to be cleared: what has the mark of before
//! still waits for its copy. Where dirty entries are is noted as they become dirty, so that a freeze costs what changed,
//! not what there is. A freeze of *everything* makes no entry dirty either: two marks of cleanness take turns as well, and what has
//! neither the new one nor that of changes waits for its copy.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Found;

use crate::bits::Bits;
use crate::hash::hash_key;
use crate::prefetch::prefetch;
use crate::snapshot::Key;

#[derive(Debug, Clone)]
struct Entry<K, V> {
    value: V,
    key: K,
    mark: Mark,
}

/// Whether an entry is dirty, and since which freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Clean; which of the two after a freeze of everything.
    CleanA,
    CleanB,
    /// Clean, and not used since the table was last asked to let go of entries.
    Cold,
    DirtyA,
    DirtyB,
}

impl Mark {
    fn other(self) -> Mark {
        match self {
            Mark::DirtyA => Mark::DirtyB,
            Mark::DirtyB => Mark::DirtyA,
            Mark::CleanA => Mark::CleanB,
            Mark::CleanB | Mark::Cold => Mark::CleanA,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    entries: HashTable<Entry<K, V>>,
    /// The mark of what changes now. That of clean entries where nobody keeps account.
    now: Mark,
    /// The mark of what is clean from now on.
    clean: Mark,
    /// How many entries have changed since the last freeze.
    dirty: usize,
    /// At which places they are. Not known when the table has grown since the last freeze: at any.
    places: Option<Bits>,
    /// Keys that were removed since the last freeze and that a checkpoint may hold. Some may have come back.
    removed: HashTable<K>,
    freeze: Option<Freeze<K, V>>,
    stored: bool,
    torn: bool,
}

/// A freeze that is not done.
#[derive(Debug)]
struct Freeze<K, V> {
    /// Where those entries are that wait for their copy; at any place if it is not known.
    places: Option<Bits>,
    /// The first place that was not looked at.
    next: usize,
    /// How many entries wait for their copy.
    left: usize,
    /// Whether all entries that were there wait for it, dirty or not.
    everything: bool,
    /// The mark of those that were copied.
    clean: Mark,
    /// Keys that had been removed when it began.
    removed: HashTable<K>,
    /// The first of their places that was not looked at.
    next_removed: usize,
    copies: Copies<K, V>,
}

/// What a freeze has copied.
#[derive(Debug)]
pub(crate) struct Copies<K, V> {
    /// Whether these are all entries that there were, and not only the dirty ones.
    pub(crate) whole: bool,
    pub(crate) entries: Vec<(K, V)>,
    /// Keys that were removed. Some may be among the entries: they came back.
    pub(crate) removed: Vec<K>,
}

/// Keys that are gone from a table, but may not be from the database.
#[derive(Debug)]
pub(crate) struct Removed<K>(HashTable<K>);

impl<K: Key> Removed<K> {
    pub(crate) fn contains(&self, hash: u64, key: &K) -> bool {
        self.0.find(hash, |removed| removed == key).is_some()
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table {
            entries: HashTable::new(),
            now: Mark::CleanA,
            clean: Mark::CleanA,
            dirty: 0,
            places: None,
            removed: HashTable::new(),
            freeze: None,
            stored: false,
            torn: false,
        }
    }
}

/// A table of more bytes than this is likely not to be in a cache near the processor.
const LARGE: usize = 1 << 20;

impl<K: Key, V: Clone> Table<K, V> {
    /// An empty table with room for so many keys.
    pub(crate) fn with_capacity(keys: usize) -> Self {
        Table { entries: HashTable::with_capacity(keys), ..Table::default() }
    }

    /// Keeps account of what changes from now on; there must be nothing in it yet.
    pub(crate) fn track(&mut self) {
        debug_assert!(self.is_empty());
        self.now = Mark::DirtyA;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a checkpoint holds something of it, or will when the freeze is done.
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
    #[inline(always)] // it is in the innermost loop of all
    pub(crate) fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() == self.entries.capacity() {
            self.grow(1);
        }
        match self.entries.entry(hash, |entry| entry.key == *key, |entry| hash_key(&entry.key)) {
            Found::Occupied(found) => {
                if found.get().mark == self.now {
                    return &mut found.into_mut().value;
                }
                let place = found.bucket_index();
                let entry = found.into_mut();
                change(entry, place, self.now, &mut self.dirty, &mut self.places, &mut self.freeze);
                &mut entry.value
            }
            Found::Vacant(vacant) => {
                let entry = vacant.insert(Entry { value: create(), key: key.clone(), mark: self.now });
                note(&mut self.dirty, &mut self.places, entry.bucket_index());
                &mut entry.into_mut().value
            }
        }
    }

    /// Makes room. Every entry may be at another place afterwards.
    #[cold]
    fn grow(&mut self, more: usize) {
        self.entries.reserve(more, |entry| hash_key(&entry.key));
        self.places = None;
        if let Some(freeze) = &mut self.freeze {
            (freeze.places, freeze.next) = (None, 0);
        }
    }

    /// Whether `key` is here. If it is, it becomes dirty, so it stays until it is frozen.
    pub(crate) fn hold(&mut self, hash: u64, key: &K) -> bool {
        self.get_mut(hash, key).is_some()
    }

    /// The value of `key` for a change, if there is one.
    pub(crate) fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let Table { entries, now, dirty, places, freeze, .. } = self;
        let found = entries.find_entry(hash, |entry| entry.key == *key).ok()?;
        let (place, entry) = (found.bucket_index(), found.into_mut());
        if entry.mark != *now {
            change(entry, place, *now, dirty, places, freeze);
        }
        Some(&mut entry.value)
    }

    /// Takes the entry of `key` out.
    pub(crate) fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let Ok(found) = self.entries.find_entry(hash, |entry| entry.key == *key) else { return None };
        let (mut entry, _) = found.remove();
        if let Some(freeze) = &mut self.freeze {
            freeze.copy(&mut entry, self.now);
        }
        self.dirty -= usize::from(entry.mark == self.now);
        if self.stored
            && let Found::Vacant(vacant) = self.removed.entry(hash, |removed| removed == key, hash_key)
        {
            vacant.insert(entry.key);
        }
        Some(entry.value)
    }

    /// Whether `key` was removed, and no freeze with that has been [taken](Self::take_copies) yet.
    pub(crate) fn has_removed(&self, hash: u64, key: &K) -> bool {
        let freeze = self.freeze.iter().map(|freeze| &freeze.removed);
        freeze.chain([&self.removed]).any(|removed| removed.find(hash, |removed| removed == key).is_some())
    }

    /// How many entries are dirty, or wait for a freeze to copy them.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty + self.freeze.as_ref().map_or(0, |freeze| freeze.left)
    }

    /// How many entries can be added before it grows.
    pub(crate) fn room(&self) -> usize {
        self.entries.capacity() - self.entries.len()
    }

    /// Whether a freeze is open.
    pub(crate) fn is_freezing(&self) -> bool {
        self.freeze.is_some()
    }

    /// How many keys are gone and wait for the next freeze to say so.
    pub(crate) fn removed(&self) -> usize {
        self.removed.len()
    }

    /// How many bytes it takes, apart from what keys and values own elsewhere.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.allocation_size() + self.removed.allocation_size()
    }

    /// How many places it has, of which at most seven in eight can be taken; a power of two.
    pub(crate) fn places(&self) -> usize {
        self.entries.num_buckets()
    }

    /// How many bytes one place takes.
    pub(crate) const PLACE: usize = size_of::<Entry<K, V>>() + 1;

    /// Lets go of clean entries until a table of so many places, a power of two, would be less than half full: first of those
    /// that were clean already when this was done last, then of others. Dirty ones stay. What goes must be stored, and no
    /// freeze be open.
    pub(crate) fn let_go(&mut self, places: usize) {
        debug_assert!(self.freeze.is_none() && places.is_power_of_two());
        let places = places.min(self.places());
        // A table is hashed anew where it is, without growing, if not more than half of what it can hold is in it.
        let half = places * 7 / 16;
        let mut more = self.entries.len().saturating_sub(half - half / 4);
        for again in [false, true] {
            self.entries.retain(|entry| {
                let goes = more > 0 && entry.mark == Mark::Cold;
                more -= usize::from(goes);
                if matches!(entry.mark, Mark::CleanA | Mark::CleanB) && !again {
                    entry.mark = Mark::Cold;
                }
                !goes
            });
        }
        if places < self.places() && self.len() <= half {
            self.entries.shrink_to(2 * half, |entry| hash_key(&entry.key));
        }
        // Only then is the room of those that went free again.
        self.grow(half.saturating_sub(self.len()));
    }

    /// The value of `key`.
    #[inline]
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.entries.find(hash, |entry| entry.key == *key).map(|entry| &entry.value)
    }

    /// An empty table of which a checkpoint holds something.
    pub(crate) fn stored_elsewhere() -> Self {
        Table { now: Mark::DirtyA, stored: true, ..Table::default() }
    }

    /// Whether nothing changed since the last freeze, and that is done.
    pub(crate) fn is_clean(&self) -> bool {
        self.dirty == 0 && self.removed.is_empty() && !self.torn && self.freeze.is_none()
    }

    /// Puts in an entry that a checkpoint holds.
    pub(crate) fn restore(&mut self, hash: u64, key: K, value: V) {
        self.stored = true;
        self.entries
            .insert_unique(hash, Entry { value, key, mark: self.clean }, |entry| hash_key(&entry.key));
    }

    /// Puts in an entry that a checkpoint holds and that is about to change.
    pub(crate) fn put_back(&mut self, hash: u64, key: &K, value: V) {
        self.stored = true;
        self.update(hash, key, || value);
    }

    /// Every key with its value, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|entry| (&entry.key, &entry.value))
    }

    /// Takes up to `most` entries out and hands each to `each`.
    pub(crate) fn take(&mut self, most: usize, mut each: impl FnMut(K, V)) {
        self.torn = self.stored;
        let Table { entries, now, dirty, freeze, .. } = self;
        let hand_over = |mut entry: Entry<K, V>| {
            if let Some(freeze) = freeze {
                freeze.copy(&mut entry, *now);
            }
            *dirty -= usize::from(entry.mark == *now);
            each(entry.key, entry.value);
        };
        if most >= entries.len() {
            entries.drain().for_each(hand_over);
        } else {
            entries.extract_if(|_| true).take(most).for_each(hand_over);
        }
    }

    /// Makes an empty table like a new one, with the memory it has.
    pub(crate) fn renew(&mut self) {
        debug_assert!(self.is_empty() && self.freeze.is_none());
        (self.dirty, self.places, self.stored, self.torn) = (0, None, false, false);
        self.removed.clear();
    }

    /// Counts all entries as changed, so that none leaves before the next freeze, and that copies all.
    pub(crate) fn dirty_all(&mut self) {
        debug_assert!(self.freeze.is_none());
        self.entries.iter_mut().for_each(|entry| entry.mark = self.now);
        (self.dirty, self.places) = (self.len(), None);
    }

    /// Fixes what is to be copied: the dirty entries, or all of them if that is asked for or the table is torn. All count as stored from
    /// now on.
    pub(crate) fn begin_freeze(&mut self, everything: bool) {
        debug_assert!(self.freeze.is_none() && self.now != self.clean);
        // Which ones are gone from a torn table nobody knows any more.
        let everything = self.torn || (everything && !self.is_empty());
        let mut removed = std::mem::take(&mut self.removed);
        if everything {
            removed = HashTable::new();
        } else if self.dirty == 0 && removed.is_empty() {
            return;
        }
        let left = if everything { self.len() } else { self.dirty };
        let copies = Copies {
            whole: left == self.len(),
            entries: Vec::with_capacity(left),
            removed: Vec::with_capacity(removed.len()),
        };
        let dirty_places = self.places.replace(Bits::new(self.entries.num_buckets()));
        let places = dirty_places.filter(|_| !everything);
        if everything {
            self.clean = self.clean.other();
        }
        let clean = self.clean;
        self.freeze = Some(Freeze { places, next: 0, left, everything, clean, removed, next_removed: 0, copies });
        (self.now, self.dirty, self.stored, self.torn) = (self.now.other(), 0, true, false);
    }

    /// Goes on with a freeze, looking at `most` places at most, which becomes what is left of it; whether all is copied.
    pub(crate) fn copy_some(&mut self, most: &mut usize) -> bool {
        let Some(freeze) = &mut self.freeze else { return true };
        while freeze.left > 0 {
            if *most == 0 {
                return false;
            }
            *most -= 1;
            let place = freeze.places.as_ref().and_then(|bits| bits.next(freeze.next)).unwrap_or(freeze.next);
            freeze.next = place + 1;
            if let Some(entry) = self.entries.get_bucket_mut(place) {
                freeze.copy(entry, self.now);
            }
        }
        freeze.copy_removed(most)
    }

    /// Copies all keys that were removed before the freeze began.
    pub(crate) fn copy_removed(&mut self) {
        if let Some(freeze) = &mut self.freeze {
            let mut all = usize::MAX;
            freeze.copy_removed(&mut all);
        }
    }

    /// What was copied, once all is; nothing, if nothing had changed.
    pub(crate) fn take_copies(&mut self) -> Option<Copies<K, V>> {
        Some(self.take_copies_and_removed()?.0)
    }

    /// As [`take_copies`](Self::take_copies), and the removed keys once more, to be found by their hash.
    pub(crate) fn take_copies_and_removed(&mut self) -> Option<(Copies<K, V>, Removed<K>)> {
        let freeze = self.freeze.take()?;
        Some((freeze.copies, Removed(freeze.removed)))
    }
}

impl<K: Clone, V: Clone> Freeze<K, V> {
    /// Copies an entry if it still waits for that. What changes has the mark `now`.
    #[inline]
    fn copy(&mut self, entry: &mut Entry<K, V>, now: Mark) {
        let waits = match self.everything {
            true => entry.mark != now && entry.mark != self.clean,
            false => entry.mark == now.other(),
        };
        if waits {
            entry.mark = self.clean;
            self.left -= 1;
            self.copies.entries.push((entry.key.clone(), entry.value.clone()));
        }
    }

    /// Copies removed keys, at most so many; whether all are.
    fn copy_removed(&mut self, most: &mut usize) -> bool {
        while self.copies.removed.len() < self.removed.len() {
            if *most == 0 {
                return false;
            }
            *most -= 1;
            self.copies.removed.extend(self.removed.get_bucket(self.next_removed).cloned());
            self.next_removed += 1;
        }
        true
    }
}

/// An entry that is clean, or waits for its copy, is about to change. Once for each entry between two freezes; apart, so that what
/// calls it stays small.
#[cold]
#[inline(never)]
fn change<K: Clone, V: Clone>(
    entry: &mut Entry<K, V>,
    place: usize,
    now: Mark,
    dirty: &mut usize,
    places: &mut Option<Bits>,
    freeze: &mut Option<Freeze<K, V>>,
) {
    if let Some(freeze) = freeze {
        freeze.copy(entry, now);
    }
    entry.mark = now;
    note(dirty, places, place);
}

/// An entry has become dirty.
#[inline]
fn note(dirty: &mut usize, places: &mut Option<Bits>, place: usize) {
    *dirty += 1;
    if let Some(places) = places {
        places.set(place);
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
        /// Begins a freeze, if none is open; of everything, or of what changed.
        Begin(bool),
        /// Goes on with it, looking at so many places.
        Copy(usize),
        Remove(u16),
        Take(usize),
        Drain,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            20 => (0..300u16).prop_map(Step::Update),
            3 => prop::bool::weighted(0.2).prop_map(Step::Begin),
            6 => (0..200usize).prop_map(Step::Copy),
            8 => (0..300u16).prop_map(Step::Remove),
            1 => (0..30usize).prop_map(Step::Take),
            1 => Just(Step::Drain),
        ];
        prop::collection::vec(step, 0..500)
    }

    /// What an open freeze must amount to.
    struct Cut {
        model: BTreeMap<u16, u64>,
        /// What is in it; all, if nothing is said.
        may: Option<BTreeSet<u16>>,
        /// Whether that is all there is.
        whole: bool,
        removed: BTreeSet<u16>,
    }

    /// A table, what it should hold, and what the checkpoints that were made of it hold.
    struct Tried {
        table: Table<u16, u64>,
        model: BTreeMap<u16, u64>,
        stored: BTreeMap<u16, u64>,
        dirty: BTreeSet<u16>,
        /// Removed since the last freeze, while something was stored.
        removed: BTreeSet<u16>,
        torn: bool,
        cut: Option<Cut>,
    }

    impl Tried {
        fn begin(&mut self, everything: bool) {
            let everything = self.torn || (everything && !self.model.is_empty());
            let may = (!everything).then(|| std::mem::take(&mut self.dirty));
            let whole = may.as_ref().is_none_or(|may| may.len() == self.model.len());
            let removed = std::mem::take(&mut self.removed);
            let nothing = may.as_ref().is_some_and(|may| may.is_empty() && removed.is_empty());
            self.table.begin_freeze(everything);
            if !nothing {
                let removed = if everything { BTreeSet::new() } else { removed };
                self.cut = Some(Cut { model: self.model.clone(), may, whole, removed });
                assert!(self.table.is_stored());
            }
            self.dirty.clear();
            self.torn = false;
        }

        fn copy(&mut self, most: usize) {
            let mut left = most;
            let done = self.table.copy_some(&mut left);
            assert!(self.cut.is_some() || (done && left == most), "nothing is open");
            if done {
                self.end();
            }
        }

        fn end(&mut self) {
            let copies = self.table.take_copies();
            assert_eq!(copies.is_some(), self.cut.is_some());
            let Some((Copies { whole, entries, removed }, cut)) = copies.zip(self.cut.take()) else { return };
            let count = entries.len();
            let copied: BTreeMap<u16, u64> = entries.into_iter().collect();
            assert_eq!(copied.len(), count, "a key is there twice");
            assert_eq!(whole, cut.whole);
            if let Some(may) = cut.may {
                assert!(copied.keys().eq(&may), "what was dirty, and nothing else");
            }
            assert_eq!(removed.len(), cut.removed.len(), "a key was removed twice");
            assert_eq!(BTreeSet::from_iter(removed), cut.removed);
            if whole {
                self.stored.clear();
            }
            self.stored.retain(|key, _| !cut.removed.contains(key));
            self.stored.extend(copied);
            assert_eq!(self.stored, cut.model, "what there was when the freeze began");
        }

        fn remove(&mut self, key: u16) {
            let expected = self.model.remove(&key);
            assert_eq!(self.table.remove(hash_key(&key), &key), expected);
            self.dirty.remove(&key);
            if expected.is_some() && self.table.is_stored() {
                self.removed.insert(key);
            }
        }

        fn take(&mut self, most: usize) {
            let (before, model) = (self.table.len(), &mut self.model);
            self.table.take(most, |key, value| assert_eq!(model.remove(&key), Some(value)));
            assert_eq!(self.table.len(), before.saturating_sub(most));
            self.dirty.retain(|key| self.model.contains_key(key));
            self.torn |= self.table.is_stored();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// What a freeze copies, put over what was stored before unless it is whole, is always what there was when it began,
        /// whatever changed, grew or went since.
        #[test]
        fn what_is_frozen_makes_up_the_table(restored in prop::collection::btree_set(0..300u16, 0..50), steps in steps()) {
            let mut table = Table::default();
            table.track();
            let model: BTreeMap<u16, u64> = restored.iter().map(|key| (*key, 1)).collect();
            for key in restored {
                table.restore(hash_key(&key), key, 1);
            }
            let (stored, dirty) = (model.clone(), BTreeSet::new());
            let removed = BTreeSet::new();
            let mut tried = Tried { table, model, stored, dirty, removed, torn: false, cut: None };
            for step in steps {
                match step {
                    Step::Update(key) => {
                        *tried.table.update(hash_key(&key), &key, || 0) += 1;
                        *tried.model.entry(key).or_insert(0) += 1;
                        tried.dirty.insert(key);
                    }
                    Step::Begin(everything) if tried.cut.is_none() => tried.begin(everything),
                    Step::Begin(_) => {}
                    Step::Copy(most) => tried.copy(most),
                    Step::Remove(key) => tried.remove(key),
                    Step::Take(most) => tried.take(most),
                    Step::Drain => {
                        tried.take(usize::MAX);
                        // What has left was copied before: nothing waits any more but removed keys.
                        tried.copy(usize::MAX);
                        tried.end();
                        tried.table.renew();
                        prop_assert!(tried.model.is_empty() && !tried.table.is_stored());
                        tried.stored.clear();
                        tried.dirty.clear();
                        tried.removed.clear();
                        tried.torn = false;
                    }
                }
                let lost = (0..300u16).filter(|key| tried.table.has_removed(hash_key(key), key));
                let cut = tried.cut.iter().flat_map(|cut| &cut.removed);
                prop_assert_eq!(lost.collect::<BTreeSet<_>>(), tried.removed.iter().chain(cut).copied().collect());
                prop_assert_eq!(tried.table.len(), tried.model.len());
                prop_assert_eq!(tried.table.is_empty(), tried.model.is_empty());
            }
            tried.copy(usize::MAX);
            tried.begin(false);
            tried.copy(usize::MAX);
            prop_assert_eq!(&tried.stored, &tried.model);
            for key in 0..300u16 {
                prop_assert_eq!(tried.table.get(hash_key(&key), &key), tried.model.get(&key));
            }
            let found: BTreeMap<_, _> = tried.table.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(found, tried.model);
        }
    }

    #[test]
    fn a_freeze_looks_at_what_changed_and_not_at_what_there_is() {
        let mut table = Table::default();
        table.track();
        let mut freeze = |keys: std::ops::Range<u64>| {
            for key in keys {
                *table.update(hash_key(&key), &key, || 0) += 1;
            }
            table.begin_freeze(false);
            let mut left = 1_000_000;
            assert!(table.copy_some(&mut left));
            (1_000_000 - left, table.take_copies().map(|copies| copies.entries.len()))
        };
        assert!(freeze(0..10_000).0 >= 10_000, "a table that has grown is looked at as a whole");
        assert_eq!(freeze(0..0), (0, None));
        assert_eq!(freeze(17..20), (3, Some(3)));
    }
}
