//! One job of everything that waits for event time, its results as files: byte for byte the same, once sorted, on any number of workers, with
//! batches of any size, and with crashes, stops and other numbers of workers in between.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::path::Path;

use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Fault, Item, Pace, Script, cases, run};
use proptest::prelude::*;

/// Says when a key has been silent for so long.
#[derive(Clone)]
struct Silence(EventSpan);

impl Process<u64, Item> for Silence {
    type State = EventTime;
    type Out = (u64, EventTime);

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, EventTime, Self::Out>, _: &Item) -> Result<(), Error> {
        let now = cx.now();
        if let Some(last) = cx.state().replace(now) {
            cx.delete_timer(last + self.0);
        }
        cx.set_timer(now + self.0);
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, u64, EventTime, Self::Out>, _: EventTime) -> Result<(), Error> {
        if let Some(last) = cx.state().take() {
            let silent = (*cx.key(), last);
            cx.emit(silent);
        }
        Ok(())
    }
}

/// What is written where.
const OUTPUTS: [&str; 8] =
    ["late", "once", "sessions", "late-for-sessions", "some-sessions", "patterns", "silences", "pairs"];

fn network(job: &Job, case: &Case, pace: Pace, faults: &[Fault], out: &Path) {
    let unit = (case.shape.slide / 7).max(1);
    let span = |units: i64| EventSpan::micros(unit.saturating_mul(units));
    let source = Script::new(case.splits.clone()).pace(pace).faults(faults);
    let keyed = job.source(source, watermarks(case.delay)).inspect(strikes(faults)).key_by(|item| item.key);
    let (once, late) = keyed.clone().deduplicate_with_late(span(5));
    late.sink(FileSink::json_lines(out.join("late")));
    once.clone().sink(FileSink::json_lines(out.join("once")));
    let (sessions, missed) =
        once.clone().key_by(|item| item.key % 3).window(Session::with_gap(span(9))).aggregate_with_late((
            Count,
            Sum::of(|item: &Item| item.value),
            First::of(|item: &Item| (item.split, item.number)),
        ));
    sessions.clone().sink(FileSink::json_lines(out.join("sessions")));
    missed.sink(FileSink::json_lines(out.join("late-for-sessions")));
    // Of several that end at the same instant only one stays.
    let some = sessions.key_by(|(key, ..)| key % 2).deduplicate(span(3));
    some.sink(FileSink::json_lines(out.join("some-sessions")));
    let even_then_odd = Pattern::first("even", |item: &Item| item.value % 2 == 0)
        .followed_by("odd", |item| item.value % 2 != 0)
        .times(1..=3)
        .not_next("large", |item| item.value > 3_000)
        .within(span(20));
    keyed.clone().matches(even_then_odd).sink(FileSink::json_lines(out.join("patterns")));
    let silences = keyed.process_in_order(Silence(span(20)));
    silences.clone().sink(FileSink::json_lines(out.join("silences")));
    silences
        .key_by(|(key, _)| *key)
        .interval_join(once.key_by(|item| item.key), span(30), span(3))
        .sink(FileSink::json_lines(out.join("pairs")));
}

/// The lines of every output, sorted.
fn lines(out: &Path) -> Vec<(&'static str, Vec<String>)> {
    let read = |name| {
        let mut lines = Vec::new();
        for file in std::fs::read_dir(out.join(name)).expect("a directory of output") {
            let path = file.expect("a file").path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                lines.extend(std::fs::read_to_string(path).expect("text").lines().map(str::to_string));
            }
        }
        (name, sorted(lines))
    };
    OUTPUTS.map(read).to_vec()
}

fn uninterrupted(case: &Case, setup: &Setup) -> Vec<(&'static str, Vec<String>)> {
    let (dir, out) = (tempdir(), tempdir());
    let job = new_job(setup, &dir);
    network(&job, case, setup.pace, &[], out.path());
    run(job).expect("the job finishes");
    lines(out.path())
}

proptest! {
    #![proptest_config(config(cases(200)))]

    #[test]
    fn results_are_the_same_bytes(
        case in any_case(4, 100),
        setups in setups(),
        troubles in troubles(),
        workers in worker_counts(),
        slow in slow_setup(),
    ) {
        let expected = uninterrupted(&case, &ONE);
        for setup in setups {
            prop_assert_eq!(&uninterrupted(&case, &setup), &expected, "{:?}", setup);
        }
        let out = tempdir();
        run_through(&troubles, &case.splits, &workers, &slow, |job, faults| {
            network(job, &case, slow.pace, faults, out.path());
        })?;
        prop_assert_eq!(lines(out.path()), expected);
    }
}

/// An input for which every output has something to say.
#[test]
fn every_output_has_results() {
    let item = |n: u64| {
        // Bursts of 50, 37 us between two records, and now and then one from long ago.
        let at = (n / 50 * 5_000 + n % 50 * 37) as i64 - if n.is_multiple_of(41) { 3_000 } else { 0 };
        Item { split: 0, number: n, at, key: n % 5, value: n as i64 }
    };
    let case = Case {
        splits: vec![(0..2_000).map(item).collect()],
        shape: oracle::Shape { size: 700, slide: 700, offset: 0 },
        delay: 50,
    };
    for (name, lines) in uninterrupted(&case, &ONE) {
        // What is in time for the first operator is for those behind it.
        assert_eq!(lines.is_empty(), name == "late-for-sessions", "{name}");
    }
}
