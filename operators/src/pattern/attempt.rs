//! How a pattern is looked for; see the module above for what matches.
//!
//! All that is kept is plain data: which records an attempt has taken, by numbers, and what it needs to go on. Whether records fit is asked of the
//! pattern.

use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::time::EventTime;
use millstream_state::snapshot::{Key, Value};
use serde::{Deserialize, Serialize};

use super::{Match, Pattern, Place, Step};
use crate::process::{Process, ProcessContext};

/// The function that looks for a pattern.
pub(super) struct Matching<T> {
    pattern: Pattern<T>,
}

impl<T> Matching<T> {
    pub(super) fn new(pattern: Pattern<T>) -> Self {
        Matching { pattern }
    }
}

impl<T> Clone for Matching<T> {
    fn clone(&self) -> Self {
        Matching { pattern: self.pattern.clone() }
    }
}

/// What is kept for a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Open<T> {
    /// In the order in which they began.
    attempts: VecDeque<Attempt>,
    /// What they have taken, by steps.
    taken: Vec<Taken<T>>,
    /// How many records came since the first of all that is kept.
    seen: u64,
}

/// What attempts have taken for one step, by numbers of its own: so those that an attempt took one after the other are told by two numbers, however
/// many they are, and whatever other steps have taken between.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Taken<T> {
    next: u64,
    records: BTreeMap<u64, Held<T>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Held<T> {
    at: EventTime,
    value: T,
    /// How many attempts have taken it for this step.
    attempts: u64,
}

/// Something that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attempt {
    since: EventTime,
    /// Which records are its first and its last, of those that were seen.
    first: u64,
    last: u64,
    /// What it has taken, in order; never empty.
    runs: Vec<Run>,
    /// How many the last step has taken.
    count: u64,
    /// Whether a record has come since the last one taken.
    skipped: bool,
    /// The step that must not be there and was, since the last record taken: those behind it are out of reach.
    broken: Option<u32>,
}

/// Records that one step has taken and whose numbers follow one another.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Run {
    step: u32,
    first: u64,
    last: u64,
}

impl Run {
    fn of<T>(self, taken: &[Taken<T>]) -> impl DoubleEndedIterator<Item = &Held<T>> + use<'_, T> {
        taken[self.step as usize].records.range(self.first..=self.last).map(|(_, held)| held)
    }
}

/// How an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Something may still come of it, or change it.
    Open,
    /// It is a match, whatever comes.
    Decided,
    /// Nothing can come of it.
    Lost,
}

/// What an attempt has taken so far.
pub struct Matched<'a, T> {
    steps: &'a [Step<T>],
    runs: &'a [Run],
    taken: &'a [Taken<T>],
}

impl<'a, T> Matched<'a, T> {
    /// The records of a step, in order.
    ///
    /// # Panics
    /// When there is no step of this name.
    pub fn of(&self, step: &str) -> impl DoubleEndedIterator<Item = &'a T> + use<'a, T> {
        let number = self.steps.iter().position(|own| own.name == step);
        let number = number.unwrap_or_else(|| panic!("the pattern has no step `{step}`"));
        let (runs, taken) = (self.runs, self.taken);
        let of_step = runs.iter().filter(move |run| run.step as usize == number);
        of_step.flat_map(move |run| run.of(taken)).map(|held| &held.value)
    }

    /// All of them, in order. None, when a record is to be the first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &'a T> + use<'a, T> {
        let taken = self.taken;
        self.runs.iter().flat_map(move |run| run.of(taken)).map(|held| &held.value)
    }

    /// The first of them.
    pub fn first(&self) -> Option<&'a T> {
        self.records().next()
    }

    /// The last of them.
    pub fn last(&self) -> Option<&'a T> {
        self.records().next_back()
    }
}

/// A record that is offered, with what is known of it.
struct Offered<'a, T> {
    steps: &'a [Step<T>],
    value: &'a T,
    /// Which steps' own conditions hold, as far as it was asked: many attempts may ask the same.
    holds: Vec<Option<bool>>,
}

impl<T> Offered<'_, T> {
    fn fits(&mut self, step: usize, runs: &[Run], taken: &[Taken<T>]) -> bool {
        let Step { condition, given, .. } = &self.steps[step];
        let holds = *self.holds[step].get_or_insert_with(|| condition(self.value));
        let matched = Matched { steps: self.steps, runs, taken };
        holds && given.as_ref().is_none_or(|given| given(self.value, &matched))
    }
}

impl Attempt {
    /// One that is about to take its first record.
    fn new(since: EventTime, seen: u64) -> Self {
        Attempt { since, first: seen, last: seen, runs: Vec::new(), count: 0, skipped: false, broken: None }
    }

    /// The last step that has taken a record.
    fn step(&self) -> usize {
        self.runs.last().map_or(0, |run| run.step as usize)
    }

    /// The step that takes the record, if one does; notes a step that must not be there and is.
    fn choose<T>(&mut self, offered: &mut Offered<'_, T>, taken: &[Taken<T>]) -> Option<usize> {
        let steps = offered.steps;
        let current = self.step();
        if self.can_repeat(&steps[current]) && offered.fits(current, &self.runs, taken) {
            return Some(current);
        }
        for number in self.behind(steps) {
            let step = &steps[number];
            let here = step.place == Place::Anywhere || !self.skipped;
            if here && offered.fits(number, &self.runs, taken) {
                if step.not {
                    self.broken = u32::try_from(number).ok();
                    return None;
                }
                return Some(number);
            }
        }
        None
    }

    /// Takes a record: the last that was seen, and this one of those of the step.
    fn take(&mut self, step: u32, number: u64, seen: u64) {
        let before = self.runs.last().map(|run| run.step);
        match self.runs.last_mut() {
            Some(run) if run.step == step && run.last + 1 == number => run.last = number,
            _ => self.runs.push(Run { step, first: number, last: number }),
        }
        self.count = if before == Some(step) { self.count + 1 } else { 1 };
        (self.last, self.skipped, self.broken) = (seen, false, None);
    }

    /// Whether the last step may take another record.
    fn can_repeat<T>(&self, step: &Step<T>) -> bool {
        self.count < step.most as u64 && !(step.consecutive && self.skipped)
    }

    /// The steps behind the last one that are in reach.
    fn behind<T>(&self, steps: &[Step<T>]) -> std::ops::Range<usize> {
        let behind = self.step() + 1;
        if self.count < steps[behind - 1].least as u64 {
            return behind..behind;
        }
        let needed = (behind..steps.len()).find(|step| !steps[*step].not && !steps[*step].optional);
        let end = needed.map_or(steps.len(), |needed| needed + 1);
        behind..self.broken.map_or(end, |broken| end.min(broken as usize)).max(behind)
    }

    /// Whether it is a match if nothing more comes.
    fn is_complete<T>(&self, steps: &[Step<T>]) -> bool {
        let enough = self.count >= steps[self.step()].least as u64;
        enough && self.broken.is_none() && steps[self.step() + 1..].iter().all(|step| step.not || step.optional)
    }

    fn standing<T>(&self, steps: &[Step<T>]) -> Standing {
        let is_complete = self.is_complete(steps);
        let matters = |number: usize| {
            let step = &steps[number];
            // What must not be there cannot make a match of it.
            (step.place == Place::Anywhere || !self.skipped) && (!step.not || is_complete)
        };
        if self.can_repeat(&steps[self.step()]) || self.behind(steps).any(matters) {
            Standing::Open
        } else if is_complete {
            Standing::Decided
        } else {
            Standing::Lost
        }
    }
}

impl<T: Value> Open<T> {
    fn new(steps: usize) -> Self {
        let taken = (0..steps).map(|_| Taken { next: 0, records: BTreeMap::new() }).collect();
        Open { attempts: VecDeque::new(), taken, seen: 0 }
    }

    /// Forgets an attempt that is gone, and what nobody else has taken.
    fn release(&mut self, attempt: &Attempt) {
        for run in &attempt.runs {
            let records = &mut self.taken[run.step as usize].records;
            for number in run.first..=run.last {
                if let Entry::Occupied(mut held) = records.entry(number) {
                    held.get_mut().attempts -= 1;
                    if held.get().attempts == 0 {
                        held.remove();
                    }
                }
            }
        }
    }

    fn found(&self, attempt: &Attempt, steps: &[Step<T>], complete: bool) -> Match<T> {
        let last = attempt.runs.last().and_then(|run| run.of(&self.taken).next_back());
        let matched = Matched { steps, runs: &attempt.runs, taken: &self.taken };
        let records = |step: &Step<T>| (step.name.clone(), matched.of(&step.name).cloned().collect());
        let (since, until) = (attempt.since, last.map_or(attempt.since, |held| held.at));
        Match { complete, since, until, steps: steps.iter().map(records).collect() }
    }
}

/// The first attempt, if it is one of those.
fn pop_if(attempts: &mut VecDeque<Attempt>, is_one: impl Fn(&Attempt) -> bool) -> Option<Attempt> {
    if is_one(attempts.front()?) { attempts.pop_front() } else { None }
}

type Called<'a, K, T> = ProcessContext<'a, K, Open<T>, Match<T>>;

impl<T: Value> Matching<T> {
    /// When the time of an attempt is over.
    fn end(&self, attempt: &Attempt) -> EventTime {
        attempt.since + self.pattern.within
    }

    /// Emits a match. Unless they may overlap, all attempts that began before its end are given up; returns the number of its last record.
    fn emit<K: Key>(&self, cx: &mut Called<'_, K, T>, open: &mut Open<T>, attempt: &Attempt) -> Option<u64> {
        cx.emit(open.found(attempt, &self.pattern.steps, true));
        if self.pattern.overlapping {
            return None;
        }
        let last = attempt.last;
        while let Some(other) = pop_if(&mut open.attempts, |other| other.first <= last) {
            open.release(&other);
        }
        Some(last)
    }

    /// Puts back what is to be kept, with a timer for when the time of the first attempt is over.
    fn keep<K: Key>(&self, cx: &mut Called<'_, K, T>, open: Open<T>) -> Result<()> {
        let limit = self.pattern.limit;
        let runs: usize = open.attempts.iter().map(|attempt| attempt.runs.len()).sum();
        let records: usize = open.taken.iter().map(|taken| taken.records.len()).sum();
        if runs.max(records) > limit {
            let error = Error::user(format!(
                "a key has more than {limit} attempts at a pattern, or records that these have taken"
            ));
            return Err(error.hint(
                "let fewer records fit the first step, match within a shorter span, or allow more by `Pattern::limit`",
            ));
        }
        let end = open.attempts.front().map(|attempt| self.end(attempt));
        *cx.state() = (!open.attempts.is_empty()).then_some(open);
        if cx.next_timer() != end {
            // There is never more than one.
            if let Some(old) = cx.next_timer() {
                cx.delete_timer(old);
            }
            end.into_iter().for_each(|end| cx.set_timer(end));
        }
        Ok(())
    }
}

impl<K: Key, T: Value> Process<K, T> for Matching<T> {
    type State = Open<T>;
    type Out = Match<T>;

    fn describe(&self) -> String {
        self.pattern.describe()
    }

    fn on_record(&mut self, cx: &mut Called<'_, K, T>, value: &T) -> Result<()> {
        let steps = Arc::clone(&self.pattern.steps);
        let mut offered = Offered { steps: &steps, value, holds: vec![None; steps.len()] };
        let begins = offered.fits(0, &[], &[]);
        let mut open = match cx.state().take() {
            Some(open) => open,
            None if begins => Open::new(steps.len()),
            None => return Ok(()),
        };
        let (seen, at) = (open.seen, cx.now());
        open.seen += 1;
        // How many attempts take the record for which step. It is not among the others before all have been asked.
        let mut takes = vec![0; steps.len()];
        let mut attempts = std::mem::take(&mut open.attempts);
        if begins {
            attempts.push_back(Attempt::new(at, seen));
        }
        for attempt in &mut attempts {
            let step = if attempt.runs.is_empty() { Some(0) } else { attempt.choose(&mut offered, &open.taken) };
            match step {
                Some(step) => {
                    attempt.take(u32::try_from(step).unwrap_or(u32::MAX), open.taken[step].next, seen);
                    takes[step] += 1;
                }
                None => attempt.skipped = true,
            }
        }
        for (taken, attempts) in open.taken.iter_mut().zip(takes).filter(|(_, attempts)| *attempts > 0) {
            taken.records.insert(taken.next, Held { at, value: value.clone(), attempts });
            taken.next += 1;
        }
        let mut decided = Vec::new();
        for attempt in attempts {
            match attempt.standing(&steps) {
                Standing::Open => open.attempts.push_back(attempt),
                Standing::Decided => decided.push(attempt),
                Standing::Lost => open.release(&attempt),
            }
        }
        let mut past = None;
        for attempt in decided {
            if past.is_none_or(|past| attempt.first > past) {
                past = self.emit(cx, &mut open, &attempt).or(past);
            }
            open.release(&attempt);
        }
        self.keep(cx, open)
    }

    fn on_timer(&mut self, cx: &mut Called<'_, K, T>, _: EventTime) -> Result<()> {
        let Some(mut open) = cx.state().take() else { return Ok(()) };
        let now = cx.now();
        while let Some(attempt) = pop_if(&mut open.attempts, |attempt| self.end(attempt) <= now) {
            if attempt.is_complete(&self.pattern.steps) {
                self.emit(cx, &mut open, &attempt);
            } else if self.pattern.timed_out {
                cx.emit(open.found(&attempt, &self.pattern.steps, false));
            }
            open.release(&attempt);
        }
        self.keep(cx, open)
    }
}
