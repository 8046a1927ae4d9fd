//! Query 12, processing time windows: how many bids each bidder makes in 10 seconds of processing time.
//!
//! `SELECT bidder, count(*) AS bid_count, window_start, window_end` from `TUMBLE(bid, PROCTIME(), 10 s)`, grouped by bidder
//! and window. Ours is the same but for the clock.
//!
//! **Time**: what a wall clock shows differs from run to run, and so would the results, in a replay after a crash as well. So
//! arrival times here are read from a clock that follows the events: it shows the latest event time that has been read in
//! the event's split so far. It never goes back, and stands in every checkpoint, because it is the split's watermark: the
//! source of this query must have [`Watermarks::monotonous`]. An event in order arrives when it was made; one that comes late
//! arrives when the latest one before it was made, and is not late for its window. With the default generator, which keeps
//! events in order, the results do not depend on the number of splits.

use millstream::error::Result;
use millstream::operator::{Cursor, Stage};
use millstream::prelude::*;
use millstream::rows::Rows;
use nexmark::event::Bid;
use serde::Serialize;

/// The bids of one bidder in one window.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub bidder: u64,
    pub bid_count: u64,
    #[serde(with = "iso8601")]
    pub window_start: EventTime,
    #[serde(with = "iso8601")]
    pub window_end: EventTime,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.stage("clock", Clock)
        .map(|bid| bid.bidder as u64)
        .key_by(|bidder| *bidder)
        .window(Tumbling::of(EventSpan::secs(10)))
        .aggregate(Count)
        .name("bids-per-bidder")
        .map(|(bidder, window, bid_count)| Row {
            bidder,
            bid_count,
            window_start: window.start,
            window_end: window.end,
        })
}

/// Gives every bid its time of arrival for its event time.
#[derive(Clone)]
struct Clock;

impl Stage for Clock {
    type In = Bid;
    type Out = Bid;

    /// A record that is not behind its split's watermark has moved the clock to its own time; for the others the clock
    /// shows the watermark that they met. Afterwards none is behind.
    fn apply(&mut self, mut rows: Rows<Bid>, _: &mut Cursor) -> Result<Rows<Bid>> {
        for behind in rows.behind.drain(..) {
            rows.records[behind.row as usize].at = behind.watermark;
        }
        Ok(rows)
    }
}
