//! Drivers: one per shape of operator. They turn what operator files say into what workers run.
//!
//! A *factory* stands in the job's graph and makes one *logic* for every worker, on that worker's thread. Logics know
//! records and epochs, and nothing of timely; [`dataflow`](crate::dataflow) knows timely and nothing of records.

mod calls;
mod combine;
mod keyed;
mod peek;
mod sink;
mod source;
mod stamper;
mod stateless;

pub(crate) use calls::{CallsAttempt, CallsFactory, CallsLogic, CallsNode};
pub(crate) use combine::CombineLogic;
pub(crate) use keyed::{KeyedFactory, KeyedNode};
pub(crate) use peek::Peeked;
pub(crate) use sink::{SinkFactory, SinkNode};
pub(crate) use source::{LateWaker, Polled, SourceFactory, SourceLogic, SourceNode};
pub(crate) use stateless::{Broadcasting, Division, Keying, Plain, StatelessFactory, StatelessLogic, Wrapping};

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use millstream_state::manifest::Manifest;
use millstream_state::rocks::StateDb;

use crate::bench::probe::Born;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::moment::Epoch;
use crate::operator::Fired;
use crate::poison::{LeftOut, SplitName};
use crate::rows::AnyRows;
use crate::shared::{Part, Shared};
use crate::time::EventTime;

/// What a logic needs to know when it is made.
#[derive(Clone)]
pub(crate) struct Task {
    pub node: usize,
    pub name: String,
    pub worker: usize,
    pub workers: usize,
    pub execution: String,
    pub batch_size: usize,
    /// How many records may be on their way to one worker.
    pub in_flight: usize,
    /// The epoch in which this run begins.
    pub first_epoch: Epoch,
    /// For a source: the number of its first split, and how many it has.
    pub own_splits: (u32, u32),
    /// Names of all splits of all sources; a split's number is where it stands here.
    pub splits: Arc<Vec<SplitName>>,
    /// Results of operators with state reach it.
    pub behind_state: bool,
    /// How far event time had come for it in what is restored; not at all, if a source upstream is new.
    pub resumes_at: EventTime,
    /// How far it had come by those sources upstream that are in what is restored, and had not ended.
    pub came_to: EventTime,
    /// The sources upstream of it.
    pub sources: Arc<[usize]>,
    /// Records that sources leave out.
    pub aside: Arc<LeftOut>,
    /// Whether records must carry their positions.
    pub positions: bool,
    /// Whether each output has a consumer.
    pub connected: [bool; 2],
    pub shared: Arc<Shared>,
    /// The number under which its state is stored.
    pub state_id: u32,
    /// How much memory its state may take, if that is limited.
    pub state_bytes: Option<usize>,
    /// Where checkpoints are kept, when they are.
    pub db: Option<Arc<RwLock<StateDb>>>,
    /// What to restore.
    pub restored: Option<Arc<Manifest>>,
    /// In a replay: where sources stop reading.
    pub until: Option<Arc<Manifest>>,
    /// Where processing time comes from.
    pub clock: Clock,
}

impl Task {
    pub(crate) fn stats(&self) -> &crate::shared::Stats {
        &self.shared.stats[self.node][self.worker].0
    }
}

/// Batches on their way out of an operator, by output.
pub(crate) type Outbox = Vec<(usize, Box<dyn AnyRows>)>;

/// An operator that takes part in checkpoints: keyed operators and sinks.
pub(crate) trait EpochLogic {
    /// Takes in a batch of `epoch`, the current one.
    fn apply(&mut self, epoch: Epoch, rows: Box<dyn AnyRows>, born: Born, out: &mut Outbox) -> Result<()>;
    /// Event time has come to `watermark`. Sinks are not told.
    fn fire(&mut self, _watermark: EventTime, _out: &mut Outbox) -> Result<Fired> {
        Ok(Fired::All)
    }
    /// The run begins.
    fn start(&mut self, _out: &mut Outbox) -> Result<()> {
        Ok(())
    }
    /// Whether it is to be told of processing time.
    fn uses_clock(&self) -> bool {
        false
    }
    /// Does what is due by the clock, and says how long it is until more will be.
    fn ring(&mut self, _out: &mut Outbox) -> Result<Option<Duration>> {
        Ok(None)
    }
    /// Everything of `epoch` has been applied: fixes this operator's part in the checkpoint.
    fn close(&mut self, epoch: Epoch) -> Result<()>;
    /// Does some of what is left to be done for that part, a few microseconds' worth; returns it when it is complete.
    fn part(&mut self) -> Result<Option<Part>>;
}

/// Runs code that may call user code; a panic in it becomes an error. Both name the operator; the caller adds the record.
pub(crate) fn guard<T>(operator: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(run).map_err(|error| error.in_operator(operator))
}

/// Runs code that may call user code; a panic in it becomes an error. For operators that know more of the call than the driver does, which
/// catches what they let pass.
///
/// # Errors
/// That of the code, or that it panicked.
pub fn caught<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(Error::user(format!("panicked: {}", panic_text(&*panic)))))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}
