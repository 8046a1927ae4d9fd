#![no_main]
//! Stored entries: as every kind of state restores them, and as they are shown.

use libfuzzer_sys::fuzz_target;
use millstream_state::groups::GroupMarks;
use millstream_state::keyed::KeyedState;
use millstream_state::reader::Reader;
use millstream_state::slices::SliceState;
use millstream_state::snapshot::{State, StoredEntry};

type Value = Vec<(i64, Option<String>, [u8; 3])>;

fuzz_target!(|bytes: &[u8]| {
    let [group, state, key_len, rest @ ..] = bytes else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(key_len % 24)) else { return };
    let entry = StoredEntry { group: u16::from(group % 128), state: state % 4, key, value };

    let mut keyed = KeyedState::<String, Value>::default();
    keyed.track();
    let _ = keyed.restore(entry);
    let mut slices = SliceState::<(u64, bool), f64>::default();
    slices.track();
    let _ = slices.restore(entry);
    let mut marks = GroupMarks::new(0..128);
    let _ = marks.restore(entry);

    for reader in [Reader::keyed::<String, Value>(), Reader::sliced::<(u64, bool), f64>(), Reader::marks(), Reader::opaque()] {
        let _ = reader.count(entry);
        let mut rows = Vec::new();
        let _ = reader.rows(entry, None, &mut rows);
        for row in &rows {
            let _ = (reader.key_json(row), reader.value_json(row));
        }
    }
});
