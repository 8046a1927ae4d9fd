//! Operators with keyed state: restored at the start, snapshotted at the end of every epoch.

use std::any::TypeId;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millstream_state::StateError;
use millstream_state::evolve::Migrations;
use millstream_state::key_group::{KEY_GROUPS, groups_of};
use millstream_state::migrate::StateForm;
use millstream_state::rocks::Next;
use millstream_state::snapshot::{Key, Pressure, State};

use super::combine::{Combine, CombineLogic, CombinedRows};
use super::{EpochLogic, Outbox, Task, guard};
use crate::bench::probe::Born;
use crate::clock::ProcessingTime;
use crate::error::{Error, Result, shown_key};
use crate::inspect::Shown;
use crate::moment::Epoch;
use crate::operator::{Combining, Context, Fired, Hearing, KeyedOperator};
use crate::poison::{Blame, record_of};
use crate::record::Data;
use crate::rows::{AnyRows, BroadcastRows, KeyedRows, Rows, downcast, is};
use crate::shared::{Part, Report};
use crate::time::EventTime;

pub(crate) trait KeyedFactory: Send {
    /// The operator in words, and the form of its state.
    fn describe(&self) -> (String, String);
    /// What its state can be read and shown with.
    fn shown(&self) -> Shown;
    fn depends_on_order(&self) -> bool;
    fn uses_clock(&self) -> bool;
    /// The form of its states, with schemas.
    fn forms(&self, migrations: &Migrations) -> Vec<StateForm>;
    /// An instance for one worker. Its state is restored only when the result is called.
    fn build(&self, task: Task) -> Box<dyn FnOnce() -> Result<Box<dyn EpochLogic>>>;
    /// What takes records together in front of it, if it can.
    fn combiner(&self, task: &Task) -> Option<Box<dyn CombineLogic>>;
}

/// An operator, of which every worker gets a clone.
pub(crate) struct KeyedNode<O: KeyedOperator> {
    operator: O,
    on_other: Option<OnOther<O>>,
    combining: Option<CombiningWith<O>>,
}

/// How records are taken together in front of an operator.
struct CombiningWith<O: KeyedOperator> {
    combiner: fn(&O, &Task) -> Box<dyn CombineLogic>,
    fired: fn(&O, &O::State) -> EventTime,
}

struct KeyedLogic<O: KeyedOperator> {
    operator: O,
    state: O::State,
    /// How many entries there were when the epoch that is being closed ended.
    entries: u64,
    cx: Context<O::In, O::Out>,
    /// Takes in batches that are not records with keys.
    on_other: Option<OnOther<O>>,
    /// The last epoch that was asked to be closed, and how much that was needed.
    pressed: (Epoch, Pressure),
    task: Task,
}

/// What combiners have made of records, or what all workers are told, for operators that have such. It says itself over what it failed.
type OnOther<O> = fn(
    &mut O,
    &mut Context<<O as KeyedOperator>::In, <O as KeyedOperator>::Out>,
    &mut <O as KeyedOperator>::State,
    Box<dyn AnyRows>,
    &Task,
) -> Result<()>;

impl<O: KeyedOperator> KeyedNode<O> {
    /// One that sees every record.
    pub(crate) fn plain(operator: O) -> Self {
        KeyedNode { operator, on_other: None, combining: None }
    }
}

impl<O: Hearing> KeyedNode<O> {
    /// One that is also told what all workers are.
    pub(crate) fn hearing(operator: O) -> Self {
        let on_broadcast: OnOther<O> = |operator, cx, state, rows, task| {
            let mut rows = downcast::<BroadcastRows<O::In>>(rows).rows;
            task.stats().records_in.fetch_add(rows.records.len() as u64, Ordering::Relaxed);
            let told = guard(&task.name, || operator.on_broadcast(cx, state, &mut rows));
            told.map_err(|error| blame_of(error, &rows, cx.row, task))
        };
        KeyedNode { operator, on_other: Some(on_broadcast), combining: None }
    }
}

impl<O: Combining> KeyedNode<O> {
    /// One in front of which records are taken together.
    pub(crate) fn combining(operator: O) -> Self {
        let combining = CombiningWith {
            combiner: |operator: &O, task| Box::new(Combine::new(operator.combiner(), task.clone())),
            fired: |operator, state| operator.fired(state),
        };
        let on_combined: OnOther<O> = |operator, cx, state, rows, task| {
            let mut rows = downcast::<CombinedRows<O::Combiner>>(rows);
            let merged = guard(&task.name, || operator.on_combined(cx, state, &mut rows.0));
            merged.map_err(|error| {
                let reason =
                    "it failed on what several records amount to, which were taken together before they travelled";
                error.blaming("records taken together", Blame::Nobody(reason))
            })
        };
        KeyedNode { operator, on_other: Some(on_combined), combining: Some(combining) }
    }
}

impl<O: KeyedOperator + Clone> KeyedFactory for KeyedNode<O> {
    fn describe(&self) -> (String, String) {
        (self.operator.describe(), self.operator.state(0..0).shape())
    }

    fn shown(&self) -> Shown {
        shown(&self.operator)
    }

    fn depends_on_order(&self) -> bool {
        self.operator.depends_on_order()
    }

    fn uses_clock(&self) -> bool {
        self.operator.uses_clock()
    }

    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        self.operator.state(0..0).forms(migrations)
    }

    fn build(&self, task: Task) -> Box<dyn FnOnce() -> Result<Box<dyn EpochLogic>>> {
        let operator = self.operator.clone();
        let (on_other, fired) = (self.on_other, self.combining.as_ref().map(|combining| combining.fired));
        Box::new(move || {
            let logic = KeyedLogic::restored(operator, on_other, task)?;
            if let Some(fired) = fired {
                logic.task.shared.restored[logic.task.node].add(fired(&logic.operator, &logic.state));
            }
            Ok(Box::new(logic))
        })
    }

    fn combiner(&self, task: &Task) -> Option<Box<dyn CombineLogic>> {
        self.combining.as_ref().map(|combining| (combining.combiner)(&self.operator, task))
    }
}

fn shown<O: KeyedOperator + Clone>(operator: &O) -> Shown {
    let readers = operator.readers();
    let given = operator.state_names();
    let name = |place: usize| match given.get(place) {
        Some(name) => name.to_string(),
        None if readers.len() == 1 => "state".to_string(),
        None => format!("state-{place}"),
    };
    let names = (0..readers.len()).map(name).collect();
    let operator = operator.clone();
    Shown { readers, names, times: Box::new(move |state, number| operator.state_times(state, number)) }
}

/// The state of one worker: empty, or what the checkpoint has for the worker's key groups.
fn restore<O: KeyedOperator>(operator: &O, task: &Task) -> Result<O::State> {
    let groups = groups_of(task.worker, task.workers);
    let mut state = operator.state(groups.clone());
    let Some(db) = &task.db else { return Ok(state) };
    let db = db.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    state.track();
    if let Some(bytes) = task.state_bytes
        && !operator.stays_in_memory()
    {
        state.limit(bytes, db.stored(task.state_id));
    }
    let entry = task.restored.as_ref().and_then(|m| m.operators.iter().find(|entry| entry.name == task.name));
    if let Some(entry) = entry {
        // What every worker keeps is read wherever it stands, for the rest its own groups are enough.
        let replicated = state.replicated();
        let all = if replicated.is_some() { 0..KEY_GROUPS } else { groups.clone() };
        let restored = db.walk(entry.id, all, |stored| {
            let wanted = groups.contains(&u32::from(stored.group)) || replicated == Some(stored.state);
            if !wanted || !state.wants(&stored) {
                return Ok(Next::State);
            }
            state.restore(stored).map(|()| Next::Entry)
        });
        restored.map_err(|error| restore_error(error).in_operator(&task.name))?;
        state.restored();
        tracing::debug!(operator = %task.name, entries = state.entries(), "state restored");
    }
    Ok(state)
}

fn restore_error(error: StateError) -> Error {
    // A disk that fails says nothing about the checkpoint.
    if matches!(error, StateError::Io { .. } | StateError::Rocks { .. }) {
        return Error::from(error);
    }
    Error::state("cannot restore the state of the checkpoint")
        .because(error)
        .hint(
            "if the types of this operator's key or state were changed in a way that their schemas do not show (a `Serialize` \
             written by hand), undo that, or start again with `--fresh`",
        )
}

impl<O: KeyedOperator> KeyedLogic<O> {
    /// An instance with the state of its worker.
    fn restored(operator: O, on_other: Option<OnOther<O>>, task: Task) -> Result<Self> {
        let state = guard(&task.name, || restore(&operator, &task))?;
        let cx = Context::new(task.connected[1]);
        Ok(KeyedLogic { operator, state, entries: 0, cx, on_other, pressed: (0, Pressure::None), task })
    }

    fn look_at_clock(&mut self) {
        if self.operator.uses_clock() {
            self.cx.now = self.task.clock.now();
        }
    }

    /// Where memory is limited: has the state let go of what it can, and asks for a checkpoint where it needs one.
    fn weigh(&mut self, epoch: Epoch) {
        if self.task.state_bytes.is_none() {
            return;
        }
        let shared = &self.task.shared;
        let pressure = self.state.relieve();
        self.task.stats().state_bytes.store(self.state.bytes() as u64, Ordering::Relaxed);
        if pressure == Pressure::None || self.task.db.is_none() {
            return;
        }
        if pressure == Pressure::Over {
            shared.full.fetch_max(epoch, Ordering::Relaxed);
        }
        if self.pressed < (epoch, pressure) {
            self.pressed = (epoch, pressure);
            shared.report(Report::Pressed(epoch));
        }
    }

    /// Moves what the operator emitted into the outbox, in batches that others can take in bites.
    fn drain(&mut self, out: &mut Outbox) {
        let stats = self.task.stats();
        stats.late.fetch_add(std::mem::take(&mut self.cx.late_count), Ordering::Relaxed);
        stats.fired.fetch_add(std::mem::take(&mut self.cx.fired), Ordering::Relaxed);
        stats.records_out.fetch_add(self.cx.out.records.len() as u64, Ordering::Relaxed);
        let made = std::mem::take(&mut self.cx.out);
        if self.task.connected[0] {
            in_batches(made, |rows| out.push((0, Box::new(rows))));
        }
        let late = std::mem::take(&mut self.cx.late);
        in_batches(late, |rows| out.push((1, Box::new(rows))));
    }
}

/// Says which record a row is, by key and time, and by position where records carry theirs.
pub(super) fn blame_of<K: Key, T>(error: Error, rows: &KeyedRows<K, T>, row: usize, task: &Task) -> Error {
    let Some(record) = rows.records.get(row) else { return error };
    // Those that all workers are told have no key.
    let place = match TypeId::of::<K>() == TypeId::of::<()>() {
        true => format!("a record at {}", record.at),
        false => format!("a record with key {} at {}", shown_key(&record.key), record.at),
    };
    let blame = match rows.positions.get(row) {
        None => Blame::Nobody("records do not carry their positions to this operator, in this run"),
        // What a result has in the place of a position.
        Some((0, 0)) if task.behind_state => {
            Blame::Nobody("it may have failed on a result of an operator with state, made from many records")
        }
        Some((place, number)) => record_of(task.splits.iter().find(|split| split.place == *place), *number),
    };
    match &blame {
        Blame::Record(record) => {
            let place = format!("{place}, record {} of split `{}`", record.record, record.split);
            error.blaming(place, blame)
        }
        Blame::Nobody(_) => error.blaming(place, blame),
    }
}

/// How many entries are looked at in one go for a checkpoint.
const COPIES: usize = 512;

/// How many results travel together at most.
const BATCH: usize = 4096;

fn in_batches<T: Data>(rows: Rows<T>, mut each: impl FnMut(Rows<T>)) {
    if rows.records.is_empty() {
        return;
    }
    if rows.records.len() <= BATCH {
        return each(rows);
    }
    let mut behind = rows.behind.into_iter().peekable();
    let mut first = 0;
    let mut records = rows.records.into_iter();
    loop {
        let part: Vec<_> = records.by_ref().take(BATCH).collect();
        if part.is_empty() {
            return;
        }
        let mut batch = Rows { records: part, behind: Vec::new(), lineage: None };
        let end = first + batch.records.len() as u32;
        while let Some(mut mark) = behind.next_if(|mark| mark.row < end) {
            mark.row -= first;
            batch.behind.push(mark);
        }
        first = end;
        each(batch);
    }
}

impl<O: KeyedOperator> EpochLogic for KeyedLogic<O> {
    fn apply(&mut self, epoch: Epoch, rows: Box<dyn AnyRows>, born: Born, out: &mut Outbox) -> Result<()> {
        self.cx.row = 0;
        self.cx.pressed = born.pressed;
        self.look_at_clock();
        if let Some(on_other) = self.on_other
            && !is::<KeyedRows<O::Key, O::In>>(&*rows)
        {
            on_other(&mut self.operator, &mut self.cx, &mut self.state, rows, &self.task)?;
            self.drain(out);
            self.weigh(epoch);
            return Ok(());
        }
        let mut rows = *downcast::<KeyedRows<O::Key, O::In>>(rows);
        let count = rows.records.len() as u64;
        let (operator, cx, state) = (&mut self.operator, &mut self.cx, &mut self.state);
        let result = guard(&self.task.name, || operator.on_batch(cx, state, &mut rows));
        self.task.stats().records_in.fetch_add(count, Ordering::Relaxed);
        if let Err(error) = result {
            return Err(blame_of(error, &rows, self.cx.row, &self.task));
        }
        self.drain(out);
        self.weigh(epoch);
        Ok(())
    }

    fn start(&mut self, out: &mut Outbox) -> Result<()> {
        let (operator, cx, state) = (&mut self.operator, &mut self.cx, &mut self.state);
        guard(&self.task.name, || operator.on_start(cx, state))?;
        self.drain(out);
        Ok(())
    }

    fn uses_clock(&self) -> bool {
        self.operator.uses_clock()
    }

    fn ring(&mut self, out: &mut Outbox) -> Result<Option<Duration>> {
        self.look_at_clock();
        let now = self.cx.now;
        let (operator, cx, state) = (&mut self.operator, &mut self.cx, &mut self.state);
        let next = guard(&self.task.name, || operator.on_clock(cx, state, now)).map_err(|error| {
            let none = Blame::Nobody("it failed by the clock, not over a record");
            error.blaming(format!("what was due by the clock at {now}"), none)
        })?;
        self.drain(out);
        let until = |next: ProcessingTime| next.micros().saturating_sub(now.micros()).max(0) as u64;
        Ok(next.map(|next| Duration::from_micros(until(next))))
    }

    fn fire(&mut self, watermark: EventTime, out: &mut Outbox) -> Result<Fired> {
        self.look_at_clock();
        let (operator, cx, state) = (&mut self.operator, &mut self.cx, &mut self.state);
        let place = || match watermark {
            EventTime::MAX => "the firing at the end of the input".to_string(),
            _ => format!("the firing for watermark {watermark}"),
        };
        let fired = guard(&self.task.name, || operator.on_watermark(cx, state, watermark));
        let none = Blame::Nobody(
            "it failed in a firing, where the record that was at work, if one was, is in checkpoints already",
        );
        let fired = fired.map_err(|error| error.blaming(place(), none))?;
        self.drain(out);
        Ok(fired)
    }

    fn close(&mut self, _epoch: Epoch) -> Result<()> {
        self.entries = self.state.entries();
        self.task.stats().state_bytes.store(self.state.bytes() as u64, Ordering::Relaxed);
        if self.task.db.is_some() {
            self.state.begin_freeze();
        }
        Ok(())
    }

    fn part(&mut self) -> Result<Option<Part>> {
        let (state, entries, kept) = (&mut self.state, self.entries, self.task.db.is_some());
        // Copying keys and values is user code.
        guard(&self.task.name, || {
            if kept && !state.copy_some(&mut COPIES.clone()) {
                return Ok(None);
            }
            let frozen = if kept { state.take_frozen() } else { None };
            Ok(Some(Part::State { frozen, entries }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_results_travel_in_batches_with_their_marks() {
        let mut rows = Rows::default();
        for i in 0..10_000i64 {
            let at = EventTime::from_micros(i);
            rows.push(at, i, (i % 1000 == 7).then_some(at));
        }
        let mut seen = Vec::new();
        in_batches(rows, |batch| {
            assert!(batch.records.len() <= BATCH);
            for mark in &batch.behind {
                assert_eq!(batch.records[mark.row as usize].at, mark.watermark);
            }
            seen.extend(batch.records.into_iter().map(|record| record.value));
        });
        assert_eq!(seen, (0..10_000).collect::<Vec<_>>());
    }
}
