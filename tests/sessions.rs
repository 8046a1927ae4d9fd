//! Session windows against an oracle that knows nothing but the specification: on any number of workers, in batches of any size,
//! with and without checkpoints and memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test sessions` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::prelude::*;
use millstream::state::store::CheckpointStore;
use oracle::trial::*;
use oracle::{Item, Pace, Script, cases, differences, judge, run};
use proptest::prelude::*;

/// How long a key may be quiet.
#[derive(Clone, Copy, Debug)]
enum Quiet {
    Fixed(i64),
    /// By the value of a record: up to so long.
    UpTo(i64),
}

impl Quiet {
    fn of(self, item: &Item) -> i64 {
        match self {
            Quiet::Fixed(gap) => gap,
            Quiet::UpTo(most) => 1 + item.value.rem_euclid(most),
        }
    }
}

fn any_quiet() -> impl Strategy<Value = Quiet> {
    let gap =
        prop_oneof![4 => 1i64..60, 2 => Just(1), 2 => 100i64..100_000, 1 => Just(86_400_000_000), 1 => Just(i64::MAX)];
    (gap, any::<bool>()).prop_map(|(gap, fixed)| if fixed { Quiet::Fixed(gap) } else { Quiet::UpTo(gap) })
}

/// What is computed of a session: what does not depend on the order of records, and what needs to know it.
type Computed = (u64, i64, (u32, u64));

#[derive(Clone)]
struct Outlets {
    results: Collected<(String, Window, Computed)>,
    late: Collected<Item>,
}

impl Outlets {
    fn new() -> Self {
        Outlets { results: Collected::new(), late: Collected::new() }
    }

    /// Sessions of `keyed`, to these outlets.
    fn attach(&self, keyed: KeyedStream<String, Item>, quiet: Quiet) {
        let aggregate = (Count, Sum::of(|item: &Item| item.value), First::of(|item: &Item| (item.split, item.number)));
        let (out, late) = match quiet {
            Quiet::Fixed(gap) => keyed.window(Session::with_gap(EventSpan::micros(gap))).aggregate_with_late(aggregate),
            Quiet::UpTo(_) => {
                let gap = move |item: &Item| EventSpan::micros(quiet.of(item));
                keyed.window(Session::with_gap_of(gap)).aggregate_with_late(aggregate)
            }
        };
        out.sink(self.results.sink());
        late.sink(self.late.sink());
    }

    /// Whether what came out is what the oracle says.
    fn compare(&self, case: &Case, quiet: Quiet) -> Result<(usize, usize), TestCaseError> {
        let (sessions, late) = oracle::sessions(&judge(&case.splits, case.delay), |item| quiet.of(item));
        let place = |items: &[Item]| {
            let item = items.iter().min_by_key(|item| (item.at, item.split, item.number)).expect("not empty");
            (item.split, item.number)
        };
        let naive = |items: &Vec<Item>| format!("{:?}", (items.len(), total(items), place(items)));
        let expected: BTreeMap<_, _> =
            sessions.iter().map(|((key, window), items)| ((text(*key), *window), naive(items))).collect();
        let wrong = differences(&by_window(self.results.take()), &expected);
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late.clone()));
        Ok((expected.len(), late.len()))
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn sessions_are_as_the_oracle_says(case in any_case(4, 150), quiet in any_quiet(), setups in setups()) {
        let outlets = Outlets::new();
        let attach = |job: &Job, pace| outlets.attach(keyed(job, &case, pace, &[]), quiet);
        run_in(&setups, attach, |summary| {
            let (fired, late) = outlets.compare(&case, quiet)?;
            prop_assert_eq!((summary.windows_fired, summary.late), (fired as u64, late as u64));
            Ok(())
        })?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        case in any_case(4, 150),
        quiet in any_quiet(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), quiet);
        })?;
        outlets.compare(&case, quiet)?;
    }
}

/// The sessions of one key as `(start, end, count)`, and the times of late records.
fn counts(records: &[(i64, i64)], delay: i64, quiet: Quiet) -> (Vec<(i64, i64, u64)>, Vec<i64>) {
    let outlets = Outlets::new();
    let job = Job::new("counts").batch_size(1);
    let source = Script::new(vec![one_split(records)]);
    outlets.attach(job.source(source, watermarks(delay)).key_by(|item| text(item.key)), quiet);
    run(job).expect("the job finishes");
    let results = values(outlets.results.take());
    let counts = results.into_iter().map(|(_, window, (n, _, _))| (window.start.micros(), window.end.micros(), n));
    (sorted(counts.collect()), sorted(values(outlets.late.take()).into_iter().map(|item| item.at).collect()))
}

#[test]
fn a_session_lasts_until_the_key_is_quiet_for_the_gap() {
    let ten = Quiet::Fixed(10);
    // 9 quiet microseconds go on with it, 10 do not.
    assert_eq!(counts(&[(0, 0), (9, 0), (19, 0)], 0, ten), (vec![(0, 19, 2), (19, 29, 1)], vec![]));
    // One that is out of order puts two together, and what was behind both watermark and session is late.
    assert_eq!(counts(&[(0, 0), (15, 0), (8, 0), (40, 0), (2, 0)], 10, ten), (vec![(0, 25, 3), (40, 50, 1)], vec![2]));
    // A longer gap of an earlier record outlasts those of later ones.
    assert_eq!(counts(&[(0, 99), (5, 0), (50, 0)], 0, Quiet::UpTo(100)), (vec![(0, 100, 3)], vec![]));
}

#[test]
fn sessions_reach_to_the_ends_of_time() {
    let records = [(i64::MIN, 0), (i64::MIN + 5, 0), (i64::MAX - 5, 0), (i64::MAX, 0)];
    let expected = vec![(i64::MIN, i64::MIN + 15, 2), (i64::MAX - 5, i64::MAX, 2)];
    assert_eq!(counts(&records, 0, Quiet::Fixed(10)), (expected, vec![]));
}

/// Keys come and go, each with one session: checkpoints hold those that are open, and no others. `MILLSTREAM_CASES=100000` has 10 M keys.
#[test]
fn sessions_that_are_over_leave_nothing_behind() {
    let keys = u64::from(cases(20_000));
    // All of its checkpoints are kept: that may be much for memory.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = Job::new("leave")
        .workers(2)
        .checkpoint_dir(dir.path())
        .checkpoint_every(Duration::from_millis(5))
        .retain(10_000);
    let item = |n: u64| Item { split: 0, number: n, at: n as i64 * 1_000, key: n / 3, value: 1 };
    let records: Vec<Item> = (0..3 * keys).map(item).collect();
    let pace = Pace::Slow(records.len() / 600);
    let fired = Collected::new();
    job.source(Script::new(vec![records]).pace(pace), watermarks(0))
        .key_by(|item| item.key)
        .window(Session::with_gap(EventSpan::millis(100)))
        .aggregate(Count)
        .filter(|(_, _, count)| *count != 3)
        .sink(fired.sink());
    let summary = job.run().expect("finishes");
    assert_eq!((summary.windows_fired, fired.take().len()), (keys, 0), "three records in each");
    let store = CheckpointStore::new(dir.path());
    let manifest = |epoch| store.manifest(epoch).expect("reads");
    let kept: Vec<(u64, u64)> = store
        .epochs()
        .expect("lists")
        .into_iter()
        .map(|epoch| (manifest(epoch).operators[0].entries, manifest(epoch).files.iter().map(|file| file.size).sum()))
        .collect();
    let most = kept.iter().max().expect("a checkpoint").0;
    let bytes = kept.iter().map(|(_, bytes)| bytes).max().expect("a checkpoint");
    println!("{keys} keys: in {} checkpoints at most {most} entries, {bytes} bytes", kept.len());
    // About 100 of a key every 3 ms, and as many timers.
    assert!(kept.len() > 3 && most > 20 && most < 500, "{kept:?}");
    assert_eq!(kept.last().map(|(entries, _)| *entries), Some(0), "{kept:?}");
}

/// What has been fired stays as it is, also when a source is added that knows nothing of it.
#[test]
fn a_source_that_is_added_changes_no_session_that_is_over() {
    let item = |split: u32, n: u64, at: i64| Item { split, number: n, at, key: n % 7, value: 1 };
    let old: Vec<Item> = (0..20_000).map(|n| item(0, n, n as i64)).collect();
    let new: Vec<Item> = (0..1_000).map(|n| item(1, n, n as i64)).collect();
    let (dir, outlets) = (tempdir(), Outlets::new());
    let start = |added: bool| {
        let job = Job::new("added").workers(2).checkpoint_dir(dir.path());
        let mut records = job.source(Script::new(vec![old.clone()]).pace(Pace::Slow(100)), watermarks(0)).name("old");
        if added {
            records = records.union([job.source(Script::new(vec![new.clone()]), watermarks(0)).name("new")]);
        }
        // Each key is quiet for a while now and then.
        let some = records.filter(|item| item.at / 100 % 5 != 4);
        let (out, late) = some
            .key_by(|item| text(item.key))
            .window(Session::with_gap(EventSpan::micros(20)))
            .aggregate_with_late((
                Count,
                Sum::of(|item: &Item| item.value),
                First::of(|item: &Item| (item.split, item.number)),
            ));
        out.name("sessions").sink(outlets.results.sink());
        late.sink(outlets.late.sink());
        job.start().expect("starts")
    };
    let handle = start(false);
    while handle.status().watermark() < EventTime::from_micros(4_000) {
        std::thread::park_timeout(Duration::from_micros(100));
    }
    handle.stop(StopMode::WithCheckpoint);
    oracle::finish(handle).expect("stops");
    oracle::finish(start(true)).expect("finishes");
    let results = values(outlets.results.take());
    let counted: u64 = results.iter().map(|(_, _, (count, _, _))| count).sum();
    let late = values(outlets.late.take());
    assert_eq!((counted, late.len()), (16_000, 800), "all of the new source are late");
    assert!(late.iter().all(|item| item.split == 1));
}

#[test]
#[should_panic(expected = "more than no time")]
fn a_gap_of_nothing_is_refused() {
    let _ = Session::with_gap(EventSpan::ZERO);
}

#[test]
fn a_gap_of_nothing_by_record_fails_the_job_and_names_the_record() {
    let job = Job::new("gap");
    job.source(Script::new(vec![one_split(&[(0, 1), (1, 0)])]), watermarks(0))
        .key_by(|item| item.key)
        .window(Session::with_gap_of(|item: &Item| EventSpan::micros(item.value)))
        .aggregate(Count)
        .sink(Collected::new().sink());
    let error = run(job).expect_err("a session needs a gap").to_string();
    assert!(error.contains("more than no time"), "{error}");
}
