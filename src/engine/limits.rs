//! How much a queue may hold, and what a push does when that is reached.
//!
//! Promises: what is over a limit is refused before anything is written; of messages, no more than
//! `max_messages` are owed at any moment; of bytes, no more than `max_bytes` are taken by files, but for a
//! CHECKPOINT that has to grow. Whoever waits for room is woken by what makes some. Relies on `append` to ask.

use super::wait::{Look, Soon};
use super::{Engine, WhenFull};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::slot::State;
use crate::log::active::Draft;
use crate::options::Overflow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Messages dropped under one lock.
const STEP: u64 = 256;

/// What files may take, and take: shared by a queue and its dead letters.
#[derive(Debug)]
pub(crate) struct Space {
    max: u64,
    used: AtomicU64,
}

impl Space {
    pub(super) fn new(max: Option<u64>) -> Self {
        Self { max: max.unwrap_or(u64::MAX), used: AtomicU64::new(0) }
    }

    /// What is there takes its room, over the limit or not.
    pub(super) fn add(&self, bytes: u64) {
        // SeqCst, here and below: pairs with itself. Whoever waits for room registers and then looks at
        // this; whoever gives some back changes it and then asks who waits.
        self.used.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Takes room for something new.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is none.
    pub(super) fn take(&self, bytes: u64) -> Result<()> {
        let add = |used: u64| used.checked_add(bytes).filter(|&used| used <= self.max);
        let taken = self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        taken.map_err(|_| Error::Full { limit: "max_bytes", max: self.max }).map(|_| ())
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    pub(super) fn max(&self) -> Option<u64> {
        Some(self.max).filter(|&max| max < u64::MAX)
    }
}

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
        let never_fits = self.options.max_messages.is_some_and(|max| records > max);
        match overflow {
            Overflow::Block if !never_fits => {
                self.push_when_there_is_room(drafts, sync_within, full)
            }
            Overflow::DropOldest if !never_fits => self.push_over_oldest(drafts, sync_within, full),
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
        let pushed = self.room.wait_until(0, Soon::No, deadline, registered, look);
        pushed.unwrap_or(Err(full))
    }

    fn push_over_oldest(
        &self,
        drafts: &[Draft<'_>],
        sync_within: Option<Duration>,
        mut full: Error,
    ) -> Result<u64> {
        loop {
            // One by one for messages; for bytes, until a segment is free.
            let by_count = matches!(full, Error::Full { limit: "max_messages", .. });
            let dropped = self.drop_oldest(if by_count { 1 } else { STEP })?;
            if dropped == 0 {
                return Err(full);
            }
            match self.append(drafts, sync_within) {
                Err(still @ Error::Full { .. }) => full = still,
                result => return result,
            }
        }
    }

    /// Drops the oldest that wait, ready or delayed; tells how many there were.
    fn drop_oldest(&self, limit: u64) -> Result<u64> {
        let published = self.newest_published();
        let mut dropped = 0;
        let mut deliver = self.deliver.lock();
        deliver.take_back_due();
        let mut result = Ok(());
        while dropped < limit {
            match deliver.drop_next(published) {
                Ok(true) => dropped += 1,
                Ok(false) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        deliver.counts.dropped += dropped;
        drop(deliver);
        self.settled.wake_all();
        self.worker.ask();
        result.map(|()| dropped)
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
