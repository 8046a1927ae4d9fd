//! A log as a sink of jobs, exactly once.
//!
//! What a writer gets in an epoch is staged in the log's database, where no reader looks. `prepare` returns when that is durable.
//! The commit appends what was staged, notes that it did, and empties the stage, all in one write: readers see an epoch as a
//! whole, and a commit that is repeated after a crash finds nothing to do. Output that is withdrawn stays where it is, and
//! readers pass over it.
//!
//! **Order**: the records of an epoch are in the order in which each worker wrote them, one worker after another. A key that one
//! worker writes alone keeps its order.
//!
//! **Limits**: while an epoch is committed its output is in memory once. The last 1,000 epochs can be withdrawn. **Errors**: `User` for a value that does not write as JSON;
//! `State` when the log has failed; `Config` when another job uses the sink's name.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};
use serde::Serialize;

use super::Log;
use super::core::{Hold, Reply, Request};
use super::error::LogError;
use super::record::Entry;

/// A chunk is staged when it has this many bytes.
const CHUNK: u64 = 1 << 20;
/// So many chunks of a writer may be on their way.
const ON_THE_WAY: usize = 4;

/// The key of a value.
type KeyOf<T> = Arc<dyn Fn(&T) -> String + Send + Sync>;

/// Appends to a log in a job; see [`Log::sink`].
pub struct LogSink<T> {
    log: Log,
    name: String,
    key: KeyOf<T>,
}

impl<T> fmt::Debug for LogSink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogSink").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T> LogSink<T> {
    pub(super) fn new(log: &Log, name: &str, key: impl Fn(&T) -> String + Send + Sync + 'static) -> Self {
        LogSink { log: log.clone(), name: name.to_string(), key: Arc::new(key) }
    }
}

/// Names stand in handles and keys.
pub(super) fn check_name(name: &str) -> Result<(), LogError> {
    let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(fine) {
        return Ok(());
    }
    Err(LogError::refused(
        format!("`{}` cannot be the name of a part of a log", name.escape_debug()),
        "a name has 1 to 64 of the characters a-z, 0-9, _ and -",
    ))
}

impl<T: Data + Serialize> Sink<T> for LogSink<T> {
    type Writer = LogSinkWriter<T>;

    fn kind(&self) -> &'static str {
        "log"
    }

    fn writer(&self, task: &SinkTask) -> Result<LogSinkWriter<T>> {
        check_name(&self.name)?;
        let (log, key, sink) = (self.log.clone(), Arc::clone(&self.key), self.name.clone());
        Ok(LogSinkWriter { log, key, sink, task: task.clone(), parts: BTreeMap::new(), row: 0 })
    }

    fn committer(&self, _job: &str) -> Option<Box<dyn Committer>> {
        Some(Box::new(LogCommitter { log: self.log.clone(), sink: self.name.clone(), hold: None }))
    }
}

/// Writes for one worker of a [`LogSink`].
pub struct LogSinkWriter<T> {
    log: Log,
    key: KeyOf<T>,
    sink: String,
    task: SinkTask,
    parts: BTreeMap<Epoch, Part>,
    row: usize,
}

/// What was written in one epoch.
#[derive(Default)]
struct Part {
    entries: Vec<Entry>,
    bytes: u64,
    chunks: u32,
    answers: VecDeque<Receiver<Result<(), LogError>>>,
}

impl Part {
    /// Sends what is there to the stage.
    fn stage(&mut self, log: &Log, handle: &str, sync: bool) -> Result<(), LogError> {
        let (entries, chunk) = (std::mem::take(&mut self.entries), self.chunks);
        let (reply, answer) = Reply::new(None);
        log.core()
            .request(Request::Stage { handle: handle.to_string(), chunk, entries, sync, reply }, true)?;
        self.answers.push_back(answer);
        self.chunks += 1;
        self.bytes = 0;
        self.settle(log, if sync { 0 } else { ON_THE_WAY })
    }

    /// Waits until no more than `left` chunks are on their way.
    fn settle(&mut self, log: &Log, left: usize) -> Result<(), LogError> {
        while self.answers.len() > left {
            let Some(answer) = self.answers.pop_front() else { break };
            log.core().answer(answer.recv())?;
        }
        Ok(())
    }
}

impl<T: Data + Serialize> LogSinkWriter<T> {
    fn handle(&self, epoch: Epoch) -> String {
        let (sink, worker, execution) = (self.sink.clone(), self.task.worker, self.task.execution.clone());
        Handle { sink, epoch, worker, execution }.to_string()
    }
}

impl<T: Data + Serialize> SinkWriter<T> for LogSinkWriter<T> {
    fn write(&mut self, epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()> {
        let handle = self.handle(epoch);
        let part = self.parts.entry(epoch).or_default();
        for (row, record) in records.drain(..).enumerate() {
            self.row = row;
            let entry = Entry::json((self.key)(&record.value), &record.value)?;
            part.bytes += entry.bytes();
            part.entries.push(entry);
            if part.bytes >= CHUNK {
                part.stage(&self.log, &handle, false)?;
            }
        }
        Ok(())
    }

    fn row(&self) -> Option<usize> {
        Some(self.row)
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<String>> {
        let mut handles = Vec::new();
        while let Some((of, mut part)) = self.parts.pop_first() {
            if of > epoch {
                self.parts.insert(of, part);
                break;
            }
            if part.chunks > 0 || !part.entries.is_empty() {
                let handle = self.handle(of);
                // Synced, and so is everything before it.
                part.stage(&self.log, &handle, true)?;
                handles.push(handle);
            }
        }
        Ok(handles)
    }
}

/// What one worker prepared in one epoch, as it stands in checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub sink: String,
    pub epoch: Epoch,
    pub worker: usize,
    pub execution: String,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Handle { sink, epoch, worker, execution } = self;
        write!(f, "{sink}.e{epoch:010}.w{worker:03}.{execution}")
    }
}

impl Handle {
    /// What comes from a checkpoint is looked at before it is used as a key.
    pub fn parse(text: &str) -> Option<Handle> {
        let mut parts = text.split('.');
        let (sink, epoch, worker, execution) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let handle = Handle {
            sink: sink.to_string(),
            epoch: epoch.strip_prefix('e')?.parse().ok()?,
            worker: worker.strip_prefix('w')?.parse().ok()?,
            execution: execution.to_string(),
        };
        let token = execution.len() == 8 && execution.bytes().all(|byte| byte.is_ascii_hexdigit());
        (token && check_name(sink).is_ok() && handle.to_string() == text).then_some(handle)
    }
}

/// Commits what the workers of a [`LogSink`] have prepared.
struct LogCommitter {
    sink: String,
    hold: Option<Hold>,
    // The last to go: the hold uses it.
    log: Log,
}

impl LogCommitter {
    fn handles(&self, handles: &[String]) -> Result<Vec<Handle>> {
        let parse = |text: &String| {
            let handle = Handle::parse(text).filter(|handle| handle.sink == self.sink);
            handle.ok_or_else(|| {
                Error::state(format!("`{}` is no output of sink `{}` of a log", text.escape_debug(), self.sink))
                    .hint("give the sink the name that it had when the checkpoint was taken")
            })
        };
        handles.iter().map(parse).collect()
    }
}

impl Committer for LogCommitter {
    fn lock(&mut self) -> Result<()> {
        check_name(&self.sink)?;
        if self.hold.is_none() {
            self.hold = Some(Hold::take(self.log.core(), format!("sink `{}`", self.sink))?);
        }
        Ok(())
    }

    fn may_recover(&mut self, restored: Option<Epoch>, withdraw: bool) -> Result<()> {
        self.lock()?;
        let sink = self.sink.clone();
        Ok(self.log.core().ask(|reply| Request::MayRecover { sink, restored, withdraw, reply })?)
    }

    fn recover(&mut self, restored: Option<Epoch>, handles: &[String], withdraw: bool) -> Result<()> {
        self.lock()?;
        let (sink, handles) = (self.sink.clone(), self.handles(handles)?);
        Ok(self.log.core().ask(|reply| Request::Recover { sink, restored, handles, withdraw, reply })?)
    }

    fn commit(&mut self, handles: &[String]) -> Result<()> {
        let handles = self.handles(handles)?;
        Ok(self.log.core().ask(|reply| Request::Commit { handles, reply })?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::LogOptions;
    use super::*;

    #[test]
    fn handles_are_read_back_and_nothing_else_is() {
        let handle = Handle { sink: "out_1-a".to_string(), epoch: 12, worker: 3, execution: "0a1b2c3d".to_string() };
        assert_eq!(handle.to_string(), "out_1-a.e0000000012.w003.0a1b2c3d");
        assert_eq!(Handle::parse(&handle.to_string()), Some(handle));
        for text in [
            "",
            "out",
            "out.e0000000012.w003",
            "out.e12.w003.0a1b2c3d",
            "out.e0000000012.w003.0a1b2c3d.x",
            "out.e0000000012.w003.0a1b2c3",
            "o\0ut.e0000000012.w003.0a1b2c3d",
            "../x.e0000000012.w003.0a1b2c3d",
            "out.e+000000012.w003.0a1b2c3d",
        ] {
            assert_eq!(Handle::parse(text), None, "{text}");
        }
    }

    #[test]
    fn who_writes_waits_for_all_chunks_but_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), LogOptions::new()).unwrap();
        let mut part = Part::default();
        for answer in [Ok(()), Ok(()), Err(LogError::mismatch("a test"))] {
            let (reply, receiver) = Reply::new(None);
            reply.send(answer);
            part.answers.push_back(receiver);
        }
        part.settle(&log, 1).unwrap();
        assert_eq!(part.answers.len(), 1);
        assert_eq!(part.settle(&log, 0).unwrap_err().to_string(), "a test");
    }

    #[test]
    fn names_are_checked() {
        for name in ["a", "orders-2_b", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "A", "a b", "a.b", "a/b", "é", "a\0", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
