//! What state needs that may take only so much memory, and reads back from the database what it has let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::codec;
use crate::rocks::Stored;
use crate::snapshot::{Key, Run, Value};

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

    /// Learns from some entries how much they own, before any have been written.
    pub(crate) fn sample<'a, K: Key, V: Value>(&self, entries: impl Iterator<Item = (&'a K, &'a V)>) {
        let (mut bytes, mut count) = (0, 0);
        let mut out = Vec::new();
        for (key, value) in entries {
            out.clear();
            // What cannot be written fails where it is to be.
            if codec::encode_into(key, &mut out).and_then(|()| codec::encode_into(value, &mut out)).is_ok() {
                (bytes, count) = (bytes + out.len() as u64, count + 1);
            }
        }
        if let Some(each) = bytes.checked_div(count) {
            self.entry_bytes.store(each, Ordering::Relaxed);
        }
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
