//! What holds the disk.

use super::Engine;
use super::deliver::Deliver;
use crate::clock;
use crate::error::Result;
use crate::format::slot::{SLOT, State};
use crate::seq::Seq;
use crate::stuck::{MessageState, Stuck};
use std::time::Duration;

impl Engine {
    /// The first `limit` segments in which something is owed, and the oldest message in each.
    pub(crate) fn stuck(&self, limit: usize) -> Result<Vec<Stuck>> {
        self.count_old_tracks()?;
        let used = |append: &super::append::Append| {
            append.active.as_ref().map_or(0, crate::log::active::Active::record_bytes)
        };
        let (mut all, mut from) = (Vec::new(), 0);
        while all.len() < limit {
            // One at a time: to find a message may take a while.
            let append = self.append.lock();
            let mut deliver = self.deliver.lock();
            deliver.check_open()?;
            let (published, used) = (self.newest_published(), used(&append));
            drop(append);
            deliver.take_back_due();
            let found = deliver.stuck_from(from, published, used, self.clock.now());
            self.unlock(deliver);
            let Some((stuck, next)) = found? else { break };
            from = next;
            all.extend(stuck);
        }
        Ok(all)
    }
}

impl Deliver {
    /// The first segment from message `from` on in which something is owed, if it can be read, and where to go on.
    fn stuck_from(
        &mut self,
        from: u64,
        published: u64,
        used: u64,
        now: u64,
    ) -> Result<Option<(Option<Stuck>, u64)>> {
        let is_next =
            |track: &super::track::Track| track.first_seq >= from && track.owed(published) > 0;
        let Some(at) = self.tracks.iter().position(is_next) else { return Ok(None) };
        self.mind_maps();
        let track = &mut self.tracks[at];
        let next = track.first_seq + 1;
        let messages = track.owed(published);
        let live_bytes = track.live_record_bytes(used) + messages * SLOT;
        let held_bytes = track.segment.header.size.saturating_sub(live_bytes);
        let (path, base_time) = (track.segment.path.clone(), track.base_time);
        let Some((index, slot, header)) = track.oldest(published) else {
            return Ok(Some((None, next)));
        };
        let Some(seq) = track.seq(index)? else { return Ok(Some((None, next))) };
        let delay = track.map()?.delay(index, base_time)?;
        let state = match self.waiting_until(seq, slot, delay) {
            Some(0) => MessageState::Ready,
            Some(_) => MessageState::Delayed,
            None if slot.state == State::Dying => MessageState::Dying,
            None => MessageState::InFlight,
        };
        let pushed_at = base_time + u64::from(header.age);
        let stuck = Stuck {
            seq: Seq(seq),
            pushed_at: clock::system_time(pushed_at),
            age: Duration::from_millis(now.saturating_sub(pushed_at)),
            attempts: slot.attempts,
            state,
            path,
            messages,
            live_bytes,
            held_bytes,
        };
        Ok(Some((Some(stuck), next)))
    }
}
