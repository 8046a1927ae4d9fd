//! `checkpoints`: list, show and verify them.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Subcommand;
use millstream_state::checkpoint::{Health, Refusal};
use millstream_state::manifest::{Manifest, SourceEntry, SplitEntry};

use crate::error::{Error, Result};
use crate::job::Job;
use crate::recovery::refuse;
use crate::summary::thousands;
use crate::terminal::print;
use crate::time::EventTime;

/// What to do with checkpoints.
#[derive(Subcommand, Clone, Debug)]
pub enum CheckpointAction {
    /// List them, oldest first (the default)
    List,
    /// Print one whole
    Show {
        /// Which [default: the newest]
        epoch: Option<u64>,
    },
    /// List the splits by their watermarks: which of them event time waits for
    Watermarks {
        /// In which [default: the newest]
        epoch: Option<u64>,
    },
    /// Compare every file with its checksum
    Verify {
        /// Which [default: all]
        epoch: Option<u64>,
    },
}

pub(super) fn run(job: &Job, action: Option<&CheckpointAction>) -> Result<ExitCode> {
    let store = job.store()?;
    let dir = store.dir();
    let epochs = store.epochs()?;
    if let Some(
        CheckpointAction::Show { epoch: Some(epoch) }
        | CheckpointAction::Verify { epoch: Some(epoch) }
        | CheckpointAction::Watermarks { epoch: Some(epoch) },
    ) = action
        && !epochs.contains(epoch)
    {
        return Err(refuse(dir, Refusal::Missing { epoch: *epoch, present: epochs }));
    }
    match action {
        None | Some(CheckpointAction::List) => {
            if epochs.is_empty() {
                print(format_args!("no checkpoints in {}", dir.display()))?;
            } else {
                print(format_args!(
                    "{:>8}  {:<24}  {:>10}  {:>9}  {:>12}  end",
                    "epoch", "written", "read", "entries", "bytes"
                ))?;
            }
            for epoch in epochs {
                match store.manifest(epoch) {
                    Ok(manifest) => print(line(&manifest))?,
                    Err(error) => print(format_args!("{epoch:>8}  {error}"))?,
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(CheckpointAction::Show { epoch }) => {
            let Some(epoch) = epoch.or(epochs.last().copied()) else {
                return Err(Error::config(format!("no checkpoints in {}", dir.display())));
            };
            let manifest = store.manifest(epoch)?;
            let json = serde_json::to_string_pretty(&manifest);
            print(json.map_err(|error| Error::internal("a manifest does not print").because(error))?)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(CheckpointAction::Watermarks { epoch }) => {
            let Some(epoch) = epoch.or(epochs.last().copied()) else {
                return Err(Error::config(format!("no checkpoints in {}", dir.display())));
            };
            print(watermarks(&store.manifest(epoch)?).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(CheckpointAction::Verify { epoch }) => {
            let mut code = ExitCode::SUCCESS;
            if epochs.is_empty() {
                print(format_args!("no checkpoints in {}", dir.display()))?;
            }
            for found in store.survey()?.into_iter().filter(|found| epoch.is_none_or(|epoch| epoch == found.epoch)) {
                match found.health {
                    Health::Intact { .. } => print(format_args!("checkpoint {} is intact", found.epoch))?,
                    Health::Damaged(reason) => {
                        print(format_args!("checkpoint {} cannot be used: {reason}", found.epoch))?;
                        code = ExitCode::FAILURE;
                    }
                }
            }
            Ok(code)
        }
    }
}

/// Every split, the one that event time waits for first.
fn watermarks(manifest: &Manifest) -> String {
    let written = EventTime::from_millis(manifest.written_ms as i64);
    let mut text = format!("checkpoint {}, written {written}\n", manifest.epoch);
    let named =
        |source: &'_ SourceEntry| source.splits.iter().map(|split| (source.name.clone(), split.clone())).collect();
    let mut splits: Vec<(String, SplitEntry)> =
        manifest.sources.iter().flat_map(|source| -> Vec<_> { named(source) }).collect();
    splits.sort_by_key(|(_, split)| (split.ended, split.watermark_us));
    let _ = writeln!(text, "{:<28}  {:<20}  {:>12}  split", "watermark", "source", "read");
    for (source, split) in splits {
        let watermark = match (split.ended, EventTime::from_micros(split.watermark_us)) {
            (true, _) => "ended".to_string(),
            (false, EventTime::MIN) => "none yet".to_string(),
            (false, watermark) => watermark.to_string(),
        };
        let _ = writeln!(text, "{watermark:<28}  {source:<20}  {:>12}  {}", thousands(split.records), split.split);
    }
    text
}

fn line(manifest: &Manifest) -> String {
    let written = EventTime::from_millis(manifest.written_ms as i64);
    let read: u64 = manifest.sources.iter().flat_map(|source| &source.splits).map(|split| split.records).sum();
    let entries: u64 = manifest.operators.iter().map(|operator| operator.entries).sum();
    let bytes: u64 = manifest.files.iter().map(|file| file.size).sum();
    format!(
        "{:>8}  {:<24}  {:>10}  {:>9}  {:>12}  {}",
        manifest.epoch,
        written.to_string(),
        thousands(read),
        thousands(entries),
        thousands(bytes),
        if manifest.finished { "finished" } else { "" }
    )
}
