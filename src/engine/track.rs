//! What the engine knows about one segment on the way out: where its records end, how many of them
//! are settled, and how to walk over them.
//!
//! Promises: a record is found, or the range of those that are lost is told; `settled` counts a
//! slot once. Relies on the `deliver` lock.

use crate::error::Result;
use crate::format::bytes::{u64_at, wide};
use crate::format::record;
use crate::format::segment::RECORDS_START;
use crate::format::slot::{self, Delay, SLOT, Slot, State};
use crate::io::Access;
use crate::log::Segment;
use crate::log::sealed::Mapped;
use crate::recovery::Part;
use std::sync::Arc;

/// Slots counted in one step under the lock.
const COUNT_STEP: u32 = 4096;

/// One segment on the way out.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one segment")]
pub(super) struct Track {
    pub(super) segment: Arc<Segment>,
    pub(super) mapped: Option<Arc<Mapped>>,
    pub(super) first_seq: u64,
    pub(super) base_time: u64,
    /// Known once it is no longer pushed to.
    pub(super) count: Option<u32>,
    /// Slots of earlier runs are counted once, in steps: below this they are, and above not yet.
    counted: u32,
    settled: u32,
    /// All below this are settled, as far as anybody has looked.
    pub(super) floor: u32,
    /// Where its records end, once it is no longer pushed to.
    pub(super) tail: Option<u64>,
    /// Deliveries out of it that are not answered.
    pub(super) leased: u32,
    /// Written by an earlier run.
    pub(super) is_old: bool,
    was_touched: bool,
    /// Its slots could not be read to be counted: until they can, it is kept, whatever they say.
    is_unreadable: bool,
    /// Has answers that no sync has covered.
    pub(super) is_dirty: bool,
}

/// Where record `index` is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Located {
    At(u64, record::Header),
    /// Records up to this index, exclusive, are lost; the next one is at this offset.
    Lost {
        end_index: u32,
        next: u64,
    },
}

impl Track {
    /// A segment of this run.
    pub(super) fn active(mapped: Arc<Mapped>, first_seq: u64, base_time: u64) -> Self {
        Self {
            segment: Arc::clone(&mapped.segment),
            mapped: Some(mapped),
            first_seq,
            base_time,
            count: None,
            counted: u32::MAX,
            settled: 0,
            floor: 0,
            tail: None,
            leased: 0,
            is_old: false,
            was_touched: false,
            is_unreadable: false,
            is_dirty: false,
        }
    }

    /// A segment of an earlier run.
    pub(super) fn of_earlier_run(part: &Part) -> Self {
        Self {
            segment: Arc::clone(&part.segment),
            mapped: None,
            first_seq: part.first_seq,
            base_time: part.base_time,
            count: Some(part.count),
            counted: 0,
            settled: 0,
            floor: 0,
            tail: Some(part.tail),
            leased: 0,
            is_old: true,
            was_touched: false,
            is_unreadable: false,
            // Its run may have been killed before it synced them.
            is_dirty: true,
        }
    }

    pub(super) fn ordinal(&self) -> u64 {
        self.segment.header.ordinal
    }

    /// One behind the last index that may be looked at; whether it may be shown, its Seq tells.
    pub(super) fn end_index(&self, published: u64) -> u32 {
        let visible = (published + 1).saturating_sub(self.first_seq);
        self.count.unwrap_or_else(|| u32::try_from(visible).unwrap_or(u32::MAX))
    }

    /// How many up to this message are not settled, as far as it is counted.
    pub(super) fn owed(&self, published: u64) -> u64 {
        let visible = (published + 1).saturating_sub(self.first_seq);
        u64::from(self.end_index(published)).min(visible).saturating_sub(self.settled.into())
    }

    /// Whether all slots are counted.
    pub(super) fn is_counted(&self) -> bool {
        self.count.is_none_or(|count| self.counted >= count)
    }

    /// Whether there are slots to count, and no reading of them has failed.
    pub(super) fn can_be_counted(&self) -> bool {
        !self.is_counted() && !self.is_unreadable
    }

    pub(super) fn count_again(&mut self) {
        self.is_unreadable = false;
    }

    /// Whether nothing in it is owed, and nothing will be.
    pub(super) fn is_done(&self) -> bool {
        let is_settled = self.count.is_some_and(|count| self.settled >= count);
        self.is_counted() && is_settled && self.leased == 0
    }

    /// The slot of `index` was unsettled and is settled now.
    pub(super) fn settle(&mut self, index: u32) {
        if index < self.counted {
            self.settled += 1;
        }
        self.note_change();
    }

    /// A slot was stored to that the next sync of answers has to cover.
    pub(super) fn note_change(&mut self) {
        self.is_dirty = true;
        self.was_touched = true;
    }

    /// The segment as memory.
    pub(super) fn map(&mut self) -> Result<&Arc<Mapped>> {
        let mapped = if let Some(mapped) = self.mapped.take() {
            mapped
        } else {
            let (segment, region) = (Arc::clone(&self.segment), self.segment.map(Access::Commits)?);
            Arc::new(Mapped { segment, region })
        };
        Ok(self.mapped.insert(mapped))
    }

    /// Finds record `index`: where its slot says, or else looking from `offset` on, where it or an earlier
    /// record starts.
    #[inline]
    pub(super) fn locate(
        mapped: &Mapped,
        slot: Slot,
        index: u32,
        end_index: u32,
        offset: u64,
        previous: Option<(u32, u64)>,
    ) -> Located {
        let told = slot.offset.and_then(|at| Some(Located::At(at, mapped.header(at, index)?)));
        told.unwrap_or_else(|| Self::search(mapped, index, end_index, offset, previous))
    }

    fn search(
        mapped: &Mapped,
        index: u32,
        end_index: u32,
        offset: u64,
        previous: Option<(u32, u64)>,
    ) -> Located {
        let from = match previous {
            Some((index, at)) => match mapped.header(at, index) {
                Some(header) => at + header.record_len(),
                None => at + record::ALIGN,
            },
            None => offset.max(RECORDS_START),
        };
        if let Some(header) = mapped.header(from, index) {
            return Located::At(from, header);
        }
        match mapped.find(from, index, end_index) {
            Some((at, found)) if found == index => match mapped.header(at, index) {
                Some(header) => Located::At(at, header),
                None => Located::Lost { end_index, next: from },
            },
            Some((at, found)) => Located::Lost { end_index: found, next: at },
            None => Located::Lost { end_index, next: from },
        }
    }

    /// The first index from `index` on whose slot is not settled, and the last settled one before
    /// it with its offset. Reads without the map, which would keep the pages.
    pub(super) fn skip_settled(&self, index: u32) -> Result<(u32, Option<(u32, u64)>)> {
        let (mut index, mut previous) = (index, None);
        let end = self.count.unwrap_or(index);
        while index < end {
            let step = COUNT_STEP.min(end - index);
            for (at, slot, _) in self.read_slots(index, step)? {
                match slot {
                    Some(slot) if slot.is_settled(self.is_old) => {
                        previous = slot.offset.map(|offset| (at, offset));
                        index = at + 1;
                    }
                    _ => return Ok((index, previous)),
                }
            }
        }
        Ok((index, previous))
    }

    /// Counts some more slots, and tells which of them are special. `start_time`: of this run.
    pub(super) fn count_some(&mut self, start_time: u64) -> Result<Special> {
        let Some(count) = self.count.filter(|&count| self.counted < count) else {
            return Ok(Special::default());
        };
        let step = COUNT_STEP.min(count - self.counted);
        let slots = self.read_slots(self.counted, step);
        self.is_unreadable = slots.is_err();
        let slots = slots?;
        let is_old = self.is_old;
        let is_settled = |slot: Option<Slot>| slot.is_some_and(|slot| slot.is_settled(is_old));
        let (mut settled, mut special) = (0, Special::default());
        for (index, slot, delay) in slots {
            let (seq, state) = (self.first_seq + u64::from(index), slot.map(|slot| slot.state));
            self.was_touched |= slot != Some(Slot::UNTOUCHED) || delay.is_some();
            if is_settled(slot) {
                settled += 1;
                special.lost.extend((state == Some(State::Lost)).then_some(seq));
            } else if state == Some(State::Dying) {
                special.dying.push(seq);
            } else if let Some(due) = due_after(delay, start_time) {
                special.delayed.push((due, seq));
            }
        }
        self.settled += settled;
        self.counted += step;
        self.is_dirty &= self.was_touched || self.counted < count;
        Ok(special)
    }

    /// Slots `first..first + number`, in order.
    fn read_slots(
        &self,
        first: u32,
        number: u32,
    ) -> Result<impl Iterator<Item = (u32, Option<Slot>, Option<Delay>)> + use<>> {
        let len = usize::try_from(u64::from(number) * SLOT).unwrap_or(0);
        let mut bytes = vec![0; len];
        let lowest = slot::offset(self.segment.header.size, first + (number - 1));
        self.segment.read_at(lowest, &mut bytes)?;
        let (key, base_time) = (self.segment.key, self.base_time);
        Ok((first..first + number).map(move |index| {
            let from_end = (u64::from(index - first) + 1) * SLOT;
            let at = usize::try_from(wide(bytes.len()) - from_end).unwrap_or(0);
            let delay = Delay::decode(u64_at(&bytes, at + 8), base_time, key, index);
            (index, Slot::decode(u64_at(&bytes, at), key, index), delay)
        }))
    }
}

/// What is special about some slots of an earlier run.
#[derive(Debug, Default)]
pub(super) struct Special {
    /// Found damaged, and settled by that.
    pub(super) lost: Vec<u64>,
    /// On their way to the dead letters.
    pub(super) dying: Vec<u64>,
    /// Not to be handed out before a time, and which.
    pub(super) delayed: Vec<(u64, u64)>,
}

/// The time for which a message that was not handed out in this run is in the schedule; `None` if it waits
/// for the cursor. Whatever was pushed with a delay in this run is scheduled; of an earlier run, what was
/// not due before this one began.
pub(super) fn scheduled_for(delay: Option<Delay>, is_old: bool, start_time: u64) -> Option<u64> {
    if is_old { due_after(delay, start_time) } else { delay.map(|delay| delay.due) }
}

/// When a message of an earlier run may be handed out, if that is after the start of this one: never
/// later than by the whole delay, whatever became of the wall clock.
fn due_after(delay: Option<Delay>, start_time: u64) -> Option<u64> {
    let due = delay.map(|Delay { due, given }| due.min(start_time + given))?;
    (due > start_time).then_some(due)
}
