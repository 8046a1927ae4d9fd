//! The options of `job bench`, and what is shown when it is done.
//!
//! **Units**: spans as in `10s`, `1m30s`; loads as in [`Load`]. **Errors**: `Config` for options that do not go together;
//! `External` when a file cannot be written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::figures::Figures;
use super::load::Load;
use super::measurement::Measurement;
use super::report;
use crate::error::{Error, Result};
use crate::terminal::{print, tell};
use crate::time::EventSpan;

/// Measure the job under an open-loop load: events are due at instants fixed beforehand, and latency counts from there.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct BenchArgs {
    /// When events are due: 100k, steps:10k@5s,20k@5s,30k, bursts:50k,200k@100ms/1s, sine:100k+-50k/10s, recorded:10x
    #[arg(long, value_name = "LOAD", default_value = "constant:10k", conflicts_with = "find_rate")]
    pub load: Load,
    /// How long to measure
    #[arg(long = "for", value_name = "SPAN", default_value = "10s", value_parser = some_time)]
    pub time: Duration,
    /// How long to run before measuring
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = duration)]
    pub warm_up: Duration,
    /// How many times to measure
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub runs: u32,
    /// Find the highest rate at which the backlog does not grow, then measure at 50, 80 and 95 % of it
    #[arg(long)]
    pub find_rate: bool,
    /// Write the report there: a page with plots, figures as JSON, and an HdrHistogram log
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Write the figures to this file; `-` is standard output, and then the table goes to standard error
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Default for BenchArgs {
    /// The same values as on a command line without options.
    fn default() -> Self {
        BenchArgs {
            load: Load::Constant(super::Rate::per_second(10_000.0)),
            time: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            runs: 1,
            find_rate: false,
            report: None,
            json: None,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: EventSpan = text.parse().map_err(|error: crate::time::ParseTimeError| error.to_string())?;
    Ok(Duration::from_micros(span.as_micros() as u64))
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() { Err("measuring takes some time, such as 10s".to_string()) } else { Ok(time) }
}

/// Shows a measurement as the options ask: a table always, and the files. They are called like the job; where rates are
/// searched for, and so several measurements follow each other, like the job and the load.
///
/// # Errors
/// When a file cannot be written.
pub fn present(measurement: &Measurement, args: &BenchArgs) -> Result<()> {
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if to_stdout {
        tell(measurement);
    } else {
        print(measurement)?;
    }
    let load = if args.find_rate { format!("-{}", file_name(&measurement.load)) } else { String::new() };
    if let Some(path) = &args.json {
        let text = Figures::new(measurement).json(true);
        if to_stdout {
            print(text)?;
        } else {
            let path = before_extension(path, &load);
            let failed = |error| Error::external(format!("cannot write {}", path.display())).because(error);
            std::fs::write(&path, text + "\n").map_err(|error: std::io::Error| failed(error))?;
        }
    }
    if let Some(dir) = &args.report {
        let written = report::write(measurement, dir, &(file_name(&measurement.job) + &load))?;
        for page in written.iter().take(1) {
            tell(format_args!("  report       {}", page.display()));
        }
    }
    Ok(())
}

/// `text` as a file name that needs no quotes in a shell.
fn file_name(text: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = text.trim_start_matches('.').chars().map(safe).collect();
    if name.is_empty() { "job".to_string() } else { name }
}

/// `results.json` with `more`: `results-80k.json`.
fn before_extension(path: &Path, more: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(more);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::example;
    use super::*;

    #[derive(Parser, Debug)]
    struct Alone {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Alone::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).map(|alone| alone.bench)
    }

    #[test]
    fn without_options_there_are_defaults() {
        assert_eq!(parse("").unwrap(), BenchArgs::default());
    }

    #[test]
    fn options_are_understood() {
        let args =
            parse("--load bursts:50k,200k@100ms/1s --for 1m --warm-up 5s --runs 5 --report out --json -").unwrap();
        assert_eq!((args.time, args.warm_up, args.runs), (Duration::from_secs(60), Duration::from_secs(5), 5));
        assert_eq!(args.load.to_string(), "bursts:50k,200k@100ms/1s");
        assert_eq!((args.report, args.json), (Some("out".into()), Some("-".into())));
        assert!(parse("--find-rate").unwrap().find_rate);
    }

    #[test]
    fn wrong_options_are_explained() {
        for (line, reason) in [
            ("--load often", "`often` is not a load"),
            ("--for 10", "`10` is not a span"),
            ("--for 0s", "some time"),
            ("--runs 0", "0 is not in 1..=1000"),
            ("--find-rate --load 5", "cannot be used with"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn files_are_written_where_they_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = BenchArgs {
            report: Some(dir.path().join("report")),
            json: Some(dir.path().join("figures.json")),
            ..BenchArgs::default()
        };
        let measurement = example::measurement(2);
        present(&measurement, &args).unwrap();
        args.find_rate = true;
        present(&measurement, &args).unwrap();
        for file in
            ["figures.json", "figures-constant-100k.json", "report/spend.html", "report/spend-constant-100k.hlog"]
        {
            assert!(dir.path().join(file).is_file(), "{file}");
        }
        args.json = Some(dir.path().join("no/such/dir.json"));
        assert!(present(&measurement, &args).unwrap_err().to_string().contains("cannot write"));
    }

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_name("a job: 5 €/s"), "a-job--5---s");
        assert_eq!((file_name("../x"), file_name("")), ("-x".to_string(), "job".to_string()));
    }
}
