#![no_main]
//! Blocks, as RocksDB has them merged: in one step, and in two.

use libfuzzer_sys::fuzz_target;
use millstream_state::fuzzing::merge;

fuzz_target!(|bytes: &[u8]| {
    let Some((lengths, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (first, rest) = rest.split_at(usize::from(lengths[0]).min(rest.len()));
    let (second, third) = rest.split_at(usize::from(lengths[1]).min(rest.len()));
    let whole = merge(&[first, second, third], true);
    let newer = merge(&[second, third], false);
    let stepwise = newer.as_ref().and_then(|newer| merge(&[first, newer], true));
    if let (Some(whole), Some(stepwise)) = (&whole, &stepwise) {
        assert_eq!(whole.len(), stepwise.len(), "the same entries, in whatever steps");
    }
});
