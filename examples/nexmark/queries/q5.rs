//! Query 5, hot items: the auctions with the most bids in the last 10 seconds, every 2 seconds.
//!
//! Count the bids of each auction in `HOP(bid, dateTime, 2 s, 10 s)`; join that with the greatest count of each window;
//! `SELECT auction, num` where they are equal. Ours gives the same rows, all ties included, with two columns more for the
//! window.
//!
//! The join is a second window. All counts of a window come at its last instant, so the 2 seconds that end with the window
//! hold these and no others.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::highest::Highest;

const SIZE: EventSpan = EventSpan::secs(10);
const SLIDE: EventSpan = EventSpan::secs(2);

/// An auction that had the most bids of a window.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub num: u64,
    #[serde(with = "iso8601")]
    pub window_start: EventTime,
    #[serde(with = "iso8601")]
    pub window_end: EventTime,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(|bid| bid.auction as u64)
        .key_by(|auction| *auction)
        .window(Sliding::of(SIZE, SLIDE))
        .aggregate(Count)
        .name("bids-per-auction")
        .key_by(|(_, window, _)| *window)
        .window(Tumbling::of(SLIDE))
        .aggregate(Highest::by(|(_, _, num): &Pane<u64, u64>| *num))
        .name("hottest")
        .flat_map(|(_, _, hottest)| hottest)
        .map(|(auction, window, num)| Row { auction, num, window_start: window.start, window_end: window.end })
}
