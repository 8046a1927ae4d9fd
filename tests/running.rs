//! Jobs while they run: handles, idleness, flow control, channels, panics, what is committed when, and the counts.

mod patience;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use millstream::error::Result;
use millstream::prelude::*;
use millstream::sink::{Committer, Sink, SinkTask, SinkWriter};
use millstream::source::{Output, Read, Source, SplitReader};
use millstream::state::store::CheckpointStore;
use patience::{Random, SOON, effort, lock, ms, sleep, temp, until, within};
use serde::{Deserialize, Serialize};

// ---------------------------------------------------------------------------------------------------------------------
// Helpers

/// Names in a directory that begin with `prefix`, sorted.
fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Key, start of the window in seconds, count, sum.
type Total = (u64, i64, u64, u64);

const KEYS: u64 = 10;

/// Number `n` happens at `n` ms.
fn at(n: &u64) -> EventTime {
    EventTime::from_millis(*n as i64)
}

/// Counts and sums numbers per last digit and second.
fn totals(numbers: Stream<u64>, results: &Collected<Total>) {
    numbers
        .key_by(|n| n % KEYS)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate((Count, Sum::of(|n: &u64| *n)))
        .name("windows")
        .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000_000, count, sum))
        .name("rows")
        .sink(results.sink())
        .name("out");
}

/// What [`totals`] must come to for the numbers below `count`.
fn expected(count: u64) -> Vec<Total> {
    let mut totals: BTreeMap<(u64, i64), (u64, u64)> = BTreeMap::new();
    for n in 0..count {
        let total = totals.entry((n % KEYS, n as i64 / 1_000)).or_default();
        *total = (total.0 + 1, total.1 + n);
    }
    totals.into_iter().map(|((key, second), (count, sum))| (key, second, count, sum)).collect()
}

fn assert_exactly(results: &Collected<Total>, count: u64, what: &str) {
    let mut values = results.values();
    values.sort_unstable();
    assert!(values == expected(count), "{what}: {} results instead of {}", values.len(), expected(count).len());
}

/// Every result so far is right and there once.
fn assert_partly(results: &Collected<Total>, count: u64, what: &str) {
    let expected: std::collections::BTreeSet<Total> = expected(count).into_iter().collect();
    let mut seen = std::collections::BTreeSet::new();
    for total in results.values() {
        assert!(expected.contains(&total), "{what}: {total:?} is wrong");
        assert!(seen.insert(total), "{what}: {total:?} is there twice");
    }
}

fn numbers(job: &Job, source: impl Source<Item = u64>) -> Stream<u64> {
    job.source(source, Watermarks::monotonous(at)).name("numbers")
}

// ---------------------------------------------------------------------------------------------------------------------
// The handle

/// A future run to its end on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn a_job_that_never_ends_is_awaited_and_stopped_from_elsewhere() {
    let results = Collected::<u64>::new();
    let job = Job::new("endless").workers(2);
    let numbers = Generator::forever(|i| i).splits(2).rate(10_000.0);
    job.source(numbers, Watermarks::monotonous(|n: &u64| EventTime::from_millis(*n as i64)))
        .sink(results.sink());
    let handle = job.start().expect("starts");
    let stop = handle.stopper();
    let later = stop.clone();
    let stopping = std::thread::Builder::new().spawn(move || {
        sleep(ms(100));
        later(StopMode::WithCheckpoint);
    });
    let summary = block_on(handle).expect("stops");
    assert_eq!(summary.outcome, Outcome::Stopped);
    assert!(summary.records_in > 0);
    assert_eq!(results.values().len() as u64, summary.records_in, "what was read was committed");
    stop(StopMode::Now); // of a job that is gone: nothing happens
    stopping.expect("a thread").join().expect("it stopped the job");
}

#[test]
fn a_stopped_job_goes_on_where_it_was() {
    for (mode, workers) in [(StopMode::WithCheckpoint, 1), (StopMode::WithCheckpoint, 3), (StopMode::Now, 2)] {
        let what = format!("{mode:?} on {workers} workers");
        let (dir, results) = (temp(), Collected::new());
        let start = |rate: f64| {
            let job = Job::new("stopped")
                .workers(workers)
                .batch_size(64)
                .checkpoint_dir(dir.path())
                .checkpoint_every(ms(20));
            totals(numbers(&job, Generator::new(60_000, |n| n).splits(3).rate(rate)), &results);
            job.start().expect("starts")
        };
        let mut counts = Vec::new();
        for _ in 0..3 {
            let handle = start(20_000.0);
            assert!(!handle.is_finished());
            until("some records", || handle.status().records_in > 2_000);
            until("a checkpoint", || handle.status().epoch > 2);
            let status = handle.status();
            assert!(status.operators.iter().any(|operator| operator.name == "windows" && operator.records_in > 0));
            handle.stop(mode);
            let summary = within(handle, SOON).expect(&what);
            assert_eq!(summary.outcome, Outcome::Stopped, "{what}");
            counts.push(summary.records_in);
            assert_partly(&results, 60_000, &what);
        }
        let summary = within(start(0.0), SOON).expect(&what);
        assert_eq!(summary.outcome, Outcome::Finished, "{what}");
        counts.push(summary.records_in);
        assert_exactly(&results, 60_000, &what);
        let read: u64 = counts.iter().sum();
        match mode {
            StopMode::WithCheckpoint => assert_eq!(read, 60_000, "{what}: nothing is read twice"),
            StopMode::Now => assert!(read >= 60_000, "{what}"),
        }
        let again = within(start(0.0), SOON).expect(&what);
        assert_eq!((again.outcome, again.records_in), (Outcome::AlreadyFinished, 0), "{what}");
        assert_exactly(&results, 60_000, &what);
    }
}

#[test]
fn a_stop_may_come_at_any_moment() {
    // At once, before workers have built anything; during a checkpoint; twice; after the end.
    let mut random = Random(7 * effort());
    for _ in 0..effort() {
        let (dir, results) = (temp(), Collected::new());
        let mut runs = 0;
        loop {
            let job = Job::new("stops").workers(2).batch_size(16).checkpoint_dir(dir.path()).checkpoint_every(ms(1));
            totals(numbers(&job, Generator::new(20_000, |n| n).splits(2).rate(100_000.0)), &results);
            let handle = job.start().expect("starts");
            if runs > 0 {
                sleep(Duration::from_micros(random.below(25_000)));
            }
            handle.stop(if random.below(3) == 0 { StopMode::Now } else { StopMode::WithCheckpoint });
            if random.below(2) == 0 {
                handle.stop(StopMode::WithCheckpoint);
            }
            let summary = within(handle, SOON).expect("stops or finishes");
            assert_partly(&results, 20_000, "while it is stopped and started");
            if summary.outcome == Outcome::Finished {
                break;
            }
            runs += 1;
            assert!(runs < 300, "it makes no progress");
        }
        assert_exactly(&results, 20_000, "after all stops");
    }
}

#[test]
fn a_stop_without_checkpoints_commits_what_was_read() {
    let results = Collected::<u64>::new();
    let job = Job::new("no-dir").workers(2);
    numbers(&job, Generator::forever(|n| n).rate(20_000.0)).sink(results.sink());
    let handle = job.start().expect("starts");
    until("some records", || handle.status().records_out > 100);
    assert!(results.values().is_empty(), "nothing is committed before the end");
    handle.stop(StopMode::WithCheckpoint);
    let summary = within(handle, SOON).expect("stops");
    assert_eq!(summary.outcome, Outcome::Stopped);
    assert_eq!(results.values().len() as u64, summary.records_in);
}

#[test]
fn a_handle_is_a_future() {
    let results = Collected::new();
    let job = Job::new("future").workers(2);
    totals(numbers(&job, Generator::new(5_000, |n| n).rate(50_000.0)), &results);
    let summary = block_on(job.start().expect("starts")).expect("finishes");
    assert_eq!((summary.outcome, summary.records_in), (Outcome::Finished, 5_000));
    assert_exactly(&results, 5_000, "as a future");

    let job = Job::new("failing-future").workers(2);
    numbers(&job, Generator::new(5_000, |n| n))
        .map(|n| assert!(n < 4_000, "boom"))
        .sink(for_each(|_: Record<()>| {}));
    let error = block_on(job.start().expect("starts")).expect_err("fails");
    assert!(error.to_string().contains("boom"), "{error}");
}

#[test]
fn a_job_runs_on_without_its_handle() {
    let results = Collected::new();
    let job = Job::new("dropped").workers(2);
    totals(numbers(&job, Generator::new(5_000, |n| n).rate(50_000.0)), &results);
    drop(job.start().expect("starts"));
    until("the results", || !results.values().is_empty());
    assert_exactly(&results, 5_000, "without a handle");
}

// ---------------------------------------------------------------------------------------------------------------------
// Odd shapes

/// A source that has no splits at all.
struct Nothing;

struct NeverRead;

impl Source for Nothing {
    type Item = u64;
    type Position = u64;
    type Reader = NeverRead;

    fn kind(&self) -> &'static str {
        "nothing"
    }
    fn splits(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn open(&self, _: &str, _: Option<u64>, _: millstream::source::Waker) -> Result<NeverRead> {
        Err(Error::internal("there is no split"))
    }
}

impl SplitReader for NeverRead {
    type Item = u64;
    type Position = u64;

    fn read(&mut self, _: usize, _: &mut impl Output<u64>) -> Result<Read> {
        Ok(Read::Ended)
    }
    fn position(&self) -> u64 {
        0
    }
}

#[test]
fn jobs_with_little_or_nothing_to_read_end() {
    for workers in [1, 2, 5, 130] {
        for count in [0, 1, 50] {
            let (dir, results) = (temp(), Collected::new());
            let job = Job::new("little").workers(workers).checkpoint_dir(dir.path());
            let more = numbers(&job, from_vec((0..count).collect()).splits(3));
            let nothing = job.source(Nothing, Watermarks::monotonous(at)).name("nothing");
            totals(more.union([nothing]).name("both"), &results);
            let summary = within(job.start().expect("starts"), SOON).expect("finishes");
            assert_eq!((summary.outcome, summary.records_in), (Outcome::Finished, count));
            assert_exactly(&results, count, &format!("{count} records on {workers} workers"));
        }
    }
}

#[test]
fn more_workers_than_key_groups_give_the_same_results() {
    let (dir, results) = (temp(), Collected::new());
    let start = |workers: usize, rate: f64| {
        let job = Job::new("many").workers(workers).checkpoint_dir(dir.path()).checkpoint_every(ms(50));
        totals(numbers(&job, Generator::new(20_000, |n| n).splits(5).rate(rate)), &results);
        job.start().expect("starts")
    };
    for workers in [130, 2] {
        let handle = start(workers, 5_000.0);
        let first = handle.status().epoch;
        let begun = Instant::now();
        while handle.status().epoch < first + 2 {
            assert!(begun.elapsed() < SOON, "no checkpoint: {:?}", handle.status());
            sleep(ms(1));
        }
        handle.stop(StopMode::WithCheckpoint);
        assert_eq!(within(handle, SOON).expect("stops").outcome, Outcome::Stopped);
    }
    within(start(131, 0.0), SOON).expect("finishes");
    assert_exactly(&results, 20_000, "130, 2 and 131 workers");
}

// ---------------------------------------------------------------------------------------------------------------------
// Idleness

/// A sink that notes which threads of the system write and commit.
#[cfg(target_os = "linux")]
#[derive(Clone, Default)]
struct Spy {
    threads: Arc<Mutex<std::collections::BTreeSet<String>>>,
    seen: Arc<AtomicU64>,
    unprepared: u64,
}

#[cfg(target_os = "linux")]
impl Spy {
    fn note_thread(&self) {
        let thread = std::fs::read_link("/proc/thread-self").expect("/proc is there");
        lock(&self.threads).insert(format!("/proc/{}", thread.display()));
    }

    /// Processor time that the threads have used so far.
    fn used(&self) -> Duration {
        let threads = lock(&self.threads);
        let used = threads.iter().map(|thread| match std::fs::read_to_string(format!("{thread}/schedstat")) {
            Ok(text) => Duration::from_nanos(text.split(' ').next().expect("a field").parse().expect("a number")),
            Err(_) => {
                let text = std::fs::read_to_string(format!("{thread}/stat")).expect("the thread lives");
                let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
                let ticks = |place: usize| fields[place].parse::<u64>().expect("a number");
                // A tick is 10 ms on every Linux that matters.
                ms(10 * (ticks(11) + ticks(12)))
            }
        });
        used.sum()
    }
}

#[cfg(target_os = "linux")]
impl Sink<u64> for Spy {
    type Writer = Spy;

    fn kind(&self) -> &'static str {
        "spy"
    }
    fn writer(&self, _: &SinkTask) -> Result<Spy> {
        self.note_thread();
        Ok(self.clone())
    }
    fn committer(&self, _: &str) -> Option<Box<dyn Committer>> {
        Some(Box::new(self.clone()))
    }
}

#[cfg(target_os = "linux")]
impl SinkWriter<u64> for Spy {
    fn write(&mut self, _: u64, records: &mut Vec<Record<u64>>) -> Result<()> {
        self.unprepared += records.len() as u64;
        self.seen.fetch_add(records.drain(..).len() as u64, Ordering::SeqCst);
        Ok(())
    }
    fn prepare(&mut self, epoch: u64) -> Result<Vec<String>> {
        let written = std::mem::take(&mut self.unprepared);
        Ok((written > 0).then(|| format!("{written} in {epoch}")).into_iter().collect())
    }
}

#[cfg(target_os = "linux")]
impl Committer for Spy {
    fn recover(&mut self, _: Option<u64>, _: &[String], _: bool) -> Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: &[String]) -> Result<()> {
        self.note_thread();
        Ok(())
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_job_uses_no_processor_and_writes_no_checkpoints() {
    let (dir, spy) = (temp(), Spy::default());
    let (sender, source) = channel(100);
    let job = Job::new("idle").workers(2).checkpoint_dir(dir.path()).checkpoint_every(ms(50));
    numbers(&job, source)
        .key_by(|n| *n)
        .fold(0u64, |sum, n| *sum += n)
        .map(|(_, sum)| sum)
        .sink(spy.clone());
    let handle = job.start().expect("starts");
    sender.send(1).expect("takes it");
    until("the first record", || spy.seen.load(Ordering::SeqCst) == 1);
    // Two workers and the coordinator, which commits the first record; perhaps once more for nothing new.
    until("a commit", || lock(&spy.threads).len() == 3);
    until("it is at rest", || {
        let epoch = handle.status().epoch;
        sleep(ms(300));
        epoch == handle.status().epoch
    });

    let (used, epoch, kept) = (spy.used(), handle.status().epoch, names(dir.path(), "epoch-"));
    sleep(ms(1_000));
    let used = spy.used() - used;
    assert!(used < ms(30), "an idle job used {used:?} of a second");
    assert_eq!(handle.status().epoch, epoch);
    assert_eq!(names(dir.path(), "epoch-"), kept, "a checkpoint of nothing");

    for n in 0..5 {
        let start = Instant::now();
        sender.send(n).expect("takes it");
        until("a record", || spy.seen.load(Ordering::SeqCst) == n + 2);
        assert!(start.elapsed() < Duration::from_secs(2), "an idle job woke after {:?}", start.elapsed());
        sleep(ms(30));
    }
    until("a checkpoint", || handle.status().epoch > epoch);
    let start = Instant::now();
    drop(sender);
    let summary = within(handle, SOON).expect("finishes");
    assert!(start.elapsed() < Duration::from_secs(3), "it ended after {:?}", start.elapsed());
    assert_eq!((summary.outcome, summary.records_in), (Outcome::Finished, 6));
}

#[test]
fn an_idle_job_stops_at_once_and_never_misses_a_wake_up() {
    let mut slow = 0;
    for round in 0..30 {
        let (sender, source) = channel::<u64>(4);
        let dir = temp();
        let job = Job::new("sleepy").workers(1 + round % 3).checkpoint_dir(dir.path()).checkpoint_every(ms(1));
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        numbers(&job, source).key_by(|n| *n).fold(0u64, |sum, _| *sum += 1).sink(for_each(
            move |_: Record<(u64, u64)>| {
                count.fetch_add(1, Ordering::SeqCst);
            },
        ));
        let handle = job.start().expect("starts");
        let start = Instant::now();
        for n in 0..20 {
            sender.send(n).expect("takes it");
            // Every second time the worker is given the time to fall asleep.
            if n % 2 == 0 {
                until("a record", || seen.load(Ordering::SeqCst) > n);
                sleep(Duration::from_micros(50 * n));
            }
        }
        // A missed wake-up is made good only when the worker's nap of a second is over.
        slow += i32::from(start.elapsed() > ms(900));
        let start = Instant::now();
        if round % 2 == 0 {
            // Otherwise the last may still be in the channel, and stay there.
            until("all records", || seen.load(Ordering::SeqCst) == 20);
            handle.stop(StopMode::WithCheckpoint);
        } else {
            drop(sender);
        }
        within(handle, SOON).expect("ends");
        assert!(start.elapsed() < Duration::from_secs(3), "the end took {:?}", start.elapsed());
        assert_eq!(seen.load(Ordering::SeqCst), 20);
    }
    assert!(slow < 3, "{slow} of 30 times a worker slept on");
}

// ---------------------------------------------------------------------------------------------------------------------
// Flow control

/// Runs `count` numbers through an exchange into a sink that is slow on all workers, or on one. Returns the most that were
/// ever between source and sink.
fn most_between(
    workers: usize,
    in_flight: usize,
    batch: usize,
    one_slow: bool,
    every: Option<Duration>,
    count: u64,
) -> u64 {
    let made = Arc::new(AtomicU64::new(0));
    let (done, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let slow_thread = Arc::new(OnceLock::new());
    let dir = temp();
    let mut job = Job::new("flow").workers(workers).batch_size(batch);
    job.settings_mut().in_flight = in_flight;
    if let Some(every) = every {
        job = job.checkpoint_dir(dir.path()).checkpoint_every(every);
    }
    let source = {
        let (made, done, most) = (Arc::clone(&made), Arc::clone(&done), Arc::clone(&most));
        Generator::new(count, move |n| {
            let made = made.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(made.saturating_sub(done.load(Ordering::SeqCst)), Ordering::SeqCst);
            n
        })
        .splits(workers)
    };
    let sink = {
        let done = Arc::clone(&done);
        for_each(move |_: Record<(u64, u64)>| {
            let me = std::thread::current().id();
            if done.fetch_add(1, Ordering::SeqCst) % 16 == 0 && (!one_slow || *slow_thread.get_or_init(|| me) == me) {
                sleep(ms(1));
            }
        })
    };
    numbers(&job, source).key_by(|n| *n).fold(0u64, |sum, n| *sum += n).sink(sink);
    let summary = within(job.start().expect("starts"), SOON).expect("finishes");
    assert_eq!((summary.records_in, summary.records_out), (count, count));
    most.load(Ordering::SeqCst)
}

#[test]
fn a_slow_sink_bounds_what_is_read() {
    for workers in [2, 3] {
        for (one_slow, every) in [(false, None), (true, None), (false, Some(ms(3))), (true, Some(ms(3)))] {
            let (in_flight, batch) = (500, 50);
            let most = most_between(workers, in_flight, batch, one_slow, every, 12_000);
            // A worker that has taken its share in may be handed another while it works on that; with checkpoints as
            // much again may wait for the epoch to close. Sources look only between two batches.
            let stashes = if every.is_some() { 2 } else { 1 };
            let bound = (workers * (2 * in_flight * stashes + 8 * batch)) as u64;
            assert!(
                most <= bound,
                "{most} records between source and sink, {bound} allowed: {workers} workers, one slow: {one_slow}, checkpoints: {every:?}"
            );
        }
    }
}

#[test]
fn the_smallest_bounds_are_no_deadlock() {
    for workers in [1, 2, 3] {
        for (batch, every) in [(1, None), (1_000, None), (1, Some(ms(1))), (7, Some(ms(1)))] {
            most_between(workers, 1, batch, false, every, 1_500);
        }
    }
}

#[test]
fn two_exchanges_at_the_smallest_bounds_are_no_deadlock() {
    for workers in [2, 3] {
        let (dir, results) = (temp(), Collected::new());
        let mut job =
            Job::new("twice").workers(workers).batch_size(3).checkpoint_dir(dir.path()).checkpoint_every(ms(1));
        job.settings_mut().in_flight = 1;
        let first = numbers(&job, Generator::new(3_000, |n| n).splits(2))
            .key_by(|n| n % 7)
            .fold(0u64, |last, n| *last = *n);
        totals(first.name("first").map(|(_, n)| n), &results);
        within(job.start().expect("starts"), SOON).expect("finishes");
        assert_exactly(&results, 3_000, "two exchanges");
    }
}

#[test]
fn a_large_firing_passes_small_bounds_and_a_stop_within_it() {
    // One window of 100,000 keys, each of whose results goes through a second exchange.
    const COUNT: u64 = 100_000;
    let (dir, results) = (temp(), Collected::new());
    let start = || {
        let mut job = Job::new("large").workers(3).checkpoint_dir(dir.path()).checkpoint_every(ms(1));
        job.settings_mut().in_flight = 10;
        let source = Generator::new(COUNT, |n| n).splits(2);
        job.source(source, Watermarks::none(|n: &u64| EventTime::from_micros(*n as i64)))
            .key_by(|n| *n)
            .window(Tumbling::of(EventSpan::secs(1)))
            .aggregate(Sum::of(|n: &u64| *n))
            .name("each")
            .key_by(|(key, ..)| key % 10)
            .window(Tumbling::of(EventSpan::secs(1)))
            .aggregate((Count, Sum::of(|(_, _, n): &(u64, Window, u64)| *n)))
            .name("all")
            .map(|(key, _, (count, sum))| (key, count, sum))
            .sink(results.sink());
        job.start().expect("starts")
    };
    let handle = start();
    until("it fires", || handle.is_finished() || handle.status().windows_fired > 0);
    handle.stop(StopMode::WithCheckpoint);
    within(handle, SOON).expect("stops");
    within(start(), SOON).expect("finishes");
    let mut values = results.values();
    values.sort_unstable();
    let sum = |key: u64| (0..COUNT).filter(|n| n % 10 == key).sum::<u64>();
    assert_eq!(values, (0..10).map(|key| (key, COUNT / 10, sum(key))).collect::<Vec<_>>());
}

// ---------------------------------------------------------------------------------------------------------------------
// The channel

#[test]
fn every_producer_of_a_channel_keeps_its_order() {
    for (workers, capacity, every) in [(1, 1, ms(10_000)), (2, 4, ms(2)), (3, 1_000, ms(2))] {
        const PRODUCERS: u64 = 4;
        const EACH: u64 = 3_000;
        let dir = temp();
        let (sender, source) = channel::<(u64, u64)>(capacity);
        let job = Job::new("producers")
            .workers(workers)
            .batch_size(37)
            .checkpoint_dir(dir.path())
            .checkpoint_every(every);
        let results = Collected::new();
        job.source(source, Watermarks::none(|(_, n): &(u64, u64)| at(n)))
            .key_by(|(producer, _)| *producer)
            .fold(0u64, |next, (producer, n)| {
                assert_eq!(next, n, "producer {producer}");
                *next += 1;
            })
            .sink(results.sink());
        let handle = job.start().expect("starts");
        std::thread::scope(|scope| {
            for producer in 0..PRODUCERS {
                let sender = sender.clone();
                scope.spawn(move || (0..EACH).for_each(|n| sender.send((producer, n)).expect("the job runs")));
            }
            drop(sender);
        });
        let summary = within(handle, SOON).expect("finishes");
        assert_eq!(summary.records_in, PRODUCERS * EACH);
        let mut results = results.values();
        results.sort_unstable();
        assert!(results.into_iter().eq((0..PRODUCERS).flat_map(|p| (1..=EACH).map(move |n| (p, n)))));
    }
}

#[test]
fn a_job_that_is_behind_blocks_its_senders() {
    let (sender, source) = channel::<u64>(10);
    let mut job = Job::new("behind").workers(2).batch_size(5);
    job.settings_mut().in_flight = 10;
    let gate = Arc::new(AtomicBool::new(false));
    let wait = Arc::clone(&gate);
    numbers(&job, source)
        .key_by(|n| *n)
        .fold(0u64, |sum, n| *sum += n)
        .sink(for_each(move |_: Record<(u64, u64)>| {
            while !wait.load(Ordering::SeqCst) {
                sleep(ms(1));
            }
        }));
    let handle = job.start().expect("starts");
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sender = sender;
        let (sent, gate) = (&sent, &gate);
        scope.spawn(move || {
            for n in 0..2_000 {
                sender.send(n).expect("the job runs");
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        sleep(ms(500));
        let before = sent.load(Ordering::SeqCst);
        assert!(before < 200, "{before} records were sent into a job that stands still");
        sleep(ms(200));
        assert_eq!(sent.load(Ordering::SeqCst), before, "it stands still");
        gate.store(true, Ordering::SeqCst);
    });
    let summary = within(handle, SOON).expect("finishes");
    assert_eq!(summary.records_out, 2_000);
}

#[test]
fn when_the_job_fails_then_its_senders_are_told() {
    let (sender, source) = channel::<u64>(2);
    let job = Job::new("gone").workers(2);
    numbers(&job, source).map(|n| assert!(n < 100, "boom")).sink(for_each(|_: Record<()>| {}));
    let handle = job.start().expect("starts");
    let mut n = 0;
    while sender.send(n).is_ok() {
        n += 1;
        assert!(n < 1_000_000, "nobody tells the sender");
    }
    assert!(within(handle, SOON).is_err());
}

// ---------------------------------------------------------------------------------------------------------------------
// Panics

/// Where user code panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Source,
    Position,
    Timestamp,
    Generator,
    Map,
    Key,
    KeySerialize,
    Aggregate,
    Finish,
    Fold,
    StateClone,
    StateSerialize,
    Write,
    Prepare,
    Commit,
    Drop,
}

const PLACES: [Place; 16] = [
    Place::Source,
    Place::Position,
    Place::Timestamp,
    Place::Generator,
    Place::Map,
    Place::Key,
    Place::KeySerialize,
    Place::Aggregate,
    Place::Finish,
    Place::Fold,
    Place::StateClone,
    Place::StateSerialize,
    Place::Write,
    Place::Prepare,
    Place::Commit,
    Place::Drop,
];

impl Place {
    /// The operator that must be named; where several can be it, none.
    fn operator(self) -> Option<&'static str> {
        match self {
            Place::Source | Place::Position | Place::Timestamp | Place::Generator => Some("numbers"),
            Place::Map => Some("wrap"),
            Place::Key => Some("keys"),
            Place::Aggregate | Place::Finish => Some("windows"),
            Place::Fold | Place::StateClone => Some("running"),
            Place::Write | Place::Prepare | Place::Commit => Some("out"),
            Place::KeySerialize | Place::StateSerialize | Place::Drop => None,
        }
    }
}

/// Panics the first time that `place` is passed after `left` more times; never again.
#[derive(Debug)]
struct Bomb {
    place: Place,
    left: AtomicI64,
}

impl Bomb {
    fn pass(&self, place: Place) {
        if self.place == place && self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            panic!("boom at {place:?}");
        }
    }
}

/// Bombs of the jobs that run now, so that values that come back from bytes find theirs.
fn bombs() -> &'static Mutex<HashMap<u64, Arc<Bomb>>> {
    static BOMBS: OnceLock<Mutex<HashMap<u64, Arc<Bomb>>>> = OnceLock::new();
    BOMBS.get_or_init(Mutex::default)
}

fn pass(bomb: u64, place: Place) {
    let bomb = lock(bombs()).get(&bomb).cloned();
    if let Some(bomb) = bomb {
        bomb.pass(place);
    }
}

/// A number that panics when it is dropped.
#[derive(Clone)]
struct Fragile {
    n: u64,
    bomb: u64,
}

impl Drop for Fragile {
    fn drop(&mut self) {
        pass(self.bomb, Place::Drop);
    }
}

/// A key that panics when it is serialised, as it is for its hash and for checkpoints.
#[derive(Clone, PartialEq, Eq, Deserialize)]
struct FragileKey {
    key: u64,
    bomb: u64,
}

impl Serialize for FragileKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        pass(self.bomb, Place::KeySerialize);
        (self.key, self.bomb).serialize(serializer)
    }
}

/// State that panics when it is copied for a checkpoint, and when it is written to one.
#[derive(Deserialize)]
struct FragileState {
    sum: u64,
    bomb: u64,
}

impl Clone for FragileState {
    fn clone(&self) -> Self {
        pass(self.bomb, Place::StateClone);
        FragileState { ..*self }
    }
}

impl Serialize for FragileState {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        pass(self.bomb, Place::StateSerialize);
        (self.sum, self.bomb).serialize(serializer)
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct FragileWatermark {
    highest: EventTime,
    bomb: u64,
}

impl WatermarkGenerator for FragileWatermark {
    fn observe(&mut self, at: EventTime) {
        pass(self.bomb, Place::Generator);
        self.highest = self.highest.max(at);
    }
    fn watermark(&self) -> EventTime {
        self.highest
    }
}

/// A generator whose position panics.
struct FragileSource<F> {
    generator: Generator<F>,
    bomb: u64,
}

struct FragileReader<R> {
    reader: R,
    bomb: u64,
}

impl<F: Fn(u64) -> u64 + Clone + Send + 'static> Source for FragileSource<F> {
    type Item = u64;
    type Position = u64;
    type Reader = FragileReader<millstream::connectors::GeneratorReader<F>>;

    fn kind(&self) -> &'static str {
        "fragile"
    }
    fn splits(&self) -> Result<Vec<String>> {
        Source::splits(&self.generator)
    }
    fn open(&self, split: &str, from: Option<u64>, waker: millstream::source::Waker) -> Result<Self::Reader> {
        Ok(FragileReader { reader: self.generator.open(split, from, waker)?, bomb: self.bomb })
    }
}

impl<R: SplitReader<Item = u64, Position = u64>> SplitReader for FragileReader<R> {
    type Item = u64;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<u64>) -> Result<Read> {
        self.reader.read(max, out)
    }
    fn position(&self) -> u64 {
        pass(self.bomb, Place::Position);
        self.reader.position()
    }
}

/// A sink that panics in each of its steps, around one that does not.
#[derive(Clone)]
struct FragileSink<S> {
    inner: S,
    bomb: u64,
}

impl<T: Data, S: Sink<T>> Sink<T> for FragileSink<S> {
    type Writer = FragileSink<S::Writer>;

    fn kind(&self) -> &'static str {
        "fragile"
    }
    fn writer(&self, task: &SinkTask) -> Result<Self::Writer> {
        Ok(FragileSink { inner: self.inner.writer(task)?, bomb: self.bomb })
    }
    fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
        let inner = self.inner.committer(job)?;
        Some(Box::new(FragileSink { inner, bomb: self.bomb }))
    }
}

impl<T: Data, W: SinkWriter<T>> SinkWriter<T> for FragileSink<W> {
    fn write(&mut self, epoch: u64, records: &mut Vec<Record<T>>) -> Result<()> {
        pass(self.bomb, Place::Write);
        self.inner.write(epoch, records)
    }
    fn prepare(&mut self, epoch: u64) -> Result<Vec<String>> {
        pass(self.bomb, Place::Prepare);
        self.inner.prepare(epoch)
    }
}

impl Committer for FragileSink<Box<dyn Committer>> {
    fn recover(&mut self, restored: Option<u64>, handles: &[String], withdraw: bool) -> Result<()> {
        self.inner.recover(restored, handles, withdraw)
    }
    fn commit(&mut self, handles: &[String]) -> Result<()> {
        pass(self.bomb, Place::Commit);
        self.inner.commit(handles)
    }
}

/// An aggregate that panics, around one that does not.
#[derive(Clone)]
struct FragileSum {
    bomb: u64,
}

impl Aggregate<u64> for FragileSum {
    type Acc = (u64, u64);
    type Out = (u64, u64);

    fn create(&self) -> (u64, u64) {
        (0, 0)
    }
    fn add(&self, acc: &mut (u64, u64), n: &u64, _: &Origin) {
        pass(self.bomb, Place::Aggregate);
        *acc = (acc.0 + 1, acc.1 + n);
    }
    fn merge(&self, acc: &mut (u64, u64), other: &(u64, u64)) {
        *acc = (acc.0 + other.0, acc.1 + other.1);
    }
    fn finish(&self, acc: &(u64, u64)) -> (u64, u64) {
        pass(self.bomb, Place::Finish);
        *acc
    }
}

const FRAGILE: u64 = 6_000;

/// A job all of whose user code passes the bomb. What it computes is [`totals`], so its results are known.
fn fragile(job: &Job, id: u64, splits: usize, results: &Collected<Total>) {
    let generator = Generator::new(FRAGILE, move |n| {
        pass(id, Place::Source);
        n
    });
    let timestamp = move |n: &u64| {
        pass(id, Place::Timestamp);
        at(n)
    };
    let watermarks = Watermarks::custom(FragileWatermark { highest: EventTime::MIN, bomb: id }, timestamp);
    job.source(FragileSource { generator: generator.splits(splits), bomb: id }, watermarks)
        .name("numbers")
        .map(move |n| {
            pass(id, Place::Map);
            Fragile { n, bomb: id }
        })
        .name("wrap")
        .key_by(move |fragile| {
            pass(id, Place::Key);
            FragileKey { key: fragile.n % 100, bomb: id }
        })
        .fold(FragileState { sum: 0, bomb: id }, move |state, fragile| {
            pass(id, Place::Fold);
            state.sum = fragile.n;
        })
        .name("running")
        .map(|(_, state)| state.sum)
        .name("unwrap")
        .key_by(|n| n % KEYS)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate(FragileSum { bomb: id })
        .name("windows")
        .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000_000, count, sum))
        .sink(FragileSink { inner: results.sink(), bomb: id })
        .name("out");
    // `key_by` cannot be named before the operator behind it; its default name is what a message must say.
}

/// Arms a bomb for as long as it lives.
struct Armed(u64);

impl Armed {
    fn new(place: Place, left: i64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::SeqCst);
        lock(bombs()).insert(id, Arc::new(Bomb { place, left: AtomicI64::new(left) }));
        Armed(id)
    }

    fn went_off(&self) -> bool {
        lock(bombs()).get(&self.0).is_some_and(|bomb| bomb.left.load(Ordering::SeqCst) < 0)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        lock(bombs()).remove(&self.0);
    }
}

/// One panic, then a restart without: it must fail soon, say where, commit nothing wrong, and go on to the right result.
/// Returns whether the bomb went off.
fn panics_once(place: Place, left: i64, workers: usize, splits: usize, checkpoints: bool) -> bool {
    let what = format!("{place:?} after {left} on {workers} workers, {splits} splits, checkpoints {checkpoints}");
    let (dir, results) = (temp(), Collected::new());
    let armed = Armed::new(place, left);
    let start = || {
        let mut job = Job::new("fragile").workers(workers).batch_size(100);
        if checkpoints {
            job = job.checkpoint_dir(dir.path()).checkpoint_every(ms(2));
        }
        fragile(&job, armed.0, splits, &results);
        job.start().expect(&what)
    };
    let handle = start();
    let begun = Instant::now();
    let outcome = within(handle, SOON);
    let went_off = armed.went_off();
    if went_off {
        assert!(begun.elapsed() < Duration::from_secs(6), "{what}: it ended only after {:?}", begun.elapsed());
        match outcome {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(&format!("boom at {place:?}")), "{what}: {text}");
                if let Some(operator) = place.operator() {
                    let named = error.operator().unwrap_or("none");
                    assert!(named == operator || (operator == "keys" && named.starts_with("key_by")), "{what}: {text}");
                }
            }
            // The last values are dropped with the dataflow, when the job is over.
            Ok(_) => assert_eq!(place, Place::Drop, "{what}: it did not fail"),
        }
        assert_partly(&results, FRAGILE, &what);
        if !checkpoints && place != Place::Drop {
            assert!(results.values().is_empty(), "{what}: committed without a clean end");
        }
        // A new job in the same process, and in the same directory.
        let summary = within(start(), SOON).expect(&what);
        assert!(matches!(summary.outcome, Outcome::Finished | Outcome::AlreadyFinished), "{what}");
    } else {
        outcome.expect(&what);
    }
    assert_exactly(&results, FRAGILE, &what);
    assert!(names(dir.path(), "live-").is_empty(), "{what}: a live directory is left");
    went_off
}

#[test]
fn a_panic_anywhere_fails_the_job_and_names_the_operator() {
    for place in PLACES {
        for workers in [1, 2, 4] {
            // Sooner or later, with busy and with idle other workers.
            let late = match place {
                Place::Source | Place::Timestamp | Place::Generator | Place::Map | Place::Key | Place::Fold => 4_000,
                Place::Aggregate | Place::Drop => 3_000,
                Place::Finish => 30,
                Place::KeySerialize => 6_010,
                Place::StateClone => 6_010,
                Place::Position | Place::Prepare | Place::Write | Place::StateSerialize | Place::Commit => 0,
            };
            let went_off = panics_once(place, late, workers, 1 + workers / 2, true);
            assert!(went_off, "{place:?} was never passed {late} times");
        }
    }
}

/// Goal 10 of the reliability page in its short form.
#[test]
fn a_hundred_random_panics_never_hang_and_never_commit_what_is_wrong() {
    let mut random = Random(20_130_101 + effort());
    let mut went_off = 0;
    let runs = 100 * effort();
    for run in 0..runs {
        let place = PLACES[random.below(PLACES.len() as u64) as usize];
        let most = match place {
            Place::Position | Place::Prepare | Place::Commit => 6,
            Place::Write | Place::Finish | Place::StateSerialize => 60,
            _ => 6_000,
        };
        let left = random.below(most) as i64;
        let (workers, splits) = (1 + random.below(4) as usize, 1 + random.below(4) as usize);
        let checkpoints = random.below(4) > 0;
        println!("run {run}: {place:?} after {left}, {workers} workers, {splits} splits, checkpoints {checkpoints}");
        went_off += u64::from(panics_once(place, left, workers, splits, checkpoints));
    }
    assert!(went_off > runs / 2, "only {went_off} of {runs} bombs went off");
}

#[test]
fn a_worker_that_hangs_does_not_keep_the_others_failure_back() {
    let (dir, results) = (temp(), Collected::new());
    let start = |fail: bool| {
        let job = Job::new("hanging").workers(2).batch_size(1).checkpoint_dir(dir.path());
        let hanging = Arc::new(AtomicBool::new(false));
        let stream = numbers(&job, Generator::new(3_000, |n| n).splits(2)).map(move |n| {
            if fail && n == 1_001 {
                hanging.store(true, Ordering::SeqCst);
                sleep(Duration::from_secs(5));
            }
            if fail && n == 1_000 {
                until("the other hangs", || hanging.load(Ordering::SeqCst));
                panic!("boom");
            }
            n
        });
        totals(stream.name("slow"), &results);
        job.start().expect("starts")
    };
    let handle = start(true);
    let begun = Instant::now();
    let error = within(handle, SOON).expect_err("fails");
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
    assert!(error.to_string().contains("boom") && error.operator() == Some("slow"), "{error}");
    // While one thread of the first still hangs.
    within(start(false), SOON).expect("the next one runs");
    assert_exactly(&results, 3_000, "beside a hanging worker");
}

#[test]
fn a_job_that_stops_now_leaves_a_hanging_worker_behind() {
    let job = Job::new("stuck").workers(2);
    let stuck = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stuck);
    numbers(&job, Generator::forever(|n| n).splits(2).rate(1_000.0))
        .map(move |n| {
            if n == 11 {
                flag.store(true, Ordering::SeqCst);
                sleep(Duration::from_secs(5));
            }
        })
        .sink(for_each(|_: Record<()>| {}));
    let handle = job.start().expect("starts");
    until("it hangs", || stuck.load(Ordering::SeqCst));
    let begun = Instant::now();
    handle.stop(StopMode::Now);
    assert_eq!(within(handle, SOON).expect("stops").outcome, Outcome::Stopped);
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
}

// ---------------------------------------------------------------------------------------------------------------------
// What is committed when

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    n: u64,
}

fn written(dir: &Path) -> Vec<u64> {
    let mut lines = Vec::new();
    for name in names(dir, "part-").into_iter().filter(|name| name.ends_with(".csv")) {
        let text = std::fs::read_to_string(dir.join(name)).expect("reads");
        lines.extend(text.lines().skip(1).map(|line| line.parse::<u64>().expect("a number")));
    }
    lines.sort_unstable();
    lines
}

#[test]
fn without_a_checkpoint_dir_output_appears_at_the_clean_end_only() {
    for workers in [1, 2] {
        let (out, results) = (temp(), Collected::<u64>::new());
        let start = |fail_at: u64, gate: Arc<AtomicBool>| {
            let job = Job::new("plain").workers(workers).batch_size(10);
            let stream = numbers(&job, Generator::new(1_000, |n| n).splits(2)).map(move |n| {
                assert!(n != fail_at, "boom");
                if n == 800 {
                    until("the gate opens", || gate.load(Ordering::SeqCst));
                }
                n
            });
            stream.clone().map(|n| Line { n }).sink(FileSink::csv(out.path()));
            stream.sink(results.sink());
            job.start().expect("starts")
        };
        // Fails: nothing.
        let error = within(start(900, Arc::new(AtomicBool::new(true))), SOON).expect_err("fails");
        assert!(error.to_string().contains("boom"), "{error}");
        assert!(written(out.path()).is_empty() && results.values().is_empty(), "committed after a failure");
        // Runs: nothing while it does, everything at the end.
        let gate = Arc::new(AtomicBool::new(false));
        let handle = start(u64::MAX, Arc::clone(&gate));
        until("pending output", || names(out.path(), "part-").iter().any(|name| name.contains("pending")));
        assert!(written(out.path()).is_empty() && results.values().is_empty(), "committed before the end");
        gate.store(true, Ordering::SeqCst);
        within(handle, SOON).expect("finishes");
        assert!(written(out.path()).into_iter().eq(0..1_000), "{workers} workers");
        let mut values = results.values();
        values.sort_unstable();
        assert!(values.into_iter().eq(0..1_000));
        assert!(!names(out.path(), "part-").iter().any(|name| name.contains("pending")), "pending output is left");
        // There is no checkpoint that knows of this output: a second run must not double it.
        let job = Job::new("plain").workers(workers);
        numbers(&job, from_vec(vec![1])).map(|n| Line { n }).sink(FileSink::csv(out.path()));
        let error = job.start().expect_err("refused").to_string();
        assert!(error.contains("doubled"), "{error}");
    }
}

#[test]
fn as_many_checkpoints_are_kept_as_wanted() {
    for retain in [1, 2, 4] {
        let (dir, results) = (temp(), Collected::new());
        let job = Job::new("kept")
            .workers(2)
            .batch_size(50)
            .retain(retain)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(5));
        totals(numbers(&job, Generator::new(10_000, |n| n).splits(2).rate(10_000.0)), &results);
        let handle = job.start().expect("starts");
        while !handle.is_finished() {
            // One more for a moment: the new one is there before the oldest goes.
            let kept = names(dir.path(), "epoch-");
            assert!(kept.len() <= retain + 2, "{kept:?}");
            assert!(names(dir.path(), "live-").len() <= 1);
            sleep(ms(1));
        }
        let summary = handle.wait().expect("finishes");
        assert!(summary.checkpoints > retain as u64, "only {} checkpoints", summary.checkpoints);
        let store = CheckpointStore::new(dir.path());
        let epochs = store.epochs().expect("lists");
        let last = summary.epoch.expect("a last checkpoint");
        assert_eq!(epochs, (last + 1 - retain as u64..=last).collect::<Vec<_>>());
        for epoch in epochs {
            let manifest = store.verify(epoch).expect("intact");
            assert_eq!(manifest.finished, epoch == last, "epoch {epoch} of {last}");
        }
        assert!(names(dir.path(), "live-").is_empty(), "a live directory is left after a clean end");
        // And the lock and the journal.
        assert_eq!(names(dir.path(), "").len(), retain + 2, "{:?}", names(dir.path(), ""));
    }
}

/// Runs that are each killed between a checkpoint and the deletion of an older one must not pile them up.
#[test]
fn a_start_deletes_checkpoints_beyond_those_retained() {
    let dir = temp();
    let start = |retain: usize, every: Duration| {
        let job = Job::new("kept").retain(retain).checkpoint_dir(dir.path()).checkpoint_every(every);
        totals(numbers(&job, Generator::forever(|n| n).rate(10_000.0)), &Collected::new());
        job.start().expect("starts")
    };
    let stop = |handle: JobHandle| {
        handle.stop(StopMode::Now);
        handle.wait().expect("stops");
    };
    let handle = start(4, ms(5));
    while names(dir.path(), "epoch-").len() < 4 {
        assert!(!handle.is_finished());
        sleep(ms(1));
    }
    stop(handle);
    let store = CheckpointStore::new(dir.path());
    let before = store.epochs().expect("lists");
    assert!(before.len() >= 3, "{before:?}");
    // This one makes no checkpoint that would delete them.
    let handle = start(2, Duration::from_secs(3600));
    assert_eq!(store.epochs().expect("lists"), before[before.len() - 2..]);
    stop(handle);
}

// ---------------------------------------------------------------------------------------------------------------------
// Counts

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reading {
    at_s: i64,
    key: String,
    n: i64,
}

/// Readings out of order, three of them late for windows of 10 s, and two lines that do not read.
const READINGS: &str = "at_s,key,n\n1,a,1\n5,b,2\n12,a,3\n4,a,4\nx,a,5\n25,b,6\n19,b,7\n21,c,8\n30,a\n9,a,9\n31,a,10\n";

type ReadingStreams = (Stream<(String, Window, (u64, i64))>, Stream<Reading>, Stream<BadRecord>);

fn readings(job: &Job, path: &Path, on_bad: OnBadRecord) -> ReadingStreams {
    let source = CsvFiles::<Reading>::new([path]).on_bad_record(on_bad);
    let (stream, bad) = job.source_with_bad(source, Watermarks::monotonous(|r: &Reading| EventTime::from_secs(r.at_s)));
    let (windows, late) = stream
        .name("readings")
        .key_by(|r| r.key.clone())
        .window(Tumbling::of(EventSpan::secs(10)))
        .aggregate_with_late((Count, Sum::of(|r: &Reading| r.n)));
    (windows.name("windows"), late, bad)
}

#[test]
fn the_summary_counts_exactly() {
    let dir = temp();
    let path = dir.path().join("readings.csv");
    std::fs::write(&path, READINGS).expect("writes");
    for workers in [1, 3] {
        let job = Job::new("counts")
            .workers(workers)
            .checkpoint_dir(dir.path().join(format!("checkpoints-{workers}")));
        let (windows, late, bad) = readings(&job, &path, OnBadRecord::Drop);
        let (results, lates, bads) = (Collected::new(), Collected::new(), Collected::new());
        windows.map(|(key, window, (count, sum))| (key, window.start, count, sum)).sink(results.sink());
        late.map(|r| r.n).sink(lates.sink());
        bad.sink(bads.sink());
        let summary = within(job.start().expect("starts"), SOON).expect("finishes");
        let mut results = results.values();
        results.sort();
        let window = |key: &str, s: i64, count: u64, sum: i64| (key.to_string(), EventTime::from_secs(s), count, sum);
        let expected = [
            window("a", 0, 1, 1),
            window("a", 10, 1, 3),
            window("a", 30, 1, 10),
            window("b", 0, 1, 2),
            window("b", 20, 1, 6),
            window("c", 20, 1, 8),
        ];
        assert_eq!(results, expected);
        let mut lates = lates.values();
        lates.sort_unstable();
        assert_eq!(lates, [4, 7, 9], "records for windows that their split had left");
        let bads = bads.values();
        assert_eq!(bads.iter().map(|bad| bad.line).collect::<Vec<_>>(), [6, 10], "{bads:?}");
        assert!(bads.iter().all(|bad| bad.split.ends_with("readings.csv")), "{bads:?}");
        let counts = (summary.records_in, summary.records_out, summary.late, summary.bad, summary.windows_fired);
        assert_eq!(counts, (9, 6 + 3 + 2, 3, 2, 6), "{workers} workers");
        assert_eq!(
            (summary.outcome, summary.restored, summary.epoch, summary.checkpoints),
            (Outcome::Finished, None, Some(1), 1)
        );
    }
}

#[test]
fn a_bad_record_is_dropped_or_fails_the_job() {
    let dir = temp();
    let path = dir.path().join("readings.csv");
    std::fs::write(&path, READINGS).expect("writes");
    let job = Job::new("dropping").workers(2);
    let results = Collected::new();
    readings(&job, &path, OnBadRecord::Drop).0.sink(results.sink());
    let summary = within(job.start().expect("starts"), SOON).expect("finishes");
    assert_eq!((summary.records_in, summary.bad, summary.late), (9, 2, 3));

    let job = Job::new("failing").workers(2);
    let results = Collected::new();
    readings(&job, &path, OnBadRecord::Fail).0.sink(results.sink());
    let error = within(job.start().expect("starts"), SOON).expect_err("fails");
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("readings.csv:6"), "{error}");
    assert_eq!(error.operator(), Some("readings"));
    assert!(results.values().is_empty());
}

/// What was handed to the metrics facade: name and labels, and a counter or the bits of a float.
type Metrics = Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>;

#[derive(Clone, Default)]
struct Recorder(Metrics);

struct Recorded(Arc<AtomicU64>);

impl metrics::HistogramFn for Recorded {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder {
    fn cell(&self, key: &metrics::Key) -> Arc<AtomicU64> {
        let mut labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort();
        Arc::clone(lock(&self.0).entry(format!("{} {}", key.name(), labels.join(" "))).or_default())
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.cell(key))
    }
    fn register_gauge(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.cell(key))
    }
    fn register_histogram(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(Arc::new(Recorded(self.cell(key))))
    }
}

#[test]
fn metrics_reach_the_facade() {
    let recorder = Recorder::default();
    let seen = recorder.0.clone();
    metrics::set_global_recorder(recorder).expect("this test alone installs one");
    let dir = temp();
    let path = dir.path().join("readings.csv");
    std::fs::write(&path, READINGS).expect("writes");
    let job = Job::new("measured")
        .workers(2)
        .batch_size(1)
        .checkpoint_dir(dir.path().join("checkpoints"))
        .checkpoint_every(ms(10));
    let results = Collected::new();
    let source = CsvFiles::<Reading>::new([&path]).on_bad_record(OnBadRecord::Drop);
    const WATERMARK: &str = "millstream_watermark_seconds job=measured";
    let told = seen.clone();
    job.source(source, Watermarks::monotonous(|r: &Reading| EventTime::from_secs(r.at_s)))
        .name("readings")
        .key_by(move |r| {
            // The job does not end before it has told how far event time is, however slow the disk.
            if r.at_s > 20 {
                until("a watermark", || lock(&told).contains_key(WATERMARK));
            }
            r.key.clone()
        })
        .window(Tumbling::of(EventSpan::secs(10)))
        .aggregate(Count)
        .name("windows")
        .sink(results.sink())
        .name("out");
    let summary = within(job.start().expect("starts"), SOON).expect("finishes");
    let value = |name: &str| lock(&seen).get(name).map(|cell| cell.load(Ordering::SeqCst));
    for (name, expected) in [
        ("millstream_records_out_total job=measured operator=readings", 9),
        ("millstream_bad_total job=measured operator=readings", 2),
        ("millstream_records_in_total job=measured operator=windows", 9),
        ("millstream_late_total job=measured operator=windows", 3),
        ("millstream_windows_fired_total job=measured operator=windows", 6),
        ("millstream_records_in_total job=measured operator=out", 6),
        ("millstream_checkpoints_total job=measured", summary.checkpoints),
        ("millstream_checkpoint_seconds job=measured", summary.checkpoints),
        ("millstream_in_flight job=measured", 0),
    ] {
        assert_eq!(value(name), Some(expected), "{name}: {:?}", lock(&seen).keys().collect::<Vec<_>>());
    }
    let known =
        |name: &str| value(name).unwrap_or_else(|| panic!("{name}: {:?}", lock(&seen).keys().collect::<Vec<_>>()));
    assert!(known("millstream_busy_microseconds_total job=measured operator=readings") > 0);
    for name in [
        "millstream_queue_seconds job=measured operator=out quantile=0.5",
        "millstream_exchange_seconds job=measured operator=windows quantile=0.99",
        "millstream_latency_seconds job=measured of=result operator=out quantile=1",
    ] {
        assert!(f64::from_bits(known(name)) > 0.0, "{name}");
    }
    let watermark = f64::from_bits(value(WATERMARK).expect("a watermark"));
    assert!((1.0..=31.0).contains(&watermark), "{watermark}");
}
