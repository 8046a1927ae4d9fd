//! `filter`: keeps the values for which a predicate holds.

use std::marker::PhantomData;
use std::mem::needs_drop;

use millstream_runtime::error::Result;
use millstream_runtime::operator::{Cursor, Stage};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{Rows, keep_behind};
use millstream_runtime::stream::Stream;

/// Keeps values in place.
#[derive(Debug)]
struct Filter<T, F> {
    predicate: F,
    types: PhantomData<fn(T)>,
}

impl<T, F: Clone> Clone for Filter<T, F> {
    fn clone(&self) -> Self {
        Filter { predicate: self.predicate.clone(), types: PhantomData }
    }
}

impl<T: Data, F: FnMut(&T) -> bool + Send + 'static> Stage for Filter<T, F> {
    type In = T;
    type Out = T;

    fn apply(&mut self, mut rows: Rows<T>, cursor: &mut Cursor) -> Result<Rows<T>> {
        // Which rows stay is often a toss-up, so nothing here branches on it: every row moves to the end of those that
        // stay, and the next one takes its place unless it stays.
        let rows_in = rows.records.len();
        let mut kept: Vec<u32> = vec![0; rows_in];
        let mut count = 0;
        for row in 0..rows_in {
            cursor.row = row;
            let keep = (self.predicate)(&rows.records[row].value);
            if needs_drop::<T>() {
                rows.records.swap(count, row);
            } else {
                // The same, with half of the writes: what needs no drop is nearly always copied.
                rows.records[count] = rows.records[row].clone();
            }
            kept[count] = row as u32;
            count += usize::from(keep);
        }
        if count == rows_in {
            return Ok(rows);
        }
        kept.truncate(count);
        rows.records.truncate(count);
        keep_behind(&mut rows.behind, &kept);
        cursor.reindex(kept);
        Ok(rows)
    }
}

/// Adds `filter` to streams.
pub trait FilterExt<T: Data> {
    /// Keeps the values for which `predicate` holds.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::filter::FilterExt;
    /// # fn example(numbers: Stream<u64>) {
    /// let even: Stream<u64> = numbers.filter(|number| number % 2 == 0);
    /// # }
    /// ```
    #[must_use]
    fn filter(self, predicate: impl FnMut(&T) -> bool + Clone + Send + 'static) -> Stream<T>;
}

impl<T: Data> FilterExt<T> for Stream<T> {
    fn filter(self, predicate: impl FnMut(&T) -> bool + Clone + Send + 'static) -> Stream<T> {
        self.stage("filter", Filter { predicate, types: PhantomData })
    }
}
