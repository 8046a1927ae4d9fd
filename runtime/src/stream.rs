//! Handles to the streams of a job that is being described.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use millstream_state::snapshot::Key;

use crate::call::{Call, CallSettings, Failed};
use crate::dataflow::{Delta, Join, Reduce, Row, Since};
use crate::driver::{Broadcasting, CallsNode, Division, KeyedFactory, KeyedNode, Keying, Plain, SinkNode, Wrapping};
use crate::graph::{Body, Graph, Port};
use crate::operator::{Combining, Divider, Either, Hearing, KeyedOperator, Stage};
use crate::record::Data;
use crate::shared::lock;
use crate::sink::Sink;

pub(crate) type SharedGraph = Arc<Mutex<Graph>>;

/// A stream of records, as described. Cloning it gives a second reader of the same records.
pub struct Stream<T> {
    graph: SharedGraph,
    port: Port,
    item: PhantomData<fn() -> T>,
}

impl<T> Clone for Stream<T> {
    fn clone(&self) -> Self {
        Stream { graph: Arc::clone(&self.graph), port: self.port, item: PhantomData }
    }
}

impl<T> std::fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.port).finish()
    }
}

impl<T: Data> Stream<T> {
    pub(crate) fn new(graph: SharedGraph, node: usize, output: usize) -> Self {
        Stream { graph, port: Port { node, output }, item: PhantomData }
    }

    /// Names the operator that made this stream, with all its outputs. State is found in checkpoints by this name; it must be
    /// unique in the job, 1 to 64 letters, digits, `-`, `_` or `.`.
    ///
    /// Without it the name is derived from the kind and a number, in the order in which the job is described: `fold-2`. Such
    /// names shift when an operator of the same kind is put before; so name what keeps state.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        lock(&self.graph).rename(self.port.node, name.into());
        self
    }

    /// Adds a stateless operator, of which every worker gets a clone. `kind` is what plans and default names call it.
    #[must_use]
    pub fn stage<S: Stage<In = T> + Clone>(self, kind: &'static str, stage: S) -> Stream<S::Out> {
        let body = Body::Stateless(Box::new(Plain(stage)));
        let node = lock(&self.graph).add(kind, String::new(), vec![self.port], &["out"], body);
        Stream::new(self.graph, node, 0)
    }

    /// Adds a stateless operator with two outputs, of which every worker gets a clone.
    #[must_use]
    pub fn divide<D: Divider<In = T> + Clone>(
        self,
        kind: &'static str,
        divider: D,
    ) -> (Stream<D::Main>, Stream<D::Side>) {
        let body = Body::Stateless(Box::new(Division(divider)));
        let node = lock(&self.graph).add(kind, String::new(), vec![self.port], &["main", "side"], body);
        (Stream::new(Arc::clone(&self.graph), node, 0), Stream::new(self.graph, node, 1))
    }

    /// Calls the outside for every record, on threads beside the workers. A record whose last attempt fails makes the job fail.
    ///
    /// # Panics
    /// When there are no threads, or no record may be in flight.
    #[must_use]
    pub fn calls<C: Call<In = T>>(self, kind: &'static str, call: C, settings: CallSettings) -> Stream<C::Out> {
        let detail = settings.describe();
        let body = Body::Calls(Box::new(CallsNode::new(call, settings, false)));
        let node = lock(&self.graph).add(kind, detail, vec![self.port], &["out"], body);
        Stream::new(self.graph, node, 0)
    }

    /// As [`calls`](Self::calls), with a second stream of the records whose last attempt failed.
    ///
    /// # Panics
    /// As `calls`.
    #[must_use]
    pub fn calls_with_failed<C: Call<In = T>>(
        self,
        kind: &'static str,
        call: C,
        settings: CallSettings,
    ) -> (Stream<C::Out>, Stream<Failed<T>>) {
        let detail = settings.describe();
        let body = Body::Calls(Box::new(CallsNode::new(call, settings, true)));
        let node = lock(&self.graph).add(kind, detail, vec![self.port], &["out", "failed"], body);
        (Stream::new(Arc::clone(&self.graph), node, 0), Stream::new(self.graph, node, 1))
    }

    /// The records of this stream and of `others`, in no particular order.
    ///
    /// # Panics
    /// When a stream belongs to another job.
    #[must_use]
    pub fn union(self, others: impl IntoIterator<Item = Stream<T>>) -> Stream<T> {
        let mut inputs = vec![self.port];
        for other in others {
            assert!(Arc::ptr_eq(&self.graph, &other.graph), "streams of two different jobs cannot be united");
            inputs.push(other.port);
        }
        let node = lock(&self.graph).add("union", String::new(), inputs, &["out"], Body::Union);
        Stream::new(self.graph, node, 0)
    }

    /// Groups records by a key. All records of a key go to the worker that owns it.
    #[must_use]
    pub fn key_by<K: Key>(self, key: impl Fn(&T) -> K + Clone + Send + 'static) -> KeyedStream<K, T> {
        let body = Body::Stateless(Box::new(Keying::new(key)));
        let detail = short_type_name(std::any::type_name::<K>());
        let node = lock(&self.graph).add("key_by", detail, vec![self.port], &["out"], body);
        KeyedStream { graph: self.graph, port: Port { node, output: 0 }, types: PhantomData }
    }

    /// Has every worker told of every record: what all keys have to know, such as rules that change while the job runs. See
    /// [`KeyedStream::with_broadcast`].
    #[must_use]
    pub fn broadcast(self) -> BroadcastStream<T> {
        BroadcastStream(self)
    }

    /// Leaves out what operators [hand over at the start of a run](crate::operator::KeyedOperator::on_start), and what is made of it.
    #[doc(hidden)]
    #[must_use]
    pub fn since_start(self) -> Stream<T> {
        let body = Body::Region(Box::new(Since));
        let node = lock(&self.graph).add("changes", String::new(), vec![self.port], &["out"], body);
        Stream::new(self.graph, node, 0)
    }

    /// Ends the stream in a sink.
    pub fn sink<S: Sink<T>>(self, sink: S) -> SinkHandle {
        let kind = sink.kind();
        let body = Body::Sink(Box::new(SinkNode::new(sink)));
        let node = lock(&self.graph).add("sink", kind.to_string(), vec![self.port], &[], body);
        SinkHandle { graph: self.graph, node }
    }
}

/// A type's name without the paths of its modules.
pub(crate) fn short_type_name(full: &str) -> String {
    let mut short = String::new();
    for part in full.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
        short.push_str(part.rsplit("::").next().unwrap_or(part));
    }
    short
}

/// A stream whose records are grouped by key.
pub struct KeyedStream<K, T> {
    graph: SharedGraph,
    port: Port,
    types: PhantomData<fn() -> (K, T)>,
}

impl<K, T> Clone for KeyedStream<K, T> {
    fn clone(&self) -> Self {
        KeyedStream { graph: Arc::clone(&self.graph), port: self.port, types: PhantomData }
    }
}

impl<K, T> std::fmt::Debug for KeyedStream<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyedStream").field(&self.port).finish()
    }
}

impl<K: Key, T: Data> KeyedStream<K, T> {
    /// Adds an operator with keyed state, of which every worker gets a clone; returns its results and its late records.
    #[must_use]
    pub fn operator<O>(self, kind: &'static str, operator: O) -> (Stream<O::Out>, Stream<T>)
    where
        O: KeyedOperator<Key = K, In = T> + Clone,
    {
        let (detail, positions) = (operator.describe(), operator.needs_positions());
        self.add(kind, detail, positions, Box::new(KeyedNode::plain(operator)))
    }

    /// As [`operator`](Self::operator), for one in front of which records can be taken together before they travel.
    #[must_use]
    pub fn combining_operator<O>(self, kind: &'static str, operator: O) -> (Stream<O::Out>, Stream<T>)
    where
        O: Combining<Key = K, In = T> + Clone,
    {
        let (detail, positions) = (operator.describe(), operator.needs_positions());
        self.add(kind, detail, positions, Box::new(KeyedNode::combining(operator)))
    }

    /// The records of this stream and of `other`, by the same key, in no particular order.
    ///
    /// # Panics
    /// When the streams belong to different jobs.
    #[must_use]
    pub fn connect<U: Data>(self, other: KeyedStream<K, U>) -> KeyedStream<K, Either<T, U>> {
        assert!(Arc::ptr_eq(&self.graph, &other.graph), "streams of two different jobs cannot be connected");
        let mut graph = lock(&self.graph);
        let mut wrap = |port, body| {
            let node = graph.add("connect", String::new(), vec![port], &["out"], body);
            Port { node, output: 0 }
        };
        let first = wrap(self.port, Body::Stateless(Box::new(Wrapping::<K, T, Either<T, U>>::new(Either::First))));
        let second = wrap(other.port, Body::Stateless(Box::new(Wrapping::<K, U, Either<T, U>>::new(Either::Second))));
        let node = graph.add("union", String::new(), vec![first, second], &["out"], Body::Union);
        drop(graph);
        KeyedStream { graph: self.graph, port: Port { node, output: 0 }, types: PhantomData }
    }

    /// The records of this stream by key, together with those that all workers are told of.
    ///
    /// # Panics
    /// When the streams belong to different jobs.
    #[must_use]
    pub fn with_broadcast<R: Data>(self, told: BroadcastStream<R>) -> BroadcastKeyedStream<K, T, R> {
        let BroadcastStream(told) = told;
        assert!(Arc::ptr_eq(&self.graph, &told.graph), "streams of two different jobs cannot be connected");
        let mut graph = lock(&self.graph);
        let mut wrap = |kind, port, body| {
            let node = graph.add(kind, String::new(), vec![port], &["out"], body);
            Port { node, output: 0 }
        };
        let first = Wrapping::<K, T, Either<T, R>>::new(Either::First);
        let first = wrap("connect", self.port, Body::Stateless(Box::new(first)));
        let second = Broadcasting::<R, Either<T, R>>::new(Either::Second);
        let second = wrap("broadcast", told.port, Body::Stateless(Box::new(second)));
        let node = graph.add("union", String::new(), vec![first, second], &["out"], Body::Union);
        drop(graph);
        let port = Port { node, output: 0 };
        BroadcastKeyedStream { both: KeyedStream { graph: self.graph, port, types: PhantomData } }
    }

    fn add<Out: Data>(
        self,
        kind: &'static str,
        detail: String,
        positions: bool,
        factory: Box<dyn KeyedFactory>,
    ) -> (Stream<Out>, Stream<T>) {
        let mut graph = lock(&self.graph);
        graph.positions |= positions;
        let node = graph.add(kind, detail, vec![self.port], &["out", "late"], Body::Keyed(factory));
        drop(graph);
        (Stream::new(Arc::clone(&self.graph), node, 0), Stream::new(self.graph, node, 1))
    }
}

/// A stream of which every worker is told every record. Made by [`Stream::broadcast`].
#[derive(Debug)]
pub struct BroadcastStream<T>(Stream<T>);

impl<T> Clone for BroadcastStream<T> {
    fn clone(&self) -> Self {
        BroadcastStream(self.0.clone())
    }
}

/// Records by key, together with those that every worker is told of. Made by [`KeyedStream::with_broadcast`].
#[derive(Debug)]
pub struct BroadcastKeyedStream<K, T, R> {
    both: KeyedStream<K, Either<T, R>>,
}

impl<K: Key, T: Data, R: Data> BroadcastKeyedStream<K, T, R> {
    /// Adds an operator with keyed state that hears both, of which every worker gets a clone; returns its results and its late records.
    #[must_use]
    pub fn operator<O>(self, kind: &'static str, operator: O) -> (Stream<O::Out>, Stream<Either<T, R>>)
    where
        O: Hearing<Key = K, In = Either<T, R>> + Clone,
    {
        let (detail, positions) = (operator.describe(), operator.needs_positions());
        self.both.add(kind, detail, positions, Box::new(KeyedNode::hearing(operator)))
    }
}

/// Changes of a collection, by key; differential dataflow keeps what it needs of the rows in memory, and in no checkpoint. Use
/// the operators of tables instead, which see to it that it is there again after a restart.
impl<K: Key + Row, V: Row> KeyedStream<K, Delta<K, V>> {
    /// The changes of what `logic` makes of the rows of each key, which it sees with how many there are of each, whenever they have changed. It is
    /// not called for a key without rows, for which there are none.
    #[doc(hidden)]
    #[must_use]
    pub fn reduce_changes<O: Row>(
        self,
        kind: &'static str,
        logic: impl FnMut(&K, &[(&V, i64)], &mut Vec<(O, i64)>) + Clone + Send + 'static,
    ) -> Stream<Delta<K, O>> {
        let body = Body::Region(Box::new(Reduce::new(logic)));
        let node = lock(&self.graph).add(kind, String::new(), vec![self.port], &["out"], body);
        Stream::new(self.graph, node, 0)
    }

    /// The changes of all pairs of a row of this collection and one of `other` with the same key.
    ///
    /// # Panics
    /// When the streams belong to different jobs.
    #[doc(hidden)]
    #[must_use]
    pub fn join_changes<W: Row>(
        self,
        kind: &'static str,
        other: KeyedStream<K, Delta<K, W>>,
    ) -> Stream<Delta<K, (V, W)>> {
        assert!(Arc::ptr_eq(&self.graph, &other.graph), "collections of two different jobs cannot be joined");
        let body = Body::Region(Box::new(Join::<K, V, W>::new()));
        let node = lock(&self.graph).add(kind, String::new(), vec![self.port, other.port], &["out"], body);
        Stream::new(self.graph, node, 0)
    }
}

/// A sink of a job that is being described.
pub struct SinkHandle {
    graph: SharedGraph,
    node: usize,
}

impl std::fmt::Debug for SinkHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SinkHandle").field(&self.node).finish()
    }
}

impl SinkHandle {
    /// Names the sink; see [`Stream::name`].
    pub fn name(self, name: impl Into<String>) {
        lock(&self.graph).rename(self.node, name.into());
    }
}
