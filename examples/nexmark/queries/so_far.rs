//! What an aggregate makes of all records of a key so far, anew after every instant at which there were some.
//!
//! The records of one instant count together, so it does not matter in which order they come. (A `fold` has a result for
//! every record, in the order in which they come.)
//!
//! **State**: one accumulator a key, for ever. **Time**: a result comes one microsecond after the records that changed it.

use millstream::prelude::*;
use millstream::state::snapshot::Value;

use super::INSTANT;

/// For [`process_in_order`](ProcessExt::process_in_order).
#[derive(Clone)]
pub struct SoFar<A> {
    aggregate: A,
}

impl<A> SoFar<A> {
    /// All that `aggregate` comes to.
    pub fn of(aggregate: A) -> Self {
        SoFar { aggregate }
    }
}

impl<K: Key, T: Value, A: Aggregate<T>> Process<K, T> for SoFar<A> {
    type State = A::Acc;
    type Out = (K, A::Out);

    fn describe(&self) -> String {
        format!("{} so far", self.aggregate.describe())
    }

    fn on_record(&mut self, cx: &mut ProcessContext<'_, K, A::Acc, (K, A::Out)>, value: &T) -> Result<(), Error> {
        let origin = cx.origin();
        let acc = cx.state().get_or_insert_with(|| self.aggregate.create());
        self.aggregate.add(acc, value, &origin);
        cx.set_timer(origin.at + INSTANT);
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut ProcessContext<'_, K, A::Acc, (K, A::Out)>, _: EventTime) -> Result<(), Error> {
        if let Some(acc) = cx.state() {
            let result = self.aggregate.finish(acc);
            cx.emit((cx.key().clone(), result));
        }
        Ok(())
    }
}
