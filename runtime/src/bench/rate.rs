//! How many events per second, exactly.
//!
//! **Units**: millionths of an event per second, as an integer. A rate that a person can type has no rounding, so a
//! schedule made from it does not drift, and what is printed reads back as the same rate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The suffixes of a rate from large to small, in events per second.
const SUFFIXES: [(char, u64); 3] = [('G', 1_000_000_000), ('M', 1_000_000), ('k', 1_000)];

/// The highest rate, in millionths of an event per second: a million million events.
const HIGHEST: u64 = 1_000_000_000_000_000_000;

/// A number of events per second.
///
/// Displays and parses as `100`, `2.5`, `100k`, `1.5M`, `2G`; underscores between digits are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(u64);

impl Rate {
    /// No events at all.
    pub const ZERO: Rate = Rate(0);
    /// One event per second, in [`millionths`](Self::millionths).
    pub const ONE: u64 = 1_000_000;

    /// `events` per second, rounded to a millionth of an event; at least 0, and at most a million million.
    pub fn per_second(events: f64) -> Rate {
        // A float that is not a number becomes 0.
        Rate(((events * Rate::ONE as f64).round() as u64).min(HIGHEST))
    }

    /// Events per second, as close as a float can say it.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Rate::ONE as f64
    }

    /// Millionths of an event per second.
    pub const fn millionths(self) -> u64 {
        self.0
    }

    /// Whether there are no events at all.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&(_, factor): &(char, u64)| self.0 >= factor * Rate::ONE;
        let (suffix, factor) = SUFFIXES.into_iter().find(fits).map_or((None, 1), |(s, factor)| (Some(s), factor));
        let unit = factor * Rate::ONE;
        write!(f, "{}", self.0 / unit)?;
        let fraction = self.0 % unit;
        if fraction > 0 {
            let digits = format!("{fraction:0width$}", width = unit.ilog10() as usize);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let wrong = || format!("`{text}` is not a rate; give events per second like 100000, 100k, 1.5M or 0.5");
        let text = text.trim();
        let suffix = SUFFIXES.into_iter().find(|(suffix, _)| text.ends_with(*suffix));
        let (number, factor) = suffix.map_or((text, 1), |(_, factor)| (&text[..text.len() - 1], factor));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits: String = whole.chars().chain(fraction.chars()).filter(|c| *c != '_').collect();
        let places = fraction.chars().filter(|c| *c != '_').count() as u32;
        if whole.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) || places > 15 {
            return Err(wrong());
        }
        let digits: u128 = digits.parse().map_err(|_| wrong())?;
        let millionths = digits.checked_mul(u128::from(factor * Rate::ONE)).ok_or_else(wrong)?;
        let scale = 10_u128.pow(places);
        if !millionths.is_multiple_of(scale) {
            return Err(format!("`{text}` is finer than a millionth of an event per second"));
        }
        if millionths / scale > u128::from(HIGHEST) {
            return Err(format!("`{text}` is more than a million million events per second"));
        }
        Ok(Rate((millionths / scale) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_parse_as_people_write_them() {
        for (text, millionths) in [
            ("100000", 100_000_000_000),
            ("100_000", 100_000_000_000),
            ("100k", 100_000_000_000),
            ("1.5M", 1_500_000_000_000),
            ("2G", 2_000_000_000_000_000),
            ("0.5", 500_000),
            ("0.000001", 1),
            ("0", 0),
            ("1.2345678k", 1_234_567_800),
        ] {
            assert_eq!(text.parse(), Ok(Rate(millionths)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_quoted() {
        for wrong in ["", "k", "-5", "1e5", "10x", "1.2.3", ".5", "0.0000001", "1000000G", "٣", "1/s"] {
            let error = wrong.parse::<Rate>().unwrap_err();
            assert!(error.contains(wrong), "{wrong}: {error}");
        }
    }

    #[test]
    fn floats_round_and_saturate() {
        assert_eq!(Rate::per_second(0.1).millionths(), 100_000);
        assert_eq!(Rate::per_second(-1.0), Rate::ZERO);
        assert_eq!(Rate::per_second(f64::NAN), Rate::ZERO);
        assert_eq!(Rate::per_second(f64::INFINITY).to_string(), "1000G");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(millionths in 0..=HIGHEST, zeros in 0..18_u32) {
            let rate = Rate(millionths / 10_u64.pow(zeros) * 10_u64.pow(zeros));
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
