//! Runs a job under a load and gathers what is measured.
//!
//! **Time**: the wall clock from the first read on; measuring begins when the warm-up is over. When the time is over nothing more
//! is due, and the run goes on until what was due has gone all the way, so that a stall at the end is counted as well; but
//! no longer than [`DRAIN`]. Under a recorded load, which does not say what is still to come, it ends at once; and there
//! sources read record by record, so what it can carry is not what the job can.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millstream_state::checkpoint::StartFrom;

use super::args::{BenchArgs, present};
use super::load::Load;
use super::machine::Machine;
use super::measurement::{CheckpointTaken, Measurement, OperatorTime, Second};
use super::memory;
use super::noise::Noise;
use super::probe::OpenLoop;
use super::sustainable::{Search, Trial};
use super::times::Counted;
use crate::checkpoint::wall_clock_ms;
use crate::error::{Error, Result};
use crate::handle::{OperatorKind, OperatorStatus, Status};
use crate::job::Job;
use crate::shared::{Padded, Shared, Stats, StopMode};
use crate::supervisor;
use crate::terminal::tell;

/// How long the events that were due are waited for when the time is over.
const DRAIN: Duration = Duration::from_secs(10);

/// How often the job is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How often its memory is: that takes the system longer than all the rest, on a core that a worker may want.
const LOOK_AT_MEMORY: Duration = Duration::from_millis(500);

/// How long the noise of the machine is measured.
const NOISE: Duration = Duration::from_secs(1);

impl Job {
    /// Does what `job bench` does: measures the job under an open-loop load, shows the result, and writes the files that are
    /// asked for.
    ///
    /// The job is started anew for every run, without checkpoints of its own: where it has a directory for them, they are
    /// made in another one beside it, which is removed afterwards. Sinks are real: what they write is written. So give them
    /// a place where there is nothing yet; one with output in it is refused.
    ///
    /// # Errors
    /// Whatever makes the job fail, or when a file cannot be written.
    pub fn bench(&mut self, args: &BenchArgs) -> Result<()> {
        self.validate()?;
        let noise = Noise::measure(self.settings.workers, NOISE)?;
        let mut loads = vec![args.load.clone()];
        if args.find_rate {
            let found = Search::default().run(|rate| -> Result<Trial> {
                tell(format_args!("trying {rate} events/s"));
                let (_, trial) = self.run_under(&Load::Constant(rate), args.warm_up, args.time)?;
                Ok(trial)
            })?;
            tell(&found);
            loads = found.measure_at().into_iter().map(|(_, rate)| Load::Constant(rate)).collect();
        }
        for load in loads {
            let mut runs = Vec::new();
            for run in 1..=args.runs {
                if args.runs > 1 {
                    tell(format_args!("{load}, run {run} of {}", args.runs));
                }
                runs.push(self.run_under(&load, args.warm_up, args.time)?.0);
            }
            let Some(mut measurement) = Measurement::merged(runs) else { continue };
            measurement.noise = Some(noise.clone());
            present(&measurement, args)?;
        }
        Ok(())
    }

    /// One run of the job under `load`: `warm_up` and then `time`.
    ///
    /// # Errors
    /// Whatever makes the job fail.
    pub fn measure(&mut self, load: &Load, warm_up: Duration, time: Duration) -> Result<Measurement> {
        self.validate()?;
        Ok(self.run_under(load, warm_up, time)?.0)
    }

    fn run_under(&mut self, load: &Load, warm_up: Duration, time: Duration) -> Result<(Measurement, Trial)> {
        let own_dir = self.settings.checkpoint_dir.clone();
        let scratch = own_dir.as_ref().map(|dir| Scratch::beside(dir)).transpose()?;
        self.settings.checkpoint_dir = scratch.as_ref().map(|scratch| scratch.0.clone());
        self.load = Some(OpenLoop { load: load.clone(), warm_up, time });
        // Output that is there is somebody's, unless it is that of an earlier run of this measurement.
        let from = if self.measured { StartFrom::Fresh } else { StartFrom::Newest };
        let start_from = std::mem::replace(&mut self.settings.start_from, from);
        // A run with a restart in it would measure something else.
        let restart = std::mem::take(&mut self.settings.restart);
        let run = self.observe(load, warm_up, time);
        self.settings.restart = restart;
        self.measured |= run.is_ok();
        self.load = None;
        self.settings.start_from = start_from;
        self.settings.checkpoint_dir = own_dir;
        run
    }

    fn observe(&self, load: &Load, warm_up: Duration, time: Duration) -> Result<(Measurement, Trial)> {
        let handle = supervisor::start(self)?;
        let Some(shared) = handle.shared() else {
            return Err(Error::internal("a job that is measured was finished before"));
        };
        let mut watch = Watch::new(load, warm_up, &handle.status());
        while !handle.wait_for(LOOK) {
            let Some(origin) = shared.probe.origin() else { continue };
            let elapsed = origin.elapsed();
            let status = handle.status();
            watch.look(elapsed.as_nanos() as u64, &status, &shared);
            let over = warm_up + time;
            let done = || watch.has_read_what_was_due_by(over) && has_gone_all_the_way(&status, &shared);
            if elapsed >= over && (done() || elapsed >= over + DRAIN) {
                break;
            }
        }
        handle.stop(StopMode::Now);
        let status = handle.status();
        handle.wait()?;
        let warm = std::mem::take(&mut watch.warm);
        let mut made = watch.finish(time);
        made.0.job.clone_from(&self.name);
        made.0.settings = self.settings_in_words();
        made.0.machine = Machine::this();
        fill(&mut made.0, &shared, &warm, &status, warm_up);
        Ok(made)
    }

    fn settings_in_words(&self) -> Vec<(String, String)> {
        let settings = &self.settings;
        let checkpoints = match settings.checkpoint_dir {
            Some(_) => format!("every {:?}", settings.checkpoint_interval),
            None => "none".to_string(),
        };
        let words = [
            ("workers", settings.workers.to_string()),
            ("batch size", settings.batch_size.to_string()),
            ("checkpoints", checkpoints),
        ];
        words.map(|(name, value)| (name.to_string(), value)).to_vec()
    }
}

/// How long batches had waited for one node.
#[derive(Default)]
struct Waits {
    queue: Counted,
    exchange: Counted,
}

/// How long they have by now, for each node.
fn waits(shared: &Shared) -> Vec<Waits> {
    let of = |stats: &Vec<Padded<Stats>>| Waits {
        queue: Counted::read(stats.iter().map(|stats| &stats.0.queue)),
        exchange: Counted::read(stats.iter().map(|stats| &stats.0.exchange)),
    };
    shared.stats.iter().map(of).collect()
}

/// What the workers have measured; `warm` is how far they were at the end of the warm-up.
fn fill(made: &mut Measurement, shared: &Arc<Shared>, warm: &Warm, status: &Status, warm_up: Duration) {
    let measured = shared.probe.measured();
    made.latencies = measured.latencies;
    let after = |taken: &CheckpointTaken| Some(CheckpointTaken { start: taken.start.checked_sub(warm_up)?, ..*taken });
    made.checkpoints = measured.checkpoints.iter().filter_map(after).collect();
    made.warm_up = warm_up;
    let none = Waits::default();
    for (node, (operator, waits)) in status.operators.iter().zip(waits(shared)).enumerate() {
        let before = warm.status.operators.get(node);
        let waits_before = warm.waits.get(node).unwrap_or(&none);
        made.operators.push(OperatorTime {
            name: operator.name.clone(),
            records: operator.records_in - before.map_or(0, |before| before.records_in),
            busy: operator.busy - before.map_or(Duration::ZERO, |before| before.busy),
            queue: waits.queue.since(&waits_before.queue).distribution(),
            exchange: waits.exchange.since(&waits_before.exchange).distribution(),
        });
    }
}

/// Whether nothing is on its way any more: every operator has come as far as the sources.
fn has_gone_all_the_way(status: &Status, shared: &Shared) -> bool {
    let least = status.watermark();
    let arrived = |operator: &OperatorStatus| operator.instances.iter().all(|(_, watermark)| *watermark >= least);
    let stashed = shared.stashed.0.load(std::sync::atomic::Ordering::Relaxed);
    status.in_flight == 0 && stashed == 0 && status.operators.iter().all(arrived)
}

/// Looks at a job under load from time to time.
struct Watch {
    load: Load,
    schedule: Option<super::schedule::Schedule>,
    warm_up_ns: u64,
    sources: u64,
    started_unix_ms: u64,
    warm: Warm,
    looks: Vec<Look>,
    memory_read_ns: Option<u64>,
}

/// How far the job had come at the latest look of the warm-up.
#[derive(Default)]
struct Warm {
    status: Status,
    waits: Vec<Waits>,
}

/// How far the job had come at one moment.
#[derive(Clone, Copy, Default)]
struct Look {
    /// From the start.
    at_ns: u64,
    read: u64,
    /// Taken by sinks.
    results: u64,
    memory_bytes: Option<u64>,
}

impl Watch {
    fn new(load: &Load, warm_up: Duration, status: &Status) -> Self {
        Watch {
            load: load.clone(),
            schedule: load.schedule(),
            warm_up_ns: warm_up.as_nanos() as u64,
            sources: status.operators.iter().filter(|operator| operator.kind == OperatorKind::Source).count() as u64,
            started_unix_ms: wall_clock_ms() + warm_up.as_millis() as u64,
            warm: Warm::default(),
            looks: Vec::new(),
            memory_read_ns: None,
        }
    }

    fn look(&mut self, now_ns: u64, status: &Status, shared: &Shared) {
        if now_ns <= self.warm_up_ns {
            self.warm = Warm { status: status.clone(), waits: waits(shared) };
        }
        let rest_ns = LOOK_AT_MEMORY.as_nanos() as u64;
        let memory_bytes = match (self.memory_read_ns, self.looks.last()) {
            (Some(read_ns), Some(last)) if now_ns.saturating_sub(read_ns) < rest_ns => last.memory_bytes,
            _ => {
                self.memory_read_ns = Some(now_ns);
                memory::resident_bytes()
            }
        };
        self.looks
            .push(Look { at_ns: now_ns, read: status.records_in, results: status.records_out, memory_bytes });
    }

    fn due_by(&self, ns: u64) -> Option<u64> {
        self.schedule.as_ref().map(|schedule| schedule.due_by(ns) * self.sources)
    }

    fn has_read_what_was_due_by(&self, time: Duration) -> bool {
        let read = self.looks.last().map_or(0, |look| look.read);
        self.due_by(time.as_nanos() as u64).is_none_or(|due| read >= due)
    }

    /// The latest look at or before `ns`.
    fn at(&self, ns: u64) -> Look {
        let after = self.looks.partition_point(|look| look.at_ns <= ns);
        after.checked_sub(1).map_or(Look::default(), |last| self.looks[last])
    }

    fn finish(self, time: Duration) -> (Measurement, Trial) {
        let from = self.warm_up_ns;
        // A source that ended early ends the measurement.
        let last = self.looks.last().map_or(from, |look| look.at_ns);
        let to = (from + time.as_nanos() as u64).min(last.max(from + 1));
        let (start, end) = (self.at(from), self.at(to));
        let seconds = end.at_ns.saturating_sub(start.at_ns).max(1) as f64 / 1e9;
        let due = |look: &Look| self.due_by(look.at_ns).unwrap_or(look.read);
        let mut made = Measurement {
            load: self.load.to_string(),
            offered_per_s: (due(&end) - due(&start)) as f64 / seconds,
            achieved_per_s: (end.read - start.read) as f64 / seconds,
            started_unix_ms: self.started_unix_ms,
            duration: Duration::from_nanos(to - from),
            ..Measurement::default()
        };
        let mut before = start;
        let whole = made.duration.as_secs_f64().ceil() as u64;
        for second in 1..=whole {
            let look = self.at((from + second * 1_000_000_000).min(to));
            made.seconds.push(Second {
                due: due(&look) - due(&before),
                read: look.read - before.read,
                results: look.results - before.results,
                backlog: due(&look).saturating_sub(look.read),
                memory_bytes: look.memory_bytes,
            });
            before = look;
        }
        let backlog = self.looks.iter().filter(|look| (from..=to).contains(&look.at_ns));
        let backlog = backlog.map(|look| (look.at_ns - from, due(look).saturating_sub(look.read))).collect();
        let trial = Trial { backlog, achieved_per_s: made.achieved_per_s };
        (made, trial)
    }
}

/// A directory for the checkpoints of a measurement, removed when it is over.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(dir: &std::path::Path) -> Result<Self> {
        let mut name = dir.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".bench-{}", std::process::id()));
        let scratch = dir.with_file_name(name);
        if scratch.exists() {
            return Err(Error::config(format!("{} is in the way", scratch.display())).hint("remove it"));
        }
        Ok(Scratch(scratch))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
