//! The queries: each file says what it computes, in the SQL of <https://github.com/nexmark/nexmark>, and where it differs.
//!
//! Every one is a function from the stream of bids to a stream of rows. Columns have the names of the SQL's, in Rust's
//! spelling. All queries group by event time, and give out the results of a window once, when it is over, where SQL
//! keeps correcting what it has said.

mod highest;
pub mod q0;
pub mod q1;
pub mod q11;
pub mod q12;
pub mod q14;
pub mod q15;
pub mod q16;
pub mod q17;
pub mod q2;
pub mod q21;
pub mod q22;
pub mod q5;
pub mod q7;
mod statistics;

use millstream::prelude::*;
use nexmark::event::{Bid, Event};

/// The bids among all events, at the times at which they were made.
pub fn bids(events: Stream<Event>) -> Stream<Bid> {
    events.filter_map(|event| match event {
        Event::Bid(bid) => Some(bid),
        Event::Person(_) | Event::Auction(_) => None,
    })
}

/// When a bid was made.
fn made_at(bid: &Bid) -> EventTime {
    EventTime::from_millis(bid.date_time as i64)
}

/// `0.908 * price`, the price in euros, as the `f64` nearest to it: written out it has the at most three decimals of SQL's
/// exact result.
fn euros(bid: &Bid) -> f64 {
    (bid.price * 908) as f64 / 1_000.0
}

/// `yyyy-MM-dd`, in UTC.
fn day(at: EventTime) -> String {
    at.to_string().chars().take(10).collect()
}
