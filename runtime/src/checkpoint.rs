//! The coordinator: announces epochs, collects what the workers report, publishes checkpoints, tells sinks to commit.
//!
//! **The order of one checkpoint**, each step only after the one before: all parts are in; the changes of state are in
//! RocksDB; its files are linked and durable; the manifest is renamed into place, and the checkpoint exists; sinks commit;
//! old checkpoints are deleted. Only then is the next epoch announced, so at most two are ever open.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use millstream_state::manifest::{Manifest, OperatorEntry, SinkEntry, SourceEntry, SplitEntry, StateEntry};
use millstream_state::rocks::StateDb;
use millstream_state::snapshot::{Frozen, Run};
use millstream_state::store::CheckpointStore;
use millstream_state::{codec, hash, key_group};

use crate::dataflow::WorkerThreads;
use crate::digest::Digests;
use crate::driver::{guard, panic_text};
use crate::error::{Error, Result};
use crate::handle::{SplitStatus, Status};
use crate::job::Settings;
use crate::journal::{Phases, What};
use crate::metrics;
use crate::moment::Epoch;
use crate::progress::Progress;
use crate::savepoint::Savepoints;
use crate::shared::{Part, Report, Shared, StopMode};
use crate::summary::{Outcome, Summary, thousands};
use crate::supervisor::Held;
use crate::time::EventTime;

/// What a manifest says of a node, apart from what the workers report.
#[derive(Clone, Debug)]
pub(crate) struct OperatorInfo {
    pub name: String,
    pub kind: Kind,
    pub detail: String,
    pub state: String,
    pub states: Vec<StateEntry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Source,
    Keyed { id: u32 },
    Sink,
    Other,
}

impl Kind {
    /// The number under which its state is stored.
    pub(crate) fn id(self) -> Option<u32> {
        match self {
            Kind::Keyed { id } => Some(id),
            _ => None,
        }
    }
}

/// See the module. Made by [`execute`](crate::execute) for one attempt; [`supervisor`](crate::supervisor) runs it on a thread of its own.
pub(crate) struct Coordinator {
    pub job: String,
    pub execution: String,
    pub settings: Settings,
    pub shared: Arc<Shared>,
    pub reports: Receiver<Report>,
    pub db: Option<Arc<RwLock<StateDb>>>,
    pub restored: Option<Epoch>,
    pub operators: Vec<OperatorInfo>,
    pub workers: WorkerThreads,
    /// Until the job has ended.
    pub savepoints: Savepoints,
    /// How many parts make a checkpoint complete.
    pub expected: usize,
    pub sources: usize,
    /// How many numbers splits have been given in state, in all runs.
    pub split_numbers: u32,
    /// What each sink has committed so far, of those that keep digests; with the epoch from whose end on they count.
    pub digests: HashMap<usize, (Epoch, Digests)>,
    /// A replay: it ends where it was told to, though there is more to read.
    pub ends_early: bool,
    pub started: Instant,
}

/// How an attempt ended.
pub(crate) struct Ended {
    pub summary: Summary,
    pub result: Result<Outcome>,
    /// No worker was left behind.
    pub all_left: bool,
}

/// Why an epoch is being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Interval,
    Savepoint,
    Stop,
    Finish,
}

/// An epoch that is being closed.
struct Open {
    epoch: Epoch,
    reason: Reason,
    since: Instant,
    warned: Instant,
    parts: usize,
    /// The longest that a worker stood still for it.
    pause: Duration,
    splits: HashMap<usize, Vec<SplitEntry>>,
    state: Vec<(u32, Box<dyn Frozen>)>,
    entries: HashMap<usize, u64>,
    handles: HashMap<usize, Vec<String>>,
    digests: HashMap<usize, Digests>,
}

/// A checkpoint that is not complete after this long, or three intervals, is spoken of.
const SLOW: Duration = Duration::from_secs(10);

/// An interval that is as good as never; the clock cannot reckon with longer ones.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long workers get to leave after a failure.
const LEAVE: Duration = Duration::from_secs(2);

/// How long they get where the job would be started again, which a worker that is left behind forbids.
const LEAVE_TO_RESTART: Duration = Duration::from_secs(10);

/// How far apart checkpoints are that are taken because state needs them.
const APART: Duration = Duration::from_millis(200);

/// How often counters are shown and handed to the metrics facade.
const SHOW: Duration = Duration::from_millis(250);

fn note_memory(summary: &mut Summary, status: &Status) {
    summary.most_state_bytes = summary.most_state_bytes.max(status.state_bytes);
    summary.most_rocksdb_bytes = summary.most_rocksdb_bytes.max(status.rocksdb_bytes);
}

impl Coordinator {
    pub(crate) fn status_names(&self) -> Vec<(String, Kind)> {
        self.operators.iter().map(|operator| (operator.name.clone(), operator.kind)).collect()
    }

    /// Runs the attempt to its end. What it holds of workers and state is gone when this returns.
    pub(crate) fn run(mut self, held: &mut Held) -> Ended {
        let mut summary = Summary::empty(&self.job, Outcome::Finished);
        summary.restored = self.restored;
        summary.epoch = self.restored;
        tracing::info!(job = %self.job, workers = self.settings.workers, restored = ?self.restored, "started");
        // User code runs here too: it serialises state, and commits. Workers are joined only after they were told to leave.
        let supervised = catch_unwind(AssertUnwindSafe(|| self.supervise(&mut summary, held)));
        let result = supervised.unwrap_or_else(|panic| {
            Err(Error::user(format!("panicked while a checkpoint was made: {}", panic_text(&*panic))))
        });
        self.savepoints.end(result.is_err());
        if let Err(error) = &result {
            // Workers must not go on after the coordinator has given up.
            tracing::debug!(job = %self.job, "failed: {error}");
            self.shared.fail(Error::internal("the job has failed"));
        }
        self.shared.teardown.store(true, Ordering::SeqCst);
        self.shared.wake_workers();
        let patience = if result.is_err() && !self.settings.restart.is_never() { LEAVE_TO_RESTART } else { LEAVE };
        let all_left = self.join_workers(patience);
        let status = Status::read(&self.shared, &self.status_names());
        summary.elapsed = self.started.elapsed();
        note_memory(&mut summary, &status);
        summary.records_in = status.records_in;
        summary.records_out = status.records_out;
        summary.late = status.late;
        summary.bad = status.bad;
        summary.windows_fired = status.windows_fired;
        metrics::publish(&self.job, &status, &held.counted);
        held.counted.add(&status);
        summary.operators = status.operators;
        // The live database is of no use to anyone: the next start copies its checkpoint's.
        if all_left && let (Some(store), Some(db)) = (&held.store, self.db.take()) {
            drop(db);
            let _ = std::fs::remove_dir_all(store.live_dir(&self.execution));
        }
        Ended { summary, result, all_left }
    }

    /// Waits until every worker has left, but not for one that hangs in user code.
    fn join_workers(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.workers.are_finished() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(job = %self.job, "a worker does not leave: it is left behind");
                self.workers.abandon();
                return false;
            }
            let _ = self.reports.recv_timeout(left.min(Duration::from_millis(20)));
        }
        true
    }

    fn supervise(&mut self, summary: &mut Summary, held: &mut Held) -> Result<Outcome> {
        let mut open: Option<Open> = None;
        let mut ended = 0;
        let mut stop = false;
        let interval = self.settings.checkpoint_interval.min(NEVER);
        let mut due = Instant::now() + interval;
        let mut shown = Instant::now();
        let mut read_at_cut = 0;
        // The last epoch that an operator wants closed soon, and when one was closed last.
        let (mut pressed, mut closed) = (0, Instant::now());
        let mut progress = Progress::new(self.settings.progress);
        let mut stalled = None;
        let instances = self.sources * self.settings.workers;
        loop {
            // Without a store nothing is ever due.
            let idle = open.is_none() && held.store.is_some();
            let wait = if !idle {
                SHOW
            } else if pressed >= self.current() {
                APART.saturating_sub(closed.elapsed())
            } else {
                due.saturating_duration_since(Instant::now())
            };
            match self.reports.recv_timeout(wait.clamp(Duration::from_millis(1), SHOW)) {
                Ok(Report::Cut { node, epoch, splits }) => {
                    let open = expect_open(&mut open, epoch)?;
                    open.splits.entry(node).or_default().extend(splits);
                    open.parts += 1;
                }
                Ok(Report::Closed { node, epoch, part, pause }) => {
                    summary.longest_pause = summary.longest_pause.max(pause);
                    let open = expect_open(&mut open, epoch)?;
                    open.parts += 1;
                    open.pause = open.pause.max(pause);
                    match (part, self.operators[node].kind) {
                        (Part::State { frozen, entries }, Kind::Keyed { id }) => {
                            open.state.extend(frozen.map(|frozen| (id, frozen)));
                            *open.entries.entry(node).or_default() += entries;
                        }
                        (Part::Prepared { handles, finish, digests }, _) => {
                            if let Some(finish) = finish {
                                guard(&self.operators[node].name, finish)?;
                            }
                            open.handles.entry(node).or_default().extend(handles);
                            if let Some(digests) = digests {
                                open.digests.entry(node).or_default().plus(&digests);
                            }
                        }
                        (Part::State { .. }, _) => return Err(Error::internal("state from a stateless operator")),
                    }
                }
                Ok(Report::Pressed(epoch)) => pressed = pressed.max(epoch),
                Ok(Report::Ended) => ended += 1,
                Ok(Report::Failed) => return Err(self.failure()),
                Ok(Report::Left) => {
                    return Err(if self.shared.has_failed() {
                        self.failure()
                    } else {
                        Error::internal("a worker left while the job was running")
                    });
                }
                Ok(Report::Stop(mode)) => {
                    if mode == StopMode::Now {
                        return Ok(Outcome::Stopped);
                    }
                    stop = true;
                    self.shared.hold.store(true, Ordering::SeqCst);
                }
                Ok(Report::Savepoint(request)) => {
                    self.savepoints.request(request);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::internal("all workers are gone")),
            }
            let now = Instant::now();
            if now.duration_since(shown) >= SHOW {
                shown = now;
                if let Some(db) = &self.db {
                    let memory = db.read().unwrap_or_else(std::sync::PoisonError::into_inner).memory();
                    self.shared.rocksdb_bytes.store(memory as u64, Ordering::Relaxed);
                }
                let status = Status::read(&self.shared, &self.status_names());
                note_memory(summary, &status);
                metrics::publish(&self.job, &status, &held.counted);
                progress.show(&status, self.started.elapsed());
                speak_of_stalled(&self.job, &status, &mut stalled);
                self.savepoints.poll();
                if let Some(open) = &mut open {
                    self.speak_of_slow(open, &status, now);
                }
            }
            if let Some(complete) = open.take_if(|open| open.parts == self.expected) {
                let reason = complete.reason;
                closed = Instant::now();
                self.complete(complete, summary, held)?;
                due = Instant::now() + interval;
                match reason {
                    Reason::Interval | Reason::Savepoint => {}
                    Reason::Stop => return Ok(Outcome::Stopped),
                    Reason::Finish => return Ok(Outcome::Finished),
                }
            }
            if open.is_none() {
                let read = self.progress_of_sources();
                let reason = if ended == instances {
                    Some(if self.ends_early { Reason::Stop } else { Reason::Finish })
                } else if stop {
                    Some(Reason::Stop)
                } else if self.savepoints.is_waiting() {
                    Some(Reason::Savepoint)
                } else if held.store.is_some() && self.is_pressed(pressed, closed) {
                    Some(Reason::Interval)
                } else if held.store.is_some() && Instant::now() >= due {
                    due = Instant::now() + interval;
                    (read != read_at_cut).then_some(Reason::Interval)
                } else {
                    None
                };
                if let Some(reason) = reason {
                    read_at_cut = read;
                    open = Some(self.begin(reason));
                }
            }
        }
    }

    fn failure(&self) -> Error {
        self.shared.take_error().unwrap_or_else(|| Error::internal("the job failed without saying why"))
    }

    /// Counts everything by which sources make a difference: records, and splits that ended, which moves the watermark; and what
    /// was done though no record had asked for it.
    fn progress_of_sources(&self) -> u64 {
        let sources = self.operators.iter().enumerate().filter(|(_, operator)| operator.kind == Kind::Source);
        let ended = self.shared.splits_ended.load(Ordering::Relaxed) + self.shared.unasked.load(Ordering::Relaxed);
        let read = |node| self.shared.total(node, |s| &s.records_out) + self.shared.total(node, |s| &s.bad);
        ended + sources.map(|(node, _)| read(node)).sum::<u64>()
    }

    /// Whether an operator needs a checkpoint before it is due: at once if sources wait for it, otherwise not too often.
    fn is_pressed(&self, pressed: Epoch, closed: Instant) -> bool {
        let current = self.current();
        let waits = self.shared.full.load(Ordering::Relaxed) >= current;
        pressed >= current && (waits || closed.elapsed() >= APART)
    }

    /// The epoch in which sources are, or soon will be.
    fn current(&self) -> Epoch {
        self.shared.announced.load(Ordering::SeqCst)
    }

    /// Ends the current epoch.
    fn begin(&mut self, reason: Reason) -> Open {
        self.savepoints.closing();
        let epoch = self.current();
        tracing::debug!(job = %self.job, epoch, ?reason, "closing epoch");
        self.shared.announce(epoch + 1);
        let now = Instant::now();
        Open {
            epoch,
            reason,
            since: now,
            warned: now,
            parts: 0,
            pause: Duration::ZERO,
            splits: HashMap::new(),
            state: Vec::new(),
            entries: HashMap::new(),
            handles: HashMap::new(),
            digests: HashMap::new(),
        }
    }

    /// All parts are in: makes the checkpoint and has the sinks commit.
    fn complete(&mut self, open: Open, summary: &mut Summary, held: &mut Held) -> Result<()> {
        let (epoch, since, pause) = (open.epoch, open.since, open.pause);
        let mut clock = PhaseClock::since(since);
        let waiting_us = clock.lap();
        let handles = open.handles.clone();
        let wrote = held.store.is_some() && handles.values().any(|handles| !handles.is_empty());
        let stored = match &held.store {
            Some(store) => Some(self.store_checkpoint(open, store, &mut clock)?),
            None => None,
        };
        if let Some(Stored { bytes, .. }) = &stored {
            self.shared.probe.add_checkpoint(since, *bytes, pause);
            summary.checkpoint_bytes += bytes;
            summary.checkpoints += 1;
            summary.epoch = Some(epoch);
        }
        if self.shared.has_failed() {
            return Err(self.failure());
        }
        for (node, handles) in handles {
            if handles.is_empty() {
                continue;
            }
            let name = &self.operators[node].name;
            let Some(committer) = held.committers.get_mut(&node) else {
                return Err(Error::internal("prepared output without a committer").in_operator(name));
            };
            guard(name, || committer.commit(&handles))?;
        }
        if let Some(store) = held.store.as_ref().filter(|_| wrote) {
            store.note_committed(epoch)?;
        }
        for dir in self.savepoints.take(epoch) {
            held.journal.try_note(What::Savepoint { epoch, dir });
        }
        if let Some(Stored { bytes, manifest, phases }) = &stored {
            let rest = Phases { waiting_us, committing_us: clock.lap(), pause_us: micros(pause), ..*phases };
            note_checkpoint(held, manifest, *bytes, rest)?;
        }
        self.shared.closed.store(epoch, Ordering::SeqCst);
        let took = since.elapsed();
        summary.longest_checkpoint = summary.longest_checkpoint.max(took);
        if let Some(store) = &held.store {
            store.prune(&self.settings.retention(), wall_clock_ms())?;
            metrics::checkpoint(&self.job, took);
            tracing::debug!(job = %self.job, epoch, ms = took.as_millis() as u64, "checkpoint complete");
        }
        Ok(())
    }

    /// Writes and publishes a checkpoint.
    fn store_checkpoint(&mut self, open: Open, store: &CheckpointStore, clock: &mut PhaseClock) -> Result<Stored> {
        // A run that kept none before, or had another version before it, counts from here on.
        let before = self.restored.unwrap_or(0);
        for (node, digests) in &open.digests {
            self.digests.entry(*node).or_insert_with(|| (before, Digests::default())).1.plus(digests);
        }
        let Some(db) = &self.db else {
            return Err(Error::internal("a checkpoint without a store"));
        };
        let mut run = Run::default();
        for (operator, frozen) in open.state {
            run.begin(operator);
            let named = self.operators.iter().find(|info| info.kind == Kind::Keyed { id: operator });
            let name = named.map_or("", |info| &info.name);
            guard(name, || Ok(frozen.encode(&mut run)?))?;
        }
        run.sort();
        let encoding_us = clock.lap();
        let mut db = db.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = db.apply(&run).map_err(|error| {
            let bytes = run.bytes();
            Error::from(error).note(format!("{} bytes of state were to be written", thousands(bytes as u64)))
        })?;
        drop(run);
        let writing_us = clock.lap();
        let dir = store.epoch_dir(open.epoch);
        std::fs::create_dir_all(&dir).map_err(millstream_state::StateError::io("create", &dir))?;
        let files = db.checkpoint(&store.db_dir(open.epoch))?;
        let syncing_us = clock.lap();
        let mut splits = open.splits;
        let mut handles = open.handles;
        let entries = open.entries;
        let mut manifest = Manifest {
            millstream: env!("CARGO_PKG_VERSION").into(),
            job: self.job.clone(),
            execution: self.execution.clone(),
            epoch: open.epoch,
            finished: open.reason == Reason::Finish,
            written_ms: wall_clock_ms(),
            workers: self.settings.workers,
            key_groups: key_group::KEY_GROUPS,
            hasher: hash::HASHER_ID.into(),
            codec: codec::CODEC_ID.into(),
            operators: Vec::new(),
            sources: Vec::new(),
            split_numbers: self.split_numbers,
            sinks: Vec::new(),
            names: self.settings.names.to_entry(),
            files,
        };
        for (node, info) in self.operators.iter().enumerate() {
            let (name, kind) = (info.name.clone(), info.detail.clone());
            match info.kind {
                Kind::Source => {
                    let mut splits = splits.remove(&node).unwrap_or_default();
                    splits.sort_by(|a, b| a.split.cmp(&b.split));
                    manifest.sources.push(SourceEntry { name, kind, splits });
                }
                Kind::Sink => {
                    let mut handles = handles.remove(&node).unwrap_or_default();
                    handles.sort();
                    let digests = self.digests.get(&node).map(|(since, digests)| digests.to_entry(*since));
                    manifest.sinks.push(SinkEntry { name, kind, handles, digests });
                }
                Kind::Keyed { id } => {
                    let entries = entries.get(&node).copied().unwrap_or_default();
                    manifest.operators.push(OperatorEntry {
                        name,
                        id,
                        operator: kind,
                        state: info.state.clone(),
                        states: info.states.clone(),
                        entries,
                    });
                }
                Kind::Other => {}
            }
        }
        store.publish(&manifest)?;
        let publishing_us = clock.lap();
        let phases = Phases { encoding_us, writing_us, syncing_us, publishing_us, ..Phases::default() };
        Ok(Stored { bytes, manifest, phases })
    }

    /// Says who holds up a checkpoint that takes long.
    fn speak_of_slow(&self, open: &mut Open, status: &Status, now: Instant) {
        let patience = SLOW.max(self.settings.checkpoint_interval.min(NEVER) * 3);
        if now.duration_since(open.warned) < patience {
            return;
        }
        open.warned = now;
        tracing::warn!(
            job = %self.job,
            epoch = open.epoch,
            seconds = now.duration_since(open.since).as_secs(),
            "checkpoint is not complete: {} of {} parts; {}",
            open.parts,
            self.expected,
            status.who_holds(open.epoch)
        );
    }
}

/// Event time that stands still for so long, while other splits go on, is spoken of.
const STALLED: Duration = Duration::from_secs(30);

/// The split that holds event time back although others go on.
fn stalled(status: &Status) -> Option<&SplitStatus> {
    let held = status.held_back_by().filter(|held| held.stands_for >= STALLED)?;
    let goes_on = |other: &SplitStatus| other.watermark > held.watermark && other.stands_for < held.stands_for;
    status.splits.iter().any(goes_on).then_some(held)
}

/// Speaks of it, once for each time at which it stands.
fn speak_of_stalled(job: &str, status: &Status, told: &mut Option<(String, String, EventTime)>) {
    let Some(held) = stalled(status) else { return };
    let now = (held.source.clone(), held.split.clone(), held.watermark);
    if told.as_ref() == Some(&now) {
        return;
    }
    tracing::warn!(
        job,
        "event time does not go on, and windows do not close: {held}; others go on. If it may be left behind, say so with \
         `Watermarks::idle_after`"
    );
    *told = Some(now);
}

/// A checkpoint that was published.
struct Stored {
    /// Of state, written for it.
    bytes: u64,
    manifest: Manifest,
    phases: Phases,
}

/// Tells how long each phase took.
struct PhaseClock(Instant);

impl PhaseClock {
    fn since(begin: Instant) -> Self {
        PhaseClock(begin)
    }

    /// The time since the last lap, in microseconds.
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        micros(now.duration_since(std::mem::replace(&mut self.0, now)))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Writes a checkpoint into the journal, and which records have gone through that had killed the job before.
fn note_checkpoint(held: &mut Held, manifest: &Manifest, bytes: u64, phases: Phases) -> Result<()> {
    let splits = manifest.sources.iter().flat_map(|source| &source.splits);
    let records = splits.map(|split| split.records).sum();
    let entries = manifest.operators.iter().map(|operator| operator.entries).sum();
    for (record, times) in held.suspects.passed(&manifest.sources) {
        held.journal.note(What::Passed { record, times })?;
    }
    held.journal.note(What::Checkpoint { epoch: manifest.epoch, records, entries, bytes, phases })
}

fn expect_open(open: &mut Option<Open>, epoch: Epoch) -> Result<&mut Open> {
    match open {
        Some(open) if open.epoch == epoch => Ok(open),
        _ => Err(Error::internal(format!("a report for epoch {epoch}, which is not open"))),
    }
}

/// Milliseconds since 1970, for people who read manifests and reports.
#[allow(clippy::disallowed_methods)] // nothing depends on it
pub(crate) fn wall_clock_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SplitState;

    #[test]
    fn event_time_is_stalled_where_one_stands_and_another_goes_on() {
        let split = |name: &str, at: i64, stands_for: u64, state: SplitState| SplitStatus {
            source: "source".to_string(),
            split: name.to_string(),
            records: 1,
            watermark: EventTime::from_secs(at),
            state,
            stands_for: Duration::from_secs(stands_for),
        };
        let stalled_of = |splits: [SplitStatus; 2]| {
            let status = Status { splits: splits.to_vec(), ..Status::default() };
            stalled(&status).map(|split| split.split.clone())
        };
        use SplitState::{Idle, Quiet, Read};
        let found = Some("one".to_string());
        assert_eq!(stalled_of([split("one", 5, 30, Quiet), split("two", 9, 0, Read)]), found);
        assert_eq!(stalled_of([split("two", 9, 29, Quiet), split("one", 5, 30, Quiet)]), found);
        assert_eq!(stalled_of([split("one", 5, 29, Quiet), split("two", 9, 0, Read)]), None, "not for long enough");
        assert_eq!(stalled_of([split("one", 5, 60, Quiet), split("two", 9, 60, Quiet)]), None, "nothing goes on");
        assert_eq!(stalled_of([split("one", 5, 60, Idle), split("two", 9, 0, Read)]), None, "it is left behind");
    }
}
