//! The arithmetic of windows and slices: which window covers what time, and which slices.
//!
//! Slices and windows are numbered from 1970 plus the offset, negative before. With a slice of length `g`, a window of
//! `w` slices that moves by `s` slices: slice `n` covers `[n*g, (n+1)*g)`, window `k` covers slices `k*s` to `k*s + w - 1`.
//! All of it is exact for every event time there is: what does not fit into 64 bits is computed with 128.

use millstream_runtime::error::Result;
use millstream_runtime::record::Data;
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::{EventSpan, EventTime};
use millstream_state::snapshot::Key;

use super::operator::SlicedWindows;
use super::{Assigned, Pane, Window, Windows};
use crate::aggregate::Aggregate;

/// Windows that follow each other without gap or overlap.
#[derive(Clone, Copy, Debug)]
pub struct Tumbling(WindowAssigner);

impl Tumbling {
    /// Windows of `size`.
    ///
    /// # Panics
    /// When `size` is zero.
    pub fn of(size: EventSpan) -> Self {
        Tumbling(WindowAssigner::new(size, size))
    }

    /// Moves all boundaries by `offset`.
    #[must_use]
    pub fn offset(self, offset: EventSpan) -> Self {
        Tumbling(self.0.offset(offset))
    }
}

/// Windows of one size that begin every so often, so that they overlap.
#[derive(Clone, Copy, Debug)]
pub struct Sliding(WindowAssigner);

impl Sliding {
    /// Windows of `size`, one beginning every `slide`. Neither need be a multiple of the other.
    ///
    /// # Panics
    /// When `slide` is zero, or greater than `size`: there would be gaps, in which records count nowhere.
    pub fn of(size: EventSpan, slide: EventSpan) -> Self {
        Sliding(WindowAssigner::new(size, slide))
    }

    /// Moves all boundaries by `offset`.
    #[must_use]
    pub fn offset(self, offset: EventSpan) -> Self {
        Sliding(self.0.offset(offset))
    }
}

/// A window that begins where the one before it ends: sliding by its own size.
impl From<Tumbling> for Sliding {
    fn from(windows: Tumbling) -> Self {
        Sliding(windows.0)
    }
}

/// Windows that can be kept in slices.
pub(super) trait Sliced: Clone + Send + 'static {
    fn assigner(&self) -> WindowAssigner;
}

impl Sliced for Tumbling {
    fn assigner(&self) -> WindowAssigner {
        self.0
    }
}

impl Sliced for Sliding {
    fn assigner(&self) -> WindowAssigner {
        self.0
    }
}

impl<T: Data, S: Sliced> Windows<T> for S {
    fn kind(&self) -> &'static str {
        if self.assigner().is_tumbling() { "tumbling window" } else { "sliding window" }
    }

    fn describe(&self) -> String {
        self.assigner().describe()
    }

    fn assign(&self, at: EventTime, _: &T, windows: &mut Assigned) -> Result<()> {
        let assigner = self.assigner();
        let (first, last) = assigner.windows_of(assigner.slice_of(at));
        (first..=last).for_each(|number| windows.add_bounds(assigner.bounds(number)));
        Ok(())
    }

    fn aggregate<K: Key, A: Aggregate<T>>(
        self,
        keyed: KeyedStream<K, T>,
        aggregate: A,
    ) -> (Stream<Pane<K, A::Out>>, Stream<T>) {
        let kind = Windows::<T>::kind(&self);
        keyed.combining_operator(kind, SlicedWindows::new(self.assigner(), aggregate))
    }
}

/// Windows of one size at regular distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowAssigner {
    size: EventSpan,
    slide: EventSpan,
    offset: EventSpan,
    /// Length of a slice, in microseconds.
    slice_us: i64,
    /// Slices of a window.
    width: i64,
    /// Slices from the start of a window to the start of the next.
    step: i64,
}

/// Slices are numbered so that "up to but not including" always has a number too. Only with slices of 1 us are there more:
/// at the two ends of time, some 290,000 years from now, instants then share a slice.
const LAST_SLICE: i64 = i64::MAX - 1;

pub(super) fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// A bound of a window or slice, exact; clamped where it is shown as a time.
fn clamp(us: i128) -> EventTime {
    EventTime::from_micros(us.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
}

impl WindowAssigner {
    fn new(size: EventSpan, slide: EventSpan) -> Self {
        assert!(slide > EventSpan::ZERO, "windows of {size} must begin at some distance, not every {slide}");
        assert!(slide <= size, "windows of {size} every {slide} leave gaps, in which records would count nowhere");
        let slice_us = greatest_common_divisor(size.as_micros() as u64, slide.as_micros() as u64) as i64;
        let (width, step) = (size.as_micros() / slice_us, slide.as_micros() / slice_us);
        WindowAssigner { size, slide, offset: EventSpan::ZERO, slice_us, width, step }
    }

    /// Windows repeat every slide, so an offset of more means no more than its rest.
    fn offset(self, offset: EventSpan) -> Self {
        WindowAssigner { offset: EventSpan::micros(offset.as_micros() % self.slide.as_micros()), ..self }
    }

    /// Size, slide and offset, all in microseconds.
    pub(super) fn parts(&self) -> (i64, i64, i64) {
        (self.size.as_micros(), self.slide.as_micros(), self.offset.as_micros())
    }

    /// For checkpoints and plans.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("windows of {}", self.size);
        if self.slide != self.size {
            text.push_str(&format!(" every {}", self.slide));
        }
        if self.offset != EventSpan::ZERO {
            text.push_str(&format!(", offset {}", self.offset));
        }
        text
    }

    /// Whether every slice is one window.
    pub(super) fn is_tumbling(&self) -> bool {
        self.width == self.step
    }

    /// The slice that contains `at`.
    #[inline]
    pub(super) fn slice_of(&self, at: EventTime) -> i64 {
        match at.micros().checked_sub(self.offset.as_micros()) {
            Some(us) => us.div_euclid(self.slice_us).min(LAST_SLICE),
            None => self.slice_of_exact(at),
        }
    }

    #[cold]
    fn slice_of_exact(&self, at: EventTime) -> i64 {
        let us = i128::from(at.micros()) - i128::from(self.offset.as_micros());
        us.div_euclid(i128::from(self.slice_us)).clamp(i128::from(i64::MIN), i128::from(LAST_SLICE)) as i64
    }

    /// The bounds of `slice` as far as they can be expressed; its last instant is included.
    pub(super) fn slice_bounds(&self, slice: i64) -> (EventTime, EventTime) {
        let start = i128::from(slice) * i128::from(self.slice_us) + i128::from(self.offset.as_micros());
        (clamp(start), clamp(start + i128::from(self.slice_us) - 1))
    }

    /// The event time of `slice`, clamped to what can be expressed.
    pub(super) fn slice_range(&self, slice: i64) -> std::ops::Range<EventTime> {
        let (first, last) = self.slice_bounds(slice);
        first..last + EventSpan::micros(1)
    }

    /// The first and the last window that contain `slice`.
    pub(super) fn windows_of(&self, slice: i64) -> (i64, i64) {
        let (slice, width, step) = (i128::from(slice), i128::from(self.width), i128::from(self.step));
        let first = (slice - width).div_euclid(step) + 1;
        // Windows before all time do not exist: their first slice would have no number.
        (first.max(i128::from(i64::MIN)) as i64, self.last_of(slice as i64))
    }

    /// The last window that contains `slice`.
    #[inline]
    pub(super) fn last_of(&self, slice: i64) -> i64 {
        slice.div_euclid(self.step)
    }

    /// In how many windows a slice is at most.
    pub(super) fn most_windows(&self) -> i64 {
        (self.width - 1) / self.step + 1
    }

    /// The slices of window `number`: from the first up to but not including the last.
    pub(super) fn slices_of(&self, number: i64) -> (i64, i64) {
        let first = i128::from(number) * i128::from(self.step);
        let fit = |slice: i128| slice.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        (fit(first), fit(first + i128::from(self.width)))
    }

    fn end_us(&self, number: i64) -> i128 {
        i128::from(number) * i128::from(self.slide.as_micros())
            + i128::from(self.offset.as_micros())
            + i128::from(self.size.as_micros())
    }

    /// The window with this number, its bounds clamped to what can be expressed.
    pub(super) fn window(&self, number: i64) -> Window {
        let end = self.end_us(number);
        Window { start: clamp(end - i128::from(self.size.as_micros())), end: clamp(end) }
    }

    /// The first and the last instant of window `number`, clamped to what can be expressed.
    fn bounds(&self, number: i64) -> (EventTime, EventTime) {
        let end = self.end_us(number);
        (clamp(end - i128::from(self.size.as_micros())), clamp(end - 1))
    }

    /// The first window that is not over at `watermark`: its end is after it. At the end of time all are over.
    pub(super) fn first_open(&self, watermark: EventTime) -> i64 {
        if watermark == EventTime::MAX {
            return i64::MAX;
        }
        let us = i128::from(watermark.micros()) - self.end_us(0);
        (us.div_euclid(i128::from(self.slide.as_micros())) + 1).clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(us: i64) -> EventTime {
        EventTime::from_micros(us)
    }

    fn sliding(size: i64, slide: i64, offset: i64) -> WindowAssigner {
        Sliding::of(EventSpan::micros(size), EventSpan::micros(slide)).offset(EventSpan::micros(offset)).0
    }

    #[test]
    fn a_tumbling_window_is_one_slice() {
        let windows = Tumbling::of(EventSpan::micros(10)).0;
        assert_eq!(windows.slice_of(us(25)), 2);
        assert_eq!(windows.windows_of(2), (2, 2));
        assert_eq!(windows.window(2), Window { start: us(20), end: us(30) });
        assert_eq!(windows.slice_of(us(-1)), -1);
        assert_eq!(windows.first_open(us(30)), 3);
        assert_eq!(windows.first_open(us(29)), 2);
    }

    #[test]
    #[should_panic(expected = "leave gaps")]
    fn gaps_are_refused() {
        let _ = Sliding::of(EventSpan::secs(1), EventSpan::secs(2));
    }

    proptest! {
        /// Slices and windows against the definition: window `k` is `[k*slide + offset, k*slide + offset + size)`.
        #[test]
        fn slices_agree_with_the_definition(
            (size, slide) in (1i64..50).prop_flat_map(|size| (Just(size), 1..=size)),
            offset in 0i64..100,
            at in -200i64..200,
            watermark in -200i64..200,
        ) {
            let windows = sliding(size, slide, offset);
            let bounds = |k: i64| (k * slide + offset % slide, k * slide + offset % slide + size);
            let containing: Vec<i64> = (-300..300).filter(|k| (bounds(*k).0..bounds(*k).1).contains(&at)).collect();
            let slice = windows.slice_of(us(at));
            let (first, last) = windows.windows_of(slice);
            prop_assert_eq!((first..=last).collect::<Vec<_>>(), containing);
            let (from, to) = windows.slice_bounds(slice);
            prop_assert!(from <= us(at) && us(at) <= to);
            for k in first..=last {
                let (from, to) = windows.slices_of(k);
                prop_assert!((from..to).contains(&slice));
                prop_assert_eq!(windows.window(k), Window { start: us(bounds(k).0), end: us(bounds(k).1) });
            }
            let open = (-300..300).find(|k| bounds(*k).1 > watermark).expect("some window is open");
            prop_assert_eq!(windows.first_open(us(watermark)), open);
        }

        /// At the ends of time nothing overflows, and a record still is in its slice and the slice in its windows.
        #[test]
        fn extreme_times_have_windows(
            slice in 2i64..50, step in 1i64..20, more in 0i64..20, offset in 0i64..1000, near in 0i64..2000, high in any::<bool>(),
        ) {
            // With slices of 1 us the last instants have no number of their own; see LAST_SLICE.
            let windows = sliding((step + more) * slice, step * slice, offset);
            let at = us(if high { i64::MAX - near } else { i64::MIN + near });
            let slice = windows.slice_of(at);
            let (first, last) = windows.windows_of(slice);
            prop_assert!(first <= last);
            let window = windows.window(last);
            prop_assert!(window.start <= at && (at < window.end || window.end == EventTime::MAX));
            prop_assert_eq!(windows.first_open(EventTime::MAX), i64::MAX);
        }
    }
}
