//! What the engine knows about one segment on the way out: where its records end, how many of them
//! are settled, and how to walk over them.
//!
//! Promises: a record is found, or the range of those that are lost is told; `settled` counts a
//! slot once. Relies on the `deliver` lock.

use super::maps::{Tickets, next_ticket};
use crate::error::Result;
use crate::format::segment::RECORDS_START;
use crate::format::slot::{Delay, Slot, State};
use crate::io::Access;
use crate::log::copy::Finished;
use crate::log::sealed::Mapped;
use crate::log::{ReadSlot, Segment};
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
    /// Whether its Seqs have gaps: it is compacted.
    pub(super) has_gaps: bool,
    pub(super) base_time: u64,
    /// Known once it is no longer pushed to.
    pub(super) count: Option<u32>,
    /// Slots of earlier runs are counted once, in steps: below this they are, and above not yet.
    counted: u32,
    pub(super) settled: u32,
    /// Bytes of the records that are settled, as far as they are known; 0 for those that are not.
    settled_bytes: u64,
    /// A settled record before `counted` whose end is not known yet.
    counted_from: Option<u64>,
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
    /// While it is being copied: the slots that were stored to since.
    pub(super) changed: Option<Vec<u32>>,
    /// What compaction remembers of it.
    pub(super) outlook: Outlook,
    /// The number of its map: larger is later.
    pub(super) mapped_at: u64,
    tickets: Tickets,
}

/// What compaction remembers of a segment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlook {
    /// How many were settled when it was last looked at, and since when it has been no more than that.
    pub(super) settled: u32,
    pub(super) since: u64,
    /// Not to be copied before this time: that failed.
    pub(super) not_before: u64,
    /// Compaction wants to hear when so many are settled: of the first one after it has looked.
    pub(super) tell_at: u32,
    /// What it was made from may not be gone for good.
    pub(super) has_sources: bool,
    /// It cannot be copied behind others.
    pub(super) starts_copy: bool,
}

impl Track {
    /// A segment of this run.
    pub(super) fn active(
        mapped: Arc<Mapped>,
        first_seq: u64,
        base_time: u64,
        tickets: &Tickets,
    ) -> Self {
        Self {
            segment: Arc::clone(&mapped.segment),
            has_gaps: mapped.segment.sources.is_some(),
            mapped: Some(mapped),
            first_seq,
            base_time,
            count: None,
            counted: u32::MAX,
            settled: 0,
            settled_bytes: 0,
            counted_from: None,
            floor: 0,
            tail: None,
            leased: 0,
            is_old: false,
            was_touched: false,
            is_unreadable: false,
            is_dirty: false,
            changed: None,
            outlook: Outlook::default(),
            mapped_at: next_ticket(tickets),
            tickets: Arc::clone(tickets),
        }
    }

    /// A copy that this run made: whatever it was made from, it is as if this run had pushed it. Its slots are
    /// stored to before they are synced again.
    pub(super) fn copied(mapped: Arc<Mapped>, made: &Finished, tickets: &Tickets) -> Self {
        let outlook = Outlook { has_sources: true, ..Outlook::default() };
        let (count, tail) = (Some(made.count), Some(made.tail));
        let active = Self::active(mapped, made.first_seq, made.base_time, tickets);
        Self { count, tail, outlook, is_dirty: true, was_touched: true, ..active }
    }

    /// A segment of an earlier run.
    pub(super) fn of_earlier_run(part: &Part, tickets: &Tickets) -> Self {
        Self {
            segment: Arc::clone(&part.segment),
            has_gaps: part.segment.sources.is_some(),
            mapped: None,
            first_seq: part.first_seq,
            base_time: part.base_time,
            count: Some(part.count),
            counted: 0,
            settled: 0,
            settled_bytes: 0,
            counted_from: None,
            floor: 0,
            tail: Some(part.tail),
            leased: 0,
            is_old: true,
            was_touched: false,
            is_unreadable: false,
            // Its run may have been killed before it synced them.
            is_dirty: true,
            changed: None,
            outlook: Outlook::default(),
            mapped_at: next_ticket(tickets),
            tickets: Arc::clone(tickets),
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

    /// One behind the last Seq that it can have.
    pub(super) fn end_seq(&self, published: u64) -> u64 {
        match &self.segment.sources {
            Some(sources) => sources.last_seq + 1,
            None => self.first_seq + u64::from(self.end_index(published)),
        }
    }

    /// How many up to this message are not settled, as far as it is counted.
    pub(super) fn owed(&self, published: u64) -> u64 {
        let mut visible = (published + 1).saturating_sub(self.first_seq);
        if self.has_gaps && published + 1 < self.end_seq(published) {
            // Where its table cannot be read, all of them.
            let index = self.mapped.as_ref().map_or(Ok(u32::MAX), |mapped| {
                mapped.index_from(published + 1, self.end_index(published), self.first_seq)
            });
            visible = index.map_or(u64::MAX, u64::from);
        } else if self.has_gaps {
            visible = u64::MAX;
        }
        u64::from(self.end_index(published)).min(visible).saturating_sub(self.settled.into())
    }

    /// Bytes of the records that are owed. `used`: of all records, while they are pushed.
    pub(super) fn live_record_bytes(&self, used: u64) -> u64 {
        let records = self.tail.map_or(used, |tail| tail.saturating_sub(RECORDS_START));
        records.saturating_sub(self.settled_bytes)
    }

    /// Nobody knows any more how long the settled ones are.
    pub(super) fn forget_settled_bytes(&mut self) {
        self.settled_bytes = 0;
    }

    /// The index of a message, if this one has it.
    pub(super) fn index_of(&mut self, seq: u64) -> Result<Option<u32>> {
        let (count, first_seq) = (self.count.unwrap_or(u32::MAX), self.first_seq);
        if !self.has_gaps {
            let index = seq.checked_sub(first_seq).and_then(|index| u32::try_from(index).ok());
            return Ok(index.filter(|&index| index < count));
        }
        self.map()?.index_of(seq, count, first_seq)
    }

    /// The first index from which on its Seqs are not smaller.
    pub(super) fn index_from(&mut self, seq: u64) -> Result<u32> {
        let (count, first_seq) = (self.count.unwrap_or(u32::MAX), self.first_seq);
        if !self.has_gaps {
            let index = u32::try_from(seq.saturating_sub(first_seq)).unwrap_or(u32::MAX);
            return Ok(index.min(count));
        }
        self.map()?.index_from(seq, count, first_seq)
    }

    /// The Seq of record `index`; `None` if it is not known any more.
    pub(super) fn seq(&mut self, index: u32) -> Result<Option<u64>> {
        if !self.has_gaps {
            return Ok(Some(self.first_seq + u64::from(index)));
        }
        let first_seq = self.first_seq;
        self.map()?.seq(index, first_seq)
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

    /// The slot of `index`, whose record takes so many bytes, was unsettled and is settled now; whether compaction
    /// wants to hear of it.
    #[inline]
    pub(super) fn settle(&mut self, index: u32, bytes: u64) -> bool {
        if index < self.counted {
            self.settled += 1;
            self.settled_bytes += bytes;
        }
        self.note_change(index);
        self.settled == self.outlook.tell_at
    }

    /// A slot was stored to that the next sync of answers has to cover.
    #[inline]
    pub(super) fn note_change(&mut self, index: u32) {
        self.is_dirty = true;
        self.was_touched = true;
        if let Some(changed) = &mut self.changed {
            changed.push(index);
        }
    }

    /// The segment as memory.
    pub(super) fn map(&mut self) -> Result<&Arc<Mapped>> {
        let mapped = if let Some(mapped) = self.mapped.take() {
            mapped
        } else {
            let (segment, region) = (Arc::clone(&self.segment), self.segment.map(Access::Commits)?);
            self.mapped_at = next_ticket(&self.tickets);
            Arc::new(Mapped { segment, region })
        };
        Ok(self.mapped.insert(mapped))
    }

    /// The first index from `index` on whose slot is not settled, and the last settled one before
    /// it with its offset. Reads without the map, which would keep the pages.
    pub(super) fn skip_settled(&self, index: u32) -> Result<(u32, Option<(u32, u64)>)> {
        let (mut index, mut previous) = (index, None);
        let end = self.count.unwrap_or(index);
        while index < end {
            let step = COUNT_STEP.min(end - index);
            for (at, slot, _) in self.segment.read_slots(index, step, self.base_time)? {
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
        let read = self.read_some(step);
        self.is_unreadable = read.is_err();
        let (slots, settled) = read?;
        let is_old = self.is_old;
        let mut special = Special::default();
        for (seq, (index, slot, delay)) in slots {
            let state = slot.map(|slot| slot.state);
            self.was_touched |= slot != Some(Slot::UNTOUCHED) || delay.is_some();
            let Some(seq) = seq else {
                let is_owed = slot.is_none_or(|slot| !slot.is_settled(is_old));
                special.unnumbered.extend(is_owed.then_some(index));
                continue;
            };
            if slot.is_some_and(|slot| slot.is_settled(is_old)) {
                special.lost.extend((state == Some(State::Lost)).then_some(seq));
            } else if state == Some(State::Dying) {
                special.dying.push(seq);
            } else if let Some(due) = due_after(delay, start_time) {
                special.delayed.push((due, seq));
            }
        }
        self.settled += settled.count;
        self.settled_bytes += settled.bytes;
        self.counted_from = settled.open;
        self.counted += step;
        self.is_dirty &= self.was_touched || self.counted < count;
        Ok(special)
    }

    /// The next slots to be counted, with their Seqs, and what is settled among them.
    fn read_some(&self, step: u32) -> Result<(Vec<Numbered>, Settled)> {
        let slots = self.segment.read_slots(self.counted, step, self.base_time)?;
        let seqs = self.segment.read_seqs(self.counted, step, self.first_seq)?;
        let slots: Vec<Numbered> = seqs.zip(slots).collect();
        let (count, tail) = (self.count.unwrap_or(0), self.tail.unwrap_or(RECORDS_START));
        let mean = (tail - RECORDS_START).checked_div(count.into()).unwrap_or(0);
        let mut settled = Settled { open: self.counted_from, ..Settled::default() };
        for (_, (_, slot, _)) in &slots {
            let offset = slot.and_then(|slot| slot.offset);
            settled.end(offset, &self.segment)?;
            if slot.is_some_and(|slot| slot.is_settled(self.is_old)) {
                settled.count += 1;
                settled.open = offset;
                settled.bytes += if offset.is_none() { mean } else { 0 };
            }
        }
        if self.counted + step == count {
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
    /// The record behind the last settled one starts at `offset`, if that is known; else its header is read.
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

/// What is special about some slots of an earlier run.
#[derive(Debug, Default)]
pub(super) struct Special {
    /// Owed, and nobody knows their Seq: lost. By index.
    pub(super) unnumbered: Vec<u32>,
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
