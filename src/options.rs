//! How a queue behaves, and how it is opened.

mod compaction;
mod disk;
mod limits;

pub use compaction::Compaction;

use crate::backoff::Backoff;
use crate::clock::{MAX_DELAY, Source};
use crate::error::{Error, Result, within};
use crate::format::limits::NUMBER_END;
use crate::format::slot::MAX_ATTEMPTS;
use crate::format::{PAGE, record};
use crate::io::Storage;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: RangeInclusive<u64> = 64 * KIB..=128 * MIB;
/// Four segments of the smallest size would do. The rest is for the dead letters and CHECKPOINT.
const MIN_MAX_BYTES: u64 = MIB;
const PAYLOAD_BYTES: RangeInclusive<u64> = 1..=record::MAX_PAYLOAD;

/// When `push` returns `Ok`, and so what that `Ok` promises. With each of the three, a message that
/// was pushed survives a kill of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Once the message is on the disk. Pushes of several threads share one sync.
    #[default]
    Always,
    /// At once; the message is on the disk after this time, which is above 0, plus one sync. This
    /// needs the background thread, or calls of [`Queue::maintain`](crate::Queue::maintain).
    Interval(Duration),
    /// At once; the operating system writes the message out at a time of its own. A power cut takes
    /// the newest messages first: what is left of a run is a prefix, without holes.
    Os,
}

impl Durability {
    /// The one of the two that promises more.
    #[inline]
    pub(crate) fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Always, _) | (_, Self::Always) => Self::Always,
            (Self::Interval(one), Self::Interval(two)) => Self::Interval(one.min(two)),
            (Self::Os, other) => other,
            (this, Self::Os) => this,
        }
    }

    /// # Errors
    ///
    /// [`Error::InvalidOption`] if `option` was given an interval of 0.
    pub(crate) fn check(self, option: &'static str) -> Result<()> {
        if self == Self::Interval(Duration::ZERO) {
            let bound = "Always, or an interval above 0";
            return Err(Error::invalid_option(option, "Interval(0)", bound));
        }
        Ok(())
    }
}

/// How long an ack may wait for a sync if no call waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AckSync {
    /// 1 s, or for ever with [`Durability::Os`].
    ByDurability,
    /// As the user says; `None`: for ever.
    Set(Option<Duration>),
}

/// What a push does when the queue holds as much as [`Options::max_messages`] or
/// [`Options::max_bytes`] allow. A batch stays whole: all of it is pushed, refused or dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// It fails with [`Error::Full`](crate::Error::Full).
    #[default]
    Reject,
    /// It waits for room, up to [`Options::push_timeout`]; after that it fails with
    /// [`Error::Full`](crate::Error::Full). What could never fit fails at once.
    ///
    /// Dead letters count in `max_bytes`. Once they fill it, all producers wait until somebody
    /// takes dead letters and acks them. So set a `push_timeout`, and an alarm on
    /// [`Stats::dead_letters`](crate::Stats::dead_letters). If a sync of the dead letters failed,
    /// and all unsettled messages wait to be moved there, a push fails with
    /// [`Error::Poisoned`](crate::Error::Poisoned).
    Block,
    /// It drops the oldest waiting messages to make room, and counts them in
    /// [`Stats::dropped`](crate::Stats::dropped). For `max_messages` these are the messages that
    /// would be handed out next, and delayed ones last. For `max_bytes` they are all waiting
    /// messages of the oldest segment that has none in flight or dying, since only a whole file
    /// makes room. A message in flight is never dropped. If dropping cannot make enough room, the
    /// push fails with [`Error::Full`](crate::Error::Full). What could never fit fails at once.
    DropOldest,
    /// It drops and counts the new message, or all messages of the new batch, and returns `Ok` with
    /// the number 0 for each. No message ever has that number: see
    /// [`Seq::is_dropped`](crate::Seq::is_dropped).
    DropNewest,
}

/// What becomes of an expired message: see [`Message::ttl`](crate::Message::ttl).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Expired {
    /// It is dropped, and counted in [`Stats::expired`](crate::Stats::expired).
    #[default]
    Drop,
    /// It moves to the dead letters, and is counted in the same way.
    DeadLetter,
}

/// How a queue behaves. No option is fixed when a queue is created: any of them may differ at the
/// next open. [`Options::open`] refuses a value out of its bounds with
/// [`Error::InvalidOption`](crate::Error::InvalidOption).
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
    pub(crate) visibility_timeout: Option<Duration>,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: Backoff,
    pub(crate) dead_letters: bool,
    pub(crate) message_ttl: Option<Duration>,
    pub(crate) expired: Expired,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) max_messages: Option<u64>,
    pub(crate) max_in_flight: Option<u64>,
    pub(crate) overflow: Overflow,
    pub(crate) push_timeout: Option<Duration>,
    pub(crate) compaction: Compaction,
    pub(crate) open_segments: u64,
    /// No push of this run gets a lower number.
    pub(crate) first_seq: u64,
    pub(crate) unshared_blocks: bool,
    pub(crate) shrink_after: Option<Duration>,
    pub(crate) clock: Source,
    /// Used in place of the operating system's files.
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
            visibility_timeout: None,
            max_attempts: 20,
            backoff: Backoff::none(),
            dead_letters: true,
            message_ttl: None,
            expired: Expired::Drop,
            max_bytes: None,
            max_messages: None,
            max_in_flight: None,
            overflow: Overflow::Reject,
            push_timeout: None,
            compaction: Compaction::default(),
            open_segments: 64,
            first_seq: 0,
            unshared_blocks: false,
            shrink_after: Some(Duration::from_secs(10)),
            clock: Source::default(),
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
    /// Default: `false`; then an ack survives a kill at once, and a power cut after
    /// [`Options::ack_sync`].
    pub fn sync_acks(mut self, on: bool) -> Self {
        self.sync_acks = on;
        self
    }

    /// How long an ack may wait until the background thread syncs it, above 0: for acks that are
    /// synced when they return, see [`Options::sync_acks`]. `None` leaves the sync to the operating
    /// system. Default: 1 s, or `None` with [`Durability::Os`].
    pub fn ack_sync(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.ack_sync = AckSync::Set(interval.into());
        self
    }

    /// The largest size of a segment file: 64 KiB to 128 MiB, a multiple of 4,096; default 64 MiB.
    /// The first file of a run has 1 MiB. Each next one is twice as large, up to this size, as long
    /// as they fill within two seconds, and smaller where that takes longer than thirty. A
    /// message or batch that needs more gets a file of its own.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// The largest message, payload and headers together: 1 byte to 1 GiB; default 16 MiB. A larger
    /// one is refused with [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn max_message_bytes(mut self, bytes: u64) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The largest batch, all its messages together: 1 byte to 1 GiB; default 64 MiB. A larger one
    /// is refused with [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn max_batch_bytes(mut self, bytes: u64) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// Whether threads in the background, which all queues of a process share, prepare and sync
    /// files ahead of need, give back those that are no longer needed, and move dying messages to
    /// the dead letters.
    /// Default: `true`. Without it, call [`Queue::maintain`](crate::Queue::maintain) now and then.
    /// That call then moves dying messages, and so does `pop` of this queue, but not `pop` of its
    /// dead letters.
    pub fn background(mut self, on: bool) -> Self {
        self.background = on;
        self
    }

    /// Whether open creates a queue where there is none. Default: `true`. With `false`, open
    /// creates nothing, and fails with [`Error::Io`](crate::Error::Io) of kind `NotFound` if there
    /// is no queue.
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

    /// Whether open has to create the queue. Default: `false`. With `true`, open fails with
    /// [`Error::Io`](crate::Error::Io) of kind `AlreadyExists` if the queue is there already, and
    /// [`Options::create`] does not matter. An empty directory is not a queue; a directory with a
    /// file of keepq in it is one, even if that is only the lock file of an open that failed.
    pub fn create_new(mut self, on: bool) -> Self {
        self.create_new = on;
        self
    }

    /// How long a delivery may go unanswered, above 0 and up to 8 years. After that its attempt
    /// counts as failed, and its message comes back for another consumer, as after a `nack`, at
    /// most about 20 ms late. `None` (the default): as long as the [`Delivery`](crate::Delivery)
    /// lives. Longer work asks for more time with
    /// [`Delivery::extend`](crate::Delivery::extend).
    ///
    /// ```
    /// use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// let options = keepq::Queue::options().visibility_timeout(Duration::from_millis(5));
    /// let queue = options.open(dir.path().join("orders"))?;
    /// queue.push(b"pay 42")?;
    /// let slow = queue.pop()?.expect("one is waiting");
    /// let again = queue.pop_wait()?; // as soon as the lease has run out
    /// assert_eq!((again.seq(), again.attempts()), (slow.seq(), 2));
    /// assert!(matches!(slow.ack(), Err(keepq::Error::LeaseExpired { .. })));
    /// again.ack()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn visibility_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.visibility_timeout = timeout.into();
        self
    }

    /// How often a message is handed out before it moves to the dead letters, up to 32,767; default
    /// 20; 0 means that it never does. A message moves after the attempt with this number has
    /// failed: by `nack`, by drop, or because its lease, the queue or its process ended.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// How long a message stays away after it was given back with its attempt counted. Default:
    /// [`Backoff::none`]. [`Delivery::nack_after`](crate::Delivery::nack_after) sets a time of its
    /// own instead.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Whether messages that are rejected, or fail too often, are kept in
    /// [`Queue::dead_letters`](crate::Queue::dead_letters). Default: `true`. With `false` they are
    /// dropped and counted in [`Stats::dropped`](crate::Stats::dropped); expired messages are
    /// counted in [`Stats::expired`](crate::Stats::expired) only. Dead letters of earlier runs stay
    /// in the directory `dead`. Nothing touches them, and [`Options::max_bytes`] does not count
    /// them, until the queue is opened with `true` again.
    pub fn dead_letters(mut self, on: bool) -> Self {
        self.dead_letters = on;
        self
    }

    /// How long after its push a message expires, above 0 and up to 8 years; `None` (the default):
    /// never. The time that the push waited for room does not count. See
    /// [`Message::ttl`](crate::Message::ttl).
    pub fn message_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.message_ttl = ttl.into();
        self
    }

    /// What becomes of expired messages. Default: [`Expired::Drop`].
    pub fn expired(mut self, expired: Expired) -> Self {
        self.expired = expired;
        self
    }

    /// The most bytes that the queue takes on the disk, from 1 MiB; `None` (the default): all that
    /// the disk has. All files count at their full size: segments, the segment that is kept ready,
    /// CHECKPOINT, the dead letters, and the files that compaction makes before it removes others.
    /// So dead letters that nobody takes can fill the queue: see [`Overflow::Block`]. Those of
    /// earlier runs do not count while [`Options::dead_letters`] is `false`. If there is no room,
    /// and all that is left are messages on their way to the dead letters, these may pass the limit
    /// by twice the bytes of a segment, until that is moved and gone.
    ///
    /// A segment is at most a quarter of this limit, and smaller when room gets scarce. With
    /// [`Overflow::DropOldest`], which drops all of one for room, it is at most one 32nd of it, but
    /// between 64 KiB and 8 MiB. About 140 KiB are kept for CHECKPOINT and the dead letters, and a
    /// quarter of a segment (at least 64 KiB) for compaction. The newest segment stays until there
    /// is a newer one, and it is as large as the largest message or batch in it. So after a message
    /// of about half of the limit (two fifths of it at 1 MiB), another one as large may find no
    /// room, although the queue is empty.
    ///
    /// A file counts until all its messages are settled, or copied by compaction. With delays, or
    /// with acks in any order, such files and the newest one hold much of a small limit. As advice,
    /// not as a promise: set at least three times the bytes of the backlog that you expect, and at
    /// least 16 times the largest message or batch.
    pub fn max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_bytes = bytes.into();
        self
    }

    /// The most unsettled messages at a time, from 1: those that are ready, delayed, in flight, or
    /// on their way to the dead letters. A batch fits as a whole, or not at all. `None` (the
    /// default): any number.
    pub fn max_messages(mut self, messages: impl Into<Option<u64>>) -> Self {
        self.max_messages = messages.into();
        self
    }

    /// The most messages in flight at a time, from 1. At the limit, `pop` returns `None` and
    /// `pop_wait` waits. `None` (the default): any number.
    pub fn max_in_flight(mut self, messages: impl Into<Option<u64>>) -> Self {
        self.max_in_flight = messages.into();
        self
    }

    /// What a push does when the queue is full. Default: [`Overflow::Reject`].
    ///
    /// ```
    /// use keepq::{Error, Overflow, Queue};
    /// # let dir = tempfile::tempdir()?;
    /// let options = Queue::options().max_messages(2).overflow(Overflow::DropOldest);
    /// let queue = options.open(dir.path().join("positions"))?;
    /// queue.push_batch(["first", "second"])?;
    /// queue.push("third")?;
    /// assert_eq!(&queue.pop()?.expect("two are waiting")[..], b"second");
    /// assert_eq!(queue.stats().dropped(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// How long a push waits for room under [`Overflow::Block`]: after that it fails with
    /// [`Error::Full`](crate::Error::Full). `None` (the default): as long as it takes.
    pub fn push_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.push_timeout = timeout.into();
        self
    }

    /// How to give back the disk space that settled messages hold in files with unsettled ones.
    /// Default: in the background, so that the disk in use is no more than twice the bytes of the
    /// unsettled messages, plus a few files.
    pub fn compaction(mut self, compaction: Compaction) -> Self {
        self.compaction = compaction;
        self
    }

    /// The most segment files of a backlog that are open and mapped at a time, 1 to 65,536; default
    /// 64. With a background, twice as many may be open, until it has synced their answers. The
    /// newest file, the one that is kept ready, the one that is read, and those of the dead
    /// letters (the same number again) come on top. A call that takes or answers messages in more
    /// files than this at a time waits until some of the files are synced and closed. A process
    /// that may open fewer files needs a lower number: pops and pushes fail while none can be
    /// opened, and go on after that.
    pub fn open_segments(mut self, segments: u64) -> Self {
        self.open_segments = segments;
        self
    }

    /// Replaces the system's clocks by one that a test sets and advances.
    #[cfg(feature = "fault-injection")]
    pub fn clock(mut self, clock: Arc<crate::clock::ManualClock>) -> Self {
        self.clock = Source::Manual(clock);
        self
    }

    /// Replaces the operating system's files by another [`Storage`](crate::fault::Storage).
    #[cfg(feature = "fault-injection")]
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// The time between the background syncs of acks.
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
        within("max_attempts", self.max_attempts.into(), &(0..=MAX_ATTEMPTS.into()))?;
        let from = |start| start..=u64::MAX;
        within("max_bytes", self.max_bytes.unwrap_or(u64::MAX), &from(MIN_MAX_BYTES))?;
        within("max_messages", self.max_messages.unwrap_or(1), &from(1))?;
        within("max_in_flight", self.max_in_flight.unwrap_or(1), &from(1))?;
        self.compaction.validate()?;
        within("first_seq", self.first_seq, &(0..=NUMBER_END / 2))?;
        within("open_segments", self.open_segments, &(1..=65_536))?;
        if let Some((value, bound)) = self.backoff.fault() {
            return Err(Error::invalid_option("backoff", value, bound));
        }
        let visibility = self.visibility_timeout.map(|timeout| ("visibility_timeout", timeout));
        let spans = [visibility, self.message_ttl.map(|ttl| ("message_ttl", ttl))];
        for (option, span) in spans.into_iter().flatten() {
            if span.is_zero() || span > MAX_DELAY {
                return Err(Error::invalid_option(
                    option,
                    format!("{span:?}"),
                    "above 0 and up to 8 years",
                ));
            }
        }
        if !self.segment_bytes.is_multiple_of(PAGE) {
            return Err(Error::invalid_option(
                "segment_bytes",
                self.segment_bytes,
                "a multiple of 4096",
            ));
        }
        self.durability.check("durability")?;
        if self.ack_sync == AckSync::Set(Some(Duration::ZERO)) {
            return Err(Error::invalid_option("ack_sync", "0", "above 0 (or sync_acks(true))"));
        }
        Ok(())
    }
}
