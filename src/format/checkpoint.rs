//! A checkpoint: hints that save time, in one of two slots.

use super::FORMAT_VERSION;
use super::address::Ordinal;
use super::bytes::{put, take, to_u64, u16_at, u32_at, u64_at};
use super::checksum::crc32_of_both;
use super::limits::{NUMBER_END, TIME_END, is_number};
use super::ordinals::{OrdinalRanges, Ordinals};
use crate::ranges::Ranges;
use crate::time::{Anchor, BootId, KnownTime, Time};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

const MAGIC: [u8; 8] = *b"keepqchk";
const VERSION: usize = 8;
const BODY_LEN: usize = 12;
const GENERATION: usize = 16;
const CHECK: usize = 24;
/// Bytes before the body.
pub(crate) const HEADER: usize = 32;
const _: () = assert!(CHECK + 4 <= HEADER);

/// The hints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) queue_id: [u8; 16],
    pub(crate) epoch: u64,
    /// Every Seq up to here was durable.
    pub(crate) watermark: u64,
    pub(crate) seq_limit: u64,
    /// Those that are lost, then every segment there was, in the order of the log, then those being
    /// made.
    pub(crate) segments: ListedSegments,
    /// Every Seq up to here is in a listed segment, or was settled and let go, or is unaccounted.
    pub(crate) accounted: u64,
    /// Numbers that no listed segment has and that were not settled: never given out, or lost.
    pub(crate) unaccounted: Ranges,
    /// The newest time in the log.
    pub(crate) newest_time: Time,
    /// No ordinal from this one on had been given to a segment.
    pub(crate) next_ordinal: Ordinal,
    /// What later versions of format 1 added to the end of the body.
    #[serde(skip)]
    pub(crate) added: Added,
}

/// What a body has at its end that was not there from the first.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Added {
    /// When it was written, on the time line of the queue, and how far that was ahead of UTC.
    pub(crate) clock: KnownTime,
    pub(crate) offset: ConsumerOffset,
    /// Added later than those.
    #[serde(skip)]
    pub(crate) anchor: Option<Anchor>,
    /// Added later than that.
    #[serde(skip)]
    pub(crate) apart: Apart,
}

/// Segments that are not in the log, and whose files stay, or may come back.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Apart {
    /// Those in the list that are lost, and were told to be.
    pub(crate) lost: Ordinals,
    /// Those that never count again, since others have some of their numbers. The list has none of
    /// them.
    pub(crate) left_out: Ordinals,
    /// Those that no list had with a message before an open did not find them: they may have been
    /// lost, or never made.
    pub(crate) unseen: OrdinalRanges,
}

impl Apart {
    /// Whether each of them may have been made before this one.
    fn is_below(&self, next: Ordinal) -> bool {
        let last = [self.lost.last(), self.left_out.last(), self.unseen.last()];
        last.into_iter().flatten().all(|ordinal| ordinal < next)
    }
}

/// An anchor as it is stored: the id of the boot (0: there is none), the time and the nanoseconds.
type StoredAnchor = ([u8; 16], Time, u64);

impl Added {
    /// What the end of a body says. One that ends before has none of it, and a hint that cannot be
    /// is none.
    fn decode(from: &[u8]) -> Self {
        let Ok((added, rest)) = postcard::take_from_bytes::<Self>(from) else {
            return Self::default();
        };
        if !added.is_possible() {
            return Self::default();
        }
        let Ok((stored, rest)) = postcard::take_from_bytes::<StoredAnchor>(rest) else {
            return added;
        };
        let (boot, time, nanos) = stored;
        let boot = BootId::new(u128::from_le_bytes(boot)).filter(|_| time.0 < TIME_END);
        let anchor = boot.map(|boot| Anchor { boot, time, nanos });
        let apart = postcard::take_from_bytes::<Apart>(rest).map(|(apart, _)| apart);
        Self { anchor, apart: apart.unwrap_or_default(), ..added }
    }

    fn encode(&self) -> Vec<u8> {
        let plain = "plain numbers encode into a growing Vec";
        let anchor: StoredAnchor = self.anchor.map_or_else(Default::default, |anchor| {
            (anchor.boot.get().to_le_bytes(), anchor.time, anchor.nanos)
        });
        let body = postcard::to_stdvec(self).expect(plain);
        let body = postcard::to_extend(&anchor, body).expect(plain);
        postcard::to_extend(&self.apart, body).expect(plain)
    }

    /// Whether its numbers keep to the limits of the format.
    fn is_possible(&self) -> bool {
        let Self { clock, offset, .. } = self;
        let numbers = [offset.floor, offset.cursor, offset.ordinal.0];
        let has_times = clock.time.0 < TIME_END && clock.shift.0.unsigned_abs() < TIME_END;
        has_times && numbers.iter().all(|&number| number < NUMBER_END)
    }
}

/// How far consumers are: a hint.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerOffset {
    /// Every Seq below this one is settled.
    pub(crate) floor: u64,
    /// No Seq from this one on was handed out.
    pub(crate) cursor: u64,
    /// The segment that has the message `floor`, and its index there; no segment if there is none.
    pub(crate) ordinal: Ordinal,
    pub(crate) index: u32,
}

/// A segment in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64, u64)")]
pub(crate) struct Listed {
    pub(crate) ordinal: Ordinal,
    /// 0 if it holds nothing.
    pub(crate) first_seq: u64,
    /// How many Seqs there are from its first to its last, 0 while in use.
    pub(crate) span: u64,
}

/// Its fields as they are stored. Looked at one by one, so that a list that is made of holes takes
/// no memory.
impl TryFrom<(u64, u64, u64)> for Listed {
    type Error = &'static str;

    fn try_from((ordinal, first_seq, span): (u64, u64, u64)) -> Result<Self, Self::Error> {
        let is_possible = is_number(ordinal) && first_seq < NUMBER_END && span < NUMBER_END;
        let listed = Self { ordinal: Ordinal(ordinal), first_seq, span };
        if is_possible { Ok(listed) } else { Err("a number that no segment can have") }
    }
}

/// A list of segments, in the order of the log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ListedSegments {
    list: Vec<Listed>,
    /// The same by their ordinals, once one was sought.
    #[serde(skip)]
    by_ordinal: OnceLock<Vec<Listed>>,
}

impl ListedSegments {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Listed> {
        self.list.iter()
    }

    /// The segment with this ordinal.
    pub(crate) fn of(&self, ordinal: Ordinal) -> Option<&Listed> {
        let sorted = self.by_ordinal.get_or_init(|| {
            let mut sorted = self.list.clone();
            sorted.sort_by_key(|listed| listed.ordinal);
            sorted
        });
        let at = sorted.binary_search_by_key(&ordinal, |listed| listed.ordinal).ok()?;
        sorted.get(at)
    }
}

impl PartialEq for ListedSegments {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Eq for ListedSegments {}

impl From<Vec<Listed>> for ListedSegments {
    fn from(list: Vec<Listed>) -> Self {
        Self { list, by_ordinal: OnceLock::new() }
    }
}

/// What the bytes of one slot turn out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "made twice an open")]
pub(crate) enum DecodedCheckpoint {
    Valid { generation: u64, checkpoint: Checkpoint },
    Newer(u16),
    Invalid,
}

impl Checkpoint {
    /// Whether this segment had been made, and let go, when the list was written.
    pub(crate) fn let_go(&self, ordinal: Ordinal) -> bool {
        ordinal < self.next_ordinal
            && self.segments.of(ordinal).is_none()
            && !self.is_unseen(ordinal)
    }

    /// Whether this segment may have been lost before it was listed.
    pub(crate) fn is_unseen(&self, ordinal: Ordinal) -> bool {
        self.added.apart.unseen.contains(ordinal)
    }

    /// Whether this segment counts if it is back: it was lost, or may have been.
    pub(crate) fn awaits(&self, ordinal: Ordinal) -> bool {
        self.knows_lost(ordinal) || self.is_unseen(ordinal)
    }

    /// Whether this segment was known to be lost.
    pub(crate) fn knows_lost(&self, ordinal: Ordinal) -> bool {
        self.added.apart.lost.contains(ordinal)
    }

    /// Whether this one says the same, but for how far consumers are, and when it was written.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let numbers = |of: &Self| {
            (of.epoch, of.watermark, of.seq_limit, of.accounted, of.newest_time, of.next_ordinal)
        };
        numbers(self) == numbers(other)
            && (self.queue_id, self.added.clock.shift) == (other.queue_id, other.added.clock.shift)
            && (&self.segments, &self.unaccounted) == (&other.segments, &other.unaccounted)
            && self.added.apart == other.added.apart
    }

    /// The largest ordinal in the list of those that were not lost.
    pub(crate) fn last_ordinal(&self) -> Ordinal {
        let ordinals = self.segments.iter().map(|listed| listed.ordinal);
        ordinals.filter(|&one| !self.knows_lost(one)).max().unwrap_or(Ordinal::NONE)
    }

    /// The segments that had records.
    pub(crate) fn used(&self) -> impl DoubleEndedIterator<Item = &Listed> {
        self.segments.iter().filter(|listed| listed.first_seq > 0)
    }

    /// The segment with this ordinal, if it is listed and had records.
    pub(crate) fn used_segment(&self, ordinal: Ordinal) -> Option<&Listed> {
        self.segments.of(ordinal).filter(|listed| listed.first_seq > 0)
    }

    /// The newest segment that had records, and was not lost.
    pub(crate) fn last_used_ordinal(&self) -> Ordinal {
        let mut newest = self.used().rev().map(|listed| listed.ordinal);
        newest.find(|&one| !self.knows_lost(one)).unwrap_or(Ordinal::NONE)
    }

    /// The last Seq that a listed segment certainly had when the list was written; only the newest
    /// one was in use then.
    pub(crate) fn last_seq_of(&self, listed: &Listed) -> u64 {
        match listed.span {
            0 => self.accounted,
            span => listed.first_seq.saturating_add(span) - 1,
        }
    }

    /// The first and the last Seq that a listed segment had when the list was written, one at
    /// least.
    pub(crate) fn numbers_of(&self, listed: &Listed) -> (u64, u64) {
        (listed.first_seq, self.last_seq_of(listed).max(listed.first_seq))
    }

    /// The last Seq that was durable in a segment that is listed, or was when it was lost.
    pub(crate) fn durable_end_of(&self, ordinal: Ordinal) -> Option<u64> {
        let listed = self.segments.of(ordinal).filter(|listed| listed.first_seq > 0)?;
        Some(self.last_seq_of(listed).min(self.watermark))
    }

    pub(crate) fn encode(&self, generation: u64) -> Vec<u8> {
        let plain = "plain numbers encode into a growing Vec";
        let mut body = postcard::to_stdvec(self).expect(plain);
        body.extend(self.added.encode());
        let len = u32::try_from(body.len()).expect("a list of segments is far below 4 GiB");
        let mut out = vec![0; HEADER];
        put(&mut out, 0, MAGIC);
        put(&mut out, VERSION, FORMAT_VERSION.to_le_bytes());
        put(&mut out, BODY_LEN, len.to_le_bytes());
        put(&mut out, GENERATION, generation.to_le_bytes());
        let check = crc32_of_both(&out[..CHECK], &body);
        put(&mut out, CHECK, check.to_le_bytes());
        out.extend(body);
        out
    }

    pub(crate) fn decode(from: &[u8]) -> DecodedCheckpoint {
        if from.len() < HEADER || take(from, 0) != MAGIC {
            return DecodedCheckpoint::Invalid;
        }
        let body_len = u64::from(u32_at(from, BODY_LEN));
        let rest = &from[HEADER..];
        if body_len > to_u64(rest.len()) {
            return DecodedCheckpoint::Invalid;
        }
        let body = &rest[..usize::try_from(body_len).unwrap_or(0)];
        if crc32_of_both(&from[..CHECK], body) != u32_at(from, CHECK) {
            return DecodedCheckpoint::Invalid;
        }
        match (u16_at(from, VERSION), postcard::take_from_bytes::<Self>(body)) {
            (version, _) if version > FORMAT_VERSION => DecodedCheckpoint::Newer(version),
            (_, Ok((checkpoint, rest))) => {
                let mut added = Added::decode(rest);
                if !added.apart.is_below(checkpoint.next_ordinal) {
                    added.apart = Apart::default();
                }
                let checkpoint = Self { added, ..checkpoint };
                checkpoint.of_generation(u64_at(from, GENERATION))
            }
            (_, Err(_)) => DecodedCheckpoint::Invalid,
        }
    }

    /// What was decoded, if its numbers keep to the limits of the format.
    fn of_generation(self, generation: u64) -> DecodedCheckpoint {
        let numbers = [generation, self.epoch, self.watermark, self.accounted];
        let ends = [self.seq_limit, self.next_ordinal.0];
        let is_possible = numbers.iter().all(|&number| number < NUMBER_END)
            && ends.iter().all(|&end| end <= NUMBER_END)
            && self.unaccounted.last().is_none_or(|last| last < NUMBER_END)
            && self.newest_time.0 < TIME_END;
        if is_possible {
            DecodedCheckpoint::Valid { generation, checkpoint: self }
        } else {
            DecodedCheckpoint::Invalid
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Shift;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn checkpoint() -> Checkpoint {
        let segments = vec![
            Listed { ordinal: Ordinal(2), first_seq: 1, span: 10 },
            Listed { ordinal: Ordinal(5), first_seq: 11, span: 0 },
        ];
        let mut unaccounted = Ranges::default();
        unaccounted.insert(5, 7);
        Checkpoint {
            queue_id: [1; 16],
            epoch: 2,
            watermark: 14,
            seq_limit: 100,
            segments: segments.into(),
            accounted: 14,
            unaccounted,
            newest_time: Time(1_700_000_000_000),
            next_ordinal: Ordinal(6),
            added: Added {
                clock: KnownTime { time: Time(7), shift: Shift(-8) },
                offset: ConsumerOffset { floor: 9, cursor: 10, ordinal: Ordinal(11), index: 12 },
                anchor: BootId::new(13).map(|boot| Anchor { boot, time: Time(14), nanos: 15 }),
                apart: Apart {
                    lost: [Ordinal(2)].into_iter().collect(),
                    left_out: [Ordinal(4)].into_iter().collect(),
                    unseen: OrdinalRanges::default()
                        .with_all_but([(Ordinal(1), Ordinal(1))].into_iter(), &BTreeSet::new()),
                },
            },
        }
    }

    #[test]
    fn comes_back_and_tells_what_was_let_go() {
        let bytes = checkpoint().encode(9);
        let valid = DecodedCheckpoint::Valid { generation: 9, checkpoint: checkpoint() };
        assert_eq!(Checkpoint::decode(&bytes), valid);
        let ignored = (CHECK + 4) * 8..HEADER * 8;
        for bit in (0..bytes.len() * 8).filter(|bit| !ignored.contains(bit)) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Checkpoint::decode(&damaged), DecodedCheckpoint::Invalid, "bit {bit}");
        }
        // What is not made yet cannot be apart.
        let mut early = checkpoint();
        early.added.apart.left_out = [early.next_ordinal].into_iter().collect();
        let DecodedCheckpoint::Valid { checkpoint: read, .. } =
            Checkpoint::decode(&early.encode(9))
        else {
            panic!("a valid one");
        };
        assert_eq!(read.added, Added { apart: Apart::default(), ..checkpoint().added });
        let let_go = |ordinal| checkpoint().let_go(Ordinal(ordinal));
        assert!(let_go(3) && !let_go(1) && !let_go(2) && !let_go(6));
    }

    /// Bodies that were written before something was added to their end, and after it.
    #[test]
    fn a_body_may_end_before_what_was_added() {
        let bytes = checkpoint().encode(9);
        let with_body = |len: usize| {
            let mut bytes = bytes[..len].to_vec();
            let body_len = u32::try_from(len - HEADER).unwrap();
            put(&mut bytes, BODY_LEN, body_len.to_le_bytes());
            let check = crc32_of_both(&bytes[..CHECK], &bytes[HEADER..]);
            put(&mut bytes, CHECK, check.to_le_bytes());
            Checkpoint::decode(&bytes)
        };
        let added = checkpoint().added.encode().len();
        let first = postcard::to_stdvec(&checkpoint().added).unwrap().len();
        let of = |added| DecodedCheckpoint::Valid {
            generation: 9,
            checkpoint: Checkpoint { added, ..checkpoint() },
        };
        let apart = postcard::to_stdvec(&checkpoint().added.apart).unwrap().len();
        let without_apart = Added { apart: Apart::default(), ..checkpoint().added };
        let without_anchor = of(Added { anchor: None, ..without_apart.clone() });
        let (old, without_apart) = (of(Added::default()), of(without_apart));
        assert_eq!(with_body(bytes.len() - added), old);
        assert_eq!(with_body(bytes.len() - added + first - 1), old, "half of it");
        assert_eq!(with_body(bytes.len() - added + first), without_anchor);
        assert_eq!(with_body(bytes.len() - apart - 1), without_anchor, "half of the anchor");
        assert_eq!(with_body(bytes.len() - apart), without_apart);
        assert_eq!(with_body(bytes.len() - 1), without_apart, "half of what is apart");
    }

    #[test]
    fn no_number_is_out_of_the_limits() {
        let decoded = |change: &dyn Fn(&mut Checkpoint)| {
            let mut checkpoint = checkpoint();
            change(&mut checkpoint);
            Checkpoint::decode(&checkpoint.encode(9)) != DecodedCheckpoint::Invalid
        };
        for (number, is_possible) in [(NUMBER_END - 1, true), (NUMBER_END, false)] {
            let listed = |ordinal, first_seq, span| {
                vec![Listed { ordinal: Ordinal(ordinal), first_seq, span }].into()
            };
            assert_eq!(decoded(&|it| it.epoch = number), is_possible);
            assert_eq!(decoded(&|it| it.watermark = number), is_possible);
            assert_eq!(decoded(&|it| it.accounted = number), is_possible);
            assert_eq!(decoded(&|it| it.unaccounted.insert(9, number)), is_possible);
            assert_eq!(decoded(&|it| it.segments = listed(number, 1, 1)), is_possible);
            assert_eq!(decoded(&|it| it.segments = listed(1, number, 1)), is_possible);
            assert_eq!(decoded(&|it| it.segments = listed(1, 1, number)), is_possible);
            assert_eq!(decoded(&|it| it.seq_limit = number + 1), is_possible);
            assert_eq!(decoded(&|it| it.next_ordinal = Ordinal(number + 1)), is_possible);
            let bytes = checkpoint().encode(number);
            let is_read = Checkpoint::decode(&bytes) != DecodedCheckpoint::Invalid;
            assert_eq!(is_read, is_possible);
        }
        assert!(decoded(&|it| it.newest_time = Time(TIME_END - 1)));
        assert!(!decoded(&|it| it.newest_time = Time(TIME_END)));
        let nothing = || vec![Listed { ordinal: Ordinal::NONE, first_seq: 0, span: 0 }].into();
        assert!(!decoded(&|it| it.segments = nothing()), "what a hole says");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, tail: Vec<u8>) {
            prop_assert_eq!(Checkpoint::decode(&bytes), DecodedCheckpoint::Invalid);
            let mut bytes = checkpoint().encode(1);
            bytes.extend(tail);
            prop_assert_ne!(Checkpoint::decode(&bytes), DecodedCheckpoint::Invalid);
        }
    }
}
