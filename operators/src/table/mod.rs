//! Tables: collections of rows by key that change, and what is computed of them incrementally.
//!
//! **Shape**: a table is made of a keyed stream of rows, of changes, or of upserts. Tables are mapped, filtered, reduced and joined to other tables. Out comes
//! a *changelog*: `(key, row, difference)`, where a positive difference says how many more of a row there are now, and a negative one how
//! many fewer. The sum of all changes is the table.
//!
//! **Time**: a change counts when it comes; no record is late for a table, except for upserts. The event time of a change of a table that was made of a stream is that
//! of the record; of what was computed, how far event time had come when the records were read that made the difference: the first instant there is, as long as it
//! had not come anywhere. What is computed is told when event time goes on or a checkpoint is taken, so a job needs watermarks or checkpoints for it.
//!
//! **Order**: what a table comes to at the end of the input, and whenever all that was read is done with, depends on the input alone. How many changes there are on the way
//! depends on which records are read together, so a replay does not compare them. Upserts are taken in order of event time, split and position.
//!
//! **State**: the rows of each table that is made of a stream, in checkpoints; and in memory alone, what differential dataflow keeps of the rows that go into
//! a reduction or a join and of those that come out of a reduction. After a restart that is made anew from the rows, and none of the changes that were
//! told before is told again. [`Job::memory`](millstream_runtime::job::Job::memory) does not limit any of it.
//!
//! **Source**: McSherry, Murray, Isaacs and Isard, *Differential dataflow* (CIDR 2013), whose crate does the work.

mod rows;
mod upsert;

use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
pub use millstream_runtime::{Delta, Row};
use millstream_state::snapshot::{Key, Value};

use crate::filter::FilterExt;
use crate::map::MapExt;
use crate::process::ProcessExt;
use rows::Rows;
use upsert::Upserts;

/// A collection of rows by key that changes; see the [module](self).
///
/// ```no_run
/// # use millstream_runtime::stream::Stream;
/// # use millstream_operators::table::{Delta, IntoTableExt};
/// # #[derive(Clone)] struct Person { id: u64, city: String }
/// # #[derive(Clone)] struct Order { person: u64, cents: i64 }
/// # fn example(people: Stream<Person>, orders: Stream<Order>) {
/// let people = people.into_table(|person| (person.id, person.city)).name("people");
/// let orders = orders.into_table(|order| (order.person, order.cents)).name("orders");
/// let by_city: Stream<Delta<String, i64>> = orders
///     .join(people)
///     .map(|_, (cents, city)| (city, cents))
///     .sum(|cents| *cents)
///     .changes();
/// # }
/// ```
#[derive(Debug)]
pub struct Table<K, V> {
    changes: Stream<Delta<K, V>>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Table { changes: self.changes.clone() }
    }
}

impl<K: Key + Row, V: Row> Table<K, V> {
    /// Names what this table was made by; see [`Stream::name`]. What was made of a stream keeps state, and should have a name.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Table { changes: self.changes.name(name) }
    }

    /// Another key and row for every row.
    #[must_use]
    pub fn map<L: Key + Row, W: Row>(self, row: impl Fn(K, V) -> (L, W) + Clone + Send + 'static) -> Table<L, W> {
        let changes = self.changes.map(move |(key, value, by)| {
            let (key, value) = row(key, value);
            (key, value, by)
        });
        Table { changes }
    }

    /// The rows for which `keep` says so.
    #[must_use]
    pub fn filter(self, keep: impl Fn(&K, &V) -> bool + Clone + Send + 'static) -> Self {
        Table { changes: self.changes.filter(move |(key, value, _)| keep(key, value)) }
    }

    /// What `logic` makes of the rows of each key, of which it sees how many there are of each, in order, whenever they have changed. It is
    /// not called for a key that has no rows; such has none here either.
    #[must_use]
    pub fn reduce<O: Row>(
        self,
        logic: impl FnMut(&K, &[(&V, i64)], &mut Vec<(O, i64)>) + Clone + Send + 'static,
    ) -> Table<K, O> {
        self.reduced("table reduce", logic)
    }

    fn reduced<O: Row>(
        self,
        kind: &'static str,
        logic: impl FnMut(&K, &[(&V, i64)], &mut Vec<(O, i64)>) + Clone + Send + 'static,
    ) -> Table<K, O> {
        Table { changes: self.keyed().reduce_changes(kind, logic) }
    }

    fn keyed(self) -> KeyedStream<K, Delta<K, V>> {
        self.changes.key_by(|(key, ..)| key.clone())
    }

    /// How many rows each key has; of a key that has none there is nothing.
    #[must_use]
    pub fn count(self) -> Table<K, i64> {
        self.reduced("table count", |_, rows, out| {
            out.push((fitting(rows.iter().map(|(_, count)| i128::from(*count))), 1))
        })
    }

    /// The sum of what `of` takes from the rows of each key that has some. One that does not fit fails the job.
    #[must_use]
    pub fn sum(self, of: impl Fn(&V) -> i64 + Clone + Send + 'static) -> Table<K, i64> {
        self.reduced("table sum", move |_, rows, out| {
            out.push((fitting(rows.iter().map(|(row, count)| i128::from(of(row)) * i128::from(*count))), 1));
        })
    }

    /// Each row once, however often it is there.
    #[must_use]
    pub fn distinct(self) -> Self {
        self.reduced("table distinct", |_, rows, out| {
            out.extend(rows.iter().filter(|(_, count)| *count > 0).map(|(row, _)| (V::clone(row), 1)));
        })
    }

    /// Every pair of a row of this table and one of `other` that have the same key.
    ///
    /// Both sides wait for each other: a change is told when event time has come to it on both, or a checkpoint is taken. A table whose rows seldom
    /// change should come of a source that may be [idle](millstream_runtime::watermark::Watermarks::idle_after): where it just stands still, the other's
    /// changes are told once a checkpoint, and in a job without checkpoints when the input has ended.
    ///
    /// # Panics
    /// When the tables belong to different jobs.
    #[must_use]
    pub fn join<W: Row>(self, other: Table<K, W>) -> Table<K, (V, W)> {
        Table { changes: self.keyed().join_changes("table join", other.keyed()) }
    }

    /// The changes of the table. A stream of changes that is added to a table which a checkpoint has already begins there: it tells what changes
    /// from then on, and not the rows that there were.
    #[must_use]
    pub fn changes(self) -> Stream<Delta<K, V>> {
        self.changes.since_start()
    }
}

fn fitting(of: impl Iterator<Item = i128>) -> i64 {
    i64::try_from(of.sum::<i128>()).unwrap_or_else(|_| panic!("a sum or count of a table does not fit into 64 bits"))
}

/// Makes tables of streams.
pub trait IntoTableExt<T: Data> {
    /// A table with a row, and its key, for every record.
    #[must_use]
    fn into_table<K: Key + Row, V: Row>(self, row: impl Fn(T) -> (K, V) + Clone + Send + 'static) -> Table<K, V>;

    /// A table to which every record is a change.
    #[must_use]
    fn changes_into_table<K: Key + Row, V: Row>(
        self,
        change: impl Fn(T) -> Delta<K, V> + Clone + Send + 'static,
    ) -> Table<K, V>;
}

impl<T: Data> IntoTableExt<T> for Stream<T> {
    fn into_table<K: Key + Row, V: Row>(self, row: impl Fn(T) -> (K, V) + Clone + Send + 'static) -> Table<K, V> {
        self.changes_into_table(move |record| {
            let (key, value) = row(record);
            (key, value, 1)
        })
    }

    fn changes_into_table<K: Key + Row, V: Row>(
        self,
        change: impl Fn(T) -> Delta<K, V> + Clone + Send + 'static,
    ) -> Table<K, V> {
        let changes = self.map(change).key_by(|(key, value, _): &Delta<K, V>| (key.clone(), value.clone()));
        Table { changes: changes.operator("table", Rows::new()).0 }
    }
}

/// Makes tables of keyed streams.
pub trait UpsertExt<K: Key + Row, T: Data> {
    /// A table with at most one row for every key: what `row` makes of the key's last record by event time, split and position; nothing, where
    /// that is `None`. Late records are left out, and counted.
    #[must_use]
    fn upserts_into_table<V: Row>(self, row: impl Fn(&T) -> Option<V> + Clone + Send + 'static) -> Table<K, V>;

    /// As [`upserts_into_table`](Self::upserts_into_table), with a stream of late records.
    #[must_use]
    fn upserts_into_table_with_late<V: Row>(
        self,
        row: impl Fn(&T) -> Option<V> + Clone + Send + 'static,
    ) -> (Table<K, V>, Stream<T>);
}

impl<K: Key + Row, T: Value> UpsertExt<K, T> for KeyedStream<K, T> {
    fn upserts_into_table<V: Row>(self, row: impl Fn(&T) -> Option<V> + Clone + Send + 'static) -> Table<K, V> {
        self.upserts_into_table_with_late(row).0
    }

    fn upserts_into_table_with_late<V: Row>(
        self,
        row: impl Fn(&T) -> Option<V> + Clone + Send + 'static,
    ) -> (Table<K, V>, Stream<T>) {
        let (changes, late) = self.process_in_order_with_late(Upserts::new(row));
        (Table { changes }, late)
    }
}
