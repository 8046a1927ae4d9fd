//! Replay: what a job did between any two of its checkpoints, done again elsewhere, is what it did the first time; and where it is
//! not, because somebody changed something, that is found and named.

#[allow(dead_code)] // a part of it is enough here
mod patience;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::prelude::*;
use millstream::replay::{Replay, ReplayReport, Standing, StoredCheck};
use millstream::state::store::CheckpointStore;
use patience::{Random, effort, sleep, temp};
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
        let panes = panes.name("panes").map(|(key, window, (events, sum))| Pane { key, window: window.to_string(), events, sum });
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

/// Every file below a directory but locks, with its content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("lists") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path).expect("reads"));
            }
        }
    }
    files
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
        let excluded: Vec<_> = report.sinks.iter().filter(|sink| sink.excluded.is_some()).map(|sink| &sink.name).collect();
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
        assert_eq!(tree(fixture.dir.path()), before, "seed {seed}: a replay changes nothing of the job");
    }
    assert!(partial > 10 && compared > 10 * open, "{partial} stretches, {compared} rows equal, {open} open");
    println!("{partial} stretches: {compared} rows equal, {open} beyond the watermark");
}
