//! Records as they travel between operators.

use crate::time::EventTime;

/// What a stream can carry: anything owned that can be cloned and sent to another worker.
///
/// Implemented for every such type; there is nothing to write.
pub trait Data: Clone + Send + 'static {}
impl<T: Clone + Send + 'static> Data for T {}

/// A value with the event time at which it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record<T> {
    /// When it happened, by its own account.
    pub at: EventTime,
    /// What happened.
    pub value: T,
}
