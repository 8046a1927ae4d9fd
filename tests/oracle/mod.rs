//! What windows should give, computed from the specification and by brute force; and what tests of whole jobs share: a
//! source of scripted splits, and a way to run a job that cannot hang a test.
//!
//! Nothing here looks at how the runtime does it: event times are `i128`, every record is held against every window
//! around it, and results are `BTreeMap`s.

pub mod calendar;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use millstream::prelude::*;
use millstream::source::{Output, Read, Source, SplitReader, Waker};

/// A record of a test: what it says, and where in the input it stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Item {
    pub split: u32,
    pub number: u64,
    pub at: i64,
    pub key: u64,
    pub value: i64,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Item { split, number, at, key, value } = self;
        write!(f, "{split}:{number} @{at} k{key} ={value}")
    }
}

impl Item {
    pub fn time(&self) -> EventTime {
        EventTime::from_micros(self.at)
    }
}

/// Windows by their numbers, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub size: i64,
    pub slide: i64,
    pub offset: i64,
}

/// A record, and the watermark that it meets: that of its own split just before it; `None` is before everything.
pub type Judged = (Item, Option<i128>);

/// Every record of every split with the watermark that it meets.
pub fn judge(splits: &[Vec<Item>], delay: i64) -> Vec<Judged> {
    let mut judged = Vec::new();
    for split in splits {
        let mut highest: Option<i128> = None;
        for item in split {
            // Nothing but the end of a split makes its watermark `MAX` (runtime/src/watermark.rs).
            let watermark = highest.map(|highest| (highest - i128::from(delay)).min(i128::from(i64::MAX) - 1));
            judged.push((*item, watermark));
            highest = highest.max(Some(item.at.into()));
        }
    }
    judged
}

/// All windows that contain `at`, by brute force, with bounds that may not fit an `i64`.
pub fn windows_of(at: i64, shape: Shape) -> Vec<(i128, i128)> {
    let (at, size, slide, offset) =
        (i128::from(at), i128::from(shape.size), i128::from(shape.slide), i128::from(shape.offset));
    let first = (at - offset - size).div_euclid(slide) - 1;
    let last = (at - offset).div_euclid(slide) + 1;
    (first..=last)
        .map(|number| (number * slide + offset, number * slide + offset + size))
        .filter(|(start, end)| *start <= at && at < *end)
        .collect()
}

/// What comes out of windows: the records of every key and window in the order of the input, and the late records.
pub type Windowed = (BTreeMap<(u64, Window), Vec<Item>>, Vec<Item>);

/// A time as far as it can be expressed.
fn fit(us: i128) -> EventTime {
    let us = us.clamp(i64::MIN.into(), i64::MAX.into());
    EventTime::from_micros(i64::try_from(us).expect("was clamped"))
}

/// Which record counts where.
pub fn window(records: &[Judged], shape: Shape) -> Windowed {
    let (mut windows, mut late) = (BTreeMap::<_, Vec<Item>>::new(), Vec::new());
    for (item, watermark) in records {
        let mut counted = false;
        for (start, end) in windows_of(item.at, shape) {
            if watermark.is_none_or(|watermark| end > watermark) {
                counted = true;
                let window = Window { start: fit(start), end: fit(end) };
                windows.entry((item.key, window)).or_default().push(*item);
            }
        }
        if !counted {
            late.push(*item);
        }
    }
    (windows, late)
}

/// Which record counts where, in windows of several kinds: each kind alone, and windows that several kinds have once. Late is what is so for
/// all of them.
pub fn several(records: &[Judged], kinds: &[Shape]) -> Windowed {
    let mut windows = BTreeMap::new();
    let mut late: Option<Vec<Item>> = None;
    for kind in kinds {
        let (own, own_late) = window(records, *kind);
        for (place, items) in own {
            if let Some(twice) = windows.insert(place, items) {
                assert_eq!(twice, windows[&place], "a window has its records whatever kinds have it");
            }
        }
        late = Some(match late {
            None => own_late,
            Some(late) => {
                let own_late: BTreeSet<Item> = own_late.into_iter().collect();
                late.into_iter().filter(|item| own_late.contains(item)).collect()
            }
        });
    }
    (windows, late.unwrap_or_default())
}

/// What comes out of windows that wait for late records: the records of every window that were on time, all that it has in the end,
/// and the records that were too late for both.
pub type Updated = (BTreeMap<(u64, Window), Vec<Item>>, BTreeMap<(u64, Window), Vec<Item>>, Vec<Item>);

/// Which record counts where, if windows wait for late ones for `allowed`. `windows` are those of a record.
pub fn updated(records: &[Judged], windows: impl Fn(&Item) -> Vec<(i128, i128)>, allowed: i64) -> Updated {
    let (mut on_time, mut all, mut late) = (BTreeMap::<_, Vec<Item>>::new(), BTreeMap::<_, Vec<Item>>::new(), vec![]);
    for (item, watermark) in records {
        let mut counted = false;
        for (start, end) in windows(item) {
            let key = (item.key, Window { start: fit(start), end: fit(end) });
            if watermark.is_none_or(|watermark| end > watermark) {
                on_time.entry(key).or_default().push(*item);
            }
            if watermark.is_none_or(|watermark| end + i128::from(allowed) > watermark) {
                counted = true;
                all.entry(key).or_default().push(*item);
            }
        }
        if !counted {
            late.push(*item);
        }
    }
    (on_time, all, late)
}

/// The same for sessions.
pub fn updated_sessions(records: &[Judged], gap: impl Fn(&Item) -> i64, allowed: i64) -> Updated {
    let judged = |more: i64| -> Vec<Judged> {
        records
            .iter()
            .map(|(item, watermark)| (*item, watermark.map(|own| own - i128::from(more))))
            .collect()
    };
    let (on_time, _) = sessions(&judged(0), &gap);
    let (all, late) = sessions(&judged(allowed), &gap);
    (on_time, all, late)
}

/// Which records make which session, and the late ones: `gap` is how long a key may be quiet after a record.
pub fn sessions(records: &[Judged], gap: impl Fn(&Item) -> i64) -> Windowed {
    let (mut open, mut late) = (Vec::<(u64, i128, i128, Vec<Item>)>::new(), Vec::new());
    for (item, watermark) in records {
        if watermark.is_some_and(|watermark| i128::from(item.at) < watermark) {
            late.push(*item);
            continue;
        }
        let (start, end) = (i128::from(item.at), i128::from(item.at) + i128::from(gap(item)));
        open.push((item.key, start, end, vec![*item]));
    }
    // Any two that overlap become one, until no two do.
    'again: loop {
        for one in 0..open.len() {
            for two in one + 1..open.len() {
                if open[one].0 == open[two].0 && open[one].1 < open[two].2 && open[two].1 < open[one].2 {
                    let (_, start, end, items) = open.swap_remove(two);
                    let into = &mut open[one];
                    (into.1, into.2) = (into.1.min(start), into.2.max(end));
                    into.3.extend(items);
                    continue 'again;
                }
            }
        }
        break;
    }
    let mut sessions = BTreeMap::new();
    for (key, start, end, items) in open {
        let window = Window { start: fit(start), end: fit(end) };
        assert!(sessions.insert((key, window), items).is_none(), "no two sessions of a key have the same bounds");
    }
    (sessions, late)
}

/// The `f64` nearest to `numerator / denominator`, by long division.
pub fn nearest(numerator: i128, denominator: i128) -> f64 {
    let (mut rest, denominator) = (numerator.unsigned_abs(), denominator.unsigned_abs());
    let (mut digits, mut exponent) = (rest / denominator, 0);
    rest %= denominator;
    while digits < 1 << 60 && rest != 0 {
        rest *= 2;
        digits = digits * 2 + rest / denominator;
        rest %= denominator;
        exponent -= 1;
    }
    // What is left decides a tie, and only that.
    let magnitude = (digits | u128::from(rest != 0)) as f64 * 2f64.powi(exponent);
    if numerator < 0 { -magnitude } else { magnitude }
}

/// A source of splits as they stand here.
#[derive(Clone, Debug)]
pub struct Script<T> {
    splits: Arc<Vec<Vec<T>>>,
    pace: Pace,
    pub faults: Vec<Fault>,
    first: usize,
}

/// How a [`Script`] is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it goes, the end with the last records.
    Full,
    /// At most so many records at a time, then nothing for 200 us, and the end in a read of its own.
    Slow(usize),
    /// At most so many records at a time, and idle after each: woken at once, but idle when the runtime looks.
    Dozing(usize),
    /// At most so many records at a time, then more at once, then nothing for 100 us, in turn; the end with the last records.
    Uneven(usize),
}

/// A record over which something fails, once.
#[derive(Clone, Debug)]
pub struct Fault {
    pub split: usize,
    pub record: usize,
    pub how: Fails,
    left: Arc<AtomicUsize>,
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// Reading the record, with an error.
    Read,
    /// Reading the record, with a panic.
    Reader,
    /// The operator that asks [`Fault::strike`], with a panic.
    Operator,
}

impl Fault {
    pub fn new(split: usize, record: usize, how: Fails) -> Self {
        Fault { split, record, how, left: Arc::new(AtomicUsize::new(1)) }
    }

    /// Panics if it is this record over which operators fail.
    pub fn strike(&self, item: &Item) {
        let here = (self.split, self.record as u64) == (item.split as usize, item.number);
        let strikes = here && self.how == Fails::Operator && self.left.swap(0, Ordering::SeqCst) > 0;
        assert!(!strikes, "boom");
    }
}

impl<T: Data> Script<T> {
    pub fn new(splits: Vec<Vec<T>>) -> Self {
        Script { splits: Arc::new(splits), pace: Pace::Full, faults: Vec::new(), first: 0 }
    }

    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    pub fn faults(mut self, faults: &[Fault]) -> Self {
        self.faults = faults.to_vec();
        self
    }

    /// Faults count this source's splits from here.
    pub fn numbered_from(mut self, first: usize) -> Self {
        self.first = first;
        self
    }
}

impl<T: Data + Sync> Source for Script<T> {
    type Item = T;
    type Position = u64;
    type Reader = ScriptReader<T>;

    fn kind(&self) -> &'static str {
        "script"
    }

    fn splits(&self) -> Result<Vec<String>, Error> {
        Ok((0..self.splits.len()).map(|split| format!("split-{split}")).collect())
    }

    fn open(&self, split: &str, from: Option<u64>, waker: Waker) -> Result<ScriptReader<T>, Error> {
        let number = split.strip_prefix("split-").and_then(|number| number.parse::<usize>().ok());
        let number = number.ok_or_else(|| Error::internal(format!("no split `{split}`")))?;
        Ok(ScriptReader {
            script: self.clone(),
            split: number,
            next: usize::try_from(from.unwrap_or(0)).expect("a position of this source"),
            sleep: false,
            waker,
        })
    }
}

pub struct ScriptReader<T> {
    script: Script<T>,
    split: usize,
    next: usize,
    sleep: bool,
    waker: Waker,
}

impl<T: Data + Sync> SplitReader for ScriptReader<T> {
    type Item = T;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<T>) -> Result<Read, Error> {
        assert!(max > 0, "asked for nothing");
        let records = &self.script.splits[self.split];
        let most = match self.script.pace {
            Pace::Full => max,
            Pace::Slow(most) | Pace::Dozing(most) | Pace::Uneven(most) => max.min(most),
        };
        let mut end = records.len().min(self.next + most);
        self.sleep = !self.sleep;
        if matches!(self.script.pace, Pace::Slow(_) | Pace::Dozing(_)) && !self.sleep {
            end = self.next;
        }
        for fault in &self.script.faults {
            if fault.how == Fails::Operator
                || fault.split != self.script.first + self.split
                || !(self.next..end).contains(&fault.record)
            {
                continue;
            }
            if fault.record > self.next {
                end = fault.record;
            } else if fault.left.swap(0, Ordering::SeqCst) > 0 {
                assert!(fault.how == Fails::Read, "boom");
                return Err(Error::external("boom"));
            }
        }
        out.records(records[self.next..end].iter().cloned());
        self.next = end;
        let ended = end == records.len();
        Ok(match self.script.pace {
            Pace::Full | Pace::Uneven(_) if ended => Read::Ended,
            Pace::Uneven(_) if self.sleep => Read::Later(Duration::from_micros(100)),
            Pace::Full | Pace::Uneven(_) => Read::More,
            Pace::Slow(_) | Pace::Dozing(_) if ended && !self.sleep => Read::Ended,
            Pace::Slow(_) if self.sleep => Read::Later(Duration::from_micros(200)),
            Pace::Dozing(_) if self.sleep => {
                self.waker.will_sleep();
                self.waker.wake();
                Read::Empty
            }
            Pace::Slow(_) | Pace::Dozing(_) => Read::More,
        })
    }

    fn position(&self) -> u64 {
        self.next as u64
    }
}

#[path = "../../src/testing/scratch.rs"]
mod scratch;

/// A directory for a job's checkpoints.
pub fn tempdir() -> tempfile::TempDir {
    scratch::scratch().expect("a temporary directory")
}

/// Runs a job; one that has not ended after half a minute fails the test.
pub fn run(job: Job) -> Result<Summary, Error> {
    finish(job.start()?)
}

/// Waits for a job, but not longer than half a minute.
pub fn finish(handle: JobHandle) -> Result<Summary, Error> {
    assert!(handle.wait_for(Duration::from_secs(30)), "the job hangs: {:#?}", handle.status());
    handle.wait()
}

/// Panics that a test asks for say `boom`; they need not fill the log with backtraces.
pub fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            if !text.is_some_and(|text| text.contains("boom")) {
                loud(info);
            }
        }));
    });
}

/// What is in one of two maps and not in the other; nothing when they are the same.
pub fn differences<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    got: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) -> Vec<String> {
    let wrong = got.iter().filter(|(key, value)| expected.get(key) != Some(value));
    let missing = expected.iter().filter(|(key, value)| got.get(key) != Some(value));
    wrong
        .map(|entry| format!("got {entry:?}"))
        .chain(missing.map(|entry| format!("expected {entry:?}")))
        .collect()
}

/// How many cases a property test runs: `of` where CI runs 200; in proportion where `MILLSTREAM_CASES` says how many that are.
pub fn cases(of: u32) -> u32 {
    let all: u64 = std::env::var("MILLSTREAM_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200);
    let cases = all.saturating_mul(u64::from(of)).div_ceil(200);
    u32::try_from(cases).unwrap_or(u32::MAX).max(1)
}
