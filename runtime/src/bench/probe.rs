//! What a run says about time while it runs: when events were due, how far they have come, how long results took.
//!
//! Every run has a probe, for its clock: that is read once or twice for every batch and operator, a fraction of a nanosecond
//! for each record of a full batch. The rest is there for runs under a load.
//!
//! **Units**: nanoseconds from the moment at which the first source was asked for the first time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::latency::Latencies;
use super::load::Load;
use super::measurement::{CheckpointTaken, LatencyKind};
use super::schedule::Schedule;
use crate::rows::Lineage;
use crate::shared::{Padded, Stats, lock};
use crate::time::EventTime;

/// An open-loop load on all sources of a job.
#[derive(Clone, Debug)]
pub(crate) struct OpenLoop {
    /// When events are due.
    pub load: Load,
    /// Nothing that ends before this is measured.
    pub warm_up: Duration,
    /// How long is measured; nothing is due later.
    pub time: Duration,
}

/// See the module.
pub(crate) struct Probe {
    origin: OnceLock<Instant>,
    pacing: Option<Pacing>,
    /// Per split of the job, by number.
    tracks: Vec<Mutex<Track>>,
    /// Per split of the job: which events it has.
    numbers: Vec<OnceLock<Numbers>>,
    sinks: Vec<SinkSplits>,
    measured: Mutex<Measured>,
}

/// A sink, and the splits from which its records come.
pub(crate) struct SinkSplits {
    pub node: usize,
    /// Their numbers in the job.
    pub splits: Vec<u32>,
}

/// How sources are paced.
pub(crate) enum Pacing {
    /// By arithmetic.
    Schedule { schedule: Schedule, warm_up_ns: u64, end_ns: u64 },
    /// By the event times of the records.
    Recorded { speed: f64, warm_up_ns: u64, first: OnceLock<EventTime> },
}

/// What was measured so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub latencies: BTreeMap<LatencyKind, Latencies>,
    pub checkpoints: Vec<CheckpointTaken>,
}

/// What a batch says of where it comes from: from when on its way counts, and what counts for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Born {
    /// When its oldest record was due.
    pub ns: u64,
    /// Its records are results of windows: what counts for each is when its window could have closed.
    pub fired: bool,
    /// There was more where it came from: its source had more to read at once, or it is one of many results. Then it matters
    /// how much is done in a time; otherwise, how soon.
    pub pressed: bool,
}

impl Born {
    /// That of two batches that travel as one.
    pub(crate) fn with(self, other: Born) -> Born {
        Born { ns: self.ns.min(other.ns), fired: self.fired && other.fired, pressed: self.pressed || other.pressed }
    }
}

impl Probe {
    pub(crate) fn new(load: Option<&OpenLoop>, splits: usize, sinks: Vec<SinkSplits>) -> Self {
        let pacing = load.map(|open| {
            let warm_up_ns = open.warm_up.as_nanos() as u64;
            match (open.load.schedule(), &open.load) {
                (Some(schedule), _) => {
                    let end_ns = warm_up_ns.saturating_add(open.time.as_nanos() as u64);
                    Pacing::Schedule { schedule, warm_up_ns, end_ns }
                }
                (None, Load::Recorded { speed }) => {
                    Pacing::Recorded { speed: *speed, warm_up_ns, first: OnceLock::new() }
                }
                (None, other) => unreachable!("a load without a schedule: {other}"),
            }
        });
        Probe {
            origin: OnceLock::new(),
            pacing,
            tracks: (0..splits).map(|_| Mutex::default()).collect(),
            numbers: (0..splits).map(|_| OnceLock::new()).collect(),
            sinks,
            measured: Mutex::default(),
        }
    }

    /// Nanoseconds since the start; the first call is the start.
    pub(crate) fn now_ns(&self) -> u64 {
        self.origin.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }

    /// Time 0, once the run has begun to read.
    pub(crate) fn origin(&self) -> Option<Instant> {
        self.origin.get().copied()
    }

    pub(crate) fn pacing(&self) -> Option<&Pacing> {
        self.pacing.as_ref()
    }

    /// A split is about to be read.
    pub(crate) fn begin(&self, split: u32, numbers: Numbers) {
        let _ = self.numbers[split as usize].set(numbers);
    }

    /// The number, in the schedule, of the event from which `row` comes.
    pub(crate) fn number_of(&self, lineage: &Lineage, row: usize) -> u64 {
        let numbers = self.numbers[lineage.split as usize].get().copied().unwrap_or_default();
        numbers.of(lineage.number(row))
    }

    /// Notes how far a split has come in event time, by marks in order.
    pub(crate) fn track(&self, split: u32, marks: impl IntoIterator<Item = Mark>, stats: &[Vec<Padded<Stats>>]) {
        let mut track = lock(&self.tracks[split as usize]);
        marks.into_iter().for_each(|mark| track.push(mark));
        if track.marks.len() >= track.prune_at {
            let watermark = |stats: &Padded<Stats>| stats.0.watermark_us.load(Ordering::Relaxed);
            let asking = self.sinks.iter().filter(|sink| sink.splits.contains(&split));
            let seen = asking.flat_map(|sink| stats[sink.node].iter().map(watermark)).min().unwrap_or(i64::MAX);
            track.prune(EventTime::from_micros(seen));
        }
    }

    /// When a window that ends right after `last` could first have closed, and when its last record was due: the latest over all
    /// splits upstream of the node `sink` that have come so far. (A result is there, so those that it hangs on have.)
    pub(crate) fn closed_at(&self, sink: usize, last: EventTime) -> (u64, u64) {
        let (mut closed, mut complete) = (0, 0);
        let of = self.sinks.iter().find(|of| of.node == sink);
        for split in of.into_iter().flat_map(|of| &of.splits) {
            let track = lock(&self.tracks[*split as usize]);
            closed = closed.max(track.first_due(|mark| mark.watermark > last));
            complete = complete.max(track.first_due(|mark| mark.high >= last || mark.watermark > last));
        }
        (closed, complete)
    }

    /// Takes what one instance of a sink has measured.
    pub(crate) fn add(&self, latencies: &mut BTreeMap<LatencyKind, Latencies>) {
        let mut measured = lock(&self.measured);
        for (kind, latencies) in std::mem::take(latencies) {
            measured.latencies.entry(kind).or_default().merge(&latencies);
        }
    }

    /// A checkpoint was taken, announced at `since`.
    pub(crate) fn add_checkpoint(&self, since: Instant, bytes: u64, pause: Duration) {
        let Some(origin) = self.origin() else { return };
        let start = since.saturating_duration_since(origin);
        let taken = CheckpointTaken { start, duration: since.elapsed(), bytes, pause };
        lock(&self.measured).checkpoints.push(taken);
    }

    pub(crate) fn measured(&self) -> Measured {
        lock(&self.measured).clone()
    }
}

/// Which events of a source's schedule a split has: of `splits` splits the `index`-th has every `splits`-th.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    /// How many records of the split were read before this run.
    pub before: u64,
    pub index: u64,
    pub splits: u64,
}

impl Numbers {
    /// The number in the schedule of the split's record `record`, counted from the split's start.
    pub(crate) fn of(&self, record: u64) -> u64 {
        record.saturating_sub(self.before).saturating_mul(self.splits).saturating_add(self.index)
    }

    /// How many of the first `due` events of the schedule are this split's.
    pub(crate) fn within(&self, due: u64) -> u64 {
        due.saturating_sub(self.index).div_ceil(self.splits.max(1))
    }
}

impl Pacing {
    /// Under a recorded load: when the record with which event time came to `high` is due. The first one that is asked about
    /// is due at once.
    pub(crate) fn recorded_ns(&self, high: EventTime) -> u64 {
        match self {
            Pacing::Schedule { .. } => 0,
            // Nothing but bad records so far.
            Pacing::Recorded { .. } if high == EventTime::MIN => 0,
            Pacing::Recorded { speed, first, .. } => {
                let since = high.micros().saturating_sub(first.get_or_init(|| high).micros());
                (since.max(0) as f64 * 1e3 / speed) as u64
            }
        }
    }

    pub(crate) fn warm_up_ns(&self) -> u64 {
        match self {
            Pacing::Schedule { warm_up_ns, .. } | Pacing::Recorded { warm_up_ns, .. } => *warm_up_ns,
        }
    }
}

/// A point of a split's way through event time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub watermark: EventTime,
    /// The greatest event time so far.
    pub high: EventTime,
    /// When the first event with these was due.
    pub due_ns: u64,
}

/// A split's way through event time, as far as results of it are still to come.
#[derive(Debug)]
struct Track {
    marks: VecDeque<Mark>,
    prune_at: usize,
}

impl Default for Track {
    fn default() -> Self {
        Track { marks: VecDeque::new(), prune_at: 1024 }
    }
}

/// Marks whose events were due within this are one, due when the first of them was: latencies are at most so much too long.
const GRAIN_NS: u64 = 10_000;

/// More marks than this are thinned out, to the disadvantage of the latencies that are counted from them.
const MANY: usize = 1 << 20;

impl Track {
    fn push(&mut self, mark: Mark) {
        match self.marks.back_mut() {
            Some(last) if mark.watermark <= last.watermark && mark.high <= last.high => {}
            Some(last) if mark.due_ns < last.due_ns + GRAIN_NS && last.watermark > EventTime::MIN => {
                last.watermark = last.watermark.max(mark.watermark);
                last.high = last.high.max(mark.high);
            }
            _ => self.marks.push_back(mark),
        }
    }

    /// Forgets what no result can ask for any more once all sinks have come to `seen`.
    fn prune(&mut self, seen: EventTime) {
        while self.marks.len() > 1 && self.marks.front().is_some_and(|mark| mark.high < seen) {
            self.marks.pop_front();
        }
        if self.marks.len() > MANY {
            let mut thinned: VecDeque<Mark> = VecDeque::with_capacity(MANY);
            for (n, mark) in self.marks.iter().enumerate() {
                match thinned.back_mut().filter(|_| n % 2 == 1) {
                    Some(last) => (last.watermark, last.high) = (mark.watermark, mark.high),
                    None => thinned.push_back(*mark),
                }
            }
            self.marks = thinned;
        }
        self.prune_at = (self.marks.len() * 2).max(1024);
    }

    /// When the first mark for which `reached` holds was due; 0 when it holds for none.
    fn first_due(&self, reached: impl Fn(&Mark) -> bool) -> u64 {
        let first = self.marks.partition_point(|mark| !reached(mark));
        self.marks.get(first).map_or(0, |mark| mark.due_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(watermark: i64, due_ns: u64) -> Mark {
        let (watermark, high) = (EventTime::from_micros(watermark), EventTime::from_micros(watermark + 50));
        Mark { watermark, high, due_ns }
    }

    #[test]
    fn a_window_could_close_when_the_first_event_that_passed_its_end_was_due_in_every_split() {
        let sink = |node, splits: &[u32]| SinkSplits { node, splits: splits.to_vec() };
        let probe = Probe::new(None, 2, vec![sink(5, &[0, 1]), sink(6, &[0])]);
        probe.track(0, [mark(100, 1_000_000), mark(200, 2_000_000), mark(300, 3_000_000)], &[]);
        probe.track(1, [mark(150, 1_500_000), mark(400, 4_000_000)], &[]);
        let at = |us| probe.closed_at(5, EventTime::from_micros(us));
        assert_eq!(at(99), (1_500_000, 1_500_000));
        assert_eq!(at(100), (2_000_000, 1_500_000));
        assert_eq!(at(199), (4_000_000, 2_000_000));
        assert_eq!(at(250), (4_000_000, 4_000_000));
        // Split 1 is not upstream of the other sink.
        assert_eq!(probe.closed_at(6, EventTime::from_micros(199)), (2_000_000, 2_000_000));
    }

    #[test]
    fn events_that_are_due_together_count_from_the_first() {
        let mut track = Track::default();
        for n in 0..100 {
            track.push(mark(n as i64, n * 1_000));
        }
        assert_eq!(track.marks.len(), 10);
        assert_eq!(track.first_due(|mark| mark.watermark >= EventTime::from_micros(15)), 10_000);
        track.prune(EventTime::from_micros(80));
        assert_eq!(track.first_due(|mark| mark.high >= EventTime::from_micros(80)), 30_000);
    }

    #[test]
    fn many_marks_are_thinned_to_the_disadvantage_of_latencies() {
        let mut track = Track::default();
        for n in 0..=MANY as u64 {
            track.push(mark(n as i64, n * GRAIN_NS));
        }
        track.prune(EventTime::MIN);
        assert!(track.marks.len() <= MANY / 2 + 1);
        for n in [0, 1, 77, 1_000_000] {
            let due = track.first_due(|mark| mark.watermark >= EventTime::from_micros(n));
            let exact = n as u64 * GRAIN_NS;
            assert!(due <= exact && due + 2 * GRAIN_NS > exact, "{n}: {due}");
        }
    }
}
