//! What the room of the dead letters does in a queue where messages die.
//!
//! Promises: a message that is dying stays with its queue until it is settled there, however often
//! moving it fails. Decides nothing: `dead_letters.rs`, which knows both queues, leads.

use super::backlog::{Body, FoundMessage};
use super::context::Context;
use super::dispatch::repair::look_up;
use super::dispatch::{Death, DyingMessage, Ledger, Whereabouts};
use super::signal::DispatchLock;
use crate::error::Result;
use crate::format::slot::State;
use crate::leases::Place;
use crate::time::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Messages looked up under one lock.
const LOOKED_UP_AT_ONCE: usize = 64;
/// Messages settled under one lock.
const SETTLED_AT_ONCE: usize = 256;

/// A message by its Seq and the time of its push. The Seq alone would not do: an old `dead/` may be
/// beside a new queue, whose Seqs began at 1 again.
pub(crate) type Identity = (u64, Time);

/// The messages of a queue that are on their way to the dead letters.
#[derive(Debug)]
pub(crate) struct DyingMessages {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
}

/// Some messages that wait to be moved.
pub(crate) struct DyingStep {
    pub(crate) messages: Vec<DyingMessage>,
    /// The last Seq that was looked at, and how many were.
    pub(crate) last: u64,
    pub(crate) looked_at: usize,
    /// The first error: that message could not be read.
    pub(crate) result: Result<()>,
}

impl DyingMessages {
    pub(super) fn new(context: &Arc<Context>, dispatch: &Arc<DispatchLock>) -> Self {
        Self { context: Arc::clone(context), dispatch: Arc::clone(dispatch) }
    }

    /// How many are not settled.
    pub(crate) fn count(&self) -> u64 {
        self.dispatch.lock().ledger().places().dying().count()
    }

    /// Bytes of the segment that one of them is in.
    pub(crate) fn segment_bytes(&self, seq: u64) -> u64 {
        let dispatch = self.dispatch.lock();
        let tracks = dispatch.backlog().tracks();
        tracks.position_of_seq(seq).map_or(0, |at| tracks[at].size())
    }

    /// Returns true if messages wait to be moved or, with `durably`, were moved and are not settled
    /// for good.
    pub(crate) fn are_pending(&self, durably: bool) -> bool {
        let dispatch = self.dispatch.lock();
        let dying = dispatch.ledger().places().dying();
        dying.has_waiting() || durably && dying.has_moved()
    }

    /// Whether some were moved, and are not settled for good.
    pub(crate) fn has_moved(&self) -> bool {
        self.dispatch.lock().ledger().places().dying().has_moved()
    }

    /// Some of those behind `after` that wait to be moved; `None` if there are none. One that
    /// cannot be read does not hold up the others.
    pub(crate) fn next(&self, after: u64) -> Option<DyingStep> {
        let mut dispatch = self.dispatch.lock();
        let ledger = dispatch.ledger_mut();
        let waiting = ledger.places().dying().waiting_behind(after, LOOKED_UP_AT_ONCE);
        let maps_before = ledger.backlog().activity().maps_made();
        let last = *waiting.first()?;
        let mut step = DyingStep { messages: Vec::new(), last, looked_at: 0, result: Ok(()) };
        for seq in waiting {
            (step.last, step.looked_at) = (seq, step.looked_at + 1);
            match look_up_dying(ledger, seq) {
                Ok(message) => step.messages.extend(message),
                Err(error) => step.result = step.result.and(Err(error)),
            }
            if ledger.backlog().activity().has_made_most(maps_before) {
                break;
            }
        }
        Some(step)
    }

    /// Notes the messages that earlier runs moved, with their Seqs among the dead letters. A power
    /// cut may have undone the state *dying* in their slots: it is set again, unless a consumer has
    /// the message. Returns those of them that are not settled here.
    pub(crate) fn note_earlier(
        &self,
        origins: BTreeMap<Identity, u64>,
    ) -> Result<BTreeMap<Identity, u64>> {
        let mut unsettled = BTreeMap::new();
        for (message, there) in origins {
            if self.note_earlier_death(message, there)? {
                unsettled.insert(message, there);
            }
        }
        Ok(unsettled)
    }

    /// Returns false if the message is settled, or was never in this queue.
    fn note_earlier_death(&self, (seq, pushed_at): Identity, there: u64) -> Result<bool> {
        if !self.context.run.is_old(seq) {
            return Ok(false);
        }
        let mut dispatch = self.dispatch.lock();
        let ledger = dispatch.ledger_mut();
        let Some(found) = look_up(ledger, seq)? else { return Ok(false) };
        let track = ledger.backlog().track_at(found.spot.at);
        if track.segment().push_time(&found.header, track.base_time()).utc() != pushed_at {
            return Ok(false);
        }
        let whereabouts = ledger.whereabouts_of(&found)?;
        if matches!(whereabouts, Whereabouts::Ready | Whereabouts::Delayed(_)) {
            ledger.die(found.spot, &found.place, Death { cause: None, reason: None })?;
        }
        ledger.places_mut().dying_mut().move_to(seq, there);
        Ok(true)
    }

    /// A message has this Seq among the dead letters now. False if it is not dying any more.
    pub(crate) fn note_moved(&self, seq: u64, there: u64) -> bool {
        self.dispatch.lock().ledger_mut().places_mut().dying_mut().move_to(seq, there)
    }

    /// The payload of a dying message is damaged.
    pub(crate) fn lose(&self, place: Place) -> Result<()> {
        let mut dispatch = self.dispatch.lock();
        let ledger = dispatch.ledger_mut();
        if let Some((spot, place)) = ledger.backlog().find_place(place)? {
            ledger.lose(spot, place.offset)?;
        }
        Ok(())
    }

    /// A newer version of keepq wrote it: it stays as it is.
    pub(crate) fn set_aside(&self, place: Place) -> Result<()> {
        let mut dispatch = self.dispatch.lock();
        let ledger = dispatch.ledger_mut();
        if let Some((spot, place)) = ledger.backlog().find_place(place)? {
            ledger.set_aside(spot, &place);
        }
        Ok(())
    }

    /// Settles the messages that were moved up to Seq `there` among the dead letters, because they
    /// are durable there. Returns the number of the change that has to be durable before any of
    /// them is shown. Goes on after an error, and returns the first.
    pub(crate) fn settle_moved(&self, there: u64) -> (u64, Result<()>) {
        let (mut after, mut result) = (0, Ok(()));
        loop {
            let mut dispatch = self.dispatch.lock();
            let ledger = dispatch.ledger_mut();
            let moved = ledger.places().dying().moved_between(after, there, SETTLED_AT_ONCE);
            if moved.is_empty() {
                return (ledger.backlog().changes().newest(), result);
            }
            let maps_before = ledger.backlog().activity().maps_made();
            for (seq, number) in moved {
                after = number;
                result = result.and(settle_moved(ledger, seq, number));
                if ledger.backlog().activity().has_made_most(maps_before) {
                    break;
                }
            }
        }
    }

    /// The first Seq among the dead letters that must not be shown. `is_durable`: whether what was
    /// settled is durable.
    pub(crate) fn first_hidden(&self, is_durable: bool) -> u64 {
        let mut dispatch = self.dispatch.lock();
        let dying = dispatch.ledger_mut().places_mut().dying_mut();
        if is_durable {
            dying.forget_unsynced();
        }
        dying.first_moved()
    }
}

/// A message that waits to be moved; `None` if nothing is left to be moved: it was found damaged.
fn look_up_dying(ledger: &mut Ledger, seq: u64) -> Result<Option<DyingMessage>> {
    let Some(found) = look_up(ledger, seq)? else {
        ledger.places_mut().dying_mut().remove(seq);
        return Ok(None);
    };
    let Some(death) = ledger.places().dying().death(seq) else { return Ok(None) };
    let (pushed_at, body) = Body::of_found(ledger.backlog().track_at(found.spot.at), &found)?;
    let FoundMessage { place, header, .. } = found;
    Ok(Some(DyingMessage { place, header, pushed_at, body, death }))
}

/// A message that has this number among the dead letters is durable there: it is settled here.
fn settle_moved(ledger: &mut Ledger, seq: u64, there: u64) -> Result<()> {
    let is_new = match look_up(ledger, seq)? {
        Some(found) => ledger.settle(found.spot, &found.place, State::Dead)?,
        None => false,
    };
    ledger.counts_mut().dead_lettered += u64::from(is_new);
    let dying = ledger.places_mut().dying_mut();
    dying.remove(seq);
    dying.note_settled(there);
    Ok(())
}
