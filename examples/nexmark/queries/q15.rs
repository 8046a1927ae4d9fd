//! Query 15, bidding statistics: how many bids, bidders and auctions a day has, in all and by rank of price.
//!
//! `SELECT DATE_FORMAT(dateTime, 'yyyy-MM-dd') AS day, count(*), count(*) FILTER (WHERE price < 10000), …,
//! count(DISTINCT bidder), …, count(DISTINCT auction), … FROM bid GROUP BY day`. Ours has the same columns and exact counts.
//! Days are windows of event time in UTC: each gives one row, when it is over, instead of a corrected row with every bid.
//!
//! There is one row a day, hence one key, and one worker that counts.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::day;
use super::statistics::{Counts, Statistics};

/// What the counts are of.
#[derive(Clone, Debug, Serialize)]
pub struct Day {
    pub day: String,
}

/// A day and its counts, one after the other in the columns.
pub type Row = (Day, Counts);

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.key_by(|_| ())
        .window(Tumbling::of(EventSpan::days(1)))
        .aggregate(Statistics)
        .name("bids-per-day")
        .map(|((), window, counts)| (Day { day: day(window.start) }, counts))
}
