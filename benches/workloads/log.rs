//! The durable log: how fast records are appended (each acknowledged when it is on the disk) and read, and what it costs a job
//! when its source is recorded.
//!
//! References: a file to which as many bytes are written, with an `fdatasync` for each batch; the same bytes read from a file
//! through a buffer; the same job without a log.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::time::Instant;

use millstream::connectors::log::{Raw, Start};
use millstream::prelude::*;
use millstream::summary::thousands;
use serde_json::json;

use crate::kit::Plan;
use crate::kit::report::{Report, Spread};

const VALUE: [u8; 100] = [b'x'; 100];
const KEYS: usize = 1_000;

const TITLE: &str = "Durable log: medians in records/s; the ratio is own by reference, so above 1 is faster";
const HEADER: [&str; 7] = ["workload", "figure", "records/s", "spread", "reference", "records/s", "ratio"];

/// A way to do something with so many records, and what it is compared with.
struct Figure {
    name: &'static str,
    reference: &'static str,
    records: u64,
    /// Makes what must be there, without being timed.
    prepare: fn(&Path, u64),
    run: fn(&Path, u64),
    run_reference: fn(&Path, u64),
}

const FIGURES: [Figure; 6] = [
    Figure {
        name: "append, 1 record a call",
        reference: "a file, a sync each",
        records: 2_000,
        prepare: |_, _| (),
        run: |dir, records| append(dir, records, 1, 1),
        run_reference: |dir, records| write(dir, records, 1),
    },
    Figure {
        name: "append, 1 record a call, 8 threads",
        reference: "a file, a sync each",
        records: 8_000,
        prepare: |_, _| (),
        run: |dir, records| append(dir, records, 1, 8),
        run_reference: |dir, records| write(dir, records, 1),
    },
    Figure {
        name: "append, 100 records a call",
        reference: "a file, a sync each",
        records: 100_000,
        prepare: |_, _| (),
        run: |dir, records| append(dir, records, 100, 1),
        run_reference: |dir, records| write(dir, records, 100),
    },
    Figure {
        name: "append, 10,000 records a call",
        reference: "a file, a sync each",
        records: 1_000_000,
        prepare: |_, _| (),
        run: |dir, records| append(dir, records, 10_000, 1),
        run_reference: |dir, records| write(dir, records, 10_000),
    },
    Figure {
        name: "read",
        reference: "a file",
        records: 1_000_000,
        prepare: |dir, records| {
            append(dir, records, 10_000, 1);
            write(dir, records, 10_000);
        },
        run: read,
        run_reference: read_file,
    },
    Figure {
        name: "a job, its source recorded",
        reference: "without a log",
        records: 1_000_000,
        prepare: |_, _| (),
        run: |dir, records| job(Some(dir), records),
        run_reference: |_, records| job(None, records),
    },
];

pub fn run(plan: Plan, report: &mut Report) {
    for figure in &FIGURES {
        let records = plan.scaled(figure.records);
        let mut measured = Vec::new();
        for run in 1..=plan.runs {
            eprintln!("log, {}: run {run} of {}", figure.name, plan.runs);
            let own = time(records, figure.prepare, figure.run);
            measured.push((own, time(records, figure.prepare, figure.run_reference)));
        }
        let own = Spread::of(measured.iter().map(|(own, _)| *own));
        let reference = Spread::of(measured.iter().map(|(_, reference)| *reference));
        let ratio = Spread::of(measured.iter().map(|(own, reference)| own / reference));
        let show = |value: f64| thousands(value as u64);
        let row = [
            "log",
            figure.name,
            &show(own.median),
            &format!("{}..{}", show(own.min), show(own.max)),
            figure.reference,
            &show(reference.median),
            &format!("{:.2}", ratio.median),
        ];
        report.row(TITLE, &HEADER, row.map(str::to_string).to_vec());
        report.json(&json!({
            "workload": "log", "figure": figure.name, "contestant": "millstream", "records": records,
            "records_per_s": own.median, "records_per_s_min": own.min, "records_per_s_max": own.max,
            "reference": figure.reference, "reference_records_per_s": reference.median,
            "ratio": ratio.median, "ratio_min": ratio.min, "ratio_max": ratio.max, "runs": measured.len(),
        }));
    }
}

/// Records per second.
fn time(records: u64, prepare: fn(&Path, u64), run: fn(&Path, u64)) -> f64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    prepare(dir.path(), records);
    let start = Instant::now();
    run(dir.path(), records);
    records as f64 / start.elapsed().as_secs_f64()
}

fn open(dir: &Path) -> Log {
    Log::open(dir.join("log"), LogOptions::new().shards(4)).expect("a log")
}

fn batch(first: u64, size: u64) -> impl Iterator<Item = (String, &'static [u8])> {
    (first..first + size).map(|n| (format!("key-{:04}", n as usize % KEYS), VALUE.as_slice()))
}

fn append(dir: &Path, records: u64, size: u64, threads: u64) {
    let log = open(dir);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let log = &log;
            scope.spawn(move || {
                for call in (0..records / threads).step_by(size as usize) {
                    let appending = log.submit_bytes(batch(thread + call, size)).expect("the log takes it");
                    appending.wait().expect("the disk takes it");
                }
            });
        }
    });
}

fn write(dir: &Path, records: u64, size: u64) {
    let mut file = File::create(dir.join("file")).expect("a file");
    let mut bytes = Vec::new();
    for call in (0..records).step_by(size as usize) {
        bytes.clear();
        for (key, value) in batch(call, size) {
            bytes.push(key.len() as u8);
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(value);
        }
        file.write_all(&bytes).and_then(|()| file.sync_data()).expect("the disk takes it");
    }
}

fn read(dir: &Path, records: u64) {
    let mut reader = open(dir).reader::<Raw>(Start::TrimHorizon).expect("a reader");
    let mut left = records;
    while left > 0 {
        let read = black_box(reader.read(2_048).expect("records"));
        assert!(!read.is_empty(), "{left} records are missing");
        left = left.saturating_sub(read.len() as u64);
    }
}

fn read_file(dir: &Path, records: u64) {
    let mut file = BufReader::with_capacity(256 << 10, File::open(dir.join("file")).expect("a file"));
    for _ in 0..records {
        let mut length = [0];
        file.read_exact(&mut length).expect("a record");
        let mut key = vec![0; usize::from(length[0])];
        let mut value = vec![0; VALUE.len()];
        file.read_exact(&mut key).and_then(|()| file.read_exact(&mut value)).expect("a record");
        black_box((String::from_utf8(key).expect("a key"), value));
    }
}

fn job(log: Option<&Path>, records: u64) {
    let job = Job::new("recorded").workers(1);
    let source = Generator::new(records, |n| (n % KEYS as u64, n));
    let times = Watermarks::none(|_: &(u64, u64)| EventTime::EPOCH);
    let stream = match log {
        Some(dir) => job.source(source.recorded(&open(dir)), times),
        None => job.source(source, times),
    };
    stream.sink(for_each(|record: Record<(u64, u64)>| {
        black_box(record);
    }));
    let summary = job.run().expect("the job runs");
    black_box(summary);
}
