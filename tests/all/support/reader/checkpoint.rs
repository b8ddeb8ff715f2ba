//! The hints. From the page: "CHECKPOINT".

use super::Refusal;
use super::bytes::{crc32, slice, u16_at, u32_at, u64_at};
use serde::Deserialize;

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
        let half = bytes.len() / 2;
        if !half.is_multiple_of(4096) {
            return Ok(None);
        }
        let (first, second) = bytes.split_at(half);
        let mut newest = None;
        for slot in [first, second] {
            let Some((generation, body)) = valid(slot) else { continue };
            if u16_at(slot, 8) > Some(1) {
                return Err(Refusal::Newer);
            }
            // What is left of the body is for later versions.
            if let Ok((checkpoint, _)) = postcard::take_from_bytes(body)
                && newest.as_ref().is_none_or(|(other, _)| generation >= *other)
            {
                newest = Some((generation, checkpoint));
            }
        }
        Ok(newest.map(|(_, checkpoint)| checkpoint))
    }
}

/// Generation and body of a slot whose check holds.
fn valid(slot: &[u8]) -> Option<(u64, &[u8])> {
    let header = slice(slot, 0, 24).filter(|header| header.starts_with(b"keepqchk"))?;
    let body = slice(slot, 32, u32_at(slot, 12)?)?;
    let is_valid = u32_at(slot, 24)? == crc32(&[header, body]);
    is_valid.then_some((u64_at(slot, 16)?, body))
}
