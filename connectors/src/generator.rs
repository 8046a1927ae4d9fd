//! A source that computes its records: event `i` is `f(i)`.
//!
//! **Shape**: `p` splits, of which split `k` yields the events `k`, `k + p`, `k + 2p` and so on, so that all splits move
//! through event time at the same pace. **Units**: the position is the number of the split's next event.
//!
//! Replayable as long as `f` gives the same record for the same number; it must not use the time or a random number
//! generator that lives longer than one call.

use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::source::{Output, Read, Source, SplitReader, Waker};

/// Yields `f(0)`, `f(1)`, `f(2)` and so on.
///
/// ```
/// use millstream_connectors::Generator;
///
/// let squares = Generator::new(1_000, |i| i * i).splits(4);
/// ```
#[derive(Clone, Debug)]
pub struct Generator<F> {
    count: u64,
    splits: u64,
    f: F,
}

impl<T: Data, F: Fn(u64) -> T + Clone + Send + 'static> Generator<F> {
    /// The first `count` events of `f`, in one split.
    pub fn new(count: u64, f: F) -> Self {
        Generator { count, splits: 1, f }
    }

    /// All events of `f`, without an end.
    pub fn forever(f: F) -> Self {
        Self::new(u64::MAX, f)
    }

    /// Divides the events among `splits` splits (at least 1), which several workers can read.
    #[must_use]
    pub fn splits(mut self, splits: usize) -> Self {
        self.splits = splits.max(1) as u64;
        self
    }

    fn split_name(&self, k: u64) -> String {
        format!("events {k} of {}", self.splits)
    }
}

impl<T: Data, F: Fn(u64) -> T + Clone + Send + 'static> Source for Generator<F> {
    type Item = T;
    type Position = u64;
    type Reader = GeneratorReader<F>;

    fn kind(&self) -> &'static str {
        "generator"
    }

    fn splits(&self) -> Result<Vec<String>> {
        Ok((0..self.splits).map(|k| self.split_name(k)).collect())
    }

    fn open(&self, split: &str, from: Option<u64>, _waker: Waker) -> Result<GeneratorReader<F>> {
        let k = (0..self.splits).find(|k| self.split_name(*k) == split);
        let k = k.ok_or_else(|| Error::internal(format!("there is no split `{split}`")))?;
        let next = from.unwrap_or(k);
        // The position behind the last event of an endless source may have been cut off at the largest number.
        if next % self.splits != k && next != u64::MAX {
            return Err(Error::state(format!("event {next} is not in split `{split}`")).hint("start fresh"));
        }
        Ok(GeneratorReader { next, step: self.splits, end: self.count, f: self.f.clone() })
    }
}

/// Reads one split of a [`Generator`].
#[derive(Debug)]
pub struct GeneratorReader<F> {
    next: u64,
    step: u64,
    end: u64,
    f: F,
}

impl<T: Data, F: Fn(u64) -> T + Send + 'static> SplitReader for GeneratorReader<F> {
    type Item = T;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<T>) -> Result<Read> {
        let left = self.end.saturating_sub(self.next).div_ceil(self.step);
        let n = left.min(max as u64);
        let (next, step, f) = (self.next, self.step, &self.f);
        out.records((0..n).map(|i| f(next + i * step)));
        self.next = next.saturating_add(n * step);
        Ok(if n == left { Read::Ended } else { Read::More })
    }

    fn position(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::source::Batch;

    fn read<S: Source>(
        source: &S,
        split: &str,
        from: Option<S::Position>,
        piece: usize,
    ) -> (Vec<S::Item>, S::Position) {
        let mut reader = source.open(split, from, Waker::new(|| {})).unwrap();
        let mut batch = Batch::default();
        while reader.read(piece, &mut batch).unwrap() == Read::More {}
        (batch.records, reader.position())
    }

    #[test]
    fn splits_divide_the_events() {
        for (count, splits) in [(10, 3), (9, 3), (2, 3), (0, 2), (7, 1)] {
            let source = Generator::new(count, |i| i).splits(splits);
            let names = Source::splits(&source).unwrap();
            assert_eq!(names.len(), splits);
            let mut all = Vec::new();
            for (k, name) in names.iter().enumerate() {
                for piece in [1, 2, 100] {
                    let (events, _) = read(&source, name, None, piece);
                    assert!(events.iter().all(|event| *event as usize % splits == k));
                    if piece == 1 {
                        all.extend(events);
                    }
                }
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count));
        }
    }

    #[test]
    fn a_split_goes_on_at_its_position() {
        let source = Generator::new(10, |i| i).splits(3);
        let name = &Source::splits(&source).unwrap()[1];
        let (all, end) = read(&source, name, None, 100);
        assert_eq!(all, [1, 4, 7]);
        assert_eq!(read(&source, name, Some(4), 100).0, [4, 7]);
        assert_eq!(read(&source, name, Some(end), 100).0, [0; 0]);
        assert!(source.open(name, Some(5), Waker::new(|| {})).is_err());
    }

    #[test]
    fn an_endless_source_goes_on_to_the_largest_number() {
        let source = Generator::forever(|i| i);
        let mut reader = source.open("events 0 of 1", Some(u64::MAX - 2), Waker::new(|| {})).unwrap();
        let mut batch = Batch::default();
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Ended);
        assert_eq!(batch.records, [u64::MAX - 2, u64::MAX - 1]);
    }
}
