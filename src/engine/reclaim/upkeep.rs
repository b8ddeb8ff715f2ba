//! Letting go: checkpoint, recycle, remove.
//!
//! Promises: a checkpoint that does not list a segment is durable before that segment is touched,
//! so a listed file that is absent is a loss; no segment is let go before every one of its slots
//! was seen settled. Relies on the `upkeep` lock; may be called at any time, by any thread.

use super::Reclaim;
use crate::checkpoint::CheckpointFile;
use crate::clock;
use crate::engine::append::SupplyState;
use crate::engine::space::CHECKPOINT_ROOM;
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::name;
use crate::log::Segment;
use crate::log::merge::CopySource;
use crate::recovery::Log;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A segment that is not needed any more. With the number of its slots, it can be used again;
/// without, a payload may still be copied out of it.
type Retired = (Arc<Segment>, Option<u32>);

/// What is to be tidied.
#[derive(Debug)]
pub(super) struct Upkeep {
    checkpoint: CheckpointFile,
    /// Names that mean nothing any more, with the bytes that count as used by them.
    leftovers: Vec<(String, u64)>,
    /// Segments without an unsettled message, with the number of their slots.
    done: Vec<Retired>,
    /// Copies, and what they were made from: to be let go once the copy is synced with the latest
    /// states.
    replaced: Vec<(Arc<Segment>, Vec<Retired>)>,
    /// Copies, and the names of what they were made from, which may not be removed for good.
    alone: Vec<(u64, Vec<String>)>,
    is_closed: bool,
}

/// What letting go did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LetGo {
    /// Segments that were removed, or will be used again.
    pub(crate) segments: usize,
    /// There may be more.
    pub(crate) has_more: bool,
}

impl LetGo {
    const NOTHING: Self = Self { segments: 0, has_more: false };
}

impl Upkeep {
    pub(super) fn new(log: Log) -> Self {
        let Log { checkpoint, leftovers, replaced, .. } = log;
        let counted = |source: CopySource| (source.segment, None);
        let replaced = replaced.into_iter().map(|replaced| {
            let sources = replaced.sources.into_iter().map(counted).collect();
            (replaced.copy.segment, sources)
        });
        let (done, alone) = (Vec::new(), Vec::new());
        Self { checkpoint, leftovers, done, replaced: replaced.collect(), alone, is_closed: false }
    }

    /// This name means nothing any more; this many bytes count as used by it.
    pub(super) fn leave(&mut self, name: String, bytes: u64) {
        self.leftovers.push((name, bytes));
    }

    /// From here on a copy counts, and what it was made from does not. Payloads may still be copied
    /// out of that.
    pub(super) fn replace(&mut self, copy: Arc<Segment>, sources: Vec<Arc<Segment>>) {
        let sources = sources.into_iter().map(|source| (source, None));
        self.replaced.push((copy, sources.collect()));
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }
}

impl Reclaim {
    /// Gives files back that are in use for nothing, for about this time.
    pub(crate) fn let_go_for(&self, time: Duration) -> Result<LetGo> {
        let end = clock::now().checked_add(time);
        self.let_go_until(usize::MAX, || end.is_some_and(|end| clock::now() >= end))
    }

    /// Gives up to `limit` such files back.
    pub(crate) fn let_go(&self, limit: usize) -> Result<LetGo> {
        self.let_go_until(limit, || false)
    }

    fn let_go_until(&self, limit: usize, is_over: impl Fn() -> bool) -> Result<LetGo> {
        let mut upkeep = self.upkeep.lock();
        if upkeep.is_closed {
            return Ok(LetGo::NOTHING);
        }
        self.context.health.check(false)?;
        // What earlier runs left must be sealed before any of it is touched, or its end is lost.
        if !self.appender.is_old_tail_finished() {
            return Ok(LetGo::NOTHING);
        }
        let is_cut = self.retire(&mut upkeep, limit, is_over)?;
        // For its hints alone, a caller that waits writes none.
        let is_needed = limit == usize::MAX
            || !upkeep.done.is_empty()
            || !upkeep.leftovers.is_empty()
            || !upkeep.replaced.is_empty();
        if is_needed {
            self.write_checkpoint(&mut upkeep)?;
        }
        let mut result = Ok(());
        let most = limit.min(upkeep.done.len());
        for (segment, count) in upkeep.done.drain(..most).collect::<Vec<_>>() {
            let reused = self.reuse_or_remove(&mut upkeep, &segment, count);
            // Relaxed: a thread that waits for it waits for the lock that is held here.
            let going = self.letting_go.load(Ordering::Relaxed);
            self.letting_go.store(going.saturating_sub(1), Ordering::Relaxed);
            result = result.and(reused);
        }
        let most_left = (limit - most).min(upkeep.leftovers.len());
        for (name, bytes) in upkeep.leftovers.drain(..most_left).collect::<Vec<_>>() {
            match self.context.storage.remove(&name) {
                Ok(()) => self.context.space.give_back(bytes),
                Err(error) => {
                    let path = self.context.storage.path(&name);
                    upkeep.leftovers.push((name, bytes));
                    result = result.and(Err(Error::io("remove file", &path, 0, error)));
                }
            }
        }
        let has_more = is_cut || !upkeep.done.is_empty() || most == limit && most > 0;
        let forgotten = self.forget_sources(&mut upkeep);
        drop(upkeep);
        if most > 0 || most_left > 0 {
            self.context.waiters.room.wake_first();
        }
        result.and(forgotten).map(|()| LetGo { segments: most, has_more })
    }

    /// Makes sure that what copies were made from is gone for good: from then on others can be made
    /// from them.
    fn forget_sources(&self, upkeep: &mut Upkeep) -> Result<()> {
        let Upkeep { done, leftovers, alone, .. } = upkeep;
        let is_there = |name: &String| {
            done.iter().any(|(segment, _)| segment.name == *name)
                || leftovers.iter().any(|(left, _)| left == name)
        };
        let (removed, kept): (Vec<_>, Vec<_>) =
            std::mem::take(alone).into_iter().partition(|(_, names)| !names.iter().any(is_there));
        *alone = kept;
        if removed.is_empty() {
            return Ok(());
        }
        let directory = self.context.directory();
        let synced = self.context.storage.sync_directory();
        if let Err(error) = self.context.health.believe("sync directory", &directory, synced) {
            upkeep.alone.extend(removed);
            return Err(error);
        }
        let mut dispatch = self.dispatch.lock();
        for (ordinal, _) in removed {
            if let Some(track) = dispatch.backlog_mut().track(ordinal) {
                track.copying_mut().forget_sources();
            }
        }
        Ok(())
    }

    /// Syncs copies with the states that they were given last, so that what they were made from can
    /// go.
    fn sync_copies(&self, upkeep: &mut Upkeep) -> Result<()> {
        while let Some((copy, _)) = upkeep.replaced.last() {
            self.context.health.sync(copy)?;
            // A round of syncs that began before they were replaced may have one of them in its
            // plan.
            drop(self.commit.lead_when_free());
            if let Some((copy, sources)) = upkeep.replaced.pop() {
                let names = sources.iter().map(|(source, _)| source.name.clone()).collect();
                upkeep.alone.push((copy.header.ordinal, names));
                upkeep.done.extend(sources);
            }
        }
        Ok(())
    }

    /// Takes up to `limit` segments without an unsettled message out of the log, once all of each
    /// is synced: should such a file come back after a power cut, it shows the same. Tells whether
    /// it ended early.
    fn retire(
        &self,
        upkeep: &mut Upkeep,
        limit: usize,
        is_over: impl Fn() -> bool,
    ) -> Result<bool> {
        while upkeep.done.len() < limit {
            if !upkeep.done.is_empty() && is_over() {
                return Ok(true);
            }
            if let Some(segment) = self.first_done_and_dirty() {
                self.context.health.sync(&segment)?;
                // A done segment has no more stores.
                let mut dispatch = self.dispatch.lock();
                if let Some(track) = dispatch.backlog_mut().track(segment.header.ordinal) {
                    track.set_clean();
                }
            }
            // While this leads, no round has one of them in its plan.
            let lead = self.commit.lead_when_free();
            let unsealed = self.appender.unsealed();
            let is_synced = |segment: &Arc<Segment>| !unsealed.is_full(segment);
            let mut dispatch = self.dispatch.lock();
            let done = dispatch.backlog_mut().tracks_mut().take_done(is_synced);
            // Relaxed: the lock of the unsealed segments orders it.
            self.letting_go.fetch_add(u64::from(done.is_some()), Ordering::Relaxed);
            drop(unsealed);
            drop(dispatch);
            drop(lead);
            let Some((segment, count)) = done else {
                if self.first_done_and_dirty().is_none() {
                    return Ok(false);
                }
                continue;
            };
            upkeep.done.push((segment, Some(count)));
        }
        Ok(false)
    }

    /// The first segment without an unsettled message whose slots are not synced yet.
    fn first_done_and_dirty(&self) -> Option<Arc<Segment>> {
        let dispatch = self.dispatch.lock();
        let tracks = dispatch.backlog().tracks();
        let older = tracks.len().saturating_sub(1);
        let mut older = tracks.iter().take(older);
        let first =
            older.find(|track| track.is_done() && track.is_dirty() && !track.copying().is_pinned());
        first.map(|track| Arc::clone(track.segment()))
    }

    /// Writes what open would like to know, if it has changed.
    pub(super) fn write_checkpoint(&self, upkeep: &mut Upkeep) -> Result<()> {
        // No list goes without a segment whose states are not safe elsewhere.
        self.sync_copies(upkeep)?;
        // While the supply is locked no ordinal is given out, and no segment becomes active.
        let checkpoint = self.appender.with_supply_state(|supply| self.checkpoint(&supply));
        if upkeep.checkpoint.is_current(&checkpoint) || checkpoint.segments.is_empty() {
            return Ok(());
        }
        let Self { context, .. } = self;
        context.health.check(false)?;
        let size = upkeep.checkpoint.size();
        let written = upkeep.checkpoint.write(&*context.storage, &checkpoint);
        let [before, now] = [size, upkeep.checkpoint.size()].map(|size| size.max(CHECKPOINT_ROOM));
        context.space.add(now.saturating_sub(before));
        match written {
            // No room for the first one: then no list names a segment, and any may be let go.
            Err(Error::StorageFull { .. }) if !upkeep.checkpoint.exists() => return Ok(()),
            result => result?,
        }
        let synced = upkeep.checkpoint.sync(&*context.storage, checkpoint);
        let path = context.storage.path(name::CHECKPOINT);
        context.health.believe("sync checkpoint", &path, synced)
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
        let is_used =
            |ordinal: &u64| backlog.tracks().iter().any(|track| track.ordinal() == *ordinal);
        let others = supply.ready.into_iter().chain(supply.compacting);
        let others = others.filter(|ordinal| !is_used(ordinal));
        let others = others.map(|ordinal| Listed { ordinal, first_seq: 0, span: 0 });
        let segments: Vec<Listed> = used.chain(others).collect();
        // Numbers that an unclean end made open skip are no records, nor are those let go.
        let last_listed = segments.iter().rev().find(|listed| listed.first_seq > 0);
        let last_listed = last_listed.map_or(0, |listed| match listed.span {
            0 => u64::MAX,
            span => listed.first_seq + span - 1,
        });
        let durable = self.commit.durable();
        Checkpoint {
            queue_id: supply.queue_id,
            epoch: supply.epoch,
            watermark: durable.min(last_seq).min(last_listed),
            seq_limit: supply.seq_limit,
            segments,
            // What is durable is in a segment, settled, or was found missing by open; what was let
            // go is durable.
            accounted: durable,
            unaccounted: backlog.losses().unaccounted().clone(),
            newest_time,
            next_ordinal: supply.next_ordinal,
        }
    }

    /// Makes a segment that no list names the ready one, or removes it.
    fn reuse_or_remove(
        &self,
        upkeep: &mut Upkeep,
        segment: &Arc<Segment>,
        count: Option<u32>,
    ) -> Result<()> {
        let size = segment.header.size;
        if let Some(recycled) = count.and_then(|count| self.appender.recycle(segment, count)) {
            // What a failure leaves under the old name means nothing.
            return recycled.inspect_err(|_| upkeep.leave(segment.name.clone(), size));
        }
        match self.context.storage.remove(&segment.name) {
            Ok(()) => {
                self.context.space.give_back(size);
                Ok(())
            }
            Err(error) => {
                upkeep.leave(segment.name.clone(), size);
                Err(segment.error("remove segment", 0, error))
            }
        }
    }

    /// Ends the run: nothing is let go after it.
    pub(crate) fn finish_run(&self, is_synced: bool) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        upkeep.is_closed = true;
        let finished = self.appender.finish_run(is_synced);
        if !is_synced {
            return finished;
        }
        finished?;
        self.write_checkpoint(&mut upkeep)
    }
}
