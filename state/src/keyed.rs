//! One value per key.
//!
//! **State**: in memory as long as it fits. A state that may take only so much of it (see [`State::limit`]) is *spilled* when it
//! comes near that: its next checkpoint stores every entry under a key of its own, and no longer in blocks. From then on
//! entries that are not dirty can leave memory, and are read back when they are needed, all that a batch needs together.
//! What is not stored cannot leave, so a limited state may ask for a checkpoint; and until that is written it may take more than
//! it should.
//!
//! A key in the database, behind the operator's prefix: nothing for a block of entries; 0 for how many entries a key group has; 1
//! and the key's bytes for an entry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::blocks::{self, Blocks, Changed};
use crate::evolve::Migrations;
use crate::hash::hash_key;
use crate::key_group::{KEY_GROUPS, group_of};
use crate::limit::{Limit, Tell};
use crate::migrate::StateForm;
use crate::reader::Reader;
use crate::rocks::Stored;
use crate::snapshot::{Change, Frozen, Key, Pressure, Run, State, StoredEntry, Value};
use crate::table::{Removed, Table};
use crate::{Result, StateError, codec};

/// Into how many tables keys are dealt out, so that nothing that is done to a table as a whole takes long.
const SHARDS: usize = 64;

/// Keyed state with one value per key, sharded by key group.
#[derive(Debug)]
pub struct KeyedState<K, V> {
    shards: Vec<Table<K, V>>,
    blocks: Blocks,
    /// Once entries stand in the database one by one, or will when a freeze is written that has begun.
    spilled: Option<Spilled<K>>,
    limit: Option<Limit>,
    freeze: Option<Freezing>,
    /// How many entries were restored from blocks, by key group.
    from_blocks: Counts,
    /// How many entries there were when it was last looked how much they own.
    sampled: usize,
}

/// How many entries are read back together. The blocks in which they stand, of 4 KB each, stay in memory until all are decoded.
const READ_TOGETHER: usize = 256;

/// A number per key group.
type Counts = Box<[u64; KEY_GROUPS as usize]>;
/// How a number per key group changed.
type Changes = Box<[i64; KEY_GROUPS as usize]>;

/// How many entries there are, wherever they are.
#[derive(Debug)]
struct Spilled<K> {
    entries: u64,
    /// How many more or fewer each key group has since the last freeze.
    changes: Changes,
    /// How many each had then: kept by whoever writes freezes, one after the other.
    stored: Arc<Mutex<Counts>>,
    /// Keys that are gone, by shard, in freezes of which some may not be written: the database may still have them.
    removed: Vec<(usize, Removed<K>)>,
}

impl<K> Spilled<K> {
    /// So many entries, of which nothing is written yet.
    fn of(entries: u64) -> Self {
        Spilled { entries, changes: Box::new(NO_CHANGES), stored: Arc::new(Mutex::new(none())), removed: Vec::new() }
    }

    fn added(&mut self, hash: u64) {
        self.entries += 1;
        self.changes[usize::from(group_of(hash))] += 1;
    }

    fn removed(&mut self, hash: u64) {
        self.entries -= 1;
        self.changes[usize::from(group_of(hash))] -= 1;
    }
}

const NO_CHANGES: [i64; KEY_GROUPS as usize] = [0; KEY_GROUPS as usize];

/// What a freeze of spilled state does to how many entries key groups have.
#[derive(Debug)]
enum Counting {
    /// It is of all entries there are.
    All,
    Changes(Changes),
}

/// A freeze that is not done.
#[derive(Debug)]
struct Freezing {
    /// The first shard that is not copied.
    next: usize,
    /// For spilled state.
    counting: Option<Counting>,
    /// Whether the shards that are not frozen were empty when it began. They may have become so since.
    others_empty: bool,
}

impl<K, V> Default for KeyedState<K, V> {
    fn default() -> Self {
        let shards = std::iter::repeat_with(Table::default).take(SHARDS).collect();
        KeyedState {
            shards,
            blocks: Blocks::default(),
            spilled: None,
            limit: None,
            freeze: None,
            from_blocks: none(),
            sampled: 0,
        }
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn none() -> Counts {
    Box::new([0; KEY_GROUPS as usize])
}

/// Uses bits that choose neither the key group nor, in small tables, the place.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

impl<K: Key, V: Value> KeyedState<K, V> {
    /// The value of `key`, whose hash is `hash`, to be changed; made by `create` when there is none. A state that may be limited
    /// must have been asked to [`load`](Self::load) the key since the last batch.
    #[inline]
    pub fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        let KeyedState { shards, spilled, .. } = self;
        shards[shard_of(hash)].update(hash, key, || {
            spilled.iter_mut().for_each(|spilled| spilled.added(hash));
            create()
        })
    }

    /// As [`update`](Self::update), but only if there is a value.
    #[inline]
    pub fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        self.shards[shard_of(hash)].get_mut(hash, key)
    }

    /// Takes the value of `key` out. The key must have been [loaded](Self::load), as for an update.
    pub fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let value = self.shards[shard_of(hash)].remove(hash, key)?;
        self.spilled.iter_mut().for_each(|spilled| spilled.removed(hash));
        Some(value)
    }

    /// The value of `key`, whose hash is `hash`, which must have been [loaded](Self::load).
    #[inline]
    pub fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.shards[shard_of(hash)].get(hash, key)
    }

    /// Every key and value, in no particular order. Only where memory is not limited are all at hand.
    ///
    /// # Panics
    /// When memory is limited.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        assert!(self.limit.is_none(), "entries may be away");
        self.shards.iter().flat_map(Table::iter)
    }

    /// Has the values of these keys in memory, to be changed. Next to no work unless the state is spilled.
    ///
    /// # Errors
    /// When they cannot be read back.
    pub fn load<'a>(&mut self, keys: impl IntoIterator<Item = (u64, &'a K)>) -> Result<()> {
        if self.spilled.is_none() {
            return Ok(());
        }
        // To no avail, if nearly all is dirty.
        let over = |limit: &Limit| self.bytes() > limit.bytes && self.sum(Table::dirty) * 2 < self.sum(Table::len);
        if self.may_let_go() && self.limit.as_ref().is_some_and(over) {
            (0..SHARDS).for_each(|shard| self.let_go(shard));
        }
        self.forget_removed();
        let missing: Vec<_> = keys.into_iter().filter(|(hash, key)| self.is_missing(*hash, key)).collect();
        if missing.is_empty() { Ok(()) } else { self.read_back(missing) }
    }

    /// Whether `key` is not in memory but may be in the database. What is in memory stays there until it is frozen.
    fn is_missing(&mut self, hash: u64, key: &K) -> bool {
        let shard = shard_of(hash);
        let gone = |spilled: &Spilled<K>| {
            spilled.removed.iter().any(|(of, removed)| *of == shard && removed.contains(hash, key))
        };
        let table = &mut self.shards[shard];
        !table.hold(hash, key) && !table.has_removed(hash, key) && !self.spilled.as_ref().is_some_and(gone)
    }

    /// What is gone from the database need not be remembered any more.
    fn forget_removed(&mut self) {
        if let (Some(spilled), Some(limit)) = (&mut self.spilled, &self.limit)
            && !spilled.removed.is_empty()
            && limit.all_is_written()
        {
            spilled.removed.clear();
        }
    }

    #[cold]
    fn read_back(&mut self, missing: Vec<(u64, &K)>) -> Result<()> {
        let mut room = [0; SHARDS];
        missing.iter().for_each(|(hash, _)| room[shard_of(*hash)] += 1);
        room.into_iter().enumerate().for_each(|(shard, room)| self.make_room(shard, room));
        let KeyedState { shards, limit, .. } = self;
        let stored = limit.as_ref().map(|limit| &limit.stored);
        let mut wanted = Vec::with_capacity(missing.len());
        for (hash, key) in missing {
            let mut place = stored.map_or_else(Vec::new, |stored| stored.prefix(group_of(hash)));
            write_key(key, &mut place)?;
            wanted.push((place, hash, key));
        }
        wanted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        wanted.dedup_by(|a, b| a.0 == b.0);
        for some in wanted.chunks(READ_TOGETHER) {
            let mut values = match stored {
                Some(stored) => stored.get_many(some.iter().map(|(place, ..)| place.as_slice()))?.into_iter(),
                // Without a limit all there is is in memory.
                None => Vec::new().into_iter(),
            };
            for (_, hash, key) in some {
                // What is not there is new, and made by whoever asked for it.
                if let Some(value) = values.next().flatten() {
                    shards[shard_of(*hash)].put_back(*hash, key, codec::decode(&value)?);
                }
            }
        }
        Ok(())
    }

    /// Makes room for so many entries in a shard, by letting go of others rather than by growing beyond what it may have.
    fn make_room(&mut self, shard: usize, entries: usize) {
        let (Some(limit), table) = (&self.limit, &self.shards[shard]) else { return };
        if table.room() < entries && 2 * table.places() > Places::of::<K, V>(limit).of_shard(shard) && self.may_let_go()
        {
            self.let_go(shard);
        }
    }

    /// Whether what is clean is stored.
    fn may_let_go(&self) -> bool {
        self.freeze.is_none() && self.limit.as_ref().is_some_and(Limit::all_is_written)
    }

    /// Lets go of entries of a shard: only when all that was frozen is written.
    fn let_go(&mut self, shard: usize) {
        // What came back after it was removed may go now, and must be found again.
        self.spilled.iter_mut().for_each(|spilled| spilled.removed.clear());
        if let Some(limit) = &self.limit {
            self.shards[shard].let_go(Places::of::<K, V>(limit).of_shard(shard));
        }
    }

    fn sum(&self, of: impl Fn(&Table<K, V>) -> usize) -> usize {
        self.shards.iter().map(of).sum()
    }

    /// How badly it needs that what cannot leave memory is stored.
    fn pressure(&self, limit: &Limit) -> Pressure {
        let places = Places::of::<K, V>(limit);
        // What cannot leave, and from how much on it is too much.
        let (stuck, soon, over) = match self.spilled {
            Some(_) => {
                let over = (places.all() * 3 / 4).min(places.in_small());
                (self.sum(|table| table.dirty() + table.removed()), over / 2, over)
            }
            None => (self.sum(Table::len), places.in_small() * 4 / 7, places.in_small() * 6 / 7),
        };
        if stuck > over || self.bytes() > limit.bytes {
            Pressure::Over
        } else if stuck > soon {
            Pressure::Soon
        } else {
            Pressure::None
        }
    }
}

/// How many places tables may have. It is always a power of two, so some may have twice as many as others: together they come
/// close to what there is memory for.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Of the small tables.
    small: usize,
    /// How many tables, the first ones, may be twice as large.
    large: usize,
}

impl Places {
    fn of<K: Key, V: Value>(limit: &Limit) -> Self {
        let each = Table::<K, V>::PLACE + limit.owned::<(K, V)>();
        // Tables are a little larger than their places.
        let all = limit.bytes.saturating_sub(SHARDS * 64) / each;
        let small = (all / SHARDS).checked_ilog2().map_or(LEAST, |log| 1 << log).max(LEAST);
        Places { small, large: (all / small).saturating_sub(SHARDS) }
    }

    fn of_shard(self, shard: usize) -> usize {
        if shard < self.large { 2 * self.small } else { self.small }
    }

    /// How many entries tables can hold, small and large ones.
    fn all(self) -> usize {
        (SHARDS + self.large) * self.small / 8 * 7
    }

    /// How many they can hold if all are small.
    fn in_small(self) -> usize {
        SHARDS * self.small / 8 * 7
    }
}

/// The fewest places that a table may have.
const LEAST: usize = 16;

/// Under which key of the database something stands; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    Block,
    Count,
    Entry(&'a [u8]),
}

impl<'a> Place<'a> {
    pub(crate) fn of(key: &'a [u8]) -> Result<Self> {
        match key {
            [] => Ok(Place::Block),
            [COUNT] => Ok(Place::Count),
            [ENTRY, key @ ..] => Ok(Place::Entry(key)),
            other => {
                let reason = format!("its key of {} bytes begins with {}", other.len(), other[0]);
                Err(StateError::Codec { what: "a stored entry".into(), reason })
            }
        }
    }

    /// The key of an entry that stands alone.
    pub(crate) fn key_of(key: &[u8]) -> Vec<u8> {
        [&[ENTRY], key].concat()
    }
}

pub(crate) const COUNT: u8 = 0;
const ENTRY: u8 = 1;

/// What this kind of state is called in manifests.
pub(crate) const KIND: &str = "values";

fn write_key<K: Key>(key: &K, out: &mut Vec<u8>) -> Result<()> {
    out.push(ENTRY);
    codec::encode_into(key, out)
}

/// Key and value, as they are stored, of every entry in what stands under one key of the database.
pub(crate) fn each_row(entry: StoredEntry<'_>, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    match Place::of(entry.key)? {
        Place::Block => blocks::each_row(entry.value, each),
        Place::Count => Ok(()),
        Place::Entry(key) => each(key, entry.value),
    }
}

impl<K: Key, V: Value> State for KeyedState<K, V> {
    fn shape(&self) -> String {
        format!("`{}` by `{}`", std::any::type_name::<V>(), std::any::type_name::<K>())
    }

    fn readers(&self) -> Vec<Reader> {
        vec![Reader::keyed::<K, V>()]
    }

    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        vec![StateForm::of_entries::<K, V>(KIND, migrations)]
    }

    fn track(&mut self) {
        self.shards.iter_mut().for_each(Table::track);
    }

    fn limit(&mut self, bytes: usize, stored: Stored) {
        self.limit = Some(Limit::new(bytes, stored));
    }

    fn begin_freeze(&mut self) {
        debug_assert!(self.freeze.is_none());
        let near = |limit: &Limit| self.pressure(limit) > Pressure::None;
        let leaves_blocks = self.spilled.is_none() && self.limit.as_ref().is_some_and(near);
        self.shards.iter_mut().for_each(|table| table.begin_freeze(leaves_blocks));
        let counting = match &mut self.spilled {
            Some(spilled) => Some(Counting::Changes(std::mem::replace(&mut spilled.changes, Box::new(NO_CHANGES)))),
            None if leaves_blocks => {
                self.spilled = Some(Spilled::of(self.sum(Table::len) as u64));
                Some(Counting::All)
            }
            None => None,
        };
        let others_empty = self.shards.iter().all(|table| table.is_freezing() || table.is_empty());
        self.freeze = Some(Freezing { next: 0, counting, others_empty });
    }

    fn copy_some(&mut self, most: &mut usize) -> bool {
        let Some(freeze) = &mut self.freeze else { return true };
        while let Some(shard) = self.shards.get_mut(freeze.next) {
            if !shard.copy_some(most) {
                return false;
            }
            freeze.next += 1;
        }
        true
    }

    fn take_frozen(&mut self) -> Option<Box<dyn Frozen>> {
        let freeze = self.freeze.take()?;
        let mut changed = Changed { slice: ONLY, whole: freeze.others_empty, parts: Vec::new(), removed: Vec::new() };
        for (shard, table) in self.shards.iter_mut().enumerate() {
            let Some((copies, removed)) = table.take_copies_and_removed() else { continue };
            changed.whole &= copies.whole;
            changed.parts.push(copies.entries);
            // Only with a limit is the database asked again.
            if let (Some(spilled), Some(_), false) = (&mut self.spilled, &self.limit, copies.removed.is_empty()) {
                spilled.removed.push((shard, removed));
            }
            changed.removed.push(copies.removed);
        }
        if changed.parts.is_empty() {
            return None;
        }
        let blocks = self.blocks.clone();
        let tell = self.limit.as_mut().map(Limit::frozen);
        Some(match (freeze.counting, &self.spilled) {
            (Some(counting), Some(spilled)) => {
                Box::new(FrozenEntries { changed, counting, stored: Arc::clone(&spilled.stored), blocks, tell })
            }
            _ => Box::new(FrozenBlocks { changed, blocks, tell }),
        })
    }

    fn wants(&self, entry: &StoredEntry<'_>) -> bool {
        self.limit.is_none() || entry.key.first() != Some(&ENTRY)
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        if let [COUNT] = entry.key {
            let Ok(count) = <[u8; 8]>::try_from(entry.value) else {
                let reason = format!("{} bytes instead of 8", entry.value.len());
                return Err(StateError::Codec { what: "a number of entries".into(), reason });
            };
            let count = u64::from_le_bytes(count);
            let spilled = self.spilled.get_or_insert_with(|| Spilled::of(0));
            spilled.entries += count;
            lock(&spilled.stored)[usize::from(entry.group)] += count;
            return Ok(());
        }
        let block = entry.key.is_empty();
        if block {
            self.blocks.note(ONLY, entry.group);
        }
        each_row(entry, |key, value| {
            self.from_blocks[usize::from(entry.group)] += u64::from(block);
            let (hash, key) = entry.decode_key(key)?;
            self.shards[shard_of(hash)].restore(hash, key, codec::decode(value)?);
            Ok(())
        })
    }

    /// Groups may come from workers of which one was spilled and another not.
    fn restored(&mut self) {
        let Some(spilled) = &mut self.spilled else { return };
        if self.from_blocks.iter().any(|entries| *entries > 0) {
            spilled.entries += self.from_blocks.iter().sum::<u64>();
            for (entries, from_blocks) in lock(&spilled.stored).iter_mut().zip(*self.from_blocks) {
                *entries += from_blocks;
            }
            // What is only in blocks must not leave before it is stored on its own.
            self.shards.iter_mut().for_each(Table::dirty_all);
        }
    }

    fn entries(&self) -> u64 {
        match &self.spilled {
            Some(spilled) => spilled.entries,
            None => self.sum(Table::len) as u64,
        }
    }

    fn bytes(&self) -> usize {
        let owned = self.limit.as_ref().map_or(0, Limit::owned::<(K, V)>);
        self.sum(Table::bytes) + self.sum(Table::len) * owned
    }

    fn relieve(&mut self) -> Pressure {
        let Some(limit) = &self.limit else { return Pressure::None };
        let entries = self.sum(Table::len);
        if std::mem::needs_drop::<(K, V)>() && entries >= self.sampled * 2 {
            limit.sample(self.shards.iter().filter_map(|table| table.iter().next()));
            self.sampled = entries.max(1);
        }
        self.pressure(limit)
    }
}

/// The number of the only slice.
const ONLY: i64 = 0;

struct FrozenBlocks<K, V> {
    changed: Changed<K, V>,
    blocks: Blocks,
    tell: Option<Tell>,
}

impl<K: Key, V: Value> Frozen for FrozenBlocks<K, V> {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        let (before, entries) = (run.bytes(), self.changed.entries());
        self.blocks.write(run, &[], self.changed)?;
        let bytes = run.bytes() - before;
        self.tell.into_iter().for_each(|tell| tell.encoded(run, entries, bytes));
        Ok(())
    }
}

struct FrozenEntries<K, V> {
    changed: Changed<K, V>,
    counting: Counting,
    stored: Arc<Mutex<Counts>>,
    /// Where they stood before there were entries of their own. All that is left of it goes.
    blocks: Blocks,
    tell: Option<Tell>,
}

impl<K: Key, V: Value> Frozen for FrozenEntries<K, V> {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        self.blocks.remove(run, &[], ONLY);
        if let Some((key, value)) = self.changed.parts.iter().flatten().next() {
            codec::check_readable(key)?;
            codec::check_readable(value)?;
        }
        let (before, mut found) = (run.bytes(), none());
        for (key, value) in self.changed.parts.iter().flatten() {
            let group = group_of(hash_key(key));
            found[usize::from(group)] += 1;
            run.put(group, |out| write_key(key, out), |out| codec::encode_into(value, out))?;
        }
        let mut bytes_of_key = Vec::new();
        for (hash, key) in self.changed.gone() {
            bytes_of_key.clear();
            write_key(key, &mut bytes_of_key)?;
            run.push(group_of(hash), &bytes_of_key, Change::Remove);
        }
        let bytes = run.bytes() - before;
        let mut stored = lock(&self.stored);
        let before = stored.clone();
        match self.counting {
            Counting::All => *stored = found,
            Counting::Changes(changes) => {
                let all = stored.iter_mut().zip(*changes);
                all.for_each(|(stored, change)| *stored = stored.saturating_add_signed(change));
            }
        }
        for (group, (count, before)) in (0..).zip(stored.iter().zip(*before)) {
            if *count > 0 || before > 0 {
                run.push(group, &[COUNT], Change::Put(&count.to_le_bytes()));
            }
        }
        self.tell.into_iter().for_each(|tell| tell.encoded(run, self.changed.entries(), bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash_key;
    use crate::key_group::{group_of, groups_of};
    use crate::rocks::tests::{Disk, OPERATOR, restore};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    #[derive(Clone, Debug)]
    enum Step {
        Update(String, u32),
        Remove(String),
        Freeze,
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few keys, so that they are met again; some longer than what sorting compares first.
        let key = prop_oneof!["[ab]{0,2}", "long enough to go on [ab]{1,2}"];
        let step = prop_oneof![
            8 => (key.clone(), any::<u32>()).prop_map(|(key, add)| Step::Update(key, add)),
            4 => key.prop_map(Step::Remove),
            2 => Just(Step::Freeze),
            1 => Just(Step::Crash),
        ];
        prop::collection::vec(step, 0..60)
    }

    fn assert_holds(state: &KeyedState<String, Vec<u32>>, model: &BTreeMap<String, Vec<u32>>) {
        assert_eq!(state.entries(), model.len() as u64);
        for (key, value) in model {
            assert_eq!(state.get(hash_key(key), key), Some(value), "{key}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_was_frozen_last_is_restored(steps in steps(), workers in 1..5usize) {
            let mut disk = Disk::new();
            let mut state = KeyedState::default();
            state.track();
            let (mut model, mut saved) = (BTreeMap::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Update(key, add) => {
                        state.update(hash_key(&key), &key, Vec::new).push(add);
                        model.entry(key).or_insert_with(Vec::new).push(add);
                    }
                    Step::Remove(key) => assert_eq!(state.remove(hash_key(&key), &key), model.remove(&key)),
                    Step::Freeze => {
                        disk.save(&mut state);
                        saved = model.clone();
                    }
                    Step::Crash => {
                        state = disk.load_copy(KeyedState::default());
                        model = saved.clone();
                    }
                }
                assert_holds(&state, &model);
            }
            assert_holds(&disk.load_copy(KeyedState::default()), &saved);
            // Rescaled: every worker has its own keys, and none is missing.
            let parts = (0..workers).map(|worker| disk.load(KeyedState::<String, Vec<u32>>::default(), groups_of(worker, workers)));
            let parts: Vec<_> = parts.collect();
            assert_eq!(parts.iter().map(State::entries).sum::<u64>(), saved.len() as u64);
            for (key, value) in &saved {
                let hash = hash_key(key);
                let owner = crate::key_group::worker_of(group_of(hash), workers);
                assert_eq!(parts[owner].get(hash, key), Some(value));
            }
        }
    }

    /// Steps of a state that may be limited.
    #[derive(Clone, Debug)]
    enum Spill {
        /// Keys that a batch changes.
        Batch(Vec<u16>),
        /// Keys that a batch removes, where they are there.
        Remove(Vec<u16>),
        /// Begins a freeze, if none is open.
        Begin,
        /// Goes on with it, looking at so many entries; what is done is handed over.
        Copy(usize),
        /// What was handed over first is written.
        Write,
        /// A start from what was written last, with this limit in bytes or none.
        Crash(Option<usize>),
    }

    fn limits() -> impl Strategy<Value = Option<usize>> {
        prop_oneof![1 => Just(None), 6 => (0..100_000usize).prop_map(Some)]
    }

    fn spills() -> impl Strategy<Value = Vec<Spill>> {
        let step = prop_oneof![
            8 => prop::collection::vec(0..900u16, 0..200).prop_map(Spill::Batch),
            3 => prop::collection::vec(0..900u16, 0..200).prop_map(Spill::Remove),
            4 => Just(Spill::Begin),
            6 => (0..700usize).prop_map(Spill::Copy),
            4 => Just(Spill::Write),
            1 => limits().prop_map(Spill::Crash),
        ];
        prop::collection::vec(step, 0..40)
    }

    /// A type for values, one that owns memory and one that does not.
    trait Counts: Value + PartialEq + std::fmt::Debug {
        fn new() -> Self;
        fn add(&mut self, number: u32);
    }
    impl Counts for (u64, u64) {
        fn new() -> Self {
            (0, 7)
        }
        fn add(&mut self, number: u32) {
            *self = (self.0 + 1, self.1.wrapping_mul(31).wrapping_add(u64::from(number)));
        }
    }
    impl Counts for Vec<u32> {
        fn new() -> Self {
            Vec::new()
        }
        fn add(&mut self, number: u32) {
            self.push(number);
        }
    }

    fn limited<V: Counts>(disk: &Disk, groups: std::ops::Range<u32>, limit: Option<usize>) -> KeyedState<u16, V> {
        let mut state = KeyedState::default();
        state.track();
        if let Some(bytes) = limit {
            state.limit(bytes, disk.db.stored(OPERATOR));
        }
        restore(&disk.db, &mut state, groups);
        state
    }

    fn load<'a, V: Counts>(state: &mut KeyedState<u16, V>, keys: impl IntoIterator<Item = &'a u16>) {
        state.load(keys.into_iter().map(|key| (hash_key(key), key))).unwrap();
    }

    fn spilled_state_is_like_any_other<V: Counts>(limit: Option<usize>, steps: Vec<Spill>, workers: usize) {
        let mut disk = Disk::new();
        let mut state = limited::<V>(&disk, 0..KEY_GROUPS, limit);
        let (mut model, mut saved) = (BTreeMap::<u16, V>::new(), BTreeMap::new());
        let (mut cut, mut number) = (None, 0);
        let mut handed_over = VecDeque::new();
        let write =
            |disk: &mut Disk, frozen: Option<Box<dyn Frozen>>| frozen.into_iter().for_each(|frozen| disk.write(frozen));
        for step in steps {
            match step {
                Spill::Batch(keys) => {
                    load(&mut state, &keys);
                    for key in &keys {
                        number += 1;
                        state.update(hash_key(key), key, V::new).add(number);
                        model.entry(*key).or_insert_with(V::new).add(number);
                    }
                }
                Spill::Remove(keys) => {
                    load(&mut state, &keys);
                    for key in &keys {
                        assert_eq!(state.get(hash_key(key), key), model.get(key));
                        assert_eq!(state.remove(hash_key(key), key), model.remove(key));
                    }
                }
                Spill::Begin if cut.is_none() => {
                    state.begin_freeze();
                    cut = Some(model.clone());
                }
                Spill::Begin => {}
                Spill::Copy(most) => {
                    if state.copy_some(&mut most.clone())
                        && let Some(cut) = cut.take()
                    {
                        handed_over.push_back((state.take_frozen(), cut));
                    }
                }
                Spill::Write => {
                    if let Some((frozen, cut)) = handed_over.pop_front() {
                        write(&mut disk, frozen);
                        saved = cut;
                    }
                }
                Spill::Crash(limit) => {
                    state = limited(&disk, 0..KEY_GROUPS, limit);
                    (model, cut) = (saved.clone(), None);
                    handed_over.clear();
                }
            }
            assert_eq!(state.entries(), model.len() as u64);
        }
        handed_over.into_iter().for_each(|(frozen, _)| write(&mut disk, frozen));
        if cut.is_some() {
            assert!(state.copy_some(&mut usize::MAX.clone()));
            write(&mut disk, state.take_frozen());
        }
        disk.save_limited(&mut state);
        // With and without a limit, on any number of workers, each asked in small batches.
        for limit in [None, Some(0), Some(20_000)] {
            for worker in 0..workers {
                let groups = groups_of(worker, workers);
                let mut part = limited::<V>(&disk, groups.clone(), limit);
                let own = |key: &&u16| groups.contains(&u32::from(group_of(hash_key(*key))));
                let keys: Vec<u16> = model.keys().filter(own).copied().collect();
                assert_eq!(part.entries(), keys.len() as u64);
                for keys in keys.chunks(50) {
                    load(&mut part, keys);
                    for key in keys {
                        assert_eq!(part.get(hash_key(key), key), model.get(key), "{key}");
                    }
                }
                assert_eq!(part.entries(), keys.len() as u64, "nothing is new");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_leaves_memory_comes_back(limit in limits(), steps in spills(), workers in 1..4usize, owned in any::<bool>()) {
            if owned {
                spilled_state_is_like_any_other::<Vec<u32>>(limit, steps, workers);
            } else {
                spilled_state_is_like_any_other::<(u64, u64)>(limit, steps, workers);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Of several workers only some came to their limits; their groups meet on others, which change them and are stopped again.
        #[test]
        fn workers_that_were_spilled_and_others_may_be_mixed(
            limits in prop::collection::vec(limits(), 3..=3),
            batches in prop::collection::vec(prop::collection::vec(0..900u16, 0..300), 1..4),
            workers in prop::collection::vec(1..5usize, 1..4),
        ) {
            let (mut disk, mut model, mut number) = (Disk::new(), BTreeMap::<u16, Vec<u32>>::new(), 0);
            for (start, workers) in std::iter::once(3).chain(workers).enumerate() {
                for worker in 0..workers {
                    let groups = groups_of(worker, workers);
                    let own = |key: &&u16| groups.contains(&u32::from(group_of(hash_key(*key))));
                    let limit = limits[(start + worker) % limits.len()];
                    let mut state = limited::<Vec<u32>>(&disk, groups.clone(), limit);
                    let before: Vec<u16> = model.keys().filter(own).copied().collect();
                    prop_assert_eq!(state.entries(), before.len() as u64);
                    for batch in &batches {
                        let keys: Vec<u16> = batch.iter().filter(own).copied().collect();
                        load(&mut state, &keys);
                        for key in &keys {
                            number += 1;
                            if number % 5 == 0 {
                                prop_assert_eq!(state.remove(hash_key(key), key), model.remove(key));
                                continue;
                            }
                            state.update(hash_key(key), key, Vec::new).push(number);
                            model.entry(*key).or_default().push(number);
                        }
                        disk.save_limited(&mut state);
                        state.relieve();
                    }
                    let all: Vec<u16> = model.keys().filter(own).copied().collect();
                    prop_assert_eq!(state.entries(), all.len() as u64);
                    for keys in all.chunks(50) {
                        load(&mut state, keys);
                        for key in keys {
                            prop_assert_eq!(state.get(hash_key(key), key), model.get(key), "{}", key);
                        }
                    }
                    disk.save_limited(&mut state);
                }
            }
            let mut state = limited::<Vec<u32>>(&disk, 0..KEY_GROUPS, None);
            prop_assert_eq!(state.entries(), model.len() as u64);
            load(&mut state, model.keys());
            for (key, value) in &model {
                prop_assert_eq!(state.get(hash_key(key), key), Some(value));
            }
        }
    }

    #[test]
    fn tables_use_what_there_is_and_no_more() {
        let disk = Disk::new();
        proptest!(|(kilobytes in 100..1_000_000usize)| {
            let limit = Limit::new(kilobytes << 10, disk.db.stored(OPERATOR));
            let places = Places::of::<u64, u64>(&limit);
            let all: usize = (0..SHARDS).map(|shard| places.of_shard(shard)).sum();
            let mut bytes = all * Table::<u64, u64>::PLACE;
            prop_assert!(bytes * 16 > limit.bytes * 15, "{bytes} of {}", limit.bytes);
            // What tables take besides their places.
            bytes += SHARDS * 64;
            prop_assert!(bytes <= limit.bytes, "{bytes} of {}", limit.bytes);
            prop_assert_eq!(places.all(), all / 8 * 7);
        });
    }

    /// Ten times as many keys as there is memory for, changed over and over in another order.
    #[test]
    fn a_limited_state_stays_within_its_limit() {
        const KEYS: u64 = 60_000;
        let mut disk = Disk::new();
        let mut state = KeyedState::<u64, u64>::default();
        state.track();
        let limit = KEYS as usize * 25 / 10;
        state.limit(limit, disk.db.stored(OPERATOR));
        let (mut most, mut from_disk) = (0, 0);
        for round in 0..4 {
            for batch in 0..KEYS / 500 {
                let keys: Vec<u64> =
                    (0..500).map(|n| (batch * 500 + n).wrapping_mul(7919 + 2 * round) % KEYS).collect();
                from_disk += keys.iter().filter(|key| round > 0 && state.get(hash_key(*key), key).is_none()).count();
                state.load(keys.iter().map(|key| (hash_key(key), key))).unwrap();
                for key in &keys {
                    *state.update(hash_key(key), key, || 0) += 1;
                }
                most = most.max(state.bytes());
                if state.relieve() > Pressure::None {
                    disk.save_limited(&mut state);
                }
            }
        }
        assert_eq!(state.entries(), KEYS);
        assert!(state.sum(Table::len) < KEYS as usize / 4, "{} entries are in memory", state.sum(Table::len));
        assert!(from_disk > KEYS as usize, "{from_disk} came back");
        assert!(most <= 2 * limit, "{most} bytes of {limit}");
        let mut found = 0;
        for key in 0..KEYS {
            state.load([(hash_key(&key), &key)]).unwrap();
            found += state.get(hash_key(&key), &key).unwrap();
        }
        assert_eq!(found, 4 * KEYS);
    }

    /// Often enough for RocksDB to compact, which merges blocks.
    #[test]
    fn many_small_changes_are_merged() {
        let mut disk = Disk::new();
        let mut state = KeyedState::<u64, u64>::default();
        state.track();
        let mut model = BTreeMap::new();
        for round in 0..50u64 {
            for n in 0..40 {
                let key = hash_key(&(round % 7, n)) % (20 + 20 * round);
                *state.update(hash_key(&key), &key, || 0) = round;
                model.insert(key, round);
                let key = hash_key(&(round % 5, n)) % (20 + 20 * round);
                assert_eq!(state.remove(hash_key(&key), &key), model.remove(&key));
            }
            disk.save_limited(&mut state);
        }
        let restored = disk.load_copy(KeyedState::<u64, u64>::default());
        assert_eq!(restored.entries(), model.len() as u64);
        for (key, value) in &model {
            assert_eq!(restored.get(hash_key(key), key), Some(value));
        }
    }

    /// Found by a job that was killed: a shard that was clean when a freeze began, and from which the last entry was removed before the freeze
    /// was taken, counted as empty; so what was frozen counted as all there was.
    #[test]
    fn what_is_removed_after_a_freeze_has_begun_is_still_in_it() {
        let mut disk = Disk::new();
        let mut state = KeyedState::<u64, u64>::default();
        state.track();
        let other = (2..).find(|key| shard_of(hash_key(key)) != shard_of(hash_key(&1u64))).unwrap();
        state.update(hash_key(&1u64), &1, || 10);
        state.update(hash_key(&other), &other, || 20);
        disk.save(&mut state);
        *state.update(hash_key(&other), &other, || 0) += 1;
        state.begin_freeze();
        assert_eq!(state.remove(hash_key(&1u64), &1), Some(10));
        assert!(state.copy_some(&mut usize::MAX.clone()));
        disk.write(state.take_frozen().unwrap());
        let restored = disk.load_copy(KeyedState::<u64, u64>::default());
        assert_eq!((restored.entries(), restored.get(hash_key(&1u64), &1)), (2, Some(&10)));
        disk.save(&mut state);
        let restored = disk.load_copy(KeyedState::<u64, u64>::default());
        assert_eq!((restored.entries(), restored.get(hash_key(&other), &other)), (1, Some(&21)));
    }

    /// What came back after it was removed, was stored and has left memory is not gone, even if what is gone is remembered for longer.
    #[test]
    fn what_came_back_is_found_again() {
        let mut disk = Disk::new();
        let mut state = limited::<(u64, u64)>(&disk, 0..KEY_GROUPS, Some(20_000));
        let keys: Vec<u16> = (0..2_000).collect();
        let update = |state: &mut KeyedState<u16, (u64, u64)>, keys: &[u16]| {
            for some in keys.chunks(100) {
                load(state, some);
                some.iter().for_each(|key| state.update(hash_key(key), key, Counts::new).add(1));
            }
        };
        update(&mut state, &keys);
        disk.save_limited(&mut state);
        for some in keys.chunks(100) {
            load(&mut state, some);
            some.iter().for_each(|key| assert!(state.remove(hash_key(key), key).is_some(), "{key}"));
        }
        update(&mut state, &keys);
        state.begin_freeze();
        assert!(state.copy_some(&mut usize::MAX.clone()));
        let frozen = state.take_frozen().unwrap();
        disk.write(frozen);
        (0..2).for_each(|_| (0..SHARDS).for_each(|shard| state.let_go(shard)));
        let away = keys.iter().find(|key| state.get(hash_key(*key), key).is_none());
        let away = away.expect("one has left memory");
        // Another freeze that is not written.
        let here = keys.iter().find(|key| state.get(hash_key(*key), key).is_some()).expect("another one has not");
        // Not through a load, which would see that the first one is.
        state.update(hash_key(here), here, Counts::new).add(1);
        state.begin_freeze();
        assert!(state.copy_some(&mut usize::MAX.clone()));
        let _frozen = state.take_frozen();
        load(&mut state, [away]);
        assert!(state.get(hash_key(away), away).is_some());
        assert_eq!(state.entries(), 2_000);
    }

    /// Keys come and go, without end; what is stored is only what there is.
    #[test]
    fn what_was_removed_takes_no_room() {
        for limit in [None, Some(20_000)] {
            let mut disk = Disk::new();
            let mut state = limited::<(u64, u64)>(&disk, 0..KEY_GROUPS, limit);
            for round in 0..100u16 {
                let keys: Vec<u16> = (0..600).map(|n| round * 600 + n).collect();
                let before: Vec<u16> = keys.iter().map(|key| key.wrapping_sub(600)).filter(|_| round > 0).collect();
                for key in &keys {
                    load(&mut state, [key]);
                    state.update(hash_key(key), key, Counts::new);
                }
                for some in before.chunks(50) {
                    load(&mut state, some);
                    some.iter().for_each(|key| assert!(state.remove(hash_key(key), key).is_some(), "{key}"));
                }
                disk.save_limited(&mut state);
                state.relieve();
                assert_eq!(state.entries(), 600);
            }
            let restored = limited::<(u64, u64)>(&disk, 0..KEY_GROUPS, None);
            assert_eq!((restored.entries(), restored.sum(Table::len)), (600, 600));
            let mut bytes = 0;
            let found = disk.db.scan(OPERATOR, 0..KEY_GROUPS, |entry| {
                bytes += entry.value.len();
                Ok(())
            });
            found.unwrap();
            assert!(bytes < 128 * 8 + 600 * 20, "{bytes} bytes for 600 entries");
        }
    }

    #[test]
    fn a_key_of_another_type_is_refused() {
        let mut disk = Disk::new();
        let mut state = KeyedState::<u64, u64>::default();
        state.track();
        for key in 0..100 {
            state.update(hash_key(&key), &key, || key);
        }
        disk.save_limited(&mut state);
        let mut other = KeyedState::<i64, u64>::default();
        assert_ne!(State::shape(&state), State::shape(&other));
        // The bytes read as both; the hash tells them apart, or they are the same for all purposes.
        let restored = disk.db.scan(7, 0..128, |entry| other.restore(entry));
        assert!(restored.is_err() || hash_key(&5u64) == hash_key(&5i64));
        let mut other = KeyedState::<String, u64>::default();
        assert!(disk.db.scan(7, 0..128, |entry| other.restore(entry)).is_err());
        let mut other = KeyedState::<u64, (u64, u64)>::default();
        assert!(disk.db.scan(7, 0..128, |entry| other.restore(entry)).is_err());
    }
}
