//! What the workers and the coordinator of one run share: flags, counters, and the channel of reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::Sender;
use millstream_state::manifest::SplitEntry;
use millstream_state::snapshot::Frozen;

use crate::bench::probe::{Born, Probe};
use crate::bench::times::Times;
use crate::digest::Digests;
use crate::error::Error;
use crate::moment::Epoch;
use crate::poison::SplitName;
use crate::rest::Rest;
use crate::savepoint::Request;
use crate::sink::Finish;
use crate::time::EventTime;

/// What a worker tells the coordinator.
pub(crate) enum Report {
    /// A source instance ended its part of `epoch`.
    Cut { node: usize, epoch: Epoch, splits: Vec<SplitEntry> },
    /// An operator instance has seen all of `epoch`.
    Closed { node: usize, epoch: Epoch, part: Part, pause: Duration },
    /// State needs this epoch to be closed soon, before it can leave memory.
    Pressed(Epoch),
    /// A source instance has nothing more to read, ever.
    Ended,
    /// Something failed; the error is in [`Shared`].
    Failed,
    /// A worker's thread is about to end.
    Left,
    /// Somebody outside wants the job to stop.
    Stop(StopMode),
    /// Somebody in this process wants a savepoint.
    Savepoint(Request),
}

/// How a running job is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Take a last checkpoint, commit its output, and end; the next start goes on from there.
    WithCheckpoint,
    /// End at once; the next start goes on from the last checkpoint.
    Now,
}

/// What an operator instance contributes to a checkpoint.
pub(crate) enum Part {
    /// Changes of keyed state, and how many entries there are now.
    State { frozen: Option<Box<dyn Frozen>>, entries: u64 },
    /// Output that waits for its commit, what is to be done before it is durable, and digests of it where the sink keeps some.
    Prepared { handles: Vec<String>, finish: Option<Finish>, digests: Option<Digests> },
}

/// See the module.
pub(crate) struct Shared {
    /// The epoch in which sources should be.
    pub announced: AtomicU64,
    /// The last epoch whose checkpoint is complete.
    pub closed: AtomicU64,
    /// Sources take epochs but read nothing until this epoch is closed: until then state takes more memory than it may.
    pub full: AtomicU64,
    /// How much memory RocksDB takes.
    pub rocksdb_bytes: AtomicU64,
    /// Sources take epochs but read no more.
    pub hold: AtomicBool,
    /// All is done: workers drop their dataflows and leave.
    pub teardown: AtomicBool,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
    /// Where each split stands, by its number over all sources.
    pub splits: Vec<(SplitName, Padded<SplitMark>)>,
    /// Records on their way to each worker, or waiting there to be called.
    pub in_flight: Vec<Padded<AtomicI64>>,
    /// How often something was done that no record had asked for: because the clock said so, or splits were idle.
    pub unasked: AtomicU64,
    /// How many splits have ended.
    pub splits_ended: AtomicU64,
    /// Records that wait in operators for an epoch to close.
    pub stashed: Padded<AtomicI64>,
    /// How many operators have much to fire and are not done with it.
    pub firing: Padded<AtomicI64>,
    /// How many operators that call the outside have more records waiting than they may have in flight.
    pub calling: Padded<AtomicI64>,
    /// When events were due and how long results took.
    pub probe: Probe,
    /// Knows when all is processed, where somebody wants to know.
    pub rest: Option<Arc<Rest>>,
    /// Per node: what its instances have restored.
    pub restored: Vec<Restored>,
    /// Per node, then per worker.
    pub stats: Vec<Vec<Padded<Stats>>>,
    reports: Sender<Report>,
    /// By epoch that is not closed, and source: how far event time had come in those of its instances that have ended the epoch.
    cuts: Mutex<HashMap<(Epoch, usize), EventTime>>,
    /// Wake every source instance.
    wakers: Mutex<Vec<Box<dyn Fn() + Send>>>,
    /// Wake every worker's thread.
    threads: Mutex<Vec<std::thread::Thread>>,
}

/// Keeps what different workers write on different cache lines.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Padded<T>(pub T);

/// What one instance of a node has done. Written by its worker, and nobody else, once a batch; read by anybody.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// The epoch it is in.
    pub epoch: AtomicU64,
    /// For a source that is kept track of: it was asked, and has nothing more until it is woken.
    pub resting: AtomicBool,
    /// Its watermark, in microseconds.
    pub watermark_us: AtomicI64,
    /// For a source: the least watermark of its splits that are neither idle nor at their end; the greatest number if there are none.
    pub active_us: AtomicI64,
    /// For a source: the greatest watermark of its splits; the least number if there are none.
    pub furthest_us: AtomicI64,
    /// For operators that ask the clock: up to when it has done what was due by it, in microseconds.
    pub clock_us: AtomicI64,
    pub records_in: AtomicU64,
    pub records_out: AtomicU64,
    pub late: AtomicU64,
    pub bad: AtomicU64,
    pub fired: AtomicU64,
    /// For calls to the outside: how many were made, with repetitions; records that had to be called again, that failed for good, and calls
    /// that took too long; and how many records are in flight, and wait. All counted with the first worker, by the pool.
    pub calls: AtomicU64,
    pub calls_retried: AtomicU64,
    pub calls_failed: AtomicU64,
    pub calls_timed_out: AtomicU64,
    pub calls_in_flight: AtomicU64,
    pub calls_waiting: AtomicU64,
    /// How much memory its state takes.
    pub state_bytes: AtomicU64,
    /// How long its code ran.
    pub busy_ns: AtomicU64,
    /// How long records were dealt out to the workers that own their keys, on this worker.
    pub dealing_ns: AtomicU64,
    /// How long batches of this worker waited for it, from the operator before.
    pub queue: Times,
    /// How long batches were on their way from any worker, from the operator before until they were taken up.
    pub exchange: Times,
    /// For a sink: how long records took until it had them.
    pub record_latency: Times,
    /// For a sink: how long results took, from when their firing began.
    pub result_latency: Times,
}

impl Stats {
    /// A sink has taken `count` records by `now_ns`.
    pub(crate) fn taken(&self, born: Born, now_ns: u64, count: u64) {
        let latency = if born.fired { &self.result_latency } else { &self.record_latency };
        latency.record(now_ns.saturating_sub(born.ns), count);
    }
}

/// Adds to a counter that only this thread changes. Other than an atomic addition this costs next to nothing.
#[inline]
pub(crate) fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Where a split stands. Written by the worker that reads it; read by anybody.
#[derive(Debug)]
pub(crate) struct SplitMark {
    pub watermark_us: AtomicI64,
    pub records: AtomicU64,
    /// What it does, as a [`SplitState`].
    pub state: AtomicU8,
    /// When its watermark moved last, in milliseconds of the run.
    pub moved_ms: AtomicU64,
}

impl Default for SplitMark {
    fn default() -> Self {
        SplitMark {
            watermark_us: AtomicI64::new(i64::MIN),
            records: AtomicU64::new(0),
            state: AtomicU8::new(SplitState::Read as u8),
            moved_ms: AtomicU64::new(0),
        }
    }
}

/// What a split does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitState {
    /// It is being read.
    Read,
    /// It has nothing to read, and holds the watermark back.
    Quiet,
    /// It is ahead of the others, and waits for them.
    Ahead,
    /// It has had nothing to read for so long that it holds nothing back.
    Idle,
    /// It has ended.
    Ended,
}

impl SplitState {
    pub(crate) fn of(number: u8) -> Self {
        [Self::Read, Self::Quiet, Self::Ahead, Self::Idle]
            .get(number as usize)
            .copied()
            .unwrap_or(Self::Ended)
    }
}

/// How far the instances of an operator had fired when they were restored.
#[derive(Debug)]
pub(crate) struct Restored {
    missing: AtomicUsize,
    fired_us: AtomicI64,
}

impl Restored {
    fn new(workers: usize) -> Self {
        Restored { missing: AtomicUsize::new(workers), fired_us: AtomicI64::new(i64::MIN) }
    }

    /// One instance is restored.
    pub(crate) fn add(&self, fired: EventTime) {
        self.fired_us.fetch_max(fired.micros(), Ordering::SeqCst);
        self.missing.fetch_sub(1, Ordering::SeqCst);
    }

    /// The greatest over all instances, once all are restored.
    pub(crate) fn fired(&self) -> Option<EventTime> {
        let all = self.missing.load(Ordering::SeqCst) == 0;
        all.then(|| EventTime::from_micros(self.fired_us.load(Ordering::SeqCst)))
    }
}

impl Shared {
    pub(crate) fn new(
        nodes: usize,
        workers: usize,
        first_epoch: Epoch,
        probe: Probe,
        rest: Option<Rest>,
        splits: Vec<SplitName>,
        reports: Sender<Report>,
    ) -> Self {
        let stats = || {
            Padded(Stats {
                epoch: AtomicU64::new(first_epoch),
                watermark_us: AtomicI64::new(i64::MIN),
                active_us: AtomicI64::new(i64::MAX),
                furthest_us: AtomicI64::new(i64::MIN),
                clock_us: AtomicI64::new(i64::MIN),
                ..Stats::default()
            })
        };
        Shared {
            announced: AtomicU64::new(first_epoch),
            closed: AtomicU64::new(first_epoch.saturating_sub(1)),
            full: AtomicU64::new(0),
            rocksdb_bytes: AtomicU64::new(0),
            hold: AtomicBool::new(false),
            teardown: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
            splits: splits.into_iter().map(|name| (name, Padded::default())).collect(),
            in_flight: (0..workers).map(|_| Padded::default()).collect(),
            unasked: AtomicU64::new(0),
            splits_ended: AtomicU64::new(0),
            stashed: Padded::default(),
            firing: Padded::default(),
            calling: Padded::default(),
            probe,
            rest: rest.map(Arc::new),
            restored: (0..nodes).map(|_| Restored::new(workers)).collect(),
            stats: (0..nodes).map(|_| (0..workers).map(|_| stats()).collect()).collect(),
            reports,
            cuts: Mutex::default(),
            wakers: Mutex::default(),
            threads: Mutex::default(),
        }
    }

    /// These nodes are sources: nobody leaves an instance behind that is still to be made.
    pub(crate) fn wait_for_sources(&self, sources: impl IntoIterator<Item = usize>) {
        for stats in sources.into_iter().flat_map(|node| &self.stats[node]) {
            stats.0.active_us.store(i64::MIN, Ordering::Release);
        }
    }

    /// Fails the job. The first error counts.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::SeqCst);
        self.report(Report::Failed);
        self.wake_workers();
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(crate) fn take_error(&self) -> Option<Error> {
        lock(&self.error).take()
    }

    pub(crate) fn report(&self, report: Report) {
        // The coordinator only leaves when nothing counts any more.
        let _ = self.reports.send(report);
    }

    /// Sources move on to `epoch`.
    pub(crate) fn announce(&self, epoch: Epoch) {
        self.announced.store(epoch, Ordering::SeqCst);
        self.wake_sources();
    }

    /// A source, on one worker, has ended `epoch` at `watermark`.
    pub(crate) fn note_cut(&self, source: usize, epoch: Epoch, watermark: EventTime) {
        let closed = self.closed.load(Ordering::Relaxed);
        let mut cuts = lock(&self.cuts);
        cuts.retain(|(epoch, _), _| *epoch > closed);
        cuts.entry((epoch, source)).and_modify(|least| *least = watermark.min(*least)).or_insert(watermark);
    }

    /// How far event time had come in those of these sources that have ended `epoch`.
    pub(crate) fn cut_at(&self, epoch: Epoch, sources: &[usize]) -> EventTime {
        let cuts = lock(&self.cuts);
        let of = |source: &usize| cuts.get(&(epoch, *source)).copied();
        sources.iter().filter_map(of).min().unwrap_or(EventTime::MAX)
    }

    pub(crate) fn wake_sources(&self) {
        lock(&self.wakers).iter().for_each(|wake| wake());
    }

    pub(crate) fn add_waker(&self, wake: Box<dyn Fn() + Send>) {
        lock(&self.wakers).push(wake);
    }

    pub(crate) fn add_thread(&self, thread: std::thread::Thread) {
        lock(&self.threads).push(thread);
    }

    pub(crate) fn wake_workers(&self) {
        lock(&self.threads).iter().for_each(std::thread::Thread::unpark);
    }

    /// The least watermark of the splits, of all sources, that are neither idle nor at their end.
    pub(crate) fn least_active(&self) -> Option<EventTime> {
        least_active(self.stats.iter().flatten())
    }

    /// How far an instance of a source goes that has idle splits: as far as the source's others. Where all are idle, as far as any of them has come,
    /// and as those of other sources; and where these are idle as well, as far as any has come. Otherwise it would be chance, by which of them was
    /// idle first, whether windows close.
    pub(crate) fn followed(&self, source: usize) -> Option<EventTime> {
        let (own, all) = (|| self.stats[source].iter(), || self.stats.iter().flatten());
        let others = || least_active(all()).or_else(|| furthest(all()));
        least_active(own()).or_else(|| furthest(own()).max(others()))
    }

    /// Whether more than `limit` records are on their way to some worker.
    pub(crate) fn is_crowded(&self, limit: usize) -> bool {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.in_flight.iter().any(|worker| worker.0.load(Ordering::Relaxed) > limit)
    }

    /// The sum of a counter over all instances of a node.
    pub(crate) fn total(&self, node: usize, counter: impl Fn(&Stats) -> &AtomicU64) -> u64 {
        self.stats[node].iter().map(|stats| counter(&stats.0).load(Ordering::Relaxed)).sum()
    }
}

fn least_active<'a>(instances: impl Iterator<Item = &'a Padded<Stats>>) -> Option<EventTime> {
    let least = instances.map(|stats| stats.0.active_us.load(Ordering::Acquire)).min();
    least.filter(|least| *least != i64::MAX).map(EventTime::from_micros)
}

fn furthest<'a>(instances: impl Iterator<Item = &'a Padded<Stats>>) -> Option<EventTime> {
    let furthest = instances.map(|stats| stats.0.furthest_us.load(Ordering::Acquire)).max();
    furthest.filter(|furthest| *furthest != i64::MIN).map(EventTime::from_micros)
}

/// A lock whose holder cannot leave things half done, so that a panic elsewhere does not matter here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
