//! Sources: the splits of one instance (those of one worker), read least watermark first.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use millstream_state::manifest::{SplitEntry, find_split};

use super::peek::{Passed, Peeked, peek};
use super::stamper::{Stamper, Step, Steps, observe};
use super::{Outbox, Task, guard};
use crate::bench::probe::{Mark, Numbers, Pacing, Probe};
use crate::clock::ProcessingTime;
use crate::error::{Error, Result};
use crate::poison::{Blame, InputRecord, record_of};
use crate::rows::{Lineage, Rows};
use crate::shared::{Padded, SplitState, add};
use crate::source::{BadRecord, Read, Source, SplitReader, Waker};
use crate::time::EventTime;
use crate::watermark::{Pace, WatermarkGenerator, Watermarks};

/// Set once the instance's place in the dataflow is known; wakes it from any thread.
pub(crate) type LateWaker = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

pub(crate) trait SourceFactory: Send {
    fn kind(&self) -> &'static str;
    fn replayable(&self) -> bool;
    fn splits(&self) -> Result<Vec<String>>;
    /// Whether splits may be idle.
    fn may_idle(&self) -> bool;
    /// Opens those of `splits` (number over the whole job, and name) that belong to this worker.
    fn build(&self, task: Task, splits: Vec<(u32, String)>, waker: LateWaker) -> Result<Box<dyn SourceLogic>>;
    /// Reads one record again, from where its split stood at `entry`; `None` when it takes too long. See [`peek`].
    fn peek(
        &self,
        record: &InputRecord,
        entry: Option<&SplitEntry>,
        wait: &dyn Fn(Duration) -> bool,
    ) -> Result<Option<Peeked>>;
}

/// One instance of a source.
pub(crate) trait SourceLogic {
    /// The least watermark over its splits; MAX when all have ended.
    fn watermark(&self) -> EventTime;
    /// Where it stands.
    fn cut(&self) -> Result<Vec<SplitEntry>>;
    /// Whether splits may be idle, by the clock.
    fn may_idle(&self) -> bool;
    /// Reads one batch.
    fn poll(&mut self, out: &mut Outbox) -> Result<Polled>;
}

/// A split that has nothing for longer is asked again all the same; the clock cannot reckon with longer waits.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| Error::internal("a position does not write as JSON").because(error))
}

/// What a poll brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    /// Something; poll again.
    Some {
        /// When it was due, unless it is when it was read.
        due_ns: Option<u64>,
        /// There was more to read at once.
        pressed: bool,
    },
    /// Nothing yet; it knows more when it is asked again.
    Again,
    /// Nothing before this much time has passed.
    Later(Duration),
    /// Nothing until the waker is woken.
    Empty,
    /// The same, and how far others are is to be looked at again.
    Idle(Duration),
    /// Nothing ever again, or nothing more in this replay.
    Ended,
}

pub(crate) struct SourceNode<S: Source, F, G> {
    source: S,
    watermarks: Watermarks<S::Item, F, G>,
}

impl<S: Source, F, G> SourceNode<S, F, G> {
    pub(crate) fn new(source: S, watermarks: Watermarks<S::Item, F, G>) -> Self {
        SourceNode { source, watermarks }
    }
}

struct Split<R, G> {
    number: u32,
    /// See [`SplitName::place`](crate::poison::SplitName).
    place: u32,
    name: String,
    /// Closed when the split has ended.
    reader: Option<R>,
    /// Where the reader stood when it was closed.
    position: Option<serde_json::Value>,
    /// Away only while it observes a batch, so that it can do that in registers.
    generator: Option<G>,
    watermark: EventTime,
    records: u64,
    /// Which records are still to be left out, by their numbers, in order.
    left_out: VecDeque<u64>,
    /// Which events of a schedule are its own.
    numbers: Numbers,
    /// The greatest event time, as far as it was looked at.
    high: EventTime,
    /// Under a recorded load: what was read too early.
    held: Option<Held>,
    ended: bool,
    /// When it was read last, in turns of this instance: among splits with the same watermark, each gets its turn.
    turn: u64,
    /// In a replay: where it stops.
    until: Option<Until>,
    /// When it has something again.
    due: Option<Instant>,
    /// It had nothing when it was last asked.
    empty: bool,
    /// Since when it has had nothing, where that matters.
    quiet: Option<ProcessingTime>,
    /// It has had nothing for so long that it holds nothing back.
    idle: bool,
}

/// Where a replay stops reading a split: exactly where a checkpoint of the first run stood in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Until {
    /// So many records are read.
    records: u64,
    /// And then its end is waited for, which moves the watermark; otherwise it is not read on, and does not end.
    ended: bool,
}

impl Until {
    /// Compares what a split has given with what it gave in the first run. Returns whether it has `ended` now.
    fn check(self, split: &str, records: u64, ended: bool) -> Result<bool> {
        if records > self.records {
            return Err(self.differs(split, &format!("gave {records} records")));
        }
        if ended && records < self.records {
            return Err(self.differs(split, &format!("ended after {records} records")));
        }
        Ok(ended && self.ended)
    }

    fn differs(self, split: &str, what: &str) -> Error {
        let was = self.records;
        Error::state(format!("split `{split}` {what}; in the run that is replayed it gave {was}"))
            .hint("the input is not what it was: put the old one back, or replay from and until other checkpoints")
    }
}

impl<R, G> Split<R, G> {
    /// Shows where it stands.
    fn mark(&self, task: &Task, state: SplitState) {
        let Some((_, Padded(mark))) = task.shared.splits.get(self.number as usize) else { return };
        mark.records.store(self.records, Ordering::Relaxed);
        mark.state.store(state as u8, Ordering::Relaxed);
        let watermark_us = self.watermark.micros();
        if mark.watermark_us.load(Ordering::Relaxed) != watermark_us {
            mark.watermark_us.store(watermark_us, Ordering::Relaxed);
            mark.moved_ms.store(task.shared.probe.now_ns() / 1_000_000, Ordering::Relaxed);
        }
    }

    /// Whether there is nothing more to read in it, though it may not have ended.
    fn is_over(&self) -> bool {
        self.ended || self.until.is_some_and(|until| !until.ended && self.records >= until.records)
    }
}

impl<R: SplitReader<Position: serde::Serialize>, G: WatermarkGenerator> Split<R, G> {
    /// Nothing will come of it again; under a load, since `due_ns`.
    fn end(&mut self, task: &Task, due_ns: Option<u64>) {
        (self.ended, self.idle) = (true, false);
        self.mark(task, SplitState::Ended);
        task.shared.splits_ended.fetch_add(1, Ordering::Relaxed);
        if let Some(due_ns) = due_ns {
            let mark = Mark { watermark: EventTime::MAX, high: EventTime::MAX, due_ns };
            task.shared.probe.track(self.number, [mark], &task.shared.stats);
        }
    }

    /// Takes note of how its reader goes on.
    fn goes_on(&mut self, read: Read, task: &Task) -> Result<()> {
        match (read, &self.reader) {
            (Read::Later(wait), _) => self.due = Some(Instant::now() + wait.min(LONGEST_WAIT)),
            (Read::Empty, _) => self.empty = true,
            (Read::Ended, Some(reader)) => {
                self.position = Some(guard(&task.name, || to_json(&reader.position()))?);
                self.reader = None;
            }
            (Read::More, _) | (Read::Ended, None) => {}
        }
        Ok(())
    }

    /// Reads one record and leaves it out, as if it had not been there: nobody asks for its event time, and no watermark moves.
    fn leave_out(&mut self, task: &Task, out: &mut Outbox) -> Result<Polled> {
        let Some(reader) = &mut self.reader else { return Err(Error::internal("an ended split was read")) };
        let mut passed = Passed::default();
        let place = || format!("record {} of split `{}`, which is set aside", self.records + 1, self.name);
        let read = guard(&task.name, || reader.read(1, &mut passed)).map_err(|error| error.at_place(place()))?;
        if passed.records > 1 {
            return Err(Error::user("the source gives more records than it is asked for")
                .in_operator(&task.name)
                .at_place(place()));
        }
        let read = self.within_replay(read, passed.records).map_err(|error| error.in_operator(&task.name))?;
        if passed.records == 1 {
            self.left_out.pop_front();
            self.records += 1;
        }
        pass_bad(passed.bad, self.watermark, task, out);
        self.goes_on(read, task)?;
        if read == Read::Ended {
            self.end(task, None);
        }
        Ok(Polled::Some { due_ns: None, pressed: read == Read::More })
    }

    /// How a replay goes on when its reader has given so many more records.
    fn within_replay(&self, read: Read, given: u64) -> Result<Read> {
        let Some(until) = self.until else { return Ok(read) };
        let records = self.records + given;
        if read == Read::Empty && records < until.records && self.reader.as_ref().is_some_and(R::has_caught_up) {
            let what = format!("gave {records} records and has no more: what it had may have expired");
            return Err(until.differs(&self.name, &what));
        }
        let ended = until.check(&self.name, records, read == Read::Ended)?;
        // The first run may not have seen its end yet.
        Ok(if read == Read::Ended && !ended { Read::More } else { read })
    }

    /// What a checkpoint says of it.
    fn entry(&self) -> Result<SplitEntry> {
        Ok(SplitEntry {
            split: self.name.clone(),
            number: Some(self.place),
            position: match &self.reader {
                Some(reader) => Some(to_json(&reader.position())?),
                None => self.position.clone(),
            },
            records: self.records,
            watermark_us: self.watermark.micros(),
            generator: to_json(&self.generator)?,
            ended: self.ended,
        })
    }
}

/// Counts records that could not be read, and passes them on to whoever wants them.
fn pass_bad(bad: Vec<BadRecord>, at: EventTime, task: &Task, out: &mut Outbox) {
    if bad.is_empty() {
        return;
    }
    add(&task.stats().bad, bad.len() as u64);
    let mut rows = Rows::default();
    bad.into_iter().for_each(|bad| rows.push(at, bad, None));
    if task.connected[1] {
        out.push((1, Box::new(rows)));
    } else {
        for bad in &rows.records {
            tracing::warn!(operator = %task.name, "bad record dropped: {}", bad.value);
        }
    }
}

struct Instance<S: Source, F, G> {
    splits: Vec<Split<S::Reader, G>>,
    timestamp: F,
    turns: u64,
    woken: Arc<std::sync::atomic::AtomicBool>,
    pace: Pace,
    /// How far event time has come here; it never goes back, whatever splits become idle or come back.
    reached: EventTime,
    task: Task,
}

impl<S, F, G> SourceFactory for SourceNode<S, F, G>
where
    S: Source,
    F: Fn(&S::Item) -> EventTime + Clone + Send + 'static,
    G: WatermarkGenerator,
{
    fn kind(&self) -> &'static str {
        self.source.kind()
    }

    fn replayable(&self) -> bool {
        self.source.replayable()
    }

    fn may_idle(&self) -> bool {
        self.watermarks.pace.idle_after.is_some()
    }

    fn splits(&self) -> Result<Vec<String>> {
        self.source.splits()
    }

    fn build(&self, task: Task, splits: Vec<(u32, String)>, waker: LateWaker) -> Result<Box<dyn SourceLogic>> {
        let woken = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut opened = Vec::new();
        for (number, name) in splits {
            let entry = task.restored.as_ref().and_then(|m| find_split(&m.sources, &task.name, &name));
            let until = task.until.as_ref().and_then(|m| find_split(&m.sources, &task.name, &name));
            let until = until.map(|until| Until { records: until.records, ended: until.ended });
            let unreadable = |what: &str, error: serde_json::Error| {
                Error::state(format!("the checkpoint's {what} of split `{name}` does not read"))
                    .because(error)
                    .hint("go on with the source and watermarks that it was taken with, or begin again with `--fresh`")
                    .in_operator(&task.name)
            };
            // A source that cannot be read again begins anew with every start, even where it had ended.
            let ended = self.source.replayable() && entry.is_some_and(|entry| entry.ended);
            let saved = entry.and_then(|entry| entry.position.clone());
            let position = saved.clone().map(serde_json::from_value).transpose();
            let position = position.map_err(|error| unreadable("position", error))?;
            let mut generator = self.watermarks.generator.clone();
            if let Some(entry) = entry {
                let saved = serde_json::from_value(entry.generator.clone());
                generator = generator.resume(saved.map_err(|error| unreadable("watermark generator", error))?);
            }
            let wake = {
                let (waker, woken) = (waker.clone(), woken.clone());
                Waker::new(move || {
                    woken.store(true, Ordering::SeqCst);
                    if let Some(wake) = waker.get() {
                        wake();
                    }
                })
            };
            let (first, splits) = task.own_splits;
            let before = entry.map_or(0, |entry| entry.records);
            let numbers = Numbers { before, index: u64::from(number - first), splits: u64::from(splits) };
            task.shared.probe.begin(number, numbers);
            let left_out = task.aside.of_split(&task.name, &name, before);
            let open = || self.source.open(&name, position, wake);
            let reader = if ended { None } else { Some(guard(&task.name, open)?) };
            opened.push(Split {
                number,
                place: task.splits.get(number as usize).map_or(number, |split| split.place),
                name,
                reader,
                position: saved,
                generator: Some(generator),
                watermark: entry.map_or(EventTime::MIN, |entry| EventTime::from_micros(entry.watermark_us)),
                records: before,
                left_out,
                numbers,
                high: EventTime::MIN,
                held: None,
                ended,
                turn: 0,
                until,
                due: None,
                empty: false,
                quiet: None,
                idle: false,
            });
        }
        let timestamp = self.watermarks.timestamp.clone();
        let (mut pace, reached) = (self.watermarks.pace, EventTime::MIN);
        if task.until.is_some() {
            // A replay stops at different places, and nobody reads on there.
            pace.aligned_within = None;
        }
        let instance = Instance::<S, F, G> { splits: opened, timestamp, turns: 0, woken, pace, reached, task };
        instance.publish();
        for split in &instance.splits {
            split.mark(&instance.task, if split.ended { SplitState::Ended } else { SplitState::Read });
        }
        Ok(Box::new(instance))
    }

    fn peek(
        &self,
        record: &InputRecord,
        entry: Option<&SplitEntry>,
        wait: &dyn Fn(Duration) -> bool,
    ) -> Result<Option<Peeked>> {
        peek(&self.source, record, entry, wait)
    }
}

impl<S, F, G> SourceLogic for Instance<S, F, G>
where
    S: Source,
    F: Fn(&S::Item) -> EventTime,
    G: WatermarkGenerator,
{
    fn watermark(&self) -> EventTime {
        self.shown()
    }

    fn may_idle(&self) -> bool {
        self.pace.idle_after.is_some()
    }

    fn cut(&self) -> Result<Vec<SplitEntry>> {
        let entry = |split: &Split<S::Reader, G>| match &split.held {
            Some(held) => Ok(held.before.clone()),
            // One that comes back takes over how far event time has come, also after a restart.
            None if split.idle => {
                let watermark_us = split.watermark.max(self.reached).micros();
                Ok(SplitEntry { watermark_us, ..split.entry()? })
            }
            None => split.entry(),
        };
        guard(&self.task.name, || self.splits.iter().map(entry).collect())
    }

    fn poll(&mut self, out: &mut Outbox) -> Result<Polled> {
        if self.woken.swap(false, Ordering::SeqCst) {
            self.splits.iter_mut().for_each(|split| split.empty = false);
        }
        // Only a split that waits for time makes the clock worth reading.
        let waiting = self.splits.iter().any(|split| split.due.is_some());
        if waiting {
            let now = Instant::now();
            self.splits.iter_mut().for_each(|split| split.due = split.due.filter(|due| *due > now));
        }
        self.leave_idle_behind();
        let least = self.pace.aligned_within.and_then(|span| Some(self.task.shared.least_active()? + span));
        let idle_after = self.pace.idle_after;
        let ready = self.splits.iter_mut().filter(|split| !split.is_over() && !split.empty && split.due.is_none());
        let Some(split) = ready.min_by_key(|split| (split.watermark, split.turn)) else {
            return Ok(self.resting());
        };
        if least.is_some_and(|least| split.watermark > least) {
            split.mark(&self.task, SplitState::Ahead);
            return Ok(Polled::Later(AHEAD));
        }
        let name = &self.task.name;
        // A batch ends where a record is to be left out, so that this one is read alone.
        let most = match split.left_out.front() {
            Some(number) if *number == split.records => return split.leave_out(&self.task, out),
            Some(number) => usize::try_from(number - split.records).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let probe = &self.task.shared.probe;
        let (size, due_ns, more_due) = match probe.pacing() {
            None => match split.until {
                // One that is to end is asked for more than it should have.
                Some(until) if !until.ended => {
                    let left = usize::try_from(until.records - split.records).unwrap_or(usize::MAX);
                    (self.task.batch_size.min(left), None, true)
                }
                _ => (self.task.batch_size, None, true),
            },
            Some(Pacing::Schedule { schedule, end_ns, .. }) => {
                let now = probe.now_ns().min(*end_ns);
                let due = split.numbers.within(schedule.due_by(now)) + split.numbers.before;
                let left = due.saturating_sub(split.records);
                let due_ns = schedule.due_ns(split.numbers.of(split.records));
                if left == 0 {
                    let due_ns = if due_ns > *end_ns { u64::MAX } else { due_ns };
                    split.due = Some(instant_of(probe, due_ns));
                    return Ok(Polled::Again);
                }
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                (self.task.batch_size.min(left), Some(due_ns), left > self.task.batch_size)
            }
            Some(Pacing::Recorded { .. }) => {
                if let Some(mut held) = split.held.take() {
                    out.append(&mut held.out);
                    if held.ends {
                        split.end(&self.task, Some(held.due_ns));
                    }
                    return Ok(Polled::Some { due_ns: Some(held.due_ns), pressed: false });
                }
                // When a record is due is known when it has been read, and then it is too late to leave it in the source.
                let before = guard(name, || split.entry())?;
                split.held = Some(Held { out: Vec::new(), due_ns: 0, before, watermark: split.watermark, ends: false });
                (1, Some(0), false)
            }
        };
        let size = size.min(most);
        self.turns += 1;
        split.turn = self.turns;
        let Some(reader) = &mut split.reader else { return Err(Error::internal("an ended split was read")) };
        let mut stamper = Stamper { timestamp: &self.timestamp, records: Vec::with_capacity(size), bad: Vec::new() };
        let mut returned = false;
        let (split_number, records, split_name) = (split.number, split.records, &split.name);
        let blame = |error: Error, row: usize| {
            let place = format!("record {} of split `{split_name}`", records + row as u64 + 1);
            error.blaming(place, record_of(self.task.splits.get(split_number as usize), records + row as u64))
        };
        let read = guard(name, || {
            let read = reader.read(size, &mut stamper);
            returned = true;
            read
        });
        let Stamper { records: read_records, bad, .. } = stamper;
        let read = read.map_err(|error| match returned {
            true => error.blaming(
                format!("split `{split_name}`"),
                Blame::Nobody("the source says only in which split it failed"),
            ),
            // A panic came while a record was being made, or got its time.
            false => blame(error, read_records.len()),
        })?;
        let read = split.within_replay(read, read_records.len() as u64).map_err(|error| error.in_operator(name))?;
        let mut rows = Rows { records: read_records, behind: Vec::new(), lineage: None };
        let mut steps = due_ns.map(|_| Steps { high: split.high, steps: Vec::new() });
        if split.idle && (!rows.records.is_empty() || read == Read::Ended) {
            // As far as others have gone on while it was read; from now on they wait for it.
            self.reached = self.reached.max(self.task.shared.followed(self.task.node).unwrap_or(EventTime::MIN));
            split.idle = false;
            split.watermark = split.watermark.max(self.reached);
            if read != Read::Ended {
                let active_us = self.task.stats().active_us.load(Ordering::Relaxed);
                show_active(&self.task, active_us.min(split.watermark.micros()));
            }
        }
        let Some(generator) = split.generator.take() else { return Err(Error::internal("a split has no watermarks")) };
        let mut row = 0;
        let moved = guard(name, || Ok(observe(&mut rows, generator, split.watermark, steps.as_mut(), &mut row)));
        let (generator, watermark) = moved.map_err(|error| blame(error, row))?;
        split.generator = Some(generator);
        split.goes_on(read, &self.task)?;
        if idle_after.is_some() {
            let has_nothing = rows.records.is_empty() && matches!(read, Read::Later(_) | Read::Empty);
            let clock = &self.task.clock;
            split.quiet = if has_nothing { split.quiet.or_else(|| Some(clock.now())) } else { None };
        }
        let stats = self.task.stats();
        pass_bad(bad, split.watermark, &self.task, out);
        split.watermark = watermark;
        split.mark(&self.task, SplitState::Read);
        if let (Some(pacing), Some(Steps { high, steps })) = (probe.pacing(), steps) {
            split.high = high;
            let due = |step: &Step| match pacing {
                Pacing::Schedule { schedule, .. } => schedule.due_ns(split.numbers.of(split.records + step.row)),
                Pacing::Recorded { .. } => pacing.recorded_ns(step.high),
            };
            let marks = steps.iter().map(|step| Mark { watermark: step.watermark, high: step.high, due_ns: due(step) });
            probe.track(split.number, marks, &self.task.shared.stats);
        }
        if read == Read::Ended {
            match &mut split.held {
                Some(held) => held.ends = true,
                None => split.end(&self.task, due_ns),
            }
        }
        if !rows.records.is_empty() {
            let count = rows.records.len() as u64;
            rows.lineage = Some(Lineage { split: split.number, first: split.records, index: Vec::new() });
            split.records += count;
            add(&stats.records_out, count);
            if self.task.connected[0] {
                out.push((0, Box::new(rows)));
            }
        }
        if let (Some(held), Some(pacing)) = (&mut split.held, probe.pacing()) {
            if out.is_empty() && !held.ends {
                split.held = None;
                return Ok(Polled::Again);
            }
            // Kept for a moment even if it is due already: what is held is sent in one place only. Whatever the reader said of
            // its next record, this one comes first.
            held.due_ns = if out.is_empty() { 0 } else { pacing.recorded_ns(split.high) };
            held.out.append(out);
            split.empty = false;
            split.due = (held.due_ns > probe.now_ns()).then(|| instant_of(probe, held.due_ns));
            return Ok(Polled::Again);
        }
        Ok(Polled::Some { due_ns, pressed: more_due && read == Read::More })
    }
}

/// An instant of the run as one of the clock.
fn instant_of(probe: &Probe, ns: u64) -> Instant {
    let origin = probe.origin().unwrap_or_else(Instant::now);
    origin.checked_add(Duration::from_nanos(ns)).unwrap_or_else(|| Instant::now() + LONGEST_WAIT)
}

/// A record that was read before it is due.
struct Held {
    out: Outbox,
    due_ns: u64,
    /// Where the split stands as long as the record is not sent.
    before: SplitEntry,
    watermark: EventTime,
    /// It is the last one.
    ends: bool,
}

/// How soon a split that is ahead of the others looks again where these are.
const AHEAD: Duration = Duration::from_millis(1);

/// How soon an instance that has idle splits looks again how far others are.
const FOLLOW: Duration = Duration::from_millis(20);

impl<S: Source, F, G: WatermarkGenerator> Instance<S, F, G> {
    /// The least watermark of the splits that hold it back.
    fn active(&self) -> Option<EventTime> {
        let active = self.splits.iter().filter(|split| !split.ended && !split.idle);
        let watermark =
            |split: &Split<S::Reader, G>| split.held.as_ref().map_or(split.watermark, |held| held.watermark);
        active.map(watermark).min()
    }

    /// How far event time has come here, as others see it.
    fn shown(&self) -> EventTime {
        if self.splits.iter().all(|split| split.ended) {
            return EventTime::MAX;
        }
        if self.has_idle() { self.reached } else { self.active().unwrap_or(EventTime::MIN).max(self.reached) }
    }

    fn has_idle(&self) -> bool {
        self.splits.iter().any(|split| split.idle)
    }

    /// Shows others how far they have to wait for this instance.
    fn publish(&self) {
        let furthest = self.splits.iter().map(|split| split.watermark).max();
        self.task.stats().furthest_us.store(furthest.map_or(i64::MIN, EventTime::micros), Ordering::Release);
        show_active(&self.task, self.active().unwrap_or(EventTime::MAX).micros());
    }

    /// Sees which splits are idle now, and goes on without them: as far as the whole source has come and no further. What one takes over that
    /// comes back would otherwise depend on which others are read by the same worker.
    fn leave_idle_behind(&mut self) {
        self.reached = self.shown();
        if let Some(quiet) = self.pace.idle_after
            && self.splits.iter().any(|split| split.quiet.is_some())
        {
            let now = self.task.clock.now();
            for split in &mut self.splits {
                // One that might be read now may have something, though it has not been its turn yet.
                let has_nothing = split.empty || split.due.is_some();
                let is_idle = has_nothing && split.quiet.is_some_and(|since| since + quiet <= now);
                if is_idle && !split.ended && !split.idle {
                    split.idle = true;
                    split.mark(&self.task, SplitState::Idle);
                }
            }
        }
        self.publish();
        if self.has_idle()
            && let Some(target) = self.task.shared.followed(self.task.node).filter(|target| *target > self.reached)
        {
            self.reached = target;
            // Perhaps nothing was read, but windows may close.
            self.task.shared.unasked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it may go further without reading anything, because others do.
    fn may_follow(&self) -> bool {
        let shared = &self.task.shared;
        self.has_idle()
            && match self.active() {
                Some(active) => active > self.reached,
                None => shared.least_active().is_some() || shared.followed(self.task.node) > Some(self.reached),
            }
    }

    /// No split can be read now: why?
    fn resting(&self) -> Polled {
        if self.splits.iter().all(Split::is_over) {
            return Polled::Ended;
        }
        let mut wait = self.splits.iter().filter_map(|split| split.due).min();
        for split in self.splits.iter().filter(|split| !split.ended) {
            split.mark(&self.task, if split.idle { SplitState::Idle } else { SplitState::Quiet });
            // A clock that is moved by hand wakes whoever waits for it.
            if let (false, Some(span), Some(since)) = (split.idle, self.pace.idle_after, split.quiet)
                && !self.task.clock.is_manual()
            {
                let left = (since + span).micros().saturating_sub(self.task.clock.now().micros()).max(0) as u64;
                wait = wait.into_iter().chain([Instant::now() + Duration::from_micros(left).min(LONGEST_WAIT)]).min();
            }
        }
        let follow = self.may_follow().then_some(FOLLOW);
        match (wait.map(|due| due.saturating_duration_since(Instant::now())), follow) {
            (Some(wait), follow) => Polled::Later(follow.map_or(wait, |follow| wait.min(follow))),
            (None, Some(follow)) => Polled::Idle(follow),
            (None, None) => Polled::Empty,
        }
    }
}

/// Shows others how far the active splits of an instance have come.
fn show_active(task: &Task, active_us: i64) {
    let before = task.stats().active_us.swap(active_us, Ordering::AcqRel);
    // Those that were idle when all were have looked nowhere since, and have somebody to follow again.
    if before == i64::MAX && active_us != i64::MAX {
        task.shared.wake_sources();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_notices_input_of_another_length() {
        let whole = Until { records: 10, ended: true };
        let cut = Until { records: 10, ended: false };
        for until in [whole, cut] {
            assert!(!until.check("a", 9, false).unwrap());
            assert!(!until.check("a", 10, false).unwrap());
            assert!(until.check("a", 11, false).unwrap_err().to_string().contains("gave 11 records; in the run"));
            assert!(until.check("a", 9, true).unwrap_err().to_string().contains("ended after 9 records"));
        }
        assert!(whole.check("a", 10, true).unwrap());
        assert!(!cut.check("a", 10, true).unwrap(), "its end had not been seen");
    }
}
