//! A state in a checkpoint as typed keys and values.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::ops::Range;

use millstream_state::codec;
use millstream_state::key_group::{KEY_GROUPS, KeyGroup};
use millstream_state::reader::{Form, Row, TakePart, Wanted};
use millstream_state::snapshot::{Key, Value};
use serde::Serialize;

use super::CheckpointView;
use crate::driver::guard;
use crate::error::{Error, Result};
use crate::time::EventTime;

/// A state in a checkpoint, with its types.
#[derive(Debug)]
pub struct StateView<'a, K, V> {
    view: &'a CheckpointView,
    operator: usize,
    state: usize,
    /// What is wanted of every value, if that is not all.
    part: Option<TakePart>,
    types: PhantomData<fn(K, V)>,
}

/// An entry of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<K, V> {
    /// Its key.
    pub key: K,
    /// Its value.
    pub value: V,
    /// The event time that it is for, where a state is kept by window or slice.
    pub times: Option<Range<EventTime>>,
    /// Its key group.
    pub group: KeyGroup,
}

/// What became of an entry between two checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<K, V> {
    /// Its key.
    pub key: K,
    /// The event time that it is for, where a state is kept by window or slice.
    pub times: Option<Range<EventTime>>,
    /// Its value in the first checkpoint.
    pub old: Option<V>,
    /// Its value in the second.
    pub new: Option<V>,
}

impl<'a, K: Key, V: Value> StateView<'a, K, V> {
    pub(super) fn new(view: &'a CheckpointView, operator: usize, state: usize, part: Option<TakePart>) -> Self {
        StateView { view, operator, state, part, types: PhantomData }
    }

    /// The value of a key, where there is one per key.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or the state has several entries per key: windows, for example.
    pub fn get<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
    {
        let view = &self.view.operators[self.operator];
        if view.states[self.state].form != Form::Keyed {
            return Err(Error::config("it has an entry per key and window")
                .in_operator(&view.name)
                .hint("use `get_all`"));
        }
        Ok(self.get_all(key)?.pop().map(|entry| entry.value))
    }

    /// All entries of a key, in order of their time.
    ///
    /// # Errors
    /// When the checkpoint is damaged.
    pub fn get_all<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<Vec<Entry<K, V>>>
    where
        K: Borrow<Q>,
    {
        let wanted = guard(&self.view.operators[self.operator].name, || Ok(Wanted::new(key)?))?;
        self.rows(wanted.group, Some(&wanted.key))?.iter().map(|row| self.entry(row)).collect()
    }

    /// All entries, one key group after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<Entry<K, V>>> {
        let damaged = self.view.verify().err();
        let groups = if damaged.is_some() { 0..0 } else { 0..KEY_GROUPS as KeyGroup };
        let of_group = |group| match self.rows(group, None) {
            Ok(rows) => rows.iter().map(|row| self.entry(row)).collect(),
            Err(error) => vec![Err(error)],
        };
        damaged.into_iter().map(Err).chain(groups.flat_map(of_group))
    }

    /// How many entries there are.
    ///
    /// # Errors
    /// When the checkpoint is damaged.
    pub fn count(&self) -> Result<u64> {
        if self.part.is_some() {
            return self.iter().try_fold(0, |count, entry| entry.map(|_| count + 1));
        }
        self.view.entries_of(self.operator, self.state)
    }

    /// What is different in `then`, the same state in another checkpoint: `old` is what is here, `new` what is there. Values that
    /// are stored alike are the same.
    pub fn diff(&self, then: &StateView<'_, K, V>) -> impl Iterator<Item = Result<Difference<K, V>>> {
        let damaged = self.view.verify().and_then(|()| then.view.verify()).err();
        let groups = if damaged.is_some() { 0..0 } else { 0..KEY_GROUPS as KeyGroup };
        let of_group = move |group| {
            let rows = self.rows(group, None).and_then(|old| Ok((old, then.rows(group, None)?)));
            match rows {
                Ok((old, new)) => {
                    differences(old, new).into_iter().map(|(old, new)| self.difference(old, new)).collect()
                }
                Err(error) => vec![Err(error)],
            }
        };
        damaged.into_iter().map(Err).chain(groups.flat_map(of_group))
    }

    fn rows(&self, group: KeyGroup, wanted: Option<&[u8]>) -> Result<Vec<Row>> {
        let rows = self.view.rows(self.operator, group, |state| state == self.state, wanted)?;
        let Some(take) = self.part else { return Ok(rows) };
        let part = |row: Row| match take(&row.value) {
            Ok(part) => part.map(|value| Ok(Row { value, ..row })),
            Err(error) => Some(Err(error.into())),
        };
        guard(&self.view.operators[self.operator].name, || rows.into_iter().filter_map(part).collect())
    }

    fn entry(&self, row: &Row) -> Result<Entry<K, V>> {
        let view = &self.view.operators[self.operator];
        let times = self.view.readable(self.operator)?;
        guard(&view.name, || {
            Ok(Entry {
                key: codec::decode(&row.key)?,
                value: codec::decode(&row.value)?,
                times: row.slice.and_then(|slice| (times.times)(self.state, slice)),
                group: row.group,
            })
        })
    }

    fn difference(&self, old: Option<Row>, new: Option<Row>) -> Result<Difference<K, V>> {
        let entry = |row: Option<Row>| row.map(|row| self.entry(&row)).transpose();
        let (old, new) = (entry(old)?, entry(new)?);
        let (key, times) = match (&old, &new) {
            (Some(entry), _) | (None, Some(entry)) => (entry.key.clone(), entry.times.clone()),
            (None, None) => return Err(Error::internal("a difference between nothing and nothing")),
        };
        Ok(Difference { key, times, old: old.map(|entry| entry.value), new: new.map(|entry| entry.value) })
    }
}

/// What is different between two sorted lists of rows of one group.
pub(crate) fn differences(old: Vec<Row>, new: Vec<Row>) -> Vec<(Option<Row>, Option<Row>)> {
    let place = |row: &Row| (row.state, row.slice, row.key.clone());
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(new)) => place(old).cmp(&place(new)),
        };
        let old = if order.is_le() { old.next() } else { None };
        let new = if order.is_ge() { new.next() } else { None };
        let same = matches!((&old, &new), (Some(old), Some(new)) if old.value == new.value);
        if !same {
            found.push((old, new));
        }
    }
}
