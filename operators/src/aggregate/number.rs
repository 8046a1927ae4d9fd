//! What can be averaged: numbers with an exact running total.
//!
//! [`Mean`](super::Mean) and [`Variance`](super::Variance) keep totals of values and of squares in which nothing is
//! rounded, and round once when they finish. Integers total in 128 bits ([`Wide`]), their squares in 192 ([`Wider`]):
//! no number of records that a `u64` can count overflows these. Floats total in an [`ExactSum`],
//! their squares in [`ExactSquares`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::big::Dyadic;
use super::exact::{ExactSquares, ExactSum};

/// A number that [`Mean`](super::Mean) and [`Variance`](super::Variance) accept: the integers up to 64 bits, `f32` and
/// `f64`.
///
/// A type of your own joins by passing on to the number inside:
///
/// ```no_run
/// use millstream_operators::aggregate::{Number, Wide, Wider};
///
/// #[derive(Clone, Copy)]
/// struct Cents(i64);
///
/// impl Number for Cents {
///     type Sum = Wide;
///     type Squares = Wider;
///     fn add_to(self, sum: &mut Wide) {
///         self.0.add_to(sum);
///     }
///     fn add_square_to(self, squares: &mut Wider) {
///         self.0.add_square_to(squares);
///     }
/// }
/// ```
pub trait Number: Copy + Send + 'static {
    /// The exact total of values.
    type Sum: ExactTotal;
    /// The exact total of squares.
    type Squares: ExactTotal;

    /// Adds the number to a total.
    fn add_to(self, sum: &mut Self::Sum);

    /// Adds the number's square to a total; called only for finite numbers.
    fn add_square_to(self, squares: &mut Self::Squares);

    /// Whether the number is neither infinite nor NaN.
    fn is_finite(self) -> bool {
        true
    }
}

/// A total in which nothing is rounded. Implemented by [`Wide`], [`Wider`], [`ExactSum`] and [`ExactSquares`].
pub trait ExactTotal: Clone + Default + Send + Serialize + DeserializeOwned + 'static {
    /// Adds another total.
    fn merge(&mut self, from: &Self);

    /// The exact value, or the infinity or NaN that stands for it.
    #[doc(hidden)]
    fn exact(&self) -> Result<Dyadic, f64>;

    /// The total divided by `count`, rounded once to the nearest `f64`; NaN when `count` is 0.
    fn divided_by(&self, count: u64) -> f64;
}

/// A 128-bit integer in two words, so that it aligns to 8 bytes. Arithmetic that leaves 128 bits panics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wide {
    low: u64,
    high: i64,
}

impl Wide {
    /// The integer.
    #[inline]
    pub fn get(self) -> i128 {
        i128::from(self.high) << 64 | i128::from(self.low)
    }

    /// Adds an integer.
    #[inline]
    pub fn add(&mut self, value: i128) {
        let Some(sum) = self.get().checked_add(value) else { overflow() };
        *self = Wide { low: sum as u64, high: (sum >> 64) as i64 };
    }
}

#[cold]
fn overflow() -> ! {
    panic!("a sum leaves the range of i128");
}

impl ExactTotal for Wide {
    #[inline]
    fn merge(&mut self, from: &Self) {
        self.add(from.get());
    }

    fn exact(&self) -> Result<Dyadic, f64> {
        Ok(Dyadic::from_int(self.get()))
    }

    fn divided_by(&self, count: u64) -> f64 {
        const EXACT: u64 = 1 << 53; // integers up to here are doubles
        let sum = self.get();
        if sum.unsigned_abs() <= EXACT.into() && count <= EXACT {
            return if count == 0 { f64::NAN } else { sum as f64 / count as f64 };
        }
        Dyadic::from_int(sum).divided_by(count, 1)
    }
}

/// A natural number of 192 bits: a total of squares of 64-bit integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wider {
    low: u64,
    middle: u64,
    high: u64,
}

impl Wider {
    #[inline]
    fn add(&mut self, value: u128, high: u64) {
        let (sum, carry) = (u128::from(self.middle) << 64 | u128::from(self.low)).overflowing_add(value);
        // Squares are below 2^128 and records fewer than 2^64, so the top word has room for every carry.
        *self = Wider { low: sum as u64, middle: (sum >> 64) as u64, high: self.high + high + u64::from(carry) };
    }
}

impl ExactTotal for Wider {
    #[inline]
    fn merge(&mut self, from: &Self) {
        self.add(u128::from(from.middle) << 64 | u128::from(from.low), from.high);
    }

    fn exact(&self) -> Result<Dyadic, f64> {
        Ok(Dyadic::from_words(&[self.low, self.middle, self.high]))
    }

    fn divided_by(&self, count: u64) -> f64 {
        if count == 0 {
            return f64::NAN;
        }
        Dyadic::from_words(&[self.low, self.middle, self.high]).divided_by(count, 1)
    }
}

impl ExactTotal for ExactSum {
    fn merge(&mut self, from: &Self) {
        ExactSum::merge(self, from);
    }

    fn exact(&self) -> Result<Dyadic, f64> {
        ExactSum::exact(self)
    }

    fn divided_by(&self, count: u64) -> f64 {
        ExactSum::divided_by(self, count)
    }
}

impl ExactTotal for ExactSquares {
    fn merge(&mut self, from: &Self) {
        ExactSquares::merge(self, from);
    }

    fn exact(&self) -> Result<Dyadic, f64> {
        self.total().exact()
    }

    fn divided_by(&self, count: u64) -> f64 {
        self.total().divided_by(count)
    }
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Number for $int {
            type Sum = Wide;
            type Squares = Wider;

            #[inline]
            fn add_to(self, sum: &mut Wide) {
                sum.add(self as i128);
            }

            #[inline]
            fn add_square_to(self, squares: &mut Wider) {
                let size = (self as i128).unsigned_abs();
                squares.add(size * size, 0);
            }
        }
    )*};
}
integers!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

macro_rules! floats {
    ($($float:ty)*) => {$(
        impl Number for $float {
            type Sum = ExactSum;
            type Squares = ExactSquares;

            #[inline]
            fn add_to(self, sum: &mut ExactSum) {
                sum.add(self.into());
            }

            #[inline]
            fn add_square_to(self, squares: &mut ExactSquares) {
                squares.add(self.into());
            }

            #[inline]
            fn is_finite(self) -> bool {
                <$float>::is_finite(self)
            }
        }
    )*};
}
floats!(f32 f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_of_extremes_have_room() {
        let mut squares = Wider::default();
        for _ in 0..5 {
            i64::MIN.add_square_to(&mut squares);
            u64::MAX.add_square_to(&mut squares);
        }
        let expected = 5.0 * (2f64.powi(126) + 2f64.powi(128)); // less 5 * (2^65 - 1), far below the last bit
        assert_eq!(squares.divided_by(1), expected);
        let mut twice = squares;
        twice.merge(&squares);
        assert_eq!(twice.divided_by(2), expected);
    }

    #[test]
    fn wide_counts_on_both_sides_of_zero() {
        let mut wide = Wide::default();
        for value in [-1i128, i128::from(u64::MAX), 2, -(1 << 100), 1 << 99] {
            let before = wide.get();
            wide.add(value);
            assert_eq!(wide.get(), before + value);
        }
        assert_eq!(size_of::<Wide>(), 16);
        assert_eq!(align_of::<Wide>(), 8);
    }
}
