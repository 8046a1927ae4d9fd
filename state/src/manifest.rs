//! The table of contents of a checkpoint: the file whose appearance is the commit.
//!
//! One line of frame, then JSON: `millstream manifest format=1 length=… crc32c=…`. The frame is checked before the JSON
//! is read. People may read it too; `checkpoints show` prints it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::schema::Schema;
use crate::{Result, StateError};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Everything a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of Millstream that wrote it.
    pub millstream: String,
    /// The job's name.
    pub job: String,
    /// The start of the job that wrote it.
    pub execution: String,
    /// The last epoch that it holds.
    pub epoch: u64,
    /// Whether the job had read all its input and fired all its windows.
    pub finished: bool,
    /// When it was written, in milliseconds since 1970, by the wall clock; only for people to read.
    pub written_ms: u64,
    /// How many workers wrote it; any number may restore it.
    pub workers: usize,
    /// How many key groups the job has.
    pub key_groups: u32,
    /// The hash function that chose key groups.
    pub hasher: String,
    /// The codec of keys and values.
    pub codec: String,
    /// Every operator that keeps state.
    pub operators: Vec<OperatorEntry>,
    /// Every source, with the positions of its splits.
    pub sources: Vec<SourceEntry>,
    /// How many [numbers](SplitEntry::number) splits have been given so far; state may have those of splits that are gone.
    #[serde(default)]
    pub split_numbers: u32,
    /// Every sink, with the output it had prepared in this epoch.
    pub sinks: Vec<SinkEntry>,
    /// What the program that wrote it had been told of other names: it has them already.
    #[serde(default)]
    pub names: NamesEntry,
    /// The files of the RocksDB checkpoint beside it.
    pub files: Vec<FileEntry>,
}

/// What a program was told of names that an earlier checkpoint had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesEntry {
    /// Old and new names.
    pub renamed: Vec<(String, String)>,
    /// Names whose state was dropped.
    pub dropped: Vec<String>,
}

/// An operator with state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatorEntry {
    /// Its stable name.
    pub name: String,
    /// The number under which its entries are stored.
    pub id: u32,
    /// What it does, with everything on which the meaning of its state depends.
    pub operator: String,
    /// The form of its state, by the names of types.
    pub state: String,
    /// Every state that it has, with schemas. Checkpoints from before there were schemas have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<StateEntry>,
    /// How many entries it had.
    pub entries: u64,
}

/// One of the states of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateEntry {
    /// Which kind of state it is.
    pub kind: String,
    /// What can be said of its keys and values; nothing, of a state that has none.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub entries: Option<EntrySchemas>,
}

/// The schemas of keys and values. Their fingerprints are for people and tools; schemas are compared part by part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntrySchemas {
    /// The fingerprint of `key`, in hexadecimal.
    pub key_fingerprint: String,
    /// The fingerprint of `value`, in hexadecimal.
    pub value_fingerprint: String,
    /// Of keys.
    pub key: Schema,
    /// Of values.
    pub value: Schema,
}

/// A source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// Its stable name.
    pub name: String,
    /// What it reads.
    pub kind: String,
    /// Where it stands in each split.
    pub splits: Vec<SplitEntry>,
}

/// One split of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitEntry {
    /// The split's name.
    pub split: String,
    /// Its number among all splits of the job, by which state has records of one instant in order. Older checkpoints have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Where the reader stood; `None` if it had not been opened.
    pub position: Option<serde_json::Value>,
    /// How many records it had yielded.
    pub records: u64,
    /// Its watermark, in microseconds since 1970.
    pub watermark_us: i64,
    /// The state of its watermark generator.
    pub generator: serde_json::Value,
    /// Whether it had ended.
    pub ended: bool,
}

/// A sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkEntry {
    /// Its stable name.
    pub name: String,
    /// Where it writes.
    pub kind: String,
    /// The output that was prepared in this epoch, to be committed now or at the next start.
    pub handles: Vec<String>,
    /// What it has committed so far, this epoch included; `None` when it keeps no digests, or a version wrote this that had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<DigestEntry>,
}

/// Digests of what a sink has committed, by ranges of event time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DigestEntry {
    /// They count from the end of this epoch; 0: from the first record.
    pub since: u64,
    /// The length of the shortest range, in microseconds.
    pub unit_us: i64,
    /// A line for each range, as the runtime writes it.
    pub ranges: Vec<String>,
}

/// A file of the RocksDB checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name within the checkpoint's `db` directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32C of its content.
    pub crc32c: u32,
    /// The CRC-32C of each stretch of [`STRETCH`] bytes of it, so that damage can be found. Missing in checkpoints of before 0.1.0.
    #[serde(default)]
    pub stretches: Vec<u32>,
}

/// How many bytes of a file have a checksum of their own.
pub const STRETCH: usize = 256 << 10;

/// What a checkpoint says of a source.
pub fn find_source<'a>(sources: &'a [SourceEntry], source: &str) -> Option<&'a SourceEntry> {
    sources.iter().find(|entry| entry.name == source)
}

/// What a checkpoint says of a split of a source.
pub fn find_split<'a>(sources: &'a [SourceEntry], source: &str, split: &str) -> Option<&'a SplitEntry> {
    find_source(sources, source)?.splits.iter().find(|entry| entry.split == split)
}

/// A manifest file with this content.
pub(crate) fn framed(json: &[u8]) -> Vec<u8> {
    let (length, crc32c) = (json.len(), crc32c::crc32c(json));
    let mut bytes = format!("millstream manifest format={FORMAT} length={length} crc32c={crc32c:08x}\n").into_bytes();
    bytes.extend_from_slice(json);
    bytes
}

impl Manifest {
    /// The bytes of the manifest file.
    ///
    /// # Errors
    /// When a position or generator cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| StateError::Codec { what: "writing a manifest".into(), reason: error.to_string() })?;
        Ok(framed(&json))
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `path` is named in errors.
    ///
    /// # Errors
    /// When the bytes are not a manifest, are damaged, or of a newer format.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Manifest> {
        let damaged = |reason: &str| StateError::damaged(path, reason);
        let newline = bytes.iter().take(200).position(|byte| *byte == b'\n');
        let newline =
            newline.ok_or_else(|| damaged("it does not begin with a line that says `millstream manifest`"))?;
        let head = std::str::from_utf8(&bytes[..newline]).map_err(|_| damaged("its first line is not text"))?;
        let json = &bytes[newline + 1..];
        let field = |name: &str| {
            let value = head.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.ok_or_else(|| damaged(&format!("its first line has no `{name}=`")))
        };
        if !head.starts_with("millstream manifest ") {
            return Err(damaged("its first line does not say `millstream manifest`"));
        }
        let format: u32 = field("format")?.parse().map_err(|_| damaged("`format=` is not a number"))?;
        if format > FORMAT || format == 0 {
            let reason = format!(
                "has manifest format {format}, and this version of Millstream reads formats up to {FORMAT}; \
                 use the version that wrote it, or a newer one"
            );
            return Err(StateError::Mismatch { epoch: 0, path: path.to_path_buf(), reason });
        }
        let length: usize = field("length")?.parse().map_err(|_| damaged("`length=` is not a number"))?;
        if length != json.len() {
            return Err(damaged(&format!(
                "it should have {length} bytes behind its first line and has {}",
                json.len()
            )));
        }
        let expected =
            u32::from_str_radix(field("crc32c")?, 16).map_err(|_| damaged("`crc32c=` is not hexadecimal"))?;
        let actual = crc32c::crc32c(json);
        if expected != actual {
            return Err(damaged(&format!("its checksum is {actual:08x} and should be {expected:08x}")));
        }
        serde_json::from_slice(json).map_err(|error| damaged(&format!("its content does not read: {error}")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example(epoch: u64) -> Manifest {
        Manifest {
            millstream: "0.1.0".into(),
            job: "orders".into(),
            execution: "0a1b2c3d".into(),
            epoch,
            finished: false,
            written_ms: 0,
            workers: 2,
            key_groups: 128,
            hasher: crate::hash::HASHER_ID.into(),
            codec: crate::codec::CODEC_ID.into(),
            operators: vec![],
            sources: vec![],
            split_numbers: 0,
            sinks: vec![],
            names: NamesEntry::default(),
            files: vec![],
        }
    }

    #[test]
    fn a_split_is_found_by_the_names_of_its_source_and_itself() {
        let split = |split: &str, records| SplitEntry { split: split.into(), records, ..SplitEntry::default() };
        let source = |name: &str, splits: [SplitEntry; 2]| SourceEntry {
            name: name.into(),
            kind: "file".into(),
            splits: splits.into(),
        };
        let sources = [source("a", [split("x", 1), split("y", 2)]), source("b", [split("x", 3), split("z", 4)])];
        for (name, of, records) in [("a", "x", 1), ("a", "y", 2), ("b", "x", 3), ("b", "z", 4)] {
            assert_eq!(find_split(&sources, name, of).unwrap().records, records);
        }
        assert!(find_split(&sources, "a", "z").is_none() && find_split(&sources, "c", "x").is_none());
    }

    #[test]
    fn a_manifest_survives_a_round_trip() {
        let manifest = example(7);
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::from_bytes(&bytes, Path::new("m")).unwrap(), manifest);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_found() {
        let bytes = example(7).to_bytes().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            // The case of a hexadecimal digit of the checksum means nothing.
            if !wrong.eq_ignore_ascii_case(&bytes) || wrong[..14] != bytes[..14] {
                assert!(Manifest::from_bytes(&wrong, Path::new("m")).is_err(), "bit {bit}");
            }
        }
        for length in 0..bytes.len() {
            assert!(Manifest::from_bytes(&bytes[..length], Path::new("m")).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let bytes = example(7).to_bytes().unwrap();
        let newer = String::from_utf8(bytes).unwrap().replace("format=1", "format=2");
        let error = Manifest::from_bytes(newer.as_bytes(), Path::new("m")).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
    }
}
