//! The search for the sustainable rate, as `bench --find-rate` does it, on a job of which is known what it can do. In a file of its
//! own, so that no other test takes the processor from it.

mod patience;

use std::time::Duration;

use millstream::bench::{BenchArgs, Load};
use millstream::prelude::*;
use patience::sleep;

/// How long the job waits for each record: so one worker can do 5,000 a second. It would not get that from a busy processor.
const COST: Duration = Duration::from_micros(200);
const LIMIT: f64 = 5_000.0;

#[test]
fn the_rate_that_is_found_is_one_that_the_job_can_sustain() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut job = Job::new("limited").workers(1).batch_size(16);
    job.source(Generator::forever(|i| i), Watermarks::none(|_| EventTime::EPOCH))
        .inspect(|_| sleep(COST))
        .name("slow")
        .sink(for_each(|_: Record<u64>| ()));
    let args = BenchArgs {
        find_rate: true,
        warm_up: Duration::from_millis(50),
        time: Duration::from_millis(600),
        json: Some(dir.path().join("figures.json")),
        ..BenchArgs::default()
    };
    job.bench(&args).expect("the job runs");

    // One measurement for each of the rates at which latency is worth knowing.
    let mut found: Vec<(f64, serde_json::Value)> = Vec::new();
    for entry in std::fs::read_dir(dir.path()).expect("reads") {
        let text = std::fs::read(entry.expect("an entry").path()).expect("reads");
        let figures: serde_json::Value = serde_json::from_slice(&text).expect("is JSON");
        match figures["load"].as_str().expect("a load").parse() {
            Ok(Load::Constant(rate)) => found.push((rate.as_f64(), figures)),
            other => panic!("{other:?}"),
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rates: Vec<f64> = found.iter().map(|(rate, _)| *rate).collect();
    assert_eq!(rates.len(), 3, "{rates:?}");
    let sustained = rates[0] / 0.5;
    for (rate, part) in rates.iter().zip([0.5, 0.8, 0.95]) {
        assert!((rate / sustained - part).abs() < 1e-3, "{rates:?}");
    }
    // Trials as short as these cannot tell a rate from one that is a few percent too high; on a machine that has other things to
    // do, the job can really do less.
    assert!(sustained <= 1.2 * LIMIT, "{sustained} events/s of {LIMIT}");
    assert!(sustained > LIMIT / 4.0, "{sustained} events/s of {LIMIT}");
    for (rate, figures) in &found {
        let latency = &figures["latencies"][0];
        assert_eq!(latency["kind"], "record");
        // What was due in the time that is measured was read, and each counts.
        let (count, due) = (latency["all"]["count"].as_u64().expect("a count"), rate * 0.6);
        assert!(count as f64 >= 0.9 * due, "{count} of {due} at {rate}/s");
        assert!(latency["all"]["p50_ns"].as_u64().expect("a latency") >= COST.as_nanos() as u64, "{latency}");
        let slow = figures["operators"].as_array().expect("operators").iter().find(|of| of["name"] == "slow");
        let busy_s = slow.expect("is there")["busy_s"].as_f64().expect("a time");
        // Where the warm-up ends is not known to the record.
        assert!(busy_s >= 0.8 * count as f64 * COST.as_secs_f64(), "{busy_s} s for {count} records");
    }
}
