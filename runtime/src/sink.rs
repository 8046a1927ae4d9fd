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

use crate::error::Result;
use crate::moment::Epoch;
use crate::record::{Data, Record};

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

    /// Makes everything written since the last call durable, and names it. Nothing written: no handles.
    ///
    /// # Errors
    /// An error fails the job; nothing of this epoch will be committed.
    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<String>>;
}

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
