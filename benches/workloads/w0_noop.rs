//! W0: from a source to a sink that only counts. What every other job pays as well.

use std::hint::black_box;
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
    let mut race = Race::new("w0", "", Some(keys), events);
    for workers in [1, 2] {
        let looped = race.add("loop", workers, &[], |workers| looped(&stream, events, workers));
        race.add("millstream", workers, &[looped], |workers| job(&stream, events, workers));
    }
    race.run(plan, report);
}

/// Makes every event, and nothing of it.
fn looped(stream: &Stream, events: u64, threads: usize) -> u64 {
    sum_of(threads, |p| {
        let mut count = 0;
        let mut split = Split::new(stream, events, p, threads);
        while let Some(event) = split.event() {
            black_box(event);
            count += 1;
        }
        count
    })
}

fn job(stream: &Stream, events: u64, workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let stream = stream.clone();
    let job = Job::new("no-op").workers(workers);
    let source = Generator::new(events, move |i| stream.event(i)).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .sink(for_each(move |_: Record<Event>| add(1)));
    job.run().expect("the job runs");
    total.load(Ordering::SeqCst)
}
