//! Digests: what a sink wrote, as three numbers for each range of event time.
//!
//! A [`Digest`] stands for a multiset of rows: how many there are, and two sums of a strong hash (XXH3, 128 bits) of the
//! bytes of each. Sums do not depend on the order of rows, nor on workers, batches and epochs, and can be subtracted: what a sink
//! wrote between two checkpoints is the later one's digest less the earlier one's. One sum is over the bytes alone, so that it can
//! be compared with rows that are read back without their event times; the other one counts the event time in. Two multisets that
//! differ have the same digest with a chance of 2^-128 (or 2^-64, if they differ in event times only); somebody who wants to can
//! make such multisets, so digests guard against mistakes, not against forgery.
//!
//! [`Digests`] divides event time into ranges: short ones where it is latest, longer ones further back, so that a job which has run
//! for years needs some two hundred. Ranges have 2^n seconds and begin at multiples of their length: two of them are disjoint, or one holds
//! the other. So any two divisions have a finest one that both can be brought to.
//!
//! **Units**: event time in microseconds; ranges in seconds. **Time**: a range `[from, to)` is closed below and open above.

use std::collections::BTreeMap;

use millstream_state::manifest::DigestEntry;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};
use crate::time::EventTime;

/// The length of the shortest ranges.
const UNIT_US: i64 = 1_000_000;

/// A range of this level is longer than all event time.
const MAX_LEVEL: u8 = 44;

/// How many ranges of each length are kept; the oldest beyond become longer ones.
const RANGES_A_LEVEL: usize = 8;

/// With so many ranges it is time to look for such.
const MANY: usize = 2048;

/// A multiset of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many rows.
    pub rows: u64,
    /// The sum of the hashes of their bytes.
    pub bytes: u64,
    /// The sum of the hashes of their bytes and event times.
    pub timed: u64,
}

impl Digest {
    /// One row.
    #[inline]
    pub fn of(bytes: &[u8], at: EventTime) -> Digest {
        let hash = xxh3_128(bytes);
        let timed = mix((hash >> 64) as u64 ^ (at.micros() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Digest { rows: 1, bytes: hash as u64, timed }
    }

    /// What [`bytes`](Self::bytes) is of one row.
    pub fn of_bytes(bytes: &[u8]) -> u64 {
        xxh3_128(bytes) as u64
    }

    /// Both multisets together.
    #[inline]
    #[must_use]
    pub fn plus(self, other: Digest) -> Digest {
        Digest {
            rows: self.rows.wrapping_add(other.rows),
            bytes: self.bytes.wrapping_add(other.bytes),
            timed: self.timed.wrapping_add(other.timed),
        }
    }

    /// What is left without `other`, which is a part of it.
    #[must_use]
    pub fn minus(self, other: Digest) -> Digest {
        Digest {
            rows: self.rows.wrapping_sub(other.rows),
            bytes: self.bytes.wrapping_sub(other.bytes),
            timed: self.timed.wrapping_sub(other.timed),
        }
    }
}

/// What rows are told apart by.
pub(crate) fn row_hash(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// Every bit of the result depends on every bit of `x`, and no two `x` have the same result (the finisher of MurmurHash3).
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// A range of event time: 2^`level` units, from unit `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    first: i64,
    level: u8,
}

impl TimeRange {
    /// The range of `level` that holds `unit`.
    fn around(unit: i64, level: u8) -> TimeRange {
        TimeRange { first: (unit >> level) << level, level }
    }

    fn last(self) -> i64 {
        self.first + ((1 << self.level) - 1)
    }

    /// Its first instant.
    pub fn from(self) -> EventTime {
        EventTime::from_micros(self.first.saturating_mul(UNIT_US))
    }

    /// The first instant after it.
    pub fn to(self) -> EventTime {
        EventTime::from_micros((self.last() + 1).saturating_mul(UNIT_US))
    }

    /// Whether an instant is in it.
    pub fn holds(self, at: EventTime) -> bool {
        (self.first..=self.last()).contains(&unit_of(at))
    }
}

fn unit_of(at: EventTime) -> i64 {
    at.micros().div_euclid(UNIT_US)
}

/// Digests by ranges of event time. See the module.
#[derive(Clone, Debug)]
pub struct Digests {
    /// By first unit, with the level. No two overlap.
    ranges: BTreeMap<i64, (u8, Digest)>,
    /// What was added last and is not yet among the ranges: rows of the same second mostly come together.
    recent: Digest,
    /// The first and last microsecond of the unit in which that is.
    within: (i64, i64),
}

impl Default for Digests {
    fn default() -> Self {
        Digests { ranges: BTreeMap::new(), recent: Digest::default(), within: (0, UNIT_US - 1) }
    }
}

impl Digests {
    /// Adds one row.
    #[inline]
    pub fn add(&mut self, at: EventTime, bytes: &[u8]) {
        let row = Digest::of(bytes, at);
        if self.within.0 <= at.micros() && at.micros() <= self.within.1 {
            self.recent = self.recent.plus(row);
        } else {
            self.settle();
            let start = i128::from(unit_of(at)) * i128::from(UNIT_US);
            let clamped = |us: i128| us.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
            self.within = (clamped(start), clamped(start + i128::from(UNIT_US) - 1));
            self.recent = row;
        }
    }

    #[cold]
    fn settle(&mut self) {
        let digest = std::mem::take(&mut self.recent);
        if digest != Digest::default() {
            self.add_range(TimeRange::around(self.within.0.div_euclid(UNIT_US), 0), digest);
            if self.ranges.len() > MANY {
                self.compact();
            }
        }
    }

    /// Adds what `range` has, to the range that holds it; where there are only shorter ones, they become one.
    fn add_range(&mut self, range: TimeRange, digest: Digest) {
        let before = self.ranges.range_mut(..=range.first).next_back();
        if let Some((first, (level, sum))) = before
            && (TimeRange { first: *first, level: *level }).last() >= range.last()
        {
            *sum = sum.plus(digest);
            return;
        }
        let inner: Vec<i64> = self.ranges.range(range.first..=range.last()).map(|(first, _)| *first).collect();
        let parts = inner.iter().filter_map(|first| self.ranges.remove(first));
        let sum = parts.fold(digest, |sum, (_, part)| sum.plus(part));
        self.ranges.insert(range.first, (range.level, sum));
    }

    /// Adds all that `other` has.
    pub fn plus(&mut self, other: &Digests) {
        self.settle();
        other.ranges().for_each(|(range, digest)| self.add_range(range, digest));
        self.compact();
    }

    /// Takes out all that `other` has, which is a part of it.
    pub fn minus(&mut self, other: &Digests) {
        self.settle();
        let negative = |digest| Digest::default().minus(digest);
        other.ranges().for_each(|(range, digest)| self.add_range(range, negative(digest)));
        self.ranges.retain(|_, (_, digest)| *digest != Digest::default());
    }

    /// Makes the oldest ranges longer where there are too many of a length.
    fn compact(&mut self) {
        for level in 0..MAX_LEVEL {
            let of_level = self.ranges.iter().filter(|(_, (own, _))| *own == level);
            let firsts: Vec<i64> = of_level.map(|(first, _)| *first).collect();
            for first in &firsts[..firsts.len().saturating_sub(RANGES_A_LEVEL)] {
                // It may have gone together with the one before.
                if self.ranges.get(first).is_some_and(|(own, _)| *own == level) {
                    self.add_range(TimeRange::around(*first, level + 1), Digest::default());
                }
            }
        }
    }

    /// All ranges in order, each with its digest.
    pub fn ranges(&self) -> impl Iterator<Item = (TimeRange, Digest)> + '_ {
        debug_assert!(self.recent == Digest::default(), "settled before it is read");
        self.ranges
            .iter()
            .map(|(first, (level, digest))| (TimeRange { first: *first, level: *level }, *digest))
    }

    /// Everything in one.
    pub fn total(&self) -> Digest {
        self.ranges().fold(Digest::default(), |sum, (_, digest)| sum.plus(digest))
    }

    /// Ready to be read.
    #[must_use]
    pub fn settled(mut self) -> Digests {
        self.settle();
        self.compact();
        self
    }

    /// Both, in the finest ranges that they can be brought to.
    pub fn side_by_side(&self, other: &Digests) -> Vec<(TimeRange, Digest, Digest)> {
        let along = |one: &Digests, other: &Digests| {
            let mut one = one.clone();
            other.ranges().for_each(|(range, _)| one.add_range(range, Digest::default()));
            one
        };
        let (left, right) = (along(self, other), along(other, self));
        left.ranges().zip(right.ranges()).map(|((range, left), (_, right))| (range, left, right)).collect()
    }

    /// As it stands in a manifest; they count from the end of epoch `since`.
    pub fn to_entry(&self, since: u64) -> DigestEntry {
        let line = |(range, digest): (TimeRange, Digest)| {
            let TimeRange { first, level } = range;
            format!("{first} {level} {} {:016x} {:016x}", digest.rows, digest.bytes, digest.timed)
        };
        DigestEntry { since, unit_us: UNIT_US, ranges: self.ranges().map(line).collect() }
    }

    /// The way back.
    ///
    /// # Errors
    /// When it is not what [`to_entry`](Self::to_entry) writes.
    pub fn from_entry(entry: &DigestEntry) -> Result<Digests> {
        let wrong = |what: String| Error::state(format!("the checkpoint's digests do not read: {what}"));
        if entry.unit_us != UNIT_US {
            return Err(wrong(format!("their unit is {} us and not {UNIT_US}", entry.unit_us)));
        }
        let mut digests = Digests::default();
        let mut end = i64::MIN;
        for line in &entry.ranges {
            let (range, digest) = parse(line).ok_or_else(|| wrong(format!("`{}`", line.escape_debug())))?;
            if range.first <= end {
                return Err(wrong(format!("`{line}` is out of place")));
            }
            end = range.last();
            digests.ranges.insert(range.first, (range.level, digest));
        }
        Ok(digests)
    }
}

fn parse(line: &str) -> Option<(TimeRange, Digest)> {
    let mut words = line.split(' ');
    let (first, level) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let rows = words.next()?.parse().ok()?;
    let mut sum = || u64::from_str_radix(words.next()?, 16).ok();
    let digest = Digest { rows, bytes: sum()?, timed: sum()? };
    let (least, most) = (unit_of(EventTime::MIN), unit_of(EventTime::MAX));
    let fits = level <= MAX_LEVEL && first <= most && first >= (least >> MAX_LEVEL) << MAX_LEVEL;
    let range = fits.then(|| TimeRange::around(first, level))?;
    (range.first == first && words.next().is_none()).then_some((range, digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = (EventTime, Vec<u8>)> {
        let second = 1_000_000i64;
        let at = prop_oneof![
            4 => 0..40 * second,
            4 => 0..100_000 * second,
            1 => any::<i64>(),
            1 => prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(-1), Just(0)],
        ];
        (at.prop_map(EventTime::from_micros), prop::collection::vec(0..4u8, 0..3))
    }

    fn rows(most: usize) -> impl Strategy<Value = Vec<(EventTime, Vec<u8>)>> {
        prop::collection::vec(row(), 0..most)
    }

    fn digests<'a>(rows: impl IntoIterator<Item = &'a (EventTime, Vec<u8>)>) -> Digests {
        let mut digests = Digests::default();
        rows.into_iter().for_each(|(at, bytes)| digests.add(*at, bytes));
        digests.settled()
    }

    /// What the digest of a range must be.
    fn directly<'a>(rows: impl IntoIterator<Item = &'a (EventTime, Vec<u8>)>, range: TimeRange) -> Digest {
        let within = rows.into_iter().filter(|(at, _)| range.holds(*at));
        within.fold(Digest::default(), |sum, (at, bytes)| sum.plus(Digest::of(bytes, *at)))
    }

    fn is_sound(digests: &Digests) -> bool {
        let ranges: Vec<TimeRange> = digests.ranges().map(|(range, _)| range).collect();
        let aligned = ranges.iter().all(|range| TimeRange::around(range.first, range.level) == *range);
        aligned && ranges.windows(2).all(|two| two[0].last() < two[1].first)
    }

    proptest! {
        #[test]
        fn every_range_has_the_digest_of_its_rows(rows in rows(400)) {
            let digests = digests(&rows);
            prop_assert!(is_sound(&digests));
            for (range, digest) in digests.ranges() {
                prop_assert_eq!(digest, directly(&rows, range));
            }
            prop_assert_eq!(digests.total().rows, rows.len() as u64);
            for level in 0..=MAX_LEVEL {
                let of_level = digests.ranges().filter(|(range, _)| range.level == level).count();
                prop_assert!(of_level <= RANGES_A_LEVEL, "{} of level {}", of_level, level);
            }
        }

        #[test]
        fn neither_order_nor_division_matters(rows in rows(200), seed: u64, cuts in prop::collection::vec(0usize..200, 0..4)) {
            let mut shuffled = rows.clone();
            shuffled.sort_by_key(|(at, bytes)| Digest::of(bytes, *at).timed ^ seed);
            let mut pieces = Digests::default();
            let mut rest = &shuffled[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.plus(&digests(piece));
                rest = after;
            }
            pieces.plus(&digests(rest));
            for (range, left, right) in pieces.side_by_side(&digests(&rows)) {
                prop_assert_eq!(left, right);
                prop_assert_eq!(left, directly(&rows, range));
            }
        }

        #[test]
        fn what_was_added_can_be_taken_out(before in rows(200), after in rows(200)) {
            let earlier = digests(&before);
            let mut later = earlier.clone();
            later.plus(&digests(&after));
            later.minus(&earlier);
            prop_assert!(is_sound(&later));
            prop_assert_eq!(later.total().rows, after.len() as u64);
            for (range, left, right) in later.side_by_side(&digests(&after)) {
                prop_assert_eq!(left, right);
                prop_assert_eq!(right, directly(&after, range));
            }
        }

        #[test]
        fn one_row_more_less_or_other_is_seen(rows in rows(50), other in row(), at: prop::sample::Index, kind in 0..3u8) {
            let mut changed = rows.clone();
            match kind {
                0 => changed.insert(at.index(rows.len() + 1), other),
                1 if !rows.is_empty() => drop(changed.remove(at.index(rows.len()))),
                _ if !rows.is_empty() => changed[at.index(rows.len())] = other,
                _ => {}
            }
            let same = {
                let sorted = |rows: &[(EventTime, Vec<u8>)]| { let mut rows = rows.to_vec(); rows.sort(); rows };
                sorted(&rows) == sorted(&changed)
            };
            let compared = digests(&rows).side_by_side(&digests(&changed));
            prop_assert_eq!(compared.iter().all(|(_, left, right)| left == right), same);
        }

        #[test]
        fn entries_read_back(rows in rows(200), since: u64) {
            let digests = digests(&rows);
            let back = Digests::from_entry(&digests.to_entry(since)).unwrap();
            prop_assert_eq!(back.ranges, digests.ranges);
        }

        #[test]
        fn no_text_is_a_panic(lines in prop::collection::vec("[-0-9a-f ]{0,60}", 0..4)) {
            let _ = Digests::from_entry(&DigestEntry { since: 0, unit_us: UNIT_US, ranges: lines });
        }
    }

    #[test]
    fn wrong_entries_are_named() {
        let read = |unit_us, lines: &[&str]| {
            let ranges = lines.iter().map(ToString::to_string).collect();
            Digests::from_entry(&DigestEntry { since: 0, unit_us, ranges }).unwrap_err().to_string()
        };
        assert!(read(5, &[]).contains("unit is 5"));
        for line in ["", "1 1 1 0 0", "0 45 1 0 0", "0 0 1 0", "0 0 1 0 0 0", "9223372036854775807 0 1 0 0"] {
            assert!(read(UNIT_US, &[line]).contains(line), "{line}");
        }
        assert!(read(UNIT_US, &["0 3 1 0 0", "4 0 1 0 0"]).contains("out of place"));
    }

    #[test]
    fn a_year_of_seconds_needs_two_hundred_ranges() {
        let mut digests = Digests::default();
        (0..366 * 86_400).step_by(61).for_each(|second| digests.add(EventTime::from_secs(second), b"row"));
        let digests = digests.settled();
        let ranges = digests.ranges().count();
        assert!(ranges < 220, "{ranges}");
        let bytes: usize = digests.to_entry(0).ranges.iter().map(String::len).sum();
        assert!(bytes < 13_000, "{bytes}");
        // The latest are as short as can be.
        assert_eq!(digests.ranges().last().map(|(range, _)| range.level), Some(0));
    }
}
