//! `replay`: do again what the job did between two checkpoints, in another place, and compare.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::JobArgs;
use crate::error::Result;
use crate::job::Job;
use crate::replay::{Against, Replay, Until};
use crate::terminal::print;

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
            print(&report)?;
            report.is_equal() && (!args.verify || report.compared())
        }
        Some(program) => {
            let (before, after) = others(std::env::args_os().skip(1));
            let against = Against { program: program.clone(), before, after, limit: args.limit };
            let report = job.replay_against(&replay, &against)?;
            print(&report)?;
            report.is_equal()
        }
    };
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command line for another program: what stands before the command and behind it, without the options of `replay`.
fn others(mut args: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut behind = false;
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        if text == "replay" && !behind {
            behind = true;
        } else if ["--from", "--until", "--into", "--against", "--limit"].contains(&name) {
            if name.len() == text.len() {
                args.next();
            }
        } else if !["--discard", "--times", "--verify"].contains(&name) {
            if behind { &mut after } else { &mut before }.push(arg);
        }
    }
    (before, after)
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
    fn the_other_program_gets_the_options_of_the_job() {
        let line = "--input a.csv --from 3 replay --workers 2 --until=4 --into replay --against ./new --discard --limit 5 --output o";
        let (before, after) = others(line.split(' ').map(OsString::from));
        assert_eq!(before, ["--input", "a.csv"]);
        assert_eq!(after, ["--workers", "2", "--output", "o"]);
    }
}
