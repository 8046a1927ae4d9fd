//! Patterns: records of a key that follow one another as described, within some time.
//!
//! **Shape**: keyed in; out comes a [`Match`] for what fits, with the records of every step, and, where it is [asked for](Pattern::with_timed_out),
//! what had begun and was not complete when its time was over; and a second stream of late records.
//!
//! # What matches
//!
//! A pattern is a sequence of steps. Every record that fits the [first](Pattern::first) begins an *attempt*, which looks at the records of the
//! key after it, one by one. Each is offered to the steps in their order: first to the one that took the last record, then to those behind it, as
//! far as the steps before have what they need. The first that can take it has it; if none can, it is skipped.
//!
//! * A step takes a record for which its condition holds, and [what is asked](Steps::given) of it and the records taken before.
//! * The first record of a step that is [`next`](Steps::next) comes directly behind the last one taken; before that of one that is
//!   [`followed_by`](Steps::followed_by) others may be skipped.
//! * A step takes one record, or [as many as it is said](Steps::times): it needs the least number before a later step can take one, and **takes as
//!   many as it can**, up to the greatest. So what fits both a step that may take more and a later one goes to the former, and nothing is ever
//!   given back: conditions of a repeated step and the one behind it should exclude each other. Between the records of one step others may be
//!   skipped, also of a step that is `next`, unless they are to be [consecutive](Steps::consecutive).
//! * A step that is [optional](Steps::optional) takes what it needs, or nothing. It may still begin as long as no later step has taken a record.
//! * A [`not_next`](Steps::not_next) or [`not_followed_by`](Steps::not_followed_by) looks at what comes behind the last record of the steps
//!   before it, up to and with the first one of the steps behind it: at the first such record, or at all of them. If one fits, the steps behind
//!   it can take none any more. Only when a step before it takes another does it look anew, behind that. At the end of a pattern it looks on
//!   until the time of the attempt is over, and if one fits, it is no match.
//!
//! So there is at most one match for every first record. It is *decided* when no record that might come could change it: mostly with
//! its last record. Where the last step might take more, or something must not follow, that is when what could change it would have to come
//! next and did not, or when the time is over. An attempt of which nothing can come any more is given up at once.
//!
//! **After a match** the search goes on behind its last record: all attempts that began there or before are given up, so that no record is in two
//! matches. Whichever is decided first counts; of those that are decided at once, the one that began first. With [`overlapping`](Pattern::overlapping)
//! every attempt goes its own way.
//!
//! **Time**: all records of a match lie in `[t, t + within)`, if `t` is when the first happened. What is still to be decided when event time comes
//! to `t + within`, or to its end, is decided then; that is before the records of this instant. A result happened when it was decided: mostly
//! when its last record did. The result itself has the times of its first and last record.
//!
//! **Lateness** is that of [process functions](crate::process): late records are in no match, and nothing is next to them.
//!
//! **Order**: results do not depend on it: records are looked at in order of event time, once it has passed them; those of one instant by split
//! and position.
//!
//! **State**: per key the attempts, and every record that any of them has taken, once for each step that took it; and the records that event time
//! has not passed. An attempt is gone as soon as nothing can come of it, or its time is over. A key has at most [so many](Pattern::limit)
//! attempts and records; one that needs more fails the job. Conditions are no part of it, so they may be changed between two starts;
//! a checkpoint of a pattern with other steps, or another span, is refused.
//!
//! **Source**: Flink's CEP library, of which this is the part that can be decided without trying out several ways to go on: `next`,
//! `followedBy`, `greedy` repetition, and skipping past the last record, or no skip with one match for every first record.

mod attempt;

use std::ops::{RangeFrom, RangeInclusive};
use std::sync::Arc;

use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::{Key, Value};
use serde::{Deserialize, Serialize};

use crate::process::ProcessExt;
pub use attempt::Matched;
use attempt::Matching;

type Condition<T> = Arc<dyn Fn(&T) -> bool + Send + Sync>;
type Given<T> = Arc<dyn Fn(&T, &Matched<'_, T>) -> bool + Send + Sync>;

/// How many attempts and records a key may have, unless it is said.
const LIMIT: usize = 10_000;

/// Steps that follow one another within some time. Begins with [`first`](Pattern::first).
///
/// # Example
///
/// A card that is tried out with small payments, and then pays a large sum:
///
/// ```
/// # use millstream_runtime::{stream::Stream, time::EventSpan};
/// # use millstream_operators::filter_map::FilterMapExt;
/// # use millstream_operators::pattern::{Match, Pattern, PatternExt};
/// #[derive(Clone, serde::Serialize, serde::Deserialize)]
/// struct Payment {
///     card: u64,
///     cents: i64,
/// }
///
/// fn frauds(payments: Stream<Payment>) -> Stream<Match<Payment>> {
///     let tried_out = Pattern::first("small", |payment: &Payment| payment.cents < 100)
///         .times(2..)
///         .next("large", |payment| payment.cents > 50_000)
///         .within(EventSpan::mins(10));
///     payments.key_by(|payment| payment.card).matches(tried_out)
/// }
/// ```
///
/// `found.of("small")` are the small payments of a match, and `found.one("large").cents` is what was paid in the end.
pub struct Pattern<T> {
    steps: Arc<[Step<T>]>,
    within: EventSpan,
    overlapping: bool,
    timed_out: bool,
    limit: usize,
}

impl<T> Clone for Pattern<T> {
    fn clone(&self) -> Self {
        Pattern { steps: self.steps.clone(), ..*self }
    }
}

/// The steps of a pattern that is being described. What is said of a step goes behind it; [`within`](Steps::within) ends it.
pub struct Steps<T> {
    steps: Vec<Step<T>>,
}

struct Step<T> {
    name: String,
    place: Place,
    /// Whether it must not be there.
    not: bool,
    optional: bool,
    /// Nothing may be between its own records.
    consecutive: bool,
    least: usize,
    most: usize,
    condition: Condition<T>,
    given: Option<Given<T>>,
}

/// Where the first record of a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Directly,
    Anywhere,
}

/// How many records a step takes: `3`, `2..=4` or `2..`.
pub trait Times {
    /// The least and the greatest number.
    fn bounds(self) -> (usize, usize);
}

impl Times for usize {
    fn bounds(self) -> (usize, usize) {
        (self, self)
    }
}

impl Times for RangeInclusive<usize> {
    fn bounds(self) -> (usize, usize) {
        (*self.start(), *self.end())
    }
}

impl Times for RangeFrom<usize> {
    fn bounds(self) -> (usize, usize) {
        (self.start, usize::MAX)
    }
}

impl<T> Pattern<T> {
    /// Begins a pattern: with a record for which `condition` holds.
    ///
    /// Conditions must depend on nothing but the records, as results would otherwise.
    #[must_use]
    pub fn first(name: impl Into<String>, condition: impl Fn(&T) -> bool + Send + Sync + 'static) -> Steps<T> {
        Steps { steps: Vec::new() }.then(name.into(), Place::Anywhere, false, Arc::new(condition))
    }

    /// Every match counts: one for each first record, whether or not it has records in common with others.
    #[must_use]
    pub fn overlapping(mut self) -> Self {
        self.overlapping = true;
        self
    }

    /// What had begun and was not complete when its time was over comes out as well, then, with what it had: a [`Match`] that is not
    /// [complete](Match::complete).
    #[must_use]
    pub fn with_timed_out(mut self) -> Self {
        self.timed_out = true;
        self
    }

    /// How many attempts a key may have at a time, where one counts for every step that has taken records, and more where those that a step took
    /// are not those that it took for others; and how many records may be held for them. More fail the job, which names the key. 10,000 unless it
    /// is said here. It may be changed between two starts.
    ///
    /// # Panics
    /// When `most` is zero.
    #[must_use]
    pub fn limit(mut self, most: usize) -> Self {
        assert!(most > 0, "with a limit of 0 attempts nothing could ever match");
        self.limit = most;
        self
    }

    /// What a checkpoint must have been written by.
    fn describe(&self) -> String {
        let after = if self.overlapping { "every match" } else { "matches past each other" };
        let steps: Vec<String> = self.steps.iter().enumerate().map(|(number, step)| step.describe(number)).collect();
        format!("{after} within {} of {}", self.within, steps.join(", "))
    }
}

impl<T> Step<T> {
    fn describe(&self, number: usize) -> String {
        let place = match (self.not, self.place) {
            _ if number == 0 => "",
            (false, Place::Directly) => "next ",
            (false, Place::Anywhere) => "followed by ",
            (true, Place::Directly) => "not next ",
            (true, Place::Anywhere) => "not followed by ",
        };
        let times = match (self.least, self.most) {
            (1, 1) => String::new(),
            (least, usize::MAX) => format!(" {least} times or more"),
            (least, most) if least == most => format!(" {least} times"),
            (least, most) => format!(" {least} to {most} times"),
        };
        let consecutive = if self.consecutive { " consecutively" } else { "" };
        let optional = if self.optional { " or not" } else { "" };
        format!("{place}`{}`{times}{consecutive}{optional}", self.name)
    }
}

impl<T> Steps<T> {
    fn then(mut self, name: String, place: Place, not: bool, condition: Condition<T>) -> Self {
        assert!(self.steps.iter().all(|step| step.name != name), "two steps of a pattern are called `{name}`");
        let step =
            Step { name, place, not, optional: false, consecutive: false, least: 1, most: 1, condition, given: None };
        self.steps.push(step);
        self
    }

    /// A record for which `condition` holds comes directly behind the last one taken.
    #[must_use]
    pub fn next(self, name: impl Into<String>, condition: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.then(name.into(), Place::Directly, false, Arc::new(condition))
    }

    /// A record for which `condition` holds comes behind the last one taken; what no step takes is skipped.
    #[must_use]
    pub fn followed_by(self, name: impl Into<String>, condition: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.then(name.into(), Place::Anywhere, false, Arc::new(condition))
    }

    /// The record that comes directly behind the steps before is none for which `condition` holds. There may be none at all.
    #[must_use]
    pub fn not_next(self, name: impl Into<String>, condition: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.then(name.into(), Place::Directly, true, Arc::new(condition))
    }

    /// No record for which `condition` holds comes behind the steps before, up to the first record of the steps behind it (that is not to be one
    /// either), or until the time is over.
    #[must_use]
    pub fn not_followed_by(
        self,
        name: impl Into<String>,
        condition: impl Fn(&T) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.then(name.into(), Place::Anywhere, true, Arc::new(condition))
    }

    /// And this holds for the record, given the records that were taken before it, those of its own step among them.
    ///
    /// ```no_run
    /// # use millstream_runtime::time::EventSpan;
    /// # use millstream_operators::pattern::Pattern;
    /// // Three prices, each higher than the one before.
    /// let rising = Pattern::first("price", |_: &i64| true)
    ///     .next("higher", |_| true)
    ///     .given(|price, before| before.last().is_some_and(|last| price > last))
    ///     .times(2)
    ///     .consecutive()
    ///     .within(EventSpan::hours(1));
    /// ```
    ///
    /// # Panics
    /// When it was said already.
    #[must_use]
    pub fn given(mut self, condition: impl Fn(&T, &Matched<'_, T>) -> bool + Send + Sync + 'static) -> Self {
        let step = self.last();
        assert!(step.given.is_none(), "step `{}` has two conditions on what was matched before", step.name);
        step.given = Some(Arc::new(condition));
        self
    }

    /// The step takes so many records: `3`, `2..=4` or `2..`, as many as it can.
    ///
    /// # Panics
    /// When it is no time, or an empty range; when it was said already; and for a step that must not be there.
    #[must_use]
    pub fn times(mut self, times: impl Times) -> Self {
        let (least, most) = times.bounds();
        let step = self.taking();
        assert!((step.least, step.most) == (1, 1), "how often step `{}` comes is said twice", step.name);
        assert!(least > 0, "step `{}` is to come 0 times: it may be left out, or be `optional`", step.name);
        assert!(least <= most, "step `{}` is to come at least {least} times and at most {most} times", step.name);
        (step.least, step.most) = (least, most);
        self
    }

    /// The step takes one record, and then as many as it can.
    ///
    /// # Panics
    /// As [`times`](Self::times).
    #[must_use]
    pub fn one_or_more(self) -> Self {
        self.times(1..)
    }

    /// There is nothing between the records of the step.
    ///
    /// # Panics
    /// For a step that must not be there.
    #[must_use]
    pub fn consecutive(mut self) -> Self {
        self.taking().consecutive = true;
        self
    }

    /// The step may be left out.
    ///
    /// # Panics
    /// For the first step, and for one that must not be there.
    #[must_use]
    pub fn optional(mut self) -> Self {
        assert!(self.steps.len() > 1, "the first step of a pattern is where it begins: it cannot be optional");
        self.taking().optional = true;
        self
    }

    /// The whole of it lies within `span`: every record happened less than that after the first.
    ///
    /// # Panics
    /// When `span` is zero.
    #[must_use]
    pub fn within(self, span: EventSpan) -> Pattern<T> {
        assert!(span > EventSpan::ZERO, "a match must be within some time");
        Pattern { steps: self.steps.into(), within: span, overlapping: false, timed_out: false, limit: LIMIT }
    }

    fn last(&mut self) -> &mut Step<T> {
        self.steps.last_mut().expect("there is a first step")
    }

    /// The last step, which takes records.
    fn taking(&mut self) -> &mut Step<T> {
        let step = self.last();
        assert!(!step.not, "step `{}` must not be there, so it can neither be repeated nor left out", step.name);
        step
    }
}

/// The records of a match, by the steps of its pattern. The steps that were left out, or must not be there, have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Match<T> {
    /// Whether it is a match, and not what was left when its time was over.
    pub complete: bool,
    /// When the first record happened.
    pub since: EventTime,
    /// When the last record happened.
    pub until: EventTime,
    /// The names of the steps, and the records that each has taken, in their order.
    pub steps: Vec<(String, Vec<T>)>,
}

impl<T> Match<T> {
    /// The records of a step.
    ///
    /// # Panics
    /// When there is no step of this name.
    pub fn of(&self, step: &str) -> &[T] {
        let found = self.steps.iter().find(|(name, _)| name == step);
        &found.unwrap_or_else(|| panic!("the pattern has no step `{step}`")).1
    }

    /// The first record of a step that has one.
    ///
    /// # Panics
    /// When there is no step of this name, or it was left out.
    pub fn one(&self, step: &str) -> &T {
        self.of(step).first().unwrap_or_else(|| panic!("step `{step}` has no record in this match"))
    }

    /// The records of a step by its number, from 0 on.
    ///
    /// # Panics
    /// When there are fewer steps.
    pub fn step(&self, number: usize) -> &[T] {
        &self.steps[number].1
    }

    /// All records, in order.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.steps.iter().flat_map(|(_, records)| records)
    }
}

/// Adds patterns to keyed streams.
pub trait PatternExt<K: Key, T: Value> {
    /// What matches `pattern` among the records of each key.
    #[must_use]
    fn matches(self, pattern: Pattern<T>) -> Stream<Match<T>>;

    /// As [`matches`](Self::matches), with a second stream of late records.
    #[must_use]
    fn matches_with_late(self, pattern: Pattern<T>) -> (Stream<Match<T>>, Stream<T>);
}

impl<K: Key, T: Value> PatternExt<K, T> for KeyedStream<K, T> {
    fn matches(self, pattern: Pattern<T>) -> Stream<Match<T>> {
        self.matches_with_late(pattern).0
    }

    fn matches_with_late(self, pattern: Pattern<T>) -> (Stream<Match<T>>, Stream<T>) {
        self.process_in_order_with_late(Matching::new(pattern))
    }
}
