//! The operator behind all windows of fixed size: slices in, panes out.

use std::ops::Range;

use hashbrown::HashTable;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Combining, Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::hash::hash_key;
use millstream_state::key_group::group_of;
use millstream_state::slices::{AT_ONCE, SliceState};
use millstream_state::snapshot::{Key, State, Value};

use super::Window;
use super::apart::{Apart, bring_back, take, waiting};
use super::assign::WindowAssigner;
use super::combiner::{Slice, SliceCombiner};
use super::place::{Chunk, Places, origin};
use super::running::Running;
use super::stacks::Stacks;
use crate::aggregate::Aggregate;

/// One accumulator per key and slice; a window combines those of its slices when it fires.
///
/// A record that is behind its split's watermark may count in only some of the windows of its slice. Where the others have been
/// fired, it is added to its slice all the same: nobody looks there for them any more. Where they have not, because its
/// split is ahead of others, it is kept apart under the first window that it counts in, and joins a slice of its last
/// window when all windows before that first one have been fired. So is one of a slice that is not in memory: not every batch need
/// bring it back.
pub(super) struct SlicedWindows<K, T, A: Aggregate<T>> {
    windows: WindowAssigner,
    aggregate: A,
    /// The sums of the window that was fired last or is prepared, where windows overlap and the aggregate can be inverted.
    running: Running<K, A::Acc>,
    /// The parts of that window, where the aggregate cannot be inverted.
    stacks: Stacks<K, A::Acc>,
    /// The window that is being fired.
    firing: Option<Firing<K, A::Acc>>,
    places: Places,
    types: std::marker::PhantomData<fn(K, T)>,
}

/// How many panes are emitted before others have their turn.
pub(super) const PANES_A_TURN: usize = 64 << 10;

/// How many panes of windows that overlap are emitted in a turn where it matters how soon they are out: those behind take them
/// before the next are made.
pub(super) const PANES_AT_ONCE: usize = 1024;

impl<K, T, A: Aggregate<T>> SlicedWindows<K, T, A> {
    pub(super) fn new(windows: WindowAssigner, aggregate: A) -> Self {
        SlicedWindows {
            windows,
            aggregate,
            places: Places::new(windows),
            running: Running::default(),
            stacks: Stacks::default(),
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

/// What is kept: accumulators by slice; those that are kept apart, by the first window that they count in, each with the last; and,
/// per key group, the first window that has not been fired.
type WindowState<K, Acc> = (SliceState<K, Acc>, Apart<K, Acc>, GroupMarks);

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

    /// Early checkpoints have what is kept apart the other way round: by the last window, with the first.
    fn on_start(&mut self, _: &mut Context<T, Self::Out>, (_, apart, _): &mut Self::State) -> Result<()> {
        let mut next = apart.first();
        while let Some(number) = next {
            apart.load([number]).map_err(Error::read_back)?;
            if apart.range(number, number + 1).any(|(_, _, parts)| parts.iter().any(|(other, _)| *other < number)) {
                for (other, key, acc) in take(apart, number)? {
                    let (first, last) = (number.min(other), number.max(other));
                    let own = waiting(apart, first, last, hash_key(&key), &key, || self.aggregate.create())?;
                    self.aggregate.merge(own, &acc);
                }
            }
            apart.relieve();
            next = number.checked_add(1).and_then(|number| apart.next_from(number));
        }
        Ok(())
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, Self::Out>,
        state: &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        let mut behind = BehindWalk::new(&rows.behind);
        // Of slices from this one on some window has not been fired, whatever the group.
        let fired = self.windows.slices_of(state.2.bounds().1).0;
        state.0.prefetch(&rows.records, 0, |record| record.hash);
        for (number, chunk) in Chunk::all_of(rows).enumerate() {
            state.0.prefetch(&rows.records, number + 1, |record| record.hash);
            let (mut left, mut others) = chunk.split(&behind);
            while let Some((slice, share)) = self.places.next_share(&chunk, &mut left) {
                if slice < fired {
                    others = others.with(share);
                    continue;
                }
                cx.row = chunk.row(share);
                state.0.load([slice]).map_err(Error::read_back)?;
                chunk.add(share, state.0.in_slice(slice), &self.aggregate, &mut cx.row);
                if self.has_taken(slice) {
                    chunk.each::<A>(share, &mut cx.row, |record, origin| {
                        self.follow(slice, record.hash, &record.key, |aggregate, acc| {
                            aggregate.add(acc, &record.value, origin);
                        });
                    });
                }
            }
            for (row, record) in chunk.records(others.with(left)) {
                cx.row = row;
                let behind = behind.at(row);
                let (slice, open) = self.places.of_behind(record.at, behind);
                // Windows that have been fired stay as they are. Only a watermark that was changed between two starts can make a
                // record count that was late when they were.
                let mark = || self.windows.slices_of(state.2.get(group_of(record.hash))).0;
                if slice < open.from || slice < fired && slice < mark() {
                    let end = || self.windows.window(self.windows.last_of(slice)).end;
                    cx.late(record.at, &record.value, behind.unwrap_or_else(end));
                    continue;
                }
                let since = if slice < open.whole { open.number } else { i64::MIN };
                let origin = origin::<K, T, A>(record, &rows.positions, row);
                self.add(state, slice, since, record.hash, &record.key, |aggregate, acc| {
                    aggregate.add(acc, &record.value, &origin);
                })?;
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
        state: &mut Self::State,
        rows: &mut KeyedRows<K, Slice<A::Acc>>,
    ) -> Result<()> {
        state.0.prefetch(&rows.records, 0, |record| record.hash);
        for (chunk, records) in rows.records.chunks(AT_ONCE).enumerate() {
            state.0.prefetch(&rows.records, chunk + 1, |record| record.hash);
            for record in records {
                let Slice { slice, first, acc } = &record.value;
                self.add(state, *slice, *first, record.hash, &record.key, |aggregate, own| aggregate.merge(own, acc))?;
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

    /// Adds something to what `slice` has of a key, for the windows from `first` on.
    #[inline]
    fn add(
        &mut self,
        state: &mut WindowState<K, A::Acc>,
        slice: i64,
        first: i64,
        hash: u64,
        key: &K,
        add: impl Fn(&A, &mut A::Acc),
    ) -> Result<()> {
        let may_wait = |(slices, apart, _): &WindowState<K, A::Acc>| slices.is_away(slice) && !apart.is_full();
        if first > state.2.get(group_of(hash)) || first > i64::MIN && may_wait(state) {
            let (last, aggregate) = (self.windows.last_of(slice), &self.aggregate);
            add(aggregate, waiting(&mut state.1, first, last, hash, key, || aggregate.create())?);
            return Ok(());
        }
        state.0.load([slice]).map_err(Error::read_back)?;
        self.add_now(&mut state.0, slice, hash, key, add);
        Ok(())
    }

    #[inline]
    fn add_now(
        &mut self,
        slices: &mut SliceState<K, A::Acc>,
        slice: i64,
        hash: u64,
        key: &K,
        add: impl Fn(&A, &mut A::Acc),
    ) {
        let aggregate = &self.aggregate;
        add(aggregate, slices.update(slice, hash, key, || aggregate.create()));
        if self.has_taken(slice) {
            self.follow(slice, hash, key, add);
        }
    }

    /// All windows before `number` have been fired: what is kept apart for that one joins a slice of its last window, which is in
    /// all windows between.
    fn join(&mut self, (slices, apart, _): &mut WindowState<K, A::Acc>, number: i64) -> Result<()> {
        while let Some(first) = apart.first().filter(|first| *first <= number) {
            for (last, key, acc) in take(apart, first)? {
                let slice = self.windows.slices_of(last).0;
                bring_back(slices, slice)?;
                self.add_now(slices, slice, hash_key(&key), &key, |aggregate, own| aggregate.merge(own, &acc));
            }
        }
        Ok(())
    }

    /// Whether what is derived from slices has this one: it must [follow](Self::follow).
    #[inline]
    fn has_taken(&self, slice: i64) -> bool {
        slice < if A::INVERTIBLE { self.running.to() } else { self.stacks.to() }
    }

    /// Does to what is derived from slices what was done to `slice`.
    fn follow(&mut self, slice: i64, hash: u64, key: &K, add: impl Fn(&A, &mut A::Acc)) {
        let (aggregate, create) = (&self.aggregate, || self.aggregate.create());
        if A::INVERTIBLE {
            add(aggregate, self.running.update(slice, hash, key, create));
        } else {
            self.stacks.change(slice, hash, key, create, |acc| add(aggregate, acc));
        }
    }

    /// The first window before `open` that has not been fired and may have records.
    fn next_window(&self, (slices, apart, marks): &WindowState<K, A::Acc>, open: i64) -> Option<i64> {
        let by_slice = slices.first().map(|slice| self.windows.windows_of(slice).0);
        let next = by_slice.into_iter().chain(apart.first()).min()?.max(marks.bounds().0);
        (next < open).then_some(next)
    }

    /// Makes the sums those of window `open`, the next one, so that they need only be read out when it closes.
    ///
    /// That costs a step for every record, instead of one for every key of a slice. Whoever keeps up has the time for it, as
    /// long as nobody waits for a result.
    fn prepare(&mut self, state: &mut WindowState<K, A::Acc>, open: i64) -> Result<()> {
        if A::INVERTIBLE && !self.windows.is_tumbling() {
            // With limited memory that might bring slices back at every step, instead of once a window.
            if !state.0.is_limited() {
                self.join(state, open)?;
            }
            self.move_sums(&mut state.0, open)?;
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
            if fires(key) {
                emit(cx, key.clone(), acc);
            }
        }
        firing.seen += turn;
        for (key, pane) in firing.panes.by_ref().take(room - turn) {
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
    fn begin(&mut self, state: &mut WindowState<K, A::Acc>, number: i64) -> Result<Firing<K, A::Acc>> {
        self.join(state, number)?;
        let slices = &mut state.0;
        if A::INVERTIBLE {
            self.move_sums(slices, number)?;
            return Ok(Firing::new(number, Vec::new()));
        }
        let (from, to) = self.windows.slices_of(number);
        if slices.is_limited() {
            // Stacks hold as much as all slices of a window, which may be more than there is memory for.
            let (mut panes, aggregate) = (HashTable::new(), &self.aggregate);
            one_at_a_time(slices, from, to, |slices, from, to| {
                slices.range(from, to).for_each(|(_, key, acc)| gather(&mut panes, aggregate, key, acc));
            })?;
            return Ok(Firing::new(number, panes.into_iter().collect()));
        }
        self.move_stacks(slices, number);
        let mut panes = Vec::new();
        self.stacks.window(from, &self.aggregate, |key, acc| panes.push((key.clone(), acc)));
        Ok(Firing::new(number, panes))
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
    fn leave_behind(&mut self, (slices, _, marks): &mut WindowState<K, A::Acc>, open: i64) -> Result<()> {
        marks.raise(open);
        let first = self.windows.slices_of(open).0;
        if A::INVERTIBLE && !self.windows.is_tumbling() {
            self.leave_sums(slices, first)?;
        }
        slices.drop_before(first);
        if slices.first().is_none() {
            self.stacks = Stacks::default();
        }
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

/// Whether a key's group has come no further than `mark`, and so fires what is due there: it may have done so on another worker, from
/// which it came.
pub(super) fn firing_groups<K: Key>(marks: &GroupMarks, mark: i64) -> impl Fn(&K) -> bool {
    let all_fire = marks.bounds().1 <= mark;
    move |key| all_fire || marks.get(group_of(hash_key(key))) <= mark
}

/// A sliding window of which not all panes are out.
struct Firing<K, Acc> {
    number: i64,
    /// How many of the running sums have been looked at.
    seen: usize,
    /// Where there are no running sums, the panes that are left.
    panes: std::vec::IntoIter<(K, Acc)>,
}

impl<K: Key, Acc: Value> Firing<K, Acc> {
    fn new(number: i64, panes: Vec<(K, Acc)>) -> Self {
        Firing { number, seen: 0, panes: panes.into_iter() }
    }

    /// How much has still to be looked at.
    fn left(&self, running: &Running<K, Acc>) -> usize {
        running.len() - self.seen + self.panes.len()
    }
}

/// Takes what a slice has of a key into the pane of that key.
fn gather<K: Key, T, A: Aggregate<T>>(panes: &mut HashTable<(K, A::Acc)>, aggregate: &A, key: &K, acc: &A::Acc) {
    let hash = hash_key(key);
    match panes.find_mut(hash, |(own, _)| own == key) {
        Some((_, pane)) => aggregate.merge(pane, acc),
        None => drop(panes.insert_unique(hash, (key.clone(), acc.clone()), |(own, _)| hash_key(own))),
    }
}
