//! Query 4, average price for a category: what the auctions of each category went for, on average.
//!
//! `SELECT Q.category, AVG(Q.final) FROM (SELECT MAX(B.price) AS final, A.category FROM auction A, bid B WHERE A.id =
//! B.auction AND B.dateTime BETWEEN A.dateTime AND A.expires GROUP BY A.id, A.category) Q GROUP BY Q.category`. SQL counts
//! an auction from its first bid on, and corrects the average with every higher one. Ours counts it when it is over and its
//! price final (see `winning`), and gives a category's average anew whenever auctions of it have ended, with one column
//! more for when that was. In the end both have the same. The average is rounded down to an integer, as there.

use millstream::prelude::*;
use nexmark::event::Event;
use serde::Serialize;

use super::so_far::SoFar;
use super::winning::{Won, winning};

/// The average of all auctions of a category up to the last one.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub category: u64,
    #[serde(rename = "final")]
    pub average: u64,
    /// When the last one ended.
    #[serde(with = "iso8601")]
    pub expires: EventTime,
}

pub fn results(events: Stream<Event>) -> Stream<Row> {
    let last = Max::of(|won: &Won<u64, u64>| won.expires);
    winning(events, |auction| auction.category as u64, |bid| bid.price as u64)
        .key_by(|won| won.about)
        .process_in_order(SoFar::of((Count, Sum::of(|won: &Won<u64, u64>| won.bid), last)))
        .name("average-of-category")
        .map(|(category, (auctions, sum, expires))| Row { category, average: sum / auctions, expires })
}
