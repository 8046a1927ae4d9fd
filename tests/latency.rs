//! What `bench` says of a job is true: a stall is charged to all that it delays, windows are counted from when they could
//! have closed, recorded events come at their own pace, and the command line writes what it promises.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use millstream::bench::{LatencyKind, Load};
use millstream::prelude::*;

const MS: u64 = 1_000_000;

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Keeps the worker busy, as slow user code would.
fn busy(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_stall_is_charged_to_every_event_that_it_delays() {
    let mut job = Job::new("stall").workers(1);
    job.source(Generator::forever(|i| i), Watermarks::none(|_| EventTime::EPOCH))
        .inspect(|i| {
            if *i == 500 {
                busy(millis(400));
            }
        })
        .sink(for_each(|_: Record<u64>| ()));
    let load: Load = "1k".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, millis(1000)).expect("the job runs");
    let latencies = &measured.latencies[&LatencyKind::Record];
    let found = latencies.percentiles();
    assert!(found.count >= 1000, "{found:?}");
    assert!(found.max_ns >= 399 * MS, "the event that stalled: {found:?}");
    // Of 1000 events 400 were due in the stall, and waited for the rest of it: 300 of them for over 100 ms.
    let long = 1.0 - 290.0 / found.count as f64;
    assert!(latencies.total().at(long) >= 95 * MS, "those that it delayed: {found:?}");
    // A second look: a job whose events were not held up has no such latencies.
    assert!(measured.offered_per_s > 900.0 && measured.offered_per_s < 1100.0, "{}", measured.offered_per_s);
}

#[test]
fn results_of_windows_count_from_when_their_windows_could_have_closed() {
    // Event time goes at the pace of the clock: 2,000 events a second, windows of 50 ms, 100 ms of disorder allowed for.
    let mut job = Job::new("windows").workers(2);
    let at = |i: &u64| EventTime::from_micros(*i as i64 * 500);
    job.source(Generator::forever(|i| i).splits(2), Watermarks::bounded_out_of_orderness(EventSpan::millis(100), at))
        .key_by(|i| i % 4)
        .window(Tumbling::of(EventSpan::millis(50)))
        .aggregate(Count)
        .sink(for_each(|_: Record<Pane<u64, u64>>| ()));
    let load: Load = "2k".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, millis(1500)).expect("the job runs");
    let result = measured.latencies[&LatencyKind::WindowResult].percentiles();
    let record = measured.latencies[&LatencyKind::RecordToResult].percentiles();
    // 1500 ms less the delay make 28 windows, of 4 keys each.
    assert!(result.count >= 25 * 4, "{result:?}");
    assert_eq!(result.count, record.count);
    let between = record.p50_ns.saturating_sub(result.p50_ns);
    assert!((90 * MS..110 * MS).contains(&between), "the delay of 100 ms lies between {result:?} and {record:?}");
    assert!(!measured.latencies.contains_key(&LatencyKind::Record), "no record passed through");
    let counted = measured.operators.iter().find(|operator| operator.name == "tumbling-window-1").expect("is there");
    assert!(counted.records >= 2900, "{counted:?}");
    assert!(counted.busy > Duration::ZERO);
}

/// Batches wait on their worker, or come from another one; what the warm-up had of them does not count.
#[test]
fn waiting_is_told_by_where_it_was_and_without_the_warm_up() {
    let mut job = Job::new("waiting").workers(2);
    let at = |i: &u64| EventTime::from_micros(*i as i64 * 500);
    job.source(Generator::forever(|i| i).splits(2), Watermarks::monotonous(at))
        .name("events")
        .key_by(|i| i % 4)
        .fold(0_u64, |count, _| *count += 1)
        .name("counts")
        .sink(for_each(|_: Record<(u64, u64)>| ()))
        .name("out");
    let load: Load = "2k".parse().expect("a load");
    let measured = job.measure(&load, millis(1500), millis(500)).expect("the job runs");
    let of = |name: &str| measured.operators.iter().find(|operator| operator.name == name).expect("is there");
    let waits = |name: &str| (of(name).queue.count(), of(name).exchange.count());
    assert_eq!(waits("events"), (0, 0));
    let (records, (_, exchanged), (queued, none)) = (of("counts").records, waits("counts"), waits("out"));
    assert!(exchanged > 0 && queued > 0, "{:?}", measured.operators);
    assert_eq!(none, 0, "a sink has no exchange in front of it");
    // A batch has a record at least, and 1.5 s of the 2 s were warm-up. The looks that tell them apart are 50 ms apart.
    assert!(records <= 2_500, "{records} records of 4,000");
    assert!(exchanged <= records + 400 && queued <= records + 400, "{records} records: {:?}", measured.operators);
}

#[test]
fn recorded_events_come_at_their_own_pace() {
    let times_ms = [0, 300, 100, 301, 600];
    let mut job = Job::new("recorded").workers(1);
    let (seen, sink) = crossbeam_channel::unbounded();
    let start = Instant::now();
    job.source(
        from_vec(times_ms.to_vec()),
        Watermarks::bounded_out_of_orderness(EventSpan::secs(1), |ms: &i64| EventTime::from_millis(*ms)),
    )
    .sink(for_each(move |record: Record<i64>| seen.send((record.value, start.elapsed())).expect("is read")));
    let load: Load = "recorded:2x".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, Duration::from_secs(20)).expect("the job runs");
    let seen: Vec<(i64, Duration)> = sink.try_iter().collect();
    assert_eq!(seen.iter().map(|(ms, _)| *ms).collect::<Vec<_>>(), times_ms);
    // At twice the speed; what is behind is due with what was before it. The load began after `start`, so nothing is
    // let through before its instant, and no latency is longer than what has passed since.
    for ((ms, at), due_ms) in seen.iter().zip([0, 150, 150, 150, 300]) {
        assert!(*at >= millis(due_ms), "{ms} came at {at:?}");
    }
    let found = measured.latencies[&LatencyKind::Record].percentiles();
    assert_eq!(found.count, 5);
    assert!(u128::from(found.max_ns) <= start.elapsed().as_nanos(), "{found:?}");
}

#[test]
fn a_stall_is_charged_to_recorded_events_as_well() {
    let mut job = Job::new("recorded-stall").workers(1);
    let at = |i: &i64| EventTime::from_millis(*i * 10);
    job.source(from_vec((0..20).collect::<Vec<i64>>()), Watermarks::monotonous(at))
        .inspect(|i| {
            if *i == 5 {
                busy(millis(300));
            }
        })
        .sink(for_each(|_: Record<i64>| ()));
    let load: Load = "recorded:1x".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, Duration::from_secs(20)).expect("the job runs");
    let latencies = &measured.latencies[&LatencyKind::Record];
    let found = latencies.percentiles();
    assert_eq!(found.count, 20, "{found:?}");
    assert!(found.max_ns >= 299 * MS, "the event that stalled: {found:?}");
    // The 14 behind it were due 10 to 140 ms later.
    assert!(latencies.total().at(1.0 - 14.0 / 20.0) >= 150 * MS, "those that it delayed: {found:?}");
}

#[test]
fn a_job_can_be_measured_again_and_its_checkpoints_are_let_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let checkpoints = dir.path().join("checkpoints");
    let mut job = Job::new("again").workers(2).checkpoint_dir(&checkpoints).checkpoint_every(millis(20));
    job.source(Generator::forever(|i| i).splits(3), Watermarks::none(|_| EventTime::EPOCH))
        .key_by(|i| i % 10)
        .fold(0u64, |count, _| *count += 1)
        .sink(for_each(|_: Record<(u64, u64)>| ()));
    for _ in 0..2 {
        let load: Load = "5k".parse().expect("a load");
        let measured = job.measure(&load, millis(50), millis(300)).expect("the job runs");
        assert!(measured.checkpoints.len() >= 2, "{}", measured.checkpoints.len());
        assert!(measured.latencies[&LatencyKind::Record].count() > 1000);
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 0, "nothing is left of it");
    }
}

#[test]
fn the_command_line_measures_any_job() {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, report) = (dir.path().join("figures.json"), dir.path().join("report"));
    let run = std::process::Command::new(common::example())
        .args(["--workers", "2", "--output"])
        .arg(dir.path().join("out"))
        .args(["bench", "--load", "20k", "--for", "1s", "--warm-up", "200ms", "--json"])
        .args([&json, std::path::Path::new("--report"), &report])
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    for text in ["window result", "noise floor", "offered", "departures"] {
        assert!(said.contains(text), "`{text}` is missing: {said}");
    }
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).expect("is there")).expect("is JSON");
    assert!(figures.to_string().contains("window_result"), "{figures}");
    for file in ["flight-delays.html", "flight-delays.hlog", "flight-delays.json"] {
        assert!(report.join(file).is_file(), "{file}");
    }
}

#[test]
fn a_stall_at_the_end_is_counted_to_its_last_event() {
    let mut job = Job::new("end").workers(2);
    job.source(Generator::forever(|i| i).splits(2), Watermarks::none(|_| EventTime::EPOCH))
        .key_by(|i| i % 2)
        .fold(0u64, |count, _| *count += 1)
        .sink(for_each(|record: Record<(u64, u64)>| {
            if record.value == (0, 200) {
                busy(millis(400));
            }
        }));
    let load: Load = "1k".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, millis(500)).expect("the job runs");
    let found = measured.latencies[&LatencyKind::Record].percentiles();
    // Event 0 is due at once and event 500 at the end; nothing is due later.
    assert_eq!(found.count, 501, "{found:?}");
    assert!(found.max_ns >= 399 * MS, "{found:?}");
}

#[test]
fn what_is_on_its_way_at_the_end_is_waited_for() {
    let (reader, stalled) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (reads, stalls) = (Arc::clone(&reader), Arc::clone(&stalled));
    let mut job = Job::new("way").workers(2);
    job.source(Generator::forever(|i| i), Watermarks::none(|_| EventTime::EPOCH))
        .inspect(move |_| {
            reads.get_or_init(|| std::thread::current().id());
        })
        .key_by(|i| i % 8)
        .fold(0u64, |count, _| *count += 1)
        .sink(for_each(move |record: Record<(u64, u64)>| {
            // From about event 450 on. The worker with the source goes on, and has read everything long before this is over.
            let other = reader.get() != Some(&std::thread::current().id());
            if record.value.1 > 56 && other && !stalls.swap(true, Ordering::SeqCst) {
                busy(millis(400));
            }
        }));
    let load: Load = "1k".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, millis(500)).expect("the job runs");
    assert!(stalled.load(Ordering::SeqCst), "the other worker has no keys");
    let found = measured.latencies[&LatencyKind::Record].percentiles();
    assert_eq!(found.count, 501, "{found:?}");
    assert!(found.max_ns >= 399 * MS, "{found:?}");
}

/// Windows of 20 ms, in front of a sink that takes 300 ms for the result of the tenth.
fn windows_with_a_stall(job: &Job) {
    let at = |i: &u64| EventTime::from_millis(*i as i64);
    job.source(Generator::forever(|i| i), Watermarks::monotonous(at))
        .key_by(|_| 0u8)
        .window(Tumbling::of(EventSpan::millis(20)))
        .aggregate(Count)
        .sink(for_each(|record: Record<Pane<u8, u64>>| {
            if record.value.1.end == EventTime::from_millis(200) {
                busy(millis(300));
            }
        }));
}

#[test]
fn a_stall_of_a_sink_is_charged_to_the_windows_that_it_holds_up() {
    let mut job = Job::new("held").workers(1);
    windows_with_a_stall(&job);
    let load: Load = "1k".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, millis(800)).expect("the job runs");
    let latencies = &measured.latencies[&LatencyKind::WindowResult];
    let found = latencies.percentiles();
    // 40 windows; the one that stalled, and the 15 or so that closed meanwhile, each later by 20 ms less.
    assert_eq!(found.count, 40, "{found:?}");
    assert!(found.max_ns >= 299 * MS, "{found:?}");
    assert!(latencies.total().at(1.0 - 10.0 / 40.0) >= 90 * MS, "{found:?}");
    assert!(latencies.total().at(0.25) < 90 * MS, "{found:?}");
}

#[test]
fn what_another_pipeline_reads_changes_nothing_for_a_window() {
    // As above, beside a source that has nothing to do with it, whose event times are 100 ms behind. It comes to the end of each
    // window while the stall still holds the window's result up, and must not be taken for what the window waited for.
    let mut job = Job::new("two").workers(1);
    windows_with_a_stall(&job);
    let behind = |i: &u64| EventTime::from_millis(*i as i64 - 100);
    job.source(Generator::forever(|i| i), Watermarks::monotonous(behind))
        .sink(for_each(|_: Record<u64>| ()));
    let load: Load = "1k".parse().expect("a load");
    let measured = job.measure(&load, Duration::ZERO, millis(800)).expect("the job runs");
    let latencies = &measured.latencies[&LatencyKind::WindowResult];
    let found = latencies.percentiles();
    assert_eq!(found.count, 40, "{found:?}");
    // The window that stalled took 300 ms, and the 15 that closed meanwhile 280, 260, ..., 0 ms: eleven took 100 ms and more.
    // Against the other source, these would be 180 ms and less, and hardly five of them.
    assert!(latencies.total().at(1.0 - 10.0 / 40.0) >= 90 * MS, "{found:?}");
    assert!(measured.latencies[&LatencyKind::Record].count() > 0);
}
