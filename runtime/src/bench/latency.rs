//! Latencies as one sink records them: a distribution of the whole run, and one of each second of it.
//!
//! Each worker thread has its own, so recording takes no lock; they are merged when the run is over. A second of the run
//! is found by when a result was complete, counted from the start. The second at hand is an array of counts, which is all
//! that recording touches; one that is over is packed to a few kilobytes.
//!
//! **Units**: nanoseconds, see [`Distribution`]; seconds of the run count from 0. **Time**: the wall clock, monotonic.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::distribution::{Distribution, Percentiles, Stored};
use super::tally::{Packed, Tally};

/// The length of one part of a run that has a distribution of its own.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Latencies of a run, as a whole and by second.
///
/// ```
/// use millstream_runtime::bench::Latencies;
///
/// let mut latencies = Latencies::new();
/// // 500 results were complete 1.2 s from the start, 3 ms after they were due.
/// latencies.record(1_200_000_000, 3_000_000, 500);
/// assert_eq!(latencies.percentiles().max_ns, 3_000_000);
/// assert_eq!(latencies.seconds().map(|(second, of)| (second, of.count())).collect::<Vec<_>>(), [(1, 500)]);
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Vec<(u64, Stored)>", try_from = "Vec<(u64, Stored)>")]
pub struct Latencies {
    /// The second at hand begins here.
    from_ns: u64,
    /// What was recorded in it.
    now: Tally,
    /// The seconds that are over. When the clock goes back, the second at hand may be among them as well.
    over: BTreeMap<u64, Packed>,
    buffer: Vec<u8>,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies::new()
    }
}

impl Latencies {
    /// Nothing yet. It takes 270 KB, and then a few kilobytes for each second.
    pub fn new() -> Latencies {
        Latencies { from_ns: 0, now: Tally::new(), over: BTreeMap::new(), buffer: Vec::new() }
    }

    /// Adds `count` results that were complete `at_ns` from the start, each `latency_ns` after it was due. Costs a few
    /// nanoseconds, and some tens of microseconds once a second.
    #[inline]
    pub fn record(&mut self, at_ns: u64, latency_ns: u64, count: u64) {
        if at_ns.wrapping_sub(self.from_ns) >= SECOND_NS {
            self.turn_to(at_ns / SECOND_NS);
        }
        self.now.record(latency_ns, count);
    }

    /// Makes `second` the one at hand.
    #[cold]
    fn turn_to(&mut self, second: u64) {
        let before = self.from_ns / SECOND_NS;
        if self.now.count() > 0 {
            if let Some(packed) = self.over.get(&before) {
                self.now.unpack(packed);
            }
            self.over.insert(before, self.now.pack(&mut self.buffer));
            self.now.clear();
        }
        self.from_ns = second.saturating_mul(SECOND_NS);
    }

    /// Adds all that another worker recorded in the same run.
    pub fn merge(&mut self, other: &Latencies) {
        self.append(other, 0);
    }

    /// Adds what another run recorded, with its second 0 put at second `from` of this one.
    pub fn append(&mut self, other: &Latencies, from: u64) {
        for (second, packed) in other.packed() {
            self.turn_to(from + second);
            self.now.unpack(&packed);
        }
    }

    /// The same without what was complete in the first `seconds`. The others keep their numbers.
    #[must_use]
    pub fn without_first(&self, seconds: u64) -> Latencies {
        Latencies { over: self.packed().filter(|(second, _)| *second >= seconds).collect(), ..Latencies::new() }
    }

    /// How many results.
    pub fn count(&self) -> u64 {
        self.now.count() + self.over.values().map(Packed::count).sum::<u64>()
    }

    /// All of the run.
    pub fn total(&self) -> Distribution {
        let mut total = Distribution::new();
        self.over.values().for_each(|packed| packed.add_to(&mut total));
        self.now.add_to(&mut total);
        total
    }

    /// The usual figures of the whole run.
    pub fn percentiles(&self) -> Percentiles {
        self.total().percentiles()
    }

    /// The last second in which a result was complete.
    pub fn last_second(&self) -> Option<u64> {
        let now = (self.now.count() > 0).then_some(self.from_ns / SECOND_NS);
        now.max(self.over.keys().next_back().copied())
    }

    /// Every second in which a result was complete, in order.
    pub fn seconds(&self) -> impl Iterator<Item = (u64, Distribution)> + '_ {
        self.packed().map(|(second, packed)| {
            let mut all = Distribution::new();
            packed.add_to(&mut all);
            (second, all)
        })
    }

    /// The same, packed, the second at hand among them.
    fn packed(&self) -> impl Iterator<Item = (u64, Packed)> + use<> {
        let mut over = self.over.clone();
        if self.now.count() > 0 {
            let (second, mut now) = (self.from_ns / SECOND_NS, self.now.clone());
            if let Some(before) = over.get(&second) {
                now.unpack(before);
            }
            over.insert(second, now.pack(&mut Vec::new()));
        }
        over.into_iter()
    }
}

impl PartialEq for Latencies {
    fn eq(&self, other: &Self) -> bool {
        self.packed().eq(other.packed())
    }
}

impl From<Latencies> for Vec<(u64, Stored)> {
    fn from(from: Latencies) -> Self {
        from.seconds().map(|(second, distribution)| (second, distribution.into())).collect()
    }
}

impl TryFrom<Vec<(u64, Stored)>> for Latencies {
    type Error = String;

    fn try_from(stored: Vec<(u64, Stored)>) -> Result<Latencies, String> {
        let mut made = Latencies::new();
        for (second, distribution) in stored {
            let distribution = Distribution::try_from(distribution)?;
            made.turn_to(second);
            made.now.add_all(&distribution);
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn each_second_has_its_own_distribution() {
        let mut all = Latencies::new();
        all.record(0, MS, 10);
        all.record(SECOND_NS - 1, 3 * MS, 1);
        all.record(5 * SECOND_NS, 7 * MS, 2);
        assert_eq!((all.count(), all.percentiles().max_ns, all.percentiles().p50_ns / 10_000), (13, 7 * MS, 100));
        let seconds: Vec<_> = all.seconds().map(|(s, of)| (s, of.count(), of.percentiles().max_ns)).collect();
        assert_eq!(seconds, [(0, 11, 3 * MS), (5, 2, 7 * MS)]);
        let later = all.without_first(1);
        assert_eq!((later.count(), later.seconds().next().map(|(second, _)| second)), (2, Some(5)));
    }

    #[test]
    fn a_run_can_be_put_behind_another() {
        let mut all = Latencies::new();
        all.record(2 * SECOND_NS, MS, 1);
        let mut next = Latencies::new();
        next.record(0, 9 * MS, 1);
        next.record(SECOND_NS, 5 * MS, 1);
        all.append(&next, 3);
        let seconds: Vec<_> = all.seconds().map(|(second, of)| (second, of.percentiles().max_ns)).collect();
        assert_eq!(seconds, [(2, MS), (3, 9 * MS), (4, 5 * MS)]);
        assert_eq!(all.percentiles().max_ns, 9 * MS);
    }

    proptest! {
        #[test]
        fn workers_merge_to_what_one_would_have_recorded(
            records in prop::collection::vec((0..8_000_u64, 0..u64::MAX / 2, 1..5_u64), 0..60),
        ) {
            let (mut one, mut workers) = (Latencies::new(), [Latencies::new(), Latencies::new()]);
            let mut total = Distribution::new();
            for (n, (at_ms, ns, count)) in records.iter().enumerate() {
                // In any order: a clock may go back.
                one.record(at_ms * MS, *ns, *count);
                workers[n % 2].record(at_ms * MS, *ns, *count);
                total.record(*ns, *count);
            }
            let [mut merged, other] = workers;
            merged.merge(&other);
            prop_assert_eq!(&merged, &one);
            prop_assert_eq!(&one.total(), &total);
            let by_second: u64 = one.seconds().map(|(_, of)| of.count()).sum();
            prop_assert_eq!(by_second, total.count());
            let back: Latencies = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
            let same = |(second, of): (u64, Distribution)| (second, Percentiles { mean_ns: 0.0, ..of.percentiles() });
            prop_assert!(back.seconds().map(same).eq(one.seconds().map(same)));
        }
    }
}
