//! What a run of a job came to.

use std::fmt;
use std::time::Duration;

use crate::bench::words::{bytes, span};
use crate::handle::{CallStatus, OperatorStatus};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All input was read, all windows fired, all output committed.
    Finished,
    /// It was stopped; the next start goes on from the last checkpoint.
    Stopped,
    /// An earlier run had finished; nothing was done.
    AlreadyFinished,
}

/// Counts and times of one run. Everything counts from this start, not from the job's first one; and from the last restart, where
/// there were some.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The job's name.
    pub job: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The checkpoint that it started from.
    pub restored: Option<u64>,
    /// The last checkpoint.
    pub epoch: Option<u64>,
    /// Records read by all sources.
    pub records_in: u64,
    /// Records taken by all sinks.
    pub records_out: u64,
    /// Records that were late for all their windows.
    pub late: u64,
    /// Records that could not be read and were dropped or diverted.
    pub bad: u64,
    /// Windows fired, counted per key.
    pub windows_fired: u64,
    /// Checkpoints taken.
    pub checkpoints: u64,
    /// Bytes of state written for them.
    pub checkpoint_bytes: u64,
    /// The longest that one worker stood still for one operator's part of a checkpoint.
    pub longest_pause: Duration,
    /// The longest that a checkpoint took from its announcement to its publication.
    pub longest_checkpoint: Duration,
    /// The most memory that keyed state took, in bytes, and that RocksDB took; looked at four times a second and at the end.
    pub most_state_bytes: u64,
    /// See above.
    pub most_rocksdb_bytes: u64,
    /// From the start to the end.
    pub elapsed: Duration,
    /// How often the job was restarted after a failure.
    pub restarts: u64,
    /// Records of its input that are set aside, by this run or earlier ones.
    pub set_aside: u64,
    /// What each operator did, and where time went: operators in the order in which they were described.
    pub operators: Vec<OperatorStatus>,
}

impl Summary {
    pub(crate) fn empty(job: &str, outcome: Outcome) -> Self {
        Summary {
            job: job.to_string(),
            outcome,
            restored: None,
            epoch: None,
            records_in: 0,
            records_out: 0,
            late: 0,
            bad: 0,
            windows_fired: 0,
            checkpoints: 0,
            checkpoint_bytes: 0,
            longest_pause: Duration::ZERO,
            longest_checkpoint: Duration::ZERO,
            most_state_bytes: 0,
            most_rocksdb_bytes: 0,
            elapsed: Duration::ZERO,
            restarts: 0,
            set_aside: 0,
            operators: Vec::new(),
        }
    }

    /// Records read per second of the whole run.
    pub fn records_per_second(&self) -> f64 {
        self.records_in as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.job;
        match self.outcome {
            Outcome::AlreadyFinished => {
                let epoch = self.epoch.unwrap_or_default();
                return write!(
                    f,
                    "job `{job}` had already finished, with checkpoint {epoch}; nothing to do, whatever its input got since. \
                     `--fresh` begins again and sets the old output aside."
                );
            }
            Outcome::Finished => write!(f, "job `{job}` finished")?,
            Outcome::Stopped if self.epoch.is_some() => write!(f, "job `{job}` stopped; start it again to go on")?,
            Outcome::Stopped => write!(f, "job `{job}` stopped, with no checkpoint to go on from")?,
        }
        if let Some(epoch) = self.restored {
            write!(f, " (resumed from checkpoint {epoch})")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "  records   {} in, {} out, {} late, {} bad",
            thousands(self.records_in),
            thousands(self.records_out),
            thousands(self.late),
            thousands(self.bad)
        )?;
        writeln!(f, "  windows   {} fired", thousands(self.windows_fired))?;
        if self.restarts > 0 {
            writeln!(f, "  restarts  {}; counts and times are those of the last attempt", thousands(self.restarts))?;
        }
        if self.set_aside > 0 {
            writeln!(
                f,
                "  set aside {} records, see `set-aside.jsonl` beside the checkpoints",
                thousands(self.set_aside)
            )?;
        }
        match self.epoch {
            Some(epoch) => writeln!(
                f,
                "  state     {} checkpoints up to number {epoch}, {} bytes, longest {:.1} ms, longest pause {:.1} ms",
                thousands(self.checkpoints),
                thousands(self.checkpoint_bytes),
                self.longest_checkpoint.as_secs_f64() * 1e3,
                self.longest_pause.as_secs_f64() * 1e3
            )?,
            None => writeln!(f, "  state     no checkpoints (no checkpoint directory)")?,
        }
        if self.most_state_bytes > 0 {
            let (state, rocksdb) = (bytes(self.most_state_bytes), bytes(self.most_rocksdb_bytes));
            writeln!(f, "  memory    state {state}, RocksDB {rocksdb}, at the most")?;
        }
        write!(
            f,
            "  time      {:.2} s, {} records/s",
            self.elapsed.as_secs_f64(),
            thousands(self.records_per_second() as u64)
        )?;
        self.write_calls(f)?;
        self.write_busy(f)?;
        self.write_latencies(f)
    }
}

/// How many operators are named that were busy for longest.
const BUSIEST: usize = 5;

impl Summary {
    /// What was called outside.
    fn write_calls(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut title = "calls";
        for operator in self.operators.iter().filter(|operator| operator.calls.made > 0) {
            let CallStatus { made, retried, failed, timed_out, .. } = operator.calls;
            let [made, retried, failed, timed_out] = [made, retried, failed, timed_out].map(thousands);
            let name = &operator.name;
            write!(f, "\n  {title:<8}  {name} {made}, {retried} called again, {timed_out} timed out, {failed} failed")?;
            title = "";
        }
        Ok(())
    }

    /// Who was busy for how long, over all workers, the longest first.
    fn write_busy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.operators.iter().map(|operator| (operator.name.as_str(), operator.busy));
        let mut busy: Vec<_> = own.filter(|(_, time)| !time.is_zero()).collect();
        let dealing: Duration = self.operators.iter().map(|operator| operator.dealing).sum();
        if !dealing.is_zero() {
            busy.push(("(exchange)", dealing));
        }
        if busy.is_empty() {
            return Ok(());
        }
        busy.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let named = busy.iter().take(BUSIEST).map(|(name, time)| format!("{name} {}", span(time.as_nanos() as u64)));
        write!(f, "\n  busy      {}", named.collect::<Vec<_>>().join(", "))?;
        match busy.len().saturating_sub(BUSIEST) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }

    /// How long it took until sinks had records and results.
    fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut title = "latency";
        for operator in &self.operators {
            for (of, latency) in operator.latencies() {
                let (p50, p99, max) = (span(latency.p50_ns), span(latency.p99_ns), span(latency.max_ns));
                write!(f, "\n  {title:<8}  {}, of each {of}: p50 {p50}, p99 {p99}, max {max}", operator.name)?;
                title = "";
            }
        }
        Ok(())
    }
}

/// A number with commas, so that people can read it.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn numbers_have_commas() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
