//! What can go wrong, in the user's terms.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every operation of a queue.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong: which operation, on which file, where in it.
///
/// # Design
///
/// One enum, because a queue's user reacts to the kind and not to the place: retry after
/// [`Error::StorageFull`], reopen after [`Error::Poisoned`], give up on the rest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another handle, in this process or another, has the queue open.
    #[error("{} is in use: another process, or another handle in this one, has it open", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The files contradict each other in a way that must not be guessed away.
    #[error("{operation}: {} is damaged at offset {offset}: {reason}", path.display())]
    Corrupt {
        /// What was being done.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Bytes from its start.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A newer keepq wrote this queue, or used a feature that this one does not know. Nothing was
    /// written to its directory.
    #[error(
        "the queue has format version {found}, this keepq reads up to {supported}: update keepq"
    )]
    UnsupportedVersion {
        /// The version found.
        found: u32,
        /// The newest version that this crate reads.
        supported: u32,
    },
    /// A message or a batch is larger than the options allow. Nothing was written.
    #[error("{len} bytes are more than the {max} allowed: see max_message_bytes, max_batch_bytes")]
    TooLarge {
        /// Its payload bytes.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The disk, the quota or the process's file size limit is exhausted. Nothing half made
    /// remains; pop and ack go on, and a push works again once there is room.
    #[error("{operation}: no room for {} (offset {offset}): {source}", path.display())]
    StorageFull {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes from its start.
        offset: u64,
        /// The operating system's error.
        source: io::Error,
    },
    /// The queue was closed, by this or another handle.
    #[error("the queue is closed")]
    Closed,
    /// A sync failed earlier, so the operating system no longer says what is on the disk. Push and
    /// sync fail from then on; pop, ack and nack go on. Reopen the queue to see what was kept.
    #[error("the queue is poisoned: {operation} of {} failed: {source}", path.display())]
    Poisoned {
        /// The operation that failed.
        operation: &'static str,
        /// The file that it failed on.
        path: PathBuf,
        /// Whether this very call may have taken effect all the same.
        indeterminate: bool,
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// An option has a value that it cannot have.
    #[error("option {option} is {value}, but must be {bound}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: String,
        /// What it may be.
        bound: String,
    },
    /// The operating system refused.
    #[error("{operation}: {} (offset {offset}): {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Bytes from its start, 0 where the whole file is meant.
        offset: u64,
        /// The operating system's error.
        source: io::Error,
    },
}

impl Error {
    /// Whether the operation that returned this may have taken effect all the same: a push whose
    /// sync failed after the message was visible may still be delivered.
    ///
    /// ```
    /// assert!(!keepq::Error::Closed.is_indeterminate());
    /// ```
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, Self::Poisoned { indeterminate: true, .. })
    }

    /// Wraps an error of the operating system with what keepq knows about it.
    pub(crate) fn io(operation: &'static str, path: &Path, offset: u64, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::StorageFull { operation, path, offset, source },
            _ => Self::Io { operation, path, offset, source },
        }
    }
}
