//! The Nexmark queries against plain loops over the events: on any number of workers and splits, in batches of any size,
//! through stops and a SIGKILL, the rows are the same.

mod common;
#[path = "../examples/nexmark/events.rs"]
mod events;
mod patience;
#[path = "../examples/nexmark/queries/mod.rs"]
mod queries;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::{Command, Stdio};

use events::Events;
use millstream::prelude::*;
use millstream::source::{Batch, Read, Source, SplitReader, Waker};
use millstream::state::store::CheckpointStore;
use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::{Auction, Bid, Event, Person};
use patience::{Random, SOON, effort, ms, temp, until, within};
use queries::{q0, q1, q2, q3, q4, q5, q6, q7, q8, q9, q11, q12, q13, q14, q15, q16, q17, q18, q19, q20, q21, q22};
use serde::Serialize;

const COUNT: u64 = 20_000;

// ---- events ----------------------------------------------------------------------------------------------------------

/// Settings under which the first events make many windows: at the generator's own rate they last two seconds.
fn configs() -> [(&'static str, NexmarkConfig); 3] {
    let every_us = |us| NexmarkConfig { us_per_unit: us, first_rate: 1, next_rate: 1, ..events::config() };
    [
        // Out of order by up to 2 s.
        ("dense", NexmarkConfig { out_of_order_group_size: 200, ..every_us(10_000) }),
        // Ten events in a window, so that many auctions share the first place; out of order by up to 2 s.
        ("sparse", NexmarkConfig { out_of_order_group_size: 3, ..every_us(1_000_000) }),
        // Two days, and a bit of a third.
        ("days", every_us(8_650_000)),
    ]
}

/// Ten events in every millisecond, out of order by up to 20 ms, so that much happens at the same instant.
fn crowded() -> [(&'static str, NexmarkConfig); 1] {
    [("crowded", NexmarkConfig { out_of_order_group_size: 200, ..events::config() })]
}

fn generated(config: &NexmarkConfig, count: u64) -> Vec<Event> {
    EventGenerator::new(config.clone()).take(count as usize).collect()
}

fn bids(events: &[Event]) -> impl Iterator<Item = &Bid> {
    events.iter().filter_map(|event| match event {
        Event::Bid(bid) => Some(bid),
        _ => None,
    })
}

fn auctions(events: &[Event]) -> impl Iterator<Item = &Auction> {
    events.iter().filter_map(|event| match event {
        Event::Auction(auction) => Some(auction),
        _ => None,
    })
}

fn persons(events: &[Event]) -> impl Iterator<Item = &Person> {
    events.iter().filter_map(|event| match event {
        Event::Person(person) => Some(person),
        _ => None,
    })
}

// ---- running a query -------------------------------------------------------------------------------------------------

/// What is read, and how.
#[derive(Clone, Debug)]
struct Reading {
    config: NexmarkConfig,
    count: u64,
    splits: u64,
    delay: EventSpan,
    rate: f64,
}

/// A query of bids alone as one of all events.
fn of_bids<R>(query: impl Fn(Stream<Bid>) -> Stream<R>) -> impl Fn(Stream<Event>) -> Stream<R> {
    move |events| query(queries::bids(events))
}

/// Describes a query in `job` whose rows go to `rows`.
fn describe<R: Data>(job: &Job, reading: &Reading, query: impl Fn(Stream<Event>) -> Stream<R>, rows: &Collected<R>) {
    let source = Events::new(reading.config.clone(), reading.count).splits(reading.splits).rate(reading.rate);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(reading.delay, events::time));
    query(events).sink(rows.sink());
}

/// The rows as they would stand in a file, sorted.
fn lines<R: Serialize + Data>(rows: &Collected<R>) -> Vec<String> {
    let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    rows.values().iter().for_each(|row| csv.serialize(row).expect("a row of plain columns"));
    let text = String::from_utf8(csv.into_inner().expect("written")).expect("text");
    sorted(text.lines().map(str::to_string).collect())
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}

/// Runs the query on 1, 2 and 3 workers, on all kinds of events, and compares the rows with those of the loop. The loop is
/// also told the number of splits.
fn check<R: Serialize + Data>(
    delay: EventSpan,
    query: impl Fn(Stream<Event>) -> Stream<R>,
    expected: impl Fn(&[Event], u64) -> Vec<String>,
) {
    check_changed(&configs(), delay, |_| (), query, expected);
}

/// As `check`, with bids that are changed beforehand, on the kinds of events that are given.
fn check_changed<R: Serialize + Data>(
    kinds: &[(&str, NexmarkConfig)],
    delay: EventSpan,
    change: fn(&mut Bid),
    query: impl Fn(Stream<Event>) -> Stream<R>,
    expected: impl Fn(&[Event], u64) -> Vec<String>,
) {
    let changed = move |mut event: Event| {
        if let Event::Bid(bid) = &mut event {
            change(bid);
        }
        event
    };
    let mut random = Random(17 * effort());
    for (kind, config) in kinds {
        let events: Vec<Event> = generated(config, COUNT).into_iter().map(changed).collect();
        for workers in 1..=3 {
            let splits = 1 + random.below(6);
            let most = [5, 100, 2_000][random.below(3) as usize];
            let batch = 1 + random.below(most) as usize;
            let reading = Reading { config: config.clone(), count: COUNT, splits, delay, rate: 0.0 };
            let rows = Collected::new();
            let job = Job::new("nexmark").workers(workers).batch_size(batch);
            describe(&job, &reading, |events| query(events.map(changed)), &rows);
            let summary = within(job.start().expect("starts"), SOON).expect("finishes");
            assert_eq!((summary.records_in, summary.late), (COUNT, 0));
            let expected = sorted(expected(&events, splits));
            assert!(!expected.is_empty(), "{kind} events make no rows");
            let what = format!("{kind} events, {workers} workers, {splits} splits, batches of {batch}");
            common::assert_same(&what, &lines(&rows), &expected);
        }
    }
}

// ---- the loops -------------------------------------------------------------------------------------------------------

fn time(ms: u64) -> String {
    EventTime::from_millis(ms as i64).to_string()
}

/// The day of a time; all times are on one of four.
fn day(ms: u64) -> String {
    format!("2015-07-{}", 15 + (ms - events::config().base_time) / 86_400_000)
}

/// `0.908 * price` by integers only.
fn euros(price: usize) -> String {
    let decimals = format!("{:03}", price * 908 % 1_000);
    let (first, rest) = decimals.split_at(1);
    format!("{}.{first}{}", price * 908 / 1_000, rest.trim_end_matches('0'))
}

fn loop_q0(events: &[Event]) -> Vec<String> {
    bids(events)
        .map(|b| format!("{},{},{},{},{}", b.auction, b.bidder, b.price, time(b.date_time), b.extra))
        .collect()
}

fn loop_q1(events: &[Event]) -> Vec<String> {
    bids(events)
        .map(|b| format!("{},{},{},{},{}", b.auction, b.bidder, euros(b.price), time(b.date_time), b.extra))
        .collect()
}

fn loop_q2(events: &[Event]) -> Vec<String> {
    let wanted: Vec<usize> = (0..1_000).map(|i| i * 123).collect();
    bids(events)
        .filter(|b| wanted.contains(&b.auction))
        .map(|b| format!("{},{}", b.auction, b.price))
        .collect()
}

fn loop_q3(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for auction in auctions(events).filter(|auction| auction.category == 10) {
        for p in persons(events).filter(|person| person.id == auction.seller) {
            if ["or", "id", "ca"].contains(&p.state.as_str()) {
                rows.push(format!("{},{},{},{}", p.name, p.city, p.state, auction.id));
            }
        }
    }
    rows
}

/// Every auction with its winning bid.
fn winners(events: &[Event]) -> Vec<(&Auction, &Bid)> {
    let bids = groups(events, |bid| bid.auction);
    let mut winners = Vec::new();
    for auction in auctions(events) {
        let mut open: Vec<&Bid> = bids.get(&auction.id).cloned().unwrap_or_default();
        open.retain(|bid| auction.date_time <= bid.date_time && bid.date_time <= auction.expires);
        open.sort_by_key(|bid| (bid.date_time, bid.bidder, &bid.extra));
        open.sort_by_key(|bid| Reverse(bid.price));
        winners.extend(open.first().map(|bid| (auction, *bid)));
    }
    winners
}

fn loop_q4(events: &[Event]) -> Vec<String> {
    let mut rows = HashSet::new();
    let winners = winners(events);
    for (auction, _) in &winners {
        let (category, until) = (auction.category, auction.expires);
        let ended = winners.iter().filter(|(other, _)| other.category == category && other.expires <= until);
        let prices: Vec<usize> = ended.map(|(_, bid)| bid.price).collect();
        rows.insert(format!("{category},{},{}", prices.iter().sum::<usize>() / prices.len(), time(until)));
    }
    rows.into_iter().collect()
}

fn loop_q5(events: &[Event]) -> Vec<String> {
    let mut windows: HashMap<u64, HashMap<usize, u64>> = HashMap::new();
    for bid in bids(events) {
        let first = bid.date_time / 2_000 * 2_000 + 2_000;
        for end in (first..=bid.date_time + 10_000).step_by(2_000) {
            *windows.entry(end).or_default().entry(bid.auction).or_default() += 1;
        }
    }
    let mut rows = Vec::new();
    for (end, auctions) in windows {
        let most = auctions.values().max().expect("an auction");
        for (auction, num) in auctions.iter().filter(|(_, num)| *num == most) {
            rows.push(format!("{auction},{num},{},{}", time(end - 10_000), time(end)));
        }
    }
    rows
}

fn loop_q6(events: &[Event]) -> Vec<String> {
    let mut rows = HashSet::new();
    let mut winners = winners(events);
    winners.sort_by_key(|(auction, _)| Reverse((auction.expires, auction.id)));
    for (auction, _) in &winners {
        let (seller, until) = (auction.seller, auction.expires);
        let ended = winners.iter().filter(|(other, _)| other.seller == seller && other.expires <= until);
        let last: Vec<usize> = ended.take(10).map(|(_, bid)| bid.price).collect();
        rows.insert(format!("{seller},{},{}", last.iter().sum::<usize>() / last.len(), time(until)));
    }
    rows.into_iter().collect()
}

fn loop_q7(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for bids in groups(events, |bid| bid.date_time / 10_000).values() {
        let highest = bids.iter().map(|bid| bid.price).max().expect("a bid");
        for b in bids.iter().filter(|bid| bid.price == highest) {
            rows.push(format!("{},{},{},{},{}", b.auction, b.bidder, b.price, time(b.date_time), b.extra));
        }
    }
    rows
}

fn loop_q8(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for p in persons(events) {
        let window = p.date_time / 10_000;
        if auctions(events).any(|auction| auction.seller == p.id && auction.date_time / 10_000 == window) {
            rows.push(format!("{},{},{}", p.id, p.name, time(window * 10_000)));
        }
    }
    rows
}

fn loop_q9(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for (a, b) in winners(events) {
        let (opened, expires, made) = (time(a.date_time), time(a.expires), time(b.date_time));
        let lot = format!("{},{},{},{},{}", a.id, a.item_name, a.description, a.initial_bid, a.reserve);
        let lot = format!("{lot},{opened},{expires},{},{},{}", a.seller, a.category, a.extra);
        rows.push(format!("{lot},{},{},{},{made},{}", b.auction, b.bidder, b.price, b.extra));
    }
    rows
}

fn loop_q11(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    let bidders = groups(events, |bid| bid.bidder as u64);
    let count = bidders.len();
    for (bidder, bids) in bidders {
        let mut times: Vec<u64> = bids.iter().map(|bid| bid.date_time).collect();
        times.sort();
        for session in times.chunk_by(|one, next| next - one < 10_000) {
            let (first, last) = (session[0], session[session.len() - 1]);
            rows.push(format!("{bidder},{},{},{}", session.len(), time(first), time(last + 10_000)));
        }
    }
    assert!(rows.len() > count, "some bidder comes back");
    rows
}

fn loop_q12(events: &[Event], splits: u64) -> Vec<String> {
    let mut clocks = vec![0; splits as usize];
    let mut counts: HashMap<(usize, u64), u64> = HashMap::new();
    for (number, event) in events.iter().enumerate() {
        let clock = &mut clocks[number % splits as usize];
        if event.timestamp() > *clock {
            *clock = event.timestamp();
        }
        if let Event::Bid(bid) = event {
            *counts.entry((bid.bidder, *clock / 10_000)).or_default() += 1;
        }
    }
    let row = |((bidder, window), count)| {
        format!("{bidder},{count},{},{}", time(window * 10_000), time(window * 10_000 + 10_000))
    };
    counts.into_iter().map(row).collect()
}

fn loop_q13(events: &[Event], table: &q13::Table) -> Vec<String> {
    let mut rows = Vec::new();
    for b in bids(events) {
        if let Some(value) = table.get(&(b.auction as u64 % 10_000)) {
            rows.push(format!("{},{},{},{},{value}", b.auction, b.bidder, b.price, time(b.date_time)));
        }
    }
    rows
}

fn loop_q14(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for b in bids(events) {
        let thousandths = b.price * 908;
        if thousandths <= 1_000_000_000 || thousandths >= 50_000_000_000 {
            continue;
        }
        let hour = (b.date_time - events::config().base_time) / 3_600_000 % 24;
        let kind = if (8..=18).contains(&hour) {
            "dayTime"
        } else if hour <= 6 || hour >= 20 {
            "nightTime"
        } else {
            "otherTime"
        };
        let (price, time, letters) = (euros(b.price), time(b.date_time), b.extra.matches('c').count());
        rows.push(format!("{},{},{price},{kind},{time},{},{letters}", b.auction, b.bidder, b.extra));
    }
    rows
}

/// The bids of each group.
fn groups<K: Ord>(events: &[Event], key: impl Fn(&Bid) -> K) -> BTreeMap<K, Vec<&Bid>> {
    let mut groups: BTreeMap<K, Vec<&Bid>> = BTreeMap::new();
    bids(events).for_each(|bid| groups.entry(key(bid)).or_default().push(bid));
    groups
}

/// All of the bids, then those in each rank of price.
fn by_rank<'a>(bids: &[&'a Bid]) -> [Vec<&'a Bid>; 4] {
    let of = |from, to| bids.iter().filter(|bid| from <= bid.price && bid.price < to).copied().collect();
    [of(0, usize::MAX), of(0, 10_000), of(10_000, 1_000_000), of(1_000_000, usize::MAX)]
}

fn counts(bids: &[&Bid]) -> String {
    let ranks = by_rank(bids);
    let distinct = |of: fn(&Bid) -> usize| {
        ranks.each_ref().map(|bids| bids.iter().map(|bid| of(bid)).collect::<HashSet<_>>().len())
    };
    let columns = [ranks.each_ref().map(Vec::len), distinct(|bid| bid.bidder), distinct(|bid| bid.auction)];
    columns.concat().iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn loop_q15(events: &[Event]) -> Vec<String> {
    let days = groups(events, |bid| day(bid.date_time));
    days.iter().map(|(day, bids)| format!("{day},{}", counts(bids))).collect()
}

fn loop_q16(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for ((channel, day), bids) in groups(events, |bid| (bid.channel.clone(), day(bid.date_time))) {
        let minutes = bids.iter().map(|bid| bid.date_time / 60_000 % (24 * 60));
        let last = minutes.max().expect("a bid");
        rows.push(format!("{channel},{day},{:02}:{:02},{}", last / 60, last % 60, counts(&bids)));
    }
    rows
}

fn loop_q17(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for ((auction, day), bids) in groups(events, |bid| (bid.auction, day(bid.date_time))) {
        let [all, low, middle, high] = by_rank(&bids).map(|bids| bids.len());
        let mut prices: Vec<usize> = bids.iter().map(|bid| bid.price).collect();
        prices.sort_unstable();
        let (least, greatest, sum) = (prices[0], prices[all - 1], prices.iter().sum::<usize>());
        rows.push(format!("{auction},{day},{all},{low},{middle},{high},{least},{greatest},{},{sum}", sum / all));
    }
    rows
}

/// All columns of a bid.
fn whole(b: &Bid) -> String {
    format!("{},{},{},{},{},{},{}", b.auction, b.bidder, b.price, b.channel, b.url, time(b.date_time), b.extra)
}

/// The bids in the order of event time; those of one instant by split and position.
fn in_order(events: &[Event], splits: u64) -> Vec<Event> {
    let mut events: Vec<(u64, &Event)> = (0..).zip(events).collect();
    events.sort_by_key(|(number, event)| (event.timestamp(), number % splits, *number));
    events
        .into_iter()
        .map(|(_, event)| event.clone())
        .filter(|event| matches!(event, Event::Bid(_)))
        .collect()
}

/// What changes when a bid comes to others of its group, from `first` of those before to `first` of all.
fn changes<K: Ord>(
    events: &[Event],
    splits: u64,
    key: impl Fn(&Bid) -> K,
    first: impl Fn(&[&Bid]) -> Vec<String>,
) -> Vec<String> {
    let mut rows = Vec::new();
    for group in groups(&in_order(events, splits), key).values() {
        let mut before = Vec::new();
        for count in 1..=group.len() {
            let after = first(&group[..count]);
            let only_in = |these: &[String], others: &[String]| {
                let mut these = these.to_vec();
                for other in others {
                    if let Some(same) = these.iter().position(|this| this == other) {
                        these.remove(same);
                    }
                }
                these
            };
            rows.extend(only_in(&before, &after).iter().map(|bid| format!("Retract,{bid}")));
            rows.extend(only_in(&after, &before).iter().map(|bid| format!("Insert,{bid}")));
            before = after;
        }
    }
    rows
}

fn loop_q18(events: &[Event], splits: u64) -> Vec<String> {
    changes(
        events,
        splits,
        |bid| (bid.bidder, bid.auction),
        |bids| {
            let last = bids.iter().map(|bid| bid.date_time).max();
            bids.iter().filter(|bid| Some(bid.date_time) == last).take(1).map(|bid| whole(bid)).collect()
        },
    )
}

fn loop_q19(events: &[Event], splits: u64) -> Vec<String> {
    changes(
        events,
        splits,
        |bid| bid.auction,
        |bids| {
            let mut bids = bids.to_vec();
            bids.sort_by_key(|bid| Reverse(bid.price));
            bids.into_iter().take(10).map(whole).collect()
        },
    )
}

/// What is left of the rows that changes insert when they have retracted what they retract.
fn left(changes: Vec<String>) -> Vec<String> {
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for change in changes {
        let (kind, row) = change.split_once(',').expect("a kind and a row");
        *counts.entry(row.to_string()).or_default() += if kind == "Insert" { 1 } else { -1 };
    }
    counts
        .into_iter()
        .flat_map(|(row, count)| vec![row; usize::try_from(count).expect("it was there")])
        .collect()
}

fn loop_q20(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    let all = groups(events, |bid| bid.auction);
    for a in auctions(events).filter(|auction| auction.category == 10) {
        let lot = format!("{},{},{},{}", a.item_name, a.description, a.initial_bid, a.reserve);
        let (opened, expires) = (time(a.date_time), time(a.expires));
        let lot = format!("{lot},{opened},{expires},{},{},{}", a.seller, a.category, a.extra);
        rows.extend(all.get(&a.id).into_iter().flatten().map(|bid| format!("{},{lot}", whole(bid))));
    }
    rows
}

fn loop_q21(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for b in bids(events) {
        let id = match b.channel.as_str() {
            "Apple" => "0",
            "Google" => "1",
            "Facebook" => "2",
            "Baidu" => "3",
            // The generator puts it last.
            _ => match b.url.split_once("&channel_id=") {
                Some((_, id)) => id,
                None => continue,
            },
        };
        rows.push(format!("{},{},{},{},{id}", b.auction, b.bidder, b.price, b.channel));
    }
    rows
}

fn loop_q22(events: &[Event]) -> Vec<String> {
    let mut rows = Vec::new();
    for b in bids(events) {
        let path = b.url.strip_prefix("https://www.nexmark.com/").expect("the generator's host");
        let dirs: Vec<&str> = path
            .strip_suffix(path.rsplit('/').next().unwrap_or_default())
            .unwrap_or_default()
            .split('/')
            .collect();
        rows.push(format!("{},{},{},{},{},{},{}", b.auction, b.bidder, b.price, b.channel, dirs[0], dirs[1], dirs[2]));
    }
    rows
}

// ---- each query against its loop -------------------------------------------------------------------------------------

const DELAY: EventSpan = events::OUT_OF_ORDERNESS;

/// As little as crowded events allow for, so that event time goes on while they are read.
const CROWDED_DELAY: EventSpan = EventSpan::millis(20);

#[test]
fn q0_passes_all_bids_through() {
    check(DELAY, of_bids(q0::results), |events, _| loop_q0(events));
}

#[test]
fn q1_has_prices_in_euros() {
    check(DELAY, of_bids(q1::results), |events, _| loop_q1(events));
}

#[test]
fn q2_has_every_123rd_auction() {
    check(DELAY, of_bids(q2::results), |events, _| loop_q2(events));
}

#[test]
fn q3_finds_sellers_whenever_they_come() {
    check(DELAY, q3::results, |events, _| loop_q3(events));
    // Both happen: an auction before its seller, and after.
    let events = generated(&configs()[0].1, COUNT);
    let seller = |auction: &Auction| persons(&events).find(|person| person.id == auction.seller).cloned();
    let before = |auction: &Auction| seller(auction).map(|seller| auction.date_time < seller.date_time);
    for order in [true, false] {
        assert!(auctions(&events).any(|auction| before(auction) == Some(order)), "none is before: {order}");
    }
}

#[test]
fn q4_has_the_average_of_what_has_ended() {
    check(DELAY, q4::results, |events, _| loop_q4(events));
}

#[test]
fn auctions_that_end_together_count_together() {
    check_changed(&crowded(), CROWDED_DELAY, |_| (), q4::results, |events, _| loop_q4(events));
    check_changed(&crowded(), CROWDED_DELAY, |_| (), q6::results, |events, _| loop_q6(events));
    let events = generated(&crowded()[0].1, COUNT);
    let mut ends = HashSet::new();
    assert!(winners(&events).iter().any(|(auction, _)| !ends.insert((auction.seller, auction.expires))));
}

#[test]
fn q5_has_all_auctions_with_the_most_bids() {
    check(DELAY, of_bids(q5::results), |events, _| loop_q5(events));
}

#[test]
fn q6_has_the_average_of_the_last_ten() {
    check(DELAY, q6::results, |events, _| loop_q6(events));
    let events = generated(&configs()[0].1, COUNT);
    let mut sales: HashMap<usize, u64> = HashMap::new();
    winners(&events).iter().for_each(|(auction, _)| *sales.entry(auction.seller).or_default() += 1);
    assert!(sales.values().any(|count| *count > 10), "no seller has more than ten");
}

#[test]
fn q7_has_all_highest_bids() {
    check(DELAY, of_bids(q7::results), |events, _| loop_q7(events));
}

#[test]
fn q7_has_ties_as_often_as_they_were_made() {
    // So few different bids that the highest of a window are many, and some the same in all columns.
    let few = |bid: &mut Bid| {
        bid.auction %= 3;
        bid.bidder = 0;
        bid.price %= 2;
        bid.date_time -= bid.date_time % 1_000;
        bid.extra.clear();
    };
    check_changed(&configs(), DELAY, few, of_bids(q7::results), |events, _| loop_q7(events));
}

#[test]
fn q8_has_new_users_who_sell() {
    check(DELAY, q8::results, |events, _| loop_q8(events));
}

#[test]
fn q9_has_the_winning_bids() {
    check(DELAY, q9::results, |events, _| loop_q9(events));
}

#[test]
fn q9_decides_between_bids_of_one_price() {
    let few = |bid: &mut Bid| bid.price %= 3;
    check_changed(&configs(), DELAY, few, q9::results, |events, _| loop_q9(events));
    check_changed(&crowded(), CROWDED_DELAY, few, q9::results, |events, _| loop_q9(events));
}

#[test]
fn q9_counts_bids_at_both_ends() {
    let events = generated(&crowded()[0].1, COUNT);
    let bids = groups(&events, |bid| bid.auction);
    let at_an_end = |end: fn(&Auction) -> u64| {
        let bid_on = |auction: &Auction| bids.get(&auction.id).into_iter().flatten();
        auctions(&events).any(|auction| bid_on(auction).any(|bid| bid.date_time == end(auction)))
    };
    assert!(at_an_end(|auction| auction.date_time) && at_an_end(|auction| auction.expires));
    check_changed(&crowded(), CROWDED_DELAY, |_| (), q9::results, |events, _| loop_q9(events));
}

#[test]
fn q11_counts_until_a_bidder_is_quiet() {
    check(DELAY, of_bids(q11::results), |events, _| loop_q11(events));
}

#[test]
fn q12_counts_by_a_clock_that_follows_the_events() {
    check(EventSpan::ZERO, of_bids(q12::results), loop_q12);
}

#[test]
fn q13_looks_bids_up_in_a_table() {
    let all = q13::side_input();
    check(DELAY, of_bids(|bids| q13::results(bids, all.clone())), |events, _| loop_q13(events, &all));
}

#[test]
fn q13_leaves_out_what_the_table_does_not_have() {
    let few: q13::Table = q13::side_input().into_iter().filter(|(key, _)| key % 7 == 0).collect();
    check(DELAY, of_bids(|bids| q13::results(bids, few.clone())), |events, _| loop_q13(events, &few));
}

#[test]
fn q14_tells_the_kind_of_time() {
    check(DELAY, of_bids(q14::results), |events, _| loop_q14(events));
    let days = loop_q14(&generated(&configs()[2].1, COUNT));
    for kind in ["dayTime", "nightTime", "otherTime"] {
        assert!(days.iter().any(|row| row.contains(kind)), "no {kind}");
    }
}

#[test]
fn q15_counts_days() {
    check(DELAY, of_bids(q15::results), |events, _| loop_q15(events));
}

#[test]
fn q16_counts_channels() {
    check(DELAY, of_bids(q16::results), |events, _| loop_q16(events));
}

#[test]
fn q17_counts_auctions() {
    check(DELAY, of_bids(q17::results), |events, _| loop_q17(events));
}

#[test]
fn q18_changes_with_every_later_bid() {
    check(DELAY, of_bids(q18::results), loop_q18);
}

#[test]
fn q18_takes_the_first_of_one_instant() {
    check_changed(&crowded(), CROWDED_DELAY, |_| (), of_bids(q18::results), loop_q18);
}

#[test]
fn q18_has_one_bid_of_each_in_the_end() {
    let events = generated(&configs()[0].1, COUNT);
    let mut last: BTreeMap<(usize, usize), &Bid> = BTreeMap::new();
    for bid in bids(&events) {
        let own = last.entry((bid.bidder, bid.auction)).or_insert(bid);
        if bid.date_time > own.date_time {
            *own = bid;
        }
    }
    assert_eq!(left(loop_q18(&events, 1)), sorted(last.values().map(|bid| whole(bid)).collect()));
}

#[test]
fn q19_changes_when_a_bid_is_among_the_first() {
    check(DELAY, of_bids(q19::results), loop_q19);
}

#[test]
fn q19_has_the_first_of_one_price() {
    let few = |bid: &mut Bid| bid.price %= 3;
    check_changed(&configs(), DELAY, few, of_bids(q19::results), loop_q19);
    check_changed(&crowded(), CROWDED_DELAY, few, of_bids(q19::results), loop_q19);
}

#[test]
fn q19_has_ten_bids_of_each_in_the_end() {
    let events = generated(&configs()[0].1, COUNT);
    let mut highest = Vec::new();
    for bids in groups(&events, |bid| bid.auction).values_mut() {
        bids.sort_by_key(|bid| (Reverse(bid.price), bid.date_time));
        highest.extend(bids.iter().take(10).map(|bid| whole(bid)));
    }
    assert_eq!(left(loop_q19(&events, 1)), sorted(highest));
}

#[test]
fn q20_finds_auctions_whenever_they_come() {
    check(DELAY, q20::results, |events, _| loop_q20(events));
    // Both happen: a bid before its auction, and after.
    let events = generated(&configs()[0].1, COUNT);
    let bids = groups(&events, |bid| bid.auction);
    for order in [true, false] {
        let some = |auction: &Auction| {
            let mut bids = bids.get(&auction.id).into_iter().flatten();
            bids.any(|bid| (bid.date_time < auction.date_time) == order)
        };
        assert!(auctions(&events).any(|auction| auction.category == 10 && some(auction)), "none is before: {order}");
    }
}

#[test]
fn prices_at_the_limits_are_on_the_right_side() {
    const LIMITS: [usize; 8] = [9_999, 10_000, 999_999, 1_000_000, 1_101_321, 1_101_322, 55_066_079, 55_066_080];
    let limits = |bid: &mut Bid| bid.price = LIMITS[bid.price % LIMITS.len()];
    check_changed(&configs(), DELAY, limits, of_bids(q14::results), |events, _| loop_q14(events));
    check_changed(&configs(), DELAY, limits, of_bids(q15::results), |events, _| loop_q15(events));
    check_changed(&configs(), DELAY, limits, of_bids(q17::results), |events, _| loop_q17(events));
}

#[test]
fn q21_has_channel_ids() {
    check(DELAY, of_bids(q21::results), |events, _| loop_q21(events));
}

#[test]
fn q22_has_directories() {
    check(DELAY, of_bids(q22::results), |events, _| loop_q22(events));
}

// ---- the source ------------------------------------------------------------------------------------------------------

#[test]
fn a_split_opened_at_a_position_goes_on_as_before() {
    let mut random = Random(5 * effort());
    for (kind, config) in configs() {
        for splits in [1, 2, 7] {
            let count = 500 + random.below(20);
            let all = generated(&config, count);
            let source = Events::new(config.clone(), count).splits(splits);
            for (k, name) in Source::splits(&source).expect("names").iter().enumerate() {
                let expected: Vec<&Event> = all.iter().skip(k).step_by(splits as usize).collect();
                let (mut read, mut position, mut more) = (Vec::new(), None, Read::More);
                // Every batch is read by a reader of its own.
                while more == Read::More {
                    let mut reader = source.open(name, position, Waker::new(|| {})).expect("opens");
                    let mut batch = Batch::default();
                    more = reader.read(1 + random.below(100) as usize, &mut batch).expect("reads");
                    position = Some(reader.position());
                    read.extend(batch.records);
                    assert!(read.len() <= expected.len(), "{kind} events, {name}: read twice");
                }
                assert!(read.iter().eq(expected), "{kind} events, {name}");
                let mut ended = source.open(name, position, Waker::new(|| {})).expect("opens");
                assert_eq!(ended.read(1, &mut Batch::default()).expect("reads"), Read::Ended);
            }
            if splits > 1 {
                assert!(source.open("events 0 of 2", Some(1), Waker::new(|| {})).is_err());
            }
        }
    }
}

// ---- stopped, killed and started again -------------------------------------------------------------------------------

/// Stops the job twice without a last checkpoint, each time with another number of workers, and compares its rows in the
/// end. Returns how often it went on from a checkpoint.
fn interrupt<R: Serialize + Data>(
    delay: EventSpan,
    query: impl Fn(Stream<Event>) -> Stream<R>,
    expected: impl Fn(&[Event], u64) -> Vec<String>,
) -> usize {
    let (dir, rows, mut resumed) = (temp(), Collected::new(), 0);
    let mut reading = Reading { config: configs()[0].1.clone(), count: COUNT, splits: 4, delay, rate: 40_000.0 };
    for (workers, after) in [(2, COUNT / 3), (3, COUNT / 4), (1, COUNT)] {
        if after == COUNT {
            reading.rate = 0.0;
        }
        let job = Job::new("nexmark").workers(workers).batch_size(64);
        let job = job.checkpoint_dir(dir.path()).checkpoint_every(ms(5));
        describe(&job, &reading, &query, &rows);
        let store = CheckpointStore::new(dir.path());
        let newest = || store.epochs().expect("a list of checkpoints").pop();
        let (before, handle) = (newest(), job.start().expect("starts"));
        if after < COUNT {
            until("part is read, with a checkpoint", || {
                handle.is_finished() || handle.status().records_in > after && newest() > before
            });
            handle.stop(StopMode::Now);
        }
        resumed += usize::from(within(handle, SOON).expect("stops or finishes").restored.is_some());
    }
    let expected = sorted(expected(&generated(&reading.config, COUNT), reading.splits));
    common::assert_same("after two stops", &lines(&rows), &expected);
    resumed
}

#[test]
fn stopped_queries_go_on_where_they_were() {
    let resumed = [
        interrupt(DELAY, q3::results, |events, _| loop_q3(events)),
        interrupt(DELAY, q4::results, |events, _| loop_q4(events)),
        interrupt(DELAY, of_bids(q5::results), |events, _| loop_q5(events)),
        interrupt(DELAY, q6::results, |events, _| loop_q6(events)),
        interrupt(DELAY, of_bids(q7::results), |events, _| loop_q7(events)),
        interrupt(DELAY, q8::results, |events, _| loop_q8(events)),
        interrupt(DELAY, q9::results, |events, _| loop_q9(events)),
        interrupt(DELAY, of_bids(q11::results), |events, _| loop_q11(events)),
        interrupt(EventSpan::ZERO, of_bids(q12::results), loop_q12),
        interrupt(DELAY, of_bids(q16::results), |events, _| loop_q16(events)),
        interrupt(DELAY, of_bids(q17::results), |events, _| loop_q17(events)),
        interrupt(DELAY, of_bids(q18::results), loop_q18),
        interrupt(DELAY, of_bids(q19::results), loop_q19),
        interrupt(DELAY, q20::results, |events, _| loop_q20(events)),
    ];
    // On a machine that is busy enough this thread may come too late to stop one.
    assert!(resumed.iter().sum::<usize>() >= resumed.len(), "went on from a checkpoint only {resumed:?} times");
}

const Q5_HEADER: &str = "auction,num,window_start,window_end";

const Q16_HEADER: &str = "channel,day,minute,total_bids,rank1_bids,rank2_bids,rank3_bids,total_bidders,rank1_bidders,\
    rank2_bidders,rank3_bidders,total_auctions,rank1_auctions,rank2_auctions,rank3_auctions";

#[test]
fn the_example_survives_a_kill() {
    let events = generated(&events::config(), 150_000);
    let dir = temp();
    let run = |options: &str| {
        let mut command = Command::new(common::built("nexmark"));
        command.args(["--query", "q5", "--events", "150000", "--splits", "3", "--output"]).arg(dir.path());
        command.args(options.split_whitespace()).stdin(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the example starts")
    };
    let mut first = run("--workers 2 --rate 40000 --checkpoint-interval 20ms");
    let (output, store) = (dir.path().join("q5/results"), CheckpointStore::new(dir.path().join("q5/checkpoints")));
    until("results and a checkpoint after them", || {
        !common::parts(&output).is_empty() && store.epochs().expect("a list of checkpoints").last() > Some(&5)
    });
    first.kill().expect("a child may be killed");
    assert!(!first.wait().expect("the state of a child").success(), "it ended before it was killed");
    let second = run("--workers 1").wait_with_output().expect("the end of a child");
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.success() && stderr.contains("resumed from checkpoint"), "{stderr}");
    common::assert_same("q5", &common::rows(&output, Q5_HEADER), &sorted(loop_q5(&events)));
}

const BID: &str = "auction,bidder,price,channel,url,date_time,extra";

#[test]
fn the_example_writes_joins_and_changes() {
    const SPLITS: u64 = 3;
    let events = generated(&events::config(), 20_000);
    let dir = temp();
    let check = |query: &str, header: &str, expected: Vec<String>| {
        let mut command = Command::new(common::built("nexmark"));
        command
            .args(["--query", query, "--events", "20000", "--workers", "2", "--splits"])
            .arg(SPLITS.to_string());
        let output = command.arg("--output").arg(dir.path()).output().expect("the example runs");
        assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!expected.is_empty(), "{query} has no rows");
        common::assert_same(query, &common::rows(&dir.path().join(query).join("results"), header), &sorted(expected));
    };
    let lot = "item_name,description,initial_bid,reserve";
    let made = "auction,bidder,price,channel,url,bid_date_time,bid_extra";
    let auction = format!("id,{lot},date_time,expires,seller,category,extra");
    let expanded = format!("{made},{lot},auction_date_time,expires,seller,category,auction_extra");
    check("q3", "name,city,state,id", loop_q3(&events));
    check("q4", "category,final,expires", loop_q4(&events));
    check("q6", "seller,avg_price,expires", loop_q6(&events));
    check("q8", "id,name,stime", loop_q8(&events));
    check("q9", &format!("{auction},auction,bidder,price,bid_date_time,bid_extra"), loop_q9(&events));
    check("q13", "auction,bidder,price,date_time,value", loop_q13(&events, &q13::side_input()));
    check("q18", &format!("change,{BID}"), loop_q18(&events, SPLITS));
    check("q19", &format!("change,{BID}"), loop_q19(&events, SPLITS));
    check("q20", &expanded, loop_q20(&events));
}

#[test]
fn the_example_writes_rows_or_counts_them() {
    let events = generated(&events::config(), 30_000);
    let expected = sorted(loop_q16(&events));
    let dir = temp();
    let run = |options: &[&str]| {
        let mut command = Command::new(common::built("nexmark"));
        command.args(["--query", "q16", "--events", "30000", "--workers", "2"]).args(options);
        let output = command.output().expect("the example runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let rows = millstream::summary::thousands(expected.len() as u64);
        let says = stderr.contains(&format!("30,000 in, {rows} out, 0 late"));
        assert!(output.status.success() && says, "{stderr}");
    };
    run(&[]);
    run(&["--output", &dir.path().display().to_string()]);
    common::assert_same("q16", &common::rows(&dir.path().join("q16/results"), Q16_HEADER), &expected);
}
