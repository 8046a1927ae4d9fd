//! The keyed operator behind process functions; see the module above.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::Range;

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired, KeyedOperator, caught};
use millstream_runtime::record::Data;
use millstream_runtime::rows::KeyedRows;
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::reader::{Holds, Reader};
use millstream_state::snapshot::{Key, State as _, Value};
use serde::{Deserialize, Serialize};

use super::waiting::{Waiting, WaitingRoom};
use super::{Process, ProcessContext, end_of};
use crate::lateness::Lateness;
use crate::waking::{self, Alarms, Waits, WakingState};

pub(super) struct ProcessOperator<K, T, P: Process<K, T>, M>
where
    K: Key,
{
    function: P,
    /// What the function has emitted and nobody has taken yet.
    out: Vec<(EventTime, P::Out)>,
    types: PhantomData<fn(K, T, M)>,
}

impl<K: Key, T, P: Process<K, T>, M> ProcessOperator<K, T, P, M> {
    pub(super) fn new(function: P) -> Self {
        ProcessOperator { function, out: Vec::new(), types: PhantomData }
    }

    pub(super) fn function(&mut self) -> &mut P {
        &mut self.function
    }
}

impl<K: Key, T, P: Process<K, T>, M> Clone for ProcessOperator<K, T, P, M> {
    fn clone(&self) -> Self {
        Self::new(self.function.clone())
    }
}

/// When records get to the function.
pub(super) trait Turn<T>: 'static {
    /// What is kept of a record that waits for its turn.
    type Waiting: Value;
    const IN_ORDER: bool;

    /// What is to be kept of a record; nothing, if it is its turn.
    fn keep(value: &T) -> Option<Self::Waiting>;
    /// The record that was kept.
    fn value(waiting: &Self::Waiting) -> &T;
}

/// At once.
pub(super) struct AsTheyCome;

/// When event time has passed them.
pub(super) struct InOrder;

/// What nobody ever is: no record waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Never {}

impl<T> Turn<T> for AsTheyCome {
    type Waiting = Never;
    const IN_ORDER: bool = false;

    fn keep(_: &T) -> Option<Never> {
        None
    }
    fn value(waiting: &Never) -> &T {
        match *waiting {}
    }
}

impl<T: Value> Turn<T> for InOrder {
    type Waiting = T;
    const IN_ORDER: bool = true;

    fn keep(value: &T) -> Option<T> {
        Some(value.clone())
    }
    fn value(waiting: &T) -> &T {
        waiting
    }
}

/// What is kept for the function, for one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept<S> {
    pub(super) state: Option<S>,
    /// From when on the state is kept, and when it is dropped, if nothing comes before.
    span: Option<(EventTime, EventTime)>,
    pub(super) timers: BTreeSet<EventTime>,
    /// By the clock.
    pub(super) clock_timers: BTreeSet<ProcessingTime>,
}

/// All that is kept for one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry<S, W> {
    alarms: Alarms,
    kept: Kept<S>,
    waiting: WaitingRoom<W>,
}

impl<S> Kept<S> {
    /// A record has come: the state is kept for as long as `span` says, from `now` on.
    fn renew(&mut self, now: EventTime, span: Option<EventSpan>) {
        // Records may come in any order.
        let since = self.span.map_or(now, |(since, _)| since.max(now));
        let span = span.filter(|_| self.state.is_some());
        self.span = span.and_then(|span| Some((since, end_of(since, span)?)));
    }

    /// A timer was called at `now`: what it has made is kept from then on; what it has left is not kept for longer.
    fn after_timer(&mut self, now: EventTime, span: Option<EventSpan>) {
        if self.state.is_none() || self.span.is_none() {
            self.renew(now, span);
        }
    }

    /// Drops the state if its time is over at `now`.
    fn expire(&mut self, now: EventTime) {
        if self.span.is_some_and(|(_, until)| until <= now) {
            (self.state, self.span) = (None, None);
        }
    }
}

impl<S, W> Entry<S, W> {
    fn new() -> Self {
        let kept = Kept { state: None, span: None, timers: BTreeSet::new(), clock_timers: BTreeSet::new() };
        Entry { alarms: Alarms::default(), kept, waiting: WaitingRoom::new() }
    }

    /// When something is to be done next.
    fn next(&self) -> Alarms {
        let timer = self.kept.timers.first().copied();
        // Another record of the same instant may still come before it.
        let record = self.waiting.first().map(|at| at + EventSpan::micros(1));
        let time = timer.into_iter().chain(record).chain(self.kept.span.map(|(_, until)| until)).min();
        Alarms::of(time, self.kept.clock_timers.first().copied())
    }
}

impl<S: Value, W: Value> Holds for Entry<S, W> {
    type Part = S;

    fn part(self) -> Option<S> {
        self.kept.state
    }
}

impl<S: Value, W: Value> Waits for Entry<S, W> {
    fn alarms(&mut self) -> &mut Alarms {
        &mut self.alarms
    }

    fn is_empty(&self) -> bool {
        let Kept { state, timers, clock_timers, .. } = &self.kept;
        state.is_none() && timers.is_empty() && clock_timers.is_empty() && self.waiting.is_empty()
    }
}

/// How many timers that are called may set others while event time stands still, or has come to its end, where no record comes between.
const MOST_SET: usize = 1_000_000;

impl<K: Key, T: Data, P: Process<K, T>, M: Turn<T>> KeyedOperator for ProcessOperator<K, T, P, M> {
    type Key = K;
    type In = T;
    type Out = P::Out;
    type State = WakingState<K, Entry<P::State, M::Waiting>>;

    fn describe(&self) -> String {
        let how = if M::IN_ORDER { "in order" } else { "as they come" };
        format!("records {how}: {}", self.function.describe())
    }

    fn depends_on_order(&self) -> bool {
        !M::IN_ORDER || P::USES_CLOCK
    }

    fn uses_clock(&self) -> bool {
        P::USES_CLOCK
    }

    fn stays_in_memory(&self) -> bool {
        P::TELLS_AT_START
    }

    fn on_start(&mut self, cx: &mut Context<T, P::Out>, (keys, ..): &mut Self::State) -> Result<()> {
        if P::TELLS_AT_START {
            let told = |(key, entry): (&K, &Entry<_, _>)| self.function.at_start(key, entry.kept.state.as_ref()?);
            keys.iter().filter_map(told).for_each(|out| cx.emit(EventTime::MIN, out));
        }
        Ok(())
    }

    fn needs_positions(&self) -> bool {
        M::IN_ORDER
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        waking::state(groups)
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["keys", "timers", "passed", "clock"]
    }

    fn readers(&self) -> Vec<Reader> {
        let mut readers = self.state(0..0).readers();
        readers[0] = Reader::keyed_with_part::<K, Entry<P::State, M::Waiting>>();
        readers
    }

    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        waking::times::<K>(state, number)
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, P::Out>,
        (keys, timers, marks, clock): &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        keys.load(rows.records.iter().map(|record| (record.hash, &record.key))).map_err(Error::read_back)?;
        let mut lateness = Lateness::new(rows, marks);
        let now = P::USES_CLOCK.then(|| cx.processing_time());
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            if let Some(watermark) = lateness.of(row, record) {
                cx.late(record.at, &record.value, watermark);
                continue;
            }
            let entry = keys.update(record.hash, &record.key, Entry::new);
            match M::keep(&record.value) {
                Some(value) => {
                    let (split, number) = rows.positions[row];
                    entry.waiting.push(Waiting { at: record.at, split, number, value });
                }
                None => {
                    let (kept, out) = (&mut entry.kept, &mut self.out);
                    kept.expire(record.at);
                    let mut called =
                        ProcessContext { key: &record.key, now: record.at, place: (0, 0), clock: now, kept, out };
                    self.function.on_record(&mut called, &record.value)?;
                    entry.kept.renew(record.at, self.function.keep_for());
                    self.out.drain(..).for_each(|(at, value)| cx.emit(at, value));
                }
            }
            waking::arm(entry, entry.next(), (timers, clock), record.hash, &record.key)?;
            if entry.is_empty() {
                waking::let_go(keys, (timers, clock), record.hash, &record.key);
            }
        }
        Ok(())
    }

    fn on_watermark(
        &mut self,
        cx: &mut Context<T, P::Out>,
        state: &mut Self::State,
        watermark: EventTime,
    ) -> Result<Fired> {
        self.advance(cx, state, watermark, watermark == EventTime::MAX)
    }

    fn on_clock(
        &mut self,
        cx: &mut Context<T, P::Out>,
        state: &mut Self::State,
        now: ProcessingTime,
    ) -> Result<Option<ProcessingTime>> {
        waking::ring(cx, state, now, |cx, key, entry, since| {
            // What is set meanwhile has its turn later, and others theirs before.
            let due: Vec<ProcessingTime> =
                entry.kept.clock_timers.iter().copied().take_while(|at| *at <= now).collect();
            for at in due {
                // An earlier one may have taken it back.
                if !entry.kept.clock_timers.remove(&at) {
                    continue;
                }
                let (kept, out) = (&mut entry.kept, &mut self.out);
                let mut context = ProcessContext { key, now: since, place: (0, 0), clock: Some(now), kept, out };
                let called = caught(|| self.function.on_processing_timer(&mut context, at));
                called.map_err(|error| error.for_key(key, since))?;
                entry.kept.after_timer(since, self.function.keep_for());
                self.out.drain(..).for_each(|(at, value)| cx.emit(at, value));
            }
            Ok(entry.next())
        })
    }
}

impl<K: Key, T: Data, P: Process<K, T>, M: Turn<T>> ProcessOperator<K, T, P, M> {
    /// Does what is due when event time comes to `watermark`; when the input has ended, all.
    pub(super) fn advance(
        &mut self,
        cx: &mut Context<T, P::Out>,
        state: &mut WakingState<K, Entry<P::State, M::Waiting>>,
        watermark: EventTime,
        is_end: bool,
    ) -> Result<Fired> {
        let clock = P::USES_CLOCK.then(|| cx.processing_time());
        let mut call = |cx: &mut Context<T, P::Out>, key: &K, entry: &mut _, since| {
            self.call(key, entry, since, (watermark, is_end), clock)?;
            self.out.drain(..).for_each(|(at, value)| cx.emit(at, value));
            Ok(entry.next())
        };
        let fired = waking::fire(cx, state, watermark, &mut call)?;
        if fired == Fired::All && P::USES_CLOCK && is_end {
            // Nobody will wait for the clock any more.
            let more = waking::ring(cx, state, ProcessingTime::MAX, call)?;
            return Ok(if more.is_some() { Fired::More } else { Fired::All });
        }
        Ok(fired)
    }

    /// Calls the function for all records and timers of a key whose turn it is, in order. Event time had come to `since` before.
    fn call(
        &mut self,
        key: &K,
        entry: &mut Entry<P::State, M::Waiting>,
        since: EventTime,
        (watermark, is_end): (EventTime, bool),
        clock: Option<ProcessingTime>,
    ) -> Result<()> {
        let is_due = |at| at < watermark || is_end;
        let mut due = entry.waiting.take(is_due, |value| self.function.rank(M::value(value)))?;
        let (mut now, mut left) = (since, entry.kept.timers.len() + entry.kept.clock_timers.len() + MOST_SET);
        loop {
            let timer = entry.kept.timers.first().copied().filter(|at| *at <= watermark);
            let record = due.front().map(|waiting| waiting.at);
            let (kept, out) = (&mut entry.kept, &mut self.out);
            let next = timer.into_iter().chain(record).min();
            if next.is_some() || kept.clock_timers.is_empty() || !is_end {
                kept.expire(next.map_or(watermark, |next| next.max(now)));
            }
            let place = (0, 0);
            let called = match (timer, record) {
                (Some(at), record) if record.is_none_or(|record| at <= record) => {
                    kept.timers.remove(&at);
                    if at <= now || is_end {
                        left -= 1;
                    }
                    now = now.max(at);
                    let mut context = ProcessContext { key, now, place, clock, kept, out };
                    let called = caught(|| self.function.on_timer(&mut context, at));
                    kept.after_timer(now, self.function.keep_for());
                    called
                }
                (_, Some(_)) => {
                    let Some(waiting) = due.pop_front() else { return Ok(()) };
                    now = now.max(waiting.at);
                    left = kept.timers.len() + kept.clock_timers.len() + MOST_SET;
                    let place = (waiting.split, waiting.number);
                    let mut context = ProcessContext { key, now, place, clock, kept, out };
                    let called = caught(|| self.function.on_record(&mut context, M::value(&waiting.value)));
                    kept.renew(now, self.function.keep_for());
                    called
                }
                // At the end all timers are called, whatever the clock says.
                _ => match if is_end { kept.clock_timers.pop_first() } else { None } {
                    Some(at) => {
                        left -= 1;
                        let mut context = ProcessContext { key, now, place, clock, kept, out };
                        let called = caught(|| self.function.on_processing_timer(&mut context, at));
                        kept.after_timer(now, self.function.keep_for());
                        called
                    }
                    None => return Ok(()),
                },
            };
            called.map_err(|error| error.for_key(key, now))?;
            if left == 0 {
                let error = Error::user("timers that are called set others, without end").for_key(key, now);
                return Err(error.hint(
                    "set a timer for later than now, and, as time goes on for ever when the input has ended, only to wait for something",
                ));
            }
        }
    }
}
