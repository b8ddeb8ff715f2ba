//! What the room of the dead letters does in a queue where messages die.
//!
//! Promises: a message that is dying stays with its queue until it is settled there, however often
//! moving it fails. Decides nothing: `dead_letters.rs`, which knows both queues, leads.

use super::context::Context;
use super::dispatch::DyingMessage;
use super::signal::DispatchLock;
use crate::error::Result;
use crate::leases::Place;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Messages looked up under one lock.
const STEP: usize = 64;

/// The messages of a queue that are on their way to the dead letters.
#[derive(Debug)]
pub(crate) struct DyingMessages {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
}

impl DyingMessages {
    pub(super) fn new(context: &Arc<Context>, dispatch: &Arc<DispatchLock>) -> Self {
        Self { context: Arc::clone(context), dispatch: Arc::clone(dispatch) }
    }

    /// How many are not settled.
    pub(crate) fn count(&self) -> u64 {
        self.dispatch.lock().dying().count()
    }

    /// Whether some wait to be moved, or, `durably`, were moved and are not settled for good.
    pub(crate) fn are_pending(&self, durably: bool) -> bool {
        let dispatch = self.dispatch.lock();
        dispatch.dying().has_waiting() || durably && dispatch.dying().has_moved()
    }

    /// Whether some were moved, and are not settled for good.
    pub(crate) fn has_moved(&self) -> bool {
        self.dispatch.lock().dying().has_moved()
    }

    /// Some of those behind `after` that wait to be moved, and the last Seq that was looked at.
    pub(crate) fn next(&self, after: u64) -> Result<(Vec<DyingMessage>, Option<u64>)> {
        self.dispatch.lock().next_dying(after, STEP)
    }

    /// Messages of earlier runs that were moved then have these Seqs among the dead letters. A
    /// power cut may have undone that their slots said *dying*: they are so again, unless a
    /// consumer has them.
    pub(crate) fn note_earlier(&self, origins: &BTreeMap<u64, u64>) -> Result<()> {
        for (&seq, &there) in origins {
            if self.context.run.is_old(seq) {
                self.dispatch.lock().note_earlier_death(seq, there)?;
            }
        }
        Ok(())
    }

    /// A message has this Seq among the dead letters now.
    pub(crate) fn note_moved(&self, seq: u64, there: u64) {
        self.dispatch.lock().dying_mut().move_to(seq, there);
    }

    /// The payload of a dying message is damaged.
    pub(crate) fn lose(&self, place: Place) -> Result<()> {
        self.dispatch.lock().lose_place(place)
    }

    /// A newer version of keepq wrote it: it stays as it is.
    pub(crate) fn set_aside(&self, place: Place) -> Result<()> {
        self.dispatch.lock().set_dying_aside(place)
    }

    /// All that were moved up to this Seq among the dead letters are durable there: they are
    /// settled here. Tells the number of the change that has to be durable before any of them is
    /// shown. Goes on after an error, and tells the first.
    pub(crate) fn settle_moved(&self, there: u64) -> (u64, Result<()>) {
        let mut dispatch = self.dispatch.lock();
        let settled = dispatch.settle_moved(there);
        (dispatch.backlog().change_count(), settled)
    }

    /// What was settled is durable, or (false) may not be. Tells the first Seq among the dead
    /// letters that must not be shown.
    pub(crate) fn first_hidden(&self, is_durable: bool) -> u64 {
        let mut dispatch = self.dispatch.lock();
        if is_durable {
            dispatch.dying_mut().forget_unsynced();
        }
        dispatch.dying().first_moved()
    }
}
