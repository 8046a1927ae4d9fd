//! A sink into memory, exactly once, for tests: what it holds is what a job has committed.
//!
//! The two steps are those of any sink, without a disk. Staged output and what is committed live in [`Collected`], so a job
//! that is started again in the same process, with a sink of the same `Collected`, goes on where the checkpoint was.
//!
//! **Errors**: `State` when prepared output is not there (it ended with another process) or later output is in the way.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};

/// The results of a job in memory.
///
/// Workers are committed one after another, so the order of records is that of their worker only.
///
/// ```
/// use millstream_connectors::Collected;
///
/// let results = Collected::<u64>::new();
/// let sink = results.sink(); // for `stream.sink(...)`
/// assert!(results.take().is_empty());
/// # drop(sink);
/// ```
#[derive(Debug)]
pub struct Collected<T> {
    shelf: Arc<Mutex<Shelf<T>>>,
}

/// All output of an epoch's checkpoint on one worker.
type Pile<T> = (Epoch, Vec<Record<T>>);

#[derive(Debug)]
struct Shelf<T> {
    /// Prepared, by handle.
    staged: HashMap<String, Pile<T>>,
    committed: Vec<Pile<T>>,
    /// Handles of what is committed or was taken, with their epochs.
    done: HashSet<(Epoch, String)>,
    /// Which workers of the newest execution have a writer here.
    writers: (String, HashSet<usize>),
}

impl<T> Collected<T> {
    fn shelf(&self) -> MutexGuard<'_, Shelf<T>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Data> Collected<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        let shelf =
            Shelf { staged: HashMap::new(), committed: Vec::new(), done: HashSet::new(), writers: Default::default() };
        Collected { shelf: Arc::new(Mutex::new(shelf)) }
    }

    /// A sink that collects here. One per job: a job with a second one fails, so unite the streams or collect each on its
    /// own.
    pub fn sink(&self) -> Collect<T> {
        Collect { to: self.clone() }
    }

    /// Takes all committed records out.
    pub fn take(&self) -> Vec<Record<T>> {
        std::mem::take(&mut self.shelf().committed).into_iter().flat_map(|(_, records)| records).collect()
    }

    /// The committed values, which stay here.
    pub fn values(&self) -> Vec<T> {
        let shelf = self.shelf();
        shelf.committed.iter().flat_map(|(_, records)| records).map(|record| record.value.clone()).collect()
    }
}

impl<T: Data> Default for Collected<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for Collected<T> {
    fn clone(&self) -> Self {
        Collected { shelf: self.shelf.clone() }
    }
}

/// A sink into a [`Collected`].
#[derive(Clone, Debug)]
pub struct Collect<T> {
    to: Collected<T>,
}

impl<T: Data> Sink<T> for Collect<T> {
    type Writer = CollectWriter<T>;

    fn kind(&self) -> &'static str {
        "collect"
    }

    fn writer(&self, task: &SinkTask) -> Result<CollectWriter<T>> {
        let mut shelf = self.to.shelf();
        let (execution, workers) = &mut shelf.writers;
        if *execution != task.execution {
            execution.clone_from(&task.execution);
            workers.clear();
        }
        // Their handles would be the same, and one would take the other's output for its own.
        if !workers.insert(task.worker) {
            return Err(Error::config("two sinks of this job collect into the same `Collected`")
                .hint("unite the streams before the sink, or give each a `Collected` of its own"));
        }
        drop(shelf);
        Ok(CollectWriter { to: self.to.clone(), task: task.clone(), unprepared: Vec::new() })
    }

    fn committer(&self, _job: &str) -> Option<Box<dyn Committer>> {
        Some(Box::new(self.to.clone()))
    }
}

/// Writes on one worker of a [`Collect`].
#[derive(Debug)]
pub struct CollectWriter<T> {
    to: Collected<T>,
    task: SinkTask,
    unprepared: Vec<Pile<T>>,
}

impl<T: Data> SinkWriter<T> for CollectWriter<T> {
    fn write(&mut self, epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()> {
        match self.unprepared.last_mut() {
            Some((last, pile)) if *last == epoch => pile.append(records),
            _ if records.is_empty() => {}
            _ => self.unprepared.push((epoch, std::mem::take(records))),
        }
        Ok(())
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<String>> {
        let mut shelf = self.to.shelf();
        let (ready, later) = std::mem::take(&mut self.unprepared).into_iter().partition(|(of, _)| *of <= epoch);
        self.unprepared = later;
        let ready: Vec<Pile<T>> = ready;
        let handles = ready.into_iter().map(|pile| {
            let handle = format!("e{}-w{}-{}", pile.0, self.task.worker, self.task.execution);
            shelf.staged.insert(handle.clone(), pile);
            handle
        });
        Ok(handles.collect())
    }
}

impl<T: Data> Committer for Collected<T> {
    fn recover(&mut self, restored: Option<Epoch>, handles: &[String], withdraw: bool) -> Result<()> {
        // A fresh start may always clear what is here: nobody else can have taken it for the output.
        let kept = restored.unwrap_or(0);
        let mut shelf = self.shelf();
        let later = shelf.committed.iter().filter(|(epoch, _)| *epoch > kept).count();
        if later > 0 && restored.is_some() && !withdraw {
            return Err(Error::state(format!("collected output is later than the checkpoint of epoch {kept}"))
                .hint("collect into another `Collected`, choose the newest checkpoint, or start fresh"));
        }
        shelf.committed.retain(|(epoch, _)| restored.is_some() && *epoch <= kept);
        shelf.done.retain(|(epoch, _)| restored.is_some() && *epoch <= kept);
        shelf.staged.retain(|handle, _| handles.contains(handle));
        drop(shelf);
        self.commit(handles)
    }

    fn commit(&mut self, handles: &[String]) -> Result<()> {
        let mut shelf = self.shelf();
        for handle in handles {
            match shelf.staged.remove(handle) {
                Some(pile) => {
                    shelf.done.insert((pile.0, handle.clone()));
                    shelf.committed.push(pile);
                }
                None if shelf.done.iter().any(|(_, done)| done == handle) => {}
                None => {
                    return Err(Error::state(format!("collected output `{handle}` is not here"))
                        .hint("it ended with the process that prepared it: start fresh, or use a sink of files"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::time::EventTime;

    fn run(results: &Collected<u64>, execution: &str) -> (CollectWriter<u64>, Box<dyn Committer>) {
        let sink = results.sink();
        let task = SinkTask { worker: 0, execution: execution.to_string() };
        (sink.writer(&task).unwrap(), sink.committer("job").unwrap())
    }

    fn write(writer: &mut CollectWriter<u64>, epoch: Epoch, value: u64) -> Vec<String> {
        let mut records = vec![Record { at: EventTime::EPOCH, value }];
        writer.write(epoch, &mut records).unwrap();
        assert!(records.is_empty());
        writer.prepare(epoch).unwrap()
    }

    #[test]
    fn records_are_seen_when_they_are_committed_and_once() {
        let results = Collected::new();
        let (mut writer, mut committer) = run(&results, "a");
        committer.recover(None, &[], false).unwrap();
        let handles = write(&mut writer, 1, 10);
        assert!(writer.prepare(2).unwrap().is_empty());
        assert!(results.values().is_empty());
        committer.commit(&handles).unwrap();
        committer.commit(&handles).unwrap();
        assert_eq!(results.values(), [10]);
        assert_eq!(results.take().len(), 1);
        committer.commit(&handles).unwrap();
        assert!(results.values().is_empty());
    }

    #[test]
    fn a_second_run_goes_on_from_its_checkpoint() {
        let results = Collected::new();
        let (mut writer, mut committer) = run(&results, "a");
        let first = write(&mut writer, 1, 10);
        committer.commit(&first).unwrap();
        let second = write(&mut writer, 2, 20);
        let third = write(&mut writer, 3, 30);

        let (mut writer, mut committer) = run(&results, "b");
        committer.recover(Some(2), &[first[0].clone(), second[0].clone()], false).unwrap();
        assert_eq!(results.values(), [10, 20]);
        assert!(committer.commit(&third).is_err());
        let again = write(&mut writer, 3, 31);
        committer.commit(&again).unwrap();
        assert_eq!(results.values(), [10, 20, 31]);

        let (_, mut committer) = run(&results, "c");
        assert!(committer.recover(Some(1), &first, false).is_err());
        committer.recover(Some(1), &first, true).unwrap();
        assert_eq!(results.values(), [10]);
        committer.recover(None, &[], false).unwrap();
        assert!(results.values().is_empty());
    }
}
