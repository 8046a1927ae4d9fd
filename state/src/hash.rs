//! The hash of a key: taken once, it chooses the key group, the worker and the slot in a table.
//!
//! Rust's derived `Hash` is stable neither between versions nor between platforms, so we hash what serde sees of a
//! key instead: every field is written with a fixed width, in order. The hasher has a version, [`HASHER_ID`], that stands
//! in every manifest; changing anything here means a new one.
//!
//! **Source**: the mixing step is the folded multiply of wyhash (Wang Yi) and foldhash. It is fast, not secret: keys
//! chosen by an adversary can collide.

use serde::ser::{self, Serialize};

/// The name of this hash function, as it stands in manifests.
pub const HASHER_ID: &str = "millstream-fold/1";

const SEED: u64 = 0x2d35_8dcc_aa6c_78a5;
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const LAST: u64 = 0x8bb8_4b93_962e_acc9;

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// The hash of `key`. Keys that are equal must serialise equally, which derived `Serialize` and `Eq` ensure.
///
/// # Panics
/// When the key's own `Serialize` reports an error, which derived ones never do.
#[inline]
pub fn hash_key<K: Serialize + ?Sized>(key: &K) -> u64 {
    let mut hasher = KeyHasher { state: SEED };
    if let Err(Unhashable(message)) = key.serialize(&mut hasher) {
        panic!("a key of type `{}` cannot be hashed: {message}", std::any::type_name::<K>());
    }
    fold(hasher.state ^ LAST, MIX)
}

/// A hash of bytes for tables in memory; never stored.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = KeyHasher { state: SEED };
    hasher.bytes(bytes);
    fold(hasher.state ^ LAST, MIX)
}

struct KeyHasher {
    state: u64,
}

impl KeyHasher {
    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.state = fold(self.state.rotate_left(23) ^ word, MIX);
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(word));
        }
    }
}

#[derive(Debug)]
struct Unhashable(String);

impl std::fmt::Display for Unhashable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unhashable {}

impl ser::Error for Unhashable {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Unhashable(message.to_string())
    }
}

type Hashed = Result<(), Unhashable>;

/// Methods that write one fixed-width number.
macro_rules! numbers {
    ($($method:ident: $type:ty),*) => {
        $(#[inline(always)] fn $method(self, value: $type) -> Hashed { self.word(value as u64); Ok(()) })*
    };
}

impl ser::Serializer for &mut KeyHasher {
    type Ok = ();
    type Error = Unhashable;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_char: char);

    fn serialize_i128(self, value: i128) -> Hashed {
        self.serialize_u128(value as u128)
    }
    fn serialize_u128(self, value: u128) -> Hashed {
        self.word(value as u64);
        self.word((value >> 64) as u64);
        Ok(())
    }
    fn serialize_f32(self, value: f32) -> Hashed {
        self.word(u64::from(value.to_bits()));
        Ok(())
    }
    fn serialize_f64(self, value: f64) -> Hashed {
        self.word(value.to_bits());
        Ok(())
    }
    #[inline]
    fn serialize_str(self, value: &str) -> Hashed {
        self.bytes(value.as_bytes());
        Ok(())
    }
    fn serialize_bytes(self, value: &[u8]) -> Hashed {
        self.bytes(value);
        Ok(())
    }
    fn serialize_none(self) -> Hashed {
        self.word(0);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Hashed {
        self.word(1);
        value.serialize(self)
    }
    fn serialize_unit(self) -> Hashed {
        Ok(())
    }
    fn serialize_unit_struct(self, _name: &'static str) -> Hashed {
        Ok(())
    }
    fn serialize_unit_variant(self, _name: &'static str, index: u32, _variant: &'static str) -> Hashed {
        self.word(u64::from(index));
        Ok(())
    }
    #[inline(always)]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _name: &'static str, value: &T) -> Hashed {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        value: &T,
    ) -> Hashed {
        self.word(u64::from(index));
        value.serialize(self)
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<Self, Unhashable> {
        self.serialize_map(len)
    }
    fn serialize_tuple(self, _len: usize) -> Result<Self, Unhashable> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Self, Unhashable> {
        Ok(self)
    }
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, Unhashable> {
        self.word(u64::from(index));
        Ok(self)
    }
    fn serialize_map(self, len: Option<usize>) -> Result<Self, Unhashable> {
        let Some(len) = len else {
            return Err(Unhashable("a sequence in it does not know its length".into()));
        };
        self.word(len as u64);
        Ok(self)
    }
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Self, Unhashable> {
        Ok(self)
    }
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, Unhashable> {
        self.word(u64::from(index));
        Ok(self)
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Compound values: every part is hashed in turn, names are not.
macro_rules! compound {
    ($($trait:ident :: $method:ident),*) => {
        $(impl ser::$trait for &mut KeyHasher {
            type Ok = ();
            type Error = Unhashable;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Hashed { value.serialize(&mut **self) }
            fn end(self) -> Hashed { Ok(()) }
        })*
    };
    (named $($trait:ident),*) => {
        $(impl ser::$trait for &mut KeyHasher {
            type Ok = ();
            type Error = Unhashable;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _name: &'static str, value: &T) -> Hashed {
                value.serialize(&mut **self)
            }
            fn end(self) -> Hashed { Ok(()) }
        })*
    };
}

compound!(SerializeSeq::serialize_element, SerializeTuple::serialize_element);
compound!(SerializeTupleStruct::serialize_field, SerializeTupleVariant::serialize_field);
compound!(named SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for &mut KeyHasher {
    type Ok = ();
    type Error = Unhashable;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Hashed {
        key.serialize(&mut **self)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Hashed {
        value.serialize(&mut **self)
    }
    fn end(self) -> Hashed {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// These values stand in checkpoints by way of key groups: if one changes, so must [`HASHER_ID`].
    #[test]
    fn hashes_never_change() {
        assert_eq!(hash_key(&0u64), 0xfd24_535d_6417_08ae);
        assert_eq!(hash_key(&42u64), 0xd3d6_3c16_e39d_1b81);
        assert_eq!(hash_key("EWR"), 0x0b27_3575_5800_7a0d);
        assert_eq!(hash_key(&("EWR", 7u32)), 0xe3e7_6cd7_2e9f_eedf);
    }

    #[test]
    fn borrowed_and_owned_keys_hash_alike() {
        assert_eq!(hash_key("EWR"), hash_key(&"EWR".to_string()));
    }

    #[test]
    fn similar_keys_spread_over_all_bits() {
        for shift in [0, 8, 32, 57] {
            let buckets: HashSet<u64> = (0..1000u64).map(|key| (hash_key(&key) >> shift) & 127).collect();
            assert_eq!(buckets.len(), 128, "bits from {shift}");
        }
        let hashes: HashSet<u64> = (0..100_000u64).map(|key| hash_key(&key)).collect();
        assert_eq!(hashes.len(), 100_000);
        assert_ne!(hash_key(&("a", "bc")), hash_key(&("ab", "c")), "strings carry their length");
    }
}
