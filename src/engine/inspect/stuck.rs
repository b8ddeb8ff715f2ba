//! What holds the disk.

use super::Inspect;
use crate::engine::backlog::track::Track;
use crate::engine::dispatch::{Dispatch, Whereabouts};
use crate::error::Result;
use crate::format::standing::Run;
use crate::log::sealed::Status;
use crate::seq::Seq;
use crate::stuck::{MessageState, Stuck};
use crate::time::Time;

/// What is the same for all segments of one look.
#[derive(Clone, Copy)]
struct Now {
    published: u64,
    /// Bytes of the records in the active segment.
    used: u64,
    time: Time,
    run: Run,
}

impl Inspect {
    /// The first `limit` segments with an unsettled message, and the oldest message in each.
    pub(crate) fn stuck(&self, limit: usize) -> Result<Vec<Stuck>> {
        let (mut all, mut from) = (Vec::new(), 0);
        while all.len() < limit {
            // One at a time: to find a message may take a while.
            let unsealed = self.appender.unsealed();
            let dispatch = self.dispatch.lock();
            let used = unsealed.active_record_bytes();
            drop(unsealed);
            dispatch.check_open()?;
            let (published, time) = (self.published.newest(), self.context.clock.now());
            let now = Now { published, used, time, run: self.context.run };
            let found = stuck_from(&dispatch, from, now);
            drop(dispatch);
            let Some((stuck, next)) = found? else { break };
            from = next;
            all.extend(stuck);
        }
        Ok(all)
    }
}

/// The first segment from message `from` on with an unsettled message, if that can be read, and
/// where to go on.
fn stuck_from(dispatch: &Dispatch, from: u64, now: Now) -> Result<Option<(Option<Stuck>, u64)>> {
    let is_next = |track: &Track| track.first_seq() >= from && track.unsettled(now.published) > 0;
    let tracks = dispatch.backlog().tracks();
    let Some(at) = tracks.iter().position(is_next) else { return Ok(None) };
    let track = dispatch.backlog().track_at(at);
    let next = track.first_seq() + 1;
    let messages = track.unsettled(now.published);
    let (live_bytes, _) = track.live_and_dead_bytes(now.published, now.used);
    let held_bytes = track.size().saturating_sub(live_bytes);
    let (path, base_time) = (track.segment().path.clone(), track.base_time());
    let Some((index, _, header)) = track.records().oldest(now.published) else {
        return Ok(Some((None, next)));
    };
    let is_counted = track.is_counted_at(index);
    let status: Status = track.status(index, now.run)?;
    let Some(seq) = status.seq else { return Ok(Some((None, next))) };
    let state = match dispatch.ledger().whereabouts(seq, &status, is_counted) {
        Whereabouts::Ready => MessageState::Ready,
        Whereabouts::Delayed(_) => MessageState::Delayed,
        Whereabouts::Dying => MessageState::Dying,
        Whereabouts::InFlight | Whereabouts::Settled => MessageState::InFlight,
    };
    let pushed_at = header.pushed_at(base_time);
    let stuck = Stuck {
        seq: Seq(seq),
        pushed_at: pushed_at.into(),
        age: now.time.since(pushed_at).into(),
        attempts: status.slot.attempts,
        state,
        path,
        messages,
        live_bytes,
        held_bytes,
    };
    Ok(Some((Some(stuck), next)))
}
