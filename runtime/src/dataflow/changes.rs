//! The only module that names differential: reductions and joins of collections that change, as regions of the dataflow.
//!
//! Changes come in and go out as batches like any others, `(key, row, difference)` each, and change at the moment under which they travel. What
//! differential keeps is in no checkpoint: where a collection enters, an operator with state keeps all of its rows, and hands
//! them over at the start of a run under the least moment of all. What comes out under that moment was there before, and
//! [`Since`] drops it.
//!
//! **Source**: McSherry, Murray, Isaacs and Isard, *Differential dataflow* (CIDR 2013).

use std::marker::PhantomData;
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

use super::{ByKeyGroup, Packet, Stream, lower_bound, only};
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
        let (first, second) = in_step::<K, V, W>(scope, task, first, second);
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
    let own = task.clone();
    builder.build(move |caps| {
        drop(caps);
        move |_| {
            let mut session = pusher.activate();
            input.for_each(|cap, packet| {
                let mut updates: Updates<K, V> = received(&own, packet, only(cap.stamp())).collect();
                session.give(&cap, &mut updates);
            });
        }
    });
    kept(task, updates)
}

/// The changes in a batch that has arrived.
fn received<K: Key + Row, V: Row>(
    task: &Task,
    packet: &mut Packet,
    moment: Moment,
) -> impl Iterator<Item = ((K, V), Moment, i64)> + use<K, V> {
    let _live = packet.live.take();
    let rows = packet.rows.take().map(|rows| *downcast::<KeyedRows<K, Delta<K, V>>>(rows));
    let records = rows.map(|rows| rows.records).unwrap_or_default();
    if task.workers > 1 {
        task.shared.in_flight[task.worker].0.fetch_sub(records.len() as i64, Ordering::Relaxed);
    }
    add(&task.stats().records_in, records.len() as u64);
    records.into_iter().map(move |record| {
        let (key, row, by) = record.value;
        ((key, row), moment, by)
    })
}

/// Changes as differential keeps them.
fn kept<'scope, K: Key + Row, V: Row>(
    task: &Task,
    updates: timely::dataflow::Stream<'scope, Moment, Updates<K, V>>,
) -> Rowed<'scope, K, V> {
    let name = format!("{}: rows", task.name);
    arrange_core::<_, _, ValBatcher<K, V, Moment, i64>, _>(
        updates.as_collection().inner,
        Pipeline,
        &name,
        ValBatcher::new,
    )
}

/// The changes of two collections, by the workers that own their keys, as differential keeps them; neither runs ahead of the other in event time.
///
/// A collection that is joined is kept as it was at every moment that may still come in the other one. If event time stood still there, no two
/// changes of different event times would ever be taken together, however many epochs had closed, and what is kept would grow with every change.
fn in_step<'scope, K: Key + Row, V: Row, W: Row>(
    scope: Scope<'scope, Moment>,
    task: &Task,
    first: Stream<'scope>,
    second: Stream<'scope>,
) -> (Rowed<'scope, K, V>, Rowed<'scope, K, W>) {
    let mut builder = OperatorBuilder::new(task.name.clone(), scope);
    let of = [task.clone(), task.clone()];
    let [one, two] = of.map(|of| DistributorPact(move |workers| ByKeyGroup::new(of, workers)));
    let mut one = builder.new_input(first, one);
    let mut two = builder.new_input(second, two);
    let (mut to_first, first) = builder.new_output::<Updates<K, V>>();
    let (mut to_second, second) = builder.new_output::<Updates<K, W>>();
    let own = task.clone();
    builder.build(move |mut caps| {
        let (mut from_first, mut from_second) = (Ahead::new(), Ahead::new());
        move |frontiers| {
            one.for_each(|cap, packet| from_first.take(received(&own, packet, only(cap.stamp()))));
            two.for_each(|cap, packet| from_second.take(received(&own, packet, only(cap.stamp()))));
            // An empty frontier means teardown.
            let both = frontiers.iter().map(|frontier| lower_bound(frontier.frontier().iter()));
            let Some(bound) = both.reduce(|a, b| Some(a?.meet(&b?))).flatten() else { return };
            to_first.activate().give(&caps[0], &mut from_first.release(bound));
            to_second.activate().give(&caps[1], &mut from_second.release(bound));
            caps.iter_mut().filter(|cap| *cap.time() != bound).for_each(|cap| cap.downgrade(&bound));
        }
    });
    (kept(task, first), kept(task, second))
}

/// Changes of one collection for which the other has not come far enough.
struct Ahead<D> {
    changes: Vec<(D, Moment, i64)>,
    /// How far both had come when they were looked at.
    seen: Moment,
    /// How many of them were there then.
    old: usize,
}

/// So many may wait for event time; then those of the epoch that is open on both sides go on as if it had come to them.
const MOST_AHEAD: usize = 1 << 16;

impl<D> Ahead<D> {
    fn new() -> Self {
        Ahead { changes: Vec::new(), seen: Moment::minimum(), old: 0 }
    }

    fn take(&mut self, changes: impl Iterator<Item = (D, Moment, i64)>) {
        self.changes.extend(changes);
    }

    /// Those to which event time has come, now that both have come to `bound`; and, at that event time, those of epochs that are over, and if
    /// too many are left, those of the epoch that is not. So what both have of one moment stays together, unless that takes too long.
    ///
    /// Those of a later epoch wait in any case: the source that ended the one before it had come further than the other side.
    fn release(&mut self, bound: Moment) -> Vec<(D, Moment, i64)> {
        // What has been looked at already waits for more.
        let from = if bound == self.seen { self.old } else { 0 };
        let is_due = |at: Moment| at.watermark <= bound.watermark || at.epoch < bound.epoch;
        let mut due: Vec<_> = self.changes.extract_if(from.., |(_, at, _)| is_due(*at)).collect();
        if self.changes.len() > MOST_AHEAD {
            due.extend(self.changes.extract_if(.., |(_, at, _)| at.epoch == bound.epoch));
        }
        due.iter_mut().for_each(|(_, at, _)| at.watermark = at.watermark.min(bound.watermark));
        (self.seen, self.old) = (bound, self.changes.len());
        due
    }
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
                    // A change is before no window that is open, also not before event time has come again to where it was.
                    let at = moment.watermark.max(task.came_to);
                    let mut rows = Rows::default();
                    for ((key, row), _, by) in changes {
                        rows.push(at, (key.clone(), row.clone(), *by), None);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::EventTime;

    fn moment(epoch: u64, at: i64) -> Moment {
        Moment::new(epoch, EventTime::from_micros(at))
    }

    fn ahead(changes: &[(u64, i64)]) -> Ahead<u64> {
        let mut ahead = Ahead::new();
        ahead.take(changes.iter().enumerate().map(|(n, (epoch, at))| (n as u64, moment(*epoch, *at), 1)));
        ahead
    }

    #[test]
    fn a_change_waits_until_the_other_side_has_come_to_its_event_time() {
        let mut ahead = ahead(&[(1, 5), (1, 20), (2, 7)]);
        assert_eq!(ahead.release(moment(1, 5)), [(0, moment(1, 5), 1)]);
        assert_eq!(ahead.release(moment(1, 5)), []);
        ahead.take([(3, moment(1, 5), 1)].into_iter());
        assert_eq!(ahead.release(moment(1, 5)), [(3, moment(1, 5), 1)]);
        assert_eq!(ahead.release(moment(1, 10)), [(2, moment(2, 7), 1)]);
        assert_eq!(ahead.release(moment(1, 20)), [(1, moment(1, 20), 1)]);
    }

    /// It stays in its epoch: the checkpoint of that has it.
    #[test]
    fn where_event_time_stands_still_changes_of_an_epoch_that_is_over_are_of_one_moment() {
        let mut ahead = ahead(&[(1, 5), (1, 20), (2, 7)]);
        assert_eq!(ahead.release(moment(2, 3)), [(0, moment(1, 3), 1), (1, moment(1, 3), 1)]);
        assert_eq!(ahead.release(moment(3, 3)), [(2, moment(2, 3), 1)]);
    }

    #[test]
    fn not_more_wait_than_may() {
        let mut ahead = ahead(&[]);
        let mut given = 0;
        for n in 0..3 * MOST_AHEAD as u64 {
            ahead.take([(n, moment(1, 100), 1)].into_iter());
            let due = ahead.release(moment(1, 10));
            assert!(due.iter().all(|(_, at, _)| *at == moment(1, 10)));
            given += due.len();
            assert!(ahead.changes.len() <= MOST_AHEAD);
        }
        assert_eq!(given + ahead.changes.len(), 3 * MOST_AHEAD);
        // Those of the next epoch are not told of before its sources had come so far.
        ahead.take((0..2 * MOST_AHEAD as u64).map(|n| (n, moment(2, 100), 1)));
        assert!(ahead.release(moment(1, 10)).iter().all(|(_, at, _)| at.epoch == 1));
        assert_eq!(ahead.release(moment(2, 50)).len(), 2 * MOST_AHEAD);
    }
}
