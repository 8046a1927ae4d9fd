//! What a review found, kept so that it stays found. Each test opens with the story of the bug.

use std::path::Path;
use std::time::Duration;

use millstream::prelude::*;

fn run(job: Job) -> Summary {
    job.run().expect("the job runs")
}

fn at_zero<T>(_: &T) -> EventTime {
    EventTime::EPOCH
}

/// `reduce` used to end in a stateless operator of its own, and the name went there: the state kept a derived name, and two
/// reduces that changed places took over each other's state.
#[test]
fn the_name_of_a_reduce_is_that_of_its_state() {
    let job = Job::new("names");
    let numbers = job.source(from_vec(vec![1u64, 2, 3]), Watermarks::monotonous(at_zero));
    numbers.key_by(|n| n % 2).reduce(|sum, n| *sum += n).name("sums").sink(Collected::new().sink());
    let plan = job.mermaid();
    assert!(plan.contains("[(\"sums"), "{plan}");
    assert!(!plan.contains("reduce-1") && !plan.contains("filter_map"), "{plan}");
}

fn counting(dir: &Path, values: std::ops::Range<u64>) -> Job {
    let job = Job::new("counting").workers(1).checkpoint_dir(dir.join("checkpoints"));
    job.source(from_vec(values.collect()), Watermarks::monotonous(at_zero))
        .key_by(|n| n % 2)
        .fold(0u64, |count, _| *count += 1)
        .map(|(key, count)| Row { key, count })
        .sink(FileSink::csv(dir.join("out")));
    job
}

#[derive(Clone, serde::Serialize)]
struct Row {
    key: u64,
    count: u64,
}

fn parts(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir.join("out")).expect("the output is there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    paths.sort();
    paths
}

/// A start with `--newest-intact` that found no checkpoint at all (a disk that was not mounted) began again and moved all
/// output aside, as if `--fresh` had been asked for.
#[test]
fn when_no_checkpoint_is_there_then_only_fresh_sets_output_aside() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    run(counting(dir.path(), 0..100));
    let before = parts(dir.path());
    assert!(!before.is_empty());
    std::fs::remove_dir_all(dir.path().join("checkpoints")).expect("removed");
    for from in [StartFrom::Newest, StartFrom::NewestIntact] {
        let error = counting(dir.path(), 0..100).start_from(from.clone()).run().expect_err("output would be doubled");
        assert_eq!(error.kind(), ErrorKind::State, "{error}");
        assert_eq!(parts(dir.path()), before);
    }
    let summary = run(counting(dir.path(), 0..100).start_from(StartFrom::Fresh));
    assert_eq!(summary.outcome, Outcome::Finished);
}

/// A restart repeated the commit of the newest checkpoint and failed when somebody had taken the committed files away, as those
/// who read the output do.
#[test]
fn output_that_was_taken_away_is_not_missed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    run(counting(dir.path(), 0..100));
    for part in parts(dir.path()) {
        std::fs::remove_file(part).expect("taken");
    }
    assert_eq!(run(counting(dir.path(), 0..100)).outcome, Outcome::AlreadyFinished);
}

/// Of splits whose watermarks are equal and stand still, the first was read for ever.
#[test]
fn every_split_gets_its_turn() {
    let job = Job::new("turns").workers(1).batch_size(8);
    let (sender, receiver) = crossbeam_channel::unbounded();
    let numbers = Generator::forever(|i| i).splits(4);
    job.source(numbers, Watermarks::none(at_zero)).sink(for_each(move |record: Record<u64>| {
        let _ = sender.send(record.value % 4);
    }));
    let handle = job.start().expect("starts");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10_000 {
        seen.insert(receiver.recv_timeout(Duration::from_secs(10)).expect("a record of every split within 10 s"));
    }
    handle.stop(StopMode::Now);
    handle.wait().expect("stops");
    assert_eq!(seen.len(), 4, "only the splits {seen:?} were read");
}

/// A checkpoint interval, a bound or a wait of "for ever" overflowed: a panic, or a job that never read anything.
#[test]
fn for_ever_is_a_long_time_and_not_an_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut job = counting(dir.path(), 0..100).checkpoint_every(Duration::MAX);
    job.settings_mut().in_flight = usize::MAX;
    assert_eq!(run(job).records_in, 100);
}

/// State that serde can write and not read with a compact codec made checkpoints that nothing could restore.
#[test]
fn state_that_could_not_be_restored_fails_the_first_checkpoint() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = Job::new("json").workers(2).checkpoint_dir(dir.path());
    job.source(from_vec(vec![1u64, 2, 3]), Watermarks::monotonous(at_zero))
        .key_by(|n| *n)
        .fold(serde_json::Value::Null, |last, n| *last = serde_json::json!({ "last": n }))
        .name("last")
        .sink(for_each(|_: Record<(u64, serde_json::Value)>| ()));
    let error = job.run().expect_err("the state cannot be restored");
    assert_eq!(error.operator(), Some("last"), "{error}");
    assert!(error.to_string().contains("could not be read back"), "{error}");
}

/// Going back behind output that cannot be withdrawn doubled it without a word.
#[test]
fn a_sink_that_cannot_withdraw_refuses_to_go_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = || {
        let job = Job::new("closure").workers(1).checkpoint_dir(dir.path()).checkpoint_every(Duration::from_millis(5));
        job.source(Generator::new(400, |i| i).rate(4000.0), Watermarks::monotonous(at_zero))
            .sink(for_each(|_: Record<u64>| ()))
            .name("out");
        job
    };
    let summary = run(job());
    let older = summary.epoch.expect("a checkpoint") - 1;
    let error = job().start_from(StartFrom::Epoch(older)).run().expect_err("it would be doubled");
    assert_eq!((error.kind(), error.operator()), (ErrorKind::State, Some("out")), "{error}");
    assert_eq!(run(job()).outcome, Outcome::AlreadyFinished, "nothing was moved");
}

/// A delay may be raised between two starts. What was late for a window that has been fired stays late: no window fires twice.
#[test]
fn when_the_delay_is_raised_then_no_window_fires_twice() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let results = Collected::<(u64, Window, u64)>::new();
    let (sender, source) = channel::<i64>(16);
    let job = |source, delay| {
        let job = Job::new("delays").workers(1).checkpoint_dir(dir.path());
        job.source(
            source,
            Watermarks::bounded_out_of_orderness(EventSpan::secs(delay), |s: &i64| EventTime::from_secs(*s)),
        )
        .key_by(|_| 0u64)
        .window(Tumbling::of(EventSpan::secs(10)))
        .aggregate(Count)
        .sink(results.sink());
        job
    };
    let handle = job(source, 0).start().expect("starts");
    [5, 15, 25].into_iter().for_each(|s| sender.send(s).expect("sent"));
    while handle.status().windows_fired < 2 {
        std::thread::yield_now();
    }
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
    let (sender, source) = channel::<i64>(16);
    let handle = job(source, 1000).start().expect("goes on");
    [4, 14, 26, 2000].into_iter().for_each(|s| sender.send(s).expect("sent"));
    drop(sender);
    let summary = handle.wait().expect("finishes");
    assert_eq!(summary.late, 2, "what was late for a fired window stays late");
    let mut counts: Vec<_> = results
        .values()
        .into_iter()
        .map(|(_, window, count)| (window.start.micros() / 1_000_000, count))
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [(0, 1), (10, 1), (20, 2), (2000, 1)]);
}

/// A tumbling window of many keys left its state all at once; now it goes in parts, and a stop may come between two of them.
#[test]
fn a_large_window_is_fired_in_parts_and_whole() {
    const KEYS: u64 = 200_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let results = Collected::<u64>::new();
    let job = |workers| {
        let job = Job::new("large")
            .workers(workers)
            .checkpoint_dir(dir.path())
            .checkpoint_every(Duration::from_millis(20));
        job.source(Generator::new(KEYS, |i| i).splits(2), Watermarks::none(at_zero))
            .key_by(|key| *key)
            .window(Tumbling::of(EventSpan::secs(1)))
            .aggregate(Count)
            .map(|(key, _, _)| key)
            .sink(results.sink());
        job
    };
    let mut workers = (1..=3).cycle();
    loop {
        let handle = job(workers.next().expect("endless")).start().expect("starts");
        while !handle.is_finished() && handle.status().records_out < KEYS / 8 {
            std::thread::yield_now();
        }
        handle.stop(StopMode::WithCheckpoint);
        if handle.wait().expect("stops").outcome == Outcome::Finished {
            break;
        }
    }
    let mut keys = results.values();
    keys.sort_unstable();
    assert!(keys.into_iter().eq(0..KEYS));
}
