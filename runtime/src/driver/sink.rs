//! Sinks: what arrives in an epoch is written in it, and prepared when it closes.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::stateless::blame;
use super::{EpochLogic, Outbox, Task, guard};
use crate::bench::probe::{Born, Pacing, Probe};
use crate::bench::{Latencies, LatencyKind};
use crate::digest::Digests;
use crate::error::Result;
use crate::moment::Epoch;
use crate::poison::Blame;
use crate::record::Data;
use crate::rows::{AnyRows, Lineage, Rows, downcast};
use crate::shared::{Part, add};
use crate::sink::{Committer, Finish, Redirect, Sink, SinkTask, SinkWriter, Stored};
use crate::time::EventTime;

pub(crate) trait SinkFactory: Send {
    fn kind(&self) -> &'static str;
    fn committer(&self, job: &str) -> Option<Box<dyn Committer>>;
    fn build(&self, task: Task) -> Result<Box<dyn EpochLogic>>;
    /// Sends its records to another place from now on. `false`: it cannot; then it is as it was.
    fn redirect(&mut self, to: &Redirect) -> bool;
    /// Drops its records from now on.
    fn silence(&mut self);
    fn stored(&self) -> Option<Box<dyn Stored>>;
    /// What would read back what it committed to another place.
    fn stored_at(&self, place: &Redirect) -> Option<Box<dyn Stored>>;
}

pub(crate) struct SinkNode<T, S> {
    sink: S,
    /// Its records are dropped.
    silent: bool,
    item: PhantomData<fn(T)>,
}

impl<T, S> SinkNode<T, S> {
    pub(crate) fn new(sink: S) -> Self {
        SinkNode { sink, silent: false, item: PhantomData }
    }
}

/// What a writer prepared.
#[derive(Default)]
struct Prepared {
    handles: Vec<String>,
    finish: Option<Finish>,
    digests: Option<Digests>,
}

struct SinkLogic<T, W> {
    /// `None` drops everything.
    writer: Option<W>,
    /// What was prepared in the epoch that is being closed.
    prepared: Prepared,
    clock: SinkClock,
    task: Task,
    item: PhantomData<fn(T)>,
}

impl<T: Data, S: Sink<T>> SinkFactory for SinkNode<T, S> {
    fn kind(&self) -> &'static str {
        self.sink.kind()
    }

    fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
        if self.silent { None } else { self.sink.committer(job) }
    }

    fn build(&self, task: Task) -> Result<Box<dyn EpochLogic>> {
        let of = SinkTask { worker: task.worker, execution: task.execution.clone() };
        let writer = if self.silent { None } else { Some(guard(&task.name, || self.sink.writer(&of))?) };
        let clock = SinkClock { sink: task.node, latencies: BTreeMap::new(), recent: None };
        Ok(Box::new(SinkLogic { writer, prepared: Prepared::default(), clock, task, item: PhantomData }))
    }

    fn redirect(&mut self, to: &Redirect) -> bool {
        let Some(redirected) = self.sink.redirected(to) else { return false };
        self.sink = redirected;
        true
    }

    fn silence(&mut self) {
        self.silent = true;
    }

    fn stored(&self) -> Option<Box<dyn Stored>> {
        self.sink.stored()
    }

    fn stored_at(&self, place: &Redirect) -> Option<Box<dyn Stored>> {
        self.sink.redirected(place)?.stored()
    }
}

/// The event times of results that were fired, each with how many there are of it, one after another.
fn panes<T>(rows: &Rows<T>) -> Vec<(EventTime, u64)> {
    let mut panes: Vec<(EventTime, u64)> = Vec::new();
    for record in &rows.records {
        match panes.last_mut() {
            Some((at, count)) if *at == record.at => *count += 1,
            _ => panes.push((record.at, 1)),
        }
    }
    panes
}

/// Under a load: counts how long it took until a record was taken.
struct SinkClock {
    /// The node that it is.
    sink: usize,
    /// What was measured and not yet handed over.
    latencies: BTreeMap<LatencyKind, Latencies>,
    /// When the window with this last instant could have closed, and was complete: results of one window come together.
    recent: Option<(EventTime, (u64, u64))>,
}

impl SinkClock {
    fn taken(
        &mut self,
        probe: &Probe,
        pacing: &Pacing,
        born: Born,
        count: u64,
        panes: &[(EventTime, u64)],
        lineage: Option<&Lineage>,
    ) {
        let now = probe.now_ns();
        let Some(after) = now.checked_sub(pacing.warm_up_ns()) else { return };
        let mut record = |kind, since: u64, count| {
            self.latencies.entry(kind).or_default().record(after, now.saturating_sub(since), count);
        };
        for (last, count) in panes {
            let (closed, complete) = match self.recent {
                Some((at, known)) if at == *last => known,
                _ => self.recent.insert((*last, probe.closed_at(self.sink, *last))).1,
            };
            record(LatencyKind::WindowResult, closed, *count);
            record(LatencyKind::RecordToResult, complete, *count);
        }
        match (pacing, lineage) {
            _ if born.fired => {}
            (Pacing::Schedule { schedule, .. }, Some(lineage)) => {
                for row in 0..count as usize {
                    record(LatencyKind::Record, schedule.due_ns(probe.number_of(lineage, row)), 1);
                }
            }
            _ => record(LatencyKind::Record, born.ns, count),
        }
    }
}

impl<T, W> Drop for SinkLogic<T, W> {
    fn drop(&mut self) {
        self.task.shared.probe.add(&mut self.clock.latencies);
    }
}

impl<T: Data, W: SinkWriter<T>> EpochLogic for SinkLogic<T, W> {
    fn apply(&mut self, epoch: Epoch, rows: Box<dyn AnyRows>, born: Born, _out: &mut Outbox) -> Result<()> {
        let mut rows = downcast::<Rows<T>>(rows);
        add(&self.task.stats().records_in, rows.records.len() as u64);
        let pacing = self.task.shared.probe.pacing();
        let panes = if born.fired && pacing.is_some() { panes(&rows) } else { Vec::new() };
        let (count, first) = (rows.records.len(), rows.records.first().map(|record| record.at));
        if let Some(writer) = &mut self.writer {
            let written = guard(&self.task.name, || writer.write(epoch, &mut rows.records));
            written.map_err(|error| match (writer.row(), first) {
                (Some(row), _) => blame(error, rows.lineage.as_ref(), row, &self.task.splits),
                (None, Some(first)) => error.blaming(
                    format!("a batch of {count} records, the first at {first}"),
                    Blame::Nobody("the sink does not say which record of a batch it failed on"),
                ),
                (None, None) => error,
            })?;
        }
        if let Some(pacing) = pacing {
            self.clock.taken(&self.task.shared.probe, pacing, born, count as u64, &panes, rows.lineage.as_ref());
        }
        Ok(())
    }

    fn close(&mut self, epoch: Epoch) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            self.prepared = guard(&self.task.name, || {
                let handles = writer.prepare(epoch)?;
                Ok(Prepared { handles, finish: writer.finish(), digests: writer.digests() })
            })?;
        }
        Ok(())
    }

    fn part(&mut self) -> Result<Option<Part>> {
        let Prepared { handles, finish, digests } = std::mem::take(&mut self.prepared);
        Ok(Some(Part::Prepared { handles, finish, digests }))
    }
}
