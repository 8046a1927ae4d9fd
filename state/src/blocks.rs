//! The entries of one key group and slice as one value of the database: a block.
//!
//! An entry on its own costs RocksDB about half a microsecond to sort, write and later delete; in a block it costs little
//! more than its bytes. What changes later is written as a block of its own, which RocksDB merges: the newer value of a
//! key counts. Blocks that do not know each other's types are merged, by the bytes of their keys.
//!
//! A block is a row per entry: key and value, each with its length in front (LEB128). Where all rows are equally long, as
//! those of numbers are, they are stored by column: the first byte of every row, then the second, and so on. Most columns are
//! zeros then, and LZ4 takes a third of the time for half of the bytes. In front of it all stands how long a row is, or 0.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use crate::hash::{hash_bytes, hash_key};
use crate::key_group::{KEY_GROUPS, KeyGroup, group_of};
use crate::snapshot::{Change, Key, Run, StoredEntry, Value};
use crate::{Result, StateError, codec};

/// A bit per key group.
type Groups = u128;
const _: () = assert!(KEY_GROUPS == Groups::BITS);

/// RocksDB keeps the lengths of values in 32 bits.
const MAX_BLOCK: usize = 3 << 30;

/// Which blocks stand in the database, by slice. A state shares it with the changes that it hands over, and these note here
/// what they write: they are written one after the other, in the order in which they were frozen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks(Arc<Mutex<BTreeMap<i64, Groups>>>);

/// What changed in one slice.
#[derive(Debug)]
pub(crate) struct Changed<K, V> {
    /// The slice; 0 where there is only one.
    pub(crate) slice: i64,
    /// Whether these are all entries that there were, and not only the dirty ones.
    pub(crate) whole: bool,
    /// Entries, as the tables had them that they were copied from: to put them together would copy them once more.
    pub(crate) parts: Vec<Vec<(K, V)>>,
}

impl<K, V> Changed<K, V> {
    pub(crate) fn entries(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }
}

impl Blocks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, Groups>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block was found in the database.
    pub(crate) fn note(&self, slice: i64, group: KeyGroup) {
        *self.lock().entry(slice).or_default() |= 1 << group;
    }

    /// The key groups that have a block of a slice.
    pub(crate) fn groups(&self, slice: i64) -> impl Iterator<Item = KeyGroup> + use<> {
        let groups = self.lock().get(&slice).copied().unwrap_or_default();
        (0..KEY_GROUPS as KeyGroup).filter(move |group| groups & (1 << group) != 0)
    }

    /// Writes blocks into `run`; `key` is the slice's part of their keys.
    pub(crate) fn write<K: Key, V: Value>(&self, run: &mut Run, key: &[u8], changed: Changed<K, V>) -> Result<()> {
        let Changed { slice, whole, parts } = changed;
        let blocks = blocks_of(parts.iter().flatten())?;
        let mut stored = self.lock();
        let before = stored.get(&slice).copied().unwrap_or_default();
        let mut written = 0;
        for (group, block) in (0..).zip(blocks).filter(|(_, block)| !block.is_empty()) {
            let group_bit: Groups = 1 << group;
            written |= group_bit;
            let replaces = whole || before & group_bit == 0;
            let block = pack(&block);
            run.push(group, key, if replaces { Change::Put(&block) } else { Change::Merge(&block) });
        }
        if whole {
            remove(run, key, before & !written);
        }
        stored.insert(slice, if whole { written } else { before | written });
        Ok(())
    }

    /// Removes what is stored of a slice.
    pub(crate) fn remove(&self, run: &mut Run, key: &[u8], slice: i64) {
        remove(run, key, self.lock().remove(&slice).unwrap_or_default());
    }
}

fn remove(run: &mut Run, key: &[u8], groups: Groups) {
    for group in (0..KEY_GROUPS as KeyGroup).filter(|group| groups & (1 << group) != 0) {
        run.push(group, key, Change::Remove);
    }
}

/// Entries dealt out to their key groups.
fn blocks_of<'a, K: Key, V: Value>(entries: impl Iterator<Item = &'a (K, V)>) -> Result<Vec<Vec<u8>>> {
    let mut blocks = vec![Vec::new(); KEY_GROUPS as usize];
    let mut entries = entries.peekable();
    let Some((key, value)) = entries.peek() else { return Ok(blocks) };
    codec::check_readable(key)?;
    codec::check_readable(value)?;
    for (key, value) in entries {
        let block: &mut Vec<u8> = &mut blocks[usize::from(group_of(hash_key(key)))];
        push_part(block, |out| codec::encode_into(key, out))?;
        push_part(block, |out| codec::encode_into(value, out))?;
    }
    blocks.iter().try_for_each(|block| check_size(block))?;
    Ok(blocks)
}

fn check_size(block: &[u8]) -> Result<()> {
    if block.len() <= MAX_BLOCK {
        return Ok(());
    }
    let reason = format!("{} bytes of changes, which is more than {MAX_BLOCK}", block.len());
    Err(StateError::Codec { what: "a key group".into(), reason })
}

/// Every entry of a stored block: the hash of its key, the key, its value.
pub(crate) fn read<K: Key, V: Value>(entry: StoredEntry<'_>, mut each: impl FnMut(u64, K, V)) -> Result<()> {
    each_row(entry.value, |key, value| {
        let (hash, key) = entry.decode_key(key)?;
        each(hash, key, codec::decode(value)?);
        Ok(())
    })
}

/// The bytes of every entry of a stored block: its key, its value.
pub(crate) fn each_row(block: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let rows = unpack(block).unwrap_or_default();
    let mut rest = &*rows;
    loop {
        // A block has at least one entry.
        let (Some(key), Some(value)) = (take_part(&mut rest), take_part(&mut rest)) else {
            let reason = format!("there is no entry in the last {} of {} bytes", rest.len(), rows.len());
            return Err(StateError::Codec { what: "a block of entries".into(), reason });
        };
        each(key, value)?;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// How many entries a stored block has.
pub(crate) fn count(block: &[u8]) -> Result<u64> {
    let mut count = 0;
    each_row(block, |_, _| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

/// Entries on their way into a new block, as bytes.
#[derive(Default)]
pub(crate) struct Rows(Vec<u8>);

impl Rows {
    /// Appends an entry. Its key must not be there yet.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        for part in [key, value] {
            push_part(&mut self.0, |out| {
                out.extend_from_slice(part);
                Ok(())
            })?;
        }
        check_size(&self.0)
    }

    pub(crate) fn into_block(self) -> Vec<u8> {
        pack(&self.0)
    }
}

/// The entries of several blocks, oldest block first, with the newest value of every key; nothing, if they are no blocks.
pub(crate) fn merge(blocks: &[&[u8]]) -> Option<Vec<u8>> {
    let blocks: Vec<Cow<'_, [u8]>> = blocks.iter().map(|block| unpack(block)).collect::<Option<_>>()?;
    let mut merged = Vec::with_capacity(blocks.iter().map(|block| block.len()).sum());
    let mut seen: HashTable<&[u8]> = HashTable::new();
    for (older, block) in blocks.iter().enumerate().rev() {
        let mut rest = &**block;
        while !rest.is_empty() {
            let entry = rest;
            let key = take_part(&mut rest)?;
            take_part(&mut rest)?;
            let hash = hash_bytes(key);
            if seen.find(hash, |seen| *seen == key).is_some() {
                continue;
            }
            merged.extend_from_slice(&entry[..entry.len() - rest.len()]);
            if older > 0 {
                seen.insert_unique(hash, key, |key| hash_bytes(key));
            }
        }
    }
    (merged.len() <= MAX_BLOCK).then(|| pack(&merged))
}

/// The length of every row, if they have one.
fn row_len(rows: &[u8]) -> Option<usize> {
    let (mut rest, mut len) = (rows, None);
    while !rest.is_empty() {
        let before = rest.len();
        take_part(&mut rest)?;
        take_part(&mut rest)?;
        let own = before - rest.len();
        if *len.get_or_insert(own) != own {
            return None;
        }
    }
    len
}

/// As many rows as fit into the first-level cache.
const TILE: usize = 256;

fn pack(rows: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(rows.len() + 5);
    let len = row_len(rows);
    push_number(&mut block, len.unwrap_or(0));
    let Some(len) = len else {
        block.extend_from_slice(rows);
        return block;
    };
    let (head, count) = (block.len(), rows.len() / len);
    block.resize(head + rows.len(), 0);
    for (tile, rows) in rows.chunks(TILE * len).enumerate() {
        for (column, cells) in block[head..].chunks_exact_mut(count).enumerate() {
            for (cell, row) in cells[tile * TILE..].iter_mut().zip(rows.chunks_exact(len)) {
                *cell = row[column];
            }
        }
    }
    block
}

/// The rows of a block; nothing, if it is none.
fn unpack(mut block: &[u8]) -> Option<Cow<'_, [u8]>> {
    let len = take_number(&mut block)?;
    if len == 0 || block.is_empty() {
        return Some(Cow::Borrowed(block));
    }
    let count = block.len() / len;
    if count * len != block.len() {
        return None;
    }
    let mut rows = vec![0; block.len()];
    for (tile, rows) in rows.chunks_mut(TILE * len).enumerate() {
        for (column, cells) in block.chunks_exact(count).enumerate() {
            for (cell, row) in cells[tile * TILE..].iter().zip(rows.chunks_exact_mut(len)) {
                row[column] = *cell;
            }
        }
    }
    Some(Cow::Owned(rows))
}

fn push_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[inline]
fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 0x7f).checked_shl(shift).filter(|_| shift < 35)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

/// Appends what `write` appends, with its length in front.
#[inline]
fn push_part(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    let start = out.len();
    out.push(0);
    write(out)?;
    let len = out.len() - start - 1;
    if len < 0x80 {
        out[start] = len as u8;
        return Ok(());
    }
    let mut head = Vec::with_capacity(10);
    push_number(&mut head, len);
    out.splice(start..=start, head);
    Ok(())
}

/// Takes off what [`push_part`] appended; nothing, if it is not there.
#[inline]
fn take_part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_number(bytes)?;
    let (part, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

    fn block(entries: &Entries) -> Vec<u8> {
        let mut block = Vec::new();
        for part in entries.iter().flat_map(|(key, value)| [key, value]) {
            push_part(&mut block, |out| {
                out.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
        }
        pack(&block)
    }

    fn entries(block: &[u8]) -> Option<Entries> {
        let mut found = Entries::new();
        let rows = unpack(block)?;
        let mut block = &*rows;
        while !block.is_empty() {
            let key = take_part(&mut block)?;
            let value = take_part(&mut block)?;
            assert!(found.insert(key.to_vec(), value.to_vec()).is_none(), "a key is there twice");
        }
        Some(found)
    }

    fn some_entries() -> impl Strategy<Value = Entries> {
        let length = prop_oneof![8 => 0..9usize, 1 => 126..131usize, 1 => 16_380..16_390usize];
        let value = (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
        prop::collection::btree_map(prop::collection::vec(0..3u8, 0..4), value, 0..20)
    }

    proptest! {
        /// In whatever steps RocksDB takes.
        #[test]
        fn the_newest_value_of_every_key_counts(parts in prop::collection::vec(some_entries(), 1..5), split in 0..5usize) {
            let mut expected = Entries::new();
            for part in &parts {
                expected.extend(part.clone());
            }
            let blocks: Vec<_> = parts.iter().map(block).collect();
            let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(entries(&merge(&blocks).unwrap()), Some(expected.clone()));
            let (older, newer) = blocks.split_at(split.min(blocks.len()));
            let (older, newer) = (merge(older).unwrap(), merge(newer).unwrap());
            prop_assert_eq!(entries(&merge(&[&older, &newer]).unwrap()), Some(expected));
        }

        #[test]
        fn what_is_no_block_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let merged = merge(&[&bytes]);
            let stored = StoredEntry { group: 0, state: 0, key: &[], value: &bytes };
            prop_assert!(merged.is_some() || read::<u64, u64>(stored, |_, _, _| ()).is_err());
        }
    }

    #[test]
    fn rows_of_one_length_are_stored_by_column() {
        for (count, len) in [(1, 1), (1, 40), (2, 3), (255, 9), (256, 9), (257, 9), (1000, 200), (2000, 1)] {
            let rows: Entries = (0..count).map(|n: u32| (n.to_be_bytes().to_vec(), vec![n as u8; len])).collect();
            let (block, row) = (block(&rows), 6 + len + usize::from(len > 127));
            assert_eq!(unpack(&block).unwrap().len(), count as usize * row);
            assert_eq!(entries(&block), Some(rows), "{count} rows of {len}");
            let head = 1 + usize::from(row > 127);
            assert_eq!(&block[head..head + count as usize], vec![4; count as usize], "the length of every key");
            assert!(count == 1 || unpack(&block[..block.len() - 1]).is_none());
        }
        assert_eq!(unpack(&[0, 5, 6]).as_deref(), Some(&[5, 6][..]));
        assert_eq!(unpack(&[]), None);
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        for bytes in [&[5, 1, 2][..], &[0x80], &[0xff; 12], &[0xff, 0xff, 0xff, 0xff, 0x0f]] {
            assert_eq!(take_part(&mut &*bytes), None, "{bytes:?}");
            assert_eq!(merge(&[&[&[0], bytes].concat()]), None, "{bytes:?}");
        }
    }
}
