//! One value per slice of event time and key: the state of windows.
//!
//! A slice is one of the disjoint pieces of event time that overlapping windows share. It is known by its number, which
//! may be negative; what number means what time is the window's business. A record is added to one slice, whatever the
//! overlap. When the last window that needs a slice has fired, the slice goes as a whole.
//!
//! **State**: where memory is limited, slices that nobody changes for the moment leave it as a whole, and are read back as a whole
//! when they are needed. The slice that records are added to stays, whatever it takes.

use std::collections::{BTreeMap, VecDeque};

use crate::blocks::{self, Blocks, Changed};
use crate::evolve::Migrations;
use crate::key_group::KeyGroup;
use crate::limit::{Limit, Tell};
use crate::migrate::StateForm;
use crate::reader::Reader;
use crate::rocks::Stored;
use crate::snapshot::{Frozen, Key, Pressure, Run, State, StoredEntry, Value};
use crate::table::{Copies, Table};
use crate::{Result, StateError};

/// How many records to deal with at once: about as many entries as a processor can wait for.
pub const AT_ONCE: usize = 16;

/// Keyed state in slices, sharded by key group.
#[derive(Debug)]
pub struct SliceState<K, V> {
    /// In order of their numbers; none is empty, but some are away.
    slices: VecDeque<(i64, Table<K, V>)>,
    /// How many entries slices have that are not in memory.
    away: BTreeMap<i64, u64>,
    limit: Option<Limit>,
    /// The place of the slice that was used last: records come mostly in order.
    hot: usize,
    /// Slices of which a checkpoint holds something and that are gone since.
    gone: Vec<i64>,
    /// An emptied table, kept for the next slice so that it need not grow again.
    spare: Option<Table<K, V>>,
    freeze: Option<Freeze<K, V>>,
    blocks: Blocks,
    tracked: bool,
}

/// A freeze that is not done.
#[derive(Debug)]
struct Freeze<K, V> {
    /// Slices before this one are copied. `None`: all are.
    next: Option<i64>,
    changed: Vec<Changed<K, V>>,
    /// Slices that had gone when it began.
    gone: Vec<i64>,
}

impl<K: Key, V: Value> Freeze<K, V> {
    /// All that was to be copied of a slice is.
    fn add(&mut self, slice: i64, table: &mut Table<K, V>) {
        // It may have been emptied key by key in between.
        table.copy_removed();
        let changed = |copies: Copies<K, V>| Changed {
            slice,
            whole: copies.whole,
            parts: vec![copies.entries],
            removed: vec![copies.removed],
        };
        self.changed.extend(table.take_copies().map(changed));
    }
}

impl<K, V> Default for SliceState<K, V> {
    fn default() -> Self {
        SliceState {
            slices: VecDeque::new(),
            away: BTreeMap::new(),
            limit: None,
            hot: 0,
            gone: Vec::new(),
            spare: None,
            freeze: None,
            blocks: Blocks::default(),
            tracked: false,
        }
    }
}

impl<K: Key, V: Value> SliceState<K, V> {
    /// The value of `key`, whose hash is `hash`, in `slice`, to be changed; made by `create` when there is none.
    #[inline]
    pub fn update(&mut self, slice: i64, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        self.in_slice(slice).0.update(hash, key, create)
    }

    /// `slice`, for many changes in a row.
    #[inline]
    pub fn in_slice(&mut self, slice: i64) -> InSlice<'_, K, V> {
        if self.slices.get(self.hot).is_none_or(|(number, _)| *number != slice) {
            self.hot = self.find_or_add(slice);
        }
        InSlice(&mut self.slices[self.hot].1)
    }

    /// Has the processor fetch what the records of a chunk will change, if they are of the slice that was used last. Chunks are of
    /// [`AT_ONCE`] records, and there may be none of this number. It changes nothing but the time that
    /// [`update`](Self::update) takes.
    #[inline]
    pub fn prefetch<R>(&self, records: &[R], chunk: usize, hash: impl Fn(&R) -> u64) {
        if let Some((_, table)) = self.slices.get(self.hot) {
            table.prefetch(records.iter().skip(chunk * AT_ONCE).take(AT_ONCE).map(hash));
        }
    }

    /// Has slices in memory: all of these that there are. Must be asked for each slice that is to be read or changed, or it may be
    /// away; nothing is, and this does nothing, where memory is not limited.
    ///
    /// # Errors
    /// When one cannot be read back.
    #[inline]
    pub fn load(&mut self, slices: impl IntoIterator<Item = i64>) -> Result<()> {
        if self.away.is_empty() {
            return Ok(());
        }
        let mut last = None;
        for slice in slices {
            if last != Some(slice) && self.away.contains_key(&slice) {
                self.read_back(slice)?;
            }
            last = Some(slice);
        }
        Ok(())
    }

    /// As [`load`](Self::load), of the slices from `from` up to but not including `to`.
    ///
    /// # Errors
    /// When one cannot be read back.
    pub fn load_range(&mut self, from: i64, to: i64) -> Result<()> {
        while let Some(slice) = self.next_away(from, to) {
            self.read_back(slice)?;
        }
        Ok(())
    }

    /// The first slice from `from` up to but not including `to` that is not in memory.
    pub fn next_away(&self, from: i64, to: i64) -> Option<i64> {
        self.away.range(from..to.max(from)).next().map(|(slice, _)| *slice)
    }

    #[cold]
    fn read_back(&mut self, slice: i64) -> Result<()> {
        let SliceState { slices, away, limit: Some(limit), blocks, .. } = self else { return Ok(()) };
        let Ok(place) = slices.binary_search_by_key(&slice, |(number, _)| *number) else { return Ok(()) };
        let Some(entries) = away.remove(&slice) else { return Ok(()) };
        let groups: Vec<KeyGroup> = blocks.groups(slice).collect();
        let keys: Vec<Vec<u8>> =
            groups.iter().map(|group| [&limit.stored.prefix(*group)[..], &key_of(slice)].concat()).collect();
        let mut table = Table::with_capacity(entries as usize);
        table.track();
        let values = limit.stored.get_many(keys.iter().map(Vec::as_slice))?;
        for (group, value) in groups.into_iter().zip(values) {
            let Some(value) = value else {
                let reason = format!("its block of key group {group} is not there");
                return Err(StateError::Codec { what: format!("slice {slice}"), reason });
            };
            let entry = StoredEntry { group, state: 0, key: &[], value: &value };
            blocks::read(entry, |hash, key, value| table.restore(hash, key, value))?;
        }
        slices[place].1 = table;
        Ok(())
    }

    fn find_or_add(&mut self, slice: i64) -> usize {
        assert!(!self.away.contains_key(&slice), "slice {slice} was not loaded");
        // Mostly none is missing between the one that was used last and this one.
        let hot = self.slices.get(self.hot).map_or(slice, |(number, _)| *number);
        let likely = self.hot.wrapping_add(slice.wrapping_sub(hot) as usize);
        if self.slices.get(likely).is_some_and(|(number, _)| *number == slice) {
            return likely;
        }
        self.place(slice).unwrap_or_else(|place| {
            // The next slice will have about as many keys as the one before. An older one comes late, and with few.
            let like = self.slices.back().filter(|_| place == self.slices.len()).map_or(0, |(_, table)| table.len());
            let tracked = self.tracked;
            let table = self.spare.take().unwrap_or_else(|| {
                let mut table = Table::with_capacity(like);
                if tracked {
                    table.track();
                }
                table
            });
            self.slices.insert(place, (slice, table));
            place
        })
    }

    /// Where `slice` is, or where it would have to be put.
    fn place(&self, slice: i64) -> std::result::Result<usize, usize> {
        self.slices.binary_search_by_key(&slice, |(number, _)| *number)
    }

    /// The numbers of all slices from `from` on, in order, without end.
    #[cfg(test)]
    fn numbers_from(&mut self, from: i64) -> impl Iterator<Item = i64> {
        self.slices.iter().map(|(number, _)| *number).filter(move |number| *number >= from)
    }

    /// The least slice there is.
    pub fn first(&self) -> Option<i64> {
        self.slices.front().map(|(number, _)| *number)
    }

    /// The least slice from `from` on.
    pub fn next_from(&self, from: i64) -> Option<i64> {
        let place = self.slices.partition_point(|(number, _)| *number < from);
        self.slices.get(place).map(|(number, _)| *number)
    }

    /// Whether memory is limited, so that slices may be away.
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// The greatest slice before `to`.
    pub fn last_before(&self, to: i64) -> Option<i64> {
        let place = self.slices.partition_point(|(number, _)| *number < to);
        self.slices.get(place.checked_sub(1)?).map(|(number, _)| *number)
    }

    /// Whether it takes as much memory as it may, where that is limited.
    pub fn is_full(&self) -> bool {
        self.limit.as_ref().is_some_and(|limit| self.bytes() >= limit.bytes)
    }

    /// Whether `slice` is there but not in memory.
    #[inline]
    pub fn is_away(&self, slice: i64) -> bool {
        !self.away.is_empty() && self.away.contains_key(&slice)
    }

    /// How many slices there are.
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// How many keys `slice` has.
    pub fn keys_in(&self, slice: i64) -> usize {
        let away = self.away.get(&slice).map_or(0, |entries| *entries as usize);
        self.place(slice).map_or(0, |place| self.slices[place].1.len()) + away
    }

    /// Every key and value in the slices from `from` up to but not including `to`, slice after slice, with its number.
    pub fn range(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, &K, &V)> {
        let place = |slice| self.place(slice).unwrap_or_else(|place| place);
        assert!(self.next_away(from, to).is_none(), "slices {from} to {to} were not loaded");
        let (from, to) = (place(from), place(to.max(from)));
        self.slices
            .range(from..to)
            .flat_map(|(number, table)| table.iter().map(|(key, value)| (*number, key, value)))
    }

    /// Takes the whole of `slice` out.
    pub fn take(&mut self, slice: i64, each: impl FnMut(K, V)) {
        self.take_some(slice, usize::MAX, each);
    }

    /// Takes up to `most` entries of `slice` out; returns whether that was all.
    pub fn take_some(&mut self, slice: i64, most: usize, each: impl FnMut(K, V)) -> bool {
        let Ok(place) = self.place(slice) else { return true };
        assert!(!self.away.contains_key(&slice), "slice {slice} was not loaded");
        let table = &mut self.slices[place].1;
        table.take(most, each);
        if !table.is_empty() {
            return false;
        }
        self.remove(place);
        true
    }

    /// Takes the value of `key` out of `slice`, if that is there and in memory.
    pub fn take_key(&mut self, slice: i64, hash: u64, key: &K) -> Option<V> {
        let place = self.place(slice).ok()?;
        if self.away.contains_key(&slice) {
            return None;
        }
        let value = self.slices[place].1.remove(hash, key)?;
        if self.slices[place].1.is_empty() {
            self.remove(place);
        }
        Some(value)
    }

    /// Takes out a slice that is empty, or that nobody needs any more.
    fn remove(&mut self, place: usize) {
        let (slice, table) = &mut self.slices[place];
        let slice = *slice;
        self.away.remove(&slice);
        if let Some(freeze) = &mut self.freeze {
            freeze.add(slice, table);
        }
        if table.is_stored() {
            self.gone.push(slice);
        }
        table.renew();
        self.spare = self.slices.remove(place).map(|(_, table)| table);
    }

    /// Drops all slices before `to`; they need not be in memory.
    pub fn drop_before(&mut self, to: i64) {
        while self.first().is_some_and(|first| first < to) {
            self.slices[0].1.take(usize::MAX, |_, _| ());
            self.remove(0);
        }
    }
}

/// One slice of [`SliceState`].
#[derive(Debug)]
pub struct InSlice<'a, K, V>(&'a mut Table<K, V>);

impl<K: Key, V: Value> InSlice<'_, K, V> {
    /// The value of `key`, whose hash is `hash`, to be changed; made by `create` when there is none.
    #[inline]
    pub fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        self.0.update(hash, key, create)
    }
}

impl<K: Key, V: Value> State for SliceState<K, V> {
    fn shape(&self) -> String {
        format!("slices of `{}` by `{}`", std::any::type_name::<V>(), std::any::type_name::<K>())
    }

    fn readers(&self) -> Vec<Reader> {
        vec![Reader::sliced::<K, V>()]
    }

    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        vec![StateForm::of_entries::<K, V>("slices", migrations)]
    }

    fn track(&mut self) {
        self.tracked = true;
    }

    fn begin_freeze(&mut self) {
        debug_assert!(self.tracked && self.freeze.is_none());
        for (_, table) in &mut self.slices {
            table.begin_freeze(false);
        }
        let mut gone = std::mem::take(&mut self.gone);
        // A slice may have gone and have come back since: it is written as a whole then, over what was there.
        gone.retain(|slice| self.place(*slice).is_err());
        self.freeze = Some(Freeze { next: Some(i64::MIN), changed: Vec::new(), gone });
    }

    fn copy_some(&mut self, most: &mut usize) -> bool {
        let Some(freeze) = &mut self.freeze else { return true };
        while let Some(next) = freeze.next {
            let place = self.slices.partition_point(|(number, _)| *number < next);
            let Some((slice, table)) = self.slices.get_mut(place) else { break };
            if !table.copy_some(most) {
                return false;
            }
            freeze.add(*slice, table);
            freeze.next = slice.checked_add(1);
        }
        true
    }

    fn take_frozen(&mut self) -> Option<Box<dyn Frozen>> {
        let Freeze { changed, gone, .. } = self.freeze.take()?;
        if changed.is_empty() && gone.is_empty() {
            return None;
        }
        let tell = self.limit.as_mut().map(Limit::frozen);
        Some(Box::new(FrozenSlices { changed, gone, blocks: self.blocks.clone(), tell }))
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        let slice = number_of(entry.key)?;
        self.blocks.note(slice, entry.group);
        let entries = blocks::count(entry.value)?;
        if entries == 0 {
            // All its keys were taken out, one by one, while others of the slice were left to another worker.
            self.gone.push(slice);
            return Ok(());
        }
        if self.limit.is_some() {
            if let Err(place) = self.place(slice) {
                self.slices.insert(place, (slice, Table::stored_elsewhere()));
            }
            *self.away.entry(slice).or_default() += entries;
            return Ok(());
        }
        self.hot = self.find_or_add(slice);
        let table = &mut self.slices[self.hot].1;
        blocks::read(entry, |hash, key, value| table.restore(hash, key, value))
    }

    fn limit(&mut self, bytes: usize, stored: Stored) {
        self.limit = Some(Limit::new(bytes, stored));
    }

    fn bytes(&self) -> usize {
        let tables = self.slices.iter().map(|(_, table)| table).chain(&self.spare);
        let owned = self.limit.as_ref().map_or(0, Limit::owned::<(K, V)>);
        tables.map(|table| table.bytes() + table.len() * owned).sum()
    }

    fn relieve(&mut self) -> Pressure {
        let Some(limit) = &self.limit else { return Pressure::None };
        if std::mem::needs_drop::<(K, V)>() && limit.owned::<(K, V)>() == 0 {
            limit.sample(self.slices.iter().rev().take(4).flat_map(|(_, table)| table.iter().take(16)));
        }
        let (most, owned) = (limit.bytes, limit.owned::<(K, V)>());
        let may_leave = self.freeze.is_none() && limit.all_is_written();
        let mut bytes = self.bytes();
        if bytes <= most {
            return Pressure::None;
        }
        self.spare = None;
        // The newest first: they will be needed last. But not the one that was used last.
        for place in (0..self.slices.len()).rev().filter(|place| may_leave && *place != self.hot) {
            if bytes <= most {
                return Pressure::None;
            }
            let (number, table) = &mut self.slices[place];
            if table.is_clean() && table.is_stored() && !self.away.contains_key(number) {
                let table = std::mem::replace(table, Table::stored_elsewhere());
                self.away.insert(*number, table.len() as u64);
                bytes = bytes.saturating_sub(table.bytes() + table.len() * owned);
            }
        }
        // A checkpoint makes other slices clean than the one that is changing.
        let others = self.slices.iter().enumerate().any(|(place, (_, table))| place != self.hot && !table.is_clean());
        if bytes > most && others { Pressure::Soon } else { Pressure::None }
    }

    fn entries(&self) -> u64 {
        let here: u64 = self.slices.iter().map(|(_, table)| table.len() as u64).sum();
        here + self.away.values().sum::<u64>()
    }
}

struct FrozenSlices<K, V> {
    changed: Vec<Changed<K, V>>,
    gone: Vec<i64>,
    blocks: Blocks,
    tell: Option<Tell>,
}

/// The slice's number, big-endian, with the sign turned so that bytes sort as numbers do.
fn key_of(slice: i64) -> [u8; 8] {
    ((slice as u64) ^ (1 << 63)).to_be_bytes()
}

/// The way back from [`key_of`].
pub(crate) fn number_of(key: &[u8]) -> Result<i64> {
    let Ok(number) = <[u8; 8]>::try_from(key) else {
        let reason = format!("the stored key has {} bytes", key.len());
        return Err(StateError::Codec { what: "a slice".into(), reason });
    };
    Ok((u64::from_be_bytes(number) ^ (1 << 63)) as i64)
}

impl<K: Key, V: Value> Frozen for FrozenSlices<K, V> {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        let (before, mut entries) = (run.bytes(), 0);
        for changed in self.changed {
            entries += changed.entries();
            self.blocks.write(run, &key_of(changed.slice), changed)?;
        }
        let bytes = run.bytes() - before;
        for slice in self.gone {
            self.blocks.remove(run, &key_of(slice), slice);
        }
        self.tell.into_iter().for_each(|tell| tell.encoded(run, entries, bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash_key;
    use crate::key_group::KEY_GROUPS;
    use crate::key_group::groups_of;
    use crate::rocks::tests::{Disk, OPERATOR, freeze, restore};
    use crate::snapshot::Change;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NUMBERS: [i64; 9] = [i64::MIN, i64::MIN + 1, -300, -1, 0, 1, 300, i64::MAX - 1, i64::MAX];

    #[derive(Clone, Debug)]
    enum Step {
        Update(usize, String, u32),
        Take(usize),
        TakeSome(usize, usize),
        TakeKey(usize, String),
        DropBefore(usize),
        /// Begins a freeze, if none is open.
        Begin,
        /// Goes on with it, looking at so many entries; what is done is written.
        Copy(usize),
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = prop_oneof!["[ab]{0,2}", "longer than sixteen [ab]"];
        let slice = 0..NUMBERS.len();
        let step = prop_oneof![
            12 => (slice.clone(), key.clone(), any::<u32>()).prop_map(|(slice, key, add)| Step::Update(slice, key, add)),
            3 => slice.clone().prop_map(Step::Take),
            2 => (slice.clone(), 0..3usize).prop_map(|(slice, most)| Step::TakeSome(slice, most)),
            6 => (slice.clone(), key).prop_map(|(slice, key)| Step::TakeKey(slice, key)),
            1 => slice.prop_map(Step::DropBefore),
            3 => Just(Step::Begin),
            4 => (0..12usize).prop_map(Step::Copy),
            1 => Just(Step::Crash),
        ];
        prop::collection::vec(step, 0..100)
    }

    type Model = BTreeMap<i64, BTreeMap<String, u32>>;

    /// Takes everything out of `state`.
    fn empty(mut state: SliceState<String, u32>) -> Model {
        let numbers: Vec<i64> = state.numbers_from(i64::MIN).collect();
        let mut model = Model::new();
        for number in numbers {
            state.load([number]).unwrap();
            state.take(number, |key, value| {
                assert!(model.entry(number).or_default().insert(key, value).is_none(), "a key is there twice");
            });
        }
        assert_eq!(state.entries(), 0);
        model
    }

    fn count(model: &Model) -> u64 {
        model.values().map(|slice| slice.len() as u64).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Also a slice that was taken and comes back before the next checkpoint: its keys were once both written and
        /// removed by the same run, which RocksDB refused.
        #[test]
        fn what_was_frozen_last_is_restored(steps in steps(), workers in 1..5usize, limit in prop::option::of(0..3000usize)) {
            let mut disk = Disk::new();
            let fresh = |disk: &Disk| {
                let mut state = SliceState::<String, u32>::default();
                state.track();
                limit.into_iter().for_each(|bytes| state.limit(bytes, disk.db.stored(OPERATOR)));
                state
            };
            let mut state = fresh(&disk);
            let (mut model, mut saved) = (Model::new(), Model::new());
            let mut cut = None;
            for step in steps {
                match step {
                    Step::Update(slice, key, add) => {
                        let slice = NUMBERS[slice];
                        state.load([slice]).unwrap();
                        let value = state.update(slice, hash_key(&key), &key, || 0);
                        *value = value.wrapping_add(add);
                        let value = model.entry(slice).or_default().entry(key).or_default();
                        *value = value.wrapping_add(add);
                    }
                    Step::Take(slice) => {
                        let slice = NUMBERS[slice];
                        state.load([slice]).unwrap();
                        let mut taken = BTreeMap::new();
                        state.take(slice, |key, value| assert!(taken.insert(key, value).is_none()));
                        assert_eq!(taken, model.remove(&slice).unwrap_or_default());
                    }
                    Step::TakeSome(slice, most) => {
                        let slice = NUMBERS[slice];
                        state.load_range(slice, slice.saturating_add(1)).unwrap();
                        state.load([slice]).unwrap();
                        let there = model.remove(&slice).unwrap_or_default();
                        let mut left = there.clone();
                        let all = state.take_some(slice, most, |key, value| assert_eq!(left.remove(&key), Some(value)));
                        assert_eq!(left.len(), there.len().saturating_sub(most));
                        assert_eq!(all, left.is_empty());
                        if !all {
                            model.insert(slice, left);
                        }
                    }
                    Step::TakeKey(slice, key) => {
                        let slice = NUMBERS[slice];
                        state.load([slice]).unwrap();
                        let taken = state.take_key(slice, hash_key(&key), &key);
                        assert_eq!(taken, model.get_mut(&slice).and_then(|keys| keys.remove(&key)));
                        model.retain(|_, keys| !keys.is_empty());
                    }
                    Step::DropBefore(to) => {
                        state.drop_before(NUMBERS[to]);
                        model.retain(|slice, _| *slice >= NUMBERS[to]);
                    }
                    Step::Begin if cut.is_none() => {
                        state.begin_freeze();
                        cut = Some(model.clone());
                    }
                    Step::Begin => {}
                    Step::Copy(most) => {
                        if state.copy_some(&mut most.clone()) && let Some(cut) = cut.take() {
                            state.take_frozen().into_iter().for_each(|frozen| disk.write(frozen));
                            saved = cut;
                        }
                    }
                    Step::Crash => {
                        cut = None;
                        state = fresh(&disk);
                        restore(&disk.db, &mut state, 0..KEY_GROUPS);
                        model = saved.clone();
                    }
                }
                state.relieve();
                if let Some(limit) = limit && state.bytes() > limit && cut.is_none() {
                    let left = state.slices.iter().enumerate().filter(|(place, _)| *place != state.hot);
                    let left = left.filter(|(_, (number, table))| table.is_clean() && !state.away.contains_key(number));
                    assert_eq!(left.count(), 0, "more could have left");
                }
                assert_eq!(state.entries(), count(&model));
                assert!(state.numbers_from(i64::MIN).eq(model.keys().copied()));
                assert_eq!(state.first(), model.keys().next().copied());
            }
            assert_eq!(empty(disk.load_copy(SliceState::default())), saved);
            if cut.is_some() {
                assert!(state.copy_some(&mut usize::MAX.clone()));
                state.take_frozen().into_iter().for_each(|frozen| disk.write(frozen));
            }
            disk.save(&mut state);
            assert_eq!(empty(disk.load_copy(SliceState::default())), model, "also what changed during a freeze");
            saved = model;
            let mut rescaled = Model::new();
            for worker in 0..workers {
                for (slice, keys) in empty(disk.load(SliceState::default(), groups_of(worker, workers))) {
                    rescaled.entry(slice).or_default().extend(keys);
                }
            }
            assert_eq!(rescaled, saved);
        }
    }

    /// A checkpoint once still had the key that was taken out before it.
    #[test]
    fn a_slice_that_empties_while_it_is_copied_has_lost_what_was_taken_before() {
        let mut disk = Disk::new();
        let mut state = SliceState::<String, u32>::default();
        state.track();
        let [a, b] = ["a", "b"].map(str::to_string);
        for key in [&a, &b] {
            state.update(7, hash_key(key), key, || 1);
        }
        disk.save(&mut state);
        assert_eq!(state.take_key(7, hash_key(&a), &a), Some(1));
        state.begin_freeze();
        assert_eq!(state.take_key(7, hash_key(&b), &b), Some(1));
        assert!(state.copy_some(&mut usize::MAX.clone()));
        state.take_frozen().into_iter().for_each(|frozen| disk.write(frozen));
        let then = Model::from([(7, BTreeMap::from([(b, 1)]))]);
        assert_eq!(empty(disk.load_copy(SliceState::default())), then);
        disk.save(&mut state);
        assert_eq!(empty(disk.load_copy(SliceState::default())), Model::new());
    }

    #[test]
    fn a_range_is_half_open_and_in_order() {
        let mut state = SliceState::<String, u32>::default();
        for (n, slice) in NUMBERS.into_iter().enumerate() {
            let key = "k".to_string();
            state.update(slice, hash_key(&key), &key, || n as u32);
        }
        let values =
            |state: &SliceState<String, u32>, from, to| state.range(from, to).map(|(_, _, n)| *n).collect::<Vec<_>>();
        assert_eq!(values(&state, -300, 300), [2, 3, 4, 5]);
        assert_eq!(values(&state, i64::MIN, i64::MAX), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(values(&state, 0, 0), [0; 0]);
        assert_eq!((state.range(1, 2).count(), state.range(2, 300).count()), (1, 0));
        assert!(state.numbers_from(1).eq([1, 300, i64::MAX - 1, i64::MAX]));
    }

    /// Slices that were never stored cost a checkpoint nothing, those that were cost it as many removals as they have blocks.
    #[test]
    fn what_came_and_went_between_two_checkpoints_is_not_written() {
        let change = |state: &mut SliceState<u64, u32>, slice, keys: u64| {
            for key in 0..keys {
                *state.update(slice, hash_key(&key), &key, || 0) += 1;
            }
        };
        let changes = |state: &mut SliceState<u64, u32>| {
            let mut run = Run::default();
            if let Some(frozen) = freeze(state) {
                frozen.encode(&mut run).unwrap();
            }
            run.sort();
            let kinds = run.iter().map(|(_, change)| match change {
                Change::Put(_) => 'p',
                Change::Merge(_) => 'm',
                Change::Remove => 'r',
            });
            let mut kinds: Vec<char> = kinds.collect();
            kinds.sort_unstable();
            kinds.into_iter().collect::<String>()
        };
        let mut state = SliceState::default();
        state.track();
        change(&mut state, 1, 5_000);
        state.take(1, |_, _| ());
        assert_eq!(changes(&mut state), "");
        change(&mut state, 2, 1);
        assert_eq!(changes(&mut state), "p");
        change(&mut state, 2, 1);
        assert_eq!(changes(&mut state), "p", "all there is");
        change(&mut state, 2, 5_000);
        assert_eq!(changes(&mut state), "p".repeat(128));
        change(&mut state, 2, 1);
        assert_eq!(changes(&mut state), "m");
        state.take(2, |_, _| ());
        change(&mut state, 2, 1);
        assert_eq!(changes(&mut state).replace('r', ""), "p", "it is back, with one key");
        change(&mut state, 3, 10);
        state.take(2, |_, _| ());
        assert_eq!(changes(&mut state), "pppppppppr", "two keys are in one group");
        assert_eq!(changes(&mut state), "");
    }

    #[test]
    fn without_tracking_nothing_is_remembered_of_what_is_gone() {
        let mut state = SliceState::<u64, u32>::default();
        state.update(1, hash_key(&1u64), &1, || 1);
        state.take(1, |_, _| ());
        assert!(state.gone.is_empty());
    }
}
