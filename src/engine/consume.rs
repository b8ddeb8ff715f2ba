//! Handing out and settling, seen from a consumer: what is done under the lock, and what is not.
//!
//! Promises: payloads are copied and verified outside of the lock; whoever answers with
//! `sync_acks` returns after the sync. Relies on `deliver` for everything that needs the lock.

use super::Engine;
use super::deliver::{Answer, Body, Leased, Taken};
use crate::error::Result;
use crate::leases::Ticket;

impl Engine {
    /// The next message, if there is one.
    pub(crate) fn pop(&self) -> Result<Option<Taken>> {
        loop {
            let (leased, asks) = {
                let mut deliver = self.deliver.lock();
                (deliver.lease_next(self.newest_published())?, deliver.asks_for_sync())
            };
            if asks {
                self.worker.sync_answers();
            }
            let Some(leased) = leased else { return Ok(None) };
            if let Some(taken) = self.copy_out(leased)? {
                return Ok(Some(taken));
            }
        }
    }

    /// Up to `limit` messages, under one lock.
    pub(crate) fn pop_batch(&self, limit: usize) -> Result<Vec<Taken>> {
        let mut batch = Vec::new();
        let mut failed = None;
        let asks = {
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
            deliver.asks_for_sync()
        };
        if asks {
            self.worker.sync_answers();
        }
        let mut taken = Vec::with_capacity(batch.len());
        for leased in batch {
            match self.copy_out(leased) {
                Ok(more) => taken.extend(more),
                Err(error) => failed = Some(error),
            }
        }
        // What was taken is handed out; the error comes again with the next pop.
        match failed {
            Some(error) if taken.is_empty() => Err(error),
            _ => Ok(taken),
        }
    }

    /// `None` if the payload is damaged.
    fn copy_out(&self, mut leased: Leased) -> Result<Option<Taken>> {
        let body = match &mut leased.body {
            Body::Copied(body) => std::mem::take(body),
            Body::In(mapped) => mapped.body(&leased.header, leased.offset),
        };
        let Some(payload_start) = leased.header.verify(&body) else {
            let lost = self.deliver.lock().lose_leased(&leased);
            self.worker.ask();
            return lost.map(|()| None);
        };
        let Leased { ticket, seq, attempts, pushed_at, .. } = leased;
        Ok(Some(Taken { ticket, seq, attempts, pushed_at, body, payload_start }))
    }

    /// Settles deliveries as their holder says.
    pub(crate) fn answer(
        &self,
        tickets: impl Iterator<Item = Ticket>,
        answer: Answer,
    ) -> Result<()> {
        let mut first_error = None;
        let mut is_done = false;
        let (asks, number, has_waiters) = {
            let mut deliver = self.deliver.lock();
            for ticket in tickets {
                match deliver.settle(ticket, answer) {
                    Ok(done) => is_done |= done,
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
            let returns = answer != Answer::Ack || first_error.is_some();
            let has_waiters = returns && self.readers.has_waiters();
            (deliver.asks_for_sync(), deliver.change_count(), has_waiters)
        };
        if is_done {
            self.worker.ask();
        }
        if asks {
            self.worker.sync_answers();
        }
        if has_waiters {
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
