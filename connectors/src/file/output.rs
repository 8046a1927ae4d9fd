//! One part file while it is written.
//!
//! **Units**: bytes as they are before compression.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use millstream_runtime::digest::Digests;
use millstream_runtime::time::EventTime;
use serde::Serialize;

/// Bytes handed to the operating system at once.
const BUFFER: usize = 128 << 10;

/// How records become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    pub(super) format: Format,
    pub(super) gzip: bool,
}

/// How records become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    JsonLines,
}

impl Encoding {
    /// How names of such files end.
    pub(super) fn ending(self) -> &'static str {
        match (self.format, self.gzip) {
            (Format::Csv, false) => "csv",
            (Format::Csv, true) => "csv.gz",
            (Format::JsonLines, false) => "jsonl",
            (Format::JsonLines, true) => "jsonl.gz",
        }
    }
}

/// Why a value could not be written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The file system refused.
    Io(io::Error),
    /// The format cannot express it.
    Value(Box<dyn std::error::Error + Send + Sync>),
}

impl From<io::Error> for WriteError {
    fn from(e: io::Error) -> Self {
        WriteError::Io(e)
    }
}

/// A part that is being written.
pub(super) struct Part {
    opened: Instant,
    rows: Rows,
    /// When each row happened, where that is to be noted: 8 bytes for each.
    times: Option<BufWriter<File>>,
}

/// Boxed, because a CSV writer is large.
enum Rows {
    Csv(Box<csv::Writer<Lent>>),
    JsonLines(Output),
}

impl Part {
    /// Creates the file, which must not be there, and that of the times where they are wanted. Without a path it only counts.
    pub(super) fn create(path: Option<&Path>, times: Option<&Path>, encoding: Encoding) -> io::Result<Part> {
        let output = Output::new(path.map(File::create_new).transpose()?, encoding.gzip);
        let rows = match encoding.format {
            Format::Csv => Rows::Csv(Box::new(csv::Writer::from_writer(Lent(RefCell::new(output))))),
            Format::JsonLines => Rows::JsonLines(output),
        };
        let times = times.map(File::create).transpose()?.map(BufWriter::new);
        Ok(Part { opened: Instant::now(), rows, times })
    }

    /// How long it has been open.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Adds one record, to `digests` as well.
    pub(super) fn write(
        &mut self,
        at: EventTime,
        value: &impl Serialize,
        digests: &mut Digests,
    ) -> Result<(), WriteError> {
        match &mut self.rows {
            Rows::Csv(csv) => {
                csv.serialize(value).map_err(of_csv)?;
                csv.flush()?;
                let mut output = csv.get_ref().0.borrow_mut();
                let mut head = 0;
                if output.bytes == 0 {
                    head = output.row.len() - length_without_header(value)?;
                    if head == 0 {
                        return Err(WriteError::Value("it has no field names to make a header of".into()));
                    }
                }
                output.end_row(at, head, digests)?;
            }
            Rows::JsonLines(output) => {
                serde_json::to_writer(&mut output.row, value).map_err(|e| WriteError::Value(e.into()))?;
                output.row.push(b'\n');
                output.end_row(at, 0, digests)?;
            }
        }
        if let Some(times) = &mut self.times {
            times.write_all(&at.micros().to_le_bytes())?;
        }
        Ok(())
    }

    /// How much it holds.
    pub(super) fn bytes(&self) -> u64 {
        match &self.rows {
            Rows::Csv(csv) => csv.get_ref().0.borrow().bytes,
            Rows::JsonLines(output) => output.bytes,
        }
    }

    /// Writes the rest, and returns the file, which is not yet synced; nothing, if nothing is kept.
    pub(super) fn close(self) -> io::Result<Option<File>> {
        if let Some(mut times) = self.times {
            times.flush()?;
        }
        let output = match self.rows {
            Rows::Csv(csv) => csv.into_inner().map_err(|e| io::Error::other(e.to_string()))?.0.into_inner(),
            Rows::JsonLines(output) => output,
        };
        output.close()
    }
}

/// The bytes of `value` as CSV without a header; the writer says nowhere whether it wrote one.
fn length_without_header(value: &impl Serialize) -> Result<usize, WriteError> {
    let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    csv.serialize(value).map_err(of_csv)?;
    csv.flush()?;
    Ok(csv.get_ref().len())
}

fn of_csv(e: csv::Error) -> WriteError {
    match e.into_kind() {
        csv::ErrorKind::Io(e) => WriteError::Io(e),
        csv::ErrorKind::Serialize(message) => WriteError::Value(message.into()),
        other => WriteError::Value(format!("{other:?}").into()),
    }
}

/// A file, behind a buffer and perhaps a compressor. What is written to it is gathered until the row is complete, so that its
/// bytes can be looked at as a whole.
struct Output {
    to: Packing,
    row: Vec<u8>,
    /// Of all complete rows.
    bytes: u64,
}

enum Packing {
    Nowhere,
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
}

impl Output {
    fn new(file: Option<File>, gzip: bool) -> Output {
        let to = match file.map(|file| BufWriter::with_capacity(BUFFER, file)) {
            None => Packing::Nowhere,
            Some(file) if gzip => Packing::Gzip(GzEncoder::new(file, Compression::fast())),
            Some(file) => Packing::Plain(file),
        };
        Output { to, row: Vec::new(), bytes: 0 }
    }

    /// A row is complete; its first `head` bytes stand in front of the first one only.
    fn end_row(&mut self, at: EventTime, head: usize, digests: &mut Digests) -> io::Result<()> {
        // As it will be read back: without the header, and without its line feed.
        digests.add(at, &self.row[head..self.row.len() - 1]);
        match &mut self.to {
            Packing::Nowhere => {}
            Packing::Plain(file) => file.write_all(&self.row)?,
            Packing::Gzip(encoder) => encoder.write_all(&self.row)?,
        }
        self.bytes += self.row.len() as u64;
        self.row.clear();
        Ok(())
    }

    fn close(self) -> io::Result<Option<File>> {
        let file = match self.to {
            Packing::Nowhere => return Ok(None),
            Packing::Plain(file) => file,
            Packing::Gzip(encoder) => encoder.finish()?,
        };
        file.into_inner().map(Some).map_err(io::IntoInnerError::into_error)
    }
}

/// An output as the CSV writer has it: that lets others see it, but not change it.
struct Lent(RefCell<Output>);

impl Write for Lent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().row.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
