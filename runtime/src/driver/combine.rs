//! Combiners: what records amount to is held on the worker that read them, until the owner of their key needs it.

use std::sync::atomic::Ordering;

use super::keyed::blame_of;
use super::{Outbox, Task, guard};
use crate::error::Result;
use crate::operator::{Combiner, Fired};
use crate::rows::{AnyRows, KeyedRows, downcast};
use crate::time::EventTime;

pub(crate) trait CombineLogic {
    /// Takes of a batch what it can; the rest travels as it is.
    fn take(&mut self, rows: Box<dyn AnyRows>) -> Result<Option<Box<dyn AnyRows>>>;
    /// Whether it holds nothing.
    fn is_empty(&self) -> bool;
    /// Whether it should hand over everything at once.
    fn is_full(&self) -> bool;
    /// Hands over all that owners need when event time has come to `watermark`.
    fn release(&mut self, watermark: EventTime, out: &mut Outbox) -> Result<()>;
}

/// What combiners make of records, told apart from the records themselves by its type.
pub(super) struct CombinedRows<C: Combiner>(pub KeyedRows<C::Key, C::Out>);

impl<C: Combiner> AnyRows for CombinedRows<C> {
    fn len(&self) -> usize {
        self.0.records.len()
    }

    fn copy(&self) -> Box<dyn AnyRows> {
        Box::new(CombinedRows::<C>(self.0.clone()))
    }

    fn scatter(&mut self, into: &mut [Option<Box<dyn AnyRows>>]) {
        self.0.scatter_as(into, CombinedRows::<C>, |rows| &mut rows.0);
    }
}

pub(super) struct Combine<C> {
    combiner: C,
    task: Task,
    /// How far the operator behind it had fired when it was restored; not known before all its instances are.
    fired: Option<EventTime>,
}

impl<C: Combiner> Combine<C> {
    pub(super) fn new(combiner: C, task: Task) -> Self {
        Combine { combiner, task, fired: None }
    }
}

/// How many accumulators travel together.
const BATCH: usize = 4096;

impl<C: Combiner> CombineLogic for Combine<C> {
    fn take(&mut self, rows: Box<dyn AnyRows>) -> Result<Option<Box<dyn AnyRows>>> {
        if self.fired.is_none() {
            self.fired = self.task.shared.restored[self.task.node].fired();
        }
        let Some(fired) = self.fired else { return Ok(Some(rows)) };
        let mut rows = downcast::<KeyedRows<C::Key, C::In>>(rows);
        let before = rows.records.len();
        let (combiner, mut row) = (&mut self.combiner, 0);
        let taken = guard(&self.task.name, || combiner.take(&mut rows, fired, &mut row));
        taken.map_err(|error| blame_of(error, &rows, row, &self.task))?;
        let left = rows.records.len();
        self.task.stats().records_in.fetch_add((before - left) as u64, Ordering::Relaxed);
        Ok((left > 0).then_some(rows as Box<dyn AnyRows>))
    }

    fn is_empty(&self) -> bool {
        self.combiner.is_empty()
    }

    fn is_full(&self) -> bool {
        self.combiner.is_full()
    }

    fn release(&mut self, watermark: EventTime, out: &mut Outbox) -> Result<()> {
        let (name, combiner) = (&self.task.name, &mut self.combiner);
        loop {
            let mut rows = KeyedRows::default();
            let released = guard(name, || Ok(combiner.release(watermark, BATCH, &mut rows)))?;
            if !rows.records.is_empty() {
                out.push((0, Box::new(CombinedRows::<C>(rows))));
            }
            if released == Fired::All {
                return Ok(());
            }
        }
    }
}
