//! Splits that wait for each other: idle ones, aligned ones, and who is told that event time stands still.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use millstream::SplitState;
use millstream::connectors::log::{Log, LogOptions, LogRecord};
use millstream::prelude::*;
use millstream::source::{Output, Read, Source, SplitReader, Waker};
use oracle::trial::*;
use oracle::{Item, Pace, Script, finish};

fn item(split: u32, number: u64, at: i64) -> Item {
    Item { split, number, at, key: 1, value: 1 }
}

fn wait_until(handle: &JobHandle, done: impl Fn(&Status) -> bool) {
    let begun = Instant::now();
    while !done(&handle.status()) {
        assert!(begun.elapsed() < Duration::from_secs(20) && !handle.is_finished(), "{:#?}", handle.status());
        std::thread::park_timeout(Duration::from_micros(200));
    }
}

/// Two channels, one of them quiet: windows of the other close once that is idle, and what it sends then is judged by how
/// far event time has come without it.
#[test]
fn a_split_that_is_idle_holds_nothing_back() {
    for workers in [1, 2, 3] {
        let ((quiet, quiet_source), (busy, busy_source)) = (channel(10), channel(10));
        let (out, results) = mpsc::channel();
        let late = Arc::new(AtomicI64::new(0));
        let counted = Arc::clone(&late);
        let job = Job::new("idle").workers(workers);
        let marks = || watermarks(0).idle_after(Duration::from_millis(30));
        let first = job.source(quiet_source, marks()).name("quiet");
        let second = job.source(busy_source, marks()).name("busy");
        let (panes, missed) = first
            .union([second])
            .key_by(|item: &Item| item.key)
            .window(Tumbling::of(EventSpan::micros(10)))
            .aggregate_with_late(Count);
        panes.sink(for_each(move |pane: Record<Pane<u64, u64>>| out.send(pane.value).expect("the test waits")));
        missed.sink(for_each(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        }));
        let handle = job.start().expect("starts");
        let next = || results.recv_timeout(Duration::from_secs(20)).map(|(_, window, n)| (window.start.micros(), n));

        quiet.send(item(0, 0, 5)).expect("read");
        busy.send(item(1, 0, 7)).expect("read");
        busy.send(item(1, 1, 25)).expect("read");
        // The quiet one stands at 5, until it is idle while the other goes on.
        let mut more = 2;
        let first = loop {
            if let Ok((_, window, count)) = results.recv_timeout(Duration::from_millis(5)) {
                break (window.start.micros(), count);
            }
            busy.send(item(1, more, 25)).expect("read");
            more += 1;
            assert!(more < 4_000, "nothing comes");
        };
        assert_eq!(first, (0, 2));
        wait_until(&handle, |status| status.watermark() == EventTime::from_micros(25));
        let idle = |status: &Status| {
            status.splits.iter().any(|split| split.source == "quiet" && split.state == SplitState::Idle)
        };
        wait_until(&handle, idle);
        // It comes back behind the others: what is behind them is late, and the rest is not.
        quiet.send(item(0, 1, 8)).expect("read");
        let taken_over = |status: &Status| {
            let quiet = status.splits.iter().find(|split| split.source == "quiet").expect("is there");
            quiet.records == 2 && quiet.watermark == EventTime::from_micros(25)
        };
        wait_until(&handle, taken_over);
        quiet.send(item(0, 2, 26)).expect("read");
        wait_until(&handle, |status| status.records_in == 3 + more);
        wait_until(&handle, |_| late.load(Ordering::SeqCst) == 1);
        drop((quiet, busy));
        finish(handle).expect("finishes");
        assert_eq!(next(), Ok((20, more)));
        assert!(results.try_recv().is_err());
    }
}

/// Whichever is idle first: when all has fallen silent, event time is where the furthest was.
#[test]
fn where_all_splits_are_idle_event_time_goes_as_far_as_any_has_come() {
    let ((one, one_source), (two, two_source)) = (channel(10), channel(10));
    let job = Job::new("still").workers(2);
    let marks = || watermarks(0).idle_after(Duration::from_millis(10));
    job.source(one_source, marks())
        .union([job.source(two_source, marks())])
        .sink(for_each(|_: Record<Item>| ()));
    let handle = job.start().expect("starts");
    one.send(item(0, 0, 5)).expect("read");
    two.send(item(1, 0, 50)).expect("read");
    wait_until(&handle, |status| status.splits.iter().all(|split| split.state == SplitState::Idle));
    wait_until(&handle, |status| status.watermark() == EventTime::from_micros(50));
    assert!(handle.status().held_back_by().is_none());
    drop((one, two));
    finish(handle).expect("finishes");
}

/// A split that is ahead of another, and has records, is not idle however long it has to wait for its turn.
#[test]
fn a_split_that_waits_for_its_turn_is_not_idle() {
    let dir = tempdir();
    let log = Log::open(dir.path().join("log"), LogOptions::new().shards(2)).expect("opens");
    let keys: Vec<String> = (0..20).map(|n| format!("key {n}")).collect();
    // One record each, until there are keys of both shards.
    let mut shards = Vec::new();
    let first = keys[0].clone();
    let other = keys
        .iter()
        .find(|key| {
            shards.push(log.append(key, &item(0, 0, 0)).expect("appends").shard);
            shards.last() != shards.first()
        })
        .expect("two shards")
        .clone();
    let late = Arc::new(AtomicI64::new(0));
    let job = Job::new("turns").workers(1).batch_size(1);
    let times = |record: &LogRecord<Item>| {
        // The one that is behind takes its time.
        if (1..1_000).contains(&record.value.at) {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        record.value.time()
    };
    let (panes, missed) = job
        .source(log.source::<Item>(), Watermarks::monotonous(times).idle_after(Duration::from_millis(200)))
        .key_by(|record| record.value.key)
        .window(Tumbling::of(EventSpan::micros(10)))
        .aggregate_with_late(Count);
    let counted = Arc::clone(&late);
    panes.sink(for_each(|_: Record<Pane<u64, u64>>| ()));
    missed.sink(for_each(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    let before = shards.len() as u64;
    log.append(&first, &item(0, 0, 1_000)).expect("appends");
    let handle = job.start().expect("starts");
    wait_until(&handle, |status| status.records_in > before);
    for n in 0..200 {
        log.append(&other, &item(1, n, n as i64)).expect("appends");
    }
    for n in 0..20 {
        log.append(&first, &item(0, n, 1_001 + n as i64)).expect("appends");
    }
    // The one that was behind goes far ahead; it has been behind for far longer than it takes to be idle.
    log.append(&other, &item(1, 200, 5_000)).expect("appends");
    wait_until(&handle, |status| status.records_in > before + 220);
    // At the end of its epoch, so all that was read is done with.
    handle.stop(StopMode::WithCheckpoint);
    finish(handle).expect("stops");
    assert_eq!(late.load(Ordering::SeqCst), 0);
}

/// A source of splits that are given event times by hand, and wake whoever reads them.
#[derive(Clone)]
struct Given(Arc<Vec<GivenSplit>>);

type GivenSplit = Mutex<(VecDeque<i64>, Option<Waker>)>;

impl Given {
    fn with_splits(splits: usize) -> Self {
        Given(Arc::new((0..splits).map(|_| GivenSplit::default()).collect()))
    }

    fn give(&self, split: usize, at: i64) {
        let mut of = self.0[split].lock().expect("no panic");
        of.0.push_back(at);
        let waker = of.1.clone();
        drop(of);
        waker.expect("the job has started").wake();
    }
}

impl Source for Given {
    type Item = Item;
    type Position = ();
    type Reader = GivenReader;

    fn kind(&self) -> &'static str {
        "given"
    }

    fn splits(&self) -> Result<Vec<String>, Error> {
        Ok((0..self.0.len()).map(|split| split.to_string()).collect())
    }

    fn open(&self, split: &str, _: Option<()>, waker: Waker) -> Result<GivenReader, Error> {
        let split: usize = split.parse().expect("a number");
        self.0[split].lock().expect("no panic").1 = Some(waker);
        Ok(GivenReader(self.clone(), split))
    }
}

struct GivenReader(Given, usize);

impl SplitReader for GivenReader {
    type Item = Item;
    type Position = ();

    fn read(&mut self, _: usize, out: &mut impl Output<Item>) -> Result<Read, Error> {
        let mut of = self.0.0[self.1].lock().expect("no panic");
        let times: Vec<i64> = of.0.drain(..).collect();
        out.records(times.iter().map(|at| item(0, 0, *at)));
        if !times.is_empty() {
            return Ok(Read::Later(Duration::ZERO));
        }
        if let Some(waker) = &of.1 {
            waker.will_sleep();
        }
        Ok(Read::Empty)
    }

    fn position(&self) {}
}

/// A worker that reads an idle split and one that is ahead, but quiet, goes on with what another worker reads, and does not wait until that
/// one is idle as well.
#[test]
fn a_worker_with_an_idle_split_follows_the_others() {
    let splits = Given::with_splits(3);
    // The first split is read by the same worker as the third.
    let job = Job::new("follows").workers(2);
    job.source(splits.clone(), watermarks(0).idle_after(Duration::from_secs(1)))
        .sink(for_each(|_: Record<Item>| ()));
    let handle = job.start().expect("starts");
    let is_idle = |status: &Status, split: usize| status.splits[split].state == SplitState::Idle;
    wait_until(&handle, |status| is_idle(status, 0));
    // A test that had to wait elsewhere for a second may try again.
    let followed = (0..5).any(|attempt| {
        let begin = 1_000 * attempt;
        let read = 3 * attempt as u64;
        splits.give(1, begin + 10);
        wait_until(&handle, |status| status.records_in == read + 1);
        splits.give(2, begin + 100);
        wait_until(&handle, |status| status.records_in == read + 2);
        // Until it no longer looks how far others are because it was idle itself.
        std::thread::park_timeout(Duration::from_millis(100));
        splits.give(1, begin + 50);
        wait_until(&handle, |status| status.watermark() >= EventTime::from_micros(begin + 50));
        let status = handle.status();
        assert!(is_idle(&status, 0));
        !is_idle(&status, 2)
    });
    assert!(followed);
    handle.stop(StopMode::Now);
    finish(handle).expect("stops");
}

/// A source that cannot be read again begins anew with a start. One that was idle when it ended was once taken to have come to the end of time.
#[test]
fn a_channel_that_was_idle_at_its_end_begins_where_event_time_was() {
    let dir = tempdir();
    let (results, late) = (Collected::new(), Collected::new());
    let start = || {
        let ((quiet, quiet_source), (busy, busy_source)) = (channel(10), channel(10));
        let job = Job::new("anew").workers(2).checkpoint_dir(dir.path());
        let marks = || watermarks(0).idle_after(Duration::from_millis(30));
        let (counts, missed) = job
            .source(quiet_source, marks())
            .name("quiet")
            .union([job.source(busy_source, marks()).name("busy")])
            .key_by(|item: &Item| item.key)
            .window(Tumbling::of(EventSpan::micros(10)))
            .aggregate_with_late(Count);
        counts.sink(results.sink());
        missed.sink(late.sink());
        (quiet, busy, job.start().expect("starts"))
    };
    let is = |status: &Status, of: SplitState| status.splits.iter().any(|s| s.source == "quiet" && s.state == of);
    let (quiet, busy, handle) = start();
    quiet.send(item(0, 0, 5)).expect("read");
    busy.send(item(1, 0, 25)).expect("read");
    wait_until(&handle, |status| is(status, SplitState::Idle) && status.watermark() == EventTime::from_micros(25));
    drop(quiet);
    wait_until(&handle, |status| is(status, SplitState::Ended));
    handle.stop(StopMode::WithCheckpoint);
    finish(handle).expect("stops");
    drop(busy);

    let (quiet, busy, handle) = start();
    quiet.send(item(0, 0, 24)).expect("read");
    quiet.send(item(0, 1, 31)).expect("read");
    // Both are idle: event time is where the furthest is.
    wait_until(&handle, |status| is(status, SplitState::Idle) && status.watermark() == EventTime::from_micros(31));
    busy.send(item(1, 0, 36)).expect("read");
    quiet.send(item(0, 2, 35)).expect("read");
    drop((quiet, busy));
    finish(handle).expect("finishes");
    let counts = values(results.take()).into_iter().map(|(_, window, n)| (window.start.micros(), n));
    assert_eq!(sorted(counts.collect()), [(0, 1), (20, 2), (30, 3)]);
    assert_eq!(values(late.take()), []);
}

/// What closes because a split is idle is committed, though nothing is read.
#[test]
fn what_idleness_brings_is_committed() {
    let ((quiet, quiet_source), (busy, busy_source)) = (channel(10), channel(10));
    let (dir, results) = (tempdir(), Collected::new());
    let job = Job::new("commits")
        .workers(2)
        .checkpoint_dir(dir.path())
        .checkpoint_every(Duration::from_millis(10));
    let marks = || watermarks(0).idle_after(Duration::from_millis(300));
    job.source(quiet_source, marks())
        .union([job.source(busy_source, marks())])
        .key_by(|item: &Item| item.key)
        .window(Tumbling::of(EventSpan::micros(10)))
        .aggregate(Count)
        .sink(results.sink());
    let handle = job.start().expect("starts");
    quiet.send(item(0, 0, 5)).expect("read");
    busy.send(item(1, 0, 25)).expect("read");
    let mut committed = Vec::new();
    let begun = Instant::now();
    while committed.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:#?}", handle.status());
        std::thread::park_timeout(Duration::from_millis(1));
        committed = values(results.take());
    }
    assert_eq!(committed.into_iter().map(|(_, window, n)| (window.start.micros(), n)).collect::<Vec<_>>(), [(0, 1)]);
    handle.stop(StopMode::Now);
    finish(handle).expect("stops");
    drop((quiet, busy));
}

/// An idle split takes what event time had come to along into a checkpoint: after a restart it stands where its source stood.
#[test]
fn an_idle_split_is_restored_where_its_source_stood() {
    let (dir, results) = (tempdir(), Collected::new());
    let start = |workers: usize, idle_after: Duration| {
        let log = Log::open(dir.path().join("log"), LogOptions::new().shards(2)).expect("opens");
        let job = Job::new("restored").workers(workers).checkpoint_dir(dir.path().join("checkpoints"));
        let times = |record: &LogRecord<Item>| record.value.time();
        job.source(log.source::<Item>(), Watermarks::monotonous(times).idle_after(idle_after))
            .name("log")
            .key_by(|record| record.value.key)
            .window(Tumbling::of(EventSpan::micros(10)))
            .aggregate(Count)
            .name("counts")
            .sink(results.sink());
        (log, job.start().expect("starts"))
    };
    // Keys that go to different shards.
    let (log, handle) = start(2, Duration::from_millis(20));
    let mut keys: Vec<String> = Vec::new();
    for n in 0.. {
        let key = format!("key {n}");
        log.append(&key, &item(0, n, 5)).expect("appends");
        keys.push(key);
        wait_until(&handle, |status| status.records_in > n);
        if handle.status().splits.iter().filter(|split| split.records > 0).count() == 2 {
            break;
        }
    }
    // All keys but the last are of one shard; that goes on alone.
    let mut more = 0;
    while handle.status().watermark() != EventTime::from_micros(95) {
        log.append(&keys[0], &item(0, 100, 95)).expect("appends");
        more += 1;
        assert!(more < 4_000, "event time stands still");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    handle.stop(StopMode::WithCheckpoint);
    finish(handle).expect("stops");
    drop(log);
    // It is not idle again for long, and all the same holds nothing back.
    let (log, handle) = start(1, Duration::from_secs(3_600));
    wait_until(&handle, |status| status.watermark() == EventTime::from_micros(95));
    let last = keys.pop().expect("two shards");
    log.append(&last, &item(1, 101, 8)).expect("appends");
    wait_until(&handle, |status| status.late == 1);
    handle.stop(StopMode::WithCheckpoint);
    finish(handle).expect("stops");
    let counted: u64 = values(results.take()).into_iter().map(|(_, _, count)| count).sum();
    // The window of the last ones has not closed.
    assert_eq!(counted, keys.len() as u64 + 1);
}

/// Those that are idle when all are look nowhere for how far others are. Once nobody told them when one went on, and event time stood still.
#[test]
fn when_all_were_idle_and_one_goes_on_then_the_others_follow_it() {
    for workers in [1, 2, 3] {
        let ((quiet, quiet_source), (busy, busy_source)) = (channel(10), channel(10));
        let (out, results) = mpsc::channel();
        let job = Job::new("awake").workers(workers);
        let marks = || watermarks(0).idle_after(Duration::from_millis(20));
        let first = job.source(quiet_source, marks()).name("quiet");
        first
            .union([job.source(busy_source, marks()).name("busy")])
            .key_by(|item: &Item| item.key)
            .window(Tumbling::of(EventSpan::micros(10)))
            .aggregate(Count)
            .sink(for_each(move |pane: Record<Pane<u64, u64>>| out.send(pane.value).expect("the test waits")));
        let handle = job.start().expect("starts");
        quiet.send(item(0, 0, 5)).expect("read");
        busy.send(item(1, 0, 7)).expect("read");
        wait_until(&handle, |status| status.splits.iter().all(|split| split.state == SplitState::Idle));
        // They look around every now and then until all have seen that all are idle.
        std::thread::park_timeout(Duration::from_millis(100));
        busy.send(item(1, 1, 100)).expect("read");
        let (_, window, count) = results.recv_timeout(Duration::from_secs(20)).expect("the window closes");
        assert_eq!((window.start.micros(), count), (0, 2), "{workers} workers");
        drop((quiet, busy));
        finish(handle).expect("finishes");
    }
}

/// One source could be read at once, the other is slow: the fast one never gets further ahead than it may.
#[test]
fn sources_that_are_aligned_stay_together() {
    for (workers, aligned) in [(1, true), (2, true), (2, false)] {
        let most = 1_000i64;
        let records = |split: u32| (0..20_000).map(|n| item(split, n, n as i64)).collect::<Vec<_>>();
        let (slow_at, furthest) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let job = Job::new("aligned").workers(workers).batch_size(100);
        let marks = || if aligned { watermarks(0).aligned_within(EventSpan::micros(most)) } else { watermarks(0) };
        let slow = Arc::clone(&slow_at);
        let slow_source = Script::new(vec![records(0)]).pace(Pace::Slow(100));
        let first = job
            .source(slow_source, marks())
            .name("slow")
            .inspect(move |item| slow.store(item.at, Ordering::SeqCst));
        let (slow, ahead) = (Arc::clone(&slow_at), Arc::clone(&furthest));
        let second = job.source(Script::new(vec![records(1)]), marks()).name("fast").inspect(move |item| {
            ahead.fetch_max(item.at - slow.load(Ordering::SeqCst), Ordering::SeqCst);
        });
        let counts = Collected::new();
        first
            .union([second])
            .key_by(|item| item.key)
            .window(Tumbling::of(EventSpan::micros(1_000)))
            .aggregate(Count)
            .sink(counts.sink());
        oracle::run(job).expect("finishes");
        let counts = values(counts.take());
        assert!(counts.len() == 20 && counts.iter().all(|(_, _, count)| *count == 2_000));
        let furthest = furthest.load(Ordering::SeqCst);
        // What it may be ahead, and the batch that brings it there and is on its way.
        assert_eq!(furthest <= most + 300, aligned, "{furthest} us ahead on {workers} workers");
    }
}

#[test]
fn a_status_names_the_split_that_holds_event_time_back() {
    let ((one, one_source), (two, two_source)) = (channel(10), channel(10));
    let job = Job::new("held").workers(2);
    let first = job.source(one_source, watermarks(0)).name("first");
    first
        .union([job.source(two_source, watermarks(0)).name("second")])
        .sink(for_each(|_: Record<Item>| ()));
    let handle = job.start().expect("starts");
    one.send(item(0, 0, 5)).expect("read");
    two.send(item(1, 0, 50)).expect("read");
    wait_until(&handle, |status| status.records_in == 2);
    let quiet = |status: &Status| status.held_back_by().is_some_and(|split| split.state == SplitState::Quiet);
    wait_until(&handle, quiet);
    let status = handle.status();
    let held = status.held_back_by().expect("one of them");
    assert_eq!((held.source.as_str(), held.watermark, held.records), ("first", EventTime::from_micros(5), 1));
    let text = held.to_string();
    assert!(text.contains("of `first` has nothing to read, and stands at 1970-01-01T00:00:00.000005Z"), "{text}");
    drop((one, two));
    finish(handle).expect("finishes");
}
