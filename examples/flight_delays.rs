//! How late do flights leave New York? Per airport, every ten minutes, over the last hour.
//!
//! Reads the departures of 2013 (see `examples/data/README.md`) in the order in which they left; event time is when they
//! should have left, so the stream is out of order by up to a day. Writes windows to `OUTPUT/windows/*.csv`, and departures
//! too late for all their windows to `OUTPUT/late/*.csv`. Kill it and start it again: it goes on where it was, and the output
//! is as if nothing had happened.
//!
//! ```text
//! cargo run --release --example flight_delays -- --input examples/data/departures-2013.csv.gz --output delays
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use millstream::prelude::*;
use serde::{Deserialize, Serialize};

/// Flight delays per airport, in sliding windows of event time.
#[derive(Parser)]
struct Options {
    /// Files of departures (.csv, .csv.gz or .csv.zst), each a split of its own; a command goes before this option
    #[arg(long, value_name = "FILE", num_args = 1.., default_value = "examples/data/departures-2013.csv.gz", global = true)]
    input: Vec<PathBuf>,
    /// Where `windows/*.csv` and `late/*.csv` go
    #[arg(long, value_name = "DIR", default_value = "flight_delays.out", global = true)]
    output: PathBuf,
    /// Length of a window
    #[arg(long, value_name = "SPAN", default_value = "1h", global = true)]
    size: EventSpan,
    /// How often a window begins
    #[arg(long, value_name = "SPAN", default_value = "10m", global = true)]
    slide: EventSpan,
    /// How far the watermark stays behind the highest event time seen
    #[arg(long, value_name = "SPAN", default_value = "60m", global = true)]
    out_of_orderness: EventSpan,
    /// Records per second at most; 0: as fast as it goes
    #[arg(long, value_name = "RECORDS_PER_SECOND", default_value_t = 0.0, global = true)]
    rate: f64,
    #[command(flatten)]
    job: JobArgs,
}

/// A flight that left.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Departure {
    #[serde(with = "iso8601")]
    departed_at: EventTime,
    #[serde(with = "iso8601")]
    scheduled_at: EventTime,
    carrier: String,
    flight: u32,
    tailnum: String,
    origin: String,
    dest: String,
    delay_min: i64,
    distance_mi: u32,
}

/// What one airport looked like in one window.
#[derive(Clone, Debug, Serialize)]
struct Delays {
    #[serde(with = "iso8601")]
    window_start: EventTime,
    #[serde(with = "iso8601")]
    window_end: EventTime,
    origin: String,
    flights: u64,
    total_delay_min: i64,
    max_delay_min: i64,
    delayed_over_15: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.slide == EventSpan::ZERO || options.slide > options.size {
        eprintln!("error: --slide {} must be more than nothing and at most --size {}", options.slide, options.size);
        return ExitCode::FAILURE;
    }
    let job = flight_delays(&options);
    options.job.main(job)
}

fn flight_delays(options: &Options) -> Job {
    let job = Job::new("flight-delays")
        .checkpoint_dir(options.output.join("checkpoints"))
        .checkpoint_every(std::time::Duration::from_millis(200))
        .savepoint_on_sigusr1();
    let departures = CsvFiles::new(&options.input).rate(options.rate);
    let scheduled = |departure: &Departure| departure.scheduled_at;
    let (windows, late) = job
        .source(departures, Watermarks::bounded_out_of_orderness(options.out_of_orderness, scheduled))
        .name("departures")
        .key_by(|departure| departure.origin.clone())
        .window(Sliding::of(options.size, options.slide))
        .aggregate_with_late((
            Count,
            Sum::of(|departure: &Departure| departure.delay_min),
            Max::of(|departure: &Departure| departure.delay_min),
            Sum::of(|departure: &Departure| u64::from(departure.delay_min > 15)),
        ));
    windows
        .name("delays")
        .map(|(origin, window, (flights, total_delay_min, max_delay_min, delayed_over_15))| Delays {
            window_start: window.start,
            window_end: window.end,
            origin,
            flights,
            total_delay_min,
            max_delay_min,
            delayed_over_15,
        })
        .sink(FileSink::csv(options.output.join("windows")))
        .name("windows");
    late.sink(FileSink::csv(options.output.join("late"))).name("late");
    job
}
