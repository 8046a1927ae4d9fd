//! What one operator's state hands over for one checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::evolve::Migrations;
use crate::key_group::{KeyGroup, group_of};
use crate::migrate::StateForm;
use crate::reader::Reader;
use crate::rocks::Stored;
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
    /// How many states it is, for operators that have several (see the implementation for tuples).
    fn states(&self) -> u8 {
        1
    }

    /// Which of them every worker keeps as a whole, so that its entries are [restored](Self::restore) from all key groups; see
    /// [`replicated`](crate::replicated).
    fn replicated(&self) -> Option<u8> {
        None
    }

    /// The form of this state in words, such as `slices of (u64, i64) by alloc::string::String`; a checkpoint whose
    /// state has another form is refused.
    fn shape(&self) -> String;

    /// What reads stored entries of this state without restoring it: one reader, or one for each of several states in order.
    /// Without it entries can only be counted and measured.
    fn readers(&self) -> Vec<Reader> {
        vec![Reader::opaque()]
    }

    /// The same of every state in it, with the schemas of keys and values, in which types that `migrations` knows have their
    /// versions. State that does not say so is known by its [`shape`](Self::shape), and cannot be migrated.
    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        let _ = migrations;
        vec![StateForm::plain(self.shape())]
    }

    /// Starts to keep account of what changes; without it the state is never frozen. Called of empty state.
    fn track(&mut self);

    /// Fixes what changed since the last freeze, so that it can be written elsewhere while work goes on here. Copies next to
    /// nothing: that is left to [`copy_some`](Self::copy_some), and to changes, which copy what was there first. The
    /// freeze before must be done.
    fn begin_freeze(&mut self);

    /// Goes on with a freeze, until all is copied (`true`) or `most` entries were looked at; `most` becomes what is left of it.
    fn copy_some(&mut self, most: &mut usize) -> bool;

    /// Ends a freeze of which all is copied. Nothing, if nothing had changed.
    fn take_frozen(&mut self) -> Option<Box<dyn Frozen>>;

    /// Puts back one entry that an earlier [`Frozen`] wrote.
    ///
    /// # Errors
    /// When the bytes are not an entry of this state.
    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()>;

    /// Called once, when all that there was has been [restored](Self::restore).
    fn restored(&mut self) {}

    /// How many entries are kept now.
    fn entries(&self) -> u64;

    /// Lets it have only so many bytes of memory, about, and read back from `stored` what it has let go. Called of empty state, after
    /// [`track`](Self::track). State that does not know how keeps everything in memory.
    fn limit(&mut self, _bytes: usize, _stored: Stored) {}

    /// Whether it wants [`restore`](Self::restore) to be called with this entry, and with the others of this group and state
    /// behind it.
    fn wants(&self, _entry: &StoredEntry<'_>) -> bool {
        true
    }

    /// How many bytes of memory it takes, about.
    fn bytes(&self) -> usize;

    /// Lets go of what it can if it takes more memory than it may; whether it needs a checkpoint before it can let go of more.
    /// Called between batches.
    fn relieve(&mut self) -> Pressure {
        Pressure::None
    }
}

/// How badly state needs a checkpoint, because only what is stored can leave memory. In order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Not at all.
    #[default]
    None,
    /// Soon.
    Soon,
    /// It takes more than it should until then: nothing more should come in.
    Over,
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

/// How an operator has more than one state: a tuple of them, numbered in order. One of them may be a tuple itself.
macro_rules! tuple_of_states {
    ($($state:ident $number:tt),*) => {
        impl<$($state: State),*> State for ($($state,)*) {
            fn states(&self) -> u8 {
                0 $(+ self.$number.states())*
            }
            fn replicated(&self) -> Option<u8> {
                let mut first = 0;
                $(
                    if let Some(number) = self.$number.replicated() {
                        return Some(first + number);
                    }
                    first += self.$number.states();
                )*
                let _ = first;
                None
            }
            fn shape(&self) -> String {
                [$(self.$number.shape()),*].join(" and ")
            }
            fn readers(&self) -> Vec<Reader> {
                [$(self.$number.readers()),*].concat()
            }
            fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
                [$(self.$number.forms(migrations)),*].concat()
            }
            fn track(&mut self) {
                $(self.$number.track();)*
            }
            fn begin_freeze(&mut self) {
                $(self.$number.begin_freeze();)*
            }
            fn copy_some(&mut self, most: &mut usize) -> bool {
                true $(&& self.$number.copy_some(most))*
            }
            fn take_frozen(&mut self) -> Option<Box<dyn Frozen>> {
                let mut first = 0;
                let parts: Vec<_> = [$((self.$number.states(), self.$number.take_frozen())),*]
                    .into_iter()
                    .filter_map(|(states, frozen)| {
                        let number = first;
                        first += states;
                        Some((number, frozen?))
                    })
                    .collect();
                (!parts.is_empty()).then(|| Box::new(FrozenParts(parts)) as Box<dyn Frozen>)
            }
            fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
                let mut state = entry.state;
                $(
                    let states = self.$number.states();
                    if state < states {
                        return self.$number.restore(StoredEntry { state, ..entry });
                    }
                    state -= states;
                )*
                let _ = state;
                Err(StateError::Codec {
                    what: "a stored entry".into(),
                    reason: format!("it belongs to state number {}, which this operator does not have", entry.state),
                })
            }
            fn restored(&mut self) {
                $(self.$number.restored();)*
            }
            fn entries(&self) -> u64 {
                0 $(+ self.$number.entries())*
            }
            fn limit(&mut self, bytes: usize, stored: Stored) {
                // Which of them will be large nobody knows; the others hardly count.
                let mut first = 0;
                $(
                    self.$number.limit(bytes, stored.of_state(first));
                    first += self.$number.states();
                )*
                let _ = first;
            }
            fn wants(&self, entry: &StoredEntry<'_>) -> bool {
                let mut state = entry.state;
                $(
                    let states = self.$number.states();
                    if state < states {
                        return self.$number.wants(&StoredEntry { state, ..*entry });
                    }
                    state -= states;
                )*
                let _ = state;
                true
            }
            fn bytes(&self) -> usize {
                0 $(+ self.$number.bytes())*
            }
            fn relieve(&mut self) -> Pressure {
                [$(self.$number.relieve()),*].into_iter().max().unwrap_or_default()
            }
        }
    };
}
tuple_of_states!(A 0, B 1);
tuple_of_states!(A 0, B 1, C 2);
tuple_of_states!(A 0, B 1, C 2, D 3);

struct FrozenParts(Vec<(u8, Box<dyn Frozen>)>);

impl Frozen for FrozenParts {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        let first = run.state;
        for (number, frozen) in self.0 {
            run.state = first + number;
            frozen.encode(run)?;
        }
        run.state = first;
        Ok(())
    }
}

/// The changes of one epoch as bytes, on their way into one sorted file.
///
/// A stored key is the operator's number (4 bytes, big-endian), the key group (2 bytes), the number of the state (1 byte)
/// and the state's own key, so that a worker finds all it owns of one operator in one range.
#[derive(Debug, Default)]
pub struct Run {
    /// Keys and values, one after another.
    bytes: Vec<u8>,
    entries: Vec<Item>,
    operator: u32,
    state: u8,
    when_applied: Vec<(Arc<AtomicU64>, u64)>,
}

/// Where in the bytes an entry stands.
#[derive(Debug)]
struct Item {
    key: usize,
    value: usize,
    end: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Put,
    Merge,
    Remove,
}

/// What becomes of a stored entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Its value is this from now on.
    Put(&'a [u8]),
    /// Its value, a block, is merged with this block. For an entry that is stored.
    Merge(&'a [u8]),
    /// It is removed.
    Remove,
}

/// The bytes in front of a state's own key.
pub(crate) fn prefix(operator: u32, group: KeyGroup, state: u8) -> [u8; 7] {
    let ([a, b, c, d], [e, f]) = (operator.to_be_bytes(), group.to_be_bytes());
    [a, b, c, d, e, f, state]
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

    /// How many bytes keys and values have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the change of an entry, which is known by its key behind operator, group and state.
    pub fn push(&mut self, group: KeyGroup, key: &[u8], change: Change<'_>) {
        let (kind, value) = match change {
            Change::Put(value) => (Kind::Put, value),
            Change::Merge(value) => (Kind::Merge, value),
            Change::Remove => (Kind::Remove, &[][..]),
        };
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&prefix(self.operator, group, self.state));
        self.bytes.extend_from_slice(key);
        let middle = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.entries.push(Item { key: start, value: middle, end: self.bytes.len(), kind });
    }

    /// Adds an entry whose key and value are written by these functions.
    ///
    /// # Errors
    /// Theirs.
    pub(crate) fn put(
        &mut self,
        group: KeyGroup,
        key: impl FnOnce(&mut Vec<u8>) -> Result<()>,
        value: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&prefix(self.operator, group, self.state));
        key(&mut self.bytes)?;
        let middle = self.bytes.len();
        value(&mut self.bytes)?;
        self.entries.push(Item { key: start, value: middle, end: self.bytes.len(), kind: Kind::Put });
        Ok(())
    }

    /// Stores `number` when the database has taken the run in, so that whoever waits for that can see it.
    pub(crate) fn when_applied(&mut self, to: Arc<AtomicU64>, number: u64) {
        self.when_applied.push((to, number));
    }

    /// The database has taken it in.
    pub(crate) fn applied(&self) {
        self.when_applied.iter().for_each(|(to, number)| to.store(*number, Ordering::SeqCst));
    }

    /// Removes an entry that is stored under this whole key, as it stands in the database.
    pub(crate) fn remove_stored(&mut self, key: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let end = self.bytes.len();
        self.entries.push(Item { key: start, value: end, end, kind: Kind::Remove });
    }

    /// Sorts the entries by key, as an SST file wants them.
    pub fn sort(&mut self) {
        let bytes = &self.bytes;
        self.entries.sort_unstable_by(|a, b| bytes[a.key..a.value].cmp(&bytes[b.key..b.value]));
    }

    /// Every entry's key and change.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Change<'_>)> {
        self.entries.iter().map(|item| {
            let value = &self.bytes[item.value..item.end];
            let change = match item.kind {
                Kind::Put => Change::Put(value),
                Kind::Merge => Change::Merge(value),
                Kind::Remove => Change::Remove,
            };
            (&self.bytes[item.key..item.value], change)
        })
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
            let change = |value: &Option<Vec<u8>>| value.clone().map_or((b'r', Vec::new()), |value| (b'p', value));
            let mut run = Run::default();
            for ((second, group, key), value) in shuffled {
                run.begin(1 + u32::from(*second));
                run.push(*group, key, value.as_ref().map_or(Change::Remove, |value| Change::Put(value)));
            }
            run.sort();
            let expected = entries.iter().map(|((second, group, key), value)| {
                let mut bytes = (1 + u32::from(*second)).to_be_bytes().to_vec();
                bytes.extend_from_slice(&group.to_be_bytes());
                bytes.push(0);
                bytes.extend_from_slice(key);
                (bytes, change(value))
            });
            let kind = |change| match change {
                Change::Put(value) => (b'p', value.to_vec()),
                Change::Merge(value) => (b'm', value.to_vec()),
                Change::Remove => (b'r', Vec::new()),
            };
            let found: Vec<_> = run.iter().map(|(key, change)| (key.to_vec(), kind(change))).collect();
            prop_assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }
    }

    /// With a tuple in it.
    type Three = (KeyedState<u64, String>, (SliceState<u64, u64>, GroupMarks));

    fn three() -> Three {
        let mut three = (KeyedState::default(), (SliceState::default(), GroupMarks::new(0..KEY_GROUPS)));
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
                        *state.1.0.update(number, hash_key(&key), &key, || 0) += 1;
                        *model.1.entry((number, key)).or_insert(0) += 1;
                    }
                    2 => {
                        state.1.0.take(number, |_, _| ());
                        model.1.retain(|(slice, _), _| *slice != number);
                    }
                    3 => {
                        state.1.1.raise(number);
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
            let (keyed, (mut slices, marks)) = disk.load_copy(three());
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
