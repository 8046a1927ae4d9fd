//! Windows against an oracle that knows nothing but the specification: on any number of workers, in batches of any size,
//! with and without checkpoints, and through crashes, the results and the late records are the same multisets.
//!
//! `MILLSTREAM_CASES=5000 cargo test --test windows` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with tests/operators.rs
mod oracle;

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::prelude::*;
use oracle::{Item, Pace, Script, Shape, cases, differences, judge, nearest, run};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

// ---- random input ----------------------------------------------------------------------------------------------------

/// How the times of a split go.
#[derive(Clone, Copy, Debug)]
enum Times {
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
type Raw = (u64, i32, i64);

/// Input, windows and delay of one case.
#[derive(Clone, Debug)]
struct Case {
    splits: Vec<Vec<Item>>,
    shape: Shape,
    delay: i64,
}

/// How a job is run.
#[derive(Clone, Debug)]
struct Setup {
    workers: usize,
    batch: usize,
    in_flight: usize,
    checkpoints: bool,
    pace: Pace,
}

fn shapes() -> impl Strategy<Value = Shape> {
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

fn raw_split(most: usize) -> impl Strategy<Value = (Times, Vec<Raw>)> {
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

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Times for `raws`, on the scale of the windows.
fn timed(split: usize, times: Times, raws: &[Raw], shape: Shape) -> Vec<Item> {
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
    // Where slices are 1 us long, the last two instants of all share one, and so do the first `offset`: assign.rs says so.
    let ends = if greatest_common_divisor(shape.size, shape.slide) == 1 {
        i64::MIN + shape.offset % shape.slide..=i64::MAX - 1
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
fn any_case(splits: usize, most: usize) -> impl Strategy<Value = Case> {
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

fn setups() -> impl Strategy<Value = Vec<Setup>> {
    let any_setup = |workers: usize| {
        let batch = prop::sample::select(vec![1024usize, 7, 2, 1]);
        let in_flight = prop::sample::select(vec![65_536usize, 10, 2, 1]);
        let pace = prop_oneof![6 => Just(Pace::Full), 1 => (1usize..20).prop_map(Pace::Slow)];
        (batch, in_flight, prop::bool::weighted(0.25), pace).prop_map(move |(batch, in_flight, checkpoints, pace)| {
            Setup { workers, batch, in_flight, checkpoints, pace }
        })
    };
    (any_setup(1), any_setup(2), any_setup(3), any_setup(8)).prop_map(|(a, b, c, d)| vec![a, b, c, d])
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_iters: 20_000,
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

// ---- running it ------------------------------------------------------------------------------------------------------

fn new_job(setup: &Setup, dir: &tempfile::TempDir) -> Job {
    let mut job = Job::new("windows").workers(setup.workers).batch_size(setup.batch);
    job.settings_mut().in_flight = setup.in_flight;
    if setup.checkpoints {
        job = job.checkpoint_dir(dir.path()).checkpoint_every(Duration::from_millis(1));
    }
    job
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn sliding(shape: Shape) -> Sliding {
    Sliding::of(EventSpan::micros(shape.size), EventSpan::micros(shape.slide)).offset(EventSpan::micros(shape.offset))
}

fn watermarks(
    delay: i64,
) -> Watermarks<Item, impl Fn(&Item) -> EventTime + Clone + Send, impl WatermarkGenerator> {
    Watermarks::bounded_out_of_orderness(EventSpan::micros(delay), Item::time)
}

/// Results by key and window; each may be there once, at the last instant of its window.
fn by_window<K: Ord + Clone + std::fmt::Debug, O: std::fmt::Debug>(
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

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items
}

fn values<T>(records: Vec<Record<T>>) -> Vec<T> {
    records.into_iter().map(|record| record.value).collect()
}

/// Runs a case as each setup says and holds it against the oracle.
fn check<K, A>(
    case: &Case,
    setups: &[Setup],
    key: fn(u64) -> K,
    aggregate: A,
    naive: impl Fn(&[Item]) -> A::Out,
) -> Result<(), TestCaseError>
where
    K: Key + Ord + std::fmt::Debug,
    A: Aggregate<Item>,
    A::Out: std::fmt::Debug,
{
    let (windows, late) = oracle::window(&judge(&case.splits, case.delay), case.shape);
    let expected: BTreeMap<_, _> = windows
        .iter()
        .map(|((k, window), items)| ((key(*k), *window), format!("{:?}", naive(items))))
        .collect();
    for setup in setups {
        let dir = tempdir();
        let job = new_job(setup, &dir);
        let (results, late_records) = (Collected::new(), Collected::new());
        let (out, too_late) = job
            .source(Script::new(case.splits.clone()).pace(setup.pace), watermarks(case.delay))
            .key_by(move |item| key(item.key))
            .window(sliding(case.shape))
            .aggregate_with_late(aggregate.clone());
        out.sink(results.sink());
        too_late.sink(late_records.sink());
        let summary = run(job).expect("the job finishes");
        let wrong = differences(&by_window(results.take()), &expected);
        prop_assert!(wrong.is_empty(), "{:?}: {:#?}", setup, wrong);
        let late_records = late_records.take();
        prop_assert!(late_records.iter().all(|record| record.at == record.value.time()));
        prop_assert_eq!(&sorted(values(late_records)), &late, "late records, {:?}", setup);
        prop_assert_eq!(summary.late, late.len() as u64);
        prop_assert_eq!(summary.windows_fired, expected.len() as u64);
        let input: usize = case.splits.iter().map(Vec::len).sum();
        prop_assert_eq!(summary.records_in, input as u64);
        prop_assert_eq!(summary.records_out, (expected.len() + late.len()) as u64);
        prop_assert_eq!(summary.outcome, Outcome::Finished);
    }
    Ok(())
}

// ---- aggregates and what they should give ----------------------------------------------------------------------------

fn number(key: u64) -> u64 {
    key
}

fn text(key: u64) -> String {
    format!("key {key}")
}

/// A float of which the oracle knows the exact sum: a multiple of 1/1024.
fn float(item: &Item) -> f64 {
    item.value as f64 / 1024.0
}

fn total(items: &[Item]) -> i128 {
    items.iter().map(|item| i128::from(item.value)).sum()
}

fn first(items: &[Item]) -> i64 {
    items.iter().min_by_key(|item| (item.at, item.split, item.number)).expect("not empty").value
}

fn last(items: &[Item]) -> i64 {
    items.iter().max_by_key(|item| (item.at, item.split, item.number)).expect("not empty").value
}

fn distinct(items: &[Item]) -> u64 {
    let mut values: Vec<_> = items.iter().map(|item| item.value).collect();
    values.sort();
    values.dedup();
    values.len() as u64
}

fn float_sum(items: &[Item]) -> f64 {
    nearest(total(items), 1024)
}

fn mean(items: &[Item]) -> f64 {
    nearest(total(items), 1024 * items.len() as i128)
}

fn variance(items: &[Item]) -> f64 {
    let n = items.len() as i128;
    let squares: i128 = items.iter().map(|item| i128::from(item.value).pow(2)).sum();
    nearest(n * squares - total(items).pow(2), n * n * (1 << 20))
}

fn min(items: &[Item]) -> i64 {
    items.iter().map(|item| item.value).min().expect("not empty")
}

fn max(items: &[Item]) -> i64 {
    items.iter().map(|item| item.value).max().expect("not empty")
}

proptest! {
    #![proptest_config(config(cases(60)))]

    #[test]
    fn integers_are_as_the_oracle_says(case in any_case(4, 200), setups in setups()) {
        let aggregate = (
            Count,
            Sum::of(|item: &Item| item.value),
            Min::of(|item: &Item| item.value),
            Max::of(|item: &Item| item.value),
        );
        check(&case, &setups, number, aggregate, |items| {
            (items.len() as u64, total(items) as i64, min(items), max(items))
        })?;
    }
}

proptest! {
    #![proptest_config(config(cases(40)))]

    #[test]
    fn floats_are_as_the_oracle_says(case in any_case(4, 100), setups in setups()) {
        let aggregate = (Sum::of(float), Mean::of(float), Variance::of(float));
        check(&case, &setups, text, aggregate, |items| (float_sum(items), mean(items), variance(items)))?;
    }

    #[test]
    fn first_and_last_are_as_the_oracle_says(case in any_case(4, 100), setups in setups()) {
        let value = |item: &Item| item.value;
        check(&case, &setups, text, (First::of(value), Last::of(value), DistinctCount::of(value)), |items| {
            (first(items), last(items), distinct(items))
        })?;
    }
}
