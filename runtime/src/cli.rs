//! The command line that every job has: run it, draw it, look at its checkpoints.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use millstream_state::checkpoint::{Health, Refusal, StartFrom};
use millstream_state::manifest::Manifest;
use millstream_state::store::CheckpointStore;

use crate::bench::BenchArgs;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::recovery::refuse;
use crate::summary::thousands;
use crate::time::{EventSpan, EventTime};

/// The options of every job. Flatten them into a `clap` parser of your own to have both: see `examples/flight_delays.rs`.
#[derive(Args, Clone, Debug, Default)]
pub struct JobArgs {
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", global = true)]
    pub workers: Option<usize>,
    /// Where checkpoints are kept [default: as the job says]
    #[arg(long, value_name = "DIR", global = true)]
    pub checkpoint_dir: Option<PathBuf>,
    /// How often a checkpoint is taken, such as 200ms [default: as the job says, else 10s]
    #[arg(long, value_name = "SPAN", value_parser = parse_duration, global = true)]
    pub checkpoint_interval: Option<Duration>,
    /// How many checkpoints are kept [default: 3]
    #[arg(long, value_name = "N", global = true)]
    pub retain: Option<usize>,
    /// Begin again: set old checkpoints and output aside. For one start; do not leave it in a script that restarts the job
    #[arg(long, conflicts_with_all = ["from", "newest_intact"], global = true)]
    pub fresh: bool,
    /// Start from this checkpoint, withdrawing the output that came after it. For one start, as above
    #[arg(long, value_name = "EPOCH", conflicts_with = "newest_intact", global = true)]
    pub from: Option<u64>,
    /// Start from the newest checkpoint that is intact, passing over damaged ones
    #[arg(long, global = true)]
    pub newest_intact: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do with a job.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Run the job (the default)
    Run,
    /// Print the dataflow as a drawing
    Graph {
        /// In which language
        #[arg(long, value_enum, default_value_t)]
        format: GraphFormat,
    },
    /// Measure the job under an open-loop load
    Bench(BenchArgs),
    /// Look at the job's checkpoints
    Checkpoints {
        /// What to do with them
        #[command(subcommand)]
        action: Option<CheckpointAction>,
    },
}

/// In which language a dataflow is drawn.
#[derive(ValueEnum, Clone, Copy, Debug, Default)]
pub enum GraphFormat {
    /// Mermaid, which GitHub and many editors draw
    #[default]
    Mermaid,
    /// DOT, for Graphviz
    Dot,
}

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
    /// Compare every file with its checksum
    Verify {
        /// Which [default: all]
        epoch: Option<u64>,
    },
}

fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let span: EventSpan = text.parse().map_err(|error: crate::time::ParseTimeError| error.to_string())?;
    Ok(Duration::from_micros(span.as_micros() as u64))
}

#[derive(Parser)]
#[command(about = "A Millstream job", disable_help_subcommand = true)]
struct Alone {
    #[command(flatten)]
    job: JobArgs,
}

impl Job {
    /// Does what the command line says: `run` (the default), `graph`, or `checkpoints`. Returns the exit code: 0, or 1 after
    /// an error, which it has printed.
    pub fn main(self) -> ExitCode {
        Alone::parse().job.main(self)
    }
}

impl JobArgs {
    /// Does what these options say with `job`; what is not given stays as the job has it.
    pub fn main(self, mut job: Job) -> ExitCode {
        // Warnings are for the person at the terminal, unless the program has logs of its own.
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_writer(std::io::stderr)
            .with_target(false)
            .try_init();
        match self.apply(&mut job).and_then(|()| self.execute(job)) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn apply(&self, job: &mut Job) -> Result<()> {
        let settings = job.settings_mut();
        settings.progress = true;
        if let Some(workers) = self.workers {
            settings.workers = workers;
        }
        if let Some(dir) = &self.checkpoint_dir {
            settings.checkpoint_dir = Some(dir.clone());
        }
        if let Some(interval) = self.checkpoint_interval {
            settings.checkpoint_interval = interval;
        }
        if let Some(retain) = self.retain {
            settings.retain = retain;
        }
        if self.fresh {
            settings.start_from = StartFrom::Fresh;
        }
        if let Some(epoch) = self.from {
            settings.start_from = StartFrom::Epoch(epoch);
        }
        if self.newest_intact {
            settings.start_from = StartFrom::NewestIntact;
        }
        if matches!(settings.start_from, StartFrom::Epoch(_) | StartFrom::NewestIntact)
            && settings.checkpoint_dir.is_none()
        {
            return Err(Error::config("there is no checkpoint to start from without a checkpoint directory")
                .hint("give one with `--checkpoint-dir DIR`"));
        }
        Ok(())
    }

    fn execute(&self, job: Job) -> Result<ExitCode> {
        match &self.command {
            None | Some(Command::Run) => {
                let summary = job.run()?;
                eprintln!("{summary}");
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Bench(args)) => {
                let mut job = job;
                job.settings_mut().progress = false;
                job.bench(args)?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Graph { format: GraphFormat::Mermaid }) => {
                print!("{}", job.mermaid());
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Graph { format: GraphFormat::Dot }) => {
                print!("{}", job.dot());
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Checkpoints { action }) => checkpoints(&job, action.as_ref()),
        }
    }
}

fn checkpoints(job: &Job, action: Option<&CheckpointAction>) -> Result<ExitCode> {
    let Some(dir) = &job.settings.checkpoint_dir else {
        return Err(Error::config("this job keeps no checkpoints").hint("name a directory with `--checkpoint-dir DIR`"));
    };
    let store = CheckpointStore::new(dir);
    let epochs = store.epochs()?;
    if let Some(CheckpointAction::Show { epoch: Some(epoch) } | CheckpointAction::Verify { epoch: Some(epoch) }) =
        action
        && !epochs.contains(epoch)
    {
        return Err(refuse(dir, Refusal::Missing { epoch: *epoch, present: epochs }));
    }
    match action {
        None | Some(CheckpointAction::List) => {
            if epochs.is_empty() {
                println!("no checkpoints in {}", dir.display());
            } else {
                println!("{:>8}  {:<24}  {:>10}  {:>9}  {:>12}  end", "epoch", "written", "read", "entries", "bytes");
            }
            for epoch in epochs {
                match store.manifest(epoch) {
                    Ok(manifest) => println!("{}", line(&manifest)),
                    Err(error) => println!("{epoch:>8}  {error}"),
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
            println!("{}", json.map_err(|error| Error::internal("a manifest does not print").because(error))?);
            Ok(ExitCode::SUCCESS)
        }
        Some(CheckpointAction::Verify { epoch }) => {
            let mut code = ExitCode::SUCCESS;
            if epochs.is_empty() {
                println!("no checkpoints in {}", dir.display());
            }
            for found in store.survey()?.into_iter().filter(|found| epoch.is_none_or(|epoch| epoch == found.epoch)) {
                match found.health {
                    Health::Intact { .. } => println!("checkpoint {} is intact", found.epoch),
                    Health::Damaged(reason) => {
                        println!("checkpoint {} cannot be used: {reason}", found.epoch);
                        code = ExitCode::FAILURE;
                    }
                }
            }
            Ok(code)
        }
    }
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
