//! Taking messages, showing them, and asking what became of them.

use super::Queue;
use crate::clock;
use crate::delivery::Delivery;
use crate::engine::{Ahead, Front, Taken};
use crate::error::Result;
use crate::peeked::{Messages, Peeked};
use crate::seq::Seq;
use std::sync::Arc;
use std::time::Duration;

impl Queue {
    /// Hands out the next message, if there is one. Never waits for one.
    ///
    /// Messages come in this order: first those that were given back, in push order; then those
    /// that have become due, in the order of their times; then those that were never handed out, in
    /// push order. A restart begins a new order: what was given back before it, and what had become
    /// due, comes in push order with the others. The attempt is stored before this returns, so a
    /// message that kills its consumer uses up its attempts. At
    /// [`Options::max_in_flight`](crate::Options::max_in_flight) this returns `None`.
    ///
    /// It first gets past what has expired in front of the next message, or died with the last run.
    /// That takes a microsecond or two for each small one. [`Queue::pop_timeout`] ends at its time.
    ///
    /// Payloads that lie side by side may share memory, up to 4 KiB: that is free once all of their
    /// deliveries are gone.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed). [`Error::Io`](crate::Error::Io) or
    /// [`Error::StorageFull`](crate::Error::StorageFull) if the operating system refuses to map a
    /// file or, where files are copy-on-write, to store the attempt: nothing was handed out.
    pub fn pop(&self) -> Result<Option<Delivery>> {
        let work = || self.open_queue().work_without_background();
        self.engine().consumers().pop(|taken| self.delivery(taken), work)
    }

    /// Hands out the next message, and waits for one as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`]; [`Error::Closed`](crate::Error::Closed) also when the queue is closed
    /// while it waits.
    pub fn pop_wait(&self) -> Result<Delivery> {
        loop {
            let popped = self.engine().consumers().pop_until(None);
            self.open_queue().work_without_background();
            if let Some(taken) = popped? {
                return Ok(self.delivery(taken));
            }
        }
    }

    /// Hands out the next message, and waits for one up to `timeout`. Should many have expired in
    /// front of it, or died with the last run, it may take several calls to get past them: each
    /// gets past some, and goes on only while it has time.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop_wait`].
    pub fn pop_timeout(&self, timeout: Duration) -> Result<Option<Delivery>> {
        // A timeout beyond the end of the clock is none.
        let deadline = clock::now().checked_add(timeout);
        loop {
            let popped = self.engine().consumers().pop_until(deadline);
            self.open_queue().work_without_background();
            if let Some(taken) = popped? {
                return Ok(Some(self.delivery(taken)));
            }
            if deadline.is_some_and(|end| end <= clock::now()) {
                return Ok(None);
            }
        }
    }

    /// Hands out up to `limit` messages, as many as are ready when it begins. Never waits. It ends
    /// early if it comes to a message that it has already, because the lease of that one has run
    /// out meanwhile.
    ///
    /// Payloads up to 4 KiB that lie side by side share memory, up to 20 KiB: that is free once all
    /// of their deliveries are gone.
    ///
    /// # Errors
    ///
    /// As [`Queue::pop`].
    pub fn pop_batch(&self, limit: usize) -> Result<Vec<Delivery>> {
        let batch = self.engine().consumers().pop_batch(limit, |taken| self.delivery(taken));
        self.open_queue().work_without_background();
        batch
    }

    /// Settles deliveries, like [`Delivery::ack`] for each of them, but with one sync under
    /// [`Options::sync_acks`](crate::Options::sync_acks).
    ///
    /// # Errors
    ///
    /// The first error of [`Delivery::ack`]. All of the deliveries are answered as far as possible.
    /// If it is indeterminate, all deliveries of its queue are settled in this run.
    pub fn ack_batch(&self, deliveries: impl IntoIterator<Item = Delivery>) -> Result<()> {
        // All of the caller's code has run before the first delivery is answered: if it panics,
        // they all go back.
        Delivery::ack_all(deliveries.into_iter().collect())
    }

    /// Shows the message that [`Queue::pop`] would hand out now, without taking it. The limit of
    /// messages in flight does not matter here.
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
        self.engine().consumers().end_due();
        let mut ahead = Ahead::START;
        loop {
            match self.engine().look(|inspect| inspect.peek(&mut ahead))? {
                Front::Message(viewed) => return Ok(Some(Peeked::new(viewed))),
                Front::Passed => {}
                Front::Nothing => return Ok(None),
                // Which of its messages are delayed is known once its slots are counted.
                Front::Uncounted(segment) => {
                    while self.engine().consumers().count_segment(segment)? {}
                    self.engine().consumers().end_due();
                    ahead = Ahead::START;
                }
            }
        }
    }

    /// Shows all waiting messages, ready or delayed, in the order of `Seq`, without taking any.
    /// Messages in flight are left out, and so are messages that are pushed from now on. Each
    /// message is shown as it is when the walk reaches it; a message that was taken or settled by
    /// then is not shown. After a restart, a message whose last attempt ended with the run before
    /// is shown until the messages are counted. Unlike the order of [`Queue::pop`], this order does
    /// not follow delays. The walk goes over all messages in flight, too: to look only at what a
    /// pop would give, [`Queue::peek`] is far faster.
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
    /// Each item may be an error of [`Queue::pop`]. After an error the walk is over.
    pub fn iter(&self) -> Messages {
        Messages::new(Arc::clone(self.engine()))
    }

    /// Shows one message by its number, whether it waits or is in flight; `None` if it is settled.
    ///
    /// # Errors
    ///
    /// As [`Queue::is_acked`]; [`Error::UnknownSeq`](crate::Error::UnknownSeq) also if the message
    /// is damaged.
    pub fn get(&self, seq: Seq) -> Result<Option<Peeked>> {
        let found = self.engine().look(|inspect| inspect.get(seq.0));
        self.engine().sync_surplus();
        Ok(found?.map(Peeked::new))
    }

    /// Returns true if the message is settled, which does not say that it was worked on: it was
    /// acked, purged, dropped or moved to the dead letters, or it expired, or it is a transient
    /// message of an earlier run. A settled message is never handed out again. Returns false if the
    /// message is unsettled.
    ///
    /// The result is true as soon as the ack is stored, which may be before [`Delivery::ack`] has
    /// returned, and it is no more durable than the ack: see
    /// [`Options::sync_acks`](crate::Options::sync_acks). A transient message whose run ended in a
    /// power cut may count as unsettled until [`Queue::pop`] passes it.
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
    /// * [`Error::UnknownSeq`](crate::Error::UnknownSeq) if the number was never given out, or its
    ///   message was lost, or the answer is no longer known: CHECKPOINT is gone, or there were more
    ///   than a thousand crashes and damaged places since.
    /// * [`Error::Closed`](crate::Error::Closed).
    /// * [`Error::Io`](crate::Error::Io) if the state cannot be read.
    pub fn is_acked(&self, seq: Seq) -> Result<bool> {
        let is_settled = self.engine().look(|inspect| inspect.is_settled(seq.0));
        self.engine().sync_surplus();
        is_settled
    }

    /// Waits up to `timeout` until a message is settled (acked, purged, dropped, expired, or moved
    /// to the dead letters), which does not say that it was worked on. Returns false if it is not
    /// settled by then. See [`Queue::is_acked`]. Any number of threads may wait, for the same
    /// message or for others; each is woken by its own message.
    ///
    /// # Errors
    ///
    /// As [`Queue::is_acked`], also if the cause arises while this waits.
    pub fn wait_acked(&self, seq: Seq, timeout: Duration) -> Result<bool> {
        self.engine().wait_settled(seq.0, clock::now().checked_add(timeout))
    }

    /// Settles all waiting messages, ready or delayed, as durably as an ack. Messages in flight,
    /// and messages that are pushed meanwhile, stay. Returns how many messages were settled. The
    /// background gives the disk space back.
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
    /// As [`Delivery::ack`]. After an error that is indeterminate all waiting messages are settled
    /// in this run. After another one some may be settled; the others wait as before.
    pub fn purge(&self) -> Result<u64> {
        let close_files = || self.engine().sync_surplus();
        let purged = self.engine().consumers().purge(close_files);
        close_files();
        purged
    }

    /// Pushes up to `limit` dead letters again, the oldest first. They become new messages at the
    /// end of this queue, with the same payload and headers, no attempt counted and no delay. They
    /// have no time to live of their own ([`Options::message_ttl`](crate::Options::message_ttl)
    /// counts from here on), and none of them is transient.
    /// Returns how many were pushed. Dead letters that are in flight or delayed stay. No consumer
    /// gets those that are pushed, even if that takes longer than their leases last. Each message
    /// is durable here before it is removed from the dead letters; a crash in between, or another
    /// handle that closes them, may leave it in both places.
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
    /// As [`Queue::dead_letters`] and [`Queue::push`]; a full queue is
    /// [`Error::Full`](crate::Error::Full), whatever
    /// [`Options::overflow`](crate::Options::overflow) says. Messages that were pushed before the
    /// error are no longer dead letters; after a failed sync, or if a removal cannot be stored,
    /// some may be in both places, and the next call pushes those again.
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
