//! One file: its header, its marks and its slots. From the page: "A segment", "A compacted
//! segment", "A slot".

use super::bytes::{crc32, fold_all, i64_at, slice, u16_at, u32_at, u64_at};
use std::borrow::Cow;

const PAGE: u64 = 4096;
/// The largest segment, whose offsets fit into slots.
const LARGEST: u64 = ((1 << 29) - 1) * 8;
/// Ordinals, epochs and Seqs are below.
pub(super) const NUMBER_END: u64 = 1 << 62;
/// Times are below.
pub(super) const TIME_END: u64 = 1 << 48;
/// No segment begins with a larger Seq.
const LAST_FIRST_SEQ: u64 = NUMBER_END - (1 << 32);
/// How far the last Seq of a copy is from its first at most.
const MOST_SPAN: u64 = (1 << 48) - 2;
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
    /// As many as its header says; what the file does not have is zeros.
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) queue_id: &'a [u8],
    pub(super) ordinal: u64,
    pub(super) predecessor: u64,
    pub(super) epoch: u64,
    pub(super) seq_limit: u64,
    /// How far its times are ahead of UTC.
    pub(super) clock_shift: i64,
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
    /// The check of the second word fails.
    pub(super) has_lost_delay: bool,
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
        Self::of(name, bytes, header).ok_or(NoSegment::Unreadable)
    }

    /// `header`: the page whose header counts.
    fn of(name: &'a str, file: &'a [u8], header: &'a [u8]) -> Option<Self> {
        let at = |at| u64_at(header, at);
        let words = [at(32)?, at(40)?, at(48)?, at(56)?, at(64)?, at(72)?];
        let size = at(80)?;
        let is_possible = (3 * PAGE..=LARGEST).contains(&size) && size.is_multiple_of(PAGE);
        let bytes = is_possible.then(|| of_size(file, size))?;
        let mut segment = Self {
            name,
            bytes,
            queue_id: &header[32..48],
            ordinal: at(48)?,
            predecessor: at(56)?,
            epoch: at(72)?,
            seq_limit: at(88)?,
            clock_shift: i64_at(header, 104)?,
            sources_count: u32_at(header, 96)?,
            activation: None,
            seal: None,
            sources: None,
            key: fold_all(0, &words),
        };
        let possible = |(first_seq, base_time): (u64, u64)| {
            let is_possible = (1..=LAST_FIRST_SEQ).contains(&first_seq) && base_time < TIME_END;
            is_possible.then_some(Activation { first_seq, base_time })
        };
        segment.activation = match segment.mark_in(header, 512) {
            Some(words) => Some(possible(words)?),
            None => segment
                .pages()
                .into_iter()
                .find_map(|page| segment.mark_in(page, 512).and_then(possible)),
        };
        let pages = [header].into_iter().chain(segment.pages());
        let words = pages.clone().find_map(|page| segment.mark_in(page, 1024));
        let seal = words.map(|(tail, second)| Seal {
            tail,
            count: second & 0xFFFF_FFFF,
            is_end: second >> 32 & 1 == 1,
        });
        let sources = pages.into_iter().find_map(|page| segment.sources_in(page));
        segment.seal = seal.filter(|seal| segment.has_room_for(seal));
        segment.sources = sources.filter(|sources| segment.can_be_made_from(sources));
        Some(segment)
    }

    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn is_compacted(&self) -> bool {
        self.sources_count > 0
    }

    /// The last one, and the first.
    fn pages(&self) -> [&[u8]; 2] {
        let last = self.bytes.len() - PAGE as usize;
        [&self.bytes[last..], &self.bytes[..PAGE as usize]]
    }

    /// The two words of an activation (place 512) or a seal (place 1024).
    fn mark_in(&self, page: &[u8], place: u64) -> Option<(u64, u64)> {
        let part = slice(page, place, 20)?;
        let (first, second) = (u64_at(part, 0)?, u64_at(part, 8)?);
        let check = fold_all(self.key, &[place, first, second]) >> 32;
        let is_written = part.iter().any(|&byte| byte != 0);
        (is_written && u32_at(part, 16)? == check).then_some((first, second))
    }

    fn sources_in(&self, page: &[u8]) -> Option<Sources> {
        if !(1..=MOST_SOURCES).contains(&self.sources_count) {
            return None;
        }
        let length = 16 + 8 * self.sources_count;
        let part = slice(page, 1536, length + 4)?;
        let crc = crc32(&[slice(part, 0, length)?]);
        let check = fold_all(self.key, &[1536, crc, length]) >> 32;
        (u32_at(part, length)? == check).then_some(())?;
        let ordinals = (16..length).step_by(8).filter_map(|at| u64_at(part, at)).collect();
        Some(Sources { last_seq: u64_at(part, 0)?, table: u64_at(part, 8)?, ordinals })
    }

    /// Where the slots of this many records begin, if they have room.
    fn slots_of(&self, count: u64) -> Option<u64> {
        let slots = (self.size() - PAGE).checked_sub(SLOT.checked_mul(count)?)?;
        let room = self.size() - 2 * PAGE;
        (count <= room / (RECORD_HEADER + SLOT)).then_some(slots)
    }

    fn has_room_for(&self, seal: &Seal) -> bool {
        self.slots_of(seal.count).is_some_and(|slots| (PAGE..=slots).contains(&seal.tail))
    }

    /// Whether the numbers of a copy keep to the limits.
    fn can_be_made_from(&self, sources: &Sources) -> bool {
        let (Some(Activation { first_seq, .. }), Some(seal)) = (self.activation, self.seal) else {
            return false;
        };
        let least = seal.count.saturating_sub(1);
        let has_span = sources
            .last_seq
            .checked_sub(first_seq)
            .is_some_and(|span| (least..=MOST_SPAN).contains(&span));
        let table_end = (8 * seal.count).checked_add(sources.table);
        let has_table = sources.table >= seal.tail
            && sources.table.is_multiple_of(8)
            && table_end.is_some_and(|end| Some(end) <= self.slots_of(seal.count));
        has_span && has_table && sources.last_seq < NUMBER_END
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
        ordinals.into_iter().flatten().filter(move |source| (1..ordinal).contains(source))
    }

    /// The Seq of a record. None if it has lost its number.
    pub(super) fn seq(&self, index: u64) -> Option<u64> {
        let first_seq = self.activation?.first_seq;
        let Some(sources) = &self.sources else { return first_seq.checked_add(index) };
        let word = u64_at(&self.bytes, sources.table.checked_add(8 * index)?)?;
        let value = word & 0xFFFF_FFFF_FFFF;
        let check = fold_all(self.key, &[(1 << 33) + index, value]) >> 48;
        let behind = value.checked_sub(1).filter(|_| word >> 48 == check)?;
        let seq = first_seq.checked_add(behind)?;
        let is_possible = behind >= index && seq <= sources.last_seq && (index > 0 || behind == 0);
        is_possible.then_some(seq)
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
            .and_then(|at| Some((u64_at(&self.bytes, at)?, u64_at(&self.bytes, at + 8)?)));
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
        let second = if first == 0 { 0 } else { second };
        let delay = self.delay(index, second);
        Slot { state, attempts, delay, has_lost_delay: second != 0 && delay.is_none() }
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

/// A segment's bytes, in a file that may be longer or shorter.
fn of_size(file: &[u8], size: u64) -> Cow<'_, [u8]> {
    let size = size as usize;
    if let Some(bytes) = file.get(..size) {
        return Cow::Borrowed(bytes);
    }
    let mut bytes = vec![0; size];
    bytes[..file.len()].copy_from_slice(file);
    Cow::Owned(bytes)
}

impl HeaderPage {
    fn read(bytes: &[u8], page: u64) -> Self {
        let Some(header) = slice(bytes, page, PAGE) else { return Self::Unreadable };
        if !header.starts_with(b"keepqseg") {
            return Self::Unreadable;
        }
        let is_whole = u32_at(header, 508) == Some(crc32(&[&header[..508]]));
        match u16_at(header, 8) {
            // Required features, checksum id, consumer groups.
            Some(1) if is_whole && (u64_at(header, 16) != Some(0) || header[10..12] != [1, 1]) => {
                Self::Newer(2, true)
            }
            Some(1) if is_whole && is_possible(header) => Self::Valid,
            Some(version) if version > 1 => Self::Newer(version, is_whole),
            _ => Self::Unreadable,
        }
    }
}

/// Whether a header's numbers keep to the limits.
fn is_possible(header: &[u8]) -> bool {
    let is_number = |at| u64_at(header, at).is_some_and(|number| (1..NUMBER_END).contains(&number));
    is_number(48)
        && is_number(72)
        && u64_at(header, 88) <= Some(NUMBER_END)
        && i64_at(header, 104).is_some_and(|shift| shift.unsigned_abs() < TIME_END)
}
