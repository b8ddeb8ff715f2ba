//! The records of a segment. From the page: "A record", and the search of "Reading a queue", 2.

use super::bytes::{crc32, fold, fold_all, slice, u16_at, u32_at, u64_at};
use super::segment::{Segment, TIME_END};

const RECORDS_START: u64 = 4096;
const RECORD_HEADER: u64 = 24;
const RECORD_ALIGN: u64 = 8;
/// `MAX_PAYLOAD` and `MAX_EXTENSIONS`.
const MAX_BODY: u64 = (1 << 30) + 65_537;

/// A flag.
const TRANSIENT: u8 = 2;

/// A record whose header and body are whole.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) index: u64,
    /// Of its header.
    pub(super) offset: u64,
    /// Whether it lies right behind a valid record, or is the first.
    pub(super) is_next: bool,
    flags: u8,
    unsynced: u64,
    pub(super) age: u64,
    pub(super) body: Vec<u8>,
}

/// A record's header whose check holds.
struct RecordHeader {
    index: u64,
    flags: u8,
    unsynced: u64,
    age: u64,
    body_check: u64,
    body_len: u64,
    /// Of the next record.
    next: u64,
}

/// Name and value.
pub(crate) type MessageHeader = (String, Vec<u8>);

/// What a body holds.
#[derive(Default, Debug)]
pub(super) struct Content {
    pub(super) headers: Vec<MessageHeader>,
    /// Not to be handed out before this time.
    pub(super) from: Option<u64>,
    /// Not to be handed out from this time on.
    pub(super) until: Option<u64>,
    pub(super) payload: Vec<u8>,
}

impl Record {
    /// *More follows*.
    pub(super) fn is_followed(&self) -> bool {
        self.flags & 1 != 0
    }

    pub(super) fn is_transient(&self) -> bool {
        self.flags & TRANSIENT != 0
    }

    /// How many Seqs before it were perhaps not durable. None if it says nothing.
    pub(super) fn unsynced(&self) -> Option<u64> {
        match self.unsynced {
            0xFFFF => None,
            exact @ ..0x8000 => Some(exact),
            units => Some((units & 0x7FFF) * 4096),
        }
    }

    /// None if it is unreadable: an unknown tag from 0x80 on, or entries that make no sense.
    pub(super) fn content(&self) -> Option<Content> {
        let mut content = Content::default();
        let mut payload = &self.body[..];
        if self.flags & 4 != 0 {
            let length = u16_at(&self.body, 0)?;
            let mut entries = slice(&self.body, 2, length)?;
            payload = &self.body[2 + length as usize..];
            while let Some(&tag) = entries.first() {
                let length = u16_at(entries, 1)?;
                content.read(tag, slice(entries, 3, length)?)?;
                entries = &entries[3 + length as usize..];
            }
        }
        content.payload = payload.to_vec();
        Some(content)
    }
}

impl Content {
    fn read(&mut self, tag: u8, entry: &[u8]) -> Option<()> {
        match tag {
            0x01 => {
                let name_len = u64::from(*entry.first()?);
                let name = String::from_utf8(slice(entry, 1, name_len)?.to_vec()).ok()?;
                self.headers.push((name, entry[1 + name_len as usize..].to_vec()));
            }
            // One beyond the limit never comes.
            0x81 => self.from = Some(u64_at(entry, 0)?.min(TIME_END)),
            0x82 => self.until = Some(u64_at(entry, 0)?.min(TIME_END)),
            0x80.. => return None,
            _ => {}
        }
        Some(())
    }
}

/// The header at this offset, if its check holds.
fn header(segment: &Segment, offset: u64, end: u64) -> Option<RecordHeader> {
    let header = slice(&segment.bytes, offset, RECORD_HEADER)?;
    // Most places in a search are none.
    if header[12] != 1 || header[13] & !7 != 0 {
        return None;
    }
    let words = [u64_at(header, 0)? & !0xFFFF_FFFF, u64_at(header, 8)?, u64_at(header, 16)?];
    let check = fold_all(fold(segment.key, offset), &words) >> 32;
    let body_len = u32_at(header, 8)?;
    let next = (offset + RECORD_HEADER + body_len).next_multiple_of(RECORD_ALIGN);
    let index = u32_at(header, 16)?;
    let fits = body_len <= MAX_BODY && next <= end.min(segment.slot_offset(index)?);
    (u32_at(header, 0)? == check && fits).then_some(())?;
    let (flags, unsynced, age) = (header[13], u16_at(header, 14)?, u32_at(header, 20)?);
    Some(RecordHeader {
        index,
        flags,
        unsynced,
        age,
        body_check: u32_at(header, 4)?,
        body_len,
        next,
    })
}

/// What is between the start of the records and their end.
#[derive(Default, Debug)]
pub(super) struct Records {
    /// All valid ones, in order.
    pub(super) whole: Vec<Record>,
    /// The indexes of transient ones whose header is valid, and whose body is not.
    pub(super) transient: Vec<u64>,
    /// The index of the first one behind all valid ones of which only the header is whole.
    pub(super) broken: Option<u64>,
}

/// Of a sealed segment at most `count` up to `tail`, of another as many as there are. Behind a
/// damaged one it is searched for the next.
pub(super) fn records(segment: &Segment) -> Records {
    let limit = segment.seal.map_or(u64::MAX, |seal| seal.count);
    let end = segment.seal.map_or(segment.size(), |seal| seal.tail);
    let mut records = Records::default();
    let (mut offset, mut index) = (RECORDS_START, 0);
    // Where the last valid record ends.
    let mut whole = offset;
    while index < limit && offset < end {
        let found = header(segment, offset, end).filter(|found| {
            let most = index + (offset - whole) / RECORD_HEADER;
            (index..limit).contains(&found.index) && found.index <= most
        });
        let Some(found) = found else {
            offset += RECORD_ALIGN;
            continue;
        };
        let body = slice(&segment.bytes, offset + RECORD_HEADER, found.body_len);
        if let Some(body) = body.filter(|body| crc32(&[body]) == found.body_check) {
            let RecordHeader { index, flags, unsynced, age, .. } = found;
            let (is_next, body) = (offset == whole, body.to_vec());
            records.whole.push(Record { index, offset, is_next, flags, unsynced, age, body });
            (whole, records.broken) = (found.next, None);
        } else if found.flags & TRANSIENT != 0 {
            records.transient.push(found.index);
        } else {
            records.broken = records.broken.or(Some(found.index));
        }
        (offset, index) = (found.next, found.index + 1);
    }
    records
}
