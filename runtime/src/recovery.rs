//! Where a start begins: which checkpoint, whether it is this job's, and what becomes of the output after it.

use std::collections::BTreeSet;
use std::path::Path;

use millstream_state::checkpoint::{Decision, Found, Health, Refusal, StartFrom, decide};
use millstream_state::manifest::Manifest;
use millstream_state::store::CheckpointStore;
use millstream_state::{codec, hash, key_group};

use crate::error::{Error, Result};
use crate::schema::Schemas;

/// What the manifest of a job that is about to start would say, as far as it must agree with a checkpoint's.
pub(crate) struct Shape {
    pub job: String,
    /// Name, description, form of state.
    pub operators: Vec<(String, String, String)>,
    /// Name, splits.
    pub sources: Vec<(String, Vec<String>)>,
    pub sinks: Vec<String>,
    /// The schemas of what operators keep.
    pub schemas: Schemas,
}

/// What to begin with.
pub(crate) enum Start {
    Fresh { set_aside: Vec<u64> },
    Restore { manifest: Manifest, set_aside: Vec<u64> },
    Finished { manifest: Manifest },
}

/// Chooses, and checks that what was chosen is intact and fits.
pub(crate) fn choose(store: &CheckpointStore, from: StartFrom, shape: &Shape) -> Result<Start> {
    let epochs = store.epochs()?;
    let decision = match from {
        StartFrom::Fresh => Decision::Fresh,
        StartFrom::NewestIntact => decide(&store.survey()?, from),
        StartFrom::Newest | StartFrom::Epoch(_) => {
            // Reading every file of every checkpoint would be for nothing: only the chosen one matters, if it is intact.
            let candidate = match from {
                StartFrom::Epoch(epoch) => Some(epoch),
                _ => epochs.last().copied(),
            };
            let assumed = |epoch: &u64| {
                let checked = Some(*epoch) == candidate;
                let health = if checked { store.health(*epoch)? } else { Health::Intact { finished: false } };
                Ok(Found { epoch: *epoch, health })
            };
            let quick: Vec<Found> = epochs.iter().map(assumed).collect::<Result<_>>()?;
            match decide(&quick, from) {
                Decision::Refuse(_) => decide(&store.survey()?, from),
                decision => decision,
            }
        }
    };
    match decision {
        Decision::Fresh => Ok(Start::Fresh { set_aside: epochs }),
        Decision::Restore { epoch, passed_over } => {
            let manifest = store.manifest(epoch)?;
            check(store.dir(), &manifest, shape)?;
            Ok(Start::Restore { manifest, set_aside: passed_over })
        }
        Decision::Finished { epoch } => {
            let manifest = store.manifest(epoch)?;
            check(store.dir(), &manifest, shape)?;
            Ok(Start::Finished { manifest })
        }
        Decision::Refuse(refusal) => Err(refuse(store.dir(), refusal)),
    }
}

pub(crate) fn refuse(dir: &Path, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Damaged { epoch, reason, intact } => {
            let error = Error::state(format!("checkpoint {epoch} in {} cannot be used: {reason}", dir.display()));
            match intact {
                Some(intact) => error.hint(format!(
                    "checkpoint {intact} is the newest intact one; start from it with `--from {intact}` or \
                     `--newest-intact` (`StartFrom` in a program), which withdraws output that was committed after it"
                )),
                None => {
                    error.hint("no checkpoint here is intact; `--fresh` (`StartFrom::Fresh`) begins again and sets the old output aside")
                }
            }
        }
        Refusal::Missing { epoch, present } => {
            let present: Vec<String> = present.iter().map(ToString::to_string).collect();
            let list = if present.is_empty() { "none".into() } else { present.join(", ") };
            Error::config(format!("there is no checkpoint {epoch} in {}", dir.display()))
                .hint(format!("there are: {list}"))
        }
    }
}

/// Compares a checkpoint with the job that wants to go on from it. Names the first difference.
fn check(dir: &Path, manifest: &Manifest, shape: &Shape) -> Result<()> {
    let epoch = manifest.epoch;
    let differs = |what: String| {
        Error::state(format!("checkpoint {epoch} in {} {what}", dir.display())).hint(
            "undo that change to go on from it, or choose another `--checkpoint-dir`, or begin again with `--fresh`",
        )
    };
    if manifest.job != shape.job {
        return Err(differs(format!("belongs to job `{}`, and this is job `{}`", manifest.job, shape.job)));
    }
    for (what, theirs, ours) in [
        ("hashes keys with", &manifest.hasher, hash::HASHER_ID),
        ("encodes state with", &manifest.codec, codec::CODEC_ID),
    ] {
        if theirs != ours {
            return Err(differs(format!("{what} `{theirs}`, and this version of Millstream with `{ours}`")));
        }
    }
    if manifest.key_groups != key_group::KEY_GROUPS {
        return Err(differs(format!("has {} key groups, not {}", manifest.key_groups, key_group::KEY_GROUPS)));
    }
    for (name, operator, state) in &shape.operators {
        let Some(theirs) = manifest.operators.iter().find(|entry| entry.name == *name) else {
            return Err(differs(format!("knows no operator `{name}`")));
        };
        if theirs.operator != *operator {
            let was = &theirs.operator;
            return Err(differs(format!("has operator `{name}` as {was}, and the job now has {operator}")));
        }
        shape.schemas.check(dir, epoch, theirs, name, state)?;
    }
    for (name, splits) in &shape.sources {
        let Some(theirs) = manifest.sources.iter().find(|entry| entry.name == *name) else {
            return Err(differs(format!("knows no source `{name}`")));
        };
        let was: BTreeSet<&String> = theirs.splits.iter().map(|split| &split.split).collect();
        let is: BTreeSet<&String> = splits.iter().collect();
        if let Some(gone) = was.difference(&is).next() {
            return Err(differs(format!("has read `{gone}` in source `{name}`, which is not among its input now")));
        }
        if let Some(new) = is.difference(&was).next() {
            return Err(differs(format!("knows nothing of `{new}`, which is now among the input of source `{name}`")));
        }
    }
    for name in &shape.sinks {
        if !manifest.sinks.iter().any(|entry| entry.name == *name) {
            return Err(differs(format!("knows no sink `{name}`")));
        }
    }
    let ours = |name: &String| {
        shape.operators.iter().any(|(own, ..)| own == name)
            || shape.sources.iter().any(|(own, _)| own == name)
            || shape.sinks.contains(name)
    };
    let theirs = manifest.operators.iter().map(|entry| &entry.name);
    let theirs = theirs.chain(manifest.sources.iter().map(|entry| &entry.name));
    match theirs.chain(manifest.sinks.iter().map(|entry| &entry.name)).find(|name| !ours(name)) {
        Some(gone) => Err(differs(format!("has `{gone}`, which the job no longer has"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_state::manifest::{OperatorEntry, SinkEntry, SourceEntry, SplitEntry};

    fn shape() -> Shape {
        Shape {
            job: "orders".into(),
            operators: vec![("spend".into(), "windows of 1m".into(), "slices of i64".into())],
            sources: vec![("orders".into(), vec!["a.csv".into(), "b.csv".into()])],
            sinks: vec!["out".into()],
            schemas: Schemas::default(),
        }
    }

    fn manifest() -> Manifest {
        let split = |split: &str| SplitEntry {
            split: split.into(),
            position: None,
            records: 0,
            watermark_us: 0,
            generator: serde_json::Value::Null,
            ended: false,
        };
        Manifest {
            millstream: "0.1.0".into(),
            job: "orders".into(),
            execution: "0a1b2c3d".into(),
            epoch: 7,
            finished: false,
            written_ms: 0,
            workers: 2,
            key_groups: key_group::KEY_GROUPS,
            hasher: hash::HASHER_ID.into(),
            codec: codec::CODEC_ID.into(),
            operators: vec![OperatorEntry {
                name: "spend".into(),
                id: 1,
                operator: "windows of 1m".into(),
                state: "slices of i64".into(),
                states: vec![],
                entries: 0,
            }],
            sources: vec![SourceEntry {
                name: "orders".into(),
                kind: "csv files".into(),
                splits: vec![split("a.csv"), split("b.csv")],
            }],
            sinks: vec![SinkEntry { name: "out".into(), kind: "csv files".into(), handles: vec![] }],
            files: vec![],
        }
    }

    #[test]
    fn when_nothing_changed_then_it_fits() {
        check(Path::new("dir"), &manifest(), &shape()).expect("fits");
    }

    #[test]
    fn every_change_is_named() {
        type Change = fn(&mut Shape);
        let changes: [(&str, Change); 9] = [
            ("belongs to job `orders`, and this is job `refunds`", |s| s.job = "refunds".into()),
            ("knows no operator `cost`", |s| s.operators[0].0 = "cost".into()),
            ("as windows of 1m, and the job now has windows of 2m", |s| s.operators[0].1 = "windows of 2m".into()),
            ("was slices of i64 and is now slices of u64", |s| s.operators[0].2 = "slices of u64".into()),
            ("knows no source `returns`", |s| s.sources[0].0 = "returns".into()),
            ("has read `b.csv`", |s| s.sources[0].1.truncate(1)),
            ("knows nothing of `c.csv`", |s| s.sources[0].1.push("c.csv".into())),
            ("knows no sink `other`", |s| s.sinks[0] = "other".into()),
            ("has `spend`, which the job no longer has", |s| s.operators.clear()),
        ];
        for (text, change) in changes {
            let mut shape = shape();
            change(&mut shape);
            let error = check(Path::new("dir"), &manifest(), &shape).expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
            assert!(error.contains("checkpoint 7 in dir"), "{error}");
        }
    }
}
