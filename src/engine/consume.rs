//! Handing out and settling, seen from a consumer: what is done under the lock, and what is not.
//!
//! Promises: payloads are copied and verified outside of the lock; whoever answers with
//! `sync_acks` returns after the sync. Relies on `deliver` for everything that needs the lock.

use super::Engine;
use super::deliver::{Answer, Leased, Taken};
use crate::error::Result;
use crate::leases::Ticket;

impl Engine {
    /// The next message, if there is one.
    pub(crate) fn pop(&self) -> Result<Option<Taken>> {
        loop {
            let leased = {
                let mut deliver = self.deliver.lock();
                deliver.lease_next(self.newest_published())?
            };
            let Some(leased) = leased else { return Ok(None) };
            if let Some(taken) = self.copy_out(&leased)? {
                return Ok(Some(taken));
            }
        }
    }

    /// Up to `limit` messages, under one lock.
    pub(crate) fn pop_batch(&self, limit: usize) -> Result<Vec<Taken>> {
        let mut batch = Vec::new();
        let mut failed = None;
        {
            let mut deliver = self.deliver.lock();
            let published = self.newest_published();
            while batch.len() < limit {
                match deliver.lease_next(published) {
                    Ok(Some(leased)) => batch.push(leased),
                    Ok(None) => break,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
        }
        if let (true, Some(error)) = (batch.is_empty(), failed) {
            return Err(error);
        }
        let mut taken = Vec::with_capacity(batch.len());
        for leased in &batch {
            taken.extend(self.copy_out(leased)?);
        }
        Ok(taken)
    }

    /// `None` if the payload is damaged.
    fn copy_out(&self, leased: &Leased) -> Result<Option<Taken>> {
        let Leased { ticket, seq, attempts, offset, pushed_at, mapped, header } = leased;
        let Some((body, payload_start)) = mapped.payload(header, *offset) else {
            self.deliver.lock().lose_leased(leased)?;
            self.worker.ask();
            return Ok(None);
        };
        Ok(Some(Taken {
            ticket: *ticket,
            seq: *seq,
            attempts: *attempts,
            pushed_at: *pushed_at,
            body,
            payload_start,
        }))
    }

    /// Settles deliveries as their holder says.
    pub(crate) fn answer(
        &self,
        tickets: impl Iterator<Item = Ticket>,
        answer: Answer,
    ) -> Result<()> {
        let mut first_error = None;
        let mut is_done = false;
        let (asks, number) = {
            let mut deliver = self.deliver.lock();
            for ticket in tickets {
                match deliver.settle(ticket, answer) {
                    Ok(done) => is_done |= done,
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
            (deliver.asks_for_sync(), deliver.answer_count())
        };
        if is_done {
            self.worker.ask();
        }
        if asks {
            self.worker.sync_answers();
        }
        if answer != Answer::Ack {
            self.readers.wake_one();
        }
        first_error.map_or(Ok(()), Err)?;
        if self.options.sync_acks && answer == Answer::Ack {
            self.wait_acks(number)?;
        }
        Ok(())
    }

    /// Counts the slots of earlier runs.
    pub(super) fn count_old_tracks(&self) -> Result<()> {
        while self.deliver.lock().count_some()? {}
        Ok(())
    }

    /// Whether another waiting consumer is worth waking.
    pub(super) fn readers_may_have_more(&self) -> bool {
        // Whoever is woken looks for itself, so a hint is enough.
        self.deliver.lock().has_more(self.newest_published())
    }
}
