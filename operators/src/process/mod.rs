//! Process functions: logic of your own over the records of a key, with state and timers.
//!
//! **Shape**: keyed in; out comes what the function emits, and a second stream of late records. **State**: one value of a type of your own
//! per key, until the function lets go of it or [its time is over](Process::keep_for), and timers; a key without either is gone.
//!
//! **Time**: a timer set for `t` is called when event time has come to `t`: no record from before `t` will come, unless it is late. What is
//! emitted happened when the record did, or at the timer's time. When the input has ended all timers are called, in order, with those that they
//! set.
//!
//! Timers by the [clock](Process::USES_CLOCK) are called when that has come to them, within a millisecond where the worker has time; those that are
//! left when the input has ended are called then. After a restart those that were due meanwhile are called at once.
//!
//! **Lateness**: a record is late when it is behind the watermark of its own split; late records are counted, and go to the second output.
//! So which are late does not depend on workers, batches or other splits.
//!
//! **Order**: [`process`](ProcessExt::process) sees records as they come, and timers after what came before them. Records of one split come in
//! their order; between splits it is left to chance. So results may differ between two runs, and a replay does not compare them.
//! [`process_in_order`](ProcessExt::process_in_order) keeps records until event time has passed them, and sees the records and timers of a key
//! by event time, a timer before the records of its instant, and records of one instant by split and position (results of operators with state,
//! which have none, by their bytes). Then results depend on the input alone.
//!
//! **Cost**: the whole value of a key, with the records that wait, is written when it has changed, and all that is due for a key is done in one go.
//!
//! **Failures**: a record that waited is part of checkpoints when the function fails on it, so it cannot be set aside
//! ([`Job::set_aside_after`](millstream_runtime::job::Job::set_aside_after)).

pub mod broadcast;
mod operator;
mod waiting;

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::Result;
use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::{Key, Value};

use crate::aggregate::Origin;
pub use broadcast::{BroadcastProcess, BroadcastProcessExt};
use operator::{AsTheyCome, InOrder, ProcessOperator};

/// What is done with the records of a key. Every worker has a clone; what is to outlive a crash belongs in [`State`](Self::State).
///
/// # Example
///
/// Alerts when a machine has been silent for five minutes:
///
/// ```no_run
/// # use millstream_runtime::{error::Result, stream::Stream, time::{EventSpan, EventTime}};
/// # use millstream_operators::process::{Process, ProcessContext, ProcessExt};
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Reading { machine: u32 }
/// #[derive(Clone)]
/// struct Silence;
///
/// impl Process<u32, Reading> for Silence {
///     /// When the machine was heard of last.
///     type State = EventTime;
///     type Out = (u32, EventTime);
///
///     fn on_record(&mut self, cx: &mut ProcessContext<'_, u32, EventTime, Self::Out>, _: &Reading) -> Result<()> {
///         let now = cx.now();
///         match cx.state().replace(now) {
///             Some(last) => drop(cx.replace_timer(last + EventSpan::mins(5), now + EventSpan::mins(5))),
///             None => cx.set_timer(now + EventSpan::mins(5)),
///         }
///         Ok(())
///     }
///
///     fn on_timer(&mut self, cx: &mut ProcessContext<'_, u32, EventTime, Self::Out>, _: EventTime) -> Result<()> {
///         if let Some(last) = cx.state().take() {
///             cx.emit((*cx.key(), last));
///         }
///         Ok(())
///     }
/// }
///
/// # fn example(readings: Stream<Reading>) {
/// let silent: Stream<(u32, EventTime)> = readings.key_by(|reading| reading.machine).process_in_order(Silence);
/// # }
/// ```
pub trait Process<K: Key, T>: Clone + Send + 'static {
    /// What is kept per key.
    type State: Value;
    /// What is emitted.
    type Out: Data;

    /// What it does, in a word: a checkpoint of an operator whose function was called otherwise is refused. The type's own name, unless
    /// implemented.
    fn describe(&self) -> String {
        own_name::<Self>()
    }

    /// In [order](ProcessExt::process_in_order), records of one instant with a lower rank come before those with a higher one, and only
    /// then split and position decide.
    fn rank(&self, value: &T) -> u8 {
        let _ = value;
        0
    }

    /// How long the state of a key is kept, in event time, after its last record: then it is dropped, before timers and records of that
    /// instant. For ever, unless implemented. Timers stay, and make nothing last longer; but what a timer makes, where there was nothing,
    /// is kept for as long after it. It may be changed between two starts, and counts from the next record on.
    ///
    /// Where records are seen [as they come](ProcessExt::process), one that happened when the time was over drops the state too, though event
    /// time has not come to it.
    fn keep_for(&self) -> Option<EventSpan> {
        None
    }

    /// Whether it asks for the clock, or sets timers by it. Then its results depend on that, and a replay does not compare them.
    const USES_CLOCK: bool = false;

    /// For tables alone: whether what is kept for each key is told again at the start of a run, and how.
    #[doc(hidden)]
    const TELLS_AT_START: bool = false;

    #[doc(hidden)]
    fn at_start(&self, key: &K, state: &Self::State) -> Option<Self::Out> {
        let _ = (key, state);
        None
    }

    /// A record of the key has come.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, Self::State, Self::Out>, value: &T) -> Result<()>;

    /// Event time has come to `at`, for which a timer was set.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_timer(&mut self, cx: &mut ProcessContext<'_, K, Self::State, Self::Out>, at: EventTime) -> Result<()> {
        let _ = (cx, at);
        Ok(())
    }

    /// The clock has come to `at`, for which a timer was set by it, or the input has ended.
    /// [Now](ProcessContext::now), when what it emits happened, is how far event time had come: the beginning of time, if there was no watermark yet.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_processing_timer(
        &mut self,
        cx: &mut ProcessContext<'_, K, Self::State, Self::Out>,
        at: ProcessingTime,
    ) -> Result<()> {
        let _ = (cx, at);
        Ok(())
    }
}

/// The name of a type, without its path and parameters.
fn own_name<P>() -> String {
    let path = std::any::type_name::<P>().split('<').next().unwrap_or_default();
    path.rsplit("::").next().unwrap_or_default().to_string()
}

/// When what begins at `at` and lasts for `span` is over: never, if that is after the last instant there is.
pub(crate) fn end_of(at: EventTime, span: EventSpan) -> Option<EventTime> {
    at.micros().checked_add(span.as_micros()).map(EventTime::from_micros)
}

/// The key that a [`Process`] is called for: its state and timers, and where results go.
#[derive(Debug)]
pub struct ProcessContext<'a, K, S, O> {
    key: &'a K,
    now: EventTime,
    /// Split and number of the record.
    place: (u32, u64),
    /// What the clock says, where it may be asked.
    clock: Option<ProcessingTime>,
    kept: &'a mut operator::Kept<S>,
    out: &'a mut Vec<(EventTime, O)>,
}

impl<'a, K, S, O> ProcessContext<'a, K, S, O> {
    /// The key.
    pub fn key(&self) -> &'a K {
        self.key
    }

    /// When the record happened, or for when the timer was set. It never goes back where records come in order; a timer that was set for
    /// the past is called next, and now is not before what was called before it.
    pub fn now(&self) -> EventTime {
        self.now
    }

    /// When and where the record comes from, for aggregates that a function keeps. Its position is known only where records come in
    /// [order](ProcessExt::process_in_order), and not for results of operators with state.
    pub fn origin(&self) -> Origin {
        Origin { at: self.now, split: self.place.0, record: self.place.1 }
    }

    /// What is kept for the key: nothing at first, and nothing again when that is left there.
    pub fn state(&mut self) -> &mut Option<S> {
        &mut self.kept.state
    }

    /// Has the key called at `at`; if that is over, when event time moves on next. A key has at most one timer for an instant.
    pub fn set_timer(&mut self, at: EventTime) {
        self.kept.timers.insert(at);
    }

    /// Takes the timer for `at` back; returns whether there was one.
    pub fn delete_timer(&mut self, at: EventTime) -> bool {
        self.kept.timers.remove(&at)
    }

    /// Takes the timer for `old` back, if there is one, and sets one for `new`; returns whether there was one.
    pub fn replace_timer(&mut self, old: EventTime, new: EventTime) -> bool {
        let was_set = self.delete_timer(old);
        self.set_timer(new);
        was_set
    }

    /// The next timer of the key.
    pub fn next_timer(&self) -> Option<EventTime> {
        self.kept.timers.first().copied()
    }

    /// What the clock says: that of the machine, unless the job has [another](millstream_runtime::job::Job::clock).
    ///
    /// # Panics
    /// When the function does not say that it [uses the clock](Process::USES_CLOCK); so do those for timers by the clock.
    pub fn processing_time(&self) -> ProcessingTime {
        self.clock
            .expect("a process function that asks for the clock has to say so: `const USES_CLOCK: bool = true`")
    }

    /// Has the key [called](Process::on_processing_timer) when the clock has come to `at`. A key has at most one timer for an instant.
    pub fn set_processing_timer(&mut self, at: ProcessingTime) {
        self.processing_time();
        self.kept.clock_timers.insert(at);
    }

    /// Takes the timer for `at` back; returns whether there was one.
    pub fn delete_processing_timer(&mut self, at: ProcessingTime) -> bool {
        self.processing_time();
        self.kept.clock_timers.remove(&at)
    }

    /// Takes the timer for `old` back, if there is one, and sets one for `new`; returns whether there was one.
    pub fn replace_processing_timer(&mut self, old: ProcessingTime, new: ProcessingTime) -> bool {
        let was_set = self.delete_processing_timer(old);
        self.set_processing_timer(new);
        was_set
    }

    /// The next timer of the key by the clock.
    pub fn next_processing_timer(&self) -> Option<ProcessingTime> {
        self.processing_time();
        self.kept.clock_timers.first().copied()
    }

    /// Emits a result, which happened [now](Self::now).
    pub fn emit(&mut self, value: O) {
        self.out.push((self.now, value));
    }
}

/// Adds process functions to keyed streams.
pub trait ProcessExt<K: Key, T: Data> {
    /// Calls `function` for records as they come, and for timers.
    #[must_use]
    fn process<P: Process<K, T>>(self, function: P) -> Stream<P::Out>;

    /// As [`process`](Self::process), with a second stream of late records.
    #[must_use]
    fn process_with_late<P: Process<K, T>>(self, function: P) -> (Stream<P::Out>, Stream<T>);

    /// Calls `function` for records and timers in order of event time. Records are kept until it is their turn.
    #[must_use]
    fn process_in_order<P: Process<K, T>>(self, function: P) -> Stream<P::Out>
    where
        T: Value;

    /// As [`process_in_order`](Self::process_in_order), with a second stream of late records.
    #[must_use]
    fn process_in_order_with_late<P: Process<K, T>>(self, function: P) -> (Stream<P::Out>, Stream<T>)
    where
        T: Value;
}

impl<K: Key, T: Data> ProcessExt<K, T> for KeyedStream<K, T> {
    fn process<P: Process<K, T>>(self, function: P) -> Stream<P::Out> {
        self.process_with_late(function).0
    }

    fn process_with_late<P: Process<K, T>>(self, function: P) -> (Stream<P::Out>, Stream<T>) {
        self.operator("process", ProcessOperator::<K, T, P, AsTheyCome>::new(function))
    }

    fn process_in_order<P: Process<K, T>>(self, function: P) -> Stream<P::Out>
    where
        T: Value,
    {
        self.process_in_order_with_late(function).0
    }

    fn process_in_order_with_late<P: Process<K, T>>(self, function: P) -> (Stream<P::Out>, Stream<T>)
    where
        T: Value,
    {
        self.operator("process", ProcessOperator::<K, T, P, InOrder>::new(function))
    }
}
