//! Sources of values that the program has already: a vector, or anything that can be iterated again.
//!
//! **Units**: the position is the number of records that the split has yielded.

use std::marker::PhantomData;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::source::{Output, Read, Source, SplitReader, Waker};

/// A source of `values`, in their order.
///
/// ```
/// let words = millstream_connectors::from_vec(vec!["to", "be", "or", "not"]);
/// ```
pub fn from_vec<T: Data>(values: Vec<T>) -> VecSource<T> {
    VecSource { values, splits: 1 }
}

/// A source of what `make` iterates over. After a crash `make` is called again and what was read before is passed over,
/// so it must give the same items each time.
///
/// ```
/// let evens = millstream_connectors::from_iter(|| (0..1_000).step_by(2));
/// ```
pub fn from_iter<I, F>(make: F) -> IterSource<F>
where
    I: Iterator<Item: Data> + Send + 'static,
    F: Fn() -> I + Send + 'static,
{
    IterSource { make }
}

/// A source of values in memory; see [`from_vec`].
#[derive(Clone, Debug)]
pub struct VecSource<T> {
    values: Vec<T>,
    splits: usize,
}

impl<T: Data> VecSource<T> {
    /// Deals the values out to `splits` splits (at least 1) in turn: split `k` yields the values `k`, `k + splits` and so
    /// on, so that all move through event time at the same pace.
    #[must_use]
    pub fn splits(mut self, splits: usize) -> Self {
        self.splits = splits.max(1);
        self
    }

    fn split_name(&self, k: usize) -> String {
        format!("values {k} of {}", self.splits)
    }
}

impl<T: Data> Source for VecSource<T> {
    type Item = T;
    type Position = u64;
    type Reader = VecReader<T>;

    fn kind(&self) -> &'static str {
        "values"
    }

    fn splits(&self) -> Result<Vec<String>> {
        Ok((0..self.splits).map(|k| self.split_name(k)).collect())
    }

    fn open(&self, split: &str, from: Option<u64>, _waker: Waker) -> Result<VecReader<T>> {
        let k = (0..self.splits).find(|k| self.split_name(*k) == split);
        let k = k.ok_or_else(|| Error::internal(format!("there is no split `{split}`")))?;
        let count = self.values.len().saturating_sub(k).div_ceil(self.splits);
        let position = from.unwrap_or(0);
        let skip = usize::try_from(position)
            .ok()
            .filter(|skip| *skip <= count)
            .ok_or_else(|| too_far(split, position))?;
        let rest: Vec<T> = self.values.iter().skip(k).step_by(self.splits).skip(skip).cloned().collect();
        Ok(VecReader { rest: rest.into_iter(), position })
    }
}

fn too_far(split: &str, position: u64) -> Error {
    Error::state(format!("split `{split}` has fewer than the {position} records that were read from it"))
        .hint("give the source the same values as when the checkpoint was taken, or start fresh")
}

/// Reads one split of a [`VecSource`].
#[derive(Debug)]
pub struct VecReader<T> {
    rest: std::vec::IntoIter<T>,
    position: u64,
}

impl<T: Data> SplitReader for VecReader<T> {
    type Item = T;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<T>) -> Result<Read> {
        let n = max.min(self.rest.len());
        out.records(self.rest.by_ref().take(n));
        self.position += n as u64;
        Ok(if self.rest.len() == 0 { Read::Ended } else { Read::More })
    }

    fn position(&self) -> u64 {
        self.position
    }
}

/// A source of what can be iterated again; see [`from_iter`].
#[derive(Clone, Debug)]
pub struct IterSource<F> {
    make: F,
}

/// The name of the one split of an [`IterSource`].
const ITERATOR: &str = "iterator";

impl<I, F> Source for IterSource<F>
where
    I: Iterator<Item: Data> + Send + 'static,
    F: Fn() -> I + Send + 'static,
{
    type Item = I::Item;
    type Position = u64;
    type Reader = IterReader<I>;

    fn kind(&self) -> &'static str {
        ITERATOR
    }

    fn splits(&self) -> Result<Vec<String>> {
        Ok(vec![ITERATOR.to_string()])
    }

    fn open(&self, split: &str, from: Option<u64>, _waker: Waker) -> Result<IterReader<I>> {
        let mut rest = (self.make)();
        let position = from.unwrap_or(0);
        if let Some(last) = position.checked_sub(1) {
            let last = usize::try_from(last).map_err(|_| too_far(split, position))?;
            rest.nth(last).ok_or_else(|| too_far(split, position))?;
        }
        Ok(IterReader { rest, position, ended: false, of: PhantomData })
    }
}

/// Reads an [`IterSource`].
#[derive(Debug)]
pub struct IterReader<I: Iterator> {
    rest: I,
    position: u64,
    ended: bool,
    of: PhantomData<fn() -> I::Item>,
}

impl<I: Iterator<Item: Data> + Send + 'static> SplitReader for IterReader<I> {
    type Item = I::Item;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<I::Item>) -> Result<Read> {
        let mut n = 0;
        // An iterator that has ended need not stay so.
        if !self.ended {
            out.records(self.rest.by_ref().take(max).inspect(|_| n += 1));
        }
        self.position += n as u64;
        self.ended |= n < max;
        Ok(if self.ended { Read::Ended } else { Read::More })
    }

    fn position(&self) -> u64 {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::source::Batch;

    /// Checks that `split` yields `expected`, from the start and from behind every record.
    fn check<S: Source<Position = u64, Item = i32>>(source: &S, split: &str, expected: &[i32]) {
        for from in 0..=expected.len() {
            for piece in [1, 2, 100] {
                let mut reader = source.open(split, Some(from as u64), Waker::new(|| {})).unwrap();
                let mut batch = Batch::default();
                while reader.read(piece, &mut batch).unwrap() == Read::More {}
                assert_eq!(batch.records, expected[from..]);
                assert_eq!(reader.position(), expected.len() as u64);
                assert_eq!(reader.read(piece, &mut batch).unwrap(), Read::Ended);
            }
        }
        let error = source.open(split, Some(expected.len() as u64 + 1), Waker::new(|| {})).err().unwrap();
        assert!(error.to_string().contains(split), "{error}");
    }

    #[test]
    fn values_are_dealt_out_in_turn() {
        let source = from_vec(vec![0, 1, 2, 3, 4, 5, 6]).splits(3);
        assert_eq!(Source::splits(&source).unwrap(), ["values 0 of 3", "values 1 of 3", "values 2 of 3"]);
        check(&source, "values 0 of 3", &[0, 3, 6]);
        check(&source, "values 2 of 3", &[2, 5]);
        check(&from_vec(vec![3, 1, 2]), "values 0 of 1", &[3, 1, 2]);
        check(&from_vec(Vec::new()).splits(2), "values 1 of 2", &[]);
    }

    #[test]
    fn iterators_are_run_again() {
        check(&from_iter(|| (0..5).map(|n| n * n)), ITERATOR, &[0, 1, 4, 9, 16]);
        check(&from_iter(std::iter::empty::<i32>), ITERATOR, &[]);
    }
}
