//! State that does not fit into the memory it may take: results are those of a job that has enough.

mod patience;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use millstream::prelude::*;
use millstream::state::store::CheckpointStore;
use patience::{Random, temp, until};

const KEYS: u64 = 40_000;
const RECORDS: u64 = 300_000;

/// What is counted per key: how many records it has, and a number that depends on all of them in any order.
type Acc = (u64, u64);

fn record(number: u64) -> (u64, u64) {
    let mut random = Random(number);
    random.below(2);
    // Half of the records are of a tenth of the keys.
    let keys = if random.below(2) == 0 { KEYS / 10 } else { KEYS };
    (random.below(keys), random.below(1 << 20))
}

fn add(acc: &mut Acc, value: u64) {
    *acc = (acc.0 + 1, acc.1.wrapping_add(value));
}

/// The greatest count per key, with what was summed up by then.
fn totals(results: impl IntoIterator<Item = (u64, Acc)>) -> BTreeMap<u64, Acc> {
    let mut totals = BTreeMap::new();
    for (key, acc) in results {
        let total = totals.entry(key).or_insert(acc);
        *total = acc.max(*total);
    }
    totals
}

fn expected() -> BTreeMap<u64, Acc> {
    let mut totals = BTreeMap::new();
    (0..RECORDS).map(record).for_each(|(key, value)| add(totals.entry(key).or_insert((0, 0)), value));
    totals
}

fn job(dir: &Path, results: &Collected<(u64, Acc)>, workers: usize, memory: Option<u64>, per_second: u64) -> Job {
    let mut job = Job::new("totals").workers(workers).checkpoint_dir(dir).checkpoint_every(Duration::from_millis(50));
    job.settings_mut().memory = memory;
    let records = from_iter(|| (0..RECORDS).map(record)).rate(per_second as f64);
    job.source(records, Watermarks::none(|_: &(u64, u64)| EventTime::EPOCH))
        .key_by(|(key, _)| *key)
        .fold((0, 0), |acc: &mut Acc, (_, value)| add(acc, *value))
        .sink(results.sink());
    job
}

/// Starts with other limits, or none, and other workers each time, and ends without a checkpoint.
#[test]
fn results_do_not_depend_on_memory() {
    let mut random = Random(7);
    let (dir, results) = (temp(), Collected::new());
    for _ in 0..6 {
        let memory = [None, Some(1 << 20), Some(2 << 20), Some(64 << 20)][random.below(4) as usize];
        let handle = job(dir.path(), &results, 1 + random.below(3) as usize, memory, 100_000).start().expect("starts");
        let enough = 5_000 + random.below(RECORDS / 5);
        until("records are read", || handle.is_finished() || handle.status().records_in > enough);
        handle.stop(StopMode::Now);
        handle.wait().expect("stops");
    }
    let summary = job(dir.path(), &results, 2, Some(1 << 20), 1_000_000).run().expect("ends");
    assert_eq!(summary.outcome, Outcome::Finished);
    let found = totals(results.take().into_iter().map(|record| record.value));
    assert!(found == expected(), "{} keys of {KEYS}", found.len());
    let newest = CheckpointStore::new(dir.path()).epochs().expect("lists").pop().expect("a checkpoint");
    let manifest = CheckpointStore::new(dir.path()).manifest(newest).expect("reads");
    assert_eq!(manifest.operators[0].entries, found.len() as u64, "entries that are not in memory count");
}

#[test]
fn a_job_keeps_to_its_memory_and_a_restart_reads_what_it_needs() {
    const MEMORY: u64 = 2 << 20;
    let (dir, results) = (temp(), Collected::new());
    let whole = job(dir.path(), &results, 2, None, 100_000_000).run().expect("ends");
    assert!(whole.most_state_bytes > MEMORY, "{} bytes", whole.most_state_bytes);

    let (dir, results) = (temp(), Collected::new());
    let handle = job(dir.path(), &results, 2, Some(MEMORY), 400_000).start().expect("starts");
    let mut most = 0;
    while !handle.is_finished() && handle.status().records_in < RECORDS * 9 / 10 {
        most = most.max(handle.status().state_bytes);
        std::thread::yield_now();
    }
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
    assert!(most > MEMORY / 8 && most <= 2 * MEMORY, "{most} bytes of {MEMORY}");

    let handle = job(dir.path(), &results, 2, Some(MEMORY), 10_000).start().expect("starts");
    until("it goes on", || handle.is_finished() || handle.status().records_out > 0);
    let status = handle.status();
    assert!(status.state_bytes < MEMORY / 4, "{} bytes after the first result", status.state_bytes);
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
}

#[test]
fn a_limit_without_checkpoints_is_refused() {
    let mut job = Job::new("totals").memory(1 << 30);
    job.source(from_vec(vec![1u64]), Watermarks::none(|_: &u64| EventTime::EPOCH))
        .sink(for_each(|_: Record<u64>| ()));
    let error = job.validate().expect_err("refused").to_string();
    assert!(error.contains("without a checkpoint directory"), "{error}");
    job.settings_mut().checkpoint_dir = Some("here".into());
    job.settings_mut().memory = Some(1000);
    let error = job.validate().expect_err("refused").to_string();
    assert!(error.contains("1000 bytes of memory"), "{error}");
}
