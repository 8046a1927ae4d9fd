//! The state of checkpoints, read from outside: by the types of the program, and by the command line while the job runs.

mod common;
mod patience;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Delays, first_departures};
use millstream::prelude::*;
use patience::{temp, within};
use proptest::prelude::*;

/// How often each word was met, with its length: kept for ever.
fn counting(dir: &Path, words: &[String], workers: usize) -> Job {
    let job = Job::new("words").workers(workers).checkpoint_dir(dir.join("checkpoints"));
    job.source(from_vec(words.to_vec()), Watermarks::monotonous(|_: &String| EventTime::EPOCH))
        .name("words")
        .key_by(|word| word.clone())
        .fold((0u64, 0i32), |(count, length), word: &String| (*count, *length) = (*count + 1, word.len() as i32))
        .name("counts")
        .sink(Collected::new().sink())
        .name("out");
    job
}

type Model = BTreeMap<String, (u64, i32)>;

fn model(words: &[String]) -> Model {
    let mut model = Model::new();
    for word in words {
        let entry = model.entry(word.clone()).or_default();
        *entry = (entry.0 + 1, word.len() as i32);
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A view of a checkpoint is a map of what the job has counted, and the difference of two is that of the maps.
    #[test]
    fn a_view_is_what_the_job_has_counted(
        first in prop::collection::vec("[abü\"\n]{0,3}", 0..60),
        second in prop::collection::vec("[abü\"\n]{0,3}", 0..60),
        workers in 1..4usize,
    ) {
        let (one, two) = (temp(), temp());
        let models = [(&one, &first, workers), (&two, &second, 1)].map(|(dir, words, workers)| {
            counting(dir.path(), words, workers).run().expect("runs");
            model(words)
        });
        let job = counting(one.path(), &first, 1);
        let view = job.checkpoint(StartFrom::Newest).expect("opens");
        let counts = view.state::<String, (u64, i32)>("counts").expect("is there");
        let entries: Vec<_> = counts.iter().collect::<Result<_, _>>().expect("reads");
        prop_assert_eq!(counts.count().expect("counts"), entries.len() as u64);
        let order: Vec<_> = entries.iter().map(|entry| entry.group).collect();
        prop_assert!(order.is_sorted());
        let found: Model = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        prop_assert_eq!(&found, &models[0]);
        for word in first.iter().chain(&second) {
            prop_assert_eq!(counts.get(word.as_str()).expect("reads"), models[0].get(word).copied());
        }
        let sizes = view.sizes("counts").expect("measures");
        prop_assert_eq!(sizes.iter().filter_map(|size| size.entries).sum::<u64>(), models[0].len() as u64);
        // The checkpoint of another run, by its directory.
        let other = counting(two.path(), &second, 1).checkpoint(StartFrom::Newest).expect("opens").epoch();
        let other = millstream::state::store::CheckpointStore::new(two.path().join("checkpoints")).epoch_dir(other);
        let other = job.checkpoint(StartFrom::Savepoint(other)).expect("opens");
        let other = other.state::<String, (u64, i32)>("counts").expect("is there");
        let differences = counts.diff(&other).collect::<Result<Vec<_>, _>>().expect("reads");
        let found: BTreeMap<_, _> = differences.into_iter().map(|found| (found.key, (found.old, found.new))).collect();
        let words = models[0].keys().chain(models[1].keys());
        let expected = words.map(|word| (word.clone(), (models[0].get(word).copied(), models[1].get(word).copied())));
        prop_assert_eq!(found, expected.filter(|(_, (old, new))| old != new).collect::<BTreeMap<_, _>>());
    }
}

#[test]
fn windows_are_shown_as_event_time() {
    let dir = temp();
    let (sender, source) = channel::<(i64, u32)>(100);
    let windowed = |source| {
        let job = Job::new("windows").workers(2).checkpoint_dir(dir.path().join("checkpoints"));
        job.source(source, Watermarks::monotonous(|(s, _): &(i64, u32)| EventTime::from_secs(*s)))
            .key_by(|(_, key)| *key)
            .window(Tumbling::of(EventSpan::secs(10)).offset(EventSpan::secs(3)))
            .aggregate(Count)
            .name("windows")
            .sink(for_each(|_| ()));
        job
    };
    let handle = windowed(source).start().expect("starts");
    for (second, key) in [(5, 1), (7, 1), (12, 2), (14, 1)] {
        sender.send((second, key)).expect("is read");
    }
    patience::until("all is read", || handle.status().records_in == 4);
    let savepoint = handle.savepoint(dir.path().join("savepoint")).expect("is taken");
    handle.stop(StopMode::WithCheckpoint);
    within(handle, patience::SOON).expect("stops");
    let job = windowed(channel::<(i64, u32)>(1).1);
    for at in [StartFrom::Newest, StartFrom::Savepoint(savepoint.dir)] {
        let view = job.checkpoint(at).expect("opens");
        let windows = view.state::<u32, u64>("windows").expect("is there");
        let of = |key: u32| {
            let entries = windows.get_all(&key).expect("reads").into_iter();
            let shown = entries.map(|entry| (entry.times.map(|times| (times.start, times.end)), entry.value));
            shown.collect::<Vec<_>>()
        };
        let range = |from, to| Some((EventTime::from_secs(from), EventTime::from_secs(to)));
        // The first window has fired by 13 s.
        assert_eq!(of(1), [(range(13, 23), 1)]);
        assert_eq!(of(2), []);
        assert!(windows.get(&1).expect_err("several").to_string().contains("get_all"));
        let error = view.state::<u32, i64>("windows").expect_err("other types").to_string();
        assert!(error.contains("values `u64`") && error.contains("`i64`"), "{error}");
        let error = view.state::<u32, u64>("window").expect_err("no such").to_string();
        assert!(error.contains("there are: `windows`"), "{error}");
        assert!(view.state::<u32, u64>("windows/fired").is_err());
    }
}

#[test]
fn a_handle_takes_savepoints_of_a_job_that_runs_even_if_it_reads_nothing() {
    let dir = temp();
    let (sender, source) = channel::<u64>(100);
    let job = |source| {
        let job = Job::new("idle").workers(2).checkpoint_every(patience::ms(10));
        let numbers = job.source(source, Watermarks::monotonous(|n: &u64| EventTime::from_secs(*n as i64)));
        numbers.key_by(|n| *n).fold(0u64, |count, _| *count += 1).name("counts").sink(for_each(|_| ()));
        job
    };
    let handle = job(source).checkpoint_dir(dir.path().join("checkpoints")).start().expect("starts");
    sender.send(1).expect("is read");
    patience::until("all is read", || handle.status().records_in == 1);
    for n in 0..3 {
        let to = dir.path().join(format!("savepoint-{n}"));
        assert_eq!(handle.savepoint(&to).expect("is taken").dir, to);
        let error = handle.savepoint(&to).expect_err("is there").to_string();
        assert!(error.contains("exists already") && error.contains("never written over"), "{error}");
        let view = job(channel(1).1).checkpoint(StartFrom::Savepoint(to)).expect("opens");
        assert_eq!(view.state::<u64, u64>("counts").and_then(|counts| counts.get(&1)).expect("reads"), Some(1));
    }
    drop(sender);
    patience::until("its end", || handle.is_finished());
    let error = handle.savepoint(dir.path().join("late")).expect_err("too late").to_string();
    assert!(error.contains("the job ended before"), "{error}");
    let (_sender, source) = channel::<u64>(100);
    let handle = job(source).start().expect("starts");
    let error = handle.savepoint(dir.path().join("none")).expect_err("no checkpoints").to_string();
    assert!(error.contains("keeps no checkpoints"), "{error}");
    handle.stop(StopMode::Now);
    within(handle, patience::SOON).expect("stops");
    let error = job(channel(1).1).start_from(StartFrom::Savepoint(dir.path().join("savepoint-0"))).start();
    assert!(error.expect_err("no directory").to_string().contains("--checkpoint-dir"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 4, "only savepoints and checkpoints");
}

/// The example as a process.
struct Process {
    dir: tempfile::TempDir,
    job: Delays,
}

impl Process {
    fn new() -> Process {
        let dir = temp();
        let input = dir.path().join("departures.csv");
        // For many seconds, so that none of the tests comes to the end of it.
        fs::write(&input, first_departures(200_000)).expect("written");
        let job = Delays::new(&[input], &dir.path().join("out")).with("--workers 2");
        Process { dir, job }
    }

    /// What a command prints, line by line.
    #[track_caller]
    fn prints(&self, command: &str) -> Vec<serde_json::Value> {
        let ended = self.job.with(&format!("{command} --format json")).run().succeeded();
        ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// All files below a directory, with their content.
fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let (mut todo, mut found) = (vec![dir.to_path_buf()], BTreeMap::new());
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("lists") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => todo.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).expect("reads"))),
            }
        }
    }
    found
}

#[test]
fn state_is_read_while_the_job_runs_and_deletes_checkpoints() {
    let process = Process::new();
    let store = process.job.checkpoints();
    let running = process.job.with("--rate 6000 --checkpoint-interval 20ms --retain 1");
    let mut running = running.start_until(|| process.job.newest_epoch() >= Some(3));
    for scans in 0..20 {
        assert!(running.ended().is_none(), "it ended after {scans} scans");
        let entries: u64 =
            process.prints("state count").iter().map(|row| row["entries"].as_u64().expect("a number")).sum();
        assert!(entries < 1_000);
        for row in process.prints("state scan") {
            assert!(row["start"].as_str() < row["end"].as_str() && row["key"].is_string(), "{row}");
        }
    }
    running.signal("INT");
    running.end(common::LIMIT).succeeded();
    assert_eq!(store.epochs().expect("lists").len(), 1);
}

#[test]
fn a_checkpoint_says_the_same_every_time_and_stays_as_it_is() {
    let process = Process::new();
    let running = process
        .job
        .with("--rate 20000 --checkpoint-interval 30ms --retain 20")
        .start_until(|| process.job.newest_epoch() >= Some(6));
    running.signal("INT");
    running.end(common::LIMIT).succeeded();
    let before = files(&process.dir.path().join("out"));
    let epochs = process.job.checkpoints().epochs().expect("lists");
    let (old, new) = (epochs[epochs.len() - 3], epochs[epochs.len() - 2]);
    let scan = |epoch: u64| process.prints(&format!("state scan --at {epoch}"));
    let place = |row: &serde_json::Value| ["state", "start", "key"].map(|column| row[column].to_string());
    let [was, is] = [old, new]
        .map(|epoch| scan(epoch).iter().map(|row| (place(row), row["value"].clone())).collect::<BTreeMap<_, _>>());
    assert!(!was.is_empty());
    assert_eq!(scan(old), scan(old));
    // The difference is what two scans differ in.
    let diff = process.prints(&format!("state diff {old} {new}"));
    let found: BTreeMap<_, _> = diff.iter().map(|row| (place(row), (row["old"].clone(), row["new"].clone()))).collect();
    let null = serde_json::Value::Null;
    let all = was.keys().chain(is.keys()).map(|place| {
        let value = |of: &BTreeMap<_, serde_json::Value>| of.get(place).unwrap_or(&null).clone();
        (place.clone(), (value(&was), value(&is)))
    });
    assert_eq!(found, all.filter(|(_, (old, new))| old != new).collect::<BTreeMap<_, _>>());
    for row in &diff {
        let change = match (row["old"].is_null(), row["new"].is_null()) {
            (true, false) => "added",
            (false, true) => "removed",
            _ => "changed",
        };
        assert_eq!(row["change"], change);
    }
    // One key is a part of the scan, and so is a prefix of it.
    let of_key: Vec<_> = scan(old).into_iter().filter(|row| row["key"] == "JFK").collect();
    assert_eq!(process.prints(&format!("state get JFK --at {old}")), of_key);
    assert_eq!(process.prints(&format!("state scan --key-prefix JF --at {old}")), of_key);
    assert_eq!(process.prints(&format!("state scan --limit 2 --at {old}")), scan(old)[..2]);
    let counted: u64 = process
        .prints(&format!("state count --at {old}"))
        .iter()
        .filter_map(|row| row["entries"].as_u64())
        .sum();
    assert_eq!(counted, was.len() as u64);
    let by_group = process.prints(&format!("state size --groups --operator delays --state slices --at {old}"));
    let in_groups: u64 = by_group.iter().filter_map(|row| row["entries"].as_u64()).sum();
    let slices = was.keys().filter(|[state, ..]| state == "\"slices\"").count();
    assert_eq!(in_groups, slices as u64);
    // Tables are for people; all that is asserted is that they say it.
    let table = process.job.with(&format!("state scan --at {old}")).run().succeeded();
    assert!(table.stdout.starts_with("operator") && table.stdout.contains("\"JFK\""), "{table}");
    process.job.with(&format!("state get XXX --at {old}")).run().says(&["nothing for this key"]);
    process.job.with("state list --at 9999").run().failed().says(&["no checkpoint 9999", "there are:"]);
    process
        .job
        .with("state scan --operator nothing")
        .run()
        .failed()
        .says(&["no operator `nothing`", "`delays`"]);
    // Another program reads nothing wrongly.
    process
        .job
        .with("--size 2h state scan --operator delays")
        .run()
        .failed()
        .says(&["windows of 1h", "windows of 2h"]);
    let listed = process.job.with("--size 2h state").run().succeeded();
    assert!(listed.stdout.contains("windows of 2h"), "{listed}");
    assert!(files(&process.dir.path().join("out")) == before, "reading changed something");
}

#[test]
fn damage_is_named_before_anything_is_decoded() {
    let process = Process::new();
    let running = process.job.with("--rate 20000 --checkpoint-interval 30ms");
    let running = running.start_until(|| process.job.newest_epoch() >= Some(6));
    running.signal("INT");
    running.end(common::LIMIT).succeeded();
    let store = process.job.checkpoints();
    let epoch = process.job.newest_epoch().expect("a checkpoint");
    let right = process.job.with("state get JFK").run().succeeded().stdout;
    assert!(right.lines().count() > 2, "{right}");
    for sst in common::names(&store.db_dir(epoch)).into_iter().filter(|name| name.ends_with(".sst")) {
        let path = store.db_dir(epoch).join(&sst);
        let good = fs::read(&path).expect("reads");
        for at in (0..good.len()).step_by(good.len() / 25) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::remove_file(&path).expect("removed");
            fs::write(&path, &bad).expect("written");
            process.job.with("state scan").run().failed().says(&[sst.as_str(), "damaged"]);
            // One key is found under the checksums of the blocks that it needs, or not at all.
            let ended = process.job.with("state get JFK").run();
            match ended.status.success() {
                true => assert_eq!(ended.stdout, right, "byte {at} of {sst}"),
                false => drop(ended.failed().says(&[sst.as_str(), "damaged"])),
            }
        }
        fs::write(&path, good).expect("written");
    }
    let sst = common::names(&store.db_dir(epoch)).into_iter().find(|name| name.ends_with(".sst")).expect("state");
    let path = store.db_dir(epoch).join(&sst);
    let good = fs::read(&path).expect("reads");
    fs::write(&path, &good[1..]).expect("written");
    process.job.with("state get JFK").run().failed().says(&[&sst, "bytes"]);
    fs::remove_file(&path).expect("removed");
    process.job.with("state get JFK").run().failed().says(&[&sst, "missing"]);
}
