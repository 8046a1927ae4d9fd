//! The first few of every key by a measure, as a stream of changes.
//!
//! **Shape**: keyed in; out comes every record that comes to be among the first (`Insert`), and every one that no longer is (`Retract`), with its key;
//! the one that no longer is before the one that comes to be, so that there are never more than were asked for.
//! For the first few of a window, once, there is the aggregate [`Top`](crate::aggregate::Top).
//!
//! **State**: per key the records that are among the first, and those that event time has not passed. **Time**: of two with the same
//! measure the one that happened first stays before the other. A change happened when the record did that made it. **Lateness** is that of [process
//! functions](crate::process).
//!
//! **Order**: results do not depend on it: records are looked at in order of event time, once it has passed them.

use std::cmp::Ordering;

use millstream_runtime::error::Result;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::EventSpan;
use millstream_state::snapshot::{Key, Value};

use crate::aggregate::Comparable;
use crate::process::{Process, ProcessContext, ProcessExt};
use crate::window::Change;

#[derive(Clone)]
struct RunningTop<F> {
    most: usize,
    by: F,
    keep_for: Option<EventSpan>,
}

impl<F> RunningTop<F> {
    fn new(most: usize, by: F, keep_for: Option<EventSpan>) -> Self {
        assert!(most > 0, "the first 0 of anything are none");
        RunningTop { most, by, keep_for }
    }
}

impl<K: Key, T: Value, M: Comparable, F: Fn(&T) -> M + Clone + Send + 'static> Process<K, T> for RunningTop<F> {
    /// The first, in order.
    type State = Vec<T>;
    type Out = (K, Change, T);

    fn describe(&self) -> String {
        format!("the first {}", self.most)
    }

    fn keep_for(&self) -> Option<EventSpan> {
        self.keep_for
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, Vec<T>, Self::Out>, value: &T) -> Result<()> {
        let (most, key) = (self.most, cx.key().clone());
        let first = cx.state().get_or_insert_with(Vec::new);
        let measure = (self.by)(value);
        let place = first.partition_point(|own| (self.by)(own).compare(&measure) != Ordering::Less);
        if place == most {
            return Ok(());
        }
        first.insert(place, value.clone());
        let gone = if first.len() > most { first.pop() } else { None };
        if let Some(gone) = gone {
            cx.emit((key.clone(), Change::Retract, gone));
        }
        cx.emit((key, Change::Insert, value.clone()));
        Ok(())
    }
}

/// Adds `top` to keyed streams.
pub trait TopExt<K: Key, T: Value> {
    /// The `most` records of each key for which `by` is greatest, as they change. For the least take [`Reverse`](std::cmp::Reverse);
    /// see [`Comparable`] for floats.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::{top::TopExt, window::Change};
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Bid { auction: u64, price: u64 }
    /// # fn example(bids: Stream<Bid>) {
    /// let highest: Stream<(u64, Change, Bid)> = bids.key_by(|bid| bid.auction).top(10, |bid| bid.price);
    /// # }
    /// ```
    ///
    /// # Panics
    /// When `most` is zero.
    #[must_use]
    fn top<M: Comparable>(self, most: usize, by: impl Fn(&T) -> M + Clone + Send + 'static) -> Stream<(K, Change, T)>;

    /// As [`top`](Self::top), with a second stream of late records.
    ///
    /// # Panics
    /// When `most` is zero.
    #[must_use]
    fn top_with_late<M: Comparable>(
        self,
        most: usize,
        by: impl Fn(&T) -> M + Clone + Send + 'static,
    ) -> (Stream<(K, Change, T)>, Stream<T>);

    /// As [`top_with_late`](Self::top_with_late), and a key is forgotten, without a change for it, when `span` has passed, in event time, since its last
    /// record.
    ///
    /// # Panics
    /// When `most` is zero.
    #[must_use]
    fn top_within<M: Comparable>(
        self,
        span: EventSpan,
        most: usize,
        by: impl Fn(&T) -> M + Clone + Send + 'static,
    ) -> (Stream<(K, Change, T)>, Stream<T>);
}

impl<K: Key, T: Value> TopExt<K, T> for KeyedStream<K, T> {
    fn top<M: Comparable>(self, most: usize, by: impl Fn(&T) -> M + Clone + Send + 'static) -> Stream<(K, Change, T)> {
        self.top_with_late(most, by).0
    }

    fn top_with_late<M: Comparable>(
        self,
        most: usize,
        by: impl Fn(&T) -> M + Clone + Send + 'static,
    ) -> (Stream<(K, Change, T)>, Stream<T>) {
        self.process_in_order_with_late(RunningTop::new(most, by, None))
    }

    fn top_within<M: Comparable>(
        self,
        span: EventSpan,
        most: usize,
        by: impl Fn(&T) -> M + Clone + Send + 'static,
    ) -> (Stream<(K, Change, T)>, Stream<T>) {
        self.process_in_order_with_late(RunningTop::new(most, by, Some(span)))
    }
}
