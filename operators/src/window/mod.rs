//! Windows of event time over keyed streams: tumbling, sliding, [sessions](session), of the [calendar], [one for all](global), of a
//! [number of records](count), and of your own ([`Windows`]). What is said here holds for all of them but where their pages say otherwise.
//!
//! **Time**: windows are `[start, end)` in event time, aligned to 1970 plus an offset, never to the first record. A window
//! fires when the watermark has come to its end; its result has the event time `end - 1 us`.
//!
//! **Lateness**: a record counts in each of its windows whose end is after the watermark of the record's own split at the
//! record's position. It is late when that is none of them; late records are counted, and go to
//! the second output of [`WindowedStream::aggregate_with_late`]. So which records count where does not depend on workers, batches or other splits.
//!
//! Times from [`EventTime::MIN`] to [`EventTime::MAX`] have their exact windows, with bounds clamped to these; one that is clamped to the end of time
//! fires when its input has ended. Only where size
//! and slide have no common divisor but 1 us are instants within an offset of the two ends, some 290,000 years away, taken
//! together, and windows that would begin before the first instant left out.
//!
//! **State**: one accumulator per key and slice, whatever the overlap; gone when its last window has fired. Besides, and in no
//! checkpoint: one per key for running sums, or as many again as in slices for stacks, and what combiners hold.
//!
//! Windows that overlap cost a few steps for every key of a slice and one for every result, whatever the overlap: what leaves is subtracted where the
//! aggregate can be inverted ([`Aggregate::INVERTIBLE`]), and kept in two stacks where it can only be merged. With limited memory
//! the latter are added up anew for every firing.
//!
//! [`Several`] kinds of windows share slices; such windows are made of slices and longer stretches, and nothing is subtracted.
//!
//! **Source**: slices are the panes of Li et al., *No pane, no gain* (SIGMOD Record 2005), with the greatest common divisor
//! of size and slide as their length.

mod apart;
mod assign;
mod assigned;
pub mod calendar;
mod combiner;
pub mod count;
pub mod global;
mod keyed;
mod open;
mod operator;
mod place;
mod running;
mod schedule;
pub mod session;
pub mod several;
mod stacks;
mod stretches;
mod update;

use millstream_runtime::error::Result;
use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::Key;
use serde::{Deserialize, Serialize};

use crate::aggregate::Aggregate;
pub use assign::{Sliding, Tumbling};
pub use assigned::Assigned;
pub use calendar::Calendar;
pub use count::{CountWindowExt, CountWindowed};
pub use global::Global;
use keyed::{KeyedWindows, Panes};
pub use session::{Gap, Session};
pub use several::Several;
use update::Rules;
pub use update::{Change, Early, Timing, Update, UpdatedWindows};

/// A window of event time: from `start`, to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The first instant that belongs to it.
    pub start: EventTime,
    /// The first instant that no longer does.
    pub end: EventTime,
}

impl Window {
    /// The last instant that belongs to it: the event time of its result.
    pub fn last(&self) -> EventTime {
        self.end - EventSpan::micros(1)
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// What a window emits for a key when it fires: the key, the window, and what the aggregate made of its records.
pub type Pane<K, O> = (K, Window, O);

/// How records of a key are put into windows: [`Tumbling`], [`Sliding`], [`Several`] of these, [`Session`],
/// [`Calendar`], [`Global`], or windows of your own.
///
/// ```
/// use millstream_operators::window::{Assigned, Window, Windows};
/// use millstream_runtime::error::Result;
/// use millstream_runtime::time::EventTime;
///
/// /// A round of a game, by the record's own account.
/// #[derive(Clone)]
/// struct Round;
///
/// #[derive(Clone)]
/// struct Score {
///     round_began: EventTime,
///     round_ends: EventTime,
/// }
///
/// impl Windows<Score> for Round {
///     fn describe(&self) -> String {
///         "rounds".into()
///     }
///     fn assign(&self, _: EventTime, score: &Score, windows: &mut Assigned) -> Result<()> {
///         windows.add(Window { start: score.round_began, end: score.round_ends });
///         Ok(())
///     }
/// }
/// ```
pub trait Windows<T: Data>: Clone + Send + 'static {
    /// Whether windows of a key that overlap become one. A record is late then when it is itself behind the watermark, not its window.
    const MERGE: bool = false;

    /// What plans and default names call the operator.
    fn kind(&self) -> &'static str {
        "window"
    }

    /// Which windows they are, in words: a checkpoint of other windows is refused.
    fn describe(&self) -> String;

    /// Adds the windows of a record that happened at `at`, which all of them must contain. A record that is in no window counts nowhere.
    ///
    /// # Errors
    /// An error fails the job, and names the record.
    fn assign(&self, at: EventTime, value: &T, windows: &mut Assigned) -> Result<()>;

    /// Adds the operator that makes one result per key and window; returns its results and its late records.
    fn aggregate<K: Key, A: Aggregate<T>>(
        self,
        keyed: KeyedStream<K, T>,
        aggregate: A,
    ) -> (Stream<Pane<K, A::Out>>, Stream<T>) {
        let kind = self.kind();
        let operator: KeyedWindows<K, T, Self, A, Panes> = KeyedWindows::new(self, aggregate, Rules::default());
        keyed.operator(kind, operator)
    }
}

/// Adds `window` to keyed streams.
pub trait WindowExt<K: Key, T: Data> {
    /// Groups the records of every key into windows.
    ///
    /// ```no_run
    /// # use millstream_runtime::{stream::Stream, time::EventSpan};
    /// # use millstream_operators::{aggregate::{Count, Sum}, window::{Sliding, Window, WindowExt}};
    /// # #[derive(Clone)] struct Order { customer: String, cents: i64 }
    /// # fn example(orders: Stream<Order>) {
    /// let (spend, late): (Stream<(String, Window, (u64, i64))>, Stream<Order>) = orders
    ///     .key_by(|order| order.customer.clone())
    ///     .window(Sliding::of(EventSpan::hours(1), EventSpan::mins(10)))
    ///     .aggregate_with_late((Count, Sum::of(|order: &Order| order.cents)));
    /// # }
    /// ```
    fn window<W: Windows<T>>(self, windows: W) -> WindowedStream<K, T, W>;
}

impl<K: Key, T: Data> WindowExt<K, T> for KeyedStream<K, T> {
    fn window<W: Windows<T>>(self, windows: W) -> WindowedStream<K, T, W> {
        WindowedStream { keyed: self, windows }
    }
}

/// A keyed stream in windows, waiting for the aggregate that makes results of them.
#[derive(Debug)]
pub struct WindowedStream<K, T, W> {
    keyed: KeyedStream<K, T>,
    windows: W,
}

impl<K: Key, T: Data, W: Windows<T>> WindowedStream<K, T, W> {
    /// One result per key and window: the key, the window, and what `aggregate` makes of its records.
    #[must_use]
    pub fn aggregate<A: Aggregate<T>>(self, aggregate: A) -> Stream<Pane<K, A::Out>> {
        self.aggregate_with_late(aggregate).0
    }

    /// As [`aggregate`](Self::aggregate), with a second stream of the records that were late for all their windows.
    #[must_use]
    pub fn aggregate_with_late<A: Aggregate<T>>(self, aggregate: A) -> (Stream<Pane<K, A::Out>>, Stream<T>) {
        self.windows.aggregate(self.keyed, aggregate)
    }

    /// Keeps windows for so long after their end, in event time, and makes a new result when a record comes late.
    ///
    /// ```no_run
    /// # use millstream_runtime::{stream::Stream, time::EventSpan};
    /// # use millstream_operators::{aggregate::Count, window::{Early, Tumbling, Update, WindowExt}};
    /// # #[derive(Clone)] struct Order { customer: u64 }
    /// # fn example(orders: Stream<Order>) {
    /// let counts: Stream<Update<u64, u64>> = orders
    ///     .key_by(|order| order.customer)
    ///     .window(Tumbling::of(EventSpan::hours(1)))
    ///     .early(Early::every(EventSpan::mins(5)))
    ///     .allowed_lateness(EventSpan::days(1))
    ///     .retracting()
    ///     .aggregate(Count);
    /// # }
    /// ```
    #[must_use]
    pub fn allowed_lateness(self, span: EventSpan) -> UpdatedWindows<K, T, W> {
        self.updated().allowed_lateness(span)
    }

    /// Makes results before windows end.
    #[must_use]
    pub fn early(self, when: Early) -> UpdatedWindows<K, T, W> {
        self.updated().early(when)
    }

    fn updated(self) -> UpdatedWindows<K, T, W> {
        UpdatedWindows { keyed: self.keyed, windows: self.windows, rules: Rules::default() }
    }
}
