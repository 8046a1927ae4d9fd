//! Reads one record apart from all others: to look at it, or to leave it out.

use std::time::Duration;

use millstream_state::manifest::SplitEntry;

use super::guard;
use super::source::to_json;
use crate::error::{Error, Result};
use crate::poison::InputRecord;
use crate::source::{BadRecord, Output, Read, Source, SplitReader, Waker};

/// What can be said of a record without knowing its type.
#[derive(Debug)]
pub(crate) struct Peeked {
    /// Where its reader stood in front of it.
    pub position: serde_json::Value,
    pub text: Option<String>,
}

/// How many characters of a record's text are kept.
const TEXT: usize = 1_000;

/// How many records are passed over in one go.
const STEP: u64 = 2_048;

/// How long a source that gives its records in their own time is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Counts what is read and drops it.
#[derive(Default)]
pub(super) struct Passed {
    pub records: u64,
    pub bad: Vec<BadRecord>,
}

impl<T> Output<T> for Passed {
    fn record(&mut self, _value: T) {
        self.records += 1;
    }

    fn bad(&mut self, bad: BadRecord) {
        self.bad.push(bad);
    }
}

/// Opens the record's split where it stood at `entry` and reads on up to the record. `None` when that takes too long, or
/// `wait` says that there is no more time.
///
/// # Errors
/// When the source fails before or while it makes the record: then it could not leave it out either.
pub(super) fn peek<S: Source>(
    source: &S,
    record: &InputRecord,
    entry: Option<&SplitEntry>,
    wait: &dyn Fn(Duration) -> bool,
) -> Result<Option<Peeked>> {
    let position = entry.and_then(|entry| entry.position.clone()).map(serde_json::from_value).transpose();
    let position = position.map_err(|error| Error::state("the split's position does not read").because(error))?;
    let before = entry.map_or(0, |entry| entry.records);
    let Some(mut left) = (record.record - 1).checked_sub(before) else {
        return Err(Error::internal("the newest checkpoint has it behind it"));
    };
    let failed = |error: Error| {
        Error::user(format!("its source fails while it makes the record, and so cannot leave it out: {error}"))
    };
    let mut reader =
        guard(&record.source, || source.open(&record.split, position, Waker::new(|| {}))).map_err(failed)?;
    let mut waited = Duration::ZERO;
    loop {
        let at = guard(&record.source, || to_json(&reader.position())).map_err(failed)?;
        let mut passed = Passed::default();
        let most = if left == 0 { 1 } else { left.min(STEP) as usize };
        let read = guard(&record.source, || reader.read(most, &mut passed)).map_err(failed)?;
        if left == 0 && passed.records > 0 {
            let text = guard(&record.source, || Ok(reader.text())).map_err(failed)?;
            let text = text.map(|text| text.chars().take(TEXT).collect());
            return Ok(Some(Peeked { position: at, text }));
        }
        left = left
            .checked_sub(passed.records)
            .ok_or_else(|| Error::user("its source gives more than it is asked for"))?;
        let time = match read {
            Read::More => continue,
            Read::Later(time) => time.clamp(Duration::from_millis(1), Duration::from_millis(20)),
            Read::Empty => Duration::from_millis(20),
            Read::Ended => return Err(Error::user("its split ended before it when it was read again")),
        };
        waited += time;
        if waited > PATIENCE || wait(time) {
            return Ok(None);
        }
    }
}
