//! Numbers of any size, for the moment when an exact accumulator is turned into one `f64`.
//!
//! [`Natural`] is schoolbook arithmetic on 64-bit words, least word first. [`Dyadic`] is a signed natural times a power
//! of two: the exact value of any finite sum of floats or integers, and of any product of such sums. A quotient of a
//! dyadic number by integers is rounded once, to nearest with ties to even, in [`Dyadic::divided_by`].
//!
//! Nothing here runs per record except [`Fixed::add`], and that only for values that an expansion cannot hold.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// A number 0, 1, 2, .. of any size: words, least first, the last one not zero.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Natural(Vec<u64>);

impl Natural {
    fn trimmed(mut words: Vec<u64>) -> Self {
        while words.last() == Some(&0) {
            words.pop();
        }
        Natural(words)
    }

    fn from_words(words: &[u64]) -> Self {
        Self::trimmed(words.to_vec())
    }

    /// The number of bits up to the highest one set.
    fn bits(&self) -> i64 {
        match self.0.last() {
            Some(top) => self.0.len() as i64 * 64 - i64::from(top.leading_zeros()),
            None => 0,
        }
    }

    fn bit(&self, index: i64) -> bool {
        index >= 0 && self.0.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Whether any bit below `index` is set.
    fn any_below(&self, index: i64) -> bool {
        let whole = (index.max(0) / 64) as usize;
        self.0.iter().take(whole).any(|word| *word != 0)
            || self.0.get(whole).is_some_and(|word| word & ((1 << (index.max(0) % 64)) - 1) != 0)
    }

    fn shifted_left(&self, bits: u64) -> Self {
        let (whole, part) = ((bits / 64) as usize, bits % 64);
        let mut words = vec![0; whole];
        let mut carry = 0;
        for word in &self.0 {
            words.push(word << part | carry);
            carry = if part == 0 { 0 } else { word >> (64 - part) };
        }
        words.push(carry);
        Self::trimmed(words)
    }

    fn times(&self, other: &Self) -> Self {
        let mut words = vec![0u64; self.0.len() + other.0.len()];
        for (i, a) in self.0.iter().enumerate() {
            let mut carry = 0u128;
            for (j, b) in other.0.iter().enumerate() {
                let sum = u128::from(*a) * u128::from(*b) + u128::from(words[i + j]) + carry;
                words[i + j] = sum as u64;
                carry = sum >> 64;
            }
            words[i + other.0.len()] = carry as u64;
        }
        Self::trimmed(words)
    }

    fn plus(&self, other: &Self) -> Self {
        let (long, short) = if self.0.len() >= other.0.len() { (self, other) } else { (other, self) };
        let mut words = long.0.clone();
        let carry = add_words(&mut words, &short.0, 0);
        words.push(u64::from(carry));
        Self::trimmed(words)
    }

    /// `self - other`, which must not be negative.
    fn minus(&self, other: &Self) -> Self {
        let mut words = self.0.clone();
        let borrow = sub_words(&mut words, &other.0);
        debug_assert!(!borrow, "a natural number does not go below zero");
        Self::trimmed(words)
    }

    /// The quotient by `divisor`, rounded down, and whether anything was left over.
    fn divided_by(&self, divisor: u64) -> (Self, bool) {
        let mut words = self.0.clone();
        let mut rest = 0u128;
        for word in words.iter_mut().rev() {
            let part = rest << 64 | u128::from(*word);
            *word = (part / u128::from(divisor)) as u64;
            rest = part % u128::from(divisor);
        }
        (Self::trimmed(words), rest != 0)
    }
}

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Adds `from`, extended upwards by words of `fill`, to `into`; returns the carry.
fn add_words(into: &mut [u64], from: &[u64], fill: u64) -> bool {
    let mut carry = false;
    for (i, word) in into.iter_mut().enumerate() {
        if i >= from.len() && fill == 0 && !carry {
            return false;
        }
        let (sum, over) = word.overflowing_add(*from.get(i).unwrap_or(&fill));
        let (sum, over_again) = sum.overflowing_add(u64::from(carry));
        *word = sum;
        carry = over | over_again;
    }
    carry
}

/// Subtracts `from` from `into`; returns the borrow.
fn sub_words(into: &mut [u64], from: &[u64]) -> bool {
    let mut borrow = false;
    for (i, word) in into.iter_mut().enumerate() {
        if i >= from.len() && !borrow {
            return false;
        }
        let (rest, under) = word.overflowing_sub(*from.get(i).unwrap_or(&0));
        let (rest, under_again) = rest.overflowing_sub(u64::from(borrow));
        *word = rest;
        borrow = under | under_again;
    }
    borrow
}

/// `magnitude * 2^exponent`, negated if `negative`. Exact.
#[derive(Clone, Debug)]
pub struct Dyadic {
    negative: bool,
    magnitude: Natural,
    exponent: i64,
}

impl Dyadic {
    /// An integer.
    pub(super) fn from_int(value: i128) -> Self {
        let mut number = Self::from_words(&[value.unsigned_abs() as u64, (value.unsigned_abs() >> 64) as u64]);
        number.negative = value < 0;
        number
    }

    /// A natural number given by its words, least first.
    pub(super) fn from_words(words: &[u64]) -> Self {
        Dyadic { negative: false, magnitude: Natural::from_words(words), exponent: 0 }
    }

    /// `self * factor`.
    pub(super) fn times_int(&self, factor: u64) -> Self {
        let magnitude = self.magnitude.times(&Natural::from_words(&[factor]));
        Dyadic { negative: self.negative, magnitude, exponent: self.exponent }
    }

    /// `self * self`.
    pub(super) fn squared(&self) -> Self {
        let magnitude = self.magnitude.times(&self.magnitude);
        Dyadic { negative: false, magnitude, exponent: self.exponent * 2 }
    }

    /// `self - other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let exponent = self.exponent.min(other.exponent);
        let left = self.magnitude.shifted_left((self.exponent - exponent) as u64);
        let right = other.magnitude.shifted_left((other.exponent - exponent) as u64);
        if self.negative != other.negative {
            return Dyadic { negative: self.negative, magnitude: left.plus(&right), exponent };
        }
        match left.cmp(&right) {
            Ordering::Less => Dyadic { negative: !self.negative, magnitude: right.minus(&left), exponent },
            _ => Dyadic { negative: self.negative, magnitude: left.minus(&right), exponent },
        }
    }

    /// The `f64` nearest to `self / (a * b)`, ties to even; an exact zero is `0.0`. The divisors must not be 0.
    pub(super) fn divided_by(&self, a: u64, b: u64) -> f64 {
        if self.magnitude.0.is_empty() {
            return 0.0;
        }
        // So many words of zeros below that the quotient has over 64 bits: what is cut off then only matters as
        // "not zero", and dividing twice with rounding down is dividing once by the product.
        let words = if a == 1 && b == 1 { 0 } else { 4 };
        let exponent = self.exponent - 64 * words;
        let (quotient, rest) = self.magnitude.shifted_left(64 * words as u64).divided_by(a);
        let (quotient, rest_again) = quotient.divided_by(b);
        let value = rounded(&quotient, exponent, rest || rest_again);
        if self.negative { -value } else { value }
    }

    /// The nearest `f64`, ties to even; an exact zero is `0.0`.
    pub(super) fn to_f64(&self) -> f64 {
        self.divided_by(1, 1)
    }
}

/// The `f64` nearest to `number * 2^exponent` (`number` not 0), or to a value a little above it if there is a `rest`.
fn rounded(number: &Natural, exponent: i64, rest: bool) -> f64 {
    let top = number.bits() - 1 + exponent; // the value is in [2^top, 2^(top + 1))
    if top > 1023 {
        return f64::INFINITY;
    }
    let last = (top - 52).max(-1074); // the last bit that the result keeps is worth 2^last
    let cut = last - exponent; // and is this bit of `number`
    let mut digits = 0u64;
    for index in (cut..=cut + 53).rev() {
        digits = digits << 1 | u64::from(number.bit(index));
    }
    if number.bit(cut - 1) && (rest || number.any_below(cut - 1) || digits & 1 == 1) {
        digits += 1;
    }
    // Both factors and their product are exact, or the product is too large and rightly infinite.
    digits as f64 * power_of_two(last)
}

/// `2^exponent` for exponents from -1074 to 1023.
fn power_of_two(exponent: i64) -> f64 {
    if exponent >= -1022 {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    } else {
        f64::from_bits(1 << (exponent + 1074))
    }
}

/// Sign, digits and exponent of a finite `f64`: `digits * 2^exponent`.
pub(super) fn parts(value: f64) -> (bool, u64, i32) {
    let bits = value.to_bits();
    let (field, fraction) = ((bits >> 52 & 0x7FF) as i32, bits & ((1 << 52) - 1));
    match field {
        0 => (value.is_sign_negative(), fraction, -1074),
        _ => (value.is_sign_negative(), fraction | 1 << 52, field - 1075),
    }
}

/// An exact running sum in two's complement, as wide as its terms need: `words * 2^(64 * first)`.
///
/// The words cover the exponents of all terms seen so far and one word more at the top, for the sign and for carries:
/// it takes 2^63 terms to fill that. Doubles span 34 words at most and their squares 68; the usual sum needs three or
/// four.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Fixed {
    first: i32,
    words: Vec<u64>,
}

impl Fixed {
    /// Adds `digits * 2^exponent`, or subtracts it if `negative`. `digits` has at most 126 bits.
    pub(super) fn add(&mut self, negative: bool, digits: u128, exponent: i32) {
        if digits == 0 {
            return;
        }
        let (first, shift) = (exponent.div_euclid(64), exponent.rem_euclid(64));
        let low = digits << shift;
        let high = if shift == 0 { 0 } else { (digits >> (128 - shift)) as u64 };
        let words = [low as u64, (low >> 64) as u64, high];
        let used = 3 - words.iter().rev().take_while(|word| **word == 0).count();
        self.make_room(first, first + used as i32 + 1);
        let into = &mut self.words[(first - self.first) as usize..];
        if negative {
            sub_words(into, &words[..used]);
        } else {
            add_words(into, &words[..used], 0);
        }
    }

    /// Adds another sum.
    pub(super) fn merge(&mut self, from: &Fixed) {
        if from.words.is_empty() {
            return;
        }
        self.make_room(from.first, from.first + from.words.len() as i32);
        let into = &mut self.words[(from.first - self.first) as usize..];
        add_words(into, &from.words, from.fill());
    }

    /// The exact value.
    pub(super) fn value(&self) -> Dyadic {
        let negative = self.fill() != 0;
        let mut words = self.words.clone();
        if negative {
            let mut zero = vec![0; words.len()];
            sub_words(&mut zero, &words);
            words = zero;
        }
        Dyadic { negative, magnitude: Natural::trimmed(words), exponent: i64::from(self.first) * 64 }
    }

    /// What the words above the stored ones would be: all zeros or, in a negative number, all ones.
    fn fill(&self) -> u64 {
        self.words.last().map_or(0, |top| ((*top as i64) >> 63) as u64)
    }

    /// Makes the words cover at least `from..to`.
    fn make_room(&mut self, from: i32, to: i32) {
        if self.words.is_empty() {
            self.first = from;
        }
        if from < self.first {
            self.words.splice(0..0, std::iter::repeat_n(0, (self.first - from) as usize));
            self.first = from;
        }
        let len = ((to - self.first) as usize).max(self.words.len());
        self.words.resize(len, self.fill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_rounding_are_inverse() {
        for value in [1.0, 0.1, f64::MAX, f64::MIN_POSITIVE, 5e-324, 2.5e-310, 1e300, 3.0, 0.0] {
            let (negative, digits, exponent) = parts(value);
            let number = Dyadic { negative, magnitude: Natural::from_words(&[digits]), exponent: exponent.into() };
            assert_eq!(number.to_f64().to_bits(), value.to_bits(), "{value}");
        }
    }

    #[test]
    fn ties_go_to_even_and_a_rest_breaks_them() {
        let number = |digits: u64| Dyadic::from_words(&[digits]);
        assert_eq!(number((1 << 53) + 1).to_f64(), (1u64 << 53) as f64);
        assert_eq!(number((1 << 53) + 3).to_f64(), ((1u64 << 53) + 4) as f64);
        assert_eq!(rounded(&Natural::from_words(&[(1 << 53) + 1]), 0, true), ((1u64 << 53) + 2) as f64);
        assert_eq!(number(1).divided_by(3, 1), 1.0 / 3.0);
        assert_eq!(Dyadic::from_int(-10).divided_by(7, 1), -10.0 / 7.0);
        assert_eq!(number(1).divided_by(u64::MAX, u64::MAX), 2f64.powi(-128));
    }

    #[test]
    fn fixed_follows_a_sum_through_zero_and_past_its_top() {
        let mut sum = Fixed::default();
        let mut expected = 0i128;
        for (i, digits) in [u64::MAX, 3, u64::MAX, u64::MAX, 7, u64::MAX, 1].into_iter().cycle().take(200).enumerate() {
            let negative = i % 3 == 1;
            sum.add(negative, digits.into(), 0);
            expected += if negative { -i128::from(digits) } else { digits.into() };
            let value = sum.value();
            let magnitude = Dyadic::from_int(expected).magnitude;
            assert_eq!((value.negative, value.magnitude), (expected < 0, magnitude), "after {i}");
        }
        assert!(sum.words.len() <= 3);
    }

    #[test]
    fn merging_a_sum_with_itself_stays_exact_and_small() {
        for negative in [false, true] {
            for exponent in [-70, 0, 37, 63] {
                let mut sum = Fixed::default();
                sum.add(negative, u128::MAX >> 2, exponent);
                let words = sum.words.len();
                let one = sum.value();
                for doubled in 1..62 {
                    sum.merge(&sum.clone());
                    assert_eq!(sum.value().minus(&one.times_int(1 << doubled)).magnitude, Natural::default());
                }
                assert_eq!(sum.words.len(), words);
            }
        }
    }

    #[test]
    fn merged_fixed_sums_keep_their_signs() {
        for (a, b) in [(5, -7), (-5, 7), (-1, -1), (i64::MIN, i64::MIN), (i64::MAX, i64::MAX), (0, -3)] {
            let of = |value: i64, exponent| {
                let mut sum = Fixed::default();
                sum.add(value < 0, value.unsigned_abs().into(), exponent);
                sum
            };
            let mut merged = of(a, 100);
            merged.merge(&of(b, 0));
            let b = Dyadic { negative: b > 0, ..Dyadic::from_int(b.into()) };
            let a = Dyadic { exponent: 100, ..Dyadic::from_int(a.into()) };
            assert_eq!(merged.value().minus(&a.minus(&b)).magnitude, Natural::default());
        }
    }
}
