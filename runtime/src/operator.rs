//! What operators are: the traits that operator files implement, and what is handed to them.
//!
//! An operator file holds the idea; a driver does the plumbing: it calls the operator with batches and watermarks in the
//! right order, and snapshots, restores and rescales its state.

use std::ops::Range;

use millstream_state::reader::Reader;
use millstream_state::snapshot::{Key, State};
use serde::{Deserialize, Serialize};

use crate::clock::ProcessingTime;
pub use crate::driver::caught;
use crate::error::Result;
use crate::record::{Data, Record};
use crate::rows::{KeyedRows, Lineage, Rows};
use crate::time::EventTime;

/// A stateless operator: batches in, batches out, record by record. One instance per worker.
pub trait Stage: Send + 'static {
    /// What comes in.
    type In: Data;
    /// What goes out.
    type Out: Data;

    /// Turns one batch into another. `cursor.row` says which row is being worked on, for the error in case user code
    /// panics; where rows are left out or multiplied, the cursor's lineage must follow. With [`Job::set_aside_after`] the record
    /// that these name is the one that is left out, so a wrong row costs a record that did no harm.
    ///
    /// [`Job::set_aside_after`]: crate::job::Job::set_aside_after
    ///
    /// # Errors
    /// An error of user code fails the job.
    fn apply(&mut self, rows: Rows<Self::In>, cursor: &mut Cursor) -> Result<Rows<Self::Out>>;
}

/// Where in a batch a stage is, so that a failure can name the record.
#[derive(Debug, Default)]
pub struct Cursor {
    /// The row that is being worked on.
    pub row: usize,
    /// Where the rows come from; kept here, not in the batch, while stages work on it.
    pub lineage: Option<Lineage>,
}

impl Cursor {
    /// New row `i` comes from what was row `from[i]`.
    pub fn reindex(&mut self, mut from: Vec<u32>) {
        if let Some(lineage) = &mut self.lineage {
            if !lineage.index.is_empty() {
                from.iter_mut().for_each(|row| *row = lineage.index[*row as usize]);
            }
            lineage.index = from;
        }
    }
}

/// A stateless operator with two outputs.
pub trait Divider: Send + 'static {
    /// What comes in.
    type In: Data;
    /// What goes out at the first output.
    type Main: Data;
    /// What goes out at the second output.
    type Side: Data;

    /// Decides where one value goes.
    fn divide(&mut self, value: Self::In) -> Side<Self::Main, Self::Side>;
}

/// One of two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side<A, B> {
    /// The first.
    Main(A),
    /// The second.
    Side(B),
}

/// A record of one of two streams that were put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Either<A, B> {
    /// Of the first.
    First(A),
    /// Of the second.
    Second(B),
}

/// An operator with keyed state. One instance per worker; each sees the keys of its own key groups, and holds their state.
///
/// **Order**: within an epoch batches come in any order. When [`on_watermark`](Self::on_watermark) is called, no record
/// that is not behind its split's watermark will come before it (one at that very instant still may), and no record at all that
/// counts for a window which ends at or before it.
pub trait KeyedOperator: Send + 'static {
    /// By what records are grouped.
    type Key: Key;
    /// What comes in.
    type In: Data;
    /// What goes out.
    type Out: Data;
    /// What is kept; the driver snapshots and restores it.
    type State: State;

    /// What it does, with everything on which the meaning of its state depends: a checkpoint of an operator that
    /// described itself otherwise is refused.
    fn describe(&self) -> String;

    /// Empty state for a worker that owns `groups`.
    fn state(&self, groups: Range<u32>) -> Self::State;

    /// What its states are called, in the order of the tuple, for people who look into checkpoints. Unnamed ones are `state`, or
    /// `state-0` and so on.
    fn state_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// What reads its states in checkpoints, in the order of the tuple. Those of the state itself, unless users should be able to ask for less than
    /// what is kept.
    fn readers(&self) -> Vec<Reader> {
        self.state(0..0).readers()
    }

    /// The event time that a number in a state, by its place in the tuple, stands for: that of a slice or window; for a mark, all
    /// time up to it. Nothing, where numbers are only numbers.
    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        let _ = (state, number);
        None
    }

    /// Whether its results depend on the order in which records from several splits meet, so that two runs over the same input
    /// may differ. A replay does not compare the sinks behind it.
    fn depends_on_order(&self) -> bool {
        false
    }

    /// Whether [`KeyedRows::positions`] must be filled.
    fn needs_positions(&self) -> bool {
        false
    }

    /// Whether it asks for [processing time](Context::processing_time), or has [`on_clock`](Self::on_clock) called. Then its results depend on
    /// that, and [`depends_on_order`](Self::depends_on_order) should say so.
    fn uses_clock(&self) -> bool {
        false
    }

    /// The run begins, with the state that was restored. To emit something here is for tables alone: it comes before everything else, under the
    /// least moment there is, and only regions of differential know what to do with that.
    ///
    /// # Errors
    /// An error fails the job.
    #[doc(hidden)]
    fn on_start(&mut self, cx: &mut Context<Self::In, Self::Out>, state: &mut Self::State) -> Result<()> {
        let _ = (cx, state);
        Ok(())
    }

    /// Whether its state has to be in memory, whatever the limit.
    fn stays_in_memory(&self) -> bool {
        false
    }

    /// Takes a batch in. `rows` stays with the driver; an operator may take what it needs out of it, but must leave the rest in its
    /// place: should it fail, row [`Context::row`] is named, and may be set aside.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_batch(
        &mut self,
        cx: &mut Context<Self::In, Self::Out>,
        state: &mut Self::State,
        rows: &mut KeyedRows<Self::Key, Self::In>,
    ) -> Result<()>;

    /// Event time has come to `watermark`. Returns whether all is done; otherwise it is called again with at least this
    /// watermark, after others had their turn. An operator that emits much should return after [`Context::is_full`].
    ///
    /// # Errors
    /// An error fails the job.
    fn on_watermark(
        &mut self,
        cx: &mut Context<Self::In, Self::Out>,
        state: &mut Self::State,
        watermark: EventTime,
    ) -> Result<Fired>;

    /// The clock has come to `now`: does what is due by processing time, and says when it is to be called next, at the latest. Called first
    /// at the start, after every batch and firing, and when it is time; only where [`uses_clock`](Self::uses_clock) says so. What
    /// is emitted must not be before the watermark.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_clock(
        &mut self,
        cx: &mut Context<Self::In, Self::Out>,
        state: &mut Self::State,
        now: ProcessingTime,
    ) -> Result<Option<ProcessingTime>> {
        let _ = (cx, state, now);
        Ok(None)
    }
}

/// A keyed operator that is also told records without keys, all of them on every worker.
pub trait Hearing: KeyedOperator {
    /// Takes in records that all workers are told. In one epoch all are told the same, each batch in whatever order. They keep what
    /// came of it in [`Replicated`](millstream_state::replicated::Replicated) state.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_broadcast(
        &mut self,
        cx: &mut Context<Self::In, Self::Out>,
        state: &mut Self::State,
        rows: &mut KeyedRows<(), Self::In>,
    ) -> Result<()>;
}

/// A keyed operator whose records can be taken together, in part, on the worker that read them, so that less travels to the
/// worker that owns their key.
pub trait Combining: KeyedOperator {
    /// What takes records together.
    type Combiner: Combiner<Key = Self::Key, In = Self::In>;

    /// An empty combiner, for one worker.
    fn combiner(&self) -> Self::Combiner;

    /// The watermark for which `state`, as it was restored, has fired. A record that counts only for windows which end at or before
    /// it is not taken together with others, on no worker: it may be late, for this operator to decide.
    fn fired(&self, state: &Self::State) -> EventTime;

    /// Takes in what combiners have made of records.
    ///
    /// # Errors
    /// An error fails the job.
    fn on_combined(
        &mut self,
        cx: &mut Context<Self::In, Self::Out>,
        state: &mut Self::State,
        rows: &mut KeyedRows<Self::Key, <Self::Combiner as Combiner>::Out>,
    ) -> Result<()>;
}

/// Holds what records of a key amount to, on the worker that read them.
///
/// What it holds is never part of a checkpoint: the driver has it hand over everything before an epoch ends.
pub trait Combiner: 'static {
    /// By what records are grouped.
    type Key: Key;
    /// What comes in.
    type In: Data;
    /// What records amount to.
    type Out: Data;

    /// Takes records out of `rows`; what it leaves travels as it is, and so must every record that may be late: all windows that it
    /// belongs to end at or before `fired`, or the watermark that it is behind. `row` says which one is being worked on, in case user code panics.
    ///
    /// # Errors
    /// An error fails the job.
    fn take(&mut self, rows: &mut KeyedRows<Self::Key, Self::In>, fired: EventTime, row: &mut usize) -> Result<()>;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool;

    /// Whether it should hand over everything at once.
    fn is_full(&self) -> bool;

    /// Hands over, as up to `most` rows, what counts for windows that end at or before `watermark`; returns whether that was
    /// all.
    fn release(&mut self, watermark: EventTime, most: usize, out: &mut KeyedRows<Self::Key, Self::Out>) -> Fired;
}

/// Whether an operator is done with a watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// All is done.
    All,
    /// There is more to do at the same watermark.
    More,
}

/// How many records an operator may emit in one go before it should let others have their turn.
const FULL: usize = 64 << 10;

/// What a keyed operator writes to.
#[derive(Debug)]
pub struct Context<In, Out> {
    /// The row that is being worked on, for the error in case user code panics.
    pub row: usize,
    pub(crate) out: Rows<Out>,
    pub(crate) late: Rows<In>,
    pub(crate) late_count: u64,
    pub(crate) fired: u64,
    pub(crate) keep_late: bool,
    pub(crate) pressed: bool,
    pub(crate) now: ProcessingTime,
}

impl<In: Data, Out: Data> Context<In, Out> {
    pub(crate) fn new(keep_late: bool) -> Self {
        let (out, late) = (Rows::default(), Rows::default());
        Context { row: 0, out, late, late_count: 0, fired: 0, keep_late, pressed: false, now: ProcessingTime::MAX }
    }

    /// Makes room for so many results.
    pub fn reserve(&mut self, results: usize) {
        self.out.records.reserve(results);
    }

    /// Emits a result. A result of a window has the window's last instant as its event time.
    #[inline]
    pub fn emit(&mut self, at: EventTime, value: Out) {
        self.out.records.push(Record { at, value });
    }

    /// Emits what was derived from a record that was behind `watermark`.
    pub fn emit_behind(&mut self, at: EventTime, value: Out, watermark: EventTime) {
        self.out.push(at, value, Some(watermark));
    }

    /// Counts a record as late and sends it to the side output, if there is one.
    pub fn late(&mut self, at: EventTime, value: &In, watermark: EventTime) {
        self.late_count += 1;
        if self.keep_late {
            self.late.push(at, value.clone(), Some(watermark));
        }
    }

    /// Counts a window as fired.
    pub fn fired(&mut self) {
        self.fired += 1;
    }

    /// What the clock said when this batch or firing was begun, for operators that [use it](KeyedOperator::uses_clock).
    pub fn processing_time(&self) -> ProcessingTime {
        self.now
    }

    /// Whether the source of the last batch had more to read at once. Then it matters how much is done in a time; otherwise,
    /// how soon.
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }

    /// Whether so much was emitted that others should have their turn.
    pub fn is_full(&self) -> bool {
        self.out.records.len() >= FULL
    }
}
