//! The run journal: what became of a job, start by start, as lines of JSON beside its checkpoints.
//!
//! `journal.jsonl` grows by a line for each event; when it has 4 MiB it becomes `journal.old.jsonl`, in the place of
//! the one before, and another is begun. Replays may run beside the job and write to `replays.jsonl`, one at a time. `job history`
//! prints all of them by time. Failures and decisions are on disk before anything follows from
//! them; checkpoints are noted without waiting for the disk, which a crash of the machine may lose.
//!
//! Nothing depends on it but one count: how often a record has killed the job, over restarts of the process. Lines that are damaged
//! are passed over. A line that cannot be written fails the attempt, as any failed write does.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use millstream_state::StateError;
use millstream_state::lines::{self, Lines};
use serde::{Deserialize, Serialize};

use crate::checkpoint::wall_clock_ms;
use crate::error::{Error, Result};
use crate::poison::InputRecord;
use crate::summary::thousands;

const FILE: &str = "journal.jsonl";
const OLD: &str = "journal.old.jsonl";
const REPLAYS: &str = "replays.jsonl";

/// How large the file becomes before another is begun, in bytes.
const LIMIT: u64 = 4 << 20;

/// How many events that could not be written are kept for later.
const WAITING: usize = 1_000;

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970 by the wall clock.
    pub time_ms: u64,
    /// The token of the attempt in which it happened; every start and every restart has its own.
    pub execution: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. In the file it is the field `kind`, in the words of [`What::kind`], and the fields of the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// Workers were started.
    Start {
        /// The version of Millstream.
        version: String,
        /// How many worker threads.
        workers: usize,
        /// The checkpoint that it went on from; none: from the beginning.
        from: Option<u64>,
        /// Which restart within the process this is; 0 for the start itself.
        restart: u32,
        /// Whether the user wished to begin again, and old checkpoints were set aside.
        #[serde(default)]
        fresh: bool,
    },
    /// A checkpoint was taken and its output committed.
    Checkpoint {
        /// Its number.
        epoch: u64,
        /// Records that all sources had read by then, from the beginning of the input.
        records: u64,
        /// Entries of state, of all operators.
        entries: u64,
        /// Bytes of state that were written for it.
        bytes: u64,
        /// Where its time went.
        #[serde(flatten)]
        phases: Phases,
    },
    /// An attempt failed.
    Failure {
        /// The error, as it was told.
        error: String,
        /// The operator in which it happened.
        operator: Option<String>,
        /// The record of the input that was at work, where that is known.
        record: Option<InputRecord>,
        /// Whether it was user code that failed, so that the record may be to blame.
        poison: bool,
        /// How often this record has killed the job by now.
        times: u32,
    },
    /// The job is going to start again, in the same process.
    Restart {
        /// Which restart in this process, counted from 1.
        restart: u32,
        /// How long it waits before, in milliseconds.
        delay_ms: u64,
    },
    /// There was a restart policy, and it does not restart any more.
    GaveUp {
        /// Why not.
        reason: String,
    },
    /// A record is left out from now on.
    SetAside {
        /// Which.
        record: InputRecord,
        /// How often it had killed the job.
        times: u32,
    },
    /// A record that had killed the job did no harm this time.
    Passed {
        /// Which.
        record: InputRecord,
        /// How often it had.
        times: u32,
    },
    /// A savepoint was asked for, and is being copied.
    Savepoint {
        /// The checkpoint that it is a copy of.
        epoch: u64,
        /// Where it will be.
        dir: PathBuf,
    },
    /// What the job did was done again, in another place.
    Replay {
        /// From the end of this checkpoint; 0: from the beginning.
        from: u64,
        /// To the end of this one; none: to the end of the input.
        until: Option<u64>,
        /// Records that were read again.
        records: u64,
        /// Whether the results were compared, and were the same.
        equal: Option<bool>,
    },
    /// The job was stopped.
    Stop {
        /// The checkpoint from which it will go on.
        epoch: Option<u64>,
    },
    /// All input was read and all output committed.
    Finish {
        /// The last checkpoint.
        epoch: Option<u64>,
    },
    /// Something that this version does not know, with all its fields.
    #[serde(untagged)]
    Other(serde_json::Map<String, serde_json::Value>),
}

/// Where the time of a checkpoint went, in microseconds. Records are read and worked on during all of it, but for the pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// Until every operator on every worker had handed over its part.
    pub waiting_us: u64,
    /// Encoding and sorting what had changed.
    pub encoding_us: u64,
    /// Writing it, and having the database take it over.
    pub writing_us: u64,
    /// Linking its files and making them durable.
    pub syncing_us: u64,
    /// Writing the manifest and renaming it into place, durably.
    pub publishing_us: u64,
    /// Having the sinks commit.
    pub committing_us: u64,
    /// The longest that one worker stood still for one operator's part; this lies within the first phase.
    pub pause_us: u64,
}

impl Phases {
    /// All phases together, in microseconds.
    pub fn total_us(&self) -> u64 {
        let Phases { waiting_us, encoding_us, writing_us, syncing_us, publishing_us, committing_us, .. } = self;
        waiting_us + encoding_us + writing_us + syncing_us + publishing_us + committing_us
    }
}

impl What {
    /// Its name in the file.
    pub fn kind(&self) -> &str {
        match self {
            What::Start { .. } => "start",
            What::Checkpoint { .. } => "checkpoint",
            What::Failure { .. } => "failure",
            What::Restart { .. } => "restart",
            What::GaveUp { .. } => "gave_up",
            What::SetAside { .. } => "set_aside",
            What::Passed { .. } => "passed",
            What::Savepoint { .. } => "savepoint",
            What::Replay { .. } => "replay",
            What::Stop { .. } => "stop",
            What::Finish { .. } => "finish",
            What::Other(fields) => fields.get("kind").and_then(serde_json::Value::as_str).unwrap_or("unknown"),
        }
    }

    /// Whether it must be on disk before anything follows from it.
    fn is_durable(&self) -> bool {
        !matches!(self, What::Checkpoint { .. })
    }
}

/// In one line, for people.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: &u64| *us as f64 / 1e3;
        match self {
            What::Start { version, workers, from, restart, fresh } => {
                let s = if *workers == 1 { "" } else { "s" };
                match from {
                    Some(epoch) => write!(f, "from checkpoint {epoch}, {workers} worker{s}, version {version}")?,
                    None if *fresh => write!(f, "afresh, {workers} worker{s}, version {version}")?,
                    None => write!(f, "from the beginning, {workers} worker{s}, version {version}")?,
                }
                if *restart > 0 { write!(f, ", restart {restart}") } else { Ok(()) }
            }
            What::Checkpoint { epoch, records, entries, bytes, phases } => {
                let (records, entries, bytes) = (thousands(*records), thousands(*entries), thousands(*bytes));
                write!(f, "{epoch}: {records} records read, {entries} entries, {bytes} bytes; ")?;
                write!(f, "{:.1} ms: waiting {:.1}", ms(&phases.total_us()), ms(&phases.waiting_us))?;
                write!(f, ", encoding {:.1}, writing {:.1}", ms(&phases.encoding_us), ms(&phases.writing_us))?;
                write!(f, ", syncing {:.1}, publishing {:.1}", ms(&phases.syncing_us), ms(&phases.publishing_us))?;
                write!(f, ", committing {:.1}; pause {:.1}", ms(&phases.committing_us), ms(&phases.pause_us))
            }
            What::Failure { error, times, .. } => {
                f.write_str(&escaped(error.lines().next().unwrap_or_default()))?;
                if *times > 1 { write!(f, " (time {times} for this record)") } else { Ok(()) }
            }
            What::Restart { restart, delay_ms } => write!(f, "number {restart}, after {delay_ms} ms"),
            What::GaveUp { reason } => f.write_str(&escaped(reason)),
            What::SetAside { record, times } => {
                write!(f, "{} is left out: it killed the job {times} times", escaped(&record.to_string()))
            }
            What::Passed { record, times } => {
                write!(f, "{} went through, after {times} failures", escaped(&record.to_string()))
            }
            What::Savepoint { epoch, dir } => {
                write!(f, "of checkpoint {epoch}, in {}", escaped(&dir.display().to_string()))
            }
            What::Replay { from, until, records, equal } => {
                let until = until.map_or("the end of the input".into(), |epoch| format!("checkpoint {epoch}"));
                write!(f, "from checkpoint {from} to {until}, {} records", thousands(*records))?;
                match equal {
                    Some(true) => f.write_str("; nothing differs"),
                    Some(false) => f.write_str("; results differ"),
                    None => Ok(()),
                }
            }
            What::Stop { epoch: Some(epoch) } => write!(f, "goes on from checkpoint {epoch}"),
            What::Stop { epoch: None } => f.write_str("no checkpoint to go on from"),
            What::Finish { epoch: Some(epoch) } => write!(f, "with checkpoint {epoch}"),
            What::Finish { epoch: None } => Ok(()),
            What::Other(fields) => {
                let mut between = "";
                for (name, value) in fields.iter().filter(|(name, _)| *name != "kind") {
                    write!(f, "{between}{} {}", escaped(name), escaped(&value.to_string()))?;
                    between = ", ";
                }
                Ok(())
            }
        }
    }
}

/// Text from outside may hold anything that a terminal would obey.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
        .collect()
}

/// The journal of a job that runs.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    lines: Option<Lines>,
    /// The attempt that runs now.
    pub execution: String,
    /// What could not be written yet.
    waiting: VecDeque<Event>,
}

impl Journal {
    /// The journal in a checkpoint directory, or of a job that has none and so keeps none.
    pub(crate) fn at(dir: Option<&Path>) -> Self {
        Journal {
            dir: dir.map_or_else(PathBuf::new, Path::to_path_buf),
            lines: dir.map(|dir| Lines::at(dir.join(FILE))),
            execution: String::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Writes an event, behind those that could not be written before.
    pub(crate) fn note(&mut self, what: What) -> Result<()> {
        let Some(lines) = &mut self.lines else { return Ok(()) };
        self.waiting.push_back(Event { time_ms: wall_clock_ms(), execution: self.execution.clone(), what });
        if self.waiting.len() > WAITING {
            self.waiting.pop_front();
        }
        while let Some(event) = self.waiting.front() {
            let text = serde_json::to_string(event);
            let text = text.map_err(|error| Error::internal("an event does not write").because(error))?;
            lines.rotate(LIMIT, &self.dir.join(OLD))?;
            lines.append(&text, event.what.is_durable())?;
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Writes an event, or says that it cannot: for what comes after a failure, which must not take its place.
    pub(crate) fn try_note(&mut self, what: What) {
        if let Err(error) = self.note(what) {
            tracing::warn!("the journal cannot be written, its last events wait: {error}");
        }
    }
}

/// Notes a replay of the job whose checkpoints are in `dir`, and which may be running.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn note_replay(dir: &Path, execution: &str, what: What) -> Result<()> {
    let path = dir.join(REPLAYS);
    let open = File::options().create(true).append(true).open(&path).and_then(|file| file.lock().map(|()| file));
    // Until it is closed: two at a time would write over each other.
    let _alone = open.map_err(StateError::io("lock", &path))?;
    let event = Event { time_ms: wall_clock_ms(), execution: execution.to_string(), what };
    let text = serde_json::to_string(&event);
    let text = text.map_err(|error| Error::internal("an event does not write").because(error))?;
    Ok(Lines::at(path).append(&text, true)?)
}

/// What a checkpoint directory's journal has of lines that are `wanted`, the oldest first, each with its text; nothing where there
/// is none. The job may be running.
pub(crate) fn read(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Event)>> {
    let mut events = Vec::new();
    for name in [OLD, FILE, REPLAYS] {
        let path = dir.join(name);
        let content = lines::read(&path)?;
        if !content.damaged.is_empty() {
            let (count, path) = (content.damaged.len(), path.display());
            tracing::warn!(
                "{count} lines of {path} are damaged and passed over, the first is line {}",
                content.damaged[0]
            );
        }
        for object in content.objects.into_iter().filter(|object| wanted(object)) {
            let event: Event = match serde_json::from_str(&object) {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!("a line of {} is no event and passed over: {error}", path.display());
                    continue;
                }
            };
            // What the job wrote stays in its order, whatever became of the clock.
            let place = match name == REPLAYS {
                true => events.iter().rposition(|(_, earlier): &(String, Event)| earlier.time_ms <= event.time_ms),
                false => events.len().checked_sub(1),
            };
            events.insert(place.map_or(0, |place| place + 1), (object, event));
        }
    }
    Ok(events)
}

/// The events in the journal of a checkpoint directory, the oldest first. The job may be running.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn events(dir: impl AsRef<Path>) -> Result<Vec<Event>> {
    Ok(read(dir.as_ref(), |_| true)?.into_iter().map(|(_, event)| event).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<What> {
        let record = InputRecord { source: "in".into(), split: "a.csv".into(), record: 7 };
        let other = serde_json::json!({ "kind": "moved", "path": "/x", "bytes": 3 });
        let serde_json::Value::Object(other) = other else { panic!("an object") };
        let phases = Phases { waiting_us: 1, encoding_us: 2, pause_us: 9, ..Phases::default() };
        vec![
            What::Start { version: "1".into(), workers: 2, from: None, restart: 0, fresh: true },
            What::Checkpoint { epoch: 3, records: u64::MAX, entries: 5, bytes: 6, phases },
            What::Failure {
                error: "boom\nmore".into(),
                operator: Some("map".into()),
                record: Some(record.clone()),
                poison: true,
                times: 2,
            },
            What::Failure { error: "disk".into(), operator: None, record: None, poison: false, times: 0 },
            What::Restart { restart: 1, delay_ms: 5 },
            What::GaveUp { reason: "used up".into() },
            What::SetAside { record: record.clone(), times: 3 },
            What::Passed { record, times: 1 },
            What::Savepoint { epoch: 4, dir: "/backup/x".into() },
            What::Replay { from: 0, until: Some(4), records: 9, equal: Some(false) },
            What::Stop { epoch: Some(1) },
            What::Finish { epoch: None },
            What::Other(other),
        ]
    }

    #[test]
    fn every_event_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::at(Some(dir.path()));
        journal.execution = "0a1b2c3d".into();
        for what in all() {
            journal.note(what).unwrap();
        }
        let found = events(dir.path()).unwrap();
        for (event, what) in found.iter().zip(all()) {
            assert_eq!(event.what, what);
            assert_eq!(event.execution, "0a1b2c3d");
            let json = serde_json::to_value(event).unwrap();
            assert_eq!(json["kind"], what.kind());
            assert!(!what.to_string().contains('\n'), "{what}");
        }
        assert_eq!(found.len(), all().len());
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("later");
        let mut journal = Journal::at(Some(&place));
        journal.note(What::GaveUp { reason: "1".into() }).unwrap_err();
        journal.try_note(What::GaveUp { reason: "2".into() });
        std::fs::create_dir(&place).unwrap();
        journal.note(What::GaveUp { reason: "3".into() }).unwrap();
        let reasons = events(&place).unwrap().into_iter().map(|event| event.what.to_string());
        assert_eq!(reasons.collect::<Vec<_>>(), ["1", "2", "3"]);
    }

    #[test]
    fn the_journal_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::at(Some(dir.path()));
        let size = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
        };
        let fields = (0..400).map(|n| (format!("field {n}"), "x".repeat(100).into())).collect();
        let large = What::Checkpoint { epoch: 1, records: 0, entries: 0, bytes: 0, phases: Phases::default() };
        for _ in 0..300 {
            journal.note(What::Other(serde_json::Map::clone(&fields))).unwrap();
            journal.note(large.clone()).unwrap();
        }
        assert!((LIMIT..2 * LIMIT + 100_000).contains(&size()), "{} bytes", size());
    }

    #[test]
    fn replays_stand_where_they_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Lines::at(dir.path().join(FILE));
        for time_ms in [5, 9, 8, u64::MAX] {
            lines
                .append(&format!(r#"{{"time_ms":{time_ms},"execution":"a","kind":"finish","epoch":null}}"#), false)
                .unwrap();
        }
        let replay = What::Replay { from: 1, until: None, records: 2, equal: None };
        for _ in 0..2 {
            note_replay(dir.path(), "b", replay.clone()).unwrap();
        }
        let kinds: Vec<_> = events(dir.path()).unwrap().iter().map(|event| event.what.kind().to_string()).collect();
        assert_eq!(kinds, ["finish", "finish", "finish", "replay", "replay", "finish"]);
    }

    #[test]
    fn text_from_outside_does_not_reach_the_terminal() {
        let what = What::GaveUp { reason: "a\u{1b}[2J`x`".into() };
        assert_eq!(what.to_string(), "a\\u{1b}[2J`x`");
    }
}
