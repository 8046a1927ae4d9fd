//! `replay`: do again what the job did between two checkpoints, in another place, and compare.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::JobArgs;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::replay::{Against, Replay, Until};

/// Options of `replay`. It begins with the checkpoint that `--from` names (the oldest, if none is named; 0: from the beginning).
// The names by which clap knows them are told from those that a job may give to options of its own.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The checkpoint at which to end, or `end` for the end of the input [default: the newest checkpoint]
    #[arg(id = "replay-until", long = "until", value_name = "EPOCH", value_parser = parse_until)]
    pub until: Option<Until>,
    /// Where the output goes: into a directory for each sink in this one, which must be empty or not there
    #[arg(id = "replay-into", long = "into", value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// Compare every sink with what the job wrote the first time; exit code 1 if it differs
    #[arg(id = "replay-verify", long = "verify")]
    pub verify: bool,
    /// Replay with this program as well, another build of the job, and show in which rows they differ; exit code 1 if they do
    #[arg(
        id = "replay-against",
        long = "against",
        value_name = "PROGRAM",
        requires = "replay-into",
        conflicts_with = "replay-verify"
    )]
    pub against: Option<PathBuf>,
    /// How many rows that differ `--against` shows of each sink and program
    #[arg(id = "replay-limit", long = "limit", value_name = "ROWS", default_value_t = 10)]
    pub limit: usize,
    /// Drop what comes to sinks that cannot write to another place; without `--into`, to all sinks
    #[arg(id = "replay-discard", long = "discard")]
    pub discard: bool,
    /// Note beside the output when each row happened, as `--verify` and `--against` do
    #[arg(id = "replay-times", long = "times", hide = true)]
    pub times: bool,
}

fn parse_until(text: &str) -> std::result::Result<Until, String> {
    match text {
        "end" => Ok(Until::End),
        _ => text.parse().map(Until::Checkpoint).map_err(|error| format!("neither `end` nor a number: {error}")),
    }
}

pub(super) fn run(job: Job, options: &JobArgs, args: &ReplayArgs) -> Result<ExitCode> {
    if options.fresh || options.newest_intact {
        return Err(Error::config("a replay begins with a checkpoint of your choice")
            .hint("name it with `--from EPOCH`; `--from 0` is the beginning"));
    }
    let replay = Replay {
        from: options.from,
        until: args.until.unwrap_or_default(),
        output: args.into.clone(),
        discard: args.discard,
        verify: args.verify,
        times: args.times,
    };
    let equal = match &args.against {
        None => {
            let report = job.replay(&replay)?;
            println!("{report}");
            report.is_equal()
        }
        Some(program) => {
            let before = before_command(std::env::args_os().skip(1));
            let against =
                Against { program: program.clone(), before, after: given_again(&job, options), limit: args.limit };
            let report = job.replay_against(&replay, &against)?;
            println!("{report}");
            report.is_equal()
        }
    };
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command line up to the command: options of the job's own.
fn before_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    args.take_while(|arg| arg != "replay").collect()
}

/// The options of every job, which may stand behind the command as well.
fn given_again(job: &Job, options: &JobArgs) -> Vec<OsString> {
    let mut again: Vec<OsString> = vec!["--workers".into(), job.settings.workers.to_string().into()];
    if let Some(dir) = &options.checkpoint_dir {
        again.extend(["--checkpoint-dir".into(), dir.clone().into()]);
    }
    if let Some(interval) = options.checkpoint_interval {
        again.extend(["--checkpoint-interval".into(), format!("{}us", interval.as_micros()).into()]);
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_a_number_or_a_word() {
        assert_eq!(parse_until("12"), Ok(Until::Checkpoint(12)));
        assert_eq!(parse_until("end"), Ok(Until::End));
        assert!(parse_until("soon").is_err_and(|error| error.contains("neither `end`")));
    }

    #[test]
    fn options_of_the_job_stand_before_the_command() {
        let args = ["--input", "a.csv", "replay", "--into", "replay"].map(OsString::from);
        assert_eq!(before_command(args.into_iter()), ["--input", "a.csv"]);
    }
}
