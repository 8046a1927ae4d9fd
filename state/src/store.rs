//! The checkpoint directory: its layout, its lock, and the order in which things become durable.
//!
//! ```text
//! DIR/.millstream-lock                    held while a job runs
//!     epoch-0000000012/manifest           its appearance is the commit
//!                      db/                hard links to the files of that epoch
//!     live-0a1b2c3d/                      the database of the running process, deleted at the next start
//!     aside-0a1b2c3d/epoch-0000000013/    checkpoints that were passed over by a wish of the user
//! ```
//! A directory `epoch-N` without a manifest is a checkpoint that never was, and is deleted at the next start.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::checkpoint::{Found, Health};
use crate::manifest::{FileEntry, Manifest};
use crate::{Result, StateError, rocks};

const LOCK: &str = ".millstream-lock";
const MANIFEST: &str = "manifest";
const DB: &str = "db";

/// The lock on a directory; released when dropped, or when the process dies however it does.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of `dir` (which is created if missing) and writes who has it into it: `holder` and this process.
    ///
    /// # Errors
    /// [`StateError::Locked`], naming the holder, when another job has it.
    pub fn take(dir: &Path, holder: &str) -> Result<DirLock> {
        fs::create_dir_all(dir).map_err(StateError::io("create", dir))?;
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
        Ok(DirLock { _file: file })
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
        self.dir.join(format!("epoch-{epoch:010}"))
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
                && self.manifest_path(epoch).exists()
            {
                epochs.push(epoch);
            }
        }
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// Reads one manifest.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn manifest(&self, epoch: u64) -> Result<Manifest> {
        let path = self.manifest_path(epoch);
        let bytes = fs::read(&path).map_err(StateError::io("read", &path))?;
        let manifest = Manifest::from_bytes(&bytes, &path)?;
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
        let manifest = self.manifest(epoch)?;
        let db = self.db_dir(epoch);
        for file in &manifest.files {
            let path = db.join(&file.name);
            if file.name.contains(['/', '\\']) || file.name.starts_with('.') {
                return Err(StateError::damaged(self.manifest_path(epoch), format!("file name `{}`", file.name)));
            }
            if !path.exists() {
                return Err(StateError::damaged(path, "the file is missing"));
            }
            let FileEntry { size, crc32c, .. } = rocks::digest(&path, file.name.clone())?;
            if size != file.size {
                return Err(StateError::damaged(path, format!("it has {size} bytes and should have {}", file.size)));
            }
            if crc32c != file.crc32c {
                let reason =
                    format!("the checksum of its {size} bytes is {crc32c:08x} and should be {:08x}", file.crc32c);
                return Err(StateError::damaged(path, reason));
            }
        }
        Ok(manifest)
    }

    /// All checkpoints with their health.
    ///
    /// # Errors
    /// When the directory cannot be listed; damage is not an error here but a [`Health`].
    pub fn survey(&self) -> Result<Vec<Found>> {
        let health = |epoch| match self.verify(epoch) {
            Ok(manifest) => Health::Intact { finished: manifest.finished },
            Err(error) => Health::Damaged(error.to_string()),
        };
        Ok(self.epochs()?.into_iter().map(|epoch| Found { epoch, health: health(epoch) }).collect())
    }

    /// Deletes what earlier starts left behind: live databases, and checkpoints that were never published.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn sweep(&self) -> Result<()> {
        for name in names(&self.dir)? {
            let unpublished = epoch_of(name.trim_end_matches(".tmp"))
                .is_some_and(|epoch| name.ends_with(".tmp") || !self.manifest_path(epoch).exists());
            if unpublished || name.starts_with("live-") {
                let path = self.dir.join(&name);
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
        let aside = self.dir.join(format!("aside-{execution}"));
        fs::create_dir_all(&aside).map_err(StateError::io("create", &aside))?;
        for epoch in epochs {
            let from = self.epoch_dir(*epoch);
            fs::rename(&from, aside.join(format!("epoch-{epoch:010}"))).map_err(StateError::io("move", from))?;
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
        let dir = self.epoch_dir(manifest.epoch);
        let (draft, path) = (dir.join("manifest.draft"), self.manifest_path(manifest.epoch));
        let bytes = manifest.to_bytes()?;
        let mut file = File::create(&draft).map_err(StateError::io("create", &draft))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(StateError::io("write", &draft))?;
        // The links in `db`, the directory itself and its name are durable before the manifest that vouches for them.
        sync_dir(&self.db_dir(manifest.epoch))?;
        sync_dir(&dir)?;
        sync_dir(&self.dir)?;
        fs::rename(&draft, &path).map_err(StateError::io("publish", &path))?;
        sync_dir(&dir)
    }

    /// Deletes a checkpoint: its manifest first, so that a half-deleted one does not count.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self, epoch: u64) -> Result<()> {
        let manifest = self.manifest_path(epoch);
        fs::remove_file(&manifest).map_err(StateError::io("delete", manifest))?;
        let dir = self.epoch_dir(epoch);
        fs::remove_dir_all(&dir).map_err(StateError::io("delete", dir))
    }
}

fn epoch_of(name: &str) -> Option<u64> {
    name.strip_prefix("epoch-")?.parse().ok()
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
