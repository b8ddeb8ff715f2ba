//! A message that is handed out, and the wait for a message that is on its way to the disk.

use crate::clock::MAX_DELAY;
use crate::engine::{Answer, Answerable, Cause, Engine, LeaseKey, Taken};
use crate::error::{Error, Result};
use crate::format::extension::{self, Origin};
use crate::open_queue::OpenQueue;
use crate::seq::Seq;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A message that is handed out, and needs an answer. Derefs to its payload.
///
/// Dropping it gives the message back, like [`Delivery::nack`]. The drop stores in memory and in
/// mapped files, and does not wait for a disk (where stores are writes, it makes a write or two). A
/// delivery does not keep the queue open: once the queue is closed, answers fail with
/// [`Error::Closed`](crate::Error::Closed), and the message comes back at the next open.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// queue.push(b"pay 42")?;
/// let job = queue.pop()?.expect("one is waiting");
/// assert_eq!(&job[..], b"pay 42");
/// assert_eq!(job.attempts(), 1);
/// job.ack()?;
/// assert!(queue.pop()?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a delivery that is dropped comes back; ack it once the work is done"]
pub struct Delivery {
    open: Arc<OpenQueue>,
    taken: Taken,
    is_answered: bool,
}

impl Delivery {
    pub(crate) fn new(open: Arc<OpenQueue>, taken: Taken) -> Self {
        Self { open, taken, is_answered: false }
    }

    /// The message's number. It is the same at every delivery of the message, and no other message
    /// ever has it.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.taken.key.ticket.seq())
    }

    /// How often the message was handed out, this time included. The count survives a crash of the
    /// consumer. It goes up to 32,767.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.taken.attempts
    }

    /// Whether the message was handed out before, as far as is known. A power cut may have undone
    /// the last count, so false does not promise that no consumer worked on the message.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.taken.attempts > 1
    }

    /// When the message was pushed: what the wall clock showed then, to within half a second, and
    /// to within about 10 ms if nobody has set that clock since the queue was opened. If the clock
    /// was set back, a later message may have an earlier time.
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        SystemTime::from(self.taken.pushed_at)
    }

    /// The value of the header with this name, if the message has one: see
    /// [`Message::header`](crate::Message::header).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All headers, in the order in which they were given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        extension::headers(self.start())
    }

    /// Where the message comes from and why it died, if this is a delivery of
    /// [`Queue::dead_letters`](crate::Queue::dead_letters).
    #[must_use]
    pub fn dead_letter(&self) -> Option<DeadLetter<'_>> {
        dead_letter(self.start())
    }

    fn start(&self) -> &[u8] {
        self.taken.body.before(self.taken.payload_start)
    }

    /// Settles the message: it never comes back. The ack survives a kill of the process at once,
    /// and a power cut after the next sync; with [`Options::sync_acks`](crate::Options::sync_acks)
    /// that sync comes before this returns.
    ///
    /// # Errors
    ///
    /// * [`Error::Closed`](crate::Error::Closed) if the queue was closed: the message comes back.
    /// * [`Error::LeaseExpired`](crate::Error::LeaseExpired) if the lease ran out
    ///   ([`Options::visibility_timeout`](crate::Options::visibility_timeout)) and the message was
    ///   handed out again, settled or given up since: the ack did nothing.
    /// * [`Error::Io`](crate::Error::Io) or [`Error::StorageFull`](crate::Error::StorageFull) if
    ///   the state could not be stored (where stores are writes, or if no file descriptor, or no
    ///   room in memory, was left to map its file): the message comes back.
    /// * With `sync_acks`, an error that is indeterminate
    ///   ([`Error::is_indeterminate`](crate::Error::is_indeterminate)) if the state is stored and
    ///   not synced: the message is settled in this run, but it may come back after a power cut.
    ///   [`Error::Poisoned`](crate::Error::Poisoned): a sync failed, now or earlier.
    ///   [`Error::Io`](crate::Error::Io): no file descriptor was left to begin the sync;
    ///   [`Queue::sync`](crate::Queue::sync) tries it again. The same holds after
    ///   [`Error::Closed`](crate::Error::Closed) if the queue was closed while this waited for the
    ///   sync, and that `close` failed.
    pub fn ack(mut self) -> Result<()> {
        self.is_answered = true;
        self.open.ack_one(&self.taken.key)
    }

    /// Says that the work failed, and gives the message back. It is handed out again before all
    /// messages that were never handed out, at once or after the queue's
    /// [`Options::backoff`](crate::Options::backoff); after a restart, in push order with all
    /// others. The attempt stays counted. If it was the last
    /// ([`Options::max_attempts`](crate::Options::max_attempts)), the message becomes a dead
    /// letter.
    ///
    /// # Errors
    ///
    /// * [`Error::Closed`](crate::Error::Closed) if the queue was closed.
    /// * [`Error::LeaseExpired`](crate::Error::LeaseExpired) if the lease ran out and the message
    ///   was handed out again, settled or given up since.
    /// * [`Error::Io`](crate::Error::Io) or [`Error::StorageFull`](crate::Error::StorageFull) if
    ///   the backoff or the death could not be stored (where stores are writes, or if no file
    ///   descriptor, or no room in memory, was left to map its file): the message is back all the
    ///   same.
    pub fn nack(self) -> Result<()> {
        self.answer(&Answer::Nack)
    }

    /// Like [`Delivery::nack`], but the message stays away for this time, up to 8 years, in place
    /// of the queue's backoff. The time lasts across a restart, like that of
    /// [`Message::delay`](crate::Message::delay).
    ///
    /// ```
    /// use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push(b"pay 42")?;
    /// let start = std::time::Instant::now();
    /// queue.pop()?.expect("one is waiting").nack_after(Duration::from_millis(20))?;
    /// assert_eq!(queue.pop_wait()?.attempts(), 2);
    /// assert!(start.elapsed() >= Duration::from_millis(20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Delivery::nack`]; and [`Error::InvalidOption`](crate::Error::InvalidOption) for a
    /// longer time: then the delivery is dropped, which is a `nack`.
    pub fn nack_after(self, delay: Duration) -> Result<()> {
        if delay > MAX_DELAY {
            let given = format!("{delay:?}");
            return Err(Error::invalid_option("Delivery::nack_after", given, "up to 8 years"));
        }
        self.answer(&Answer::NackAfter(delay))
    }

    /// Says that the work will never succeed. The message becomes a dead letter with this reason
    /// (up to 1,024 bytes of it are kept), and is not handed out again. This survives a kill and a
    /// power cut like [`Delivery::ack`]; the background makes the dead letter durable before it
    /// forgets the message. If another thread is moving messages to the dead letters, this waits
    /// for it, and so for the disk. Without dead letters, and among the dead letters themselves,
    /// the message is dropped.
    ///
    /// # Errors
    ///
    /// As [`Delivery::ack`]. After an error that is indeterminate the message is rejected in this
    /// run; if the process is killed soon after it, the dead letter may lack the reason.
    pub fn reject(self, reason: impl Into<String>) -> Result<()> {
        self.answer(&Answer::Reject(reason.into()))
    }

    /// Gives the work this much time from now on, if
    /// [`Options::visibility_timeout`](crate::Options::visibility_timeout) limits it; otherwise
    /// does nothing. This works after the lease has run out, too, until the message is handed out
    /// again. A time of zero ends the lease; more than 8 years count
    /// as 8 years.
    ///
    /// ```
    /// use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// let options = keepq::Queue::options().visibility_timeout(Duration::from_millis(30));
    /// let queue = options.open(dir.path().join("orders"))?;
    /// queue.push(b"a long job")?;
    /// let job = queue.pop()?.expect("one is waiting");
    /// job.extend(Duration::from_secs(60))?;
    /// assert!(queue.pop_timeout(Duration::from_millis(100))?.is_none());
    /// job.ack()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::LeaseExpired`](crate::Error::LeaseExpired) if the lease ran out, and either the
    /// message was handed out again, settled or given up since, or
    /// [`Options::max_in_flight`](crate::Options::max_in_flight) other messages are in flight now;
    /// [`Error::Closed`](crate::Error::Closed) if the queue was closed.
    pub fn extend(&self, time: Duration) -> Result<()> {
        self.open.engine().consumers().extend(self.taken.key, time.min(MAX_DELAY))
    }

    /// Gives the message back as if it had not been handed out, for a consumer that took more
    /// messages than it can handle.
    ///
    /// # Errors
    ///
    /// * [`Error::Closed`](crate::Error::Closed) if the queue was closed.
    /// * [`Error::LeaseExpired`](crate::Error::LeaseExpired) as for [`Delivery::nack`].
    /// * [`Error::Io`](crate::Error::Io) or [`Error::StorageFull`](crate::Error::StorageFull) if
    ///   the state could not be stored (where stores are writes, or if no file descriptor, or no
    ///   room in memory, was left to map its file): the message is back, and its attempt stays
    ///   counted.
    pub fn release(self) -> Result<()> {
        self.answer(&Answer::Release)
    }

    pub(crate) fn answer(mut self, answer: &Answer) -> Result<()> {
        self.is_answered = true;
        self.open.answer(self.taken.key, answer)
    }

    /// Settles all of these.
    pub(crate) fn ack_all(mut deliveries: Vec<Self>) -> Result<()> {
        let mut result = Ok(());
        while let Some(last) = deliveries.last() {
            let open = Arc::clone(&last.open);
            // Mostly all of them; each queue settles its own.
            let mut own = match deliveries.iter().rposition(|other| !other.belongs_to(&open)) {
                Some(other) => deliveries.split_off(other + 1),
                None => std::mem::take(&mut deliveries),
            };
            let acked = open.ack(&own);
            result = acked.and(result);
            for delivery in &mut own {
                delivery.is_answered = true;
            }
        }
        result
    }

    fn belongs_to(&self, open: &Arc<OpenQueue>) -> bool {
        Arc::ptr_eq(self.open.engine(), open.engine())
    }
}

impl Answerable for Delivery {
    #[inline]
    fn key(&self) -> &LeaseKey {
        &self.taken.key
    }
}

impl Deref for Delivery {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.taken.body.payload(self.taken.payload_start)
    }
}

impl AsRef<[u8]> for Delivery {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_answered {
            // This fails if the queue was closed, and then the message comes back at the next open;
            // or if the lease ran out, and the message was handed out again since.
            self.open.answer(self.taken.key, &Answer::Drop).ok();
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("seq", &self.seq())
            .field("attempts", &self.taken.attempts)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Where a dead letter comes from and why it died, from [`Delivery::dead_letter`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter<'a> {
    origin: Origin<'a>,
}

/// Why a message became a dead letter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DeathCause {
    /// A consumer rejected it.
    Rejected,
    /// It was handed out [`Options::max_attempts`](crate::Options::max_attempts) times, and each
    /// attempt failed.
    Attempts,
    /// It expired: see [`Message::ttl`](crate::Message::ttl).
    Expired,
}

impl<'a> DeadLetter<'a> {
    /// The number that the message had in its queue.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.origin.seq)
    }

    /// When the message was pushed there. The [`Delivery::pushed_at`] of the dead letter itself
    /// says when it died.
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        SystemTime::from(self.origin.pushed_at)
    }

    /// How often the message was handed out.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.origin.attempts
    }

    /// Why the message died. It is derived if a kill or a power cut left no reason: see
    /// [`DeadLetter::reason`].
    #[must_use]
    pub fn cause(&self) -> DeathCause {
        match self.origin.cause {
            cause if cause == Cause::Attempts.encode() => DeathCause::Attempts,
            cause if cause == Cause::Expired.encode() => DeathCause::Expired,
            _ => DeathCause::Rejected,
        }
    }

    /// The reason that was given to [`Delivery::reject`]; empty if there was none. It is empty,
    /// too, if the process ended while `reject` was at work or before the dead letters had the
    /// message, or if the power was cut at that moment. Then the cause is derived from the
    /// message's attempts and times, and from the options of the run that moves it. With a higher
    /// [`Options::max_attempts`](crate::Options::max_attempts) than before, for example, a message
    /// that died of its attempts is told as [`DeathCause::Rejected`].
    #[must_use]
    pub fn reason(&self) -> &'a str {
        self.origin.reason
    }
}

impl fmt::Debug for DeadLetter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("seq", &self.seq())
            .field("pushed_at", &self.pushed_at())
            .field("attempts", &self.attempts())
            .field("cause", &self.cause())
            .field("reason", &self.reason())
            .finish()
    }
}

/// Reads the origin from the part of a body before its payload.
pub(crate) fn dead_letter(start: &[u8]) -> Option<DeadLetter<'_>> {
    extension::notes(start).origin.map(|origin| DeadLetter { origin })
}

/// The receipt for a message that is in the queue, and may not be on the disk yet; or for one that
/// [`Overflow::DropNewest`](crate::Overflow::DropNewest) dropped. Dropping the receipt gives up
/// only the wait.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// let receipts = [queue.submit(b"a")?, queue.submit(b"b")?];
/// for receipt in receipts {
///     receipt.wait()?; // the first wait syncs for both
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the message is only on its way to the disk; wait for it, or drop the receipt"]
pub struct Receipt {
    engine: Arc<Engine>,
    seq: u64,
}

impl Receipt {
    pub(crate) fn new(engine: Arc<Engine>, seq: u64) -> Self {
        Self { engine, seq }
    }

    /// The message's number; 0 if the message was dropped: see
    /// [`Seq::is_dropped`](crate::Seq::is_dropped).
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.seq)
    }

    /// Whether the message is on the disk already; true if it was dropped. This does not block.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.engine.commit().is_durable(self.seq)
    }

    /// Returns once the message is on the disk, whatever the queue's durability. Syncs if no other
    /// thread does. Receipts may be waited for in any order. If the message was dropped, this
    /// returns the number 0 at once.
    ///
    /// # Errors
    ///
    /// After each of these the message may be delivered all the same:
    ///
    /// * [`Error::Poisoned`](crate::Error::Poisoned) if a sync failed, now or earlier.
    /// * [`Error::Io`](crate::Error::Io) if no file descriptor was left to begin the sync:
    ///   [`Queue::sync`](crate::Queue::sync) tries it again.
    /// * [`Error::Closed`](crate::Error::Closed) if the queue was closed and could not sync the
    ///   message.
    pub fn wait(self) -> Result<Seq> {
        self.engine.commit().wait_durable(self.seq)?;
        Ok(Seq(self.seq))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("seq", &self.seq).finish_non_exhaustive()
    }
}
