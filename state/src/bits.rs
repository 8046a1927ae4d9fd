//! A set of small numbers, a bit for each.

#[derive(Debug)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// An empty set for numbers below `end`.
    pub(crate) fn new(end: usize) -> Self {
        Bits(vec![0; end.div_ceil(64)])
    }

    #[inline]
    pub(crate) fn set(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }

    /// The least number in it that is not less than `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let first = from / 64;
        let word = self.0.get(first)? & (u64::MAX << (from % 64));
        if word != 0 {
            return Some(first * 64 + word.trailing_zeros() as usize);
        }
        let more = self.0[first + 1..].iter().position(|word| *word != 0)?;
        let word = first + 1 + more;
        Some(word * 64 + self.0[word].trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(end in 0..400usize, numbers in prop::collection::vec(0..400usize, 0..40)) {
            let numbers: BTreeSet<usize> = numbers.into_iter().filter(|number| *number < end).collect();
            let mut bits = Bits::new(end);
            numbers.iter().for_each(|number| bits.set(*number));
            for from in 0..=end + 70 {
                prop_assert_eq!(bits.next(from), numbers.range(from..).next().copied());
            }
        }
    }
}
