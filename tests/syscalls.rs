//! What the kernel sees of a job, by `strace`: everything is on disk before a manifest vouches for it, and a job that is killed at any
//! system call of a start, a checkpoint, a commit or a deletion has its newest checkpoint whole and loses nothing.
//!
//! `MILLSTREAM_TORTURE_SEED` and `MILLSTREAM_TORTURE_COUNT` repeat a run or make a longer one. Without `strace` these tests are
//! skipped, and say so.

#![cfg(target_os = "linux")]

mod common;
mod patience;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use common::{Delays, LATE_HEADER, WINDOWS_HEADER, setting, strace_works};
use millstream::state::checkpoint::Health;
use patience::Random;

/// For some seconds, with all checkpoints kept: traced, and with a disk that others use, one may take half a second.
const SLOWLY: &str = "--rate 3000 --checkpoint-interval 100ms --retain 100";

fn input(dir: &Path, records: usize) -> PathBuf {
    let path = dir.join("departures.csv");
    fs::write(&path, common::first_departures(records)).expect("writes");
    path
}

fn rows(of: &Delays) -> (Vec<String>, Vec<String>) {
    (common::rows(&of.windows(), WINDOWS_HEADER), common::rows(&of.late(), LATE_HEADER))
}

/// What a trace says of files: a line for each call that ended well, in the order in which they ended.
fn calls(trace: &str) -> Vec<(String, String)> {
    let mut open: HashMap<&str, String> = HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((process, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        // A call of one thread may be told in two parts, with those of others in between.
        let whole = if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            open.insert(process, begun.to_string());
            continue;
        } else if let Some((_, end)) = rest.split_once(" resumed>") {
            open.remove(process).unwrap_or_default() + end
        } else {
            rest.to_string()
        };
        if let Some((call, arguments)) = whole.split_once('(')
            // In between it is filled up to a column.
            && let Some((arguments, result)) = arguments.rsplit_once(" = ")
            && result.trim() == "0"
        {
            calls.push((call.to_string(), arguments.trim_end().to_string()));
        }
    }
    calls
}

/// Runs a job to its end; what it synced and renamed, in order.
fn traced(delays: &Delays, dir: &Path) -> Vec<(String, String)> {
    let trace = dir.join("trace");
    let mut strace = vec!["strace".to_string(), "-f".into(), "-y".into(), "-o".into(), trace.display().to_string()];
    strace.extend(["-e".into(), "trace=fsync,fdatasync,rename,renameat,renameat2".into()]);
    delays.under(&strace).run().succeeded();
    calls(&fs::read_to_string(trace).expect("a trace"))
}

/// The path of a file that was synced: of `5</some/path>)`.
fn synced(arguments: &str) -> Option<PathBuf> {
    let path = arguments.split_once('<')?.1;
    Some(path.split_once(">)")?.0.into())
}

/// The path that a file was given by a rename: the second in quotes.
fn renamed(arguments: &str) -> Option<PathBuf> {
    arguments.split('"').nth(3).map(Into::into)
}

#[test]
fn everything_is_on_disk_before_a_manifest_names_it() {
    if !strace_works() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // A path as the kernel has it.
    let dir = dir.path().canonicalize().expect("a path");
    let delays = Delays::new(&[input(&dir, 12_000)], &dir.join("new/out")).with(SLOWLY).with("--workers 2");
    let calls = traced(&delays, &dir);
    let store = delays.checkpoints();
    // When each file and directory was synced, when manifests got their names, and when output did.
    let mut synced_at: BTreeMap<PathBuf, BTreeSet<usize>> = BTreeMap::new();
    let (mut published, mut committed) = (BTreeMap::new(), BTreeMap::new());
    for (number, (call, arguments)) in calls.iter().enumerate() {
        if call.ends_with("sync") {
            synced_at.entry(synced(arguments).expect("a path")).or_default().insert(number);
        } else if let Some(to) = renamed(arguments) {
            if to.ends_with("manifest") {
                published.insert(to, number);
            } else if to.extension().is_some_and(|extension| extension == "csv") {
                committed.insert(to, number);
            }
        }
    }
    let must = |path: &Path, between: std::ops::Range<usize>, what: &str| {
        let times = synced_at.get(path).cloned().unwrap_or_default();
        assert!(times.range(between.clone()).next().is_some(), "{} was synced at {times:?}: {what}", path.display());
    };
    let epochs = store.epochs().expect("lists");
    assert!(epochs.len() > 3 && published.len() >= epochs.len(), "{epochs:?} {:?}", published.keys());
    let first = *published.values().min().expect("a checkpoint");
    for made in ["", "new", "new/out"] {
        must(&dir.join(made), 0..first, "a directory in which one was made");
    }
    let (mut files, mut seen, mut last) = (0, BTreeSet::new(), 0);
    for epoch in epochs {
        let manifest = store.manifest(epoch).expect("a manifest");
        let when = published[&store.manifest_path(epoch)];
        let (db, own) = (store.db_dir(epoch), store.epoch_dir(epoch));
        let what = format!("{last} published the one before, {when} {epoch}");
        for file in &manifest.files {
            // An SST file is the same in all checkpoints: synced once, under the name that it had first.
            if seen.insert(file.name.clone()) || !file.name.ends_with(".sst") {
                must(&db.join(&file.name), 0..when, &what);
                files += 1;
            }
        }
        must(&own.join("manifest.draft"), last..when, &what);
        [&db, &own, &dir.join("new/out/checkpoints")]
            .into_iter()
            .for_each(|dir| must(dir, last..when, &what));
        let mut first_commit = calls.len();
        for (sink, output) in manifest.sinks.iter().map(|sink| (sink, dir.join("new/out").join(&sink.name))) {
            for handle in &sink.handles {
                must(&output.join(handle), last..when, &what);
                must(&output, last..when, &what);
                let visible = output.join(handle.split_once(".pending-").expect("a pending part").0);
                let commit = committed[&visible];
                assert!(commit > when, "{} was committed before its manifest", visible.display());
                let noted = *synced_at[&own].range(commit..).next().expect("a note that all is committed");
                must(&output, commit..noted, "the directory, before it is noted that the part has its name");
                first_commit = first_commit.min(commit);
                files += 1;
            }
        }
        must(&own, when..first_commit, "the name of the manifest, before output is committed");
        last = when;
    }
    assert!(files > 20, "only {files} files");
}

#[test]
fn a_savepoint_is_on_disk_before_a_start_from_it_counts_as_a_checkpoint() {
    if !strace_works() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().canonicalize().expect("a path");
    let input = input(&dir, 12_000);
    let first = Delays::new(std::slice::from_ref(&input), &dir.join("first"));
    first.with(SLOWLY).run().succeeded();
    let epoch = first.checkpoints().epochs().expect("lists")[2];
    let savepoint = first.checkpoints().epoch_dir(epoch);

    let options = format!("--retain 100 --from-savepoint {}", savepoint.display());
    let second = Delays::new(&[input], &dir.join("second")).with(&options);
    let calls = traced(&second, &dir);
    let store = second.checkpoints();
    let is_its_name =
        |(call, to): &(String, String)| call.starts_with("rename") && renamed(to) == Some(store.manifest_path(epoch));
    let when = calls.iter().position(is_its_name).expect("it became a checkpoint");
    let synced_by = |calls: &[(String, String)]| -> BTreeSet<PathBuf> {
        calls.iter().filter(|(call, _)| call.ends_with("sync")).filter_map(|(_, of)| synced(of)).collect()
    };
    let (before, after) = calls.split_at(when);
    let (before, after) = (synced_by(before), synced_by(after));
    let (db, own) = (store.db_dir(epoch), store.epoch_dir(epoch));
    let files = store.manifest(epoch).expect("a manifest").files;
    let files = files.iter().map(|file| db.join(&file.name));
    for path in files.chain([db.clone(), own.clone(), own.join("manifest.draft"), dir.join("second/checkpoints")]) {
        assert!(before.contains(&path), "{} was not synced in time", path.display());
    }
    assert!(after.contains(&own), "the name of the manifest was not synced");
}

/// System calls that change what is on disk.
const CALLS: [&str; 12] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "link",
    "unlink",
    "unlinkat",
    "mkdir",
    "ftruncate",
    "openat",
    "rmdir",
];

#[test]
fn a_job_killed_at_any_system_call_has_its_checkpoint_whole_and_loses_nothing() {
    if !strace_works() {
        return;
    }
    let (seed, count) =
        (setting("MILLSTREAM_TORTURE_SEED").unwrap_or(1), setting("MILLSTREAM_TORTURE_COUNT").unwrap_or(40));
    let mut random = Random(seed);
    let dir = tempfile::tempdir().expect("a directory");
    let input = input(dir.path(), 6_000);
    let whole = Delays::new(std::slice::from_ref(&input), &dir.path().join("whole"));
    whole.run().succeeded();
    let expected = rows(&whole);

    let (mut jobs, mut kills) = (0, BTreeMap::<&str, u64>::new());
    let mut delays = whole;
    let mut newest = None;
    let mut fresh = true;
    while kills.values().sum::<u64>() < count {
        if fresh {
            jobs += 1;
            delays = Delays::new(std::slice::from_ref(&input), &dir.path().join(format!("job-{jobs}")));
            (newest, fresh) = (None, false);
        }
        let call = CALLS[random.below(CALLS.len() as u64) as usize];
        // The first calls are those of the start; the pattern of a checkpoint repeats behind them.
        let when = if random.below(2) == 0 { 1 + random.below(12) } else { 1 + random.below(60) };
        let options = format!(
            "--workers {} --retain {} --checkpoint-interval 30ms --rate 12000",
            1 + random.below(3),
            1 + random.below(3)
        );
        let story = format!("seed {seed}, job {jobs}: {call} number {when}, {options}");
        let inject = format!("inject={call}:signal=KILL:when={when}");
        let strace = ["strace", "-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
        let ended = delays.with(&options).under(&strace.map(String::from)).run();
        if ended.status.success() {
            fresh = true;
            assert!(rows(&delays) == expected, "{story}: {ended}");
            continue;
        }
        assert!(ended.status.signal() == Some(9) || ended.status.code() == Some(137), "{story}: {ended}");
        *kills.entry(call).or_default() += 1;
        let store = delays.checkpoints();
        for found in store.survey().expect("a survey") {
            assert!(matches!(found.health, Health::Intact { .. }), "{story}: {found:?}");
        }
        let now = delays.newest_epoch();
        assert!(now >= newest, "{story}: {now:?} after {newest:?}");
        newest = now;
    }
    delays.run().succeeded();
    assert!(rows(&delays) == expected, "seed {seed}");
    println!("{jobs} jobs, kills by system call: {kills:?}");
}
