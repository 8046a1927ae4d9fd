//! The operator behind all windows of fixed size: slices in, panes out.

use std::ops::Range;

use hashbrown::{HashTable, hash_table};
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Combining, Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRecord, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::hash::hash_key;
use millstream_state::key_group::group_of;
use millstream_state::slices::{AT_ONCE, SliceState};
use millstream_state::snapshot::{Key, State, Value};

use super::Window;
use super::assign::WindowAssigner;
use super::combiner::{Slice, SliceCombiner};
use super::place::{Place, Places, add_all, origin};
use super::running::Running;
use super::stacks::Stacks;
use crate::aggregate::{Aggregate, Origin};

/// One accumulator per key and slice; a window combines those of its slices when it fires.
///
/// A record that is behind its split's watermark may count in only some of the windows of its slice. Such records are
/// rare; each waits in [`WindowState::partial`] with the first window that it counts in, and joins panes from there on.
pub(super) struct SlicedWindows<K, T, A: Aggregate<T>> {
    windows: WindowAssigner,
    aggregate: A,
    /// The sums of the window that was fired last or is prepared, where windows overlap and the aggregate can be inverted.
    running: Running<K, A::Acc>,
    /// The parts of that window, where the aggregate cannot be inverted.
    stacks: Stacks<K, A::Acc>,
    /// Whether the sums are those of a window that has not been fired: they have to follow what its slices get.
    prepared: bool,
    /// The window that is being fired.
    firing: Option<Firing<K, A::Acc>>,
    places: Places,
    types: std::marker::PhantomData<fn(K, T)>,
}

/// How many panes of a tumbling window are emitted before others have their turn.
const PANES_A_TURN: usize = 64 << 10;

/// How many panes of a sliding window are emitted in a turn where it matters how soon they are out: those behind take them
/// before the next are made.
const PANES_AT_ONCE: usize = 1024;

impl<K, T, A: Aggregate<T>> SlicedWindows<K, T, A> {
    pub(super) fn new(windows: WindowAssigner, aggregate: A) -> Self {
        SlicedWindows {
            windows,
            aggregate,
            places: Places::new(windows),
            running: Running::default(),
            stacks: Stacks::default(),
            prepared: false,
            firing: None,
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

    fn depends_on_order(&self) -> bool {
        A::DEPENDS_ON_ORDER
    }

    fn state(&self, groups: Range<u32>) -> Self::State {
        (SliceState::default(), SliceState::default(), GroupMarks::new(groups))
    }

    fn state_names(&self) -> &'static [&'static str] {
        if self.windows.is_tumbling() { &["windows", "behind", "fired"] } else { &["slices", "behind", "fired"] }
    }

    fn state_times(&self, state: usize, number: i64) -> Option<Range<EventTime>> {
        match state {
            0 => Some(self.windows.slice_range(number)),
            1 => Some(self.windows.window(number).start..self.windows.window(number).end),
            _ => Some(EventTime::MIN..self.fired_before(number)),
        }
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
        slices
            .load(rows.records.iter().map(|record| self.places.of(record.at).slice))
            .map_err(Error::read_back)?;
        partial.load_range(i64::MIN, i64::MAX).map_err(Error::read_back)?;
        slices.prefetch(&rows.records, 0, |record| record.hash);
        for (chunk, records) in rows.records.chunks(AT_ONCE).enumerate() {
            slices.prefetch(&rows.records, chunk + 1, |record| record.hash);
            let first = chunk * AT_ONCE;
            if let Some(place) = self.places.of_all(records, first, &behind)
                && place.windows.0 >= fired
            {
                let slice = slices.in_slice(place.slice);
                add_all(slice, &self.aggregate, records, first, &rows.positions, &mut cx.row);
                continue;
            }
            for (row, record) in (first..).zip(records) {
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
        if self.prepared {
            self.follow(cx, marks, rows);
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
        let firing = |own: &Self| own.firing.as_ref().map(|firing| firing.number);
        while let Some(number) = firing(self).or_else(|| self.next_window(state, open)) {
            if cx.is_full() {
                return Ok(Fired::More);
            }
            let all = match self.windows.is_tumbling() {
                true => self.fire_slice(cx, state, number)?,
                // Who is behind gains nothing by turns: the windows that are due already would wait for them.
                false => self.fire(cx, state, number, cx.is_pressed() || number < open - 1)?,
            };
            if !all {
                return Ok(Fired::More);
            }
            self.leave_behind(state, number + 1)?;
        }
        self.leave_behind(state, open)?;
        if !cx.is_pressed() {
            self.prepare(state, open)?;
        }
        Ok(Fired::All)
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> Combining for SlicedWindows<K, T, A> {
    type Combiner = SliceCombiner<K, T, A>;

    fn combiner(&self) -> Self::Combiner {
        SliceCombiner::new(self.windows, self.aggregate.clone())
    }

    fn fired(&self, (_, _, marks): &Self::State) -> EventTime {
        self.fired_before(marks.bounds().1)
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
                let Slice { slice, acc } = &record.value;
                let own = slices.update(*slice, record.hash, &record.key, || self.aggregate.create());
                self.aggregate.merge(own, acc);
                if self.prepared && *slice < self.running.to() {
                    let sum = self.running.update(*slice, record.hash, &record.key, || self.aggregate.create());
                    self.aggregate.merge(sum, acc);
                }
            }
        }
        Ok(())
    }
}

impl<K: Key, T: Data, A: Aggregate<T>> SlicedWindows<K, T, A> {
    /// The end of the last window before `first_open`, the first one that was not fired.
    fn fired_before(&self, first_open: i64) -> EventTime {
        match first_open {
            i64::MIN => EventTime::MIN,
            first_open => self.windows.window(first_open - 1).end,
        }
    }

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

    /// Makes the sums those of window `open`, the next one, so that they need only be read out when it closes.
    ///
    /// That costs a step for every record, instead of one for every key of a slice. Whoever keeps up has the time for it, as
    /// long as nobody waits for a result.
    fn prepare(&mut self, (slices, _, _): &mut WindowState<K, A::Acc>, open: i64) -> Result<()> {
        if A::INVERTIBLE && !self.windows.is_tumbling() {
            self.move_sums(slices, open)?;
            self.prepared = true;
        }
        Ok(())
    }

    /// Moves the sums on to those of a window. Of slices that are not in memory one is there at a time.
    fn move_sums(&mut self, slices: &mut SliceState<K, A::Acc>, number: i64) -> Result<()> {
        let (from, to) = self.windows.slices_of(number);
        self.leave_sums(slices, from)?;
        let first = self.running.to().max(from);
        let (running, aggregate) = (&mut self.running, &self.aggregate);
        one_at_a_time(slices, first, to, |slices, _, to| running.move_to(from, to, slices, aggregate))
    }

    /// Takes the slices before `first` out of the sums.
    fn leave_sums(&mut self, slices: &mut SliceState<K, A::Acc>, first: i64) -> Result<()> {
        // Where all slices leave, none need be subtracted.
        let from = if first < self.running.to() { self.running.from() } else { first };
        let (running, aggregate) = (&mut self.running, &self.aggregate);
        one_at_a_time(slices, from, first, |slices, _, to| running.leave(to, slices, aggregate))
    }

    /// Adds to the sums what the slices that are in them got of a batch.
    fn follow(&mut self, cx: &mut Context<T, (K, Window, A::Out)>, marks: &GroupMarks, rows: &KeyedRows<K, T>) {
        let mut behind = BehindWalk::new(&rows.behind);
        let fired = marks.bounds().1;
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            let place = self.places.of(record.at);
            let behind = behind.at(row);
            if place.slice >= self.running.to() {
                continue;
            }
            if (behind.is_some() || place.windows.0 < fired)
                && place.windows.0 < self.first_open(behind, place, fired, marks, record.hash)
            {
                continue; // late, or kept apart
            }
            let sum = self.running.update(place.slice, record.hash, &record.key, || self.aggregate.create());
            self.aggregate.add(sum, &record.value, &origin::<K, T, A>(record, &rows.positions, row));
        }
    }

    /// Emits panes of window `number`, which is sliding; returns whether that was all. Until it is, no other window may be fired.
    fn fire(
        &mut self,
        cx: &mut Context<T, (K, Window, A::Out)>,
        state: &mut WindowState<K, A::Acc>,
        number: i64,
        whole: bool,
    ) -> Result<bool> {
        let mut firing = match self.firing.take() {
            Some(firing) => firing,
            None => self.begin(state, number)?,
        };
        let window = self.windows.window(number);
        let (aggregate, fires) = (&self.aggregate, firing_groups(&state.2, number));
        let emit = |cx: &mut Context<_, _>, key: K, acc: &A::Acc| {
            cx.fired();
            cx.emit(window.last(), (key, window, aggregate.finish(acc)));
        };
        let most = if whole { usize::MAX } else { PANES_AT_ONCE };
        let room = most.min(firing.left(&self.running));
        cx.reserve(room);
        let mut turn = 0;
        for (key, acc) in self.running.sums(firing.seen).take(room) {
            turn += 1;
            if firing.panes.contains(key) {
                firing.panes.join(aggregate, key, acc);
            } else if fires(key) {
                emit(cx, key.clone(), acc);
            }
        }
        firing.seen += turn;
        if firing.seen == self.running.len() && !firing.panes.0.is_empty() {
            firing.rest = std::mem::take(&mut firing.panes.0).into_iter();
        }
        for (key, pane) in firing.rest.by_ref().take(room - turn) {
            turn += 1;
            if fires(&key) {
                emit(cx, key, &pane);
            }
        }
        // The last ones go out before anything else is done, as did the ones before.
        let all = firing.left(&self.running) == 0 && (turn == 0 || whole);
        if !all {
            self.firing = Some(firing);
        }
        Ok(all)
    }

    /// Emits panes of window `number`, which is tumbling; returns whether that was all. What was emitted has left its slice.
    fn fire_slice(
        &mut self,
        cx: &mut Context<T, (K, Window, A::Out)>,
        (slices, _, marks): &mut WindowState<K, A::Acc>,
        number: i64,
    ) -> Result<bool> {
        let window = self.windows.window(number);
        let slice = self.windows.slices_of(number).0;
        let fires = firing_groups(marks, number);
        slices.load([slice]).map_err(Error::read_back)?;
        Ok(slices.take_some(slice, PANES_A_TURN, |key, acc| {
            if fires(&key) {
                cx.fired();
                cx.emit(window.last(), (key, window, self.aggregate.finish(&acc)));
            }
        }))
    }

    /// Gathers what the panes of window `number` are made of.
    fn begin(&mut self, (slices, partial, _): &mut WindowState<K, A::Acc>, number: i64) -> Result<Firing<K, A::Acc>> {
        let mut firing = Firing::new(number);
        partial.load_range(number, i64::MAX).map_err(Error::read_back)?;
        for (_, key, parts) in partial.range(number, i64::MAX) {
            for (first, acc) in parts {
                if *first <= number {
                    firing.panes.join(&self.aggregate, key, acc);
                }
            }
        }
        if A::INVERTIBLE {
            self.move_sums(slices, number)?;
            self.prepared = false;
            return Ok(firing);
        }
        if slices.is_limited() {
            // Stacks hold as much as all slices of a window, which may be more than there is memory for.
            let (from, to) = self.windows.slices_of(number);
            one_at_a_time(slices, from, to, |slices, from, to| {
                for (_, key, acc) in slices.range(from, to) {
                    firing.panes.join(&self.aggregate, key, acc);
                }
            })?;
            return Ok(firing);
        }
        self.move_stacks(slices, number);
        let (panes, aggregate) = (&mut firing.panes, &self.aggregate);
        self.stacks
            .window(self.windows.slices_of(number).0, aggregate, |key, acc| panes.take(aggregate, key, acc));
        Ok(firing)
    }

    /// Moves the stacks on to window `number`.
    fn move_stacks(&mut self, slices: &SliceState<K, A::Acc>, number: i64) {
        let (from, to) = self.windows.slices_of(number);
        let (stacks, aggregate) = (&mut self.stacks, &self.aggregate);
        if !stacks.must_turn(from) {
            slices.range(stacks.to(), to).for_each(|(_, key, acc)| stacks.push(key, acc, aggregate));
            stacks.end_push(to);
            return;
        }
        stacks.begin_turn(to);
        let mut next = slices.last_before(to);
        while let Some(slice) = next.filter(|slice| *slice >= from) {
            slices.range(slice, slice + 1).for_each(|(_, key, acc)| stacks.turn(slice, key, acc, aggregate));
            next = slices.last_before(slice);
        }
    }

    /// All windows before `open` have been fired: drops what only they needed.
    fn leave_behind(&mut self, (slices, partial, marks): &mut WindowState<K, A::Acc>, open: i64) -> Result<()> {
        marks.raise(open);
        let first = self.windows.slices_of(open).0;
        if A::INVERTIBLE && !self.windows.is_tumbling() {
            self.leave_sums(slices, first)?;
        }
        slices.drop_before(first);
        partial.drop_before(open);
        Ok(())
    }
}

/// Has `step` do its work on the slices from `from` to `to`, from the oldest on, in as many stretches as it takes to have only one of
/// those in memory that had left it.
fn one_at_a_time<K: Key, Acc: Value>(
    slices: &mut SliceState<K, Acc>,
    mut from: i64,
    to: i64,
    mut step: impl FnMut(&SliceState<K, Acc>, i64, i64),
) -> Result<()> {
    while let Some(slice) = slices.next_away(from, to) {
        slices.load([slice]).map_err(Error::read_back)?;
        step(slices, from, slice + 1);
        from = slice + 1;
        slices.relieve();
    }
    step(slices, from, to);
    Ok(())
}

/// Whether a key's group fires window `number`: it may have done so on another worker, from which it came.
fn firing_groups<K: Key>(marks: &GroupMarks, number: i64) -> impl Fn(&K) -> bool {
    let all_fire = marks.bounds().1 <= number;
    move |key| all_fire || marks.get(group_of(hash_key(key))) <= number
}

/// A sliding window of which not all panes are out.
struct Firing<K, Acc> {
    number: i64,
    /// How many of the running sums have been looked at.
    seen: usize,
    /// Where there are no running sums, what the panes are made of; otherwise what comes to some of the sums.
    panes: Panes<K, Acc>,
    /// Those of them that are complete, without what was emitted.
    rest: hash_table::IntoIter<(K, Acc)>,
}

impl<K: Key, Acc: Value> Firing<K, Acc> {
    fn new(number: i64) -> Self {
        Firing { number, seen: 0, panes: Panes(HashTable::new()), rest: HashTable::new().into_iter() }
    }

    /// How much has still to be looked at.
    fn left(&self, running: &Running<K, Acc>) -> usize {
        running.len() - self.seen + self.panes.0.len() + self.rest.len()
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

    /// As [`join`](Self::join), of what is not needed elsewhere.
    fn take<T>(&mut self, aggregate: &impl Aggregate<T, Acc = Acc>, key: &K, acc: Acc) {
        let hash = hash_key(key);
        match self.0.find_mut(hash, |(own, _)| own == key) {
            Some((_, pane)) => aggregate.merge(pane, &acc),
            None => drop(self.0.insert_unique(hash, (key.clone(), acc), |(own, _)| hash_key(own))),
        }
    }

    fn contains(&self, key: &K) -> bool {
        !self.0.is_empty() && self.0.find(hash_key(key), |(own, _)| own == key).is_some()
    }
}
