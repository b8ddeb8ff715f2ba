//! What the engine knows of one segment of the log: where its records end, which of its slots are
//! settled, and what has happened to it.
//!
//! Promises: a slot is counted as settled once, when it becomes so; a slot that was settled is
//! never stored to again; every store is noted for the next sync, and for a copy that is being
//! made. The offset in a slot is that of its own record. Relies on the dispatch lock.

use super::copying::Copying;
use super::map_numbers::MapNumbers;
use super::settled_count::{SettledCount, Special};
use crate::error::Result;
use crate::format::record;
use crate::format::segment::{RECORDS_START, Seal};
use crate::format::slot::{Delay, SLOT, Slot, State};
use crate::format::standing::Run;
use crate::io::Access;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::copy::Finished;
use crate::log::merge::CopySource;
use crate::log::sealed::{Mapped, Numbering, Status};
use crate::recovery::Part;
use std::sync::Arc;

/// One segment of the log.
#[derive(Debug)]
pub(crate) struct Track {
    segment: Arc<Segment>,
    mapped: Option<Arc<Mapped>>,
    /// The number of its map: larger is later.
    map_number: u64,
    map_numbers: MapNumbers,
    first_seq: u64,
    base_time: u64,
    /// Known once it is no longer pushed to.
    count: Option<u32>,
    /// Where its records end, once it is no longer pushed to.
    tail: Option<u64>,
    settled_count: SettledCount,
    /// All below this are settled, as far as anybody has looked.
    floor: u32,
    /// Deliveries out of it that are not answered.
    leased: u32,
    /// Written by an earlier run.
    is_old: bool,
    /// Has answers that no sync has covered.
    is_dirty: bool,
    copying: Copying,
}

/// What a store did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stored {
    /// The slot says what it was told.
    Yes,
    /// The message is settled now; `wakes_compaction`: it is the first one since compaction looked.
    Settled { wakes_compaction: bool },
    /// The message was settled already: nothing was stored.
    WasSettled,
}

impl Track {
    /// The segment that pushes go to.
    pub(super) fn active(active: &Active, maps: &MapNumbers) -> Self {
        let (segment, region) = (Arc::clone(active.segment()), Arc::clone(active.region()));
        let mapped = Mapped { segment, region };
        let (first_seq, base_time) = (active.first_seq(), active.base_time());
        Self::of_this_run(Arc::new(mapped), first_seq, base_time, maps)
    }

    fn of_this_run(mapped: Arc<Mapped>, first_seq: u64, base_time: u64, maps: &MapNumbers) -> Self {
        Self {
            segment: Arc::clone(&mapped.segment),
            mapped: Some(mapped),
            map_number: maps.next(),
            map_numbers: maps.clone(),
            first_seq,
            base_time,
            count: None,
            tail: None,
            settled_count: SettledCount::COMPLETE,
            floor: 0,
            leased: 0,
            is_old: false,
            is_dirty: false,
            copying: Copying::default(),
        }
    }

    /// A copy that this run made: whatever it was made from, it is as if this run had pushed it.
    /// Its slots are stored to before they are synced again.
    pub(crate) fn copied(mapped: Arc<Mapped>, made: &Finished, maps: &MapNumbers) -> Self {
        let (count, tail) = (Some(made.count), Some(made.tail));
        let active = Self::of_this_run(mapped, made.first_seq, made.base_time, maps);
        let (settled_count, copying) = (SettledCount::TOUCHED, Copying::new(true));
        Self { count, tail, settled_count, copying, is_dirty: true, ..active }
    }

    /// A segment of an earlier run. `has_sources`: it is a copy, and what it was made from is
    /// there.
    pub(super) fn of_earlier_run(part: &Part, has_sources: bool, maps: &MapNumbers) -> Self {
        Self {
            segment: Arc::clone(&part.segment),
            mapped: None,
            map_number: maps.next(),
            map_numbers: maps.clone(),
            first_seq: part.first_seq,
            base_time: part.base_time,
            count: Some(part.count),
            tail: Some(part.tail),
            settled_count: SettledCount::of_earlier_run(part.count),
            floor: 0,
            leased: 0,
            is_old: true,
            // Its run may have been killed before it synced them.
            is_dirty: true,
            copying: Copying::new(has_sources),
        }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn ordinal(&self) -> u64 {
        self.segment.header.ordinal
    }

    pub(crate) fn size(&self) -> u64 {
        self.segment.header.size
    }

    pub(crate) fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// It holds no record: it is numbered like what follows it.
    pub(super) fn set_first_seq(&mut self, first_seq: u64) {
        self.first_seq = first_seq;
    }

    pub(crate) fn base_time(&self) -> u64 {
        self.base_time
    }

    pub(crate) fn is_old(&self) -> bool {
        self.is_old
    }

    /// How many records it has, once it is no longer pushed to.
    pub(crate) fn count(&self) -> Option<u32> {
        self.count
    }

    pub(super) fn numbering(&self) -> Numbering {
        let Self { first_seq, base_time, is_old, .. } = *self;
        Numbering { first_seq, base_time, is_old }
    }

    /// Whether its Seqs have gaps: it is compacted.
    fn has_gaps(&self) -> bool {
        self.segment.sources.is_some()
    }

    /// It is no longer pushed to.
    pub(super) fn seal(&mut self, seal: Seal) {
        self.count = Some(seal.count);
        self.tail = Some(seal.tail);
    }

    /// One behind the last index that may be looked at; whether it may be shown, its Seq tells.
    pub(crate) fn end_index(&self, published: u64) -> u32 {
        let visible = (published + 1).saturating_sub(self.first_seq);
        self.count.unwrap_or_else(|| u32::try_from(visible).unwrap_or(u32::MAX))
    }

    /// One behind the last Seq that it can have.
    pub(crate) fn end_seq(&self, published: u64) -> u64 {
        match &self.segment.sources {
            Some(sources) => sources.last_seq + 1,
            None => self.first_seq + u64::from(self.end_index(published)),
        }
    }

    /// How many messages up to this one are not settled, as far as they are counted.
    pub(crate) fn unsettled(&self, published: u64) -> u64 {
        let mut visible = (published + 1).saturating_sub(self.first_seq);
        if self.has_gaps() && published + 1 < self.end_seq(published) {
            // Where its table cannot be read, all of them.
            let index = self.mapped.as_ref().map_or(Ok(u32::MAX), |mapped| {
                mapped.index_from(published + 1, self.end_index(published), self.first_seq)
            });
            visible = index.map_or(u64::MAX, u64::from);
        } else if self.has_gaps() {
            visible = u64::MAX;
        }
        let settled = u64::from(self.settled_count.messages());
        u64::from(self.end_index(published)).min(visible).saturating_sub(settled)
    }

    pub(crate) fn settled_count(&self) -> &SettledCount {
        &self.settled_count
    }

    pub(crate) fn settled_count_mut(&mut self) -> &mut SettledCount {
        &mut self.settled_count
    }

    /// Whether all slots are counted.
    #[inline]
    pub(crate) fn is_counted(&self) -> bool {
        self.settled_count.is_complete()
    }

    /// Whether the slot of this record is counted.
    #[inline]
    pub(crate) fn is_counted_at(&self, index: u32) -> bool {
        self.settled_count.has(index)
    }

    /// Counts some more slots, and tells which of them are special.
    pub(super) fn count_some(&mut self, run: Run) -> Result<Special> {
        let (numbering, tail) = (self.numbering(), self.tail.unwrap_or(RECORDS_START));
        let special = self.settled_count.count_some(&self.segment, numbering, tail, run)?;
        self.is_dirty &= self.settled_count.may_be_touched();
        Ok(special)
    }

    /// Bytes of the records that are not settled. `used`: of all records, while it is pushed to.
    pub(crate) fn live_record_bytes(&self, used: u64) -> u64 {
        let records = self.tail.map_or(used, |tail| tail.saturating_sub(RECORDS_START));
        records.saturating_sub(self.settled_count.bytes())
    }

    /// Bytes that unsettled messages take, slots included, and all others.
    pub(crate) fn live_and_dead_bytes(&self, published: u64, used: u64) -> (u64, u64) {
        let unsettled = self.unsettled(published);
        let live = if unsettled == 0 { 0 } else { self.live_record_bytes(used) + unsettled * SLOT };
        // What is behind the records of a segment that is no longer pushed to is of no use either.
        let slots = u64::from(self.end_index(published)) * SLOT;
        let all = if self.tail.is_some() { self.size() } else { used + slots };
        (live, all.saturating_sub(live))
    }

    /// The index of a message, if this segment has it.
    pub(crate) fn index_of(&mut self, seq: u64) -> Result<Option<u32>> {
        let (count, first_seq) = (self.count.unwrap_or(u32::MAX), self.first_seq);
        if !self.has_gaps() {
            let index = seq.checked_sub(first_seq).and_then(|index| u32::try_from(index).ok());
            return Ok(index.filter(|&index| index < count));
        }
        self.map()?.index_of(seq, count, first_seq)
    }

    /// The first index from which on its Seqs are not smaller.
    pub(crate) fn index_from(&mut self, seq: u64) -> Result<u32> {
        let (count, first_seq) = (self.count.unwrap_or(u32::MAX), self.first_seq);
        if !self.has_gaps() {
            let index = u32::try_from(seq.saturating_sub(first_seq)).unwrap_or(u32::MAX);
            return Ok(index.min(count));
        }
        self.map()?.index_from(seq, count, first_seq)
    }

    /// The Seq of record `index`; `None` if it cannot be read any more.
    pub(crate) fn seq(&mut self, index: u32) -> Result<Option<u64>> {
        if !self.has_gaps() {
            return Ok(Some(self.first_seq + u64::from(index)));
        }
        let first_seq = self.first_seq;
        self.map()?.seq(index, first_seq)
    }

    /// What is said of record `index` besides the record.
    #[expect(clippy::inline_always, reason = "on the way of every pop")]
    #[inline(always)]
    pub(crate) fn status(&mut self, index: u32, run: Run) -> Result<Status> {
        let numbering = self.numbering();
        self.map()?.status(index, numbering, run)
    }

    /// Whether no message in it is unsettled, and none will be.
    pub(crate) fn is_done(&self) -> bool {
        let is_settled = self.count.is_some_and(|count| self.settled_count.messages() >= count);
        self.is_counted() && is_settled && self.leased == 0
    }

    /// Whether it is to be kept even so: it is being copied, or a copy whose sources may be there.
    pub(crate) fn is_pinned(&self) -> bool {
        self.copying.is_pinned()
    }

    /// Deliveries out of it that are not answered.
    pub(crate) fn leased(&self) -> u32 {
        self.leased
    }

    pub(crate) fn note_leased(&mut self) {
        self.leased += 1;
    }

    pub(crate) fn note_answered(&mut self) {
        self.leased = self.leased.saturating_sub(1);
    }

    /// Stores the state of message `index`, unless it is settled already. `record`: where its own
    /// record was found, if that is known; else its slot keeps the offset that it has.
    #[inline]
    pub(super) fn store(
        &mut self,
        index: u32,
        (state, attempts): (State, u32),
        record: Option<(u64, u32)>,
        run: Run,
    ) -> Result<Stored> {
        let numbering = self.numbering();
        let mapped = self.map()?;
        let before = mapped.slot(index)?;
        if before.is_some_and(|slot| slot.is_settled(true)) {
            // Whether a transient message is settled depends on its run.
            let is_transient = before.is_some_and(|slot| slot.state == State::Transient);
            if !is_transient || mapped.status(index, numbering, run)?.standing.is_settled() {
                return Ok(Stored::WasSettled);
            }
        }
        let known = before.and_then(|slot| slot.offset);
        let offset = record.map(|(offset, _)| offset).or(known);
        mapped.store_slot(index, Slot { state, attempts, offset })?;
        self.note_change(index);
        if !matches!(state, State::Dead | State::Lost) {
            return Ok(Stored::Yes);
        }
        let bytes = record.map_or(0, |(_, bytes)| u64::from(bytes));
        self.settled_count.settle(index, bytes);
        let wakes_compaction = self.copying.wants_to_hear(self.settled_count.messages());
        Ok(Stored::Settled { wakes_compaction })
    }

    /// Stores the state of message `index`, which is not settled and does not become so; its record
    /// is at `offset`.
    #[inline]
    pub(super) fn store_unsettled(
        &mut self,
        index: u32,
        (state, attempts): (State, u32),
        offset: u64,
    ) -> Result<()> {
        debug_assert!(!matches!(state, State::Dead | State::Lost), "that is `store`'s to do");
        self.map()?.store_slot(index, Slot { state, attempts, offset: Some(offset) })?;
        self.note_change(index);
        Ok(())
    }

    /// Stores the time before which message `index` is not to be handed out.
    pub(super) fn store_delay(&mut self, index: u32, delay: Delay) -> Result<()> {
        let base_time = self.base_time;
        self.map()?.store_delay(index, base_time, Some(delay))?;
        self.note_change(index);
        Ok(())
    }

    /// Gives slot `index` of a copy the state that its source has now.
    pub(crate) fn follow(
        &mut self,
        index: u32,
        slot: Slot,
        delay: Option<Delay>,
        is_old: bool,
    ) -> Result<()> {
        let base_time = self.base_time;
        let mapped = self.map()?;
        let known = mapped.slot(index)?.unwrap_or(Slot::UNTOUCHED);
        mapped.store_delay(index, base_time, delay)?;
        mapped.store_slot(index, Slot { offset: known.offset, ..slot })?;
        if slot.is_settled(is_old) && !known.is_settled(is_old) {
            let header = known.offset.and_then(|offset| mapped.header(offset, index));
            self.settled_count.settle(index, header.map_or(0, |header| header.record_len()));
        }
        self.note_change(index);
        Ok(())
    }

    /// A slot was stored to that the next sync of answers has to cover.
    #[inline]
    fn note_change(&mut self, index: u32) {
        self.is_dirty = true;
        self.settled_count.touch();
        self.copying.note_change(index);
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// A sync has begun that covers it, or has ended.
    pub(crate) fn set_clean(&mut self) {
        self.is_dirty = false;
    }

    /// The segment as memory.
    #[inline]
    pub(crate) fn map(&mut self) -> Result<&Arc<Mapped>> {
        if self.mapped.is_none() {
            self.map_anew()?;
        }
        // There by now; `get_or_insert_with` would want a value to put in.
        match &self.mapped {
            Some(mapped) => Ok(mapped),
            None => Err(crate::error::Error::Closed),
        }
    }

    #[cold]
    fn map_anew(&mut self) -> Result<()> {
        let (segment, region) = (Arc::clone(&self.segment), self.segment.map(Access::Commits)?);
        self.map_number = self.map_numbers.next();
        self.mapped = Some(Arc::new(Mapped { segment, region }));
        Ok(())
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// The number of its newest map: larger is later.
    pub(super) fn map_number(&self) -> u64 {
        self.map_number
    }

    /// Gives its map up. The caller drops it outside of all locks.
    pub(super) fn take_map(&mut self) -> Option<Arc<Mapped>> {
        self.mapped.take()
    }

    /// The oldest message that is not settled: its index and slot, and its record's header. Goes on
    /// from where it last was.
    pub(crate) fn oldest(&mut self, published: u64) -> Option<(u32, Slot, record::RecordHeader)> {
        let is_old = self.is_old;
        let (end_index, mut floor) = (self.end_index(published), self.floor);
        let mapped = Arc::clone(self.map().ok()?);
        let mut previous = None;
        while floor < end_index {
            let slot = mapped.slot(floor).ok()?;
            let Some(settled) = slot.filter(|slot| slot.is_settled(is_old)) else { break };
            previous = settled.offset.map(|offset| (floor, offset)).or(previous);
            floor += 1;
        }
        // One step back, so that the next call knows where it is.
        self.floor = floor.saturating_sub(1);
        let slot = mapped.slot(floor).ok()??;
        let known = slot.offset.and_then(|offset| mapped.header(offset, floor));
        let header = known.or_else(|| {
            let behind = previous.and_then(|(index, offset)| {
                let before = mapped.header(offset, index).filter(|_| index + 1 == floor)?;
                mapped.header(offset + before.record_len(), floor)
            });
            behind.or_else(|| mapped.walk_to(floor).map(|(_, header)| header))
        })?;
        Some((floor, slot, header))
    }
}

/// What compaction asks and says.
impl Track {
    pub(crate) fn copying(&self) -> &Copying {
        &self.copying
    }

    pub(crate) fn copying_mut(&mut self) -> &mut Copying {
        &mut self.copying
    }

    /// Whether it may be copied at all: whole, counted, and neither copied now nor a copy whose
    /// sources may be there.
    pub(crate) fn can_be_copied(&self) -> bool {
        self.count.is_some() && self.is_counted() && !self.is_pinned()
    }

    /// It is looked at now: since when has nothing been settled in it?
    pub(crate) fn idle_since(&mut self, now: u64) -> u64 {
        self.copying.idle_since(now, self.settled_count.messages())
    }

    /// From here on the slots that are stored to are noted.
    pub(crate) fn begin_copy(&mut self) -> CopySource {
        let count = self.count.unwrap_or(0);
        self.copying.begin_copy(count);
        let (segment, first_seq) = (Arc::clone(&self.segment), self.first_seq);
        CopySource { segment, first_seq, base_time: self.base_time, count }
    }

    /// A copy takes the place of others, and the deliveries out of them.
    pub(crate) fn take_over(&mut self, others: &[Self]) {
        self.leased = others.iter().map(|other| other.leased).sum();
    }
}
