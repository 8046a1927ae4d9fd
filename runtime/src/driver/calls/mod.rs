//! Calls to the outside, as a worker sees them: it hands records to the [`pool`](pool) that all workers share, and puts together what
//! comes back, batch by batch.
//!
//! **Order**: unordered, a batch gives out what is done of it; ordered, the worker's oldest batch gives out its first rows as far as they
//! are done, and the next batch has its turn when that one has none left. In both, rows of a batch that are sent together are in its order.

mod errand;
mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;

use self::errand::{Answer, Done, Errand, Member};
use self::pool::Pool;
use super::stateless::blame;
use super::{LateWaker, Outbox, Task, guard};
use crate::call::{Call, CallSettings, Failed};
use crate::error::Result;
use crate::poison::Blame;
use crate::rows::{AnyRows, Behind, Lineage, Rows, downcast};
use crate::shared::add;
use crate::time::EventTime;

/// Stands in the job's graph.
pub(crate) trait CallsFactory: Send {
    /// What the workers of one attempt share.
    fn begin(&self, task: Task) -> Box<dyn CallsAttempt>;
}

/// The calls of one attempt to run the job.
pub(crate) trait CallsAttempt: Send + Sync {
    fn build(&self, task: Task, waker: LateWaker) -> Box<dyn CallsLogic>;
}

/// Calls on one worker.
pub(crate) trait CallsLogic {
    /// Takes in a batch, under a number that is greater than that of any before.
    fn take(&mut self, batch: u64, rows: Box<dyn AnyRows>) -> Result<()>;
    /// What was done since it was asked last, in the order in which it is to leave.
    fn made(&mut self) -> Result<Vec<Made>>;
}

/// Results of some rows of a batch.
pub(crate) struct Made {
    pub batch: u64,
    /// By output.
    pub rows: Outbox,
    /// There is nothing more to come of the batch.
    pub is_last: bool,
}

pub(crate) struct CallsNode<C> {
    call: Arc<C>,
    settings: CallSettings,
    /// Whether records that failed have an output.
    keeps_failed: bool,
}

impl<C> CallsNode<C> {
    pub(crate) fn new(mut call: C, settings: CallSettings, keeps_failed: bool) -> Self
    where
        C: Call,
    {
        assert!(settings.threads > 0 && settings.in_flight > 0, "no call would ever be made: {settings:?}");
        call.configure(&settings);
        CallsNode { call: Arc::new(call), settings, keeps_failed }
    }
}

impl<C: Call> CallsFactory for CallsNode<C> {
    fn begin(&self, task: Task) -> Box<dyn CallsAttempt> {
        // Threads whose calls hang outlive the attempt, and must keep nothing open.
        let task = Task { db: None, restored: None, until: None, ..task };
        let pool = Pool::new(Arc::clone(&self.call), self.settings.clone(), task);
        Box::new(Attempt { pool, ordered: self.settings.ordered, keeps_failed: self.keeps_failed })
    }
}

struct Attempt<C: Call> {
    pool: Arc<Pool<C>>,
    ordered: bool,
    keeps_failed: bool,
}

impl<C: Call> CallsAttempt for Attempt<C> {
    fn build(&self, task: Task, waker: LateWaker) -> Box<dyn CallsLogic> {
        let woken = Arc::new(AtomicBool::new(false));
        let (sender, done) = crossbeam_channel::unbounded();
        self.pool.join(task.worker, Member { sender, woken: Arc::clone(&woken), waker });
        Box::new(Logic {
            pool: Arc::clone(&self.pool),
            done,
            woken,
            batches: BTreeMap::new(),
            made: Vec::new(),
            ordered: self.ordered,
            keeps_failed: self.keeps_failed,
            task,
        })
    }
}

struct Logic<C: Call> {
    pool: Arc<Pool<C>>,
    done: Receiver<Done<C>>,
    /// The worker was woken since it looked last.
    woken: Arc<AtomicBool>,
    batches: BTreeMap<u64, Batch<C>>,
    made: Vec<Made>,
    ordered: bool,
    keeps_failed: bool,
    task: Task,
}

/// A batch with rows whose calls are not done, or not sent on.
struct Batch<C: Call> {
    times: Vec<EventTime>,
    behind: Vec<Behind>,
    lineage: Option<Lineage>,
    /// What is done and not sent on, by row.
    done: BTreeMap<u32, Answer<C>>,
    /// How many rows, from the first on, are sent on; where that goes in order.
    next: u32,
    /// How many rows are not sent on.
    left: usize,
}

impl<C: Call> Batch<C> {
    /// Takes out what may be sent on.
    fn ready(&mut self, ordered: bool) -> Vec<(u32, Answer<C>)> {
        if !ordered {
            return std::mem::take(&mut self.done).into_iter().collect();
        }
        let mut ready = Vec::new();
        while let Some(answer) = self.done.remove(&self.next) {
            ready.push((self.next, answer));
            self.next += 1;
        }
        ready
    }
}

impl<C: Call> Logic<C> {
    /// Puts rows of a batch together that are done.
    fn put_together(&mut self, number: u64, ready: Vec<(u32, Answer<C>)>) -> Result<()> {
        let Some(batch) = self.batches.get_mut(&number) else { return Ok(()) };
        let (mut results, mut failed) = (Rows::default(), Rows::default());
        let (mut results_index, mut failed_index) = (Vec::new(), Vec::new());
        let (lineage, task) = (&batch.lineage, &self.task);
        let place = |row: u32| lineage.as_ref().map_or(0, |l| (l.number(row as usize) - l.first) as u32);
        batch.left -= ready.len();
        for (row, answer) in ready {
            let at = batch.times[row as usize];
            let mark = batch.behind.binary_search_by_key(&row, |behind| behind.row);
            let behind = mark.ok().map(|mark| batch.behind[mark].watermark);
            match answer {
                Ok(value) => {
                    results.push(at, value, behind);
                    results_index.push(place(row));
                }
                Err(missed) if self.keeps_failed => {
                    let (error, attempts) = (missed.error.to_string(), missed.attempts);
                    if !task.connected[1] {
                        tracing::warn!(operator = %task.name, attempts, "a call failed, and nobody reads of it: {error}");
                    }
                    let record = Arc::unwrap_or_clone(missed.record);
                    failed.push(at, Failed { record, error, attempts }, behind);
                    failed_index.push(place(row));
                }
                Err(missed) => {
                    let error = missed.error.in_operator(&task.name);
                    let error = match missed.attempts {
                        0 | 1 => error,
                        several => error.note(format!("it was called {several} times")),
                    };
                    if !missed.certain {
                        let nobody = Blame::Nobody("it failed in a call for several records at once");
                        return Err(error.blaming("records that were called together", nobody));
                    }
                    return Err(blame(error, lineage.as_ref(), row as usize, &task.splits));
                }
            }
        }
        add(&task.stats().records_out, results.records.len() as u64);
        let lineage = |index| lineage.as_ref().map(|l| Lineage { split: l.split, first: l.first, index });
        results.lineage = lineage(results_index);
        failed.lineage = lineage(failed_index);
        let mut rows: Outbox = Vec::new();
        if task.connected[0] && !results.records.is_empty() {
            rows.push((0, Box::new(results)));
        }
        if task.connected[1] && !failed.records.is_empty() {
            rows.push((1, Box::new(failed)));
        }
        let is_last = batch.left == 0;
        if is_last {
            self.batches.remove(&number);
        }
        self.made.push(Made { batch: number, rows, is_last });
        Ok(())
    }
}

impl<C: Call> CallsLogic for Logic<C> {
    fn take(&mut self, number: u64, rows: Box<dyn AnyRows>) -> Result<()> {
        let Rows { records, behind, lineage } = *downcast::<Rows<C::In>>(rows);
        add(&self.task.stats().records_in, records.len() as u64);
        let now = self.task.clock.now();
        let (worker, count) = (self.task.worker, records.len());
        let (mut ready, mut errands) = (Vec::new(), Vec::new());
        let mut times = Vec::with_capacity(count);
        // What is answered at once must not overtake what is not.
        let mut at_once = !self.ordered || self.batches.is_empty();
        for (row, record) in records.into_iter().enumerate() {
            times.push(record.at);
            let answer = if at_once {
                let asked = guard(&self.task.name, || Ok(self.pool.call.at_hand(&record.value, now)));
                asked.map_err(|error| blame(error, lineage.as_ref(), row, &self.task.splits))?
            } else {
                None
            };
            let row = row as u32;
            match answer {
                Some(answer) => ready.push((row, Ok(answer))),
                None => {
                    at_once = !self.ordered;
                    let record = Arc::new(record.value);
                    errands.push(Errand { worker, batch: number, row, record, attempts: 0 });
                }
            }
        }
        let next = ready.len() as u32;
        let batch = Batch { times, behind, lineage, done: BTreeMap::new(), next, left: count };
        self.batches.insert(number, batch);
        self.pool.submit(worker, errands);
        // Also where nothing is ready: a batch without records is done.
        if !ready.is_empty() || count == 0 {
            self.put_together(number, ready)?;
        }
        Ok(())
    }

    fn made(&mut self) -> Result<Vec<Made>> {
        // Whoever sends after this wakes the worker again.
        self.woken.store(false, Ordering::SeqCst);
        let mut touched = BTreeSet::new();
        while let Ok(Done { batch, row, answer }) = self.done.try_recv() {
            if let Some(of) = self.batches.get_mut(&batch) {
                of.done.insert(row, answer);
                touched.insert(batch);
            }
        }
        let mut released = 0;
        if self.ordered && !touched.is_empty() {
            // The first batch, and every one in front of which there is none any more.
            while let Some((&number, batch)) = self.batches.first_key_value()
                && batch.done.contains_key(&batch.next)
            {
                released += self.send_on(number)?;
                if self.batches.contains_key(&number) {
                    break;
                }
            }
        } else {
            for number in touched {
                released += self.send_on(number)?;
            }
        }
        self.pool.release(released);
        Ok(std::mem::take(&mut self.made))
    }
}

impl<C: Call> Logic<C> {
    /// Sends on what is ready of a batch; returns how many rows that are.
    fn send_on(&mut self, number: u64) -> Result<usize> {
        let Some(batch) = self.batches.get_mut(&number) else { return Ok(0) };
        let ready = batch.ready(self.ordered);
        let count = ready.len();
        self.put_together(number, ready)?;
        Ok(count)
    }
}

impl<C: Call> Drop for Logic<C> {
    fn drop(&mut self) {
        self.pool.leave();
    }
}
