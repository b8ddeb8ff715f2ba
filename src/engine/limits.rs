//! What a push does when the queue holds as much as it may.
//!
//! Promises: what is over a limit is refused before anything is written; no more than `max_messages` are owed
//! at any moment. Nobody is dropped, or waited for, where that could not make room enough. Whoever waits
//! for room is woken by what makes some. Relies on `append` to ask, and on `space` for bytes.

use super::compact::Haste;
use super::supply::SMALLEST_SEGMENT;
use super::track::{Track, scheduled_for};
use super::wait::{Look, Soon};
use super::{CHECKPOINT_ROOM, Engine, WhenFull};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::segment::size_for;
use crate::format::slot::{Slot, State};
use crate::log::active::Draft;
use crate::options::Overflow;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Slots looked at under one lock.
const STEP: u32 = 4096;

impl Engine {
    /// Places and publishes `drafts` as one batch, within the limits; gives the Seq of the first, 0 if
    /// they were dropped.
    pub(crate) fn push(
        &self,
        drafts: &[Draft<'_>],
        sync_within: Option<Duration>,
        when_full: WhenFull,
    ) -> Result<u64> {
        let full = match self.append(drafts, sync_within) {
            Err(full @ Error::Full { .. }) => full,
            result => return result,
        };
        let overflow = match (when_full, self.options.overflow) {
            (WhenFull::Fail, _) | (WhenFull::NoWait, Overflow::Block) => Overflow::Reject,
            (WhenFull::NoWait | WhenFull::AsOptions, overflow) => overflow,
        };
        // Where nothing could ever make room enough, nobody is sacrificed or waited for.
        let records = wide(drafts.len());
        let bytes = size_for(drafts.iter().map(Draft::record_len).sum(), records);
        let newest = self.deliver.lock().newest_bytes();
        // The newest segment is not let go before there is a newer one. What dead letters take is not
        // theirs to free who drop the oldest.
        let others = if overflow == Overflow::DropOldest { self.space.of_others() } else { 0 };
        let fixed = newest + 2 * CHECKPOINT_ROOM;
        let could_fit = self.options.max_messages.is_none_or(|max| records <= max)
            && self.space.could_ever_take(bytes.max(SMALLEST_SEGMENT), fixed, others);
        match overflow {
            Overflow::Block if could_fit => self.push_when_there_is_room(drafts, sync_within, full),
            Overflow::DropOldest if could_fit => self.push_over_oldest(drafts, sync_within),
            Overflow::DropNewest => {
                self.deliver.lock().counts.dropped += records;
                Ok(0)
            }
            Overflow::Reject | Overflow::Block | Overflow::DropOldest => Err(full),
        }
    }

    fn push_when_there_is_room(
        &self,
        drafts: &[Draft<'_>],
        sync_within: Option<Duration>,
        full: Error,
    ) -> Result<u64> {
        let deadline =
            self.options.push_timeout.and_then(|timeout| clock::now().checked_add(timeout));
        let look = || match self.append(drafts, sync_within) {
            Err(Error::Full { .. }) => Look::NotYet,
            result => Look::Found(result),
        };
        // Whoever settles asks for waiters under this lock.
        let registered = || drop(self.deliver.lock());
        let pushed = self.space.room.wait_until(0, Soon::No, deadline, registered, look);
        pushed.unwrap_or(Err(full))
    }

    fn push_over_oldest(&self, drafts: &[Draft<'_>], sync_within: Option<Duration>) -> Result<u64> {
        let records = wide(drafts.len());
        // One at a time: what another has dropped may be room enough for this one, too.
        let _alone = self.dropping.lock();
        let mut may_copy = self.options.compaction.is_on;
        loop {
            let full = match self.append(drafts, sync_within) {
                Err(full @ Error::Full { .. }) => full,
                result => return result,
            };
            // For bytes, those of one segment, which is let go then.
            let has_dropped = match full {
                Error::Full { limit: "max_messages", max } => self.drop_oldest(records, max)?,
                _ => self.drop_segment()?,
            };
            if !has_dropped && may_copy {
                // What is being copied cannot be dropped, but will take less.
                may_copy = false;
                self.health.note_background(self.compact_now(Haste::Now, 1).map(|_| ()));
                self.let_segments_go().map_err(Error::before_anything)?;
            } else if !has_dropped {
                return Err(full);
            }
        }
    }

    /// Drops the oldest that wait, ready or delayed, until so many more may be pushed; false, and nothing is
    /// dropped, if there are too few.
    fn drop_oldest(&self, records: u64, max: u64) -> Result<bool> {
        let published = self.newest_published();
        let mut deliver = self.deliver.lock();
        deliver.check_open()?;
        deliver.take_back_due();
        let owed = deliver.owed(published);
        let others = deliver.in_flight() + deliver.dying.count();
        let mut result = Ok(());
        let can_drop = others + records <= max;
        let mut left = if can_drop { (owed + records).saturating_sub(max).max(1) } else { 0 };
        while left > 0 && result.is_ok() {
            match deliver.drop_next(published) {
                Ok(true) => {
                    deliver.counts.dropped += 1;
                    left -= 1;
                }
                Ok(false) => break,
                Err(error) => result = Err(error),
            }
        }
        self.unlock(deliver);
        result.map(|()| can_drop && left == 0)
    }

    /// Drops all that waits in the oldest segment of which nothing else is owed; false if there is none.
    fn drop_segment(&self) -> Result<bool> {
        let (mut after, mut from, mut has_dropped) = (None, None, false);
        loop {
            let mut deliver = self.deliver.lock();
            deliver.check_open()?;
            deliver.take_back_due();
            // One of which nothing could be dropped is left behind.
            let next = from.or_else(|| deliver.droppable_segment(after));
            let Some(seq) = next else { return Ok(false) };
            let before = deliver.counts.dropped;
            let dropped = deliver.drop_some_of(seq);
            has_dropped |= deliver.counts.dropped > before;
            self.unlock(deliver);
            (after, from) = (Some(seq), dropped?);
            if from.is_none() && has_dropped {
                return Ok(true);
            }
        }
    }

    /// Fails if so many more messages would be too many. Called with the `append` lock, so that nobody
    /// pushes meanwhile. `pushed`: in this run.
    pub(super) fn check_count(&self, pushed: u64, records: u64) -> Result<()> {
        let (Some(max), Some(before)) = (self.options.max_messages, self.owed_before.get()) else {
            return Ok(());
        };
        // Relaxed: an older value only says more than is owed.
        let settled = self.settled_count.load(Ordering::Relaxed);
        let owed = (before + pushed).saturating_sub(settled);
        if owed + records > max {
            return Err(Error::Full { limit: "max_messages", max });
        }
        Ok(())
    }

    /// Counts once what earlier runs left, if there is a limit to it.
    pub(super) fn count_for_limit(&self) {
        if self.options.max_messages.is_some() && self.owed_before.get().is_none() {
            // What cannot be read counts as owed.
            self.health.note_background(self.count_old_tracks());
            let append = self.append.lock();
            let deliver = self.deliver.lock();
            let owed = deliver.owed(self.newest_published());
            let settled = self.settled_count.load(Ordering::Relaxed);
            let before = (owed + settled).saturating_sub(append.pushed());
            self.owed_before.get_or_init(|| before);
        }
    }
}

impl super::deliver::Deliver {
    /// Settles the next message that would be handed out, or else the next that is delayed; false if
    /// nothing waits.
    pub(super) fn drop_next(&mut self, published: u64) -> Result<bool> {
        if let Some(next) = self.choose(published)? {
            self.settle_silently(next.at, next.place.index, next.place.offset, State::Dead)?;
            self.leave_queue(&next);
            return Ok(true);
        }
        self.drop_delayed(published)
    }

    /// Bytes of the newest segment.
    fn newest_bytes(&self) -> u64 {
        self.tracks.back().map_or(0, |track| track.segment.header.size)
    }

    /// The first Seq of the oldest segment behind message `after` that can be let go once what waits in it is
    /// dropped: not the newest, and nothing of it is in flight or dying.
    fn droppable_segment(&self, after: Option<u64>) -> Option<u64> {
        let older = self.tracks.len().saturating_sub(1);
        let is_free = |track: &&Track| {
            let end_seq = track.end_seq(0);
            let stays = track.changed.is_some() || track.outlook.has_sources;
            track.leased == 0 && !stays && !self.dying.has_any_in(track.first_seq..end_seq)
        };
        let is_behind = |track: &&Track| after.is_none_or(|after| track.first_seq > after);
        self.tracks.iter().take(older).filter(is_behind).find(is_free).map(|track| track.first_seq)
    }

    /// Settles what waits in some of the slots of the segment that has `seq`, from that on; tells where to go on,
    /// `None` at its end.
    fn drop_some_of(&mut self, seq: u64) -> Result<Option<u64>> {
        let Some(at) = self.position_of_seq(seq) else { return Ok(None) };
        self.count_all_of(at)?;
        let (end, end_seq) = (self.tracks[at].count.unwrap_or(0), self.tracks[at].end_seq(0));
        let from = self.tracks[at].index_from(seq)?;
        for index in from..end.min(from.saturating_add(STEP)) {
            // One whose Seq is not known was lost when it was counted.
            if let Some(seq) = self.tracks[at].seq(index)? {
                self.drop_one(at, index, seq)?;
            }
        }
        let next = from.saturating_add(STEP);
        let next_seq = if next < end { self.tracks[at].seq(next)? } else { None };
        Ok(next_seq.filter(|&next_seq| next_seq < end_seq))
    }

    /// Settles a message if it waits.
    fn drop_one(&mut self, at: usize, index: u32, seq: u64) -> Result<()> {
        let is_old = self.run.is_old(seq);
        let base_time = self.tracks[at].base_time;
        let mapped = self.tracks[at].map()?;
        let slot = mapped.slot(index)?.unwrap_or(Slot::UNTOUCHED);
        if slot.is_settled(is_old) || slot.state == State::Dying {
            return Ok(());
        }
        let delay = mapped.delay(index, base_time)?;
        let scheduled = scheduled_for(delay, is_old, self.run.start_time);
        let mut waits = self.returned.remove(&seq).is_some();
        for due in [delay.map(|delay| delay.due), scheduled].into_iter().flatten() {
            waits |= self.schedule.remove(due, seq);
        }
        // Nobody has met what is behind the cursor's position.
        if waits || seq >= self.cursor.seq && scheduled.is_none() {
            self.settle_silently(at, index, slot.offset.unwrap_or(0), State::Dead)?;
            self.leases.end_expired(seq);
            self.counts.dropped += 1;
        }
        Ok(())
    }

    /// Settles the first delayed message up to this Seq; false if there is none.
    pub(super) fn drop_delayed(&mut self, newest: u64) -> Result<bool> {
        while let Some((due, seq)) = self.schedule.first_up_to(newest) {
            let next = self.look_up(seq)?;
            if let Some(next) = next {
                self.settle_silently(next.at, next.place.index, next.place.offset, State::Dead)?;
            }
            self.schedule.remove(due, seq);
            self.leases.end_expired(seq);
            if next.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
