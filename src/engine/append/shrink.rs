//! The newest segment goes, too, where nothing in it is unsettled.
//!
//! Promises: a small segment takes its place before it is let go, so that there always is one that
//! says how far the numbers went. From there on segments grow again, if pushes fill them fast. A
//! small one also follows when the clock is set: its header tells how.

use super::supply::{IDLE_SEGMENT, LARGEST_IDLE, Spare, Supply};
use super::{Appender, SMALLEST_SEGMENT};
use crate::error::{Error, Result};
use crate::time::Millis;
use parking_lot::MutexGuard;

/// Replaces the newest segment of an appender by a small one.
#[derive(Debug)]
pub(crate) struct Shrinker<'a>(&'a Appender);

impl<'a> Shrinker<'a> {
    pub(crate) fn new(appender: &'a Appender) -> Self {
        Self(appender)
    }

    /// How long nothing was pushed.
    pub(crate) fn idle_time(&self) -> Millis {
        let newest = self.0.unsealed().newest_time();
        self.0.context.clock.coarse().since(newest)
    }

    /// Whether the newest segment, or the one that is kept ready, takes more than an idle queue
    /// needs.
    pub(crate) fn is_larger_than_idle(&self) -> bool {
        let newest = self.0.dispatch.lock().backlog().tracks().newest_size();
        newest.max(self.0.ready_bytes()) > LARGEST_IDLE
    }

    /// Gives up the segment that is kept ready, and goes on to a small one if the newest is large
    /// and nothing in it is unsettled: then it can be let go. Returns true if it did that.
    pub(crate) fn shrink(&self) -> Result<bool> {
        let mut supply = self.0.supply.lock();
        supply.check_open()?;
        self.0.await_made(&mut supply);
        let ready = supply.ready.take_if(|ready| ready.segment.header.size > LARGEST_IDLE);
        if let Some(ready) = ready {
            // Or else it would be made again at once.
            supply.spare = Spare::NotKept;
            self.0.discard(&mut supply, ready)?;
        }
        if !self.is_newest_empty_above(LARGEST_IDLE) {
            return Ok(false);
        }
        self.0.begin_to_prepare(&mut supply)?;
        let size = IDLE_SEGMENT.min(self.0.context.options.segment_limit());
        // Where `max_bytes` has no room for it now, this is for later.
        if self.0.context.space.take(size).is_err() {
            return Ok(false);
        }
        self.replace_newest(supply, size).map(|()| true)
    }

    /// The same for a push that finds no room in `max_bytes`, which may be lower than it was when
    /// the newest segment was made: for a moment the small one is there besides.
    pub(crate) fn give_up_newest(&self) -> Result<bool> {
        let mut supply = self.0.supply.lock();
        supply.check_open()?;
        self.0.await_made(&mut supply);
        if !self.is_newest_empty_above(SMALLEST_SEGMENT) {
            return Ok(false);
        }
        self.0.begin_to_prepare(&mut supply)?;
        self.0.context.space.add(SMALLEST_SEGMENT);
        self.replace_newest(supply, SMALLEST_SEGMENT).map(|()| true)
    }

    /// Goes on to a small segment if the clock was set since the newest one was made and messages
    /// wait: its header tells the next run how to read their times, should CHECKPOINT be lost.
    /// Where there is no room for it, only CHECKPOINT tells.
    pub(crate) fn follow_clock(&self) -> Result<()> {
        if !self.is_behind_clock() {
            return Ok(());
        }
        let mut supply = self.0.supply.lock();
        supply.check_open()?;
        self.0.await_made(&mut supply);
        // A push may have gone on to one meanwhile.
        if !self.is_behind_clock() || self.0.context.space.take(SMALLEST_SEGMENT).is_err() {
            return Ok(());
        }
        let begun = self.0.begin_to_prepare(&mut supply);
        begun.inspect_err(|_| self.0.context.space.undo(SMALLEST_SEGMENT))?;
        match self.replace_newest(supply, SMALLEST_SEGMENT) {
            Err(Error::StorageFull { .. }) => Ok(()),
            begun => begun,
        }
    }

    /// Whether messages wait and the newest segment was made before the clock was set.
    fn is_behind_clock(&self) -> bool {
        let published = self.0.published.newest();
        let dispatch = self.0.dispatch.lock();
        let tracks = dispatch.backlog().tracks();
        let newest = tracks.back().map(|newest| newest.segment().header.clock_shift);
        newest.is_some_and(|shift| shift != self.0.context.clock.shift())
            && (tracks.len() > 1 || !tracks.is_newest_empty(published))
    }

    fn is_newest_empty_above(&self, size: u64) -> bool {
        // Of those that are collected, too.
        let newest = self.0.unsealed().next_seq() - 1;
        let dispatch = self.0.dispatch.lock();
        dispatch.backlog().tracks().is_newest_empty(newest)
            && dispatch.backlog().tracks().newest_size() > size
    }

    /// Goes on to a segment of this size, for which room is taken.
    fn replace_newest(&self, mut supply: MutexGuard<'_, Supply>, size: u64) -> Result<()> {
        // The one that is ready follows the newest one: it must not be used behind another.
        if let Some(ready) = supply.ready.take() {
            let discarded = self.0.discard(&mut supply, ready);
            discarded.inspect_err(|_| self.0.context.space.undo(size))?;
        }
        supply.prepared_bytes = size;
        let unnamed = self.0.make(&mut supply, size)?;
        let prepared = self.0.name(&mut supply, unnamed)?;
        supply.spare = Spare::NotKept;
        self.0.go_on_to(supply, prepared)
    }
}
