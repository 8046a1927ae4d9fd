//! The test kit: every operator of the library under it, with expected results written by hand; and the kit itself, which must notice what
//! is wrong, say where, and never ask before all is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream::operator::{Cursor, Stage};
use millstream::rows::Rows;
use millstream::testing::*;
use millstream::{prelude::*, window};

fn secs(seconds: i64) -> EventSpan {
    EventSpan::secs(seconds)
}

/// The last instant before a second, at which results of a window that ends there happen.
fn before(seconds: i64) -> EventTime {
    EventTime::from_micros(seconds * 1_000_000 - 1)
}

type Sale = (String, i64);

fn sale(who: &str, cents: i64) -> Sale {
    (who.to_string(), cents)
}

fn who(sale: &Sale) -> String {
    sale.0.clone()
}

fn cents(sale: &Sale) -> i64 {
    sale.1
}

fn pane<T>(key: &str, start: i64, end: i64, value: T) -> (String, window::Window, T) {
    (key.to_string(), window(start, end), value)
}

// ---- operators without state -----------------------------------------------------------------------------------------

#[test]
fn map_and_try_map() {
    let (kit, input, (doubled, parsed)) = Kit::of(|input: Stream<&'static str>| {
        let doubled = input.clone().map(|text| format!("{text}{text}"));
        (doubled, input.try_map(|text| text.parse::<i64>()))
    });
    kit.in_all_modes([
        input.at(1, "1"),
        doubled.expect_at([(1, "11".to_string())]),
        parsed.expect_at([(1, 1)]),
        input.all([(3, "2"), (2, "3")]),
        checkpoint(),
        doubled.expect_at([(2, "33".to_string()), (3, "22".to_string())]),
        crash(),
        parsed.expect([3, 2]),
    ]);
}

#[test]
fn filter_filter_map_flat_map_and_inspect() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let (kit, input, (even, halves, parts)) = Kit::of(|input: Stream<u64>| {
        let input = input.inspect(|_| {
            SEEN.fetch_add(1, Ordering::Relaxed);
        });
        let even = input.clone().filter(|number| number % 2 == 0);
        let halves = input.clone().filter_map(|number| (number % 2 == 0).then_some(number / 2));
        (even, halves, input.flat_map(|number| 0..number))
    });
    kit.in_all_modes([
        input.at(1, 4),
        even.expect([4]),
        halves.expect([2]),
        parts.expect([0, 1, 2, 3]),
        input.at(2, 3),
        rescale(2),
        input.at(3, 0),
        input.end(),
        even.expect_at([(3, 0)]),
        halves.expect_at([(3, 0)]),
        parts.expect_at([(2, 0), (2, 1), (2, 2)]),
    ]);
    let least = 3 * Mode::ALL.len() as u64;
    assert!(SEEN.load(Ordering::Relaxed) > least, "each record in each mode, and after crashes again");
}

#[test]
fn split_and_partition() {
    let (kit, input, (numbers, words, small)) = Kit::of(|input: Stream<&'static str>| {
        let (numbers, words) = input.split(|text| match text.parse::<u8>() {
            Ok(number) => Side::Main(number),
            Err(_) => Side::Side(text),
        });
        let (small, large) = numbers.partition(|number| *number < 10);
        (large, words, small)
    });
    kit.in_all_modes([
        input.at(1, "7"),
        input.at(2, "seven"),
        input.at(3, "70"),
        numbers.expect_at([(3, 70)]),
        words.expect_at([(2, "seven")]),
        small.expect_at([(1, 7)]),
        restart(),
        input.at(0, "eight"),
        words.expect_at([(0, "eight")]),
        small.expect([]),
    ]);
}

#[test]
fn union_of_inputs_waits_for_the_slower() {
    let (kit, (one, two), counts) = Kit::of(|(one, two): (Stream<Sale>, Stream<Sale>)| {
        one.union([two]).key_by(who).window(Tumbling::of(secs(10))).aggregate(Count)
    });
    kit.in_all_modes([
        one.at(1, sale("ann", 1)),
        two.at(2, sale("ann", 1)),
        one.watermark(20),
        expect_watermark(EventTime::MIN),
        counts.expect([]),
        two.watermark(9),
        expect_watermark(9),
        two.at(9, sale("ann", 1)),
        counts.expect([]),
        two.watermark(10),
        counts.expect_at([(before(10), pane("ann", 0, 10, 3))]),
        two.at(15, sale("bob", 1)),
        two.end(),
        expect_watermark(20),
        counts.expect([pane("bob", 10, 20, 1)]),
        one.end(),
        expect_watermark(EventTime::MAX),
    ]);
}

// ---- operators with state --------------------------------------------------------------------------------------------

#[test]
fn fold_and_reduce() {
    let (kit, input, (sums, highest)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let sums = keyed.clone().fold(0, |sum: &mut i64, sale| *sum += sale.1).name("sums");
        let best = keyed.reduce(|best: &mut Sale, sale| best.1 = best.1.max(sale.1));
        (sums, best.map(|(_, best)| best))
    });
    kit.in_all_modes([
        input.at(5, sale("ann", 5)),
        sums.expect_at([(5, sale("ann", 5))]),
        highest.expect_at([(5, sale("ann", 5))]),
        expect_state("sums", "ann".to_string(), 5i64),
        expect_no_state::<String, i64>("sums", "bob".to_string()),
        input.at(6, sale("bob", 1)),
        input.watermark(100),
        // Late records count like others.
        input.at(4, sale("ann", 2)),
        sums.expect_at([(6, sale("bob", 1)), (4, sale("ann", 7))]),
        highest.expect_at([(6, sale("bob", 1)), (4, sale("ann", 5))]),
        crash(),
        rescale(4),
        input.all([(7, sale("ann", 9)), (8, sale("bob", -9))]),
        expect_state("sums/value", "ann".to_string(), 16i64),
        expect_state("sums", "bob".to_string(), -8i64),
        sums.expect_at([(7, sale("ann", 16)), (8, sale("bob", -8))]),
        highest.expect([sale("ann", 9), sale("bob", 1)]),
    ]);
}

#[test]
fn tumbling_windows() {
    let (kit, input, (sums, late)) = Kit::of(|input: Stream<Sale>| {
        input.key_by(who).window(Tumbling::of(secs(10))).aggregate_with_late((Count, Sum::of(cents)))
    });
    kit.in_all_modes([
        input.at(3, sale("ann", 5)),
        input.at(12, sale("ann", 7)),
        input.at(4, sale("ann", 1)),
        sums.expect([]),
        input.watermark(13),
        expect_watermark(13),
        sums.expect_at([(before(10), pane("ann", 0, 10, (2, 6)))]),
        input.at(9, sale("bob", 9)),
        late.expect_at([(9, sale("bob", 9))]),
        // Behind the watermark, but its window is not over.
        input.at(10, sale("bob", 9)),
        late.expect([]),
        rescale(3),
        input.watermark(12),
        expect_watermark(13),
        sums.expect([]),
        input.end(),
        sums.expect([pane("ann", 10, 20, (1, 7)), pane("bob", 10, 20, (1, 9))]),
    ]);
}

#[test]
fn sliding_windows() {
    let (kit, input, (sums, late)) = Kit::of(|input: Stream<Sale>| {
        input
            .key_by(who)
            .window(Sliding::of(secs(10), secs(5)))
            .aggregate_with_late((Sum::of(cents), Max::of(cents)))
    });
    kit.in_all_modes([
        input.at(3, sale("ann", 5)),
        input.at(7, sale("ann", 2)),
        input.watermark(5),
        sums.expect_at([(before(5), pane("ann", -5, 5, (5, 5)))]),
        input.watermark(12),
        sums.expect_at([(before(10), pane("ann", 0, 10, (7, 5)))]),
        // Too late for the window that ends at 10, not for the one that ends at 15.
        input.at(6, sale("ann", 9)),
        late.expect([]),
        input.at(4, sale("ann", 100)),
        late.expect_at([(4, sale("ann", 100))]),
        checkpoint(),
        input.watermark(16),
        crash(),
        sums.expect_at([(before(15), pane("ann", 5, 15, (11, 9)))]),
        input.watermark(100),
        sums.expect([]),
    ]);
}

#[test]
fn several_windows() {
    let (kit, input, (sums, late)) = Kit::of(|input: Stream<Sale>| {
        let windows =
            Several::of([5, 10].map(|seconds| Tumbling::of(secs(seconds)))).and([Sliding::of(secs(20), secs(10))]);
        input.key_by(who).window(windows).aggregate_with_late((Sum::of(cents), Max::of(cents)))
    });
    kit.in_all_modes([
        input.at(3, sale("ann", 5)),
        input.at(7, sale("ann", 2)),
        input.watermark(5),
        sums.expect_at([(before(5), pane("ann", 0, 5, (5, 5)))]),
        // Too late for the window of 5 s.
        input.at(4, sale("ann", 9)),
        checkpoint(),
        input.watermark(12),
        sums.expect_at([
            (before(10), pane("ann", 5, 10, (2, 2))),
            (before(10), pane("ann", 0, 10, (16, 9))),
            (before(10), pane("ann", -10, 10, (16, 9))),
        ]),
        // Too late for all that end at 10, not for the one that ends at 20.
        input.at(6, sale("ann", 11)),
        late.expect([]),
        crash(),
        rescale(2),
        input.at(11, sale("bob", 1)),
        input.watermark(20),
        sums.expect_at([
            (before(15), pane("bob", 10, 15, (1, 1))),
            (before(20), pane("bob", 10, 20, (1, 1))),
            (before(20), pane("bob", 0, 20, (1, 1))),
            (before(20), pane("ann", 0, 20, (27, 11))),
        ]),
        input.at(9, sale("ann", 100)),
        late.expect_at([(9, sale("ann", 100))]),
        input.end(),
        sums.expect([pane("bob", 10, 30, (1, 1))]),
    ]);
}

#[test]
fn session_windows() {
    let (kit, input, (counts, late)) =
        Kit::of(|input: Stream<Sale>| input.key_by(who).window(Session::with_gap(secs(10))).aggregate_with_late(Count));
    kit.in_all_modes([
        input.at(1, sale("ann", 0)),
        input.at(15, sale("ann", 0)),
        input.at(12, sale("bob", 0)),
        input.watermark(5),
        counts.expect([]),
        // Joins the two of before.
        input.at(8, sale("ann", 0)),
        input.watermark(20),
        counts.expect([]),
        input.watermark(22),
        counts.expect_at([(before(22), pane("bob", 12, 22, 1))]),
        restart(),
        input.at(21, sale("ann", 0)),
        late.expect([sale("ann", 0)]),
        input.watermark(30),
        counts.expect_at([(before(25), pane("ann", 1, 25, 3))]),
        input.at(31, sale("ann", 0)),
        input.end(),
        counts.expect([pane("ann", 31, 41, 1)]),
    ]);
}

/// What windows keep is their own business, but not how much of it.
#[test]
fn windows_that_are_over_are_not_kept() {
    let (kit, input, (sums, visits)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let sums = keyed.clone().window(Sliding::of(secs(10), secs(5))).aggregate(Sum::of(cents));
        let visits = keyed.window(Session::with_gap(secs(10))).aggregate(Count);
        (sums.name("sums"), visits.name("visits"))
    });
    kit.in_all_modes([
        expect_entries("sums", 0),
        input.all([(1, sale("ann", 1)), (2, sale("ann", 2)), (3, sale("bob", 3)), (7, sale("ann", 4))]),
        // One for each key and 5 seconds; one for each key.
        expect_entries("sums", 3),
        expect_entries("sums/behind", 0),
        expect_entries("visits", 2),
        input.watermark(13),
        sums.expect([pane("ann", -5, 5, 3), pane("bob", -5, 5, 3), pane("ann", 0, 10, 7), pane("bob", 0, 10, 3)]),
        visits.expect([pane("bob", 3, 13, 1)]),
        expect_entries("sums", 1),
        expect_entries("visits", 1),
        rescale(3),
        input.watermark(17),
        sums.expect([pane("ann", 5, 15, 4)]),
        visits.expect([pane("ann", 1, 17, 3)]),
        expect_entries("sums", 0),
        expect_entries("visits", 0),
    ]);
}

#[test]
fn a_window_behind_a_window() {
    let (kit, input, most) = Kit::of(|input: Stream<Sale>| {
        let sums = input.key_by(who).window(Tumbling::of(secs(5))).aggregate(Sum::of(cents));
        let windows = sums.key_by(|_| ()).window(Tumbling::of(secs(10)));
        windows
            .aggregate(Max::of(|(_, _, sum): &(String, window::Window, i64)| *sum))
            .map(|(_, _, most)| most)
    });
    kit.in_all_modes([
        input.at(1, sale("ann", 5)),
        input.at(2, sale("bob", 7)),
        input.at(3, sale("ann", 4)),
        input.watermark(8),
        most.expect([]),
        input.watermark(10),
        most.expect_at([(before(10), 9)]),
    ]);
}

/// Emits the sum of what came since the last record but 10 seconds, when it is over.
#[derive(Clone)]
struct Bursts;

impl Process<String, Sale> for Bursts {
    type State = i64;
    type Out = (String, i64);

    fn on_record(&mut self, cx: &mut ProcessContext<'_, String, i64, (String, i64)>, sale: &Sale) -> Result<(), Error> {
        *cx.state().get_or_insert(0) += sale.1;
        let over = cx.now() + secs(10);
        match cx.next_timer() {
            Some(before) => assert!(cx.replace_timer(before, over)),
            None => assert!(!cx.replace_timer(over, over)),
        }
        assert_eq!(cx.next_timer(), Some(over));
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, String, i64, (String, i64)>, _: EventTime) -> Result<(), Error> {
        if let Some(sum) = cx.state().take() {
            let out = (cx.key().clone(), sum);
            cx.emit(out);
        }
        Ok(())
    }
}

#[test]
fn process_in_order() {
    let (kit, input, (bursts, late)) =
        Kit::of(|input: Stream<Sale>| input.key_by(who).process_in_order_with_late(Bursts));
    kit.in_all_modes([
        input.at(8, sale("ann", 1)),
        input.at(1, sale("ann", 2)),
        input.at(30, sale("ann", 4)),
        bursts.expect([]),
        input.watermark(10),
        bursts.expect([]),
        input.at(9, sale("ann", 8)),
        late.expect_at([(9, sale("ann", 8))]),
        checkpoint(),
        input.watermark(18),
        bursts.expect_at([(18, sale("ann", 3))]),
        crash(),
        input.end(),
        bursts.expect_at([(40, sale("ann", 4))]),
    ]);
}

/// An order, until it is paid by a sale of the same number of cents below nothing; or else somebody is told after a month.
#[derive(Clone)]
struct Unpaid;

impl Process<String, Sale> for Unpaid {
    type State = i64;
    type Out = Sale;

    fn on_record(&mut self, cx: &mut ProcessContext<'_, String, i64, Sale>, sale: &Sale) -> Result<(), Error> {
        if sale.1 > 0 {
            *cx.state() = Some(sale.1);
            cx.set_timer(cx.now() + EventSpan::days(30));
        } else if let Some(timer) = cx.next_timer() {
            *cx.state() = None;
            assert!(cx.delete_timer(timer));
        }
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, String, i64, Sale>, _: EventTime) -> Result<(), Error> {
        if let Some(cents) = cx.state().take() {
            let out = (cx.key().clone(), cents);
            cx.emit(out);
        }
        Ok(())
    }
}

/// Once the key stayed where timers are kept until the time of one that had been taken back.
#[test]
fn nothing_is_kept_of_a_key_whose_timer_was_taken_back() {
    let (kit, input, unpaid) = Kit::of(|input: Stream<Sale>| input.key_by(who).process_in_order(Unpaid).name("unpaid"));
    // Where there is little memory, timers that are away are not read for it; and checkpoints do not know of timers that others came before.
    let restarted = [Mode::Restarted, Mode::Rescaled, Mode::Crashed, Mode::LittleMemory];
    kit.except(restarted).in_all_modes([
        input.all([(1, sale("ann", 5)), (2, sale("bob", 7))]),
        input.watermark(3),
        checkpoint(),
        expect_entries("unpaid/timers", 2),
        input.at(4, sale("ann", -5)),
        input.watermark(5),
        expect_entries("unpaid", 1),
        expect_entries("unpaid/timers", 1),
        unpaid.expect([]),
        input.end(),
        unpaid.expect_at([(2 + 30 * 86_400, sale("bob", 7))]),
    ]);
}

#[test]
fn patterns() {
    let (kit, input, (found, silent, late)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let tried_out = Pattern::first("small", |sale: &Sale| (0..10).contains(&sale.1))
            .times(2..)
            .next("large", |sale| sale.1 > 100)
            .within(secs(60))
            .with_timed_out();
        let unpaid = Pattern::first("order", |sale: &Sale| sale.1 > 100)
            .not_followed_by("payment", |sale| sale.1 < 0)
            .within(secs(30));
        let (found, late) = keyed.clone().matches_with_late(tried_out);
        let shown = |found: Match<Sale>| {
            let large = found.complete.then(|| found.one("large").1);
            (found.records().next().map(who).unwrap_or_default(), found.of("small").len(), large)
        };
        (found.map(shown), keyed.matches(unpaid).map(|found| found.one("order").clone()), late)
    });
    let result = |who: &str, small: usize, large: Option<i64>| (who.to_string(), small, large);
    kit.in_all_modes([
        input.at(3, sale("ann", 5)),
        input.at(8, sale("ann", 500)),
        input.at(6, sale("ann", 7)),
        input.at(8, sale("bob", 300)),
        found.expect([]),
        input.watermark(8),
        // Another record of this instant may still come.
        found.expect([]),
        input.at(5, sale("ann", 1)),
        late.expect_at([(5, sale("ann", 1))]),
        checkpoint(),
        input.watermark(9),
        found.expect_at([(8, result("ann", 2, Some(500)))]),
        input.at(20, sale("bob", 9)),
        input.at(37, sale("ann", -500)),
        crash(),
        input.watermark(38),
        silent.expect_at([(38, sale("bob", 300))]),
        rescale(2),
        input.at(39, sale("bob", 8)),
        input.watermark(79),
        found.expect([]),
        input.at(80, sale("bob", 200)),
        input.watermark(90),
        // What began at 20 was over before the record of this instant.
        found.expect_at([(80, result("bob", 2, None))]),
        restart(),
        input.end(),
        found.expect_at([(99, result("bob", 1, None))]),
        silent.expect_at([(110, sale("bob", 200))]),
    ]);
}

#[test]
fn process_as_records_come() {
    let (kit, input, bursts) = Kit::of(|input: Stream<Sale>| input.key_by(who).process(Bursts).name("bursts"));
    // How many timers are called before a record comes depends on how much is read at once.
    kit.except([Mode::Batch, Mode::Workers]).in_all_modes([
        input.at(1, sale("ann", 2)),
        input.at(2, sale("bob", 1)),
        input.watermark(11),
        bursts.expect_at([(11, sale("ann", 2))]),
        input.at(12, sale("ann", 4)),
        rescale(3),
        input.at(11, sale("bob", 4)),
        bursts.expect([]),
        expect_state("bursts", "bob".to_string(), 5i64),
        expect_no_state::<_, i64>("bursts", "cy".to_string()),
        input.watermark(21),
        expect_no_state::<_, i64>("bursts", "bob".to_string()),
        input.end(),
        bursts.expect_at([(22, sale("ann", 4)), (21, sale("bob", 5))]),
    ]);
}

/// Sales above the limit of the time, which is broadcast, with how many there were of a key.
#[derive(Clone)]
struct Above;

impl BroadcastProcess<String, Sale, i64> for Above {
    type Shared = Option<i64>;
    type State = usize;
    type Out = (Sale, usize);

    fn on_broadcast(&mut self, limit: &mut Option<i64>, new: &i64, at: EventTime) -> Result<(), Error> {
        if *new < 0 {
            return Err(Error::user(format!("no limit at {at}")));
        }
        *limit = Some(*new);
        Ok(())
    }

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, String, usize, (Sale, usize)>,
        limit: &Option<i64>,
        sale: &Sale,
    ) -> Result<(), Error> {
        if limit.is_some_and(|limit| sale.1 > limit) {
            let count = cx.state().get_or_insert(0);
            *count += 1;
            let count = *count;
            cx.emit((sale.clone(), count));
        }
        Ok(())
    }
}

#[test]
fn what_is_broadcast() {
    let (kit, (sales, limits), (above, late)) = Kit::of(|(sales, limits): (Stream<Sale>, Stream<i64>)| {
        let both = sales.key_by(who).with_broadcast(limits.broadcast());
        let (above, late) = both.process_in_order_with_late(Above);
        (above.name("above"), late)
    });
    kit.in_all_modes([
        // Whatever comes first.
        sales.all([(1, sale("ann", 50)), (10, sale("ann", 50)), (12, sale("bob", 70))]),
        limits.all([(20, 60), (10, 40)]),
        sales.watermark(30),
        above.expect([]),
        limits.watermark(11),
        above.expect_at([(10, (sale("ann", 50), 1))]),
        checkpoint(),
        limits.watermark(15),
        above.expect([(sale("bob", 70), 1)]),
        rescale(3),
        expect_state("above", "ann".to_string(), 1usize),
        limits.at(14, 10),
        late.expect_at([(14, Either::Second(10))]),
        sales.at(29, sale("ann", 1)),
        late.expect_at([(29, Either::First(sale("ann", 1)))]),
        sales.all([(30, sale("ann", 50)), (31, sale("bob", 61)), (32, sale("cy", 70))]),
        crash(),
        limits.end(),
        sales.end(),
        above.expect([(sale("bob", 61), 2), (sale("cy", 70), 1)]),
    ]);
}

/// Of one instant, what comes from a later split comes later, whatever was there first: so an instant is not over when the watermark is at it.
#[test]
fn what_is_broadcast_in_one_instant() {
    let (kit, (sales, limits), above) = Kit::of(|(sales, limits): (Stream<Sale>, Stream<i64>)| {
        sales.key_by(who).with_broadcast(limits.broadcast()).process_in_order(Above)
    });
    let limits = limits.with_splits(2);
    let (first, second) = (limits.split(0), limits.split(1));
    kit.in_all_modes([
        sales.at(10, sale("ann", 50)),
        sales.end(),
        second.at(10, 40),
        limits.watermark(10),
        first.at(10, 60),
        above.expect([]),
        limits.end(),
        above.expect([(sale("ann", 50), 1)]),
    ]);
}

#[test]
fn what_is_broadcast_as_it_comes() {
    let (kit, (sales, limits), above) = Kit::of(|(sales, limits): (Stream<Sale>, Stream<i64>)| {
        sales.key_by(who).with_broadcast(limits.broadcast()).process(Above).name("above")
    });
    // What a record knows depends on how much is read at once.
    kit.except([Mode::Batch, Mode::Workers]).in_all_modes([
        sales.at(1, sale("ann", 50)),
        limits.at(10, 40),
        sales.all([(1, sale("ann", 50)), (2, sale("bob", 41))]),
        above.expect_at([(1, (sale("ann", 50), 1)), (2, (sale("bob", 41), 1))]),
        rescale(3),
        sales.at(2, sale("cy", 50)),
        above.expect([(sale("cy", 50), 1)]),
        limits.at(3, 60),
        sales.all([(3, sale("cy", 60)), (4, sale("ann", 61))]),
        crash(),
        above.expect([(sale("ann", 61), 2)]),
    ]);
}

/// The place is that of the record, where that is still known.
#[test]
fn an_error_over_what_is_broadcast_says_so() {
    for in_order in [true, false] {
        let (kit, (sales, limits), _) = Kit::of(|(sales, limits): (Stream<Sale>, Stream<i64>)| {
            let both = sales.key_by(who).with_broadcast(limits.broadcast());
            if in_order { both.process_in_order(Above) } else { both.process(Above) }
        });
        let failure =
            failure(&kit, [sales.at(1, sale("ann", 1)), limits.all([(2, 7), (3, -1)]), limits.end(), sales.end()]);
        let place =
            if in_order { "a record broadcast at 1970-01-01T00:00:03Z" } else { "a record at 1970-01-01T00:00:03Z" };
        assert!(failure.to_string().contains("no limit at"), "{failure}");
        assert!(failure.to_string().contains(place), "{failure}");
    }
}

/// A sum of a whole window may be too large where that of the slice is not. The record was taken for the last one of those that were
/// added with it.
#[test]
fn a_record_with_which_a_window_is_too_large_is_named() {
    let (kit, input, _) = Kit::of(|input: Stream<Sale>| {
        let large = |sale: &Sale| if sale.1 == 0 { i64::MAX - 10 } else { sale.1 };
        input.key_by(who).window(Sliding::of(secs(3), secs(1))).aggregate(Sum::of(large))
    });
    let several = (0..16).map(|number| (1, sale(if number == 3 { "ann" } else { "bob" }, 100)));
    let failure = failure(&kit, [input.at(0, sale("ann", 0)), input.watermark(1), input.all(several)]);
    let found = failure.to_string();
    assert!(
        found.contains("leaves the range of i64")
            && found.contains(r#"a record with key "ann" at 1970-01-01T00:00:01Z"#),
        "{found}"
    );
}

#[test]
fn deduplicate() {
    let (kit, input, (once, late)) = Kit::of(|input: Stream<Sale>| input.key_by(who).deduplicate_with_late(secs(10)));
    kit.in_all_modes([
        input.at(3, sale("ann", 2)),
        input.at(1, sale("ann", 1)),
        input.at(11, sale("ann", 4)),
        input.watermark(5),
        once.expect_at([(1, sale("ann", 1))]),
        expect_state("process-1", "ann".to_string(), EventTime::from_secs(11)),
        input.at(4, sale("bob", 1)),
        late.expect([sale("bob", 1)]),
        crash(),
        input.watermark(12),
        once.expect_at([(11, sale("ann", 4))]),
        input.at(13, sale("bob", 7)),
        input.end(),
        once.expect([sale("bob", 7)]),
    ]);
}

fn pair(who: &str, ordered: i64, paid: i64) -> (String, i64, i64) {
    (who.to_string(), ordered, paid)
}

#[test]
fn interval_join() {
    let (kit, (orders, payments), (paid, late)) = Kit::of(|(orders, payments): (Stream<Sale>, Stream<Sale>)| {
        let pairs = orders.key_by(who).interval_join_with_late(payments.key_by(who), secs(1), secs(10));
        (pairs.0.map(|(order, payment)| (order.0, order.1, payment.1)), pairs.1)
    });
    kit.in_all_modes([
        orders.at(1, sale("ann", 1)),
        orders.at(5, sale("bob", 2)),
        payments.at(11, sale("ann", 10)),
        payments.at(4, sale("bob", 20)),
        payments.at(3, sale("bob", 30)),
        payments.at(12, sale("ann", 40)),
        orders.watermark(12),
        paid.expect([]),
        rescale(2),
        payments.watermark(12),
        // Joined are what is 1 s before to 10 s after; at the time of the later one.
        paid.expect_at([(11, pair("ann", 1, 10)), (5, pair("bob", 2, 20))]),
        orders.at(11, sale("cy", 3)),
        late.expect([Either::First(sale("cy", 3))]),
        payments.at(11, sale("cy", 3)),
        late.expect([Either::Second(sale("cy", 3))]),
        crash(),
        orders.end(),
        payments.at(14, sale("bob", 50)),
        payments.end(),
        paid.expect_at([(14, pair("bob", 2, 50))]),
    ]);
}

/// The price that counts when a sale happens, and nothing before there is one.
#[derive(Clone)]
struct Priced;

impl Process<String, Either<Sale, Sale>> for Priced {
    type State = i64;
    type Out = (String, i64);

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, String, i64, (String, i64)>,
        record: &Either<Sale, Sale>,
    ) -> Result<(), Error> {
        match (record, *cx.state()) {
            (Either::First((_, number)), Some(price)) => {
                let out = (cx.key().clone(), number * price);
                cx.emit(out);
            }
            (Either::First(_), None) => {}
            (Either::Second((_, price)), _) => *cx.state() = Some(*price),
        }
        Ok(())
    }
}

#[test]
fn connect() {
    let (kit, (sales, prices), priced) = Kit::of(|(sales, prices): (Stream<Sale>, Stream<Sale>)| {
        sales.key_by(who).connect(prices.key_by(who)).process_in_order(Priced)
    });
    kit.in_all_modes([
        sales.at(1, sale("tea", 1)),
        sales.at(4, sale("tea", 2)),
        prices.at(2, sale("tea", 100)),
        prices.at(5, sale("tea", 150)),
        sales.at(6, sale("tea", 3)),
        prices.watermark(10),
        priced.expect([]),
        sales.watermark(5),
        priced.expect_at([(4, sale("tea", 200))]),
        crash(),
        sales.watermark(7),
        priced.expect_at([(6, sale("tea", 450))]),
    ]);
}

type Updates = Update<String, i64>;

fn update(who: &str, start: i64, timing: Timing, change: Change, result: i64) -> Updates {
    Update { key: who.to_string(), window: window(start, start + 10), timing, change, result }
}

/// How many early and late results there are depends on what is read together, so batches are left out.
#[test]
fn windows_with_several_results() {
    use Change::{Insert, Retract};
    use Timing::{Early, Late, OnTime};
    let (kit, input, (updates, too_late)) = Kit::of(|input: Stream<Sale>| {
        let windows = input.key_by(who).window(Tumbling::of(secs(10)));
        let windows = windows.early(millstream::window::Early::count(2)).allowed_lateness(secs(5)).retracting();
        windows.aggregate_with_late(Sum::of(cents))
    });
    kit.except([Mode::Batch, Mode::Workers]).in_all_modes([
        input.at(1, sale("ann", 1)),
        updates.expect([]),
        input.at(2, sale("ann", 2)),
        updates.expect_at([(before(10), update("ann", 0, Early, Insert, 3))]),
        input.at(3, sale("ann", 4)),
        input.watermark(10),
        updates.expect([update("ann", 0, OnTime, Retract, 3), update("ann", 0, OnTime, Insert, 7)]),
        input.at(4, sale("ann", 8)),
        updates.expect([update("ann", 0, Late, Retract, 7), update("ann", 0, Late, Insert, 15)]),
        input.watermark(15),
        input.at(5, sale("ann", 16)),
        too_late.expect([sale("ann", 16)]),
        input.end(),
        updates.expect([]),
    ]);
}

#[test]
fn windows_of_the_calendar_and_of_all_time() {
    let (kit, input, (days, all)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let days = keyed.clone().window(Calendar::days().starting_at(4, 0)).aggregate(Sum::of(cents));
        (days, keyed.window(Global).aggregate(Count))
    });
    let hour = 3_600;
    kit.in_all_modes([
        input.at(3 * hour, sale("ann", 1)),
        input.at(4 * hour, sale("ann", 2)),
        input.at(27 * hour, sale("ann", 4)),
        input.watermark(28 * hour),
        days.expect([pane("ann", -20 * hour, 4 * hour, 1), pane("ann", 4 * hour, 28 * hour, 6)]),
        all.expect([]),
        input.end(),
        all.expect([("ann".to_string(), window::Window { start: EventTime::MIN, end: EventTime::MAX }, 3)]),
    ]);
}

#[test]
fn windows_of_a_number_of_records() {
    let (kit, input, counted) = Kit::of(|input: Stream<Sale>| {
        input
            .key_by(who)
            .sliding_count_window(2, 1)
            .aggregate(List::of(cents))
            .map(|(who, _, cents)| (who, cents))
    });
    let two = |who: &str, cents: [i64; 2]| (who.to_string(), cents.to_vec());
    kit.in_all_modes([
        input.all([(3, sale("ann", 3)), (1, sale("ann", 1)), (2, sale("bob", 9))]),
        input.watermark(4),
        counted.expect_at([(3, two("ann", [1, 3]))]),
        input.at(5, sale("ann", 5)),
        input.watermark(6),
        counted.expect_at([(5, two("ann", [3, 5]))]),
    ]);
}

#[test]
fn the_first_few_as_they_change() {
    let (kit, input, (changes, late, highest)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let windows = keyed.clone().window(Tumbling::of(secs(100))).aggregate(Top::of(2, cents));
        let (changes, late) = keyed.top_with_late(1, cents);
        (changes, late, windows.map(|(_, _, sales)| sales))
    });
    let change = |change, cents| ("ann".to_string(), change, sale("ann", cents));
    kit.in_all_modes([
        input.all([(2, sale("ann", 5)), (1, sale("ann", 3)), (3, sale("ann", 4))]),
        input.watermark(4),
        changes.expect_at([
            (1, change(Change::Insert, 3)),
            (2, change(Change::Retract, 3)),
            (2, change(Change::Insert, 5)),
        ]),
        input.at(3, sale("ann", 1)),
        late.expect([sale("ann", 1)]),
        input.end(),
        highest.expect([vec![sale("ann", 5), sale("ann", 4)]]),
    ]);
}

#[test]
fn joins_within_windows() {
    let (kit, (orders, payments), (paid, unpaid)) = Kit::of(|(orders, payments): (Stream<Sale>, Stream<Sale>)| {
        let windows = orders.key_by(who).connect(payments.key_by(who)).window(Tumbling::of(secs(10)));
        let both = windows.cogroup();
        let cents = |(_, _, (order, payment)): (String, _, (Sale, Sale))| (order.1, payment.1);
        let unpaid = both.clone().left_join().filter(|(_, _, (_, payment))| payment.is_none());
        (both.inner_join().map(cents), unpaid.map(|(_, _, (order, _))| order))
    });
    kit.in_all_modes([
        orders.at(1, sale("ann", 1)),
        payments.at(9, sale("ann", 2)),
        payments.at(2, sale("ann", 3)),
        orders.at(5, sale("bob", 4)),
        payments.at(11, sale("bob", 5)),
        orders.watermark(10),
        payments.watermark(10),
        paid.expect_at([(before(10), (1, 2)), (before(10), (1, 3))]),
        unpaid.expect([sale("bob", 4)]),
    ]);
}

#[test]
fn temporal_joins() {
    let (kit, (sales, prices), priced) = Kit::of(|(sales, prices): (Stream<Sale>, Stream<Sale>)| {
        let joined = sales.key_by(who).temporal_join(prices.key_by(who)).valid_for(secs(10)).left();
        joined.map(|(sale, price)| (sale.1, price.map(|price| price.1)))
    });
    kit.in_all_modes([
        prices.at(5, sale("tea", 100)),
        sales.all([(4, sale("tea", 1)), (5, sale("tea", 2)), (14, sale("tea", 3)), (15, sale("tea", 4))]),
        prices.watermark(20),
        sales.watermark(20),
        priced.expect_at([(4, (1, None)), (5, (2, Some(100))), (14, (3, Some(100))), (15, (4, None))]),
    ]);
}

#[test]
fn right_full_and_temporal_inner_joins() {
    type Halves = (Option<i64>, Option<i64>);
    let (kit, (orders, payments), (right, full, known)) =
        Kit::of(|(orders, payments): (Stream<Sale>, Stream<Sale>)| {
            let (orders, payments) = (orders.key_by(who), payments.key_by(who));
            let both = orders.clone().connect(payments.clone()).window(Session::with_gap(secs(5))).cogroup();
            let right = both.clone().right_join().map(|(_, _, (a, b))| -> Halves { (a.map(|a| a.1), Some(b.1)) });
            let full = both.full_join().map(|(_, _, (a, b))| -> Halves { (a.map(|a| a.1), b.map(|b| b.1)) });
            (right, full, orders.temporal_join(payments).inner().map(|(order, payment)| (order.1, payment.1)))
        });
    kit.in_all_modes([
        orders.at(1, sale("ann", 1)),
        payments.at(5, sale("ann", 2)),
        payments.at(10, sale("ann", 3)),
        orders.at(20, sale("ann", 4)),
        rescale(2),
        orders.watermark(20),
        payments.watermark(20),
        right.expect([(Some(1), Some(2)), (None, Some(3))]),
        full.expect([(Some(1), Some(2)), (None, Some(3))]),
        known.expect([]),
        orders.end(),
        payments.end(),
        full.expect([(Some(4), None)]),
        right.expect([]),
        known.expect_at([(20, (4, 3))]),
    ]);
}

/// As many seconds as the record has cents, from the record on.
#[derive(Clone)]
struct AsLongAsCents;

impl Windows<Sale> for AsLongAsCents {
    fn describe(&self) -> String {
        "as long as cents".to_string()
    }

    fn assign(&self, at: EventTime, sale: &Sale, windows: &mut Assigned) -> Result<(), Error> {
        windows.add(window::Window { start: at, end: at + secs(sale.1) });
        Ok(())
    }
}

#[test]
fn windows_of_records_of_their_own() {
    let (kit, input, (visits, own, months)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let visits = keyed.clone().window(Session::with_gap_of(|sale: &Sale| secs(sale.1))).aggregate(Count);
        let own = keyed.clone().window(AsLongAsCents).aggregate(Sum::of(cents));
        let months = Calendar::months().in_zone("Europe/Berlin").expect("there is one");
        (visits, own, keyed.window(months).aggregate(Newest::count(2, List::of(cents))))
    });
    let january = |last| pane("ann", -3_600, 31 * 86_400 - 3_600, last);
    kit.in_all_modes([
        input.all([(3, sale("ann", 4)), (1, sale("ann", 3)), (3, sale("bob", 2))]),
        checkpoint(),
        input.watermark(5),
        // The one at 3 is before the end of the stretch from 1 to 4.
        visits.expect([pane("bob", 3, 5, 1)]),
        own.expect([pane("ann", 1, 4, 3), pane("bob", 3, 5, 2)]),
        input.at(6, sale("ann", 10)),
        crash(),
        rescale(3),
        input.watermark(16),
        visits.expect_at([(before(16), pane("ann", 1, 16, 3))]),
        own.expect([pane("ann", 3, 7, 4), pane("ann", 6, 16, 10)]),
        months.expect([]),
        input.end(),
        months.expect([january(vec![4, 10]), pane("bob", -3_600, 31 * 86_400 - 3_600, vec![2])]),
    ]);
}

/// The number of cents of a key, of which sales of none forget all; kept for ten seconds. Sales of less than nothing come last.
#[derive(Clone)]
struct Purse;

impl Process<String, Sale> for Purse {
    type State = i64;
    type Out = Sale;

    fn rank(&self, sale: &Sale) -> u8 {
        u8::from(sale.1 < 0)
    }

    fn keep_for(&self) -> Option<EventSpan> {
        Some(secs(10))
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, String, i64, Sale>, sale: &Sale) -> Result<(), Error> {
        let cents = cx.state().unwrap_or(0) + sale.1;
        *cx.state() = (sale.1 != 0).then_some(cents);
        let out = (cx.key().clone(), cents);
        cx.emit(out);
        Ok(())
    }
}

#[test]
fn what_is_kept_for_a_time_and_ranked() {
    let (kit, input, (purses, highest, late)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let (highest, late) = keyed.clone().top_within(secs(10), 1, cents);
        (keyed.process_in_order(Purse).name("purse"), highest, late)
    });
    let change = |change, cents| ("ann".to_string(), change, sale("ann", cents));
    kit.in_all_modes([
        input.all([(2, sale("ann", -1)), (2, sale("ann", 5)), (1, sale("ann", 1))]),
        input.watermark(3),
        purses.expect_at([(1, sale("ann", 1)), (2, sale("ann", 6)), (2, sale("ann", 5))]),
        highest.expect_at([
            (1, change(Change::Insert, 1)),
            (2, change(Change::Retract, 1)),
            (2, change(Change::Insert, 5)),
        ]),
        expect_state("purse", "ann".to_string(), 5i64),
        input.at(2, sale("ann", 7)),
        late.expect([sale("ann", 7)]),
        rescale(2),
        input.watermark(12),
        expect_no_state::<String, i64>("purse", "ann".to_string()),
        input.at(12, sale("ann", 2)),
        crash(),
        input.watermark(13),
        // Forgotten without a word.
        purses.expect([sale("ann", 2)]),
        highest.expect([change(Change::Insert, 2)]),
    ]);
}

#[test]
fn a_number_of_records_and_what_windows_say_early() {
    use Timing::{Early, OnTime};
    let (kit, input, (pairs, updates)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let early = keyed.clone().window(Tumbling::of(secs(10))).early(millstream::window::Early::every(secs(4)));
        let pairs = keyed.count_window(2).aggregate(Sum::of(cents)).map(|(who, _, cents)| (who, cents));
        (pairs, early.discarding().aggregate(Sum::of(cents)))
    });
    // How many early results there are depends on what is read together.
    kit.except([Mode::Batch, Mode::Workers]).in_all_modes([
        input.at(1, sale("ann", 1)),
        input.watermark(3),
        updates.expect([]),
        input.at(3, sale("ann", 2)),
        pairs.expect([]),
        input.watermark(4),
        pairs.expect_at([(3, sale("ann", 3))]),
        updates.expect([update("ann", 0, Early, Change::Insert, 3)]),
        crash(),
        input.watermark(9),
        input.at(9, sale("ann", 4)),
        input.watermark(10),
        updates.expect([update("ann", 0, OnTime, Change::Insert, 4)]),
        input.end(),
        // Of one record there is no pair.
        pairs.expect([]),
    ]);
}

/// Emits what came of a key within ten seconds by the clock.
#[derive(Clone)]
struct Flush;

impl Process<String, Sale> for Flush {
    type State = i64;
    type Out = Sale;

    const USES_CLOCK: bool = true;

    fn on_record(&mut self, cx: &mut ProcessContext<'_, String, i64, Sale>, sale: &Sale) -> Result<(), Error> {
        if cx.state().is_none() {
            let at = cx.processing_time() + Duration::from_secs(10);
            cx.set_processing_timer(at);
        }
        *cx.state().get_or_insert(0) += sale.1;
        Ok(())
    }

    fn on_processing_timer(
        &mut self,
        cx: &mut ProcessContext<'_, String, i64, Sale>,
        _: ProcessingTime,
    ) -> Result<(), Error> {
        if let Some(cents) = cx.state().take() {
            let out = (cx.key().clone(), cents);
            cx.emit(out);
        }
        Ok(())
    }
}

#[test]
fn timers_by_the_clock() {
    let (kit, input, (flushed, early)) = Kit::of(|input: Stream<Sale>| {
        let keyed = input.key_by(who);
        let windows = keyed.clone().window(Tumbling::of(secs(100))).early(Early::after(Duration::from_secs(5)));
        let early = windows.aggregate(Sum::of(cents)).map(|update| (update.key, update.timing, update.result));
        (keyed.process(Flush), early)
    });
    let result = |timing, cents| ("ann".to_string(), timing, cents);
    kit.in_all_modes([
        input.at(1, sale("ann", 1)),
        clock(Duration::from_secs(9)),
        flushed.expect([]),
        early.expect([result(Timing::Early, 1)]),
        input.at(2, sale("ann", 2)),
        clock(Duration::from_secs(1)),
        flushed.expect([sale("ann", 3)]),
        early.expect([]),
        input.at(3, sale("ann", 4)),
        input.end(),
        // What is left is called when the input has ended.
        flushed.expect([sale("ann", 4)]),
        early.expect([result(Timing::OnTime, 7)]),
    ]);
}

/// The clock does not go back in a crash, so what is told by it would not be told again; random scripts found that the kit took this for a mistake.
#[test]
fn what_came_by_the_clock_before_a_crash_is_kept() -> Result<(), Error> {
    let (kit, input, output) = Kit::of(|input: Stream<Sale>| input.key_by(who).process(Flush));
    kit.in_all_modes([
        input.at(1, sale("ann", 1)),
        clock(Duration::from_secs(10)),
        crash(),
        output.expect([sale("ann", 1)]),
        input.at(2, sale("ann", 2)),
        clock(Duration::from_secs(9)),
        crash(),
        output.expect([]),
        clock(Duration::from_secs(1)),
        output.expect([sale("ann", 2)]),
    ]);
    // Step by step one is asked to take the checkpoint oneself.
    let mut trial = kit.start()?;
    trial.step(input.at(1, sale("ann", 1)))?;
    trial.step(clock(Duration::from_secs(10)))?;
    assert_eq!(trial.values(&output), [sale("ann", 1)]);
    let error = trial.crash().expect_err("it is ten seconds too early").to_string();
    assert!(error.contains("it has not come again") && error.contains("take a checkpoint before the crash"), "{error}");
    trial.step(clock(Duration::from_secs(10)))?;
    trial.checkpoint()?;
    trial.crash()?;
    assert!(trial.values(&output).is_empty());
    Ok(())
}

/// Whoever panics with what it is called for, in the order of event time, by a timer or by the clock.
#[derive(Clone)]
struct Panics(&'static str);

impl Process<String, Sale> for Panics {
    type State = ();
    type Out = Sale;

    const USES_CLOCK: bool = true;

    fn on_record(&mut self, cx: &mut ProcessContext<'_, String, (), Sale>, sale: &Sale) -> Result<(), Error> {
        let later = cx.processing_time() + Duration::from_secs(10);
        match self.0 {
            "a timer" => cx.set_timer(cx.now() + secs(1)),
            "the clock" => cx.set_processing_timer(later),
            _ => panic!("over {sale:?}"),
        }
        Ok(())
    }

    fn on_timer(&mut self, _: &mut ProcessContext<'_, String, (), Sale>, _: EventTime) -> Result<(), Error> {
        panic!("over a timer")
    }

    fn on_processing_timer(
        &mut self,
        _: &mut ProcessContext<'_, String, (), Sale>,
        _: ProcessingTime,
    ) -> Result<(), Error> {
        panic!("over the clock")
    }
}

#[test]
fn whoever_panics_in_order_is_named_by_key() {
    for what in ["a record", "a timer", "the clock"] {
        let (kit, input, _) = Kit::of(move |input: Stream<Sale>| input.key_by(who).process_in_order(Panics(what)));
        let mut trial = kit.start().expect("started");
        let steps = [input.at(1, sale("ann", 1)), input.watermark(5), clock(Duration::from_secs(10))];
        let error = steps.into_iter().find_map(|step| trial.step(step).err()).expect("it panics").to_string();
        assert!(error.contains("panicked: over"), "{error}");
        assert!(error.contains("it was called for the key \"ann\" at 1970-01-01T00:00:0"), "{error}");
        let mut trial = kit.start().expect("started");
        trial.step(input.at(1, sale("ann", 1))).expect("it waits");
        let error = trial.step(input.end()).expect_err("it panics").to_string();
        assert!(error.contains("the firing at the end of the input: panicked: over"), "{error}");
        assert!(error.contains("it was called for the key \"ann\" at "), "{error}");
    }
}

#[test]
fn splits_that_are_idle() {
    let input = Input::new("input").with_splits(2).idle_after(Duration::from_secs(60));
    let (counts, late) = (Output::new("counts"), Output::new("late"));
    let kit = Kit::new(|bench| {
        let (panes, missed) = bench.input(&input).key_by(who).window(Tumbling::of(secs(10))).aggregate_with_late(Count);
        bench.output(&counts, panes);
        bench.output(&late, missed);
    });
    // After a restart a split is not idle until it has been quiet for as long again.
    let restarted = [Mode::Restarted, Mode::Rescaled, Mode::Crashed, Mode::LittleMemory];
    kit.except(restarted).in_all_modes([
        input.split(0).at(1, sale("ann", 1)),
        input.split(1).at(2, sale("ann", 1)),
        input.split(0).watermark(15),
        expect_watermark(EventTime::MIN),
        clock(Duration::from_secs(59)),
        counts.expect([]),
        // It goes on, and the other one does not.
        input.split(0).watermark(20),
        clock(Duration::from_secs(1)),
        expect_watermark(20),
        counts.expect([pane("ann", 0, 10, 2)]),
        input.split(1).at(3, sale("ann", 1)),
        late.expect([sale("ann", 1)]),
    ]);
}

/// One that is ahead of the others and idle when the job stops was once judged by theirs, when it came back.
#[test]
fn a_split_that_was_idle_at_a_stop_is_judged_by_its_own_watermark() {
    let (kit, input, (counts, late)) =
        Kit::of(|input: Stream<Sale>| input.key_by(who).window(Tumbling::of(secs(10))).aggregate_with_late(Count));
    let input = input.with_splits(2).idle_after(Duration::from_secs(60));
    let restarted = [Mode::Restarted, Mode::Rescaled, Mode::Crashed, Mode::LittleMemory];
    kit.except(restarted).in_all_modes([
        input.split(0).watermark(5),
        input.split(1).watermark(100),
        clock(Duration::from_secs(60)),
        expect_watermark(100),
        input.split(0).at(101, sale("ann", 1)),
        input.split(0).watermark(105),
        expect_watermark(105),
        input.split(1).watermark(115),
        clock(Duration::from_secs(30)),
        input.split(0).watermark(106),
        clock(Duration::from_secs(30)),
        expect_watermark(106),
        restart(),
        input.split(1).at(108, sale("ann", 1)),
        input.split(1).at(118, sale("ann", 1)),
        late.expect([sale("ann", 1)]),
        input.end(),
        counts.expect([pane("ann", 100, 110, 1), pane("ann", 110, 120, 1)]),
    ]);
}

/// What a table tells after a start, of records that are read before event time has come again to where it was, was once told for the beginning
/// of time, and late for every window.
#[test]
fn changes_of_tables_are_late_for_nobody() {
    let (kit, input, late) = Kit::of(|input: Stream<Sale>| {
        let counts = input.into_table(|sale| sale).count().changes();
        counts.key_by(|(who, ..)| who.clone()).window(Tumbling::of(secs(10))).aggregate_with_late(Count).1
    });
    kit.in_all_modes([
        input.all([(99, sale("ann", 1)), (99, sale("bob", 1))]),
        input.watermark(100),
        checkpoint(),
        input.all([(101, sale("ann", 2)), (102, sale("cat", 2))]),
        crash(),
        input.watermark(200),
        late.expect([]),
    ]);
}

#[test]
fn tables_of_upserts_have_late_ones() {
    let (kit, input, (changes, late)) = Kit::of(|input: Stream<Sale>| {
        let (table, late) = input.key_by(who).upserts_into_table_with_late(|sale| Some(sale.1));
        (table.name("newest").changes(), late)
    });
    let change = |cents, by| ("ann".to_string(), cents, by);
    kit.in_all_modes([
        input.all([(2, sale("ann", 2)), (1, sale("ann", 1))]),
        input.watermark(3),
        changes.expect([change(1, 1), change(1, -1), change(2, 1)]),
        input.at(2, sale("ann", 9)),
        late.expect([sale("ann", 9)]),
        crash(),
        input.watermark(10),
        changes.expect([]),
    ]);
}

/// What a table tells at which step depends on what is read together; what it comes to does not.
#[test]
fn tables() -> Result<(), Error> {
    let (kit, (orders, homes), sums) = Kit::of(|(orders, homes): (Stream<Sale>, Stream<Sale>)| {
        let homes = homes.key_by(who).upserts_into_table(|home| (home.1 > 0).then_some(home.1));
        orders
            .into_table(|order| order)
            .join(homes)
            .map(|_, (cents, home)| (home, cents))
            .sum(|cents| *cents)
            .changes()
    });
    for workers in [1, 3] {
        let mut trial = kit.start()?;
        trial.rescale(workers)?;
        let mut table = std::collections::BTreeMap::new();
        let mut told = |trial: &mut Trial<'_>| -> Result<Vec<(i64, i64)>, Error> {
            trial.checkpoint()?;
            for (home, cents, by) in trial.values(&sums) {
                *table.entry((home, cents)).or_insert(0) += by;
            }
            table.retain(|_, count| *count != 0);
            Ok(table.keys().copied().collect())
        };
        trial.step(homes.at(1, sale("ann", 7)))?;
        trial.step(orders.at(1, sale("ann", 5)))?;
        trial.step(homes.watermark(2))?;
        trial.step(orders.watermark(2))?;
        assert_eq!(told(&mut trial)?, [(7, 5)]);
        trial.step(orders.at(1, sale("ann", 6)))?; // nothing is late for a table
        trial.step(homes.at(3, sale("ann", 8)))?;
        trial.crash()?;
        trial.step(homes.watermark(4))?;
        trial.step(orders.watermark(4))?;
        trial.rescale(2)?;
        assert_eq!(told(&mut trial)?, [(8, 11)]);
    }
    Ok(())
}

// ---- the kit itself --------------------------------------------------------------------------------------------------

/// What it says of a script that fails.
fn failure(kit: &Kit<'_>, script: impl IntoIterator<Item = Step>) -> Failure {
    kit.try_in_all_modes(script).expect_err("something is wrong")
}

#[test]
fn state_outside_of_checkpoints_is_found() {
    let (kit, input, output) = Kit::of(|input: Stream<char>| {
        let mut count = 0;
        input.map(move |letter| {
            count += 1;
            (letter, count)
        })
    });
    let failure = failure(&kit, [input.at(1, 'a'), input.at(2, 'b'), output.expect([('a', 1), ('b', 2)])]);
    assert_eq!((failure.mode, failure.step), (Mode::Restarted, 2));
    let text = failure.to_string();
    let (first, rest) = text.split_once('\n').expect("several lines");
    assert!(first.starts_with("restarted after every step, step 2 of 3, at tests/kit.rs:"), "{text}");
    assert!(first.ends_with(": input.at(1970-01-01T00:00:02Z, 'b')"), "{text}");
    assert_eq!(
        rest,
        "  `output` has not got what it got step by step\n  missing:  ('b', 2) at 1970-01-01T00:00:02Z\n  too much: ('b', 1) at \
         1970-01-01T00:00:02Z"
    );
}

/// Says with every value how many came with it.
#[derive(Clone)]
struct InBatches;

impl Stage for InBatches {
    type In = u8;
    type Out = (u8, usize);

    fn apply(&mut self, rows: Rows<u8>, _: &mut Cursor) -> Result<Rows<(u8, usize)>, Error> {
        let (count, mut out) = (rows.records.len(), Rows::default());
        rows.records.into_iter().for_each(|record| out.push(record.at, (record.value, count), None));
        Ok(out)
    }
}

#[test]
fn dependence_on_batches_is_found() {
    let (kit, input, output) = Kit::of(|input: Stream<u8>| input.stage("in batches", InBatches));
    let expected = || output.expect([(1, 1), (2, 1)]);
    let script = || [input.at(1, 1), input.at(2, 2), expected(), checkpoint()];
    let failure = failure(&kit, script());
    assert_eq!((failure.mode, failure.step), (Mode::Batch, 3), "{failure}");
    assert!(failure.to_string().starts_with("in one batch, steps 1 to 3 of 4, up to tests/kit.rs:"), "{failure}");
    assert!(failure.found.contains(&"too much: (2, 2) at 1970-01-01T00:00:02Z".to_string()), "{failure}");
    kit.clone().except([Mode::Batch, Mode::Workers]).in_all_modes(script().into_iter().take(3));
}

#[test]
fn state_that_does_not_belong_to_a_key_is_found() {
    let (kit, input, output) = Kit::of(|input: Stream<Sale>| {
        let mut all = 0;
        input.key_by(who).fold(0, move |sum: &mut i64, sale| {
            all += sale.1;
            *sum = all;
        })
    });
    // Nobody says what is expected: modes are compared with each other.
    let script = "abcdefgh".chars().zip(1..).map(|(who, number)| input.at(number, sale(&who.to_string(), 1)));
    let failure = failure(&kit, script.chain([input.watermark(9)]));
    assert_eq!(failure.mode, Mode::Workers, "{failure}");
    assert!(failure.found[0].contains("`output` has not got what it got step by step"), "{failure}");
    drop(output);
}

/// What is wrong shows only when the input ends, which the kit does by itself.
#[test]
fn state_that_nobody_has_looked_at_is_found_at_the_end() {
    #[derive(Clone)]
    struct Forgetful(i64);

    impl Process<String, Sale> for Forgetful {
        type State = ();
        type Out = i64;

        fn on_record(&mut self, cx: &mut ProcessContext<'_, String, (), i64>, sale: &Sale) -> Result<(), Error> {
            self.0 += sale.1;
            cx.set_timer(EventTime::from_secs(1_000));
            Ok(())
        }

        fn on_timer(&mut self, cx: &mut ProcessContext<'_, String, (), i64>, _: EventTime) -> Result<(), Error> {
            let sum = self.0;
            cx.emit(sum);
            Ok(())
        }
    }

    let (kit, input, output) = Kit::of(|input: Stream<Sale>| input.key_by(who).process(Forgetful(0)));
    let failure = failure(&kit, [input.at(1, sale("ann", 5)), input.at(2, sale("ann", 6)), output.expect([])]);
    assert_eq!((failure.mode, failure.step), (Mode::Restarted, 4));
    let text = failure.to_string();
    assert!(
        text.starts_with("restarted after every step, at the end of the input, which follows every script\n"),
        "{text}"
    );
    assert!(text.ends_with("missing:  11 at 1970-01-01T00:16:40Z\n  too much: 0 at 1970-01-01T00:16:40Z"), "{text}");
}

#[test]
fn what_is_not_as_expected_is_said_with_its_place() {
    let (kit, input, output) = Kit::of(|input: Stream<u8>| input.map(|number| number * 2));
    let doubled = || [input.at(1, 1), input.all([(2, 2), (2, 2)])];
    let wrong = |expected: Step| failure(&kit, doubled().into_iter().chain([expected]));

    let failure = wrong(output.expect([2, 4, 5]));
    assert_eq!((failure.mode, failure.step), (Mode::Steps, 3));
    assert_eq!(failure.found, ["missing:  5", "too much: 4 at 1970-01-01T00:00:02Z"]);
    let failure = wrong(output.expect_at([(1, 2), (2, 4), (3, 4)]));
    assert_eq!(failure.found, ["missing:  4 at 1970-01-01T00:00:03Z", "too much: 4 at 1970-01-01T00:00:02Z"]);
    let failure = wrong(output.expect([4, 4]));
    assert_eq!(failure.found, ["too much: 2 at 1970-01-01T00:00:01Z"]);
    let failure = wrong(expect_watermark(1));
    assert!(failure.found[0].starts_with("it is -9223372036854775808us"), "{failure}");
    kit.in_all_modes(doubled().into_iter().chain([output.expect([4, 2, 4])]));

    // What comes after the last expectation of an output is too much.
    let failure = wrong_after(&kit, [input.at(1, 1), output.expect([2]), input.at(2, 7)]);
    assert_eq!((failure.mode, failure.step), (Mode::Steps, 2));
    assert_eq!(failure.found, ["more came out of `output` after that", "too much: 14 at 1970-01-01T00:00:02Z"]);
    assert!(failure.at.contains("output.expect([2])"), "{failure}");
}

fn wrong_after(kit: &Kit<'_>, script: [Step; 3]) -> Failure {
    failure(kit, script)
}

#[test]
fn what_is_not_kept_as_expected_is_said() {
    let (kit, input, _) =
        Kit::of(|input: Stream<Sale>| input.key_by(who).fold(0, |sum: &mut i64, sale| *sum += sale.1).name("sums"));
    let found = |expected: Step| failure(&kit, [input.at(1, sale("ann", 5)), expected]).found;
    let ann = || "ann".to_string();
    assert_eq!(found(expect_state("sums", ann(), 6i64)), ["it is 5"]);
    assert_eq!(found(expect_state("sums", "bob".to_string(), 6i64)), ["nothing is kept for that key"]);
    assert_eq!(found(expect_no_state::<_, i64>("sums", ann())), ["it is 5"]);
    assert!(found(expect_state("sums", ann(), 5u64))[0].contains("was asked for as"));
    assert!(found(expect_state("sum", ann(), 5i64))[0].contains("has no operator `sum`"));
    assert_eq!(found(expect_entries("sums", 2)), ["it has 1"]);
    assert!(found(expect_entries("sums/timers", 2))[0].contains("has no state `timers`"));
}

#[test]
fn records_in_values_out() {
    check(
        |input: Stream<Sale>| {
            let windows = input.key_by(who).window(Tumbling::of(secs(10)));
            windows.aggregate(Count).map(|(who, window, count)| format!("{who} {count} until {}", window.end))
        },
        // The third is late: after the second the watermark is at 12.
        [(1, sale("ann", 1)), (12, sale("ann", 1)), (9, sale("ann", 1)), (10, sale("ann", 1))],
        ["ann 1 until 1970-01-01T00:00:10Z".to_string(), "ann 2 until 1970-01-01T00:00:20Z".to_string()],
    );
}

#[test]
#[should_panic(expected = "step by step, step 4 of 4")]
fn values_that_are_missing_fail_a_test() {
    check(|input: Stream<u8>| input, [("1970-01-01T00:00:01Z", 1)], [1, 2]);
}

/// Splits have watermarks of their own: who is late is judged by the record's, and operators wait for the least.
#[test]
fn several_splits() {
    let (kit, input, (counts, late)) =
        Kit::of(|input: Stream<Sale>| input.key_by(who).window(Tumbling::of(secs(10))).aggregate_with_late(Count));
    let input = input.with_splits(3);
    let (first, second, third) = (input.split(0), input.split(1), input.split(2));
    kit.in_all_modes([
        first.at(3, sale("ann", 1)),
        first.watermark(10),
        expect_watermark(EventTime::MIN),
        first.at(4, sale("ann", 1)),
        late.expect([sale("ann", 1)]),
        second.at(4, sale("ann", 1)),
        second.watermark(30),
        third.end(),
        expect_watermark(10),
        counts.expect([pane("ann", 0, 10, 2)]),
        rescale(2),
        first.at(12, sale("ann", 1)),
        input.watermark(20),
        expect_watermark(20),
        counts.expect([pane("ann", 10, 20, 1)]),
        first.end(),
        expect_watermark(30),
        input.end(),
        expect_watermark(EventTime::MAX),
    ]);
}

#[test]
fn times_at_the_ends_of_time() {
    let (kit, input, output) = Kit::of(|input: Stream<u8>| input);
    kit.in_all_modes([
        input.at(EventTime::MIN, 1),
        expect_watermark(EventTime::MIN),
        input.at(EventTime::MIN, 2),
        input.watermark(EventTime::MIN),
        input.at(EventTime::MAX, 3),
        expect_watermark(EventTime::MIN),
        input.watermark(EventTime::MAX),
        // Only the end is the end.
        expect_watermark(EventTime::from_micros(i64::MAX - 1)),
        output.expect_at([(EventTime::MIN, 1), (EventTime::MIN, 2), (EventTime::MAX, 3)]),
    ]);
}

// ---- one step at a time ----------------------------------------------------------------------------------------------

#[test]
fn a_trial_answers_after_every_step() -> Result<(), Error> {
    let (kit, input, output) =
        Kit::of(|input: Stream<Sale>| input.key_by(who).fold(0, |sum: &mut i64, sale| *sum += sale.1).name("sums"));
    let mut trial = kit.start()?;
    trial.step(input.at(1, sale("ann", 5)))?;
    assert_eq!(trial.take(&output), [Record { at: EventTime::from_secs(1), value: sale("ann", 5) }]);
    trial.checkpoint()?;
    trial.step(input.at(3, sale("bob", 1)))?;
    trial.step(input.at(2, sale("ann", 2)))?;
    trial.step(input.watermark(2))?;
    assert_eq!(trial.watermark(), EventTime::from_secs(2));
    assert_eq!(trial.values(&output), [sale("ann", 7), sale("bob", 1)], "by event time");

    trial.crash()?;
    assert_eq!(trial.status().records_in, 4, "two records and a watermark, which is two, were read again");
    assert_eq!(trial.watermark(), EventTime::from_secs(2));
    assert_eq!(trial.values(&output), []);
    trial.rescale(3)?;
    assert_eq!(trial.status().records_in, 0, "nothing is read again after a stop");
    assert_eq!(trial.watermark(), EventTime::from_secs(2), "what a source was restored with is shown at once");
    assert_eq!(trial.state::<String, i64>("sums", &"ann".to_string())?, Some(7));
    assert_eq!(trial.state::<String, i64>("sums", &"cy".to_string())?, None);
    let view = trial.look()?;
    let sums = view.state::<String, i64>("sums")?;
    let mut all = sums
        .iter()
        .map(|entry| entry.map(|entry| (entry.key, entry.value)))
        .collect::<Result<Vec<_>, _>>()?;
    all.sort();
    assert_eq!(all, [sale("ann", 7), sale("bob", 1)]);

    let error = trial.step(output.expect([sale("cy", 1)])).expect_err("it is not there").to_string();
    assert_eq!(error, "output.expect([(\"cy\", 1)]):\n  missing:  (\"cy\", 1)");
    trial.step(input.end())?;
    assert_eq!(trial.watermark(), EventTime::MAX);
    let error = trial.step(input.at(4, sale("ann", 1))).expect_err("it has ended").to_string();
    assert!(error.contains("split 0 has ended"), "{error}");
    assert_eq!(trial.state::<String, i64>("sums", &"bob".to_string())?, Some(1), "in the last checkpoint");
    // Nothing is left to be done to a job that has finished.
    trial.crash()?;
    trial.restart()?;
    trial.step(output.expect([]))
}

/// The state of a process function is what its author knows; when it is to be called is not part of that.
#[test]
fn the_state_of_a_process_function_can_be_looked_at() -> Result<(), Error> {
    let (kit, input, _) = Kit::of(|input: Stream<Sale>| input.key_by(who).process_in_order(Bursts).name("bursts"));
    let mut trial = kit.start()?;
    trial.step(input.all([(1, sale("ann", 5)), (2, sale("bob", 6)), (15, sale("cy", 7))]))?;
    trial.step(input.watermark(10))?;
    let earlier = trial.look()?;
    trial.step(input.watermark(11))?;
    trial.step(input.at(11, sale("bob", 1)))?;
    trial.step(input.watermark(14))?;
    let view = trial.look()?;
    let (before, now) = (earlier.state::<String, i64>("bursts")?, view.state::<String, i64>("bursts/keys")?);
    // What waits for its turn is kept, but is not the function's yet.
    assert_eq!((before.count()?, now.count()?), (2, 1));
    assert_eq!(now.iter().map(|entry| entry.map(|entry| entry.value)).collect::<Result<Vec<_>, _>>()?, [7]);
    let mut changes: Vec<_> = before
        .diff(&now)
        .map(|change| change.map(|it| (it.key, it.old, it.new)))
        .collect::<Result<_, _>>()?;
    changes.sort();
    let bob = ("bob".to_string(), Some(6), Some(7));
    assert_eq!(changes, [("ann".to_string(), Some(5), None), bob]);
    let error = view.state::<String, u64>("bursts").expect_err("another type").to_string();
    assert!(error.contains("was asked for as"), "{error}");
    Ok(())
}

/// A job may have sources and sinks besides those of the test, and settings of its own.
#[test]
fn a_job_with_a_source_and_a_sink_of_its_own() {
    let (orders, joined, committed) = (Input::new("orders"), Output::new("joined"), Collected::new());
    let build = |bench: &Bench<'_>| {
        let names = from_vec(vec![(1u64, "tea"), (2, "coffee")]);
        let names = bench.job().source(names, Watermarks::none(|_| EventTime::EPOCH));
        let named = names.map(|(number, name)| (number, name.to_string())).key_by(|(number, _)| *number);
        let pairs = bench.input(&orders).key_by(|order: &u64| *order).interval_join(named, secs(100), EventSpan::ZERO);
        let names = pairs.map(|(_, (_, name))| name);
        names.clone().sink(committed.sink());
        bench.output(&joined, names);
    };
    let kit = Kit::new(build).settings(|job| job.batch_size(1).checkpoint_every(Duration::from_millis(1)));
    let joins =
        || [orders.at(5, 2), orders.at(6, 3), orders.watermark(7), joined.expect_at([(5, "coffee".to_string())])];
    kit.in_all_modes(joins());
    committed.take();

    let mut trial = kit.start().expect("starts");
    for step in joins().into_iter().chain([checkpoint(), crash(), orders.at(8, 1), orders.end()]) {
        trial.step(step).expect("goes well");
    }
    assert_eq!(trial.values(&joined), ["tea"]);
    assert_eq!(committed.values(), ["coffee", "tea"]);
}

#[test]
#[should_panic(expected = "`orders` is connected twice")]
fn an_input_is_read_once() {
    let orders = Input::<u64>::new("orders");
    let kit = Kit::new(|bench| {
        let twice = [bench.input(&orders), bench.input(&orders)];
        bench.output(&Output::new("all"), bench.input(&orders).union(twice));
    });
    let _ = kit.start();
}

#[test]
fn what_does_not_come_again_after_a_crash_is_missed() -> Result<(), Error> {
    let count = Arc::new(AtomicU64::new(0));
    let (kit, input, output) = Kit::of(move |input: Stream<char>| {
        let count = count.clone();
        input.map(move |letter| (letter, count.fetch_add(1, Ordering::Relaxed)))
    });
    let mut trial = kit.start()?;
    trial.step(input.at(1, 'a'))?;
    trial.step(output.expect([('a', 0)]))?;
    let error = trial.crash().expect_err("it came out otherwise").to_string();
    assert!(
        error.contains("`output` had it before the crash, and it has not come again:\n  ('a', 0) at 1970"),
        "{error}"
    );
    Ok(())
}

/// A job that fails says why, is down, and starts again from its last checkpoint.
#[test]
fn an_error_of_user_code_is_that_of_the_step() -> Result<(), Error> {
    let broken = Arc::new(AtomicU64::new(1));
    let of_job = broken.clone();
    let (kit, input, output) = Kit::of(move |input: Stream<u64>| {
        let broken = of_job.clone();
        let checked = input.try_map(move |number| match broken.load(Ordering::Relaxed) {
            1 if number == 7 => Err("seven"),
            _ => Ok(number),
        });
        checked.key_by(|_| ()).fold(0, |sum: &mut u64, number| *sum += number).map(|(_, sum)| sum)
    });
    let mut trial = kit.start()?;
    trial.step(input.at(1, 1))?;
    trial.checkpoint()?;
    let error = trial.step(input.at(2, 7)).expect_err("fails").to_string();
    assert!(error.contains("operator `map-1`") && error.contains("seven"), "{error}");
    let error = trial.step(input.at(3, 2)).expect_err("is down").to_string();
    assert!(error.contains("the job is not running"), "{error}");
    broken.store(0, Ordering::Relaxed);
    trial.crash()?;
    trial.step(input.at(4, 3))?;
    trial.step(output.expect([1, 8, 10, 13]))?;

    broken.store(1, Ordering::Relaxed);
    let failure = failure(&kit, [input.at(1, 1), input.at(2, 7)]);
    assert_eq!((failure.mode, failure.step), (Mode::Steps, 2));
    assert!(failure.to_string().contains("seven"), "{failure}");
    Ok(())
}

#[test]
fn user_code_that_hangs_is_given_up() {
    let (kit, input, _) = Kit::of(|input: Stream<u64>| {
        input.map(|ms| crossbeam_channel::never::<()>().recv_timeout(Duration::from_millis(ms)).is_ok())
    });
    let mut trial = kit.patience(Duration::from_millis(50)).start().expect("starts");
    let error = trial.step(input.at(1, 1_000)).expect_err("takes too long").to_string();
    assert!(error.contains("is not processed after 50ms"), "{error}");
}

#[test]
fn steps_that_make_no_sense_are_refused() -> Result<(), Error> {
    let (kit, input, _) = Kit::of(|input: Stream<u8>| input);
    let mut trial = kit.start()?;
    let mut refused = |step: Step| trial.step(step).expect_err("refused").to_string();
    assert!(refused(input.split(1).at(1, 1)).contains("there is no split 1, but 1"));
    assert!(refused(Input::<u8>::new("other").at(1, 1)).contains("an input that the job does not have"));
    assert!(refused(Output::<u8>::new("other").expect([])).contains("an output that the job does not have"));
    assert!(refused(rescale(0)).contains("0 workers"));
    let failure = failure(&kit.settings(|job| job.batch_size(0)), []);
    assert_eq!((failure.mode, failure.step), (Mode::Steps, 0));
    assert!(failure.to_string().starts_with("step by step, when the job was to start\n  a batch size"), "{failure}");
    Ok(())
}

// ---- nobody asks too early -------------------------------------------------------------------------------------------

/// Two exchanges, a window and timers between an input and its outputs, on any number of workers: all of it is done when a step is.
#[test]
fn a_step_is_done_when_it_is_done() -> Result<(), Error> {
    let (kit, input, (sums, most)) = Kit::of(|input: Stream<(u64, u64)>| {
        let by_one = input.flat_map(|(key, count)| (0..count).map(move |part| (key, part)));
        let by_part = by_one.key_by(|it| *it).fold(0, |count: &mut u64, _| *count += 1);
        let sums = by_part.key_by(|((key, _), _)| *key).fold(0, |sum: &mut u64, _| *sum += 1);
        let windows = sums.clone().key_by(|(key, _)| *key).window(Tumbling::of(secs(1)));
        let of_all = windows.aggregate(Max::of(|(_, sum): &(u64, u64)| *sum)).key_by(|_| ());
        let most = of_all.window(Tumbling::of(secs(1))).aggregate(Max::of(|(_, _, sum): &(u64, _, u64)| *sum));
        (sums, most.map(|(_, _, most)| most))
    });
    for workers in [1, 2, 4] {
        let mut trial = kit.start()?;
        trial.rescale(workers)?;
        for second in 0..300 {
            let key = second as u64 % 7;
            trial.step(input.at(second, (key, 5)))?;
            let before = second as u64 / 7 * 5;
            let mut got = trial.values(&sums);
            got.sort_unstable();
            assert_eq!(got, (1..=5).map(|sum| (key, before + sum)).collect::<Vec<_>>(), "{workers} workers, {second}");
            trial.step(input.watermark(second + 1))?;
            assert_eq!(trial.values(&most), [before + 5], "{workers} workers, {second}");
        }
    }
    Ok(())
}
