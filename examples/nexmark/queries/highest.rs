//! An aggregate for "the most": all records that no other record exceeds.

use std::cmp::Ordering;

use millstream::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The records with the highest value of a closure: all of them when several have it, sorted.
///
/// **State**: the records that are highest so far.
#[derive(Clone)]
pub struct Highest<F> {
    by: F,
}

impl<F> Highest<F> {
    /// Those with the highest `by`.
    pub fn by<V>(by: F) -> Self
    where
        F: Fn(&V) -> u64,
    {
        Highest { by }
    }

    fn take<V: Clone>(&self, highest: &mut Vec<V>, value: &V)
    where
        F: Fn(&V) -> u64,
    {
        let order = highest.first().map_or(Ordering::Greater, |first| (self.by)(value).cmp(&(self.by)(first)));
        if order == Ordering::Greater {
            highest.clear();
        }
        if order != Ordering::Less {
            highest.push(value.clone());
        }
    }
}

impl<V, F> Aggregate<V> for Highest<F>
where
    V: Ord + Clone + Send + Serialize + DeserializeOwned + 'static,
    F: Fn(&V) -> u64 + Clone + Send + 'static,
{
    type Acc = Vec<V>;
    type Out = Vec<V>;

    fn create(&self) -> Vec<V> {
        Vec::new()
    }

    fn add(&self, acc: &mut Vec<V>, value: &V, _: &Origin) {
        self.take(acc, value);
    }

    fn merge(&self, into: &mut Vec<V>, from: &Vec<V>) {
        from.iter().for_each(|value| self.take(into, value));
    }

    /// Sorted, because the order in which they came is not part of the result.
    fn finish(&self, acc: &Vec<V>) -> Vec<V> {
        let mut highest = acc.clone();
        highest.sort_unstable();
        highest
    }
}
