//! The command line that every job has: run it, draw it, measure it, look at its checkpoints. One file for each command that is
//! more than a line.

mod checkpoints;
mod history;
mod printer;
mod replay;
mod savepoint;
mod state;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use millstream_state::checkpoint::StartFrom;

pub use checkpoints::CheckpointAction;
pub use history::HistoryArgs;
pub use replay::ReplayArgs;
pub use savepoint::SavepointArgs;
pub use state::StateArgs;

use crate::bench::BenchArgs;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::restart::RestartPolicy;
use crate::terminal::{print, tell};
use crate::time::EventSpan;

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
    /// How much memory keyed state may take, such as 512MiB; the rest stays on disk [default: as the job says, else all]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, global = true)]
    pub memory: Option<u64>,
    /// How many checkpoints are kept [default: 3]
    #[arg(long, value_name = "N", global = true)]
    pub retain: Option<usize>,
    /// Start from the savepoint in this directory, which is copied in as a checkpoint; it is refused where newer ones are, unless with `--fresh`
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from", "newest_intact"], global = true)]
    pub from_savepoint: Option<PathBuf>,
    /// An operator, source or sink that has another name in the checkpoint; as often as needed
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_renaming, global = true)]
    pub rename_state: Vec<(String, String)>,
    /// Drop the state of an operator, source or sink that the job no longer has; as often as needed
    #[arg(long, value_name = "NAME", global = true)]
    pub drop_state: Vec<String>,
    /// Keep all checkpoints that were written within this time as well, such as 6h
    #[arg(long, value_name = "SPAN", value_parser = parse_duration, global = true)]
    pub retain_for: Option<Duration>,
    /// Delete the oldest checkpoints beyond this size, such as 10GB, whatever the other two say; shared files count once
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, global = true)]
    pub retain_bytes: Option<u64>,
    /// Begin again: set old checkpoints and output aside. For one start; do not leave it in a script that restarts the job
    #[arg(long, conflicts_with_all = ["from", "newest_intact"], global = true)]
    pub fresh: bool,
    /// Start from this checkpoint, withdrawing the output that came after it. For one start, as above
    #[arg(long, value_name = "EPOCH", conflicts_with = "newest_intact", global = true)]
    pub from: Option<u64>,
    /// Start from the newest checkpoint that is intact, passing over damaged ones
    #[arg(long, global = true)]
    pub newest_intact: bool,
    /// Whether and when the job starts again after a failure: `never`, `fixed:DELAY:TIMES`, such as `fixed:5s:3`, `exponential` or
    /// `exponential:INITIAL:CAP`, such as `exponential:1s:1m`; with `@N/h` behind it at most N times in an hour
    /// [default: as the job says, else never]
    #[arg(long, value_name = "POLICY", global = true)]
    pub restart: Option<RestartPolicy>,
    /// Leave a record out when the job has failed on it this many times in a row [default: as the job says, else never]
    #[arg(long, value_name = "N", global = true)]
    pub set_aside_after: Option<u32>,
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
    /// Look at the state in the job's checkpoints and savepoints
    State(StateArgs),
    /// Have the job, which runs elsewhere with the same checkpoint directory, take a savepoint
    Savepoint(SavepointArgs),
    /// Do again what the job did between two checkpoints, in another place; and compare
    Replay(ReplayArgs),
    /// Look at the job's checkpoints
    Checkpoints {
        /// What to do with them
        #[command(subcommand)]
        action: Option<CheckpointAction>,
    },
    /// Print what became of the job: starts, checkpoints, failures, restarts
    History(HistoryArgs),
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

fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let span: EventSpan = text.parse().map_err(|error: crate::time::ParseTimeError| error.to_string())?;
    Ok(Duration::from_micros(span.as_micros() as u64))
}

fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64())
}

fn parse_renaming(text: &str) -> std::result::Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("it should be OLD=NEW")?;
    Ok((old.to_string(), new.to_string()))
}

#[derive(Parser)]
#[command(about = "A Millstream job", disable_help_subcommand = true)]
struct Alone {
    #[command(flatten)]
    job: JobArgs,
}

impl Job {
    /// Does what the command line says: `run` (the default), `graph`, `bench`, `state`, `savepoint`, `replay`, `checkpoints` or
    /// `history`. Returns the exit code: 0, or 1 after an error, which it has printed.
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
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            // To say that a warning could not be written is to panic where the next one cannot either.
            .log_internal_errors(false)
            .try_init();
        match self.apply(&mut job).and_then(|()| self.execute(job)) {
            Ok(code) => code,
            Err(error) => {
                tell(format_args!("error: {error}"));
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
        if self.memory.is_some() {
            settings.memory = self.memory;
        }
        if let Some(retain) = self.retain {
            settings.retain = retain;
        }
        if let Some(policy) = &self.restart {
            settings.restart = policy.clone();
        }
        if self.set_aside_after.is_some() {
            settings.set_aside_after = self.set_aside_after;
        }
        if let Some(age) = self.retain_for {
            settings.retain_for = Some(age);
        }
        if let Some(bytes) = self.retain_bytes {
            settings.retain_bytes = Some(bytes);
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
        if let Some(dir) = self.from_savepoint.clone() {
            settings.start_from =
                if self.fresh { StartFrom::FreshFromSavepoint(dir) } else { StartFrom::Savepoint(dir) };
        }
        settings.names.renamed.extend_from_slice(&self.rename_state);
        settings.names.dropped.extend_from_slice(&self.drop_state);
        self.refuse_start()?;
        if !self.replays()
            && matches!(settings.start_from, StartFrom::Epoch(_) | StartFrom::NewestIntact)
            && settings.checkpoint_dir.is_none()
        {
            return Err(Error::config("there is no checkpoint to start from without a checkpoint directory")
                .hint("give one with `--checkpoint-dir DIR`"));
        }
        Ok(())
    }

    fn replays(&self) -> bool {
        matches!(self.command, Some(Command::Replay(_)))
    }

    /// Refuses options that say where a start begins to commands that start nothing: whoever gives one expects something of it.
    fn refuse_start(&self) -> Result<()> {
        let (command, hint) = match &self.command {
            None | Some(Command::Run | Command::Bench(_)) => return Ok(()),
            Some(Command::Replay(_)) => {
                ("replay", "`--from EPOCH` says with which checkpoint it begins; 0 is the beginning")
            }
            Some(Command::State(_)) => {
                ("state", "`--at EPOCH` and `--at DIR` say at which checkpoint or savepoint it looks")
            }
            Some(Command::Graph { .. }) => ("graph", "leave it out"),
            Some(Command::Savepoint(_)) => ("savepoint", "leave it out: a savepoint is taken of a job that runs"),
            Some(Command::Checkpoints { .. }) => ("checkpoints", "leave it out: all checkpoints are looked at"),
            Some(Command::History(_)) => ("history", "leave it out: all that happened is shown"),
        };
        let given = [
            (self.from.is_some() && !self.replays(), "--from"),
            (self.fresh, "--fresh"),
            (self.newest_intact, "--newest-intact"),
            (self.from_savepoint.is_some(), "--from-savepoint"),
        ];
        match given.iter().find(|(given, _)| *given) {
            None => Ok(()),
            Some((_, option)) => {
                let reason = format!("`{option}` is for starting the job, and means nothing to `{command}`");
                Err(Error::config(reason).hint(hint))
            }
        }
    }

    fn execute(&self, job: Job) -> Result<ExitCode> {
        match &self.command {
            None | Some(Command::Run) => {
                let summary = job.run()?;
                tell(summary);
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Bench(args)) => {
                let mut job = job;
                job.settings_mut().progress = false;
                job.bench(args)?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Replay(args)) => replay::run(job, self, args),
            Some(Command::Graph { format: GraphFormat::Mermaid }) => {
                print(job.mermaid().trim_end())?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Graph { format: GraphFormat::Dot }) => {
                print(job.dot().trim_end())?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::State(args)) => state::run(&job, args),
            Some(Command::Savepoint(args)) => savepoint::run(&job, args),
            Some(Command::Checkpoints { action }) => checkpoints::run(&job, action.as_ref()),
            Some(Command::History(args)) => history::run(&job, args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("3kB", 3_000),
            ("500MB", 500_000_000),
            ("2GiB", 2 << 30),
            ("1 T", 1_000_000_000_000),
            ("1.5G", 1_500_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1", "1X"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
