//! Windows with early results and allowed lateness against an oracle that knows nothing but the specification: on any number of
//! workers, in batches of any size, with and without checkpoints and memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test updates` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Item, Script, Shape, Updated, cases, judge, run};
use proptest::prelude::*;

/// Which windows.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sliding and tumbling ones, as the case says.
    Regular,
    /// Those, and tumbling ones of twice the slide.
    Several,
    Sessions(i64),
    /// Some by the records themselves, one or two for each.
    Own,
    /// One for all.
    Global,
}

/// What is made of a result that is not the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Accumulating,
    Discarding,
    Retracting,
}

/// A way to ask for results.
#[derive(Clone, Copy, Debug)]
struct Rules {
    kind: Kind,
    mode: Mode,
    allowed: i64,
    every: Option<i64>,
    count: Option<u64>,
}

fn doubled(shape: Shape) -> Shape {
    let size = shape.slide.saturating_mul(2);
    Shape { size, slide: size, offset: shape.offset }
}

/// The windows of both kinds, each once; as far as they can be told apart.
fn both(at: i64, shape: Shape) -> Vec<(i128, i128)> {
    let fit = |us: i128| us.clamp(i64::MIN.into(), i64::MAX.into());
    let all = [shape, doubled(shape)].into_iter().flat_map(|shape| oracle::windows_of(at, shape));
    let mut all: Vec<_> = all.map(|(start, end)| (fit(start), fit(end))).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let kind = prop_oneof![
        3 => Just(Kind::Regular),
        3 => (1i64..60).prop_map(Kind::Sessions),
        1 => (100i64..1_000_000).prop_map(Kind::Sessions),
        2 => Just(Kind::Own),
        1 => Just(Kind::Global),
    ];
    let mode = prop::sample::select(vec![Mode::Accumulating, Mode::Discarding, Mode::Retracting]);
    let allowed = prop_oneof![1 => Just(0), 3 => 1i64..60, 2 => 60i64..5_000_000_000, 1 => Just(i64::MAX)];
    let every = prop::option::of(prop_oneof![3 => 1i64..50, 1 => Just(600_000_000)]);
    let count = prop::option::of(1u64..6);
    (kind, mode, allowed, every, count).prop_map(|(kind, mode, allowed, every, count)| Rules {
        kind,
        mode,
        allowed,
        every,
        count,
    })
}

/// Windows that depend on the values of records.
#[derive(Clone)]
struct Own;

impl Own {
    fn of(item: &Item) -> Vec<(i128, i128)> {
        let (at, by) = (i128::from(item.at), i128::from(item.value.rem_euclid(7)));
        let near = (at.div_euclid(10) * 10, at.div_euclid(10) * 10 + 10);
        if by % 3 == 0 { vec![near, (near.0 - 5, near.1 + 20 * by)] } else { vec![near] }
    }
}

impl Windows<Item> for Own {
    fn describe(&self) -> String {
        "own".to_string()
    }

    fn assign(&self, _: EventTime, item: &Item, windows: &mut Assigned) -> Result<(), Error> {
        let us = |us: i128| EventTime::from_micros(us.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
        Own::of(item)
            .into_iter()
            .for_each(|(start, end)| windows.add(Window { start: us(start), end: us(end) }));
        Ok(())
    }
}

/// Records, their sum, and the position of the first.
type Computed = (u64, i64, (u32, u64));

#[derive(Clone)]
struct Outlets {
    results: Collected<Update<String, Computed>>,
    late: Collected<Item>,
}

impl Outlets {
    fn new() -> Self {
        Outlets { results: Collected::new(), late: Collected::new() }
    }

    fn attach(&self, keyed: KeyedStream<String, Item>, shape: Shape, rules: Rules) {
        match rules.kind {
            Kind::Regular => self.attach_to(keyed.window(sliding(shape)), rules),
            Kind::Several => self.attach_to(keyed.window(Several::of([shape, doubled(shape)].map(sliding))), rules),
            Kind::Sessions(gap) => self.attach_to(keyed.window(Session::with_gap(EventSpan::micros(gap))), rules),
            Kind::Own => self.attach_to(keyed.window(Own), rules),
            Kind::Global => self.attach_to(keyed.window(Global), rules),
        }
    }

    fn attach_to<W: Windows<Item>>(&self, windowed: millstream::window::WindowedStream<String, Item, W>, rules: Rules) {
        let mut windows = windowed.allowed_lateness(EventSpan::micros(rules.allowed));
        windows = match (rules.every.map(EventSpan::micros), rules.count) {
            (Some(every), Some(count)) => windows.early(Early::every(every).or_count(count)),
            (Some(every), None) => windows.early(Early::every(every)),
            (None, Some(count)) => windows.early(Early::count(count)),
            (None, None) => windows,
        };
        windows = match rules.mode {
            Mode::Accumulating => windows,
            Mode::Discarding => windows.discarding(),
            Mode::Retracting => windows.retracting(),
        };
        let (out, late) = windows.aggregate_with_late((
            Count,
            Sum::of(|item: &Item| item.value),
            First::of(|item: &Item| (item.split, item.number)),
        ));
        out.name("windows").sink(self.results.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case, rules: Rules) -> Result<(u64, u64), TestCaseError> {
        let records = judge(&case.splits, case.delay);
        let (on_time, all, late): Updated = match rules.kind {
            Kind::Regular => oracle::updated(&records, |item| oracle::windows_of(item.at, case.shape), rules.allowed),
            Kind::Several => oracle::updated(&records, |item| both(item.at, case.shape), rules.allowed),
            Kind::Sessions(gap) => oracle::updated_sessions(&records, |_| gap, rules.allowed),
            Kind::Own => oracle::updated(&records, Own::of, rules.allowed),
            Kind::Global => oracle::updated(&records, |_| vec![(i64::MIN.into(), i64::MAX.into())], rules.allowed),
        };
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late.clone()));
        let results = self.results.take();
        let unbounded = |window: Window| window.end == EventTime::MAX;
        for Record { at, value } in &results {
            prop_assert!(*at == value.window.last() || unbounded(value.window) || value.change == Change::Retract);
            prop_assert!(value.timing != Timing::Early || rules.every.is_some() || rules.count.is_some());
            prop_assert!(value.timing != Timing::Late || rules.allowed > 0);
            prop_assert!(value.change != Change::Retract || rules.mode == Mode::Retracting);
        }
        let results: Vec<_> = values(results);
        let naive = |windows: &BTreeMap<(u64, Window), Vec<Item>>| -> BTreeMap<(String, Window), Computed> {
            let of = |((key, window), items): (&(u64, Window), &Vec<Item>)| ((text(*key), *window), computed(items));
            windows.iter().map(of).collect()
        };
        let (on_time, all) = (naive(&on_time), naive(&all));
        self.check_on_time(&results, &on_time, rules)?;
        if !matches!(rules.kind, Kind::Sessions(_)) {
            check_timing(&results)?;
        }
        match rules.mode {
            Mode::Accumulating => check_last(&results, &all)?,
            Mode::Discarding => check_sums(&results, &all)?,
            Mode::Retracting => check_net(&results, &all)?,
        }
        Ok((on_time.len() as u64, late.len() as u64))
    }

    fn check_on_time(
        &self,
        results: &[Update<String, Computed>],
        expected: &BTreeMap<(String, Window), Computed>,
        rules: Rules,
    ) -> Result<(), TestCaseError> {
        let mut found = BTreeMap::new();
        for update in results.iter().filter(|update| update.timing == Timing::OnTime) {
            if update.change == Change::Insert {
                let twice = found.insert((update.key.clone(), update.window), update.result);
                prop_assert_eq!(twice, None, "{:?} was on time twice", update);
            }
        }
        if rules.mode == Mode::Discarding && (rules.every.is_some() || rules.count.is_some()) {
            // What had early results is not in them.
            for (window, (count, ..)) in &found {
                prop_assert!(expected.get(window).is_some_and(|expected| count <= &expected.0), "{:?}", window);
            }
        } else {
            prop_assert_eq!(&found, expected);
        }
        Ok(())
    }
}

fn computed(items: &[Item]) -> Computed {
    let first = items.iter().min_by_key(|item| (item.at, item.split, item.number)).expect("not empty");
    let sum = i64::try_from(total(items)).expect("small values");
    (items.len() as u64, sum, (first.split, first.number))
}

/// Early results of a window come before the one on time, and late ones after it.
fn check_timing(results: &[Update<String, Computed>]) -> Result<(), TestCaseError> {
    let mut seen = BTreeMap::new();
    for update in results {
        let before = seen.insert((update.key.clone(), update.window), update.timing);
        prop_assert!(before.is_none_or(|before| before <= update.timing), "{:?} came after {:?}", update, before);
    }
    Ok(())
}

/// The last result of each window is of all its records.
fn check_last(
    results: &[Update<String, Computed>],
    all: &BTreeMap<(String, Window), Computed>,
) -> Result<(), TestCaseError> {
    let mut last = BTreeMap::new();
    for update in results {
        last.insert((update.key.clone(), update.window), update.result);
    }
    for (window, expected) in all {
        prop_assert_eq!(last.get(window), Some(expected), "{:?}", window);
    }
    // Sessions that became one with others had results of their own.
    for (key, window) in last.keys() {
        prop_assert!(
            all.keys().any(|(own, all)| own == key && all.start <= window.start && window.end <= all.end),
            "{} {}",
            key,
            window
        );
    }
    Ok(())
}

/// All results of each window, and of sessions that are now in it, are of each of its records once.
fn check_sums(
    results: &[Update<String, Computed>],
    all: &BTreeMap<(String, Window), Computed>,
) -> Result<(), TestCaseError> {
    let mut sums: BTreeMap<(String, Window), (u64, i64)> = BTreeMap::new();
    for update in results {
        let place = (update.key.clone(), update.window);
        let place = match all.contains_key(&place) {
            true => place,
            false => {
                let around = all.keys().find(|(key, window)| {
                    *key == update.key && window.start <= update.window.start && update.window.end <= window.end
                });
                around.cloned().ok_or_else(|| TestCaseError::fail(format!("{update:?} is in no window")))?
            }
        };
        let sum = sums.entry(place).or_default();
        *sum = (sum.0 + update.result.0, sum.1 + update.result.1);
    }
    let expected: BTreeMap<_, _> = all.iter().map(|(place, (count, sum, _))| (place.clone(), (*count, *sum))).collect();
    prop_assert_eq!(sums, expected);
    Ok(())
}

/// What was not retracted is one result for each window, of all its records.
fn check_net(
    results: &[Update<String, Computed>],
    all: &BTreeMap<(String, Window), Computed>,
) -> Result<(), TestCaseError> {
    let mut net: BTreeMap<((String, Window), Computed), i64> = BTreeMap::new();
    for update in results {
        let by = if update.change == Change::Insert { 1 } else { -1 };
        *net.entry(((update.key.clone(), update.window), update.result)).or_default() += by;
    }
    net.retain(|_, count| *count != 0);
    let expected: BTreeMap<_, _> = all.iter().map(|(place, result)| ((place.clone(), *result), 1)).collect();
    prop_assert_eq!(net, expected);
    Ok(())
}

/// Values so small that sums fit.
fn small(mut case: Case) -> Case {
    case.splits.iter_mut().flatten().for_each(|item| item.value %= 1_000);
    case
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn updates_are_as_the_oracle_says(case in any_case(4, 100), rules in any_rules(), setups in setups()) {
        let case = small(case);
        let outlets = Outlets::new();
        let attach = |job: &Job, pace| outlets.attach(keyed(job, &case, pace, &[]), case.shape, rules);
        run_in(&setups, attach, |summary| {
            let (on_time, late) = outlets.compare(&case, rules)?;
            prop_assert_eq!(summary.late, late);
            if rules.mode != Mode::Discarding {
                prop_assert_eq!(summary.windows_fired, on_time);
            }
            Ok(())
        })?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        case in any_case(4, 100),
        rules in any_rules(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let (case, outlets) = (small(case), Outlets::new());
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), case.shape, rules);
        })?;
        outlets.compare(&case, rules)?;
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn updates_of_several_kinds_of_windows_are_as_the_oracle_says(
        case in any_case(4, 100),
        rules in any_rules(),
        setups in setups(),
    ) {
        let (case, outlets, rules) = (small(case), Outlets::new(), Rules { kind: Kind::Several, ..rules });
        let attach = |job: &Job, pace| outlets.attach(keyed(job, &case, pace, &[]), case.shape, rules);
        run_in(&setups, attach, |_| outlets.compare(&case, rules).map(|_| ()))?;
    }
}

/// The results of one key, from one split, one record at a time: timing, change, window and count.
fn story<W: Windows<Item>>(
    records: &[(i64, i64)],
    windows: W,
    ask: impl Fn(millstream::window::WindowedStream<u64, Item, W>) -> millstream::window::UpdatedWindows<u64, Item, W>,
) -> (Vec<String>, Vec<i64>) {
    delayed_story(0, records, windows, ask)
}

/// The same, where the watermark stays behind by `delay`.
fn delayed_story<W: Windows<Item>>(
    delay: i64,
    records: &[(i64, i64)],
    windows: W,
    ask: impl Fn(millstream::window::WindowedStream<u64, Item, W>) -> millstream::window::UpdatedWindows<u64, Item, W>,
) -> (Vec<String>, Vec<i64>) {
    let (results, late) = (Collected::new(), Collected::new());
    let job = Job::new("story");
    let (sender, source) = channel(1);
    let keyed = job.source(source, watermarks(delay)).key_by(|item| item.key);
    let (out, too_late) = ask(keyed.window(windows)).aggregate_with_late(Count);
    out.name("windows").sink(results.sink());
    too_late.sink(late.sink());
    let handle = job.start().expect("starts");
    let mut highest = i64::MIN;
    for (sent, item) in (1..).zip(one_split(records)) {
        highest = highest.max(item.at);
        sender.send(item).expect("the job reads");
        // The next one comes when all is done that this one calls for.
        let done = |status: &Status| {
            let windows = status.operators.iter().find(|operator| operator.name == "windows").expect("is there");
            windows.records_in == sent
                && windows.instances.iter().all(|(_, watermark)| watermark.micros() >= highest - delay)
        };
        while !done(&handle.status()) {
            std::thread::park_timeout(std::time::Duration::from_micros(100));
        }
    }
    drop(sender);
    oracle::finish(handle).expect("the job finishes");
    let line = |Record { at, value }: Record<Update<u64, u64>>| {
        let Update { window, timing, change, result, .. } = value;
        let sign = if change == Change::Insert { '+' } else { '-' };
        format!("{timing:?} {sign}{result} [{}, {}) @{}", window.start.micros(), window.end.micros(), at.micros())
    };
    (results.take().into_iter().map(line).collect(), values(late.take()).iter().map(|item| item.at).collect())
}

#[test]
fn a_late_record_updates_its_window_until_lateness_is_over() {
    let ten = Tumbling::of(EventSpan::micros(10));
    let records = [(1, 0), (5, 0), (12, 0), (3, 0), (19, 0), (4, 0), (20, 0), (9, 0)];
    let (results, late) = story(&records, ten, |windows| windows.allowed_lateness(EventSpan::micros(10)));
    assert_eq!(
        results,
        [
            "OnTime +2 [0, 10) @9",
            "Late +3 [0, 10) @9",
            "Late +4 [0, 10) @9",
            "OnTime +2 [10, 20) @19",
            "OnTime +1 [20, 30) @29",
        ]
    );
    assert_eq!(late, [9]);
    let (results, _) = story(&records, ten, |windows| windows.allowed_lateness(EventSpan::micros(10)).discarding());
    assert_eq!(results[..3], ["OnTime +2 [0, 10) @9", "Late +1 [0, 10) @9", "Late +1 [0, 10) @9"]);
}

#[test]
fn early_results_come_by_event_time_and_by_number() {
    let hundred = Tumbling::of(EventSpan::micros(100));
    let records = [(1, 0), (5, 0), (12, 0), (15, 0), (41, 0), (200, 0)];
    let (results, _) = story(&records, hundred, |windows| windows.early(Early::every(EventSpan::micros(10))));
    assert_eq!(
        results,
        [
            "Early +3 [0, 100) @99", // when 12 has come
            "Early +5 [0, 100) @99", // at 20, when 41 has come
            "OnTime +5 [0, 100) @99",
            "OnTime +1 [200, 300) @299",
        ]
    );
    let (results, _) = story(&records, hundred, |windows| windows.early(Early::count(2)).retracting());
    assert_eq!(
        results,
        [
            "Early +2 [0, 100) @99",
            "Early -2 [0, 100) @99",
            "Early +4 [0, 100) @99",
            "OnTime -4 [0, 100) @99",
            "OnTime +5 [0, 100) @99",
            "OnTime +1 [200, 300) @299",
        ]
    );
    let (results, _) = story(&records, Global, |windows| windows.early(Early::count(4)).discarding());
    let all = format!("[{}, {})", i64::MIN, i64::MAX);
    assert_eq!(results, [format!("Early +4 {all} @15"), format!("OnTime +2 {all} @{}", i64::MAX - 1)]);
}

/// A record that comes late makes one session of two that were over.
#[test]
fn sessions_that_become_one_are_retracted() {
    let records = [(0, 0), (15, 0), (40, 0), (8, 0), (100, 0)];
    let ten = Session::with_gap(EventSpan::micros(10));
    let (results, late) = story(&records, ten, |windows| windows.allowed_lateness(EventSpan::micros(50)).retracting());
    assert_eq!(
        results,
        [
            "OnTime +1 [0, 10) @9",
            "OnTime +1 [15, 25) @24",
            "Late -1 [0, 10) @24",
            "Late -1 [15, 25) @24",
            "Late +3 [0, 25) @24",
            "OnTime +1 [40, 50) @49",
            "OnTime +1 [100, 110) @109",
        ]
    );
    assert!(late.is_empty());
}

/// Of what comes out of order the first that is due decides.
#[test]
fn an_early_result_comes_as_soon_as_any_record_calls_for_it() {
    let hundred = Tumbling::of(EventSpan::micros(100));
    let records = [(55, 0), (10, 0), (75, 0), (200, 0)];
    let (results, _) =
        delayed_story(50, &records, hundred, |windows| windows.early(Early::every(EventSpan::micros(10))));
    // At 25, after 20 has passed.
    assert_eq!(results, ["Early +3 [0, 100) @99", "OnTime +3 [0, 100) @99", "OnTime +1 [200, 300) @299"]);
}

/// Lateness is over when the watermark is past the last instant that it allows, and not before, whatever wakes the key.
#[test]
fn a_window_is_kept_to_the_last_instant_of_its_lateness() {
    let ten = Tumbling::of(EventSpan::micros(10));
    let records = [(1, 0), (5, 0), (12, 0), (19, 0), (4, 0), (60, 0)];
    let ask = |windows: millstream::window::WindowedStream<u64, Item, Tumbling>| {
        windows.allowed_lateness(EventSpan::micros(10)).early(Early::every(EventSpan::micros(19)))
    };
    let (results, late) = story(&records, ten, ask);
    assert_eq!(
        results,
        [
            "OnTime +2 [0, 10) @9",
            "Early +2 [10, 20) @19",
            "Late +3 [0, 10) @9",
            "OnTime +2 [10, 20) @19",
            "OnTime +1 [60, 70) @69",
        ]
    );
    assert!(late.is_empty());
}

/// What came late and the session that it overlaps with become one, though lateness is over for it long before that session is.
#[test]
fn what_came_late_waits_for_the_session_that_it_belongs_to() {
    let records = [(100, 0), (96, 0), (108, 0), (116, 0), (200, 0)];
    let ten = Session::with_gap(EventSpan::micros(10));
    let (results, late) = story(&records, ten, |windows| windows.allowed_lateness(EventSpan::micros(5)));
    assert_eq!(
        results,
        ["Late +1 [96, 106) @105", "OnTime +3 [100, 126) @125", "Late +4 [96, 126) @125", "OnTime +1 [200, 210) @209",]
    );
    assert!(late.is_empty());
}

/// A late result is behind the watermark, as its record was: the window behind it that is over takes it for late.
#[test]
fn late_results_are_late_for_the_windows_behind() {
    let (panes, missed) = (Collected::new(), Collected::new());
    let job = Job::new("behind").batch_size(1);
    let ten = Tumbling::of(EventSpan::micros(10));
    let records = one_split(&[(1, 0), (25, 0), (3, 0), (60, 0)]);
    let updates = job
        .source(Script::new(vec![records]).pace(oracle::Pace::Slow(1)), watermarks(0))
        .key_by(|item| item.key)
        .window(ten)
        .allowed_lateness(EventSpan::micros(100))
        .aggregate(Count);
    let (counts, late) = updates.key_by(|_| 0u64).window(ten).aggregate_with_late(Count);
    counts.map(|(_, window, count)| (window.start.micros(), count)).sink(panes.sink());
    late.map(|update| (update.timing, update.result)).sink(missed.sink());
    run(job).expect("the job finishes");
    assert_eq!(sorted(values(panes.take())), [(0, 1), (20, 1), (60, 1)]);
    assert_eq!(values(missed.take()), [(Timing::Late, 2)]);
}

#[test]
fn a_window_that_does_not_contain_its_record_fails_the_job_and_names_both() {
    #[derive(Clone)]
    struct Wrong;
    impl Windows<Item> for Wrong {
        fn describe(&self) -> String {
            "wrong windows".to_string()
        }
        fn assign(&self, at: EventTime, _: &Item, windows: &mut Assigned) -> Result<(), Error> {
            windows.add(Window { start: at + EventSpan::micros(1), end: at + EventSpan::micros(2) });
            Ok(())
        }
    }
    let job = Job::new("wrong");
    job.source(Script::new(vec![one_split(&[(7, 1)])]), watermarks(0))
        .key_by(|item| item.key)
        .window(Wrong)
        .aggregate(Count)
        .sink(Collected::new().sink());
    let error = run(job).expect_err("a window without its record").to_string();
    assert!(
        error.contains("wrong windows") && error.contains("does not contain") && error.contains("key 0"),
        "{error}"
    );
}

/// Calendar windows are those of the days in their zone, on any number of workers.
#[test]
fn days_of_a_zone_are_counted() {
    let hour = 3_600_000_000i64;
    // Two days from the evening before clocks were put forward in Berlin, every hour.
    let begin: EventTime = "2026-03-28T20:00:00Z".parse().expect("a time");
    let records: Vec<(i64, i64)> = (0..48).map(|n| (begin.micros() + n * hour, 0)).collect();
    for workers in [1, 3] {
        let counts = Collected::new();
        let job = Job::new("days").workers(workers);
        job.source(Script::new(vec![one_split(&records)]), watermarks(0))
            .key_by(|item| item.key)
            .window(Calendar::days().in_zone("Europe/Berlin").expect("a zone"))
            .aggregate(Count)
            .map(|(_, window, count)| (window.start.to_string(), count))
            .sink(counts.sink());
        run(job).expect("finishes");
        let day = |start: &str, count: u64| (start.to_string(), count);
        assert_eq!(
            sorted(values(counts.take())),
            [day("2026-03-27T23:00:00Z", 3), day("2026-03-28T23:00:00Z", 23), day("2026-03-29T22:00:00Z", 22)]
        );
    }
}
