//! Outputs: what came out of a job, seen at once, and counted once however often the job crashed.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_runtime::error::Result;
use millstream_runtime::moment::Epoch;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};

use super::When;
use super::input::next_id;
use super::step::Step;

/// An output of a job under test. Its methods make [`Step`]s that compare what came out; see also [`Trial::take`](super::Trial::take).
pub struct Output<T> {
    pub(super) id: usize,
    pub(super) name: String,
    item: PhantomData<fn() -> T>,
}

impl<T> Clone for Output<T> {
    fn clone(&self) -> Self {
        Output { id: self.id, name: self.name.clone(), item: PhantomData }
    }
}

impl<T> std::fmt::Debug for Output<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Output").field(&self.name).finish()
    }
}

impl<T: Data + PartialEq + std::fmt::Debug> Output<T> {
    /// An output, with a name for messages.
    pub fn new(name: impl Into<String>) -> Self {
        Output { id: next_id(), name: name.into(), item: PhantomData }
    }

    /// Exactly these values have come out since the last expectation of this output, in any order, whatever their event times.
    #[track_caller]
    pub fn expect(&self, values: impl IntoIterator<Item = T>) -> Step {
        let expected: Vec<T> = values.into_iter().collect();
        let text = format!("{}.expect({expected:?})", self.name);
        let check = move |records: &dyn AnyRecords| {
            let got = downcast::<T>(records).into_iter().flatten();
            let (missing, more) = difference(&expected, got, |expected, got| *expected == got.value);
            lines(missing.into_iter().map(|value| format!("{value:?}")), more)
        };
        Step::output(text, self.id, Box::new(check))
    }

    /// Exactly these values have come out since the last expectation of this output, at these event times, in any order.
    #[track_caller]
    pub fn expect_at<W: When>(&self, records: impl IntoIterator<Item = (W, T)>) -> Step {
        let records = records.into_iter().map(|(when, value)| Record { at: when.time(), value });
        let expected = Records(records.collect());
        let text = format!("{}.expect_at({expected})", self.name);
        Step::output(text, self.id, Box::new(move |got| expected.differs(got)))
    }
}

/// What came out of one output in one or several steps.
pub(super) trait AnyRecords {
    fn as_any(&self) -> &dyn Any;
    fn clear(&mut self);
    /// Takes in what came later.
    fn extend(&mut self, more: &dyn AnyRecords);
    /// How `got` differs from this, in lines; `None` if it does not.
    fn differs(&self, got: &dyn AnyRecords) -> Option<Vec<String>>;
    /// These records as such that nobody expects, in lines; `None` if there are none.
    fn all_too_much(&self) -> Option<Vec<String>>;
    /// No records, of the same type.
    fn none(&self) -> Box<dyn AnyRecords>;
}

/// The records themselves.
#[derive(Clone)]
pub(super) struct Records<T>(pub Vec<Record<T>>);

fn downcast<T: 'static>(records: &dyn AnyRecords) -> Option<&Vec<Record<T>>> {
    records.as_any().downcast_ref::<Records<T>>().map(|records| &records.0)
}

impl<T: std::fmt::Debug> std::fmt::Display for Records<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records: Vec<String> = self.0.iter().map(shown).collect();
        write!(f, "[{}]", records.join(", "))
    }
}

impl<T: Data + PartialEq + std::fmt::Debug> AnyRecords for Records<T> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn extend(&mut self, more: &dyn AnyRecords) {
        self.0.extend(downcast::<T>(more).into_iter().flatten().cloned());
    }

    fn differs(&self, got: &dyn AnyRecords) -> Option<Vec<String>> {
        let got = downcast::<T>(got).into_iter().flatten();
        let (missing, more) = difference(&self.0, got, |expected, got| expected == got);
        lines(missing.into_iter().map(shown), more)
    }

    fn all_too_much(&self) -> Option<Vec<String>> {
        Records(Vec::<Record<T>>::new()).differs(self)
    }

    fn none(&self) -> Box<dyn AnyRecords> {
        Box::new(Records(Vec::<Record<T>>::new()))
    }
}

fn shown<T: std::fmt::Debug>(record: &Record<T>) -> String {
    format!("{:?} at {}", record.value, record.at)
}

/// What is in one of two multisets and not in the other.
fn difference<'a, E, T>(
    expected: &'a [E],
    got: impl Iterator<Item = &'a Record<T>>,
    same: impl Fn(&E, &Record<T>) -> bool,
) -> (Vec<&'a E>, Vec<&'a Record<T>>) {
    let mut missing: Vec<&E> = expected.iter().collect();
    let mut more = Vec::new();
    for record in got {
        match missing.iter().position(|expected| same(expected, record)) {
            Some(place) => drop(missing.remove(place)),
            None => more.push(record),
        }
    }
    more.sort_by_key(|record| record.at);
    (missing, more)
}

fn lines<T: std::fmt::Debug>(missing: impl Iterator<Item = String>, more: Vec<&Record<T>>) -> Option<Vec<String>> {
    let missing = missing.map(|record| format!("missing:  {record}"));
    let lines: Vec<String> =
        missing.chain(more.into_iter().map(|record| format!("too much: {}", shown(record)))).collect();
    (!lines.is_empty()).then_some(lines)
}

/// Where an output is collected, over all starts of a job.
pub(super) struct Shelf<T> {
    state: Mutex<ShelfState<T>>,
}

struct ShelfState<T> {
    /// What nobody has taken yet, with the epochs in which it came.
    fresh: Vec<(Epoch, Record<T>)>,
    taken: Vec<(Epoch, Record<T>)>,
    /// What was taken, and undone by a crash: it must come again, and is not to be taken twice.
    undone: Vec<Record<T>>,
}

/// A [`Shelf`] of any type.
pub(super) trait AnyShelf: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    /// What came out since the last time.
    fn take(&self) -> Box<dyn AnyRecords>;
    /// What was taken, undone by a crash, and has not come again, in lines.
    fn missing(&self) -> Vec<String>;
}

impl<T: Data + PartialEq> Shelf<T> {
    pub(super) fn new() -> Self {
        Shelf { state: Mutex::new(ShelfState { fresh: Vec::new(), taken: Vec::new(), undone: Vec::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, ShelfState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came out since the last time, by event time.
    pub(super) fn take_records(&self) -> Vec<Record<T>> {
        let mut state = self.state();
        state.settle();
        let mut records: Vec<_> = state.fresh.iter().map(|(_, record)| record.clone()).collect();
        let fresh = std::mem::take(&mut state.fresh);
        state.taken.extend(fresh);
        records.sort_by_key(|record| record.at);
        records
    }
}

impl<T: PartialEq> ShelfState<T> {
    /// What has come again is what was taken before.
    fn settle(&mut self) {
        let undone = &mut self.undone;
        let again = self.fresh.extract_if(.., |(_, record)| match undone.iter().position(|undone| undone == record) {
            Some(place) => {
                undone.swap_remove(place);
                true
            }
            None => false,
        });
        self.taken.extend(again);
    }
}

impl<T: Data + PartialEq + std::fmt::Debug> AnyShelf for Shelf<T> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn take(&self) -> Box<dyn AnyRecords> {
        Box::new(Records(self.take_records()))
    }

    fn missing(&self) -> Vec<String> {
        let mut state = self.state();
        state.settle();
        state.undone.iter().map(shown).collect()
    }
}

/// A sink into a [`Shelf`]. What it is given is seen at once; what came after the checkpoint from which a job starts again is undone.
pub(super) struct ShelfSink<T>(pub Arc<Shelf<T>>);

impl<T: Data + PartialEq> Sink<T> for ShelfSink<T> {
    type Writer = ShelfWriter<T>;

    fn kind(&self) -> &'static str {
        "trial"
    }

    fn writer(&self, _task: &SinkTask) -> Result<ShelfWriter<T>> {
        Ok(ShelfWriter(Arc::clone(&self.0)))
    }

    fn committer(&self, _job: &str) -> Option<Box<dyn Committer>> {
        Some(Box::new(ShelfWriter(Arc::clone(&self.0))))
    }
}

/// Both writer and committer of a [`ShelfSink`].
pub(super) struct ShelfWriter<T>(Arc<Shelf<T>>);

impl<T: Data + PartialEq> SinkWriter<T> for ShelfWriter<T> {
    fn write(&mut self, epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()> {
        self.0.state().fresh.extend(records.drain(..).map(|record| (epoch, record)));
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

impl<T: Data + PartialEq> Committer for ShelfWriter<T> {
    fn recover(&mut self, restored: Option<Epoch>, _handles: &[String], _withdraw: bool) -> Result<()> {
        let kept = restored.unwrap_or(0);
        let state = &mut *self.0.state();
        state.fresh.retain(|(epoch, _)| *epoch <= kept);
        let undone = state.taken.extract_if(.., |(epoch, _)| *epoch > kept);
        state.undone.extend(undone.map(|(_, record)| record));
        Ok(())
    }

    fn commit(&mut self, _handles: &[String]) -> Result<()> {
        Ok(())
    }
}
