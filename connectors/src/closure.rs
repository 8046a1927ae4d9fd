//! A sink that calls a closure with each record, at once and in the worker's thread.
//!
//! **Shape**: every worker has a clone of the closure. Output is seen before its checkpoint: after a crash the closure
//! sees again what came after the last one.

use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};

/// Calls `f` with each record.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use millstream_connectors::for_each;
/// use millstream_runtime::record::Record;
///
/// static SUM: AtomicU64 = AtomicU64::new(0);
/// let sink = for_each(|record: Record<u64>| {
///     SUM.fetch_add(record.value, Ordering::Relaxed);
/// });
/// ```
pub fn for_each<T: Data>(
    mut f: impl FnMut(Record<T>) + Clone + Send + 'static,
) -> ForEach<impl FnMut(Record<T>) -> Result<(), Error> + Clone + Send + 'static> {
    try_for_each(move |record| {
        f(record);
        Ok(())
    })
}

/// Calls `f` with each record; an error fails the job.
pub fn try_for_each<T, F, E>(f: F) -> ForEach<F>
where
    T: Data,
    F: FnMut(Record<T>) -> Result<(), E> + Clone + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    ForEach { f, row: 0 }
}

/// A sink of a closure; see [`for_each`] and [`try_for_each`]. Also its writer.
#[derive(Clone, Debug)]
pub struct ForEach<F> {
    f: F,
    row: usize,
}

impl<T, F, E> Sink<T> for ForEach<F>
where
    T: Data,
    F: FnMut(Record<T>) -> Result<(), E> + Clone + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Writer = Self;

    fn kind(&self) -> &'static str {
        "closure"
    }

    fn writer(&self, _task: &SinkTask) -> Result<Self> {
        Ok(self.clone())
    }

    fn committer(&self, _job: &str) -> Option<Box<dyn Committer>> {
        None
    }
}

impl<T, F, E> SinkWriter<T> for ForEach<F>
where
    T: Data,
    F: FnMut(Record<T>) -> Result<(), E> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn write(&mut self, _epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()> {
        let mut rows = records.drain(..).enumerate();
        let written = rows.try_for_each(|(row, record)| {
            self.row = row;
            (self.f)(record)
        });
        written.map_err(|e| match e.into().downcast::<Error>() {
            // An error of our own says already who can act on it.
            Ok(own) => *own,
            Err(other) => Error::user("the closure of a sink failed").because(other),
        })
    }

    fn row(&self) -> Option<usize> {
        Some(self.row)
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::error::ErrorKind;
    use millstream_runtime::time::EventTime;
    use std::sync::mpsc;

    fn records() -> Vec<Record<u64>> {
        [1, 2, 3].map(|value| Record { at: EventTime::EPOCH, value }).to_vec()
    }

    fn task() -> SinkTask {
        SinkTask { worker: 0, execution: "00000001".to_string() }
    }

    #[test]
    fn the_closure_sees_every_record() {
        let (sender, receiver) = mpsc::channel();
        let sink = for_each(move |record: Record<u64>| sender.send(record.value).unwrap());
        let (mut writer, mut records) = (sink.writer(&task()).unwrap(), records());
        writer.write(1, &mut records).unwrap();
        assert!(records.is_empty());
        drop((writer, sink));
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn an_error_of_the_closure_fails_the_write() {
        let sink = try_for_each(|record: Record<u64>| if record.value < 2 { Ok(()) } else { Err("too large") });
        let error = sink.writer(&task()).unwrap().write(1, &mut records()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::User);
        assert!(error.to_string().contains("too large"), "{error}");
        let sink = try_for_each(|_: Record<u64>| Err(Error::external("no network")));
        let error = sink.writer(&task()).unwrap().write(1, &mut records()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::External);
    }
}
