//! Nexmark: the queries about an auction house by which stream processors are compared.
//!
//! Events come from the generator of the crate `nexmark` with its default settings: 10,000 a second of event time, of which
//! 2 % are new persons, 6 % new auctions and 92 % bids. Each query is one small file in `queries/`, which says what it
//! computes and where it differs from the SQL of <https://github.com/nexmark/nexmark>. They are the queries 0 to 22, but for
//! query 10, which asks for files by the minute of the event.
//!
//! With `--output` rows go to `OUTPUT/QUERY/results/*.csv`, exactly once, with checkpoints beside them; without it they are
//! only counted, so that what is measured is the query.
//!
//! ```text
//! cargo run --release --example nexmark -- --query q5 --events 10000000 --workers 2
//! cargo run --release --example nexmark -- --query q5 --events 1000000 --output nexmark.out
//! ```

mod events;
mod queries;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use millstream::prelude::*;
use serde::Serialize;

use events::Events;
use queries::{
    bids, q0, q1, q2, q3, q4, q5, q6, q7, q8, q9, q11, q12, q13, q14, q15, q16, q17, q18, q19, q20, q21, q22,
};

/// The Nexmark queries on generated events.
#[derive(Parser)]
struct Options {
    /// Which query
    #[arg(long, value_enum, default_value_t = Query::Q5, global = true)]
    query: Query,
    /// How many events are generated
    #[arg(long, value_name = "N", default_value_t = 1_000_000, global = true)]
    events: u64,
    /// Splits of the source, and so the most workers that can read; must not change between two starts
    #[arg(long, value_name = "N", default_value_t = 8, global = true)]
    splits: u64,
    /// Events per second at most; 0: as fast as it goes
    #[arg(long, value_name = "EVENTS_PER_SECOND", default_value_t = 0.0, global = true)]
    rate: f64,
    /// Where rows and checkpoints go [default: rows are only counted]
    #[arg(long, value_name = "DIR", global = true)]
    output: Option<PathBuf>,
    #[command(flatten)]
    job: JobArgs,
}

/// The queries by their numbers.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Query {
    /// Pass through: all bids as they are
    Q0,
    /// Currency conversion: prices in euros
    Q1,
    /// Selection: bids on every 123rd auction
    Q2,
    /// Local item suggestion: who sells in three states in category 10
    Q3,
    /// Average price of the auctions of each category
    Q4,
    /// Hot items: the auctions with most bids, sliding window
    Q5,
    /// Average price of the last 10 auctions of each seller
    Q6,
    /// Highest bid of every 10 seconds
    Q7,
    /// New users who sell within 10 seconds
    Q8,
    /// Winning bid of every auction
    Q9,
    /// User sessions: bids of every bidder until 10 seconds without one
    Q11,
    /// Bids of every bidder in 10 seconds of processing time
    Q12,
    /// Bounded side input: bids with a value from a table
    Q13,
    /// Calculation: time of day, price, letters
    Q14,
    /// Bidding statistics of every day
    Q15,
    /// Channel statistics of every day
    Q16,
    /// Auction statistics of every day
    Q17,
    /// Last bid of every bidder on every auction, as changes
    Q18,
    /// The 10 highest bids of every auction, as changes
    Q19,
    /// Bids with their auctions, in category 10
    Q20,
    /// Channel id, from the channel or the URL
    Q21,
    /// Directories of the URL
    Q22,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let job = nexmark(&options);
    options.job.main(job)
}

fn nexmark(options: &Options) -> Job {
    let query = format!("{:?}", options.query).to_lowercase();
    let output = options.output.as_ref().map(|dir| dir.join(&query));
    let mut job = Job::new(format!("nexmark-{query}"));
    if let Some(output) = &output {
        job = job.checkpoint_dir(output.join("checkpoints"));
    }
    let delay = match options.query {
        Query::Q12 => EventSpan::ZERO, // its clock is the watermark: see there
        _ => events::OUT_OF_ORDERNESS,
    };
    let source = Events::new(events::config(), options.events).splits(options.splits).rate(options.rate);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(delay, events::time)).name("events");
    let results = output.map(|output| output.join("results"));
    let results = results.as_deref();
    match options.query {
        Query::Q0 => save(q0::results(bids(events)), results),
        Query::Q1 => save(q1::results(bids(events)), results),
        Query::Q2 => save(q2::results(bids(events)), results),
        Query::Q3 => save(q3::results(events), results),
        Query::Q4 => save(q4::results(events), results),
        Query::Q5 => save(q5::results(bids(events)), results),
        Query::Q6 => save(q6::results(events), results),
        Query::Q7 => save(q7::results(bids(events)), results),
        Query::Q8 => save(q8::results(events), results),
        Query::Q9 => save(q9::results(events), results),
        Query::Q11 => save(q11::results(bids(events)), results),
        Query::Q12 => save(q12::results(bids(events)), results),
        Query::Q13 => save(q13::results(bids(events), q13::side_input()), results),
        Query::Q14 => save(q14::results(bids(events)), results),
        Query::Q15 => save(q15::results(bids(events)), results),
        Query::Q16 => save(q16::results(bids(events)), results),
        Query::Q17 => save(q17::results(bids(events)), results),
        Query::Q18 => save(q18::results(bids(events)), results),
        Query::Q19 => save(q19::results(bids(events)), results),
        Query::Q20 => save(q20::results(events), results),
        Query::Q21 => save(q21::results(bids(events)), results),
        Query::Q22 => save(q22::results(bids(events)), results),
    }
    job
}

/// Writes rows to files; without a place for them they are made all the same, and the job's summary tells their number.
fn save<R: Serialize + Data>(rows: Stream<R>, results: Option<&Path>) {
    match results {
        Some(dir) => rows.sink(FileSink::csv(dir)).name("results"),
        None => rows.sink(for_each(|_| ())).name("results"),
    }
}
