//! Query 11, user sessions: how many bids each bidder makes before being quiet for 10 seconds.
//!
//! `SELECT bidder, count(*) AS bid_count, SESSION_START(dateTime, 10 s) AS starttime, SESSION_END(dateTime, 10 s) AS endtime`, grouped by
//! bidder and session.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

/// The bids of one bidder in one session.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub bidder: u64,
    pub bid_count: u64,
    #[serde(with = "iso8601")]
    pub starttime: EventTime,
    #[serde(with = "iso8601")]
    pub endtime: EventTime,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(|bid| bid.bidder as u64)
        .key_by(|bidder| *bidder)
        .window(Session::with_gap(EventSpan::secs(10)))
        .aggregate(Count)
        .name("bids-per-session")
        .map(|(bidder, session, bid_count)| Row { bidder, bid_count, starttime: session.start, endtime: session.end })
}
