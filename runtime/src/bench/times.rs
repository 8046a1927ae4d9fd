//! Times that one worker counts while others look on: how long batches waited, how long records took.
//!
//! Every run keeps them, so they are made to be cheap: one thread writes, without locks and without atomic additions, and
//! touches one count of an array that mostly stays in the cache. They are coarser than a [`Distribution`] for that reason.
//!
//! **Units**: nanoseconds, from 1 ns to 1 h. A percentile is the upper end of its step, at most 1.6 % too high.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::distribution::{Distribution, HIGHEST_NS, Percentiles};
use super::tally::{Exactly, index, lowest};
use crate::shared::add;

/// Into how many steps each power of two is divided.
const STEPS: u64 = 64;

/// How many steps a block has: that makes fewer blocks than [`Counts::used`] has bits.
const BLOCK: usize = 64;
const _: () = assert!(index::<STEPS>(HIGHEST_NS) / BLOCK < 64);

/// See the module. Takes no memory before it is used, and 19 KB then.
#[derive(Debug, Default)]
pub(crate) struct Times(OnceLock<Counts>);

#[derive(Debug)]
struct Counts {
    /// How many values each step has.
    steps: Box<[AtomicU64]>,
    /// One bit for each block of [`BLOCK`] steps: whether there is anything in it. Mostly there is in a few, and whoever looks on
    /// takes what it reads out of the cache of the thread that counts.
    used: AtomicU64,
    max_ns: AtomicU64,
    /// The sum of all values: the bits of a float, because 2^64 ns are soon reached by many records with long latencies.
    sum_ns: AtomicU64,
    /// How many values were above [`HIGHEST_NS`].
    saturated: AtomicU64,
}

impl Counts {
    fn new() -> Self {
        let steps = (0..=index::<STEPS>(HIGHEST_NS)).map(|_| AtomicU64::new(0)).collect();
        let [used, max_ns, sum_ns, saturated] = [0; 4].map(AtomicU64::new);
        Counts { steps, used, max_ns, sum_ns, saturated }
    }
}

/// The greatest value that is counted at a step.
fn greatest(step: usize) -> u64 {
    (lowest::<STEPS>(step + 1) - 1).min(HIGHEST_NS)
}

impl Times {
    /// Adds `count` times `ns`. Only one thread may do that.
    #[inline]
    pub(crate) fn record(&self, ns: u64, count: u64) {
        if count == 0 {
            return;
        }
        let counts = self.0.get_or_init(Counts::new);
        let clamped = ns.clamp(1, HIGHEST_NS);
        if ns > HIGHEST_NS {
            add(&counts.saturated, count);
        }
        if clamped > counts.max_ns.load(Ordering::Relaxed) {
            counts.max_ns.store(clamped, Ordering::Relaxed);
        }
        let sum = f64::from_bits(counts.sum_ns.load(Ordering::Relaxed)) + clamped as f64 * count as f64;
        counts.sum_ns.store(sum.to_bits(), Ordering::Relaxed);
        let step = index::<STEPS>(clamped);
        let (used, block) = (counts.used.load(Ordering::Relaxed), 1 << (step / BLOCK));
        if used & block == 0 {
            counts.used.store(used | block, Ordering::Relaxed);
        }
        // Who sees the count sees what belongs to it.
        let step = &counts.steps[step];
        step.store(step.load(Ordering::Relaxed) + count, Ordering::Release);
    }

    /// The usual figures of what several workers have counted so far.
    pub(crate) fn percentiles<'a>(of: impl Iterator<Item = &'a Times>) -> Percentiles {
        Counted::read(of).percentiles()
    }
}

/// What several workers had counted at one moment.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// How many values each step has, ascending, without the steps that have none.
    steps: Vec<(usize, u64)>,
    max_ns: u64,
    sum_ns: f64,
    saturated: u64,
}

impl Counted {
    pub(crate) fn read<'a>(of: impl Iterator<Item = &'a Times>) -> Counted {
        let of: Vec<&Counts> = of.filter_map(|times| times.0.get()).collect();
        let used = of.iter().fold(0, |used, counts| used | counts.used.load(Ordering::Acquire));
        let count = |step: usize| of.iter().map(|counts| counts.steps[step].load(Ordering::Acquire)).sum();
        let steps = of.first().map_or(0, |counts| counts.steps.len());
        let blocks = (0..steps).step_by(BLOCK).filter(|first| used >> (first / BLOCK) & 1 == 1);
        let steps = blocks.flat_map(|first| first..steps.min(first + BLOCK));
        Counted {
            steps: steps.map(|step| (step, count(step))).filter(|(_, count)| *count > 0).collect(),
            max_ns: of.iter().map(|counts| counts.max_ns.load(Ordering::Relaxed)).max().unwrap_or(0),
            sum_ns: of.iter().map(|counts| f64::from_bits(counts.sum_ns.load(Ordering::Relaxed))).sum(),
            saturated: of.iter().map(|counts| counts.saturated.load(Ordering::Relaxed)).sum(),
        }
    }

    /// What came since `earlier`. The greatest value is only known to a step then.
    pub(crate) fn since(mut self, earlier: &Counted) -> Counted {
        for (step, count) in &earlier.steps {
            if let Ok(place) = self.steps.binary_search_by_key(step, |(step, _)| *step) {
                self.steps[place].1 = self.steps[place].1.saturating_sub(*count);
            }
        }
        self.steps.retain(|(_, count)| *count > 0);
        self.max_ns = self.steps.last().map_or(0, |(step, _)| greatest(*step).min(self.max_ns));
        self.sum_ns = (self.sum_ns - earlier.sum_ns).max(0.0);
        self.saturated = self.saturated.saturating_sub(earlier.saturated);
        self
    }

    fn count(&self) -> u64 {
        self.steps.iter().map(|(_, count)| count).sum()
    }

    fn percentiles(&self) -> Percentiles {
        let count = self.count();
        let (mut passed, mut next) = (0, 0);
        // Asked with rising quantiles.
        let mut at = |quantile: f64| {
            let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count.max(1));
            while passed < rank && next < self.steps.len() {
                passed += self.steps[next].1;
                next += 1;
            }
            next.checked_sub(1).map_or(0, |last| greatest(self.steps[last].0).min(self.max_ns))
        };
        Percentiles {
            count,
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            p9999_ns: at(0.9999),
            max_ns: self.max_ns,
            mean_ns: if count == 0 { 0.0 } else { self.sum_ns / count as f64 },
            saturated: self.saturated,
        }
    }

    /// As a distribution, which has finer steps.
    pub(crate) fn distribution(&self) -> Distribution {
        let mut made = Distribution::new();
        let exact = Exactly {
            count: self.count(),
            max_ns: self.max_ns,
            sum_ns: self.sum_ns as u128,
            saturated: self.saturated,
        };
        made.add(self.steps.iter().map(|(step, count)| (greatest(*step), *count)), &exact);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_values_all_is_zero() {
        let none = Times::default();
        assert_eq!(Times::percentiles([&none].into_iter()), Percentiles::default());
        assert_eq!(Times::percentiles(std::iter::empty()), Percentiles::default());
        none.record(5, 0);
        assert!(none.0.get().is_none(), "it takes no memory");
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_histogram_but_for_the_size_of_a_step(
            values in prop::collection::vec((0..2 * HIGHEST_NS, 1..1_000_u64), 1..60),
        ) {
            let (workers, mut exact) = ([Times::default(), Times::default()], Distribution::new());
            for (n, (ns, count)) in values.iter().enumerate() {
                // Spread over all magnitudes.
                let ns = ns >> (n % 40);
                workers[n % 2].record(ns, *count);
                exact.record(ns, *count);
            }
            let (found, expected) = (Times::percentiles(workers.iter()), exact.percentiles());
            prop_assert_eq!(
                (found.count, found.max_ns, found.saturated),
                (expected.count, expected.max_ns, expected.saturated)
            );
            prop_assert!((found.mean_ns / expected.mean_ns - 1.0).abs() < 1e-6);
            for (found, expected) in [
                (found.p50_ns, expected.p50_ns),
                (found.p90_ns, expected.p90_ns),
                (found.p99_ns, expected.p99_ns),
                (found.p9999_ns, expected.p9999_ns),
            ] {
                let (found, expected) = (found as f64, expected as f64);
                prop_assert!(found >= expected * 0.998 && found <= expected * 1.018 + 1.0, "{found} for {expected}");
            }
            let made = Counted::read(workers.iter()).distribution().percentiles();
            prop_assert_eq!((made.count, made.max_ns), (expected.count, expected.max_ns));
            prop_assert!(made.p50_ns as f64 >= expected.p50_ns as f64 * 0.998);
        }
    }

    #[test]
    fn what_came_since_leaves_out_what_was_before() {
        let times = Times::default();
        times.record(5_000_000, 3);
        times.record(100, 2);
        let before = Counted::read([&times].into_iter());
        assert_eq!(Counted::read([&times].into_iter()).since(&before).percentiles(), Percentiles::default());
        times.record(100, 4);
        times.record(2_000, 1);
        let since = Counted::read([&times].into_iter()).since(&before).percentiles();
        assert_eq!((since.count, since.p50_ns), (5, 100));
        assert!((2_000..2_040).contains(&since.max_ns), "{since:?}");
        assert!((since.mean_ns - 480.0).abs() < 1e-6, "{since:?}");
        let all = Counted::read([&times].into_iter()).since(&Counted::default()).percentiles();
        assert_eq!((all.count, all.max_ns), (10, 5_000_000));
    }
}
