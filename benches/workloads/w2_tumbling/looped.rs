//! W2 by hand: a hash map per window, on one thread or several.
//!
//! Thread `p` of `P` takes every `P`th event and adds it to a map of its own, so threads meet only where a window ends. There
//! each hands the others their shares of its keys, and merges its own share. A key's share is its remainder by `P`: the keys
//! of these streams are numbers without gaps, so that costs next to nothing and divides well.
//!
//! Late is what comes when the watermark of its own thread has passed the end of its window. No thread waits for another
//! before it has read all its events.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::kit::event::{Event, JITTER_MS, Split, Stream};
use crate::kit::windows::{Acc, SIZE_US, Table, Windows, add, result_digest};

/// How a thread takes its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Makes an event, adds it, makes the next.
    OneByOne,
    /// Makes [`BATCH`] events, then adds them. The loop that adds is short, so the processor waits for several places in memory
    /// at once: with many keys that makes the loop twice as fast.
    Batches,
}

/// How many events are made at a time, as in the engines that it is compared with.
const BATCH: u64 = 1024;

/// The sum of the digests of all results.
pub fn run(stream: &Stream, events: u64, threads: usize, take: Take) -> u64 {
    match threads {
        1 => on_threads::<1>(stream, events, take),
        2 => on_threads::<2>(stream, events, take),
        more => unimplemented!("{more} threads"),
    }
}

fn on_threads<const P: usize>(stream: &Stream, events: u64, take: Take) -> u64 {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..P).map(|_| channel()).unzip();
    std::thread::scope(|scope| {
        let start = |(p, inbox)| {
            let split = Split::new(stream, events, p, P);
            let thread = Thread::<P>::new(p, senders.clone(), inbox);
            scope.spawn(move || match take {
                Take::OneByOne => one_by_one(thread, split),
                Take::Batches => in_batches(thread, split),
            })
        };
        let running: Vec<_> = receivers.into_iter().enumerate().map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).fold(0, u64::wrapping_add)
    })
}

fn one_by_one<const P: usize>(mut thread: Thread<P>, mut split: Split<'_>) -> u64 {
    while let Some(event) = split.event() {
        thread.take(event);
    }
    thread.end()
}

fn in_batches<const P: usize>(mut thread: Thread<P>, mut split: Split<'_>) -> u64 {
    let mut batch = Vec::new();
    loop {
        batch.clear();
        split.batch(BATCH, &mut batch);
        if batch.is_empty() {
            return thread.end();
        }
        batch.iter().for_each(|event| thread.take(*event));
    }
}

/// Thread `from` has passed all windows before `end`; this is what it has of them, for the thread that gets it.
struct Passed {
    from: usize,
    end: i64,
    parts: Vec<(i64, Table)>,
}

/// One of `P` threads.
struct Thread<const P: usize> {
    p: usize,
    windows: Windows<[Table; P]>,
    highest: i64,
    watermark: i64,
    /// The end of the first window that the watermark has not passed.
    next_end: i64,
    merger: Merger<P>,
    outboxes: Vec<Sender<Passed>>,
    inbox: Receiver<Passed>,
}

impl<const P: usize> Thread<P> {
    fn new(p: usize, outboxes: Vec<Sender<Passed>>, inbox: Receiver<Passed>) -> Self {
        Thread {
            p,
            windows: Windows::new(|| std::array::from_fn(|_| Table::default())),
            highest: i64::MIN,
            watermark: i64::MIN,
            next_end: i64::MIN,
            merger: Merger::default(),
            outboxes,
            inbox,
        }
    }

    #[inline(always)] // for the loop's sake: its state stays in registers
    fn take(&mut self, Event { key, value, at }: Event) {
        let at = at.micros();
        let window = at.div_euclid(SIZE_US);
        if !self.windows.is_current(window) && (window + 1) * SIZE_US <= self.watermark {
            return; // late
        }
        add(&mut self.windows.table(window)[key as usize % P], key, value);
        if at > self.highest {
            self.highest = at;
            self.watermark = at - JITTER_MS as i64 * 1_000;
            if self.watermark >= self.next_end {
                self.pass(self.watermark.div_euclid(SIZE_US));
            }
        }
    }

    /// Hands to every thread, oneself included, its share of all windows before `end`, and takes what others have handed over.
    #[cold]
    fn pass(&mut self, end: i64) {
        self.next_end = (end + 1).saturating_mul(SIZE_US);
        let mut shares: [Vec<(i64, Table)>; P] = std::array::from_fn(|_| Vec::new());
        while let Some((window, tables)) = self.windows.take_before(end) {
            for (share, table) in shares.iter_mut().zip(tables) {
                share.push((window, table));
            }
        }
        for (outbox, parts) in self.outboxes.iter().zip(shares) {
            outbox.send(Passed { from: self.p, end, parts }).expect("every thread listens until the end");
        }
        self.inbox.try_iter().for_each(|passed| self.merger.take(passed));
        self.merger.recycle(&mut self.windows);
    }

    /// Waits for the other threads; the sum of the digests of this thread's share of the results.
    fn end(mut self) -> u64 {
        self.pass(END);
        while self.merger.passed.iter().any(|end| *end < END) {
            self.merger.take(self.inbox.recv().expect("every thread passes the end"));
        }
        self.merger.sum
    }
}

/// A window after all others.
const END: i64 = i64::MAX - 1;

/// Puts together what the threads have of one thread's share of the keys.
struct Merger<const P: usize> {
    passed: [i64; P],
    open: BTreeMap<i64, Table>,
    emptied: Vec<Table>,
    sum: u64,
}

impl<const P: usize> Default for Merger<P> {
    fn default() -> Self {
        Merger { passed: [i64::MIN; P], open: BTreeMap::new(), emptied: Vec::new(), sum: 0 }
    }
}

impl<const P: usize> Merger<P> {
    fn take(&mut self, Passed { from, end, parts }: Passed) {
        for (window, part) in parts {
            let Some(other) = self.open.remove(&window) else {
                self.open.insert(window, part);
                continue;
            };
            let (mut more, mut less) = if part.len() > other.len() { (part, other) } else { (other, part) };
            for (key, acc) in less.drain() {
                more.entry(key).and_modify(|own| merge(own, acc)).or_insert(acc);
            }
            self.open.insert(window, more);
            self.emptied.push(less);
        }
        self.passed[from] = end;
        let all_passed = self.passed.iter().copied().min().unwrap_or(END);
        while let Some(first) = self.open.first_entry().filter(|first| *first.key() < all_passed) {
            let (window, mut table) = first.remove_entry();
            for (key, acc) in table.drain() {
                self.sum = self.sum.wrapping_add(result_digest(key, window, acc));
            }
            self.emptied.push(table);
        }
    }

    fn recycle(&mut self, windows: &mut Windows<[Table; P]>) {
        while self.emptied.len() >= P {
            windows.recycle(std::array::from_fn(|_| self.emptied.pop().unwrap_or_default()));
        }
    }
}

fn merge(own: &mut Acc, other: Acc) {
    *own = (own.0 + other.0, own.1 + other.1, own.2.max(other.2));
}
