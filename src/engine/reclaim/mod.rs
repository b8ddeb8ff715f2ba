//! The way out: segments without an unsettled message are let go, sparse ones are compacted.
//!
//! Promises: no byte of the disk is given back before what it held is settled for good; a push that
//! asks for room waits for one file to go, or for one copy, and for the seals of the segments
//! before it. Decides what is worth copying; the engine decides when. [`Retirer`] lets go of
//! segments, and has the list of what is to be tidied. [`Compactor`] leads copies, and stands above
//! it. [`Reclaim`] owns both, and says who does what when a producer or a caller asks for room.

mod candidates;
mod compact;
mod job;
mod let_go;
mod planned;
mod planner;
mod retire;
mod switch;
mod trigger;
mod unmapper;
mod upkeep;

use super::append::shrink::Shrinker;
use super::append::{Appender, FIRST_SEGMENT};
use super::backlog::IdleMaps;
use super::backlog::track::Track;
use super::commit::Commit;
use super::context::{Context, SOON};
use super::signal::DispatchLock;
use crate::clock::{self, LONGEST_SLEEP};
use crate::engine::append::maker::Maker;
use crate::error::Result;
use crate::format::bytes::to_u64;
use crate::recovery::Log;
use crate::report::Compacted;
use compact::Compactor;
use job::Outcome;
use retire::Retirer;
use std::sync::Arc;
use std::time::Duration;
use trigger::Trigger;
use unmapper::Unmapper;

/// This many done segments may wait to be let go while another segment is ready.
const MOST_DONE: u64 = 1;

/// After this time the background looks again whether a consumer has left a segment.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Gives the disk back.
#[derive(Debug)]
pub(crate) struct Reclaim {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
    commit: Arc<Commit>,
    retirer: Arc<Retirer>,
    compactor: Compactor,
    unmapper: Unmapper,
}

impl Reclaim {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        appender: &Arc<Appender>,
        commit: &Arc<Commit>,
        log: Log,
    ) -> Self {
        let leaves_out_more = log.leaves_out_more;
        let retirer = Arc::new(Retirer::new(context, dispatch, appender, commit, log));
        // What takes the place of those may be let go by this run. If it fails, the next open
        // decides anew, as long as that is there.
        if leaves_out_more {
            context.health.note_background(retirer.write_now());
        }
        let compactor = Compactor::new(context, dispatch, appender, &retirer);
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            appender: Arc::clone(appender),
            commit: Arc::clone(commit),
            retirer,
            compactor,
            unmapper: Unmapper::new(context, dispatch, appender),
        }
    }

    /// What retires segments, and removes files.
    pub(crate) fn retirer(&self) -> &Retirer {
        &self.retirer
    }

    /// What copies unsettled messages out of sparse segments.
    pub(crate) fn compactor(&self) -> &Compactor {
        &self.compactor
    }

    /// Prepares the next segment if it will be needed soon, unless a segment is about to be let go
    /// that can be used again.
    pub(crate) fn prepare_ahead(&self) -> Result<()> {
        Maker::new(&self.appender).prepare_ahead(|| {
            let done = self.retirer.done_segments();
            // As many as go together, where there are many.
            done > 0 && done >= self.retirer.many()
        })
    }

    /// Does a step of all that is done in steps, after a rest.
    pub(crate) fn go_on(&self) {
        self.unmapper.go_on();
        if Maker::new(&self.appender).go_on() {
            // Another segment may have been asked for meanwhile.
            self.context.worker.ask();
        }
    }

    /// At the end of upkeep: what was left because a map is to be evicted first is looked at again.
    pub(crate) fn look_again(&self) {
        if self.unmapper.has_left_one() {
            self.context.worker.ask_within(LOOK_AGAIN);
        }
    }

    /// Returns true if the background does not keep up, or there is none: done segments fill the
    /// disk, unsynced ones would hold too many files open, or the list of segments is old.
    pub(crate) fn is_behind(&self) -> bool {
        self.has_too_many_open() || self.has_too_many_done() || !self.context.options.background
    }

    fn has_too_many_open(&self) -> bool {
        let most = self.context.options.open_segments;
        to_u64(self.appender.unsealed().full().len()) > most
            || self.dispatch.lock().backlog().tracks().mapped_segments() > most + 2
    }

    fn has_too_many_done(&self) -> bool {
        let most_done = if self.appender.ready_bytes() > 0 { MOST_DONE } else { 0 };
        let most_done = most_done.max(self.retirer.many());
        let unsealed = self.appender.unsealed();
        let done = self.retirer.done_segments();
        drop(unsealed);
        done > most_done
    }

    /// Whether a segment is done, and waits to be sealed before it can be let go.
    fn has_done_unsealed(&self) -> bool {
        let unsealed = self.appender.unsealed();
        let dispatch = self.dispatch.lock();
        let tracks = dispatch.backlog().tracks();
        let has_any = unsealed.full().iter().any(|full| {
            let at = tracks.position_of(full.segment.header.ordinal);
            at.is_some_and(|at| tracks[at].is_done())
        });
        drop(unsealed);
        has_any
    }

    /// In the background: unmaps what nobody needs, closes unmapped segments that are synced, and
    /// syncs and seals the oldest full one, unless that is to be evicted first, or a consumer is
    /// about to leave it. Tells whether there may be more to do at once.
    pub(crate) fn unmap_and_sync(&self) -> Result<bool> {
        self.unmapper.unmap();
        self.release_unmapped();
        {
            let unsealed = self.appender.unsealed();
            match unsealed.oldest_left() {
                Some(full) if self.unmapper.comes_first(full) => return Ok(false),
                None if !unsealed.full().is_empty() => {
                    self.context.worker.ask_within(LOOK_AGAIN);
                    return Ok(false);
                }
                _ => {}
            }
        }
        self.commit.sync_oldest_full()
    }

    /// Does the background's work for one file, so that a queue with fast producers takes no more
    /// disk.
    pub(crate) fn catch_up(&self) -> Result<()> {
        if self.has_too_many_open() {
            self.commit.sync_oldest_full()?;
            self.release_idle_maps();
        }
        // If a done segment is not sealed yet, sealing it is part of the work.
        if self.has_too_many_done()
            && self.retirer.let_go_of_one()?.segments == 0
            && self.has_done_unsealed()
            && self.commit.sync_oldest_full()?
        {
            self.retirer.let_go_of_one()?;
        }
        if self.context.options.background { Ok(()) } else { self.retirer.list_if_due() }
    }

    /// For a push that finds no room: gives back a file without unsettled messages, or makes one
    /// copy; false if neither gave anything back.
    pub(crate) fn make_room(&self) -> Result<bool> {
        self.appender.finish_old_tail()?;
        let (before, ready) = (self.context.space.given_back(), self.appender.ready_bytes());
        let has_given_back = || self.context.space.given_back() > before;
        loop {
            let gone = self.retirer.let_go(1)?;
            if has_given_back() || self.appender.ready_bytes() > ready {
                return Ok(true);
            }
            // If a done segment is not sealed yet, sealing it is part of the work.
            let has_sealed =
                !gone.has_more && self.has_done_unsealed() && self.commit.sync_oldest_full()?;
            if !gone.has_more && !has_sealed {
                break;
            }
        }
        if self.context.options.compaction.is_on {
            self.copy_once()?;
        }
        // What holds nothing unsettled does not keep a queue shut.
        if !has_given_back() && Shrinker::new(&self.appender).give_up_newest()? {
            self.commit.sync_oldest_full()?;
            self.retirer.let_go(1)?;
        }
        Ok(has_given_back())
    }

    /// Notes on the disk that the clock was set, if it was: the next run has to know. In the header
    /// of a segment, where messages wait, and in CHECKPOINT.
    pub(crate) fn note_clock(&self) -> Result<()> {
        // The background looks again before long, also where nothing else is to be done.
        self.context.worker.watch(clock::now() + LONGEST_SLEEP);
        if !self.context.clock.has_step() {
            return Ok(());
        }
        let begun = Shrinker::new(&self.appender).follow_clock();
        self.retirer.write_now().and(begun)
    }

    /// The same where no background does it.
    pub(crate) fn note_clock_without_background(&self) {
        if !self.context.clock.is_noted() && !self.context.worker.is_running() {
            self.context.health.note_background(self.note_clock());
        }
    }

    /// Gives up what an idle queue does not need, once it has been idle for as long as the options
    /// say.
    pub(crate) fn shrink_if_idle(&self) -> Result<()> {
        let Some(after) = self.context.options.shrink_after else { return Ok(()) };
        let shrinker = Shrinker::new(&self.appender);
        if !shrinker.is_larger_than_idle() {
            return Ok(());
        }
        let left = after.saturating_sub(shrinker.idle_time().into());
        if left.is_zero() && shrinker.shrink()? {
            self.context.worker.ask();
        } else {
            // It is not idle for so long yet, or its newest messages wait.
            let again = if left.is_zero() { after } else { left };
            self.context.worker.ask_within(again.max(SOON));
        }
        Ok(())
    }

    /// Makes one copy, if one is worth it, and lets go of what it was made from: the producer that
    /// needs the room waits for it. A copy that fails is tried again.
    pub(crate) fn copy_once(&self) -> Result<()> {
        let copied = self.copy_or_seal();
        if copied.is_err() {
            self.context.retry_upkeep();
        }
        self.context.health.note_background(copied);
        self.retirer.let_go(usize::MAX).map(|_| ())
    }

    /// Only sealed segments are copied, and they are sealed in their order: if one is worth it that
    /// is not sealed, it is, with all before it. What cannot be copied does not hold up the rest.
    fn copy_or_seal(&self) -> Result<()> {
        loop {
            let Outcome { done, left_out, result } =
                self.compactor.compact_now(Trigger::Requested, 1);
            let can_seal_one = done.copies == 0
                && self.compactor.planner().has_sparse(&left_out)
                && self.commit.sync_oldest_full()?;
            if !can_seal_one {
                return result;
            }
        }
    }

    /// Makes all copies that are worth it, and gives back files that are no longer needed.
    pub(crate) fn compact_all(&self) -> Result<Compacted> {
        let before = self.context.space.given_back();
        self.appender.finish_old_tail()?;
        while self.commit.sync_oldest_full()? {}
        self.retirer.let_go(usize::MAX)?;
        let Outcome { done, result, .. } = self.compactor.compact_now(Trigger::Requested, u64::MAX);
        let gone = self.retirer.let_go_of_all();
        result.and(gone)?;
        let freed = self.context.space.given_back() - before;
        Ok(Compacted {
            freed_bytes: freed.saturating_sub(done.written),
            written_bytes: done.written,
            messages: done.messages,
            copies: done.copies,
            replaced: done.replaced,
        })
    }

    /// Unmaps segments that no delivery needs, at once, and closes unmapped segments that are
    /// synced.
    pub(crate) fn release_idle_maps(&self) {
        self.dispatch.give_up_maps(IdleMaps::All);
        self.release_unmapped();
    }

    fn release_unmapped(&self) {
        // It is poisoned, if that fails, which the next sync says.
        if self.sync_held_open().is_ok() {
            self.release_clean();
        }
    }

    /// Closes segments that are not mapped, and of which everything is synced.
    pub(crate) fn release_clean(&self) {
        let is_durable = |last_seq| self.commit.is_durable(last_seq);
        self.dispatch.lock().backlog_mut().tracks_mut().release_clean(is_durable);
    }

    /// Syncs segments above the limit of open files that only unsynced answers hold open.
    pub(crate) fn sync_held_open(&self) -> Result<()> {
        // While this leads, no other thread takes their answers for synced, or lets go of one of
        // them.
        let lead = self.commit.lead_when_free();
        let held = self.dispatch.lock().backlog_mut().begin_sync_of_held_open();
        let synced = held.iter().try_for_each(|segment| self.context.sync(segment));
        if !held.is_empty() {
            let mut dispatch = self.dispatch.lock();
            dispatch.backlog_mut().tracks_mut().end_sync(synced.is_ok());
            if synced.is_ok() {
                // Before another thread leads, which may have to close some, too.
                dispatch.backlog().tracks().release_synced(&held);
            }
        }
        drop(lead);
        synced
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
        let mut steps = self.dispatch.steps();
        for ordinal in small {
            while steps.next(|dispatch| dispatch.count_segment(ordinal))? {}
        }
        self.appender.finish_old_tail()?;
        // The producer waits for it: no more than keeps their number where it is.
        self.retirer.let_go(2)?;
        if self.context.options.compaction.is_on {
            self.compactor.compact_now(Trigger::NewRun, 1).result?;
        }
        Ok(())
    }
}
