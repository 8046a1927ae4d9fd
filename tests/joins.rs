//! Joins against oracles that know nothing but the specification: on any number of workers, in batches of any size, with and without
//! checkpoints and memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test joins` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;

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

/// The records of the first `first` splits that are in time, those of the others, and the late ones of both.
fn in_time(case: &Case, first: usize) -> (Vec<Item>, Vec<Item>, Vec<Item>) {
    let (mut ones, mut twos, mut late) = (vec![], vec![], vec![]);
    for (item, watermark) in judge(&case.splits, case.delay) {
        match (watermark.is_some_and(|at| i128::from(item.at) < at), (item.split as usize) < first) {
            (true, _) => late.push(item),
            (false, true) => ones.push(item),
            (false, false) => twos.push(item),
        }
    }
    (ones, twos, late)
}

/// All pairs that match, and the late records, by comparing each with each. The first `first` splits are one stream, the others the other.
fn naive(case: &Case, first: usize, bounds: Bounds) -> (Vec<(Item, Item)>, Vec<Item>) {
    let (ones, twos, late) = in_time(case, first);
    let mut pairs = Vec::new();
    for a in &ones {
        for b in twos.iter().filter(|item| item.key == a.key) {
            let apart = i128::from(b.at) - i128::from(a.at);
            if -i128::from(bounds.before) <= apart && apart <= i128::from(bounds.after) {
                pairs.push((*a, *b));
            }
        }
    }
    (pairs, late)
}

/// The two streams: the first `first` splits, and the others.
fn sides(
    job: &Job,
    case: &Case,
    first: usize,
    pace: Pace,
    faults: &[Fault],
) -> (KeyedStream<String, Item>, KeyedStream<String, Item>) {
    let (one, two) = case.splits.split_at(first);
    let read = |splits: &[Vec<Item>], from| {
        let source = Script::new(splits.to_vec()).pace(pace).faults(faults).numbered_from(from);
        job.source(source, watermarks(case.delay)).inspect(strikes(faults)).key_by(|item| text(item.key))
    };
    (read(one, 0), read(two, first))
}

/// The job, whose two sources are the first `first` splits and the others.
fn join(job: &Job, case: &Case, first: usize, bounds: Bounds, pace: Pace, faults: &[Fault], outlets: &Outlets) {
    let (one, two) = sides(job, case, first, pace, faults);
    let (before, after) = (EventSpan::micros(bounds.before), EventSpan::micros(bounds.after));
    let (pairs, late) = one.interval_join_with_late(two, before, after);
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
        compare_late(&self.late, first, expected_late)
    }
}

/// Late records are all there, each of its side.
fn compare_late(late: &Collected<Either<Item, Item>>, first: usize, expected: Vec<Item>) -> Result<(), TestCaseError> {
    let late = values(late.take()).into_iter().map(|late| match late {
        Either::First(item) => (item, (item.split as usize) < first),
        Either::Second(item) => (item, item.split as usize >= first),
    });
    let (late, of_its_side): (Vec<_>, Vec<_>) = late.unzip();
    prop_assert!(of_its_side.iter().all(|right| *right));
    prop_assert_eq!(sorted(late), sorted(expected));
    Ok(())
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
    #![proptest_config(config(cases(200)))]

    #[test]
    fn pairs_are_as_the_oracle_says((case, first) in two_streams(100), bounds in bounds(), setups in setups()) {
        let outlets = Outlets::new();
        run_in(
            &setups,
            |job, pace| join(job, &case, first, bounds, pace, &[], &outlets),
            |_| outlets.compare(&case, first, bounds),
        )?;
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
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
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

// ---- what a table said -----------------------------------------------------------------------------------------------

/// Each record of the first stream with what the table said of its key when it happened: the newest version that is not of later, unless
/// its time was over.
fn as_of(case: &Case, first: usize, valid_for: Option<i64>) -> (Vec<(Item, Option<Item>)>, Vec<Item>) {
    let (records, versions, late) = in_time(case, first);
    let version = |record: &Item| {
        let before = versions.iter().filter(|version| version.key == record.key && version.at <= record.at);
        let newest = *before.max_by_key(|version| (version.at, version.split, version.number))?;
        let age = i128::from(record.at) - i128::from(newest.at);
        valid_for.is_none_or(|span| age < i128::from(span)).then_some(newest)
    };
    (records.iter().map(|record| (*record, version(record))).collect(), late)
}

#[derive(Clone)]
struct AsOf {
    inner: Collected<(Item, Item)>,
    left: Collected<(Item, Option<Item>)>,
    late: [Collected<Either<Item, Item>>; 2],
}

impl AsOf {
    fn new() -> Self {
        AsOf { inner: Collected::new(), left: Collected::new(), late: [Collected::new(), Collected::new()] }
    }

    fn attach(&self, (records, versions): (KeyedStream<String, Item>, KeyedStream<String, Item>), valid: Option<i64>) {
        let join = || {
            let join = records.clone().temporal_join(versions.clone());
            if let Some(span) = valid { join.valid_for(EventSpan::micros(span)) } else { join }
        };
        let (inner, late) = join().inner_with_late();
        inner.sink(self.inner.sink());
        late.sink(self.late[0].sink());
        let (left, late) = join().left_with_late();
        left.sink(self.left.sink());
        late.sink(self.late[1].sink());
    }

    fn compare(&self, case: &Case, first: usize, valid: Option<i64>) -> Result<(), TestCaseError> {
        let (expected, late) = as_of(case, first, valid);
        let (inner, left) = (self.inner.take(), self.left.take());
        prop_assert!(inner.iter().all(|joined| joined.at == joined.value.0.time()));
        prop_assert!(left.iter().all(|joined| joined.at == joined.value.0.time()));
        let with_one = expected.iter().filter_map(|(record, version)| version.map(|version| (*record, version)));
        prop_assert_eq!(sorted(values(inner)), sorted(with_one.collect()));
        prop_assert_eq!(sorted(values(left)), sorted(expected));
        compare_late(&self.late[0], first, late.clone())?;
        compare_late(&self.late[1], first, late)
    }
}

fn validity() -> impl Strategy<Value = Option<i64>> {
    let span = prop_oneof![1 => Just(0), 4 => 1i64..30, 2 => 1i64..100_000, 1 => Just(i64::MAX)];
    prop_oneof![1 => Just(None), 2 => span.prop_map(Some)]
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn records_have_the_version_that_the_oracle_says(
        (case, first) in two_streams(100),
        valid in validity(),
        setups in setups(),
    ) {
        let outlets = AsOf::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(sides(job, &case, first, pace, &[]), valid),
            |_| outlets.compare(&case, first, valid),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_no_versions(
        (case, first) in two_streams(100),
        valid in validity(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = AsOf::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(sides(job, &case, first, setup.pace, faults), valid);
        })?;
        outlets.compare(&case, first, valid)?;
    }
}

/// A case of two splits of `(time, value)` with one key; no record is late unless it is behind one before it in its split.
fn two_splits(one: &[(i64, i64)], two: &[(i64, i64)]) -> Case {
    let other = one_split(two).into_iter().map(|item| Item { split: 1, ..item }).collect();
    Case { splits: vec![one_split(one), other], shape: oracle::Shape { size: 10, slide: 10, offset: 0 }, delay: 0 }
}

/// The time of each record and the value of its version, in order, as the job has it; it must be what the oracle has.
fn versions(records: &[(i64, i64)], versions: &[(i64, i64)], valid: Option<i64>) -> Vec<(i64, Option<i64>)> {
    let (case, outlets) = (two_splits(records, versions), AsOf::new());
    let job = Job::new("versions").batch_size(1);
    outlets.attach(sides(&job, &case, 1, Pace::Slow(1), &[]), valid);
    run(job).expect("finishes");
    let seen = values(outlets.left.take());
    sorted(
        seen.into_iter()
            .map(|(record, version)| (record.at, version.map(|version| version.value)))
            .collect(),
    )
}

#[test]
fn a_version_is_valid_from_its_own_instant_until_the_next() {
    let seen = versions(&[(9, 0), (10, 0), (19, 0), (20, 0), (1_000, 0)], &[(10, 1), (20, 2), (20, 3)], None);
    assert_eq!(seen, [(9, None), (10, Some(1)), (19, Some(1)), (20, Some(3)), (1_000, Some(3))]);
    // One that is behind is late, and changes nothing.
    let seen = versions(&[(9, 0), (10, 0), (30, 0)], &[(20, 2), (10, 1)], None);
    assert_eq!(seen, [(9, None), (10, None), (30, Some(2))]);
}

#[test]
fn a_version_is_valid_for_less_than_its_span() {
    let seen = versions(&[(10, 0), (14, 0), (15, 0), (20, 0), (25, 0)], &[(10, 1), (20, 2)], Some(5));
    assert_eq!(seen, [(10, Some(1)), (14, Some(1)), (15, None), (20, Some(2)), (25, None)]);
    // The one before does not come back when a version's time is over.
    assert_eq!(versions(&[(14, 0), (17, 0)], &[(0, 1), (10, 2)], Some(6)), [(14, Some(2)), (17, None)]);
    // For no time at all is not valid at all, not even at its own instant.
    assert_eq!(versions(&[(10, 0)], &[(10, 1)], Some(0)), [(10, None)]);
}

#[test]
fn versions_are_valid_up_to_the_end_of_time() {
    let (least, most) = (i64::MIN, i64::MAX);
    let ends = [(least, 0), (0, 0), (most, 0)];
    assert_eq!(versions(&ends, &[(least, 1)], None), [(least, Some(1)), (0, Some(1)), (most, Some(1))]);
    assert_eq!(versions(&ends, &[(least, 1)], Some(most)), [(least, Some(1)), (0, None), (most, None)]);
    assert_eq!(versions(&ends, &[(1, 1)], Some(most)), [(least, None), (0, None), (most, Some(1))]);
    assert_eq!(versions(&ends, &[(most, 1)], Some(most)), [(least, None), (0, None), (most, Some(1))]);
    assert_eq!(versions(&ends, &[(most, 1)], None), [(least, None), (0, None), (most, Some(1))]);
}

// ---- within windows --------------------------------------------------------------------------------------------------

/// Which windows.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sliding or tumbling ones, as the case says.
    Regular,
    Sessions(i64),
    /// With gaps by the records' values, up to so long.
    OwnGaps(i64),
    Global,
}

fn kinds() -> impl Strategy<Value = Kind> {
    let gap = || prop_oneof![4 => 1i64..60, 2 => 100i64..100_000, 1 => Just(i64::MAX)];
    prop_oneof![
        5 => Just(Kind::Regular),
        3 => gap().prop_map(Kind::Sessions),
        2 => gap().prop_map(Kind::OwnGaps),
        1 => Just(Kind::Global),
    ]
}

fn own_gap(item: &Item, most: i64) -> i64 {
    1 + item.value.rem_euclid(most)
}

type Both = Either<Item, Item>;
type Together<A, B> = Collected<(String, Window, (A, B))>;

#[derive(Clone)]
struct Meetings {
    all: Together<Vec<Item>, Vec<Item>>,
    inner: Together<Item, Item>,
    left: Together<Item, Option<Item>>,
    right: Together<Option<Item>, Item>,
    full: Together<Option<Item>, Option<Item>>,
    late: Collected<Both>,
}

impl Meetings {
    fn new() -> Self {
        Meetings {
            all: Collected::new(),
            inner: Collected::new(),
            left: Collected::new(),
            right: Collected::new(),
            full: Collected::new(),
            late: Collected::new(),
        }
    }

    fn attach(&self, (one, two): (KeyedStream<String, Item>, KeyedStream<String, Item>), case: &Case, kind: Kind) {
        let both = one.connect(two);
        let (size, offset) = (EventSpan::micros(case.shape.size), EventSpan::micros(case.shape.offset));
        match kind {
            Kind::Regular if case.shape.size == case.shape.slide => {
                self.attach_to(both.window(Tumbling::of(size).offset(offset)));
            }
            Kind::Regular => self.attach_to(both.window(sliding(case.shape))),
            Kind::Sessions(gap) => self.attach_to(both.window(Session::with_gap(EventSpan::micros(gap)))),
            Kind::OwnGaps(most) => self.attach_to(both.window(Session::with_gap_of(move |item: &Both| match item {
                Either::First(item) | Either::Second(item) => EventSpan::micros(own_gap(item, most)),
            }))),
            Kind::Global => self.attach_to(both.window(Global)),
        }
    }

    fn attach_to<W: Windows<Both>>(&self, windowed: millstream::window::WindowedStream<String, Both, W>) {
        let (all, late) = windowed.cogroup_with_late();
        all.clone().inner_join().sink(self.inner.sink());
        all.clone().left_join().sink(self.left.sink());
        all.clone().right_join().sink(self.right.sink());
        all.clone().full_join().sink(self.full.sink());
        all.sink(self.all.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case, first: usize, kind: Kind) -> Result<(), TestCaseError> {
        let judged = judge(&case.splits, case.delay);
        let (windows, late) = match kind {
            Kind::Regular => oracle::window(&judged, case.shape),
            Kind::Sessions(gap) => oracle::sessions(&judged, |_| gap),
            Kind::OwnGaps(most) => oracle::sessions(&judged, |item| own_gap(item, most)),
            Kind::Global => {
                let mut windows = BTreeMap::<_, Vec<Item>>::new();
                for (item, _) in judged {
                    let window = Window { start: EventTime::MIN, end: EventTime::MAX };
                    windows.entry((item.key, window)).or_default().push(item);
                }
                (windows, vec![])
            }
        };
        compare_late(&self.late, first, late)?;
        let (mut all, mut inner, mut left, mut right, mut full) = (vec![], vec![], vec![], vec![], vec![]);
        for ((key, window), mut items) in windows {
            items.sort_by_key(|item| (item.at, item.split, item.number));
            let (ones, twos): (Vec<Item>, Vec<Item>) = items.iter().partition(|item| (item.split as usize) < first);
            let key = text(key);
            for a in &ones {
                inner.extend(twos.iter().map(|b| (key.clone(), window, (*a, *b))));
            }
            all.push((key, window, (ones, twos)));
        }
        for (key, window, (a, b)) in &inner {
            left.push((key.clone(), *window, (*a, Some(*b))));
            right.push((key.clone(), *window, (Some(*a), *b)));
            full.push((key.clone(), *window, (Some(*a), Some(*b))));
        }
        for (key, window, (ones, twos)) in &all {
            for a in ones.iter().filter(|_| twos.is_empty()) {
                left.push((key.clone(), *window, (*a, None)));
                full.push((key.clone(), *window, (Some(*a), None)));
            }
            for b in twos.iter().filter(|_| ones.is_empty()) {
                right.push((key.clone(), *window, (None, *b)));
                full.push((key.clone(), *window, (None, Some(*b))));
            }
        }
        same(&self.all, all)?;
        same(&self.inner, inner)?;
        same(&self.left, left)?;
        same(&self.right, right)?;
        same(&self.full, full)
    }
}

/// What came out is what was expected, in any order, each at the last instant of its window.
fn same<T: Ord + std::fmt::Debug + Data>(
    got: &Collected<(String, Window, T)>,
    expected: Vec<(String, Window, T)>,
) -> Result<(), TestCaseError> {
    let got = got.take();
    prop_assert!(got.iter().all(|meeting| meeting.at == meeting.value.1.last()));
    prop_assert_eq!(sorted(values(got)), sorted(expected));
    Ok(())
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn what_meets_in_windows_is_as_the_oracle_says(
        (case, first) in two_streams(30),
        kind in kinds(),
        setups in setups(),
    ) {
        let outlets = Meetings::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(sides(job, &case, first, pace, &[]), &case, kind),
            |_| outlets.compare(&case, first, kind),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_no_meetings(
        (case, first) in two_streams(30),
        kind in kinds(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Meetings::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(sides(job, &case, first, setup.pace, faults), &case, kind);
        })?;
        outlets.compare(&case, first, kind)?;
    }
}

/// What meets, of two streams of `(time, value)`, as the end of the window and the values.
fn meetings(one: &[(i64, i64)], two: &[(i64, i64)], kind: Kind) -> Vec<(i64, Option<i64>, Option<i64>)> {
    let (case, outlets) = (two_splits(one, two), Meetings::new());
    let job = Job::new("meetings").batch_size(1);
    outlets.attach(sides(&job, &case, 1, Pace::Slow(1), &[]), &case, kind);
    run(job).expect("finishes");
    let value = |item: Option<Item>| item.map(|item| item.value);
    let met = values(outlets.full.take()).into_iter();
    sorted(met.map(|(_, window, (a, b))| (window.end.micros(), value(a), value(b))).collect())
}

#[test]
fn only_what_is_in_one_window_meets() {
    let met = meetings(&[(0, 1), (9, 2), (10, 3), (30, 4)], &[(9, 5), (20, 6), (30, 7)], Kind::Regular);
    let alone = [(20, Some(3), None), (30, None, Some(6))];
    assert_eq!(
        met,
        [&[(10, Some(1), Some(5)), (10, Some(2), Some(5))], &alone[..], &[(40, Some(4), Some(7))]].concat()
    );
}

#[test]
fn records_of_both_streams_go_on_with_a_session() {
    // Neither stream alone would make one session of it.
    let met = meetings(&[(0, 1), (18, 2)], &[(9, 3), (28, 4)], Kind::Sessions(10));
    assert_eq!(met, [(28, Some(1), Some(3)), (28, Some(2), Some(3)), (38, None, Some(4))]);
}

/// As many pairs as there are of records of one key at one instant.
#[test]
fn many_records_of_one_instant_meet() {
    let many: Vec<(i64, i64)> = (0..300).map(|value| (5, value)).collect();
    let met = meetings(&many, &many, Kind::Regular);
    assert_eq!(met.len(), 90_000);
    assert!(met.windows(2).all(|two| two[0] < two[1]));
}
