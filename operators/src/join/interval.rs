//! The interval join: records of two streams with the same key, the second not long before or after the first.
//!
//! **Shape**: two keyed streams in; out comes every pair that matches, once, at the event time of its later record. **State**: the records of
//! both sides that may still find a partner, and those that event time has not passed; a record that cannot match any more is dropped.
//!
//! **Time**: a pair `(a, b)` matches when `b` happened at most `before` before `a` and at most `after` after it, both inclusive.
//! **Lateness** is that of [process functions](crate::process): late records find no partner.
//!
//! **Order**: results do not depend on it: pairs are found in order of event time, once it has passed both records.
//!
//! **Source**: Flink's interval join (inner), with its bounds `[-before, after]`.

use std::collections::VecDeque;

use millstream_runtime::error::Result;
use millstream_runtime::operator::Either;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::{Key, Value};
use serde::{Deserialize, Serialize};

use super::Joined;
use crate::process::{Process, ProcessContext, ProcessExt};

#[derive(Clone, Debug)]
struct IntervalJoin {
    before: EventSpan,
    after: EventSpan,
}

/// The records of a key that may still find a partner, in order of event time.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Sides<A, B> {
    first: VecDeque<(EventTime, A)>,
    second: VecDeque<(EventTime, B)>,
}

const INSTANT: EventSpan = EventSpan::micros(1);

/// Those that happened at `since` or later.
fn since<T>(side: &VecDeque<(EventTime, T)>, since: EventTime) -> impl Iterator<Item = &T> {
    let from = side.partition_point(|(at, _)| *at < since);
    side.range(from..).map(|(_, value)| value)
}

impl IntervalJoin {
    /// Drops what cannot match anything that happens now or later, and sets a timer for what will be next.
    fn drop_old<K: Key, A: Value, B: Value>(&self, cx: &mut ProcessContext<'_, K, Sides<A, B>, (A, B)>) {
        let now = cx.now();
        let Some(Sides { first, second }) = cx.state() else { return };
        let (first_until, second_until) = (now - self.after, now - self.before);
        first.drain(..first.partition_point(|(at, _)| *at < first_until));
        second.drain(..second.partition_point(|(at, _)| *at < second_until));
        let next = |at: Option<EventTime>, span| at.map(|at| at + span + INSTANT);
        let first = next(first.front().map(|(at, _)| *at), self.after);
        let second = next(second.front().map(|(at, _)| *at), self.before);
        let Some(next) = first.into_iter().chain(second).min() else {
            *cx.state() = None;
            return;
        };
        match cx.next_timer() {
            Some(timer) if timer <= next => return,
            Some(timer) => drop(cx.delete_timer(timer)),
            None => {}
        }
        // At the end of time there is nothing to wait for.
        if next > now {
            cx.set_timer(next);
        }
    }
}

impl<K: Key, A: Value, B: Value> Process<K, Either<A, B>> for IntervalJoin {
    type State = Sides<A, B>;
    type Out = (A, B);

    fn describe(&self) -> String {
        format!("pairs from {} before to {} after", self.before, self.after)
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, Sides<A, B>, (A, B)>, value: &Either<A, B>) -> Result<()> {
        let now = cx.now();
        let sides = cx.state().get_or_insert_with(|| Sides { first: VecDeque::new(), second: VecDeque::new() });
        let pairs: Vec<(A, B)> = match value {
            Either::First(a) => {
                sides.first.push_back((now, a.clone()));
                since(&sides.second, now - self.before).map(|b| (a.clone(), b.clone())).collect()
            }
            Either::Second(b) => {
                sides.second.push_back((now, b.clone()));
                since(&sides.first, now - self.after).map(|a| (a.clone(), b.clone())).collect()
            }
        };
        pairs.into_iter().for_each(|pair| cx.emit(pair));
        self.drop_old(cx);
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, K, Sides<A, B>, (A, B)>, _: EventTime) -> Result<()> {
        self.drop_old(cx);
        Ok(())
    }
}

/// Adds `interval_join` to keyed streams.
pub trait IntervalJoinExt<K: Key, A: Value> {
    /// Every pair of a record of this stream and one of `other` with the same key that happened at most `before` before it and at most
    /// `after` after it.
    ///
    /// ```no_run
    /// # use millstream_runtime::{stream::Stream, time::EventSpan};
    /// # use millstream_operators::join::IntervalJoinExt;
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Order { id: u64 }
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Payment { order: u64 }
    /// # fn example(orders: Stream<Order>, payments: Stream<Payment>) {
    /// let paid_in_time: Stream<(Order, Payment)> = orders
    ///     .key_by(|order| order.id)
    ///     .interval_join(payments.key_by(|payment| payment.order), EventSpan::ZERO, EventSpan::hours(1));
    /// # }
    /// ```
    ///
    /// # Panics
    /// When the streams belong to different jobs.
    #[must_use]
    fn interval_join<B: Value>(self, other: KeyedStream<K, B>, before: EventSpan, after: EventSpan) -> Stream<(A, B)>;

    /// As [`interval_join`](Self::interval_join), with a second stream of the late records of both.
    ///
    /// # Panics
    /// When the streams belong to different jobs.
    #[must_use]
    fn interval_join_with_late<B: Value>(
        self,
        other: KeyedStream<K, B>,
        before: EventSpan,
        after: EventSpan,
    ) -> Joined<(A, B), A, B>;
}

impl<K: Key, A: Value> IntervalJoinExt<K, A> for KeyedStream<K, A> {
    fn interval_join<B: Value>(self, other: KeyedStream<K, B>, before: EventSpan, after: EventSpan) -> Stream<(A, B)> {
        self.interval_join_with_late(other, before, after).0
    }

    fn interval_join_with_late<B: Value>(
        self,
        other: KeyedStream<K, B>,
        before: EventSpan,
        after: EventSpan,
    ) -> Joined<(A, B), A, B> {
        self.connect(other).process_in_order_with_late(IntervalJoin { before, after })
    }
}
