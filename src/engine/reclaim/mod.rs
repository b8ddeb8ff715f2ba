//! The way out: segments without an unsettled message are let go, sparse ones are compacted.
//!
//! Promises: no byte of the disk is given back before what it held is settled for good; a push that
//! asks for room waits for the work of one file at a time. Decides by itself what is worth it;
//! when, the engine says. `upkeep` lets go, `compact` leads copies, `switch` puts them in the place
//! of what they were made from.

mod candidates;
mod compact;
mod job;
mod switch;
mod upkeep;

use super::append::{Appender, FIRST_SEGMENT};
use super::backlog::track::Track;
use super::commit::Commit;
use super::context::Context;
use super::signal::DispatchLock;
use crate::error::Result;
use crate::format::bytes::to_u64;
use crate::recovery::Log;
use job::{Compaction, Trigger};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use upkeep::Upkeep;

/// As many done segments may wait to be let go, while another one is ready.
const MOST_DONE: u64 = 1;

/// Gives the disk back.
#[derive(Debug)]
pub(crate) struct Reclaim {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
    commit: Arc<Commit>,
    upkeep: Mutex<Upkeep>,
    compaction: Mutex<Compaction>,
    /// Segments that are no longer in the log, and not yet removed or used again.
    letting_go: AtomicU64,
    /// Bytes of files that compaction wrote.
    compacted_bytes: AtomicU64,
}

impl Reclaim {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        appender: &Arc<Appender>,
        commit: &Arc<Commit>,
        log: Log,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            appender: Arc::clone(appender),
            commit: Arc::clone(commit),
            upkeep: Mutex::new(Upkeep::new(log)),
            compaction: Mutex::default(),
            letting_go: AtomicU64::new(0),
            compacted_bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of files that compaction wrote since open.
    pub(crate) fn compacted_bytes(&self) -> u64 {
        // Relaxed: a number by itself.
        self.compacted_bytes.load(Ordering::Relaxed)
    }

    /// Segments that are done, or on their way out.
    fn done_segments(&self) -> u64 {
        // Relaxed: a segment that goes is in one of the two, under the lock of the unsealed ones,
        // which a caller holds that wants to know exactly.
        let going = self.letting_go.load(Ordering::Relaxed);
        self.dispatch.lock().backlog().tracks().done_segments() + going
    }

    /// Prepares the next segment if it will be needed soon, unless one is about to be let go that
    /// serves.
    pub(crate) fn prepare_ahead(&self) -> Result<()> {
        self.appender.prepare_ahead(|| self.done_segments() > 0)
    }

    /// Whether the background does not keep up: done segments take the disk, or unsynced ones would
    /// hold too many files open.
    pub(crate) fn is_behind(&self) -> bool {
        self.has_too_many_open() || self.has_too_many_done()
    }

    fn has_too_many_open(&self) -> bool {
        let most = self.context.options.open_segments;
        to_u64(self.appender.unsealed().full().len()) > most
            || self.dispatch.lock().backlog().tracks().mapped_segments() > most + 2
    }

    fn has_too_many_done(&self) -> bool {
        let most_done = if self.appender.ready_bytes() > 0 { MOST_DONE } else { 0 };
        let unsealed = self.appender.unsealed();
        let done = self.done_segments();
        drop(unsealed);
        done > most_done
    }

    /// Whether a segment is done, and waits to be sealed before it can be let go.
    fn has_done_unsealed(&self) -> bool {
        let unsealed = self.appender.unsealed();
        let dispatch = self.dispatch.lock();
        let mut tracks = dispatch.backlog().tracks().iter();
        let has_any = tracks.any(|track| track.is_done() && unsealed.is_full(track.segment()));
        drop(unsealed);
        has_any
    }

    /// Does what the background would, so that the queue takes no more disk because its producers
    /// are fast: the work of one file.
    pub(crate) fn catch_up(&self) -> Result<()> {
        if self.has_too_many_open() {
            self.commit.sync_oldest_full()?;
            self.release_idle_maps();
        }
        // Where it is not sealed yet, that belongs to it.
        if self.has_too_many_done()
            && self.let_go(1)?.segments == 0
            && self.has_done_unsealed()
            && self.commit.sync_oldest_full()?
        {
            self.let_go(1)?;
        }
        Ok(())
    }

    /// A push finds no room: gives back a file that is in use for nothing, or has less in it than
    /// it takes; false if there is none.
    pub(crate) fn make_room(&self) -> Result<bool> {
        self.appender.finish_old_tail()?;
        let (before, ready) = (self.context.space.given_back(), self.appender.ready_bytes());
        let has_given_back = || self.context.space.given_back() > before;
        loop {
            let gone = self.let_go(1)?;
            if has_given_back() || self.appender.ready_bytes() > ready {
                return Ok(true);
            }
            // Where a done segment is not sealed yet, that belongs to it.
            let has_sealed =
                !gone.has_more && self.has_done_unsealed() && self.commit.sync_oldest_full()?;
            if !gone.has_more && !has_sealed {
                break;
            }
        }
        if self.context.options.compaction.is_on {
            // One copy at the most: the producer waits for it.
            let copied = self.compact_now(Trigger::Requested, 1);
            self.context.health.note_background(copied.map(|_| ()));
            self.let_go(usize::MAX)?;
        }
        Ok(has_given_back())
    }

    /// Unmaps what no delivery needs, and closes what is synced besides.
    pub(crate) fn release_idle_maps(&self) {
        let mut dispatch = self.dispatch.lock();
        let reading = dispatch.cursor().ordinal();
        let idle = dispatch.backlog_mut().tracks_mut().take_idle_maps(reading);
        drop(dispatch);
        drop(idle);
        // It is poisoned, if that fails, which the next sync says.
        if self.sync_held_open().is_err() {
            return;
        }
        self.release_clean();
    }

    /// Closes segments that are not mapped, and of which everything is synced.
    pub(crate) fn release_clean(&self) {
        let is_durable = |last_seq| self.commit.is_durable(last_seq);
        self.dispatch.lock().backlog().tracks().release_clean(is_durable);
    }

    /// Syncs segments above the limit of open files that only unsynced answers hold open.
    pub(crate) fn sync_held_open(&self) -> Result<()> {
        // While this leads, no other thread takes the answers in them for synced, or lets one of
        // them go.
        let lead = self.commit.lead_when_free();
        let held = self.dispatch.lock().backlog_mut().take_held_open();
        for segment in &held {
            self.context.health.sync(segment)?;
        }
        drop(lead);
        if !held.is_empty() {
            self.dispatch.lock().backlog().tracks().release_synced(&held);
        }
        Ok(())
    }

    /// Before a run makes its first segment: short runs each leave a small one behind, and may end
    /// before the background comes to it.
    pub(crate) fn tidy_small_segments(&self) -> Result<()> {
        const MANY: usize = 3;
        let is_small = |track: &Track| track.size() <= FIRST_SEGMENT;
        let small = {
            let dispatch = self.dispatch.lock();
            let small = dispatch.backlog().tracks().iter().filter(|track| is_small(track));
            small.map(Track::ordinal).collect::<Vec<_>>()
        };
        if small.len() < MANY {
            return Ok(());
        }
        for ordinal in small {
            while self.dispatch.lock().count_segment(ordinal)? {}
        }
        self.appender.finish_old_tail()?;
        // The producer waits for it: no more than keeps their number where it is.
        self.let_go(2)?;
        if self.context.options.compaction.is_on {
            self.compact_now(Trigger::NewRun, 1)?;
        }
        Ok(())
    }
}
