//! A value that an aggregate keeps, with when and where it came from.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{EventTime, Origin, bytes_of};

/// What aggregates keep of a record: a value, and when and where it came from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held<T> {
    at: EventTime,
    record: u64,
    split: u32,
    pub(super) value: T,
}

impl<T> Held<T> {
    pub(super) fn new(origin: &Origin, value: T) -> Self {
        let Origin { at, split, record } = *origin;
        Held { at, record, split, value }
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { at: self.at, split: self.split, record: self.record }
    }

    /// Whether it comes before or after the place of another, as far as time and position tell.
    pub(super) fn place_of(&self, origin: &Origin) -> Ordering {
        (self.at, self.split, self.record).cmp(&(origin.at, origin.split, origin.record))
    }
}

impl<T: Serialize> Held<T> {
    /// The order of two held values, complete up to values with the same bytes.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        self.place_of(&other.origin()).then_with(|| bytes_of(&self.value).cmp(&bytes_of(&other.value)))
    }
}

/// Puts a value to others where `compare` says; they are in that order. Most come last.
pub(super) fn insert<T>(all: &mut Vec<Held<T>>, held: Held<T>, compare: impl Fn(&Held<T>, &Held<T>) -> Ordering) {
    let place = match all.last() {
        Some(last) if compare(last, &held).is_gt() => all.partition_point(|own| compare(own, &held).is_le()),
        _ => all.len(),
    };
    all.insert(place, held);
}
