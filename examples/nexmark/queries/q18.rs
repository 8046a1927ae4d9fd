//! Query 18, find last bid: the last bid of every bidder on every auction.
//!
//! `SELECT auction, bidder, price, channel, url, dateTime, extra` of the bids whose `ROW_NUMBER() OVER (PARTITION BY
//! bidder, auction ORDER BY dateTime DESC)` is 1. A last bid is only the last so far, so the result is a stream of changes,
//! as in SQL, with one column more for the kind of change: a bid is inserted, and retracted when a later one comes. Bids
//! are looked at in order of event time, so none is inserted after one that was made later. SQL leaves open which of
//! several bids of one instant is the last; here it is the first of them by split and position.

use millstream::prelude::*;
use nexmark::event::Bid;

use super::changes::{Changed, Made, Row};

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(Made::from)
        .key_by(|bid| (bid.bidder, bid.auction))
        .top(1, |bid| bid.date_time)
        .name("last-bid")
        .map(|(_, change, bid)| (Changed { change }, bid))
}
