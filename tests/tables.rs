//! Tables against an oracle that adds everything up: on any number of workers, in batches of any size, with and without checkpoints and
//! memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test tables` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Fault, Item, Pace, Script, cases, judge, run};
use proptest::prelude::*;

/// A table as a map: how many there are of each row.
type Naive<K, V> = BTreeMap<(K, V), i64>;

/// What a change of the first table is: some rows come, some go, some that never came.
fn change(item: &Item) -> Delta<u64, i64> {
    (item.key, item.value.rem_euclid(5), if item.value.rem_euclid(3) == 0 { -1 } else { 2 })
}

/// The row of the second table: a key's row is gone now and then.
fn upsert(item: &Item) -> Option<String> {
    (item.value.rem_euclid(4) != 0).then(|| format!("row {}", item.value.rem_euclid(6)))
}

/// Two starts of a job with a source of upserts and another one, in this order; the first has an upsert that is still waiting when it stops, the
/// second has one of the same instant. Of `dropped` the second start does not want to know any more. What the table comes to.
fn upserts_over_two_starts(before: [&str; 2], after: [&str; 2], dropped: Option<&str>) -> Naive<u64, String> {
    let (dir, rows) = (tempdir(), Collected::new());
    let start = |names: [&str; 2], dropped: Option<&str>| {
        let mut job = Job::new("places").workers(2).checkpoint_dir(dir.path());
        if let Some(dropped) = dropped {
            job = job.drop_state(dropped);
        }
        let mut senders = std::collections::HashMap::new();
        for name in names {
            let (sender, source) = channel::<Item>(10);
            let keyed = job.source(source, watermarks(0)).name(name).key_by(|item| item.key);
            senders.insert(name == "other", sender);
            if name == "other" {
                keyed.fold(0u64, |count, _| *count += 1).name("count").sink(for_each(|_| ()));
            } else {
                let table = keyed.upserts_into_table(|item| Some(format!("row {}", item.value))).name("rows");
                table.changes().sink(rows.sink());
            }
        }
        (senders, job.start().expect("starts"))
    };
    let item = |at, value| Item { split: 0, number: 0, at, key: 1, value };
    let (senders, handle) = start(before, None);
    for item in [item(9, 0), item(10, 1)] {
        senders[&false].send(item).expect("read");
    }
    while handle.status().records_in < 2 {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    handle.stop(StopMode::WithCheckpoint);
    oracle::finish(handle).expect("stops");
    let (senders, handle) = start(after, dropped);
    senders[&false].send(item(10, 2)).expect("read");
    drop(senders);
    oracle::finish(handle).expect("finishes");
    added_up(&rows)
}

/// Of two upserts of one instant the later one counts, also when it comes after a start for which the sources were written down in another order.
/// Once splits were numbered anew then, and the earlier one counted.
#[test]
fn sources_may_change_places_between_two_starts() {
    let rows = upserts_over_two_starts(["other", "upserts"], ["upserts", "other"], None);
    assert_eq!(rows, Naive::from([((1, "row 2".to_string()), 1)]));
}

/// The number of a source that is gone is not given to the one that takes its place: what still waits came before.
#[test]
fn a_new_source_comes_behind_one_that_was_dropped() {
    let rows = upserts_over_two_starts(["other", "upserts"], ["other", "new"], Some("upserts"));
    assert_eq!(rows, Naive::from([((1, "row 2".to_string()), 1)]));
}

#[derive(Clone)]
struct Outlets {
    counts: Collected<Delta<u64, i64>>,
    distinct: Collected<Delta<u64, i64>>,
    upserts: Collected<Delta<u64, String>>,
    pairs: Collected<Delta<u64, (i64, String)>>,
    sums: Collected<Delta<String, i64>>,
    /// Changes that were late for a window: there must not be any.
    missed: Collected<Delta<u64, i64>>,
}

impl Outlets {
    fn new() -> Self {
        Outlets {
            counts: Collected::new(),
            distinct: Collected::new(),
            upserts: Collected::new(),
            pairs: Collected::new(),
            sums: Collected::new(),
            missed: Collected::new(),
        }
    }

    /// Two tables of the same records, and what can be made of them.
    fn attach(&self, job: &Job, case: &Case, pace: Pace, faults: &[Fault]) {
        let source = Script::new(case.splits.clone()).pace(pace).faults(faults);
        let items = job.source(source, watermarks(case.delay)).inspect(strikes(faults));
        let first = items.clone().changes_into_table(|item| change(&item)).name("first");
        let second = items.key_by(|item| item.key).upserts_into_table(upsert).name("second");
        let counts = first.clone().count().changes();
        counts.clone().sink(self.counts.sink());
        let behind_join = pairs_of(&first, &second).changes().map(|(key, (row, _), by)| (key, row, by));
        counts
            .union([behind_join])
            .key_by(|(key, ..)| *key)
            .window(Tumbling::of(EventSpan::micros(7)))
            .aggregate_with_late(Count)
            .1
            .sink(self.missed.sink());
        first.clone().filter(|_, row| *row != 4).distinct().changes().sink(self.distinct.sink());
        second.clone().changes().sink(self.upserts.sink());
        let pairs = pairs_of(&first, &second);
        pairs.clone().changes().sink(self.pairs.sink());
        // A reduction behind a join, by another key.
        pairs
            .map(|key, (row, text)| (text, row + key as i64))
            .sum(|row| *row)
            .changes()
            .sink(self.sums.sink());
    }

    fn compare(&self, case: &Case) -> Result<(), TestCaseError> {
        let mut first: Naive<u64, i64> = BTreeMap::new();
        for (key, row, by) in case.splits.iter().flatten().map(change) {
            *first.entry((key, row)).or_default() += by;
        }
        first.retain(|_, count| *count != 0);

        let mut in_time: Vec<Item> = judge(&case.splits, case.delay)
            .into_iter()
            .filter(|(item, watermark)| watermark.is_none_or(|watermark| i128::from(item.at) >= watermark))
            .map(|(item, _)| item)
            .collect();
        in_time.sort_by_key(|item| (item.at, item.split, item.number));
        let mut second = BTreeMap::new();
        for item in in_time {
            match upsert(&item) {
                Some(row) => drop(second.insert(item.key, row)),
                None => drop(second.remove(&item.key)),
            }
        }

        let (mut counts, mut distinct, mut pairs) = (BTreeMap::<u64, i64>::new(), Naive::new(), Naive::new());
        let mut by_text: Naive<String, i64> = BTreeMap::new();
        for ((key, row), count) in &first {
            *counts.entry(*key).or_default() += count;
            if *count > 0 && *row != 4 {
                distinct.insert((*key, *row), 1);
            }
            if let Some(text) = second.get(key) {
                pairs.insert((*key, (*row, text.clone())), *count);
                *by_text.entry((text.clone(), row + *key as i64)).or_default() += count;
            }
        }
        // Pairs of several keys may make up for each other: of a text that has no row left there is no sum.
        by_text.retain(|_, count| *count != 0);
        let mut sums = BTreeMap::<String, i64>::new();
        for ((text, row), count) in by_text {
            *sums.entry(text).or_default() += row * count;
        }
        prop_assert_eq!(values(self.missed.take()), []);
        let once = |(key, row)| ((key, row), 1);
        prop_assert_eq!(added_up(&self.counts), counts.into_iter().map(once).collect());
        prop_assert_eq!(added_up(&self.distinct), distinct);
        prop_assert_eq!(added_up(&self.upserts), second.into_iter().map(|(key, row)| ((key, row), 1)).collect());
        prop_assert_eq!(added_up(&self.pairs), pairs);
        prop_assert_eq!(added_up(&self.sums), sums.into_iter().map(|(key, row)| ((key, row), 1)).collect());
        Ok(())
    }
}

fn pairs_of(first: &Table<u64, i64>, second: &Table<u64, String>) -> Table<u64, (i64, String)> {
    first.clone().join(second.clone())
}

/// The table that changes make.
fn added_up<K: Ord + Data, V: Ord + Data>(changes: &Collected<Delta<K, V>>) -> Naive<K, V> {
    let mut table = BTreeMap::new();
    for (key, row, by) in values(changes.take()) {
        *table.entry((key, row)).or_default() += by;
    }
    table.retain(|_, count| *count != 0);
    table
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn tables_are_as_the_oracle_says(case in any_case(4, 100), setups in setups()) {
        let outlets = Outlets::new();
        run_in(&setups, |job, pace| outlets.attach(job, &case, pace, &[]), |_| outlets.compare(&case))?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        case in any_case(4, 100),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| outlets.attach(job, &case, setup.pace, faults))?;
        outlets.compare(&case)?;
    }
}

/// A table knows after a restart what it knew before, and tells only what is new.
#[test]
fn after_a_restart_only_what_is_new_is_told() {
    let (dir, changes) = (tempdir(), Collected::new());
    let start = |workers: usize| {
        let (sender, source) = channel::<Item>(10);
        let job = Job::new("count").workers(workers).checkpoint_dir(dir.path());
        let items = job.source(source, watermarks(0)).name("items");
        let counts = items.into_table(|item| (item.key, item.value)).name("rows").count();
        counts.changes().sink(changes.sink());
        (sender, job.start().expect("starts"))
    };
    let item = |key: u64, value: i64| Item { split: 0, number: 0, at: 0, key, value };
    let stopped = |handle: JobHandle| {
        handle.stop(StopMode::WithCheckpoint);
        oracle::finish(handle).expect("stops");
        sorted(values(changes.take()))
    };
    let read = |handle: &JobHandle, records: u64| {
        while handle.status().records_in < records {
            std::thread::park_timeout(Duration::from_micros(100));
        }
    };
    let (sender, handle) = start(1);
    for (key, value) in [(1, 5), (1, 6), (2, 5)] {
        sender.send(item(key, value)).expect("the job reads");
    }
    read(&handle, 3);
    let told = stopped(handle);
    assert_eq!(told.iter().filter(|(key, ..)| *key == 2).collect::<Vec<_>>(), [&(2, 1, 1)]);
    let (sender, handle) = start(3);
    sender.send(item(1, 7)).expect("the job reads");
    read(&handle, 1);
    assert_eq!(stopped(handle), [(1, 2, -1), (1, 3, 1)]);
    let (_sender, handle) = start(2);
    assert_eq!(stopped(handle), []);
}

/// What is taken out of a table as often as it was put in is not kept.
#[test]
fn rows_that_are_gone_are_not_kept() {
    let dir = tempdir();
    let describe = || {
        let job = Job::new("gone").checkpoint_dir(dir.path()).workers(2);
        let changes = (0..100u64)
            .flat_map(|key| [(key, 7, 1), (key, 8, 1), (key, 7, -1)])
            .collect::<Vec<Delta<u64, i64>>>();
        job.source(from_vec(changes), Watermarks::none(|_: &Delta<u64, i64>| EventTime::EPOCH))
            .changes_into_table(|change| change)
            .name("rows")
            .changes()
            .sink(Collected::new().sink());
        job
    };
    run(describe()).expect("finishes");
    let then = describe().checkpoint(StartFrom::Newest).expect("opens");
    let rows = then.state::<(u64, i64), i64>("rows").expect("is there");
    assert_eq!(rows.count().expect("counts"), 100);
    assert_eq!((rows.get(&(3, 7)).expect("reads"), rows.get(&(3, 8)).expect("reads")), (None, Some(1)));
}

/// The state of a table of upserts has the name of the table, and no other: two of them may change places in the program.
#[test]
fn tables_of_upserts_are_found_by_their_names() {
    let (dir, one, two) = (tempdir(), Collected::new(), Collected::new());
    let run_with = |records: &[(u64, i64, i64)], swapped: bool| {
        let job = Job::new("names").checkpoint_dir(dir.path()).workers(2);
        let (sender, source) = channel::<Item>(100);
        let keyed = job.source(source, watermarks(0)).name("items").key_by(|item| item.key);
        let first = |keyed: KeyedStream<u64, Item>| {
            keyed
                .upserts_into_table(|item| Some(item.value))
                .name("plain")
                .changes()
                .sink(one.sink())
                .name("one");
        };
        let second = |keyed: KeyedStream<u64, Item>| {
            keyed
                .upserts_into_table(|item| Some(item.value + 10))
                .name("more")
                .changes()
                .sink(two.sink())
                .name("two");
        };
        if swapped {
            second(keyed.clone());
            first(keyed);
        } else {
            first(keyed.clone());
            second(keyed);
        }
        let handle = job.start().expect("starts");
        for (key, value, at) in records {
            let item = Item { split: 0, number: 0, at: *at, key: *key, value: *value };
            sender.send(item).expect("the job reads");
        }
        while handle.status().records_in < records.len() as u64 {
            std::thread::park_timeout(Duration::from_micros(100));
        }
        handle.stop(StopMode::WithCheckpoint);
        oracle::finish(handle).expect("stops");
        (sorted(values(one.take())), sorted(values(two.take())))
    };
    // Upserts count when event time has passed them, so the last one waits.
    let told = run_with(&[(1, 1, 0), (2, 2, 0), (9, 0, 100)], false);
    assert_eq!(told, (vec![(1, 1, 1), (2, 2, 1)], vec![(1, 11, 1), (2, 12, 1)]));
    let told = run_with(&[(1, 3, 200), (9, 1, 300)], true);
    assert_eq!(told.0, [(1, 1, -1), (1, 3, 1), (9, 0, 1)]);
    assert_eq!(told.1, [(1, 11, -1), (1, 13, 1), (9, 10, 1)]);
}

#[test]
fn a_reduction_that_panics_fails_the_job_and_names_operator_and_key() {
    oracle::quiet();
    let job = Job::new("panics");
    job.source(from_vec(vec![1u64, 2]), Watermarks::none(|_: &u64| EventTime::EPOCH))
        .into_table(|number| (number, ()))
        .reduce(|key, _, out: &mut Vec<((), i64)>| {
            assert!(*key != 2, "boom");
            out.push(((), 1));
        })
        .name("careful")
        .changes()
        .sink(Collected::new().sink());
    let error = run(job).expect_err("fails").to_string();
    assert!(error.contains("boom") && error.contains("careful") && error.contains("the key 2"), "{error}");
}
