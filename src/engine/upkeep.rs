//! Letting go: checkpoint, recycle, remove, unmap.
//!
//! Promises: a checkpoint that does not list a segment is durable before that segment is touched,
//! so a listed file that is absent is a loss; nothing is let go before every one of its slots was
//! seen settled. Relies on the `upkeep` lock; may be called at any time, by anyone.

use super::supply::Supply;
use super::track::Track;
use super::{CHECKPOINT_ROOM, Engine};
use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::name;
use crate::log::Segment;
use crate::log::merge::Source;
use crate::recovery::Log;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A segment that is not needed any more. With the number of its slots, it can be used again; without, somebody may
/// still read from it.
type Left = (Arc<Segment>, Option<u32>);

/// What is to be tidied.
#[derive(Debug)]
pub(super) struct Upkeep {
    checkpoint: CheckpointFile,
    /// Names that mean nothing any more, with the bytes that count as used by them.
    leftovers: Vec<(String, u64)>,
    /// Segments in which nothing is owed, with the number of their slots.
    done: Vec<Left>,
    /// Copies, and what they were made from: to be let go once the copy is synced with the latest states.
    replaced: Vec<(Arc<Segment>, Vec<Left>)>,
    /// Copies, and the names of what they were made from, which may not be removed for good.
    alone: Vec<(u64, Vec<String>)>,
    queue_id: [u8; 16],
    pub(super) is_closed: bool,
}

impl Upkeep {
    pub(super) fn new(log: Log) -> Self {
        let Log { checkpoint, leftovers, queue_id, replaced, .. } = log;
        let counted = |source: Source| (source.segment, None);
        let replaced = replaced.into_iter().map(|replaced| {
            let sources = replaced.sources.into_iter().map(counted).collect();
            (replaced.copy.segment, sources)
        });
        Self {
            checkpoint,
            leftovers,
            done: Vec::new(),
            replaced: replaced.collect(),
            alone: Vec::new(),
            queue_id,
            is_closed: false,
        }
    }

    /// This name means nothing any more; so many bytes count as used by it.
    pub(super) fn leave(&mut self, name: String, bytes: u64) {
        self.leftovers.push((name, bytes));
    }

    /// From here on a copy counts, and what it was made from does not. Payloads may still be copied out of that.
    pub(super) fn replace(&mut self, copy: Arc<Segment>, sources: Vec<Arc<Segment>>) {
        let sources = sources.into_iter().map(|source| (source, None));
        self.replaced.push((copy, sources.collect()));
    }
}

impl Engine {
    /// One pass over all there is to tidy. Goes on after an error, and tells the first.
    pub(super) fn run_upkeep(&self) -> Result<()> {
        let counted = self.count_old_tracks();
        self.drop_idle_maps();
        let gone = self.let_segments_go();
        counted.and(gone).and(self.prepare_ahead())
    }

    /// Unmaps what nobody uses, and closes what is synced besides.
    pub(super) fn drop_idle_maps(&self) {
        let idle = self.deliver.lock().take_idle_maps();
        drop(idle);
        // While this leads, nobody takes the answers in them for synced, or lets one of them go.
        let lead = self.lead_when_free();
        let held = self.deliver.lock().take_held_open();
        for segment in held {
            if let Err(error) = segment.sync() {
                self.health.poison("sync segment", &segment.path, error);
                return;
            }
        }
        drop(lead);
        let clean = self.deliver.lock().unmapped_and_clean(|last_seq| self.is_durable(last_seq));
        for segment in clean {
            segment.release();
        }
    }

    /// Gives back what is in use for nothing.
    pub(super) fn let_segments_go(&self) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        if upkeep.is_closed {
            return Ok(());
        }
        self.health.check(false)?;
        // What earlier runs left must be sealed before any of it is touched, or its end is lost.
        if !self.supply.lock().is_old_tail_finished() {
            return Ok(());
        }
        self.retire(&mut upkeep)?;
        self.write_checkpoint(&mut upkeep)?;
        let mut result = Ok(());
        let lets_go = !upkeep.done.is_empty() || !upkeep.leftovers.is_empty();
        for (segment, count) in std::mem::take(&mut upkeep.done) {
            let reused = self.reuse_or_remove(&mut upkeep, &segment, count);
            result = result.and(reused);
        }
        let leftovers = std::mem::take(&mut upkeep.leftovers);
        for (name, bytes) in leftovers {
            match self.storage.remove(&name) {
                Ok(()) => self.space.give_back(bytes),
                Err(error) => {
                    let error = Error::io("remove file", &self.storage.path(&name), 0, error);
                    upkeep.leftovers.push((name, bytes));
                    result = result.and(Err(error));
                }
            }
        }
        if lets_go {
            // Relaxed: whoever waits for it waits for the lock that is held here.
            self.letting_go.store(0, Ordering::Relaxed);
            self.space.room.wake_all();
        }
        result.and(self.forget_sources(&mut upkeep))
    }

    /// Makes sure that what copies were made from is gone for good: from then on others can be made from them.
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
        let synced = self.storage.sync_directory();
        let directory = self.directory();
        if let Err(error) = synced {
            upkeep.alone.extend(removed);
            return Err(Error::io("sync directory", &directory, 0, error));
        }
        let mut deliver = self.deliver.lock();
        for (ordinal, _) in removed {
            if let Some(track) = deliver.track(ordinal) {
                track.outlook.has_sources = false;
            }
        }
        Ok(())
    }

    /// Syncs copies with the states that they were given last, so that what they were made from can go.
    fn sync_copies(&self, upkeep: &mut Upkeep) -> Result<()> {
        while let Some((copy, _)) = upkeep.replaced.last() {
            let synced = copy.sync();
            synced.map_err(|error| self.health.poison("sync segment", &copy.path, error))?;
            // A round of syncs that began before they were replaced may have one of them in its plan.
            drop(self.lead_when_free());
            if let Some((copy, sources)) = upkeep.replaced.pop() {
                let names = sources.iter().map(|(source, _)| source.name.clone()).collect();
                upkeep.alone.push((copy.header.ordinal, names));
                upkeep.done.extend(sources);
            }
        }
        Ok(())
    }

    /// Takes segments in which nothing is owed out of the log, once all of that is synced: should
    /// such a file come back after a power cut, it shows the same.
    fn retire(&self, upkeep: &mut Upkeep) -> Result<()> {
        let unsynced = self.deliver.lock().done_and_dirty();
        for segment in unsynced {
            let synced = segment.sync();
            synced.map_err(|error| self.health.poison("sync segment", &segment.path, error))?;
            self.deliver.lock().done_is_clean(&segment);
        }
        // While this leads, no round has one of them in its plan.
        let lead = self.lead_when_free();
        let append = self.append.lock();
        let is_synced = |segment: &Arc<Segment>| {
            !append.full.iter().any(|full| Arc::ptr_eq(&full.segment, segment))
        };
        let done = self.deliver.lock().take_done(is_synced);
        // Relaxed: the `append` lock orders it.
        self.letting_go.fetch_add(wide(done.len()), Ordering::Relaxed);
        drop((append, lead));
        let done = done.into_iter().map(|Track { segment, count, .. }| (segment, count));
        upkeep.done.extend(done.map(|(segment, count)| (segment, Some(count.unwrap_or(0)))));
        Ok(())
    }

    /// Writes what open would like to know, if it has changed.
    pub(super) fn write_checkpoint(&self, upkeep: &mut Upkeep) -> Result<()> {
        // No list goes without a segment whose states are not safe elsewhere.
        self.sync_copies(upkeep)?;
        let supply = self.supply.lock();
        let last_seq = self.last_seq().unwrap_or(0);
        let checkpoint = self.checkpoint(&supply, last_seq, upkeep.queue_id);
        drop(supply);
        if upkeep.checkpoint.is_current(&checkpoint) || checkpoint.segments.is_empty() {
            return Ok(());
        }
        self.health.check(false)?;
        let size = upkeep.checkpoint.size();
        let written = upkeep.checkpoint.write(&*self.storage, &checkpoint);
        let [before, now] = [size, upkeep.checkpoint.size()].map(|size| size.max(CHECKPOINT_ROOM));
        self.space.add(now.saturating_sub(before));
        match written {
            // No room for the first one: then no list names a segment, and any may be let go.
            Err(Error::StorageFull { .. }) if !upkeep.checkpoint.exists() => return Ok(()),
            result => result?,
        }
        let synced = upkeep.checkpoint.sync(&*self.storage, checkpoint);
        synced.map_err(|error| {
            self.health.poison("sync checkpoint", &self.storage.path(name::CHECKPOINT), error)
        })
    }

    fn checkpoint(&self, supply: &Supply, last_seq: u64, queue_id: [u8; 16]) -> Checkpoint {
        let ready = supply.ready.as_ref().map(|ready| Listed {
            ordinal: ready.segment.header.ordinal,
            first_seq: 0,
            span: 0,
        });
        let compacting = supply.compacting.map(|ordinal| Listed { ordinal, first_seq: 0, span: 0 });
        let newest_time = self.append.lock().newest_time();
        let deliver = self.deliver.lock();
        let used = deliver.tracks().map(|track| Listed {
            ordinal: track.ordinal(),
            first_seq: if track.count == Some(0) { 0 } else { track.first_seq },
            span: track.count.map_or(0, |_| track.end_seq(0) - track.first_seq),
        });
        let is_used = |listed: &Listed| deliver.tracks().any(|of| of.ordinal() == listed.ordinal);
        let compacting = compacting.filter(|listed| !is_used(listed));
        let segments: Vec<Listed> = used.chain(ready).chain(compacting).collect();
        // Numbers that an unclean end made open skip are no records, nor are those let go.
        let last_listed = segments.iter().rev().find(|listed| listed.first_seq > 0);
        let last_listed = last_listed.map_or(0, |listed| match listed.span {
            0 => u64::MAX,
            span => listed.first_seq + span - 1,
        });
        // Acquire: pairs with the store in `finish_round`.
        let durable = self.durable.load(Ordering::Acquire);
        Checkpoint {
            queue_id,
            epoch: supply.epoch,
            watermark: durable.min(last_seq).min(last_listed),
            seq_limit: supply.seq_limit,
            segments,
            // What is durable is in a segment, settled, or was found missing by open; what was let
            // go is durable.
            accounted: durable,
            unaccounted: deliver.losses.unaccounted.clone(),
            newest_time,
            next_ordinal: supply.next_ordinal(),
        }
    }

    /// Makes a segment that no list names the ready one, or removes it.
    fn reuse_or_remove(
        &self,
        upkeep: &mut Upkeep,
        segment: &Arc<Segment>,
        count: Option<u32>,
    ) -> Result<()> {
        let mut supply = self.supply.lock();
        let size = segment.header.size;
        let is_full_size = size == self.options.segment_limit();
        let is_of_use = is_full_size && supply.ready.is_none() && supply.has_begun;
        let count = count.filter(|_| is_of_use && !supply.is_closed);
        let prepared = if let Some(count) = count {
            let recycled = self
                .next_header(&mut supply, size)
                .and_then(|header| segment.recycle(&*self.storage, header, count))
                .and_then(|recycled| self.map_prepared(Arc::new(recycled)));
            let left = |_: &Error| upkeep.leftovers.push((segment.name.clone(), size));
            let recycled = recycled.inspect_err(left)?;
            self.note_taken(size);
            Some(recycled)
        } else {
            None
        };
        supply.ready = supply.ready.take().or_else(|| prepared.clone());
        drop(supply);
        if let Some(prepared) = prepared {
            return self.warm_up_ready(prepared);
        }
        match self.storage.remove(&segment.name) {
            Ok(()) => {
                self.space.give_back(size);
                Ok(())
            }
            Err(error) => {
                upkeep.leftovers.push((segment.name.clone(), size));
                Err(segment.error("remove segment", 0, error))
            }
        }
    }
}
