//! What the engine knows of one segment of the log: its records, how many of them are settled or
//! in flight, what is not synced, and what compaction has said of it.
//!
//! Promises: a slot is counted as settled once, when it becomes so; a slot that was settled is
//! never stored to again, as long as it can be read; every store is noted for the next sync, and
//! for a copy that is being made. The offset in a slot is that of its own record. Relies on the
//! dispatch lock.

use super::activity::Activity;
use super::answers::Answers;
use super::copying::Copying;
use super::records::Records;
use super::settled_count::{Recount, SettledCount, Special};
use crate::error::Result;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::segment::RECORDS_START;
use crate::format::slot::{Delay, SLOT, Slot, State, StoredDelay};
use crate::format::standing::Run;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::copy::Finished;
use crate::log::merge::CopySource;
use crate::log::sealed::{Mapped, Numbering, Status};
use crate::recovery::Part;
use crate::time::Time;
use std::ops::Range;
use std::sync::Arc;

/// One segment of the log.
#[derive(Debug)]
pub(crate) struct Track {
    records: Records,
    settled_count: SettledCount,
    /// Deliveries out of it that are not answered.
    leased: u32,
    answers: Answers,
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
    pub(super) fn active(active: &Active, activity: &Activity) -> Self {
        Self {
            records: Records::active(active, activity),
            settled_count: SettledCount::complete(),
            leased: 0,
            answers: Answers::Durable,
            copying: Copying::new(false),
        }
    }

    /// A copy that this run made: whatever it was made from, it is as if this run had pushed it.
    /// Its slots are stored to before they are synced again.
    pub(crate) fn copied(mapped: Arc<Mapped>, made: &Finished, activity: &Activity) -> Self {
        Self {
            records: Records::copied(mapped, made, activity),
            settled_count: SettledCount::touched(),
            leased: 0,
            answers: Answers::Unsynced,
            copying: Copying::new(true),
        }
    }

    /// A segment of an earlier run. `next_seq`: the first Seq of what follows it. `is_kept`: others
    /// that have some of its messages may come back.
    pub(super) fn of_earlier_run(
        part: &Part,
        next_seq: u64,
        is_kept: bool,
        activity: &Activity,
    ) -> Self {
        Self {
            records: Records::of_earlier_run(part, next_seq, activity),
            settled_count: SettledCount::of_earlier_run(part.count),
            leased: 0,
            answers: Answers::Inherited,
            copying: Copying::new(is_kept),
        }
    }

    #[inline]
    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    #[inline]
    pub(crate) fn records_mut(&mut self) -> &mut Records {
        &mut self.records
    }

    #[inline]
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        self.records.segment()
    }

    #[inline]
    pub(crate) fn ordinal(&self) -> Ordinal {
        self.segment().header.ordinal
    }

    #[inline]
    pub(crate) fn size(&self) -> u64 {
        self.segment().header.size
    }

    #[inline]
    pub(crate) fn first_seq(&self) -> u64 {
        self.records.numbering().first_seq
    }

    #[inline]
    pub(crate) fn base_time(&self) -> Time {
        self.records.numbering().base_time
    }

    /// How many records it has, once it is no longer pushed to.
    #[inline]
    pub(crate) fn count(&self) -> Option<u32> {
        self.records.count()
    }

    /// One behind the last Seq that it can have.
    #[inline]
    pub(crate) fn end_seq(&self, published: u64) -> u64 {
        self.records.end_seq(published)
    }

    /// How many messages up to this one are not settled, as far as they are counted.
    pub(crate) fn unsettled(&self, published: u64) -> u64 {
        let settled = u64::from(self.settled_count.messages());
        self.records.count_up_to(published).saturating_sub(settled)
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
    pub(crate) fn is_counted_at(&self, index: Index) -> bool {
        self.settled_count.has(index)
    }

    /// Counts some more slots, and tells which of them are special.
    pub(super) fn count_some(
        &mut self,
        run: Run,
        is_last: impl Fn(u32) -> bool,
    ) -> Result<Special> {
        let (segment, numbering) = (self.records.segment(), self.records.numbering());
        let tail = self.records.tail().unwrap_or(RECORDS_START);
        let special = self.settled_count.count_some(segment, numbering, tail, run, is_last)?;
        if self.answers == Answers::Inherited && !self.settled_count.may_be_touched() {
            self.answers.set_durable();
        }
        Ok(special)
    }

    /// Counts all slots again that were counted, because some went bad. `published`: the newest
    /// message.
    pub(super) fn recount(&mut self, published: u64) -> Result<Recount> {
        let (mapped, is_old) = (self.records.map()?, self.records.is_old());
        let (end, mean_bytes) = (self.records.end_index(published), self.records.mean_bytes());
        self.settled_count.recount(mapped, end, is_old, mean_bytes)
    }

    /// Bytes of the records that are not settled. `used`: of all records, while it is pushed to.
    pub(crate) fn live_record_bytes(&self, used: u64) -> u64 {
        self.records.bytes(used).saturating_sub(self.settled_count.bytes())
    }

    /// Bytes that unsettled messages take, slots included, and all others.
    pub(crate) fn live_and_dead_bytes(&self, published: u64, used: u64) -> (u64, u64) {
        let unsettled = self.unsettled(published);
        let live = if unsettled == 0 { 0 } else { self.live_record_bytes(used) + unsettled * SLOT };
        // What is behind the records of a segment that is no longer pushed to is of no use either.
        let slots = u64::from(self.records.end_index(published)) * SLOT;
        let all = if self.count().is_some() { self.size() } else { used + slots };
        (live, all.saturating_sub(live))
    }

    /// What is said of record `index` besides the record.
    pub(crate) fn status(&self, index: Index, run: Run) -> Result<Status> {
        self.records.status(index, run)
    }

    /// The segment as memory.
    #[inline]
    pub(crate) fn map(&self) -> Result<&Arc<Mapped>> {
        self.records.map()
    }

    /// Whether no message in it is unsettled, and none will be.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        let is_settled = self.count().is_some_and(|count| self.settled_count.messages() >= count);
        self.is_counted() && is_settled && self.leased == 0
    }

    /// Deliveries out of it that are not answered.
    #[inline]
    pub(crate) fn leased(&self) -> u32 {
        self.leased
    }

    #[inline]
    pub(crate) fn note_leased(&mut self, messages: u32) {
        self.leased += messages;
    }

    #[inline]
    pub(crate) fn note_answered(&mut self, messages: u32) {
        self.leased = self.leased.saturating_sub(messages);
    }

    /// Stores the state of message `index`, unless it is settled already. `record`: where its own
    /// record was found, if that is known; else its slot keeps the offset that it has.
    pub(super) fn store(
        &mut self,
        index: Index,
        (state, attempts): (State, u32),
        record: Option<(Offset, u32)>,
        run: Run,
    ) -> Result<Stored> {
        let mapped = self.map()?;
        let before = mapped.slot(index)?;
        // As if of an earlier run: what is not settled then is not settled at all. Whether a
        // transient message is depends on its run.
        if before.is_some_and(|slot| slot.is_settled(true))
            && self.status(index, run)?.standing.is_settled()
        {
            return Ok(Stored::WasSettled);
        }
        let known = before.and_then(|slot| slot.offset);
        let offset = record.map(|(offset, _)| offset).or(known);
        mapped.store_slot(index, Slot { state, attempts, offset })?;
        self.note_changes(index..index.next());
        if !matches!(state, State::Dead | State::Lost) {
            return Ok(Stored::Yes);
        }
        let bytes = record.map_or_else(|| self.records.mean_bytes(), |(_, bytes)| bytes.into());
        let wakes_compaction = self.note_settled(index..index.next(), bytes);
        Ok(Stored::Settled { wakes_compaction })
    }

    /// Messages side by side, whose records take this many bytes, have become settled. Returns true
    /// if one of them is the first one since compaction looked.
    #[inline(always)]
    pub(crate) fn note_settled(&mut self, indexes: Range<Index>, bytes: u64) -> bool {
        let before = self.settled_count.messages();
        self.settled_count.settle(indexes, bytes);
        self.copying.wants_to_hear(before, self.settled_count.messages())
    }

    /// Stores the state of message `index`, which is not settled and does not become so; its record
    /// is at `offset`.
    #[inline]
    pub(super) fn store_unsettled(
        &mut self,
        index: Index,
        (state, attempts): (State, u32),
        offset: Offset,
    ) -> Result<()> {
        debug_assert!(!matches!(state, State::Dead | State::Lost), "that is `store`'s to do");
        self.map()?.store_slot(index, Slot { state, attempts, offset: Some(offset) })?;
        self.note_changes(index..index.next());
        Ok(())
    }

    /// Stores the time before which message `index` is not to be handed out.
    pub(super) fn store_delay(&mut self, index: Index, delay: Delay) -> Result<()> {
        let base_time = self.base_time();
        self.map()?.store_delay(index, base_time, StoredDelay::Until(delay))?;
        self.note_changes(index..index.next());
        Ok(())
    }

    /// Gives slot `index` of a copy the state that its source has now.
    pub(crate) fn follow(
        &mut self,
        index: Index,
        slot: Slot,
        delay: StoredDelay,
        is_old: bool,
    ) -> Result<()> {
        let base_time = self.base_time();
        let mapped = self.map()?;
        let known = mapped.slot(index)?.unwrap_or(Slot::UNTOUCHED);
        mapped.store_delay(index, base_time, delay)?;
        mapped.store_slot(index, Slot { offset: known.offset, ..slot })?;
        if slot.is_settled(is_old) && !known.is_settled(is_old) {
            let header = known.offset.and_then(|offset| mapped.header(offset, index));
            let bytes = header.map_or(0, |header| header.record_len());
            self.settled_count.settle(index..index.next(), bytes);
        }
        self.note_changes(index..index.next());
        Ok(())
    }

    /// Slots side by side were stored to, which the next sync of answers has to cover.
    #[inline(always)]
    pub(super) fn note_changes(&mut self, indexes: Range<Index>) {
        self.answers.note();
        self.settled_count.touch();
        self.copying.note_changes(indexes);
    }

    /// Whether its answers are on the disk.
    pub(crate) fn answers(&self) -> Answers {
        self.answers
    }

    pub(crate) fn answers_mut(&mut self) -> &mut Answers {
        &mut self.answers
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

    /// Whether it may be copied at all: whole, counted, not copied now, and no other that has some
    /// of its messages may come back.
    pub(crate) fn can_be_copied(&self) -> bool {
        self.count().is_some() && self.is_counted() && !self.copying.is_pinned()
    }

    /// From here on the slots that are stored to are noted.
    pub(crate) fn begin_copy(&mut self) -> CopySource {
        let count = self.count().unwrap_or(0);
        self.copying.begin_copy(count);
        let segment = Arc::clone(self.segment());
        let Numbering { first_seq, base_time, is_old } = self.records.numbering();
        CopySource { segment, first_seq, base_time, count, tail: self.records.tail(), is_old }
    }

    /// A copy takes the place of others, and the deliveries out of them.
    pub(crate) fn take_over(&mut self, others: &[Self]) {
        self.leased = others.iter().map(|other| other.leased).sum();
    }
}
