//! A job: described as a value, checked, then run.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_state::checkpoint::{Retention, StartFrom};
use millstream_state::evolve::{Evolve, Migrations};

use crate::bench::probe::OpenLoop;
use crate::clock::Clock;
use crate::driver::SourceNode;
use crate::error::{Error, Result};
use crate::graph::{Body, Graph, check_name};
use crate::handle::JobHandle;
use crate::names::Names;
use crate::replay::Replayed;
use crate::restart::RestartPolicy;
use crate::shared::lock;
use crate::source::{BadRecord, Source};
use crate::stream::{SharedGraph, Stream};
use crate::summary::Summary;
use crate::time::EventTime;
use crate::watermark::{WatermarkGenerator, Watermarks};

/// How a job is run. Plain values; every one has a sensible default.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many worker threads; by default as many as the machine has cores.
    pub workers: usize,
    /// Where checkpoints are kept. Without it there are none: output is committed when the job ends or is stopped, and
    /// a crash loses all.
    pub checkpoint_dir: Option<PathBuf>,
    /// How often a checkpoint is taken; by default every 10 seconds. A due one is skipped while the one before is open, or
    /// when nothing was read since.
    pub checkpoint_interval: Duration,
    /// How many bytes of memory keyed state may take, with RocksDB's own; by default it may take what it needs. See [`Job::memory`].
    pub memory: Option<u64>,
    /// How many checkpoints are kept; by default 3.
    pub retain: usize,
    /// Checkpoints that were written within this time are kept as well, however many; by default none.
    pub retain_for: Option<Duration>,
    /// How many bytes checkpoints may take, over all and with files that they share counted once. Beyond it the oldest are deleted,
    /// whatever the other two say; the newest stays in any case. By default there is no limit.
    pub retain_bytes: Option<u64>,
    /// What to start from; by default the newest checkpoint.
    pub start_from: StartFrom,
    /// Whether SIGUSR1 makes the job take a savepoint, when it is run by [`Job::run`]; see
    /// [`JobHandle::savepoint_on_sigusr1`].
    pub savepoint_on_sigusr1: bool,
    /// What was renamed or dropped since the checkpoint that it starts from.
    pub names: Names,
    /// How many records a source reads at a time, at most; by default 2048.
    pub batch_size: usize,
    /// How many records may be on their way to one worker before sources stop reading; by default 65,536.
    pub in_flight: usize,
    /// Whether a progress line is shown on standard error, when that is a terminal.
    pub progress: bool,
    /// What becomes of a job that fails; by default that is its end.
    pub restart: RestartPolicy,
    /// After how many failures in a row for which the same record is to blame that record is left out; by default never.
    pub set_aside_after: Option<u32>,
    /// Where processing time comes from; by default the clock of the machine.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            checkpoint_dir: None,
            checkpoint_interval: Duration::from_secs(10),
            memory: None,
            retain: 3,
            retain_for: None,
            retain_bytes: None,
            start_from: StartFrom::Newest,
            savepoint_on_sigusr1: false,
            names: Names::default(),
            batch_size: 2048,
            in_flight: 64 << 10,
            progress: false,
            restart: RestartPolicy::never(),
            set_aside_after: None,
            clock: Clock::system(),
        }
    }
}

/// The least memory for state that makes sense.
const LEAST_MEMORY: u64 = 4096;

impl Settings {
    /// How many bytes RocksDB's cache may take.
    pub(crate) fn cache_bytes(&self) -> usize {
        // Without a limit little is ever read back.
        self.memory.map_or(8 << 20, |bytes| bytes / 4) as usize
    }

    /// How long checkpoints are kept.
    pub(crate) fn retention(&self) -> Retention {
        Retention { count: self.retain, age: self.retain_for, bytes: self.retain_bytes }
    }
}

/// A streaming job, as described so far.
pub struct Job {
    pub(crate) name: String,
    pub(crate) settings: Settings,
    /// What its sources are read under, when it is measured.
    pub(crate) load: Option<OpenLoop>,
    /// It was measured before.
    pub(crate) measured: bool,
    /// Somebody wants to know when it is at rest.
    pub(crate) watched: bool,
    /// What is replayed, when it is a replay.
    pub(crate) replayed: Option<Arc<Replayed>>,
    pub(crate) graph: SharedGraph,
    /// The types with versions that it knows.
    pub(crate) migrations: Migrations,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// An empty job. Its name is checked against that of a checkpoint before one is restored.
    pub fn new(name: impl Into<String>) -> Self {
        Job {
            name: name.into(),
            settings: Settings::default(),
            load: None,
            measured: false,
            watched: false,
            replayed: None,
            graph: Arc::new(Mutex::new(Graph::default())),
            migrations: Migrations::default(),
        }
    }

    /// Knows the versions of `T`, a key, a kept value, or a part of either: checkpoints with an older form of it are migrated
    /// when they are restored. See [`Evolve`].
    #[must_use]
    pub fn migrate<T: Evolve>(mut self) -> Self {
        self.migrations.add::<T>();
        self
    }

    /// How many worker threads.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers;
        self
    }

    /// Where checkpoints are kept, and looked for at the start. One job per directory.
    #[must_use]
    pub fn checkpoint_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.settings.checkpoint_dir = Some(dir.into());
        self
    }

    /// How often a checkpoint is taken.
    #[must_use]
    pub fn checkpoint_every(mut self, interval: Duration) -> Self {
        self.settings.checkpoint_interval = interval;
        self
    }

    /// How many bytes of memory keyed state may take: what is not needed for the moment leaves memory and is read back from
    /// RocksDB when it is. Needs a checkpoint directory.
    ///
    /// Half of it is for entries, divided evenly among the operators with state and the workers, a quarter for RocksDB's cache, and
    /// the rest for what is on its way to the disk. Only what is stored can leave, so a checkpoint may be taken
    /// before it is due. State that is still smaller than its share is not touched, and costs nothing more than without.
    /// What leaves are values by key (`fold`, `reduce`) one by one, and slices of windows as a whole, but not the one that records
    /// are added to: a window's state takes at least that.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.settings.memory = Some(bytes);
        self
    }

    /// How many checkpoints are kept.
    #[must_use]
    pub fn retain(mut self, checkpoints: usize) -> Self {
        self.settings.retain = checkpoints;
        self
    }

    /// Keeps, beside those of [`retain`](Self::retain), all checkpoints that were written within `age`.
    #[must_use]
    pub fn retain_for(mut self, age: Duration) -> Self {
        self.settings.retain_for = Some(age);
        self
    }

    /// Deletes the oldest checkpoints when all together take more than so many bytes, whatever [`retain`](Self::retain) and
    /// [`retain_for`](Self::retain_for) say. Checkpoints share files; these count once.
    #[must_use]
    pub fn retain_bytes(mut self, bytes: u64) -> Self {
        self.settings.retain_bytes = Some(bytes);
        self
    }

    /// What to start from.
    #[must_use]
    pub fn start_from(mut self, from: StartFrom) -> Self {
        self.settings.start_from = from;
        self
    }

    /// SIGUSR1 makes the job take a savepoint, in `savepoints/epoch-…` in its checkpoint directory.
    #[must_use]
    pub fn savepoint_on_sigusr1(mut self) -> Self {
        self.settings.savepoint_on_sigusr1 = true;
        self
    }

    /// What is called `old` in checkpoints and savepoints is called `new` now: an operator, a source or a sink. Where they know the new name
    /// already, this does nothing.
    #[must_use]
    pub fn renamed(mut self, old: impl Into<String>, new: impl Into<String>) -> Self {
        self.settings.names.renamed.push((old.into(), new.into()));
        self
    }

    /// The state of this operator, source or sink, which the job no longer has, may be dropped from checkpoints and savepoints.
    #[must_use]
    pub fn drop_state(mut self, name: impl Into<String>) -> Self {
        self.settings.names.dropped.push(name.into());
        self
    }

    /// Where processing time comes from, for operators that ask for it. Tests have a [manual clock](Clock::manual).
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.settings.clock = clock;
        self
    }

    /// How many records a source reads at a time, at most. Larger is faster, smaller has lower latency under load.
    #[must_use]
    pub fn batch_size(mut self, records: usize) -> Self {
        self.settings.batch_size = records;
        self
    }

    /// Whether and when the job goes on by itself after a failure, from its newest checkpoint, in this process.
    ///
    /// Every attempt begins with all threads of the one before gone; locks are kept. The handle, `stop` and Ctrl-C are those
    /// of all attempts. A job with a source that cannot be read again, such as a channel, is refused: what it had
    /// read since the last checkpoint would be lost without a word.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use millstream_runtime::job::Job;
    /// use millstream_runtime::restart::RestartPolicy;
    ///
    /// let job = Job::new("orders").restart(RestartPolicy::fixed(Duration::from_secs(5), 3));
    /// ```
    #[must_use]
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.settings.restart = policy;
        self
    }

    /// Leaves a record out when user code has failed on it `failures` times in a row, here or over several starts of the process:
    /// results are then those of the input without that record, now and in every later start from these checkpoints. Needs
    /// a checkpoint directory, where `set-aside.jsonl` says which records they are, and why; see
    /// [`poison`](crate::poison). The default is never to do that.
    ///
    /// A failure that belongs to no single record (in the firing of a window, or behind one) cannot be helped so, and says why.
    /// So that operators with state can name records, these travel with their positions: 16 bytes more for each.
    #[must_use]
    pub fn set_aside_after(mut self, failures: u32) -> Self {
        self.settings.set_aside_after = Some(failures);
        self
    }

    /// Keeps track of what is processed, so that [`JobHandle::wait_for_rest`] can tell; for `millstream::testing`.
    #[doc(hidden)]
    #[must_use]
    pub fn watched(mut self) -> Self {
        self.watched = true;
        self
    }

    /// All settings at once.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a source.
    pub fn source<S, F, G>(&self, source: S, watermarks: Watermarks<S::Item, F, G>) -> Stream<S::Item>
    where
        S: Source,
        F: Fn(&S::Item) -> EventTime + Clone + Send + 'static,
        G: WatermarkGenerator,
    {
        self.source_with_bad(source, watermarks).0
    }

    /// Reads a source; the second stream has the records that could not be read. The source itself decides which bad
    /// records fail the job and which are passed on.
    ///
    /// A bad record has no event time of its own; it gets the watermark that its split had at the start of the batch in which it
    /// was read. So windows over bad records depend on batches, unlike everything else.
    pub fn source_with_bad<S, F, G>(
        &self,
        source: S,
        watermarks: Watermarks<S::Item, F, G>,
    ) -> (Stream<S::Item>, Stream<BadRecord>)
    where
        S: Source,
        F: Fn(&S::Item) -> EventTime + Clone + Send + 'static,
        G: WatermarkGenerator,
    {
        let kind = source.kind().to_string();
        let body = Body::Source(Box::new(SourceNode::new(source, watermarks)));
        let node = lock(&self.graph).add("source", kind, Vec::new(), &["records", "bad"], body);
        (Stream::new(Arc::clone(&self.graph), node, 0), Stream::new(Arc::clone(&self.graph), node, 1))
    }

    /// The dataflow as a Mermaid flowchart, which GitHub and many editors draw.
    pub fn mermaid(&self) -> String {
        lock(&self.graph).mermaid()
    }

    /// The dataflow in the language of Graphviz.
    pub fn dot(&self) -> String {
        lock(&self.graph).dot(&self.name)
    }

    /// Checks what can be checked before anything runs: names, settings, sources and sinks.
    ///
    /// # Errors
    /// The first thing that is wrong, with what to do about it.
    pub fn validate(&self) -> Result<()> {
        check_name("job", &self.name)?;
        let settings = &self.settings;
        if settings.workers == 0 || settings.workers > 1024 {
            return Err(Error::config(format!("{} workers", settings.workers)).hint("choose 1 to 1024"));
        }
        if settings.batch_size == 0 || settings.in_flight == 0 {
            return Err(Error::config("a batch size or a bound on records in flight of 0").hint("choose at least 1"));
        }
        if settings.checkpoint_interval < Duration::from_millis(1) {
            return Err(Error::config("a checkpoint interval below 1 ms").hint("200ms is short, 10s is usual"));
        }
        if let Some(bytes) = settings.memory {
            if settings.checkpoint_dir.is_none() {
                return Err(Error::config("state cannot leave memory without a checkpoint directory")
                    .hint("give one with `checkpoint_dir`, or leave `memory` out"));
            }
            // State of a test is so small that it would never leave memory that makes sense.
            if bytes < LEAST_MEMORY && !self.watched {
                return Err(Error::config(format!("{bytes} bytes of memory for state"))
                    .hint("choose at least 4 KiB; a tenth of the state is slow, half of it is not"));
            }
        }
        if settings.retain == 0 {
            return Err(Error::config("no checkpoints would be retained").hint("retain at least 1; 3 is usual"));
        }
        if let Some(wrong) = self.migrations.wrong() {
            return Err(Error::config(wrong).hint("give every form one more than the form it comes from has"));
        }
        self.settings.restart.validate()?;
        if settings.set_aside_after == Some(0) {
            return Err(
                Error::config("records would be set aside after 0 failures").hint("choose at least 1; 3 is usual")
            );
        }
        if settings.set_aside_after.is_some() && settings.checkpoint_dir.is_none() {
            return Err(Error::config("records can be set aside only beside checkpoints, and the job keeps none")
                .hint("name a directory with `--checkpoint-dir DIR` (`Job::checkpoint_dir`)"));
        }
        if let (StartFrom::Savepoint(_) | StartFrom::FreshFromSavepoint(_), None) =
            (&settings.start_from, &settings.checkpoint_dir)
        {
            return Err(Error::config("a job that keeps no checkpoints cannot start from a savepoint")
                .hint("name a directory with `--checkpoint-dir DIR` (`Job::checkpoint_dir`)"));
        }
        let graph = lock(&self.graph);
        graph.validate()?;
        settings.names.check(&graph.names())?;
        match graph.source_that_is_read_once() {
            Some((name, kind)) if !settings.restart.is_never() => Err(Error::config(format!(
                "a {kind} cannot be read again, so the job cannot be restarted: what it had read since the last checkpoint \
                 would be lost"
            ))
            .in_operator(&name)
            .hint("leave the restart policy out, or read from a source that can be replayed, such as files")),
            _ => Ok(()),
        }
    }

    /// Runs the job to its end, in this thread's time: Ctrl-C takes a last checkpoint and ends it.
    ///
    /// # Errors
    /// Whatever made the job fail. The last checkpoint stays usable.
    pub fn run(self) -> Result<Summary> {
        let on_sigusr1 = self.settings.savepoint_on_sigusr1;
        let handle = self.start()?;
        handle.stop_on_ctrl_c();
        if on_sigusr1 {
            handle.savepoint_on_sigusr1();
        }
        handle.wait()
    }

    /// Starts the job on threads of its own and returns a handle to it, which is also a future.
    ///
    /// # Errors
    /// When the job is not as it must be, or cannot start: a checkpoint does not fit, a directory is in use.
    pub fn start(mut self) -> Result<JobHandle> {
        self.validate()?;
        // Streams that are still around must not keep what runs alive, nor add to it.
        let graph = std::mem::take(&mut *lock(&self.graph));
        self.graph = Arc::new(Mutex::new(graph));
        crate::supervisor::start(&self)
    }
}
