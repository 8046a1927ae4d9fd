//! `look_up`: joins a stream with a table that is outside, asked by key, with a cache.
//!
//! **Shape**: stream in; every record comes out with what the table has for its key ([`left`](LookedUp::left)), or only those for which it
//! has something ([`inner`](LookedUp::inner)). All else is as for [calls](super): time, order, errors, and that there is no state.
//!
//! **Calls**: several keys are asked for in one call where their records wait together, each once. A key that is being asked for in one call is not
//! asked for in another: that one waits for the answer, unless it takes longer than a call may.
//!
//! **Errors**: where a call asked for several keys, all of their records fail, and none is named: it is not known which is to blame. With
//! [`keys_at_once(1)`](Calls::keys_at_once) it is.
//!
//! **Cache**: answers, also that there is nothing, are kept for a time (of [`Job::clock`](millstream_runtime::job::Job::clock)) and up to a
//! number; one cache for all workers. A record whose answer is there does not leave its worker, unless results are ordered and others are
//! waited for. So a change of the table is seen when the answer of before is too old. The cache begins empty with the process, and is in no checkpoint.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_runtime::call::{Call, CallSettings, Failed, Fault};
use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::Error;
use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;

use super::asked::{Answer, Answers, Asked, Asking, Refusal, lock};
use super::cache::Cache;
use super::{Calls, at_least_one, fault};
use crate::filter_map::FilterMapExt;

/// How many keys are asked for in one call, unless it is said.
const KEYS: usize = 100;

/// A table outside, asked by key; see [`LookUpExt::look_up`].
pub struct Lookup<T, K, V, E> {
    key: Arc<dyn Fn(&T) -> K + Send + Sync>,
    ask: Arc<Ask<K, V, E>>,
    again: Arc<dyn Fn(&E) -> bool + Send + Sync>,
    keys: usize,
    /// How long somebody waits for what others ask.
    patience: Option<Duration>,
    answers: Mutex<Answers<K, V>>,
}

type Ask<K, V, E> = dyn Fn(&[K]) -> Result<Vec<Option<V>>, E> + Send + Sync;

impl<T, K, V, E> std::fmt::Debug for Lookup<T, K, V, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<T, K: Hash + Eq, V: Clone, E> Lookup<T, K, V, E> {
    /// `ask` is given different keys, and says for each, in their order, what the table has. It may block, and is called for several
    /// calls at the same time. Without a [cache](Calls::cache) no answer is kept.
    #[must_use]
    pub fn by(
        key: impl Fn(&T) -> K + Send + Sync + 'static,
        ask: impl Fn(&[K]) -> Result<Vec<Option<V>>, E> + Send + Sync + 'static,
    ) -> Calls<Self> {
        Calls::with(Lookup {
            key: Arc::new(key),
            ask: Arc::new(ask),
            again: Arc::new(|_| true),
            keys: KEYS,
            patience: None,
            answers: Mutex::new(Answers { cache: Cache::new(0, Duration::ZERO), asked: HashMap::new() }),
        })
    }
}

impl<T, K: Hash + Eq, V: Clone, E> Calls<Lookup<T, K, V, E>> {
    /// Keeps up to so many answers, each for at most so long since it was asked for.
    #[must_use]
    pub fn cache(self, answers: usize, keep_for: Duration) -> Self {
        lock(&self.call.answers).cache = Cache::new(answers, keep_for);
        self
    }

    /// Asks for up to so many keys in one call; by default 100.
    ///
    /// # Panics
    /// When it is 0.
    #[must_use]
    pub fn keys_at_once(mut self, keys: usize) -> Self {
        self.call.keys = at_least_one(keys, "keys");
        self
    }

    /// Which errors of the closure are worth another attempt; by default all. Panics and time-outs always are.
    #[must_use]
    pub fn retry_if(mut self, again: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.call.again = Arc::new(again);
        self
    }
}

impl<T, K: Hash + Eq + Clone, V: Clone, E> Lookup<T, K, V, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn ask(&self, keys: &[K]) -> Result<Vec<Option<V>>, Refusal> {
        let certain = keys.len() == 1;
        let refusal = |error: Error, again| Refusal { kind: error.kind(), text: error.to_string(), again, certain };
        let answers = (self.ask)(keys).map_err(|error| {
            let Fault { error, again, .. } = fault(error, &*self.again);
            refusal(error, again)
        })?;
        if answers.len() != keys.len() {
            let text = format!("the table was asked for {} keys and gave {} answers", keys.len(), answers.len());
            return Err(refusal(Error::user(text), false));
        }
        Ok(answers)
    }

    /// The answers for these keys, which are different: from the cache, by asking, or from others who are asking.
    fn answers(&self, mut open: Vec<K>, now: ProcessingTime) -> HashMap<K, Answer<V>> {
        let mut found = HashMap::new();
        while !open.is_empty() {
            let mut of_others = Vec::new();
            let mut asking = Asking { answers: &self.answers, keys: Vec::new(), asked: Vec::new(), now, answer: None };
            let mut answers = lock(&self.answers);
            for key in open.drain(..) {
                let is_late = |asked: &Arc<Asked<V>>| asked.is_late(self.patience);
                if let Some(answer) = answers.cache.get(&key, now) {
                    found.insert(key, Ok(answer));
                } else if let Some(asked) = answers.asked.get(&key).filter(|asked| !is_late(asked)) {
                    of_others.push((key, Arc::clone(asked)));
                } else {
                    let asked = Asked::begin();
                    answers.asked.insert(key.clone(), Arc::clone(&asked));
                    asking.keys.push(key);
                    asking.asked.push(asked);
                }
            }
            drop(answers);
            // Before others are waited for, who may wait for these.
            if !asking.keys.is_empty() {
                let answer = self.ask(&asking.keys);
                for (place, key) in asking.keys.iter().enumerate() {
                    found.insert(key.clone(), answer.as_ref().map(|all| all[place].clone()).map_err(Clone::clone));
                }
                asking.answer = Some(answer);
            }
            drop(asking);
            for (key, asked) in of_others {
                match asked.wait(self.patience) {
                    Some(answer) => drop(found.insert(key, answer)),
                    None => open.push(key),
                }
            }
        }
        found
    }
}

impl<T, K, V, E> Call for Lookup<T, K, V, E>
where
    T: Data + Sync,
    K: Hash + Eq + Clone + Send + 'static,
    V: Data,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    type In = T;
    type Out = (T, Option<V>);

    fn configure(&mut self, settings: &CallSettings) {
        self.patience = settings.timeout;
    }

    fn at_hand(&self, record: &T, now: ProcessingTime) -> Option<(T, Option<V>)> {
        let key = (self.key)(record);
        let answer = lock(&self.answers).cache.get(&key, now)?;
        Some((record.clone(), answer))
    }

    fn at_once(&self) -> usize {
        self.keys
    }

    fn call(&self, records: &[Arc<T>], now: ProcessingTime) -> Vec<Result<(T, Option<V>), Fault>> {
        let keys: Vec<K> = records.iter().map(|record| (self.key)(record)).collect();
        let mut seen = HashSet::new();
        let different = keys.iter().filter(|key| seen.insert(*key)).cloned().collect();
        let answers = self.answers(different, now);
        let answer = |(record, key): (&Arc<T>, &K)| match &answers[key] {
            Ok(answer) => Ok((T::clone(record), answer.clone())),
            Err(Refusal { kind, text, again, certain }) => {
                Err(Fault { error: Error::new(*kind, text), again: *again, certain: *certain })
            }
        };
        records.iter().zip(&keys).map(answer).collect()
    }
}

/// Adds `look_up` to streams.
pub trait LookUpExt<T: Data + Sync>: Sized {
    /// Joins every record with what a table outside has for its key. See [the module](self).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use millstream_runtime::{error::Error, stream::Stream};
    /// # use millstream_operators::call::look_up::{LookUpExt, Lookup};
    /// # #[derive(Clone)] struct Order { customer: u32 }
    /// # #[derive(Clone)] struct Customer;
    /// # struct Database; impl Database { fn customers(&self, _: &[u32]) -> Result<Vec<Option<Customer>>, Error> { Ok(vec![]) } }
    /// # fn example(orders: Stream<Order>, database: Database) {
    /// let known: Stream<(Order, Customer)> = orders
    ///     .look_up(
    ///         Lookup::by(|order: &Order| order.customer, move |customers| database.customers(customers))
    ///             .cache(10_000, Duration::from_secs(60))
    ///             .threads(4),
    ///     )
    ///     .inner();
    /// # }
    /// ```
    fn look_up<K, V, E>(self, lookup: Calls<Lookup<T, K, V, E>>) -> LookedUp<T, K, V, E>;
}

impl<T: Data + Sync> LookUpExt<T> for Stream<T> {
    fn look_up<K, V, E>(self, lookup: Calls<Lookup<T, K, V, E>>) -> LookedUp<T, K, V, E> {
        LookedUp { stream: self, lookup }
    }
}

/// A stream and the table that it is joined with.
#[derive(Debug)]
pub struct LookedUp<T, K, V, E> {
    stream: Stream<T>,
    lookup: Calls<Lookup<T, K, V, E>>,
}

impl<T, K, V, E> LookedUp<T, K, V, E>
where
    T: Data + Sync,
    K: Hash + Eq + Clone + Send + 'static,
    V: Data,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    /// All records, with what the table has.
    #[must_use]
    pub fn left(self) -> Stream<(T, Option<V>)> {
        self.stream.calls("look_up", self.lookup.call, self.lookup.settings)
    }

    /// The records for which the table has something, with it.
    #[must_use]
    pub fn inner(self) -> Stream<(T, V)> {
        there(self.left())
    }

    /// As [`left`](Self::left), with a second stream of the records for which the last attempt failed.
    #[allow(clippy::type_complexity)] // an alias would say less
    #[must_use]
    pub fn left_with_failed(self) -> (Stream<(T, Option<V>)>, Stream<Failed<T>>) {
        self.stream.calls_with_failed("look_up", self.lookup.call, self.lookup.settings)
    }

    /// As [`inner`](Self::inner), with a second stream of the records for which the last attempt failed.
    #[must_use]
    pub fn inner_with_failed(self) -> (Stream<(T, V)>, Stream<Failed<T>>) {
        let (all, failed) = self.left_with_failed();
        (there(all), failed)
    }
}

fn there<T: Data, V: Data>(all: Stream<(T, Option<V>)>) -> Stream<(T, V)> {
    all.filter_map(|(record, answer)| Some((record, answer?)))
}
