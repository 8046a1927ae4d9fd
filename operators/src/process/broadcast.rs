//! Process functions over records by key that also hear records without keys: rules, limits, prices that change while the job runs.
//!
//! **Shape**: a keyed stream and a [broadcast](Stream::broadcast) one in; out comes what the function emits, and a second stream of
//! late records of both. **State**: of the broadcast records, one value that every worker has as a whole, in memory; per key, that of a
//! [process function](super). The first is written as a whole, by every worker, into each checkpoint before which it has changed.
//!
//! **Order**: [in order](BroadcastProcessExt::process_in_order), a record knows all that was broadcast up to its own event time, that instant
//! included, and nothing that came later; a timer knows what was before its instant. Broadcast records of one instant come by split and
//! position (results of operators with state, which have none, by their bytes). Then results depend on the input alone. [As they
//! come](BroadcastProcessExt::process), a record knows what its worker has been told so far, which is chance.
//!
//! **Time**: event time goes on as far as both streams say. A broadcast stream in which little happens holds all back, unless its splits may be
//! [idle](millstream_runtime::watermark::Watermarks::idle_after). **Lateness**: that of process functions, for both.
//!
//! **Changes between two starts**: what was judged stays judged. So rules of a source that is added later are known to the records after the checkpoint,
//! also where they are older than records before it. This is another operator than a process function without a broadcast stream: one
//! that becomes the other begins without state.
//!
//! **Errors**: a broadcast record on which an in-order function fails is in checkpoints already, and cannot be set aside.
//!
//! **Source**: Flink's broadcast state pattern (`KeyedBroadcastProcessFunction`), there without an order between the two streams.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Either, Fired, Hearing, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::stream::{BroadcastKeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::reader::{Holds, Reader};
use millstream_state::replicated::{Replica, Replicated};
use millstream_state::snapshot::{Key, State as _, Value};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::operator::{AsTheyCome, Entry, InOrder, ProcessOperator, Turn};
use super::waiting::{Waiting, WaitingRoom};
use super::{Process, ProcessContext, own_name};
use crate::waking::WakingState;

/// What is done with the records of a key, knowing what all keys are told.
///
/// # Example
///
/// Payments above the limit of their country, which changes now and then:
///
/// ```no_run
/// # use std::collections::BTreeMap;
/// # use millstream_runtime::{error::Result, stream::Stream, time::EventTime};
/// # use millstream_operators::process::{BroadcastProcess, BroadcastProcessExt, ProcessContext};
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Payment { account: u32, country: String, cents: u64 }
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Limit { country: String, cents: u64 }
/// #[derive(Clone)]
/// struct AboveLimit;
///
/// impl BroadcastProcess<u32, Payment, Limit> for AboveLimit {
///     /// Cents by country.
///     type Shared = BTreeMap<String, u64>;
///     type State = ();
///     type Out = Payment;
///
///     fn on_broadcast(&mut self, limits: &mut Self::Shared, limit: &Limit, _: EventTime) -> Result<()> {
///         limits.insert(limit.country.clone(), limit.cents);
///         Ok(())
///     }
///
///     fn on_record(
///         &mut self,
///         cx: &mut ProcessContext<'_, u32, (), Payment>,
///         limits: &Self::Shared,
///         payment: &Payment,
///     ) -> Result<()> {
///         if limits.get(&payment.country).is_some_and(|limit| payment.cents > *limit) {
///             cx.emit(payment.clone());
///         }
///         Ok(())
///     }
/// }
///
/// # fn example(payments: Stream<Payment>, limits: Stream<Limit>) {
/// let above: Stream<Payment> = payments
///     .key_by(|payment| payment.account)
///     .with_broadcast(limits.broadcast())
///     .process_in_order(AboveLimit);
/// # }
/// ```
pub trait BroadcastProcess<K: Key, T, R>: Clone + Send + 'static {
    /// What is kept of the broadcast records, for all keys.
    type Shared: Value + Default + Sync;
    /// What is kept per key.
    type State: Value;
    /// What is emitted.
    type Out: Data;

    /// See [`Process::describe`].
    fn describe(&self) -> String {
        own_name::<Self>()
    }

    /// See [`Process::keep_for`].
    fn keep_for(&self) -> Option<EventSpan> {
        None
    }

    /// See [`Process::USES_CLOCK`].
    const USES_CLOCK: bool = false;

    /// A record was broadcast, which happened at `at`. Every worker is told, and what it makes of it must be the same on all: it
    /// may depend on nothing but `shared` and the record.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_broadcast(&mut self, shared: &mut Self::Shared, record: &R, at: EventTime) -> Result<()>;

    /// A record of the key has come.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, K, Self::State, Self::Out>,
        shared: &Self::Shared,
        value: &T,
    ) -> Result<()>;

    /// See [`Process::on_timer`].
    ///
    /// # Errors
    /// An error fails the job.
    fn on_timer(
        &mut self,
        cx: &mut ProcessContext<'_, K, Self::State, Self::Out>,
        shared: &Self::Shared,
        at: EventTime,
    ) -> Result<()> {
        let _ = (cx, shared, at);
        Ok(())
    }

    /// See [`Process::on_processing_timer`].
    ///
    /// # Errors
    /// An error fails the job.
    fn on_processing_timer(
        &mut self,
        cx: &mut ProcessContext<'_, K, Self::State, Self::Out>,
        shared: &Self::Shared,
        at: ProcessingTime,
    ) -> Result<()> {
        let _ = (cx, shared, at);
        Ok(())
    }
}

/// A value of which there are copies that do not cost anything until one changes: one for the function, one in the state, and one for the
/// checkpoint that is being written.
#[derive(Clone, Debug, Default)]
struct Cheap<S>(Arc<S>);

impl<S: Serialize> Serialize for Cheap<S> {
    fn serialize<W: Serializer>(&self, to: W) -> std::result::Result<W::Ok, W::Error> {
        self.0.serialize(to)
    }
}

impl<'de, S: Deserialize<'de>> Deserialize<'de> for Cheap<S> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        S::deserialize(from).map(|value| Cheap(Arc::new(value)))
    }
}

/// What every worker has been told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told<S, R> {
    /// When the last record happened that is part of `shared`.
    applied: EventTime,
    shared: Cheap<S>,
    /// What event time has not passed.
    waiting: WaitingRoom<R>,
}

impl<S: Default, R> Told<S, R> {
    fn nothing() -> Self {
        Told { applied: EventTime::MIN, shared: Cheap::default(), waiting: WaitingRoom::new() }
    }
}

impl<S: Value + Sync, R: Value> Holds for Told<S, R> {
    type Part = S;

    fn part(self) -> Option<S> {
        Some(Arc::unwrap_or_clone(self.shared.0))
    }
}

/// All workers are told the same in an epoch, so whoever has come less far has what others have applied among what waits.
impl<S: Value + Sync, R: Value> Replica for Told<S, R> {
    fn progress(&self) -> i64 {
        self.applied.micros()
    }
}

/// A broadcast function, with what it was told, as an ordinary one.
struct Knowing<P, S> {
    function: P,
    shared: Arc<S>,
}

impl<P: Clone, S> Clone for Knowing<P, S> {
    fn clone(&self) -> Self {
        Knowing { function: self.function.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<K: Key, T: Data, R: Data, P: BroadcastProcess<K, T, R>> Process<K, Either<T, R>> for Knowing<P, P::Shared> {
    type State = P::State;
    type Out = P::Out;
    const USES_CLOCK: bool = P::USES_CLOCK;

    fn describe(&self) -> String {
        self.function.describe()
    }

    fn keep_for(&self) -> Option<EventSpan> {
        self.function.keep_for()
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, P::State, P::Out>, value: &Either<T, R>) -> Result<()> {
        match value {
            Either::First(value) => self.function.on_record(cx, &self.shared, value),
            Either::Second(_) => Err(Error::internal("a broadcast record came with a key")),
        }
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, K, P::State, P::Out>, at: EventTime) -> Result<()> {
        self.function.on_timer(cx, &self.shared, at)
    }

    fn on_processing_timer(
        &mut self,
        cx: &mut ProcessContext<'_, K, P::State, P::Out>,
        at: ProcessingTime,
    ) -> Result<()> {
        self.function.on_processing_timer(cx, &self.shared, at)
    }
}

/// What is kept by key.
type Keys<K, T, R, P, M> =
    WakingState<K, Entry<<P as BroadcastProcess<K, T, R>>::State, <M as Turn<Either<T, R>>>::Waiting>>;

struct BroadcastOperator<K: Key, T: Data, R: Data, P: BroadcastProcess<K, T, R>, M> {
    process: ProcessOperator<K, Either<T, R>, Knowing<P, P::Shared>, M>,
    types: PhantomData<fn(R)>,
}

impl<K: Key, T: Data, R: Data, P: BroadcastProcess<K, T, R>, M> BroadcastOperator<K, T, R, P, M> {
    fn new(function: P) -> Self {
        let process = ProcessOperator::new(Knowing { function, shared: Arc::default() });
        BroadcastOperator { process, types: PhantomData }
    }

    /// Has the function make something of a record that was broadcast.
    fn apply<W>(&mut self, told: &mut Told<P::Shared, W>, record: &R, at: EventTime) -> Result<()> {
        let Knowing { function, shared } = self.process.function();
        // Let go of for the moment, so that nothing need be copied.
        *shared = Arc::default();
        let applied = function.on_broadcast(Arc::make_mut(&mut told.shared.0), record, at);
        told.applied = told.applied.max(at);
        *shared = Arc::clone(&told.shared.0);
        applied
    }
}

impl<K: Key, T: Data, R: Data, P: BroadcastProcess<K, T, R>, M> Clone for BroadcastOperator<K, T, R, P, M> {
    fn clone(&self) -> Self {
        BroadcastOperator { process: self.process.clone(), types: PhantomData }
    }
}

impl<K, T, R, P, M> KeyedOperator for BroadcastOperator<K, T, R, P, M>
where
    K: Key,
    T: Data,
    R: Data,
    P: BroadcastProcess<K, T, R>,
    M: Turn<Either<T, R>> + Turn<R>,
{
    type Key = K;
    type In = Either<T, R>;
    type Out = P::Out;
    type State = (Keys<K, T, R, P, M>, Replicated<Told<P::Shared, <M as Turn<R>>::Waiting>>);

    fn describe(&self) -> String {
        format!("{}, with what is broadcast", self.process.describe())
    }

    fn depends_on_order(&self) -> bool {
        self.process.depends_on_order()
    }

    fn uses_clock(&self) -> bool {
        self.process.uses_clock()
    }

    fn needs_positions(&self) -> bool {
        self.process.needs_positions()
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        (self.process.state(groups.clone()), Replicated::new(groups))
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["keys", "timers", "passed", "clock", "broadcast"]
    }

    fn readers(&self) -> Vec<Reader> {
        let mut readers = self.process.readers();
        readers.extend(self.state(0..0).1.readers());
        readers
    }

    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        self.process.state_times(state, number)
    }

    fn on_start(&mut self, _: &mut Context<Self::In, P::Out>, (_, told): &mut Self::State) -> Result<()> {
        if let Some(told) = told.get() {
            self.process.function().shared = Arc::clone(&told.shared.0);
        }
        Ok(())
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<Self::In, P::Out>,
        (keys, _): &mut Self::State,
        rows: &mut KeyedRows<K, Self::In>,
    ) -> Result<()> {
        self.process.on_batch(cx, keys, rows)
    }

    /// Event time goes on in steps: to each instant in which something was broadcast, and when that is known, further.
    fn on_watermark(
        &mut self,
        cx: &mut Context<Self::In, P::Out>,
        (keys, told): &mut Self::State,
        watermark: EventTime,
    ) -> Result<Fired> {
        let is_due = |at: &EventTime| *at < watermark || watermark == EventTime::MAX;
        while let Some(at) = told.get().and_then(|told| told.waiting.first()).filter(is_due) {
            // Between two instants there may be few keys, each with many results.
            if cx.is_full() || self.process.advance(cx, keys, at, false)? == Fired::More {
                return Ok(Fired::More);
            }
            let told = told.update(Told::nothing);
            for first in told.waiting.take(|waiting| waiting == at, |_| 0)? {
                let record = <M as Turn<R>>::value(&first.value);
                self.apply(told, record, at)
                    .map_err(|error| error.at_place(format!("a record broadcast at {at}")))?;
            }
        }
        self.process.on_watermark(cx, keys, watermark)
    }

    fn on_clock(
        &mut self,
        cx: &mut Context<Self::In, P::Out>,
        (keys, _): &mut Self::State,
        now: ProcessingTime,
    ) -> Result<Option<ProcessingTime>> {
        self.process.on_clock(cx, keys, now)
    }
}

impl<K, T, R, P, M> Hearing for BroadcastOperator<K, T, R, P, M>
where
    K: Key,
    T: Data,
    R: Data,
    P: BroadcastProcess<K, T, R>,
    M: Turn<Either<T, R>> + Turn<R>,
{
    fn on_broadcast(
        &mut self,
        cx: &mut Context<Self::In, P::Out>,
        (_, told): &mut Self::State,
        rows: &mut KeyedRows<(), Self::In>,
    ) -> Result<()> {
        let mut behind = BehindWalk::new(&rows.behind);
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            if let Some(watermark) = behind.at(row) {
                // All workers hear of it, one tells.
                if told.is_first() {
                    cx.late(record.at, &record.value, watermark);
                }
                continue;
            }
            let Either::Second(value) = &record.value else {
                return Err(Error::internal("a record with a key was broadcast"));
            };
            let told = told.update(Told::nothing);
            match <M as Turn<R>>::keep(value) {
                None => self.apply(told, value, record.at)?,
                Some(kept) => {
                    let (split, number) = rows.positions[row];
                    told.waiting.push(Waiting { at: record.at, split, number, value: kept });
                }
            }
        }
        Ok(())
    }
}

/// Adds process functions to keyed streams that hear a broadcast one.
pub trait BroadcastProcessExt<K: Key, T: Data, R: Data> {
    /// Calls `function` for records of both streams as they come, and for timers.
    #[must_use]
    fn process<P: BroadcastProcess<K, T, R>>(self, function: P) -> Stream<P::Out>;

    /// As [`process`](Self::process), with a second stream of late records.
    #[must_use]
    fn process_with_late<P: BroadcastProcess<K, T, R>>(self, function: P) -> (Stream<P::Out>, Stream<Either<T, R>>);

    /// Calls `function` for records of both streams and for timers in order of event time. Records are kept until it is their turn.
    #[must_use]
    fn process_in_order<P: BroadcastProcess<K, T, R>>(self, function: P) -> Stream<P::Out>
    where
        T: Value,
        R: Value;

    /// As [`process_in_order`](Self::process_in_order), with a second stream of late records.
    #[must_use]
    fn process_in_order_with_late<P: BroadcastProcess<K, T, R>>(
        self,
        function: P,
    ) -> (Stream<P::Out>, Stream<Either<T, R>>)
    where
        T: Value,
        R: Value;
}

impl<K: Key, T: Data, R: Data> BroadcastProcessExt<K, T, R> for BroadcastKeyedStream<K, T, R> {
    fn process<P: BroadcastProcess<K, T, R>>(self, function: P) -> Stream<P::Out> {
        self.process_with_late(function).0
    }

    fn process_with_late<P: BroadcastProcess<K, T, R>>(self, function: P) -> (Stream<P::Out>, Stream<Either<T, R>>) {
        self.operator("process", BroadcastOperator::<K, T, R, P, AsTheyCome>::new(function))
    }

    fn process_in_order<P: BroadcastProcess<K, T, R>>(self, function: P) -> Stream<P::Out>
    where
        T: Value,
        R: Value,
    {
        self.process_in_order_with_late(function).0
    }

    fn process_in_order_with_late<P: BroadcastProcess<K, T, R>>(
        self,
        function: P,
    ) -> (Stream<P::Out>, Stream<Either<T, R>>)
    where
        T: Value,
        R: Value,
    {
        self.operator("process", BroadcastOperator::<K, T, R, P, InOrder>::new(function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Sum;

    impl BroadcastProcess<u8, (), u64> for Sum {
        type Shared = u64;
        type State = ();
        type Out = ();

        fn on_broadcast(&mut self, sum: &mut u64, number: &u64, _: EventTime) -> Result<()> {
            *sum += number;
            Ok(())
        }

        fn on_record(&mut self, _: &mut ProcessContext<'_, u8, (), ()>, _: &u64, _: &()) -> Result<()> {
            Ok(())
        }
    }

    /// By that, workers that are at different points when a checkpoint is taken find the one that has come least far.
    #[test]
    fn progress_is_the_time_of_what_was_applied_last() {
        let mut told = Told::<u64, u64>::nothing();
        let mut operator = BroadcastOperator::<u8, (), u64, Sum, InOrder>::new(Sum);
        assert_eq!(told.progress(), i64::MIN);
        for (number, at, progress) in [(1, 5, 5), (2, 7, 7), (3, 6, 7)] {
            operator.apply(&mut told, &number, EventTime::from_micros(at)).unwrap();
            assert_eq!(told.progress(), progress);
        }
        assert_eq!((*told.shared.0, *operator.process.function().shared), (6, 6));
        assert_eq!(told.part(), Some(6));
    }
}
