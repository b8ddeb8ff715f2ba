//! One file: its header, its marks and its slots. From the page: "A segment", "A compacted
//! segment", "A slot".

use super::bytes::{crc32, fold_all, slice, u16_at, u32_at, u64_at};

const PAGE: u64 = 4096;
/// The largest segment, whose offsets fit into slots.
const LARGEST: u64 = ((1 << 29) - 1) * 8;
/// Ordinals and Seqs are below.
const LIMIT: u64 = 1 << 62;
const RECORD_HEADER: u64 = 24;
const SLOT: u64 = 16;
/// "At most 300".
const MOST_SOURCES: u64 = 300;

/// What a page at one of a segment's ends turns out to be.
enum HeaderPage {
    Unreadable,
    /// Of this version, in a header whose check holds, or fails.
    Newer(u64, bool),
    Valid,
}

/// Why a segment is none.
pub(super) enum NoSegment {
    /// Neither page has a header.
    Unreadable,
    /// A later version or a required feature: the queue is refused.
    Newer,
}

/// When its first record was placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activation {
    pub(super) first_seq: u64,
    pub(super) base_time: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Seal {
    /// Where its records end.
    pub(super) tail: u64,
    pub(super) count: u64,
    /// "The run ended here".
    pub(super) is_end: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) last_seq: u64,
    table: u64,
    pub(super) ordinals: Vec<u64>,
}

/// A file with a valid header.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    pub(super) name: &'a str,
    pub(super) bytes: &'a [u8],
    pub(super) queue_id: &'a [u8],
    pub(super) ordinal: u64,
    pub(super) predecessor: u64,
    pub(super) epoch: u64,
    pub(super) seq_limit: u64,
    /// Not 0 in a compacted segment, also if it has lost its list of them.
    pub(super) sources_count: u64,
    pub(super) activation: Option<Activation>,
    pub(super) seal: Option<Seal>,
    pub(super) sources: Option<Sources>,
    pub(super) key: u64,
}

/// The state in a slot's first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Ready,
    Delivered,
    Dying,
    Dead,
    Lost,
    Transient,
    /// The word's check fails, or it names no state.
    Unreadable,
}

/// What a slot says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) attempts: u64,
    pub(super) delay: Option<Delay>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Delay {
    /// Milliseconds since 1970.
    pub(super) end: u64,
    /// How long it was when it was given.
    pub(super) length: u64,
}

impl<'a> Segment<'a> {
    /// The header, from either page, and the marks, each from either page.
    pub(super) fn read(name: &'a str, bytes: &'a [u8]) -> Result<Self, NoSegment> {
        let size = bytes.len() as u64;
        let pages = [0, size.saturating_sub(PAGE)];
        let kinds = pages.map(|page| HeaderPage::read(bytes, page));
        let page = match kinds {
            [HeaderPage::Valid, _] => pages[0],
            [HeaderPage::Unreadable | HeaderPage::Newer(_, false), HeaderPage::Valid] => pages[1],
            [HeaderPage::Newer(_, true), _] | [_, HeaderPage::Newer(_, true)] => {
                return Err(NoSegment::Newer);
            }
            [HeaderPage::Newer(one, false), HeaderPage::Newer(other, false)] if one == other => {
                return Err(NoSegment::Newer);
            }
            _ => return Err(NoSegment::Unreadable),
        };
        let header = slice(bytes, page, PAGE).ok_or(NoSegment::Unreadable)?;
        Self::of(name, bytes, header)
    }

    fn of(name: &'a str, bytes: &'a [u8], header: &'a [u8]) -> Result<Self, NoSegment> {
        let at = |at| u64_at(header, at).ok_or(NoSegment::Unreadable);
        // Required features, checksum id, consumer groups.
        if at(16)? != 0 || header[10..12] != [1, 1] {
            return Err(NoSegment::Newer);
        }
        let words = [at(32)?, at(40)?, at(48)?, at(56)?, at(64)?, at(72)?];
        let mut segment = Self {
            name,
            bytes,
            queue_id: &header[32..48],
            ordinal: at(48)?,
            predecessor: at(56)?,
            epoch: at(72)?,
            seq_limit: at(88)?,
            sources_count: u32_at(header, 96).ok_or(NoSegment::Unreadable)?,
            activation: None,
            seal: None,
            sources: None,
            key: fold_all(0, &words),
        };
        let is_possible = segment.ordinal < LIMIT
            && segment.seq_limit < LIMIT
            && (3 * PAGE..=LARGEST).contains(&segment.size())
            && segment.size().is_multiple_of(PAGE)
            && at(80)? == segment.size();
        is_possible.then_some(()).ok_or(NoSegment::Unreadable)?;
        segment.activation =
            segment.mark(512).map(|(first_seq, base_time)| Activation { first_seq, base_time });
        segment.seal = segment.mark(1024).and_then(|(tail, second)| {
            let (count, is_end) = (second & 0xFFFF_FFFF, second >> 32 & 1 == 1);
            let last = count.saturating_sub(1);
            let fits = tail <= segment.slot_offset(last)? && count <= tail / RECORD_HEADER;
            fits.then_some(Seal { tail, count, is_end })
        });
        segment.sources = segment.read_sources();
        Ok(segment)
    }

    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn is_compacted(&self) -> bool {
        self.sources_count > 0
    }

    fn pages(&self) -> [u64; 2] {
        [0, self.size() - PAGE]
    }

    /// The two words of an activation (place 512) or a seal (place 1024).
    fn mark(&self, place: u64) -> Option<(u64, u64)> {
        self.pages().into_iter().find_map(|page| {
            let part = slice(self.bytes, page + place, 20)?;
            let (first, second) = (u64_at(part, 0)?, u64_at(part, 8)?);
            let check = fold_all(self.key, &[place, first, second]) >> 32;
            (u32_at(part, 16)? == check).then_some((first, second))
        })
    }

    fn read_sources(&self) -> Option<Sources> {
        if !(1..=MOST_SOURCES).contains(&self.sources_count) {
            return None;
        }
        let length = 16 + 8 * self.sources_count;
        self.pages().into_iter().find_map(|page| {
            let part = slice(self.bytes, page + 1536, length + 4)?;
            let crc = crc32(&[slice(part, 0, length)?]);
            let check = fold_all(self.key, &[1536, crc, length]) >> 32;
            (u32_at(part, length)? == check).then_some(())?;
            let ordinals = (16..length).step_by(8).filter_map(|at| u64_at(part, at)).collect();
            Some(Sources { last_seq: u64_at(part, 0)?, table: u64_at(part, 8)?, ordinals })
        })
    }

    /// The first and the last Seq of a sealed segment.
    pub(super) fn span(&self) -> Option<(u64, u64)> {
        let (first, count) = (self.activation?.first_seq, self.seal?.count);
        let last = match &self.sources {
            Some(sources) => sources.last_seq,
            None => first.saturating_add(count).saturating_sub(1),
        };
        (first <= last).then_some((first, last))
    }

    /// The same of a compacted segment that has all of its marks.
    pub(super) fn copied(&self) -> Option<(u64, u64)> {
        self.sources.as_ref()?;
        self.seal.filter(|seal| seal.count > 0)?;
        self.span()
    }

    /// Segments are made from older ones.
    pub(super) fn older_sources(&self) -> impl Iterator<Item = u64> + Clone + use<> {
        let ordinals = self.sources.as_ref().map(|sources| sources.ordinals.clone());
        let ordinal = self.ordinal;
        ordinals.into_iter().flatten().filter(move |&source| source < ordinal)
    }

    /// The Seq of a record. None if it has lost its number.
    pub(super) fn seq(&self, index: u64) -> Option<u64> {
        let first_seq = self.activation?.first_seq;
        let Some(sources) = &self.sources else { return first_seq.checked_add(index) };
        let word = u64_at(self.bytes, sources.table.checked_add(8 * index)?)?;
        let value = word & 0xFFFF_FFFF_FFFF;
        let check = fold_all(self.key, &[(1 << 33) + index, value]) >> 48;
        (word >> 48 == check).then_some(())?;
        first_seq.checked_add(value.checked_sub(1)?)
    }

    /// How many records it has at most, as one of these sources. Without its seal, its records end
    /// where the next source begins.
    pub(super) fn most_records(&self, sources: &[Self]) -> u64 {
        let most = (self.size() - 2 * PAGE) / (RECORD_HEADER + SLOT);
        let count = self.seal.map_or(most, |seal| seal.count);
        let Some(own) = self.activation else { return 0 };
        let others = sources.iter().filter(|other| !other.is_compacted());
        let starts = others.filter_map(|other| Some(other.activation?.first_seq));
        let next = starts.filter(|&start| start > own.first_seq).min();
        next.filter(|_| !self.is_compacted()).map_or(count, |next| count.min(next - own.first_seq))
    }

    /// The record that has this Seq, for the slot of it.
    pub(super) fn index(&self, seq: u64, count: u64) -> Option<u64> {
        if self.is_compacted() {
            return (0..count).find(|&index| self.seq(index) == Some(seq));
        }
        seq.checked_sub(self.activation?.first_seq).filter(|&index| index < count)
    }

    /// Where the slot of a record lies, and so where records before it end.
    pub(super) fn slot_offset(&self, index: u64) -> Option<u64> {
        self.size().checked_sub(PAGE)?.checked_sub(16 * index.checked_add(1)?)
    }

    pub(super) fn slot(&self, index: u64) -> Slot {
        let words = self
            .slot_offset(index)
            .and_then(|at| Some((u64_at(self.bytes, at)?, u64_at(self.bytes, at + 8)?)));
        let (first, second) = words.unwrap_or_default();
        let value = first & 0xFFFF_FFFF_FFFF;
        let is_whole = first >> 48 == fold_all(self.key, &[index, value]) >> 48;
        let state = match (first, value >> 44) {
            (0, _) => State::Ready,
            _ if !is_whole => State::Unreadable,
            (_, 0) => State::Ready,
            (_, 1) => State::Delivered,
            (_, 2) => State::Dying,
            (_, 3) => State::Dead,
            (_, 4) => State::Lost,
            (_, 5) => State::Transient,
            _ => State::Unreadable,
        };
        let attempts = match state {
            State::Unreadable => 1,
            _ => value >> 29 & 0x7FFF,
        };
        // What a power cut has left of the second word means nothing before the first is stored.
        let delay = self.delay(index, second).filter(|_| first != 0);
        Slot { state, attempts, delay }
    }

    /// What a slot's second word says.
    fn delay(&self, index: u64, word: u64) -> Option<Delay> {
        let value = word & ((1 << 53) - 1);
        let check = fold_all(self.key, &[(1 << 32) + index, value]) >> 53;
        (word != 0 && word >> 53 == check).then_some(())?;
        let not_before = value & ((1 << 41) - 1);
        let (exponent, fraction) = (value >> 48, value >> 41 & 0x7F);
        let length = match exponent {
            0 => fraction,
            _ => (128 + fraction) << (exponent - 1),
        };
        let end = self.activation?.base_time.saturating_add(not_before);
        Some(Delay { end, length })
    }
}

impl HeaderPage {
    fn read(bytes: &[u8], page: u64) -> Self {
        let Some(header) = slice(bytes, page, 512) else { return Self::Unreadable };
        if !header.starts_with(b"keepqseg") {
            return Self::Unreadable;
        }
        let is_whole = u32_at(header, 508) == Some(crc32(&[&header[..508]]));
        match u16_at(header, 8) {
            Some(1) if is_whole => Self::Valid,
            Some(version) if version > 1 => Self::Newer(version, is_whole),
            _ => Self::Unreadable,
        }
    }
}
