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
use rocksdb::{DB, DBCompressionType, IngestExternalFileOptions, Options, SstFileWriter};

use crate::manifest::FileEntry;
use crate::snapshot::{Run, StoredEntry};
use crate::{Result, StateError};

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
    options.create_if_missing(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    // Nothing goes through the memtable, so it need not be large.
    options.set_write_buffer_size(1 << 20);
    options
}

impl StateDb {
    /// Creates an empty database in `dir`, which must not exist.
    ///
    /// # Errors
    /// When RocksDB cannot create it.
    pub fn create(dir: &Path) -> Result<Self> {
        Self::open(dir, HashMap::new())
    }

    /// Opens a copy, in `dir`, of the database in a checkpoint: SST files are hard-linked (copied where that is not
    /// possible), the rest is copied, so that the checkpoint's own files are never touched.
    ///
    /// # Errors
    /// When a file cannot be linked or copied, or RocksDB cannot open the copy.
    pub fn open_copy(checkpoint: &Path, files: &[FileEntry], dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(StateError::io("create", dir))?;
        for file in files {
            let (from, to) = (checkpoint.join(&file.name), dir.join(&file.name));
            let linked = is_immutable(&file.name) && fs::hard_link(&from, &to).is_ok();
            if !linked {
                fs::copy(&from, &to).map_err(StateError::io("copy", &from))?;
            }
        }
        let digests = files.iter().filter(|file| is_immutable(&file.name)).map(|file| (file.name.clone(), file.clone()));
        Self::open(dir, digests.collect())
    }

    fn open(dir: &Path, digests: HashMap<String, FileEntry>) -> Result<Self> {
        let db = DB::open(&options(), dir).map_err(rocks_error(dir))?;
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
        for (key, value) in run.iter() {
            match value {
                Some(value) => writer.put(key, value),
                None => writer.delete(key),
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
        self.digests = files.iter().filter(|file| is_immutable(&file.name)).map(|f| (f.name.clone(), f.clone())).collect();
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
