//! Winning bids, which queries 4, 6 and 9 begin with: the highest bid of every auction that was made while it was open.
//!
//! SQL joins `auction` and `bid` on the auction's id `WHERE B.dateTime BETWEEN A.dateTime AND A.expires`, and takes the
//! greatest price; it has to correct itself with every higher bid. Here an auction is decided once: when event time has
//! passed its end, no bid on it can come any more. When the input ends, so do all auctions that are open.
//!
//! **Time**: bids at both ends count, as in SQL. A winner is known one microsecond after its auction's end. **State**: for
//! every auction that is open what is wanted of it, and its highest bid; nothing of those that are over or have not begun.

use millstream::prelude::*;
use millstream::state::snapshot::Value;
use nexmark::event::{Auction, Bid, Event};
use serde::{Deserialize, Serialize};

use super::{INSTANT, at, auctions, bids};

/// An auction with the bid that won it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Won<A, B> {
    pub auction: u64,
    pub expires: EventTime,
    pub about: A,
    pub bid: B,
}

/// The greatest bid of each auction that has any, with what `about` takes from the auction. Bids are compared by what `of` takes from them.
pub fn winning<A: Value, B: Value + Ord>(
    events: Stream<Event>,
    about: impl Fn(Auction) -> A + Clone + Send + 'static,
    of: impl Fn(Bid) -> B + Clone + Send + 'static,
) -> Stream<Won<A, B>> {
    let opened = auctions(events.clone()).map(move |auction| Opened {
        auction: auction.id as u64,
        expires: at(auction.expires),
        about: about(auction),
    });
    let bids = bids(events).map(move |bid| (bid.auction as u64, of(bid)));
    opened
        .key_by(|opened| opened.auction)
        .connect(bids.key_by(|(auction, _)| *auction))
        .process_in_order(Winning)
        .name("winning-bids")
}

#[derive(Clone, Serialize, Deserialize)]
struct Opened<A> {
    auction: u64,
    expires: EventTime,
    about: A,
}

#[derive(Clone)]
struct Winning;

/// An auction that is open, and its greatest bid.
type Open<A, B> = (Opened<A>, Option<B>);

type Context<'a, A, B> = ProcessContext<'a, u64, Open<A, B>, Won<A, B>>;

impl<A: Value, B: Value + Ord> Process<u64, Either<Opened<A>, (u64, B)>> for Winning {
    type State = Open<A, B>;
    type Out = Won<A, B>;

    /// Auctions first, so that bids of the instant in which they open count.
    fn rank(&self, value: &Either<Opened<A>, (u64, B)>) -> u8 {
        u8::from(matches!(value, Either::Second(_)))
    }

    fn on_record(&mut self, cx: &mut Context<'_, A, B>, value: &Either<Opened<A>, (u64, B)>) -> Result<(), Error> {
        match value {
            Either::First(opened) => {
                cx.set_timer(opened.expires + INSTANT);
                *cx.state() = Some((opened.clone(), None));
            }
            // Where nothing is kept the auction has not begun, or is over.
            Either::Second((_, bid)) => {
                if let Some((_, greatest)) = cx.state()
                    && greatest.as_ref().is_none_or(|greatest| greatest < bid)
                {
                    *greatest = Some(bid.clone());
                }
            }
        }
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_, A, B>, _: EventTime) -> Result<(), Error> {
        if let Some((Opened { auction, expires, about }, Some(bid))) = cx.state().take() {
            cx.emit(Won { auction, expires, about, bid });
        }
        Ok(())
    }
}
