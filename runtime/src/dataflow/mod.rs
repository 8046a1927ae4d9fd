//! The only module that names timely, and differential: moments as timestamps, batches as containers, logics as operators.
//!
//! Every operator that can hold something back (a source, a keyed operator) holds one capability per output, at the least
//! moment under which it may still send. Stateless operators hold none: what they make travels under the moment of what
//! they were given.

mod calls;
mod changes;
mod combine;
mod source;
mod stateful;
mod stateless;
mod worker;

pub use changes::{Delta, Row};
pub(crate) use changes::{Join, Reduce, RegionFactory, Since};
pub(crate) use worker::{Physical, WorkerThreads, run_workers};

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use timely::Accountable;
use timely::communication::Push;
use timely::dataflow::Scope;
use timely::dataflow::channels::pushers::Output;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message, Stamp};
use timely::dataflow::operators::{Capability, CapabilityTrait};
use timely::order::PartialOrder;
use timely::progress::Timestamp;
use timely::progress::timestamp::{PathSummary, Refines};
use timely::scheduling::Activator;

use crate::bench::probe::Born;
use crate::driver::{Outbox, Task};
use crate::moment::Moment;
use crate::rest::Live;
use crate::rows::{AnyRows, kind_of};
use crate::shared::{Shared, add};
use crate::time::EventTime;

impl PartialOrder for Moment {
    #[inline]
    fn less_equal(&self, other: &Self) -> bool {
        self.epoch <= other.epoch && self.watermark <= other.watermark
    }
}

impl Timestamp for Moment {
    type Summary = ();
    fn minimum() -> Self {
        Moment::new(0, EventTime::MIN)
    }
}

/// No path in a job advances a moment: only sources do.
impl PathSummary<Moment> for () {
    fn results_in(&self, moment: &Moment) -> Option<Moment> {
        Some(*moment)
    }
    fn followed_by(&self, _other: &()) -> Option<()> {
        Some(())
    }
}

impl Refines<()> for Moment {
    fn to_inner(_outer: ()) -> Self {
        Moment::minimum()
    }
    fn to_outer(self) {}
    fn summarize(_path: ()) {}
}

/// A stream of batches between operators.
pub(crate) type Stream<'scope> = timely::dataflow::Stream<'scope, Moment, Packet>;

/// A batch as timely sees it: a container with a number of records.
#[derive(Default)]
pub(crate) struct Packet {
    rows: Option<Box<dyn AnyRows>>,
    born: Born,
    /// When it left the operator before.
    sent_ns: u64,
    /// Counts it, where somebody wants to know when there are no more.
    live: Option<Live>,
}

impl Clone for Packet {
    fn clone(&self) -> Self {
        Packet {
            rows: self.rows.as_ref().map(|rows| rows.copy()),
            born: self.born,
            sent_ns: self.sent_ns,
            live: self.live.clone(),
        }
    }
}

impl Accountable for Packet {
    fn record_count(&self) -> i64 {
        self.rows.as_ref().map_or(0, |rows| rows.weight() as i64)
    }
}

/// Timely asks for this of everything that crosses workers; between threads of one process it is never called.
impl ContainerBytes for Packet {
    fn from_bytes(_bytes: timely::bytes::arc::Bytes) -> Self {
        unreachable!("workers are threads of one process")
    }
    fn length_in_bytes(&self) -> usize {
        unreachable!("workers are threads of one process")
    }
    fn into_bytes<W: std::io::Write>(&self, _writer: &mut W) {
        unreachable!("workers are threads of one process")
    }
}

/// The componentwise least moment of a frontier; `None` when it is empty, which means teardown.
fn lower_bound<'a>(frontier: impl Iterator<Item = &'a Moment>) -> Option<Moment> {
    let least = |a: Moment, b: &Moment| Moment::new(a.epoch.min(b.epoch), a.watermark.min(b.watermark));
    frontier.fold(None, |bound, moment| Some(bound.map_or(*moment, |bound| least(bound, moment))))
}

/// The one moment under which a message travels: our operators send under single capabilities only.
fn only(stamp: &Stamp<Moment>) -> Moment {
    let [moment] = stamp.elements() else { panic!("a message travels under {} moments", stamp.elements().len()) };
    *moment
}

/// Sends what an operator made, each batch at its output, under the capability of that output.
fn send<C: CapabilityTrait<Moment>>(
    outputs: &mut [Output<Moment, Packet>],
    caps: &[C],
    outbox: &mut Outbox,
    born: Born,
    sent_ns: u64,
    shared: &Shared,
) {
    for (output, rows) in outbox.drain(..) {
        let mut packet = Packet { rows: Some(rows), born, sent_ns, live: Live::new(shared) };
        outputs[output].activate().give(&caps[output], &mut packet);
    }
}

/// Moves all capabilities of an operator on, and shows where it is now.
fn downgrade(task: &Task, caps: &mut [Capability<Moment>], to: Moment) {
    for cap in caps {
        if *cap.time() != to {
            cap.downgrade(&to);
        }
    }
    let stats = task.stats();
    stats.epoch.store(to.epoch, Ordering::Relaxed);
    // Whoever sees it sees what was sent before.
    stats.watermark_us.store(to.watermark.micros(), Ordering::Release);
}

/// When an operator is to be called again. Activations in the future do not replace each other, so another is set only if it is earlier.
#[derive(Default)]
struct Alarm(Option<Instant>);

impl Alarm {
    fn set(&mut self, wait: Duration, activator: &Activator) {
        let now = Instant::now();
        let due = now + wait;
        if self.0.is_none_or(|alarm| alarm <= now || due < alarm) {
            self.0 = Some(due);
            activator.activate_after(wait);
        }
    }
}

/// Has an operator called when a clock that is moved by hand is moved.
fn wake_by_clock(scope: Scope<'_, Moment>, task: &Task, address: &[usize]) {
    if task.clock.is_manual() {
        let wake = scope.worker().sync_activator_for(address.to_vec());
        task.clock.on_advance(move || wake.activate().is_ok());
    }
}

/// How soon an operator that had to wait for flow control looks again.
const RETRY: Duration = Duration::from_micros(100);

/// How many records for one worker are gathered before they are sent.
const EXCHANGE_BATCH: usize = 4096;

/// Deals keyed records out to the workers that own their keys; counts them as in flight, and how long that took.
struct ByKeyGroup {
    pending: Vec<Option<Box<dyn AnyRows>>>,
    /// Of what is pending, the earliest.
    born: Born,
    sent_ns: u64,
    /// Counts what is pending as a batch.
    live: Option<Live>,
    /// That of the operator for which they are.
    task: Task,
}

impl ByKeyGroup {
    fn new(task: Task, workers: usize) -> Self {
        ByKeyGroup {
            pending: (0..workers).map(|_| None).collect(),
            born: Born::default(),
            sent_ns: 0,
            live: None,
            task,
        }
    }

    fn send<T: Clone, P: Push<Message<T, Packet>>>(&mut self, least: usize, stamp: &Stamp<T>, pushers: &mut [P]) {
        for (worker, pusher) in pushers.iter_mut().enumerate() {
            let full = |rows: &mut Box<dyn AnyRows>| rows.len() >= least;
            if let Some(rows) = self.pending[worker].take_if(full) {
                self.task.shared.in_flight[worker].0.fetch_add(rows.len() as i64, Ordering::Relaxed);
                let live = Live::new(&self.task.shared);
                let mut packet = Packet { rows: Some(rows), born: self.born, sent_ns: self.sent_ns, live };
                Message::push_at(&mut packet, stamp.clone(), pusher);
            }
        }
    }
}

impl Distributor<Packet> for ByKeyGroup {
    fn partition<T: Clone, P: Push<Message<T, Packet>>>(
        &mut self,
        packet: &mut Packet,
        stamp: &Stamp<T>,
        pushers: &mut [P],
    ) {
        if let Some(mut rows) = packet.rows.take() {
            let start_ns = self.task.shared.probe.now_ns();
            // Records and what combiners have made of some cannot be gathered in one batch.
            let kind = kind_of(&*rows);
            if self.pending.iter().flatten().any(|pending| kind_of(&**pending) != kind) {
                self.send(1, stamp, pushers);
                self.pending.fill_with(|| None);
            }
            let empty = self.pending.iter().flatten().all(|rows| rows.len() == 0);
            self.born = if empty { packet.born } else { self.born.with(packet.born) };
            self.sent_ns = if empty { packet.sent_ns } else { self.sent_ns.min(packet.sent_ns) };
            rows.scatter(&mut self.pending);
            self.live = packet.live.take().or(self.live.take());
            self.send(EXCHANGE_BATCH, stamp, pushers);
            add(&self.task.stats().dealing_ns, self.task.shared.probe.now_ns() - start_ns);
        }
    }

    fn flush<T: Clone, P: Push<Message<T, Packet>>>(&mut self, stamp: &Stamp<T>, pushers: &mut [P]) {
        self.send(1, stamp, pushers);
        self.live = None;
    }
}
