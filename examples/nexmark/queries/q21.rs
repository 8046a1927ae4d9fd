//! Query 21, channel id: a number for the four great channels, and for others the one in the URL.
//!
//! `SELECT auction, bidder, price, channel, channel_id FROM bid`, where `channel_id` is 0 to 3 when `lower(channel)` is `apple`,
//! `google`, `facebook` or `baidu`, else `REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2)`; bids without either are left out.
//! Ours is the same, with the regular expression written out.

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::Serialize;

/// A bid with its channel's id.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    pub channel: String,
    pub channel_id: String,
}

pub fn results(bids: Stream<Bid>) -> Stream<Row> {
    bids.filter_map(|bid| {
        Some(Row {
            auction: bid.auction as u64,
            bidder: bid.bidder as u64,
            price: bid.price as u64,
            channel_id: channel_id(&bid)?.to_string(),
            channel: bid.channel,
        })
    })
}

fn channel_id(bid: &Bid) -> Option<&str> {
    let is = |name: &str| bid.channel.eq_ignore_ascii_case(name);
    match () {
        () if is("apple") => Some("0"),
        () if is("google") => Some("1"),
        () if is("facebook") => Some("2"),
        () if is("baidu") => Some("3"),
        () => bid.url.split('&').find_map(|part| part.strip_prefix("channel_id=")),
    }
}
