//! Dropping what was there already.
//!
//! **Shape**: keyed in; the records that stay come out, as they are. **State**: for each key when the last of its records that stayed
//! happened, until the span is over; and the records that event time has not passed.
//!
//! **Time**: by event time: a record stays unless one of its key that stayed happened less than the span before it. Of several at the same
//! instant the first by split and position stays. **Lateness** is that of [process functions](crate::process).
//!
//! **Order**: results do not depend on it: records are looked at in order of event time, once it has passed them.

use millstream_runtime::error::Result;
use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::{Key, Value};

use crate::process::{Process, ProcessContext, ProcessExt, end_of};

#[derive(Clone, Debug)]
struct Deduplicate {
    within: EventSpan,
}

impl<K: Key, T: Data> Process<K, T> for Deduplicate {
    /// Until when records are dropped.
    type State = EventTime;
    type Out = T;

    fn describe(&self) -> String {
        format!("the first of every key within {}", self.within)
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, EventTime, T>, value: &T) -> Result<()> {
        if cx.state().is_none() {
            let until = end_of(cx.now(), self.within);
            *cx.state() = Some(until.unwrap_or(EventTime::MAX));
            if let Some(until) = until {
                cx.set_timer(until);
            }
            cx.emit(value.clone());
        }
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, K, EventTime, T>, _: EventTime) -> Result<()> {
        *cx.state() = None;
        Ok(())
    }
}

/// Adds `deduplicate` to keyed streams.
pub trait DeduplicateExt<T: Value> {
    /// The first record of every key, and the next one that happened `within` or more after it, and so on.
    ///
    /// ```no_run
    /// # use millstream_runtime::{stream::Stream, time::EventSpan};
    /// # use millstream_operators::deduplicate::DeduplicateExt;
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Payment { id: u128 }
    /// # fn example(payments: Stream<Payment>) {
    /// let once: Stream<Payment> = payments.key_by(|payment| payment.id).deduplicate(EventSpan::days(1));
    /// # }
    /// ```
    ///
    /// # Panics
    /// When `within` is zero.
    #[must_use]
    fn deduplicate(self, within: EventSpan) -> Stream<T>;

    /// As [`deduplicate`](Self::deduplicate), with a second stream of late records.
    ///
    /// # Panics
    /// When `within` is zero.
    #[must_use]
    fn deduplicate_with_late(self, within: EventSpan) -> (Stream<T>, Stream<T>);
}

impl<K: Key, T: Value> DeduplicateExt<T> for KeyedStream<K, T> {
    fn deduplicate(self, within: EventSpan) -> Stream<T> {
        self.deduplicate_with_late(within).0
    }

    fn deduplicate_with_late(self, within: EventSpan) -> (Stream<T>, Stream<T>) {
        assert!(within > EventSpan::ZERO, "what is dropped must be within some time");
        self.process_in_order_with_late(Deduplicate { within })
    }
}
