//! Process functions and what is made of them, against oracles that know nothing but the specification: on any number of workers, in batches
//! of any size, with and without checkpoints and memory, and through crashes and other numbers of workers.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test process` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::Duration;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Fault, Item, Pace, Script, cases, judge, run};
use proptest::prelude::*;

type Context<'a, S, O> = ProcessContext<'a, String, S, O>;

fn span(us: i64) -> EventSpan {
    EventSpan::micros(us)
}

// ---- in order --------------------------------------------------------------------------------------------------------

/// Does everything that a process function can do, as the values of records say.
#[derive(Clone)]
struct Wild;

/// What [`Wild`] emits: whether for a timer, when, for when that was set, and what it keeps.
type Seen = (String, bool, EventTime, EventTime, Vec<i64>);

impl Process<String, Item> for Wild {
    type State = Vec<i64>;
    type Out = Seen;

    fn on_record(&mut self, cx: &mut Context<'_, Vec<i64>, Seen>, item: &Item) -> Result<(), Error> {
        let now = cx.now();
        cx.state().get_or_insert_default().push(item.value);
        match item.value.rem_euclid(7) {
            0 => cx.set_timer(now + span(item.value.rem_euclid(50))),
            1 => cx.set_timer(now - span(5)),
            2 => {
                if let Some(next) = cx.next_timer() {
                    assert!(cx.delete_timer(next) && !cx.delete_timer(next));
                }
            }
            3 => *cx.state() = None,
            4 => cx.set_timer(now + span(1_000_000)),
            _ => {}
        }
        let seen = (cx.key().clone(), false, now, item.time(), cx.state().clone().unwrap_or_default());
        cx.emit(seen);
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Vec<i64>, Seen>, at: EventTime) -> Result<(), Error> {
        let now = cx.now();
        let kept = cx.state().take().unwrap_or_default();
        if kept.len() % 2 == 1 {
            cx.set_timer(at + span(7));
            *cx.state() = Some(kept[1..].to_vec());
        }
        let seen = (cx.key().clone(), true, now, at, kept);
        cx.emit(seen);
        Ok(())
    }
}

/// What [`Wild`] sees of one key, one step after the other.
fn wild(key: &str, mut items: Vec<Item>) -> Vec<Seen> {
    items.sort_by_key(|item| (item.at, item.split, item.number));
    let mut items = std::collections::VecDeque::from(items);
    let (mut kept, mut timers, mut seen) = (None::<Vec<i64>>, BTreeSet::new(), Vec::new());
    let mut now = i64::MIN;
    loop {
        let timer_first = match (timers.first(), items.front()) {
            (None, None) => break,
            (Some(timer), Some(item)) => *timer <= item.at,
            (timer, _) => timer.is_some(),
        };
        if timer_first {
            let at: i64 = timers.pop_first().expect("looked at");
            now = now.max(at);
            let before = kept.take().unwrap_or_default();
            seen.push((true, now, at, before.clone()));
            if before.len() % 2 == 1 {
                timers.insert(at.saturating_add(7));
                kept = Some(before[1..].to_vec());
            }
        } else {
            let item = items.pop_front().expect("looked at");
            now = now.max(item.at);
            kept.get_or_insert_default().push(item.value);
            match item.value.rem_euclid(7) {
                0 => drop(timers.insert(now.saturating_add(item.value.rem_euclid(50)))),
                1 => drop(timers.insert(now.saturating_sub(5))),
                2 => drop(timers.pop_first()),
                3 => kept = None,
                4 => drop(timers.insert(now.saturating_add(1_000_000))),
                _ => {}
            }
            seen.push((false, now, item.at, kept.clone().unwrap_or_default()));
        }
    }
    let time = EventTime::from_micros;
    seen.into_iter()
        .map(|(timer, now, at, kept)| (key.into(), timer, time(now), time(at), kept))
        .collect()
}

/// The records that are not late by key, and the late ones.
fn by_key(case: &Case) -> (BTreeMap<u64, Vec<Item>>, Vec<Item>) {
    let (mut keys, mut late) = (BTreeMap::<u64, Vec<Item>>::new(), Vec::new());
    for (item, watermark) in judge(&case.splits, case.delay) {
        if watermark.is_some_and(|watermark| i128::from(item.at) < watermark) {
            late.push(item);
        } else {
            keys.entry(item.key).or_default().push(item);
        }
    }
    (keys, late)
}

/// The first record of a key, and the next that is `within` or more after it.
fn deduplicated(mut items: Vec<Item>, within: i64) -> Vec<Item> {
    items.sort_by_key(|item| (item.at, item.split, item.number));
    let mut until = None::<i128>;
    items.retain(|item| {
        let stays = until.is_none_or(|until| i128::from(item.at) >= until);
        if stays {
            until = Some(i128::from(item.at) + i128::from(within));
        }
        stays
    });
    items
}

#[derive(Clone)]
struct Outlets {
    seen: Collected<Seen>,
    once: Collected<Item>,
    late: Collected<Item>,
    twice_late: Collected<Item>,
}

impl Outlets {
    fn new() -> Self {
        Outlets { seen: Collected::new(), once: Collected::new(), late: Collected::new(), twice_late: Collected::new() }
    }

    fn attach(&self, keyed: KeyedStream<String, Item>, within: i64) {
        let (seen, late) = keyed.clone().process_in_order_with_late(Wild);
        seen.sink(self.seen.sink());
        late.sink(self.late.sink());
        let (once, late) = keyed.deduplicate_with_late(span(within));
        once.sink(self.once.sink());
        late.sink(self.twice_late.sink());
    }

    fn compare(&self, case: &Case, within: i64) -> Result<(), TestCaseError> {
        let (keys, late) = by_key(case);
        let seen = self.seen.take();
        prop_assert!(seen.iter().all(|record| record.at == record.value.2), "when results happened");
        let expected = keys.iter().flat_map(|(key, items)| wild(&text(*key), items.clone()));
        prop_assert_eq!(sorted(values(seen)), sorted(expected.collect()));
        let once = self.once.take();
        prop_assert!(once.iter().all(|record| record.at == record.value.time()));
        let expected = keys.values().flat_map(|items| deduplicated(items.clone(), within));
        prop_assert_eq!(sorted(values(once)), sorted(expected.collect()));
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late.clone()));
        prop_assert_eq!(sorted(values(self.twice_late.take())), sorted(late));
        Ok(())
    }
}

fn spans() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 1i64..60, 2 => 100i64..100_000, 1 => Just(86_400_000_000), 1 => Just(i64::MAX)]
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn what_is_seen_in_order_is_as_the_oracle_says(case in any_case(4, 120), within in spans(), setups in setups()) {
        let outlets = Outlets::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(keyed(job, &case, pace, &[]), within),
            |_| outlets.compare(&case, within),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        case in any_case(4, 120),
        within in spans(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), within);
        })?;
        outlets.compare(&case, within)?;
    }
}

// ---- with a rank, and for a time -------------------------------------------------------------------------------------

/// Keeps what it has seen for a time, and ranks records by their values.
#[derive(Clone, Copy, Debug)]
struct Forgetful {
    keep: Option<i64>,
}

fn rank(item: &Item) -> u8 {
    item.value.rem_euclid(3) as u8
}

impl Process<String, Item> for Forgetful {
    type State = Vec<i64>;
    type Out = Seen;

    fn rank(&self, item: &Item) -> u8 {
        rank(item)
    }

    fn keep_for(&self) -> Option<EventSpan> {
        self.keep.map(span)
    }

    fn on_record(&mut self, cx: &mut Context<'_, Vec<i64>, Seen>, item: &Item) -> Result<(), Error> {
        let (now, found) = (cx.now(), cx.state().clone().unwrap_or_default());
        cx.emit((cx.key().clone(), false, now, item.time(), found));
        match item.value.rem_euclid(11) {
            0 => *cx.state() = None,
            1 | 2 => {}
            _ => cx.state().get_or_insert_default().push(item.value),
        }
        match item.value.rem_euclid(5) {
            0 | 3 => (1..4).for_each(|part| cx.set_timer(now + span(item.value.rem_euclid(60) / part))),
            1 => cx.set_timer(now - span(3)),
            2 => cx.set_timer(now + span(200)),
            _ => {}
        }
        Ok(())
    }

    /// By its time a timer leaves the state, takes it away, or makes one.
    fn on_timer(&mut self, cx: &mut Context<'_, Vec<i64>, Seen>, at: EventTime) -> Result<(), Error> {
        let (now, found) = (cx.now(), cx.state().clone().unwrap_or_default());
        cx.emit((cx.key().clone(), true, now, at, found));
        match at.micros().rem_euclid(4) {
            0 => *cx.state() = None,
            1 | 2 => cx.state().get_or_insert_default().push(at.micros()),
            _ => {}
        }
        Ok(())
    }
}

/// What [`Forgetful`] sees of one key, one step after the other, at times that end nowhere.
fn forgetful(key: &str, mut items: Vec<Item>, keep: Option<i64>) -> Vec<Seen> {
    items.sort_by_key(|item| (item.at, rank(item), item.split, item.number));
    let mut items = std::collections::VecDeque::from(items);
    let (mut kept, mut until) = (None::<Vec<i64>>, None::<i128>);
    let (mut timers, mut seen, mut now) = (BTreeSet::<i64>::new(), Vec::new(), i64::MIN);
    let keep = keep.map(i128::from);
    loop {
        let timer = timers.first().copied().filter(|timer| items.front().is_none_or(|item| *timer <= item.at));
        let Some(at) = timer.or(items.front().map(|item| item.at)) else { break };
        now = now.max(at);
        if until.is_some_and(|until| until <= i128::from(now)) {
            (kept, until) = (None, None);
        }
        let time = EventTime::from_micros;
        seen.push((key.to_string(), timer.is_some(), time(now), time(at), kept.clone().unwrap_or_default()));
        if timer.is_some() {
            timers.remove(&at);
            match at.rem_euclid(4) {
                0 => kept = None,
                1 | 2 => kept.get_or_insert_default().push(at),
                _ => {}
            }
        } else {
            let item = items.pop_front().expect("looked at");
            match item.value.rem_euclid(11) {
                0 => kept = None,
                1 | 2 => {}
                _ => kept.get_or_insert_default().push(item.value),
            }
            match item.value.rem_euclid(5) {
                0 | 3 => timers.extend((1..4).map(|part| now.saturating_add(item.value.rem_euclid(60) / part))),
                1 => drop(timers.insert(now.saturating_sub(3))),
                2 => drop(timers.insert(now.saturating_add(200))),
                _ => {}
            }
            until = None;
        }
        // From its last record on; one that a timer makes from that on.
        if kept.is_none() {
            until = None;
        } else if until.is_none() {
            until = keep.map(|keep| i128::from(now) + keep);
        }
    }
    seen
}

fn keeps() -> impl Strategy<Value = Option<i64>> {
    let span = prop_oneof![1 => Just(0), 5 => 1i64..60, 2 => 100i64..100_000, 1 => Just(i64::MAX)];
    prop_oneof![1 => Just(None), 5 => span.prop_map(Some)]
}

fn compare_forgetful(
    case: &Case,
    keep: Option<i64>,
    seen: &Collected<Seen>,
    late: &Collected<Item>,
) -> Result<(), TestCaseError> {
    let (keys, expected_late) = by_key(case);
    let mut found = BTreeMap::<String, Vec<Seen>>::new();
    for record in seen.take() {
        prop_assert_eq!(record.at, record.value.2);
        found.entry(record.value.0.clone()).or_default().push(record.value);
    }
    let expected = keys.iter().map(|(key, items)| (text(*key), forgetful(&text(*key), items.clone(), keep)));
    prop_assert_eq!(found, expected.collect::<BTreeMap<_, _>>());
    prop_assert_eq!(sorted(values(late.take())), sorted(expected_late));
    Ok(())
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn state_is_kept_for_as_long_as_the_oracle_says(
        case in any_case(4, 100),
        keep in keeps(),
        setups in setups(),
    ) {
        for setup in setups {
            let (dir, seen, late) = (tempdir(), Collected::new(), Collected::new());
            let job = new_job(&setup, &dir);
            let (out, missed) = keyed(&job, &case, setup.pace, &[]).process_in_order_with_late(Forgetful { keep });
            out.sink(seen.sink());
            missed.sink(late.sink());
            run(job).expect("the job finishes");
            compare_forgetful(&case, keep, &seen, &late)?;
        }
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_keep_state_for_as_long(
        case in any_case(4, 100),
        keep in keeps(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let (seen, late) = (Collected::new(), Collected::new());
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            let function = Forgetful { keep };
            let (out, missed) = keyed(job, &case, setup.pace, faults).process_in_order_with_late(function);
            out.sink(seen.sink());
            missed.sink(late.sink());
        })?;
        compare_forgetful(&case, keep, &seen, &late)?;
    }
}

/// Counts the records of a key, and calls itself when a value says so.
#[derive(Clone)]
struct Counter {
    keep: i64,
}

impl Process<u64, Item> for Counter {
    type State = u64;
    type Out = (EventTime, u64);

    fn rank(&self, item: &Item) -> u8 {
        u8::from(item.value >= 0)
    }

    fn keep_for(&self) -> Option<EventSpan> {
        Some(span(self.keep))
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, u64, Self::Out>, item: &Item) -> Result<(), Error> {
        let count = cx.state().get_or_insert_default();
        *count += 1;
        let seen = (item.time(), *count);
        cx.emit(seen);
        if item.value > 0 {
            cx.set_timer(item.time() + span(item.value));
        }
        Ok(())
    }

    /// Tells, but is no record, and makes nothing last longer.
    fn on_timer(&mut self, cx: &mut ProcessContext<'_, u64, u64, Self::Out>, at: EventTime) -> Result<(), Error> {
        let count = cx.state().unwrap_or(0);
        cx.emit((at, 100 + count));
        Ok(())
    }
}

/// What is counted of `(time, value)`, in order: as they come, and in order; it must be the same for records in order.
fn counter(records: &[(i64, i64)], keep: i64) -> Vec<(i64, u64)> {
    let run_it = |in_order: bool| {
        let (job, seen) = (Job::new("counter").batch_size(1), Collected::new());
        let source = Script::new(vec![one_split(records)]).pace(Pace::Slow(1));
        let keyed = job.source(source, watermarks(0)).key_by(|item| item.key);
        let counter = Counter { keep };
        let out = if in_order { keyed.process_in_order(counter) } else { keyed.process(counter) };
        out.sink(seen.sink());
        run(job).expect("finishes");
        values(seen.take()).into_iter().map(|(at, count)| (at.micros(), count)).collect::<Vec<_>>()
    };
    let in_order = run_it(true);
    assert_eq!(sorted(run_it(false)), sorted(in_order.clone()));
    in_order
}

#[test]
fn state_is_dropped_before_timers_and_records_of_the_instant() {
    assert_eq!(counter(&[(0, 0), (9, 0), (18, 0), (28, 0), (29, 0)], 10), [(0, 1), (9, 2), (18, 3), (28, 1), (29, 2)]);
    // Timers see it up to the instant before.
    assert_eq!(counter(&[(0, 9), (100, 10)], 10), [(0, 1), (9, 101), (100, 1), (110, 100)]);
    // A timer is no record.
    assert_eq!(counter(&[(0, 9), (10, 0)], 10), [(0, 1), (9, 101), (10, 1)]);
    // For no time is until the record has been seen.
    assert_eq!(counter(&[(0, 1), (0, 0), (1, 0)], 0), [(0, 1), (0, 1), (1, 100), (1, 1)]);
}

#[test]
fn records_out_of_order_make_nothing_last_shorter() {
    let (job, seen) = (Job::new("out-of-order").batch_size(1), Collected::new());
    let records = one_split(&[(50, 0), (20, 0), (55, 0), (30, 0), (65, 0), (64, 0), (74, 0), (75, 0), (85, 0)]);
    job.source(Script::new(vec![records]).pace(Pace::Slow(1)), watermarks(100))
        .key_by(|item| item.key)
        .process(Counter { keep: 10 })
        .sink(seen.sink());
    run(job).expect("finishes");
    let counts: Vec<u64> = values(seen.take()).into_iter().map(|(_, count)| count).collect();
    // What happens 10 us after the last one finds nothing, though event time is far behind.
    assert_eq!(counts, [1, 2, 3, 4, 1, 2, 3, 4, 1]);
}

/// Its first timer takes the state away, and the second one makes another; all say whether there is any.
#[derive(Clone)]
struct Remade;

impl Process<u64, Item> for Remade {
    type State = ();
    type Out = (i64, bool);

    fn keep_for(&self) -> Option<EventSpan> {
        Some(span(10))
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, (), Self::Out>, item: &Item) -> Result<(), Error> {
        *cx.state() = Some(());
        [3, 5, 10, 14, 15].iter().for_each(|after| cx.set_timer(item.time() + span(*after)));
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, u64, (), Self::Out>, at: EventTime) -> Result<(), Error> {
        match at.micros() {
            3 => *cx.state() = None,
            5 => *cx.state() = Some(()),
            _ => {}
        }
        let is_there = cx.state().is_some();
        cx.emit((at.micros(), is_there));
        Ok(())
    }
}

#[test]
fn what_a_timer_makes_is_kept_from_then_on() {
    let (job, seen) = (Job::new("remade"), Collected::new());
    let keyed = job.source(Script::new(vec![one_split(&[(0, 0)])]), watermarks(0)).key_by(|item| item.key);
    keyed.process_in_order(Remade).sink(seen.sink());
    run(job).expect("finishes");
    assert_eq!(values(seen.take()), [(3, false), (5, true), (10, true), (14, true), (15, false)]);
}

#[test]
fn the_end_of_time_is_no_end_of_state() {
    let (least, most) = (i64::MIN, i64::MAX);
    assert_eq!(counter(&[(0, 0), (most, 0), (most, 0)], most), [(0, 1), (most, 1), (most, 2)]);
    assert_eq!(counter(&[(1, 0), (most, 0), (most, 0)], most), [(1, 1), (most, 2), (most, 3)]);
    assert_eq!(counter(&[(least, 0), (-2, 0), (-1, 0)], most), [(least, 1), (-2, 2), (-1, 3)]);
    assert_eq!(counter(&[(least, 0), (-1, 0), (0, 0)], most), [(least, 1), (-1, 1), (0, 2)]);
}

#[test]
fn a_lower_rank_comes_first_at_one_instant_alone() {
    let (job, seen) = (Job::new("ranks"), Collected::new());
    let records = one_split(&[(0, 0), (0, -1), (0, 0), (0, -2), (1, 0), (2, -3)]);
    job.source(Script::new(vec![records]), watermarks(0))
        .key_by(|item| item.key)
        .process_in_order(Ranked)
        .sink(seen.sink());
    run(job).expect("finishes");
    assert_eq!(values(seen.take()), [1, 3, 0, 2, 4, 5]);
}

/// Says in which order records come: those with a value below zero are first.
#[derive(Clone)]
struct Ranked;

impl Process<u64, Item> for Ranked {
    type State = ();
    type Out = u64;

    fn rank(&self, item: &Item) -> u8 {
        if item.value < 0 { 0 } else { 255 }
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, (), u64>, item: &Item) -> Result<(), Error> {
        cx.emit(item.number);
        Ok(())
    }
}

/// With a shorter time from one start to the next the state is still there for the next record, and then counts the shorter one.
#[test]
fn another_time_counts_from_the_next_record_on() {
    let records = (0..3_000).map(|n| Item { split: 0, number: n, at: n as i64 * 10, key: 0, value: 0 });
    let records: Vec<Item> = records.collect();
    for in_order in [true, false] {
        let (dir, seen) = (tempdir(), Collected::new());
        let job = |keep: i64| {
            let job = Job::new("shorter").checkpoint_dir(dir.path());
            let source = Script::new(vec![records.clone()]).pace(Pace::Slow(2));
            let keyed = job.source(source, watermarks(0)).key_by(|item| item.key);
            let counter = Counter { keep };
            let out = if in_order { keyed.process_in_order(counter) } else { keyed.process(counter) };
            out.sink(seen.sink());
            job
        };
        let handle = job(1_000_000).start().expect("starts");
        while handle.status().watermark() < EventTime::from_micros(1_000) {
            std::thread::park_timeout(Duration::from_micros(100));
        }
        handle.stop(StopMode::WithCheckpoint);
        oracle::finish(handle).expect("stops");
        run(job(10)).expect("finishes");
        let counts: Vec<u64> = values(seen.take()).into_iter().map(|(_, count)| count).collect();
        let longest = counts.iter().copied().max().expect("some");
        assert!((100..3_000).contains(&longest), "{longest}");
        let expected = (1..=longest).chain(std::iter::repeat_n(1, 3_000 - longest as usize));
        assert_eq!(counts, expected.collect::<Vec<_>>());
    }
}

// ---- as they come ----------------------------------------------------------------------------------------------------

/// Sums up what comes, until a timer at the end of the stretch of 50 us in which the first of it happened.
#[derive(Clone)]
struct Sums;

impl Process<String, Item> for Sums {
    type State = (u64, i64);
    type Out = (bool, (u64, i64));

    fn on_record(&mut self, cx: &mut Context<'_, (u64, i64), Self::Out>, item: &Item) -> Result<(), Error> {
        assert_eq!(cx.now(), item.time());
        let (count, sum) = cx.state().get_or_insert_default();
        (*count, *sum) = (*count + 1, sum.wrapping_add(item.value));
        let end = item.at.div_euclid(50).saturating_add(1).saturating_mul(50);
        cx.set_timer(EventTime::from_micros(end));
        cx.emit((false, (1, item.value)));
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_, (u64, i64), Self::Out>, _: EventTime) -> Result<(), Error> {
        // What an earlier timer has summed up is gone.
        if let Some(sums) = cx.state().take() {
            cx.emit((true, sums));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    /// Which sums there are depends on what came when; all records are in exactly one of them, and all are seen at once.
    #[test]
    fn what_is_seen_as_it_comes_is_all_there_is(
        case in any_case(4, 120),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let (sums, late) = (Collected::new(), Collected::new());
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            let (out, missed) = keyed(job, &case, setup.pace, faults).process_with_late(Sums);
            out.sink(sums.sink());
            missed.sink(late.sink());
        })?;
        let (keys, expected_late) = by_key(&case);
        prop_assert_eq!(sorted(values(late.take())), sorted(expected_late));
        let items = || keys.values().flatten();
        let (timers, records): (Vec<_>, Vec<_>) = values(sums.take()).into_iter().partition(|(timer, _)| *timer);
        let one_by_one = records.iter().map(|(_, (_, value))| *value).collect();
        prop_assert_eq!(sorted(one_by_one), sorted(items().map(|item| item.value).collect()));
        let all = timers.iter().fold((0, 0i64), |all, (_, (n, sum))| (all.0 + n, all.1.wrapping_add(*sum)));
        prop_assert_eq!(all, (items().count() as u64, items().fold(0i64, |sum, item| sum.wrapping_add(item.value))));
    }
}

/// With one split in order, timers come between the records: after the one that moves event time on. The last record is not there to be
/// read before the timer has been called.
#[test]
fn timers_are_called_between_records() {
    let ((sender, source), (out, results)) = (channel(10), mpsc::channel());
    let job = Job::new("between");
    job.source(source, watermarks(0))
        .key_by(|item: &Item| text(item.key))
        .process(Sums)
        .filter(|(timer, _)| *timer)
        .sink(for_each(move |record: Record<(bool, (u64, i64))>| {
            out.send((record.at.micros(), record.value.1)).expect("the test waits");
        }));
    let handle = job.start().expect("starts");
    let next = || results.recv_timeout(Duration::from_secs(20)).expect("a timer is called");
    let mut records = one_split(&[(0, 1), (10, 2), (49, 3), (50, 4), (120, 5)]);
    let last = records.pop().expect("five records");
    records.into_iter().for_each(|item| sender.send(item).expect("the job reads"));
    assert_eq!(next(), (50, (4, 10)));
    sender.send(last).expect("the job reads");
    assert_eq!(next(), (100, (1, 5)));
    drop(sender);
    oracle::finish(handle).expect("finishes");
    assert!(results.try_recv().is_err(), "no other timer has anything to sum up");
}

/// Sets timers for what is long over.
#[derive(Clone)]
struct Past;

impl Process<u64, Item> for Past {
    type State = ();
    type Out = i64;

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, (), i64>, item: &Item) -> Result<(), Error> {
        cx.set_timer(item.time() - span(1_000));
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, u64, (), i64>, at: EventTime) -> Result<(), Error> {
        assert!(at <= cx.now());
        cx.emit(at.micros());
        Ok(())
    }
}

/// What a timer for the past emits happens now: windows behind it may have been fired for the past.
#[test]
fn what_timers_for_the_past_emit_is_not_late() {
    let items = (0..2_000).map(|n| Item { split: 0, number: n, at: n as i64 * 10, key: n % 3, value: 0 });
    let job = Job::new("past").workers(2);
    let (called, results, late) = (Collected::new(), Collected::new(), Collected::new());
    let calls = job
        .source(Script::new(vec![items.collect()]).pace(Pace::Slow(20)), watermarks(0))
        .key_by(|item| item.key)
        .process(Past);
    calls.clone().sink(called.sink());
    let (out, missed) = calls.key_by(|_| 0u64).window(Tumbling::of(span(50))).aggregate_with_late(Count);
    out.sink(results.sink());
    missed.sink(late.sink());
    run(job).expect("finishes");
    assert_eq!(values(late.take()), Vec::<i64>::new());
    let counted: u64 = by_window(results.take()).values().map(|count| count.parse::<u64>().expect("a number")).sum();
    assert_eq!((counted, values(called.take()).len()), (2_000, 2_000));
}

// ---- by hand ---------------------------------------------------------------------------------------------------------

/// Calls itself for ever, or fails at a value.
#[derive(Clone)]
struct Troubled;

impl Process<String, Item> for Troubled {
    type State = ();
    type Out = ();

    fn on_record(&mut self, cx: &mut Context<'_, (), ()>, item: &Item) -> Result<(), Error> {
        if item.value == 7 {
            return Err(Error::user("seven"));
        }
        *cx.state() = (item.value == 8).then_some(());
        cx.set_timer(item.time());
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_, (), ()>, at: EventTime) -> Result<(), Error> {
        let stands_still = cx.state().is_some();
        cx.set_timer(if stands_still { cx.now() } else { at + span(1) });
        Ok(())
    }
}

fn troubled(records: &[(i64, i64)]) -> String {
    let job = Job::new("troubled");
    job.source(Script::new(vec![one_split(records)]), watermarks(0))
        .key_by(|item| text(item.key))
        .process_in_order(Troubled)
        .sink(Collected::new().sink());
    run(job).expect_err("fails").to_string()
}

#[test]
fn timers_without_end_and_errors_name_the_key() {
    let error = troubled(&[(0, 0)]);
    assert!(error.contains("without end") && error.contains(r#""key 0""#), "{error}");
    let error = troubled(&[(0, 8), (10, 0), (20, 0)]);
    assert!(error.contains("without end") && error.contains("at 1970-01-01T00:00:00Z"), "{error}");
    let error = troubled(&[(1_000_000, 7)]);
    assert!(error.contains("seven") && error.contains(r#"key "key 0" at 1970-01-01T00:00:01Z"#), "{error}");
}

/// What is kept after 3 s of one record for each of 5,000 keys, one a millisecond.
fn entries_after_a_while<O: Data>(attach: impl Fn(KeyedStream<u64, Item>) -> Stream<O>) -> u64 {
    let items: Vec<Item> =
        (0..5_000).map(|n| Item { split: 0, number: n, at: n as i64 * 1_000, key: n, value: 0 }).collect();
    let dir = tempdir();
    let job = Job::new("kept").workers(2).checkpoint_dir(dir.path());
    let source = Script::new(vec![items]).pace(Pace::Slow(10));
    attach(job.source(source, watermarks(0)).key_by(|item| item.key)).sink(Collected::new().sink());
    let handle = job.start().expect("starts");
    while handle.status().watermark() < EventTime::from_millis(3_000) {
        std::thread::park_timeout(Duration::from_micros(100));
    }
    handle.stop(StopMode::WithCheckpoint);
    oracle::finish(handle).expect("stops");
    let store = millstream::state::store::CheckpointStore::new(dir.path());
    let newest = store.epochs().expect("lists").pop().expect("a checkpoint");
    store.manifest(newest).expect("reads").operators[0].entries
}

/// A function that lets go of everything leaves nothing behind, and keeps what it keeps.
#[test]
fn only_keys_with_something_to_keep_are_kept() {
    let entries = entries_after_a_while(|keyed| keyed.deduplicate(EventSpan::millis(200)));
    // 200 keys within 200 ms, and as many timers or a few more: a narrow bucket goes as a whole.
    assert!((350..600).contains(&entries), "{entries} entries");
}

/// A window of a number of records is gone when it is full.
#[test]
fn windows_that_are_full_are_not_kept() {
    let entries = entries_after_a_while(|keyed| keyed.count_window(1).aggregate(Count));
    // Records that event time has not passed.
    assert!(entries < 200, "{entries} entries");
}

/// Nor does one that never lets go, when the time of a key is over.
#[test]
fn keys_whose_time_is_over_are_not_kept() {
    let counter = || Counter { keep: 200_000 };
    let entries = entries_after_a_while(|keyed| keyed.process_in_order(counter()));
    assert!((350..600).contains(&entries), "{entries} entries");
    let entries = entries_after_a_while(|keyed| keyed.process(counter()));
    assert!((350..600).contains(&entries), "{entries} entries");
    let entries = entries_after_a_while(|keyed| keyed.top_within(EventSpan::millis(200), 3, |item| item.value).0);
    assert!((350..600).contains(&entries), "{entries} entries");
    let entries = entries_after_a_while(|keyed| {
        let versions = keyed.clone();
        keyed.temporal_join(versions).valid_for(EventSpan::millis(200)).left()
    });
    assert!((350..600).contains(&entries), "{entries} entries");
}

// ---- with what is broadcast ------------------------------------------------------------------------------------------

/// What the values of records say, knowing the values that were broadcast last.
#[derive(Clone)]
struct Ruled {
    keep: Option<i64>,
}

/// What [`Ruled`] emits: as [`Seen`], and what had been broadcast.
type Knew = (Seen, Vec<i64>);

/// Every fourth record is broadcast.
fn is_rule(item: &Item) -> bool {
    item.value.rem_euclid(4) == 1
}

/// Depends on their order.
fn add_rule(known: &mut Vec<i64>, value: i64) {
    if value.rem_euclid(3) == 0 {
        known.clear();
    }
    known.push(value);
    if known.len() > 5 {
        known.remove(0);
    }
}

impl BroadcastProcess<String, Item, Item> for Ruled {
    type Shared = Vec<i64>;
    type State = Vec<i64>;
    type Out = Knew;

    fn keep_for(&self) -> Option<EventSpan> {
        self.keep.map(span)
    }

    fn on_broadcast(&mut self, known: &mut Vec<i64>, item: &Item, at: EventTime) -> Result<(), Error> {
        assert_eq!(at, item.time());
        add_rule(known, item.value);
        Ok(())
    }

    fn on_record(&mut self, cx: &mut Context<'_, Vec<i64>, Knew>, known: &Vec<i64>, item: &Item) -> Result<(), Error> {
        let now = cx.now();
        cx.state().get_or_insert_default().push(item.value);
        let seen = (cx.key().clone(), false, now, item.time(), cx.state().clone().unwrap_or_default());
        cx.emit((seen, known.clone()));
        match item.value.rem_euclid(5) {
            0 | 3 => cx.set_timer(now + span(item.value.rem_euclid(60))),
            1 => cx.set_timer(now - span(3)),
            _ => {}
        }
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Vec<i64>, Knew>, known: &Vec<i64>, at: EventTime) -> Result<(), Error> {
        let (now, kept) = (cx.now(), cx.state().take().unwrap_or_default());
        cx.emit(((cx.key().clone(), true, now, at, kept), known.clone()));
        Ok(())
    }
}

/// What [`Ruled`] sees of one key, one step after the other.
fn ruled(key: &str, items: &[Item], rules: &[Item], keep: Option<i64>) -> Vec<Knew> {
    let (mut items, mut rules) = (items.to_vec(), rules.to_vec());
    items.sort_by_key(|item| (item.at, item.split, item.number));
    rules.sort_by_key(|item| (item.at, item.split, item.number));
    let mut items = std::collections::VecDeque::from(items);
    let mut rules = std::collections::VecDeque::from(rules);
    let (mut known, mut kept, mut until) = (Vec::new(), None::<Vec<i64>>, None::<i128>);
    let (mut timers, mut seen, mut now) = (BTreeSet::<i64>::new(), Vec::new(), i64::MIN);
    let time = EventTime::from_micros;
    loop {
        let timer = timers.first().copied().filter(|timer| items.front().is_none_or(|item| *timer <= item.at));
        let Some(at) = timer.or(items.front().map(|item| item.at)) else { break };
        while rules.front().is_some_and(|rule| rule.at < at || (rule.at == at && timer.is_none())) {
            add_rule(&mut known, rules.pop_front().expect("looked at").value);
        }
        now = now.max(at);
        if until.is_some_and(|until| until <= i128::from(now)) {
            kept = None;
        }
        if timer.is_some() {
            timers.remove(&at);
            let kept = kept.take().unwrap_or_default();
            seen.push(((key.to_string(), true, time(now), time(at), kept), known.clone()));
            until = None;
        } else {
            let item = items.pop_front().expect("looked at");
            kept.get_or_insert_default().push(item.value);
            let kept = kept.clone().unwrap_or_default();
            seen.push(((key.to_string(), false, time(now), time(at), kept), known.clone()));
            match item.value.rem_euclid(5) {
                0 | 3 => drop(timers.insert(now.saturating_add(item.value.rem_euclid(60)))),
                1 => drop(timers.insert(now.saturating_sub(3))),
                _ => {}
            }
            until = keep.map(|keep| i128::from(now) + i128::from(keep));
        }
    }
    seen
}

#[derive(Clone)]
struct Told {
    keep: Option<i64>,
    seen: Collected<Knew>,
    late: Collected<Either<Item, Item>>,
}

impl Told {
    fn attach(&self, job: &Job, case: &Case, pace: Pace, faults: &[Fault]) {
        let source = Script::new(case.splits.clone()).pace(pace).faults(faults);
        let items = job.source(source, watermarks(case.delay)).inspect(strikes(faults));
        let (rules, records) = items.partition(is_rule);
        let (seen, late) = records
            .key_by(|item| text(item.key))
            .with_broadcast(rules.broadcast())
            .process_in_order_with_late(Ruled { keep: self.keep });
        seen.sink(self.seen.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case) -> Result<(), TestCaseError> {
        let (keys, late) = by_key(case);
        let rules: Vec<Item> = keys.values().flatten().filter(|item| is_rule(item)).cloned().collect();
        let mut found = BTreeMap::<String, Vec<Knew>>::new();
        for record in self.seen.take() {
            prop_assert_eq!(record.at, record.value.0.2);
            found.entry(record.value.0.0.clone()).or_default().push(record.value);
        }
        let mut expected = BTreeMap::new();
        for (key, items) in &keys {
            let records: Vec<Item> = items.iter().filter(|item| !is_rule(item)).cloned().collect();
            if !records.is_empty() {
                expected.insert(text(*key), ruled(&text(*key), &records, &rules, self.keep));
            }
        }
        prop_assert_eq!(found, expected);
        let expected =
            late.into_iter().map(|item| if is_rule(&item) { Either::Second(item) } else { Either::First(item) });
        prop_assert_eq!(sorted(values(self.late.take())), sorted(expected.collect()));
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn what_is_broadcast_is_known_from_its_event_time_on(case in any_case(4, 120), keep in keeps(), setups in setups()) {
        let told = Told { keep, seen: Collected::new(), late: Collected::new() };
        run_in(&setups, |job, pace| told.attach(job, &case, pace, &[]), |_| told.compare(&case))?;
    }

    #[test]
    fn what_was_broadcast_is_known_after_crashes_on_all_workers(
        case in any_case(4, 120),
        keep in keeps(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let told = Told { keep, seen: Collected::new(), late: Collected::new() };
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            told.attach(job, &case, setup.pace, faults);
        })?;
        told.compare(&case)?;
    }
}
