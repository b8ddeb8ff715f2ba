//! Handing out and settling, seen from a consumer: what is done under the lock, and what is not.
//!
//! Promises: payloads are copied and verified outside of the lock; whoever answers with
//! `sync_acks` returns after the sync; whoever waits is woken by what it waits for and polls
//! nothing. Relies on `deliver` for everything that needs the lock.

use super::Engine;
use super::deliver::{Answer, Body, Leased, Taken};
use super::wait::{Look, Soon};
use crate::error::Result;
use crate::leases::Ticket;
use std::time::Instant;

/// What a look for the next message gives.
pub(super) enum Popped {
    Taken(Taken),
    /// Nothing is ready; the first deferred message will be at this time, if there is one.
    Nothing(Option<Instant>),
}

impl Engine {
    /// The next message, if there is one.
    pub(crate) fn pop(&self) -> Result<Option<Taken>> {
        match self.try_pop()? {
            Popped::Taken(taken) => Ok(Some(taken)),
            Popped::Nothing(_) => Ok(None),
        }
    }

    fn try_pop(&self) -> Result<Popped> {
        loop {
            let mut deliver = self.deliver.lock();
            let settled = deliver.silently_settled;
            let leased = deliver.lease_next(self.newest_published());
            let settled_some = deliver.silently_settled > settled;
            let asks = deliver.asks_for_sync();
            let next_time = deliver.deferred.next_time();
            drop(deliver);
            if asks {
                self.worker.sync_answers();
            }
            if settled_some {
                self.settled.wake_all();
                self.worker.ask();
            }
            let Some(leased) = leased? else { return Ok(Popped::Nothing(next_time)) };
            if let Some(taken) = self.copy_out(leased)? {
                return Ok(Popped::Taken(taken));
            }
        }
    }

    /// Waits until there is a message to pop; `None` once `deadline` has passed.
    pub(crate) fn pop_until(&self, deadline: Option<Instant>) -> Result<Option<Taken>> {
        let registered = || self.reader_registered();
        let look = || self.look_for_message();
        let found = self.readers.wait_until(0, Soon::Perhaps, deadline, registered, look);
        self.pass_on();
        found.transpose()
    }

    /// To be called between registering with `readers` and looking: pushes ask for waiters under the
    /// `append` lock, answers under `deliver`, which looking takes.
    pub(super) fn reader_registered(&self) {
        drop(self.append.lock());
    }

    pub(super) fn look_for_message(&self) -> Look<Result<Taken>> {
        match self.try_pop() {
            Ok(Popped::Taken(taken)) => Look::Found(Ok(taken)),
            Ok(Popped::Nothing(None)) => Look::NotYet,
            Ok(Popped::Nothing(Some(time))) => Look::NotBefore(time),
            Err(error) => Look::Found(Err(error)),
        }
    }

    /// Whoever stops waiting wakes another waiting consumer, if there may be something for it: a
    /// message, or the time of a deferred one to wait for.
    pub(super) fn pass_on(&self) {
        // Whoever is woken looks for itself, so a hint is enough.
        if self.readers.has_waiters() && self.deliver.lock().has_more(self.newest_published()) {
            self.readers.wake_one();
        }
    }

    /// Up to `limit` messages, under one lock.
    pub(crate) fn pop_batch(&self, limit: usize) -> Result<Vec<Taken>> {
        let mut batch = Vec::new();
        let mut failed = None;
        let mut deliver = self.deliver.lock();
        deliver.check_open()?;
        let settled = deliver.silently_settled;
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
        let settled_some = deliver.silently_settled > settled;
        let asks = deliver.asks_for_sync();
        drop(deliver);
        if asks {
            self.worker.sync_answers();
        }
        if settled_some {
            self.settled.wake_all();
            self.worker.ask();
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
            self.settled.wake_keys(leased.seq..=leased.seq);
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
        let mut settled = Vec::new();
        let mut deliver = self.deliver.lock();
        let is_waited_for = answer == Answer::Ack && self.settled.has_waiters();
        for ticket in tickets {
            match deliver.settle(ticket, answer) {
                Ok(one) => {
                    is_done |= one.is_done;
                    settled.extend(is_waited_for.then_some(one.seq));
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let returns = answer != Answer::Ack || first_error.is_some();
        let has_readers = returns && self.readers.has_waiters();
        let (asks, number) = (deliver.asks_for_sync(), deliver.change_count());
        drop(deliver);
        if is_done {
            self.worker.ask();
        }
        if asks {
            self.worker.sync_answers();
        }
        if has_readers {
            self.readers.wake_one();
        }
        for seq in settled {
            self.settled.wake_keys(seq..=seq);
        }
        first_error.map_or(Ok(()), Err)?;
        if answer == Answer::Ack { self.wait_answers(number) } else { Ok(()) }
    }

    /// With `sync_acks`: returns when change number `number`, and all before it, are on the disk.
    pub(super) fn wait_answers(&self, number: u64) -> Result<()> {
        if self.options.sync_acks { self.wait_acks(number) } else { Ok(()) }
    }

    /// Counts the slots of earlier runs, as far as they can be read; tells the first error.
    pub(super) fn count_old_tracks(&self) -> Result<()> {
        self.deliver.lock().count_again();
        let mut result = Ok(());
        loop {
            let counted = self.deliver.lock().count_some();
            match counted {
                Ok(true) => {}
                Ok(false) => return result,
                Err(error) => result = result.and(Err(error)),
            }
        }
    }
}
