//! The queries: each file says what it computes, in the SQL of <https://github.com/nexmark/nexmark>, and where it differs.
//!
//! Every one is a function from the stream of bids, or of all events, to a stream of rows. Columns have the names of the SQL's,
//! in Rust's spelling. All queries go by event time, and give out the results of a window or an auction once, when it is over,
//! where SQL keeps correcting what it has said. Averages over ever more auctions (queries 4 and 6) are told anew whenever one
//! has ended. Only where nothing is ever over (queries 18 and 19) results are changes.

mod changes;
mod highest;
pub mod q0;
pub mod q1;
pub mod q11;
pub mod q12;
pub mod q13;
pub mod q14;
pub mod q15;
pub mod q16;
pub mod q17;
pub mod q18;
pub mod q19;
pub mod q2;
pub mod q20;
pub mod q21;
pub mod q22;
pub mod q3;
pub mod q4;
pub mod q5;
pub mod q6;
pub mod q7;
pub mod q8;
pub mod q9;
mod referring;
mod so_far;
mod statistics;
mod winning;

use millstream::prelude::*;
use nexmark::event::{Auction, Bid, Event, Person};

/// The least that one time can be after another.
const INSTANT: EventSpan = EventSpan::micros(1);

/// The bids among all events, at the times at which they were made.
pub fn bids(events: Stream<Event>) -> Stream<Bid> {
    events.filter_map(|event| match event {
        Event::Bid(bid) => Some(bid),
        Event::Person(_) | Event::Auction(_) => None,
    })
}

/// The auctions among all events, at the times at which they were opened.
fn auctions(events: Stream<Event>) -> Stream<Auction> {
    events.filter_map(|event| match event {
        Event::Auction(auction) => Some(auction),
        Event::Person(_) | Event::Bid(_) => None,
    })
}

/// The persons among all events, at the times at which they came.
fn persons(events: Stream<Event>) -> Stream<Person> {
    events.filter_map(|event| match event {
        Event::Person(person) => Some(person),
        Event::Auction(_) | Event::Bid(_) => None,
    })
}

/// A time of the generator, which counts milliseconds.
fn at(ms: u64) -> EventTime {
    EventTime::from_millis(ms as i64)
}

/// When a bid was made.
fn made_at(bid: &Bid) -> EventTime {
    at(bid.date_time)
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
