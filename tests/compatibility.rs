//! Checkpoints of every format that was ever released are read by this version, and go on to the same results.
//!
//! Each directory in `tests/fixtures` holds one real checkpoint, taken half way through the job below by the version of its
//! time, and `rest.txt`, the results that were still to come. A new format adds one: give [`NEWEST`] its name, and run
//!
//! ```sh
//! cargo test --test compatibility -- --ignored write
//! ```
//!
//! | fixture | since then |
//! |---|---|
//! | `checkpoint-format-1` | the first one |
//! | `checkpoint-format-1-with-schemas` | manifests have the schemas of keys and values |
//!
//! The job, its types and the path of this file must stay as they are: checkpoints from before there were schemas know types by
//! their names.

mod common;
mod patience;

use std::fs;
use std::path::{Path, PathBuf};

use common::copy;
use millstream::prelude::*;
use millstream::state::store::CheckpointStore;
use patience::{SOON, ms, temp, until, within};
use serde::{Deserialize, Serialize};

/// The fixture that `write` makes.
const NEWEST: &str = "checkpoint-format-1-with-schemas";

const EVENTS: u64 = 3_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Event {
    at_ms: i64,
    user: String,
    page: u32,
    seconds: f64,
}

/// Of a user, as the job keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Visits {
    pages: Vec<u32>,
    longest: Option<f64>,
    last: Kind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Kind {
    None,
    Short(u32),
    Long { page: u32, seconds: f64 },
}

fn event(i: u64) -> Event {
    let late = if i.is_multiple_of(41) { 3_000 } else { (i % 5) as i64 * 15 };
    Event {
        at_ms: 10 * i as i64 - late,
        user: if i.is_multiple_of(2) { format!("u{}", i % 13) } else { format!("a longer name {}", i % 7) },
        page: (i * 7_919 % 11) as u32,
        seconds: (i % 97) as f64 / 8.0 + if i % 500 == 3 { 1e200 } else { 1e-30 },
    }
}

fn visit(visits: &mut Visits, event: &Event) {
    visits.pages.push(event.page);
    visits.pages.truncate(5);
    visits.longest = visits.longest.max_by(event.seconds);
    visits.last = match event.page {
        page @ 0..5 => Kind::Short(page),
        page => Kind::Long { page, seconds: event.seconds },
    };
}

trait MaxBy {
    fn max_by(self, other: f64) -> Self;
}

impl MaxBy for Option<f64> {
    fn max_by(self, other: f64) -> Self {
        Some(self.map_or(other, |own| own.max(other)))
    }
}

/// Every kind of state, and every aggregate.
fn job(dir: Option<&Path>, workers: usize, rate: f64, results: &Collected<String>) -> Job {
    let mut job = Job::new("visits").workers(workers).batch_size(32).checkpoint_every(ms(20)).retain(1);
    if let Some(dir) = dir {
        job = job.checkpoint_dir(dir);
    }
    let source = Generator::new(EVENTS, event).rate(rate);
    let at = |event: &Event| EventTime::from_millis(event.at_ms);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(100), at)).name("events");
    let by_user = || events.clone().key_by(|event| event.user.clone());
    let numbers = (
        Count,
        Sum::of(|event: &Event| event.page),
        Sum::of(|event: &Event| event.seconds),
        FastSum::of(|event: &Event| event.page),
        Min::of(|event: &Event| event.page),
        Max::of(|event: &Event| event.user.clone()),
        Mean::of(|event: &Event| event.page),
        Variance::of(|event: &Event| event.page),
    );
    let others = (
        First::of(|event: &Event| event.page),
        Last::of(|event: &Event| event.user.clone()),
        DistinctCount::of(|event: &Event| event.user.clone()),
        StdDev::of(|event: &Event| f64::from(event.page)),
        Fold::new(
            (0u8, 'a'),
            |acc: &mut (u8, char), _: &Event| acc.0 = acc.0.wrapping_add(1),
            |a, b| a.0 = a.0.wrapping_add(b.0),
        ),
    );
    let visits = by_user().fold(Visits { pages: vec![], longest: None, last: Kind::None }, visit).name("visits");
    let tumbling = by_user().window(Tumbling::of(EventSpan::secs(2))).aggregate(numbers).name("tumbling");
    let sliding = events
        .clone()
        .key_by(|event| (event.page, event.page.is_multiple_of(2)))
        .window(Sliding::of(EventSpan::secs(5), EventSpan::secs(1)))
        .aggregate(others)
        .name("sliding");
    let visits = visits.map(|row| format!("visits {row:?}"));
    let windows = [tumbling.map(|row| format!("tumbling {row:?}")), sliding.map(|row| format!("sliding {row:?}"))];
    visits.union(windows).sink(results.sink());
    job
}

fn sorted(results: &Collected<String>) -> Vec<String> {
    let mut lines = results.values();
    lines.sort();
    lines
}

fn uninterrupted() -> Vec<String> {
    let results = Collected::new();
    within(job(None, 1, 0.0, &results).start().expect("starts"), SOON).expect("finishes");
    sorted(&results)
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn checkpoints_of_every_format_are_read() {
    let mut found: Vec<_> =
        fs::read_dir(fixtures()).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    assert!(found.iter().any(|fixture| fixture.ends_with(NEWEST)), "{found:?}");
    for fixture in found {
        let rest = fs::read_to_string(fixture.join("rest.txt")).expect("what is to come");
        let rest: Vec<&str> = rest.lines().collect();
        assert!(rest.len() > 1_000, "{}", fixture.display());
        for workers in [1, 3] {
            let (dir, results) = (temp(), Collected::new());
            copy(&fixture.join("checkpoints"), dir.path());
            let handle = job(Some(dir.path()), workers, 0.0, &results).start().expect("starts");
            let summary = within(handle, SOON).expect("finishes");
            assert!(summary.restored.is_some() && summary.records_in < EVENTS);
            let found = sorted(&results);
            assert_eq!(found.len(), rest.len(), "{} on {workers} workers", fixture.display());
            for (found, expected) in found.iter().zip(&rest) {
                assert_eq!(found, expected, "{} on {workers} workers", fixture.display());
            }
        }
    }
}

/// Every aggregate's own state has a schema, so that a change of it would be seen. And none of them may change: that would take
/// a migration of Millstream's own, which there is no place for yet.
#[test]
fn the_schemas_of_all_aggregates_stay_as_they_are() {
    let (dir, results) = (temp(), Collected::new());
    within(job(Some(dir.path()), 1, 0.0, &results).start().expect("starts"), SOON).expect("finishes");
    let states = |dir: &Path| {
        let store = CheckpointStore::new(dir);
        let epoch = *store.epochs().expect("lists").last().expect("a checkpoint");
        let operators = store.manifest(epoch).expect("reads").operators;
        operators.into_iter().flat_map(|operator| operator.states).collect::<Vec<_>>()
    };
    let (now, then) = (states(dir.path()), states(&fixtures().join(NEWEST).join("checkpoints")));
    assert_eq!(now.len(), 1 + 3 + 3);
    for state in now.iter().filter_map(|state| state.entries.as_ref()) {
        assert_eq!((state.key.opaque(), state.value.opaque()), (None, None));
    }
    assert_eq!(now, then);
}

/// Makes the newest fixture, which must not be there.
#[test]
#[ignore = "writes into the repository"]
fn write() {
    let (dir, results) = (temp(), Collected::new());
    let handle = job(Some(dir.path()), 2, 6_000.0, &results).start().expect("starts");
    until("half is read", || handle.status().records_in > EVENTS / 2);
    handle.stop(StopMode::WithCheckpoint);
    assert_eq!(within(handle, SOON).expect("stops").outcome, Outcome::Stopped);
    assert_eq!(CheckpointStore::new(dir.path()).epochs().expect("lists").len(), 1);

    let before = sorted(&results);
    let mut before = before.iter().peekable();
    let rest: Vec<String> = uninterrupted().into_iter().filter(|line| before.next_if_eq(&line).is_none()).collect();
    assert_eq!(before.next(), None, "a result that the job never has");
    let fixture = fixtures().join(NEWEST);
    assert!(!fixture.exists(), "{} is there already", fixture.display());
    copy(dir.path(), &fixture.join("checkpoints"));
    fs::write(fixture.join("rest.txt"), rest.join("\n")).expect("writes");
}
