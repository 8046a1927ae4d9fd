//! A source at a rate: records come when they are due, however fast the source under it could be.
//!
//! **Units**: records per second over all splits together, divided equally among them.
//! **Time**: the wall clock, from each split's first read on. An open loop: record `i` is due at `i / rate`, whether or
//! not the ones before it came in time. After a stall a split catches up with what became due, but with no more than one
//! second's worth; the rest of the stall is forgotten.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use millstream_runtime::error::{Error, Result};
use millstream_runtime::source::{BadRecord, Output, Read, Source, SplitReader, Waker};

/// The longest wait that is asked for; when it is over the rest is.
const LONGEST_WAIT_S: f64 = 3_600.0;

/// Adds [`rate`](SourceExt::rate) to every source.
pub trait SourceExt: Source + Sized {
    /// This source at `per_second` records a second over all its splits; 0 is as fast as it can.
    ///
    /// ```
    /// use millstream_connectors::{Generator, SourceExt};
    ///
    /// let ticks = Generator::forever(|i| i).rate(10.0);
    /// ```
    fn rate(self, per_second: f64) -> Paced<Self> {
        Paced::new(self, per_second)
    }
}

impl<S: Source> SourceExt for S {}

/// A source that yields its records at a rate.
#[derive(Debug)]
pub struct Paced<S> {
    source: S,
    per_second: f64,
    splits: OnceLock<usize>,
}

impl<S: Source> Paced<S> {
    /// `source` at `per_second` records a second over all its splits; 0 is as fast as it can.
    pub fn new(source: S, per_second: f64) -> Self {
        Paced { source, per_second, splits: OnceLock::new() }
    }
}

impl<S: Source> Source for Paced<S> {
    type Item = S::Item;
    type Position = S::Position;
    type Reader = PacedReader<S::Reader>;

    fn kind(&self) -> &'static str {
        self.source.kind()
    }

    fn replayable(&self) -> bool {
        self.source.replayable()
    }

    fn splits(&self) -> Result<Vec<String>> {
        if !(self.per_second.is_finite() && self.per_second >= 0.0) {
            return Err(Error::config(format!("{} is not a rate", self.per_second))
                .hint("give a number of records per second; 0 means as fast as possible"));
        }
        let splits = self.source.splits()?;
        let _ = self.splits.set(splits.len());
        Ok(splits)
    }

    fn open(&self, split: &str, from: Option<S::Position>, waker: Waker) -> Result<Self::Reader> {
        let splits = match self.splits.get() {
            Some(splits) => *splits,
            None => self.splits()?.len(),
        };
        let reader = self.source.open(split, from, waker)?;
        let pace = (self.per_second > 0.0).then(|| Pace::new(self.per_second / splits.max(1) as f64));
        Ok(PacedReader { reader, pace, first_read: None })
    }
}

/// Reads one split of a [`Paced`] source.
#[derive(Debug)]
pub struct PacedReader<R> {
    reader: R,
    pace: Option<Pace>,
    first_read: Option<Instant>,
}

impl<R: SplitReader> SplitReader for PacedReader<R> {
    type Item = R::Item;
    type Position = R::Position;

    fn read(&mut self, max: usize, out: &mut impl Output<R::Item>) -> Result<Read> {
        let Some(pace) = &mut self.pace else {
            return self.reader.read(max, out);
        };
        let elapsed = self.first_read.get_or_insert_with(Instant::now).elapsed();
        let due = match pace.due(elapsed) {
            Ok(due) => due,
            Err(wait) => return Ok(Read::Later(wait)),
        };
        let mut counted = Counted { out, records: 0 };
        let read = self.reader.read(max.min(due), &mut counted)?;
        pace.took(counted.records);
        Ok(match (read, pace.due(elapsed)) {
            (Read::More, Err(wait)) => Read::Later(wait),
            _ => read,
        })
    }

    fn position(&self) -> R::Position {
        self.reader.position()
    }

    fn text(&self) -> Option<String> {
        self.reader.text()
    }

    fn has_caught_up(&self) -> bool {
        self.reader.has_caught_up()
    }
}

/// Counts what it passes on.
struct Counted<'a, O> {
    out: &'a mut O,
    records: usize,
}

impl<T, O: Output<T>> Output<T> for Counted<'_, O> {
    fn record(&mut self, value: T) {
        self.records += 1;
        self.out.record(value);
    }

    fn bad(&mut self, bad: BadRecord) {
        self.records += 1;
        self.out.bad(bad);
    }
}

/// When records are due. Arithmetic only.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    /// Records are read in groups of this many, so that a high rate does not mean a wait for each: about 1 ms worth.
    group: f64,
    /// Records that were read, or were due and forgotten.
    taken: f64,
}

impl Pace {
    fn new(per_second: f64) -> Pace {
        Pace { per_second, group: (per_second / 1_000.0).floor().max(1.0), taken: 0.0 }
    }

    /// How many records may be read when `elapsed` has passed since the first read; or how long to wait for the next
    /// group.
    fn due(&mut self, elapsed: Duration) -> Result<usize, Duration> {
        // The first record is due at once, hence 1 more.
        let due = (elapsed.as_secs_f64() * self.per_second).floor() + 1.0;
        let most = self.per_second.max(1.0).floor();
        self.taken = self.taken.max(due - most.max(self.group));
        if due - self.taken >= self.group {
            return Ok((due - self.taken) as usize);
        }
        let at = (self.taken + self.group - 1.0) / self.per_second;
        let wait = (at - elapsed.as_secs_f64()).clamp(1e-6, LONGEST_WAIT_S);
        Err(Duration::from_secs_f64(wait))
    }

    fn took(&mut self, records: usize) {
        self.taken += records as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Generator;
    use millstream_runtime::source::Batch;

    /// How many records are read by the times in `at_ms`, when everything due is read at each.
    fn read_at(per_second: f64, at_ms: &[u64]) -> Vec<usize> {
        let mut pace = Pace::new(per_second);
        let read = at_ms.iter().map(|ms| {
            let due = pace.due(Duration::from_millis(*ms)).unwrap_or(0);
            pace.took(due);
            due
        });
        read.collect()
    }

    #[test]
    fn record_i_is_due_at_i_divided_by_the_rate() {
        assert_eq!(read_at(10.0, &[0, 50, 100, 199, 200, 450, 500]), [1, 0, 1, 0, 1, 2, 1]);
        assert_eq!(read_at(0.5, &[0, 1_999, 2_000, 3_000, 4_000]), [1, 0, 1, 0, 1]);
    }

    #[test]
    fn at_a_high_rate_records_come_in_groups() {
        assert_eq!(read_at(10_000.0, &[0, 1, 2, 4]), [0, 11, 10, 20]);
        let mut pace = Pace::new(10_000.0);
        assert_eq!(pace.due(Duration::ZERO), Err(Duration::from_micros(900)));
    }

    #[test]
    fn the_wait_ends_when_the_next_record_is_due() {
        for per_second in [0.3, 1.0, 7.0, 1_000.0, 123_456.7] {
            let mut pace = Pace::new(per_second);
            let mut elapsed = Duration::ZERO;
            for _ in 0..1_000 {
                match pace.due(elapsed) {
                    Ok(due) => {
                        assert!(due as f64 <= pace.group + 1.0, "{per_second}: {due} at once");
                        pace.took(due);
                    }
                    // Rounding may make it a moment too short, but not for long.
                    Err(wait) => elapsed += wait + Duration::from_nanos(100),
                }
            }
            let expected = elapsed.as_secs_f64() * per_second;
            assert!((pace.taken - expected).abs() <= pace.group + 2.0, "{per_second}: {} of {expected}", pace.taken);
        }
    }

    #[test]
    fn after_a_stall_one_second_is_caught_up() {
        assert_eq!(read_at(100.0, &[0, 10, 500, 60_000, 60_010]), [1, 1, 49, 100, 1]);
        assert_eq!(read_at(0.1, &[0, 100_000, 105_000, 110_000]), [1, 1, 0, 1]);
    }

    #[test]
    fn tiny_rates_wait_without_overflow() {
        let mut pace = Pace::new(f64::MIN_POSITIVE);
        pace.took(1);
        assert_eq!(pace.due(Duration::ZERO), Err(Duration::from_secs(3_600)));
    }

    #[test]
    fn the_rate_is_divided_among_the_splits() {
        let source = Generator::new(100, |i| i).splits(4).rate(4.0);
        let names = source.splits().unwrap();
        let mut reader = source.open(&names[0], None, Waker::new(|| {})).unwrap();
        let mut batch = Batch::default();
        let Read::Later(wait) = reader.read(10, &mut batch).unwrap() else { panic!("one record is due, not more") };
        assert_eq!(batch.records, [0]);
        assert!(wait > Duration::from_millis(900) && wait <= Duration::from_secs(1), "{wait:?}");
    }

    #[test]
    fn without_a_rate_nothing_waits_and_a_wrong_one_is_refused() {
        let source = Generator::new(100, |i| i).rate(0.0);
        let mut reader = source.open("events 0 of 1", None, Waker::new(|| {})).unwrap();
        assert_eq!(reader.read(1_000, &mut Batch::default()).unwrap(), Read::Ended);
        for wrong in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Generator::new(1, |i| i).rate(wrong).splits().is_err());
        }
    }
}
