//! What holds the disk.

use super::Inspect;
use crate::engine::backlog::Spot;
use crate::engine::backlog::records::{Oldest, Search};
use crate::engine::backlog::track::Track;
use crate::engine::dispatch::{Dispatch, Whereabouts};
use crate::error::Result;
use crate::format::standing::Run;
use crate::seq::Seq;
use crate::stuck::{MessageState, Stuck};
use crate::time::{Shift, Time};
use std::path::PathBuf;

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
        // What is pushed from here on is not looked at: or else the newest segment might be seen
        // again and again.
        let published = self.published.newest();
        while all.len() < limit {
            // One at a time: to find a message may take a while.
            let unsealed = self.appender.unsealed();
            let dispatch = self.dispatch.lock();
            let used = unsealed.active_record_bytes();
            drop(unsealed);
            dispatch.check_open()?;
            let time = self.context.clock.now();
            let now = Now { published, used, time, run: self.context.run };
            let found = look_from(&dispatch, from, now);
            drop(dispatch);
            match found? {
                StuckStep::Seen(seen) => {
                    from = seen.end_seq;
                    // A copy of segments that were seen already stands for them, too.
                    all.retain(|stuck: &Stuck| stuck.seq.0 < seen.first_seq);
                    all.extend(seen.stuck(now));
                }
                StuckStep::Unreadable(end_seq) => from = end_seq,
                StuckStep::More => {}
                StuckStep::End => break,
            }
        }
        Ok(all)
    }
}

/// What a step of the look gives.
enum StuckStep {
    Seen(Box<Seen>),
    /// The oldest message of a segment cannot be read: on with the one behind it.
    Unreadable(u64),
    /// Nothing yet: others should have their turn.
    More,
    End,
}

/// A segment with an unsettled message; the record of its oldest one is not looked at yet.
struct Seen {
    oldest: Oldest,
    seq: u64,
    attempts: u32,
    state: MessageState,
    base_time: Time,
    clock_shift: Shift,
    path: PathBuf,
    messages: u64,
    live_bytes: u64,
    held_bytes: u64,
    /// The messages that the segment may have; the look goes on behind them.
    first_seq: u64,
    end_seq: u64,
}

impl Seen {
    /// To be called outside of the lock: to find a record may take a while.
    fn stuck(self, now: Now) -> Option<Stuck> {
        let pushed_at = self.oldest.header()?.pushed_at(self.base_time);
        let Self { seq, attempts, state, path, messages, live_bytes, held_bytes, .. } = self;
        Some(Stuck {
            seq: Seq(seq),
            pushed_at: pushed_at.utc(self.clock_shift).into(),
            age: now.time.since(pushed_at).into(),
            attempts,
            state,
            path,
            messages,
            live_bytes,
            held_bytes,
        })
    }
}

/// A step of the look at the first segment from message `from` on with an unsettled message.
fn look_from(dispatch: &Dispatch, from: u64, now: Now) -> Result<StuckStep> {
    let published = now.published;
    let is_next =
        |track: &&Track| track.end_seq(published) > from && track.unsettled(published) > 0;
    let mut tracks = dispatch.backlog().tracks().iter().enumerate();
    let Some((at, track)) = tracks.find(|(_, track)| is_next(track)) else {
        return Ok(StuckStep::End);
    };
    let (first_seq, end_seq) = (track.first_seq(), track.end_seq(published));
    let oldest = match track.records().oldest(published) {
        Search::Found(oldest) => oldest,
        Search::Nothing => return Ok(StuckStep::Unreadable(end_seq)),
        Search::More => return Ok(StuckStep::More),
    };
    let status = track.status(oldest.index(), now.run)?;
    let Some(seq) = status.seq else { return Ok(StuckStep::Unreadable(end_seq)) };
    let spot = Spot { at, index: oldest.index() };
    let state = match dispatch.ledger().whereabouts(spot, seq, &status) {
        Whereabouts::Ready => MessageState::Ready,
        Whereabouts::Delayed(_) => MessageState::Delayed,
        Whereabouts::Dying => MessageState::Dying,
        Whereabouts::SetAside => MessageState::SetAside,
        Whereabouts::InFlight | Whereabouts::Settled => MessageState::InFlight,
    };
    let (live_bytes, _) = track.live_and_dead_bytes(now.published, now.used);
    Ok(StuckStep::Seen(Box::new(Seen {
        oldest,
        seq,
        attempts: status.slot.attempts,
        state,
        base_time: track.base_time(),
        clock_shift: track.segment().header.clock_shift,
        path: track.segment().path.clone(),
        messages: track.unsettled(published),
        live_bytes,
        held_bytes: track.size().saturating_sub(live_bytes),
        first_seq,
        end_seq,
    })))
}
