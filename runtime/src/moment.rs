//! Moment = (epoch, watermark): the timestamp of the dataflow.
//!
//! Both parts must be less or equal for one moment to be less or equal to another, so progress tracking yields two
//! lower bounds at every operator at once: which epochs are over, and how far event time has come.

use serde::{Deserialize, Serialize};

use crate::time::EventTime;

/// The input between two possible cuts, numbered from 1. Checkpoint `n` holds everything up to the end of epoch `n`.
pub type Epoch = u64;

/// The timestamp under which a batch travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// The epoch to which the batch belongs.
    pub epoch: Epoch,
    /// No result of this batch is needed to fire a window that ends at or before this.
    pub watermark: EventTime,
}

impl Moment {
    /// The moment at (`epoch`, `watermark`).
    pub const fn new(epoch: Epoch, watermark: EventTime) -> Self {
        Moment { epoch, watermark }
    }
}
