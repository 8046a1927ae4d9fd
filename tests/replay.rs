//! Replay: what a job did between any two of its checkpoints, done again elsewhere, is what it did the first time; and where it is
//! not, because somebody changed something, that is found and named.

#[cfg(unix)]
mod common;
mod patience;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream::prelude::*;
use millstream::replay::{Replay, ReplayReport, Standing, StoredCheck};
use millstream::source::{Output, Read, Source, SplitReader, Waker};
use millstream::state::store::CheckpointStore;
use patience::{Random, effort, sleep, temp, tree};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Event {
    at_ms: i64,
    key: u32,
    n: i64,
}

#[derive(Clone, Debug, Serialize)]
struct Pane {
    key: u32,
    window: String,
    events: u64,
    sum: i64,
}

/// A job in a directory of its own, with three files of input.
struct Fixture {
    dir: tempfile::TempDir,
    rate: f64,
}

const FILES: u64 = 3;

impl Fixture {
    /// Events over a few minutes, out of order, some of them late.
    fn new(random: &mut Random, events: u64, rate: f64) -> Fixture {
        let dir = temp();
        for file in 0..FILES {
            let mut text = String::from("at_ms,key,n\n");
            for i in 0..events / FILES {
                let late = if random.below(40) == 0 { 20_000 } else { 900 };
                let at_ms = (i * 300_000 / (events / FILES)) as i64 - random.below(late) as i64;
                // Most files have long stretches that a filter drops, so that workers see time pass without any record.
                let key = if (i / 64 + file) % 3 == 0 { random.below(12) } else { 1_000 };
                text.push_str(&format!("{at_ms},{key},{}\n", random.below(1_000)));
            }
            fs::write(dir.path().join(format!("{file}.csv")), text).expect("written");
        }
        Fixture { dir, rate }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn inputs(&self) -> Vec<PathBuf> {
        (0..FILES).map(|file| self.path(&format!("{file}.csv"))).collect()
    }

    fn store(&self) -> CheckpointStore {
        CheckpointStore::new(self.path("checkpoints"))
    }

    fn epochs(&self) -> Vec<u64> {
        self.store().epochs().expect("a list")
    }

    fn job(&self, random: &mut Random, rate: f64) -> Job {
        let job = Job::new("replayed")
            .workers(1 + random.below(3) as usize)
            .batch_size(1 + random.below(100) as usize)
            .checkpoint_dir(self.path("checkpoints"))
            .checkpoint_every(Duration::from_millis(1 + random.below(20)))
            .retain(100_000);
        let events = CsvFiles::<Event>::new(self.inputs()).rate(rate);
        let at = |event: &Event| EventTime::from_millis(event.at_ms);
        let events = job.source(events, Watermarks::bounded_out_of_orderness(EventSpan::secs(1), at)).name("events");
        let kept = events.filter(|event| event.key < 1_000);
        kept.clone().sink(FileSink::json_lines(self.path("kept"))).name("kept");
        let (panes, late) = kept
            .clone()
            .key_by(|event| event.key)
            .window(Sliding::of(EventSpan::secs(6), EventSpan::secs(2)))
            .aggregate_with_late((Count, Sum::of(|event: &Event| event.n)));
        let panes = panes.name("panes").map(|(key, window, (events, sum))| Pane {
            key,
            window: window.to_string(),
            events,
            sum,
        });
        panes.clone().sink(FileSink::csv(self.path("panes"))).name("panes-out");
        late.sink(FileSink::json_lines(self.path("late")).gzip()).name("late-out");
        let again = panes.key_by(|pane| pane.key % 2).window(Tumbling::of(EventSpan::secs(10)));
        let again = again.aggregate(Sum::of(|pane: &Pane| pane.sum)).name("of-panes");
        again
            .map(|(key, window, sum)| (key, window.to_string(), sum))
            .sink(FileSink::json_lines(self.path("of-panes")).roll_at_bytes(200))
            .name("of-panes-out");
        let running = kept.key_by(|event| event.key).fold(0i64, |sum, event| *sum = (*sum * 3 + event.n) % 1_000_003);
        running.name("running").sink(FileSink::json_lines(self.path("running"))).name("running-out");
        job
    }

    /// Runs the job to its end, through as many deaths as chance has it, each time with other settings.
    fn run(&self, random: &mut Random) {
        for _ in 0..random.below(4) {
            let handle = self.job(random, self.rate).start().expect("starts");
            sleep(Duration::from_millis(5 + random.below(120)));
            handle.stop(if random.below(3) == 0 { StopMode::WithCheckpoint } else { StopMode::Now });
            handle.wait().expect("stops");
        }
        self.job(random, self.rate).run().expect("ends");
    }

    fn replay(&self, random: &mut Random, replay: &Replay) -> ReplayReport {
        self.job(random, 0.0).replay(replay).unwrap_or_else(|error| panic!("{replay:?}: {error}"))
    }
}

/// The sorted rows of the JSON lines in a directory.
fn lines(dir: &Path) -> Vec<String> {
    let parts = tree(dir).into_iter().filter(|(path, _)| path.to_string_lossy().ends_with(".jsonl"));
    let text = parts.map(|(_, bytes)| String::from_utf8(bytes).expect("text")).collect::<String>();
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort_unstable();
    lines
}

/// What is equal and what is open, over all sinks, in rows.
fn rows(report: &ReplayReport) -> (u64, u64) {
    let of = |standing| {
        let ranges = report.sinks.iter().flat_map(|sink| &sink.ranges).filter(move |range| range.standing == standing);
        ranges.map(|range| range.original).sum()
    };
    (of(Standing::Equal), of(Standing::Open))
}

#[test]
fn every_stretch_of_a_run_replays_the_same() {
    let (mut compared, mut open, mut partial) = (0, 0, 0);
    for seed in 0..8 * effort() {
        let mut random = Random(0x5eed_0000 + seed);
        let fixture = Fixture::new(&mut random, 4_500, 9_000.0);
        fixture.run(&mut random);
        let epochs = fixture.epochs();
        assert!(epochs.len() > 3, "seed {seed}: {epochs:?}");
        let before = tree(fixture.dir.path());

        // From the beginning to the end, with the output compared by hand as well.
        let again = temp();
        let whole = Replay::from_checkpoint(0).verify().output(again.path().join("whole"));
        let report = fixture.replay(&mut random, &whole);
        assert!(report.is_equal() && rows(&report).1 == 0 && rows(&report).0 > 2_000, "seed {seed}: {report}");
        for (dir, sink) in [("kept", "kept"), ("of-panes", "of-panes-out")] {
            let (first, second) = (lines(&fixture.path(dir)), lines(&again.path().join("whole").join(sink)));
            assert!(first == second && !first.is_empty(), "seed {seed}: {sink}");
        }
        let excluded: Vec<_> =
            report.sinks.iter().filter(|sink| sink.excluded.is_some()).map(|sink| &sink.name).collect();
        assert_eq!(excluded, ["running-out"]);

        for _ in 0..8 {
            let two: BTreeSet<u64> = (0..2).map(|_| epochs[random.below(epochs.len() as u64) as usize]).collect();
            let (Some(from), Some(until), 2) = (two.first(), two.last(), two.len()) else { continue };
            let mut replay = Replay::from_checkpoint(*from).until(*until).verify();
            if random.below(3) == 0 {
                replay = replay.discard();
            }
            let report = fixture.replay(&mut random, &replay);
            assert!(report.is_equal(), "seed {seed}, {from} to {until}: {report}");
            assert!(report.sinks.iter().all(|sink| sink.not_comparable.is_none()), "seed {seed}: {report}");
            let stored = report.sinks.iter().filter(|sink| sink.excluded.is_none());
            assert!(stored.clone().all(|sink| sink.stored == Some(StoredCheck::AsWritten)), "seed {seed}: {report}");
            compared += rows(&report).0;
            open += rows(&report).1;
            partial += 1;
        }
        let mut after = tree(fixture.dir.path());
        // A line for each replay is all that it leaves.
        after.retain(|path, _| !path.ends_with("replays.jsonl"));
        assert!(after == before, "seed {seed}: a replay changes nothing of the job");
    }
    assert!(partial > 10 && compared > 10 * open, "{partial} stretches, {compared} rows equal, {open} open");
    println!("{partial} stretches: {compared} rows equal, {open} beyond the watermark");
}

/// The lines of an input file, the header first.
fn input(path: &Path) -> Vec<String> {
    fs::read_to_string(path).expect("reads").lines().map(str::to_string).collect()
}

#[test]
fn a_changed_record_is_found_and_named() {
    let mut random = Random(77);
    let fixture = Fixture::new(&mut random, 3_000, 20_000.0);
    fixture.run(&mut random);
    let path = fixture.path("1.csv");
    let mut lines = input(&path);
    let fields = |line: &str| line.split(',').map(|field| field.parse::<i64>().expect("a number")).collect::<Vec<_>>();
    let place = (600..).find(|place| fields(&lines[*place])[1] < 12).expect("one that is not dropped");
    let [at_ms, key, n] = fields(&lines[place])[..] else { panic!("three fields") };
    let changed = if n % 10 == 7 { n - 1 } else { n - n % 10 + 7 };
    lines[place] = format!("{at_ms},{key},{changed}");
    fs::write(&path, lines.join("\n") + "\n").expect("written");

    let report = fixture.replay(&mut random, &Replay::from_checkpoint(0).verify());
    assert!(!report.is_equal(), "{report}");
    let sink = |name: &str| report.sinks.iter().find(|sink| sink.name == name).expect("a sink");
    let kept = sink("kept").first.as_ref().unwrap_or_else(|| panic!("{report}"));
    let row = |n| format!("{{\"at_ms\":{at_ms},\"key\":{key},\"n\":{n}}}");
    assert_eq!(kept.original.as_ref().map(|row| row.text.clone()), Some(row(n)), "{report}");
    assert_eq!(kept.replay.as_ref().map(|row| row.text.clone()), Some(row(changed)), "{report}");
    assert_eq!(kept.at, Some(EventTime::from_millis(at_ms)));
    let differing = |name| sink(name).ranges.iter().filter(|range| range.standing == Standing::Differs).count();
    assert_eq!(differing("kept"), 1);
    let panes = sink("panes-out").first.as_ref().unwrap_or_else(|| panic!("it is in some window: {report}"));
    let text = panes.to_string();
    assert!(text.contains(&format!("the row with key {key}, window [")) && text.contains("sum: "), "{text}");
    assert!(panes.at.is_some_and(|end| end.micros() / 1_000 - at_ms <= 6_000), "the first of three windows: {text}");
    // And only where the change is.
    let epochs = fixture.epochs();
    let read = |epoch: u64| {
        let manifest = fixture.store().manifest(epoch).expect("reads");
        manifest.sources[0]
            .splits
            .iter()
            .find(|split| split.split.ends_with("1.csv"))
            .expect("a split")
            .records
    };
    let early = epochs.iter().copied().take_while(|epoch| read(*epoch) < place as u64).collect::<Vec<_>>();
    if let Some(until) = early.last() {
        let report = fixture.replay(&mut random, &Replay::from_checkpoint(0).until(*until).verify());
        assert!(report.is_equal(), "{report}");
    }

    // Input that lost a record is no difference but an error.
    lines.pop();
    fs::write(&path, lines.join("\n") + "\n").expect("written");
    let error = fixture.job(&mut random, 0.0).replay(&Replay::from_checkpoint(0).verify()).expect_err("too short");
    assert!(error.to_string().contains("ended after 999 records; in the run that is replayed it gave 1000"), "{error}");
}

#[test]
fn output_that_was_changed_or_taken_away_is_told_apart() {
    let mut random = Random(78);
    let fixture = Fixture::new(&mut random, 3_000, 20_000.0);
    fixture.run(&mut random);
    let parts = || -> Vec<PathBuf> {
        tree(&fixture.path("panes"))
            .into_keys()
            .filter(|path| path.extension().is_some_and(|end| end == "csv"))
            .collect()
    };
    let verify = |random: &mut Random| fixture.replay(random, &Replay::from_checkpoint(0).verify());
    let stored =
        |report: &ReplayReport| report.sinks.iter().find(|sink| sink.name == "panes-out").cloned().expect("it");

    let part = &parts()[parts().len() / 2];
    let text = fs::read_to_string(part).expect("reads");
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines[1].push('5');
    fs::write(part, lines.join("\n") + "\n").expect("written");
    let report = verify(&mut random);
    let sink = stored(&report);
    assert!(!report.is_equal() && sink.stored == Some(StoredCheck::Changed), "{report}");
    assert!(sink.ranges.iter().all(|range| range.standing == Standing::Equal), "what was written was right: {report}");
    let first = sink.first.expect("a row");
    assert_eq!(first.original.map(|row| row.text), Some(lines[1].clone()));
    assert!(first.replay.is_some_and(|row| format!("{}5", row.text) == lines[1]));

    let rows = text.lines().count() as u64 - 1;
    fs::remove_file(part).expect("removed");
    let report = verify(&mut random);
    assert!(report.is_equal(), "whoever reads the output may take it away: {report}");
    assert_eq!(stored(&report).stored, Some(StoredCheck::Missing(rows)));
    assert!(report.to_string().contains(&format!("missing         {rows} rows")), "{report}");
}

#[test]
fn a_job_that_runs_is_not_disturbed() {
    let mut random = Random(79);
    let fixture = Fixture::new(&mut random, 12_000, 0.0);
    let handle = fixture.job(&mut random, 3_000.0).retain(2).start().expect("starts");
    let mut replays = 0;
    while !handle.is_finished() {
        let epochs = fixture.epochs();
        let [from, until] = epochs[..] else { continue };
        match fixture.job(&mut random, 0.0).replay(&Replay::from_checkpoint(from).until(until).verify()) {
            Ok(report) => {
                assert!(report.is_equal(), "{report}");
                assert!(report.sinks.iter().all(|sink| sink.not_comparable.is_none()), "{report}");
                replays += 1;
            }
            // It may have been deleted between the list and the replay; then it is said.
            Err(error) => {
                let text = error.to_string();
                assert!(
                    ["there is no checkpoint", "deleted", "No such file"].iter().any(|says| text.contains(says)),
                    "{text}"
                );
            }
        }
    }
    handle.wait().expect("ends");
    assert!(replays >= 2, "{replays}");
    // What was held at the end is deleted by the next start.
    fixture.job(&mut random, 0.0).retain(2).run().expect("has finished");
    assert_eq!(fixture.epochs().len(), 2);
    let report = fixture.replay(&mut random, &Replay::from_checkpoint(0).verify());
    assert!(report.is_equal() && rows(&report).1 == 0, "{report}");
}

#[test]
fn checkpoints_of_a_version_without_digests_can_be_replayed() {
    let mut random = Random(80);
    let fixture = Fixture::new(&mut random, 6_000, 12_000.0);
    let handle = fixture.job(&mut random, fixture.rate).start().expect("starts");
    while fixture.epochs().len() < 3 {
        sleep(Duration::from_millis(1));
    }
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
    let old = fixture.epochs();
    for epoch in &old {
        let mut manifest = fixture.store().manifest(*epoch).expect("reads");
        manifest.sinks.iter_mut().for_each(|sink| sink.digests = None);
        fs::write(fixture.store().manifest_path(*epoch), manifest.to_bytes().expect("bytes")).expect("written");
    }
    let report = fixture.replay(&mut random, &Replay::from_oldest().verify());
    assert!(report.to_string().contains("has no digests of it"), "{report}");
    fixture.run(&mut random);
    let newest_old = *old.last().expect("one");
    let report = fixture.replay(&mut random, &Replay::from_checkpoint(newest_old).verify());
    assert!(report.is_equal() && rows(&report).0 > 100 && rows(&report).1 == 0, "{report}");
    assert!(report.sinks.iter().all(|sink| sink.not_comparable.is_none()), "{report}");
    for from in [0, old[0]] {
        let report = fixture.replay(&mut random, &Replay::from_checkpoint(from).verify());
        let says = format!("count from checkpoint {newest_old} on");
        assert!(report.is_equal() && report.to_string().contains(&says), "{report}");
    }
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let mut random = Random(81);
    let fixture = Fixture::new(&mut random, 600, 0.0);
    let refused = |random: &mut Random, replay: &Replay, says: &str| {
        let error = fixture.job(random, 0.0).replay(replay).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&mut random, &Replay::from_checkpoint(0).verify(), "there is no checkpoint in");
    fixture.run(&mut random);
    let newest = *fixture.epochs().last().expect("one");
    refused(&mut random, &Replay::from_checkpoint(9_999).verify(), "there is no checkpoint 9999");
    refused(&mut random, &Replay::from_checkpoint(0).until(9_999).verify(), "there is no checkpoint 9999");
    refused(&mut random, &Replay::from_checkpoint(newest).verify(), "there is nothing between");
    refused(&mut random, &Replay::from_checkpoint(newest).until_end().discard(), "nothing comes after");
    refused(&mut random, &Replay::from_checkpoint(0), "output goes nowhere");
    refused(&mut random, &Replay::from_checkpoint(0).until_end().verify(), "no checkpoint to be compared with");
    refused(&mut random, &Replay::from_checkpoint(0).output(fixture.dir.path()), "there is something in");
    let to_end = temp();
    let report = fixture.replay(&mut random, &Replay::from_checkpoint(0).until_end().output(to_end.path().join("new")));
    assert_eq!((report.until, report.sinks.len()), (None, 0));
    assert_eq!(lines(&to_end.path().join("new/kept")), lines(&fixture.path("kept")));

    let dir = temp();
    let job = |from_channel: bool| {
        let job = Job::new("other").checkpoint_dir(dir.path()).workers(2);
        let monotonic = || Watermarks::monotonous(|n: &u64| EventTime::from_secs(*n as i64));
        let (sender, numbers) = channel(10);
        let numbers = match from_channel {
            true => job.source(numbers, monotonic()),
            false => job.source(from_iter(|| 0..1_000u64), monotonic()),
        };
        drop(sender);
        numbers.sink(for_each(|_| {}));
        job
    };
    job(false).run().expect("runs");
    let whole = Replay::from_checkpoint(0).verify();
    let error = job(false).replay(&whole).expect_err("it has no other place").to_string();
    assert!(error.contains("cannot be written to another place") && error.contains("--discard"), "{error}");
    let report = job(false).replay(&whole.clone().discard()).expect("it is dropped");
    assert_eq!((report.summary.records_in, report.discarded), (1_000, vec!["sink-1".to_string()]));
    let error = job(true).replay(&whole.discard()).expect_err("a channel").to_string();
    assert!(error.contains("cannot be read again, so the job cannot be replayed"), "{error}");
}

/// A hundred seconds, one record each. Where they end is known only once somebody has said so.
struct Seconds(Arc<AtomicBool>);

struct SecondsReader(u64, Arc<AtomicBool>);

impl Source for Seconds {
    type Item = u64;
    type Position = u64;
    type Reader = SecondsReader;

    fn kind(&self) -> &'static str {
        "seconds"
    }

    fn splits(&self) -> Result<Vec<String>, Error> {
        Ok(vec!["all".into()])
    }

    fn open(&self, _split: &str, from: Option<u64>, _waker: Waker) -> Result<SecondsReader, Error> {
        Ok(SecondsReader(from.unwrap_or(0), Arc::clone(&self.0)))
    }
}

impl SplitReader for SecondsReader {
    type Item = u64;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<u64>) -> Result<Read, Error> {
        let end = (self.0 + max as u64).min(100);
        (self.0..end).for_each(|second| out.record(second));
        self.0 = end;
        Ok(match (end == 100, self.1.load(Ordering::SeqCst)) {
            (false, _) => Read::More,
            (true, false) => Read::Later(Duration::from_millis(1)),
            (true, true) => Read::Ended,
        })
    }

    fn position(&self) -> u64 {
        self.0
    }
}

/// The end of a split moves the watermark, so a replay must not see it before the first run had.
#[test]
fn an_end_that_had_not_been_seen_is_not_seen() {
    let (dir, ends) = (temp(), Arc::new(AtomicBool::new(false)));
    let job = || {
        let job = Job::new("seconds").workers(1).checkpoint_dir(dir.path().join("checkpoints"));
        let at = |second: &u64| EventTime::from_secs(*second as i64);
        job.source(Seconds(Arc::clone(&ends)), Watermarks::monotonous(at))
            .key_by(|_| 0u8)
            .window(Tumbling::of(EventSpan::secs(8)))
            .aggregate(Count)
            .name("windows")
            .map(|(_, window, count)| (window.to_string(), count))
            .sink(FileSink::json_lines(dir.path().join("out")));
        job
    };
    let handle = job().start().expect("starts");
    while handle.status().records_in < 100 {
        sleep(Duration::from_millis(1));
    }
    handle.stop(StopMode::WithCheckpoint);
    handle.wait().expect("stops");
    ends.store(true, Ordering::SeqCst);
    let again = dir.path().join("again");
    let report = job().replay(&Replay::from_checkpoint(0).verify().output(&again)).expect("replays");
    assert!(report.is_equal() && rows(&report) == (12, 0), "{report}");
    assert_eq!(lines(&again.join("sink-1")), lines(&dir.path().join("out")));
    // Once it has been, it is.
    job().run().expect("ends");
    let report = job().replay(&Replay::from_oldest().verify()).expect("replays");
    assert!(report.is_equal() && rows(&report) == (1, 0), "{report}");
}

#[test]
fn checkpoints_are_kept_by_number_age_and_size() {
    let kept = |settings: fn(Job) -> Job| {
        let mut random = Random(82);
        let fixture = Fixture::new(&mut random, 3_000, 0.0);
        let summary = settings(fixture.job(&mut random, 6_000.0)).run().expect("ends");
        (fixture.epochs().len() as u64, summary.checkpoints)
    };
    let (all, taken) = kept(|job| job.retain(1).retain_for(Duration::from_secs(3600)));
    assert!(all == taken && taken > 3, "{all} of {taken}");
    let (some, taken) = kept(|job| job.retain(2).retain_for(Duration::from_millis(1)));
    assert!((2..taken).contains(&some), "{some} of {taken}");
    let (one, taken) = kept(|job| job.retain(1_000).retain_for(Duration::from_secs(3600)).retain_bytes(1));
    assert!(one == 1 && taken > 3, "{one} of {taken}");
}

#[cfg(unix)]
mod on_the_command_line {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::common::{
        Delays, LATE_HEADER, LIMIT, WINDOWS_HEADER, copy_program, first_departures, pause, rows as rows_of_parts,
    };

    /// The example, killed twice and started again with other numbers of workers each time.
    fn killed(dir: &Path) -> Delays {
        let path = dir.join("departures.csv");
        fs::write(&path, first_departures(30_000)).expect("written");
        let job = Delays::new(&[path], &dir.join("out"));
        let slowly = "--rate 10000 --checkpoint-interval 30ms --retain 1000";
        for workers in [2, 3] {
            let before = job.newest_epoch().unwrap_or(0);
            let running = job.with(slowly).with(&format!("--workers {workers}"));
            let running = running.start_until(|| job.newest_epoch() >= Some(before + 4));
            pause(Duration::from_millis(17));
            running.kill();
        }
        job.with("--workers 1 --checkpoint-interval 30ms --retain 1000").run().succeeded();
        job
    }

    #[test]
    fn a_job_that_was_killed_replays_and_two_builds_are_compared() {
        let dir = temp();
        let job = killed(dir.path());
        let epochs = job.checkpoints().epochs().expect("a list");
        let (from, until) = (epochs[epochs.len() / 4], epochs[epochs.len() / 2]);
        for (from, until, workers) in [(0, *epochs.last().expect("one"), 2), (from, until, 3), (epochs[0], until, 1)] {
            let command = format!("--workers {workers} replay --verify --from {from} --until {until}");
            let ended = job.with(&command).run().succeeded();
            assert!(ended.stdout.contains("nothing differs"), "{ended}");
            assert!(!ended.stdout.contains("not comparable") || from > 0, "{ended}");
        }

        // The same build against itself, then one with longer windows.
        let into =
            |name: &str| format!("--workers 2 replay --from 0 --into {} --against", dir.path().join(name).display());
        let example = crate::common::example().display().to_string();
        let ended = job.with(&format!("{} {example}", into("same"))).run().succeeded();
        assert!(ended.stdout.contains("sink `windows`: equal") && ended.stdout.contains("nothing differs"), "{ended}");
        let written = rows_of_parts(&job.windows(), WINDOWS_HEADER);
        assert_eq!(rows_of_parts(&dir.path().join("same/other/windows"), WINDOWS_HEADER), written);
        let late = rows_of_parts(&job.late(), LATE_HEADER);
        assert_eq!(rows_of_parts(&dir.path().join("same/this/late"), LATE_HEADER), late);

        let (written, changed) = (dir.path().join("written"), dir.path().join("changed"));
        fs::write(&written, format!("#!/bin/sh\nexec {example} \"$@\" --size 2h\n")).expect("written");
        fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).expect("may be run");
        copy_program(&written, &changed);
        let ended = job.with(&format!("{} {} --limit 3", into("other"), changed.display())).start().end(LIMIT);
        assert_eq!(ended.status.code(), Some(1), "{ended}");
        for says in ["only here:", "only there:", "\n  - 2013-01-01T", "\n  + 2013-01-01T", "the two programs differ"] {
            assert!(ended.stdout.contains(says), "{says}: {ended}");
        }
        let shown = ended.stdout.lines().filter(|line| line.starts_with("  - ")).count();
        assert!((1..=6).contains(&shown), "at most 3 of each sink: {ended}");

        // A checkpoint that the changed program cannot go on from.
        let command = format!(
            "--workers 2 replay --from {from} --into {} --against {}",
            dir.path().join("x").display(),
            changed.display()
        );
        let ended = job.with(&command).run().failed();
        ended.says(&["could not replay", "--from 0"]);
    }
}
