//! Kills the example `flight_delays` with SIGKILL again and again and starts it again with other settings. Whenever it
//! comes to its end, its output is what an independent SQL engine computed: nothing lost, nothing twice.
//!
//! `./mill torture SEED COUNT` repeats a run or makes a longer one; a failure prints its seed and all command lines.

#![cfg(unix)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{Delays, Ended, LATE_HEADER, LIMIT, WINDOWS_HEADER, setting};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Both ends are possible.
    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

/// What of a run can be seen from outside, at which it may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// The directory of the live database: recovery is under way.
    Live,
    /// A part that is not committed.
    Pending,
    /// The directory of a checkpoint, at first without a manifest.
    Epoch,
    /// A manifest: the checkpoint is published and its output not yet committed.
    Manifest,
    /// A committed part: perhaps others of the same epoch are not.
    Committed,
    /// An old checkpoint that has lost its manifest, but not yet its files.
    Deletion,
}

#[derive(Clone, Copy, Debug)]
enum Kill {
    After(Duration),
    /// As soon as this many new ones are seen.
    At(Sight, usize),
}

/// One start and its end.
struct Plan {
    options: String,
    kill: Kill,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, killed {:?}", self.options, self.kill)
    }
}

impl Plan {
    /// `left` of all `records` are those that the newest checkpoint has not seen.
    fn draw(random: &mut Random, (left, records): (u64, u64), workers: RangeInclusive<u64>) -> Plan {
        // A whole run takes so many milliseconds at least.
        let rate = records * 1_000 / random.between(600, 4_000);
        let workers = random.between(*workers.start(), *workers.end());
        let (interval, retain) = (random.between(5, 200), random.between(1, 4));
        // Nothing is damaged, so this is the newest, and nothing may be withdrawn.
        let from = if random.between(1, 10) == 1 { "--newest-intact " } else { "" };
        let options =
            format!("{from}--workers {workers} --checkpoint-interval {interval}ms --rate {rate} --retain {retain}");
        let after = |us| Kill::After(Duration::from_micros(us));
        let kill = match random.between(1, 100) {
            // The first milliseconds, then recovery, then anywhere.
            1..=12 => after(random.between(0, 120).pow(2)),
            13..=27 => after(random.between(10_000, 150_000)),
            28..=52 => after(random.between(150_000, 1_200_000)),
            // Near the end, if that does not take too long.
            53..=62 => {
                let rest = (left * 1_000_000 / rate).min(2_000_000);
                after(rest * random.between(80, 115) / 100 + random.between(0, 200_000))
            }
            _ => {
                use Sight::{Committed, Deletion, Epoch, Live, Manifest, Pending};
                let sight = [Live, Pending, Epoch, Manifest, Committed, Deletion][random.between(0, 5) as usize];
                let once = matches!(sight, Live | Deletion);
                Kill::At(sight, if once { 1 } else { random.between(1, 6) as usize })
            }
        };
        Plan { options, kill }
    }
}

/// What is on disk, by names only.
#[derive(Default)]
struct Seen {
    checkpoints: BTreeSet<String>,
    published: Vec<u64>,
    windows: BTreeSet<String>,
    late: BTreeSet<String>,
}

impl Seen {
    fn look(delays: &Delays) -> Seen {
        let store = delays.checkpoints();
        Seen {
            checkpoints: common::names(store.dir()),
            published: store.epochs().expect("a list of checkpoints"),
            windows: common::names(&delays.windows()),
            late: common::names(&delays.late()),
        }
    }

    fn newest(&self) -> u64 {
        self.published.last().copied().unwrap_or_default()
    }

    fn unpublished(&self) -> Vec<u64> {
        let epochs = self.checkpoints.iter().filter_map(|name| name.strip_prefix("epoch-")?.parse().ok());
        epochs.filter(|epoch| !self.published.contains(epoch)).collect()
    }

    fn live(&self) -> impl Iterator<Item = &String> {
        self.checkpoints.iter().filter(|name| name.starts_with("live-"))
    }
}

/// Whether as many new ones are there as `kill` wants.
fn is_time(kill: Kill, delays: &Delays, before: &Seen, since: Instant) -> bool {
    let new = |dir: &Path, old: &BTreeSet<String>, wanted: &dyn Fn(&str) -> bool| {
        common::names(dir).iter().filter(|name| wanted(name) && !old.contains(*name)).count()
    };
    let store = delays.checkpoints();
    match kill {
        Kill::After(time) => since.elapsed() >= time,
        Kill::At(Sight::Live, n) => new(store.dir(), &before.checkpoints, &|name| name.starts_with("live-")) >= n,
        Kill::At(Sight::Epoch, n) => new(store.dir(), &before.checkpoints, &|name| name.starts_with("epoch-")) >= n,
        Kill::At(Sight::Manifest, n) => {
            let epochs = store.epochs().expect("a list of checkpoints");
            epochs.last().is_some_and(|newest| *newest >= before.newest() + n as u64)
        }
        Kill::At(Sight::Pending, n) => new(&delays.late(), &before.late, &|name| name.contains(".pending-")) >= n,
        Kill::At(Sight::Deletion, n) => {
            let now = Seen::look(delays);
            now.unpublished()
                .iter()
                .filter(|epoch| before.published.contains(epoch) || **epoch < now.newest())
                .count()
                >= n
        }
        Kill::At(Sight::Committed, n) => new(&delays.windows(), &before.windows, &|name| name.ends_with(".csv")) >= n,
    }
}

/// Where a kill landed, as far as the disk tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Landed {
    BeforeItsStateWasOpened,
    BeforeItWroteAnything,
    BeforeItsFirstCheckpoint,
    InACheckpoint,
    BetweenPublicationAndCommit,
    InACommit,
    InTheDeletionOfOldCheckpoints,
    BetweenCheckpoints,
}

/// What is told when a test fails: the seed, and what was done.
struct Story {
    seed: u64,
    lines: Vec<String>,
    dir: tempfile::TempDir,
}

impl Story {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Story { seed, lines: Vec::new(), dir: tempfile::tempdir().expect("a directory") }
    }

    /// A copy of the example, so that nobody replaces it meanwhile.
    fn program(&self) -> PathBuf {
        let program = self.dir.path().join("flight_delays");
        common::copy_program(common::example(), &program);
        program
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            println!("{}", self.lines.join("\n"));
            println!("FAILED; again with MILLSTREAM_TORTURE_SEED={}; files: {}", self.seed, self.dir.path().display());
        }
    }
}

/// The sorted rows that must come out.
struct Expected {
    windows: Vec<String>,
    late: Vec<String>,
}

/// One job, from an empty directory to its end, over many starts.
struct Torture<'a> {
    delays: Delays,
    expected: &'a Expected,
    records: u64,
    /// Committed parts with their content.
    parts: BTreeMap<PathBuf, Vec<u8>>,
    /// How often each row was committed, in windows and in late records.
    rows: [HashMap<String, usize>; 2],
    before: Seen,
}

impl<'a> Torture<'a> {
    fn new(delays: Delays, expected: &'a Expected, records: u64) -> Self {
        Torture { delays, expected, records, parts: BTreeMap::new(), rows: Default::default(), before: Seen::default() }
    }

    /// How many records the newest checkpoint has not seen, of how many.
    fn left(&self) -> (u64, u64) {
        let Some(epoch) = self.before.published.last() else { return (self.records, self.records) };
        let manifest = self.delays.checkpoints().manifest(*epoch).expect("a manifest");
        let read: u64 = manifest.sources.iter().flat_map(|source| &source.splits).map(|split| split.records).sum();
        (self.records - read, self.records)
    }

    /// Starts the job and kills it; `None` if it came to its end before that.
    fn start_and_kill(&mut self, plan: &Plan) -> Option<Landed> {
        let mut started = self.delays.with(&plan.options).start();
        let since = Instant::now();
        while !is_time(plan.kill, &self.delays, &self.before, since) {
            if let Some(ended) = started.ended() {
                self.check_end(ended);
                return None;
            }
            assert!(since.elapsed() < LIMIT, "neither an end nor the sight to be killed at");
            common::pause(Duration::from_micros(200));
        }
        let ended = started.kill();
        if ended.status.signal() != Some(9) {
            self.check_end(ended);
            return None;
        }
        assert!(!ended.stderr.contains("error") && !ended.stderr.contains("panicked"), "before it was killed: {ended}");
        Some(self.check_after_kill())
    }

    /// Committed parts are there for ever, with rows that belong there, once.
    fn check_parts(&mut self) {
        let outputs = [
            (self.delays.windows(), WINDOWS_HEADER, &self.expected.windows),
            (self.delays.late(), LATE_HEADER, &self.expected.late),
        ];
        let mut found = BTreeMap::new();
        for ((dir, header, expected), rows) in outputs.iter().zip(&mut self.rows) {
            for (name, bytes) in common::parts(dir) {
                let path = dir.join(&name);
                if !self.parts.contains_key(&path) {
                    for row in common::rows_of(&name, &bytes, header) {
                        let times = rows.entry(row.to_string()).or_default();
                        *times += 1;
                        let first = expected.partition_point(|other| other.as_str() < row);
                        let wanted = expected[first..].iter().take_while(|other| *other == row).count();
                        assert!(*times <= wanted, "{}: {row} is there {times} times, not {wanted}", path.display());
                    }
                }
                found.insert(path, bytes);
            }
        }
        for (path, bytes) in &self.parts {
            let now = found.get(path).unwrap_or_else(|| panic!("{} was committed and is gone", path.display()));
            assert!(now == bytes, "{} was committed and has changed", path.display());
        }
        self.parts = found;
    }

    fn check_after_kill(&mut self) -> Landed {
        self.check_parts();
        let (before, now) = (std::mem::take(&mut self.before), Seen::look(&self.delays));
        assert!(now.newest() >= before.newest(), "checkpoint {} is gone", before.newest());
        // However often it is killed, what it leaves behind does not pile up.
        assert!(now.live().count() <= 1, "live databases: {:?}", now.checkpoints);
        assert!(now.published.len() <= 5, "with at most 4 retained: {:?}", now.checkpoints);
        assert!(now.unpublished().len() <= 2, "with {:?} published: {:?}", now.published, now.checkpoints);

        let newest = now.published.last().map(|epoch| self.delays.checkpoints().manifest(*epoch).expect("a manifest"));
        let mut in_newest = BTreeSet::new();
        for sink in newest.iter().flat_map(|manifest| &manifest.sinks) {
            in_newest.extend(sink.handles.iter().map(|handle| (sink.name.clone(), handle.clone())));
        }
        let mut pending = BTreeSet::new();
        for (sink, names) in [("windows", &now.windows), ("late", &now.late)] {
            let parts = names.iter().filter(|name| name.contains(".pending-"));
            pending.extend(parts.map(|name| (sink.to_string(), name.clone())));
            assert!(!names.iter().any(|name| name.starts_with("withdrawn")), "nobody asked to withdraw: {names:?}");
        }
        let execution = |(_, name): &(String, String)| name.split(".pending-").nth(1).map(str::to_string);
        let abandoned: BTreeSet<_> = pending.difference(&in_newest).map(execution).collect();
        // A start clears away what the one before it left before it writes anything itself.
        assert!(abandoned.len() <= 1, "pending parts pile up: {pending:?}");

        let uncommitted = pending.intersection(&in_newest).count();
        let unpublished = now.unpublished();
        let opened = now.live().any(|name| !before.checkpoints.contains(name));
        let wrote = pending.iter().any(|(_, name)| !before.windows.contains(name) && !before.late.contains(name));
        let landed = if uncommitted > 0 && uncommitted == in_newest.len() {
            Landed::BetweenPublicationAndCommit
        } else if uncommitted > 0 {
            Landed::InACommit
        } else if unpublished.iter().any(|epoch| *epoch > now.newest()) && opened {
            Landed::InACheckpoint
        } else if !unpublished.is_empty() && opened {
            Landed::InTheDeletionOfOldCheckpoints
        } else if !opened {
            Landed::BeforeItsStateWasOpened
        } else if now.newest() > before.newest() {
            Landed::BetweenCheckpoints
        } else if wrote {
            Landed::BeforeItsFirstCheckpoint
        } else {
            Landed::BeforeItWroteAnything
        };
        self.before = now;
        landed
    }

    fn check_end(&mut self, ended: Ended) {
        let ended = ended.succeeded().says(&["finished"]);
        self.check_parts();
        for (dir, header, expected) in [
            (self.delays.windows(), WINDOWS_HEADER, &self.expected.windows),
            (self.delays.late(), LATE_HEADER, &self.expected.late),
        ] {
            common::assert_same(&format!("{ended}\n{}", dir.display()), &common::rows(&dir, header), expected);
        }
        let now = Seen::look(&self.delays);
        let pending = now.windows.union(&now.late).any(|name| name.contains(".pending-"));
        assert!(!pending, "pending parts after the end: {:?} {:?}", now.windows, now.late);
        assert_eq!(now.live().count(), 0, "live databases after the end: {:?}", now.checkpoints);
        assert_eq!(now.unpublished(), Vec::<u64>::new(), "unpublished checkpoints after the end");
        // If the run that took the last checkpoint was killed right after it, nobody deletes old ones any more.
        if !ended.stderr.contains("had already finished") {
            let retain = ended.command.rsplit_once("--retain ").expect("an option").1;
            let retain: usize = retain.split(' ').next().and_then(|retain| retain.parse().ok()).expect("a number");
            assert!(now.published.len() <= retain, "{retain} retained: {:?}", now.published);
        }
    }

    /// Lets it run to its end.
    fn finish(mut self, options: &str) {
        let ended = self.delays.with(options).run();
        self.check_end(ended);
    }
}

/// One for all tests of this file.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    let random = || RandomState::new().hash_one(0) % 1_000_000;
    *SEED.get_or_init(|| setting("MILLSTREAM_TORTURE_SEED").unwrap_or_else(random))
}

#[test]
fn when_killed_at_random_then_nothing_is_lost_or_doubled() {
    let count = setting("MILLSTREAM_TORTURE_COUNT").unwrap_or(50);
    let mut story = Story::new(seed());
    let mut random = Random(story.seed);
    let expected =
        Expected { windows: common::expected("windows", WINDOWS_HEADER), late: common::expected("late", LATE_HEADER) };
    let input = common::data("departures-2013.csv.gz");
    let (program, begin) = (story.program(), Instant::now());
    let job = |number: usize| {
        let output = story.dir.path().join(format!("job-{number}"));
        Torture::new(Delays::of_program(&program, std::slice::from_ref(&input), &output), &expected, 328_521)
    };
    let mut landed: BTreeMap<Landed, u64> = BTreeMap::new();
    let (mut jobs, mut kills, mut in_a_row) = (1, 0, 0);
    let mut torture = job(jobs);
    while kills < count {
        let plan = Plan::draw(&mut random, torture.left(), 1..=4);
        story.lines.push(format!("job {jobs}, from {:?}: {plan}", torture.before.published.last()));
        let newest = torture.before.newest();
        let Some(place) = torture.start_and_kill(&plan) else {
            story.lines.push("finished".to_string());
            let old = std::mem::replace(&mut torture, job(jobs + 1));
            fs::remove_dir_all(story.dir.path().join(format!("job-{jobs}"))).expect("removed");
            drop(old);
            jobs += 1;
            continue;
        };
        story.lines.push(format!("landed: {place:?}"));
        kills += 1;
        in_a_row += u64::from(torture.before.newest() == newest);
        *landed.entry(place).or_default() += 1;
    }
    torture.finish("--retain 2");
    println!(
        "{kills} kills of {jobs} jobs in {:.0} s, {in_a_row} of them without progress",
        begin.elapsed().as_secs_f64()
    );
    for (place, kills) in landed {
        println!("{kills:>6} {place:?}");
    }
}

/// Two files are two splits, which different workers read, and how they interleave is chance. What is late does not
/// depend on it: a record is judged by the records before it in its own file.
#[test]
fn when_two_inputs_are_read_then_kills_and_workers_make_no_difference() {
    const RECORDS: usize = 120_000;
    let mut story = Story::new(seed());
    let mut random = Random(!story.seed);
    let text = common::first_departures(RECORDS);
    let (header, records) = text.split_once('\n').expect("a header");
    let half = |odd: usize| {
        let records = records.lines().skip(odd).step_by(2);
        std::iter::once(header).chain(records).flat_map(|line| [line, "\n"]).collect::<String>()
    };
    let input = [story.dir.path().join("even.csv"), story.dir.path().join("odd.csv.gz")];
    fs::write(&input[0], half(0)).expect("written");
    let packed = fs::File::create(&input[1]).expect("created");
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    packed.write_all(half(1).as_bytes()).and_then(|()| packed.finish()).expect("written");

    let program = story.program();
    let job = |name: String| Delays::of_program(&program, &input, &story.dir.path().join(name));
    let reference = job("reference".to_string());
    reference.with("--workers 1").run().succeeded().says(&["120,000 in"]);
    let expected = Expected {
        windows: common::rows(&reference.windows(), WINDOWS_HEADER),
        late: common::rows(&reference.late(), LATE_HEADER),
    };
    let (windows, late) = (expected.windows.len(), expected.late.len());
    assert!(windows > 10_000 && late > 1_000, "{windows} windows, {late} late");
    for workers in 1..=3 {
        let options = format!("--workers {workers} --retain 2 --checkpoint-interval 100ms");
        Torture::new(job(format!("calm-{workers}")), &expected, RECORDS as u64).finish(&options);
        let killed = |jobs: u64| Torture::new(job(format!("killed-{workers}-{jobs}")), &expected, RECORDS as u64);
        let (mut kills, mut jobs) = (0, 1);
        let mut torture = killed(jobs);
        while kills < 4 {
            let plan = Plan::draw(&mut random, torture.left(), workers..=workers);
            story.lines.push(plan.to_string());
            if let Some(place) = torture.start_and_kill(&plan) {
                story.lines.push(format!("landed: {place:?}"));
                kills += 1;
            } else {
                jobs += 1;
                torture = killed(jobs);
            }
        }
        torture.finish(&options);
    }
    println!("{}", story.lines.join("\n"));
}

/// Beginning again moves checkpoints, then output. Killed anywhere in that, nothing of the old output is lost, and the
/// next start either is right or refuses and says how to go on.
#[test]
fn when_killed_while_going_back_then_old_output_is_kept_and_the_next_start_is_right_or_refuses() {
    const RECORDS: usize = 30_000;
    let mut story = Story::new(seed());
    let mut random = Random(story.seed ^ 0xf5e5);
    let input = story.dir.path().join("departures.csv");
    fs::write(&input, common::first_departures(RECORDS)).expect("written");
    let program = story.program();
    let job = |name: &str| {
        Delays::of_program(&program, std::slice::from_ref(&input), &story.dir.path().join(name))
            .with("--checkpoint-interval 20ms --workers 2")
    };
    let all = |job: &Delays| (common::rows(&job.windows(), WINDOWS_HEADER), common::rows(&job.late(), LATE_HEADER));
    let (reference, torture) = (job("reference"), job("torture"));
    reference.run().succeeded();
    let (windows, late) = all(&reference);
    let check = |ended: &Ended| {
        let found = all(&torture);
        common::assert_same(&format!("{ended}\nwindows"), &found.0, &windows);
        common::assert_same(&format!("{ended}\nlate"), &found.1, &late);
    };
    let first = torture.with("--rate 100000").run().succeeded();
    check(&first);
    let (mut refused, mut finished) = (0, 0);
    for _ in 0..12 {
        let published = torture.checkpoints().epochs().expect("a list of checkpoints");
        let back = match published.as_slice() {
            [oldest, _, ..] if random.between(0, 1) == 0 => format!("--from {oldest}"),
            _ => "--fresh".to_string(),
        };
        let before = contents(&torture);
        let micros = random.between(0, 200).pow(2);
        story.lines.push(format!("{back} --rate 300000, killed after {micros} us"));
        let started = torture.with(&format!("{back} --rate 300000")).start();
        common::pause(Duration::from_micros(micros));
        let killed = started.kill();
        // With few records after the checkpoint, the job may have ended before.
        assert!(killed.status.signal() == Some(9) || killed.status.success(), "{killed}");
        let after = contents(&torture);
        for (content, times) in &before {
            let left = after.get(content).copied().unwrap_or_default();
            assert!(
                left >= *times,
                "a part is gone: {} …",
                String::from_utf8_lossy(&content[..content.len().min(300)])
            );
        }
        let parts = (common::parts(&torture.windows()), common::parts(&torture.late()));
        let next = torture.run();
        if next.status.success() {
            check(&next.succeeded());
            finished += 1;
        } else {
            let next = next.failed().says(&["output directory", "doubled", "--fresh", &back]);
            story.lines.push(format!("refused: {}", next.stderr));
            let untouched = parts == (common::parts(&torture.windows()), common::parts(&torture.late()));
            assert!(untouched, "a refusal changed the output: {next}");
            check(&torture.with(&back).run().succeeded());
            refused += 1;
        }
    }
    println!("{}\n{finished} went on, {refused} refused first", story.lines.join("\n"));
}

/// The content of all committed parts, those that were withdrawn as well, and how many have it.
fn contents(delays: &Delays) -> HashMap<Vec<u8>, usize> {
    let mut contents = HashMap::new();
    for dir in [delays.windows(), delays.late()] {
        let withdrawn = common::names(&dir).into_iter().filter(|name| name.starts_with("withdrawn-"));
        for dir in std::iter::once(dir.clone()).chain(withdrawn.map(|name| dir.join(name))) {
            for content in common::parts(&dir).into_values() {
                *contents.entry(content).or_default() += 1;
            }
        }
    }
    contents
}
