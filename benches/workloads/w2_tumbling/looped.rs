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

use crate::kit::event::{Event, JITTER_MS, Stream};
use crate::kit::windows::{Acc, SIZE_US, Table, Windows, add, result_digest};

/// The sum of the digests of all results.
pub fn run(stream: &Stream, events: u64, threads: usize) -> u64 {
    match threads {
        1 => on_threads::<1>(stream, events),
        2 => on_threads::<2>(stream, events),
        more => unimplemented!("{more} threads"),
    }
}

/// Thread `from` has passed all windows before `end`; this is what it has of them, for the thread that gets it.
struct Passed {
    from: usize,
    end: i64,
    parts: Vec<(i64, Table)>,
}

fn on_threads<const P: usize>(stream: &Stream, events: u64) -> u64 {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..P).map(|_| channel()).unzip();
    std::thread::scope(|scope| {
        let start = |(p, inbox)| {
            let outboxes = senders.clone();
            scope.spawn(move || one_thread::<P>(p, stream, events, &outboxes, &inbox))
        };
        let running: Vec<_> = receivers.into_iter().enumerate().map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).fold(0, u64::wrapping_add)
    })
}

fn one_thread<const P: usize>(
    p: usize,
    stream: &Stream,
    events: u64,
    outboxes: &[Sender<Passed>],
    inbox: &Receiver<Passed>,
) -> u64 {
    let mut windows = Windows::<[Table; P]>::new(|| std::array::from_fn(|_| Table::default()));
    let mut merger = Merger::<P>::default();
    let (mut highest, mut watermark, mut next_end) = (i64::MIN, i64::MIN, i64::MIN);
    for i in (p as u64..events).step_by(P) {
        let Event { key, value, at } = stream.event(i);
        let window = at.micros().div_euclid(SIZE_US);
        if !windows.is_current(window) && (window + 1) * SIZE_US <= watermark {
            continue; // late
        }
        add(&mut windows.table(window)[key as usize % P], key, value);
        if at.micros() > highest {
            highest = at.micros();
            watermark = highest - JITTER_MS as i64 * 1_000;
            if watermark >= next_end {
                let end = watermark.div_euclid(SIZE_US);
                next_end = (end + 1) * SIZE_US;
                pass(p, end, &mut windows, outboxes);
                inbox.try_iter().for_each(|passed| merger.take(passed));
                merger.recycle(&mut windows);
            }
        }
    }
    pass(p, i64::MAX, &mut windows, outboxes);
    while merger.passed.iter().any(|end| *end < i64::MAX) {
        merger.take(inbox.recv().expect("every thread passes the end"));
    }
    merger.sum
}

/// Hands to every thread, oneself included, its share of all windows before `end`.
fn pass<const P: usize>(p: usize, end: i64, windows: &mut Windows<[Table; P]>, outboxes: &[Sender<Passed>]) {
    let mut shares: [Vec<(i64, Table)>; P] = std::array::from_fn(|_| Vec::new());
    while let Some((window, tables)) = windows.take_before(end) {
        for (share, table) in shares.iter_mut().zip(tables) {
            share.push((window, table));
        }
    }
    for (outbox, parts) in outboxes.iter().zip(shares) {
        outbox.send(Passed { from: p, end, parts }).expect("every thread listens until the end");
    }
}

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
        let all_passed = self.passed.iter().copied().min().unwrap_or(i64::MAX);
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
