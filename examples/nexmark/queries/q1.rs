//! Query 1, currency conversion: prices in euros.
//!
//! `SELECT auction, bidder, 0.908 * price AS price, dateTime, extra FROM bid`. Ours is the same, with the price as the
//! nearest `f64` instead of a decimal number; the two look the same when written.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::{euros, made_at};

/// A bid in euros.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub bidder: u64,
    pub price: f64,
    #[serde(with = "iso8601")]
    pub date_time: EventTime,
    pub extra: String,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(|bid| Row {
        auction: bid.auction as u64,
        bidder: bid.bidder as u64,
        price: euros(&bid),
        date_time: made_at(&bid),
        extra: bid.extra,
    })
}
