//! Calls to the outside as a timely operator. For every batch with calls that are not done it keeps capabilities at the batch's moment, and
//! sends results under these: so no frontier behind it passes the epoch or the watermark of a record that waits for its answer.

use std::collections::HashMap;
use std::sync::Arc;

use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::operate::FrontierInterest;

use super::{Stream, only, send};
use crate::bench::probe::Born;
use crate::driver::{CallsLogic, LateWaker, Outbox, Task};
use crate::error::{Error, Result};
use crate::moment::Moment;
use crate::rest::Live;
use crate::shared::add;

/// What a batch leaves behind until all of its calls are done.
struct Held {
    caps: Vec<Capability<Moment>>,
    born: Born,
    live: Option<Live>,
}

pub(super) fn build<'scope>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    mut logic: Box<dyn CallsLogic>,
    waker: &LateWaker,
    outputs: usize,
    input: Stream<'scope>,
) -> Vec<Stream<'scope>> {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    let mut input = builder.new_input(input, Pipeline);
    builder.set_notify_for(0, FrontierInterest::Never);
    let (mut pushers, streams): (Vec<_>, Vec<_>) = (0..outputs).map(|_| builder.new_output()).unzip();
    let wake = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    // Nothing is called before the dataflow runs.
    let _ = waker.set(Box::new(move || {
        // It fails only when the worker is gone.
        let _ = wake.activate();
    }));
    let task = task.clone();
    builder.build(move |caps| {
        drop(caps);
        let shared = Arc::clone(&task.shared);
        let mut held: HashMap<u64, Held> = HashMap::new();
        let mut batches = 0;
        let mut outbox = Outbox::new();
        move |_| {
            if shared.has_failed() {
                return;
            }
            let start_ns = shared.probe.now_ns();
            let mut result = Ok(());
            input.for_each(|cap, packet| {
                let (Some(rows), Ok(())) = (packet.rows.take(), &result) else { return };
                let moment = only(cap.stamp());
                let caps = (0..outputs).map(|output| cap.delayed(&moment, output)).collect();
                batches += 1;
                held.insert(batches, Held { caps, born: packet.born, live: packet.live.take() });
                task.stats().queue.record(start_ns.saturating_sub(packet.sent_ns), 1);
                result = logic.take(batches, rows);
            });
            let turn = || -> Result<()> {
                result?;
                let made = logic.made()?;
                let sent_ns = shared.probe.now_ns();
                add(&task.stats().busy_ns, sent_ns - start_ns);
                for made in made {
                    let Some(Held { caps, born, .. }) = held.get(&made.batch) else {
                        return Err(Error::internal("results of a batch that is done").in_operator(&task.name));
                    };
                    outbox.extend(made.rows);
                    send(&mut pushers, caps, &mut outbox, *born, sent_ns, &shared);
                    if made.is_last {
                        held.remove(&made.batch);
                    }
                }
                Ok(())
            };
            if let Err(error) = turn() {
                // Which batch it was does not matter: the job is never at rest again.
                held.values_mut().for_each(|held| Live::has_failed(held.live.take()));
                shared.fail(error);
            }
        }
    });
    streams
}
