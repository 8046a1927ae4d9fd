//! What goes to the pool and comes back: records, answers, and to whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;

use super::super::LateWaker;
use crate::call::Call;
use crate::error::Error;

/// A record on its way through the pool.
pub(super) struct Errand<T> {
    pub worker: usize,
    pub batch: u64,
    pub row: u32,
    pub record: Arc<T>,
    /// How many were begun.
    pub attempts: u32,
}

/// What came of a record.
pub(super) type Answer<C> = Result<<C as Call>::Out, Missed<<C as Call>::In>>;

/// A record whose last attempt failed.
pub(super) struct Missed<T> {
    pub error: Error,
    pub record: Arc<T>,
    pub attempts: u32,
    pub certain: bool,
}

pub(super) struct Done<C: Call> {
    pub batch: u64,
    pub row: u32,
    pub answer: Answer<C>,
}

/// A worker, as the pool knows it.
pub(super) struct Member<C: Call> {
    pub sender: Sender<Done<C>>,
    pub woken: Arc<AtomicBool>,
    pub waker: LateWaker,
}

impl<C: Call> Member<C> {
    /// Hands it what is done, and wakes it unless it was woken since it looked last.
    pub(super) fn hand_over(&self, done: Done<C>) {
        // A worker that is gone needs no answer.
        let _ = self.sender.send(done);
        if !self.woken.swap(true, Ordering::SeqCst)
            && let Some(wake) = self.waker.get()
        {
            wake();
        }
    }
}
