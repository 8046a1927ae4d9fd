//! W3: the sum per key in sliding windows. What does overlap cost?
//!
//! Beside the tumbling window of the same size, which has as much state but fires once where the sliding one fires a hundred or
//! sixty times; beside the tumbling window of the slide's length, which fires as often; and, with few events, beside the naive
//! loop that adds every event to all windows that it belongs to.
//!
//! A hundred kinds of windows at once stand beside one of them. Windows of one size with an overlap of 10, 100 and 1,000 stand beside the tumbling window of that size, and a stream of which half comes behind its
//! watermark, by up to 10 slides, beside one in which nothing does.
//!
//! Per size and number of keys the stream has as many events, so its rate is chosen such that it spans 2 or 1.3 window sizes. A
//! sliding window also fires for the parts of a window before the stream's beginning and behind its end, as it must: that is
//! counted.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use millstream::prelude::*;
use millstream::window::Windows;

use crate::kit::Plan;
use crate::kit::event::{Event, JITTER_MS, Keys, Stream, digest, mix};
use crate::kit::race::{Outcome, Race};
use crate::kit::report::Report;
use crate::kit::threads::shared_sum;

pub struct Shape {
    pub name: &'static str,
    pub size_ms: u64,
    pub slide_ms: u64,
    /// Events per millisecond of event time.
    rate: u64,
}

pub const SHAPES: [Shape; 2] = [
    Shape { name: "10 s / 100 ms", size_ms: 10_000, slide_ms: 100, rate: 1_000 },
    Shape { name: "60 s / 1 s", size_ms: 60_000, slide_ms: 1_000, rate: 250 },
];

pub fn run(plan: Plan, report: &mut Report) {
    for shape in &SHAPES {
        for keys in [1_000, 100_000] {
            let keys = Keys::Uniform(keys);
            beside_tumbling(shape, keys, plan, report);
            beside_naive(shape, keys, plan, report);
        }
    }
    overlaps(plan, report);
    half_late(plan, report);
    several(plan, report);
}

/// What somebody would ask for who wants to look at a stream closely and from afar is windows of every size in ten steps, or as near to it as
/// whole seconds are. The other two are what costs least and most results.
fn several(plan: Plan, report: &mut Report) {
    for keys in [100, 1_000] {
        let keys = Keys::Uniform(keys);
        a_hundred("100 kinds, tumbling", |size| size, keys, plan, report);
        a_hundred("100 kinds, in ten steps", |size| (size + 9) / 10, keys, plan, report);
        a_hundred("100 kinds, every second", |_| 1, keys, plan, report);
    }
}

/// A hundred kinds of windows over one stream, which share slices of a second. Beside them, the shortest and the longest of these kinds alone.
/// The stream spans two of the longest windows.
fn a_hundred(name: &'static str, slide: fn(i64) -> i64, keys: Keys, plan: Plan, report: &mut Report) {
    let events = plan.scaled(20_000_000);
    let stream = &Stream::new(keys, plan.scaled(100));
    let kind = |size| Sliding::of(EventSpan::secs(size), EventSpan::secs(slide(size)));
    let kinds: &Vec<Sliding> = &(1..=100).map(kind).collect();
    let mut race = Race::new("w3", name, Some(keys), events);
    // Each kind has other sums, so there is nothing to check but how many there are.
    let unlike = |outcome: Outcome| Outcome { checksum: None, ..outcome };
    for workers in [1, 2] {
        let alone = |window: Sliding| move |workers| unlike(job(stream, events, workers, window, |_, _, _| 0));
        let shortest = race.add("1 s alone", workers, &[], alone(kinds[0]));
        let longest = race.add("100 s alone", workers, &[], alone(kinds[99]));
        race.add("all", workers, &[shortest, longest], move |workers| {
            unlike(job(stream, events, workers, Several::of(kinds.clone()), |_, _, _| 0))
        });
        race.add("all: max", workers, &[shortest, longest], move |workers| {
            let (stream, max) = (stream.clone(), Max::of(|event: &Event| event.value));
            let windows = Several::of(kinds.clone());
            unlike(job_of(move |i| stream.event(i), events, workers, windows, max, |_, _, _| 0))
        });
    }
    race.run(plan.brief(), report);
}

/// Windows of 100 s that overlap more and more. The stream spans two of them.
fn overlaps(plan: Plan, report: &mut Report) {
    const OVERLAPS: [(&str, u64); 3] = [("100 s / 10 s", 10_000), ("100 s / 1 s", 1_000), ("100 s / 100 ms", 100)];
    for keys in [100, 1_000] {
        let keys = Keys::Uniform(keys);
        for (name, slide_ms) in OVERLAPS {
            let events = plan.scaled(20_000_000);
            let shape = &Shape { name, size_ms: 100_000, slide_ms, rate: 100 };
            let stream = &Stream::new(keys, plan.scaled(shape.rate));
            let mut race = Race::new("w3", name, Some(keys), events);
            let sum = |_: u64, _: i64, sum: i64| sum as u64;
            let size = race.add("tumbling, size", 2, &[], move |workers| {
                job(stream, events, workers, Tumbling::of(EventSpan::millis(shape.size_ms as i64)), sum)
            });
            race.add("millstream", 2, &[size], move |workers| {
                let Outcome { checksum, counts } = job(stream, events, workers, sliding(shape), sum);
                Outcome { checksum: checksum.map(|sum| sum / (shape.size_ms / shape.slide_ms)), counts }
            });
            // What cannot be inverted. Greatest values do not add up to anything.
            let max = |workers, window: WindowKind| {
                let stream = stream.clone();
                let max = Max::of(|event: &Event| event.value);
                let outcome = match window {
                    WindowKind::Tumbling(window) => {
                        job_of(move |i| stream.event(i), events, workers, window, max, |_, _, _| 0)
                    }
                    WindowKind::Sliding(window) => {
                        job_of(move |i| stream.event(i), events, workers, window, max, |_, _, _| 0)
                    }
                };
                Outcome { checksum: None, ..outcome }
            };
            let tumbling = Tumbling::of(EventSpan::millis(shape.size_ms as i64));
            let size =
                race.add("tumbling, size: max", 2, &[], move |workers| max(workers, WindowKind::Tumbling(tumbling)));
            race.add("millstream: max", 2, &[size], move |workers| max(workers, WindowKind::Sliding(sliding(shape))));
            race.run(plan.brief(), report);
        }
    }
}

enum WindowKind {
    Tumbling(Tumbling),
    Sliding(Sliding),
}

/// How far behind a record of the late half may be: 10 slides of 100 ms.
const LATE_MS: u64 = 1_000;

/// Windows of 10 s every 100 ms, with records that count in some of their windows only.
fn half_late(plan: Plan, report: &mut Report) {
    let (events, shape, keys) = (plan.scaled(20_000_000), &SHAPES[0], Keys::Uniform(1_000));
    let stream = Stream::new(keys, plan.scaled(shape.rate));
    let (none, half) = (stream.clone(), stream);
    let mut race = Race::new("w3", "half of the records late", Some(keys), events);
    let sum = || Sum::of(|event: &Event| event.value);
    let results = |_: u64, _: i64, _: i64| 0;
    // They count in other windows, so sums differ.
    let unlike = |outcome: Outcome| Outcome { checksum: None, ..outcome };
    // Half of each split, by chance. Whoever has none late pays for the same chance.
    let event = |late: u64, stream: &Stream, i: u64| {
        let (event, chance) = (stream.event(i), mix(!i));
        let back = (chance & late) * (JITTER_MS + (chance >> 1) % LATE_MS);
        Event { at: event.at - EventSpan::millis(back as i64), ..event }
    };
    let (late, not) = (black_box(1), black_box(0));
    let none_late = race.add("none late", 2, &[], move |workers| {
        let none = none.clone();
        unlike(job_of(move |i| event(not, &none, i), events, workers, sliding(shape), sum(), results))
    });
    race.add("half late", 2, &[none_late], move |workers| {
        let half = half.clone();
        unlike(job_of(move |i| event(late, &half, i), events, workers, sliding(shape), sum(), results))
    });
    race.run(plan.brief(), report);
}

/// The checksum is the sum of all sums, divided by the number of windows that an event belongs to: the same for all shapes.
fn beside_tumbling(shape: &Shape, keys: Keys, plan: Plan, report: &mut Report) {
    let events = plan.scaled(20_000_000);
    let stream = &Stream::new(keys, plan.scaled(shape.rate));
    let mut race = Race::new("w3", shape.name, Some(keys), events);
    let sum = |_: u64, _: i64, sum: i64| sum as u64;
    let tumbling = |ms| Tumbling::of(EventSpan::millis(ms as i64));
    let size =
        race.add("tumbling, size", 2, &[], move |workers| job(stream, events, workers, tumbling(shape.size_ms), sum));
    let slide =
        race.add("tumbling, slide", 2, &[], move |workers| job(stream, events, workers, tumbling(shape.slide_ms), sum));
    race.add("millstream", 2, &[size, slide], move |workers| {
        let Outcome { checksum, counts } = job(stream, events, workers, sliding(shape), sum);
        Outcome { checksum: checksum.map(|sum| sum / (shape.size_ms / shape.slide_ms)), counts }
    });
    race.run(plan.brief(), report);
}

fn beside_naive(shape: &Shape, keys: Keys, plan: Plan, report: &mut Report) {
    let events = plan.scaled(300_000);
    let stream = &Stream::new(keys, plan.scaled(shape.rate));
    let mut race = Race::new("w3", shape.name, Some(keys), events);
    let naive = race.add("naive loop", 1, &[], move |_| naive_loop(stream, events, shape));
    race.add("millstream", 1, &[naive], move |workers| job(stream, events, workers, sliding(shape), result_digest));
    race.run(plan.brief(), report);
}

pub fn sliding(shape: &Shape) -> Sliding {
    Sliding::of(EventSpan::millis(shape.size_ms as i64), EventSpan::millis(shape.slide_ms as i64))
}

pub fn result_digest(key: u64, start_us: i64, sum: i64) -> u64 {
    digest([key, start_us as u64, sum as u64, 0, 0])
}

/// Sums over all results what `check` makes of key, start and sum.
pub fn job(
    stream: &Stream,
    events: u64,
    workers: usize,
    window: impl Windows<Event>,
    check: impl Fn(u64, i64, i64) -> u64 + Clone + Send + 'static,
) -> Outcome {
    let stream = stream.clone();
    job_of(move |i| stream.event(i), events, workers, window, Sum::of(|event: &Event| event.value), check)
}

fn job_of(
    event: impl Fn(u64) -> Event + Clone + Send + Sync + 'static,
    events: u64,
    workers: usize,
    window: impl Windows<Event>,
    aggregate: impl Aggregate<Event, Out = i64>,
    check: impl Fn(u64, i64, i64) -> u64 + Clone + Send + 'static,
) -> Outcome {
    let (total, mut add) = shared_sum();
    let job = Job::new("sums").workers(workers);
    let source = Generator::new(events, event).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .key_by(|event| event.key)
        .window(window)
        .aggregate(aggregate)
        .sink(for_each(move |record: Record<(u64, Window, i64)>| {
            let (key, window, sum) = record.value;
            add(check(key, window.start.micros(), sum));
        }));
    let summary = job.run().expect("the job runs");
    Outcome { checksum: Some(total.load(Ordering::SeqCst)), counts: vec![("results", summary.records_out)] }
}

/// A hash map per open window; every event goes into all that it belongs to.
fn naive_loop(stream: &Stream, events: u64, shape: &Shape) -> u64 {
    let (slide, windows) = (shape.slide_ms as i64 * 1_000, (shape.size_ms / shape.slide_ms) as i64);
    let mut open: VecDeque<HashMap<u64, i64>> = VecDeque::new();
    let (mut first, mut highest, mut sum) = (None, i64::MIN, 0u64);
    let mut fire = |number: i64, table: HashMap<u64, i64>| {
        for (key, total) in table {
            sum = sum.wrapping_add(result_digest(key, number * slide, total));
        }
    };
    for i in 0..events {
        let Event { key, value, at } = stream.event(i);
        let last = at.micros().div_euclid(slide);
        // The first event may be ahead of others by the jitter: leave room for them.
        let first = first.get_or_insert(last - windows - JITTER_MS as i64 * 1_000 / slide);
        while (open.len() as i64) <= last - *first {
            open.push_back(HashMap::new());
        }
        for number in (last + 1 - windows).max(*first)..=last {
            *open[(number - *first) as usize].entry(key).or_insert(0) += value;
        }
        if at.micros() > highest {
            highest = at.micros();
            while (*first + windows) * slide <= highest - JITTER_MS as i64 * 1_000 {
                let table = open.pop_front().expect("windows are opened in order");
                fire(*first, table);
                *first += 1;
            }
        }
    }
    let first = first.unwrap_or_default();
    open.into_iter().enumerate().for_each(|(at, table)| fire(first + at as i64, table));
    sum
}
