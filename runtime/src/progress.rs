//! The progress line of a running job, on standard error, when that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::handle::Status;
use crate::summary::thousands;
use crate::time::EventTime;

/// A watermark that has stood for longer is spoken of.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// Records and time when it was last shown.
    last: (u64, Duration),
}

impl Progress {
    pub(crate) fn new(wanted: bool) -> Self {
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, last: (0, Duration::ZERO) }
    }

    pub(crate) fn show(&mut self, status: &Status, elapsed: Duration) {
        let Some(bar) = &self.bar else { return };
        let (records, time) = self.last;
        let rate = (status.records_in - records) as f64 / (elapsed - time).as_secs_f64().max(1e-3);
        self.last = (status.records_in, elapsed);
        let watermark = status.watermark();
        let watermark = if watermark == EventTime::MIN || watermark == EventTime::MAX {
            String::new()
        } else {
            format!(", watermark {watermark}")
        };
        let held = status.held_back_by().filter(|split| split.stands_for >= PATIENCE);
        let held = held.map(|split| format!("; {split}")).unwrap_or_default();
        let called: u64 =
            status.operators.iter().map(|operator| operator.calls.in_flight + operator.calls.waiting).sum();
        let called = if called > 0 { format!(", {} in calls", thousands(called)) } else { String::new() };
        bar.set_message(format!(
            "{} records in ({}/s), {} out, {} late, epoch {}{watermark}{called}{held}",
            thousands(status.records_in),
            thousands(rate as u64),
            thousands(status.records_out),
            thousands(status.late),
            status.epoch
        ));
        bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
