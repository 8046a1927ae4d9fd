//! What a replay came to, for people and for programs.

use std::fmt;
use std::path::PathBuf;

use super::rows::FirstDifference;
use crate::summary::{Summary, thousands};
use crate::time::EventTime;

/// What a replay came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplayReport {
    /// The run that the replay was.
    pub summary: Summary,
    /// The checkpoint that it began with; 0: the beginning.
    pub from: u64,
    /// The checkpoint at which it ended; `None`: the end of the input.
    pub until: Option<u64>,
    /// Where its output is.
    pub output: Option<PathBuf>,
    /// The sinks whose records were dropped.
    pub discarded: Vec<String>,
    /// What was compared, sink by sink; empty unless that was asked for.
    pub sinks: Vec<SinkCheck>,
}

/// How a sink's output compares with that of the first run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SinkCheck {
    /// The sink.
    pub name: String,
    /// Why two runs may rightly differ in it. It is then not compared.
    pub excluded: Option<String>,
    /// Why it could not be compared.
    pub not_comparable: Option<String>,
    /// Ranges of event time with rows in either run, in order.
    pub ranges: Vec<RangeCheck>,
    /// What became of the rows of the first run, where they can be read back.
    pub stored: Option<Stored>,
    /// Where the two begin to differ, when they do and the rows could be read.
    pub first: Option<FirstDifference>,
}

/// A range of event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeCheck {
    /// Its first instant.
    pub from: EventTime,
    /// The first instant after it.
    pub to: EventTime,
    /// How many rows the first run wrote.
    pub original: u64,
    /// How many rows the replay wrote.
    pub replay: u64,
    /// How the two compare.
    pub standing: Standing,
}

/// How the two runs compare in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They wrote the same rows.
    Equal,
    /// They did not.
    Differs,
    /// They did not, and need not: the watermark had not come to its end, so windows may have been fired before the last
    /// checkpoint or after it.
    Open,
}

/// What became of the rows of the first run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// They are as they were written.
    AsWritten,
    /// So many are no longer there.
    Missing(u64),
    /// They were changed.
    Changed,
}

impl SinkCheck {
    pub(super) fn new(name: &str) -> SinkCheck {
        SinkCheck {
            name: name.to_string(),
            excluded: None,
            not_comparable: None,
            ranges: Vec::new(),
            stored: None,
            first: None,
        }
    }

    /// Whether nothing was found that should be the same and is not.
    pub fn is_equal(&self) -> bool {
        self.stored != Some(Stored::Changed) && self.ranges.iter().all(|range| range.standing != Standing::Differs)
    }
}

impl ReplayReport {
    /// Whether nothing was found in which the two runs differ.
    pub fn is_equal(&self) -> bool {
        self.sinks.iter().all(SinkCheck::is_equal)
    }

    /// Whether anything was compared at all.
    pub fn compared(&self) -> bool {
        let compared = |range: &RangeCheck| matches!(range.standing, Standing::Equal | Standing::Differs);
        self.sinks.iter().any(|sink| sink.stored.is_some() || sink.ranges.iter().any(compared))
    }
}

impl fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { job, records_in, records_out, elapsed, .. } = &self.summary;
        write!(f, "job `{job}` replayed from ")?;
        match self.from {
            0 => write!(f, "the beginning")?,
            epoch => write!(f, "checkpoint {epoch}")?,
        }
        match self.until {
            Some(epoch) => writeln!(f, " to checkpoint {epoch}")?,
            None => writeln!(f, " to the end of the input")?,
        }
        writeln!(f, "  records   {} in, {} out", thousands(*records_in), thousands(*records_out))?;
        let speed = thousands(self.summary.records_per_second() as u64);
        write!(f, "  time      {:.2} s, {speed} records/s", elapsed.as_secs_f64())?;
        match &self.output {
            Some(dir) => write!(f, "\n  output    {}", dir.display())?,
            None => write!(f, "\n  output    not kept")?,
        }
        if !self.discarded.is_empty() {
            write!(f, "; dropped: `{}`", self.discarded.join("`, `"))?;
        }
        for sink in &self.sinks {
            write!(f, "\n{sink}")?;
        }
        if !self.sinks.is_empty() {
            let verdict = match (self.is_equal(), self.compared()) {
                (false, _) => "the replay differs from the first run",
                (true, true) => "nothing differs",
                (true, false) => "nothing could be compared",
            };
            write!(f, "\n{verdict}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SinkCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sink `{}`", self.name)?;
        if let Some(reason) = &self.excluded {
            return write!(f, "\n  excluded        {reason}");
        }
        if let Some(reason) = &self.not_comparable {
            return write!(f, "\n  not comparable  {reason}");
        }
        if self.ranges.is_empty() {
            write!(f, "\n  equal           no rows")?;
        }
        // Ranges in a row that compare alike make one line; one that differs has a line of its own.
        let alike = |a: &RangeCheck, b: &RangeCheck| a.standing == b.standing && a.standing != Standing::Differs;
        for run in self.ranges.chunk_by(alike) {
            let (from, to) = (run[0].from, run[run.len() - 1].to);
            let sum = |rows: fn(&RangeCheck) -> u64| run.iter().map(rows).fold(0, u64::wrapping_add);
            let (original, replay) = (thousands(sum(|r| r.original)), thousands(sum(|r| r.replay)));
            let parts = if run.len() > 1 { format!(" in {} ranges", run.len()) } else { String::new() };
            match run[0].standing {
                Standing::Equal => write!(f, "\n  equal           [{from}, {to}): {original} rows{parts}")?,
                Standing::Differs => {
                    write!(f, "\n  DIFFERS         [{from}, {to}): {original} rows, {replay} in the replay")?;
                }
                Standing::Open => write!(
                    f,
                    "\n  not comparable  [{from}, {to}): {original} rows, {replay} in the replay{parts}; beyond the watermark \
                     at its end, windows may be fired a checkpoint earlier or later"
                )?,
            }
        }
        match self.stored {
            Some(Stored::Changed) => write!(f, "\n  CHANGED         its files are not as they were written")?,
            Some(Stored::Missing(rows)) if rows > 0 => {
                write!(f, "\n  missing         {} rows of its output are no longer there", thousands(rows))?;
            }
            _ => {}
        }
        if let Some(first) = &self.first {
            write!(f, "\n    {first}")?;
        }
        Ok(())
    }
}
