//! Where a start begins: which checkpoint, whether it is this job's, and what becomes of the output after it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use millstream_state::checkpoint::{Decision, Found, Health, Import, Refusal, StartFrom, decide, decide_import};
use millstream_state::held::Held;
use millstream_state::manifest::{Manifest, find_source};
use millstream_state::store::CheckpointStore;
use millstream_state::{codec, hash, key_group};

use crate::error::{Error, Result};
use crate::names::Names;
use crate::schema::Schemas;

/// What the manifest of a job that is about to start would say, as far as it must agree with a checkpoint's.
pub(crate) struct Shape {
    pub job: String,
    /// Name, description, form of state.
    pub operators: Vec<(String, String, String)>,
    /// Name, splits.
    pub sources: Vec<(String, Vec<String>)>,
    pub sinks: Vec<String>,
    /// Those names that nobody gave, but that were derived.
    pub derived: BTreeSet<String>,
    /// The schemas of what operators keep.
    pub schemas: Schemas,
}

impl Shape {
    /// Operators that nobody named, and that do the same with the same kind of state, in pairs: for a checkpoint it makes no difference which
    /// of the two is which.
    pub(crate) fn twins(&self) -> Vec<(&str, &str)> {
        let (mut twins, mut newest) = (Vec::new(), BTreeMap::new());
        for (name, operator, state) in self.operators.iter().filter(|(name, ..)| self.derived.contains(name)) {
            if let Some(before) = newest.insert((operator, state), &**name) {
                twins.push((before, &**name));
            }
        }
        twins
    }
}

/// What to begin with.
pub(crate) enum Start {
    Fresh {
        set_aside: Vec<u64>,
    },
    /// `committed`: its output is, for certain. `import`: it is a savepoint, and has to be copied in first.
    Restore {
        manifest: Box<Manifest>,
        set_aside: Vec<u64>,
        committed: bool,
        import: Option<Box<Held>>,
    },
    Finished {
        manifest: Box<Manifest>,
        committed: bool,
    },
}

impl Start {
    /// Of the checkpoint it begins with.
    pub(crate) fn epoch(&self) -> Option<u64> {
        match self {
            Start::Fresh { .. } => None,
            Start::Restore { manifest, .. } | Start::Finished { manifest, .. } => Some(manifest.epoch),
        }
    }
}

/// Chooses, and checks that what was chosen is intact and fits.
pub(crate) fn choose(store: &CheckpointStore, from: &StartFrom, shape: &Shape, names: &Names) -> Result<Start> {
    let epochs = store.epochs()?;
    let decision = match from {
        StartFrom::Savepoint(dir) => return from_savepoint(store, &epochs, dir, false, shape, names),
        StartFrom::FreshFromSavepoint(dir) => return from_savepoint(store, &epochs, dir, true, shape, names),
        StartFrom::Fresh => Decision::Fresh,
        StartFrom::NewestIntact => decide(&store.survey()?, from.clone()),
        StartFrom::Newest | StartFrom::Epoch(_) => {
            // Reading every file of every checkpoint would be for nothing: only the chosen one matters, if it is intact.
            let candidate = match from {
                StartFrom::Epoch(epoch) => Some(*epoch),
                _ => epochs.last().copied(),
            };
            let assumed = |epoch: &u64| {
                let checked = Some(*epoch) == candidate;
                let health = if checked { store.health(*epoch)? } else { Health::Intact { finished: false } };
                Ok(Found { epoch: *epoch, health })
            };
            let quick: Vec<Found> = epochs.iter().map(assumed).collect::<Result<_>>()?;
            match decide(&quick, from.clone()) {
                Decision::Refuse(_) => decide(&store.survey()?, from.clone()),
                decision => decision,
            }
        }
    };
    match decision {
        Decision::Fresh => Ok(Start::Fresh { set_aside: epochs }),
        Decision::Restore { epoch, passed_over } => {
            let (manifest, committed) = own(store, epoch, shape, names)?;
            Ok(Start::Restore { manifest: Box::new(manifest), set_aside: passed_over, committed, import: None })
        }
        Decision::Finished { epoch } => {
            let (manifest, committed) = own(store, epoch, shape, names)?;
            Ok(Start::Finished { manifest: Box::new(manifest), committed })
        }
        Decision::Refuse(refusal) => Err(refuse(store.dir(), refusal)),
    }
}

/// The manifest of one of the job's own checkpoints, with the names of the program, and whether its output is committed.
fn own(store: &CheckpointStore, epoch: u64, shape: &Shape, names: &Names) -> Result<(Manifest, bool)> {
    let committed = store.is_committed(epoch)?;
    Ok((fit(store.dir(), store.manifest(epoch)?, shape, names, committed)?, committed))
}

/// Checks that a checkpoint fits the job, and gives its names those of the program.
pub(crate) fn fit(dir: &Path, manifest: Manifest, shape: &Shape, names: &Names, committed: bool) -> Result<Manifest> {
    check_job(dir, &manifest, &shape.job)?;
    let manifest = names.apply(dir, manifest, shape, committed)?;
    check(dir, &manifest, shape)?;
    Ok(manifest)
}

/// Begins from a savepoint, which is copied in as a checkpoint: from then on it is like any other.
fn from_savepoint(
    store: &CheckpointStore,
    epochs: &[u64],
    dir: &Path,
    fresh: bool,
    shape: &Shape,
    names: &Names,
) -> Result<Start> {
    let unusable = |error| {
        Error::from(error).at_place(format!("savepoint {}", dir.display())).hint(
            "a savepoint is the directory that `savepoint DIR` made, with its `manifest` and its `db`; if it was cut short, take \
             another one",
        )
    };
    let held = Held::open(dir).map_err(unusable)?;
    held.verify().map_err(unusable)?;
    // To begin again does not depend on what they are.
    let manifest = |epoch| if fresh { None } else { store.manifest(epoch).ok() };
    let present: Vec<_> = epochs.iter().map(|epoch| (*epoch, manifest(*epoch))).collect();
    let set_aside = match decide_import(&present, held.manifest(), fresh) {
        Import::Copy { set_aside } => set_aside,
        Import::There => {
            let epoch = held.manifest().epoch;
            store.verify(epoch)?;
            let (manifest, committed) = own(store, epoch, shape, names)?;
            return Ok(Start::Restore { manifest: Box::new(manifest), set_aside: Vec::new(), committed, import: None });
        }
        Import::Bury { newer } => {
            let newer: Vec<String> = newer.iter().map(ToString::to_string).collect();
            let text = format!(
                "savepoint {} of epoch {} would take the place of newer checkpoints in {}: {}",
                dir.display(),
                held.manifest().epoch,
                store.dir().display(),
                newer.join(", ")
            );
            return Err(Error::config(text).hint(
                "to go on from the newest, leave `--from-savepoint` out; to begin again from the savepoint, add `--fresh` \
                 (`StartFrom::FreshFromSavepoint`), which sets these checkpoints and the output after the savepoint aside; or \
                 choose another `--checkpoint-dir`",
            ));
        }
    };
    // A savepoint names no output. A checkpoint that is used as one may.
    let committed = held.manifest().sinks.iter().all(|sink| sink.handles.is_empty()) || held.is_committed()?;
    let mut manifest = fit(dir, held.manifest().clone(), shape, names, committed)?;
    if committed {
        manifest.sinks.iter_mut().for_each(|sink| sink.handles.clear());
    }
    if manifest.finished {
        let text = format!("savepoint {} is of a job that had come to its end: there is nothing to run", dir.display());
        return Err(Error::config(text).hint("its state can be read with `state … --at DIR`"));
    }
    Ok(Start::Restore { manifest: Box::new(manifest), set_aside, committed, import: Some(Box::new(held)) })
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

/// Refuses a checkpoint of another job, or one that this version of Millstream does not read.
pub(crate) fn check_job(dir: &Path, manifest: &Manifest, job: &str) -> Result<()> {
    let differs = differs(dir, manifest.epoch);
    if manifest.job != job {
        return Err(differs(format!("belongs to job `{}`, and this is job `{}`", manifest.job, job)));
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
    Ok(())
}

fn differs(dir: &Path, epoch: u64) -> impl Fn(String) -> Error {
    move |what| {
        Error::state(format!("checkpoint {epoch} in {} {what}", dir.display())).hint(
            "undo that change to go on from it, or choose another `--checkpoint-dir`, or begin again with `--fresh`",
        )
    }
}

/// Compares a checkpoint, in the names of the program, with the job that wants to go on from it. Names the first difference.
fn check(dir: &Path, manifest: &Manifest, shape: &Shape) -> Result<()> {
    let differs = differs(dir, manifest.epoch);
    for (name, operator, state) in &shape.operators {
        let Some(theirs) = manifest.operators.iter().find(|entry| entry.name == *name) else {
            continue; // it is new
        };
        if theirs.operator != *operator {
            let was = &theirs.operator;
            let error = differs(format!("has operator `{name}` as {was}, and the job now has {operator}"));
            return Err(error.hint(format!(
                "undo that change to go on from it; or give the operator another name, with which it begins empty, and drop what the old one \
                 had with `--drop-state {name}`; or choose another `--checkpoint-dir`, or begin again with `--fresh`"
            )));
        }
        shape.schemas.check(dir, manifest.epoch, theirs, name, state)?;
    }
    check_sources(dir, manifest, shape)
}

/// Compares what a checkpoint, in the names of the program, says of the input with the job.
pub(crate) fn check_sources(dir: &Path, manifest: &Manifest, shape: &Shape) -> Result<()> {
    let differs = differs(dir, manifest.epoch);
    for (name, splits) in &shape.sources {
        let Some(theirs) = find_source(&manifest.sources, name) else {
            continue;
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
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use millstream_state::manifest::{OperatorEntry, SinkEntry, SourceEntry, SplitEntry};

    pub(crate) fn shape() -> Shape {
        Shape {
            job: "orders".into(),
            operators: vec![("spend".into(), "windows of 1m".into(), "slices of i64".into())],
            sources: vec![("orders".into(), vec!["a.csv".into(), "b.csv".into()])],
            sinks: vec!["out".into()],
            derived: BTreeSet::new(),
            schemas: Schemas::default(),
        }
    }

    pub(crate) fn manifest() -> Manifest {
        let split = |split: &str| SplitEntry { split: split.into(), ..SplitEntry::default() };
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
            split_numbers: 2,
            sinks: vec![SinkEntry { name: "out".into(), kind: "csv files".into(), handles: vec![], digests: None }],
            names: Default::default(),
            files: vec![],
        }
    }

    #[test]
    fn unnamed_operators_that_do_the_same_are_twins() {
        let mut shape = shape();
        for (number, operator, state) in
            [(1, "a", "i64"), (2, "a", "u64"), (3, "a", "i64"), (4, "b", "i64"), (5, "a", "i64")]
        {
            shape.operators.push((format!("fold-{number}"), operator.into(), state.into()));
        }
        assert!(shape.twins().is_empty(), "they have these names from somebody");
        shape.derived = shape.operators.iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!(shape.twins(), [("fold-1", "fold-3"), ("fold-3", "fold-5")]);
        shape.derived.remove("fold-3");
        assert_eq!(shape.twins(), [("fold-1", "fold-5")]);
    }

    #[test]
    fn when_nothing_changed_then_it_fits() {
        let fitted = fit(Path::new("dir"), manifest(), &shape(), &Names::default(), false).expect("fits");
        assert_eq!(fitted, manifest());
    }

    #[test]
    fn every_change_is_named() {
        type Change = fn(&mut Shape);
        let changes: [(&str, Change); 10] = [
            ("belongs to job `orders`, and this is job `refunds`", |s| s.job = "refunds".into()),
            ("has `spend`, which the job no longer has", |s| s.operators[0].0 = "cost".into()),
            ("knows no operator `fold-1`", |s| {
                s.operators.push(("fold-1".into(), "a running value per key".into(), "i64".into()));
                s.derived.insert("fold-1".into());
            }),
            ("as windows of 1m, and the job now has windows of 2m", |s| s.operators[0].1 = "windows of 2m".into()),
            ("was slices of i64 and is now slices of u64", |s| s.operators[0].2 = "slices of u64".into()),
            ("has `orders`, which the job no longer has", |s| s.sources[0].0 = "returns".into()),
            ("has read `b.csv`", |s| s.sources[0].1.truncate(1)),
            ("knows nothing of `c.csv`", |s| s.sources[0].1.push("c.csv".into())),
            ("has `out`, which the job no longer has", |s| s.sinks[0] = "other".into()),
            ("has `spend`, which the job no longer has", |s| s.operators.clear()),
        ];
        for (text, change) in changes {
            let mut shape = shape();
            change(&mut shape);
            let error =
                fit(Path::new("dir"), manifest(), &shape, &Names::default(), false).expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
            assert!(error.contains("checkpoint 7 in dir"), "{error}");
            assert_eq!(error.contains("begins empty"), text.contains("windows of 1m"), "{error}");
        }
    }
}
