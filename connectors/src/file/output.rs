//! One part file while it is written.
//!
//! **Units**: bytes as they are before compression.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
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
}

/// Boxed, because a CSV writer is large.
enum Rows {
    Csv(Box<csv::Writer<Output>>),
    JsonLines(Output),
}

impl Part {
    /// Creates the file, which must not be there.
    pub(super) fn create(path: &Path, encoding: Encoding) -> io::Result<Part> {
        let output = Output::new(File::create_new(path)?, encoding.gzip);
        let rows = match encoding.format {
            Format::Csv => Rows::Csv(Box::new(csv::Writer::from_writer(output))),
            Format::JsonLines => Rows::JsonLines(output),
        };
        Ok(Part { opened: Instant::now(), rows })
    }

    /// How long it has been open.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Adds one record.
    pub(super) fn write(&mut self, value: &impl Serialize) -> Result<(), WriteError> {
        match &mut self.rows {
            Rows::Csv(csv) => {
                let first = csv.get_ref().bytes == 0;
                csv.serialize(value).map_err(of_csv)?;
                // Only as far as `Output`, so that its count is right.
                csv.flush()?;
                if first && csv.get_ref().bytes == length_without_header(value)? {
                    return Err(WriteError::Value("it has no field names to make a header of".into()));
                }
            }
            Rows::JsonLines(output) => {
                serde_json::to_writer(&mut *output, value).map_err(|e| match e.io_error_kind() {
                    Some(_) => WriteError::Io(e.into()),
                    None => WriteError::Value(e.into()),
                })?;
                output.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    /// How much it holds.
    pub(super) fn bytes(&self) -> u64 {
        match &self.rows {
            Rows::Csv(csv) => csv.get_ref().bytes,
            Rows::JsonLines(output) => output.bytes,
        }
    }

    /// Writes the rest, and returns the file, which is not yet synced.
    pub(super) fn close(self) -> io::Result<File> {
        let output = match self.rows {
            Rows::Csv(csv) => csv.into_inner().map_err(|e| io::Error::other(e.to_string()))?,
            Rows::JsonLines(output) => output,
        };
        output.close()
    }
}

/// The bytes of `value` as CSV without a header; the writer says nowhere whether it wrote one.
fn length_without_header(value: &impl Serialize) -> Result<u64, WriteError> {
    let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    csv.serialize(value).map_err(of_csv)?;
    csv.flush()?;
    Ok(csv.get_ref().len() as u64)
}

fn of_csv(e: csv::Error) -> WriteError {
    match e.into_kind() {
        csv::ErrorKind::Io(e) => WriteError::Io(e),
        csv::ErrorKind::Serialize(message) => WriteError::Value(message.into()),
        other => WriteError::Value(format!("{other:?}").into()),
    }
}

/// A file, behind a buffer and perhaps a compressor, that counts what goes in and is only flushed by closing it.
struct Output {
    to: Packing,
    bytes: u64,
}

enum Packing {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
}

impl Output {
    fn new(file: File, gzip: bool) -> Output {
        let file = BufWriter::with_capacity(BUFFER, file);
        let to = if gzip { Packing::Gzip(GzEncoder::new(file, Compression::fast())) } else { Packing::Plain(file) };
        Output { to, bytes: 0 }
    }

    fn close(self) -> io::Result<File> {
        let file = match self.to {
            Packing::Plain(file) => file,
            Packing::Gzip(encoder) => encoder.finish()?,
        };
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match &mut self.to {
            Packing::Plain(file) => file.write(bytes),
            Packing::Gzip(encoder) => encoder.write(bytes),
        }?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
