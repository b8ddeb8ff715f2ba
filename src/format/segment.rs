//! The header page of a segment: header, activation and seal, each in sectors of its own.

use super::address::{Index, Offset, Ordinal};
use super::bytes::{high_u32, low_u32, put, take, to_u64, u16_at, u32_at, u64_at};
use super::checksum::{CHECKSUM_ID, Key, crc32};
use super::limits::{FIRST_SEQ_END, NUMBER_END, TIME_END, is_number};
use super::{FORMAT_VERSION, PAGE, SECTOR, number, record, slot};
use crate::time::{Shift, Time};

const MAGIC: [u8; 8] = *b"keepqseg";

const VERSION: usize = 8;
const CHECKSUM: usize = 10;
const GROUPS: usize = 11;
const REQUIRED: usize = 16;
const OPTIONAL: usize = 24;
const IDENTITY: usize = 32;
const QUEUE_ID: usize = IDENTITY;
const ORDINAL: usize = QUEUE_ID + 16;
const PREDECESSOR: usize = ORDINAL + 8;
const GENERATION: usize = PREDECESSOR + 8;
const EPOCH: usize = GENERATION + 8;
const SIZE: usize = EPOCH + 8;
const SEQ_LIMIT: usize = SIZE + 8;
const SOURCES: usize = SEQ_LIMIT + 8;
const CLOCK_SHIFT: usize = SOURCES + 8;
const CHECK: usize = 508;
/// Bytes of an encoded header: one sector.
pub(crate) const HEADER: usize = 512;
const _: () =
    assert!(EPOCH + 8 == IDENTITY + 48 && CLOCK_SHIFT + 8 <= CHECK && CHECK + 4 == HEADER);

/// Offset of the first record.
pub(crate) const RECORDS_START: Offset = Offset(PAGE);
/// Bytes of an encoded activation or seal.
pub(crate) const MARK: usize = 20;
/// Where in a header page the activation lies.
pub(crate) const ACTIVATION: u64 = SECTOR;
/// Where in a header page the seal lies.
pub(crate) const SEAL: u64 = 2 * SECTOR;
/// A segment holds at least its two header pages and a page for records and slots.
pub(crate) const MIN_SEGMENT: u64 = 3 * PAGE;
/// Where in a header page the sources lie.
pub(crate) const SOURCES_PLACE: u64 = 3 * SECTOR;
/// No segment is made from more sources than this: their ordinals fit behind [`SOURCES_PLACE`].
pub(crate) const MAX_SOURCES: usize = 300;
/// Bytes of encoded sources.
pub(crate) const SOURCES_LEN: usize = SOURCES_FIXED + 8 * MAX_SOURCES + 4;
const SOURCES_FIXED: usize = 16;
const _: () = assert!(ACTIVATION >= 512 && SEAL + 512 <= SOURCES_PLACE);
const _: () = assert!(SOURCES_LEN <= 2560 && SOURCES_PLACE + 2560 == PAGE);

const SEAL_RUN_ENDED: u32 = 1;

/// Optional feature: the times of the segment are not UTC, and its header says how far they are
/// from that.
const HAS_CLOCK_SHIFT: u64 = 1;

/// What a segment is, fixed before it gets its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) queue_id: [u8; 16],
    pub(crate) ordinal: Ordinal,
    pub(crate) predecessor: Ordinal,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) size: u64,
    pub(crate) seq_limit: u64,
    /// How many segments it was made from: 0 unless it is compacted.
    pub(crate) sources: u32,
    /// How far its times are ahead of UTC.
    pub(crate) clock_shift: Shift,
}

/// What the first bytes of a header page turn out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DecodedHeader {
    Valid(SegmentHeader),
    /// Written by a newer keepq. It is `sure` when the check holds; else both copies decide.
    Newer {
        version: u16,
        sure: bool,
    },
    Invalid,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        put(&mut out, 0, MAGIC);
        put(&mut out, VERSION, FORMAT_VERSION.to_le_bytes());
        put(&mut out, CHECKSUM, [CHECKSUM_ID]);
        put(&mut out, GROUPS, [1]);
        put(&mut out, REQUIRED, 0u64.to_le_bytes());
        let optional = if self.clock_shift == Shift::default() { 0 } else { HAS_CLOCK_SHIFT };
        put(&mut out, OPTIONAL, optional.to_le_bytes());
        put(&mut out, QUEUE_ID, self.queue_id);
        put(&mut out, ORDINAL, self.ordinal.0.to_le_bytes());
        put(&mut out, PREDECESSOR, self.predecessor.0.to_le_bytes());
        put(&mut out, GENERATION, self.generation.to_le_bytes());
        put(&mut out, EPOCH, self.epoch.to_le_bytes());
        put(&mut out, SIZE, self.size.to_le_bytes());
        put(&mut out, SEQ_LIMIT, self.seq_limit.to_le_bytes());
        put(&mut out, SOURCES, self.sources.to_le_bytes());
        put(&mut out, CLOCK_SHIFT, self.clock_shift.0.to_le_bytes());
        let check = crc32(&out[..CHECK]);
        put(&mut out, CHECK, check.to_le_bytes());
        out
    }

    pub(crate) fn decode(from: &[u8; HEADER]) -> DecodedHeader {
        if take(from, 0) != MAGIC {
            return DecodedHeader::Invalid;
        }
        let sure = u32_at(from, CHECK) == crc32(&from[..CHECK]);
        let version = u16_at(from, VERSION);
        if version > FORMAT_VERSION {
            return DecodedHeader::Newer { version, sure };
        }
        if !sure || version == 0 {
            return DecodedHeader::Invalid;
        }
        let known =
            u64_at(from, REQUIRED) == 0 && from[CHECKSUM] == CHECKSUM_ID && from[GROUPS] == 1;
        if !known {
            return DecodedHeader::Newer { version: FORMAT_VERSION + 1, sure };
        }
        let header = Self {
            queue_id: take(from, QUEUE_ID),
            ordinal: Ordinal(u64_at(from, ORDINAL)),
            predecessor: Ordinal(u64_at(from, PREDECESSOR)),
            generation: u64_at(from, GENERATION),
            epoch: u64_at(from, EPOCH),
            size: u64_at(from, SIZE),
            seq_limit: u64_at(from, SEQ_LIMIT),
            sources: u32_at(from, SOURCES),
            clock_shift: Shift(u64_at(from, CLOCK_SHIFT).cast_signed()),
        };
        if header.is_possible() { DecodedHeader::Valid(header) } else { DecodedHeader::Invalid }
    }

    /// Whether its numbers keep to the limits of the format. The generation is random.
    fn is_possible(&self) -> bool {
        is_number(self.ordinal.0)
            && is_number(self.epoch)
            && self.seq_limit <= NUMBER_END
            && self.clock_shift.0.unsigned_abs() < TIME_END
    }

    /// The segment in use when this one was prepared, if there was one. A segment is newer than the
    /// one before it: nothing else is believed.
    pub(crate) fn older_predecessor(&self) -> Option<Ordinal> {
        let predecessor = Some(self.predecessor).filter(|&before| before < self.ordinal);
        predecessor.filter(|&before| before != Ordinal::NONE)
    }

    /// Ties the checks of everything in this segment to this use of this file.
    pub(crate) fn key(&self) -> Key {
        Key::new(&take(&self.encode(), IDENTITY))
    }

    /// Offset of the second header page.
    pub(crate) fn twin_offset(&self) -> Offset {
        Offset(self.size - PAGE)
    }
}

/// The most records that fit into the given bytes between the header pages.
pub(crate) fn capacity(bytes: u64) -> u64 {
    bytes / (to_u64(record::HEADER) + slot::SLOT)
}

/// The most slots that a segment of this size can use.
pub(crate) fn most_slots(segment_size: u64) -> u32 {
    u32::try_from(capacity(segment_size - 2 * PAGE)).unwrap_or(u32::MAX).max(1)
}

/// Bytes of the smallest segment that holds these records.
pub(crate) fn size_for(record_bytes: u64, records: u64) -> u64 {
    (2 * PAGE + record_bytes + records * slot::SLOT).next_multiple_of(PAGE).max(MIN_SEGMENT)
}

/// Bytes of the smallest compacted segment that holds these records.
pub(crate) fn size_for_copy(record_bytes: u64, records: u64) -> u64 {
    size_for(record_bytes + records * number::NUMBER, records)
}

/// Written when the first record is placed: where Seqs and times start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Activation {
    pub(crate) first_seq: u64,
    pub(crate) base_time: Time,
}

impl Activation {
    pub(crate) fn encode(self, key: Key) -> [u8; MARK] {
        encode_mark(key, ACTIVATION, [self.first_seq, self.base_time.0])
    }

    pub(crate) fn decode(from: &[u8; MARK], key: Key) -> Option<Self> {
        let [first_seq, base_time] = decode_mark(from, key, ACTIVATION)?;
        let is_possible = is_number(first_seq) && first_seq <= FIRST_SEQ_END;
        let is_possible = is_possible && base_time < TIME_END;
        is_possible.then_some(Self { first_seq, base_time: Time(base_time) })
    }

    /// Whether these bytes are an activation whose numbers are out of the limits of the format.
    pub(crate) fn is_impossible(from: &[u8; MARK], key: Key) -> bool {
        decode_mark(from, key, ACTIVATION).is_some() && Self::decode(from, key).is_none()
    }
}

/// Written when all records are known to be durable: how many count, and where they end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    pub(crate) tail: Offset,
    pub(crate) count: u32,
    /// The run ended in this segment, and no Seq after that of its last record was given out.
    pub(crate) run_ended: bool,
}

impl Seal {
    pub(crate) fn encode(self, key: Key) -> [u8; MARK] {
        let flags = if self.run_ended { SEAL_RUN_ENDED } else { 0 };
        encode_mark(key, SEAL, [self.tail.0, u64::from(self.count) | u64::from(flags) << 32])
    }

    pub(crate) fn decode(from: &[u8; MARK], key: Key) -> Option<Self> {
        let [tail, word] = decode_mark(from, key, SEAL)?;
        let run_ended = high_u32(word) & SEAL_RUN_ENDED != 0;
        Some(Self { tail: Offset(tail), count: low_u32(word), run_ended })
    }

    /// Whether a segment of this size can have so many records, up to there.
    pub(crate) fn fits(&self, segment_size: u64) -> bool {
        let slots =
            Offset((segment_size - PAGE).saturating_sub(slot::SLOT * u64::from(self.count)));
        let is_possible = self.count <= most_slots(segment_size);
        is_possible && (RECORDS_START..=slots).contains(&self.tail)
    }
}

/// Written before a compacted segment gets its name: what it was made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sources {
    /// The Seq of its last record.
    pub(crate) last_seq: u64,
    /// Offset of the Seq table.
    pub(crate) table: Offset,
    /// In the order of the log.
    pub(crate) ordinals: Vec<Ordinal>,
}

impl Sources {
    /// At most [`MAX_SOURCES`] are encoded.
    pub(crate) fn encode(&self, key: Key) -> [u8; SOURCES_LEN] {
        let mut out = [0; SOURCES_LEN];
        put(&mut out, 0, self.last_seq.to_le_bytes());
        put(&mut out, 8, self.table.0.to_le_bytes());
        let mut end = SOURCES_FIXED;
        for ordinal in self.ordinals.iter().take(MAX_SOURCES) {
            put(&mut out, end, ordinal.0.to_le_bytes());
            end += 8;
        }
        let check = Self::check(&out[..end], key);
        put(&mut out, end, check.to_le_bytes());
        out
    }

    /// `count`: as the segment's header tells.
    pub(crate) fn decode(from: &[u8; SOURCES_LEN], count: u32, key: Key) -> Option<Self> {
        let count = usize::try_from(count).ok().filter(|&count| count <= MAX_SOURCES)?;
        let end = SOURCES_FIXED + 8 * count;
        let is_valid = u32_at(from, end) == Self::check(&from[..end], key);
        let ordinals = (SOURCES_FIXED..end).step_by(8).map(|at| Ordinal(u64_at(from, at)));
        let ordinals = ordinals.collect();
        let (last_seq, table) = (u64_at(from, 0), Offset(u64_at(from, 8)));
        is_valid.then_some(Self { last_seq, table, ordinals })
    }

    /// Whether a copy of this size, with this first Seq and this seal, can say so. Behind the
    /// records lies the Seq table, and behind that the slots.
    pub(crate) fn fits(&self, first_seq: u64, seal: &Seal, segment_size: u64) -> bool {
        let span = self.last_seq.checked_sub(first_seq);
        let least = u64::from(seal.count.saturating_sub(1));
        let has_span = span.is_some_and(|span| (least..=number::MAX_SPAN).contains(&span));
        let table_end = self.table.0.checked_add(number::NUMBER * u64::from(seal.count));
        let slots = (segment_size - PAGE).checked_sub(slot::SLOT * u64::from(seal.count));
        let has_table = table_end.is_some_and(|end| slots.is_some_and(|slots| end <= slots))
            && self.table >= seal.tail
            && self.table.0.is_multiple_of(number::NUMBER);
        seal.count > 0
            && seal.fits(segment_size)
            && is_number(self.last_seq)
            && has_span
            && has_table
    }

    /// The Seq of record `index`, as its word in the Seq table says; `None` if the word is damaged,
    /// or says what cannot be: Seqs rise from record to record, from the first to the last. Whether
    /// it is above the one before is not looked at.
    #[inline]
    pub(crate) fn seq(&self, word: u64, key: Key, index: Index, first_seq: u64) -> Option<u64> {
        let after = number::decode(word, key, index)?;
        let seq = first_seq + after;
        let is_possible = after >= u64::from(index) && seq <= self.last_seq;
        (is_possible && (index > Index::FIRST || after == 0)).then_some(seq)
    }

    fn check(bytes: &[u8], key: Key) -> u32 {
        key.check(SOURCES_PLACE, [crc32(bytes).into(), to_u64(bytes.len())])
    }
}

fn encode_mark(key: Key, place: u64, words: [u64; 2]) -> [u8; MARK] {
    let mut out = [0; MARK];
    put(&mut out, 0, words[0].to_le_bytes());
    put(&mut out, 8, words[1].to_le_bytes());
    put(&mut out, 16, key.check(place, words).to_le_bytes());
    out
}

fn decode_mark(from: &[u8; MARK], key: Key, place: u64) -> Option<[u64; 2]> {
    let words = [u64_at(from, 0), u64_at(from, 8)];
    let valid = *from != [0; MARK] && u32_at(from, 16) == key.check(place, words);
    valid.then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            queue_id: [9; 16],
            ordinal: Ordinal(3),
            predecessor: Ordinal(2),
            generation: 77,
            epoch: 5,
            size: 1 << 20,
            seq_limit: 1000,
            sources: 2,
            clock_shift: Shift(-5),
        }
    }

    #[test]
    fn header_comes_back_and_no_flipped_bit_passes() {
        let bytes = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), DecodedHeader::Valid(header()));
        for bit in 0..HEADER * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            match SegmentHeader::decode(&damaged) {
                DecodedHeader::Invalid | DecodedHeader::Newer { sure: false, .. } => {}
                other => panic!("bit {bit}: {other:?}"),
            }
        }
        assert_eq!(SegmentHeader::decode(&[0; HEADER]), DecodedHeader::Invalid);
    }

    #[test]
    fn sources_come_back_and_no_flipped_bit_passes() {
        let key = header().key();
        let sources =
            Sources { last_seq: 40, table: Offset(8192), ordinals: vec![Ordinal(3), Ordinal(9)] };
        let bytes = sources.encode(key);
        assert_eq!(Sources::decode(&bytes, 2, key), Some(sources));
        assert_eq!(Sources::decode(&bytes, 1, key), None);
        assert_eq!(Sources::decode(&bytes, u32::MAX, key), None);
        for bit in 0..(SOURCES_FIXED + 16 + 4) * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Sources::decode(&damaged, 2, key), None, "bit {bit}");
        }
        let many =
            Sources { last_seq: 1, table: Offset(1), ordinals: (0..300).map(Ordinal).collect() };
        assert_eq!(Sources::decode(&many.encode(key), 300, key), Some(many));
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = header().encode();
        put(&mut bytes, VERSION, 2u16.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), DecodedHeader::Newer { version: 2, sure: false });
        let check = crc32(&bytes[..CHECK]);
        put(&mut bytes, CHECK, check.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), DecodedHeader::Newer { version: 2, sure: true });
        let mut feature = header().encode();
        put(&mut feature, REQUIRED, 1u64.to_le_bytes());
        let check = crc32(&feature[..CHECK]);
        put(&mut feature, CHECK, check.to_le_bytes());
        assert!(matches!(SegmentHeader::decode(&feature), DecodedHeader::Newer { sure: true, .. }));
    }

    #[test]
    fn marks_belong_to_their_key_and_place() {
        let key = header().key();
        let activation = Activation { first_seq: 41, base_time: Time(1_700_000_000_000) };
        let seal = Seal { tail: Offset(8192), count: 12, run_ended: true };
        assert_eq!(Activation::decode(&activation.encode(key), key), Some(activation));
        assert_eq!(Seal::decode(&seal.encode(key), key), Some(seal));
        assert_eq!(Seal::decode(&activation.encode(key), key), None);
        assert_eq!(Activation::decode(&[0; MARK], key), None);
        let other = SegmentHeader { generation: 78, ..header() }.key();
        assert_eq!(Seal::decode(&seal.encode(key), other), None);
    }
}
