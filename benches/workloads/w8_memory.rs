//! W8: a running count and sum per key, with less memory than the state takes.
//!
//! What the state takes is measured first, without a limit. A job that may have half of that for everything (entries, RocksDB's
//! cache, what is on its way to the disk) reads back what it has let go whenever a key comes that is not in memory. Uniform keys
//! are the worst there is for that; Zipf's are as one meets them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hashbrown::HashMap;
use millstream::prelude::*;

use crate::kit::Plan;
use crate::kit::event::{Event, Keys, Stream, digest};
use crate::kit::race::{Outcome, Race};
use crate::kit::report::Report;
use crate::kit::threads::shared_sum;

pub fn run(plan: Plan, report: &mut Report) {
    // With a tenth of the memory it takes longer than all others.
    if !plan.full {
        return;
    }
    let keys = plan.scaled(500_000);
    for keys in [Keys::Uniform(keys), Keys::Zipf(keys)] {
        let events = plan.scaled(2_500_000);
        let stream = Stream::new(keys, plan.scaled(5_000));
        for workers in [1, 2] {
            let (_, state) = job(&stream, events, workers, None);
            let mut race = Race::new("w8", "", Some(keys), events);
            let looped = race.add("loop", 1, &[], |_| looped(&stream, events));
            let whole = race.add("all in memory", workers, &[looped], |workers| job(&stream, events, workers, None).0);
            for part in [2, 4, 10] {
                let memory = (state / part).max(1 << 20);
                let name = format!("1/{part} of {} MB", state / 1_000_000);
                let stream = &stream;
                race.add(name, workers, &[whole], move |workers| job(stream, events, workers, Some(memory)).0);
            }
            race.run(plan.brief(), report);
        }
    }
}

fn result(key: u64, count: u64) -> u64 {
    digest([key, count, 0, 0, 0])
}

fn looped(stream: &Stream, events: u64) -> u64 {
    let mut state: HashMap<u64, (u64, i64)> = HashMap::new();
    let mut sum = 0u64;
    for event in (0..events).map(|i| stream.event(i)) {
        let acc = state.entry(event.key).or_default();
        *acc = (acc.0 + 1, acc.1 + event.value);
        sum = sum.wrapping_add(result(event.key, acc.0));
    }
    sum
}

/// What came of it, and how many bytes state and RocksDB took at the most.
fn job(stream: &Stream, events: u64, workers: usize, memory: Option<u64>) -> (Outcome, u64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (total, mut add) = shared_sum();
    let stream = stream.clone();
    let mut job = Job::new("totals")
        .workers(workers)
        .checkpoint_dir(dir.path())
        .checkpoint_every(Duration::from_secs(5));
    job.settings_mut().memory = memory;
    let source = Generator::new(events, move |i| stream.event(i)).splits(workers);
    job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(50), |event: &Event| event.at))
        .key_by(|event| event.key)
        .fold((0u64, 0i64), |acc, event| *acc = (acc.0 + 1, acc.1 + event.value))
        .sink(for_each(move |record: Record<(u64, (u64, i64))>| {
            let (key, (count, _)) = record.value;
            add(result(key, count));
        }));
    let summary = job.run().expect("the job runs");
    let counts = vec![
        ("checkpoints", summary.checkpoints),
        ("state_kb", summary.most_state_bytes / 1000),
        ("rocksdb_kb", summary.most_rocksdb_bytes / 1000),
    ];
    (Outcome { checksum: Some(total.load(Ordering::SeqCst)), counts }, summary.most_state_bytes)
}
