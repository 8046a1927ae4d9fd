//! Calls to the outside, on threads beside the workers: what they are and how they are made.
//!
//! An operator file says what a call is ([`Call`]); a driver makes calls on a pool of threads, with time-outs, repetitions, a rate and a bound
//! on how many are in flight, and a worker never waits for one.
//!
//! **State**: none. A record whose call is not done holds back its epoch and the watermark, so a checkpoint waits for all calls of its epoch.
//! What was called after the last checkpoint is called again after a crash: calls must be such that this does no harm.
//!
//! **Units**: times here are those of the machine's clock, and not of [`Job::clock`](crate::job::Job::clock): whoever is called waits in no other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::ProcessingTime;
use crate::error::Error;
use crate::record::Data;

/// How to ask the outside something about records. One instance serves all threads, and all attempts of a job.
pub trait Call: Send + Sync + 'static {
    /// What comes in.
    type In: Data + Sync;
    /// What goes out.
    type Out: Data;

    /// It will be called in this way. Told once, before anything else.
    fn configure(&mut self, settings: &CallSettings) {
        let _ = settings;
    }

    /// The answer, if it is known already: then no call is made. Asked on the worker, so it must be quick.
    fn at_hand(&self, record: &Self::In, now: ProcessingTime) -> Option<Self::Out> {
        let _ = (record, now);
        None
    }

    /// For how many records, at most, one call asks, where several wait.
    fn at_once(&self) -> usize {
        1
    }

    /// Asks, and waits for the answer, as long as it takes: one answer for each record, in order.
    fn call(&self, records: &[Arc<Self::In>], now: ProcessingTime) -> Vec<Result<Self::Out, Fault>>;
}

/// Why there is no answer for a record.
#[derive(Debug)]
pub struct Fault {
    /// What went wrong.
    pub error: Error,
    /// Whether it may go better when it is tried again.
    pub again: bool,
    /// Whether it is certain that this record failed, and not another for which was asked in the same call. Only such a record is
    /// named, and may be set aside.
    pub certain: bool,
}

/// A record for which every attempt of a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed<T> {
    /// The record.
    pub record: T,
    /// How the last attempt failed.
    pub error: String,
    /// How many attempts there were.
    pub attempts: u32,
}

/// How calls are made.
#[derive(Clone, Debug)]
pub struct CallSettings {
    /// How many calls are made at the same time, each on a thread of its own, over all workers.
    pub threads: usize,
    /// How many records may be in flight, over all workers: begun, and their results not yet sent on.
    pub in_flight: usize,
    /// How long an attempt may take.
    pub timeout: Option<Duration>,
    /// When a call that failed is made again.
    pub retry: Retry,
    /// How many calls may begin within any span of this length.
    pub rate: Option<(usize, Duration)>,
    /// Whether results leave a worker in the order in which it took in their records.
    pub ordered: bool,
}

impl Default for CallSettings {
    fn default() -> Self {
        let timeout = Some(Duration::from_secs(60));
        CallSettings { threads: 16, in_flight: 1000, timeout, retry: Retry::never(), rate: None, ordered: false }
    }
}

impl CallSettings {
    /// In words, for plans.
    pub(crate) fn describe(&self) -> String {
        let order = if self.ordered { "ordered" } else { "unordered" };
        format!("{} threads, {} in flight, {order}", self.threads, self.in_flight)
    }
}

/// When a call that failed is made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    times: u32,
    first: Duration,
    most: Duration,
}

impl Retry {
    /// Never.
    pub fn never() -> Self {
        Self::times(0)
    }

    /// Up to `times` more after the first attempt; waiting 100 ms before the first of them, and twice as long before each that follows, but
    /// not longer than a minute.
    pub fn times(times: u32) -> Self {
        Retry { times, first: Duration::from_millis(100), most: Duration::from_secs(60) }
    }

    /// Waits so long before the first repetition. Of every wait some is left out by chance, up to half of it: what failed
    /// together must not come again together.
    #[must_use]
    pub fn backoff(self, first: Duration) -> Self {
        Retry { first, ..self }
    }

    /// No wait is longer.
    #[must_use]
    pub fn backoff_up_to(self, most: Duration) -> Self {
        Retry { most, ..self }
    }

    /// How long to wait after so many attempts (at least 1) have failed; `None`: they were all. `chance` is any number.
    pub(crate) fn after(&self, attempts: u32, chance: u32) -> Option<Duration> {
        if attempts > self.times {
            return None;
        }
        let grown = self.first.saturating_mul(2u32.saturating_pow(attempts - 1)).min(self.most);
        Some(grown.mul_f64(1.0 - f64::from(chance) / f64::from(u32::MAX) / 2.0))
    }
}

/// Says when calls may begin: at most so many within any span.
///
/// It remembers when the last of them began. So the bound is exact for every span, wherever it begins; a bucket of tokens (GCRA)
/// needs two numbers only, and lets through nearly twice as many after a pause.
#[derive(Debug)]
pub(crate) struct Rate {
    most: usize,
    span: Duration,
    began: VecDeque<Instant>,
}

impl Rate {
    pub(crate) fn new((most, span): (usize, Duration)) -> Self {
        Rate { most, span, began: VecDeque::new() }
    }

    /// Whether a call may begin now, which is then counted; otherwise when it may.
    pub(crate) fn begin(&mut self, now: Instant) -> Result<(), Instant> {
        if self.began.len() == self.most {
            match self.began[0].checked_add(self.span) {
                Some(free) if free <= now => {}
                // Never again, as far as anybody can tell.
                free => return Err(free.unwrap_or(now + Duration::from_secs(1 << 30))),
            }
            self.began.pop_front();
        }
        self.began.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_cut_by_chance_to_half_at_most() {
        let ms = Duration::from_millis;
        let retry = Retry::times(4).backoff(ms(10)).backoff_up_to(ms(50));
        let waits: Vec<_> = (1..=5).map(|attempts| retry.after(attempts, 0)).collect();
        assert_eq!(waits, [Some(ms(10)), Some(ms(20)), Some(ms(40)), Some(ms(50)), None]);
        assert_eq!(retry.after(2, u32::MAX), Some(ms(10)));
        assert_eq!(Retry::never().after(1, 0), None);
        assert_eq!(Retry::times(u32::MAX).after(u32::MAX, 0), Some(Duration::from_secs(60)), "no overflow");
    }

    #[test]
    fn no_span_has_more_calls_than_it_may() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut rate = Rate::new((3, ms(100)));
        // Asked at odd times, with pauses in which a bucket would fill.
        let mut now = start;
        let mut began = Vec::new();
        for step in 0..2_000u64 {
            now += ms(if step % 70 == 0 { 400 } else { step * 7919 % 23 });
            match rate.begin(now) {
                Ok(()) => began.push(now),
                Err(free) => {
                    assert!(free > now && free <= now + ms(100));
                    if step % 3 == 0 {
                        now = free;
                        assert_eq!(rate.begin(now), Ok(()), "it may begin when it was told to");
                        began.push(now);
                    }
                }
            }
        }
        assert!(began.len() > 300);
        assert!(began.windows(4).all(|four| four[3] - four[0] >= ms(100)));
    }
}
