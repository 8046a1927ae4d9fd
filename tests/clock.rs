//! Processing time: timers by the clock and early results, with a clock that is moved by hand.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::sync::mpsc;
use std::time::Duration;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Item, finish};

const SECOND: Duration = Duration::from_secs(1);

fn noon() -> Clock {
    Clock::manual(ProcessingTime::from_micros(1_000_000_000))
}

/// Gathers the records of a key, and emits their sum ten seconds after the first of them.
#[derive(Clone)]
struct Gather;

impl Process<u64, Item> for Gather {
    type State = i64;
    type Out = (u64, i64, ProcessingTime);

    const USES_CLOCK: bool = true;

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, i64, Self::Out>, item: &Item) -> Result<(), Error> {
        if cx.state().is_none() {
            let at = cx.processing_time() + 10 * SECOND;
            cx.set_processing_timer(at + 2 * SECOND);
            assert!(cx.replace_processing_timer(at + 2 * SECOND, at));
            assert!(!cx.replace_processing_timer(at + 2 * SECOND, at + SECOND));
            assert_eq!(cx.next_processing_timer(), Some(at));
            assert!(cx.delete_processing_timer(at + SECOND) && !cx.delete_processing_timer(at + SECOND));
        }
        *cx.state().get_or_insert(0) += item.value;
        Ok(())
    }

    fn on_processing_timer(
        &mut self,
        cx: &mut ProcessContext<'_, u64, i64, Self::Out>,
        at: ProcessingTime,
    ) -> Result<(), Error> {
        if let Some(sum) = cx.state().take() {
            let out = (*cx.key(), sum, at);
            cx.emit(out);
        }
        Ok(())
    }
}

fn item(key: u64, value: i64) -> Item {
    Item { split: 0, number: 0, at: 0, key, value }
}

/// Waits until `name` has taken so many records in.
fn taken(handle: &JobHandle, name: &str, records: u64) {
    let taken = || handle.status().operators.iter().any(|own| own.name == name && own.records_in == records);
    while !taken() {
        assert!(!handle.is_finished(), "the job ended");
        std::thread::park_timeout(Duration::from_micros(100));
    }
}

fn next<T>(results: &mpsc::Receiver<T>) -> T {
    results.recv_timeout(Duration::from_secs(20)).expect("a result comes")
}

#[test]
fn timers_are_called_when_the_clock_has_come_to_them() {
    for workers in [1, 3] {
        let (clock, (sender, source), (out, results)) = (noon(), channel(10), mpsc::channel());
        let job = Job::new("gather").workers(workers).clock(clock.clone());
        job.source(source, watermarks(0))
            .key_by(|item: &Item| item.key)
            .process(Gather)
            .name("gather")
            .sink(for_each(move |record: Record<(u64, i64, ProcessingTime)>| {
                out.send(record.value).expect("the test waits")
            }));
        let handle = job.start().expect("starts");
        let start = clock.now();
        for (key, value) in [(1, 5), (2, 7), (1, 6)] {
            sender.send(item(key, value)).expect("the job reads");
        }
        taken(&handle, "gather", 3);
        clock.advance(10 * SECOND - Duration::from_micros(1));
        sender.send(item(3, 1)).expect("the job reads");
        taken(&handle, "gather", 4);
        assert!(results.try_recv().is_err(), "too early");
        clock.advance(Duration::from_micros(1));
        let due = start + 10 * SECOND;
        let both = sorted(vec![next(&results), next(&results)]);
        assert_eq!(both, [(1, 11, due), (2, 7, due)]);
        // What is left at the end is called then, though the clock has not come to it.
        drop(sender);
        let left = next(&results);
        assert_eq!((left.0, left.1), (3, 1));
        finish(handle).expect("finishes");
        assert!(results.try_recv().is_err());
    }
}

/// They are state like any other: what was due meanwhile is called at once.
#[test]
fn timers_by_the_clock_outlive_a_restart_with_other_workers() {
    let (dir, clock, results) = (tempdir(), noon(), Collected::new());
    let start = |workers: usize| {
        let (sender, source) = channel(100);
        let job = Job::new("gather").workers(workers).clock(clock.clone()).checkpoint_dir(dir.path());
        job.source(source, watermarks(0))
            .name("items")
            .key_by(|item: &Item| item.key)
            .process(Gather)
            .name("gather")
            .sink(results.sink());
        (sender, job.start().expect("starts"))
    };
    let (sender, handle) = start(1);
    for key in 0..50 {
        sender.send(item(key, 1)).expect("the job reads");
    }
    taken(&handle, "gather", 50);
    handle.stop(StopMode::WithCheckpoint);
    finish(handle).expect("stops");
    assert!(results.take().is_empty());
    clock.advance(9 * SECOND);
    let (_sender, handle) = start(3);
    clock.advance(SECOND);
    while handle.status().records_out < 50 {
        std::thread::park_timeout(Duration::from_micros(100));
    }
    handle.stop(StopMode::WithCheckpoint);
    finish(handle).expect("stops");
    let keys = sorted(values(results.take()).into_iter().map(|(key, ..)| key).collect());
    assert_eq!(keys, (0..50).collect::<Vec<_>>());
}

/// Nothing is read, but what the clock has called for is committed with the next checkpoint.
#[test]
fn results_by_the_clock_of_a_job_without_input_are_committed() {
    let (dir, clock, results) = (tempdir(), noon(), Collected::new());
    let (sender, source) = channel(10);
    let job = Job::new("gather").clock(clock.clone()).checkpoint_dir(dir.path());
    let job = job.checkpoint_every(Duration::from_millis(10));
    job.source(source, watermarks(0))
        .key_by(|item: &Item| item.key)
        .process(Gather)
        .name("gather")
        .sink(results.sink());
    let handle = job.start().expect("starts");
    let epoch = handle.status().epoch;
    sender.send(item(1, 5)).expect("the job reads");
    taken(&handle, "gather", 1);
    // Until the record is in a checkpoint, and nothing else is to come.
    while handle.status().epoch == epoch {
        std::thread::park_timeout(Duration::from_micros(100));
    }
    clock.advance(10 * SECOND);
    let mut committed = Vec::new();
    while committed.is_empty() {
        assert!(!handle.is_finished(), "the job ended");
        std::thread::park_timeout(Duration::from_micros(100));
        committed = values(results.take());
    }
    assert_eq!((committed.len(), committed[0].1), (1, 5));
    handle.stop(StopMode::Now);
    finish(handle).expect("stops");
}

#[test]
fn early_results_come_by_the_clock() {
    let (clock, (sender, source), (out, results)) = (noon(), channel(10), mpsc::channel());
    let job = Job::new("early").clock(clock.clone());
    job.source(source, watermarks(0))
        .key_by(|item: &Item| item.key)
        .window(Tumbling::of(EventSpan::hours(1)))
        .early(Early::after(10 * SECOND))
        .aggregate(Sum::of(|item: &Item| item.value))
        .name("sums")
        .sink(for_each(move |record: Record<Update<u64, i64>>| out.send(record.value).expect("the test waits")));
    let handle = job.start().expect("starts");
    let result = |update: Update<u64, i64>| (update.key, update.timing, update.result);
    for value in [5, 6] {
        sender.send(item(1, value)).expect("the job reads");
    }
    taken(&handle, "sums", 2);
    clock.advance(10 * SECOND);
    assert_eq!(result(next(&results)), (1, Timing::Early, 11));
    // Without news there is no other.
    clock.advance(60 * SECOND);
    sender.send(item(1, 1)).expect("the job reads");
    taken(&handle, "sums", 3);
    clock.advance(10 * SECOND);
    assert_eq!(result(next(&results)), (1, Timing::Early, 12));
    drop(sender);
    assert_eq!(result(next(&results)), (1, Timing::OnTime, 12));
    finish(handle).expect("finishes");
    assert!(results.try_recv().is_err());
}

/// By the clock of the machine: it comes, and not before its time.
#[test]
fn the_clock_of_the_machine_calls_timers_too() {
    #[derive(Clone)]
    struct Soon;
    impl Process<u64, Item> for Soon {
        type State = ProcessingTime;
        type Out = bool;
        const USES_CLOCK: bool = true;

        fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, ProcessingTime, bool>, _: &Item) -> Result<(), Error> {
            let at = cx.processing_time() + Duration::from_millis(100);
            *cx.state() = Some(at);
            cx.set_processing_timer(at);
            Ok(())
        }
        fn on_processing_timer(
            &mut self,
            cx: &mut ProcessContext<'_, u64, ProcessingTime, bool>,
            at: ProcessingTime,
        ) -> Result<(), Error> {
            let in_time = cx.state().take() == Some(at) && cx.processing_time() >= at;
            cx.emit(in_time);
            Ok(())
        }
    }
    let ((sender, source), (out, results)) = (channel(10), mpsc::channel());
    let job = Job::new("soon").workers(2);
    job.source(source, watermarks(0))
        .key_by(|item: &Item| item.key)
        .process(Soon)
        .sink(for_each(move |record: Record<bool>| out.send(record.value).expect("the test waits")));
    let handle = job.start().expect("starts");
    for key in 0..20 {
        sender.send(item(key, 1)).expect("the job reads");
    }
    assert!((0..20).all(|_| next(&results)));
    drop(sender);
    finish(handle).expect("finishes");
}

#[test]
fn a_function_that_does_not_say_that_it_uses_the_clock_may_not() {
    #[derive(Clone)]
    struct Sly;
    impl Process<u64, Item> for Sly {
        type State = ();
        type Out = ();
        fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, (), ()>, _: &Item) -> Result<(), Error> {
            cx.set_processing_timer(ProcessingTime::MAX);
            Ok(())
        }
    }
    let job = Job::new("sly");
    job.source(from_vec(vec![item(1, 1)]), watermarks(0))
        .key_by(|item: &Item| item.key)
        .process(Sly)
        .sink(for_each(|_: Record<()>| ()));
    let error = oracle::run(job).expect_err("fails").to_string();
    assert!(error.contains("const USES_CLOCK: bool = true"), "{error}");
}
