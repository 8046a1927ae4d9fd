//! What must not count yet: records that are behind, where windows that they are too late for are still to be fired.
//!
//! **State**: by what it waits for, and by key: accumulators, each with a number that says where it belongs. Since they go all at once, nobody
//! has to look for those that are due.

use millstream_runtime::error::{Error, Result};
use millstream_state::slices::SliceState;
use millstream_state::snapshot::{Key, State, Value};

pub(super) type Apart<K, Acc> = SliceState<K, Vec<(i64, Acc)>>;

/// What waits of a key until `until`, for `number`: to be changed, and made by `create` when there is nothing.
pub(super) fn waiting<'a, K: Key, Acc: Value>(
    apart: &'a mut Apart<K, Acc>,
    until: i64,
    number: i64,
    hash: u64,
    key: &K,
    create: impl FnOnce() -> Acc,
) -> Result<&'a mut Acc> {
    apart.load([until]).map_err(Error::read_back)?;
    let parts = apart.update(until, hash, key, Vec::new);
    let place = parts.binary_search_by_key(&number, |(own, _)| *own).unwrap_or_else(|place| {
        parts.insert(place, (number, create()));
        place
    });
    Ok(&mut parts[place].1)
}

/// Has `slice` in memory, for what has waited; others that nobody changes for the moment may leave it for that.
pub(super) fn bring_back<K: Key, V: Value>(slices: &mut SliceState<K, V>, slice: i64) -> Result<()> {
    if slices.is_away(slice) {
        slices.relieve();
        slices.load([slice]).map_err(Error::read_back)?;
    }
    Ok(())
}

/// Takes out all that waits until `until`, in order of the numbers, so that as few slices as can be have to be in memory at a time.
pub(super) fn take<K: Key, Acc: Value>(apart: &mut Apart<K, Acc>, until: i64) -> Result<Vec<(i64, K, Acc)>> {
    apart.load([until]).map_err(Error::read_back)?;
    let mut all = Vec::new();
    apart.take(until, |key, parts| all.extend(parts.into_iter().map(|(number, acc)| (number, key.clone(), acc))));
    all.sort_by_key(|(number, ..)| *number);
    apart.relieve();
    Ok(all)
}
