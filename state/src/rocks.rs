//! The RocksDB in which the latest checkpoint's entries stand.
//!
//! One database per process. An epoch's changes go in as one sorted file that RocksDB takes over by moving it; the
//! write-ahead log is never used. A checkpoint of it is a directory of hard links.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBPinnableSlice, IngestExternalFileOptions,
    LogLevel, MergeOperands, Options, ReadOptions, SstFileWriter, properties,
};

use crate::key_group::KeyGroup;
use crate::manifest::{FileEntry, STRETCH};
use crate::snapshot::{Change, Run, StoredEntry, prefix};
use crate::{Result, StateError, blocks};

/// How many bytes of a checkpoint that is looked into stay in memory.
const READ_CACHE: usize = 8 << 20;

/// The name of the one column family.
const DEFAULT: &str = "default";

/// See the module.
pub struct StateDb {
    db: Arc<DB>,
    dir: PathBuf,
    cache: Cache,
    files_written: u64,
    /// Size and checksum of SST files, by name: they never change, so each is read once.
    digests: HashMap<String, FileEntry>,
}

impl std::fmt::Debug for StateDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDb").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn options(cache: &Cache) -> Options {
    let mut options = Options::default();
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    // Indexes and filters count as well.
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_cache_index_and_filter_blocks_with_high_priority(true);
    // They are read and kept in parts: with little memory, whole ones would push each other out, and each read would read one.
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_partition_filters(true);
    tables.set_metadata_block_size(4096);
    tables.set_pin_top_level_index_and_filter(true);
    tables.set_bloom_filter(10.0, false);
    tables.set_whole_key_filtering(true);
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    // A log of all options at every start is what makes starts slow: only what is wrong.
    options.set_log_level(LogLevel::Warn);
    // It is a few KiB long, and written anew at every start. Where a file system is in memory, room that is asked for is filled with zeros.
    options.set_manifest_preallocation_size(16 << 10);
    // Nothing goes through the memtable, so it need not be large.
    options.set_write_buffer_size(1 << 20);
    options.set_merge_operator("millstream blocks", merge_all, merge_some);
    options
}

/// Called by RocksDB when it reads or compacts, with all that there is of a key. Without a result, that fails.
fn merge_all(_key: &[u8], value: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let blocks: Vec<&[u8]> = value.into_iter().chain(operands).collect();
    blocks::merge(&blocks, true)
}

/// Called by RocksDB when it compacts, where there may be something older. Without a result, nothing is merged for now.
fn merge_some(_key: &[u8], _: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let blocks: Vec<&[u8]> = operands.iter().collect();
    blocks::merge(&blocks, false)
}

impl StateDb {
    /// Creates an empty database in `dir`, which must not exist. What it reads is kept in a cache of so many bytes.
    ///
    /// # Errors
    /// When RocksDB cannot create it.
    pub fn create(dir: &Path, cache_bytes: usize) -> Result<Self> {
        Self::open(dir, cache_bytes, true, HashMap::new())
    }

    /// Opens a copy, in `dir`, of the database in a checkpoint: SST files are hard-linked (copied where that is not
    /// possible), the rest is copied, so that the checkpoint's own files are never touched.
    ///
    /// # Errors
    /// When a file cannot be linked or copied, or RocksDB cannot open the copy.
    pub fn open_copy(checkpoint: &Path, files: &[FileEntry], dir: &Path, cache_bytes: usize) -> Result<Self> {
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
        Self::open(dir, cache_bytes, false, digests)
    }

    fn open(dir: &Path, cache_bytes: usize, create: bool, digests: HashMap<String, FileEntry>) -> Result<Self> {
        let cache = Cache::new_lru_cache(cache_bytes);
        let mut options = options(&cache);
        options.create_if_missing(create);
        // Named, because only of a column family that one has in hand can many values be read together.
        let family = options.clone();
        let db = DB::open_cf_with_opts(&options, dir, [(DEFAULT, family)]).map_err(rocks_error(dir))?;
        Ok(StateDb { db: Arc::new(db), dir: dir.to_path_buf(), cache, files_written: 0, digests })
    }

    /// Opens the database in `dir`, the one of a checkpoint itself, to read it. Nothing there is written: RocksDB keeps no log then, and
    /// what is opened stays readable when somebody deletes it.
    ///
    /// # Errors
    /// When RocksDB cannot open it.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        let cache = Cache::new_lru_cache(READ_CACHE);
        let mut options = options(&cache);
        // All files are opened now and stay open.
        options.set_max_open_files(-1);
        let db = DB::open_for_read_only(&options, dir, false).map_err(rocks_error(dir))?;
        Ok(StateDb { db: Arc::new(db), dir: dir.to_path_buf(), cache, files_written: 0, digests: HashMap::new() })
    }

    /// How many bytes of memory RocksDB takes: its cache, with indexes and filters, and its tables.
    pub fn memory(&self) -> usize {
        let property = |name| self.db.property_int_value(name).ok().flatten().unwrap_or_default() as usize;
        let tables = property(properties::CUR_SIZE_ALL_MEM_TABLES) + property(properties::ESTIMATE_TABLE_READERS_MEM);
        self.cache.get_usage() + tables
    }

    /// A way to read what is stored of one operator, also while the database takes in more.
    pub fn stored(&self, operator: u32) -> Stored {
        Stored { db: Arc::clone(&self.db), dir: self.dir.clone(), operator, state: 0 }
    }

    /// Takes in the changes of one epoch, which must be sorted; returns the bytes written.
    ///
    /// # Errors
    /// When the file cannot be written or taken in. The database must then not be used again.
    pub fn apply(&mut self, run: &Run) -> Result<u64> {
        if run.is_empty() {
            run.applied();
            return Ok(0);
        }
        self.files_written += 1;
        let path = self.dir.join(format!("incoming-{:06}.sst", self.files_written));
        let options = options(&self.cache);
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
        run.applied();
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
                    read_through(file, &path, name, |_| Ok(()))?
                }
            };
            files.push(file);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        self.digests =
            files.iter().filter(|file| is_immutable(&file.name)).map(|f| (f.name.clone(), f.clone())).collect();
        Ok(files)
    }

    /// As [`walk`](Self::walk), with every entry.
    #[cfg(test)]
    pub(crate) fn scan(
        &self,
        operator: u32,
        groups: Range<u32>,
        mut each: impl FnMut(StoredEntry<'_>) -> Result<()>,
    ) -> Result<()> {
        self.walk(operator, groups, |entry| each(entry).map(|()| Next::Entry))
    }

    /// Hands every entry of `operator` in one group to `each`: no more is read than what it has.
    ///
    /// # Errors
    /// When reading fails, or `each` does.
    pub fn scan_group(
        &self,
        operator: u32,
        group: KeyGroup,
        mut each: impl FnMut(StoredEntry<'_>) -> Result<()>,
    ) -> Result<()> {
        let group = u32::from(group);
        self.walk_with(ReadOptions::default(), operator, group..group + 1, |entry| each(entry).map(|()| Next::Entry))
    }

    /// Hands entries of `operator` in `groups` to `each`, which says how to go on.
    ///
    /// # Errors
    /// When reading fails, or `each` does.
    pub fn walk(
        &self,
        operator: u32,
        groups: Range<u32>,
        each: impl FnMut(StoredEntry<'_>) -> Result<Next>,
    ) -> Result<()> {
        let mut read = ReadOptions::default();
        read.set_readahead_size(2 << 20);
        self.walk_with(read, operator, groups, each)
    }

    fn walk_with(
        &self,
        read: ReadOptions,
        operator: u32,
        groups: Range<u32>,
        mut each: impl FnMut(StoredEntry<'_>) -> Result<Next>,
    ) -> Result<()> {
        let bound = |group: u32| {
            let mut key = operator.to_be_bytes().to_vec();
            key.extend_from_slice(&(group as u16).to_be_bytes());
            key
        };
        if groups.is_empty() {
            return Ok(());
        }
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
            let (group, state) = (u16::from_be_bytes([*high, *low]), *state);
            match each(StoredEntry { group, state, key, value })? {
                Next::Entry => entries.next(),
                Next::State => {
                    let behind = match state.checked_add(1) {
                        Some(state) => prefix(operator, group, state),
                        None => prefix(operator, group + 1, 0),
                    };
                    entries.seek(behind);
                }
            }
        }
        entries.status().map_err(rocks_error(&self.dir))
    }

    /// Removes everything of operators that are not among `known`, so that a number can be given again; returns how many there
    /// were.
    ///
    /// # Errors
    /// When reading or writing fails. The database must then not be used again.
    pub fn forget_others(&mut self, known: &[u32]) -> Result<usize> {
        let (mut gone, mut run) = (BTreeSet::new(), Run::default());
        let mut entries = self.db.raw_iterator();
        entries.seek_to_first();
        while let Some(key) = entries.key() {
            let Some(operator) = key.first_chunk().map(|number| u32::from_be_bytes(*number)) else {
                return Err(StateError::damaged(&self.dir, format!("an entry's key has only {} bytes", key.len())));
            };
            if !known.contains(&operator) {
                gone.insert(operator);
                run.remove_stored(key);
                entries.next();
            } else if let Some(next) = operator.checked_add(1) {
                entries.seek(next.to_be_bytes());
            } else {
                break;
            }
        }
        entries.status().map_err(rocks_error(&self.dir))?;
        drop(entries);
        self.apply(&run)?;
        Ok(gone.len())
    }
}

/// How a [walk](StateDb::walk) goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With the entry behind.
    Entry,
    /// With the first entry of the state behind, or of the key group behind if there is none.
    State,
}

/// Reads what is stored of one state of an operator, from any thread.
#[derive(Clone)]
pub struct Stored {
    db: Arc<DB>,
    dir: PathBuf,
    operator: u32,
    state: u8,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored")
            .field("operator", &self.operator)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Stored {
    /// The same of another of the operator's states, counted from this one.
    #[must_use]
    pub fn of_state(&self, state: u8) -> Stored {
        Stored { state: self.state + state, ..self.clone() }
    }

    /// The bytes in front of the state's own keys.
    pub(crate) fn prefix(&self, group: KeyGroup) -> Vec<u8> {
        prefix(self.operator, group, self.state).to_vec()
    }

    /// The value of each of `keys`, which must be sorted, in their order.
    ///
    /// # Errors
    /// When reading fails.
    pub(crate) fn get_many<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>> {
        let Some(family) = self.db.cf_handle(DEFAULT) else {
            return Err(StateError::damaged(&self.dir, "the database has no column family"));
        };
        let values = self.db.batched_multi_get_cf(&family, keys, true);
        values.into_iter().map(|value| value.map_err(rocks_error(&self.dir))).collect()
    }
}

pub(crate) fn is_immutable(name: &str) -> bool {
    name.ends_with(".sst") || name.ends_with(".blob")
}

fn rocks_error(path: &Path) -> impl FnOnce(rocksdb::Error) -> StateError {
    let path = path.to_path_buf();
    move |error| StateError::Rocks { path, message: error.into_string() }
}

/// Reads a file for its size and checksums.
///
/// # Errors
/// When it cannot be read.
#[cfg(test)]
pub(crate) fn digest(path: &Path, name: String) -> Result<FileEntry> {
    let file = fs::File::open(path).map_err(StateError::io("open", path))?;
    read_through(file, path, name, |_| Ok(()))
}

/// Reads all there is for its size and checksums, and hands it on piece by piece; `path` is named in errors.
pub(crate) fn read_through(
    mut file: impl Read,
    path: &Path,
    name: String,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<FileEntry> {
    let mut entry = FileEntry { name, size: 0, crc32c: 0, stretches: Vec::new() };
    let mut stretch = Vec::with_capacity(STRETCH);
    loop {
        stretch.clear();
        let read = file.by_ref().take(STRETCH as u64).read_to_end(&mut stretch);
        let read = read.map_err(StateError::io("read", path))?;
        if read == 0 {
            return Ok(entry);
        }
        let crc32c = crc32c::crc32c(&stretch);
        entry.stretches.push(crc32c);
        entry.size += read as u64;
        entry.crc32c = crc32c::crc32c_combine(entry.crc32c, crc32c, read);
        each(&stretch)?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::blocks::{Blocks, Changed};
    use crate::codec;
    use crate::key_group::KEY_GROUPS;
    use crate::snapshot::{Frozen, State};
    use std::collections::{BTreeMap, BTreeSet};

    /// The operator whose state a [`Disk`] holds.
    pub(crate) const OPERATOR: u32 = 7;

    const CACHE: usize = 1 << 20;

    /// A whole freeze in one go.
    pub(crate) fn freeze(state: &mut impl State) -> Option<Box<dyn Frozen>> {
        state.begin_freeze();
        assert!(state.copy_some(&mut usize::MAX.clone()));
        state.take_frozen()
    }

    /// A database in a directory of its own, for tests of state.
    pub(crate) struct Disk {
        pub(crate) dir: tempfile::TempDir,
        pub(crate) db: StateDb,
        checkpoints: u32,
    }

    impl Disk {
        pub(crate) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let db = StateDb::create(&dir.path().join("live"), CACHE).unwrap();
            Disk { dir, db, checkpoints: 0 }
        }

        /// Takes in what changed in `state`, as a checkpoint does.
        pub(crate) fn save(&mut self, state: &mut impl State) {
            let Some(frozen) = freeze(state) else { return };
            self.write(frozen);
            assert!(freeze(state).is_none(), "nothing changed since");
        }

        /// As `save`, for state that may be limited: what it learns of its size when it is written may make it write all again.
        pub(crate) fn save_limited(&mut self, state: &mut impl State) {
            for _ in 0..2 {
                freeze(state).into_iter().for_each(|frozen| self.write(frozen));
            }
            assert!(freeze(state).is_none(), "nothing changed since");
        }

        /// Takes in what was frozen.
        pub(crate) fn write(&mut self, frozen: Box<dyn Frozen>) {
            let mut run = Run::default();
            run.begin(OPERATOR);
            frozen.encode(&mut run).unwrap();
            run.sort();
            self.db.apply(&run).unwrap();
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
            let copy = StateDb::open_copy(&checkpoint, &files, &live, CACHE).unwrap();
            load(&copy, fresh, 0..KEY_GROUPS)
        }
    }

    /// `fresh`, which must be empty, with what is stored in `groups`.
    pub(crate) fn load<S: State>(db: &StateDb, mut fresh: S, groups: Range<u32>) -> S {
        fresh.track();
        restore(db, &mut fresh, groups);
        fresh
    }

    pub(crate) fn restore(db: &StateDb, state: &mut impl State, groups: Range<u32>) {
        let each = |entry: StoredEntry<'_>| {
            if !state.wants(&entry) {
                return Ok(Next::State);
            }
            state.restore(entry).map(|()| Next::Entry)
        };
        db.walk(OPERATOR, groups, each).unwrap();
        state.restored();
    }

    /// Entries by operator, group and key.
    type Entries = BTreeMap<(u32, u16, Vec<u8>), Vec<u8>>;

    /// Operator, group, key, and the new value.
    type Edit<'a> = (u32, u16, &'a [u8], Option<&'a [u8]>);

    fn apply(db: &mut StateDb, changes: &[Edit<'_>]) -> u64 {
        let mut run = Run::default();
        for (operator, group, key, value) in changes {
            run.begin(*operator);
            run.push(*group, key, value.map_or(Change::Remove, Change::Put));
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
    fn only_the_operators_that_are_known_are_kept() {
        let mut disk = Disk::new();
        let all = [0, 1, 5, 6, u32::MAX];
        for operator in all {
            for group in [0, 127] {
                apply(&mut disk.db, &[(operator, group, b"a", Some(b"1")), (operator, group, &[255; 9], Some(b"2"))]);
            }
        }
        for (known, gone) in [(&all[..], 0), (&[1, 5, 9, u32::MAX], 2), (&[u32::MAX], 2), (&[], 1), (&[], 0)] {
            let expected: Entries = entries(&disk.db, known);
            assert_eq!(disk.db.forget_others(known).unwrap(), gone, "{known:?}");
            assert_eq!(entries(&disk.db, &all), expected);
        }
        // A number that is given again has nothing of its first owner.
        apply(&mut disk.db, &[(5, 0, b"b", Some(b"3"))]);
        assert_eq!(entries(&disk.db, &all).len(), 1);
    }

    #[test]
    fn what_is_opened_to_be_read_stays_readable_and_as_it_is() {
        let mut disk = Disk::new();
        let operators: Vec<u32> = (0..50).collect();
        // Ranges that do not overlap, each in a file of its own.
        for operator in &operators {
            apply(&mut disk.db, &[(*operator, 5, b"key", Some(b"value"))]);
        }
        let dir = disk.dir.path().join("checkpoint");
        let files = disk.db.checkpoint(&dir).unwrap();
        assert!(files.len() > 50, "{} files", files.len());
        let db = StateDb::open_to_read(&dir).unwrap();
        assert_eq!(fingerprint(&dir), files);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(entries(&db, &operators).len(), 50);
    }

    /// With levels so small that RocksDB merges changes with each other before it comes to what they change.
    #[test]
    fn what_is_gone_stays_gone_when_changes_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&Cache::new_lru_cache(CACHE));
        options.create_if_missing(true);
        options.set_level_compaction_dynamic_level_bytes(false);
        options.set_max_bytes_for_level_base(2 << 10);
        options.set_target_file_size_base(1 << 10);
        let db = DB::open(&options, dir.path()).unwrap();
        let blocks = Blocks::default();
        let mut model = BTreeSet::new();
        for round in 0..600u64 {
            let came: Vec<u64> = if round == 0 { (0..2_000).collect() } else { vec![round * 7 % 2_000] };
            let gone: Vec<u64> = (round * 5..round * 5 + 5).map(|key| key % 2_000).filter(|_| round > 0).collect();
            model.retain(|key| !gone.contains(key));
            model.extend(&came);
            let parts = vec![came.iter().map(|key| (*key, *key)).collect()];
            let changed = Changed { slice: 0, whole: round == 0, parts, removed: vec![gone] };
            let mut run = Run::default();
            run.begin(OPERATOR);
            blocks.write(&mut run, &[], changed).unwrap();
            for (key, change) in run.iter() {
                match change {
                    Change::Put(value) => db.put(key, value).unwrap(),
                    Change::Merge(value) => db.merge(key, value).unwrap(),
                    Change::Remove => db.delete(key).unwrap(),
                }
            }
            db.flush().unwrap();
        }
        let mut found = BTreeSet::new();
        for entry in db.iterator(rocksdb::IteratorMode::Start) {
            blocks::each_row(&entry.unwrap().1, |key, _| {
                found.insert(codec::decode::<u64>(key).unwrap());
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(found, model);
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
            let mut copy = StateDb::open_copy(dir, files, &live, CACHE).unwrap();
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
