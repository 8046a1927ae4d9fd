//! Standard output as a sink: one line a record, as text or as JSON.
//!
//! **Shape**: lines of all workers, mixed but whole. Output is seen before its checkpoint: after a crash what came after
//! the last one is printed again. **Errors**: `External` when standard output is closed.

use std::fmt::Display;
use std::io::{self, Write};
use std::marker::PhantomData;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};
use serde::Serialize;

/// Prints values as they display themselves.
pub fn stdout() -> Stdout {
    Stdout(())
}

/// Prints values as JSON.
pub fn stdout_json() -> StdoutJson {
    StdoutJson(())
}

/// A sink that prints values by [`Display`]; see [`stdout`].
#[derive(Clone, Copy, Debug)]
pub struct Stdout(());

/// A sink that prints values as JSON; see [`stdout_json`].
#[derive(Clone, Copy, Debug)]
pub struct StdoutJson(());

/// Appends one value to a line.
type Show<T> = fn(&T, &mut Vec<u8>) -> Result<()>;

impl<T: Display + Data> Sink<T> for Stdout {
    type Writer = StdoutWriter<T>;

    fn kind(&self) -> &'static str {
        "standard output"
    }

    fn writer(&self, _task: &SinkTask) -> Result<StdoutWriter<T>> {
        let show: Show<T> = |value, line| write!(line, "{value}").map_err(failed);
        Ok(StdoutWriter { show, text: Vec::new(), of: PhantomData })
    }

    fn committer(&self, _job: &str) -> Option<Box<dyn Committer>> {
        None
    }
}

impl<T: Serialize + Data> Sink<T> for StdoutJson {
    type Writer = StdoutWriter<T>;

    fn kind(&self) -> &'static str {
        "standard output"
    }

    fn writer(&self, _task: &SinkTask) -> Result<StdoutWriter<T>> {
        let show: Show<T> = |value, line| {
            serde_json::to_writer(line, value).map_err(|e| Error::user("a value cannot be written as JSON").because(e))
        };
        Ok(StdoutWriter { show, text: Vec::new(), of: PhantomData })
    }

    fn committer(&self, _job: &str) -> Option<Box<dyn Committer>> {
        None
    }
}

fn failed(e: io::Error) -> Error {
    Error::external("standard output cannot be written to").because(e)
}

/// Prints the values of one worker.
#[derive(Debug)]
pub struct StdoutWriter<T> {
    show: Show<T>,
    text: Vec<u8>,
    of: PhantomData<fn(T)>,
}

impl<T> StdoutWriter<T> {
    /// Prints to `out`, in one piece.
    fn print(&mut self, records: &mut Vec<Record<T>>, out: &mut impl Write) -> Result<()> {
        self.text.clear();
        for record in records.drain(..) {
            (self.show)(&record.value, &mut self.text)?;
            self.text.push(b'\n');
        }
        out.write_all(&self.text).and_then(|()| out.flush()).map_err(failed)
    }
}

impl<T: Data> SinkWriter<T> for StdoutWriter<T> {
    fn write(&mut self, _epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()> {
        self.print(records, &mut io::stdout().lock())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::time::EventTime;

    fn printed<S: Sink<&'static str, Writer = StdoutWriter<&'static str>>>(sink: &S) -> String {
        let mut writer = sink.writer(&SinkTask { worker: 0, execution: "00000001".to_string() }).unwrap();
        let mut records = ["a b", "\"\n"].map(|value| Record { at: EventTime::EPOCH, value }).to_vec();
        let mut out = Vec::new();
        writer.print(&mut records, &mut out).unwrap();
        assert!(records.is_empty());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_lines() {
        assert_eq!(printed(&stdout()), "a b\n\"\n\n");
        assert_eq!(printed(&stdout_json()), "\"a b\"\n\"\\\"\\n\"\n");
    }
}
