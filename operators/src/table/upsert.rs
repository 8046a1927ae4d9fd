//! Upserts as changes: a new row takes the place of the one before.

use std::marker::PhantomData;

use millstream_runtime::error::Result;
use millstream_state::snapshot::{Key, Value};

use super::{Delta, Row};
use crate::process::{Process, ProcessContext};

pub(super) struct Upserts<T, V, F> {
    row: F,
    types: PhantomData<fn(&T) -> V>,
}

impl<T, V, F: Fn(&T) -> Option<V>> Upserts<T, V, F> {
    pub(super) fn new(row: F) -> Self {
        Upserts { row, types: PhantomData }
    }
}

impl<T, V, F: Clone> Clone for Upserts<T, V, F> {
    fn clone(&self) -> Self {
        Upserts { row: self.row.clone(), types: PhantomData }
    }
}

impl<K, T, V, F> Process<K, T> for Upserts<T, V, F>
where
    K: Key + Row,
    T: Value,
    V: Row,
    F: Fn(&T) -> Option<V> + Clone + Send + 'static,
{
    type State = V;
    type Out = Delta<K, V>;

    const TELLS_AT_START: bool = true;

    fn describe(&self) -> String {
        "newest rows of a table".to_string()
    }

    fn at_start(&self, key: &K, row: &V) -> Option<Delta<K, V>> {
        Some((key.clone(), row.clone(), 1))
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, V, Self::Out>, value: &T) -> Result<()> {
        let key = cx.key().clone();
        let new = (self.row)(value);
        let old = std::mem::replace(cx.state(), new.clone());
        if old == new {
            return Ok(());
        }
        if let Some(old) = old {
            cx.emit((key.clone(), old, -1));
        }
        if let Some(new) = new {
            cx.emit((key, new, 1));
        }
        Ok(())
    }
}
