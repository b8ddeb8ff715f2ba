//! What open found, and what was lost.

use crate::seq::Seq;
use std::path::{Path, PathBuf};

/// What open found: how the last run ended, and what was dropped, skipped or ignored.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// assert!(queue.recovery().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    pub(crate) was_closed: bool,
    pub(crate) checkpoint: CheckpointState,
    pub(crate) cut: Option<Damage>,
    pub(crate) dropped: u64,
    pub(crate) damage: Vec<Damage>,
    pub(crate) ignored: Vec<Ignored>,
    pub(crate) scanned_bytes: u64,
}

/// A file that was not used, or not as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ignored {
    pub(crate) path: PathBuf,
    pub(crate) reason: &'static str,
    /// Its name is none of keepq's: it is somebody else's.
    pub(crate) is_foreign: bool,
}

impl RecoveryReport {
    /// Whether nothing was dropped or damaged, and each file of the queue was used as a whole. What
    /// else is in the directory does not matter. A crash makes this false only if it left an
    /// unconfirmed push unfinished, and that push is now cut off.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let is_whole = self.ignored.iter().all(|ignored| ignored.is_foreign);
        self.cut.is_none() && self.dropped == 0 && self.damage.is_empty() && is_whole
    }

    /// Whether the last run that pushed ended with [`Queue::close`](crate::Queue::close) or the
    /// drop of its last handle. True for a new queue.
    #[must_use]
    pub fn was_closed(&self) -> bool {
        self.was_closed
    }

    /// What became of the checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> CheckpointState {
        self.checkpoint
    }

    /// Where the log of the last run was cut, because its unconfirmed tail did not reach the disk
    /// as a whole; `None` if it ended cleanly. The first Seq is the first one that was dropped.
    #[must_use]
    pub fn cut(&self) -> Option<&Damage> {
        self.cut.as_ref()
    }

    /// Readable messages behind the cut that were dropped with it; and those of a batch that is not
    /// whole, at the end of a file that was away when the cut was looked for.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Damage to bytes that a sync had promised, as far as open read them. Damage in parts that
    /// open does not read is found later, and listed by [`Queue::damage`](crate::Queue::damage).
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Files in the directory that were not used, or not as a whole, each with the reason; and all
    /// names that are none of keepq's. None of them was touched.
    pub fn ignored(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.ignored.iter().map(|ignored| (ignored.path.as_path(), ignored.reason))
    }

    /// How many bytes of records open read.
    #[must_use]
    pub fn scanned_bytes(&self) -> u64 {
        self.scanned_bytes
    }
}

/// What [`Queue::compact`](crate::Queue::compact) did, here and in the dead letters.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// assert_eq!(queue.compact()?.freed_bytes(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Compacted {
    pub(crate) freed_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) messages: u64,
    pub(crate) copies: u64,
    pub(crate) replaced: u64,
}

impl Compacted {
    /// Bytes of the disk that are free now and were not before: those of removed files, less those
    /// of new files.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    /// Bytes of the new files.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Messages that were copied.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// New files, each made from one or more others.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// Files that the new ones replaced.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.replaced
    }
}

impl std::ops::Add for Compacted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            freed_bytes: self.freed_bytes + other.freed_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            messages: self.messages + other.messages,
            copies: self.copies + other.copies,
            replaced: self.replaced + other.replaced,
        }
    }
}

/// What became of the checkpoint. It holds hints: no message is lost without it, but
/// [`Queue::is_acked`](crate::Queue::is_acked) no longer knows messages that are long gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum CheckpointState {
    /// There was none.
    #[default]
    Missing,
    /// It was used.
    Used,
    /// It was there, but none of its slots was valid.
    Damaged,
    /// It belongs to another queue.
    Foreign,
    /// It was there, and could not be read. The next one takes its place.
    Unreadable,
}

/// Messages that are lost, or a slot that had to be rebuilt. Where several are lost together, some
/// between the first and the last may have been settled.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Damage {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) kind: DamageKind,
}

impl Damage {
    /// The first message that is concerned.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        Seq(self.first)
    }

    /// The last message that is concerned.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        Seq(self.last)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes from the file's start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What happened.
    #[must_use]
    pub fn kind(&self) -> DamageKind {
        self.kind
    }
}

/// What happened to a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DamageKind {
    /// The unconfirmed end of the log is not whole, as expected after a power cut.
    Torn,
    /// The bytes are wrong, where a sync had promised the right ones: the message is lost.
    Corrupt,
    /// The message's state was unreadable: the message is kept and delivered (again).
    Slot,
    /// The file is gone, has no readable header, or does not say which messages it holds: they are
    /// lost.
    Segment,
    /// It is whole, but it holds what only a newer keepq knows. It is not lost: it is not handed
    /// out, nothing is stored for it, and it stays as it was pushed until a keepq that knows it
    /// opens the queue.
    Newer,
}
