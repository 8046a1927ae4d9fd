//! The second step of a file sink: parts appear by being renamed.
//!
//! The directory is locked for as long as the committer lives, by an operating system lock that ends with the process
//! however that ends. Renames are followed by an `fsync` of the directory, so that a commit that returned
//! survives a power failure.
//!
//! **Errors**: `Config` when another sink holds the directory; `State` when it does not fit the checkpoint; `External`
//! when the disk fails.

use std::io;
use std::path::{Path, PathBuf};

use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;
use millstream_runtime::sink::Committer;
use millstream_state::StateError;
use millstream_state::store::{DirLock, sync_dir};

use super::part::{PartName, Plan};

/// Commits the parts of a file sink.
pub(super) struct FileCommitter {
    dir: PathBuf,
    job: String,
    lock: Option<DirLock>,
}

impl FileCommitter {
    /// A committer for `dir`, which is not touched before `lock`.
    pub(super) fn new(dir: PathBuf, job: &str) -> Self {
        FileCommitter { dir, job: job.to_string(), lock: None }
    }

    fn failed(&self, what: &str, e: io::Error) -> Error {
        Error::external(format!("output directory `{}`: {what}", self.dir.display())).because(e)
    }

    fn names(&self) -> Result<Vec<String>> {
        let listed = std::fs::read_dir(&self.dir).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
        });
        let names = listed.map_err(|e| self.failed("it cannot be listed", e))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Moves `later` to a new directory inside this one.
    fn withdraw(&self, later: &[String]) -> Result<()> {
        let failed = |e| self.failed("later output cannot be moved aside", e);
        let mut n = 1_u64;
        let aside = loop {
            let aside = self.dir.join(format!("withdrawn-{n}"));
            match std::fs::create_dir(&aside) {
                Ok(()) => break aside,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
                Err(e) => return Err(failed(e)),
            }
        };
        for name in later {
            std::fs::rename(self.dir.join(name), aside.join(name)).map_err(failed)?;
        }
        sync_dir(&aside)?;
        sync_dir(&self.dir)?;
        tracing::warn!(
            files = later.len(),
            to = %aside.display(),
            "moved committed output aside that is later than the checkpoint"
        );
        Ok(())
    }
}

impl Committer for FileCommitter {
    fn lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            let lock = DirLock::take(&self.dir, &format!("job `{}`", self.job)).map_err(|error| {
                let hint = match error {
                    StateError::Locked { .. } => {
                        "give every file sink a directory of its own, and stop the other job or wait for it"
                    }
                    _ => "it is where a file sink puts its output: give it a directory that can be made and written to",
                };
                Error::from(error).hint(hint)
            })?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    fn recover(&mut self, restored: Option<Epoch>, handles: &[String], withdraw: bool) -> Result<()> {
        self.lock()?;
        let plan = Plan::new(self.names()?, restored, handles);
        if let (Some(first), false) = (plan.later.first(), withdraw) {
            let than = match restored {
                Some(epoch) => format!("later than the checkpoint of epoch {epoch}"),
                None => "of an earlier run, while this one starts fresh".to_string(),
            };
            let more = plan.later.len() - 1;
            let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(Error::state(format!(
                "output directory `{}` has output {than}, which would be doubled: `{first}`{and_more}",
                self.dir.display()
            ))
            .hint(match restored {
                Some(epoch) => format!(
                    "`--from {epoch}` goes on from that checkpoint and `--fresh` begins again; both move these files aside"
                ),
                None => "`--fresh` begins again and moves these files aside; or choose another output directory, or the \
                         checkpoint directory that belongs to this one"
                    .to_string(),
            }));
        }
        self.commit(handles)?;
        for name in &plan.abandoned {
            std::fs::remove_file(self.dir.join(name))
                .map_err(|e| self.failed("a pending part cannot be removed", e))?;
        }
        if !plan.later.is_empty() {
            self.withdraw(&plan.later)?;
        }
        Ok(sync_dir(&self.dir)?)
    }

    fn commit(&mut self, handles: &[String]) -> Result<()> {
        let parts = handles.iter().map(|handle| PartName::from_handle(handle)).collect::<Result<Vec<_>>>()?;
        let mut renamed = false;
        for (handle, part) in handles.iter().zip(&parts) {
            let (pending, committed) = (self.dir.join(handle), self.dir.join(&part.committed));
            let exists = |path: &Path| path.try_exists().map_err(|e| self.failed("a part cannot be looked up", e));
            match (exists(&pending)?, exists(&committed)?) {
                (true, false) => {
                    std::fs::rename(&pending, &committed).map_err(|e| self.failed("a part cannot be renamed", e))?;
                    renamed = true;
                }
                (false, true) => {}
                (true, true) => {
                    return Err(Error::state(format!(
                        "`{}` was committed already, by another execution than the one that prepared `{handle}`",
                        committed.display()
                    ))
                    .hint("the directory was written to from elsewhere: choose another one"));
                }
                (false, false) => {
                    return Err(Error::state(format!(
                        "the output of epoch {} in `{}` was removed after it was prepared: neither `{handle}` nor `{}` \
                         is there",
                        part.epoch,
                        self.dir.display(),
                        part.committed
                    ))
                    .hint("put the file back, choose an earlier checkpoint, or start fresh in another directory"));
                }
            }
        }
        if renamed {
            sync_dir(&self.dir)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::part::pending_name;
    use millstream_runtime::error::ErrorKind;

    fn pending(epoch: Epoch, execution: &str) -> String {
        pending_name(epoch, 0, 0, "csv", execution)
    }

    fn committed(epoch: Epoch) -> String {
        format!("part-e{epoch:010}-w000-0000.csv")
    }

    /// A directory with files of these names, and a committer for it.
    fn with_files(names: &[String]) -> (tempfile::TempDir, FileCommitter) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let committer = FileCommitter::new(dir.path().to_path_buf(), "orders");
        (dir, committer)
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != ".millstream-lock").collect();
        names.sort();
        names
    }

    #[test]
    fn when_a_crash_came_before_the_commit_then_recovery_repeats_it() {
        let handles = [pending(4, "aaaaaaaa"), pending(3, "aaaaaaaa")];
        let (dir, mut committer) = with_files(&[
            committed(3),
            pending(4, "aaaaaaaa"),
            pending(5, "aaaaaaaa"),
            pending(4, "bbbbbbbb"),
            "part-e0000000004-w000-0000.csv.pending-other".to_string(),
            "mine.csv.pending-aaaaaaaa".to_string(),
        ]);
        committer.recover(Some(4), &handles, false).unwrap();
        let kept = [
            "mine.csv.pending-aaaaaaaa".to_string(),
            committed(3),
            committed(4),
            "part-e0000000004-w000-0000.csv.pending-other".to_string(),
        ];
        assert_eq!(names(dir.path()), kept);
    }

    #[test]
    fn later_output_is_refused_and_nothing_is_touched() {
        let files = [committed(4), committed(5), committed(6), pending(7, "aaaaaaaa")];
        let (dir, mut committer) = with_files(&files);
        let error = committer.recover(Some(4), &[], false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains(&format!("`{}` and 1 more", committed(5))), "{error}");
        assert!(error.to_string().contains("--fresh"), "{error}");
        assert_eq!(names(dir.path()), files);
        drop(committer);
        let error = FileCommitter::new(dir.path().to_path_buf(), "orders").recover(None, &[], false).unwrap_err();
        assert!(error.to_string().contains(&committed(4)), "{error}");
    }

    #[test]
    fn later_output_is_moved_aside_on_request() {
        let (dir, mut committer) = with_files(&[committed(4), committed(5), committed(6)]);
        committer.recover(Some(4), &[], true).unwrap();
        assert_eq!(names(dir.path()), [committed(4), "withdrawn-1".to_string()]);
        assert_eq!(names(&dir.path().join("withdrawn-1")), [committed(5), committed(6)]);
        drop(committer);
        FileCommitter::new(dir.path().to_path_buf(), "orders").recover(None, &[], true).unwrap();
        assert_eq!(names(&dir.path().join("withdrawn-2")), [committed(4)]);
    }

    #[test]
    fn a_directory_has_one_holder() {
        let (dir, mut committer) = with_files(&[]);
        committer.recover(None, &[], false).unwrap();
        let mut second = FileCommitter::new(dir.path().to_path_buf(), "other");
        let error = second.recover(None, &[], false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let holder = format!("job `orders`, process {}, which is this one", std::process::id());
        assert!(error.to_string().contains(&holder), "{error}");
        drop(committer);
        second.recover(None, &[], false).unwrap();
        let text = std::fs::read_to_string(dir.path().join(".millstream-lock")).unwrap();
        assert_eq!(text, format!("job `other`, process {}\n", std::process::id()));
    }

    #[test]
    fn handles_that_are_no_part_files_are_refused_before_anything_is_renamed() {
        let (dir, mut committer) = with_files(&[pending(1, "aaaaaaaa")]);
        for wrong in ["../x", "/etc/passwd", "", "part-e0000000001-w000-0000.csv"] {
            let error = committer.commit(&[pending(1, "aaaaaaaa"), wrong.to_string()]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::State, "{error}");
        }
        assert_eq!(names(dir.path()), [pending(1, "aaaaaaaa")]);
    }

    #[test]
    fn prepared_output_that_is_gone_is_an_error() {
        let (_dir, mut committer) = with_files(&[]);
        let error = committer.commit(&[pending(9, "aaaaaaaa")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains("epoch 9"), "{error}");
    }

    #[test]
    fn when_both_names_exist_then_nothing_is_overwritten() {
        let (dir, mut committer) = with_files(&[pending(2, "aaaaaaaa"), committed(2)]);
        assert!(committer.commit(&[pending(2, "aaaaaaaa")]).is_err());
        assert_eq!(names(dir.path()).len(), 2);
    }
}
