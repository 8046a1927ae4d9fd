//! The disk: one RocksDB, its column families and keys, and what is read back when a log is opened.
//!
//! ```text
//! DIR/.millstream-lock     held as long as the log is open
//!     db/                  RocksDB, with these column families:
//!         default          log                      format, hash function, a number of its own
//!                          shards                   the table: lineage, horizons, what was withdrawn
//!                          stretch SHARD FIRST      a closed stretch of a shard: its end, newest time, bytes
//!                          commit SINK EPOCH        where a committed epoch of a sink stands
//!                          floor SINK               the newest epoch of which that is forgotten
//!                          input KEY                how far a recorded source has been read
//!         records          SHARD SEQUENCE           a record
//!         staged           HANDLE 0 CHUNK           prepared output of a sink
//! ```
//! Numbers in keys are big-endian, so they sort. The write-ahead log is what makes appends durable: one write is one entry in
//! it, and is there as a whole or not at all.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use millstream_state::hash::HASHER_ID;
use millstream_state::store::sync_dir;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIteratorWithThreadMode, DBRecoveryMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::options::LogOptions;
use super::record::Stored;
use super::shard::{ShardId, Table};

/// The newest format that this version reads and the one that it writes.
const FORMAT: u32 = 1;
const LOG: &[u8] = b"log";
const SHARDS: &[u8] = b"shards";
const RECORDS: &str = "records";
const STAGED: &str = "staged";

/// What says which log this is.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    hasher: String,
    /// As hexadecimal text, because not every reader of JSON keeps 64 bits.
    id: String,
    lanes: u32,
}

/// A run of records of one shard that expires as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stretch {
    /// The sequence number of its first record.
    pub first: u64,
    /// The one after its last record.
    pub end: u64,
    /// Append time of its first record, in ms.
    pub first_ms: u64,
    /// Append time of its last record, in ms.
    pub last_ms: u64,
    pub bytes: u64,
}

/// What was found when a log was opened.
pub(super) struct Found {
    pub id: String,
    /// How many lanes a source has if nobody says otherwise.
    pub lanes: u32,
    pub table: Table,
    /// The stretches of every shard, oldest first; that of an open shard's end is not closed yet.
    pub stretches: Vec<VecDeque<Stretch>>,
}

/// See the module.
pub(super) struct Store {
    db: DB,
    dir: PathBuf,
}

impl Store {
    pub fn open(dir: &Path, options: &LogOptions, id: &str) -> Result<(Store, Found), LogError> {
        let path = dir.join("db");
        let (db, salvaged) = match open_db(&path, false) {
            Err(error) if options.salvage && error.kind() == rocksdb::ErrorKind::Corruption => {
                tracing::warn!("the log in {} is damaged and is opened without its end: {error}", dir.display());
                (open_db(&path, true), true)
            }
            opened => (opened, false),
        };
        let db = db.map_err(LogError::rocks(&path))?;
        sync_dir(dir)?;
        let store = Store { db, dir: path };
        let mut header = match store.json::<Header>(LOG)? {
            Some(header) => header,
            None => store.create(options, id)?,
        };
        if salvaged {
            // Numbers of lost records are given again, so positions from before mean nothing any more.
            header.id = id.to_string();
            let mut batch = WriteBatch::default();
            put_json(&mut batch, LOG, &header)?;
            store.write(batch, true)?;
        }
        if header.format > FORMAT {
            return Err(LogError::mismatch(format!(
                "the log in {} has format {}, and this version knows formats up to {FORMAT}",
                dir.display(),
                header.format
            )));
        }
        if header.hasher != HASHER_ID {
            return Err(LogError::mismatch(format!(
                "the log in {} spreads its keys by `{}`, and this version by `{HASHER_ID}`",
                dir.display(),
                header.hasher
            )));
        }
        let found = store.survey(header)?;
        Ok((store, found))
    }

    fn create(&self, options: &LogOptions, id: &str) -> Result<Header, LogError> {
        let shards = options.shards.unwrap_or(1);
        let header = Header { format: FORMAT, hasher: HASHER_ID.to_string(), id: id.to_string(), lanes: shards };
        let mut batch = WriteBatch::default();
        put_json(&mut batch, LOG, &header)?;
        put_json(&mut batch, SHARDS, &Table::new(shards))?;
        self.write(batch, true)?;
        Ok(header)
    }

    /// Reads the table and finds the end of every shard. Of the records only those of each shard's last stretch are read.
    fn survey(&self, header: Header) -> Result<Found, LogError> {
        let table = self.json::<Table>(SHARDS)?;
        let mut table = table.ok_or_else(|| LogError::damaged(&self.dir, "the table of shards is missing"))?;
        table.check().map_err(|reason| LogError::damaged(&self.dir, reason))?;
        let mut stretches = Vec::new();
        for at in 0..table.shards.len() {
            let shard = &mut table.shards[at];
            let mut own: VecDeque<Stretch> = VecDeque::new();
            let mut end = shard.trimmed;
            self.scan(&stretch_key(shard.id, 0), &stretch_key(shard.id + 1, 0), |_, value| {
                let stretch = serde_json::from_slice::<Stretch>(value);
                let stretch = stretch.map_err(|error| LogError::damaged(&self.dir, format!("a stretch: {error}")))?;
                if stretch.first != end || stretch.end <= end {
                    let Stretch { first, end: after, .. } = stretch;
                    let text = format!("a stretch of shard {at} is {first}..{after} and should begin with {end}");
                    return Err(LogError::damaged(&self.dir, text));
                }
                end = stretch.end;
                own.push_back(stretch);
                Ok(())
            })?;
            shard.bytes = own.iter().map(|stretch| stretch.bytes).sum();
            let mut last: Option<Stretch> = None;
            let mut records = self.records_from(shard.id, end, u64::MAX)?;
            while let Some(record) = records.get()? {
                let number = last.map_or(end, |last| last.end);
                if record.sequence != number {
                    return Err(LogError::damaged(&self.dir, format!("record {number} of shard {at} is missing")));
                }
                let fresh = Stretch { first: number, end: number, first_ms: record.ms, last_ms: 0, bytes: 0 };
                let stretch = last.get_or_insert(fresh);
                stretch.end = number + 1;
                stretch.last_ms = record.ms;
                stretch.bytes += record.bytes();
                table.order = table.order.max(record.order + 1);
                table.last_ms = table.last_ms.max(record.ms);
                records.next();
            }
            let next = last.map_or(end, |last| last.end);
            if next < shard.next || (shard.is_closed() && next != shard.next) {
                let text = format!("shard {at} ends with {next} and not with {} records", shard.next);
                return Err(LogError::damaged(&self.dir, text));
            }
            shard.next = next;
            shard.bytes += last.map_or(0, |last| last.bytes);
            own.extend(last);
            stretches.push(own);
        }
        Ok(Found { id: header.id, lanes: header.lanes.max(1), table, stretches })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What RocksDB says of itself.
    #[cfg(test)]
    pub fn stats(&self) -> String {
        self.db.property_value("rocksdb.dbstats").unwrap_or_default().unwrap_or_default()
    }

    /// How many files of records there are; with `compact`, after all records were sorted into files.
    #[cfg(test)]
    pub fn record_files(&self, compact: bool) -> usize {
        let family = self.family(RECORDS).unwrap();
        if compact {
            self.db.flush_cf(family).unwrap();
            self.db.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
        }
        let files = self.db.live_files().unwrap();
        files.iter().filter(|file| file.column_family_name == RECORDS).count()
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily, LogError> {
        let missing = || LogError::damaged(&self.dir, format!("column family `{name}` is missing"));
        self.db.cf_handle(name).ok_or_else(missing)
    }

    /// Writes all of `batch` or nothing; with `sync`, durably, and all that was written before as well.
    pub fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), LogError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch, &options).map_err(LogError::rocks(&self.dir))
    }

    /// Makes everything durable that was written.
    pub fn sync(&self) -> Result<(), LogError> {
        self.db.flush_wal(true).map_err(LogError::rocks(&self.dir))
    }

    pub fn put_record(&self, batch: &mut WriteBatch, at: (ShardId, u64), bytes: &[u8]) -> Result<(), LogError> {
        batch.put_cf(self.family(RECORDS)?, record_key(at), bytes);
        Ok(())
    }

    /// Drops the records of a shard in `first..end`, and their stretches.
    pub fn drop_records(&self, batch: &mut WriteBatch, shard: ShardId, first: u64, end: u64) -> Result<(), LogError> {
        batch.delete_range_cf(self.family(RECORDS)?, record_key((shard, first)), record_key((shard, end)));
        batch.delete_range(stretch_key(shard, first), stretch_key(shard, end));
        Ok(())
    }

    /// Gives back the room of records that were dropped, where whole files are concerned. The rest goes when RocksDB compacts.
    pub fn give_back(&self, shard: ShardId, first: u64, end: u64) -> Result<(), LogError> {
        // The upper bound belongs to what goes; the record before it was dropped.
        let (from, to) = (record_key((shard, first)), record_key((shard, end.saturating_sub(1))));
        self.db.delete_file_in_range_cf(self.family(RECORDS)?, from, to).map_err(LogError::rocks(&self.dir))
    }

    pub fn put_table(&self, batch: &mut WriteBatch, table: &Table) -> Result<(), LogError> {
        put_json(batch, SHARDS, table)
    }

    pub fn put_stretch(&self, batch: &mut WriteBatch, shard: ShardId, stretch: &Stretch) -> Result<(), LogError> {
        put_json(batch, &stretch_key(shard, stretch.first), stretch)
    }

    /// A record by its number, looked at by `f`; `None` when it is not there.
    pub fn with_record<R>(
        &self,
        shard: ShardId,
        sequence: u64,
        f: impl FnOnce(&Stored<'_>) -> R,
    ) -> Result<Option<R>, LogError> {
        let key = record_key((shard, sequence));
        let bytes = self.db.get_pinned_cf(self.family(RECORDS)?, key).map_err(LogError::rocks(&self.dir))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let no_record = || LogError::damaged(&self.dir, format!("record {sequence} of shard {shard} has no form"));
        Ok(Some(f(&Stored::read((shard, sequence), &bytes).ok_or_else(no_record)?)))
    }

    /// The records of a shard from `sequence` on, up to but not with `end`.
    pub fn records_from(&self, shard: ShardId, sequence: u64, end: u64) -> Result<Records<'_>, LogError> {
        let mut read = ReadOptions::default();
        // Record u64::MAX does not exist, so it may be left out.
        read.set_iterate_upper_bound(record_key((shard, end)));
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(RECORDS)?, read);
        iterator.seek(record_key((shard, sequence)));
        Ok(Records { iterator, shard, dir: &self.dir })
    }

    /// A value under a name, such as how far a recorded source was read.
    pub fn json<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, LogError> {
        let bytes = self.db.get_pinned(key).map_err(LogError::rocks(&self.dir))?;
        let read = |bytes: rocksdb::DBPinnableSlice<'_>| {
            serde_json::from_slice(&bytes).map_err(|error| {
                LogError::damaged(&self.dir, format!("the entry `{}`: {error}", String::from_utf8_lossy(key)))
            })
        };
        bytes.map(read).transpose()
    }

    /// The entries from `first` to before `end`.
    pub fn scan(
        &self,
        first: &[u8],
        end: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(end);
        let mut entries = self.db.raw_iterator_opt(read);
        entries.seek(first);
        while let Some((key, value)) = entries.item() {
            each(key, value)?;
            entries.next();
        }
        entries.status().map_err(LogError::rocks(&self.dir))
    }

    pub fn put_staged(&self, batch: &mut WriteBatch, handle: &str, chunk: u32, bytes: &[u8]) -> Result<(), LogError> {
        batch.put_cf(self.family(STAGED)?, staged_key(handle, chunk), bytes);
        Ok(())
    }

    /// What is staged under a handle, chunk by chunk.
    pub fn staged(&self, handle: &str, mut each: impl FnMut(&[u8]) -> Result<(), LogError>) -> Result<(), LogError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(after_staged(handle));
        let mut chunks = self.db.raw_iterator_cf_opt(self.family(STAGED)?, read);
        chunks.seek(staged_key(handle, 0));
        while let Some(value) = chunks.value() {
            each(value)?;
            chunks.next();
        }
        chunks.status().map_err(LogError::rocks(&self.dir))
    }

    pub fn drop_staged(&self, batch: &mut WriteBatch, handle: &str) -> Result<(), LogError> {
        batch.delete_range_cf(self.family(STAGED)?, staged_key(handle, 0), after_staged(handle));
        Ok(())
    }

    /// Drops everything staged under handles that begin with `prefix`, which ends in a `.`.
    pub fn drop_all_staged(&self, batch: &mut WriteBatch, prefix: &str) -> Result<(), LogError> {
        let end = format!("{}/", prefix.trim_end_matches('.')); // `/` is the byte after `.`
        batch.delete_range_cf(self.family(STAGED)?, prefix.as_bytes(), end.as_bytes());
        Ok(())
    }
}

/// The records of a shard, one after another.
pub(super) struct Records<'a> {
    iterator: DBRawIteratorWithThreadMode<'a, DB>,
    shard: ShardId,
    dir: &'a Path,
}

impl Records<'_> {
    /// The record it stands at; `None` at the end.
    pub fn get(&self) -> Result<Option<Stored<'_>>, LogError> {
        let Some((key, value)) = self.iterator.item() else {
            return self.iterator.status().map(|()| None).map_err(LogError::rocks(self.dir));
        };
        let sequence = key.get(4..12).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        let stored = sequence.and_then(|sequence| Stored::read((self.shard, sequence), value));
        let text = || format!("a record of shard {} has no form; its key is {key:02x?}", self.shard);
        stored.map(Some).ok_or_else(|| LogError::damaged(self.dir, text()))
    }

    /// The place in the order of the log of the record it stands at, if that is number `sequence`. Looks at nothing else.
    pub fn order(&self, sequence: u64) -> Option<u64> {
        let (key, value) = self.iterator.item()?;
        (key.get(4..)? == sequence.to_be_bytes()).then(|| Stored::order_in(value)).flatten()
    }

    pub fn next(&mut self) {
        self.iterator.next();
    }

    pub fn seek(&mut self, sequence: u64) {
        self.iterator.seek(record_key((self.shard, sequence)));
    }
}

fn open_db(path: &Path, salvage: bool) -> Result<DB, rocksdb::Error> {
    let db_options = db_options(salvage);
    let family = |name: &str, buffer| {
        let mut options = db_options.clone();
        options.set_write_buffer_size(buffer);
        ColumnFamilyDescriptor::new(name, options)
    };
    // Files of records are for reading in order, and hold several shards: larger than the rest.
    let families = [family("default", 1 << 20), family(RECORDS, 16 << 20), family(STAGED, 8 << 20)];
    DB::open_cf_descriptors(&db_options, path, families)
}

fn db_options(salvage: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    // The families that are seldom written would hold old write-ahead logs for ever.
    options.set_max_total_wal_size(64 << 20);
    // RocksDB's own choice stops silently at the first damage, wherever that is.
    options.set_wal_recovery_mode(match salvage {
        false => DBRecoveryMode::TolerateCorruptedTailRecords,
        true => DBRecoveryMode::PointInTime,
    });
    options
}

pub(super) fn put_json<T: Serialize>(batch: &mut WriteBatch, key: &[u8], value: &T) -> Result<(), LogError> {
    batch.put(key, serde_json::to_vec(value).map_err(LogError::unwritable::<T>)?);
    Ok(())
}

fn record_key((shard, sequence): (ShardId, u64)) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&shard.to_be_bytes());
    key[4..].copy_from_slice(&sequence.to_be_bytes());
    key
}

fn stretch_key(shard: ShardId, first: u64) -> Vec<u8> {
    [b"stretch ".as_slice(), &shard.to_be_bytes(), &first.to_be_bytes()].concat()
}

pub(super) fn commit_key(sink: &str, epoch: u64) -> Vec<u8> {
    [b"commit ".as_slice(), sink.as_bytes(), b".", &epoch.to_be_bytes()].concat()
}

pub(super) fn floor_key(sink: &str) -> Vec<u8> {
    [b"floor ".as_slice(), sink.as_bytes()].concat()
}

pub(super) fn input_key(key: &str) -> Vec<u8> {
    [b"input ".as_slice(), key.as_bytes()].concat()
}

fn staged_key(handle: &str, chunk: u32) -> Vec<u8> {
    [handle.as_bytes(), &[0], &chunk.to_be_bytes()].concat()
}

fn after_staged(handle: &str) -> Vec<u8> {
    [handle.as_bytes(), &[1]].concat()
}
