//! Reads a range of key hashes through the whole lineage of the shards that cover it, in the order of appending.
//!
//! A lane does not care how often its shards are split and merged: where a shard is read to its end it goes on with the
//! children, once all their parents (as far as the lane reads them) are read to their ends. Among several shards it takes the
//! record that was appended first, of all of them. So what a lane yields depends on what is in the log only, not on when it is
//! read: a lane that is opened again at a position yields the same records in the same order.
//!
//! A lane never waits, and reads a bounded number of records at a time.

use std::ops::Range;
use std::sync::Arc;

use millstream_state::hash::hash_key;
use serde::{Deserialize, Serialize};

use super::core::Core;
use super::error::LogError;
use super::options::Start;
use super::record::Stored;
use super::shard::{Shard, ShardId, Table, part_of_hashes};
use super::store::{Records, Store};

/// Where a reader stands: in every shard that it is reading, the sequence number of the record that it reads next. It can be kept
/// as JSON, and read on from later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// The log that it belongs to.
    log: String,
    shards: Vec<(ShardId, u64)>,
    /// Where it ends, if it does: the number of records that the log had ever had when the reader was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<u64>,
}

impl LogPosition {
    /// Shard and sequence number of every record that may be next.
    pub fn shards(&self) -> &[(ShardId, u64)] {
        &self.shards
    }
}

/// Which records belong to a lane.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    first: u64,
    last: u64,
    /// Only records of this key.
    key: Option<String>,
}

impl Keys {
    /// The `k`th of `n` lanes that share all keys.
    pub fn part(k: u32, n: u32) -> Self {
        let (first, last) = part_of_hashes(k, n);
        Keys { first, last, key: None }
    }

    /// All records of one key.
    pub fn key(key: &str) -> Self {
        let hash = hash_key(key);
        Keys { first: hash, last: hash, key: Some(key.to_string()) }
    }

    fn overlaps(&self, shard: &Shard) -> bool {
        self.first <= shard.last_hash && shard.first_hash <= self.last
    }

    /// Whether every record of the shard belongs to it.
    fn contains(&self, shard: &Shard) -> bool {
        self.key.is_none() && self.first <= shard.first_hash && shard.last_hash <= self.last
    }

    fn takes(&self, key: &str) -> bool {
        match &self.key {
            Some(own) => own == key,
            None => (self.first..=self.last).contains(&hash_key(key)),
        }
    }
}

/// How far a [`Lane`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// There is more to read at once.
    More,
    /// It has read everything that is there.
    Caught,
    /// It has read everything that it was to read.
    End,
}

/// See the module.
pub(super) struct Lane {
    core: Arc<Core>,
    range: Keys,
    cursors: Vec<(ShardId, u64)>,
    end: Option<u64>,
    /// The order of the log when it was last read.
    seen: u64,
    /// It is to begin with the oldest record that is kept, and was not read yet.
    fresh: bool,
}

/// The next record of one shard.
struct Head<'a> {
    /// Which cursor it is.
    cursor: usize,
    records: Records<'a>,
    order: u64,
}

impl Lane {
    /// A lane that begins at `start`, and with `bounded` ends where the log ends now.
    pub fn start(core: &Arc<Core>, range: Keys, start: Start, bounded: bool) -> Result<Lane, LogError> {
        // What is looked at may expire at the same time; then the next look finds another horizon.
        let mut begun = Lane::begin(core, &range, start, bounded);
        for _ in 0..100 {
            match begun {
                Err(LogError::Expired { .. }) if !matches!(start, Start::Sequence(..)) => {
                    begun = Lane::begin(core, &range, start, bounded);
                }
                _ => break,
            }
        }
        begun
    }

    fn begin(core: &Arc<Core>, range: &Keys, start: Start, bounded: bool) -> Result<Lane, LogError> {
        let view = core.view();
        let target = Target::of(&core.store, &view, start)?;
        // By number, so parents before children: a shard is read now if its parents have nothing to read any more.
        let mut unread = vec![false; view.shards.len()];
        let mut cursors = Vec::new();
        for (at, shard) in view.shards.iter().enumerate().filter(|(_, shard)| range.overlaps(shard)) {
            let from = target.find(&core.store, shard)?;
            let waits = shard.parents.iter().any(|parent| unread[*parent as usize]);
            unread[at] = waits || !shard.is_closed() || from < shard.next;
            if unread[at] && !waits {
                cursors.push((shard.id, from));
            }
        }
        let end = bounded.then_some(view.order);
        let (range, fresh) = (range.clone(), start == Start::TrimHorizon);
        Ok(Lane { core: Arc::clone(core), range, cursors, end, seen: 0, fresh })
    }

    /// A lane that goes on at `from`, or else begins at `start`.
    pub fn open(
        core: &Arc<Core>,
        range: Keys,
        from: Option<LogPosition>,
        start: Start,
        bounded: bool,
    ) -> Result<Lane, LogError> {
        match from {
            Some(position) => Lane::at(core, range, position),
            None => Lane::start(core, range, start, bounded),
        }
    }

    /// A lane that goes on at `position`.
    pub fn at(core: &Arc<Core>, range: Keys, position: LogPosition) -> Result<Lane, LogError> {
        if position.log != core.id {
            return Err(LogError::mismatch(format!(
                "a position in log {} was to be read on from in log {}, in {}",
                position.log,
                core.id,
                core.store.dir().display()
            )));
        }
        let view = core.view();
        for (id, next) in &position.shards {
            let shard = view.get(*id).filter(|shard| range.overlaps(shard));
            let shard =
                shard.ok_or_else(|| LogError::mismatch(format!("shard {id} has none of the lane's records")))?;
            if *next > shard.next {
                return Err(LogError::mismatch(format!(
                    "shard {id} has {} records, and {next} were read from it: the log in {} was put back to an older state",
                    shard.next,
                    core.store.dir().display()
                )));
            }
        }
        let cursors = position.shards;
        Ok(Lane { core: Arc::clone(core), range, cursors, end: position.end, seen: 0, fresh: false })
    }

    pub fn position(&self) -> LogPosition {
        LogPosition { log: self.core.id.clone(), shards: self.cursors.clone(), end: self.end }
    }

    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether there may be something that it has not seen: for a look between announcing to sleep and sleeping.
    pub fn is_behind(&self) -> bool {
        self.core.view().order != self.seen
    }

    /// Hands up to `max` records to `each`, and looks at no more than `most`. A record at which `each` fails counts as not read.
    pub fn read(
        &mut self,
        max: usize,
        most: usize,
        mut each: impl FnMut(&Stored<'_>) -> Result<(), LogError>,
    ) -> Result<Reached, LogError> {
        let core = Arc::clone(&self.core);
        let view = core.view();
        let (mut given, mut looked) = (0, 0);
        let mut fresh = std::mem::take(&mut self.fresh);
        'lineage: loop {
            self.descend(&view, std::mem::take(&mut fresh))?;
            let mut heads = self.heads(&core.store, &view)?;
            loop {
                let least = heads.iter().enumerate().min_by_key(|(_, head)| head.order);
                let Some((at, _)) = least else {
                    self.seen = view.order;
                    return Ok(if self.end.is_some() { Reached::End } else { Reached::Caught });
                };
                let rest = heads.iter().enumerate().filter(|(other, _)| *other != at);
                let limit = rest.map(|(_, head)| head.order).min().unwrap_or(u64::MAX);
                let head = &mut heads[at];
                let cursor = &mut self.cursors[head.cursor];
                let shard = &view.shards[cursor.0 as usize];
                let whole = self.range.contains(shard);
                // The next one of this shard may come before those of others.
                while head.order < limit {
                    if self.end.is_some_and(|end| head.order >= end) {
                        self.seen = view.order;
                        return Ok(Reached::End);
                    }
                    if given == max || looked == most {
                        return Ok(Reached::More);
                    }
                    looked += 1;
                    let record = expect(&core, &head.records, *cursor)?;
                    if whole || self.range.takes(record.key) {
                        each(&record)?;
                        given += 1;
                    }
                    let after = shard.past_withdrawn(cursor.1 + 1);
                    if after == cursor.1 + 1 {
                        head.records.next();
                    } else {
                        head.records.seek(after);
                    }
                    cursor.1 = after;
                    if after >= shard.next {
                        heads.swap_remove(at);
                        if shard.is_closed() {
                            // Its children may have records before those that wait in other shards.
                            continue 'lineage;
                        }
                        break;
                    }
                    head.order = order_of_next(&core, &head.records, *cursor)?;
                }
            }
        }
    }

    /// Goes on from shards that are read to their ends to their children, and checks that nothing has expired. If it is `fresh`, it
    /// begins behind what has.
    fn descend(&mut self, view: &Table, fresh: bool) -> Result<(), LogError> {
        loop {
            for (id, next) in &mut self.cursors {
                let shard = &view.shards[*id as usize];
                if fresh && *next < shard.trimmed {
                    *next = shard.trimmed;
                }
                if *next < shard.trimmed {
                    return Err(LogError::Expired { shard: *id, first: *next, last: shard.trimmed - 1 });
                }
                *next = shard.past_withdrawn(*next);
            }
            let read = |(id, next): &(ShardId, u64)| {
                let shard = &view.shards[*id as usize];
                shard.is_closed() && *next >= shard.next
            };
            let Some(at) = self.cursors.iter().position(read) else { return Ok(()) };
            let (id, _) = self.cursors.remove(at);
            // Whatever is still read, and all that comes of it. Children have greater numbers than parents.
            let mut unread = vec![false; view.shards.len()];
            self.cursors.iter().for_each(|(id, _)| unread[*id as usize] = true);
            for (at, shard) in view.shards.iter().enumerate() {
                unread[at] |= shard.parents.iter().any(|parent| unread[*parent as usize]);
            }
            let children = view.shards[id as usize].children.iter().map(|child| &view.shards[*child as usize]);
            for child in children.filter(|child| self.range.overlaps(child) && !unread[child.id as usize]) {
                self.cursors.push((child.id, 0));
            }
        }
    }

    fn heads<'a>(&self, store: &'a Store, view: &Table) -> Result<Vec<Head<'a>>, LogError> {
        let mut heads = Vec::new();
        for (cursor, (id, next)) in self.cursors.iter().enumerate() {
            let shard = &view.shards[*id as usize];
            if *next < shard.next {
                let records = store.records_from(*id, *next, shard.next)?;
                let order = order_of_next(&self.core, &records, (*id, *next))?;
                heads.push(Head { cursor, records, order });
            }
        }
        Ok(heads)
    }

    /// Goes on behind everything that has expired, and says what that is. When nothing has, the list is empty.
    pub fn skip_expired(&mut self) -> Vec<(ShardId, Range<u64>)> {
        let view = self.core.view();
        let mut lost = Vec::new();
        for (id, next) in &mut self.cursors {
            let trimmed = view.shards[*id as usize].trimmed;
            if *next < trimmed {
                lost.push((*id, *next..trimmed));
                *next = trimmed;
            }
        }
        lost
    }
}

/// The record that a reader stands at must be the one with its number: numbers have no gaps.
fn expect<'a>(core: &Core, records: &'a Records<'_>, (id, next): (ShardId, u64)) -> Result<Stored<'a>, LogError> {
    match records.get()? {
        Some(record) if record.sequence == next => Ok(record),
        // It may have expired since the reader looked.
        _ => match core.view().get(id).map(|shard| shard.trimmed) {
            Some(trimmed) if trimmed > next => Err(LogError::Expired { shard: id, first: next, last: trimmed - 1 }),
            _ => Err(LogError::damaged(core.store.dir(), format!("record {next} of shard {id} is missing"))),
        },
    }
}

fn order_of_next(core: &Core, records: &Records<'_>, (id, next): (ShardId, u64)) -> Result<u64, LogError> {
    match records.order(next) {
        Some(order) => Ok(order),
        None => Ok(expect(core, records, (id, next))?.order),
    }
}

/// What the first record to be read has at least.
enum Target {
    Order(u64),
    Time(u64),
}

impl Target {
    fn of(store: &Store, view: &Table, start: Start) -> Result<Target, LogError> {
        Ok(match start {
            Start::TrimHorizon => Target::Order(0),
            Start::Latest => Target::Order(view.order),
            // Part of a millisecond is after its beginning.
            Start::Time(at) => Target::Time(u64::try_from(at.micros()).unwrap_or(0).div_ceil(1_000)),
            Start::Sequence(id, sequence) => {
                const HINT: &str = "`Log::shards` says which sequence numbers a shard has";
                let shard = view.get(id).ok_or_else(|| LogError::refused(format!("there is no shard {id}"), HINT))?;
                if sequence < shard.trimmed {
                    return Err(LogError::Expired { shard: id, first: sequence, last: shard.trimmed - 1 });
                }
                if sequence >= shard.next {
                    let text = format!("shard {id} has no record {sequence} yet: the next one is {}", shard.next);
                    return Err(LogError::refused(text, HINT));
                }
                Target::Order(order_of(store, id, sequence)?)
            }
        })
    }

    /// The first record of the shard that is to be read: order and time rise with the sequence numbers, which have no gaps.
    fn find(&self, store: &Store, shard: &Shard) -> Result<u64, LogError> {
        let (mut low, mut high) = (shard.trimmed, shard.next);
        if let Target::Order(0) = self {
            return Ok(low);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            let before = match self {
                Target::Order(order) => order_of(store, shard.id, middle)? < *order,
                Target::Time(ms) => {
                    store.with_record(shard.id, middle, |record| record.ms)?.ok_or_else(gone(shard.id, middle))? < *ms
                }
            };
            if before { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }
}

fn order_of(store: &Store, shard: ShardId, sequence: u64) -> Result<u64, LogError> {
    store.with_record(shard, sequence, |record| record.order)?.ok_or_else(gone(shard, sequence))
}

/// Looked for and not there, though a moment ago it had not expired.
fn gone(shard: ShardId, sequence: u64) -> impl Fn() -> LogError {
    move || LogError::Expired { shard, first: sequence, last: sequence }
}

#[cfg(test)]
mod tests {
    use super::super::core::tests::core;
    use super::super::record::Entry;
    use super::*;

    /// A core with ten records of these keys in turn, in one shard.
    fn with_records(keys: &[&str]) -> (tempfile::TempDir, Arc<Core>) {
        let (dir, core) = core();
        let mut table = (*core.view()).clone();
        let (mut batch, mut frame) = (Default::default(), Vec::new());
        for (n, key) in (0..10).zip(keys.iter().cycle()) {
            Entry::json(*key, &n).unwrap().write(n, 1_000 + n, &mut frame);
            core.store.put_record(&mut batch, (0, n), &frame).unwrap();
        }
        core.store.write(batch, true).unwrap();
        (table.shards[0].next, table.order) = (10, 10);
        core.publish(&table);
        (dir, core)
    }

    fn drop_records(core: &Core, records: Range<u64>) {
        let mut batch = Default::default();
        core.store.drop_records(&mut batch, 0, records.start, records.end).unwrap();
        core.store.write(batch, true).unwrap();
    }

    fn trim(core: &Core, trimmed: u64) {
        let mut table = (*core.view()).clone();
        table.shards[0].trimmed = trimmed;
        core.publish(&table);
    }

    fn read(lane: &mut Lane, max: usize, most: usize) -> (Vec<u64>, Result<Reached, LogError>) {
        let mut sequences = Vec::new();
        let reached = lane.read(max, most, |stored| {
            sequences.push(stored.sequence);
            Ok(())
        });
        (sequences, reached)
    }

    fn all() -> Keys {
        Keys::part(0, 1)
    }

    #[test]
    fn a_record_that_is_missing_is_damage_and_one_behind_the_horizon_has_expired() {
        let (_dir, core) = with_records(&["k"]);
        let mut lane = Lane::start(&core, all(), Start::TrimHorizon, false).unwrap();
        drop_records(&core, 2..4);
        let (sequences, reached) = read(&mut lane, 100, 100);
        let error = reached.unwrap_err();
        assert!(error.to_string().contains("record 2 of shard 0 is missing"), "{error}");
        assert_eq!(sequences, [0, 1]);

        // The horizon may move after a reader has looked where it is.
        trim(&core, 3);
        let at = |next| expect(&core, &core.store.records_from(0, next, 10).unwrap(), (0, next)).map(|it| it.sequence);
        assert!(matches!(at(2), Err(LogError::Expired { shard: 0, first: 2, last: 2 })), "{:?}", at(2));
        assert!(matches!(at(3), Err(LogError::Store(_))), "{:?}", at(3));
        assert!(matches!(at(4), Ok(4)), "{:?}", at(4));
        trim(&core, 4);
        assert!(matches!(at(2), Err(LogError::Expired { shard: 0, first: 2, last: 3 })), "{:?}", at(2));
    }

    #[test]
    fn what_expired_is_named_and_passed_over() {
        let (_dir, core) = with_records(&["k"]);
        let mut lane = Lane::start(&core, all(), Start::Sequence(0, 1), false).unwrap();
        assert_eq!(lane.skip_expired(), []);
        trim(&core, 4);
        let (_, reached) = read(&mut lane, 1, 1);
        assert!(matches!(reached, Err(LogError::Expired { shard: 0, first: 1, last: 3 })), "{reached:?}");
        let start = Lane::start(&core, all(), Start::Sequence(0, 2), false).map(drop);
        assert!(matches!(start, Err(LogError::Expired { shard: 0, first: 2, last: 3 })), "{start:?}");
        assert_eq!(lane.skip_expired(), [(0, 1..4)]);
        assert_eq!(lane.skip_expired(), []);
        assert_eq!(read(&mut lane, 2, 2).0, [4, 5]);
    }

    #[test]
    fn a_lane_looks_at_no_more_records_than_it_may() {
        let (_dir, core) = with_records(&["a", "b"]);
        let mut lane = Lane::start(&core, Keys::key("b"), Start::TrimHorizon, false).unwrap();
        for expected in [vec![1], vec![3, 5], vec![7], vec![9]] {
            let (sequences, reached) = read(&mut lane, 100, 3);
            let end = expected == [9];
            assert_eq!((sequences, reached.unwrap()), (expected, if end { Reached::Caught } else { Reached::More }));
        }
    }

    #[test]
    fn a_lane_is_behind_until_it_has_looked_at_everything() {
        let (_dir, core) = with_records(&["k"]);
        let mut lane = Lane::start(&core, all(), Start::TrimHorizon, false).unwrap();
        assert!(lane.is_behind());
        read(&mut lane, 5, 5).1.unwrap();
        assert!(lane.is_behind());
        read(&mut lane, 10, 10).1.unwrap();
        assert!(!lane.is_behind());
        let mut table = (*core.view()).clone();
        table.order += 1;
        core.publish(&table);
        assert!(lane.is_behind());
    }

    #[test]
    fn a_lane_stands_where_its_next_record_may_be_and_nowhere_else() {
        let (_dir, core) = with_records(&["k"]);
        let mut table = (*core.view()).clone();
        table.split(0).unwrap();
        core.publish(&table);
        let [mut low, mut high] =
            [0, 1].map(|k| Lane::start(&core, Keys::part(k, 2), Start::TrimHorizon, false).unwrap());
        for (lane, child) in [(&mut low, 1), (&mut high, 2)] {
            assert_eq!(lane.position().shards(), [(0, 0)], "the parent comes first");
            assert_eq!(read(lane, 100, 100).1.unwrap(), Reached::Caught);
            assert_eq!(lane.position().shards(), [(child, 0)]);
        }
        let end = Lane::start(&core, Keys::part(0, 2), Start::Latest, false).unwrap();
        assert_eq!(end.position().shards(), [(1, 0)]);
        Lane::at(&core, Keys::part(0, 2), low.position()).unwrap();
        let error = Lane::at(&core, Keys::part(0, 2), high.position()).err().unwrap();
        assert!(error.to_string().contains("shard 2 has none of the lane's records"), "{error}");
    }
}
