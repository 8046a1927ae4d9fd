//! W8: a running count and sum per key, with less memory than the state takes.
//!
//! What the state takes is measured first, without a limit. A job that may have half of that for everything (entries, RocksDB's
//! cache, what is on its way to the disk) reads back what it has let go whenever a key comes that is not in memory. Uniform keys
//! are the worst there is for that; Zipf's are as one meets them. Beside it runs what one would write by hand: a loop that reads
//! and writes each record's key in a RocksDB of the same memory, and that would lose everything in a crash.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hashbrown::HashMap;
use millstream::prelude::*;
use rocksdb::{BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteOptions};

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
                let by_hand = race.add(format!("{name}, loop over RocksDB"), 1, &[looped], move |_| {
                    looped_over_rocksdb(stream, events, memory as usize)
                });
                race.add(name, workers, &[whole, by_hand], move |workers| job(stream, events, workers, Some(memory)).0);
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

fn looped_over_rocksdb(stream: &Stream, events: u64, memory: usize) -> u64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(memory / 2));
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_bloom_filter(10.0, false);
    // Whole filters would be read from the disk again and again where the cache is small.
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_partition_filters(true);
    tables.set_metadata_block_size(4096);
    tables.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(memory / 4);
    options.set_max_background_jobs(2);
    let db = DB::open(&options, dir.path()).expect("RocksDB");
    let mut write = WriteOptions::default();
    write.disable_wal(true);
    let mut sum = 0u64;
    for event in (0..events).map(|i| stream.event(i)) {
        let key = event.key.to_be_bytes();
        let stored = db.get_pinned(key).expect("what was written");
        let (count, total) = stored.as_deref().map_or((0, 0), |value| {
            let number = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("8 bytes"));
            (number(0), number(8) as i64)
        });
        drop(stored);
        let (count, total) = (count + 1, total + event.value);
        let value = [count.to_le_bytes(), total.to_le_bytes()].concat();
        db.put_opt(key, value, &write).expect("room on the disk");
        sum = sum.wrapping_add(result(event.key, count));
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
