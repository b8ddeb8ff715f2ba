//! How segments for pushes are prepared one ahead, so that rotation costs no I/O.
//!
//! Promises: before the first segment of a run gets its name, all that counts of earlier runs is
//! durable and sealed, so a dropped record can never come back behind a newer one. Relies on the
//! `supply` lock for everything here.

use super::supply::{FIRST_SEGMENT, Prepared, Spare, Supply, SupplyState};
use super::{Appender, Need, SMALLEST_SEGMENT};
use crate::engine::context::Context;
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::address::{Offset, Ordinal};
use crate::format::limits::{FIRST_SEQ_END, NUMBER_END};
use crate::format::name;
use crate::format::segment::{Seal, SegmentHeader, capacity};
use crate::io::Access;
use crate::log::active::Active;
use crate::log::{OnFailure, Segment};
use crate::options::Durability;
use crate::random;
use crate::recovery::Part;
use crate::time::Shift;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Appender {
    /// A segment with room: the ready one, or one that is made now.
    pub(super) fn take_supply(&self, supply: &mut Supply, need: Need) -> Result<Prepared> {
        let (bytes, records) = (need.segment_bytes(), need.records());
        if let Some(ready) = supply.ready.take() {
            let Segment { header, slot_limit, .. } = &*ready.segment;
            let has_room = header.size >= bytes && u64::from(*slot_limit) >= records;
            let is_next = header.predecessor == supply.predecessor(self.unsealed().active());
            if has_room && is_next && header.clock_shift == self.context.clock.shift() {
                return Ok(ready);
            }
            // Too small for this one message, or made before the clock was set. It was never used,
            // so nothing is lost with it.
            self.context.health.note_background(self.discard(supply, ready));
        }
        let prepared = self.prepare(supply, bytes)?;
        if prepared.segment.header.size <= FIRST_SEGMENT
            && let Err(error) = warm_up(&prepared, self.context.options.durability)
        {
            let error = prepared.segment.error("prepare segment", Offset::START, error);
            // The first error is the one to tell.
            self.discard(supply, prepared).ok();
            return Err(error);
        }
        Ok(prepared)
    }

    /// Makes a segment of at least `bytes`.
    fn prepare(&self, supply: &mut Supply, bytes: u64) -> Result<Prepared> {
        self.begin_to_prepare(supply)?;
        let smallest = bytes.max(SMALLEST_SEGMENT);
        let mut wanted = supply.next_bytes.max(bytes);
        loop {
            let size = self.context.space.take_at_least(wanted, smallest)?;
            match self.make(supply, size) {
                // What is left, of the disk or of addresses for maps, may do for a smaller one.
                Err(error) if error.may_fit_smaller() && size > smallest => {
                    wanted = (size / 2 / PAGE * PAGE).max(smallest);
                    supply.next_bytes = supply.next_bytes.min(wanted);
                }
                made => return made,
            }
        }
    }

    /// What has to be durable before a segment of this run is made.
    pub(super) fn begin_to_prepare(&self, supply: &mut Supply) -> Result<()> {
        supply.check_open()?;
        self.finish_tail(supply)?;
        if supply.is_new {
            let synced = self.context.storage.sync_parents();
            self.context.health.believe("sync parents", &self.context.directory(), synced)?;
            supply.is_new = false;
        }
        Ok(())
    }

    /// Makes a segment of this size, for which room is taken; it is given back if this fails. The
    /// next one is to be twice as large as this one was to be.
    pub(super) fn make(&self, supply: &mut Supply, size: u64) -> Result<Prepared> {
        let has_room = supply.leftovers.check_room(&self.context);
        let header = has_room.and_then(|()| self.next_header(supply, size));
        let header = header.inspect_err(|_| self.context.space.undo(size))?;
        let ordinal = header.ordinal;
        let created = Segment::create(&*self.context.storage, header, &self.context.health);
        let durability = self.context.options.durability;
        let made = created.and_then(|segment| map_prepared(Arc::new(segment), durability));
        let prepared = made.or_else(|error| {
            // The first error is the one to tell.
            if supply.leftovers.clean_up(&self.context, new_names(ordinal), size) {
                self.context.space.undo(size);
            }
            // If that is why, no sync is believed any more.
            self.context.check_directory()?;
            Err(error)
        })?;
        supply.next_bytes = (supply.next_bytes * 2).min(self.context.options.segment_limit());
        // Relaxed: a number by itself.
        self.taken_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(prepared)
    }

    /// The header of the next segment. Begins the epoch with the first one.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if it would have a number that no segment can have: open would refuse it.
    fn next_header(&self, supply: &mut Supply, size: u64) -> Result<SegmentHeader> {
        let unsealed = self.unsealed();
        let active = unsealed.active();
        let room = active.map_or(0, Active::room_in_records);
        let predecessor = supply.predecessor(active);
        let seq_limit = unsealed.next_seq() + room + capacity(size);
        drop(unsealed);
        let epoch = supply.epoch + u64::from(!supply.has_begun);
        if seq_limit.max(supply.seq_limit) > FIRST_SEQ_END || epoch >= NUMBER_END {
            return Err(numbers_used_up(&self.context));
        }
        let ordinal = take_ordinal(supply, &self.context)?;
        supply.seq_limit = supply.seq_limit.max(seq_limit);
        (supply.epoch, supply.has_begun) = (epoch, true);
        let clock_shift = self.context.clock.shift();
        self.context.clock.note_header(clock_shift);
        Ok(SegmentHeader {
            queue_id: supply.queue_id,
            ordinal,
            predecessor,
            generation: u64::from_le_bytes(random::bytes()?),
            epoch: supply.epoch,
            size,
            seq_limit: supply.seq_limit,
            sources: 0,
            clock_shift,
        })
    }

    /// Removes a prepared segment that was never used. If that fails, it is tried again with what
    /// else is to be removed.
    pub(super) fn discard(&self, supply: &mut Supply, prepared: Prepared) -> Result<()> {
        let Prepared { segment, region } = prepared;
        drop(region);
        let size = segment.header.size;
        match self.context.storage.remove(&segment.name) {
            Ok(()) => {
                self.context.space.give_back(size);
                Ok(())
            }
            Err(error) => {
                supply.leftovers.leave(&self.context, vec![segment.name.clone()], size);
                Err(segment.error("remove segment", Offset::START, error))
            }
        }
    }

    /// Tries again to remove files that were to become segments.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        self.supply.lock().leftovers.remove(&self.context)
    }

    /// Removes the segment that is kept ready, for its room; false if that makes none.
    pub(crate) fn give_up_ready(&self) -> bool {
        let mut supply = self.supply.lock();
        let Some(ready) = supply.ready.take() else { return false };
        // Or else it would be made again at once.
        supply.spare = Spare::NotKept;
        let discarded = self.discard(&mut supply, ready);
        let is_gone = discarded.is_ok();
        self.context.health.note_background(discarded);
        is_gone
    }

    /// Bytes of the segment that is kept ready.
    pub(crate) fn ready_bytes(&self) -> u64 {
        self.supply.lock().ready.as_ref().map_or(0, |ready| ready.segment.header.size)
    }

    /// Makes durable and seals what earlier runs left.
    pub(crate) fn finish_old_tail(&self) -> Result<()> {
        self.finish_tail(&mut self.supply.lock())
    }

    fn finish_tail(&self, supply: &mut Supply) -> Result<()> {
        if supply.old_tail.is_empty() {
            return Ok(());
        }
        let sealed = self.seal_tail(supply);
        if sealed.is_err() && self.context.storage.check_directory().is_ok() {
            // What somebody removed cannot be sealed: the next try is without it.
            supply.old_tail.retain(|part| !part.segment.is_gone());
        }
        sealed.inspect_err(|_| self.context.retry_upkeep())
    }

    fn seal_tail(&self, supply: &mut Supply) -> Result<()> {
        self.context.health.check(false)?;
        supply.old_tail.iter().try_for_each(|part| self.context.sync(&part.segment))?;
        for Part { segment, tail, count, .. } in &supply.old_tail {
            let seal = Seal { tail: *tail, count: *count, run_ended: false };
            segment.store_seal(&*segment.map(Access::Commits)?, seal)?;
        }
        // The seals decide from here on where those segments end. They must be durable before
        // anything newer is.
        supply.old_tail.iter().try_for_each(|part| self.context.sync(&part.segment))?;
        let synced: Vec<_> = supply.old_tail.drain(..).map(|part| part.segment).collect();
        self.dispatch.lock().backlog().tracks().release_synced(&synced);
        Ok(())
    }

    /// Ends the run: nothing is prepared, appended or stored after it. In order, if all is synced.
    /// The caller writes a last CHECKPOINT.
    pub(crate) fn finish_run(&self, is_synced: bool) -> Result<()> {
        let mut supply = self.supply.lock();
        supply.is_closed = true;
        supply.old_tail.clear();
        let unused = supply.ready.take();
        if !is_synced {
            return Ok(());
        }
        self.seal_active()?;
        unused.map_or(Ok(()), |unused| self.discard(&mut supply, unused))
    }

    /// Seals the active segment, which is synced: the run ended here.
    fn seal_active(&self) -> Result<()> {
        let unsealed = self.unsealed();
        let Some(active) = unsealed.active() else { return Ok(()) };
        let (segment, region) = (Arc::clone(active.segment()), Arc::clone(active.region()));
        let seal = active.seal(true);
        // Nothing is pushed any more, and the supply, which is locked, brings no other segment.
        drop(unsealed);
        segment.store_seal(&*region, seal)?;
        self.context.sync(&segment)?;
        self.dispatch.lock().backlog_mut().seal_newest(seal);
        Ok(())
    }

    /// Prepares the next segment if it will be needed soon. `something_goes`: a segment is about to
    /// be let go, and can be used again.
    pub(crate) fn prepare_ahead(&self, something_goes: impl Fn() -> bool) -> Result<()> {
        let mut supply = self.supply.lock();
        let is_wanted = self.unsealed().wants_supply();
        let may_keep_one = supply.ready.is_none() && supply.spare == Spare::Kept;
        if supply.is_closed || !may_keep_one || !is_wanted || something_goes() {
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

    /// Turns a segment that no CHECKPOINT lists, and that has left the log, into the ready one, if
    /// there is none yet and the segment has the full size; `None` if it is of no use. If that
    /// fails, its file goes. `count`: how many slots it had.
    pub(crate) fn recycle(&self, segment: &Arc<Segment>, count: u32) -> Option<Result<()>> {
        let mut supply = self.supply.lock();
        let size = segment.header.size;
        // A file that others know by another name, or still read from, is not used again.
        let is_free = || !segment.is_mapped() && !segment.has_other_names();
        let is_usable = size == self.context.options.segment_limit() && is_free();
        let is_wanted = supply.ready.is_none() && supply.has_begun && supply.spare == Spare::Kept;
        if !is_usable || !is_wanted || supply.is_closed {
            return None;
        }
        let Ok(header) = self.next_header(&mut supply, size) else { return None };
        let names = [segment.name.clone()].into_iter().chain(new_names(header.ordinal));
        let recycled = segment.recycle(&*self.context.storage, header, count, &self.context.health);
        let recycled = recycled
            .and_then(|recycled| map_prepared(Arc::new(recycled), self.context.options.durability));
        let prepared = match recycled {
            Ok(prepared) => prepared,
            Err(error) => {
                if supply.leftovers.clean_up(&self.context, names, size) {
                    self.context.space.give_back(size);
                }
                return Some(Err(error));
            }
        };
        // Relaxed: a number by itself.
        self.taken_bytes.fetch_add(size, Ordering::Relaxed);
        supply.ready = Some(prepared.clone());
        drop(supply);
        Some(self.warm_up_ready(prepared))
    }

    /// Warms up a segment that a push may have taken meanwhile. While it holds no message, a failed
    /// sync costs only the file; after that it poisons the queue.
    fn warm_up_ready(&self, prepared: Prepared) -> Result<()> {
        let Err(error) = warm_up(&prepared, self.context.options.durability) else { return Ok(()) };
        let Prepared { segment, region } = prepared;
        // Only the supply may keep it mapped: some systems remove no file that is.
        drop(region);
        let mut supply = self.supply.lock();
        let is_this = |other: &Arc<Segment>| Arc::ptr_eq(other, &segment);
        if let Some(unused) = supply.ready.take_if(|ready| is_this(&ready.segment)) {
            // The first error is the one to tell.
            self.discard(&mut supply, unused).ok();
        } else {
            let unsealed = self.unsealed();
            let is_active = unsealed.active().is_some_and(|active| is_this(active.segment()));
            if is_active || unsealed.is_full(&segment) {
                drop((unsealed, supply));
                return Err(self.context.health.failed("sync segment", &segment.path, error));
            }
        }
        Err(segment.error("prepare segment", Offset::START, error))
    }

    /// The header of a copy of this size; every CHECKPOINT lists it from here on. `clock_shift`: of
    /// its sources.
    pub(crate) fn begin_copy(&self, size: u64, clock_shift: Shift) -> Result<SegmentHeader> {
        let mut supply = self.supply.lock();
        supply.check_open()?;
        let generation = u64::from_le_bytes(random::bytes()?);
        let ordinal = take_ordinal(&mut supply, &self.context)?;
        supply.compacting = Some(ordinal);
        // It belongs to no epoch of its own.
        Ok(SegmentHeader {
            queue_id: supply.queue_id,
            ordinal,
            predecessor: Ordinal::NONE,
            generation,
            epoch: supply.epoch,
            size,
            seq_limit: supply.seq_limit,
            sources: 0,
            clock_shift,
        })
    }

    /// The copy counts, or is given up.
    pub(crate) fn end_copy(&self) {
        self.supply.lock().compacting = None;
    }

    /// Shows the state of the supply, which is locked meanwhile.
    pub(crate) fn with_supply_state<T>(&self, show: impl FnOnce(SupplyState) -> T) -> T {
        let supply = self.supply.lock();
        show(SupplyState {
            queue_id: supply.queue_id,
            epoch: supply.epoch,
            seq_limit: supply.seq_limit,
            next_ordinal: supply.next_ordinal,
            ready: supply.ready.as_ref().map(|ready| ready.segment.header.ordinal),
            compacting: supply.compacting,
            has_begun: supply.has_begun,
            is_old_tail_finished: supply.old_tail.is_empty(),
        })
    }
}

/// The names that a segment has while it is made, and then.
fn new_names(ordinal: Ordinal) -> [String; 2] {
    [name::temporary(ordinal), name::segment(ordinal)]
}

/// A segment that was just made, mapped.
fn map_prepared(segment: Arc<Segment>, durability: Durability) -> Result<Prepared> {
    let access = match durability {
        Durability::Os => Access::Streams,
        Durability::Always | Durability::Interval(_) => Access::Commits,
    };
    let region = segment.map(access)?;
    Ok(Prepared { segment, region })
}

/// Makes stores into a prepared segment fast: pages resident, and, where the queue syncs, extents
/// written, so that a commit has no file system metadata to write.
fn warm_up(prepared: &Prepared, durability: Durability) -> std::io::Result<()> {
    prepared.region.populate();
    if durability == Durability::Os { Ok(()) } else { prepared.segment.sync_unused() }
}

/// The ordinal of a new file.
///
/// # Errors
///
/// [`Error::Corrupt`] if no segment can have it.
fn take_ordinal(supply: &mut Supply, context: &Context) -> Result<Ordinal> {
    let ordinal = supply.next_ordinal;
    if ordinal.0 >= NUMBER_END {
        return Err(numbers_used_up(context));
    }
    supply.next_ordinal = ordinal.next();
    Ok(ordinal)
}

/// No queue gets there by itself: something in the directory has such a number.
fn numbers_used_up(context: &Context) -> Error {
    let (operation, path) = ("prepare segment", context.directory());
    let reason = "a file in it has a number so large that the format has none behind it, so \
                  nothing more can be pushed here; move the messages to a new queue";
    Error::Corrupt { operation, path, offset: 0, reason }
}
