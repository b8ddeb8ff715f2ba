//! Records side by side, copied as they are found.
//!
//! Promises: each of them has its own place, as its header's check says, and follows the one before
//! right where that ends. Their bodies are not verified. Loads nothing behind the end of the
//! records.

use super::sealed::Mapped;
use crate::format::address::{Index, Offset};
use crate::format::bytes::to_u64;
use crate::format::record::{HEADER, RecordHeader};

/// Bytes that are copied at a time: so few are read that are not needed, and a copy of so many is
/// as fast as one of more.
const PIECE: usize = 2048;
/// A longer body is not copied with others: it would keep their bytes, and they its.
pub(crate) const LONGEST_BODY: u32 = 4096;

/// Plain records side by side.
#[derive(Debug)]
pub(crate) struct SideBySide {
    first: Index,
    /// From the start of the first record on.
    bytes: Vec<u8>,
    /// Where each one starts, and behind the last one where that ends.
    starts: Vec<Offset>,
}

impl SideBySide {
    /// Copies up to `most` records, from record `first` on, which is sought at `offset`, and no
    /// more than `most_bytes` and what a record takes. Ends before one that is not there, is not
    /// plain, or is long.
    pub(crate) fn copy(
        mapped: &Mapped,
        first: Index,
        offset: Offset,
        most: usize,
        most_bytes: usize,
    ) -> Self {
        let end = mapped.records_end();
        let mut bytes = Vec::new();
        let mut starts = Vec::with_capacity(most + 1);
        starts.push(offset);
        let (mut index, mut at) = (first, 0);
        while starts.len() <= most && at < most_bytes {
            if !load_up_to(mapped, &mut bytes, at + HEADER, offset, end) {
                break;
            }
            let header = bytes.get(at..).and_then(<[u8]>::first_chunk);
            let header = header.and_then(|bytes| mapped.decode(bytes, offset + to_u64(at), index));
            let is_short = |header: &RecordHeader| header.body_len <= LONGEST_BODY;
            let Some(header) = header.filter(is_short).filter(|header| header.flags.is_plain())
            else {
                break;
            };
            let len = usize::try_from(header.record_len()).unwrap_or(usize::MAX);
            if at == 0 {
                // As if all were as long.
                let expected = most.saturating_mul(len).min(most_bytes);
                bytes.reserve_exact(expected + PIECE);
            }
            let next = at + len;
            if !load_up_to(mapped, &mut bytes, next, offset, end) {
                break;
            }
            starts.push(offset + to_u64(next));
            (index, at) = (index.next(), next);
        }
        bytes.truncate(at);
        // Others were shorter, or are not among them.
        if bytes.capacity() - at > at + PIECE {
            bytes.shrink_to_fit();
            starts.shrink_to_fit();
        }
        Self { first, bytes, starts }
    }

    /// Keeps the first few of them.
    pub(crate) fn truncate(&mut self, number: usize) {
        self.starts.truncate(number + 1);
    }

    /// The index of the first one.
    pub(crate) fn first(&self) -> Index {
        self.first
    }

    /// Where each one starts, and where the last one ends.
    pub(crate) fn starts(&self) -> &[Offset] {
        &self.starts
    }

    /// Where the last one ends.
    pub(crate) fn end(&self) -> Offset {
        self.starts.last().copied().unwrap_or_default()
    }

    /// The bytes, from the start of the first record on, and where each record starts, and the last
    /// one ends.
    pub(crate) fn into_parts(self) -> (Vec<u8>, Vec<Offset>) {
        (self.bytes, self.starts)
    }
}

/// A copy of plain records, from record `first` on, which is sought at `offset`: of those that lie
/// in `len` bytes, up to one that is damaged. Their bodies are verified.
pub(crate) fn whole_side_by_side(
    mapped: &Mapped,
    first: Index,
    offset: Offset,
    len: u64,
) -> Vec<u8> {
    let len = usize::try_from(len.min(mapped.records_end().since(offset))).unwrap_or(0);
    let mut bytes = Vec::with_capacity(len);
    mapped.region.load_into(offset.0, len, &mut bytes).ok();
    let (mut index, mut at) = (first, 0);
    while let Some((header, rest)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk)
        && let Some(header) = mapped.decode(header, offset + to_u64(at), index)
        && let Ok(body_len) = usize::try_from(header.body_len)
        && let Some(body) = rest.get(..body_len)
        && header.flags.is_plain()
        && header.is_of(body)
    {
        let len = usize::try_from(header.record_len()).unwrap_or(usize::MAX);
        (index, at) = (index.next(), at.saturating_add(len).min(bytes.len()));
    }
    bytes.truncate(at);
    if bytes.capacity() > 2 * at {
        bytes.shrink_to_fit();
    }
    bytes
}

/// Of each of the records whose `bytes` were copied, its header, and where its body starts.
#[inline]
pub(crate) fn bodies(bytes: &[u8]) -> impl Iterator<Item = (RecordHeader, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let header = RecordHeader::of_checked(bytes.get(start..)?.first_chunk()?);
        let body = start + HEADER;
        start += usize::try_from(header.record_len()).ok()?;
        Some((header, body))
    })
}

/// Loads more bytes, which start at `offset`, until there are at least `len`; false if there are
/// not so many before the `end`, or they cannot be loaded.
#[inline]
fn load_up_to(
    mapped: &Mapped,
    bytes: &mut Vec<u8>,
    len: usize,
    offset: Offset,
    end: Offset,
) -> bool {
    while bytes.len() < len {
        let from = offset + to_u64(bytes.len());
        let piece = usize::try_from(end.since(from)).map_or(PIECE, |left| left.min(PIECE));
        if piece == 0 || mapped.region.load_into(from.0, piece, bytes).is_err() {
            return false;
        }
    }
    true
}
