//! What can go wrong with state on disk.

use std::path::PathBuf;

/// A failure of state or of a checkpoint, naming the file it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// RocksDB refused.
    #[error("RocksDB in {}: {message}", path.display())]
    Rocks {
        /// The database's directory.
        path: PathBuf,
        /// What RocksDB said.
        message: String,
    },
    /// A file is not what its checksum, size or form says it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit, with offsets where they are known.
        reason: String,
    },
    /// A checkpoint is whole, but not one that this job can use.
    #[error("checkpoint {epoch} in {} {reason}", path.display())]
    Mismatch {
        /// The checkpoint.
        epoch: u64,
        /// The checkpoint directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Another process works in this directory.
    #[error("{} is in use by {holder}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as it wrote itself into the lock file.
        holder: String,
    },
    /// What is to be made is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file or directory.
        path: PathBuf,
    },
    /// A value cannot be written as bytes, or bytes are not a value.
    #[error("{what}: {reason}")]
    Codec {
        /// Which value.
        what: String,
        /// Why.
        reason: String,
    },
}

impl StateError {
    /// Wraps an I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> StateError {
        let path = path.into();
        move |source| StateError::Io { action, path, source }
    }

    /// A file that does not hold what it should.
    pub fn damaged(path: impl Into<PathBuf>, reason: impl Into<String>) -> StateError {
        StateError::Damaged { path: path.into(), reason: reason.into() }
    }
}
