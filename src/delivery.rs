//! A message that is handed out, and the wait for one that is on its way in.

use crate::clock;
use crate::engine::{Answer, Engine, Taken};
use crate::error::Result;
use crate::format::extension;
use crate::leases::Ticket;
use crate::seq::Seq;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

/// A message that is handed out, and owes an answer. Derefs to its payload.
///
/// Dropping it gives the message back, like [`Delivery::nack`]. It does not keep the queue open:
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
    engine: Arc<Engine>,
    taken: Taken,
    is_answered: bool,
}

impl Delivery {
    pub(crate) fn new(engine: Arc<Engine>, taken: Taken) -> Self {
        Self { engine, taken, is_answered: false }
    }

    /// The message's number: the same at every delivery of it, and no other message's ever.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.taken.seq)
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

    /// When it was pushed, by the wall clock of that moment to within a few milliseconds, and never
    /// earlier than a message before it, also if the clock was set back.
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
        extension::headers(self.taken.body.get(..self.taken.payload_start).unwrap_or_default())
    }

    /// Settles the message: it never comes back. Survives a kill of the process at once, and a
    /// power cut after the next sync; with [`Options::sync_acks`](crate::Options::sync_acks) before
    /// this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed) if the queue was closed: the message comes back.
    /// [`Error::Poisoned`](crate::Error::Poisoned) with `sync_acks` if the sync failed: settled in
    /// this run, but it may come back after a power cut. [`Error::Io`](crate::Error::Io) or
    /// [`Error::StorageFull`](crate::Error::StorageFull) if the state could not be stored (only where
    /// stores are writes): the message comes back.
    pub fn ack(self) -> Result<()> {
        self.answer(Answer::Ack)
    }

    /// Gives the message back, to be handed out again before all that was never handed out. The
    /// attempt stays counted.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed) if the queue was closed.
    pub fn nack(self) -> Result<()> {
        self.answer(Answer::Nack)
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
        self.answer(Answer::Release)
    }

    pub(crate) fn answer(mut self, answer: Answer) -> Result<()> {
        let ticket = self.begin_answer();
        self.engine.answer([ticket].into_iter(), answer)
    }

    /// The caller answers from here on.
    pub(crate) fn begin_answer(&mut self) -> Ticket {
        self.is_answered = true;
        self.taken.ticket
    }

    pub(crate) fn belongs_to(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(&self.engine, engine)
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
            self.engine.answer([self.taken.ticket].into_iter(), Answer::Nack).ok();
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("seq", &self.taken.seq)
            .field("attempts", &self.taken.attempts)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
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
        self.engine.is_durable(self.seq)
    }

    /// Returns once the message is on the disk, whatever the queue's durability; syncs if nobody
    /// else does. It need not be waited for in order.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a sync failed: the message may be delivered all
    /// the same. [`Error::Closed`](crate::Error::Closed) if the queue was closed and could not sync it.
    pub fn wait(self) -> Result<Seq> {
        self.engine.wait_durable(self.seq)?;
        Ok(Seq(self.seq))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("seq", &self.seq).finish_non_exhaustive()
    }
}
