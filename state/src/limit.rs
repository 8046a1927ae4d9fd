//! What state needs that may take only so much memory, and reads back from the database what it has let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::rocks::Stored;
use crate::snapshot::Run;

#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) bytes: usize,
    pub(crate) stored: Stored,
    /// How often something was handed over to be written, and of these, how often it has been.
    frozen: u64,
    written: Arc<AtomicU64>,
    /// How many bytes keys and values take when they are written, each: about what they own besides their place in a table.
    entry_bytes: Arc<AtomicU64>,
}

impl Limit {
    pub(crate) fn new(bytes: usize, stored: Stored) -> Self {
        Limit { bytes, stored, frozen: 0, written: Arc::default(), entry_bytes: Arc::default() }
    }

    /// Something is handed over to be written.
    pub(crate) fn frozen(&mut self) -> Tell {
        self.frozen += 1;
        Tell { written: Arc::clone(&self.written), number: self.frozen, entry_bytes: Arc::clone(&self.entry_bytes) }
    }

    /// Whether all that was handed over is in the database.
    pub(crate) fn all_is_written(&self) -> bool {
        self.written.load(Ordering::SeqCst) == self.frozen
    }

    /// How many bytes an entry owns besides its place in a table, about.
    pub(crate) fn owned<Entry>(&self) -> usize {
        if std::mem::needs_drop::<Entry>() { self.entry_bytes.load(Ordering::Relaxed) as usize } else { 0 }
    }
}

/// Whom to tell that something has been written, as which number; and how long entries are.
pub(crate) struct Tell {
    written: Arc<AtomicU64>,
    number: u64,
    entry_bytes: Arc<AtomicU64>,
}

impl Tell {
    /// So many entries have become so many bytes in `run`.
    pub(crate) fn encoded(self, run: &mut Run, entries: usize, bytes: usize) {
        if let Some(each) = bytes.checked_div(entries) {
            self.entry_bytes.store(each as u64, Ordering::Relaxed);
        }
        run.when_applied(self.written, self.number);
    }
}
