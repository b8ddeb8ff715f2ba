//! A record: 24 bytes of header, then the body.

use super::address::{Index, Offset};
use super::bytes::{high_u32, low_u32, put, u64_at};
use super::checksum::{Key, crc32};
use super::extension::{self, Verified};
use crate::time::{Millis, Time};

/// Bytes of a record's header.
pub(crate) const HEADER: usize = 24;
/// Records start at multiples of this.
pub(crate) const ALIGN: u64 = 8;
/// The largest body of one record: a payload of 1 GiB, and extensions.
pub(crate) const MAX_BODY: u64 = MAX_PAYLOAD + extension::MAX_EXTENSIONS;
/// The largest payload.
pub(crate) const MAX_PAYLOAD: u64 = 1 << 30;

/// A header is three words. From the low bytes on, the first has its own check and that of the body
/// (4 bytes each), the second the length of the body (4), the kind (1), the flags (1) and how many
/// were unsynced (2), the third the index and the age (4 each).
const KIND: usize = 8 + 4;
const _: () = assert!(HEADER == 3 * size_of::<u64>());

const KIND_MESSAGE: u8 = 1;
const MORE: u8 = 1;
const TRANSIENT: u8 = 2;
const EXTENSIONS: u8 = 4;
const KNOWN_FLAGS: u8 = MORE | TRANSIENT | EXTENSIONS;

/// Where `unsynced` changes from a count to units.
const UNSYNCED_EXACT: u64 = 0x8000;
const UNSYNCED_UNIT: u64 = 4096;
const UNSYNCED_UNKNOWN: u16 = 0xFFFF;

/// A record's header, decoded and checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) body_check: u32,
    pub(crate) body_len: u32,
    pub(crate) flags: Flags,
    /// Encoded by [`encode_unsynced`].
    pub(crate) unsynced: u16,
    pub(crate) index: Index,
    /// Encoded by [`encode_age`].
    pub(crate) age: u32,
}

/// What is special about a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u8);

impl Flags {
    pub(crate) fn transient(self, on: bool) -> Self {
        Self(if on { self.0 | TRANSIENT } else { self.0 & !TRANSIENT })
    }

    pub(crate) fn extended(self, on: bool) -> Self {
        Self(if on { self.0 | EXTENSIONS } else { self.0 & !EXTENSIONS })
    }

    pub(crate) fn more(self, on: bool) -> Self {
        Self(if on { self.0 | MORE } else { self.0 & !MORE })
    }

    /// Dropped at the next open.
    pub(crate) fn is_transient(self) -> bool {
        self.0 & TRANSIENT != 0
    }

    /// The body starts with extensions.
    pub(crate) fn has_extensions(self) -> bool {
        self.0 & EXTENSIONS != 0
    }

    /// Nothing is special about it but where its batch ends.
    #[inline]
    pub(crate) fn is_plain(self) -> bool {
        self.0 & !MORE == 0
    }

    /// The next record belongs to the same batch.
    pub(crate) fn has_more(self) -> bool {
        self.0 & MORE != 0
    }
}

impl RecordHeader {
    /// The bytes of this header at `offset` of the segment that `key` belongs to.
    #[inline]
    pub(crate) fn encode(&self, key: Key, offset: Offset) -> [u8; HEADER] {
        let [low, high] = self.unsynced.to_le_bytes();
        let marks = u32::from_le_bytes([KIND_MESSAGE, self.flags.0, low, high]);
        let [checks, what, place] = [
            u64::from(self.body_check) << 32,
            u64::from(marks) << 32 | u64::from(self.body_len),
            u64::from(self.age) << 32 | u64::from(self.index.0),
        ];
        let check = key.check3(offset.0, [checks, what, place]);
        let mut out = [0; HEADER];
        put(&mut out, 0, (checks | u64::from(check)).to_le_bytes());
        put(&mut out, 8, what.to_le_bytes());
        put(&mut out, 16, place.to_le_bytes());
        out
    }

    /// The header at `offset`, if these bytes are a header that was written there.
    pub(crate) fn decode(from: &[u8; HEADER], key: Key, offset: Offset) -> Option<Self> {
        // Cheap refusal first: a search tries every eighth byte.
        if from[KIND] != KIND_MESSAGE {
            return None;
        }
        Self::of_words([u64_at(from, 0), u64_at(from, 8), u64_at(from, 16)], key, offset)
    }

    /// The same, where the bytes are loaded as words.
    #[inline]
    pub(crate) fn of_words(words: [u64; 3], key: Key, offset: Offset) -> Option<Self> {
        let [checks, what, place] = words;
        let header = Self::unchecked(words);
        let is_message = low_u32(what >> 32 & 0xFF) == u32::from(KIND_MESSAGE);
        let is_known = header.flags.0 & !KNOWN_FLAGS == 0;
        if !is_message || !is_known || u64::from(header.body_len) > MAX_BODY {
            return None;
        }
        // Its own four bytes count as zero.
        let check = key.check3(offset.0, [checks >> 32 << 32, what, place]);
        (low_u32(checks) == check).then_some(header)
    }

    /// The same of bytes that were checked.
    #[inline]
    pub(crate) fn of_checked(from: &[u8; HEADER]) -> Self {
        Self::unchecked([u64_at(from, 0), u64_at(from, 8), u64_at(from, 16)])
    }

    #[inline]
    fn unchecked([checks, what, place]: [u64; 3]) -> Self {
        let [_, flags, unsynced @ ..] = high_u32(what).to_le_bytes();
        Self {
            body_check: high_u32(checks),
            body_len: low_u32(what),
            flags: Flags(flags),
            unsynced: u16::from_le_bytes(unsynced),
            index: Index(low_u32(place)),
            age: high_u32(place),
        }
    }

    /// When it was pushed. `base_time`: of the segment.
    #[inline]
    pub(crate) fn pushed_at(&self, base_time: Time) -> Time {
        base_time + Millis(u64::from(self.age))
    }

    /// Bytes from the start of this record to the start of the next one.
    pub(crate) fn record_len(&self) -> u64 {
        len(u64::from(self.body_len))
    }

    /// [`RecordHeader::record_len`] in 32 bits, which hold the length of every record.
    pub(crate) fn bytes(&self) -> u32 {
        u32::try_from(self.record_len()).unwrap_or(u32::MAX)
    }

    /// Whether `body`, which was read behind this header, is what was stored there.
    #[inline]
    pub(crate) fn is_of(&self, body: &[u8]) -> bool {
        crc32(body) == self.body_check
    }

    /// What `body`, which was read behind this header, turns out to be.
    #[inline]
    pub(crate) fn verify(&self, body: &[u8]) -> Verified {
        if !self.is_of(body) {
            return Verified::Damaged;
        }
        if self.flags.has_extensions() { extension::verify(body) } else { Verified::Payload(0) }
    }
}

/// Bytes that a record with this body takes, up to the next record's start.
#[inline]
pub(crate) const fn len(body_len: u64) -> u64 {
    // That is `next_multiple_of(ALIGN)`, in two instructions.
    (8 * 3 + body_len + ALIGN - 1) & !(ALIGN - 1)
}
const _: () = assert!(len(0) == 24 && len(1) == 32 && ALIGN.is_power_of_two());

/// How much later than its segment's base time a record was pushed; `None` if that does not fit.
#[inline]
pub(crate) fn encode_age(pushed_at: Time, base_time: Time) -> Option<u32> {
    u32::try_from(pushed_at.since(base_time).0).ok()
}

/// Encodes in 16 bits how many Seqs before a record were not yet synced; rounds up.
pub(crate) fn encode_unsynced(count: u64) -> u16 {
    let encoded = if count < UNSYNCED_EXACT {
        count
    } else {
        UNSYNCED_EXACT | count.div_ceil(UNSYNCED_UNIT).min(UNSYNCED_EXACT - 1)
    };
    u16::try_from(encoded).unwrap_or(UNSYNCED_UNKNOWN)
}

/// Decodes that count, which may be larger by less than a unit; `None` if it was too large to
/// encode.
pub(crate) fn decode_unsynced(encoded: u16) -> Option<u64> {
    let value = u64::from(encoded);
    match encoded {
        UNSYNCED_UNKNOWN => None,
        _ if value < UNSYNCED_EXACT => Some(value),
        _ => Some((value & (UNSYNCED_EXACT - 1)) * UNSYNCED_UNIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Offset = Offset(4096);

    fn header() -> RecordHeader {
        let flags = Flags::default().more(true);
        RecordHeader { body_check: 1, body_len: 100, flags, unsynced: 3, index: Index(4), age: 5 }
    }

    #[test]
    fn no_flipped_bit_and_no_other_place_passes() {
        let key = Key::new(&[1; 48]);
        let bytes = header().encode(key, PLACE);
        assert_eq!(RecordHeader::decode(&bytes, key, PLACE), Some(header()));
        for bit in 0..HEADER * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&damaged, key, PLACE), None, "bit {bit}");
        }
        assert_eq!(RecordHeader::decode(&bytes, key, Offset(4104)), None);
        assert_eq!(RecordHeader::decode(&bytes, Key::new(&[2; 48]), PLACE), None);
        assert_eq!(RecordHeader::decode(&[0; HEADER], key, PLACE), None);
    }

    /// A header that says `body` is what was pushed.
    fn header_of(body: &[u8], is_extended: bool) -> RecordHeader {
        let flags = Flags::default().extended(is_extended);
        let body_len = u32::try_from(body.len()).unwrap();
        RecordHeader { body_check: crc32(body), body_len, flags, ..header() }
    }

    #[test]
    fn only_a_body_that_is_said_to_have_extensions_is_looked_into() {
        for (body, extended) in [
            (&b"\x00\x00xyz"[..], Verified::Payload(2)),
            (b"\x04\x00\x83\x01\x00Axyz", Verified::Newer),
            (b"\x04\x00\x83\x09\x00Axyz", Verified::Damaged),
        ] {
            assert_eq!(header_of(body, false).verify(body), Verified::Payload(0), "{body:?}");
            assert_eq!(header_of(body, true).verify(body), extended, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn unsynced_is_never_told_too_small(count in 0u64..1 << 40) {
            match decode_unsynced(encode_unsynced(count)) {
                Some(told) => prop_assert!((count..count + UNSYNCED_UNIT).contains(&told)),
                None => prop_assert!(count > 100_000_000),
            }
        }

        /// An entry put between those of a message that this version wrote: one that may be
        /// skipped changes nothing, one that must be known makes the record newer, and bytes that
        /// were changed later are damage in either.
        #[test]
        fn newer_is_told_from_damaged(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4),
            at in 0usize..5,
            tag: u8,
            content in prop::collection::vec(any::<u8>(), 0..20),
            payload: Vec<u8>,
            bit: prop::sample::Index,
        ) {
            let entry = |tag: u8, content: &[u8]| {
                let len = u16::try_from(content.len()).unwrap();
                [&[tag][..], &len.to_le_bytes(), content].concat()
            };
            let named = |value: &Vec<u8>| entry(1, &[b"\x01k", &value[..]].concat());
            let mut entries: Vec<_> = values.iter().map(named).collect();
            entries.insert(at.min(entries.len()), entry(tag, &content));
            let entries = entries.concat();
            let len = u16::try_from(entries.len()).unwrap().to_le_bytes();
            let mut body = [&len[..], &entries, &payload].concat();
            let header = header_of(&body, true);
            let is_known = tag < 0x80 || [0x81, 0x82].contains(&tag);
            let payload = Verified::Payload(body.len() - payload.len());
            prop_assert_eq!(header.verify(&body), if is_known { payload } else { Verified::Newer });
            let bit = bit.index(body.len() * 8);
            body[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(header.verify(&body), Verified::Damaged);
        }

        #[test]
        fn garbage_never_panics(bytes: [u8; HEADER]) {
            let key = Key::new(&[1; 48]);
            prop_assert_eq!(RecordHeader::decode(&bytes, key, Offset::START), None);
        }
    }
}
