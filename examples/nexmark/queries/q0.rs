//! Query 0, pass through: what it costs to read and write.
//!
//! `SELECT auction, bidder, price, dateTime, extra FROM bid`. Ours is the same.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::made_at;

/// A bid.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    #[serde(with = "iso8601")]
    pub date_time: EventTime,
    pub extra: String,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(|bid| Row {
        auction: bid.auction as u64,
        bidder: bid.bidder as u64,
        price: bid.price as u64,
        date_time: made_at(&bid),
        extra: bid.extra,
    })
}
