//! Files of format 1 whose numbers are changed and whose checks are right all the same. Written
//! from `src/docs/format.md` alone: it shares no code with keepq.

use super::Dice;

pub(crate) const PAGE: usize = 4096;
const KEY_WORDS: usize = 6;
const LOW_48: u64 = (1 << 48) - 1;
const LOW_53: u64 = (1 << 53) - 1;

/// Offsets in a header page.
pub(crate) const ORDINAL: usize = 48;
pub(crate) const PREDECESSOR: usize = 56;
pub(crate) const GENERATION: usize = 64;
pub(crate) const EPOCH: usize = 72;
pub(crate) const SIZE: usize = 80;
pub(crate) const SEQ_LIMIT: usize = 88;
pub(crate) const SOURCE_COUNT: usize = 96;
pub(crate) const ACTIVATION: usize = 512;
pub(crate) const SEAL: usize = 1024;
pub(crate) const SOURCES: usize = 1536;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn fold_all(state: u64, words: &[u64]) -> u64 {
    words.iter().fold(state, |state, &word| {
        let x = (state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^ (x >> 32)
    })
}

fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let (mut crc, mut bit) = (n as u32, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
                bit += 1;
            }
            table[n] = crc;
            n += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| (crc >> 8) ^ TABLE[(crc as u8 ^ byte) as usize])
}

/// Something in a segment that has a check, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Checked {
    Mark { at: usize, place: usize },
    Sources { at: usize },
    Record { at: usize },
    State { at: usize, index: u64 },
    Delay { at: usize, index: u64 },
    Number { at: usize, index: u64 },
}

/// A segment, and what in it has a check that was right when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) bytes: Vec<u8>,
    checked: Vec<Checked>,
}

impl Segment {
    /// `None` if its first page has no valid header.
    pub(crate) fn read(bytes: Vec<u8>) -> Option<Self> {
        let is_valid = bytes.len() >= 3 * PAGE
            && bytes[..8] == *b"keepqseg"
            && u32_at(&bytes, 508) == crc32(&bytes[..508]);
        if !is_valid {
            return None;
        }
        let mut this = Self { bytes, checked: Vec::new() };
        let last = this.bytes.len() - PAGE;
        for page in [0, last] {
            let marks = [ACTIVATION, SEAL].map(|place| Checked::Mark { at: page + place, place });
            for mark in marks {
                this.note(mark);
            }
            this.note(Checked::Sources { at: page + SOURCES });
        }
        (PAGE..last - 24).step_by(8).for_each(|at| this.note(Checked::Record { at }));
        for index in 0..(last - PAGE) as u64 / 40 {
            let at = last - 16 * (index as usize + 1);
            this.note(Checked::State { at, index });
            this.note(Checked::Delay { at: at + 8, index });
        }
        if this.source_count() > 0 {
            let table = u64_at(&this.bytes, SOURCES + 8).min(1 << 40) as usize;
            for index in 0..u64::from(u32_at(&this.bytes, SEAL + 8)).min(2000) {
                this.note(Checked::Number { at: table + 8 * index as usize, index });
            }
        }
        Some(this)
    }

    fn note(&mut self, one: Checked) {
        if self.is_right(one) {
            self.checked.push(one);
        }
    }

    pub(crate) fn source_count(&self) -> usize {
        u32_at(&self.bytes, SOURCE_COUNT) as usize
    }

    fn key(&self) -> u64 {
        let words: Vec<u64> = (0..KEY_WORDS).map(|n| u64_at(&self.bytes, 32 + 8 * n)).collect();
        fold_all(0, &words)
    }

    /// The bits that say something in a word, and the check in the others; `None` if the word does
    /// not lie in the file.
    fn word(&self, at: usize, place: u64, mask: u64) -> Option<(u64, u64)> {
        let word = at.checked_add(8).filter(|&end| end <= self.bytes.len());
        let value = word.map(|_| u64_at(&self.bytes, at) & mask)?;
        Some((value, fold_all(self.key(), &[place, value]) & !mask))
    }

    /// Where the check of something is, and what it should be.
    fn check_of(&self, one: Checked) -> Option<(usize, Vec<u8>)> {
        let (bytes, key) = (&self.bytes, self.key());
        let high = |check: u64| ((check >> 32) as u32).to_le_bytes().to_vec();
        Some(match one {
            Checked::Mark { at, place } => {
                let words = [place as u64, u64_at(bytes, at), u64_at(bytes, at + 8)];
                (at + 16, high(fold_all(key, &words)))
            }
            Checked::Sources { at } => {
                let count = Some(self.source_count()).filter(|count| (1..=300).contains(count))?;
                let len = 16 + 8 * count;
                let crc = crc32(&bytes[at..at + len]);
                (at + len, high(fold_all(key, &[SOURCES as u64, crc.into(), len as u64])))
            }
            Checked::Record { at } => {
                let first = u64_at(bytes, at) >> 32 << 32;
                let words = [at as u64, first, u64_at(bytes, at + 8), u64_at(bytes, at + 16)];
                (at, high(fold_all(key, &words)))
            }
            Checked::State { at, index } => {
                let (value, check) = self.word(at, index, LOW_48)?;
                (at, (value | check).to_le_bytes().to_vec())
            }
            Checked::Delay { at, index } => {
                let (value, check) = self.word(at, 1 << 32 | index, LOW_53)?;
                (at, (value | check).to_le_bytes().to_vec())
            }
            Checked::Number { at, index } => {
                let (value, check) = self.word(at, 1 << 33 | index, LOW_48)?;
                (at, (value | check).to_le_bytes().to_vec())
            }
        })
    }

    /// Whether something is there, and its check is right.
    fn is_right(&self, one: Checked) -> bool {
        let Some((at, check)) = self.check_of(one) else { return false };
        let is_there = match one {
            Checked::Record { at } => self.bytes[at + 12] == 1,
            _ => self.bytes[at..at + check.len()].iter().any(|&byte| byte != 0),
        };
        is_there && self.bytes[at..at + check.len()] == check
    }

    /// Makes all checks right again.
    pub(crate) fn mend(&mut self) {
        let last = self.bytes.len() - PAGE;
        for page in [0, last] {
            let check = crc32(&self.bytes[page..page + 508]);
            self.bytes[page + 508..page + 512].copy_from_slice(&check.to_le_bytes());
        }
        for one in std::mem::take(&mut self.checked) {
            if let Some((at, check)) = self.check_of(one) {
                self.bytes[at..at + check.len()].copy_from_slice(&check);
            }
            self.checked.push(one);
        }
    }

    /// Puts a number at this offset of both header pages.
    pub(crate) fn put(&mut self, at: usize, value: u64) {
        let len = if at == SOURCE_COUNT { 4 } else { 8 };
        for page in [0, self.bytes.len() - PAGE] {
            self.bytes[page + at..page + at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
    }

    /// Changes some number: of the header, of a mark, a record, a slot or the Seq table.
    pub(crate) fn change(&mut self, dice: &mut Dice, value: impl Fn(&mut Dice, u64) -> u64) {
        if dice.one_in(3) || self.checked.is_empty() {
            let fields = [ORDINAL, PREDECESSOR, GENERATION, EPOCH, SIZE, SEQ_LIMIT, SOURCE_COUNT];
            let at = fields[dice.below(fields.len() as u64) as usize];
            let known = u64_at(&self.bytes, at);
            return self.put(at, value(dice, known));
        }
        // Marks are few, and say most.
        let marks = self.checked.iter().filter(|one| {
            matches!(one, Checked::Mark { .. } | Checked::Sources { .. } | Checked::Number { .. })
        });
        let marks: Vec<Checked> = marks.copied().collect();
        let few = if dice.one_in(2) && !marks.is_empty() { &marks } else { &self.checked };
        let one = few[dice.below(few.len() as u64) as usize];
        let (at, len) = match one {
            Checked::Mark { at, .. } => (at % PAGE + 8 * dice.below(2) as usize, 8),
            Checked::Sources { at } => (at % PAGE + 8 * dice.below(5) as usize, 8),
            Checked::Record { at } => {
                let (field, len) =
                    [(8, 4), (13, 1), (14, 2), (16, 4), (20, 4)][dice.below(5) as usize];
                (at + field, len)
            }
            Checked::State { at, .. } | Checked::Delay { at, .. } | Checked::Number { at, .. } => {
                (at, 6)
            }
        };
        let mut known = [0; 8];
        known[..len].copy_from_slice(&self.bytes[at..at + len]);
        let mut new = value(dice, u64::from_le_bytes(known));
        if matches!(one, Checked::State { .. }) && dice.one_in(2) {
            // Another state, or none that there is.
            new = u64::from_le_bytes(known) & !(15 << 44) | dice.below(7) << 44;
        }
        match one {
            Checked::Mark { .. } | Checked::Sources { .. } => self.put(at, new),
            _ => self.bytes[at..at + len].copy_from_slice(&new.to_le_bytes()[..len]),
        }
    }

    /// Puts these numbers into the Seq table, as they are after the first one.
    pub(crate) fn put_numbers(&mut self, numbers: &[u64]) {
        let table = u64_at(&self.bytes, SOURCES + 8) as usize;
        for (index, number) in numbers.iter().enumerate() {
            let at = table + 8 * index;
            self.bytes[at..at + 8].copy_from_slice(&(number + 1).to_le_bytes());
        }
    }

    /// Moves the last record towards the end; nothing lies behind it.
    pub(crate) fn move_last_record(&mut self, by: usize) {
        let is_record = |one: &Checked| matches!(one, Checked::Record { .. });
        let last = self.checked.iter_mut().rfind(|one| is_record(one));
        let Some(Checked::Record { at }) = last else { return };
        let len = 24 + u32_at(&self.bytes, *at + 8) as usize;
        self.bytes.copy_within(*at..*at + len, *at + by);
        self.bytes[*at..*at + by].fill(0);
        *at += by;
    }

    /// As if nothing had been placed in it.
    pub(crate) fn forget_marks(&mut self) {
        self.checked.retain(|one| !matches!(one, Checked::Mark { .. }));
        for at in [ACTIVATION, ACTIVATION + 8, ACTIVATION + 16, SEAL, SEAL + 8, SEAL + 16] {
            self.put(at, 0);
        }
    }

    /// The same in a file of another size: its slots and its last page move to the new end.
    pub(crate) fn resized(&self, size: usize) -> Self {
        let old = self.bytes.len();
        let kept = size - 2 * PAGE + PAGE / 2;
        let mut bytes = self.bytes[..kept].to_vec();
        let rest = size - kept;
        bytes.extend_from_slice(&self.bytes[old - rest..]);
        let mut checked = self.checked.clone();
        let moved = |at: usize| if at < kept { at } else { at + size - old };
        for one in &mut checked {
            match one {
                Checked::Mark { at, .. } | Checked::Sources { at } | Checked::Record { at } => {
                    *at = moved(*at);
                }
                Checked::State { at, .. }
                | Checked::Delay { at, .. }
                | Checked::Number { at, .. } => *at = moved(*at),
            }
        }
        let mut resized = Self { bytes, checked };
        resized.put(SIZE, size as u64);
        resized
    }

    /// Says that it was made from these, and has the Seqs of its records less some.
    pub(crate) fn make_copy(&mut self, ordinals: &[u64], gap: u64) {
        let last = self.bytes.len() - PAGE;
        let (first_seq, count) = (u64_at(&self.bytes, ACTIVATION), u32_at(&self.bytes, SEAL + 8));
        let first_seq = first_seq.min(1 << 62);
        let count = count.min(500);
        let table = (last - 24 * (count as usize + 2)) & !7;
        self.put(SOURCE_COUNT, ordinals.len() as u64);
        self.put(SOURCES, first_seq + (1 + gap) * u64::from(count.max(1) - 1));
        self.put(SOURCES + 8, table as u64);
        for (n, &ordinal) in ordinals.iter().enumerate() {
            self.put(SOURCES + 16 + 8 * n, ordinal);
        }
        for index in 0..u64::from(count) {
            let at = table + 8 * index as usize;
            self.bytes[at..at + 8].copy_from_slice(&(1 + index * (1 + gap)).to_le_bytes());
            self.checked.push(Checked::Number { at, index });
        }
        self.checked.retain(|one| !matches!(one, Checked::Sources { .. }));
        for page in [0, last] {
            self.checked.push(Checked::Sources { at: page + SOURCES });
        }
    }
}

/// The body of CHECKPOINT as a list of numbers: all of them are written in groups of seven bits.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) generation: u64,
    pub(crate) id: Vec<u8>,
    pub(crate) numbers: Vec<u64>,
}

impl Checkpoint {
    /// The newer one of the two slots.
    pub(crate) fn read(file: &[u8]) -> Option<Self> {
        let slots = file.chunks(file.len() / 2).filter(|slot| slot.starts_with(b"keepqchk"));
        let newest = slots.max_by_key(|slot| u64_at(slot, 16))?;
        let body = newest.get(32..32 + u32_at(newest, 12) as usize)?;
        let (id, rest) = body.split_at(16);
        let (mut numbers, mut number, mut shift) = (Vec::new(), 0, 0);
        for byte in rest {
            number |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                numbers.push(number);
                (number, shift) = (0, 0);
            }
        }
        Some(Self { generation: u64_at(newest, 16), id: id.to_vec(), numbers })
    }

    /// A file with this one alone.
    pub(crate) fn file(&self) -> Vec<u8> {
        let mut body = self.id.clone();
        for &number in &self.numbers {
            let mut rest = number;
            while rest >= 0x80 {
                body.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            body.push(rest as u8);
        }
        let mut out = b"keepqchk\x01\0\0\0".to_vec();
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend(crc32(&[&out[..], &body[..]].concat()).to_le_bytes());
        out.resize(32, 0);
        out.extend(body);
        out.resize(2 * out.len().next_power_of_two().max(PAGE), 0);
        out
    }
}
