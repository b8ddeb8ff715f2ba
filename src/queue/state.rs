//! Numbers and reports about a queue.

use super::Queue;
use crate::error::Result;
use crate::report::{Damage, RecoveryReport};
use crate::seq::{QueueId, Seq};
use crate::stats::Stats;
use crate::stuck::Stuck;

impl Queue {
    /// How many messages are ready: not settled, and neither delayed, in flight, set aside nor on
    /// their way to the dead letters. This includes messages that have expired behind one
    /// that has not: they are not handed out, but that is noticed only when they come up.
    ///
    /// To know whether anything is left, ask [`Queue::stats`], whose counts are of one moment:
    /// between two calls of `len`, [`Queue::in_flight`] or [`Queue::delayed`] a message can go from
    /// one count to the other, and be in neither.
    ///
    /// The first call after open may take as long as reading 16 bytes for each message of earlier
    /// runs, unless the background was faster. A state that cannot be read counts as ready; a later
    /// call reads it again.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.engine().consumers().ready()
    }

    /// Whether no message is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages are handed out and not answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.engine().consumers().in_flight()
    }

    /// How many messages wait for their time: they were pushed with a delay, or given back with
    /// one.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        self.engine().consumers().delayed()
    }

    /// The number of the newest message in the log, pushed in this run or an earlier one; `None` if
    /// there is none. After a kill it may be lower than before, if newer messages are settled and
    /// gone; new messages still get numbers above those.
    #[must_use]
    pub fn last_seq(&self) -> Option<Seq> {
        self.engine().last_seq().map(Seq)
    }

    /// What tells this queue from every other, also one that is made later in the same place. It is
    /// stored with the first push; before that, each open has another one.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push("first")?;
    /// let id = queue.id();
    /// drop(queue);
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// assert_eq!(queue.id(), id);
    /// assert_eq!(id.to_string().len(), 32);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.engine().context().id
    }

    /// Numbers about the queue. Those of messages that are ready, in flight, delayed, dying or set
    /// aside are of one moment. The first call after open may take as long as that of
    /// [`Queue::len`], and is as exact.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.open_queue().stats()
    }

    /// What holds the disk: up to `limit` of the files with unsettled messages, oldest first, each
    /// with its oldest unsettled message and the bytes that it takes. Add up
    /// [`Stuck::held_bytes`](crate::Stuck::held_bytes) to see how much compaction could give back,
    /// and look at [`Stuck::state`](crate::Stuck::state) to see why a message is not settled.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed); [`Error::Io`](crate::Error::Io) if a file cannot be
    /// read.
    pub fn stuck(&self, limit: usize) -> Result<Vec<Stuck>> {
        self.engine().consumers().count_all()?;
        self.engine().consumers().end_due();
        let stuck = self.engine().inspect().stuck(limit);
        self.engine().sync_surplus();
        stuck
    }

    /// What open found: how the last run ended, and what was dropped, skipped or ignored.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        self.engine().recovery()
    }

    /// The damage that was found so far, by open and later: up to 1,000 places. None of it concerns
    /// a message that can still be delivered, except [`DamageKind::Slot`](crate::DamageKind::Slot).
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.engine().damage()
    }
}
