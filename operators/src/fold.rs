//! `fold` and `reduce`: a running value per key.
//!
//! **Shape**: keyed in; out comes, for every record, the key and the value after it. **State**: one value per key, for ever.
//! **Time**: late records count like others. **Order**: the running values depend on the order in which the records of a key
//! meet, which is that of their split, but between splits is left to chance. The last value of a key does not, if the
//! function gives the same for any order (a sum does, a concatenation does not).

use std::marker::PhantomData;
use std::ops::Range;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired, KeyedOperator};
use millstream_runtime::record::Data;
use millstream_runtime::rows::{BehindWalk, KeyedRows};
use millstream_runtime::stream::{KeyedStream, Stream};
use millstream_runtime::time::EventTime;
use millstream_state::keyed::KeyedState;
use millstream_state::snapshot::{Key, Value};

/// A running value per key.
#[derive(Debug)]
struct Fold<K, T, S, O, C, F, G> {
    /// Makes the value that the first record of a key meets.
    create: C,
    /// Takes a record into the value.
    step: F,
    /// What is shown of the value.
    show: G,
    types: PhantomData<fn(K, T, S, O)>,
}

impl<K, T, S, O, C: Clone, F: Clone, G: Clone> Clone for Fold<K, T, S, O, C, F, G> {
    fn clone(&self) -> Self {
        Fold { create: self.create.clone(), step: self.step.clone(), show: self.show.clone(), types: PhantomData }
    }
}

impl<K, T, S, O, C, F, G> KeyedOperator for Fold<K, T, S, O, C, F, G>
where
    K: Key,
    T: Data,
    S: Value,
    O: Data,
    C: Fn(&T) -> S + Send + 'static,
    F: FnMut(&mut S, &T) + Send + 'static,
    G: Fn(&S) -> Option<O> + Send + 'static,
{
    type Key = K;
    type In = T;
    type Out = (K, O);
    type State = KeyedState<K, S>;

    fn describe(&self) -> String {
        "a running value per key".into()
    }

    fn depends_on_order(&self) -> bool {
        true
    }

    fn state(&self, _groups: Range<u32>) -> Self::State {
        KeyedState::default()
    }

    fn state_names(&self) -> &'static [&'static str] {
        &["value"]
    }

    fn on_batch(
        &mut self,
        cx: &mut Context<T, (K, O)>,
        state: &mut Self::State,
        rows: &mut KeyedRows<K, T>,
    ) -> Result<()> {
        let keys = rows.records.iter().map(|record| (record.hash, &record.key));
        state.load(keys).map_err(Error::read_back)?;
        let mut behind = BehindWalk::new(&rows.behind);
        for (row, record) in rows.records.iter().enumerate() {
            cx.row = row;
            let value = state.update(record.hash, &record.key, || (self.create)(&record.value));
            (self.step)(value, &record.value);
            let Some(shown) = (self.show)(value) else { continue };
            let out = (record.key.clone(), shown);
            match behind.at(row) {
                None => cx.emit(record.at, out),
                Some(watermark) => cx.emit_behind(record.at, out, watermark),
            }
        }
        Ok(())
    }

    fn on_watermark(&mut self, _: &mut Context<T, (K, O)>, _: &mut Self::State, _: EventTime) -> Result<Fired> {
        Ok(Fired::All)
    }
}

/// Adds `fold` and `reduce` to keyed streams.
pub trait FoldExt<K: Key, T: Data> {
    /// For every record the key and the value that `step` has made of `initial` and all records of the key so far.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::fold::FoldExt;
    /// # fn example(payments: Stream<(String, u64)>) {
    /// let balances: Stream<(String, u64)> =
    ///     payments.key_by(|(who, _)| who.clone()).fold(0, |balance, (_, cents)| *balance += cents);
    /// # }
    /// ```
    #[must_use]
    fn fold<S: Value>(self, initial: S, step: impl FnMut(&mut S, &T) + Clone + Send + 'static) -> Stream<(K, S)>;

    /// For every record the key and what `step` has made of all records of the key so far, the first being itself.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::fold::FoldExt;
    /// # fn example(bids: Stream<(u64, u64)>) {
    /// let highest: Stream<(u64, (u64, u64))> = bids.key_by(|bid| bid.0).reduce(|best, bid| *best = (*best).max(*bid));
    /// # }
    /// ```
    #[must_use]
    fn reduce(self, step: impl FnMut(&mut T, &T) + Clone + Send + 'static) -> Stream<(K, T)>
    where
        T: Value;
}

impl<K: Key, T: Data> FoldExt<K, T> for KeyedStream<K, T> {
    fn fold<S: Value>(self, initial: S, step: impl FnMut(&mut S, &T) + Clone + Send + 'static) -> Stream<(K, S)> {
        let create = move |_: &T| initial.clone();
        self.operator("fold", Fold { create, step, show: |value: &S| Some(value.clone()), types: PhantomData })
            .0
    }

    fn reduce(self, mut step: impl FnMut(&mut T, &T) + Clone + Send + 'static) -> Stream<(K, T)>
    where
        T: Value,
    {
        // The first record makes the value; it must not be taken into itself as well.
        let step = move |value: &mut Option<T>, record: &T| match value {
            None => *value = Some(record.clone()),
            Some(value) => step(value, record),
        };
        self.operator("reduce", Fold { create: |_: &T| None, step, show: Option::clone, types: PhantomData })
            .0
    }
}
