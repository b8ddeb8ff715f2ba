//! Segments: how one is made, used, sealed, recycled and let go.
//!
//! Promises: a segment gets its name only when its blocks and both headers are durable. Relies on
//! its callers to store a seal only after they have synced the records that it counts. Refuses to
//! decide when any of this happens.

pub(crate) mod active;
pub(crate) mod copy;
pub(crate) mod draft;
pub(crate) mod merge;
mod regions;
pub(crate) mod scan;
pub(crate) mod sealed;
pub(crate) mod shared_tail;
pub(crate) mod side_by_side;
pub(crate) mod slots;
pub(crate) mod stage;
pub(crate) mod unnamed;
pub(crate) mod walk;
pub(crate) mod waypoints;

use crate::error::{Error, Result};
use crate::format::address::{Index, Offset};
use crate::format::bytes::{to_u64, u64_at};
use crate::format::checksum::Key;
use crate::format::segment::{
    ACTIVATION, Activation, DecodedHeader, SEAL, SOURCES_PLACE, Seal, SegmentHeader, Sources,
    most_slots,
};
use crate::format::slot::{SLOT, Slot, StoredDelay};
use crate::format::{PAGE, number, record, slot};
use crate::io::window::Window;
use crate::io::{Access, Region, Storage, StorageFile, is_unreadable};
use crate::time::{PushTime, Time};
use regions::Regions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use waypoints::Waypoints;

/// Bytes of a header page.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE == 4096);

/// Recycling zeroes a quarter more slots than were used, and this many besides.
const SLOT_RESERVE: u32 = 1024;

/// A segment file that has its name.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) key: Key,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// How many slots are zero until they are used: all, or those that recycling zeroed.
    pub(crate) slot_limit: u32,
    /// What it was made from, if it is compacted.
    pub(crate) sources: Option<Sources>,
    /// The marks of the page that was read when it was found.
    first_page: Marks,
    file: Arc<dyn StorageFile>,
    regions: Regions,
    /// Where some of its records are.
    waypoints: Waypoints,
}

/// What a header page holds besides the header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    activation: Option<Activation>,
    seal: Option<Seal>,
    sources: Option<Sources>,
    is_impossible: bool,
}

impl Marks {
    fn decode(page: &[u8; PAGE_LEN], header: &SegmentHeader) -> Self {
        let key = header.key();
        let activation = part(page, ACTIVATION);
        let (seal, sources) = (part(page, SEAL), part(page, SOURCES_PLACE));
        Self {
            is_impossible: activation.is_some_and(|bytes| Activation::is_impossible(bytes, key)),
            activation: activation.and_then(|bytes| Activation::decode(bytes, key)),
            seal: seal.and_then(|bytes| Seal::decode(bytes, key)),
            sources: sources.and_then(|bytes| Sources::decode(bytes, header.sources, key)),
        }
    }

    /// Whether the activation has numbers that no segment can have.
    pub(crate) fn is_impossible(&self) -> bool {
        self.is_impossible
    }
}

/// The bytes at a place of a header page.
fn part<const N: usize>(page: &[u8; PAGE_LEN], place: u64) -> Option<&[u8; N]> {
    page.get(usize::try_from(place).ok()?..)?.first_chunk()
}

/// Hears of failures that outlive the call.
pub(crate) trait OnFailure {
    /// Notes that a sync failed: no later one of the queue is believed. Returns the error for the
    /// caller.
    fn failed(&self, operation: &'static str, path: &Path, error: std::io::Error) -> Error;
}

/// A slot as it was read: its two words, as far as they were written to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadSlot {
    pub(crate) index: Index,
    pub(crate) slot: Option<Slot>,
    pub(crate) delay: StoredDelay,
}

impl Segment {
    /// A segment found under `name`.
    pub(crate) fn found(
        storage: &dyn Storage,
        name: String,
        header: SegmentHeader,
        first_page: Marks,
        file: Arc<dyn StorageFile>,
    ) -> Self {
        let (key, path) = (header.key(), storage.path(&name));
        let slot_limit = most_slots(header.size);
        Self {
            header,
            key,
            name,
            path,
            slot_limit,
            sources: None,
            first_page,
            file,
            regions: Regions::default(),
            waypoints: Waypoints::default(),
        }
    }

    /// This segment, which was made from `sources`.
    pub(crate) fn made_from(self, sources: Sources) -> Self {
        Self { sources: Some(sources), ..self }
    }

    /// One that was just made, and got this name. `slot_limit`: as many slots are zero.
    fn named(
        name: String,
        path: PathBuf,
        header: SegmentHeader,
        slot_limit: u32,
        file: Arc<dyn StorageFile>,
    ) -> Self {
        Self {
            key: header.key(),
            header,
            name,
            path,
            slot_limit,
            sources: None,
            first_page: Marks::default(),
            file,
            regions: Regions::default(),
            waypoints: Waypoints::default(),
        }
    }

    /// Where some of its records are.
    pub(crate) fn waypoints(&self) -> &Waypoints {
        &self.waypoints
    }

    /// The segment as memory.
    pub(crate) fn map(&self, access: Access) -> Result<Arc<dyn Region>> {
        let region = self.file.map(access);
        let region = region.map_err(|error| self.error("map segment", Offset::START, error))?;
        self.regions.note(&region);
        Ok(region)
    }

    /// Whether anybody has it as memory.
    pub(crate) fn is_mapped(&self) -> bool {
        self.regions.is_any_left()
    }

    /// The segment for reading it once, from start to end or here and there.
    pub(crate) fn window(&self) -> Arc<Window> {
        Arc::new(Window::new(Arc::clone(&self.file)))
    }

    /// Gives up what is held open, if nothing is mapped. The caller has synced all that was stored.
    pub(crate) fn release(&self) {
        self.file.release();
    }

    /// When the message with this header in it was pushed.
    #[inline]
    pub(crate) fn push_time(&self, header: &record::RecordHeader, base_time: Time) -> PushTime {
        PushTime { time: header.pushed_at(base_time), shift: self.header.clock_shift }
    }

    /// Fails if its file was removed, or replaced, by somebody else.
    pub(crate) fn check_name(&self) -> std::io::Result<()> {
        if self.file.has_name()? {
            return Ok(());
        }
        let reason = "the file was removed or replaced while the queue was open";
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, reason))
    }

    /// Whether its file is known to have been removed, or replaced, by somebody else.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.file.has_name(), Ok(false))
    }

    /// Whether the same file has another name (a hard link), by which others may know it.
    pub(crate) fn has_other_names(&self) -> bool {
        self.file.has_other_names().unwrap_or(true)
    }

    /// Makes everything stored in it so far durable. `told` hears of a failure, and says what it
    /// means.
    pub(crate) fn sync(&self, told: &dyn OnFailure) -> Result<()> {
        let synced = self.file.sync();
        synced.map_err(|error| told.failed("sync segment", &self.path, error))
    }

    /// The offset of the first byte from this one on that may be other than zero.
    pub(crate) fn next_data(&self, offset: Offset) -> Result<Offset> {
        let next = self.file.next_data(offset.0);
        next.map(Offset).map_err(|error| self.error("read segment", offset, error))
    }

    /// Reads without the map: an unreadable sector is then an error, not a signal.
    pub(crate) fn read_at(&self, offset: Offset, into: &mut [u8]) -> Result<()> {
        self.file.read_at(offset.0, into).map_err(|error| self.error("read segment", offset, error))
    }

    /// The activation, from either header page; `None` if neither has it.
    pub(crate) fn activation(&self) -> Result<Option<Activation>> {
        self.mark(self.first_page.activation, ACTIVATION, Activation::decode)
    }

    /// The seal, from either header page; `None` if neither has it, or if it counts what the
    /// segment cannot hold.
    pub(crate) fn seal(&self) -> Result<Option<Seal>> {
        let seal = self.mark(self.first_page.seal, SEAL, Seal::decode)?;
        Ok(seal.filter(|seal| seal.fits(self.header.size)))
    }

    /// What it was made from, from either header page; `None` if neither says it.
    pub(crate) fn read_sources(&self) -> Result<Option<Sources>> {
        let (known, count) = (self.first_page.sources.clone(), self.header.sources);
        self.mark(known, SOURCES_PLACE, |bytes, key| Sources::decode(bytes, count, key))
    }

    /// The header of the record at `offset`, if there is one.
    pub(crate) fn read_header_at(&self, offset: Offset) -> Result<Option<record::RecordHeader>> {
        let mut bytes = [0; record::HEADER];
        if (offset + to_u64(record::HEADER)).0 > self.header.size {
            return Ok(None);
        }
        self.read_at(offset, &mut bytes)?;
        Ok(record::RecordHeader::decode(&bytes, self.key, offset))
    }

    /// Slots `first..first + number`, in order. Read without the map, which would keep the pages.
    pub(crate) fn read_slots(
        &self,
        first: Index,
        number: u32,
        base_time: Time,
    ) -> Result<impl Iterator<Item = ReadSlot> + use<>> {
        let len = usize::try_from(u64::from(number) * SLOT).unwrap_or(0);
        let mut bytes = vec![0; len];
        let end = first + number;
        let last = end.previous().unwrap_or(Index::FIRST);
        self.read_at(slot::offset(self.header.size, last), &mut bytes)?;
        let key = self.key;
        Ok(first.until(end).map(move |index| {
            let from_end = (u64::from(index - first) + 1) * SLOT;
            let at = usize::try_from(to_u64(bytes.len()) - from_end).unwrap_or(0);
            let (state, word) = (u64_at(&bytes, at), u64_at(&bytes, at + 8));
            let slot = Slot::decode(state, key, index);
            // As in `Mapped::words`.
            let word = if slot == Some(Slot::UNTOUCHED) { 0 } else { word };
            ReadSlot { index, slot, delay: StoredDelay::decode(word, base_time, key, index) }
        }))
    }

    /// The Seqs of records `first..first + number`, in order; `None` where the number is damaged.
    /// `first_seq`: of the first record.
    pub(crate) fn read_seqs(
        &self,
        first: Index,
        number: u32,
        first_seq: u64,
    ) -> Result<impl Iterator<Item = Option<u64>> + use<>> {
        let mut bytes = Vec::new();
        if let Some(Sources { table, .. }) = &self.sources {
            bytes.resize(usize::try_from(u64::from(number) * number::NUMBER).unwrap_or(0), 0);
            self.read_at(number::offset(*table, first), &mut bytes)?;
        }
        let mut seqs = Vec::new();
        for (index, at) in first.until(first + number).zip((0..).step_by(8)) {
            let of =
                |sources: &Sources| sources.seq(u64_at(&bytes, at), self.key, index, first_seq);
            seqs.push(self.sources.as_ref().map_or(Some(first_seq + u64::from(index)), of));
        }
        Ok(seqs.into_iter())
    }

    /// A mark: as it was `known` when the segment was found, or else from either header page.
    fn mark<T, const N: usize>(
        &self,
        known: Option<T>,
        place: u64,
        decode: impl Fn(&[u8; N], Key) -> Option<T>,
    ) -> Result<Option<T>> {
        if known.is_some() {
            return Ok(known);
        }
        let mut failed = None;
        for page in [self.header.twin_offset(), Offset::START] {
            let mut bytes = [0; N];
            match self.read_at(page + place, &mut bytes) {
                Ok(()) => {
                    if let Some(mark) = decode(&bytes, self.key) {
                        return Ok(Some(mark));
                    }
                }
                // The other page may have it.
                Err(Error::Io { source, operation, path, offset }) if is_unreadable(&source) => {
                    failed = failed.or(Some(Error::Io { source, operation, path, offset }));
                }
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Stores the seal. The caller has synced all that it counts; the seal itself is durable after
    /// the next sync.
    pub(crate) fn store_seal(&self, region: &dyn Region, seal: Seal) -> Result<()> {
        self.store_mark(region, SEAL, &seal.encode(self.key))
    }

    fn store_mark(&self, region: &dyn Region, place: u64, bytes: &[u8]) -> Result<()> {
        for page in [Offset::START, self.header.twin_offset()] {
            let offset = page + place;
            let stored = region.store(offset.0, bytes);
            stored.map_err(|error| self.error("mark segment", offset, error))?;
        }
        Ok(())
    }

    /// Wraps an error of the operating system.
    pub(crate) fn error(
        &self,
        operation: &'static str,
        offset: Offset,
        error: std::io::Error,
    ) -> Error {
        Error::io(operation, &self.path, offset.0, error)
    }
}

/// The two copies of a header, and the marks beside the first one that is valid.
#[derive(Debug)]
pub(crate) struct ReadHeader {
    pub(crate) copies: [DecodedHeader; 2],
    pub(crate) marks: Marks,
    /// The first page could not be read, and the last one serves.
    pub(crate) is_first_unreadable: bool,
}

/// Reads the header of a file, and the marks beside it; reads the last page only where the first
/// one has no valid header, or cannot be read. An error comes with the offset that could not be
/// read.
pub(crate) fn read_header(
    file: &dyn StorageFile,
) -> std::result::Result<ReadHeader, (Offset, std::io::Error)> {
    let mut copies = [DecodedHeader::Invalid, DecodedHeader::Invalid];
    let last = file.size().checked_sub(PAGE).map(Offset);
    let mut pages = copies.iter_mut().zip([last.map(|_| Offset::START), last]);
    let (mut page, mut failed, mut found) = ([0; PAGE_LEN], None, None);
    while let (None, Some((copy, offset))) = (&found, pages.next()) {
        let Some(offset) = offset else { continue };
        if let Err(error) = file.read_at(offset.0, &mut page) {
            if !is_unreadable(&error) {
                return Err((offset, error));
            }
            failed = failed.or(Some((offset, error)));
            continue;
        }
        *copy = page.first_chunk().map_or(DecodedHeader::Invalid, SegmentHeader::decode);
        if let DecodedHeader::Valid(header) = copy {
            // Of the page with the valid header.
            found = Some(Marks::decode(&page, header));
        }
    }
    match (found, failed) {
        (None, Some(failed)) => Err(failed),
        (found, failed) => {
            let marks = found.unwrap_or_default();
            Ok(ReadHeader { copies, marks, is_first_unreadable: failed.is_some() })
        }
    }
}

/// Syncs the directory. A failure is as bad as that of a file: no later sync is believed.
fn sync_directory(storage: &dyn Storage, told: &dyn OnFailure) -> Result<()> {
    let synced = storage.sync_directory();
    synced.map_err(|error| told.failed("sync directory", &storage.path(""), error))
}
