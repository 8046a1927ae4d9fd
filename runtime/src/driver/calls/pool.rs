//! Threads that make calls: one pool for each operator and attempt, shared by all workers.
//!
//! All that waits stands in one queue behind one lock, from which the threads take it: first what is to be tried again and is due, then new
//! records in the order in which workers brought them, as far as the bound and the rate allow. A record is *in flight* from then on until its
//! worker has sent its result on. A thread that has taken something wakes the next one if there is more, so who brings
//! work need not know how many can do it.
//!
//! **Time-outs.** A call that blocks cannot be taken back. When its time is over, a thread that does nothing else gives it up: what it
//! returns later is thrown away, and its thread, which is *lost* until then, is replaced. So there are at most twice as many threads as
//! the user said. When one more is lost the job fails: the outside hangs, and the threads would be ever more.
//!
//! **The end**: when no worker is left, threads leave once their call returns. Nobody waits for them: they hold nothing that anyone needs.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::{Task, panic_text};
use super::errand::{Answer, Done, Errand, Member, Missed};
use crate::call::{Call, CallSettings, Fault, Rate};
use crate::error::Error;
use crate::shared::{Stats, add, lock};

/// See the module.
pub(super) struct Pool<C: Call> {
    pub call: Arc<C>,
    at_once: usize,
    settings: CallSettings,
    /// For its names, and for what is shared; it belongs to no worker.
    task: Task,
    state: Mutex<State<C>>,
    /// Threads without work wait for it here,
    work: Condvar,
    /// and the one that watches time-outs here.
    watch: Condvar,
}

struct State<C: Call> {
    members: BTreeMap<usize, Member<C>>,
    /// How many of them have not left.
    present: usize,
    ended: bool,
    /// What was not called yet.
    waiting: VecDeque<Errand<C::In>>,
    /// What is to be tried again, by when, and a number.
    again: BTreeMap<(Instant, u64), Errand<C::In>>,
    /// Calls being made, by numbers that rise, and so do their deadlines.
    calling: BTreeMap<u64, Calling<C::In>>,
    in_flight: usize,
    rate: Option<Rate>,
    /// Of calls and repetitions.
    number: u64,
    /// Threads that are not lost; how many of them have no work; and how many are lost.
    threads: usize,
    idle: usize,
    lost: usize,
    watched: bool,
    /// Sources wait.
    crowded: bool,
}

struct Calling<T> {
    errands: Vec<Errand<T>>,
    deadline: Option<Instant>,
}

impl<C: Call> Pool<C> {
    pub(super) fn new(call: Arc<C>, settings: CallSettings, task: Task) -> Arc<Self> {
        let state = State {
            members: BTreeMap::new(),
            present: 0,
            ended: false,
            waiting: VecDeque::new(),
            again: BTreeMap::new(),
            calling: BTreeMap::new(),
            in_flight: 0,
            rate: settings.rate.map(Rate::new),
            number: 0,
            threads: 0,
            idle: 0,
            lost: 0,
            watched: false,
            crowded: false,
        };
        let (at_once, state) = (call.at_once().max(1), Mutex::new(state));
        Arc::new(Pool { call, at_once, settings, task, state, work: Condvar::new(), watch: Condvar::new() })
    }

    /// A worker takes part.
    pub(super) fn join(&self, worker: usize, member: Member<C>) {
        let mut state = lock(&self.state);
        state.present += 1;
        state.members.insert(worker, member);
    }

    /// A worker has left. With the last one, all ends.
    pub(super) fn leave(&self) {
        let mut state = lock(&self.state);
        state.present -= 1;
        if state.present == 0 {
            state.ended = true;
            let left = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.again));
            drop(state);
            self.work.notify_all();
            self.watch.notify_all();
            drop(left);
        }
    }

    /// Calls are to be made for these records.
    pub(super) fn submit(self: &Arc<Self>, worker: usize, errands: Vec<Errand<C::In>>) {
        if errands.is_empty() {
            return;
        }
        self.task.shared.in_flight[worker].0.fetch_add(errands.len() as i64, Ordering::Relaxed);
        let mut state = lock(&self.state);
        state.waiting.extend(errands);
        self.weigh(&mut state);
        self.rouse(&mut state);
    }

    /// So many results were sent on.
    pub(super) fn release(self: &Arc<Self>, results: usize) {
        if results > 0 {
            let mut state = lock(&self.state);
            state.in_flight -= results;
            self.weigh(&mut state);
            self.rouse(&mut state);
        }
    }

    /// Counts of calls are those of the operator, and stand with its first worker; whoever changes them holds the lock.
    fn stats(&self) -> &Stats {
        &self.task.shared.stats[self.task.node][0].0
    }

    /// Sources wait while more records wait for a call than may be in flight, until only half as many do: what they read belongs to an
    /// epoch, which cannot end before all of it is called.
    fn weigh(&self, state: &mut State<C>) {
        let (waiting, bound) = (state.waiting.len(), self.settings.in_flight);
        let stats = self.stats();
        stats.calls_waiting.store(waiting as u64, Ordering::Relaxed);
        stats.calls_in_flight.store(state.in_flight as u64, Ordering::Relaxed);
        let shared = &self.task.shared;
        if !state.crowded && waiting > bound {
            state.crowded = true;
            shared.calling.0.fetch_add(1, Ordering::SeqCst);
        } else if state.crowded && waiting <= bound / 2 {
            state.crowded = false;
            shared.calling.0.fetch_sub(1, Ordering::SeqCst);
            shared.wake_sources();
        }
    }

    /// Has somebody look for work, if there is any that may be done, now or later.
    fn rouse(self: &Arc<Self>, state: &mut State<C>) {
        let new = !state.waiting.is_empty() && state.in_flight < self.settings.in_flight;
        if state.ended || (!new && state.again.is_empty()) {
            return;
        }
        if state.idle > 0 {
            self.work.notify_one();
        } else if state.threads < self.settings.threads {
            state.threads += 1;
            self.start("call", Self::work);
        }
    }

    fn start(self: &Arc<Self>, what: &str, run: fn(&Arc<Self>)) {
        let pool = Arc::clone(self);
        // What user code does when it is dropped may panic as well.
        let run = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&pool))) {
                let text = format!("a thread that makes calls panicked: {}", panic_text(&*panic));
                pool.task.shared.fail(Error::internal(text).in_operator(&pool.task.name));
            }
        };
        if let Err(error) = std::thread::Builder::new().name(format!("millstream-{what}")).spawn(run) {
            let error = Error::external("cannot start a thread for calls").because(error);
            self.task.shared.fail(error.in_operator(&self.task.name));
        }
    }

    /// A thread of the pool.
    fn work(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        // A worker that hangs in user code never leaves, but what has failed calls nobody any more.
        while !state.ended && !self.task.shared.has_failed() {
            let errands = match self.next(&mut state, Instant::now()) {
                Ok(errands) => errands,
                Err(until) => {
                    state.idle += 1;
                    state = wait(&self.work, state, until);
                    state.idle -= 1;
                    continue;
                }
            };
            let records: Vec<_> = errands.iter().map(|errand| Arc::clone(&errand.record)).collect();
            let call = self.begin(&mut state, errands);
            drop(state);
            let answers = self.make(&records);
            drop(records);
            state = lock(&self.state);
            let Some(Calling { errands, .. }) = state.calling.remove(&call) else {
                // It was given up, and this thread replaced.
                state.lost -= 1;
                return;
            };
            errands.into_iter().zip(answers).for_each(|(errand, answer)| match answer {
                Ok(answer) => self.deliver(&state, &errand, Ok(answer)),
                Err(fault) => self.failed(&mut state, errand, fault),
            });
        }
        state.threads -= 1;
    }

    /// What is to be called next, or when to look again. It is taken out, and the next thread woken if there is more.
    fn next(self: &Arc<Self>, state: &mut State<C>, now: Instant) -> Result<Vec<Errand<C::In>>, Option<Instant>> {
        let due = state.again.first_key_value().map(|((due, _), _)| *due);
        let is_due = due.is_some_and(|due| due <= now);
        let is_new = !state.waiting.is_empty() && state.in_flight < self.settings.in_flight;
        if !is_due && !is_new {
            return Err(due);
        }
        if let Some(rate) = &mut state.rate {
            rate.begin(now).map_err(Some)?;
        }
        let mut errands = Vec::new();
        while errands.len() < self.at_once {
            if let Some(first) = state.again.first_entry()
                && first.key().0 <= now
            {
                errands.push(first.remove());
            } else if state.in_flight < self.settings.in_flight
                && let Some(errand) = state.waiting.pop_front()
            {
                state.in_flight += 1;
                self.task.shared.in_flight[errand.worker].0.fetch_sub(1, Ordering::Relaxed);
                errands.push(errand);
            } else {
                break;
            }
        }
        self.weigh(state);
        self.rouse(state);
        Ok(errands)
    }

    /// A call is about to be made.
    fn begin(self: &Arc<Self>, state: &mut State<C>, mut errands: Vec<Errand<C::In>>) -> u64 {
        errands.iter_mut().for_each(|errand| errand.attempts += 1);
        add(&self.stats().calls, 1);
        state.number += 1;
        let deadline = self.settings.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        state.calling.insert(state.number, Calling { errands, deadline });
        if deadline.is_some() {
            if !std::mem::replace(&mut state.watched, true) {
                self.start("calls", Self::watch_deadlines);
            } else if state.calling.len() == 1 {
                self.watch.notify_one();
            }
        }
        state.number
    }

    /// Makes a call; a panic is an error like others.
    fn make(&self, records: &[Arc<C::In>]) -> Vec<Result<C::Out, Fault>> {
        let now = self.task.clock.now();
        let made = catch_unwind(AssertUnwindSafe(|| self.call.call(records, now)));
        let all = |error: fn(String) -> Error, text: String| {
            let fault = || Fault { error: error(text.clone()), again: true, certain: records.len() == 1 };
            records.iter().map(|_| Err(fault())).collect()
        };
        match made {
            Ok(answers) if answers.len() == records.len() => answers,
            Ok(answers) => {
                let text = format!("a call for {} records gave {} answers", records.len(), answers.len());
                all(Error::internal, text)
            }
            Err(panic) => all(Error::user, format!("panicked: {}", panic_text(&*panic))),
        }
    }

    /// An attempt for this record has failed: tries again later, or has its worker deal with it.
    fn failed(self: &Arc<Self>, state: &mut State<C>, errand: Errand<C::In>, fault: Fault) {
        let chance = (RandomState::new().build_hasher().finish() >> 32) as u32;
        match self.settings.retry.after(errand.attempts, chance).filter(|_| fault.again) {
            Some(wait) => {
                add(&self.stats().calls_retried, 1);
                state.number += 1;
                state.again.insert((Instant::now() + wait, state.number), errand);
                self.rouse(state);
            }
            None => {
                add(&self.stats().calls_failed, 1);
                let Fault { error, certain, .. } = fault;
                let (record, attempts) = (Arc::clone(&errand.record), errand.attempts);
                let missed = Missed { error, record, attempts, certain };
                self.deliver(state, &errand, Err(missed));
            }
        }
    }

    fn deliver(&self, state: &State<C>, errand: &Errand<C::In>, answer: Answer<C>) {
        if let Some(member) = state.members.get(&errand.worker) {
            member.hand_over(Done { batch: errand.batch, row: errand.row, answer });
        }
    }

    /// The thread that watches time-outs.
    fn watch_deadlines(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        while !state.ended {
            let first = state.calling.first_key_value().map(|(call, calling)| (*call, calling.deadline));
            match first {
                Some((call, Some(deadline))) if deadline <= Instant::now() => self.give_up(&mut state, call),
                first => state = wait(&self.watch, state, first.and_then(|(_, deadline)| deadline)),
            }
        }
    }

    /// A call has taken too long.
    fn give_up(self: &Arc<Self>, state: &mut State<C>, call: u64) {
        let Some(Calling { errands, .. }) = state.calling.remove(&call) else { return };
        let timeout = self.settings.timeout.unwrap_or_default();
        add(&self.stats().calls_timed_out, 1);
        (state.threads, state.lost) = (state.threads - 1, state.lost + 1);
        let (lost, name) = (state.lost, &self.task.name);
        tracing::warn!(operator = %name, lost, "a call did not return within {timeout:?}: its thread is replaced");
        if lost > self.settings.threads {
            let text = format!("{lost} calls hang, none of which returned within {timeout:?}");
            let hint = "no more threads are started in the place of those that hang: give the client a time-out of its own \
                        that is shorter, or allow more threads";
            self.task.shared.fail(Error::external(text).hint(hint).in_operator(name));
            state.ended = true;
            return self.work.notify_all();
        }
        let certain = errands.len() == 1;
        for errand in errands {
            let error = Error::external(format!("the call did not return within {timeout:?}"));
            self.failed(state, errand, Fault { error, again: true, certain });
        }
        self.rouse(state);
    }
}

/// Waits to be woken, or for the time to come.
fn wait<'a, T>(condition: &Condvar, state: MutexGuard<'a, T>, until: Option<Instant>) -> MutexGuard<'a, T> {
    match until {
        None => condition.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            condition.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
        }
    }
}
