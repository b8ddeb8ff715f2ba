//! Making a compacted segment: the live records of others, with their Seqs, states and times.
//!
//! Promises: each record has passed its check while it was copied; the segment gets its name only
//! when all of it is durable, it is sealed, and it names its sources. Relies on one caller, which
//! adds records in the order of their Seqs.

use super::sealed::Mapped;
use super::unnamed::Unnamed;
use super::{OnFailure, Segment};
use crate::error::{Error, Result};
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::bytes::to_u64;
use crate::format::checksum::Key;
use crate::format::record::{self, Flags, RecordHeader};
use crate::format::segment::{
    ACTIVATION, Activation, RECORDS_START, SEAL, SOURCES_PLACE, Seal, SegmentHeader, Sources,
    size_for_copy,
};
use crate::format::slot::{self, SLOT, Slot, StoredDelay};
use crate::format::{PAGE, name, number};
use crate::io::{Access, Region, Storage, StorageFile};
use crate::time::Time;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of a body that are copied at once.
const CHUNK: usize = 64 << 10;

/// What a copy keeps of a message besides its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survivor {
    pub(crate) seq: u64,
    pub(crate) pushed_at: Time,
    pub(crate) slot: Slot,
    pub(crate) delay: StoredDelay,
}

/// What became of a record that was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copied {
    Yes,
    /// There is no room for it, or its time or Seq is too far from those of the others.
    NoRoom,
    /// Its body is not what was pushed.
    Damaged,
}

/// How much was added to a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    pub(crate) tail: Offset,
    pub(crate) count: u32,
    pub(crate) last_seq: u64,
}

/// A compacted segment in the making.
#[derive(Debug)]
pub(crate) struct CopyWriter {
    header: SegmentHeader,
    key: Key,
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    region: Arc<dyn Region>,
    base_time: Time,
    first_seq: u64,
    table: Offset,
    most: u32,
    progress: Progress,
}

/// A compacted segment that has its name.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first_seq: u64,
    pub(crate) base_time: Time,
    pub(crate) tail: Offset,
    pub(crate) count: u32,
}

impl CopyWriter {
    /// Begins a segment with this header, for up to `most` records, none of them pushed before
    /// `base_time`. If it fails, the caller removes what may be there by its temporary name.
    pub(crate) fn create(
        storage: &dyn Storage,
        header: SegmentHeader,
        most: u32,
        base_time: Time,
    ) -> Result<Self> {
        let temporary = name::temporary(header.ordinal);
        let path = storage.path(&temporary);
        let wrap = |error| Error::io("allocate segment", &path, 0, error);
        let file = storage.create(&temporary, header.size).map_err(wrap)?;
        let region = file.map(Access::Commits);
        let region = region.map_err(|error| Error::io("map segment", &path, 0, error))?;
        let slots = u64::from(most) * (SLOT + number::NUMBER);
        let table = Offset((header.size - PAGE).saturating_sub(slots)).max(RECORDS_START);
        let progress = Progress { tail: RECORDS_START, count: 0, last_seq: 0 };
        let (key, first_seq) = (header.key(), 0);
        Ok(Self { header, key, path, file, region, base_time, first_seq, table, most, progress })
    }

    /// The size of a copy of these records.
    pub(crate) fn size_for(record_bytes: u64, records: u64) -> u64 {
        size_for_copy(record_bytes, records)
    }

    pub(crate) fn ordinal(&self) -> Ordinal {
        self.header.ordinal
    }

    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// The offset up to which records were added.
    pub(crate) fn written(&self) -> Offset {
        self.progress.tail
    }

    /// Forgets the records that were added after `to`.
    pub(crate) fn rewind(&mut self, to: Progress) {
        self.progress = to;
    }

    /// Adds the record with this header at `offset` of `from`.
    pub(crate) fn add(
        &mut self,
        survivor: &Survivor,
        from: &Mapped,
        header: &RecordHeader,
        offset: Offset,
    ) -> Result<Copied> {
        let Survivor { seq, pushed_at, slot, delay } = *survivor;
        let Progress { tail, count, .. } = self.progress;
        let first_seq = if count == 0 { seq } else { self.first_seq };
        let age = record::encode_age(pushed_at, self.base_time);
        let age = age.filter(|_| pushed_at >= self.base_time);
        let end = tail + header.record_len();
        let fits = count < self.most && end <= self.table && seq - first_seq <= number::MAX_SPAN;
        let (Some(age), true) = (age, fits) else { return Ok(Copied::NoRoom) };
        if !self.copy_body(from, header, offset, tail)? {
            return Ok(Copied::Damaged);
        }
        let index = Index(count);
        let flags = header.flags;
        let flags = Flags::default()
            .transient(flags.is_transient())
            .extended(flags.has_extensions())
            .more(false);
        let new = RecordHeader { flags, unsynced: 0, index, age, ..*header };
        let size = self.header.size;
        // Also where there is none: a record that was forgotten may have left one.
        let word = delay.encode(self.base_time, self.key, index);
        self.store_word(slot::delay_offset(size, index), word)?;
        let slot = Slot { offset: Some(tail), ..slot };
        self.store_word(slot::offset(size, index), slot.encode(self.key, index))?;
        let word = number::encode(seq - first_seq, self.key, index);
        self.store_word(number::offset(self.table, index), word)?;
        self.store(tail, &new.encode(self.key, tail))?;
        self.first_seq = first_seq;
        self.progress = Progress { tail: end, count: count + 1, last_seq: seq };
        Ok(Copied::Yes)
    }

    /// Copies a body, a part at a time, and tells whether it is what was pushed.
    fn copy_body(
        &self,
        from: &Mapped,
        header: &RecordHeader,
        offset: Offset,
        tail: Offset,
    ) -> Result<bool> {
        let mut hasher = crc32fast::Hasher::new();
        let len = usize::try_from(header.body_len).unwrap_or(usize::MAX);
        let mut piece = Vec::with_capacity(len.min(CHUNK));
        let mut done = 0;
        while done < len {
            let skip = to_u64(record::HEADER + done);
            let at = offset + skip;
            piece.clear();
            let loaded = from.region.load_into(at.0, CHUNK.min(len - done), &mut piece);
            loaded.map_err(|error| from.segment.error("read segment", at, error))?;
            hasher.update(&piece);
            self.store(tail + skip, &piece)?;
            done += piece.len();
        }
        Ok(hasher.finalize() == header.body_check)
    }

    fn store(&self, offset: Offset, bytes: &[u8]) -> Result<()> {
        let stored = self.region.store(offset.0, bytes);
        stored.map_err(|error| Error::io("compact", &self.path, offset.0, error))
    }

    fn store_word(&self, offset: Offset, word: u64) -> Result<()> {
        let stored = self.region.store_word(offset.0, word);
        stored.map_err(|error| Error::io("compact", &self.path, offset.0, error))
    }

    /// Makes durable what was added so far, so that [`CopyWriter::finish`] has less to write.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self.file.sync();
        synced.map_err(|error| Error::io("sync segment", &self.path, 0, error))
    }

    /// Seals it, makes all of it durable, and gives it its name. `ordinals`: of its sources.
    /// `seq_limit`: of the whole log. If it fails, the caller removes what may be there by one of
    /// the two names.
    pub(crate) fn finish(
        mut self,
        storage: &dyn Storage,
        ordinals: Vec<Ordinal>,
        seq_limit: u64,
        told: &dyn OnFailure,
    ) -> Result<Finished> {
        let Progress { tail, count, last_seq } = self.progress;
        let (first_seq, base_time, table) = (self.first_seq, self.base_time, self.table);
        self.header.sources = u32::try_from(ordinals.len()).unwrap_or(u32::MAX);
        self.header.seq_limit = seq_limit;
        let sources = Sources { last_seq, table, ordinals };
        let marked = self.mark(&sources, Seal { tail, count, run_ended: false });
        let Self { header, file, region, .. } = self;
        // Some systems rename no file that is mapped.
        drop(region);
        let made = marked.and_then(|()| Unnamed::of_copy(storage, header, file));
        let segment = made?.finish(storage, told)?.made_from(sources);
        let segment = Arc::new(segment);
        Ok(Finished { segment, first_seq, base_time, tail, count })
    }

    fn mark(&self, sources: &Sources, seal: Seal) -> Result<()> {
        let activation = Activation { first_seq: self.first_seq, base_time: self.base_time };
        for page in [Offset::START, self.header.twin_offset()] {
            self.store(page + ACTIVATION, &activation.encode(self.key))?;
            self.store(page + SEAL, &seal.encode(self.key))?;
            self.store(page + SOURCES_PLACE, &sources.encode(self.key))?;
        }
        Ok(())
    }
}
