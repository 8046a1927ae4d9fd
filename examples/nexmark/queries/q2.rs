//! Query 2, selection: the bids on some auctions.
//!
//! `SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0`. Ours is the same.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

/// A bid on one of these auctions.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub price: u64,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.filter(|bid| bid.auction % 123 == 0)
        .map(|bid| Row { auction: bid.auction as u64, price: bid.price as u64 })
}
