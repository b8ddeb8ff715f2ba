//! The hints. From the page: "CHECKPOINT".

use super::Refusal;
use super::bytes::{crc32, slice, u16_at, u32_at, u64_at};
use super::segment::{NUMBER_END, TIME_END};
use serde::Deserialize;

/// A larger file is none.
const LARGEST: usize = 256 << 20;

/// The body, without what later versions add behind it.
#[derive(Clone, Deserialize, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) queue_id: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) watermark: u64,
    pub(crate) seq_limit: u64,
    pub(crate) segments: Vec<Listed>,
    pub(crate) accounted: u64,
    /// Numbers that were never given out, or are lost.
    pub(crate) unaccounted: Vec<(u64, u64)>,
    pub(crate) newest_time: u64,
    pub(crate) next_ordinal: u64,
    #[serde(skip)]
    pub(crate) added: Added,
    #[serde(skip)]
    pub(crate) anchor: Option<Anchor>,
    #[serde(skip)]
    pub(crate) apart: Apart,
}

/// Segments that are not in the log, by their ordinals, which rise.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Debug)]
pub(crate) struct Apart {
    /// Of the list: those that were known to be lost.
    pub(crate) lost: Vec<u64>,
    /// Those that never count.
    pub(crate) left_out: Vec<u64>,
    /// Ranges of those that no list has named, and no open has found.
    pub(crate) unseen: Vec<(u64, u64)>,
}

/// Where the queue's time lies on a boot clock.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, Debug)]
pub(crate) struct Anchor {
    /// 0: there is none.
    pub(crate) boot: [u8; 16],
    pub(crate) time: u64,
    pub(crate) nanos: u64,
}

/// What a body may have behind that.
#[derive(Clone, Copy, Default, Deserialize, Debug)]
pub(crate) struct Added {
    /// When it was written.
    pub(crate) time: u64,
    /// How far that was ahead of UTC.
    pub(crate) clock_shift: i64,
    /// Every Seq below it is settled.
    pub(crate) floor: u64,
    /// No Seq from it on was handed out.
    pub(crate) cursor: u64,
    /// Of the segment that has the floor; 0 if there is none.
    pub(crate) floor_ordinal: u64,
    pub(crate) floor_index: u32,
}

/// A segment of its list.
#[derive(Clone, Copy, Deserialize, Debug)]
pub(crate) struct Listed {
    pub(crate) ordinal: u64,
    /// 0 if it holds nothing.
    pub(crate) first_seq: u64,
    /// From its first Seq to its last; 0 while it is in use.
    pub(crate) span: u64,
}

impl Checkpoint {
    /// Of the valid slots, the one with the larger generation; of two, the second.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, Refusal> {
        if bytes.len() > LARGEST {
            return Ok(None);
        }
        let half = Some(bytes.len() / 2).filter(|half| half.is_multiple_of(4096));
        let (first, second) = bytes.split_at(half.unwrap_or(bytes.len()));
        let mut newest = None;
        for slot in [first, second] {
            let Some((generation, body)) = valid(slot) else { continue };
            if u16_at(slot, 8) > Some(1) {
                return Err(Refusal::Newer);
            }
            if let Some(checkpoint) = Self::of(body)
                && generation < NUMBER_END
                && newest.as_ref().is_none_or(|(other, _)| generation >= *other)
            {
                newest = Some((generation, checkpoint));
            }
        }
        Ok(newest.map(|(_, checkpoint)| checkpoint))
    }

    /// None if it has a number beyond its limit.
    fn of(body: &[u8]) -> Option<Self> {
        let (mut checkpoint, rest) = postcard::take_from_bytes::<Self>(body).ok()?;
        // What is left of the body behind that is for later versions.
        let added = postcard::take_from_bytes::<Added>(rest);
        if let Some((added, rest)) = added.ok().filter(|(added, _)| added.is_possible()) {
            checkpoint.added = added;
            if let Ok((anchor, rest)) = postcard::take_from_bytes::<Anchor>(rest) {
                let is_one = anchor.boot != [0; 16] && anchor.time < TIME_END;
                checkpoint.anchor = Some(anchor).filter(|_| is_one);
                let apart = postcard::take_from_bytes::<Apart>(rest).map(|(apart, _)| apart);
                let is_possible = |apart: &Apart| apart.is_possible(checkpoint.next_ordinal);
                checkpoint.apart = apart.ok().filter(is_possible).unwrap_or_default();
            }
        }
        checkpoint.is_possible().then_some(checkpoint)
    }

    /// The first and the last Seq that a listed segment had when the list was written.
    pub(crate) fn range_of(&self, listed: &Listed) -> (u64, u64) {
        (listed.first_seq, self.last_of(listed).max(listed.first_seq))
    }

    /// The last Seq that it had, or else the last one that is accounted for.
    pub(crate) fn last_of(&self, listed: &Listed) -> u64 {
        match listed.span {
            0 => self.accounted,
            span => listed.first_seq.saturating_add(span - 1),
        }
    }

    /// The last in the list that held something and was not lost.
    pub(crate) fn last_used(&self) -> Option<&Listed> {
        let used = self.segments.iter().filter(|listed| listed.first_seq > 0);
        used.rev().find(|listed| !self.apart.lost.contains(&listed.ordinal))
    }

    fn is_possible(&self) -> bool {
        let numbers = [self.epoch, self.watermark, self.accounted];
        let ends = [self.seq_limit, self.next_ordinal];
        let mut before = 0;
        let mut is_in_order = |&(first, last): &(u64, u64)| {
            let is_behind = before < first && first <= last;
            before = last;
            is_behind
        };
        numbers.iter().all(|&number| number < NUMBER_END)
            && ends.iter().all(|&end| end <= NUMBER_END)
            && self.unaccounted.iter().all(&mut is_in_order)
            && self.unaccounted.iter().all(|&(_, last)| last < NUMBER_END)
            && self.segments.iter().all(Listed::is_possible)
            && self.newest_time < TIME_END
    }
}

impl Apart {
    fn is_possible(&self, next_ordinal: u64) -> bool {
        let is_possible = |ordinals: &[u64]| {
            ordinals.is_sorted_by(|a, b| a < b)
                && ordinals.iter().all(|ordinal| (1..next_ordinal).contains(ordinal))
        };
        let unseen: Vec<u64> = self.unseen.iter().map(|&(first, _)| first).collect();
        is_possible(&self.lost)
            && is_possible(&self.left_out)
            && is_possible(&unseen)
            && self.unseen.iter().all(|&(first, last)| first <= last && last < next_ordinal)
            && self.unseen.is_sorted_by(|a, b| a.1 < b.0)
    }
}

impl Listed {
    fn is_possible(&self) -> bool {
        (1..NUMBER_END).contains(&self.ordinal)
            && self.first_seq < NUMBER_END
            && self.span < NUMBER_END
    }
}

impl Added {
    fn is_possible(&self) -> bool {
        let numbers = [self.floor, self.cursor, self.floor_ordinal];
        numbers.iter().all(|&number| number < NUMBER_END)
            && self.time < TIME_END
            && self.clock_shift.unsigned_abs() < TIME_END
    }
}

/// Generation and body of a slot whose check holds.
fn valid(slot: &[u8]) -> Option<(u64, &[u8])> {
    let header = slice(slot, 0, 24).filter(|header| header.starts_with(b"keepqchk"))?;
    let body = slice(slot, 32, u32_at(slot, 12)?)?;
    let is_valid = u32_at(slot, 24)? == crc32(&[header, body]);
    is_valid.then_some((u64_at(slot, 16)?, body))
}
