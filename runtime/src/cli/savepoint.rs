//! `savepoint`: asks the running job for one, from another process.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::parse_duration;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::savepoint::mailbox::ask;
use crate::summary::thousands;
use crate::terminal::print;

/// Where a savepoint is to be.
#[derive(Args, Clone, Debug)]
pub struct SavepointArgs {
    /// Where; the directory must not exist
    dir: PathBuf,
    /// How long to wait for it, such as 30s
    #[arg(long, value_name = "SPAN", value_parser = parse_duration, default_value = "10m")]
    timeout: Duration,
}

pub(super) fn run(job: &Job, args: &SavepointArgs) -> Result<ExitCode> {
    job.validate()?;
    let store = job.store()?;
    // The job may have another working directory than this process.
    let dir = std::path::absolute(&args.dir);
    let dir = dir.map_err(|error| Error::config(format!("`{}` is no path", args.dir.display())).because(error))?;
    let taken = ask(store.dir(), &dir, args.timeout)?;
    let (dir, bytes) = (taken.dir.display(), thousands(taken.bytes));
    print(format_args!("savepoint of epoch {} in {dir}, {bytes} bytes of state", taken.epoch))?;
    Ok(ExitCode::SUCCESS)
}
