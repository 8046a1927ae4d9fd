//! What tests of running jobs share: waiting with a limit, temporary directories, and random numbers by seed.

#![allow(dead_code)] // each test file uses its own part of this

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use millstream::error::Result;
use millstream::prelude::*;

/// Waits without a busy loop; on a test's own thread or in user code that is slow on purpose.
#[allow(clippy::disallowed_methods)] // slow user code is what is tested
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How long a job gets that has nothing to wait for. Generous: other tests run beside it.
pub const SOON: Duration = Duration::from_secs(30);

/// The result of a job that must end within `limit`. A job that hangs is named by what it hangs on.
pub fn within(handle: JobHandle, limit: Duration) -> Result<Summary> {
    if !handle.wait_for(limit) {
        let status = handle.status();
        panic!("no end within {limit:?}: {}; {status:?}", status.who_holds(u64::MAX));
    }
    handle.wait()
}

/// Waits until `done`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        sleep(ms(1));
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory for the test")
}

/// Every file and directory below `dir`, with what files contain.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("lists") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path.clone());
                files.insert(path, Vec::new());
            } else {
                let content = fs::read(&path).expect("reads");
                files.insert(path, content);
            }
        }
    }
    files
}

/// As `tree`, without the content of locks: who had one last may change.
pub fn tree_but_locks(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = tree(dir);
    let locks = files.iter_mut().filter(|(path, _)| path.ends_with(".millstream-lock"));
    locks.for_each(|(_, content)| content.clear());
    files
}

/// How much more than usual to do, on another seed: `MILLSTREAM_EFFORT=20 cargo test --test running`.
pub fn effort() -> u64 {
    std::env::var("MILLSTREAM_EFFORT").map_or(1, |text| text.parse().expect("a number"))
}

/// A small random number generator, so that a seed is all it takes to repeat a run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
