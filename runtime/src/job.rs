//! A job: described as a value, checked, then run.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_state::checkpoint::StartFrom;
use millstream_state::evolve::{Evolve, Migrations};

use crate::bench::probe::OpenLoop;
use crate::driver::SourceNode;
use crate::error::{Error, Result};
use crate::graph::{Body, Graph, check_name};
use crate::handle::JobHandle;
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
    /// How many checkpoints are kept; by default 3.
    pub retain: usize,
    /// What to start from; by default the newest checkpoint.
    pub start_from: StartFrom,
    /// How many records a source reads at a time, at most; by default 2048.
    pub batch_size: usize,
    /// How many records may be on their way to one worker before sources stop reading; by default 65,536.
    pub in_flight: usize,
    /// Whether a progress line is shown on standard error, when that is a terminal.
    pub progress: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            checkpoint_dir: None,
            checkpoint_interval: Duration::from_secs(10),
            retain: 3,
            start_from: StartFrom::Newest,
            batch_size: 2048,
            in_flight: 64 << 10,
            progress: false,
        }
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

    /// How many checkpoints are kept.
    #[must_use]
    pub fn retain(mut self, checkpoints: usize) -> Self {
        self.settings.retain = checkpoints;
        self
    }

    /// What to start from.
    #[must_use]
    pub fn start_from(mut self, from: StartFrom) -> Self {
        self.settings.start_from = from;
        self
    }

    /// How many records a source reads at a time, at most. Larger is faster, smaller has lower latency under load.
    #[must_use]
    pub fn batch_size(mut self, records: usize) -> Self {
        self.settings.batch_size = records;
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
        if settings.retain == 0 {
            return Err(Error::config("no checkpoints would be retained").hint("retain at least 1; 3 is usual"));
        }
        if let Some(wrong) = self.migrations.wrong() {
            return Err(Error::config(wrong).hint("give every form one more than the form it comes from has"));
        }
        lock(&self.graph).validate()
    }

    /// Runs the job to its end, in this thread's time: Ctrl-C takes a last checkpoint and ends it.
    ///
    /// # Errors
    /// Whatever made the job fail. The last checkpoint stays usable.
    pub fn run(self) -> Result<Summary> {
        let handle = self.start()?;
        handle.stop_on_ctrl_c();
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
        crate::execute::start(&self)
    }
}
