//! How much memory a run takes: in a process of its own, because the greatest resident size is one number per process.

use std::process::Command;

use millstream::bench::memory::{peak_bytes, resident_bytes};

/// Of the bytes resident before and at most while `run` ran, the difference. `None` where the system does not tell.
pub fn growth<T>(run: impl FnOnce() -> T) -> Option<u64> {
    let before = resident_bytes()?;
    run();
    Some(peak_bytes()?.saturating_sub(before))
}

/// Runs this very program with `arguments` and reads the number that it prints.
///
/// # Panics
/// When it fails or prints something else.
pub fn of_child(arguments: &[String]) -> Option<u64> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).args(arguments).output().expect("this program starts again");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_string();
    (!printed.is_empty()).then(|| printed.parse().expect("it prints a number"))
}
