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
//! | `millstream_checkpoint_seconds` | seconds | job |
//!
//! What busy, dealing, queue, exchange and latency are, [`OperatorStatus`](crate::handle::OperatorStatus) says; all of them
//! count from the start of the run. Counters of the facade are whole numbers, so those of time are in microseconds. The
//! gauges with a `quantile` have it for 0.5, 0.99 and 1, the greatest; `of` is `record` or `result`.

use std::time::Duration;

use crate::bench::Percentiles;
use crate::handle::Status;
use crate::time::EventTime;

pub(crate) fn publish(job: &str, status: &Status) {
    for operator in &status.operators {
        for (name, value) in [
            ("millstream_records_in_total", operator.records_in),
            ("millstream_records_out_total", operator.records_out),
            ("millstream_late_total", operator.late),
            ("millstream_bad_total", operator.bad),
            ("millstream_windows_fired_total", operator.windows_fired),
            ("millstream_busy_microseconds_total", operator.busy.as_micros() as u64),
            ("millstream_dealing_microseconds_total", operator.dealing.as_micros() as u64),
        ] {
            if value > 0 {
                metrics::counter!(name, "job" => job.to_string(), "operator" => operator.name.clone()).absolute(value);
            }
        }
        let labels = [("job", job.to_string()), ("operator", operator.name.clone())];
        if operator.state_bytes > 0 {
            metrics::gauge!("millstream_state_bytes", &labels).set(operator.state_bytes as f64);
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
