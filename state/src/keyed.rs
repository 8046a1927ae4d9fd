//! One value per key.

use crate::hash::hash_key;
use crate::key_group::group_of;
use crate::snapshot::{Frozen, Key, Run, State, StoredEntry, Value};
use crate::table::Table;
use crate::{Result, codec};

/// Keyed state with one value per key, sharded by key group.
#[derive(Debug)]
pub struct KeyedState<K, V> {
    table: Table<K, V>,
    tracked: bool,
}

impl<K, V> Default for KeyedState<K, V> {
    fn default() -> Self {
        KeyedState { table: Table::default(), tracked: false }
    }
}

impl<K: Key, V: Value> KeyedState<K, V> {
    /// The value of `key`, whose hash is `hash`, to be changed; made by `create` when there is none.
    #[inline]
    pub fn update(&mut self, hash: u64, key: &K, create: impl FnOnce() -> V) -> &mut V {
        self.table.update(hash, key, create)
    }

    /// The value of `key`, whose hash is `hash`.
    pub fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.table.get(hash, key)
    }
}

impl<K: Key, V: Value> State for KeyedState<K, V> {
    fn shape(&self) -> String {
        format!("`{}` by `{}`", std::any::type_name::<V>(), std::any::type_name::<K>())
    }

    fn track(&mut self) {
        self.tracked = true;
    }

    fn freeze(&mut self) -> Option<Box<dyn Frozen>> {
        debug_assert!(self.tracked);
        let mut changed = Vec::new();
        self.table.freeze(|key, value| changed.push((key.clone(), value.clone())));
        (!changed.is_empty()).then(|| Box::new(FrozenKeyed { changed }) as Box<dyn Frozen>)
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        let (hash, key) = entry.decode_key(entry.key)?;
        self.table.restore(hash, key, codec::decode(entry.value)?);
        Ok(())
    }

    fn entries(&self) -> u64 {
        self.table.len() as u64
    }
}

struct FrozenKeyed<K, V> {
    changed: Vec<(K, V)>,
}

impl<K: Key, V: Value> Frozen for FrozenKeyed<K, V> {
    fn len(&self) -> usize {
        self.changed.len()
    }

    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        for (key, value) in &self.changed {
            let group = group_of(hash_key(key));
            run.push(group, |out| codec::encode_into(key, out), Some(|out: &mut Vec<u8>| codec::encode_into(value, out)))?;
        }
        Ok(())
    }
}
