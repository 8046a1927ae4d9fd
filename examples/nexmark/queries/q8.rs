//! Query 8, monitor new users: who came and opened an auction within the same 10 seconds.
//!
//! `SELECT P.id, P.name, P.starttime`, where `P` are the persons in `TUMBLE(person, dateTime, 10 s)`, grouped by id, name
//! and window, joined with the sellers in `TUMBLE(auction, dateTime, 10 s)`, grouped by seller and window, where id and
//! window are the same. Ours is the same.

use millstream::prelude::*;
use nexmark::event::Event;
use serde::Serialize;

use super::{auctions, persons};

/// A new user who sells.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub id: u64,
    pub name: String,
    #[serde(with = "iso8601")]
    pub stime: EventTime,
}

pub fn results(events: Stream<Event>) -> Stream<Row> {
    let persons = persons(events.clone()).map(|person| (person.id as u64, person.name)).key_by(|(id, _)| *id);
    let sellers = auctions(events).map(|auction| auction.seller as u64).key_by(|seller| *seller);
    persons
        .connect(sellers)
        .window(Tumbling::of(EventSpan::secs(10)))
        .cogroup()
        // One row however many auctions there are, as by SQL's grouping; a join would have one for each.
        .flat_map(|(_, window, (mut persons, sellers))| {
            if sellers.is_empty() {
                persons.clear();
            }
            persons.sort_unstable();
            persons.dedup();
            persons.into_iter().map(move |(id, name)| Row { id, name, stime: window.start })
        })
}
