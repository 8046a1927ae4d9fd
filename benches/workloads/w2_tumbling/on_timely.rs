//! W2 by hand on timely dataflow: two operators, with the table, the hasher and the lateness of the loop.
//!
//! The source sends 1024 events at a time, as one container, under the watermark before them. The second operator exchanges
//! events by the hash of their key, keeps a hash map per window, and fires a window when the frontier has come to its end.
//! Results are a stream; whoever reads it adds up their digests.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::DefaultHashBuilder;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::generic::operator::source;
use timely::dataflow::{Scope, Stream as Dataflow};

use crate::kit::event::{Event, JITTER_MS, Split, Stream};
use crate::kit::windows::{Acc, SIZE_US, Table, Windows, add, result_digest};

const BATCH: u64 = 1024;

type Events = CapacityContainerBuilder<Vec<Event>>;
type Results = CapacityContainerBuilder<Vec<(u64, i64, Acc)>>;

/// The sum of the digests of all results.
pub fn run(stream: &Stream, events: u64, workers: usize) -> u64 {
    let total = Arc::new(AtomicU64::new(0));
    let (stream, sum) = (Arc::new(stream.clone()), Arc::clone(&total));
    let hasher = DefaultHashBuilder::default(); // random, but the same on all workers
    let running = timely::execute(timely::Config::process(workers), move |worker| {
        let (stream, sum, hasher) = (Arc::clone(&stream), Arc::clone(&sum), hasher.clone());
        worker.dataflow::<i64, _, _>(|scope| {
            windows(generate(scope, stream, events), hasher).sink(Pipeline, "digest", move |(input, _)| {
                let mut part = 0u64;
                input.for_each(|_, results| {
                    for (key, window, acc) in results.drain(..) {
                        part = part.wrapping_add(result_digest(key, window, acc));
                    }
                });
                sum.fetch_add(part, Ordering::Relaxed); // wraps around
            });
        });
    });
    drop(running.expect("workers start")); // waits for them
    total.load(Ordering::SeqCst)
}

fn generate<'scope>(scope: Scope<'scope, i64>, stream: Arc<Stream>, events: u64) -> Dataflow<'scope, i64, Vec<Event>> {
    source::<_, Events, _, _>(scope, "events", move |capability, info| {
        let activator = scope.activator_for(info.address);
        let (p, splits) = (scope.index(), scope.peers());
        let mut capability = Some(capability);
        let mut next = 0;
        let mut highest = i64::MIN;
        let mut batch = Vec::new();
        move |output| {
            let Some(cap) = &mut capability else { return };
            batch.clear();
            Split::new(&stream, events, p + next * splits, splits).batch(BATCH, &mut batch);
            next += batch.len();
            let Some(last) = batch.iter().map(|event| event.at.micros()).max() else {
                capability = None;
                return;
            };
            highest = highest.max(last);
            output.session(&*cap).give_container(&mut batch);
            cap.downgrade(&(highest - JITTER_MS as i64 * 1_000));
            activator.activate();
        }
    })
}

/// An open window, and the right to send its results.
#[derive(Default)]
struct Open {
    capability: Option<Capability<i64>>,
    table: Table,
}

fn windows<'scope>(
    events: Dataflow<'scope, i64, Vec<Event>>,
    hasher: DefaultHashBuilder,
) -> Dataflow<'scope, i64, Vec<(u64, i64, Acc)>> {
    // The table uses the low and the highest bits of the hash; the worker is chosen by others.
    let exchange = Exchange::new(move |event: &Event| hasher.hash_one(event.key) >> 32);
    events.unary_frontier::<Results, _, _, _>(exchange, "windows", |_, _| {
        let mut windows = Windows::<Open>::new(Default::default);
        move |(input, frontier), output| {
            input.for_each(|cap, events| {
                let watermark = *cap.least().expect("sent under a capability");
                for Event { key, value, at } in events.drain(..) {
                    let window = at.micros().div_euclid(SIZE_US);
                    if !windows.is_current(window) {
                        let end = (window + 1) * SIZE_US;
                        if end <= watermark {
                            continue; // late
                        }
                        let hold = || cap.delayed(&(end - 1), output.output_index());
                        windows.table(window).capability.get_or_insert_with(hold);
                    }
                    add(&mut windows.table(window).table, key, value);
                }
            });
            let end = frontier.frontier().first().map_or(i64::MAX, |watermark| watermark.div_euclid(SIZE_US));
            while let Some((window, mut open)) = windows.take_before(end) {
                let cap = open.capability.take().expect("held since the window began");
                output.session(&cap).give_iterator(open.table.drain().map(|(key, acc)| (key, window, acc)));
                windows.recycle(open);
            }
        }
    })
}
