//! Records as they travel between operators.

use crate::time::EventTime;

/// What a stream can carry: anything owned that can be cloned and sent to another worker.
///
/// A clone must be like what it was made of. Records are cloned where a stream has several readers, and values that own
/// nothing (those that need no drop) wherever that is quicker than to move them.
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
