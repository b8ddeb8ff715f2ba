//! Files that are made ahead of need: the next segment, out of nothing or out of one that went, and
//! copies.
//!
//! Promises: a segment is made without the lock of the supply, in steps; whoever needs it waits for
//! one step at most, and then has it as far as it is; of one that is recycled, what is left of its
//! old slots is cleared first. Where a background thread does this and no push would wait for it
//! soon, it rests between two steps (`pace`).

use super::Appender;
use super::files::{new_names, take_ordinal};
use super::supply::{Made, Making, Rest, Spare, Supply};
use crate::engine::context::Context;
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::format::segment::SegmentHeader;
use crate::log::Segment;
use crate::log::unnamed::Unnamed;
use crate::random;
use crate::time::Shift;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Bytes that are written, or made resident, in one step, so that it takes less than a tenth of a
/// millisecond; and where there is no time for rests.
#[derive(Clone, Copy)]
struct StepBytes {
    calm: u64,
    hurried: u64,
}

const ZEROS: StepBytes = StepBytes { calm: 128 << 10, hurried: 1 << 20 };
const WARM: StepBytes = StepBytes { calm: 512 << 10, hurried: 2 << 20 };

/// Nobody waits for a segment whose thread has panicked.
struct EndIfPanicking<'a>(&'a Appender);

impl Drop for EndIfPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.supply.lock().making = Making::Nothing;
            self.0.made.notify_all();
        }
    }
}

/// Makes files ahead of need.
#[derive(Debug)]
pub(crate) struct Maker<'a>(&'a Appender);

impl<'a> Maker<'a> {
    pub(crate) fn new(appender: &'a Appender) -> Self {
        Self(appender)
    }

    /// Prepares the next segment if it will be needed soon. `something_goes`: a segment is about to
    /// be let go, and can be used again. Where a background thread does it and nothing presses, it
    /// does some of it, and has [`Maker::go_on`] called in a while; until then this does nothing.
    pub(crate) fn prepare_ahead(&self, something_goes: impl Fn() -> bool) -> Result<()> {
        if self.rests() {
            return Ok(());
        }
        if let Some(unnamed) = self.take_making(something_goes)? {
            self.go_on_making(unnamed, true)?;
        }
        self.go_on_warming();
        Ok(())
    }

    /// A rest is over: goes on with the segment that is made, if there was one; true if that is
    /// done now.
    pub(crate) fn go_on(&self) -> bool {
        let (rest, resting) = {
            let mut supply = self.0.supply.lock();
            (mem::replace(&mut supply.rest, Rest::Over), supply.making.take_resting())
        };
        if let Some(unnamed) = resting
            && let Err(error) = self.go_on_making(unnamed, true)
        {
            // Its file is gone, so that nobody may meet this error again.
            self.0.context.retry_upkeep();
            self.0.context.health.note_background(Err(error));
            return false;
        }
        self.go_on_warming();
        rest == Rest::UnderWay && !self.rests()
    }

    /// Whether the background will go on in a while with what it has begun.
    fn rests(&self) -> bool {
        self.0.supply.lock().rest == Rest::UnderWay && self.0.context.worker.is_running()
    }

    /// How long the background rests after a step of which so many are left; `None` if there is no
    /// time for that.
    pub(crate) fn rest_after(&self, steps: u64) -> Option<Duration> {
        if let Some(unsealed) = self.0.unsealed.try_lock() {
            self.0.pace.note(unsealed.time_left(self.0.context.clock.coarse()));
        }
        self.0.pace.rest(steps)
    }

    /// Has the background go on in a while with so many steps, if there is time for a rest.
    fn rest(&self, supply: &mut Supply, steps: u64) -> bool {
        let worker = &self.0.context.worker;
        let rest = self.rest_after(steps).filter(|_| worker.is_running());
        if let Some(rest) = rest {
            supply.rest = Rest::UnderWay;
            worker.step_within(rest);
        }
        rest.is_some()
    }

    /// The segment to be worked at, which is begun if it will be needed soon.
    fn take_making(&self, something_goes: impl Fn() -> bool) -> Result<Option<Unnamed>> {
        let mut supply = self.0.supply.lock();
        let is_made = matches!(supply.making, Making::UnderWay(_) | Making::Awaited(_));
        if is_made || self.is_over(&supply) {
            return Ok(None);
        }
        let resting = supply.making.take_resting();
        if resting.is_some() {
            return Ok(resting);
        }
        let is_wanted = self.0.unsealed().wants_supply();
        let may_keep_one = supply.ready.is_none() && supply.spare == Spare::Kept;
        if !may_keep_one || !is_wanted || something_goes() {
            return Ok(None);
        }
        match self.0.prepare(&mut supply, 0) {
            // What is left may do for a smaller one, when it is needed.
            Err(Error::Full { .. }) => Ok(None),
            unnamed => {
                let unnamed = unnamed?;
                supply.making = Making::UnderWay(Made::of(unnamed.header()));
                Ok(Some(unnamed))
            }
        }
    }

    /// Works at a segment until it is ready, somebody waits for it, or there is time for a rest.
    fn go_on_making(&self, mut unnamed: Unnamed, may_rest: bool) -> Result<()> {
        let made = Made::of(unnamed.header());
        let _end = EndIfPanicking(self.0);
        let mut bytes = ZEROS.calm;
        loop {
            // Without the lock: whoever waits does so for one step at most.
            let step = unnamed.prepare_some(bytes);
            let mut supply = self.0.supply.lock();
            let making = mem::take(&mut supply.making);
            self.0.made.notify_all();
            let has_more = match step {
                Ok(has_more) => has_more && !matches!(making, Making::Awaited(_)),
                Err(error) => {
                    self.0.give_up(&mut supply, unnamed);
                    return Err(error);
                }
            };
            // Or else a close would wait for all of it.
            if self.is_over(&supply) {
                self.0.give_up(&mut supply, unnamed);
                return Ok(());
            }
            if !has_more {
                let prepared = self.0.name(&mut supply, unnamed)?;
                supply.ready = Some(prepared);
                return Ok(());
            }
            if may_rest && self.rest(&mut supply, unnamed.bytes_left() / ZEROS.calm) {
                supply.making = Making::Resting(unnamed);
                return Ok(());
            }
            supply.making = Making::UnderWay(made);
            bytes = ZEROS.hurried;
        }
    }

    /// Makes the pages of the segment that was named last resident, until that is done or there is
    /// time for a rest.
    fn go_on_warming(&self) {
        let mut bytes = WARM.calm;
        loop {
            let Some((prepared, offset)) = self.0.supply.lock().warming.clone() else { return };
            let (size, end) = (prepared.segment.header.size, offset + bytes);
            prepared.region.populate_part(offset, bytes.min(size - offset));
            let mut supply = self.0.supply.lock();
            // Others may have removed it by now, or made one that is to be warmed instead.
            let warmed = supply.warming.take_if(|(warming, _)| warming.is(&prepared));
            if warmed.is_some() && end < size && !self.is_over(&supply) {
                supply.warming = Some((prepared, end));
                if self.rest(&mut supply, (size - offset) / WARM.calm) {
                    return;
                }
            }
            bytes = WARM.hurried;
        }
    }

    /// Whether the queue is closed, or is being closed.
    fn is_over(&self, supply: &Supply) -> bool {
        supply.is_closed || self.0.context.worker.is_stopping()
    }

    /// Makes the next segment out of one that no CHECKPOINT lists, and that has left the log, if
    /// there is none yet and the segment has the full size; `None` if it is of no use. If that
    /// fails, its file goes. `count`: how many slots it had. `may_rest`: as in
    /// [`Maker::prepare_ahead`].
    pub(crate) fn recycle(
        &self,
        segment: &Arc<Segment>,
        count: u32,
        may_rest: bool,
    ) -> Option<Result<()>> {
        let header = self.begin_to_recycle(segment)?;
        let end = EndIfPanicking(self.0);
        let Context { storage, health, .. } = &*self.0.context;
        // Without the lock, as in `go_on_making`.
        let recycled = Unnamed::recycle(&**storage, segment, header.clone(), count, health);
        drop(end);
        let unnamed = match recycled {
            Ok(unnamed) => unnamed,
            Err(error) => {
                let mut supply = self.0.supply.lock();
                supply.making = Making::Nothing;
                self.0.made.notify_all();
                let names = [segment.name.clone()].into_iter().chain(new_names(header.ordinal));
                if supply.leftovers.clean_up(&self.0.context, names, header.size) {
                    self.0.context.space.give_back(header.size);
                }
                return Some(Err(error));
            }
        };
        // Relaxed: a number by itself.
        self.0.taken_bytes.fetch_add(header.size, Ordering::Relaxed);
        self.0.supply.lock().prepared_bytes = header.size;
        let made = self.go_on_making(unnamed, may_rest);
        self.0.context.worker.ask();
        Some(made)
    }

    /// Removes the segment that is kept ready, or made ahead, for its room; false if that makes
    /// none.
    pub(crate) fn give_up_ready(&self) -> bool {
        let mut supply = self.0.supply.lock();
        let unnamed = self.0.stop_making(&mut supply);
        let ready = supply.ready.take();
        if unnamed.is_some() || ready.is_some() {
            // Or else it would be made again at once.
            supply.spare = Spare::NotKept;
        }
        let is_made_gone = unnamed.is_some_and(|unnamed| self.0.give_up(&mut supply, unnamed));
        let Some(ready) = ready else { return is_made_gone };
        let discarded = self.0.discard(&mut supply, ready);
        let is_gone = discarded.is_ok();
        self.0.context.health.note_background(discarded);
        is_gone
    }

    /// What the segment becomes that is made of this one, from here on; `None` if it is of no use.
    fn begin_to_recycle(&self, segment: &Segment) -> Option<SegmentHeader> {
        let mut supply = self.0.supply.lock();
        let size = segment.header.size;
        // A file that others know by another name, or still read from, is not used again.
        let is_free = || !segment.is_mapped() && !segment.has_other_names();
        let is_usable = size == self.0.wanted_bytes(&supply) && is_free();
        let has_none = supply.ready.is_none() && supply.making().is_none();
        let is_wanted = has_none && supply.has_begun && supply.spare == Spare::Kept;
        if !is_usable || !is_wanted || self.is_over(&supply) {
            return None;
        }
        let header = self.0.next_header(&mut supply, size).ok()?;
        supply.making = Making::UnderWay(Made::of(&header));
        Some(header)
    }

    /// The header of a copy of this size; every CHECKPOINT lists it from here on. `clock_shift`: of
    /// its sources.
    pub(crate) fn begin_copy(&self, size: u64, clock_shift: Shift) -> Result<SegmentHeader> {
        let mut supply = self.0.supply.lock();
        supply.check_open()?;
        let generation = u64::from_le_bytes(random::bytes()?);
        let ordinal = take_ordinal(&mut supply, &self.0.context)?;
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
        self.0.supply.lock().compacting = None;
    }
}
