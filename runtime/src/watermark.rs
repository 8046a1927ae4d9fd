//! Watermarks: how far event time has come in a split, as promised by the split's own records.
//!
//! **Time**: a watermark `w` promises that no later record of the split is before `w`; records that break the promise
//! are *behind*, and late for every window that ends at or before `w`. Each split has its own running watermark, and a
//! record is judged by the one at its own position in its own split. So what is late does not depend on threads, batches,
//! other splits or the wall clock.

use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::time::{EventSpan, EventTime};

/// Watches the event times of one split and says what the watermark is. Its state goes into every checkpoint.
///
/// A batch of records is read, with their event times, and then observed record by record. So whatever a generator knows, it
/// must know from the event times that it is given: what the function for event times does beside may be a batch ahead.
///
/// The runtime never lets a watermark go back, nor come to [`EventTime::MAX`] before the split has ended, whatever
/// [`watermark`](Self::watermark) returns.
pub trait WatermarkGenerator: Clone + Send + Serialize + DeserializeOwned + 'static {
    /// A record at `at` has been read.
    fn observe(&mut self, at: EventTime);
    /// The watermark after all records so far.
    fn watermark(&self) -> EventTime;
    /// The generator to go on with after a restart: `self` is as the job describes it now, `saved` as the checkpoint has
    /// it. Unless implemented, it is `saved`. Whichever it is, the watermark of a split never goes back.
    #[must_use]
    fn resume(self, saved: Self) -> Self {
        saved
    }
}

/// How a source's records get their event times and its splits their watermarks.
#[derive(Debug)]
pub struct Watermarks<T, F, G> {
    pub(crate) timestamp: F,
    pub(crate) generator: G,
    pub(crate) pace: Pace,
    item: PhantomData<fn(&T)>,
}

impl<T, F: Clone, G: Clone> Clone for Watermarks<T, F, G> {
    fn clone(&self) -> Self {
        Watermarks {
            timestamp: self.timestamp.clone(),
            generator: self.generator.clone(),
            pace: self.pace,
            item: PhantomData,
        }
    }
}

impl<T, F: Fn(&T) -> EventTime> Watermarks<T, F, BoundedOutOfOrderness> {
    /// Records may be out of order by up to `delay`: the watermark is the highest event time seen, less `delay`.
    pub fn bounded_out_of_orderness(delay: EventSpan, timestamp: F) -> Self {
        Self::custom(BoundedOutOfOrderness { delay, highest: EventTime::MIN }, timestamp)
    }

    /// Records are in order of event time: the watermark is the highest event time seen.
    pub fn monotonous(timestamp: F) -> Self {
        Self::bounded_out_of_orderness(EventSpan::ZERO, timestamp)
    }
}

impl<T, F: Fn(&T) -> EventTime> Watermarks<T, F, NoWatermarks> {
    /// Nothing is promised before the end: windows fire when the input has ended, and no record is late.
    pub fn none(timestamp: F) -> Self {
        Self::custom(NoWatermarks, timestamp)
    }
}

impl<T, F: Fn(&T) -> EventTime, G: WatermarkGenerator> Watermarks<T, F, G> {
    /// Watermarks by a generator of the user's own; every split starts with a clone of it.
    pub fn custom(generator: G, timestamp: F) -> Self {
        Watermarks { timestamp, generator, pace: Pace::default(), item: PhantomData }
    }
}

impl<T, F, G> Watermarks<T, F, G> {
    /// A split that has had nothing to read for so long, by the clock on the wall, is *idle*: it no longer holds the watermark back. Without
    /// it, event time stands still while a split is quiet.
    ///
    /// When an idle split has records again, it takes over the watermark that its source has come to meanwhile: those that are behind
    /// that may be late. So which records are late may depend on when they come, and a replay does not compare what comes of such a source.
    /// A crash changes nothing that was committed. A source that is wholly idle goes as far as any of its splits has come, and follows the
    /// other sources of the job; where all are, event time goes as far as any split had come.
    #[must_use]
    pub fn idle_after(mut self, quiet: Duration) -> Self {
        self.pace.idle_after = Some(quiet);
        self
    }

    /// Splits of this source are not read while their watermark is more than `span` ahead of the least of all sources of the job that is
    /// not idle: state does not have to hold what others have not come to yet. Results do not depend on it.
    #[must_use]
    pub fn aligned_within(mut self, span: EventSpan) -> Self {
        self.pace.aligned_within = Some(span);
        self
    }
}

/// How far splits wait for each other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    pub idle_after: Option<Duration>,
    pub aligned_within: Option<EventSpan>,
}

/// The generator of [`Watermarks::bounded_out_of_orderness`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BoundedOutOfOrderness {
    delay: EventSpan,
    highest: EventTime,
}

impl WatermarkGenerator for BoundedOutOfOrderness {
    #[inline]
    fn observe(&mut self, at: EventTime) {
        self.highest = self.highest.max(at);
    }

    #[inline]
    fn watermark(&self) -> EventTime {
        self.highest - self.delay
    }

    /// A delay that was changed counts from here on.
    fn resume(self, saved: Self) -> Self {
        BoundedOutOfOrderness { delay: self.delay, highest: saved.highest }
    }
}

/// The generator of [`Watermarks::none`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NoWatermarks;

impl WatermarkGenerator for NoWatermarks {
    fn observe(&mut self, _at: EventTime) {}

    fn watermark(&self) -> EventTime {
        EventTime::MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_time_less_the_delay() {
        let mut generator = BoundedOutOfOrderness { delay: EventSpan::secs(10), highest: EventTime::MIN };
        assert_eq!(generator.watermark(), EventTime::MIN);
        generator.observe(EventTime::from_secs(100));
        generator.observe(EventTime::from_secs(50));
        assert_eq!(generator.watermark(), EventTime::from_secs(90));
        generator.observe(EventTime::MAX);
        assert!(generator.watermark() < EventTime::MAX);
    }
}
