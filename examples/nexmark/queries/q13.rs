//! Query 13, bounded side input join: bids with what a table says of their auction.
//!
//! `SELECT B.auction, B.bidder, B.price, B.dateTime, S.value FROM bid B JOIN side_input FOR SYSTEM_TIME AS OF B.p_time AS S
//! ON MOD(B.auction, 10000) = S.key`, where `p_time` is the time of processing, and `side_input` a file. Ours gives the
//! same rows of the same table. Bids that the table says nothing of are left out, as there.
//!
//! The file never changes, so it does not matter as of when it is read: it is a map that the closure looks into, as Flink
//! looks such a table up. All workers share it; it is not state, in no checkpoint, and bids need not go to another worker
//! for it. A table that changes would be a stream of versions and a `temporal_join`.

use std::collections::HashMap;
use std::sync::Arc;

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::made_at;

/// Values by key.
pub type Table = HashMap<u64, String>;

/// A table with a value for every key, in place of the file: 10,000 of them.
pub fn side_input() -> Table {
    (0..10_000).map(|key| (key, format!("value of {key}"))).collect()
}

/// A bid with a value.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    #[serde(with = "iso8601")]
    pub date_time: EventTime,
    pub value: String,
}

pub fn results(bids: Stream<Bid>, side_input: Table) -> Stream<Row> {
    let side_input = Arc::new(side_input);
    bids.filter_map(move |bid| {
        let auction = bid.auction as u64;
        let value = side_input.get(&(auction % 10_000))?.clone();
        Some(Row { auction, bidder: bid.bidder as u64, price: bid.price as u64, date_time: made_at(&bid), value })
    })
}
