//! Rows of queries whose results change: a bid that belongs to the result from now on, or no longer does.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::made_at;

/// A bid, with all its columns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    pub channel: String,
    pub url: String,
    #[serde(with = "iso8601")]
    pub date_time: EventTime,
    pub extra: String,
}

impl From<Bid> for Made {
    fn from(bid: Bid) -> Self {
        Made {
            auction: bid.auction as u64,
            bidder: bid.bidder as u64,
            price: bid.price as u64,
            date_time: made_at(&bid),
            channel: bid.channel,
            url: bid.url,
            extra: bid.extra,
        }
    }
}

/// Whether the bid came into the result or left it.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    pub change: Change,
}

/// A change and its bid, one after the other in the columns.
pub type Row = (Changed, Made);
