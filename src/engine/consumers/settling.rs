//! Answers, and what settles messages that nobody holds.
//!
//! Promises: many answers are stored in steps, between which other threads have their turn and
//! files are closed: a step maps no more segments than the options allow to be open.

use super::{Answer, Consumers, LeaseKey, MESSAGES_A_STEP};
use crate::engine::dispatch::purge::Purge;
use crate::error::Result;

impl Consumers {
    /// Ends deliveries as their holder says. With `sync_acks`, an ack or reject returns once it is
    /// on the disk. `between`: called between two steps, to close files.
    pub(crate) fn answer(
        &self,
        deliveries: impl Iterator<Item = LeaseKey>,
        answer: &Answer,
        between: impl Fn(),
    ) -> Result<()> {
        let (mut first_error, mut deliveries) = (None, deliveries.peekable());
        let mut number = 0;
        while deliveries.peek().is_some() {
            let mut dispatch = self.dispatch.lock();
            let maps_before = dispatch.backlog().activity().maps_made();
            for LeaseKey { ticket, seq, is_sample } in deliveries.by_ref().take(MESSAGES_A_STEP) {
                if is_sample {
                    dispatch.deliveries_mut().measure_mut().answered(ticket);
                }
                if let Err(error) = dispatch.deliveries_mut().answer(ticket, seq, answer) {
                    first_error = first_error.or(Some(error));
                }
                if dispatch.backlog().activity().has_made_most(maps_before) {
                    break;
                }
            }
            number = dispatch.backlog().change_count();
            drop(dispatch);
            if deliveries.peek().is_some() {
                between();
            }
        }
        // Also if some of them failed: the others are as durable as any.
        let synced = match answer {
            Answer::Ack | Answer::Reject(_) => self.wait_answers(number),
            Answer::Nack | Answer::Drop | Answer::NackAfter(_) | Answer::Release => Ok(()),
        };
        first_error.map_or(synced, Err)
    }

    /// With `sync_acks`: returns when change number `number`, and all before it, are on the disk.
    fn wait_answers(&self, number: u64) -> Result<()> {
        if self.context.options.sync_acks { self.commit.wait_answers(number) } else { Ok(()) }
    }

    /// Settles all messages that wait, ready or delayed; tells how many there were. `between` is
    /// that of [`Self::answer`].
    pub(crate) fn purge(&self, between: impl Fn()) -> Result<u64> {
        // What is over waits.
        self.end_due();
        let mut purge = Purge::up_to(self.published.visible());
        while purge.settle_some(&mut self.dispatch.lock())? {
            between();
        }
        let number = self.dispatch.lock().backlog().change_count();
        self.wait_answers(number)?;
        Ok(purge.purged())
    }

    /// Returns true if unsynced answers hold too many segments open: more than the limit of open
    /// files, or twice that limit with a background. Then the caller syncs them.
    pub(crate) fn holds_too_many_open(&self) -> bool {
        let factor = if self.context.worker.is_running() { 2 } else { 1 };
        self.dispatch.lock().backlog().holds_too_many(factor)
    }
}
