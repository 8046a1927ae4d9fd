//! What do checkpoints cost, and how fast is a job back? With a million keys of state, all or one in a hundred of them
//! changed since the last checkpoint.
//!
//! `./mill bench checkpoint`. Files are written to a temporary directory on the system's own disk and synced, so the device
//! counts; its time for one fsync is printed beside.

mod kit;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use millstream::prelude::*;
use millstream::summary::thousands;

const KEYS: u64 = 1_000_000;

fn main() {
    println!("one fsync of 4 KiB: {:.2} ms (median of 20)", fsync_time().as_secs_f64() * 1e3);
    for workers in [1, 2] {
        println!(
            "\na running (u64, i64) per key, {} keys, {workers} worker(s), median of {} runs",
            thousands(KEYS),
            kit::runs()
        );
        println!("{:<22} {:>14} {:>14} {:>14} {:>14}", "", "bytes", "checkpoint ms", "pause ms", "resume ms");
        let mut rows: [Vec<Row>; 3] = Default::default();
        for _ in 0..kit::runs() {
            let dir = tempfile::tempdir().expect("a temporary directory");
            for (row, keys) in rows.iter_mut().zip([KEYS, KEYS, KEYS / 100]) {
                row.push(one_run(dir.path(), workers, keys));
            }
        }
        for (name, runs) in ["100 % new", "100 % changed", "1 % changed"].into_iter().zip(&mut rows) {
            let median = |value: fn(&Row) -> f64| {
                let mut values: Vec<f64> = runs.iter().map(value).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            println!(
                "{name:<22} {:>14} {:>14.1} {:>14.1} {:>14.1}",
                thousands(median(|row| row.bytes as f64) as u64),
                median(|row| row.checkpoint.as_secs_f64() * 1e3),
                median(|row| row.pause.as_secs_f64() * 1e3),
                median(|row| row.resume.as_secs_f64() * 1e3),
            );
        }
    }
}

struct Row {
    bytes: u64,
    checkpoint: Duration,
    pause: Duration,
    /// From the start of the job, with what state there was, to its first result.
    resume: Duration,
}

/// Starts the job from its last checkpoint, changes the first `keys` keys, and stops it with a checkpoint.
fn one_run(dir: &Path, workers: usize, keys: u64) -> Row {
    let (sender, source) = channel::<u64>(4096);
    let mut job = Job::new("state").workers(workers).checkpoint_dir(dir).checkpoint_every(Duration::from_secs(3600));
    job.settings_mut().retain = 2;
    job.source(source, Watermarks::none(|_: &u64| EventTime::EPOCH))
        .key_by(|key| *key)
        .fold((0u64, 0i64), |(count, sum), key| {
            *count += 1;
            *sum += *key as i64;
        })
        .sink(for_each(|_: Record<(u64, (u64, i64))>| ()));
    let start = Instant::now();
    let handle = job.start().expect("the job starts");
    sender.send(0).expect("the job reads");
    while handle.status().records_out == 0 {
        std::hint::spin_loop();
    }
    let resume = start.elapsed();
    for key in 1..keys {
        sender.send(key).expect("the job reads");
    }
    while handle.status().records_out < keys {
        std::thread::yield_now();
    }
    handle.stop(StopMode::WithCheckpoint);
    let summary = handle.wait().expect("the job stops");
    Row {
        bytes: summary.checkpoint_bytes,
        checkpoint: summary.longest_checkpoint,
        pause: summary.longest_pause,
        resume,
    }
}

fn fsync_time() -> Duration {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            file.write_all(&[1; 4096]).expect("writes");
            let start = Instant::now();
            file.sync_all().expect("syncs");
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}
