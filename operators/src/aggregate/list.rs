//! All records, in order.
//!
//! **State**: what is taken of every record, with its time and position: it grows with the input. **Time**: the order is that of [`First`](super::First):
//! by event time, then by position, then by bytes.

use millstream_state::snapshot::Value;

use super::{Aggregate, Held, Origin};

/// What a closure takes from every record, in order of event time and position: for logic that needs to see all records of a window at once.
///
/// ```no_run
/// use millstream_operators::aggregate::List;
/// # struct Click { page: String }
/// let path = List::of(|click: &Click| click.page.clone()); // Vec<String>
/// # fn check<V, A: millstream_operators::aggregate::Aggregate<V>>(_: A) {}
/// # check::<Click, _>(path);
/// ```
#[derive(Clone, Copy)]
pub struct List<F> {
    of: F,
}

impl<F> List<F> {
    /// What `of` takes from each record.
    pub fn of<V, T>(of: F) -> Self
    where
        F: Fn(&V) -> T,
    {
        List { of }
    }
}

impl<V, T: Value, F: Fn(&V) -> T + Clone + Send + 'static> Aggregate<V> for List<F> {
    /// In any order.
    type Acc = Vec<Held<T>>;
    type Out = Vec<T>;

    const NEEDS_POSITION: bool = true;

    fn create(&self) -> Self::Acc {
        Vec::new()
    }

    #[inline]
    fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin) {
        acc.push(Held::new(origin, (self.of)(value)));
    }

    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
        into.extend_from_slice(from);
    }

    fn finish(&self, acc: &Self::Acc) -> Vec<T> {
        let mut all: Vec<&Held<T>> = acc.iter().collect();
        all.sort_by(|a, b| a.compare(b));
        all.into_iter().map(|held| held.value.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_are_in_their_order(values in prop::collection::vec(any::<i16>(), 1..40), seed in any::<u64>()) {
            let list = List::of(|value: &i16| *value);
            for result in any_order(&list, &records(&values), seed) {
                prop_assert_eq!(&result, &values);
            }
        }
    }

    /// Results of windows have no position.
    #[test]
    fn records_without_a_position_are_in_the_order_of_their_bytes() {
        let origin = Origin { at: super::super::EventTime::EPOCH, split: 0, record: 0 };
        let list = List::of(|value: &u8| *value);
        for result in any_order(&list, &[(3, origin), (1, origin), (2, origin), (1, origin)], 7) {
            assert_eq!(result, [1, 1, 2, 3]);
        }
    }
}
