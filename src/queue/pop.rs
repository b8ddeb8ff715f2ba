//! Taking messages, looking at them, asking what became of them.

use super::Queue;
use crate::clock;
use crate::delivery::Delivery;
use crate::engine::{Answer, Taken};
use crate::error::Result;
use crate::peeked::{Messages, Peeked};
use crate::seq::Seq;
use std::sync::Arc;
use std::time::Duration;

impl Queue {
    /// Hands out the next message, if there is one. Never waits for one.
    ///
    /// First deliveries follow push order. Before them comes what was given back, in push order, and what
    /// has become due, by its time. At [`Options::max_in_flight`](crate::Options::max_in_flight) there is none. The attempt is
    /// stored before this returns, so a message that kills its consumer is found out.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed); [`Error::Io`](crate::Error::Io) or [`Error::StorageFull`](crate::Error::StorageFull) if the operating system refuses to
    /// map a file or, where files are copy-on-write, to store the attempt: nothing was handed out.
    pub fn pop(&self) -> Result<Option<Delivery>> {
        let popped = self.engine().consumers().pop();
        self.open_queue().work_without_background();
        Ok(popped?.map(|taken| self.delivery(taken)))
    }

    /// Hands out the next message; waits for one as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`]; [`Error::Closed`](crate::Error::Closed) also when the queue is closed while it waits.
    pub fn pop_wait(&self) -> Result<Delivery> {
        loop {
            let popped = self.engine().consumers().pop_until(None);
            self.open_queue().work_without_background();
            if let Some(taken) = popped? {
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
        let popped = self.engine().consumers().pop_until(deadline);
        self.open_queue().work_without_background();
        Ok(popped?.map(|taken| self.delivery(taken)))
    }

    /// Hands out up to `limit` messages, as many as there are. Never waits.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`].
    pub fn pop_batch(&self, limit: usize) -> Result<Vec<Delivery>> {
        let taken = self.engine().consumers().pop_batch(limit);
        self.open_queue().work_without_background();
        Ok(taken?.into_iter().map(|taken| self.delivery(taken)).collect())
    }

    /// Settles deliveries, with one sync under [`Options::sync_acks`](crate::Options::sync_acks). Like
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
        let result = self.open_queue().answer(tickets.into_iter(), &Answer::Ack);
        first_error.map_or(result, Err)
    }

    /// The message that [`Queue::pop`] would hand out now, were there not too many in flight; without taking
    /// it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push_batch(["a", "b"])?;
    /// assert_eq!(&queue.peek()?.expect("two are waiting")[..], b"a");
    /// assert_eq!(queue.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`].
    pub fn peek(&self) -> Result<Option<Peeked>> {
        Ok(self.engine().inspect().peek()?.map(Peeked::new))
    }

    /// All that waits, ready or delayed, in the order of `Seq`, without taking anything. What is in flight is
    /// left out, and so is what is pushed from now on. Each message is shown as it is when it is reached:
    /// one that was taken or settled by then is not. Unlike that of [`Queue::pop`], the order does not follow
    /// delays.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push_batch(["a", "b", "c"])?;
    /// let taken = queue.pop()?;
    /// let waiting = queue.iter().map(|message| Ok(message?.to_vec()));
    /// assert_eq!(waiting.collect::<keepq::Result<Vec<_>>>()?, [b"b", b"c"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Each item as [`Queue::pop`]; after an error the walk is over.
    pub fn iter(&self) -> Messages {
        Messages::new(Arc::clone(self.engine()))
    }

    /// A message by its number, whether it waits or is in flight; `None` if it is settled.
    ///
    /// # Errors
    ///
    /// As [`Queue::is_acked`]; [`Error::UnknownSeq`](crate::Error::UnknownSeq) also if it is damaged.
    pub fn get(&self, seq: Seq) -> Result<Option<Peeked>> {
        Ok(self.engine().inspect().get(seq.0)?.map(Peeked::new))
    }

    /// Whether a message is settled, and so never handed out again: acked, purged, dropped, expired, moved to
    /// the dead letters (or transient and of an earlier run). False: it is still owed.
    ///
    /// True as soon as the ack is stored, which may be before [`Delivery::ack`] has returned, and no
    /// more durable than that: see [`Options::sync_acks`](crate::Options::sync_acks). A transient message whose run ended in a
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
    /// [`Error::UnknownSeq`](crate::Error::UnknownSeq) if the number was never given out, or its message was lost, or nobody
    /// knows any more: CHECKPOINT is gone, or more than a thousand crashes and damaged places lie
    /// between; [`Error::Closed`](crate::Error::Closed); [`Error::Io`](crate::Error::Io) if the state cannot be read.
    pub fn is_acked(&self, seq: Seq) -> Result<bool> {
        self.engine().inspect().is_settled(seq.0)
    }

    /// Waits up to `timeout` until a message is settled as [`Queue::is_acked`] says; false if it is
    /// not by then. Any number of threads may wait, for the same or for other messages; each is
    /// woken by its own.
    ///
    /// # Errors
    ///
    /// As [`Queue::is_acked`], also for what happens while it waits.
    pub fn wait_acked(&self, seq: Seq, timeout: Duration) -> Result<bool> {
        self.engine().inspect().wait_settled(seq.0, clock::now().checked_add(timeout))
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
        self.engine().consumers().purge()
    }

    /// Pushes up to `limit` dead letters again, the oldest first: as new messages at the end of this queue, with
    /// the same payload and headers, no attempt counted and no delay. Tells how many. Each is durable here
    /// before it is gone there; a crash in between may leave it in both.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push(b"pay 42")?;
    /// queue.pop()?.expect("one is waiting").reject("the bank is closed")?;
    /// assert_eq!(queue.redrive(10)?, 1);
    /// assert_eq!(queue.pop()?.expect("it is back").attempts(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::dead_letters`] and [`Queue::push`]; [`Error::Full`](crate::Error::Full) whatever
    /// [`Options::overflow`](crate::Options::overflow) says. Those that were pushed before the error are no longer dead
    /// letters; after a failed sync some may be both.
    pub fn redrive(&self, limit: u64) -> Result<u64> {
        self.open_queue().redrive(limit)
    }

    fn delivery(&self, taken: Taken) -> Delivery {
        Delivery::new(Arc::clone(self.open_queue()), taken)
    }
}

/// As [`Queue::iter`].
impl IntoIterator for &Queue {
    type Item = Result<Peeked>;
    type IntoIter = Messages;

    fn into_iter(self) -> Messages {
        self.iter()
    }
}
