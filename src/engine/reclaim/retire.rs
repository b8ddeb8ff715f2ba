//! Letting go: checkpoint, recycle, remove.
//!
//! Promises: a checkpoint that does not list a segment is durable before that segment is touched,
//! so a listed file that is absent is a loss; no segment is let go before every one of its slots
//! was seen settled. Relies on the `upkeep` lock; may be called at any time, by any thread.

use super::let_go::{LetGo, Who};
use super::upkeep::Upkeep;
use crate::checkpoint::SLOTS;
use crate::clock;
use crate::engine::append::{Appender, SupplyState, Unsealed, maker::Maker};
use crate::engine::backlog::track::Track;
use crate::engine::commit::Commit;
use crate::engine::context::{Context, RETRY_AFTER};
use crate::engine::signal::DispatchLock;
use crate::engine::space::CHECKPOINT_ROOM;
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::format::bytes::to_u64;
use crate::format::checkpoint::{Added, Checkpoint, Listed};
use crate::format::name;
use crate::log::Segment;
use crate::recovery::{Leftover, Log};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Retires segments, and removes files that are no longer needed.
#[derive(Debug)]
pub(crate) struct Retirer {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
    commit: Arc<Commit>,
    upkeep: Mutex<Upkeep>,
    /// Segments that are no longer in the log, and not yet removed or used again.
    letting_go: AtomicU64,
}

/// The list in CHECKPOINT is written for one part in this many of the segments that are in it: so a
/// segment that comes or goes costs this many entries.
const LIST_PART: u64 = 64;
/// An older list is written anew, too.
const LIST_AGE: Duration = Duration::from_secs(1);

impl Retirer {
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
            letting_go: AtomicU64::new(0),
        }
    }

    /// What is to be tidied: while this is locked, nothing is let go.
    pub(super) fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock()
    }

    /// Segments that are done, or on their way out.
    pub(super) fn done_segments(&self) -> u64 {
        // Relaxed: a segment that goes is in one of the two, under the lock of the unsealed ones,
        // which a caller holds that wants to know exactly.
        let going = self.letting_go.load(Ordering::Relaxed);
        self.dispatch.lock().backlog().tracks().done_segments() + going
    }

    /// From here on a copy counts, and its sources do not.
    pub(super) fn replace(
        &self,
        upkeep: &mut Upkeep,
        copy: Arc<Segment>,
        sources: Vec<Arc<Segment>>,
    ) {
        // Relaxed: as in `retire`; a moment late.
        self.letting_go.fetch_add(to_u64(sources.len()), Ordering::Relaxed);
        upkeep.replace(copy, sources);
    }

    /// Gives back files that are no longer needed, for about this time, in the background. A file
    /// that cannot be removed is no error: it is tried again later. The list of many segments is
    /// written once for many that come or go, or when it is a second old.
    pub(crate) fn let_go_for(&self, time: Duration) -> Result<LetGo> {
        let end = clock::now().checked_add(time);
        let is_over = || end.is_some_and(|end| clock::now() >= end);
        let gone = self.let_go_until(usize::MAX, Who::Background, is_over);
        gone.map(|(gone, removed)| self.with_noted(gone, removed))
    }

    /// The same for one such file, for a producer that is faster than the background.
    pub(crate) fn let_go_of_one(&self) -> Result<LetGo> {
        let gone = self.let_go_until(1, Who::Producer, || false);
        gone.map(|(gone, removed)| self.with_noted(gone, removed))
    }

    /// The same for up to `limit` of such files, at once.
    pub(crate) fn let_go(&self, limit: usize) -> Result<LetGo> {
        let gone = self.let_go_until(limit, Who::Caller, || false);
        gone.map(|(gone, removed)| self.with_noted(gone, removed))
    }

    fn with_noted(&self, gone: LetGo, removed: Result<()>) -> LetGo {
        self.context.health.note_background(removed);
        gone
    }

    /// The same for all of them, for a caller that wants to hear of a file that cannot be removed.
    pub(crate) fn let_go_of_all(&self) -> Result<()> {
        self.let_go_until(usize::MAX, Who::Caller, || false).and_then(|(_, removed)| removed)
    }

    /// Also tells whether all files could be removed that were tried. What failed is tried again.
    fn let_go_until(
        &self,
        limit: usize,
        who: Who,
        is_over: impl Fn() -> bool,
    ) -> Result<(LetGo, Result<()>)> {
        let gone = self.try_to_let_go(limit, who, is_over);
        if !matches!(gone, Ok((_, Ok(())))) {
            self.context.retry_upkeep();
        }
        gone
    }

    fn try_to_let_go(
        &self,
        limit: usize,
        who: Who,
        is_over: impl Fn() -> bool,
    ) -> Result<(LetGo, Result<()>)> {
        let mut upkeep = self.upkeep.lock();
        if upkeep.is_closed() {
            return Ok((LetGo::NOTHING, Ok(())));
        }
        self.context.health.check(false)?;
        self.release_kept(&mut upkeep)?;
        // What earlier runs left must be sealed before any of it is touched, or its end is lost.
        if !self.appender.with_supply_state(|supply| supply.is_old_tail_finished) {
            return Ok((LetGo::NOTHING, Ok(())));
        }
        let has_enough = who == Who::Caller && upkeep.unlisted_count() >= limit;
        let is_cut = !has_enough && self.retire(&mut upkeep, limit, who, is_over)?;
        let lists = who == Who::Caller || self.is_list_due(&upkeep);
        // For its hints alone, a caller that waits writes none.
        if lists && (limit == usize::MAX || upkeep.has_listed_files() && !has_enough) {
            self.write_checkpoint(&mut upkeep)?;
        }
        if !lists {
            self.context.worker.ask_within(RETRY_AFTER);
        }
        let mut removed = Ok(());
        let done = upkeep.take_unlisted(limit);
        let segments = done.len();
        for (segment, count) in done {
            let reused = self.reuse_or_remove(&mut upkeep, &segment, count, who);
            // Relaxed: a thread that waits for it waits for the lock that is held here.
            let going = self.letting_go.load(Ordering::Relaxed);
            self.letting_go.store(going.saturating_sub(1), Ordering::Relaxed);
            removed = removed.and(reused);
        }
        removed = removed.and(self.appender.remove_leftovers());
        let leftovers = upkeep.take_leftovers();
        let has_tried = segments > 0 || !leftovers.is_empty();
        removed = removed.and(self.remove_leftovers(&mut upkeep, leftovers, limit - segments));
        let has_more = is_cut || upkeep.unlisted_count() > 0 || segments == limit && segments > 0;
        let released = self.release_kept(&mut upkeep);
        drop(upkeep);
        if has_tried {
            self.context.waiters.room.wake_first();
        }
        released?;
        self.context.health.check(false)?;
        Ok((LetGo { segments, has_more }, removed))
    }

    /// Removes up to `limit` files that mean nothing any more. One that cannot be removed does not
    /// hold up the others.
    fn remove_leftovers(
        &self,
        upkeep: &mut Upkeep,
        leftovers: Vec<Leftover>,
        limit: usize,
    ) -> Result<()> {
        let (mut left, mut result) = (limit, Ok(()));
        for Leftover { name, bytes, .. } in leftovers {
            let removed = if left > 0 { Some(self.context.remove(&name)) } else { None };
            if let Some(Ok(())) = removed {
                self.context.space.give_back(bytes);
                left -= 1;
            } else {
                upkeep.leave_unlisted(name, bytes);
            }
            result = result.and(removed.unwrap_or(Ok(())));
        }
        result
    }

    /// Makes sure that files are gone for good that have some of the messages of other segments:
    /// from then on those can be let go or copied.
    pub(super) fn release_kept(&self, upkeep: &mut Upkeep) -> Result<()> {
        let last = upkeep.take_last_kept();
        if last.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.sync_directory() {
            upkeep.keep_on(last);
            return Err(error);
        }
        let still_kept = upkeep.kept_ordinals();
        let released: BTreeSet<Ordinal> = last.iter().map(|last| last.ordinal).collect();
        let mut dispatch = self.dispatch.lock();
        for ordinal in released.difference(&still_kept) {
            let Some(track) = dispatch.backlog_mut().track(*ordinal) else { continue };
            track.copying_mut().end_keeping();
            // It was settled meanwhile, and could not go.
            if track.is_done() {
                self.context.worker.ask();
            }
        }
        Ok(())
    }

    fn sync_directory(&self) -> Result<()> {
        let synced = self.context.storage.sync_directory();
        self.context.health.believe("sync directory", &self.context.directory(), synced)
    }

    /// Makes sure that a power cut takes no file away that open has found: the last run may have
    /// been killed right after it named a copy, or CHECKPOINT.
    fn sync_found_names(&self, upkeep: &mut Upkeep) -> Result<()> {
        if !upkeep.has_durable_names() {
            self.sync_directory()?;
            upkeep.note_durable_names();
        }
        Ok(())
    }

    /// Syncs copies with the states that they were given last, so that their sources can go.
    fn sync_copies(&self, upkeep: &mut Upkeep) -> Result<()> {
        while let Some(copy) = upkeep.unsynced_copy() {
            self.context.sync_copy(copy)?;
            // A round of syncs that began before they were replaced may have one of them in its
            // plan.
            drop(self.commit.lead_when_free());
            upkeep.note_synced_copy();
        }
        Ok(())
    }

    /// Writes the list of segments if that is due, and this run has made one: so the next open can
    /// tell which are gone. Does not wait for another thread that tidies.
    pub(super) fn list_if_due(&self) -> Result<()> {
        let supply = self.appender.with_supply_state(|supply| supply);
        let upkeep = if supply.has_begun { self.upkeep.try_lock() } else { None };
        let Some(mut upkeep) = upkeep else { return Ok(()) };
        let is_over = upkeep.is_closed() || self.context.health.check(false).is_err();
        if is_over || !supply.is_old_tail_finished || !self.is_list_due(&upkeep) {
            return Ok(());
        }
        self.write_checkpoint(&mut upkeep)
    }

    /// Whether so many segments came, or are to go, that their list is to be written anew, or it is
    /// old. That costs as much as there are segments; so does what it tells the next open.
    fn is_list_due(&self, upkeep: &Upkeep) -> bool {
        let next_ordinal = self.appender.with_supply_state(|supply| supply.next_ordinal);
        let Some((changed, age)) = upkeep.listed_since(next_ordinal) else { return true };
        changed >= self.many() || age >= LIST_AGE
    }

    /// This many segments come or go before their list is written anew.
    pub(super) fn many(&self) -> u64 {
        to_u64(self.dispatch.lock().backlog().tracks().len()) / LIST_PART
    }

    /// Takes `limit` more segments without an unsettled message out of the log, and as many as need
    /// no sync and are worth a list. Each of them is synced first as a whole: if its file
    /// comes back after a power cut, it shows the same. Returns true if it ended early.
    fn retire(
        &self,
        upkeep: &mut Upkeep,
        limit: usize,
        who: Who,
        is_over: impl Fn() -> bool,
    ) -> Result<bool> {
        let (had, many) = (upkeep.done_count(), usize::try_from(self.many()).unwrap_or(limit));
        let (to_sync, most) = (had.saturating_add(limit), many.max(had.saturating_add(limit)));
        while upkeep.done_count() < most {
            if upkeep.done_count() > 0 && is_over() {
                return Ok(true);
            }
            if upkeep.done_count() < to_sync
                && let Some(segment) = self.first_done_and_unsynced(who)
            {
                self.context.sync(&segment)?;
                // A done segment has no more stores.
                let mut dispatch = self.dispatch.lock();
                dispatch.backlog_mut().tracks_mut().note_done_synced(segment.header.ordinal);
            }
            // While this leads, no round has one of them in its plan.
            let lead = self.commit.lead_when_free();
            let unsealed = self.appender.unsealed();
            let can_go = |track: &Track| can_go(track, &unsealed, who);
            let mut dispatch = self.dispatch.lock();
            let done = dispatch.backlog_mut().tracks_mut().take_done(can_go);
            // Relaxed: the lock of the unsealed segments orders it.
            self.letting_go.fetch_add(u64::from(done.is_some()), Ordering::Relaxed);
            drop(unsealed);
            drop(dispatch);
            drop(lead);
            let Some(done) = done else { return Ok(false) };
            let (segment, count) = (Arc::clone(done.segment()), done.count().unwrap_or(0));
            self.dispatch.give_up_left_maps();
            // There may be many until the list is written, which needs a descriptor itself.
            segment.release();
            upkeep.add_done(segment, count);
        }
        Ok(false)
    }

    /// The first sealed segment without an unsettled message whose slots are not synced yet.
    fn first_done_and_unsynced(&self, who: Who) -> Option<Arc<Segment>> {
        let unsealed = self.appender.unsealed();
        let dispatch = self.dispatch.lock();
        let tracks = dispatch.backlog().tracks();
        tracks.first_done_and_unsynced(|track| can_go(track, &unsealed, who)).cloned()
    }

    /// Writes the hints for the next open, if they have changed.
    pub(super) fn write_checkpoint(&self, upkeep: &mut Upkeep) -> Result<()> {
        // None says that something is durable that is not.
        self.appender.finish_old_tail()?;
        // No list goes without a segment whose states are not safe elsewhere.
        self.sync_found_names(upkeep)?;
        self.sync_copies(upkeep)?;
        // While the supply is locked no ordinal is given out, and no segment becomes active.
        let checkpoint = self.appender.with_supply_state(|supply| self.checkpoint(&supply));
        let next_ordinal = checkpoint.next_ordinal;
        if checkpoint.segments.is_empty() {
            upkeep.note_listed(next_ordinal, true);
            return Ok(());
        }
        let (has_files, checkpoint) = (upkeep.has_listed_files(), Arc::new(checkpoint));
        let file = upkeep.checkpoint_file();
        // If one slot rots, the other must not tell of files that are gone, or forget a loss.
        let needs_both = has_files || file.may_lack_facts_of(&checkpoint);
        let wanted = if needs_both { SLOTS } else { 1 };
        while file.slots_with(&checkpoint) < wanted {
            self.context.health.check(false)?;
            let size = file.size();
            let written = file.write(&*self.context.storage, &checkpoint);
            let [before, now] = [size, file.size()].map(|size| size.max(CHECKPOINT_ROOM));
            self.context.space.add(now.saturating_sub(before));
            // One that others know by another name is replaced, by a smaller one perhaps.
            if now < before {
                self.context.space.give_back(before - now);
            }
            match written {
                // No room for the first one: then no list names a segment, and any may be let go.
                Err(Error::StorageFull { .. }) if !file.exists() => break,
                result => result?,
            }
            let synced = file.sync(&*self.context.storage, &checkpoint);
            let path = self.context.storage.path(name::CHECKPOINT);
            self.context.health.believe("sync checkpoint", &path, synced)?;
            self.context.clock.note_known(checkpoint.added.clock);
        }
        upkeep.note_listed(next_ordinal, has_files);
        Ok(())
    }

    /// Writes CHECKPOINT now: with the time, how the clock is set, and what is left out.
    pub(super) fn write_now(&self) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        if upkeep.is_closed() || self.context.health.check(false).is_err() {
            return Ok(());
        }
        // Also if nothing else has changed.
        upkeep.checkpoint_file().forget();
        self.write_checkpoint(&mut upkeep).inspect_err(|_| self.context.retry_upkeep())
    }

    fn checkpoint(&self, supply: &SupplyState) -> Checkpoint {
        let unsealed = self.appender.unsealed();
        let (last_seq, newest_time) = (unsealed.last_seq().unwrap_or(0), unsealed.newest_time());
        drop(unsealed);
        let dispatch = self.dispatch.lock();
        let backlog = dispatch.backlog();
        let used = backlog.tracks().iter().map(|track| Listed {
            ordinal: track.ordinal(),
            first_seq: if track.count() == Some(0) { 0 } else { track.first_seq() },
            span: track.count().map_or(0, |_| track.end_seq(0) - track.first_seq()),
        });
        let is_used = |ordinal: &Ordinal| backlog.tracks().position_of(*ordinal).is_some();
        let others = supply.ready.into_iter().chain(supply.making).chain(supply.compacting);
        let others = others.filter(|ordinal| !is_used(ordinal));
        let others = others.map(|ordinal| Listed { ordinal, first_seq: 0, span: 0 });
        let mut segments: Vec<Listed> = backlog.losses().segments().collect();
        let lost = segments.len();
        segments.extend(used.chain(others));
        // Numbers that an unclean end made open skip are no records, nor are those let go or lost.
        let mut newest_first = segments.iter().skip(lost).rev();
        let last_listed = newest_first.find(|listed| listed.first_seq > 0);
        let last_listed = last_listed.map_or(0, |listed| match listed.span {
            0 => u64::MAX,
            span => listed.first_seq + span - 1,
        });
        let durable = self.commit.durable();
        let apart = backlog.losses().apart();
        let (offset, clock) = (dispatch.consumer_offset(), &self.context.clock);
        Checkpoint {
            queue_id: supply.queue_id,
            epoch: supply.epoch,
            watermark: durable.min(last_seq).min(last_listed),
            seq_limit: supply.seq_limit,
            segments: segments.into(),
            // What is durable is in a segment, settled, or was found missing by open; what was let
            // go is durable.
            accounted: durable,
            unaccounted: backlog.losses().unaccounted().clone(),
            newest_time,
            next_ordinal: supply.next_ordinal,
            added: Added { clock: clock.known(), offset, anchor: clock.anchor(), apart },
        }
    }

    /// Makes a segment that no list names the ready one, or removes it.
    fn reuse_or_remove(
        &self,
        upkeep: &mut Upkeep,
        segment: &Arc<Segment>,
        count: Option<u32>,
        who: Who,
    ) -> Result<()> {
        let size = segment.header.size;
        let maker = Maker::new(&self.appender);
        let recycle = |count| maker.recycle(segment, count, who == Who::Background);
        if let Some(recycled) = count.and_then(recycle) {
            return recycled;
        }
        match self.context.remove(&segment.name) {
            Ok(()) => {
                self.context.space.give_back(size);
                Ok(())
            }
            Err(error) => {
                upkeep.leave_unlisted(segment.name.clone(), size);
                Err(error)
            }
        }
    }

    /// A copy that was given up could not be removed: that is tried again.
    pub(super) fn leave(&self, upkeep: &mut Upkeep, name: String, bytes: u64) {
        upkeep.give_up(name, bytes);
        self.context.retry_upkeep();
    }

    /// Ends the run: nothing is let go after it.
    pub(crate) fn finish_run(&self, is_synced: bool) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        upkeep.close();
        let finished = self.appender.finish_run(is_synced);
        let finished = if is_synced && finished.is_ok() {
            // The time of this run counts also if the clock is set back before the next one.
            self.context.clock.settle_shift();
            upkeep.checkpoint_file().forget();
            self.write_checkpoint(&mut upkeep)
        } else {
            finished
        };
        // Or else it would be open for as long as there is a clone of the queue.
        upkeep.checkpoint_file().close();
        finished
    }
}

/// Whether a segment that is done is sealed, and whether whoever lets go waits for nothing else.
fn can_go(track: &Track, unsealed: &Unsealed, who: Who) -> bool {
    let waits = who == Who::Background && track.records().is_to_evict();
    !waits && !unsealed.is_full(track.segment())
}
