//! Checkpoints that rot: whatever bit, end or file of one is lost, it is named before anything comes out, and the one before it
//! restores. `MILLSTREAM_TORTURE_COUNT=1000 cargo test --release --test damage` tries a thousand; a failure prints its seed.

#![cfg(unix)]

mod common;
mod patience;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Delays, LATE_HEADER, WINDOWS_HEADER, copy, pause, setting};
use millstream::state::checkpoint::Health;
use millstream::state::manifest::STRETCH;
use patience::Random;

/// Every file that a checkpoint consists of.
fn files_of(delays: &Delays, epoch: u64) -> Vec<PathBuf> {
    let store = delays.checkpoints();
    let manifest = store.manifest(epoch).expect("a manifest");
    let mut files: Vec<PathBuf> = manifest.files.iter().map(|file| store.db_dir(epoch).join(&file.name)).collect();
    files.push(store.manifest_path(epoch));
    files
}

/// What is done to a file; and where, if that can be found.
fn spoil(path: &Path, random: &mut Random) -> (String, Option<u64>) {
    let mut bytes = fs::read(path).expect("reads");
    let length = bytes.len() as u64;
    match random.below(10) {
        0 => {
            fs::remove_file(path).expect("goes");
            ("removed".into(), None)
        }
        1 | 2 if length > 0 => {
            let left = random.below(length);
            bytes.truncate(left as usize);
            fs::write(path, bytes).expect("writes");
            (format!("cut to {left} of {length} bytes"), None)
        }
        _ if length == 0 => {
            fs::write(path, [0]).expect("writes");
            ("a byte more".into(), None)
        }
        _ => {
            let bit = random.below(length * 8);
            bytes[bit as usize / 8] ^= 1 << (bit % 8);
            fs::write(path, bytes).expect("writes");
            (format!("bit {bit} flipped"), Some(bit / 8))
        }
    }
}

#[test]
fn damage_is_named_before_anything_comes_out_and_the_checkpoint_before_restores() {
    let (seed, count) =
        (setting("MILLSTREAM_TORTURE_SEED").unwrap_or(1), setting("MILLSTREAM_TORTURE_COUNT").unwrap_or(60));
    let mut random = Random(seed);
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("departures.csv");
    fs::write(&input, common::first_departures(12_000)).expect("writes");
    let whole = Delays::new(std::slice::from_ref(&input), &dir.path().join("whole"));
    whole.run().succeeded();
    let rows = |of: &Delays| (common::rows(&of.windows(), WINDOWS_HEADER), common::rows(&of.late(), LATE_HEADER));
    let expected = rows(&whole);

    // A run that was killed half way, with a few checkpoints.
    let sound = dir.path().join("sound");
    let delays = Delays::new(std::slice::from_ref(&input), &sound)
        .with("--rate 3000 --checkpoint-interval 60ms --retain 4 --workers 2");
    let running = delays.start_until(|| delays.checkpoints().epochs().expect("lists").len() == 4);
    pause(Duration::from_millis(100));
    running.kill();
    let newest = delays.newest_epoch().expect("a checkpoint");

    let spoiled = dir.path().join("spoiled");
    let delays = Delays::new(&[input], &spoiled).with("--checkpoint-interval 60ms --retain 4 --workers 2");
    for case in 0..count {
        copy(&sound, &spoiled);
        let files = files_of(&delays, newest);
        // Manifests are as likely as all else together.
        let file = if random.below(2) == 0 { files.len() - 1 } else { random.below(files.len() as u64) as usize };
        let path = &files[file];
        let before = fs::read(path).expect("reads");
        let (what, place) = spoil(path, &mut random);
        let story = format!("seed {seed}, case {case}: {}: {what}", path.display());
        let store = delays.checkpoints();
        let is_manifest = path.ends_with("manifest");
        // Nothing depends on the case of the digits of its own checksum.
        let same = is_manifest
            && fs::read(path).is_ok_and(|now| now.eq_ignore_ascii_case(&before) && now.len() == before.len());
        if is_manifest && !path.exists() {
            assert!(!store.epochs().expect("lists").contains(&newest), "{story}");
        } else if !same || store.manifest(newest).is_err() {
            let health = store.health(newest);
            let reason = match health {
                Ok(Health::Damaged(reason)) => reason,
                // A flipped digit can make another format's number of it, which is refused as well.
                Err(error) if error.to_string().contains("manifest format") => error.to_string(),
                other => panic!("{story}: {other:?}"),
            };
            assert!(
                reason.contains(&path.display().to_string()) || reason.contains("manifest format"),
                "{story}: {reason}"
            );
            if let Some(at) = place.filter(|_| !is_manifest) {
                let from = at / STRETCH as u64 * STRETCH as u64;
                assert!(reason.contains(&format!("bytes {from} to ")), "{story}: {reason}");
            }
        } else {
            fs::remove_dir_all(&spoiled).expect("goes");
            continue;
        }
        if case % 8 == 0 || !path.exists() {
            let committed = (common::parts(&delays.windows()), common::parts(&delays.late()));
            delays.run().failed();
            assert!(committed == (common::parts(&delays.windows()), common::parts(&delays.late())), "{story}");
            delays.with("--newest-intact").run().succeeded();
            assert!(rows(&delays) == expected, "{story}");
        }
        fs::remove_dir_all(&spoiled).expect("goes");
    }
}
