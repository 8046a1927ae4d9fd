//! Variance and standard deviation, exact until one rounding at the end.
//!
//! The accumulator keeps the count `n`, the exact sum `s` and the exact sum of squares `q`. The textbook formula
//! `(n q - s^2) / n^2` loses everything to cancellation when computed in floats; here numerator and denominator are
//! exact numbers of as many bits as they need, and only their quotient is rounded. So the variance is the `f64`
//! nearest to the true one, whatever the mean, and cannot depend on order. The price is paid per result (about a
//! microsecond), not per record.
//!
//! **State**: 48 bytes for integers, 80 for floats; floats that spread over more than 2^25 or so need the wider form of
//! [`ExactSum`](super::ExactSum) for their squares.
//!
//! **Source**: the usual streaming formulas (Welford 1962; Chan, Golub and LeVeque 1979 for merging) round at every
//! record and so depend on order; they are not used.

use serde::{Deserialize, Serialize};

use super::number::{ExactTotal, Number};
use super::{Aggregate, Origin};

/// The variance of a number per record: of the whole population, or with [`Variance::sample`] as estimated from a
/// sample.
///
/// The result is the `f64` nearest to the exact variance, never negative. It is NaN if any value is infinite or NaN,
/// for no records, and in the sample form for one record.
///
/// ```no_run
/// use millstream_operators::aggregate::Variance;
/// # struct Reading { volts: f64 }
/// let spread = Variance::of(|r: &Reading| r.volts).sample();
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Reading, _>(spread);
/// ```
#[derive(Clone, Copy)]
pub struct Variance<F> {
    of: F,
    sample: bool,
}

impl<F> Variance<F> {
    /// The variance of what `of` takes from each record: the mean square distance from the mean.
    pub fn of<V, T: Number>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        Variance { of, sample: false }
    }

    /// Divides by one less than the count (Bessel's correction).
    pub fn sample(mut self) -> Self {
        self.sample = true;
        self
    }
}

/// The standard deviation of a number per record: the square root of the rounded [`Variance`].
#[derive(Clone, Copy)]
pub struct StdDev<F> {
    variance: Variance<F>,
}

impl<F> StdDev<F> {
    /// The standard deviation of what `of` takes from each record.
    pub fn of<V, T: Number>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        StdDev { variance: Variance::of(of) }
    }

    /// Divides by one less than the count (Bessel's correction).
    pub fn sample(self) -> Self {
        StdDev { variance: self.variance.sample() }
    }
}

/// What [`Variance`] and [`StdDev`] keep: a count, a total of values and a total of squares.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VarianceAcc<S, Q> {
    count: u64,
    sum: S,
    squares: Q,
}

impl<S: ExactTotal, Q: ExactTotal> VarianceAcc<S, Q> {
    fn variance(&self, sample: bool) -> f64 {
        let n = self.count;
        let divisor = if sample { n.saturating_sub(1) } else { n };
        let (Ok(sum), Ok(squares)) = (self.sum.exact(), self.squares.exact()) else { return f64::NAN };
        if divisor == 0 {
            return f64::NAN;
        }
        squares.times_int(n).minus(&sum.squared()).divided_by(n, divisor)
    }
}

impl<V, T, F> Aggregate<V> for Variance<F>
where
    T: Number,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = VarianceAcc<T::Sum, T::Squares>;
    type Out = f64;

    #[inline]
    fn create(&self) -> Self::Acc {
        VarianceAcc::default()
    }

    #[inline]
    fn add(&self, acc: &mut Self::Acc, value: &V, _: &Origin) {
        let value = (self.of)(value);
        acc.count += 1;
        value.add_to(&mut acc.sum);
        if value.is_finite() {
            value.add_square_to(&mut acc.squares);
        }
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        into.count += from.count;
        into.sum.merge(&from.sum);
        into.squares.merge(&from.squares);
    }

    fn finish(&self, acc: &Self::Acc) -> f64 {
        acc.variance(self.sample)
    }
}

impl<V, T, F> Aggregate<V> for StdDev<F>
where
    T: Number,
    F: Fn(&V) -> T + Clone + Send + 'static,
{
    type Acc = VarianceAcc<T::Sum, T::Squares>;
    type Out = f64;

    #[inline]
    fn create(&self) -> Self::Acc {
        VarianceAcc::default()
    }

    #[inline]
    fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin) {
        self.variance.add(acc, value, origin);
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        self.variance.merge(into, from);
    }

    fn finish(&self, acc: &Self::Acc) -> f64 {
        acc.variance(self.variance.sample).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{Exact, any_order, floats, records};
    use super::*;
    use proptest::prelude::*;

    /// Numerator and denominator of the variance, computed by the definition over all pairs: the sum of squared
    /// differences of all (unordered) pairs, over `n * divisor`.
    fn by_definition(values: &[Exact], sample: bool) -> Exact {
        let pairs = values.iter().enumerate().flat_map(|(i, a)| values[..i].iter().map(move |b| (a, b)));
        let squares = Exact::sum(pairs.map(|(a, b)| a.minus(b).squared()));
        let n = values.len() as u64;
        squares.over(n).over(if sample { n - 1 } else { n })
    }

    proptest! {
        #[test]
        fn variances_of_integers_are_the_nearest_double(
            values in prop::collection::vec(prop_oneof![any::<i64>(), -9i64..9], 2..20),
            seed: u64,
            sample: bool,
        ) {
            let exact: Vec<Exact> = values.iter().map(|v| Exact::int(*v)).collect();
            let expected = by_definition(&exact, sample);
            let variance = Variance { sample, ..Variance::of(|v: &i64| *v) };
            for variance in any_order(&variance, &records(&values), seed) {
                prop_assert!(expected.is(variance), "{:e}", variance);
            }
        }

        #[test]
        fn variances_of_floats_are_the_nearest_double(values in floats(2..12), seed: u64, sample: bool) {
            let exact: Vec<Exact> = values.iter().map(|v| Exact::float(*v)).collect();
            let expected = by_definition(&exact, sample);
            let variance = Variance { sample, ..Variance::of(|v: &f64| *v) };
            for variance in any_order(&variance, &records(&values), seed) {
                prop_assert!(expected.is(variance), "{:e}", variance);
            }
            let deviation = StdDev { variance: Variance { sample, ..Variance::of(|v: &f64| *v) } };
            for deviation in any_order(&deviation, &records(&values), seed) {
                let variance = any_order(&variance, &records(&values), seed)[0];
                prop_assert_eq!(deviation.to_bits(), variance.sqrt().to_bits());
            }
        }
    }

    fn variance(values: &[f64]) -> f64 {
        let all = any_order(&Variance::of(|v: &f64| *v), &records(values), 3);
        assert!(all.iter().all(|variance| variance.to_bits() == all[0].to_bits()));
        all[0]
    }

    #[test]
    fn a_small_spread_around_a_large_mean_is_found() {
        let spread = [-1.5, -0.5, 0.5, 1.5].map(|d: f64| d * 2f64.powi(-10)); // about 1e-3
        let values = spread.map(|d| 2f64.powi(30) + d);
        assert_eq!(variance(&values), 1.25 * 2f64.powi(-20));
        let values: Vec<f64> = (0..1000).map(|i| 1e9 + f64::from(i % 10) * 1e-3).collect();
        // Taking 1e9 from the stored values is exact and leaves small numbers, for which floats are good enough.
        let centred: Vec<f64> = values.iter().map(|v| v - 1e9).collect();
        let mean = centred.iter().sum::<f64>() / 1000.0;
        let expected = centred.iter().map(|c| (c - mean) * (c - mean)).sum::<f64>() / 1000.0;
        assert!((variance(&values) / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn extremes() {
        assert_eq!(variance(&[0.1; 7]).to_bits(), 0);
        assert_eq!(variance(&[5.0]), 0.0);
        assert!(variance(&[]).is_nan());
        assert!(variance(&[f64::INFINITY, 1.0]).is_nan());
        assert!(variance(&[f64::NAN, 1.0]).is_nan());
        assert_eq!(variance(&[f64::MAX, f64::MIN]), f64::INFINITY);
        assert_eq!(variance(&[5e-324, 0.0]), 0.0);
        assert_eq!(variance(&[1e-160, -1e-160]), 1e-160 * 1e-160); // subnormal
        let sample = Variance::of(|v: &i64| *v).sample();
        assert_eq!(any_order(&sample, &records(&[2, 4]), 0)[0], 2.0);
        assert!(any_order(&sample, &records(&[2]), 0)[0].is_nan());
        let all = any_order(&StdDev::of(|v: &u64| *v), &records(&[0, u64::MAX]), 0);
        assert_eq!(all[0], 2f64.powi(63));
    }

    #[test]
    fn accumulators_are_small() {
        assert_eq!(size_of::<VarianceAcc<<i64 as Number>::Sum, <i64 as Number>::Squares>>(), 48);
        assert_eq!(size_of::<VarianceAcc<<f64 as Number>::Sum, <f64 as Number>::Squares>>(), 80);
    }
}
