//! Everything that is known of one run under load, or of several of the same kind, as a plain value.
//!
//! A measurement is what a report is made from. It serialises, so it can be kept and compared later. Several runs of the
//! same thing are put one **behind the other** by [`Measurement::merge`]: their latencies are counted together, their seconds
//! follow each other, and nothing is averaged away; the figures of each run are kept beside ([`Run`]), so that a reader
//! sees how far they differ.
//!
//! **Units**: events per second; durations say their own; seconds of the measurement count from 0. **Time**: the wall clock.
//! Warm-up is left out before: it has no place in here but for its length.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::distribution::{Distribution, Percentiles};
use super::latency::Latencies;
use super::machine::Machine;
use super::noise::Noise;

/// From when on a latency counts. All end when the sink has taken the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LatencyKind {
    /// A window's result, from the instant at which its window could first have closed: the wait for the watermark is in it
    /// only as far as the job adds to it.
    WindowResult,
    /// A result, from when the last record that it needed was due. For windows that is the first record at or past the
    /// window's last instant.
    RecordToResult,
    /// A record that passed through, from when it was due itself.
    Record,
}

impl LatencyKind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [LatencyKind; 3] = [LatencyKind::WindowResult, LatencyKind::RecordToResult, LatencyKind::Record];

    /// Its name in files, such as `window_result`.
    pub const fn name(self) -> &'static str {
        match self {
            LatencyKind::WindowResult => "window_result",
            LatencyKind::RecordToResult => "record_to_result",
            LatencyKind::Record => "record",
        }
    }

    /// Its name for people.
    pub const fn title(self) -> &'static str {
        match self {
            LatencyKind::WindowResult => "window result",
            LatencyKind::RecordToResult => "record to result",
            LatencyKind::Record => "record",
        }
    }

    /// What it counts, in a sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            LatencyKind::WindowResult => "from the instant at which a window could first have closed to its result",
            LatencyKind::RecordToResult => "from when the last record that a result needed was due to the result",
            LatencyKind::Record => "from when a record was due to when it had passed through",
        }
    }
}

/// One second of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Second {
    /// Events that became due.
    pub due: u64,
    /// Events that sources read.
    pub read: u64,
    /// Results that sinks took.
    pub results: u64,
    /// Events that were due and not yet read, at the end of the second.
    pub backlog: u64,
    /// Resident memory, read at most about half a second before the end of the second, in bytes; unknown on some systems.
    pub memory_bytes: Option<u64>,
}

/// One checkpoint of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CheckpointTaken {
    /// When it was announced, from the start of the measurement.
    pub start: Duration,
    /// From its announcement to its publication.
    pub duration: Duration,
    /// How much was written for it.
    pub bytes: u64,
    /// The longest that a worker stood still for it.
    pub pause: Duration,
}

/// What one operator did, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OperatorTime {
    /// Its name.
    pub name: String,
    /// Records taken in, from the end of the warm-up on.
    pub records: u64,
    /// How long its code ran, from the end of the warm-up on.
    pub busy: Duration,
    /// How long batches waited for it on their worker, from the end of the warm-up on; in steps of 1.6 %.
    pub queue: Distribution,
    /// How long batches were on their way to it through an exchange between workers, as `queue`.
    #[serde(default)]
    pub exchange: Distribution,
}

/// The figures of one of several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Run {
    /// Its first second in the measurement.
    pub from_second: u64,
    /// How long was measured.
    pub duration: Duration,
    /// Events due per second.
    pub offered_per_s: f64,
    /// Events read per second.
    pub achieved_per_s: f64,
    /// Its latencies of each kind that it has.
    pub latencies: BTreeMap<LatencyKind, Percentiles>,
}

/// Everything that is known of a run under load, or of several of the same kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Measurement {
    /// The job's name.
    pub job: String,
    /// How it was run, each setting with its value in words: workers, batch size, checkpoint interval, ...
    pub settings: Vec<(String, String)>,
    /// The load in words.
    pub load: String,
    /// Events due per second, over all that was measured.
    pub offered_per_s: f64,
    /// Events read per second.
    pub achieved_per_s: f64,
    /// When measuring began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long was measured.
    pub duration: Duration,
    /// How long the job had run before, in each run.
    pub warm_up: Duration,
    /// Latencies of each kind that the job has.
    pub latencies: BTreeMap<LatencyKind, Latencies>,
    /// What happened in each second, from 0.
    pub seconds: Vec<Second>,
    /// Checkpoints, in order.
    pub checkpoints: Vec<CheckpointTaken>,
    /// Operators, in the order of the job.
    pub operators: Vec<OperatorTime>,
    /// What the machine adds by itself.
    pub noise: Option<Noise>,
    /// The machine.
    pub machine: Machine,
    /// Each of several runs; empty when there was one.
    pub runs: Vec<Run>,
}

impl Measurement {
    /// Latencies of `kind`, made when there are none yet.
    pub fn latencies_mut(&mut self, kind: LatencyKind) -> &mut Latencies {
        self.latencies.entry(kind).or_default()
    }

    /// How many seconds are measured, counting one begun.
    pub fn whole_seconds(&self) -> u64 {
        let last = |latencies: &Latencies| latencies.last_second().map_or(0, |second| second + 1);
        let latencies = self.latencies.values().map(last).max().unwrap_or(0);
        latencies.max(self.seconds.len() as u64).max(self.duration.as_secs_f64().ceil() as u64)
    }

    /// Its own figures, as one of several runs.
    pub fn run(&self) -> Run {
        Run {
            from_second: 0,
            duration: self.duration,
            offered_per_s: self.offered_per_s,
            achieved_per_s: self.achieved_per_s,
            latencies: self.latencies.iter().map(|(kind, latencies)| (*kind, latencies.percentiles())).collect(),
        }
    }

    /// Puts another run of the same thing behind this one. Names, settings, load and machine stay as they are here.
    pub fn merge(&mut self, other: &Measurement) {
        if self.runs.is_empty() {
            self.runs.push(self.run());
        }
        let from = self.whole_seconds();
        let others = if other.runs.is_empty() { vec![other.run()] } else { other.runs.clone() };
        self.runs.extend(others.into_iter().map(|run| Run { from_second: from + run.from_second, ..run }));
        for (kind, latencies) in &other.latencies {
            self.latencies_mut(*kind).append(latencies, from);
        }
        self.seconds.resize(from as usize, Second::default());
        self.seconds.extend_from_slice(&other.seconds);
        let later =
            |taken: &CheckpointTaken| CheckpointTaken { start: taken.start + Duration::from_secs(from), ..*taken };
        self.checkpoints.extend(other.checkpoints.iter().map(later));
        for operator in &other.operators {
            match self.operators.iter_mut().find(|mine| mine.name == operator.name) {
                Some(mine) => {
                    mine.records += operator.records;
                    mine.busy += operator.busy;
                    mine.queue.merge(&operator.queue);
                    mine.exchange.merge(&operator.exchange);
                }
                None => self.operators.push(operator.clone()),
            }
        }
        match (&mut self.noise, &other.noise) {
            (Some(mine), Some(noise)) => mine.merge(noise),
            (mine @ None, noise) => mine.clone_from(noise),
            (Some(_), None) => {}
        }
        let (mine, others) = (self.duration.as_secs_f64(), other.duration.as_secs_f64());
        let mean = |a: f64, b: f64| if mine + others > 0.0 { (a * mine + b * others) / (mine + others) } else { a };
        self.offered_per_s = mean(self.offered_per_s, other.offered_per_s);
        self.achieved_per_s = mean(self.achieved_per_s, other.achieved_per_s);
        self.duration += other.duration;
    }

    /// All runs of the same thing as one measurement; `None` when there are none.
    pub fn merged(runs: impl IntoIterator<Item = Measurement>) -> Option<Measurement> {
        runs.into_iter().reduce(|mut all, run| {
            all.merge(&run);
            all
        })
    }

    /// The greatest backlog of all seconds, in events.
    pub fn greatest_backlog(&self) -> u64 {
        self.seconds.iter().map(|second| second.backlog).max().unwrap_or(0)
    }

    /// The most memory of all seconds, in bytes.
    pub fn most_memory_bytes(&self) -> Option<u64> {
        self.seconds.iter().filter_map(|second| second.memory_bytes).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::latency::SECOND_NS;

    fn run(latency_ns: u64, seconds: u64) -> Measurement {
        let mut made = Measurement {
            job: "spend".to_string(),
            offered_per_s: 100.0 * seconds as f64,
            achieved_per_s: 100.0,
            duration: Duration::from_secs(seconds),
            seconds: (0..seconds).map(|backlog| Second { backlog, due: 100, ..Second::default() }).collect(),
            checkpoints: vec![CheckpointTaken { start: Duration::from_millis(500), bytes: 7, ..Default::default() }],
            operators: vec![OperatorTime { name: "sum".into(), records: 3, ..OperatorTime::default() }],
            ..Measurement::default()
        };
        made.operators[0].queue.record(latency_ns, 1);
        made.operators[0].exchange.record(latency_ns, 2);
        for second in 0..seconds {
            made.latencies_mut(LatencyKind::Record).record(second * SECOND_NS, latency_ns, 10);
        }
        made
    }

    #[test]
    fn runs_are_put_one_behind_the_other() {
        let all = Measurement::merged([run(1_000, 2), run(3_000, 3), run(2_000, 1)]).unwrap();
        assert_eq!((all.duration, all.seconds.len(), all.greatest_backlog()), (Duration::from_secs(6), 6, 2));
        let starts: Vec<_> = all.checkpoints.iter().map(|taken| taken.start.as_millis()).collect();
        assert_eq!(starts, [500, 2_500, 5_500]);
        let operator = &all.operators[0];
        assert_eq!((all.operators.len(), operator.records), (1, 9));
        assert_eq!((operator.queue.count(), operator.exchange.count()), (3, 6));
        let latencies = &all.latencies[&LatencyKind::Record];
        let greatest: Vec<_> = latencies.seconds().map(|(at, of)| (at, of.percentiles().max_ns)).collect();
        assert_eq!(greatest, [(0, 1_000), (1, 1_000), (2, 3_000), (3, 3_000), (4, 3_000), (5, 2_000)]);
        let of_runs: Vec<_> = all.runs.iter().map(|run| run.latencies[&LatencyKind::Record].p50_ns).collect();
        assert_eq!(of_runs, [1_000, 3_000, 2_000]);
        assert_eq!(all.runs.iter().map(|run| run.from_second).collect::<Vec<_>>(), [0, 2, 5]);
        assert!((all.offered_per_s - (200.0 * 2.0 + 300.0 * 3.0 + 100.0) / 6.0).abs() < 1e-9);
        assert_eq!(Measurement::merged([]), None);
    }

    #[test]
    fn results_after_the_last_second_do_not_overlap_the_next_run() {
        let mut first = run(1_000, 2);
        // It was due in the run, but complete only later.
        first.latencies_mut(LatencyKind::Record).record(4 * SECOND_NS, 2 * SECOND_NS, 1);
        first.merge(&run(1_000, 1));
        assert_eq!((first.whole_seconds(), first.seconds.len()), (6, 6));
        assert_eq!(first.latencies[&LatencyKind::Record].seconds().map(|(at, _)| at).collect::<Vec<_>>(), [0, 1, 4, 5]);
    }

    #[test]
    fn a_measurement_can_be_kept() {
        let made = run(1_000, 2);
        let text = serde_json::to_string(&made).unwrap();
        assert!(text.contains("\"record\":["), "{text}");
        assert_eq!(serde_json::from_str::<Measurement>(&text).unwrap(), made);
    }
}
