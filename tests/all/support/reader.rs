//! A reader of format 1, written from `src/docs/format.md` alone: it shares no code with keepq, so
//! where the two agree, the page is enough to read a queue by.
//!
//! It reads what was left in order or by a kill, cuts the last epoch at its first invalid record,
//! and does not look for records behind damage.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A message that is owed.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Owed {
    pub(crate) seq: u64,
    /// How often it was handed out.
    pub(crate) attempts: u64,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

/// Everything behind "CHECKPOINT" in the page.
#[derive(Deserialize, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) queue_id: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) watermark: u64,
    pub(crate) seq_limit: u64,
    /// Ordinal, first Seq, span.
    pub(crate) segments: Vec<(u64, u64, u64)>,
    pub(crate) accounted: u64,
    pub(crate) unaccounted: Vec<(u64, u64)>,
    pub(crate) newest_time: u64,
    pub(crate) next_ordinal: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn crc32(bytes: &[u8]) -> u64 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    };
    u64::from(!bytes.iter().fold(u32::MAX, step))
}

fn fold(state: u64, word: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^ (x >> 32)
}

fn fold_all(state: u64, words: &[u64]) -> u64 {
    words.iter().fold(state, |state, &word| fold(state, word))
}

struct Segment {
    bytes: Vec<u8>,
    key: u64,
    ordinal: u64,
    epoch: u64,
    queue_id: [u8; 16],
    /// How many segments it was made from.
    sources: u64,
}

/// What a compacted segment says of itself.
struct Sources {
    last_seq: u64,
    table: u64,
    ordinals: Vec<u64>,
}

impl Segment {
    fn read(bytes: Vec<u8>) -> Self {
        let size = bytes.len();
        let is_valid = |page: usize| {
            let header = &bytes[page..page + 512];
            header[..8] == *b"keepqseg"
                && u16_at(header, 8) == 1
                && u32_at(header, 508) == crc32(&header[..508])
                && u64_at(header, 80) == size as u64
        };
        assert!(is_valid(0) && is_valid(size - 4096), "both copies of the header");
        assert_eq!(bytes[11], 1, "one consumer group");
        let words: Vec<u64> = (32..80).step_by(8).map(|at| u64_at(&bytes, at)).collect();
        Self {
            key: fold_all(0, &words),
            ordinal: u64_at(&bytes, 48),
            epoch: u64_at(&bytes, 72),
            queue_id: bytes[32..48].try_into().unwrap(),
            sources: u32_at(&bytes, 96),
            bytes,
        }
    }

    /// The two words of an activation (place 512) or a seal (place 1024).
    fn mark(&self, place: usize) -> Option<(u64, u64)> {
        [0, self.bytes.len() - 4096].into_iter().find_map(|page| {
            let at = &self.bytes[page + place..];
            let (first, second) = (u64_at(at, 0), u64_at(at, 8));
            let check = fold_all(self.key, &[place as u64, first, second]) >> 32;
            (u32_at(at, 16) == check).then_some((first, second))
        })
    }

    fn sources(&self) -> Option<Sources> {
        if self.sources == 0 {
            return None;
        }
        [0, self.bytes.len() - 4096].into_iter().find_map(|page| {
            let end = 16 + 8 * self.sources as usize;
            let part = &self.bytes[page + 1536..page + 4096];
            let check = fold_all(self.key, &[1536, crc32(&part[..end]), end as u64]) >> 32;
            (u32_at(part, end) == check).then(|| Sources {
                last_seq: u64_at(part, 0),
                table: u64_at(part, 8),
                ordinals: (16..end).step_by(8).map(|at| u64_at(part, at)).collect(),
            })
        })
    }

    /// The Seq of a record of a segment with these sources.
    fn seq(&self, sources: Option<&Sources>, first_seq: u64, index: u64) -> u64 {
        let Some(sources) = sources else { return first_seq + index };
        let word = u64_at(&self.bytes, (sources.table + 8 * index) as usize);
        let value = word & 0xFFFF_FFFF_FFFF;
        let check = fold_all(self.key, &[1 << 33 | index, value]) >> 48;
        assert_eq!(word >> 48, check, "the check of Seq {index}");
        first_seq + value - 1
    }

    /// Flags, body and next offset of the record at this offset.
    fn record(&self, offset: usize, index: u64) -> Option<(u8, &[u8], usize)> {
        let header = self.bytes.get(offset..offset + 24)?;
        let mut words: [u64; 3] = [0, 8, 16].map(|at| u64_at(header, at));
        words[0] &= !0xFFFF_FFFF;
        let check = fold_all(fold(self.key, offset as u64), &words) >> 32;
        let is_header = u32_at(header, 0) == check && header[12] == 1 && header[13] & !7 == 0;
        if !is_header || u32_at(header, 16) != index {
            return None;
        }
        let end = offset + 24 + u32_at(header, 8) as usize;
        let body = self.bytes.get(offset + 24..end)?;
        (crc32(body) == u32_at(header, 4)).then_some((header[13], body, end.next_multiple_of(8)))
    }

    /// State and attempts.
    fn slot(&self, index: u64) -> (u64, u64) {
        let at = self.bytes.len() - 4096 - 16 * (index as usize + 1);
        let word = u64_at(&self.bytes, at);
        if word == 0 {
            return (0, 0);
        }
        let value = word & 0xFFFF_FFFF_FFFF;
        let check = fold_all(self.key, &[index, value]) >> 48;
        assert_eq!(word >> 48, check, "the check of slot {index}");
        (value >> 44, value >> 29 & 0x7FFF)
    }
}

fn headers_and_payload(flags: u8, body: &[u8]) -> (Vec<(String, Vec<u8>)>, Vec<u8>) {
    if flags & 4 == 0 {
        return (Vec::new(), body.to_vec());
    }
    let payload_start = 2 + u16_at(body, 0) as usize;
    let (mut at, mut headers) = (2, Vec::new());
    while at < payload_start {
        let content = &body[at + 3..at + 3 + u16_at(body, at + 1) as usize];
        if body[at] == 1 {
            let name_end = 1 + usize::from(content[0]);
            let name = String::from_utf8(content[1..name_end].to_vec()).unwrap();
            headers.push((name, content[name_end..].to_vec()));
        }
        at += 3 + content.len();
    }
    (headers, body[payload_start..].to_vec())
}

/// What is owed, in order.
pub(crate) fn read(directory: &Path) -> Vec<Owed> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            let segment = Segment::read(fs::read(&path).unwrap());
            let name = format!("{:016x}.seg", segment.ordinal);
            assert_eq!(path.file_name().unwrap().to_str(), Some(name.as_str()));
            segments.insert(segment.ordinal, segment);
        }
    }
    let newest_epoch = segments.values().map(|segment| segment.epoch).max().unwrap_or(0);
    let sources: Vec<u64> = segments
        .values()
        .filter_map(Segment::sources)
        .flat_map(|sources| sources.ordinals)
        .collect();
    assert!(sources.iter().all(|source| !segments.contains_key(source)), "left in order");
    let mut owed = Vec::new();
    for segment in segments.values() {
        let Some((first_seq, _)) = segment.mark(512) else { continue };
        let sources = segment.sources();
        let seal = segment.mark(1024).map(|(tail, second)| (tail, second & 0xFFFF_FFFF));
        let (mut offset, mut index) = (4096, 0);
        while let Some((flags, body, next)) = segment.record(offset, index) {
            if seal.is_some_and(|(_, count)| index >= count) {
                break;
            }
            // Another run will find this: transient messages of the newest epoch are of an earlier
            // run for whoever reads now.
            let (state, attempts) = segment.slot(index);
            if ![3, 4, 5].contains(&state) && flags & 2 == 0 {
                let (headers, payload) = headers_and_payload(flags, body);
                let seq = segment.seq(sources.as_ref(), first_seq, index);
                owed.push(Owed { seq, attempts, headers, payload });
            }
            (offset, index) = (next, index + 1);
        }
        match seal {
            Some((tail, count)) => assert_eq!((offset as u64, index), (tail, count), "the seal"),
            None => assert_eq!(segment.epoch, newest_epoch, "older epochs are sealed"),
        }
    }
    // The ordinal of a compacted segment says nothing of its place in the log.
    owed.sort_by_key(|owed| owed.seq);
    owed
}

/// Where a message lies in a segment.
pub(crate) struct Place {
    /// Offset of its record's header.
    pub(crate) header: u64,
    pub(crate) body_len: u64,
    /// Offset of its slot.
    pub(crate) slot: u64,
}

/// Where this segment has the message with this payload, in a record without damage.
pub(crate) fn place(bytes: Vec<u8>, payload: &[u8]) -> Option<Place> {
    let segment = Segment::read(bytes);
    let end = segment.bytes.len() - 4096;
    (4096..end).step_by(8).find_map(|header| {
        let body_len = u32_at(&segment.bytes, header + 8);
        let body = segment.bytes.get(header + 24..header + 24 + body_len as usize)?;
        let index = u32_at(&segment.bytes, header + 16);
        if !body.ends_with(payload) || segment.record(header, index).is_none() {
            return None;
        }
        let slot = segment.bytes.len() as u64 - 4096 - 16 * (index + 1);
        Some(Place { header: header as u64, body_len, slot })
    })
}

/// What a segment's marks say.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) ordinal: u64,
    pub(crate) first_seq: Option<u64>,
    /// From its first Seq to its last.
    pub(crate) span: Option<u64>,
}

/// The newest valid checkpoint, and the queue that the segments belong to.
pub(crate) fn read_checkpoint(directory: &Path) -> (Checkpoint, [u8; 16], Vec<Used>) {
    let bytes = fs::read(directory.join("CHECKPOINT")).unwrap();
    let slots = [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]];
    let valid = slots.into_iter().filter_map(|slot| {
        let body = slot.get(32..32 + u32_at(slot, 12) as usize)?;
        let is_valid = slot[..8] == *b"keepqchk"
            && u16_at(slot, 8) == 1
            && u32_at(slot, 24) == crc32(&[&slot[..24], body].concat());
        is_valid.then(|| (u64_at(slot, 16), body))
    });
    let (_, body) = valid.max_by_key(|(generation, _)| *generation).unwrap();
    let checkpoint = postcard::from_bytes(body).unwrap();
    let mut segments = Vec::new();
    let mut queue_id = [0; 16];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            let segment = Segment::read(fs::read(path).unwrap());
            queue_id = segment.queue_id;
            let first_seq = segment.mark(512).map(|(first_seq, _)| first_seq);
            let count = segment.mark(1024).map(|(_, second)| second & 0xFFFF_FFFF);
            let span = match (segment.sources(), first_seq) {
                (Some(sources), Some(first_seq)) => Some(sources.last_seq + 1 - first_seq),
                _ => count,
            };
            segments.push(Used { ordinal: segment.ordinal, first_seq, span });
        }
    }
    segments.sort_by_key(|used| used.ordinal);
    (checkpoint, queue_id, segments)
}
