//! Query 17, auction statistics: how many bids an auction has a day, and at which prices.
//!
//! `SELECT auction, DATE_FORMAT(dateTime, 'yyyy-MM-dd') AS day, count(*), count(*) FILTER (WHERE price < 10000), …, min(price),
//! max(price), avg(price), sum(price) FROM bid GROUP BY auction, day`. Ours has the same columns; the average is rounded down
//! to an integer, as there. Days are windows of event time in UTC: each gives one row an auction, when it is over, instead of a
//! corrected row with every bid.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::day;
use super::statistics::rank;

/// The bids on one auction on one day.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub day: String,
    pub total_bids: u64,
    pub rank1_bids: u64,
    pub rank2_bids: u64,
    pub rank3_bids: u64,
    pub min_price: u64,
    pub max_price: u64,
    pub avg_price: u64,
    pub sum_price: u64,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    let price = |bid: &Bid| bid.price as u64;
    let in_rank = |number: usize| Sum::of(move |bid: &Bid| u64::from(rank(bid) == number));
    bids.key_by(|bid| bid.auction as u64)
        .window(Tumbling::of(EventSpan::days(1)))
        .aggregate((Count, in_rank(0), in_rank(1), in_rank(2), Min::of(price), Max::of(price), Sum::of(price)))
        .name("bids-per-auction")
        .map(|(auction, window, (total_bids, rank1_bids, rank2_bids, rank3_bids, min_price, max_price, sum_price))| {
            Row {
                auction,
                day: day(window.start),
                total_bids,
                rank1_bids,
                rank2_bids,
                rank3_bids,
                min_price,
                max_price,
                avg_price: sum_price / total_bids,
                sum_price,
            }
        })
}
