//! Shards and their lineage: which shard takes a key, and what splits and merges do. Pure: nothing here touches the disk.
//!
//! Every shard owns a range of the hashes of keys. The open ones cover all hashes, without overlap. A split or a merge closes
//! shards and opens others with their ranges; a closed shard keeps its records until they expire, and its place in the
//! lineage for ever. Children have greater numbers than their parents.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::options::MAX_SHARDS;

/// The number of a shard, from 0; never used again.
pub type ShardId = u32;

/// One shard: its range, its relatives, and which records it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Shard {
    /// Its number.
    pub id: ShardId,
    /// The least hash of a key that it takes.
    pub first_hash: u64,
    /// The greatest hash of a key that it takes.
    pub last_hash: u64,
    /// The one that was split or the two that were merged to make it; none for the first shards of a log.
    pub parents: Vec<ShardId>,
    /// What it was split or merged into. A shard with children is closed.
    pub children: Vec<ShardId>,
    /// The trim horizon: the sequence number of the oldest record that is kept.
    pub trimmed: u64,
    /// The sequence number that the next record gets, or would get if the shard were open.
    pub next: u64,
    /// Bytes of the records that are kept.
    pub bytes: u64,
    /// Ranges of sequence numbers whose records a job has withdrawn, in order. Readers pass over them.
    pub withdrawn: Vec<Range<u64>>,
}

impl Shard {
    fn new(id: ShardId, (first_hash, last_hash): (u64, u64), parents: Vec<ShardId>) -> Self {
        Shard {
            id,
            first_hash,
            last_hash,
            parents,
            children: Vec::new(),
            trimmed: 0,
            next: 0,
            bytes: 0,
            withdrawn: Vec::new(),
        }
    }

    /// Whether it takes no more records.
    pub fn is_closed(&self) -> bool {
        !self.children.is_empty()
    }

    /// `sequence`, or the first one after it that was not withdrawn.
    pub(super) fn past_withdrawn(&self, sequence: u64) -> u64 {
        let at = self.withdrawn.partition_point(|range| range.end <= sequence);
        let range = self.withdrawn.get(at).filter(|range| range.contains(&sequence));
        range.map_or(sequence, |range| range.end)
    }

    /// From now on readers pass over these records. Ranges are kept in order, and those that touch are one.
    pub(super) fn withdraw(&mut self, mut range: Range<u64>) {
        let touches = |other: &Range<u64>| other.start <= range.end && range.start <= other.end;
        let (touching, mut rest): (Vec<_>, Vec<_>) = self.withdrawn.drain(..).partition(touches);
        for other in touching {
            range = range.start.min(other.start)..range.end.max(other.end);
        }
        rest.insert(rest.partition_point(|other| other.end < range.start), range);
        self.withdrawn = rest;
    }
}

/// The `k`th of `n` equal ranges of all hashes.
pub(super) fn part_of_hashes(k: u32, n: u32) -> (u64, u64) {
    let bound = |k: u32| (u128::from(k) << 64) / u128::from(n.max(1));
    (bound(k) as u64, (bound(k + 1) - 1) as u64)
}

/// All shards of a log, and how far the log as a whole has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    /// By number.
    pub shards: Vec<Shard>,
    /// How many records were ever appended: every record has its place in the order of the whole log.
    pub order: u64,
    /// The append time of the newest record, in ms since 1970.
    pub last_ms: u64,
}

impl Table {
    pub fn new(shards: u32) -> Self {
        let shards = (0..shards).map(|k| Shard::new(k, part_of_hashes(k, shards), Vec::new()));
        Table { shards: shards.collect(), order: 0, last_ms: 0 }
    }

    pub fn get(&self, id: ShardId) -> Option<&Shard> {
        self.shards.get(id as usize)
    }

    pub fn open(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter(|shard| !shard.is_closed())
    }

    /// First hashes and numbers of the open shards, in the order of hashes: for [`route`].
    pub fn routes(&self) -> Vec<(u64, ShardId)> {
        let mut routes: Vec<_> = self.open().map(|shard| (shard.first_hash, shard.id)).collect();
        routes.sort_unstable();
        routes
    }

    fn open_shard(&self, id: ShardId) -> Result<&Shard, LogError> {
        const HINT: &str = "`Log::shards` lists the shards, and which of them are open";
        match self.get(id) {
            None => Err(LogError::refused(format!("there is no shard {id}"), HINT)),
            Some(shard) if shard.is_closed() => {
                Err(LogError::refused(format!("shard {id} is closed; its children are {:?}", shard.children), HINT))
            }
            Some(shard) => Ok(shard),
        }
    }

    /// Closes a shard, and opens two with half of its range each.
    pub fn split(&mut self, id: ShardId) -> Result<[ShardId; 2], LogError> {
        let shard = self.open_shard(id)?;
        let (first, last) = (shard.first_hash, shard.last_hash);
        if first == last {
            return Err(LogError::refused(
                format!("shard {id} has only one hash left"),
                "split another one: one key cannot be divided",
            ));
        }
        if self.open().count() as u32 >= MAX_SHARDS {
            return Err(LogError::refused(format!("{MAX_SHARDS} shards are open"), "merge others first"));
        }
        let middle = first + (last - first) / 2;
        let children = [self.child((first, middle), vec![id]), self.child((middle + 1, last), vec![id])];
        self.shards[id as usize].children = children.to_vec();
        Ok(children)
    }

    /// Closes two shards whose ranges touch, and opens one with both.
    pub fn merge(&mut self, a: ShardId, b: ShardId) -> Result<ShardId, LogError> {
        let (mut low, mut high) = (self.open_shard(a)?, self.open_shard(b)?);
        if high.first_hash < low.first_hash {
            std::mem::swap(&mut low, &mut high);
        }
        if low.last_hash.checked_add(1) != Some(high.first_hash) {
            return Err(LogError::refused(
                format!("shards {a} and {b} are no neighbours"),
                "merge two shards of which one begins with the hash after the other's last",
            ));
        }
        let (range, parents) = ((low.first_hash, high.last_hash), vec![low.id, high.id]);
        let child = self.child(range, parents);
        for parent in [a, b] {
            self.shards[parent as usize].children = vec![child];
        }
        Ok(child)
    }

    fn child(&mut self, range: (u64, u64), parents: Vec<ShardId>) -> ShardId {
        let id = self.shards.len() as ShardId;
        self.shards.push(Shard::new(id, range, parents));
        id
    }

    /// Becomes equal to `newer`, a later state of the same log, without copying what has not changed: closed shards stay for ever.
    pub fn follow(&mut self, newer: &Table) {
        for (own, newer) in self.shards.iter_mut().zip(&newer.shards) {
            let ends = |shard: &Shard| (shard.next, shard.trimmed, shard.bytes, shard.is_closed());
            if ends(own) != ends(newer) || own.withdrawn != newer.withdrawn {
                own.clone_from(newer);
            }
        }
        self.shards.extend_from_slice(&newer.shards[self.shards.len()..]);
        (self.order, self.last_ms) = (newer.order, newer.last_ms);
    }

    /// Whether what was read from disk can be a table at all.
    pub fn check(&self) -> Result<(), String> {
        for (at, shard) in self.shards.iter().enumerate() {
            let earlier = |id: &ShardId| (*id as usize) < at;
            let later = |id: &ShardId| (*id as usize) > at && (*id as usize) < self.shards.len();
            if shard.id as usize != at
                || shard.first_hash > shard.last_hash
                || shard.trimmed > shard.next
                || !shard.parents.iter().all(earlier)
                || !shard.children.iter().all(later)
            {
                return Err(format!("shard {at} of the table contradicts itself"));
            }
        }
        let mut expected = Some(0);
        for (first, id) in self.routes() {
            if expected != Some(first) {
                return Err(format!("no shard takes the hashes before {first:016x}"));
            }
            expected = self.shards[id as usize].last_hash.checked_add(1);
        }
        if expected.is_some() {
            return Err("no shard takes the greatest hashes".to_string());
        }
        Ok(())
    }
}

/// Which open shard takes a hash.
pub(super) fn route(routes: &[(u64, ShardId)], hash: u64) -> ShardId {
    let after = routes.partition_point(|(first, _)| *first <= hash);
    routes[after.saturating_sub(1)].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn open_shards_always_cover_every_hash_once(
            shards in 1..9u32,
            steps in prop::collection::vec((any::<bool>(), any::<u32>(), any::<u32>()), 0..40),
            hashes in prop::collection::vec(any::<u64>(), 20),
        ) {
            let mut table = Table::new(shards);
            let mut follower = table.clone();
            for (split, a, b) in steps {
                let open: Vec<_> = table.open().map(|shard| shard.id).collect();
                let pick = |n: u32| open[n as usize % open.len()];
                // Refusals change nothing, and that must be checked as well.
                let before = table.clone();
                let done = if split { table.split(pick(a)).is_ok() } else { table.merge(pick(a), pick(b)).is_ok() };
                if !done {
                    prop_assert_eq!(&table, &before);
                }
                prop_assert_eq!(table.check(), Ok(()));
                table.shards[pick(a) as usize].withdraw(0..u64::from(b));
                table.shards[pick(b) as usize].next += 1;
                table.order += 1;
                if split {
                    follower.follow(&table);
                    prop_assert_eq!(&follower, &table);
                }
            }
            let routes = table.routes();
            for hash in hashes.into_iter().chain([0, u64::MAX]) {
                let owner = &table.shards[route(&routes, hash) as usize];
                prop_assert!(!owner.is_closed() && owner.first_hash <= hash && hash <= owner.last_hash);
            }
        }
    }

    #[test]
    fn closed_shards_and_strangers_are_refused() {
        let mut table = Table::new(4);
        assert_eq!(table.split(1).unwrap(), [4, 5]);
        assert!(table.split(1).unwrap_err().to_string().contains("shard 1 is closed; its children are [4, 5]"));
        assert!(table.split(9).unwrap_err().to_string().contains("no shard 9"));
        assert!(table.merge(0, 2).unwrap_err().to_string().contains("no neighbours"));
        assert!(table.merge(3, 3).unwrap_err().to_string().contains("no neighbours"));
        assert_eq!(table.merge(4, 0).unwrap(), 6);
        assert_eq!(table.get(6).map(|shard| shard.parents.clone()), Some(vec![0, 4]));
    }

    #[test]
    fn a_split_divides_in_the_middle_and_one_hash_is_not_divided() {
        const MIDDLE: u64 = 1 << 63;
        assert_eq!([0, 1].map(|k| part_of_hashes(k, 2)), [(0, MIDDLE - 1), (MIDDLE, u64::MAX)]);
        assert_eq!(part_of_hashes(1, 3), (u64::MAX / 3, u64::MAX / 3 * 2 - 1));
        let mut table = Table::new(1);
        table.split(0).unwrap();
        let ranges: Vec<_> = table.open().map(|shard| (shard.first_hash, shard.last_hash)).collect();
        assert_eq!(ranges, [(0, MIDDLE - 1), (MIDDLE, u64::MAX)]);
        (table.shards[1].last_hash, table.shards[2].first_hash) = (0, 1);
        assert!(table.split(1).unwrap_err().to_string().contains("only one hash"));
        assert_eq!(table.check(), Ok(()));

        let mut most = Table::new(MAX_SHARDS - 1);
        most.split(0).unwrap();
        assert!(most.split(1).unwrap_err().to_string().contains("1024 shards are open"));
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        type Change = fn(&mut Table);
        let mut table = Table::new(2);
        table.split(0).unwrap();
        assert_eq!(table.check(), Ok(()));
        let check = |change: Change| {
            let mut changed = table.clone();
            change(&mut changed);
            changed.check()
        };
        assert_eq!(check(|it| (it.shards[0].trimmed, it.shards[0].next) = (3, 3)), Ok(()), "all has expired");
        let wrong: [(u32, Change); 8] = [
            (1, |it| it.shards[1].id = 0),
            (0, |it| it.shards[0].first_hash = it.shards[0].last_hash + 1),
            (0, |it| it.shards[0].trimmed = 1),
            (2, |it| it.shards[2].parents = vec![2]),
            (2, |it| it.shards[2].parents = vec![0, 3]),
            (0, |it| it.shards[0].children = vec![0]),
            (0, |it| it.shards[0].children = vec![2, 4]),
            (1, |it| it.shards[1].children = vec![0]),
        ];
        for (n, (shard, change)) in wrong.into_iter().enumerate() {
            assert_eq!(check(change), Err(format!("shard {shard} of the table contradicts itself")), "change {n}");
        }
        let gap = check(|it| it.shards[3].first_hash += 1).unwrap_err();
        assert_eq!(gap, "no shard takes the hashes before 4000000000000001");
        for change in [|it: &mut Table| it.shards[1].last_hash -= 1, |it: &mut Table| it.shards.clear()] {
            assert_eq!(check(change).unwrap_err(), "no shard takes the greatest hashes");
        }
    }

    #[test]
    fn what_was_withdrawn_is_passed_over() {
        let mut shard = Shard::new(0, (0, u64::MAX), Vec::new());
        [5..8, 20..21, 2..5, 10..11].into_iter().for_each(|range| shard.withdraw(range));
        assert_eq!(shard.withdrawn, [2..8, 10..11, 20..21]);
        let passed: Vec<_> = [0, 2, 4, 7, 8, 10, 12].into_iter().map(|at| shard.past_withdrawn(at)).collect();
        assert_eq!(passed, [0, 8, 8, 8, 8, 11, 12]);
        shard.withdraw(8..10);
        shard.withdraw(4..6);
        assert_eq!(shard.withdrawn, [2..11, 20..21]);
    }
}
