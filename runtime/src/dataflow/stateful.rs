//! An operator that takes part in checkpoints, as a timely operator: it knows which epoch it is in, stashes what comes
//! early, fires what the watermark has passed, and closes epochs in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use timely::dataflow::Scope;
use timely::dataflow::channels::Stamp;
use timely::dataflow::channels::pact::{DistributorPact, Pipeline};
use timely::dataflow::channels::pushers::Output;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Alarm, ByKeyGroup, Packet, RETRY, Stream, downgrade, lower_bound, only, send, wake_by_clock};
use crate::bench::probe::Born;
use crate::driver::{EpochLogic, Outbox, Task};
use crate::error::{Error, Result};
use crate::moment::{Epoch, Moment};
use crate::operator::Fired;
use crate::rest::Live;
use crate::rows::AnyRows;
use crate::shared::{Report, add};
use crate::time::EventTime;

type Inbox = Vec<Arrival>;

/// A batch as it arrived, with the moment under which it travelled.
struct Arrival {
    moment: Moment,
    rows: Box<dyn AnyRows>,
    born: Born,
    sent_ns: u64,
    /// Counts it, until what was made of it is sent.
    live: Option<Live>,
}

impl Arrival {
    fn new(stamp: &Stamp<Moment>, packet: &mut Packet) -> Option<Self> {
        let rows = packet.rows.take()?;
        let live = packet.live.take();
        Some(Arrival { moment: only(stamp), rows, born: packet.born, sent_ns: packet.sent_ns, live })
    }
}

pub(super) fn build<'scope>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    logic: Box<dyn EpochLogic>,
    outputs: usize,
    input: Stream<'scope>,
    exchanged: bool,
) -> Vec<Stream<'scope>> {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    // The two kinds of input differ in type; both end as batches in the inbox.
    let mut receive: Box<dyn FnMut(&mut Inbox)> = if exchanged {
        let of = task.clone();
        let mut input = builder.new_input(input, DistributorPact(move |workers| ByKeyGroup::new(of, workers)));
        Box::new(move |inbox| {
            input.for_each(|cap, packet| inbox.extend(Arrival::new(cap.stamp(), packet)));
        })
    } else {
        let mut input = builder.new_input(input, Pipeline);
        Box::new(move |inbox| {
            input.for_each(|cap, packet| inbox.extend(Arrival::new(cap.stamp(), packet)));
        })
    };
    let (pushers, streams): (Vec<_>, Vec<_>) = (0..outputs).map(|_| builder.new_output()).unzip();
    let activator = scope.activator_for(builder.operator_info().address.clone());
    let clocked = logic.uses_clock();
    if clocked {
        wake_by_clock(scope, task, &builder.operator_info().address);
    }
    let counted = exchanged && task.workers > 1;
    let task = task.clone();
    builder.build(move |caps| {
        let shared = Arc::clone(&task.shared);
        let mut inbox = Inbox::new();
        let mut operator = Stateful {
            logic,
            caps,
            pushers,
            outbox: Outbox::new(),
            epoch: task.first_epoch,
            fired: EventTime::MIN,
            firing: None,
            closing: None,
            stash: VecDeque::new(),
            travelled: counted,
            is_sink: outputs == 0,
            task,
        };
        // What is sent before the operator runs is not accounted for, and everybody would wait for it for ever.
        let mut started = false;
        let mut alarm = Alarm::default();
        move |frontiers| {
            if shared.has_failed() {
                return;
            }
            if !started {
                started = true;
                operator.start();
                operator.downgrade(EventTime::MIN);
            }
            receive(&mut inbox);
            if counted {
                let records: i64 = inbox.iter().map(|arrival| arrival.rows.len() as i64).sum();
                shared.in_flight[operator.task.worker].0.fetch_sub(records, Ordering::Relaxed);
            }
            // An empty frontier means teardown, never that everything may fire.
            let Some(bound) = lower_bound(frontiers[0].frontier().iter()) else { return };
            let fired = operator.advance(&mut inbox, bound).and_then(|fired| {
                if !operator.work_on_part()? {
                    activator.activate();
                }
                if clocked && let Some(wait) = operator.ring()? {
                    alarm.set(wait.clamp(LEAST_WAIT, LONGEST_WAIT), &activator);
                }
                Ok(fired)
            });
            match fired {
                Ok(Fired::All) => {}
                // What was fired last may have filled a worker's queue; that worker empties it without waiting for us.
                Ok(Fired::More) if shared.is_crowded(operator.task.in_flight) => activator.activate_after(RETRY),
                Ok(Fired::More) => activator.activate(),
                Err(error) => shared.fail(error),
            }
        }
    });
    streams
}

/// No operator is woken by the clock more often than this.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// One that waits longer looks at the clock all the same; the machine may have slept meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// After so many turns sources wait until all is fired: otherwise a job whose windows give more results than a worker has time for
/// would read ever further ahead of them.
const LONG: u32 = 8;

#[derive(Clone, Copy)]
struct Firing {
    since_ns: u64,
    turns: u32,
}

/// How long an operator works on its part of a checkpoint before others have their turn.
const TURN_NS: u64 = 200_000;

/// An epoch that has ended, and whose part in the checkpoint is not complete.
struct Closing {
    epoch: Epoch,
    /// How long the operator has stood still for it since others had their turn, and the longest of these times.
    still_ns: u64,
    longest_ns: u64,
}

struct Stateful {
    logic: Box<dyn EpochLogic>,
    caps: Vec<Capability<Moment>>,
    pushers: Vec<Output<Moment, Packet>>,
    outbox: Outbox,
    /// The epoch whose records are being applied.
    epoch: Epoch,
    /// The watermark for which everything has been fired.
    fired: EventTime,
    /// What is being fired now, since when, and in how many turns so far.
    firing: Option<Firing>,
    /// Of what is written while work goes on.
    closing: Option<Closing>,
    /// Batches of later epochs, in the order in which they came.
    stash: VecDeque<Arrival>,
    /// Whether batches came through an exchange between workers.
    travelled: bool,
    is_sink: bool,
    task: Task,
}

impl Stateful {
    fn advance(&mut self, inbox: &mut Inbox, bound: Moment) -> Result<Fired> {
        // Before what has come since: the less is still to be fired, the fewer records that are behind have to be kept apart.
        let is_first = bound.epoch == self.epoch && !inbox.is_empty();
        let first = if is_first { self.fire(bound)? } else { Fired::All };
        for arrival in inbox.drain(..) {
            let epoch = arrival.moment.epoch;
            if epoch == self.epoch {
                self.apply(arrival)?;
            } else if epoch > self.epoch {
                self.task.shared.stashed.0.fetch_add(arrival.rows.len() as i64, Ordering::Relaxed);
                self.stash.push_back(arrival);
            } else {
                let text = format!("a batch of epoch {epoch} arrived in epoch {}", self.epoch);
                return Err(Error::internal(text).in_operator(&self.task.name));
            }
        }
        if first == Fired::More {
            return Ok(Fired::More);
        }
        loop {
            if self.fire(bound)? == Fired::More {
                return Ok(Fired::More);
            }
            if bound.epoch <= self.epoch {
                self.downgrade(self.fired);
                return Ok(Fired::All);
            }
            self.close()?;
            self.downgrade(self.fired);
            self.unstash()?;
        }
    }

    /// Fires what can be fired now.
    fn fire(&mut self, bound: Moment) -> Result<Fired> {
        // What is stashed has left the frontier and would otherwise be overtaken.
        let stashed = self.stash.iter().map(|arrival| arrival.moment.watermark).min();
        let watermark = stashed.map_or(bound.watermark, |stashed| stashed.min(bound.watermark));
        if watermark <= self.fired {
            return Ok(Fired::All);
        }
        // What a checkpoint has fired is what event time had come to in it, on every worker, whether that hears of more before it gets there or
        // not. So whatever comes after it in another run finds nothing fired that it should have counted in. A source that ends the epoch later
        // will have come at least as far as the frontier is now: this never goes back.
        let watermark = watermark.min(self.task.shared.cut_at(self.epoch, &self.task.sources));
        if watermark <= self.fired {
            return Ok(Fired::All);
        }
        // Sinks fire nothing, so the clock need not be read for them.
        if self.is_sink {
            self.fired = watermark;
            return Ok(Fired::All);
        }
        let start_ns = self.task.shared.probe.now_ns();
        let firing = self.firing.get_or_insert(Firing { since_ns: start_ns, turns: 0 });
        let born = Born { ns: firing.since_ns, fired: true, pressed: true };
        if self.task.shared.is_crowded(self.task.in_flight) {
            return Ok(Fired::More);
        }
        firing.turns += 1;
        let turns = firing.turns;
        let fired = self.logic.fire(watermark, &mut self.outbox)?;
        self.flush(born, start_ns);
        if fired == Fired::More {
            if turns == LONG {
                self.task.shared.firing.0.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(Fired::More);
        }
        if turns > LONG {
            self.task.shared.firing.0.fetch_sub(1, Ordering::Relaxed);
        }
        self.firing = None;
        self.fired = watermark;
        Ok(Fired::All)
    }

    /// Applies a batch of the current epoch.
    fn apply(&mut self, arrival: Arrival) -> Result<()> {
        let start_ns = self.task.shared.probe.now_ns();
        let stats = self.task.stats();
        let waited = if self.travelled { &stats.exchange } else { &stats.queue };
        waited.record(start_ns.saturating_sub(arrival.sent_ns), 1);
        let Arrival { rows, born, live, .. } = arrival;
        let count = rows.len() as u64;
        if let Err(error) = self.logic.apply(self.epoch, rows, born, &mut self.outbox) {
            Live::has_failed(live);
            return Err(error);
        }
        let done_ns = self.flush(born, start_ns);
        drop(live);
        if self.is_sink {
            self.task.stats().taken(born, done_ns, count);
        }
        Ok(())
    }

    /// Sends what was made since `start_ns`; returns when that was.
    fn flush(&mut self, born: Born, start_ns: u64) -> u64 {
        let sent_ns = self.task.shared.probe.now_ns();
        add(&self.task.stats().busy_ns, sent_ns - start_ns);
        send(&mut self.pushers, &self.caps, &mut self.outbox, born, sent_ns, &self.task.shared);
        sent_ns
    }

    /// Hands over what comes before everything else, under the capabilities that are there before time begins.
    fn start(&mut self) {
        let start_ns = self.task.shared.probe.now_ns();
        match self.logic.start(&mut self.outbox) {
            Ok(()) => drop(self.flush(Born { ns: start_ns, fired: true, pressed: true }, start_ns)),
            Err(error) => self.task.shared.fail(error),
        }
    }

    /// Does what is due by the clock; says how long it is until more will be.
    fn ring(&mut self) -> Result<Option<Duration>> {
        // Who is behind it may have come as far as this in event time, though it has not come here again. The frontier will call.
        if self.fired < self.task.resumes_at {
            return Ok(None);
        }
        if self.task.shared.is_crowded(self.task.in_flight) {
            return Ok(Some(RETRY));
        }
        let start_ns = self.task.shared.probe.now_ns();
        let now = self.task.clock.now();
        let next = self.logic.ring(&mut self.outbox)?;
        if !self.outbox.is_empty() {
            self.task.shared.unasked.fetch_add(1, Ordering::Relaxed);
            self.flush(Born { ns: start_ns, fired: true, pressed: true }, start_ns);
        }
        if next != Some(Duration::ZERO) {
            self.task.stats().clock_us.store(now.micros(), Ordering::SeqCst);
        }
        Ok(next)
    }

    fn downgrade(&mut self, watermark: EventTime) {
        downgrade(&self.task, &mut self.caps, Moment::new(self.epoch, watermark));
    }

    /// All of the current epoch has been applied: fixes its part of the checkpoint, and goes on to the next.
    fn close(&mut self) -> Result<()> {
        let start_ns = self.task.shared.probe.now_ns();
        if self.closing.is_some() {
            return Err(
                Error::internal("an epoch ended before the one before it was written").in_operator(&self.task.name)
            );
        }
        self.logic.close(self.epoch)?;
        let still_ns = self.task.shared.probe.now_ns() - start_ns;
        add(&self.task.stats().busy_ns, still_ns);
        self.closing = Some(Closing { epoch: self.epoch, still_ns, longest_ns: 0 });
        self.epoch += 1;
        Ok(())
    }

    /// Gets on with the part of the epoch that is being closed, and hands it over when it is complete; `false`: there is more
    /// to do.
    fn work_on_part(&mut self) -> Result<bool> {
        let Some(closing) = &mut self.closing else { return Ok(true) };
        let start_ns = self.task.shared.probe.now_ns();
        let (part, took_ns) = loop {
            let part = self.logic.part()?;
            let took_ns = self.task.shared.probe.now_ns() - start_ns;
            if part.is_some() || took_ns >= TURN_NS {
                break (part, took_ns);
            }
        };
        add(&self.task.stats().busy_ns, took_ns);
        closing.longest_ns = closing.longest_ns.max(std::mem::take(&mut closing.still_ns) + took_ns);
        let Some(part) = part else { return Ok(false) };
        let (epoch, pause) = (closing.epoch, Duration::from_nanos(closing.longest_ns));
        tracing::trace!(operator = %self.task.name, epoch, pause_us = pause.as_micros() as u64, "epoch closed");
        self.closing = None;
        self.task.shared.report(Report::Closed { node: self.task.node, epoch, part, pause });
        Ok(true)
    }

    /// Applies what had come early for the epoch that is now current.
    fn unstash(&mut self) -> Result<()> {
        for _ in 0..self.stash.len() {
            let Some(arrival) = self.stash.pop_front() else { break };
            if arrival.moment.epoch == self.epoch {
                self.task.shared.stashed.0.fetch_sub(arrival.rows.len() as i64, Ordering::Relaxed);
                self.apply(arrival)?;
            } else {
                self.stash.push_back(arrival);
            }
        }
        Ok(())
    }
}
