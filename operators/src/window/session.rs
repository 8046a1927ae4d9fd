//! Session windows: stretches of event time in which a key is never quiet for as long as a gap.
//!
//! **Time**: a record at `t` with the gap `g` takes part in `[t, t + g)`. Records of a key whose stretches overlap make one session; those
//! exactly a gap apart do not. A session fires when the watermark has come to its end.
//!
//! **Lateness**: a record is late when it is behind the watermark of its own split: then its session may have been fired. So which records
//! count does not depend on workers, batches or other splits. Where [lateness is allowed](super::WindowedStream::allowed_lateness), a record that
//! is behind by no more than that updates its session, and may make one of several.
//!
//! **State**: the open sessions of every key, each with an accumulator, and when the key is to be looked at next. A key whose sessions
//! have been fired is gone.

use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::time::{EventSpan, EventTime};

use super::{Assigned, Windows};

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
    const MERGE: bool = true;

    fn kind(&self) -> &'static str {
        "session window"
    }

    fn describe(&self) -> String {
        match self.gap.fixed() {
            Some(gap) => format!("sessions with a gap of {gap}"),
            None => "sessions with a gap by record".to_string(),
        }
    }

    fn assign(&self, at: EventTime, value: &T, windows: &mut Assigned) -> Result<()> {
        let gap = self.gap.of(value).as_micros();
        if gap == 0 {
            return Err(Error::user("the gap of a session must be more than no time"));
        }
        windows.add_bounds((at, EventTime::from_micros(at.micros().saturating_add(gap - 1))));
        Ok(())
    }
}
