//! The flight delay job of `examples/`, on the real data: from a compressed CSV file to sliding windows.
//!
//! One file is one split, which one worker reads: a second worker has only the windows to do.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use millstream::prelude::*;
use serde::Deserialize;

use crate::kit::Plan;
use crate::kit::event::digest;
use crate::kit::race::Race;
use crate::kit::report::Report;
use crate::kit::threads::shared_sum;

const DEPARTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/departures-2013.csv.gz");
const DEPARTURES_COUNT: u64 = 328_521;
const MINUTE_US: i64 = 60_000_000;

pub fn run(plan: Plan, report: &mut Report) {
    let mut race = Race::new("flights", "", None, DEPARTURES_COUNT);
    let looped = race.add("loop", 1, &[], |_| looped());
    for workers in [1, 2] {
        race.add("millstream", workers, &[looped], job);
    }
    race.run(plan, report);
}

#[derive(Clone, Deserialize)]
struct Departure {
    #[serde(with = "iso8601")]
    scheduled_at: EventTime,
    origin: String,
    delay_min: i64,
}

/// Flights, total delay, greatest delay, flights more than 15 minutes late.
type Delays = (u64, i64, i64, u64);

fn result_digest(origin: &str, start_us: i64, (flights, delay, max, late): Delays) -> u64 {
    let origin = origin.bytes().fold(0, |hash, byte| hash * 256 + u64::from(byte));
    digest([origin ^ (start_us as u64), flights, delay as u64, max as u64, late])
}

/// Every window of every record in a hash map, fired by the watermark.
fn looped() -> u64 {
    let file = std::fs::File::open(DEPARTURES).expect("the data is there");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("the data reads");
    let mut windows: BTreeMap<i64, HashMap<String, Delays>> = BTreeMap::new();
    let (mut sum, mut highest) = (0u64, i64::MIN / 2);
    let mut fire = |start: i64, airports: HashMap<String, Delays>| {
        for (origin, acc) in airports {
            sum = sum.wrapping_add(result_digest(&origin, start, acc));
        }
    };
    for departure in csv::Reader::from_reader(text.as_bytes()).deserialize() {
        let Departure { scheduled_at, origin, delay_min } = departure.expect("the data is right");
        let watermark = highest - 60 * MINUTE_US;
        let at = scheduled_at.micros();
        let last = at.div_euclid(10 * MINUTE_US) * 10 * MINUTE_US;
        for start in (0..6).map(|i| last - i * 10 * MINUTE_US).filter(|start| start + 60 * MINUTE_US > watermark) {
            let acc = windows.entry(start).or_default().entry_ref(&origin).or_insert((0, 0, i64::MIN, 0));
            *acc = (acc.0 + 1, acc.1 + delay_min, acc.2.max(delay_min), acc.3 + u64::from(delay_min > 15));
        }
        highest = highest.max(at);
        let watermark = highest - 60 * MINUTE_US;
        while let Some(first) = windows.first_entry().filter(|first| first.key() + 60 * MINUTE_US <= watermark) {
            let (start, airports) = first.remove_entry();
            fire(start, airports);
        }
    }
    windows.into_iter().for_each(|(start, airports)| fire(start, airports));
    sum
}

fn job(workers: usize) -> u64 {
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
        add(result_digest(&origin, window.start.micros(), acc));
    }));
    job.run().expect("the job runs");
    total.load(Ordering::SeqCst)
}
