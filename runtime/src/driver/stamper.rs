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
}

impl<T, F: Fn(&T) -> EventTime, G: WatermarkGenerator> Output<T> for Stamper<'_, T, F, G> {
    #[inline(always)]
    fn record(&mut self, value: T) {
        let at = (self.timestamp)(&value);
        if at < self.watermark {
            self.rows.behind.push(Behind { row: self.rows.records.len() as u32, watermark: self.watermark });
        }
        self.generator.observe(at);
        self.watermark = self.watermark.max(self.generator.watermark());
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

/// Under a load, when it matters which record it was: notes every step.
pub(super) struct Stepping<'a, 'b, T, F, G> {
    pub stamper: &'a mut Stamper<'b, T, F, G>,
    pub high: EventTime,
    pub steps: &'a mut Vec<Step>,
}

impl<T, F: Fn(&T) -> EventTime, G: WatermarkGenerator> Output<T> for Stepping<'_, '_, T, F, G> {
    fn record(&mut self, value: T) {
        let (row, before) = (self.stamper.rows.records.len(), self.stamper.watermark);
        self.stamper.record(value);
        let (at, watermark) = (self.stamper.rows.records[row].at, self.stamper.watermark);
        if at > self.high || watermark > before {
            self.high = self.high.max(at);
            self.steps.push(Step { row: row as u64, watermark, high: self.high });
        }
    }

    fn bad(&mut self, bad: BadRecord) {
        self.stamper.bad(bad);
    }
}
