//! Query 9, winning bids: every auction with the bid that won it.
//!
//! Of `auction` joined with `bid` on the auction's id `WHERE B.dateTime BETWEEN A.dateTime AND A.expires`, the row with
//! `ROW_NUMBER() OVER (PARTITION BY A.id ORDER BY B.price DESC, B.dateTime ASC)` 1. Ours gives it once, when the auction is
//! over (see `winning`), instead of every bid that is higher than those before. SQL leaves open which of several bids of
//! one price and instant wins; here it is the one with the least bidder, then with the least `extra`.

use std::cmp::Reverse;

use millstream::prelude::*;
use nexmark::event::Event;
use serde::{Deserialize, Serialize};

use super::winning::{Won, winning};
use super::{at, made_at};

/// The auction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lot {
    pub id: u64,
    pub item_name: String,
    pub description: String,
    pub initial_bid: u64,
    pub reserve: u64,
    #[serde(with = "iso8601")]
    pub date_time: EventTime,
    #[serde(with = "iso8601")]
    pub expires: EventTime,
    pub seller: u64,
    pub category: u64,
    pub extra: String,
}

/// The bid.
#[derive(Clone, Debug, Serialize)]
pub struct Winner {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    #[serde(with = "iso8601")]
    pub bid_date_time: EventTime,
    pub bid_extra: String,
}

/// An auction and its bid, one after the other in the columns.
pub type Row = (Lot, Winner);

pub fn results(events: Stream<Event>) -> Stream<Row> {
    let lot = |auction: nexmark::event::Auction| Lot {
        id: auction.id as u64,
        item_name: auction.item_name,
        description: auction.description,
        initial_bid: auction.initial_bid as u64,
        reserve: auction.reserve as u64,
        date_time: at(auction.date_time),
        expires: at(auction.expires),
        seller: auction.seller as u64,
        category: auction.category as u64,
        extra: auction.extra,
    };
    // The greatest wins: the highest price, and among these the least of the rest.
    winning(events, lot, |bid| (bid.price as u64, Reverse((made_at(&bid), bid.bidder as u64, bid.extra)))).map(
        |Won { auction, about: lot, bid: (price, Reverse((bid_date_time, bidder, bid_extra))), .. }| {
            (lot, Winner { auction, bidder, price, bid_date_time, bid_extra })
        },
    )
}
