//! Dropping the oldest messages to make room for new ones.

use super::Dispatch;
use super::exchange::Choice;
use super::progress::{Dropped, Dropping};
use crate::engine::backlog::Met;
use crate::engine::backlog::cursor::Cursor;
use crate::engine::backlog::track::Track;
use crate::error::Result;
use crate::format::slot::State;
use crate::format::standing::Standing;

/// Messages dropped under one lock.
const STEP: usize = 4096;

impl Dispatch {
    /// Drops the message that would be handed out next, or else the next delayed one.
    pub(crate) fn drop_next(&mut self, published: u64) -> Result<Dropped> {
        match self.choose(published)? {
            Choice::Next(next) => {
                let is_new = self.settle_chosen(&next, State::Dead)?;
                self.counts.dropped += u64::from(is_new);
                Ok(if is_new { Dropped::One } else { Dropped::Again })
            }
            Choice::Again => Ok(Dropped::Again),
            Choice::Nothing => self.drop_delayed(),
        }
    }

    fn drop_delayed(&mut self) -> Result<Dropped> {
        let Some((due, seq)) = self.schedule.first() else { return Ok(Dropped::None) };
        let mut is_new = false;
        if let Some(found) = self.look_up(seq)? {
            is_new = self.settle(found.spot, &found.place, State::Dead)?;
            self.counts.dropped += u64::from(is_new);
        }
        self.schedule.remove(due, seq);
        Ok(if is_new { Dropped::One } else { Dropped::Again })
    }

    /// Bytes of the newest segment.
    pub(crate) fn newest_bytes(&self) -> u64 {
        self.backlog.tracks().back().map_or(0, Track::size)
    }

    /// The oldest segment behind message `after` that can be let go once what waits in it is
    /// dropped: not the newest, and nothing of it is in flight or dying.
    pub(crate) fn droppable_segment(&self, after: Option<u64>) -> Option<Dropping> {
        let tracks = self.backlog.tracks();
        let older = tracks.len().saturating_sub(1);
        let mut older = tracks.iter().take(older);
        let track = older.find(|track| {
            let (first_seq, end_seq) = (track.first_seq(), track.end_seq(0));
            let is_behind = after.is_none_or(|after| first_seq > after);
            let is_free = track.leased() == 0 && !track.copying().is_pinned();
            is_behind && is_free && !self.dying.has_any_in(first_seq..end_seq)
        })?;
        let last_seq = track.end_seq(0).saturating_sub(1).max(track.first_seq());
        let (cursor, first_seq) = (Cursor::start_of(track), track.first_seq());
        Some(Dropping { cursor, first_seq, last_seq, dropped: 0 })
    }

    /// Drops some of what waits in a segment; false once nothing is left there.
    pub(crate) fn drop_some(&mut self, dropping: &mut Dropping) -> Result<bool> {
        for _ in 0..STEP {
            let wants = |standing| !matches!(standing, Standing::Dying | Standing::Unreadable);
            match self.backlog.walk(&mut dropping.cursor, dropping.last_seq, wants)? {
                Met::Message(found) => {
                    if self.settle_waiting(&found)? {
                        dropping.dropped += 1;
                        self.counts.dropped += 1;
                    }
                    dropping.cursor.pass_found(&found);
                }
                Met::End => return Ok(false),
                Met::Tired => return Ok(true),
                met => {
                    self.pass_damage(met, &mut dropping.cursor)?;
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }
}
