//! Reads a log outside of jobs: all of it, in the order of appending.
//!
//! Readers are independent of each other and leave no trace in the log. Where one stands is its own affair: keep its
//! [`LogPosition`] together with what was made of the records.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use millstream_runtime::source::Waker;
use serde::de::DeserializeOwned;

use super::core::Watch;
use super::error::LogError;
use super::lane::{Keys, Lane, LogPosition};
use super::options::Start;
use super::record::{Kind, LogRecord, Stored};
use super::{Log, Raw};

/// Reads all records of a log; see [`Log::reader`].
pub struct LogReader<T = Raw> {
    lane: Lane,
    waker: Waker,
    woken: Receiver<()>,
    _watch: Watch,
    // The log stays open as long as somebody reads it.
    _log: Log,
    of: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for LogReader<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("position", &self.lane.position()).finish_non_exhaustive()
    }
}

/// Values that can be read from a log.
pub trait FromLog: Sized {
    /// The value in the bytes of a record.
    ///
    /// # Errors
    /// When the bytes are no such value.
    fn from_log(bytes: &[u8]) -> Result<Self, serde_json::Error>;
}

impl FromLog for Raw {
    fn from_log(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Raw(bytes.to_vec()))
    }
}

impl<T: DeserializeOwned> FromLog for T {
    fn from_log(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

impl<T: FromLog> LogReader<T> {
    pub(super) fn new(log: &Log, start: Start, at: Option<LogPosition>) -> Result<Self, LogError> {
        let (all, core) = (Keys::part(0, 1), log.core());
        let lane = Lane::open(core, all, at, start, false)?;
        let (sender, woken) = crossbeam_channel::bounded(1);
        let waker = Waker::new(move || {
            // One is enough.
            let _ = sender.try_send(());
        });
        let watch = Watch::new(core, waker.clone());
        Ok(LogReader { lane, waker, woken, _watch: watch, _log: log.clone(), of: PhantomData })
    }

    /// Up to `max` further records, of those that are there now. Records that a recorded source could not read are left out.
    ///
    /// # Errors
    /// [`LogError::Expired`] when retention was faster; [`skip_expired`](Self::skip_expired) goes on after it. Also when a
    /// record is not a `T`; it is then not counted as read.
    pub fn read(&mut self, max: usize) -> Result<Vec<LogRecord<T>>, LogError> {
        let mut records = Vec::new();
        let each = |stored: &Stored<'_>| {
            if stored.kind == Kind::Value {
                records.push(stored.with(value_of(stored)?));
            }
            Ok(())
        };
        match self.lane.read(max, usize::MAX, each) {
            Ok(_) => Ok(records),
            // What was read counts as read, so it is handed out. The error comes again.
            Err(_) if !records.is_empty() => Ok(records),
            Err(error) => Err(error),
        }
    }

    /// As [`read`](Self::read), but waits up to `patience` for the first record.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when the log has failed while waiting.
    pub fn wait(&mut self, max: usize, patience: Duration) -> Result<Vec<LogRecord<T>>, LogError> {
        let deadline = Instant::now().checked_add(patience);
        loop {
            self.waker.will_sleep();
            let records = self.read(max)?;
            if !records.is_empty() || max == 0 {
                return Ok(records);
            }
            self.lane.core().check()?;
            let woken = match deadline {
                Some(deadline) => self.woken.recv_deadline(deadline).is_ok(),
                None => self.woken.recv().is_ok(),
            };
            if !woken {
                return Ok(Vec::new());
            }
        }
    }

    /// Where it stands; [`Log::reader_at`] goes on there.
    pub fn position(&self) -> LogPosition {
        self.lane.position()
    }

    /// Goes on behind what has expired, and says which sequence numbers of which shards were lost by that.
    pub fn skip_expired(&mut self) -> Vec<(super::ShardId, std::ops::Range<u64>)> {
        self.lane.skip_expired()
    }
}

/// The value of a record.
pub(super) fn value_of<T: FromLog>(stored: &Stored<'_>) -> Result<T, LogError> {
    T::from_log(stored.value).map_err(|source| LogError::Json {
        what: format!("record {} of shard {} is not a `{}`", stored.sequence, stored.shard, std::any::type_name::<T>()),
        source,
    })
}
