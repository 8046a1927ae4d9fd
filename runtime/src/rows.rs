//! Batches of records between operators.
//!
//! Event time travels in the records; what few records have stands beside them: the watermark that a late record met,
//! and where in its split a record came from.

use std::any::{Any, TypeId};

use millstream_state::key_group::{group_of, worker_of};
use millstream_state::snapshot::Key;

use crate::record::{Data, Record};
use crate::time::EventTime;

/// The watermark of its split that a record was behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Which row of the batch.
    pub row: u32,
    /// The watermark of the record's own split at the record's position.
    pub watermark: EventTime,
}

/// Where a batch comes from: every row is a record of one split, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The split, numbered over all sources of the job.
    pub split: u32,
    /// The number, in its split, of the first record of the batch as the source made it.
    pub first: u64,
    /// The number of each row, counted from `first`; empty when row `i` is number `i`.
    pub index: Vec<u32>,
}

impl Lineage {
    /// The number, in its split, of the record from which `row` comes.
    #[inline]
    pub fn number(&self, row: usize) -> u64 {
        self.first + self.index.get(row).map_or(row as u64, |number| u64::from(*number))
    }
}

/// A batch of records.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    /// The records.
    pub records: Vec<Record<T>>,
    /// Those that are behind their split's watermark, in order of rows.
    pub behind: Vec<Behind>,
    /// Where they come from; `None` for results of windows.
    pub lineage: Option<Lineage>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Rows { records: Vec::new(), behind: Vec::new(), lineage: None }
    }
}

impl<T> Rows<T> {
    /// Appends a record.
    #[inline]
    pub fn push(&mut self, at: EventTime, value: T, behind: Option<EventTime>) {
        if let Some(watermark) = behind {
            self.behind.push(Behind { row: self.records.len() as u32, watermark });
        }
        self.records.push(Record { at, value });
    }
}

/// Walks along [`Rows::behind`] while rows are visited in order.
#[derive(Debug)]
pub struct BehindWalk<'a> {
    rest: &'a [Behind],
}

impl<'a> BehindWalk<'a> {
    /// Starts before the first row.
    pub fn new(behind: &'a [Behind]) -> Self {
        BehindWalk { rest: behind }
    }

    /// Those of the rows before `row` that are behind and have not been asked for.
    #[inline]
    pub fn rows_before(&self, row: usize) -> impl Iterator<Item = usize> + use<'a> {
        self.rest.iter().map(|behind| behind.row as usize).take_while(move |behind| *behind < row)
    }

    /// The watermark that `row` is behind, if it is. Rows must be asked in order, each once; those that are not behind need not be.
    #[inline]
    pub fn at(&mut self, row: usize) -> Option<EventTime> {
        match self.rest.first() {
            Some(behind) if behind.row as usize == row => {
                self.rest = &self.rest[1..];
                Some(behind.watermark)
            }
            _ => None,
        }
    }
}

/// A record with its key.
#[derive(Clone, Debug)]
pub struct KeyedRecord<K, T> {
    /// The hash of the key, taken once.
    pub hash: u64,
    /// When it happened.
    pub at: EventTime,
    /// The key.
    pub key: K,
    /// What happened.
    pub value: T,
}

/// A batch of records with their keys.
#[derive(Clone, Debug)]
pub struct KeyedRows<K, T> {
    /// The records.
    pub records: Vec<KeyedRecord<K, T>>,
    /// Those that are behind their split's watermark, in order of rows.
    pub behind: Vec<Behind>,
    /// Split and number of each record, (0, 0) for results; empty unless an operator of the job asks for it, or the job may
    /// set records aside.
    pub positions: Vec<(u32, u64)>,
}

impl<K, T> Default for KeyedRows<K, T> {
    fn default() -> Self {
        KeyedRows { records: Vec::new(), behind: Vec::new(), positions: Vec::new() }
    }
}

impl<K, T> KeyedRows<K, T> {
    /// Appends a record that is not behind and has no position.
    #[inline]
    pub fn push(&mut self, hash: u64, at: EventTime, key: K, value: T) {
        self.records.push(KeyedRecord { hash, at, key, value });
    }

    /// Keeps the rows with these numbers, which are in order.
    pub fn keep(&mut self, kept: &[u32]) {
        if kept.len() == self.records.len() {
            return;
        }
        for (new, old) in kept.iter().enumerate() {
            self.records.swap(new, *old as usize);
            if !self.positions.is_empty() {
                self.positions.swap(new, *old as usize);
            }
        }
        self.records.truncate(kept.len());
        self.positions.truncate(kept.len());
        keep_behind(&mut self.behind, kept);
    }
}

/// Marks of rows of which only `kept` are left, in order.
pub fn keep_behind(behind: &mut Vec<Behind>, kept: &[u32]) {
    behind.retain_mut(|mark| {
        let new = kept.binary_search(&mark.row);
        mark.row = new.unwrap_or_default() as u32;
        new.is_ok()
    });
}

/// A batch whose type is known to the operators at both ends of its edge, and to nobody between.
pub(crate) trait AnyRows: Any + Send {
    /// How many records.
    fn len(&self) -> usize;
    /// As how many records it counts for timely, which wants what an exchange sends to be as many as what came to it.
    fn weight(&self) -> usize {
        self.len()
    }
    /// A copy, for streams with several consumers.
    fn copy(&self) -> Box<dyn AnyRows>;
    /// Deals the records out to the workers that own their keys.
    fn scatter(&mut self, into: &mut [Option<Box<dyn AnyRows>>]);
}

/// Takes the type back. A mismatch is a mistake in how the job's graph was put together.
pub(crate) fn downcast<R: AnyRows>(rows: Box<dyn AnyRows>) -> Box<R> {
    let rows: Box<dyn Any> = rows;
    match rows.downcast() {
        Ok(rows) => rows,
        Err(_) => panic!("an edge of the job carries another type than `{}`", std::any::type_name::<R>()),
    }
}

/// The type of a batch.
pub(crate) fn kind_of(rows: &dyn AnyRows) -> TypeId {
    let rows: &dyn Any = rows;
    rows.type_id()
}

/// Whether a batch is of this type.
pub(crate) fn is<R: AnyRows>(rows: &dyn AnyRows) -> bool {
    let rows: &dyn Any = rows;
    rows.is::<R>()
}

fn downcast_mut<R: AnyRows>(rows: &mut Box<dyn AnyRows>) -> &mut R {
    let rows: &mut dyn Any = rows.as_mut();
    match rows.downcast_mut() {
        Some(rows) => rows,
        None => panic!("an edge of the job carries another type than `{}`", std::any::type_name::<R>()),
    }
}

impl<T: Data> AnyRows for Rows<T> {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn copy(&self) -> Box<dyn AnyRows> {
        Box::new(self.clone())
    }

    fn scatter(&mut self, _into: &mut [Option<Box<dyn AnyRows>>]) {
        unreachable!("only records with keys are exchanged between workers");
    }
}

impl<K: Key, T: Data> AnyRows for KeyedRows<K, T> {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn copy(&self) -> Box<dyn AnyRows> {
        Box::new(self.clone())
    }

    fn scatter(&mut self, into: &mut [Option<Box<dyn AnyRows>>]) {
        self.scatter_as(into, |rows| rows, |rows| rows);
    }
}

/// A batch of records without keys that every worker gets.
#[derive(Clone)]
pub(crate) struct BroadcastRows<T> {
    pub rows: KeyedRows<(), T>,
    /// How many copies of it are still to be made: as many as there are workers, one once they are.
    pub copies: usize,
}

impl<T> BroadcastRows<T> {
    /// Not dealt out yet, to so many workers.
    pub(crate) fn new(rows: KeyedRows<(), T>, workers: usize) -> Self {
        BroadcastRows { rows, copies: workers }
    }
}

impl<T: Data> AnyRows for BroadcastRows<T> {
    fn len(&self) -> usize {
        self.rows.records.len()
    }

    fn weight(&self) -> usize {
        self.len() * self.copies
    }

    fn copy(&self) -> Box<dyn AnyRows> {
        Box::new(self.clone())
    }

    fn scatter(&mut self, into: &mut [Option<Box<dyn AnyRows>>]) {
        debug_assert_eq!(self.copies, into.len());
        let rows = std::mem::take(&mut self.rows);
        for target in into {
            let target = target.get_or_insert_with(|| Box::new(BroadcastRows::<T>::new(KeyedRows::default(), 1)));
            let BroadcastRows { rows: target, .. } = downcast_mut(target);
            let first = target.records.len() as u32;
            target.behind.extend(rows.behind.iter().map(|mark| Behind { row: first + mark.row, ..*mark }));
            target.positions.extend_from_slice(&rows.positions);
            target.records.extend_from_slice(&rows.records);
        }
    }
}

impl<K: Key, T: Data> KeyedRows<K, T> {
    /// Deals the records out, to batches that have these rows in them.
    pub(crate) fn scatter_as<R: AnyRows>(
        &mut self,
        into: &mut [Option<Box<dyn AnyRows>>],
        wrap: fn(KeyedRows<K, T>) -> R,
        unwrap: fn(&mut R) -> &mut KeyedRows<K, T>,
    ) {
        let workers = into.len();
        let mut targets: Vec<&mut KeyedRows<K, T>> = into
            .iter_mut()
            .map(|rows| unwrap(downcast_mut(rows.get_or_insert_with(|| Box::new(wrap(KeyedRows::default()))))))
            .collect();
        let mut behind = BehindWalk::new(&self.behind);
        for (row, record) in self.records.drain(..).enumerate() {
            let target = &mut *targets[worker_of(group_of(record.hash), workers)];
            if let Some(watermark) = behind.at(row) {
                target.behind.push(Behind { row: target.records.len() as u32, watermark });
            }
            if let Some(position) = self.positions.get(row) {
                target.positions.push(*position);
            }
            target.records.push(record);
        }
        self.behind.clear();
        self.positions.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timely counts what was sent and what was taken. With more copies than were counted the frontier went past batches that were on
    /// their way.
    #[test]
    fn what_is_dealt_out_counts_as_much_as_what_came() {
        for workers in [1, 2, 3, 8] {
            let mut rows = KeyedRows::default();
            for at in 0..5 {
                let at = EventTime::from_micros(at);
                rows.behind.push(Behind { row: rows.records.len() as u32, watermark: at });
                rows.positions.push((0, 7));
                rows.push(0, at, (), at);
            }
            let mut targets: Vec<Option<Box<dyn AnyRows>>> = (0..workers).map(|_| None).collect();
            for batches in 1..=2 {
                let mut batch = BroadcastRows::new(rows.clone(), workers);
                assert_eq!((batch.len(), batch.weight()), (5, 5 * workers));
                batch.scatter(&mut targets);
                assert_eq!(batch.weight(), 0);
                let weight: usize = targets.iter().flatten().map(|rows| rows.weight()).sum();
                assert_eq!(weight, 5 * workers * batches);
            }
            for target in targets.into_iter().flatten() {
                let rows = downcast::<BroadcastRows<EventTime>>(target).rows;
                assert_eq!((rows.records.len(), rows.positions.len()), (10, 10));
                assert!(rows.behind.iter().all(|mark| rows.records[mark.row as usize].at == mark.watermark));
            }
        }
    }
}
