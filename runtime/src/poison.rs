//! Records that kill: which one it was, how often it has, and which are set aside.
//!
//! A record of the input is known by its split and its number there, so it is the same one after a restart. It is
//! suspected from the failure on that it was to blame for until a checkpoint has it behind it; the journal remembers it over
//! restarts of the process. When it has killed the job as often as the user allows, it is *set aside*: a line in
//! `set-aside.jsonl` beside the checkpoints names it, and from then on its source reads it and leaves it out, in every start from any
//! of these checkpoints. That file is the decision itself and not a report of it, so results stay the same
//! in every replay. To have a record back, delete the file, or its line.
//!
//! **Units**: records are counted from 1 in their split, as in all messages. **Errors**: `State` when the file is damaged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use millstream_state::StateError;
use millstream_state::lines::{self, Lines};
use millstream_state::manifest::{SourceEntry, find_split};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::journal::{Event, What};

/// The file in a checkpoint directory.
pub(crate) const FILE: &str = "set-aside.jsonl";

/// One record of the input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InputRecord {
    /// The name of the source.
    pub source: String,
    /// The split, usually a file's path.
    pub split: String,
    /// Which record of the split, counted from 1. Records that could not be read are not counted.
    pub record: u64,
}

impl std::fmt::Display for InputRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record {} of split `{}` of source `{}`", self.record, self.split, self.source)
    }
}

/// Who was at work when user code failed.
#[derive(Clone, Debug)]
pub(crate) enum Blame {
    /// This record.
    Record(InputRecord),
    /// It cannot be said, for this reason.
    Nobody(&'static str),
}

/// The split of a source, by name.
#[derive(Clone, Debug)]
pub(crate) struct SplitName {
    pub source: String,
    pub split: String,
    /// Its number in the positions of records, which state keeps: the same in every run, whatever sources are added, moved or dropped.
    pub place: u32,
    pub replayable: bool,
}

/// The record with this number, counted from 0, of a split.
pub(crate) fn record_of(split: Option<&SplitName>, number: u64) -> Blame {
    match split {
        // The record with this number would be another one after a restart.
        Some(SplitName { replayable: false, .. }) => {
            Blame::Nobody("its source cannot be read again, so it is gone already")
        }
        Some(SplitName { source, split, .. }) => {
            Blame::Record(InputRecord { source: source.clone(), split: split.clone(), record: number + 1 })
        }
        None => Blame::Nobody("its split is not known"),
    }
}

/// Records that were at work when the job failed, with how often, and that no checkpoint has behind it yet.
#[derive(Debug, Default)]
pub(crate) struct Suspects(BTreeMap<InputRecord, u32>);

impl Suspects {
    /// As the journal remembers them.
    pub(crate) fn from_events<'a>(events: impl Iterator<Item = &'a Event>) -> Self {
        let mut suspects = Suspects::default();
        for event in events {
            match &event.what {
                What::Failure { record: Some(record), poison: true, .. } => {
                    suspects.failed(record);
                }
                What::Passed { record, .. } | What::SetAside { record, .. } => suspects.clear(record),
                What::Start { fresh: true, .. } => suspects = Suspects::default(),
                _ => {}
            }
        }
        suspects
    }

    /// It was at work once more; how often by now.
    pub(crate) fn failed(&mut self, record: &InputRecord) -> u32 {
        let times = self.0.entry(record.clone()).or_default();
        *times = times.saturating_add(1);
        *times
    }

    pub(crate) fn clear(&mut self, record: &InputRecord) {
        self.0.remove(record);
    }

    /// Takes those out that a checkpoint has behind it: they did no harm this time.
    pub(crate) fn passed(&mut self, sources: &[SourceEntry]) -> Vec<(InputRecord, u32)> {
        let behind = |record: &InputRecord| {
            find_split(sources, &record.source, &record.split).is_some_and(|split| record.record <= split.records)
        };
        let passed: Vec<_> = self.0.iter().filter(|(record, _)| behind(record)).map(|(r, n)| (r.clone(), *n)).collect();
        passed.iter().for_each(|(record, _)| self.clear(record));
        passed
    }
}

/// A line of the file: a record that is left out, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetAside {
    /// When that was decided, in milliseconds since 1970.
    pub time_ms: u64,
    /// The start of the job that failed on it last.
    pub execution: String,
    /// Which record.
    #[serde(flatten)]
    pub record: InputRecord,
    /// Where a reader of the split stands in front of it, as checkpoints say it; for files their path, byte and line. None
    /// when the record could not be read once more.
    pub position: Option<serde_json::Value>,
    /// The operator that failed.
    pub operator: Option<String>,
    /// How.
    pub error: String,
    /// How often.
    pub failures: u32,
    /// The record's text, if its source has it, cut at 1,000 characters.
    pub text: Option<String>,
}

/// The records that sources leave out.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut(BTreeSet<InputRecord>);

impl LeftOut {
    /// The numbers, counted from 0 and in order, of the records of a split that are left out, from `first` on.
    pub(crate) fn of_split(&self, source: &str, split: &str, first: u64) -> VecDeque<u64> {
        let own = self.0.iter().filter(|record| record.source == source && record.split == split);
        own.map(|record| record.record - 1).filter(|number| *number >= first).collect()
    }
}

/// The records that are set aside.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    lines: Option<Lines>,
    records: LeftOut,
}

impl Aside {
    /// What the file in `dir` says. Changes nothing.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let records = set_aside(dir)?.into_iter().map(|entry| entry.record).collect();
        Ok(Aside { lines: Some(Lines::at(path)), records: LeftOut(records) })
    }

    /// Nothing is set aside; what will be goes into the file in `dir`.
    pub(crate) fn none(dir: &Path) -> Self {
        Aside { lines: Some(Lines::at(dir.join(FILE))), records: LeftOut::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.0.len()
    }

    pub(crate) fn contains(&self, record: &InputRecord) -> bool {
        self.records.0.contains(record)
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        Some(self.lines.as_ref()?.path())
    }

    /// Decides that a record is left out. It is, for good, when this returns.
    pub(crate) fn add(&mut self, entry: SetAside) -> Result<()> {
        let Some(lines) = &mut self.lines else { return Err(Error::internal("no place for records set aside")) };
        let text = serde_json::to_string(&entry);
        let text = text.map_err(|error| Error::internal("a record set aside does not write").because(error))?;
        lines.append(&text, true)?;
        self.records.0.insert(entry.record);
        Ok(())
    }

    pub(crate) fn left_out(&self) -> &LeftOut {
        &self.records
    }
}

/// The records that are set aside in a checkpoint directory, in the order in which that was decided.
///
/// # Errors
/// `State` when the file is damaged, `External` when it cannot be read.
pub fn set_aside(dir: &Path) -> Result<Vec<SetAside>> {
    let path = dir.join(FILE);
    let damaged = |line: usize| {
        let reason = format!("line {line} is not as it was written");
        Error::from(StateError::damaged(&path, reason)).hint(
            "it names records that are left out, so results would be others without it: put it back, or remove it to have \
             all records in again",
        )
    };
    let content = lines::read(&path)?;
    if let Some(line) = content.damaged.first() {
        return Err(damaged(*line));
    }
    let parsed = content.objects.iter().enumerate().map(|(line, object)| {
        let entry: SetAside = serde_json::from_str(object).map_err(|error| damaged(line + 1).because(error))?;
        if entry.record.record == 0 { Err(damaged(line + 1)) } else { Ok(entry) }
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_state::manifest::SplitEntry;

    fn record(split: &str, record: u64) -> InputRecord {
        InputRecord { source: "in".into(), split: split.into(), record }
    }

    fn entry(split: &str, number: u64) -> SetAside {
        SetAside {
            time_ms: 1,
            execution: "0a1b2c3d".into(),
            record: record(split, number),
            position: Some(serde_json::json!({ "byte": 7 })),
            operator: Some("map".into()),
            error: "panicked: \"x\"\nand more".into(),
            failures: 3,
            text: None,
        }
    }

    #[test]
    fn what_is_set_aside_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut aside = Aside::read(dir.path()).unwrap();
        assert_eq!(aside.len(), 0);
        aside.add(entry("a", 5)).unwrap();
        aside.add(entry("a", 2)).unwrap();
        aside.add(entry("b", 1)).unwrap();
        let again = Aside::read(dir.path()).unwrap();
        assert_eq!(again.left_out().of_split("in", "a", 0), [1, 4]);
        assert_eq!(again.left_out().of_split("in", "a", 2), [4]);
        assert!(again.left_out().of_split("other", "a", 0).is_empty());
        assert!(again.contains(&record("b", 1)));
        assert_eq!(set_aside(dir.path()).unwrap(), [entry("a", 5), entry("a", 2), entry("b", 1)]);
    }

    #[test]
    fn damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Aside::read(dir.path()).unwrap().add(entry("a", 5)).unwrap();
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"record\":5", "\"record\":6")).unwrap();
        let error = Aside::read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::State);
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn a_suspect_is_one_until_a_checkpoint_has_it_behind_it() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.failed(&record("a", 5)), 1);
        assert_eq!(suspects.failed(&record("b", 5)), 1);
        assert_eq!(suspects.failed(&record("a", 5)), 2);
        let split = |split: &str, records| SplitEntry { split: split.into(), records, ..SplitEntry::default() };
        let mut source =
            SourceEntry { name: "in".into(), kind: "k".into(), splits: vec![split("a", 4), split("b", 5)] };
        assert_eq!(suspects.passed(std::slice::from_ref(&source)), [(record("b", 5), 1)]);
        assert_eq!(suspects.failed(&record("a", 5)), 3);
        source.splits[0].records = 5;
        assert_eq!(suspects.passed(&[source]), [(record("a", 5), 3)]);
        assert_eq!(suspects.failed(&record("a", 5)), 1);
    }
}
