//! The first and the last value by event time.
//!
//! **Time**: event time. Records of the same event time are ordered by position, `(split, record)`; records without a
//! position of their own (results of windows, several outputs of one input) by the bytes in which their values are
//! stored. So the result never depends on which record arrived first.
//!
//! **State**: one value with its time and position: 40 bytes for an `i64`.

use std::cmp::Ordering;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Aggregate, EventTime, Origin, bytes_of};

/// The value of the record with the least event time; ties go to the least `(split, record)`, then to the least bytes.
///
/// ```no_run
/// use millstream_operators::aggregate::{First, Last};
/// # struct Trade { price: f64 }
/// let open_and_close = (First::of(|t: &Trade| t.price), Last::of(|t: &Trade| t.price));
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Trade, _>(open_and_close);
/// ```
#[derive(Clone, Copy)]
pub struct First<F> {
    of: F,
}

/// The value of the record with the greatest event time; ties go to the greatest `(split, record)`, then to the
/// greatest bytes.
#[derive(Clone, Copy)]
pub struct Last<F> {
    of: F,
}

impl<F> First<F> {
    /// What `of` takes from the first record.
    pub fn of<V, T>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        First { of }
    }
}

impl<F> Last<F> {
    /// What `of` takes from the last record.
    pub fn of<V, T>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        Last { of }
    }
}

/// What aggregates keep of a record: a value, and when and where it came from. (Checkpoints from before there were schemas know it by this module's
/// path.)
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held<T> {
    at: EventTime,
    record: u64,
    split: u32,
    pub(super) value: T,
}

impl<T> Held<T> {
    pub(super) fn new(origin: &Origin, value: T) -> Self {
        let Origin { at, split, record } = *origin;
        Held { at, record, split, value }
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { at: self.at, split: self.split, record: self.record }
    }

    /// Whether it comes before or after the place of another, as far as time and position tell.
    pub(super) fn place_of(&self, origin: &Origin) -> Ordering {
        (self.at, self.split, self.record).cmp(&(origin.at, origin.split, origin.record))
    }
}

impl<T: Serialize> Held<T> {
    /// The order of two held values, complete up to values with the same bytes.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        self.place_of(&other.origin()).then_with(|| bytes_of(&self.value).cmp(&bytes_of(&other.value)))
    }
}

/// Puts a value to others where `compare` says; they are in that order. Most come last.
pub(super) fn insert<T>(all: &mut Vec<Held<T>>, held: Held<T>, compare: impl Fn(&Held<T>, &Held<T>) -> Ordering) {
    let place = match all.last() {
        Some(last) if compare(last, &held).is_gt() => all.partition_point(|own| compare(own, &held).is_le()),
        _ => all.len(),
    };
    all.insert(place, held);
}

/// Takes the value of one record if it wins over the one held: comes before it (`Less`) or after it (`Greater`).
#[inline]
fn offer<T: Serialize>(acc: &mut Option<Held<T>>, origin: &Origin, value: impl FnOnce() -> T, wins: Ordering) {
    if acc.as_ref().is_some_and(|held| held.place_of(origin) == wins) {
        return; // the usual case, without looking at the value
    }
    let offered = Held::new(origin, value());
    if acc.as_ref().is_none_or(|held| offered.compare(held) == wins) {
        *acc = Some(offered);
    }
}

fn merge<T: Clone + Serialize>(into: &mut Option<Held<T>>, from: &Option<Held<T>>, wins: Ordering) {
    if let Some(offered) = from
        && into.as_ref().is_none_or(|held| offered.compare(held) == wins)
    {
        *into = Some(offered.clone());
    }
}

fn taken<T: Clone>(acc: &Option<Held<T>>) -> T {
    acc.as_ref().expect("a first or last value was asked of no records").value.clone()
}

impl<V, T, F> Aggregate<V> for First<F>
where
    T: Clone + Send + Serialize + DeserializeOwned + 'static,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = Option<Held<T>>;
    type Out = T;

    const NEEDS_POSITION: bool = true;

    #[inline]
    fn create(&self) -> Self::Acc {
        None
    }

    #[inline]
    fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin) {
        offer(acc, origin, || (self.of)(value), Ordering::Less);
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        merge(into, from, Ordering::Less);
    }

    fn finish(&self, acc: &Self::Acc) -> T {
        taken(acc)
    }
}

impl<V, T, F> Aggregate<V> for Last<F>
where
    T: Clone + Send + Serialize + DeserializeOwned + 'static,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = Option<Held<T>>;
    type Out = T;

    const NEEDS_POSITION: bool = true;

    #[inline]
    fn create(&self) -> Self::Acc {
        None
    }

    #[inline]
    fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin) {
        offer(acc, origin, || (self.of)(value), Ordering::Greater);
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        merge(into, from, Ordering::Greater);
    }

    fn finish(&self, acc: &Self::Acc) -> T {
        taken(acc)
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::any_order;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ties_are_broken_by_position_and_then_by_bytes(
            places in prop::collection::vec((-2i64..2, 0u32..2, 0u64..2, "[a-c]{0,3}"), 1..40),
            seed: u64,
        ) {
            let records: Vec<(String, Origin)> = places
                .iter()
                .map(|(at, split, record, text)| {
                    (text.clone(), Origin { at: EventTime::from_secs(*at), split: *split, record: *record })
                })
                .collect();
            // The oracle sorts; strings are stored as length and text, so that is how their bytes compare.
            let mut sorted = places.clone();
            sorted.sort_by_key(|(at, split, record, text)| (*at, *split, *record, text.len(), text.clone()));
            let expected = (sorted[0].3.clone(), sorted[sorted.len() - 1].3.clone());
            let both = (First::of(|v: &String| v.clone()), Last::of(|v: &String| v.clone()));
            for result in any_order(&both, &records, seed) {
                prop_assert_eq!(&result, &expected);
            }
        }
    }

    #[test]
    fn the_closure_runs_only_for_records_that_may_win() {
        let last = Last::of(|v: &Option<u8>| v.expect("not looked at"));
        let origin = |secs| Origin { at: EventTime::from_secs(secs), split: 0, record: 0 };
        let mut acc = last.create();
        last.add(&mut acc, &Some(1), &origin(2));
        last.add(&mut acc, &None, &origin(1));
        assert_eq!(last.finish(&acc), 1);
    }

    #[test]
    fn accumulators_are_small() {
        assert_eq!(size_of::<Option<Held<i64>>>(), 40);
    }
}
