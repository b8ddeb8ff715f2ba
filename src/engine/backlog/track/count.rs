//! Counting what earlier runs settled in a segment, a few thousand slots at a time.
//!
//! Promises: each slot is counted once, by reading it or when it becomes settled, whichever comes
//! first. Reads without the map, which would keep the pages.

use super::Track;
use crate::error::Result;
use crate::format::segment::RECORDS_START;
use crate::format::slot::Slot;
use crate::format::standing::{Run, Standing};
use crate::log::sealed::Status;
use crate::log::{ReadSlot, Segment};

/// Slots counted in one step under the lock.
const STEP: u32 = 4096;

/// How far the slots of a segment are counted.
#[derive(Debug)]
pub(super) struct Counting {
    /// Slots below this are counted, and above not yet.
    counted: u32,
    settled: u32,
    /// Bytes of the records that are settled, as far as they are known; 0 for those that are not.
    settled_bytes: u64,
    /// A settled record before `counted` whose end is not known yet.
    open: Option<u64>,
    was_touched: bool,
    /// Its slots could not be read: until they can, it is kept, whatever they say.
    is_unreadable: bool,
}

impl Counting {
    pub(super) const START: Self = Self {
        counted: 0,
        settled: 0,
        settled_bytes: 0,
        open: None,
        was_touched: false,
        is_unreadable: false,
    };
    /// Of a segment that this run writes: all that is settled was seen to be.
    pub(super) const DONE: Self = Self { counted: u32::MAX, ..Self::START };
    pub(super) const TOUCHED: Self = Self { was_touched: true, ..Self::DONE };

    pub(super) fn settled(&self) -> u32 {
        self.settled
    }

    pub(super) fn settled_bytes(&self) -> u64 {
        self.settled_bytes
    }

    /// The slot of `index`, whose record takes this many bytes, has become settled.
    #[inline]
    pub(super) fn settle(&mut self, index: u32, bytes: u64) {
        if index < self.counted {
            self.settled += 1;
            self.settled_bytes += bytes;
        }
    }

    /// A slot was stored to.
    #[inline]
    pub(super) fn touch(&mut self) {
        self.was_touched = true;
    }
}

/// What is special about some slots of an earlier run.
#[derive(Debug, Default)]
pub(crate) struct Special {
    /// How many are settled.
    pub(crate) settled: u32,
    /// Unsettled, and their Seq cannot be read: lost. By index.
    pub(crate) unnumbered: Vec<u32>,
    /// Their slots cannot be read. By index.
    pub(crate) bad_slots: Vec<u32>,
    /// Settled because they were found damaged.
    pub(crate) lost: Vec<u64>,
    /// On their way to the dead letters.
    pub(crate) dying: Vec<u64>,
    /// Not to be handed out before a time, and which.
    pub(crate) delayed: Vec<(u64, u64)>,
}

impl Track {
    /// Whether all slots are counted.
    #[inline]
    pub(crate) fn is_counted(&self) -> bool {
        self.count.is_none_or(|count| self.counting.counted >= count)
    }

    /// Whether the slot of this record is counted.
    pub(crate) fn is_counted_at(&self, index: u32) -> bool {
        index < self.counting.counted
    }

    /// Whether there are slots to count, and no reading of them has failed.
    pub(crate) fn can_be_counted(&self) -> bool {
        !self.is_counted() && !self.counting.is_unreadable
    }

    /// What could not be read may be readable now.
    pub(crate) fn count_again(&mut self) {
        self.counting.is_unreadable = false;
    }

    /// The length of the settled records is not known any more.
    pub(crate) fn forget_settled_bytes(&mut self) {
        self.counting.settled_bytes = 0;
    }

    /// The first index from `index` on whose slot is not settled, and the last settled one before
    /// it with its offset.
    pub(crate) fn skip_settled(&self, index: u32) -> Result<(u32, Option<(u32, u64)>)> {
        let (mut index, mut previous) = (index, None);
        let end = self.count.unwrap_or(index);
        while index < end {
            let step = STEP.min(end - index);
            for (at, slot, _) in self.segment.read_slots(index, step, self.base_time)? {
                match slot {
                    Some(slot) if slot.is_settled(self.is_old) => {
                        previous = slot.offset.map(|offset| (at, offset)).or(previous);
                        index = at + 1;
                    }
                    _ => return Ok((index, previous)),
                }
            }
        }
        Ok((index, previous))
    }

    /// Counts some more slots, and tells which of them are special.
    pub(crate) fn count_some(&mut self, run: Run) -> Result<Special> {
        let Some(count) = self.count.filter(|&count| self.counting.counted < count) else {
            return Ok(Special::default());
        };
        let step = STEP.min(count - self.counting.counted);
        let read = self.read_some(step);
        self.counting.is_unreadable = read.is_err();
        let (slots, settled) = read?;
        let mut special = Special { settled: settled.count, ..Special::default() };
        for (seq, (index, slot, delay)) in slots {
            self.counting.was_touched |= slot != Some(Slot::UNTOUCHED) || delay.is_some();
            let status = Status::of(seq, slot, delay, run, self.numbering());
            let Some(seq) = seq else {
                special.unnumbered.extend((!status.standing.is_settled()).then_some(index));
                continue;
            };
            match status.standing {
                Standing::Lost => special.lost.push(seq),
                Standing::Dying => special.dying.push(seq),
                Standing::Scheduled(due) => special.delayed.push((due, seq)),
                Standing::Unreadable => special.bad_slots.push(index),
                Standing::Settled | Standing::Ready | Standing::Outlived => {}
            }
        }
        self.counting.settled += settled.count;
        self.counting.settled_bytes += settled.bytes;
        self.counting.open = settled.open;
        self.counting.counted += step;
        self.is_dirty &= self.counting.was_touched || self.counting.counted < count;
        Ok(special)
    }

    /// The next slots to be counted, with their Seqs, and what is settled among them.
    fn read_some(&self, step: u32) -> Result<(Vec<Numbered>, Settled)> {
        let Counting { counted, open, .. } = self.counting;
        let slots = self.segment.read_slots(counted, step, self.base_time)?;
        let seqs = self.segment.read_seqs(counted, step, self.first_seq)?;
        let slots: Vec<Numbered> = seqs.zip(slots).collect();
        let (count, tail) = (self.count.unwrap_or(0), self.tail.unwrap_or(RECORDS_START));
        let mean = (tail - RECORDS_START).checked_div(count.into()).unwrap_or(0);
        let mut settled = Settled { open, ..Settled::default() };
        for (_, (_, slot, _)) in &slots {
            let offset = slot.and_then(|slot| slot.offset);
            settled.end(offset, &self.segment)?;
            if slot.is_some_and(|slot| slot.is_settled(self.is_old)) {
                settled.count += 1;
                settled.open = offset;
                settled.bytes += if offset.is_none() { mean } else { 0 };
            }
        }
        if counted + step == count {
            settled.end(Some(tail), &self.segment)?;
        }
        Ok((slots, settled))
    }
}

/// A slot with its Seq, if that is known.
type Numbered = (Option<u64>, ReadSlot);

/// What is settled among some slots.
#[derive(Debug, Default)]
struct Settled {
    count: u32,
    bytes: u64,
    /// Where the last one starts, if it is not known where it ends.
    open: Option<u64>,
}

impl Settled {
    /// The record behind the last settled one starts at `offset`, if that is known; else its header
    /// is read.
    fn end(&mut self, offset: Option<u64>, segment: &Segment) -> Result<()> {
        let Some(start) = self.open.take() else { return Ok(()) };
        let len = match offset.and_then(|offset| offset.checked_sub(start)) {
            Some(len) => Some(len),
            None => segment.read_header_at(start)?.map(|header| header.record_len()),
        };
        self.bytes += len.unwrap_or(0);
        Ok(())
    }
}
