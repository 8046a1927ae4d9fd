//! W6: what one checkpoint costs, and how fast a job is back. With one and ten million keys of state, of which all, or a tenth, a
//! hundredth or a thousandth changed since the last checkpoint; and with a quarter of the memory that the state takes.
//!
//! Files are written to a temporary directory on the system's own disk and synced, so the device counts. A restart finds them
//! in the page cache: this is the time after a crash of the process, not of the machine. A job is at full speed from the first 10 ms
//! on in which it does nine tenths of what it does in the second half of its run.
//!
//! The references do the least that could be done for one part of the task: write as many bytes to one file and sync it; copy
//! the changed entries out of a hash map, by a scan or by look-ups, whichever is faster; read all entries from one file into a
//! hash map.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use millstream::prelude::*;
use millstream::summary::thousands;
use serde_json::json;

use crate::kit::Plan;
use crate::kit::report::{Report, Spread};

/// What is kept per key.
type Acc = (u64, i64);
/// Key and accumulator.
const ENTRY_BYTES: usize = 24;

const TITLE: &str = "Checkpoints and restarts: medians; the ratio is own by reference, so below 1 is better";
const HEADER: [&str; 10] =
    ["workload", "keys", "changed", "workers", "figure", "value", "spread", "reference", "value", "ratio"];

pub fn run(plan: Plan, report: &mut Report) {
    for millions in [1, 10] {
        if (millions > 1 && !plan.full) || plan.keys.is_some_and(|keys| keys != millions * 1_000_000) {
            continue;
        }
        for workers in [1, 2] {
            with(plan.scaled(millions * 1_000_000), workers, plan, report);
        }
    }
}

fn with(keys: u64, workers: usize, plan: Plan, report: &mut Report) {
    // About what entries take in tables, twice as many as there are at the least.
    let quarter = keys * 40 * 2 / 4;
    let phases: [(&str, u64, Option<u64>); 8] = [
        (FRESH, keys, None),
        ("all", keys, None),
        ("10 %", keys / 10, None),
        ("1 %", keys / 100, None),
        ("0.1 %", keys / 1000, None),
        (SPILLS, 1, Some(quarter)),
        ("1 %, a quarter of the memory", keys / 100, Some(quarter)),
        ("all, a quarter of the memory", keys, Some(quarter)),
    ];
    let mut measured: [Vec<Measured>; 8] = Default::default();
    for run in 1..=plan.runs {
        eprintln!("w6, {} keys, {workers} workers: run {run} of {}", thousands(keys), plan.runs);
        let dir = tempfile::tempdir().expect("a temporary directory");
        for ((_, changed, memory), measured) in phases.into_iter().zip(&mut measured) {
            let own = one_run(dir.path(), workers, changed, memory);
            measured.push((own, references(keys, changed, own[0] as usize)));
        }
    }
    for ((name, changed, _), measured) in phases.into_iter().zip(&measured) {
        let figures = match name {
            // A fresh job has nothing to read at its start.
            FRESH => 3,
            // Others are over before one can speak of speed.
            _ if changed < keys / 10 => 4,
            _ => 5,
        };
        for figure in 0..figures {
            tell(keys, name, workers, figure, measured, report);
        }
    }
}

/// The first checkpoint of a job.
const FRESH: &str = "all, new";

/// The checkpoint that stores every entry on its own, once, so that it can leave memory.
const SPILLS: &str = "one, and all leave their blocks";

/// Figures and their references.
const FIGURES: [(&str, &str, &str); 5] = [
    ("bytes", "", "keys and accumulators"),
    ("checkpoint", " ms", "write and sync as many bytes"),
    ("pause", " ms", "copy changed entries"),
    ("start to first result", " ms", "read into a hash map"),
    ("start to full speed", " ms", "read into a hash map"),
];
/// In the order of [`FIGURES`]: of the job, and of the references.
type Measured = ([f64; 5], [f64; 5]);

fn tell(keys: u64, changed: &str, workers: usize, figure: usize, measured: &[Measured], report: &mut Report) {
    let (name, unit, reference_name) = FIGURES[figure];
    let own = Spread::of(measured.iter().map(|(own, _)| own[figure]));
    let reference = Spread::of(measured.iter().map(|(_, reference)| reference[figure]));
    let ratio = Spread::of(measured.iter().map(|(own, reference)| own[figure] / reference[figure]));
    let show = |value: f64| if unit.is_empty() { thousands(value as u64) } else { format!("{value:.2}{unit}") };
    report.row(
        TITLE,
        &HEADER,
        vec![
            "w6".to_string(),
            thousands(keys),
            changed.to_string(),
            workers.to_string(),
            name.to_string(),
            show(own.median),
            format!("{}..{}", show(own.min), show(own.max)),
            reference_name.to_string(),
            show(reference.median),
            format!("{:.2}", ratio.median),
        ],
    );
    report.json(&json!({
        "workload": "w6", "keys": keys, "changed": changed, "contestant": "millstream", "workers": workers,
        "figure": format!("{name}{}", unit.replace(' ', "_")).replace(' ', "_"),
        "value": own.median, "value_min": own.min, "value_max": own.max,
        "reference": reference_name, "reference_value": reference.median,
        "ratio": ratio.median, "ratio_min": ratio.min, "ratio_max": ratio.max, "runs": measured.len(),
    }));
}

/// Starts the job from its last checkpoint, changes the first `changed` keys, and stops it with a checkpoint.
fn one_run(dir: &Path, workers: usize, changed: u64, memory: Option<u64>) -> [f64; 5] {
    let (sender, source) = channel::<u64>(4096);
    let mut job = Job::new("state").workers(workers).checkpoint_dir(dir).checkpoint_every(Duration::from_secs(3600));
    job.settings_mut().retain = 2;
    job.settings_mut().memory = memory.map(|bytes| bytes.max(1 << 20));
    job.source(source, Watermarks::none(|_: &u64| EventTime::EPOCH))
        .key_by(|key| *key)
        .fold((0u64, 0i64), |(count, sum), key| {
            *count += 1;
            *sum += *key as i64;
        })
        .sink(for_each(|_: Record<(u64, Acc)>| ()));
    let start = Instant::now();
    let handle = job.start().expect("the job starts");
    sender.send(0).expect("the job reads");
    while handle.status().records_out == 0 {
        std::hint::spin_loop();
    }
    let resume = start.elapsed();
    let mut seen = vec![(resume, 1)];
    for key in 1..changed {
        sender.send(key).expect("the job reads");
        if key % 1024 == 0 {
            seen.push((start.elapsed(), handle.status().records_out));
        }
    }
    while handle.status().records_out < changed {
        std::thread::yield_now();
    }
    seen.push((start.elapsed(), changed));
    handle.stop(StopMode::WithCheckpoint);
    let summary = handle.wait().expect("the job stops");
    [
        summary.checkpoint_bytes as f64,
        milliseconds(summary.longest_checkpoint),
        milliseconds(summary.longest_pause),
        milliseconds(resume),
        milliseconds(full_speed(&seen)),
    ]
}

/// From when on a job was at full speed (see the module), which had so many results by such times.
fn full_speed(seen: &[(Duration, u64)]) -> Duration {
    let rate = |from: (Duration, u64), to: (Duration, u64)| (to.1 - from.1) as f64 / (to.0 - from.0).as_secs_f64();
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    let half = seen.iter().find(|(_, results)| *results >= last.1 / 2).copied().unwrap_or(first);
    let usual = rate(half, last);
    let is_fast = |from: &&(Duration, u64)| {
        let to = seen.iter().find(|(at, _)| *at >= from.0 + Duration::from_millis(10));
        to.is_some_and(|to| rate(**from, *to) >= 0.9 * usual)
    };
    seen.iter().find(is_fast).map_or(last.0, |(at, _)| *at)
}

fn references(keys: u64, changed: u64, bytes: usize) -> [f64; 5] {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let content = vec![1; bytes];
    let write = time(|| {
        let mut file = File::create(dir.path().join("bytes")).expect("a new file");
        file.write_all(&content).expect("writes");
        file.sync_all().expect("syncs");
    });

    let table: HashMap<u64, Acc> = (0..keys).map(|key| (key, (1, key as i64))).collect();
    let look_up = time(|| {
        black_box((0..changed).map(|key| (key, table[&key])).collect::<Vec<_>>());
    });
    let scan = time(|| {
        black_box(table.iter().filter(|(key, _)| **key < changed).map(|(key, acc)| (*key, *acc)).collect::<Vec<_>>());
    });

    let entries = dir.path().join("entries");
    let parts = table.iter().flat_map(|(key, (count, sum))| [*key, *count, *sum as u64]);
    std::fs::write(&entries, parts.flat_map(u64::to_le_bytes).collect::<Vec<_>>()).expect("writes");
    let load = time(|| {
        let bytes = std::fs::read(&entries).expect("reads");
        let part = |entry: &[u8], at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
        let mut table = HashMap::with_capacity(bytes.len() / ENTRY_BYTES);
        table.extend(bytes.chunks_exact(ENTRY_BYTES).map(|e| (part(e, 0), (part(e, 8), part(e, 16) as i64))));
        black_box(table);
    });
    [(changed as usize * ENTRY_BYTES) as f64, write, look_up.min(scan), load, load]
}

fn time(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    milliseconds(start.elapsed())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
