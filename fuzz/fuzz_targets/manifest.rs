#![no_main]
//! The manifest of a checkpoint: behind a frame that is right, so that what is in it is reached as well.

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use millstream_state::fuzzing;
use millstream_state::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::from_bytes(bytes, Path::new("m"));
    if let Ok(manifest) = Manifest::from_bytes(&fuzzing::framed(bytes), Path::new("m")) {
        let again = manifest.to_bytes().expect("what was read can be written");
        assert_eq!(Manifest::from_bytes(&again, Path::new("m")).expect("and read again"), manifest);
    }
});
