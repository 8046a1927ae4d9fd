//! A measurement as figures in JSON: what a page draws, and what scripts compare.
//!
//! Unlike the [`Measurement`] itself it has no histograms, only figures that follow from them, so it stays small and its form
//! can be read without knowing Millstream. Names end in their unit.
//!
//! **Units**: as the names say; `rest` of a curve is the fraction of values above: 0.01 is the 99th percentile.

use std::time::Duration;

use serde::Serialize;

use super::distribution::{Distribution, Percentiles};
use super::latency::Latencies;
use super::measurement::{CheckpointTaken, LatencyKind, Measurement, OperatorTime, Run, Second};
use crate::time::EventTime;

/// How many points a curve has for each further nine of its percentile.
const POINTS_PER_NINE: u32 = 24;

/// A measurement as figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    job: String,
    settings: Vec<(String, String)>,
    load: String,
    offered_per_s: f64,
    achieved_per_s: f64,
    started: String,
    duration_s: f64,
    warm_up_s: f64,
    greatest_backlog: u64,
    most_memory_bytes: Option<u64>,
    cpu: String,
    cores: usize,
    os: String,
    latencies: Vec<LatencyFigures>,
    noise: Option<NoiseFigures>,
    seconds: Vec<Second>,
    checkpoints: Vec<CheckpointFigures>,
    operators: Vec<OperatorFigures>,
    runs: Vec<RunFigures>,
}

#[derive(Clone, Debug, Serialize)]
struct LatencyFigures {
    kind: LatencyKind,
    title: &'static str,
    meaning: &'static str,
    all: Percentiles,
    curve: Vec<Point>,
    seconds: Vec<SecondFigures>,
}

#[derive(Clone, Debug, Serialize)]
struct SecondFigures {
    second: u64,
    #[serde(flatten)]
    all: Percentiles,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, Serialize)]
struct Point {
    rest: f64,
    ns: u64,
}

#[derive(Clone, Debug, Serialize)]
struct NoiseFigures {
    duration_s: f64,
    threads: usize,
    delays: Percentiles,
    gaps: Percentiles,
    curve: Vec<Point>,
}

#[derive(Clone, Debug, Serialize)]
struct CheckpointFigures {
    start_s: f64,
    duration_s: f64,
    bytes: u64,
    pause_s: f64,
}

#[derive(Clone, Debug, Serialize)]
struct OperatorFigures {
    name: String,
    records: u64,
    busy_s: f64,
    queue: Percentiles,
    exchange: Percentiles,
}

#[derive(Clone, Debug, Serialize)]
struct RunFigures {
    from_second: u64,
    duration_s: f64,
    offered_per_s: f64,
    achieved_per_s: f64,
    latencies: Vec<(LatencyKind, Percentiles)>,
}

impl Figures {
    /// The figures of a measurement.
    pub fn new(of: &Measurement) -> Figures {
        let started = i64::try_from(of.started_unix_ms).map_or(EventTime::MAX, EventTime::from_millis);
        Figures {
            job: of.job.clone(),
            settings: of.settings.clone(),
            load: of.load.clone(),
            offered_per_s: of.offered_per_s,
            achieved_per_s: of.achieved_per_s,
            started: started.to_string(),
            duration_s: of.duration.as_secs_f64(),
            warm_up_s: of.warm_up.as_secs_f64(),
            greatest_backlog: of.greatest_backlog(),
            most_memory_bytes: of.most_memory_bytes(),
            cpu: of.machine.cpu.clone(),
            cores: of.machine.cores,
            os: of.machine.os.clone(),
            latencies: of.latencies.iter().map(|(kind, latencies)| LatencyFigures::new(*kind, latencies)).collect(),
            noise: of.noise.as_ref().map(|noise| NoiseFigures {
                duration_s: noise.duration.as_secs_f64(),
                threads: noise.threads,
                delays: noise.delays.percentiles(),
                gaps: noise.gaps.percentiles(),
                curve: curve(&noise.delays),
            }),
            seconds: of.seconds.clone(),
            checkpoints: of.checkpoints.iter().map(CheckpointFigures::from).collect(),
            operators: of.operators.iter().map(OperatorFigures::from).collect(),
            runs: of.runs.iter().map(RunFigures::from).collect(),
        }
    }

    /// As JSON; `pretty` for people.
    pub fn json(&self, pretty: bool) -> String {
        let text = if pretty { serde_json::to_string_pretty(self) } else { serde_json::to_string(self) };
        // Plain structs of numbers and texts: there is nothing that JSON could not say.
        text.unwrap_or_else(|error| format!("{{\"error\": {:?}}}", error.to_string()))
    }
}

impl LatencyFigures {
    fn new(kind: LatencyKind, latencies: &Latencies) -> LatencyFigures {
        let (total, seconds) = (latencies.total(), latencies.seconds());
        LatencyFigures {
            kind,
            title: kind.title(),
            meaning: kind.meaning(),
            all: total.percentiles(),
            curve: curve(&total),
            seconds: seconds.map(|(second, of)| SecondFigures { second, all: of.percentiles() }).collect(),
        }
    }
}

fn curve(of: &Distribution) -> Vec<Point> {
    let least = 1.0 / of.count().max(1) as f64;
    let points = of.curve(POINTS_PER_NINE).into_iter();
    points.map(|(quantile, ns)| Point { rest: (1.0 - quantile).max(least), ns }).collect()
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

impl From<&CheckpointTaken> for CheckpointFigures {
    fn from(of: &CheckpointTaken) -> Self {
        let (start_s, duration_s, pause_s) = (seconds(of.start), seconds(of.duration), seconds(of.pause));
        CheckpointFigures { start_s, duration_s, bytes: of.bytes, pause_s }
    }
}

impl From<&OperatorTime> for OperatorFigures {
    fn from(of: &OperatorTime) -> Self {
        let (queue, exchange) = (of.queue.percentiles(), of.exchange.percentiles());
        OperatorFigures { name: of.name.clone(), records: of.records, busy_s: seconds(of.busy), queue, exchange }
    }
}

impl From<&Run> for RunFigures {
    fn from(of: &Run) -> Self {
        RunFigures {
            from_second: of.from_second,
            duration_s: seconds(of.duration),
            offered_per_s: of.offered_per_s,
            achieved_per_s: of.achieved_per_s,
            latencies: of.latencies.iter().map(|(kind, found)| (*kind, *found)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::example;
    use super::*;

    #[test]
    fn figures_are_json_with_units_in_names() {
        let value: Value = serde_json::from_str(&Figures::new(&example::measurement(12)).json(true)).unwrap();
        assert_eq!(value["job"], "spend");
        assert_eq!(value["started"], "2026-11-18T11:06:40Z");
        assert_eq!(value["latencies"][0]["kind"], "window_result");
        assert_eq!(value["latencies"][0]["seconds"].as_array().map(Vec::len), Some(12));
        assert_eq!(value["latencies"][0]["seconds"][3]["count"], 6_000);
        assert_eq!(value["checkpoints"][0]["start_s"], 5.12);
        assert_eq!(value["seconds"][0]["due"], 100_000);
        let curve = value["latencies"][0]["curve"].as_array().unwrap();
        assert_eq!(curve[0]["rest"], 1.0);
        assert_eq!(curve.last().unwrap()["ns"], value["latencies"][0]["all"]["max_ns"]);
    }

    #[test]
    fn nothing_measured_is_json_as_well() {
        assert!(serde_json::from_str::<Value>(&Figures::new(&Measurement::default()).json(false)).is_ok());
    }
}
