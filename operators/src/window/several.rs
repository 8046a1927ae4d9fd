//! Several kinds of windows over one keyed stream, which share slices.
//!
//! **Shape**: every record is added to one slice, whatever the number of windows. When windows end, they are made together: from the end on
//! back, slice by slice and stretch by stretch, keys are gathered; at each start of a window what has been gathered is that window.
//! So windows that end together cost as many merges as the longest of them.
//!
//! **State**: one accumulator per key and slice, which goes when the last window has fired that has it; besides, with unlimited memory and in no
//! checkpoint, those of stretches. Slices are as long as the greatest common divisor of all sizes, slides and distances between offsets.
//!
//! A record that is behind its split's watermark may count in only some of the windows of its slice. It waits in a state of its own, by that
//! watermark, until all windows are fired that ended before; then it is added to its slice.

use std::ops::Range;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Found;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Combining, Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRecord, KeyedRows};
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::hash::hash_key;
use millstream_state::key_group::group_of;
use millstream_state::slices::{AT_ONCE, SliceState};
use millstream_state::snapshot::{Key, State, Value};

use super::apart::{Apart, bring_back, take, waiting};
use super::assign::{Sliced, WindowAssigner};
use super::combiner::{Slice, SliceCombiner};
use super::operator::{PANES_A_TURN, PANES_AT_ONCE, firing_groups};
use super::place::{Chunk, Places, origin};
use super::schedule::{Due, Schedule};
use super::stretches::Stretches;
use super::{Assigned, Pane, Sliding, Window, Windows};
use crate::aggregate::{Aggregate, Origin};

/// Tumbling and sliding windows of several kinds at once, which share what they keep: a record is added once, however many there are.
///
/// A result says by its [`Window`] which one it is of. A window that several kinds have, `[start, end)` being the same, is one window and has one result;
/// a kind that is named twice is there once.
///
/// ```no_run
/// # use millstream_runtime::{stream::Stream, time::EventSpan};
/// # use millstream_operators::{aggregate::Sum, window::{Several, Sliding, Tumbling, Window, WindowExt}};
/// # #[derive(Clone)] struct Order { customer: u64, cents: i64 }
/// # fn example(orders: Stream<Order>) {
/// let spend: Stream<(u64, Window, i64)> = orders
///     .key_by(|order| order.customer)
///     .window(
///         Several::of([1, 5, 15].map(|minutes| Tumbling::of(EventSpan::mins(minutes))))
///             .and([Sliding::of(EventSpan::hours(1), EventSpan::mins(5))]),
///     )
///     .aggregate(Sum::of(|order: &Order| order.cents));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Several(Vec<WindowAssigner>);

impl Several {
    /// All of these: [`Tumbling`](super::Tumbling) windows, or [`Sliding`] ones.
    ///
    /// # Panics
    /// When there are none.
    pub fn of<W: Into<Sliding>>(windows: impl IntoIterator<Item = W>) -> Self {
        let several = Several(Vec::new()).and(windows);
        assert!(!several.0.is_empty(), "several windows of no kind would have no results");
        several
    }

    /// And these.
    #[must_use]
    pub fn and<W: Into<Sliding>>(mut self, windows: impl IntoIterator<Item = W>) -> Self {
        self.0.extend(windows.into_iter().map(|windows| windows.into().assigner()));
        // What they are called, and what a checkpoint is compared with, must not depend on their order.
        self.0.sort_by_key(WindowAssigner::parts);
        self.0.dedup_by_key(|windows| windows.parts());
        self
    }
}

impl<T: Data> Windows<T> for Several {
    fn kind(&self) -> &'static str {
        "several windows"
    }

    fn describe(&self) -> String {
        self.0.iter().map(WindowAssigner::describe).collect::<Vec<_>>().join("; ")
    }

    fn assign(&self, at: EventTime, _: &T, windows: &mut Assigned) -> Result<()> {
        for kind in &self.0 {
            let (first, last) = kind.windows_of(kind.slice_of(at));
            (first..=last).for_each(|number| windows.add(kind.window(number)));
        }
        windows.dedup();
        Ok(())
    }

    fn aggregate<K: Key, A: Aggregate<T>>(
        self,
        keyed: KeyedStream<K, T>,
        aggregate: A,
    ) -> (Stream<Pane<K, A::Out>>, Stream<T>) {
        let kind = Windows::<T>::kind(&self);
        keyed.combining_operator(kind, SeveralWindows::new(self, aggregate))
    }
}

/// The operator: slices in, panes of all kinds of windows out.
struct SeveralWindows<K, T, A: Aggregate<T>> {
    windows: Several,
    schedule: Schedule,
    aggregate: A,
    places: Places,
    stretches: Stretches<K, A::Acc>,
    panes: Panes<K, A::Acc>,
    /// Windows that end here or before have been fired, in this run.
    fired: i64,
    /// The windows that are being fired.
    firing: Option<Firing>,
    types: std::marker::PhantomData<fn(K, T)>,
}

impl<K, T, A: Aggregate<T>> SeveralWindows<K, T, A> {
    fn new(windows: Several, aggregate: A) -> Self {
        let schedule = Schedule::new(&windows.0);
        SeveralWindows {
            places: Places::new(schedule.slices()),
            windows,
            schedule,
            aggregate,
            stretches: Stretches::default(),
            panes: Panes::default(),
            fired: i64::MIN,
            firing: None,
            types: std::marker::PhantomData,
        }
    }
}

impl<K, T, A: Aggregate<T>> Clone for SeveralWindows<K, T, A> {
    fn clone(&self) -> Self {
        Self::new(self.windows.clone(), self.aggregate.clone())
    }
}

/// What is kept: accumulators by slice; accumulators of records that must not count in windows that are still to be fired, with their
/// slices, by the slice that the watermark was in which they are behind; and, per key group, the watermark up to which windows were fired.
type WindowState<K, Acc> = (SliceState<K, Acc>, Apart<K, Acc>, GroupMarks);

impl<K: Key, T: Data, A: Aggregate<T>> KeyedOperator for SeveralWindows<K, T, A> {
    type Key = K;
    type In = T;
    type Out = (K, Window, A::Out);
    type State = WindowState<K, A::Acc>;

    fn describe(&self) -> String {
        format!("{}: {}", Windows::<T>::describe(&self.windows), self.aggregate.describe())
    }

    fn depends_on_order(&self) -> bool {
        A::DEPENDS_ON_ORDER
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        (SliceState::default(), SliceState::default(), GroupMarks::new(groups))
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["slices", "behind", "fired"]
    }

    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        match state {
            0 | 1 => Some(self.schedule.slices().slice_range(number)),
            _ => Some(EventTime::MIN..EventTime::from_micros(number)),
        }
    }

    fn needs_positions(&self) -> bool {
        A::NEEDS_POSITION
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, Self::Out>,
        (slices, apart, marks): &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        let mut behind = BehindWalk::new(&rows.behind);
        let fired = self.schedule.passed(EventTime::from_micros(marks.bounds().1));
        slices.load(rows.records.iter().map(|record| self.places.of(record.at))).map_err(Error::read_back)?;
        slices.prefetch(&rows.records, 0, |record| record.hash);
        for (number, chunk) in Chunk::all_of(rows).enumerate() {
            slices.prefetch(&rows.records, number + 1, |record| record.hash);
            let (mut left, mut others) = chunk.split(&behind);
            while let Some((slice, share)) = self.places.next_share(&chunk, &mut left) {
                if slice < fired {
                    others = others.with(share);
                } else {
                    chunk.add(share, slices.in_slice(slice), &self.aggregate, &mut cx.row);
                }
            }
            for (row, record) in chunk.records(others.with(left)) {
                cx.row = row;
                let slice = self.places.of(record.at);
                let behind = behind.at(row);
                let origin = origin::<K, T, A>(record, &rows.positions, row);
                if behind.is_some() || slice < fired {
                    self.add_behind(cx, slices, apart, marks, slice, behind, record, &origin)?;
                    continue;
                }
                let aggregate = &self.aggregate;
                let acc = slices.update(slice, record.hash, &record.key, || aggregate.create());
                aggregate.add(acc, &record.value, &origin);
            }
        }
        Ok(())
    }

    fn on_watermark(
        &mut self,
        cx: &mut Context<T, Self::Out>,
        state: &mut Self::State,
        watermark: EventTime,
    ) -> Result<Fired> {
        let passed = self.schedule.passed(watermark);
        loop {
            if self.firing.is_none() {
                self.firing = self.begin(state, passed)?;
            }
            let Some(firing) = &self.firing else { break };
            let end = firing.end;
            // Who is behind gains nothing by turns: the windows that are due already would wait for them.
            let whole = cx.is_pressed() || end < passed;
            if cx.is_full() || !self.fire(cx, state, whole)? {
                return Ok(Fired::More);
            }
            self.leave_behind(state, end);
        }
        self.leave_behind(state, passed);
        state.2.raise(watermark.micros());
        Ok(Fired::All)
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> Combining for SeveralWindows<K, T, A> {
    type Combiner = SliceCombiner<K, T, A>;

    /// Slices are handed over when they end, which is never after the first window that has them.
    fn combiner(&self) -> Self::Combiner {
        SliceCombiner::new(self.schedule.slices(), self.aggregate.clone())
    }

    fn fired(&self, (_, _, marks): &Self::State) -> EventTime {
        EventTime::from_micros(marks.bounds().1)
    }

    fn on_combined(
        &mut self,
        _: &mut Context<T, Self::Out>,
        (slices, _, _): &mut Self::State,
        rows: &mut KeyedRows<K, Slice<A::Acc>>,
    ) -> Result<()> {
        slices.load(rows.records.iter().map(|record| record.value.slice)).map_err(Error::read_back)?;
        slices.prefetch(&rows.records, 0, |record| record.hash);
        for (chunk, records) in rows.records.chunks(AT_ONCE).enumerate() {
            slices.prefetch(&rows.records, chunk + 1, |record| record.hash);
            for record in records {
                // Of a slice that is not over at their watermark, so they count in all of its windows, also those that are behind.
                let Slice { slice, acc, .. } = &record.value;
                let own = slices.update(*slice, record.hash, &record.key, || self.aggregate.create());
                self.aggregate.merge(own, acc);
            }
        }
        Ok(())
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> SeveralWindows<K, T, A> {
    /// Deals with a record that may not count in all windows of its slice: it is behind, or some group has fired them.
    #[cold]
    #[allow(clippy::too_many_arguments)] // one case of `on_batch`, with what that has at hand
    fn add_behind(
        &mut self,
        cx: &mut Context<T, (K, Window, A::Out)>,
        slices: &mut SliceState<K, A::Acc>,
        apart: &mut Apart<K, A::Acc>,
        marks: &GroupMarks,
        slice: i64,
        behind: Option<EventTime>,
        record: &KeyedRecord<K, T>,
        origin: &Origin,
    ) -> Result<()> {
        let aggregate = &self.aggregate;
        // Windows that have been fired stay as they are. Only a watermark that was changed between two starts can make a
        // record count that was late when they were.
        let fired = EventTime::from_micros(marks.get(group_of(record.hash)));
        let watermark = behind.map_or(fired, |behind| behind.max(fired));
        let passed = self.schedule.passed(watermark);
        if !self.schedule.is_open(slice, passed) {
            cx.late(record.at, &record.value, watermark);
            return Ok(());
        }
        if slice >= passed {
            // It counts in all of them.
            let acc = slices.update(slice, record.hash, &record.key, || aggregate.create());
            aggregate.add(acc, &record.value, origin);
            return Ok(());
        }
        if passed <= self.schedule.passed(fired) {
            // Those in which it does not count have been fired.
            let mut acc = aggregate.create();
            aggregate.add(&mut acc, &record.value, origin);
            self.join(slices, slice, record.hash, &record.key, &acc);
            return Ok(());
        }
        let acc = waiting(apart, passed, slice, record.hash, &record.key, || aggregate.create())?;
        aggregate.add(acc, &record.value, origin);
        Ok(())
    }

    /// Adds to a slice of which windows may have been fired.
    fn join(&mut self, slices: &mut SliceState<K, A::Acc>, slice: i64, hash: u64, key: &K, acc: &A::Acc) {
        let aggregate = &self.aggregate;
        aggregate.merge(slices.update(slice, hash, key, || aggregate.create()), acc);
        self.stretches.add(slice, hash, key, acc, aggregate);
    }

    /// The windows to be fired next, if there are any that end at `passed` or before. What waits for all windows before
    /// them joins its slices.
    fn begin(&mut self, (slices, apart, marks): &mut WindowState<K, A::Acc>, passed: i64) -> Result<Option<Firing>> {
        self.fired = self.fired.max(self.schedule.passed(EventTime::from_micros(marks.bounds().0)));
        loop {
            let due = self.schedule.next(self.fired, |from| slices.next_from(from)).filter(|due| due.end <= passed);
            let Some(waited_for) =
                apart.first().filter(|own| due.as_ref().map_or(*own <= passed, |due| *own < due.end))
            else {
                let firing = |Due { end, starts }| Firing { end, starts, window: 0, gathered: end, seen: 0 };
                return Ok(due.map(firing));
            };
            self.join_all(slices, apart, waited_for)?;
            self.fired = self.fired.max(waited_for);
        }
    }

    /// Adds to their slices the records that waited for all windows that end at `waited_for` or before.
    fn join_all(
        &mut self,
        slices: &mut SliceState<K, A::Acc>,
        apart: &mut Apart<K, A::Acc>,
        waited_for: i64,
    ) -> Result<()> {
        for (slice, key, acc) in take(apart, waited_for)? {
            bring_back(slices, slice)?;
            self.join(slices, slice, hash_key(&key), &key, &acc);
        }
        Ok(())
    }

    /// Emits panes of the windows that are being fired; returns whether that was all. Until it is, no others may be fired.
    fn fire(
        &mut self,
        cx: &mut Context<T, (K, Window, A::Out)>,
        (slices, _, marks): &mut WindowState<K, A::Acc>,
        whole: bool,
    ) -> Result<bool> {
        let Some(mut firing) = self.firing.take() else { return Ok(true) };
        let fires = firing_groups(marks, self.schedule.time(firing.end).micros().saturating_sub(1));
        let mut room = if whole { PANES_A_TURN } else { PANES_AT_ONCE };
        let most = room;
        while let Some(start) = firing.starts.get(firing.window).copied() {
            if start < firing.gathered {
                self.gather(slices, start, firing.gathered)?;
                firing.gathered = start;
            }
            let window = self.schedule.window(start, firing.end);
            let panes = &self.panes.all[firing.seen..];
            let panes = &panes[..room.min(panes.len())];
            cx.reserve(panes.len());
            for (key, acc) in panes {
                if fires(key) {
                    cx.fired();
                    cx.emit(window.last(), (key.clone(), window, self.aggregate.finish(acc)));
                }
            }
            room -= panes.len();
            firing.seen += panes.len();
            if firing.seen == self.panes.all.len() {
                (firing.window, firing.seen) = (firing.window + 1, 0);
            }
            if room == 0 {
                break;
            }
        }
        // The last ones go out before anything else is done, as did the ones before.
        let all = firing.window == firing.starts.len() && (whole || room == most);
        if all {
            self.panes.clear()
        } else {
            self.firing = Some(firing)
        }
        Ok(all)
    }

    /// Adds what the slices from `from` up to but not including `to` have to the panes.
    fn gather(&mut self, slices: &mut SliceState<K, A::Acc>, from: i64, to: i64) -> Result<()> {
        let (panes, aggregate) = (&mut self.panes, &self.aggregate);
        if !slices.is_limited() {
            self.stretches.each((from, to), slices, aggregate, |key, acc| panes.join(aggregate, key, acc));
            return Ok(());
        }
        // There may be no memory for stretches, nor for more than a slice at a time.
        let mut next = slices.last_before(to);
        while let Some(slice) = next.filter(|slice| *slice >= from) {
            slices.load([slice]).map_err(Error::read_back)?;
            slices.range(slice, slice + 1).for_each(|(_, key, acc)| panes.join(aggregate, key, acc));
            slices.relieve();
            next = slices.last_before(slice);
        }
        Ok(())
    }

    /// All windows that end at `passed` or before have been fired: drops what only they needed.
    fn leave_behind(&mut self, (slices, _, _): &mut WindowState<K, A::Acc>, passed: i64) {
        self.fired = passed;
        let first = self.schedule.first_needed(passed);
        slices.drop_before(first);
        self.stretches.drop_before(first);
    }
}

/// Windows that end together, of which not all panes are out.
struct Firing {
    end: i64,
    /// Where they begin, the last one first.
    starts: Vec<i64>,
    /// Which of them is being emitted.
    window: usize,
    /// The slices from this one to the end are in the panes.
    gathered: i64,
    /// How many panes of the window have been looked at.
    seen: usize,
}

/// What is gathered for windows that end together, by key.
struct Panes<K, Acc> {
    /// One after another, so that to read them out is as fast as it can be, and can be done bit by bit.
    all: Vec<(K, Acc)>,
    /// Where in `all` each key is.
    places: HashTable<usize>,
}

impl<K, Acc> Default for Panes<K, Acc> {
    fn default() -> Self {
        Panes { all: Vec::new(), places: HashTable::new() }
    }
}

impl<K: Key, Acc: Value> Panes<K, Acc> {
    fn join<T>(&mut self, aggregate: &impl Aggregate<T, Acc = Acc>, key: &K, acc: &Acc) {
        let all = &mut self.all;
        match self.places.entry(hash_key(key), |place| all[*place].0 == *key, |place| hash_key(&all[*place].0)) {
            Found::Occupied(found) => aggregate.merge(&mut all[*found.get()].1, acc),
            Found::Vacant(vacant) => {
                vacant.insert(all.len());
                all.push((key.clone(), acc.clone()));
            }
        }
    }

    fn clear(&mut self) {
        let keys = self.all.len();
        self.all.clear();
        self.places.clear();
        // After a crowd of keys, not for ever to keep the room that it needed.
        if self.all.capacity() > 1024 && keys < self.all.capacity() / 8 {
            self.all.shrink_to(keys * 2);
            self.places.shrink_to(keys * 2, |_| 0);
        }
    }
}
