//! Dying messages on their way to the dead letters, under the dispatch lock.

use super::dying::{Death, DyingMessage};
use super::exchange::Body;
use super::{Dispatch, Whereabouts};
use crate::engine::backlog::Found;
use crate::error::Result;
use crate::format::slot::State;
use crate::leases::Place;

impl Dispatch {
    /// Some of those behind `after` that wait to be moved, and the last Seq that was looked at.
    pub(crate) fn next_dying(
        &mut self,
        after: u64,
        most: usize,
    ) -> Result<(Vec<DyingMessage>, Option<u64>)> {
        let waiting = self.dying.waiting_behind(after, most);
        let last = waiting.last().copied();
        let mut messages = Vec::new();
        for seq in waiting {
            // What turns out to be damaged is lost, and nothing is left to be moved.
            let Some(found) = self.look_up(seq)? else {
                self.dying.remove(seq);
                continue;
            };
            let Some(death) = self.dying.death(seq) else { continue };
            let Found { spot, place, header, .. } = found;
            let track = self.backlog.track_at(spot.at);
            let pushed_at = track.base_time() + u64::from(header.age);
            let body = Body::of(track.map()?, &header, place.offset);
            messages.push(DyingMessage { place, header, pushed_at, body, death });
        }
        Ok((messages, last))
    }

    /// A message of an earlier run was moved then: it has this Seq among the dead letters. If it is
    /// not settled, and no consumer has it, it is dying, whatever its slot says.
    pub(crate) fn note_earlier_death(&mut self, seq: u64, there: u64) -> Result<()> {
        if let Some(found) = self.look_up(seq)? {
            let is_counted = self.backlog.track_at(found.spot.at).is_counted_at(found.spot.index);
            let whereabouts = self.whereabouts_of(&found, is_counted)?;
            if matches!(whereabouts, Whereabouts::Ready | Whereabouts::Delayed(_)) {
                self.die(found.spot, &found.place, Death { cause: None, reason: None })?;
            }
            self.dying.move_to(seq, there);
        }
        Ok(())
    }

    /// The payload of a dying message is damaged.
    pub(crate) fn lose_place(&mut self, place: Place) -> Result<()> {
        if let Some((spot, place)) = self.backlog.find_place(place)? {
            self.lose(spot, place.offset)?;
        }
        Ok(())
    }

    /// A dying message is of a newer version of keepq: it stays as it is.
    pub(crate) fn set_dying_aside(&mut self, place: Place) -> Result<()> {
        if let Some((spot, place)) = self.backlog.find_place(place)? {
            self.dying.remove(place.seq);
            self.note_newer(spot, place.seq, place.offset);
        }
        Ok(())
    }

    /// All that were moved up to this Seq among the dead letters are durable there, and so settled
    /// here. Goes on after an error, and tells the first.
    pub(crate) fn settle_moved(&mut self, there: u64) -> Result<()> {
        let mut result = Ok(());
        for (seq, number) in self.dying.moved_up_to(there) {
            let settled = self.look_up(seq).and_then(|found| match found {
                Some(found) => self.settle(found.spot, &found.place, State::Dead),
                None => Ok(false),
            });
            match settled {
                Ok(is_new) => {
                    self.counts.dead_lettered += u64::from(is_new);
                    self.dying.remove(seq);
                    self.dying.settled(number);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }
}
