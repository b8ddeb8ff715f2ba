//! Whether a message is settled, for whoever pushed it.
//!
//! Promises: says that a message is settled only if it was; what became of a number that no segment
//! has any more is told from the log and CHECKPOINT, and where they do not know, that is the answer.

use super::Engine;
use super::deliver::Deliver;
use super::wait::{Look, Soon};
use crate::error::{Error, Result};
use crate::format::slot::State;
use crate::seq::Seq;
use std::time::Instant;

impl Engine {
    /// Whether message `seq` will never be handed out again.
    pub(crate) fn is_settled(&self, seq: u64) -> Result<bool> {
        let mut deliver = self.deliver.lock();
        deliver.check_open()?;
        // Read under the lock, so that the track of the newest message is there.
        let published = self.newest_published();
        deliver.mind_maps();
        deliver.is_settled(seq, published)
    }

    /// Waits until message `seq` will never be handed out again; false once `deadline` has passed.
    pub(crate) fn wait_settled(&self, seq: u64, deadline: Option<Instant>) -> Result<bool> {
        let look = || match self.is_settled(seq) {
            Ok(false) => Look::NotYet,
            found => Look::Found(found),
        };
        // Whoever settles asks for waiters under the `deliver` lock, which looking takes.
        let found = self.settled.wait_until(seq, Soon::Perhaps, deadline, || (), look);
        found.unwrap_or(Ok(false))
    }
}

impl Deliver {
    fn is_settled(&mut self, seq: u64, published: u64) -> Result<bool> {
        let unknown = Err(Error::UnknownSeq { seq: Seq(seq) });
        if seq == 0 || seq > published {
            return unknown;
        }
        let has_it = |track: &&mut super::track::Track| seq < track.end_seq(published);
        let at = self.position_of_seq(seq).unwrap_or(0);
        let has_it = |track: &&mut super::track::Track| track.first_seq <= seq && has_it(track);
        let Some(track) = self.tracks.get_mut(at).filter(has_it) else {
            return if self.losses.unaccounted.contains(seq) { unknown } else { Ok(true) };
        };
        // What a copy does not have was settled before it was made, unless its number is lost.
        let Some(index) = track.index_of(seq)? else {
            self.count_all_of(at)?;
            return if self.losses.unaccounted.contains(seq) { unknown } else { Ok(true) };
        };
        let is_old = self.run.is_old(seq);
        // A slot that is unreadable is owed.
        match track.map()?.slot(index)? {
            Some(slot) if slot.state == State::Lost => unknown,
            slot => Ok(slot.is_some_and(|slot| slot.is_settled(is_old))),
        }
    }
}
