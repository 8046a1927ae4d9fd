//! The sums of sliding windows by hand: one thread that does nothing else, and looks at the clock without rest.
//!
//! Every event that is due is added at once. The sums of the window that fires next are kept up to date all the time: when it
//! closes they need only be read, and what enters and leaves for the next one is added and subtracted after that, when
//! nobody waits for a result. So what is left of a result's latency is the time of the results before it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use millstream_runtime::bench::{Latencies, LatencyKind, Schedule};

use super::{Fired, SPLITS, Shape};
use crate::kit::event::{Event, JITTER_MS, Stream};
use crate::w3_sliding::result_digest;

/// After so many results the clock is read: all of them count as taken then, as those of one batch do with Millstream.
const BATCH: usize = 1024;

/// What one run came to.
#[derive(Default)]
pub struct Run {
    pub latencies: BTreeMap<LatencyKind, Latencies>,
    pub windows: Vec<Fired>,
}

/// Serves the schedule for `warm_up` and then `time`, until all that was due by then is done.
pub fn run(stream: &Stream, schedule: &Schedule, shape: &Shape, warm_up: Duration, time: Duration) -> Run {
    let (warm_up_ns, end_ns) = (warm_up.as_nanos() as u64, (warm_up + time).as_nanos() as u64);
    let mut made = Run::default();
    let mut sums = Sums::new(shape, stream.event(0).at.micros() - JITTER_MS as i64 * 1_000);
    let mut splits = [Split { high: i64::MIN, due_of_high: VecDeque::new() }, Split::default()];
    splits[1] = splits[0].clone();
    let start = Instant::now();
    let now_ns = || start.elapsed().as_nanos() as u64;
    let mut next = 0;
    loop {
        let due = schedule.due_by(now_ns().min(end_ns));
        if next == due && now_ns() > end_ns {
            return made;
        }
        while next < due {
            let event = stream.event(next);
            let at = event.at.micros();
            sums.add(event);
            let split = &mut splits[next as usize % SPLITS];
            if at > split.high {
                split.high = at;
                split.due_of_high.push_back((at, schedule.due_ns(next)));
                let high = splits.iter().map(|split| split.high).min().unwrap_or(i64::MIN);
                while sums.end() <= high.saturating_sub(JITTER_MS as i64 * 1_000) {
                    // This event is the one with which the window closes.
                    let closed = schedule.due_ns(next);
                    let complete = splits.iter_mut().map(|split| split.due_of(sums.end())).max().unwrap_or(closed);
                    sums.fire(&mut made.windows, |results| {
                        let now = now_ns();
                        if now < warm_up_ns {
                            return;
                        }
                        for (kind, since) in
                            [(LatencyKind::WindowResult, closed), (LatencyKind::RecordToResult, complete)]
                        {
                            made.latencies.entry(kind).or_default().record(now - warm_up_ns, now - since, results);
                        }
                    });
                }
            }
            next += 1;
        }
    }
}

/// How far a split has come.
#[derive(Clone, Default)]
struct Split {
    high: i64,
    /// The greatest times so far, each with when its event was due.
    due_of_high: VecDeque<(i64, u64)>,
}

impl Split {
    /// When the first event at or past `end` was due; the ones before are of no use any more.
    fn due_of(&mut self, end: i64) -> u64 {
        while self.due_of_high.front().is_some_and(|(at, _)| *at < end) {
            self.due_of_high.pop_front();
        }
        self.due_of_high.front().map_or(0, |(_, due)| *due)
    }
}

/// Sum and number of events.
type Acc = (i64, u64);

struct Sums {
    slide_us: i64,
    /// Slices to a window.
    slices_of_window: i64,
    /// The number of a key, in the order in which they came.
    places: HashMap<u64, u32>,
    keys: Vec<u64>,
    /// Of the window that fires next, by number of the key.
    sums: Vec<Acc>,
    /// The events of each slice, from slice `first` on: what must be subtracted when it leaves.
    slices: VecDeque<Vec<(u32, i64)>>,
    first: i64,
    /// The window that fires next, known by its last slice.
    next: i64,
    spare: Vec<Vec<(u32, i64)>>,
}

impl Sums {
    /// No event is before `first_us`.
    fn new(shape: &Shape, first_us: i64) -> Self {
        let slide_us = shape.slide_ms as i64 * 1_000;
        let first = first_us.div_euclid(slide_us);
        Sums {
            slide_us,
            slices_of_window: (shape.size_ms / shape.slide_ms) as i64,
            places: HashMap::new(),
            keys: Vec::new(),
            sums: Vec::new(),
            slices: VecDeque::new(),
            first,
            next: first,
            spare: Vec::new(),
        }
    }

    /// Where the next window ends.
    fn end(&self) -> i64 {
        (self.next + 1) * self.slide_us
    }

    #[inline]
    fn add(&mut self, Event { key, value, at }: Event) {
        let slice = at.micros().div_euclid(self.slide_us);
        assert!(slice >= self.first, "an event is late");
        let place = *self.places.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.sums.push((0, 0));
            self.keys.len() as u32 - 1
        });
        let row = (slice - self.first) as usize;
        while self.slices.len() <= row {
            self.slices.push_back(self.spare.pop().unwrap_or_default());
        }
        self.slices[row].push((place, value));
        if slice <= self.next {
            let (sum, count) = &mut self.sums[place as usize];
            (*sum, *count) = (*sum + value, *count + 1);
        }
    }

    /// Emits the next window, and makes the one behind it the next.
    fn fire(&mut self, windows: &mut Vec<Fired>, mut taken: impl FnMut(u64)) {
        let start_us = self.end() - self.slices_of_window * self.slide_us;
        let mut fired = Fired { start_us, ..Fired::default() };
        for (keys, sums) in self.keys.chunks(BATCH).zip(self.sums.chunks(BATCH)) {
            let before = fired.results;
            for (key, (sum, _)) in keys.iter().zip(sums).filter(|(_, (_, count))| *count > 0) {
                fired.add(result_digest(*key, start_us, *sum));
            }
            taken(fired.results - before);
        }
        windows.push(fired);

        if self.first == self.next + 1 - self.slices_of_window
            && let Some(mut leaving) = self.slices.pop_front()
        {
            for (place, value) in leaving.drain(..) {
                let (sum, count) = &mut self.sums[place as usize];
                (*sum, *count) = (*sum - value, *count - 1);
            }
            self.spare.push(leaving);
            self.first += 1;
        }
        self.next += 1;
        for (place, value) in self.slices.get((self.next - self.first) as usize).into_iter().flatten() {
            let (sum, count) = &mut self.sums[*place as usize];
            (*sum, *count) = (*sum + value, *count + 1);
        }
    }
}
