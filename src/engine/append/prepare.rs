//! How segments for pushes are prepared one ahead, so that rotation costs no I/O.
//!
//! Promises: before the first segment of a run gets its name, all that counts of earlier runs is
//! durable and sealed, so a dropped record can never come back behind a newer one. Relies on the
//! `supply` lock for everything here.

use super::files::{access, name_and_map, new_names, numbers_used_up, preparation, take_ordinal};
use super::supply::{FIRST_SEGMENT, Making, Prepared, Rest, Supply, SupplyState, next_size};
use super::{Appender, Need, SMALLEST_SEGMENT};
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::address::{Offset, Ordinal};
use crate::format::limits::{FIRST_SEQ_END, NUMBER_END};
use crate::format::segment::{Seal, SegmentHeader, capacity};
use crate::io::Access;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::unnamed::Unnamed;
use crate::random;
use crate::recovery::Part;
use parking_lot::MutexGuard;
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
        let mut unnamed = self.prepare(supply, bytes)?;
        let is_small = unnamed.header().size <= FIRST_SEGMENT;
        if is_small && let Err(error) = unnamed.prepare_all() {
            self.give_up(supply, unnamed);
            return Err(error);
        }
        let prepared = self.name(supply, unnamed)?;
        if is_small && supply.warming.take().is_some() {
            prepared.region.populate();
        }
        Ok(prepared)
    }

    /// Waits until no thread is at work on the segment that is made ahead; then it is ready, as far
    /// as it is.
    pub(super) fn await_made(&self, supply: &mut MutexGuard<'_, Supply>) {
        if let Some(unnamed) = self.stop_making(supply) {
            let named = self.name(supply, unnamed).map(|prepared| supply.ready = Some(prepared));
            self.context.health.note_background(named);
        }
    }

    /// Waits until no thread is at work on the segment that is made ahead, and takes it, if it has
    /// no name yet.
    pub(super) fn stop_making(&self, supply: &mut MutexGuard<'_, Supply>) -> Option<Unnamed> {
        while let Making::UnderWay(made) | Making::Awaited(made) = supply.making {
            supply.making = Making::Awaited(made);
            self.made.wait(supply);
        }
        supply.rest = Rest::Over;
        match std::mem::take(&mut supply.making) {
            Making::Resting(unnamed) => Some(unnamed),
            _ => None,
        }
    }

    /// Makes a segment of at least `bytes`.
    pub(super) fn prepare(&self, supply: &mut Supply, bytes: u64) -> Result<Unnamed> {
        self.begin_to_prepare(supply)?;
        let smallest = bytes.max(SMALLEST_SEGMENT);
        let mut next_bytes = self.wanted_bytes(supply);
        let mut wanted = next_bytes.max(bytes);
        loop {
            let size = self.context.space.take_at_least(wanted, smallest)?;
            match self.make(supply, size) {
                // What is left, of the disk or of addresses for maps, may do for a smaller one.
                Err(error) if error.may_fit_smaller() && size > smallest => {
                    wanted = (size / 2 / PAGE * PAGE).max(smallest);
                    next_bytes = next_bytes.min(wanted);
                }
                Ok(unnamed) => {
                    supply.prepared_bytes = next_bytes;
                    return Ok(unnamed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// How large the next segment is to be, as fast as pushes come now.
    pub(super) fn wanted_bytes(&self, supply: &Supply) -> u64 {
        let (now, limit) = (self.context.clock.coarse(), self.context.options.segment_limit());
        let fill_time = self.unsealed().expected_fill_time(now);
        let segments = self.dispatch.lock().backlog().tracks().len();
        next_size(supply.base_bytes, fill_time, segments, limit)
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

    /// Makes a segment of this size, for which room is taken; it is given back if this fails.
    pub(super) fn make(&self, supply: &mut Supply, size: u64) -> Result<Unnamed> {
        let has_room = supply.leftovers.check_room(&self.context);
        let header = has_room.and_then(|()| self.next_header(supply, size));
        let header = header.inspect_err(|_| self.context.space.undo(size))?;
        let ordinal = header.ordinal;
        let preparation = preparation(self.context.options.durability);
        let made = Unnamed::create(&*self.context.storage, header, preparation);
        let access = access(self.context.options.durability);
        let made = made.and_then(|unnamed| unnamed.check_map(access).map(|()| unnamed));
        let unnamed = made.or_else(|error| self.clean_up(supply, (ordinal, size, false), error))?;
        // Relaxed: a number by itself.
        self.taken_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(unnamed)
    }

    /// Gives it its name, and maps it.
    pub(super) fn name(&self, supply: &mut Supply, unnamed: Unnamed) -> Result<Prepared> {
        let SegmentHeader { ordinal, size, .. } = *unnamed.header();
        let is_recycled = unnamed.is_recycled();
        let named = name_and_map(&self.context, supply, unnamed);
        named.or_else(|error| self.clean_up(supply, (ordinal, size, is_recycled), error))
    }

    /// What was made of a new segment goes: this was the error.
    fn clean_up<T>(
        &self,
        supply: &mut Supply,
        (ordinal, size, is_recycled): (Ordinal, u64, bool),
        error: Error,
    ) -> Result<T> {
        // The first error is the one to tell.
        let is_gone = supply.leftovers.clean_up(&self.context, new_names(ordinal), size);
        match is_gone {
            // Its room was that of a segment.
            true if is_recycled => self.context.space.give_back(size),
            true => self.context.space.undo(size),
            false => {}
        }
        // If that is why, no sync is believed any more.
        self.context.check_directory()?;
        Err(error)
    }

    /// What has no name yet goes; false if it could not be removed now.
    pub(super) fn give_up(&self, supply: &mut Supply, unnamed: Unnamed) -> bool {
        let SegmentHeader { ordinal, size, .. } = *unnamed.header();
        // Some systems remove no file that is open.
        drop(unnamed);
        let is_gone = supply.leftovers.clean_up(&self.context, new_names(ordinal), size);
        if is_gone {
            self.context.space.give_back(size);
        }
        is_gone
    }

    /// The header of the next segment. Begins the epoch with the first one.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if it would have a number that no segment can have: open would refuse it.
    pub(super) fn next_header(&self, supply: &mut Supply, size: u64) -> Result<SegmentHeader> {
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
        // Some systems remove no file that is mapped.
        drop(region);
        supply.warming.take_if(|(warming, _)| Arc::ptr_eq(&warming.segment, &segment));
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

    /// Bytes of the segment that is kept ready, or made ahead.
    pub(crate) fn ready_bytes(&self) -> u64 {
        let supply = self.supply.lock();
        match &supply.ready {
            Some(ready) => ready.segment.header.size,
            None => supply.made().map_or(0, |made| made.size),
        }
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
        if let Some(unnamed) = self.stop_making(&mut supply) {
            self.give_up(&mut supply, unnamed);
        }
        supply.warming = None;
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

    /// Shows the state of the supply, which is locked meanwhile.
    pub(crate) fn with_supply_state<T>(&self, show: impl FnOnce(SupplyState) -> T) -> T {
        let supply = self.supply.lock();
        show(SupplyState {
            queue_id: supply.queue_id,
            epoch: supply.epoch,
            seq_limit: supply.seq_limit,
            next_ordinal: supply.next_ordinal,
            ready: supply.ready.as_ref().map(|ready| ready.segment.header.ordinal),
            making: supply.making(),
            compacting: supply.compacting,
            has_begun: supply.has_begun,
            is_old_tail_finished: supply.old_tail.is_empty(),
        })
    }
}
