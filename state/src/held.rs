//! A checkpoint or savepoint from outside the job that made it: held, verified, read.
//!
//! Both are a directory with a `manifest` and its files in `db/`. All files are opened before anything else is done, and stay
//! open, so a job that deletes old checkpoints meanwhile takes nothing away from who reads one. Nothing is written.
//!
//! **What is checked when**: that every file is there with its size, and the content of all but the SST files, at once. The content of
//! these when somebody is about to read all of it ([`Held::verify`]); a single key is found under the checksums that RocksDB has
//! for every block, which are checked before it hands one out.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::key_group::KeyGroup;
use crate::manifest::{FileEntry, Manifest, STRETCH};
use crate::rocks::{self, StateDb};
use crate::snapshot::StoredEntry;
use crate::{Result, StateError};

pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const DB: &str = "db";
pub(crate) const COMMITTED: &str = "committed";

/// The files of a checkpoint, open.
#[derive(Debug)]
pub struct Held {
    dir: PathBuf,
    manifest: Manifest,
    files: Vec<(FileEntry, File)>,
    verified: OnceLock<()>,
}

/// Reads the manifest in the directory of a checkpoint.
///
/// # Errors
/// When it cannot be read or is damaged.
pub(crate) fn read_manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let bytes = fs::read(&path).map_err(StateError::io("read", &path))?;
    Manifest::from_bytes(&bytes, &path)
}

impl Held {
    /// Opens all files in `dir`, the directory of one checkpoint or savepoint.
    ///
    /// # Errors
    /// When it is none, or something is missing or has not its size: the first such thing, by name.
    pub fn open(dir: &Path) -> Result<Held> {
        let found = dir.join(MANIFEST).try_exists().map_err(StateError::io("look up", dir))?;
        if !found {
            let there = dir.try_exists().map_err(StateError::io("look up", dir))?;
            let reason = match there {
                true => "it has no `manifest`, so it is no savepoint or checkpoint, or one that was never completed",
                false => "there is no such directory",
            };
            return Err(StateError::damaged(dir, reason));
        }
        Self::of(dir, read_manifest(dir)?)
    }

    /// As [`open`](Self::open), with the manifest that was read from there.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn of(dir: &Path, manifest: Manifest) -> Result<Held> {
        let mut files = Vec::with_capacity(manifest.files.len());
        for entry in &manifest.files {
            if entry.name.contains(['/', '\\']) || entry.name.starts_with('.') {
                return Err(StateError::damaged(dir.join(MANIFEST), format!("file name `{}`", entry.name)));
            }
            let path = dir.join(DB).join(&entry.name);
            let file = File::open(&path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => StateError::damaged(&path, "the file is missing"),
                _ => StateError::io("open", &path)(error),
            })?;
            let size = file.metadata().map_err(StateError::io("measure", &path))?.len();
            if size != entry.size {
                let reason = format!("it has {size} bytes and should have {}", entry.size);
                return Err(StateError::damaged(path, reason));
            }
            files.push((entry.clone(), file));
        }
        Ok(Held { dir: dir.to_path_buf(), manifest, files, verified: OnceLock::new() })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether a note beside the manifest says that all its output has been committed.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn is_committed(&self) -> Result<bool> {
        let note = self.dir.join(COMMITTED);
        note.try_exists().map_err(StateError::io("look up", note))
    }

    /// Reads all files and compares them with their checksums; once only, however often it is called.
    ///
    /// # Errors
    /// The first thing that is wrong, naming the file.
    pub fn verify(&self) -> Result<()> {
        if self.verified.get().is_none() {
            self.files.iter().try_for_each(|file| self.read(file, |_| Ok(())))?;
            let _ = self.verified.set(());
        }
        Ok(())
    }

    /// As [`verify`](Self::verify), for what RocksDB has no checksums of or opens as a whole.
    fn verify_all_but_tables(&self) -> Result<()> {
        let others = self.files.iter().filter(|(entry, _)| !rocks::is_immutable(&entry.name));
        others.into_iter().try_for_each(|file| self.read(file, |_| Ok(())))
    }

    /// Its files by number.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(entry, _)| entry.name.as_str())
    }

    /// Hands the content of a file, by its number, to `each`.
    ///
    /// # Errors
    /// When it cannot be read, is not what the manifest says, or `each` fails.
    pub(crate) fn read_file(&self, number: usize, each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.read(&self.files[number], each)
    }

    fn read(&self, (entry, file): &(FileEntry, File), each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let path = self.dir.join(DB).join(&entry.name);
        let mut file = file;
        file.rewind().map_err(StateError::io("read", &path))?;
        let is = rocks::read_through(file, &path, entry.name.clone(), each)?;
        difference(entry, &is).map_or(Ok(()), |reason| Err(StateError::damaged(path, reason)))
    }

    /// Opens its database to be read.
    ///
    /// # Errors
    /// When a file is damaged, or RocksDB cannot open it.
    pub fn into_readable(self) -> Result<Readable> {
        self.verify_all_but_tables()?;
        match StateDb::open_to_read(&self.dir.join(DB)) {
            Ok(db) => Ok(Readable { held: self, db }),
            // RocksDB opens by name, and may come too late.
            Err(_) if matches!(self.dir.join(MANIFEST).try_exists(), Ok(false)) => Err(StateError::Mismatch {
                epoch: self.manifest.epoch,
                path: self.dir.clone(),
                reason: "was deleted while it was being opened".into(),
            }),
            Err(error) => Err(self.damage(error)),
        }
    }

    /// What RocksDB calls a corruption is damage, and not a failure that might pass. It does not always say of which file; the checksums
    /// do.
    fn damage(&self, error: StateError) -> StateError {
        match error {
            StateError::Rocks { path, message } if message.starts_with("Corruption") => {
                self.verify().err().unwrap_or_else(|| StateError::damaged(path, message))
            }
            other => other,
        }
    }
}

/// In which way a file is not what it should be.
fn difference(should: &FileEntry, is: &FileEntry) -> Option<String> {
    if is.size != should.size {
        return Some(format!("it has {} bytes and should have {}", is.size, should.size));
    }
    if is.crc32c == should.crc32c {
        return None;
    }
    let wrong = should.stretches.iter().zip(&is.stretches).position(|(should, is)| should != is);
    let (place, is, should) = match wrong {
        Some(number) => {
            let from = (number * STRETCH) as u64;
            let to = is.size.min(from + STRETCH as u64) - 1;
            (format!("bytes {from} to {to}"), is.stretches[number], should.stretches[number])
        }
        None => (format!("its {} bytes", is.size), is.crc32c, should.crc32c),
    };
    Some(format!("the checksum of {place} is {is:08x} and should be {should:08x}"))
}

/// A checkpoint or savepoint whose entries can be read.
#[derive(Debug)]
pub struct Readable {
    held: Held,
    db: StateDb,
}

impl Readable {
    /// The files.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Hands every entry that an operator has stored in a key group to `each`.
    ///
    /// # Errors
    /// When reading finds damage, or `each` fails.
    pub fn scan_group(
        &self,
        operator: u32,
        group: KeyGroup,
        each: impl FnMut(StoredEntry<'_>) -> Result<()>,
    ) -> Result<()> {
        self.db.scan_group(operator, group, each).map_err(|error| self.held.damage(error))
    }
}
