//! A source as a timely operator: it alone moves time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use timely::dataflow::Scope;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Alarm, RETRY, Stream, downgrade, send, wake_by_clock};
use crate::bench::probe::Born;
use crate::clock::ProcessingTime;
use crate::driver::{Outbox, Polled, SourceLogic, Task};
use crate::error::Result;
use crate::moment::{Epoch, Moment};
use crate::shared::{Report, Shared, add};

/// What is due this soon is waited for awake: a thread that sleeps is back only some 50 us after its time.
const SPIN: Duration = Duration::from_micros(100);

/// How long a source waits for calls to the outside, unless it is woken because enough of them are done.
const CALLS: Duration = Duration::from_millis(20);

/// How many batches a source reads before others have their turn.
const BATCHES_A_TURN: usize = 4;

pub(super) fn build<'scope>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    mut logic: Box<dyn SourceLogic>,
    waker: &crate::driver::LateWaker,
) -> Vec<Stream<'scope>> {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    let (records, record_stream) = builder.new_output();
    let (bad, bad_stream) = builder.new_output();
    let info = builder.operator_info();
    let activator = scope.activator_for(info.address.clone());
    let wake = scope.worker().sync_activator_for(info.address.to_vec());
    // Before this nobody could have woken it; it is scheduled once at the start in any case.
    let _ = waker.set({
        let wake = wake.clone();
        Box::new(move || {
            // It fails only when the worker is gone.
            let _ = wake.activate();
        })
    });
    task.shared.add_waker(Box::new(move || {
        let _ = wake.activate();
    }));

    let clocked = logic.may_idle();
    if clocked {
        wake_by_clock(scope, task, &info.address);
    }
    let task = task.clone();
    builder.build(move |mut caps| {
        let shared = Arc::clone(&task.shared);
        let mut outputs = [records, bad];
        let mut epoch = task.first_epoch;
        let start = Moment::new(epoch, logic.watermark());
        downgrade(&task, &mut caps, start);
        let mut outbox = Outbox::new();
        let mut ended = false;
        let mut alarm = Alarm::default();
        move |_| {
            if shared.has_failed() {
                return;
            }
            let mut turn = || -> Result<()> {
                take_epochs(&task, &*logic, &mut epoch, &mut caps)?;
                if shared.hold.load(Ordering::SeqCst) || ended {
                    return Ok(());
                }
                let resting = |resting| {
                    if shared.rest.is_some() {
                        task.stats().resting.store(resting, Ordering::SeqCst);
                    }
                };
                resting(false);
                let (mut rest, mut rests) = (Some(Duration::ZERO), false);
                let now = if clocked { task.clock.now() } else { ProcessingTime::MAX };
                for _ in 0..BATCHES_A_TURN {
                    if shared.calling.0.load(Ordering::SeqCst) > 0 {
                        rest = Some(CALLS);
                        break;
                    }
                    if congested(&shared, epoch, task.in_flight) {
                        rest = Some(RETRY);
                        break;
                    }
                    let start_ns = shared.probe.now_ns();
                    match logic.poll(&mut outbox)? {
                        Polled::Some { due_ns, pressed } => {
                            let sent_ns = shared.probe.now_ns();
                            add(&task.stats().busy_ns, sent_ns - start_ns);
                            // Its oldest record was read after the reading began: a latency is rather too long than too short.
                            let born = Born { ns: due_ns.unwrap_or(start_ns), fired: false, pressed };
                            send(&mut outputs, &caps, &mut outbox, born, sent_ns, &shared);
                            downgrade(&task, &mut caps, Moment::new(epoch, logic.watermark()));
                        }
                        Polled::Again => add(&task.stats().busy_ns, shared.probe.now_ns() - start_ns),
                        Polled::Later(wait) => {
                            rest = Some(wait);
                            break;
                        }
                        Polled::Empty => {
                            rest = None;
                            break;
                        }
                        Polled::Idle(wait) => {
                            rest = Some(wait);
                            rests = true;
                            break;
                        }
                        Polled::Ended => {
                            ended = true;
                            rest = None;
                            break;
                        }
                    }
                }
                // Also where nothing was read: splits may have become idle.
                downgrade(&task, &mut caps, Moment::new(epoch, logic.watermark()));
                // Its watermark stands still from here on, if it has nothing more to look for.
                resting(rests || rest.is_none());
                if clocked {
                    task.stats().clock_us.store(if ended { i64::MAX } else { now.micros() }, Ordering::SeqCst);
                }
                if ended {
                    shared.report(Report::Ended);
                }
                match rest {
                    None => {}
                    // To sleep takes longer than that.
                    Some(wait) if wait < SPIN => activator.activate(),
                    Some(wait) => alarm.set(wait, &activator),
                }
                Ok(())
            };
            if let Err(error) = turn() {
                shared.fail(error);
            }
        }
    });
    vec![record_stream, bad_stream]
}

/// Ends every epoch that the coordinator wants ended, and reports where the splits stand.
fn take_epochs(task: &Task, logic: &dyn SourceLogic, epoch: &mut Epoch, caps: &mut [Capability<Moment>]) -> Result<()> {
    while *epoch < task.shared.announced.load(Ordering::SeqCst) {
        let splits = logic.cut()?;
        tracing::trace!(operator = %task.name, epoch = *epoch, "source cut");
        task.shared.note_cut(task.node, *epoch, logic.watermark());
        task.shared.report(Report::Cut { node: task.node, epoch: *epoch, splits });
        *epoch += 1;
        downgrade(task, caps, Moment::new(*epoch, logic.watermark()));
    }
    Ok(())
}

/// Whether a source must stop reading for now: a worker has too much to do or to fire,
/// state takes too much memory, or too much waits for an older epoch.
fn congested(shared: &Shared, epoch: Epoch, in_flight: usize) -> bool {
    let workers = shared.in_flight.len() as i64;
    let limit = i64::try_from(in_flight).unwrap_or(i64::MAX);
    let closed = shared.closed.load(Ordering::Relaxed);
    let ahead = epoch > closed + 1;
    shared.is_crowded(in_flight)
        || shared.full.load(Ordering::Relaxed) > closed
        || shared.firing.0.load(Ordering::Relaxed) > 0
        || (ahead && shared.stashed.0.load(Ordering::Relaxed) > limit.saturating_mul(workers))
}
