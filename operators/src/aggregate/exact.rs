//! The exact sum of floats, rounded once.
//!
//! [`ExactSum`] keeps a sum as two doubles whose own sum is exact, `high + low`, and moves what these two cannot hold
//! into a fixed-point number as wide as the values need. Since nothing is ever lost, the value does not depend on the
//! order of additions or on how they were split into accumulators, and neither does the one rounding at the end.
//!
//! Two doubles hold any sum whose bits lie within about 106 places from the top of the sum to the last bit of the
//! smallest value: 2^53 for the values' own digits, and as much again for their spread and their number. Prices,
//! distances and sensor values stay there. The fixed-point part is only made for wider sums (`1e30 + 1e-30`), for
//! values of 2^1000 and above, and to remember infinities and NaN.
//!
//! **Rules**: the result is the `f64` nearest to the exact sum, ties to even. A sum beyond the largest `f64` is
//! infinite, but only the final sum counts: `MAX + MAX - MAX` is `MAX`. A sum that is exactly zero is `+0.0`, also when
//! all values are `-0.0` or there are none. Any NaN, or infinities of both signs, give NaN; infinities of one sign give
//! that infinity.
//!
//! **State**: 24 bytes in memory, 17 serialised; the fixed-point part adds 70 to 330 bytes on the heap.
//!
//! **Source**: Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates" (1997),
//! for sums of doubles that are exact together, with Knuth's two-sum and Dekker's product; Neal, "Fast Exact Summation
//! Using Small and Large Superaccumulators" (2015), for the fixed-point part. Shewchuk's expansions (and Python's
//! `fsum`) grow by the double as needed; we stop at two and fall back to fixed point, which keeps the state flat and
//! cannot overflow on the way.

use serde::{Deserialize, Serialize};

use super::big::{Dyadic, Fixed, parts};

/// From this size on values are kept in fixed point: far enough below the largest `f64` that no step can overflow.
const LARGE: f64 = f64::from_bits((1000 + 1023) << 52); // 2^1000

/// An exact sum of `f64` values.
///
/// ```no_run
/// use millstream_operators::aggregate::ExactSum;
///
/// let mut sum = ExactSum::default();
/// for _ in 0..10 {
///     sum.add(0.1);
/// }
/// sum.add(1e20);
/// sum.add(-1e20);
/// assert_eq!(sum.value(), 1.0); // ten times 0.1, as stored, is just above 1
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExactSum {
    high: f64,
    low: f64,
    spill: Option<Box<Spill>>,
}

/// What two doubles cannot hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Spill {
    fixed: Fixed,
    /// Which of NaN, +inf and -inf were among the values.
    special: u8,
}

const NAN: u8 = 1;
const PLUS_INFINITY: u8 = 2;
const MINUS_INFINITY: u8 = 4;

/// The rounded sum of two doubles and the exact error; exact unless the sum overflows.
#[inline]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    let a_part = sum - b_part;
    (sum, (a - a_part) + (b - b_part))
}

/// The rounded square and the exact error, for values between 2^-450 and 2^500 and for zero.
#[inline]
fn two_square(value: f64) -> (f64, f64) {
    // Dekker's product in place of a fused multiply-add, which is a slow call where the target does not promise one.
    let square = value * value;
    let shifted = value * 134_217_729.0; // 2^27 + 1
    let high = shifted - (shifted - value);
    let low = value - high;
    (square, ((high * high - square) + 2.0 * (high * low)) + low * low)
}

impl ExactSum {
    /// Adds one value.
    #[inline]
    pub fn add(&mut self, value: f64) {
        let (high, error) = two_sum(self.high, value);
        // False for NaN too. `high` stays below LARGE, so if the sum does, `value` is below twice that.
        if high.abs() < LARGE {
            let (low, rest) = two_sum(self.low, error);
            self.high = high;
            self.low = low;
            if rest != 0.0 {
                self.spill(rest);
            }
        } else {
            self.add_large(value);
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, from: &ExactSum) {
        self.add(from.high);
        self.add(from.low);
        if let Some(from) = &from.spill {
            let spill = self.spill.get_or_insert_default();
            spill.fixed.merge(&from.fixed);
            spill.special |= from.special;
        }
    }

    /// The sum, rounded once.
    pub fn value(&self) -> f64 {
        if self.spill.is_none() {
            return self.high + self.low; // one exact sum of two numbers, rounded by the addition
        }
        match self.exact() {
            Ok(exact) => exact.to_f64(),
            Err(special) => special,
        }
    }

    /// The sum divided by `count`, rounded once; NaN when `count` is 0.
    pub(super) fn divided_by(&self, count: u64) -> f64 {
        if count == 0 {
            return f64::NAN;
        }
        if self.spill.is_none()
            && count < 1 << 53
            && let Some(quotient) = self.quick_quotient(count as f64)
        {
            return quotient;
        }
        match self.exact() {
            Ok(exact) => exact.divided_by(count, 1),
            Err(special) => special,
        }
    }

    /// `(high + low) / count`, rounded once, unless that is too close to a midpoint to tell in double precision.
    fn quick_quotient(&self, count: f64) -> Option<f64> {
        let quotient = self.high / count;
        if self.low == 0.0 {
            return Some(quotient); // both exact: the division rounds once
        }
        if quotient.abs() < 1e-250 {
            return None; // what is left over might underflow
        }
        // The remainder of a division is exact. Three roundings follow, so the correction is good to 2^-50; if both
        // ends of that range give the same result, so does the true value between them.
        let remainder = (-quotient).mul_add(count, self.high);
        let correction = (remainder + self.low) / count;
        let doubt = correction.abs() * f64::EPSILON * 4.0;
        let result = quotient + (correction - doubt);
        (result == quotient + (correction + doubt)).then_some(result)
    }

    /// The exact sum, or the infinity or NaN that stands for it.
    pub(super) fn exact(&self) -> Result<Dyadic, f64> {
        let spill = self.spill.as_deref().cloned().unwrap_or_default();
        match spill.special {
            0 => {}
            PLUS_INFINITY => return Err(f64::INFINITY),
            MINUS_INFINITY => return Err(f64::NEG_INFINITY),
            _ => return Err(f64::NAN),
        }
        let mut fixed = spill.fixed;
        for value in [self.high, self.low] {
            let (negative, digits, exponent) = parts(value);
            fixed.add(negative, digits.into(), exponent);
        }
        Ok(fixed.value())
    }

    #[inline(never)]
    fn spill(&mut self, value: f64) {
        let (negative, digits, exponent) = parts(value);
        self.spill.get_or_insert_default().fixed.add(negative, digits.into(), exponent);
    }

    #[cold]
    fn add_large(&mut self, value: f64) {
        if value.is_finite() {
            self.spill(value);
            self.spill(self.high);
            self.high = 0.0;
        } else {
            let kind = match value {
                f64::INFINITY => PLUS_INFINITY,
                f64::NEG_INFINITY => MINUS_INFINITY,
                _ => NAN,
            };
            self.spill.get_or_insert_default().special |= kind;
        }
    }
}

/// An exact sum of squares of finite `f64` values.
///
/// A square has twice the digits of its root: the rounded squares are summed apart from their errors, so that either
/// sum fits in two doubles as often as a sum of plain values does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExactSquares {
    rounded: ExactSum,
    errors: ExactSum,
}

impl ExactSquares {
    /// Adds the square of one finite value.
    #[inline]
    pub fn add(&mut self, value: f64) {
        let size = value.abs();
        if (size > 1e-130 && size < 1e130) || size == 0.0 {
            let (square, error) = two_square(value);
            self.rounded.add(square);
            self.errors.add(error);
        } else {
            self.add_extreme(value);
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, from: &ExactSquares) {
        self.rounded.merge(&from.rounded);
        self.errors.merge(&from.errors);
    }

    /// The sum in one piece.
    pub(super) fn total(&self) -> ExactSum {
        let mut total = self.rounded.clone();
        total.merge(&self.errors);
        total
    }

    #[cold]
    fn add_extreme(&mut self, value: f64) {
        debug_assert!(value.is_finite(), "only squares of finite values are summed");
        let (_, digits, exponent) = parts(value);
        let spill = self.errors.spill.get_or_insert_default();
        spill.fixed.add(false, u128::from(digits) * u128::from(digits), exponent * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{Tree, floats, rounded_sum};
    use super::super::{bytes_of, from_bytes};
    use super::*;
    use proptest::prelude::*;

    fn sum_of(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value));
        sum
    }

    proptest! {
        #[test]
        fn any_order_and_any_tree_give_the_nearest_double(values in floats(0..60), seed: u64) {
            let mut tree = Tree::new(seed);
            for _ in 0..4 {
                let sum = tree.run(&values, ExactSum::default, |sum, value| sum.add(*value), ExactSum::merge);
                prop_assert!(rounded_sum(&values).is(sum.value()), "{:e}", sum.value());
            }
        }

        #[test]
        fn quotients_close_to_a_midpoint_go_the_right_way(
            digits in 1u64 << 52..1 << 53,
            count in 3u64..5000,
            scale in prop::sample::select(vec![0, -700, -900, -960, -990]),
            away in 95i32..112,
            side in -1i32..=1,
        ) {
            // The sum is `count` times the middle between `quotient` and the next double, and a little to one side.
            let quotient = digits as f64 * 2f64.powi(scale - 52);
            let high = quotient * count as f64;
            let low = quotient.mul_add(count as f64, -high);
            let half_step = count as f64 * 2f64.powi(scale - 53);
            let values = [high, low, half_step, f64::from(side) * 2f64.powi(scale - away)];
            prop_assert!(rounded_sum(&values).over(count).is(sum_of(&values).divided_by(count)));
        }

        #[test]
        fn errors_of_squares_are_exact(value in prop::num::f64::NORMAL) {
            let mut sum = ExactSquares::default();
            sum.add(value);
            let (_, digits, exponent) = parts(value);
            let mut square = Fixed::default();
            square.add(false, u128::from(digits) * u128::from(digits), 2 * exponent);
            let exact = sum.total().exact().expect("finite");
            prop_assert_eq!(exact.minus(&square.value()).to_f64(), 0.0);
        }
    }

    #[test]
    fn intermediate_overflow_does_not_show() {
        assert_eq!(sum_of(&[f64::MAX, f64::MAX, -f64::MAX]).value(), f64::MAX);
        assert_eq!(sum_of(&[f64::MAX, f64::MAX]).value(), f64::INFINITY);
        assert_eq!(sum_of(&[f64::MIN, f64::MIN]).value(), f64::NEG_INFINITY);
        let half_ulp = 2f64.powi(969);
        assert_eq!(sum_of(&[f64::MAX, half_ulp * 0.999]).value(), f64::MAX);
        assert_eq!(sum_of(&[f64::MAX, half_ulp * 2.0]).value(), f64::INFINITY);
        assert_eq!(sum_of(&[f64::MAX, f64::MAX, 5e-324, f64::MIN, f64::MIN]).value(), 5e-324);
        let many = vec![1e300; 1 << 16];
        assert_eq!(sum_of(&many).value(), 1e300 * 65536.0);
    }

    #[test]
    fn subnormals_are_counted_exactly() {
        assert_eq!(sum_of(&[5e-324; 1000]).value(), f64::from_bits(1000));
        assert_eq!(sum_of(&[1.0, 5e-324, -1.0]).value(), 5e-324);
        assert_eq!(sum_of(&[f64::MIN_POSITIVE, -5e-324]).value(), f64::MIN_POSITIVE.next_down());
    }

    #[test]
    fn when_a_tiny_quotient_is_a_tie_then_it_goes_to_even() {
        let last = 5e-324;
        let steps = (1u64 << 52) + 1; // the bits of a float this small, and also its size in last places
        let sum = sum_of(&[(6 * steps + 2) as f64 * last, last]);
        assert_eq!(sum.divided_by(6), f64::from_bits(steps + 1)); // half a step above an odd number of steps
    }

    #[test]
    fn zero_is_plus_zero() {
        for values in [&[][..], &[-0.0], &[-0.0, -0.0], &[0.0, -0.0], &[1.5, -1.5], &[-1.5, 1.5], &[1e300, -1e300]] {
            assert_eq!(sum_of(values).value().to_bits(), 0, "{values:?}");
        }
        assert_eq!(sum_of(&[1e308, 1e308, -1e308, -1e308]).value().to_bits(), 0);
    }

    #[test]
    fn infinities_and_nan_do_not_depend_on_order() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for (values, expected) in [
            (vec![1.0, inf, f64::MIN], inf),
            (vec![-inf, f64::MAX, f64::MAX], -inf),
            (vec![inf, 1.0, -inf], nan),
            (vec![-nan, 1.0], nan),
            (vec![inf, nan], nan),
        ] {
            for turn in 0..values.len() {
                let mut values = values.clone();
                values.rotate_left(turn);
                let (left, right) = values.split_at(values.len() / 2);
                let mut merged = sum_of(left);
                merged.merge(&from_bytes(&bytes_of(&sum_of(right))));
                assert_eq!(merged.value().to_bits(), expected.to_bits(), "{values:?}");
                assert_eq!(sum_of(&values).value().to_bits(), expected.to_bits(), "{values:?}");
            }
        }
    }

    #[test]
    fn state_stays_small() {
        assert_eq!(size_of::<ExactSum>(), 24);
        let prices: Vec<f64> = (0..100_000).map(|i| f64::from(i % 9_973) * 0.01).collect();
        let sum = sum_of(&prices);
        assert!(sum.spill.is_none());
        assert_eq!(bytes_of(&sum).len(), 17);
        assert!(bytes_of(&sum_of(&[1e30, 1.0, 1e-30])).len() < 80);
        assert!(bytes_of(&sum_of(&[f64::MAX, 1.0, 5e-324])).len() < 350);
    }
}
