//! What a reader reads into: records get their event times as they are read.

use crate::record::Record;
use crate::rows::{Behind, Rows};
use crate::source::{BadRecord, Output};
use crate::time::EventTime;
use crate::watermark::WatermarkGenerator;

/// Gives every record its event time as it is read, and sees whether it is behind.
pub(super) struct Stamper<'a, T, F, G> {
    pub timestamp: &'a F,
    pub generator: &'a mut G,
    pub watermark: EventTime,
    pub rows: Rows<T>,
    pub bad: Vec<BadRecord>,
    /// Under a load, when it matters which record it was.
    pub steps: Option<Steps>,
}

impl<T, F: Fn(&T) -> EventTime, G: WatermarkGenerator> Output<T> for Stamper<'_, T, F, G> {
    #[inline(always)]
    fn record(&mut self, value: T) {
        let at = (self.timestamp)(&value);
        let before = self.watermark;
        if at < before {
            self.rows.behind.push(Behind { row: self.rows.records.len() as u32, watermark: before });
        }
        self.generator.observe(at);
        self.watermark = before.max(self.generator.watermark());
        if let Some(steps) = &mut self.steps {
            steps.note(self.rows.records.len(), at, self.watermark, self.watermark > before);
        }
        self.rows.records.push(Record { at, value });
    }

    fn bad(&mut self, bad: BadRecord) {
        self.bad.push(bad);
    }
}

/// A record with which the split's watermark or its greatest event time rose.
pub(super) struct Step {
    pub row: u64,
    pub watermark: EventTime,
    pub high: EventTime,
}

/// Every step of a batch.
pub(super) struct Steps {
    /// The greatest event time so far.
    pub high: EventTime,
    pub steps: Vec<Step>,
}

impl Steps {
    #[cold] // most runs are under no load
    fn note(&mut self, row: usize, at: EventTime, watermark: EventTime, rose: bool) {
        if at > self.high || rose {
            self.high = self.high.max(at);
            self.steps.push(Step { row: row as u64, watermark, high: self.high });
        }
    }
}
