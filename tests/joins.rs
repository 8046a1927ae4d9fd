//! Joins against oracles that know nothing but the specification: on any number of workers, in batches of any size, with and without
//! checkpoints and memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test joins` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Fault, Item, Pace, Script, cases, judge, run};
use proptest::prelude::*;

/// How long before and after.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    before: i64,
    after: i64,
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let span = || prop_oneof![2 => Just(0), 4 => 0i64..30, 2 => 0i64..100_000, 1 => Just(i64::MAX)];
    (span(), span()).prop_map(|(before, after)| Bounds { before, after })
}

/// All pairs that match, and the late records, by comparing each with each. The first `first` splits are one stream, the others the other.
fn naive(case: &Case, first: usize, bounds: Bounds) -> (Vec<(Item, Item)>, Vec<Item>) {
    let judged = judge(&case.splits, case.delay);
    let is_late = |(item, watermark): &(Item, Option<i128>)| watermark.is_some_and(|at| i128::from(item.at) < at);
    let late = judged.iter().filter(|item| is_late(item)).map(|(item, _)| *item).collect();
    let in_time = || judged.iter().filter(|item| !is_late(item)).map(|(item, _)| *item);
    let mut pairs = Vec::new();
    for a in in_time().filter(|item| (item.split as usize) < first) {
        for b in in_time().filter(|item| item.split as usize >= first && item.key == a.key) {
            let apart = i128::from(b.at) - i128::from(a.at);
            if -i128::from(bounds.before) <= apart && apart <= i128::from(bounds.after) {
                pairs.push((a, b));
            }
        }
    }
    (pairs, late)
}

/// The job, whose two sources are the first `first` splits and the others.
fn join(job: &Job, case: &Case, first: usize, bounds: Bounds, pace: Pace, faults: &[Fault], outlets: &Outlets) {
    let (one, two) = case.splits.split_at(first);
    let read = |splits: &[Vec<Item>], from| {
        let source = Script::new(splits.to_vec()).pace(pace).faults(faults).numbered_from(from);
        job.source(source, watermarks(case.delay)).inspect(strikes(faults)).key_by(|item| text(item.key))
    };
    let (before, after) = (EventSpan::micros(bounds.before), EventSpan::micros(bounds.after));
    let (pairs, late) = read(one, 0).interval_join_with_late(read(two, first), before, after);
    pairs.sink(outlets.pairs.sink());
    late.sink(outlets.late.sink());
}

#[derive(Clone)]
struct Outlets {
    pairs: Collected<(Item, Item)>,
    late: Collected<Either<Item, Item>>,
}

impl Outlets {
    fn new() -> Self {
        Outlets { pairs: Collected::new(), late: Collected::new() }
    }

    fn compare(&self, case: &Case, first: usize, bounds: Bounds) -> Result<(), TestCaseError> {
        let (expected, expected_late) = naive(case, first, bounds);
        let pairs = self.pairs.take();
        prop_assert!(pairs.iter().all(|pair| pair.at == pair.value.0.time().max(pair.value.1.time())));
        prop_assert_eq!(sorted(values(pairs)), sorted(expected));
        let late = values(self.late.take()).into_iter().map(|late| match late {
            Either::First(item) => (item, (item.split as usize) < first),
            Either::Second(item) => (item, item.split as usize >= first),
        });
        let (late, of_its_side): (Vec<_>, Vec<_>) = late.unzip();
        prop_assert!(of_its_side.iter().all(|right| *right));
        prop_assert_eq!(sorted(late), sorted(expected_late));
        Ok(())
    }
}

/// A case of at least two splits, of which so many are the first stream.
fn two_streams(most: usize) -> impl Strategy<Value = (Case, usize)> {
    (any_case(5, most), 1usize..4).prop_map(|(mut case, first)| {
        if case.splits.len() == 1 {
            case.splits.push(vec![]);
        }
        let first = first.min(case.splits.len() - 1);
        (case, first)
    })
}

proptest! {
    #![proptest_config(config(cases(100)))]

    #[test]
    fn pairs_are_as_the_oracle_says((case, first) in two_streams(100), bounds in bounds(), setups in setups()) {
        for setup in setups {
            let (dir, outlets) = (tempdir(), Outlets::new());
            let job = new_job(&setup, &dir);
            join(&job, &case, first, bounds, setup.pace, &[], &outlets);
            run(job).expect("the job finishes");
            outlets.compare(&case, first, bounds)?;
        }
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        (case, first) in two_streams(100),
        bounds in bounds(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        let splits: Vec<&[Item]> = case.splits.iter().map(Vec::as_slice).collect();
        run_through(&troubles, &splits, &workers, &setup, |job, faults| {
            join(job, &case, first, bounds, setup.pace, faults, &outlets);
        })?;
        outlets.compare(&case, first, bounds)?;
    }
}

/// One record of each side per key and millisecond: what is kept is what may still match.
#[test]
fn what_can_never_match_again_is_dropped() {
    let side = |split: u32| {
        let item = move |n: u64| Item { split, number: n, at: n as i64 * 1_000, key: n % 10, value: 0 };
        (0..10_000).map(item).collect::<Vec<_>>()
    };
    let case = Case { splits: vec![side(0), side(1)], shape: oracle::Shape { size: 1, slide: 1, offset: 0 }, delay: 0 };
    let bounds = Bounds { before: 20_000, after: 50_000 };
    let dir = tempdir();
    let outlets = Outlets::new();
    let job = Job::new("drops").workers(2).checkpoint_dir(dir.path());
    join(&job, &case, 1, bounds, Pace::Slow(10), &[], &outlets);
    let handle = job.start().expect("starts");
    while handle.status().watermark() < EventTime::from_millis(6_000) {
        std::thread::park_timeout(std::time::Duration::from_micros(100));
    }
    handle.stop(StopMode::WithCheckpoint);
    oracle::finish(handle).expect("stops");
    let job = Job::new("drops").workers(1).checkpoint_dir(dir.path());
    join(&job, &case, 1, bounds, Pace::Full, &[], &outlets);
    let checkpoint = job.checkpoint(StartFrom::Newest).expect("opens");
    let sizes = checkpoint.sizes(&checkpoint.operators()[0].name).expect("sizes");
    let bytes: u64 = sizes.iter().map(|group| group.bytes).sum();
    drop(checkpoint);
    // Of each key some 2 and 5 records and what event time has not passed, of 600 that there were, with about 40 bytes each.
    assert!((2_000..20_000).contains(&bytes), "{bytes} bytes");
    run(job).expect("finishes");
    outlets.compare(&case, 1, bounds).expect("all pairs");
}
