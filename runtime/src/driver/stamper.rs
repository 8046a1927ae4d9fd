//! What becomes of what a reader reads: every record gets its event time, and then the watermark moves on over the batch.
//!
//! These are two passes. In one, the work on a record was too long for the processor to begin the next one meanwhile.

use crate::record::Record;
use crate::rows::{Behind, Rows};
use crate::source::{BadRecord, Output};
use crate::time::EventTime;
use crate::watermark::WatermarkGenerator;

/// As far as a watermark comes while a split goes on.
const LAST: EventTime = EventTime::from_micros(i64::MAX - 1);

/// Gives every record its event time as it is read.
pub(super) struct Stamper<'a, T, F> {
    pub timestamp: &'a F,
    pub records: Vec<Record<T>>,
    pub bad: Vec<BadRecord>,
}

impl<T, F: Fn(&T) -> EventTime> Output<T> for Stamper<'_, T, F> {
    #[inline(always)]
    fn record(&mut self, value: T) {
        self.records.push(Record { at: (self.timestamp)(&value), value });
    }

    #[inline(always)]
    fn records(&mut self, values: impl IntoIterator<Item = T>) {
        let timestamp = self.timestamp;
        self.records.extend(values.into_iter().map(|value| Record { at: timestamp(&value), value }));
    }

    fn bad(&mut self, bad: BadRecord) {
        self.bad.push(bad);
    }
}

/// Moves `watermark` on over a batch, and marks the records that are behind it where they stand. `row` says how far it came, in case
/// the generator panics.
pub(super) fn observe<T, G: WatermarkGenerator>(
    rows: &mut Rows<T>,
    mut generator: G,
    mut watermark: EventTime,
    mut steps: Option<&mut Steps>,
    row: &mut usize,
) -> (G, EventTime) {
    for (number, record) in rows.records.iter().enumerate() {
        *row = number;
        let before = watermark;
        if record.at < before {
            rows.behind.push(Behind { row: number as u32, watermark: before });
        }
        generator.observe(record.at);
        // The end of time is for a split's end.
        watermark = before.max(generator.watermark().min(LAST));
        if let Some(steps) = &mut steps {
            steps.note(number, record.at, watermark, watermark > before);
        }
    }
    (generator, watermark)
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

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    /// Says that all is over, and is wrong.
    #[derive(Clone, Serialize, Deserialize)]
    struct Over;

    impl WatermarkGenerator for Over {
        fn observe(&mut self, _: EventTime) {}
        fn watermark(&self) -> EventTime {
            EventTime::MAX
        }
    }

    #[test]
    fn only_the_end_of_a_split_is_the_end_of_time() {
        let mut rows = Rows::default();
        rows.push(EventTime::EPOCH, 7, None);
        let (_, watermark) = observe(&mut rows, Over, EventTime::MIN, None, &mut 0);
        assert_eq!(watermark, LAST);
        assert!(watermark < EventTime::MAX);
    }
}
