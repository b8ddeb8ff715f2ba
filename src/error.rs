//! What can go wrong, in the user's terms.
//!
//! The text of an error says what was being done, on which file, and what to do. It does not repeat
//! the error's source, because programs that print the whole chain would print that twice.

use crate::seq::Seq;
use std::fmt::Display;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every operation of a queue.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong: which operation, on which file, where in it.
///
/// The text does not repeat the [`source`](std::error::Error::source): print both, or the whole
/// chain, to see what the operating system said.
///
/// # Design
///
/// One enum, because a queue's user reacts to the kind of an error and not to its place: retry
/// after [`Error::StorageFull`], reopen after [`Error::Poisoned`], give up on the rest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another handle, in this process or another, has the queue open. On Unix the directory itself
    /// is locked as well as the file: a program that runs under `flock DIRECTORY` holds that lock.
    #[error(
        "cannot open the queue: {} is locked, because another process, or another handle in this \
         one, has the queue open; close it there, or share one handle by cloning it",
        path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The directory holds the dead letters of the queue in the directory above it.
    #[error(
        "cannot open the queue: {} holds the dead letters of the queue in the directory above it; \
         open that queue, and call Queue::dead_letters",
        path.display()
    )]
    IsDeadLetters {
        /// The directory.
        path: PathBuf,
    },
    /// The files contradict each other, and keepq does not guess which of them is right; or one of
    /// them has a number so large that nothing can be pushed behind it.
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
        "cannot open the queue: it has format version {found}, and this keepq reads versions up to \
         {supported}; nothing was changed; update keepq"
    )]
    UnsupportedVersion {
        /// The version found.
        found: u32,
        /// The newest version that this crate reads.
        supported: u32,
    },
    /// A message or a batch is larger than the options allow, or its headers are larger than
    /// [`Message::header`](crate::Message::header) allows. Nothing was written.
    #[error(
        "push: {len} bytes are more than the {max} allowed; the limits are \
         Options::max_message_bytes for a message with its headers, Options::max_batch_bytes for a \
         batch, 64000 bytes for all headers of a message, and 255 bytes for the name of a header; \
         push less at a time, or raise the option"
    )]
    TooLarge {
        /// The bytes of the message or batch, headers included; or of the headers; or of a header's
        /// name.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The disk, the quota or the process's limit of file sizes is exhausted. Nothing half made
    /// remains. Pop and ack go on, and a push works again once there is room.
    #[error(
        "cannot {operation}: there is no room for {} at offset {offset}; free some space, or ack \
         waiting messages",
        path.display()
    )]
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
    /// The queue holds as much as its options allow, and [`Overflow`](crate::Overflow) says to
    /// refuse more; or the time to wait for room is over; or the message or batch could never fit.
    /// Nothing was written.
    #[error(
        "push: the queue is full: Options::{limit} is {max}; ack waiting messages, raise the \
         limit, or choose another Options::overflow"
    )]
    Full {
        /// The option that sets the limit: `max_messages` or `max_bytes`.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// The lease ran out ([`Options::visibility_timeout`](crate::Options::visibility_timeout)), and
    /// since then the message was handed out again, was settled, or became a dead letter. The
    /// answer did nothing. From [`Delivery::extend`](crate::Delivery::extend) it may also mean that
    /// other messages took its place among those in flight
    /// ([`Options::max_in_flight`](crate::Options::max_in_flight)).
    #[error(
        "message {seq}: the lease ran out, and since then the message was handed out again, \
         settled or given up, or Options::max_in_flight others are in flight; the answer did \
         nothing; call Delivery::extend during long work, or raise Options::visibility_timeout"
    )]
    LeaseExpired {
        /// The message.
        seq: Seq,
    },
    /// The options switch off what was asked for, or a queue of dead letters was asked for its own
    /// dead letters.
    #[error("{operation}: {reason}")]
    Disabled {
        /// What was asked for.
        operation: &'static str,
        /// Why it is not there, and what to do.
        reason: &'static str,
    },
    /// The queue was closed, by this or another handle.
    #[error("the queue is closed; open it again")]
    Closed,
    /// A sync failed, now or earlier, and after that the operating system no longer says what is on
    /// the disk. Push and sync fail from then on; pop, ack and nack go on. Reopen the queue to see
    /// what was kept.
    #[error(
        "the queue is poisoned: {operation} failed on {}; messages that were not confirmed may not \
         be on the disk; close the queue, check the disk, and open the queue again",
        path.display()
    )]
    Poisoned {
        /// The operation that failed.
        operation: &'static str,
        /// The file that it failed on.
        path: PathBuf,
        /// Whether the call that returned this may have taken effect all the same.
        indeterminate: bool,
        /// The operating system's error.
        source: io::Error,
    },
    /// keepq knows nothing of a message with this number. It was never given out; or the message
    /// was lost in a crash or to damage (then [`Queue::recovery`](crate::Queue::recovery) or
    /// [`Queue::damage`](crate::Queue::damage) said so); or keepq knew it only from a CHECKPOINT
    /// file that is gone.
    #[error(
        "message {seq} is unknown: it was never pushed here, was lost, or is no longer known; see \
         Queue::recovery and Queue::damage"
    )]
    UnknownSeq {
        /// The number.
        seq: Seq,
    },
    /// A payload is not a value of the type that the [`TypedQueue`](crate::TypedQueue) has. The
    /// message went back with its attempt counted, and comes again after a second at the soonest:
    /// see [`TypedQueue`](crate::TypedQueue). [`Queue::get`](crate::Queue::get) shows its bytes at
    /// once.
    #[error(
        "message {seq} does not decode as a value of this type; read its bytes with Queue::get, or \
         with Queue::pop of the untyped queue when it comes again"
    )]
    Decode {
        /// The message.
        seq: Seq,
        /// What the decoder says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value could not be encoded: its `Serialize` returned an error, or it holds a sequence of
    /// unknown length. Nothing was pushed.
    #[error("push: the value does not encode, and nothing was pushed; check its Serialize")]
    Encode {
        /// What the encoder says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An option has a value that is not allowed.
    #[error("option {option} is {value}, but must be {bound}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: String,
        /// What it may be.
        bound: String,
    },
    /// The operating system returned an error.
    #[error("cannot {operation}: {} at offset {offset}; see the error's source", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Bytes from its start; 0 if the whole file is meant.
        offset: u64,
        /// The operating system's error.
        source: io::Error,
    },
}

/// What could not be done where a change stands in the log, and could not be made durable yet.
const SYNC_OF_A_CHANGE: &str = "begin to sync what is stored";

/// What could not be done where a write failed, of which the file may still hold something.
const TAKE_BACK: &str = "take back what a failed write left";

impl Error {
    /// Whether the operation that returned this may have taken effect all the same. If the sync of
    /// a push failed after its message was visible, the message may still be delivered. If the sync
    /// of an ack failed, the ack holds in this run, and perhaps beyond it. An [`Error::Io`] says so
    /// in two cases. No file descriptor was left to begin that sync: it may be tried again by
    /// [`Queue::sync`](crate::Queue::sync). Or the write of a push failed, and what it left in the
    /// file could not be erased, or not be known to be erased on the disk: the message is not in
    /// the queue now, but may be when it is opened again.
    ///
    /// ```
    /// assert!(!keepq::Error::Closed.is_indeterminate());
    /// ```
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        match self {
            Self::Poisoned { indeterminate, .. } => *indeterminate,
            Self::Io { operation, .. } => [SYNC_OF_A_CHANGE, TAKE_BACK].contains(operation),
            _ => false,
        }
    }

    /// The same error, for a sync of a change that stands in the log already.
    pub(crate) fn after_the_change(mut self) -> Self {
        if let Self::Io { operation, .. } = &mut self {
            *operation = SYNC_OF_A_CHANGE;
        }
        self
    }

    /// The same error of a write of which something may still be in the file.
    pub(crate) fn not_taken_back(self) -> Self {
        match self {
            Self::Io { path, offset, source, .. }
            | Self::StorageFull { path, offset, source, .. } => {
                Self::Io { operation: TAKE_BACK, path, offset, source }
            }
            other => other,
        }
    }

    /// The same error, for an operation that has not changed anything yet.
    pub(crate) fn before_anything(mut self) -> Self {
        if let Self::Poisoned { indeterminate, .. } = &mut self {
            *indeterminate = false;
        }
        self
    }

    /// Whether something smaller may find room where this found none: on the disk, or among the
    /// addresses of the process.
    pub(crate) fn may_fit_smaller(&self) -> bool {
        matches!(self, Self::StorageFull { .. }) || self.lacks_room_for_map()
    }

    /// Whether no file could be mapped any more: there are too many maps.
    pub(crate) fn lacks_room_for_map(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::OutOfMemory)
    }

    /// The text of this error and of all its sources, for places that can keep only text.
    pub(crate) fn full_text(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }

    /// `option` was given `value`, and has to be `bound`.
    pub(crate) fn invalid_option(option: &'static str, value: impl Display, bound: &str) -> Self {
        Self::InvalidOption { option, value: value.to_string(), bound: bound.to_string() }
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

/// The same error of the system once more, for another caller.
pub(crate) fn again(source: &Arc<io::Error>) -> io::Error {
    match source.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(source.kind(), Arc::clone(source)),
    }
}

/// # Errors
///
/// [`Error::InvalidOption`] if the value of `option` is out of bounds.
pub(crate) fn within(option: &'static str, value: u64, bound: &RangeInclusive<u64>) -> Result<()> {
    if bound.contains(&value) {
        return Ok(());
    }
    Err(Error::invalid_option(option, value, &format!("{} to {}", bound.start(), bound.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each that was refused after its message stood in the log said that it was not in the queue.
    #[test]
    fn an_error_says_whether_its_change_may_stand() {
        let error = || Error::io("open", Path::new("q"), 0, io::ErrorKind::Other.into());
        assert!(!error().is_indeterminate());
        assert!(error().after_the_change().is_indeterminate());
        assert!(!Error::Closed.after_the_change().is_indeterminate());
        let full = || Error::io("append", Path::new("q"), 0, io::ErrorKind::StorageFull.into());
        for error in [error(), full()] {
            assert!(error.not_taken_back().is_indeterminate());
        }
    }
}
