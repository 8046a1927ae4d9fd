//! Reads one split of files, record by record, and knows where it stands.
//!
//! **Units**: positions count uncompressed bytes from 0 and lines from 1; both are those of the next record's begin.
//! **Errors**: `External`, naming the file, when it cannot be read or decompressed to its end; `Data` for a bad record,
//! unless those are kept, and for a header that cannot be read; `State` for a position that the file does not have.

use std::collections::VecDeque;
use std::io;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::source::{BadRecord, Output, Read, SplitReader};
use serde::{Deserialize, Serialize};

use super::format::FileFormat;
use super::frames::Frames;
use super::input::Input;

/// Characters of a bad record that are shown.
const TEXT_CHARS: usize = 1_000;

/// Where a reader of files stands: behind a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePosition {
    /// The file's path, as given to the source.
    pub file: String,
    /// Offset in the uncompressed text at which the next record begins.
    pub byte: u64,
    /// The line on which it begins, counted from 1.
    pub line: u64,
}

/// Reads one split of a [`FileSource`](crate::FileSource).
pub struct FileReader<F> {
    file: String,
    frames: Frames,
    format: F,
    /// The files to read after this one.
    rest: VecDeque<String>,
    fails: bool,
}

impl<F: FileFormat> FileReader<F> {
    /// A reader of `files`, one after another, from the record at (`byte`, `line`) of the first one on.
    pub(super) fn open(mut files: VecDeque<String>, byte: u64, line: u64, fails: bool) -> Result<Self> {
        let file = files.pop_front().ok_or_else(|| Error::internal("there is no file in the split"))?;
        let mut format = F::default();
        let mut frames = open_file(&file, &mut format)?;
        if let Err(instead) = frames.skip_to(byte, line).map_err(|e| unreadable(&file, e))? {
            return Err(Error::state(format!(
                "file `{file}` {instead} byte {byte}, where the checkpoint stands in it"
            ))
            .hint("the file was changed since: put the old one back, or start fresh"));
        }
        Ok(FileReader { file, frames, format, rest: files, fails })
    }

    /// Takes one record; `false` when the file has no more.
    fn read_one(&mut self, out: &mut impl Output<F::Item>) -> Result<bool> {
        let Some(frame) = self.frames.next().map_err(|e| unreadable(&self.file, e))? else {
            return Ok(false);
        };
        let decoded = match frame.defect {
            None => self.format.decode(frame.bytes),
            Some(defect) => Err(defect.to_string()),
        };
        match decoded {
            Ok(Some(value)) => out.record(value),
            Ok(None) => {}
            Err(reason) => {
                let text = String::from_utf8_lossy(frame.bytes).chars().take(TEXT_CHARS).collect();
                let bad = BadRecord { split: self.file.clone(), line: frame.line, reason, text };
                if self.fails {
                    return Err(Error::data(format!("bad record at {bad}")).hint(
                        "repair the file, leave such records out with `.on_bad_record(OnBadRecord::Drop)`, \
                         or send them to a side output with `.keep_bad_records()` and `job.source_with_bad(…)`",
                    ));
                }
                out.bad(bad);
            }
        }
        Ok(true)
    }
}

impl<F: FileFormat> SplitReader for FileReader<F> {
    type Item = F::Item;
    type Position = FilePosition;

    fn read(&mut self, max: usize, out: &mut impl Output<F::Item>) -> Result<Read> {
        let mut taken = 0;
        while taken < max {
            if self.read_one(out)? {
                taken += 1;
                continue;
            }
            let Some(next) = self.rest.pop_front() else {
                self.frames.close();
                return Ok(Read::Ended);
            };
            self.frames = open_file(&next, &mut self.format)?;
            self.file = next;
        }
        Ok(Read::More)
    }

    fn position(&self) -> FilePosition {
        FilePosition { file: self.file.clone(), byte: self.frames.byte(), line: self.frames.line() }
    }

    fn text(&self) -> Option<String> {
        Some(String::from_utf8_lossy(self.frames.last()?).into_owned())
    }
}

/// Opens a file behind its header, if the format has one.
fn open_file<F: FileFormat>(file: &str, format: &mut F) -> Result<Frames> {
    let mut frames = Frames::new(Input::open(file)?, F::TABLE);
    if !F::TABLE {
        return Ok(frames);
    }
    while let Some(frame) = frames.next().map_err(|e| unreadable(file, e))? {
        if frame.bytes.is_empty() {
            continue;
        }
        let taken = frame.defect.map_or_else(|| format.header(frame.bytes), |defect| Err(defect.to_string()));
        taken.map_err(|reason| Error::data(format!("{file}:{}: the header cannot be read: {reason}", frame.line)))?;
        break;
    }
    Ok(frames)
}

fn unreadable(file: &str, e: io::Error) -> Error {
    let error = Error::external(format!("file `{file}` cannot be read on")).because(e);
    let packed = file.ends_with(".gz") || file.ends_with(".zst");
    if packed { error.hint("it may be cut off or damaged: decompress it with another program to see") } else { error }
}
