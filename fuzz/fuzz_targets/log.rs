#![no_main]
//! Records of a log.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| millstream_connectors::log::fuzzing::read(bytes));
