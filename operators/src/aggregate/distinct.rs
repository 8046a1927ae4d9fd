//! The exact number of distinct values.
//!
//! **State**: every distinct value, once, in an ordered set, so that equal sets have equal bytes. It grows
//! with its input; over unbounded values use it on short windows.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Aggregate, Origin};

/// Counts the distinct values that a closure takes from the records. Exact; keeps each distinct value.
///
/// Floats have no `Ord`; take their bits (`to_bits`), and decide first whether 0.0 and -0.0 are the same.
///
/// ```no_run
/// use millstream_operators::aggregate::DistinctCount;
/// # struct Visit { user: u64 }
/// let users = DistinctCount::of(|visit: &Visit| visit.user); // u64
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Visit, _>(users);
/// ```
#[derive(Clone, Copy)]
pub struct DistinctCount<F> {
    of: F,
}

impl<F> DistinctCount<F> {
    /// Counts the distinct values of `of`.
    pub fn of<V, T: Ord>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        DistinctCount { of }
    }
}

impl<V, T, F> Aggregate<V> for DistinctCount<F>
where
    T: Ord + Clone + Send + Serialize + DeserializeOwned + 'static,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = BTreeSet<T>;
    type Out = u64;

    fn create(&self) -> BTreeSet<T> {
        BTreeSet::new()
    }

    fn add(&self, acc: &mut BTreeSet<T>, value: &V, _: &Origin) {
        acc.insert((self.of)(value));
    }

    fn merge(&self, into: &mut BTreeSet<T>, from: &BTreeSet<T>) {
        for value in from {
            if !into.contains(value) {
                into.insert(value.clone());
            }
        }
    }

    fn finish(&self, acc: &BTreeSet<T>) -> u64 {
        acc.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_values_once(values in prop::collection::vec("[a-c]{0,2}", 0..50), seed: u64) {
            let mut sorted = values.clone();
            sorted.sort();
            sorted.dedup();
            for count in any_order(&DistinctCount::of(|v: &String| v.clone()), &records(&values), seed) {
                prop_assert_eq!(count, sorted.len() as u64);
            }
        }
    }
}
