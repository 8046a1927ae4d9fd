//! A log as a source of jobs.
//!
//! **Splits** are lanes: fixed ranges of the hashes of keys, each read through all shards that ever covered it. So shards may be
//! split and merged while a job runs or between two runs, and the job's splits stay the same. By default there are as many
//! lanes as the log had shards when it was made; more lanes than shards means that each reads records that are not its own,
//! and passes over them.
//!
//! **Order** within a lane is that of appending, so of every key as well. **Time**: [`LogRecord::appended`] is there to be used as
//! event time, and never goes back within a lane.
//!
//! **Errors**: `Data` when records have expired before they were read, or when one is not of the type; `State` when the position
//! in a checkpoint is not one of this log.

use std::marker::PhantomData;
use std::time::Duration;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::source::{BadRecord, OnBadRecord, Output, Read, Source, SplitReader, Waker};

use super::core::Watch;
use super::error::LogError;
use super::lane::{Keys, Lane, LogPosition, Reached};
use super::options::{MAX_SHARDS, Start};
use super::reader::{FromLog, value_of};
use super::record::{Kind, LogRecord, Stored};
use super::{Log, Raw};

/// How many records of other lanes a reader passes over for each one it may yield, before others have their turn.
pub(super) const PASSED_OVER: usize = 8;

/// Reads a log in a job; see [`Log::source`].
pub struct LogSource<T = Raw> {
    log: Log,
    lanes: u32,
    start: Start,
    bounded: bool,
    skip_expired: bool,
    on_bad: OnBadRecord,
    of: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for LogSource<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogSource")
            .field("lanes", &self.lanes)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl<T> LogSource<T> {
    pub(super) fn new(log: &Log) -> Self {
        LogSource {
            log: log.clone(),
            lanes: log.core().lanes,
            start: Start::default(),
            bounded: false,
            skip_expired: false,
            on_bad: OnBadRecord::default(),
            of: PhantomData,
        }
    }

    /// Into how many lanes it is divided, 1 to [`MAX_SHARDS`]: how many workers can read it side by side. A job keeps its number.
    #[must_use]
    pub fn lanes(mut self, lanes: u32) -> Self {
        self.lanes = lanes;
        self
    }

    /// Where a job begins that has no checkpoint; otherwise it goes on from there. A job that dies before its first checkpoint
    /// begins anew, so with [`Start::Latest`] it passes over what came in between.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Ends where the log ended when the job began; otherwise it waits for more, for ever.
    #[must_use]
    pub fn until_now(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// Goes on when records have expired before they were read, behind what is lost. Each stretch that is lost is reported as
    /// one bad record.
    #[must_use]
    pub fn skip_expired(mut self) -> Self {
        self.skip_expired = true;
        self
    }

    /// What to do with a record that is not a `T`.
    #[must_use]
    pub fn on_bad_record(mut self, on_bad: OnBadRecord) -> Self {
        self.on_bad = on_bad;
        self
    }

    fn name(&self, lane: u32) -> String {
        format!("lane {lane} of {}", self.lanes)
    }
}

impl<T: FromLog + Data> Source for LogSource<T> {
    type Item = LogRecord<T>;
    type Position = LogPosition;
    type Reader = LogSourceReader<T>;

    fn kind(&self) -> &'static str {
        "log"
    }

    fn splits(&self) -> Result<Vec<String>> {
        if !(1..=MAX_SHARDS).contains(&self.lanes) {
            return Err(
                Error::config(format!("a log cannot be read in {} lanes", self.lanes)).hint("give it 1 to 1024")
            );
        }
        Ok((0..self.lanes).map(|lane| self.name(lane)).collect())
    }

    fn open(&self, split: &str, from: Option<LogPosition>, waker: Waker) -> Result<LogSourceReader<T>> {
        let lane = (0..self.lanes).find(|lane| self.name(*lane) == split);
        let lane = lane.ok_or_else(|| Error::internal(format!("there is no split `{split}`")))?;
        let (keys, core) = (Keys::part(lane, self.lanes), self.log.core());
        // First this, so that nothing is appended between the look and the watch.
        let watch = Watch::new(core, waker.clone());
        let lane = Lane::open(core, keys, from, self.start, self.bounded)?;
        Ok(LogSourceReader {
            lane,
            waker,
            skip_expired: self.skip_expired,
            on_bad: self.on_bad,
            _watch: watch,
            _log: self.log.clone(),
            of: PhantomData,
        })
    }
}

/// Reads one lane of a [`LogSource`].
pub struct LogSourceReader<T> {
    lane: Lane,
    waker: Waker,
    skip_expired: bool,
    on_bad: OnBadRecord,
    _watch: Watch,
    _log: Log,
    of: PhantomData<fn() -> T>,
}

impl<T: FromLog + Data> SplitReader for LogSourceReader<T> {
    type Item = LogRecord<T>;
    type Position = LogPosition;

    fn read(&mut self, max: usize, out: &mut impl Output<LogRecord<T>>) -> Result<Read> {
        let mut given = 0;
        let on_bad = self.on_bad;
        let read = self.lane.read(max, max.saturating_mul(PASSED_OVER), |stored| {
            match value_or_bad::<T>(stored, on_bad)? {
                Ok(value) => out.record(stored.with(value)),
                Err(bad) => out.bad(bad),
            }
            given += 1;
            Ok(())
        });
        let reached = match read {
            Err(LogError::Expired { .. }) if self.skip_expired => {
                for (shard, lost) in self.lane.skip_expired() {
                    let reason = format!("{} records have expired before they were read", lost.end - lost.start);
                    let split = format!("shard {shard}, from {} to {}", lost.start, lost.end - 1);
                    tracing::warn!("{split}: {reason}");
                    out.bad(BadRecord { split, line: 0, reason, text: String::new() });
                }
                return Ok(Read::More);
            }
            other => other.map_err(unread)?,
        };
        match reached {
            Reached::More => Ok(Read::More),
            Reached::End => Ok(Read::Ended),
            // Asked again, it sleeps; but what it has goes on its way first.
            Reached::Caught if given > 0 => Ok(Read::Later(Duration::ZERO)),
            Reached::Caught => {
                self.waker.will_sleep();
                if self.lane.is_behind() {
                    return Ok(Read::More);
                }
                self.lane.core().check()?;
                Ok(Read::Empty)
            }
        }
    }

    fn position(&self) -> LogPosition {
        self.lane.position()
    }

    fn has_caught_up(&self) -> bool {
        true
    }
}

/// The value of a record, or the report of one that is none.
pub(super) fn value_or_bad<T: FromLog>(
    stored: &Stored<'_>,
    on_bad: OnBadRecord,
) -> Result<std::result::Result<T, BadRecord>, LogError> {
    match stored.kind {
        Kind::Value => match value_of::<T>(stored) {
            Err(error) if on_bad == OnBadRecord::Drop => {
                let text = String::from_utf8_lossy(stored.value).chars().take(1_000).collect();
                let split = format!("shard {}, record {}", stored.shard, stored.sequence);
                Ok(Err(BadRecord { split, line: 0, reason: error.to_string(), text }))
            }
            value => value.map(Ok),
        },
        // Its source has decided that the job goes on.
        Kind::Bad => value_of::<BadRecord>(stored).map(Err),
    }
}

/// An error while reading, for a job.
pub(super) fn unread(error: LogError) -> Error {
    match error {
        LogError::Json { what, source } => Error::data(what).because(source).hint(
            "read it with the type that it was written with, or leave it out by `on_bad_record(OnBadRecord::Drop)`",
        ),
        other => other.into(),
    }
}
