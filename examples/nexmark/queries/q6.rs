//! Query 6, average selling price by seller: what the last 10 auctions of each seller went for, on average.
//!
//! `SELECT Q.seller, AVG(Q.price) OVER (PARTITION BY Q.seller ORDER BY Q.dateTime ROWS BETWEEN 10 PRECEDING AND CURRENT
//! ROW)` of the winning bids. The benchmark asks for the "last 10 closed auctions", and gives this SQL, which Flink cannot
//! run, as a sketch: it takes 11 rows, and orders them by when the bids were made, which may put one in before what has
//! been told already. Ours does what is asked for: it takes 10, in the order in which auctions end, those of one instant by
//! their ids (see `winning` for when they do). There is a row whenever auctions of a seller have ended, with one column
//! more for when that was. The average is rounded down to an integer, as there.

use millstream::prelude::*;
use nexmark::event::Event;
use serde::Serialize;

use super::so_far::SoFar;
use super::winning::{Won, winning};

/// The average of the last auctions of a seller.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub seller: u64,
    pub avg_price: u64,
    /// When the last one ended.
    #[serde(with = "iso8601")]
    pub expires: EventTime,
}

pub fn results(events: Stream<Event>) -> Stream<Row> {
    winning(events, |auction| auction.seller as u64, |bid| bid.price as u64)
        .key_by(|won| won.about)
        .process_in_order(SoFar::of(Top::of(10, |won: &Won<u64, u64>| (won.expires, won.auction))))
        .name("last-of-seller")
        .filter_map(|(seller, last)| {
            let sum: u64 = last.iter().map(|won| won.bid).sum();
            Some(Row { seller, avg_price: sum / last.len() as u64, expires: last.first()?.expires })
        })
}
