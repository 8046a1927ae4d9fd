//! Which records are late, where how long something lasts depends on the data: those behind the watermark of their own split.

use millstream_runtime::rows::{BehindWalk, KeyedRecord, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::key_group::group_of;

/// Walks along a batch and says of each record whether it is late.
pub(crate) struct Lateness<'a> {
    behind: BehindWalk<'a>,
    /// How far each key group has come, in event time.
    marks: &'a GroupMarks,
    /// The furthest of them.
    passed: EventTime,
}

impl<'a> Lateness<'a> {
    pub(crate) fn new<K, T>(rows: &'a KeyedRows<K, T>, marks: &'a GroupMarks) -> Self {
        let passed = EventTime::from_micros(marks.bounds().1);
        Lateness { behind: BehindWalk::new(&rows.behind), marks, passed }
    }

    /// The watermark for which `record` is late, if it is. Rows must be asked in order, each once.
    #[inline]
    pub(crate) fn of<K, T>(&mut self, row: usize, record: &KeyedRecord<K, T>) -> Option<EventTime> {
        let behind = self.behind.at(row);
        if record.at < self.passed {
            // Only a source that was added between two starts knows nothing of what was over before.
            let passed = EventTime::from_micros(self.marks.get(group_of(record.hash)));
            return behind.max((record.at < passed).then_some(passed));
        }
        behind
    }
}
