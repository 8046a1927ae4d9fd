//! The search for the highest rate that a job can sustain: the one up to which its backlog does not grow.
//!
//! Rates are tried, each in a **trial** that the caller runs: first each twice the one before, until the backlog grows; then
//! one between the highest rate that was sustained and the lowest that was not, until these two are close. A
//! rate that was not sustained is tried once more before it is believed: on a shared machine, one bad moment is not the job.
//!
//! Whether the backlog grows is judged by the second half of a trial, in two ways, and only when both say so: by the
//! **median of the slopes** between any two samples, which looks through what goes up and down all the time; and by the
//! median of the slopes of **five stretches**, which looks through a single hiccup, even one that could not be made up
//! for until the end. Growing means that more than 1 % of the offered events stay unread. A backlog of more than a second's
//! worth that does not shrink is too much as well, however it came about.
//!
//! Everything in here is arithmetic and decisions; running a job is up to the caller.
//!
//! **Units**: events per second; samples in nanoseconds from the start of the trial.
//! **Source**: sustainable throughput after Karimov et al., *Benchmarking Distributed Stream Data Processing Systems*
//! (2018); the slope after Theil and Sen.

use std::fmt;

use super::rate::Rate;

/// At which fractions of the sustainable rate latency is worth measuring: half idle, as people run it, near the edge.
pub const MEASURE_AT: [f64; 3] = [0.5, 0.8, 0.95];

/// The share of the offered events that may stay unread before a backlog counts as growing.
const ALLOWED_GROWTH: f64 = 0.01;

/// How many seconds' worth of events the backlog may hold at the end of a trial, unless it shrinks.
const ALLOWED_BACKLOG_S: f64 = 1.0;

/// Into how many stretches the second half of a trial is cut: odd, so that there is one in the middle.
const STRETCHES: usize = 5;

/// So many samples at most are looked at; longer trials are sampled more thinly.
const MOST_SAMPLES: usize = 200;

/// How many trials there are at most, so that a system without a limit does not keep the search for ever.
const MOST_TRIALS: usize = 64;

/// What a trial at one rate brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trial {
    /// The backlog now and then: (nanoseconds from the start, events due and not yet read). Ten samples or more are
    /// good, a hundred better.
    pub backlog: Vec<(u64, u64)>,
    /// Events read per second.
    pub achieved_per_s: f64,
}

/// What a trial is found to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The backlog did not grow.
    Sustained,
    /// It did.
    Grows {
        /// By how many events a second.
        per_s: f64,
    },
    /// It did not grow any more, but was too large.
    TooLarge {
        /// In events.
        backlog: u64,
    },
    /// There are too few samples to say.
    Unknown,
}

impl Trial {
    /// Whether `rate` was sustained.
    pub fn verdict(&self, rate: Rate) -> Verdict {
        let offered = rate.as_f64();
        let (Some(first), Some(last)) = (self.backlog.first(), self.backlog.last()) else { return Verdict::Unknown };
        let half = first.0 + (last.0 - first.0.min(last.0)) / 2;
        let later: Vec<(u64, u64)> = self.backlog.iter().copied().filter(|(at, _)| *at >= half).collect();
        let Some(per_s) = slope(&later) else { return Verdict::Unknown };
        if per_s > offered * ALLOWED_GROWTH {
            return Verdict::Grows { per_s };
        }
        // A hiccup near the end leaves a backlog as well: so the median, not the last one.
        let mut sizes: Vec<u64> = later.iter().map(|(_, backlog)| *backlog).collect();
        sizes.sort_unstable();
        let backlog = sizes[sizes.len() / 2];
        let shrinks = per_s < -offered * ALLOWED_GROWTH;
        if backlog as f64 > (offered * ALLOWED_BACKLOG_S).max(1.0) && !shrinks {
            return Verdict::TooLarge { backlog };
        }
        Verdict::Sustained
    }
}

/// How much the backlog grows, in events per second: the lesser of what the two ways of looking at it say.
fn slope(samples: &[(u64, u64)]) -> Option<f64> {
    let every = samples.len().div_ceil(MOST_SAMPLES).max(1);
    let some: Vec<_> = samples.iter().step_by(every).collect();
    let pairs = some.iter().enumerate().flat_map(|(n, from)| some[n + 1..].iter().map(move |to| (*from, *to)));
    let overall = median_slope(pairs)?;
    let bound = |n: usize| &samples[n * (samples.len() - 1) / STRETCHES];
    let stretches = (0..STRETCHES).map(|n| (bound(n), bound(n + 1)));
    Some(median_slope(stretches).map_or(overall, |typical| overall.min(typical)))
}

/// The median of the slopes from one sample to a later one.
fn median_slope<'a>(pairs: impl Iterator<Item = (&'a (u64, u64), &'a (u64, u64))>) -> Option<f64> {
    let later = pairs.filter(|(from, to)| to.0 > from.0);
    let mut slopes: Vec<f64> =
        later.map(|(from, to)| (to.1 as f64 - from.1 as f64) / (to.0 - from.0) as f64 * 1e9).collect();
    slopes.sort_by(f64::total_cmp);
    (!slopes.is_empty()).then(|| slopes[slopes.len() / 2])
}

/// How to search.
///
/// ```
/// use millstream_runtime::bench::{Search, Trial};
///
/// // A system that reads 25,000 events a second, whatever it is offered: each trial takes ten seconds.
/// let found = Search::default().run(|rate| {
///     let growth = (rate.as_f64() - 25_000.0).max(0.0);
///     let backlog = (0..100).map(|n| (n * 100_000_000, (growth * n as f64 / 10.0) as u64)).collect();
///     Ok::<_, std::io::Error>(Trial { backlog, achieved_per_s: rate.as_f64() - growth })
/// })?;
/// assert_eq!(found.sustained.map(|rate| rate.to_string()).as_deref(), Some("25k"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// The first rate that is tried.
    pub first: Rate,
    /// The search is over when sustained and not sustained rates are as close as this, relative to the latter; by default
    /// 0.05.
    pub tolerance: f64,
    /// The highest rate that is tried.
    pub highest: Rate,
}

impl Default for Search {
    fn default() -> Self {
        Search { first: Rate::per_second(10_000.0), tolerance: 0.05, highest: Rate::per_second(1e9) }
    }
}

/// One trial of a search, as it was judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    /// The rate that was offered.
    pub rate: Rate,
    /// Events read per second.
    pub achieved_per_s: f64,
    /// What came of it.
    pub verdict: Verdict,
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sustainable {
    /// The highest rate that was sustained; `None` when even the lowest that was tried was not.
    pub sustained: Option<Rate>,
    /// The lowest rate that was not sustained, twice; `None` when the highest allowed was.
    pub exceeded: Option<Rate>,
    /// All trials in order.
    pub trials: Vec<Tried>,
}

impl Search {
    /// Runs trials until the sustainable rate is known. An error of a trial ends the search.
    ///
    /// # Errors
    /// Whatever a trial failed with.
    pub fn run<E>(&self, mut trial: impl FnMut(Rate) -> Result<Trial, E>) -> Result<Sustainable, E> {
        let mut found = Sustainable::default();
        while let Some(rate) = self.next(&found).filter(|_| found.trials.len() < MOST_TRIALS) {
            // Tried twice before it is believed that it is too much.
            let sustained = found.try_rate(rate, &mut trial)? || found.try_rate(rate, &mut trial)?;
            match sustained {
                true => found.sustained = Some(rate),
                false => found.exceeded = Some(rate),
            }
        }
        Ok(found)
    }

    /// The rate to try next; `None` when the search is over.
    fn next(&self, found: &Sustainable) -> Option<Rate> {
        match (found.sustained, found.exceeded) {
            (None, None) => Some(self.first.min(self.highest)),
            (Some(low), None) if low >= self.highest => None,
            (Some(low), None) => Some(Rate::per_second(low.as_f64() * 2.0).min(self.highest)),
            // The first was already too much: down, to what was achieved if that is less than half, until nearly nothing
            // is left. A system may achieve less under too much load than it could, so not down without end at once.
            (None, Some(high)) => {
                let achieved = found.trials.last().map_or(0.0, |tried| tried.achieved_per_s * 0.9);
                let lower = achieved.clamp(high.as_f64() / 100.0, high.as_f64() / 2.0);
                (high.as_f64() > 1.0).then(|| Rate::per_second(lower.max(1.0)))
            }
            (Some(low), Some(high)) => {
                let (low, high) = (low.as_f64(), high.as_f64());
                let middle = if high > 4.0 * low { (low * high).sqrt() } else { (low + high) / 2.0 };
                (high - low > self.tolerance.max(1e-3) * high).then(|| Rate::per_second(middle))
            }
        }
    }
}

impl Sustainable {
    fn try_rate<E>(&mut self, rate: Rate, trial: &mut impl FnMut(Rate) -> Result<Trial, E>) -> Result<bool, E> {
        let brought = trial(rate)?;
        let verdict = brought.verdict(rate);
        self.trials.push(Tried { rate, achieved_per_s: brought.achieved_per_s, verdict });
        Ok(verdict == Verdict::Sustained)
    }

    /// The rates at which latency is worth measuring, see [`MEASURE_AT`]: each with its fraction of what is sustainable.
    pub fn measure_at(&self) -> Vec<(f64, Rate)> {
        let rates = self.sustained.map(|rate| MEASURE_AT.map(|part| (part, Rate::per_second(rate.as_f64() * part))));
        rates.into_iter().flatten().collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Sustained => f.write_str("sustained"),
            Verdict::Grows { per_s } => write!(f, "the backlog grows by {} events/s", super::words::rate(*per_s)),
            Verdict::TooLarge { backlog } => {
                write!(f, "the backlog stays at {} events", crate::summary::thousands(*backlog))
            }
            Verdict::Unknown => f.write_str("too few samples of the backlog"),
        }
    }
}

impl fmt::Display for Sustainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Tried { rate, achieved_per_s, verdict } in &self.trials {
            let (offered, achieved) = (super::words::rate(rate.as_f64()), super::words::rate(*achieved_per_s));
            writeln!(f, "  offered {offered:>13} events/s, achieved {achieved:>13}: {verdict}")?;
        }
        let rate = |rate: Rate| super::words::rate(rate.as_f64());
        match (self.sustained, self.exceeded) {
            (Some(low), Some(high)) => write!(f, "sustainable: {} events/s ({} is too much)", rate(low), rate(high)),
            (Some(low), None) => write!(f, "sustainable: at least {} events/s", rate(low)),
            (None, Some(high)) => write!(f, "not even {} events/s are sustainable", rate(high)),
            (None, None) => f.write_str("nothing was tried"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::example::Random;
    use super::*;

    const S: u64 = 1_000_000_000;

    /// A queue that is fed at a rate and emptied at another, which may depend on the time in seconds and on the backlog;
    /// sampled ten times a second for `seconds`.
    fn queue(rate: Rate, seconds: u64, capacity: &mut dyn FnMut(f64, f64) -> f64) -> Trial {
        let (mut backlog, mut read, step) = (0.0_f64, 0.0, 0.1);
        let samples = (1..=seconds * 10).map(|n| {
            backlog += rate.as_f64() * step;
            let taken = (capacity(n as f64 * step, backlog) * step).min(backlog);
            (backlog, read) = (backlog - taken, read + taken);
            (n * S / 10, backlog as u64)
        });
        let backlog = samples.collect();
        Trial { backlog, achieved_per_s: read / seconds as f64 }
    }

    fn search(first: f64, mut trial: impl FnMut(Rate) -> Trial) -> Sustainable {
        let search = Search { first: Rate::per_second(first), ..Search::default() };
        search.run(|rate| Ok::<_, Infallible>(trial(rate))).unwrap()
    }

    fn near(found: &Sustainable, capacity: f64) {
        let rate = found.sustained.unwrap().as_f64();
        assert!(rate > capacity * 0.93 && rate < capacity * 1.05, "{rate} for {capacity}\n{found}");
    }

    #[test]
    fn finds_the_capacity_of_a_queue_from_below_and_above() {
        for capacity in [123.0, 1_234.0, 81_500.0, 23_000_000.0] {
            for first in [1.0, 10_000.0, 1e8] {
                let found = search(first, |rate| queue(rate, 10, &mut |_, _| capacity));
                near(&found, capacity);
                let high = found.exceeded.unwrap().as_f64();
                assert!(high - found.sustained.unwrap().as_f64() <= 0.05 * high && found.trials.len() < 40, "{found}");
            }
        }
    }

    #[test]
    fn one_hiccup_does_not_decide() {
        // In the last quarter of every trial it stands still for half a second, and then catches up.
        let hiccup = |at: f64| at > 8.0 && at < 8.5;
        let found = search(1_000.0, |rate| queue(rate, 10, &mut |at, _| if hiccup(at) { 0.0 } else { 50_000.0 }));
        near(&found, 50_000.0);
    }

    #[test]
    fn a_noisy_machine_still_has_a_rate() {
        for seed in 0..20 {
            let mut random = Random(seed);
            // On average as quick as ever, but never even.
            let found = search(1_000.0, |rate| queue(rate, 30, &mut |_, _| 50_000.0 * (0.6 + 0.8 * random.next())));
            let rate = found.sustained.unwrap().as_f64();
            assert!((42_000.0..54_000.0).contains(&rate), "seed {seed}: {rate}\n{found}");
        }
    }

    #[test]
    fn a_system_that_degrades_is_found_at_what_it_keeps() {
        // The more waits, the slower it gets: at 60,000 for a while, but once behind it never recovers.
        let slower = |backlog: f64| 60_000.0 / (1.0 + backlog / 50_000.0);
        near(&search(1_000.0, |rate| queue(rate, 20, &mut |_, backlog| slower(backlog))), 58_000.0);
        // Quick for the first seconds of a trial, as long as a cache holds; what counts is the later part.
        let cache = |at: f64| if at < 4.0 { 100_000.0 } else { 30_000.0 };
        near(&search(1_000.0, |rate| queue(rate, 10, &mut |at, _| cache(at))), 30_000.0);
    }

    #[test]
    fn a_failed_trial_is_tried_once_more() {
        let mut trials = 0;
        let found = search(1_000.0, |rate| {
            trials += 1;
            // Somebody else had the machine during this one.
            queue(rate, 10, &mut |_, _| if trials == 3 { 100.0 } else { 50_000.0 })
        });
        near(&found, 50_000.0);
        assert!(
            matches!(found.trials[2].verdict, Verdict::Grows { .. }) && found.trials[3].rate == found.trials[2].rate
        );
    }

    #[test]
    fn the_search_ends_without_a_limit_and_with_nothing() {
        let boundless = search(1_000.0, |rate| queue(rate, 10, &mut |_, _| f64::INFINITY));
        assert_eq!((boundless.sustained, boundless.exceeded), (Some(Search::default().highest), None));
        let stuck = search(1_000.0, |rate| queue(rate, 10, &mut |_, _| 0.0));
        assert_eq!(stuck.sustained, None);
        assert!(stuck.exceeded.unwrap().as_f64() < 2.0 && stuck.measure_at().is_empty(), "{stuck}");
        let blind = search(8.0, |_| Trial::default());
        assert_eq!((blind.sustained, blind.trials[0].verdict), (None, Verdict::Unknown));
    }

    #[test]
    fn an_error_of_a_trial_ends_the_search() {
        assert_eq!(Search::default().run(|_| Err("no")), Err("no"));
    }

    #[test]
    fn a_large_backlog_that_stands_is_too_much_and_one_that_shrinks_is_not() {
        let trial = |backlog: fn(u64) -> u64| Trial {
            backlog: (0..20).map(|n| (n * S, backlog(n))).collect(),
            achieved_per_s: 1.0,
        };
        let rate = Rate::per_second(1_000.0);
        assert_eq!(trial(|_| 5_000).verdict(rate), Verdict::TooLarge { backlog: 5_000 });
        assert_eq!(trial(|n| 10_000 - n * 100).verdict(rate), Verdict::Sustained);
        assert_eq!(trial(|n| n * 11).verdict(rate), Verdict::Grows { per_s: 11.0 });
        assert_eq!(trial(|n| n * 9).verdict(rate), Verdict::Sustained);
    }

    #[test]
    fn latency_is_measured_at_parts_of_it() {
        let found = Sustainable { sustained: Some(Rate::per_second(1_000.0)), ..Sustainable::default() };
        let at: Vec<_> = found.measure_at().into_iter().map(|(_, rate)| rate.to_string()).collect();
        assert_eq!(at, ["500", "800", "950"]);
    }
}
