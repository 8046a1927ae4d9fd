//! Query 16, channel statistics: how many bids, bidders and auctions each channel has a day, in all and by rank of price.
//!
//! As query 15, but `GROUP BY channel, day`, and with `max(DATE_FORMAT(dateTime, 'HH:mm')) AS minute`, the minute of the last
//! bid. Ours has the same columns and exact counts. Days are windows of event time in UTC: each gives one row a channel, when
//! it is over, instead of a corrected row with every bid.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

use super::statistics::{Counts, Statistics};
use super::{day, made_at};

/// What the counts are of.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelDay {
    pub channel: String,
    pub day: String,
    pub minute: String,
}

/// A channel's day and its counts, one after the other in the columns.
pub type Row = (ChannelDay, Counts);

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.key_by(|bid| bid.channel.clone())
        .window(Tumbling::of(EventSpan::days(1)))
        .aggregate((Max::of(made_at), Statistics))
        .name("bids-per-channel")
        .map(|(channel, window, (last, counts))| {
            (ChannelDay { channel, day: day(window.start), minute: minute(last) }, counts)
        })
}

/// `HH:mm`, in UTC.
fn minute(at: EventTime) -> String {
    at.to_string().chars().skip(11).take(5).collect()
}
