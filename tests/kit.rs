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
        if let Some(before) = cx.next_timer() {
            cx.delete_timer(before);
        }
        cx.set_timer(cx.now() + secs(10));
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
        input.end(),
        bursts.expect_at([(22, sale("ann", 4)), (21, sale("bob", 5))]),
    ]);
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
