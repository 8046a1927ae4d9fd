//! Records, as users see them and as bytes.
//!
//! A stored record is, in this order and with little-endian integers: its kind (1 byte), its place in the order of the whole
//! log (8), its append time in ms since 1970 (8), the length of its key (2), the key in UTF-8, the value. RocksDB's checksums
//! are checked before these bytes are looked at.
//!
//! Values are JSON. A log outlives the program that wrote it: fields are added later, and people look into it. Other formats
//! go in as bytes.

use millstream_runtime::time::EventTime;
use millstream_state::hash::hash_key;
use serde::Serialize;

use super::error::LogError;
use super::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use super::shard::ShardId;

/// Where an appended record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt {
    /// The shard that took it.
    pub shard: ShardId,
    /// Its number in that shard: from 0, without gaps.
    pub sequence: u64,
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord<T> {
    /// The shard that has it.
    pub shard: ShardId,
    /// Its number in that shard.
    pub sequence: u64,
    /// When it was appended, by the wall clock of the machine in ms; never before an earlier record of the log.
    pub appended: EventTime,
    /// The key that chose the shard.
    pub key: String,
    /// What was appended.
    pub value: T,
}

const HEADER: usize = 19;

/// What a stored record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A value.
    Value = 1,
    /// A record that a recorded source could not read, as JSON of a `BadRecord`.
    Bad = 2,
}

/// A record that is to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: Kind,
    pub key: String,
    pub value: Vec<u8>,
}

impl Entry {
    /// A checked entry.
    pub fn new(key: impl Into<String>, value: Vec<u8>) -> Result<Entry, LogError> {
        let key = key.into();
        if key.len() > MAX_KEY_BYTES {
            let message = format!("a key of {} bytes is too long: {:.40}…", key.len(), key);
            return Err(LogError::refused(message, "a key may have 1,024 bytes; use a digest of longer ones"));
        }
        if value.len() > MAX_VALUE_BYTES {
            let message = format!("a value of {} bytes (key `{key:.40}`) is too large", value.len());
            return Err(LogError::refused(
                message,
                "a record may have 16 MiB; keep larger things in files, and log their names",
            ));
        }
        Ok(Entry { kind: Kind::Value, key, value })
    }

    pub fn json<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Result<Entry, LogError> {
        Entry::new(key, serde_json::to_vec(value).map_err(LogError::unwritable::<&T>)?)
    }

    pub fn hash(&self) -> u64 {
        hash_key(self.key.as_str())
    }

    /// What retention counts of it.
    pub fn bytes(&self) -> u64 {
        (HEADER + self.key.len() + self.value.len()) as u64
    }

    pub fn write(&self, order: u64, ms: u64, out: &mut Vec<u8>) {
        out.clear();
        out.push(self.kind as u8);
        out.extend_from_slice(&order.to_le_bytes());
        out.extend_from_slice(&ms.to_le_bytes());
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(&self.value);
    }
}

/// A stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored<'a> {
    pub shard: ShardId,
    pub sequence: u64,
    pub kind: Kind,
    pub order: u64,
    pub ms: u64,
    pub key: &'a str,
    pub value: &'a [u8],
}

impl<'a> Stored<'a> {
    /// `None`: the bytes are no record.
    pub fn read((shard, sequence): (ShardId, u64), bytes: &'a [u8]) -> Option<Stored<'a>> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let kind = match header[0] {
            1 => Kind::Value,
            2 => Kind::Bad,
            _ => return None,
        };
        let (key, value) = rest.split_at_checked(usize::from(u16::from_le_bytes([header[17], header[18]])))?;
        let key = std::str::from_utf8(key).ok()?;
        Some(Stored { shard, sequence, kind, order: word(&header[1..9]), ms: word(&header[9..17]), key, value })
    }

    /// The place in the order of the log alone.
    pub fn order_in(bytes: &[u8]) -> Option<u64> {
        bytes.get(1..9).map(word)
    }

    pub fn bytes(&self) -> u64 {
        (HEADER + self.key.len() + self.value.len()) as u64
    }

    /// As users see it, with `value`.
    pub fn with<T>(&self, value: T) -> LogRecord<T> {
        let appended = EventTime::from_millis(self.ms.min(i64::MAX as u64 / 1_000) as i64);
        LogRecord { shard: self.shard, sequence: self.sequence, appended, key: self.key.to_string(), value }
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Entries one behind the other: what is staged for a sink until it is committed.
pub(super) fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.push(entry.kind as u8);
        out.extend_from_slice(&(entry.key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(entry.value.len() as u32).to_le_bytes());
        out.extend_from_slice(entry.key.as_bytes());
        out.extend_from_slice(&entry.value);
    }
    out
}

/// `None`: the bytes are not what [`pack`] made.
pub(super) fn unpack(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_at_checked(7)?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([header[1], header[2]])))?;
        let (value, rest) = rest.split_at_checked(usize::try_from(word(&header[3..7])).ok()?)?;
        let kind = if header[0] == Kind::Value as u8 { Kind::Value } else { return None };
        entries.push(Entry { kind, key: std::str::from_utf8(key).ok()?.to_string(), value: value.to_vec() });
        bytes = rest;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_read_back_and_pieces_of_them_do_not_panic(
            key in ".{0,40}", value: Vec<u8>, order: u64, ms: u64, bad: bool, cut in 0..200usize,
        ) {
            let kind = if bad { Kind::Bad } else { Kind::Value };
            let entry = Entry { kind, key, value };
            let mut bytes = Vec::new();
            entry.write(order, ms, &mut bytes);
            let stored = Stored::read((3, 4), &bytes).unwrap();
            let expected = Stored { shard: 3, sequence: 4, kind, order, ms, key: &entry.key, value: &entry.value };
            prop_assert_eq!(stored, expected);
            prop_assert_eq!(stored.bytes(), entry.bytes());
            let _ = Stored::read((0, 0), &bytes[..cut.min(bytes.len())]);
        }

        #[test]
        fn packed_entries_come_out_as_they_went_in(
            entries in prop::collection::vec((".{0,20}", any::<Vec<u8>>()), 0..10), cut in 0..500usize,
        ) {
            let entries: Vec<_> = entries.into_iter().map(|(key, value)| Entry::new(key, value).unwrap()).collect();
            let bytes = pack(&entries);
            prop_assert_eq!(unpack(&bytes), Some(entries));
            let _ = unpack(&bytes[..cut.min(bytes.len())]);
        }

        #[test]
        fn floats_come_back_exactly(float in any::<f64>().prop_filter("finite", |float| float.is_finite())) {
            let entry = Entry::json("", &float).unwrap();
            let back: f64 = serde_json::from_slice(&entry.value).unwrap();
            prop_assert_eq!(back.to_bits(), float.to_bits());
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(Entry::new("é".repeat(512), Vec::new()).is_ok());
        assert!(Entry::new("é".repeat(513), Vec::new()).unwrap_err().to_string().contains("1026 bytes"));
        assert!(Entry::new("", vec![0; MAX_VALUE_BYTES]).is_ok());
        assert!(Entry::new("", vec![0; MAX_VALUE_BYTES + 1]).unwrap_err().to_string().contains("16777217 bytes"));
    }
}
