//! Windows against an oracle that knows nothing but the specification: on any number of workers, in batches of any size,
//! with and without checkpoints, and through crashes, the results and the late records are the same multisets.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test windows` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with tests/operators.rs
mod oracle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::prelude::*;
use millstream::source::{Output, Read, Source, SplitReader, Waker};
use oracle::calendar::calendar_case;
use oracle::trial::*;
use oracle::{Fails, Item, Pace, Script, Shape, Windowed, cases, differences, judge, nearest, run};
use proptest::prelude::*;

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
    let expected = oracle::window(&judge(&case.splits, case.delay), case.shape);
    check_windows(case, sliding(case.shape), &expected, setups, key, aggregate, naive)
}

/// As [`check`], with these windows, of which this is expected.
fn check_windows<K, A>(
    case: &Case,
    kinds: impl Windows<Item>,
    (windows, late): &Windowed,
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
            .window(kinds.clone())
            .aggregate_with_late(aggregate.clone());
        out.sink(results.sink());
        too_late.sink(late_records.sink());
        let summary = run(job).expect("the job finishes");
        let wrong = differences(&by_window(results.take()), &expected);
        prop_assert!(wrong.is_empty(), "{:?}: {:#?}", setup, wrong);
        let late_records = late_records.take();
        prop_assert!(late_records.iter().all(|record| record.at == record.value.time()));
        prop_assert_eq!(&sorted(values(late_records)), late, "late records, {:?}", setup);
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

/// A float of which the oracle knows the exact sum: a multiple of 1/1024.
fn float(item: &Item) -> f64 {
    item.value as f64 / 1024.0
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
    #![proptest_config(config(cases(200)))]

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
    #![proptest_config(config(cases(200)))]

    #[test]
    fn floats_are_as_the_oracle_says(case in any_case(4, 100), setups in setups()) {
        let aggregate = (Sum::of(float), Mean::of(float), Variance::of(float));
        check(&case, &setups, text, aggregate, |items| (float_sum(items), mean(items), variance(items)))?;
    }

    /// Sums that can be inverted are prepared while the records of a window come, as long as there is time for it.
    #[test]
    fn running_sums_are_as_the_oracle_says(case in any_case(4, 200), setups in setups()) {
        let aggregate = (Count, Sum::of(|item: &Item| item.value));
        check(&case, &setups, number, aggregate, |items| (items.len() as u64, total(items) as i64))?;
    }

    #[test]
    fn first_and_last_are_as_the_oracle_says(case in any_case(4, 100), setups in setups()) {
        let value = |item: &Item| item.value;
        check(&case, &setups, text, (First::of(value), Last::of(value), DistinctCount::of(value)), |items| {
            (first(items), last(items), distinct(items))
        })?;
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    /// In zones whose clocks were put forward or back, at midnight as well, by half an hour or by a day.
    #[test]
    fn windows_of_a_calendar_are_as_the_oracle_says(calendar in calendar_case(), setups in setups()) {
        let case = &calendar.case;
        let expected = calendar.expected(&judge(&case.splits, case.delay));
        let aggregate = (Count, Sum::of(|item: &Item| item.value));
        check_windows(case, calendar.windows(), &expected, &setups, number, aggregate, |items| {
            (items.len() as u64, total(items) as i64)
        })?;
    }

    /// What counts in some windows of its slice only, with an aggregate that can be inverted and one that cannot.
    #[test]
    fn many_late_records_are_as_the_oracle_says(case in late_case(4, 150), setups in setups()) {
        check(&case, &setups, number, (Count, Sum::of(|item: &Item| item.value)), |items| {
            (items.len() as u64, total(items) as i64)
        })?;
        let aggregate = (Max::of(|item: &Item| item.value), First::of(|item: &Item| item.value), Count);
        check(&case, &setups, text, aggregate, |items| (max(items), first(items), items.len() as u64))?;
    }
}

// ---- by hand ---------------------------------------------------------------------------------------------------------

/// The counts of all windows as `(start, end, count)`, and the times of late records.
fn counts(splits: Vec<Vec<Item>>, shape: Shape, delay: i64, setup: &Setup) -> (Vec<(i64, i64, u64)>, Vec<i64>) {
    let dir = tempdir();
    let job = new_job(setup, &dir);
    let (results, late) = (Collected::new(), Collected::new());
    let (out, too_late) = job
        .source(Script::new(splits).pace(setup.pace), watermarks(delay))
        .key_by(|item| item.key)
        .window(sliding(shape))
        .aggregate_with_late(Count);
    out.sink(results.sink());
    too_late.sink(late.sink());
    run(job).expect("the job finishes");
    let results = values(results.take());
    let counts = results.into_iter().map(|(_, window, n)| (window.start.micros(), window.end.micros(), n));
    (sorted(counts.collect()), sorted(values(late.take()).into_iter().map(|item| item.at).collect()))
}

#[test]
fn a_window_closes_when_the_watermark_is_at_its_end_and_not_before() {
    let tens = Shape { size: 10, slide: 10, offset: 0 };
    for batch in [1, 2, 1024] {
        let setup = Setup { batch, ..ONE };
        let input = || vec![one_split(&[(9, 0), (10, 0), (9, 0), (0, 0), (10, 0), (20, 0), (19, 0)])];
        // The watermark is exactly at 10 when the second 9 comes, and exactly at 20 when 19 comes.
        assert_eq!(counts(input(), tens, 0, &setup), (vec![(0, 10, 1), (10, 20, 2), (20, 30, 1)], vec![0, 9, 19]));
        // One microsecond of patience: it is at 9, and then at 19.
        assert_eq!(counts(input(), tens, 1, &setup), (vec![(0, 10, 3), (10, 20, 3), (20, 30, 1)], vec![]));
    }
}

#[test]
fn a_record_may_be_late_for_some_of_its_windows_only() {
    let shape = Shape { size: 10, slide: 5, offset: 2 };
    // 8 is in [-3, 7)? No: in [2, 12) and [7, 17). The watermark 12 has closed the first only.
    let input = vec![one_split(&[(12, 0), (8, 0), (6, 0)])];
    assert_eq!(counts(input, shape, 0, &ONE), (vec![(7, 17, 2), (12, 22, 1)], vec![6]));
}

#[test]
fn without_records_there_are_no_results() {
    let shape = Shape { size: 10, slide: 3, offset: 1 };
    for setup in Setup::all() {
        for splits in [vec![], vec![vec![]], vec![vec![], vec![], vec![]]] {
            if splits.is_empty() && setup.batch > 1 {
                continue;
            }
            assert_eq!(counts(splits, shape, 5, &setup), (vec![], vec![]), "{setup:?}");
        }
    }
}

#[test]
fn empty_splits_hold_nothing_back_and_lose_nothing() {
    let records: Vec<(i64, i64)> = (0..100).map(|n| (n * 7 % 50, 0)).collect();
    let shape = Shape { size: 10, slide: 10, offset: 0 };
    let expected = counts(vec![one_split(&records)], shape, 3, &ONE);
    assert!(expected.1.len() > 10 && expected.0.len() == 5);
    for setup in Setup::all() {
        let splits = vec![vec![], one_split(&records), vec![]];
        assert_eq!(counts(splits, shape, 3, &setup), expected, "{setup:?}");
    }
}

/// Sliding windows of coprime size and slide have slices of 1 us: 3.6 billion in each window. They must not be walked.
#[test]
fn slices_without_records_cost_nothing() {
    let begun = std::time::Instant::now();
    let shape = Shape { size: 3_600_000_007, slide: 600_000_001, offset: 0 };
    let records: Vec<(i64, i64)> = (0..2_000).map(|n| (n * 100_000_007, 0)).collect();
    let (results, late) = counts(vec![one_split(&records)], shape, 0, &Setup { batch: 64, ..ONE });
    assert!(late.is_empty());
    assert!(results.iter().any(|(_, _, n)| *n == 36));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// A jump over 10^15 windows, there and, in another split, back.
#[test]
fn windows_without_records_are_jumped_over() {
    let begun = std::time::Instant::now();
    let shape = Shape { size: 3, slide: 1, offset: 0 };
    let far = 1_000_000_000_000_000_000;
    let splits = vec![one_split(&[(0, 0), (far, 0), (1, 0)]), one_split(&[(-far, 0), (5, 0), (far, 0)])];
    let (results, late) = counts(splits, shape, 0, &ONE);
    assert_eq!(results.len(), 12);
    assert_eq!(results.iter().map(|(_, _, n)| n).sum::<u64>(), 15);
    assert_eq!(late, [1]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Where slices are 1 us long there are not enough numbers for those at the ends of time; records there still count.
#[test]
fn records_at_the_ends_of_time_are_not_lost() {
    let input = || vec![one_split(&[(i64::MIN, 0), (i64::MIN + 1, 0), (0, 0), (i64::MAX - 1, 0), (i64::MAX, 0)])];
    for size in [1, 2, 7, 1_000_000, i64::MAX] {
        let (results, late) = counts(input(), Shape { size, slide: size, offset: 0 }, 0, &ONE);
        assert_eq!(results.iter().map(|(_, _, n)| n).sum::<u64>(), 5, "{size}: {results:?}");
        assert!(late.is_empty(), "{size}");
    }
}

/// One input in every setup there is, and three times: whatever is left to chance must not show.
#[test]
fn every_setup_gives_the_same() {
    let shape = Shape { size: 20, slide: 7, offset: 3 };
    let splits: Vec<Vec<Item>> = (0..3)
        .map(|split: i64| {
            (0..300)
                .map(|n| Item {
                    split: split as u32,
                    number: n as u64,
                    at: n / 2 + (n * 37 + split * 11) % 41,
                    key: (n % 5) as u64,
                    value: n,
                })
                .collect()
        })
        .collect();
    let case = Case { splits, shape, delay: 15 };
    assert!(oracle::window(&judge(&case.splits, case.delay), case.shape).1.len() > 20);
    let setups: Vec<Setup> = Setup::all().collect();
    for _ in 0..3 {
        let aggregate = (Count, First::of(|item: &Item| item.value), Last::of(|item: &Item| item.value));
        check(&case, &setups, text, aggregate, |items| (items.len() as u64, first(items), last(items)))
            .expect("as the oracle says");
    }
}

/// The results of a window leave in turns, between which records come for the next ones.
#[test]
fn windows_of_many_keys_are_complete() {
    let records = |split: u32| {
        let item = move |n: u64| Item {
            split,
            number: n,
            at: (n / 300 + n * 37 % 53) as i64,
            key: n * 7 % 3_000,
            value: n as i64 - 9_000,
        };
        (0..20_000).map(item).collect::<Vec<_>>()
    };
    let case =
        Case { splits: (0..2).map(records).collect(), shape: Shape { size: 30, slide: 12, offset: 5 }, delay: 15 };
    let late = oracle::window(&judge(&case.splits, case.delay), case.shape).1;
    assert!(late.len() > 20, "{}", late.len());
    for (workers, pace) in [(1, Pace::Slow(900)), (2, Pace::Slow(300)), (2, Pace::Uneven(500)), (3, Pace::Full)] {
        let setups = [Setup { workers, batch: 1024, checkpoints: workers == 2, pace, ..ONE }];
        let sums = (Count, Sum::of(|item: &Item| item.value));
        check(&case, &setups, number, sums, |items| (items.len() as u64, total(items) as i64)).expect("sums");
        check(&case, &setups, number, Max::of(|item: &Item| item.value), max).expect("greatest values");
        let kinds = [case.shape, Shape { size: 9, slide: 9, offset: 5 }];
        let expected = oracle::several(&judge(&case.splits, case.delay), &kinds);
        let max_of = Max::of(|item: &Item| item.value);
        check_windows(&case, several(&kinds), &expected, &setups, number, max_of, max).expect("of several windows");
    }
}

/// Counts records, and how often accumulators are merged: in tumbling windows only what was taken together is.
#[derive(Clone)]
struct Merges(Arc<AtomicUsize>);

impl Aggregate<Item> for Merges {
    type Acc = u64;
    type Out = u64;

    fn create(&self) -> u64 {
        0
    }
    fn add(&self, acc: &mut u64, _: &Item, _: &Origin) {
        *acc += 1;
    }
    fn merge(&self, into: &mut u64, from: &u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        *into += from;
    }
    fn finish(&self, acc: &u64) -> u64 {
        *acc
    }
}

/// What is held when a window closes has still to travel: whoever has read everything sends it at once.
#[test]
fn records_are_taken_together_only_while_there_is_more_to_read() {
    let records: Vec<(i64, i64)> = (0..1_000).map(|n| (n, 0)).collect();
    for (pace, taken_together) in [(Pace::Full, true), (Pace::Slow(10), false)] {
        // No worker takes records together before all have begun: with so few in flight, most are read after that.
        let setup = Setup { workers: 2, batch: 10, in_flight: 100, ..ONE };
        let dir = tempdir();
        let job = new_job(&setup, &dir);
        let (results, merges) = (Collected::new(), Arc::new(AtomicUsize::new(0)));
        job.source(Script::new(vec![one_split(&records)]).pace(pace), watermarks(0))
            .key_by(|item| item.number % 10)
            .window(Tumbling::of(EventSpan::micros(100)))
            .aggregate(Merges(Arc::clone(&merges)))
            .sink(results.sink());
        run(job).expect("the job finishes");
        assert!(values(results.take()).iter().all(|(_, _, count)| *count == 10));
        assert_eq!(merges.load(Ordering::SeqCst) > 0, taken_together, "{pace:?}: {merges:?}");
    }
}

/// What was taken together from a source that is far ahead, and is held for long, must not let windows close before what was
/// taken from the other one has come.
#[test]
fn what_is_held_for_a_later_window_hides_nothing_of_an_earlier_one() {
    let workers = 2;
    // As many splits as workers, so that each reads both sources.
    let splits = |times: fn(u64) -> i64| {
        let item = move |split, n| Item { split, number: n, at: times(n), key: n % 10, value: 0 };
        (0..workers as u32).map(|split| (0..5_000).map(|n| item(split, n)).collect()).collect()
    };
    // It takes an unlucky moment to go wrong.
    for _ in 0..100 {
        let dir = tempdir();
        let job = new_job(&Setup { workers, batch: 10, in_flight: 500, ..ONE }, &dir);
        let results = Collected::new();
        let ahead = job.source(Script::new(splits(|_| 1_000_000)), watermarks(0));
        let slow = job.source(Script::new(splits(|n| n as i64)), watermarks(0));
        ahead
            .union([slow])
            .key_by(|item| item.key)
            .window(Tumbling::of(EventSpan::micros(20)))
            .aggregate(Count)
            .sink(results.sink());
        run(job).expect("the job finishes");
        let found = by_window(results.take());
        assert_eq!(found.len(), 251 * 10);
        for ((key, window), count) in found {
            let expected = if window.start.micros() < 5_000 { "4" } else { "1000" };
            assert_eq!(count, expected, "{key} {window}");
        }
    }
}

/// `from_vec(..).splits(n)` deals out in turn: split `k` has the values of which the number is `k` modulo `n`.
#[test]
fn values_in_splits_are_judged_by_their_own_split() {
    let all: Vec<i64> = (0..200).map(|n| (n * 31) % 97).collect();
    for n in 1..=5 {
        let mut splits = vec![Vec::new(); n];
        for (number, at) in all.iter().enumerate() {
            splits[number % n].push((*at, 0));
        }
        let splits: Vec<_> = splits.iter().map(|split| one_split(split)).collect();
        let (windows, late) = oracle::window(&judge(&splits, 20), Shape { size: 10, slide: 10, offset: 0 });
        for workers in [1, 2, 3, 8] {
            let job = Job::new("values").workers(workers).batch_size(3);
            let (results, late_records) = (Collected::new(), Collected::new());
            let times =
                Watermarks::bounded_out_of_orderness(EventSpan::micros(20), |at: &i64| EventTime::from_micros(*at));
            let (out, too_late) = job
                .source(from_vec(all.clone()).splits(n), times)
                .key_by(|_| 0u64)
                .window(Tumbling::of(EventSpan::micros(10)))
                .aggregate_with_late(Count);
            out.sink(results.sink());
            too_late.sink(late_records.sink());
            run(job).expect("the job finishes");
            let expected = windows.iter().map(|(place, items)| (*place, items.len().to_string())).collect();
            assert_eq!(by_window(results.take()), expected, "{n} splits, {workers} workers");
            assert_eq!(sorted(values(late_records.take())), sorted(late.iter().map(|item| item.at).collect()));
        }
    }
}

// ---- several kinds of windows that share slices ----------------------------------------------------------------------

fn several(kinds: &[Shape]) -> Several {
    Several::of(kinds.iter().map(|kind| sliding(*kind)))
}

/// Windows of the case's own kind, and of others: like it, longer or shorter by a factor, of any size, or the same again.
fn several_kinds(case: impl Strategy<Value = Case>) -> impl Strategy<Value = (Case, Vec<Shape>)> {
    let small = (1i64..40, 1i64..40, 0i64..60).prop_map(|(a, b, offset)| (a.max(b), a.min(b), offset));
    let other = prop_oneof![
        3 => small.prop_map(|(size, slide, offset)| (Some(Shape { size, slide, offset }), (1, 1, 0))),
        4 => (1i64..8, 1i64..8, prop_oneof![2 => Just(0), 1 => 0i64..60]).prop_map(|factors| (None, factors)),
        1 => shapes().prop_map(|shape| (Some(shape), (1, 1, 0))),
    ];
    (case, prop::collection::vec(other, 0..=5)).prop_map(|(mut case, others)| {
        let like = |(slides, times, offset): (i64, i64, i64)| {
            let slide = case.shape.slide.saturating_mul(slides);
            Shape { size: slide.saturating_mul(times), slide, offset: case.shape.offset.saturating_add(offset) }
        };
        let mut kinds = vec![case.shape];
        kinds.extend(others.into_iter().map(|(shape, factors)| shape.unwrap_or_else(|| like(factors))));
        // Where slices are 1 us long, the last two instants share one.
        let last = i64::MAX - 1;
        case.splits.iter_mut().flatten().for_each(|item| item.at = item.at.min(last));
        (case, kinds)
    })
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn several_kinds_of_windows_are_as_the_oracle_says((case, kinds) in several_kinds(any_case(4, 150)), setups in setups()) {
        let expected = oracle::several(&judge(&case.splits, case.delay), &kinds);
        let value = |item: &Item| item.value;
        check_windows(&case, several(&kinds), &expected, &setups, number, (Count, Sum::of(value)), |items| {
            (items.len() as u64, total(items) as i64)
        })?;
        let aggregate = (Count, Max::of(value), First::of(value), Last::of(value));
        check_windows(&case, several(&kinds), &expected, &setups, text, aggregate, |items| {
            (items.len() as u64, max(items), first(items), last(items))
        })?;
    }

    #[test]
    fn crashes_change_nothing_in_several_kinds_of_windows(
        (case, kinds) in several_kinds(any_case(4, 150)),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let expected = oracle::several(&judge(&case.splits, case.delay), &kinds);
        check_through(&case, several(&kinds), expected, &troubles, &workers, &setup)?;
    }
}

/// The counts of all windows as `(start, end, count)`, and the times of late records, of one split of one key.
fn several_counts(kinds: &[Shape], times: &[i64], setup: &Setup) -> (Vec<(i64, i64, u64)>, Vec<i64>) {
    let dir = tempdir();
    let job = new_job(setup, &dir);
    let (results, late) = (Collected::new(), Collected::new());
    let records: Vec<(i64, i64)> = times.iter().map(|at| (*at, 0)).collect();
    let source = job.source(Script::new(vec![one_split(&records)]).pace(setup.pace), watermarks(0));
    let (out, too_late) = source.key_by(|item| item.key).window(several(kinds)).aggregate_with_late(Count);
    out.sink(results.sink());
    too_late.sink(late.sink());
    run(job).expect("the job finishes");
    let count = |(_, window, count): (u64, Window, u64)| (window.start.micros(), window.end.micros(), count);
    let counts = values(results.take()).into_iter().map(count).collect();
    (sorted(counts), values(late.take()).into_iter().map(|item| item.at).collect())
}

const TENS: Shape = Shape { size: 10, slide: 10, offset: 0 };
const THIRTIES: Shape = Shape { size: 30, slide: 30, offset: 0 };

#[test]
fn a_record_may_be_late_for_some_kinds_only() {
    for batch in [1, 2, 1024] {
        let setup = Setup { batch, ..ONE };
        // 5 and 7 are late for windows of 10, and not for those of 30; 8 is late for both.
        let (counts, late) = several_counts(&[TENS, THIRTIES], &[1, 12, 5, 21, 7, 35, 8, 33], &setup);
        assert_eq!(counts, [(0, 10, 1), (0, 30, 5), (10, 20, 1), (20, 30, 1), (30, 40, 2), (30, 60, 2)]);
        assert_eq!(late, [8]);
    }
}

#[test]
fn a_window_that_several_kinds_have_has_one_result() {
    let fives = Shape { size: 10, slide: 5, offset: 0 };
    let later = Shape { offset: 30, ..TENS };
    let expected = several_counts(&[fives], &[1, 2, 7, 12], &ONE);
    assert_eq!(expected.0, [(-5, 5, 2), (0, 10, 3), (5, 15, 2), (10, 20, 1)]);
    for kinds in [&[fives, fives][..], &[TENS, fives], &[fives, TENS], &[TENS, fives, later, TENS]] {
        assert_eq!(several_counts(kinds, &[1, 2, 7, 12], &ONE), expected, "{kinds:?}");
    }
}

#[test]
#[should_panic(expected = "several windows of no kind would have no results")]
fn several_windows_are_at_least_one() {
    let _ = Several::of(Vec::<Tumbling>::new());
}

/// Kinds whose sizes have no common divisor have slices of 1 us.
#[test]
fn slices_without_records_cost_nothing_in_several_kinds_of_windows() {
    let begun = std::time::Instant::now();
    let kinds = [
        Shape { size: 3_600_000_007, slide: 600_000_001, offset: 0 },
        Shape { size: 1_000, slide: 1_000, offset: 3 },
        Shape { size: 86_400_000_000, slide: 86_400_000_000, offset: 0 },
    ];
    let far = 1_000_000_000_000_000_000;
    let times: Vec<i64> = (0..2_000).map(|n| n * 100_000_007).chain([far]).collect();
    let (results, late) = several_counts(&kinds, &times, &Setup { batch: 64, ..ONE });
    assert!(late.is_empty());
    assert!(results.iter().any(|(start, end, n)| end - start == kinds[0].size && *n == 36));
    assert_eq!(results.iter().filter(|(start, end, _)| end - start == 1_000).count(), 2_001);
    assert_eq!(results.iter().filter(|(start, end, _)| end - start == kinds[2].size).count(), 4);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The results of windows that end together leave in turns, and so do those of one window that has many.
#[test]
fn several_windows_of_many_keys_are_complete() {
    const KEYS: u64 = 150_000;
    let item = |n: u64| Item { split: 0, number: n, at: (n * 20 / KEYS) as i64, key: n % KEYS, value: 1 };
    let kinds = [Shape { size: 5, slide: 5, offset: 0 }, TENS, Shape { size: 20, slide: 10, offset: 0 }];
    for (workers, pace) in [(1, Pace::Full), (2, Pace::Slow(60_000))] {
        let dir = tempdir();
        let job = new_job(&Setup { workers, batch: 1024, pace, checkpoints: true, ..ONE }, &dir);
        let results = Collected::new();
        let records: Vec<Item> = (0..2 * KEYS).map(item).collect();
        job.source(Script::new(vec![records]).pace(pace), watermarks(0))
            .key_by(|item| item.key)
            .window(several(&kinds))
            .aggregate(Sum::of(|item: &Item| item.value))
            .sink(results.sink());
        run(job).expect("the job finishes");
        let mut found: BTreeMap<Window, Vec<(u64, i64)>> = BTreeMap::new();
        for (key, window, sum) in values(results.take()) {
            found.entry(window).or_default().push((key, sum));
        }
        let (mut panes, mut records) = (Vec::new(), 0);
        for (window, mut own) in found {
            own.sort_unstable();
            panes.push((window.start.micros(), window.end.micros(), own.len() as u64));
            records += own.iter().map(|(_, sum)| *sum as u64).sum::<u64>();
            own.dedup_by_key(|(key, _)| *key);
            assert_eq!(own.len() as u64, panes[panes.len() - 1].2, "one result a key in {window}");
        }
        let bounds = (0..8).map(|n| (n * 5, n * 5 + 5)).chain((0..4).map(|n| (n * 10, n * 10 + 10)));
        let bounds = bounds.chain((-1..4).map(|n| (n * 10, n * 10 + 20)));
        // As many keys as instants have.
        let keys = |start: i64, end: i64| (end.min(40) - start.max(0)) as u64 * KEYS / 20;
        let expected = bounds.map(|(start, end)| (start, end, keys(start, end))).collect();
        assert_eq!(panes, sorted(expected), "{workers} workers");
        assert_eq!(records, 2 * KEYS * 4);
    }
}

/// A delay may be raised between two starts. What was late for a window that has been fired stays late for it.
#[test]
fn when_the_delay_is_raised_then_none_of_several_windows_fires_twice() {
    let dir = tempdir();
    let (results, late) = (Collected::<(u64, Window, u64)>::new(), Collected::new());
    let job = |source, delay| {
        let job = Job::new("delays").workers(2).checkpoint_dir(dir.path());
        let (out, too_late) = job
            .source(source, watermarks(delay))
            .key_by(|item: &Item| item.key)
            .window(several(&[TENS, THIRTIES]))
            .aggregate_with_late(Count);
        out.sink(results.sink());
        too_late.sink(late.sink());
        job
    };
    let items = |times: &[i64]| one_split(&times.iter().map(|at| (*at, 0)).collect::<Vec<_>>());
    let (sender, source) = channel(16);
    let handle = job(source, 0).start().expect("starts");
    items(&[5, 15, 45, 56]).into_iter().for_each(|item| sender.send(item).expect("sent"));
    while handle.status().windows_fired < 4 {
        std::thread::yield_now();
    }
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
    let (sender, source) = channel(16);
    let handle = job(source, 1_000).start().expect("goes on");
    // 7 is late for all of its windows, 44 for the short one only, and 57 for none.
    items(&[7, 44, 57, 2_000]).into_iter().for_each(|item| sender.send(item).expect("sent"));
    drop(sender);
    oracle::finish(handle).expect("finishes");
    assert_eq!(values(late.take()).iter().map(|item| item.at).collect::<Vec<_>>(), [7]);
    let counts = values(results.take())
        .into_iter()
        .map(|(_, window, n)| (window.start.micros(), window.end.micros(), n));
    let expected = [
        (0, 10, 1),
        (0, 30, 2),
        (10, 20, 1),
        (30, 60, 4),
        (40, 50, 1),
        (50, 60, 2),
        (1_980, 2_010, 1),
        (2_000, 2_010, 1),
    ];
    assert_eq!(sorted(counts.collect()), expected);
}

/// A source that is new between two starts knows nothing of what was over before: what has been fired stays as it is.
#[test]
fn when_a_source_is_added_then_none_of_several_windows_fires_twice() {
    let expected = [(0, 10, 1), (0, 30, 2), (10, 20, 1), (30, 60, 4), (40, 50, 1), (50, 60, 2)];
    add_a_source(|| several(&[TENS, THIRTIES]), &expected);
}

#[test]
fn when_a_source_is_added_then_no_sliding_window_fires_twice() {
    let expected = [(-10, 10, 1), (0, 20, 2), (10, 30, 1), (30, 50, 1), (40, 60, 4), (50, 70, 2)];
    add_a_source(|| sliding(Shape { size: 20, slide: 10, offset: 0 }), &expected);
}

fn add_a_source<W: Windows<Item>>(windows: impl Fn() -> W, expected: &[(i64, i64, u64)]) {
    // One by one, and all at once.
    for batch in [1, 1024] {
        add_a_source_in_batches(batch, &windows, expected);
    }
}

fn add_a_source_in_batches<W: Windows<Item>>(batch: usize, windows: impl Fn() -> W, expected: &[(i64, i64, u64)]) {
    let dir = tempdir();
    let (results, late) = (Collected::<(u64, Window, u64)>::new(), Collected::new());
    let items = |times: &[i64]| one_split(&times.iter().map(|at| (*at, 0)).collect::<Vec<_>>());
    let job = |source, added: Option<&[i64]>| {
        let job = Job::new("sources").workers(2).batch_size(batch).checkpoint_dir(dir.path());
        let mut all = job.source(source, watermarks(0)).name("first");
        if let Some(times) = added {
            all = all.union([job.source(from_vec(items(times)), watermarks(0)).name("added")]);
        }
        let keyed = all.key_by(|item: &Item| item.key);
        let (out, too_late) = keyed.window(windows()).aggregate_with_late(Count);
        out.name("windows").sink(results.sink());
        too_late.sink(late.sink());
        job
    };
    let (sender, source) = channel(16);
    let handle = job(source, None).start().expect("starts");
    items(&[5, 15, 45, 56]).into_iter().for_each(|item| sender.send(item).expect("sent"));
    while handle.status().windows_fired < 4 {
        std::thread::yield_now();
    }
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
    let (sender, source) = channel(16);
    drop(sender);
    // 7 is late for all of its windows, 44 for the one that ends first only, and 57 for none.
    let handle = job(source, Some(&[7, 44, 57])).start().expect("goes on");
    oracle::finish(handle).expect("finishes");
    assert_eq!(values(late.take()).iter().map(|item| item.at).collect::<Vec<_>>(), [7]);
    let counts = values(results.take())
        .into_iter()
        .map(|(_, window, n)| (window.start.micros(), window.end.micros(), n));
    assert_eq!(sorted(counts.collect()), expected);
}

// ---- more than one window --------------------------------------------------------------------------------------------

/// Everything that comes out of [`network`], by branch.
#[derive(Debug, Default, PartialEq)]
struct Network {
    windows: BTreeMap<(u64, Window), String>,
    again: BTreeMap<(u64, Window), String>,
    second_chance: BTreeMap<(u64, Window), String>,
    after_fold: BTreeMap<(u64, Window), String>,
    late: Vec<Item>,
    too_late: Vec<Item>,
}

/// Where the branches of [`network`] end.
#[derive(Clone)]
struct Outlets {
    windows: Collected<(u64, Window, (u64, i64))>,
    again: Collected<(u64, Window, (u64, u64))>,
    second_chance: Collected<(u64, Window, u64)>,
    after_fold: Collected<(u64, Window, (u64, u64))>,
    late: Collected<Item>,
    too_late: Collected<Item>,
}

impl Outlets {
    fn new() -> Self {
        Outlets {
            windows: Collected::new(),
            again: Collected::new(),
            second_chance: Collected::new(),
            after_fold: Collected::new(),
            late: Collected::new(),
            too_late: Collected::new(),
        }
    }

    fn take(&self) -> Network {
        Network {
            windows: by_window(self.windows.take()),
            again: by_window(self.again.take()),
            second_chance: by_window(self.second_chance.take()),
            after_fold: by_window(self.after_fold.take()),
            late: sorted(values(self.late.take())),
            too_late: sorted(values(self.too_late.take())),
        }
    }
}

/// Two sources united; windows over them, windows over their results, over their late records, and over running values.
fn network(job: &Job, delay: i64, sources: [Script<Item>; 2], shape: Shape, wide: Shape, outlets: &Outlets) {
    let [one, two] = sources;
    let strikes = strikes(&one.faults);
    let one = job.source(one, watermarks(delay));
    let two = job.source(two, watermarks(delay));
    let keyed = one.union([two]).key_by(|item| item.key);
    let (results, missed) = keyed
        .clone()
        .window(sliding(shape))
        .aggregate_with_late((Count, First::of(|item: &Item| item.value)));
    results.clone().sink(outlets.windows.sink());
    missed.clone().sink(outlets.late.sink());
    let (more, never) = results
        .key_by(|(key, _, _)| key % 2)
        .window(sliding(wide))
        .aggregate_with_late((Count, Sum::of(|(_, _, (count, _)): &(u64, Window, (u64, i64))| *count)));
    more.sink(outlets.again.sink());
    never.sink(for_each(|record| panic!("a result of a window was late: {record:?}")));
    let (saved, lost) = missed.key_by(|item| item.key).window(sliding(wide)).aggregate_with_late(Count);
    saved.sink(outlets.second_chance.sink());
    lost.sink(outlets.too_late.sink());
    keyed
        .fold(0u64, move |count, item| {
            strikes(item);
            *count += 1;
        })
        .key_by(|(key, _)| *key)
        .window(sliding(shape))
        .aggregate((Count, Max::of(|(_, count): &(u64, u64)| u64::from(*count > 0))))
        .sink(outlets.after_fold.sink());
}

/// What [`network`] should give.
fn expected_network(case: &Case, other: &[Vec<Item>], wide: Shape) -> Network {
    // The splits of the second source come after those of the first.
    let judged: Vec<_> = judge(&case.splits, case.delay).into_iter().chain(judge(other, case.delay)).collect();
    let (windows, late) = oracle::window(&judged, case.shape);
    let results: Vec<_> = windows
        .iter()
        .map(|((key, window), items)| {
            let at = window.end.micros() - 1;
            // Results of windows are never late.
            (Item { split: 0, number: 0, at, key: key % 2, value: items.len() as i64 }, None)
        })
        .collect();
    let (again, _) = oracle::window(&results, wide);
    let late_ones: BTreeSet<Item> = late.iter().copied().collect();
    let missed: Vec<_> = judged.iter().copied().filter(|(item, _)| late_ones.contains(item)).collect();
    let (second_chance, too_late) = oracle::window(&missed, wide);
    let show = |map: &BTreeMap<(u64, Window), Vec<Item>>, naive: &dyn Fn(&[Item]) -> String| {
        map.iter().map(|(place, items)| (*place, naive(items))).collect()
    };
    Network {
        windows: show(&windows, &|items| format!("{:?}", (items.len(), first(items)))),
        again: show(&again, &|items| format!("{:?}", (items.len(), total(items)))),
        second_chance: show(&second_chance, &|items| items.len().to_string()),
        after_fold: show(&windows, &|items| format!("{:?}", (items.len(), 1))),
        late: sorted(late),
        too_late: sorted(too_late),
    }
}

/// Splits of a second source, numbered after those of the first.
fn numbered_after(splits: usize, raws: &[(Times, Vec<Raw>)], shape: Shape) -> Vec<Vec<Item>> {
    raws.iter()
        .enumerate()
        .map(|(split, (times, raws))| timed(splits + split, *times, raws, shape))
        .collect()
}

/// Names every difference.
fn compare(got: &Network, expected: &Network) -> Result<(), TestCaseError> {
    let mut wrong = Vec::new();
    for (branch, got, expected) in [
        ("windows", &got.windows, &expected.windows),
        ("windows over windows", &got.again, &expected.again),
        ("windows over late records", &got.second_chance, &expected.second_chance),
        ("windows after a fold", &got.after_fold, &expected.after_fold),
    ] {
        wrong.extend(differences(got, expected).into_iter().map(|difference| format!("{branch}: {difference}")));
    }
    prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    prop_assert_eq!(got, expected);
    Ok(())
}

/// Everything that [`network`] needs: a case, the splits of a second source, and wider windows.
fn networks(most: usize) -> impl Strategy<Value = (Case, Vec<Vec<Item>>, Shape)> {
    (any_case(3, most), prop::collection::vec(raw_split(most), 1..=2), 1i64..4)
        .prop_map(|(case, raws, stretch)| {
            let other = numbered_after(case.splits.len(), &raws, case.shape);
            let size = case.shape.size.saturating_mul(stretch);
            (case.clone(), other, Shape { size, slide: (size / 2).max(1), offset: case.shape.offset })
        })
        .prop_filter("times far from the ends of time (see `timed`)", |(case, other, wide)| {
            let near = |item: &Item| item.at.checked_abs().is_some_and(|at| at < i64::MAX / 8);
            let near = case.splits.iter().chain(other).flatten().all(near);
            near && wide.size < i64::MAX / 8 && wide.offset < i64::MAX / 8
        })
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn windows_after_windows_over_two_sources_are_as_the_oracle_says(
        (case, other, wide) in networks(80),
        setups in setups(),
    ) {
        let expected = expected_network(&case, &other, wide);
        for setup in &setups {
            let (dir, outlets) = (tempdir(), Outlets::new());
            let job = new_job(setup, &dir);
            let sources = [Script::new(case.splits.clone()).pace(setup.pace), Script::new(other.clone())];
            network(&job, case.delay, sources, case.shape, wide, &outlets);
            let summary = run(job).expect("the job finishes");
            let network = outlets.take();
            compare(&network, &expected)?;
            let fired = [&network.windows, &network.again, &network.second_chance, &network.after_fold];
            prop_assert_eq!(summary.windows_fired, fired.iter().map(|map| map.len() as u64).sum::<u64>());
        }
    }
}

// ---- crashes ---------------------------------------------------------------------------------------------------------

/// Count, exact sum, and the place of the first record; and, of the same records, what can be inverted.
fn check_through(
    case: &Case,
    kinds: impl Windows<Item>,
    (windows, late): Windowed,
    troubles: &[Trouble],
    workers: &[usize],
    setup: &Setup,
) -> Result<Vec<Option<u64>>, TestCaseError> {
    let (results, sums, late_records) = (Collected::new(), Collected::new(), Collected::new());
    let restored = run_through(troubles, &case.splits, workers, setup, |job, faults| {
        let keyed = keyed(job, case, setup.pace, faults);
        let inverted = keyed.clone().window(kinds.clone());
        inverted.aggregate((Count, Sum::of(|item: &Item| item.value))).sink(sums.sink());
        let (out, too_late) = keyed.window(kinds.clone()).aggregate_with_late((
            Count,
            Sum::of(float),
            First::of(|item: &Item| (item.split, item.number)),
        ));
        out.sink(results.sink());
        too_late.sink(late_records.sink());
    })?;
    let place = |items: &[Item]| {
        let item = items.iter().min_by_key(|item| (item.at, item.split, item.number)).expect("not empty");
        (item.split, item.number)
    };
    let naive = |items: &Vec<Item>| format!("{:?}", (items.len(), float_sum(items), place(items)));
    let expected = windows.iter().map(|((key, window), items)| ((text(*key), *window), naive(items))).collect();
    let wrong = differences(&by_window(results.take()), &expected);
    prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    let naive = |items: &Vec<Item>| format!("{:?}", (items.len(), total(items)));
    let expected = windows.iter().map(|((key, window), items)| ((text(*key), *window), naive(items))).collect();
    let wrong = differences(&by_window(sums.take()), &expected);
    prop_assert!(wrong.is_empty(), "inverted: {:#?}", wrong);
    prop_assert_eq!(sorted(values(late_records.take())), late);
    Ok(restored)
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        case in any_case(4, 200),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let expected = oracle::window(&judge(&case.splits, case.delay), case.shape);
        check_through(&case, sliding(case.shape), expected, &troubles, &workers, &setup)?;
    }

    /// What is kept apart may be restored on a worker that gets groups which have fired more, or less.
    #[test]
    fn crashes_change_nothing_in_what_many_late_records_count_for(
        case in late_case(4, 150),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let expected = oracle::window(&judge(&case.splits, case.delay), case.shape);
        check_through(&case, sliding(case.shape), expected, &troubles, &workers, &setup)?;
    }

    #[test]
    fn crashes_change_nothing_in_windows_of_a_calendar(
        calendar in calendar_case(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let case = &calendar.case;
        let expected = calendar.expected(&judge(&case.splits, case.delay));
        check_through(case, calendar.windows(), expected, &troubles, &workers, &setup)?;
    }

    #[test]
    fn crashes_change_nothing_in_windows_after_windows(
        (case, other, wide) in networks(80),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        let splits = [&case.splits[..], &other[..]].concat();
        run_through(&troubles, &splits, &workers, &setup, |job, faults| {
            let one = Script::new(case.splits.clone()).pace(setup.pace).faults(faults);
            let two = Script::new(other.clone()).pace(setup.pace).faults(faults).numbered_from(case.splits.len());
            network(job, case.delay, [one, two], case.shape, wide, &outlets);
        })?;
        compare(&outlets.take(), &expected_network(&case, &other, wide))?;
    }
}

/// As above, with input so long that there is no doubt that attempts began in its midst.
#[test]
fn a_long_job_goes_on_from_the_midst_of_its_input() {
    let records = |split: u32| {
        let item = move |n: u64| Item {
            split,
            number: n,
            at: (n / 2 + n * 37 % 41) as i64,
            key: n % 6,
            value: n as i64 * 1_001,
        };
        (0..600).map(item).collect::<Vec<_>>()
    };
    let case =
        Case { splits: (0..4).map(records).collect(), shape: Shape { size: 40, slide: 15, offset: 4 }, delay: 20 };
    let setup = Setup { batch: 64, pace: Pace::Slow(3), ..ONE };
    let at = |split: u32, record: u32| f64::from(split * 600 + record) / 2_400.0;
    let troubles = [
        Trouble::Crash(at(0, 200), Fails::Read),
        Trouble::Crash(at(3, 350), Fails::Reader),
        Trouble::Stop(5_000, StopMode::Now),
        Trouble::Stop(5_000, StopMode::WithCheckpoint),
        Trouble::Crash(at(1, 590), Fails::Operator),
    ];
    let judged = judge(&case.splits, case.delay);
    let kinds = [case.shape, Shape { size: 7, slide: 7, offset: 2 }, Shape { size: 60, slide: 20, offset: 4 }];
    for workers in [[1, 2, 3, 8], [8, 1, 2, 1], [3, 8, 1, 2]] {
        let one =
            check_through(&case, sliding(case.shape), oracle::window(&judged, case.shape), &troubles, &workers, &setup);
        let several =
            check_through(&case, several(&kinds), oracle::several(&judged, &kinds), &troubles, &workers, &setup);
        for restored in [one, several] {
            let restored = restored.expect("as the oracle says");
            assert!(restored.last().is_some_and(Option::is_some), "{restored:?}");
        }
    }
}

// ---- idle splits -----------------------------------------------------------------------------------------------------

/// A split that has nothing for a while is judged by its own watermark when it comes back, however far the other one is.
#[test]
fn a_split_that_was_idle_is_judged_by_its_own_watermark() {
    for workers in [1, 2, 3, 8] {
        let gate = Gate::default();
        let open = gate.clone();
        let job = Job::new("idle").workers(workers);
        let (results, late) = (Collected::new(), Collected::new());
        let (out, too_late) = job
            .source(gate, watermarks(0))
            .inspect(move |item| {
                if item.at == 100 {
                    open.open()
                }
            })
            .key_by(|item| item.key)
            .window(Tumbling::of(EventSpan::micros(10)))
            .aggregate_with_late(Count);
        out.sink(results.sink());
        too_late.sink(late.sink());
        run(job).expect("the job finishes");
        let counts = values(results.take()).into_iter().map(|(_, window, n)| (window.start.micros(), n));
        assert_eq!(sorted(counts.collect()), [(0, 3), (100, 2), (200, 1)], "{workers} workers");
        let late = values(late.take());
        assert_eq!(late.iter().map(|item| item.at).collect::<Vec<_>>(), [4], "{workers} workers");
    }
}

/// A source of two splits. The first has the times 1, 2 and 100, and then 200; between these, and before the second begins,
/// somebody has to open the gate. The second has 3, behind a window that the first has left, then 101 and 4.
#[derive(Clone, Default)]
struct Gate {
    open: Arc<AtomicBool>,
    wakers: Arc<Mutex<Vec<Waker>>>,
}

impl Gate {
    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.wakers.lock().expect("no panic").iter().for_each(Waker::wake);
    }
}

impl Source for Gate {
    type Item = Item;
    type Position = u64;
    type Reader = GateReader;

    fn kind(&self) -> &'static str {
        "gate"
    }

    fn splits(&self) -> Result<Vec<String>, Error> {
        Ok(vec!["active".into(), "idle".into()])
    }

    fn open(&self, split: &str, _: Option<u64>, waker: Waker) -> Result<GateReader, Error> {
        self.wakers.lock().expect("no panic").push(waker.clone());
        let (before, after): (&[_], &[_]) =
            if split == "active" { (&[1, 2, 100], &[200]) } else { (&[], &[3, 101, 4]) };
        let items = |times: &[i64]| one_split(&times.iter().map(|at| (*at, 0)).collect::<Vec<_>>());
        Ok(GateReader { gate: self.clone(), waker, before: items(before), after: items(after), read: 0 })
    }
}

struct GateReader {
    gate: Gate,
    waker: Waker,
    before: Vec<Item>,
    after: Vec<Item>,
    read: u64,
}

impl SplitReader for GateReader {
    type Item = Item;
    type Position = u64;

    fn read(&mut self, _: usize, out: &mut impl Output<Item>) -> Result<Read, Error> {
        self.read += self.before.len() as u64;
        out.records(self.before.drain(..));
        self.waker.will_sleep();
        if !self.gate.open.load(Ordering::SeqCst) {
            return Ok(Read::Empty);
        }
        self.read += self.after.len() as u64;
        out.records(self.after.drain(..));
        Ok(Read::Ended)
    }

    fn position(&self) -> u64 {
        self.read
    }
}

/// Windows of 10 ms that begin every 10 us, for a source that has 100 records a millisecond: 1,000 results a record. What
/// a worker reads in a turn makes four times as many results as it emits in one.
#[test]
fn a_source_does_not_run_ahead_of_windows_that_take_long() {
    let (read, ahead) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let (reads, furthest) = (Arc::clone(&read), Arc::clone(&ahead));
    let at = |i: &u64| EventTime::from_micros(*i as i64 * 10);
    let generate = move |i| {
        reads.fetch_max(i as i64 * 10, Ordering::Relaxed);
        i
    };
    let job = Job::new("ahead").workers(1).batch_size(64);
    job.source(Generator::new(8_192, generate), Watermarks::monotonous(at))
        .key_by(|i| i % 1_000)
        .window(Sliding::of(EventSpan::millis(10), EventSpan::micros(10)))
        .aggregate(Count)
        .sink(for_each(move |record: Record<Pane<u64, u64>>| {
            let end = record.value.1.end.micros();
            furthest.fetch_max(read.load(Ordering::Relaxed) - end, Ordering::Relaxed);
        }));
    let summary = job.run().expect("the job runs");
    assert!(summary.records_out > 8_000_000, "{summary:?}");
    // Of 82 ms of event time; sources that do not wait come to be 60 ms ahead.
    let ahead = ahead.load(Ordering::Relaxed);
    assert!(ahead < 41_000, "{ahead} us ahead");
}
