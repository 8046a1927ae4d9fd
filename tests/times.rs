//! Every run says where its time goes: how busy each operator is, how long batches wait for it, how long records take from the
//! source to the sink. What takes a known time shows up at the operator that takes it; never an upper bound on time is
//! asked for, because any machine may stall.

mod patience;

use std::time::{Duration, Instant};

use millstream::bench::Percentiles;
use millstream::handle::{OperatorKind, OperatorStatus};
use millstream::prelude::*;
use patience::{ms, until};

/// Keeps the worker busy, as slow user code would.
fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn at(n: &u64) -> EventTime {
    EventTime::from_millis(*n as i64)
}

fn of<'a>(operators: &'a [OperatorStatus], name: &str) -> &'a OperatorStatus {
    operators.iter().find(|operator| operator.name == name).expect("is there")
}

fn at_least(latency: &Percentiles, time: Duration) -> bool {
    u128::from(latency.p50_ns) >= time.as_nanos() && u128::from(latency.max_ns) >= time.as_nanos()
}

/// 200 numbers through a chain, of which the operator `slow` takes 2 ms for each.
fn chain_with(slow: &'static str) -> Summary {
    let job = Job::new("chain").workers(1);
    let slow_in = move |name: &str| {
        if name == slow {
            spin(ms(2));
        }
    };
    let read = move |n| {
        slow_in("numbers");
        n
    };
    job.source(Generator::new(200, read), Watermarks::monotonous(at))
        .name("numbers")
        .filter(|n| *n < 1_000)
        .name("few")
        .inspect(move |_| slow_in("looked-at"))
        .name("looked-at")
        .map(|n| n + 1)
        .name("next")
        .sink(for_each(move |_: Record<u64>| slow_in("out")))
        .name("out");
    job.run().expect("the job runs")
}

#[test]
fn what_takes_long_shows_up_at_the_operator_that_takes_it() {
    for slow in ["numbers", "looked-at", "out"] {
        let summary = chain_with(slow);
        let operators = &summary.operators;
        assert_eq!(
            operators.iter().map(|of| of.name.as_str()).collect::<Vec<_>>(),
            ["numbers", "few", "looked-at", "next", "out"]
        );
        let busy = of(operators, slow).busy;
        assert!(busy >= ms(400), "{slow}: {operators:?}");
        for other in operators.iter().filter(|operator| operator.name != slow) {
            // That they run takes microseconds, so a stall as long as 400 ms hardly ever comes upon just them.
            assert!(!other.busy.is_zero() && other.busy < busy, "{slow}: {operators:?}");
        }
        // They travel in one batch, so each record waits for all.
        let latency = of(operators, "out").record_latency;
        assert_eq!(latency.count, 200, "{slow}");
        assert!(at_least(&latency, ms(400)), "{slow}: {latency:?}");
        let text = summary.to_string();
        assert!(text.contains(&format!("\n  busy      {slow} ")), "{text}");
        assert!(text.contains("\n  latency   out, of each record: p50 "), "{text}");
    }
}

#[test]
fn batches_wait_in_queues_and_in_exchanges() {
    for workers in [1, 2] {
        let job = Job::new("windows").workers(workers).batch_size(100);
        job.source(Generator::new(20_000, |n| n).splits(2), Watermarks::monotonous(at))
            .name("numbers")
            .filter(|n| n % 4 < 2)
            .name("even")
            .key_by(|n| n % 7)
            .window(Tumbling::of(EventSpan::secs(1)))
            .aggregate(Count)
            .name("counts")
            .sink(for_each(|_: Record<Pane<u64, u64>>| ()))
            .name("out");
        let summary = job.run().expect("the job runs");
        let operator = |name| of(&summary.operators, name);
        let kinds = ["numbers", "even", "key_by-1", "counts", "out"].map(|name| operator(name).kind);
        use OperatorKind::{Keyed, Sink, Source, Stateless};
        assert_eq!(kinds, [Source, Stateless, Stateless, Keyed, Sink]);
        // 20,000 records in batches of 100, and half of each is left; a chain takes each up once.
        assert_eq!((operator("even").queue.count, operator("key_by-1").queue.count), (200, 0));
        assert_eq!((operator("numbers").queue.count, operator("numbers").exchange.count), (0, 0));
        let counts = operator("counts");
        assert!(operator("out").queue.count > 0 && operator("out").exchange.count == 0);
        match workers {
            1 => assert_eq!((counts.queue.count, counts.exchange.count, counts.dealing), (200, 0, Duration::ZERO)),
            _ => assert!(counts.exchange.count > 0 && !counts.dealing.is_zero(), "{counts:?}"),
        }
        assert!(counts.queue.count + counts.exchange.count > 0 && !counts.busy.is_zero());
        // 20 windows of 7 keys.
        assert_eq!(summary.records_out, 20 * 7);
        assert_eq!((operator("out").result_latency.count, operator("out").record_latency.count), (20 * 7, 0));
        assert_eq!(operator("out").latencies().map(|(of, _)| of).collect::<Vec<_>>(), ["result"]);
        assert!(summary.to_string().contains("\n  latency   out, of each result: p50 "), "{summary}");
        // Of six that are busy five are shown, so that it is there on two workers is not certain.
        assert!(workers > 1 || !summary.to_string().contains("(exchange)"), "{summary}");
    }
}

#[test]
fn results_count_from_when_they_were_fired_and_records_from_when_they_were_read() {
    let job = Job::new("both").workers(2);
    let numbers = job.source(Generator::new(3_000, |n| n), Watermarks::monotonous(at));
    numbers
        .clone()
        .key_by(|_| 0u8)
        .window(Tumbling::of(EventSpan::secs(1)))
        .aggregate(Count)
        .inspect(|_| spin(ms(50)))
        .sink(for_each(|_: Record<Pane<u8, u64>>| ()))
        .name("results");
    numbers
        .key_by(|n| n % 10)
        .fold(0u64, |sum, n| *sum += n)
        .sink(for_each(|_: Record<(u64, u64)>| ()))
        .name("sums");
    let summary = job.run().expect("the job runs");
    let results = of(&summary.operators, "results");
    assert_eq!((results.result_latency.count, results.record_latency.count), (3, 0));
    assert!(at_least(&results.result_latency, ms(50)), "{results:?}");
    let sums = of(&summary.operators, "sums");
    assert_eq!((sums.result_latency.count, sums.record_latency.count), (0, 3_000));
    assert!(sums.record_latency.p50_ns > 0 && sums.record_latency.p50_ns <= sums.record_latency.max_ns);
}

/// 5,000 results leave their window in several turns; the sink takes 20 us for each.
#[test]
fn results_that_are_fired_in_turns_count_from_the_first_one() {
    let (sender, input) = channel::<u64>(8_192);
    let job = Job::new("turns").workers(1);
    job.source(input, Watermarks::monotonous(|n: &u64| EventTime::from_millis(*n as i64)))
        .key_by(|n| n % 5_000)
        .window(Sliding::of(EventSpan::secs(10), EventSpan::secs(5)))
        .aggregate(Count)
        .sink(for_each(|_: Record<Pane<u64, u64>>| spin(Duration::from_micros(20))))
        .name("out");
    let handle = job.start().expect("starts");
    (0..5_000).for_each(|n| sender.send(n).expect("the job reads"));
    until("all are read", || handle.status().records_in == 5_000);
    sender.send(5_000).expect("the job reads");
    let first = || of(&handle.status().operators, "out").result_latency;
    until("the first window is out", || first().count == 5_000);
    let first = first();
    assert!(u128::from(first.max_ns) >= ms(95).as_nanos(), "{first:?}");
    drop(sender);
    handle.wait().expect("the job ends");
}

#[test]
fn a_running_job_can_be_asked_where_its_time_goes() {
    let job = Job::new("live").workers(2).batch_size(10);
    job.source(Generator::forever(|n| n).splits(2), Watermarks::monotonous(at))
        .inspect(|_| spin(Duration::from_micros(100)))
        .name("slow")
        .key_by(|n| n % 10)
        .fold(0u64, |count, _| *count += 1)
        .name("counts")
        .sink(for_each(|_: Record<(u64, u64)>| ()))
        .name("out");
    let handle = job.start().expect("starts");
    until("a thousand records are counted", || {
        let status = handle.status();
        of(&status.operators, "out").record_latency.count > 1_000
    });
    let status = handle.status();
    let operator = |name| of(&status.operators, name);
    assert!(operator("slow").busy >= ms(100), "{status:?}");
    assert!(operator("slow").queue.count >= 100 && operator("counts").exchange.count > 0, "{status:?}");
    assert!(
        u128::from(operator("out").record_latency.p50_ns) >= ms(1).as_nanos(),
        "ten records of a batch: {status:?}"
    );
    handle.stop(StopMode::Now);
    let summary = handle.wait().expect("stops");
    assert_eq!(of(&summary.operators, "out").record_latency.count, summary.records_out);
    assert!(of(&summary.operators, "slow").busy >= operator("slow").busy);
}
