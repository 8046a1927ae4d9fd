//! The rows of a table, kept so that they are there again after a restart.

use std::marker::PhantomData;
use std::ops::Range;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired, KeyedOperator};
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::time::EventTime;
use millstream_state::keyed::KeyedState;
use millstream_state::snapshot::Key;

use super::{Delta, Row};

/// Hands changes on, and keeps what they amount to: for each key and row how many there are.
pub(super) struct Rows<K, V>(PhantomData<fn(K, V)>);

impl<K, V> Rows<K, V> {
    pub(super) fn new() -> Self {
        Rows(PhantomData)
    }
}

impl<K, V> Clone for Rows<K, V> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<K: Key + Row, V: Row + Eq> KeyedOperator for Rows<K, V> {
    type Key = (K, V);
    type In = Delta<K, V>;
    type Out = Delta<K, V>;
    type State = KeyedState<(K, V), i64>;

    fn describe(&self) -> String {
        "rows of a table".to_string()
    }

    fn state(&self, _: Range<u32>) -> Self::State {
        KeyedState::default()
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["rows"]
    }

    fn stays_in_memory(&self) -> bool {
        true
    }

    fn on_start(&mut self, cx: &mut Context<Self::In, Self::Out>, rows: &mut Self::State) -> Result<()> {
        rows.iter()
            .for_each(|((key, row), count)| cx.emit(EventTime::MIN, (key.clone(), row.clone(), *count)));
        Ok(())
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<Self::In, Self::Out>,
        state: &mut Self::State,
        rows: &mut KeyedRows<(K, V), Delta<K, V>>,
    ) -> Result<()> {
        state.load(rows.records.iter().map(|record| (record.hash, &record.key))).map_err(Error::read_back)?;
        let mut behind = BehindWalk::new(&rows.behind);
        for (number, record) in rows.records.iter().enumerate() {
            cx.row = number;
            let (_, _, by) = &record.value;
            let count = state.update(record.hash, &record.key, || 0);
            *count = count
                .checked_add(*by)
                .ok_or_else(|| Error::user("a row is in a table more often than can be counted"))?;
            if *count == 0 {
                state.remove(record.hash, &record.key);
            }
            match behind.at(number) {
                Some(watermark) => cx.emit_behind(record.at, record.value.clone(), watermark),
                None => cx.emit(record.at, record.value.clone()),
            }
        }
        Ok(())
    }

    fn on_watermark(
        &mut self,
        _: &mut Context<Self::In, Self::Out>,
        _: &mut Self::State,
        _: EventTime,
    ) -> Result<Fired> {
        Ok(Fired::All)
    }
}
