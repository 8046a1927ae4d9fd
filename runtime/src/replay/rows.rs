//! Which rows only one of two outputs has.
//!
//! Rows are compared as multisets of bytes, by their hashes: one pass over both outputs counts them up and down, another one
//! fetches the few that are left over. Memory is bounded by doing that for a part of all hashes at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::RangeInclusive;

use crate::digest::{Digest, TimeRange, row_hash};
use crate::error::Result;
use crate::moment::Epoch;
use crate::sink::{Stored, StoredRow};
use crate::time::EventTime;

/// How many different rows are counted at a time; 32 bytes each or so.
const AT_A_TIME: u64 = 8 << 20;

/// How many rows that only one side has are kept.
const KEPT: usize = 10_000;

/// One of two outputs.
pub(crate) struct Side<'a> {
    pub stored: &'a dyn Stored,
    pub epochs: RangeInclusive<Epoch>,
    /// Handles of what may still be as it was prepared.
    pub prepared: &'a [String],
}

impl Side<'_> {
    fn rows(&self, each: &mut dyn FnMut(StoredRow<'_>) -> Result<()>) -> Result<()> {
        self.stored.rows(self.epochs.clone(), self.prepared, each)
    }

    /// How many rows there are, and the sum of the hashes of their bytes.
    pub(crate) fn total(&self) -> Result<(u64, u64)> {
        let mut total = (0, 0u64);
        self.rows(&mut |row| {
            total = (total.0 + 1, total.1.wrapping_add(Digest::of_bytes(row.bytes)));
            Ok(())
        })?;
        Ok(total)
    }
}

/// A row that the other side does not have, or not as often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddRow {
    /// When it happened, where that is known.
    pub at: Option<EventTime>,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// Its bytes as text.
    pub text: String,
    /// Its fields, as far as they have names.
    pub fields: Vec<(String, String)>,
    hash: u64,
}

/// By event time and then bytes, which are the same in every run; only where event times are not known, by epoch.
impl Ord for OddRow {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |row: &OddRow| (row.at, if row.at.is_none() { row.epoch } else { 0 });
        let rest = |row: &OddRow| (row.hash, row.epoch);
        let by_text = key(self).cmp(&key(other)).then_with(|| self.text.cmp(&other.text));
        by_text.then_with(|| self.fields.cmp(&other.fields)).then_with(|| rest(self).cmp(&rest(other)))
    }
}

impl PartialOrd for OddRow {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for OddRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What only one side has.
#[derive(Debug, Default)]
pub(crate) struct Odd {
    /// How many.
    pub count: u64,
    /// The first of them, by event time and then bytes; where event times are not known, by epoch.
    pub first: BTreeSet<OddRow>,
    /// What stands in front of rows on this side, such as the header of a CSV file.
    pub heads: BTreeSet<String>,
    /// How many rows there are on this side at all.
    pub rows: u64,
}

/// Compares two outputs; `rows` is about how many there are.
pub(crate) fn compare(left: &Side<'_>, right: &Side<'_>, rows: u64) -> Result<(Odd, Odd)> {
    let (mut only_left, mut only_right) = (Odd::default(), Odd::default());
    let parts = u128::from(rows / AT_A_TIME + 1);
    for part in 0..parts {
        let mut counts: HashMap<u128, i64> = HashMap::new();
        for (side, odd, one) in [(left, &mut only_left, 1), (right, &mut only_right, -1)] {
            side.rows(&mut |row| {
                if part == 0 {
                    odd.rows += 1;
                    note_head(&mut odd.heads, row.head);
                }
                let hash = row_hash(row.bytes);
                if hash % parts == part {
                    *counts.entry(hash).or_default() += one;
                }
                Ok(())
            })?;
        }
        counts.retain(|_, count| *count != 0);
        if counts.is_empty() {
            continue;
        }
        for (side, odd, one) in [(left, &mut only_left, 1), (right, &mut only_right, -1)] {
            side.rows(&mut |row| {
                let hash = row_hash(row.bytes);
                if let Some(count) = counts.get_mut(&hash).filter(|count| count.signum() == one) {
                    *count -= one;
                    odd.count += 1;
                    odd.keep(side.stored, row, hash);
                }
                Ok(())
            })?;
        }
    }
    Ok((only_left, only_right))
}

/// There is one, or one before and one after a change of the program.
fn note_head(heads: &mut BTreeSet<String>, head: &[u8]) {
    if !head.is_empty() && heads.len() < 16 {
        let head = String::from_utf8_lossy(head);
        if !heads.contains(&*head) {
            heads.insert(head.into_owned());
        }
    }
}

impl Odd {
    fn keep(&mut self, stored: &dyn Stored, row: StoredRow<'_>, hash: u128) {
        let kept = OddRow {
            at: row.at,
            epoch: row.epoch,
            text: String::from_utf8_lossy(row.bytes).into_owned(),
            fields: stored.fields(row.head, row.bytes),
            hash: hash as u64,
        };
        // The same row several times differs in nothing; one of them is enough to be shown.
        self.first.insert(kept);
        if self.first.len() > KEPT {
            self.first.pop_last();
        }
    }

    /// Whether all of them are there to be looked at.
    fn is_whole(&self) -> bool {
        self.first.len() as u64 == self.count
    }
}

/// The first row in which two outputs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstDifference {
    /// When, as closely as it is known.
    pub at: Option<EventTime>,
    /// In which range of event time, where that is known.
    pub range: Option<(EventTime, EventTime)>,
    /// The row as it was written first, if there is one.
    pub original: Option<OddRow>,
    /// The row as it is in the replay, if there is one. Where both are there, they have the most fields in common of all.
    pub replay: Option<OddRow>,
}

/// Finds the first difference in the `ranges` that differ, each with its digests in the original and in the replay.
pub(crate) fn first_difference(
    original: &Odd,
    replay: &Odd,
    ranges: &[(TimeRange, Digest, Digest)],
) -> Option<FirstDifference> {
    for (range, theirs, ours) in ranges {
        let mut here = replay.first.iter().filter(|row| row.at.is_some_and(|at| range.holds(at)));
        let first = here.clone().next();
        // Rows of the original do not say when they happened. But the range says how many it has that the replay has not, and
        // what their hashes amount to: if it is one, it is known by its hash.
        let (count, hashes) = here.by_ref().fold((0u64, 0u64), |(n, sum), row| (n + 1, sum.wrapping_add(row.hash)));
        let missing = theirs.minus(*ours);
        let only = missing.rows.wrapping_add(count) == 1 && replay.is_whole();
        let hash = missing.bytes.wrapping_add(hashes);
        let located = only.then(|| original.first.iter().find(|row| row.hash == hash)).flatten();
        let found = |original: Option<&OddRow>, replay: Option<&OddRow>| {
            Some(FirstDifference {
                at: replay.and_then(|row| row.at),
                range: Some((range.from(), range.to())),
                original: original.cloned(),
                replay: replay.cloned(),
            })
        };
        match (first, located) {
            (Some(row), None) => return found(partner(row, &original.first), Some(row)),
            (Some(row), Some(theirs)) => {
                // The one that the replay lacks may belong to another of its rows than the first.
                let like = here_like(theirs, replay, *range).unwrap_or(row);
                let pair = if like == row { Some(theirs) } else { partner(row, &original.first) };
                return found(pair, Some(row));
            }
            (None, Some(theirs)) => return found(Some(theirs), None),
            (None, None) => {}
        }
    }
    // It is known that there is a difference, but not when it happened.
    let (theirs, ours) = (original.first.first(), replay.first.first());
    let pair = ours.and_then(|row| partner(row, &original.first)).or(theirs);
    (theirs.is_some() || ours.is_some()).then(|| FirstDifference {
        at: ours.and_then(|row| row.at),
        range: None,
        original: pair.cloned(),
        replay: ours.cloned(),
    })
}

fn here_like<'a>(row: &OddRow, replay: &'a Odd, range: TimeRange) -> Option<&'a OddRow> {
    let here = replay.first.iter().filter(|other| other.at.is_some_and(|at| range.holds(at)));
    most_alike(row, here)
}

/// The row on the other side that is most like this one, if any is.
fn partner<'a>(row: &OddRow, others: &'a BTreeSet<OddRow>) -> Option<&'a OddRow> {
    most_alike(row, others.iter())
}

fn most_alike<'a>(row: &OddRow, others: impl Iterator<Item = &'a OddRow>) -> Option<&'a OddRow> {
    let fields: BTreeMap<&str, &str> = row.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let alike = |other: &OddRow| {
        other
            .fields
            .iter()
            .filter(|(name, value)| fields.get(name.as_str()) == Some(&value.as_str()))
            .count()
    };
    let mut best: Option<(usize, &OddRow)> = None;
    for other in others {
        let alike = alike(other);
        if alike > best.map_or(0, |(most, _)| most) {
            best = Some((alike, other));
        }
    }
    best.map(|(_, other)| other)
}

impl fmt::Display for FirstDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "first difference")?;
        match (self.at, self.range) {
            (Some(at), _) => write!(f, ", at {at}")?,
            (None, Some((from, to))) => write!(f, ", between {from} and {to}")?,
            (None, None) => {}
        }
        let (Some(original), Some(replay)) = (&self.original, &self.replay) else {
            let (side, row) = match (&self.original, &self.replay) {
                (Some(row), _) => ("the original", row),
                (_, Some(row)) => ("the replay", row),
                _ => return Ok(()),
            };
            return write!(f, ": a row that only {side} has\n      {}", shown(&row.fields, |_| true));
        };
        let same = |field: &(String, String)| replay.fields.contains(field);
        write!(f, ": the row with {}", shown(&original.fields, same))?;
        for (name, value) in original.fields.iter().filter(|field| !same(field)) {
            match replay.fields.iter().find(|(other, _)| other == name) {
                Some((_, other)) => {
                    write!(f, "\n      {name}: {} in the original, {} in the replay", safe(value), safe(other))?;
                }
                None => write!(f, "\n      {name}: {} in the original only", safe(value))?,
            }
        }
        let known = |name: &String| original.fields.iter().any(|(other, _)| other == name);
        for (name, value) in replay.fields.iter().filter(|(name, _)| !known(name)) {
            write!(f, "\n      {name}: {} in the replay only", safe(value))?;
        }
        Ok(())
    }
}

fn shown(fields: &[(String, String)], wanted: impl Fn(&(String, String)) -> bool) -> String {
    let shown = fields.iter().filter(|field| wanted(field)).map(|(name, value)| format!("{name} {}", safe(value)));
    shown.collect::<Vec<_>>().join(", ")
}

/// Output may hold anything that a terminal would obey.
pub(super) fn safe(text: &str) -> String {
    let short: String = text.chars().take(200).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", short.escape_debug().to_string().replace("\\\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows `key=value` with their seconds.
    struct Memory(Vec<(i64, String)>);

    impl Stored for Memory {
        fn rows(
            &self,
            _epochs: RangeInclusive<Epoch>,
            _prepared: &[String],
            each: &mut dyn FnMut(StoredRow<'_>) -> Result<()>,
        ) -> Result<()> {
            for (second, text) in &self.0 {
                let at = Some(EventTime::from_secs(*second)).filter(|_| *second >= 0);
                each(StoredRow { epoch: 1, at, head: b"", bytes: text.as_bytes() })?;
            }
            Ok(())
        }

        fn fields(&self, _head: &[u8], bytes: &[u8]) -> Vec<(String, String)> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.split(' ').filter_map(|pair| pair.split_once('=')).map(|(a, b)| (a.into(), b.into())).collect()
        }
    }

    fn odd(left: &Memory, right: &Memory, rows: u64) -> (Odd, Odd) {
        let side = |stored| Side { stored, epochs: 0..=9, prepared: &[] };
        compare(&side(left), &side(right), rows).unwrap()
    }

    fn memory(rows: &[(i64, &str)]) -> Memory {
        Memory(rows.iter().map(|(second, text)| (*second, text.to_string())).collect())
    }

    proptest! {
        #[test]
        fn as_multisets(left in prop::collection::vec(0..20u8, 0..40), right in prop::collection::vec(0..20u8, 0..40), parts in 0..4u64) {
            let memory = |rows: &[u8]| Memory(rows.iter().map(|row| (0, format!("n={row}"))).collect());
            let (only_left, only_right) = odd(&memory(&left), &memory(&right), parts * AT_A_TIME);
            let naive = |mine: &[u8], other: &[u8]| {
                let mut rest = other.to_vec();
                let left: Vec<u8> = mine.iter().copied().filter(|row| match rest.iter().position(|x| x == row) {
                    Some(place) => { rest.remove(place); false }
                    None => true,
                }).collect();
                left
            };
            for (odd, mine, other) in [(only_left, &left, &right), (only_right, &right, &left)] {
                let naive = naive(mine, other);
                prop_assert_eq!(odd.count, naive.len() as u64);
                prop_assert_eq!(odd.rows, mine.len() as u64);
                let texts: BTreeSet<String> = naive.iter().map(|row| format!("n={row}")).collect();
                prop_assert_eq!(odd.first.into_iter().map(|row| row.text).collect::<BTreeSet<_>>(), texts);
            }
        }
    }

    /// What is found first when the original wrote these rows and the replay those.
    fn first(original: &[(i64, &str)], replay: &[(i64, &str)]) -> FirstDifference {
        let digests = |rows: &[(i64, &str)]| {
            let mut digests = crate::digest::Digests::default();
            rows.iter().for_each(|(second, text)| digests.add(EventTime::from_secs(*second), text.as_bytes()));
            digests.settled()
        };
        let mut ranges = digests(original).side_by_side(&digests(replay));
        ranges.retain(|(_, theirs, ours)| theirs != ours);
        let untimed: Vec<(i64, &str)> = original.iter().map(|(_, text)| (-1, *text)).collect();
        let (theirs, ours) = odd(&memory(&untimed), &memory(replay), 0);
        first_difference(&theirs, &ours, &ranges).unwrap()
    }

    #[test]
    fn a_row_with_another_value_is_found_with_its_key() {
        let found =
            first(&[(1, "k=a n=1"), (2, "k=b n=2"), (3, "k=c n=9")], &[(1, "k=a n=1"), (2, "k=b n=3"), (3, "k=c n=8")]);
        assert_eq!(found.at, Some(EventTime::from_secs(2)));
        let text = found.to_string();
        assert!(text.contains("the row with k b"), "{text}");
        assert!(text.contains("n: 2 in the original, 3 in the replay"), "{text}");
    }

    #[test]
    fn a_row_that_is_missing_is_found_in_its_range() {
        let found = first(&[(1, "k=a n=1"), (70, "k=z n=2"), (80, "k=b n=2")], &[(1, "k=a n=1"), (80, "k=b n=3")]);
        assert_eq!(found.original.as_ref().map(|row| row.text.as_str()), Some("k=z n=2"));
        assert_eq!((found.at, found.replay.is_none()), (None, true));
        assert_eq!(found.range, Some((EventTime::from_secs(70), EventTime::from_secs(71))));
        assert!(found.to_string().contains("only the original has"), "{found}");
        let found = first(&[(1, "k=a n=1")], &[(1, "k=a n=1"), (0, "k=b n=3")]);
        assert!(found.to_string().contains("only the replay has"), "{found}");
    }

    #[test]
    fn a_terminal_is_safe_from_rows() {
        assert_eq!(safe("a\u{1b}[2J\"b\""), "a\\u{1b}[2J\"b\"");
        assert_eq!(safe(&"x".repeat(300)).chars().count(), 201);
    }
}
