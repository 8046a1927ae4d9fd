//! The operator behind all windows of fixed size: slices in, panes out.

use std::ops::Range;

use hashbrown::HashTable;
use millstream_runtime::error::Result;
use millstream_runtime::operator::{Combining, Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRecord, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::hash::hash_key;
use millstream_state::key_group::group_of;
use millstream_state::slices::{PREFETCHED, SliceState};
use millstream_state::snapshot::Key;

use super::Window;
use super::assign::WindowAssigner;
use super::combiner::{Slice, SliceCombiner};
use super::place::{Place, Places, origin};
use super::running::Running;
use crate::aggregate::{Aggregate, Origin};

/// One accumulator per key and slice; a window combines those of its slices when it fires.
///
/// A record that is behind its split's watermark may count in only some of the windows of its slice. Such records are
/// rare; each waits in [`WindowState::partial`] with the first window that it counts in, and joins panes from there on.
pub(super) struct SlicedWindows<K, T, A: Aggregate<T>> {
    windows: WindowAssigner,
    aggregate: A,
    /// The sums of the window that was fired last, where windows overlap and the aggregate can be inverted.
    running: Running<K, A::Acc>,
    places: Places,
    types: std::marker::PhantomData<fn(K, T)>,
}

/// How many panes of a tumbling window are emitted before others have their turn.
const PANES_A_TURN: usize = 64 << 10;

impl<K, T, A: Aggregate<T>> SlicedWindows<K, T, A> {
    pub(super) fn new(windows: WindowAssigner, aggregate: A) -> Self {
        SlicedWindows {
            windows,
            aggregate,
            places: Places::new(windows),
            running: Running::default(),
            types: std::marker::PhantomData,
        }
    }
}

impl<K, T, A: Aggregate<T>> Clone for SlicedWindows<K, T, A> {
    fn clone(&self) -> Self {
        Self::new(self.windows, self.aggregate.clone())
    }
}

/// What is kept: accumulators by slice; accumulators of records that count in only some windows of their slice, by the
/// last window that they count in, each with the first; and, per key group, the first window that has not been fired.
type WindowState<K, Acc> = (SliceState<K, Acc>, Partial<K, Acc>, GroupMarks);

type Partial<K, Acc> = SliceState<K, Vec<(i64, Acc)>>;

impl<K: Key, T: Data, A: Aggregate<T>> KeyedOperator for SlicedWindows<K, T, A> {
    type Key = K;
    type In = T;
    type Out = (K, Window, A::Out);
    type State = WindowState<K, A::Acc>;

    fn describe(&self) -> String {
        format!("{}: {}", self.windows.describe(), self.aggregate.describe())
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        (SliceState::default(), SliceState::default(), GroupMarks::new(groups))
    }

    fn needs_positions(&self) -> bool {
        A::NEEDS_POSITION
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, Self::Out>,
        (slices, partial, marks): &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        let mut behind = BehindWalk::new(&rows.behind);
        let fired = marks.bounds().1;
        for (chunk, records) in rows.records.chunks(PREFETCHED).enumerate() {
            slices.prefetch(records.iter().map(|record| record.hash));
            for (row, record) in (chunk * PREFETCHED..).zip(records) {
                cx.row = row;
                let place = self.places.of(record.at);
                let behind = behind.at(row);
                let origin = origin::<K, T, A>(record, &rows.positions, row);
                if behind.is_some() || place.windows.0 < fired {
                    let open = self.first_open(behind, place, fired, marks, record.hash);
                    if self.add_partly(cx, partial, place, open, behind, record, &origin) {
                        continue;
                    }
                }
                let aggregate = &self.aggregate;
                let acc = slices.update(place.slice, record.hash, &record.key, || aggregate.create());
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
        let open = self.windows.first_open(watermark);
        while let Some(number) = self.next_window(state, open) {
            if cx.is_full() {
                return Ok(Fired::More);
            }
            if !self.fire(cx, state, number) {
                return Ok(Fired::More);
            }
            self.leave_behind(state, number + 1);
        }
        self.leave_behind(state, open);
        Ok(Fired::All)
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> Combining for SlicedWindows<K, T, A> {
    type Combiner = SliceCombiner<K, T, A>;

    fn combiner(&self) -> Self::Combiner {
        SliceCombiner::new(self.windows, self.aggregate.clone())
    }

    fn fired(&self, (_, _, marks): &Self::State) -> EventTime {
        match marks.bounds().1 {
            i64::MIN => EventTime::MIN,
            first_open => self.windows.window(first_open - 1).end,
        }
    }

    fn on_combined(
        &mut self,
        _: &mut Context<T, Self::Out>,
        (slices, _, _): &mut Self::State,
        rows: &mut KeyedRows<K, Slice<A::Acc>>,
    ) -> Result<()> {
        for records in rows.records.chunks(PREFETCHED) {
            slices.prefetch(records.iter().map(|record| record.hash));
            for record in records {
                let Slice { slice, acc } = &record.value;
                let own = slices.update(*slice, record.hash, &record.key, || self.aggregate.create());
                self.aggregate.merge(own, acc);
            }
        }
        Ok(())
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> SlicedWindows<K, T, A> {
    /// The first window that a record counts in, which is behind or belongs to windows that some group has fired.
    #[cold]
    fn first_open(&self, behind: Option<EventTime>, place: Place, fired: i64, marks: &GroupMarks, hash: u64) -> i64 {
        let open = behind.map_or(i64::MIN, |watermark| self.windows.first_open(watermark));
        // Windows that have been fired stay as they are. Only a watermark that was changed between two starts can make a
        // record count that was late when they were.
        if place.windows.0 < fired { open.max(marks.get(group_of(hash))) } else { open }
    }

    /// Deals with a record that does not count in all windows of its slice; `false`: it does.
    #[cold]
    #[allow(clippy::too_many_arguments)] // one case of `on_batch`, with what that has at hand
    fn add_partly(
        &self,
        cx: &mut Context<T, (K, Window, A::Out)>,
        partial: &mut Partial<K, A::Acc>,
        place: Place,
        open: i64,
        behind: Option<EventTime>,
        record: &KeyedRecord<K, T>,
        origin: &Origin,
    ) -> bool {
        let (first, last) = place.windows;
        if last < open {
            let watermark = behind.unwrap_or_else(|| self.windows.window(last).end);
            cx.late(record.at, &record.value, watermark);
            return true;
        }
        if first >= open {
            return false;
        }
        let parts = partial.update(last, record.hash, &record.key, Vec::new);
        let place = parts.iter().position(|(from, _)| *from == open).unwrap_or_else(|| {
            parts.push((open, self.aggregate.create()));
            parts.len() - 1
        });
        self.aggregate.add(&mut parts[place].1, &record.value, origin);
        true
    }

    /// The first window before `open` that has not been fired and may have records.
    fn next_window(&self, (slices, partial, marks): &mut WindowState<K, A::Acc>, open: i64) -> Option<i64> {
        let fired = marks.bounds().0;
        let by_slice = slices.first().map(|slice| self.windows.windows_of(slice).0.max(fired));
        // Where a partial record counts first is known only by looking; one of the windows from here on it is.
        let by_partial = partial.first().map(|last| {
            let (first_slice, _) = self.windows.slices_of(last);
            self.windows.windows_of(first_slice).0.max(fired)
        });
        let next = match (by_slice, by_partial) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        next.filter(|number| *number < open)
    }

    /// Emits the panes of window `number`; returns whether that was all. What was emitted of a tumbling window has left its
    /// state, so the rest can wait.
    fn fire(
        &mut self,
        cx: &mut Context<T, (K, Window, A::Out)>,
        state: &mut WindowState<K, A::Acc>,
        number: i64,
    ) -> bool {
        let window = self.windows.window(number);
        let at = window.last();
        let (slices, partial, marks) = state;
        // Groups that came from another worker may have fired this window there.
        let all_fire = marks.bounds().1 <= number;
        let fires = |key: &K| all_fire || marks.get(group_of(hash_key(key))) <= number;
        let (from, to) = self.windows.slices_of(number);
        if self.windows.is_tumbling() {
            return slices.take_some(from, PANES_A_TURN, |key, acc| {
                if fires(&key) {
                    cx.fired();
                    cx.emit(at, (key, window, self.aggregate.finish(&acc)));
                }
            });
        }
        let mut panes = Panes(HashTable::new());
        for (key, parts) in partial.range(number, i64::MAX) {
            for (first, acc) in parts {
                if *first <= number {
                    panes.join(&self.aggregate, key, acc);
                }
            }
        }
        if A::INVERTIBLE {
            self.running.move_to(from, to, slices, &self.aggregate);
            for (key, acc) in self.running.sums() {
                if panes.contains(key) {
                    panes.join(&self.aggregate, key, acc);
                } else if fires(key) {
                    cx.fired();
                    cx.emit(at, (key.clone(), window, self.aggregate.finish(acc)));
                }
            }
        } else {
            for (key, acc) in slices.range(from, to) {
                panes.join(&self.aggregate, key, acc);
            }
        }
        for (key, pane) in panes.0 {
            if fires(&key) {
                cx.fired();
                cx.emit(at, (key, window, self.aggregate.finish(&pane)));
            }
        }
        true
    }

    /// All windows before `open` have been fired: drops what only they needed.
    fn leave_behind(&mut self, (slices, partial, marks): &mut WindowState<K, A::Acc>, open: i64) {
        marks.raise(open);
        let first = self.windows.slices_of(open).0;
        if A::INVERTIBLE && !self.windows.is_tumbling() {
            self.running.leave(first, slices, &self.aggregate);
        }
        slices.drop_before(first);
        partial.drop_before(open);
    }
}

/// What is gathered for the panes of one window, by key.
struct Panes<K, Acc>(HashTable<(K, Acc)>);

impl<K: Key, Acc: Clone> Panes<K, Acc> {
    fn join<T>(&mut self, aggregate: &impl Aggregate<T, Acc = Acc>, key: &K, acc: &Acc) {
        let hash = hash_key(key);
        match self.0.find_mut(hash, |(own, _)| own == key) {
            Some((_, pane)) => aggregate.merge(pane, acc),
            None => drop(self.0.insert_unique(hash, (key.clone(), acc.clone()), |(own, _)| hash_key(own))),
        }
    }

    fn contains(&self, key: &K) -> bool {
        !self.0.is_empty() && self.0.find(hash_key(key), |(own, _)| own == key).is_some()
    }
}
