//! The first few by a measure.
//!
//! **State**: at most as many records as are asked for, with their times and positions.

use std::cmp::Ordering;

use millstream_state::snapshot::Value;

use super::held::insert;
use super::{Aggregate, Comparable, Held, Origin};

/// The records with the greatest measure, the greatest first, at most so many. Of those with the same measure the one that happened first
/// is before the others; then position decides, then bytes. For the least take [`Reverse`](std::cmp::Reverse); see [`Comparable`] for floats.
///
/// ```no_run
/// use millstream_operators::aggregate::Top;
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Bid { price: f64 }
/// let highest = Top::of(10, |bid: &Bid| bid.price); // Vec<Bid>
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Bid, _>(highest);
/// ```
#[derive(Clone, Copy)]
pub struct Top<F> {
    most: usize,
    by: F,
}

impl<F> Top<F> {
    /// The `most` records for which `by` is greatest.
    ///
    /// # Panics
    /// When `most` is zero.
    pub fn of<V, M>(most: usize, by: F) -> Self
    where
        F: Fn(&V) -> M,
    {
        assert!(most > 0, "the first 0 of anything are none");
        Top { most, by }
    }
}

impl<F> Top<F> {
    fn compare<V: Value, M: Comparable>(&self, a: &Held<V>, b: &Held<V>) -> Ordering
    where
        F: Fn(&V) -> M,
    {
        (self.by)(&b.value).compare(&(self.by)(&a.value)).then_with(|| a.compare(b))
    }

    fn offer<V: Value, M: Comparable>(&self, acc: &mut Vec<Held<V>>, origin: &Origin, value: &V)
    where
        F: Fn(&V) -> M,
    {
        if let Some(last) = acc.last().filter(|_| acc.len() == self.most)
            && (self.by)(value).compare(&(self.by)(&last.value)).is_lt()
        {
            return; // the usual case, without a copy
        }
        insert(acc, Held::new(origin, value.clone()), |a, b| self.compare(a, b));
        acc.truncate(self.most);
    }
}

impl<V: Value, M: Comparable, F: Fn(&V) -> M + Clone + Send + 'static> Aggregate<V> for Top<F> {
    /// The first of them, in order.
    type Acc = Vec<Held<V>>;
    type Out = Vec<V>;

    const NEEDS_POSITION: bool = true;

    fn describe(&self) -> String {
        format!("Top {}", self.most)
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

    fn finish(&self, acc: &Self::Acc) -> Vec<V> {
        acc.iter().map(|held| held.value.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;

    proptest! {
        #[test]
        fn the_greatest_come_first(values in prop::collection::vec((-5i8..5, any::<u8>()), 1..40), most in 1usize..12, seed in any::<u64>()) {
            let records = records(&values);
            let naive = |by: fn(&(i8, u8)) -> i8| {
                let mut all = values.clone();
                all.sort_by_key(by); // stable: what happened first stays before
                all.truncate(most);
                all
            };
            let greatest = naive(|(value, _)| -value);
            for result in any_order(&Top::of(most, |(value, _): &(i8, u8)| *value), &records, seed) {
                prop_assert_eq!(&result, &greatest);
            }
            let least = naive(|(value, _)| *value);
            for result in any_order(&Top::of(most, |(value, _): &(i8, u8)| Reverse(*value)), &records, seed) {
                prop_assert_eq!(&result, &least);
            }
        }
    }

    #[test]
    #[should_panic(expected = "the first 0")]
    fn none_are_refused() {
        let _ = Top::of(0, |value: &u8| *value);
    }
}
