//! What every job promises on its command line, with the example `flight_delays` as a process: it goes on where it was,
//! says so, refuses what it cannot do, and never touches output without being told to.

#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use common::{Delays, Ended, LATE_HEADER, Started, WINDOWS_HEADER, copy};
use millstream::prelude::EventTime;
use millstream::state::store::CheckpointStore;

const RECORDS: usize = 30_000;

/// Slow enough to be interrupted, with a checkpoint every now and then.
const SLOWLY: &str = "--rate 10000 --checkpoint-interval 30ms --retain 4";

/// One job in a directory of its own.
struct Fixture {
    dir: tempfile::TempDir,
    input: PathBuf,
    job: Delays,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let input = dir.path().join("departures.csv");
        fs::write(&input, common::first_departures(RECORDS)).expect("written");
        let job = Delays::new(std::slice::from_ref(&input), &dir.path().join("out")).with("--workers 2");
        Fixture { dir, input, job }
    }

    /// A job that was stopped half way, with 4 checkpoints or so.
    fn stopped() -> Self {
        let fixture = Self::new();
        let started = fixture.start(4);
        started.signal("INT");
        started.end(PROMPTLY).succeeded();
        assert!(fixture.epochs().len() >= 2, "{:?}", fixture.epochs());
        fixture
    }

    /// Starts it slowly and waits for that checkpoint, and for output.
    fn start(&self, checkpoint: u64) -> Started {
        self.job.with(SLOWLY).start_until(|| {
            let output = !common::parts(&self.job.windows()).is_empty() && !common::parts(&self.job.late()).is_empty();
            output && self.job.newest_epoch() >= Some(checkpoint)
        })
    }

    fn epochs(&self) -> Vec<u64> {
        self.store().epochs().expect("a list of checkpoints")
    }

    fn newest(&self) -> u64 {
        self.epochs().pop().expect("a checkpoint")
    }

    fn store(&self) -> CheckpointStore {
        self.job.checkpoints()
    }

    /// Everything that stands in the output directories, by name and content.
    fn output(&self) -> Vec<(PathBuf, Vec<u8>)> {
        files(&[self.job.windows(), self.job.late()])
    }

    /// It came to its end with all rows, each once.
    #[track_caller]
    fn is_right(&self, ended: &Ended) {
        let (windows, late) = reference();
        common::assert_same(&format!("{ended}\nwindows"), &common::rows(&self.job.windows(), WINDOWS_HEADER), windows);
        common::assert_same(&format!("{ended}\nlate"), &common::rows(&self.job.late(), LATE_HEADER), late);
    }

    /// The job goes on to its right end.
    #[track_caller]
    fn goes_on(&self, options: &str) -> Ended {
        let ended = self.job.with(options).run().succeeded();
        self.is_right(&ended);
        ended
    }

    /// The job refuses and leaves the output as it is.
    #[track_caller]
    fn refuses(&self, options: &str, texts: &[&str]) -> Ended {
        let before = self.output();
        let ended = self.job.with(options).run().failed().says(texts);
        assert!(self.output() == before, "a refusal changed the output: {ended}");
        ended
    }
}

const PROMPTLY: Duration = Duration::from_secs(10);

/// What an uninterrupted run on one worker writes: windows and late records.
fn reference() -> &'static (Vec<String>, Vec<String>) {
    static REFERENCE: OnceLock<(Vec<String>, Vec<String>)> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let fixture = Fixture::new();
        fixture.job.with("--workers 1").run().succeeded();
        let windows = common::rows(&fixture.job.windows(), WINDOWS_HEADER);
        let late = common::rows(&fixture.job.late(), LATE_HEADER);
        assert!(windows.len() > 5_000 && late.len() > 100, "{} windows, {} late", windows.len(), late.len());
        (windows, late)
    })
}

/// Everything below `dirs` except locks, by name and content.
fn files(dirs: &[PathBuf]) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut todo, mut found) = (dirs.to_vec(), Vec::new());
    while let Some(dir) = todo.pop() {
        for name in common::names(&dir).into_iter().filter(|name| name != ".millstream-lock") {
            let path = dir.join(name);
            match path.is_dir() {
                true => todo.push(path),
                false => found.push((path.clone(), fs::read(&path).expect("a file"))),
            }
        }
    }
    found.sort();
    found
}

/// Changes a file as a bad disk would, but only here: links to it from other checkpoints keep the old content.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a file to damage");
    change(&mut bytes);
    fs::remove_file(path).expect("removed");
    fs::write(path, bytes).expect("written");
}

/// An SST file of a checkpoint.
fn sst(store: &CheckpointStore, epoch: u64) -> PathBuf {
    let dir = store.db_dir(epoch);
    let name = common::names(&dir).into_iter().find(|name| name.ends_with(".sst")).expect("state on disk");
    dir.join(name)
}

#[test]
fn when_finished_then_another_start_says_so_and_does_nothing() {
    let fixture = Fixture::new();
    // Where it is slow it takes several checkpoints, of which `--retain 1` would delete some later.
    fixture.goes_on("--retain 1").says(&["job `flight-delays` finished", "30,000 in"]);
    let before = files(&[fixture.dir.path().to_path_buf()]);
    for options in ["", "run", "--workers 1 --retain 1", "--newest-intact"] {
        fixture.goes_on(options).says(&["had already finished", "--fresh"]);
        assert!(files(&[fixture.dir.path().to_path_buf()]) == before, "{options} changed something");
    }
}

/// Killed between its last checkpoint and its end, a job left its live database behind for good.
#[test]
fn when_finished_then_another_start_clears_up_after_a_kill() {
    let fixture = Fixture::new();
    fixture.goes_on("");
    let before = common::names(fixture.store().dir());
    for left in [fixture.store().live_dir("0a1b2c3d"), fixture.store().db_dir(999)] {
        fs::create_dir_all(left).expect("created");
    }
    fixture.goes_on("").says(&["had already finished"]);
    assert_eq!(common::names(fixture.store().dir()), before);
}

#[test]
fn when_fresh_then_it_begins_again_and_keeps_the_old_output_aside() {
    let fixture = Fixture::stopped();
    let old = fixture.output();
    let ended = fixture.goes_on("--fresh");
    assert!(!ended.stderr.contains("resumed"), "{ended}");
    // And once more, of a job that had finished.
    let second = fixture.output();
    fixture.goes_on("--fresh --workers 3");
    let now: Vec<Vec<u8>> = fixture.output().into_iter().map(|(_, content)| content).collect();
    for (path, content) in old.iter().chain(&second) {
        assert!(now.contains(content), "{} is gone", path.display());
    }
    for dir in [fixture.job.windows(), fixture.job.late()] {
        let withdrawn = common::names(&dir).into_iter().filter(|name| name.starts_with("withdrawn-"));
        assert_eq!(withdrawn.collect::<Vec<_>>(), ["withdrawn-1", "withdrawn-2"]);
    }
    let aside = common::names(fixture.store().dir()).into_iter().filter(|name| name.starts_with("aside-"));
    assert_eq!(aside.count(), 2);
}

#[test]
fn when_asked_to_end_then_it_takes_a_last_checkpoint_and_goes_on_from_it() {
    let fixture = Fixture::new();
    for (signal, checkpoint) in [("TERM", 2), ("INT", 6)] {
        let started = fixture.start(checkpoint);
        started.signal(signal);
        let ended = started.end(PROMPTLY).succeeded().says(&["stopping", "stopped; start it again to go on"]);
        let newest = fixture.newest();
        assert!(newest > checkpoint && ended.stderr.contains(&format!("up to number {newest},")), "{ended}");
        // All that it read is in the checkpoint, and all its output is committed.
        let pending = fixture.output().into_iter().find(|(path, _)| path.display().to_string().contains(".pending-"));
        assert!(pending.is_none(), "{pending:?}");
        let manifest = fixture.store().verify(newest).expect("intact");
        assert!(!manifest.finished && !manifest.sources[0].splits[0].ended);
        assert!(!common::names(fixture.store().dir()).iter().any(|name| name.starts_with("live-")));
    }
    let newest = fixture.newest();
    fixture.goes_on("--workers 3").says(&[&format!("resumed from checkpoint {newest}")]);
}

#[test]
fn when_it_runs_already_then_another_start_names_the_holder() {
    let fixture = Fixture::new();
    let first = fixture.start(1);
    let holder = format!("job `flight-delays`, process {}", first.id());
    let checkpoints = fixture.store().dir().display().to_string();
    for options in ["", "--fresh", "--newest-intact"] {
        let second = fixture.job.with(options).run().failed();
        second.says(&[&checkpoints, "in use by", &holder]);
    }
    let elsewhere = fixture.dir.path().join("elsewhere");
    for options in ["", "--fresh"] {
        let second = fixture.job.with(&format!("--checkpoint-dir {} {options}", elsewhere.display())).run().failed();
        second.says(&[&fixture.dir.path().join("out").display().to_string(), "in use by", &holder]);
    }
    // To look is allowed.
    fixture.job.with("checkpoints list").run().succeeded();
    let ended = first.end(common::LIMIT).succeeded();
    fixture.is_right(&ended);
}

/// Checkpoints were moved aside before the output was locked.
#[test]
fn when_the_output_is_in_use_then_a_refused_start_leaves_its_checkpoints_alone() {
    let fixture = Fixture::stopped();
    let second = fixture.dir.path().join("second");
    copy(fixture.store().dir(), &second);
    let (first, before) = (fixture.start(fixture.newest() + 1), files(std::slice::from_ref(&second)));
    for options in ["--fresh".to_string(), format!("--from {}", fixture.epochs()[0])] {
        let options = format!("--checkpoint-dir {} {options}", second.display());
        let refused = fixture.job.with(&options).run().failed().says(&["in use by"]);
        assert!(files(std::slice::from_ref(&second)) == before, "checkpoints were moved: {refused}");
    }
    drop(first);
}

#[test]
fn when_two_start_at_once_then_one_of_them_does_it_all() {
    let fixture = Fixture::new();
    let starts = [fixture.job.start(), fixture.job.start(), fixture.job.start()];
    let ends = starts.map(|start| start.end(common::LIMIT));
    for ended in &ends {
        let text = if ended.status.success() { "finished" } else { "in use by" };
        assert!(ended.stderr.contains(text) && !ended.stderr.contains("panicked"), "{ended}");
    }
    assert_eq!(ends.iter().filter(|ended| ended.stderr.contains("30,000 in")).count(), 1, "{ends:?}");
    fixture.is_right(&ends[0]);
}

#[test]
fn when_output_is_gone_that_may_not_have_been_committed_then_it_is_refused() {
    let fixture = Fixture::stopped();
    // As if the job had died before it could note that the commit is done.
    fs::remove_file(fixture.store().epoch_dir(fixture.newest()).join("committed")).expect("removed");
    let manifest = fixture.store().manifest(fixture.newest()).expect("a manifest");
    let sink = manifest.sinks.iter().find(|sink| !sink.handles.is_empty()).expect("output in the last checkpoint");
    let name = sink.handles[0].split(".pending-").next().expect("a name");
    fs::remove_file(fixture.dir.path().join("out").join(&sink.name).join(name)).expect("removed");
    fixture.refuses("", &[name, "was removed", &sink.name]);
}

#[test]
fn when_started_from_an_older_checkpoint_then_later_output_is_withdrawn() {
    let fixture = Fixture::stopped();
    let (epochs, old) = (fixture.epochs(), fixture.output());
    fixture.refuses("--from 999", &["no checkpoint 999", &epochs[0].to_string()]);
    let ended = fixture.goes_on(&format!("--from {}", epochs[0]));
    let ended = ended.says(&[&format!("resumed from checkpoint {}", epochs[0])]);
    let is_later = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        name.strip_prefix("part-e")
            .is_some_and(|name| name[..10].parse::<u64>().expect("an epoch") > epochs[0])
    };
    let now = fixture.output();
    for (path, content) in old {
        let aside = path.parent().expect("a directory").join("withdrawn-1").join(path.file_name().expect("a name"));
        let place = if is_later(&path) { aside } else { path };
        assert!(now.contains(&(place.clone(), content)), "{} is not there: {ended}", place.display());
    }
}

#[test]
fn when_the_newest_checkpoint_is_damaged_then_it_is_refused_until_another_is_chosen() {
    type Damage = fn(&CheckpointStore, u64) -> PathBuf;
    let kinds: [(&str, Damage); 4] = [
        ("manifest", |store, epoch| {
            let path = store.manifest_path(epoch);
            damage(&path, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
            path
        }),
        ("bytes and should have", |store, epoch| {
            let path = sst(store, epoch);
            damage(&path, |bytes| bytes.truncate(bytes.len() - 1));
            path
        }),
        ("checksum", |store, epoch| {
            let path = sst(store, epoch);
            damage(&path, |bytes| bytes[100] ^= 0x80);
            path
        }),
        ("missing", |store, epoch| {
            let path = store.db_dir(epoch).join("CURRENT");
            fs::remove_file(&path).expect("removed");
            path
        }),
    ];
    let fixture = Fixture::stopped();
    let good = fixture.dir.path().join("good");
    copy(&fixture.dir.path().join("out"), &good);
    for (what, damage) in kinds {
        fs::remove_dir_all(fixture.dir.path().join("out")).expect("removed");
        copy(&good, &fixture.dir.path().join("out"));
        let epochs = fixture.epochs();
        let (newest, intact) = (epochs[epochs.len() - 1], epochs[epochs.len() - 2]);
        let path = damage(&fixture.store(), newest);
        let (path, newest) = (path.display().to_string(), newest.to_string());
        let texts = [
            &format!("checkpoint {newest} in"),
            path.as_str(),
            what,
            &format!("--from {intact}"),
            "--newest-intact",
            "withdraws output",
        ];
        fixture.refuses("", &texts);
        fixture.refuses(&format!("--from {newest}"), &texts);
        let verified = fixture.job.with("checkpoints verify").run();
        assert_eq!(verified.status.code(), Some(1), "{verified}");
        for text in [&format!("checkpoint {intact} is intact"), &format!("checkpoint {newest} cannot be used"), &path] {
            assert!(verified.stdout.contains(text), "{text}: {verified}");
        }
        for (epoch, code) in [(&newest, 1), (&intact.to_string(), 0)] {
            let verified = fixture.job.with(&format!("checkpoints verify {epoch}")).run();
            assert_eq!(verified.status.code(), Some(code), "{verified}");
        }
        fixture.job.with("checkpoints list").run().succeeded();
        fixture.goes_on("--newest-intact").says(&[&format!("resumed from checkpoint {intact}")]);
    }
}

/// One flipped bit or one missing byte anywhere in a checkpoint.
#[test]
fn no_damage_goes_unseen() {
    let fixture = Fixture::stopped();
    let (store, newest) = (fixture.store(), fixture.newest());
    store.verify(newest).expect("intact");
    let mut paths: Vec<PathBuf> = store
        .manifest(newest)
        .expect("a manifest")
        .files
        .iter()
        .map(|file| store.db_dir(newest).join(&file.name))
        .collect();
    paths.push(store.manifest_path(newest));
    let mut seen = 0;
    for path in paths {
        let good = fs::read(&path).expect("a file");
        let mut is_seen = |bytes: Option<&[u8]>, what: String| {
            fs::remove_file(&path).expect("removed");
            if let Some(bytes) = bytes {
                fs::write(&path, bytes).expect("written");
            }
            let error = store.verify(newest).err().unwrap_or_else(|| panic!("unseen: {what} in {}", path.display()));
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            fs::write(&path, &good).expect("written");
            seen += 1;
        };
        for bit in (0..good.len() * 8).step_by(1 + good.len() / 7) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // The case of a hexadecimal digit means nothing.
            if !(path.ends_with("manifest") && bit % 8 == 5 && bytes[..bit / 8].iter().all(|byte| *byte != b'\n')) {
                is_seen(Some(&bytes), format!("bit {bit}"));
            }
        }
        for length in (0..good.len()).step_by(1 + good.len() / 10) {
            is_seen(Some(&good[..length]), format!("cut to {length} bytes"));
        }
        is_seen(Some(&[&good[..], b"\n"].concat()), "one byte more".to_string());
        is_seen(None, "removal".to_string());
    }
    assert!(seen > 200, "{seen} kinds of damage");
    fixture.goes_on("");
}

#[test]
fn when_no_checkpoint_is_intact_then_only_a_fresh_start_is_left() {
    let fixture = Fixture::stopped();
    for epoch in fixture.epochs() {
        damage(&fixture.store().manifest_path(epoch), |bytes| bytes.truncate(bytes.len() / 2));
    }
    for options in ["", "--newest-intact", &format!("--from {}", fixture.epochs()[0])] {
        fixture.refuses(options, &["cannot be used", "no checkpoint here is intact", "--fresh"]);
    }
    fixture.goes_on("--fresh");
}

/// Without its manifest a checkpoint does not exist. Output that was committed after the one before it tells.
#[test]
fn when_manifests_are_gone_then_output_is_not_doubled() {
    let fixture = Fixture::stopped();
    fs::remove_file(fixture.store().manifest_path(fixture.newest())).expect("removed");
    fixture.refuses("", &["later than the checkpoint", "doubled", &format!("--from {}", fixture.newest())]);
    for epoch in fixture.epochs() {
        fs::remove_file(fixture.store().manifest_path(epoch)).expect("removed");
    }
    fixture.refuses("", &["of an earlier run", "doubled", "--fresh"]);
    fs::remove_dir_all(fixture.store().dir()).expect("removed");
    fixture.refuses("", &["of an earlier run", "doubled", "--fresh"]);
    fixture.goes_on("--fresh");
}

#[test]
fn when_the_job_has_changed_then_an_old_checkpoint_is_refused_by_name() {
    let fixture = Fixture::stopped();
    let (newest, input) = (fixture.newest(), fixture.input.display().to_string());
    let newest = format!("checkpoint {newest}");
    fixture.refuses("--slide 20m", &[&newest, "`delays`", "windows of 1h every 10m", "windows of 1h every 20m"]);
    fixture.refuses("--size 2h", &[&newest, "`delays`", "windows of 2h every 10m"]);
    let other = fixture.dir.path().join("other.csv");
    fs::write(&other, common::first_departures(10)).expect("written");
    let other = other.display().to_string();
    let with_input = |input: &[&str]| {
        let input: Vec<PathBuf> = input.iter().map(PathBuf::from).collect();
        Delays::new(&input, &fixture.dir.path().join("out")).run().failed()
    };
    let before = fixture.output();
    with_input(&[&other]).says(&[&newest, &input, "`departures`"]);
    with_input(&[&input, &other]).says(&[&newest, &other, "`departures`"]);
    assert!(fixture.output() == before);
    fixture.goes_on("").says(&["resumed"]);
}

/// The generator of watermarks is in the checkpoint with its delay, and took the old one along, unsaid.
#[test]
fn when_out_of_orderness_has_changed_then_it_counts_from_there_on() {
    let fixture = Fixture::stopped();
    let so_far = common::rows(&fixture.job.late(), LATE_HEADER).len();
    fixture.job.with("--out-of-orderness 36h").run().succeeded().says(&["resumed"]);
    let late = common::rows(&fixture.job.late(), LATE_HEADER).len();
    let before = reference().1.len();
    // Those that are late within 36 hours are late still: no watermark goes back.
    assert!(
        late - so_far < (before - so_far) / 4,
        "{late} late instead of {before}, {so_far} of them before the change"
    );
}

#[test]
fn when_the_input_was_cut_then_it_is_refused() {
    let fixture = Fixture::stopped();
    fs::write(&fixture.input, common::first_departures(100)).expect("written");
    fixture.refuses("", &["departures.csv", "ends before byte"]);
    fs::write(&fixture.input, common::first_departures(RECORDS)).expect("written");
    fixture.goes_on("");
}

#[test]
fn when_a_record_is_bad_then_it_is_named_and_the_job_goes_on_after_its_repair() {
    let fixture = Fixture::new();
    let bad = common::first_departures(RECORDS).replace("2013-01-20T", "20 January, ");
    let line = 1 + bad.lines().position(|line| line.contains("20 January")).expect("a bad line");
    fs::write(&fixture.input, bad).expect("written");
    let ended = fixture.job.with("--rate 20000 --checkpoint-interval 20ms").run().failed();
    ended.says(&["operator `departures`", &format!("departures.csv:{line}: "), "20 January"]);
    fs::write(&fixture.input, common::first_departures(RECORDS)).expect("written");
    fixture.goes_on("");
}

#[test]
fn when_an_option_is_wrong_then_it_is_named() {
    let fixture = Fixture::new();
    let missing = fixture.dir.path().join("missing.csv").display().to_string();
    let dir = fixture.dir.path().display().to_string();
    let cases: [(&str, &[&str]); 20] = [
        ("--size 1hour", &["--size", "`1hour` is not a span like 1h"]),
        ("--slide -5m", &["-5"]),
        ("--slide 0s", &["--slide 0s"]),
        ("--slide 2h", &["--slide 2h", "--size 1h"]),
        ("--checkpoint-interval soon", &["--checkpoint-interval", "soon"]),
        ("--checkpoint-interval 0s", &["checkpoint interval"]),
        ("--workers 0", &["0 workers"]),
        ("--workers many", &["--workers", "many"]),
        ("--retain 0", &["retain"]),
        ("--rate=-1", &["rate"]),
        ("--nonsense", &["--nonsense"]),
        ("nonsense", &["nonsense"]),
        ("--from 3", &["no checkpoint 3", "none"]),
        ("--from 3 --fresh", &["--from", "--fresh"]),
        ("--fresh --newest-intact", &["--fresh", "--newest-intact"]),
        ("graph --format svg", &["svg", "mermaid"]),
        ("state list --from 3", &["`--from`", "means nothing to `state`", "--at EPOCH"]),
        ("--newest-intact checkpoints", &["`--newest-intact`", "means nothing to `checkpoints`"]),
        ("--fresh history", &["`--fresh`", "means nothing to `history`"]),
        ("replay --fresh", &["`--fresh`", "means nothing to `replay`", "--from EPOCH"]),
    ];
    for (options, texts) in cases {
        fixture.job.with(options).run().failed().says(texts);
    }
    for (input, text) in [(&missing, "missing.csv"), (&dir, dir.as_str())] {
        let ended = Delays::new(&[PathBuf::from(input)], &fixture.dir.path().join("out")).run().failed();
        ended.says(&["`departures`", text]);
    }
    let twice = [fixture.input.clone(), fixture.input.clone()];
    Delays::new(&twice, &fixture.dir.path().join("out"))
        .run()
        .failed()
        .says(&["departures.csv", "twice"]);
    assert_eq!(fixture.output(), [], "nothing ran");
    let in_the_way = fixture.dir.path().join("in-the-way");
    fs::write(&in_the_way, "").expect("written");
    let job = Delays::new(std::slice::from_ref(&fixture.input), &in_the_way);
    job.run().failed().says(&["the checkpoint directory", "in-the-way", "--checkpoint-dir DIR"]);
    let elsewhere = format!("--checkpoint-dir {}", fixture.dir.path().join("checkpoints").display());
    job.with(&elsewhere)
        .run()
        .failed()
        .says(&["in-the-way", "a file sink puts its output", "written to"]);
}

/// What it says on its way is lost: nothing else is. In `/dev/full` a write fails as on a disk that is full.
#[cfg(target_os = "linux")]
#[test]
fn when_what_it_says_cannot_be_written_then_it_goes_on() {
    let fixture = Fixture::new();
    fixture.goes_on("");
    let into_nothing = ["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"].map(String::from);
    // It warns of output that it sets aside.
    let ended = fixture.job.with("--fresh").under(&into_nothing).run().succeeded();
    fixture.is_right(&ended);
}

#[cfg(target_os = "linux")]
#[test]
fn when_nobody_reads_on_then_printing_ends_quietly_and_on_a_full_disk_with_an_error() {
    let fixture = Fixture::new();
    fixture.goes_on("");
    let nobody = ["bash", "-c", "{ sleep 0.2; exec \"$0\" \"$@\"; } | true; exit ${PIPESTATUS[0]}"].map(String::from);
    let full = ["sh", "-c", "exec \"$0\" \"$@\" >/dev/full"].map(String::from);
    for command in [
        "history",
        "checkpoints",
        "checkpoints show",
        "checkpoints watermarks",
        "checkpoints verify",
        "state list",
        "graph",
    ] {
        let job = fixture.job.with(command);
        assert!(!job.run().succeeded().stdout.is_empty());
        job.under(&nobody).run().succeeded();
        job.under(&full).run().failed().says(&["the output cannot be written"]);
    }
}

#[test]
fn checkpoints_can_be_looked_at() {
    let fixture = Fixture::new();
    let look = |options: &str| fixture.job.with(options).run().succeeded().stdout;
    for options in ["checkpoints", "checkpoints list", "checkpoints verify"] {
        assert!(look(options).contains("no checkpoints in"), "{options}");
    }
    for options in ["checkpoints show", "checkpoints watermarks"] {
        fixture.job.with(options).run().failed().says(&["no checkpoints in"]);
    }
    assert!(!fixture.dir.path().join("out").exists(), "to look changes nothing");

    let fixture = Fixture::stopped();
    let look = |options: &str| fixture.job.with(options).run().succeeded().stdout;
    let (epochs, before) = (fixture.epochs(), files(&[fixture.dir.path().to_path_buf()]));
    let list = look("checkpoints");
    assert_eq!(list.lines().count(), 1 + epochs.len(), "{list}");
    for (line, epoch) in list.lines().skip(1).zip(&epochs) {
        assert_eq!(line.split_whitespace().next(), Some(epoch.to_string().as_str()), "{list}");
    }
    assert!(!list.contains("finished"), "{list}");
    let (newest, oldest) = (fixture.newest(), epochs[0]);
    for (options, epoch) in [("checkpoints show", newest), (&format!("checkpoints show {oldest}"), oldest)] {
        let shown: serde_json::Value = serde_json::from_str(&look(options)).expect("JSON");
        assert_eq!(shown["epoch"], epoch);
        assert_eq!(shown["sources"][0]["splits"][0]["split"], fixture.input.display().to_string());
        assert_eq!(shown["operators"][0]["name"], "delays");
        let split = &fixture.store().manifest(epoch).expect("reads").sources[0].splits[0];
        let watermarks = look(&options.replace("show", "watermarks"));
        let lines: Vec<&str> = watermarks.lines().collect();
        assert!(lines.len() == 3 && lines[0].starts_with(&format!("checkpoint {epoch}, written 20")), "{watermarks}");
        let words: Vec<&str> = lines[2].split_whitespace().collect();
        let watermark = EventTime::from_micros(split.watermark_us).to_string();
        let read: u64 = words[2].replace(',', "").parse().expect("a number");
        assert_eq!((words[0], words[1], read), (watermark.as_str(), "departures", split.records));
        assert_eq!(words[3], fixture.input.display().to_string());
    }
    let verified = look("checkpoints verify");
    assert_eq!(verified.matches(" is intact\n").count(), epochs.len(), "{verified}");
    assert_eq!(look(&format!("checkpoints verify {newest}")), format!("checkpoint {newest} is intact\n"));
    // A script that verifies the checkpoint it means to start from must not be told that all is well.
    for action in ["show", "verify", "watermarks"] {
        let ended = fixture.job.with(&format!("checkpoints {action} 999")).run().failed();
        ended.says(&["no checkpoint 999", &newest.to_string()]);
    }
    assert!(files(&[fixture.dir.path().to_path_buf()]) == before, "to look changes nothing");
    fixture.goes_on("");
    assert!(look("checkpoints list").trim_end().ends_with("finished"));
    let watermarks = look("checkpoints watermarks");
    assert!(watermarks.lines().last().is_some_and(|line| line.starts_with("ended ")), "{watermarks}");
}

#[test]
fn the_dataflow_is_drawn() {
    let fixture = Fixture::new();
    let draw = |options: &str| fixture.job.with(options).run().succeeded().stdout;
    let (mermaid, dot) = (draw("graph"), draw("graph --format dot"));
    assert_eq!(mermaid, draw("graph --format mermaid"));
    assert!(mermaid.starts_with("flowchart LR\n"), "{mermaid}");
    assert!(dot.starts_with("digraph \"flight-delays\" {\n") && dot.ends_with("}\n"), "{dot}");
    for name in ["departures", "delays", "windows of 1h every 10m", "windows", "late"] {
        assert!(mermaid.contains(name) && dot.contains(name), "{name}: {mermaid}{dot}");
    }
    assert!(draw("graph --slide 20m").contains("windows of 1h every 20m"));
    assert!(!fixture.dir.path().join("out").exists(), "to draw runs nothing");
    let help = draw("--help");
    for option in ["--checkpoint-interval", "--newest-intact", "--input", "graph", "checkpoints"] {
        assert!(help.contains(option), "{option}: {help}");
    }
}
