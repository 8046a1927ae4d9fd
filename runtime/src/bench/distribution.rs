//! How values of time are distributed: a histogram with three significant digits, and what people ask of it.
//!
//! The counts are kept by `hdrhistogram`; the greatest value and the sum are kept beside it, exactly. A value above
//! [`HIGHEST_NS`] counts as that much, and how many did is counted.
//!
//! **Units**: nanoseconds, from 1 ns to 1 h. A percentile is the upper end of the histogram's step, at most 0.1 % too high.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::tally::Exactly;

/// The greatest value that is told apart: one hour.
pub const HIGHEST_NS: u64 = 3_600_000_000_000;

/// How many digits of a value are kept.
const DIGITS: u8 = 3;

/// Values of time and how often each occurred.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct Distribution {
    counts: Histogram<u64>,
    exact: Exactly,
}

impl Default for Distribution {
    fn default() -> Self {
        Distribution::new()
    }
}

impl Distribution {
    /// Nothing yet. It takes 270 KB, once; recording never allocates.
    pub fn new() -> Distribution {
        #[allow(clippy::unwrap_used)] // the bounds are constants, and every test would notice
        let counts = Histogram::new_with_bounds(1, HIGHEST_NS, DIGITS).unwrap();
        Distribution { counts, exact: Exactly::default() }
    }

    /// Adds `count` times `ns`.
    #[inline]
    pub fn record(&mut self, ns: u64, count: u64) {
        if count == 0 {
            return;
        }
        let clamped = self.exact.record(ns, count);
        self.counts.saturating_record_n(clamped, count);
    }

    /// Adds all that `other` has.
    pub fn merge(&mut self, other: &Distribution) {
        self.exact.merge(&other.exact);
        let added = self.counts.add(&other.counts);
        debug_assert!(added.is_ok(), "all distributions have the same bounds");
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The value that the fraction `quantile` of all values do not exceed, in nanoseconds; 0 when there are none.
    pub fn at(&self, quantile: f64) -> u64 {
        self.counts.value_at_quantile(quantile).min(self.exact.max_ns)
    }

    /// The usual figures.
    pub fn percentiles(&self) -> Percentiles {
        let mut at = self.counts.value_at_quantiles([0.5, 0.9, 0.99, 0.999, 0.9999]);
        let mut next = || at.next().unwrap_or(0).min(self.exact.max_ns);
        Percentiles {
            count: self.count(),
            p50_ns: next(),
            p90_ns: next(),
            p99_ns: next(),
            p999_ns: next(),
            p9999_ns: next(),
            max_ns: self.exact.max_ns,
            mean_ns: if self.is_empty() { 0.0 } else { self.exact.sum_ns as f64 / self.count() as f64 },
            saturated: self.exact.saturated,
        }
    }

    /// The curve of a plot: (quantile, ns), with `per_decade` points for each tenfold smaller rest above the quantile, as
    /// far as the count reaches, and the greatest value as the last, at quantile 1.
    pub fn curve(&self, per_decade: u32) -> Vec<(f64, u64)> {
        if self.is_empty() {
            return Vec::new();
        }
        let quantile = |step: u32| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(per_decade.max(1)));
        // Up to the last point before the greatest value, with a margin for the rounding of the logarithm.
        let steps = (f64::from(per_decade) * (self.count() as f64).log10() - 1e-6).ceil().max(1.0) as u32;
        let quantiles: Vec<f64> = (0..steps).map(quantile).collect();
        let values = self.counts.value_at_quantiles(quantiles.iter().copied()).map(|ns| ns.min(self.exact.max_ns));
        let mut curve: Vec<_> = quantiles.iter().copied().zip(values).collect();
        curve.push((1.0, self.exact.max_ns));
        curve
    }

    /// The histogram itself, for tools.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.counts
    }

    /// The lower end of each step that has values, and how many, ascending.
    pub(super) fn recorded(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.counts.iter_recorded();
        counts.map(|step| (self.counts.lowest_equivalent(step.value_iterated_to()), step.count_at_value()))
    }

    /// What the counts cannot tell.
    pub(super) fn exactly(&self) -> &Exactly {
        &self.exact
    }

    /// Adds counts of steps, each known by a value in it, and what is known exactly of the same values.
    pub(super) fn add(&mut self, counts: impl Iterator<Item = (u64, u64)>, exact: &Exactly) {
        counts.for_each(|(ns, count)| self.counts.saturating_record_n(ns, count));
        self.exact.merge(exact);
    }
}

/// The usual figures of a [`Distribution`], in nanoseconds; all 0 when it has no values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many values.
    pub count: u64,
    /// Half of all values are at most this.
    pub p50_ns: u64,
    /// 90 % are.
    pub p90_ns: u64,
    /// 99 % are.
    pub p99_ns: u64,
    /// 99.9 % are.
    pub p999_ns: u64,
    /// 99.99 % are. Means something from about a million values on.
    pub p9999_ns: u64,
    /// The greatest, exactly.
    pub max_ns: u64,
    /// The mean, exactly.
    pub mean_ns: f64,
    /// How many were above an hour, and count as an hour.
    pub saturated: u64,
}

/// The form of a distribution in files: only values that occurred, ascending, each the lower end of its step.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    counts: Vec<(u64, u64)>,
    max_ns: u64,
    mean_ns: f64,
    saturated: u64,
}

impl From<Distribution> for Stored {
    fn from(from: Distribution) -> Stored {
        let Exactly { max_ns, saturated, .. } = from.exact;
        Stored { counts: from.recorded().collect(), max_ns, mean_ns: from.percentiles().mean_ns, saturated }
    }
}

impl TryFrom<Stored> for Distribution {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Distribution, String> {
        let mut made = Distribution::new();
        for (ns, count) in stored.counts {
            if ns > HIGHEST_NS {
                return Err(format!("{ns} ns is more than an hour"));
            }
            made.record(ns, count);
        }
        if made.exact.max_ns > stored.max_ns || stored.max_ns > HIGHEST_NS {
            return Err(format!("the greatest value is not {} ns", stored.max_ns));
        }
        made.exact.max_ns = stored.max_ns;
        made.exact.sum_ns = (stored.mean_ns * made.count() as f64) as u128;
        made.exact.saturated = stored.saturated;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentiles_of_known_values() {
        let mut all = Distribution::new();
        (1..=1_000).for_each(|us| all.record(us * 1_000, 10));
        let found = all.percentiles();
        let near = |ns: u64, us: u64| assert!(ns.abs_diff(us * 1_000) <= us, "{ns} for {us} us");
        near(found.p50_ns, 500);
        near(found.p90_ns, 900);
        near(found.p99_ns, 990);
        near(found.p999_ns, 999);
        assert_eq!((found.count, found.p9999_ns, found.max_ns), (10_000, 1_000_000, 1_000_000));
        assert_eq!((found.mean_ns, found.saturated), (500_500.0, 0));
    }

    #[test]
    fn nothing_is_all_zeros() {
        assert_eq!(Distribution::new().percentiles(), Percentiles::default());
        assert_eq!((Distribution::new().at(0.5), Distribution::new().curve(10)), (0, vec![]));
    }

    #[test]
    fn beyond_an_hour_counts_as_an_hour() {
        let mut all = Distribution::new();
        all.record(0, 1);
        all.record(HIGHEST_NS, 1);
        all.record(u64::MAX, 2);
        let found = all.percentiles();
        assert_eq!((found.count, found.max_ns, found.saturated), (4, HIGHEST_NS, 2));
        assert_eq!(all.at(0.0), 1);
    }

    #[test]
    fn a_curve_ends_at_the_greatest_value() {
        let mut all = Distribution::new();
        (1..=1_000).for_each(|ns| all.record(ns, 1));
        let curve = all.curve(2);
        assert_eq!(curve.iter().map(|(_, ns)| *ns).collect::<Vec<_>>(), [1, 684, 900, 969, 990, 997, 1_000]);
        assert_eq!(curve.last().map(|(quantile, _)| *quantile), Some(1.0));
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }

    proptest! {
        #[test]
        fn merged_is_recorded_together(values in prop::collection::vec((0..2 * HIGHEST_NS, 0..5_u64), 0..50), cut in 0..50_usize) {
            let record = |values: &[(u64, u64)]| {
                let mut all = Distribution::new();
                values.iter().for_each(|(ns, count)| all.record(*ns, *count));
                all
            };
            let (left, right) = values.split_at(cut.min(values.len()));
            let mut merged = record(left);
            merged.merge(&record(right));
            prop_assert_eq!(&merged, &record(&values));
        }

        #[test]
        fn what_is_stored_reads_back(values in prop::collection::vec((0..2 * HIGHEST_NS, 1..5_u64), 0..50)) {
            let mut all = Distribution::new();
            values.iter().for_each(|(ns, count)| all.record(*ns, *count));
            let text = serde_json::to_string(&all).unwrap();
            let back: Distribution = serde_json::from_str(&text).unwrap();
            let (found, expected) = (back.percentiles(), all.percentiles());
            prop_assert!((found.mean_ns - expected.mean_ns).abs() <= 1.0);
            prop_assert_eq!(Percentiles { mean_ns: expected.mean_ns, ..found }, expected);
        }
    }
}
