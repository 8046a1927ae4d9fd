//! `flat_map`: any number of values out for every value in.

use std::marker::PhantomData;

use millstream_runtime::error::Result;
use millstream_runtime::operator::{Cursor, Stage};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, Rows};
use millstream_runtime::stream::Stream;

/// Applies a function that yields several values; all have the event time of the one they come from.
#[derive(Debug)]
pub(crate) struct FlatMap<T, I, F> {
    function: F,
    types: PhantomData<fn(T) -> I>,
}

impl<T, I, F> FlatMap<T, I, F> {
    pub(crate) fn new(function: F) -> Self {
        FlatMap { function, types: PhantomData }
    }
}

impl<T, I, F: Clone> Clone for FlatMap<T, I, F> {
    fn clone(&self) -> Self {
        FlatMap { function: self.function.clone(), types: PhantomData }
    }
}

impl<T, I, F> Stage for FlatMap<T, I, F>
where
    T: Data,
    I: IntoIterator<Item: Data> + 'static,
    F: FnMut(T) -> I + Send + 'static,
{
    type In = T;
    type Out = I::Item;

    fn apply(&mut self, rows: Rows<T>, cursor: &mut Cursor) -> Result<Rows<I::Item>> {
        let mut out = Rows::default();
        let mut from: Vec<u32> = Vec::new();
        let mut behind = BehindWalk::new(&rows.behind);
        for (row, record) in rows.records.into_iter().enumerate() {
            cursor.row = row;
            let behind = behind.at(row);
            for value in (self.function)(record.value) {
                out.push(record.at, value, behind);
                from.push(row as u32);
            }
        }
        cursor.reindex(from);
        Ok(out)
    }
}

/// Adds `flat_map` to streams.
pub trait FlatMapExt<T: Data> {
    /// Any number of values out for every value in, at the same event time.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::flat_map::FlatMapExt;
    /// # fn example(lines: Stream<String>) {
    /// let words: Stream<String> = lines.flat_map(|line| line.split(' ').map(String::from).collect::<Vec<_>>());
    /// # }
    /// ```
    #[must_use]
    fn flat_map<I>(self, function: impl FnMut(T) -> I + Clone + Send + 'static) -> Stream<I::Item>
    where
        I: IntoIterator<Item: Data> + 'static;
}

impl<T: Data> FlatMapExt<T> for Stream<T> {
    fn flat_map<I>(self, function: impl FnMut(T) -> I + Clone + Send + 'static) -> Stream<I::Item>
    where
        I: IntoIterator<Item: Data> + 'static,
    {
        self.stage("flat_map", FlatMap::new(function))
    }
}
