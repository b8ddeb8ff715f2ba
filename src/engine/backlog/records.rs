//! The records of one segment: how they are numbered, where they end, and the map through which
//! they are read.
//!
//! Promises: a record is found by its Seq, also where Seqs have gaps. The segment is mapped when it
//! is needed as memory, and each new map gets a larger number. Stores nothing.
//!
//! A look changes nothing that another one would see: the map, and how far was looked for what is
//! settled, are remembered in cells. Relies on the dispatch lock, under which all of it is used.

use super::activity::Activity;
use super::log_place::LogPlace;
use crate::error::Result;
use crate::format::address::{Index, Offset};
use crate::format::record::RecordHeader;
use crate::format::segment::{RECORDS_START, Seal};
use crate::format::slot::Slot;
use crate::format::standing::Run;
use crate::io::Access;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::copy::Finished;
use crate::log::sealed::{Mapped, Numbering, Status};
use crate::recovery::Part;
use crate::time::Time;
use std::cell::{Cell, OnceCell};
use std::sync::{Arc, Weak};

/// Slots passed over under one lock.
const SLOTS_A_STEP: u32 = 4096;

/// The records of one segment.
#[derive(Debug)]
pub(crate) struct Records {
    segment: Arc<Segment>,
    /// There once it was needed.
    mapped: OnceCell<Arc<Mapped>>,
    /// The number of its newest map: larger is later.
    map_number: Cell<u64>,
    /// That one was evicted as a whole.
    is_evicted: Cell<bool>,
    activity: Activity,
    /// Whether that lists this segment.
    is_busy: Cell<bool>,
    numbering: Numbering,
    /// The base time, in UTC.
    base_in_utc: Time,
    /// Known once the segment is no longer pushed to.
    end: Option<RecordsEnd>,
    floor: Cell<Floor>,
}

/// How far a search for the oldest unsettled message has come.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    /// All below this are settled.
    index: Index,
    /// One of them, with the offset of its record.
    previous: Option<(Index, Offset)>,
}

/// Where the records of a segment end.
#[derive(Clone, Copy, Debug)]
struct RecordsEnd {
    count: u32,
    tail: Offset,
}

impl Records {
    /// Of the segment that pushes go to.
    pub(super) fn active(active: &Active, activity: &Activity) -> Self {
        let (segment, region) = (Arc::clone(active.segment()), Arc::clone(active.region()));
        let (first_seq, base_time) = (active.first_seq(), active.base_time());
        let numbering = Numbering { first_seq, base_time, is_old: false };
        let mapped = Mapped::growing(segment, region, Arc::clone(active.shared_tail()));
        Self::new(Arc::new(mapped), numbering, None, activity)
    }

    /// Of a copy that this run made.
    pub(super) fn copied(mapped: Arc<Mapped>, made: &Finished, activity: &Activity) -> Self {
        let Finished { first_seq, base_time, tail, count, .. } = *made;
        let numbering = Numbering { first_seq, base_time, is_old: false };
        Self::new(mapped, numbering, Some(RecordsEnd { count, tail }), activity)
    }

    fn new(
        mapped: Arc<Mapped>,
        numbering: Numbering,
        end: Option<RecordsEnd>,
        activity: &Activity,
    ) -> Self {
        Self {
            base_in_utc: base_in_utc(&mapped.segment, numbering),
            segment: Arc::clone(&mapped.segment),
            mapped: OnceCell::from(mapped),
            map_number: Cell::new(activity.next_map()),
            is_evicted: Cell::new(false),
            activity: activity.clone(),
            is_busy: Cell::new(false),
            numbering,
            end,
            floor: Cell::default(),
        }
    }

    /// Of a segment of an earlier run. `next_seq`: the first Seq of what follows it.
    pub(super) fn of_earlier_run(part: &Part, next_seq: u64, activity: &Activity) -> Self {
        let Part { first_seq, base_time, count, tail, .. } = *part;
        // Without a record it is numbered like what follows it.
        let first_seq = if count == 0 { next_seq } else { first_seq };
        let numbering = Numbering { first_seq, base_time, is_old: true };
        Self {
            base_in_utc: base_in_utc(&part.segment, numbering),
            segment: Arc::clone(&part.segment),
            mapped: OnceCell::new(),
            map_number: Cell::new(activity.next_map()),
            is_evicted: Cell::new(false),
            activity: activity.clone(),
            is_busy: Cell::new(false),
            numbering,
            end: Some(RecordsEnd { count, tail }),
            floor: Cell::default(),
        }
    }

    #[inline]
    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    #[inline]
    pub(super) fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// The time that their ages count from, in UTC.
    #[inline]
    pub(crate) fn base_in_utc(&self) -> Time {
        self.base_in_utc
    }

    /// Whether an earlier run wrote them.
    #[inline]
    pub(crate) fn is_old(&self) -> bool {
        self.numbering.is_old
    }

    /// How many there are, once the segment is no longer pushed to.
    #[inline]
    pub(super) fn count(&self) -> Option<u32> {
        self.end.map(|end| end.count)
    }

    /// Where they end, once the segment is no longer pushed to.
    #[inline]
    pub(super) fn tail(&self) -> Option<Offset> {
        self.end.map(|end| end.tail)
    }

    /// The segment is no longer pushed to.
    pub(super) fn seal(&mut self, Seal { count, tail, .. }: Seal) {
        self.end = Some(RecordsEnd { count, tail });
    }

    /// The segment as memory, if it is mapped.
    #[inline]
    pub(crate) fn mapped(&self) -> Option<&Arc<Mapped>> {
        self.mapped.get()
    }

    /// Whether their Seqs have gaps: the segment is compacted.
    #[inline]
    pub(crate) fn has_gaps(&self) -> bool {
        self.segment.sources.is_some()
    }

    /// One behind the last index that may be looked at; whether it may be shown, its Seq tells.
    #[inline]
    pub(crate) fn end_index(&self, published: u64) -> Index {
        let visible = (published + 1).saturating_sub(self.numbering.first_seq);
        self.count().map_or_else(|| Index::saturating_from(visible), Index)
    }

    /// One behind the last Seq that one of them can have.
    #[inline]
    pub(super) fn end_seq(&self, published: u64) -> u64 {
        match &self.segment.sources {
            Some(sources) => sources.last_seq + 1,
            None => self.numbering.first_seq + u64::from(self.end_index(published)),
        }
    }

    /// How many have a Seq up to this one.
    pub(super) fn count_up_to(&self, published: u64) -> u64 {
        let Numbering { first_seq, .. } = self.numbering;
        let mut visible = (published + 1).saturating_sub(first_seq);
        if self.has_gaps() && published + 1 < self.end_seq(published) {
            // Where its table cannot be read, all of them.
            let index = self.mapped.get().map_or(Ok(Index::MAX), |mapped| {
                mapped.index_from(published + 1, self.end_index(published), first_seq)
            });
            visible = index.map_or(u64::MAX, u64::from);
        } else if self.has_gaps() {
            visible = u64::MAX;
        }
        u64::from(self.end_index(published)).min(visible)
    }

    /// Bytes of all of them. `used`: as many, while the segment is pushed to.
    pub(super) fn bytes(&self, used: u64) -> u64 {
        self.tail().map_or(used, |tail| tail.since(RECORDS_START))
    }

    /// Bytes of one of them, where no more is known than how many there are.
    pub(super) fn mean_bytes(&self) -> u64 {
        self.end
            .map_or(0, |end| (end.tail - RECORDS_START).checked_div(end.count.into()).unwrap_or(0))
    }

    /// One behind the last index, or [`Index::MAX`] while the segment is pushed to.
    fn known_end(&self) -> Index {
        self.count().map_or(Index::MAX, Index)
    }

    /// The index of a message, if this segment has it.
    pub(crate) fn index_of(&self, seq: u64) -> Result<Option<Index>> {
        let (end, first_seq) = (self.known_end(), self.numbering.first_seq);
        if !self.has_gaps() {
            let index = seq.checked_sub(first_seq).and_then(|index| u32::try_from(index).ok());
            return Ok(index.map(Index).filter(|&index| index < end));
        }
        self.map()?.index_of(seq, end, first_seq)
    }

    /// The first index from which on its Seqs are not smaller.
    pub(crate) fn index_from(&self, seq: u64) -> Result<Index> {
        let (end, first_seq) = (self.known_end(), self.numbering.first_seq);
        if !self.has_gaps() {
            return Ok(Index::saturating_from(seq.saturating_sub(first_seq)).min(end));
        }
        self.map()?.index_from(seq, end, first_seq)
    }

    /// The Seq of record `index`; `None` if it cannot be read any more.
    pub(crate) fn seq(&self, index: Index) -> Result<Option<u64>> {
        if !self.has_gaps() {
            return Ok(Some(self.numbering.first_seq + u64::from(index)));
        }
        let first_seq = self.numbering.first_seq;
        self.map()?.seq(index, first_seq)
    }

    /// What is said of record `index` besides the record.
    pub(super) fn status(&self, index: Index, run: Run) -> Result<Status> {
        let numbering = self.numbering;
        self.map()?.status(index, numbering, run)
    }

    /// The segment as memory.
    #[inline]
    pub(super) fn map(&self) -> Result<&Arc<Mapped>> {
        match self.mapped.get() {
            Some(mapped) => Ok(mapped),
            None => self.map_anew(),
        }
    }

    #[cold]
    fn map_anew(&self) -> Result<&Arc<Mapped>> {
        let (segment, region) = (Arc::clone(&self.segment), self.segment.map(Access::Commits)?);
        self.map_number.set(self.activity.next_map());
        self.is_evicted.set(false);
        self.note_busy();
        let mapped = Mapped::new(segment, region, self.tail());
        Ok(self.mapped.get_or_init(|| Arc::new(mapped)))
    }

    /// The segment is mapped, or may be changed.
    #[inline]
    pub(super) fn note_busy(&self) {
        if !self.is_busy.get() {
            self.become_busy();
        }
    }

    #[cold]
    fn become_busy(&self) {
        self.is_busy.set(true);
        let (first_seq, ordinal) = (self.numbering.first_seq, self.segment.header.ordinal);
        self.activity.note_busy(LogPlace { first_seq, ordinal });
    }

    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.get()
    }

    /// There is nothing to be done for the segment until it is used again.
    pub(super) fn rest(&self) {
        self.is_busy.set(false);
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapped.get().is_some()
    }

    /// Whether it is mapped, and that map was not evicted as a whole.
    pub(crate) fn is_to_evict(&self) -> bool {
        self.is_mapped() && !self.is_evicted.get()
    }

    /// This map, which may be one of this segment, was evicted as a whole.
    pub(crate) fn note_evicted(&self, map: &Weak<Mapped>) {
        if self.mapped.get().is_some_and(|mapped| Arc::as_ptr(mapped) == map.as_ptr()) {
            self.is_evicted.set(true);
        }
    }

    /// The number of its newest map: larger is later.
    pub(super) fn map_number(&self) -> u64 {
        self.map_number.get()
    }

    /// Gives its map up, unless the segment is pushed to. The caller drops it outside of all locks.
    pub(super) fn take_map(&mut self) -> Option<Arc<Mapped>> {
        self.end?;
        self.mapped.take()
    }

    /// All below this index were seen to be settled.
    pub(super) fn note_floor(&self, index: Index) {
        self.floor.set(Floor { index, previous: None });
    }

    /// The first index below which all are settled, as far as a step of the search finds out. Maps
    /// nothing for it.
    pub(super) fn look_for_floor(&self, published: u64) -> Index {
        if self.is_mapped() {
            self.oldest(published);
        }
        self.floor.get().index
    }

    /// A step of the search for the oldest message that is not settled. Goes on from where it last
    /// was.
    pub(crate) fn oldest(&self, published: u64) -> Search {
        let is_old = self.numbering.is_old;
        let (end_index, mut floor) = (self.end_index(published), self.floor.get());
        let Ok(mapped) = self.map() else { return Search::Nothing };
        let step_end = end_index.min(floor.index.saturating_add(SLOTS_A_STEP));
        while floor.index < step_end {
            let Ok(slot) = mapped.slot(floor.index) else { return Search::Nothing };
            let Some(settled) = slot.filter(|slot| slot.is_settled(is_old)) else { break };
            let previous = settled.offset.map(|offset| (floor.index, offset));
            floor = Floor { index: floor.index.next(), previous: previous.or(floor.previous) };
        }
        self.floor.set(floor);
        let Floor { index, previous } = floor;
        if index == step_end && index < end_index {
            return Search::More;
        }
        match mapped.slot(index) {
            Ok(Some(slot)) if index < end_index => {
                Search::Found(Oldest { mapped: Arc::clone(mapped), index, slot, previous })
            }
            _ => Search::Nothing,
        }
    }
}

fn base_in_utc(segment: &Segment, numbering: Numbering) -> Time {
    numbering.base_time.utc(segment.header.clock_shift)
}

/// What a step of a search gives.
#[derive(Debug)]
pub(crate) enum Search {
    Found(Oldest),
    /// There are no messages, or they cannot be read.
    Nothing,
    /// Nothing yet: others should have their turn.
    More,
}

/// The oldest message of a segment that is not settled.
#[derive(Debug)]
pub(crate) struct Oldest {
    mapped: Arc<Mapped>,
    index: Index,
    slot: Slot,
    /// A settled one before it, and the offset of its record.
    previous: Option<(Index, Offset)>,
}

impl Oldest {
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    /// The header of its record, which may be far from any that is known: to be called outside of
    /// the lock.
    pub(crate) fn header(&self) -> Option<RecordHeader> {
        let Self { mapped, index, slot, previous } = self;
        let known = slot.offset.and_then(|offset| mapped.header(offset, *index));
        known.or_else(|| {
            let behind = previous.and_then(|(before, offset)| {
                let before = mapped.header(offset, before).filter(|_| before.next() == *index)?;
                mapped.header(offset + before.record_len(), *index)
            });
            behind.or_else(|| mapped.walk_to(*index).map(|(_, header)| header))
        })
    }
}
