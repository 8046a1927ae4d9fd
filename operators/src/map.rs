//! `map`: one value out for every value in.

use std::marker::PhantomData;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Cursor, Stage};
use millstream_runtime::record::{Data, Record};
use millstream_runtime::rows::Rows;
use millstream_runtime::stream::Stream;

/// Applies a function to every value; the event time stays.
#[derive(Debug)]
struct Map<T, U, F> {
    function: F,
    types: PhantomData<fn(T) -> U>,
}

impl<T, U, F: Clone> Clone for Map<T, U, F> {
    fn clone(&self) -> Self {
        Map { function: self.function.clone(), types: PhantomData }
    }
}

impl<T: Data, U: Data, F: FnMut(T) -> Result<U> + Send + 'static> Stage for Map<T, U, F> {
    type In = T;
    type Out = U;

    fn apply(&mut self, rows: Rows<T>, cursor: &mut Cursor) -> Result<Rows<U>> {
        cursor.row = usize::MAX;
        let records = rows.records.into_iter().map(|record| {
            cursor.row = cursor.row.wrapping_add(1);
            Ok(Record { at: record.at, value: (self.function)(record.value)? })
        });
        Ok(Rows { records: records.collect::<Result<_>>()?, behind: rows.behind, lineage: None })
    }
}

/// Adds `map` and `try_map` to streams.
pub trait MapExt<T: Data> {
    /// One value out for every value in, at the same event time.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::map::MapExt;
    /// # fn example(words: Stream<String>) {
    /// let lengths: Stream<usize> = words.map(|word| word.len());
    /// # }
    /// ```
    #[must_use]
    fn map<U: Data>(self, function: impl FnMut(T) -> U + Clone + Send + 'static) -> Stream<U>;

    /// As `map`, with a function that can fail; an error fails the job, naming the operator and the record.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::map::MapExt;
    /// # fn example(words: Stream<String>) {
    /// let numbers: Stream<u64> = words.try_map(|word| word.parse());
    /// # }
    /// ```
    #[must_use]
    fn try_map<U, E>(self, function: impl FnMut(T) -> Result<U, E> + Clone + Send + 'static) -> Stream<U>
    where
        U: Data,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static;
}

impl<T: Data> MapExt<T> for Stream<T> {
    fn map<U: Data>(self, mut function: impl FnMut(T) -> U + Clone + Send + 'static) -> Stream<U> {
        self.stage("map", Map { function: move |value| Ok(function(value)), types: PhantomData })
    }

    fn try_map<U, E>(self, mut function: impl FnMut(T) -> Result<U, E> + Clone + Send + 'static) -> Stream<U>
    where
        U: Data,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let function = move |value| function(value).map_err(|error| Error::user("the function failed").because(error));
        self.stage("map", Map { function, types: PhantomData })
    }
}
