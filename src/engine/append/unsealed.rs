//! What is asked of the segments that have no seal, and done to them, under the lock that each push
//! takes. While it is held nothing is pushed.

use super::Unsealed;
use super::full::Full;
use super::unsynced_part::UnsyncedPart;
use crate::clock::{self, Clock};
use crate::engine::context::Context;
use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::io::Region;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::stage::{MOST_STAGED, Stage};
use crate::recovery::Log;
use crate::time::{Millis, Time};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A consumer that keeps up leaves a segment within this time after pushes did.
const LEFT_WITHIN: Duration = Duration::from_millis(100);

impl Unsealed {
    pub(super) fn new(log: &Log) -> Self {
        Self {
            active: None,
            full: VecDeque::new(),
            evicted: 0,
            last_fill_time: None,
            left_last_at: None,
            next_seq: log.next_seq,
            first_seq: log.next_seq,
            is_closed: false,
            is_over: false,
            sync_within: None,
            last_of_earlier_runs: log.last_seq,
            newest_time: log.newest_time,
            look_at: Time::ZERO,
            has_asked_for_supply: false,
        }
    }

    pub(crate) fn full(&self) -> &VecDeque<Full> {
        &self.full
    }

    pub(crate) fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// The oldest full segment is sealed.
    pub(crate) fn pop_full(&mut self) {
        self.full.pop_front();
    }

    /// A round of syncs begins: a later push with an interval asks again.
    pub(crate) fn forget_interval(&mut self) {
        self.sync_within = None;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// No message has this number yet, or a higher one.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The first Seq that is not in a file of this run.
    pub(crate) fn written_end(&self) -> u64 {
        self.next_seq - self.active.as_ref().map_or(0, |active| u64::from(active.unwritten()))
    }

    /// Messages pushed since open.
    pub(crate) fn pushed(&self) -> u64 {
        self.written_end() - self.first_seq
    }

    /// The newest message, of this run or an earlier one.
    pub(crate) fn last_seq(&self) -> Option<u64> {
        if self.pushed() > 0 { Some(self.written_end() - 1) } else { self.last_of_earlier_runs }
    }

    pub(crate) fn newest_time(&self) -> Time {
        self.newest_time
    }

    /// Bytes of the records in the active segment.
    pub(crate) fn active_record_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, Active::record_bytes)
    }

    /// The push time: never before that of an earlier message.
    #[inline]
    pub(super) fn now(&mut self, clock: &Clock) -> Time {
        self.newest_time = self.newest_time.max(clock.coarse());
        self.newest_time
    }

    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// Fails if the directory, or a file that holds what was pushed and is not sealed, was removed
    /// by somebody else. Then nothing that is in them can be kept, so no sync is believed any more.
    #[cold]
    pub(crate) fn check_files(&self, context: &Context) -> Result<()> {
        context.check_directory()?;
        let full = self.full.iter().map(|full| &full.segment);
        full.chain(self.active.as_ref().map(Active::segment))
            .try_for_each(|segment| context.believe_name(segment))
    }

    /// Whether a next segment should be at hand: a quarter of the active one is used, or segments
    /// fill faster than they are synced. Not sooner, so that one may be recycled instead.
    pub(super) fn wants_supply(&self) -> bool {
        let used = |active: &Active| active.used_bytes() * 4 >= active.segment().header.size;
        self.full.len() > 1 || self.active.as_ref().is_some_and(used)
    }

    /// How long pushes will have gone to the active segment when it is full, if they go on like
    /// this; as long as it is too new to tell, how long they went to the one before.
    pub(super) fn expected_fill_time(&self, now: Time) -> Option<Millis> {
        let active = self.active.as_ref()?;
        let (used, size) = (active.used_bytes(), active.segment().header.size);
        if used * 4 < size {
            return self.last_fill_time;
        }
        Some(Millis(now.since(active.base_time()).0.saturating_mul(size) / used))
    }

    /// How long it will be until a push needs the next segment; `None` if it is too early to tell.
    pub(super) fn time_left(&self, now: Time) -> Option<Millis> {
        if self.full.len() > 1 {
            // Segments fill faster than they are synced.
            return Some(Millis(0));
        }
        let (active, Millis(fill_time)) = (self.active.as_ref()?, self.expected_fill_time(now)?);
        let (used, size) = (active.used_bytes(), active.segment().header.size);
        Some(Millis(fill_time.saturating_mul(size.saturating_sub(used)) / size))
    }

    /// The oldest full segment, unless a consumer still reads it and may be about to leave it. The
    /// sync of pages that are mapped interrupts all processors for each of them.
    pub(crate) fn oldest_left(&self) -> Option<&Full> {
        let since = |at| clock::now().saturating_duration_since(at);
        let is_new = self.left_last_at.is_some_and(|at| since(at) < LEFT_WITHIN);
        let may_be_left = is_new && self.full.len() == 1;
        self.full.front().filter(|full| !may_be_left || !full.segment.is_mapped())
    }

    /// Whether the worker is to be asked for a next segment, and has not been.
    #[inline]
    pub(super) fn takes_to_ask(&mut self) -> bool {
        let asks = !self.has_asked_for_supply && self.wants_supply();
        self.has_asked_for_supply |= asks;
        asks
    }

    /// Returns true if this segment is full, and has no seal yet.
    pub(crate) fn is_full(&self, segment: &Arc<Segment>) -> bool {
        self.full.iter().any(|full| Arc::ptr_eq(&full.segment, segment))
    }

    /// Whether records of the segment that is pushed to are written, not stored.
    #[inline]
    pub(super) fn is_written(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.stage().is_some())
    }

    /// Whether this many bytes more can be collected.
    pub(super) fn can_collect(&self, bytes: u64) -> bool {
        let staged = self.active.as_ref().and_then(Active::stage).map_or(0, Stage::len);
        to_u64(staged) + bytes <= to_u64(MOST_STAGED)
    }

    /// The records that were stored since the last round of syncs, up to where pushes go on: the
    /// next one evicts them first, so that it need not protect each page of them.
    pub(crate) fn take_unsynced_part(&mut self) -> Option<UnsyncedPart> {
        let active = self.active.as_ref().filter(|active| active.stage().is_none())?;
        UnsyncedPart::between(&mut self.evicted, active.tail(), active.region())
    }

    /// Takes out what is collected, to be written to this region.
    pub(super) fn begin_write(&mut self, staged: &mut Stage) -> Option<Arc<dyn Region>> {
        self.active.as_mut()?.begin_write(staged)
    }

    /// Ends that. Numbers that are taken back are given out again.
    pub(super) fn end_write(&mut self, staged: &mut Stage, written: io::Result<()>) -> Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let unwritten = active.unwritten();
        let ended = active.end_write(staged, written);
        if ended.is_err() {
            self.next_seq -= u64::from(unwritten);
        }
        ended
    }
}
