//! An aggregate from closures, for what is too small to deserve a type.

use super::{Aggregate, Origin};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Folds records into a state of your own; the state is also the result.
///
/// The closures must keep the promises of [`Aggregate`]: the order of records must not matter, and merging must be
/// commutative and associative, with the initial state as neutral element.
///
/// ```no_run
/// use millstream_operators::aggregate::Fold;
/// # struct Packet { flags: u32 }
/// let seen = Fold::new(0u32, |seen, packet: &Packet| *seen |= packet.flags, |into, from| *into |= from);
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Packet, _>(seen);
/// ```
#[derive(Clone, Copy)]
pub struct Fold<S, A, M> {
    initial: S,
    add: A,
    merge: M,
}

impl<S, A, M> Fold<S, A, M> {
    /// A fold that starts from `initial`, takes records with `add` and other states with `merge`.
    pub fn new<V>(initial: S, add: A, merge: M) -> Self
    where
        A: Fn(&mut S, &V),
        M: Fn(&mut S, &S),
    {
        Fold { initial, add, merge }
    }
}

impl<V, S, A, M> Aggregate<V> for Fold<S, A, M>
where
    S: Clone + Send + Serialize + DeserializeOwned + 'static,
    A: Fn(&mut S, &V) + Clone + Send + 'static,
    M: Fn(&mut S, &S) + Clone + Send + 'static,
{
    type Acc = S;
    type Out = S;

    fn create(&self) -> S {
        self.initial.clone()
    }

    fn add(&self, acc: &mut S, value: &V, _: &Origin) {
        (self.add)(acc, value);
    }

    fn merge(&self, into: &mut S, from: &S) {
        (self.merge)(into, from);
    }

    fn finish(&self, acc: &S) -> S {
        acc.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn folds(values in prop::collection::vec(any::<u32>(), 0..50), seed: u64) {
            let expected = values.iter().fold(0, |seen, v| seen ^ v);
            let fold = Fold::new(0u32, |seen, v: &u32| *seen ^= v, |into, from| *into ^= from);
            for folded in any_order(&fold, &records(&values), seed) {
                prop_assert_eq!(folded, expected);
            }
        }
    }
}
