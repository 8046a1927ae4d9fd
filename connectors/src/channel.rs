//! A source that yields what the rest of the program sends: a bounded channel with one split.
//!
//! **Not replayable**: a record that was read is gone, so after a crash what was read since the last checkpoint is lost,
//! and a channel serves one run of a job. What was sent and not yet read when a job is stopped is lost as well: have the
//! senders stop first. The source ends when all senders are dropped and everything sent is read.
//!
//! Senders wait while the channel is full, which is how a job slows down the program that feeds it. They may send before
//! the job runs, up to the capacity.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::source::{Output, Read, Source, SplitReader, Waker};

/// A channel for `capacity` records (at least 1) into a job.
///
/// ```
/// use millstream_connectors::channel;
///
/// let (sender, source) = channel(100);
/// sender.send(1).expect("the source is there");
/// # drop(source);
/// ```
pub fn channel<T: Data>(capacity: usize) -> (ChannelSender<T>, ChannelSource<T>) {
    // With no capacity at all a sender would wait for a reader that only looks when it was woken.
    let (sender, receiver) = crossbeam_channel::bounded(capacity.max(1));
    let waker = Arc::new(OnceLock::new());
    let source = ChannelSource { receiver: Mutex::new(Some(receiver)), waker: waker.clone() };
    (ChannelSender { sender: Some(sender), waker }, source)
}

/// Sends records into a job. Clones send into the same channel; the source ends when the last one is dropped.
pub struct ChannelSender<T> {
    /// Only `None` while it is dropped.
    sender: Option<Sender<T>>,
    waker: Arc<OnceLock<Waker>>,
}

impl<T> ChannelSender<T> {
    /// Sends `value`, waiting while the channel is full.
    ///
    /// # Errors
    /// Gives the value back when the job has ended.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let Some(sender) = &self.sender else { return Err(SendError(value)) };
        sender.send(value).map_err(|e| SendError(e.0))?;
        self.wake();
        Ok(())
    }

    /// Sends `value` if there is room now.
    ///
    /// # Errors
    /// Gives the value back when the channel is full or the job has ended.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let Some(sender) = &self.sender else { return Err(TrySendError::Closed(value)) };
        sender.try_send(value).map_err(|e| match e {
            crossbeam_channel::TrySendError::Full(value) => TrySendError::Full(value),
            crossbeam_channel::TrySendError::Disconnected(value) => TrySendError::Closed(value),
        })?;
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // Without a waker nothing reads yet, and what reads looks into the channel before it sleeps.
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

impl<T> Clone for ChannelSender<T> {
    fn clone(&self) -> Self {
        ChannelSender { sender: self.sender.clone(), waker: self.waker.clone() }
    }
}

impl<T> Drop for ChannelSender<T> {
    fn drop(&mut self) {
        // First the sender: a reader that wakes must find the channel closed if this was the last one.
        drop(self.sender.take());
        self.wake();
    }
}

impl<T> fmt::Debug for ChannelSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelSender").finish_non_exhaustive()
    }
}

/// A value that could not be sent because the job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendError<T>(pub T);

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the job that reads the channel has ended")
    }
}

impl<T: fmt::Debug> std::error::Error for SendError<T> {}

/// A value that could not be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The channel is full.
    Full(T),
    /// The job has ended.
    Closed(T),
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "the channel is full",
            TrySendError::Closed(_) => "the job that reads the channel has ended",
        })
    }
}

impl<T: fmt::Debug> std::error::Error for TrySendError<T> {}

/// What was sent, as a source; see [`channel`].
#[derive(Debug)]
pub struct ChannelSource<T> {
    receiver: Mutex<Option<Receiver<T>>>,
    waker: Arc<OnceLock<Waker>>,
}

impl<T: Data> Source for ChannelSource<T> {
    type Item = T;
    type Position = ();
    type Reader = ChannelReader<T>;

    fn kind(&self) -> &'static str {
        "channel"
    }

    fn replayable(&self) -> bool {
        false
    }

    fn splits(&self) -> Result<Vec<String>> {
        Ok(vec!["channel".to_string()])
    }

    fn open(&self, _split: &str, _from: Option<()>, waker: Waker) -> Result<ChannelReader<T>> {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let receiver = receiver.ok_or_else(|| {
            Error::config("a channel cannot be read by a second run of a job")
                .hint("make a new channel for each run, or use a source that can be replayed, such as files")
        })?;
        // The receiver can be taken only once, so the cell is empty.
        let waker = self.waker.get_or_init(|| waker).clone();
        Ok(ChannelReader { receiver, waker })
    }
}

/// Reads a [`ChannelSource`].
#[derive(Debug)]
pub struct ChannelReader<T> {
    receiver: Receiver<T>,
    waker: Waker,
}

impl<T: Data> SplitReader for ChannelReader<T> {
    type Item = T;
    type Position = ();

    fn read(&mut self, max: usize, out: &mut impl Output<T>) -> Result<Read> {
        for taken in 0..max {
            let mut received = self.receiver.try_recv();
            if matches!(received, Err(TryRecvError::Empty)) {
                if taken > 0 {
                    // Asked again, it sleeps; but what it has goes on its way first.
                    return Ok(Read::Later(Duration::ZERO));
                }
                self.waker.will_sleep();
                received = self.receiver.try_recv();
            }
            match received {
                Ok(value) => out.record(value),
                Err(TryRecvError::Empty) => return Ok(Read::Empty),
                Err(TryRecvError::Disconnected) => return Ok(Read::Ended),
            }
        }
        Ok(Read::More)
    }

    fn position(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::source::Batch;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn open<T: Data>(source: &ChannelSource<T>, waker: Waker) -> ChannelReader<T> {
        source.open("channel", None, waker).unwrap()
    }

    #[test]
    fn what_was_sent_before_is_read_and_the_end_is_seen() {
        let (sender, source) = channel(2);
        sender.send(1).unwrap();
        sender.clone().send(2).unwrap();
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let mut reader = open(
            &source,
            Waker::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
        let mut batch = Batch::default();
        assert_eq!(reader.read(1, &mut batch).unwrap(), Read::More);
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Later(Duration::ZERO), "there is no more at once");
        assert_eq!(batch.records, [1, 2]);
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Empty);
        sender.send(4).unwrap();
        sender.send(5).unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1, "only a reader that sleeps is woken");
        reader.read(5, &mut batch).unwrap();
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Empty);
        drop(sender);
        assert_eq!(woken.load(Ordering::SeqCst), 2);
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Ended);
        assert_eq!(batch.records, [1, 2, 4, 5]);
    }

    #[test]
    fn a_second_run_is_refused_and_an_ended_one_closes_the_channel() {
        let (sender, source) = channel(1);
        let reader = open(&source, Waker::new(|| {}));
        let error = source.open("channel", None, Waker::new(|| {})).unwrap_err();
        assert!(error.to_string().contains("second run"), "{error}");
        drop(reader);
        assert_eq!(sender.send(1), Err(SendError(1)));
        assert_eq!(sender.try_send(1), Err(TrySendError::Closed(1)));
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        for capacity in [0, 1, 3] {
            let (sender, source) = channel(capacity);
            let reading = std::thread::current();
            let mut reader = open(&source, Waker::new(move || reading.unpark()));
            std::thread::scope(|scope| {
                for part in 0..2 {
                    let sender = sender.clone();
                    scope.spawn(move || (0..5_000).for_each(|n| sender.send(part * 5_000 + n).unwrap()));
                }
                drop(sender);
                let mut batch = Batch::default();
                loop {
                    match reader.read(16, &mut batch).unwrap() {
                        Read::Ended => break,
                        Read::Empty => std::thread::park(),
                        _ => {}
                    }
                }
                batch.records.sort_unstable();
                assert!(batch.records.into_iter().eq(0..10_000));
            });
        }
    }
}
