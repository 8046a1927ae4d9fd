//! The checkpoint directory: its layout, its lock, and the order in which things become durable.
//!
//! ```text
//! DIR/.millstream-lock                    held while a job runs
//!     epoch-0000000012/manifest           its appearance is the commit
//!                      committed          its output has been committed
//!                      db/                hard links to the files of that epoch
//!     live-0a1b2c3d/                      the database of the running process, deleted at the next start
//!     aside-0a1b2c3d/epoch-0000000013/    checkpoints that were passed over by a wish of the user
//!     journal.jsonl, set-aside.jsonl      what became of the job, and which records it leaves out (see the runtime)
//!     savepoints/epoch-0000000014-…/       savepoints that were asked for by a signal; nothing here is ever deleted
//! ```
//! A directory `epoch-N` without a manifest is a checkpoint that never was, and is deleted at the next start.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::checkpoint::{FileIdentity, Found, Health, Kept, Retention, collectable};
use crate::held::{COMMITTED, DB, Held, MANIFEST, read_manifest};
use crate::manifest::Manifest;
use crate::{Result, StateError};

const LOCK: &str = ".millstream-lock";

/// The lock on a directory; released when dropped, or when the process dies however it does.
#[derive(Debug)]
pub struct DirLock {
    file: File,
}

impl DirLock {
    /// Takes the lock of `dir` (which is created if missing) and writes who has it into it: `holder` and this process.
    ///
    /// # Errors
    /// [`StateError::Locked`], naming the holder, when another job has it.
    pub fn take(dir: &Path, holder: &str) -> Result<DirLock> {
        create_dirs(dir)?;
        let path = dir.join(LOCK);
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(StateError::io("open", &path))?;
        let process = format!("process {}", std::process::id());
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                // What the file says only helps the reader of the message.
                let _ = file.read_to_string(&mut text);
                let mut holder = if text.is_empty() { "another process" } else { text.trim() }.to_string();
                if holder.ends_with(&process) {
                    holder.push_str(", which is this one");
                }
                return Err(StateError::Locked { path: dir.to_path_buf(), holder });
            }
            Err(fs::TryLockError::Error(error)) => return Err(StateError::io("lock", &path)(error)),
        }
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{holder}, {process}"));
        written.map_err(StateError::io("write", &path))?;
        Ok(DirLock { file })
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is being started has a copy of it until it runs its program.
        let _ = self.file.unlock();
    }
}

/// A directory of checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    dir: PathBuf,
}

impl CheckpointStore {
    /// The checkpoints in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        CheckpointStore { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of one checkpoint.
    pub fn epoch_dir(&self, epoch: u64) -> PathBuf {
        self.dir.join(epoch_name(epoch))
    }

    /// The database directory of one checkpoint.
    pub fn db_dir(&self, epoch: u64) -> PathBuf {
        self.epoch_dir(epoch).join(DB)
    }

    /// The manifest file of one checkpoint.
    pub fn manifest_path(&self, epoch: u64) -> PathBuf {
        self.epoch_dir(epoch).join(MANIFEST)
    }

    /// The live database directory of the start `execution`.
    pub fn live_dir(&self, execution: &str) -> PathBuf {
        self.dir.join(format!("live-{execution}"))
    }

    /// The epochs of all published checkpoints, oldest first. An empty list when the directory does not exist.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn epochs(&self) -> Result<Vec<u64>> {
        let mut epochs = Vec::new();
        for name in names(&self.dir)? {
            if let Some(epoch) = epoch_of(&name)
                && self.is_published(epoch)?
            {
                epochs.push(epoch);
            }
        }
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// An error is not the same as a manifest that is not there.
    fn is_published(&self, epoch: u64) -> Result<bool> {
        let path = self.manifest_path(epoch);
        path.try_exists().map_err(StateError::io("look up", path))
    }

    /// Reads one manifest.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn manifest(&self, epoch: u64) -> Result<Manifest> {
        let path = self.manifest_path(epoch);
        let manifest = read_manifest(&self.epoch_dir(epoch)).map_err(|error| match error {
            StateError::Mismatch { path, reason, .. } => StateError::Mismatch { epoch, path, reason },
            other => other,
        })?;
        if manifest.epoch != epoch {
            return Err(StateError::damaged(path, format!("it is the manifest of epoch {}", manifest.epoch)));
        }
        Ok(manifest)
    }

    /// Reads a whole checkpoint and compares every file with its size and checksum.
    ///
    /// # Errors
    /// The first thing that is wrong, naming the file.
    pub fn verify(&self, epoch: u64) -> Result<Manifest> {
        let held = self.held(epoch)?;
        held.verify()?;
        Ok(held.manifest().clone())
    }

    /// Opens a checkpoint and all its files, so that it can be read even when it is deleted meanwhile.
    ///
    /// # Errors
    /// When one is missing or has another size, or the manifest is damaged.
    pub fn held(&self, epoch: u64) -> Result<Held> {
        Held::of(&self.epoch_dir(epoch), self.manifest(epoch)?)
    }

    /// Reads a whole checkpoint to see whether it can be used.
    ///
    /// # Errors
    /// When that cannot be found out. Damage is not an error here, but a failing disk or a newer format is no damage.
    pub fn health(&self, epoch: u64) -> Result<Health> {
        match self.verify(epoch) {
            Ok(manifest) => Ok(Health::Intact { finished: manifest.finished }),
            Err(error @ (StateError::Damaged { .. } | StateError::Codec { .. })) => {
                Ok(Health::Damaged(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// All checkpoints with their health.
    ///
    /// # Errors
    /// As [`health`](Self::health), or when the directory cannot be listed.
    pub fn survey(&self) -> Result<Vec<Found>> {
        let found = |epoch| Ok(Found { epoch, health: self.health(epoch)? });
        self.epochs()?.into_iter().map(found).collect()
    }

    /// Deletes what earlier starts left behind: live databases, and checkpoints that were never published.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn sweep(&self) -> Result<()> {
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            let unpublished = match epoch_of(&name) {
                Some(epoch) => !self.is_published(epoch)?,
                None => false,
            };
            if (unpublished || is_live(&name)) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(StateError::io("delete", path))?;
            }
        }
        Ok(())
    }

    /// Moves checkpoints out of the way, so that they no longer count but are not lost.
    ///
    /// # Errors
    /// When one cannot be moved.
    pub fn set_aside(&self, epochs: &[u64], execution: &str) -> Result<()> {
        if epochs.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = epochs.iter().map(|epoch| epoch_name(*epoch)).collect();
        self.move_aside(&names, execution)
    }

    /// Moves a file of the directory to where [`set_aside`](Self::set_aside) moves checkpoints, if it is there.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_file_aside(&self, name: &str, execution: &str) -> Result<()> {
        let from = self.dir.join(name);
        if !from.try_exists().map_err(StateError::io("look up", &from))? {
            return Ok(());
        }
        self.move_aside(&[name.to_string()], execution)
    }

    fn move_aside(&self, names: &[String], execution: &str) -> Result<()> {
        let aside = self.dir.join(format!("aside-{execution}"));
        fs::create_dir_all(&aside).map_err(StateError::io("create", &aside))?;
        for name in names {
            let from = self.dir.join(name);
            fs::rename(&from, aside.join(name)).map_err(StateError::io("move", from))?;
        }
        sync_dir(&aside)?;
        sync_dir(&self.dir)
    }

    /// Publishes the manifest of an epoch whose `db` directory is complete and durable: writes it beside its place, makes
    /// that durable, and renames it into place. When this returns, the checkpoint exists, whatever happens next.
    ///
    /// # Errors
    /// When a step fails; the checkpoint then does not count, and must not be reported as taken.
    pub fn publish(&self, manifest: &Manifest) -> Result<()> {
        publish_in(&self.epoch_dir(manifest.epoch), manifest)
    }

    /// Notes that all output of a checkpoint has been committed, so that nobody commits it again: whoever reads it may have
    /// taken it away since.
    ///
    /// # Errors
    /// When the note cannot be made durable; the commit is then repeated at the next start.
    pub fn note_committed(&self, epoch: u64) -> Result<()> {
        let note = self.epoch_dir(epoch).join(COMMITTED);
        File::create(&note).map_err(StateError::io("create", &note))?;
        sync_dir(&self.epoch_dir(epoch))
    }

    /// Whether all output of a checkpoint has been committed, for certain.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn is_committed(&self, epoch: u64) -> Result<bool> {
        let note = self.epoch_dir(epoch).join(COMMITTED);
        note.try_exists().map_err(StateError::io("look up", note))
    }

    /// Deletes the checkpoints that `retention` does not keep; `now_ms` is the wall clock's, in milliseconds since 1970. One that
    /// somebody [holds](Self::hold) stays until the next time. One that cannot be deleted is only in the way, and is left with
    /// a warning.
    ///
    /// # Errors
    /// When the checkpoints cannot be listed.
    pub fn prune(&self, retention: &Retention, now_ms: u64) -> Result<()> {
        let kept: Vec<Kept> =
            self.epochs()?.into_iter().map(|epoch| self.kept(epoch, retention, now_ms)).collect::<Result<_>>()?;
        for old in collectable(&kept, retention) {
            if let Err(error) = self.delete(old) {
                tracing::warn!(epoch = old, "an old checkpoint cannot be deleted: {error}");
            }
        }
        Ok(())
    }

    /// Looks at a checkpoint as far as `retention` asks: there may be thousands.
    fn kept(&self, epoch: u64, retention: &Retention, now_ms: u64) -> Result<Kept> {
        let mut kept = Kept { epoch, age: Duration::ZERO, files: Vec::new() };
        if retention.age.is_some() {
            let path = self.manifest_path(epoch);
            let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let written = written.map_err(StateError::io("look up", &path))?;
            let written = written.duration_since(UNIX_EPOCH).unwrap_or_default();
            kept.age = Duration::from_millis(now_ms).saturating_sub(written);
        }
        if retention.bytes.is_some() {
            for dir in [self.epoch_dir(epoch), self.db_dir(epoch)] {
                for entry in fs::read_dir(&dir).map_err(StateError::io("list", &dir))? {
                    let metadata = entry.and_then(|entry| entry.metadata()).map_err(StateError::io("list", &dir))?;
                    if metadata.is_file() {
                        let unlike_all = FileIdentity(epoch, kept.files.len() as u64);
                        kept.files.push((identity(&metadata).unwrap_or(unlike_all), metadata.len()));
                    }
                }
            }
        }
        Ok(kept)
    }

    /// Keeps a checkpoint from being deleted, by whichever process, for as long as the result lives. Changes nothing on disk.
    ///
    /// # Errors
    /// When there is no such checkpoint, or it is being deleted right now.
    pub fn hold(&self, epoch: u64) -> Result<Hold> {
        let path = self.manifest_path(epoch);
        let file = File::open(&path).map_err(StateError::io("open", &path))?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StateError::damaged(path, "it is being deleted")),
            Err(fs::TryLockError::Error(error)) => return Err(StateError::io("lock", path)(error)),
        }
        // It may have been deleted between the two.
        if !self.is_published(epoch)? {
            return Err(StateError::damaged(path, "it was deleted just now"));
        }
        Ok(Hold { file })
    }

    /// Deletes a checkpoint: its manifest first, so that a half-deleted one does not count. One that somebody holds is left.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self, epoch: u64) -> Result<()> {
        let manifest = self.manifest_path(epoch);
        // Some file systems lock only what may be written.
        let file = File::options().read(true).write(true).open(&manifest);
        let file = file.map_err(StateError::io("open", &manifest))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                tracing::debug!(epoch, "an old checkpoint is held by somebody who reads it: it is deleted later");
                return Ok(());
            }
            Err(fs::TryLockError::Error(error)) => return Err(StateError::io("lock", manifest)(error)),
        }
        fs::remove_file(&manifest).map_err(StateError::io("delete", manifest))?;
        let dir = self.epoch_dir(epoch);
        fs::remove_dir_all(&dir).map_err(StateError::io("delete", dir))
    }
}

/// Publishes a manifest in `dir`; see [`CheckpointStore::publish`].
pub(crate) fn publish_in(dir: &Path, manifest: &Manifest) -> Result<()> {
    let (draft, path) = (dir.join("manifest.draft"), dir.join(MANIFEST));
    let bytes = manifest.to_bytes()?;
    let mut file = File::create(&draft).map_err(StateError::io("create", &draft))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(StateError::io("write", &draft))?;
    // The files in `db`, the directory itself and its name are durable before the manifest that vouches for them.
    sync_dir(&dir.join(DB))?;
    sync_dir(dir)?;
    sync_dir(parent(dir))?;
    fs::rename(&draft, &path).map_err(StateError::io("publish", &path))?;
    sync_dir(dir)
}

/// Keeps a checkpoint from being deleted; see [`CheckpointStore::hold`].
#[derive(Debug)]
pub struct Hold {
    file: File,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // As with [`DirLock`].
        let _ = self.file.unlock();
    }
}

#[cfg(unix)]
#[allow(clippy::unnecessary_wraps)] // elsewhere there is none
fn identity(metadata: &fs::Metadata) -> Option<FileIdentity> {
    use std::os::unix::fs::MetadataExt;
    Some(FileIdentity(metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_metadata: &fs::Metadata) -> Option<FileIdentity> {
    None
}

/// The epoch of a checkpoint's directory; only names that we give count.
fn epoch_name(epoch: u64) -> String {
    format!("epoch-{epoch:010}")
}

fn epoch_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("epoch-")?;
    let epoch = digits.parse().ok()?;
    (format!("{epoch:010}") == digits).then_some(epoch)
}

fn is_live(name: &str) -> bool {
    let token = name.strip_prefix("live-");
    token.is_some_and(|token| token.len() == 8 && token.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The names in `dir`; none when it does not exist.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StateError::io("list", dir)(error)),
    };
    let names: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect();
    Ok(names.map_err(StateError::io("list", dir))?.into_iter().flatten().collect())
}

/// The directory in which `path` is.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Makes a directory, and those that are missing above it, durably.
///
/// # Errors
/// When one cannot be made.
pub(crate) fn create_dirs(dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for path in dir.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        if path.try_exists().map_err(StateError::io("look up", path))? {
            break;
        }
        missing.push(path);
    }
    fs::create_dir_all(dir).map_err(StateError::io("create", dir))?;
    missing.into_iter().try_for_each(|made| sync_dir(parent(made)))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// When the system refuses.
pub fn sync_dir(dir: &Path) -> Result<()> {
    // Elsewhere a directory cannot be opened as a file.
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StateError::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::FileEntry;
    use crate::manifest::tests::example;
    use crate::rocks::StateDb;

    fn store() -> (tempfile::TempDir, CheckpointStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(dir.path());
        (dir, store)
    }

    /// Publishes a checkpoint of an empty database.
    fn publish(store: &CheckpointStore, epoch: u64) -> Manifest {
        let live = store.live_dir(&format!("{epoch}"));
        let mut db = StateDb::create(&live, 1 << 20).unwrap();
        fs::create_dir_all(store.epoch_dir(epoch)).unwrap();
        let mut manifest = example(epoch);
        manifest.files = db.checkpoint(&store.db_dir(epoch)).unwrap();
        drop(db);
        fs::remove_dir_all(live).unwrap();
        store.publish(&manifest).unwrap();
        manifest
    }

    /// All paths below the directory.
    fn tree(dir: &Path) -> Vec<String> {
        let mut all = Vec::new();
        let mut todo = vec![dir.to_path_buf()];
        while let Some(next) = todo.pop() {
            for entry in fs::read_dir(&next).unwrap() {
                let path = entry.unwrap().path();
                all.push(path.strip_prefix(dir).unwrap().display().to_string());
                if path.is_dir() {
                    todo.push(path);
                }
            }
        }
        all.sort();
        all
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_checkpoints() {
        let (dir, _) = store();
        let store = CheckpointStore::new(dir.path().join("not").join("there"));
        assert_eq!(store.epochs().unwrap(), [0; 0]);
        assert!(store.survey().unwrap().is_empty());
        store.sweep().unwrap();
        assert!(!store.dir().exists());
    }

    #[test]
    fn a_checkpoint_is_there_from_its_manifest_on() {
        let (_dir, store) = store();
        for epoch in [3, 12_345_678_901, 2] {
            publish(&store, epoch);
        }
        fs::create_dir_all(store.db_dir(9)).unwrap();
        fs::write(store.epoch_dir(9).join("manifest.draft"), "not yet").unwrap();
        fs::write(store.dir().join("notes.txt"), "of the user").unwrap();
        fs::create_dir(store.dir().join("epoch-x")).unwrap();
        assert_eq!(store.epochs().unwrap(), [2, 3, 12_345_678_901]);
        let found = store.survey().unwrap();
        assert!(found.iter().all(|found| found.health == Health::Intact { finished: false }), "{found:?}");
        assert_eq!(store.manifest(3).unwrap(), store.verify(3).unwrap());
        assert!(!store.epoch_dir(3).join("manifest.draft").exists());
        assert!(store.manifest(9).is_err());
    }

    #[test]
    fn sweeping_takes_what_never_was_and_nothing_else() {
        let (dir, store) = store();
        publish(&store, 1);
        store.set_aside(&[1], "0a1b2c3d").unwrap();
        publish(&store, 2);
        fs::write(store.dir().join("notes.txt"), "of the user").unwrap();
        fs::write(store.dir().join("live-ffffffff"), "of the user").unwrap();
        fs::create_dir_all(store.dir().join("epoch-5")).unwrap();
        for name in ["live-music", "live-concerts", "live-concert", "live-bee"] {
            fs::create_dir_all(store.dir().join(name)).unwrap();
        }
        let before = tree(dir.path());
        fs::create_dir_all(store.db_dir(3)).unwrap();
        fs::write(store.epoch_dir(3).join("manifest.draft"), "not yet").unwrap();
        fs::create_dir_all(store.live_dir("eeeeeeee")).unwrap();
        fs::write(store.live_dir("eeeeeeee").join("LOCK"), "").unwrap();
        store.sweep().unwrap();
        assert_eq!(tree(dir.path()), before);
        store.sweep().unwrap();
        assert_eq!(tree(dir.path()), before);
    }

    #[test]
    fn what_is_set_aside_is_not_lost() {
        let (dir, store) = store();
        for epoch in [1, 2, 3] {
            publish(&store, epoch);
        }
        store.set_aside(&[], "11111111").unwrap();
        store.set_aside(&[2, 3], "22222222").unwrap();
        assert_eq!(store.epochs().unwrap(), [1]);
        let aside = CheckpointStore::new(dir.path().join("aside-22222222"));
        assert_eq!(aside.epochs().unwrap(), [2, 3]);
        aside.verify(3).unwrap();
        assert!(!dir.path().join("aside-11111111").exists());
        assert!(store.set_aside(&[7], "33333333").is_err(), "there is no such checkpoint");
        fs::write(dir.path().join("records"), "bad").unwrap();
        for _ in 0..2 {
            // The second time there is nothing to move.
            store.set_file_aside("records", "44444444").unwrap();
            assert!(!dir.path().join("records").exists());
            assert_eq!(fs::read_to_string(dir.path().join("aside-44444444/records")).unwrap(), "bad");
        }
    }

    #[test]
    fn a_survey_says_of_each_how_it_is() {
        let (_dir, store) = store();
        publish(&store, 1);
        publish(&store, 2);
        fs::write(store.manifest_path(2), "no manifest").unwrap();
        let found = store.survey().unwrap();
        assert_eq!(found.iter().map(|found| found.epoch).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found[0].health, Health::Intact { finished: false });
        assert!(matches!(&found[1].health, Health::Damaged(reason) if reason.contains("manifest")), "{found:?}");
    }

    #[test]
    fn what_is_deleted_is_gone_and_half_of_it_does_not_count() {
        let (_dir, store) = store();
        publish(&store, 1);
        publish(&store, 2);
        store.delete(1).unwrap();
        assert_eq!(store.epochs().unwrap(), [2]);
        assert!(!store.epoch_dir(1).exists());
        assert!(store.delete(1).is_err());
        // As after a crash between the two steps.
        fs::remove_file(store.manifest_path(2)).unwrap();
        assert_eq!(store.epochs().unwrap(), [0; 0]);
        store.sweep().unwrap();
        assert!(!store.epoch_dir(2).exists());
    }

    #[test]
    fn what_is_held_outlives_its_time() {
        let (_dir, store) = store();
        for epoch in 1..=4 {
            publish(&store, epoch);
        }
        let (hold, again) = (store.hold(1).unwrap(), store.hold(1).unwrap());
        store.prune(&Retention::newest(1), 0).unwrap();
        assert_eq!(store.epochs().unwrap(), [1, 4]);
        store.verify(1).unwrap();
        drop(hold);
        store.prune(&Retention::newest(1), 0).unwrap();
        assert_eq!(store.epochs().unwrap(), [1, 4]);
        drop(again);
        store.prune(&Retention::newest(1), 0).unwrap();
        assert_eq!(store.epochs().unwrap(), [4]);
        assert!(store.hold(1).is_err(), "there is no such checkpoint");
    }

    #[test]
    fn age_and_size_are_those_on_disk() {
        let (_dir, store) = store();
        for epoch in 1..=3 {
            publish(&store, epoch);
        }
        let written = |epoch| fs::metadata(store.manifest_path(epoch)).unwrap().modified().unwrap();
        let now = written(3) + Duration::from_secs(100);
        let file = File::options().write(true).open(store.manifest_path(1)).unwrap();
        file.set_modified(now - Duration::from_secs(1_000)).unwrap();
        drop(file);
        let now_ms = now.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let retention = Retention { age: Some(Duration::from_secs(500)), ..Retention::newest(1) };
        store.prune(&retention, now_ms).unwrap();
        assert_eq!(store.epochs().unwrap(), [2, 3]);
        // A third one, all of whose files are links to those of the second.
        fs::create_dir_all(store.db_dir(1)).unwrap();
        for name in names(&store.db_dir(2)).unwrap() {
            fs::hard_link(store.db_dir(2).join(&name), store.db_dir(1).join(&name)).unwrap();
        }
        fs::hard_link(store.manifest_path(2), store.manifest_path(1)).unwrap();
        let size = |epoch: u64| -> u64 {
            let by_size = Retention { bytes: Some(u64::MAX), ..Retention::newest(1) };
            store.kept(epoch, &by_size, now_ms).unwrap().files.iter().map(|(_, size)| size).sum()
        };
        assert!(size(2) > 0 && size(1) == size(2));
        let keep = |bytes| {
            store.prune(&Retention { bytes: Some(bytes), ..Retention::newest(9) }, now_ms).unwrap();
            store.epochs().unwrap()
        };
        assert_eq!(keep(size(2) + size(3)), [1, 2, 3]);
        assert_eq!(keep(size(2) + size(3) - 1), [3]);
        assert_eq!(keep(0), [3]);
    }

    #[test]
    fn every_kind_of_damage_is_found_and_named() {
        let (_dir, store) = store();
        let manifest = publish(&store, 5);
        let file = &manifest.files.iter().find(|file| file.size > 10).unwrap().name;
        let path = store.db_dir(5).join(file);
        let good = fs::read(&path).unwrap();
        let damage = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = store.verify(5).unwrap_err().to_string();
            assert!(error.contains(file.as_str()), "{error}");
            error
        };
        assert!(damage(&good[..good.len() - 1]).contains("bytes and should have"));
        assert!(damage(&[&good[..], b"x"].concat()).contains("bytes and should have"));
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 4;
        assert!(damage(&flipped).contains("checksum"));
        fs::remove_file(&path).unwrap();
        assert!(store.verify(5).unwrap_err().to_string().contains("missing"));
        fs::write(&path, &good).unwrap();
        store.verify(5).unwrap();
        // A manifest in the place of another.
        fs::create_dir_all(store.epoch_dir(6)).unwrap();
        fs::copy(store.manifest_path(5), store.manifest_path(6)).unwrap();
        assert!(store.manifest(6).unwrap_err().to_string().contains("epoch 5"));
    }

    #[test]
    fn file_names_that_lead_elsewhere_are_refused() {
        for name in ["../../secret", "/etc/passwd", ".hidden", "a/b", "a\\b"] {
            let (_dir, store) = store();
            let mut manifest = publish(&store, 1);
            manifest.files = vec![FileEntry { name: name.into(), size: 0, crc32c: 0, stretches: vec![] }];
            store.publish(&manifest).unwrap();
            let error = store.verify(1).unwrap_err().to_string();
            assert!(error.contains("file name"), "{name}: {error}");
        }
    }

    #[test]
    fn publishing_needs_its_directory() {
        let (_dir, store) = store();
        assert!(store.publish(&example(1)).is_err());
        fs::create_dir_all(store.epoch_dir(1)).unwrap();
        assert!(store.publish(&example(1)).is_err(), "there is no database");
        assert!(store.epochs().unwrap().is_empty());
    }

    #[test]
    fn one_holder_at_a_time() {
        let (dir, _) = store();
        let dir = dir.path().join("made");
        let lock = DirLock::take(&dir, "job `orders` with a long name").unwrap();
        let error = DirLock::take(&dir, "another").unwrap_err();
        assert!(matches!(&error, StateError::Locked { holder, .. } if holder.starts_with("job `orders`")), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        let lock = DirLock::take(&dir, "b").unwrap();
        let error = DirLock::take(&dir, "c").unwrap_err().to_string();
        assert!(error.contains("in use by b, process"), "{error}");
        assert!(!error.contains("orders"), "a shorter name leaves nothing of the longer one: {error}");
        drop(lock);
    }

    /// A job that was started again right after its end was refused now and then, as in use by its own process: another
    /// thread was just starting a program, which had a copy of the lock's file.
    #[cfg(unix)]
    #[test]
    fn a_child_process_does_not_keep_the_lock() {
        let (dir, _) = store();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    std::process::Command::new("true").status().unwrap();
                }
            });
            let refused = (0..3_000).find_map(|_| DirLock::take(dir.path(), "job").err());
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            assert!(refused.is_none(), "{refused:?}");
        });
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_an_error() {
        let (dir, _) = store();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let error = DirLock::take(&path, "a").unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
        assert!(CheckpointStore::new(&path).epochs().is_err());
    }
}
