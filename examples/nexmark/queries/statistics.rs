//! What queries 15 and 16 tell of many bids: how many there are, from how many bidders, on how many auctions, in all and in
//! each of three ranks of price.
//!
//! **State**: every bidder and every auction once, with a bit for each rank in which there is a bid; distinct counts are
//! exact. Four sets each would say the same and take four times the room.

use std::collections::HashMap;

use millstream::prelude::*;
use nexmark::event::Bid;
use serde::{Deserialize, Serialize};

/// The rank of a price, from 0: below 10,000, below 1,000,000, and the rest.
pub fn rank(bid: &Bid) -> usize {
    match bid.price {
        ..10_000 => 0,
        10_000..1_000_000 => 1,
        _ => 2,
    }
}

/// The columns that the two queries have in common.
#[derive(Clone, Debug, Serialize)]
pub struct Counts {
    pub total_bids: u64,
    pub rank1_bids: u64,
    pub rank2_bids: u64,
    pub rank3_bids: u64,
    pub total_bidders: u64,
    pub rank1_bidders: u64,
    pub rank2_bidders: u64,
    pub rank3_bidders: u64,
    pub total_auctions: u64,
    pub rank1_auctions: u64,
    pub rank2_auctions: u64,
    pub rank3_auctions: u64,
}

/// The aggregate that makes [`Counts`] of bids.
#[derive(Clone)]
pub struct Statistics;

/// Ids, and the ranks in which each was seen as bits.
type Seen = HashMap<u64, u8>;

/// What [`Statistics`] keeps.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Acc {
    bids: [u64; 3],
    bidders: Seen,
    auctions: Seen,
}

impl Aggregate<Bid> for Statistics {
    type Acc = Acc;
    type Out = Counts;

    fn create(&self) -> Acc {
        Acc::default()
    }

    fn add(&self, acc: &mut Acc, bid: &Bid, _: &Origin) {
        let rank = rank(bid);
        acc.bids[rank] += 1;
        *acc.bidders.entry(bid.bidder as u64).or_default() |= 1 << rank;
        *acc.auctions.entry(bid.auction as u64).or_default() |= 1 << rank;
    }

    fn merge(&self, into: &mut Acc, from: &Acc) {
        into.bids.iter_mut().zip(from.bids).for_each(|(into, from)| *into += from);
        let join = |into: &mut Seen, from: &Seen| {
            from.iter().for_each(|(id, ranks)| *into.entry(*id).or_default() |= ranks);
        };
        join(&mut into.bidders, &from.bidders);
        join(&mut into.auctions, &from.auctions);
    }

    fn finish(&self, acc: &Acc) -> Counts {
        let in_rank = |seen: &Seen, rank: usize| seen.values().filter(|ranks| *ranks >> rank & 1 == 1).count() as u64;
        Counts {
            total_bids: acc.bids.iter().sum(),
            rank1_bids: acc.bids[0],
            rank2_bids: acc.bids[1],
            rank3_bids: acc.bids[2],
            total_bidders: acc.bidders.len() as u64,
            rank1_bidders: in_rank(&acc.bidders, 0),
            rank2_bidders: in_rank(&acc.bidders, 1),
            rank3_bidders: in_rank(&acc.bidders, 2),
            total_auctions: acc.auctions.len() as u64,
            rank1_auctions: in_rank(&acc.auctions, 0),
            rank2_auctions: in_rank(&acc.auctions, 1),
            rank3_auctions: in_rank(&acc.auctions, 2),
        }
    }
}
