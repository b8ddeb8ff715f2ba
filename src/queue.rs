//! The handle.

use crate::clock;
use crate::delivery::{Delivery, Receipt};
use crate::engine::{Answer, Engine, Taken};
use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::{extension, record};
use crate::io::{DiskStorage, Storage};
use crate::log::active::Draft;
use crate::message::Message;
use crate::options::{Durability, Options};
use crate::report::{Damage, RecoveryReport};
use crate::seq::Seq;
use crate::stats::Stats;
use crate::typed::TypedQueue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A persistent queue. Cheap to clone; every clone is the same queue, and any thread may use it.
///
/// Dropping the last clone closes the queue like [`Queue::close`], without a way to tell errors.
///
/// ```
/// use keepq::Queue;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("orders");
/// let queue = Queue::open(&path)?;
/// queue.push(b"pay 42")?; // on the disk when this returns
/// while let Some(job) = queue.pop()? {
///     // work, then
///     job.ack()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Queue {
    handle: Arc<Handle>,
}

/// Closes the queue when the last clone is gone.
struct Handle {
    engine: Arc<Engine>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // `close` is for those who want to know.
        self.engine.close().ok();
    }
}

impl Options {
    /// Opens the queue in the directory `path`; creates it if there is none.
    ///
    /// When it returns, no other handle can open the queue, and what it held is known; see
    /// [`Queue::recovery`] for what open found.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if it is open already, [`Error::UnsupportedVersion`] if a newer keepq wrote
    /// it, [`Error::InvalidOption`] for a value out of bounds, [`Error::Corrupt`] if nothing in the
    /// directory says how far its numbers went, [`Error::Io`] or [`Error::StorageFull`] if the
    /// operating system refuses.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Queue> {
        self.validate()?;
        Queue::open_with(self, path.as_ref())
    }
}

impl Queue {
    /// Opens the queue in the directory `path` with the default options; creates it if there is
    /// none.
    ///
    /// # Errors
    ///
    /// As [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path)
    }

    /// Options to open a queue with.
    pub fn options() -> Options {
        Options::default()
    }

    pub(crate) fn open_with(options: Options, path: &Path) -> Result<Self> {
        let may_make = options.create || options.create_new;
        let storage = options.storage.clone().map_or_else(|| disk(path, may_make), Ok)?;
        let engine = Engine::open(options, storage)?;
        Ok(Self { handle: Arc::new(Handle { engine }) })
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.handle.engine
    }

    /// Puts a message at the end of the queue. `Ok` promises what its [`Durability`] says: with the
    /// default, the message is on the disk. Consumers may see it before this returns.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::StorageFull`], [`Error::Closed`], [`Error::Io`], and
    /// [`Error::InvalidOption`] for a [`Message::durability`] that cannot be: the message is not in
    /// the queue. [`Error::Poisoned`]: a sync failed; if
    /// [`Error::is_indeterminate`], the message may be delivered all the same.
    pub fn push<'a>(&self, message: impl Into<Message<'a>>) -> Result<Seq> {
        let message = message.into();
        let draft = self.draft(&message)?;
        let durability = self.durability_of(&message);
        let seq = self.engine().append(&[draft], interval(durability))?;
        self.wait(seq, durability)?;
        Ok(Seq(seq))
    }

    /// Puts a message at the end of the queue without waiting for the disk. When it returns, the
    /// message survives a kill of the process; [`Receipt::wait`] makes it survive a power cut.
    ///
    /// # Errors
    ///
    /// As [`Queue::push`]; the message is not in the queue.
    pub fn submit<'a>(&self, message: impl Into<Message<'a>>) -> Result<Receipt> {
        let message = message.into();
        let draft = self.draft(&message)?;
        let durability = self.durability_of(&message);
        let seq = self.engine().append(&[draft], interval(durability))?;
        Ok(Receipt::new(Arc::clone(self.engine()), seq))
    }

    /// Puts messages at the end of the queue, all or none, side by side, with one sync. After a crash
    /// the whole batch is there or nothing of it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// let seqs = queue.push_batch([b"a", b"b", b"c"])?;
    /// assert_eq!(seqs.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::push`], for the batch as a whole.
    pub fn push_batch<'a, M: Into<Message<'a>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Vec<Seq>> {
        let max = self.engine().options().max_batch_bytes;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for message in messages {
            let message = message.into();
            bytes += message.bytes();
            if bytes > max {
                return Err(Error::TooLarge { len: bytes, max });
            }
            batch.push(message);
        }
        let drafts: Vec<Draft<'_>> =
            batch.iter().map(|message| self.draft(message)).collect::<Result<_>>()?;
        if drafts.is_empty() {
            return self.engine().check_open().map(|()| Vec::new());
        }
        let each = batch.iter().map(|message| self.durability_of(message));
        let durability = each.reduce(Durability::stricter).unwrap_or(Durability::Os);
        let first = self.engine().append(&drafts, interval(durability))?;
        let seqs: Vec<Seq> = (first..).zip(&drafts).map(|(seq, _)| Seq(seq)).collect();
        self.wait(first + wide(drafts.len()) - 1, durability)?;
        Ok(seqs)
    }

    /// Hands out the next message, if there is one. Never waits for one.
    ///
    /// First deliveries follow push order; what was given back comes before them. The attempt is
    /// stored before this returns, so a message that kills its consumer is found out.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]; [`Error::Io`] or [`Error::StorageFull`] if the operating system refuses to
    /// map a file or, where files are copy-on-write, to store the attempt: nothing was handed out.
    pub fn pop(&self) -> Result<Option<Delivery>> {
        Ok(self.engine().pop()?.map(|taken| self.delivery(taken)))
    }

    /// Hands out the next message; waits for one as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`]; [`Error::Closed`] also when the queue is closed while it waits.
    pub fn pop_wait(&self) -> Result<Delivery> {
        loop {
            if let Some(taken) = self.engine().pop_until(None)? {
                return Ok(self.delivery(taken));
            }
        }
    }

    /// Hands out the next message; waits for one up to `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop_wait`].
    pub fn pop_timeout(&self, timeout: Duration) -> Result<Option<Delivery>> {
        // A timeout beyond the end of the clock is none.
        let deadline = clock::now().checked_add(timeout);
        Ok(self.engine().pop_until(deadline)?.map(|taken| self.delivery(taken)))
    }

    /// Hands out up to `limit` messages, as many as there are. Never waits.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`].
    pub fn pop_batch(&self, limit: usize) -> Result<Vec<Delivery>> {
        let taken = self.engine().pop_batch(limit)?;
        Ok(taken.into_iter().map(|taken| self.delivery(taken)).collect())
    }

    /// Settles deliveries, with one sync under [`Options::sync_acks`]. Like
    /// [`Delivery::ack`] for each of them.
    ///
    /// # Errors
    ///
    /// The first error of [`Delivery::ack`]; all of the deliveries are answered as far as possible.
    pub fn ack_batch(&self, deliveries: impl IntoIterator<Item = Delivery>) -> Result<()> {
        // All of the caller's code has run before the first delivery counts as answered: should it
        // panic, they all go back.
        let deliveries: Vec<Delivery> = deliveries.into_iter().collect();
        let mut tickets = Vec::with_capacity(deliveries.len());
        let mut first_error = None;
        for mut delivery in deliveries {
            if delivery.belongs_to(self.engine()) {
                tickets.push(delivery.begin_answer());
            } else if let Err(error) = delivery.ack() {
                // Another queue's delivery: its own queue settles it.
                first_error = first_error.or(Some(error));
            }
        }
        let result = self.engine().answer(tickets.into_iter(), Answer::Ack);
        first_error.map_or(result, Err)
    }

    /// Whether a message is settled: acked or purged (or transient and of an earlier run), and so
    /// never handed out again. False: it is still owed.
    ///
    /// True as soon as the ack is stored, which may be before [`Delivery::ack`] has returned, and no
    /// more durable than that: see [`Options::sync_acks`]. A transient message whose run ended in a
    /// power cut may count as owed until [`Queue::pop`] passes it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// let seq = queue.push(b"pay 42")?;
    /// assert!(!queue.is_acked(seq)?);
    /// queue.pop()?.expect("one is waiting").ack()?;
    /// assert!(queue.is_acked(seq)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSeq`] if the number was never given out, or its message was lost, or nobody
    /// knows any more: CHECKPOINT is gone, or more than a thousand crashes and damaged places lie
    /// between; [`Error::Closed`]; [`Error::Io`] if the state cannot be read.
    pub fn is_acked(&self, seq: Seq) -> Result<bool> {
        self.engine().is_settled(seq.0)
    }

    /// Waits up to `timeout` until a message is settled as [`Queue::is_acked`] says; false if it is
    /// not by then. Any number of threads may wait, for the same or for other messages; each is
    /// woken by its own.
    ///
    /// # Errors
    ///
    /// As [`Queue::is_acked`], also for what happens while it waits.
    pub fn wait_acked(&self, seq: Seq, timeout: Duration) -> Result<bool> {
        self.engine().wait_settled(seq.0, clock::now().checked_add(timeout))
    }

    /// Settles all that waits, ready or delayed, as if it was acked and no less durably; what is in flight and what is
    /// pushed meanwhile stays. Tells how many messages there were. The disk space comes back in the
    /// background.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push_batch([b"a", b"b", b"c"])?;
    /// let in_flight = queue.pop()?;
    /// assert_eq!(queue.purge()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Delivery::ack`]: some messages may be settled then, and the others wait as before.
    pub fn purge(&self) -> Result<u64> {
        self.engine().purge()
    }

    /// The queue as one of values of `T`, in `postcard` encoding. It is
    /// the same queue: both may be used at a time.
    #[must_use]
    pub fn typed<T: Serialize + DeserializeOwned>(&self) -> TypedQueue<T> {
        TypedQueue::new(self.clone())
    }

    /// How many messages are ready: neither in flight, delayed nor settled.
    ///
    /// The first call after open may take as long as reading 16 bytes for each message of earlier runs, unless
    /// the background was faster. What cannot be read counts as ready, and is read by a later call.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.engine().ready()
    }

    /// Whether no message is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages are handed out and not answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.engine().in_flight()
    }

    /// How many messages were given back and wait for their time, such as those that did not decode
    /// as what a [`TypedQueue`] expects.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        self.engine().delayed()
    }

    /// The number of the newest message in the log, pushed in this run or an earlier one; `None` if
    /// there is none. After a kill it may be lower than before, if what was newer is settled and gone;
    /// numbers go on above it all the same.
    #[must_use]
    pub fn last_seq(&self) -> Option<Seq> {
        self.engine().last_seq().map(Seq)
    }

    /// Numbers about the queue, all of one moment. The first call after open may take as long as that
    /// of [`Queue::len`], and knows as much.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine().stats()
    }

    /// What open found: how the last run ended, and what was dropped, skipped or ignored.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        self.engine().recovery()
    }

    /// What was found damaged so far, by open and by `pop`: the first 1,000 places.
    /// Nothing here concerns a message that can still be delivered, except
    /// [`DamageKind::Slot`](crate::DamageKind::Slot).
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.engine().damage()
    }

    /// Makes durable all that was pushed and answered before the call, whatever the options say.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] if a sync failed, now or before; [`Error::Closed`]; [`Error::Io`] or
    /// [`Error::StorageFull`] if what an earlier run left cannot be marked as complete.
    pub fn sync(&self) -> Result<()> {
        self.engine().check_open()?;
        self.engine().sync()
    }

    /// Does at once what the background thread does: syncs, prepares the next file, counts, lets go
    /// of files in which nothing is owed, writes the checkpoint.
    ///
    /// # Errors
    ///
    /// The first error met, any of [`Error::Closed`], [`Error::Poisoned`], [`Error::Io`] and
    /// [`Error::StorageFull`]; what could not be done is tried again by the next call.
    pub fn maintain(&self) -> Result<()> {
        self.engine().maintain()
    }

    /// Ends the queue for every clone, with everything on the disk: waiting consumers get
    /// [`Error::Closed`], unanswered deliveries come back at the next open. When it returns,
    /// whatever it returns, the directory can be opened again. From then on [`Queue::len`], [`Queue::in_flight`] and
    /// [`Queue::delayed`] are zero.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`], [`Error::Io`] or [`Error::StorageFull`] if not everything reached the
    /// disk; [`Error::Closed`] if an earlier call said so already.
    pub fn close(self) -> Result<()> {
        self.engine().close()
    }

    fn delivery(&self, taken: Taken) -> Delivery {
        Delivery::new(Arc::clone(self.engine()), taken)
    }

    fn draft<'m>(&self, message: &'m Message<'_>) -> Result<Draft<'m>> {
        let max = self.engine().options().max_message_bytes;
        let len = message.bytes();
        if len > max {
            return Err(Error::TooLarge { len, max });
        }
        message.check()?;
        let headers = message.headers.iter();
        let extensions =
            extension::encode(headers.map(|header| (header.name.as_str(), &header.value[..])));
        let draft = Draft::new(extensions, &message.payload, message.is_transient);
        let body = len + message.header_overhead();
        draft.ok_or(Error::TooLarge { len: body, max: record::MAX_BODY })
    }

    /// What is transient is not waited for.
    fn durability_of(&self, message: &Message<'_>) -> Durability {
        if message.is_transient {
            return Durability::Os;
        }
        message.durability.unwrap_or(self.engine().options().durability)
    }

    fn wait(&self, seq: u64, durability: Durability) -> Result<()> {
        match durability {
            Durability::Always => self.engine().wait_durable(seq),
            Durability::Interval(_) | Durability::Os => Ok(()),
        }
    }
}

fn disk(path: &Path, may_make: bool) -> Result<Arc<dyn Storage>> {
    let (operation, disk) = if may_make {
        ("create directory", DiskStorage::new(path))
    } else {
        ("open directory", DiskStorage::existing(path))
    };
    match disk {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(error) => Err(Error::io(operation, path, 0, error)),
    }
}

fn interval(durability: Durability) -> Option<Duration> {
    match durability {
        Durability::Interval(interval) => Some(interval),
        Durability::Always | Durability::Os => None,
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("directory", &self.engine().directory())
            .finish_non_exhaustive()
    }
}
