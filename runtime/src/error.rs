//! The one error of the public interface, with a kind that tells the reader what to do.

use std::fmt;
use std::path::Path;

use crate::poison::{Blame, InputRecord};

/// Who can act on an [`Error`], and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// User code failed or panicked: fix the closure.
    User,
    /// The job, an option or a directory is not as it must be: change it.
    Config,
    /// A record cannot be read: fix the data, or choose what to do with bad records.
    Data,
    /// A checkpoint is damaged, foreign or does not fit this job: choose another one.
    State,
    /// A file system or an outside system failed: may work when tried again.
    External,
    /// A promise inside Millstream was broken: please report it.
    Internal,
}

/// What went wrong, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    operator: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// Errors are passed on by value, everywhere; so they are kept small.
    more: Box<More>,
}

#[derive(Debug, Default)]
struct More {
    place: Option<String>,
    hint: Option<String>,
    notes: Vec<String>,
    blame: Option<Blame>,
}

/// A result with the crate's own [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), operator: None, source: None, more: Box::default() }
    }

    /// User code failed.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::User, message)
    }

    /// The job, an option or a directory is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// A record cannot be read.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// A checkpoint cannot be used.
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::State, message)
    }

    /// State that had left memory cannot be read back. No record is to blame for that.
    pub fn read_back(error: millstream_state::StateError) -> Self {
        Self::state("state that had left memory cannot be read back").because(error)
    }

    /// Something outside this process failed.
    pub fn external(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::External, message)
    }

    /// Millstream itself is wrong.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Keeps the cause, which is printed after the message.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.more.hint = Some(hint.into());
        self
    }

    /// Adds what else is to be known, on a line of its own.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.more.notes.push(note.into());
        self
    }

    /// Says for which key user code was called, and at what event time.
    #[must_use]
    pub fn for_key(self, key: &impl serde::Serialize, at: crate::time::EventTime) -> Self {
        self.note(format!("it was called for the key {} at {at}", shown_key(key)))
    }

    /// Names the operator, unless a deeper layer already did.
    #[must_use]
    pub fn in_operator(mut self, name: &str) -> Self {
        self.operator.get_or_insert_with(|| name.to_string());
        self
    }

    /// Says which record it was, or where else it happened, unless a deeper layer already did.
    #[must_use]
    pub fn at_place(mut self, place: impl Into<String>) -> Self {
        self.more.place.get_or_insert_with(|| place.into());
        self
    }

    /// As [`at_place`](Self::at_place), and says which record of the input is to blame, or why that is not known.
    #[must_use]
    pub(crate) fn blaming(mut self, place: impl Into<String>, blame: Blame) -> Self {
        if self.more.place.is_none() {
            self.more.blame.get_or_insert(blame);
        }
        self.at_place(place)
    }

    pub(crate) fn blame(&self) -> Option<&Blame> {
        self.more.blame.as_ref()
    }

    /// The record of the input that was at work when it happened, when that is known.
    pub fn record(&self) -> Option<&InputRecord> {
        match self.blame() {
            Some(Blame::Record(record)) => Some(record),
            _ => None,
        }
    }

    /// What the reader can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operator in which it happened, when there is one.
    pub fn operator(&self) -> Option<&str> {
        self.operator.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operator) = &self.operator {
            write!(f, "operator `{operator}`")?;
            f.write_str(if self.more.place.is_some() { ", " } else { ": " })?;
        }
        if let Some(place) = &self.more.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        for line in self.more.hint.iter().chain(&self.more.notes) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The cause is part of the message already; printing it again as a chain would repeat it.
        self.source.as_ref().and_then(|source| source.source())
    }
}

/// A key, for messages.
pub(crate) fn shown_key(key: &impl serde::Serialize) -> String {
    serde_json::to_string(key).unwrap_or_else(|_| "(not shown)".into())
}

/// What to do about a full disk, with how much room there is at `path`.
pub fn full_disk_hint(path: &Path) -> String {
    let free = millstream_state::space::free_bytes(path);
    let free = free.map_or(String::new(), |bytes| format!(" ({} bytes are free)", crate::summary::thousands(bytes)));
    format!("the disk is full{free}; free some space and start the job again, it goes on from its last checkpoint")
}

impl From<millstream_state::StateError> for Error {
    fn from(error: millstream_state::StateError) -> Self {
        use millstream_state::StateError;
        let kind = match &error {
            StateError::Io { .. } | StateError::Rocks { .. } => ErrorKind::External,
            StateError::Damaged { .. } | StateError::Mismatch { .. } => ErrorKind::State,
            StateError::Locked { .. } | StateError::Exists { .. } => ErrorKind::Config,
            StateError::Codec { .. } => ErrorKind::User,
            _ => ErrorKind::Internal,
        };
        let made = Error::new(kind, error.to_string());
        match error {
            StateError::Io { source, path, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                made.hint(full_disk_hint(&path))
            }
            // RocksDB gives only the text of what the system said.
            StateError::Rocks { message, path } if message.contains("No space left on device") => {
                made.hint(full_disk_hint(&path))
            }
            StateError::Locked { .. } => made.hint(
                "one job works in a directory at a time; wait for that one, stop it, or choose another directory",
            ),
            _ => made,
        }
    }
}
