//! Calls to the outside, against oracles that make none: whatever they take, however often they fail, on any number of workers and through
//! crashes, what comes out is what a `map` would give; and what is promised of bounds, time-outs, repetitions and ends.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test calls` looks longer than the default of 200 cases. Nothing here hangs on how long something takes: calls
//! wait for channels and for each other, and a job that is not done after half a minute fails its test.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use millstream::call::Call;
use millstream::handle::{CallStatus, OperatorStatus};
use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Fault, Item, Script, cases, differences, finish, judge, quiet, run};
use proptest::prelude::*;

const SOON: Duration = Duration::from_secs(30);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < SOON, "{what}");
        std::thread::park_timeout(Duration::from_micros(100));
    }
}

fn status_of(handle: &JobHandle, name: &str) -> OperatorStatus {
    let status = handle.status();
    status.operators.into_iter().find(|operator| operator.name == name).expect("an operator of the job")
}

fn calls_of(summary: &Summary, name: &str) -> CallStatus {
    summary
        .operators
        .iter()
        .find(|operator| operator.name == name)
        .expect("an operator of the job")
        .calls
}

/// Numbers as a source, each its own event time in seconds.
fn numbers(job: &Job, numbers: impl IntoIterator<Item = u64>) -> Stream<u64> {
    let seconds = |n: &u64| EventTime::from_secs(i64::try_from(*n).expect("small"));
    job.source(from_vec(numbers.into_iter().collect()), Watermarks::monotonous(seconds))
}

// ---- random calls ----------------------------------------------------------------------------------------------------

/// How calls are made in a case, and what becomes of them.
#[derive(Clone, Debug)]
struct Way {
    threads: usize,
    in_flight: usize,
    ordered: bool,
    retries: u32,
    /// From this and a record it follows how long its calls take and how often they fail.
    seed: u64,
    /// How many of 10 records have failing calls, and of these how many of 10 fail for good.
    failing: u64,
    lost: u64,
}

fn ways() -> impl Strategy<Value = Way> {
    let threads = prop::sample::select(vec![1usize, 2, 4, 16]);
    let in_flight = prop::sample::select(vec![1usize, 2, 5, 100]);
    (threads, in_flight, any::<bool>(), 0u32..4, any::<u64>(), 0u64..5, 0u64..5).prop_map(
        |(threads, in_flight, ordered, retries, seed, failing, lost)| Way {
            threads,
            in_flight,
            ordered,
            retries,
            seed,
            failing,
            lost,
        },
    )
}

/// Mixes numbers to one that looks random.
fn mix(numbers: [u64; 3]) -> u64 {
    numbers.into_iter().fold(0x9e37_79b9_7f4a_7c15, |mixed, n| {
        let x = (mixed ^ n).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (x >> 32)
    })
}

impl Way {
    fn of(&self, item: &Item, what: u64) -> u64 {
        mix([self.seed ^ what, u64::from(item.split), item.number])
    }

    /// How many attempts for this record fail.
    fn fails(&self, item: &Item) -> u32 {
        match self.of(item, 1) % 10 {
            n if n >= self.failing => 0,
            _ if self.of(item, 2) % 10 < self.lost => u32::MAX,
            _ => (self.of(item, 3) % 3 + 1) as u32,
        }
    }

    /// How many attempts there are.
    fn attempts(&self, item: &Item) -> u32 {
        self.fails(item).min(self.retries).saturating_add(1)
    }

    fn is_lost(&self, item: &Item) -> bool {
        self.fails(item) > self.retries
    }

    fn calls(&self, outside: &Arc<Outside>) -> Calls<impl Call<In = Item, Out = Item> + use<>> {
        let (way, outside) = (self.clone(), Arc::clone(outside));
        let calls = Calls::to(move |item: &Item| outside.call(&way, item));
        let calls = calls.threads(self.threads).in_flight(self.in_flight);
        let calls = calls.retry(Retry::times(self.retries).backoff(Duration::from_micros(200)));
        if self.ordered { calls.ordered() } else { calls }
    }
}

/// What is called: counts.
#[derive(Default)]
struct Outside {
    attempts: Mutex<HashMap<(u32, u64), u32>>,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
}

impl Outside {
    fn call(&self, way: &Way, item: &Item) -> Result<Item, Error> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_inside.fetch_max(inside, Ordering::SeqCst);
        let mut attempts = self.attempts.lock().expect("no panic in here");
        let attempt = attempts.entry((item.split, item.number)).or_default();
        *attempt += 1;
        let attempt = *attempt;
        drop(attempts);
        match mix([way.of(item, 4), attempt.into(), 0]) % 8 {
            0..4 => {}
            long => std::thread::park_timeout(Duration::from_micros((long - 3) * 60)),
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
        if attempt <= way.fails(item) {
            assert!(way.of(item, 5).is_multiple_of(2), "boom");
            return Err(Error::external("busy"));
        }
        Ok(*item)
    }
}

/// What windows behind calls give: what they would without calls, but only if each record has kept its time and the watermark that it was
/// behind.
#[derive(Clone)]
struct Behind {
    windows: Collected<(u64, Window, (u64, i128))>,
    late: Collected<Item>,
}

impl Behind {
    fn new() -> Self {
        Behind { windows: Collected::new(), late: Collected::new() }
    }

    fn connect(&self, case: &Case, items: Stream<Item>) {
        let sum = Sum::of(|item: &Item| i128::from(item.value));
        let windowed = items.key_by(|item| item.key).window(sliding(case.shape)).aggregate_with_late((Count, sum));
        windowed.0.sink(self.windows.sink());
        windowed.1.sink(self.late.sink());
    }

    fn compare(&self, case: &Case) -> Result<(), TestCaseError> {
        let (windows, late) = oracle::window(&judge(&case.splits, case.delay), case.shape);
        let naive = |items: &Vec<Item>| format!("{:?}", (items.len(), total(items)));
        let expected = windows.iter().map(|((key, window), items)| ((*key, *window), naive(items))).collect();
        let wrong = differences(&by_window(self.windows.take()), &expected);
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
        prop_assert_eq!(sorted(values(self.late.take())), late);
        Ok(())
    }
}

/// The results, the failed records, and windows over both together.
#[derive(Clone)]
struct Outlets {
    results: Collected<Item>,
    failed: Collected<Failed<Item>>,
    behind: Behind,
}

impl Outlets {
    fn new() -> Self {
        Outlets { results: Collected::new(), failed: Collected::new(), behind: Behind::new() }
    }

    fn connect(
        &self,
        case: &Case,
        items: Stream<Item>,
        calls: Calls<impl Call<In = Item, Out = Item>>,
        faults: &[Fault],
    ) {
        let (results, failed) = items.call_with_failed(calls);
        let results = results.inspect(strikes(faults));
        results.clone().sink(self.results.sink());
        failed.clone().sink(self.failed.sink());
        self.behind.connect(case, results.union([failed.map(|failed| failed.record)]));
    }

    fn compare(&self, case: &Case, way: &Way) -> Result<(), TestCaseError> {
        let all: Vec<Item> = case.splits.iter().flatten().copied().collect();
        let (lost, fine): (Vec<Item>, Vec<Item>) = all.iter().copied().partition(|item| way.is_lost(item));
        let results = self.results.take();
        prop_assert!(results.iter().all(|record| record.at == record.value.time()));
        if way.ordered {
            in_order_of_input(results.iter().map(|record| &record.value))?;
        }
        prop_assert_eq!(sorted(values(results)), sorted(fine));
        let failed = self.failed.take();
        prop_assert!(failed.iter().all(|record| record.at == record.value.record.time()));
        for Failed { record, error, attempts } in failed.iter().map(|record| &record.value) {
            prop_assert_eq!(*attempts, way.retries + 1);
            prop_assert!(
                error == if way.of(record, 5).is_multiple_of(2) { "busy" } else { "panicked: boom" },
                "{}",
                error
            );
        }
        let failed = failed.into_iter().map(|record| record.value.record).collect();
        prop_assert_eq!(sorted(failed), sorted(lost));
        self.behind.compare(case)
    }
}

/// A split is read by one worker, so its records come out as they stand in it.
fn in_order_of_input<'a>(items: impl Iterator<Item = &'a Item>) -> Result<(), TestCaseError> {
    let mut last = HashMap::new();
    for item in items {
        let before = last.insert(item.split, item.number);
        prop_assert!(before.is_none_or(|before| before < item.number), "{:?} after {:?}", item, before);
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn calls_are_a_map_that_takes_its_time(case in any_case(3, 80), setups in setups(), way in ways()) {
        quiet();
        for setup in &setups {
            let (outlets, outside) = (Outlets::new(), Arc::new(Outside::default()));
            let dir = tempdir();
            let job = new_job(setup, &dir);
            let source = Script::new(case.splits.clone()).pace(setup.pace);
            outlets.connect(&case, job.source(source, watermarks(case.delay)), way.calls(&outside), &[]);
            let summary = run(job).expect("the job finishes");
            outlets.compare(&case, &way)?;

            let items = || case.splits.iter().flatten();
            let attempts = outside.attempts.lock().expect("no panic");
            for item in items() {
                prop_assert_eq!(attempts.get(&(item.split, item.number)), Some(&way.attempts(item)), "{:?}", item);
            }
            let made: u64 = items().map(|item| u64::from(way.attempts(item))).sum();
            let lost = items().filter(|item| way.is_lost(item)).count() as u64;
            let calls = calls_of(&summary, "call-1");
            prop_assert_eq!((calls.made, calls.failed, calls.timed_out), (made, lost, 0));
            prop_assert_eq!(calls.retried, made - items().count() as u64);
            prop_assert_eq!((calls.in_flight, calls.waiting), (0, 0));
            let most = outside.most_inside.load(Ordering::SeqCst);
            prop_assert!(most <= way.threads.min(way.in_flight), "{} at the same time", most);
        }
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        case in any_case(3, 80),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
        way in ways(),
        inside in any::<bool>(),
    ) {
        let outlets = Outlets::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            let source = Script::new(case.splits.clone()).pace(setup.pace).faults(faults);
            let items = job.source(source, watermarks(case.delay));
            let in_call = faults.to_vec();
            let struck = Calls::to(move |item: &Item| {
                if inside {
                    in_call.iter().for_each(|fault| fault.strike(item));
                }
                Ok::<_, Error>(*item)
            });
            let calls = way.calls(&Arc::default());
            let behind = if inside { &[] } else { faults };
            outlets.connect(&case, items.call(if way.ordered { struck.ordered() } else { struck }), calls, behind);
        })?;
        outlets.compare(&case, &way)?;
    }
}

// ---- the bound and flow control --------------------------------------------------------------------------------------

/// Lets calls through in groups of `size`: each waits until so many are inside, so fewer would wait for ever, and more are noticed.
struct Groups {
    size: usize,
    inside: Mutex<(usize, usize)>,
    full: Condvar,
}

impl Groups {
    fn of(size: usize) -> Arc<Self> {
        Arc::new(Groups { size, inside: Mutex::default(), full: Condvar::new() })
    }

    fn pass(&self) {
        let mut inside = self.inside.lock().expect("no panic");
        inside.0 += 1;
        if inside.0 == self.size {
            *inside = (0, inside.1 + 1);
            self.full.notify_all();
            return;
        }
        let group = inside.1;
        drop(self.full.wait_while(inside, |inside| inside.1 == group).expect("no panic"));
    }
}

/// Numbers in several splits, each its own event time in seconds.
fn splits(job: &Job, splits: u64, each: u64) -> Stream<u64> {
    let split = |split| (0..each).map(|n| split + n * splits).collect();
    let seconds = |n: &u64| EventTime::from_secs(i64::try_from(*n).expect("small"));
    job.source(Script::new((0..splits).map(split).collect()), Watermarks::monotonous(seconds))
}

fn in_order<C>(calls: Calls<C>, ordered: bool) -> Calls<C> {
    if ordered { calls.ordered() } else { calls }
}

#[test]
fn as_many_calls_as_may_be_are_in_flight_and_no_more() {
    for ordered in [false, true] {
        for (threads, in_flight, workers) in [(8, 3, 1), (3, 100, 1), (8, 3, 3), (1, 100, 2), (100, 1, 8), (16, 8, 8)] {
            let size = in_flight.min(threads);
            let (groups, inside) = (Groups::of(size), Arc::new(AtomicUsize::new(0)));
            let results = Collected::new();
            let job = Job::new("bound").workers(workers).batch_size(5);
            let calls = Calls::to(move |n: &u64| {
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                groups.pass();
                inside.fetch_sub(1, Ordering::SeqCst);
                assert!(now <= size, "{now} at the same time");
                Ok::<_, Error>(*n)
            });
            let (splits_of, each) = (workers as u64, 10 * size as u64);
            let calls = in_order(calls.threads(threads).in_flight(in_flight), ordered);
            splits(&job, splits_of, each).call(calls).sink(results.sink());
            run(job).expect("finishes");
            assert!(sorted(results.values()).into_iter().eq(0..splits_of * each), "{threads} {in_flight} {workers}");
        }
    }
}

/// A gate that calls go through one by one, as they are let.
fn gate() -> (Sender<()>, impl Fn() + Clone + Send + Sync + 'static) {
    let (let_in, permits) = unbounded();
    (let_in, move || permits.recv_timeout(SOON).expect("somebody lets it in"))
}

#[test]
fn sources_stop_reading_while_calls_wait_and_take_epochs_all_the_same() {
    for workers in [1, 2] {
        let dir = tempdir();
        let job = Job::new("pressed")
            .workers(workers)
            .batch_size(1)
            .checkpoint_dir(dir.path())
            .checkpoint_every(ms(1));
        let ((let_in, pass), results) = (gate(), Collected::new());
        let calls = Calls::to(move |n: &u64| {
            pass();
            Ok::<_, Error>(*n)
        });
        splits(&job, 2, 150).call(calls.threads(2).in_flight(4)).sink(results.sink());
        let handle = job.start().expect("starts");
        // Each of two sources reads up to 4 batches before it looks again.
        until("as much waits as may", || status_of(&handle, "call-1").calls.waiting > 4);
        until("epochs are taken", || {
            let source = status_of(&handle, "source-1");
            source.instances.iter().all(|(epoch, _)| *epoch == 2)
        });
        assert!(status_of(&handle, "call-1").records_in < 30);
        for _ in 0..300 {
            let_in.send(()).expect("there are calls");
            let calls = status_of(&handle, "call-1").calls;
            assert!(calls.waiting <= 4 + 8 && calls.in_flight <= 4, "{calls:?}");
        }
        finish(handle).expect("finishes");
        assert!(sorted(results.values()).into_iter().eq(0..300));
    }
}

// ---- epochs and event time -------------------------------------------------------------------------------------------

#[test]
fn records_of_the_next_epoch_are_called_while_one_of_this_is_waited_for() {
    for ordered in [false, true] {
        let dir = tempdir();
        let job = Job::new("epochs").workers(2).checkpoint_dir(dir.path()).checkpoint_every(ms(1));
        let (sender, source) = channel(10);
        let (called, of_second) = unbounded();
        let results = Collected::new();
        let calls = Calls::to(move |n: &u64| {
            match n {
                0 => of_second.recv_timeout(SOON).expect("the second record is called"),
                _ => called.send(()).expect("the first waits"),
            }
            Ok::<_, Error>(*n)
        });
        job.source(source, Watermarks::monotonous(|_: &u64| EventTime::EPOCH))
            .call(in_order(calls, ordered))
            .sink(results.sink());
        let handle = job.start().expect("starts");
        sender.send(0).expect("runs");
        let epoch = |handle: &JobHandle| status_of(handle, "source-1").instances.iter().map(|(epoch, _)| *epoch).min();
        until("the epoch of the first ends", || epoch(&handle) == Some(2));
        until("the first is called", || status_of(&handle, "call-1").calls.in_flight == 1);
        sender.send(1).expect("runs");
        drop(sender);
        finish(handle).expect("finishes");
        assert_eq!(results.values(), [0, 1], "by epochs");
    }
}

#[test]
fn no_watermark_and_no_checkpoint_overtakes_a_call() {
    let dir = tempdir();
    let job = Job::new("held").checkpoint_dir(dir.path()).checkpoint_every(ms(1));
    let ((let_in, pass), windows) = (gate(), Collected::new());
    let (came, others) = unbounded();
    let calls = Calls::to(move |n: &u64| {
        if *n == 5 {
            pass();
        }
        Ok::<_, Error>(*n)
    });
    numbers(&job, [5, 100, 200, 300])
        .call(calls)
        .inspect(move |n| came.send(*n).expect("the test looks"))
        .key_by(|_| 0)
        .window(Tumbling::of(EventSpan::secs(10)))
        .aggregate(Sum::of(|n: &u64| *n))
        .name("sums")
        .map(|(_, _, sum)| sum)
        .sink(windows.sink());
    let handle = job.start().expect("starts");
    let got: BTreeSet<u64> = (0..3).map(|_| others.recv_timeout(SOON).expect("three are not held")).collect();
    assert_eq!(got, BTreeSet::from([100, 200, 300]));
    // The source has ended, and the coordinator wants the last epoch closed.
    until("the end", || {
        status_of(&handle, "source-1")
            .instances
            .iter()
            .all(|(epoch, at)| *epoch > 1 && *at == EventTime::MAX)
    });
    for _ in 0..200 {
        let sums = status_of(&handle, "sums");
        assert_eq!((sums.windows_fired, sums.instances[0].0), (0, 1));
        assert!(sums.instances[0].1 <= EventTime::from_secs(5), "{sums:?}");
        std::thread::yield_now();
    }
    let_in.send(()).expect("it waits");
    finish(handle).expect("finishes");
    assert_eq!(windows.values(), [5, 100, 200, 300]);
}

#[test]
fn ordered_results_wait_for_the_one_before_and_others_do_not() {
    for ordered in [false, true] {
        let job = Job::new("order").batch_size(3);
        let ((let_in, pass), (came, results)) = (gate(), unbounded());
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let calls = Calls::to(move |n: &u64| {
            count.fetch_add(1, Ordering::SeqCst);
            if *n == 4 {
                pass();
            }
            Ok::<_, Error>(*n)
        });
        numbers(&job, 0..10)
            .call(in_order(calls, ordered))
            .sink(for_each(move |n: Record<u64>| came.send(n.value).expect("read")));
        let handle = job.start().expect("starts");
        let before: BTreeSet<u64> =
            (0..if ordered { 4 } else { 9 }).map(|_| results.recv_timeout(SOON).expect("not held")).collect();
        until("all are called, also those behind it", || begun.load(Ordering::SeqCst) == 10);
        assert!(before.into_iter().eq((0..10).filter(|n| if ordered { *n < 4 } else { *n != 4 })));
        assert!(results.try_recv().is_err());
        let_in.send(()).expect("it waits");
        finish(handle).expect("finishes");
        assert!(results.iter().eq(if ordered { 4..10 } else { 4..5 }));
    }
}

// ---- time-outs, repetitions, rate ------------------------------------------------------------------------------------

/// Longer than a call that does nothing takes, on a machine with too much to do.
const TIMEOUT: Duration = Duration::from_millis(1_000);

#[test]
fn what_a_call_returns_after_its_time_is_thrown_away() {
    for ordered in [false, true] {
        let hang = |n: u64| n % 10 == 3;
        let (release, hanging) = unbounded::<()>();
        let (attempts, results) = (Arc::new(Mutex::new(HashMap::new())), Collected::new());
        let returned = Arc::new(AtomicUsize::new(0));
        let (of_call, count) = (Arc::clone(&attempts), Arc::clone(&returned));
        let release = Mutex::new(Some(release));
        let calls = Calls::to(move |n: &u64| {
            let mut attempts = of_call.lock().expect("no panic");
            let attempt = attempts.entry(*n).or_insert(0);
            *attempt += 1;
            let attempt = *attempt;
            drop(attempts);
            if hang(*n) && attempt == 1 {
                // Until all second attempts have begun.
                let _ = hanging.recv_timeout(SOON);
                count.fetch_add(1, Ordering::SeqCst);
            }
            if hang(*n) && attempt == 2 && count.load(Ordering::SeqCst) == 0 {
                let seconds = of_call.lock().expect("no panic").iter().filter(|(n, a)| hang(**n) && **a == 2).count();
                if seconds == 3 {
                    drop(release.lock().expect("no panic").take());
                }
                until("the first ones return", || count.load(Ordering::SeqCst) == 3);
            }
            Ok::<_, Error>((*n, attempt))
        });
        let job = Job::new("timeouts").workers(2);
        let calls = calls.timeout(TIMEOUT).threads(3).retry(Retry::times(1).backoff(ms(1)));
        splits(&job, 2, 15).call(in_order(calls, ordered)).sink(results.sink());
        let summary = run(job).expect("finishes");
        assert!(sorted(results.values()).into_iter().eq((0..30).map(|n| (n, if hang(n) { 2 } else { 1 }))));
        let calls = calls_of(&summary, "call-1");
        assert_eq!((calls.made, calls.timed_out, calls.retried, calls.failed), (33, 3, 3, 0));
    }
}

#[test]
fn a_record_whose_calls_all_take_too_long_has_failed() {
    let (release, hanging) = unbounded::<()>();
    let (results, failed) = (Collected::new(), Collected::new());
    let job = Job::new("timeouts");
    let calls = Calls::to(move |n: &u64| {
        if *n == 2 {
            let _ = hanging.recv_timeout(SOON);
        }
        Ok::<_, Error>(*n)
    });
    let (fine, lost) = numbers(&job, 0..5).call_with_failed(calls.timeout(TIMEOUT).threads(2));
    fine.sink(results.sink());
    lost.sink(failed.sink());
    let summary = run(job).expect("finishes, though a call hangs");
    assert_eq!(sorted(results.values()), [0, 1, 3, 4]);
    let error = format!("the call did not return within {TIMEOUT:?}");
    assert_eq!(failed.values(), [Failed { record: 2, error, attempts: 1 }]);
    let calls = calls_of(&summary, "call-1");
    assert_eq!((calls.made, calls.timed_out, calls.retried, calls.failed), (5, 1, 0, 1));
    drop(release);
}

#[test]
fn when_more_threads_hang_than_are_replaced_the_job_fails() {
    let (release, hanging) = unbounded::<()>();
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    let job = Job::new("hanging").workers(2);
    let calls = Calls::to(move |n: &u64| {
        count.fetch_add(1, Ordering::SeqCst);
        let _ = hanging.recv_timeout(SOON);
        Ok::<_, Error>(*n)
    });
    splits(&job, 2, 50).call_with_failed(calls.timeout(ms(20)).threads(3)).0.sink(for_each(|_| ()));
    let error = run(job).expect_err("nothing returns");
    assert_eq!((error.kind(), error.operator()), (ErrorKind::External, Some("call-1")));
    assert!(error.to_string().contains("4 calls hang, none of which returned within 20ms"), "{error}");
    let begun = begun.load(Ordering::SeqCst);
    assert!((4..=6).contains(&begun), "{begun} threads");
    drop(release);
}

#[test]
fn errors_that_are_not_worth_it_are_not_tried_again() {
    let (results, failed) = (Collected::new(), Collected::new());
    let job = Job::new("errors");
    let calls = Calls::to(|n: &u64| match n % 4 {
        0 => Ok(*n),
        1 => Err("no such thing"),
        2 => Err("busy"),
        _ => panic!("boom"),
    });
    quiet();
    let calls = calls.retry(Retry::times(2).backoff(ms(1))).retry_if(|error| *error == "busy");
    let (fine, lost) = numbers(&job, 0..40).call_with_failed(calls);
    fine.sink(results.sink());
    lost.map(|failed| (failed.record, failed.attempts, failed.error)).sink(failed.sink());
    let summary = run(job).expect("finishes");
    assert!(sorted(results.values()).into_iter().eq((0..40).step_by(4)));
    let said = |n: u64| match n % 4 {
        1 => (n, 1, "the call failed: no such thing".to_string()),
        2 => (n, 3, "the call failed: busy".to_string()),
        _ => (n, 3, "panicked: boom".to_string()),
    };
    assert!(sorted(failed.values()).into_iter().eq((0..40).filter(|n| n % 4 > 0).map(said)));
    let calls = calls_of(&summary, "call-1");
    assert_eq!((calls.made, calls.retried, calls.failed), (10 + 10 + 30 + 30, 40, 30));
}

#[test]
fn no_more_calls_begin_within_a_span_than_may() {
    let begun = Instant::now();
    let job = Job::new("rate").workers(3);
    let attempts = AtomicU64::new(0);
    let calls = Calls::to(move |n: &u64| match attempts.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => Err(Error::external("busy")),
        _ => Ok(*n),
    });
    // Repetitions count: each record is called twice or more, all of it 50 times at least.
    let calls = calls.at_most(10, ms(50)).retry(Retry::times(1000).backoff(Duration::ZERO));
    let results = Collected::new();
    splits(&job, 3, 9).call(calls).sink(results.sink());
    let summary = run(job).expect("finishes");
    assert_eq!(results.values().len(), 27);
    let made = calls_of(&summary, "call-1").made;
    assert!(made >= 50, "{made}");
    let spans = u32::try_from((made - 1) / 10).expect("few");
    assert!(begun.elapsed() >= ms(50) * spans, "{made} calls in {:?}", begun.elapsed());
}

// ---- failures --------------------------------------------------------------------------------------------------------

#[test]
fn a_record_that_fails_is_named() {
    quiet();
    for ordered in [false, true] {
        for panics in [false, true] {
            let job = Job::new("fails").workers(2).batch_size(7);
            let calls = Calls::to(move |n: &u64| {
                assert!(!panics || *n != 41, "boom");
                if *n == 41 { Err(Error::user("no such thing")) } else { Ok(*n) }
            });
            let calls = in_order(calls.retry(Retry::times(2).backoff(ms(1))), ordered);
            // Rows and numbers are not the same: the tenth that is called is record 42.
            splits(&job, 1, 60).filter(|n| n % 4 == 1).call(calls).name("ask").sink(for_each(|_| ()));
            let error = run(job).expect_err("fails");
            let said = if panics { "panicked: boom" } else { "no such thing" };
            let said = format!("operator `ask`, record 42 of split `split-0`: {said}\n  it was called 3 times");
            assert_eq!(error.to_string(), said);
            assert_eq!((error.kind(), error.record().map(|record| record.record)), (ErrorKind::User, Some(42)));
        }
    }
}

#[test]
fn records_are_named_behind_calls_as_well() {
    for ordered in [false, true] {
        for of_failed in [false, true] {
            let job = Job::new("behind").workers(2).batch_size(16);
            let calls = Calls::to(|n: &u64| {
                std::thread::park_timeout(Duration::from_micros(mix([*n, 3, 4]) % 500));
                if n % 3 == 2 { Err(Error::data("no")) } else { Ok(*n) }
            });
            let (fine, lost) = splits(&job, 2, 60).filter(|n| n % 4 < 3).call_with_failed(in_order(calls, ordered));
            let check = |what: u64| move |n: u64| if n == what { Err("too bad") } else { Ok(n) };
            fine.try_map(check(if of_failed { 1000 } else { 70 })).sink(for_each(|_| ()));
            lost.map(|failed| failed.record)
                .try_map(check(if of_failed { 41 } else { 1000 }))
                .sink(for_each(|_| ()));
            let error = run(job).expect_err("fails");
            let record = error.record().map(|record| (record.split.as_str(), record.record));
            assert_eq!(record, Some(if of_failed { ("split-1", 21) } else { ("split-0", 36) }), "{error}");
        }
    }
}

#[test]
fn batches_without_records_hold_nothing_back() {
    let (job, results) = (Job::new("empty").batch_size(2), Collected::new());
    let calls = Calls::to(|n: &u64| Ok::<_, Error>(*n));
    numbers(&job, 0..40).filter(|n| *n == 21).call(calls.ordered()).sink(results.sink());
    run(job).expect("finishes");
    assert_eq!(results.values(), [21]);
}

#[test]
fn a_record_that_is_to_blame_is_set_aside_and_one_that_is_not_is_not() {
    let run_with = |blamed: bool| {
        let (dir, results) = (tempdir(), Collected::new());
        let job = Job::new("aside")
            .workers(2)
            .batch_size(3)
            .checkpoint_dir(dir.path())
            .restart(millstream::restart::RestartPolicy::fixed(ms(1), 2))
            .set_aside_after(2);
        let calls = Calls::to(move |n: &u64| match n {
            17 if blamed => Err(Error::user("no such thing")),
            17 => Err(Error::external("down")),
            _ => Ok(*n),
        });
        splits(&job, 2, 20).call(calls).sink(results.sink());
        (run(job), results.values())
    };
    let (summary, results) = run_with(true);
    assert_eq!(summary.expect("finishes").set_aside, 1);
    assert!(sorted(results).into_iter().eq((0..40).filter(|n| *n != 17)));
    let error = run_with(false).0.expect_err("the outside is down");
    assert!(error.to_string().contains("record 9 of split `split-1`: down"), "{error}");
}

#[test]
fn what_nobody_reads_of_failures_does_no_harm() {
    let (job, results) = (Job::new("unread"), Collected::new());
    let calls = Calls::to(|n: &u64| if n.is_multiple_of(2) { Ok(*n) } else { Err("odd") });
    numbers(&job, 0..10).call_with_failed(calls).0.sink(results.sink());
    assert_eq!(calls_of(&run(job).expect("finishes"), "call-1").failed, 5);
    assert_eq!(sorted(results.values()), [0, 2, 4, 6, 8]);
}

// ---- the end ---------------------------------------------------------------------------------------------------------

#[test]
fn a_job_ends_while_its_calls_hang_and_its_threads_end_with_them() {
    quiet();
    for fails in [false, true] {
        let (release, hanging) = unbounded::<()>();
        // Gone when nobody can call any more.
        let alive = Arc::new(());
        let gone = Arc::downgrade(&alive);
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let job = Job::new("hanging").workers(2);
        let calls = Calls::to(move |n: &u64| {
            let _ = &alive;
            if fails && *n == 7 {
                until("others hang", || count.load(Ordering::SeqCst) >= 3);
                panic!("boom");
            }
            count.fetch_add(1, Ordering::SeqCst);
            let _ = hanging.recv_timeout(SOON);
            Ok::<_, Error>(*n)
        });
        splits(&job, 2, 10).call(calls.threads(20)).sink(for_each(|_| ()));
        let handle = job.start().expect("starts");
        until("calls hang", || begun.load(Ordering::SeqCst) >= 3);
        if !fails {
            handle.stop(StopMode::Now);
        }
        let ended = Instant::now();
        let result = finish(handle);
        assert!(ended.elapsed() < SOON / 2, "it waits for calls");
        assert_eq!(result.is_err(), fails);
        assert!(gone.upgrade().is_some(), "there are calls that hang");
        drop(release);
        until("threads end when their calls return", || gone.upgrade().is_none());
    }
}

#[test]
fn a_stop_with_a_checkpoint_waits_for_calls() {
    let (dir, results) = (tempdir(), Collected::new());
    let begun = Arc::new(AtomicUsize::new(0));
    let start = |gate: Option<Receiver<()>>| {
        let job = Job::new("stopped").workers(2).batch_size(4).checkpoint_dir(dir.path());
        let count = Arc::clone(&begun);
        let calls = Calls::to(move |n: &u64| {
            count.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &gate {
                let _ = gate.recv_timeout(SOON);
            }
            Ok::<_, Error>(*n)
        });
        splits(&job, 2, 500).call(calls.threads(4).in_flight(8)).sink(results.sink());
        job.start().expect("starts")
    };
    let (release, gate) = unbounded();
    let handle = start(Some(gate));
    until("calls are made", || begun.load(Ordering::SeqCst) == 4);
    handle.stop(StopMode::WithCheckpoint);
    until("the last epoch is to end", || status_of(&handle, "source-1").instances.iter().all(|(epoch, _)| *epoch == 2));
    assert!(!handle.is_finished());
    drop(release);
    let summary = finish(handle).expect("stops");
    let so_far = results.values().len() as u64;
    assert_eq!((summary.outcome, summary.epoch, so_far), (Outcome::Stopped, Some(1), summary.records_in));
    assert!((4..100).contains(&so_far), "{so_far}");
    let summary = finish(start(None)).expect("finishes");
    assert_eq!((summary.restored, summary.records_in), (Some(1), 1000 - so_far));
    assert!(sorted(results.values()).into_iter().eq(0..1000));
}

#[test]
fn a_restart_goes_on_while_calls_of_the_attempt_before_hang() {
    quiet();
    let (dir, results) = (tempdir(), Collected::new());
    let (release, hanging) = unbounded::<()>();
    let hung = Arc::new(AtomicU32::new(0));
    let job = Job::new("restarted")
        .workers(3)
        .batch_size(4)
        .checkpoint_dir(dir.path())
        .checkpoint_every(ms(1))
        .restart(millstream::restart::RestartPolicy::fixed(ms(1), 3));
    let (of_calls, failed) = (Arc::clone(&hung), AtomicU32::new(0));
    let calls = Calls::to(move |n: &u64| {
        // One hangs in each of the first three attempts; then another fails them.
        if *n == 60 && of_calls.fetch_add(1, Ordering::SeqCst) < 3 {
            let _ = hanging.recv_timeout(SOON);
        }
        if *n == 61 {
            let attempt = failed.fetch_add(1, Ordering::SeqCst) + 1;
            until("60 hangs", || of_calls.load(Ordering::SeqCst) >= attempt);
            assert!(attempt > 3, "boom");
        }
        Ok::<_, Error>(*n)
    });
    splits(&job, 2, 100).call(calls).sink(results.sink());
    let summary = run(job).expect("finishes at last");
    assert_eq!(summary.restarts, 3);
    assert!(sorted(results.values()).into_iter().eq(0..200));
    drop(release);
}

#[test]
fn a_long_job_goes_on_from_the_midst_of_its_input() {
    quiet();
    for ordered in [false, true] {
        let (dir, results) = (tempdir(), Collected::new());
        let mut from = Vec::new();
        for (attempt, workers) in [1, 3, 8, 2].into_iter().enumerate() {
            let job =
                Job::new("long").workers(workers).batch_size(16).checkpoint_dir(dir.path()).checkpoint_every(ms(1));
            let called = Arc::new(AtomicU64::new(0));
            let calls = Calls::to(move |n: &u64| {
                std::thread::park_timeout(Duration::from_micros(mix([*n, 1, 2]) % 100));
                assert!(attempt == 3 || called.fetch_add(1, Ordering::SeqCst) < 700, "boom");
                Ok::<_, Error>(*n)
            });
            splits(&job, 4, 1000).call(in_order(calls.in_flight(20), ordered)).sink(results.sink());
            match run(job) {
                Ok(summary) => from.push(summary.restored),
                Err(error) => assert!(error.to_string().contains("boom"), "{error}"),
            }
        }
        assert!(from[0] > Some(0), "{from:?}");
        assert!(sorted(results.values()).into_iter().eq(0..4000));
    }
}

// ---- tables outside --------------------------------------------------------------------------------------------------

/// A table outside, which counts how often each key is asked for, and how many keys at once; and never wants to be asked for one twice at once.
#[derive(Default)]
struct Table {
    asked: Mutex<HashMap<u64, u32>>,
    asking: Mutex<BTreeSet<u64>>,
    most: AtomicUsize,
}

impl Table {
    fn has(key: u64) -> Option<u64> {
        (!key.is_multiple_of(3)).then_some(key * 10)
    }

    fn ask(&self, keys: &[u64], fails: u64) -> Result<Vec<Option<u64>>, Error> {
        self.most.fetch_max(keys.len(), Ordering::SeqCst);
        for key in keys {
            assert!(self.asking.lock().expect("no panic").insert(*key), "{key} is being asked for");
        }
        let mut asked = self.asked.lock().expect("no panic");
        let attempts: Vec<u32> =
            keys.iter().map(|key| *asked.entry(*key).and_modify(|n| *n += 1).or_insert(1)).collect();
        drop(asked);
        std::thread::park_timeout(Duration::from_micros(mix([keys[0], attempts[0].into(), 7]) % 400));
        for key in keys {
            self.asking.lock().expect("no panic").remove(key);
        }
        // The first that asks for such a key fails, with all that it asks for.
        if keys.iter().zip(&attempts).any(|(key, attempt)| fails > 0 && key % fails == 0 && *attempt == 1) {
            return Err(Error::external("busy"));
        }
        Ok(keys.iter().map(|key| Self::has(*key)).collect())
    }
}

/// How much is asked for at once and known from before, and how often asking fails.
#[derive(Clone, Debug)]
struct Asking {
    keys: usize,
    entries: Option<usize>,
    fails: u64,
}

fn askings() -> impl Strategy<Value = Asking> {
    let keys = prop::sample::select(vec![1usize, 2, 100]);
    let entries = prop::sample::select(vec![None, Some(1usize), Some(1000)]);
    (keys, entries, 0u64..4).prop_map(|(keys, entries, fails)| Asking { keys, entries, fails })
}

impl Asking {
    fn lookup(&self, table: &Arc<Table>, way: &Way) -> Calls<Lookup<Item, u64, u64, Error>> {
        let (table, fails) = (Arc::clone(table), self.fails);
        let lookup = Lookup::by(|item: &Item| item.key, move |keys: &[u64]| table.ask(keys, fails));
        let lookup = lookup.keys_at_once(self.keys).threads(way.threads).in_flight(way.in_flight);
        let lookup = in_order(lookup.retry(Retry::times(10).backoff(Duration::from_micros(100))), way.ordered);
        match self.entries {
            Some(entries) => lookup.cache(entries, Duration::from_secs(3600)),
            None => lookup,
        }
    }
}

/// What lookups find, and what windows behind them see.
struct FoundOutlets {
    left: Collected<(Item, Option<u64>)>,
    behind: Behind,
}

impl FoundOutlets {
    fn new() -> Self {
        FoundOutlets { left: Collected::new(), behind: Behind::new() }
    }

    fn connect(&self, case: &Case, found: Stream<(Item, Option<u64>)>) {
        found.clone().sink(self.left.sink());
        self.behind.connect(case, found.map(|(item, _)| item));
    }

    fn compare(&self, case: &Case, ordered: bool) -> Result<(), TestCaseError> {
        let found = self.left.take();
        prop_assert!(found.iter().all(|record| record.at == record.value.0.time()));
        if ordered {
            in_order_of_input(found.iter().map(|record| &record.value.0))?;
        }
        let all = case.splits.iter().flatten().map(|item| (*item, Table::has(item.key)));
        prop_assert_eq!(sorted(values(found)), sorted(all.collect()));
        self.behind.compare(case)
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn a_lookup_finds_what_the_table_has(
        case in any_case(3, 80),
        setups in setups(),
        way in ways(),
        asking in askings(),
    ) {
        for setup in &setups {
            let (table, dir) = (Arc::new(Table::default()), tempdir());
            let (found, inner) = (FoundOutlets::new(), Collected::new());
            let items = |job: &Job| {
                let source = Script::new(case.splits.clone()).pace(setup.pace);
                job.source(source, watermarks(case.delay))
            };
            let job = new_job(setup, &dir);
            found.connect(&case, items(&job).look_up(asking.lookup(&table, &way)).left());
            run(job).expect("finishes");

            let most = table.most.load(Ordering::SeqCst);
            prop_assert!(most <= asking.keys.min(way.in_flight), "{} keys at once", most);
            found.compare(&case, way.ordered)?;
            if asking.entries == Some(1000) {
                for (key, asked) in table.asked.lock().expect("no panic").iter() {
                    let failed = asking.fails > 0 && key % asking.fails == 0;
                    // A key may have failed with one that fails, each time another.
                    let most = if asking.fails == 0 { 1 } else { 1 + 6 };
                    prop_assert!(*asked <= most && (!failed || *asked >= 2), "{} was asked for {} times", key, asked);
                }
            }

            let job = new_job(&Setup { checkpoints: false, ..setup.clone() }, &dir);
            items(&job).look_up(asking.lookup(&table, &way)).inner().sink(inner.sink());
            run(job).expect("finishes");
            let all = case.splits.iter().flatten();
            let known = all.filter_map(|item| Some((*item, Table::has(item.key)?))).collect();
            prop_assert_eq!(sorted(inner.values()), sorted(known));
        }
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing_that_is_found(
        case in any_case(3, 80),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
        way in ways(),
        asking in askings(),
        before in any::<bool>(),
    ) {
        let found = FoundOutlets::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            let source = Script::new(case.splits.clone()).pace(setup.pace).faults(faults);
            let items = job.source(source, watermarks(case.delay));
            let (first, then) = if before { (faults, [].as_slice()) } else { ([].as_slice(), faults) };
            let (first, then) = (strikes(first), strikes(then));
            let asked = items.inspect(first).look_up(asking.lookup(&Arc::default(), &way)).left();
            found.connect(&case, asked.inspect(move |(item, _)| then(item)));
        })?;
        found.compare(&case, way.ordered)?;
    }
}

#[test]
fn an_answer_is_asked_for_again_when_it_is_too_old() {
    for ordered in [false, true] {
        let clock = Clock::manual(ProcessingTime::from_micros(0));
        let job = Job::new("old").workers(2).clock(clock.clone());
        let (sender, source) = channel(10);
        let (came, results) = unbounded();
        let asked = AtomicU64::new(0);
        // The table tells how often it was asked.
        let ask = move |keys: &[u64]| {
            let times = asked.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Error>(keys.iter().map(|key| (*key != 7).then_some(times)).collect())
        };
        let lookup = in_order(Lookup::by(|n: &u64| *n, ask).cache(10, ms(10)), ordered);
        job.source(source, Watermarks::monotonous(|_: &u64| EventTime::EPOCH))
            .look_up(lookup)
            .left()
            .sink(for_each(move |found: Record<(u64, Option<u64>)>| came.send(found.value.1).expect("the test looks")));
        let handle = job.start().expect("starts");
        let look = |n: u64| {
            sender.send(n).expect("runs");
            results.recv_timeout(SOON).expect("an answer")
        };
        assert_eq!((look(1), look(1), look(7), look(7)), (Some(0), Some(0), None, None));
        clock.advance(ms(9));
        assert_eq!((look(1), look(2), look(7)), (Some(0), Some(2), None), "that there is nothing is an answer as well");
        clock.advance(ms(1));
        assert_eq!((look(1), look(1), look(2), look(7), look(3)), (Some(3), Some(3), Some(2), None, Some(5)));
        drop(sender);
        let summary = finish(handle).expect("finishes");
        assert_eq!(calls_of(&summary, "look_up-1").made, 6, "what is there needs no call");
    }
}

#[test]
fn a_key_that_hangs_is_asked_for_again_by_others() {
    quiet();
    for panics in [false, true] {
        let (release, hanging) = unbounded::<()>();
        let attempts = AtomicU64::new(0);
        let job = Job::new("hangs").batch_size(1);
        let ask = move |keys: &[u64]| {
            if keys.contains(&5) && attempts.fetch_add(1, Ordering::SeqCst) == 0 {
                assert!(!panics, "boom");
                let _ = hanging.recv_timeout(SOON);
                return Ok(keys.iter().map(|_| Some(666)).collect());
            }
            Ok::<_, Error>(keys.iter().map(|key| Some(*key)).collect())
        };
        let lookup = Lookup::by(|n: &u64| n % 10, ask).retry(Retry::times(2).backoff(ms(1)));
        // One that has panicked is not waited for.
        let lookup = if panics { lookup } else { lookup.timeout(TIMEOUT) };
        let results = Collected::new();
        numbers(&job, 0..100).look_up(lookup.threads(4).keys_at_once(3)).inner().sink(results.sink());
        run(job).expect("finishes");
        assert!(sorted(results.values()).into_iter().eq((0..100).map(|n| (n, n % 10))));
        drop(release);
    }
}

#[test]
fn an_answer_that_comes_too_late_does_not_take_the_place_of_a_newer_one() {
    let job = Job::new("late");
    let (release, hanging) = unbounded::<()>();
    let ((sender, source), (came, results)) = (channel(10), unbounded());
    let (attempts, returned) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let returns = Arc::clone(&returned);
    let ask = move |keys: &[u64]| {
        if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
            let _ = hanging.recv_timeout(SOON);
            returns.fetch_add(1, Ordering::SeqCst);
            return Ok(vec![Some(666)]);
        }
        Ok::<_, Error>(keys.iter().map(|key| Some(*key)).collect())
    };
    let lookup = Lookup::by(|n: &u64| *n, ask).cache(10, SOON).timeout(TIMEOUT).retry(Retry::times(1));
    job.source(source, Watermarks::monotonous(|_: &u64| EventTime::EPOCH))
        .look_up(lookup)
        .inner()
        .sink(for_each(move |found: Record<(u64, u64)>| came.send(found.value).expect("the test looks")));
    let handle = job.start().expect("starts");
    let look = || {
        sender.send(5).expect("runs");
        results.recv_timeout(SOON).expect("an answer")
    };
    assert_eq!(look(), (5, 5));
    drop(release);
    until("the first call returns", || returned.load(Ordering::SeqCst) == 1);
    assert!((0..200).all(|_| look() == (5, 5)));
    drop(sender);
    finish(handle).expect("finishes");
}

#[test]
fn a_lookup_that_fails_names_its_record_or_sends_it_elsewhere() {
    quiet();
    let ask = |keys: &[u64]| match keys {
        [41] => Err(Error::user("no such thing")),
        [43] => Ok(vec![]),
        _ => Ok(keys.iter().map(|key| Some(key * 2)).collect()),
    };
    let lookup = || Lookup::by(|n: &u64| *n, ask).keys_at_once(1);
    let job = Job::new("fails");
    splits(&job, 1, 43).look_up(lookup()).inner().sink(for_each(|_| ()));
    let error = run(job).expect_err("fails");
    assert_eq!(error.to_string(), "operator `look_up-1`, record 42 of split `split-0`: no such thing");
    assert_eq!((error.kind(), error.record().map(|record| record.record)), (ErrorKind::User, Some(42)));

    // Of several it is not known which one is to blame; none must be set aside for another.
    for panics in [false, true] {
        let job = Job::new("fails");
        let ask = move |keys: &[u64]| {
            // The first may be alone; the others come while it is looked up.
            if let [key] = keys {
                std::thread::park_timeout(ms(20));
                return Ok(vec![Some(*key)]);
            }
            assert!(!panics, "boom");
            Err(Error::user("one of them"))
        };
        let pair = Lookup::by(|n: &u64| *n, ask).threads(1).retry(Retry::times(1).backoff(ms(1)));
        splits(&job, 1, 20).look_up(pair).inner().sink(for_each(|_| ()));
        let error = run(job).expect_err("fails");
        assert!(error.to_string().contains("records that were called together: "), "{error}");
        assert_eq!((error.kind(), error.record()), (ErrorKind::User, None), "{error}");
    }

    let (job, results, failed) = (Job::new("fails"), Collected::new(), Collected::new());
    let (fine, lost) = splits(&job, 2, 25).look_up(lookup()).inner_with_failed();
    fine.sink(results.sink());
    lost.map(|failed| (failed.record, failed.error)).sink(failed.sink());
    run(job).expect("finishes");
    assert!(
        sorted(results.values())
            .into_iter()
            .eq((0..50).filter(|n| ![41, 43].contains(n)).map(|n| (n, n * 2)))
    );
    let said = [(41, "no such thing"), (43, "the table was asked for 1 keys and gave 0 answers")];
    assert_eq!(sorted(failed.values()), said.map(|(n, said)| (n, said.to_string())));
}

// ---- what is seen of it ----------------------------------------------------------------------------------------------

#[test]
fn plans_and_status_tell_of_calls() {
    let job = Job::new("plan");
    let (fine, lost) =
        numbers(&job, 0..3).call_with_failed(Calls::to(|n: &u64| Ok::<_, Error>(*n)).threads(3).ordered());
    fine.sink(for_each(|_| ()));
    lost.name("ask").sink(for_each(|_| ()));
    let plan = job.mermaid();
    assert!(plan.contains("ask<br/>call: 3 threads, 1000 in flight, ordered"), "{plan}");
    assert!(plan.contains("-->|failed|") && plan.contains("-->|out|"), "{plan}");
    let summary = run(job).expect("finishes");
    assert_eq!(calls_of(&summary, "ask").made, 3);
    let line = "calls     ask 3, 0 called again, 0 timed out, 0 failed";
    assert!(summary.to_string().contains(line), "{summary}");
}

#[test]
fn a_replay_does_not_compare_what_was_asked_outside() {
    let dir = tempdir();
    let describe = || {
        let job = Job::new("asked").checkpoint_dir(dir.path().join("checkpoints"));
        numbers(&job, 0..10)
            .call(Calls::to(|n: &u64| Ok::<_, Error>(*n)))
            .sink(FileSink::json_lines(dir.path().join("out")));
        job
    };
    run(describe()).expect("finishes");
    let report = describe()
        .replay(&millstream::replay::Replay::from_checkpoint(0).verify().discard())
        .expect("replays");
    let text = report.to_string();
    assert!(text.contains("what `call-1` (call) is told from outside may change"), "{text}");
}

#[cfg(feature = "testing")]
mod kit {
    use super::*;
    use millstream::testing::*;

    #[test]
    fn a_job_with_calls_in_flight_is_not_at_rest() {
        quiet();
        let (kit, input, (sums, failed)) = Kit::of(|input: Stream<(u64, u64)>| {
            let calls = Calls::to(|(key, n): &(u64, u64)| {
                std::thread::park_timeout(Duration::from_micros(mix([*key, *n, 0]) % 2_000));
                assert!(*n != 13, "boom");
                Ok::<_, Error>((*key, *n))
            });
            let (fine, failed) = input.call_with_failed(calls);
            let ask = |keys: &[u64]| Ok::<_, Error>(keys.iter().map(|key| (*key < 9).then_some(*key)).collect());
            let lookup = Lookup::by(|(key, _): &(u64, u64)| *key, ask).cache(10, ms(1));
            let known = fine.look_up(lookup).inner();
            let sum = Sum::of(|((_, n), _): &((u64, u64), u64)| *n);
            let sums = known.key_by(|(_, key)| *key).window(Tumbling::of(EventSpan::secs(10))).aggregate(sum);
            (sums.map(|(key, window, sum)| (key, window.start, sum)), failed.map(|failed| failed.record))
        });
        kit.in_all_modes([
            input.all([(1, (1, 5)), (3, (2, 7)), (12, (1, 13)), (4, (1, 8)), (5, (9, 1))]),
            failed.expect_at([(12, (1, 13))]),
            input.watermark(9),
            sums.expect([]),
            input.watermark(10),
            sums.expect([(1, EventTime::EPOCH, 13), (2, EventTime::EPOCH, 7)]),
            checkpoint(),
            input.all([(15, (1, 1)), (16, (1, 2)), (17, (1, 3))]),
            crash(),
            input.at(9, (1, 100)),
            input.end(),
            sums.expect([(1, EventTime::from_secs(10), 6)]),
        ]);
    }

    #[test]
    fn a_job_that_fails_while_calls_are_in_flight_is_never_at_rest() {
        for _ in 0..10 {
            let (_release, hanging) = unbounded::<()>();
            let (kit, input, _) = Kit::of(move |input: Stream<u64>| {
                let hanging = hanging.clone();
                let calls = Calls::to(move |n: &u64| {
                    let _ = hanging.recv_timeout(SOON);
                    Ok::<_, Error>(*n)
                });
                input.call_with_failed(calls.timeout(ms(5)).threads(1)).0
            });
            let mut trial = kit.start().expect("starts");
            let error = trial.step(input.all([(1, 1), (1, 2)])).expect_err("more threads hang than are replaced");
            assert!(error.to_string().contains("2 calls hang"), "{error}");
        }
    }
}
