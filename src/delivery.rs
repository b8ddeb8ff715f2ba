//! A message that is handed out, and the wait for one that is on its way in.

use crate::clock;
use crate::engine::{Answer, Cause, Engine, Given, Taken};
use crate::error::Result;
use crate::format::extension::{self, Origin};
use crate::message::MAX_DELAY;
use crate::open_queue::OpenQueue;
use crate::options;
use crate::seq::Seq;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A message that is handed out, and owes an answer. Derefs to its payload.
///
/// Dropping it gives the message back, like [`Delivery::nack`]: in memory and in mapped files, without waiting for a
/// disk (where stores are writes, with a write or two). It does not keep the queue open:
/// once the queue is closed, answers fail with [`Error::Closed`](crate::Error::Closed) and the
/// message comes back at the next open.
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

    /// The message's number: the same at every delivery of it, and no other message's ever.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.taken.given.seq)
    }

    /// How often it was handed out, this time included. Survives a crash of the consumer.
    /// Counted up to 32,767.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.taken.attempts
    }

    /// Whether it was handed out before, as far as is known: a power cut may have undone the last
    /// count, so false is no promise that nobody worked on it.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.taken.attempts > 1
    }

    /// When it was pushed, to within some 10 ms, and never earlier than a message before it. The queue's clock
    /// goes by the wall clock of when it was opened, or by the newest message if that is later, and evenly
    /// from there: a wall clock that is set meanwhile does not matter.
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        clock::system_time(self.taken.pushed_at)
    }

    /// The value of the header with this name, if the message was given one:
    /// see [`Message::header`](crate::Message::header).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All headers, in the order in which they were given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        extension::headers(self.start())
    }

    /// Where it comes from and why it died, if this is a delivery of
    /// [`Queue::dead_letters`](crate::Queue::dead_letters).
    #[must_use]
    pub fn dead_letter(&self) -> Option<DeadLetter<'_>> {
        dead_letter(self.start())
    }

    fn start(&self) -> &[u8] {
        self.taken.body.get(..self.taken.payload_start).unwrap_or_default()
    }

    /// Settles the message: it never comes back. Survives a kill of the process at once, and a
    /// power cut after the next sync; with [`Options::sync_acks`](crate::Options::sync_acks) before
    /// this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed) if the queue was closed: the message comes back.
    /// [`Error::LeaseExpired`](crate::Error::LeaseExpired) if the lease ran out
    /// ([`Options::visibility_timeout`](crate::Options::visibility_timeout)) and somebody else has the message since.
    /// [`Error::Poisoned`](crate::Error::Poisoned) with `sync_acks` if the sync failed: settled in
    /// this run, but it may come back after a power cut. [`Error::Io`](crate::Error::Io) or
    /// [`Error::StorageFull`](crate::Error::StorageFull) if the state could not be stored (only where
    /// stores are writes): the message comes back.
    pub fn ack(self) -> Result<()> {
        self.answer(&Answer::Ack)
    }

    /// It failed: gives the message back, to be handed out again before all that was never handed out, at once
    /// or after the queue's [`Options::backoff`](crate::Options::backoff). The attempt stays counted; if it was the
    /// last ([`Options::max_attempts`](crate::Options::max_attempts)), the message becomes a dead letter.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed) if the queue was closed;
    /// [`Error::LeaseExpired`](crate::Error::LeaseExpired) if somebody else has the message since.
    /// [`Error::Io`](crate::Error::Io) or [`Error::StorageFull`](crate::Error::StorageFull) if the backoff or the
    /// death could not be stored (only where stores are writes): the message is back all the same.
    pub fn nack(self) -> Result<()> {
        self.answer(&Answer::Nack)
    }

    /// Like [`Delivery::nack`], but the message stays away for this time, up to 8 years, in place of the queue's
    /// backoff: also across a restart, as of [`Message::delay`](crate::Message::delay).
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
    /// As [`Delivery::nack`]; [`Error::InvalidOption`](crate::Error::InvalidOption) for a longer time: then the
    /// delivery is dropped, which is a `nack`.
    pub fn nack_after(self, delay: Duration) -> Result<()> {
        if delay > MAX_DELAY {
            let given = format!("{delay:?}");
            return Err(options::invalid("Delivery::nack_after", given, "up to 8 years"));
        }
        self.answer(&Answer::NackAfter(delay))
    }

    /// It will never succeed: the message becomes a dead letter, with this reason (kept up to 1,024 bytes), and
    /// is not handed out again. Survives a kill and a power cut like [`Delivery::ack`]; the background makes the
    /// dead letter durable before it forgets the message.
    ///
    /// # Errors
    ///
    /// As [`Delivery::ack`].
    pub fn reject(self, reason: impl Into<String>) -> Result<()> {
        self.answer(&Answer::Reject(reason.into()))
    }

    /// Gives the work so much more time from now on, where
    /// [`Options::visibility_timeout`](crate::Options::visibility_timeout) limits it; else does nothing. Also if the
    /// lease has run out, as long as nobody else was given the message. After a time of zero it has run out.
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
    /// [`Error::LeaseExpired`](crate::Error::LeaseExpired) if the lease ran out, and the message was handed out
    /// again, settled, or given up since; [`Error::Closed`](crate::Error::Closed) if the queue was closed.
    pub fn extend(&self, time: Duration) -> Result<()> {
        self.open.engine().consumers().extend(self.taken.given, time)
    }

    /// Gives the message back as if it had not been handed out: for a consumer that took more than
    /// it can do.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed) if the queue was closed.
    /// [`Error::Io`](crate::Error::Io) or [`Error::StorageFull`](crate::Error::StorageFull) if the state
    /// could not be stored (only where stores are writes): the message is back, its attempt counted.
    pub fn release(self) -> Result<()> {
        self.answer(&Answer::Release)
    }

    pub(crate) fn answer(mut self, answer: &Answer) -> Result<()> {
        let given = self.begin_answer();
        self.open.answer([given].into_iter(), answer)
    }

    /// The caller answers from here on.
    pub(crate) fn begin_answer(&mut self) -> Given {
        self.is_answered = true;
        self.taken.given
    }

    pub(crate) fn belongs_to(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(self.open.engine(), engine)
    }
}

impl Deref for Delivery {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.taken.body.get(self.taken.payload_start..).unwrap_or_default()
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
            // It fails only if the queue was closed; then the message comes back at the next open.
            self.open.answer([self.taken.given].into_iter(), &Answer::Drop).ok();
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("seq", &self.taken.given.seq)
            .field("attempts", &self.taken.attempts)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Where a dead letter comes from and why it died, from [`Delivery::dead_letter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// It was handed out [`Options::max_attempts`](crate::Options::max_attempts) times and failed each time.
    Attempts,
    /// Its time was over: see [`Message::ttl`](crate::Message::ttl).
    Expired,
}

impl<'a> DeadLetter<'a> {
    /// The number that it had in its queue.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.origin.seq)
    }

    /// When it was pushed there. When it died is [`Delivery::pushed_at`] of the dead letter itself.
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        clock::system_time(self.origin.pushed_at)
    }

    /// How often it was handed out.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.origin.attempts
    }

    /// Why it died.
    #[must_use]
    pub fn cause(&self) -> DeathCause {
        match self.origin.cause {
            cause if cause == Cause::Attempts.encode() => DeathCause::Attempts,
            cause if cause == Cause::Expired.encode() => DeathCause::Expired,
            _ => DeathCause::Rejected,
        }
    }

    /// What [`Delivery::reject`] was given, else empty. Also empty if the process ended while `reject` was under
    /// way, or before the dead letters took the message, or if the power was cut in that moment. Then the cause is
    /// told from the message's attempts and times.
    #[must_use]
    pub fn reason(&self) -> &'a str {
        self.origin.reason
    }
}

/// Of the part of a body before its payload.
pub(crate) fn dead_letter(start: &[u8]) -> Option<DeadLetter<'_>> {
    extension::notes(start).origin.map(|origin| DeadLetter { origin })
}

/// A message that is in the queue and was not waited for. Dropping it gives up the wait only.
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

    /// The message's number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.seq)
    }

    /// Whether the message is on the disk already. Does not block.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.engine.commit().is_durable(self.seq)
    }

    /// Returns once the message is on the disk, whatever the queue's durability; syncs if nobody
    /// else does. It need not be waited for in order.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a sync failed: the message may be delivered all
    /// the same. [`Error::Closed`](crate::Error::Closed) if the queue was closed and could not sync it.
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
