//! The workloads as Renoir jobs, with the settings that suit it best: batches of 1024, and one watermark per second of event time
//! and split, because each of them visits all keys.
//!
//! **Windows.** An event-time window of Renoir's begins at the first record of its key, not at a multiple of its size, and a record
//! that is before the first window of its key is dropped without a word. So these windows do not give the results of W2 and
//! W3 on a stream that is out of order:
//!
//! * [`tumbling`] groups by key *and* window, and has Renoir's transaction window end when the watermark passes the window's
//!   end. Results are the same.
//! * [`own_tumbling`] and [`own_sliding`] use the event-time windows as they are. Results are others, and only counted.

use std::hint::black_box;
use std::sync::atomic::Ordering;

use renoir::Stream as Dataflow;
use renoir::operator::Operator;
use renoir::operator::window::TransactionOp;
use renoir::prelude::*;

use crate::kit::event::{Event, JITTER_MS, Stream};
use crate::kit::race::Outcome;
use crate::kit::threads::shared_sum;
use crate::kit::windows::{Acc, SIZE_US, result_digest};
use crate::w1_chain;

/// Of a window to which nothing was added.
const NOTHING: Acc = (0, 0, i64::MIN);

pub fn chain(stream: &Stream, events: u64, workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let context = context(workers);
    read(&context, stream, events)
        .filter(w1_chain::keep)
        .map(|event| (event.at, w1_chain::change(event)))
        .for_each(move |(at, value)| add(w1_chain::checksum(at, value)));
    context.execute_blocking();
    total.load(Ordering::SeqCst)
}

pub fn tumbling(stream: &Stream, events: u64, workers: usize) -> u64 {
    let (total, mut add) = shared_sum();
    let context = context(workers);
    read(&context, stream, events)
        .add_timestamps(|event| event.at.micros(), watermarks())
        .group_by(|event| (event.key, window(event)))
        .window(TransactionWindow::new(|event| TransactionOp::CommitAfter((window(event) + 1) * SIZE_US - 1)))
        .fold(NOTHING, accumulate)
        .for_each(move |((key, window), acc)| add(result_digest(key, window, acc)));
    context.execute_blocking();
    total.load(Ordering::SeqCst)
}

pub fn own_tumbling(stream: &Stream, events: u64, workers: usize) -> Outcome {
    let (results, mut add) = shared_sum();
    let context = context(workers);
    read(&context, stream, events)
        .add_timestamps(|event| event.at.micros(), watermarks())
        .group_by(|event| event.key)
        .window(EventTimeWindow::tumbling(SIZE_US))
        .fold(NOTHING, accumulate)
        .for_each(move |(key, acc)| {
            black_box(result_digest(key, 0, acc));
            add(1);
        });
    context.execute_blocking();
    unchecked(results.load(Ordering::SeqCst))
}

pub fn own_sliding(stream: &Stream, events: u64, workers: usize, size_us: i64, slide_us: i64) -> Outcome {
    let (results, mut add) = shared_sum();
    let context = context(workers);
    read(&context, stream, events)
        .add_timestamps(|event| event.at.micros(), watermarks())
        .group_by(|event| event.key)
        .window(EventTimeWindow::sliding(size_us, slide_us))
        .fold(0, |sum: &mut i64, event: &Event| *sum += event.value)
        .for_each(move |(key, sum)| {
            black_box(result_digest(key, 0, (0, sum, 0)));
            add(1);
        });
    context.execute_blocking();
    unchecked(results.load(Ordering::SeqCst))
}

fn context(workers: usize) -> StreamContext {
    StreamContext::new(RuntimeConfig::local(workers as u64).expect("a number of workers"))
}

/// Every worker reads its split.
fn read(context: &StreamContext, stream: &Stream, events: u64) -> Dataflow<impl Operator<Out = Event> + use<>> {
    let stream = stream.clone();
    let split = move |p, splits| (p..events).step_by(splits as usize).map(move |i| stream.event(i));
    context.stream_par_iter(split).batch_mode(BatchMode::fixed(1024))
}

/// A watermark when it passes the end of a window.
fn watermarks() -> impl FnMut(&Event, &i64) -> Option<i64> + Clone + Send + 'static {
    let mut next_end = i64::MIN;
    move |_, at| {
        let watermark = at - JITTER_MS as i64 * 1_000;
        (watermark >= next_end).then(|| {
            next_end = (watermark.div_euclid(SIZE_US) + 1) * SIZE_US;
            watermark
        })
    }
}

fn window(event: &Event) -> i64 {
    event.at.micros().div_euclid(SIZE_US)
}

fn accumulate(acc: &mut Acc, event: &Event) {
    *acc = (acc.0 + 1, acc.1 + event.value, acc.2.max(event.value));
}

fn unchecked(results: u64) -> Outcome {
    Outcome { checksum: None, counts: vec![("other_results", results)] }
}
