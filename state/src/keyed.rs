//! One value per key.

use crate::Result;
use crate::blocks::{self, Changed, Stored};
use crate::evolve::Migrations;
use crate::migrate::StateForm;
use crate::snapshot::{Frozen, Key, Run, State, StoredEntry, Value};
use crate::table::Table;

/// Keyed state with one value per key, sharded by key group.
#[derive(Debug)]
pub struct KeyedState<K, V> {
    table: Table<K, V>,
    stored: Stored,
    tracked: bool,
}

impl<K, V> Default for KeyedState<K, V> {
    fn default() -> Self {
        KeyedState { table: Table::default(), stored: Stored::default(), tracked: false }
    }
}

impl<K: Key, V: Value> KeyedState<K, V> {
    /// The value of `key`, whose hash is `hash`, to be changed; made by `create` when there is none.
    #[inline]
    pub fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        self.table.update(hash, key, create)
    }

    /// The value of `key`, whose hash is `hash`.
    #[cfg(test)]
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.table.get(hash, key)
    }
}

impl<K: Key, V: Value> State for KeyedState<K, V> {
    fn shape(&self) -> String {
        format!("`{}` by `{}`", std::any::type_name::<V>(), std::any::type_name::<K>())
    }

    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        vec![StateForm::of_entries::<K, V>("values", migrations)]
    }

    fn track(&mut self) {
        self.tracked = true;
    }

    fn freeze(&mut self) -> Option<Box<dyn Frozen>> {
        debug_assert!(self.tracked);
        let (whole, entries) = self.table.freeze()?;
        let changed = Changed { slice: ONLY, whole, entries };
        Some(Box::new(FrozenKeyed { changed, stored: self.stored.clone() }))
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        self.stored.note(ONLY, entry.group);
        blocks::read(entry, |hash, key, value| self.table.restore(hash, key, value))
    }

    fn entries(&self) -> u64 {
        self.table.len() as u64
    }
}

/// The number of the only slice.
const ONLY: i64 = 0;

struct FrozenKeyed<K, V> {
    changed: Changed<K, V>,
    stored: Stored,
}

impl<K: Key, V: Value> Frozen for FrozenKeyed<K, V> {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        self.stored.write(run, &[], self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash_key;
    use crate::key_group::{group_of, groups_of};
    use crate::rocks::tests::Disk;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Update(String, u32),
        Freeze,
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few keys, so that they are met again; some longer than what sorting compares first.
        let key = prop_oneof!["[ab]{0,2}", "long enough to go on [ab]{1,2}"];
        let step = prop_oneof![
            8 => (key, any::<u32>()).prop_map(|(key, add)| Step::Update(key, add)),
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
            }
            disk.save(&mut state);
        }
        let restored = disk.load_copy(KeyedState::<u64, u64>::default());
        assert_eq!(restored.entries(), model.len() as u64);
        for (key, value) in &model {
            assert_eq!(restored.get(hash_key(key), key), Some(value));
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
        disk.save(&mut state);
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
