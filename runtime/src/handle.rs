//! A running job, from outside: wait for it, stop it, look at it.

use std::fmt::Write as _;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::bench::Percentiles;
use crate::bench::times::Times;
use crate::checkpoint::Kind;
use crate::error::{Error, Result};
use crate::moment::Epoch;
use crate::savepoint::{Request, Savepoint};
use crate::shared::{Padded, Report, Shared, SplitState, Stats, StopMode, lock};
use crate::summary::Summary;
use crate::terminal::tell;
use crate::time::EventTime;

/// A handle to a started job. It is also a future of the job's [`Summary`], for use in async programs. Dropping it lets the
/// job run on.
pub struct JobHandle {
    control: Option<Arc<Control>>,
    names: Vec<(String, Kind)>,
    done: Arc<Done>,
}

/// What a handle and the supervisor share, over all attempts of a job.
pub(crate) struct Control {
    state: Mutex<ControlState>,
    asked: Condvar,
    /// How often the job was started again.
    pub restarts: AtomicU64,
    /// How many records are set aside.
    pub set_aside: AtomicU64,
    /// Set by the signal that asks for a savepoint.
    signalled: Arc<AtomicBool>,
    #[cfg(unix)]
    signals: Mutex<Vec<signal_hook::SigId>>,
}

struct ControlState {
    /// The attempt that runs, or ran last.
    shared: Arc<Shared>,
    stop: Option<StopMode>,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>, signalled: Arc<AtomicBool>) -> Self {
        Control {
            state: Mutex::new(ControlState { shared, stop: None }),
            asked: Condvar::new(),
            restarts: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
            signalled,
            #[cfg(unix)]
            signals: Mutex::default(),
        }
    }

    /// The job has ended: signals are no longer its business.
    pub(crate) fn ignore_signals(&self) {
        #[cfg(unix)]
        for registered in lock(&self.signals).drain(..) {
            signal_hook::low_level::unregister(registered);
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&lock(&self.state).shared)
    }

    /// Another attempt runs. It is told if the job was asked to stop meanwhile.
    pub(crate) fn attempt(&self, shared: Arc<Shared>) {
        let mut state = lock(&self.state);
        if let Some(mode) = state.stop {
            shared.report(Report::Stop(mode));
        }
        state.shared = shared;
    }

    pub(crate) fn stop(&self, mode: StopMode) {
        let mut state = lock(&self.state);
        if state.stop != Some(StopMode::Now) {
            state.stop = Some(mode);
        }
        state.shared.report(Report::Stop(mode));
        self.asked.notify_all();
    }

    /// Waits for `time`, or until the job is asked to stop; whether it was.
    pub(crate) fn stopped_within(&self, time: Duration) -> bool {
        let waited = self.asked.wait_timeout_while(lock(&self.state), time, |state| state.stop.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.stop.is_some()
    }
}

impl std::fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobHandle").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Done {
    state: Mutex<DoneState>,
    changed: Condvar,
}

#[derive(Default)]
struct DoneState {
    finished: bool,
    result: Option<Result<Summary>>,
    waker: Option<Waker>,
}

impl Done {
    fn set(&self, result: Result<Summary>) {
        let mut state = lock(&self.state);
        state.finished = true;
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl JobHandle {
    pub(crate) fn new(
        control: &Arc<Control>,
        names: Vec<(String, Kind)>,
    ) -> (JobHandle, impl FnOnce(Result<Summary>) + Send + use<>) {
        let done = Arc::new(Done::default());
        let set = Arc::clone(&done);
        (JobHandle { control: Some(Arc::clone(control)), names, done }, move |result| set.set(result))
    }

    /// The handle of a job that need not run.
    pub(crate) fn finished(summary: Summary) -> JobHandle {
        let done = Arc::new(Done::default());
        done.set(Ok(summary));
        JobHandle { control: None, names: Vec::new(), done }
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    /// Whatever made it fail.
    pub fn wait(self) -> Result<Summary> {
        let mut state = lock(&self.done.state);
        while !state.finished {
            state = self.done.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.result.take().unwrap_or_else(|| Err(Error::internal("the job's result was already taken")))
    }

    /// Waits until the job has ended, but no longer than `time`; whether it has.
    pub fn wait_for(&self, time: Duration) -> bool {
        let state = lock(&self.done.state);
        let (state, _) = self
            .done
            .changed
            .wait_timeout_while(state, time, |state| !state.finished)
            .unwrap_or_else(PoisonError::into_inner);
        state.finished
    }

    /// Waits until everything that sources gave is processed: `true`, or the job has ended: `false`. For a job that was
    /// [`watched`](crate::job::Job::watched); for `millstream::testing`. `all_read` says whether sources were asked for all that they
    /// have, and must stay true once it is; it is asked after every step of a worker.
    ///
    /// # Errors
    /// When that has not come to pass after `patience`, which user code that hangs would wait for.
    #[doc(hidden)]
    pub fn wait_for_rest(&self, patience: Duration, all_read: impl Fn() -> bool) -> Result<bool> {
        let Some(shared) = self.shared() else { return Ok(false) };
        let Some(rest) = &shared.rest else { return Err(Error::internal("nobody keeps track of this job")) };
        let is_over = || self.is_finished() || (all_read() && rest.is_reached(&shared) && !rest.is_ending(&shared));
        if rest.wait_until(Instant::now() + patience, is_over) {
            return Ok(!self.is_finished());
        }
        let holds = self.status().who_holds(Epoch::MAX);
        Err(Error::external(format!("what the job was given is not processed after {patience:?}: {holds}")))
    }

    pub(crate) fn shared(&self) -> Option<Arc<Shared>> {
        Some(self.control.as_ref()?.shared())
    }

    /// Whether the job has ended.
    pub fn is_finished(&self) -> bool {
        lock(&self.done.state).finished
    }

    /// Asks the job to stop; [`wait`](Self::wait) then returns soon.
    pub fn stop(&self, mode: StopMode) {
        self.stopper()(mode);
    }

    /// A way to stop the job from elsewhere, while this handle is waited for or awaited.
    ///
    /// ```no_run
    /// # use millstream_runtime::{StopMode, handle::JobHandle};
    /// # async fn example(handle: JobHandle) -> millstream_runtime::error::Result<()> {
    /// let stop = handle.stopper();
    /// std::thread::Builder::new().spawn(move || stop(StopMode::WithCheckpoint)).expect("a thread");
    /// let summary = handle.await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn stopper(&self) -> impl Fn(StopMode) + Clone + Send + Sync + 'static {
        let control = self.control.clone();
        move |mode| {
            if let Some(control) = &control {
                control.stop(mode);
            }
        }
    }

    /// Takes a savepoint in `dir`, which must not exist, and waits until it is complete. The job goes on, with what it reads and with its
    /// checkpoints. Nothing that the job does ever touches a savepoint again.
    ///
    /// ```no_run
    /// # use millstream_runtime::{StopMode, handle::JobHandle};
    /// # fn example(handle: JobHandle) -> millstream_runtime::error::Result<()> {
    /// let taken = handle.savepoint("/backup/orders/before-the-release")?;
    /// println!("savepoint of epoch {}", taken.epoch);
    /// handle.stop(StopMode::WithCheckpoint);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When it cannot be taken there, or the job keeps no checkpoints or ends before. The job does not mind.
    pub fn savepoint(&self, dir: impl AsRef<Path>) -> Result<Savepoint> {
        let gone = || Error::external("the job ended before it could take the savepoint");
        let dir = dir.as_ref();
        let dir = std::path::absolute(dir)
            .map_err(|error| Error::config(format!("`{}` is no path", dir.display())).because(error))?;
        let shared = self.shared().ok_or_else(gone)?;
        let (sender, taken) = crossbeam_channel::bounded(1);
        let answer = move |answer| {
            // Who asked may have gone; that is no matter.
            let _ = sender.send(answer);
        };
        shared.report(Report::Savepoint(Request { dir: Some(dir), answer: Box::new(answer) }));
        taken.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// From now on the signal SIGUSR1 makes this job take a savepoint, in `savepoints/epoch-…` in its checkpoint directory; it says on
    /// standard error where. Before this call, and where it fails, the signal ends the process, as the system has it.
    /// Does nothing on systems without that signal.
    pub fn savepoint_on_sigusr1(&self) {
        #[cfg(unix)]
        if let Some(control) = &self.control {
            let flag = Arc::clone(&control.signalled);
            match signal_hook::flag::register(signal_hook::consts::SIGUSR1, flag) {
                Ok(registered) => lock(&control.signals).push(registered),
                Err(error) => tracing::warn!("SIGUSR1 will not take a savepoint: {error}"),
            }
        }
    }

    /// What the job has done so far.
    pub fn status(&self) -> Status {
        let Some(control) = &self.control else { return Status::default() };
        let mut status = Status::read(&control.shared(), &self.names);
        status.restarts = control.restarts.load(Ordering::Relaxed);
        status.set_aside = control.set_aside.load(Ordering::Relaxed);
        status
    }

    /// From now on Ctrl-C (and SIGTERM) stops this job with a last checkpoint; a second one ends the process at once.
    /// Does nothing when the program handles Ctrl-C by other means.
    pub fn stop_on_ctrl_c(&self) {
        static JOBS: OnceLock<Mutex<Vec<Weak<Control>>>> = OnceLock::new();
        static ASKED: AtomicBool = AtomicBool::new(false);
        let Some(control) = &self.control else { return };
        ASKED.store(false, Ordering::SeqCst);
        let jobs = JOBS.get_or_init(|| {
            let handler = move || {
                let running: Vec<_> =
                    JOBS.get().map_or_else(Vec::new, |jobs| lock(jobs).iter().filter_map(Weak::upgrade).collect());
                if running.is_empty() || ASKED.swap(true, Ordering::SeqCst) {
                    #[allow(clippy::disallowed_methods)] // asked for twice, or there is nothing to stop gently
                    std::process::exit(130);
                }
                tell("stopping; once more to stop at once");
                running.iter().for_each(|job| job.stop(StopMode::WithCheckpoint));
            };
            if let Err(error) = ctrlc::set_handler(handler) {
                tracing::warn!("Ctrl-C will not take a last checkpoint: {error}");
            }
            Mutex::default()
        });
        let mut jobs = lock(jobs);
        jobs.retain(|job| job.strong_count() > 0);
        jobs.push(Arc::downgrade(control));
    }
}

impl Future for JobHandle {
    type Output = Result<Summary>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.done.state);
        if !state.finished {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.result.take().unwrap_or_else(|| Err(Error::internal("the job's result was already taken"))))
    }
}

/// What a running job has done so far, counted from its start, or from its last restart.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// Records read by all sources.
    pub records_in: u64,
    /// Records taken by all sinks.
    pub records_out: u64,
    /// Records that were late for all their windows.
    pub late: u64,
    /// Records that could not be read and were dropped or diverted.
    pub bad: u64,
    /// Windows fired, counted per key.
    pub windows_fired: u64,
    /// The epoch that is being filled.
    pub epoch: Epoch,
    /// Records on their way between workers, or waiting to be called.
    pub in_flight: u64,
    /// Bytes of memory that keyed state takes, about.
    pub state_bytes: u64,
    /// Bytes of memory that RocksDB takes: its cache, with indexes and filters, and its tables.
    pub rocksdb_bytes: u64,
    /// How often it was restarted after a failure.
    pub restarts: u64,
    /// Records of its input that are set aside, by this start or earlier ones.
    pub set_aside: u64,
    /// The operators, in the order in which they were described.
    pub operators: Vec<OperatorStatus>,
    /// The splits of all sources.
    pub splits: Vec<SplitStatus>,
}

/// Where a split of a source stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SplitStatus {
    /// The name of its source.
    pub source: String,
    /// Its name.
    pub split: String,
    /// Records read from it, by this start and those before.
    pub records: u64,
    /// Its watermark.
    pub watermark: EventTime,
    /// What it does.
    pub state: SplitState,
    /// For how long its watermark has stood where it is.
    pub stands_for: Duration,
}

impl std::fmt::Display for SplitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = match self.state {
            SplitState::Read => "is read, but its records do not move it",
            SplitState::Quiet => "has nothing to read",
            SplitState::Ahead => "is ahead of the others and waits for them",
            SplitState::Idle => "is idle",
            SplitState::Ended => "has ended",
        };
        let (split, source, watermark) = (&self.split, &self.source, self.watermark);
        if watermark == EventTime::MIN {
            return write!(f, "split `{split}` of `{source}` {why}, and has no watermark yet");
        }
        write!(
            f,
            "split `{split}` of `{source}` {why}, and stands at {watermark} for {:.0} s",
            self.stands_for.as_secs_f64()
        )
    }
}

/// What an operator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperatorKind {
    /// It reads from outside.
    Source,
    /// It knows one record at a time, or it is a union.
    Stateless,
    /// It has state by key: an exchange is in front of it.
    Keyed,
    /// It hands records to the outside.
    Sink,
}

/// What one operator has done so far, and how long it took. Times are always counted, by a reading or two of the clock
/// for each batch that an operator takes in or sends.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OperatorStatus {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: OperatorKind,
    /// Records taken in.
    pub records_in: u64,
    /// Records given out.
    pub records_out: u64,
    /// Records that were late.
    pub late: u64,
    /// Records that could not be read.
    pub bad: u64,
    /// Windows fired.
    pub windows_fired: u64,
    /// Calls to the outside.
    pub calls: CallStatus,
    /// Bytes of memory that its state takes, about.
    pub state_bytes: u64,
    /// For sources, operators with state and sinks, per worker: the epoch it is in and its watermark.
    pub instances: Vec<(Epoch, EventTime)>,
    /// How long its code ran, over all workers: reading and giving event times for a source, taking records together on the
    /// worker that read them for a window, and, for all that have a part in checkpoints, making that part.
    pub busy: Duration,
    /// How long the records for it were dealt out to the workers that own their keys, over all workers. 0 for all but keyed
    /// operators, and on one worker.
    pub dealing: Duration,
    /// How long batches waited on their worker, from the operator before until this one took them up: one value a batch.
    /// None for operators that run as one with the one before. For a window on several workers: in front of what takes records
    /// together, one value for all that it finds.
    pub queue: Percentiles,
    /// For a keyed operator on several workers: how long batches took from the operator before through the exchange, until
    /// the worker that owns their keys took them up. One value a batch.
    pub exchange: Percentiles,
    /// For a sink: how long records took from the source until the sink had taken them, one value a record. Counted, for all
    /// records of a batch, from when its source began to read its oldest record (under a load: from when that was due).
    /// Includes results that an operator gives out as it is given a record, such as those of a fold.
    pub record_latency: Percentiles,
    /// For a sink: how long results that were fired when event time had come to the end of their windows took, from when the operator
    /// that fired them began to do so until the sink had taken them; one value a result. What a window waits for before
    /// that, its last records and the watermark, is not in it: `job bench` counts that.
    pub result_latency: Percentiles,
}

/// What an operator that calls the outside has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallStatus {
    /// Calls made, those that were made again among them.
    pub made: u64,
    /// Records for which a call failed and was to be made again.
    pub retried: u64,
    /// Records for which the last attempt failed.
    pub failed: u64,
    /// Calls that took too long.
    pub timed_out: u64,
    /// Records in flight now: begun, and their results not yet sent on.
    pub in_flight: u64,
    /// Records that wait to be called.
    pub waiting: u64,
}

impl CallStatus {
    fn read(shared: &Shared, node: usize) -> Self {
        CallStatus {
            made: shared.total(node, |stats| &stats.calls),
            retried: shared.total(node, |stats| &stats.calls_retried),
            failed: shared.total(node, |stats| &stats.calls_failed),
            timed_out: shared.total(node, |stats| &stats.calls_timed_out),
            in_flight: shared.total(node, |stats| &stats.calls_in_flight),
            waiting: shared.total(node, |stats| &stats.calls_waiting),
        }
    }
}

impl OperatorStatus {
    /// For a sink: the latencies that it has, each with the name that it has in metrics, `record` or `result`.
    pub fn latencies(&self) -> impl Iterator<Item = (&'static str, &Percentiles)> {
        let both = [("record", &self.record_latency), ("result", &self.result_latency)];
        both.into_iter().filter(|(_, latency)| latency.count > 0)
    }
}

impl Status {
    pub(crate) fn read(shared: &Shared, names: &[(String, Kind)]) -> Status {
        let mut status = Status { epoch: shared.announced.load(Ordering::Relaxed), ..Status::default() };
        status.rocksdb_bytes = shared.rocksdb_bytes.load(Ordering::Relaxed);
        status.in_flight = shared.in_flight.iter().map(|n| n.0.load(Ordering::Relaxed).max(0) as u64).sum();
        for (node, (name, kind)) in names.iter().enumerate() {
            let mut operator = OperatorStatus {
                name: name.clone(),
                records_in: shared.total(node, |stats| &stats.records_in),
                records_out: shared.total(node, |stats| &stats.records_out),
                late: shared.total(node, |stats| &stats.late),
                bad: shared.total(node, |stats| &stats.bad),
                windows_fired: shared.total(node, |stats| &stats.fired),
                calls: CallStatus::read(shared, node),
                state_bytes: shared.total(node, |stats| &stats.state_bytes),
                instances: if *kind == Kind::Other { Vec::new() } else { instances(shared, node) },
                kind: match kind {
                    Kind::Source => OperatorKind::Source,
                    Kind::Keyed { .. } => OperatorKind::Keyed,
                    Kind::Sink => OperatorKind::Sink,
                    Kind::Other => OperatorKind::Stateless,
                },
                busy: Duration::from_nanos(shared.total(node, |stats| &stats.busy_ns)),
                dealing: Duration::from_nanos(shared.total(node, |stats| &stats.dealing_ns)),
                queue: percentiles(shared, node, |stats| &stats.queue),
                exchange: percentiles(shared, node, |stats| &stats.exchange),
                record_latency: percentiles(shared, node, |stats| &stats.record_latency),
                result_latency: percentiles(shared, node, |stats| &stats.result_latency),
            };
            match kind {
                // What a source gives out is what it has read.
                Kind::Source => {
                    operator.records_in = operator.records_out + operator.bad;
                    status.records_in += operator.records_out;
                }
                Kind::Sink => status.records_out += operator.records_in,
                Kind::Keyed { .. } | Kind::Other => {}
            }
            status.late += operator.late;
            status.bad += operator.bad;
            status.windows_fired += operator.windows_fired;
            status.state_bytes += operator.state_bytes;
            status.operators.push(operator);
        }
        let now_ms = shared.probe.now_ns() / 1_000_000;
        status.splits.extend(shared.splits.iter().map(|(name, Padded(mark))| SplitStatus {
            source: name.source.clone(),
            split: name.split.clone(),
            records: mark.records.load(Ordering::Relaxed),
            watermark: EventTime::from_micros(mark.watermark_us.load(Ordering::Relaxed)),
            state: SplitState::of(mark.state.load(Ordering::Relaxed)),
            stands_for: Duration::from_millis(now_ms.saturating_sub(mark.moved_ms.load(Ordering::Relaxed))),
        }));
        status
    }

    /// The split that event time waits for: that with the least watermark of all that are neither idle nor at their end, over all sources of the
    /// job. Nothing, when there is none.
    pub fn held_back_by(&self) -> Option<&SplitStatus> {
        let holds = |split: &&SplitStatus| !matches!(split.state, SplitState::Idle | SplitState::Ended);
        self.splits
            .iter()
            .filter(holds)
            .min_by_key(|split| (split.watermark, std::cmp::Reverse(split.stands_for)))
    }

    /// How far event time has come: the least watermark over all sources.
    pub fn watermark(&self) -> EventTime {
        let sources = self.operators.iter().filter(|operator| operator.kind == OperatorKind::Source);
        sources.flat_map(|source| &source.instances).map(|(_, at)| *at).min().unwrap_or(EventTime::MIN)
    }

    /// Which operator instances have not closed `epoch`, and how far apart the sources' watermarks are.
    pub fn who_holds(&self, epoch: Epoch) -> String {
        let mut text = String::new();
        for operator in &self.operators {
            for (worker, (at, _)) in operator.instances.iter().enumerate() {
                if *at <= epoch {
                    let _ = write!(text, "`{}` on worker {worker} is in epoch {at}; ", operator.name);
                }
            }
        }
        for operator in self.operators.iter().filter(|operator| operator.calls.in_flight > 0) {
            let CallStatus { in_flight, waiting, .. } = operator.calls;
            let _ = write!(text, "`{}` has {in_flight} calls in flight, and {waiting} waiting; ", operator.name);
        }
        let sources = self.operators.iter().filter(|operator| operator.kind == OperatorKind::Source);
        let marks: Vec<EventTime> = sources.flat_map(|source| &source.instances).map(|(_, at)| *at).collect();
        if let (Some(least), Some(greatest)) = (marks.iter().min(), marks.iter().max()) {
            let _ = write!(text, "sources' watermarks are between {least} and {greatest}");
        }
        if let Some(split) = self.held_back_by() {
            let _ = write!(text, "; {split}");
        }
        text
    }
}

/// The usual figures over all instances of a node.
fn percentiles(shared: &Shared, node: usize, times: impl Fn(&Stats) -> &Times) -> Percentiles {
    Times::percentiles(shared.stats[node].iter().map(|stats| times(&stats.0)))
}

fn instances(shared: &Shared, node: usize) -> Vec<(Epoch, EventTime)> {
    let read = |stats: &Padded<Stats>| {
        let watermark = EventTime::from_micros(stats.0.watermark_us.load(Ordering::Relaxed));
        (stats.0.epoch.load(Ordering::Relaxed), watermark)
    };
    shared.stats[node].iter().map(read).collect()
}
