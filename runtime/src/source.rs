//! What a source is: splits that can be read side by side, each with a position to start again from.
//!
//! A source names its **splits** (files, partitions, shards). Their number never depends on the number of workers; the
//! runtime deals them out. Each split is read by one [`SplitReader`], which can say at any time where it stands; that
//! position goes into every checkpoint, and after a crash the split is opened again at it.
//!
//! **Promises** of a replayable source, on which exactly-once rests: opening a split at a position it reported yields
//! the same records in the same order as the first time. The runtime cannot check this; a source that cannot promise
//! it says so by [`Source::replayable`], and the job then says at its start that records may be lost in a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::record::Data;

/// A set of splits to read.
pub trait Source: Send + 'static {
    /// What it yields.
    type Item: Data;
    /// Where in a split a reader stands; written to checkpoints as JSON.
    type Position: Serialize + DeserializeOwned + Clone + Send + std::fmt::Debug + 'static;
    /// What reads one split.
    type Reader: SplitReader<Item = Self::Item, Position = Self::Position>;

    /// A word or two for plans and logs, such as `csv files`.
    fn kind(&self) -> &'static str;

    /// Whether a split can be opened again at a reported position, with the same records after it.
    fn replayable(&self) -> bool {
        true
    }

    /// The names of all splits, in a fixed order. Called once for every start, before anything runs. Names are shown to people, stand
    /// in checkpoints, and must be unique.
    ///
    /// # Errors
    /// When the splits cannot be found out, for example because a file is missing.
    fn splits(&self) -> Result<Vec<String>>;

    /// Opens `split` at its start, or at a position that its reader reported earlier. `waker` is for readers that
    /// return [`Read::Empty`].
    ///
    /// # Errors
    /// When the split cannot be opened or the position does not exist in it.
    fn open(&self, split: &str, from: Option<Self::Position>, waker: Waker) -> Result<Self::Reader>;
}

/// Reads one split, on a worker thread. It must never block.
pub trait SplitReader: Send + 'static {
    /// What it yields.
    type Item: Data;
    /// Where it stands.
    type Position;

    /// Puts up to `max` further records into `out` and says how to go on.
    ///
    /// # Errors
    /// An error fails the job. A record that cannot be read is not an error but goes to [`Output::bad`].
    fn read(&mut self, max: usize, out: &mut impl Output<Self::Item>) -> Result<Read>;

    /// The position behind the last record that [`read`](Self::read) put out.
    fn position(&self) -> Self::Position;

    /// The text of the last record that [`read`](Self::read) put out, if it is still at hand: for people who look at a record
    /// that was set aside. Asked only right after a single record was read.
    fn text(&self) -> Option<String> {
        None
    }

    /// Whether it has read all there is, so that only what is added from now on can follow. Asked when [`read`](Self::read) has returned
    /// [`Read::Empty`]: a replay, which wants what was there before, then fails instead of waiting for ever.
    fn has_caught_up(&self) -> bool {
        false
    }
}

/// Where a reader puts what it reads, in the order of the split.
///
/// It is a trait so that a record can get its event time at once, without being laid down in between.
pub trait Output<T> {
    /// A record.
    fn record(&mut self, value: T);

    /// Several records; for many this is faster than one by one.
    #[inline]
    fn records(&mut self, values: impl IntoIterator<Item = T>) {
        values.into_iter().for_each(|value| self.record(value));
    }

    /// A record that could not be read.
    fn bad(&mut self, bad: BadRecord);
}

/// What readers read, laid down as it is: for trying them out.
#[derive(Debug)]
pub struct Batch<T> {
    /// Good records, in the order of the split.
    pub records: Vec<T>,
    /// Records that could not be read.
    pub bad: Vec<BadRecord>,
}

impl<T> Output<T> for Batch<T> {
    fn record(&mut self, value: T) {
        self.records.push(value);
    }

    fn bad(&mut self, bad: BadRecord) {
        self.bad.push(bad);
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Batch { records: Vec::new(), bad: Vec::new() }
    }
}

/// How to go on after a call of [`SplitReader::read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Call again as soon as the worker has time: there is more already. As long as readers say so the job goes for
    /// throughput; as soon as they have nothing more to read, for latency.
    More,
    /// Nothing is due before this much time has passed. The split still holds the watermark back.
    Later(Duration),
    /// Nothing is there now; the reader's [`Waker`] will be woken when there is. The split still holds the watermark back.
    Empty,
    /// Nothing will ever come again.
    Ended,
}

/// A record that could not be read: where it is and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct BadRecord {
    /// The split, usually a file's path.
    pub split: String,
    /// Line in the split, counted from 1; 0 where lines mean nothing.
    pub line: u64,
    /// Why it could not be read.
    pub reason: String,
    /// The raw text, as far as it could be had, cut at 1,000 characters.
    pub text: String,
}

impl std::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text comes from outside and may hold anything that a terminal would obey. Quotes stay, so that it can be searched for.
        let text: String = self.text.chars().take(200).collect();
        let text = text.escape_debug().to_string().replace("\\\"", "\"");
        write!(f, "{}:{}: {} in `{text}`", self.split, self.line, self.reason.escape_debug())
    }
}

/// What to do with records that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadRecord {
    /// Fail the job, naming file and line.
    #[default]
    Fail,
    /// Leave it out, and count it.
    Drop,
}

/// Wakes the worker that reads a split, from any thread.
///
/// Cheap to call when the worker is awake anyway: only a reader that said it will sleep is woken.
#[derive(Clone)]
pub struct Waker {
    asleep: Arc<AtomicBool>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waker").field("asleep", &self.asleep).finish_non_exhaustive()
    }
}

impl Waker {
    /// A waker that calls `wake` when its reader is asleep.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Waker { asleep: Arc::new(AtomicBool::new(false)), wake: Arc::new(wake) }
    }

    /// The reader is about to return [`Read::Empty`]. It must look once more for records after this call, so that one
    /// that came in between is not slept on.
    pub fn will_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// There is something to read.
    pub fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            (self.wake)();
        }
    }
}
