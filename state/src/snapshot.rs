//! What one operator's state hands over for one checkpoint.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::evolve::Migrations;
use crate::key_group::{KeyGroup, group_of};
use crate::migrate::StateForm;
use crate::{Result, StateError, codec, hash};

/// What can be a key: compared, cloned, sent, and written to checkpoints.
///
/// Implemented for every such type. Keys that are equal must serialise equally, which derives ensure.
pub trait Key: Eq + Clone + Send + Serialize + DeserializeOwned + 'static {}
impl<T: Eq + Clone + Send + Serialize + DeserializeOwned + 'static> Key for T {}

/// What can be kept per key: cloned, sent, and written to checkpoints. Implemented for every such type.
pub trait Value: Clone + Send + Serialize + DeserializeOwned + 'static {}
impl<T: Clone + Send + Serialize + DeserializeOwned + 'static> Value for T {}

/// State that one driver snapshots, restores and rescales; see [`keyed`](crate::keyed) and [`slices`](crate::slices).
pub trait State: Send + 'static {
    /// The form of this state in words, such as `slices of (u64, i64) by alloc::string::String`; a checkpoint whose
    /// state has another form is refused.
    fn shape(&self) -> String;

    /// The same of every state in it, with the schemas of keys and values, in which types that `migrations` knows have their
    /// versions. State that does not say so is known by its [`shape`](Self::shape), and cannot be migrated.
    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        let _ = migrations;
        vec![StateForm::plain(self.shape())]
    }

    /// Starts to keep account of what changes; without it [`freeze`](Self::freeze) is never called.
    fn track(&mut self);

    /// What changed since the last call, copied so that it can be written elsewhere while work goes on here.
    fn freeze(&mut self) -> Option<Box<dyn Frozen>>;

    /// Puts back one entry that an earlier [`Frozen`] wrote.
    ///
    /// # Errors
    /// When the bytes are not an entry of this state.
    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()>;

    /// How many entries are kept now.
    fn entries(&self) -> u64;
}

/// An entry as it stands in the store, behind the operator's prefix.
#[derive(Debug, Clone, Copy)]
pub struct StoredEntry<'a> {
    /// The key group under which it was stored.
    pub group: KeyGroup,
    /// Which of the operator's states it belongs to, where an operator has several (see the implementation of [`State`]
    /// for tuples).
    pub state: u8,
    /// The rest of the stored key.
    pub key: &'a [u8],
    /// The stored value.
    pub value: &'a [u8],
}

impl StoredEntry<'_> {
    /// Decodes the user's key in `bytes` and hashes it, checking that it belongs to the group it was stored under: this
    /// finds a key type whose serialisation changed, and a changed hasher.
    ///
    /// # Errors
    /// When the bytes are no key, or the key of another group.
    pub fn decode_key<K: Key>(&self, bytes: &[u8]) -> Result<(u64, K)> {
        let key: K = codec::decode(bytes)?;
        let hash = hash::hash_key(&key);
        if group_of(hash) != self.group {
            return Err(StateError::Codec {
                what: format!("a key of type `{}`", std::any::type_name::<K>()),
                reason: format!("was stored in key group {} and now hashes to {}", self.group, group_of(hash)),
            });
        }
        Ok((hash, key))
    }
}

/// Changes of one state, ready to be written by another thread.
pub trait Frozen: Send {
    /// Writes the changes into `run`.
    ///
    /// # Errors
    /// When a key or value cannot be serialised.
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()>;
}

/// How an operator has more than one state: a tuple of them, numbered in order.
macro_rules! tuple_of_states {
    ($($state:ident $number:tt),*) => {
        impl<$($state: State),*> State for ($($state,)*) {
            fn shape(&self) -> String {
                [$(self.$number.shape()),*].join(" and ")
            }
            fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
                [$(self.$number.forms(migrations)),*].concat()
            }
            fn track(&mut self) {
                $(self.$number.track();)*
            }
            fn freeze(&mut self) -> Option<Box<dyn Frozen>> {
                let parts: Vec<_> = [$(($number, self.$number.freeze())),*]
                    .into_iter()
                    .filter_map(|(number, frozen)| Some((number, frozen?)))
                    .collect();
                (!parts.is_empty()).then(|| Box::new(FrozenParts(parts)) as Box<dyn Frozen>)
            }
            fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
                match entry.state {
                    $($number => self.$number.restore(entry),)*
                    other => Err(StateError::Codec {
                        what: "a stored entry".into(),
                        reason: format!("it belongs to state number {other}, which this operator does not have"),
                    }),
                }
            }
            fn entries(&self) -> u64 {
                0 $(+ self.$number.entries())*
            }
        }
    };
}
tuple_of_states!(A 0, B 1);
tuple_of_states!(A 0, B 1, C 2);

struct FrozenParts(Vec<(u8, Box<dyn Frozen>)>);

impl Frozen for FrozenParts {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        for (number, frozen) in self.0 {
            run.state = number;
            frozen.encode(run)?;
        }
        Ok(())
    }
}

/// The changes of one epoch as bytes, on their way into one sorted file.
///
/// A stored key is the operator's number (4 bytes, big-endian), the key group (2 bytes), the number of the state (1 byte)
/// and the state's own key, so that a worker finds all it owns of one operator in one range.
#[derive(Debug, Default)]
pub struct Run {
    entries: Vec<(Vec<u8>, Change)>,
    operator: u32,
    state: u8,
}

/// What becomes of a stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Its value is this from now on.
    Put(Vec<u8>),
    /// Its value, a block, is merged with this block. For an entry that is stored.
    Merge(Vec<u8>),
    /// It is removed.
    Remove,
}

impl Run {
    /// What follows belongs to the operator with this number.
    pub fn begin(&mut self, operator: u32) {
        self.operator = operator;
        self.state = 0;
    }

    /// What follows belongs to the state of this number, of the operator that was begun last.
    pub(crate) fn begin_state(&mut self, state: u8) {
        self.state = state;
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the change of an entry, which is known by its key behind operator, group and state.
    pub fn push(&mut self, group: KeyGroup, key: &[u8], change: Change) {
        let head = [&self.operator.to_be_bytes()[..], &group.to_be_bytes(), &[self.state]];
        self.entries.push(([head.concat().as_slice(), key].concat(), change));
    }

    /// Sorts the entries by key, as an SST file wants them.
    pub fn sort(&mut self) {
        self.entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    }

    /// Every entry's key and change.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Change)> {
        self.entries.iter().map(|(key, change)| (key.as_slice(), change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::GroupMarks;
    use crate::hash::hash_key;
    use crate::key_group::KEY_GROUPS;
    use crate::keyed::KeyedState;
    use crate::rocks::tests::Disk;
    use crate::slices::SliceState;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_run_is_sorted_as_its_keys_are(
            entries in prop::collection::btree_map(
                (any::<bool>(), 0..3u16, prop::collection::vec(0..3u8, 0..12)),
                prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
                0..80,
            ),
            seed in any::<u64>(),
        ) {
            let mut shuffled: Vec<_> = entries.iter().collect();
            shuffled.sort_by_key(|entry| hash_key(&(seed, &entry.0.2, entry.0.0, entry.0.1)));
            let change = |value: &Option<Vec<u8>>| value.clone().map_or(Change::Remove, Change::Put);
            let mut run = Run::default();
            for ((second, group, key), value) in shuffled {
                run.begin(1 + u32::from(*second));
                run.push(*group, key, change(value));
            }
            run.sort();
            let expected = entries.iter().map(|((second, group, key), value)| {
                let mut bytes = (1 + u32::from(*second)).to_be_bytes().to_vec();
                bytes.extend_from_slice(&group.to_be_bytes());
                bytes.push(0);
                bytes.extend_from_slice(key);
                (bytes, change(value))
            });
            let found: Vec<_> = run.iter().map(|(key, change)| (key.to_vec(), change.clone())).collect();
            prop_assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }
    }

    type Three = (KeyedState<u64, String>, SliceState<u64, u64>, GroupMarks);

    fn three() -> Three {
        let mut three = (KeyedState::default(), SliceState::default(), GroupMarks::new(0..KEY_GROUPS));
        three.track();
        three
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Each of several states of one operator comes back as itself.
        #[test]
        fn states_in_a_tuple_do_not_mix(steps in prop::collection::vec((0..6u8, 0..20u64, -5..5i64), 0..60)) {
            let mut disk = Disk::new();
            let mut state = three();
            let mut model = (BTreeMap::new(), BTreeMap::new(), i64::MIN);
            let mut saved = model.clone();
            for (what, key, number) in steps {
                match what {
                    0 => {
                        state.0.update(hash_key(&key), &key, String::new).push('x');
                        model.0.entry(key).or_insert_with(String::new).push('x');
                    }
                    1 => {
                        *state.1.update(number, hash_key(&key), &key, || 0) += 1;
                        *model.1.entry((number, key)).or_insert(0) += 1;
                    }
                    2 => {
                        state.1.take(number, |_, _| ());
                        model.1.retain(|(slice, _), _| *slice != number);
                    }
                    3 => {
                        state.2.raise(number);
                        model.2 = model.2.max(number);
                    }
                    4 => {
                        disk.save(&mut state);
                        saved = model.clone();
                    }
                    _ => {
                        state = disk.load_copy(three());
                        model = saved.clone();
                    }
                }
                prop_assert_eq!(state.entries(), (model.0.len() + model.1.len()) as u64);
            }
            let (keyed, mut slices, marks) = disk.load_copy(three());
            prop_assert_eq!(keyed.entries() + slices.entries(), (saved.0.len() + saved.1.len()) as u64);
            for (key, value) in &saved.0 {
                prop_assert_eq!(keyed.get(hash_key(key), key), Some(value));
            }
            let mut taken = BTreeMap::new();
            for number in -5..5 {
                slices.take(number, |key, value| assert!(taken.insert((number, key), value).is_none()));
            }
            prop_assert_eq!(taken, saved.1);
            prop_assert_eq!(marks.bounds(), (saved.2, saved.2));
        }
    }

    #[test]
    fn an_entry_of_a_state_that_is_not_there_is_refused() {
        let mut three = three();
        let error = three.restore(StoredEntry { group: 0, state: 3, key: &[], value: &[] }).unwrap_err();
        assert!(error.to_string().contains("state number 3"), "{error}");
        assert_eq!(three.shape().matches(" and ").count(), 2);
    }

    #[test]
    fn a_key_in_the_wrong_group_is_refused() {
        let bytes = codec::encode(&5u64).unwrap();
        let group = group_of(hash::hash_key(&5u64));
        let entry = |group| StoredEntry { group, state: 0, key: &[], value: &[] };
        assert_eq!(entry(group).decode_key::<u64>(&bytes).unwrap().1, 5);
        let error = entry(group ^ 1).decode_key::<u64>(&bytes).unwrap_err();
        assert!(error.to_string().contains("key group"), "{error}");
        assert!(entry(group).decode_key::<u64>(&bytes[..7]).is_err());
    }
}
