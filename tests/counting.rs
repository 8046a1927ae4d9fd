//! What goes by the number or the rank of records: count windows, the first few as they change, and aggregates that keep records, against
//! oracles that know nothing but the specification: on any number of workers, in batches of any size, with and without checkpoints and
//! memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test counting` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Item, Pace, Shape, cases, judge, run};
use proptest::prelude::*;

fn span(us: i64) -> EventSpan {
    EventSpan::micros(us)
}

/// By event time, then split and position.
fn in_order(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by_key(|item| (item.at, item.split, item.number));
    items
}

/// The records of each key that are not late, in order, and the late ones.
fn by_key(case: &Case) -> (BTreeMap<u64, Vec<Item>>, Vec<Item>) {
    let (mut keys, mut late) = (BTreeMap::<u64, Vec<Item>>::new(), Vec::new());
    for (item, watermark) in judge(&case.splits, case.delay) {
        if watermark.is_some_and(|watermark| i128::from(item.at) < watermark) {
            late.push(item);
        } else {
            keys.entry(item.key).or_default().push(item);
        }
    }
    (keys.into_iter().map(|(key, items)| (key, in_order(items))).collect(), late)
}

/// Where a record stands.
fn place(item: &Item) -> (u32, u64) {
    (item.split, item.number)
}

// ---- windows of so many records --------------------------------------------------------------------------------------

/// How many, their sum, the first, and all of them.
type Computed = (u64, i128, (u32, u64), Vec<(u32, u64)>);

fn computed(items: &[Item]) -> Computed {
    (items.len() as u64, total(items), place(&items[0]), items.iter().map(place).collect())
}

/// The instant after `at`, as far as there is one.
fn after(at: i64) -> EventTime {
    EventTime::from_micros(at.saturating_add(1))
}

/// The last `size` records of a key whenever there were `slide` more, and when the last of them happened.
fn counted(items: &[Item], size: u64, slide: u64) -> Vec<(i64, Window, Computed)> {
    let mut results = Vec::new();
    for end in 1..=items.len() {
        let beyond = (end as u64).checked_sub(size);
        if beyond.is_some_and(|beyond| beyond % slide == 0) {
            let window = &items[end - size as usize..end];
            let last = window[window.len() - 1].at;
            let stretch = Window { start: window[0].time(), end: after(last) };
            results.push((last, stretch, computed(window)));
        }
    }
    results
}

#[derive(Clone)]
struct Counts {
    results: Collected<(String, Window, Computed)>,
    late: Collected<Item>,
}

impl Counts {
    fn new() -> Self {
        Counts { results: Collected::new(), late: Collected::new() }
    }

    fn attach(&self, keyed: KeyedStream<String, Item>, (size, slide): (u64, u64)) {
        let windows = if size == slide { keyed.count_window(size) } else { keyed.sliding_count_window(size, slide) };
        let sum = Fold::new(0i128, |sum, item: &Item| *sum += i128::from(item.value), |sum, more| *sum += more);
        let (out, late) = windows.aggregate_with_late((Count, sum, First::of(place), List::of(place)));
        out.sink(self.results.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case, (size, slide): (u64, u64)) -> Result<(), TestCaseError> {
        let (keys, late) = by_key(case);
        let results = self.results.take().into_iter();
        let got = results.map(|Record { at, value: (key, window, out) }| (key, at.micros(), window, out));
        let mut expected = vec![];
        for (key, items) in keys {
            let of_key = counted(&items, size, slide).into_iter();
            expected.extend(of_key.map(|(at, window, out)| (text(key), at, window, out)));
        }
        prop_assert_eq!(sorted(got.collect()), sorted(expected));
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late));
        Ok(())
    }
}

/// Size and slide.
fn sizes() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        3 => (1u64..12).prop_map(|size| (size, size)),
        5 => (1u64..20, 1u64..20).prop_map(|(a, b)| (a.max(b), a.min(b))),
        2 => (1u64..6, 1u64..6).prop_map(|(slide, times)| (slide * times, slide)),
        1 => Just((u64::MAX, u64::MAX)),
        1 => Just((u64::MAX, 1)),
        1 => Just((40, 39)),
    ]
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn windows_of_so_many_records_are_as_the_oracle_says(
        case in any_case(4, 100),
        sizes in sizes(),
        setups in setups(),
    ) {
        let outlets = Counts::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(keyed(job, &case, pace, &[]), sizes),
            |_| outlets.compare(&case, sizes),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_no_counts(
        case in any_case(4, 100),
        sizes in sizes(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Counts::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), sizes);
        })?;
        outlets.compare(&case, sizes)?;
    }
}

/// A case of one split of `(time, value)` with one key.
fn one_key(records: &[(i64, i64)]) -> Case {
    Case { splits: vec![one_split(records)], shape: Shape { size: 1, slide: 1, offset: 0 }, delay: 0 }
}

/// The windows of one key: when, from, to, and the numbers of their records.
fn windows_of(case: &Case, sizes: (u64, u64)) -> Vec<(i64, i64, i64, Vec<u64>)> {
    let outlets = Counts::new();
    let job = Job::new("counts").batch_size(1);
    outlets.attach(keyed(&job, case, Pace::Slow(3), &[]), sizes);
    run(job).expect("finishes");
    let results = outlets.results.take().into_iter().map(|Record { at, value: (_, window, (.., all)) }| {
        let numbers = all.into_iter().map(|(_, number)| number).collect();
        (at.micros(), window.start.micros(), window.end.micros(), numbers)
    });
    results.collect()
}

#[test]
fn records_are_counted_in_order_of_event_time() {
    let mut case = one_key(&[(0, 0), (20, 0), (10, 0), (30, 0), (5, 0), (40, 0)]);
    case.delay = 100;
    // The last two are too few.
    assert_eq!(windows_of(&case, (2, 2)), [(5, 0, 6, vec![0, 4]), (20, 10, 21, vec![2, 1]), (40, 30, 41, vec![3, 5]),]);
    assert_eq!(windows_of(&case, (4, 4)), [(20, 0, 21, vec![0, 4, 2, 1])]);
    // One that is late does not count.
    case.delay = 0;
    assert_eq!(windows_of(&case, (2, 2)), [(20, 0, 21, vec![0, 1]), (40, 30, 41, vec![3, 5])]);
}

#[test]
fn a_sliding_window_has_its_first_result_when_it_is_full() {
    let case = one_key(&[(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]);
    assert_eq!(
        windows_of(&case, (3, 2)),
        [(2, 0, 3, vec![0, 1, 2]), (4, 2, 5, vec![2, 3, 4]), (6, 4, 7, vec![4, 5, 6]),]
    );
    assert_eq!(windows_of(&case, (1, 1)).len(), 7);
    assert_eq!(windows_of(&case, (7, 1)).len(), 1);
    assert_eq!(windows_of(&case, (8, 1)).len(), 0);
}

#[test]
fn records_at_the_ends_of_time_are_counted() {
    let case = one_key(&[(i64::MIN, 0), (i64::MIN, 0), (i64::MAX, 0), (i64::MAX, 0)]);
    assert_eq!(
        windows_of(&case, (1, 1)),
        [
            (i64::MIN, i64::MIN, i64::MIN + 1, vec![0]),
            (i64::MIN, i64::MIN, i64::MIN + 1, vec![1]),
            (i64::MAX, i64::MAX, i64::MAX, vec![2]),
            (i64::MAX, i64::MAX, i64::MAX, vec![3]),
        ]
    );
    assert_eq!(windows_of(&case, (4, 1)), [(i64::MAX, i64::MIN, i64::MAX, vec![0, 1, 2, 3])]);
}

#[test]
fn many_records_of_one_instant_are_counted() {
    let case = one_key(&vec![(7, 1); 5_000]);
    let outlets = Counts::new();
    let dir = tempdir();
    let job = new_job(&Setup { checkpoints: true, limited: true, batch: 1024, pace: Pace::Uneven(500), ..ONE }, &dir);
    outlets.attach(keyed(&job, &case, Pace::Uneven(500), &[]), (100, 30));
    run(job).expect("finishes");
    outlets.compare(&case, (100, 30)).expect("as the oracle says");
}

fn panics(make: impl FnOnce(KeyedStream<String, Item>)) -> bool {
    oracle::quiet();
    let job = Job::new("panics");
    let keyed = keyed(&job, &one_key(&[]), Pace::Full, &[]);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(keyed))).is_err()
}

#[test]
fn windows_of_no_records_are_refused() {
    assert!(panics(|keyed| drop(keyed.count_window(0))));
    assert!(panics(|keyed| drop(keyed.sliding_count_window(3, 0))));
    assert!(panics(|keyed| drop(keyed.sliding_count_window(3, 4))));
    assert!(panics(|keyed| drop(keyed.top(0, |item| item.value))));
    assert!(panics(|keyed| drop(keyed.top_within(span(1), 0, |item| item.value))));
    assert!(!panics(|keyed| drop(keyed.sliding_count_window(3, 3))));
}

// ---- the first few, as they change -----------------------------------------------------------------------------------

/// So few different values that many are the same.
fn measure(item: &Item) -> i64 {
    item.value.rem_euclid(11)
}

/// The `most` with the greatest measure of `items`, which are in order.
fn first_of(items: &[Item], most: usize) -> Vec<Item> {
    let mut items = items.to_vec();
    items.sort_by_key(|item| Reverse(measure(item))); // a stable sort
    items.truncate(most);
    items
}

/// What changes with each record of a key. One that comes `within` or more after the last one finds nothing.
fn changes(items: &[Item], most: usize, within: Option<i64>) -> Vec<(i64, Change, Item)> {
    let (mut since, mut changes) = (0, Vec::new());
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            let quiet = i128::from(item.at) - i128::from(items[number - 1].at);
            if within.is_some_and(|within| quiet >= i128::from(within)) {
                since = number;
            }
        }
        let (before, now) = (first_of(&items[since..number], most), first_of(&items[since..=number], most));
        changes.extend(before.iter().filter(|item| !now.contains(item)).map(|gone| (item.at, Change::Retract, *gone)));
        changes.extend(now.iter().filter(|item| !before.contains(item)).map(|new| (item.at, Change::Insert, *new)));
    }
    changes
}

type Changed = Collected<(String, Change, Item)>;

#[derive(Clone)]
struct Firsts {
    top: Changed,
    /// The same, in order of event time.
    within: Changed,
    late: Collected<Item>,
}

/// Changes by key, in the order in which they came.
fn of_each(changes: Vec<Record<(String, Change, Item)>>) -> BTreeMap<String, Vec<(i64, Change, Item)>> {
    let mut keys = BTreeMap::<_, Vec<_>>::new();
    for Record { at, value: (key, change, item) } in changes {
        keys.entry(key).or_default().push((at.micros(), change, item));
    }
    keys
}

impl Firsts {
    fn new() -> Self {
        Firsts { top: Collected::new(), within: Collected::new(), late: Collected::new() }
    }

    fn attach(&self, keyed: KeyedStream<String, Item>, (most, within): (usize, i64)) {
        keyed.clone().top(most, measure).sink(self.top.sink());
        let (top, late) = keyed.top_within(span(within), most, measure);
        top.sink(self.within.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case, (most, within): (usize, i64)) -> Result<(), TestCaseError> {
        let (keys, late) = by_key(case);
        let expected = |within: Option<i64>| -> BTreeMap<_, _> {
            let of_key = |(key, items): (&u64, &Vec<Item>)| (text(*key), changes(items, most, within));
            keys.iter().map(of_key).collect()
        };
        let top = of_each(self.top.take());
        prop_assert_eq!(&top, &expected(None));
        prop_assert_eq!(of_each(self.within.take()), expected(Some(within)));
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late));
        // All changes up to any instant come to the first few of what happened up to it.
        for (key, items) in &keys {
            for now in items {
                let mut net = BTreeMap::<Item, i64>::new();
                for (_, change, item) in top[&text(*key)].iter().filter(|(at, ..)| *at <= now.at) {
                    *net.entry(*item).or_default() += if *change == Change::Insert { 1 } else { -1 };
                }
                net.retain(|_, count| *count != 0);
                let until = items.partition_point(|item| item.at <= now.at);
                let first = first_of(&items[..until], most).into_iter().map(|item| (item, 1));
                prop_assert_eq!(net, first.collect::<BTreeMap<_, _>>());
            }
        }
        Ok(())
    }
}

/// How many, and for how long.
fn how_many() -> impl Strategy<Value = (usize, i64)> {
    let most = prop_oneof![6 => 1usize..8, 1 => 8usize..60, 1 => Just(usize::MAX)];
    let within = prop_oneof![1 => Just(0), 5 => 1i64..60, 2 => 100i64..100_000, 1 => Just(i64::MAX)];
    (most, within)
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn the_first_few_change_as_the_oracle_says(
        case in any_case(4, 80),
        how_many in how_many(),
        setups in setups(),
    ) {
        let outlets = Firsts::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(keyed(job, &case, pace, &[]), how_many),
            |_| outlets.compare(&case, how_many),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_no_changes(
        case in any_case(4, 80),
        how_many in how_many(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Firsts::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), how_many);
        })?;
        outlets.compare(&case, how_many)?;
    }
}

/// The changes of the first two within 10 us, as `time +value` or `time -value`.
fn told(records: &[(i64, i64)]) -> Vec<String> {
    let outlets = Firsts::new();
    let job = Job::new("told").batch_size(1);
    outlets.attach(keyed(&job, &one_key(records), Pace::Slow(1), &[]), (2, 10));
    run(job).expect("finishes");
    let sign = |change| if change == Change::Insert { '+' } else { '-' };
    let changes = outlets.within.take().into_iter();
    changes
        .map(|Record { at, value: (_, change, item) }| format!("{} {}{}", at.micros(), sign(change), item.value))
        .collect()
}

#[test]
fn what_is_no_longer_among_the_first_goes_before_what_comes() {
    assert_eq!(told(&[(0, 3), (1, 1), (2, 2), (3, 1), (4, 9)]), ["0 +3", "1 +1", "2 -1", "2 +2", "4 -2", "4 +9"]);
    // Of two with the same measure the one that was there stays.
    assert_eq!(told(&[(0, 3), (1, 1), (2, 12), (2, 14)]), ["0 +3", "1 +1", "2 -1", "2 +14"]);
}

#[test]
fn a_key_that_is_quiet_for_the_span_begins_anew() {
    // A record that is not among the first keeps the key, too.
    assert_eq!(told(&[(0, 9), (0, 8), (9, 1), (18, 2), (28, 3)]), ["0 +9", "0 +8", "28 +3"]);
    assert_eq!(told(&[(0, 9), (9, 8), (19, 7)]), ["0 +9", "9 +8", "19 +7"]);
    assert_eq!(
        told(&[(i64::MIN, 9), (i64::MAX, 8), (i64::MAX, 7), (i64::MAX, 9)]),
        [
            "-9223372036854775808 +9",
            "9223372036854775807 +8",
            "9223372036854775807 +7",
            "9223372036854775807 -7",
            "9223372036854775807 +9",
        ]
    );
}

// ---- aggregates that keep records ------------------------------------------------------------------------------------

/// The first by measure, all, the newest few, and those of the newest stretch.
type Kept = (Vec<Item>, Vec<Item>, Vec<Item>, Vec<Item>);

/// How many records, and how long a stretch.
type Bounds = (usize, i64);

fn kept(items: &[Item], (most, within): Bounds) -> Kept {
    let items = in_order(items.to_vec());
    let newest = i128::from(items[items.len() - 1].at);
    let recent = items.iter().filter(|item| newest - i128::from(item.at) < i128::from(within)).copied().collect();
    (first_of(&items, most), items.clone(), items[items.len().saturating_sub(most)..].to_vec(), recent)
}

fn itself(item: &Item) -> Item {
    *item
}

fn keeping((most, within): Bounds) -> impl Aggregate<Item, Out = Kept> {
    let all = List::of(itself);
    (Top::of(most, measure), all, Newest::count(most, all), Newest::within(span(within), all))
}

#[derive(Clone)]
struct Keeps {
    once: Collected<(String, Window, Kept)>,
    updates: Collected<Update<String, Kept>>,
    late: Collected<Item>,
}

impl Keeps {
    fn new() -> Self {
        Keeps { once: Collected::new(), updates: Collected::new(), late: Collected::new() }
    }

    fn attach(&self, keyed: KeyedStream<String, Item>, shape: Shape, bounds: Bounds, allowed: i64) {
        if shape.size == shape.slide {
            let windows = Tumbling::of(span(shape.size)).offset(span(shape.offset));
            self.attach_to(keyed, windows, bounds, allowed);
        } else {
            self.attach_to(keyed, sliding(shape), bounds, allowed);
        }
    }

    fn attach_to(&self, keyed: KeyedStream<String, Item>, windows: impl Windows<Item>, bounds: Bounds, allowed: i64) {
        keyed.clone().window(windows.clone()).aggregate(keeping(bounds)).sink(self.once.sink());
        let updated = keyed.window(windows).allowed_lateness(span(allowed)).retracting();
        let (updates, late) = updated.aggregate_with_late(keeping(bounds));
        updates.sink(self.updates.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case, bounds: Bounds, allowed: i64) -> Result<(), TestCaseError> {
        let records = judge(&case.splits, case.delay);
        let windows = |item: &Item| oracle::windows_of(item.at, case.shape);
        let (on_time, all, late) = oracle::updated(&records, windows, allowed);
        let naive = |windows: BTreeMap<(u64, Window), Vec<Item>>| -> Vec<(String, Window, Kept)> {
            windows
                .into_iter()
                .map(|((key, window), items)| (text(key), window, kept(&items, bounds)))
                .collect()
        };
        prop_assert_eq!(sorted(values(self.once.take())), sorted(naive(on_time)));
        let mut net = BTreeMap::<_, i64>::new();
        for update in values(self.updates.take()) {
            let by = if update.change == Change::Insert { 1 } else { -1 };
            *net.entry((update.key, update.window, update.result)).or_default() += by;
        }
        net.retain(|_, count| *count != 0);
        prop_assert!(net.values().all(|count| *count == 1));
        prop_assert_eq!(sorted(net.into_keys().collect()), sorted(naive(all)));
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late));
        Ok(())
    }
}

fn keep_bounds() -> impl Strategy<Value = (Bounds, i64)> {
    let within = prop_oneof![4 => 1i64..40, 2 => 100i64..1_000_000_000, 1 => Just(i64::MAX)];
    let allowed = prop_oneof![1 => Just(0), 3 => 1i64..60, 2 => 60i64..5_000_000_000, 1 => Just(i64::MAX)];
    ((1usize..8, within), allowed)
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn what_aggregates_keep_is_as_the_oracle_says(
        case in any_case(3, 30),
        (bounds, allowed) in keep_bounds(),
        setups in setups(),
    ) {
        let outlets = Keeps::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(keyed(job, &case, pace, &[]), case.shape, bounds, allowed),
            |_| outlets.compare(&case, bounds, allowed),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing_that_is_kept(
        case in any_case(3, 30),
        (bounds, allowed) in keep_bounds(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Keeps::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), case.shape, bounds, allowed);
        })?;
        outlets.compare(&case, bounds, allowed)?;
    }
}
