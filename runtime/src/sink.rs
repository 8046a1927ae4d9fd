//! What a sink is: writers on the workers, and one committer that makes their output visible.
//!
//! **Exactly once by two steps.** Each worker's [`SinkWriter`] writes the output of an epoch where nobody looks for it.
//! When the epoch closes the writer *prepares*: everything is durable, and handles name it. The handles go into the
//! checkpoint's manifest. Once that is published, the [`Committer`] *commits* the handles: the output becomes visible.
//! A crash between the two is repaired at the next start, which commits the newest manifest's handles again. So a
//! commit may be repeated, and must not mind.
//!
//! Sinks without these steps (standard output, a closure) are allowed: their output is seen at once, and after a crash
//! what came after the last checkpoint is seen again.
//!
//! **Replay.** A sink that formats bytes keeps [`digests`](SinkWriter::digests) of what it writes, so that a replay can be
//! compared with the run; one that has a place can be [`redirected`](Sink::redirected) to another, and may be able to
//! [read back](Stored) what it committed. Each of these is optional.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::digest::Digests;
use crate::error::Result;
use crate::moment::Epoch;
use crate::record::{Data, Record};
use crate::time::EventTime;

/// A place for records to go.
pub trait Sink<T: Data>: Send + 'static {
    /// What writes on one worker.
    type Writer: SinkWriter<T>;

    /// A word or two for plans and logs, such as `csv files`.
    fn kind(&self) -> &'static str;

    /// Opens the writer of one worker.
    ///
    /// # Errors
    /// When the place cannot be written to.
    fn writer(&self, task: &SinkTask) -> Result<Self::Writer>;

    /// What commits the prepared output of all workers; `None` when output is visible as it is written.
    fn committer(&self, job: &str) -> Option<Box<dyn Committer>>;

    /// The same sink with another place, for a replay; `None` when it has no place that could be another.
    fn redirected(&self, _to: &Redirect) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// What can read back what this sink committed, if anything can.
    fn stored(&self) -> Option<Box<dyn Stored>> {
        None
    }
}

/// Where a sink writes in a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// To this directory, which is its own and empty.
    Into {
        /// Which; it need not exist.
        dir: PathBuf,
        /// Whether it is also to be noted when each row happened, so that [`Stored`] can tell.
        times: bool,
    },
    /// Nowhere: it only keeps digests.
    Discard,
}

/// Reads back what a sink committed.
pub trait Stored: Send {
    /// Hands every row of `epochs` to `each`, in any order: what was committed, and of what was prepared the handles in
    /// `prepared`. Output that is no longer there is passed over: whoever reads it may take it away.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    fn rows(
        &self,
        epochs: RangeInclusive<Epoch>,
        prepared: &[String],
        each: &mut dyn FnMut(StoredRow<'_>) -> Result<()>,
    ) -> Result<()>;

    /// A row as named fields, as far as it has names. `head` and `bytes` are those of a [`StoredRow`].
    fn fields(&self, head: &[u8], bytes: &[u8]) -> Vec<(String, String)>;
}

/// One row that was read back.
#[derive(Clone, Copy, Debug)]
pub struct StoredRow<'a> {
    /// In which epoch it was written.
    pub epoch: Epoch,
    /// When it happened, where that was noted.
    pub at: Option<EventTime>,
    /// What stands once in front of many rows and is needed to understand them, such as the header of a CSV file.
    pub head: &'a [u8],
    /// The very bytes of which the digest was taken.
    pub bytes: &'a [u8],
}

/// Which part of a sink a writer is.
#[derive(Clone, Debug)]
pub struct SinkTask {
    /// This worker, counted from 0.
    pub worker: usize,
    /// A token of 8 characters `0-9a-f`, new for every start of the job, so that an aborted attempt's files never pass
    /// for this one's.
    pub execution: String,
}

/// Writes on one worker, on the worker's thread.
pub trait SinkWriter<T: Data>: Send + 'static {
    /// Takes the records (leaving `records` empty); they belong to `epoch`. Epochs never go back.
    ///
    /// # Errors
    /// An error fails the job; nothing of this epoch will be committed.
    fn write(&mut self, epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()>;

    /// Which record of the batch that [`write`](Self::write) was given is being written, counted from 0; asked when it
    /// failed, so that the error can name the record, and the job set it aside if it may. `None`: not known, the batch is named.
    fn row(&self) -> Option<usize> {
        None
    }

    /// Ends what was written since the last call, and names it. Nothing written: no handles. It must be durable when this returns,
    /// or when what [`finish`](Self::finish) returns has run.
    ///
    /// # Errors
    /// An error fails the job; nothing of this epoch will be committed.
    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<String>>;

    /// Called after each [`prepare`](Self::prepare): what is still to be done until all that it named is durable. It runs on another
    /// thread, before the checkpoint is published, while this worker goes on: a disk may take long. `None`: nothing.
    fn finish(&mut self) -> Option<Finish> {
        None
    }

    /// Digests of what the last call of [`prepare`](Self::prepare) prepared, empty where that was nothing; asked once after each.
    /// `None`: it keeps none.
    fn digests(&mut self) -> Option<Digests> {
        None
    }
}

/// The last step of making prepared output durable; see [`SinkWriter::finish`].
pub type Finish = Box<dyn FnOnce() -> Result<()> + Send>;

/// Makes prepared output visible, on the coordinator's thread.
pub trait Committer: Send + 'static {
    /// Takes hold of the place (one job at a time), for as long as the committer lives. Called of all sinks before any
    /// output or checkpoint is moved, so that a start that is refused because somebody holds a place has changed nothing.
    ///
    /// # Errors
    /// When another job holds the place.
    fn lock(&mut self) -> Result<()> {
        Ok(())
    }

    /// Whether [`recover`](Self::recover) with these arguments would find output that it cannot or must not withdraw. Changes nothing; called
    /// of all sinks before any checkpoint or output is moved, so that one sink's refusal leaves all as it was. A sink that can always
    /// withdraw needs no such check.
    ///
    /// # Errors
    /// Those of `recover`, as far as they can be known before.
    fn may_recover(&mut self, restored: Option<Epoch>, withdraw: bool) -> Result<()> {
        let _ = (restored, withdraw);
        Ok(())
    }

    /// Called before anything runs, with the lock held; and again, with what the attempt before has left, before every restart
    /// within the process: brings the place to the state of the checkpoint `restored`
    /// (`None`: a fresh start): commits `handles`, its prepared output, again; removes what others prepared; and, where
    /// output later than the checkpoint is visible, moves it aside if `withdraw`, else refuses.
    ///
    /// # Errors
    /// When later output is there and `withdraw` is false.
    fn recover(&mut self, restored: Option<Epoch>, handles: &[String], withdraw: bool) -> Result<()>;

    /// Makes the output named by `handles` visible. Repeating it changes nothing.
    ///
    /// # Errors
    /// An error fails the job; the commit is repeated at the next start.
    fn commit(&mut self, handles: &[String]) -> Result<()>;
}
