//! Query 14, calculation: bids of middling price, with the kind of time at which they were made.
//!
//! `SELECT auction, bidder, 0.908 * price AS price, bidTimeType, dateTime, extra, count_char(extra, 'c') AS c_counts FROM bid
//! WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000`, where `bidTimeType` depends on the hour: `dayTime` from 8 to
//! 18, `nightTime` up to 6 and from 20 on, else `otherTime`. Ours is the same in UTC; the limits are compared exactly, and the
//! price is the nearest `f64`.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::{euros, made_at};

/// A bid with what was calculated from it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub bidder: u64,
    pub price: f64,
    pub bid_time_type: &'static str,
    #[serde(with = "iso8601")]
    pub date_time: EventTime,
    pub extra: String,
    pub c_counts: u64,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.filter(|bid| (1_000_000_001..50_000_000_000).contains(&(bid.price * 908))).map(|bid| Row {
        auction: bid.auction as u64,
        bidder: bid.bidder as u64,
        price: euros(&bid),
        bid_time_type: time_type(bid.date_time / 3_600_000 % 24),
        date_time: made_at(&bid),
        c_counts: bid.extra.bytes().filter(|letter| *letter == b'c').count() as u64,
        extra: bid.extra,
    })
}

fn time_type(hour: u64) -> &'static str {
    match hour {
        8..=18 => "dayTime",
        ..=6 | 20.. => "nightTime",
        _ => "otherTime",
    }
}
