//! Evictors: only the newest records count.
//!
//! **State**: the records that count, with their times and positions: they are added up anew for each result.
//!
//! **Source**: Flink's `CountEvictor` and `TimeEvictor`, as aggregates, so that they work in every window and results do not depend on the order in
//! which records come.

use millstream_runtime::time::EventSpan;
use millstream_state::snapshot::Value;

use super::first_last::insert;
use super::{Aggregate, Held, Origin};

/// An aggregate of only the newest records of a window, by event time, then position, then bytes.
///
/// ```no_run
/// use millstream_operators::aggregate::{Mean, Newest};
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Reading { celsius: f64 }
/// let of_the_last_ten = Newest::count(10, Mean::of(|reading: &Reading| reading.celsius));
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Reading, _>(of_the_last_ten);
/// ```
#[derive(Clone, Copy)]
pub struct Newest<A> {
    keep: Keep,
    aggregate: A,
}

#[derive(Clone, Copy, Debug)]
enum Keep {
    Count(usize),
    Within(EventSpan),
}

impl<A> Newest<A> {
    /// `aggregate` of the newest `records` records.
    ///
    /// # Panics
    /// When `records` is zero.
    pub fn count(records: usize, aggregate: A) -> Self {
        assert!(records > 0, "no results can be made of the newest 0 records");
        Newest { keep: Keep::Count(records), aggregate }
    }

    /// `aggregate` of the records that happened less than `span` before the newest one, and that one.
    ///
    /// # Panics
    /// When `span` is zero.
    pub fn within(span: EventSpan, aggregate: A) -> Self {
        assert!(span > EventSpan::ZERO, "no record is newer than no time before the newest");
        Newest { keep: Keep::Within(span), aggregate }
    }

    fn offer<V: Value>(&self, acc: &mut Vec<Held<V>>, origin: &Origin, value: &V) {
        insert(acc, Held::new(origin, value.clone()), Held::compare);
        let from = match (self.keep, acc.last()) {
            (Keep::Count(most), _) => acc.len().saturating_sub(most),
            (Keep::Within(span), Some(newest)) => {
                let newest = newest.origin().at.micros();
                acc.partition_point(|held| newest.abs_diff(held.origin().at.micros()) >= span.as_micros() as u64)
            }
            (Keep::Within(_), None) => 0,
        };
        acc.drain(..from);
    }
}

impl<V: Value, A: Aggregate<V>> Aggregate<V> for Newest<A> {
    /// The records that count, in order.
    type Acc = Vec<Held<V>>;
    type Out = A::Out;

    const NEEDS_POSITION: bool = true;
    const DEPENDS_ON_ORDER: bool = A::DEPENDS_ON_ORDER;

    fn describe(&self) -> String {
        match self.keep {
            Keep::Count(most) => format!("{} of the newest {most}", self.aggregate.describe()),
            Keep::Within(span) => format!("{} of the newest within {span}", self.aggregate.describe()),
        }
    }

    fn create(&self) -> Self::Acc {
        Vec::new()
    }

    fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin) {
        self.offer(acc, origin, value);
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        from.iter().for_each(|held| self.offer(into, &held.origin(), &held.value));
    }

    fn finish(&self, acc: &Self::Acc) -> A::Out {
        let mut own = self.aggregate.create();
        acc.iter().for_each(|held| self.aggregate.add(&mut own, &held.value, &held.origin()));
        self.aggregate.finish(&own)
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::any_order;
    use super::super::{EventTime, List};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_the_newest_count(times in prop::collection::vec(-10i64..10, 1..40), most in 1usize..12, span in 1i64..15, seed in any::<u64>()) {
            let mut records: Vec<_> = (0u64..).zip(&times).map(|(record, at)| {
                let origin = Origin { at: EventTime::from_micros(*at), split: 0, record };
                ((*at, record), origin)
            }).collect();
            let count = Newest::count(most, List::of(|value: &(i64, u64)| *value));
            let within = Newest::within(EventSpan::micros(span), List::of(|value: &(i64, u64)| *value));
            let (counts, withins) = (any_order(&count, &records, seed), any_order(&within, &records, seed));
            records.sort_by_key(|(value, _)| *value);
            let all: Vec<(i64, u64)> = records.into_iter().map(|(value, _)| value).collect();
            let newest = all[all.len() - 1].0;
            for result in counts {
                prop_assert_eq!(&result[..], &all[all.len().saturating_sub(most)..]);
            }
            for result in withins {
                prop_assert!(result.iter().eq(all.iter().filter(|(at, _)| newest - at < span)));
            }
        }
    }
}
