//! The newest segment goes, too, where nothing in it is unsettled.
//!
//! Promises: a small segment takes its place before it is let go, so that there always is one that
//! says how far the numbers went. From there on segments grow again, each twice as large as the one
//! before.

use super::supply::{Spare, Supply};
use super::{Appender, SMALLEST_SEGMENT};
use crate::error::Result;
use crate::time::Millis;
use parking_lot::MutexGuard;

/// A queue that is idle and empty keeps no segment that is larger.
pub(crate) const LARGEST_IDLE: u64 = 512 << 10;

/// What takes the place of a larger one.
const IDLE_SEGMENT: u64 = 256 << 10;

impl Appender {
    /// How long nothing was pushed.
    pub(crate) fn idle_time(&self) -> Millis {
        let newest = self.unsealed().newest_time();
        self.context.clock.coarse().since(newest)
    }

    /// Whether the newest segment, or the one that is kept ready, takes more than an idle queue
    /// needs.
    pub(crate) fn is_larger_than_idle(&self) -> bool {
        let newest = self.dispatch.lock().backlog().tracks().newest_size();
        newest.max(self.ready_bytes()) > LARGEST_IDLE
    }

    /// Gives up the segment that is kept ready, and goes on to a small one if the newest is large
    /// and nothing in it is unsettled: then it can be let go. Returns true if it did that.
    pub(crate) fn shrink(&self) -> Result<bool> {
        let mut supply = self.supply.lock();
        supply.check_open()?;
        let ready = supply.ready.take_if(|ready| ready.segment.header.size > LARGEST_IDLE);
        if let Some(ready) = ready {
            self.discard(&mut supply, ready)?;
        }
        if !self.is_newest_empty_above(LARGEST_IDLE) {
            return Ok(false);
        }
        self.begin_to_prepare(&mut supply)?;
        let size = IDLE_SEGMENT.min(self.context.options.segment_limit());
        self.context.space.take(size)?;
        self.replace_newest(supply, size)
    }

    /// The same for a push that finds no room in `max_bytes`, which may be lower than it was when
    /// the newest segment was made: for a moment the small one is there besides.
    pub(crate) fn give_up_newest(&self) -> Result<bool> {
        let mut supply = self.supply.lock();
        supply.check_open()?;
        if !self.is_newest_empty_above(SMALLEST_SEGMENT) {
            return Ok(false);
        }
        self.begin_to_prepare(&mut supply)?;
        self.context.space.add(SMALLEST_SEGMENT);
        self.replace_newest(supply, SMALLEST_SEGMENT)
    }

    fn is_newest_empty_above(&self, size: u64) -> bool {
        let published = self.published.newest();
        let dispatch = self.dispatch.lock();
        dispatch.backlog().tracks().is_newest_empty(published)
            && dispatch.backlog().tracks().newest_size() > size
    }

    /// Goes on to a segment of this size, for which room is taken.
    fn replace_newest(&self, mut supply: MutexGuard<'_, Supply>, size: u64) -> Result<bool> {
        supply.next_bytes = size;
        let made = self.make(&mut supply, size);
        let prepared = made.inspect_err(|_| self.context.space.undo(size))?;
        supply.spare = Spare::NotKept;
        self.go_on_to(supply, prepared)?;
        Ok(true)
    }
}
