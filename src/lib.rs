//! # Millstream
//!
//! Flink's DataStream API as a Rust library in your own process: typed jobs of stateless operators, event-time windows, keyed state with timers, joins,
//! patterns and tables, on worker threads over timely dataflow and differential dataflow, with checkpoints in RocksDB, so that every job survives a crash and goes on where
//! it was.
//!
//! ```no_run
//! use millstream::prelude::*;
//!
//! #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! struct Order {
//!     #[serde(with = "iso8601")]
//!     at: EventTime,
//!     customer: String,
//!     cents: i64,
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let job = Job::new("spend").checkpoint_dir("spend.checkpoints");
//!     let orders = CsvFiles::<Order>::new(["orders.csv"]);
//!     job.source(orders, Watermarks::bounded_out_of_orderness(EventSpan::secs(5), |order: &Order| order.at))
//!         .key_by(|order| order.customer.clone())
//!         .window(Tumbling::of(EventSpan::mins(1)))
//!         .aggregate((Count, Sum::of(|order: &Order| order.cents)))
//!         .name("spend")
//!         .map(|(customer, window, (orders, cents))| format!("{customer} {window}: {orders} orders, {cents} cents"))
//!         .sink(FileSink::json_lines("spend"));
//!     job.main()
//! }
//! ```
//!
//! Run it again after a crash and it goes on from its newest checkpoint; `--help` shows what every job can do.
//!
//! What a job remembers can be read from its checkpoints, also while it runs; here by its types, and on the command line by `state`:
//!
//! ```
//! use millstream::prelude::*;
//!
//! # let dir = std::env::temp_dir().join(format!("millstream-doc-{}", std::process::id()));
//! # let checkpoints = dir.clone();
//! let payments = move || {
//!     let job = Job::new("payments").checkpoint_dir(&checkpoints);
//!     let payments = from_vec(vec![("Ann", 5), ("Bob", 7), ("Ann", 2)]);
//!     job.source(payments, Watermarks::monotonous(|_: &(&str, u64)| EventTime::EPOCH))
//!         .key_by(|(who, _)| who.to_string())
//!         .fold(0u64, |balance, (_, cents)| *balance += cents)
//!         .name("balances")
//!         .sink(for_each(|_| ()));
//!     job
//! };
//! payments().run()?;
//!
//! let then = payments().checkpoint(StartFrom::Newest)?;
//! let balances = then.state::<String, u64>("balances")?;
//! assert_eq!(balances.get("Ann")?, Some(7));
//! assert_eq!(balances.count()?, 2);
//! # drop(balances);
//! # std::fs::remove_dir_all(dir).expect("removed");
//! # Ok::<(), Error>(())
//! ```
//!
//! Where to go from here: the [`guide`] tells of [windows](guide::windows), [time](guide::time), [state and timers](guide::state_and_timers), [joins](guide::joins)
//! and [tables](guide::tables); [`operators`] has the table of all operators, [`aggregate`] the aggregates, [`connectors`] the
//! sources and sinks; `testing`, a feature, tests of jobs; `ARCHITECTURE.md` in the repository tells how a record and a checkpoint live.

pub use millstream_connectors as connectors;
pub use millstream_operators as operators;
pub use millstream_operators::{aggregate, call, process, window};
pub use millstream_runtime::{
    SplitState, StopMode, bench, cli, clock, digest, error, handle, inspect, job, journal, metrics, moment, names,
    operator, poison, record, replay, restart, rows, savepoint, sink, source, stream, summary, time, watermark,
};
pub use millstream_state as state;

/// Pages about what goes together, each with an example that runs.
pub mod guide {
    #[doc = include_str!("guide/windows.md")]
    pub mod windows {}
    #[doc = include_str!("guide/time.md")]
    pub mod time {}
    #[doc = include_str!("guide/state_and_timers.md")]
    pub mod state_and_timers {}
    #[doc = include_str!("guide/joins.md")]
    pub mod joins {}
    #[doc = include_str!("guide/tables.md")]
    pub mod tables {}
    #[cfg(feature = "testing")]
    #[doc = include_str!("guide/testing.md")]
    pub mod testing {}
}

#[cfg(feature = "testing")]
pub mod testing;

/// Types with versions: how checkpoints outlive changes of what they hold.
///
/// A type that is kept (a key, a value, or a part of either) may be changed after its form of before was put under another
/// name, with a way from there to here:
///
/// ```
/// use millstream::prelude::*;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Serialize, Deserialize, Evolve)]
/// struct TotalV1 {
///     cents: i64,
///     count: u32,
/// }
///
/// #[derive(Clone, Serialize, Deserialize, Evolve)]
/// #[evolve(from = TotalV1)]
/// struct Total {
///     cents: i128,                    // from `i64`, by `From`
///     #[evolve(renamed = count)]
///     orders: u32,
///     #[evolve(default)]
///     largest: Option<i64>,
/// }
///
/// let job = Job::new("spend").migrate::<Total>();
/// let old = TotalV1 { cents: 5, count: 1 };
/// # let _ = job;
/// assert_eq!(Total::evolve(old).unwrap().cents, 5);
/// ```
///
/// The next change makes this `TotalV2`, and `Total` comes from there: `V1 -> V2 -> Total`. Forms that no checkpoint has any
/// more can be deleted; the oldest that stays says which it is (`#[evolve(version = 2)]`). The derive macro
/// [`Evolve`](derive@evolve::Evolve) lists its attributes; what it cannot say is written by hand, as the trait.
pub mod evolve {
    pub use millstream_derive::Evolve;
    pub use millstream_state::evolve::{Evolve, EvolveError, First};
}

/// Everything that a job usually needs, in one import.
pub mod prelude {
    pub use millstream_connectors::log::{Log, LogOptions, LogRecord, RecordExt};
    pub use millstream_connectors::{
        ChannelSender, ChannelSource, Collected, CsvFiles, FileSink, Generator, JsonLines, Paced, SourceExt, channel,
        for_each, from_iter, from_vec, stdout, stdout_json, try_for_each,
    };
    pub use millstream_derive::Evolve;
    pub use millstream_operators::aggregate::{
        Aggregate, Count, DistinctCount, FastSum, First, Fold, Last, List, Max, Mean, Min, Newest, Origin, StdDev, Sum,
        Top, Variance,
    };
    pub use millstream_operators::call::look_up::{LookUpExt, Lookup};
    pub use millstream_operators::call::{CallExt, Calls, Failed, Retry};
    pub use millstream_operators::deduplicate::DeduplicateExt;
    pub use millstream_operators::filter::FilterExt;
    pub use millstream_operators::filter_map::FilterMapExt;
    pub use millstream_operators::flat_map::FlatMapExt;
    pub use millstream_operators::fold::FoldExt;
    pub use millstream_operators::inspect::InspectExt;
    pub use millstream_operators::join::{CoGroupExt, IntervalJoinExt, TemporalJoinExt, WindowJoinExt};
    pub use millstream_operators::map::MapExt;
    pub use millstream_operators::pattern::{Match, Pattern, PatternExt};
    pub use millstream_operators::process::{
        BroadcastProcess, BroadcastProcessExt, Process, ProcessContext, ProcessExt,
    };
    pub use millstream_operators::split::SplitExt;
    pub use millstream_operators::table::{Delta, IntoTableExt, Row, Table, UpsertExt};
    pub use millstream_operators::top::TopExt;
    pub use millstream_operators::window::{
        Assigned, Calendar, Change, CountWindowExt, Early, Global, Pane, Session, Several, Sliding, Timing, Tumbling,
        Update, Window, WindowExt, Windows,
    };
    pub use millstream_runtime::StopMode;
    pub use millstream_runtime::cli::JobArgs;
    pub use millstream_runtime::clock::{Clock, ProcessingTime};
    pub use millstream_runtime::error::{Error, ErrorKind};
    pub use millstream_runtime::handle::{JobHandle, Status};
    pub use millstream_runtime::job::{Job, Settings};
    pub use millstream_runtime::operator::{Either, Side};
    pub use millstream_runtime::record::{Data, Record};
    pub use millstream_runtime::restart::RestartPolicy;
    pub use millstream_runtime::sink::Sink;
    pub use millstream_runtime::source::{BadRecord, OnBadRecord};
    pub use millstream_runtime::stream::{KeyedStream, Stream};
    pub use millstream_runtime::summary::{Outcome, Summary};
    pub use millstream_runtime::time::{EventSpan, EventTime, iso8601};
    pub use millstream_runtime::watermark::{WatermarkGenerator, Watermarks};
    pub use millstream_state::checkpoint::StartFrom;
    pub use millstream_state::evolve::Evolve;
    pub use millstream_state::snapshot::Key;
}

/// The code in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
