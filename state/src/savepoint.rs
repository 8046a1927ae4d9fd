//! Savepoints: checkpoints that the user owns. Copied out of a job's checkpoints, kept by nobody else, copied in again.
//!
//! A savepoint is a directory of the same form as a checkpoint's, with copies of its own instead of links, and no path in it that
//! leads outside. So it can be moved, copied and packed like any directory. It is complete when its `manifest` is there, which
//! comes last; whatever was interrupted before that is no savepoint, and is never taken for one.
//!
//! **Sinks**: a savepoint is written after the output of its epoch was committed, and so names none: a start from it has nothing to
//! commit, neither again here nor at all on another machine.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::held::{DB, Held};
use crate::manifest::Manifest;
use crate::store::{CheckpointStore, create_dirs, parent, publish_in};
use crate::{Result, StateError};

/// Copies a checkpoint whose output is committed to `dir`, which must not exist; returns the bytes copied. Gives up when `cancelled`.
///
/// # Errors
/// When `dir` exists, a file of the checkpoint is damaged, or something cannot be written. Nothing is left of it then.
pub fn export(checkpoint: &Held, dir: &Path, cancelled: &AtomicBool) -> Result<u64> {
    create_dirs(parent(dir))?;
    fs::create_dir(dir).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => StateError::Exists { path: dir.to_path_buf() },
        _ => StateError::io("create", dir)(error),
    })?;
    let mut manifest = checkpoint.manifest().clone();
    manifest.sinks.iter_mut().for_each(|sink| sink.handles.clear());
    let written = copy_in(checkpoint, &manifest, dir, cancelled);
    if written.is_err() {
        // It is ours: it was made above. What cannot be removed has no manifest, and is no savepoint.
        let _ = fs::remove_dir_all(dir);
    }
    written
}

/// Copies a savepoint into `store`, as the checkpoint that `manifest` says it is.
///
/// # Errors
/// When the savepoint is damaged or something cannot be written. There is no checkpoint then.
pub fn import(savepoint: &Held, manifest: &Manifest, store: &CheckpointStore) -> Result<()> {
    let dir = store.epoch_dir(manifest.epoch);
    // An attempt that was interrupted; there is no manifest in it, or it would have been found.
    if dir.try_exists().map_err(StateError::io("look up", &dir))? {
        fs::remove_dir_all(&dir).map_err(StateError::io("delete", &dir))?;
    }
    fs::create_dir_all(&dir).map_err(StateError::io("create", &dir))?;
    copy_in(savepoint, manifest, &dir, &AtomicBool::new(false)).map(drop)
}

/// Copies the files, makes them durable, and publishes `manifest` last.
fn copy_in(from: &Held, manifest: &Manifest, dir: &Path, cancelled: &AtomicBool) -> Result<u64> {
    let db = dir.join(DB);
    fs::create_dir(&db).map_err(StateError::io("create", &db))?;
    let mut bytes = 0;
    for (number, name) in from.names().enumerate() {
        let path = db.join(name);
        let mut file = File::create_new(&path).map_err(StateError::io("create", &path))?;
        from.read_file(number, |piece| {
            if cancelled.load(Ordering::Relaxed) {
                let source = std::io::Error::new(ErrorKind::Interrupted, "the job ended before it was complete");
                return Err(StateError::Io { action: "write", path: dir.to_path_buf(), source });
            }
            bytes += piece.len() as u64;
            file.write_all(piece).map_err(StateError::io("write", &path))
        })?;
        file.sync_all().map_err(StateError::io("sync", &path))?;
    }
    publish_in(dir, manifest)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash_key;
    use crate::held::MANIFEST;
    use crate::key_group::KEY_GROUPS;
    use crate::keyed::KeyedState;
    use crate::manifest::SinkEntry;
    use crate::manifest::tests::example;
    use crate::rocks::tests::{Disk, OPERATOR};
    use crate::snapshot::State;
    use std::path::PathBuf;

    /// A store with one checkpoint, of epoch 7, in which key `n` has value `n`.
    fn with_checkpoint() -> (Disk, CheckpointStore) {
        let mut disk = Disk::new();
        let mut state = KeyedState::<u64, u64>::default();
        state.track();
        for n in 0..1_000 {
            state.update(hash_key(&n), &n, || n);
        }
        disk.save(&mut state);
        let store = CheckpointStore::new(disk.dir.path().join("checkpoints"));
        fs::create_dir_all(store.epoch_dir(7)).unwrap();
        let mut manifest = example(7);
        manifest.files = disk.db.checkpoint(&store.db_dir(7)).unwrap();
        manifest.sinks =
            vec![SinkEntry { name: "out".into(), kind: "files".into(), handles: vec!["part".into()], digests: None }];
        store.publish(&manifest).unwrap();
        (disk, store)
    }

    fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut todo, mut found) = (vec![dir.to_path_buf()], Vec::new());
        while let Some(next) = todo.pop() {
            for entry in fs::read_dir(&next).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false => found.push((path.strip_prefix(dir).unwrap().to_path_buf(), fs::read(&path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }

    fn count(held: Held) -> usize {
        let readable = held.into_readable().unwrap();
        let reader = KeyedState::<u64, u64>::default().readers().remove(0);
        let mut rows = Vec::new();
        for group in 0..KEY_GROUPS as u16 {
            readable.scan_group(OPERATOR, group, |entry| reader.rows(entry, None, &mut rows)).unwrap();
        }
        rows.iter()
            .for_each(|row| assert_eq!(reader.key_json(row).unwrap().unwrap(), reader.value_json(row).unwrap()));
        rows.len()
    }

    static GO_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_savepoint_outlives_everything_else() {
        let (disk, store) = with_checkpoint();
        let before = files(&store.epoch_dir(7));
        let held = Held::open(&store.epoch_dir(7)).unwrap();
        // The job deletes the checkpoint while it is being copied: it is held.
        store.delete(7).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let (made, moved) = (elsewhere.path().join("new/a"), elsewhere.path().join("b"));
        export(&held, &made, &GO_ON).unwrap();
        fs::rename(&made, &moved).unwrap();
        drop(disk);
        let savepoint = Held::open(&moved).unwrap();
        savepoint.verify().unwrap();
        assert!(savepoint.manifest().sinks[0].handles.is_empty(), "its output is committed");
        let db = |files: &[(PathBuf, Vec<u8>)]| {
            files.iter().filter(|(path, _)| path.starts_with("db")).cloned().collect::<Vec<_>>()
        };
        assert_eq!(db(&files(&moved)), db(&before));
        let here = moved.display().to_string();
        let text = String::from_utf8_lossy(&fs::read(moved.join(MANIFEST)).unwrap()).into_owned();
        assert!(!text.contains(&here) && !text.contains(&store.dir().display().to_string()), "{text}");
        let other = CheckpointStore::new(elsewhere.path().join("others"));
        let manifest = savepoint.manifest().clone();
        fs::create_dir_all(other.db_dir(7)).unwrap();
        import(&savepoint, &manifest, &other).unwrap();
        assert_eq!(other.epochs().unwrap(), [7]);
        fs::remove_dir_all(&moved).unwrap();
        assert_eq!(other.verify(7).unwrap(), manifest);
        assert_eq!(count(Held::open(&other.epoch_dir(7)).unwrap()), 1_000);
    }

    #[test]
    fn reading_changes_nothing_and_survives_the_deletion_of_what_is_read() {
        let (_disk, store) = with_checkpoint();
        let before = files(store.dir());
        let held = Held::open(&store.epoch_dir(7)).unwrap();
        let readable = held.into_readable().unwrap();
        assert_eq!(files(store.dir()), before);
        fs::remove_dir_all(store.dir()).unwrap();
        let mut entries = 0;
        for group in 0..KEY_GROUPS as u16 {
            readable
                .scan_group(OPERATOR, group, |_| {
                    entries += 1;
                    Ok(())
                })
                .unwrap();
        }
        assert!(entries > 100, "{entries}");
        readable.held().verify().unwrap();
    }

    #[test]
    fn nothing_is_written_over_and_nothing_half_is_left() {
        let (_disk, store) = with_checkpoint();
        let held = Held::open(&store.epoch_dir(7)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for taken in [dir.path().to_path_buf(), store.epoch_dir(7)] {
            let before = files(&taken);
            let error = export(&held, &taken, &GO_ON).unwrap_err().to_string();
            assert!(error.contains("exists already"), "{error}");
            assert_eq!(files(&taken), before);
        }
        let to = dir.path().join("savepoint");
        let error = export(&held, &to, &AtomicBool::new(true)).unwrap_err().to_string();
        assert!(error.contains("the job ended"), "{error}");
        assert!(!to.exists());
        // A file that went bad since: the copy is not made.
        let sst = held.names().find(|name| name.ends_with(".sst")).unwrap();
        let path = store.db_dir(7).join(sst);
        let mut bytes = fs::read(&path).unwrap();
        bytes[40] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = export(&held, &to, &GO_ON).unwrap_err().to_string();
        assert!(error.contains(sst) && error.contains("checksum"), "{error}");
        assert!(!to.exists());
    }

    /// As a kill would leave it: cut off after any of its files.
    #[test]
    fn what_was_interrupted_is_no_savepoint() {
        let (disk, store) = with_checkpoint();
        let held = Held::open(&store.epoch_dir(7)).unwrap();
        let whole = disk.dir.path().join("whole");
        export(&held, &whole, &GO_ON).unwrap();
        let all = files(&whole);
        for missing in 0..all.len() {
            let part = disk.dir.path().join(format!("part-{missing}"));
            for (number, (path, bytes)) in all.iter().enumerate() {
                let path = part.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                // The one that is missing, or is not whole.
                match number == missing {
                    true if missing % 2 == 0 => {}
                    true => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                    false => fs::write(path, bytes).unwrap(),
                }
            }
            let found = Held::open(&part).and_then(|held| held.verify());
            assert!(matches!(found, Err(StateError::Damaged { .. })), "{:?}: {found:?}", all[missing].0);
        }
        let error = Held::open(&disk.dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("no such directory"), "{error}");
    }
}
