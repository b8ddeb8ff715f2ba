//! Reading an unsealed segment from its first record to its last, to find where the log ends.
//!
//! Promises: time and memory are linear in the size of the file, whatever its bytes claim; nothing
//! is stored. Several segments are read beside each other, where that is worth a thread. Refuses to
//! decide which gap is damage and which is the torn end: `recovery` does.

use super::Segment;
use super::sealed::candidates;
use crate::error::Result;
use crate::format::address::{Index, Offset};
use crate::format::bytes::to_u64;
use crate::format::checksum::crc32;
use crate::format::record::{self, HEADER, RecordHeader};
use crate::format::segment::{Activation, RECORDS_START};
use crate::format::slot;
use crate::time::Time;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Bytes read at once.
const WINDOW: usize = 256 << 10;

/// Segments of fewer bytes than this, together, are read by one thread: to start another one would
/// not be worth it.
const WORTH_A_THREAD: u64 = 16 << 20;
const ZEROS: [u8; 4096] = [0; 4096];

/// Records without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    pub(crate) first_index: Index,
    /// The offset at which its first record starts.
    pub(crate) start: Offset,
    /// One more than the index of its last record.
    pub(crate) end_index: Index,
    /// The offset at which its last record ends.
    pub(crate) end: Offset,
    /// Offset and index of the first record of a batch whose end is not in this stretch.
    pub(crate) open_batch: Option<(Offset, Index)>,
}

/// What a scan found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Scanned {
    /// In order; between two of them, and before the first, there is something invalid.
    pub(crate) stretches: Vec<Stretch>,
    /// Behind all of them: the first record with a sound header and a damaged body.
    pub(crate) broken_end: Option<(Offset, Index)>,
    /// The largest Seq that was durable according to one of the records.
    pub(crate) watermark: u64,
    /// The newest push time.
    pub(crate) newest_time: Time,
    pub(crate) read_bytes: u64,
}

/// Reads all records of each of these segments; fails with the error of the first one that cannot
/// be read.
pub(crate) fn scan_all(segments: &[(&Arc<Segment>, Activation)]) -> Result<Vec<Scanned>> {
    let bytes: u64 = segments.iter().map(|(segment, _)| segment.header.size).sum();
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let threads = if bytes < WORTH_A_THREAD { 1 } else { cores().min(segments.len()) };
    let next = AtomicUsize::new(0);
    let scan_some = || {
        let mut found = Vec::new();
        // Relaxed, here and below: a number by itself.
        while let Some((segment, activation)) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            let scanned = scan(segment, *activation);
            if scanned.is_err() {
                // What others have begun they end: of two errors, the first one is told.
                next.store(segments.len(), Ordering::Relaxed);
            }
            found.push((segment.header.ordinal, scanned));
        }
        found
    };
    let mut found = thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, scan_some).ok();
        // Where none can be started, this one reads all.
        let others: Vec<_> = (1..threads).filter_map(start).collect();
        let own = scan_some();
        let others =
            others.into_iter().map(|other| other.join().unwrap_or_else(|e| resume_unwind(e)));
        others.flatten().chain(own).collect::<Vec<_>>()
    });
    found.sort_by_key(|(ordinal, _)| *ordinal);
    found.into_iter().map(|(_, scanned)| scanned).collect()
}

/// Reads all records of a segment.
pub(crate) fn scan(segment: &Segment, activation: Activation) -> Result<Scanned> {
    let mut reader =
        RecordReader { segment, window: vec![0; WINDOW], start: Offset::START, filled: 0 };
    let mut scanned = Scanned { newest_time: activation.base_time, ..Scanned::default() };
    let mut offset = RECORDS_START;
    let mut index = Index::FIRST;
    let mut gap_start = offset;
    while let Some((at, header)) = reader.next_header(offset, index, gap_start)? {
        let end = at + header.record_len();
        if reader.body_matches(&header, at)? {
            let in_sequence = at == offset && gap_start == offset;
            add(&mut scanned, activation, &header, at, in_sequence);
            gap_start = end;
            scanned.broken_end = None;
        } else if !header.flags.is_transient() {
            // Its header is right and its body is not: this record is lost, the next is not.
            scanned.broken_end = scanned.broken_end.or(Some((at, header.index)));
        }
        offset = end;
        index = header.index.next();
        scanned.read_bytes = end - RECORDS_START;
    }
    Ok(scanned)
}

fn add(
    scanned: &mut Scanned,
    activation: Activation,
    header: &RecordHeader,
    at: Offset,
    joins: bool,
) {
    let seq = activation.first_seq + u64::from(header.index);
    if let Some(unsynced) = record::decode_unsynced(header.unsynced) {
        scanned.watermark = scanned.watermark.max((seq - 1).saturating_sub(unsynced));
    }
    let time = header.pushed_at(activation.base_time);
    scanned.newest_time = scanned.newest_time.max(time);
    let (end, end_index) = (at + header.record_len(), header.index.next());
    let open_batch = header.flags.has_more().then_some((at, header.index));
    let previous = scanned.stretches.last_mut().filter(|stretch| joins && stretch.end == at);
    if let Some(stretch) = previous {
        let open_batch = open_batch.map(|open| stretch.open_batch.unwrap_or(open));
        *stretch = Stretch { end_index, end, open_batch, ..*stretch };
    } else {
        let first_index = header.index;
        scanned.stretches.push(Stretch { first_index, start: at, end_index, end, open_batch });
    }
}

/// A window that moves over the file.
struct RecordReader<'a> {
    segment: &'a Segment,
    window: Vec<u8>,
    start: Offset,
    filled: usize,
}

impl RecordReader<'_> {
    /// The first valid header at or behind `offset` with at least this index. `gap_start`: where
    /// the last good record ended, which bounds how many records can have been lost since then.
    fn next_header(
        &mut self,
        offset: Offset,
        index: Index,
        gap_start: Offset,
    ) -> Result<Option<(Offset, RecordHeader)>> {
        let (key, size) = (self.segment.key, self.segment.header.size);
        let end = self.segment.header.twin_offset();
        let is_next = |header: &RecordHeader, at| {
            let at_most = u64::from(index) + (at - gap_start) / to_u64(HEADER);
            let in_range = header.index >= index && u64::from(header.index) <= at_most;
            in_range && at + header.record_len() <= slot::offset(size, header.index)
        };
        let mut from = offset;
        while from + to_u64(HEADER) <= end {
            let bytes = self.at(from)?;
            // Nearly always, the next one begins where the last one ends.
            let first =
                bytes.first_chunk().and_then(|bytes| RecordHeader::decode(bytes, key, from));
            if let Some(header) = first.filter(|header| is_next(header, from)) {
                return Ok(Some((from, header)));
            }
            let zeros = bytes.chunks(ZEROS.len()).take_while(|page| **page == ZEROS[..page.len()]);
            let skipped = zeros.map(<[u8]>::len).sum::<usize>();
            if skipped >= ZEROS.len() {
                // A header may start in the last bytes of a zero page: those are looked at again.
                let looked_at = from + (to_u64(skipped - HEADER) & !(record::ALIGN - 1));
                let data = self.segment.next_data(looked_at)?;
                let start = Offset(data.0.saturating_sub(to_u64(HEADER)) & !(record::ALIGN - 1));
                from = looked_at.max(start);
                continue;
            }
            for (at, bytes) in candidates(bytes, from) {
                let header = RecordHeader::decode(bytes, key, at);
                if let Some(header) = header.filter(|header| is_next(header, at)) {
                    return Ok(Some((at, header)));
                }
            }
            let passed = to_u64(bytes.len().saturating_sub(HEADER - 1)).next_multiple_of(8);
            from = from + passed.max(record::ALIGN);
        }
        Ok(None)
    }

    /// The bytes from `offset` on: at least a header's, at most a window's.
    fn at(&mut self, offset: Offset) -> Result<&[u8]> {
        let end = self.segment.header.twin_offset();
        let inside = offset.checked_since(self.start).and_then(|skip| usize::try_from(skip).ok());
        let inside = inside.filter(|skip| skip + HEADER <= self.filled);
        let skip = if let Some(skip) = inside {
            skip
        } else {
            let rest = usize::try_from(end - offset).unwrap_or(usize::MAX);
            self.filled = rest.min(WINDOW);
            self.start = offset;
            self.segment.read_at(offset, &mut self.window[..self.filled])?;
            0
        };
        Ok(&self.window[skip..self.filled])
    }

    /// Whether the body is what was pushed. It is read a window at a time, so that a wrong length
    /// takes no memory.
    fn body_matches(&mut self, header: &RecordHeader, at: Offset) -> Result<bool> {
        let mut offset = at + to_u64(HEADER);
        let mut left = usize::try_from(header.body_len).unwrap_or(usize::MAX);
        if let Some(body) = self.body_at(offset)?.get(..left) {
            return Ok(crc32(body) == header.body_check);
        }
        let mut hasher = crc32fast::Hasher::new();
        while left > 0 {
            let bytes = self.body_at(offset)?;
            let len = bytes.len().min(left);
            hasher.update(&bytes[..len]);
            left -= len;
            offset = offset + to_u64(len);
        }
        Ok(hasher.finalize() == header.body_check)
    }

    /// Like [`RecordReader::at`], but at least one byte.
    fn body_at(&mut self, offset: Offset) -> Result<&[u8]> {
        let inside = offset.checked_since(self.start).and_then(|skip| usize::try_from(skip).ok());
        match inside.filter(|&skip| skip < self.filled) {
            Some(skip) => Ok(&self.window[skip..self.filled]),
            None => self.at(offset),
        }
    }
}
