//! Replay: what a job did between two checkpoints, done again in another place.
//!
//! A replay opens a copy of checkpoint N, reads the input again from there, and stops every split exactly where checkpoint M
//! stood in it. It takes no lock of the job, which may be running, and changes nothing of it: the output goes to other
//! directories ([`Sink::redirected`](crate::sink::Sink::redirected)), checkpoints of its own to another one, and the two
//! checkpoints are [held](CheckpointStore::hold) so that the job does not delete them meanwhile.
//!
//! **What must be the same.** `verify` says what is compared, and why that is sound; `rows` finds rows that differ; `against` runs
//! another build of the job beside this one.
//!
//! **Errors**: `Config` when the job cannot be replayed or the place is not empty; `State` when a checkpoint is not there, is damaged
//! or does not fit, or the input has another length than it had.

mod against;
mod report;
mod rows;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millstream_state::checkpoint::{Refusal, StartFrom};
use millstream_state::manifest::{Manifest, find_split};
use millstream_state::store::CheckpointStore;

pub use against::{Against, AgainstReport, SinkDifference};
pub use report::{RangeCheck, ReplayReport, SinkCheck, Standing, Stored as StoredCheck};
pub use rows::{FirstDifference, OddRow};

use crate::error::{Error, Result};
use crate::execute::execution_token;
use crate::graph::{Body, Graph};
use crate::job::Job;
use crate::journal::{What, note_replay};
use crate::names::Names;
use crate::recovery::{Shape, Start, check_job, check_sources, fit, refuse};
use crate::restart::RestartPolicy;
use crate::shared::lock;
use crate::sink::{Redirect, Stored};
use crate::summary::{Outcome, Summary};
use crate::supervisor;

/// What to replay, and to where.
///
/// ```no_run
/// # use millstream_runtime::{error::Result, job::Job, replay::Replay};
/// # fn example(job: Job) -> Result<()> {
/// let report = job.replay(&Replay::from_checkpoint(3).until(7).output("again").verify())?;
/// println!("{report}");
/// assert!(report.is_equal());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Replay {
    pub(crate) from: Option<u64>,
    pub(crate) until: Until,
    pub(crate) output: Option<PathBuf>,
    pub(crate) discard: bool,
    pub(crate) verify: bool,
    pub(crate) times: bool,
}

/// Where a replay ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// At the newest checkpoint that there is when it begins.
    #[default]
    Newest,
    /// At this checkpoint.
    Checkpoint(u64),
    /// At the end of the input.
    End,
}

impl Replay {
    /// From the oldest checkpoint that is retained.
    pub fn from_oldest() -> Replay {
        Replay::default()
    }

    /// From this checkpoint; 0: from the very beginning, without any.
    pub fn from_checkpoint(epoch: u64) -> Replay {
        Replay { from: Some(epoch), ..Replay::default() }
    }

    /// Until this checkpoint; otherwise it is the newest.
    #[must_use]
    pub fn until(mut self, epoch: u64) -> Replay {
        self.until = Until::Checkpoint(epoch);
        self
    }

    /// Until the end of the input.
    #[must_use]
    pub fn until_end(mut self) -> Replay {
        self.until = Until::End;
        self
    }

    /// Writes the output of each sink into a directory with its name in `dir`, which must be empty or not there.
    #[must_use]
    pub fn output(mut self, dir: impl Into<PathBuf>) -> Replay {
        self.output = Some(dir.into());
        self
    }

    /// Drops the records of sinks that cannot write to another place; without it these refuse. Without a directory for the output,
    /// all output is dropped. Digests are kept where the sink has some.
    #[must_use]
    pub fn discard(mut self) -> Replay {
        self.discard = true;
        self
    }

    /// Compares every sink with what the job wrote the first time.
    #[must_use]
    pub fn verify(mut self) -> Replay {
        self.verify = true;
        self
    }

    /// Notes beside the output when each row happened, so that it can be compared by time.
    #[must_use]
    pub fn times(mut self) -> Replay {
        self.times = true;
        self
    }
}

/// What a start must know when it is a replay.
pub(crate) struct Replayed {
    /// The checkpoints of the job.
    pub original: CheckpointStore,
    /// `None`: from the beginning.
    pub from: Option<Manifest>,
    /// `None`: to the end of the input.
    pub until: Option<Arc<Manifest>>,
}

impl Replayed {
    /// Where to begin, once both checkpoints have been compared with the job. The later one only says where the input ends.
    pub(crate) fn start(&self, shape: &Shape, names: &Names) -> Result<Start> {
        let dir = self.original.dir();
        if let Some(until) = &self.until {
            check_job(dir, until, &shape.job)?;
            check_sources(dir, until, shape)?;
        }
        // What the checkpoint had prepared is in another place.
        let committed = true;
        Ok(match &self.from {
            None => Start::Fresh { set_aside: Vec::new() },
            Some(from) => Start::Restore {
                manifest: Box::new(fit(dir, from.clone(), shape, names, committed)?),
                set_aside: Vec::new(),
                committed,
                import: None,
            },
        })
    }

    /// Whether it ends before the job did.
    pub(crate) fn ends_early(&self) -> bool {
        self.until.as_ref().is_some_and(|until| !until.finished)
    }
}

/// A sink of a replay, with what can read its output back on both sides.
pub(crate) struct ReplayedSink {
    pub node: usize,
    pub name: String,
    pub original: Option<Box<dyn Stored>>,
    pub again: Option<Box<dyn Stored>>,
    /// Its records are dropped.
    pub silent: bool,
}

impl Job {
    /// Does again what the job did between two checkpoints, in another place. The job itself may be running; nothing of it is
    /// touched.
    ///
    /// # Errors
    /// When a checkpoint cannot be used, a source cannot be read again, a sink cannot write elsewhere, or the replay fails.
    pub fn replay(mut self, replay: &Replay) -> Result<ReplayReport> {
        self.validate()?;
        let graph = std::mem::take(&mut *lock(&self.graph));
        self.graph = Arc::new(Mutex::new(graph));

        let original = self.checkpoints()?;
        let (from, until) = choose(&original, replay)?;
        // From here on neither can be deleted.
        let _held = [from, until]
            .into_iter()
            .flatten()
            .map(|epoch| original.hold(epoch))
            .collect::<Result<Vec<_>, _>>()?;
        let from_manifest = from.map(|epoch| original.verify(epoch)).transpose()?;
        let until_manifest = until.map(|epoch| original.manifest(epoch)).transpose()?.map(|mut manifest| {
            in_names_of(&self.settings.names, &mut manifest);
            Arc::new(manifest)
        });
        if replay.verify && until_manifest.is_none() {
            return Err(Error::config("a replay to the end of the input has no checkpoint to be compared with")
                .hint("give one with `--until`, or leave that out to compare with the newest"));
        }

        let place = Place::new(replay)?;
        let sinks = redirect(&mut lock(&self.graph), replay, &place)?;
        self.settings.checkpoint_dir = Some(place.checkpoints());
        self.settings.start_from = StartFrom::Newest;
        (self.settings.retain, self.settings.retain_for, self.settings.retain_bytes) = (1, None, None);
        // It leaves out what the job does, and decides nothing for it; and who replays wants to see failures.
        (self.settings.set_aside_after, self.settings.restart) = (None, RestartPolicy::default());
        let replayed = Arc::new(Replayed { original, from: from_manifest, until: until_manifest });
        self.replayed = Some(Arc::clone(&replayed));

        let handle = supervisor::start(&self)?;
        handle.stop_on_ctrl_c();
        let summary = handle.wait()?;
        let store = CheckpointStore::new(place.checkpoints());
        let last = store.epochs()?.pop().ok_or_else(|| Error::internal("a replay without a last checkpoint"))?;
        let last = store.manifest(last)?;
        came_to(&replayed, &summary, &last)?;
        let graph = lock(&self.graph);
        let checks = match (&replayed.until, replay.verify) {
            (Some(until), true) => {
                let from = replayed.from.clone().map(|mut from| {
                    in_names_of(&self.settings.names, &mut from);
                    from
                });
                let between = verify::Between { from: from.as_ref(), until, again: &last };
                sinks.iter().map(|sink| between.check(&graph, sink)).collect::<Result<_>>()?
            }
            _ => Vec::new(),
        };
        let report = ReplayReport {
            summary,
            from: from.unwrap_or(0),
            until,
            output: replay.output.clone(),
            discarded: sinks.iter().filter(|sink| sink.silent).map(|sink| sink.name.clone()).collect(),
            sinks: checks,
        };
        note(replayed.original.dir(), &report);
        Ok(report)
    }

    fn checkpoints(&self) -> Result<CheckpointStore> {
        let dir = self.settings.checkpoint_dir.as_ref();
        let dir = dir.ok_or_else(|| {
            Error::config("this job keeps no checkpoints, so there is nothing to replay from")
                .hint("name a directory with `--checkpoint-dir DIR`")
        })?;
        Ok(CheckpointStore::new(dir))
    }
}

/// Gives sources and sinks of a checkpoint the names that they have in the program.
fn in_names_of(names: &Names, manifest: &mut Manifest) {
    let left = names.left_for(manifest);
    let sources = manifest.sources.iter_mut().map(|source| &mut source.name);
    let sinks = manifest.sinks.iter_mut().map(|sink| &mut sink.name);
    sources.chain(sinks).for_each(|name| *name = left.new_name(name).to_string());
}

/// Leaves a line in the journal of the job.
fn note(dir: &Path, report: &ReplayReport) {
    let equal = (!report.sinks.is_empty()).then(|| report.is_equal());
    let what = What::Replay { from: report.from, until: report.until, records: report.summary.records_in, equal };
    if let Err(error) = note_replay(dir, &execution_token(), what) {
        tracing::warn!("the replay is not noted in the journal: {error}");
    }
}

/// From which checkpoint to which.
fn choose(store: &CheckpointStore, replay: &Replay) -> Result<(Option<u64>, Option<u64>)> {
    let epochs = store.epochs()?;
    let (Some(oldest), Some(newest)) = (epochs.first().copied(), epochs.last().copied()) else {
        return Err(Error::state(format!("there is no checkpoint in {}", store.dir().display()))
            .hint("a replay goes from one checkpoint of the job to another; run the job first"));
    };
    let there = |epoch: u64| match epochs.contains(&epoch) {
        true => Ok(epoch),
        false => Err(refuse(store.dir(), Refusal::Missing { epoch, present: epochs.clone() })),
    };
    let from = match replay.from {
        Some(0) => None,
        Some(epoch) => Some(there(epoch)?),
        None => Some(oldest),
    };
    let until = match replay.until {
        Until::Newest => Some(newest),
        Until::Checkpoint(epoch) => Some(there(epoch)?),
        Until::End => None,
    };
    let from_epoch = from.unwrap_or(0);
    let nothing = match until {
        Some(until) if until <= from_epoch => {
            Some(format!("there is nothing between checkpoints {from_epoch} and {until}"))
        }
        None if from == Some(newest) && store.manifest(newest)?.finished => {
            Some(format!("nothing comes after checkpoint {newest}: the job had finished"))
        }
        _ => None,
    };
    match nothing {
        None => Ok((from, until)),
        Some(text) => {
            let list: Vec<String> = epochs.iter().map(ToString::to_string).collect();
            Err(Error::config(text).hint(format!(
                "replay from an earlier one, or from the beginning with `--from 0`; there are: {}",
                list.join(", ")
            )))
        }
    }
}

/// Sends all sinks elsewhere; refuses what cannot be replayed.
fn redirect(graph: &mut Graph, replay: &Replay, place: &Place) -> Result<Vec<ReplayedSink>> {
    let names = graph.names();
    let mut sinks = Vec::new();
    for (node, described) in graph.nodes.iter_mut().enumerate() {
        match &mut described.body {
            Body::Source(source) if !source.replayable() => {
                let text = format!("{} cannot be read again, so the job cannot be replayed", source.kind());
                return Err(Error::config(text).in_operator(&names[node]));
            }
            Body::Sink(sink) => {
                let name = names[node].clone();
                let original = if replay.verify { sink.stored() } else { None };
                let silent = !sink.redirect(&place.of_sink(&name, replay));
                if silent && !replay.discard {
                    let text =
                        format!("{} cannot be written to another place, and must not be written to twice", sink.kind());
                    return Err(Error::config(text)
                        .in_operator(&name)
                        .hint("`--discard` (`Replay::discard`) drops what comes to such sinks in the replay"));
                }
                if silent {
                    sink.silence();
                }
                let again = if silent { None } else { sink.stored() };
                sinks.push(ReplayedSink { node, name, original, again, silent });
            }
            _ => {}
        }
    }
    Ok(sinks)
}

/// Whether the replay came to where it was to end, and was not stopped before.
fn came_to(replayed: &Replayed, summary: &Summary, last: &Manifest) -> Result<()> {
    let stopped = |what: String| Err(Error::external(format!("the replay was stopped before its end{what}")));
    let Some(until) = &replayed.until else {
        return if summary.outcome == Outcome::Finished { Ok(()) } else { stopped(String::new()) };
    };
    for source in &until.sources {
        for split in &source.splits {
            let again = find_split(&last.sources, &source.name, &split.split);
            let (records, ended) = again.map_or((0, false), |again| (again.records, again.ended));
            if (records, ended) != (split.records, split.ended) {
                let (split, of) = (&split.split, split.records);
                return stopped(format!(": it had read {records} of {of} records of split `{split}`"));
            }
        }
    }
    Ok(())
}

/// Where a replay writes; a temporary place goes when it is dropped.
struct Place {
    dir: PathBuf,
    temporary: bool,
}

impl Place {
    fn new(replay: &Replay) -> Result<Place> {
        if let Some(dir) = &replay.output {
            must_be_empty(dir)?;
            return Ok(Place { dir: dir.clone(), temporary: false });
        }
        if !replay.verify && !replay.discard {
            return Err(Error::config("nothing would come of a replay whose output goes nowhere").hint(
                "give a directory with `--into DIR`, or compare with the first run with `--verify`, or drop the output with \
                 `--discard`",
            ));
        }
        let dir = std::env::temp_dir().join(format!("millstream-replay-{}", execution_token()));
        std::fs::create_dir(&dir).map_err(millstream_state::StateError::io("create", &dir))?;
        Ok(Place { dir, temporary: true })
    }

    /// Names of sinks do not begin with a dot.
    fn checkpoints(&self) -> PathBuf {
        self.dir.join(".checkpoints")
    }

    fn of_sink(&self, name: &str, replay: &Replay) -> Redirect {
        if self.temporary && replay.discard {
            return Redirect::Discard;
        }
        Redirect::Into { dir: self.dir.join(name), times: replay.times || replay.verify }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary {
            // What cannot be removed is in a place that is cleared by others.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A replay mixes its output with nothing.
fn must_be_empty(dir: &Path) -> Result<()> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(millstream_state::StateError::io("list", dir)(error).into()),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::config(format!("there is something in `{}` already", dir.display()))
                .hint("a replay writes to a directory of its own: choose one that is empty or not there")),
        },
    }
}
