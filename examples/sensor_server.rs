//! A server that loses nothing: readings of sensors come in by TCP, are recorded in a log before they are acknowledged, and the
//! job that reads the log keeps a running count and sum per sensor.
//!
//! A client sends lines `SENSOR VALUE` and gets `ok` for each once the reading is durable, or `error: ...` for one
//! that cannot be read. Kill the server as often as you like: every reading that was answered with `ok` is counted, once, and
//! the rows in `OUTPUT/totals/*.csv` show it.
//!
//! ```text
//! cargo run --release --example sensor_server -- --output sensors --listen 127.0.0.1:7007
//! printf 'kitchen 21\nkitchen 22\n' | nc -q 1 127.0.0.1 7007
//! ```

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

use clap::Parser;
use millstream::prelude::*;
use serde::{Deserialize, Serialize};

/// Counts and sums readings that come in by TCP.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7007", global = true)]
    listen: SocketAddr,
    /// Where the log, checkpoints and `totals/*.csv` go
    #[arg(long, value_name = "DIR", default_value = "sensor_server.out", global = true)]
    output: PathBuf,
    #[command(flatten)]
    job: JobArgs,
}

/// What a sensor says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reading {
    sensor: String,
    value: i64,
    /// Whom to answer. It does not go into the log.
    #[serde(skip)]
    client: Option<mpsc::Sender<String>>,
}

/// One sensor after one of its readings.
#[derive(Clone, Debug, Serialize)]
struct Total {
    sensor: String,
    value: i64,
    readings: u64,
    sum: i64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let job = match server(&options) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    options.job.main(job)
}

fn server(options: &Options) -> Result<Job, Error> {
    let log = Log::open(options.output.join("log"), LogOptions::new())?;
    let (sender, readings) = channel(10_000);
    listen(options.listen, sender).map_err(|error| {
        Error::external(format!("cannot listen on {}", options.listen))
            .because(error)
            .hint("choose another address")
    })?;
    let readings = readings.recorded(&log).acknowledge(|reading: Reading| {
        if let Some(client) = reading.client {
            // A client that has gone does not want to know.
            let _ = client.send("ok".to_string());
        }
    });

    let job = Job::new("sensors")
        .checkpoint_dir(options.output.join("checkpoints"))
        .checkpoint_every(std::time::Duration::from_millis(200));
    job.source(readings, Watermarks::none(|_: &Reading| EventTime::EPOCH))
        .name("readings")
        .key_by(|reading| reading.sensor.clone())
        .fold((0, 0, 0), |(readings, sum, value), reading| {
            *readings += 1;
            *sum += reading.value;
            *value = reading.value;
        })
        .name("totals")
        .map(|(sensor, (readings, sum, value))| Total { sensor, value, readings, sum })
        .sink(FileSink::csv(options.output.join("totals")))
        .name("out");
    Ok(job)
}

/// Takes clients, each on two threads of its own, for as long as the process lives.
fn listen(address: SocketAddr, readings: ChannelSender<Reading>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let serve = move || {
        for stream in listener.incoming().flatten() {
            let readings = readings.clone();
            if let Err(error) = take(stream, readings) {
                eprintln!("a client cannot be served: {error}");
            }
        }
    };
    std::thread::Builder::new().name("listen".to_string()).spawn(serve)?;
    Ok(())
}

fn take(stream: TcpStream, readings: ChannelSender<Reading>) -> std::io::Result<()> {
    let mut to_client = BufWriter::new(stream.try_clone()?);
    let (client, answers) = mpsc::channel::<String>();
    let answer = move || {
        while let Ok(first) = answers.recv() {
            let mut all = std::iter::once(first).chain(answers.try_iter());
            let written = all.try_for_each(|answer| writeln!(to_client, "{answer}"));
            if written.and_then(|()| to_client.flush()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("answer".to_string()).spawn(answer)?;
    let read = move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let parsed = line.split_once(' ').and_then(|(sensor, value)| Some((sensor, value.trim().parse().ok()?)));
            let Some((sensor, value)) = parsed else {
                let _ = client.send("error: a line is `SENSOR VALUE`, with a whole number".to_string());
                continue;
            };
            let reading = Reading { sensor: sensor.to_string(), value, client: Some(client.clone()) };
            if readings.send(reading).is_err() {
                let _ = client.send("error: the server is stopping".to_string());
                return;
            }
        }
    };
    std::thread::Builder::new().name("client".to_string()).spawn(read)?;
    Ok(())
}
