//! Dead letters that are pushed again.
//!
//! Promises: a letter is durable in its queue before it is settled among the dead letters; no more
//! letters are pushed than asked for; and no call pushes a letter twice, even if another handle
//! closes the dead letters meanwhile.

use super::carried::carried_over;
use crate::engine::{Answer, Engine, LeaseKey, Need, Promise, Taken};
use crate::error::Result;
use crate::format::bytes::to_u64;
use crate::format::extension::Notes;
use std::collections::BTreeSet;
use std::time::Duration;

/// Letters taken at a time, and letters that are passed over at most.
const LETTERS_A_STEP: usize = 64;

/// The progress of one call.
#[derive(Debug)]
pub(super) struct Redrive {
    limit: u64,
    pushed: u64,
    /// The letters that were pushed, and are not settled among the dead letters.
    unsettled: BTreeSet<u64>,
    /// Letters that were taken, and are not to be pushed: held until the end, so that the next look
    /// finds those behind them.
    passed: Vec<LeaseKey>,
}

impl Redrive {
    /// Of up to `limit` letters.
    pub(super) fn of(limit: u64) -> Self {
        Self { limit, pushed: 0, unsettled: BTreeSet::new(), passed: Vec::new() }
    }

    /// How many letters were pushed.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Pushes some letters to `queue`, and settles those that are durable there; false once nothing
    /// is left to do.
    pub(super) fn push_some(&mut self, queue: &Engine, dead: &Engine) -> Result<bool> {
        // Left of earlier steps, if at all: of those, others may have settled some.
        let mut unsettled = BTreeSet::new();
        for &seq in &self.unsettled {
            if !dead.look(|inspect| inspect.is_settled(seq))? {
                unsettled.insert(seq);
            }
        }
        self.unsettled = unsettled;
        let wanted = self.limit - self.pushed + to_u64(self.unsettled.len());
        let step = usize::try_from(wanted).unwrap_or(LETTERS_A_STEP).min(LETTERS_A_STEP);
        // One that another consumer has is not found, however many are taken.
        if step == 0 || self.passed.len() >= LETTERS_A_STEP {
            return Ok(false);
        }
        let mut letters = dead.consumers().pop_batch(step, |letter| letter)?;
        if letters.is_empty() {
            return Ok(false);
        }
        // However long the disk takes: another consumer must not get a letter whose copy is pushed.
        letters.retain(|letter| dead.consumers().extend(letter.key, Duration::MAX).is_ok());
        let (mut here, mut last_seq, mut result) = (Vec::new(), 0, Ok(()));
        for letter in letters {
            let seq = letter.key.ticket.seq();
            let is_wanted = result.is_ok() && self.pushed < self.limit;
            if is_wanted && !self.unsettled.contains(&seq) {
                match push(queue, &letter) {
                    Ok(pushed) => {
                        last_seq = pushed;
                        self.pushed += 1;
                        self.unsettled.insert(seq);
                    }
                    Err(error) => result = Err(error),
                }
            }
            let is_here = self.unsettled.contains(&seq);
            if is_here { &mut here } else { &mut self.passed }.push(letter.key);
        }
        let durable = if last_seq == 0 { Ok(()) } else { queue.commit().wait_durable(last_seq) };
        let close_files = || dead.sync_surplus();
        let settle = |()| dead.consumers().ack(&here, close_files);
        if let Err(error) = durable.and_then(settle) {
            self.passed.append(&mut here);
            return Err(error);
        }
        for key in here {
            self.unsettled.remove(&key.ticket.seq());
        }
        result.map(|()| true)
    }

    /// The dead letters were closed: they have taken the leases back.
    pub(super) fn forget_leases(&mut self) {
        self.passed.clear();
    }

    /// Gives back the letters that are not pushed.
    pub(super) fn end(&mut self, dead: &Engine) -> Result<()> {
        let passed = std::mem::take(&mut self.passed);
        dead.consumers().answer(&passed, &Answer::Release, || dead.sync_surplus())
    }
}

fn push(queue: &Engine, letter: &Taken) -> Result<u64> {
    let Taken { body, payload_start, .. } = letter;
    let (start, payload) = (body.before(*payload_start), body.payload(*payload_start));
    let drafts = [carried_over(start, &Notes::default(), payload)?];
    let need = Need::of(&drafts);
    need.check()?;
    let placed = queue.producers().append(&drafts, need, Promise::PLACED)?;
    Ok(placed.first_seq())
}
