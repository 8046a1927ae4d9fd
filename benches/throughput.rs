//! How many records a second? Each job beside a hand-written loop over a hash map that gives the same results.
//!
//! `./mill bench throughput`; runs on a machine with nothing else to do.

mod kit;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use kit::{Contestant, Event, Stream, digest, race};
use millstream::prelude::*;
use serde::Deserialize;

fn main() {
    for (keys, events) in [(1_000, 20_000_000), (1_000_000, 20_000_000)] {
        let stream = Stream { seed: 42, keys, rate_per_ms: 5_000, jitter_ms: 50 };
        let title = format!("tumbling 1 s, count + sum + max, {} keys", millstream::summary::thousands(keys));
        race(
            &title,
            events,
            vec![
                Contestant::new("loop over a hash map", move || tumbling_loop(stream, events)),
                Contestant::new("millstream, 1 worker", move || tumbling_job(stream, events, 1)),
                Contestant::new("millstream, 2 workers", move || tumbling_job(stream, events, 2)),
            ],
        );
    }
    let events = 20_000_000;
    let stream = Stream { seed: 42, keys: 1_000, rate_per_ms: 5_000, jitter_ms: 50 };
    race(
        "map + filter",
        events,
        vec![
            Contestant::new("loop", move || chain_loop(stream, events)),
            Contestant::new("millstream, 1 worker", move || chain_job(stream, events, 1)),
            Contestant::new("millstream, 2 workers", move || chain_job(stream, events, 2)),
        ],
    );
    race(
        "flight delays, from .csv.gz to results",
        328_521,
        vec![
            Contestant::new("loop over hash maps", flights_loop),
            Contestant::new("millstream, 1 worker", || flights_job(1)),
            Contestant::new("millstream, 2 workers", || flights_job(2)),
        ],
    );
}

/// The loop: one hash map per window, fired when the watermark has come to its end.
fn tumbling_loop(stream: Stream, events: u64) -> u64 {
    const SIZE: i64 = 1_000_000;
    let mut open: BTreeMap<i64, HashMap<u64, (u64, i64, i64)>> = BTreeMap::new();
    let (mut sum, mut highest) = (0u64, i64::MIN);
    let mut fire = |window: i64, keys: HashMap<u64, (u64, i64, i64)>| {
        for (key, (count, total, max)) in keys {
            sum = sum.wrapping_add(digest([key, window as u64, count, total as u64, max as u64]));
        }
    };
    let mut hot = (i64::MIN, HashMap::new());
    for i in 0..events {
        let Event { key, value, at } = stream.event(i);
        let window = at.micros().div_euclid(SIZE);
        if window != hot.0 {
            let (old, map) = std::mem::replace(&mut hot, (window, open.remove(&window).unwrap_or_default()));
            if old != i64::MIN {
                open.insert(old, map);
            }
        }
        let acc = hot.1.entry(key).or_insert((0, 0, i64::MIN));
        *acc = (acc.0 + 1, acc.1 + value, acc.2.max(value));
        if at.micros() > highest {
            highest = at.micros();
            while let Some(first) = open.first_entry().filter(|first| (first.key() + 1) * SIZE <= highest - 50_000) {
                let (window, keys) = first.remove_entry();
                fire(window, keys);
            }
        }
    }
    open.insert(hot.0, hot.1);
    open.into_iter().for_each(|(window, keys)| fire(window, keys));
    sum
}

fn tumbling_job(stream: Stream, events: u64, workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let job = Job::new("tumbling").workers(workers);
    let source = Generator::new(events, move |i| stream.event(i)).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .key_by(|event| event.key)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate((Count, Sum::of(|event: &Event| event.value), Max::of(|event: &Event| event.value)))
        .sink(for_each(move |record: Record<(u64, Window, (u64, i64, i64))>| {
            let (key, window, (count, total, max)) = record.value;
            let window = window.start.micros() / 1_000_000;
            add(digest([key, window as u64, count, total as u64, max as u64]));
        }));
    job.run().expect("the job runs");
    total.load(Ordering::SeqCst)
}

fn keep(event: &Event) -> bool {
    event.value % 3 != 0
}

fn change(event: Event) -> (u64, i64) {
    (event.key, event.value * 2 + 1)
}

fn chain_loop(stream: Stream, events: u64) -> u64 {
    let results = (0..events).map(|i| stream.event(i)).filter(keep).map(change);
    results.fold(0, |sum: u64, (key, value)| sum.wrapping_add(key ^ value as u64))
}

fn chain_job(stream: Stream, events: u64, workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let job = Job::new("chain").workers(workers);
    let source = Generator::new(events, move |i| stream.event(i)).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .filter(keep)
        .map(change)
        .sink(for_each(move |record: Record<(u64, i64)>| add(record.value.0 ^ record.value.1 as u64)));
    job.run().expect("the job runs");
    total.load(Ordering::SeqCst)
}

/// A sum over all workers. Each adds to its own part and hands it over when it is dropped, so that counting costs little.
fn shared_sum() -> (Arc<AtomicU64>, impl FnMut(u64) + Clone + Send + 'static) {
    struct Part(Arc<AtomicU64>, u64);
    impl Clone for Part {
        fn clone(&self) -> Self {
            Part(Arc::clone(&self.0), 0)
        }
    }
    impl Drop for Part {
        fn drop(&mut self) {
            let (sum, part) = (&self.0, self.1);
            let _ = sum.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |sum| Some(sum.wrapping_add(part)));
        }
    }
    let total = Arc::new(AtomicU64::new(0));
    let mut part = Part(Arc::clone(&total), 0);
    (total, move |value| {
        let part = &mut part;
        part.1 = part.1.wrapping_add(value);
    })
}

const DEPARTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/departures-2013.csv.gz");

#[derive(Clone, Deserialize)]
struct Departure {
    #[serde(with = "iso8601")]
    scheduled_at: EventTime,
    origin: String,
    delay_min: i64,
}

/// Flights, total delay, greatest delay, flights more than 15 minutes late.
type Delays = (u64, i64, i64, u64);

fn flight_digest(origin: &str, start_us: i64, (flights, delay, max, late): Delays) -> u64 {
    let origin = origin.bytes().fold(0, |hash, byte| hash * 256 + u64::from(byte));
    digest([origin ^ (start_us as u64), flights, delay as u64, max as u64, late])
}

/// The loop: every window of every record in a hash map, fired by the watermark.
fn flights_loop() -> u64 {
    const MINUTE: i64 = 60_000_000;
    let file = std::fs::File::open(DEPARTURES).expect("the data is there");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("the data reads");
    let mut windows: BTreeMap<i64, HashMap<String, Delays>> = BTreeMap::new();
    let (mut sum, mut highest) = (0u64, i64::MIN / 2);
    let mut fire = |start: i64, airports: HashMap<String, Delays>| {
        for (origin, acc) in airports {
            sum = sum.wrapping_add(flight_digest(&origin, start, acc));
        }
    };
    for departure in csv::Reader::from_reader(text.as_bytes()).deserialize() {
        let Departure { scheduled_at, origin, delay_min } = departure.expect("the data is right");
        let watermark = highest - 60 * MINUTE;
        let at = scheduled_at.micros();
        let last = at.div_euclid(10 * MINUTE) * 10 * MINUTE;
        for start in (0..6).map(|i| last - i * 10 * MINUTE).filter(|start| start + 60 * MINUTE > watermark) {
            let acc = windows.entry(start).or_default().entry_ref(&origin).or_insert((0, 0, i64::MIN, 0));
            *acc = (acc.0 + 1, acc.1 + delay_min, acc.2.max(delay_min), acc.3 + u64::from(delay_min > 15));
        }
        highest = highest.max(at);
        while let Some(first) = windows.first_entry().filter(|first| first.key() + 60 * MINUTE <= highest - 60 * MINUTE)
        {
            let (start, airports) = first.remove_entry();
            fire(start, airports);
        }
    }
    windows.into_iter().for_each(|(start, airports)| fire(start, airports));
    sum
}

fn flights_job(workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let job = Job::new("flights").workers(workers);
    job.source(
        CsvFiles::new([DEPARTURES]),
        Watermarks::bounded_out_of_orderness(EventSpan::mins(60), |departure: &Departure| departure.scheduled_at),
    )
    .key_by(|departure| departure.origin.clone())
    .window(Sliding::of(EventSpan::hours(1), EventSpan::mins(10)))
    .aggregate((
        Count,
        Sum::of(|departure: &Departure| departure.delay_min),
        Max::of(|departure: &Departure| departure.delay_min),
        Sum::of(|departure: &Departure| u64::from(departure.delay_min > 15)),
    ))
    .sink(for_each(move |record: Record<(String, Window, Delays)>| {
        let (origin, window, acc) = record.value;
        add(flight_digest(&origin, window.start.micros(), acc));
    }));
    job.run().expect("the job runs");
    total.load(Ordering::SeqCst)
}
