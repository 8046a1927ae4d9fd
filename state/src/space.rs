//! How much room a file system has, for messages about a full disk.

use std::path::Path;

/// How many bytes may still be written where `path` is or would be; `None` when that cannot be known.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let here = |dir: &Path| dir.as_os_str().is_empty();
    let there = path.ancestors().find(|dir| here(dir) || dir.exists())?;
    free_at(if here(there) { Path::new(".") } else { there })
}

#[cfg(unix)]
fn free_at(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(not(unix))]
fn free_at(_path: &Path) -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_yet_has_the_room_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(&dir.path().join("a/b")).is_some());
        assert!(free_bytes(Path::new("not-there")).is_some());
    }
}
