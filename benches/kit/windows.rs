//! The state of the hand-written contestants: a hash map per window, with the one in use at hand.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::event::digest;

/// Count, sum and greatest value of one key in one window.
pub type Acc = (u64, i64, i64);
/// The keys of one window. Hasher: foldhash, hashbrown's own.
pub type Table = HashMap<u64, Acc>;

/// The length of the tumbling window, in microseconds.
pub const SIZE_US: i64 = 1_000_000;

#[inline]
pub fn add(table: &mut Table, key: u64, value: i64) {
    let acc = table.entry(key).or_insert((0, 0, i64::MIN));
    *acc = (acc.0 + 1, acc.1 + value, acc.2.max(value));
}

#[inline]
pub fn result_digest(key: u64, window: i64, (count, sum, max): Acc) -> u64 {
    digest([key, window as u64, count, sum as u64, max as u64])
}

/// Open windows by number, each with a `T`. Those that were emptied are used again, with the memory that they have.
pub struct Windows<T> {
    current: i64,
    table: T,
    others: BTreeMap<i64, T>,
    spare: Vec<T>,
    fresh: fn() -> T,
}

impl<T> Windows<T> {
    pub fn new(fresh: fn() -> T) -> Self {
        Windows { current: i64::MIN, table: fresh(), others: BTreeMap::new(), spare: Vec::new(), fresh }
    }

    pub fn is_current(&self, window: i64) -> bool {
        window == self.current
    }

    #[inline]
    pub fn table(&mut self, window: i64) -> &mut T {
        if window != self.current {
            self.switch(window);
        }
        &mut self.table
    }

    #[cold]
    fn switch(&mut self, window: i64) {
        let table = self.others.remove(&window).unwrap_or_else(|| self.spare.pop().unwrap_or_else(self.fresh));
        let old = std::mem::replace(&mut self.table, table);
        if self.current != i64::MIN {
            self.others.insert(self.current, old);
        }
        self.current = window;
    }

    /// The first window before number `end`, removed.
    pub fn take_before(&mut self, end: i64) -> Option<(i64, T)> {
        if self.current != i64::MIN && self.current < end {
            self.others.insert(self.current, std::mem::replace(&mut self.table, (self.fresh)()));
            self.current = i64::MIN;
        }
        self.others.first_entry().filter(|first| *first.key() < end).map(|first| first.remove_entry())
    }

    /// Gives an emptied table back.
    pub fn recycle(&mut self, table: T) {
        self.spare.push(table);
    }
}
