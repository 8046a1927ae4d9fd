//! Sinks: what arrives in an epoch is written in it, and prepared when it closes.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use super::stateless::place;
use super::{EpochLogic, Outbox, Task, guard};
use crate::error::Result;
use crate::moment::Epoch;
use crate::operator::Fired;
use crate::record::Data;
use crate::rows::{AnyRows, Rows, downcast};
use crate::shared::Part;
use crate::sink::{Committer, Sink, SinkTask, SinkWriter};
use crate::time::EventTime;

pub(crate) trait SinkFactory: Send {
    fn kind(&self) -> &'static str;
    fn committer(&self, job: &str) -> Option<Box<dyn Committer>>;
    fn build(&self, task: Task) -> Result<Box<dyn EpochLogic>>;
}

pub(crate) struct SinkNode<T, S> {
    sink: S,
    item: PhantomData<fn(T)>,
}

impl<T, S> SinkNode<T, S> {
    pub(crate) fn new(sink: S) -> Self {
        SinkNode { sink, item: PhantomData }
    }
}

struct SinkLogic<T, W> {
    writer: W,
    task: Task,
    item: PhantomData<fn(T)>,
}

impl<T: Data, S: Sink<T>> SinkFactory for SinkNode<T, S> {
    fn kind(&self) -> &'static str {
        self.sink.kind()
    }

    fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
        self.sink.committer(job)
    }

    fn build(&self, task: Task) -> Result<Box<dyn EpochLogic>> {
        let of = SinkTask { worker: task.worker, execution: task.execution.clone() };
        let writer = guard(&task.name, || self.sink.writer(&of))?;
        Ok(Box::new(SinkLogic { writer, task, item: PhantomData }))
    }
}

impl<T: Data, W: SinkWriter<T>> EpochLogic for SinkLogic<T, W> {
    fn apply(&mut self, epoch: Epoch, rows: Box<dyn AnyRows>, _out: &mut Outbox) -> Result<()> {
        let mut rows = downcast::<Rows<T>>(rows);
        self.task.stats().records_in.fetch_add(rows.records.len() as u64, Ordering::Relaxed);
        let writer = &mut self.writer;
        let (count, first) = (rows.records.len(), rows.records.first().map(|record| record.at));
        let written = guard(&self.task.name, || writer.write(epoch, &mut rows.records));
        written.map_err(|error| match (writer.row(), first) {
            (Some(row), _) => error.at_place(place(rows.lineage.as_ref(), row, &self.task.splits)),
            (None, Some(first)) => error.at_place(format!("a batch of {count} records, the first at {first}")),
            (None, None) => error,
        })
    }

    fn fire(&mut self, _watermark: EventTime, _out: &mut Outbox) -> Result<Fired> {
        Ok(Fired::All)
    }

    fn close(&mut self, epoch: Epoch) -> Result<Part> {
        let writer = &mut self.writer;
        guard(&self.task.name, || writer.prepare(epoch)).map(Part::Prepared)
    }
}
