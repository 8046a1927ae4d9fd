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
//! | `millstream_watermark_seconds` | seconds since 1970 | job |
//! | `millstream_in_flight` | records | job |
//! | `millstream_checkpoints_total` | checkpoints | job |
//! | `millstream_checkpoint_seconds` | seconds | job |

use std::time::Duration;

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
        ] {
            if value > 0 {
                metrics::counter!(name, "job" => job.to_string(), "operator" => operator.name.clone()).absolute(value);
            }
        }
    }
    let watermark = status.watermark();
    if watermark != EventTime::MIN && watermark != EventTime::MAX {
        metrics::gauge!("millstream_watermark_seconds", "job" => job.to_string()).set(watermark.micros() as f64 / 1e6);
    }
    metrics::gauge!("millstream_in_flight", "job" => job.to_string()).set(status.in_flight as f64);
}

pub(crate) fn checkpoint(job: &str, took: Duration) {
    metrics::counter!("millstream_checkpoints_total", "job" => job.to_string()).increment(1);
    metrics::histogram!("millstream_checkpoint_seconds", "job" => job.to_string()).record(took.as_secs_f64());
}
