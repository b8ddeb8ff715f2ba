//! Dropping all that waits in the oldest segment, to make room for new messages.

use super::Dispatch;
use crate::engine::backlog::cursor::Cursor;
use crate::engine::backlog::track::Track;
use crate::error::Result;

/// Messages dropped under one lock.
const MESSAGES_A_STEP: usize = 4096;

/// How far dropping a segment has got.
#[derive(Debug)]
pub(crate) struct Dropping {
    cursor: Cursor,
    first_seq: u64,
    last_seq: u64,
    dropped: u64,
    /// Nothing that waits is left there.
    is_whole: bool,
}

impl Dropping {
    /// The oldest segment behind message `after` that can be let go once what waits in it is
    /// dropped.
    pub(crate) fn of_oldest(dispatch: &Dispatch, after: Option<u64>) -> Option<Self> {
        let is_behind = |track: &&Track| after.is_none_or(|after| track.first_seq() > after);
        let track = can_be_let_go(dispatch).find(is_behind)?;
        let (first_seq, last_seq) = (track.first_seq(), track.end_seq(0) - 1);
        let (cursor, dropped) = (Cursor::start_of(track), 0);
        Some(Self { cursor, first_seq, last_seq, dropped, is_whole: false })
    }

    /// The bytes of all segments that can be let go once what waits in them is dropped.
    pub(crate) fn bytes(dispatch: &Dispatch) -> u64 {
        can_be_let_go(dispatch).map(Track::size).sum()
    }

    /// Drops some of what waits in the segment; false once nothing is left there, or once a
    /// consumer has taken some of it: then no room is made by dropping the rest.
    pub(crate) fn drop_some(&mut self, dispatch: &mut Dispatch) -> Result<bool> {
        if !can_be_let_go(dispatch).any(|track| track.first_seq() == self.first_seq) {
            return Ok(false);
        }
        let Self { cursor, last_seq, dropped, .. } = self;
        let has_more = dispatch.settle_on_walk(cursor, *last_seq, MESSAGES_A_STEP, |counts| {
            counts.dropped += 1;
            *dropped += 1;
        })?;
        self.is_whole = !has_more;
        Ok(has_more)
    }

    /// Whether all that waited in the segment was dropped: no consumer came in between.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
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

/// The segments that can be let go once what waits in them is dropped: not the newest, and nothing
/// of them is in flight, dying or set aside.
fn can_be_let_go(dispatch: &Dispatch) -> impl Iterator<Item = &Track> {
    let ledger = dispatch.ledger();
    let tracks = ledger.backlog().tracks();
    let older = tracks.iter().take(tracks.len().saturating_sub(1));
    older.filter(|track| {
        let seqs = track.first_seq()..track.end_seq(0);
        let is_free = track.leased() == 0 && !track.copying().is_pinned() && !seqs.is_empty();
        is_free && !ledger.places().holds_any_in(seqs)
    })
}
