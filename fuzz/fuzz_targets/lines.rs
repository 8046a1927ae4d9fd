#![no_main]
//! Lines of a journal, and of records that are set aside.

use libfuzzer_sys::fuzz_target;
use millstream_state::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    for object in fuzzing::lines(bytes) {
        let _ = serde_json::from_str::<millstream_runtime::journal::Event>(&object);
        let _ = serde_json::from_str::<millstream_runtime::poison::SetAside>(&object);
    }
});
