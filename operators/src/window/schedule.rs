//! Which windows end when, where several kinds of windows share slices.
//!
//! Slices are as long as the greatest common divisor of all sizes, all slides and all distances between offsets, so every window
//! begins and ends where a slice does. These instants are known by the number of the slice that begins there: a window is
//! the slices from its start up to but not including its end.
//!
//! Windows that begin before all time, or end after it, are cut off there; so every start and every end has a number. The very last instant
//! counts in all windows that end there.

use millstream_runtime::time::{EventSpan, EventTime};

use super::Window;
use super::assign::{Sliced, Tumbling, WindowAssigner, greatest_common_divisor};

/// Windows of several kinds over the same slices.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    kinds: Vec<Kind>,
    slices: WindowAssigner,
    /// The first and the last place at which windows may begin or end.
    ends: (i64, i64),
    /// What ends here or after ends at the last instant.
    last_end: i64,
    /// So many slices after a slice, at least, the last window ends that has it.
    stay: i64,
}

/// Windows of one size at regular distances, in slices.
#[derive(Clone, Copy, Debug)]
struct Kind {
    width: i64,
    step: i64,
    /// Where one of them begins.
    phase: i64,
}

/// The windows that end next and have records.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub end: i64,
    /// Where they begin, the last one first, each once.
    pub starts: Vec<i64>,
}

impl Schedule {
    /// There must be at least one.
    pub(super) fn new(windows: &[WindowAssigner]) -> Self {
        let parts: Vec<_> = windows.iter().map(WindowAssigner::parts).collect();
        let first_offset = parts.first().map_or(0, |(_, _, offset)| *offset);
        let slice_us = parts.iter().fold(0, |divisor, (size, slide, offset)| {
            [*size, *slide, offset - first_offset]
                .iter()
                .fold(divisor, |divisor, us| greatest_common_divisor(divisor, us.unsigned_abs()))
        }) as i64;
        let base = first_offset % slice_us;
        let kind = |(size, slide, offset): &(i64, i64, i64)| {
            let step = slide / slice_us;
            Kind { width: size / slice_us, step, phase: (offset - base) / slice_us % step }
        };
        let kinds: Vec<Kind> = parts.iter().map(kind).collect();
        let slices = Tumbling::of(EventSpan::micros(slice_us)).offset(EventSpan::micros(base)).assigner();
        let ends = (slices.slice_of(EventTime::MIN), slices.slice_of(EventTime::MAX) + 1);
        let last_end = slices.slice_of(EventTime::MAX - EventSpan::micros(1)) + 1;
        let stay = kinds.iter().map(|kind| kind.width - kind.step + 1).max().unwrap_or_default();
        Schedule { kinds, slices, ends, last_end, stay }
    }

    /// The slices.
    pub(super) fn slices(&self) -> WindowAssigner {
        self.slices
    }

    /// The window from `start` to `end`.
    pub(super) fn window(&self, start: i64, end: i64) -> Window {
        Window { start: self.time(start), end: self.time(end) }
    }

    /// The instant at which a slice begins.
    pub(super) fn time(&self, number: i64) -> EventTime {
        self.slices.slice_range(number).start
    }

    /// Windows that end here or before are over at `watermark`. At the end of time all are.
    pub(super) fn passed(&self, watermark: EventTime) -> i64 {
        if watermark == EventTime::MAX { self.ends.1 } else { self.slices.slice_of(watermark) }
    }

    /// Whether one of the windows that have `slice` ends after `passed`.
    pub(super) fn is_open(&self, slice: i64, passed: i64) -> bool {
        passed < slice.saturating_add(self.stay).min(self.ends.1)
            || self.kinds.iter().any(|kind| {
                let end = kind.last_from(slice.into()) + i128::from(kind.width);
                i128::from(passed) < end.min(self.ends.1.into())
            })
    }

    /// The first slice that a window has which ends after `passed`.
    pub(super) fn first_needed(&self, passed: i64) -> i64 {
        let first = self.kinds.iter().map(|kind| kind.first_after(passed)).min();
        match first {
            Some(first) if passed < self.ends.1 => self.clamp(first),
            _ => self.ends.1,
        }
    }

    /// The next windows that end after `passed` and have one of the slices that there are: `next_from` says which is the first of
    /// them from a number on.
    pub(super) fn next(&self, passed: i64, next_from: impl Fn(i64) -> Option<i64>) -> Option<Due> {
        let mut due = Due { end: i64::MAX, starts: Vec::new() };
        for kind in &self.kinds {
            let mut start = kind.first_after(passed);
            let Some(slice) = next_from(self.clamp(start)) else { continue };
            if i128::from(slice) >= start + i128::from(kind.width) {
                start = kind.first_after(slice);
            }
            let end = self.end(start + i128::from(kind.width));
            if passed >= end || end > due.end {
                continue;
            }
            if end < due.end {
                due.end = end;
                due.starts.clear();
            }
            loop {
                due.starts.push(self.clamp(start));
                start += i128::from(kind.step);
                // Only at the end of time do several windows of a kind end together.
                if end < self.ends.1 || start >= end.into() || next_from(self.clamp(start)).is_none() {
                    break;
                }
            }
        }
        due.starts.sort_unstable_by(|a, b| b.cmp(a));
        due.starts.dedup();
        Some(due).filter(|due| !due.starts.is_empty())
    }

    fn end(&self, number: i128) -> i64 {
        if number >= self.last_end.into() { self.ends.1 } else { self.clamp(number) }
    }

    fn clamp(&self, number: i128) -> i64 {
        number.clamp(self.ends.0.into(), self.ends.1.into()) as i64
    }
}

impl Kind {
    /// Where the last window begins that begins at `number` or before.
    fn last_from(&self, number: i128) -> i128 {
        let from_phase = number - i128::from(self.phase);
        // Nearly always it fits, and dividing 64 bits is several times as fast.
        let rest = match i64::try_from(from_phase) {
            Ok(from_phase) => from_phase.rem_euclid(self.step).into(),
            Err(_) => from_phase.rem_euclid(self.step.into()),
        };
        number - rest
    }

    /// Where the first window begins that ends after `number`: if that is a slice, the first window that has it.
    fn first_after(&self, number: i64) -> i128 {
        self.last_from(i128::from(number) - i128::from(self.width)) + i128::from(self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sliding;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Size, slide and offset, in microseconds.
    type Parts = (i64, i64, i64);

    fn us(us: i64) -> EventTime {
        EventTime::from_micros(us)
    }

    fn schedule(kinds: &[Parts]) -> Schedule {
        let kind = |&(size, slide, offset): &Parts| {
            let windows = Sliding::of(EventSpan::micros(size), EventSpan::micros(slide));
            windows.offset(EventSpan::micros(offset)).assigner()
        };
        Schedule::new(&kinds.iter().map(kind).collect::<Vec<_>>())
    }

    /// The windows of all kinds that contain `at`, by definition.
    fn windows_of(kinds: &[Parts], at: i64) -> BTreeSet<(i64, i64)> {
        let windows = kinds.iter().flat_map(|&(size, slide, offset)| {
            let first = (at - offset - size).div_euclid(slide);
            (first..first + size / slide + 3).map(move |number| {
                let start = number * slide + offset;
                (start, start + size)
            })
        });
        windows.filter(|(start, end)| (*start..*end).contains(&at)).collect()
    }

    #[test]
    fn slices_begin_where_windows_do() {
        let slices = |kinds: &[Parts]| {
            let range = schedule(kinds).slices().slice_range(0);
            (range.start.micros(), range.end.micros())
        };
        assert_eq!(slices(&[(10, 10, 0)]), (0, 10));
        assert_eq!(slices(&[(10, 10, 0), (30, 12, 0)]), (0, 2));
        assert_eq!(slices(&[(10, 10, 3), (20, 20, 3)]), (3, 13), "an offset that all have divides nothing");
        assert_eq!(slices(&[(10, 10, 5), (20, 20, 1)]), (1, 3), "but a distance between offsets does");
    }

    fn kinds() -> impl Strategy<Value = Vec<Parts>> {
        let scale = prop::sample::select(vec![1i64, 4, 10]);
        let kind = (1i64..12, 1i64..12, 0i64..30).prop_map(|(a, b, offset)| (a.max(b), a.min(b), offset));
        (scale, prop::collection::vec(kind, 1..6)).prop_map(|(scale, kinds)| {
            kinds
                .into_iter()
                .map(|(size, slide, offset)| (size * scale, slide * scale, offset * scale))
                .collect()
        })
    }

    proptest! {
        /// All windows that have records come in order of their ends, each once.
        #[test]
        fn windows_are_those_of_the_definition(
            kinds in kinds(), times in prop::collection::btree_set(-200i64..200, 0..20), from in -300i64..300,
        ) {
            let schedule = schedule(&kinds);
            let slices: BTreeSet<i64> = times.iter().map(|at| schedule.slices().slice_of(us(*at))).collect();
            let mut expected = BTreeMap::<i64, BTreeSet<i64>>::new();
            let from = schedule.passed(us(from));
            for (start, end) in times.iter().flat_map(|at| windows_of(&kinds, *at)) {
                if end > schedule.time(from).micros() {
                    expected.entry(end).or_default().insert(start);
                }
            }
            let mut passed = from;
            for (end, starts) in expected {
                let due = schedule.next(passed, |from| slices.range(from..).next().copied()).expect("there are more");
                let windows: Vec<Window> = due.starts.iter().map(|start| schedule.window(*start, due.end)).collect();
                let expected = starts.into_iter().rev().map(|start| Window { start: us(start), end: us(end) });
                prop_assert_eq!(windows, expected.collect::<Vec<_>>());
                passed = due.end;
            }
            prop_assert!(schedule.next(passed, |from| slices.range(from..).next().copied()).is_none());
        }

        #[test]
        fn a_slice_is_open_as_long_as_a_window_that_has_it(kinds in kinds(), at in -200i64..200, watermark in -400i64..400) {
            let schedule = schedule(&kinds);
            let slice = schedule.slices().slice_of(us(at));
            let last = windows_of(&kinds, at).into_iter().map(|(_, end)| end).max().expect("there are no gaps");
            let passed = schedule.passed(us(watermark));
            prop_assert_eq!(schedule.is_open(slice, passed), last > watermark);
            let needed = schedule.first_needed(passed);
            prop_assert!(last <= watermark || needed <= slice);
            let open = |at: i64| windows_of(&kinds, at).into_iter().any(|(_, end)| end > watermark);
            prop_assert!(open(schedule.time(needed).micros()));
            prop_assert!(!open(schedule.time(needed).micros() - 1));
        }

        /// Where windows begin before all time or end after it, each of them comes once.
        #[test]
        fn windows_at_the_ends_of_time_come_once(
            kinds in kinds(), near in prop::collection::btree_set(0i64..60, 1..10), high in any::<bool>(),
        ) {
            let schedule = schedule(&kinds);
            // With slices of 1 us the last two instants share one.
            let slice_us = schedule.slices().parts().0;
            let at = |near: &i64| if high { i64::MAX - near.max(&i64::from(slice_us == 1)) } else { i64::MIN + near };
            let slices: BTreeSet<i64> = near.iter().map(|near| schedule.slices().slice_of(us(at(near)))).collect();
            let (mut passed, mut windows) = (i64::MIN, Vec::new());
            while let Some(due) = schedule.next(passed, |from| slices.range(from..).next().copied()) {
                prop_assert!(due.end > passed && due.end <= schedule.passed(EventTime::MAX));
                windows.extend(due.starts.iter().map(|start| (*start, due.end)));
                passed = due.end;
            }
            let mut expected = BTreeSet::new();
            for near in &near {
                for &(size, slide, offset) in &kinds {
                    let [at, size, slide, offset] = [at(near), size, slide, offset].map(i128::from);
                    let mut start = (at - offset).div_euclid(slide) * slide + offset;
                    while start + size > at {
                        expected.insert((start.max(i64::MIN.into()), (start + size).min(i64::MAX.into())));
                        start -= slide;
                    }
                }
            }
            prop_assert_eq!(windows.len(), expected.len());
        }
    }
}
