//! The noise floor: what latency this machine adds by itself, to a thread that does nothing but look at the clock.
//!
//! One thread for each worker reads the clock again and again. While the system lets it run, two readings are some tens of
//! nanoseconds apart; a larger gap is time in which no program could have reacted. Two distributions come of that:
//! the gaps, and the **delays** of events that would have been due every microsecond, each counted from its due instant to
//! the next reading. Delays compare with a job's latencies, because a long gap counts for as many events as it delays; among
//! gaps it counts once.
//!
//! **Units**: nanoseconds. **Time**: the wall clock, monotonic.
//! **Errors**: `External` when a thread cannot be started.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::distribution::Distribution;
use crate::error::{Error, Result};

/// How far the events are apart whose delays are counted.
const EVERY_NS: u64 = 1_000;

/// What the machine adds by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// How long it was measured, on each thread.
    pub duration: Duration,
    /// On how many threads at once.
    pub threads: usize,
    /// Time between one reading of the clock and the next.
    pub gaps: Distribution,
    /// From when an event was due to the next reading of the clock.
    pub delays: Distribution,
}

impl Noise {
    /// Measures for `time` on `threads` threads at once, which keep that many cores busy meanwhile.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn measure(threads: usize, time: Duration) -> Result<Noise> {
        let mut started = Vec::new();
        for thread in 0..threads {
            let named = std::thread::Builder::new().name(format!("noise-{thread}"));
            let handle = named.spawn(move || spin(time));
            started.push(handle.map_err(|error| Error::external("cannot start a thread").because(error))?);
        }
        let mut all = Noise { duration: time, threads, ..Noise::default() };
        for thread in started {
            let of_thread =
                thread.join().map_err(|_| Error::internal("measuring the noise of the machine panicked"))?;
            all.gaps.merge(&of_thread.gaps);
            all.delays.merge(&of_thread.delays);
        }
        Ok(all)
    }

    /// Adds what was measured at another time.
    pub fn merge(&mut self, other: &Noise) {
        self.duration += other.duration;
        self.threads = self.threads.max(other.threads);
        self.gaps.merge(&other.gaps);
        self.delays.merge(&other.delays);
    }
}

fn spin(time: Duration) -> Noise {
    let end_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut readings = Readings::default();
    let start = Instant::now();
    while readings.last_ns < end_ns {
        readings.read(start.elapsed().as_nanos() as u64);
    }
    readings.noise
}

/// What follows from readings of a clock.
#[derive(Default)]
struct Readings {
    last_ns: u64,
    /// When the next event is due.
    due_ns: u64,
    noise: Noise,
}

impl Readings {
    fn read(&mut self, now_ns: u64) {
        self.noise.gaps.record(now_ns - self.last_ns, 1);
        self.last_ns = now_ns;
        while self.due_ns <= now_ns {
            self.noise.delays.record(now_ns - self.due_ns, 1);
            self.due_ns += EVERY_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_gap_delays_every_event_in_it() {
        let mut readings = Readings::default();
        (0..1_000).for_each(|n| readings.read(n * 50));
        // Then the system takes the core away for a millisecond.
        readings.read(50_000 + 1_000_000);
        let Noise { gaps, delays, .. } = readings.noise;
        assert_eq!((gaps.count(), delays.count()), (1_001, 1_051));
        assert_eq!(gaps.percentiles().p99_ns, 50);
        assert!(delays.at(0.5).abs_diff(500_000) < 30_000, "{}", delays.at(0.5));
        assert_eq!((gaps.percentiles().max_ns, delays.percentiles().max_ns), (1_000_050, 1_000_000));
    }

    #[test]
    fn this_machine_makes_some() {
        let noise = Noise::measure(2, Duration::from_millis(5)).unwrap();
        let gaps = noise.gaps.percentiles();
        assert!(gaps.count > 100 && gaps.p50_ns < 1_000_000, "{gaps:?}");
        assert!(noise.delays.count() >= 2 * 5_000, "{}", noise.delays.count());
        let mut twice = noise.clone();
        twice.merge(&noise);
        assert_eq!((twice.duration, twice.gaps.count()), (Duration::from_millis(10), 2 * gaps.count));
    }
}
