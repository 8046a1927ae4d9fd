//! Calls to the outside for every record (Flink's asynchronous I/O), and lookups with a cache on top of them.
//!
//! **Shape**: stream in, stream out; a second stream has the records for which all attempts failed, if that is wanted. Results keep the
//! event time of their record.
//!
//! The closure *blocks*: it is called on a thread of a pool beside the workers, which all workers share; a worker never waits for it. To use an
//! async client, make a runtime for it once, and have the closure call its `block_on`.
//!
//! **State**: none. A record whose call is not done holds back its epoch and event time: the watermark never passes it, and a checkpoint waits until
//! all calls of its epoch are done, while records of the next are already called. So how long a checkpoint may take is bounded by the records that wait
//! ([`in_flight`](Calls::in_flight), and what sources read at a time), the time-out and the attempts. After a crash everything since
//! the last checkpoint is called again: **calls must be repeatable**. Calls of an attempt of the job that failed may still be on their way when the next begins.
//!
//! **Time**: nothing changes about lateness: a record that was behind its split's watermark is so after the call. Waits and time-outs are real
//! time, whatever [`Job::clock`](millstream_runtime::job::Job::clock) is.
//!
//! **Order**: by default results leave as they are done; [`ordered`](Calls::ordered) in the order of their records, for each worker. Windows and
//! whatever else goes by event time give the same in both. Results are what the outside says at the time, so sinks behind calls are not compared
//! in a replay. A replay, and a run of `job bench`, call the outside as any other run does: a call should only ask, or do no harm when it is repeated.
//!
//! **Errors**: an attempt fails with the closure's error, when it panics, and when it takes too long. It is repeated as [`Retry`] says. After
//! the last one the job fails, with the record's place, or the record goes to the second stream. A [Millstream error](Error) keeps its kind; any other
//! is of the kind `External`, which is no record's fault: for [`Job::set_aside_after`](millstream_runtime::job::Job::set_aside_after) a record is only to
//! blame for panics and for errors of the kind `User`.
//!
//! **Source**: Flink's `AsyncDataStream`, without its state: there records in flight are part of a checkpoint; here it waits for them.

mod asked;
mod cache;
pub mod look_up;

use std::sync::Arc;
use std::time::Duration;

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::Error;
use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;

pub use millstream_runtime::call::{Call, CallSettings, Failed, Fault, Retry};

/// What is called for every record, and how; see [`CallExt::call`].
#[derive(Clone, Debug)]
pub struct Calls<C> {
    call: C,
    settings: CallSettings,
}

impl<T, O, E> Calls<Closure<T, O, E>> {
    /// Calls this closure, which may block. It is called for several records at the same time: a client that cannot be shared goes into a
    /// `thread_local!`, for threads stay.
    pub fn to(call: impl Fn(&T) -> Result<O, E> + Send + Sync + 'static) -> Self {
        Calls::with(Closure { call: Arc::new(call), again: Arc::new(|_| true) })
    }

    /// Which errors of the closure are worth another attempt; by default all. Panics and time-outs always are.
    #[must_use]
    pub fn retry_if(mut self, again: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.call.again = Arc::new(again);
        self
    }
}

impl<C> Calls<C> {
    /// Calls in a way of your own.
    pub fn with(call: C) -> Self {
        Calls { call, settings: CallSettings::default() }
    }

    /// How many calls are made at the same time, over all workers of the process; by default 16. Threads are started when they are needed.
    /// One whose call has timed out is replaced until it returns; when more than so many hang, the job fails.
    ///
    /// # Panics
    /// When it is 0.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = at_least_one(threads, "threads");
        self
    }

    /// How many records may be in flight at the same time, over all workers of the process; by default 1,000. A record is so from when
    /// its first call may begin until its result is sent on: also while it waits to be called again, and, where results are ordered, for those before
    /// it. What comes beyond waits, and sources stop reading when as much waits as may be in flight.
    ///
    /// # Panics
    /// When it is 0.
    #[must_use]
    pub fn in_flight(mut self, records: usize) -> Self {
        self.settings.in_flight = at_least_one(records, "records in flight");
        self
    }

    /// How long an attempt may take; by default a minute. A call that blocks cannot be cut short: what it returns later is thrown away, and
    /// its thread is lost until then; so have the client give up before that.
    ///
    /// # Panics
    /// When it is 0.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a call takes some time");
        self.settings.timeout = Some(timeout);
        self
    }

    /// Makes calls again that have failed; by default none.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.settings.retry = retry;
        self
    }

    /// At most so many calls, repetitions among them, begin within any `span`, over all workers of the process.
    ///
    /// # Panics
    /// When it is 0.
    #[must_use]
    pub fn at_most(mut self, calls: usize, span: Duration) -> Self {
        self.settings.rate = Some((at_least_one(calls, "calls"), span));
        self
    }

    /// Has results leave each worker in the order in which their records came.
    #[must_use]
    pub fn ordered(mut self) -> Self {
        self.settings.ordered = true;
        self
    }
}

fn at_least_one(count: usize, what: &str) -> usize {
    assert!(count > 0, "without {what} no call is ever made");
    count
}

type Asking<T, O, E> = dyn Fn(&T) -> Result<O, E> + Send + Sync;

/// A closure as a [`Call`].
pub struct Closure<T, O, E> {
    call: Arc<Asking<T, O, E>>,
    again: Arc<dyn Fn(&E) -> bool + Send + Sync>,
}

impl<T, O, E> std::fmt::Debug for Closure<T, O, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Closure").finish_non_exhaustive()
    }
}

impl<T, O, E> Call for Closure<T, O, E>
where
    T: Data + Sync,
    O: Data,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    type In = T;
    type Out = O;

    fn call(&self, records: &[Arc<T>], _now: ProcessingTime) -> Vec<Result<O, Fault>> {
        let fault = |error| fault(error, &*self.again);
        records.iter().map(|record| (self.call)(record).map_err(fault)).collect()
    }
}

/// What an error of a closure is to the runtime.
fn fault<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E, again: &dyn Fn(&E) -> bool) -> Fault {
    let again = again(&error);
    let error = match error.into().downcast::<Error>() {
        Ok(error) => *error,
        Err(other) => Error::external("the call failed").because(other),
    };
    Fault { error, again, certain: true }
}

/// Adds `call` to streams.
pub trait CallExt<T: Data + Sync>: Sized {
    /// What a closure, which may block, says of every record, at the record's event time. See [the module](self).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use millstream_runtime::{error::Error, stream::Stream};
    /// # use millstream_operators::call::{CallExt, Calls, Retry};
    /// # #[derive(Clone)] struct Order { id: u64 }
    /// # struct Client; impl Client { fn price(&self, _: &Order) -> Result<u64, Error> { Ok(1) } }
    /// # fn example(orders: Stream<Order>, client: Client) {
    /// let prices: Stream<u64> = orders.call(
    ///     Calls::to(move |order: &Order| client.price(order))
    ///         .threads(16)
    ///         .in_flight(1000)
    ///         .timeout(Duration::from_secs(2))
    ///         .retry(Retry::times(3).backoff(Duration::from_millis(50)))
    ///         .at_most(500, Duration::from_secs(1))
    ///         .ordered(),
    /// );
    /// # }
    /// ```
    #[must_use]
    fn call<C: Call<In = T>>(self, calls: Calls<C>) -> Stream<C::Out>;

    /// As [`call`](Self::call), with a second stream of the records for which the last attempt failed.
    #[must_use]
    fn call_with_failed<C: Call<In = T>>(self, calls: Calls<C>) -> (Stream<C::Out>, Stream<Failed<T>>);
}

impl<T: Data + Sync> CallExt<T> for Stream<T> {
    fn call<C: Call<In = T>>(self, calls: Calls<C>) -> Stream<C::Out> {
        self.calls("call", calls.call, calls.settings)
    }

    fn call_with_failed<C: Call<In = T>>(self, calls: Calls<C>) -> (Stream<C::Out>, Stream<Failed<T>>) {
        self.calls_with_failed("call", calls.call, calls.settings)
    }
}
