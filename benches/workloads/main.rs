//! Whole jobs beside references; `benches/README.md` says what each workload is and what it compares.
//!
//! `./mill bench` runs all, `./mill bench NAME..` some. `cargo test` runs them as well, with few events, so that they go on
//! working; it says so by not passing `--bench`.

#[path = "../kit/mod.rs"]
mod kit;

mod flights;
mod log;
mod replay;
mod w0_noop;
mod w1_chain;
mod w2_tumbling;
mod w3_sliding;
mod w4_checkpoints;
mod w5_latency;
mod w6_restore;
mod w7_idle;
mod w8_memory;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use kit::Plan;
use kit::report::Report;

type Workload = (&'static str, fn(Plan, &mut Report));

/// In the order in which they run.
const WORKLOADS: [Workload; 12] = [
    ("w0", w0_noop::run),
    ("w1", w1_chain::run),
    ("w2", w2_tumbling::run),
    ("w3", w3_sliding::run),
    ("w4", w4_checkpoints::run),
    ("w5", w5_latency::run),
    ("w6", w6_restore::run),
    ("w8", w8_memory::run),
    ("idle", w7_idle::run),
    ("replay", replay::run),
    ("flights", flights::run),
    ("log", log::run),
];

/// Whole jobs beside references, interleaved, with results checked.
#[derive(Parser)]
#[command(name = "./mill bench")]
struct Args {
    /// What to run; if nothing is named, all, without what takes long.
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(WORKLOADS.map(|workload| workload.0)))]
    names: Vec<String>,
    /// How often to run each contestant.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// Only streams with so many keys.
    #[arg(long)]
    keys: Option<u64>,
    /// Only loads of so many events per second.
    #[arg(long)]
    rate: Option<u64>,
    /// Append each figure to this file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few events, one run: to see that everything works.
    #[arg(long)]
    quick: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
    /// Run one contestant and print by how many bytes this process grew.
    #[arg(long, hide = true, num_args = 1..)]
    memory_of: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = std::env::args().skip(1);
    if !arguments
        .into_iter()
        .any(|argument| ["--bench", "--memory-of", "--help"].contains(&argument.as_str()))
    {
        return smoke_test();
    }
    let args = Args::parse();
    if !args.memory_of.is_empty() {
        w2_tumbling::memory::child(&args.memory_of);
        return ExitCode::SUCCESS;
    }
    let plan = Plan {
        runs: if args.quick { 1 } else { args.runs as usize },
        quick: args.quick,
        full: !args.names.is_empty(),
        keys: args.keys,
        rate: args.rate,
    };
    let mut report = match Report::new(args.json.as_deref()) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("{}: {error}", args.json.unwrap_or_default().display());
            return ExitCode::FAILURE;
        }
    };
    for (name, run) in WORKLOADS {
        if args.names.is_empty() || args.names.iter().any(|wanted| wanted == name) {
            run(plan, &mut report);
        }
    }
    report.print();
    ExitCode::SUCCESS
}

/// As a test: a failure is a panic. Arguments are those of Rust's own test harness, of which only filters mean something here.
fn smoke_test() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let filtered = arguments.any(|argument| argument == "--list" || !argument.starts_with('-'));
    let mut passed = 0;
    if !filtered {
        let mut report = Report::new(None).expect("no file to open");
        for (name, run) in WORKLOADS {
            run(Plan { runs: 1, quick: true, full: true, keys: None, rate: None }, &mut report);
            println!("benchmark {name} ... ok");
            passed += 1;
        }
    }
    println!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored");
    ExitCode::SUCCESS
}
