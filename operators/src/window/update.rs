//! Windows with more than one result: early ones, and updates by records that come late.

use std::time::Duration;

use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::Key;
use serde::{Deserialize, Serialize};

use super::keyed::{KeyedWindows, Shows};
use super::{Window, Windows};
use crate::aggregate::Aggregate;

/// One result of a window that may have several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Update<K, O> {
    /// The key.
    pub key: K,
    /// Of which window it is.
    pub window: Window,
    /// Whether that had come to its end when this was told. A retraction has the timing of what takes its place, not of what it takes back.
    pub timing: Timing,
    /// Whether the result holds from now on, or no longer does.
    pub change: Change,
    /// What the aggregate made of the records.
    pub result: O,
}

/// When a result of a window was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Timing {
    /// Before event time had come to the window's end: there may be more records.
    Early,
    /// When it had: of all records that were on time.
    OnTime,
    /// After that: of late records too.
    Late,
}

/// What a result means for those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Change {
    /// It holds.
    Insert,
    /// It was an [`Insert`](Self::Insert) of the same key, window and result once, with whatever timing, and does not hold any more.
    Retract,
}

/// When windows have results before their end. Of several conditions the first that is met counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Early {
    pub(super) every: Option<EventSpan>,
    pub(super) count: Option<u64>,
    pub(super) clock: Option<Duration>,
}

impl Early {
    /// When event time comes to a multiple of `every`, counted from 1970, if there were records since the last result.
    ///
    /// # Panics
    /// When `every` is zero.
    pub fn every(every: EventSpan) -> Self {
        Early::default().or_every(every)
    }

    /// After so many records of a key in a window since its last result.
    ///
    /// # Panics
    /// When `records` is zero.
    pub fn count(records: u64) -> Self {
        Early::default().or_count(records)
    }

    /// So long after the first record since the last result, by the clock of the machine.
    pub fn after(span: Duration) -> Self {
        Early::default().or_after(span)
    }

    /// Also by the clock; see [`after`](Self::after).
    #[must_use]
    pub fn or_after(self, span: Duration) -> Self {
        Early { clock: Some(span), ..self }
    }

    /// Also by event time; see [`every`](Self::every).
    ///
    /// # Panics
    /// When `every` is zero.
    #[must_use]
    pub fn or_every(self, every: EventSpan) -> Self {
        assert!(every > EventSpan::ZERO, "early results must be made at some distance, not every {every}");
        Early { every: Some(every), ..self }
    }

    /// Also by number of records; see [`count`](Self::count).
    ///
    /// # Panics
    /// When `records` is zero.
    #[must_use]
    pub fn or_count(self, records: u64) -> Self {
        assert!(records > 0, "early results must be made after some records, not after none");
        Early { count: Some(records), ..self }
    }

    pub(super) fn is_any(&self) -> bool {
        *self != Early::default()
    }

    /// The first instant after `passed` at which event time calls for a result.
    pub(super) fn next_after(&self, passed: EventTime) -> Option<EventTime> {
        let every = self.every?.as_micros();
        let next = passed.micros().div_euclid(every).checked_add(1)?.checked_mul(every)?;
        Some(EventTime::from_micros(next))
    }
}

/// What a result is made of when it is not the first of its window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Of all records.
    #[default]
    Accumulating,
    /// Of the records since the result before.
    Discarding,
    /// Of all records, and the result before is retracted.
    Retracting,
}

/// When windows have results, and of what.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    pub allowed: EventSpan,
    pub early: Early,
    pub mode: Mode,
}

impl Rules {
    /// Whether windows may have more than one result.
    pub(super) fn updates(&self) -> bool {
        self.allowed > EventSpan::ZERO || self.early.is_any()
    }

    /// What the meaning of state depends on. The rest may be changed between two starts.
    pub(super) fn describe(&self) -> &'static str {
        match self.mode {
            Mode::Accumulating => "",
            Mode::Discarding => ", discarded with every result",
            Mode::Retracting => ", with retractions",
        }
    }
}

/// A keyed stream in windows that may have several results, waiting for the aggregate that makes them. Made from
/// [`WindowedStream`](super::WindowedStream).
///
/// Results are [`Update`]s. There is one [on time](Timing::OnTime) when the watermark has come to the window's end, of the
/// records that were on time, as without updates; where no record was (or all were discarded), there is none. There may be
/// [early](Timing::Early) ones before it, and [late](Timing::Late) ones after it, one for each record that comes late.
///
/// **Order**: results on time depend on the input alone, and so does what each window comes to in the end: its last result, or all of
/// them together where they are [discarding](Self::discarding) or [retracting](Self::retracting). How many early and late results there are
/// between depends on how records of different splits meet, so a replay does not compare them.
///
/// **Time**: a result happened at its window's last instant, whenever it is made, and a retraction when the result did that takes the place of the one before. A result of a
/// window without end ([`Global`](super::Global)) happened when the record did that called for it, or is as late as event time that did. Late
/// results are behind the watermark for those that come after, as the records were.
///
/// **State**: an accumulator per key and window (not slice), until the end of the window and the allowed lateness are over.
/// A record of a sliding window is added to each of its windows.
#[derive(Debug)]
pub struct UpdatedWindows<K, T, W> {
    pub(super) keyed: KeyedStream<K, T>,
    pub(super) windows: W,
    pub(super) rules: Rules,
}

impl<K: Key, T: Data, W: Windows<T>> UpdatedWindows<K, T, W> {
    /// Keeps windows for so long after their end, in event time, and makes a new result when a record comes late. Records that come
    /// later than that are late for good.
    #[must_use]
    pub fn allowed_lateness(mut self, span: EventSpan) -> Self {
        self.rules.allowed = span;
        self
    }

    /// Makes results before windows end.
    #[must_use]
    pub fn early(mut self, when: Early) -> Self {
        self.rules.early = when;
        self
    }

    /// Each result is made only of the records since the one before. Without it, it is made of all records so far.
    #[must_use]
    pub fn discarding(mut self) -> Self {
        self.rules.mode = Mode::Discarding;
        self
    }

    /// Each result retracts the one before it. When sessions become one, the results of all of them are retracted.
    #[must_use]
    pub fn retracting(mut self) -> Self {
        self.rules.mode = Mode::Retracting;
        self
    }

    /// The results of `aggregate` for each key and window.
    #[must_use]
    pub fn aggregate<A: Aggregate<T>>(self, aggregate: A) -> Stream<Update<K, A::Out>> {
        self.aggregate_with_late(aggregate).0
    }

    /// As [`aggregate`](Self::aggregate), with a second stream of the records that were late for all their windows, and for what lateness
    /// was allowed.
    #[must_use]
    pub fn aggregate_with_late<A: Aggregate<T>>(self, aggregate: A) -> (Stream<Update<K, A::Out>>, Stream<T>) {
        let UpdatedWindows { keyed, windows, rules } = self;
        let kind = windows.kind();
        let operator: KeyedWindows<K, T, W, A, Updates> = KeyedWindows::new(windows, aggregate, rules);
        keyed.operator(kind, operator)
    }
}

/// Results are updates.
pub(super) struct Updates;

impl<K: Key, O: Data> Shows<K, O> for Updates {
    type Out = Update<K, O>;

    fn show(key: &K, window: Window, timing: Timing, change: Change, result: O) -> Update<K, O> {
        Update { key: key.clone(), window, timing, change, result }
    }
}
