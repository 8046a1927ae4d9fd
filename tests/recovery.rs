//! Jobs that stop, crash, or find their checkpoints damaged: what comes out is always as if nothing had happened, or a refusal.

mod patience;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use millstream::error::Result;
use millstream::prelude::*;
use millstream::sink::{Committer, Sink, SinkTask, SinkWriter};
use millstream::state::store::CheckpointStore;
use patience::{Random, SOON, effort, lock, ms, sleep, temp, tree_but_locks, until, within};
use serde::{Deserialize, Serialize};

// ---------------------------------------------------------------------------------------------------------------------
// Helpers

/// That a sorted list of results is another one, without printing thousands of lines.
fn assert_same(found: &[String], expected: &[String], what: &str) {
    if found == expected {
        return;
    }
    let (found_set, expected_set): (BTreeSet<_>, BTreeSet<_>) = (found.iter().collect(), expected.iter().collect());
    let missing: Vec<_> = expected_set.difference(&found_set).take(5).collect();
    let extra: Vec<_> = found_set.difference(&expected_set).take(5).collect();
    let (found, expected) = (found.len(), expected.len());
    panic!("{what}: {found} results instead of {expected}; missing {missing:?}, not expected {extra:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// A job with everything that keeps state

const EVENTS: u64 = 6_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Event {
    at_ms: i64,
    key: String,
    n: i64,
}

/// Events 5 ms apart, out of order by more than the 100 ms that are allowed for: some are late for some windows, or all.
fn event(i: u64) -> Event {
    let jitter = match i % 37 {
        0 => 2_500,
        11 | 22 => (i * 7_919 % 150) as i64 * 10,
        _ => (i % 7) as i64 * 10,
    };
    let key = if i.is_multiple_of(3) { format!("k{}", i % 17) } else { format!("a key that is longer {}", i % 23) };
    Event { at_ms: 5 * i as i64 - jitter, key, n: i as i64 }
}

fn at(event: &Event) -> EventTime {
    EventTime::from_millis(event.at_ms)
}

/// What the job of this file gives out, one `Collected` per sink.
#[derive(Clone, Default)]
struct Results(Vec<Collected<String>>);

impl Results {
    fn new() -> Self {
        Results((0..6).map(|_| Collected::new()).collect())
    }

    fn sorted(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.iter().flat_map(Collected::values).collect();
        all.sort();
        all
    }
}

/// Tumbling and sliding windows and a running value on one stream, late records, first and last, a window after a window.
fn everything(job: &Job, rate: f64, results: &Results) {
    let source = Generator::new(EVENTS, event).splits(3).rate(rate);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(100), at)).name("events");
    let by_key = || events.clone().key_by(|event| event.key.clone());
    let aggregate = || {
        (Count, Sum::of(|event: &Event| event.n), First::of(|event: &Event| event.n), Last::of(|event: &Event| event.n))
    };
    let tumbling = by_key().window(Tumbling::of(EventSpan::secs(1))).aggregate(aggregate()).name("tumbling");
    let (sliding, late) = by_key()
        .window(Sliding::of(EventSpan::millis(1_500), EventSpan::millis(400)))
        .aggregate_with_late(aggregate());
    let sliding = sliding.name("sliding");
    let counts = by_key().fold(0u64, |count, _| *count += 1).name("counts");
    let after = tumbling
        .clone()
        .key_by(|(key, ..)| key.len() as u32)
        .window(Sliding::of(EventSpan::secs(4), EventSpan::secs(2)))
        .aggregate((Count, Sum::of(|(_, _, (count, ..)): &(String, Window, (u64, i64, i64, i64))| *count)))
        .name("after");
    let [a, b, c, d, e, f] = &results.0[..] else { panic!("six sinks") };
    tumbling.map(|row| format!("tumbling {row:?}")).sink(a.sink());
    sliding.map(|row| format!("sliding {row:?}")).sink(b.sink());
    late.map(|event| format!("late {event:?}")).sink(c.sink());
    counts.map(|row| format!("count {row:?}")).sink(d.sink());
    after.map(|row| format!("after {row:?}")).sink(e.sink());
    events.filter(|event| event.n % 100 == 0).map(|event| format!("plain {event:?}")).sink(f.sink());
}

/// What [`everything`] gives out when nothing interrupts it.
fn uninterrupted() -> &'static [String] {
    static EXPECTED: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    EXPECTED.get_or_init(|| {
        let results = Results::new();
        let job = Job::new("everything").workers(1);
        everything(&job, 0.0, &results);
        within(job.start().expect("starts"), SOON).expect("finishes");
        let sorted = results.sorted();
        for what in ["tumbling", "sliding", "late", "count", "after", "plain"] {
            assert!(sorted.iter().filter(|line| line.starts_with(what)).count() > 10, "too little of `{what}`");
        }
        sorted
    })
}

#[test]
fn the_number_of_workers_may_change_at_every_start() {
    let counts = [1, 2, 3, 4, 8];
    let mut finished = 0;
    for before in counts {
        for after in counts {
            let (dir, results) = (temp(), Results::new());
            let start = |workers: usize, rate: f64| {
                let job = Job::new("everything").workers(workers).batch_size(32);
                let job = job.checkpoint_dir(dir.path()).checkpoint_every(ms(15));
                everything(&job, rate, &results);
                job.start().expect("starts")
            };
            let handle = start(before, 20_000.0);
            until("a third is read", || handle.status().records_in > EVENTS / 3);
            handle.stop(StopMode::WithCheckpoint);
            let first = within(handle, SOON).expect("stops");
            // On a machine that is busy enough this thread may come too late to stop it.
            finished += i32::from(first.outcome == Outcome::Finished);
            let second = within(start(after, 0.0), SOON).expect("finishes");
            assert_eq!(first.records_in + second.records_in, EVENTS, "nothing is read twice");
            assert!(second.restored == first.epoch || first.outcome == Outcome::Finished);
            assert_same(&results.sorted(), uninterrupted(), &format!("from {before} to {after} workers"));
        }
    }
    assert!(finished < 10, "{finished} of 25 jobs were not stopped in time");
}

#[test]
fn ten_interruptions_of_every_kind_leave_no_trace() {
    let mut random = Random(99 * effort());
    for round in 0..4 * effort() {
        let (dir, results) = (temp(), Results::new());
        let mut stops = Vec::new();
        loop {
            let workers = 1 + random.below(5) as usize;
            let job = Job::new("everything").workers(workers).batch_size(1 + random.below(64) as usize);
            let mut job = job.checkpoint_dir(dir.path()).checkpoint_every(ms(1 + random.below(10)));
            job.settings_mut().in_flight = 1 + random.below(300) as usize;
            everything(&job, if stops.len() < 10 { 60_000.0 } else { 0.0 }, &results);
            let handle = job.start().expect("starts");
            if stops.len() < 10 {
                sleep(ms(random.below(60)));
                let mode = if random.below(2) == 0 { StopMode::Now } else { StopMode::WithCheckpoint };
                stops.push((mode, workers));
                handle.stop(mode);
            }
            if within(handle, SOON).expect("stops or finishes").outcome == Outcome::Finished {
                break;
            }
        }
        assert_same(&results.sorted(), uninterrupted(), &format!("round {round}, {stops:?}"));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Failures of a sink

/// What goes wrong in a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Write,
    Prepare,
    /// The committer fails before it did anything.
    Commit,
    /// The committer did all, and fails then: as when the process dies right after.
    AfterCommit,
    /// As `Commit`, but by a panic.
    CommitPanics,
    PreparePanics,
}

/// The handles that a committer was told to commit, and whether that was at a start.
type Told = (Vec<String>, bool);

/// A sink around another that fails once, in epoch `at`, and notes what it is told to commit.
#[derive(Clone)]
struct Faulty<S> {
    inner: S,
    fault: Fault,
    at: u64,
    failed: Arc<AtomicBool>,
    told: Arc<Mutex<Vec<Told>>>,
    epoch: u64,
}

impl<S> Faulty<S> {
    fn new(inner: S, fault: Fault, at: u64) -> Self {
        Faulty { inner, fault, at, failed: Arc::default(), told: Arc::default(), epoch: 0 }
    }

    fn with<R>(&self, inner: R) -> Faulty<R> {
        let Faulty { fault, at, epoch, .. } = *self;
        Faulty { inner, fault, at, failed: Arc::clone(&self.failed), told: Arc::clone(&self.told), epoch }
    }

    fn fails(&self, fault: Fault, epoch: u64) -> Result<()> {
        if self.fault != fault || epoch < self.at || self.failed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        match fault {
            Fault::CommitPanics | Fault::PreparePanics => panic!("boom in {fault:?}"),
            _ => Err(Error::external(format!("boom in {fault:?}"))),
        }
    }
}

impl<T: Data, S: Sink<T>> Sink<T> for Faulty<S> {
    type Writer = Faulty<S::Writer>;

    fn kind(&self) -> &'static str {
        "faulty"
    }
    fn writer(&self, task: &SinkTask) -> Result<Self::Writer> {
        Ok(self.with(self.inner.writer(task)?))
    }
    fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
        Some(Box::new(self.with(self.inner.committer(job)?)))
    }
}

impl<T: Data, W: SinkWriter<T>> SinkWriter<T> for Faulty<W> {
    fn write(&mut self, epoch: u64, records: &mut Vec<Record<T>>) -> Result<()> {
        self.fails(Fault::Write, epoch)?;
        self.inner.write(epoch, records)
    }
    fn prepare(&mut self, epoch: u64) -> Result<Vec<String>> {
        self.fails(Fault::Prepare, epoch)?;
        self.fails(Fault::PreparePanics, epoch)?;
        self.inner.prepare(epoch)
    }
}

/// The epoch of a handle of `Collected`, which begins with `e` and the epoch.
fn epoch_of(handles: &[String]) -> u64 {
    let first = handles.first().expect("committers are called with handles");
    let (epoch, _) = first.strip_prefix('e').and_then(|rest| rest.split_once('-')).expect("an epoch");
    epoch.parse().expect("a number")
}

impl Committer for Faulty<Box<dyn Committer>> {
    fn recover(&mut self, restored: Option<u64>, handles: &[String], withdraw: bool) -> Result<()> {
        lock(&self.told).push((handles.to_vec(), true));
        self.inner.recover(restored, handles, withdraw)
    }
    fn commit(&mut self, handles: &[String]) -> Result<()> {
        lock(&self.told).push((handles.to_vec(), false));
        let epoch = epoch_of(handles);
        self.fails(Fault::Commit, epoch)?;
        self.fails(Fault::CommitPanics, epoch)?;
        self.inner.commit(handles)?;
        self.fails(Fault::AfterCommit, epoch)
    }
}

const FAULTS: [Fault; 6] =
    [Fault::Write, Fault::Prepare, Fault::Commit, Fault::AfterCommit, Fault::CommitPanics, Fault::PreparePanics];

/// Key, start of the window in ms, count, sum.
type Total = (u64, i64, u64, i64);

/// Windows of numbers, into a sink that fails.
fn faulty(job: &Job, count: u64, rate: f64, sink: impl Sink<Total>) {
    let source = Generator::new(count, |n| n as i64).splits(2).rate(rate);
    job.source(source, Watermarks::monotonous(|n: &i64| EventTime::from_millis(*n)))
        .name("numbers")
        .key_by(|n| *n as u64 % 7)
        .window(Tumbling::of(EventSpan::millis(50)))
        .aggregate((Count, Sum::of(|n: &i64| *n)))
        .name("windows")
        .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000, count, sum))
        .sink(sink)
        .name("out");
}

fn totals(count: u64) -> Vec<Total> {
    let mut totals: BTreeMap<(u64, i64), (u64, i64)> = BTreeMap::new();
    for n in 0..count as i64 {
        let total = totals.entry((n as u64 % 7, n / 50 * 50)).or_default();
        *total = (total.0 + 1, total.1 + n);
    }
    totals.into_iter().map(|((key, start), (count, sum))| (key, start, count, sum)).collect()
}

fn assert_totals(results: &Collected<Total>, count: u64, what: &str) {
    let mut values = results.values();
    values.sort_unstable();
    assert!(values == totals(count), "{what}: {} results instead of {}", values.len(), totals(count).len());
}

#[test]
fn a_commit_that_failed_is_repeated_with_the_same_handles() {
    for fault in FAULTS {
        for workers in [1, 3] {
            let what = format!("{fault:?} on {workers} workers");
            let (dir, results) = (temp(), Collected::new());
            let sink = Faulty::new(results.sink(), fault, 3);
            let start = |rate: f64| {
                let job = Job::new("faulty").workers(workers).batch_size(20);
                let job = job.checkpoint_dir(dir.path()).checkpoint_every(ms(10));
                faulty(&job, 4_000, rate, sink.clone());
                job.start().expect(&what)
            };
            let error = within(start(8_000.0), SOON).expect_err(&what);
            assert!(error.to_string().contains(&format!("boom in {fault:?}")), "{what}: {error}");
            assert_eq!(error.operator(), Some("out"), "{what}: {error}");
            let told_before = lock(&sink.told).clone();
            within(start(0.0), SOON).expect(&what);
            let (again, at_start) = lock(&sink.told)[told_before.len()].clone();
            assert!(at_start, "{what}");
            if matches!(fault, Fault::Commit | Fault::AfterCommit | Fault::CommitPanics) {
                let mut before = told_before.last().expect("a commit").0.clone();
                before.sort();
                assert_eq!(again, before, "{what}");
            }
            assert_totals(&results, 4_000, &what);
        }
    }
}

#[test]
fn a_crash_at_every_epoch_leaves_no_trace() {
    let mut random = Random(5);
    for fault in FAULTS {
        let (dir, results) = (temp(), Collected::new());
        let mut crashes = 0;
        for epoch in 1.. {
            let workers = 1 + random.below(4) as usize;
            let job = Job::new("faulty").workers(workers).batch_size(20);
            let job = job.checkpoint_dir(dir.path()).checkpoint_every(ms(5));
            faulty(&job, 2_000, 8_000.0, Faulty::new(results.sink(), fault, epoch));
            match within(job.start().expect("starts"), SOON) {
                Ok(_) => break,
                Err(error) => assert!(error.to_string().contains("boom"), "{error}"),
            }
            crashes += 1;
            let seen: Vec<Total> = results.values();
            let unique: BTreeSet<&Total> = seen.iter().collect();
            assert_eq!(seen.len(), unique.len(), "{fault:?}: doubled after the crash at epoch {epoch}");
            assert!(crashes < 200, "{fault:?}: no progress");
        }
        assert!(crashes > 3, "{fault:?}: only {crashes} crashes");
        assert_totals(&results, 2_000, &format!("{crashes} crashes by {fault:?}"));
    }
}

#[test]
fn a_worker_that_fails_while_a_checkpoint_is_committed_spoils_nothing() {
    /// Waits in its second commit until the worker has failed.
    #[derive(Clone)]
    struct Waiting<S> {
        inner: S,
        commits: Arc<AtomicU64>,
        failing: Arc<AtomicBool>,
    }
    impl Sink<Total> for Waiting<millstream::connectors::Collect<Total>> {
        type Writer = millstream::connectors::CollectWriter<Total>;
        fn kind(&self) -> &'static str {
            "waiting"
        }
        fn writer(&self, task: &SinkTask) -> Result<Self::Writer> {
            self.inner.writer(task)
        }
        fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
            let Waiting { commits, failing, .. } = self.clone();
            Some(Box::new(Waiting { inner: self.inner.committer(job)?, commits, failing }))
        }
    }
    impl Committer for Waiting<Box<dyn Committer>> {
        fn recover(&mut self, restored: Option<u64>, handles: &[String], withdraw: bool) -> Result<()> {
            self.inner.recover(restored, handles, withdraw)
        }
        fn commit(&mut self, handles: &[String]) -> Result<()> {
            if self.commits.fetch_add(1, Ordering::SeqCst) == 1 {
                until("the worker has failed", || self.failing.load(Ordering::SeqCst));
                sleep(ms(20));
            }
            self.inner.commit(handles)
        }
    }
    let (dir, results) = (temp(), Collected::new());
    let (commits, failing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let start = |count: u64| {
        let (commits, failing) = (Arc::clone(&commits), Arc::clone(&failing));
        let sink = Waiting { inner: results.sink(), commits: Arc::clone(&commits), failing: Arc::clone(&failing) };
        let job = Job::new("waiting").workers(2).batch_size(20).checkpoint_dir(dir.path()).checkpoint_every(ms(10));
        let source = Generator::new(count, move |n| {
            if commits.load(Ordering::SeqCst) == 2 && !failing.swap(true, Ordering::SeqCst) {
                panic!("boom");
            }
            n as i64
        });
        job.source(source.splits(2).rate(8_000.0), Watermarks::monotonous(|n: &i64| EventTime::from_millis(*n)))
            .key_by(|n| *n as u64 % 7)
            .window(Tumbling::of(EventSpan::millis(50)))
            .aggregate((Count, Sum::of(|n: &i64| *n)))
            .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000, count, sum))
            .sink(sink);
        job.start().expect("starts")
    };
    let error = within(start(4_000), SOON).expect_err("fails").to_string();
    assert!(error.contains("boom"), "{error}");
    within(start(4_000), SOON).expect("finishes");
    assert_totals(&results, 4_000, "after a failure during a commit");
}

#[test]
fn when_a_sink_cannot_withdraw_then_no_checkpoint_and_no_output_moves() {
    /// A sink that has forgotten what it would have to withdraw.
    struct Forgetful<S>(S);
    impl Sink<Total> for Forgetful<millstream::connectors::Collect<Total>> {
        type Writer = millstream::connectors::CollectWriter<Total>;
        fn kind(&self) -> &'static str {
            "forgetful"
        }
        fn writer(&self, task: &SinkTask) -> Result<Self::Writer> {
            self.0.writer(task)
        }
        fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
            Some(Box::new(Forgetful(self.0.committer(job)?)))
        }
    }
    impl Committer for Forgetful<Box<dyn Committer>> {
        fn may_recover(&mut self, _: Option<u64>, withdraw: bool) -> Result<()> {
            if withdraw { Err(Error::external("forgotten")) } else { Ok(()) }
        }
        fn recover(&mut self, restored: Option<u64>, handles: &[String], withdraw: bool) -> Result<()> {
            self.0.recover(restored, handles, withdraw)
        }
        fn commit(&mut self, handles: &[String]) -> Result<()> {
            self.0.commit(handles)
        }
    }
    let (dir, first, second) = (temp(), Collected::new(), Collected::new());
    let start = |from: StartFrom| {
        let job = Job::new("two-sinks")
            .workers(2)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(20))
            .start_from(from);
        let source = Generator::new(2_000, |n| n as i64).splits(2).rate(10_000.0);
        let totals = job
            .source(source, Watermarks::monotonous(|n: &i64| EventTime::from_millis(*n)))
            .key_by(|n| *n as u64 % 7)
            .window(Tumbling::of(EventSpan::millis(50)))
            .aggregate((Count, Sum::of(|n: &i64| *n)))
            .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000, count, sum));
        totals.clone().sink(first.sink()).name("first");
        totals.sink(Forgetful(second.sink())).name("second");
        job.run()
    };
    start(StartFrom::Newest).expect("finishes");
    let kept = || CheckpointStore::new(dir.path()).epochs().expect("lists");
    let before = kept();
    let oldest = before[0];
    assert!(before.len() > 1, "{before:?}");
    for from in [StartFrom::Fresh, StartFrom::Epoch(oldest)] {
        let error = start(from).expect_err("refused").to_string();
        assert!(error.contains("forgotten") && error.contains("second"), "{error}");
        assert_eq!(kept(), before);
        assert_totals(&first, 2_000, "the sink that could have withdrawn");
    }
}

#[test]
fn a_panic_while_state_is_restored_is_an_error_like_any_other() {
    #[derive(Clone, Serialize)]
    struct Brittle(u64);
    static LEFT: AtomicI64 = AtomicI64::new(-1);
    impl<'de> Deserialize<'de> for Brittle {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            assert!(LEFT.fetch_sub(1, Ordering::SeqCst) != 0, "boom");
            u64::deserialize(deserializer).map(Brittle)
        }
    }
    let (dir, results) = (temp(), Collected::new());
    let start = |rate: f64| {
        let job = Job::new("brittle").workers(3).checkpoint_dir(dir.path());
        job.source(
            Generator::new(1_000, |n| n).rate(rate),
            Watermarks::none(|n: &u64| EventTime::from_millis(*n as i64)),
        )
        .key_by(|n| n % 100)
        .fold(Brittle(0), |sum, _| sum.0 += 1)
        .name("running")
        .map(|(key, sum)| (key, sum.0))
        .sink(results.sink());
        job.start().expect("starts")
    };
    let handle = start(1_000.0);
    until("some keys", || handle.status().records_in > 150);
    handle.stop(StopMode::WithCheckpoint);
    within(handle, SOON).expect("stops");
    LEFT.store(70, Ordering::SeqCst);
    let error = within(start(0.0), SOON).expect_err("fails");
    assert!(error.to_string().contains("boom") && error.operator() == Some("running"), "{error}");
    within(start(0.0), SOON).expect("finishes");
    let mut values = results.values();
    values.sort_unstable();
    assert!(values.into_iter().eq((0..100).flat_map(|key| (1..=10).map(move |n| (key, n)))));
}

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoints that do not fit, or are damaged

/// A job over files, every part of which can be changed.
#[derive(Clone)]
struct Shape {
    job: &'static str,
    window: &'static str,
    seconds: i64,
    other_aggregate: bool,
    extra: bool,
    sink: &'static str,
    source: &'static str,
    files: Vec<&'static str>,
    workers: usize,
    from: StartFrom,
    rate: f64,
}

const SHAPE: Shape = Shape {
    job: "readings",
    window: "totals",
    seconds: 1,
    other_aggregate: false,
    extra: false,
    sink: "out",
    source: "input",
    files: Vec::new(),
    workers: 2,
    from: StartFrom::Newest,
    rate: 0.0,
};

#[derive(Clone, Debug, Serialize)]
struct Row {
    key: String,
    start_s: i64,
    count: u64,
    sum: i64,
}

/// A directory with input, checkpoints and output of such a job.
struct Bench {
    dir: tempfile::TempDir,
}

const READINGS: i64 = 3_000;

impl Bench {
    fn new() -> Self {
        let dir = temp();
        for (part, name) in ["a.csv", "b.csv", "c.csv"].into_iter().enumerate() {
            let lines = (0..READINGS).filter(|n| *n as usize % 3 == part || part == 2 && *n < 0);
            let lines: String = lines.map(|n| format!("{},key {},{n}\n", 10 * n, n % 13)).collect();
            fs::write(dir.path().join(name), format!("at_ms,key,n\n{lines}")).expect("writes");
        }
        Bench { dir }
    }

    fn checkpoints(&self) -> PathBuf {
        self.dir.path().join("checkpoints")
    }

    fn store(&self) -> CheckpointStore {
        CheckpointStore::new(self.checkpoints())
    }

    fn start(&self, shape: &Shape) -> Result<JobHandle> {
        let files = if shape.files.is_empty() { vec!["a.csv", "b.csv"] } else { shape.files.clone() };
        let source = CsvFiles::<Event>::new(files.iter().map(|file| self.dir.path().join(file))).rate(shape.rate);
        let job = Job::new(shape.job).workers(shape.workers).batch_size(16).start_from(shape.from.clone()).retain(5);
        let job = job.checkpoint_dir(self.checkpoints()).checkpoint_every(ms(10));
        let events = job.source(source, Watermarks::monotonous(at)).name(shape.source);
        let windows = events
            .clone()
            .key_by(|event| event.key.clone())
            .window(Tumbling::of(EventSpan::secs(shape.seconds)));
        let row = |key, window: Window, count, sum| Row { key, start_s: window.start.micros() / 1_000_000, count, sum };
        let rows = if shape.other_aggregate {
            let averages = windows.aggregate((Count, Mean::of(|event: &Event| event.n as f64))).name(shape.window);
            averages.map(move |(key, window, (count, mean))| row(key, window, count, mean as i64))
        } else {
            let sums = windows.aggregate((Count, Sum::of(|event: &Event| event.n))).name(shape.window);
            sums.map(move |(key, window, (count, sum))| row(key, window, count, sum))
        };
        if shape.extra {
            let counts = events.key_by(|event| event.n % 2).fold(0u64, |count, _| *count += 1).name("extra");
            counts.sink(for_each(|_: Record<(i64, u64)>| {}));
        }
        rows.sink(FileSink::csv(self.dir.path().join("out"))).name(shape.sink);
        job.start()
    }

    fn run(&self, shape: &Shape) -> Result<Summary> {
        within(self.start(shape)?, SOON)
    }

    /// Runs about half of it, so that there are several checkpoints, and stops.
    fn run_half(&self) -> Summary {
        let handle = self.start(&Shape { rate: 4_000.0, ..SHAPE }).expect("starts");
        until("half is read", || handle.status().records_in as i64 > READINGS / 3);
        handle.stop(StopMode::WithCheckpoint);
        within(handle, SOON).expect("stops")
    }

    /// The committed lines, sorted.
    fn output(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let Ok(entries) = fs::read_dir(self.dir.path().join("out")) else { return lines };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "csv") {
                lines.extend(fs::read_to_string(&path).expect("reads").lines().skip(1).map(str::to_string));
            }
        }
        lines.sort();
        lines
    }

    fn assert_complete(&self, what: &str) {
        let mut totals: BTreeMap<(String, i64), (u64, i64)> = BTreeMap::new();
        for n in (0..READINGS).filter(|n| n % 3 != 2) {
            let total = totals.entry((format!("key {}", n % 13), n / 100)).or_default();
            *total = (total.0 + 1, total.1 + n);
        }
        let lines = totals.into_iter().map(|((key, start), (count, sum))| format!("{key},{start},{count},{sum}"));
        let mut lines: Vec<String> = lines.collect();
        lines.sort();
        assert_same(&self.output(), &lines, what);
    }

    /// A start that must be refused with a message that contains all of `texts`, and that changes nothing on disk.
    fn assert_refused(&self, what: &str, shape: &Shape, texts: &[&str]) {
        let before = tree_but_locks(self.dir.path());
        let error = match self.start(shape) {
            Err(error) => error.to_string(),
            Ok(handle) => panic!("{what}: started, and came to {:?}", within(handle, SOON)),
        };
        for text in texts {
            assert!(error.contains(text), "{what}: `{text}` is not in: {error}");
        }
        let after = tree_but_locks(self.dir.path());
        let changed = before.keys().chain(after.keys()).find(|path| before.get(*path) != after.get(*path));
        assert!(changed.is_none(), "{what}: the refusal changed {changed:?}");
    }

    /// The newest checkpoint's files that end in `ending`.
    fn files(&self, epoch: u64, ending: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.store().db_dir(epoch)).expect("lists");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.retain(|path| path.to_string_lossy().ends_with(ending));
        paths.sort();
        assert!(!paths.is_empty(), "no file ends in {ending}");
        paths
    }
}

#[test]
fn a_checkpoint_of_another_job_is_refused_and_says_what_differs() {
    let bench = Bench::new();
    let epoch = bench.run_half().epoch.expect("a checkpoint");
    let named = format!("checkpoint {epoch} in");
    let cases: Vec<(&str, Shape, Vec<&str>)> = vec![
        ("another job", Shape { job: "other", ..SHAPE }, vec!["`readings`", "`other`"]),
        ("another window", Shape { seconds: 2, ..SHAPE }, vec!["`totals`", "windows of 1s", "windows of 2s"]),
        ("another aggregate", Shape { other_aggregate: true, ..SHAPE }, vec!["operator `totals`", "(Count, Mean)"]),
        (
            "a renamed operator",
            Shape { window: "renamed", ..SHAPE },
            vec!["has `totals`", "--rename-state totals=renamed"],
        ),
        ("an added sink without a name", Shape { extra: true, ..SHAPE }, vec!["no sink `sink-1`", ".name("]),
        ("a renamed sink", Shape { sink: "elsewhere", ..SHAPE }, vec!["has `out`", "--rename-state out=elsewhere"]),
        ("a renamed source", Shape { source: "output", ..SHAPE }, vec!["has `input`", "--rename-state input=output"]),
        ("an added split", Shape { files: vec!["a.csv", "b.csv", "c.csv"], ..SHAPE }, vec!["c.csv", "`input`"]),
        ("a removed split", Shape { files: vec!["a.csv"], ..SHAPE }, vec!["b.csv", "`input`"]),
    ];
    for (what, shape, mut texts) in cases {
        texts.push(&named);
        bench.assert_refused(what, &shape, &texts);
        bench.assert_refused(what, &Shape { from: StartFrom::NewestIntact, ..shape.clone() }, &texts);
    }
    bench.run(&Shape { workers: 3, ..SHAPE }).expect("the same job goes on");
    bench.assert_complete("after all refusals");

    let bench = Bench::new();
    let handle = bench.start(&Shape { extra: true, rate: 4_000.0, ..SHAPE }).expect("starts");
    until("something is read", || handle.status().records_in > 500);
    handle.stop(StopMode::WithCheckpoint);
    within(handle, SOON).expect("stops");
    bench.assert_refused("a removed operator", &SHAPE, &["has `extra`, which the job no longer has"]);
}

#[test]
fn every_damage_is_refused_before_anything_happens() {
    const SEED: u64 = 1_234;
    let bench = Bench::new();
    let epoch = bench.run_half().epoch.expect("a checkpoint");
    let store = bench.store();
    let older = store.epochs().expect("lists").into_iter().rev().nth(1).expect("more than one checkpoint");
    let named = format!("checkpoint {epoch} in");
    let hint = format!("--from {older}");
    let mut random = Random(SEED);
    // Restores the file when the case is over.
    let case = |what: &str, path: &Path, bytes: Option<Vec<u8>>, texts: &[&str]| {
        let good = fs::read(path).expect("reads");
        // A copy in its place: the file itself is linked to by other checkpoints.
        fs::remove_file(path).expect("removes");
        if let Some(bytes) = bytes {
            fs::write(path, bytes).expect("writes");
        }
        let mut all = vec![named.as_str()];
        // A checkpoint of a newer version is not damaged: it is not for us to pass over it.
        all.extend((what != "a newer format").then_some(hint.as_str()));
        all.extend(texts);
        bench.assert_refused(what, &SHAPE, &all);
        bench.assert_refused(what, &Shape { from: StartFrom::Epoch(epoch), ..SHAPE }, &all);
        if path.exists() {
            fs::remove_file(path).expect("removes");
        }
        fs::write(path, good).expect("writes");
    };
    let manifest = store.manifest_path(epoch);
    let good = fs::read(&manifest).expect("reads");
    for _ in 0..50 {
        let (place, bit) = (random.below(good.len() as u64) as usize, random.below(8));
        let mut bytes = good.clone();
        bytes[place] ^= 1 << bit;
        // The case of a hexadecimal digit means nothing.
        if bytes.eq_ignore_ascii_case(&good) && place < 100 {
            continue;
        }
        case(&format!("manifest, bit {bit} of byte {place}, seed {SEED}"), &manifest, Some(bytes), &["manifest"]);
    }
    let newer = String::from_utf8(good.clone()).expect("text").replacen("format=1", "format=2", 1);
    case("a newer format", &manifest, Some(newer.into_bytes()), &["format 2", "formats up to 1"]);
    for length in [0, 10, good.len() / 2, good.len() - 1] {
        case("a cut manifest", &manifest, Some(good[..length].to_vec()), &["manifest"]);
    }
    for path in bench.files(epoch, ".sst") {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let good = fs::read(&path).expect("reads");
        case("a missing file", &path, None, &[name, "missing"]);
        case("a cut file", &path, Some(good[..good.len() - 1].to_vec()), &[name, "bytes and should have"]);
        case("an empty file", &path, Some(Vec::new()), &[name]);
    }
    let files: Vec<PathBuf> =
        ["", ".sst", ".sst", ".sst"].iter().flat_map(|ending| bench.files(epoch, ending)).collect();
    for _ in 0..50 {
        let path = &files[random.below(files.len() as u64) as usize];
        let mut bytes = fs::read(path).expect("reads");
        if bytes.is_empty() {
            continue;
        }
        let (place, bit) = (random.below(bytes.len() as u64) as usize, random.below(8));
        bytes[place] ^= 1 << bit;
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        case(&format!("{name}, bit {bit} of byte {place}, seed {SEED}"), path, Some(bytes), &[name, "checksum"]);
    }
    bench.run(&SHAPE).expect("undamaged, it goes on");
    bench.assert_complete("after all damage was undone");
}

#[test]
fn a_start_can_be_chosen_and_withdraws_later_output() {
    for workers in [1, 3] {
        // An older checkpoint, by number.
        let bench = Bench::new();
        bench.run_half();
        let epochs = bench.store().epochs().expect("lists");
        assert!(epochs.len() >= 3, "{epochs:?}");
        let (older, newer) = (epochs[0], &epochs[1..]);
        let list = epochs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        bench.assert_refused(
            "a checkpoint that is not there",
            &Shape { from: StartFrom::Epoch(9_999), ..SHAPE },
            &["no checkpoint 9999", &list],
        );
        let summary = bench.run(&Shape { from: StartFrom::Epoch(older), workers, ..SHAPE }).expect("finishes");
        assert_eq!((summary.restored, summary.outcome), (Some(older), Outcome::Finished));
        bench.assert_complete("from an older checkpoint");
        let aside = fs::read_dir(bench.checkpoints()).expect("lists").map(|entry| entry.expect("an entry").path());
        let aside: Vec<PathBuf> = aside.filter(|path| path.to_string_lossy().contains("aside-")).collect();
        assert_eq!(aside.len(), 1);
        assert_eq!(CheckpointStore::new(&aside[0]).epochs().expect("lists"), newer);
        assert_eq!(bench.run(&SHAPE).expect("again").outcome, Outcome::AlreadyFinished);
        bench.assert_complete("after a start of a finished job");

        // The newest intact one.
        let bench = Bench::new();
        let epoch = bench.run_half().epoch.expect("a checkpoint");
        fs::write(bench.store().manifest_path(epoch), "nonsense").expect("writes");
        let older = bench.store().epochs().expect("lists").into_iter().rev().nth(1);
        let summary = bench.run(&Shape { from: StartFrom::NewestIntact, workers, ..SHAPE }).expect("finishes");
        assert_eq!(summary.restored, older);
        bench.assert_complete("from the newest intact checkpoint");

        // None.
        let bench = Bench::new();
        bench.run_half();
        let summary = bench.run(&Shape { from: StartFrom::Fresh, seconds: 1, workers, ..SHAPE }).expect("finishes");
        assert_eq!((summary.restored, summary.records_in as i64), (None, READINGS / 3 * 2));
        bench.assert_complete("from nothing");
        // Even of a finished job.
        bench.run(&Shape { from: StartFrom::Fresh, workers, ..SHAPE }).expect("finishes");
        bench.assert_complete("from nothing again");
    }
}

#[test]
fn a_checkpoint_without_its_manifest_never_was() {
    // As after a crash between linking the files and publishing.
    let bench = Bench::new();
    let epoch = bench.run_half().epoch.expect("a checkpoint");
    let store = bench.store();
    fs::create_dir_all(store.db_dir(epoch + 1)).expect("makes");
    fs::write(store.db_dir(epoch + 1).join("000001.sst"), "half").expect("writes");
    fs::write(store.epoch_dir(epoch + 1).join("manifest.draft"), "half").expect("writes");
    fs::create_dir_all(store.live_dir("0badcafe")).expect("makes");
    let summary = bench.run(&SHAPE).expect("finishes");
    assert_eq!(summary.restored, Some(epoch));
    bench.assert_complete("beside half a checkpoint");

    // When output of it was committed, to go back would double it: that needs a wish.
    let bench = Bench::new();
    let epoch = bench.run_half().epoch.expect("a checkpoint");
    let written = |epoch: u64| {
        let names = fs::read_dir(bench.dir.path().join("out")).expect("lists");
        let prefix = format!("part-e{epoch:010}");
        names.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
    };
    // Back to before the last epoch that has output.
    let gone = (1..=epoch).rev().take_while(|epoch| !written(*epoch)).count() as u64 + 1;
    for epoch in epoch + 1 - gone..=epoch {
        fs::remove_file(bench.store().manifest_path(epoch)).expect("removes");
    }
    assert!(!bench.store().epochs().expect("lists").is_empty(), "too many epochs without output");
    bench.assert_refused("later output", &SHAPE, &["later than the checkpoint", "part-e"]);
    bench.run(&Shape { from: StartFrom::NewestIntact, ..SHAPE }).expect("finishes");
    bench.assert_complete("after later output was withdrawn");
}

#[test]
fn damage_to_all_checkpoints_is_never_a_silent_fresh_start() {
    let bench = Bench::new();
    bench.run_half();
    for epoch in bench.store().epochs().expect("lists") {
        fs::write(bench.store().manifest_path(epoch), "nonsense").expect("writes");
    }
    for from in [StartFrom::Newest, StartFrom::NewestIntact] {
        bench.assert_refused(
            "all are damaged",
            &Shape { from, ..SHAPE },
            &["cannot be used", "no checkpoint here is intact", "--fresh"],
        );
    }
    bench.run(&Shape { from: StartFrom::Fresh, ..SHAPE }).expect("finishes");
    bench.assert_complete("from nothing, as was wished");

    // A directory of checkpoints that is lost, with the output still there.
    let bench = Bench::new();
    bench.run_half();
    fs::remove_dir_all(bench.checkpoints()).expect("removes");
    let error = bench.start(&SHAPE).expect_err("refused").to_string();
    assert!(error.contains("doubled"), "{error}");
}

#[test]
fn one_job_at_a_time_has_a_directory() {
    let bench = Bench::new();
    let handle = bench.start(&Shape { rate: 2_000.0, ..SHAPE }).expect("starts");
    let error = bench.start(&SHAPE).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("in use by job `readings`"), "{error}");
    handle.stop(StopMode::WithCheckpoint);
    within(handle, SOON).expect("stops");
    bench.run(&SHAPE).expect("finishes");
    bench.assert_complete("after a refused second start");
}

// ---------------------------------------------------------------------------------------------------------------------
// Disks

#[test]
fn a_checkpoint_dir_that_is_a_file_is_an_error() {
    let dir = temp();
    let file = dir.path().join("file");
    fs::write(&file, "mine").expect("writes");
    for path in [file.clone(), file.join("below")] {
        let job = Job::new("no-dir").workers(1).checkpoint_dir(&path);
        faulty(&job, 10, 0.0, Collected::new().sink());
        let error = job.start().expect_err("refused");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert_eq!(error.kind(), ErrorKind::External);
    }
    assert_eq!(fs::read_to_string(&file).expect("reads"), "mine");
}

#[cfg(unix)]
#[test]
fn a_checkpoint_dir_that_is_read_only_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let dir = temp();
    let path = dir.path().join("read-only");
    fs::create_dir(&path).expect("makes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).expect("sets");
    if fs::write(path.join("probe"), "").is_ok() {
        println!("SKIPPED: this user may write to read-only directories");
        return;
    }
    let job = Job::new("read-only").workers(1).checkpoint_dir(&path);
    faulty(&job, 10, 0.0, Collected::new().sink());
    let error = job.start().expect_err("refused").to_string();
    assert!(error.contains("read-only") && error.contains("ermission"), "{error}");
}

/// A file system of its own, as long as it lives.
#[cfg(target_os = "linux")]
struct Tmpfs(PathBuf);

#[cfg(target_os = "linux")]
impl Tmpfs {
    fn mount(dir: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(dir).expect("makes");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "millstream-test"]).arg(dir);
        mount.stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Tmpfs(dir.to_path_buf()))
    }

    fn grow(&self, options: &str) {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(status.expect("mount runs").success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_fails_the_job_and_room_lets_it_go_on() {
    const COUNT: u64 = 60_000;
    let (outer, results) = (temp(), Collected::new());
    let dir = outer.path().join("small");
    let Some(disk) = Tmpfs::mount(&dir, "size=2500k") else {
        println!("SKIPPED: this user may not mount a tmpfs");
        return;
    };
    let start = |rate: f64| {
        let job = Job::new("full")
            .workers(2)
            .batch_size(100)
            .checkpoint_dir(dir.join("checkpoints"))
            .checkpoint_every(ms(30));
        let source = Generator::new(COUNT, |n| n).splits(2).rate(rate);
        job.source(source, Watermarks::none(|n: &u64| EventTime::from_millis(*n as i64)))
            .key_by(|n| *n)
            // Does not compress.
            .fold([0u64; 16], |state, n| *state = std::array::from_fn(|i| n.wrapping_add(7 + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .name("large")
            .map(|(n, _)| n)
            .sink(results.sink());
        job.start()
    };
    for size in ["size=2500k", "size=2600k", "size=3500k", "size=5m"] {
        disk.grow(size);
        // Even the start may need more than there is.
        let error = match start(100_000.0) {
            Ok(handle) => within(handle, SOON).expect_err("the disk is too small"),
            Err(error) => error,
        };
        let text = error.to_string();
        assert!(text.contains("the disk is full"), "{size}: {text}");
        assert_eq!(error.kind(), ErrorKind::External, "{size}: {text}");
        let store = CheckpointStore::new(dir.join("checkpoints"));
        for epoch in store.epochs().expect("lists") {
            store.verify(epoch).expect("what is there is intact");
        }
        let values = results.values();
        assert!(values.iter().collect::<BTreeSet<_>>().len() == values.len(), "{size}: doubled");
    }
    disk.grow("size=200m");
    within(start(0.0).expect("starts"), SOON).expect("finishes");
    let mut values = results.values();
    values.sort_unstable();
    assert!(values.into_iter().eq(0..COUNT));
}
