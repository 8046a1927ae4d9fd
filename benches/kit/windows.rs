//! The state of the hand-written contestants: a hash map per window, with the one in use at hand.

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

/// Open windows by number, each with a `T`. There are seldom more than two, so they are searched one by one, and not even that
/// when the window is that of the event before. What was emptied is used again, with the memory that it has.
pub struct Windows<T> {
    open: Vec<(i64, T)>,
    /// The window of the event before, and its place in `open`.
    current: (i64, usize),
    spare: Vec<T>,
    fresh: fn() -> T,
}

/// The number of no window.
const NONE: i64 = i64::MIN;

impl<T> Windows<T> {
    pub fn new(fresh: fn() -> T) -> Self {
        Windows { open: Vec::new(), current: (NONE, 0), spare: Vec::new(), fresh }
    }

    #[inline]
    pub fn is_current(&self, window: i64) -> bool {
        window == self.current.0
    }

    #[inline]
    pub fn table(&mut self, window: i64) -> &mut T {
        if !self.is_current(window) {
            let at = self.open.iter().position(|open| open.0 == window).unwrap_or_else(|| {
                self.open.push((window, self.spare.pop().unwrap_or_else(self.fresh)));
                self.open.len() - 1
            });
            self.current = (window, at);
        }
        &mut self.open[self.current.1].1
    }

    /// The first window before number `end`, removed.
    pub fn take_before(&mut self, end: i64) -> Option<(i64, T)> {
        let before = self.open.iter().enumerate().filter(|(_, open)| open.0 < end);
        let (at, _) = before.min_by_key(|(_, open)| open.0)?;
        self.current.0 = NONE;
        Some(self.open.swap_remove(at))
    }

    /// Gives an emptied table back.
    pub fn recycle(&mut self, table: T) {
        self.spare.push(table);
    }
}
