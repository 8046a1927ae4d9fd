//! A file of JSON objects, one a line, that only grows: what it says survives crashes, and damage to it is seen.
//!
//! Every line ends in a field `crc32c` with the checksum of the object without it, so the file is ordinary JSON lines for others.
//! What a crash or a full disk left of a line at the end never counted, and is cut off by the next append. Nothing is
//! touched before that: to look at such a file changes nothing.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::store::sync_dir;
use crate::{Result, StateError};

/// What stands between an object and its checksum.
const MARK: &str = ",\"crc32c\":\"";

/// How long the field with the checksum is, and the brace behind it.
const TAIL: usize = MARK.len() + 8 + 2;

/// A file that is being appended to.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    /// Open since the first append; closed when one failed.
    file: Option<File>,
    /// How many bytes are whole lines, once that is known.
    length: Option<u64>,
}

impl Lines {
    /// The lines of the file at `path`, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Lines { path: path.into(), file: None, length: None }
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `object`, the text of a JSON object with at least one field and without line breaks. `durable`: it is on
    /// disk when this returns.
    ///
    /// # Errors
    /// When the file cannot be written. The line then does not count; the next append cuts off what there may be of it.
    pub fn append(&mut self, object: &str, durable: bool) -> Result<()> {
        let line = sealed(object)?;
        let appended = self.try_append(line.as_bytes(), durable);
        if appended.is_err() {
            self.file = None;
        }
        appended
    }

    fn try_append(&mut self, line: &[u8], durable: bool) -> Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        file.write_all(line).map_err(StateError::io("write", &self.path))?;
        if durable {
            file.sync_data().map_err(StateError::io("sync", &self.path))?;
        }
        self.length = self.length.map(|length| length + line.len() as u64);
        self.file = Some(file);
        Ok(())
    }

    /// Opens the file at the end of its last whole line.
    fn open(&mut self) -> Result<File> {
        let is_new = !self.path.try_exists().map_err(StateError::io("look up", &self.path))?;
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&self.path);
        let mut file = open.map_err(StateError::io("open", &self.path))?;
        if let (true, Some(parent)) = (is_new, self.path.parent()) {
            sync_dir(parent)?;
        }
        // What an append that failed has left may be a whole line; it does not count either.
        let length = match self.length {
            Some(length) => length,
            None => whole_lines(&mut file).map_err(StateError::io("read", &self.path))?,
        };
        let cut = file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length)));
        cut.map_err(StateError::io("cut", &self.path))?;
        self.length = Some(length);
        Ok(file)
    }

    /// Starts a new file when this one has `limit` bytes; it is then kept at `old`, in the place of what was there.
    ///
    /// # Errors
    /// When it cannot be looked at or renamed.
    pub fn rotate(&mut self, limit: u64, old: &Path) -> Result<()> {
        if self.length.is_none_or(|length| length < limit) {
            return Ok(());
        }
        self.file = None;
        fs::rename(&self.path, old).map_err(StateError::io("rename", &self.path))?;
        self.length = None;
        Ok(())
    }
}

/// An object with its checksum, as a line.
fn sealed(object: &str) -> Result<String> {
    let inner = object.strip_suffix('}').filter(|inner| inner.len() > 1 && !object.contains('\n'));
    let inner = inner.ok_or_else(|| StateError::Codec {
        what: "writing a line".into(),
        reason: "it is not a JSON object on one line".into(),
    })?;
    Ok(format!("{inner}{MARK}{:08x}\"}}\n", crc32c::crc32c(object.as_bytes())))
}

/// The object of a line, if it is whole.
pub(crate) fn unsealed(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let at = line.len().checked_sub(TAIL)?;
    let (inner, tail) = (line.get(..at)?, line.get(at..)?);
    let crc = tail.strip_prefix(MARK)?.strip_suffix("\"}")?;
    let object = format!("{inner}}}");
    (format!("{:08x}", crc32c::crc32c(object.as_bytes())) == crc).then_some(object)
}

/// The bytes up to and with the last line feed.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// What a file of lines holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The objects, each without its checksum.
    pub objects: Vec<String>,
    /// The numbers, counted from 1, of lines that are not what they were when they were written. What a crash left of
    /// the last line is not among them.
    pub damaged: Vec<usize>,
}

/// Reads a file of lines; one that does not exist has none.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Content> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Content::default()),
        Err(error) => return Err(StateError::io("read", path)(error)),
    };
    let mut content = Content::default();
    // Behind the last line feed is nothing, or what a crash left.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
    if whole.is_empty() {
        return Ok(content);
    }
    for (number, line) in whole.split(|byte| *byte == b'\n').enumerate() {
        match unsealed(line) {
            Some(object) => content.objects.push(object),
            None => content.damaged.push(number + 1),
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        (dir, path)
    }

    #[test]
    fn what_is_appended_is_read_and_is_json() {
        let (_dir, path) = file();
        assert_eq!(read(&path).unwrap(), Content::default());
        let mut lines = Lines::at(&path);
        assert!(!path.exists(), "to look at it changes nothing");
        lines.append(r#"{"a":1}"#, true).unwrap();
        lines.append(r#"{"b":"ü \n"}"#, false).unwrap();
        drop(lines);
        Lines::at(&path).append(r#"{"c":[{}]}"#, true).unwrap();
        let content = read(&path).unwrap();
        assert_eq!(content.objects, [r#"{"a":1}"#, r#"{"b":"ü \n"}"#, r#"{"c":[{}]}"#]);
        assert!(content.damaged.is_empty());
        for line in fs::read_to_string(&path).unwrap().lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        for wrong in ["", "{}", "3", "{\"a\":1}\n", "{\"a\":\n1}"] {
            assert!(Lines::at(&path).append(wrong, false).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_that_is_full_makes_room_for_another() {
        let (dir, path) = file();
        let old = dir.path().join("old.jsonl");
        let mut lines = Lines::at(&path);
        for n in 0..100 {
            lines.rotate(200, &old).unwrap();
            lines.append(&format!(r#"{{"n":{n}}}"#), false).unwrap();
            assert!(fs::metadata(&path).unwrap().len() < 250);
        }
        let (old, new) = (read(&old).unwrap().objects, read(&path).unwrap().objects);
        assert_eq!(new.last().unwrap(), r#"{"n":99}"#);
        let all = [old, new].concat();
        assert_eq!(all[0], format!(r#"{{"n":{}}}"#, 100 - all.len()));
    }

    proptest! {
        /// Cut anywhere: whole lines stay, the rest never was, and appending goes on behind them.
        #[test]
        fn a_torn_line_never_was(texts in prop::collection::vec("[ -~ü]{0,40}", 1..8), cut in 0.0..1.0f64) {
            let (_dir, path) = file();
            let objects: Vec<String> = texts.iter().map(|text| serde_json::json!({ "t": text }).to_string()).collect();
            let mut ends = vec![0];
            let mut lines = Lines::at(&path);
            for object in &objects {
                lines.append(object, false).unwrap();
                ends.push(fs::metadata(&path).unwrap().len());
            }
            let cut = (cut * *ends.last().unwrap() as f64) as u64;
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!(read(&path).unwrap(), Content { objects: objects[..whole].to_vec(), damaged: vec![] });
            Lines::at(&path).append(r#"{"more":true}"#, true).unwrap();
            let content = read(&path).unwrap();
            prop_assert_eq!(content.objects.len(), whole + 1);
            prop_assert!(content.damaged.is_empty());
        }

        /// No flipped bit goes unseen, unless it makes the last line one that was never finished.
        #[test]
        fn damage_is_seen(texts in prop::collection::vec("[ -~]{0,40}", 1..5), place in 0.0..1.0f64, bit in 0..8u8) {
            let (_dir, path) = file();
            let objects: Vec<String> = texts.iter().map(|text| serde_json::json!({ "t": text }).to_string()).collect();
            let mut lines = Lines::at(&path);
            objects.iter().for_each(|object| lines.append(object, false).unwrap());
            let mut bytes = fs::read(&path).unwrap();
            let at = ((place * bytes.len() as f64) as usize).min(bytes.len() - 1);
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            let content = read(&path).unwrap();
            let kept = content.objects.iter().all(|object| objects.contains(object));
            prop_assert!(kept, "{:?}", content);
            let torn = at == bytes.len() - 1;
            prop_assert!(!content.damaged.is_empty() || torn, "{:?}", content);
        }
    }
}
