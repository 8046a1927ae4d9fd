//! The command line that every job has: run it, draw it, measure it, look at its checkpoints. One file for each command that is
//! more than a line.

mod checkpoints;
mod replay;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use millstream_state::checkpoint::StartFrom;

pub use checkpoints::CheckpointAction;
pub use replay::ReplayArgs;

use crate::bench::BenchArgs;
use crate::error::{Error, Result};
use crate::job::Job;
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
    /// How many checkpoints are kept [default: 3]
    #[arg(long, value_name = "N", global = true)]
    pub retain: Option<usize>,
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
    /// Do again what the job did between two checkpoints, in another place; and compare
    Replay(ReplayArgs),
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

fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let span: EventSpan = text.parse().map_err(|error: crate::time::ParseTimeError| error.to_string())?;
    Ok(Duration::from_micros(span.as_micros() as u64))
}

/// A number of bytes, with `K`, `M`, `G` or `T` for thousands, or `Ki` and so on for 1,024s; a `B` may follow.
fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().trim_end_matches(['B', 'b']);
    let factor: Option<u64> = match unit.to_ascii_lowercase().as_str() {
        "" => Some(1),
        "k" => Some(1_000),
        "m" => Some(1_000_000),
        "g" => Some(1_000_000_000),
        "t" => Some(1_000_000_000_000),
        "ki" => Some(1 << 10),
        "mi" => Some(1 << 20),
        "gi" => Some(1 << 30),
        "ti" => Some(1 << 40),
        _ => None,
    };
    let bytes = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    bytes.ok_or_else(|| "not a size such as 500MB, 10GB or 2GiB".to_string())
}

#[derive(Parser)]
#[command(about = "A Millstream job", disable_help_subcommand = true)]
struct Alone {
    #[command(flatten)]
    job: JobArgs,
}

impl Job {
    /// Does what the command line says: `run` (the default), `graph`, `bench`, `replay`, or `checkpoints`. Returns the exit code: 0, or 1 after
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
        let replay = matches!(self.command, Some(Command::Replay(_)));
        if !replay
            && matches!(settings.start_from, StartFrom::Epoch(_) | StartFrom::NewestIntact)
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
            Some(Command::Replay(args)) => replay::run(job, self, args),
            Some(Command::Graph { format: GraphFormat::Mermaid }) => {
                print!("{}", job.mermaid());
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Graph { format: GraphFormat::Dot }) => {
                print!("{}", job.dot());
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Checkpoints { action }) => checkpoints::run(&job, action.as_ref()),
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
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1", "1.5G", "1X", "99999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
