//! The segment that pushes go to.
//!
//! Promises: a batch is placed whole or not at all, and a batch for which `append` returned `Ok`
//! survives the process. Relies on one caller at a time (`&mut`). Nothing is published or synced
//! here.

use super::Segment;
use super::shared_tail::SharedTail;
use super::waypoints::Waypoints;
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::address::{Index, Offset};
use crate::format::checksum::{crc32, crc32_of_both};
use crate::format::record::{self, Flags, RecordHeader};
use crate::format::segment::{ACTIVATION, Activation, RECORDS_START, Seal, capacity};
use crate::format::slot::{self, Delay, SLOT, Slot, State, StoredDelay};
use crate::io::Region;
use crate::time::Time;
use std::borrow::Cow;
use std::sync::Arc;

/// A message on its way into the log: its checksum is known, its place is not.
#[derive(Clone, Debug)]
pub(crate) struct Draft<'a> {
    payload: Cow<'a, [u8]>,
    body_check: u32,
    body_len: u32,
    /// What most messages have not: so they need one look for all of it.
    extras: Option<Box<DraftExtras>>,
}

/// What is special about a draft.
#[derive(Clone, Debug, Default)]
struct DraftExtras {
    /// The start of the body, as `format::extension` encodes it.
    extensions: Vec<u8>,
    is_transient: bool,
    /// It is not handed out before this time.
    due: Option<Time>,
    /// Not to be handed out from then on.
    expires: Option<Time>,
}

impl<'a> Draft<'a> {
    /// A payload and nothing else. `None` if no record can hold it.
    #[inline]
    pub(crate) fn plain(payload: Cow<'a, [u8]>) -> Option<Self> {
        let body_len = body_len(payload.len())?;
        Some(Self { body_check: crc32(&payload), payload, body_len, extras: None })
    }

    /// `None` if no record can hold it.
    pub(crate) fn new(extensions: Vec<u8>, payload: Cow<'a, [u8]>) -> Option<Self> {
        if extensions.is_empty() {
            return Self::plain(payload);
        }
        let body_len = body_len(extensions.len() + payload.len())?;
        let body_check = crc32_of_both(&extensions, &payload);
        let extras = Some(Box::new(DraftExtras { extensions, ..DraftExtras::default() }));
        Some(Self { payload, body_check, body_len, extras })
    }

    /// Says whether it is dropped at the next open, from when on it may be handed out, and until
    /// when.
    pub(crate) fn with(
        mut self,
        is_transient: bool,
        due: Option<Time>,
        expires: Option<Time>,
    ) -> Self {
        let extras = self.extras.get_or_insert_default();
        (extras.is_transient, extras.due, extras.expires) = (is_transient, due, expires);
        self
    }

    /// A payload and nothing else.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.extras.is_none()
    }

    #[inline]
    pub(crate) fn expires(&self) -> Option<Time> {
        self.extras.as_ref().and_then(|extras| extras.expires)
    }

    #[inline]
    pub(crate) fn due(&self) -> Option<Time> {
        self.extras.as_ref().and_then(|extras| extras.due)
    }

    #[inline]
    fn is_transient(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.is_transient)
    }

    #[inline]
    fn extensions(&self) -> &[u8] {
        self.extras.as_ref().map_or(&[], |extras| &extras.extensions)
    }

    /// Whether its slot is stored with it.
    #[inline]
    fn has_slot(&self) -> bool {
        self.is_transient() || self.due().is_some()
    }

    /// Bytes that it takes in the log.
    #[inline]
    pub(crate) fn record_len(&self) -> u64 {
        record::len(u64::from(self.body_len))
    }
}

/// The length of a body in a header; `None` if no record can hold it.
#[inline]
fn body_len(len: usize) -> Option<u32> {
    u32::try_from(len).ok().filter(|&len| u64::from(len) <= record::MAX_BODY)
}

/// The place of a record, and of its slot, that a failed batch may have stored.
#[derive(Clone, Copy, Debug)]
struct Remains {
    offset: Offset,
    slot: Option<Offset>,
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
    /// Bytes that failed batches left behind the tail, and that could not be erased yet.
    remains: Vec<Remains>,
}

impl Active {
    /// Starts to use a segment: its first record will get `first_seq`.
    pub(crate) fn start(
        segment: Arc<Segment>,
        region: Arc<dyn Region>,
        first_seq: u64,
        now: Time,
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
            remains: Vec::new(),
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

    /// Places `drafts`, which fit, as one batch. `unsynced`: how many Seqs before the first of them
    /// are not known to be durable.
    #[inline]
    pub(crate) fn append(&mut self, drafts: &[Draft<'_>], unsynced: u64, now: Time) -> Result<()> {
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
            if let Err(error) = self.place(&header, draft, tail) {
                self.note_remains(&drafts[..=position]);
                // The first error is the one to tell; the next push tries again.
                self.erase_remains().ok();
                return Err(Error::io("append", &self.segment.path, tail.0, error));
            }
            tail = tail + header.record_len();
            index = index.next();
            unsynced += 1;
        }
        if index > self.next_waypoint {
            self.note_waypoints(drafts);
            self.next_waypoint = Waypoints::next_after(index);
        }
        (self.tail, self.count) = (tail, index.0);
        self.shared_tail.set(tail);
        Ok(())
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

    fn note_remains(&mut self, drafts: &[Draft<'_>]) {
        let mut offset = self.tail;
        for (index, draft) in (self.count..).map(Index).zip(drafts) {
            let slot = slot::offset(self.segment.header.size, index);
            self.remains.push(Remains { offset, slot: draft.has_slot().then_some(slot) });
            offset = offset + draft.record_len();
        }
    }

    /// Erases what failed batches left, so that it is never taken for a record, or for the state of
    /// a later record in the same place. Until that is done nothing may be pushed, into this
    /// segment or a later one.
    #[inline]
    pub(crate) fn erase_remains(&mut self) -> Result<()> {
        if self.remains.is_empty() { Ok(()) } else { self.erase_all_remains() }
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
            erased.map_err(|error| Error::io("append", &self.segment.path, offset.0, error))?;
            self.remains.pop();
        }
        Ok(())
    }

    /// Stores a record, and first its slot, if that has something to say: the record exists once
    /// its header is stored.
    #[inline]
    fn place(
        &self,
        header: &RecordHeader,
        draft: &Draft<'_>,
        offset: Offset,
    ) -> std::io::Result<()> {
        if draft.has_slot() {
            self.place_slot(draft, header.index, header.pushed_at(self.base_time), offset)?;
        }
        let encoded = header.encode(self.segment.key, offset);
        self.region.store_record(offset.0, &encoded, [draft.extensions(), &*draft.payload])
    }

    /// The slot of a message that has one from the start.
    #[cold]
    fn place_slot(
        &self,
        draft: &Draft<'_>,
        index: Index,
        now: Time,
        offset: Offset,
    ) -> std::io::Result<()> {
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
