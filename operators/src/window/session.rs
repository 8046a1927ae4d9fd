//! Session windows: stretches of event time in which a key is never quiet for as long as a gap.
//!
//! **Time**: a record at `t` with the gap `g` takes part in `[t, t + g)`. Records of a key whose stretches overlap make one session; those
//! exactly a gap apart do not. A session fires when the watermark has come to its end.
//!
//! **Lateness**: a record is late when it is behind the watermark of its own split: then its session may have been fired. So which records
//! count does not depend on workers, batches or other splits.
//!
//! **State**: the open sessions of every key, each with an accumulator, and when the key is to be looked at next. A key whose sessions
//! have been fired is gone.

use std::ops::Range;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::KeyedRows;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::{Key, Value};
use serde::{Deserialize, Serialize};

use super::place::origin;
use super::{Pane, Window, Windows};
use crate::aggregate::Aggregate;
use crate::lateness::Lateness;
use crate::waking::{self, Waits, WakingState};

/// Windows that end when a key has been quiet for some time.
///
/// ```no_run
/// # use millstream_runtime::{stream::Stream, time::EventSpan};
/// # use millstream_operators::{aggregate::Count, window::{Session, Window, WindowExt}};
/// # #[derive(Clone)] struct Click { user: u64, is_mobile: bool }
/// # fn example(clicks: Stream<Click>) {
/// let visits: Stream<(u64, Window, u64)> = clicks
///     .key_by(|click| click.user)
///     .window(Session::with_gap_of(|click: &Click| EventSpan::mins(if click.is_mobile { 5 } else { 30 })))
///     .aggregate(Count);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Session<G = EventSpan> {
    gap: G,
}

impl Session {
    /// Sessions end after `gap` without a record.
    ///
    /// # Panics
    /// When `gap` is zero.
    pub fn with_gap(gap: EventSpan) -> Self {
        assert!(gap > EventSpan::ZERO, "the gap of a session must be more than no time");
        Session { gap }
    }
}

impl<F> Session<F> {
    /// Sessions end when each record's own gap is over. A gap of zero fails the job.
    pub fn with_gap_of<T>(gap: F) -> Self
    where
        F: Fn(&T) -> EventSpan,
    {
        Session { gap }
    }
}

/// How long a key may be quiet after a record: the same for all, or a function of the record.
pub trait Gap<T>: Clone + Send + 'static {
    /// The gap of a record.
    fn of(&self, value: &T) -> EventSpan;
    /// The gap of all records, if it is the same.
    fn fixed(&self) -> Option<EventSpan>;
}

impl<T> Gap<T> for EventSpan {
    #[inline]
    fn of(&self, _: &T) -> EventSpan {
        *self
    }
    fn fixed(&self) -> Option<EventSpan> {
        Some(*self)
    }
}

impl<T, F: Fn(&T) -> EventSpan + Clone + Send + 'static> Gap<T> for F {
    fn of(&self, value: &T) -> EventSpan {
        self(value)
    }
    fn fixed(&self) -> Option<EventSpan> {
        None
    }
}

impl<T: Data, G: Gap<T>> Windows<T> for Session<G> {
    fn aggregate<K: Key, A: Aggregate<T>>(
        self,
        keyed: KeyedStream<K, T>,
        aggregate: A,
    ) -> (Stream<Pane<K, A::Out>>, Stream<T>) {
        keyed.operator("session window", SessionWindows { gap: self.gap, aggregate, types: std::marker::PhantomData })
    }
}

struct SessionWindows<K, T, A, G> {
    gap: G,
    aggregate: A,
    types: std::marker::PhantomData<fn(K, T)>,
}

impl<K, T, A: Clone, G: Clone> Clone for SessionWindows<K, T, A, G> {
    fn clone(&self) -> Self {
        SessionWindows { gap: self.gap.clone(), aggregate: self.aggregate.clone(), types: std::marker::PhantomData }
    }
}

/// The sessions of a key that have not been fired, in order; no two overlap.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Open<Acc> {
    /// When the key will be woken, at the latest.
    wake: Option<EventTime>,
    sessions: Vec<OpenSession<Acc>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OpenSession<Acc> {
    start: EventTime,
    /// The last instant that belongs to it.
    last: EventTime,
    acc: Acc,
}

impl<Acc> OpenSession<Acc> {
    fn window(&self) -> Window {
        Window { start: self.start, end: self.last + EventSpan::micros(1) }
    }

    /// Whether it is over. Only at the end of time is everything.
    fn is_over(&self, watermark: EventTime) -> bool {
        self.last < watermark || watermark == EventTime::MAX
    }
}

impl<Acc> Open<Acc> {
    fn none() -> Self {
        Open { wake: None, sessions: Vec::new() }
    }

    /// The session for a record that takes part in `start..=last`, made of all that overlap with it.
    fn session<T>(
        &mut self,
        aggregate: &impl Aggregate<T, Acc = Acc>,
        start: EventTime,
        last: EventTime,
    ) -> &mut OpenSession<Acc> {
        let sessions = &mut self.sessions;
        // Most records belong to the newest.
        let from = match sessions.last() {
            Some(newest) if newest.start <= start => sessions.len() - usize::from(newest.last >= start),
            _ => sessions.partition_point(|session| session.last < start),
        };
        let to = from + sessions[from..].iter().take_while(|session| session.start <= last).count();
        if from == to {
            sessions.insert(from, OpenSession { start, last, acc: aggregate.create() });
        } else {
            for other in sessions.splice(from + 1..to, []).collect::<Vec<_>>() {
                let first = &mut sessions[from];
                aggregate.merge(&mut first.acc, &other.acc);
                first.last = first.last.max(other.last);
            }
            let session = &mut sessions[from];
            (session.start, session.last) = (session.start.min(start), session.last.max(last));
        }
        &mut sessions[from]
    }
}

impl<Acc: Value> Waits for Open<Acc> {
    fn wake(&mut self) -> &mut Option<EventTime> {
        &mut self.wake
    }

    fn next(&self) -> Option<EventTime> {
        self.sessions.first().map(|session| session.window().end)
    }

    fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

impl<K: Key, T: Data, A: Aggregate<T>, G: Gap<T>> KeyedOperator for SessionWindows<K, T, A, G> {
    type Key = K;
    type In = T;
    type Out = Pane<K, A::Out>;
    type State = WakingState<K, Open<A::Acc>>;

    fn describe(&self) -> String {
        match self.gap.fixed() {
            Some(gap) => format!("sessions with a gap of {gap}: {}", self.aggregate.describe()),
            None => format!("sessions with a gap by record: {}", self.aggregate.describe()),
        }
    }

    fn depends_on_order(&self) -> bool {
        A::DEPENDS_ON_ORDER
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        waking::state(groups)
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["sessions", "timers", "fired"]
    }

    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        waking::times::<K>(state, number)
    }

    fn needs_positions(&self) -> bool {
        A::NEEDS_POSITION
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, Self::Out>,
        (open, timers, marks): &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        open.load(rows.records.iter().map(|record| (record.hash, &record.key))).map_err(Error::read_back)?;
        let mut lateness = Lateness::new(rows, marks);
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            if let Some(watermark) = lateness.of(row, record) {
                cx.late(record.at, &record.value, watermark);
                continue;
            }
            let gap = self.gap.of(&record.value);
            assert!(gap > EventSpan::ZERO, "the gap of a session must be more than no time");
            let last = EventTime::from_micros(record.at.micros().saturating_add(gap.as_micros() - 1));
            let own = open.update(record.hash, &record.key, Open::none);
            let session = own.session(&self.aggregate, record.at, last);
            self.aggregate
                .add(&mut session.acc, &record.value, &origin::<K, T, A>(record, &rows.positions, row));
            waking::arm(own, timers, record.hash, &record.key)?;
        }
        Ok(())
    }

    fn on_watermark(
        &mut self,
        cx: &mut Context<T, Self::Out>,
        state: &mut Self::State,
        watermark: EventTime,
    ) -> Result<Fired> {
        waking::fire(cx, state, watermark, |cx, key, own, _| {
            let over = own.sessions.partition_point(|session| session.is_over(watermark));
            for session in own.sessions.drain(..over) {
                let window = session.window();
                cx.fired();
                cx.emit(window.last(), (key.clone(), window, self.aggregate.finish(&session.acc)));
            }
            Ok(())
        })
    }
}
