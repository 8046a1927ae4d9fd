//! Stateless operators, folds and the graph around them, as whole jobs: against iterators, against the oracle of windows,
//! and when user code fails.

#[allow(dead_code)] // shared with tests/windows.rs
mod oracle;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millstream::prelude::*;
use millstream::sink::Sink;
use millstream::source::{Source, Waker};
use oracle::{Fails, Fault, Item, Pace, Script, Shape, cases, differences, finish, judge, quiet, run, tempdir};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

fn by_time(delay: i64) -> Watermarks<Item, impl Fn(&Item) -> EventTime + Clone + Send, impl WatermarkGenerator> {
    Watermarks::bounded_out_of_orderness(EventSpan::micros(delay), Item::time)
}

fn values<T: Ord>(records: Vec<Record<T>>) -> Vec<T> {
    let mut values: Vec<T> = records.into_iter().map(|record| record.value).collect();
    values.sort();
    values
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items
}

/// The sources of most tests: numbers, of which each is its own event time.
fn numbers(job: &Job, numbers: impl IntoIterator<Item = i64>) -> Stream<i64> {
    job.source(from_vec(numbers.into_iter().collect()), Watermarks::monotonous(|n: &i64| EventTime::from_micros(*n)))
}

// ---- chains against iterators ----------------------------------------------------------------------------------------

/// One operator of a random pipeline.
#[derive(Clone, Copy, Debug)]
enum Op {
    Map(i64),
    TryMap(i64),
    Filter(i64),
    FilterMap(i64),
    FlatMap(i64),
    Inspect,
    /// Divides the stream, does something to one half, and unites the halves.
    Partition(i64),
    Split(i64),
    /// Unites the stream with itself.
    Double,
    Named(u8),
}

fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        1 => (0i64..4).prop_map(Op::Map),
        1 => (0i64..4).prop_map(Op::TryMap),
        3 => (0i64..4).prop_map(Op::Filter),
        1 => (0i64..4).prop_map(Op::FilterMap),
        2 => (0i64..4).prop_map(Op::FlatMap),
        1 => Just(Op::Inspect),
        1 => (0i64..4).prop_map(Op::Partition),
        1 => (0i64..4).prop_map(Op::Split),
        1 => Just(Op::Double),
        1 => any::<u8>().prop_map(Op::Named),
    ];
    prop::collection::vec(op, 0..=most)
}

fn map(n: i64, item: Item) -> Item {
    Item { value: item.value.wrapping_mul(3).wrapping_add(n), key: (item.key + 1) % 7, ..item }
}

fn keeps(n: i64, item: &Item) -> bool {
    (item.value + item.at).rem_euclid(4) != n
}

fn flat_map(n: i64, item: Item) -> Vec<Item> {
    (0..(item.value + n).rem_euclid(3)).map(|copy| Item { value: item.value + copy, ..item }).collect()
}

/// What the pipeline does, as a stream.
fn on_stream(ops: &[Op], mut stream: Stream<Item>) -> Stream<Item> {
    for (place, op) in ops.iter().enumerate() {
        stream = match *op {
            Op::Map(n) => stream.map(move |item| map(n, item)),
            Op::TryMap(n) => stream.try_map(move |item| Ok::<_, std::io::Error>(map(n, item))),
            Op::Filter(n) => stream.filter(move |item| keeps(n, item)),
            Op::FilterMap(n) => stream.filter_map(move |item| keeps(n, &item).then(|| map(n, item))),
            Op::FlatMap(n) => stream.flat_map(move |item| flat_map(n, item)),
            Op::Inspect => stream.inspect(|item| assert!(item.key < 7)),
            Op::Partition(n) => {
                let (yes, no) = stream.partition(move |item| keeps(n, item));
                yes.map(move |item| map(n, item)).union([no])
            }
            Op::Split(n) => {
                let choose =
                    move |item: Item| if keeps(n, &item) { Side::Main(item) } else { Side::Side(map(n, item)) };
                let (yes, no) = stream.split(choose);
                no.union([yes])
            }
            Op::Double => stream.clone().union([stream]),
            Op::Named(n) => stream.filter(|_| true).name(format!("named-{place}-{n}")),
        };
    }
    stream
}

/// The same on one record.
fn on_item(ops: &[Op], item: Item) -> Vec<Item> {
    let mut items = vec![item];
    for op in ops {
        let each = |item: Item| match *op {
            Op::Map(n) | Op::TryMap(n) => vec![map(n, item)],
            Op::Filter(n) => Vec::from_iter(keeps(n, &item).then_some(item)),
            Op::FilterMap(n) => Vec::from_iter(keeps(n, &item).then(|| map(n, item))),
            Op::FlatMap(n) => flat_map(n, item),
            Op::Inspect | Op::Named(_) => vec![item],
            Op::Partition(n) => vec![if keeps(n, &item) { map(n, item) } else { item }],
            Op::Split(n) => vec![if keeps(n, &item) { item } else { map(n, item) }],
            Op::Double => vec![item, item],
        };
        items = items.into_iter().flat_map(each).collect();
    }
    items
}

fn input(splits: usize, most: usize) -> impl Strategy<Value = Vec<Vec<Item>>> {
    let record = (0u64..6, 0i64..60, 0i64..3, -100i64..100);
    prop::collection::vec(prop::collection::vec(record, 0..=most), 1..=splits).prop_map(|splits| {
        let split = |(split, records): (usize, Vec<(u64, i64, i64, i64)>)| {
            let mut clock = 0;
            let item = |(number, (key, jitter, step, value)): (usize, (u64, i64, i64, i64))| {
                clock += step;
                Item { split: split as u32, number: number as u64, at: clock - jitter, key, value }
            };
            records.into_iter().enumerate().map(item).collect()
        };
        splits.into_iter().enumerate().map(split).collect()
    })
}

/// How a job is run.
fn setups() -> impl Strategy<Value = (usize, usize, usize, bool)> {
    (
        prop::sample::select(vec![1usize, 2, 3, 8]),
        prop::sample::select(vec![1024usize, 7, 2, 1]),
        prop::sample::select(vec![65_536usize, 10, 1]),
        prop::bool::weighted(0.2),
    )
}

fn failures() -> impl Strategy<Value = Fails> {
    prop::sample::select(vec![Fails::Read, Fails::Reader, Fails::Operator])
}

fn new_job((workers, batch, in_flight, checkpoints): (usize, usize, usize, bool), dir: &tempfile::TempDir) -> Job {
    let mut job = Job::new("operators").workers(workers).batch_size(batch);
    job.settings_mut().in_flight = in_flight;
    if checkpoints {
        job = job.checkpoint_dir(dir.path()).checkpoint_every(Duration::from_millis(1));
    }
    job
}

proptest! {
    #![proptest_config(config(cases(200)))]

    /// A pipeline is the same on streams and on iterators; and which of its records are late for the windows after it is
    /// decided by the watermarks of all records, not of those that are left.
    #[test]
    fn pipelines_are_as_on_iterators(splits in input(3, 60), ops in ops(6), delay in 0i64..40, setup in setups()) {
        let dir = tempdir();
        let job = new_job(setup, &dir);
        let (all, results, late) = (Collected::new(), Collected::new(), Collected::new());
        let stream = on_stream(&ops, job.source(Script::new(splits.clone()), by_time(delay)));
        stream.clone().sink(all.sink());
        let (windows, too_late) = stream
            .key_by(|item| item.key)
            .window(Sliding::of(EventSpan::micros(10), EventSpan::micros(4)))
            .aggregate_with_late((Count, Sum::of(|item: &Item| item.value), First::of(|item: &Item| item.at)));
        windows.sink(results.sink());
        too_late.sink(late.sink());
        let summary = run(job).expect("the job finishes");

        let judged: Vec<_> = judge(&splits, delay)
            .into_iter()
            .flat_map(|(item, watermark)| on_item(&ops, item).into_iter().map(move |item| (item, watermark)))
            .collect();
        let all = all.take();
        prop_assert!(all.iter().all(|record| record.at == record.value.time()), "the event time stays");
        prop_assert_eq!(values(all), sorted(judged.iter().map(|(item, _)| *item).collect()));
        let (expected, expected_late) = oracle::window(&judged, Shape { size: 10, slide: 4, offset: 0 });
        let show = |items: &Vec<Item>| {
            let sum: i64 = items.iter().map(|item| item.value).sum();
            (items.len() as u64, sum, items.iter().map(|item| item.at).min().expect("not empty"))
        };
        let expected: BTreeMap<_, _> = expected.iter().map(|(place, items)| (*place, show(items))).collect();
        let results = results.take();
        prop_assert_eq!(results.len(), expected.len());
        let got = results.into_iter().map(|record| ((record.value.0, record.value.1), record.value.2)).collect();
        let wrong = differences(&got, &expected);
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
        prop_assert_eq!(values(late.take()), sorted(expected_late));
        prop_assert_eq!(summary.records_in, splits.iter().map(Vec::len).sum::<usize>() as u64);
    }

    /// Records keep their places through a filter: ties of the first and the last are broken as if it were not there.
    #[test]
    fn filters_keep_the_places_of_records(splits in input(4, 60), n in 0i64..4, setup in setups()) {
        let dir = tempdir();
        let job = new_job(setup, &dir);
        let results = Collected::new();
        let place = |item: &Item| (item.split, item.number);
        job.source(Script::new(splits.clone()), by_time(1_000))
            .filter(move |item| keeps(n, item))
            .inspect(|_| ())
            .partition(|item| item.key < 4)
            .0
            .key_by(|item| item.key)
            .window(Tumbling::of(EventSpan::micros(20)))
            .aggregate((First::of(place), Last::of(place)))
            .sink(results.sink());
        run(job).expect("the job finishes");
        let left: Vec<_> = judge(&splits, 1_000).into_iter().filter(|(item, _)| keeps(n, item) && item.key < 4).collect();
        let (expected, _) = oracle::window(&left, Shape { size: 20, slide: 20, offset: 0 });
        let order = |item: &&Item| (item.at, item.split, item.number);
        let show = |items: &Vec<Item>| {
            let (first, last) = (items.iter().min_by_key(order), items.iter().max_by_key(order));
            (place(first.expect("not empty")), place(last.expect("not empty")))
        };
        let expected: BTreeMap<_, _> = expected.iter().map(|(place, items)| (*place, show(items))).collect();
        let got = results.take().into_iter().map(|record| ((record.value.0, record.value.1), record.value.2)).collect();
        let wrong = differences(&got, &expected);
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    }

    /// Running values: one for every record, each count of a key once, and with the last count the total. Through a crash as
    /// well, on another number of workers.
    #[test]
    fn folds_and_reductions_count_every_record_once(
        splits in input(3, 120),
        setup in setups(),
        crash in prop::option::weighted(0.5, (any::<prop::sample::Index>(), failures())),
        workers in prop::sample::select(vec![1usize, 2, 3, 8]),
    ) {
        let dir = tempdir();
        let all: Vec<Item> = splits.iter().flatten().copied().collect();
        let faults = match crash {
            Some((at, how)) if !all.is_empty() => {
                let item = at.get(&all);
                vec![Fault::new(item.split as usize, item.number as usize, how)]
            }
            _ => vec![],
        };
        let (folded, reduced, windowed) = (Collected::new(), Collected::new(), Collected::new());
        let attempt = |setup| {
            let job = new_job(setup, &dir);
            let source = Script::new(splits.clone()).faults(&faults);
            let source = if crash.is_some() { source.pace(Pace::Slow(3)) } else { source };
            let keyed = job.source(source, by_time(5)).key_by(|item| format!("key {}", item.key));
            let strikes = faults.clone();
            let folds = keyed.clone().fold((0u64, 0i64), move |(count, sum), item| {
                strikes.iter().for_each(|fault| fault.strike(item));
                *count += 1;
                *sum += item.value;
            });
            folds.sink(folded.sink());
            job.source(Script::new(splits.clone()), by_time(5))
                .map(|item| (item.key, 1u64, item.value))
                .key_by(|(key, _, _)| *key)
                .reduce(|(_, count, sum), (_, more, value)| {
                    *count += more;
                    *sum += value;
                })
                .sink(reduced.sink());
            keyed.window(Tumbling::of(EventSpan::micros(50))).aggregate(Count).sink(windowed.sink());
            run(job)
        };
        quiet();
        let mut result = attempt(if crash.is_some() { (setup.0, setup.1, setup.2, true) } else { setup });
        if !faults.is_empty() {
            let error = result.expect_err("the fault").to_string();
            prop_assert!(error.contains("boom"), "{}", error);
            result = attempt((workers, setup.1, setup.2, true));
        }
        result.expect("the job finishes");

        let mut totals = BTreeMap::<u64, (u64, i64)>::new();
        for item in &all {
            let total = totals.entry(item.key).or_default();
            *total = (total.0 + 1, total.1 + item.value);
        }
        let check = |running: Vec<(String, (u64, i64))>| {
            prop_assert_eq!(running.len(), all.len(), "one running value for every record");
            for (key, (count, sum)) in &totals {
                let of_key = running.iter().filter(|(of, _)| *of == format!("key {key}"));
                let of_key = sorted(of_key.map(|(_, value)| *value).collect());
                prop_assert!(of_key.iter().map(|(count, _)| *count).eq(1..=*count), "{:?}", of_key);
                prop_assert_eq!(of_key.last(), Some(&(*count, *sum)));
            }
            Ok(())
        };
        check(values(folded.take()))?;
        let reduced = values(reduced.take());
        check(reduced.into_iter().map(|(key, (_, count, sum))| (format!("key {key}"), (count, sum))).collect())?;
    }
}

#[test]
fn what_the_operators_do() {
    for workers in [1, 2, 8] {
        let job = Job::new("operators").workers(workers);
        let seen = Collected::new();
        let (small, rest) = numbers(&job, 0..10).partition(|n| *n < 3);
        let small = small.map(|n| format!("small {n}"));
        let (even, odd) = rest.split(|n| if n % 2 == 0 { Side::Main(n as u8) } else { Side::Side(format!("odd {n}")) });
        let even = even
            .filter(|n| *n != 4)
            .flat_map(|n| [n, n + 100])
            .filter_map(|n| (n != 106).then(|| format!("even {n}")));
        let odd = odd.try_map(|text| text.replace("odd ", "").parse::<i64>()).map(|n| format!("odd {}", n * 10));
        small.union([even, odd]).sink(seen.sink());
        let summary = run(job).expect("the job finishes");
        let expected =
            ["even 108", "even 6", "even 8", "odd 30", "odd 50", "odd 70", "odd 90", "small 0", "small 1", "small 2"];
        assert_eq!(values(seen.take()), expected);
        assert_eq!((summary.records_in, summary.records_out), (10, 10));
    }
}

/// One worker and one split: a chain keeps the order of the split.
#[test]
fn a_chain_on_one_worker_keeps_the_order() {
    for batch in [1, 2, 7, 1024] {
        let job = Job::new("operators").workers(1).batch_size(batch);
        let seen = Collected::new();
        numbers(&job, 0..1_000)
            .filter(|n| n % 3 != 0)
            .flat_map(|n| [n, -n])
            .map(|n| n * 2)
            .sink(seen.sink());
        run(job).expect("the job finishes");
        let expected = (0..1_000i64).filter(|n| n % 3 != 0).flat_map(|n| [2 * n, -2 * n]);
        assert!(seen.values().into_iter().eq(expected));
    }
}

/// Values that own something are moved, others may be cloned.
#[test]
fn a_filter_keeps_what_owns_something_in_order_and_tells_which_record_failed() {
    for (workers, batch) in [(1, 1024), (1, 1), (2, 7)] {
        let job = Job::new("operators").workers(workers).batch_size(batch);
        let seen = Collected::new();
        numbers(&job, 0..1_000)
            .map(|n| n.to_string())
            .filter(|n| !n.ends_with('3'))
            .filter(|n| n != "7")
            .sink(seen.sink());
        run(job).expect("the job finishes");
        let expected = (0..1_000).map(|n: i64| n.to_string()).filter(|n| !n.ends_with('3') && n != "7");
        assert!(seen.values().into_iter().eq(expected));

        let job = Job::new("operators").workers(workers).batch_size(batch);
        let text = numbers(&job, 0..1_000).map(|n| n.to_string()).filter(|n| !n.ends_with('3'));
        text.filter(|n| n != "125" || panic!("boom")).name("culprit").sink(Collected::new().sink());
        let error = failure(job);
        assert_eq!(error.operator(), Some("culprit"), "{error}");
        assert!(error.to_string().contains("record 126 of"), "{error}");
    }
}

#[test]
fn a_stream_has_as_many_readers_as_are_asked_for() {
    for workers in [1, 2, 8] {
        let job = Job::new("operators").workers(workers).batch_size(7);
        let stream = numbers(&job, 0..500).map(|n| n + 1);
        let sinks: Vec<Collected<i64>> = (0..5).map(|_| Collected::new()).collect();
        for (n, sink) in sinks.iter().enumerate() {
            let n = n as i64;
            stream.clone().filter(move |value| value % 5 >= n).map(move |value| value * n).sink(sink.sink());
        }
        let twice = Collected::new();
        stream.clone().union([stream.clone(), stream]).sink(twice.sink());
        run(job).expect("the job finishes");
        for (n, sink) in sinks.iter().enumerate() {
            let n = n as i64;
            let expected: Vec<i64> = (1..=500).filter(|value| value % 5 >= n).map(|value| value * n).collect();
            assert_eq!(values(sink.take()), sorted(expected));
        }
        assert_eq!(values(twice.take()), sorted((1..=500).flat_map(|n| [n, n, n]).collect()));
    }
}

#[test]
fn many_sources_are_united() {
    for (workers, sources) in [(1, 2), (2, 9), (8, 3)] {
        let job = Job::new("operators").workers(workers).batch_size(3);
        let seen = Collected::new();
        let each = |n: i64| numbers(&job, (0..100).map(move |i| i * 10 + n));
        each(0).union((1..sources).map(each)).union([]).sink(seen.sink());
        let summary = run(job).expect("the job finishes");
        let expected: Vec<i64> = (0..1_000).filter(|n| n % 10 < sources).collect();
        assert_eq!(values(seen.take()), expected);
        assert_eq!(summary.records_in, 100 * sources as u64);
    }
}

#[test]
#[should_panic(expected = "two different jobs")]
fn streams_of_two_jobs_are_not_united() {
    let (one, two) = (Job::new("one"), Job::new("two"));
    let _ = numbers(&one, 0..3).union([numbers(&two, 0..3)]);
}

// ---- when user code fails --------------------------------------------------------------------------------------------

/// Runs a job that must fail within two seconds.
fn failure(job: Job) -> Error {
    quiet();
    let handle = job.start().expect("the job starts");
    let begun = Instant::now();
    let error = finish(handle).expect_err("the job fails");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?} for {error}", begun.elapsed());
    error
}

/// Three splits of 400 records; the value of a record is its number in its split.
fn three_splits() -> Vec<Vec<Item>> {
    let split = |split: u32| {
        let item = |n: u64| Item { split, number: n, at: n as i64, key: n % 5, value: n as i64 };
        (0..400).map(item).collect()
    };
    (0..3).map(split).collect()
}

/// Whether this is the record over which user code stumbles: the 124th of the second split, with the key 3.
fn fatal(item: &Item) -> bool {
    item.split == 1 && item.number == 123
}

fn stumble(item: &Item) {
    assert!(!fatal(item), "boom at {item:?}");
}

/// Builds a job around an operator called `culprit`.
type Build = fn(Stream<Item>) -> Stream<Item>;

#[test]
fn a_panic_in_a_stateless_operator_names_operator_and_record() {
    let operators: [(&str, Build); 7] = [
        ("map", |s| s.map(|item| (stumble(&item), item).1)),
        ("try_map", |s| s.try_map(|item| Ok::<_, Error>((stumble(&item), item).1))),
        ("filter", |s| s.filter(|item| (stumble(item), true).1)),
        ("filter_map", |s| s.filter_map(|item| Some((stumble(&item), item).1))),
        ("flat_map", |s| s.flat_map(|item| [(stumble(&item), item).1])),
        ("inspect", |s| s.inspect(stumble)),
        ("partition", |s| s.partition(|item| (stumble(item), true).1).0),
    ];
    // What stands before it in the chain must not blur which record it was.
    let before: [(&str, Build); 4] = [
        ("nothing", |s| s),
        ("filter", |s| s.filter(|item| item.number % 3 != 1)),
        ("flat_map", |s| s.flat_map(|item| vec![item; (item.number % 4) as usize])),
        ("all", |s| {
            s.map(|item| item).flat_map(|item| vec![item; (item.number % 4) as usize]).filter(|i| i.at % 2 > 0)
        }),
    ];
    for (kind, operator) in operators {
        for (chain, before) in before {
            for (workers, batch) in [(1, 1024), (2, 7), (8, 1)] {
                let job = Job::new("stumbles").workers(workers).batch_size(batch);
                let input = before(job.source(Script::new(three_splits()), by_time(10)));
                operator(input).name("culprit").map(|item| item).sink(Collected::new().sink());
                let error = failure(job);
                let text = format!("{kind} after {chain} on {workers} workers: {error}");
                assert_eq!(error.kind(), ErrorKind::User, "{text}");
                assert_eq!(error.operator(), Some("culprit"), "{text}");
                assert!(text.contains("record 124 of split `split-1`"), "{text}");
                assert!(text.contains("panicked: boom at 1:123"), "{text}");
            }
        }
    }
}

#[test]
fn an_error_of_try_map_names_operator_and_record() {
    for (workers, batch) in [(1, 1024), (2, 7), (8, 1)] {
        let job = Job::new("stumbles").workers(workers).batch_size(batch);
        job.source(Script::new(three_splits()), by_time(10))
            .filter(|item| item.number % 2 == 1)
            .try_map(|item| if fatal(&item) { Err("boom") } else { Ok(item) })
            .name("culprit")
            .sink(Collected::new().sink());
        let error = failure(job);
        assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{error}");
        let text = error.to_string();
        assert!(text.contains("record 124 of split `split-1`") && text.contains("boom"), "{text}");
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn whichever_record_it_is_the_error_names_it(
        splits in input(4, 100),
        at in any::<prop::sample::Index>(),
        ops in ops(4),
        setup in setups(),
    ) {
        // The record must get through to the end of the chain.
        let through: Vec<Item> =
            splits.iter().flatten().copied().filter(|item| !on_item(&ops, *item).is_empty()).collect();
        prop_assume!(!through.is_empty());
        let fatal = *at.get(&through);
        let dir = tempdir();
        let job = new_job(setup, &dir);
        on_stream(&ops, job.source(Script::new(splits), by_time(10)))
            .inspect(move |item| assert!((item.split, item.number) != (fatal.split, fatal.number), "boom"))
            .name("culprit")
            .sink(Collected::new().sink());
        let error = failure(job);
        prop_assert_eq!(error.operator(), Some("culprit"));
        let place = format!("record {} of split `split-{}`", fatal.number + 1, fatal.split);
        prop_assert!(error.to_string().contains(&place), "{} is not in {}", place, error);
    }
}

#[test]
fn a_panic_in_a_key_or_time_function_names_operator_and_record() {
    for (workers, batch) in [(1, 1024), (2, 7), (8, 1)] {
        let job = Job::new("stumbles").workers(workers).batch_size(batch);
        job.source(Script::new(three_splits()), by_time(10))
            .key_by(|item| (stumble(item), item.key).1)
            .fold(0u64, |n, _| *n += 1)
            .sink(Collected::new().sink());
        let error = failure(job);
        let text = error.to_string();
        assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("key_by-1")), "{text}");
        assert!(text.contains("record 124 of split `split-1`") && text.contains("boom"), "{text}");

        let job = Job::new("stumbles").workers(workers).batch_size(batch);
        let times = Watermarks::monotonous(|item: &Item| (stumble(item), item.time()).1);
        job.source(Script::new(three_splits()), times).name("culprit").sink(Collected::new().sink());
        let error = failure(job);
        let text = error.to_string();
        assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{text}");
        assert!(text.contains("record 124 of split `split-1`") && text.contains("boom"), "{text}");
    }
}

/// An aggregate that stumbles: over a record, over a merge of slices, or over a result.
#[derive(Clone)]
struct Stumbles(&'static str);

impl Aggregate<Item> for Stumbles {
    type Acc = bool;
    type Out = u64;

    fn create(&self) -> bool {
        false
    }

    fn add(&self, acc: &mut bool, item: &Item, _: &millstream::aggregate::Origin) {
        *acc |= fatal(item);
        assert!(!*acc || self.0 != "add", "boom");
    }

    fn merge(&self, into: &mut bool, from: &bool) {
        *into |= from;
        assert!(!*into || self.0 != "merge", "boom");
    }

    fn finish(&self, acc: &bool) -> u64 {
        assert!(!*acc || self.0 != "finish", "boom");
        0
    }
}

#[test]
fn a_panic_in_a_keyed_operator_names_operator_and_key() {
    type Keyed = fn(KeyedStream<String, Item>) -> Stream<()>;
    let operators: [(&str, &str, Keyed); 6] = [
        ("add", "key \"k3\"", |s| {
            s.window(Tumbling::of(EventSpan::micros(50))).aggregate(Stumbles("add")).name("culprit").map(|_| ())
        }),
        ("tuple", "key \"k3\"", |s| {
            let boom = |item: &Item| (stumble(item), item.value).1;
            s.window(Tumbling::of(EventSpan::micros(50)))
                .aggregate((Count, Sum::of(boom)))
                .name("culprit")
                .map(|_| ())
        }),
        ("merge", "", |s| {
            let windows = Sliding::of(EventSpan::micros(30), EventSpan::micros(10));
            s.window(windows).aggregate(Stumbles("merge")).name("culprit").map(|_| ())
        }),
        ("finish", "", |s| {
            s.window(Tumbling::of(EventSpan::micros(50)))
                .aggregate(Stumbles("finish"))
                .name("culprit")
                .map(|_| ())
        }),
        ("fold", "key \"k3\"", |s| s.fold(0u64, |_, item| stumble(item)).name("culprit").map(|_| ())),
        ("closure", "key \"k3\"", |s| {
            let fold = millstream::aggregate::Fold::new(0u64, |_: &mut u64, item: &Item| stumble(item), |_, _| ());
            s.window(Tumbling::of(EventSpan::micros(50))).aggregate(fold).name("culprit").map(|_| ())
        }),
    ];
    for (kind, place, operator) in operators {
        for (workers, batch) in [(1, 1024), (2, 7), (8, 1)] {
            let job = Job::new("stumbles").workers(workers).batch_size(batch);
            let keyed = job.source(Script::new(three_splits()), by_time(10)).key_by(|item| format!("k{}", item.key));
            operator(keyed).sink(Collected::new().sink());
            let error = failure(job);
            let text = format!("{kind} on {workers} workers: {error}");
            assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{text}");
            assert!(text.contains("boom") && text.contains(place), "{text}");
        }
    }
}

#[test]
fn a_sum_that_overflows_names_operator_and_key() {
    for workers in [1, 2, 8] {
        let job = Job::new("stumbles").workers(workers);
        job.source(Script::new(three_splits()), by_time(10))
            .key_by(|item| item.key)
            .window(Tumbling::of(EventSpan::secs(1)))
            .aggregate(Sum::of(|item: &Item| if item.key == 3 { i64::MAX } else { 1 }))
            .name("culprit")
            .sink(Collected::new().sink());
        let error = failure(job);
        let text = error.to_string();
        assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{text}");
        assert!(text.contains("leaves the range") && text.contains("key 3"), "{text}");
    }
}

#[test]
fn a_panic_or_error_in_a_sink_or_source_names_it() {
    for (workers, batch) in [(1, 1024), (2, 7), (8, 1)] {
        let new_job = || Job::new("stumbles").workers(workers).batch_size(batch);
        let job = new_job();
        job.source(Script::new(three_splits()), by_time(10))
            .sink(for_each(|record: Record<Item>| stumble(&record.value)))
            .name("culprit");
        let error = failure(job);
        assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{error}");

        let job = new_job();
        let fails = |record: Record<Item>| if fatal(&record.value) { Err("boom") } else { Ok(()) };
        job.source(Script::new(three_splits()), by_time(10)).sink(try_for_each(fails)).name("culprit");
        let error = failure(job);
        assert_eq!(error.operator(), Some("culprit"), "{error}");
        assert!(error.to_string().contains("boom"), "{error}");

        for how in [Fails::Read, Fails::Reader] {
            let job = new_job();
            let source = Script::new(three_splits()).faults(&[Fault::new(1, 123, how)]);
            job.source(source, by_time(10)).name("culprit").sink(Collected::new().sink());
            let error = failure(job);
            assert_eq!(error.operator(), Some("culprit"), "{error}");
            assert!(error.to_string().contains("split `split-1`"), "{error}");
        }
    }
}

/// A watermark generator that does not like one event time.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Squeamish(EventTime);

impl WatermarkGenerator for Squeamish {
    fn observe(&mut self, at: EventTime) {
        assert_ne!(at, self.0, "boom");
    }

    fn watermark(&self) -> EventTime {
        EventTime::MIN
    }
}

/// Event times are taken as records are read, and watermarks when the batch is complete: either way it is that record.
#[test]
fn a_panic_over_an_event_time_or_a_watermark_names_the_record() {
    for batch in [1, 7, 1024] {
        let numbers = || from_vec((0..100).collect::<Vec<i64>>());
        let new_job = || Job::new("stumbles").workers(1).batch_size(batch);
        let at = |number: &i64| EventTime::from_micros(*number);
        let no_time = move |number: &i64| if *number == 41 { panic!("boom") } else { at(number) };
        let of_time = new_job();
        of_time.source(numbers(), Watermarks::none(no_time)).name("culprit").sink(Collected::new().sink());
        let of_watermark = new_job();
        of_watermark
            .source(numbers(), Watermarks::custom(Squeamish(EventTime::from_micros(41)), at))
            .name("culprit")
            .sink(Collected::new().sink());
        // Its reader puts records out one by one.
        let of_one = new_job();
        let (sender, source) = channel(100);
        (0..100).for_each(|number| sender.send(number).expect("the source is there"));
        of_one.source(source, Watermarks::none(no_time)).name("culprit").sink(Collected::new().sink());
        for job in [of_time, of_watermark, of_one] {
            let error = failure(job);
            assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{error}");
            assert!(error.to_string().contains("record 42 of split `"), "{error}");
        }
    }
}

/// Behind a window there are no records of a split any more; the error says so, and is no less quick.
#[test]
fn a_panic_behind_a_window_names_the_operator() {
    for workers in [1, 2, 8] {
        let job = Job::new("stumbles").workers(workers);
        job.source(Script::new(three_splits()), by_time(10))
            .key_by(|item| item.key)
            .window(Tumbling::of(EventSpan::micros(50)))
            .aggregate(Count)
            .map(|(key, window, _)| assert!(key != 3 || window.start.micros() < 100, "boom"))
            .name("culprit")
            .sink(Collected::new().sink());
        let error = failure(job);
        assert_eq!((error.kind(), error.operator()), (ErrorKind::User, Some("culprit")), "{error}");
    }
}

// ---- jobs that are not as they must be -------------------------------------------------------------------------------

/// A source that notes whether anything was opened.
#[derive(Clone)]
struct Watched {
    opened: Arc<AtomicBool>,
    splits: Vec<&'static str>,
}

impl Source for Watched {
    type Item = Item;
    type Position = u64;
    type Reader = oracle::ScriptReader<Item>;

    fn kind(&self) -> &'static str {
        "watched"
    }

    fn splits(&self) -> Result<Vec<String>, Error> {
        Ok(self.splits.iter().map(ToString::to_string).collect())
    }

    fn open(&self, split: &str, from: Option<u64>, waker: Waker) -> Result<Self::Reader, Error> {
        self.opened.store(true, Ordering::SeqCst);
        let (_, number) = split.split_once('-').expect("numbered");
        Script::new(three_splits()).open(&format!("split-{number}"), from, waker)
    }
}

/// What `build` and `change` make is refused with a `Config` error that says `words`, before anything runs.
fn refused(words: &[&str], change: impl Fn(&mut Job), build: impl Fn(Stream<Item>)) {
    let opened = Arc::new(AtomicBool::new(false));
    let dir = tempdir();
    let checkpoints = dir.path().join("checkpoints");
    let mut job = Job::new("refused").workers(2).checkpoint_dir(&checkpoints);
    let source = Watched { opened: opened.clone(), splits: vec!["split-0", "split-1"] };
    build(job.source(source, by_time(0)));
    change(&mut job);
    assert_eq!(job.validate().expect_err("validation fails").kind(), ErrorKind::Config);
    let error = job.start().expect_err("the job is refused");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is not in {error}");
    }
    assert!(!opened.load(Ordering::SeqCst), "the source was opened");
    assert!(!checkpoints.exists(), "the checkpoint directory was made");
}

fn to_memory(stream: Stream<Item>) {
    stream.sink(Collected::new().sink());
}

#[test]
fn wrong_names_and_graphs_are_refused() {
    let same = |_: &mut Job| ();
    refused(&["two operators", "`twice`", ".name("], same, |s| {
        to_memory(s.map(|i| i).name("twice").map(|i| i).name("twice"))
    });
    refused(&["two operators", "`twice`"], same, |s| {
        s.map(|i| i).name("twice").sink(Collected::new().sink()).name("twice")
    });
    // A given name may be the default name of another operator.
    refused(&["two operators", "`map-2`"], same, |s| to_memory(s.map(|i| i).name("map-2").map(|i| i)));
    refused(&["no sink"], same, |s| drop(s.map(|item| item)));
    let long = "x".repeat(65);
    for name in ["", " ", "a b", "a/b", "..", ".hidden", "ü", "a\nb", &long] {
        refused(&["cannot be the name of an operator", "1 to 64"], same, |s| to_memory(s.map(|item| item).name(name)));
    }
    for name in ["", "a b", "../up", &long] {
        let job = Job::new(name);
        to_memory(job.source(Script::new(three_splits()), by_time(0)));
        let error = job.start().expect_err("a job with that name is refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("cannot be the name of a job"), "{error}");
    }
    for job in [Job::new("empty"), Job::new("empty").workers(0)] {
        assert_eq!(job.start().expect_err("refused").kind(), ErrorKind::Config);
    }
    assert!(Job::new("empty").validate().expect_err("refused").to_string().contains("no source"));
}

#[test]
fn names_up_to_64_letters_are_fine() {
    let job = Job::new("x".repeat(64)).workers(1);
    let seen = Collected::new();
    numbers(&job, 0..3).name("A-Z_a.z-09").map(|n| n).name("y".repeat(64)).sink(seen.sink()).name("-");
    run(job).expect("the job finishes");
    assert_eq!(values(seen.take()), [0, 1, 2]);
}

#[test]
fn wrong_settings_are_refused() {
    refused(&["0 workers"], |job| job.settings_mut().workers = 0, to_memory);
    refused(&["workers"], |job| job.settings_mut().workers = 100_000, to_memory);
    refused(&["batch size"], |job| job.settings_mut().batch_size = 0, to_memory);
    refused(&["in flight"], |job| job.settings_mut().in_flight = 0, to_memory);
    refused(&["checkpoint"], |job| job.settings_mut().checkpoint_interval = Duration::ZERO, to_memory);
    refused(&["retain"], |job| job.settings_mut().retain = 0, to_memory);
}

/// Both sinks named their output alike, so of three streams collected in one place the output of two was lost, without a
/// word. Now the job fails.
#[test]
fn two_sinks_do_not_collect_in_one_place() {
    for workers in [1, 2, 8] {
        let job = Job::new("refused").workers(workers);
        let seen = Collected::new();
        let (small, large) = numbers(&job, 0..10).partition(|n| *n < 3);
        small.sink(seen.sink());
        large.sink(seen.sink());
        let error = run(job).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("same `Collected`"), "{error}");
    }
}

/// Names of splits stand in checkpoints; two of one name would share a position.
#[test]
fn two_splits_of_one_name_are_refused() {
    let opened = Arc::new(AtomicBool::new(false));
    let job = Job::new("refused").workers(2);
    to_memory(
        job.source(Watched { opened: opened.clone(), splits: vec!["split-1", "split-1"] }, by_time(0))
            .name("twins"),
    );
    let error = run(job).expect_err("refused");
    assert_eq!((error.kind(), error.operator()), (ErrorKind::Config, Some("twins")), "{error}");
    assert!(error.to_string().contains("`split-1`"), "{error}");
    assert!(!opened.load(Ordering::SeqCst));
}

#[test]
#[should_panic(expected = "gaps")]
fn windows_with_gaps_are_refused() {
    let _ = Sliding::of(EventSpan::secs(1), EventSpan::secs(2));
}

#[test]
#[should_panic]
fn windows_of_nothing_are_refused() {
    let _ = Tumbling::of(EventSpan::ZERO);
}

#[test]
fn plans_have_every_operator() {
    let job = Job::new("plan");
    let (results, late) = job
        .source(Script::new(three_splits()), by_time(0))
        .name("input")
        .filter(|_| true)
        .key_by(|item| item.key)
        .window(Sliding::of(EventSpan::mins(10), EventSpan::mins(5)))
        .aggregate_with_late(Count);
    results.name("per-key").sink(stdout_of_nothing()).name("results");
    late.map(|item| item).name("missed").union([]).sink(Collected::new().sink());
    for (plan, arrow) in [(job.mermaid(), " --"), (job.dot(), " -> ")] {
        for name in
            ["input", "script", "filter-1", "key_by-1", "per-key", "results", "missed", "union-1", "sink-", "10m", "5m"]
        {
            assert!(plan.contains(name), "`{name}` is not in {plan}");
        }
        // Eight operators, each but the first behind another.
        assert_eq!(plan.matches(arrow).count(), 7, "{plan}");
        assert!(plan.contains("late"), "{plan}");
    }
    assert!(job.mermaid().starts_with("flowchart"));
    assert!(job.dot().starts_with("digraph \"plan\" {") && job.dot().trim_end().ends_with('}'));
}

fn stdout_of_nothing<T: Data>() -> impl Sink<T> {
    for_each(|_: Record<T>| ())
}
