//! Stateless operators, one after the other, as one.

use std::marker::PhantomData;
use std::sync::Arc;

use millstream_state::hash::hash_key;
use millstream_state::snapshot::Key;

use super::{Outbox, Task, guard};
use crate::error::{Error, Result};
use crate::operator::{Cursor, Divider, Side, Stage};
use crate::poison::{Blame, SplitName, record_of};
use crate::record::{Data, Record};
use crate::rows::{AnyRows, BehindWalk, BroadcastRows, KeyedRecord, KeyedRows, Lineage, Rows, downcast};
use crate::shared::add;

pub(crate) trait StatelessFactory: Send {
    fn build(&self, task: &Task) -> Box<dyn Link>;
}

/// One link of a chain: a typed operator behind an untyped face.
pub(crate) trait Link {
    /// The last link of a chain may write to both outputs; the others write to the first.
    fn run(&mut self, rows: Box<dyn AnyRows>, cursor: &mut Cursor, out: &mut Outbox) -> Result<()>;
}

/// A chain of stateless operators on one worker.
pub(crate) struct StatelessLogic {
    links: Vec<(Task, Box<dyn Link>)>,
}

impl StatelessLogic {
    pub(crate) fn new(links: Vec<(Task, Box<dyn Link>)>) -> Self {
        StatelessLogic { links }
    }

    /// Takes in a batch that was sent at `sent_ns`; returns when the last operator was done with it. One reading of the clock
    /// ends the time of one operator and begins that of the next.
    pub(crate) fn apply(&mut self, rows: Box<dyn AnyRows>, sent_ns: u64, out: &mut Outbox) -> Result<u64> {
        let mut cursor = Cursor::default();
        let mut now_ns = self.links[0].0.shared.probe.now_ns();
        self.links[0].0.stats().queue.record(now_ns.saturating_sub(sent_ns), 1);
        let mut rows = Some(rows);
        let last = self.links.len() - 1;
        for (number, (task, link)) in self.links.iter_mut().enumerate() {
            let Some(input) = rows.take() else { break };
            let stats = task.stats();
            add(&stats.records_in, input.len() as u64);
            cursor.row = 0;
            let mut made: Outbox = Vec::new();
            let at = &mut cursor;
            guard(&task.name, || link.run(input, at, &mut made))
                .map_err(|error| blame(error, cursor.lineage.as_ref(), cursor.row, &task.splits))?;
            let count: usize = made.iter().map(|(_, rows)| rows.len()).sum();
            add(&stats.records_out, count as u64);
            let done_ns = task.shared.probe.now_ns();
            add(&stats.busy_ns, done_ns - now_ns);
            now_ns = done_ns;
            if number == last {
                out.extend(made);
            } else {
                rows = made.pop().map(|(_, rows)| rows).filter(|rows| rows.len() > 0);
            }
        }
        Ok(now_ns)
    }
}

/// Says which record a row of a batch is.
pub(super) fn blame(error: Error, lineage: Option<&Lineage>, row: usize, splits: &[SplitName]) -> Error {
    match lineage {
        Some(lineage) => {
            let (split, number) = (splits.get(lineage.split as usize), lineage.number(row));
            let name = split.map_or("?", |name| &name.split);
            let place = format!("record {} of split `{name}`", number + 1);
            error.blaming(place, record_of(split, number))
        }
        None => {
            let place = format!("result {} of a batch of results", row + 1);
            error.blaming(
                place,
                Blame::Nobody("it failed on a result of an operator with state, made from many records"),
            )
        }
    }
}

/// Takes the lineage out of a batch for the time that stages work on it.
fn lend<T>(rows: &mut Rows<T>, cursor: &mut Cursor) {
    if let Some(lineage) = rows.lineage.take() {
        cursor.lineage = Some(lineage);
    }
}

/// One in, one out.
pub(crate) struct Plain<S>(pub S);

struct PlainLink<S>(S);

impl<S: Stage + Clone> StatelessFactory for Plain<S> {
    fn build(&self, _task: &Task) -> Box<dyn Link> {
        Box::new(PlainLink(self.0.clone()))
    }
}

impl<S: Stage> Link for PlainLink<S> {
    fn run(&mut self, rows: Box<dyn AnyRows>, cursor: &mut Cursor, out: &mut Outbox) -> Result<()> {
        let mut rows = *downcast::<Rows<S::In>>(rows);
        lend(&mut rows, cursor);
        let mut made = self.0.apply(rows, cursor)?;
        made.lineage.clone_from(&cursor.lineage);
        out.push((0, Box::new(made)));
        Ok(())
    }
}

/// One in, two out.
pub(crate) struct Division<D>(pub D);

struct DivisionLink<D> {
    divider: D,
    connected: [bool; 2],
}

impl<D: Divider + Clone> StatelessFactory for Division<D> {
    fn build(&self, task: &Task) -> Box<dyn Link> {
        Box::new(DivisionLink { divider: self.0.clone(), connected: task.connected })
    }
}

impl<D: Divider> Link for DivisionLink<D> {
    fn run(&mut self, rows: Box<dyn AnyRows>, cursor: &mut Cursor, out: &mut Outbox) -> Result<()> {
        let mut rows = *downcast::<Rows<D::In>>(rows);
        lend(&mut rows, cursor);
        let (mut main, mut side) = (Rows::default(), Rows::default());
        let (mut main_index, mut side_index) = (Vec::new(), Vec::new());
        let mut behind = BehindWalk::new(&rows.behind);
        let number = |lineage: &Option<Lineage>, row: usize| {
            lineage.as_ref().map_or(0, |lineage| (lineage.number(row) - lineage.first) as u32)
        };
        for (row, record) in rows.records.into_iter().enumerate() {
            cursor.row = row;
            let behind = behind.at(row);
            match self.divider.divide(record.value) {
                Side::Main(value) => {
                    main.push(record.at, value, behind);
                    main_index.push(number(&cursor.lineage, row));
                }
                Side::Side(value) => {
                    side.push(record.at, value, behind);
                    side_index.push(number(&cursor.lineage, row));
                }
            }
        }
        let lineage = |index| cursor.lineage.as_ref().map(|l| Lineage { split: l.split, first: l.first, index });
        main.lineage = lineage(main_index);
        side.lineage = lineage(side_index);
        if self.connected[0] && !main.records.is_empty() {
            out.push((0, Box::new(main)));
        }
        if self.connected[1] && !side.records.is_empty() {
            out.push((1, Box::new(side)));
        }
        Ok(())
    }
}

/// Records get their keys, and their hashes.
pub(crate) struct Keying<K, T, F> {
    key: F,
    types: PhantomData<fn(&T) -> K>,
}

impl<K, T, F: Fn(&T) -> K> Keying<K, T, F> {
    pub(crate) fn new(key: F) -> Self {
        Keying { key, types: PhantomData }
    }
}

/// The place of its split and the number of each of the first `rows` rows, (0, 0) for results; nothing, where these are not wanted.
fn positions_of(cursor: &Cursor, places: &Places, rows: usize) -> Vec<(u32, u64)> {
    let Some(splits) = places else { return Vec::new() };
    let Some(lineage) = &cursor.lineage else { return vec![(0, 0); rows] };
    let place = splits.get(lineage.split as usize).map_or(lineage.split, |split| split.place);
    (0..rows).map(|row| (place, lineage.number(row))).collect()
}

/// All splits, where records must carry their positions.
type Places = Option<Arc<Vec<SplitName>>>;

fn places(task: &Task) -> Places {
    task.positions.then(|| Arc::clone(&task.splits))
}

struct KeyingLink<K, T, F> {
    key: F,
    places: Places,
    types: PhantomData<fn(&T) -> K>,
}

impl<K: Key, T: Data, F: Fn(&T) -> K + Clone + Send + 'static> StatelessFactory for Keying<K, T, F> {
    fn build(&self, task: &Task) -> Box<dyn Link> {
        Box::new(KeyingLink { key: self.key.clone(), places: places(task), types: PhantomData })
    }
}

impl<K: Key, T: Data, F: Fn(&T) -> K> Link for KeyingLink<K, T, F> {
    fn run(&mut self, rows: Box<dyn AnyRows>, cursor: &mut Cursor, out: &mut Outbox) -> Result<()> {
        let mut rows = *downcast::<Rows<T>>(rows);
        lend(&mut rows, cursor);
        let positions = positions_of(cursor, &self.places, rows.records.len());
        let keyed = rows.records.into_iter().enumerate().map(|(row, record)| {
            cursor.row = row;
            let key = (self.key)(&record.value);
            KeyedRecord { hash: hash_key(&key), at: record.at, key, value: record.value }
        });
        let records = keyed.collect();
        out.push((0, Box::new(KeyedRows { records, behind: rows.behind, positions })));
        Ok(())
    }
}

/// Records with keys get another value each.
pub(crate) struct Wrapping<K, T, O> {
    wrap: fn(T) -> O,
    types: PhantomData<fn(K)>,
}

impl<K, T, O> Wrapping<K, T, O> {
    pub(crate) fn new(wrap: fn(T) -> O) -> Self {
        Wrapping { wrap, types: PhantomData }
    }
}

impl<K: Key, T: Data, O: Data> StatelessFactory for Wrapping<K, T, O> {
    fn build(&self, _task: &Task) -> Box<dyn Link> {
        Box::new(Wrapping::<K, T, O>::new(self.wrap))
    }
}

impl<K: Key, T: Data, O: Data> Link for Wrapping<K, T, O> {
    fn run(&mut self, rows: Box<dyn AnyRows>, _: &mut Cursor, out: &mut Outbox) -> Result<()> {
        let KeyedRows { records, behind, positions } = *downcast::<KeyedRows<K, T>>(rows);
        let wrap = |record: KeyedRecord<K, T>| KeyedRecord {
            hash: record.hash,
            at: record.at,
            key: record.key,
            value: (self.wrap)(record.value),
        };
        let records = records.into_iter().map(wrap).collect();
        out.push((0, Box::new(KeyedRows { records, behind, positions })));
        Ok(())
    }
}

/// Records become such that every worker gets.
pub(crate) struct Broadcasting<T, O> {
    wrap: fn(T) -> O,
    places: Places,
    workers: usize,
}

impl<T, O> Broadcasting<T, O> {
    pub(crate) fn new(wrap: fn(T) -> O) -> Self {
        Broadcasting { wrap, places: None, workers: 1 }
    }
}

impl<T: Data, O: Data> StatelessFactory for Broadcasting<T, O> {
    fn build(&self, task: &Task) -> Box<dyn Link> {
        Box::new(Broadcasting { wrap: self.wrap, places: places(task), workers: task.workers })
    }
}

impl<T: Data, O: Data> Link for Broadcasting<T, O> {
    fn run(&mut self, rows: Box<dyn AnyRows>, cursor: &mut Cursor, out: &mut Outbox) -> Result<()> {
        let mut rows = *downcast::<Rows<T>>(rows);
        lend(&mut rows, cursor);
        let positions = positions_of(cursor, &self.places, rows.records.len());
        let wrap =
            |record: Record<T>| KeyedRecord { hash: 0, at: record.at, key: (), value: (self.wrap)(record.value) };
        let records = rows.records.into_iter().map(wrap).collect();
        let rows = KeyedRows { records, behind: rows.behind, positions };
        out.push((0, Box::new(BroadcastRows::new(rows, self.workers))));
        Ok(())
    }
}
