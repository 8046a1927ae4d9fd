//! W2: count, sum and maximum per key in tumbling windows of one second.
//!
//! Few keys show what the runtime costs beside a loop, many show how the state is reached in memory.

pub mod looped;
pub mod memory;
mod on_timely;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use looped::Take;
use millstream::prelude::*;

use crate::kit::Plan;
use crate::kit::event::{Event, Keys, Stream};
use crate::kit::race::{Outcome, Race};
use crate::kit::report::Report;
use crate::kit::threads::shared_sum;

use crate::kit::windows::{Acc, SIZE_US, result_digest};

pub fn run(plan: Plan, report: &mut Report) {
    for keys in [1_000, 100_000, 1_000_000, 10_000_000] {
        for keys in [Keys::Uniform(keys), Keys::Zipf(keys)] {
            race(keys, plan, report);
        }
    }
    memory::run(plan, report);
}

fn race(keys: Keys, plan: Plan, report: &mut Report) {
    let (large, huge) = (keys.count() >= 1_000_000, keys.count() > 1_000_000);
    let events = plan.scaled(20_000_000);
    let stream = Stream::new(keys, plan.scaled(if huge { 10_000 } else { 5_000 }));
    let mut race = Race::new("w2", "", Some(keys), events);
    for workers in [1, 2] {
        if workers == 1 && huge && !plan.full {
            continue;
        }
        let looped = race.add("loop", workers, &[], |workers| looped::run(&stream, events, workers, Take::OneByOne));
        let batches = race
            .add("loop, batches", workers, &[looped], |workers| looped::run(&stream, events, workers, Take::Batches));
        let timely = race.add("timely", workers, &[looped], |workers| on_timely::run(&stream, events, workers));
        race.add("millstream", workers, &[looped, batches, timely], |workers| job(&stream, events, workers, None));
    }
    race.run(if large { plan.brief() } else { plan }, report);
}

/// With a checkpoint every second, if there is a directory for them.
pub fn job(stream: &Stream, events: u64, workers: usize, checkpoints: Option<&Path>) -> Outcome {
    let (total, mut add) = shared_sum();
    let stream = stream.clone();
    let mut job = Job::new("tumbling").workers(workers);
    let keeps = checkpoints.is_some();
    if let Some(dir) = checkpoints {
        job = job.checkpoint_dir(dir).checkpoint_every(Duration::from_secs(1));
    }
    let source = Generator::new(events, move |i| stream.event(i)).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .key_by(|event| event.key)
        .window(Tumbling::of(EventSpan::micros(SIZE_US)))
        .aggregate((Count, Sum::of(|event: &Event| event.value), Max::of(|event: &Event| event.value)))
        .sink(for_each(move |record: Record<(u64, Window, Acc)>| {
            let (key, window, acc) = record.value;
            add(result_digest(key, window.start.micros() / SIZE_US, acc));
        }));
    let summary = job.run().expect("the job runs");
    let checkpoints = [
        ("checkpoints", summary.checkpoints),
        ("checkpoint_bytes", summary.checkpoint_bytes),
        ("longest_pause_us", summary.longest_pause.as_micros() as u64),
    ];
    let counts = if keeps { checkpoints.to_vec() } else { Vec::new() };
    Outcome { checksum: Some(total.load(Ordering::SeqCst)), counts }
}
