//! How a queue behaves, and how it is opened.

use crate::error::{Error, Result};
use crate::format::{PAGE, record};
use crate::io::Storage;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: RangeInclusive<u64> = 64 * KIB..=128 * MIB;
const PAYLOAD_BYTES: RangeInclusive<u64> = 1..=record::MAX_BODY;

/// When `push` returns `Ok`, and so what that `Ok` promises. All three survive a kill of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Once the message is on the disk. Pushes of several threads share one sync.
    #[default]
    Always,
    /// At once; the message is on the disk after this time, plus one sync. Needs the background
    /// thread or calls of [`Queue::maintain`](crate::Queue::maintain).
    Interval(Duration),
    /// At once; the operating system writes the message out when it likes. A power cut takes the
    /// newest messages first: what is left of a run is a prefix, without holes.
    Os,
}

impl Durability {
    /// Whichever of the two promises more.
    pub(crate) fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Always, _) | (_, Self::Always) => Self::Always,
            (Self::Interval(one), Self::Interval(two)) => Self::Interval(one.min(two)),
            (Self::Os, other) => other,
            (this, Self::Os) => this,
        }
    }
}

/// How long acks may wait for a sync that nobody asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AckSync {
    /// 1 s, or for ever with [`Durability::Os`].
    ByDurability,
    /// As the user says; `None` for ever.
    Set(Option<Duration>),
}

/// How a queue behaves. Nothing here is fixed when a queue is created: any option may differ at
/// the next open.
///
/// ```
/// use keepq::{Durability, Queue};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::options().durability(Durability::Os).open(dir.path().join("orders"))?;
/// # queue.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Options {
    pub(crate) durability: Durability,
    pub(crate) sync_acks: bool,
    pub(crate) ack_sync: AckSync,
    pub(crate) segment_bytes: u64,
    pub(crate) max_message_bytes: u64,
    pub(crate) max_batch_bytes: u64,
    pub(crate) background: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    /// What stands in for the operating system's files.
    pub(crate) storage: Option<Arc<dyn Storage>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Always,
            sync_acks: false,
            ack_sync: AckSync::ByDurability,
            segment_bytes: 64 * MIB,
            max_message_bytes: 16 * MIB,
            max_batch_bytes: 64 * MIB,
            background: true,
            create: true,
            create_new: false,
            storage: None,
        }
    }
}

impl Options {
    /// When `push` returns. Default: [`Durability::Always`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Whether an ack returns only once it is on the disk. Acks of several threads share one sync.
    /// Default: `false`; then an ack survives a kill at once and a power cut after
    /// [`Options::ack_sync`].
    pub fn sync_acks(mut self, on: bool) -> Self {
        self.sync_acks = on;
        self
    }

    /// How long an ack may wait until the background thread syncs it; `None` leaves it to the
    /// operating system. Default: 1 s, and `None` with [`Durability::Os`].
    pub fn ack_sync(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.ack_sync = AckSync::Set(interval.into());
        self
    }

    /// Largest size of a segment file, 64 KiB to 128 MiB, a multiple of 4,096; default 64 MiB. A message or batch that
    /// needs more gets a file of its own.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Largest message, its payload and headers together, 1 byte to 1 GiB; default 16 MiB. Larger ones are refused with
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn max_message_bytes(mut self, bytes: u64) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// Largest sum of the messages of a batch, 1 byte to 1 GiB; default 64 MiB.
    pub fn max_batch_bytes(mut self, bytes: u64) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// Whether the queue has a thread of its own that prepares, syncs and lets go of files ahead
    /// of need. Default: `true`. Without it call [`Queue::maintain`](crate::Queue::maintain) now and then.
    pub fn background(mut self, on: bool) -> Self {
        self.background = on;
        self
    }

    /// Whether opening makes a queue where there is none. Default: `true`. With `false` that is
    /// [`Error::Io`](crate::Error::Io) of kind `NotFound`, and nothing is made.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let missing = keepq::Queue::options().create(false).open(dir.path().join("orders"));
    /// assert!(missing.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(mut self, on: bool) -> Self {
        self.create = on;
        self
    }

    /// Whether opening has to make the queue. Default: `false`. With `true`, a queue that is there
    /// already is [`Error::Io`](crate::Error::Io) of kind `AlreadyExists`. An empty directory is no
    /// queue; one with a file of keepq in it is, if only the lock file of an open that failed. Then
    /// [`Options::create`] does not matter.
    pub fn create_new(mut self, on: bool) -> Self {
        self.create_new = on;
        self
    }

    /// Replaces the operating system's files by another [`Storage`](crate::fault::Storage).
    #[cfg(feature = "fault-injection")]
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// The time between syncs of acks that nobody waits for.
    pub(crate) fn ack_interval(&self) -> Option<Duration> {
        match (self.ack_sync, self.durability) {
            (AckSync::Set(interval), _) => interval,
            (AckSync::ByDurability, Durability::Os) => None,
            (AckSync::ByDurability, _) => Some(Duration::from_secs(1)),
        }
    }

    /// # Errors
    ///
    /// [`Error::InvalidOption`] for the first value that is out of bounds.
    pub(crate) fn validate(&self) -> Result<()> {
        within("segment_bytes", self.segment_bytes, &SEGMENT_BYTES)?;
        within("max_message_bytes", self.max_message_bytes, &PAYLOAD_BYTES)?;
        within("max_batch_bytes", self.max_batch_bytes, &PAYLOAD_BYTES)?;
        if !self.segment_bytes.is_multiple_of(PAGE) {
            return Err(invalid("segment_bytes", self.segment_bytes, "a multiple of 4096"));
        }
        if let Durability::Interval(Duration::ZERO) = self.durability {
            return Err(invalid_interval("durability"));
        }
        if self.ack_sync == AckSync::Set(Some(Duration::ZERO)) {
            return Err(invalid("ack_sync", "0", "above 0 (or sync_acks(true))"));
        }
        Ok(())
    }
}

pub(crate) fn invalid_interval(option: &'static str) -> Error {
    invalid(option, "Interval(0)", "Always, or an interval above 0")
}

fn within(option: &'static str, value: u64, bound: &RangeInclusive<u64>) -> Result<()> {
    if bound.contains(&value) {
        return Ok(());
    }
    Err(invalid(option, value, &format!("{} to {}", bound.start(), bound.end())))
}

fn invalid(option: &'static str, value: impl Display, bound: &str) -> Error {
    Error::InvalidOption { option, value: value.to_string(), bound: bound.to_string() }
}
