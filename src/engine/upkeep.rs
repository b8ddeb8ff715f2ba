//! Letting go: checkpoint, recycle, remove, unmap.
//!
//! Promises: a checkpoint that does not list a segment is durable before that segment is touched,
//! so a listed file that is absent is a loss; nothing is let go before every one of its slots was
//! seen settled. Relies on the `upkeep` lock; may be called at any time, by anyone.

use super::Engine;
use super::supply::{Prepared, Supply};
use super::track::Track;
use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::name;
use crate::log::Segment;
use crate::recovery::Log;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is to be tidied.
#[derive(Debug)]
pub(super) struct Upkeep {
    checkpoint: CheckpointFile,
    /// Names that mean nothing any more.
    leftovers: Vec<String>,
    /// Segments in which nothing is owed, with the number of their slots.
    done: Vec<(Arc<Segment>, u32)>,
    queue_id: [u8; 16],
}

impl Upkeep {
    pub(super) fn new(log: Log) -> Self {
        let Log { checkpoint, leftovers, queue_id, .. } = log;
        Self { checkpoint, leftovers, done: Vec::new(), queue_id }
    }
}

impl Engine {
    /// One pass over all there is to tidy.
    pub(super) fn run_upkeep(&self) -> Result<()> {
        self.count_old_tracks()?;
        drop(self.deliver.lock().take_idle_maps());
        self.let_segments_go()?;
        self.prepare_ahead()
    }

    /// Gives back what is in use for nothing.
    pub(super) fn let_segments_go(&self) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        self.retire(&mut upkeep);
        self.write_checkpoint_if_changed(&mut upkeep)?;
        while let Some((segment, count)) = upkeep.done.pop() {
            if let Err(error) = self.reuse_or_remove(&segment, count) {
                upkeep.done.push((segment, count));
                return Err(error);
            }
        }
        while let Some(name) = upkeep.leftovers.pop() {
            if let Err(error) = self.storage.remove(&name) {
                let error = Error::io("remove file", &self.storage.path(&name), 0, error);
                upkeep.leftovers.push(name);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes what open would like to know.
    pub(super) fn write_checkpoint(&self) -> Result<()> {
        self.write_checkpoint_if_changed(&mut self.upkeep.lock())
    }

    /// Takes segments in which nothing is owed out of the log.
    fn retire(&self, upkeep: &mut Upkeep) {
        let supply = self.supply.lock();
        // What earlier runs left must be sealed before any of it is touched, or its end is lost.
        if !supply.is_old_tail_finished() {
            return;
        }
        let mut append = self.append.lock();
        let done = self.deliver.lock().take_done();
        // No need to sync any more what nobody is owed.
        let is_done =
            |segment: &Arc<Segment>| done.iter().any(|track| Arc::ptr_eq(&track.segment, segment));
        append.full.retain(|full| !is_done(&full.segment));
        drop((append, supply));
        let tracks = done.into_iter();
        upkeep
            .done
            .extend(tracks.map(|Track { segment, count, .. }| (segment, count.unwrap_or(0))));
    }

    fn write_checkpoint_if_changed(&self, upkeep: &mut Upkeep) -> Result<()> {
        let supply = self.supply.lock();
        let last_seq = self.last_seq().unwrap_or(0);
        let checkpoint = self.checkpoint(&supply, last_seq, upkeep.queue_id);
        drop(supply);
        if upkeep.checkpoint.is_current(&checkpoint) || checkpoint.segments.is_empty() {
            return Ok(());
        }
        self.health.check(false)?;
        match upkeep.checkpoint.write(&*self.storage, &checkpoint) {
            // No room for the first one: then no list names a segment, and any may be let go.
            Err(Error::StorageFull { .. }) if !upkeep.checkpoint.exists() => return Ok(()),
            result => result?,
        }
        let synced = upkeep.checkpoint.sync(checkpoint);
        synced.map_err(|error| {
            self.health.poison("sync checkpoint", &self.storage.path(name::CHECKPOINT), error)
        })
    }

    fn checkpoint(&self, supply: &Supply, last_seq: u64, queue_id: [u8; 16]) -> Checkpoint {
        let deliver = self.deliver.lock();
        let used = deliver.tracks().map(|track| Listed {
            ordinal: track.ordinal(),
            first_seq: track.first_seq,
            count: track.count.unwrap_or(0),
        });
        let ready = supply.ready.as_ref().map(|ready| Listed {
            ordinal: ready.segment.header.ordinal,
            first_seq: 0,
            count: 0,
        });
        Checkpoint {
            queue_id,
            epoch: supply.epoch,
            // Acquire: pairs with the store in `finish_round`. Numbers that an unclean end made open
            // skip are no records.
            watermark: self.durable.load(Ordering::Acquire).min(last_seq),
            seq_limit: supply.seq_limit,
            segments: used.chain(ready).collect(),
        }
    }

    /// Makes a segment that no list names the ready one, or removes it.
    fn reuse_or_remove(&self, segment: &Arc<Segment>, count: u32) -> Result<()> {
        let mut supply = self.supply.lock();
        let is_full_size = segment.header.size == self.options.segment_bytes;
        if !is_full_size || supply.ready.is_some() || !supply.has_begun {
            drop(supply);
            let removed = self.storage.remove(&segment.name);
            return removed.map_err(|error| segment.error("remove segment", 0, error));
        }
        let header = self.next_header(&mut supply, segment.header.size)?;
        let recycled = segment.recycle(&*self.storage, header, count)?;
        let prepared = Prepared { region: recycled.map()?, segment: Arc::new(recycled) };
        supply.ready = Some(prepared.clone());
        drop(supply);
        self.warm_up_ready(&prepared)
    }
}
