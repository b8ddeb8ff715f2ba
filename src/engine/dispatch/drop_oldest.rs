//! Dropping the oldest messages to make room for new ones.

use super::Dispatch;
use super::exchange::Choice;
use crate::engine::backlog::Found;
use crate::engine::backlog::cursor::Cursor;
use crate::error::Result;
use crate::format::slot::State;

/// Messages dropped under one lock.
const STEP: usize = 4096;

/// How far dropping a segment has got.
#[derive(Debug)]
pub(crate) struct Dropping {
    cursor: Cursor,
    first_seq: u64,
    last_seq: u64,
    dropped: u64,
}

/// What a step of dropping did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dropped {
    One,
    /// Nothing waits.
    None,
    /// Other work first: to be asked again.
    Again,
}

impl Dropping {
    /// The oldest segment behind message `after` that can be let go once what waits in it is
    /// dropped: not the newest, and nothing of it is in flight or dying.
    pub(crate) fn of_oldest(dispatch: &Dispatch, after: Option<u64>) -> Option<Self> {
        let ledger = dispatch.ledger();
        let tracks = ledger.backlog().tracks();
        let older = tracks.len().saturating_sub(1);
        let mut older = tracks.iter().take(older);
        let track = older.find(|track| {
            let seqs = track.first_seq()..track.end_seq(0);
            let is_behind = after.is_none_or(|after| seqs.start > after);
            let is_free = track.leased() == 0 && !track.is_pinned() && !seqs.is_empty();
            is_behind && is_free && !ledger.places().dying().has_any_in(seqs)
        })?;
        let (first_seq, last_seq) = (track.first_seq(), track.end_seq(0) - 1);
        Some(Self { cursor: Cursor::start_of(track), first_seq, last_seq, dropped: 0 })
    }

    /// Drops some of what waits in the segment; false once nothing is left there.
    pub(crate) fn drop_some(&mut self, dispatch: &mut Dispatch) -> Result<bool> {
        let Self { cursor, last_seq, dropped, .. } = self;
        dispatch.settle_on_walk(cursor, *last_seq, STEP, |counts| {
            counts.dropped += 1;
            *dropped += 1;
        })
    }

    /// How many messages were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The first Seq of its segment.
    pub(crate) fn first_seq(&self) -> u64 {
        self.first_seq
    }
}

impl Dispatch {
    /// Drops the message that would be handed out next, or else the next delayed one.
    pub(crate) fn drop_next(&mut self, published: u64) -> Result<Dropped> {
        let is_new = match self.choose(published)? {
            Choice::Next(next) => {
                let found = &next.found;
                let is_new = self.ledger_mut().settle(found.spot, &found.place, State::Dead)?;
                self.leave_chosen(&next);
                is_new
            }
            Choice::Again => false,
            Choice::Nothing => {
                let ledger = self.ledger_mut();
                let Some((due, seq)) = ledger.places().schedule().first() else {
                    return Ok(Dropped::None);
                };
                let found = ledger.look_up(seq)?;
                let settle = |found: Found| ledger.settle(found.spot, &found.place, State::Dead);
                let is_new = found.map_or(Ok(false), settle)?;
                ledger.places_mut().leave_schedule(due, seq);
                is_new
            }
        };
        self.ledger_mut().counts_mut().dropped += u64::from(is_new);
        Ok(if is_new { Dropped::One } else { Dropped::Again })
    }
}
