//! Reads back what a file sink committed, row by row, as the very bytes of which its digests were taken.
//!
//! A replay that is to be compared notes beside each part when its rows happened, in a file of 8 bytes a row (microseconds,
//! little end first).
//!
//! **Errors**: `External`, naming the file, when it is there and cannot be read to its end.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;
use millstream_runtime::sink::{Stored, StoredRow};
use millstream_runtime::time::EventTime;

use super::frames::{Frame, Frames};
use super::input::Input;
use super::output::Format;
use super::part::{PartName, times_name};

/// The parts in one directory.
pub(super) struct StoredFiles {
    dir: PathBuf,
    format: Format,
}

impl StoredFiles {
    pub(super) fn new(dir: PathBuf, format: Format) -> Self {
        StoredFiles { dir, format }
    }

    /// The parts to read, each with its name on disk, in the order of their names.
    fn parts(&self, epochs: &RangeInclusive<Epoch>, prepared: &[String]) -> Result<Vec<(String, PartName)>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(unreadable(&self.dir, e)),
        };
        let mut parts = Vec::new();
        for entry in entries {
            let Ok(name) = entry.map_err(|e| unreadable(&self.dir, e))?.file_name().into_string() else { continue };
            if let Some(part) = PartName::parse(&name)
                && epochs.contains(&part.epoch)
                && (!part.pending || prepared.contains(&name))
            {
                parts.push((name, part));
            }
        }
        parts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(parts)
    }

    fn read(&self, name: &str, part: &PartName, each: &mut dyn FnMut(StoredRow<'_>) -> Result<()>) -> Result<()> {
        let mut path = self.dir.join(name);
        if part.pending && !path.exists() {
            // It was committed meanwhile.
            path = self.dir.join(&part.committed);
        }
        let text = path.to_str().ok_or_else(|| Error::external(format!("`{}` is no UTF-8", path.display())))?;
        let csv = self.format == Format::Csv;
        let mut frames = Frames::new(open(text, part)?, csv);
        let mut next_time = self.times(&part.committed)?;
        let whole = |frame: &Frame<'_>| match frame.defect {
            None => Ok(()),
            Some(defect) => Err(Error::data(format!("{}:{}: {defect}", path.display(), frame.line))),
        };
        let mut head = Vec::new();
        if csv && let Some(frame) = frames.next().map_err(|e| unreadable(&path, e))? {
            whole(&frame)?;
            head = frame.bytes.to_vec();
        }
        while let Some(frame) = frames.next().map_err(|e| unreadable(&path, e))? {
            whole(&frame)?;
            each(StoredRow { epoch: part.epoch, at: next_time()?, head: &head, bytes: frame.bytes })?;
        }
        Ok(())
    }

    /// Gives the event time of one row after another, where they were noted.
    fn times(&self, committed: &str) -> Result<impl FnMut() -> Result<Option<EventTime>> + use<>> {
        let path = self.dir.join(times_name(committed));
        let mut file = match File::open(&path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(unreadable(&path, e)),
        };
        Ok(move || {
            let Some(file) = &mut file else { return Ok(None) };
            let mut bytes = [0; 8];
            file.read_exact(&mut bytes).map_err(|e| unreadable(&path, e))?;
            Ok(Some(EventTime::from_micros(i64::from_le_bytes(bytes))))
        })
    }
}

impl Stored for StoredFiles {
    fn rows(
        &self,
        epochs: RangeInclusive<Epoch>,
        prepared: &[String],
        each: &mut dyn FnMut(StoredRow<'_>) -> Result<()>,
    ) -> Result<()> {
        for (name, part) in self.parts(&epochs, prepared)? {
            self.read(&name, &part, each)?;
        }
        Ok(())
    }

    fn fields(&self, head: &[u8], bytes: &[u8]) -> Vec<(String, String)> {
        match self.format {
            Format::Csv => {
                let (names, values) = (csv_fields(head), csv_fields(bytes));
                let name = |place: usize| names.get(place).cloned().unwrap_or_else(|| format!("field {}", place + 1));
                values.into_iter().enumerate().map(|(place, value)| (name(place), value)).collect()
            }
            Format::JsonLines => match serde_json::from_slice(bytes) {
                Ok(serde_json::Value::Object(fields)) => {
                    fields.into_iter().map(|(name, value)| (name, value.to_string())).collect()
                }
                _ => vec![("value".to_string(), String::from_utf8_lossy(bytes).into_owned())],
            },
        }
    }
}

fn csv_fields(bytes: &[u8]) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    // It reads from memory, and takes anything.
    let _ = reader.read_byte_record(&mut record);
    record.iter().map(|field| String::from_utf8_lossy(field).into_owned()).collect()
}

/// Whether a part is packed is said by the end of its name once it is committed; before, there is more behind that.
fn open(path: &str, part: &PartName) -> Result<Input> {
    if part.committed.ends_with(".gz") && !path.ends_with(".gz") {
        let file = File::open(path).map_err(|e| unreadable(Path::new(path), e))?;
        let unpacked = flate2::read::MultiGzDecoder::new(BufReader::new(file));
        return Ok(Input::Packed(Box::new(unpacked)));
    }
    Input::open(path)
}

fn unreadable(path: &Path, e: io::Error) -> Error {
    Error::external(format!("`{}` cannot be read back", path.display())).because(e)
}
