//! What can go wrong with a log, by what its user can do about it.

use std::path::{Path, PathBuf};

use millstream_runtime::error::Error;
use millstream_state::StateError;

use super::shard::ShardId;

/// A failure of a [`Log`](super::Log). It becomes an [`Error`] of a job by `?`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Retention has dropped what a reader wanted to read. Nothing after `last` is concerned.
    #[error("records {first} to {last} of shard {shard} have expired before they were read")]
    Expired {
        /// The shard.
        shard: ShardId,
        /// Sequence number of the first record that is gone.
        first: u64,
        /// Sequence number of the last record that is gone.
        last: u64,
    },
    /// A write failed, so nobody knows what of it is on disk. The log takes nothing more until it is opened again, which
    /// finds that out.
    #[error("the log in {} takes no more records since a write failed: {message}", dir.display())]
    Failed {
        /// The log's directory.
        dir: PathBuf,
        /// What failed.
        message: String,
    },
    /// What was asked for is not possible: a record that is too large, a shard that is not there, options that contradict
    /// each other.
    #[error("{message}")]
    Refused {
        /// What, and why not.
        message: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A position, or prepared output, that does not belong to what is in the log now.
    #[error("{message}")]
    Mismatch {
        /// What does not fit.
        message: String,
    },
    /// A value does not write as JSON, or what was read is not such a value.
    #[error("{what}: {source}")]
    Json {
        /// What was tried, and on which type.
        what: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The directory, its lock or RocksDB.
    #[error(transparent)]
    Store(#[from] StateError),
}

impl LogError {
    pub(super) fn refused(message: impl Into<String>, hint: &'static str) -> Self {
        LogError::Refused { message: message.into(), hint }
    }

    pub(super) fn mismatch(message: impl Into<String>) -> Self {
        LogError::Mismatch { message: message.into() }
    }

    pub(super) fn rocks(dir: &Path) -> impl Fn(rocksdb::Error) -> LogError {
        move |error| StateError::Rocks { path: dir.to_path_buf(), message: error.into_string() }.into()
    }

    pub(super) fn damaged(dir: &Path, reason: impl Into<String>) -> Self {
        StateError::damaged(dir, reason).into()
    }

    pub(super) fn unwritable<T>(source: serde_json::Error) -> Self {
        LogError::Json { what: format!("a `{}` does not write as JSON", std::any::type_name::<T>()), source }
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        let message = error.to_string();
        match error {
            LogError::Expired { .. } => Error::data(message).hint(
                "keep records for longer, or read them sooner; a log source goes on behind what is lost if it is told to by \
                 `skip_expired`",
            ),
            // To try again with the same handle is of no use, so it is no matter of the outside.
            LogError::Failed { .. } => Error::state(message)
                .hint("see to the disk and open the log again; what was acknowledged is there"),
            LogError::Refused { hint, .. } => Error::config(message).hint(hint),
            LogError::Mismatch { .. } => Error::state(message)
                .hint("give the job the log that it worked with before, or begin again with `--fresh`"),
            LogError::Json { what, source } => Error::user(what).because(source).hint(
                "a log keeps records as JSON: maps have text as keys, numbers are not NaN or infinite, and what serde writes \
                 it must be able to read",
            ),
            LogError::Store(StateError::Locked { path, holder }) => {
                Error::config(format!("the log in {} is in use by {holder}", path.display()))
                    .hint("a log is opened once, by one process; clone the handle for every other user of it")
            }
            LogError::Store(error @ StateError::Rocks { .. }) if message.contains("Corruption") => {
                Error::from(error).hint("`LogOptions::salvage` opens it without what comes after the damage")
            }
            LogError::Store(error) => error.into(),
        }
    }
}
