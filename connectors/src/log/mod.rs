//! A durable, partitioned log inside this process: for input that cannot be read again, and between jobs.
//!
//! It has what Kinesis has, without a service: shards with order per key and sequence numbers, retention by age and by size,
//! readers that do not know of each other, and splits and merges of shards while all that goes on. It lives in one
//! directory, over RocksDB, and is opened once per process; clones of the handle are cheap.
//!
//! ```
//! use millstream_connectors::log::{Log, LogOptions, Start};
//!
//! let dir = tempfile::tempdir()?;
//! let log = Log::open(dir.path().join("orders.log"), LogOptions::new().shards(4))?;
//! let receipt = log.append("customer-7", &("apples", 3))?; // durable when this returns
//! log.append_all([("customer-7", &("pears", 1)), ("customer-9", &("plums", 8))])?; // one sync, all or none
//!
//! let mut reader = log.reader::<(String, u32)>(Start::Sequence(receipt.shard, receipt.sequence))?;
//! let record = &reader.read(10)?[0];
//! assert_eq!((record.key.as_str(), record.value.1), ("customer-7", 3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In jobs it is a [source](Log::source), an exactly-once [sink](Log::sink), and what makes
//! [any other source replayable](RecordExt::recorded).
//!
//! | what | how it is |
//! |---|---|
//! | acknowledged | when durable; appends that wait at the same time share one sync ([`Durability`] has the other choice) |
//! | a call of `append_all` | is there as a whole or not at all |
//! | after a kill or a power failure | every acknowledged record is there once and whole; others may be |
//! | after a failed write or sync | nothing more is taken until the log is opened again; reading goes on |
//! | order | that of appending, for each key, through splits and merges as well |
//! | sequence numbers | per shard, from 0, without gaps; never given again |
//! | append time | wall clock in ms, never before an earlier record of the log |
//! | split, merge | parents close, children open in the same instant; readers read children after their parents |
//! | retention | whole stretches, the oldest first; an eighth of age or size is the grain; on the log's own thread |
//! | behind the horizon | [`LogError::Expired`] names what was lost; the reader may go on behind it |
//! | readers | see what is durable, keep their own positions, are woken when there is more |
//! | start | oldest, newest, a record, or a time ([`Start`]) |
//! | limits | keys 1 KiB, records 16 MiB, 1,024 open shards, one process |
//!
//! **Files**: `options` and `record` are what users see; `shard`, `lane` and `retention` decide; `store` and `writer` touch the
//! disk; `source`, `sink` and `recorded` face jobs.

mod core;
mod error;
mod lane;
mod options;
mod reader;
mod record;
mod recorded;
mod retention;
mod shard;
mod sink;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use millstream_state::StateError;
use millstream_state::store::DirLock;
use serde::Serialize;

pub use error::LogError;
pub use lane::LogPosition;
pub use options::{Durability, LogOptions, MAX_KEY_BYTES, MAX_SHARDS, MAX_VALUE_BYTES, Start};
pub use reader::{FromLog, LogReader};
pub use record::{LogRecord, Receipt};
pub use recorded::{RecordExt, Recorded, RecordedReader};
pub use shard::{Shard, ShardId};
pub use sink::{LogSink, LogSinkWriter};
pub use source::{LogSource, LogSourceReader};

use core::{Core, Reply, Request};
use record::Entry;
use store::{Found, Store};
use writer::{Clock, Writer};

/// Bytes as they are: the type of values to read when they are no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw(pub Vec<u8>);

/// A log that is open. Clones share it; it is closed when the last one, and all readers, sources and sinks of it, are dropped.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    // Fields are dropped in this order: the database closes, then the lock goes.
    core: Arc<Core>,
    _lock: DirLock,
    dir: PathBuf,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.core.close();
        if let Some(writer) = self.writer.take() {
            // A panic was told to everybody who waited.
            let _ = writer.join();
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in `dir`, or makes one there.
    ///
    /// # Errors
    /// When the directory is in use by another process or another handle of this one that is no clone; when what is in it is
    /// damaged, of a newer format, or no log; when the options contradict themselves.
    pub fn open(dir: impl AsRef<Path>, options: LogOptions) -> Result<Log, LogError> {
        options.check()?;
        #[allow(clippy::disallowed_methods)]
        // append times are wall-clock times, taken once, and stored with the record
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |since| since.as_millis() as u64)
        };
        Log::open_with(dir.as_ref(), options, Arc::new(now))
    }

    fn open_with(dir: &Path, options: LogOptions, clock: Clock) -> Result<Log, LogError> {
        let lock = DirLock::take(dir, "a log")?;
        let (store, found) = Store::open(dir, &options, &new_id())?;
        let Found { id, lanes, table, stretches } = found;
        let core = Arc::new(Core::new(store, id, lanes, table.clone()));
        let writer = Writer::new(Arc::clone(&core), options, clock, table, stretches);
        let thread = std::thread::Builder::new().name("millstream-log".to_string()).spawn(move || writer.run());
        let thread = thread.map_err(StateError::io("start a thread for", dir))?;
        let inner = Inner { core, _lock: lock, dir: dir.to_path_buf(), writer: Some(thread) };
        Ok(Log { inner: Arc::new(inner) })
    }

    fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Appends `value` as JSON and waits until it is acknowledged. Threads that append at the same time share a sync; one thread
    /// that has many records uses [`append_all`](Self::append_all) or [`submit`](Self::submit).
    ///
    /// # Errors
    /// When the key or the value is too large, or does not write as JSON; when the log has failed. Then, if the write itself
    /// failed, the record may be there when the log is opened again.
    pub fn append<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<Receipt, LogError> {
        self.one(Entry::json(key, value)?)
    }

    /// Appends bytes as they are, otherwise as [`append`](Self::append). They are read as [`Raw`].
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_bytes(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<Receipt, LogError> {
        self.one(Entry::new(key, value.into())?)
    }

    fn one(&self, entry: Entry) -> Result<Receipt, LogError> {
        let receipts = self.enqueue(vec![entry])?.wait()?;
        receipts
            .into_iter()
            .next()
            .ok_or_else(|| LogError::damaged(self.dir(), "an append was not answered"))
    }

    /// Appends all these values, with one sync: all of them are there afterwards, or, after a crash or an error, none.
    ///
    /// # Errors
    /// As [`append`](Self::append); nothing was appended when one of them is refused.
    pub fn append_all<K, T>(&self, records: impl IntoIterator<Item = (K, T)>) -> Result<Vec<Receipt>, LogError>
    where
        K: Into<String>,
        T: Serialize,
    {
        self.submit(records)?.wait()
    }

    /// As [`append_all`](Self::append_all), without waiting for the acknowledgement; only when 64 MiB are waiting to be written
    /// already, until there is room. Calls of one thread are appended in their order.
    ///
    /// # Errors
    /// As [`append_all`](Self::append_all).
    pub fn submit<K, T>(&self, records: impl IntoIterator<Item = (K, T)>) -> Result<Appending, LogError>
    where
        K: Into<String>,
        T: Serialize,
    {
        let entries = records.into_iter().map(|(key, value)| Entry::json(key, &value));
        self.enqueue(entries.collect::<Result<_, _>>()?)
    }

    /// As [`submit`](Self::submit), with bytes as they are. They are read as [`Raw`].
    ///
    /// # Errors
    /// As [`append_all`](Self::append_all).
    pub fn submit_bytes<K, B>(&self, records: impl IntoIterator<Item = (K, B)>) -> Result<Appending, LogError>
    where
        K: Into<String>,
        B: Into<Vec<u8>>,
    {
        let entries = records.into_iter().map(|(key, value)| Entry::new(key, value.into()));
        self.enqueue(entries.collect::<Result<_, _>>()?)
    }

    fn enqueue(&self, entries: Vec<Entry>) -> Result<Appending, LogError> {
        let (reply, answer) = Reply::new(None);
        self.core().request(Request::Append { entries, note: None, reply }, true)?;
        Ok(Appending { log: self.clone(), answer })
    }

    /// Makes everything durable that was appended. Only with [`Durability::SyncedWithin`] there is something to do.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn sync(&self) -> Result<(), LogError> {
        self.core().ask(|reply| Request::Sync { reply })
    }

    /// An error if the log takes no more records, because a write has failed.
    ///
    /// # Errors
    /// [`LogError::Failed`].
    pub fn check(&self) -> Result<(), LogError> {
        self.core().check()
    }

    /// All shards that there ever were, by number, as readers see them.
    pub fn shards(&self) -> Vec<Shard> {
        self.core().view().shards.clone()
    }

    /// Closes a shard and opens two with half of its range of hashes each. Whoever appends or reads just goes on.
    ///
    /// # Errors
    /// When there is no such open shard, or its range cannot be divided; when the log has failed.
    pub fn split(&self, shard: ShardId) -> Result<[ShardId; 2], LogError> {
        self.core().ask(|reply| Request::Split { shard, reply })
    }

    /// Closes two shards with neighbouring ranges of hashes and opens one with both. Whoever appends or reads just goes on.
    ///
    /// # Errors
    /// When they are not open or no neighbours; when the log has failed.
    pub fn merge(&self, a: ShardId, b: ShardId) -> Result<ShardId, LogError> {
        self.core().ask(|reply| Request::Merge { a, b, reply })
    }

    /// Drops now what retention would drop soon, and waits for it.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn retain(&self) -> Result<(), LogError> {
        self.core().ask(|reply| Request::Retain { reply })
    }

    /// Reads all records from `start` on, outside of jobs. `T` is what was appended, or [`Raw`].
    ///
    /// # Errors
    /// When `start` names a record that is not there or has expired.
    pub fn reader<T: FromLog>(&self, start: Start) -> Result<LogReader<T>, LogError> {
        LogReader::new(self, start, None)
    }

    /// Reads on from where another reader stood.
    ///
    /// # Errors
    /// When the position belongs to another log, or to a later state of this one.
    pub fn reader_at<T: FromLog>(&self, position: LogPosition) -> Result<LogReader<T>, LogError> {
        LogReader::new(self, Start::TrimHorizon, Some(position))
    }

    /// This log as a source of a job. `T` is what was appended, or [`Raw`].
    ///
    /// ```no_run
    /// use millstream_connectors::log::{Log, LogOptions};
    ///
    /// let log = Log::open("orders.log", LogOptions::new())?;
    /// let orders = log.source::<(String, u32)>(); // for `job.source(orders, Watermarks::monotonous(|r| r.appended))`
    /// # Ok::<(), millstream_connectors::log::LogError>(())
    /// ```
    pub fn source<T: FromLog>(&self) -> LogSource<T> {
        LogSource::new(self)
    }

    /// This log as an exactly-once sink of a job. `name` (1 to 64 of `a-z`, `0-9`, `_` and `-`) is that of the sink in the log, and
    /// serves one sink of one job; `key` says under which key a value is appended.
    ///
    /// ```no_run
    /// use millstream_connectors::log::{Log, LogOptions};
    ///
    /// let log = Log::open("totals.log", LogOptions::new())?;
    /// let totals = log.sink("totals", |(customer, _): &(String, u64)| customer.clone()); // for `stream.sink(totals)`
    /// # Ok::<(), millstream_connectors::log::LogError>(())
    /// ```
    pub fn sink<T>(&self, name: &str, key: impl Fn(&T) -> String + Send + Sync + 'static) -> LogSink<T> {
        LogSink::new(self, name, key)
    }
}

/// Records on their way into a log; see [`Log::submit`].
#[must_use = "only `wait` says whether they were appended"]
pub struct Appending {
    log: Log,
    answer: Receiver<Result<Vec<Receipt>, LogError>>,
}

impl std::fmt::Debug for Appending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Appending").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Appending {
    /// Waits until the records are acknowledged, and says where they are.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn wait(self) -> Result<Vec<Receipt>, LogError> {
        self.log.core().answer(self.answer.recv())
    }
}

/// A number that no other log has.
fn new_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

/// What fuzzers reach that nobody else does.
#[cfg(any(test, fuzzing))]
#[allow(missing_docs)]
pub mod fuzzing {
    pub fn read(bytes: &[u8]) {
        if let Some(entries) = super::record::unpack(bytes) {
            assert_eq!(super::record::pack(&entries), bytes);
        }
        if let Some(stored) = super::record::Stored::read((0, 0), bytes) {
            assert!(stored.bytes() as usize <= bytes.len());
            let _ = stored.with(());
        }
    }
}
