//! Decisions about checkpoints: which one to restore, and which to delete. Pure: no I/O here.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::manifest::Manifest;

/// A checkpoint as it was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its epoch.
    pub epoch: u64,
    /// Whether it can be used.
    pub health: Health,
}

/// Whether a checkpoint can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Its manifest and all its files are as they should be.
    Intact {
        /// Whether the job had come to its end.
        finished: bool,
    },
    /// Something is missing or wrong; the text names the file.
    Damaged(String),
}

/// What the user wants to start from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// The newest checkpoint; if it is damaged, refuse. A fresh start where there is none.
    #[default]
    Newest,
    /// The newest checkpoint that is intact, even if damaged ones are newer.
    NewestIntact,
    /// This checkpoint.
    Epoch(u64),
    /// Nothing: begin again, and set aside what is there.
    Fresh,
    /// The savepoint in this directory, which becomes the newest checkpoint; refuse if there are newer ones, or output that is.
    Savepoint(PathBuf),
    /// The savepoint in this directory: begin again from it, and set aside checkpoints, and output after it, that are there.
    FreshFromSavepoint(PathBuf),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Begin without state.
    Fresh,
    /// Restore this checkpoint. `passed_over` are the newer ones that will be set aside.
    Restore {
        /// Which.
        epoch: u64,
        /// Newer checkpoints that will no longer count.
        passed_over: Vec<u64>,
    },
    /// The job is at its end; there is nothing to run.
    Finished {
        /// The last checkpoint.
        epoch: u64,
    },
    /// Do not start.
    Refuse(Refusal),
}

/// Why a job does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The checkpoint to start from is damaged. `intact` is the newest that is not.
    Damaged {
        /// Which.
        epoch: u64,
        /// What is wrong with it.
        reason: String,
        /// What could be used instead.
        intact: Option<u64>,
    },
    /// There is no such checkpoint.
    Missing {
        /// Which was asked for.
        epoch: u64,
        /// What there is.
        present: Vec<u64>,
    },
}

/// What becomes of a savepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// Copy it in; `set_aside` no longer count.
    Copy {
        /// Which checkpoints to set aside.
        set_aside: Vec<u64>,
    },
    /// The checkpoint that it was made of is there, or the copy that an earlier start made.
    There,
    /// Do not start: these checkpoints are newer.
    Bury {
        /// Which.
        newer: Vec<u64>,
    },
}

/// What becomes of a savepoint when these checkpoints are there; one without a manifest is damaged. Newer is what has a later epoch, and
/// also what was written later: then it comes from another run, whose epochs may be behind.
pub fn decide_import(present: &[(u64, Option<Manifest>)], savepoint: &Manifest, fresh: bool) -> Import {
    if fresh {
        return Import::Copy { set_aside: present.iter().map(|(epoch, _)| *epoch).collect() };
    }
    let same = |manifest: &Manifest| {
        (manifest.epoch, &manifest.execution, manifest.written_ms)
            == (savepoint.epoch, &savepoint.execution, savepoint.written_ms)
    };
    let is_newer = |(epoch, manifest): &&(u64, Option<Manifest>)| match manifest {
        Some(manifest) => !same(manifest) && (*epoch >= savepoint.epoch || manifest.written_ms > savepoint.written_ms),
        None => true,
    };
    let newer: Vec<u64> = present.iter().filter(is_newer).map(|(epoch, _)| *epoch).collect();
    match newer.is_empty() {
        false => Import::Bury { newer },
        true if present.iter().any(|(_, manifest)| manifest.as_ref().is_some_and(same)) => Import::There,
        true => Import::Copy { set_aside: Vec::new() },
    }
}

/// Chooses from the checkpoints that were found, in any order. A savepoint is none of them; see [`decide_import`].
pub fn decide(found: &[Found], from: StartFrom) -> Decision {
    let mut found: Vec<&Found> = found.iter().collect();
    found.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.epoch));
    let intact = |checkpoint: &&&Found| matches!(checkpoint.health, Health::Intact { .. });
    let newest_intact = found.iter().find(intact).map(|checkpoint| checkpoint.epoch);
    let chosen = match from {
        StartFrom::Fresh | StartFrom::Savepoint(_) | StartFrom::FreshFromSavepoint(_) => return Decision::Fresh,
        StartFrom::Newest => found.first(),
        // Damaged ones alone are no reason to begin again unasked: the newest is then named as damaged.
        StartFrom::NewestIntact => found.iter().find(intact).or(found.first()),
        StartFrom::Epoch(epoch) => match found.iter().find(|checkpoint| checkpoint.epoch == epoch) {
            Some(checkpoint) => Some(checkpoint),
            None => {
                let present = found.iter().rev().map(|checkpoint| checkpoint.epoch).collect();
                return Decision::Refuse(Refusal::Missing { epoch, present });
            }
        },
    };
    let Some(chosen) = chosen else { return Decision::Fresh };
    let newest = found.first().is_some_and(|first| first.epoch == chosen.epoch);
    match &chosen.health {
        Health::Damaged(reason) => {
            Decision::Refuse(Refusal::Damaged { epoch: chosen.epoch, reason: reason.clone(), intact: newest_intact })
        }
        Health::Intact { finished: true } if newest => Decision::Finished { epoch: chosen.epoch },
        Health::Intact { .. } => Decision::Restore {
            epoch: chosen.epoch,
            passed_over: found.iter().map(|checkpoint| checkpoint.epoch).filter(|e| *e > chosen.epoch).collect(),
        },
    }
}

/// How long checkpoints are kept. The newest is always kept, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many are kept, however old.
    pub count: usize,
    /// So are all that were written within this time.
    pub age: Option<Duration>,
    /// But never more than this many bytes: beyond it the oldest go, whatever the other two say.
    pub bytes: Option<u64>,
}

impl Retention {
    /// The newest so many.
    pub fn newest(count: usize) -> Retention {
        Retention { count, age: None, bytes: None }
    }
}

/// A checkpoint as far as it matters for whether it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its epoch.
    pub epoch: u64,
    /// How long ago it was written.
    pub age: Duration,
    /// Its files, each with its size in bytes. Checkpoints share files: the same file has the same identity in all of them.
    pub files: Vec<(FileIdentity, u64)>,
}

/// What tells one file from another, wherever it is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity(pub u64, pub u64);

/// Which checkpoints to delete, oldest first.
pub fn collectable(kept: &[Kept], retention: &Retention) -> Vec<u64> {
    let mut newest_first: Vec<&Kept> = kept.iter().collect();
    newest_first.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.epoch));
    let mut counted = HashSet::new();
    let mut bytes = 0u64;
    let mut delete = Vec::new();
    for (place, checkpoint) in newest_first.into_iter().enumerate() {
        let young = retention.age.is_some_and(|age| checkpoint.age <= age);
        // Once one is too much, those before it go as well: what is kept has no gaps.
        let mut wanted = delete.is_empty() && (place < retention.count.max(1) || young);
        if wanted && let Some(limit) = retention.bytes {
            let own = checkpoint.files.iter().filter(|(file, _)| counted.insert(*file));
            bytes = own.fold(bytes, |sum, (_, size)| sum.saturating_add(*size));
            wanted = bytes <= limit || place == 0;
        }
        if !wanted {
            delete.push(checkpoint.epoch);
        }
    }
    delete.reverse();
    delete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intact(epoch: u64) -> Found {
        Found { epoch, health: Health::Intact { finished: false } }
    }

    fn damaged(epoch: u64) -> Found {
        Found { epoch, health: Health::Damaged("manifest".into()) }
    }

    #[test]
    fn when_nothing_is_there_then_a_fresh_start() {
        assert_eq!(decide(&[], StartFrom::Newest), Decision::Fresh);
        assert_eq!(decide(&[], StartFrom::NewestIntact), Decision::Fresh);
        let missing = Refusal::Missing { epoch: 3, present: vec![] };
        assert_eq!(decide(&[], StartFrom::Epoch(3)), Decision::Refuse(missing));
    }

    #[test]
    fn when_the_newest_is_intact_then_it_is_restored() {
        let restore = Decision::Restore { epoch: 9, passed_over: vec![] };
        assert_eq!(decide(&[intact(7), intact(9), damaged(8)], StartFrom::Newest), restore);
    }

    #[test]
    fn when_the_newest_is_damaged_then_only_a_wish_passes_over_it() {
        let found = [intact(7), damaged(8), damaged(9)];
        let refusal = Refusal::Damaged { epoch: 9, reason: "manifest".into(), intact: Some(7) };
        assert_eq!(decide(&found, StartFrom::Newest), Decision::Refuse(refusal));
        let restore = Decision::Restore { epoch: 7, passed_over: vec![9, 8] };
        assert_eq!(decide(&found, StartFrom::NewestIntact), restore);
        assert_eq!(decide(&found, StartFrom::Epoch(7)), restore);
        assert!(matches!(decide(&found, StartFrom::Epoch(8)), Decision::Refuse(Refusal::Damaged { epoch: 8, .. })));
    }

    #[test]
    fn when_all_are_damaged_then_never_a_silent_fresh_start() {
        for from in [StartFrom::Newest, StartFrom::NewestIntact] {
            let decision = decide(&[damaged(1), damaged(2)], from);
            assert!(matches!(decision, Decision::Refuse(Refusal::Damaged { epoch: 2, intact: None, .. })));
        }
    }

    #[test]
    fn when_the_job_is_finished_then_nothing_runs_unless_asked() {
        let finished = Found { epoch: 9, health: Health::Intact { finished: true } };
        assert_eq!(decide(&[intact(8), finished.clone()], StartFrom::Newest), Decision::Finished { epoch: 9 });
        let restore = Decision::Restore { epoch: 8, passed_over: vec![9] };
        assert_eq!(decide(&[intact(8), finished.clone()], StartFrom::Epoch(8)), restore);
        assert_eq!(decide(std::slice::from_ref(&finished), StartFrom::Fresh), Decision::Fresh);
        // Something newer is there, so the job had not finished for good.
        let restore = Decision::Restore { epoch: 9, passed_over: vec![10] };
        assert_eq!(decide(&[finished, damaged(10)], StartFrom::NewestIntact), restore);
    }

    /// A checkpoint that was written so many seconds ago, with files of so many bytes.
    fn kept(epoch: u64, age_s: u64, files: &[(u64, u64)]) -> Kept {
        let files = files.iter().map(|(file, size)| (FileIdentity(0, *file), *size)).collect();
        Kept { epoch, age: Duration::from_secs(age_s), files }
    }

    fn plain(epochs: &[u64]) -> Vec<Kept> {
        epochs.iter().map(|epoch| kept(*epoch, 0, &[])).collect()
    }

    #[test]
    fn a_savepoint_never_buries_what_is_newer_unasked() {
        let at = |epoch, execution: &str, written_ms| {
            let example = crate::manifest::tests::example(epoch);
            Manifest { execution: execution.into(), written_ms, ..example }
        };
        let savepoint = at(7, "aaaaaaaa", 700);
        let decide = |present: &[(u64, Option<Manifest>)]| decide_import(present, &savepoint, false);
        let copy = Import::Copy { set_aside: vec![] };
        assert_eq!(decide(&[]), copy);
        assert_eq!(decide(&[(5, Some(at(5, "aaaaaaaa", 500)))]), copy);
        // Within the same millisecond.
        assert_eq!(decide(&[(5, Some(at(5, "aaaaaaaa", 700)))]), copy);
        assert_eq!(decide(&[(5, Some(at(5, "aaaaaaaa", 500))), (7, Some(savepoint.clone()))]), Import::There);
        for (epoch, other) in [
            (8, Some(at(8, "aaaaaaaa", 800))),
            (8, Some(at(8, "bbbbbbbb", 600))),
            (7, Some(at(7, "bbbbbbbb", 600))),
            (3, Some(at(3, "bbbbbbbb", 900))),
            (3, None),
        ] {
            assert_eq!(decide(&[(epoch, other.clone())]), Import::Bury { newer: vec![epoch] }, "{other:?}");
            let both = [(epoch, other), (7, Some(savepoint.clone()))];
            assert!(matches!(decide(&both), Import::Bury { .. }));
            assert_eq!(decide_import(&both, &savepoint, true), Import::Copy { set_aside: vec![epoch, 7] });
        }
    }

    #[test]
    fn the_newest_are_kept_and_never_none() {
        assert_eq!(collectable(&plain(&[5, 3, 4, 9]), &Retention::newest(3)), vec![3]);
        assert_eq!(collectable(&plain(&[5, 3]), &Retention::newest(3)), Vec::<u64>::new());
        assert_eq!(collectable(&plain(&[5, 3]), &Retention::newest(0)), vec![3]);
        assert_eq!(collectable(&[], &Retention::newest(0)), Vec::<u64>::new());
    }

    #[test]
    fn the_young_are_kept_beside_the_newest() {
        let found = [kept(1, 90, &[]), kept(2, 60, &[]), kept(3, 30, &[]), kept(4, 5, &[])];
        let by =
            |count, age| collectable(&found, &Retention { count, age: Some(Duration::from_secs(age)), bytes: None });
        assert_eq!(by(1, 60), [1]);
        assert_eq!(by(1, 59), [1, 2]);
        assert_eq!(by(3, 10), [1]);
        assert_eq!(by(1, 0), [1, 2, 3]);
    }

    #[test]
    fn shared_files_count_once_and_the_newest_stays_however_large() {
        let found = [kept(1, 0, &[(1, 10), (2, 10)]), kept(2, 0, &[(2, 10), (3, 10)]), kept(3, 0, &[(3, 10), (4, 5)])];
        let by = |bytes| collectable(&found, &Retention { count: 9, age: None, bytes: Some(bytes) });
        assert_eq!(by(35), [0; 0]);
        assert_eq!(by(34), [1]);
        assert_eq!(by(25), [1]);
        assert_eq!(by(24), [1, 2]);
        assert_eq!(by(0), [1, 2]);
    }

    #[test]
    fn when_one_is_too_large_then_none_before_it_is_kept() {
        let found = [kept(1, 0, &[]), kept(2, 0, &[(1, 100)]), kept(3, 0, &[(2, 10)])];
        assert_eq!(collectable(&found, &Retention { count: 9, age: None, bytes: Some(50) }), [1, 2]);
    }
}
