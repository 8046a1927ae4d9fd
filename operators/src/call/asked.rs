//! Keys that are being asked for: by one call each, while others wait for the answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::ErrorKind;

use super::cache::Cache;

pub(super) struct Answers<K, V> {
    pub(super) cache: Cache<K, Option<V>>,
    /// What is being asked for.
    pub(super) asked: HashMap<K, Arc<Asked<V>>>,
}

/// A key that is being asked for.
pub(super) struct Asked<V> {
    since: Instant,
    answer: Mutex<Option<Answer<V>>>,
    answered: Condvar,
}

pub(super) type Answer<V> = Result<Option<V>, Refusal>;

/// An error that is shared by all records of a call.
#[derive(Clone)]
pub(super) struct Refusal {
    pub(super) kind: ErrorKind,
    pub(super) text: String,
    pub(super) again: bool,
    /// No other key was asked for.
    pub(super) certain: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<V: Clone> Asked<V> {
    pub(super) fn begin() -> Arc<Self> {
        Arc::new(Asked { since: Instant::now(), answer: Mutex::new(None), answered: Condvar::new() })
    }

    /// Whether it takes longer than a call may.
    pub(super) fn is_late(&self, patience: Option<Duration>) -> bool {
        patience.is_some_and(|patience| self.since.elapsed() >= patience)
    }

    fn set(&self, answer: Answer<V>) {
        *lock(&self.answer) = Some(answer);
        self.answered.notify_all();
    }

    /// The answer; nothing, when it takes longer than a call may.
    pub(super) fn wait(&self, patience: Option<Duration>) -> Option<Answer<V>> {
        let mut answer = lock(&self.answer);
        while answer.is_none() {
            if self.is_late(patience) {
                break;
            }
            let left = patience.map_or(Duration::MAX, |patience| patience.saturating_sub(self.since.elapsed()));
            answer = self.answered.wait_timeout(answer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        answer.clone()
    }
}

/// The keys that one call asks for. Whatever becomes of it, also a panic, those who wait for them are told.
pub(super) struct Asking<'a, K: Hash + Eq + Clone, V: Clone> {
    pub(super) answers: &'a Mutex<Answers<K, V>>,
    pub(super) keys: Vec<K>,
    pub(super) asked: Vec<Arc<Asked<V>>>,
    pub(super) now: ProcessingTime,
    pub(super) answer: Option<Result<Vec<Option<V>>, Refusal>>,
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for Asking<'_, K, V> {
    fn drop(&mut self) {
        let mut answers = lock(self.answers);
        for (place, (key, asked)) in self.keys.iter().zip(&self.asked).enumerate() {
            let answer = match &self.answer {
                Some(Ok(answers)) => Ok(answers[place].clone()),
                Some(Err(refusal)) => Err(refusal.clone()),
                None => {
                    let text = "another call for the same key panicked".to_string();
                    Err(Refusal { kind: ErrorKind::User, text, again: true, certain: self.keys.len() == 1 })
                }
            };
            // Where somebody had no patience and asked again, the answer there is newer.
            if answers.asked.get(key).is_some_and(|other| Arc::ptr_eq(other, asked)) {
                answers.asked.remove(key);
                if let Ok(answer) = &answer {
                    answers.cache.put(key.clone(), answer.clone(), self.now);
                }
            }
            asked.set(answer);
        }
    }
}
