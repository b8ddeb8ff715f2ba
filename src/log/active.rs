//! The segment that pushes go to.
//!
//! Promises: a batch is placed whole or not at all. A batch for which `append` returned `Ok`
//! survives the process, unless it was to be written later: then it does from `end_write` on, or
//! it is taken back there, with all behind it. Relies on one caller at a time (`&mut`). Nothing is
//! published or synced here.

use super::Segment;
use super::draft::Draft;
use super::shared_tail::SharedTail;
use super::stage::{Left, Refused, Stage, Written};
use super::waypoints::Waypoints;
use crate::error::Result;
use crate::format::PAGE;
use crate::format::address::{Index, Offset};
use crate::format::bytes::to_u64;
use crate::format::record::{self, Flags, RecordHeader};
use crate::format::segment::{ACTIVATION, Activation, RECORDS_START, Seal, capacity};
use crate::format::slot::{self, Delay, SLOT, Slot, State, StoredDelay};
use crate::io::Region;
use crate::time::Time;
use std::io;
use std::mem;
use std::sync::Arc;

/// The place of a record, and of its slot, that a failed batch may have stored.
#[derive(Clone, Copy, Debug)]
struct Remains {
    offset: Offset,
    slot: Option<Offset>,
}

/// How records come into a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placing {
    /// Each is stored by itself.
    Stored,
    /// They are collected, and written together.
    Written,
}

/// When records are in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    /// At once. No others wait to be written.
    Now,
    /// With the next write; until then they can be taken back. None of them has a slot from the
    /// start.
    Later,
}

/// The segment that pushes go to.
#[derive(Debug)]
pub(crate) struct Active {
    segment: Arc<Segment>,
    region: Arc<dyn Region>,
    first_seq: u64,
    base_time: Time,
    tail: Offset,
    /// The same, for those who read.
    shared_tail: Arc<SharedTail>,
    count: u32,
    /// The first record that is a waypoint and was not noted as one.
    next_waypoint: Index,
    /// Where records are collected; `None` where each is stored by itself.
    stage: Option<Stage>,
    /// How many of its records are not in the file yet: they are staged, or being written.
    unwritten: u32,
    /// Records that failed batches left behind the tail, and that could not be erased yet.
    remains: Vec<Remains>,
    /// Where what failed batches left ends; at the start as long as nothing has to be erased.
    remains_end: Offset,
    /// A write has failed: the disk may have other bytes behind the tail than the file has now.
    has_failed: bool,
}

impl Active {
    /// Starts to use a segment: its first record will get `first_seq`.
    pub(crate) fn start(
        segment: Arc<Segment>,
        region: Arc<dyn Region>,
        first_seq: u64,
        now: Time,
        placing: Placing,
    ) -> Result<Self> {
        let activation = Activation { first_seq, base_time: now };
        segment.store_mark(&*region, ACTIVATION, &activation.encode(segment.key))?;
        Ok(Self {
            segment,
            region,
            first_seq,
            base_time: now,
            tail: RECORDS_START,
            shared_tail: Arc::new(SharedTail::new(RECORDS_START)),
            count: 0,
            next_waypoint: Index::FIRST,
            stage: (placing == Placing::Written).then(Stage::default),
            unwritten: 0,
            remains: Vec::new(),
            remains_end: RECORDS_START,
            has_failed: false,
        })
    }

    #[inline]
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The segment as memory.
    #[inline]
    pub(crate) fn region(&self) -> &Arc<dyn Region> {
        &self.region
    }

    #[inline]
    pub(crate) fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The time at which it was started. Each of its records says how much later it came.
    #[inline]
    pub(crate) fn base_time(&self) -> Time {
        self.base_time
    }

    /// Where its records end, as pushes go on.
    pub(crate) fn shared_tail(&self) -> &Arc<SharedTail> {
        &self.shared_tail
    }

    /// The seal for its records so far.
    pub(crate) fn seal(&self, run_ended: bool) -> Seal {
        Seal { tail: self.tail, count: self.count, run_ended }
    }

    /// Bytes that records and slots take in it, with its first header page.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.tail.0 + u64::from(self.count) * SLOT
    }

    /// Where its records end.
    pub(crate) fn tail(&self) -> Offset {
        self.tail
    }

    /// Bytes that records take in it.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.tail - RECORDS_START
    }

    /// How many records can still be placed in it at most.
    pub(crate) fn room_in_records(&self) -> u64 {
        capacity((self.segment.header.size - PAGE).saturating_sub(self.used_bytes()))
    }

    /// Whether `records` records that take `bytes` in all, pushed now, fit.
    pub(crate) fn fits(&self, bytes: u64, records: u64, now: Time) -> bool {
        let end = self.used_bytes() + bytes + records * SLOT;
        end <= self.segment.header.size - PAGE
            && u64::from(self.count) + records <= u64::from(self.segment.slot_limit)
            && record::encode_age(now, self.base_time).is_some()
    }

    /// Where its records are collected, if they are.
    pub(crate) fn stage(&self) -> Option<&Stage> {
        self.stage.as_ref()
    }

    /// How many of its records are not in the file yet.
    pub(crate) fn unwritten(&self) -> u32 {
        self.unwritten
    }

    /// Places `drafts`, which fit, as one batch. `unsynced`: how many Seqs before the first of them
    /// are not known to be durable. Gives what becomes of them, if they are written later, or if a
    /// write of them failed: then they are not placed. `WRITTEN`: whether its records are written,
    /// known beforehand, so that a store through a map pays nothing for the other way.
    #[inline]
    pub(crate) fn append<const WRITTEN: bool>(
        &mut self,
        drafts: &[Draft<'_>],
        unsynced: u64,
        now: Time,
        when: When,
    ) -> Result<Option<Arc<Written>>> {
        let age = record::encode_age(now, self.base_time).unwrap_or(u32::MAX);
        let (mut tail, mut index, mut unsynced) = (self.tail, Index(self.count), unsynced);
        let last = drafts.len().saturating_sub(1);
        for (position, draft) in drafts.iter().enumerate() {
            let header = RecordHeader {
                body_check: draft.body_check,
                body_len: draft.body_len,
                flags: Flags::default()
                    .transient(draft.is_transient())
                    .extended(!draft.extensions().is_empty())
                    .more(position < last),
                unsynced: record::encode_unsynced(unsynced),
                index,
                age,
            };
            if let Err(error) = self.place::<WRITTEN>(&header, draft, tail, when) {
                return self.give_up::<WRITTEN>(&drafts[..=position], tail, error);
            }
            tail = tail + header.record_len();
            index = index.next();
            unsynced += 1;
        }
        let mut written = None;
        if WRITTEN {
            written = self.end_batch(drafts, tail, when)?;
            if matches!(written.as_ref().and_then(|written| written.outcome()), Some(Err(_))) {
                return Ok(written);
            }
        } else {
            self.shared_tail.set(tail);
        }
        if index > self.next_waypoint {
            self.note_waypoints(drafts);
            self.next_waypoint = Waypoints::next_after(index);
        }
        (self.tail, self.count) = (tail, index.0);
        Ok(written)
    }

    /// All records of a batch are staged, and end at this tail.
    #[cold]
    fn end_batch(
        &mut self,
        drafts: &[Draft<'_>],
        tail: Offset,
        when: When,
    ) -> Result<Option<Arc<Written>>> {
        let Some(stage) = &mut self.stage else { return Ok(None) };
        if when == When::Later {
            self.unwritten += u32::try_from(drafts.len()).unwrap_or(u32::MAX);
            return Ok(Some(Arc::clone(stage.written())));
        }
        if let Err(error) = stage.write_to(&*self.region) {
            return self.give_up::<true>(drafts, tail, error);
        }
        self.shared_tail.set(tail);
        Ok(None)
    }

    /// A batch could not be placed, of which these drafts may be in the file. Where they are stored
    /// one by one, they are no batch without the last one, and that is none without its header,
    /// which is stored last: so no later run finds them.
    #[cold]
    fn give_up<const WRITTEN: bool>(
        &mut self,
        drafts: &[Draft<'_>],
        tail: Offset,
        error: io::Error,
    ) -> Result<Option<Arc<Written>>> {
        if let Some(stage) = &mut self.stage {
            stage.clear();
        }
        let mut offset = self.tail;
        for (index, draft) in (self.count..).map(Index).zip(drafts) {
            let slot = slot::offset(self.segment.header.size, index);
            self.remains.push(Remains { offset, slot: draft.has_slot().then_some(slot) });
            offset = offset + draft.record_len();
        }
        let refused = self.refuse(offset, tail, error);
        if WRITTEN { Ok(Some(Arc::new(Written::refused(refused)))) } else { Err(refused.cause()) }
    }

    /// Erases what a failed write left before `end`. `offset`: what the error tells.
    fn refuse(&mut self, end: Offset, offset: Offset, error: io::Error) -> Refused {
        self.remains_end = self.remains_end.max(end);
        let has_records = self.remains.iter().any(|remains| self.may_have_record(remains.offset));
        self.has_failed = true;
        // The first error is the one to tell; the next push tries again to erase.
        let erased = self.erase_all_remains();
        let left = match (has_records, erased) {
            (false, _) => Left::Nothing,
            (true, Ok(())) => Left::Erased,
            (true, Err(_)) => Left::Records,
        };
        Refused::new(&self.segment, offset, error, left)
    }

    /// Takes out what is staged, for one write, and puts `spare` there, which is empty; gives the
    /// region to write it to. `None` if nothing is staged.
    pub(crate) fn begin_write(&mut self, spare: &mut Stage) -> Option<Arc<dyn Region>> {
        let stage = self.stage.as_mut().filter(|stage| stage.first().is_some())?;
        mem::swap(stage, spare);
        Some(Arc::clone(&self.region))
    }

    /// Ends what `begin_write` began, before another is begun. If it failed, all that is not in the
    /// file is taken back: what was written then, and what was staged meanwhile.
    pub(crate) fn end_write(&mut self, staged: &mut Stage, written: io::Result<()>) -> Result<()> {
        let Err(source) = written else {
            let (records, end) = staged.succeed();
            self.unwritten -= u32::try_from(records).unwrap_or(self.unwritten);
            self.shared_tail.set(end);
            return Ok(());
        };
        let offset = staged.first().unwrap_or(self.tail);
        let later = self.stage.as_mut().map(Stage::take_later);
        let failed = staged.take_later().into_iter().chain(later.into_iter().flatten());
        self.remains.extend(failed.map(|offset| Remains { offset, slot: None }));
        let end = mem::replace(&mut self.tail, offset);
        self.count -= mem::take(&mut self.unwritten);
        self.segment.waypoints().forget_from(Index(self.count));
        self.next_waypoint = Waypoints::next_after(Index(self.count));
        let refused = Arc::new(self.refuse(end, offset, source));
        staged.refuse(&refused);
        self.stage.iter_mut().for_each(|stage| stage.refuse(&refused));
        Err(refused.cause())
    }

    /// Notes where some records of a placed batch are.
    #[cold]
    fn note_waypoints(&self, drafts: &[Draft<'_>]) {
        let mut offset = self.tail;
        for (index, draft) in (self.count..).map(Index).zip(drafts) {
            if Waypoints::is_one(index) {
                self.segment.waypoints().note(index, offset);
            }
            offset = offset + draft.record_len();
        }
    }

    /// Erases what failed batches left, so that it is never taken for a record, or for the state of
    /// a later record in the same place. Until that is done nothing may be pushed, into this
    /// segment or a later one.
    #[inline]
    pub(crate) fn erase_remains(&mut self) -> Result<()> {
        if self.remains_end == RECORDS_START { Ok(()) } else { self.erase_all_remains() }
    }

    #[cold]
    fn erase_all_remains(&mut self) -> Result<()> {
        while let Some(&Remains { offset, slot }) = self.remains.last() {
            let header = self.region.store(offset.0, &[0; record::HEADER]);
            let clear = |slot: Offset| {
                let delay = slot + SLOT / 2;
                self.region.store_word(delay.0, 0).and_then(|()| self.region.store_word(slot.0, 0))
            };
            let erased = header.and_then(|()| slot.map_or(Ok(()), clear));
            erased.map_err(|error| self.segment.error("append", offset, error))?;
            self.remains.pop();
        }
        self.erase_where_slots_come()?;
        self.remains_end = RECORDS_START;
        Ok(())
    }

    /// A slot that nobody has stored to says so by zeros: bodies of failed batches are erased as
    /// far as they reach to where later records may have their slots.
    fn erase_where_slots_come(&self) -> Result<()> {
        let Segment { header, slot_limit, .. } = &*self.segment;
        let lowest = slot::offset(header.size, Index(slot_limit.saturating_sub(1)));
        let mut place = self.tail.max(lowest);
        let mut bytes = [0; 4096];
        while place < self.remains_end {
            let piece =
                bytes.len().min(usize::try_from(self.remains_end - place).unwrap_or(usize::MAX));
            let piece = &mut bytes[..piece];
            let erased = self.region.load(place.0, piece).and_then(|()| {
                // Where nothing came, a full disk may have no room for zeros.
                if piece.iter().all(|&byte| byte == 0) {
                    return Ok(());
                }
                piece.fill(0);
                self.region.store(place.0, piece)
            });
            erased.map_err(|error| self.segment.error("append", place, error))?;
            place = place + to_u64(piece.len());
        }
        Ok(())
    }

    /// Returns true if there is, or may be, a whole record at `offset`, in the file or on the disk.
    /// A write that fails leaves no more of it there than in the file. But a later one may leave a
    /// header whose body is on the disk as it was before all of them.
    fn may_have_record(&self, offset: Offset) -> bool {
        let whole = || {
            let mut header = [0; record::HEADER];
            self.region.load(offset.0, &mut header)?;
            let Some(header) = RecordHeader::decode(&header, self.segment.key, offset) else {
                return Ok(false);
            };
            if self.has_failed {
                return Ok(true);
            }
            let mut body = Vec::new();
            let start = offset + to_u64(record::HEADER);
            let len = usize::try_from(header.body_len).map_err(io::Error::other)?;
            self.region.load_into(start.0, len, &mut body)?;
            Ok::<_, io::Error>(header.is_of(&body))
        };
        whole().unwrap_or(true)
    }

    /// Stores or stages a record, and stores first its slot, if that has something to say: the
    /// record exists once its header is in the file.
    #[inline]
    fn place<const WRITTEN: bool>(
        &mut self,
        header: &RecordHeader,
        draft: &Draft<'_>,
        offset: Offset,
        when: When,
    ) -> io::Result<()> {
        if draft.has_slot() {
            self.place_slot(draft, header.index, header.pushed_at(self.base_time), offset)?;
        }
        let encoded = header.encode(self.segment.key, offset);
        let stage = if WRITTEN { self.stage.as_mut() } else { None };
        let Some(stage) = stage else {
            let body = [draft.extensions(), &*draft.payload];
            return self.region.store_record(offset.0, &encoded, body);
        };
        let pieces = [&encoded[..], draft.extensions(), &*draft.payload];
        match when {
            When::Later => stage.add_for_later(offset, pieces),
            When::Now => stage.add_or_write(offset, pieces, &*self.region)?,
        }
        Ok(())
    }

    /// The slot of a message that has one from the start.
    #[cold]
    fn place_slot(
        &self,
        draft: &Draft<'_>,
        index: Index,
        now: Time,
        offset: Offset,
    ) -> io::Result<()> {
        let (segment, region) = (&self.segment, &self.region);
        if let Some(due) = draft.due() {
            let delay = Delay { due, given: due.since(now) };
            let word = StoredDelay::Until(delay).encode(self.base_time, segment.key, index);
            region.store_word(slot::delay_offset(segment.header.size, index).0, word)?;
        }
        let state = if draft.is_transient() { State::Transient } else { State::Ready };
        let slot = Slot { state, attempts: 0, offset: Some(offset) };
        let place = slot::offset(segment.header.size, index);
        region.store_word(place.0, slot.encode(segment.key, index))
    }
}
