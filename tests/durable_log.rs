//! The durable log in real processes that are killed, on a disk that is full, and in jobs; every check is made from outside.
//!
//! `MILLSTREAM_TORTURE_SEED=1 MILLSTREAM_TORTURE_COUNT=500 cargo test --test durable_log -- --nocapture` makes longer runs; a failure
//! prints its seed.

#![cfg(unix)]

mod common;
mod patience;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use millstream::connectors::log::{Durability, Log, LogError, LogOptions, Receipt, Shard, Start};
use millstream::prelude::*;
use patience::{Random, SOON, effort, lock, ms, sleep, temp, until, within};

fn seed() -> u64 {
    let seed = common::setting("MILLSTREAM_TORTURE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("MILLSTREAM_TORTURE_SEED={seed}");
    seed
}

fn count(usually: u64) -> u64 {
    common::setting("MILLSTREAM_TORTURE_COUNT").unwrap_or(usually * effort())
}

/// This test program once more, as a process that only does `role`.
fn child(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args(["--exact", role, "--nocapture"]).env("MILLSTREAM_LOG_CHILD", dir).stdin(Stdio::null());
    command
}

/// Where a child works; `None` in the test itself, which then has nothing to do.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os("MILLSTREAM_LOG_CHILD").map(PathBuf::from)
}

fn number(name: &str) -> u64 {
    std::env::var(name).expect("a variable").parse().expect("a number")
}

/// Lines of a child's output as they come.
fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let (sender, lines) = mpsc::channel();
    let read = move || stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    std::thread::Builder::new().name("lines".to_string()).spawn(read).expect("a thread");
    lines
}

// ---------------------------------------------------------------------------------------------------------------------
// A process that appends and reshards is killed

const APPENDERS: u64 = 4;

fn key(appender: u64, n: u64) -> String {
    format!("a{appender}-{}", n % 3)
}

/// Appends numbers until it is killed: each of a few threads its own, in order. Whatever is acknowledged is printed.
#[test]
fn child_appends() {
    let Some(dir) = child_dir() else { return };
    let mut random = Random(number("MILLSTREAM_LOG_SEED"));
    let durability = match random.below(3) {
        0 => Durability::SyncedWithin(ms(random.below(20))),
        _ => Durability::Synced,
    };
    let log = Log::open(dir, LogOptions::new().shards(2).durability(durability)).expect("the log opens");
    let mut next = [0; APPENDERS as usize];
    for record in log.reader::<Numbered>(Start::TrimHorizon).expect("a reader").read(usize::MAX).expect("records") {
        let (appender, n, _) = record.value;
        next[appender as usize] = n + 1;
    }
    println!("ready");
    std::thread::scope(|scope| {
        for (appender, next) in next.into_iter().enumerate() {
            let (log, appender) = (&log, appender as u64);
            let mut random = Random(random.0 + appender);
            scope.spawn(move || {
                let mut n = next;
                loop {
                    let batch: Vec<u64> = (n..=n + random.below(5).pow(2)).collect();
                    n += batch.len() as u64;
                    let records = batch.iter().map(|k| (key(appender, *k), (appender, *k, n - 1)));
                    let receipts = log.append_all(records).expect("an append");
                    let lines = batch.iter().zip(receipts);
                    let lines = lines.map(|(n, at)| format!("ack {appender} {n} {} {} end\n", at.shard, at.sequence));
                    let mut out = std::io::stdout().lock();
                    out.write_all(lines.collect::<String>().as_bytes()).and_then(|()| out.flush()).expect("a pipe");
                }
            });
        }
        loop {
            sleep(ms(random.below(10)));
            let mut open: Vec<_> = log.shards().into_iter().filter(|shard| !shard.is_closed()).collect();
            open.sort_by_key(|shard| shard.first_hash);
            let at = random.below(open.len() as u64) as usize;
            if open.len() > 1 && random.below(6) < open.len() as u64 {
                let at = at.min(open.len() - 2);
                log.merge(open[at].id, open[at + 1].id).expect("a merge");
            } else {
                log.split(open[at].id).expect("a split");
            }
        }
    });
}

/// Appender, its number, and the last number of the same call.
type Numbered = (u64, u64, u64);

/// What stands in a log, in its order: where, and with which key.
type Content = Vec<(Receipt, String, Numbered)>;

fn content(log: &Log) -> Content {
    let mut reader = log.reader::<Numbered>(Start::TrimHorizon).expect("a reader");
    let records = reader.read(usize::MAX).expect("records").into_iter();
    let row = |record: LogRecord<Numbered>| {
        let at = Receipt { shard: record.shard, sequence: record.sequence };
        (at, record.key, record.value)
    };
    records.map(row).collect()
}

/// Whether `shard` is `from` or comes of it. Lineages that were split and merged again have very many ways.
fn descends(shards: &[Shard], shard: u32, from: u32) -> bool {
    let (mut seen, mut todo) = (HashSet::new(), vec![shard]);
    while let Some(shard) = todo.pop() {
        if shard == from {
            return true;
        }
        // Parents have smaller numbers.
        todo.extend(shards[shard as usize].parents.iter().filter(|parent| **parent >= from && seen.insert(**parent)));
    }
    false
}

/// Nothing has gaps, nothing is there twice, every key is in order, and parents come before their children.
fn check_content(log: &Log, content: &Content) {
    let shards = log.shards();
    let (mut numbers, mut sequences) = (vec![0; APPENDERS as usize], vec![0; shards.len()]);
    let mut newest: HashMap<&str, (Receipt, u64)> = HashMap::new();
    let mut open_calls = [None; APPENDERS as usize];
    for (at, of_key, (appender, n, last)) in content {
        open_calls[*appender as usize] = (n < last).then_some(last);
        assert_eq!(of_key, &key(*appender, *n), "a record is torn");
        // A batch of one thread goes to several shards, but its records get their places in one go.
        assert_eq!(*n, numbers[*appender as usize], "of appender {appender}, in shard {}", at.shard);
        numbers[*appender as usize] += 1;
        assert_eq!(at.sequence, sequences[at.shard as usize], "of shard {}", at.shard);
        sequences[at.shard as usize] += 1;
        if let Some((before, _)) = newest.insert(of_key, (*at, *n)) {
            assert!(before < *at, "key {of_key} went from {before:?} to {at:?}");
            assert!(descends(&shards, at.shard, before.shard), "key {of_key} went from {before:?} to {at:?}");
        }
    }
    assert_eq!(open_calls, [None; APPENDERS as usize], "a call is there in part");
    for shard in &shards {
        assert_eq!(sequences[shard.id as usize], shard.next, "records of shard {}", shard.id);
    }
}

/// What a child left behind is whole, begins with what was there before, and has all that it acknowledged: returns it, and how much
/// that was.
fn check_after_kill(what: &str, path: &Path, before: &Content, lines: &mpsc::Receiver<String>) -> (Content, usize) {
    let log = Log::open(path, LogOptions::new()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let now = content(&log);
    check_content(&log, &now);
    assert!(now.len() >= before.len() && now[..before.len()] == before[..], "{what}: what was there has changed");
    let there: HashMap<(u64, u64), Receipt> = now.iter().map(|(at, _, (a, n, _))| ((*a, *n), *at)).collect();
    // The last line may be cut off.
    let acknowledged = lines.iter().filter(|line| line.starts_with("ack ") && line.ends_with(" end"));
    let mut count = 0;
    for line in acknowledged {
        let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
        let at = Receipt { shard: fields[2] as u32, sequence: fields[3] };
        assert_eq!(there.get(&(fields[0], fields[1])), Some(&at), "{what}: `{line}` was acknowledged");
        count += 1;
    }
    (now, count)
}

#[test]
fn when_an_appending_process_is_killed_then_nothing_acknowledged_is_lost_and_nothing_is_doubled() {
    let mut random = Random(seed());
    let dir = temp();
    let path = dir.path().join("log");
    let mut content: Content = Vec::new();
    let shards = |content: &Content| content.iter().map(|(at, ..)| at.shard + 1).max().unwrap_or(0);
    let (mut acknowledged, mut round, rounds) = (0, 0, count(12));
    // On a busy machine, or with some seeds, all are killed before they have done much.
    while round < rounds || acknowledged == 0 || shards(&content) <= 2 {
        assert!(round < rounds + 200, "the test has tested something");
        let seed = random.below(u64::MAX >> 33);
        let mut process = child("child_appends", &path);
        let process = process.env("MILLSTREAM_LOG_SEED", seed.to_string()).stdout(Stdio::piped());
        let mut process = process.spawn().expect("a child");
        let lines = lines_of(&mut process);
        // Some are killed while they open the log.
        if random.below(4) > 0 {
            while lines.recv_timeout(SOON).expect("the child is ready") != "ready" {}
        }
        let most = 1 << (8 + random.below(11));
        sleep(Duration::from_micros(random.below(most)));
        process.kill().expect("a child may be killed");
        let status = process.wait().expect("the child's end");
        assert_eq!(status.signal(), Some(9), "round {round}: {status}");
        let (now, more) = check_after_kill(&format!("round {round}"), &path, &content, &lines);
        content = now;
        acknowledged += more;
        round += 1;
    }
    println!("{acknowledged} acknowledged, {} records, {} shards", content.len(), shards(&content));
}

/// Killed when one of its threads makes its `i`th system call that changes files, for many `i`: from the first one on.
#[test]
fn when_a_process_is_killed_at_any_system_call_then_the_log_opens_and_has_what_was_acknowledged() {
    if !common::strace_works() {
        return;
    }
    let calls = "write,pwrite64,fdatasync,fsync,rename,unlink,mkdir,ftruncate";
    let mut random = Random(seed());
    let (mut acknowledged, mut records) = (0, 0);
    let rounds = count(15);
    for round in 0..rounds {
        // All of the first 300, or a part of them, evenly spread.
        let call = 1 + (300 * round / rounds + random.below(20)) % 300;
        let dir = temp();
        let path = dir.path().join("log");
        let program = child("child_appends", &path);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
        traced.args(["-e", &format!("inject={calls}:signal=KILL:when={call}")]);
        traced
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        traced.env("MILLSTREAM_LOG_CHILD", &path).env("MILLSTREAM_LOG_SEED", round.to_string());
        let mut traced = traced.spawn().expect("strace starts");
        let lines = lines_of(&mut traced);
        let status = traced.wait().expect("the end of strace");
        assert_eq!(status.signal(), Some(9), "at call {call}: {status}");
        let (content, more) = check_after_kill(&format!("killed at call {call}"), &path, &Vec::new(), &lines);
        records += content.len();
        acknowledged += more;
    }
    println!("{acknowledged} acknowledged, {records} records in {rounds} logs");
    assert!(records > 0, "the test has tested something");
}

/// Appends without waiting for the disk, syncs, appends once more and closes the log.
#[test]
fn child_syncs_later() {
    let Some(dir) = child_dir() else { return };
    let within = Durability::SyncedWithin(Duration::from_secs(3600));
    let log = Log::open(dir, LogOptions::new().durability(within)).expect("the log opens");
    // In one write, so that it is one line of a trace.
    let say = |what: &str| std::io::stderr().write_all(format!("MARK {what}.").as_bytes()).expect("a pipe");
    say("opened");
    log.append("k", &1).expect("an append");
    say("appended");
    log.sync().expect("a sync");
    say("synced");
    log.append("k", &2).expect("an append");
    say("appended");
    drop(log);
    say("closed");
}

#[test]
fn what_is_synced_later_is_synced_when_it_is_asked_for_and_at_the_end() {
    if !common::strace_works() {
        return;
    }
    let dir = temp();
    let (path, trace) = (dir.path().join("log"), dir.path().join("trace"));
    let program = child("child_syncs_later", &path);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", "trace=write,fdatasync,fsync", "-o"]).arg(&trace);
    traced.arg(program.get_program()).args(program.get_args()).env("MILLSTREAM_LOG_CHILD", &path);
    let output = traced.stdin(Stdio::null()).output().expect("strace starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(trace).expect("a trace");
    let mut steps: Vec<(&str, bool)> = Vec::new();
    for line in text.lines() {
        if let Some((_, mark)) = line.split_once("MARK ") {
            steps.push((mark.split('.').next().unwrap_or_default(), false));
        } else if line.contains("sync(")
            && let Some((_, synced)) = steps.last_mut()
        {
            *synced = true;
        }
    }
    let expected = [("opened", false), ("appended", true), ("synced", false), ("appended", true), ("closed", false)];
    assert_eq!(steps, expected, "after which mark it was synced:\n{text}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Writes fail

/// Appends until the system refuses to write, and says what it was told.
#[test]
fn child_fills_the_disk() {
    let Some(dir) = child_dir() else { return };
    let log = Log::open(dir, LogOptions::new()).expect("the log opens");
    let mut reader = log.reader::<(u64, String)>(Start::Latest).expect("a reader");
    let mut n = 0;
    let error = loop {
        match log.append("k", &(n, "x".repeat(20_000))) {
            Ok(_) => n += 1,
            Err(error) => break error,
        }
        assert!(n < 10_000, "no write failed");
    };
    assert!(matches!(error, LogError::Failed { .. }), "{error:?}");
    let again = log.append("k", &(0, String::new())).expect_err("nothing more is taken");
    assert!(matches!(again, LogError::Failed { .. }), "{again:?}");
    assert!(matches!(log.split(0), Err(LogError::Failed { .. })));
    assert!(matches!(log.check(), Err(LogError::Failed { .. })));
    // Reading goes on, up to what was acknowledged.
    assert_eq!(reader.read(usize::MAX).expect("records").len(), n as usize);
    let waited = reader.wait(1, ms(50)).expect_err("there will be no more");
    println!("\nacknowledged {n}\nsaid {}", Error::from(waited).to_string().replace('\n', " "));
}

#[test]
fn when_a_write_fails_then_nothing_more_is_taken_and_a_new_start_has_what_was_acknowledged() {
    let dir = temp();
    let path = dir.path().join("log");
    drop(Log::open(&path, LogOptions::new()).expect("a log"));
    // The system refuses to make files larger than this, as if the disk were full. In blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -f 2000; exec \"$@\"";
    let program = child("child_fills_the_disk", &path);
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(program.get_program()).args(program.get_args());
    shell.env("MILLSTREAM_LOG_CHILD", &path).stdin(Stdio::null());
    let output = shell.output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = |what: &str| text.lines().find_map(|line| line.strip_prefix(what).map(str::to_string));
    let (Some(n), Some(message)) = (said("acknowledged "), said("said ")) else {
        panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    let n: usize = n.parse().expect("a number");
    assert!(n > 0, "{text}");
    assert!(
        message.contains("takes no more records since a write failed") && message.contains("open the log again"),
        "{message}"
    );

    let log = Log::open(&path, LogOptions::new()).expect("the log opens again");
    let records = log
        .reader::<(u64, String)>(Start::TrimHorizon)
        .expect("a reader")
        .read(usize::MAX)
        .expect("records");
    let found = records.into_iter().map(|record| record.value.0);
    // The one that failed may be there or not.
    let found: Vec<u64> = found.collect();
    assert!(found.len() == n || found.len() == n + 1, "{} instead of {n}", found.len());
    assert!(found.into_iter().eq(0..log.shards()[0].next));
    log.append("k", &(0, String::new())).expect("it takes records again");
}

// ---------------------------------------------------------------------------------------------------------------------
// The example: a server whose input is recorded

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(output: &Path, workers: u64) -> Server {
        let mut command = Command::new(common::built("sensor_server"));
        command.args(["--listen", "127.0.0.1:0", "--workers", &workers.to_string(), "--output"]).arg(output);
        command.args(["--checkpoint-interval", "20ms"]).stdin(Stdio::null());
        let log = std::fs::File::options().create(true).append(true).open(output.with_extension("stderr"));
        command.stdout(Stdio::piped()).stderr(log.expect("a file"));
        let mut process = command.spawn().expect("the example starts");
        let lines = lines_of(&mut process);
        loop {
            let line = lines.recv_timeout(SOON).expect("the server says where it listens");
            if let Some(address) = line.strip_prefix("listening on ") {
                return Server { process, address: address.to_string() };
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends readings of one sensor until the server is gone or `enough`; returns up to which one they were acknowledged, and sent.
fn client(address: &str, sensor: u64, first: u64, enough: &AtomicBool) -> (u64, u64) {
    let (mut acknowledged, mut next) = (first, first);
    let Ok(mut stream) = TcpStream::connect(address) else { return (acknowledged, next) };
    let Ok(mut answers) = stream.try_clone().map(BufReader::new) else { return (acknowledged, next) };
    while !enough.load(Ordering::Relaxed) {
        // A few at a time are on their way.
        let group: String = (next..next + 5).map(|n| format!("s{sensor} {n}\n")).collect();
        next += 5;
        if stream.write_all(group.as_bytes()).is_err() {
            break;
        }
        while acknowledged < next {
            let mut answer = String::new();
            match answers.read_line(&mut answer) {
                Ok(n) if n > 0 => assert_eq!(answer, "ok\n"),
                _ => return (acknowledged, next),
            }
            acknowledged += 1;
        }
    }
    (acknowledged, next)
}

#[test]
fn when_a_server_is_killed_then_every_reading_that_it_acknowledged_is_counted_once() {
    const SENSORS: u64 = 3;
    let mut random = Random(seed());
    let dir = temp();
    let output = dir.path().join("out");
    std::fs::create_dir_all(&output).expect("a directory");
    // Per sensor the ranges that were acknowledged, and what was sent at all.
    let mut acknowledged: Vec<Vec<std::ops::Range<u64>>> = vec![Vec::new(); SENSORS as usize];
    let mut next = vec![0; SENSORS as usize];
    let rounds = count(6);
    for round in 0..=rounds {
        let mut server = Server::start(&output, 1 + random.below(3));
        let enough = AtomicBool::new(false);
        let address = server.address.clone();
        std::thread::scope(|scope| {
            let (address, enough, next) = (&address, &enough, &next);
            let clients =
                (0..SENSORS).map(|sensor| scope.spawn(move || client(address, sensor, next[sensor as usize], enough)));
            let clients: Vec<_> = clients.collect();
            sleep(ms(20 + random.below(300)));
            if round < rounds {
                server.process.kill().expect("a child may be killed");
            } else {
                enough.store(true, Ordering::Relaxed);
            }
            clients.into_iter().map(|client| client.join().expect("a client")).collect::<Vec<_>>()
        })
        .into_iter()
        .enumerate()
        .for_each(|(sensor, (until, sent))| {
            acknowledged[sensor].push(next[sensor]..until);
            // What was sent and not acknowledged is not sent again: it may have been recorded.
            next[sensor] = sent;
        });
        if round < rounds {
            server.process.wait().expect("the server's end");
            continue;
        }
        let stop = Command::new("kill").args(["-TERM", &server.process.id().to_string()]).status();
        assert!(stop.expect("kill starts").success());
        assert!(server.process.wait().expect("the server's end").success(), "it stops with a checkpoint");
    }

    let mut rows: BTreeMap<String, Vec<(u64, i64, i64)>> = BTreeMap::new();
    for row in common::rows(&output.join("totals"), "sensor,value,readings,sum") {
        let fields: Vec<&str> = row.split(',').collect();
        let number = |at: usize| fields[at].parse::<i64>().expect("a number");
        rows.entry(fields[0].to_string()).or_default().push((number(2) as u64, number(1), number(3)));
    }
    let mut all = 0;
    for sensor in 0..SENSORS {
        let of = rows.entry(format!("s{sensor}")).or_default();
        of.sort_unstable();
        let mut expected_sum = 0;
        let mut last = -1;
        for (n, (readings, value, sum)) in of.iter().enumerate() {
            assert_eq!(*readings, n as u64 + 1, "readings of sensor {sensor} are counted one by one");
            expected_sum += value;
            assert_eq!(*sum, expected_sum, "after reading {value} of sensor {sensor}");
            assert!(*value > last, "reading {value} of sensor {sensor} comes after {last}");
            last = *value;
        }
        let counted: HashSet<u64> = of.iter().map(|(_, value, _)| *value as u64).collect();
        for n in acknowledged[sensor as usize].iter().cloned().flatten() {
            assert!(counted.contains(&n), "reading {n} of sensor {sensor} was acknowledged and is not counted");
            all += 1;
        }
    }
    println!("{all} acknowledged in {} starts", rounds + 1);
    assert!(all > 100, "the test has tested something");
}

// ---------------------------------------------------------------------------------------------------------------------
// Two jobs with a log between them

/// Key and number.
type Event = (String, u64);

/// Numbers per key, into the log. Dies after `dies` records, if it does.
fn producer(dir: &Path, log: &Log, count: u64, dies: u64) -> Job {
    let job = Job::new("producer").workers(2).checkpoint_dir(dir.join("producer")).checkpoint_every(ms(5));
    let left = Arc::new(AtomicU64::new(dies));
    job.source(
        from_iter(move || (0..count).map(|n| (format!("k{}", n % 7), n))),
        Watermarks::none(|_: &Event| EventTime::EPOCH),
    )
    .name("numbers")
    .key_by(|(key, _)| key.clone())
    .fold(0, |last, (_, n)| *last = *n)
    .name("last")
    .inspect(move |_| {
        sleep(Duration::from_micros(5));
        assert!(left.fetch_sub(1, Ordering::Relaxed) > 0, "planned death");
    })
    .sink(log.sink("numbers", |(key, _): &Event| key.clone()))
    .name("log");
    job
}

/// Counts per key what is in the log, and checks that each key is in order.
fn consumer(dir: &Path, log: &Log, results: &Collected<(String, (u64, u64))>) -> Job {
    let job = Job::new("consumer").workers(2).checkpoint_dir(dir.join("consumer")).checkpoint_every(ms(5));
    job.source(log.source::<Event>().lanes(3), Watermarks::none(|record: &LogRecord<Event>| record.appended))
        .name("log")
        .key_by(|record| record.value.0.clone())
        .fold((0, 0), |(count, last), record| {
            assert!(*count == 0 || *last < record.value.1, "{} after {last}", record.value.1);
            *count += 1;
            *last = record.value.1;
        })
        .name("counts")
        .sink(results.sink())
        .name("out");
    job
}

#[test]
fn two_jobs_with_a_log_between_them_lose_and_double_nothing_while_it_is_resharded() {
    const COUNT: u64 = 20_000;
    let seed = seed();
    let mut random = Random(seed);
    let dir = temp();
    let results = Collected::new();
    let log = Log::open(dir.path().join("log"), LogOptions::new().shards(2)).expect("a log");
    let (done, problem) = (AtomicBool::new(false), std::sync::Mutex::new(None));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(seed + 1);
            while !done.load(Ordering::Relaxed) {
                let mut open: Vec<_> = log.shards().into_iter().filter(|shard| !shard.is_closed()).collect();
                open.sort_by_key(|shard| shard.first_hash);
                let at = random.below(open.len() as u64) as usize;
                let changed = match open.len() {
                    1..5 => log.split(open[at].id).map(drop),
                    _ => log.merge(open[at.min(open.len() - 2)].id, open[at.min(open.len() - 2) + 1].id).map(drop),
                };
                if let Err(error) = changed {
                    lock(&problem).get_or_insert(error);
                }
                sleep(ms(random.below(30)));
            }
        });
        let consuming = scope.spawn(|| {
            let mut random = Random(seed + 2);
            // Stopped again and again, gently or not, until everything was seen.
            loop {
                let handle = consumer(dir.path(), &log, &results).start().expect("the consumer starts");
                let end = done.load(Ordering::Relaxed);
                if end {
                    until("the consumer has counted everything", || {
                        let counted: u64 = last_counts(&results).values().map(|(count, _)| count).sum();
                        counted == COUNT
                    });
                } else {
                    sleep(ms(10 + random.below(150)));
                }
                let how = if random.below(2) == 0 { StopMode::Now } else { StopMode::WithCheckpoint };
                handle.stop(how);
                within(handle, SOON).expect("the consumer stops");
                if end {
                    return;
                }
            }
        });
        let mut deaths = 0;
        loop {
            let dies = if deaths < 4 { 500 + random.below(COUNT / 3) } else { u64::MAX };
            match within(producer(dir.path(), &log, COUNT, dies).start().expect("the producer starts"), SOON) {
                Ok(_) => break,
                Err(error) => assert!(error.to_string().contains("planned death"), "{error}"),
            }
            deaths += 1;
        }
        done.store(true, Ordering::Relaxed);
        assert!(deaths > 0, "the test has tested something");
        consuming.join().expect("the consumer");
    });
    assert!(lock(&problem).is_none(), "{:?}", lock(&problem));
    // One row per record and key, each once.
    let mut rows: Vec<_> = results.values();
    rows.sort_unstable();
    let mut expected: Vec<_> = (0..COUNT).map(|n| (format!("k{}", n % 7), (n / 7 + 1, n))).collect();
    expected.sort_unstable();
    assert!(rows == expected, "{} rows instead of {}", rows.len(), expected.len());
}

/// A replay that began before the horizon waited for ever for records that could not come.
#[test]
fn a_replay_of_what_has_expired_says_so() {
    let (dir, results) = (temp(), Collected::new());
    let log = Log::open(dir.path().join("log"), LogOptions::new().keep_bytes(1 << 20)).expect("a log");
    let event = |n: u64| ("k", (format!("k{}", n % 7), n));
    log.append_all((0..100).map(event)).expect("appends");
    let handle = consumer(dir.path(), &log, &results).start().expect("starts");
    until("the consumer has counted everything", || results.values().len() == 100);
    handle.stop(StopMode::WithCheckpoint);
    within(handle, SOON).expect("stops");
    let replay = |results: &Collected<_>| {
        let (job, (sender, report)) = (consumer(dir.path(), &log, results), mpsc::channel());
        let run = move || {
            let report = job.replay(&millstream::replay::Replay::from_checkpoint(0).discard());
            // Whoever asked has given up, and says so.
            let _ = sender.send(report);
        };
        std::thread::Builder::new().name("replay".into()).spawn(run).expect("a thread");
        report.recv_timeout(SOON).expect("a replay ends")
    };
    replay(&results).expect("all is there");

    let large = |n: u64| ("k", ("x".repeat(60_000), n));
    log.append_all((100..140).map(large)).expect("appends more than is kept");
    log.retain().expect("lets the old ones go");
    let error = replay(&results).expect_err("what came first has expired").to_string();
    assert!(
        error.contains("has no more: what it had may have expired; in the run that is replayed it gave"),
        "{error}"
    );
}

fn last_counts(results: &Collected<(String, (u64, u64))>) -> BTreeMap<String, (u64, u64)> {
    let mut last = BTreeMap::new();
    for (key, count) in results.values() {
        let newest = last.entry(key).or_insert(count);
        *newest = count.max(*newest);
    }
    last
}
