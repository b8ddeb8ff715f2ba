//! Taking many messages with one call.
//!
//! Promises: a batch is taken in steps, between which other threads have their turn. Messages that
//! lie side by side and are plain go the short way, and share the bytes that they were copied to.

use super::taking::Taking;
use super::{Consumers, MESSAGES_A_STEP, lose};
use crate::engine::dispatch::{
    BodyPlace, Leased, LeasedBatch, LeasedMessage, Leasing, Taken, TakenBody,
};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Messages that were leased under one lock, and are not copied yet.
#[derive(Debug, Default)]
struct LeasedStep {
    batch: Option<LeasedBatch>,
    leased: Vec<Leased>,
    /// The error that ended the step early.
    failed: Option<Error>,
    /// There is nothing to go on with.
    is_over: bool,
}

impl LeasedStep {
    fn len(&self) -> usize {
        self.batch.as_ref().map_or(0, |batch| batch.messages.seqs().count()) + self.leased.len()
    }
}

/// A batch that is being taken.
struct TakeBatch<'a, T, F> {
    consumers: &'a Consumers,
    taking: Taking,
    hand_out: F,
    taken: Vec<T>,
}

impl Consumers {
    /// Up to `limit` messages, as many as there are, each as `hand_out` makes it.
    pub(crate) fn pop_batch<T>(
        &self,
        limit: usize,
        hand_out: impl Fn(Taken) -> T,
    ) -> Result<Vec<T>> {
        let mut tries = self.context.unmapping.tries();
        loop {
            // What is pushed meanwhile, or comes back, is for another batch: or else this one might
            // never end.
            let taking = Taking::up_to(self.published.visible());
            let (hand_out, taken) = (&hand_out, Vec::new());
            match (TakeBatch { consumers: self, taking, hand_out, taken }).up_to(limit) {
                Err(error) => self.clear_the_way(error, &mut tries)?,
                batch => return batch,
            }
        }
    }
}

impl<T, F: Fn(Taken) -> T> TakeBatch<'_, T, F> {
    fn up_to(mut self, limit: usize) -> Result<Vec<T>> {
        loop {
            // Once it has begun, a batch ends no lease: that may be one of its own.
            if self.taken.is_empty() {
                self.consumers.end_due();
            }
            let missing = limit - self.taken.len();
            let step = self.lease_step(missing.min(MESSAGES_A_STEP));
            let complete = self.taken.len() + step.len();
            self.taken.reserve(step.len());
            let mut failed = step.failed;
            if let Some(leased) = step.batch {
                failed = failed.or(self.hand_out_batch(leased).err());
            }
            for leased in step.leased {
                match self.consumers.copy_out(leased) {
                    Ok(taken) => self.taken.extend(taken.map(&self.hand_out)),
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                // What was taken is handed out; the error comes again with the next pop.
                Some(error) if self.taken.is_empty() => return Err(error),
                // Others, for those that were not to be handed out, or because there are more.
                None if self.taken.len() < complete
                    || self.taken.len() < limit && !step.is_over => {}
                _ => return Ok(self.taken),
            }
        }
    }

    /// Leases up to `limit` messages under one lock. Also ends early if they lie in more segments
    /// than may be mapped.
    fn lease_step(&mut self, limit: usize) -> LeasedStep {
        let (mut step, taking) = (LeasedStep::default(), &mut self.taking);
        let mut dispatch = self.consumers.dispatch.lock();
        step.batch = dispatch.short_way().lease_batch(taking.visible(), limit);
        if let Some(batch) = &step.batch {
            taking.note(batch.messages.seqs());
            return step;
        }
        let activity = dispatch.backlog().activity().clone();
        let before = activity.maps_made();
        while step.leased.len() < limit && !activity.has_made_most(before) {
            match dispatch.lease_next_but(taking.visible(), false, |seq| taking.has(seq)) {
                Ok(Leasing::Leased(leased)) => {
                    let seq = leased.ticket.seq();
                    taking.note(seq..seq + 1);
                    step.leased.push(leased);
                }
                Ok(Leasing::Nothing) => {
                    step.is_over = true;
                    break;
                }
                Ok(Leasing::Again) => break,
                Err(error) => {
                    (step.failed, step.is_over) = (Some(error), true);
                    break;
                }
            }
        }
        step
    }

    /// Hands out those of these messages that are whole.
    fn hand_out_batch(&mut self, leased: LeasedBatch) -> Result<()> {
        let LeasedBatch { bytes, messages, base_time, base_in_utc } = leased;
        let (bytes, mut result) = (Arc::new(bytes), Ok(()));
        for LeasedMessage { key, header, body } in messages.each(&bytes) {
            let place = BodyPlace::of(body, &header);
            if !place.of_bytes(&bytes).is_some_and(|body| header.is_of(body)) {
                result = result.and(lose(&self.consumers.dispatch, key.ticket, 1));
                continue;
            }
            if key.is_sample {
                self.consumers.measure(key.ticket, header.pushed_at(base_time));
            }
            let body = TakenBody::Shared(Arc::clone(&bytes), place);
            let pushed_at = header.pushed_at(base_in_utc);
            let taken = Taken { key, attempts: 1, pushed_at, body, payload_start: 0 };
            self.taken.push((self.hand_out)(taken));
        }
        result
    }
}
