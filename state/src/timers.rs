//! Which keys are to be woken, and when: what sessions, timers and state that expires are fired by.
//!
//! A timer is a hint. Whoever sets one keeps in the key's own value what it is about; when the key is woken, it looks there what is
//! due, may find nothing, and sets a timer for what is next. So only the first timer of a key counts, and one that is no longer wanted need
//! not be found again: it wakes for nothing, once. Only that of a key for which nothing is kept any more is [looked for](Timers::forget): there may be
//! many of them, and it may be long until they would go by themselves.
//!
//! **State**: keys stand in buckets of time, the wider the further away: of 64 buckets of 66 ms, 64 of 4 s, 64 of 4 minutes, and so on. When
//! time comes to a bucket, its keys move to narrower ones, so each moves a few times at most, and there are never many buckets,
//! however far away timers are. Buckets are slices ([`SliceState`]): they go as a whole, and leave memory where
//! that is limited. Keys of the narrowest bucket that time is in are sorted in memory, which no checkpoint needs to know.
//!
//! **Source**: hierarchical timing wheels, Varghese and Lauck (SOSP 1987), with times in place of positions on a wheel: so
//! buckets mean the same on every worker, and after a restart.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use crate::Result;
use crate::evolve::Migrations;
use crate::hash::hash_key;
use crate::migrate::StateForm;
use crate::reader::Reader;
use crate::rocks::Stored;
use crate::slices::SliceState;
use crate::snapshot::{Frozen, Key, Pressure, State, StoredEntry};

/// Timers of keys, sharded by key group. Times are numbers that only the caller gives a meaning.
#[derive(Debug)]
pub struct Timers<K> {
    /// By bucket, for each key the first time in it.
    buckets: SliceState<K, i64>,
    /// How far time has come.
    now: i64,
    /// The narrowest bucket that time is in, once its keys are among the next ones.
    open: Option<Bucket>,
    next: BinaryHeap<Reverse<Next<K>>>,
}

/// A stretch of time: `width` is 0 for the narrowest ones, and each is 64 times as wide as the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    start: i64,
    width: u32,
}

/// The narrowest buckets have 2 to the power of this.
const NARROW: u32 = 16;
/// Buckets of one width, from where time is now to the first of the next width, and what each is divided into: 2 to the power of this.
const FAN: u32 = 6;
/// The widest buckets; the whole of time is two of them.
const WIDEST: u32 = 8;
/// Numbers of buckets leave so many bits for their widths.
const WIDTHS: u32 = 4;

impl Bucket {
    fn shift(width: u32) -> u32 {
        (NARROW + width * FAN).min(63)
    }

    fn of(at: i64, width: u32) -> Self {
        let shift = Self::shift(width);
        Bucket { start: at >> shift << shift, width }
    }

    /// The bucket for `at` when it is `now`.
    fn from(at: i64, now: i64) -> Self {
        let near = |width: &u32| (at >> Self::shift(*width)) - (now >> Self::shift(*width)) < 1 << FAN;
        Self::of(at, (0..WIDEST).find(near).unwrap_or(WIDEST))
    }

    /// In order of where they start.
    fn number(self) -> i64 {
        (self.start >> NARROW << WIDTHS) | i64::from(self.width)
    }

    fn numbered(number: i64) -> Self {
        let width = number as u32 & ((1 << WIDTHS) - 1);
        Bucket { start: number >> WIDTHS << NARROW, width: width.min(WIDEST) }
    }

    /// Its last instant.
    fn last(self) -> i64 {
        self.start | (i64::MAX >> (63 - Self::shift(self.width)))
    }
}

/// A key that is next, in order of times.
#[derive(Debug)]
struct Next<K> {
    at: i64,
    hash: u64,
    key: K,
}

impl<K> PartialEq for Next<K> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.hash) == (other.at, other.hash)
    }
}

impl<K> Eq for Next<K> {}

impl<K> PartialOrd for Next<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Next<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.hash).cmp(&(other.at, other.hash))
    }
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Timers { buckets: SliceState::default(), now: i64::MIN, open: None, next: BinaryHeap::new() }
    }
}

impl<K: Key> Timers<K> {
    /// Has `key`, whose hash is `hash`, woken when time has come to `at`: by the next [`due`](Self::due), if it has already.
    ///
    /// # Errors
    /// When timers cannot be read back.
    pub fn wake(&mut self, at: i64, hash: u64, key: &K) -> Result<()> {
        let bucket = Bucket::from(at, self.now);
        self.buckets.load([bucket.number()])?;
        let first = self.buckets.update(bucket.number(), hash, key, || at);
        *first = at.min(*first);
        if self.open == Some(bucket) {
            self.next.push(Reverse(Next { at, hash, key: key.clone() }));
        }
        Ok(())
    }

    /// A key that was to be woken at `at`, and is not to be woken at all, need not be. It is anyhow where its bucket is not in memory.
    pub fn forget(&mut self, at: i64, hash: u64, key: &K) {
        // Which it is depends on when it was put there.
        for width in 0..=WIDEST {
            self.buckets.take_key(Bucket::of(at, width).number(), hash, key);
        }
    }

    /// When a key is to be woken next, or some time before that. Exact where it is soon.
    pub fn next(&self) -> Option<i64> {
        let open = self.open.map(Bucket::number);
        let mut buckets = self.buckets.first();
        if buckets == open {
            buckets = buckets.and_then(|first| self.buckets.next_from(first + 1));
        }
        let soon = self.next.peek().map(|Reverse(next)| next.at);
        soon.into_iter().chain(buckets.map(|number| Bucket::numbered(number).start)).min()
    }

    /// Moves time on to `now` and hands over keys that are to be woken, at most so many, in no particular order; whether these were
    /// all. A key may come more than once. All its timers may be gone, also later ones: it has to set the next one anew.
    ///
    /// # Errors
    /// When timers cannot be read back.
    pub fn due(&mut self, now: i64, most: usize, mut each: impl FnMut(u64, K)) -> Result<bool> {
        self.now = self.now.max(now);
        let mut left = most;
        if !self.wake_next(now, &mut left, &mut each) {
            return Ok(false);
        }
        let mut from = i64::MIN;
        while let Some(number) = self.buckets.next_from(from) {
            let bucket = Bucket::numbered(number);
            if bucket.start > now {
                break;
            }
            if bucket.width == 0 && bucket.last() > now {
                self.open(bucket)?;
                from = number + 1;
                continue;
            }
            // Its keys were among the next ones, and all of these are awake.
            let is_over = self.open == Some(bucket);
            self.buckets.load([number])?;
            let mut later = Vec::new();
            let mut taken = 0;
            let all = self.buckets.take_some(number, left, |key, at| {
                taken += 1;
                let hash = hash_key(&key);
                match at <= now {
                    true if is_over => {}
                    true => each(hash, key),
                    false => later.push((at, hash, key)),
                }
            });
            for (at, hash, key) in later {
                self.wake(at, hash, &key)?;
            }
            if !all {
                return Ok(false);
            }
            left -= taken;
        }
        // Those of the bucket that was opened just now.
        Ok(self.wake_next(now, &mut left, &mut each))
    }

    /// Hands over those of the next keys whose time has come, at most `left`, which becomes what is left of it; whether these were all.
    fn wake_next(&mut self, now: i64, left: &mut usize, each: &mut impl FnMut(u64, K)) -> bool {
        while self.next.peek().is_some_and(|Reverse(next)| next.at <= now) {
            if *left == 0 {
                return false;
            }
            *left -= 1;
            self.next.pop().into_iter().for_each(|Reverse(next)| each(next.hash, next.key));
        }
        true
    }

    /// Time is in `bucket`: its keys are next.
    fn open(&mut self, bucket: Bucket) -> Result<()> {
        if self.open == Some(bucket) {
            return Ok(());
        }
        let number = bucket.number();
        self.buckets.load([number])?;
        self.next.clear();
        for (_, key, at) in self.buckets.range(number, number + 1) {
            self.next.push(Reverse(Next { at: *at, hash: hash_key(key), key: key.clone() }));
        }
        self.open = Some(bucket);
        Ok(())
    }

    /// What stretch of time a number in this state stands for.
    pub fn times(number: i64) -> Range<i64> {
        let bucket = Bucket::numbered(number);
        bucket.start..bucket.last().saturating_add(1)
    }
}

/// That of its buckets. What is sorted in memory is found in them again.
impl<K: Key> State for Timers<K> {
    fn shape(&self) -> String {
        format!("timers by `{}`", std::any::type_name::<K>())
    }

    fn readers(&self) -> Vec<Reader> {
        self.buckets.readers()
    }

    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        vec![StateForm::of_entries::<K, i64>("timers", migrations)]
    }

    fn track(&mut self) {
        self.buckets.track();
    }

    fn begin_freeze(&mut self) {
        self.buckets.begin_freeze();
    }

    fn copy_some(&mut self, most: &mut usize) -> bool {
        self.buckets.copy_some(most)
    }

    fn take_frozen(&mut self) -> Option<Box<dyn Frozen>> {
        self.buckets.take_frozen()
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        self.buckets.restore(entry)
    }

    fn restored(&mut self) {
        self.buckets.restored();
    }

    fn entries(&self) -> u64 {
        self.buckets.entries()
    }

    fn limit(&mut self, bytes: usize, stored: Stored) {
        self.buckets.limit(bytes, stored);
    }

    fn wants(&self, entry: &StoredEntry<'_>) -> bool {
        self.buckets.wants(entry)
    }

    fn bytes(&self) -> usize {
        self.buckets.bytes() + self.next.capacity() * size_of::<Next<K>>()
    }

    fn relieve(&mut self) -> Pressure {
        self.buckets.relieve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_group::KEY_GROUPS;
    use crate::rocks::tests::{Disk, OPERATOR, restore};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn buckets_contain_their_times(at in any::<i64>(), now in any::<i64>(), near in -5_000_000_000i64..5_000_000_000) {
            for at in [at, now.saturating_add(near)] {
                let bucket = Bucket::from(at, now);
                prop_assert!(bucket.start <= at && at <= bucket.last(), "{bucket:?}");
                prop_assert_eq!(Bucket::numbered(bucket.number()), bucket);
                prop_assert!(bucket.start > now || bucket.last() >= now || at < now, "{bucket:?} is not over");
                // What moves on when time comes to it moves to a narrower one.
                let again = Bucket::from(at, bucket.start.max(now));
                prop_assert!(again.width < bucket.width || bucket.width == 0, "{bucket:?} {again:?}");
                let other = Bucket::from(now, at);
                prop_assert_eq!(other.number().cmp(&bucket.number()), (other.start, other.width).cmp(&(bucket.start, bucket.width)));
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A key and how much later than now.
        Wake(u16, i64),
        /// How much time passes, and how many keys are taken at once.
        Pass(i64, usize),
        /// A key that has one time is not to be woken any more.
        Forget(u16),
        Save,
        /// A start from what was saved last, with this limit in bytes or none.
        Crash(Option<usize>),
    }

    fn spans() -> impl Strategy<Value = i64> {
        prop_oneof![-70_000..200_000i64, 0..20_000_000i64, 0..40_000_000_000i64, any::<i64>(), Just(i64::MAX), Just(0)]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            12 => (0..50u16, spans()).prop_map(|(key, span)| Step::Wake(key, span)),
            6 => (spans().prop_map(|span| span.saturating_abs()), 1..20usize).prop_map(|(span, most)| Step::Pass(span, most)),
            4 => (0..50u16).prop_map(Step::Forget),
            2 => Just(Step::Save),
            1 => prop_oneof![Just(None), Just(Some(0)), Just(Some(4_000))].prop_map(Step::Crash),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Every key is woken at the first `due` at or after each of its times, or before that for a time that is over.
        #[test]
        fn keys_are_woken_when_it_is_time(start in any::<i64>(), steps in steps()) {
            let mut disk = Disk::new();
            let mut timers = Timers::<u16>::default();
            timers.track();
            // What must still be woken, and all times there ever were.
            let (mut wanted, mut all) = (BTreeMap::<u16, BTreeSet<i64>>::new(), BTreeSet::new());
            let (mut now, mut saved) = (start, (start, wanted.clone()));
            for step in steps {
                match step {
                    Step::Wake(key, span) => {
                        let at = now.saturating_add(span);
                        timers.wake(at, hash_key(&key), &key).unwrap();
                        wanted.entry(key).or_default().insert(at);
                        all.insert((key, at));
                    }
                    Step::Pass(span, most) => {
                        now = now.saturating_add(span);
                        let mut woken = BTreeSet::new();
                        let mut rounds = 0;
                        loop {
                            let mut count = 0;
                            let done = timers.due(now, most, |hash, key| {
                                assert_eq!(hash, hash_key(&key));
                                count += 1;
                                woken.insert(key);
                            });
                            assert!(count <= most, "{count} of {most}");
                            rounds += 1;
                            assert!(rounds < 2_000, "it comes to no end");
                            if done.unwrap() {
                                break;
                            }
                        }
                        let may = |key: &u16| all.range((*key, i64::MIN)..=(*key, now)).next().is_some();
                        prop_assert!(woken.iter().all(may), "woken too soon: {woken:?}");
                        for (key, times) in &mut wanted {
                            let was_due = times.first().is_some_and(|at| *at <= now);
                            times.retain(|at| *at > now);
                            prop_assert!(!was_due || woken.contains(key), "{key} is not woken at {now}");
                            if let (true, Some(next)) = (woken.contains(key), times.first()) {
                                timers.wake(*next, hash_key(key), key).unwrap();
                            }
                        }
                    }
                    Step::Forget(key) => {
                        if wanted.get(&key).is_some_and(|times| times.len() == 1) {
                            let at = wanted.remove(&key).unwrap().pop_first().unwrap();
                            timers.forget(at, hash_key(&key), &key);
                        }
                    }
                    Step::Save => {
                        disk.save_limited(&mut timers);
                        timers.relieve();
                        saved = (now, wanted.clone());
                    }
                    Step::Crash(limit) => {
                        timers = Timers::default();
                        timers.track();
                        limit.into_iter().for_each(|bytes| timers.limit(bytes, disk.db.stored(OPERATOR)));
                        restore(&disk.db, &mut timers, 0..KEY_GROUPS);
                        (now, wanted) = saved.clone();
                    }
                }
            }
            timers.due(i64::MAX, usize::MAX, |_, key| drop(wanted.remove(&key))).unwrap();
            wanted.retain(|_, times| !times.is_empty());
            prop_assert!(wanted.is_empty(), "never woken: {wanted:?}");
            prop_assert_eq!(timers.entries(), 0, "what is over is gone");
        }
    }

    /// Orders that are paid within minutes, each with a timer for what happens after a month if they are not.
    #[test]
    fn keys_that_are_forgotten_are_not_kept() {
        const MINUTE: i64 = 60_000_000;
        let mut timers = Timers::<u64>::default();
        for minute in 0..100_000i64 {
            let (key, due) = (minute as u64, |set: i64| (set + 43_200) * MINUTE);
            timers.wake(due(minute), hash_key(&key), &key).unwrap();
            if let Some(paid) = key.checked_sub(5) {
                timers.forget(due(minute - 5), hash_key(&paid), &paid);
            }
            timers.due(minute * MINUTE, 1_000, |_, key| panic!("{key} is woken")).unwrap();
            assert!(timers.entries() <= 6, "{} entries", timers.entries());
        }
    }

    /// Two days of timers, one a second, each set a day ahead: there are few buckets, and keys move few times.
    #[test]
    fn buckets_are_few_and_keys_move_little() {
        const SECOND: i64 = 1_000_000;
        let mut timers = Timers::<u64>::default();
        let (mut woken, mut most) = (0, 0);
        for second in 0..200_000i64 {
            let key = second as u64;
            timers.wake((second + 86_400) * SECOND, hash_key(&key), &key).unwrap();
            let each = |_, key: u64| {
                assert!(key as i64 + 86_400 <= second, "{key} at {second}");
                woken += 1;
            };
            assert!(timers.due(second * SECOND, 1_000_000, each).unwrap());
            most = most.max(timers.buckets.slices());
        }
        assert_eq!(woken, 200_000 - 86_400);
        assert!(timers.entries() <= 86_401, "{} entries", timers.entries());
        assert!(most < 200, "{most} buckets");
    }
}
