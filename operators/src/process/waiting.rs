//! Records that wait until event time has passed them.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use millstream_runtime::error::Result;
use millstream_runtime::time::EventTime;
use millstream_state::codec;
use millstream_state::snapshot::Value;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A record that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Waiting<W> {
    pub(super) at: EventTime,
    pub(super) split: u32,
    pub(super) number: u64,
    pub(super) value: W,
}

/// The records that wait for one key. Many may wait, in any order, and a few leave at a time; so they are a heap by event time, and put
/// into their whole order when they leave.
///
/// It is stored as the list of them in order of event time.
#[derive(Clone, Debug)]
pub(super) struct WaitingRoom<W>(BinaryHeap<Soonest<W>>);

/// The greatest is the one that happened first.
#[derive(Clone, Debug)]
struct Soonest<W>(Waiting<W>);

impl<W> Ord for Soonest<W> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.at.cmp(&self.0.at)
    }
}

impl<W> PartialOrd for Soonest<W> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<W> PartialEq for Soonest<W> {
    fn eq(&self, other: &Self) -> bool {
        self.0.at == other.0.at
    }
}

impl<W> Eq for Soonest<W> {}

impl<W> WaitingRoom<W> {
    pub(super) fn new() -> Self {
        WaitingRoom(BinaryHeap::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, waiting: Waiting<W>) {
        self.0.push(Soonest(waiting));
    }

    /// When the first of them happened.
    pub(super) fn first(&self) -> Option<EventTime> {
        self.0.peek().map(|first| first.0.at)
    }
}

impl<W: Value> WaitingRoom<W> {
    /// Takes those whose time `is_due`, in order of event time, rank, split and number. Results of operators with state have no position of
    /// their own, and what went two ways has one twice: these are in the order of their bytes.
    pub(super) fn take(
        &mut self,
        is_due: impl Fn(EventTime) -> bool,
        rank: impl Fn(&W) -> u8,
    ) -> Result<VecDeque<Waiting<W>>> {
        let mut due = Vec::new();
        while self.first().is_some_and(&is_due) {
            due.extend(self.0.pop().map(|first| first.0));
        }
        // Many keys may be quiet for long, and should not keep the room that they once needed.
        if self.0.is_empty() {
            self.0 = BinaryHeap::new();
        }
        let place = |waiting: &Waiting<W>| (waiting.at, rank(&waiting.value), waiting.split, waiting.number);
        due.sort_by_key(place);
        for like in due.chunk_by_mut(|a, b| place(a) == place(b)).filter(|like| like.len() > 1) {
            let mut failed = None;
            like.sort_by_cached_key(|waiting| {
                codec::encode(&waiting.value).unwrap_or_else(|error| {
                    failed = Some(error);
                    Vec::new()
                })
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(due.into())
    }
}

impl<W: Serialize> Serialize for WaitingRoom<W> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut all: Vec<&Waiting<W>> = self.0.iter().map(|waiting| &waiting.0).collect();
        all.sort_by_key(|waiting| (waiting.at, waiting.split, waiting.number));
        to.collect_seq(all)
    }
}

impl<'de, W: Deserialize<'de>> Deserialize<'de> for WaitingRoom<W> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let all = Vec::<Waiting<W>>::deserialize(from)?;
        Ok(WaitingRoom(all.into_iter().map(Soonest).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// At, split, number and value.
    type Bare = (i64, u32, u64, i64);

    fn waiting(&(at, split, number, value): &Bare) -> Waiting<i64> {
        Waiting { at: EventTime::from_micros(at), split, number, value }
    }

    fn bare(waiting: &Waiting<i64>) -> Bare {
        (waiting.at.micros(), waiting.split, waiting.number, waiting.value)
    }

    fn rank(value: &i64) -> u8 {
        u8::from(value % 3 == 0)
    }

    proptest! {
        /// Rounds of records that come, each before event time goes on, against a sorted list.
        #[test]
        fn what_leaves_is_in_order_however_it_came(
            rounds in prop::collection::vec((prop::collection::vec((0i64..9, 0u32..2, 0u64..2, 0i64..5), 0..12), 0i64..10), 1..6),
        ) {
            let (mut room, mut all) = (WaitingRoom::new(), Vec::<Bare>::new());
            for (records, until) in rounds {
                records.iter().for_each(|record| room.push(waiting(record)));
                all.extend(records);
                all.sort_by_key(|(at, split, number, value)| {
                    (*at, rank(value), *split, *number, codec::encode(value).unwrap())
                });
                room = codec::decode(&codec::encode(&room).unwrap()).unwrap();
                prop_assert_eq!(room.first().map(EventTime::micros), all.first().map(|first| first.0));
                let left = room.take(|at| at.micros() < until, rank).unwrap();
                let expected: Vec<Bare> = all.extract_if(.., |record| record.0 < until).collect();
                prop_assert_eq!(left.iter().map(bare).collect::<Vec<_>>(), expected);
                prop_assert_eq!(room.is_empty(), all.is_empty());
            }
        }
    }

    /// A key with state stays, perhaps for ever. It used to keep the room of all records that had ever waited at once.
    #[test]
    fn when_nothing_waits_any_more_then_no_room_is_kept() {
        let mut room = WaitingRoom::new();
        (0..100).for_each(|number| room.push(waiting(&(1, 0, number, 7))));
        assert_eq!(room.take(|at| at.micros() < 2, |_| 0).unwrap().len(), 100);
        assert_eq!(room.0.capacity(), 0);
    }

    /// Results of a window over many keys, put together under one: that took the square of their number.
    #[test]
    fn many_of_one_instant_and_no_position_leave_by_their_bytes() {
        let mut room = WaitingRoom::new();
        (0..200_000).rev().for_each(|value| room.push(waiting(&(7, 0, 0, value))));
        let left = room.take(|_| true, |_| 0).unwrap();
        let bytes: Vec<Vec<u8>> = left.iter().map(|waiting| codec::encode(&waiting.value).unwrap()).collect();
        assert_eq!(bytes.len(), 200_000);
        assert!(bytes.is_sorted());
    }
}
