//! The same input through two builds of a job: this one, and another program.
//!
//! Both replay from the same checkpoint to the same one, each into a directory of its own; then their outputs are compared row by
//! row. Since both stop at the same positions, and neither fires what the watermark has not passed, all of it can be compared.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::report::ReplayReport;
use super::rows::{Odd, OddRow, Side, compare, safe};
use super::{Replay, must_be_empty};
use crate::error::{Error, Result};
use crate::graph::{Body, Repeats};
use crate::job::Job;
use crate::shared::lock;
use crate::sink::Redirect;
use crate::summary::thousands;

/// Another build of the job.
#[derive(Clone, Debug)]
pub struct Against {
    /// The program.
    pub program: PathBuf,
    /// What goes before its command `replay`: options of the job's own, and those of every job.
    pub before: Vec<OsString>,
    /// The same behind it, but none of the options of `replay` itself, which follow from this replay.
    pub after: Vec<OsString>,
    /// How many rows of each kind and sink are kept to be shown.
    pub limit: usize,
}

/// In what two builds differ.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgainstReport {
    /// The replay by this program.
    pub replay: ReplayReport,
    /// The other program.
    pub program: PathBuf,
    /// Sink by sink.
    pub sinks: Vec<SinkDifference>,
}

/// In what two builds differ at one sink.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SinkDifference {
    /// The sink.
    pub name: String,
    /// Why it is not compared, if it is not.
    pub excluded: Option<String>,
    /// How many rows each of the two wrote.
    pub rows: (u64, u64),
    /// How many rows only one of the two wrote.
    pub only: (u64, u64),
    /// The first of these.
    pub shown: (Vec<OddRow>, Vec<OddRow>),
    /// What stands in front of rows, such as the header of a CSV file, where it is not the same.
    pub heads: Option<(String, String)>,
}

impl SinkDifference {
    /// Whether both wrote the same.
    pub fn is_equal(&self) -> bool {
        self.only == (0, 0) && self.heads.is_none()
    }
}

impl AgainstReport {
    /// Whether both wrote the same at all sinks that were compared.
    pub fn is_equal(&self) -> bool {
        self.sinks.iter().all(SinkDifference::is_equal)
    }
}

impl Job {
    /// Replays with this program and with another one, and compares what they write. The output stays in `this` and `other` of
    /// the replay's directory, which must be given.
    ///
    /// # Errors
    /// When one of the two fails, or a sink's output cannot be read back.
    pub fn replay_against(self, replay: &Replay, against: &Against) -> Result<AgainstReport> {
        let Some(dir) = replay.output.clone() else {
            return Err(Error::config("two builds are compared by their output, which needs a place")
                .hint("give a directory with `--into DIR`"));
        };
        must_be_empty(&dir)?;
        let (this_dir, other_dir) = (dir.join("this"), dir.join("other"));
        // The graph is gone once the replay has run; the readers of what it writes are not.
        let mut readers = Vec::new();
        {
            let graph = lock(&self.graph);
            for (node, name) in graph.names().into_iter().enumerate() {
                if let Body::Sink(sink) = &graph.nodes[node].body {
                    let at = |dir: &PathBuf| sink.stored_at(&Redirect::Into { dir: dir.join(&name), times: true });
                    readers.push((at(&this_dir), at(&other_dir), graph.repeats(node), name));
                }
            }
        }
        let replayed = self.replay(&Replay { output: Some(this_dir), times: true, verify: false, ..replay.clone() })?;

        let mut command = Command::new(&against.program);
        command.args(&against.before).arg("replay");
        command.arg("--from").arg(replayed.from.to_string());
        command.arg("--until").arg(replayed.until.map_or("end".into(), |epoch| epoch.to_string()));
        command.arg("--into").arg(&other_dir).arg("--times");
        if replay.discard {
            command.arg("--discard");
        }
        command.args(&against.after);
        let shown = against.program.display();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.map_err(|error| Error::external(format!("`{shown}` does not start")).because(error))?;
        if !status.success() {
            return Err(Error::external(format!("`{shown}` could not replay: {status}")).hint(
                "it must be another build of this job with the same options, and be able to go on from that checkpoint; where \
                 its state has another form, replay from the beginning with `--from 0`",
            ));
        }

        let mut sinks = Vec::new();
        for (this, other, repeats, name) in readers {
            let excluded = match (&repeats, this.is_some() && other.is_some()) {
                (Repeats::Never(reason), _) => Some(reason.clone()),
                (_, false) => Some("its output cannot be read back".to_string()),
                _ => None,
            };
            let (left, right) = match (&this, &other) {
                (Some(this), Some(other)) if excluded.is_none() => {
                    let side = |stored| Side { stored, epochs: 0..=u64::MAX, prepared: &[] };
                    compare(&side(&**this), &side(&**other), replayed.summary.records_out)?
                }
                _ => Default::default(),
            };
            sinks.push(difference(name, excluded, left, right, against.limit));
        }
        Ok(AgainstReport { replay: replayed, program: against.program.clone(), sinks })
    }
}

fn difference(name: String, excluded: Option<String>, left: Odd, right: Odd, limit: usize) -> SinkDifference {
    let heads = |odd: &Odd| odd.heads.iter().cloned().collect::<Vec<_>>().join(" / ");
    // A side without rows has no header either.
    let other_heads = left.rows > 0 && right.rows > 0 && left.heads != right.heads;
    SinkDifference {
        name,
        excluded,
        rows: (left.rows, right.rows),
        only: (left.count, right.count),
        heads: other_heads.then(|| (heads(&left), heads(&right))),
        shown: (left.first.into_iter().take(limit).collect(), right.first.into_iter().take(limit).collect()),
    }
}

impl fmt::Display for AgainstReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nagainst {}", self.replay, self.program.display())?;
        for sink in &self.sinks {
            write!(f, "\n{sink}")?;
        }
        let verdict = if self.is_equal() { "nothing differs" } else { "the two programs differ" };
        write!(f, "\n{verdict}")
    }
}

impl fmt::Display for SinkDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sink `{}`: ", self.name)?;
        if let Some(reason) = &self.excluded {
            return write!(f, "not compared: {reason}");
        }
        if self.is_equal() {
            return write!(f, "equal, {} rows", thousands(self.rows.0));
        }
        let ((this, other), (only_this, only_other)) = (self.rows, self.only);
        write!(f, "{} rows here, {} there", thousands(this), thousands(other))?;
        if let Some((this, other)) = &self.heads {
            write!(f, "\n  header here:  {}\n  header there: {}", safe(this), safe(other))?;
        }
        for (mark, count, rows) in [('-', only_this, &self.shown.0), ('+', only_other, &self.shown.1)] {
            let place = if mark == '-' { "here" } else { "there" };
            if count > 0 {
                write!(f, "\n  only {place}: {} rows", thousands(count))?;
            }
            for row in rows {
                let at = row.at.map_or(String::new(), |at| format!("{at}  "));
                write!(f, "\n  {mark} {at}{}", safe(&row.text))?;
            }
            if rows.len() < usize::try_from(count).unwrap_or(usize::MAX) && !rows.is_empty() {
                write!(f, "\n    and more")?;
            }
        }
        Ok(())
    }
}
