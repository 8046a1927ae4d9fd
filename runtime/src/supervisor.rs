//! The supervisor: one job over all of its attempts.
//!
//! A failed attempt is over when all its workers have left; then its failure is written into the journal, the record that was
//! at work is counted, and the restart policy is asked. A restart is an ordinary start from the newest checkpoint, whatever the first
//! one began with, but for what is held all the time: the locks of the checkpoint directory and of the sinks, so that nobody
//! can come in between. A worker that hangs in user code forbids it: two attempts must not run side by side.
//!
//! The supervisor runs on the coordinator's thread; between attempts it waits for time or for a stop.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millstream_state::StateError;
use millstream_state::evolve::Migrations;
use millstream_state::manifest::{SplitEntry, find_split};
use millstream_state::store::{CheckpointStore, DirLock};

use crate::bench::probe::OpenLoop;
use crate::checkpoint::{Coordinator, Ended, wall_clock_ms};
use crate::driver::{Peeked, panic_text};
use crate::error::{Error, ErrorKind, Result};
use crate::execute::{Begun, begin};
use crate::graph::Body;
use crate::handle::{Control, JobHandle};
use crate::job::{Job, Settings};
use crate::journal::{self, Journal, What};
use crate::metrics;
use crate::poison::{Aside, Blame, InputRecord, SetAside, Suspects};
use crate::replay::Replayed;
use crate::restart::{Decision, History};
use crate::shared::lock;
use crate::sink::Committer;
use crate::stream::SharedGraph;
use crate::summary::{Outcome, Summary};

/// What every attempt is made from.
pub(crate) struct Blueprint {
    pub name: String,
    pub settings: Settings,
    pub load: Option<OpenLoop>,
    /// Somebody wants to know when it is at rest.
    pub watched: bool,
    /// What is replayed, when it is a replay.
    pub replayed: Option<Arc<Replayed>>,
    pub graph: SharedGraph,
    /// The types with versions that it knows.
    pub migrations: Migrations,
}

/// What is held over all attempts.
pub(crate) struct Held {
    pub store: Option<CheckpointStore>,
    /// By node.
    pub committers: HashMap<usize, Box<dyn Committer>>,
    pub journal: Journal,
    pub suspects: Suspects,
    pub aside: Aside,
    /// What the attempts before have counted.
    pub counted: metrics::Counted,
    /// Set by a signal that asks for a savepoint.
    pub signalled: Arc<AtomicBool>,
    looked_back: bool,
    _lock: Option<DirLock>,
}

impl Held {
    fn take(job: &Blueprint) -> Result<Self> {
        let store = job.settings.checkpoint_dir.as_ref().map(CheckpointStore::new);
        let holder = format!("job `{}`", job.name);
        let lock = store.as_ref().map(|store| DirLock::take(store.dir(), &holder)).transpose();
        let lock = lock.map_err(|error| match error {
            StateError::Io { .. } => Error::from(error).at_place("the checkpoint directory").hint(
                "give one that can be made and written to, with `--checkpoint-dir DIR` (`checkpoint_dir` in a program)",
            ),
            error => error.into(),
        })?;
        Ok(Held {
            journal: Journal::at(store.as_ref().map(CheckpointStore::dir)),
            store,
            committers: HashMap::new(),
            suspects: Suspects::default(),
            aside: Aside::default(),
            counted: metrics::Counted::default(),
            signalled: Arc::default(),
            looked_back: false,
            _lock: lock,
        })
    }

    /// Reads, once, what earlier starts have left of records that killed them. A fresh start knows nothing of them.
    pub(crate) fn look_back(&mut self, fresh: bool, replayed: Option<&Replayed>) -> Result<()> {
        if std::mem::replace(&mut self.looked_back, true) {
            return Ok(());
        }
        if let Some(replayed) = replayed {
            // A replay leaves out what the job does.
            self.aside = Aside::read(replayed.original.dir())?;
            return Ok(());
        }
        let Some(store) = &self.store else { return Ok(()) };
        if fresh {
            self.aside = Aside::none(store.dir());
            return Ok(());
        }
        self.aside = Aside::read(store.dir())?;
        // Checkpoints are nearly all of a journal, and say nothing of suspects.
        let events = journal::read(store.dir(), |text| !text.contains("\"kind\":\"checkpoint\""))?;
        self.suspects = Suspects::from_events(events.iter().map(|(_, event)| event));
        Ok(())
    }
}

/// Starts a job that has been validated.
pub(crate) fn start(job: &Job) -> Result<JobHandle> {
    let started = Instant::now();
    let job = Blueprint {
        name: job.name.clone(),
        settings: job.settings.clone(),
        load: job.load.clone(),
        watched: job.watched,
        replayed: job.replayed.clone(),
        graph: Arc::clone(&job.graph),
        migrations: job.migrations.clone(),
    };
    let mut held = Held::take(&job)?;
    let coordinator = match begin(&job, &mut held, 0)? {
        Begun::Running(coordinator) => coordinator,
        Begun::Finished(mut summary) => {
            summary.set_aside = held.aside.len() as u64;
            return Ok(JobHandle::finished(*summary));
        }
    };
    let control = Arc::new(Control::new(Arc::clone(&coordinator.shared), Arc::clone(&held.signalled)));
    control.set_aside.store(held.aside.len() as u64, Ordering::Relaxed);
    let (handle, done) = JobHandle::new(&control, coordinator.status_names());
    let supervisor = Supervisor { job, held, control, history: History::default(), started, restarts: 0 };
    let run = move || {
        let control = Arc::clone(&supervisor.control);
        let result = catch_unwind(AssertUnwindSafe(|| supervisor.run(coordinator)));
        control.ignore_signals();
        done(result.unwrap_or_else(|panic| {
            Err(Error::internal(format!("the coordinator panicked: {}", panic_text(&*panic))))
        }));
        if let Some(rest) = &control.shared().rest {
            rest.turned();
        }
    };
    let thread = std::thread::Builder::new().name("millstream-coordinator".into()).spawn(run);
    thread.map_err(|error| Error::external("cannot start the coordinator's thread").because(error))?;
    Ok(handle)
}

/// See the module.
struct Supervisor {
    job: Blueprint,
    held: Held,
    control: Arc<Control>,
    history: History,
    started: Instant,
    restarts: u32,
}

/// How it goes on after a failure.
enum Next {
    Attempt(Box<Coordinator>),
    /// The job need not run again; the last checkpoint is this one, if it is not the last attempt's.
    End(Outcome, Option<u64>),
}

impl Supervisor {
    fn run(mut self, first: Box<Coordinator>) -> Result<Summary> {
        let mut coordinator = first;
        loop {
            let began = coordinator.started.duration_since(self.started);
            let Ended { mut summary, result, all_left } = coordinator.run(&mut self.held);
            let next = match result {
                Ok(outcome) => Next::End(outcome, None),
                Err(error) => self.after(error, began, all_left)?,
            };
            match next {
                Next::Attempt(next) => coordinator = next,
                Next::End(outcome, epoch) => {
                    summary.epoch = epoch.or(summary.epoch);
                    return Ok(self.end(summary, outcome));
                }
            }
        }
    }

    fn end(&mut self, mut summary: Summary, outcome: Outcome) -> Summary {
        summary.outcome = outcome;
        summary.restarts = u64::from(self.restarts);
        summary.set_aside = self.held.aside.len() as u64;
        let epoch = summary.epoch;
        self.held.journal.try_note(match outcome {
            Outcome::Stopped => What::Stop { epoch },
            Outcome::Finished | Outcome::AlreadyFinished => What::Finish { epoch },
        });
        tracing::info!(job = %self.job.name, "{summary}");
        summary
    }

    /// Starts the job again after a failure, until it runs; or says what it has come to.
    fn after(&mut self, mut error: Error, mut began: Duration, all_left: bool) -> Result<Next> {
        loop {
            let cured;
            (error, cured) = self.judge(error);
            self.history.failed(began, self.started.elapsed(), cured);
            // Whoever wants it to stop has no use for a restart, but must know that the last checkpoint failed.
            if self.control.stopped_within(Duration::ZERO) {
                return Err(error);
            }
            let policy = &self.job.settings.restart;
            let after = match policy.next(&self.history, &error) {
                Decision::Restart { after } if all_left => after,
                Decision::Restart { .. } => {
                    return Err(self.give_up(error, "a worker hangs in user code and was left behind".into()));
                }
                Decision::GiveUp(_) if policy.is_never() => return Err(error),
                Decision::GiveUp(why) => return Err(self.give_up(error, why.to_string())),
            };
            self.restarts = self.restarts.saturating_add(1);
            self.control.restarts.store(u64::from(self.restarts), Ordering::Relaxed);
            metrics::restarted(&self.job.name);
            let delay_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.held.journal.try_note(What::Restart { restart: self.restarts, delay_ms });
            tracing::warn!(job = %self.job.name, restart = self.restarts, delay_ms, "failed, and starts again: {error}");
            if self.control.stopped_within(after) {
                return Ok(Next::End(Outcome::Stopped, None));
            }
            began = self.started.elapsed();
            let begun = catch_unwind(AssertUnwindSafe(|| begin(&self.job, &mut self.held, self.restarts)));
            let begun = begun.unwrap_or_else(|panic| {
                Err(Error::user(format!("panicked while it was started again: {}", panic_text(&*panic))))
            });
            match begun {
                Ok(Begun::Running(coordinator)) => {
                    self.control.attempt(Arc::clone(&coordinator.shared));
                    return Ok(Next::Attempt(coordinator));
                }
                // It failed after its last checkpoint, for example while output was committed, and that is done now.
                Ok(Begun::Finished(summary)) => return Ok(Next::End(Outcome::Finished, summary.epoch)),
                Err(next) => error = next,
            }
        }
    }

    fn give_up(&mut self, error: Error, reason: String) -> Error {
        let error = error.note(format!("not started again: {reason}"));
        self.held.journal.try_note(What::GaveUp { reason });
        error
    }

    /// Writes a failure into the journal, and counts it for the record that was at work. Returns whether that is out of the way.
    fn judge(&mut self, mut error: Error) -> (Error, bool) {
        // What disks and outside systems do is no record's fault.
        let poison = error.kind() == ErrorKind::User;
        let record = error.record().filter(|_| poison).cloned();
        let times = record.as_ref().map_or(0, |record| self.held.suspects.failed(record));
        let text = error.to_string();
        self.held.journal.try_note(What::Failure {
            error: text.clone(),
            operator: error.operator().map(ToString::to_string),
            record: error.record().cloned(),
            poison,
            times,
        });
        if times > 1 {
            error = error.note(format!("this record has made the job fail {times} times in a row"));
        }
        let Some(limit) = self.job.settings.set_aside_after.filter(|_| poison) else { return (error, false) };
        let why = match (record, error.blame()) {
            (Some(_), _) if times < limit => return (error, false),
            (Some(record), _) => match self.set_aside(record, error.operator(), text, times) {
                Ok(note) => return (error.note(note), true),
                Err(why) => why.to_string(),
            },
            (None, Some(Blame::Nobody(why))) => (*why).to_string(),
            (None, _) => "it happened where no single record of the input is at work".to_string(),
        };
        (error.note(format!("no record can be set aside for this: {why}")), false)
    }

    /// Leaves a record out from now on; returns what there is to say of it.
    fn set_aside(&mut self, record: InputRecord, operator: Option<&str>, error: String, times: u32) -> Result<String> {
        if self.held.aside.contains(&record) {
            return Err(Error::user("it is set aside already, and its source fails while it makes the record"));
        }
        let peeked = self.peek(&record)?;
        let (position, text) = peeked.map_or((None, None), |peeked| (Some(peeked.position), peeked.text));
        self.held.aside.add(SetAside {
            time_ms: wall_clock_ms(),
            execution: self.held.journal.execution.clone(),
            record: record.clone(),
            position,
            operator: operator.map(ToString::to_string),
            error,
            failures: times,
            text,
        })?;
        self.held.suspects.clear(&record);
        metrics::set_aside(&self.job.name, &record.source);
        self.control.set_aside.store(self.held.aside.len() as u64, Ordering::Relaxed);
        let path = self.held.aside.path().map_or(String::new(), |path| path.display().to_string());
        let note = format!("it is set aside: `{path}` names it, and it is left out from now on");
        self.held.journal.try_note(What::SetAside { record, times });
        Ok(note)
    }

    /// Reads the record once more, to see that its source can make it, and for what can be said of it.
    fn peek(&self, record: &InputRecord) -> Result<Option<Peeked>> {
        let graph = lock(&self.job.graph);
        let bodies = graph.nodes.iter().zip(graph.names());
        let source = bodies.filter(|(_, name)| *name == record.source).find_map(|(node, _)| match &node.body {
            Body::Source(source) => Some(source),
            _ => None,
        });
        let Some(source) = source else { return Err(Error::internal("its source is not known")) };
        let entry = self.newest_entry(record)?;
        source.peek(record, entry.as_ref(), &|time| self.control.stopped_within(time))
    }

    /// Where the record's split stood at the newest checkpoint.
    fn newest_entry(&self, record: &InputRecord) -> Result<Option<SplitEntry>> {
        let Some(store) = &self.held.store else { return Ok(None) };
        let Some(epoch) = store.epochs()?.last().copied() else { return Ok(None) };
        let manifest = store.manifest(epoch)?;
        Ok(find_split(&manifest.sources, &record.source, &record.split).cloned())
    }
}
