//! The operator behind windows whose bounds depend on the data, and behind windows with more than one result: per key, the windows that
//! are not done with.
//!
//! A record that is late for a window's own end, within the allowed lateness, waits for the result of that end and updates it. So what a window
//! shows at its end depends on the input alone. What is kept after the end goes when no record can belong to it any more: then its end
//! and the allowed lateness are behind the watermark, and no window overlaps it that has still to end.
//!
//! **Source**: early, on-time and late results, and the three modes, are those of Akidau et al., *The Dataflow Model* (PVLDB 8(12), 2015);
//! that late records wait for the result on time is our own.

use std::marker::PhantomData;
use std::ops::Range;

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{KeyedRecord, KeyedRows};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::key_group::group_of;
use millstream_state::snapshot::{Key, Value};

use super::assigned::{Assigned, Bounds};
use super::open::{INSTANT, Open, OpenWindow};
use super::place::origin;
use super::update::{Change, Mode, Rules, Timing};
use super::{Pane, Window, Windows};
use crate::aggregate::{Aggregate, Origin};
use crate::lateness::Lateness;
use crate::waking::{self, Alarms, Waits, WakingState};

/// What results look like.
pub(super) trait Shows<K, O>: 'static {
    type Out: Data;
    fn show(key: &K, window: Window, timing: Timing, change: Change, result: O) -> Self::Out;
}

/// Windows have one result, at their end.
pub(super) struct Panes;

impl<K: Key, O: Data> Shows<K, O> for Panes {
    type Out = Pane<K, O>;

    fn show(key: &K, window: Window, _: Timing, _: Change, result: O) -> Pane<K, O> {
        (key.clone(), window, result)
    }
}

pub(super) struct KeyedWindows<K, T, W, A, S> {
    windows: W,
    aggregate: A,
    rules: Rules,
    /// The windows of one record.
    assigned: Assigned,
    types: PhantomData<fn(K, T, S)>,
}

impl<K, T, W, A, S> KeyedWindows<K, T, W, A, S> {
    pub(super) fn new(windows: W, aggregate: A, rules: Rules) -> Self {
        KeyedWindows { windows, aggregate, rules, assigned: Assigned::default(), types: PhantomData }
    }
}

impl<K, T, W: Clone, A: Clone, S> Clone for KeyedWindows<K, T, W, A, S> {
    fn clone(&self) -> Self {
        Self::new(self.windows.clone(), self.aggregate.clone(), self.rules)
    }
}

impl<Acc: Value> Waits for Open<Acc> {
    fn alarms(&mut self) -> &mut Alarms {
        &mut self.alarms
    }

    fn is_empty(&self) -> bool {
        self.on_time.0.is_empty() && self.after.0.is_empty()
    }
}

impl<K, T, W, A, S> KeyedOperator for KeyedWindows<K, T, W, A, S>
where
    K: Key,
    T: Data,
    W: Windows<T>,
    A: Aggregate<T>,
    S: Shows<K, A::Out>,
{
    type Key = K;
    type In = T;
    type Out = S::Out;
    type State = WakingState<K, Open<A::Acc>>;

    fn describe(&self) -> String {
        format!("{}: {}{}", self.windows.describe(), self.aggregate.describe(), self.rules.describe())
    }

    fn depends_on_order(&self) -> bool {
        A::DEPENDS_ON_ORDER || self.rules.updates()
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        waking::state(groups)
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["windows", "timers", "fired", "clock"]
    }

    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        waking::times::<K>(state, number)
    }

    fn needs_positions(&self) -> bool {
        A::NEEDS_POSITION
    }

    fn uses_clock(&self) -> bool {
        self.rules.early.clock.is_some()
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, S::Out>,
        (open, timers, marks, clock): &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        open.load(rows.records.iter().map(|record| (record.hash, &record.key))).map_err(Error::read_back)?;
        let mut lateness = Lateness::new(rows, marks);
        let mut assigned = std::mem::take(&mut self.assigned);
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            let watermark = lateness.of(row, record);
            assigned.find(&self.windows, record.at, &record.value)?;
            let counted = assigned.len();
            if let Some(watermark) = watermark {
                assigned.retain(|last| self.extent(record.at, last) + self.rules.allowed >= watermark);
                if assigned.len() == 0 && counted > 0 {
                    cx.late(record.at, &record.value, watermark);
                }
            }
            if assigned.len() == 0 {
                continue;
            }
            let own = open.update(record.hash, &record.key, Open::none);
            let passed = if self.rules.updates() { marks.get(group_of(record.hash)) } else { i64::MIN };
            let row = Row {
                record,
                origin: origin::<K, T, A>(record, &rows.positions, row),
                watermark,
                passed: EventTime::from_micros(passed),
                now: cx.processing_time(),
            };
            for bounds in assigned.iter() {
                let on_time = watermark.is_none_or(|watermark| self.extent(record.at, bounds.1) >= watermark);
                if on_time { self.add(cx, own, bounds, &row) } else { self.add_late(cx, own, bounds, &row) }
            }
            waking::arm(own, self.next(own, row.passed), (timers, clock), record.hash, &record.key)?;
        }
        self.assigned = assigned;
        Ok(())
    }

    fn on_watermark(
        &mut self,
        cx: &mut Context<T, S::Out>,
        state: &mut Self::State,
        watermark: EventTime,
    ) -> Result<Fired> {
        waking::fire(cx, state, watermark, |cx, key, own, _| {
            self.fire_early(cx, key, own, watermark);
            self.fire_on_time(cx, key, own, watermark);
            self.fire_late(cx, key, own, watermark);
            Ok(self.next(own, watermark))
        })
    }

    fn on_clock(
        &mut self,
        cx: &mut Context<T, S::Out>,
        state: &mut Self::State,
        now: ProcessingTime,
    ) -> Result<Option<ProcessingTime>> {
        waking::ring(cx, state, now, |cx, key, own, passed| {
            for window in &mut own.on_time.0 {
                if window.by_clock().is_some_and(|at| at <= now) {
                    self.show(cx, key, window, Timing::Early, passed, None);
                }
            }
            Ok(self.next(own, passed))
        })
    }
}

impl<K, T, W, A, S> KeyedWindows<K, T, W, A, S>
where
    K: Key,
    T: Data,
    W: Windows<T>,
    A: Aggregate<T>,
    S: Shows<K, A::Out>,
{
    /// Until when a record is not late for a window: to its end, if that was certain before the record came.
    fn extent(&self, at: EventTime, last: EventTime) -> EventTime {
        if W::MERGE { at } else { last }
    }

    fn add(&self, cx: &mut Context<T, S::Out>, own: &mut Open<A::Acc>, bounds: Bounds, row: &Row<'_, K, T>) {
        let window = own.on_time.window(bounds, W::MERGE, &self.aggregate);
        window.add(&self.aggregate, &row.record.value, &row.origin);
        if !self.rules.early.is_any() {
            return;
        }
        let last = window.last;
        let more = window.more();
        more.news += 1;
        let due = self.rules.early.next_after(row.record.at.max(row.passed)).filter(|at| *at <= last);
        more.early = more.early.into_iter().chain(due).min();
        if let Some(span) = self.rules.early.clock {
            more.by_clock.get_or_insert(row.now + span);
        }
        if self.rules.early.count.is_some_and(|count| more.news >= count) {
            self.show(cx, &row.record.key, window, Timing::Early, row.record.at, row.watermark);
        }
    }

    fn add_late(&self, cx: &mut Context<T, S::Out>, own: &mut Open<A::Acc>, bounds: Bounds, row: &Row<'_, K, T>) {
        let window = own.after.window(bounds, W::MERGE, &self.aggregate);
        window.add(&self.aggregate, &row.record.value, &row.origin);
        let more = window.more();
        more.news += 1;
        // What is derived from several records is behind the furthest watermark of these.
        more.behind = more.behind.max(row.watermark);
        if window.is_over(row.passed) {
            let behind = window.more().behind;
            self.show(cx, &row.record.key, window, Timing::Late, row.record.at, behind);
        }
    }

    fn fire_early(&self, cx: &mut Context<T, S::Out>, key: &K, own: &mut Open<A::Acc>, watermark: EventTime) {
        for window in &mut own.on_time.0 {
            if window.early().is_some_and(|at| at <= watermark) && !window.is_over(watermark) {
                self.show(cx, key, window, Timing::Early, watermark, None);
            }
        }
    }

    fn fire_on_time(&self, cx: &mut Context<T, S::Out>, key: &K, own: &mut Open<A::Acc>, watermark: EventTime) {
        let over = own.on_time.0.partition_point(|window| window.is_over(watermark));
        for mut window in own.on_time.0.drain(..over) {
            if window.acc.is_some() {
                cx.fired();
            }
            self.show(cx, key, &mut window, Timing::OnTime, watermark, None);
            if self.rules.allowed > EventSpan::ZERO {
                own.after.put(window, W::MERGE, &self.aggregate);
            }
        }
    }

    fn fire_late(&self, cx: &mut Context<T, S::Out>, key: &K, own: &mut Open<A::Acc>, watermark: EventTime) {
        for window in &mut own.after.0 {
            if window.has_news() && window.is_over(watermark) {
                let behind = window.more().behind;
                self.show(cx, key, window, Timing::Late, watermark, behind);
            }
        }
        let Open { on_time, after, .. } = own;
        after.0.retain(|window| {
            !window.is_over(watermark)
                || window.last + self.rules.allowed >= watermark && watermark != EventTime::MAX
                || W::MERGE && on_time.iter().any(|other| other.overlaps(window))
        });
    }

    /// When something is to be done for a key. Event time has come to `passed`.
    fn next(&self, own: &Open<A::Acc>, passed: EventTime) -> Alarms {
        let end = own.on_time.0.first().map(OpenWindow::end);
        if !self.rules.updates() {
            return Alarms::of(end, None);
        }
        let early = own.on_time.iter().filter_map(OpenWindow::early);
        let late = own.after.iter().map(|window| {
            let shows = window.has_news() && !window.is_over(passed);
            if shows { window.end() } else { window.last + self.rules.allowed + INSTANT }
        });
        // What is kept although that is over waits for a window that has still to end.
        Alarms::of(
            end.into_iter().chain(early).chain(late.filter(|at| *at > passed)).min(),
            own.on_time.iter().filter_map(OpenWindow::by_clock).min(),
        )
    }

    /// Emits what a window comes to now.
    fn show(
        &self,
        cx: &mut Context<T, S::Out>,
        key: &K,
        own: &mut OpenWindow<A::Acc>,
        timing: Timing,
        now: EventTime,
        behind: Option<EventTime>,
    ) {
        let window = own.window();
        if self.rules.updates() {
            let more = own.more();
            (more.news, more.early, more.by_clock) = (0, None, None);
        }
        let Some(acc) = &own.acc else { return };
        let at = if window.end == EventTime::MAX { now.min(window.last()) } else { window.last() };
        let behind = behind.filter(|watermark| at < *watermark);
        let mut emit = |window: Window, change: Change, acc: &A::Acc| {
            let value = S::show(key, window, timing, change, self.aggregate.finish(acc));
            match behind {
                Some(watermark) => cx.emit_behind(at, value, watermark),
                None => cx.emit(at, value),
            }
        };
        match self.rules.mode {
            Mode::Accumulating => emit(window, Change::Insert, acc),
            Mode::Discarding => {
                emit(window, Change::Insert, acc);
                own.acc = None;
            }
            Mode::Retracting => {
                let acc = acc.clone();
                let before = std::mem::replace(&mut own.more().shown, vec![(window, acc.clone())]);
                before.iter().for_each(|(window, acc)| emit(*window, Change::Retract, acc));
                emit(window, Change::Insert, &acc);
            }
        }
    }
}

/// A record, and what matters for its windows.
struct Row<'a, K, T> {
    record: &'a KeyedRecord<K, T>,
    origin: Origin,
    /// The watermark that it is behind, if it is.
    watermark: Option<EventTime>,
    /// How far event time has come for its key.
    passed: EventTime,
    /// What the clock says, where it is asked.
    now: ProcessingTime,
}
