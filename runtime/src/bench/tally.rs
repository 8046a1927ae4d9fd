//! Latencies of the second at hand: an array of counts, made for quick recording and for being emptied often.
//!
//! It has the layout of an HdrHistogram with three significant digits, so its values pass into one unchanged. Unlike one it
//! remembers which part of the array was touched, so that emptying it takes some microseconds: a worker does that once a
//! second, in between its records, and must not delay them noticeably.
//!
//! **Units**: nanoseconds, from 1 ns to 1 h.

use super::distribution::{Distribution, HIGHEST_NS};

/// Into how many steps each power of two is divided.
const STEPS: u64 = 1_024;

/// How many times each latency occurred.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    counts: Box<[u64]>,
    /// The touched part of them: from the first to the last, empty when the first is behind the last.
    first: usize,
    last: usize,
    exact: Exactly,
}

/// What counts of steps cannot tell exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Exactly {
    pub(super) count: u64,
    pub(super) max_ns: u64,
    pub(super) sum_ns: u128,
    /// How many values were above [`HIGHEST_NS`].
    pub(super) saturated: u64,
}

impl Exactly {
    /// Adds `count` values of `ns`; returns what they count as.
    #[inline]
    pub(super) fn record(&mut self, ns: u64, count: u64) -> u64 {
        let clamped = ns.clamp(1, HIGHEST_NS);
        if ns > HIGHEST_NS {
            self.saturated += count;
        }
        self.count += count;
        self.max_ns = self.max_ns.max(clamped);
        self.sum_ns += u128::from(clamped) * u128::from(count);
        clamped
    }

    pub(super) fn merge(&mut self, other: &Exactly) {
        self.count += other.count;
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns += other.sum_ns;
        self.saturated += other.saturated;
    }
}

/// A tally that is over: pairs of a step forward and a count, as numbers of variable length.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed {
    bytes: Box<[u8]>,
    exact: Exactly,
}

impl Tally {
    pub(super) fn new() -> Tally {
        let counts = vec![0; index::<STEPS>(HIGHEST_NS) + 1].into_boxed_slice();
        Tally { first: counts.len(), last: 0, counts, exact: Exactly::default() }
    }

    #[inline]
    pub(super) fn record(&mut self, ns: u64, count: u64) {
        if count > 0 {
            let clamped = self.exact.record(ns, count);
            self.add(index::<STEPS>(clamped), count);
        }
    }

    #[inline]
    fn add(&mut self, index: usize, count: u64) {
        self.first = self.first.min(index);
        self.last = self.last.max(index);
        self.counts[index] += count;
    }

    pub(super) fn count(&self) -> u64 {
        self.exact.count
    }

    /// Each index that has a count, with it, ascending.
    fn recorded(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let touched = self.counts.get(self.first..=self.last).unwrap_or_default();
        touched
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(at, count)| (self.first + at, *count))
    }

    /// All of it in a few bytes; `buffer` is room to work in.
    pub(super) fn pack(&self, buffer: &mut Vec<u8>) -> Packed {
        buffer.clear();
        let mut before = 0;
        for (index, count) in self.recorded() {
            put(buffer, (index - before) as u64);
            put(buffer, count);
            before = index;
        }
        Packed { bytes: buffer.as_slice().into(), exact: self.exact }
    }

    pub(super) fn unpack(&mut self, packed: &Packed) {
        for (index, count) in packed.recorded() {
            self.add(index, count);
        }
        self.exact.merge(&packed.exact);
    }

    pub(super) fn clear(&mut self) {
        if let Some(touched) = self.counts.get_mut(self.first..=self.last) {
            touched.fill(0);
        }
        (self.first, self.last, self.exact) = (self.counts.len(), 0, Exactly::default());
    }

    pub(super) fn add_to(&self, total: &mut Distribution) {
        total.add(self.recorded().map(|(index, count)| (lowest::<STEPS>(index), count)), &self.exact);
    }

    pub(super) fn add_all(&mut self, from: &Distribution) {
        from.recorded().for_each(|(ns, count)| self.add(index::<STEPS>(ns), count));
        self.exact.merge(from.exactly());
    }
}

impl Packed {
    pub(super) fn count(&self) -> u64 {
        self.exact.count
    }

    fn recorded(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let (mut rest, mut index) = (&*self.bytes, 0);
        std::iter::from_fn(move || {
            index += take(&mut rest)? as usize;
            Some((index, take(&mut rest)?))
        })
    }

    pub(super) fn add_to(&self, total: &mut Distribution) {
        total.add(self.recorded().map(|(index, count)| (lowest::<STEPS>(index), count)), &self.exact);
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Where the count of `ns` is when each power of two is divided into `STEPS`, a power of two itself. Values below two times
/// `STEPS` have a count each.
#[inline]
pub(super) const fn index<const STEPS: u64>(ns: u64) -> usize {
    if ns < 2 * STEPS {
        return ns as usize;
    }
    let shift = (ns.ilog2() - STEPS.ilog2()) as u64;
    (shift * STEPS + (ns >> shift)) as usize
}

/// The least value that is counted there.
pub(super) fn lowest<const STEPS: u64>(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    (index - shift * STEPS) << shift
}

/// Appends a number, seven bits a byte, the lowest first; all but its last byte have the high bit set.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packed_tally_is_small_and_an_emptied_one_empty() {
        let (mut tally, mut buffer) = (Tally::new(), Vec::new());
        (0..10_000).for_each(|us| tally.record(us * 1_000, 1));
        let packed = tally.pack(&mut buffer);
        assert!(packed.size() < 20_000, "{} bytes", packed.size());
        tally.clear();
        assert_eq!((tally.recorded().count(), tally.exact), (0, Exactly::default()));
        assert!(tally.counts.iter().all(|count| *count == 0));
    }

    proptest! {
        #[test]
        fn its_steps_are_those_of_the_histogram(ns in prop_oneof![1..=5_000_u64, 1..=HIGHEST_NS]) {
            let all = Distribution::new();
            prop_assert_eq!(lowest::<STEPS>(index::<STEPS>(ns)), all.histogram().lowest_equivalent(ns));
            prop_assert_eq!(index::<STEPS>(lowest::<STEPS>(index::<STEPS>(ns))), index::<STEPS>(ns));
        }

        #[test]
        fn packing_loses_nothing(values in prop::collection::vec((0..2 * HIGHEST_NS, 0..1_000_000_u64), 0..50)) {
            let (mut tally, mut all) = (Tally::new(), Distribution::new());
            for (ns, count) in &values {
                tally.record(*ns, *count);
                all.record(*ns, *count);
            }
            let packed = tally.pack(&mut Vec::new());
            let (mut of_tally, mut of_packed, mut back) = (Distribution::new(), Distribution::new(), Tally::new());
            tally.add_to(&mut of_tally);
            packed.add_to(&mut of_packed);
            back.unpack(&packed);
            prop_assert_eq!(&of_tally, &all);
            prop_assert_eq!(&of_packed, &all);
            prop_assert!(back.recorded().eq(tally.recorded()) && back.exact == tally.exact);
        }
    }
}
