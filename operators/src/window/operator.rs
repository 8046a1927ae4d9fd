//! The operator behind all windows of fixed size: slices in, panes out.

use std::ops::Range;

use hashbrown::HashTable;
use millstream_runtime::error::Result;
use millstream_runtime::operator::{Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::hash::hash_key;
use millstream_state::key_group::group_of;
use millstream_state::slices::SliceState;
use millstream_state::snapshot::Key;

use super::Window;
use super::assign::WindowAssigner;
use crate::aggregate::{Aggregate, Origin};

/// One accumulator per key and slice; a window combines those of its slices when it fires.
///
/// A record that is behind its split's watermark may count in only some of the windows of its slice. Such records are
/// rare; each waits in [`WindowState::partial`] with the first window that it counts in, and joins panes from there on.
pub(super) struct SlicedWindows<K, T, A> {
    windows: WindowAssigner,
    aggregate: A,
    /// Where the last record was: records come mostly in order.
    recent: Option<Place>,
    types: std::marker::PhantomData<fn(K, T)>,
}

/// How many panes of a tumbling window are emitted before others have their turn.
const PANES_A_TURN: usize = 64 << 10;

/// A slice, the times that it covers (both included), and the first and last window that it belongs to.
#[derive(Clone, Copy)]
struct Place {
    slice: i64,
    times: (EventTime, EventTime),
    windows: (i64, i64),
}

impl<K, T, A> SlicedWindows<K, T, A> {
    pub(super) fn new(windows: WindowAssigner, aggregate: A) -> Self {
        SlicedWindows { windows, aggregate, recent: None, types: std::marker::PhantomData }
    }
}

impl<K, T, A: Clone> Clone for SlicedWindows<K, T, A> {
    fn clone(&self) -> Self {
        Self::new(self.windows, self.aggregate.clone())
    }
}

/// What is kept: accumulators by slice; accumulators of records that count in only some windows of their slice, by the
/// last window that they count in, each with the first; and, per key group, the first window that has not been fired.
type WindowState<K, Acc> = (SliceState<K, Acc>, SliceState<K, Vec<(i64, Acc)>>, GroupMarks);

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
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            let place = match self.recent {
                Some(place) if place.times.0 <= record.at && record.at <= place.times.1 => place,
                _ => self.find_place(record.at),
            };
            let (split, number) = if A::NEEDS_POSITION { rows.positions[row] } else { (0, 0) };
            let origin = Origin { at: record.at, split, record: number };
            let aggregate = &self.aggregate;
            let behind = behind.at(row);
            let (first, last) = place.windows;
            if behind.is_some() || first < fired {
                let mut open = behind.map_or(i64::MIN, |watermark| self.windows.first_open(watermark));
                if first < fired {
                    // Windows that have been fired stay as they are. Only a watermark that was changed between two starts can
                    // make a record count that was late when they were.
                    open = open.max(marks.get(group_of(record.hash)));
                }
                if last < open {
                    let watermark = behind.unwrap_or_else(|| self.windows.window(last).end);
                    cx.late(record.at, &record.value, watermark);
                    continue;
                }
                if first < open {
                    let parts = partial.update(last, record.hash, &record.key, Vec::new);
                    let place = parts.iter().position(|(from, _)| *from == open).unwrap_or_else(|| {
                        parts.push((open, aggregate.create()));
                        parts.len() - 1
                    });
                    aggregate.add(&mut parts[place].1, &record.value, &origin);
                    continue;
                }
            }
            let acc = slices.update(place.slice, record.hash, &record.key, || aggregate.create());
            aggregate.add(acc, &record.value, &origin);
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

impl<K: Key, T: Data, A: Aggregate<T>> SlicedWindows<K, T, A> {
    #[cold]
    fn find_place(&mut self, at: EventTime) -> Place {
        let slice = self.windows.slice_of(at);
        let place = Place { slice, times: self.windows.slice_bounds(slice), windows: self.windows.windows_of(slice) };
        self.recent = Some(place);
        place
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
    fn fire(&self, cx: &mut Context<T, (K, Window, A::Out)>, state: &mut WindowState<K, A::Acc>, number: i64) -> bool {
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
        let mut panes: HashTable<(K, A::Acc)> = HashTable::new();
        let mut join = |key: &K, acc: &A::Acc| {
            let hash = hash_key(key);
            match panes.find_mut(hash, |(own, _)| own == key) {
                Some((_, pane)) => self.aggregate.merge(pane, acc),
                None => drop(panes.insert_unique(hash, (key.clone(), acc.clone()), |(own, _)| hash_key(own))),
            }
        };
        for (key, acc) in slices.range(from, to) {
            join(key, acc);
        }
        for (key, parts) in partial.range(number, i64::MAX) {
            for (first, acc) in parts {
                if *first <= number {
                    join(key, acc);
                }
            }
        }
        for (key, pane) in panes {
            if fires(&key) {
                cx.fired();
                cx.emit(at, (key, window, self.aggregate.finish(&pane)));
            }
        }
        true
    }

    /// All windows before `open` have been fired: drops what only they needed.
    fn leave_behind(&self, (slices, partial, marks): &mut WindowState<K, A::Acc>, open: i64) {
        marks.raise(open);
        slices.drop_before(self.windows.slices_of(open).0);
        partial.drop_before(open);
    }
}
