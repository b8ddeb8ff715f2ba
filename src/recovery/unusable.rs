//! Segments that are here and do not say what they hold.
//!
//! Promises: a segment that was used is not taken for an empty one because its marks are damaged;
//! what is known of the messages that are lost with it is told, and its file stays.

use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::segment::SegmentHeader;
use crate::log::Segment;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A segment that was used, and does not say what it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unusable {
    /// As much as is known otherwise. Every CHECKPOINT lists it, so that the file is not deleted.
    pub(super) listed: Listed,
    pub(super) seq_limit: u64,
    pub(super) epoch: u64,
    pub(super) is_compacted: bool,
    pub(super) bytes: u64,
}

impl Unusable {
    /// One of which CHECKPOINT may know more.
    pub(super) fn of(segment: &Segment, checkpoint: Option<&Checkpoint>) -> Self {
        let ordinal = segment.header.ordinal;
        let nothing = Listed { ordinal, first_seq: 0, span: 0 };
        let known = checkpoint.and_then(|checkpoint| {
            let listed = checkpoint.used_segment(ordinal)?;
            let end = checkpoint.last_seq_of(listed) + 1;
            Some(Listed { span: end.saturating_sub(listed.first_seq), ..*listed })
        });
        let SegmentHeader { seq_limit, epoch, size, sources, .. } = segment.header;
        let (listed, is_compacted) = (known.unwrap_or(nothing), sources > 0);
        Self { listed, seq_limit, epoch, is_compacted, bytes: size }
    }
}

/// Takes the segments out that lost their activation: a seal counts records, or CHECKPOINT says
/// that some were durable.
pub(super) fn take_unusable(
    segments: &mut Vec<Arc<Segment>>,
    checkpoint: Option<&Checkpoint>,
) -> Result<Vec<(Arc<Segment>, Unusable)>> {
    let (mut kept, mut lost) = (Vec::new(), Vec::new());
    for segment in std::mem::take(segments) {
        match records_without_start(&segment, checkpoint)? {
            Some(count) => lost.push((segment, count)),
            None => kept.push(segment),
        }
    }
    *segments = kept;
    // Most queues have none.
    let neighbours = if lost.is_empty() { Neighbours::default() } else { Neighbours::of(segments) };
    let unusable = lost.into_iter().map(|(segment, count)| {
        let mut unusable = Unusable::of(&segment, checkpoint);
        let Listed { first_seq, span, .. } = &mut unusable.listed;
        if *first_seq == 0 && count > 0 {
            *first_seq = neighbours.first_seq(&segment, count)?.unwrap_or(0);
        }
        *span = count.max(*span);
        Ok((segment, unusable))
    });
    unusable.collect()
}

/// How many records a segment has that has no activation and was used, 0 if that is not known;
/// `None` if it has one, or was not used.
fn records_without_start(
    segment: &Segment,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<u64>> {
    if segment.activation()?.is_some() {
        return Ok(None);
    }
    if let Some(seal) = segment.seal()? {
        return Ok((seal.count > 0).then_some(seal.count.into()));
    }
    let was_durable = checkpoint.is_some_and(|checkpoint| {
        let used = checkpoint.used_segment(segment.header.ordinal);
        used.is_some_and(|used| used.first_seq <= checkpoint.accounted)
    });
    Ok(was_durable.then_some(0))
}

/// Segments that say where their Seqs begin, by the places that they have in their runs.
#[derive(Default)]
struct Neighbours<'a> {
    by_place: BTreeMap<(u64, Ordinal), &'a Segment>,
    /// By their predecessors; the oldest one of each.
    by_predecessor: BTreeMap<(u64, Ordinal), &'a Segment>,
}

impl<'a> Neighbours<'a> {
    fn of(segments: &'a [Arc<Segment>]) -> Self {
        let mut neighbours = Self::default();
        for segment in segments {
            let SegmentHeader { epoch, ordinal, .. } = segment.header;
            neighbours.by_place.insert((epoch, ordinal), segment);
            if let Some(before) = segment.header.older_predecessor() {
                neighbours.by_predecessor.entry((epoch, before)).or_insert(segment);
            }
        }
        neighbours
    }

    /// Where the Seqs of a segment with this many records began: within a run they have no gap.
    fn first_seq(&self, segment: &Segment, count: u64) -> Result<Option<u64>> {
        let SegmentHeader { epoch, ordinal, .. } = segment.header;
        let next = self.by_predecessor.get(&(epoch, ordinal));
        if let Some(next) = next.map(|next| next.activation()).transpose()?.flatten() {
            return Ok(next.first_seq.checked_sub(count));
        }
        let before = segment.header.older_predecessor();
        let before = before.and_then(|before| self.by_place.get(&(epoch, before)));
        let Some(before) = before else { return Ok(None) };
        let marks = before.activation()?.zip(before.seal()?);
        Ok(marks.map(|(before, seal)| before.first_seq + u64::from(seal.count)))
    }
}
