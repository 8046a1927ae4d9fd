//! The log beside a naive one in memory, on random histories; and what single parts promise.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use millstream_runtime::moment::Epoch;
use millstream_runtime::record::Record;
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};
use millstream_runtime::source::{Batch, OnBadRecord, Output, Read, Source, SplitReader, Waker};
use millstream_runtime::time::EventTime;
use proptest::prelude::*;

use super::lane::{Keys, Lane, Reached};
use super::store::Stretch;
use super::*;

/// A log whose clock the test sets.
struct Fixture {
    dir: tempfile::TempDir,
    /// Which copy of the directory is in use.
    generation: usize,
    clock: Arc<AtomicU64>,
    options: LogOptions,
    log: Option<Log>,
}

impl Fixture {
    fn new(options: LogOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let mut fixture = Fixture { dir, generation: 0, clock, options, log: None };
        fixture.open();
        fixture
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(self.generation.to_string())
    }

    fn open(&mut self) {
        let clock = Arc::clone(&self.clock);
        let clock: Clock = Arc::new(move || clock.load(Ordering::SeqCst));
        self.log = Some(Log::open_with(&self.path(), self.options.clone(), clock).unwrap());
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.log = None;
        self.open();
    }

    /// As if the process had died: the files as they are now, without a clean end.
    fn crash(&mut self) {
        let before = self.path();
        self.generation += 1;
        // RocksDB deletes files in the background, so a copy may have to be begun again.
        while let Err(error) = copy_files(&before, &self.path()) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            std::fs::remove_dir_all(self.path()).unwrap();
        }
        self.log = None;
        std::fs::remove_dir_all(before).unwrap();
        self.open();
    }
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    for part in ["", "db"] {
        std::fs::create_dir_all(to.join(part))?;
        for entry in std::fs::read_dir(from.join(part))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), to.join(part).join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

/// What the naive log keeps of a record.
#[derive(Clone, Debug)]
struct Kept {
    at: Receipt,
    key: String,
    number: u64,
    ms: u64,
}

/// Which keys a reader takes.
type Takes = Box<dyn Fn(&str) -> bool>;

/// One reader, and what it has yet to read.
struct Reading {
    keys: Keys,
    takes: Takes,
    lane: Option<Lane>,
    /// It began with the oldest record that is kept, and has read nothing yet.
    fresh: bool,
    unread: VecDeque<usize>,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u8>),
    Split(u8),
    Merge(u8),
    /// Into the future, or a clock that is set back.
    Clock(i64),
    Reopen,
    Crash,
    /// A part of all keys or one key, and where to start.
    Open(u8, u8),
    Read(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop::collection::vec(0..12u8, 0..12).prop_map(Step::Append),
        2 => any::<u8>().prop_map(Step::Split),
        2 => any::<u8>().prop_map(Step::Merge),
        3 => (-100..600i64).prop_map(Step::Clock),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        3 => any::<(u8, u8)>().prop_map(|(keys, start)| Step::Open(keys, start)),
        8 => any::<(u8, u8)>().prop_map(|(reader, max)| Step::Read(reader, max % 40)),
    ];
    prop::collection::vec(step, 1..60)
}

/// The naive log beside the real one.
struct World {
    fixture: Fixture,
    kept: Vec<Kept>,
    readers: Vec<Reading>,
    latest: u64,
    age: Option<u64>,
}

impl World {
    fn new(shards: u32, age: Option<u64>, bytes: Option<u64>, durability: Durability) -> Self {
        let mut options = LogOptions::new().shards(shards).durability(durability);
        options.keep_for = age.map(Duration::from_millis);
        options.keep_bytes = bytes;
        World { fixture: Fixture::new(options), kept: Vec::new(), readers: Vec::new(), latest: 0, age }
    }

    fn is_trimmed(&self, shards: &[Shard], n: usize) -> bool {
        let at = self.kept[n].at;
        at.sequence < shards[at.shard as usize].trimmed
    }

    fn run(&mut self, step: &Step) {
        let log = self.fixture.log().clone();
        match step {
            Step::Append(keys) => {
                let first = self.kept.len();
                let records = keys.iter().enumerate().map(|(n, key)| {
                    let number = (first + n) as u64;
                    // Long enough for stretches to end.
                    (format!("k{key}"), (number, "x".repeat(usize::from(*key) * 30)))
                });
                let receipts = log.append_all(records).unwrap();
                log.sync().unwrap();
                if !keys.is_empty() {
                    self.latest = self.latest.max(self.fixture.clock.load(Ordering::SeqCst));
                }
                for (n, (at, key)) in receipts.into_iter().zip(keys).enumerate() {
                    let number = (first + n) as u64;
                    self.kept.push(Kept { at, key: format!("k{key}"), number, ms: self.latest });
                }
                for reading in &mut self.readers {
                    reading.unread.extend((first..self.kept.len()).filter(|n| (reading.takes)(&self.kept[*n].key)));
                }
            }
            Step::Split(n) => {
                let open: Vec<_> = log.shards().into_iter().filter(|shard| !shard.is_closed()).collect();
                let id = open[usize::from(*n) % open.len()].id;
                let children = log.split(id).unwrap();
                assert_eq!(log.shards()[id as usize].children, children);
            }
            Step::Merge(n) => {
                let mut open: Vec<_> = log.shards().into_iter().filter(|shard| !shard.is_closed()).collect();
                open.sort_by_key(|shard| shard.first_hash);
                if open.len() > 1 {
                    let at = usize::from(*n) % (open.len() - 1);
                    let parents = [open[at].id, open[at + 1].id];
                    let child = log.merge(parents[0], parents[1]).unwrap();
                    assert_eq!(log.shards()[child as usize].parents, parents);
                }
            }
            Step::Clock(ms) => {
                self.fixture.clock.fetch_add(*ms as u64, Ordering::SeqCst);
            }
            Step::Reopen | Step::Crash => {
                let before = log.core().view();
                let saved = |reading: &mut Reading| serde_json::to_string(&reading.lane.take().unwrap().position());
                let positions: Vec<_> = self.readers.iter_mut().map(|reading| saved(reading).unwrap()).collect();
                drop(log);
                match step {
                    Step::Crash => self.fixture.crash(),
                    _ => self.fixture.reopen(),
                }
                let core = self.fixture.log().core();
                // The start looks at ages as well; the clock may have been moved.
                self.fixture.log().retain().unwrap();
                for (reading, position) in self.readers.iter_mut().zip(positions) {
                    let position = serde_json::from_str(&position).unwrap();
                    reading.fresh = false;
                    reading.lane = Some(Lane::at(core, reading.keys.clone(), position).unwrap());
                }
                assert_eq!(before, core.view(), "what is there survives");
            }
            Step::Open(keys, start) => self.open_reader(*keys, *start),
            Step::Read(reader, max) => {
                if !self.readers.is_empty() {
                    let reader = usize::from(*reader) % self.readers.len();
                    self.read(reader, usize::from(*max));
                }
            }
        }
        // Everything that retention may do is done here, so that it does nothing at any other time.
        let log = self.fixture.log();
        log.retain().unwrap();
        self.check_retention(&log.shards());
    }

    fn open_reader(&mut self, keys: u8, start: u8) {
        let log = self.fixture.log();
        let shards = log.shards();
        let (keys, takes): (Keys, Takes) = match keys {
            0..100 => (Keys::part(0, 1), Box::new(|_| true)),
            100..200 => {
                let (k, n) = (u32::from(keys % 3), 3);
                let (first, last) = super::shard::part_of_hashes(k, n);
                let takes = move |key: &str| (first..=last).contains(&millstream_state::hash::hash_key(key));
                (Keys::part(k, n), Box::new(takes))
            }
            _ => {
                let own = format!("k{}", keys % 12);
                (Keys::key(&own), Box::new(move |key| key == own))
            }
        };
        let pick = self.kept.get(usize::from(start) * 7 % (self.kept.len() + 1));
        let (start, from, least_ms) = match (start % 4, pick) {
            (0, _) | (_, None) => (Start::TrimHorizon, 0, 0),
            (1, _) => (Start::Latest, self.kept.len(), 0),
            (2, Some(kept)) => (Start::Time(EventTime::from_millis(kept.ms as i64)), 0, kept.ms),
            (_, Some(kept)) => (Start::Sequence(kept.at.shard, kept.at.sequence), kept.number as usize, 0),
        };
        let lane = match Lane::start(log.core(), keys.clone(), start, false) {
            Ok(lane) => lane,
            Err(LogError::Expired { .. }) => {
                assert!(matches!(start, Start::Sequence(..)) && self.is_trimmed(&shards, from), "{start:?}");
                return;
            }
            Err(error) => panic!("{start:?}: {error}"),
        };
        let unread = (from..self.kept.len())
            .filter(|n| takes(&self.kept[*n].key) && self.kept[*n].ms >= least_ms && !self.is_trimmed(&shards, *n));
        let unread = unread.collect();
        let fresh = start == Start::TrimHorizon;
        self.readers.push(Reading { keys, takes, lane: Some(lane), fresh, unread });
    }

    fn read(&mut self, reader: usize, max: usize) {
        let shards = self.fixture.log().shards();
        let Reading { lane, unread, takes, fresh, .. } = &mut self.readers[reader];
        if *fresh {
            unread.retain(|n| {
                let at = self.kept[*n].at;
                at.sequence >= shards[at.shard as usize].trimmed
            });
        }
        let lane = lane.as_mut().unwrap();
        let mut got = Vec::new();
        let reached = lane.read(max, usize::MAX, |stored| {
            let (number, _): (u64, String) = serde_json::from_slice(stored.value).unwrap();
            got.push((stored.shard, stored.sequence, number, stored.key.to_string(), stored.ms));
            Ok(())
        });
        assert!(got.len() <= max);
        *fresh = false;
        for got in got {
            let n = unread.pop_front().expect("a record that is to be read");
            let kept = &self.kept[n];
            assert_eq!(got, (kept.at.shard, kept.at.sequence, kept.number, kept.key.clone(), kept.ms));
        }
        match reached {
            Ok(Reached::Caught) => assert!(unread.is_empty(), "{} were passed over", unread.len()),
            Ok(Reached::More) => {}
            Ok(Reached::End) => panic!("a lane that does not end has ended"),
            Err(LogError::Expired { shard, first, last }) => {
                assert!(first <= last && last < shards[shard as usize].trimmed);
                // What is named was lost, and has not been read.
                let lost = lane.skip_expired();
                assert!(
                    lost.iter().any(|(lost, range)| *lost == shard && range.contains(&first) && range.end == last + 1)
                );
                let named = |n: &usize| {
                    let at = self.kept[*n].at;
                    lost.iter().any(|(shard, range)| *shard == at.shard && range.contains(&at.sequence))
                };
                for (shard, range) in &lost {
                    let own = self.kept.iter().enumerate().filter(|(_, kept)| {
                        kept.at.shard == *shard && range.contains(&kept.at.sequence) && takes(&kept.key)
                    });
                    own.for_each(|(n, _)| assert!(unread.contains(&n), "record {n} was read and is named as lost"));
                }
                unread.retain(|n| !named(n));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn check_retention(&self, shards: &[Shard]) {
        let now = self.fixture.clock.load(Ordering::SeqCst);
        let mut bytes = 0;
        for (n, kept) in self.kept.iter().enumerate() {
            let trimmed = self.is_trimmed(shards, n);
            if let Some(age) = self.age {
                assert!(trimmed || kept.ms + age / 8 + age >= now, "record {n} is too old");
            }
            if !trimmed {
                bytes += 19 + kept.key.len() as u64 + 5 + kept.number.to_string().len() as u64;
                bytes += kept.key[1..].parse::<u64>().unwrap() * 30;
            }
        }
        assert_eq!(bytes, shards.iter().map(|shard| shard.bytes).sum::<u64>());
        if let Some(most) = self.fixture.options.keep_bytes {
            // A stretch has 4 KiB at least.
            let open = shards.iter().filter(|shard| !shard.is_closed()).count() as u64;
            assert!(bytes <= most.max(open * 4096), "{bytes} bytes are kept");
        }
    }

    /// Per key and shard, what was appended stands in its order; every reader comes to the end.
    fn finish(&mut self) {
        for reader in 0..self.readers.len() {
            for _ in 0..self.kept.len() + self.fixture.log().shards().len() + 1 {
                self.read(reader, 50);
            }
            assert!(self.readers[reader].unread.is_empty());
        }
        let mut next = vec![0; self.fixture.log().shards().len()];
        for kept in &self.kept {
            let next = &mut next[kept.at.shard as usize];
            assert_eq!(kept.at.sequence, *next, "sequence numbers have no gaps");
            *next += 1;
        }
    }
}

/// More with `MILLSTREAM_EFFORT`.
fn cases() -> u32 {
    48 * std::env::var("MILLSTREAM_EFFORT").map_or(1, |text| text.parse::<u32>().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_log_does_what_a_naive_one_does(
        shards in 1..5u32,
        retention in 0..4u8,
        later: bool,
        steps in steps(),
    ) {
        let age = (retention & 1 == 1).then_some(800);
        let bytes = (retention & 2 == 2).then_some(20_000);
        let durability = if later { Durability::SyncedWithin(Duration::from_secs(60)) } else { Durability::Synced };
        let mut world = World::new(shards, age, bytes, durability);
        steps.iter().for_each(|step| world.run(step));
        world.finish();
    }
}

fn numbers(log: &Log) -> Vec<u64> {
    let mut reader = log.reader::<u64>(Start::TrimHorizon).unwrap();
    reader.read(usize::MAX).unwrap().into_iter().map(|record| record.value).collect()
}

#[test]
fn threads_that_append_at_the_same_time_share_syncs_and_keep_their_order() {
    let fixture = Fixture::new(LogOptions::new().shards(3));
    let log = fixture.log();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            scope.spawn(move || {
                let mut before = None;
                for n in 0..200 {
                    let receipt = log.append(&format!("t{thread}"), &(thread, n)).unwrap();
                    // Children have greater numbers than parents.
                    assert!(before < Some(receipt));
                    before = Some(receipt);
                    if n % 50 == 49 && thread == 0 {
                        let open = log.shards().into_iter().find(|shard| !shard.is_closed()).unwrap();
                        log.split(open.id).unwrap();
                    }
                }
            });
        }
    });
    let mut next = [0; 8];
    for record in log.reader::<(u64, u64)>(Start::TrimHorizon).unwrap().read(usize::MAX).unwrap() {
        let (thread, n) = record.value;
        assert_eq!(n, next[thread as usize]);
        next[thread as usize] += 1;
    }
    assert_eq!(next, [200; 8]);
}

/// How often the write-ahead log was synced.
fn syncs(log: &Log) -> u64 {
    let stats = log.core().store.stats();
    let line = stats.lines().find(|line| line.starts_with("Cumulative WAL:")).unwrap_or_else(|| panic!("{stats}"));
    let syncs = line.split(", ").find_map(|part| part.strip_suffix(" syncs")).unwrap_or_else(|| panic!("{line}"));
    syncs.trim().parse().unwrap()
}

#[test]
fn every_acknowledged_append_was_synced_and_many_share_a_sync() {
    let fixture = Fixture::new(LogOptions::new());
    let log = fixture.log();
    let before = syncs(log);
    for n in 0..10u64 {
        log.append("k", &n).unwrap();
        assert_eq!(syncs(log), before + 1 + n);
    }
    log.append_all((0..1_000u64).map(|n| ("k", n))).unwrap();
    assert_eq!(syncs(log), before + 11);
    let pending: Vec<_> = (0..1_000u64).map(|n| log.submit([("k", n)]).unwrap()).collect();
    pending.into_iter().for_each(|pending| assert_eq!(pending.wait().unwrap().len(), 1));
    let shared = syncs(log) - before - 11;
    assert!((1..900).contains(&shared), "{shared} syncs for 1,000 appends");

    let later = Fixture::new(LogOptions::new().durability(Durability::SyncedWithin(Duration::from_secs(3600))));
    let before = syncs(later.log());
    later.log().append("k", &1u64).unwrap();
    assert_eq!(syncs(later.log()), before);
    let handles = written(&sink(later.log()).0, "00000001", 1, 0..5);
    assert_eq!(syncs(later.log()), before + 1, "what is prepared is durable whatever appends are");
    sink(later.log()).1.commit(&handles).unwrap();
    assert_eq!(syncs(later.log()), before + 2);
}

#[test]
fn a_reader_that_waits_is_woken_and_one_that_waits_in_vain_gives_up() {
    let fixture = Fixture::new(LogOptions::new());
    let log = fixture.log();
    let mut reader = log.reader::<u64>(Start::Latest).unwrap();
    assert!(reader.wait(10, Duration::from_millis(5)).unwrap().is_empty());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..500u64 {
                log.append("k", &n).unwrap();
            }
        });
        let mut next = 0;
        while next < 500 {
            for record in reader.wait(7, Duration::from_secs(30)).unwrap() {
                assert_eq!(record.value, next);
                next += 1;
            }
        }
    });
}

#[test]
fn what_is_synced_later_is_seen_later_and_survives_the_process() {
    let within = Durability::SyncedWithin(Duration::from_secs(3600));
    let mut fixture = Fixture::new(LogOptions::new().durability(within));
    fixture.log().append("k", &1u64).unwrap();
    assert!(numbers(fixture.log()).is_empty(), "nobody is ahead of what a crash of the machine leaves");
    fixture.crash();
    assert_eq!(numbers(fixture.log()), [1]);
    fixture.log().append("k", &2u64).unwrap();
    fixture.log().sync().unwrap();
    assert_eq!(numbers(fixture.log()), [1, 2]);

    let soon = Durability::SyncedWithin(Duration::from_millis(1));
    let fixture = Fixture::new(LogOptions::new().durability(soon));
    let mut reader = fixture.log().reader::<u64>(Start::TrimHorizon).unwrap();
    fixture.log().append("k", &3u64).unwrap();
    assert_eq!(reader.wait(1, Duration::from_secs(30)).unwrap().len(), 1);
}

#[test]
fn a_log_is_opened_once_and_what_it_holds_is_checked() {
    let mut fixture = Fixture::new(LogOptions::new().shards(2));
    fixture.log().append_bytes("k", "no json").unwrap();
    let error = Log::open(fixture.path(), LogOptions::new()).unwrap_err();
    assert!(error.to_string().contains("is in use by a log, process"), "{error}");
    let error = millstream_runtime::error::Error::from(error);
    assert!(error.to_string().contains("clone the handle"), "{error}");

    let mut reader = fixture.log().reader::<u64>(Start::TrimHorizon).unwrap();
    for _ in 0..2 {
        let error = reader.read(5).unwrap_err();
        assert!(error.to_string().contains("record 0 of shard"), "{error}");
    }
    let raw = fixture.log().reader::<Raw>(Start::TrimHorizon).unwrap().read(5).unwrap();
    assert_eq!(raw[0].value, Raw(b"no json".to_vec()));
    let position = reader.position();
    drop(reader);

    let other = Fixture::new(LogOptions::new());
    let error = other.log().reader_at::<u64>(position).unwrap_err();
    assert!(error.to_string().contains("position in log"), "{error}");
    fixture.log = None;
    for (options, says) in [
        (LogOptions::new().shards(0), "0 shards"),
        (LogOptions::new().shards(1025), "1025 shards"),
        (LogOptions::new().keep_bytes(5), "1 MiB"),
        (LogOptions::new().keep_for(Duration::ZERO), "10 ms"),
    ] {
        let error = Log::open(fixture.path(), options).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_reader_hands_out_what_comes_before_an_error_and_goes_on_behind_what_expired() {
    let mut options = LogOptions::new();
    options.keep_for = Some(Duration::from_millis(800));
    let fixture = Fixture::new(options);
    let log = fixture.log();
    let mut reader = log.reader::<u64>(Start::Sequence(0, log.append("k", &1u64).unwrap().sequence)).unwrap();
    log.append_bytes("k", "no json").unwrap();
    let read = |reader: &mut LogReader<u64>| -> Result<Vec<u64>, LogError> {
        Ok(reader.read(5)?.into_iter().map(|record| record.value).collect())
    };
    assert_eq!(read(&mut reader).unwrap(), [1]);
    assert!(matches!(read(&mut reader), Err(LogError::Json { .. })));
    assert_eq!(reader.skip_expired(), []);
    fixture.clock.fetch_add(2_000, Ordering::SeqCst);
    log.append("k", &2u64).unwrap();
    log.retain().unwrap();
    assert!(matches!(read(&mut reader), Err(LogError::Expired { shard: 0, first: 1, last: 1 })));
    assert_eq!(reader.skip_expired(), [(0, 1..2)]);
    assert_eq!(read(&mut reader).unwrap(), [2]);
}

#[test]
fn ages_are_looked_at_once_in_a_while_and_sizes_when_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    let looks = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&looks);
    let clock: Clock = Arc::new(move || clock.fetch_add(1, Ordering::SeqCst));
    let begun = std::time::Instant::now();
    let options = LogOptions::new().keep_for(Duration::from_millis(400));
    let log = Log::open_with(dir.path(), options, clock).unwrap();
    while looks.load(Ordering::SeqCst) < 3 {
        std::thread::yield_now();
    }
    assert!(begun.elapsed() >= Duration::from_millis(100), "twice an eighth");
    drop(log);

    let mut options = LogOptions::new();
    options.keep_bytes = Some(10_000);
    let fixture = Fixture::new(options);
    for n in 0..20u64 {
        fixture.log().append("k", &(n, "x".repeat(3_000))).unwrap();
    }
    // Whoever is served next finds it done.
    fixture.log().sync().unwrap();
    let shard = &fixture.log().shards()[0];
    assert!(shard.trimmed > 10 && shard.bytes <= 10_000, "{shard:?}");
}

#[test]
fn however_large_the_newest_stretch_of_an_open_shard_stays() {
    let mut options = LogOptions::new();
    options.keep_bytes = Some(2_000);
    let fixture = Fixture::new(options);
    let log = fixture.log();
    log.append("k", &"x".repeat(3_000)).unwrap();
    log.retain().unwrap();
    assert_eq!(log.shards()[0].trimmed, 0);
    log.split(0).unwrap();
    log.retain().unwrap();
    assert_eq!(log.shards()[0].trimmed, 1, "and goes when the shard is closed");
}

#[test]
fn a_stretch_ends_when_it_has_its_bytes_or_its_time() {
    let mut options = LogOptions::new().keep_for(Duration::from_millis(800));
    // An eighth of both is 100 ms and 10,000 bytes.
    options.keep_bytes = Some(80_000);
    let fixture = Fixture::new(options);
    let log = fixture.log();
    // Of 1,000 bytes, with the header and the key.
    let append = |count: usize| log.append_all(vec![("k", "x".repeat(978)); count]).unwrap();
    append(25);
    for pause in [99, 1, 0, 99, 1] {
        fixture.clock.fetch_add(pause, Ordering::SeqCst);
        append(1);
    }
    let mut stretches = Vec::new();
    let each = |_: &[u8], value: &[u8]| {
        let Stretch { first, end, first_ms, last_ms, bytes } = serde_json::from_slice(value).unwrap();
        stretches.push((first..end, first_ms - 1_000_000, last_ms - 1_000_000, bytes));
        Ok(())
    };
    log.core().store.scan(b"stretch ", b"stretch!", each).unwrap();
    let expected = [(0..10, 0, 0, 10_000), (10..20, 0, 0, 10_000), (20..26, 0, 99, 6_000), (26..29, 100, 199, 3_000)];
    assert_eq!(stretches, expected);
}

#[test]
fn when_the_writer_panics_then_nobody_waits_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let clock: Clock = Arc::new(|| panic!("a planned bug"));
    let log = Log::open_with(dir.path(), LogOptions::new(), clock).unwrap();
    assert!(matches!(log.append("k", &1u64), Err(LogError::Failed { .. })));
    while log.check().is_ok() {
        std::thread::yield_now();
    }
    for error in [log.append("k", &2u64).map(drop), log.split(0).map(drop), log.check()] {
        let error = error.unwrap_err();
        assert!(error.to_string().contains("has panicked, which is a bug"), "{error}");
    }
}

#[test]
fn the_room_of_what_expired_is_given_back_at_once() {
    let mut options = LogOptions::new();
    options.keep_for = Some(Duration::from_millis(800));
    let fixture = Fixture::new(options);
    let log = fixture.log();
    let append = || log.append_all((0..10u64).map(|n| (n.to_string(), n))).unwrap();
    append();
    assert_eq!(log.core().store.record_files(true), 1);
    fixture.clock.fetch_add(2_000, Ordering::SeqCst);
    append();
    log.retain().unwrap();
    assert_eq!(log.core().store.record_files(false), 0);
    assert_eq!(numbers(log), (0..10).collect::<Vec<_>>());
}

#[test]
fn when_a_log_was_put_back_then_a_position_in_it_is_refused() {
    let mut fixture = Fixture::new(LogOptions::new());
    fixture.log().append("k", &1u64).unwrap();
    // A copy of the log as it is now.
    let copy = Fixture::new(LogOptions::new());
    drop(copy.log);
    fixture.log = None;
    std::fs::remove_dir_all(copy.dir.path().join("0")).unwrap();
    let status = std::process::Command::new("cp")
        .arg("-r")
        .arg(fixture.path())
        .arg(copy.dir.path().join("0"))
        .status();
    assert!(status.unwrap().success());
    fixture.open();
    fixture.log().append("k", &2u64).unwrap();
    let mut reader = fixture.log().reader::<u64>(Start::TrimHorizon).unwrap();
    reader.read(5).unwrap();
    let position = reader.position();
    let old = Log::open(copy.dir.path().join("0"), LogOptions::new()).unwrap();
    let error = old.reader_at::<u64>(position).unwrap_err();
    assert!(error.to_string().contains("put back to an older state"), "{error}");
}

#[test]
fn what_contradicts_itself_on_disk_is_refused() {
    use super::record::Entry;
    use super::store::put_json;
    use rocksdb::WriteBatch;
    type Change = fn(&Log, &mut WriteBatch);

    fn header(batch: &mut WriteBatch, format: u32, hasher: &str) {
        let header = serde_json::json!({ "format": format, "hasher": hasher, "id": "0", "lanes": 1 });
        put_json(batch, b"log", &header).unwrap();
    }
    fn stretch(log: &Log, batch: &mut WriteBatch, shard: u32, first: u64, end: u64) {
        let stretch = Stretch { first, end, first_ms: 0, last_ms: 0, bytes: 0 };
        log.core().store.put_stretch(batch, shard, &stretch).unwrap();
    }
    fn record(log: &Log, batch: &mut WriteBatch, shard: u32, sequence: u64) {
        let mut bytes = Vec::new();
        Entry::json("k", &sequence).unwrap().write(100 + sequence, 0, &mut bytes);
        log.core().store.put_record(batch, (shard, sequence), &bytes).unwrap();
    }
    // Shard 0 is closed and has 3 records, in one stretch. Its open children are 1, which gets the next one, and 2.
    let changes: [(Result<u64, &str>, Change); 15] = [
        (Ok(0), |_, _| {}),
        (Ok(0), |_, batch| header(batch, 1, millstream_state::hash::HASHER_ID)),
        (Err("has format 2"), |_, batch| header(batch, 2, millstream_state::hash::HASHER_ID)),
        (Err("spreads its keys by `another`"), |_, batch| header(batch, 1, "another")),
        (Err("the table of shards is missing"), |_, batch| batch.delete(b"shards")),
        (Err("is 1..3 and should begin with 0"), |log, batch| stretch(log, batch, 2, 1, 3)),
        (Err("is 3..2 and should begin with 3"), |log, batch| stretch(log, batch, 0, 3, 2)),
        (Err("is 3..3 and should begin with 3"), |log, batch| stretch(log, batch, 0, 3, 3)),
        (Err("is 2..4 and should begin with 3"), |log, batch| stretch(log, batch, 0, 2, 4)),
        (Ok(2), |log, batch| (0..2).for_each(|n| record(log, batch, 1, n))),
        (Err("record 0 of shard 1 is missing"), |log, batch| record(log, batch, 1, 1)),
        (Err("record 1 of shard 1 is missing"), |log, batch| [0, 2].into_iter().for_each(|n| record(log, batch, 1, n))),
        (Err("shard 0 ends with 4 and not with 3"), |log, batch| record(log, batch, 0, 3)),
        (Err("shard 1 ends with 0 and not with 1"), |log, batch| {
            let mut table = (*log.core().view()).clone();
            table.shards[1].next = 1;
            log.core().store.put_table(batch, &table).unwrap();
        }),
        (Err("shard 0 ends with 0 and not with 3"), |log, batch| {
            log.core().store.drop_records(batch, 0, 0, 3).unwrap();
        }),
    ];
    for (n, (expected, change)) in changes.into_iter().enumerate() {
        let fixture = Fixture::new(LogOptions::new());
        let log = fixture.log();
        log.append_all((0..3u64).map(|n| ("k", n))).unwrap();
        log.split(0).unwrap();
        let mut batch = WriteBatch::default();
        change(log, &mut batch);
        log.core().store.write(batch, true).unwrap();
        let path = fixture.path();
        drop(fixture.log);
        match (Log::open(path, LogOptions::new()), expected) {
            (Ok(log), Ok(sequence)) => {
                assert_eq!(log.append("k", &3u64).unwrap(), Receipt { shard: 1, sequence }, "change {n}");
            }
            (Err(error), Err(says)) => assert!(error.to_string().contains(says), "change {n}: {error}"),
            (opened, expected) => panic!("change {n}: {opened:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn damage_in_the_middle_is_refused_unless_it_is_salvaged() {
    let mut fixture = Fixture::new(LogOptions::new());
    for n in 0..200u64 {
        fixture.log().append("k", &n).unwrap();
    }
    // A copy without a clean end has everything in its write-ahead log.
    let before = fixture.path();
    fixture.crash();
    assert_ne!(before, fixture.path());
    fixture.log().append_all((200..400u64).map(|n| ("k", n))).unwrap();
    for n in 400..500u64 {
        fixture.log().append("k", &n).unwrap();
    }
    let damaged = fixture.dir.path().join("damaged");
    let status = std::process::Command::new("cp").arg("-r").arg(fixture.path()).arg(&damaged).status();
    assert!(status.unwrap().success());
    let wals = std::fs::read_dir(damaged.join("db")).unwrap().map(|entry| entry.unwrap().path());
    let wal = wals.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap();
    let mut bytes = std::fs::read(&wal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&wal, bytes).unwrap();
    let error = millstream_runtime::error::Error::from(Log::open(&damaged, LogOptions::new()).unwrap_err());
    assert!(error.to_string().contains("salvage"), "{error}");
    let position = fixture.log().reader::<u64>(Start::TrimHorizon).unwrap().position();
    let salvaged = Log::open(&damaged, LogOptions::new().salvage()).unwrap();
    let found = numbers(&salvaged);
    // What comes next gets numbers that others had before.
    assert!(salvaged.reader_at::<u64>(position.clone()).is_err());
    assert!((200..500).contains(&found.len()), "{}", found.len());
    assert!(found.into_iter().eq(0..numbers(&salvaged).len() as u64));
    drop(salvaged);
    fixture.options = LogOptions::new().salvage();
    fixture.reopen();
    assert_eq!(numbers(fixture.log()).len(), 500, "what is whole stays so");
    fixture.log().reader_at::<u64>(position).unwrap();
}

#[test]
fn a_bounded_lane_ends_where_the_log_ended() {
    let fixture = Fixture::new(LogOptions::new().shards(2));
    let log = fixture.log();
    log.append_all((0..20u64).map(|n| (n.to_string(), n))).unwrap();
    let source = log.source::<u64>().until_now().lanes(2);
    let splits = source.splits().unwrap();
    let mut readers: Vec<_> = splits.iter().map(|split| source.open(split, None, Waker::new(|| {})).unwrap()).collect();
    log.append_all((20..40u64).map(|n| (n.to_string(), n))).unwrap();
    let mut batch = Batch::default();
    // One is read in a go, the other is opened again half way.
    while readers[0].read(3, &mut batch).unwrap() != Read::Ended {}
    readers[1].read(3, &mut batch).unwrap();
    let position = serde_json::to_string(&readers[1].position()).unwrap();
    let mut again = source.open(&splits[1], Some(serde_json::from_str(&position).unwrap()), Waker::new(|| {})).unwrap();
    while again.read(3, &mut batch).unwrap() != Read::Ended {}
    let mut values: Vec<_> = batch.records.into_iter().map(|record| record.value).collect();
    values.sort_unstable();
    assert!(values.into_iter().eq(0..20));
}

#[test]
fn a_source_passes_on_what_it_has_before_it_sleeps_and_stops_at_what_it_cannot_read() {
    let fixture = Fixture::new(LogOptions::new());
    let log = fixture.log();
    let source = log.source::<u64>();
    assert_eq!(source.kind(), "log");
    let mut reader = source.open("lane 0 of 1", None, Waker::new(|| {})).unwrap();
    let mut batch = Batch::default();
    for n in 1..3 {
        log.append_all([("k", n), ("k", n)]).unwrap();
        assert_eq!(reader.read(1, &mut batch).unwrap(), Read::More);
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Later(Duration::ZERO));
        assert_eq!(reader.read(5, &mut batch).unwrap(), Read::Empty);
    }
    assert!(reader.has_caught_up());
    log.append_bytes("k", "no json").unwrap();
    for _ in 0..2 {
        let error = reader.read(5, &mut batch).unwrap_err();
        assert!(error.to_string().contains("record 4 of shard 0 is not a `u64`"), "{error}");
    }
    assert_eq!((batch.records.len(), batch.bad.len()), (4, 0));
}

#[test]
fn a_source_reports_what_expired_when_it_is_told_to_go_on() {
    let mut options = LogOptions::new();
    options.keep_for = Some(Duration::from_millis(800));
    let fixture = Fixture::new(options);
    let log = fixture.log();
    let strict = log.source::<u64>().start(Start::Latest);
    let lenient = log.source::<u64>().start(Start::Latest).skip_expired().on_bad_record(OnBadRecord::Drop);
    let mut strict = strict.open("lane 0 of 1", None, Waker::new(|| {})).unwrap();
    let mut lenient = lenient.open("lane 0 of 1", None, Waker::new(|| {})).unwrap();
    log.append_all((0..5u64).map(|n| ("k", n))).unwrap();
    fixture.clock.fetch_add(2_000, Ordering::SeqCst);
    log.append_bytes("k", "{").unwrap();
    log.append("k", &6u64).unwrap();
    log.retain().unwrap();
    let mut batch = Batch::default();
    let error = strict.read(10, &mut batch).unwrap_err();
    assert!(error.to_string().starts_with("records 0 to 4 of shard 0 have expired"), "{error}");
    assert_eq!(lenient.read(10, &mut batch).unwrap(), Read::More);
    lenient.read(10, &mut batch).unwrap();
    assert_eq!(batch.records.iter().map(|record| record.value).collect::<Vec<_>>(), [6]);
    assert_eq!(batch.records[0].appended, EventTime::from_millis(1_002_000), "by the clock of the log");
    let mut oldest = log.reader::<Raw>(Start::TrimHorizon).unwrap();
    fixture.clock.fetch_add(2_000, Ordering::SeqCst);
    log.append("k", &7u64).unwrap();
    log.retain().unwrap();
    assert_eq!(oldest.read(10).unwrap().len(), 1, "the oldest is the oldest when reading begins");
    let bad: Vec<_> = batch.bad.iter().map(|bad| bad.split.as_str()).collect();
    assert_eq!(bad, ["shard 0, from 0 to 4", "shard 0, record 5"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// The sink

fn written(sink: &LogSink<u64>, execution: &str, epoch: Epoch, values: std::ops::Range<u64>) -> Vec<String> {
    let mut writer = sink.writer(&SinkTask { worker: 1, execution: execution.to_string() }).unwrap();
    let mut records = values.map(|value| Record { at: EventTime::EPOCH, value }).collect();
    writer.write(epoch, &mut records).unwrap();
    writer.prepare(epoch).unwrap()
}

fn sink(log: &Log) -> (LogSink<u64>, Box<dyn Committer>) {
    let sink = log.sink("out", |n: &u64| (n % 5).to_string());
    let committer = Sink::committer(&sink, "job").unwrap();
    (sink, committer)
}

#[test]
fn an_epoch_appears_when_it_is_committed_and_once() {
    let mut fixture = Fixture::new(LogOptions::new().shards(3));
    let (out, mut committer) = sink(fixture.log());
    committer.lock().unwrap();
    committer.recover(None, &[], false).unwrap();
    let first = written(&out, "00000001", 1, 0..10);
    assert_eq!(first, ["out.e0000000001.w001.00000001"]);
    let second = written(&out, "00000001", 2, 10..20);
    assert!(numbers(fixture.log()).is_empty());
    for _ in 0..2 {
        committer.commit(&first).unwrap();
        assert_eq!(numbers(fixture.log()), (0..10).collect::<Vec<_>>());
    }
    drop((out, committer));
    // Checkpoint 2 was published and its commit was not; what another epoch has prepared does not count.
    fixture.crash();
    let (out, mut committer) = sink(fixture.log());
    written(&out, "00000001", 3, 20..30);
    committer.recover(Some(2), &second, false).unwrap();
    committer.recover(Some(2), &second, false).unwrap();
    assert_eq!(numbers(fixture.log()), (0..20).collect::<Vec<_>>());
    let gone = "out.e0000000003.w001.00000001".to_string();
    let error = committer.commit(&[gone]).unwrap_err();
    assert!(error.to_string().contains("is not in the log"), "{error}");
    let third = written(&out, "00000002", 3, 20..30);
    committer.commit(&third).unwrap();
    assert_eq!(numbers(fixture.log()), (0..30).collect::<Vec<_>>());
}

/// Readers and retention at the same time: what a reader does not find has expired, and is never taken for damage.
#[test]
fn what_goes_while_it_is_read_has_expired() {
    let fixture = Fixture::new(LogOptions::new());
    let mut options = fixture.options.clone();
    options.keep_bytes = Some(2_000);
    drop(fixture);
    let fixture = Fixture::new(options);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut read, mut expired) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..400u64 {
                fixture.log().append_all((0..200).map(|n| ("key", round * 200 + n))).unwrap();
                fixture.log().retain().unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            // Where these begin is searched for.
            for start in [Start::Latest, Start::Time(EventTime::from_millis(1_000_000))] {
                fixture.log().reader::<u64>(start).unwrap();
            }
            let mut reader = fixture.log().reader::<u64>(Start::TrimHorizon).unwrap();
            for _ in 0..3 {
                match reader.read(50) {
                    Ok(records) => read += records.len(),
                    Err(LogError::Expired { .. }) => expired += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let trimmed = fixture.log().shards()[0].trimmed;
    println!("{read} read, {expired} expired, {trimmed}");
    assert!(read > 0 && trimmed > 0, "{read} read, {expired} expired, up to {trimmed}");
}

#[test]
fn a_sink_goes_back_by_withdrawing_and_only_if_it_may() {
    let mut fixture = Fixture::new(LogOptions::new().shards(3));
    let (out, mut committer) = sink(fixture.log());
    let mut reader = fixture.log().reader::<u64>(Start::TrimHorizon).unwrap();
    for epoch in 1..5 {
        let handles = written(&out, "00000001", epoch, epoch * 10..epoch * 10 + 10);
        committer.commit(&handles).unwrap();
        fixture.log().append("foreign", &epoch).unwrap();
    }
    assert_eq!(reader.read(5).unwrap().len(), 5);
    for error in [committer.may_recover(Some(2), false), committer.recover(Some(2), &[], false)] {
        let error = error.unwrap_err();
        assert!(error.to_string().contains("up to epoch 4, later than the start at 2"), "{error}");
    }
    committer.may_recover(Some(2), true).unwrap();
    committer.recover(Some(2), &[], true).unwrap();
    let again = written(&out, "00000002", 3, 100..105);
    committer.commit(&again).unwrap();
    let expected: Vec<u64> = (10..20).chain([1]).chain(20..30).chain([2, 3, 4]).chain(100..105).collect();
    assert_eq!(numbers(fixture.log()), expected);
    let rest: Vec<u64> = reader.read(100).unwrap().into_iter().map(|record| record.value).collect();
    assert_eq!(rest, expected[5..]);
    drop((reader, out, committer));
    fixture.crash();
    assert_eq!(numbers(fixture.log()), expected);
    let (out, mut committer) = sink(fixture.log());
    committer.recover(None, &[], true).unwrap();
    assert_eq!(numbers(fixture.log()), [1, 2, 3, 4]);
    // Every shard ends in a record that stays, and an epoch is in one of them alone.
    fixture.log().append_all((0..20u64).map(|n| (n.to_string(), n))).unwrap();
    committer.commit(&written(&out, "00000003", 1, 7..8)).unwrap();
    committer.recover(None, &[], true).unwrap();
    let withdrawn = fixture.log().shards().into_iter().flat_map(|shard| shard.withdrawn);
    let withdrawn: Vec<_> = withdrawn.map(|range| range.end - range.start).collect();
    assert!(withdrawn.contains(&1) && !withdrawn.contains(&0), "{withdrawn:?}");
}

#[test]
fn what_was_withdrawn_is_remembered_until_it_expires() {
    let mut options = LogOptions::new();
    options.keep_for = Some(Duration::from_millis(800));
    let fixture = Fixture::new(options);
    let log = fixture.log();
    let (out, mut committer) = sink(log);
    let withdrawn = || -> Vec<_> { log.shards()[0].withdrawn.iter().map(|range| (range.start, range.end)).collect() };
    let age = || {
        fixture.clock.fetch_add(500, Ordering::SeqCst);
        log.append("k", &0u64).unwrap();
        log.retain().unwrap();
    };
    for epoch in 1..=4 {
        let handles = written(&out, "00000001", epoch, epoch * 10..epoch * 10 + 5);
        committer.commit(&handles).unwrap();
        age();
    }
    // Each epoch has five records, and each pause leaves one.
    assert_eq!(log.shards()[0].trimmed, 17, "epoch 3 and all before it");
    committer.recover(None, &[], true).unwrap();
    assert_eq!(withdrawn(), [(18, 23)], "not what has expired");
    committer.commit(&written(&out, "00000002", 1, 90..95)).unwrap();
    committer.recover(None, &[], true).unwrap();
    assert_eq!(withdrawn(), [(18, 23), (24, 29)]);
    assert_eq!(numbers(log), [0, 0]);
    age();
    assert_eq!((log.shards()[0].trimmed, withdrawn()), (23, vec![(24, 29)]));
    assert_eq!(numbers(log), [0, 0]);
}

#[test]
fn where_old_epochs_stand_is_forgotten_and_that_is_said() {
    let fixture = Fixture::new(LogOptions::new());
    let (out, mut committer) = sink(fixture.log());
    let (mut all, mut noted) = (Vec::new(), Vec::new());
    for epoch in 1..=40 {
        let handles = written(&out, "00000001", epoch, epoch..epoch + 1);
        committer.commit(&handles).unwrap();
        all.push(handles);
        let mut count = 0;
        let each = |_: &[u8], _: &[u8]| {
            count += 1;
            Ok(())
        };
        fixture.log().core().store.scan(b"commit out.", b"commit out/", each).unwrap();
        noted.push(count);
    }
    assert_eq!(noted[18..24], [19, 20, 21, 20, 21, 20], "a tenth more is noted before the old ones go");
    // However old, a commit that is repeated changes nothing.
    for handles in &all {
        committer.commit(handles).unwrap();
    }
    assert_eq!(numbers(fixture.log()), (1..=40).collect::<Vec<_>>());
    for error in [committer.may_recover(Some(19), true), committer.recover(Some(5), &[], true)] {
        let error = error.unwrap_err();
        assert!(error.to_string().contains("is forgotten"), "{error}");
    }
    committer.may_recover(Some(20), true).unwrap();
    committer.may_recover(Some(35), true).unwrap();
    assert_eq!(numbers(fixture.log()), (1..=40).collect::<Vec<_>>(), "to ask changes nothing");
    committer.recover(Some(35), &[], true).unwrap();
    assert_eq!(numbers(fixture.log()), (1..=35).collect::<Vec<_>>());
    let withdrawn = &fixture.log().shards()[0].withdrawn;
    assert_eq!((withdrawn.len(), withdrawn[0].clone()), (1, 35..40), "what follows each other is one range");

    let other = fixture.log().sink("other", |n: &u64| n.to_string());
    let mut committer = Sink::committer(&other, "job").unwrap();
    for epoch in 1..3 {
        committer.commit(&written(&other, "00000001", epoch, epoch..epoch + 1)).unwrap();
    }
    committer.may_recover(Some(1), true).expect("what one sink has forgotten is no matter of another");
}

#[test]
fn a_large_epoch_is_staged_in_chunks() {
    let fixture = Fixture::new(LogOptions::new());
    let big = fixture.log().sink("big", |_: &String| "k".to_string());
    let mut writer = big.writer(&SinkTask { worker: 0, execution: "00000001".to_string() }).unwrap();
    let value = |n: u64| format!("{n}{}", "x".repeat(300_000));
    let mut records = (0..40).map(|n| Record { at: EventTime::EPOCH, value: value(n) }).collect();
    writer.write(7, &mut records).unwrap();
    let handles = writer.prepare(7).unwrap();
    assert!(writer.prepare(8).unwrap().is_empty());
    let mut chunks = Vec::new();
    let each = |chunk: &[u8]| {
        chunks.push(super::record::unpack(chunk).unwrap().len());
        Ok(())
    };
    fixture.log().core().store.staged(&handles[0], each).unwrap();
    assert_eq!(chunks, [vec![4; 10], vec![0]].concat(), "a chunk has 1 MiB, the last one what is left");
    Sink::committer(&big, "job").unwrap().commit(&handles).unwrap();
    let read = fixture.log().reader::<String>(Start::TrimHorizon).unwrap().read(100).unwrap();
    assert!(read.into_iter().map(|record| record.value).eq((0..40).map(value)));
}

#[test]
fn what_is_prepared_is_what_was_written_up_to_that_epoch() {
    let fixture = Fixture::new(LogOptions::new());
    let mut writer = sink(fixture.log()).0.writer(&SinkTask { worker: 1, execution: "00000001".to_string() }).unwrap();
    for epoch in [1, 2, 4] {
        writer.write(epoch, &mut vec![Record { at: EventTime::EPOCH, value: epoch }]).unwrap();
    }
    writer.write(3, &mut Vec::new()).unwrap();
    let handle = |epoch| format!("out.e000000000{epoch}.w001.00000001");
    assert_eq!(writer.prepare(2).unwrap(), [handle(1), handle(2)]);
    assert!(writer.prepare(3).unwrap().is_empty());
    assert_eq!(writer.prepare(4).unwrap(), [handle(4)]);
}

#[test]
fn a_sink_says_at_which_row_it_failed() {
    let fixture = Fixture::new(LogOptions::new());
    // Keys of JSON's maps are text.
    let sink = fixture.log().sink("maps", |_: &BTreeMap<(u8, u8), u8>| String::new());
    assert_eq!(Sink::kind(&sink), "log");
    let mut writer = sink.writer(&SinkTask { worker: 0, execution: "00000001".to_string() }).unwrap();
    let good = || Record { at: EventTime::EPOCH, value: BTreeMap::new() };
    let bad = Record { at: EventTime::EPOCH, value: BTreeMap::from([((1, 2), 3)]) };
    let error = writer.write(1, &mut vec![good(), good(), bad, good()]).unwrap_err();
    assert!(error.to_string().contains("does not write as JSON"), "{error}");
    assert_eq!(writer.row(), Some(2));
}

#[test]
fn a_sink_has_its_name_for_itself() {
    let fixture = Fixture::new(LogOptions::new());
    let (_, mut first) = sink(fixture.log());
    let (_, mut second) = sink(fixture.log());
    first.lock().unwrap();
    first.lock().unwrap();
    let error = second.lock().unwrap_err();
    assert!(error.to_string().contains("sink `out` of the log in"), "{error}");
    drop(first);
    second.lock().unwrap();
    let bad = fixture.log().sink("a.b", |_: &u64| String::new());
    assert!(Sink::committer(&bad, "job").unwrap().lock().is_err());
    let error = second.commit(&["other.e0000000001.w000.00000001".to_string()]).unwrap_err();
    assert!(error.to_string().contains("no output of sink `out`"), "{error}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Recorded sources

fn drain<S: Source<Item = u64> + RecordExt>(reader: &mut RecordedReader<S>, batch: &mut Batch<u64>) -> Read {
    loop {
        match reader.read(4, batch).unwrap() {
            Read::Empty if reader.is_recording() => std::thread::yield_now(),
            Read::More | Read::Later(_) => {}
            end => return end,
        }
    }
}

#[test]
fn a_channel_is_recorded_and_read_again_from_any_position() {
    let mut fixture = Fixture::new(LogOptions::new());
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let open = |fixture: &Fixture, from: Option<String>| {
        let (sender, source) = crate::channel::<u64>(100);
        let acknowledged = Arc::clone(&acknowledged);
        let source = source.recorded(fixture.log()).acknowledge(move |_| {
            acknowledged.fetch_add(1, Ordering::SeqCst);
        });
        let from = from.map(|from| serde_json::from_str(&from).unwrap());
        (sender, source.open("channel", from, Waker::new(|| {})).unwrap())
    };
    let (sender, mut reader) = open(&fixture, None);
    (0..10).for_each(|n| sender.send(n).unwrap());
    let mut batch = Batch::default();
    assert_eq!(drain(&mut reader, &mut batch), Read::Empty);
    assert!(batch.records.into_iter().eq(0..10));
    let position = serde_json::to_string(&reader.position()).unwrap();
    (10..20).for_each(|n| sender.send(n).unwrap());
    let mut batch = Batch::default();
    drain(&mut reader, &mut batch);
    assert_eq!(acknowledged.load(Ordering::SeqCst), 20);
    drop((sender, reader));
    fixture.crash();
    for (from, expected) in [(None, 0), (Some(position), 10)] {
        let (sender, mut reader) = open(&fixture, from);
        let mut batch = Batch::default();
        assert_eq!(drain(&mut reader, &mut batch), Read::Empty);
        assert!(batch.records.into_iter().eq(expected..20));
        drop(sender);
        assert_eq!(drain(&mut reader, &mut Batch::default()), Read::Ended);
    }
}

#[test]
fn a_source_that_can_be_read_again_goes_on_behind_what_is_recorded() {
    let mut fixture = Fixture::new(LogOptions::new());
    let open = |fixture: &Fixture| {
        let source = crate::from_vec((0..30u64).collect()).recorded(fixture.log()).named("numbers");
        source.open("values 0 of 1", None, Waker::new(|| {})).unwrap()
    };
    let mut reader = open(&fixture);
    let mut batch = Batch::default();
    for _ in 0..5 {
        reader.read(4, &mut batch).unwrap();
    }
    drop(reader);
    fixture.crash();
    for _ in 0..2 {
        let mut batch = Batch::default();
        let mut reader = open(&fixture);
        assert_eq!(drain(&mut reader, &mut batch), Read::Ended);
        assert!(batch.records.into_iter().eq(0..30));
    }
    assert_eq!(numbers(fixture.log()).len(), 30);
}

#[test]
fn what_is_synced_later_is_not_lost_at_the_end_of_a_source() {
    let within = Durability::SyncedWithin(Duration::from_secs(3600));
    let fixture = Fixture::new(LogOptions::new().durability(within));
    for (max, name) in [(1, "one"), (4, "four")] {
        let source = crate::from_vec((0..30u64).collect()).recorded(fixture.log()).named(name);
        let mut reader = source.open("values 0 of 1", None, Waker::new(|| {})).unwrap();
        let mut batch = Batch::default();
        loop {
            match reader.read(max, &mut batch).unwrap() {
                Read::Ended => break,
                _ if reader.is_recording() => std::thread::yield_now(),
                _ => fixture.log().sync().unwrap(),
            }
        }
        assert!(batch.records.into_iter().eq(0..30), "{name} at a time");
    }
}

#[test]
fn what_a_recorded_source_has_read_goes_on_its_way_before_it_sleeps() {
    let fixture = Fixture::new(LogOptions::new());
    let source = crate::from_vec((0..9u64).collect()).recorded(fixture.log());
    assert_eq!((source.kind(), source.splits().unwrap()), ("values", vec!["values 0 of 1".to_string()]));
    assert!(crate::from_vec(vec![0u64]).recorded(fixture.log()).named("a/b").splits().is_err());
    let first = |reader: &mut dyn FnMut(&mut Batch<u64>) -> Read| {
        let mut batch = Batch::default();
        loop {
            let read = reader(&mut batch);
            if !batch.records.is_empty() {
                return read;
            }
        }
    };
    let mut reader = source.open("values 0 of 1", None, Waker::new(|| {})).unwrap();
    assert_eq!(first(&mut |batch| reader.read(1, batch).unwrap()), Read::More, "there is more below");

    let (sender, source) = crate::channel::<u64>(100);
    let mut reader = source.recorded(fixture.log()).open("channel", None, Waker::new(|| {})).unwrap();
    sender.send(1).unwrap();
    assert_eq!(first(&mut |batch| reader.read(5, batch).unwrap()), Read::Later(Duration::ZERO));
}

#[test]
fn bad_and_huge_records_are_recorded_as_bad() {
    struct Lines(u8);
    impl Source for Lines {
        type Item = String;
        type Position = ();
        type Reader = Lines;
        fn kind(&self) -> &'static str {
            "lines"
        }
        fn splits(&self) -> millstream_runtime::error::Result<Vec<String>> {
            Ok(vec!["lines".to_string()])
        }
        fn open(&self, _: &str, _: Option<()>, _: Waker) -> millstream_runtime::error::Result<Lines> {
            Ok(Lines(0))
        }
    }
    impl SplitReader for Lines {
        type Item = String;
        type Position = ();
        fn read(&mut self, _: usize, out: &mut impl Output<String>) -> millstream_runtime::error::Result<Read> {
            self.0 += 1;
            if self.0 == 1 {
                out.record("good".to_string());
                let (split, reason, text) = ("lines".to_string(), "odd".to_string(), "?".to_string());
                out.bad(millstream_runtime::source::BadRecord { split, line: 2, reason, text });
                out.record("x".repeat(MAX_VALUE_BYTES));
            }
            Ok(Read::Ended)
        }
        fn position(&self) {}
    }
    let fixture = Fixture::new(LogOptions::new());
    for _ in 0..2 {
        let source = Lines(0).recorded(fixture.log());
        let mut reader = source.open("lines", None, Waker::new(|| {})).unwrap();
        let mut batch = Batch::default();
        while reader.read(10, &mut batch).unwrap() != Read::Ended {}
        assert_eq!(batch.records, ["good"]);
        assert_eq!((batch.bad[0].line, batch.bad[0].reason.as_str()), (2, "odd"));
        assert!(batch.bad[1].reason.contains("too large"), "{}", batch.bad[1].reason);
        let other = Lines(0).recorded(fixture.log());
        let error = other.open("lines", None, Waker::new(|| {})).err().unwrap();
        assert!(error.to_string().contains("recording `input/lines` of the log"), "{error}");
    }
}

#[test]
fn opening_twenty_times_never_meets_a_lock_that_is_not_given_back() {
    let mut fixture = Fixture::new(LogOptions::new());
    for n in 0..20u64 {
        let log = fixture.log().clone();
        log.append("k", &n).unwrap();
        let mut reader = log.reader::<u64>(Start::TrimHorizon).unwrap();
        assert_eq!(reader.read(100).unwrap().len() as u64, n + 1);
        drop(log);
        drop(reader);
        fixture.reopen();
    }
    let unique: HashSet<u64> = numbers(fixture.log()).into_iter().collect();
    assert_eq!(unique.len(), 20);
}
