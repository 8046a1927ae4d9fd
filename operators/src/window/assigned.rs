//! The windows that one record belongs to.

use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::time::EventTime;

use super::open::INSTANT;
use super::{Window, Windows};

/// The first and the last instant of a window.
pub(super) type Bounds = (EventTime, EventTime);

/// Takes down the windows of a record; see [`Windows::assign`].
#[derive(Clone, Debug, Default)]
pub struct Assigned(Vec<Bounds>);

impl Assigned {
    /// The record belongs to this window. One that ends at [`EventTime::MAX`] never ends, as long as there is input.
    pub fn add(&mut self, window: Window) {
        let last = if window.end == EventTime::MAX { EventTime::MAX } else { window.end - INSTANT };
        self.0.push((window.start, last));
    }

    /// As [`add`](Self::add), exact also at the end of time.
    pub(super) fn add_bounds(&mut self, bounds: Bounds) {
        self.0.push(bounds);
    }

    /// Leaves each window once.
    pub(super) fn dedup(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }

    /// Asks for the windows of a record, instead of those that were there.
    pub(super) fn find<T: Data>(&mut self, windows: &impl Windows<T>, at: EventTime, value: &T) -> Result<()> {
        self.0.clear();
        windows.assign(at, value, self)?;
        match self.0.iter().find(|(start, last)| at < *start || *last < at) {
            None => Ok(()),
            Some((start, last)) => {
                let window = Window { start: *start, end: *last + INSTANT };
                let text =
                    format!("{}: the window {window} does not contain a record of it, at {at}", windows.describe());
                Err(Error::user(text).hint("let `assign` add only windows that contain the instant that it is given"))
            }
        }
    }

    /// Keeps the windows that `keep` says, by their last instants.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(EventTime) -> bool) {
        self.0.retain(|(_, last)| keep(*last));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Bounds> {
        self.0.iter().copied()
    }
}
