//! A chain of stateless operators as one timely operator.

use std::sync::Arc;

use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::operate::FrontierInterest;

use super::{Packet, Stream};
use crate::driver::{Outbox, StatelessLogic, Task};
use crate::moment::Moment;
use crate::rest::Live;

pub(super) fn build<'scope>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    mut logic: StatelessLogic,
    outputs: usize,
    input: Stream<'scope>,
) -> Vec<Stream<'scope>> {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    let mut input = builder.new_input(input, Pipeline);
    builder.set_notify_for(0, FrontierInterest::Never);
    let (mut pushers, streams): (Vec<_>, Vec<_>) = (0..outputs).map(|_| builder.new_output()).unzip();
    let task = task.clone();
    builder.build(move |caps| {
        drop(caps);
        let shared = Arc::clone(&task.shared);
        let mut outbox = Outbox::new();
        move |_| {
            if shared.has_failed() {
                return;
            }
            let mut sessions: Vec<_> = pushers.iter_mut().map(|pusher| pusher.activate()).collect();
            input.for_each(|cap, packet| {
                let Some(rows) = packet.rows.take() else { return };
                // Until what is made of it is sent.
                let live = packet.live.take();
                if shared.has_failed() {
                    return;
                }
                match logic.apply(rows, packet.sent_ns, &mut outbox) {
                    Ok(sent_ns) => {
                        for (output, rows) in outbox.drain(..) {
                            let live = Live::new(&shared);
                            let mut packet = Packet { rows: Some(rows), born: packet.born, sent_ns, live };
                            sessions[output].give(&cap, &mut packet);
                        }
                    }
                    Err(error) => {
                        Live::has_failed(live);
                        shared.fail(error);
                    }
                }
            });
        }
    });
    streams
}
