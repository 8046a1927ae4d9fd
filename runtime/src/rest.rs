//! When a job is at rest: all that its sources gave is processed, down to the last sink. For tests that look at a job step by step; other
//! jobs do not keep track of it.
//!
//! A job is at rest when three things hold:
//!
//! 1. every instance of every source was asked after the last record, and had nothing more; those that have idle splits have
//!    followed the others; and all that ask a clock that is moved by hand have done what is due by it;
//! 2. no batch is on its way, waits, or is being worked on;
//! 3. every instance of an operator with state, and of a sink, has done all that there is to do for the least watermark of the sources
//!    upstream of it.
//!
//! **Why this is enough.** As long as nobody gives a source more, the first stays true when it has become true, and so does the third: the
//! watermarks of sources stand still, and an operator shows a watermark only when it has fired everything for it and sent what came of
//! that. From then on batches come of nothing but batches, and whoever takes one in has sent what it makes of it before that one counts as gone.
//! So when there is none after the other two were found true, there will be none. What a combiner holds back is no batch, but it keeps
//! the watermark of the operator behind it from moving as long as that needs it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::clock::Clock;
use crate::shared::{Shared, lock};
use crate::time::EventTime;

/// Keeps track of one attempt of a job; see the module.
pub(crate) struct Rest {
    /// How many batches there are outside of sources and states.
    batches: AtomicI64,
    /// Per node that is an operator with state or a sink: the sources upstream of it.
    upstream: Vec<(usize, Vec<usize>)>,
    /// All sources.
    sources: Vec<usize>,
    /// All nodes that ask the clock, and that, where it is moved by hand.
    clocked: Vec<usize>,
    clock: Option<Clock>,
    turn: Mutex<()>,
    turned: Condvar,
}

impl Rest {
    pub(crate) fn new(
        sources: Vec<usize>,
        upstream: Vec<(usize, Vec<usize>)>,
        clocked: Vec<usize>,
        clock: &Clock,
    ) -> Self {
        let clock = clock.is_manual().then(|| clock.clone());
        Rest {
            batches: AtomicI64::new(0),
            upstream,
            sources,
            clocked,
            clock,
            turn: Mutex::new(()),
            turned: Condvar::new(),
        }
    }

    /// A worker has taken a step, or the job has ended: whoever waits may look again.
    pub(crate) fn turned(&self) {
        drop(lock(&self.turn));
        self.turned.notify_all();
    }

    /// Waits until `done`, which is asked again after every step of a worker, or until the deadline; returns whether it is.
    pub(crate) fn wait_until(&self, deadline: Instant, done: impl Fn() -> bool) -> bool {
        let mut turn = lock(&self.turn);
        loop {
            // What becomes true after this is followed by a turn, which cannot be taken before the wait has begun.
            if done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            turn = self.turned.wait_timeout(turn, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the job is at rest, if what it was given to read does not change meanwhile.
    pub(crate) fn is_reached(&self, shared: &Shared) -> bool {
        let instances = |node: usize| shared.stats[node].iter().map(|stats| &stats.0);
        let rested = self
            .sources
            .iter()
            .flat_map(|node| instances(*node))
            .all(|stats| stats.resting.load(Ordering::SeqCst));
        let rang = self.clock.as_ref().is_none_or(|clock| {
            let now = clock.now().micros();
            let nodes = self.clocked.iter().flat_map(|node| instances(*node));
            nodes.into_iter().all(|stats| stats.clock_us.load(Ordering::SeqCst) >= now)
        });
        // Where splits are idle, others are followed.
        let followed = self.sources.iter().all(|node| {
            let target = shared.followed(*node).map_or(i64::MIN, EventTime::micros);
            instances(*node).all(|stats| {
                let target = target.min(stats.active_us.load(Ordering::Acquire));
                stats.watermark_us.load(Ordering::Acquire) >= target
            })
        });
        let watermark = |source: &usize| least(shared, *source);
        let fired = self.upstream.iter().all(|(node, sources)| {
            let reached = sources.iter().map(watermark).min().unwrap_or(EventTime::MAX);
            instances(*node).all(|stats| stats.watermark_us.load(Ordering::Acquire) == reached.micros())
        });
        // Last, for the reason that the module gives.
        let done = rested && rang && followed && fired && self.batches.load(Ordering::SeqCst) == 0;
        // What was in flight when a job failed is gone when its workers leave, but not processed.
        done && !shared.has_failed()
    }

    /// Whether all sources have ended, so that the job is about to do so.
    pub(crate) fn is_ending(&self, shared: &Shared) -> bool {
        self.sources.iter().all(|source| least(shared, *source) == EventTime::MAX)
    }
}

/// The least watermark of a source over its instances.
fn least(shared: &Shared, source: usize) -> EventTime {
    let marks = shared.stats[source].iter().map(|stats| stats.0.watermark_us.load(Ordering::Acquire));
    marks.min().map_or(EventTime::MAX, EventTime::from_micros)
}

/// Stands for a batch that is there, from when it is sent until what was made of it is sent.
pub(crate) struct Live(Arc<Rest>);

impl Live {
    /// For a new batch, where anybody keeps track.
    pub(crate) fn new(shared: &Shared) -> Option<Self> {
        shared.rest.as_ref().map(|rest| {
            rest.batches.fetch_add(1, Ordering::SeqCst);
            Live(Arc::clone(rest))
        })
    }

    /// Its work has failed: it counts for ever, so a job that fails is never at rest, however long it takes until everybody knows.
    pub(crate) fn has_failed(live: Option<Live>) {
        if let Some(live) = live {
            live.0.batches.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Clone for Live {
    fn clone(&self) -> Self {
        self.0.batches.fetch_add(1, Ordering::SeqCst);
        Live(Arc::clone(&self.0))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.batches.fetch_sub(1, Ordering::SeqCst);
    }
}
