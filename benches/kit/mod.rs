//! What the benchmarks share: events that anyone can make again, interleaved runs, and one line per figure.
#![allow(dead_code)] // each benchmark uses a part of it

use std::time::{Duration, Instant};

use millstream::prelude::*;

/// One event of the generated streams: 24 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub key: u64,
    pub value: i64,
    pub at: EventTime,
}

/// The generated stream, as defined in `benches/README.md`.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    pub seed: u64,
    pub keys: u64,
    /// Events per millisecond of event time.
    pub rate_per_ms: u64,
    /// Events are out of order by up to this many milliseconds.
    pub jitter_ms: u64,
}

impl Stream {
    pub fn event(&self, i: u64) -> Event {
        let s = self.seed ^ i;
        let at_ms = 600_000 + i / self.rate_per_ms - mix(s ^ 0xC3C3_3C3C_C3C3_3C3C) % self.jitter_ms;
        Event {
            key: mix(s) % self.keys,
            value: (mix(s ^ 0xA5A5_A5A5_5A5A_5A5A) % 1000) as i64,
            at: EventTime::from_millis(at_ms as i64),
        }
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How often everything is run, unless the environment says otherwise (`MILLSTREAM_BENCH_RUNS`).
pub fn runs() -> usize {
    std::env::var("MILLSTREAM_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5)
}

/// One thing to time. It returns a checksum of its results, which all contestants must agree on.
pub struct Contestant<'a> {
    pub name: String,
    pub run: Box<dyn FnMut() -> u64 + 'a>,
}

impl<'a> Contestant<'a> {
    pub fn new(name: impl Into<String>, run: impl FnMut() -> u64 + 'a) -> Self {
        Contestant { name: name.into(), run: Box::new(run) }
    }
}

/// Runs the contestants in turn, [`runs`] times over, and prints the median of each beside that of the first.
///
/// # Panics
/// When their results differ: a wrong fast run is no result.
pub fn race(title: &str, events: u64, contestants: Vec<Contestant<'_>>) {
    let mut contestants = contestants;
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); contestants.len()];
    let mut expected = None;
    for _ in 0..runs() {
        for (contestant, times) in contestants.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let sum = (contestant.run)();
            times.push(start.elapsed());
            assert_eq!(*expected.get_or_insert(sum), sum, "{} has other results", contestant.name);
        }
    }
    println!("\n{title} ({} events, median of {} runs, interleaved)", millstream::summary::thousands(events), runs());
    println!("{:<28} {:>12} {:>10} {:>16} {:>8}", "", "M events/s", "ns/event", "spread", "ratio");
    let mut reference = None;
    for (contestant, times) in contestants.iter().zip(&mut times) {
        times.sort();
        let median = times[times.len() / 2].as_secs_f64();
        let (best, worst) = (times[0].as_secs_f64(), times[times.len() - 1].as_secs_f64());
        let reference = *reference.get_or_insert(median);
        println!(
            "{:<28} {:>12.2} {:>10.1} {:>7.1}..{:<7.1} {:>8.2}",
            contestant.name,
            events as f64 / median / 1e6,
            median * 1e9 / events as f64,
            events as f64 / worst / 1e6,
            events as f64 / best / 1e6,
            reference / median
        );
    }
}

/// Adds the parts of one result into a sum that does not depend on the order of results.
pub fn digest(parts: [u64; 5]) -> u64 {
    parts.into_iter().fold(0, |hash, part| mix(hash ^ part))
}
