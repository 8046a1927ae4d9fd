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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::example;
    use crate::rocks::read_through;
    use crate::snapshot::{Change, Run};
    use crate::store::CheckpointStore;

    const OPERATOR: u32 = 3;

    /// A checkpoint with 2,000 entries in one key group, and its directory.
    fn checkpoint() -> (tempfile::TempDir, CheckpointStore, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(dir.path());
        let mut db = StateDb::create(&store.live_dir("1"), 1 << 20).unwrap();
        let mut run = Run::default();
        run.begin(OPERATOR);
        for number in 0..2_000u32 {
            run.push(5, &number.to_be_bytes(), Change::Put(&number.wrapping_mul(0x9e37_79b9).to_le_bytes()));
        }
        run.sort();
        db.apply(&run).unwrap();
        let own = store.epoch_dir(1);
        fs::create_dir_all(&own).unwrap();
        let manifest = Manifest { files: db.checkpoint(&own.join(DB)).unwrap(), ..example(1) };
        store.publish(&manifest).unwrap();
        (dir, store, own)
    }

    fn count(readable: &Readable) -> Result<usize> {
        let mut entries = 0;
        let each = |_: StoredEntry<'_>| {
            entries += 1;
            Ok(())
        };
        readable.scan_group(OPERATOR, 5, each).map(|()| entries)
    }

    /// Changes one byte in the middle of the file whose name ends so; returns its name.
    fn spoil(own: &Path, ending: &str) -> String {
        let files = fs::read_dir(own.join(DB)).unwrap().map(|entry| entry.unwrap().path());
        let path = files.into_iter().find(|path| path.to_str().unwrap().ends_with(ending)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // Another file in its place: the old one is hard-linked elsewhere.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        path.file_name().unwrap().to_str().unwrap().to_string()
    }

    #[test]
    fn what_is_whole_is_read() {
        let (_dir, store, own) = checkpoint();
        let held = Held::open(&own).unwrap();
        held.verify().unwrap();
        assert!(!held.is_committed().unwrap());
        store.note_committed(1).unwrap();
        assert!(held.is_committed().unwrap());
        assert_eq!(count(&held.into_readable().unwrap()).unwrap(), 2_000);
    }

    #[test]
    fn damage_of_a_table_is_found_when_it_is_read_and_named() {
        let (_dir, _, own) = checkpoint();
        let name = spoil(&own, ".sst");
        let held = Held::open(&own).unwrap();
        let reason = held.verify().unwrap_err().to_string();
        assert!(reason.contains(&name) && reason.contains("the checksum of bytes 0 to "), "{reason}");
        // Nothing of it is read before somebody asks.
        let readable = Held::open(&own).unwrap().into_readable().unwrap();
        assert_eq!(count(&readable).unwrap_err().to_string(), reason);
    }

    #[test]
    fn damage_of_anything_else_is_found_at_once() {
        let (_dir, _, own) = checkpoint();
        let name = spoil(&own, "CURRENT");
        let reason = Held::open(&own).unwrap().into_readable().unwrap_err().to_string();
        assert!(reason.contains(&name) && reason.contains("checksum"), "{reason}");
    }

    #[test]
    fn what_is_deleted_meanwhile_is_not_called_damaged() {
        let (_dir, _, own) = checkpoint();
        let held = Held::open(&own).unwrap();
        fs::remove_dir_all(&own).unwrap();
        let reason = held.into_readable().unwrap_err();
        assert!(matches!(reason, StateError::Mismatch { epoch: 1, .. }), "{reason}");
    }

    #[test]
    fn the_stretch_of_a_file_is_named_in_which_the_damage_is() {
        let mut bytes = vec![7; 2 * STRETCH + 100];
        let entry = |bytes: &[u8]| read_through(bytes, Path::new("f"), "f".into(), |_| Ok(())).unwrap();
        let should = entry(&bytes);
        assert_eq!(difference(&should, &entry(&bytes)), None);
        for (at, place) in [
            (0, "bytes 0 to 262143"),
            (STRETCH, "bytes 262144 to 524287"),
            (2 * STRETCH - 1, "bytes 262144 to 524287"),
            (2 * STRETCH + 99, "bytes 524288 to 524387"),
        ] {
            bytes[at] ^= 128;
            let is = entry(&bytes);
            let expected = format!("the checksum of {place} is {:08x} and", is.stretches[at / STRETCH]);
            let found = difference(&should, &is).unwrap();
            assert!(found.starts_with(&expected), "{found}");
            // Manifests from before there were stretches.
            let plain = FileEntry { stretches: Vec::new(), ..should.clone() };
            assert!(difference(&plain, &is).unwrap().starts_with("the checksum of its 524388 bytes is"));
            bytes[at] ^= 128;
        }
        bytes.pop();
        assert_eq!(difference(&should, &entry(&bytes)).unwrap(), "it has 524387 bytes and should have 524388");
    }
}
