//! The mean, rounded once.
//!
//! **State**: the count and the exact total: 24 bytes for integers, 32 for floats (see
//! [`ExactSum`](super::ExactSum) for wider ones).

use serde::{Deserialize, Serialize};

use super::number::{ExactTotal, Number};
use super::{Aggregate, Origin};

/// The arithmetic mean of a number per record: the `f64` nearest to the exact total divided by the count.
///
/// The total itself cannot overflow: the mean of `f64::MAX` and `f64::MAX` is `f64::MAX`. Infinities and NaN act as in
/// [`ExactSum`](super::ExactSum); the mean of no records is NaN.
///
/// ```no_run
/// use millstream_operators::aggregate::Mean;
/// # struct Departure { delay: i64 }
/// let delay = Mean::of(|d: &Departure| d.delay); // f64
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Departure, _>(delay);
/// ```
#[derive(Clone, Copy)]
pub struct Mean<F> {
    of: F,
}

impl<F> Mean<F> {
    /// Averages what `of` takes from each record.
    pub fn of<V, T: Number>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        Mean { of }
    }
}

/// What [`Mean`] keeps: a count and a total.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MeanAcc<S> {
    count: u64,
    sum: S,
}

impl<V, T, F> Aggregate<V> for Mean<F>
where
    T: Number,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = MeanAcc<T::Sum>;
    type Out = f64;

    #[inline]
    fn create(&self) -> Self::Acc {
        MeanAcc::default()
    }

    #[inline]
    fn add(&self, acc: &mut Self::Acc, value: &V, _: &Origin) {
        acc.count += 1;
        (self.of)(value).add_to(&mut acc.sum);
    }

    #[inline]
    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        into.count += from.count;
        into.sum.merge(&from.sum);
    }

    fn finish(&self, acc: &Self::Acc) -> f64 {
        acc.sum.divided_by(acc.count)
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{Exact, any_order, floats, records};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn means_of_integers_are_the_nearest_double(
            values in prop::collection::vec(prop_oneof![any::<i64>(), -9i64..9], 1..50),
            seed: u64,
        ) {
            let expected = Exact::sum(values.iter().map(|v| Exact::int(*v))).over(values.len() as u64);
            for mean in any_order(&Mean::of(|v: &i64| *v), &records(&values), seed) {
                prop_assert!(expected.is(mean), "{:e}", mean);
            }
        }

        #[test]
        fn means_of_floats_are_the_nearest_double(values in floats(1..50), seed: u64) {
            let expected = Exact::sum(values.iter().map(|v| Exact::float(*v))).over(values.len() as u64);
            for mean in any_order(&Mean::of(|v: &f64| *v), &records(&values), seed) {
                prop_assert!(expected.is(mean), "{:e}", mean);
            }
        }
    }

    fn mean(values: &[f64]) -> f64 {
        let means = any_order(&Mean::of(|v: &f64| *v), &records(values), 3);
        assert!(means.iter().all(|mean| mean.to_bits() == means[0].to_bits()));
        means[0]
    }

    #[test]
    fn extremes() {
        assert_eq!(mean(&[f64::MAX; 3]), f64::MAX);
        assert_eq!(mean(&[5e-324, 5e-324, 0.0]), 5e-324); // two thirds of the last bit
        assert_eq!(mean(&[5e-324, 0.0]), 0.0); // half of it: to even
        assert_eq!(mean(&[-0.0]).to_bits(), 0);
        assert_eq!(mean(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(mean(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert!(mean(&[]).is_nan());
        assert!(any_order(&Mean::of(|v: &u8| *v), &[], 0)[0].is_nan());
        let means = any_order(&Mean::of(|v: &u64| *v), &records(&[u64::MAX; 9]), 0);
        assert_eq!(means[0], u64::MAX as f64);
    }

    #[test]
    fn accumulators_are_small() {
        assert_eq!(size_of::<MeanAcc<<i64 as Number>::Sum>>(), 24);
        assert_eq!(size_of::<MeanAcc<<f64 as Number>::Sum>>(), 32);
    }
}
