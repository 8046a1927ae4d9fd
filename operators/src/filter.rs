//! `filter`: keeps the values for which a predicate holds.

use std::marker::PhantomData;

use millstream_runtime::error::Result;
use millstream_runtime::operator::{Cursor, Stage};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, Rows};
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
        let before = rows.records.len();
        let mut kept: Vec<u32> = Vec::with_capacity(before);
        let mut row = 0;
        rows.records.retain(|record| {
            cursor.row = row;
            let keep = (self.predicate)(&record.value);
            if keep {
                kept.push(row as u32);
            }
            row += 1;
            keep
        });
        if kept.len() == before {
            return Ok(rows);
        }
        let mut behind = BehindWalk::new(&rows.behind);
        let mut marks = Vec::new();
        if !rows.behind.is_empty() {
            let mut kept = kept.iter().enumerate().peekable();
            for row in 0..before {
                let mark = behind.at(row);
                if let Some((new, _)) = kept.next_if(|(_, old)| **old as usize == row)
                    && let Some(watermark) = mark
                {
                    marks.push(millstream_runtime::rows::Behind { row: new as u32, watermark });
                }
            }
        }
        rows.behind = marks;
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
