//! Checkpoints of every format that was ever released are read by this version, and go on to the same results.
//!
//! Each directory in `tests/fixtures` holds one real checkpoint, taken half way through one of the jobs below by the version of its
//! time, and `rest.txt`, the results that were still to come. A new format adds one: give it a name in [`NEWEST`], and run
//!
//! ```sh
//! cargo test --test compatibility -- --ignored write
//! ```
//!
//! | fixture | job | since then |
//! |---|---|---|
//! | `checkpoint-format-1` | [`in_slices`] | the first one |
//! | `checkpoint-format-1-with-schemas` | [`in_slices`] | manifests have the schemas of keys and values |
//! | `by-key-format-1` | [`by_key`] | what is kept by key with timers: windows, process functions, patterns, joins, tables; what is broadcast |
//!
//! The jobs, their types and the path of this file must stay as they are: checkpoints from before there were schemas know types by
//! their names.

mod common;
mod patience;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::copy;
use millstream::prelude::*;
use millstream::state::store::CheckpointStore;
use patience::{SOON, ms, temp, until, within};
use serde::{Deserialize, Serialize};

/// The fixtures that `write` makes, if they are not there.
const NEWEST: [(&str, MakeJob); 2] = [("checkpoint-format-1-with-schemas", in_slices), ("by-key-format-1", by_key)];

/// A job that keeps its checkpoints there, on so many workers, reading so many records a second.
type MakeJob = fn(Option<&Path>, usize, f64, &Collected<String>) -> Job;

/// The job of a fixture.
fn job_of(fixture: &Path) -> MakeJob {
    let is_by_key = fixture.file_name().is_some_and(|name| name.to_string_lossy().starts_with("by-key"));
    if is_by_key { by_key } else { in_slices }
}

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

/// A job and its events.
fn begin(name: &str, dir: Option<&Path>, workers: usize, rate: f64) -> (Job, Stream<Event>) {
    let mut job = Job::new(name).workers(workers).batch_size(32).checkpoint_every(ms(20)).retain(1);
    if let Some(dir) = dir {
        job = job.checkpoint_dir(dir);
    }
    let source = Generator::new(EVENTS, event).rate(rate);
    let at = |event: &Event| EventTime::from_millis(event.at_ms);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::millis(100), at)).name("events");
    (job, events)
}

/// Values by key and slices, with every aggregate.
fn in_slices(dir: Option<&Path>, workers: usize, rate: f64, results: &Collected<String>) -> Job {
    let (job, events) = begin("visits", dir, workers, rate);
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

/// How long a user has been away.
#[derive(Clone)]
struct Away;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seen {
    last: EventTime,
    pages: Vec<u32>,
}

type AwayContext<'a> = ProcessContext<'a, String, Seen, String>;

impl Process<String, Event> for Away {
    type State = Seen;
    type Out = String;

    fn keep_for(&self) -> Option<EventSpan> {
        Some(EventSpan::secs(20))
    }

    fn on_record(&mut self, cx: &mut AwayContext<'_>, event: &Event) -> Result<(), Error> {
        let now = cx.now();
        let seen = cx.state().get_or_insert_with(|| Seen { last: now, pages: Vec::new() });
        let before = std::mem::replace(&mut seen.last, now);
        seen.pages.push(event.page);
        seen.pages.truncate(9);
        cx.delete_timer(before + EventSpan::millis(150));
        cx.set_timer(now + EventSpan::millis(150));
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut AwayContext<'_>, at: EventTime) -> Result<(), Error> {
        let line = format!("{} {at} {:?}", cx.key(), cx.state());
        cx.emit(line);
        Ok(())
    }
}

/// Events of the pages that were named last.
#[derive(Clone)]
struct Named;

impl BroadcastProcess<String, Event, u32> for Named {
    type Shared = Vec<u32>;
    type State = u64;
    type Out = String;

    fn on_broadcast(&mut self, named: &mut Vec<u32>, page: &u32, _: EventTime) -> Result<(), Error> {
        named.push(*page);
        let first = named.len().saturating_sub(3);
        named.drain(..first);
        Ok(())
    }

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, String, u64, String>,
        named: &Vec<u32>,
        event: &Event,
    ) -> Result<(), Error> {
        let count = cx.state().get_or_insert(0);
        *count += 1;
        let count = *count;
        if named.contains(&event.page) {
            cx.emit(format!("{count} {named:?} {event:?}"));
        }
        Ok(())
    }
}

/// What is kept by key, with timers.
fn by_key(dir: Option<&Path>, workers: usize, rate: f64, results: &Collected<String>) -> Job {
    let (job, events) = begin("by-key", dir, workers, rate);
    let by_user = || events.clone().key_by(|event| event.user.clone());
    let short = EventSpan::millis(120);
    let sessions = by_user().window(Session::with_gap(short)).aggregate(Count).name("sessions");
    let updates = by_user()
        .window(Tumbling::of(EventSpan::secs(1)))
        .allowed_lateness(EventSpan::secs(5))
        .aggregate(Sum::of(|event: &Event| event.page))
        .name("updates")
        .filter(|update| update.timing == Timing::OnTime);
    let days = by_user()
        .window(Calendar::days().in_zone("Europe/Oslo").expect("a time zone"))
        .aggregate(Max::of(|event: &Event| event.page))
        .name("days");
    let counted = by_user().count_window(7).aggregate(List::of(|event: &Event| event.page)).name("counted");
    let away = by_user().process_in_order(Away).name("away");
    let rules = events.clone().filter(|event| event.page == 4).map(|event| event.at_ms as u32 / 100 % 11);
    let named = by_user().with_broadcast(rules.broadcast()).process_in_order(Named).name("named");
    let once = by_user().deduplicate(EventSpan::secs(2)).name("once");
    let near = by_user()
        .interval_join(by_user(), EventSpan::ZERO, EventSpan::millis(30))
        .name("near")
        .map(|(one, other)| (one.at_ms, other.at_ms));
    let valid = by_user().temporal_join(by_user()).valid_for(EventSpan::secs(1)).inner().name("valid");
    let fast = Pattern::first("low", |event: &Event| event.page < 3)
        .followed_by("high", |event| event.page > 8)
        .times(2)
        .within(EventSpan::secs(3));
    let fast = by_user()
        .matches(fast)
        .name("fast")
        .map(|found| found.of("high").len() as i64 + found.one("low").at_ms);
    let best = by_user().top(2, |event| event.page).name("best").map(|change| format!("{change:?}"));
    let pages = events.clone().into_table(|event| (event.page, event.user.len() as i64)).name("pages");
    let users = by_user().upserts_into_table(|event| Some(event.page)).name("users");
    let by_page = users.map(|user, page| (page, user)).join(pages.sum(|length| *length));
    let lines = [
        by_page.changes().map(|(page, row, by)| format!("table {page} {row:?}|{by}")),
        updates.map(|row| format!("updates {row:?}")),
        days.map(|row| format!("days {row:?}")),
        counted.map(|row| format!("counted {row:?}")),
        away.map(|row| format!("away {row}")),
        named.map(|row| format!("named {row}")),
        once.map(|row| format!("once {row:?}")),
        near.map(|row| format!("near {row:?}")),
        valid.map(|row| format!("valid {row:?}")),
        fast.map(|row| format!("fast {row}")),
        best.map(|row| format!("best {row}")),
    ];
    sessions.map(|row| format!("sessions {row:?}")).union(lines).sink(results.sink());
    job
}

/// How often there is each line. Changes of tables end in how many rows come or go; which ones are told on the way is chance.
type Tally = BTreeMap<String, i64>;

fn tally(lines: impl IntoIterator<Item = String>) -> Tally {
    let mut tally = Tally::new();
    for line in lines {
        match line.rsplit_once('|').filter(|_| line.starts_with("table ")) {
            Some((row, by)) => *tally.entry(row.to_string()).or_default() += by.parse::<i64>().expect("a number"),
            None => *tally.entry(line).or_default() += 1,
        }
    }
    tally.retain(|_, count| *count != 0);
    tally
}

fn uninterrupted(job: MakeJob) -> Tally {
    let results = Collected::new();
    within(job(None, 1, 0.0, &results).start().expect("starts"), SOON).expect("finishes");
    tally(results.values())
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn checkpoints_of_every_format_are_read() {
    let mut found: Vec<_> =
        fs::read_dir(fixtures()).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    for (name, _) in NEWEST {
        assert!(found.iter().any(|fixture| fixture.ends_with(name)), "{name} is not among {found:?}");
    }
    for fixture in found {
        let job = job_of(&fixture);
        let rest = fs::read_to_string(fixture.join("rest.txt")).expect("what is to come");
        assert!(rest.lines().count() > 1_000, "{}", fixture.display());
        let rest = tally(rest.lines().map(String::from));
        for workers in [1, 3] {
            let (dir, results) = (temp(), Collected::new());
            copy(&fixture.join("checkpoints"), dir.path());
            let handle = job(Some(dir.path()), workers, 0.0, &results).start().expect("starts");
            let summary = within(handle, SOON).expect("finishes");
            assert!(summary.restored.is_some() && summary.records_in < EVENTS);
            let found = tally(results.values());
            let differences: Vec<_> = found.iter().filter(|(line, count)| rest.get(*line) != Some(count)).collect();
            assert!(differences.is_empty(), "{} on {workers} workers: {differences:?}", fixture.display());
            assert_eq!(found.len(), rest.len(), "{} on {workers} workers", fixture.display());
        }
    }
}

/// Every aggregate's own state has a schema, so that a change of it would be seen. And none of them may change: that would take
/// a migration of Millstream's own, which there is no place for yet.
#[test]
fn the_schemas_of_all_aggregates_stay_as_they_are() {
    let (dir, results) = (temp(), Collected::new());
    within(in_slices(Some(dir.path()), 1, 0.0, &results).start().expect("starts"), SOON).expect("finishes");
    let states = |dir: &Path| {
        let store = CheckpointStore::new(dir);
        let epoch = *store.epochs().expect("lists").last().expect("a checkpoint");
        let operators = store.manifest(epoch).expect("reads").operators;
        operators.into_iter().flat_map(|operator| operator.states).collect::<Vec<_>>()
    };
    let (now, then) = (states(dir.path()), states(&fixtures().join(NEWEST[0].0).join("checkpoints")));
    assert_eq!(now.len(), 1 + 3 + 3);
    for state in now.iter().filter_map(|state| state.entries.as_ref()) {
        assert_eq!((state.key.opaque(), state.value.opaque()), (None, None));
    }
    assert_eq!(now, then);
}

/// Makes the newest fixtures that are not there.
#[test]
#[ignore = "writes into the repository"]
fn write() {
    for (name, job) in NEWEST {
        let fixture = fixtures().join(name);
        if fixture.exists() {
            continue;
        }
        let (dir, results) = (temp(), Collected::new());
        let handle = job(Some(dir.path()), 2, 6_000.0, &results).start().expect("starts");
        until("half is read", || handle.status().records_in > EVENTS / 2);
        handle.stop(StopMode::WithCheckpoint);
        assert_eq!(within(handle, SOON).expect("stops").outcome, Outcome::Stopped);
        assert_eq!(CheckpointStore::new(dir.path()).epochs().expect("lists").len(), 1);

        let mut rest = uninterrupted(job);
        for (line, count) in tally(results.values()) {
            *rest.entry(line).or_default() -= count;
        }
        let mut lines = Vec::new();
        for (line, count) in rest {
            match line.starts_with("table ") {
                true if count == 0 => {}
                true => lines.push(format!("{line}|{count}")),
                false => {
                    assert!(count >= 0, "a result that the job never has: {line}");
                    lines.extend((0..count).map(|_| line.clone()));
                }
            }
        }
        copy(dir.path(), &fixture.join("checkpoints"));
        fs::write(fixture.join("rest.txt"), lines.join("\n")).expect("writes");
    }
}
