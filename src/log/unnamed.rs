//! A segment file in the making, which has not got its name yet, and means nothing so far.
//!
//! Promises: it can get its name at any time. The blocks and both headers of a new one are durable
//! before anything else is done with it; what comes after that only makes later stores and writes
//! fast, in steps that take little time each. A recycled file loses its old name, durably, before
//! its old content is changed. It has no new name before its headers are durable, and all is zero
//! that could be taken for its new content: in steps, too, or all that is left when it gets that.

use super::{OnFailure, PAGE_LEN, SLOT_RESERVE, Segment, sync_directory};
use crate::error::{Error, Result};
use crate::format::address::{Index, Offset};
use crate::format::segment::{SegmentHeader, most_slots};
use crate::format::{PAGE, name, slot};
use crate::io::{Access, Storage, StorageFile};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes that are written for each sync: a commit waits for no more than that.
const SYNC_STEP: u64 = 1 << 20;

/// One in this many bytes, at the end, are prepared for slots: those of messages of 56 bytes and
/// more (a record of 80 bytes has a slot of 16).
const SLOTS_PART: u64 = 6;

/// How a segment is prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Preparation {
    /// Bytes of zeros that are written by one call where records will be. The page cache keeps them
    /// together: so a store through a map writes all of them at the next sync, and a write only
    /// what it changes.
    pub(crate) piece: u64,
    /// Whether they are synced, so that a later sync has no blocks to note.
    pub(crate) is_synced: bool,
}

/// A segment file without its name.
#[derive(Debug)]
pub(crate) struct Unnamed {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    slot_limit: u32,
    /// It was a segment before.
    is_recycled: bool,
    work: Work,
}

/// What is to be done with the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// From this offset on it has slots of its last use. Its headers come after that.
    Clear(u64),
    /// It is new, and prepared up to this offset.
    Prepare(Preparation, u64),
    Nothing,
}

impl Unnamed {
    /// Makes the file. If it fails, the caller removes what may be there by one of its names.
    pub(crate) fn create(
        storage: &dyn Storage,
        header: SegmentHeader,
        preparation: Preparation,
    ) -> Result<Self> {
        let temporary = name::temporary(header.ordinal);
        let path = storage.path(&temporary);
        let file = storage
            .create(&temporary, header.size)
            .map_err(|error| Error::io("allocate segment", &path, 0, error))?;
        let slot_limit = most_slots(header.size);
        let work = Work::Prepare(preparation, PAGE);
        let made = Self { header, path, file, slot_limit, is_recycled: false, work };
        made.store_headers()?;
        Ok(made)
    }

    /// Makes it from the file of a segment. All messages of that are settled, no CHECKPOINT lists
    /// it any more, and nobody has it as memory. `count`: the number of slots that its last use
    /// had. If it fails, the file may have its old name or one of the new ones.
    pub(crate) fn recycle(
        storage: &dyn Storage,
        segment: &Segment,
        header: SegmentHeader,
        count: u32,
        told: &dyn OnFailure,
    ) -> Result<Self> {
        let wrap = |error| segment.error("recycle segment", Offset::START, error);
        let temporary = name::temporary(header.ordinal);
        storage.rename(&segment.name, &temporary).map_err(wrap)?;
        // The file means nothing now. Until that is durable, its content must stay.
        sync_directory(storage, told)?;
        let most = most_slots(header.size);
        let slot_limit = most.min(count.saturating_add(count / 4).saturating_add(SLOT_RESERVE));
        // Opened again, because the segment's file knows only the old name.
        let file = storage.open(&temporary).map_err(wrap)?;
        let path = storage.path(&temporary);
        let lowest = slot::offset(header.size, Index(slot_limit - 1)).0 / PAGE * PAGE;
        let work = Work::Clear(lowest);
        let made = Self { header, path, file, slot_limit, is_recycled: true, work };
        made.zero(0, PAGE)?;
        Ok(made)
    }

    /// Makes it from a file that has the temporary name of a segment with this header, and all of
    /// its content but the headers.
    pub(super) fn of_copy(
        storage: &dyn Storage,
        header: SegmentHeader,
        file: Arc<dyn StorageFile>,
    ) -> Result<Self> {
        let path = storage.path(&name::temporary(header.ordinal));
        let slot_limit = most_slots(header.size);
        let work = Work::Nothing;
        let made = Self { header, path, file, slot_limit, is_recycled: false, work };
        made.store_headers()?;
        Ok(made)
    }

    /// Makes its headers durable, with all that was stored.
    fn store_headers(&self) -> Result<()> {
        let bytes = self.header.encode();
        let written = self
            .file
            .write_at(0, &bytes)
            .and_then(|()| self.file.write_at(self.header.twin_offset().0, &bytes))
            .and_then(|()| self.file.sync());
        written.map_err(|error| self.error(0, error))
    }

    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Whether it was a segment before.
    pub(crate) fn is_recycled(&self) -> bool {
        self.is_recycled
    }

    /// Fails if there is no room for a map of it now.
    pub(crate) fn check_map(&self, access: Access) -> Result<()> {
        let mapped = self.file.map(access);
        mapped.map(drop).map_err(|error| Error::io("map segment", &self.path, 0, error))
    }

    /// Does some more to make it ready, up to a multiple of `step` bytes; false once nothing is
    /// left.
    pub(crate) fn prepare_some(&mut self, step: u64) -> Result<bool> {
        let up_to = |start: u64| (start + 1).next_multiple_of(step);
        self.work = match self.work {
            Work::Clear(start) => self.clear(start, up_to(start).min(self.header.size))?,
            Work::Prepare(preparation, start) if start < self.header.twin_offset().0 => {
                self.prepare(preparation, start, up_to(start))?
            }
            Work::Prepare(..) | Work::Nothing => Work::Nothing,
        };
        Ok(self.work != Work::Nothing)
    }

    /// Zeroes the slots of its last use, up to `end`; the headers come last.
    fn clear(&self, start: u64, end: u64) -> Result<Work> {
        self.zero(start, end)?;
        if end == self.header.size {
            return self.store_headers().map(|()| Work::Nothing);
        }
        if end.is_multiple_of(SYNC_STEP) {
            self.file.sync().map_err(|error| self.error(start, error))?;
        }
        Ok(Work::Clear(end))
    }

    /// Zeroes through a map, page by page: slots are stored to here and there, and big writes would
    /// leave large folios in the page cache. Nothing is mapped when it is synced.
    fn zero(&self, start: u64, end: u64) -> Result<()> {
        const ZEROS: &[u8] = &[0; PAGE_LEN];
        let region = self.file.map(Access::Commits).map_err(|error| self.error(start, error))?;
        let zero = |at| region.store(at, ZEROS).map_err(|error| self.error(at, error));
        (start..end).step_by(PAGE_LEN).try_for_each(zero)
    }

    /// Writes zeros where only zeros are, up to `end` at most.
    fn prepare(&self, preparation: Preparation, start: u64, end: u64) -> Result<Work> {
        let last = self.header.twin_offset().0;
        let slots = (last - last / SLOTS_PART) / PAGE * PAGE;
        let (end, piece) =
            if start < slots { (end.min(slots), preparation.piece) } else { (end.min(last), PAGE) };
        let zeroed = self.file.zero(start, end, piece);
        let is_due = end.is_multiple_of(SYNC_STEP) || end == last;
        let syncs = preparation.is_synced && is_due;
        let synced = zeroed.and_then(|()| if syncs { self.file.sync() } else { Ok(()) });
        synced.map_err(|error| self.error(start, error))?;
        Ok(Work::Prepare(preparation, end))
    }

    /// How many bytes are left to be prepared.
    pub(crate) fn bytes_left(&self) -> u64 {
        match self.work {
            Work::Clear(start) | Work::Prepare(_, start) => self.header.size - start,
            Work::Nothing => 0,
        }
    }

    /// Does all that is left.
    pub(crate) fn prepare_all(&mut self) -> Result<()> {
        while self.prepare_some(SYNC_STEP)? {}
        Ok(())
    }

    /// Gives it its name. `told` hears of a failed sync of the directory. If it fails, the caller
    /// removes what may be there by one of its names.
    pub(crate) fn finish(self, storage: &dyn Storage, told: &dyn OnFailure) -> Result<Segment> {
        if let Work::Clear(start) = self.work {
            self.clear(start, self.header.size)?;
        }
        let name = name::segment(self.header.ordinal);
        let path = storage.path(&name);
        let renamed = storage.rename(&name::temporary(self.header.ordinal), &name);
        renamed.map_err(|error| Error::io("prepare segment", &path, 0, error))?;
        sync_directory(storage, told)?;
        // Opened again, because the file knows only the temporary name.
        let opened = storage.open(&name);
        let file = opened.map_err(|error| Error::io("open segment", &path, 0, error))?;
        Ok(Segment::named(name, path, self.header, self.slot_limit, file))
    }

    fn error(&self, offset: u64, error: std::io::Error) -> Error {
        Error::io("prepare segment", &self.path, offset, error)
    }
}
