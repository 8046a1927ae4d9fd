//! Idle: a job that has nothing to do. How fast is it back when an event comes, and what does it take meanwhile? And what does it
//! cost that every job knows how long things take?
//!
//! **Way of one event**: two workers that sleep, a channel fed from outside, events some milliseconds apart. Each moves event
//! time on, so that the window of the event before it fires, whose key belongs to the worker that does not read the
//! channel. The reference does the least of that by hand on timely: the same two workers, asleep as well; a channel
//! and an activator; an exchange to the other worker; an operator that keeps the event until the frontier has passed it;
//! an operator that takes it. Both count from before `send` until the last operator has the result, on its own thread.
//!
//! **Idle**: time on the processor of all threads of a started job that is sent nothing.
//!
//! **Clock**: a batch and operator take two readings of the clock, a source and a sink one more. Of W1 with a worker that makes
//! eight for a full batch. What a reading costs is measured in a loop; the share is that of the time of a W1 beside it.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millstream::prelude::*;
use millstream::state::hash::hash_key;
use millstream::state::key_group::{group_of, worker_of};
use millstream_runtime::bench::{Distribution, Percentiles};
use serde_json::json;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::generic::operator::source;

use crate::kit::Plan;
use crate::kit::event::{Keys, Stream};
use crate::kit::report::{Report, Spread};
use crate::w1_chain;

const WORKERS: usize = 2;
/// The worker that owns the keys, and not the channel's only split.
const OWNER: usize = 1;

pub fn run(plan: Plan, report: &mut Report) {
    if plan.keys.is_some() || plan.rate.is_some() {
        return;
    }
    let plan = plan.brief();
    way_of_one_event(plan, report);
    idle(plan, report);
    clock(plan, report);
}

/// When each event was sent and how long its way was, in nanoseconds from the start.
struct Trips {
    start: Instant,
    sent: Vec<AtomicU64>,
    taken: Mutex<Distribution>,
}

impl Trips {
    fn new(events: usize) -> Arc<Self> {
        let sent = (0..events).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Trips { start: Instant::now(), sent, taken: Mutex::default() })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Sends every event at its time. The first ones find threads that have never slept, and are not counted.
    fn send_all(&self, apart: Duration, mut send: impl FnMut(u64)) {
        for (event, sent) in self.sent.iter().enumerate() {
            pause(apart);
            sent.store(self.now_ns(), Ordering::SeqCst);
            send(event as u64);
        }
        pause(apart * 10);
    }

    /// The result that event `event` brought about is there.
    fn taken(&self, event: u64) {
        let now = self.now_ns();
        if event >= 10
            && let Some(sent) = self.sent.get(event as usize)
        {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.record(now - sent.load(Ordering::SeqCst), 1);
        }
    }

    fn percentiles(&self) -> Percentiles {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).percentiles()
    }
}

#[allow(clippy::disallowed_methods)] // nothing is to happen meanwhile
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn way_of_one_event(plan: Plan, report: &mut Report) {
    let events = if plan.quick { 30 } else { 500 };
    let apart = Duration::from_millis(5);
    let (mut bare, mut own): (Vec<Percentiles>, Vec<Percentiles>) = Default::default();
    for run in 1..=plan.runs {
        eprintln!("idle, way of one event: run {run} of {}", plan.runs);
        bare.push(on_timely(events, apart));
        own.push(job(events, apart));
    }
    for (contestant, runs) in [("timely", &bare), ("millstream", &own)] {
        let is_reference = contestant == "timely";
        let p50 = Spread::of(runs.iter().map(|run| micros(run.p50_ns)));
        let p99 = Spread::of(runs.iter().map(|run| micros(run.p99_ns)));
        let ratios = |of: fn(&Percentiles) -> u64| {
            let ratio = |(own, bare)| of(own) as f64 / of(bare) as f64;
            (!is_reference).then(|| Spread::of(runs.iter().zip(&bare).map(ratio)).median)
        };
        let [ratio_p50, ratio_p99]: [Option<f64>; 2] = [ratios(|p| p.p50_ns), ratios(|p| p.p99_ns)];
        let show = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        report.row(
            "Idle workers: from sending one event to the result that it brings about; medians of runs, microseconds",
            &["workload", "contestant", "workers", "events", "p50", "spread", "p99", "ratio p50", "ratio p99"],
            vec![
                "idle".to_string(),
                contestant.to_string(),
                WORKERS.to_string(),
                runs.iter().map(|run| run.count).sum::<u64>().to_string(),
                format!("{:.1}", p50.median),
                format!("{:.1}..{:.1}", p50.min, p50.max),
                format!("{:.1}", p99.median),
                show(ratio_p50),
                show(ratio_p99),
            ],
        );
        report.json(&json!({
            "workload": "idle", "variant": "one event", "contestant": contestant, "workers": WORKERS,
            "events": runs.iter().map(|run| run.count).sum::<u64>(),
            "p50_us": p50.median, "p50_us_min": p50.min, "p50_us_max": p50.max, "p99_us": p99.median,
            "reference": (!is_reference).then_some("timely"), "ratio_p50": ratio_p50, "ratio_p99": ratio_p99,
            "runs": runs.len(),
        }));
    }
}

/// Event `i` has time `i` ms, and its window is that millisecond.
fn job(events: usize, apart: Duration) -> Percentiles {
    let trips = Trips::new(events);
    let key = (0u64..)
        .find(|key| worker_of(group_of(hash_key(key)), WORKERS) == OWNER)
        .expect("it owns half of all");
    let (sender, input) = channel::<u64>(64);
    let job = Job::new("one-event").workers(WORKERS);
    let taking = Arc::clone(&trips);
    job.source(input, Watermarks::bounded_out_of_orderness(EventSpan::ZERO, |event: &u64| at(*event)))
        .key_by(move |_| key)
        .window(Tumbling::of(EventSpan::millis(1)))
        .aggregate(Sum::of(|event: &u64| *event as i64))
        .sink(for_each(move |record: Record<(u64, Window, i64)>| taking.taken(record.value.2 as u64 + 1)));
    let handle = job.start().expect("the job starts");
    trips.send_all(apart, |event| sender.send(event).expect("the job reads"));
    drop(sender);
    handle.wait().expect("the job ends");
    trips.percentiles()
}

fn at(event: u64) -> EventTime {
    EventTime::from_millis(event as i64)
}

fn on_timely(events: usize, apart: Duration) -> Percentiles {
    type Events = CapacityContainerBuilder<Vec<u64>>;
    let trips = Trips::new(events);
    let (sender, receiver) = crossbeam_channel::bounded::<u64>(64);
    let (activators, activator) = crossbeam_channel::bounded(1);
    let taking = Arc::clone(&trips);
    let running = timely::execute(timely::Config::process(WORKERS), move |worker| {
        let reads = worker.index() != OWNER;
        let (receiver, activators, taking) = (receiver.clone(), activators.clone(), Arc::clone(&taking));
        worker.dataflow::<u64, _, _>(|scope| {
            let input = source::<_, Events, _, _>(scope, "channel", move |capability, info| {
                let mut capability = reads.then_some(capability);
                if reads {
                    let _ = activators.send(scope.worker().sync_activator_for(info.address.to_vec()));
                }
                move |output| {
                    let Some(cap) = &mut capability else { return };
                    loop {
                        match receiver.try_recv() {
                            Ok(event) => {
                                cap.downgrade(&event);
                                output.session(&*cap).give(event);
                            }
                            Err(crossbeam_channel::TryRecvError::Empty) => return,
                            Err(crossbeam_channel::TryRecvError::Disconnected) => break,
                        }
                    }
                    capability = None;
                }
            });
            let owned = Exchange::new(|_: &u64| OWNER as u64);
            let results = input.unary_frontier::<Events, _, _, _>(owned, "keep", |_, _| {
                let mut kept: VecDeque<(Capability<u64>, u64)> = VecDeque::new();
                move |(input, frontier), output| {
                    input.for_each(|cap, events| {
                        for event in events.drain(..) {
                            kept.push_back((cap.delayed(&event, output.output_index()), event));
                        }
                    });
                    while kept.front().is_some_and(|(cap, _)| !frontier.less_equal(cap.time())) {
                        kept.pop_front().into_iter().for_each(|(cap, event)| output.session(&cap).give(event));
                    }
                }
            });
            results.sink(Pipeline, "take", move |(input, _)| {
                input.for_each(|_, events| events.drain(..).for_each(|event| taking.taken(event + 1)));
            });
        });
        while worker.step_or_park(None) {}
    });
    let running = running.expect("workers start");
    let activator = activator.recv().expect("the reading worker runs");
    trips.send_all(apart, |event| {
        sender.send(event).expect("timely reads");
        activator.activate().expect("timely runs");
    });
    drop(sender);
    activator.activate().expect("timely runs");
    drop(running); // waits for the workers
    trips.percentiles()
}

fn idle(plan: Plan, report: &mut Report) {
    let time = if plan.quick { Duration::from_millis(50) } else { Duration::from_secs(5) };
    for checkpoints in [false, true] {
        let Some(percent) = percent_of_a_core(time, checkpoints) else { continue };
        report.row(
            "A started job without input: time on the processor, of one core",
            &["workload", "workers", "checkpoints", "seconds", "percent"],
            vec![
                "idle".to_string(),
                WORKERS.to_string(),
                (if checkpoints { "every 1s" } else { "" }).to_string(),
                format!("{:.0}", time.as_secs_f64()),
                format!("{percent:.3}"),
            ],
        );
        report.json(&json!({
            "workload": "idle", "variant": "idle", "contestant": "millstream", "workers": WORKERS,
            "checkpoint_interval_ms": checkpoints.then_some(1_000), "seconds": time.as_secs_f64(), "percent": percent,
        }));
    }
}

fn percent_of_a_core(time: Duration, checkpoints: bool) -> Option<f64> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (sender, input) = channel::<u64>(64);
    let mut job = Job::new("idle").workers(WORKERS);
    if checkpoints {
        job = job.checkpoint_dir(dir.path().join("checkpoints")).checkpoint_every(Duration::from_secs(1));
    }
    job.source(input, Watermarks::bounded_out_of_orderness(EventSpan::ZERO, |event: &u64| at(*event)))
        .key_by(|event| *event)
        .window(Tumbling::of(EventSpan::millis(1)))
        .aggregate(Count)
        .name("counts")
        .sink(for_each(|_: Record<(u64, Window, u64)>| ()));
    let handle = job.start().expect("the job starts");
    // What belongs to the start is over by then.
    sender.send(0).expect("the job reads");
    pause(time / 5);
    let (start, before) = (Instant::now(), processor_time()?);
    pause(time);
    let used = processor_time()?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64();
    handle.stop(StopMode::Now);
    handle.wait().expect("the job stops");
    Some(percent)
}

/// Of all threads of this process that live. `None` where the system does not tell.
fn processor_time() -> Option<Duration> {
    let mut total = Duration::ZERO;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let times = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        total += Duration::from_nanos(times.split(' ').next()?.parse().ok()?);
    }
    Some(total)
}

/// Of a full batch of W1: source 3, filter and map 2, sink 3.
const READINGS: f64 = 8.0;
const BATCH: f64 = 1024.0;

fn clock(plan: Plan, report: &mut Report) {
    let (readings, events) = (plan.scaled(4_000_000), plan.scaled(20_000_000));
    let stream = Stream::new(Keys::Uniform(1_000), plan.scaled(5_000));
    let (mut reading, mut of_w1) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let start = Instant::now();
        for _ in 0..readings {
            black_box(start.elapsed());
        }
        reading.push(start.elapsed().as_secs_f64() * 1e9 / readings as f64);
        let start = Instant::now();
        w1_chain::job(&stream, events, 1);
        of_w1.push(start.elapsed().as_secs_f64() * 1e9 / events as f64);
    }
    let reading = Spread::of(reading).median;
    let (per_record, record) = (reading * READINGS / BATCH, Spread::of(of_w1).median);
    let percent = 100.0 * per_record / record;
    report.row(
        "What it costs to keep time in W1, with one worker and full batches",
        &["workload", "ns/reading", "readings/batch", "ns/record", "of ns/record", "percent"],
        vec![
            "idle".to_string(),
            format!("{reading:.1}"),
            READINGS.to_string(),
            format!("{per_record:.2}"),
            format!("{record:.1}"),
            format!("{percent:.1}"),
        ],
    );
    report.json(&json!({
        "workload": "idle", "variant": "clock", "contestant": "millstream", "workers": 1, "ns_per_reading": reading,
        "readings_per_batch": READINGS, "ns_per_record": per_record, "w1_ns_per_record": record, "percent": percent,
        "runs": plan.runs,
    }));
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}
