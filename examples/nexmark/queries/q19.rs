//! Query 19, auction top 10 price: the 10 bids with the highest prices of every auction.
//!
//! `SELECT *` of the bids with `ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC) AS rank_number`, where that is
//! at most 10. The result is a stream of changes, as in SQL, with one column more for the kind of change: a bid is inserted
//! when it comes to be among the first 10, and retracted when it no longer is. There is no `rank_number`: it follows from
//! the prices, and as a column every bid that comes in would change those of all that are lower. Of bids with the same
//! price the first comes first, which SQL leaves open; those of one instant are in the order of split and position.

use millstream::prelude::*;
use nexmark::event::Bid;

use super::changes::{Changed, Made, Row};

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.map(Made::from)
        .key_by(|bid| bid.auction)
        .top(10, |bid| bid.price)
        .name("highest-of-auction")
        .map(|(_, change, bid)| (Changed { change }, bid))
}
