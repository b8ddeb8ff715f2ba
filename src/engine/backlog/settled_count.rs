//! How much of a segment is settled: what earlier runs settled is counted a few thousand slots at a
//! time.
//!
//! Promises: each slot is counted once, by reading it or when it becomes settled, whichever comes
//! first. A slot that cannot be read any more counts as unsettled. Reads without the map, which
//! would keep the pages.

use crate::error::Result;
use crate::format::address::{Index, Offset};
use crate::format::segment::RECORDS_START;
use crate::format::slot::{Delay, Slot, State};
use crate::format::standing::{Run, Standing};
use crate::log::sealed::{Mapped, Numbering, Status};
use crate::log::{ReadSlot, Segment};
use crate::time::Time;
use std::ops::Range;

/// Slots counted in one step under the lock.
const SLOTS_A_STEP: u32 = 4096;

/// How many messages of a segment are settled, as far as its slots are counted.
#[derive(Debug)]
pub(crate) struct SettledCount {
    /// Slots below this are counted, and above not yet.
    counted: Index,
    /// Where the slots end that there are to count.
    end: Index,
    messages: u32,
    /// Bytes of the records that are settled, as far as they are known; 0 for those that are not.
    bytes: u64,
    /// A settled record before `counted` whose end is not known yet.
    open: Option<Offset>,
    /// The last number that was read: one that is not larger is damaged.
    last_seq: u64,
    was_touched: bool,
    /// Its slots could not be read: until they can, it is kept, whatever they say.
    is_unreadable: bool,
}

impl SettledCount {
    /// Of a segment that this run writes: all that is settled was seen to be, so each of its slots
    /// counts as counted, and nothing asks for the end.
    pub(super) fn complete() -> Self {
        Self { counted: Index::MAX, ..Self::of_earlier_run(0) }
    }

    /// The same, where slots were stored to.
    pub(super) fn touched() -> Self {
        Self { was_touched: true, ..Self::complete() }
    }

    /// Of a segment of an earlier run with this many records: none is counted yet.
    pub(super) fn of_earlier_run(count: u32) -> Self {
        Self {
            counted: Index::FIRST,
            end: Index(count),
            messages: 0,
            bytes: 0,
            open: None,
            last_seq: 0,
            was_touched: false,
            is_unreadable: false,
        }
    }

    /// How many messages are settled.
    #[inline]
    pub(crate) fn messages(&self) -> u32 {
        self.messages
    }

    /// Bytes of the records that are settled.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The length of the settled records is not known any more. False if it was not known before.
    pub(crate) fn forget_bytes(&mut self) -> bool {
        std::mem::take(&mut self.bytes) > 0
    }

    /// Whether all slots are counted.
    #[inline]
    pub(super) fn is_complete(&self) -> bool {
        self.counted >= self.end
    }

    /// Whether the slot of this record is counted.
    #[inline]
    pub(super) fn has(&self, index: Index) -> bool {
        index < self.counted
    }

    /// Whether there are slots to count, and no reading of them has failed.
    pub(super) fn can_go_on(&self) -> bool {
        !self.is_complete() && !self.is_unreadable
    }

    /// What could not be read may be readable now.
    pub(super) fn try_again(&mut self) {
        self.is_unreadable = false;
    }

    /// Whether a slot may have been stored to since the segment was made.
    pub(super) fn may_be_touched(&self) -> bool {
        self.was_touched || !self.is_complete()
    }

    /// A slot was stored to.
    #[inline]
    pub(super) fn touch(&mut self) {
        self.was_touched = true;
    }

    /// Slots side by side, whose records take this many bytes, have become settled: all of them
    /// counted, or none.
    #[inline]
    pub(super) fn settle(&mut self, indexes: Range<Index>, bytes: u64) {
        if indexes.end <= self.counted {
            self.messages += indexes.end - indexes.start;
            self.bytes += bytes;
        }
    }

    /// Slots that were counted went bad: all are counted again, and those that are damaged count as
    /// unsettled from here on. `end`: of the records.
    pub(super) fn recount(
        &mut self,
        mapped: &Mapped,
        end: Index,
        is_old: bool,
        mean_bytes: u64,
    ) -> Result<Recount> {
        let (mut settled, mut damaged) = (0, Vec::new());
        for index in Index::FIRST.until(self.counted.min(end)) {
            match mapped.slot(index)? {
                Some(slot) => settled += u32::from(slot.is_settled(is_old)),
                None => damaged.push(index),
            }
        }
        let fewer = self.messages.saturating_sub(settled);
        self.messages -= fewer;
        self.bytes = self.bytes.saturating_sub(u64::from(fewer) * mean_bytes);
        Ok(Recount { fewer, damaged })
    }

    /// Counts some more slots, and tells which of them are special. `tail`: where the records end;
    /// `is_last`: whether a message that was handed out this often dies.
    pub(super) fn count_some(
        &mut self,
        segment: &Segment,
        numbering: Numbering,
        tail: Offset,
        run: Run,
        is_last: impl Fn(u32) -> bool,
    ) -> Result<Special> {
        if self.is_complete() {
            return Ok(Special::default());
        }
        let step = SLOTS_A_STEP.min(self.end - self.counted);
        let read = self.read_some(segment, numbering, tail, step);
        self.is_unreadable = read.is_err();
        let (slots, settled) = read?;
        let mut special = Special { settled: settled.count, ..Special::default() };
        for (seq, ReadSlot { index, slot, delay, .. }) in slots {
            self.was_touched |= slot != Some(Slot::UNTOUCHED);
            let status = Status::of(seq, slot, delay.readable(), run, numbering);
            let Some(seq) = seq.filter(|&seq| seq > self.last_seq) else {
                special.unnumbered.extend((!status.standing.is_settled()).then_some(index));
                if let Standing::Lost = status.standing {
                    special.lost_unnumbered.push(index);
                }
                continue;
            };
            self.last_seq = seq;
            let Slot { state, attempts, .. } = status.slot;
            let waits = matches!(status.standing, Standing::Ready | Standing::Scheduled(_));
            if waits && state == State::Delivered && is_last(attempts) {
                special.worn_out.push(seq);
            }
            match status.standing {
                Standing::Lost => special.lost.push(seq),
                Standing::Dying => special.dying.push(seq),
                Standing::Scheduled(due) => {
                    special.delayed.push((due, seq));
                    let shortened = status.delay.filter(|delay| delay.due > due);
                    special.shortened.extend(shortened.map(|delay| (index, delay)));
                }
                Standing::Unreadable => special.bad_slots.push(index),
                Standing::Settled | Standing::Ready | Standing::Outlived => {}
            }
        }
        self.messages += settled.count;
        self.bytes += settled.bytes;
        self.open = settled.open;
        self.counted = self.counted + step;
        Ok(special)
    }

    /// The next slots to be counted, with their Seqs, and what is settled among them.
    fn read_some(
        &self,
        segment: &Segment,
        Numbering { first_seq, base_time, is_old }: Numbering,
        tail: Offset,
        step: u32,
    ) -> Result<(Vec<Numbered>, Settled)> {
        let Self { counted, end, open, .. } = *self;
        let slots = segment.read_slots(counted, step, base_time)?;
        let seqs = segment.read_seqs(counted, step, first_seq)?;
        let slots: Vec<Numbered> = seqs.zip(slots).collect();
        let mean = (tail - RECORDS_START).checked_div(end.into()).unwrap_or(0);
        let mut settled = Settled { open, mean, ..Settled::default() };
        for (_, ReadSlot { slot, .. }) in &slots {
            let offset = slot.and_then(|slot| slot.offset);
            settled.end(offset, segment)?;
            if slot.is_some_and(|slot| slot.is_settled(is_old)) {
                settled.count += 1;
                settled.open = offset;
                settled.bytes += if offset.is_none() { mean } else { 0 };
            }
        }
        if counted + step == end {
            settled.end(Some(tail), segment)?;
        }
        Ok((slots, settled))
    }
}

/// What a count of slots that were counted before gives.
#[derive(Debug)]
pub(crate) struct Recount {
    /// How many fewer are settled.
    pub(crate) fewer: u32,
    /// Those that are damaged.
    pub(crate) damaged: Vec<Index>,
}

/// What is special about some slots of an earlier run.
#[derive(Debug, Default)]
pub(crate) struct Special {
    /// How many are settled.
    pub(crate) settled: u32,
    /// Lost, as an earlier run found, and their Seq cannot be read. By index.
    pub(crate) lost_unnumbered: Vec<Index>,
    /// Unsettled, and their Seq cannot be read: lost. By index.
    pub(crate) unnumbered: Vec<Index>,
    /// Their slots cannot be read. By index.
    pub(crate) bad_slots: Vec<Index>,
    /// Settled because they were found damaged.
    pub(crate) lost: Vec<u64>,
    /// On their way to the dead letters.
    pub(crate) dying: Vec<u64>,
    /// The last attempt of each ended with its run.
    pub(crate) worn_out: Vec<u64>,
    /// Not to be handed out before a time, and which.
    pub(crate) delayed: Vec<(Time, u64)>,
    /// Those of them whose stored delays end later: the wall clock was set back. By index.
    pub(crate) shortened: Vec<(Index, Delay)>,
}

/// A slot with its Seq, if that is known.
type Numbered = (Option<u64>, ReadSlot);

/// What is settled among some slots.
#[derive(Debug, Default)]
struct Settled {
    count: u32,
    bytes: u64,
    /// Where the last one starts, if it is not known where it ends.
    open: Option<Offset>,
    /// What the records of the segment take on average.
    mean: u64,
    /// A header was read. Others wait for that read, so there is one in a step at most.
    has_read: bool,
}

impl Settled {
    /// The record behind the last settled one starts at `offset`. Where that is not known, the
    /// header is read, once: mostly all messages up to one are settled, and none behind it. Others
    /// count with the mean length.
    fn end(&mut self, offset: Option<Offset>, segment: &Segment) -> Result<()> {
        let Some(start) = self.open.take() else { return Ok(()) };
        let len = match offset.and_then(|offset| offset.checked_since(start)) {
            Some(len) => Some(len),
            None if self.has_read => None,
            None => {
                self.has_read = true;
                segment.read_header_at(start)?.map(|header| header.record_len())
            }
        };
        self.bytes += len.unwrap_or(self.mean);
        Ok(())
    }
}
