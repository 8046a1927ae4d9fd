//! Random input for jobs with keyed operators, and ways to run them: on any number of workers, in batches of any size, with
//! and without checkpoints and memory, and through crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::prelude::*;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::{Fails, Fault, Item, Pace, Script, Shape, finish, quiet, run};

pub use super::tempdir;

// ---- random input ----------------------------------------------------------------------------------------------------

/// How the times of a split go.
#[derive(Clone, Copy, Debug)]
pub enum Times {
    InOrder,
    SlightlyOut,
    WildlyOut,
    Duplicates,
    AllEqual,
    Boundaries,
    Extreme,
    Jumps,
}

/// A record before its time is known: key, a number from which the time is made, and a value.
pub type Raw = (u64, i32, i64);

/// Input, windows and delay of one case.
#[derive(Clone, Debug)]
pub struct Case {
    pub splits: Vec<Vec<Item>>,
    pub shape: Shape,
    pub delay: i64,
}

/// How a job is run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub workers: usize,
    pub batch: usize,
    pub in_flight: usize,
    pub checkpoints: bool,
    /// With next to no memory for state; only with checkpoints.
    pub limited: bool,
    pub pace: Pace,
}

/// Every way to read the same input.
impl Setup {
    pub fn all() -> impl Iterator<Item = Setup> {
        [1, 2, 3, 8].into_iter().flat_map(|workers| {
            [1, 2, 7, 1024].into_iter().flat_map(move |batch| {
                [false, true].into_iter().map(move |checkpoints| {
                    let in_flight = if batch == 2 { 1 } else { 65_536 };
                    Setup { workers, batch, in_flight, checkpoints, limited: workers != 2, pace: Pace::Full }
                })
            })
        })
    }
}

pub fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = prop_oneof![
        4 => (1i64..40, 1i64..40).prop_map(|(a, b)| (a.max(b), a.min(b))),
        2 => (1i64..40).prop_map(|size| (size, size)),
        2 => (1i64..10, 1i64..8).prop_map(|(slide, times)| (slide * times, slide)),
        1 => Just((1_000_003, 1_000_000)),
        1 => Just((3_600_000_007, 600_000_001)), // coprime: its slices are 1 us long
        1 => Just((3_600_000_000, 600_000_000)),
        1 => Just((i64::MAX, i64::MAX / 3)),
        1 => Just((i64::MAX, i64::MAX)),
    ];
    (sizes, prop_oneof![3 => Just(0), 3 => 0i64..100, 1 => Just(i64::MAX), 1 => Just(86_399_999_999)])
        .prop_map(|((size, slide), offset)| Shape { size, slide, offset })
}

pub fn raw_split(most: usize) -> impl Strategy<Value = (Times, Vec<Raw>)> {
    let times = prop::sample::select(vec![
        Times::InOrder,
        Times::SlightlyOut,
        Times::WildlyOut,
        Times::Duplicates,
        Times::AllEqual,
        Times::Boundaries,
        Times::Extreme,
        Times::Jumps,
    ]);
    let value = prop_oneof![4 => -5_000i64..5_000, 1 => -(1i64 << 50)..1 << 50, 1 => -3i64..3];
    let record = (0u64..6, any::<i32>(), value);
    let length = prop_oneof![1 => Just(0), 4 => 0..30usize, 4 => 0..=most];
    (times, length.prop_flat_map(move |length| prop::collection::vec(record.clone(), length)))
}

pub fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Times for `raws`, on the scale of the windows.
pub fn timed(split: usize, times: Times, raws: &[Raw], shape: Shape) -> Vec<Item> {
    let unit = (shape.slide / 7).max(1);
    let mut clock = 0i64;
    let mut at = |raw: i32| {
        let small = i64::from(raw.rem_euclid(100));
        match times {
            Times::InOrder => {
                clock = clock.saturating_add((small % 5).saturating_mul(unit));
                clock
            }
            Times::SlightlyOut => {
                clock = clock.saturating_add((small % 4).saturating_mul(unit));
                clock.saturating_add((small % 21 - 10).saturating_mul(unit))
            }
            Times::WildlyOut => (i64::from(raw) % 1_000).saturating_mul(unit),
            Times::Duplicates => (small % 4 * 10).saturating_mul(unit),
            Times::AllEqual => shape.size,
            Times::Boundaries => {
                let number = i128::from(small / 3 - 10);
                let near = number * i128::from(shape.slide) + i128::from(shape.offset) + i128::from(small % 3 - 1);
                let end = if raw % 2 == 0 { 0 } else { i128::from(shape.size) };
                i64::try_from((near + end).clamp(i64::MIN.into(), i64::MAX.into())).expect("was clamped")
            }
            Times::Extreme => {
                let far = i64::from(raw.rem_euclid(4)) * unit;
                match small % 6 {
                    0 => i64::MIN.saturating_add(far),
                    1 => i64::MAX.saturating_sub(far),
                    2 => i64::MIN,
                    3 => i64::MAX,
                    4 => far - 2,
                    _ => -far,
                }
            }
            Times::Jumps => {
                let step = if small < 5 { 1_000_000_000_000_000 } else { (small % 8).saturating_mul(unit) };
                clock = clock.saturating_add(step);
                if small > 95 { clock - 1_500_000_000_000_000 } else { clock }
            }
        }
    };
    // Where slices are 1 us long, there are not enough numbers for all: the last two instants share a slice, and windows that
    // would begin before all time do not exist (assign.rs says so).
    let ends = if greatest_common_divisor(shape.size, shape.slide) == 1 {
        i64::MIN + shape.offset % shape.slide + shape.size..=i64::MAX - 1
    } else {
        i64::MIN..=i64::MAX
    };
    let item = |(number, &(key, raw, value)): (usize, &Raw)| Item {
        split: u32::try_from(split).expect("few splits"),
        number: number as u64,
        at: at(raw).clamp(*ends.start(), *ends.end()),
        key,
        value,
    };
    raws.iter().enumerate().map(item).collect()
}

/// Up to `splits` splits of up to `most` records.
pub fn any_case(splits: usize, most: usize) -> impl Strategy<Value = Case> {
    let delay = prop_oneof![
        2 => Just((0, false)),
        3 => (0i64..30).prop_map(|delay| (delay, false)),
        2 => (0i64..30).prop_map(|delay| (delay, true)),
        1 => Just((i64::MAX, false)),
    ];
    (shapes(), delay, prop::collection::vec(raw_split(most), 1..=splits)).prop_map(|(shape, (delay, scaled), raws)| {
        let splits = raws.iter().enumerate().map(|(split, (times, raws))| timed(split, *times, raws, shape));
        let delay = if scaled { delay.saturating_mul((shape.slide / 7).max(1)) } else { delay };
        Case { splits: splits.collect(), shape, delay }
    })
}

/// Splits that are at very different times; half of their records are behind, by up to more than a window.
pub fn late_case(splits: usize, most: usize) -> impl Strategy<Value = Case> {
    let shape =
        (1i64..8, 0i64..60, 0i64..20).prop_map(|(slide, more, offset)| Shape { size: slide + more, slide, offset });
    let records = prop::collection::vec((0u64..6, 0i64..100, -1_000i64..1_000), 0..=most);
    // Where it begins, and how fast it goes on.
    let split = (0i64..200, 1i64..8, records);
    (shape, 0i64..5, prop::collection::vec(split, 2..=splits)).prop_map(|(shape, delay, raws)| {
        let splits = raws.iter().enumerate().map(|(split, (begin, pace, records))| {
            let mut clock = *begin;
            let items = records.iter().enumerate().map(|(number, &(key, raw, value))| {
                clock += raw % pace;
                let back = if raw % 2 == 0 { 0 } else { raw * shape.size / 80 };
                Item { split: split as u32, number: number as u64, at: clock - back, key, value }
            });
            items.collect()
        });
        Case { splits: splits.collect(), shape, delay }
    })
}

pub fn setups() -> impl Strategy<Value = Vec<Setup>> {
    let any_setup = |workers: usize| {
        let batch = prop::sample::select(vec![1024usize, 7, 2, 1]);
        let in_flight = prop::sample::select(vec![65_536usize, 10, 2, 1]);
        let pace = prop_oneof![
            6 => Just(Pace::Full),
            1 => (1usize..20).prop_map(Pace::Slow),
            1 => (1usize..20).prop_map(Pace::Dozing),
            2 => (1usize..20).prop_map(Pace::Uneven),
        ];
        let kept = (prop::bool::weighted(0.4), any::<bool>());
        (batch, in_flight, kept, pace).prop_map(move |(batch, in_flight, (checkpoints, limited), pace)| Setup {
            workers,
            batch,
            in_flight,
            checkpoints,
            limited,
            pace,
        })
    };
    (any_setup(1), any_setup(2), any_setup(3), any_setup(8)).prop_map(|(a, b, c, d)| vec![a, b, c, d])
}

pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_iters: 20_000,
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

// ---- running it ------------------------------------------------------------------------------------------------------

pub fn new_job(setup: &Setup, dir: &tempfile::TempDir) -> Job {
    let mut job = Job::new("windows").workers(setup.workers).batch_size(setup.batch);
    job.settings_mut().in_flight = setup.in_flight;
    if setup.checkpoints {
        job = job.checkpoint_dir(dir.path()).checkpoint_every(Duration::from_millis(1));
    }
    if setup.checkpoints && setup.limited {
        job = job.memory(4096);
    }
    job
}

pub fn sliding(shape: Shape) -> Sliding {
    Sliding::of(EventSpan::micros(shape.size), EventSpan::micros(shape.slide)).offset(EventSpan::micros(shape.offset))
}

pub fn watermarks(delay: i64) -> Watermarks<Item, impl Fn(&Item) -> EventTime + Clone + Send, impl WatermarkGenerator> {
    Watermarks::bounded_out_of_orderness(EventSpan::micros(delay), Item::time)
}

/// Results by key and window; each may be there once, at the last instant of its window.
pub fn by_window<K: Ord + Clone + std::fmt::Debug, O: std::fmt::Debug>(
    results: Vec<Record<(K, Window, O)>>,
) -> BTreeMap<(K, Window), String> {
    let mut map = BTreeMap::new();
    for Record { at, value: (key, window, out) } in results {
        assert_eq!(at.micros(), window.end.micros() - 1, "the event time of a result of {window}");
        let twice = map.insert((key.clone(), window), format!("{out:?}"));
        assert_eq!(twice, None, "a second result of {key:?} {window}");
    }
    map
}

pub fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items
}

pub fn values<T>(records: Vec<Record<T>>) -> Vec<T> {
    records.into_iter().map(|record| record.value).collect()
}

pub fn number(key: u64) -> u64 {
    key
}

pub fn text(key: u64) -> String {
    format!("key {key}")
}

pub fn total(items: &[Item]) -> i128 {
    items.iter().map(|item| i128::from(item.value)).sum()
}

/// One split of `(time, value)` with the key 0.
pub fn one_split(records: &[(i64, i64)]) -> Vec<Item> {
    let item =
        |(number, &(at, value)): (usize, &(i64, i64))| Item { split: 0, number: number as u64, at, key: 0, value };
    records.iter().enumerate().map(item).collect()
}

pub const ONE: Setup =
    Setup { workers: 1, batch: 1, in_flight: 65_536, checkpoints: false, limited: false, pace: Pace::Full };

/// The records of a case by their keys, as text.
pub fn keyed(job: &Job, case: &Case, pace: Pace, faults: &[Fault]) -> KeyedStream<String, Item> {
    let source = Script::new(case.splits.clone()).pace(pace).faults(faults);
    job.source(source, watermarks(case.delay)).inspect(strikes(faults)).key_by(|item| text(item.key))
}

/// Runs a job in every setup; `compare` looks at what has come out each time.
pub fn run_in(
    setups: &[Setup],
    make: impl Fn(&Job, Pace),
    compare: impl Fn(&Summary) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    setups.iter().try_for_each(|setup| {
        let dir = tempdir();
        let job = new_job(setup, &dir);
        make(&job, setup.pace);
        compare(&run(job).expect("the job finishes"))
    })
}

// ---- crashes ---------------------------------------------------------------------------------------------------------

/// How an attempt ends before its time.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// Something fails at the record after this share of all, unless it was read before.
    Crash(f64, Fails),
    /// It is stopped after so many microseconds, if it is not done by then.
    Stop(u64, StopMode),
}

pub fn troubles() -> impl Strategy<Value = Vec<Trouble>> {
    let how = prop::sample::select(vec![Fails::Read, Fails::Reader, Fails::Operator]);
    let trouble = prop_oneof![
        4 => (0.0..1.0, how).prop_map(|(at, how)| Trouble::Crash(at, how)),
        1 => (0u64..20_000).prop_map(|us| Trouble::Stop(us, StopMode::WithCheckpoint)),
        1 => (0u64..20_000).prop_map(|us| Trouble::Stop(us, StopMode::Now)),
    ];
    prop::collection::vec(trouble, 1..4)
}

/// Runs a job through its troubles, each time with the next number of workers, until it finishes; then once more, which
/// must do nothing. Returns the checkpoints that were started from.
pub fn run_through(
    troubles: &[Trouble],
    splits: &[Vec<Item>],
    workers: &[usize],
    setup: &Setup,
    make: impl Fn(&Job, &[Fault]),
) -> Result<Vec<Option<u64>>, TestCaseError> {
    quiet();
    let dir = tempdir();
    let all: Vec<&Item> = splits.iter().flatten().collect();
    let start = |attempt: usize, faults: &[Fault]| {
        let limited = setup.limited ^ (attempt % 3 == 2);
        let setup = Setup { workers: workers[attempt % workers.len()], checkpoints: true, limited, ..setup.clone() };
        let job = new_job(&setup, &dir);
        make(&job, faults);
        job.start().expect("the job starts")
    };
    let mut restored = Vec::new();
    for attempt in 0.. {
        let trouble = troubles.get(attempt);
        let fault = match trouble {
            Some(Trouble::Crash(at, how)) if !all.is_empty() => {
                let item = all[(at * all.len() as f64) as usize];
                vec![Fault::new(item.split as usize, usize::try_from(item.number).expect("few records"), *how)]
            }
            _ => vec![],
        };
        let handle = start(attempt, &fault);
        if let Some(Trouble::Stop(us, mode)) = trouble {
            std::thread::park_timeout(Duration::from_micros(*us));
            handle.stop(*mode);
        }
        match finish(handle) {
            Ok(summary) => {
                restored.push(summary.restored);
                if summary.outcome == Outcome::Finished {
                    break;
                }
                // A stop may come when all was done but the last word.
                prop_assert!(matches!(trouble, Some(Trouble::Stop(..))), "{}", summary);
            }
            Err(error) => {
                prop_assert!(!fault.is_empty() && error.to_string().contains("boom"), "{}", error);
                restored.push(None);
            }
        }
    }
    let again = finish(start(0, &[])).expect("a finished job only says so");
    prop_assert_eq!(again.outcome, Outcome::AlreadyFinished);
    Ok(restored)
}

/// For the operator that fails.
pub fn strikes(faults: &[Fault]) -> impl Fn(&Item) + Clone + Send + 'static {
    let faults = faults.to_vec();
    move |item| faults.iter().for_each(|fault| fault.strike(item))
}

/// Slow enough for checkpoints in the midst of the input.
pub fn slow_setup() -> impl Strategy<Value = Setup> {
    let pace = prop_oneof![
        1 => Just(Pace::Full),
        6 => (1usize..6).prop_map(Pace::Slow),
        1 => (1usize..6).prop_map(Pace::Dozing),
        3 => (1usize..6).prop_map(Pace::Uneven),
    ];
    let batch = prop::sample::select(vec![1024usize, 7, 2, 1]);
    let in_flight = prop::sample::select(vec![65_536usize, 10, 1]);
    (pace, batch, in_flight, any::<bool>()).prop_map(|(pace, batch, in_flight, limited)| Setup {
        workers: 1,
        batch,
        in_flight,
        checkpoints: true,
        limited,
        pace,
    })
}

pub fn worker_counts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop::sample::select(vec![1usize, 2, 3, 8]), 4)
}
