//! How fast a job is replayed, and what the digests cost by which a replay is compared with the first run.
//!
//! The job reads events, writes a quarter of them and the results of windows to CSV files, and takes a checkpoint every second.
//! The reference of a replay is the first run, in the same round: same job, same input, same machine. "Compared" also reads the
//! output of the first run back. A digest's reference is all that a file sink does with the row without it: format it and hand
//! it to a buffered file.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use millstream::digest::Digests;
use millstream::prelude::*;
use millstream::replay::Replay;
use millstream::summary::thousands;
use serde::Serialize;
use serde_json::json;

use crate::kit::Plan;
use crate::kit::report::{Report, Spread};

const TITLE: &str = "Replay: medians; the ratio is own by reference";
const HEADER: [&str; 7] = ["workload", "workers", "figure", "value", "reference", "value", "ratio"];

#[derive(Clone, Serialize)]
struct Row {
    key: u64,
    at_us: i64,
    value: u64,
}

pub fn run(plan: Plan, report: &mut Report) {
    let events = plan.scaled(4_000_000);
    for workers in [1, 2] {
        let (mut plain, mut compared) = (Vec::new(), Vec::new());
        for run in 1..=plan.brief().runs {
            eprintln!("replay, {workers} workers: run {run} of {}", plan.brief().runs);
            let dir = tempfile::tempdir().expect("a temporary directory");
            let first = job(dir.path(), workers, events).run().expect("the job runs").records_per_second();
            let replay = |replay: Replay| {
                let start = Instant::now();
                let report = job(dir.path(), workers, events).replay(&replay).expect("it replays");
                assert!(report.is_equal(), "{report}");
                report.summary.records_in as f64 / start.elapsed().as_secs_f64()
            };
            plain.push((replay(Replay::from_checkpoint(0).output(dir.path().join("again"))), first));
            compared.push((replay(Replay::from_checkpoint(0).verify()), first));
        }
        tell(workers, "replay, events/s", &plain, "first run", report);
        tell(workers, "replay and compare, events/s", &compared, "first run", report);
    }
    let digests: Vec<_> = (0..plan.runs).map(|_| digest(plan.scaled(4_000_000))).collect();
    tell(1, "digest of a row, ns", &digests, "format and write it", report);
}

fn tell(workers: usize, figure: &str, measured: &[(f64, f64)], reference: &str, report: &mut Report) {
    let own = Spread::of(measured.iter().map(|(own, _)| *own));
    let theirs = Spread::of(measured.iter().map(|(_, theirs)| *theirs));
    let ratio = Spread::of(measured.iter().map(|(own, theirs)| own / theirs));
    let show = |value: f64| if value < 1_000.0 { format!("{value:.1}") } else { thousands(value as u64) };
    report.row(
        TITLE,
        &HEADER,
        vec![
            "replay".to_string(),
            workers.to_string(),
            figure.to_string(),
            show(own.median),
            reference.to_string(),
            show(theirs.median),
            format!("{:.2}", ratio.median),
        ],
    );
    report.json(&json!({
        "workload": "replay", "contestant": "millstream", "workers": workers, "figure": figure,
        "value": own.median, "value_min": own.min, "value_max": own.max,
        "reference": reference, "reference_value": theirs.median,
        "ratio": ratio.median, "ratio_min": ratio.min, "ratio_max": ratio.max, "runs": measured.len(),
    }));
}

/// A microsecond apart, so that there are a few windows.
fn row(i: u64) -> Row {
    let mixed = (i ^ (i >> 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    Row { key: mixed % 1_000, at_us: i as i64, value: mixed % 977 }
}

fn job(dir: &Path, workers: usize, events: u64) -> Job {
    let job = Job::new("replayed")
        .workers(workers)
        .checkpoint_dir(dir.join("checkpoints"))
        .checkpoint_every(Duration::from_secs(1));
    let at = |row: &Row| EventTime::from_micros(row.at_us);
    let rows = job.source(Generator::new(events, row).splits(2), Watermarks::monotonous(at)).name("events");
    rows.clone()
        .filter(|row| row.value.is_multiple_of(4))
        .sink(FileSink::csv(dir.join("quarter")))
        .name("quarter");
    rows.key_by(|row| row.key)
        .window(Tumbling::of(EventSpan::millis(100)))
        .aggregate(Sum::of(|row: &Row| row.value))
        .name("sums")
        .map(|(key, window, value)| Row { key, at_us: window.start.micros(), value })
        .sink(FileSink::csv(dir.join("sums")))
        .name("sums-out");
    job
}

/// As a file sink has it: only closing the file flushes it.
struct Unflushed(BufWriter<File>);

impl Write for Unflushed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Nanoseconds for the digest of a row, and for all else that is done with it.
fn digest(rows: u64) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = File::create(dir.path().join("rows")).expect("a new file");
    let mut file = Unflushed(BufWriter::with_capacity(128 << 10, file));
    let per_row = |start: Instant| start.elapsed().as_secs_f64() * 1e9 / rows as f64;
    let start = Instant::now();
    let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(&mut file);
    (0..rows).for_each(|i| {
        csv.serialize(row(i)).expect("it is plain");
        csv.flush().expect("writes");
    });
    let written = per_row(start);
    drop(csv);
    file.0.flush().expect("writes");
    let text = std::fs::read(dir.path().join("rows")).expect("reads");
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let start = Instant::now();
    let mut digests = Digests::default();
    for (i, line) in lines.iter().take(rows as usize).enumerate() {
        digests.add(EventTime::from_micros(i as i64), line);
    }
    let digested = per_row(start);
    black_box(digests.settled().total());
    (digested, written)
}
