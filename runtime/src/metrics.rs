//! Every metric, in one list, handed to the `metrics` facade. A library owns no registry: install a recorder (for example
//! `metrics-exporter-prometheus`) in the program to see them.
//!
//! | name | unit | labels |
//! |---|---|---|
//! | `millstream_records_in_total` | records | job, operator |
//! | `millstream_records_out_total` | records | job, operator |
//! | `millstream_late_total` | records | job, operator |
//! | `millstream_bad_total` | records | job, operator |
//! | `millstream_windows_fired_total` | windows | job, operator |
//! | `millstream_calls_total` | calls | job, operator |
//! | `millstream_calls_retried_total` | records called again | job, operator |
//! | `millstream_calls_failed_total` | records whose last attempt failed | job, operator |
//! | `millstream_calls_timed_out_total` | calls | job, operator |
//! | `millstream_calls_in_flight` | records | job, operator |
//! | `millstream_busy_microseconds_total` | microseconds of a core | job, operator |
//! | `millstream_dealing_microseconds_total` | microseconds of a core | job, operator |
//! | `millstream_queue_seconds` | seconds | job, operator, quantile |
//! | `millstream_exchange_seconds` | seconds | job, operator, quantile |
//! | `millstream_latency_seconds` | seconds | job, operator, of, quantile |
//! | `millstream_watermark_seconds` | seconds since 1970 | job |
//! | `millstream_in_flight` | records | job |
//! | `millstream_state_bytes` | bytes of memory | job, operator |
//! | `millstream_rocksdb_bytes` | bytes of memory | job |
//! | `millstream_checkpoints_total` | checkpoints | job |
//! | `millstream_restarts_total` | restarts after a failure | job |
//! | `millstream_set_aside_total` | records set aside | job, operator |
//! | `millstream_checkpoint_seconds` | seconds | job |
//!
//! What busy, dealing, queue, exchange and latency are, [`OperatorStatus`] says; all of them
//! count from the start of the run. When a job is restarted, counters go on, with what is read again; times begin anew. Counters of the facade are whole numbers, so those of time are in microseconds. The
//! gauges with a `quantile` have it for 0.5, 0.99 and 1, the greatest; `of` is `record` or `result`.

use std::collections::HashMap;
use std::time::Duration;

use crate::bench::Percentiles;
use crate::handle::{CallStatus, OperatorStatus, Status};
use crate::time::EventTime;

const COUNTERS: [&str; 11] = [
    "millstream_records_in_total",
    "millstream_records_out_total",
    "millstream_late_total",
    "millstream_bad_total",
    "millstream_windows_fired_total",
    "millstream_calls_total",
    "millstream_calls_retried_total",
    "millstream_calls_failed_total",
    "millstream_calls_timed_out_total",
    "millstream_busy_microseconds_total",
    "millstream_dealing_microseconds_total",
];

/// The values of an operator's counters.
fn counters(operator: &OperatorStatus) -> [u64; COUNTERS.len()] {
    let OperatorStatus { records_in, records_out, late, bad, windows_fired, calls, busy, dealing, .. } = operator;
    let [busy, dealing] = [busy, dealing].map(|time| time.as_micros() as u64);
    let CallStatus { made, retried, failed, timed_out, .. } = *calls;
    [*records_in, *records_out, *late, *bad, *windows_fired, made, retried, failed, timed_out, busy, dealing]
}

/// What earlier attempts of a job have counted, by operator: a counter never goes back.
#[derive(Debug, Default)]
pub(crate) struct Counted(HashMap<String, [u64; COUNTERS.len()]>);

impl Counted {
    /// An attempt is over.
    pub(crate) fn add(&mut self, status: &Status) {
        for operator in &status.operators {
            let total = self.0.entry(operator.name.clone()).or_default();
            total.iter_mut().zip(counters(operator)).for_each(|(total, more)| *total += more);
        }
    }
}

pub(crate) fn restarted(job: &str) {
    metrics::counter!("millstream_restarts_total", "job" => job.to_string()).increment(1);
}

pub(crate) fn set_aside(job: &str, source: &str) {
    let labels = [("job", job.to_string()), ("operator", source.to_string())];
    metrics::counter!("millstream_set_aside_total", &labels).increment(1);
}

pub(crate) fn publish(job: &str, status: &Status, before: &Counted) {
    for operator in &status.operators {
        let before = before.0.get(&operator.name).copied().unwrap_or_default();
        for (name, value) in COUNTERS.into_iter().zip(counters(operator).iter().zip(before).map(|(n, more)| n + more)) {
            if value > 0 {
                metrics::counter!(name, "job" => job.to_string(), "operator" => operator.name.clone()).absolute(value);
            }
        }
        let labels = [("job", job.to_string()), ("operator", operator.name.clone())];
        if operator.state_bytes > 0 {
            metrics::gauge!("millstream_state_bytes", &labels).set(operator.state_bytes as f64);
        }
        if operator.calls.made > 0 {
            metrics::gauge!("millstream_calls_in_flight", &labels).set(operator.calls.in_flight as f64);
        }
        quantiles("millstream_queue_seconds", &labels, &operator.queue);
        quantiles("millstream_exchange_seconds", &labels, &operator.exchange);
        for (of, latency) in operator.latencies() {
            let [job, operator] = labels.clone();
            quantiles("millstream_latency_seconds", &[job, operator, ("of", of.to_string())], latency);
        }
    }
    let watermark = status.watermark();
    if watermark != EventTime::MIN && watermark != EventTime::MAX {
        metrics::gauge!("millstream_watermark_seconds", "job" => job.to_string()).set(watermark.micros() as f64 / 1e6);
    }
    metrics::gauge!("millstream_rocksdb_bytes", "job" => job.to_string()).set(status.rocksdb_bytes as f64);
    metrics::gauge!("millstream_in_flight", "job" => job.to_string()).set(status.in_flight as f64);
}

/// Sets a gauge for each of a few quantiles.
fn quantiles(name: &'static str, labels: &[(&'static str, String)], of: &Percentiles) {
    if of.count == 0 {
        return;
    }
    for (quantile, ns) in [("0.5", of.p50_ns), ("0.99", of.p99_ns), ("1", of.max_ns)] {
        let mut labels = labels.to_vec();
        labels.push(("quantile", quantile.to_string()));
        metrics::gauge!(name, &labels).set(ns as f64 / 1e9);
    }
}

pub(crate) fn checkpoint(job: &str, took: Duration) {
    metrics::counter!("millstream_checkpoints_total", "job" => job.to_string()).increment(1);
    metrics::histogram!("millstream_checkpoint_seconds", "job" => job.to_string()).record(took.as_secs_f64());
}
