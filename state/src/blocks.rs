//! The entries of one key group and slice as one value of the database: a block.
//!
//! An entry on its own costs RocksDB about half a microsecond to sort, write and later delete; in a block it costs little
//! more than its bytes. What changes later is written as a block of its own, which RocksDB merges: the newer value of a
//! key counts. Blocks that do not know each other's types are merged, by the bytes of their keys.
//!
//! A block is a row per entry: key and value, each with its length in front (LEB128). Where all rows are equally long, as
//! those of numbers are, they are stored by column: the first byte of every row, then the second, and so on. Most columns are
//! zeros then, and LZ4 takes a third of the time for half of the bytes. In front of it all stands how long a row is, or 0.
//!
//! A block that is to be merged may also say which keys are gone. Then it begins with a 0 as nobody else writes it (`80 00`), the
//! length of those keys and the keys, each with its length in front. What RocksDB makes of all blocks of a key has no such part.

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
    /// Keys that were removed. Some may be among the entries: they came back.
    pub(crate) removed: Vec<Vec<K>>,
}

impl<K: Key, V> Changed<K, V> {
    /// The keys that were removed and did not come back, with their hashes.
    pub(crate) fn gone(&self) -> impl Iterator<Item = (u64, &K)> {
        let mut gone: HashTable<(u64, &K)> = HashTable::with_capacity(self.removed.iter().map(Vec::len).sum());
        for key in self.removed.iter().flatten() {
            let hash = hash_key(key);
            gone.insert_unique(hash, (hash, key), |(hash, _)| *hash);
        }
        if !gone.is_empty() {
            for (key, _) in self.parts.iter().flatten() {
                if let Ok(found) = gone.find_entry(hash_key(key), |(_, gone)| *gone == key) {
                    found.remove();
                }
            }
        }
        gone.into_iter()
    }
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
        let (slice, whole) = (changed.slice, changed.whole);
        let blocks = blocks_of(changed.parts.iter().flatten())?;
        let gone = if whole { BTreeMap::new() } else { gone_by_group(&changed)? };
        let mut stored = self.lock();
        let before = stored.get(&slice).copied().unwrap_or_default();
        let mut written = 0;
        for (group, block) in (0..).zip(blocks) {
            let group_bit: Groups = 1 << group;
            let is_stored = before & group_bit != 0;
            let gone = gone.get(&group).filter(|_| is_stored);
            if block.is_empty() && gone.is_none() {
                continue;
            }
            written |= group_bit;
            let mut change = Vec::new();
            gone.into_iter().for_each(|gone| push_gone(&mut change, gone));
            change.extend_from_slice(&pack(&block));
            run.push(group, key, if whole || !is_stored { Change::Put(&change) } else { Change::Merge(&change) });
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

/// The keys that are gone, as bytes.
fn gone_by_group<K: Key, V>(changed: &Changed<K, V>) -> Result<BTreeMap<KeyGroup, Vec<u8>>> {
    let mut groups: BTreeMap<KeyGroup, Vec<u8>> = BTreeMap::new();
    for (hash, key) in changed.gone() {
        push_part(groups.entry(group_of(hash)).or_default(), |out| codec::encode_into(key, out))?;
    }
    groups.values().try_for_each(|gone| check_size(gone))?;
    Ok(groups)
}

/// What a block begins with that says which keys are gone.
const GONE: [u8; 2] = [0x80, 0];

fn push_gone(block: &mut Vec<u8>, gone: &[u8]) {
    block.extend_from_slice(&GONE);
    push_number(block, gone.len());
    block.extend_from_slice(gone);
}

/// Takes off which keys are gone; nothing, if it is not whole.
fn take_gone<'a>(block: &mut &'a [u8]) -> Option<&'a [u8]> {
    match block.strip_prefix(&GONE) {
        None => Some(&[]),
        Some(rest) => {
            *block = rest;
            take_part(block)
        }
    }
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
    let no_block = |reason| StateError::Codec { what: "a block of entries".into(), reason };
    let Some(rows) = unpack(block) else {
        return Err(no_block(format!("its {} bytes do not begin as one does", block.len())));
    };
    let mut rest = &*rows;
    while !rest.is_empty() {
        let (Some(key), Some(value)) = (take_part(&mut rest), take_part(&mut rest)) else {
            return Err(no_block(format!("there is no entry in the last {} of {} bytes", rest.len(), rows.len())));
        };
        each(key, value)?;
    }
    Ok(())
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

/// The entries of several blocks, oldest block first, with the newest value of every key and without those that are gone;
/// nothing, if they are no blocks. Unless these are `all` that there is, older ones may still have keys that are gone, so the result says
/// which are.
pub(crate) fn merge(blocks: &[&[u8]], all: bool) -> Option<Vec<u8>> {
    let blocks: Vec<_> = blocks.iter().map(|block| parts_of(block)).collect::<Option<_>>()?;
    let mut merged = Vec::with_capacity(blocks.iter().map(|(_, block)| block.len()).sum());
    let mut all_gone = Vec::new();
    let mut seen: HashTable<&[u8]> = HashTable::new();
    for (older, (gone, block)) in blocks.iter().enumerate().rev() {
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
        // A key is in one of the two parts of a block.
        let mut rest = *gone;
        while !rest.is_empty() {
            let entry = rest;
            let key = take_part(&mut rest)?;
            let hash = hash_bytes(key);
            if seen.find(hash, |seen| *seen == key).is_none() {
                all_gone.extend_from_slice(&entry[..entry.len() - rest.len()]);
                seen.insert_unique(hash, key, |key| hash_bytes(key));
            }
        }
    }
    if merged.len().max(all_gone.len()) > MAX_BLOCK {
        return None;
    }
    let mut block = Vec::new();
    if !all && !all_gone.is_empty() {
        push_gone(&mut block, &all_gone);
    }
    block.extend_from_slice(&pack(&merged));
    Some(block)
}

/// The keys that are gone, and the rows of a block.
fn parts_of(mut block: &[u8]) -> Option<(&[u8], Cow<'_, [u8]>)> {
    let gone = take_gone(&mut block)?;
    Some((gone, unpack(block)?))
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
    if len == 0 {
        return Some(Cow::Borrowed(block));
    }
    let count = block.len() / len;
    if count == 0 || count * len != block.len() {
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

    /// What changed: a new value for a key, or none any more.
    type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

    fn rows<'a>(parts: impl Iterator<Item = &'a Vec<u8>>) -> Vec<u8> {
        let mut rows = Vec::new();
        for part in parts {
            push_part(&mut rows, |out| {
                out.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
        }
        rows
    }

    fn block(entries: &Entries) -> Vec<u8> {
        pack(&rows(entries.iter().flat_map(|(key, value)| [key, value])))
    }

    fn delta(changes: &Changes) -> Vec<u8> {
        let gone = rows(changes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key));
        let mut delta = Vec::new();
        if !gone.is_empty() {
            push_gone(&mut delta, &gone);
        }
        let entries = changes.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
        delta.extend(block(&entries.collect()));
        delta
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

    fn some_changes() -> impl Strategy<Value = Changes> {
        let length = prop_oneof![8 => 0..9usize, 1 => 126..131usize, 1 => 16_380..16_390usize];
        let value = (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
        let value = prop::option::weighted(0.7, value);
        prop::collection::btree_map(prop::collection::vec(0..3u8, 0..4), value, 0..20)
    }

    proptest! {
        /// In whatever steps RocksDB takes.
        #[test]
        fn the_newest_value_of_every_key_counts(parts in prop::collection::vec(some_changes(), 1..6), split in 0..6usize, end in 0..6usize) {
            let mut expected = Entries::new();
            for (key, value) in parts.iter().flatten() {
                match value {
                    Some(value) => drop(expected.insert(key.clone(), value.clone())),
                    None => drop(expected.remove(key)),
                }
            }
            let blocks: Vec<_> = parts.iter().map(delta).collect();
            let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(entries(&merge(&blocks, true).unwrap()), Some(expected.clone()));
            let (older, newer) = blocks.split_at(split.min(blocks.len()));
            let (middle, newest) = newer.split_at(end.min(newer.len()));
            let base = merge(older, true).unwrap();
            let (middle, newest) = (merge(middle, false).unwrap(), merge(newest, false).unwrap());
            prop_assert_eq!(entries(&merge(&[&base, &middle, &newest], true).unwrap()), Some(expected.clone()));
            let newer = merge(&[&middle, &newest], false).unwrap();
            prop_assert_eq!(entries(&merge(&[&base, &newer], true).unwrap()), Some(expected));
        }

        #[test]
        fn what_is_no_block_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let merged = merge(&[&bytes], true);
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
            assert_eq!(merge(&[&[&GONE, bytes, &[0]].concat()], false), None, "{bytes:?}");
            assert_eq!(merge(&[&[&[0], bytes].concat()], true), None, "{bytes:?}");
        }
    }
}
