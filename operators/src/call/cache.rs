//! Answers that are kept for a while: as many as there may be, those that were not asked for first to go.
//!
//! There are two generations. What is asked for is in the young one, or comes back to it; when that has half of all, it becomes the old one, and
//! what the old one had is forgotten. So what goes was not asked for while half of the cache was; a list of who was used last, which
//! would know that exactly, costs two links an entry and a lookup more, and gives little.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use millstream_runtime::clock::ProcessingTime;

/// See the module.
pub(super) struct Cache<K, V> {
    most: usize,
    keep: Duration,
    young: HashMap<K, Kept<V>>,
    old: HashMap<K, Kept<V>>,
}

struct Kept<V> {
    answer: V,
    /// When it was asked for.
    since: ProcessingTime,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// For up to `most` answers, of which none is given that is as old as `keep`.
    pub(super) fn new(most: usize, keep: Duration) -> Self {
        Cache { most, keep, young: HashMap::new(), old: HashMap::new() }
    }

    pub(super) fn get(&mut self, key: &K, now: ProcessingTime) -> Option<V> {
        if let Some(kept) = self.young.get(key) {
            return (now < kept.since + self.keep).then(|| kept.answer.clone());
        }
        let (key, kept) = self.old.remove_entry(key)?;
        let answer = (now < kept.since + self.keep).then(|| kept.answer.clone())?;
        self.add(key, kept);
        Some(answer)
    }

    pub(super) fn put(&mut self, key: K, answer: V, since: ProcessingTime) {
        self.old.remove(&key);
        self.add(key, Kept { answer, since });
    }

    fn add(&mut self, key: K, kept: Kept<V>) {
        if self.young.len() >= (self.most / 2).max(1) && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
            if self.most < 2 {
                self.old.clear();
            }
        }
        if self.most > 0 {
            self.young.insert(key, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: i64) -> ProcessingTime {
        ProcessingTime::from_micros(us)
    }

    #[test]
    fn there_are_never_more_than_may_be_and_what_is_asked_for_stays() {
        for most in 0..9 {
            let mut cache = Cache::new(most, Duration::MAX);
            for n in 0..100u64 {
                cache.put(n, n * 2, at(0));
                assert!(cache.young.len() + cache.old.len() <= most);
                assert_eq!(cache.get(&n, at(0)), (most > 0).then_some(n * 2));
                if most >= 4 {
                    assert_eq!(cache.get(&0, at(0)), Some(0), "{n} of {most}");
                }
                assert!(cache.young.len() + cache.old.len() <= most);
            }
            // The newest half is there in any case.
            for n in 100 - most as u64 / 2..100 {
                assert_eq!(cache.get(&n, at(0)), Some(n * 2), "{n} of {most}");
            }
            assert_eq!(cache.get(&50, at(0)), None);
        }
    }

    #[test]
    fn an_answer_is_given_until_it_is_too_old() {
        let mut cache = Cache::new(4, Duration::from_micros(10));
        cache.put("a", 1, at(5));
        assert_eq!((cache.get(&"a", at(14)), cache.get(&"a", at(15))), (Some(1), None));
        cache.put("a", 2, at(15));
        assert_eq!(cache.get(&"a", at(24)), Some(2));
        // It is as old when it comes back from the old generation.
        cache.put("b", 3, at(20));
        cache.put("c", 4, at(20));
        assert_eq!(cache.get(&"a", at(24)), Some(2));
        assert_eq!(cache.get(&"a", at(25)), None);
    }
}
