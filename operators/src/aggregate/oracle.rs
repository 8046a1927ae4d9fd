//! What the tests of aggregates share: ways to meet records in any order, and exact arithmetic done naively.
//!
//! [`Exact`] is a fraction of big integers in base 2^32, with nothing clever in it, and knows nothing of `big.rs`. It
//! never rounds; it only answers whether an `f64` is the nearest one, by comparing with the midpoints to its
//! neighbours.

use std::cmp::Ordering;
use std::ops::Range;

use proptest::prelude::*;

use super::{Aggregate, EventTime, Origin, bytes_of, from_bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Records with times and positions of their own: the i-th happened at i seconds and is record i of split 0.
pub(super) fn records<V: Clone>(values: &[V]) -> Vec<(V, Origin)> {
    let origin = |i: usize| Origin { at: EventTime::from_secs(i as i64), split: 0, record: i as u64 };
    values.iter().enumerate().map(|(i, value)| (value.clone(), origin(i))).collect()
}

/// The results of an aggregate over the same records: added as given, then several times shuffled, split into pieces
/// that are written and read back, and merged as a random tree.
pub(super) fn any_order<V: Clone, A: Aggregate<V>>(aggregate: &A, records: &[(V, Origin)], seed: u64) -> Vec<A::Out> {
    let mut direct = aggregate.create();
    for (value, origin) in records {
        aggregate.add(&mut direct, value, origin);
    }
    let mut tree = Tree::new(seed);
    let shuffled = (0..4).map(|_| {
        let acc = tree.run(
            records,
            || aggregate.create(),
            |acc, (value, origin)| aggregate.add(acc, value, origin),
            |into, from| aggregate.merge(into, from),
        );
        aggregate.finish(&acc)
    });
    let mut results = vec![aggregate.finish(&direct)];
    results.extend(shuffled);
    results
}

/// A random way to add and merge.
pub(super) struct Tree {
    random: u64,
}

impl Tree {
    pub(super) fn new(seed: u64) -> Self {
        Tree { random: seed | 1 }
    }

    fn below(&mut self, bound: usize) -> usize {
        // Xorshift: good enough to shuffle, and a failing case is found again from the seed that proptest prints.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % bound
    }

    pub(super) fn run<V, S: Serialize + DeserializeOwned>(
        &mut self,
        values: &[V],
        create: impl Fn() -> S,
        add: impl Fn(&mut S, &V),
        merge: impl Fn(&mut S, &S),
    ) -> S {
        let mut pieces: Vec<S> = (0..=self.below(6)).map(|_| create()).collect();
        let mut left: Vec<&V> = values.iter().collect();
        while !left.is_empty() {
            let value = left.swap_remove(self.below(left.len()));
            let piece = self.below(pieces.len());
            add(&mut pieces[piece], value);
            if self.below(4) == 0 {
                pieces[piece] = from_bytes(&bytes_of(&pieces[piece]));
            }
        }
        while pieces.len() > 1 {
            let from = pieces.swap_remove(self.below(pieces.len()));
            let into = self.below(pieces.len());
            merge(&mut pieces[into], &from);
            pieces[into] = from_bytes(&bytes_of(&pieces[into]));
        }
        pieces.swap_remove(0)
    }
}

/// Finite floats, as many as `count` says: everyday ones, ones of all sizes, extremes, and pairs that cancel.
pub(super) fn floats(count: Range<usize>) -> impl Strategy<Value = Vec<f64>> {
    let everyday = prop_oneof![
        (-100_000i32..100_000).prop_map(|cents| f64::from(cents) / 100.0),
        -1.0..1.0,
        (-1e9..1e9f64).prop_map(|v| v + 1e9),
    ];
    let extreme = prop::sample::select(vec![
        0.0,
        -0.0,
        5e-324,
        -5e-324,
        f64::MIN_POSITIVE,
        f64::MAX,
        f64::MIN,
        f64::EPSILON,
        1.0,
        -1.0,
        9_007_199_254_740_993.0,
        2f64.powi(1000),
        -2f64.powi(999),
        2f64.powi(-1000),
        1e130,
        1e-130,
    ]);
    let any_size = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite());
    let mixed = prop_oneof![4 => everyday.clone().boxed(), 2 => any_size.boxed(), 1 => extreme.boxed()];
    let list = |one: BoxedStrategy<f64>| prop::collection::vec(one, count.clone());
    prop_oneof![
        list(everyday.boxed()),
        list(mixed.clone().boxed()),
        list(mixed.boxed()).prop_map(|mut values| {
            let opposite: Vec<f64> = values.iter().skip(1).step_by(2).map(|v| -v).collect();
            let keep = values.len() - opposite.len();
            values.truncate(keep);
            values.extend(opposite);
            values
        }),
    ]
}

/// The exact sum of finite floats.
pub(super) fn rounded_sum(values: &[f64]) -> Exact {
    Exact::sum(values.iter().map(|value| Exact::float(*value)))
}

/// A natural number in base 2^32, least digit first, without zeros at the top.
#[derive(Clone, PartialEq, Eq)]
struct Big(Vec<u32>);

impl Big {
    fn new(digits: impl IntoIterator<Item = u32>) -> Big {
        let mut digits: Vec<u32> = digits.into_iter().collect();
        while digits.last() == Some(&0) {
            digits.pop();
        }
        Big(digits)
    }

    fn from(value: u64) -> Big {
        Big::new([value as u32, (value >> 32) as u32])
    }

    /// `2^power`.
    fn power(power: u32) -> Big {
        let mut digits = vec![0; (power / 32) as usize];
        digits.push(1 << (power % 32));
        Big(digits)
    }

    fn plus(&self, other: &Big) -> Big {
        let digit = |of: &Big, i: usize| u64::from(of.0.get(i).copied().unwrap_or(0));
        let mut carry = 0;
        Big::new((0..=self.0.len().max(other.0.len())).map(|i| {
            carry += digit(self, i) + digit(other, i);
            let low = carry as u32;
            carry >>= 32;
            low
        }))
    }

    fn minus(&self, other: &Big) -> Big {
        let digit = |of: &Big, i: usize| i64::from(of.0.get(i).copied().unwrap_or(0));
        let mut borrow = 0;
        Big::new((0..self.0.len()).map(|i| {
            let rest = digit(self, i) - digit(other, i) - borrow;
            borrow = i64::from(rest < 0);
            rest as u32
        }))
    }

    fn times(&self, other: &Big) -> Big {
        let mut digits = vec![0u32; self.0.len() + other.0.len() + 1];
        for (i, a) in self.0.iter().enumerate() {
            let mut carry = 0u64;
            for (j, digit) in digits[i..].iter_mut().enumerate() {
                carry += u64::from(*digit) + u64::from(*a) * u64::from(other.0.get(j).copied().unwrap_or(0));
                *digit = carry as u32;
                carry >>= 32;
            }
        }
        Big::new(digits)
    }

    fn compare(&self, other: &Big) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

/// `±numerator / (denominator * 2^scale)`.
#[derive(Clone)]
pub(super) struct Exact {
    negative: bool,
    numerator: Big,
    denominator: Big,
    scale: u32,
}

/// A float that is not negative, in units of 2^-1074; 2^1024 for infinity.
fn units(value: f64) -> Big {
    let bits = value.to_bits();
    let (field, fraction) = ((bits >> 52) as u32, bits & ((1 << 52) - 1));
    match field {
        0 => Big::from(fraction),
        _ => Big::from(fraction | 1 << 52).times(&Big::power(field - 1)),
    }
}

impl Exact {
    pub(super) fn int(value: i64) -> Exact {
        let numerator = Big::from(value.unsigned_abs());
        Exact { negative: value < 0, numerator, denominator: Big::from(1), scale: 0 }
    }

    pub(super) fn float(value: f64) -> Exact {
        let numerator = units(value.abs());
        Exact { negative: value < 0.0, numerator, denominator: Big::from(1), scale: 1074 }
    }

    /// The sum of numbers that have the same scale and no denominator yet.
    pub(super) fn sum(values: impl Iterator<Item = Exact>) -> Exact {
        values
            .reduce(|a, b| a.minus(&Exact { negative: !b.negative, ..b }))
            .unwrap_or_else(|| Exact::int(0))
    }

    pub(super) fn minus(&self, other: &Exact) -> Exact {
        assert_eq!(self.scale, other.scale);
        let (negative, numerator) = match (self.negative == other.negative, self.numerator.compare(&other.numerator)) {
            (false, _) => (self.negative, self.numerator.plus(&other.numerator)),
            (true, Ordering::Less) => (!self.negative, other.numerator.minus(&self.numerator)),
            (true, _) => (self.negative, self.numerator.minus(&other.numerator)),
        };
        Exact { negative, numerator, denominator: Big::from(1), scale: self.scale }
    }

    pub(super) fn squared(&self) -> Exact {
        let numerator = self.numerator.times(&self.numerator);
        Exact { negative: false, numerator, denominator: Big::from(1), scale: 2 * self.scale }
    }

    pub(super) fn over(&self, divisor: u64) -> Exact {
        Exact { denominator: self.denominator.times(&Big::from(divisor)), ..self.clone() }
    }

    /// Whether `value` is this number rounded to nearest, ties to even, with +0.0 for an exact zero.
    pub(super) fn is(&self, value: f64) -> bool {
        if self.numerator == Big::from(0) {
            return value.to_bits() == 0;
        }
        if value.is_nan() || value.is_sign_negative() != self.negative {
            return false;
        }
        // In units of 2^-1075 midpoints are whole numbers; both sides are multiplied by all that divides.
        let size = value.abs();
        let exact = self.numerator.times(&Big::power(1075));
        let against = |midpoint: Big| exact.compare(&midpoint.times(&self.denominator).times(&Big::power(self.scale)));
        let even = size.to_bits() & 1 == 0;
        let above = size == 0.0
            || match against(units(size).plus(&units(size.next_down()))) {
                Ordering::Greater => true,
                Ordering::Equal => even,
                Ordering::Less => false,
            };
        let below = size.is_infinite()
            || match against(units(size).plus(&units(size.next_up()))) {
                Ordering::Less => true,
                Ordering::Equal => even,
                Ordering::Greater => false,
            };
        above && below
    }
}

#[test]
fn the_oracle_knows_nearest_from_next() {
    for value in [1.0, -0.1, 5e-324, f64::MAX, -1e-310] {
        let exact = Exact::float(value);
        assert!(exact.is(value));
        assert!(!exact.is(value.next_up()) && !exact.is(value.next_down()) && !exact.is(-value));
        assert!(!exact.is(f64::NAN) && !exact.is(0.0));
    }
    assert!(Exact::int(1).over(3).is(1.0 / 3.0));
    assert!(Exact::int((1 << 53) + 1).is((1i64 << 53) as f64));
    assert!(Exact::int((1 << 53) + 3).is(((1i64 << 53) + 4) as f64));
    assert!(rounded_sum(&[f64::MAX, f64::MAX]).is(f64::INFINITY));
    assert!(rounded_sum(&[1.0, -1.0]).is(0.0) && !rounded_sum(&[1.0, -1.0]).is(-0.0));
}
