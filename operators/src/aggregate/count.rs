//! The number of records.

use super::{Aggregate, Origin};

/// Counts records.
///
/// ```no_run
/// use millstream_operators::aggregate::{Count, Max, Sum};
/// # struct Departure { delay: i64 }
/// let delays = (Count, Sum::of(|d: &Departure| d.delay), Max::of(|d: &Departure| d.delay));
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Departure, _>(delays);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Count;

impl<V> Aggregate<V> for Count {
    type Acc = u64;
    type Out = u64;

    #[inline]
    fn create(&self) -> u64 {
        0
    }

    #[inline]
    fn add(&self, acc: &mut u64, _: &V, _: &Origin) {
        *acc += 1;
    }

    #[inline]
    fn merge(&self, into: &mut u64, from: &u64) {
        *into += from;
    }

    const INVERTIBLE: bool = true;

    #[inline]
    fn subtract(&self, from: &mut u64, part: &u64) {
        *from -= part;
    }

    #[inline]
    fn finish(&self, acc: &u64) -> u64 {
        *acc
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_every_record_once(values in prop::collection::vec(any::<i64>(), 0..50), seed: u64) {
            for count in any_order(&Count, &records(&values), seed) {
                prop_assert_eq!(count, values.len() as u64);
            }
        }
    }
}
