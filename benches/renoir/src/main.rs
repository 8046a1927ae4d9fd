//! Millstream beside Renoir (<https://github.com/deib-polimi/renoir>), the fastest published dataflow library in Rust, on the
//! same events and in the same run. `./mill bench renoir`; see `benches/README.md`.

#[allow(dead_code)] // only a part of it is used here
#[path = "../../kit/mod.rs"]
mod kit;
#[allow(dead_code)]
#[path = "../../workloads/w1_chain.rs"]
mod w1_chain;
#[allow(dead_code)]
#[path = "../../workloads/w2_tumbling/mod.rs"]
mod w2_tumbling;
#[allow(dead_code)]
#[path = "../../workloads/w3_sliding.rs"]
mod w3_sliding;

mod jobs;

use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use kit::Plan;
use kit::event::{Keys, Stream};
use kit::race::{Outcome, Race};
use kit::report::Report;

/// Millstream beside Renoir, interleaved, with results checked where Renoir can give the same.
#[derive(Parser)]
#[command(name = "./mill bench renoir")]
struct Args {
    /// What to run; if nothing is named, all.
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(["w1", "w2", "w3"]))]
    names: Vec<String>,
    /// How often to run each contestant.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// Only streams with so many keys.
    #[arg(long)]
    keys: Option<u64>,
    /// Append each figure to this file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few events, one run: to see that everything works.
    #[arg(long)]
    quick: bool,
}

fn main() {
    let args = Args::parse();
    let runs = if args.quick { 1 } else { args.runs as usize };
    let plan = Plan { runs, quick: args.quick, full: true, keys: args.keys, rate: None };
    let mut report = Report::new(args.json.as_deref()).expect("the file for figures opens");
    for (name, run) in [("w1", w1 as fn(Plan, &mut Report)), ("w2", w2), ("w3", w3)] {
        if args.names.is_empty() || args.names.iter().any(|wanted| wanted == name) {
            run(plan, &mut report);
        }
    }
    report.print();
}

/// Without an exchange: Renoir has as many threads as workers.
fn w1(plan: Plan, report: &mut Report) {
    let (keys, events) = (Keys::Uniform(1_000), plan.scaled(20_000_000));
    let stream = &Stream::new(keys, plan.scaled(5_000));
    let mut race = Race::new("w1", "renoir", Some(keys), events);
    for workers in [1, 2] {
        let renoir = race.add("renoir", workers, &[], |workers| jobs::chain(stream, events, workers));
        race.add("millstream", workers, &[renoir], |workers| w1_chain::job(stream, events, workers));
    }
    race.run(plan, report);
}

/// With an exchange, Renoir has two threads per worker, one on each side of it. So both of its settings are beside two workers of
/// Millstream: that many cores are there.
fn w2(plan: Plan, report: &mut Report) {
    for keys in [1_000, 100_000, 1_000_000] {
        for keys in [Keys::Uniform(keys), Keys::Zipf(keys)] {
            let events = plan.scaled(20_000_000);
            let stream = &Stream::new(keys, plan.scaled(5_000));
            let mut race = Race::new("w2", "renoir", Some(keys), events);
            let mut references = Vec::new();
            for workers in [1, 2] {
                references.push(race.add("renoir", workers, &[], |workers| jobs::tumbling(stream, events, workers)));
                references.push(
                    race.add("renoir, own windows", workers, &[], |workers| {
                        jobs::own_tumbling(stream, events, workers)
                    }),
                );
            }
            race.add("millstream", 2, &references, |workers| w2_tumbling::job(stream, events, workers, None));
            race.run(plan, report);
        }
    }
}

/// Renoir's sliding windows begin elsewhere, so results differ and are not checked. The stream spans two window sizes, because a key
/// gets its first windows at its first record; few events, because they are slow.
fn w3(plan: Plan, report: &mut Report) {
    for shape in &w3_sliding::SHAPES {
        let (keys, events) = (Keys::Uniform(1_000), plan.scaled(2_000_000));
        let stream = &Stream::new(keys, (events / (2 * shape.size_ms)).max(1));
        let mut race = Race::new("w3", shape.name, Some(keys), events);
        let mut references = Vec::new();
        for workers in [1, 2] {
            references.push(race.add("renoir, own windows", workers, &[], |workers| {
                jobs::own_sliding(stream, events, workers, shape.size_ms as i64 * 1_000, shape.slide_ms as i64 * 1_000)
            }));
        }
        race.add("millstream", 2, &references, |workers| -> Outcome {
            w3_sliding::job(stream, events, workers, w3_sliding::sliding(shape), w3_sliding::result_digest)
        });
        race.run(plan, report);
    }
}
