//! Segments that are here and do not say what they hold.
//!
//! Promises: a segment that was used is not taken for an empty one because its marks are damaged;
//! what is known of the messages that are lost with it is told, and its file stays.

use crate::error::Result;
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::segment::SegmentHeader;
use crate::log::Segment;
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
            let listed = checkpoint.used().find(|listed| listed.ordinal == ordinal)?;
            let end = checkpoint.last_seq_of(listed) + 1;
            Some(Listed { span: end.saturating_sub(listed.first_seq), ..*listed })
        });
        let SegmentHeader { seq_limit, epoch, size, sources, .. } = segment.header;
        let (listed, is_compacted) = (known.unwrap_or(nothing), sources > 0);
        Self { listed, seq_limit, epoch, is_compacted, bytes: size }
    }

    /// Its last Seq, as far as is known.
    pub(super) fn last_seq(&self) -> u64 {
        self.listed.first_seq + self.listed.span.max(1) - 1
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
    let unusable = lost.into_iter().map(|(segment, count)| {
        let mut unusable = Unusable::of(&segment, checkpoint);
        let Listed { first_seq, span, .. } = &mut unusable.listed;
        if *first_seq == 0 && count > 0 {
            *first_seq = first_seq_by_neighbours(&segment, count, segments)?.unwrap_or(0);
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
        let mut durable = checkpoint.used().filter(|used| used.first_seq <= checkpoint.accounted);
        durable.any(|listed| listed.ordinal == segment.header.ordinal)
    });
    Ok(was_durable.then_some(0))
}

/// Where the Seqs of a segment with this many records began: within a run they have no gap.
fn first_seq_by_neighbours(
    segment: &Segment,
    count: u64,
    segments: &[Arc<Segment>],
) -> Result<Option<u64>> {
    let mut same_run = segments.iter().filter(|other| other.header.epoch == segment.header.epoch);
    let header = &segment.header;
    let next = same_run.clone().find(|other| other.header.predecessor == header.ordinal);
    if let Some(next) = next.map(|next| next.activation()).transpose()?.flatten() {
        return Ok(next.first_seq.checked_sub(count));
    }
    let before = same_run.find(|other| other.header.ordinal == header.predecessor);
    let Some(before) = before else { return Ok(None) };
    let marks = before.activation()?.zip(before.seal()?);
    Ok(marks.map(|(before, seal)| before.first_seq + u64::from(seal.count)))
}
