//! Joins within windows: records of two streams that have the same key and are in the same window.
//!
//! **Shape**: two connected keyed streams in windows in; out comes, per key and window, what was in it of each, in order of event time and position; from
//! that all kinds of join are made. **State**: the records of both, until their window is over.
//!
//! **Time** and **Lateness** are those of the [windows](crate::window), of whatever kind. A pair happened at the window's last instant.
//!
//! **Source**: Flink's `coGroup` and windowed join.

use millstream_runtime::operator::Either;
use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;
use millstream_state::snapshot::{Key, Value};

use super::Joined;
use crate::aggregate::{Aggregate, List, Origin};
use crate::flat_map::FlatMapExt;
use crate::window::{Pane, WindowedStream, Windows};

/// Adds `cogroup` to connected streams in windows.
pub trait CoGroupExt<K: Key, A: Value, B: Value> {
    /// For every key and window, all records of the first stream and all of the second, each in order of event time and position.
    ///
    /// ```no_run
    /// # use millstream_runtime::{stream::Stream, time::EventSpan};
    /// # use millstream_operators::{join::{CoGroupExt, WindowJoinExt}, window::{Pane, Tumbling, WindowExt}};
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Click { ad: u64 }
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct View { ad: u64 }
    /// # fn example(views: Stream<View>, clicks: Stream<Click>) {
    /// let clicked: Stream<Pane<u64, (View, Option<Click>)>> = views
    ///     .key_by(|view| view.ad)
    ///     .connect(clicks.key_by(|click| click.ad))
    ///     .window(Tumbling::of(EventSpan::mins(10)))
    ///     .cogroup()
    ///     .left_join();
    /// # }
    /// ```
    #[must_use]
    fn cogroup(self) -> Stream<CoGroup<K, A, B>>;

    /// As [`cogroup`](Self::cogroup), with a second stream of late records.
    #[must_use]
    fn cogroup_with_late(self) -> Joined<CoGroup<K, A, B>, A, B>;
}

/// The records of two streams for a key in a window.
pub type CoGroup<K, A, B> = Pane<K, (Vec<A>, Vec<B>)>;

impl<K: Key, A: Value, B: Value, W: Windows<Either<A, B>>> CoGroupExt<K, A, B> for WindowedStream<K, Either<A, B>, W> {
    fn cogroup(self) -> Stream<CoGroup<K, A, B>> {
        self.cogroup_with_late().0
    }

    fn cogroup_with_late(self) -> Joined<CoGroup<K, A, B>, A, B> {
        self.aggregate_with_late(Sides(List::of(Either::clone)))
    }
}

/// The records of each stream, in order.
#[derive(Clone)]
struct Sides<F>(List<F>);

impl<A: Value, B: Value, F> Aggregate<Either<A, B>> for Sides<F>
where
    F: Fn(&Either<A, B>) -> Either<A, B> + Clone + Send + 'static,
{
    type Acc = <List<F> as Aggregate<Either<A, B>>>::Acc;
    type Out = (Vec<A>, Vec<B>);

    const NEEDS_POSITION: bool = true;

    fn describe(&self) -> String {
        "records of two streams".to_string()
    }

    fn create(&self) -> Self::Acc {
        self.0.create()
    }

    fn add(&self, acc: &mut Self::Acc, value: &Either<A, B>, origin: &Origin) {
        self.0.add(acc, value, origin);
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        Aggregate::<Either<A, B>>::merge(&self.0, into, from);
    }

    fn finish(&self, acc: &Self::Acc) -> (Vec<A>, Vec<B>) {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for record in Aggregate::<Either<A, B>>::finish(&self.0, acc) {
            match record {
                Either::First(record) => first.push(record),
                Either::Second(record) => second.push(record),
            }
        }
        (first, second)
    }
}

/// A record of each stream, or of one of them.
pub type Maybe<A, B> = (Option<A>, Option<B>);

/// Adds joins to what two streams have in a window.
pub trait WindowJoinExt<K: Key, A: Data, B: Data> {
    /// Every pair of a record of the first and one of the second.
    #[must_use]
    fn inner_join(self) -> Stream<Pane<K, (A, B)>>;

    /// As [`inner_join`](Self::inner_join), and the records of the first for which there is none of the second.
    #[must_use]
    fn left_join(self) -> Stream<Pane<K, (A, Option<B>)>>;

    /// As [`inner_join`](Self::inner_join), and the records of the second for which there is none of the first.
    #[must_use]
    fn right_join(self) -> Stream<Pane<K, (Option<A>, B)>>;

    /// As [`inner_join`](Self::inner_join), and the records of each for which there is none of the other.
    #[must_use]
    fn full_join(self) -> Stream<Pane<K, Maybe<A, B>>>;
}

impl<K: Key, A: Data, B: Data> WindowJoinExt<K, A, B> for Stream<CoGroup<K, A, B>> {
    fn inner_join(self) -> Stream<Pane<K, (A, B)>> {
        self.flat_map(|(key, window, (first, second))| {
            pairs(first, second).map(move |pair| (key.clone(), window, pair))
        })
    }

    fn left_join(self) -> Stream<Pane<K, (A, Option<B>)>> {
        self.flat_map(|(key, window, (first, second))| {
            pairs(first, or_none(second)).map(move |pair| (key.clone(), window, pair))
        })
    }

    fn right_join(self) -> Stream<Pane<K, (Option<A>, B)>> {
        self.flat_map(|(key, window, (first, second))| {
            pairs(or_none(first), second).map(move |pair| (key.clone(), window, pair))
        })
    }

    fn full_join(self) -> Stream<Pane<K, Maybe<A, B>>> {
        self.flat_map(|(key, window, (first, second))| {
            pairs(or_none(first), or_none(second)).map(move |pair| (key.clone(), window, pair))
        })
    }
}

/// All of them, or one nothing.
fn or_none<T>(records: Vec<T>) -> Vec<Option<T>> {
    if records.is_empty() { vec![None] } else { records.into_iter().map(Some).collect() }
}

fn pairs<A: Clone, B: Clone>(first: Vec<A>, second: Vec<B>) -> impl Iterator<Item = (A, B)> {
    first.into_iter().flat_map(move |a| {
        let second = second.clone();
        second.into_iter().map(move |b| (a.clone(), b))
    })
}
