//! The only module that names differential: reductions and joins of collections that change, as regions of the dataflow.
//!
//! Changes come in and go out as batches like any others, `(key, row, difference)` each, and change at the moment under which they travel. What
//! differential keeps is in no checkpoint: where a collection enters, an operator with state keeps all of its rows, and hands
//! them over at the start of a run under the least moment of all. What comes out under that moment was there before, and
//! [`Since`] drops it.
//!
//! **Source**: McSherry, Murray, Isaacs and Isard, *Differential dataflow* (CIDR 2013).

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use differential_dataflow::collection::AsCollection;
use differential_dataflow::lattice::Lattice;
use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::operators::arrange::{Arranged, TraceAgent};
use differential_dataflow::trace::implementations::{ValBatcher, ValBuilder, ValSpine};
use millstream_state::snapshot::{Key, Value};
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::{DistributorPact, Pipeline};
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::Timestamp;
use timely::progress::operate::FrontierInterest;

use super::{ByKeyGroup, Packet, Stream, only};
use crate::bench::probe::Born;
use crate::driver::{Task, guard};
use crate::moment::Moment;
use crate::rest::Live;
use crate::rows::{KeyedRows, Rows, downcast};
use crate::shared::add;

/// What can be a key or a row of a collection that changes: differential sorts them.
///
/// Implemented for every such type.
pub trait Row: Value + Ord + std::fmt::Debug {}
impl<T: Value + Ord + std::fmt::Debug> Row for T {}

/// A change of a collection: so many more of a row, or fewer.
pub type Delta<K, V> = (K, V, i64);

impl Lattice for Moment {
    fn join(&self, other: &Self) -> Self {
        Moment::new(self.epoch.max(other.epoch), self.watermark.max(other.watermark))
    }

    fn meet(&self, other: &Self) -> Self {
        Moment::new(self.epoch.min(other.epoch), self.watermark.min(other.watermark))
    }
}

/// Makes regions, one for every worker.
pub(crate) trait RegionFactory: Send {
    fn region(&self) -> Box<dyn Region>;
}

/// A part of the dataflow that differential runs.
pub(crate) trait Region {
    fn build<'scope>(
        self: Box<Self>,
        scope: Scope<'scope, Moment>,
        task: &Task,
        inputs: Vec<Stream<'scope>>,
    ) -> Stream<'scope>;
}

/// Makes of the rows of a key other rows, anew whenever they change.
pub(crate) struct Reduce<K, V, O, F> {
    logic: F,
    types: PhantomData<fn(K, V) -> O>,
}

impl<K, V, O, F> Reduce<K, V, O, F> {
    pub(crate) fn new(logic: F) -> Self {
        Reduce { logic, types: PhantomData }
    }
}

impl<K: Key + Row, V: Row, O: Row, F> RegionFactory for Reduce<K, V, O, F>
where
    F: FnMut(&K, &[(&V, i64)], &mut Vec<(O, i64)>) + Clone + Send + 'static,
{
    fn region(&self) -> Box<dyn Region> {
        Box::new(Reduce { logic: self.logic.clone(), types: PhantomData })
    }
}

impl<K: Key + Row, V: Row, O: Row, F> Region for Reduce<K, V, O, F>
where
    F: FnMut(&K, &[(&V, i64)], &mut Vec<(O, i64)>) + 'static,
{
    fn build<'scope>(
        self: Box<Self>,
        scope: Scope<'scope, Moment>,
        task: &Task,
        inputs: Vec<Stream<'scope>>,
    ) -> Stream<'scope> {
        let (mut logic, of) = (self.logic, task.clone());
        let guarded = move |key: &K, rows: &[(&V, i64)], out: &mut Vec<(O, i64)>| {
            if of.shared.has_failed() {
                return;
            }
            let called = guard(&of.name, || {
                logic(key, rows, out);
                Ok(())
            });
            if let Err(error) = called {
                of.shared.fail(error.note(format!("it was called for the key {key:?}")));
            }
        };
        let [input] = exactly(inputs);
        let changes = arranged::<K, V>(scope, task, input)
            .reduce_abelian::<_, ValBuilder<_, _, _, _>, ValSpine<K, O, _, _>, _, _>(
                &task.name,
                guarded,
                |updates, key, changes| {
                    updates.clear();
                    updates.extend(changes.drain(..).map(|(row, at, by)| ((key.clone(), row), at, by)));
                },
            );
        give(scope, task, changes.as_collection(|key, row| (key.clone(), row.clone())).inner)
    }
}

/// Every pair of a row of one collection and one of the other that have the same key.
pub(crate) struct Join<K, V, W>(PhantomData<fn(K, V, W)>);

impl<K, V, W> Join<K, V, W> {
    pub(crate) fn new() -> Self {
        Join(PhantomData)
    }
}

impl<K: Key + Row, V: Row, W: Row> RegionFactory for Join<K, V, W> {
    fn region(&self) -> Box<dyn Region> {
        Box::new(Self::new())
    }
}

impl<K: Key + Row, V: Row, W: Row> Region for Join<K, V, W> {
    fn build<'scope>(
        self: Box<Self>,
        scope: Scope<'scope, Moment>,
        task: &Task,
        inputs: Vec<Stream<'scope>>,
    ) -> Stream<'scope> {
        let [first, second] = exactly(inputs);
        let first = arranged::<K, V>(scope, task, first);
        let second = arranged::<K, W>(scope, task, second);
        let pairs = first.join_core(second, |key: &K, a: &V, b: &W| Some((key.clone(), (a.clone(), b.clone()))));
        give(scope, task, pairs.inner)
    }
}

/// Lets through what changed since the run began, and not what was there before.
pub(crate) struct Since;

impl RegionFactory for Since {
    fn region(&self) -> Box<dyn Region> {
        Box::new(Since)
    }
}

impl Region for Since {
    fn build<'scope>(
        self: Box<Self>,
        scope: Scope<'scope, Moment>,
        task: &Task,
        inputs: Vec<Stream<'scope>>,
    ) -> Stream<'scope> {
        let mut builder = OperatorBuilder::new(task.name.clone(), scope);
        let [input] = exactly(inputs);
        let mut input = builder.new_input(input, Pipeline);
        builder.set_notify_for(0, FrontierInterest::Never);
        let (mut pusher, stream) = builder.new_output();
        builder.build(move |caps| {
            drop(caps);
            move |_| {
                let mut session = pusher.activate();
                input.for_each(|cap, packet: &mut Packet| {
                    if only(cap.stamp()) != Moment::minimum() {
                        session.give(&cap, packet);
                    }
                });
            }
        });
        stream
    }
}

/// The inputs of a region, of which the job's graph has given as many as it needs.
fn exactly<'scope, const N: usize>(inputs: Vec<Stream<'scope>>) -> [Stream<'scope>; N] {
    let count = inputs.len();
    inputs.try_into().unwrap_or_else(|_| panic!("a region has {N} inputs and was given {count}"))
}

type Updates<K, V> = Vec<((K, V), Moment, i64)>;
type Rowed<'scope, K, V> = Arranged<'scope, TraceAgent<ValSpine<K, V, Moment, i64>>>;

/// The changes of a collection, by the workers that own their keys, as differential keeps them.
fn arranged<'scope, K: Key + Row, V: Row>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    input: Stream<'scope>,
) -> Rowed<'scope, K, V> {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    let of = task.clone();
    let mut input = builder.new_input(input, DistributorPact(move |workers| ByKeyGroup::new(of, workers)));
    builder.set_notify_for(0, FrontierInterest::Never);
    let (mut pusher, updates) = builder.new_output::<Updates<K, V>>();
    let task = task.clone();
    let name = format!("{}: rows", task.name);
    builder.build(move |caps| {
        drop(caps);
        let shared = Arc::clone(&task.shared);
        move |_| {
            let mut session = pusher.activate();
            input.for_each(|cap, packet| {
                let Some(rows) = packet.rows.take() else { return };
                let _live = packet.live.take();
                if task.workers > 1 {
                    shared.in_flight[task.worker].0.fetch_sub(rows.len() as i64, Ordering::Relaxed);
                }
                let moment = only(cap.stamp());
                let rows = *downcast::<KeyedRows<K, Delta<K, V>>>(rows);
                add(&task.stats().records_in, rows.records.len() as u64);
                let update = |(key, row, by): Delta<K, V>| ((key, row), moment, by);
                let mut updates: Updates<K, V> = rows.records.into_iter().map(|record| update(record.value)).collect();
                session.give(&cap, &mut updates);
            });
        }
    });
    arrange_core::<_, _, ValBatcher<K, V, Moment, i64>, _>(
        updates.as_collection().inner,
        Pipeline,
        &name,
        ValBatcher::new,
    )
}

/// What differential made, as batches: each of one moment.
fn give<'scope, K: Key + Row, V: Row>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    changes: timely::dataflow::Stream<'scope, Moment, Updates<K, V>>,
) -> Stream<'scope> {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    let mut input = builder.new_input(changes, Pipeline);
    builder.set_notify_for(0, FrontierInterest::Never);
    let (mut pusher, stream) = builder.new_output();
    let task = task.clone();
    builder.build(move |caps| {
        drop(caps);
        move |_| {
            let mut session = pusher.activate();
            input.for_each(|cap, updates: &mut Updates<K, V>| {
                let sent_ns = task.shared.probe.now_ns();
                add(&task.stats().records_out, updates.len() as u64);
                updates.sort_by_key(|(_, moment, _)| *moment);
                for changes in updates.chunk_by(|a, b| a.1 == b.1) {
                    let moment = changes[0].1;
                    let mut rows = Rows::default();
                    for ((key, row), _, by) in changes {
                        // A change is before no window that is open.
                        rows.push(moment.watermark, (key.clone(), row.clone(), *by), None);
                    }
                    let born = Born { ns: sent_ns, fired: true, pressed: true };
                    let cap = cap.delayed(&moment, 0);
                    let live = Live::new(&task.shared);
                    session.give(&cap, &mut Packet { rows: Some(Box::new(rows)), born, sent_ns, live });
                }
                updates.clear();
            });
        }
    });
    stream
}
