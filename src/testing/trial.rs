//! A job under test while it runs: the real runtime, with real workers and checkpoints in a temporary directory, one step at a time.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millstream_operators::filter_map::FilterMapExt;
use millstream_runtime::StopMode;
use millstream_runtime::clock::{Clock, ProcessingTime};
use millstream_runtime::error::{Error, Result};
use millstream_runtime::handle::{JobHandle, Status};
use millstream_runtime::inspect::CheckpointView;
use millstream_runtime::job::Job;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::restart::RestartPolicy;
use millstream_runtime::stream::Stream;
use millstream_runtime::time::EventTime;
use millstream_runtime::watermark::Watermarks;
use millstream_state::checkpoint::StartFrom;
use millstream_state::snapshot::{Key, Value};
use tempfile::TempDir;

use super::input::{AnyFeed, Feed, FeedSource, Input, Item, Spoken};
use super::output::{AnyRecords, AnyShelf, Output, Shelf, ShelfSink};
use super::scratch::scratch;
use super::step::{Action, Given, Step};

/// Describes the job under test: connects inputs and outputs with what is between them.
pub(super) type Build<'a> = Arc<dyn Fn(&Bench<'_>) + Send + Sync + 'a>;

/// Changes the settings of a job under test.
pub(super) type Adjust<'a> = Arc<dyn Fn(Job) -> Job + Send + Sync + 'a>;

/// How long a step may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Where a job under test is described; see [`Kit::new`](super::Kit::new).
pub struct Bench<'a> {
    job: &'a Job,
    wiring: &'a Wiring,
    connected: RefCell<Vec<usize>>,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bench").field(&self.job).finish()
    }
}

/// What outlives a start of the job: what inputs give and what outputs have got.
#[derive(Default)]
struct Wiring {
    inputs: RefCell<Vec<(usize, Arc<dyn AnyFeed>)>>,
    outputs: RefCell<Vec<Collecting>>,
}

struct Collecting {
    id: usize,
    name: String,
    shelf: Arc<dyn AnyShelf>,
}

impl Bench<'_> {
    /// The job, for what is neither input nor output of the test.
    pub fn job(&self) -> &Job {
        self.job
    }

    /// The records of an input.
    ///
    /// # Panics
    /// When it is read already: clone the stream.
    pub fn input<T: Data + std::fmt::Debug>(&self, input: &Input<T>) -> Stream<T> {
        self.connect(input.id, &input.name);
        let mut inputs = self.wiring.inputs.borrow_mut();
        let known = inputs.iter().find(|(id, _)| *id == input.id).map(|(_, feed)| feed.clone());
        let feed = known.unwrap_or_else(|| {
            let feed: Arc<dyn AnyFeed> = Arc::new(Feed::<T>::new(input.split_count()));
            inputs.push((input.id, feed.clone()));
            feed
        });
        let Ok(feed) = feed.into_any().downcast::<Feed<T>>() else { unreachable!("an input has one type") };
        let source = FeedSource(feed);
        let mut watermarks = Watermarks::custom(Spoken::new(), |item: &Item<T>| item.at);
        if let Some(span) = input.idle() {
            watermarks = watermarks.idle_after(span);
        }
        self.job.source(source, watermarks).filter_map(|item| item.value)
    }

    /// Collects a stream in an output.
    ///
    /// # Panics
    /// When the output collects another already: unite the streams, or use another output.
    pub fn output<T: Data + PartialEq + std::fmt::Debug>(&self, output: &Output<T>, stream: Stream<T>) {
        self.connect(output.id, &output.name);
        let mut outputs = self.wiring.outputs.borrow_mut();
        let known = outputs.iter().find(|known| known.id == output.id).map(|known| known.shelf.clone());
        let shelf = known.unwrap_or_else(|| {
            let shelf: Arc<dyn AnyShelf> = Arc::new(Shelf::<T>::new());
            outputs.push(Collecting { id: output.id, name: output.name.clone(), shelf: shelf.clone() });
            shelf
        });
        let Ok(shelf) = shelf.into_any().downcast::<Shelf<T>>() else { unreachable!("an output has one type") };
        stream.sink(ShelfSink(shelf));
    }

    fn connect(&self, id: usize, name: &str) {
        let mut connected = self.connected.borrow_mut();
        assert!(!connected.contains(&id), "`{name}` is connected twice");
        connected.push(id);
    }
}

/// A job under test that runs, for asking it something after any step. Started by [`Kit::start`](super::Kit::start).
///
/// When a method returns, all that it gave the job is processed: records have come through all operators, windows have fired and timers were
/// called up to the watermark, and what came of it is in the outputs. The job runs on one worker, unless it is
/// [rescaled](Self::rescale).
///
/// ```
/// use millstream::prelude::*;
/// use millstream::testing::*;
///
/// let (kit, input, output) = Kit::of(|words: Stream<String>| {
///     words.key_by(|word| word.clone()).fold(0u64, |count, _| *count += 1).name("counts")
/// });
/// let mut trial = kit.start()?;
/// trial.step(input.at(1, "tea".to_string()))?;
/// trial.step(input.at(2, "tea".to_string()))?;
/// assert_eq!(trial.values(&output), [("tea".to_string(), 1), ("tea".to_string(), 2)]);
///
/// trial.crash()?;
/// trial.rescale(3)?;
/// assert_eq!(trial.state::<String, u64>("counts", &"tea".to_string())?, Some(2));
/// assert!(trial.values(&output).is_empty(), "what came again after the crash is not new");
/// # Ok::<(), Error>(())
/// ```
///
/// After an error in user code the job is down, as it would be outside of a test; [`crash`](Self::crash) starts it again from its
/// last checkpoint.
pub struct Trial<'a> {
    build: Build<'a>,
    adjust: Option<Adjust<'a>>,
    patience: Duration,
    workers: usize,
    memory: Option<u64>,
    wiring: Wiring,
    /// None when it has ended or failed.
    handle: Option<JobHandle>,
    finished: bool,
    /// Up to where splits were opened, in order: by the place of the input, the split, and the place in it.
    opened: Vec<(usize, usize, usize)>,
    pressed: bool,
    savepoints: usize,
    clock: Clock,
    /// Whether it has moved on since the last checkpoint.
    clock_moved: bool,
    dir: TempDir,
}

impl std::fmt::Debug for Trial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial")
            .field("handle", &self.handle)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

/// How a trial is started.
pub(super) struct Setup<'a> {
    pub build: Build<'a>,
    pub adjust: Option<Adjust<'a>>,
    pub patience: Option<Duration>,
    pub workers: usize,
    pub memory: Option<u64>,
    /// Whether readers say that there is more than they have given, as if the job were under a load.
    pub pressed: bool,
}

impl<'a> Trial<'a> {
    pub(super) fn start(setup: Setup<'a>) -> Result<Self> {
        let dir = scratch().map_err(|error| Error::external("no temporary directory").because(error))?;
        let Setup { build, adjust, patience, workers, memory, pressed } = setup;
        let mut trial = Trial {
            build,
            adjust,
            patience: patience.unwrap_or(PATIENCE),
            workers,
            memory,
            wiring: Wiring::default(),
            handle: None,
            finished: false,
            opened: Vec::new(),
            pressed,
            savepoints: 0,
            clock: Clock::manual(ProcessingTime::from_micros(0)),
            clock_moved: false,
            dir,
        };
        trial.begin()?;
        Ok(trial)
    }

    /// The job, described anew.
    fn describe(&self) -> Job {
        let mut job = Job::new("trial").checkpoint_every(NEVER);
        if let Some(bytes) = self.memory {
            job = job.memory(bytes);
        }
        if let Some(adjust) = &self.adjust {
            job = adjust(job);
        }
        // Whoever drives it decides when it starts, and from what.
        job = job
            .workers(self.workers)
            .checkpoint_dir(self.dir.path().join("checkpoints"))
            .start_from(StartFrom::Newest)
            .restart(RestartPolicy::never())
            .clock(self.clock.clone())
            .watched();
        (self.build)(&Bench { job: &job, wiring: &self.wiring, connected: RefCell::default() });
        job
    }

    /// Starts the job, and lets it read again, step by step, what is not in its checkpoint.
    fn begin(&mut self) -> Result<()> {
        self.feeds().iter().for_each(|feed| feed.shut());
        self.handle = Some(self.describe().start()?);
        self.settle()?;
        let feeds = self.feeds();
        feeds.iter().for_each(|feed| feed.started());
        for (input, split, up_to) in self.opened.clone() {
            if feeds[input].position(split) < up_to {
                feeds[input].open(split, up_to, self.pressed);
                self.settle()?;
            }
        }
        Ok(())
    }

    fn feeds(&self) -> Vec<Arc<dyn AnyFeed>> {
        self.wiring.inputs.borrow().iter().map(|(_, feed)| feed.clone()).collect()
    }

    /// Waits until all that may be read is processed.
    fn settle(&mut self) -> Result<()> {
        let feeds = self.feeds();
        let Some(handle) = &self.handle else { return Ok(()) };
        if handle.wait_for_rest(self.patience, || feeds.iter().all(|feed| feed.is_read()))? {
            return Ok(());
        }
        self.join()?;
        self.finished = true;
        Ok(())
    }

    /// Waits for a job that is about to end.
    fn join(&mut self) -> Result<()> {
        self.handle.take().map_or(Ok(()), |handle| handle.wait().map(drop))
    }

    fn running(&self) -> Result<&JobHandle> {
        self.handle.as_ref().ok_or_else(|| {
            Error::config("the job is not running, because it failed")
                .hint("`crash` starts it again, from its last checkpoint")
        })
    }

    /// Moves the clock on that the job asks; see [`clock`](super::clock). Takes no checkpoint: what has come by the clock may not come again
    /// after a [`crash`](Self::crash).
    ///
    /// # Errors
    /// Whatever makes the job fail.
    pub fn advance(&mut self, span: Duration) -> Result<()> {
        self.clock.advance(span);
        self.clock_moved = true;
        self.settle()
    }

    /// Takes a step. An expectation that is not met is an error, which says what is missing and what is too much.
    ///
    /// # Errors
    /// Whatever makes the job fail; an expectation that is not met; or a step that makes no sense, such as a record of a split that has
    /// ended.
    pub fn step(&mut self, step: Step) -> Result<()> {
        let told = |lines: Vec<String>| Error::user(format!("{}:\n  {}", step.text, lines.join("\n  ")));
        match self.perform(&step)? {
            Some(lines) => Err(told(lines)),
            None => Ok(()),
        }
    }

    /// Takes a step; returns in lines what is not as expected.
    pub(super) fn perform(&mut self, step: &Step) -> Result<Option<Vec<String>>> {
        match &step.action {
            Action::Give { .. } => {
                self.lay(step)?;
                self.open()?;
            }
            Action::Checkpoint => self.checkpoint()?,
            Action::Clock(span) => self.advance(*span)?,
            Action::Crash => self.crash()?,
            Action::Restart => self.restart()?,
            Action::Rescale(workers) => self.rescale(*workers)?,
            Action::Output { output, check } => return Ok(check(&*self.shelf(*output)?.take())),
            Action::Watermark(expected) => {
                let watermark = self.watermark();
                return Ok((watermark != *expected).then(|| vec![format!("it is {watermark}")]));
            }
            Action::State(check) => return check(&self.look()?),
        }
        Ok(None)
    }

    fn shelf(&self, output: usize) -> Result<Arc<dyn AnyShelf>> {
        let outputs = self.wiring.outputs.borrow();
        let found = outputs.iter().find(|known| known.id == output).map(|known| known.shelf.clone());
        found.ok_or_else(|| {
            Error::config("an output that the job does not have").hint("connect it with `Bench::output`")
        })
    }

    /// Lays down what a step gives, without letting it be read.
    pub(super) fn lay(&mut self, step: &Step) -> Result<()> {
        let Action::Give { input, split, given } = &step.action else { return Ok(()) };
        let inputs = self.wiring.inputs.borrow();
        let Some((_, feed)) = inputs.iter().find(|(id, _)| id == input) else {
            return Err(Error::config("an input that the job does not have").hint("connect it with `Bench::input`"));
        };
        let splits = split.map_or(0..feed.splits(), |split| split..split + 1);
        for place in splits {
            // What is said of all splits is said of those that have not ended.
            if split.is_none() && feed.is_ended(place) {
                continue;
            }
            match given {
                Given::Records(give) => give(&**feed, place)?,
                Given::Watermark(at) => feed.watermark(place, *at)?,
                Given::End => feed.end(place)?,
            }
        }
        Ok(())
    }

    /// Ends all splits that have not ended, without letting that be read.
    pub(super) fn lay_ends(&mut self) -> Result<()> {
        for feed in self.feeds() {
            for split in (0..feed.splits()).filter(|split| !feed.is_ended(*split)) {
                feed.end(split)?;
            }
        }
        Ok(())
    }

    /// Lets all be read that was laid down, and waits until it is processed.
    pub(super) fn open(&mut self) -> Result<()> {
        if !self.finished {
            self.running()?;
        }
        for (place, feed) in self.feeds().iter().enumerate() {
            for split in 0..feed.splits() {
                let up_to = feed.len(split);
                if feed.position(split) < up_to {
                    self.opened.push((place, split, up_to));
                    feed.open(split, up_to, self.pressed);
                }
            }
        }
        self.settle()
    }

    /// Takes what has come out of an output since the last time, by event time. What came out again because of a crash is not new.
    ///
    /// # Panics
    /// When the job does not have that output.
    pub fn take<T: Data + PartialEq + std::fmt::Debug>(&self, output: &Output<T>) -> Vec<Record<T>> {
        let outputs = self.wiring.outputs.borrow();
        let shelf = outputs.iter().find(|known| known.id == output.id).map(|known| known.shelf.as_any());
        match shelf.and_then(|shelf| shelf.downcast_ref::<Shelf<T>>()) {
            Some(shelf) => shelf.take_records(),
            None => panic!("the job has no output `{}`", output.name),
        }
    }

    /// As [`take`](Self::take), without event times.
    ///
    /// # Panics
    /// When the job does not have that output.
    pub fn values<T: Data + PartialEq + std::fmt::Debug>(&self, output: &Output<T>) -> Vec<T> {
        self.take(output).into_iter().map(|record| record.value).collect()
    }

    /// What came out of every output since the last time.
    pub(super) fn take_all(&self) -> Vec<(usize, String, Box<dyn AnyRecords>)> {
        let outputs = self.wiring.outputs.borrow();
        outputs.iter().map(|Collecting { id, name, shelf }| (*id, name.clone(), shelf.take())).collect()
    }

    /// How far event time has come: the least watermark of all sources; [`EventTime::MAX`] when all have ended.
    pub fn watermark(&self) -> EventTime {
        if self.finished { EventTime::MAX } else { self.status().watermark() }
    }

    /// What the job has counted since it was started, or started again. A watermark counts as two records of its source.
    pub fn status(&self) -> Status {
        self.handle.as_ref().map_or_else(Status::default, JobHandle::status)
    }

    /// Takes a checkpoint. A job that has finished has taken its last one.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn checkpoint(&mut self) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        // A savepoint is the one way to have a checkpoint taken at once, and to know when that is done.
        self.savepoints += 1;
        let dir: PathBuf = self.dir.path().join(format!("savepoint-{}", self.savepoints));
        let handle = self.running()?;
        if let Err(error) = handle.savepoint(&dir) {
            // A job that failed over it says more.
            return if handle.is_finished() { self.join().and(Err(error)) } else { Err(error) };
        }
        self.clock_moved = false;
        std::fs::remove_dir_all(&dir).map_err(|error| Error::external("a savepoint cannot be removed").because(error))
    }

    /// As the step [`crash`](super::crash). Does nothing to a job that has finished.
    ///
    /// # Errors
    /// When the job fails to start again, or when something that was taken from an output has not come again.
    pub fn crash(&mut self) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        if let Some(handle) = &self.handle {
            handle.stop(StopMode::Now);
            self.join()?;
        }
        self.begin()?;
        for Collecting { name, shelf, .. } in &*self.wiring.outputs.borrow() {
            let missing = shelf.missing();
            if !missing.is_empty() {
                let missing = missing.join("\n  ");
                let error =
                    Error::user(format!("`{name}` had it before the crash, and it has not come again:\n  {missing}"));
                return Err(match self.clock_moved {
                    true => error.hint(
                        "the clock has moved on since the last checkpoint, and does not go back: if this came by the clock, take a \
                         checkpoint before the crash",
                    ),
                    false => error,
                });
            }
        }
        Ok(())
    }

    /// As the step [`restart`](super::restart). Does nothing to a job that has finished.
    ///
    /// # Errors
    /// When the job fails to stop or to start again.
    pub fn restart(&mut self) -> Result<()> {
        self.rescale(self.workers)
    }

    /// As the step [`rescale`](super::rescale). Does nothing to a job that has finished.
    ///
    /// # Errors
    /// When the job fails to stop or to start again.
    pub fn rescale(&mut self, workers: usize) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        self.running()?.stop(StopMode::WithCheckpoint);
        self.join()?;
        self.clock_moved = false;
        self.workers = workers;
        self.begin()
    }

    /// Takes a checkpoint, and looks up what a state keeps for a key: by the name of its operator, whose first state is meant, or as
    /// `operator/state`.
    ///
    /// # Errors
    /// When there is no such state, it has other types, or it has several values per key; for these see [`look`](Self::look).
    pub fn state<K: Key, V: Value>(&mut self, name: &str, key: &K) -> Result<Option<V>> {
        self.look()?.state::<K, V>(name)?.get(key)
    }

    /// Takes a checkpoint, and opens it to look at any state of the job.
    ///
    /// # Errors
    /// When the checkpoint cannot be taken or read.
    pub fn look(&mut self) -> Result<CheckpointView> {
        self.checkpoint()?;
        self.describe().checkpoint(StartFrom::Newest)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.stop(StopMode::Now);
            // Whatever it says: nobody wants to know any more.
            let _ = handle.wait();
        }
    }
}
