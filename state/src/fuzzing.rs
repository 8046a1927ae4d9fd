//! What fuzzers reach that nobody else does. Only there when the crate is built for fuzzing, and, to see that it compiles, in tests.
#![allow(missing_docs)]

use crate::evolve::Migrations;
use crate::lines::unsealed;
use crate::schema::Schema;
use crate::walk::{Plan, rewrite, show};

/// What RocksDB has made of a value and what is to be merged with it; of all that there is, or of some.
pub fn merge(blocks: &[&[u8]], all: bool) -> Option<Vec<u8>> {
    crate::blocks::merge(blocks, all)
}

/// A manifest file with this content, whatever it is.
pub fn framed(json: &[u8]) -> Vec<u8> {
    crate::manifest::framed(json)
}

/// Goes through bytes by a schema, as migrations and messages do.
pub fn walk(schema: &str, bytes: &[u8]) {
    let Ok(schema) = schema.parse::<Schema>() else { return };
    let _ = show(&schema, bytes);
    if let Ok(same) = rewrite(&schema, &Plan::Same, &Migrations::default(), bytes) {
        assert_eq!(same, bytes, "nothing changes where nothing is to change");
    }
}

/// The objects in lines that are whole, and in lines that were made so.
pub fn lines(bytes: &[u8]) -> Vec<String> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.flat_map(|line| [unsealed(line), String::from_utf8(line.to_vec()).ok()]).flatten().collect()
}
