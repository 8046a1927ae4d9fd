//! Inputs: what a script says that splits give, as a source of the real runtime.
//!
//! Records and watermarks stand in one list per split, which stays in memory, so that it can be read again after a crash. A gate says up to
//! where it may be read; opening it is how a step is taken.
//!
//! A watermark generator sees nothing but event times, so a watermark is given as two elements without a value: one at [`EventTime::MIN`], which
//! announces it, and one at the watermark. A record that really is at `MIN` is announced as well, and moves nothing.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::source::{Output, Read, Source, SplitReader, Waker};
use millstream_runtime::time::EventTime;
use millstream_runtime::watermark::WatermarkGenerator;
use serde::{Deserialize, Serialize};

use super::When;
use super::step::{Given, Step};

/// An input of a job under test: a source whose records, watermarks and ends a script gives.
///
/// Its methods make [`Step`]s. An input has one split, unless it is given more [`with_splits`](Self::with_splits).
pub struct Input<T> {
    pub(super) id: usize,
    pub(super) name: String,
    splits: Arc<AtomicUsize>,
    /// After how many microseconds splits are idle; 0: never.
    idle_us: Arc<AtomicU64>,
    split: Option<usize>,
    item: PhantomData<fn(T)>,
}

impl<T> Clone for Input<T> {
    fn clone(&self) -> Self {
        let (id, name, splits) = (self.id, self.name.clone(), Arc::clone(&self.splits));
        Input { id, name, splits, idle_us: Arc::clone(&self.idle_us), split: self.split, item: PhantomData }
    }
}

impl<T> std::fmt::Debug for Input<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("name", &self.name)
            .field("split", &self.split)
            .finish_non_exhaustive()
    }
}

/// A number that no other input or output has.
pub(super) fn next_id() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<T: Data + std::fmt::Debug> Input<T> {
    /// An input, with a name for messages.
    pub fn new(name: impl Into<String>) -> Self {
        let splits = Arc::new(AtomicUsize::new(1));
        let idle_us = Arc::new(AtomicU64::new(0));
        Input { id: next_id(), name: name.into(), splits, idle_us, split: None, item: PhantomData }
    }

    /// Splits of it, and all its clones, that have been given nothing for so long are idle, by the [clock](super::clock) of the script; see
    /// [`Watermarks::idle_after`](crate::prelude::Watermarks::idle_after). Counts for what is started from now on.
    #[must_use]
    pub fn idle_after(self, span: Duration) -> Self {
        self.idle_us.store(u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        self
    }

    pub(super) fn idle(&self) -> Option<Duration> {
        let us = self.idle_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// Gives it, and all its clones, so many splits (at least 1). Counts for what is started from now on.
    #[must_use]
    pub fn with_splits(self, splits: usize) -> Self {
        self.splits.store(splits.max(1), Ordering::Relaxed);
        self
    }

    /// The same input, whose steps are of this split, counted from 0.
    #[must_use]
    pub fn split(&self, split: usize) -> Self {
        Input { split: Some(split), ..self.clone() }
    }

    pub(super) fn split_count(&self) -> usize {
        self.splits.load(Ordering::Relaxed)
    }

    /// A record; of the first split, unless another was [chosen](Self::split).
    #[track_caller]
    pub fn at(&self, when: impl When, value: T) -> Step {
        let at = when.time();
        let text = format!("{}.at({at}, {value:?})", self.shown());
        self.records(text, vec![(at, value)])
    }

    /// Several records in one step, so that they are processed together.
    #[track_caller]
    pub fn all<W: When>(&self, records: impl IntoIterator<Item = (W, T)>) -> Step {
        let records: Vec<_> = records.into_iter().map(|(when, value)| (when.time(), value)).collect();
        let text = format!("{}.all({records:?})", self.shown());
        self.records(text, records)
    }

    #[track_caller]
    fn records(&self, text: String, records: Vec<(EventTime, T)>) -> Step {
        let give = move |feed: &dyn AnyFeed, split| match feed.as_any().downcast_ref::<Feed<T>>() {
            Some(feed) => feed.give(split, &records),
            None => Err(Error::internal("an input of another type")),
        };
        Step::give(text, self.id, Some(self.split.unwrap_or(0)), Given::Records(Box::new(give)))
    }

    /// The watermark is `when` from now on: no record before it will come, and one that does is late. Of all splits, unless one was
    /// [chosen](Self::split).
    #[track_caller]
    pub fn watermark(&self, when: impl When) -> Step {
        let at = when.time();
        Step::give(format!("{}.watermark({at})", self.shown()), self.id, self.split, Given::Watermark(at))
    }

    /// Nothing comes any more, and event time is no longer held back. Of all splits, unless one was [chosen](Self::split).
    #[track_caller]
    pub fn end(&self) -> Step {
        Step::give(format!("{}.end()", self.shown()), self.id, self.split, Given::End)
    }

    fn shown(&self) -> String {
        match self.split {
            None => self.name.clone(),
            Some(split) => format!("{}.split({split})", self.name),
        }
    }
}

/// What stands in the list of a split.
#[derive(Clone)]
enum Element<T> {
    /// A watermark comes next, or a record at `MIN`.
    Announced,
    Watermark(EventTime),
    Record(EventTime, T),
    End,
}

/// What the source gives: a record, or an event time that means something to [`Spoken`].
#[derive(Clone)]
pub(super) struct Item<T> {
    pub at: EventTime,
    pub value: Option<T>,
}

/// The watermark that a script speaks of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Spoken {
    watermark: EventTime,
    announced: bool,
}

impl Spoken {
    pub(super) fn new() -> Self {
        Spoken { watermark: EventTime::MIN, announced: false }
    }
}

impl WatermarkGenerator for Spoken {
    fn observe(&mut self, at: EventTime) {
        if std::mem::take(&mut self.announced) {
            self.watermark = self.watermark.max(at);
        } else {
            self.announced = at == EventTime::MIN;
        }
    }

    fn watermark(&self) -> EventTime {
        // Only the end of a split makes its watermark MAX.
        self.watermark.min(EventTime::from_micros(i64::MAX - 1))
    }
}

/// What all splits of an input give, and how far that was read.
pub(super) struct Feed<T> {
    state: Mutex<Vec<Split<T>>>,
}

struct Split<T> {
    elements: Vec<Element<T>>,
    /// Up to where they may be read.
    open: usize,
    /// Whether a reader says that there is more, after what it gave; then operators work as under a load.
    pressed: bool,
    /// The next one to be read.
    next: usize,
    /// Of the reader, if there is one in this start of the job.
    waker: Option<Waker>,
}

/// A [`Feed`] of any type.
pub(super) trait AnyFeed: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn splits(&self) -> usize;
    /// How many elements a split has.
    fn len(&self, split: usize) -> usize;
    fn is_ended(&self, split: usize) -> bool;
    fn watermark(&self, split: usize, at: EventTime) -> Result<()>;
    fn end(&self, split: usize) -> Result<()>;
    /// The job is about to start: nothing may be read, and nobody reads.
    fn shut(&self);
    /// The job has started. A split that nobody reads had ended when the checkpoint was taken.
    fn started(&self);
    /// How much of a split was read.
    fn position(&self, split: usize) -> usize;
    /// Lets a split be read up to there, if it has not been.
    fn open(&self, split: usize, up_to: usize, pressed: bool);
    /// Whether all that may be read was.
    fn is_read(&self) -> bool;
}

impl<T: Data> Feed<T> {
    pub(super) fn new(splits: usize) -> Self {
        let split = || Split { elements: Vec::new(), open: 0, pressed: false, next: 0, waker: None };
        Feed { state: Mutex::new((0..splits).map(|_| split()).collect()) }
    }

    fn state(&self) -> MutexGuard<'_, Vec<Split<T>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, split: usize, records: &[(EventTime, T)]) -> Result<()> {
        self.add(split, |elements| {
            for (at, value) in records {
                elements.extend((*at == EventTime::MIN).then_some(Element::Announced));
                elements.push(Element::Record(*at, value.clone()));
            }
        })
    }

    fn add(&self, split: usize, add: impl FnOnce(&mut Vec<Element<T>>)) -> Result<()> {
        let mut splits = self.state();
        let count = splits.len();
        let Some(of) = splits.get_mut(split) else {
            return Err(Error::config(format!("there is no split {split}, but {count}, counted from 0"))
                .hint("say how many there are with `Input::with_splits`, before the job is started"));
        };
        if matches!(of.elements.last(), Some(Element::End)) {
            return Err(Error::config(format!("split {split} has ended, so it can give nothing more")));
        }
        add(&mut of.elements);
        Ok(())
    }
}

impl<T: Data> AnyFeed for Feed<T> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn splits(&self) -> usize {
        self.state().len()
    }

    fn len(&self, split: usize) -> usize {
        self.state()[split].elements.len()
    }

    fn is_ended(&self, split: usize) -> bool {
        matches!(self.state()[split].elements.last(), Some(Element::End))
    }

    fn watermark(&self, split: usize, at: EventTime) -> Result<()> {
        self.add(split, |elements| elements.extend([Element::Announced, Element::Watermark(at)]))
    }

    fn end(&self, split: usize) -> Result<()> {
        self.add(split, |elements| elements.push(Element::End))
    }

    fn shut(&self) {
        for split in &mut *self.state() {
            (split.open, split.next, split.waker) = (0, 0, None);
        }
    }

    fn started(&self) {
        for split in &mut *self.state() {
            if split.waker.is_none() {
                (split.open, split.next) = (split.elements.len(), split.elements.len());
            }
        }
    }

    fn position(&self, split: usize) -> usize {
        self.state()[split].next
    }

    fn open(&self, split: usize, up_to: usize, pressed: bool) {
        let mut splits = self.state();
        let of = &mut splits[split];
        (of.open, of.pressed) = (of.open.max(up_to), pressed);
        let waker = of.waker.clone();
        drop(splits);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_read(&self) -> bool {
        self.state().iter().all(|split| split.next >= split.open)
    }
}

/// Reads a [`Feed`].
pub(super) struct FeedSource<T>(pub Arc<Feed<T>>);

impl<T: Data> Source for FeedSource<T> {
    type Item = Item<T>;
    type Position = usize;
    type Reader = FeedReader<T>;

    fn kind(&self) -> &'static str {
        "script"
    }

    fn splits(&self) -> Result<Vec<String>> {
        Ok((0..AnyFeed::splits(&*self.0)).map(|split| split.to_string()).collect())
    }

    fn open(&self, split: &str, from: Option<usize>, waker: Waker) -> Result<FeedReader<T>> {
        let split = split.parse().map_err(|_| Error::internal(format!("no split `{split}`")))?;
        let mut splits = self.0.state();
        let of: &mut Split<T> = &mut splits[split];
        (of.next, of.waker) = (from.unwrap_or(0), Some(waker));
        drop(splits);
        Ok(FeedReader { feed: Arc::clone(&self.0), split })
    }
}

/// Reads one split of a [`Feed`].
pub(super) struct FeedReader<T> {
    feed: Arc<Feed<T>>,
    split: usize,
}

impl<T: Data> SplitReader for FeedReader<T> {
    type Item = Item<T>;
    type Position = usize;

    fn read(&mut self, max: usize, out: &mut impl Output<Item<T>>) -> Result<Read> {
        let mut splits = self.feed.state();
        let of = &mut splits[self.split];
        let first = of.next;
        while of.next < of.open && of.next - first < max {
            match &of.elements[of.next] {
                Element::Announced => out.record(Item { at: EventTime::MIN, value: None }),
                Element::Watermark(at) => out.record(Item { at: *at, value: None }),
                Element::Record(at, value) => out.record(Item { at: *at, value: Some(value.clone()) }),
                // In a read of its own, so that all before it is on its way.
                Element::End if of.next > first => return Ok(Read::More),
                Element::End => {
                    of.next += 1;
                    return Ok(Read::Ended);
                }
            }
            of.next += 1;
        }
        if of.next > first {
            return Ok(if of.pressed { Read::More } else { Read::Later(Duration::ZERO) });
        }
        // The list is locked until it sleeps, so whoever opens the gate after this wakes it.
        if let Some(waker) = &of.waker {
            waker.will_sleep();
        }
        Ok(Read::Empty)
    }

    fn position(&self) -> usize {
        AnyFeed::position(&*self.feed, self.split)
    }
}
