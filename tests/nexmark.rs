//! The Nexmark queries against plain loops over the events: on any number of workers and splits, in batches of any size,
//! through stops and a SIGKILL, the rows are the same.

mod common;
#[path = "../examples/nexmark/events.rs"]
mod events;
mod patience;
#[path = "../examples/nexmark/queries/mod.rs"]
mod queries;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::{Command, Stdio};

use events::Events;
use millstream::prelude::*;
use millstream::source::{Batch, Read, Source, SplitReader, Waker};
use millstream::state::store::CheckpointStore;
use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::{Bid, Event};
use patience::{Random, SOON, effort, ms, temp, until, within};
use queries::{q0, q1, q2, q5, q7, q11, q12, q14, q15, q16, q17, q21, q22};
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

fn generated(config: &NexmarkConfig, count: u64) -> Vec<Event> {
    EventGenerator::new(config.clone()).take(count as usize).collect()
}

fn bids(events: &[Event]) -> impl Iterator<Item = &Bid> {
    events.iter().filter_map(|event| match event {
        Event::Bid(bid) => Some(bid),
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

/// Describes a query in `job` whose rows go to `rows`.
fn describe<R: Data>(job: &Job, reading: &Reading, query: impl Fn(Stream<Bid>) -> Stream<R>, rows: &Collected<R>) {
    let source = Events::new(reading.config.clone(), reading.count).splits(reading.splits).rate(reading.rate);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(reading.delay, events::time));
    query(queries::bids(events)).sink(rows.sink());
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
    query: impl Fn(Stream<Bid>) -> Stream<R>,
    expected: impl Fn(&[Event], u64) -> Vec<String>,
) {
    check_changed(delay, |_| (), query, expected);
}

/// As `check`, with bids that are changed beforehand.
fn check_changed<R: Serialize + Data>(
    delay: EventSpan,
    change: fn(&mut Bid),
    query: impl Fn(Stream<Bid>) -> Stream<R>,
    expected: impl Fn(&[Event], u64) -> Vec<String>,
) {
    let mut random = Random(17 * effort());
    for (kind, config) in configs() {
        let mut events = generated(&config, COUNT);
        for event in &mut events {
            if let Event::Bid(bid) = event {
                change(bid);
            }
        }
        for workers in 1..=3 {
            let splits = 1 + random.below(6);
            let most = [5, 100, 2_000][random.below(3) as usize];
            let batch = 1 + random.below(most) as usize;
            let reading = Reading { config: config.clone(), count: COUNT, splits, delay, rate: 0.0 };
            let rows = Collected::new();
            let job = Job::new("nexmark").workers(workers).batch_size(batch);
            let changed = |bids: Stream<Bid>| {
                query(bids.map(move |mut bid| {
                    change(&mut bid);
                    bid
                }))
            };
            describe(&job, &reading, changed, &rows);
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

fn loop_q5(events: &[Event]) -> Vec<String> {
    let mut windows: HashMap<u64, HashMap<usize, u64>> = HashMap::new();
    for bid in bids(events) {
        for end in (bid.date_time + 1..=bid.date_time + 10_000).filter(|end| end % 2_000 == 0) {
            *windows.entry(end).or_default().entry(bid.auction).or_default() += 1;
        }
    }
    let mut rows = Vec::new();
    for (end, auctions) in windows {
        for (auction, num) in &auctions {
            if auctions.values().all(|other| other <= num) {
                rows.push(format!("{auction},{num},{},{}", time(end - 10_000), time(end)));
            }
        }
    }
    rows
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

#[test]
fn q0_passes_all_bids_through() {
    check(DELAY, q0::results, |events, _| loop_q0(events));
}

#[test]
fn q1_has_prices_in_euros() {
    check(DELAY, q1::results, |events, _| loop_q1(events));
}

#[test]
fn q2_has_every_123rd_auction() {
    check(DELAY, q2::results, |events, _| loop_q2(events));
}

#[test]
fn q5_has_all_auctions_with_the_most_bids() {
    check(DELAY, q5::results, |events, _| loop_q5(events));
}

#[test]
fn q7_has_all_highest_bids() {
    check(DELAY, q7::results, |events, _| loop_q7(events));
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
    check_changed(DELAY, few, q7::results, |events, _| loop_q7(events));
}

#[test]
fn q11_counts_until_a_bidder_is_quiet() {
    check(DELAY, q11::results, |events, _| loop_q11(events));
}

#[test]
fn q12_counts_by_a_clock_that_follows_the_events() {
    check(EventSpan::ZERO, q12::results, loop_q12);
}

#[test]
fn q14_tells_the_kind_of_time() {
    check(DELAY, q14::results, |events, _| loop_q14(events));
    let days = loop_q14(&generated(&configs()[2].1, COUNT));
    for kind in ["dayTime", "nightTime", "otherTime"] {
        assert!(days.iter().any(|row| row.contains(kind)), "no {kind}");
    }
}

#[test]
fn q15_counts_days() {
    check(DELAY, q15::results, |events, _| loop_q15(events));
}

#[test]
fn q16_counts_channels() {
    check(DELAY, q16::results, |events, _| loop_q16(events));
}

#[test]
fn q17_counts_auctions() {
    check(DELAY, q17::results, |events, _| loop_q17(events));
}

#[test]
fn prices_at_the_limits_are_on_the_right_side() {
    const LIMITS: [usize; 8] = [9_999, 10_000, 999_999, 1_000_000, 1_101_321, 1_101_322, 55_066_079, 55_066_080];
    let limits = |bid: &mut Bid| bid.price = LIMITS[bid.price % LIMITS.len()];
    check_changed(DELAY, limits, q14::results, |events, _| loop_q14(events));
    check_changed(DELAY, limits, q15::results, |events, _| loop_q15(events));
    check_changed(DELAY, limits, q17::results, |events, _| loop_q17(events));
}

#[test]
fn q21_has_channel_ids() {
    check(DELAY, q21::results, |events, _| loop_q21(events));
}

#[test]
fn q22_has_directories() {
    check(DELAY, q22::results, |events, _| loop_q22(events));
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
    query: impl Fn(Stream<Bid>) -> Stream<R>,
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
        interrupt(DELAY, q5::results, |events, _| loop_q5(events)),
        interrupt(DELAY, q7::results, |events, _| loop_q7(events)),
        interrupt(DELAY, q11::results, |events, _| loop_q11(events)),
        interrupt(EventSpan::ZERO, q12::results, loop_q12),
        interrupt(DELAY, q16::results, |events, _| loop_q16(events)),
        interrupt(DELAY, q17::results, |events, _| loop_q17(events)),
    ];
    // On a machine that is busy enough this thread may come too late to stop one.
    assert!(resumed.iter().sum::<usize>() >= 5, "went on from a checkpoint only {resumed:?} times");
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
    let mut first = run("--workers 2 --rate 100000 --checkpoint-interval 20ms");
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
