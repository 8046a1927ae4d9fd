//! Savepoints of a real process: taken from outside while it runs, moved elsewhere, gone on from by other programs. Whatever is done,
//! results are those of a run that was never interrupted, or there is a refusal.
//!
//! The process is this test's own executable: what it is to run stands in its environment.

#![cfg(unix)]

mod patience;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use clap::Parser;
use millstream::prelude::*;
use millstream::state::held::Held;
use millstream::state::store::CheckpointStore;
use patience::{Random, effort, ms, sleep, temp, until};
use serde::Serialize;

// ---------------------------------------------------------------------------------------------------------------------
// The job, in several versions

/// So many numbers, a millisecond apart.
const NUMBERS: u64 = 30_000;

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "numbers.out", global = true)]
    output: PathBuf,
    /// What was changed: words, by commas
    #[arg(long, default_value = "first", global = true)]
    version: String,
    #[arg(long, default_value_t = 0.0, global = true)]
    rate: f64,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Clone, Serialize)]
struct Row {
    what: &'static str,
    key: u64,
    at_ms: i64,
    count: u64,
    sum: u64,
}

fn job(options: &Options) -> Job {
    let is = |word: &str| options.version.split(',').any(|own| own == word);
    let out = |name: &str| FileSink::csv(options.output.join(name));
    let job = Job::new("numbers")
        .checkpoint_dir(options.output.join("checkpoints"))
        .checkpoint_every(ms(100))
        .savepoint_on_sigusr1();
    let at = |n: &u64| EventTime::from_millis(*n as i64);
    let numbers = job
        .source(from_vec((0..NUMBERS).collect()).rate(options.rate), Watermarks::monotonous(at))
        .name(if is("source-renamed") { "all" } else { "numbers" });
    if is("added") {
        let parity = numbers.clone().key_by(|n| n % 2).fold(0u64, |count, _| *count += 1).name("parity");
        parity
            .map(|(key, count)| Row { what: "parity", key, at_ms: 0, count, sum: 0 })
            .sink(out("parity"))
            .name("parity-out");
    }
    if is("unnamed") {
        numbers
            .clone()
            .key_by(|n| n % 2)
            .fold(0u64, |count, _| *count += 1)
            .sink(for_each(|_| ()))
            .name("nowhere");
    }
    if !is("dropped") {
        let windows = numbers.clone().key_by(|n| n % 13).window(Tumbling::of(EventSpan::secs(1)));
        let panes = windows.aggregate((Count, Sum::of(|n: &u64| *n))).name("windows");
        panes
            .map(|(key, window, (count, sum))| Row {
                what: "window",
                key,
                at_ms: window.start.micros() / 1_000,
                count,
                sum,
            })
            .sink(out("windows"))
            .name("windows-out");
    }
    numbers
        .key_by(|n| n % 7)
        .fold((0u64, 0u64), |(count, sum), n| (*count, *sum) = (*count + 1, *sum + n))
        .name(if is("renamed") { "tally" } else { "ever" })
        .map(|(key, (count, sum))| Row { what: "ever", key, at_ms: 0, count, sum })
        .sink(out("ever"))
        .name("ever-out");
    job
}

/// Every row of a run that was never interrupted.
fn oracle(name: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut ever: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut windows: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    for n in 0..NUMBERS {
        for total in [ever.entry(n % 7).or_default(), windows.entry((n % 13, n / 1_000)).or_default()] {
            *total = (total.0 + 1, total.1 + n);
        }
        if name == "ever" {
            let (count, sum) = ever[&(n % 7)];
            rows.push(format!("ever,{},0,{count},{sum}", n % 7));
        }
    }
    if name == "windows" {
        rows.extend(
            windows
                .iter()
                .map(|((key, second), (count, sum))| format!("window,{key},{},{count},{sum}", second * 1_000)),
        );
    }
    rows.sort();
    rows
}

const ARGUMENTS: &str = "MILLSTREAM_TEST_ARGUMENTS";

/// Not a test, but what the others run as a process.
#[test]
#[ignore = "run by the other tests, as a process of its own"]
fn process() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let options = Options::parse_from(std::iter::once("numbers").chain(arguments.split('\n')));
    let job = job(&options);
    let code = options.job.main(job);
    assert!(format!("{code:?}") == format!("{:?}", std::process::ExitCode::SUCCESS), "it says why above");
}

// ---------------------------------------------------------------------------------------------------------------------
// Helpers

/// Where a job works.
struct Place(PathBuf);

impl Place {
    fn command(&self, arguments: &str) -> Command {
        let mut all = vec!["--output".to_string(), self.0.display().to_string()];
        all.extend(arguments.split_whitespace().map(str::to_string));
        let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
        command
            .args(["--exact", "process", "--ignored", "--nocapture"])
            .env(ARGUMENTS, all.join("\n"))
            .stdin(Stdio::null());
        command
    }

    fn start(&self, arguments: &str) -> Running {
        let log = fs::File::create(self.0.with_extension("log")).expect("a log");
        let errors = log.try_clone().expect("a second handle");
        Running(self.command(arguments).stdout(log).stderr(errors).spawn().expect("starts"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.0.with_extension("log")).expect("a log")
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("starts")
    }

    #[track_caller]
    fn succeeds(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let text = text(&output);
        assert!(output.status.success(), "{arguments}: {text}");
        text
    }

    #[track_caller]
    fn refuses(&self, arguments: &str, texts: &[&str]) {
        let before = self.rows_of_all();
        let output = self.run(arguments);
        let said = text(&output);
        assert!(!output.status.success() && said.contains("error: "), "{arguments}: {said}");
        for text in texts {
            assert!(said.contains(text), "{arguments}: it does not say {text:?}: {said}");
        }
        assert_eq!(self.rows_of_all(), before, "{arguments}: the refusal changed the output");
    }

    fn store(&self) -> CheckpointStore {
        CheckpointStore::new(self.0.join("checkpoints"))
    }

    fn epochs(&self) -> Vec<u64> {
        self.store().epochs().expect("lists")
    }

    /// The rows of a sink's committed files, sorted, of epochs up to `last`.
    fn rows(&self, sink: &str, last: u64) -> Vec<String> {
        let entries =
            fs::read_dir(self.0.join(sink)).into_iter().flatten().map(|entry| entry.expect("an entry").path());
        let is_part = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "csv");
        let epoch = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.get(6..16)?.parse::<u64>().ok());
        let parts = entries.filter(|path| is_part(path) && epoch(path).is_some_and(|epoch| epoch <= last));
        let read =
            |path| fs::read_to_string(path).expect("reads").lines().skip(1).map(str::to_string).collect::<Vec<_>>();
        let mut rows: Vec<String> = parts.flat_map(read).collect();
        rows.sort();
        rows
    }

    fn rows_of_all(&self) -> Vec<Vec<String>> {
        ["ever", "windows", "parity"].map(|sink| self.rows(sink, u64::MAX)).into()
    }

    #[track_caller]
    fn is_complete(&self, sink: &str) {
        assert_same(&self.rows(sink, u64::MAX), &oracle(sink), sink);
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn assert_same(found: &[String], expected: &[String], what: &str) {
    let differs = found.iter().zip(expected).find(|(a, b)| a != b);
    assert!(found == expected, "{what}: {} rows instead of {}; first {differs:?}", found.len(), expected.len());
}

/// A process that is killed at the latest when the test is over.
struct Running(Child);

impl Running {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.0.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
    }

    fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A savepoint of a job that ran on for a while and was killed: the job's place, and where the savepoint was moved to.
fn taken_and_moved(dir: &Path) -> (Place, PathBuf, u64) {
    let place = Place(dir.join("first"));
    let running = place.start("--rate 2000 --workers 2 --retain 2");
    until("two checkpoints", || place.epochs().last() >= Some(&2));
    let made = dir.join("made");
    let said = place.succeeds(&format!("savepoint {}", made.display()));
    assert!(said.contains("savepoint of epoch "), "{said}");
    let epoch = Held::open(&made).expect("a savepoint").manifest().epoch;
    // It is not the job's: it goes on, and deletes the checkpoint that the savepoint was made of.
    until("more checkpoints", || place.epochs().first() > Some(&epoch));
    running.kill();
    assert_eq!(
        Held::open(&made).and_then(|held| held.verify().map(|()| held.manifest().epoch)).expect("intact"),
        epoch
    );
    let moved = dir.join("archive").join("moved");
    fs::create_dir(dir.join("archive")).expect("created");
    // As `cp -r` and `rm -r` do it.
    let copied = Command::new("cp").arg("-r").arg(&made).arg(&moved).status().expect("cp starts");
    assert!(copied.success());
    fs::remove_dir_all(&made).expect("removed");
    (place, moved, epoch)
}

// ---------------------------------------------------------------------------------------------------------------------
// Tests

#[test]
fn a_savepoint_goes_on_elsewhere_as_if_nothing_had_happened() {
    let dir = temp();
    let (place, savepoint, epoch) = taken_and_moved(dir.path());
    let elsewhere = Place(dir.path().join("elsewhere"));
    // Another directory, without the old output: only what came after the savepoint is missing.
    elsewhere.succeeds(&format!("--workers 3 --from-savepoint {}", savepoint.display()));
    for sink in ["ever", "windows"] {
        let mut rows = [place.rows(sink, epoch), elsewhere.rows(sink, u64::MAX)].concat();
        rows.sort();
        assert_same(&rows, &oracle(sink), sink);
    }
    // Again, with the flag left in a script: the job has gone on since.
    elsewhere.refuses(
        &format!("--from-savepoint {}", savepoint.display()),
        &["would take the place of newer checkpoints", "leave `--from-savepoint` out"],
    );
    let said = elsewhere.succeeds("");
    assert!(said.contains("had already finished"), "{said}");
    // In the old place, beside newer checkpoints and output: only if that is said.
    place.refuses(&format!("--from-savepoint {}", savepoint.display()), &["would take the place", "--fresh"]);
    place.succeeds(&format!("--workers 1 --fresh --from-savepoint {}", savepoint.display()));
    place.is_complete("ever");
    place.is_complete("windows");
    // And the newer output alone is refused too, where the checkpoints are gone.
    fs::remove_dir_all(place.0.join("checkpoints")).expect("removed");
    place.refuses(&format!("--from-savepoint {}", savepoint.display()), &["would be doubled"]);
    assert!(place.epochs().is_empty());
    assert!(Held::open(&savepoint).and_then(|held| held.verify()).is_ok(), "nobody has touched it");
}

/// A checkpoint names output; if that was committed where it was made, there is nothing to commit elsewhere.
#[test]
fn a_checkpoint_goes_on_elsewhere_like_a_savepoint() {
    let dir = temp();
    let place = Place(dir.path().join("first"));
    let running = place.start("--rate 2000 --workers 2");
    until("two checkpoints", || place.epochs().last() >= Some(&2));
    running.signal("INT");
    until("it stops", || place.log().contains("stopped"));
    let epoch = *place.epochs().last().expect("a checkpoint");
    let manifest = place.store().manifest(epoch).expect("reads");
    assert!(manifest.sinks.iter().any(|sink| !sink.handles.is_empty()), "it names output");
    let elsewhere = Place(dir.path().join("elsewhere"));
    let checkpoint = place.store().epoch_dir(epoch);
    elsewhere.succeeds(&format!("--workers 3 --from-savepoint {}", checkpoint.display()));
    for sink in ["ever", "windows"] {
        let mut rows = [place.rows(sink, epoch), elsewhere.rows(sink, u64::MAX)].concat();
        rows.sort();
        assert_same(&rows, &oracle(sink), sink);
    }
}

/// From the savepoint on, its copy is a checkpoint like others: killed before the next one, the job goes on from it.
#[test]
fn what_was_begun_from_a_savepoint_survives_a_kill_at_once() {
    let dir = temp();
    let (place, savepoint, epoch) = taken_and_moved(dir.path());
    let elsewhere = Place(dir.path().join("elsewhere"));
    let from = format!("--workers 2 --checkpoint-interval 1h --rate 2000 --from-savepoint {}", savepoint.display());
    for again in ["", "--from-savepoint"] {
        let running = elsewhere.start(&from);
        until("it is copied in", || elsewhere.epochs() == [epoch]);
        sleep(ms(100));
        running.kill();
        let again = if again.is_empty() { String::new() } else { format!("{again} {}", savepoint.display()) };
        let running = elsewhere.start(&format!("{again} --checkpoint-interval 1h --rate 2000"));
        sleep(ms(300));
        running.kill();
        assert_eq!(elsewhere.epochs(), [epoch], "{}", elsewhere.log());
    }
    fs::remove_dir_all(&savepoint).expect("removed");
    elsewhere.succeeds("");
    let mut rows = [place.rows("ever", epoch), elsewhere.rows("ever", u64::MAX)].concat();
    rows.sort();
    assert_same(&rows, &oracle("ever"), "ever");
}

#[test]
fn a_changed_program_goes_on_when_it_is_told_what_became_of_what() {
    let dir = temp();
    let (place, savepoint, epoch) = taken_and_moved(dir.path());
    let from = format!("--from-savepoint {}", savepoint.display());
    let elsewhere = Place(dir.path().join("elsewhere"));
    let version = "--version added,renamed,dropped,source-renamed";
    let all = "--rename-state ever=tally --rename-state numbers=all --drop-state windows --drop-state windows-out";
    for (options, texts) in [
        ("", vec!["no longer has", "--drop-state"]),
        ("--rename-state ever=tally --drop-state windows", vec!["has `numbers`", "--rename-state numbers=all"]),
        (
            "--rename-state ever=tally --rename-state numbers=all --drop-state windows",
            vec!["has `windows-out`", "--drop-state windows-out"],
        ),
        ("--rename-state ever=tally --rename-state numbers=all --drop-state windows-out", vec!["has `windows`"]),
        ("--rename-state ever=nothing", vec!["the job has nothing of that name"]),
        ("--drop-state tally", vec!["the job still has it"]),
        ("--rename-state ever", vec!["OLD=NEW"]),
    ] {
        elsewhere.refuses(&format!("{version} {from} {options}"), &texts);
    }
    elsewhere.refuses(&format!("--version unnamed {from}"), &["knows no operator `fold-1`", ".name("]);
    assert!(elsewhere.epochs().is_empty());
    // Killed on the way, it needs none of that any more.
    let running = elsewhere.start(&format!("{version} {from} {all} --workers 4 --rate 2000 --retain 5"));
    until("more checkpoints", || elsewhere.epochs().last() > Some(&(epoch + 1)));
    running.kill();
    elsewhere.succeeds(&format!("{version} --workers 2"));
    let mut rows = [place.rows("ever", epoch), elsewhere.rows("ever", u64::MAX)].concat();
    rows.sort();
    assert_same(&rows, &oracle("ever"), "ever");
    assert!(elsewhere.rows("windows", u64::MAX).is_empty());
    // What is new began empty, at the savepoint.
    let read: u64 = Held::open(&savepoint).expect("opens").manifest().sources[0]
        .splits
        .iter()
        .map(|split| split.records)
        .sum();
    let mut parity: Vec<String> = [0, 1]
        .into_iter()
        .flat_map(|key| {
            let count = (read..NUMBERS).filter(|n| n % 2 == key).count() as u64;
            (1..=count).map(move |count| format!("parity,{key},0,{count},0"))
        })
        .collect();
    parity.sort();
    assert_same(&elsewhere.rows("parity", u64::MAX), &parity, "parity");
    // Dropped state is gone, and came back under nobody else's name.
    let said = elsewhere.succeeds(&format!("{version} state list"));
    assert!(said.contains("tally") && said.contains("parity") && !said.contains("windows"), "{said}");
    let said = elsewhere.succeeds(&format!("{version} state get 3 --operator tally --format json"));
    let expected = oracle("ever").into_iter().filter(|row| row.starts_with("ever,3,")).count();
    assert!(said.contains(&format!("\"key\":3,\"value\":[{expected},")), "{said}");
}

/// The same for checkpoints of the job's own.
#[test]
fn a_changed_program_goes_on_from_a_checkpoint_too() {
    let dir = temp();
    let place = Place(dir.path().join("out"));
    let running = place.start("--rate 2000 --workers 2");
    until("two checkpoints", || place.epochs().last() >= Some(&2));
    running.signal("INT");
    until("it stops", || place.log().contains("stopped"));
    let version = "--version added,renamed,dropped";
    place.refuses(version, &["no longer has"]);
    let before = place.rows("windows", u64::MAX);
    place.succeeds(&format!(
        "{version} --rename-state ever=tally --drop-state windows --drop-state windows-out --workers 3"
    ));
    place.is_complete("ever");
    assert_eq!(place.rows("windows", u64::MAX), before);
}

#[test]
fn a_signal_takes_one_into_the_checkpoint_directory() {
    let dir = temp();
    let place = Place(dir.path().join("out"));
    let running = place.start("--rate 2000 --workers 2 --checkpoint-interval 1h");
    until("it runs", || {
        place.0.join("checkpoints").exists() && fs::read_dir(place.0.join("checkpoints")).is_ok_and(|d| d.count() > 1)
    });
    sleep(ms(500)); // before it listens, the signal would end it
    let savepoints = || {
        let entries = fs::read_dir(place.0.join("checkpoints/savepoints")).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    for taken in 1..3 {
        running.signal("USR1");
        until("a savepoint", || savepoints().iter().filter(|path| Held::open(path).is_ok()).count() == taken);
    }
    until("it says so", || place.log().matches("savepoint of epoch").count() == 2);
    running.kill();
    let all = savepoints();
    place.succeeds("");
    place.is_complete("ever");
    assert_eq!(savepoints(), all, "they are the user's");
    let elsewhere = Place(dir.path().join("elsewhere"));
    elsewhere.succeeds(&format!("--from-savepoint {}", all[0].display()));
}

#[test]
fn what_cannot_be_is_said_and_the_job_goes_on() {
    let dir = temp();
    let place = Place(dir.path().join("out"));
    let new = dir.path().join("new");
    place.refuses(&format!("savepoint {}", new.display()), &["no job answers"]);
    let running = place.start("--rate 2000 --workers 2");
    until("a checkpoint", || !place.epochs().is_empty());
    let inside = place.0.join("checkpoints/epoch-0000000999");
    let a_file = dir.path().join("file");
    fs::write(&a_file, "mine").expect("written");
    for (target, text) in [
        (dir.path().to_path_buf(), "exists already"),
        (inside, "in the checkpoint directory"),
        (a_file.clone(), "exists already"),
        (a_file.join("below"), "error"),
        (PathBuf::from("/proc/nowhere/x"), "error"),
    ] {
        let output = place.run(&format!("savepoint {}", target.display()));
        assert!(
            !output.status.success() && self::text(&output).contains(text),
            "{}: {}",
            target.display(),
            self::text(&output)
        );
    }
    assert_eq!(fs::read_to_string(a_file).expect("reads"), "mine");
    // Several at once, of one epoch or two.
    let asks: Vec<Child> = (0..3)
        .map(|n| {
            place
                .command(&format!("savepoint {}-{n}", new.display()))
                .stdout(Stdio::null())
                .spawn()
                .expect("starts")
        })
        .collect();
    for mut ask in asks {
        assert!(ask.wait().expect("ends").success());
    }
    for n in 0..3 {
        let made = dir.path().join(format!("new-{n}"));
        assert!(Held::open(&made).and_then(|held| held.verify()).is_ok(), "{n}");
    }
    running.signal("INT");
    until("it stops", || place.log().contains("stopped"));
    drop(running);
    place.succeeds("");
    place.is_complete("ever");
    place.is_complete("windows");
}

/// Killed at any time while it takes one: what is there is whole, or is not taken for one; and the job's own checkpoints are
/// as good as ever.
#[test]
fn a_kill_leaves_a_whole_savepoint_or_none() {
    const SEED: u64 = 20_261_127;
    let dir = temp();
    let place = Place(dir.path().join("out"));
    let mut random = Random(SEED);
    let (mut whole, mut none) = (0, 0);
    for round in 0..(6 * effort()) {
        let running = place.start("--rate 2500 --workers 2 --checkpoint-interval 50ms");
        let newest = place.epochs().last().copied().unwrap_or_default();
        until("a checkpoint", || place.epochs().last() > Some(&newest));
        let made = dir.path().join(format!("made-{round}"));
        let mut ask = place.command(&format!("savepoint {}", made.display()));
        let ask = ask.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        match round % 3 {
            // As soon as anything is there, and a little later.
            0 => until("it begins", || made.exists()),
            _ => sleep(ms(random.below(350))),
        }
        running.kill();
        let answer = ask.wait_with_output().expect("ends");
        let said = text(&answer);
        let held = Held::open(&made).and_then(|held| held.verify());
        assert!(!answer.status.success() || held.is_ok(), "round {round} (seed {SEED}): {said}");
        let elsewhere = Place(dir.path().join(format!("elsewhere-{round}")));
        let from = format!("--from-savepoint {}", made.display());
        match held {
            Ok(()) => {
                whole += 1;
                elsewhere.succeeds(&from);
            }
            Err(_) => {
                none += 1;
                elsewhere.refuses(&from, &["savepoint"]);
                assert!(elsewhere.epochs().is_empty());
            }
        }
    }
    println!("{whole} whole, {none} none");
    place.succeeds("");
    place.is_complete("ever");
    place.is_complete("windows");
}
