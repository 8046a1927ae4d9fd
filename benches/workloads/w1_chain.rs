//! W1: filter and map. The checksum takes in the time of each record, so nobody can leave it out.

use std::sync::atomic::Ordering;

use millstream::prelude::*;

use crate::kit::Plan;
use crate::kit::event::{Event, Keys, Split, Stream};
use crate::kit::race::Race;
use crate::kit::report::Report;
use crate::kit::threads::{shared_sum, sum_of};

pub fn run(plan: Plan, report: &mut Report) {
    let (keys, events) = (Keys::Uniform(1_000), plan.scaled(20_000_000));
    let stream = Stream::new(keys, plan.scaled(5_000));
    let mut race = Race::new("w1", "", Some(keys), events);
    for workers in [1, 2] {
        let looped = race.add("loop", workers, &[], |workers| looped(&stream, events, workers));
        race.add("millstream", workers, &[looped], |workers| job(&stream, events, workers));
    }
    race.run(plan, report);
}

pub fn keep(event: &Event) -> bool {
    event.value % 3 != 0
}

pub fn change(event: Event) -> (u64, i64) {
    (event.key, event.value * 2 + 1)
}

pub fn checksum(at: EventTime, (key, value): (u64, i64)) -> u64 {
    key ^ value as u64 ^ at.micros() as u64
}

pub fn looped(stream: &Stream, events: u64, threads: usize) -> u64 {
    sum_of(threads, |p| {
        let mut split = Split::new(stream, events, p, threads);
        let events = std::iter::from_fn(|| split.event());
        let results = events.filter(keep).map(|event| (event.at, change(event)));
        results.fold(0, |sum, (at, value)| sum.wrapping_add(checksum(at, value)))
    })
}

pub fn job(stream: &Stream, events: u64, workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let stream = stream.clone();
    let job = Job::new("chain").workers(workers);
    let source = Generator::new(events, move |i| stream.event(i)).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .filter(keep)
        .map(change)
        .sink(for_each(move |record: Record<(u64, i64)>| add(checksum(record.at, record.value))));
    job.run().expect("the job runs");
    total.load(Ordering::SeqCst)
}
