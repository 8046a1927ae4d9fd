//! Where jobs under test keep their checkpoints. A test starts a job many times, and each start makes and removes dozens of
//! small files: on a disk that takes longer than all the rest. They take a few hundred kilobytes each.

use std::path::Path;

use millstream_state::space::free_bytes;
use tempfile::TempDir;

/// Containers often have no more than 64 MiB there.
const ROOM: u64 = 1 << 30;

/// So that it is clear whose they are if a test was killed.
const PREFIX: &str = "millstream-";

/// A new directory: in memory where the system has a place for that (`/dev/shm` on Linux) with room to spare, else where all
/// temporary files are. Whoever sets `TMPDIR` gets it there.
pub(crate) fn scratch() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if std::env::var_os("TMPDIR").is_none() && memory.is_dir() && free_bytes(memory).is_some_and(|free| free > ROOM) {
        // It may be read-only.
        if let Ok(dir) = tempfile::Builder::new().prefix(PREFIX).tempdir_in(memory) {
            return Ok(dir);
        }
    }
    tempfile::Builder::new().prefix(PREFIX).tempdir()
}
