//! Tuples of aggregates: several results in one pass over the records.
//!
//! **State**: the tuple of the accumulators; `(Count, Sum, Max)` of an `i64` is 24 bytes.

use super::{Aggregate, Origin};

macro_rules! tuples {
    ($(($($A:ident $i:tt)*))*) => {$(
        /// All of them, side by side.
        impl<V, $($A: Aggregate<V>),*> Aggregate<V> for ($($A,)*) {
            type Acc = ($($A::Acc,)*);
            type Out = ($($A::Out,)*);

            const NEEDS_POSITION: bool = false $(|| $A::NEEDS_POSITION)*;
            const DEPENDS_ON_ORDER: bool = false $(|| $A::DEPENDS_ON_ORDER)*;

            fn describe(&self) -> String {
                format!("({})", [$(self.$i.describe()),*].join(", "))
            }

            #[inline]
            fn create(&self) -> Self::Acc {
                ($(self.$i.create(),)*)
            }

            #[inline]
            fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin) {
                $(self.$i.add(&mut acc.$i, value, origin);)*
            }

            #[inline]
            fn merge(&self, into: &mut Self::Acc, from: &Self::Acc) {
                $(self.$i.merge(&mut into.$i, &from.$i);)*
            }

            const INVERTIBLE: bool = true $(&& $A::INVERTIBLE)*;

            #[inline]
            fn subtract(&self, from: &mut Self::Acc, part: &Self::Acc) {
                $(self.$i.subtract(&mut from.$i, &part.$i);)*
            }

            #[inline]
            fn finish(&self, acc: &Self::Acc) -> Self::Out {
                ($(self.$i.finish(&acc.$i),)*)
            }
        }
    )*};
}

tuples! {
    (A0 0)
    (A0 0 A1 1)
    (A0 0 A1 1 A2 2)
    (A0 0 A1 1 A2 2 A3 3)
    (A0 0 A1 1 A2 2 A3 3 A4 4)
    (A0 0 A1 1 A2 2 A3 3 A4 4 A5 5)
    (A0 0 A1 1 A2 2 A3 3 A4 4 A5 5 A6 6)
    (A0 0 A1 1 A2 2 A3 3 A4 4 A5 5 A6 6 A7 7)
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{any_order, records};
    use super::super::{Count, DistinctCount, First, Last, Max, Mean, Min, Sum};
    use super::*;
    use proptest::prelude::*;

    fn size_and_need<V, A: Aggregate<V>>(_: &A) -> (usize, bool) {
        (size_of::<A::Acc>(), A::NEEDS_POSITION)
    }

    #[test]
    fn types_are_inferred_and_accumulators_lie_side_by_side() {
        struct Departure {
            delay: i64,
        }
        let delays = (Count, Sum::of(|d: &Departure| d.delay), Max::of(|d: &Departure| d.delay));
        assert_eq!(size_and_need::<Departure, _>(&delays), (24, false));
        let last = (Count, Last::of(|d: &Departure| d.delay));
        assert_eq!(size_and_need::<Departure, _>(&last), (48, true));
        assert_eq!(size_and_need::<Departure, _>(&(Count, last)), (56, true));
    }

    #[test]
    fn aggregates_are_told_apart_by_name() {
        let all = (Count, Sum::of(|v: &i64| *v), (Max::of(|v: &i64| *v), Min::of(|v: &i64| *v)));
        assert_eq!(Aggregate::<i64>::describe(&all), "(Count, Sum, (Max, Min))");
    }

    proptest! {
        #[test]
        fn each_field_is_as_if_alone(values in prop::collection::vec(any::<i32>(), 1..40), seed: u64) {
            let of = |v: &i32| *v;
            let all = (
                Count,
                Sum::of(of),
                Min::of(of),
                Max::of(of),
                Mean::of(of),
                First::of(of),
                Last::of(of),
                DistinctCount::of(of),
            );
            let records = records(&values);
            let expected = (
                any_order(&all.0, &records, seed)[0],
                any_order(&all.1, &records, seed)[0],
                any_order(&all.2, &records, seed)[0],
                any_order(&all.3, &records, seed)[0],
                any_order(&all.4, &records, seed)[0],
                any_order(&all.5, &records, seed)[0],
                any_order(&all.6, &records, seed)[0],
                any_order(&all.7, &records, seed)[0],
            );
            for result in any_order(&all, &records, seed) {
                prop_assert_eq!(result, expected);
            }
        }
    }
}
