//! The RocksDB in which the latest checkpoint's entries stand.
//!
//! One database per process. An epoch's changes go in as one sorted file that RocksDB takes over by moving it; the
//! write-ahead log is never used. A checkpoint of it is a directory of hard links.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, DBCompressionType, IngestExternalFileOptions, MergeOperands, Options, SstFileWriter};

use crate::manifest::FileEntry;
use crate::snapshot::{Change, Run, StoredEntry};
use crate::{Result, StateError, blocks};

/// See the module.
pub struct StateDb {
    db: DB,
    dir: PathBuf,
    files_written: u64,
    /// Size and checksum of SST files, by name: they never change, so each is read once.
    digests: HashMap<String, FileEntry>,
}

impl std::fmt::Debug for StateDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDb").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    // Nothing goes through the memtable, so it need not be large.
    options.set_write_buffer_size(1 << 20);
    options.set_merge_operator_associative("millstream blocks", merge);
    options
}

/// Called by RocksDB when it reads or compacts. Without a result, that fails.
fn merge(_key: &[u8], value: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let blocks: Vec<&[u8]> = value.into_iter().chain(operands).collect();
    blocks::merge(&blocks)
}

impl StateDb {
    /// Creates an empty database in `dir`, which must not exist.
    ///
    /// # Errors
    /// When RocksDB cannot create it.
    pub fn create(dir: &Path) -> Result<Self> {
        let mut options = options();
        options.create_if_missing(true);
        Self::open(&options, dir, HashMap::new())
    }

    /// Opens a copy, in `dir`, of the database in a checkpoint: SST files are hard-linked (copied where that is not
    /// possible), the rest is copied, so that the checkpoint's own files are never touched.
    ///
    /// # Errors
    /// When a file cannot be linked or copied, or RocksDB cannot open the copy.
    pub fn open_copy(checkpoint: &Path, files: &[FileEntry], dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(StateError::io("create", dir))?;
        let mut digests = HashMap::new();
        for file in files {
            let (from, to) = (checkpoint.join(&file.name), dir.join(&file.name));
            if is_immutable(&file.name) && fs::hard_link(&from, &to).is_ok() {
                // It is durable already. A copy is not; the next checkpoint reads and syncs it like a new file.
                digests.insert(file.name.clone(), file.clone());
            } else {
                fs::copy(&from, &to).map_err(StateError::io("copy", &from))?;
            }
        }
        Self::open(&options(), dir, digests)
    }

    fn open(options: &Options, dir: &Path, digests: HashMap<String, FileEntry>) -> Result<Self> {
        let db = DB::open(options, dir).map_err(rocks_error(dir))?;
        Ok(StateDb { db, dir: dir.to_path_buf(), files_written: 0, digests })
    }

    /// Takes in the changes of one epoch, which must be sorted; returns the bytes written.
    ///
    /// # Errors
    /// When the file cannot be written or taken in. The database must then not be used again.
    pub fn apply(&mut self, run: &Run) -> Result<u64> {
        if run.is_empty() {
            return Ok(0);
        }
        self.files_written += 1;
        let path = self.dir.join(format!("incoming-{:06}.sst", self.files_written));
        let options = options();
        let mut writer = SstFileWriter::create(&options);
        writer.open(&path).map_err(rocks_error(&path))?;
        for (key, change) in run.iter() {
            match change {
                Change::Put(value) => writer.put(key, value),
                Change::Merge(value) => writer.merge(key, value),
                Change::Remove => writer.delete(key),
            }
            .map_err(rocks_error(&path))?;
        }
        writer.finish().map_err(rocks_error(&path))?;
        let size = fs::metadata(&path).map_err(StateError::io("measure", &path))?.len();
        let mut ingest = IngestExternalFileOptions::default();
        ingest.set_move_files(true);
        self.db.ingest_external_file_opts(&ingest, vec![&path]).map_err(rocks_error(&path))?;
        Ok(size)
    }

    /// Makes a checkpoint in `dir`, which must not exist, makes it durable, and lists its files with their checksums.
    ///
    /// # Errors
    /// When RocksDB, or reading what it made, fails.
    pub fn checkpoint(&mut self, dir: &Path) -> Result<Vec<FileEntry>> {
        Checkpoint::new(&self.db).and_then(|made| made.create_checkpoint(dir)).map_err(rocks_error(dir))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(StateError::io("list", dir))? {
            let entry = entry.map_err(StateError::io("list", dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let file = match self.digests.get(&name) {
                Some(known) => known.clone(),
                None => {
                    let path = entry.path();
                    let file = fs::File::open(&path).map_err(StateError::io("open", &path))?;
                    file.sync_all().map_err(StateError::io("sync", &path))?;
                    digest(&path, name.clone())?
                }
            };
            files.push(file);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        self.digests =
            files.iter().filter(|file| is_immutable(&file.name)).map(|f| (f.name.clone(), f.clone())).collect();
        Ok(files)
    }

    /// Hands every entry of `operator` in `groups` to `each`.
    ///
    /// # Errors
    /// When reading fails, or `each` does.
    pub fn scan(
        &self,
        operator: u32,
        groups: Range<u32>,
        mut each: impl FnMut(StoredEntry<'_>) -> Result<()>,
    ) -> Result<()> {
        let bound = |group: u32| {
            let mut key = operator.to_be_bytes().to_vec();
            key.extend_from_slice(&(group as u16).to_be_bytes());
            key
        };
        if groups.is_empty() {
            return Ok(());
        }
        let mut read = rocksdb::ReadOptions::default();
        read.set_readahead_size(2 << 20);
        let mut entries = self.db.raw_iterator_opt(read);
        entries.seek(bound(groups.start));
        let end = bound(groups.end);
        while let Some((key, value)) = entries.item() {
            if key >= end.as_slice() {
                break;
            }
            let [_, _, _, _, high, low, state, key @ ..] = key else {
                return Err(StateError::damaged(&self.dir, format!("an entry's key has only {} bytes", key.len())));
            };
            each(StoredEntry { group: u16::from_be_bytes([*high, *low]), state: *state, key, value })?;
            entries.next();
        }
        entries.status().map_err(rocks_error(&self.dir))
    }
}

fn is_immutable(name: &str) -> bool {
    name.ends_with(".sst") || name.ends_with(".blob")
}

fn rocks_error(path: &Path) -> impl FnOnce(rocksdb::Error) -> StateError {
    let path = path.to_path_buf();
    move |error| StateError::Rocks { path, message: error.into_string() }
}

/// Reads a file for its size and checksum.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path, name: String) -> Result<FileEntry> {
    let mut file = fs::File::open(path).map_err(StateError::io("open", path))?;
    let (mut size, mut crc32c) = (0, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer).map_err(StateError::io("read", path))?;
        if read == 0 {
            return Ok(FileEntry { name, size, crc32c });
        }
        size += read as u64;
        crc32c = crc32c::crc32c_append(crc32c, &buffer[..read]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::key_group::KEY_GROUPS;
    use crate::snapshot::State;
    use std::collections::BTreeMap;

    /// The operator whose state a [`Disk`] holds.
    pub(crate) const OPERATOR: u32 = 7;

    /// A database in a directory of its own, for tests of state.
    pub(crate) struct Disk {
        pub(crate) dir: tempfile::TempDir,
        pub(crate) db: StateDb,
        checkpoints: u32,
    }

    impl Disk {
        pub(crate) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let db = StateDb::create(&dir.path().join("live")).unwrap();
            Disk { dir, db, checkpoints: 0 }
        }

        /// Takes in what changed in `state`, as a checkpoint does.
        pub(crate) fn save(&mut self, state: &mut impl State) {
            let Some(frozen) = state.freeze() else { return };
            let mut run = Run::default();
            run.begin(OPERATOR);
            frozen.encode(&mut run).unwrap();
            run.sort();
            self.db.apply(&run).unwrap();
            assert!(state.freeze().is_none(), "nothing changed since");
        }

        /// `fresh` with what is stored in `groups`.
        pub(crate) fn load<S: State>(&self, fresh: S, groups: Range<u32>) -> S {
            load(&self.db, fresh, groups)
        }

        /// As `load` of everything, through a checkpoint and a copy of it.
        pub(crate) fn load_copy<S: State>(&mut self, fresh: S) -> S {
            self.checkpoints += 1;
            let checkpoint = self.dir.path().join(format!("checkpoint-{}", self.checkpoints));
            let files = self.db.checkpoint(&checkpoint).unwrap();
            let live = self.dir.path().join(format!("copy-{}", self.checkpoints));
            let copy = StateDb::open_copy(&checkpoint, &files, &live).unwrap();
            load(&copy, fresh, 0..KEY_GROUPS)
        }
    }

    fn load<S: State>(db: &StateDb, mut fresh: S, groups: Range<u32>) -> S {
        fresh.track();
        db.scan(OPERATOR, groups, |entry| fresh.restore(entry)).unwrap();
        fresh
    }

    /// Entries by operator, group and key.
    type Entries = BTreeMap<(u32, u16, Vec<u8>), Vec<u8>>;

    /// Operator, group, key, and the new value.
    type Edit<'a> = (u32, u16, &'a [u8], Option<&'a [u8]>);

    fn apply(db: &mut StateDb, changes: &[Edit<'_>]) -> u64 {
        let mut run = Run::default();
        for (operator, group, key, value) in changes {
            run.begin(*operator);
            run.push(*group, key, value.map_or(Change::Remove, |value| Change::Put(value.to_vec())));
        }
        run.sort();
        db.apply(&run).unwrap()
    }

    fn entries(db: &StateDb, operators: &[u32]) -> Entries {
        let mut found = Entries::new();
        for operator in operators {
            let each = |entry: StoredEntry<'_>| {
                found.insert((*operator, entry.group, entry.key.to_vec()), entry.value.to_vec());
                Ok(())
            };
            db.scan(*operator, 0..KEY_GROUPS, each).unwrap();
        }
        found
    }

    /// Size and checksum of every file in `dir`.
    fn fingerprint(dir: &Path) -> Vec<FileEntry> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = names.map(|name| digest(&dir.join(&name), name).unwrap()).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }

    #[test]
    fn a_scan_sees_one_operator_and_its_groups_only() {
        let mut disk = Disk::new();
        let operators = [0, 6, 7, 8, u32::MAX];
        let mut expected = Entries::new();
        for operator in operators {
            for group in [0, 1, 126, 127] {
                for key in [&b""[..], &[0], &[255; 40]] {
                    let value = format!("{operator} {group} {key:?}").into_bytes();
                    apply(&mut disk.db, &[(operator, group, key, Some(&value))]);
                    expected.insert((operator, group, key.to_vec()), value);
                }
            }
        }
        assert_eq!(entries(&disk.db, &operators), expected);
        for groups in [0..0, 0..1, 1..127, 127..128, 2..126, 128..128] {
            let mut found = Vec::new();
            let each = |entry: StoredEntry<'_>| {
                found.push(u32::from(entry.group));
                Ok(())
            };
            disk.db.scan(7, groups.clone(), each).unwrap();
            let expected = [0, 1, 126, 127].into_iter().filter(|group| groups.contains(group)).flat_map(|g| [g; 3]);
            assert_eq!(found, expected.collect::<Vec<_>>(), "{groups:?}");
        }
        assert!(entries(&disk.db, &[5, 9]).is_empty());
    }

    #[test]
    fn an_empty_run_writes_nothing() {
        let mut disk = Disk::new();
        assert_eq!(apply(&mut disk.db, &[]), 0);
        assert!(apply(&mut disk.db, &[(1, 1, b"key", None)]) > 0, "a removal of nothing is written");
        assert!(entries(&disk.db, &[1]).is_empty());
    }

    #[test]
    fn a_checkpoint_does_not_see_what_comes_later() {
        let mut disk = Disk::new();
        let (mut now, mut then) = (Entries::new(), Vec::new());
        // Often enough for RocksDB to compact, and to delete the files that it compacted.
        for epoch in 0..40u8 {
            let value = vec![epoch; 100];
            let written: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n.wrapping_mul(epoch) % 50]).collect();
            let unique: std::collections::BTreeSet<&Vec<u8>> = written.iter().collect();
            let removed = vec![epoch % 50 + 100];
            let mut changes: Vec<_> = unique.iter().map(|key| (1, 5, key.as_slice(), Some(value.as_slice()))).collect();
            changes.push((1, 5, &removed, None));
            let added = vec![epoch % 50 + 101];
            changes.push((1, 5, &added, Some(b"soon gone")));
            apply(&mut disk.db, &changes);
            for (operator, group, key, value) in changes {
                match value {
                    Some(value) => drop(now.insert((operator, group, key.to_vec()), value.to_vec())),
                    None => drop(now.remove(&(operator, group, key.to_vec()))),
                }
            }
            if epoch % 8 == 0 {
                let dir = disk.dir.path().join(format!("checkpoint-{epoch}"));
                let files = disk.db.checkpoint(&dir).unwrap();
                assert_eq!(files, fingerprint(&dir));
                then.push((dir, files, now.clone()));
            }
        }
        assert_eq!(entries(&disk.db, &[1]), now);
        for (number, (dir, files, expected)) in then.iter().enumerate() {
            assert_eq!(*files, fingerprint(dir), "checkpoint {number} was changed by later writes");
            let live = disk.dir.path().join(format!("copy-{number}"));
            let mut copy = StateDb::open_copy(dir, files, &live).unwrap();
            assert_eq!(entries(&copy, &[1]), *expected, "checkpoint {number}");
            // The copy goes its own way, and the checkpoint stays as it is.
            apply(&mut copy, &[(1, 5, b"new", Some(b"new"))]);
            let next = copy.checkpoint(&disk.dir.path().join(format!("next-{number}"))).unwrap();
            assert_eq!(next, fingerprint(&disk.dir.path().join(format!("next-{number}"))));
            drop(copy);
            fs::remove_dir_all(&live).unwrap();
            assert_eq!(*files, fingerprint(dir), "checkpoint {number} was changed by its copy");
        }
        assert_eq!(entries(&disk.db, &[1]), now);
    }

    #[test]
    fn a_checkpoint_is_not_made_over_another() {
        let mut disk = Disk::new();
        let dir = disk.dir.path().join("checkpoint");
        disk.db.checkpoint(&dir).unwrap();
        assert!(disk.db.checkpoint(&dir).is_err());
    }

    #[test]
    fn large_values_survive() {
        let mut disk = Disk::new();
        let value: Vec<u8> = (0..9_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        apply(&mut disk.db, &[(1, 5, &value[..70_000], Some(&value)), (1, 5, b"small", Some(b""))]);
        let found = entries(&disk.db, &[1]);
        assert_eq!(found[&(1, 5, value[..70_000].to_vec())], value);
        assert_eq!(found[&(1, 5, b"small".to_vec())], b"");
    }
}
