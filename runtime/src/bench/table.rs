//! A measurement as text for the terminal.
//!
//! **Units**: written behind every figure; percentiles of kinds of latency in one table, with the noise floor below them.

use std::fmt;

use super::distribution::Percentiles;
use super::measurement::{LatencyKind, Measurement, Run};
use super::words::{bytes, rate, span};
use crate::summary::thousands;

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = if self.runs.len() > 1 { format!("{} runs, ", self.runs.len()) } else { String::new() };
        let (time, warm_up) = (self.duration.as_secs_f64(), self.warm_up.as_secs_f64());
        writeln!(f, "job `{}` under {}: {runs}{time:.1} s after {warm_up:.1} s of warm-up", self.job, self.load)?;
        self.throughput(f)?;
        self.latency_table(f)?;
        self.operator_table(f)?;
        self.background(f)
    }
}

impl Measurement {
    fn throughput(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.achieved_per_s / self.offered_per_s.max(f64::MIN_POSITIVE);
        let results: u64 = self.seconds.iter().map(|second| second.results).sum();
        writeln!(f, "  offered      {} events/s", rate(self.offered_per_s))?;
        writeln!(
            f,
            "  achieved     {} events/s ({percent:.1} %), {} results, backlog at most {} events",
            rate(self.achieved_per_s),
            thousands(results),
            thousands(self.greatest_backlog())
        )
    }

    fn latency_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n  {:<16} {:>13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "latency", "count", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"
        )?;
        for (kind, latencies) in &self.latencies {
            let found = latencies.percentiles();
            row(f, kind.title(), &found)?;
            if found.saturated > 0 {
                writeln!(f, "  {:<16} {:>13} of these took more than an hour", "", thousands(found.saturated))?;
            }
        }
        if let Some(noise) = &self.noise {
            row(f, "noise floor", &noise.delays.percentiles())?;
        }
        for kind in self.latencies.keys() {
            spread(f, *kind, &self.runs)?;
        }
        Ok(())
    }

    fn operator_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.operators.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n  {:<24} {:>15} {:>9} {:>9} {:>11} {:>9} {:>9} {:>12} {:>9}",
            "operator", "records", "busy", "of a core", "per record", "queue p50", "p99", "exchange p50", "p99"
        )?;
        for operator in &self.operators {
            let busy_ns = operator.busy.as_nanos() as u64;
            let (queue, exchange) = (operator.queue.percentiles(), operator.exchange.percentiles());
            let share = 100.0 * operator.busy.as_secs_f64() / self.duration.as_secs_f64().max(1e-9);
            let per_record = busy_ns.checked_div(operator.records).map_or_else(|| "-".to_string(), span);
            let waited = |of: &Percentiles, ns: u64| if of.count == 0 { "-".to_string() } else { span(ns) };
            writeln!(
                f,
                "  {:<24} {:>15} {:>9} {:>9} {:>11} {:>9} {:>9} {:>12} {:>9}",
                operator.name,
                thousands(operator.records),
                span(busy_ns),
                format!("{share:.1} %"),
                per_record,
                waited(&queue, queue.p50_ns),
                waited(&queue, queue.p99_ns),
                waited(&exchange, exchange.p50_ns),
                waited(&exchange, exchange.p99_ns)
            )?;
        }
        Ok(())
    }

    fn background(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        if let Some(longest) = self.checkpoints.iter().map(|taken| taken.duration).max() {
            let pause = self.checkpoints.iter().map(|taken| taken.pause).max().unwrap_or_default();
            let written = self.checkpoints.iter().map(|taken| taken.bytes).sum();
            let (longest, pause) = (span(longest.as_nanos() as u64), span(pause.as_nanos() as u64));
            let count = self.checkpoints.len();
            writeln!(f, "  checkpoints  {count}, {}, longest {longest}, longest pause {pause}", bytes(written))?;
        }
        if let Some(most) = self.most_memory_bytes() {
            writeln!(f, "  memory       at most {}", bytes(most))?;
        }
        if !self.settings.is_empty() {
            let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
            writeln!(f, "  settings     {}", settings.join(", "))?;
        }
        write!(f, "  machine      {}", self.machine)
    }
}

fn row(f: &mut fmt::Formatter<'_>, title: &str, found: &Percentiles) -> fmt::Result {
    let figures = [found.p50_ns, found.p90_ns, found.p99_ns, found.p999_ns, found.p9999_ns, found.max_ns].map(span);
    write!(f, "  {title:<16} {:>13} {:>9}", thousands(found.count), span(found.mean_ns as u64))?;
    figures.iter().try_for_each(|figure| write!(f, " {figure:>9}"))?;
    writeln!(f)
}

/// How far runs differ: the median and both ends of their 99th percentiles.
fn spread(f: &mut fmt::Formatter<'_>, kind: LatencyKind, runs: &[Run]) -> fmt::Result {
    let mut p99: Vec<u64> = runs.iter().filter_map(|run| run.latencies.get(&kind)).map(|of| of.p99_ns).collect();
    p99.sort_unstable();
    if let [least, .., most] = &*p99 {
        let (median, title) = (span(p99[p99.len() / 2]), kind.title());
        writeln!(f, "  p99 of {title} in single runs: {} to {}, median {median}", span(*least), span(*most))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::example;
    use super::*;

    #[test]
    fn a_measurement_prints_as_a_table() {
        let text = example::measurement(20).to_string();
        assert!(text.starts_with("job `spend` under constant:100k: 20.0 s after 2.0 s of warm-up\n"), "{text}");
        for line in ["  offered      100,000 events/s", "  window result", "  noise floor", "  checkpoints  2, 2.40 MB"]
        {
            assert!(text.contains(line), "`{line}` is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() < 120), "{text}");
    }

    #[test]
    fn nothing_measured_prints_as_well() {
        let text = Measurement::default().to_string();
        assert!(text.contains("0.0 %") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn several_runs_say_how_far_they_differ() {
        let all = Measurement::merged([example::measurement(5), example::measurement(7)]).unwrap();
        assert_eq!(all.duration, Duration::from_secs(12));
        let text = all.to_string();
        assert!(text.contains("2 runs") && text.contains("p99 of window result in single runs"), "{text}");
    }
}
