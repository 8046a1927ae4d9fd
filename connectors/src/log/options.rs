//! How a log is made, kept and read: the choices, and their limits.

use std::time::Duration;

use millstream_runtime::time::EventTime;

use super::error::LogError;
use super::shard::ShardId;

/// The longest key of a record, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;
/// The largest value of a record, in bytes.
pub const MAX_VALUE_BYTES: usize = 16 << 20;
/// The most shards that may be open at the same time.
pub const MAX_SHARDS: u32 = 1024;
/// The least that a log may be told to keep, in bytes.
const LEAST_BYTES: u64 = 1 << 20;

/// When an append is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk: it survives a crash of the machine. Appends that wait at the same time share one sync.
    #[default]
    Synced,
    /// When the operating system has it: it survives a crash of this process. It is synced within this time, and readers see
    /// it only then, so that no reader is ever ahead of what a crash of the machine leaves.
    SyncedWithin(Duration),
}

/// How a log is opened. What is not said stays as it is here.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub(super) shards: Option<u32>,
    pub(super) keep_for: Option<Duration>,
    pub(super) keep_bytes: Option<u64>,
    pub(super) durability: Durability,
    pub(super) salvage: bool,
}

impl LogOptions {
    /// 1 shard, everything kept for ever, every append synced.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many shards a new log begins with, 1 to [`MAX_SHARDS`]. A log that is there already keeps those it has.
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Drops records that were appended longer ago than this, in stretches: some stay an eighth longer.
    #[must_use]
    pub fn keep_for(mut self, age: Duration) -> Self {
        self.keep_for = Some(age);
        self
    }

    /// Drops the oldest records when keys and values of all come to more than this (at least 1 MiB), in stretches, so that up
    /// to an eighth less is kept. Files on disk are compressed, and some wait to be compacted.
    #[must_use]
    pub fn keep_bytes(mut self, bytes: u64) -> Self {
        self.keep_bytes = Some(bytes);
        self
    }

    /// When appends are acknowledged.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Opens a log whose write-ahead log is damaged in the middle, without the records from there on; positions of readers from
    /// before are then refused. Otherwise such a log is not opened. An append that a crash cut off at the very end is no damage.
    #[must_use]
    pub fn salvage(mut self) -> Self {
        self.salvage = true;
        self
    }

    pub(super) fn check(&self) -> Result<(), LogError> {
        if self.shards.is_some_and(|shards| !(1..=MAX_SHARDS).contains(&shards)) {
            let message = format!("a log cannot have {} shards", self.shards.unwrap_or_default());
            return Err(LogError::refused(message, "give it 1 to 1024; it can be resharded later"));
        }
        if self.keep_for.is_some_and(|age| age < Duration::from_millis(10)) {
            return Err(LogError::refused("a log cannot keep records for less than 10 ms", "give a longer time"));
        }
        if self.keep_bytes.is_some_and(|bytes| bytes < LEAST_BYTES) {
            return Err(LogError::refused("a log cannot be kept below 1 MiB", "give more bytes"));
        }
        Ok(())
    }

    /// The bytes after which a stretch of a shard is closed, when so many shards are open.
    pub(super) fn stretch_bytes(&self, open: usize) -> u64 {
        let all = self.keep_bytes.unwrap_or(u64::MAX) / (8 * open.max(1) as u64);
        all.clamp(4 << 10, 8 << 20)
    }

    /// The time after which a stretch of a shard is closed, in ms.
    pub(super) fn stretch_ms(&self) -> u64 {
        self.keep_for.map_or(u64::MAX, |age| millis(age) / 8).max(1)
    }

    pub(super) fn keep_ms(&self) -> Option<u64> {
        self.keep_for.map(millis)
    }

    /// How often age is looked at.
    pub(super) fn tick(&self) -> Option<Duration> {
        self.keep_for.map(|age| (age / 8).min(Duration::from_secs(10)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Where a reader that has no position yet begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record that is kept when reading begins.
    #[default]
    TrimHorizon,
    /// With the next record that is appended.
    Latest,
    /// With this record, and everything that was appended to any shard after it.
    Sequence(ShardId, u64),
    /// With the first record that was appended at this time or later, of those that are kept.
    Time(EventTime),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_themselves_are_allowed() {
        let (least_age, least_bytes) = (Duration::from_millis(10), 1 << 20);
        let less = Duration::from_micros(9_999);
        for (options, fine) in [
            (LogOptions::new(), true),
            (LogOptions::new().shards(1), true),
            (LogOptions::new().shards(1_024), true),
            (LogOptions::new().shards(1_025), false),
            (LogOptions::new().keep_for(least_age), true),
            (LogOptions::new().keep_for(less), false),
            (LogOptions::new().keep_bytes(least_bytes), true),
            (LogOptions::new().keep_bytes(least_bytes - 1), false),
        ] {
            assert_eq!(options.check().is_ok(), fine, "{options:?}");
        }
    }

    #[test]
    fn a_stretch_is_an_eighth_of_what_is_kept_of_a_shard() {
        let keep = |bytes| LogOptions::new().keep_bytes(bytes);
        assert_eq!(keep(1 << 20).stretch_bytes(1), 128 << 10);
        assert_eq!(keep(1 << 20).stretch_bytes(4), 32 << 10);
        assert_eq!(keep(1 << 20).stretch_bytes(1_000), 4 << 10, "not less than that");
        assert_eq!(LogOptions::new().stretch_bytes(1), 8 << 20, "nor more than that");

        let keep = |age| LogOptions::new().keep_for(age);
        assert_eq!(keep(Duration::from_secs(8)).stretch_ms(), 1_000);
        assert_eq!(keep(Duration::from_millis(10)).stretch_ms(), 1);
        assert_eq!(LogOptions::new().stretch_ms(), u64::MAX);
    }

    #[test]
    fn age_is_looked_at_when_a_stretch_may_have_come_of_age() {
        assert_eq!(LogOptions::new().keep_ms(), None);
        assert_eq!(LogOptions::new().tick(), None);
        let eight = LogOptions::new().keep_for(Duration::from_secs(8));
        assert_eq!((eight.keep_ms(), eight.tick()), (Some(8_000), Some(Duration::from_secs(1))));
        let day = LogOptions::new().keep_for(Duration::from_secs(86_400));
        assert_eq!(day.tick(), Some(Duration::from_secs(10)), "often enough if it is long");
        let ever = LogOptions::new().keep_for(Duration::MAX);
        assert_eq!(ever.keep_ms(), Some(u64::MAX));
    }
}
