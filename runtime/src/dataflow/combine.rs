//! A combiner as a timely operator, in front of an exchange. What it holds keeps a capability back at most as far as the
//! watermark at which the owners need it; while it holds nothing it has none, and nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Packet, Stream, lower_bound, only, send};
use crate::bench::probe::Born;
use crate::driver::{CombineLogic, Outbox, Task};
use crate::error::Result;
use crate::moment::Moment;
use crate::rest::Live;
use crate::shared::add;
use crate::time::EventTime;

/// Later than every batch.
const UNBORN: Born = Born { ns: u64::MAX, fired: true, pressed: false };

pub(super) fn build<'scope>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    mut logic: Box<dyn CombineLogic>,
    input: Stream<'scope>,
) -> Stream<'scope> {
    let mut builder = OperatorBuilder::new(format!("{} (combiner)", task.name), scope);
    let mut input = builder.new_input(input, Pipeline);
    let (pusher, stream) = builder.new_output();
    let (task, shared) = (task.clone(), Arc::clone(&task.shared));
    builder.build(move |caps| {
        drop(caps);
        let mut outputs = [pusher];
        let mut outbox = Outbox::new();
        // While something is held: under what it will be sent.
        let mut held: Option<Capability<Moment>> = None;
        let mut born = UNBORN;
        move |frontiers| {
            if shared.has_failed() {
                return;
            }
            let stats = task.stats();
            let mut turn = || -> Result<()> {
                let mut result = Ok(());
                let mut sent_ns = 0;
                let start_ns = shared.probe.now_ns();
                let dealt = || stats.dealing_ns.load(Ordering::Relaxed);
                let dealt_before = dealt();
                let mut idle = true;
                input.for_each(|cap, packet| {
                    let (Some(rows), Ok(())) = (packet.rows.take(), &result) else { return };
                    // Until it is sent on, or held.
                    let live = packet.live.take();
                    sent_ns = packet.sent_ns;
                    if std::mem::take(&mut idle) {
                        stats.queue.record(start_ns.saturating_sub(sent_ns), 1);
                    }
                    let moment = only(cap.stamp());
                    // Records of an epoch that is not yet the current one are few, and travel as they are. So do records of a
                    // source that has no more to read: whoever keeps up has the time to send them, and would lose it when
                    // the window closes, for what is held must then be handed over before there can be results.
                    let rows = match &held {
                        _ if !packet.born.pressed => Ok(Some(rows)),
                        Some(held) if held.time().epoch != moment.epoch => Ok(Some(rows)),
                        _ => {
                            born = born.with(packet.born);
                            logic.take(rows)
                        }
                    };
                    match rows {
                        Ok(Some(rows)) => {
                            let live = Live::new(&shared);
                            let mut packet = Packet { rows: Some(rows), born: packet.born, sent_ns, live };
                            outputs[0].activate().give(&cap, &mut packet);
                        }
                        Ok(None) => {}
                        Err(error) => {
                            Live::has_failed(live);
                            result = Err(error);
                        }
                    }
                    // Batches of several sources may come under moments that go back.
                    let held_from = held.as_ref().map(|held| *held.time());
                    let earlier =
                        held_from.is_none_or(|from| from.epoch == moment.epoch && moment.watermark < from.watermark);
                    if logic.is_empty() {
                        born = UNBORN;
                    } else if earlier {
                        held = Some(cap.delayed(&moment, 0));
                    }
                });
                // What travels as it is was dealt out meanwhile, and that is counted by itself.
                let busy =
                    |now_ns: u64| add(&stats.busy_ns, (now_ns - start_ns).saturating_sub(dealt() - dealt_before));
                result?;
                // An empty frontier means teardown, never that anything may be sent.
                let (Some(cap), Some(bound)) = (&mut held, lower_bound(frontiers[0].frontier().iter())) else {
                    if !idle {
                        busy(shared.probe.now_ns());
                    }
                    return Ok(());
                };
                let everything = bound.epoch > cap.time().epoch || logic.is_full();
                logic.release(if everything { EventTime::MAX } else { bound.watermark }, &mut outbox)?;
                let sent_ns = shared.probe.now_ns();
                busy(sent_ns);
                send(&mut outputs, std::slice::from_ref(cap), &mut outbox, born, sent_ns, &shared);
                if logic.is_empty() {
                    (held, born) = (None, UNBORN);
                } else {
                    cap.downgrade(&Moment::new(cap.time().epoch, cap.time().watermark.max(bound.watermark)));
                }
                Ok(())
            };
            if let Err(error) = turn() {
                shared.fail(error);
            }
        }
    });
    stream
}
