#![no_main]
//! Bytes by the schema that a manifest says they have.

use libfuzzer_sys::fuzz_target;
use millstream_state::fuzzing;

fuzz_target!(|input: (String, Vec<u8>)| {
    let (schema, bytes) = input;
    fuzzing::walk(&schema, &bytes);
});
