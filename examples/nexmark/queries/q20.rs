//! Query 20, expand bid with auction: the bids on auctions of category 10, with the auction.
//!
//! `SELECT auction, bidder, price, channel, url, B.dateTime, B.extra, itemName, description, initialBid, reserve,
//! A.dateTime, expires, seller, category, A.extra FROM bid AS B INNER JOIN auction AS A ON B.auction = A.id WHERE
//! A.category = 10`. Ours gives the same rows, each once.
//!
//! There is no window: the generator makes bids on auctions that come only later. What is kept for that is told in
//! `referring`: bids wait only for auctions that have not come, while SQL keeps all of them.

use millstream::prelude::*;
use nexmark::event::Event;
use serde::{Deserialize, Serialize};

use super::referring::referring;
use super::{at, auctions, bids, made_at};

/// A bid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    pub channel: String,
    pub url: String,
    #[serde(with = "iso8601")]
    pub bid_date_time: EventTime,
    pub bid_extra: String,
}

/// What its auction says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lot {
    pub item_name: String,
    pub description: String,
    pub initial_bid: u64,
    pub reserve: u64,
    #[serde(with = "iso8601")]
    pub auction_date_time: EventTime,
    #[serde(with = "iso8601")]
    pub expires: EventTime,
    pub seller: u64,
    pub category: u64,
    pub auction_extra: String,
}

/// A bid and its auction, one after the other in the columns.
pub type Row = (Made, Lot);

pub fn results(events: Stream<Event>) -> Stream<Row> {
    let bids = bids(events.clone()).map(|bid| {
        let made = Made {
            auction: bid.auction as u64,
            bidder: bid.bidder as u64,
            price: bid.price as u64,
            bid_date_time: made_at(&bid),
            channel: bid.channel,
            url: bid.url,
            bid_extra: bid.extra,
        };
        (made.auction, made)
    });
    let lots = auctions(events).map(|auction| {
        let id = auction.id as u64;
        let lot = (auction.category == 10).then(|| Lot {
            item_name: auction.item_name,
            description: auction.description,
            initial_bid: auction.initial_bid as u64,
            reserve: auction.reserve as u64,
            auction_date_time: at(auction.date_time),
            expires: at(auction.expires),
            seller: auction.seller as u64,
            category: auction.category as u64,
            auction_extra: auction.extra,
        });
        (id, lot)
    });
    referring(bids, lots)
}
