//! Makes any source replayable: what it yields is recorded in a log, and given out from there.
//!
//! A split of a recorded source reads its part of the log. Only where it has read everything that is there does it take a batch
//! from the source below, and has the log append it: on the log's own thread, with one sync a batch, while the worker does
//! something else. When the batch is durable it is read from the log like all that came before. So a record that reaches the job
//! is always one that can be read again, in the same order; the job's position is one in the log. While a batch is being
//! synced the one before it is on its way through the job.
//!
//! The position of the source below is written together with the records that it stands behind. So a source that can be read
//! again (files, say) goes on exactly behind its last recorded record.
//!
//! **What a crash loses**: nothing that was recorded. What the source below had handed over and was not recorded yet (one batch
//! a split at most), or had not handed over, is gone if that source cannot be read again. Senders that must know are told by
//! [`Recorded::acknowledge`].
//!
//! Records that the source below could not read are recorded as well, and so are ones that are too large for the log, as bad
//! records with the reason.
//!
//! **Keys**: all records of a split have the key `NAME/SPLIT`, so that their order is that of the split. **Order, time, errors** are
//! otherwise those of [`LogSource`](super::LogSource).

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};
use millstream_runtime::error::Result;
use millstream_runtime::source::{BadRecord, OnBadRecord, Output, Read, Source, SplitReader, Waker};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Log;
use super::core::{Hold, Note, Reply, Request, Watch};
use super::error::LogError;
use super::lane::{Keys, Lane, LogPosition, Reached};
use super::options::Start;
use super::record::{Entry, Kind, Receipt};
use super::sink::check_name;
use super::source::{PASSED_OVER, unread, value_or_bad};
use super::store::input_key;

/// Adds [`recorded`](RecordExt::recorded) to every source whose records serde can write and read.
pub trait RecordExt: Source<Item: Serialize + DeserializeOwned> + Sized {
    /// This source, recorded in `log`.
    ///
    /// ```no_run
    /// use millstream_connectors::log::{Log, LogOptions, RecordExt};
    /// use millstream_connectors::channel;
    ///
    /// let log = Log::open("orders.log", LogOptions::new())?;
    /// let (sender, orders) = channel::<String>(1_000);
    /// let orders = orders.recorded(&log); // for `job.source(orders, ..)`
    /// # Ok::<(), millstream_connectors::log::LogError>(())
    /// ```
    fn recorded(self, log: &Log) -> Recorded<Self> {
        Recorded {
            source: self,
            log: log.clone(),
            name: "input".to_string(),
            acknowledge: None,
            on_bad: OnBadRecord::default(),
        }
    }
}

impl<S: Source<Item: Serialize + DeserializeOwned>> RecordExt for S {}

/// What is told of records that are durable.
type Acknowledge<T> = Arc<dyn Fn(T) + Send + Sync>;

/// A source that is recorded; see [`RecordExt::recorded`].
pub struct Recorded<S: Source> {
    source: S,
    log: Log,
    name: String,
    acknowledge: Option<Acknowledge<S::Item>>,
    on_bad: OnBadRecord,
}

impl<S: Source> std::fmt::Debug for Recorded<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorded").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: Source> Recorded<S> {
    /// Records under this name (1 to 64 of `a-z`, `0-9`, `_` and `-`; otherwise `input`), so that one log can hold several recorded
    /// sources. The name belongs to the recording: under another one, nothing is there yet.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_string();
        self
    }

    /// Calls `acknowledge` with every record of the source below once it is durable, exactly as that source yielded it; so it may
    /// carry, in a field that serde skips, whom to answer. It is called on a worker, and must not wait.
    ///
    /// A crash may come between the recording and the call: what was acknowledged is recorded, but not the other way round.
    #[must_use]
    pub fn acknowledge(mut self, acknowledge: impl Fn(S::Item) + Send + Sync + 'static) -> Self {
        self.acknowledge = Some(Arc::new(acknowledge));
        self
    }

    /// What to do with a recorded record that is not of the source's type any more.
    #[must_use]
    pub fn on_bad_record(mut self, on_bad: OnBadRecord) -> Self {
        self.on_bad = on_bad;
        self
    }
}

/// How far the source below was read, as far as that is recorded.
#[derive(Serialize, Deserialize)]
struct Input<P> {
    position: P,
    ended: bool,
}

impl<S: Source<Item: Serialize + DeserializeOwned>> Source for Recorded<S> {
    type Item = S::Item;
    type Position = LogPosition;
    type Reader = RecordedReader<S>;

    fn kind(&self) -> &'static str {
        self.source.kind()
    }

    fn splits(&self) -> Result<Vec<String>> {
        check_name(&self.name)?;
        self.source.splits()
    }

    fn open(&self, split: &str, from: Option<LogPosition>, waker: Waker) -> Result<RecordedReader<S>> {
        let key = Entry::new(format!("{}/{split}", self.name), Vec::new())?.key;
        let core = self.log.core();
        let hold = Hold::take(core, format!("recording `{key}`"))?;
        let watch = Watch::new(core, waker.clone());
        let lane = Lane::open(core, Keys::key(&key), from, Start::TrimHorizon, false)?;
        let input = core.store.json::<Input<S::Position>>(&input_key(&key))?;
        // A source that cannot be read again begins anew with every start, even where it had ended.
        let ended = self.source.replayable() && input.as_ref().is_some_and(|input| input.ended);
        let from = input.map(|input| input.position);
        let reader = if ended { None } else { Some(self.source.open(split, from, waker.clone())?) };
        Ok(RecordedReader {
            key,
            lane,
            reader,
            below: Read::More,
            waker,
            acknowledge: self.acknowledge.clone(),
            on_bad: self.on_bad,
            pending: None,
            last: None,
            _watch: watch,
            _hold: hold,
            log: self.log.clone(),
        })
    }
}

/// Reads one split of a [`Recorded`] source.
pub struct RecordedReader<S: Source> {
    key: String,
    lane: Lane,
    /// The source below; `None` when it has ended.
    reader: Option<S::Reader>,
    /// What it said last.
    below: Read,
    waker: Waker,
    acknowledge: Option<Acknowledge<S::Item>>,
    on_bad: OnBadRecord,
    /// A batch that is being recorded.
    pending: Option<Pending<S::Item>>,
    /// The last record that was appended.
    last: Option<Receipt>,
    _watch: Watch,
    _hold: Hold,
    // The last to go: everything above uses it.
    log: Log,
}

struct Pending<T> {
    answer: Receiver<Result<Vec<Receipt>, LogError>>,
    /// To be acknowledged.
    records: Vec<T>,
}

impl<S: Source<Item: Serialize + DeserializeOwned>> RecordedReader<S> {
    /// Looks whether the batch has been recorded.
    fn settle(&mut self) -> Result<(), LogError> {
        let Some(Pending { answer, records }) = &mut self.pending else { return Ok(()) };
        let answer = match answer.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            answer => self.log.core().answer(answer)?,
        };
        self.last = answer.last().copied().or(self.last);
        if let Some(acknowledge) = &self.acknowledge {
            records.drain(..).for_each(|record| acknowledge(record));
        }
        self.pending = None;
        Ok(())
    }

    /// Takes a batch from the source below and has it recorded. Returns how that source goes on.
    fn feed(&mut self, max: usize) -> Result<Read> {
        let Some(reader) = &mut self.reader else { return Ok(Read::Ended) };
        let keep = self.acknowledge.is_some();
        let mut intake = Intake { key: &self.key, entries: Vec::new(), records: Vec::new(), keep, failed: None };
        let read = reader.read(max, &mut intake)?;
        let Intake { entries, records, failed, .. } = intake;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let ended = read == Read::Ended;
        if !entries.is_empty() || ended {
            let input = serde_json::to_vec(&Input { position: reader.position(), ended });
            let value = input.map_err(LogError::unwritable::<S::Position>)?;
            let note = Some(Note { key: input_key(&self.key), value });
            let (reply, answer) = Reply::new(Some(self.waker.clone()));
            self.log.core().request(Request::Append { entries, note, reply }, false)?;
            self.pending = Some(Pending { answer, records });
        }
        if ended {
            self.reader = None;
        }
        Ok(read)
    }

    /// Whether everything that was appended is there to be read.
    fn is_published(&self) -> bool {
        let Some(last) = self.last else { return true };
        self.log.core().view().get(last.shard).is_some_and(|shard| shard.next > last.sequence)
    }

    /// Whether a batch is on its way to the disk.
    #[cfg(test)]
    pub(super) fn is_recording(&self) -> bool {
        self.pending.is_some()
    }

    /// Sleeps, unless something has come meanwhile.
    fn sleep(&mut self) -> Result<Read, LogError> {
        self.waker.will_sleep();
        let answered = self.pending.as_ref().is_some_and(|pending| !pending.answer.is_empty());
        if answered || self.lane.is_behind() {
            return Ok(Read::More);
        }
        self.log.core().check()?;
        Ok(Read::Empty)
    }
}

impl<S: Source<Item: Serialize + DeserializeOwned>> SplitReader for RecordedReader<S> {
    type Item = S::Item;
    type Position = LogPosition;

    fn read(&mut self, max: usize, out: &mut impl Output<S::Item>) -> Result<Read> {
        self.settle()?;
        // Asked before the look into the log, so that this has seen what is there.
        let published = self.is_published();
        let mut given = 0;
        let on_bad = self.on_bad;
        let reached = self.lane.read(max, max.saturating_mul(PASSED_OVER), |stored| {
            match value_or_bad::<S::Item>(stored, on_bad)? {
                Ok(value) => out.record(value),
                Err(bad) => out.bad(bad),
            }
            given += 1;
            Ok(())
        });
        if reached.map_err(unread)? == Reached::More {
            return Ok(Read::More);
        }
        if self.pending.is_none() {
            self.below = self.feed(max)?;
        }
        if given > 0 {
            // Asked again, it sleeps if it has to; but what it has goes on its way first.
            return Ok(if self.below == Read::More { Read::More } else { Read::Later(Duration::ZERO) });
        }
        if self.pending.is_some() || !published {
            return Ok(self.sleep()?);
        }
        match self.below {
            Read::Empty => Ok(self.sleep()?),
            below => Ok(below),
        }
    }

    fn position(&self) -> LogPosition {
        self.lane.position()
    }
}

/// Takes what a source yields, as entries of a log.
struct Intake<'a, T> {
    key: &'a str,
    entries: Vec<Entry>,
    /// The records themselves, if they are to be acknowledged.
    records: Vec<T>,
    keep: bool,
    failed: Option<LogError>,
}

impl<T: Serialize> Output<T> for Intake<'_, T> {
    fn record(&mut self, value: T) {
        match Entry::json(self.key, &value) {
            Ok(entry) => self.entries.push(entry),
            // Its key was looked at before, so it is the value that is too large.
            Err(LogError::Refused { message, .. }) => {
                let split = self.key.to_string();
                self.bad(BadRecord { split, line: 0, reason: message, text: String::new() });
            }
            Err(error) => drop(self.failed.get_or_insert(error)),
        }
        if self.keep {
            self.records.push(value);
        }
    }

    fn bad(&mut self, bad: BadRecord) {
        match Entry::json(self.key, &bad) {
            Ok(entry) => self.entries.push(Entry { kind: Kind::Bad, ..entry }),
            Err(error) => drop(self.failed.get_or_insert(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LogOptions;
    use super::*;

    #[test]
    fn a_reader_does_not_sleep_when_there_is_an_answer_or_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), LogOptions::new()).unwrap();
        let (_sender, source) = crate::channel::<u64>(1);
        let mut reader = source.recorded(&log).open("channel", None, Waker::new(|| {})).unwrap();
        let (reply, answer) = Reply::new(None);
        reader.pending = Some(Pending { answer, records: Vec::new() });
        assert_eq!(reader.sleep().unwrap(), Read::Empty);
        reply.send(Ok(Vec::new()));
        assert_eq!(reader.sleep().unwrap(), Read::More);
        reader.settle().unwrap();
        assert_eq!(reader.sleep().unwrap(), Read::Empty);
        reader.last = Some(Receipt { shard: 0, sequence: 0 });
        assert!(!reader.is_published());
        log.append("another", &1).unwrap();
        assert!(reader.is_published());
        assert_eq!(reader.sleep().unwrap(), Read::More);
    }
}
