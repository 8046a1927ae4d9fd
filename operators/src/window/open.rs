//! The windows of a key that are not done with, whatever bounds they have.
//!
//! There are two lists, because a record that is late for its window may never get into that window's result at its end: a record that
//! is on time goes into the first, and only into the second what comes late. When a window of the first list has had its
//! result it moves to the second, and becomes one with what is waiting for it there.

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::time::{EventSpan, EventTime};
use serde::{Deserialize, Serialize};

use super::Window;
use crate::aggregate::{Aggregate, Origin};
use crate::waking::Alarms;

pub(super) const INSTANT: EventSpan = EventSpan::micros(1);

/// All that is kept for a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Open<Acc> {
    pub alarms: Alarms,
    /// Of records that were on time: windows that have not come to their end.
    pub on_time: Windows<Acc>,
    /// Windows that have had the result of their end, and what late records belong to.
    pub after: Windows<Acc>,
}

impl<Acc> Open<Acc> {
    pub(super) fn none() -> Self {
        Open { alarms: Alarms::default(), on_time: Windows(Vec::new()), after: Windows(Vec::new()) }
    }
}

/// What records of a key in one window amount to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct OpenWindow<Acc> {
    pub start: EventTime,
    /// The last instant that belongs to it.
    pub last: EventTime,
    /// Nothing, where results are discarded and no record came since the last.
    pub acc: Option<Acc>,
    /// Of windows that may have more than one result.
    more: Option<Box<More<Acc>>>,
}

/// What matters for the next result of a window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct More<Acc> {
    /// How many records came since the last result.
    pub news: u64,
    /// When the next early result is due, by event time.
    pub early: Option<EventTime>,
    /// When it is due by the clock.
    pub by_clock: Option<ProcessingTime>,
    /// The furthest watermark that one of its records was behind.
    pub behind: Option<EventTime>,
    /// The results that hold, where they have to be retracted: for which window each was, and what it was made of.
    pub shown: Vec<(Window, Acc)>,
}

impl<Acc> OpenWindow<Acc> {
    fn empty((start, last): (EventTime, EventTime)) -> Self {
        OpenWindow { start, last, acc: None, more: None }
    }

    pub(super) fn window(&self) -> Window {
        Window { start: self.start, end: self.end() }
    }

    pub(super) fn end(&self) -> EventTime {
        self.last + INSTANT
    }

    /// Whether it has come to its end. Only at the end of time has everything.
    pub(super) fn is_over(&self, watermark: EventTime) -> bool {
        self.last < watermark || watermark == EventTime::MAX
    }

    pub(super) fn more(&mut self) -> &mut More<Acc> {
        self.more.get_or_insert_with(|| {
            Box::new(More { news: 0, early: None, by_clock: None, behind: None, shown: Vec::new() })
        })
    }

    pub(super) fn has_news(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.news > 0)
    }

    pub(super) fn early(&self) -> Option<EventTime> {
        self.more.as_ref().and_then(|more| more.early)
    }

    pub(super) fn by_clock(&self) -> Option<ProcessingTime> {
        self.more.as_ref().and_then(|more| more.by_clock)
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// Takes a record in.
    pub(super) fn add<T>(&mut self, aggregate: &impl Aggregate<T, Acc = Acc>, value: &T, origin: &Origin) {
        aggregate.add(self.acc.get_or_insert_with(|| aggregate.create()), value, origin);
    }

    /// Takes all of `other` in.
    fn absorb<T>(&mut self, other: Self, aggregate: &impl Aggregate<T, Acc = Acc>) {
        (self.start, self.last) = (self.start.min(other.start), self.last.max(other.last));
        match (&mut self.acc, other.acc) {
            (Some(own), Some(acc)) => aggregate.merge(own, &acc),
            (own @ None, acc) => *own = acc,
            (Some(_), None) => {}
        }
        if let Some(other) = other.more {
            let more = self.more();
            more.news += other.news;
            more.early = more.early.into_iter().chain(other.early).min();
            more.by_clock = more.by_clock.into_iter().chain(other.by_clock).min();
            more.behind = more.behind.max(other.behind);
            more.shown.extend(other.shown);
        }
    }
}

/// Windows of a key, in order of their ends; each once, and where windows merge no two that overlap.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Windows<Acc>(pub Vec<OpenWindow<Acc>>);

impl<Acc> Windows<Acc> {
    /// The window with these bounds (both included); where windows `merge`, all that overlap with it have become one.
    pub(super) fn window<T>(
        &mut self,
        bounds: (EventTime, EventTime),
        merge: bool,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) -> &mut OpenWindow<Acc> {
        let place = if merge { self.merged(bounds, aggregate) } else { self.place(bounds) };
        &mut self.0[place]
    }

    fn place(&mut self, (start, last): (EventTime, EventTime)) -> usize {
        let found = match self.0.last() {
            // Most records belong to the newest.
            Some(newest) if (newest.start, newest.last) == (start, last) => return self.0.len() - 1,
            _ => self.0.binary_search_by_key(&(last, start), |own| (own.last, own.start)),
        };
        found.unwrap_or_else(|place| {
            self.0.insert(place, OpenWindow::empty((start, last)));
            place
        })
    }

    fn merged<T>(&mut self, (start, last): (EventTime, EventTime), aggregate: &impl Aggregate<T, Acc = Acc>) -> usize {
        let all = &mut self.0;
        let from = match all.last() {
            Some(newest) if newest.start <= start => all.len() - usize::from(newest.last >= start),
            _ => all.partition_point(|own| own.last < start),
        };
        let to = from + all[from..].iter().take_while(|own| own.start <= last).count();
        if from == to {
            all.insert(from, OpenWindow::empty((start, last)));
            return from;
        }
        for other in all.splice(from + 1..to, []).collect::<Vec<_>>() {
            all[from].absorb(other, aggregate);
        }
        let own = &mut all[from];
        (own.start, own.last) = (own.start.min(start), own.last.max(last));
        from
    }

    /// Puts a window that has had its result to these. Where others were waiting for it, that is news.
    pub(super) fn put<T>(
        &mut self,
        mut window: OpenWindow<Acc>,
        merge: bool,
        aggregate: &impl Aggregate<T, Acc = Acc>,
    ) {
        window.more().news = 0;
        let own = self.window((window.start, window.last), merge, aggregate);
        if own.has_news() || own.acc.is_some() {
            window.more().news = 1;
        }
        own.absorb(window, aggregate);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &OpenWindow<Acc>> {
        self.0.iter()
    }
}
