//! Query 3, local item suggestion: who sells in Oregon, Idaho or California in category 10, and in which auctions.
//!
//! `SELECT P.name, P.city, P.state, A.id FROM auction AS A INNER JOIN person AS P ON A.seller = P.id WHERE A.category = 10
//! AND (P.state = 'OR' OR P.state = 'ID' OR P.state = 'CA')`. Ours gives the same rows, each once. States are compared
//! whatever their case, because this generator writes them in small letters.
//!
//! There is no window: an auction may come long before its seller or long after. What is kept for that is told in
//! `referring`.

use millstream::prelude::*;
use nexmark::event::Event;
use serde::Serialize;

use super::referring::referring;
use super::{auctions, persons};

const STATES: [&str; 3] = ["OR", "ID", "CA"];

/// A seller and one of their auctions.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub city: String,
    pub state: String,
    pub id: u64,
}

pub fn results(events: Stream<Event>) -> Stream<Row> {
    let sellers = persons(events.clone()).map(|person| {
        let is_local = STATES.iter().any(|state| state.eq_ignore_ascii_case(&person.state));
        (person.id as u64, is_local.then_some((person.name, person.city, person.state)))
    });
    let auctions = auctions(events)
        .filter(|auction| auction.category == 10)
        .map(|auction| (auction.seller as u64, auction.id as u64));
    referring(auctions, sellers).map(|(id, (name, city, state))| Row { name, city, state, id })
}
