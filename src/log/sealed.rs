//! Reading records and slots of a mapped segment, one at a time.
//!
//! Promises: what it returns has passed its checks, but for bodies, which the caller verifies;
//! damage is a value, not an error; a search ends where records end that pushes are done with.
//! Relies on callers to ask only for records that are published.

use super::Segment;
use super::shared_tail::{SeenTail, SharedTail};
use super::waypoints::Waypoints;
use crate::error::Result;
use crate::format::address::{Index, Offset};
use crate::format::bytes::{to_u64, u64_at};
use crate::format::checksum::Key;
use crate::format::extension;
use crate::format::number;
use crate::format::record::{HEADER, RecordHeader};
use crate::format::segment::RECORDS_START;
use crate::format::slot::{self, Delay, SLOT, Slot, State, StoredDelay};
use crate::format::standing::{Run, Standing};
use crate::io::Region;
use crate::time::Time;
use std::sync::Arc;

/// Bytes that a search reads at once.
const BYTES_A_STEP: usize = 4096;

/// A mapped segment.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) segment: Arc<Segment>,
    pub(crate) region: Arc<dyn Region>,
    /// Those of the segment, at hand.
    key: Key,
    first_slot: Offset,
    bound: Bound,
    /// Where its records end by now, if it is pushed to.
    growing: Option<SeenTail>,
}

/// How far records may reach.
#[derive(Clone, Copy, Debug)]
struct Bound {
    end: Offset,
    /// Bytes before `end` for each slot up to that of the record.
    per_slot: u64,
}

impl Bound {
    /// Where records are known to end; or else before their slots.
    fn of(segment: &Segment, tail: Option<Offset>) -> Self {
        match tail {
            Some(end) => Self { end, per_slot: 0 },
            None => Self { end: segment.header.twin_offset(), per_slot: SLOT },
        }
    }

    /// Whether record `index` may end here.
    #[inline]
    fn allows(self, index: Index, end: Offset) -> bool {
        end + self.per_slot * (u64::from(index) + 1) <= self.end
    }
}

/// How the records of a segment are numbered and timed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbering {
    pub(crate) first_seq: u64,
    /// The time that ages count from.
    pub(crate) base_time: Time,
    /// An earlier run made the segment. Then a message whose number cannot be read counts as one of
    /// an earlier run.
    pub(crate) is_old: bool,
}

/// What the disk says of a message besides its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    /// `None` if it cannot be read any more.
    pub(crate) seq: Option<u64>,
    /// The slot; if it cannot be read, the rebuilt one.
    pub(crate) slot: Slot,
    pub(crate) delay: Option<Delay>,
    pub(crate) standing: Standing,
}

impl Status {
    /// A slot that cannot be read counts as this one: handed out once.
    pub(crate) const REBUILT: Slot = Slot { state: State::Delivered, attempts: 1, offset: None };

    /// Puts together what was read.
    #[inline]
    pub(crate) fn of(
        seq: Option<u64>,
        slot: Option<Slot>,
        delay: Option<Delay>,
        run: Run,
        numbering: Numbering,
    ) -> Self {
        let is_old = seq.map_or(numbering.is_old, |seq| run.is_old(seq));
        let delay = delay.filter(|_| slot != Some(Slot::UNTOUCHED));
        let standing = Standing::of(slot, delay, is_old, run);
        Self { seq, slot: slot.unwrap_or(Self::REBUILT), delay, standing }
    }
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Located {
    At(Offset, RecordHeader),
    /// Records before this index are lost; the next one is at this offset.
    Lost {
        end_index: Index,
        next: Offset,
    },
}

impl Mapped {
    /// `tail`: where its records end, once that is known.
    pub(crate) fn new(
        segment: Arc<Segment>,
        region: Arc<dyn Region>,
        tail: Option<Offset>,
    ) -> Self {
        let (key, bound) = (segment.key, Bound::of(&segment, tail));
        let first_slot = slot::offset(segment.header.size, Index::FIRST);
        Self { segment, region, key, first_slot, bound, growing: None }
    }

    /// The same of the segment that is pushed to.
    pub(crate) fn growing(
        segment: Arc<Segment>,
        region: Arc<dyn Region>,
        tail: Arc<SharedTail>,
    ) -> Self {
        Self { growing: Some(SeenTail::of(tail)), ..Self::new(segment, region, None) }
    }

    /// Finds record `index`: where its slot says, or else by a search from `offset`, where it or an
    /// earlier record starts. `previous`: index and offset of an earlier record, if they are known.
    #[inline]
    pub(crate) fn locate(
        &self,
        slot: Slot,
        index: Index,
        end_index: Index,
        offset: Offset,
        previous: Option<(Index, Offset)>,
    ) -> Located {
        let told = slot.offset.and_then(|at| Some(Located::At(at, self.header(at, index)?)));
        told.unwrap_or_else(|| self.search(index, end_index, offset, previous))
    }

    fn search(
        &self,
        index: Index,
        end_index: Index,
        offset: Offset,
        previous: Option<(Index, Offset)>,
    ) -> Located {
        // A place before those that are passed is not believed: nothing is searched twice. Nor is
        // one behind a place where that record is not: its slot may have rotted.
        let behind =
            previous.and_then(|(index, at)| Some(at + self.header(at, index)?.record_len()));
        let from = offset.max(RECORDS_START).max(behind.unwrap_or_default());
        if let Some(header) = self.header(from, index) {
            return Located::At(from, header);
        }
        match self.find(from, index, end_index) {
            Some((at, found)) if found == index => match self.header(at, index) {
                Some(header) => Located::At(at, header),
                None => Located::Lost { end_index, next: from },
            },
            Some((at, found)) => Located::Lost { end_index: found, next: at },
            None => Located::Lost { end_index, next: from },
        }
    }

    /// The header at `offset`, if it is that of record `index`.
    #[inline]
    pub(crate) fn header(&self, offset: Offset, index: Index) -> Option<RecordHeader> {
        // A slot that is damaged may name a place that is being stored to.
        if self.growing.as_ref().is_some_and(|tail| !tail.is_behind(offset + to_u64(HEADER))) {
            return None;
        }
        let bytes = self.region.load_header(offset.0).ok()?;
        let header = self.decode(&bytes, offset, index);
        header.filter(|header| self.bound.allows(index, offset + header.record_len()))
    }

    /// The same, where its bytes were loaded. Where its record ends is not looked at.
    #[inline]
    pub(super) fn decode(
        &self,
        bytes: &[u8; HEADER],
        offset: Offset,
        index: Index,
    ) -> Option<RecordHeader> {
        let words = [u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16)];
        let header = RecordHeader::of_words(words, self.key, offset);
        header.filter(|header| header.index == index)
    }

    /// A copy of the body behind `header`, not yet verified.
    #[inline]
    pub(crate) fn body(&self, header: &RecordHeader, offset: Offset) -> Vec<u8> {
        let len = usize::try_from(header.body_len).unwrap_or(0);
        let mut body = Vec::with_capacity(len);
        // `header` has checked that it lies in the segment; else an empty body fails its check.
        let start = offset + to_u64(HEADER);
        self.region.load_into(start.0, len, &mut body).ok();
        body
    }

    /// Whether only a newer keepq may be able to read the body behind `header`. It is not verified,
    /// and no more of it is read than its extensions.
    pub(crate) fn may_be_newer(&self, header: &RecordHeader, offset: Offset) -> bool {
        let body = offset + to_u64(HEADER);
        let mut start = [0; extension::LENGTH];
        if !header.flags.has_extensions() || self.region.load(body.0, &mut start).is_err() {
            return false;
        }
        let len = extension::start_len(start).min(usize::try_from(header.body_len).unwrap_or(0));
        let mut extensions = Vec::with_capacity(len);
        let read = self.region.load_into(body.0, len, &mut extensions);
        read.is_ok() && extension::may_be_newer(&extensions)
    }

    /// Records end here, or before it.
    pub(super) fn records_end(&self) -> Offset {
        let end = self.bound.end;
        self.growing.as_ref().map_or(end, |tail| tail.look().min(end))
    }

    /// The first record at or behind `from` with an index in `from_index..end_index`. Records lie
    /// in the order of their indexes, so the search ends at one with a larger index.
    pub(crate) fn find(
        &self,
        from: Offset,
        from_index: Index,
        end_index: Index,
    ) -> Option<(Offset, Index)> {
        let slots = self.slot_place(from_index);
        let end = slots.min(self.records_end());
        let mut chunk = vec![0; BYTES_A_STEP + HEADER];
        let mut start = from;
        while start < end {
            let len = usize::try_from(end - start).unwrap_or(usize::MAX).min(chunk.len());
            self.region.load(start.0, chunk.get_mut(..len)?).ok()?;
            for (offset, bytes) in candidates(chunk.get(..len)?, start) {
                if let Some(header) = RecordHeader::decode(bytes, self.key, offset)
                    && header.index >= from_index
                    && self.header(offset, header.index).is_some()
                {
                    return (header.index < end_index).then_some((offset, header.index));
                }
            }
            start = start + to_u64(BYTES_A_STEP);
        }
        None
    }

    /// Finds record `index`: where its slot says, or else by going from record to record.
    pub(crate) fn record(&self, slot: Slot, index: Index) -> Option<(Offset, RecordHeader)> {
        let told = slot.offset.and_then(|at| Some((at, self.header(at, index)?)));
        told.or_else(|| self.walk_to(index))
    }

    /// Finds record `index` by going from record to record, from the nearest waypoint on; behind
    /// damage it goes on at the next record that it finds.
    pub(crate) fn walk_to(&self, index: Index) -> Option<(Offset, RecordHeader)> {
        let waypoints = self.segment.waypoints();
        let (mut at, mut offset) = waypoints.before(index).unwrap_or((Index::FIRST, RECORDS_START));
        let end = self.records_end();
        while offset < end {
            if let Some(header) = self.header(offset, at) {
                if Waypoints::is_one(at) {
                    waypoints.note(at, offset);
                }
                if at == index {
                    return Some((offset, header));
                }
                (offset, at) = (offset + header.record_len(), at.next());
            } else {
                (offset, at) = self.find(offset, at, index.next())?;
            }
        }
        None
    }

    /// The Seq of record `index`; `None` if its number is damaged. `first_seq`: of the first
    /// record.
    #[inline]
    pub(crate) fn seq(&self, index: Index, first_seq: u64) -> Result<Option<u64>> {
        let Some(sources) = &self.segment.sources else {
            return Ok(Some(first_seq + u64::from(index)));
        };
        let place = number::offset(sources.table, index);
        let word = self.region.load_word(place.0);
        let word = word.map_err(|error| self.segment.error("read Seq table", place, error))?;
        Ok(sources.seq(word, self.key, index, first_seq))
    }

    /// The index of the first record before `end` whose Seq is at least `seq`, as far as Seqs are
    /// known; `end` if there is none. `first_seq`: of the first record.
    pub(crate) fn index_from(&self, seq: u64, end: Index, first_seq: u64) -> Result<Index> {
        if self.segment.sources.is_none() {
            return Ok(Index::saturating_from(seq.saturating_sub(first_seq)).min(end));
        }
        let (mut low, mut high) = (Index::FIRST, end);
        while low < high {
            let middle = low + (high - low) / 2;
            // Numbers that are damaged are passed over.
            let mut probe = middle;
            let mut found = None;
            while probe < high && found.is_none() {
                found = self.seq(probe, first_seq)?;
                probe = probe.next();
            }
            match found {
                Some(found) if found < seq => low = probe,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The index of message `seq` among the records before `end`, if it is one of them.
    pub(crate) fn index_of(&self, seq: u64, end: Index, first_seq: u64) -> Result<Option<Index>> {
        let mut index = self.index_from(seq, end, first_seq)?;
        while index < end {
            if let Some(found) = self.seq(index, first_seq)? {
                return Ok((found == seq).then_some(index));
            }
            index = index.next();
        }
        Ok(None)
    }

    /// Where the slot of record `index` lies.
    #[inline]
    pub(super) fn slot_place(&self, index: Index) -> Offset {
        Offset(self.first_slot.0.saturating_sub(SLOT * u64::from(index)))
    }

    #[inline]
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The slot of record `index`; `None` if it is damaged.
    #[inline]
    pub(crate) fn slot(&self, index: Index) -> Result<Option<Slot>> {
        let place = self.slot_place(index);
        let word = self.region.load_word(place.0);
        let word = word.map_err(|error| self.segment.error("read slot", place, error))?;
        Ok(Slot::decode(word, self.key, index))
    }

    /// What is said of message `index` besides its record.
    pub(crate) fn status(&self, index: Index, numbering: Numbering, run: Run) -> Result<Status> {
        let seq = self.seq(index, numbering.first_seq)?;
        let slot = self.slot(index)?;
        // As in `words`, but written out: to call that takes more instructions.
        let is_untouched = slot == Some(Slot::UNTOUCHED);
        let stored =
            if is_untouched { StoredDelay::None } else { self.delay(index, numbering.base_time)? };
        Ok(Status::of(seq, slot, stored.readable(), run, numbering))
    }

    /// The state of record `index`, and its delay. A slot that was never stored to has none,
    /// whatever a power cut has left of its second word.
    pub(crate) fn words(
        &self,
        index: Index,
        base_time: Time,
    ) -> Result<(Option<Slot>, StoredDelay)> {
        let slot = self.slot(index)?;
        let is_untouched = slot == Some(Slot::UNTOUCHED);
        let delay = if is_untouched { StoredDelay::None } else { self.delay(index, base_time)? };
        Ok((slot, delay))
    }

    #[inline]
    fn delay(&self, index: Index, base_time: Time) -> Result<StoredDelay> {
        let place = self.slot_place(index) + SLOT / 2;
        let word = self.region.load_word(place.0);
        let word = word.map_err(|error| self.segment.error("read slot", place, error))?;
        Ok(StoredDelay::decode(word, base_time, self.key, index))
    }

    /// Whether the slot of record `index` has a delay that cannot be read.
    pub(crate) fn has_unreadable_delay(&self, index: Index, base_time: Time) -> bool {
        self.words(index, base_time).map_or(true, |(_, delay)| delay == StoredDelay::Unreadable)
    }

    /// Stores the delay of record `index`, or that it has none, before the state that needs it.
    pub(crate) fn store_delay(
        &self,
        index: Index,
        base_time: Time,
        delay: StoredDelay,
    ) -> Result<()> {
        let place = self.slot_place(index) + SLOT / 2;
        let word = delay.encode(base_time, self.key, index);
        let stored = self.region.store_word(place.0, word);
        stored.map_err(|error| self.segment.error("store slot", place, error))
    }

    /// Stores the state of record `index`, if its slot says just `said`; false if it does not, or
    /// cannot be stored to.
    #[inline]
    pub(crate) fn replace_slot(&self, index: Index, said: Slot, slot: Slot) -> bool {
        let (said, word) = (said.encode(self.key, index), slot.encode(self.key, index));
        self.region.replace_word(self.slot_place(index).0, said, word)
    }

    /// Stores the state of record `index`. A kill of the process does not undo it.
    pub(crate) fn store_slot(&self, index: Index, slot: Slot) -> Result<()> {
        let place = self.slot_place(index);
        let stored = self.region.store_word(place.0, slot.encode(self.key, index));
        stored.map_err(|error| self.segment.error("store slot", place, error))
    }
}

/// The places in `bytes` where a record can start.
pub(crate) fn candidates(
    bytes: &[u8],
    start: Offset,
) -> impl Iterator<Item = (Offset, &[u8; HEADER])> {
    (start.0..)
        .step_by(8)
        .map(Offset)
        .zip(bytes.windows(HEADER).step_by(8))
        .filter_map(|(offset, window)| Some((offset, window.first_chunk()?)))
}
