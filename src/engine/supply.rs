//! Segments for pushes: prepared one ahead, so that rotation costs no I/O.
//!
//! Promises: before the first segment of a run gets its name, all that counts of earlier runs is
//! durable and sealed, so a dropped record can never come back behind a newer one; `seq_limit`
//! never falls. Relies on the `supply` lock for everything here.

use super::Engine;
use crate::error::{Error, Result};
use crate::format::segment::{Header, Seal, capacity};
use crate::io::{Access, Region};
use crate::log::Segment;
use crate::log::active::Active;
use crate::options::{Durability, Options};
use crate::recovery::{Log, Part, random};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The first segment of a run; each next one is twice as large, up to `segment_bytes`.
pub(super) const FIRST_SEGMENT: u64 = 1 << 20;

/// Where there is no room for more.
pub(super) const SMALLEST_SEGMENT: u64 = 64 << 10;

/// A segment that can be pushed to at once.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) segment: Arc<Segment>,
    pub(super) region: Arc<dyn Region>,
}

/// What pushes will need.
#[derive(Debug)]
pub(super) struct Supply {
    queue_id: [u8; 16],
    pub(super) epoch: u64,
    /// Whether this run has a segment.
    pub(super) has_begun: bool,
    /// The directory itself may not be durable in its parents yet.
    is_new: bool,
    pub(super) is_closed: bool,
    next_ordinal: u64,
    /// The segment that the next one follows.
    predecessor: u64,
    next_bytes: u64,
    pub(super) seq_limit: u64,
    pub(super) ready: Option<Prepared>,
    /// The ordinal of a compacted segment in the making: it may have its name before anybody reads it.
    pub(super) compacting: Option<u64>,
    /// Parts of earlier runs that have no seal yet.
    old_tail: Vec<Part>,
}

impl Supply {
    pub(super) fn new(log: &Log, options: &Options) -> Self {
        let unsealed = log.parts.iter().filter(|part| !part.is_sealed).cloned();
        Self {
            queue_id: log.queue_id,
            epoch: log.epoch,
            has_begun: false,
            is_new: log.is_new,
            is_closed: false,
            next_ordinal: log.next_ordinal,
            predecessor: log.parts.last().map_or(0, |part| part.segment.header.ordinal),
            next_bytes: FIRST_SEGMENT.min(options.segment_limit()),
            seq_limit: log.seq_limit,
            ready: None,
            compacting: None,
            old_tail: unsealed.collect(),
        }
    }

    /// Gives back what was taken and not used.
    pub(super) fn put_back(&mut self, prepared: Prepared) {
        self.ready = Some(prepared);
    }

    /// No ordinal from this one on was given out.
    pub(super) fn next_ordinal(&self) -> u64 {
        self.next_ordinal
    }

    /// Whether all of earlier runs is durable and sealed.
    pub(super) fn is_old_tail_finished(&self) -> bool {
        self.old_tail.is_empty()
    }

    /// The header of a compacted segment of this size, which belongs to no epoch of its own.
    pub(super) fn copy_header(&mut self, size: u64) -> Result<Header> {
        self.check_open()?;
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        self.compacting = Some(ordinal);
        Ok(Header {
            queue_id: self.queue_id,
            ordinal,
            predecessor: 0,
            generation: u64::from_le_bytes(random()?),
            epoch: self.epoch,
            size,
            seq_limit: self.seq_limit,
            sources: 0,
        })
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }
}

impl Engine {
    /// A segment of at least `bytes` for so many records: the ready one, or one that is made now.
    pub(super) fn take_supply(
        &self,
        supply: &mut Supply,
        bytes: u64,
        records: u64,
    ) -> Result<Prepared> {
        if let Some(ready) = supply.ready.take() {
            let Segment { header, slot_limit, .. } = &*ready.segment;
            if header.size >= bytes && u64::from(*slot_limit) >= records {
                return Ok(ready);
            }
            // Too small for this one message. It was never used, so nothing is lost with it.
            self.discard(ready)?;
        }
        let prepared = self.prepare(supply, bytes)?;
        if prepared.segment.header.size <= FIRST_SEGMENT
            && let Err(error) = self.warm_up(&prepared)
        {
            let error = prepared.segment.error("prepare segment", 0, error);
            // The first error is the one to tell; what stays is let go at the next open.
            self.discard(prepared).ok();
            return Err(error);
        }
        Ok(prepared)
    }

    /// Makes a segment of at least `bytes`.
    pub(super) fn prepare(&self, supply: &mut Supply, bytes: u64) -> Result<Prepared> {
        supply.check_open()?;
        self.finish_tail(supply)?;
        if supply.is_new {
            let synced = self.storage.sync_parents();
            let directory = self.directory();
            synced.map_err(|error| self.health.poison("sync parents", &directory, error))?;
            supply.is_new = false;
        }
        let size = self.take_space(supply.next_bytes.max(bytes), bytes)?;
        let prepared = self.next_header(supply, size).and_then(|header| {
            let segment = Arc::new(Segment::create(&*self.storage, header)?);
            supply.next_bytes = (supply.next_bytes * 2).min(self.options.segment_limit());
            self.map_prepared(segment)
        });
        prepared.inspect_err(|_| self.space.undo(size)).inspect(|_| self.note_taken(size))
    }

    /// Pushes took so many bytes of the disk.
    pub(super) fn note_taken(&self, bytes: u64) {
        // Relaxed: a number by itself.
        self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Room for a segment of this size, or else for one of at least `bytes`; tells which.
    fn take_space(&self, size: u64, bytes: u64) -> Result<u64> {
        let smallest = bytes.max(SMALLEST_SEGMENT).min(size);
        self.space.take(size).map(|()| size).or_else(|full| {
            if smallest < size { self.space.take(smallest).map(|()| smallest) } else { Err(full) }
        })
    }

    /// A segment that was just made, mapped; or, if it cannot be, removed.
    pub(super) fn map_prepared(&self, segment: Arc<Segment>) -> Result<Prepared> {
        let access = match self.options.durability {
            Durability::Os => Access::Streams,
            Durability::Always | Durability::Interval(_) => Access::Commits,
        };
        match segment.map(access) {
            Ok(region) => Ok(Prepared { segment, region }),
            Err(error) => {
                // The first error is the one to tell; what stays is finished off at the next open.
                self.storage.remove(&segment.name).ok();
                Err(error)
            }
        }
    }

    /// The header of the next segment. Begins the epoch with the first one.
    pub(super) fn next_header(&self, supply: &mut Supply, size: u64) -> Result<Header> {
        let append = self.append.lock();
        let room = append.active.as_ref().map_or(0, Active::room_in_records);
        let predecessor = append.active.as_ref().map(|active| active.segment.header.ordinal);
        let seq_limit = append.next_seq + room + capacity(size);
        drop(append);
        supply.seq_limit = supply.seq_limit.max(seq_limit);
        if !supply.has_begun {
            supply.epoch += 1;
            supply.has_begun = true;
        }
        let ordinal = supply.next_ordinal;
        supply.next_ordinal += 1;
        Ok(Header {
            queue_id: supply.queue_id,
            ordinal,
            predecessor: predecessor.unwrap_or(supply.predecessor),
            generation: u64::from_le_bytes(random()?),
            epoch: supply.epoch,
            size,
            seq_limit: supply.seq_limit,
            sources: 0,
        })
    }

    /// Makes stores into a prepared segment fast: pages resident, and, where the queue syncs, extents
    /// written, so that a commit has no file system metadata to write.
    fn warm_up(&self, prepared: &Prepared) -> std::io::Result<()> {
        prepared.region.populate();
        if self.options.durability == Durability::Os { Ok(()) } else { prepared.segment.sync() }
    }

    /// Lets a prepared segment go that was never used.
    pub(super) fn discard(&self, prepared: Prepared) -> Result<()> {
        let Prepared { segment, region } = prepared;
        drop(region);
        let removed = self.storage.remove(&segment.name);
        removed.map_err(|error| segment.error("remove segment", 0, error))?;
        self.space.give_back(segment.header.size);
        Ok(())
    }

    /// Lets the segment that is kept ready go, for its room; false if there is none.
    pub(super) fn give_up_ready(&self) -> Result<bool> {
        let ready = self.supply.lock().ready.take();
        ready.map_or(Ok(false), |ready| self.discard(ready).map(|()| true))
    }

    /// Makes durable and seals what earlier runs left.
    pub(super) fn finish_old_tail(&self) -> Result<()> {
        self.finish_tail(&mut self.supply.lock())
    }

    fn finish_tail(&self, supply: &mut Supply) -> Result<()> {
        if supply.old_tail.is_empty() {
            return Ok(());
        }
        self.health.check(false)?;
        let sync = |part: &Part| {
            let synced = part.segment.sync();
            synced.map_err(|error| self.health.poison("sync segment", &part.segment.path, error))
        };
        supply.old_tail.iter().try_for_each(sync)?;
        for Part { segment, tail, count, .. } in &supply.old_tail {
            let seal = Seal { tail: *tail, count: *count, run_ended: false };
            segment.store_seal(&*segment.map(Access::Commits)?, seal)?;
        }
        // The seals decide from here on where those segments end. They must be durable before
        // anything newer is.
        supply.old_tail.iter().try_for_each(sync)?;
        for part in &supply.old_tail {
            part.segment.release();
        }
        supply.old_tail.clear();
        Ok(())
    }

    /// Ends the run: nothing is prepared, tidied or stored after it. In order, if all is synced.
    pub(super) fn finish_run(&self, is_synced: bool) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        let mut supply = self.supply.lock();
        upkeep.is_closed = true;
        supply.is_closed = true;
        supply.old_tail.clear();
        let unused = supply.ready.take();
        if !is_synced {
            return Ok(());
        }
        let append = self.append.lock();
        if let Some(active) = &append.active {
            let (segment, seal) = (&active.segment, active.seal(true));
            segment.store_seal(&*active.region, seal)?;
            let synced = segment.sync();
            synced.map_err(|error| self.health.poison("sync segment", &segment.path, error))?;
            self.deliver.lock().seal_track(seal);
        }
        drop((append, supply));
        unused.map_or(Ok(()), |unused| self.discard(unused))?;
        self.write_checkpoint(&mut upkeep)
    }

    /// Prepares the next segment if it will be needed soon.
    pub(super) fn prepare_ahead(&self) -> Result<()> {
        let mut supply = self.supply.lock();
        if supply.is_closed || supply.ready.is_some() || !self.append.lock().wants_supply() {
            return Ok(());
        }
        // What is let go next is used again.
        // Relaxed: a hint.
        let going = self.letting_go.load(Ordering::Relaxed);
        if self.deliver.lock().done_segments() + going > 0 {
            return Ok(());
        }
        let prepared = match self.prepare(&mut supply, 0) {
            // What is left may do for a smaller one, when it is needed.
            Err(Error::Full { .. }) => return Ok(()),
            prepared => prepared?,
        };
        supply.ready = Some(prepared.clone());
        drop(supply);
        self.warm_up_ready(prepared)
    }

    /// Warms a segment up that a push may have taken meanwhile. While it holds nothing, a failed
    /// sync costs the file; after that, the belief in syncs.
    pub(super) fn warm_up_ready(&self, prepared: Prepared) -> Result<()> {
        let Err(error) = self.warm_up(&prepared) else { return Ok(()) };
        let Prepared { segment, region } = prepared;
        // Only the supply may keep it mapped: some systems remove no file that is.
        drop(region);
        let mut supply = self.supply.lock();
        let is_this = |other: &Arc<Segment>| Arc::ptr_eq(other, &segment);
        if let Some(unused) = supply.ready.take_if(|ready| is_this(&ready.segment)) {
            // The first error is the one to tell; what stays is let go at the next open.
            self.discard(unused).ok();
        } else {
            let append = self.append.lock();
            let is_active = append.active.as_ref().is_some_and(|active| is_this(&active.segment));
            if is_active || append.full.iter().any(|full| is_this(&full.segment)) {
                return Err(self.health.poison("sync segment", &segment.path, error));
            }
        }
        Err(segment.error("prepare segment", 0, error))
    }
}
