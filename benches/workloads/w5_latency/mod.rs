//! W5: how late results are under an open-loop load. The sum per key in sliding windows, 10,000 keys; event time runs as
//! the clock does. On two workers, and on one: then a core is left for whatever else the machine has to do, as the loop leaves one, which
//! also is one thread.
//!
//! A result's latency counts from the instant at which its window could first have closed: when, in the later of the two
//! splits, the event was due whose time moves the watermark to the window's end. For *record to result* it counts from
//! when the first event at or past the window's end was due, so the 50 ms for which watermarks wait are in it. Both ends
//! are the same for the loop, which serves the same schedule in the same program and records with the same code.
//!
//! **Warm-up**: a second. By then all keys are there, and each is in every window: a window of 10 s gives as many results as
//! when it is full, but nothing leaves it as long as it is measured.

mod looped;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millstream::prelude::*;
use millstream::summary::thousands;
use millstream_runtime::bench::{Latencies, LatencyKind, Load, Measurement, Noise, Percentiles, Rate};
use serde_json::json;

use crate::kit::Plan;
use crate::kit::event::{Event, JITTER_MS, Keys, Stream};
use crate::kit::report::{Report, Spread};
use crate::w3_sliding::result_digest;

pub struct Shape {
    name: &'static str,
    size_ms: u64,
    slide_ms: u64,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "1s/100ms", size_ms: 1_000, slide_ms: 100 },
    Shape { name: "10s/10ms", size_ms: 10_000, slide_ms: 10 },
];

/// Events per second.
const RATES: [u64; 3] = [100_000, 500_000, 1_000_000];

const KEYS: u64 = 10_000;
const SPLITS: usize = 2;
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

const KINDS: [LatencyKind; 2] = [LatencyKind::WindowResult, LatencyKind::RecordToResult];

/// How long each run is.
const WARM_UP: Duration = Duration::from_secs(1);
const TIME: Duration = Duration::from_secs(4);
const NOISE: Duration = Duration::from_millis(500);

pub fn run(plan: Plan, report: &mut Report) {
    if plan.keys.is_some_and(|keys| keys != KEYS) {
        return;
    }
    for shape in &SHAPES {
        for rate in RATES.into_iter().filter(|rate| plan.rate.is_none_or(|only| only == *rate)) {
            // What has a target is in the default set: small windows up to the middle rate, many results at the low one.
            let usual = match shape.slide_ms {
                100 => rate <= 500_000,
                _ => rate <= 100_000,
            };
            let with_checkpoints =
                if plan.full && !plan.quick { true } else { shape.slide_ms == 100 && rate == 500_000 };
            if usual || plan.full && !plan.quick {
                race(shape, rate, with_checkpoints, plan.brief(), report);
            }
        }
    }
}

/// The results of one window, or of one worker's part of it.
#[derive(Clone, Copy, Debug, Default)]
struct Fired {
    start_us: i64,
    results: u64,
    digest: u64,
}

impl Fired {
    #[inline]
    fn add(&mut self, digest: u64) {
        self.results += 1;
        self.digest = self.digest.wrapping_add(digest);
    }
}

/// All runs of one contestant.
struct Runs {
    contestant: &'static str,
    workers: usize,
    checkpoints: Option<Duration>,
    /// Of as many threads, before each run.
    noise: Noise,
    merged: BTreeMap<LatencyKind, Latencies>,
    each: BTreeMap<LatencyKind, Vec<Percentiles>>,
    achieved_per_s: Vec<f64>,
}

impl Runs {
    fn new(contestant: &'static str, workers: usize, checkpoints: Option<Duration>) -> Self {
        let (noise, merged, each) = (Noise::default(), BTreeMap::new(), BTreeMap::new());
        Runs { contestant, workers, checkpoints, noise, merged, each, achieved_per_s: Vec::new() }
    }

    fn measure_noise(&mut self, time: Duration) {
        self.noise.merge(&Noise::measure(self.workers, time).expect("threads start"));
    }

    fn add(&mut self, latencies: &BTreeMap<LatencyKind, Latencies>, achieved_per_s: f64) {
        for (kind, latencies) in latencies {
            self.merged.entry(*kind).or_default().merge(latencies);
            self.each.entry(*kind).or_default().push(latencies.percentiles());
        }
        self.achieved_per_s.push(achieved_per_s);
    }
}

fn race(shape: &Shape, rate: u64, with_checkpoints: bool, plan: Plan, report: &mut Report) {
    let rate = plan.scaled(rate);
    let (warm_up, time, noise_time) = match plan.quick {
        false => (WARM_UP, TIME, NOISE),
        true => (Duration::from_millis(50), Duration::from_millis(600), Duration::from_millis(5)),
    };
    let stream = Stream::new(Keys::Uniform(KEYS), rate / 1_000);
    let load = Load::Constant(Rate::per_second(rate as f64));
    let schedule = load.schedule().expect("a constant load has a schedule");
    let mut by_hand = Runs::new("loop", 1, None);
    let mut own = vec![Runs::new("millstream", 1, None), Runs::new("millstream", 2, None)];
    if with_checkpoints {
        own.push(Runs::new("millstream", 1, Some(CHECKPOINT_INTERVAL)));
        own.push(Runs::new("millstream", 2, Some(CHECKPOINT_INTERVAL)));
    }
    for run in 1..=plan.runs {
        eprintln!("w5 {}, {} events/s: run {run} of {}", shape.name, thousands(rate), plan.runs);
        by_hand.measure_noise(noise_time);
        let reference = looped::run(&stream, &schedule, shape, warm_up, time);
        by_hand.add(&reference.latencies, rate as f64);
        for runs in &mut own {
            runs.measure_noise(noise_time);
            let (measurement, windows) = job(&stream, shape, &load, warm_up, time, runs.workers, runs.checkpoints);
            agree(&reference.windows, &windows, runs.workers);
            runs.add(&measurement.latencies, measurement.achieved_per_s);
        }
    }
    let figures = Figures { shape, rate, reference: &by_hand };
    [&by_hand].into_iter().chain(&own).for_each(|runs| figures.tell(runs, report));
}

/// One run of the job, and the windows of each worker.
fn job(
    stream: &Stream,
    shape: &Shape,
    load: &Load,
    warm_up: Duration,
    time: Duration,
    workers: usize,
    checkpoints: Option<Duration>,
) -> (Measurement, Vec<Vec<Fired>>) {
    let windows = Arc::new(Mutex::new(Vec::new()));
    let mut part = Part { windows: Vec::new(), all: Arc::clone(&windows) };
    let stream = stream.clone();
    let mut job = Job::new("latency").workers(workers);
    let dir = checkpoints.map(|_| tempfile::tempdir().expect("a temporary directory"));
    if let (Some(dir), Some(interval)) = (&dir, checkpoints) {
        job = job.checkpoint_dir(dir.path().join("checkpoints")).checkpoint_every(interval);
    }
    let sliding = Sliding::of(EventSpan::millis(shape.size_ms as i64), EventSpan::millis(shape.slide_ms as i64));
    let bound = EventSpan::millis(JITTER_MS as i64);
    let source = Generator::forever(move |i| stream.event(i)).splits(SPLITS);
    job.source(source, Watermarks::bounded_out_of_orderness(bound, |event: &Event| event.at))
        .key_by(|event| event.key)
        .window(sliding)
        .aggregate(Sum::of(|event: &Event| event.value))
        .name("sums")
        .sink(for_each(move |record: Record<(u64, Window, i64)>| part.add(record.value)));
    let measurement = job.measure(load, warm_up, time).expect("the job runs");
    let windows = std::mem::take(&mut *windows.lock().unwrap_or_else(PoisonError::into_inner));
    (measurement, windows)
}

/// What one worker's sink has seen, handed over when it is dropped.
struct Part {
    windows: Vec<Fired>,
    all: Arc<Mutex<Vec<Vec<Fired>>>>,
}

impl Part {
    #[inline]
    fn add(&mut self, (key, window, sum): (u64, Window, i64)) {
        let start_us = window.start.micros();
        if self.windows.last().is_none_or(|last| last.start_us != start_us) {
            self.windows.push(Fired { start_us, ..Fired::default() });
        }
        if let Some(last) = self.windows.last_mut() {
            last.add(result_digest(key, start_us, sum));
        }
    }
}

impl Clone for Part {
    fn clone(&self) -> Self {
        Part { windows: Vec::new(), all: Arc::clone(&self.all) }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.windows.is_empty() {
            let windows = std::mem::take(&mut self.windows);
            self.all.lock().unwrap_or_else(PoisonError::into_inner).push(windows);
        }
    }
}

/// The results of all windows that both have completed are the same, or this is no result. A worker fires windows in order, so
/// all before its last one are complete.
fn agree(reference: &[Fired], parts: &[Vec<Fired>], workers: usize) {
    assert_eq!(parts.len(), workers, "a worker had no results");
    let last = |windows: &[Fired]| windows.last().map_or(0, |last| last.start_us);
    let end = parts.iter().map(|part| last(part)).fold(last(reference), i64::min);
    let sum = |windows: &mut dyn Iterator<Item = &Fired>| {
        let mut by_start: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
        for Fired { start_us, results, digest } in windows.filter(|window| window.start_us < end && window.results > 0)
        {
            let all = by_start.entry(*start_us).or_default();
            *all = (all.0 + results, all.1.wrapping_add(*digest));
        }
        by_start
    };
    let (expected, found) = (sum(&mut reference.iter()), sum(&mut parts.iter().flatten()));
    assert!(!expected.is_empty(), "no window is complete");
    assert_eq!(expected, found, "the results differ (start of window: results, digest)");
}

/// What the figures of one race have in common.
struct Figures<'a> {
    shape: &'a Shape,
    rate: u64,
    reference: &'a Runs,
}

const TITLE: &str = "Latency: microseconds, all runs together; the ratio is own by loop, so below 1 is better; \
    noise is what the machine adds by itself";
const HEADER: [&str; 17] = [
    "workload",
    "window",
    "events/s",
    "contestant",
    "workers",
    "checkpoints",
    "latency",
    "results",
    "p50",
    "p99",
    "p99.9",
    "p99.99",
    "max",
    "p99.99 of runs",
    "ratio p50",
    "ratio p99.99",
    "noise p99.99",
];

impl Figures<'_> {
    /// One line of the table and one object for each kind of latency.
    fn tell(&self, runs: &Runs, report: &mut Report) {
        let noise = runs.noise.delays.percentiles();
        for kind in KINDS {
            let of = |runs: &Runs| runs.merged.get(&kind).map(Latencies::percentiles).unwrap_or_default();
            let (own, reference) = (of(runs), of(self.reference));
            let each = runs.each.get(&kind).map(Vec::as_slice).unwrap_or_default();
            let reference_each = self.reference.each.get(&kind).map(Vec::as_slice).unwrap_or_default();
            if each.is_empty() || reference_each.is_empty() {
                // Few events and a slow machine: nothing was measured.
                continue;
            }
            let spread = |of: fn(&Percentiles) -> u64| Spread::of(each.iter().map(|run| micros(of(run))));
            let ratios = |of: fn(&Percentiles) -> u64| {
                let ratio = |(own, reference)| of(own) as f64 / of(reference) as f64;
                Spread::of(each.iter().zip(reference_each).map(ratio)).median
            };
            let is_reference = std::ptr::eq(runs, self.reference);
            let ratio = |of: fn(&Percentiles) -> u64| (!is_reference).then(|| of(&own) as f64 / of(&reference) as f64);
            let [p50, p9999]: [fn(&Percentiles) -> u64; 2] = [|p| p.p50_ns, |p| p.p9999_ns];
            let show = |ns: u64| format!("{:.0}", micros(ns));
            let show_ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let p9999_of_runs = spread(p9999);
            report.row(
                TITLE,
                &HEADER,
                vec![
                    "w5".to_string(),
                    self.shape.name.to_string(),
                    thousands(self.rate),
                    runs.contestant.to_string(),
                    runs.workers.to_string(),
                    runs.checkpoints.map_or(String::new(), |interval| format!("every {interval:?}")),
                    kind.title().to_string(),
                    thousands(own.count),
                    show(own.p50_ns),
                    show(own.p99_ns),
                    show(own.p999_ns),
                    show(own.p9999_ns),
                    show(own.max_ns),
                    format!("{:.0}..{:.0}", p9999_of_runs.min, p9999_of_runs.max),
                    show_ratio(ratio(p50)),
                    show_ratio(ratio(p9999)),
                    show(noise.p9999_ns),
                ],
            );
            report.json(&json!({
                "workload": "w5", "keys": KEYS, "rate": self.rate, "window": self.shape.name,
                "contestant": runs.contestant, "workers": runs.workers,
                "checkpoint_interval_ms": runs.checkpoints.map(|interval| interval.as_millis() as u64), "kind": kind.name(),
                "p50_us": micros(own.p50_ns), "p99_us": micros(own.p99_ns), "p999_us": micros(own.p999_ns),
                "p9999_us": micros(own.p9999_ns), "max_us": micros(own.max_ns), "results": own.count,
                "p50_us_median": spread(p50).median, "p99_us_median": spread(|p| p.p99_ns).median,
                "p999_us_median": spread(|p| p.p999_ns).median, "p9999_us_median": p9999_of_runs.median,
                "p9999_us_min": p9999_of_runs.min, "p9999_us_max": p9999_of_runs.max,
                "achieved_per_s": Spread::of(runs.achieved_per_s.iter().copied()).median.round(),
                "reference": if is_reference { None } else { Some("loop") },
                "reference_p50_us": micros(reference.p50_ns), "reference_p9999_us": micros(reference.p9999_ns),
                "ratio_p50": ratio(p50), "ratio_p9999": ratio(p9999),
                "ratio_p50_median": (!is_reference).then(|| ratios(p50)),
                "ratio_p9999_median": (!is_reference).then(|| ratios(p9999)),
                "noise_p9999_us": micros(noise.p9999_ns), "runs": each.len(),
            }));
        }
    }
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}
