//! Files as sources and as a sink.
//!
//! Reading goes through layers, each of which knows nothing of the ones above: `input` (bytes, decompressed), `frames` (one
//! record's bytes at a time), `format` (bytes to a value), `reader` (positions and bad records), `source` (which file is
//! which split). Writing: `part` names the files and decides what a restart does with those it finds, `output` writes one,
//! `sink` divides records among them, `commit` renames them, `stored` reads them back.

mod commit;
mod format;
mod frames;
mod input;
mod output;
mod part;
mod reader;
#[cfg(test)]
mod reading_tests;
mod sink;
mod source;
mod stored;

pub use format::{Csv, FileFormat, Json};
pub use reader::{FilePosition, FileReader};
pub use sink::{FileSink, FileSinkWriter};
pub use source::{CsvFiles, FileSource, JsonLines};
