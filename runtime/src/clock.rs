//! Processing time: what the clock on the wall says while a job works, and who says it.
//!
//! Results that depend on it are not the same in a replay, so nothing does unless it asks for it by name. The clock is that of the
//! machine, or one that a test moves by hand.
//!
//! **Units**: microseconds since 1970. **Time**: it never goes back within a process: where the machine's clock is put back, it stands still.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::shared::lock;
use crate::time::EventTime;

/// An instant on the clock of whoever runs the job, not of the record: microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessingTime(i64);

impl ProcessingTime {
    /// After everything: when the input has ended.
    pub const MAX: ProcessingTime = ProcessingTime(i64::MAX);

    /// The instant `us` microseconds after 1970.
    pub const fn from_micros(us: i64) -> Self {
        ProcessingTime(us)
    }

    /// Microseconds since 1970.
    pub const fn micros(self) -> i64 {
        self.0
    }
}

impl std::ops::Add<Duration> for ProcessingTime {
    type Output = ProcessingTime;
    /// Saturates.
    fn add(self, span: Duration) -> ProcessingTime {
        ProcessingTime(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for ProcessingTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EventTime::from_micros(self.0).fmt(f)
    }
}

impl fmt::Debug for ProcessingTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Says what time it is. Clones are the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    /// What was said last.
    now_us: AtomicI64,
    manual: bool,
    /// Who is to be told that a manual clock was moved; `false` says that they are gone.
    waiting: Mutex<Vec<Wake>>,
}

type Wake = Box<dyn Fn() -> bool + Send>;

impl Clock {
    /// The clock of the machine.
    pub fn system() -> Self {
        Self::new(i64::MIN, false)
    }

    /// A clock that stands at `start` until it is [moved](Self::advance).
    pub fn manual(start: ProcessingTime) -> Self {
        Self::new(start.0, true)
    }

    fn new(now_us: i64, manual: bool) -> Self {
        Clock(Arc::new(Inner { now_us: AtomicI64::new(now_us), manual, waiting: Mutex::default() }))
    }

    /// What time it is.
    #[allow(clippy::disallowed_methods)] // this is the one place where operators get it from
    pub fn now(&self) -> ProcessingTime {
        if self.0.manual {
            return ProcessingTime(self.0.now_us.load(Ordering::SeqCst));
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let us = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        ProcessingTime(self.0.now_us.fetch_max(us, Ordering::Relaxed).max(us))
    }

    /// Moves a manual clock on, and wakes the jobs that wait for it.
    ///
    /// # Panics
    /// When it is the clock of the machine.
    pub fn advance(&self, span: Duration) {
        assert!(self.0.manual, "the clock of the machine cannot be moved");
        let now = self.now() + span;
        self.0.now_us.store(now.0, Ordering::SeqCst);
        lock(&self.0.waiting).retain(|wake| wake());
    }

    /// Whether it has to be waited for by [`on_advance`](Self::on_advance), because it does not move by itself.
    pub(crate) fn is_manual(&self) -> bool {
        self.0.manual
    }

    /// Has `wake` called whenever a manual clock is moved, until it says that nobody is there any more.
    pub(crate) fn on_advance(&self, wake: impl Fn() -> bool + Send + 'static) {
        lock(&self.0.waiting).push(Box::new(wake));
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("now", &self.now()).field("manual", &self.0.manual).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_when_it_is_moved() {
        let clock = Clock::manual(ProcessingTime::from_micros(5));
        let (same, told) = (clock.clone(), Arc::new(AtomicI64::new(0)));
        let count = Arc::clone(&told);
        clock.on_advance(move || count.fetch_add(1, Ordering::SeqCst) < 1);
        assert_eq!(same.now().micros(), 5);
        for _ in 0..3 {
            same.advance(Duration::from_millis(1));
        }
        assert_eq!(clock.now().micros(), 3_005);
        assert_eq!(told.load(Ordering::SeqCst), 2, "it was gone the second time");
        assert_eq!(ProcessingTime::from_micros(1) + Duration::MAX, ProcessingTime::MAX);
    }

    #[test]
    fn the_clock_of_the_machine_never_goes_back() {
        let clock = Clock::system();
        let first = clock.now();
        assert!(first.micros() > 1_700_000_000_000_000, "{first}");
        clock.0.now_us.fetch_add(60_000_000, Ordering::SeqCst);
        assert!(clock.now() >= first + Duration::from_secs(60));
    }
}
