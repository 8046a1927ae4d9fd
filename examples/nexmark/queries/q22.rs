//! Query 22, URL directories: the first three parts of the path.
//!
//! `SELECT auction, bidder, price, channel, SPLIT_INDEX(url, '/', 3) AS dir1, SPLIT_INDEX(url, '/', 4) AS dir2,
//! SPLIT_INDEX(url, '/', 5) AS dir3 FROM bid`. Ours is the same; a part that is not there is empty instead of null.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

/// A bid with the directories of its URL.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    pub channel: String,
    pub dir1: String,
    pub dir2: String,
    pub dir3: String,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(|bid| {
        let mut dirs = bid.url.split('/').skip(3);
        let mut dir = || dirs.next().unwrap_or_default().to_string();
        Row {
            auction: bid.auction as u64,
            bidder: bid.bidder as u64,
            price: bid.price as u64,
            dir1: dir(),
            dir2: dir(),
            dir3: dir(),
            channel: bid.channel,
        }
    })
}
