//! How many messages there are, and where: each number as of one moment.

use super::Consumers;

impl Consumers {
    /// Messages in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.end_due();
        self.dispatch.lock().ledger().places().in_flight()
    }

    /// Messages that wait for their time.
    pub(crate) fn delayed(&self) -> u64 {
        self.context.health.note_background(self.count_all());
        self.end_due();
        self.ready_and_delayed().1
    }

    /// Messages that can be handed out. Counts the slots of earlier runs first, as far as they can
    /// be read.
    pub(crate) fn ready(&self) -> u64 {
        self.context.health.note_background(self.count_all());
        self.end_due();
        self.ready_and_delayed().0
    }

    fn ready_and_delayed(&self) -> (u64, u64) {
        // While a batch of delayed messages is pushed, some may be scheduled and not published.
        let unsealed = self.appender.unsealed();
        let dispatch = self.dispatch.lock();
        drop(unsealed);
        dispatch.ledger().ready_and_delayed(&self.published)
    }

    /// Messages that are not settled.
    pub(crate) fn unsettled(&self) -> u64 {
        self.context.health.note_background(self.count_all());
        self.dispatch.lock().backlog().unsettled(self.published.newest())
    }
}
