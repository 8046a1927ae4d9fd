//! Sums: exact, wide, and fast.
//!
//! **State**: 8 bytes for integers, 16 for [`WideSum`], 8 for [`FastSum`]; floats keep an [`ExactSum`] of 24 bytes.

use super::exact::ExactSum;
use super::number::Wide;
use super::{Aggregate, Origin};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Values that [`Sum`] can add up.
///
/// | values | result | |
/// |---|---|---|
/// | `i8` to `i64`, `isize` | `i64` | checked |
/// | `u8` to `u64`, `usize` | `u64` | checked |
/// | `i128` | `i128` | checked |
/// | `f32`, `f64` | `f64` | exact, rounded once ([`ExactSum`]) |
///
/// A type of your own may implement it as well; its sums must not depend on the order of additions.
pub trait Summable: Send + 'static {
    /// What is kept while adding; its default is the sum of nothing.
    type Acc: Clone + Default + Send + Serialize + DeserializeOwned + 'static;
    /// The sum.
    type Total: Clone + Send + 'static;

    /// Adds the value.
    fn add_to(self, acc: &mut Self::Acc);

    /// Adds another accumulator.
    fn merge(into: &mut Self::Acc, from: &Self::Acc);

    /// Whether [`subtract`](Self::subtract) is there: whether it undoes [`merge`](Self::merge), bit by bit.
    const INVERTIBLE: bool = false;

    /// Subtracts another accumulator, which had been merged.
    fn subtract(from: &mut Self::Acc, part: &Self::Acc) {
        let _ = (from, part);
        unimplemented!("a sum that says it is invertible has to implement `subtract`");
    }

    /// The sum so far.
    fn total(acc: &Self::Acc) -> Self::Total;
}

macro_rules! integers {
    ($wide:ty, $acc:ty: $($int:ty)*) => {$(
        impl Summable for $int {
            type Acc = $acc;
            type Total = $wide;

            #[inline]
            fn add_to(self, acc: &mut $acc) {
                *acc = acc.checked_add(self as $wide).unwrap_or_else(|| overflow(stringify!($wide)));
            }

            #[inline]
            fn merge(into: &mut $acc, from: &$acc) {
                *into = into.checked_add(*from).unwrap_or_else(|| overflow(stringify!($wide)));
            }

            const INVERTIBLE: bool = true;

            #[inline]
            fn subtract(from: &mut $acc, part: &$acc) {
                *from = from.checked_sub(*part).unwrap_or_else(|| overflow(stringify!($wide)));
            }

            #[inline]
            fn total(acc: &$acc) -> $wide {
                *acc
            }
        }
    )*};
}
integers!(i64, i64: i8 i16 i32 i64 isize);
integers!(u64, u64: u8 u16 u32 u64 usize);

#[cold]
fn overflow(kind: &str) -> ! {
    panic!("a sum leaves the range of {kind}; `Sum::wide_of` adds in i128");
}

impl Summable for i128 {
    type Acc = Wide;
    type Total = i128;

    #[inline]
    fn add_to(self, acc: &mut Wide) {
        acc.add(self);
    }

    #[inline]
    fn merge(into: &mut Wide, from: &Wide) {
        into.add(from.get());
    }

    #[inline]
    fn total(acc: &Wide) -> i128 {
        acc.get()
    }
}

macro_rules! floats {
    ($($float:ty)*) => {$(
        impl Summable for $float {
            type Acc = ExactSum;
            type Total = f64;

            #[inline]
            fn add_to(self, acc: &mut ExactSum) {
                acc.add(self.into());
            }

            #[inline]
            fn merge(into: &mut ExactSum, from: &ExactSum) {
                into.merge(from);
            }

            #[inline]
            fn total(acc: &ExactSum) -> f64 {
                acc.value()
            }
        }
    )*};
}
floats!(f32 f64);

/// The sum of a number per record.
///
/// Integers add up in `i64`, or `u64` if unsigned. **A sum that leaves that range panics**, which fails the job with
/// the operator and the key in the error; it never wraps around. Sums that pass the limit on the way to a result
/// within it may panic too, depending on the order of records. Where that can happen, use [`Sum::wide_of`].
///
/// Floats are added exactly and rounded once, so the result is the same bits in any order and on any number of
/// workers; see [`ExactSum`] for zeros, infinities and NaN, and [`FastSum`] for plain addition.
///
/// ```no_run
/// use millstream_operators::aggregate::Sum;
/// # struct Order { cents: u32, weight: f64 }
/// let spent = Sum::of(|order: &Order| order.cents); // u64
/// let carried = Sum::of(|order: &Order| order.weight); // f64
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Order, _>((spent, carried));
/// ```
#[derive(Clone, Copy)]
pub struct Sum<F> {
    of: F,
}

impl<F> Sum<F> {
    /// Adds up what `of` takes from each record.
    pub fn of<V, T: Summable>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        Sum { of }
    }

    /// Adds up integers in 128 bits: for sums that an `i64` or `u64` may not hold.
    ///
    /// No number of records with 64-bit values can overflow; values of `i128` can, and then it panics.
    pub fn wide_of<V, T: Into<i128>>(of: F) -> WideSum<F>
    where
        F: Fn(&V) -> T,
    {
        WideSum { of }
    }
}

impl<V, T, F> Aggregate<V> for Sum<F>
where
    T: Summable,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = T::Acc;
    type Out = T::Total;

    #[inline]
    fn create(&self) -> T::Acc {
        T::Acc::default()
    }

    #[inline]
    fn add(&self, acc: &mut T::Acc, value: &V, _: &Origin) {
        (self.of)(value).add_to(acc);
    }

    #[inline]
    fn merge(&self, into: &mut T::Acc, from: &T::Acc) {
        T::merge(into, from);
    }

    const INVERTIBLE: bool = T::INVERTIBLE;

    #[inline]
    fn subtract(&self, from: &mut T::Acc, part: &T::Acc) {
        T::subtract(from, part);
    }

    #[inline]
    fn finish(&self, acc: &T::Acc) -> T::Total {
        T::total(acc)
    }
}

/// The sum of an integer per record in 128 bits; made by [`Sum::wide_of`].
#[derive(Clone, Copy)]
pub struct WideSum<F> {
    of: F,
}

impl<V, T, F> Aggregate<V> for WideSum<F>
where
    T: Into<i128>,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = Wide;
    type Out = i128;

    #[inline]
    fn create(&self) -> Wide {
        Wide::default()
    }

    #[inline]
    fn add(&self, acc: &mut Wide, value: &V, _: &Origin) {
        acc.add((self.of)(value).into());
    }

    #[inline]
    fn merge(&self, into: &mut Wide, from: &Wide) {
        into.add(from.get());
    }

    #[inline]
    fn finish(&self, acc: &Wide) -> i128 {
        acc.get()
    }
}

/// The sum of a float per record by plain addition.
///
/// Smaller and faster than [`Sum`], but **the last bits of the result depend on the order of records**, and so on the
/// number of workers and on the run. Cancellation can make the difference as large as the result. Leave it out of
/// anything that is compared between runs.
#[derive(Clone, Copy)]
pub struct FastSum<F> {
    of: F,
}

impl<F> FastSum<F> {
    /// Adds up what `of` takes from each record: an `f64`, or anything that becomes one without loss.
    pub fn of<V, T: Into<f64>>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        FastSum { of }
    }
}

impl<V, T, F> Aggregate<V> for FastSum<F>
where
    T: Into<f64>,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = f64;
    type Out = f64;

    const DEPENDS_ON_ORDER: bool = true;

    #[inline]
    fn create(&self) -> f64 {
        0.0
    }

    #[inline]
    fn add(&self, acc: &mut f64, value: &V, _: &Origin) {
        *acc += (self.of)(value).into();
    }

    #[inline]
    fn merge(&self, into: &mut f64, from: &f64) {
        *into += from;
    }

    #[inline]
    fn finish(&self, acc: &f64) -> f64 {
        *acc
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, floats, records, rounded_sum};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_add_up(values in prop::collection::vec(any::<i32>(), 0..50), seed: u64) {
            let expected: i64 = values.iter().map(|v| i64::from(*v)).sum();
            for sum in any_order(&Sum::of(|v: &i32| *v), &records(&values), seed) {
                prop_assert_eq!(sum, expected);
            }
        }

        #[test]
        fn unsigned_integers_add_up(values in prop::collection::vec(any::<u32>(), 0..50), seed: u64) {
            let expected: u64 = values.iter().map(|v| u64::from(*v)).sum();
            for sum in any_order(&Sum::of(|v: &u32| *v as usize), &records(&values), seed) {
                prop_assert_eq!(sum, expected);
            }
        }

        #[test]
        fn wide_sums_pass_64_bits(values in prop::collection::vec(any::<i64>(), 0..50), seed: u64) {
            let expected: i128 = values.iter().map(|v| i128::from(*v)).sum();
            for sum in any_order(&Sum::wide_of(|v: &i64| *v), &records(&values), seed) {
                prop_assert_eq!(sum, expected);
            }
            for sum in any_order(&Sum::of(|v: &i64| i128::from(*v)), &records(&values), seed) {
                prop_assert_eq!(sum, expected);
            }
        }

        #[test]
        fn floats_are_rounded_once(values in floats(0..50), seed: u64) {
            let expected = rounded_sum(&values);
            for sum in any_order(&Sum::of(|v: &f64| *v), &records(&values), seed) {
                prop_assert!(expected.is(sum), "{:e}", sum);
            }
        }

        #[test]
        fn fast_sums_of_small_integers_are_exact(values in prop::collection::vec(any::<i16>(), 0..50), seed: u64) {
            let expected: i64 = values.iter().map(|v| i64::from(*v)).sum();
            for sum in any_order(&FastSum::of(|v: &i16| *v), &records(&values), seed) {
                prop_assert_eq!(sum, expected as f64);
            }
        }
    }

    #[test]
    fn narrow_floats_are_not_rounded_on_the_way() {
        let values = [16_777_216.0f32, 1.0, 1.0, 0.1];
        for sum in any_order(&Sum::of(|v: &f32| *v), &records(&values), 7) {
            assert_eq!(sum, 16_777_218.0 + f64::from(0.1f32));
        }
    }

    #[test]
    #[should_panic(expected = "a sum leaves the range of i64; `Sum::wide_of` adds in i128")]
    fn when_add_overflows_then_panic() {
        any_order(&Sum::of(|v: &i64| *v), &records(&[i64::MAX, 1]), 0);
    }

    #[test]
    #[should_panic(expected = "a sum leaves the range of u64")]
    fn when_merge_overflows_then_panic() {
        let sum = Sum::of(|v: &u64| *v);
        let mut acc = u64::MAX;
        Aggregate::<u64>::merge(&sum, &mut acc, &1);
    }

    #[test]
    #[should_panic(expected = "a sum leaves the range of i128")]
    fn when_wide_overflows_then_panic() {
        any_order(&Sum::wide_of(|v: &i128| *v), &records(&[i128::MIN, -1]), 0);
    }

    #[test]
    fn accumulators_are_small() {
        fn size<V, A: Aggregate<V>>(_: &A) -> usize {
            size_of::<A::Acc>()
        }
        assert_eq!(size(&Sum::of(|v: &i8| *v)), 8);
        assert_eq!(size(&Sum::of(|v: &u64| *v)), 8);
        assert_eq!(size(&Sum::wide_of(|v: &u64| *v)), 16);
        assert_eq!(size(&Sum::of(|v: &f64| *v)), 24);
        assert_eq!(size(&FastSum::of(|v: &f64| *v)), 8);
    }
}
