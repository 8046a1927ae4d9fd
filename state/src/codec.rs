//! How keys and values become bytes in checkpoints.
//!
//! One codec, named in every manifest: bincode 1.3.3 with fixed-width little-endian integers, entries taken together to blocks
//! (see `blocks.rs`). Bytes are decoded from
//! slices with a limit on their size, so a damaged length cannot ask for memory that is not there. RocksDB's and our own
//! checksums are checked before anything is decoded.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, StateError};

/// The codec's name and version, as it stands in manifests. Version 1 stored every entry on its own.
pub const CODEC_ID: &str = "bincode-1.3-fixed-le/2";

/// The largest key or value that is read or written, in bytes.
pub const MAX_BYTES: u64 = 256 << 20;

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MAX_BYTES)
}

/// Appends the bytes of `value` to `out`.
///
/// # Errors
/// When the type refuses to be serialised, or is larger than [`MAX_BYTES`].
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    options().serialize_into(out, value).map_err(|error| StateError::Codec {
        what: format!("writing a `{}`", std::any::type_name::<T>()),
        reason: error.to_string(),
    })
}

/// The bytes of `value`.
///
/// # Errors
/// As [`encode_into`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    encode_into(value, &mut out)?;
    Ok(out)
}

/// The value in `bytes`, all of which must belong to it.
///
/// # Errors
/// When the bytes are not exactly one value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    options().deserialize(bytes).map_err(|error| StateError::Codec {
        what: format!("reading a `{}` from {} bytes", std::any::type_name::<T>(), bytes.len()),
        reason: error.to_string(),
    })
}

/// Checks that `value` can be read back from what would be written of it. Serde lets types write themselves in ways that only
/// a self-describing format can read (`#[serde(tag)]`, `#[serde(untagged)]`, `serde_json::Value`); better to hear of it
/// at the first checkpoint than at the first restore.
///
/// # Errors
/// When it cannot.
pub fn check_readable<T: Serialize + DeserializeOwned>(value: &T) -> Result<()> {
    decode::<T>(&encode(value)?).map(drop).map_err(|error| StateError::Codec {
        what: format!("state of type `{}` could not be read back", std::any::type_name::<T>()),
        reason: format!(
            "{error}; give it a plain derived `Serialize` and `Deserialize`, without `tag`, `untagged`, `flatten` or \
             `skip_serializing_if`, and no `serde_json::Value`"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_round_trip() {
        let value = (7u64, "straße".to_string(), vec![Some(1i32), None]);
        assert_eq!(decode::<(u64, String, Vec<Option<i32>>)>(&encode(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn state_that_could_not_be_restored_is_refused_when_it_is_written() {
        #[derive(Serialize, serde::Deserialize)]
        #[serde(tag = "kind")]
        enum Tagged {
            Paid { cents: u64 },
        }
        assert!(check_readable(&Some(7u64)).is_ok());
        let error = check_readable(&Tagged::Paid { cents: 7 }).unwrap_err();
        assert!(error.to_string().contains("could not be read back"), "{error}");
        assert!(check_readable(&serde_json::json!({"cents": 7})).is_err());
    }

    #[test]
    fn wrong_lengths_are_refused_without_allocating_them() {
        let mut bytes = encode(&"abc".to_string()).unwrap();
        bytes[0..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<String>(&bytes).is_err());
        let mut bytes = encode(&7u64).unwrap();
        bytes.push(0);
        assert!(decode::<u64>(&bytes).is_err(), "bytes left over");
    }
}
