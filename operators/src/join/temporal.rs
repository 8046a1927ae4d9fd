//! The temporal join: records of a stream with what a table said of their key when they happened.
//!
//! **Shape**: a keyed stream of records and one of versions in; out comes each record with the version that was valid, at the record's event time.
//! **State**: the newest version of every key, and records and versions that event time has not passed. A version is kept
//! until the next one, or for as long as [`valid_for`](TemporalJoin::valid_for) says.
//!
//! **Time**: a version is valid from its own event time on, for records of that instant too. Of several versions of one instant the last by
//! split and position is valid. **Lateness** is that of [process functions](crate::process), for records and versions.
//!
//! **Order**: results do not depend on it: records wait until event time has passed them.
//!
//! **Source**: Flink SQL's event-time temporal join (`FOR SYSTEM_TIME AS OF`).

use std::marker::PhantomData;

use millstream_runtime::error::Result;
use millstream_runtime::operator::Either;
use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::{Key, Value};

use super::Joined;
use crate::process::{Process, ProcessContext, ProcessExt, end_of};

/// What becomes of a record and its version.
trait Pairing<A, V>: Send + 'static {
    type Out: Data;
    fn pair(record: &A, version: Option<&V>) -> Option<Self::Out>;
}

/// Records without a version are left out.
struct Inner;

impl<A: Data, V: Data> Pairing<A, V> for Inner {
    type Out = (A, V);

    fn pair(record: &A, version: Option<&V>) -> Option<(A, V)> {
        Some((record.clone(), version?.clone()))
    }
}

/// Records without a version stay.
struct Left;

impl<A: Data, V: Data> Pairing<A, V> for Left {
    type Out = (A, Option<V>);

    fn pair(record: &A, version: Option<&V>) -> Option<(A, Option<V>)> {
        Some((record.clone(), version.cloned()))
    }
}

struct Temporal<P> {
    valid_for: Option<EventSpan>,
    pairing: PhantomData<fn() -> P>,
}

impl<P> Clone for Temporal<P> {
    fn clone(&self) -> Self {
        Temporal { ..*self }
    }
}

impl<K: Key, A: Value, V: Value, P: Pairing<A, V>> Process<K, Either<A, V>> for Temporal<P> {
    /// The version that is valid, and from when on it no longer is.
    type State = (V, Option<EventTime>);
    type Out = P::Out;

    fn describe(&self) -> String {
        "records with the version of their time".to_string()
    }

    /// Versions first, so that they are valid for the records of their own instant.
    fn rank(&self, value: &Either<A, V>) -> u8 {
        u8::from(matches!(value, Either::First(_)))
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, Self::State, P::Out>, value: &Either<A, V>) -> Result<()> {
        match value {
            Either::First(record) => {
                let version = cx.state().as_ref().map(|(version, _)| version);
                if let Some(out) = P::pair(record, version) {
                    cx.emit(out);
                }
            }
            Either::Second(version) => {
                let now = cx.now();
                let until = self.valid_for.and_then(|span| end_of(now, span));
                if let Some((_, Some(before))) = cx.state().replace((version.clone(), until)) {
                    cx.delete_timer(before);
                }
                if let Some(until) = until {
                    cx.set_timer(until);
                }
            }
        }
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, K, Self::State, P::Out>, _: EventTime) -> Result<()> {
        *cx.state() = None;
        Ok(())
    }
}

/// Records and versions, waiting to be joined. Made by [`temporal_join`](TemporalJoinExt::temporal_join).
#[derive(Debug)]
pub struct TemporalJoin<K, A, V> {
    connected: KeyedStream<K, Either<A, V>>,
    valid_for: Option<EventSpan>,
}

impl<K: Key, A: Value, V: Value> TemporalJoin<K, A, V> {
    /// A version is valid for so long at most, in event time: for records that happened less than `span` after it. When its time is
    /// over there is none, not the one before it. Keys of which nothing is heard any more leave no state then.
    #[must_use]
    pub fn valid_for(mut self, span: EventSpan) -> Self {
        self.valid_for = Some(span);
        self
    }

    /// Each record with its version; those without are left out.
    #[must_use]
    pub fn inner(self) -> Stream<(A, V)> {
        self.inner_with_late().0
    }

    /// As [`inner`](Self::inner), with a second stream of late records and versions.
    #[must_use]
    pub fn inner_with_late(self) -> Joined<(A, V), A, V> {
        self.join::<Inner>()
    }

    /// Each record with its version, if there was one.
    #[must_use]
    pub fn left(self) -> Stream<(A, Option<V>)> {
        self.left_with_late().0
    }

    /// As [`left`](Self::left), with a second stream of late records and versions.
    #[must_use]
    pub fn left_with_late(self) -> Joined<(A, Option<V>), A, V> {
        self.join::<Left>()
    }

    fn join<P: Pairing<A, V>>(self) -> Joined<P::Out, A, V> {
        let function = Temporal::<P> { valid_for: self.valid_for, pairing: PhantomData };
        self.connected.process_in_order_with_late(function)
    }
}

/// Adds `temporal_join` to keyed streams.
pub trait TemporalJoinExt<K: Key, A: Value> {
    /// Each record of this stream with the version of its key that was valid when it happened.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::join::TemporalJoinExt;
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Order { currency: String, amount: f64 }
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Rate { currency: String, euros: f64 }
    /// # fn example(orders: Stream<Order>, rates: Stream<Rate>) {
    /// let in_euros: Stream<f64> = orders
    ///     .key_by(|order| order.currency.clone())
    ///     .temporal_join(rates.key_by(|rate| rate.currency.clone()))
    ///     .inner()
    ///     .map(|(order, rate)| order.amount * rate.euros);
    /// # use millstream_operators::map::MapExt;
    /// # }
    /// ```
    ///
    /// # Panics
    /// When the streams belong to different jobs.
    #[must_use]
    fn temporal_join<V: Value>(self, versions: KeyedStream<K, V>) -> TemporalJoin<K, A, V>;
}

impl<K: Key, A: Value> TemporalJoinExt<K, A> for KeyedStream<K, A> {
    fn temporal_join<V: Value>(self, versions: KeyedStream<K, V>) -> TemporalJoin<K, A, V> {
        TemporalJoin { connected: self.connect(versions), valid_for: None }
    }
}
