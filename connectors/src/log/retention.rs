//! Which stretches must go. Pure: it looks at numbers and returns what is to be dropped.
//!
//! Age and size are looked at in stretches, because dropping a range costs the same however long it is. A closed stretch goes
//! when its newest record is too old; when there is too much, the oldest ones go first, over all shards together, so that no
//! child expires before its parents.

use std::collections::VecDeque;

use super::shard::ShardId;
use super::store::Stretch;

/// Records of one shard that must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drop {
    pub shard: ShardId,
    pub first: u64,
    pub end: u64,
    pub bytes: u64,
}

/// `stretches` of every shard, oldest first, and whether it is open. `oldest_ms`: records before it are too old; `most_bytes`:
/// more is too much. However little that is, the last stretch of an open shard only ever goes for its age.
pub(super) fn expired(
    stretches: &[(&VecDeque<Stretch>, bool)],
    oldest_ms: Option<u64>,
    most_bytes: Option<u64>,
) -> Vec<Drop> {
    let too_old = |stretch: &&Stretch| oldest_ms.is_some_and(|oldest| stretch.last_ms < oldest);
    let mut keep_from: Vec<usize> = stretches.iter().map(|(own, _)| own.iter().take_while(too_old).count()).collect();
    let kept = stretches.iter().zip(&keep_from).flat_map(|((own, _), from)| own.range(*from..));
    let mut left: u64 = kept.map(|stretch| stretch.bytes).sum();
    while most_bytes.is_some_and(|most| left > most) {
        let oldest = keep_from.iter().enumerate().filter_map(|(shard, from)| {
            let (own, open) = stretches[shard];
            own.get(*from).filter(|_| !open || from + 1 < own.len()).map(|stretch| (shard, stretch))
        });
        let Some((shard, stretch)) = oldest.min_by_key(|(shard, stretch)| (stretch.last_ms, *shard)) else { break };
        left -= stretch.bytes;
        keep_from[shard] += 1;
    }
    let gone = keep_from.iter().enumerate().filter(|(_, count)| **count > 0);
    let gone = gone.map(|(shard, count)| {
        let own = stretches[shard].0;
        let gone = own.range(..*count);
        let (first, end) = (own[0].first, own[*count - 1].end);
        Drop { shard: shard as ShardId, first, end, bytes: gone.map(|stretch| stretch.bytes).sum() }
    });
    gone.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stretches of 10 records and 100 bytes that end at these times.
    fn shard(ends_ms: &[u64]) -> VecDeque<Stretch> {
        let stretch = |(n, last_ms): (usize, &u64)| {
            let first = n as u64 * 10;
            Stretch { first, end: first + 10, first_ms: last_ms - 1, last_ms: *last_ms, bytes: 100 }
        };
        ends_ms.iter().enumerate().map(stretch).collect()
    }

    fn gone(shard: ShardId, end: u64) -> Drop {
        Drop { shard, first: 0, end, bytes: end * 10 }
    }

    #[test]
    fn a_stretch_goes_when_its_newest_record_is_too_old() {
        let (a, b, c) = (shard(&[10, 20, 30]), shard(&[15, 40]), shard(&[]));
        let shards = [(&a, true), (&b, true), (&c, true)];
        assert_eq!(expired(&shards, None, None), []);
        assert_eq!(expired(&shards, Some(10), None), []);
        assert_eq!(expired(&shards, Some(11), None), [gone(0, 10)]);
        assert_eq!(expired(&shards, Some(30), None), [gone(0, 20), gone(1, 10)]);
        assert_eq!(expired(&shards, Some(99), None), [gone(0, 30), gone(1, 20)]);
    }

    #[test]
    fn when_there_is_too_much_then_the_oldest_goes_whichever_shard_has_it() {
        let (a, b) = (shard(&[10, 20, 30]), shard(&[15, 40]));
        let shards = [(&a, false), (&b, true)];
        assert_eq!(expired(&shards, None, Some(500)), []);
        assert_eq!(expired(&shards, None, Some(499)), [gone(0, 10)]);
        assert_eq!(expired(&shards, None, Some(250)), [gone(0, 20), gone(1, 10)]);
        assert_eq!(expired(&shards, Some(11), Some(400)), [gone(0, 10)], "what is gone by age counts");
        assert_eq!(expired(&shards, None, Some(0)), [gone(0, 30), gone(1, 10)], "the last one of an open shard stays");
    }
}
