//! Jobs that fail and go on by themselves: restarts, records that are set aside, full and failing disks, and what the journal says.

mod common;
mod patience;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use millstream::error::Result;
use millstream::journal::{self, What};
use millstream::poison::set_aside;
use millstream::prelude::*;
use millstream::sink::{Committer, Sink, SinkTask, SinkWriter};
use millstream::source::{Output, Read, Source, SplitReader};
use millstream::state::store::CheckpointStore;
use patience::{Random, SOON, effort, lock, ms, sleep, temp, until, within};
use serde::{Deserialize, Serialize};

// ---------------------------------------------------------------------------------------------------------------------
// Helpers

fn at(n: &u64) -> EventTime {
    EventTime::from_millis(*n as i64)
}

/// The lines of all committed parts in a directory, sorted.
fn lines(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let names = common::names(dir).into_iter().filter(|name| name.ends_with(".jsonl"));
    for name in names {
        lines.extend(fs::read_to_string(dir.join(name)).expect("a part").lines().map(str::to_string));
    }
    lines.sort_unstable();
    lines
}

#[track_caller]
fn assert_same<T: Ord + std::fmt::Debug>(mut found: Vec<T>, mut expected: Vec<T>, what: &str) {
    found.sort_unstable();
    expected.sort_unstable();
    if found != expected {
        let missing: Vec<_> = expected.iter().filter(|one| found.binary_search(one).is_err()).take(5).collect();
        let extra: Vec<_> = found.iter().filter(|one| expected.binary_search(one).is_err()).take(5).collect();
        let (found, expected) = (found.len(), expected.len());
        panic!("{what}: {found} results instead of {expected}; missing {missing:?}, not expected {extra:?}");
    }
}

/// What the journal of `dir` has, without times.
fn events(dir: &Path) -> Vec<What> {
    journal::events(dir).expect("a journal").into_iter().map(|event| event.what).collect()
}

fn count(events: &[What], kind: &str) -> usize {
    events.iter().filter(|event| event.kind() == kind).count()
}

/// Key, start of the window in seconds, count, sum.
type Total = (u64, i64, u64, u64);

/// The totals of tumbling windows of 1 s over those of 0, 1, 2 … that `kept` keeps, by key.
fn totals(numbers: impl Iterator<Item = u64>, keys: u64) -> Vec<Total> {
    let mut totals: BTreeMap<(u64, i64), (u64, u64)> = BTreeMap::new();
    for n in numbers {
        let total = totals.entry((n % keys, n as i64 / 1_000)).or_default();
        *total = (total.0 + 1, total.1 + n);
    }
    totals.into_iter().map(|((key, window), (count, sum))| (key, window, count, sum)).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults anywhere, by seed

/// Where user code fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Read,
    Timestamp,
    Map,
    Key,
    KeySerialize,
    Fold,
    StateSerialize,
    Restore,
    Aggregate,
    Finish,
    Write,
    Prepare,
    Commit,
}

const PLACES: [Place; 13] = [
    Place::Read,
    Place::Timestamp,
    Place::Map,
    Place::Key,
    Place::KeySerialize,
    Place::Fold,
    Place::StateSerialize,
    Place::Restore,
    Place::Aggregate,
    Place::Finish,
    Place::Write,
    Place::Prepare,
    Place::Commit,
];

impl Place {
    /// The operators one of which must be named.
    fn operators(self) -> &'static [&'static str] {
        match self {
            Place::Read | Place::Timestamp => &["numbers"],
            Place::Map => &["wrap"],
            Place::Key => &["key_by-1"],
            Place::KeySerialize => &["key_by-1", "running"],
            Place::Fold | Place::Restore | Place::StateSerialize => &["running"],
            Place::Aggregate | Place::Finish => &["windows"],
            Place::Write | Place::Prepare | Place::Commit => &["out"],
        }
    }
}

/// Fails at a place after `left` passes, for `times` passes; by an error where the place can give one.
#[derive(Debug)]
struct Fault {
    place: Place,
    left: AtomicI64,
    times: AtomicI64,
    by_error: bool,
    failures: AtomicU64,
}

/// Faults of the jobs that run now, so that values that come back from bytes find theirs.
fn faults() -> &'static Mutex<HashMap<u64, Arc<Fault>>> {
    static FAULTS: OnceLock<Mutex<HashMap<u64, Arc<Fault>>>> = OnceLock::new();
    FAULTS.get_or_init(Mutex::default)
}

fn pass(id: u64, place: Place) -> Result<(), Error> {
    let fault = lock(faults()).get(&id).cloned();
    let Some(fault) = fault.filter(|fault| fault.place == place) else { return Ok(()) };
    if fault.left.fetch_sub(1, Ordering::SeqCst) > 0 || fault.times.fetch_sub(1, Ordering::SeqCst) <= 0 {
        return Ok(());
    }
    fault.failures.fetch_add(1, Ordering::SeqCst);
    assert!(fault.by_error, "boom at {place:?}");
    Err(Error::external(format!("boom at {place:?}")))
}

/// As `pass`, where there is no way to return an error.
fn pass_or_panic(id: u64, place: Place) {
    if let Err(error) = pass(id, place) {
        panic!("{error}");
    }
}

#[derive(Clone, PartialEq, Eq)]
struct FaultyKey {
    key: u64,
    id: u64,
}

impl Serialize for FaultyKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        pass_or_panic(self.id, Place::KeySerialize);
        (self.key, self.id).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FaultyKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (key, id) = Deserialize::deserialize(deserializer)?;
        pass_or_panic(id, Place::Restore);
        Ok(FaultyKey { key, id })
    }
}

#[derive(Clone, Deserialize)]
struct FaultyState {
    last: u64,
    id: u64,
}

impl Serialize for FaultyState {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        pass(self.id, Place::StateSerialize).map_err(serde::ser::Error::custom)?;
        (self.last, self.id).serialize(serializer)
    }
}

struct FaultySource<F> {
    generator: Generator<F>,
    id: u64,
}

struct FaultyReader<R> {
    reader: R,
    id: u64,
}

impl<F: Fn(u64) -> u64 + Clone + Send + 'static> Source for FaultySource<F> {
    type Item = u64;
    type Position = u64;
    type Reader = FaultyReader<millstream::connectors::GeneratorReader<F>>;

    fn kind(&self) -> &'static str {
        "faulty"
    }
    fn splits(&self) -> Result<Vec<String>> {
        Source::splits(&self.generator)
    }
    fn open(&self, split: &str, from: Option<u64>, waker: millstream::source::Waker) -> Result<Self::Reader> {
        Ok(FaultyReader { reader: self.generator.open(split, from, waker)?, id: self.id })
    }
}

impl<R: SplitReader<Item = u64, Position = u64>> SplitReader for FaultyReader<R> {
    type Item = u64;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<u64>) -> Result<Read> {
        pass(self.id, Place::Read)?;
        self.reader.read(max, out)
    }
    fn position(&self) -> u64 {
        self.reader.position()
    }
}

#[derive(Clone)]
struct FaultySink<S> {
    inner: S,
    id: u64,
}

impl<T: Data, S: Sink<T>> Sink<T> for FaultySink<S> {
    type Writer = FaultySink<S::Writer>;

    fn kind(&self) -> &'static str {
        "faulty"
    }
    fn writer(&self, task: &SinkTask) -> Result<Self::Writer> {
        Ok(FaultySink { inner: self.inner.writer(task)?, id: self.id })
    }
    fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
        let inner = self.inner.committer(job)?;
        Some(Box::new(FaultySink { inner, id: self.id }))
    }
}

impl<T: Data, W: SinkWriter<T>> SinkWriter<T> for FaultySink<W> {
    fn write(&mut self, epoch: u64, records: &mut Vec<Record<T>>) -> Result<()> {
        pass(self.id, Place::Write)?;
        self.inner.write(epoch, records)
    }
    fn prepare(&mut self, epoch: u64) -> Result<Vec<String>> {
        pass(self.id, Place::Prepare)?;
        self.inner.prepare(epoch)
    }
}

impl Committer for FaultySink<Box<dyn Committer>> {
    fn lock(&mut self) -> Result<()> {
        self.inner.lock()
    }
    fn recover(&mut self, restored: Option<u64>, handles: &[String], withdraw: bool) -> Result<()> {
        self.inner.recover(restored, handles, withdraw)
    }
    fn commit(&mut self, handles: &[String]) -> Result<()> {
        pass(self.id, Place::Commit)?;
        self.inner.commit(handles)
    }
}

/// Count and sum, with a hook in front of each step.
#[derive(Clone)]
struct Hooked<F> {
    hook: F,
}

impl<F: Fn(bool, u64) + Clone + Send + Sync + 'static> Aggregate<u64> for Hooked<F> {
    type Acc = (u64, u64);
    type Out = (u64, u64);

    fn create(&self) -> (u64, u64) {
        (0, 0)
    }
    fn add(&self, acc: &mut (u64, u64), n: &u64, _: &Origin) {
        (self.hook)(false, *n);
        *acc = (acc.0 + 1, acc.1 + n);
    }
    fn merge(&self, acc: &mut (u64, u64), other: &(u64, u64)) {
        *acc = (acc.0 + other.0, acc.1 + other.1);
    }
    fn finish(&self, acc: &(u64, u64)) -> (u64, u64) {
        (self.hook)(true, acc.0);
        *acc
    }
}

const FAULTY: u64 = 6_000;
const KEYS: u64 = 7;

fn faulty(job: &Job, id: u64, splits: usize, output: &Path) {
    let generator = Generator::new(FAULTY, |n| n).splits(splits);
    let source = FaultySource { generator, id }.rate(100_000.0);
    let timestamp = move |n: &u64| {
        pass_or_panic(id, Place::Timestamp);
        at(n)
    };
    job.source(source, Watermarks::monotonous(timestamp))
        .name("numbers")
        .try_map(move |n| pass(id, Place::Map).map(|()| n))
        .name("wrap")
        .key_by(move |n| {
            pass_or_panic(id, Place::Key);
            FaultyKey { key: n % 100, id }
        })
        .fold(FaultyState { last: 0, id }, move |state, n| {
            pass_or_panic(id, Place::Fold);
            state.last = *n;
        })
        .name("running")
        .map(|(_, state)| state.last)
        .key_by(|n| n % KEYS)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate(Hooked {
            hook: move |finish: bool, _: u64| pass_or_panic(id, if finish { Place::Finish } else { Place::Aggregate }),
        })
        .name("windows")
        .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000_000, count, sum))
        .sink(FaultySink { inner: FileSink::json_lines(output), id })
        .name("out");
}

/// One job that fails at a place, and a policy; returns how often it did.
fn recovers(seed: u64, place: Place) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut random = Random(seed);
    random.below(2);
    let id = NEXT.fetch_add(1, Ordering::SeqCst);
    let left = match place {
        Place::Prepare | Place::Commit => random.below(3),
        Place::Write | Place::Finish | Place::Read => random.below(12),
        Place::StateSerialize | Place::Restore => random.below(150),
        _ => random.below(FAULTY - 500),
    } as i64;
    let times = 1 + random.below(3) as i64;
    let (workers, splits) = (1 + random.below(4) as usize, 1 + random.below(3) as usize);
    let by_error = random.below(2) == 0;
    let what = format!("seed {seed}: {place:?} after {left}, {times} times, {workers} workers, {splits} splits");
    let fault = |place, left: i64, times: i64| Fault {
        place,
        left: AtomicI64::new(left),
        times: AtomicI64::new(times),
        by_error,
        failures: AtomicU64::new(0),
    };
    let main = Arc::new(fault(place, left, times));
    lock(faults()).insert(id, Arc::clone(&main));
    let dir = temp();
    let (checkpoints, output) = (dir.path().join("checkpoints"), dir.path().join("out"));
    let start = || {
        let job = Job::new("faulty")
            .workers(workers)
            .batch_size(100)
            .checkpoint_dir(&checkpoints)
            .checkpoint_every(ms(2))
            .restart(RestartPolicy::fixed(Duration::ZERO, 20));
        faulty(&job, id, splits, &output);
        job.start()
    };
    if place == Place::Restore {
        // Something must be there to be restored.
        let handle = start().expect(&what);
        until("a checkpoint or the end", || {
            handle.is_finished() || !CheckpointStore::new(&checkpoints).epochs().expect("lists").is_empty()
        });
        handle.stop(StopMode::Now);
        within(handle, SOON).expect(&what);
    }
    let summary = within(start().expect(&what), SOON).expect(&what);
    lock(faults()).remove(&id);
    let failures = main.failures.load(Ordering::SeqCst);
    let events = events(&checkpoints);
    if failures > 0 {
        assert!(summary.restarts > 0, "{what}");
    }
    assert_eq!(count(&events, "failure") as u64, summary.restarts, "{what}: {events:?}");
    assert_eq!(count(&events, "restart") as u64, summary.restarts, "{what}: {events:?}");
    for event in &events {
        let What::Failure { error, operator, .. } = event else { continue };
        assert!(error.contains(&format!("boom at {place:?}")), "{what}: {error}");
        let named = operator.as_deref().unwrap_or("none");
        assert!(place.operators().contains(&named), "{what}: {named}: {error}");
    }
    let expected = totals(0..FAULTY, KEYS).iter().map(|row| serde_json::to_string(row).expect("json")).collect();
    assert_same(lines(&output), expected, &what);
    assert!(
        !common::names(&checkpoints).iter().any(|name| name.starts_with("live-")),
        "{what}: a live directory is left"
    );
    failures
}

#[test]
fn whatever_fails_and_wherever_the_job_goes_on_to_the_right_result() {
    for place in PLACES {
        let failures: u64 = (0..3 * effort()).map(|seed| recovers(seed + 1_000 * effort(), place)).sum();
        assert!(failures > 0, "nothing failed at {place:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Records that kill

/// Where a record kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Timestamp,
    Map,
    Filter,
    Fold,
    Window,
    Sink,
}

const WHERE: [Where; 6] = [Where::Timestamp, Where::Map, Where::Filter, Where::Fold, Where::Window, Where::Sink];

type Poison = Arc<BTreeMap<u64, Where>>;

/// A value that cannot be written when it is poison.
#[derive(Clone, Deserialize)]
struct Row {
    n: u64,
    #[serde(skip)]
    bad: bool,
}

impl Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.bad, "poison at Sink");
        self.n.serialize(serializer)
    }
}

const POISONED: u64 = 8_000;

struct Results {
    folded: Collected<u64>,
    windows: Collected<Total>,
    files: tempfile::TempDir,
}

impl Results {
    fn new() -> Self {
        Results { folded: Collected::new(), windows: Collected::new(), files: temp() }
    }

    /// They are those of the input without the records that `left_out` says.
    #[track_caller]
    fn assert_without(&self, left_out: &BTreeSet<u64>, what: &str) {
        let kept = || (0..POISONED).filter(|n| n % 10 != 9 && !left_out.contains(n));
        // `flat_map` doubles every third.
        let doubled = || kept().flat_map(|n| std::iter::repeat_n(n, if n % 3 == 0 { 2 } else { 1 }));
        assert_same(self.folded.values(), doubled().collect(), &format!("{what}: folded"));
        assert_same(self.windows.values(), totals(doubled(), KEYS), &format!("{what}: windows"));
        let written = lines(self.files.path()).iter().map(|line| line.parse().expect("a number")).collect();
        assert_same(written, doubled().collect(), &format!("{what}: files"));
    }
}

/// Three branches, so that records die in operators of every kind and are missing in all of them.
fn poisoned(job: &Job, poison: &Poison, splits: usize, results: &Results) {
    let kills = |at: Where| {
        let poison = Arc::clone(poison);
        move |n: u64| assert!(poison.get(&n) != Some(&at), "poison at {at:?}")
    };
    let (timestamp, map, filter) = (kills(Where::Timestamp), kills(Where::Map), kills(Where::Filter));
    let (fold, window) = (kills(Where::Fold), kills(Where::Window));
    let bad = Arc::clone(poison);
    let source = Generator::new(POISONED, |n| n).splits(splits);
    let watermarks = Watermarks::monotonous(move |n: &u64| {
        timestamp(*n);
        at(n)
    });
    let numbers = job
        .source(source, watermarks)
        .name("numbers")
        .filter(move |n| {
            filter(*n);
            n % 10 != 9
        })
        .name("keep")
        .flat_map(|n| std::iter::repeat_n(n, if n % 3 == 0 { 2 } else { 1 }))
        .map(move |n| {
            map(n);
            n
        })
        .name("map");
    numbers
        .clone()
        .key_by(|n| n % 100)
        .fold(0, move |last, n| {
            fold(*n);
            *last = *n;
        })
        .name("fold")
        .map(|(_, n)| n)
        .sink(results.folded.sink())
        .name("folded");
    numbers
        .clone()
        .key_by(|n| n % KEYS)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate(Hooked {
            hook: move |finish: bool, n: u64| {
                if !finish {
                    window(n);
                }
            },
        })
        .name("window")
        .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000_000, count, sum))
        .sink(results.windows.sink())
        .name("windows");
    numbers
        .map(move |n| Row { n, bad: bad.get(&n) == Some(&Where::Sink) })
        .sink(FileSink::json_lines(results.files.path()))
        .name("files");
}

/// A few numbers that are not filtered, or are filtered after they have killed.
fn some_poison(random: &mut Random, many: u64) -> Poison {
    let mut poison = BTreeMap::new();
    while (poison.len() as u64) < many {
        let at = WHERE[random.below(WHERE.len() as u64) as usize];
        let n = random.below(POISONED);
        if n % 10 != 9 || matches!(at, Where::Timestamp | Where::Filter) {
            poison.insert(n, at);
        }
    }
    Arc::new(poison)
}

fn operator_of(at: Where) -> &'static str {
    match at {
        Where::Timestamp => "numbers",
        Where::Map => "map",
        Where::Filter => "keep",
        Where::Fold => "fold",
        Where::Window => "window",
        Where::Sink => "files",
    }
}

/// What is set aside in `dir` is exactly the poison, each after `failures`.
#[track_caller]
fn assert_set_aside(dir: &Path, poison: &Poison, splits: u64, failures: u32, what: &str) {
    let found = set_aside(dir).expect(what);
    let named = |entry: &millstream::poison::SetAside| {
        assert_eq!(entry.record.source, "numbers", "{what}");
        assert_eq!(entry.failures, failures, "{what}: {entry:?}");
        let k: u64 = entry.record.split.split(' ').nth(1).expect("events k of p").parse().expect("a number");
        let n = (entry.record.record - 1) * splits + k;
        assert_eq!(entry.operator.as_deref(), Some(operator_of(poison[&n])), "{what}: {entry:?}");
        assert_eq!(entry.position, Some(n.into()), "{what}: {entry:?}");
        assert!(entry.error.contains("poison at"), "{what}: {entry:?}");
        n
    };
    assert_same(found.iter().map(named).collect(), poison.keys().copied().collect(), what);
}

fn set_aside_by_seed(seed: u64) {
    let mut random = Random(seed);
    random.below(2);
    let many = 1 + random.below(4);
    let poison = some_poison(&mut random, many);
    let (workers, splits) = (1 + random.below(3) as usize, 1 + random.below(3) as usize);
    let failures = 1 + random.below(3) as u32;
    let batch = [1, 7, 100, 2048][random.below(4) as usize];
    let what =
        format!("seed {seed}: {poison:?}, {workers} workers, {splits} splits, batches of {batch}, {failures} failures");
    let (dir, results) = (temp(), Results::new());
    let start = |poison: &Poison, from: StartFrom| {
        let job = Job::new("poisoned")
            .workers(workers)
            .batch_size(batch)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(5))
            .retain(10_000)
            .start_from(from)
            .restart(RestartPolicy::exponential(ms(1), ms(4)))
            .set_aside_after(failures);
        poisoned(&job, poison, splits, &results);
        job.start().expect(&what)
    };
    let left_out: BTreeSet<u64> = poison.keys().copied().collect();
    let summary = within(start(&poison, StartFrom::Newest), SOON).expect(&what);
    results.assert_without(&left_out, &what);
    assert_set_aside(dir.path(), &poison, splits as u64, failures, &what);
    assert_eq!(summary.set_aside, left_out.len() as u64, "{what}");
    assert_eq!(summary.restarts, left_out.len() as u64 * u64::from(failures), "{what}: no failure too many");
    let events = events(dir.path());
    assert_eq!(count(&events, "set_aside"), left_out.len(), "{what}");

    // Whichever checkpoint it goes back to, the same records are missing, and nothing fails.
    let epochs = CheckpointStore::new(dir.path()).epochs().expect("lists");
    let epoch = epochs[random.below(epochs.len() as u64) as usize];
    if epochs.last() != Some(&epoch) {
        let again = within(start(&poison, StartFrom::Epoch(epoch)), SOON).expect(&what);
        assert_eq!((again.restarts, again.restored), (0, Some(epoch)), "{what}");
        results.assert_without(&left_out, &format!("{what}, again from {epoch}"));
    }

    // A fresh start has all records in again.
    within(start(&Poison::default(), StartFrom::Fresh), SOON).expect(&what);
    results.assert_without(&BTreeSet::new(), &format!("{what}, fresh"));
    assert!(set_aside(dir.path()).expect("reads").is_empty(), "{what}");
}

#[test]
fn exactly_the_records_that_kill_are_missing() {
    for seed in 0..12 * effort() {
        set_aside_by_seed(seed + 100 * effort());
    }
}

#[test]
fn a_record_that_kills_process_after_process_is_counted_and_set_aside() {
    // An operator with state can name records only where they may be set aside. What is counted, is counted in any case.
    for (at, asked_from) in [(Where::Fold, 0), (Where::Map, 0), (Where::Map, 2)] {
        let poison: Poison = Arc::new(BTreeMap::from([(3_003, at)]));
        let (dir, results) = (temp(), Results::new());
        let mut texts: Vec<String> = Vec::new();
        let summary = loop {
            let mut job = Job::new("poisoned").workers(2).batch_size(100).checkpoint_dir(dir.path());
            job.settings_mut().checkpoint_interval = ms(5);
            job.settings_mut().set_aside_after = (texts.len() >= asked_from).then_some(3);
            poisoned(&job, &poison, 1, &results);
            match within(job.start().expect("starts"), SOON) {
                Ok(summary) => break summary,
                Err(error) => texts.push(error.to_string()),
            }
            assert!(texts.len() < 10, "{texts:?}");
        };
        assert_eq!(texts.len(), 3, "{at:?}: {texts:?}");
        assert!(!texts[0].contains("in a row"), "{}", texts[0]);
        assert!(texts[1].contains("this record has made the job fail 2 times in a row"), "{}", texts[1]);
        assert!(texts[2].contains("fail 3 times in a row") && texts[2].contains("set-aside.jsonl"), "{}", texts[2]);
        assert_eq!((summary.set_aside, summary.restarts), (1, 0));
        results.assert_without(&BTreeSet::from([3_003]), "after all");
    }
}

#[test]
fn a_record_of_a_file_is_set_aside_with_its_text_and_line() {
    #[derive(Clone, Debug, Serialize, Deserialize)]
    struct Line {
        at: i64,
        word: String,
    }
    let dir = temp();
    let (input, output) = (dir.path().join("in.csv"), dir.path().join("out"));
    let mut text = String::from("at,word\n");
    for n in 0..3_000 {
        let word = if n == 1_234 { "\"bad,\n\u{fc}\"".to_string() } else { format!("w{n}") };
        text.push_str(&format!("{n},{word}\n"));
    }
    fs::write(&input, text).expect("writes");
    for gzip in [false, true] {
        let input = if gzip {
            let path = dir.path().join("in.csv.gz");
            let file = fs::File::create(&path).expect("creates");
            let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            std::io::Write::write_all(&mut gz, &fs::read(&input).expect("reads")).expect("packs");
            gz.finish().expect("packs");
            path
        } else {
            input.clone()
        };
        let (checkpoints, output) = (dir.path().join(format!("c{gzip}")), output.join(format!("{gzip}")));
        let job = Job::new("lines")
            .workers(2)
            .checkpoint_dir(&checkpoints)
            .checkpoint_every(ms(5))
            .restart(RestartPolicy::fixed(ms(1), 5))
            .set_aside_after(2);
        let lines = CsvFiles::<Line>::new([&input]);
        job.source(lines, Watermarks::monotonous(|line: &Line| EventTime::from_secs(line.at)))
            .name("lines")
            .map(|line| {
                assert!(!line.word.starts_with("bad"), "no such word");
                line.at
            })
            .sink(FileSink::json_lines(&output));
        let summary = within(job.start().expect("starts"), SOON).expect("finishes");
        assert_eq!((summary.set_aside, summary.restarts), (1, 2));
        let entries = set_aside(&checkpoints).expect("reads");
        let entry = &entries[0];
        assert_eq!((entry.record.record, entry.text.as_deref()), (1_235, Some("1234,\"bad,\n\u{fc}\"")), "{entry:?}");
        assert_eq!(entry.record.split, input.display().to_string());
        assert_eq!(entry.position.as_ref().map(|position| &position["line"]), Some(&1_236.into()), "{entry:?}");
        let expected = (0..3_000).filter(|n| *n != 1_234).map(|n: u64| n.to_string()).collect();
        assert_same(self::lines(&output), expected, "all lines but one");
        let printed = summary.to_string();
        assert!(printed.contains("restarts  2;") && printed.contains("set aside 1 records"), "{printed}");
    }
}

#[test]
fn where_no_record_is_to_blame_the_error_says_why() {
    let fails = |build: &dyn Fn(&Job)| {
        let dir = temp();
        let job = Job::new("nobody")
            .workers(1)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(5))
            .restart(RestartPolicy::fixed(ms(1), 2))
            .set_aside_after(1);
        build(&job);
        let error = within(job.start().expect("starts"), SOON).expect_err("it always fails");
        assert!(set_aside(dir.path()).expect("reads").is_empty());
        let events = events(dir.path());
        assert_eq!((count(&events, "failure"), count(&events, "restart"), count(&events, "gave_up")), (3, 2, 1));
        let text = error.to_string();
        assert!(text.contains("not started again: its policy's 2 restarts are used up"), "{text}");
        assert!(text.contains("no record can be set aside for this: "), "{text}");
        text
    };
    let numbers = |job: &Job| job.source(Generator::new(3_000, |n| n), Watermarks::monotonous(at)).name("numbers");
    let window = |job: &Job, fails_in_firing: bool| {
        numbers(job)
            .key_by(|n| n % 3)
            .window(Tumbling::of(EventSpan::secs(1)))
            .aggregate(Hooked { hook: move |finish: bool, _: u64| assert!(!(finish && fails_in_firing), "boom") })
    };
    let text = fails(&|job| window(job, true).for_tests());
    assert!(text.contains("it failed in a firing"), "{text}");
    let text = fails(&|job| window(job, false).map(|_| -> u64 { panic!("boom") }).for_tests());
    assert!(text.contains("it failed on a result"), "{text}");
    let text = fails(&|job| window(job, false).key_by(|_| 1).fold(0, |_: &mut u64, _| panic!("boom")).for_tests());
    assert!(text.contains("it may have failed on a result"), "{text}");
    // What the source itself cannot make it cannot leave out.
    let text = fails(&|job| {
        let source = Generator::new(3_000, |n| if n == 1_500 { panic!("boom") } else { n });
        job.source(source, Watermarks::monotonous(at)).name("numbers").for_tests();
    });
    assert!(text.contains("its source fails while it makes the record"), "{text}");
    assert!(text.contains("record 1501 of split"), "{text}");
}

/// Ends a stream where its records do not matter.
trait ForTests {
    fn for_tests(self);
}

impl<T: Data> ForTests for Stream<T> {
    fn for_tests(self) {
        self.sink(for_each(|_: Record<T>| {}));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Restarts

/// Numbers at 20,000 a second, of which the one after `fails_at` makes it fail as long as `fails`.
fn failing(job: &Job, fails: &Arc<AtomicBool>, fails_at: u64, results: &Collected<Total>) {
    let fails = Arc::clone(fails);
    job.source(Generator::new(FAULTY, |n| n).splits(2).rate(20_000.0), Watermarks::monotonous(at))
        .name("numbers")
        .map(move |n| {
            assert!(n < fails_at || !fails.load(Ordering::SeqCst), "boom");
            n
        })
        .key_by(|n| n % KEYS)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate(Hooked { hook: |_: bool, _: u64| {} })
        .map(|(key, window, (count, sum))| (key, window.start.micros() / 1_000_000, count, sum))
        .sink(results.sink());
}

#[test]
fn a_stop_while_it_waits_to_restart_works_at_once() {
    for mode in [StopMode::WithCheckpoint, StopMode::Now] {
        let (dir, results, fails) = (temp(), Collected::new(), Arc::new(AtomicBool::new(true)));
        let start = |policy| {
            let job = Job::new("waits").workers(2).checkpoint_dir(dir.path()).checkpoint_every(ms(20)).restart(policy);
            failing(&job, &fails, 3_000, &results);
            job.start().expect("starts")
        };
        let handle = start(RestartPolicy::fixed(Duration::from_secs(600), 3));
        until("the failure", || handle.status().restarts == 1);
        assert!(!handle.is_finished());
        let asked = Instant::now();
        handle.stop(mode);
        let summary = within(handle, SOON).expect("a stop is no failure");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert_eq!((summary.outcome, summary.restarts), (Outcome::Stopped, 1));
        let newest = CheckpointStore::new(dir.path()).epochs().expect("lists").last().copied();
        assert_eq!(summary.epoch, newest);
        assert_eq!(events(dir.path()).last(), Some(&What::Stop { epoch: newest }));
        fails.store(false, Ordering::SeqCst);
        within(start(RestartPolicy::never()), SOON).expect("goes on");
        assert_same(results.values(), totals(0..FAULTY, KEYS), "after the stop");
    }
}

#[test]
fn a_fresh_start_that_fails_does_not_begin_again() {
    let (dir, results, fails) = (temp(), Collected::new(), Arc::new(AtomicBool::new(false)));
    let start = |from: StartFrom| {
        let job = Job::new("fresh")
            .workers(2)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(20))
            .start_from(from)
            .restart(RestartPolicy::fixed(ms(100), 50));
        failing(&job, &fails, 3_000, &results);
        job.start().expect("starts")
    };
    within(start(StartFrom::Newest), SOON).expect("finishes");
    fails.store(true, Ordering::SeqCst);
    let handle = start(StartFrom::Fresh);
    until("three failures", || handle.status().restarts == 3);
    fails.store(false, Ordering::SeqCst);
    within(handle, SOON).expect("finishes");
    assert_same(results.values(), totals(0..FAULTY, KEYS), "after all");
    let starts: Vec<_> = events(dir.path())
        .into_iter()
        .filter_map(|what| match what {
            What::Start { from, fresh, .. } => Some((from, fresh)),
            _ => None,
        })
        .collect();
    assert_eq!(starts[..2], [(None, false), (None, true)]);
    assert!(starts[2..].iter().all(|(from, fresh)| from.is_some() && !fresh), "{starts:?}");
    let aside = common::names(dir.path()).into_iter().filter(|name| name.starts_with("aside-")).count();
    assert_eq!(aside, 1, "checkpoints were set aside once");
}

#[test]
fn the_place_is_held_between_attempts() {
    let (dir, results, fails) = (temp(), Collected::new(), Arc::new(AtomicBool::new(true)));
    let job = |policy| {
        let job = Job::new("held").workers(1).checkpoint_dir(dir.path()).checkpoint_every(ms(20)).restart(policy);
        failing(&job, &fails, 1_000, &results);
        job
    };
    let handle = job(RestartPolicy::exponential(ms(1), ms(20))).start().expect("starts");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let error = job(RestartPolicy::never()).start().expect_err("it is held");
        assert!(error.to_string().contains("is in use by job `held`"), "{error}");
    }
    assert!(handle.status().restarts > 3, "{}", handle.status().restarts);
    fails.store(false, Ordering::SeqCst);
    within(handle, SOON).expect("finishes");
    assert_same(results.values(), totals(0..FAULTY, KEYS), "after all");
}

#[test]
fn a_worker_that_hangs_forbids_a_restart() {
    let (dir, release, hangs) = (temp(), Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let (waits, hangs) = (Arc::clone(&release), Arc::new(hangs));
    let job = Job::new("hangs")
        .workers(2)
        .batch_size(1)
        .checkpoint_dir(dir.path())
        .restart(RestartPolicy::fixed(ms(1), 5));
    job.source(Generator::new(1_000, |n| n).splits(2), Watermarks::monotonous(at))
        .map(move |n| {
            while n == 10 && !waits.load(Ordering::SeqCst) {
                hangs.store(true, Ordering::SeqCst);
                sleep(ms(5));
            }
            // Read by the other worker.
            if n == 11 {
                until("the other worker hangs", || hangs.load(Ordering::SeqCst));
                panic!("boom");
            }
            n
        })
        .for_tests();
    let error = within(job.start().expect("starts"), SOON).expect_err("it fails");
    release.store(true, Ordering::SeqCst);
    let text = error.to_string();
    assert!(text.contains("boom") && text.contains("not started again: a worker hangs in user code"), "{text}");
    assert_eq!(count(&events(dir.path()), "restart"), 0);
}

#[test]
fn what_would_be_lost_or_fail_again_is_refused() {
    let (_sender, source) = channel::<u64>(10);
    let job = Job::new("channel").workers(1).restart(RestartPolicy::fixed(ms(1), 1));
    job.source(source, Watermarks::monotonous(at)).name("feed").for_tests();
    let error = job.start().expect_err("refused");
    assert_eq!((error.kind(), error.operator()), (ErrorKind::Config, Some("feed")));
    assert!(error.to_string().contains("a channel cannot be read again, so the job cannot be restarted"), "{error}");

    let job = Job::new("aside").workers(1).set_aside_after(3);
    job.source(Generator::new(1, |n| n), Watermarks::monotonous(at)).for_tests();
    assert!(job.start().expect_err("refused").to_string().contains("--checkpoint-dir"));

    // Bad data stays bad.
    let dir = temp();
    fs::write(dir.path().join("in.jsonl"), "1\nx\n").expect("writes");
    let job = Job::new("bad")
        .workers(1)
        .checkpoint_dir(dir.path().join("c"))
        .restart(RestartPolicy::exponential(ms(1), ms(1)));
    job.source(JsonLines::<u64>::new([dir.path().join("in.jsonl")]), Watermarks::monotonous(at))
        .for_tests();
    let error = within(job.start().expect("starts"), SOON).expect_err("a bad record");
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("not started again: an error of this kind would come again"), "{error}");
}

#[test]
fn without_checkpoints_a_restart_begins_at_the_beginning() {
    let (results, fails) = (Collected::new(), Arc::new(AtomicBool::new(true)));
    let job = Job::new("bare").workers(2).restart(RestartPolicy::fixed(ms(1), 50));
    failing(&job, &fails, 1_000, &results);
    let handle = job.start().expect("starts");
    until("a failure", || handle.status().restarts > 0);
    fails.store(false, Ordering::SeqCst);
    within(handle, SOON).expect("finishes");
    assert_same(results.values(), totals(0..FAULTY, KEYS), "after all");
}

#[test]
fn the_journal_tells_what_became_of_a_job() {
    let (dir, results, fails) = (temp(), Collected::new(), Arc::new(AtomicBool::new(true)));
    let start = || {
        let job = Job::new("told")
            .workers(2)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(20))
            .restart(RestartPolicy::fixed(ms(1), 2));
        failing(&job, &fails, 3_000, &results);
        job.start().expect("starts")
    };
    within(start(), SOON).expect_err("it fails");
    // A crash in the middle of a line.
    let path = dir.path().join("journal.jsonl");
    let mut bytes = fs::read(&path).expect("reads");
    bytes.extend_from_slice(b"{\"time_ms\":17");
    fs::write(&path, bytes).expect("writes");
    fails.store(false, Ordering::SeqCst);
    let summary = within(start(), SOON).expect("finishes");
    let kinds = |events: &[What]| -> Vec<String> {
        let mut kinds: Vec<String> = events.iter().map(|event| event.kind().to_string()).collect();
        kinds.dedup();
        kinds.retain(|kind| kind != "checkpoint");
        kinds
    };
    let events = events(dir.path());
    let again = ["start", "failure", "restart"];
    let expected: Vec<&str> =
        [&again[..], &again, &["start", "failure", "gave_up", "start", "passed", "finish"]].concat();
    let found: Vec<String> = kinds(&events).into_iter().filter(|kind| kind != "passed").collect();
    assert_eq!(found, expected.into_iter().filter(|kind| *kind != "passed").collect::<Vec<_>>(), "{events:#?}");
    assert!(count(&events, "passed") > 0, "the record did no harm in the end: {events:#?}");
    assert_eq!(events.last(), Some(&What::Finish { epoch: summary.epoch }));
    let mut last = 0;
    for event in &events {
        if let What::Checkpoint { epoch, records, phases, .. } = event {
            assert!(*epoch > last, "{events:#?}");
            last = *epoch;
            assert!(*records <= FAULTY && phases.total_us() > 0, "{event:?}");
            assert!(phases.syncing_us > 0 && phases.publishing_us > 0, "{event:?}");
        }
    }
    assert_eq!(Some(last), summary.epoch);
}

#[test]
fn the_command_line_prints_the_journal_and_takes_a_policy() {
    let dir = temp();
    let output = dir.path().join("delays");
    let run = |args: &[&str]| {
        let mut command = Command::new(common::example());
        let made = command.arg("--output").arg(&output).args(args).output().expect("the example starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (made.status.success(), text(made.stdout), text(made.stderr))
    };
    let (ok, _, stderr) = run(&["--workers", "2", "--restart", "fixed:5s:3@10/h", "--set-aside-after", "3"]);
    assert!(ok, "{stderr}");
    let (ok, printed, stderr) = run(&["history"]);
    assert!(ok, "{stderr}");
    let rows: Vec<&str> = printed.lines().collect();
    assert!(rows[0].starts_with("time") && rows[1].contains("from the beginning, 2 workers"), "{printed}");
    assert!(rows.last().is_some_and(|row| row.contains("finish")), "{printed}");
    let (_, json, _) = run(&["history", "--json", "--kind", "checkpoint", "--last", "1"]);
    assert_eq!(json.lines().count(), 1, "{json}");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((json["kind"].as_str(), json["records"].as_u64()), (Some("checkpoint"), Some(328_521)));
    let (ok, _, stderr) = run(&["--restart", "sometimes"]);
    assert!(!ok && stderr.contains("`sometimes` is no restart policy"), "{stderr}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Disks that are full or fail

/// A file system of its own, as long as it lives.
#[cfg(target_os = "linux")]
struct Tmpfs(PathBuf);

#[cfg(target_os = "linux")]
impl Tmpfs {
    fn mount(dir: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(dir).expect("makes");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "millstream-test"]).arg(dir);
        mount.stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Tmpfs(dir.to_path_buf()))
    }

    fn grow(&self, size: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status();
        assert!(status.expect("mount runs").success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Everything on one small disk: state, output and journal. With every fill level another write is the one that fails.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_waited_for_and_nothing_is_lost() {
    const COUNT: u64 = 30_000;
    let outer = temp();
    let (dir, mut failed, rounds) = (outer.path().join("small"), 0, 6 * effort());
    for round in 0..rounds {
        let size = format!("{}k", 1_200 + round * 1_500 / rounds);
        let Some(disk) = Tmpfs::mount(&dir, &size) else {
            println!("SKIPPED: this user may not mount a tmpfs");
            return;
        };
        let (checkpoints, output) = (dir.join("checkpoints"), dir.join("out"));
        let job = Job::new("full")
            .workers(2)
            .batch_size(200)
            .checkpoint_dir(&checkpoints)
            .checkpoint_every(ms(20))
            .restart(RestartPolicy::exponential(ms(20), ms(200)));
        job.source(Generator::new(COUNT, |n| n).splits(2).rate(60_000.0), Watermarks::monotonous(at))
            .key_by(|n| *n)
            // Does not compress.
            .fold([0u64; 8], |state, n| {
                *state = std::array::from_fn(|i| n.wrapping_add(7 + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            })
            .map(|(n, state)| (n, state[0]))
            .sink(FileSink::json_lines(&output));
        let handle = job.start().expect("there is room to start");
        until("the disk is full", || handle.status().restarts > 1 || handle.is_finished());
        assert!(!handle.is_finished(), "{size}: {:?}", handle.wait());
        let store = CheckpointStore::new(&checkpoints);
        if let Some(epoch) = store.epochs().expect("lists").last() {
            store.verify(*epoch).expect("the newest is intact");
        }
        disk.grow("200m");
        let freed = Instant::now();
        let summary = within(handle, SOON).expect("goes on");
        assert!(freed.elapsed() < Duration::from_secs(10), "{size}: {:?}", freed.elapsed());
        failed += summary.restarts;
        let row = |n: u64| format!("[{n},{}]", n.wrapping_add(7).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        assert_same(lines(&output), (0..COUNT).map(row).collect(), &size);
        let errors: Vec<String> = events(&checkpoints)
            .into_iter()
            .filter_map(|what| match what {
                What::Failure { error, poison, .. } => {
                    assert!(!poison, "a full disk is no record's fault");
                    Some(error)
                }
                _ => None,
            })
            .collect();
        assert_eq!(errors.len() as u64, summary.restarts, "{size}: what could not be written was written later");
        for error in &errors {
            assert!(error.contains("the disk is full (") && error.contains("bytes are free)"), "{size}: {error}");
        }
        drop(disk);
    }
    assert!(failed >= 2 * rounds, "{failed}");
}

/// What a child process of these tests does: `MILLSTREAM_CHILD` says what, `MILLSTREAM_CHILD_DIR` where.
#[test]
fn child() {
    let Ok(what) = std::env::var("MILLSTREAM_CHILD") else { return };
    let dir = PathBuf::from(std::env::var("MILLSTREAM_CHILD_DIR").expect("a directory"));
    let (checkpoints, output) = (dir.join("checkpoints"), dir.join("out"));
    let (waits, poison) = (what == "waits", what == "poison");
    let policy =
        if waits { RestartPolicy::fixed(Duration::from_secs(600), 5) } else { RestartPolicy::fixed(ms(5), 100) };
    let mut job = Job::new("child").workers(2).checkpoint_dir(checkpoints).checkpoint_every(ms(20)).restart(policy);
    job.settings_mut().set_aside_after = poison.then_some(2);
    job.source(Generator::new(CHILD, |n| n).splits(2).rate(40_000.0), Watermarks::monotonous(at))
        .map(move |n| {
            assert!(!waits || n < 2_000, "boom");
            assert!(!poison || n != POISON, "poison");
            n
        })
        .key_by(|n| n % 500)
        .fold(0, |sum, n| *sum += n)
        .map(|(_, sum)| sum)
        .sink(FileSink::json_lines(output));
    // A start that meets the fault is refused; whoever started it tries again.
    let Ok(handle) = job.start() else { return fs::write(dir.join("refused"), "").expect("writes") };
    handle.stop_on_ctrl_c();
    handle.wait().expect("it goes on until it is done");
}

const CHILD: u64 = 8_000;

/// The record that a child of the kind `poison` fails on.
const POISON: u64 = 4_321;

/// What a child writes that reads these numbers.
fn sums(numbers: impl Iterator<Item = u64>) -> Vec<String> {
    let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
    let each = numbers.map(|n| {
        let sum = sums.entry(n % 500).or_default();
        *sum += n;
        sum.to_string()
    });
    each.collect()
}

fn child_command(program: &Path, what: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("MILLSTREAM_CHILD", what).env("MILLSTREAM_CHILD_DIR", dir);
    command.stdout(std::process::Stdio::null());
    command
}

fn own_program() -> PathBuf {
    std::env::current_exe().expect("the test's own path")
}

/// One sync after another fails with EIO, on every thread: the attempt is over, and the next one makes up for it.
#[cfg(target_os = "linux")]
#[test]
fn a_sync_that_fails_is_never_acknowledged() {
    if !common::strace_works() {
        return;
    }
    let expected = sums(0..CHILD);
    let mut failures = 0;
    // The later ones are the coordinator's only, who does the same ones for every checkpoint: here are those of one.
    let some = [1, 2, 3, 6, 9, 14, 19, 36, 37, 38, 39, 40, 41, 42, 43];
    for when in (1..60).filter(|when| effort() > 1 || some.contains(when)) {
        let (dir, mut over) = (temp(), 0);
        let log = dir.path().join("strace");
        let mut strace = child_command(Path::new("strace"), "eio", dir.path());
        strace.args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-e"]);
        strace.arg(format!("inject=fsync,fdatasync:error=EIO:when={when}")).arg("-o").arg(&log);
        let status = strace.arg(own_program()).args(["--exact", "child"]).status().expect("strace runs");
        assert!(status.success(), "sync {when}: {status}");
        if dir.path().join("refused").exists() {
            over += 1;
            let mut again = child_command(&own_program(), "eio", dir.path());
            let status = again.args(["--exact", "child"]).status().expect("runs");
            assert!(status.success(), "sync {when}: {status}");
        }
        let events = events(&dir.path().join("checkpoints"));
        for event in &events {
            if let What::Failure { error, poison, .. } = event {
                assert!(!poison && error.to_lowercase().contains("input/output error"), "sync {when}: {error}");
                over += 1;
            }
        }
        assert_same(lines(&dir.path().join("out")), expected.clone(), &format!("sync {when}"));
        let injected = fs::read_to_string(&log).expect("a log").matches("(INJECTED)").count();
        assert!(injected == 0 || over > 0, "sync {when} failed and nobody minded");
        failures += over;
    }
    assert!(failures >= 8, "only {failures} failures");
}

/// Killed at a call that makes something durable, and started again: whatever was decided by then, in the end exactly the record that kills
/// is missing.
#[cfg(target_os = "linux")]
#[test]
fn a_decision_to_set_aside_survives_a_kill_at_any_step() {
    if !common::strace_works() {
        return;
    }
    let expected = sums((0..CHILD).filter(|n| *n != POISON));
    let mut killed = 0;
    for when in (1..40).step_by(if effort() > 1 { 1 } else { 5 }) {
        let dir = temp();
        let mut strace = child_command(Path::new("strace"), "poison", dir.path());
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync,rename", "-e"]);
        strace.arg(format!("inject=fsync,fdatasync,rename:signal=KILL:when={when}"));
        strace.stderr(std::process::Stdio::null());
        let status = strace.arg(own_program()).args(["--exact", "child"]).status().expect("strace runs");
        killed += u64::from(!status.success());
        let mut again = child_command(&own_program(), "poison", dir.path());
        again.stderr(std::process::Stdio::null());
        let status = again.args(["--exact", "child"]).status().expect("runs");
        assert!(status.success(), "call {when}: {status}");
        assert_same(lines(&dir.path().join("out")), expected.clone(), &format!("call {when}"));
        let found = set_aside(&dir.path().join("checkpoints")).expect("reads");
        let numbers: Vec<_> = found.iter().map(|entry| (entry.record.record, entry.failures)).collect();
        assert_eq!(numbers, [(POISON / 2 + 1, 2)], "call {when}: odd numbers are the second split");
    }
    assert!(killed >= 5, "only {killed} were killed");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_job_that_waits_to_restart() {
    let dir = temp();
    let mut command = child_command(&own_program(), "waits", dir.path());
    let mut child = command.args(["--exact", "child"]).stderr(std::process::Stdio::null()).spawn().expect("starts");
    let checkpoints = dir.path().join("checkpoints");
    until("it waits", || journal::events(&checkpoints).is_ok_and(|e| e.iter().any(|e| e.what.kind() == "restart")));
    let asked = Instant::now();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill starts").success());
    let status = loop {
        if let Some(status) = child.try_wait().expect("the state of a child") {
            break status;
        }
        if asked.elapsed() > SOON {
            let _ = child.kill();
            panic!("no end after Ctrl-C");
        }
        sleep(ms(1));
    };
    assert!(status.success(), "{status}");
    assert_eq!(events(&checkpoints).last().map(What::kind), Some("stop"));
}
