//! Query 7, highest bid: the bids with the highest price of every 10 seconds.
//!
//! `SELECT auction, bidder, price, dateTime, extra FROM bid` joined with `MAX(price)` of `TUMBLE(bid, dateTime, 10 s)` on the
//! price, where the bid is between start and end of the window. Ours gives all bids with the highest price of a window, each
//! as often as it was made. The SQL counts the end as within: a bid made at that very instant for the same price comes up
//! there too, though it belongs to the next window; here it does not.
//!
//! There is one highest bid over all auctions, hence one key, and one worker that keeps it.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::highest::Highest;
use super::made_at;

/// A bid that was the highest of its window.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    .key_by(|_| ())
    .window(Tumbling::of(EventSpan::secs(10)))
    .aggregate(Highest::by(|bid: &Row| bid.price))
    .name("highest")
    .flat_map(|((), _, highest)| highest)
}
