//! State of an older form becomes state of the newest, before anything runs.
//!
//! What is to be done is decided from schemas alone ([`plan`]): old and new are gone through side by side; what is equal stays,
//! and where the new one has a type with versions and the old one an older form of it, values are brought along the type's
//! chain. Anything else that differs is a reason to refuse. So the result is of the new schema by construction.
//!
//! It is done in the database that a run works in, a copy of the checkpoint's ([`migrate`]): every block of a state that
//! changes is written anew, or removed. Blocks are merged by the bytes of keys, so none may hold two forms. Workers then
//! restore as if it had always been so, and the next checkpoint is of the new form as a whole. Until then the old one stays as
//! it is: who is killed in between migrates again.
//!
//! **Keys**: a new key may belong to another key group. Its entries move there, but only between groups that have come equally far
//! ([`GroupMarks`](crate::groups::GroupMarks)): otherwise windows would be fired twice, or never. Two keys that become
//! one are an error.

mod plan;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::blocks::{Rows, each_row};
use crate::evolve::Migrations;
use crate::groups::MARKS;
use crate::key_group::{KEY_GROUPS, KeyGroup, group_of};
use crate::keyed::{self, Place};
use crate::manifest::{EntrySchemas, StateEntry};
use crate::rocks::{Next, StateDb};
use crate::schema::Schema;
use crate::snapshot::{Change, Key, Run, StoredEntry, Value};
use crate::trace::trace;
use crate::walk::{Plan, rewrite, show};
use crate::{Result, StateError, codec, hash};

use plan::StatePlan;
pub use plan::{Differences, OperatorPlan, plan};

/// One of an operator's states, as the program has it.
#[derive(Clone, Debug)]
pub struct StateForm {
    kind: String,
    entries: Option<EntryForm>,
}

#[derive(Clone, Debug)]
struct EntryForm {
    key: Schema,
    value: Schema,
    /// The key group of a key, from its bytes.
    group_of: fn(&[u8]) -> Result<KeyGroup>,
}

impl StateForm {
    /// State of which nothing but its kind is known; it can only stay as it is.
    pub fn plain(kind: impl Into<String>) -> Self {
        StateForm { kind: kind.into(), entries: None }
    }

    /// State that keeps blocks of `K` and `V`.
    pub(crate) fn of_entries<K: Key, V: Value>(kind: &str, migrations: &Migrations) -> Self {
        fn group<K: Key>(bytes: &[u8]) -> Result<KeyGroup> {
            Ok(group_of(hash::hash_key(&codec::decode::<K>(bytes)?)))
        }
        let (key, value) = (trace::<K>(migrations), trace::<V>(migrations));
        StateForm { kind: kind.into(), entries: Some(EntryForm { key, value, group_of: group::<K> }) }
    }

    /// As it stands in a manifest.
    pub fn to_entry(&self) -> StateEntry {
        let schemas = |form: &EntryForm| EntrySchemas {
            key_fingerprint: format!("{:016x}", form.key.fingerprint()),
            value_fingerprint: format!("{:016x}", form.value.fingerprint()),
            key: form.key.clone(),
            value: form.value.clone(),
        };
        StateEntry { kind: self.kind.clone(), entries: self.entries.as_ref().map(schemas) }
    }

    /// The newest version of a type in it; 0, if none has versions.
    pub fn newest_version(&self) -> u32 {
        let schemas = self.entries.iter().flat_map(|form| [&form.key, &form.value]);
        schemas.map(Schema::newest_version).max().unwrap_or(0)
    }

    /// The types whose changes are not seen: each by its name, with the reason.
    pub fn opaque(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().flat_map(|form| [&form.key, &form.value]).filter_map(Schema::opaque)
    }
}

/// How many bytes of changes are taken in at a time.
const AT_ONCE: usize = 64 << 20;

/// Brings the states of operator number `operator` to their new forms, in `db`. Returns how many entries were written.
///
/// # Errors
/// When an entry cannot be read, has no new form, or has the same key as another then. The database must not be used then.
pub fn migrate(
    db: &mut StateDb,
    operator: u32,
    plan: &OperatorPlan,
    old: &[StateEntry],
    forms: &[StateForm],
    migrations: &Migrations,
) -> Result<u64> {
    let mut entries = 0;
    let marks = old.iter().position(|state| state.kind == MARKS);
    for (state, plan) in plan.0.iter().enumerate().filter(|(_, plan)| !plan.is_empty()) {
        let (Some(old), Some(new)) = (old[state].entries.as_ref(), forms[state].entries.as_ref()) else { continue };
        let alone = forms[state].kind == keyed::KIND;
        let task = Task { operator, state: state as u8, alone, plan, old, new, migrations };
        entries += if plan.key == Plan::Same { task.values(db)? } else { task.keys(db, marks)? };
    }
    Ok(entries)
}

/// One state that changes.
struct Task<'a> {
    operator: u32,
    state: u8,
    /// Whether entries may stand alone.
    alone: bool,
    plan: &'a StatePlan,
    old: &'a EntrySchemas,
    new: &'a EntryForm,
    migrations: &'a Migrations,
}

impl Task<'_> {
    fn run(&self) -> Run {
        let mut run = Run::default();
        run.begin(self.operator);
        run.begin_state(self.state);
        run
    }

    fn place<'a>(&self, key: &'a [u8]) -> Result<Place<'a>> {
        if self.alone { Place::of(key) } else { Ok(Place::Block) }
    }

    fn rewrite(&self, what: &str, schema: &Schema, plan: &Plan, key: &[u8], bytes: &[u8]) -> Result<Vec<u8>> {
        let named = |error: StateError| StateError::Codec {
            what: format!("{what} {}", show(&self.old.key, key)),
            reason: error.to_string(),
        };
        rewrite(schema, plan, self.migrations, bytes).map_err(named)
    }

    fn value(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        self.rewrite("the value of key", &self.old.value, &self.plan.value, key, value)
    }

    /// Goes through what is stored of one of the operator's states.
    fn scan(
        &self,
        db: &StateDb,
        state: u8,
        groups: Range<u32>,
        mut each: impl FnMut(StoredEntry<'_>) -> Result<()>,
    ) -> Result<()> {
        db.walk(self.operator, groups, |stored| match stored.state == state {
            true => each(stored).map(|()| Next::Entry),
            false => Ok(Next::State),
        })
    }

    /// Only values change: every block stays where it is.
    fn values(&self, db: &mut StateDb) -> Result<u64> {
        let (mut entries, mut size, mut run) = (0, 0, self.run());
        for group in 0..KEY_GROUPS {
            self.scan(db, self.state, group..group + 1, |stored| {
                let new = match self.place(stored.key)? {
                    Place::Count => return Ok(()),
                    Place::Entry(key) => {
                        entries += 1;
                        self.value(key, stored.value)?
                    }
                    Place::Block => {
                        let mut rows = Rows::default();
                        each_row(stored.value, |key, value| {
                            entries += 1;
                            rows.push(key, &self.value(key, value)?)
                        })?;
                        rows.into_block()
                    }
                };
                size += new.len();
                run.push(stored.group, stored.key, Change::Put(&new));
                Ok(())
            })?;
            if size > AT_ONCE {
                run.sort();
                db.apply(&run)?;
                (size, run) = (0, self.run());
            }
        }
        run.sort();
        db.apply(&run)?;
        Ok(entries)
    }

    /// Keys change: entries may move to blocks of other groups.
    fn keys(&self, db: &mut StateDb, marks: Option<usize>) -> Result<u64> {
        let mut came_to: HashMap<KeyGroup, Vec<u8>> = HashMap::new();
        if let Some(marks) = marks {
            self.scan(db, marks as u8, 0..KEY_GROUPS, |stored| {
                came_to.insert(stored.group, stored.value.to_vec());
                Ok(())
            })?;
        }
        let mut entries = 0;
        let mut stored_before = BTreeSet::new();
        let mut blocks: BTreeMap<(KeyGroup, Vec<u8>), Rows> = BTreeMap::new();
        // Entries that stand alone, and how many key groups have.
        let mut alone: BTreeMap<(KeyGroup, Vec<u8>), Vec<u8>> = BTreeMap::new();
        let mut counts: BTreeMap<KeyGroup, u64> = BTreeMap::new();
        // Per slice, which old key every new one comes from.
        let mut origins: BTreeMap<Vec<u8>, HashMap<Vec<u8>, Vec<u8>>> = BTreeMap::new();
        self.scan(db, self.state, 0..KEY_GROUPS, |stored| {
            stored_before.insert((stored.group, stored.key.to_vec()));
            let place = self.place(stored.key)?;
            let slice = if place == Place::Block { stored.key } else { &[] };
            let origins = origins.entry(slice.to_vec()).or_default();
            let mut each = |old: &[u8], value: &[u8]| {
                let key = self.rewrite("key", &self.old.key, &self.plan.key, old, old)?;
                let value = self.value(old, value)?;
                let group = (self.new.group_of)(&key)?;
                if came_to.get(&group) != came_to.get(&stored.group) {
                    return Err(StateError::Codec {
                        what: format!("key {}", show(&self.old.key, old)),
                        reason: "its new form belongs to a key group that has fired other windows; go on with the old program, \
                                 stop it by Ctrl-C, and migrate the checkpoint that it leaves; if that is no better, do so on one \
                                 worker (`--workers 1`)"
                            .into(),
                    });
                }
                entries += 1;
                if place == Place::Block {
                    blocks.entry((group, stored.key.to_vec())).or_default().push(&key, &value)?;
                } else {
                    alone.insert((group, Place::key_of(&key)), value);
                    *counts.entry(group).or_default() += 1;
                }
                match origins.entry(key) {
                    Entry::Vacant(vacant) => drop(vacant.insert(old.to_vec())),
                    Entry::Occupied(other) => {
                        let key = show(&self.new.key, other.key());
                        let (one, other) = (show(&self.old.key, other.get()), show(&self.old.key, old));
                        return Err(StateError::Codec {
                            what: format!("keys {one} and {other}"),
                            reason: format!("both become {key}; two keys cannot become one"),
                        });
                    }
                }
                Ok(())
            };
            match place {
                Place::Block => each_row(stored.value, each),
                Place::Entry(key) => each(key, stored.value),
                Place::Count => Ok(()),
            }
        })?;
        alone.extend(
            counts.into_iter().map(|(group, count)| ((group, vec![keyed::COUNT]), count.to_le_bytes().to_vec())),
        );
        let mut run = self.run();
        let stays = |place: &(KeyGroup, Vec<u8>)| blocks.contains_key(place) || alone.contains_key(place);
        for (group, key) in stored_before.iter().filter(|place| !stays(place)) {
            run.push(*group, key, Change::Remove);
        }
        for ((group, key), rows) in blocks {
            run.push(group, &key, Change::Put(&rows.into_block()));
        }
        for ((group, key), value) in &alone {
            run.push(*group, key, Change::Put(value));
        }
        run.sort();
        db.apply(&run)?;
        Ok(entries)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::evolve::tests::evolves;
    use crate::groups::GroupMarks;
    use crate::key_group::groups_of;
    use crate::keyed::KeyedState;
    use crate::rocks::tests::{Disk, OPERATOR, freeze};
    use crate::slices::SliceState;
    use crate::snapshot::State;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    // Four forms of one type, each with another difference.

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct OrderV1 {
        euros: i64,
        note: String,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct OrderV2 {
        cents: i64,
        note: String,
    }

    /// As the form before, but with another meaning.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct OrderV3 {
        cents: i64,
        note: String,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Order {
        cents: u64,
        kind: Kind,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) enum Kind {
        Paid,
        Refund(String),
    }

    evolves!(OrderV1, 1);
    evolves!(OrderV2, 2, OrderV1, |old: OrderV1| Ok(OrderV2 { cents: old.euros * 100, note: old.note }));
    evolves!(OrderV3, 3, OrderV2, |old: OrderV2| Ok(OrderV3 { cents: old.cents + 1, note: old.note }));
    evolves!(Order, 4, OrderV3, |old: OrderV3| Ok(Order {
        cents: old.cents.unsigned_abs(),
        kind: if old.cents < 0 { Kind::Refund(old.note) } else { Kind::Paid },
    }));

    pub(super) fn knowing<T: crate::evolve::Evolve>() -> Migrations {
        let mut migrations = Migrations::default();
        migrations.add::<T>();
        migrations
    }

    // What is done, in a real database.

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct UserV1(u32);

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct User {
        name: String,
    }
    evolves!(UserV1, 1);
    evolves!(User, 2, UserV1, |old: UserV1| if old.0 == 666 {
        Err("no such user".into())
    } else {
        Ok(User { name: format!("u{}", old.0 % 1000) })
    });

    type Old = (SliceState<(UserV1, bool), OrderV1>, KeyedState<UserV1, u8>, GroupMarks);
    type New = (SliceState<(User, bool), Order>, KeyedState<User, u8>, GroupMarks);

    fn old(groups: std::ops::Range<u32>) -> Old {
        let mut old = (SliceState::default(), KeyedState::default(), GroupMarks::new(groups));
        old.track();
        old
    }

    fn new(groups: std::ops::Range<u32>) -> New {
        (SliceState::default(), KeyedState::default(), GroupMarks::new(groups))
    }

    fn migrated(disk: &mut Disk, migrations: &Migrations) -> Result<u64> {
        let none = Migrations::default();
        let was: Vec<_> = old(0..KEY_GROUPS).forms(&none).iter().map(StateForm::to_entry).collect();
        let is = new(0..KEY_GROUPS).forms(migrations);
        let plan = plan(&was, &is, false, migrations).unwrap();
        migrate(&mut disk.db, OPERATOR, &plan, &was, &is, migrations)
    }

    fn all_known() -> Migrations {
        let mut migrations = knowing::<Order>();
        migrations.add::<User>();
        migrations
    }

    fn order(euros: i64) -> OrderV1 {
        OrderV1 { euros, note: format!("note {euros}") }
    }

    fn evolved(euros: i64) -> Order {
        let cents = euros * 100 + 1;
        let kind = if cents < 0 { Kind::Refund(format!("note {euros}")) } else { Kind::Paid };
        Order { cents: cents.unsigned_abs(), kind }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// In several checkpoints, so that blocks are merged; then on any number of workers; then with further changes.
        #[test]
        fn everything_comes_back_in_its_new_form(
            changes in prop::collection::vec((-2..3i64, 0..300u32, any::<bool>(), -50..50i64, prop::bool::weighted(0.1)), 0..120),
            workers in 1..5usize,
            limit in prop::option::of(0..5_000usize),
        ) {
            let (mut disk, mut state) = (Disk::new(), old(0..KEY_GROUPS));
            // With next to no memory, entries stand alone.
            limit.into_iter().for_each(|bytes| state.limit(bytes, disk.db.stored(OPERATOR)));
            let (mut slices, mut values) = (BTreeMap::new(), BTreeMap::new());
            for (slice, user, flag, euros, save) in changes {
                let key = (UserV1(user), flag);
                state.0.load([slice]).unwrap();
                state.1.load([(hash::hash_key(&key.0), &key.0)]).unwrap();
                *state.0.update(slice, hash::hash_key(&key), &key, || order(0)) = order(euros);
                slices.insert((slice, User { name: format!("u{user}") }, flag), evolved(euros));
                *state.1.update(hash::hash_key(&key.0), &key.0, || 0) = euros as u8;
                values.insert(User { name: format!("u{user}") }, euros as u8);
                if save {
                    disk.save_limited(&mut state);
                    state.relieve();
                }
            }
            state.2.raise(7);
            if state.2.get(0) == 7 {
                disk.save_limited(&mut state);
            }
            prop_assert_eq!(migrated(&mut disk, &all_known()).unwrap(), (slices.len() + values.len()) as u64);
            let (mut found, mut kept) = (BTreeMap::new(), 0);
            for worker in 0..workers {
                let groups = groups_of(worker, workers);
                let mut state = disk.load(new(groups.clone()), groups.clone());
                for (user, value) in &values {
                    let hash = hash::hash_key(user);
                    let own = groups.contains(&u32::from(group_of(hash)));
                    prop_assert_eq!(state.1.get(hash, user), own.then_some(value));
                }
                kept += state.1.entries();
                prop_assert_eq!(state.2.bounds(), (7, 7));
                // Changes go on top of the new blocks.
                for slice in -2..3 {
                    let keys: Vec<_> = state.0.range(slice, slice + 1).map(|(_, key, _)| key.clone()).collect();
                    for key in keys.into_iter().step_by(2) {
                        state.0.update(slice, hash::hash_key(&key), &key, || evolved(0)).cents += 1_000_000;
                    }
                }
                freeze(&mut state).into_iter().for_each(|frozen| disk.write(frozen));
            }
            prop_assert_eq!(kept, values.len() as u64);
            let mut state = disk.load_copy(new(0..KEY_GROUPS));
            for slice in -2..3 {
                state.0.take(slice, |key, mut order| {
                    order.cents %= 1_000_000;
                    assert!(found.insert((slice, key.0, key.1), order).is_none());
                });
            }
            prop_assert_eq!(found, slices);
        }
    }

    fn with_users(users: &[u32], marks: &[(usize, i64)]) -> Disk {
        let mut disk = Disk::new();
        for (worker, mark) in marks {
            let mut state = old(groups_of(*worker, marks.len()));
            state.2.raise(*mark);
            for key in users.iter().map(|user| (UserV1(*user), true)) {
                let hash = hash::hash_key(&key);
                if groups_of(*worker, marks.len()).contains(&u32::from(group_of(hash))) {
                    *state.0.update(5, hash, &key, || order(1)) = order(2);
                }
            }
            disk.save(&mut state);
        }
        disk
    }

    #[test]
    fn keys_that_become_one_are_named() {
        let mut disk = with_users(&[7, 2007], &[(0, 1)]);
        let error = migrated(&mut disk, &all_known()).unwrap_err().to_string();
        let (one, other) = ("(UserV1(7), true)", "(UserV1(2007), true)");
        let (one, other) = (one.replace("UserV1", ""), other.replace("UserV1", ""));
        assert!(error.contains("both become (User { name: \"u7\" }, true)"), "{error}");
        let plain = error.replace(['(', ')'], "");
        assert!(
            plain.contains(&one.replace(['(', ')'], "")) && plain.contains(&other.replace(['(', ')'], "")),
            "{error}"
        );
    }

    #[test]
    fn keys_without_a_new_form_are_named() {
        let mut disk = with_users(&[1, 666], &[(0, 1)]);
        let error = migrated(&mut disk, &all_known()).unwrap_err().to_string();
        assert!(error.contains("key (666, true)") && error.contains("no such user"), "{error}");
    }

    /// Windows of the one group have been fired that the other has still to fire.
    #[test]
    fn keys_do_not_move_between_groups_that_came_to_different_windows() {
        let users: Vec<u32> = (0..50).collect();
        let error = migrated(&mut with_users(&users, &[(0, 1), (1, 2)]), &all_known()).unwrap_err().to_string();
        assert!(error.contains("has fired other windows") && error.contains("--workers 1"), "{error}");
        assert_eq!(migrated(&mut with_users(&users, &[(0, 2), (1, 2)]), &all_known()).unwrap(), 50);
    }

    #[test]
    fn large_states_are_migrated_in_several_files() {
        let (mut disk, none, all) = (Disk::new(), Migrations::default(), knowing::<Order>());
        let mut state = KeyedState::<u64, OrderV1>::default();
        state.track();
        let note = "x".repeat(50_000);
        for key in 0..3_000u64 {
            state.update(hash::hash_key(&key), &key, || OrderV1 { euros: -(key as i64), note: note.clone() });
        }
        disk.save(&mut state);
        let old: Vec<_> = state.forms(&none).iter().map(StateForm::to_entry).collect();
        let new = KeyedState::<u64, Order>::default().forms(&all);
        let plan = plan(&old, &new, false, &all).unwrap();
        assert_eq!(migrate(&mut disk.db, OPERATOR, &plan, &old, &new, &all).unwrap(), 3_000);
        let state = disk.load_copy(KeyedState::<u64, Order>::default());
        for key in 0..3_000u64 {
            let order = state.get(hash::hash_key(&key), &key).unwrap();
            assert_eq!(order.cents, (100 * key).saturating_sub(1) + u64::from(key == 0));
        }
    }
}
