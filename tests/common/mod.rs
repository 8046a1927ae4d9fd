//! What the integration tests share: examples as processes, the data of `flight_delays`, and what it leaves on disk.

#![allow(dead_code)] // each test file uses its own part of this

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use millstream::state::store::CheckpointStore;

pub const WINDOWS_HEADER: &str = "window_start,window_end,origin,flights,total_delay_min,max_delay_min,delayed_over_15";
pub const LATE_HEADER: &str = "departed_at,scheduled_at,carrier,flight,tailnum,origin,dest,delay_min,distance_mi";

/// Longer than any run takes on a busy machine; a process that is still there then is taken to hang.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The executable of the example `flight_delays`.
pub fn example() -> &'static Path {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| built("flight_delays"))
}

/// The executable of an example, beside which this test stands; built when it is missing or older than its sources.
pub fn built(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let path = profile.join("examples").join(example);
    if is_stale(&path) {
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's directory");
        let name = if name == "debug" { "dev" } else { name };
        let target = profile.parent().expect("a target directory");
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--quiet", "--example", example, "--profile", name, "--target-dir"])
            .arg(target);
        assert!(cargo.status().expect("cargo starts").success(), "the example does not build");
    }
    path
}

/// Cargo writes a list of the sources beside what it builds.
fn is_stale(path: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let (Ok(built), Ok(sources)) = (changed(path), fs::read_to_string(path.with_extension("d"))) else { return true };
    let (_, sources) = sources.split_once(": ").unwrap_or_default();
    sources
        .split_whitespace()
        .any(|source| changed(Path::new(source)).is_ok_and(|changed| changed > built))
}

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)
}

/// The text of a `.gz` file.
pub fn unpack(path: &Path) -> String {
    let mut text = String::new();
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    flate2::read::MultiGzDecoder::new(file)
        .read_to_string(&mut text)
        .expect("a file of text, packed by gzip");
    text
}

/// All departures, the header first.
pub fn departures() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| unpack(&data("departures-2013.csv.gz")))
}

/// The first departures with their header.
pub fn first_departures(records: usize) -> String {
    departures().lines().take(records + 1).flat_map(|line| [line, "\n"]).collect()
}

/// The sorted rows of an expected file.
pub fn expected(name: &str, header: &str) -> Vec<String> {
    let text = unpack(&data(&format!("departures-2013.expected-{name}.csv.gz")));
    let mut rows: Vec<String> = rows_of(name, text.as_bytes(), header).map(str::to_string).collect();
    rows.sort_unstable();
    rows
}

/// The rows of one file, whose header and last newline are checked.
pub fn rows_of<'a>(name: &str, bytes: &'a [u8], header: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(text.ends_with('\n'), "{name} is cut off");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(header), "the header of {name}");
    lines
}

/// What a directory holds; nothing when it does not exist.
pub fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries
        .map(|entry| entry.expect("a directory entry").file_name().into_string().expect("a name in UTF-8"))
        .collect()
}

/// The committed parts in a directory of output, with their content.
pub fn parts(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = names(dir).into_iter().filter(|name| name.ends_with(".csv"));
    names.map(|name| (name.clone(), fs::read(dir.join(name)).expect("a committed part"))).collect()
}

/// The sorted rows of all committed parts in a directory.
pub fn rows(dir: &Path, header: &str) -> Vec<String> {
    let parts = parts(dir);
    let mut rows: Vec<String> =
        parts.iter().flat_map(|(name, bytes)| rows_of(name, bytes, header)).map(str::to_string).collect();
    rows.sort_unstable();
    rows
}

/// Compares sorted rows as multisets, and shows the first differences.
pub fn assert_same(what: &str, got: &[String], want: &[String]) {
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    let (mut left, mut right) = (got.iter().peekable(), want.iter().peekable());
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(a), Some(b)) if a == b => drop((left.next(), right.next())),
            (Some(a), Some(b)) if a < b => extra.extend(left.next()),
            (Some(_), None) => extra.extend(left.next()),
            _ => missing.extend(right.next()),
        }
    }
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}: {} rows instead of {}; {} are missing, such as {:#?}; {} are too many, such as {:#?}",
        got.len(),
        want.len(),
        missing.len(),
        &missing[..missing.len().min(5)],
        extra.len(),
        &extra[..extra.len().min(5)]
    );
}

/// A command line of the example.
#[derive(Clone, Debug)]
pub struct Delays {
    /// What runs it, if it is not started by itself.
    under: Vec<String>,
    program: PathBuf,
    output: PathBuf,
    options: Vec<String>,
}

impl Delays {
    pub fn new(input: &[PathBuf], output: &Path) -> Self {
        Self::of_program(example(), input, output)
    }

    pub fn of_program(program: &Path, input: &[PathBuf], output: &Path) -> Self {
        let mut options = vec!["--output".to_string(), output.display().to_string(), "--input".to_string()];
        options.extend(input.iter().map(|path| path.display().to_string()));
        Delays { under: Vec::new(), program: program.to_path_buf(), output: output.to_path_buf(), options }
    }

    /// The same with further options, separated by spaces. What has a value already gets another one.
    pub fn with(&self, options: &str) -> Self {
        let mut with = self.clone();
        for option in options.split_whitespace().filter(|option| option.starts_with("--")) {
            if let Some(place) = with.options.iter().position(|old| old == option) {
                with.options.drain(place..place + 2);
            }
        }
        with.options.extend(options.split_whitespace().map(str::to_string));
        with
    }

    /// The same, run by another program such as `strace`.
    pub fn under(&self, command: &[String]) -> Self {
        Delays { under: command.to_vec(), ..self.clone() }
    }

    pub fn windows(&self) -> PathBuf {
        self.output.join("windows")
    }

    pub fn late(&self) -> PathBuf {
        self.output.join("late")
    }

    /// Where checkpoints are, unless an option says otherwise.
    pub fn checkpoints(&self) -> CheckpointStore {
        CheckpointStore::new(self.output.join("checkpoints"))
    }

    pub fn newest_epoch(&self) -> Option<u64> {
        self.checkpoints().epochs().expect("a list of checkpoints").last().copied()
    }

    pub fn start(&self) -> Started {
        let (stdout, stderr) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let into = |file: &File| Stdio::from(file.try_clone().expect("a second handle"));
        let mut words = self.under.iter().map(std::ffi::OsStr::new).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(into(&stdout))
            .stderr(into(&stderr));
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        Started { child, command: format!("flight_delays {}", self.options.join(" ")), stdout, stderr }
    }

    /// Runs it to its end.
    pub fn run(&self) -> Ended {
        self.start().end(LIMIT)
    }

    /// Starts it and waits until `ready`, which must come before the process ends.
    pub fn start_until(&self, mut ready: impl FnMut() -> bool) -> Started {
        let (mut started, begin) = (self.start(), Instant::now());
        while !ready() {
            if let Some(ended) = started.ended() {
                panic!("it ended before it was ready: {ended}");
            }
            assert!(begin.elapsed() < LIMIT, "it never was ready: {}", started.command);
            pause(Duration::from_millis(1));
        }
        started
    }
}

/// A process of the example. Killed when dropped, so that failing tests leave none behind.
pub struct Started {
    child: Child,
    command: String,
    stdout: File,
    stderr: File,
}

impl Started {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Looks whether it has ended.
    pub fn ended(&mut self) -> Option<Ended> {
        let status = self.child.try_wait().expect("the state of a child")?;
        Some(self.read(status))
    }

    /// Waits for its end, but not forever.
    pub fn end(mut self, limit: Duration) -> Ended {
        let begin = Instant::now();
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            assert!(begin.elapsed() < limit, "no end after {limit:?}: {}", self.command);
            pause(Duration::from_millis(1));
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Ended {
        self.child.kill().expect("a child may be killed");
        let status = self.child.wait().expect("the state of a child");
        self.read(status)
    }

    /// Sends a signal by its name, such as `INT`.
    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(kill.expect("kill starts").success(), "kill -{name}");
    }

    fn read(&mut self, status: ExitStatus) -> Ended {
        let read = |file: &mut File| {
            let mut text = String::new();
            file.rewind()
                .and_then(|()| file.read_to_string(&mut text))
                .expect("the output of a process, in UTF-8");
            text
        };
        let (stdout, stderr) = (read(&mut self.stdout), read(&mut self.stderr));
        Ended { command: self.command.clone(), status, stdout, stderr }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a process.
#[derive(Debug)]
pub struct Ended {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.status.success() && !self.stderr.contains("panicked"), "it failed: {self}");
        self
    }

    /// It gave up by itself, with a message and without a panic.
    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(self.status.code().is_some_and(|code| code != 0), "it should have failed: {self}");
        assert!(self.stderr.contains("error: ") && !self.stderr.contains("panicked"), "not a clear error: {self}");
        self
    }

    /// Its messages hold all of these.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "it does not say {text:?}: {self}");
        }
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}\nstdout: {}\nstderr: {}", self.command, self.status, self.stdout, self.stderr)
    }
}

#[allow(clippy::disallowed_methods)] // a test that waits for another process
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Copies a directory with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copies");
        }
    }
}

/// Copies a program that is to be run. Another process writes the copy: a program cannot be started while it is open
/// for writing, and what this process has open is also open in every child of another thread until that child has
/// become its own program ("Text file busy").
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-p").args([from, to]).status().expect("cp starts");
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}

/// A number from the environment, such as `MILLSTREAM_TORTURE_COUNT`.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Whether programs and their children can be traced here.
pub fn strace_works() -> bool {
    let mut strace = Command::new("strace");
    let status = strace.args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let works = status.is_ok_and(|status| status.success());
    if !works {
        println!("SKIPPED: no strace, or it may not trace; on Debian: apt-get install strace");
    }
    works
}
