//! The least and the greatest value.
//!
//! **State**: numbers, times and the like are kept bare, starting from the neutral end of their range, so a
//! `Max` of an `i64` is 8 bytes; other types are kept as an `Option`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cmp::{Ordering, Reverse};

use super::{Aggregate, EventTime, Origin};
use millstream_runtime::time::EventSpan;

/// Values that [`Min`] and [`Max`] can compare: integers, floats, `bool`, `char`, `String`, [`EventTime`], event spans,
/// and tuples, `Option`s, `Vec`s and `Reverse`s of these.
///
/// `compare` must be a total order in which two values that compare equal are the same value; otherwise the result
/// depends on which of them came first.
///
/// A type of your own joins with two lines:
///
/// ```no_run
/// use std::cmp::Ordering;
/// use millstream_operators::aggregate::Comparable;
/// # use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
/// enum Grade { Poor, Fair, Good }
///
/// impl Comparable for Grade {
///     type Slot = Option<Self>;
///     fn compare(&self, other: &Self) -> Ordering {
///         self.cmp(other)
///     }
/// }
/// ```
///
/// **Floats**: negative zero is less than positive zero. NaN is greater than everything, infinity included: `Max` is
/// NaN if any value is, `Min` only if all are. (NaNs differ in sign and payload; among themselves they are ordered as
/// `total_cmp` has it, so the result is the same bits in any order.)
pub trait Comparable: Clone + Send + 'static {
    /// How an accumulator keeps a value or none: `Option<Self>`, or [`Bare`] for types with a least and a greatest
    /// value.
    type Slot: Slot<Self>;

    /// The order.
    fn compare(&self, other: &Self) -> Ordering;
}

/// Room for a value in an accumulator.
pub trait Slot<T>: Clone + Send + Serialize + DeserializeOwned + 'static {
    /// Empty, giving way to any value when looking for the least.
    fn for_min() -> Self;

    /// Empty, giving way to any value when looking for the greatest.
    fn for_max() -> Self;

    /// The value; of an empty slot nothing, or a value at the far end of the order.
    fn get(&self) -> Option<&T>;

    /// Replaces the value.
    fn set(&mut self, value: T);
}

impl<T: Clone + Send + Serialize + DeserializeOwned + 'static> Slot<T> for Option<T> {
    #[inline]
    fn for_min() -> Self {
        None
    }

    #[inline]
    fn for_max() -> Self {
        None
    }

    #[inline]
    fn get(&self) -> Option<&T> {
        self.as_ref()
    }

    #[inline]
    fn set(&mut self, value: T) {
        *self = Some(value);
    }
}

/// A slot that is as small as the value: when empty it holds the value that loses against all others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bare<T>(T);

macro_rules! bare {
    ($($type:ty: $least:expr, $greatest:expr, $compare:expr;)*) => {$(
        impl Slot<$type> for Bare<$type> {
            #[inline]
            fn for_min() -> Self {
                Bare($greatest)
            }

            #[inline]
            fn for_max() -> Self {
                Bare($least)
            }

            #[inline]
            fn get(&self) -> Option<&$type> {
                Some(&self.0)
            }

            #[inline]
            fn set(&mut self, value: $type) {
                self.0 = value;
            }
        }

        impl Comparable for $type {
            type Slot = Bare<$type>;

            #[inline]
            fn compare(&self, other: &Self) -> Ordering {
                $compare(self, other)
            }
        }
    )*};
}

macro_rules! bare_integers {
    ($($int:ty)*) => { bare! { $($int: <$int>::MIN, <$int>::MAX, Ord::cmp;)* } };
}

bare_integers!(i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize);

bare! {
    bool: false, true, Ord::cmp;
    char: '\0', char::MAX, Ord::cmp;
    EventTime: EventTime::MIN, EventTime::MAX, Ord::cmp;
    EventSpan: EventSpan::ZERO, EventSpan::micros(i64::MAX), Ord::cmp;
    f32: f32::NEG_INFINITY, f32::from_bits(0x7FFF_FFFF), compare_f32;
    f64: f64::NEG_INFINITY, f64::from_bits(0x7FFF_FFFF_FFFF_FFFF), compare_f64;
}

#[inline]
fn compare_f32(a: &f32, b: &f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, true) => Ordering::Less,
        (true, false) => Ordering::Greater,
        _ => a.total_cmp(b),
    }
}

#[inline]
fn compare_f64(a: &f64, b: &f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, true) => Ordering::Less,
        (true, false) => Ordering::Greater,
        _ => a.total_cmp(b),
    }
}

impl Comparable for String {
    type Slot = Option<String>;

    fn compare(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }
}

/// `None` is less than any value.
impl<T: Comparable + Serialize + DeserializeOwned> Comparable for Option<T> {
    type Slot = Option<Option<T>>;

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Some(a), Some(b)) => a.compare(b),
            _ => self.is_some().cmp(&other.is_some()),
        }
    }
}

/// Element by element; a beginning is less than the whole.
impl<T: Comparable + Serialize + DeserializeOwned> Comparable for Vec<T> {
    type Slot = Option<Vec<T>>;

    fn compare(&self, other: &Self) -> Ordering {
        let differ = self.iter().zip(other).map(|(a, b)| a.compare(b)).find(|order| order.is_ne());
        differ.unwrap_or_else(|| self.len().cmp(&other.len()))
    }
}

impl<T: Comparable + Serialize + DeserializeOwned> Comparable for Reverse<T> {
    type Slot = Option<Reverse<T>>;

    fn compare(&self, other: &Self) -> Ordering {
        other.0.compare(&self.0)
    }
}

macro_rules! tuples {
    ($(($($T:ident $i:tt)*))*) => {$(
        /// Field by field: later fields decide between equal earlier ones.
        impl<$($T: Comparable + Serialize + DeserializeOwned),*> Comparable for ($($T,)*) {
            type Slot = Option<Self>;

            fn compare(&self, other: &Self) -> Ordering {
                Ordering::Equal$(.then_with(|| self.$i.compare(&other.$i)))*
            }
        }
    )*};
}
tuples!((A 0 B 1)(A 0 B 1 C 2)(A 0 B 1 C 2 D 3));

/// The least value that a closure takes from the records; see [`Comparable`] for the order of floats.
///
/// ```no_run
/// use millstream_operators::aggregate::Min;
/// # struct Departure { delay: i64, tail: String }
/// let delay = Min::of(|d: &Departure| d.delay);
/// let delay_and_plane = Min::of(|d: &Departure| (d.delay, d.tail.clone()));
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Departure, _>((delay, delay_and_plane));
/// ```
#[derive(Clone, Copy)]
pub struct Min<F> {
    of: F,
}

/// The greatest value that a closure takes from the records; see [`Comparable`] for the order of floats.
#[derive(Clone, Copy)]
pub struct Max<F> {
    of: F,
}

impl<F> Min<F> {
    /// The least of what `of` takes from each record.
    pub fn of<V, T: Comparable>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        Min { of }
    }
}

impl<F> Max<F> {
    /// The greatest of what `of` takes from each record.
    pub fn of<V, T: Comparable>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        Max { of }
    }
}

/// Puts `value` into the slot if it is empty or holds one that compares as `loser` to `value`.
#[inline]
fn offer<T: Comparable>(slot: &mut T::Slot, value: T, loser: Ordering) {
    if slot.get().is_none_or(|held| held.compare(&value) == loser) {
        slot.set(value);
    }
}

#[inline]
fn merge<T: Comparable>(into: &mut T::Slot, from: &T::Slot, loser: Ordering) {
    if let Some(value) = from.get()
        && into.get().is_none_or(|held| held.compare(value) == loser)
    {
        into.set(value.clone());
    }
}

fn taken<T: Comparable>(slot: &T::Slot) -> T {
    slot.get().expect("a least or greatest value was asked of no records").clone()
}

impl<V, T, F> Aggregate<V> for Min<F>
where
    T: Comparable,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = T::Slot;
    type Out = T;

    #[inline]
    fn create(&self) -> T::Slot {
        T::Slot::for_min()
    }

    #[inline]
    fn add(&self, acc: &mut T::Slot, value: &V, _: &Origin) {
        offer(acc, (self.of)(value), Ordering::Greater);
    }

    #[inline]
    fn merge(&self, into: &mut T::Slot, from: &T::Slot) {
        merge::<T>(into, from, Ordering::Greater);
    }

    #[inline]
    fn finish(&self, acc: &T::Slot) -> T {
        taken(acc)
    }
}

impl<V, T, F> Aggregate<V> for Max<F>
where
    T: Comparable,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = T::Slot;
    type Out = T;

    #[inline]
    fn create(&self) -> T::Slot {
        T::Slot::for_max()
    }

    #[inline]
    fn add(&self, acc: &mut T::Slot, value: &V, _: &Origin) {
        offer(acc, (self.of)(value), Ordering::Less);
    }

    #[inline]
    fn merge(&self, into: &mut T::Slot, from: &T::Slot) {
        merge::<T>(into, from, Ordering::Less);
    }

    #[inline]
    fn finish(&self, acc: &T::Slot) -> T {
        taken(acc)
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers(
            values in prop::collection::vec(prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX)], 1..40),
            seed: u64,
        ) {
            let both = (Min::of(|v: &i64| *v), Max::of(|v: &i64| *v));
            let expected = (*values.iter().min().expect("not empty"), *values.iter().max().expect("not empty"));
            for result in any_order(&both, &records(&values), seed) {
                prop_assert_eq!(result, expected);
            }
        }

        #[test]
        fn strings_and_tuples(values in prop::collection::vec(("[ab]{0,3}", any::<bool>()), 1..40), seed: u64) {
            let by_pair = |v: &(String, bool)| v.clone();
            let by_text = |v: &(String, bool)| Reverse(v.0.clone());
            let expected = (
                values.iter().min().expect("not empty").clone(),
                values.iter().map(|v| Reverse(v.0.clone())).max().expect("not empty"),
            );
            for result in any_order(&(Min::of(by_pair), Max::of(by_text)), &records(&values), seed) {
                prop_assert_eq!(&result, &expected);
            }
        }

        #[test]
        fn floats_of_any_bits(
            values in prop::collection::vec(
                prop_oneof![any::<u64>(), Just(0), Just(1 << 63), Just(u64::MAX), Just(i64::MAX as u64)],
                1..40,
            ),
            seed: u64,
        ) {
            // The oracle sorts: numbers below NaNs, each as `total_cmp` orders them.
            let mut sorted: Vec<f64> = values.iter().map(|bits| f64::from_bits(*bits)).collect();
            sorted.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
            let (least, greatest) = (sorted[0], sorted[sorted.len() - 1]);
            let of = |bits: &u64| f64::from_bits(*bits);
            for (min, max) in any_order(&(Min::of(of), Max::of(of)), &records(&values), seed) {
                prop_assert_eq!((min.to_bits(), max.to_bits()), (least.to_bits(), greatest.to_bits()));
            }
        }
    }

    #[test]
    fn nan_is_above_infinity_whatever_its_sign() {
        for nan in [f64::NAN, -f64::NAN] {
            let values = records(&[1.0, nan, f64::INFINITY]);
            assert!(any_order(&Max::of(|v: &f64| *v), &values, 1).iter().all(|max| max.is_nan()));
            assert!(any_order(&Min::of(|v: &f64| *v), &values, 1).iter().all(|min| *min == 1.0));
            assert!(any_order(&Min::of(|v: &f64| *v as f32), &records(&[nan, nan]), 1).iter().all(|min| min.is_nan()));
        }
    }

    #[test]
    fn ends_of_a_range_are_values_like_others() {
        for value in [i64::MIN, i64::MAX] {
            let both = (Min::of(|v: &i64| *v), Max::of(|v: &i64| *v));
            assert!(any_order(&both, &records(&[value]), 0).iter().all(|result| *result == (value, value)));
        }
    }

    #[test]
    fn accumulators_are_small() {
        assert_eq!(size_of::<<i64 as Comparable>::Slot>(), 8);
        assert_eq!(size_of::<<f64 as Comparable>::Slot>(), 8);
        assert_eq!(size_of::<<EventTime as Comparable>::Slot>(), 8);
        assert_eq!(size_of::<<String as Comparable>::Slot>(), 24);
    }

    #[test]
    #[should_panic(expected = "asked of no records")]
    fn when_no_records_then_panic() {
        any_order(&Max::of(|v: &String| v.clone()), &[], 0);
    }
}
