//! Which compacted segments count, and what they replace.
//!
//! Promises: of a copy and the segments that it was made from, only the records of the copy count,
//! and each message has the later of its two states. Relies on two rules of compaction: a copy gets
//! its name only when it is whole, and becomes a source of another one only when its own sources
//! are gone for good.

use super::part::Part;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::segment::{Activation, Seal, most_slots};
use crate::log::Segment;
use crate::log::merge::CopySource;
use crate::time::Time;
use std::sync::Arc;

/// A compacted segment.
#[derive(Debug)]
pub(super) struct CompactedSegment {
    pub(super) segment: Arc<Segment>,
    activation: Activation,
    seal: Seal,
}

/// A copy, and those of its sources that are still there.
#[derive(Clone, Debug)]
pub(crate) struct Replaced {
    pub(crate) copy: Part,
    pub(crate) sources: Vec<CopySource>,
}

impl CompactedSegment {
    /// `None` if the marks that say what it holds are damaged.
    pub(super) fn read(segment: Segment) -> Result<Option<Self>> {
        let marks = (segment.read_sources()?, segment.activation()?, segment.seal()?);
        let (Some(sources), Some(activation), Some(seal)) = marks else { return Ok(None) };
        let is_possible = sources.last_seq >= activation.first_seq
            && seal.count > 0
            && seal.count <= most_slots(segment.header.size)
            && sources.table.0 < segment.header.size;
        let segment = Arc::new(segment.made_from(sources));
        Ok(is_possible.then_some(Self { segment, activation, seal }))
    }

    pub(super) fn part(&self) -> Part {
        let Activation { first_seq, base_time } = self.activation;
        let Seal { tail, count, .. } = self.seal;
        let segment = Arc::clone(&self.segment);
        Part { segment, first_seq, base_time, count, tail, is_sealed: true }
    }

    fn sources(&self) -> &[Ordinal] {
        self.segment.sources.as_ref().map_or(&[], |sources| &sources.ordinals)
    }

    /// Whether this one was made from `one`, or from one of `others` that was made from it.
    fn has_inside(&self, one: &Self, others: &[Self]) -> bool {
        let has = |by: &Self| by.sources().contains(&one.segment.header.ordinal);
        has(self) || others.iter().any(|other| has(other) && self.has_inside(other, others))
    }

    /// Whether this one was made from the other one, or in its place.
    fn replaces(&self, other: &Self) -> bool {
        let ordinal = other.segment.header.ordinal;
        let is_newer = self.segment.header.ordinal > ordinal;
        let shares = other.sources().iter().any(|source| self.sources().contains(source));
        is_newer && (self.sources().contains(&ordinal) || shares)
    }
}

/// Takes the segments that a copy replaces out of both lists.
pub(super) fn take_replaced(
    segments: &mut Vec<Arc<Segment>>,
    compacted: &mut Vec<CompactedSegment>,
) -> Result<Vec<Replaced>> {
    let mut all = Vec::new();
    // Newer ones first: a copy that is replaced itself replaces nothing.
    compacted.sort_by_key(|one| std::cmp::Reverse(one.segment.header.ordinal));
    let mut left = std::mem::take(compacted).into_iter();
    while let Some(copy) = left.next() {
        // Also the sources of copies that are replaced, if they have come back.
        let mut replaced: Vec<CompactedSegment> = Vec::new();
        loop {
            let (more, kept): (Vec<_>, Vec<_>) = left.partition(|other| {
                copy.replaces(other) || replaced.iter().any(|one| one.replaces(other))
            });
            left = kept.into_iter();
            if more.is_empty() {
                break;
            }
            replaced.extend(more);
        }
        let mut sources = Vec::new();
        // A copy that was given up, and in whose place this one was made, may have had other
        // sources. Those count.
        let is_source = |segment: &mut Arc<Segment>| {
            let made = |one: &&CompactedSegment| copy.has_inside(one, &replaced);
            let mut copies = replaced.iter().filter(made).chain([&copy]);
            copies.any(|copy| copy.sources().contains(&segment.header.ordinal))
        };
        for segment in segments.extract_if(.., is_source) {
            sources.push(source_of(segment)?);
        }
        sources.extend(replaced.into_iter().map(|other| {
            let Part { segment, first_seq, base_time, count, .. } = other.part();
            CopySource { segment, first_seq, base_time, count, is_old: true }
        }));
        if !sources.is_empty() {
            bound(&mut sources);
            all.push(Replaced { copy: copy.part(), sources });
        }
        compacted.push(copy);
    }
    Ok(all)
}

/// A source that lost its seal could have any number of records. Its records end where the next
/// source begins.
fn bound(sources: &mut [CopySource]) {
    sources.sort_by_key(|source| source.first_seq);
    let is_plain =
        |source: &&mut CopySource| source.segment.sources.is_none() && source.first_seq > 0;
    let mut next = u64::MAX;
    for source in sources.iter_mut().rev().filter(is_plain) {
        let most = u32::try_from(next - source.first_seq).unwrap_or(u32::MAX);
        source.count = source.count.min(most);
        next = source.first_seq;
    }
}

/// A segment whose activation is damaged gives no states: its Seqs are not known.
fn source_of(segment: Arc<Segment>) -> Result<CopySource> {
    let activation = segment.activation()?;
    let sealed = segment.seal()?.map(|seal| seal.count);
    let most = most_slots(segment.header.size);
    let count = if activation.is_some() { sealed.unwrap_or(most).min(most) } else { 0 };
    let Activation { first_seq, base_time } =
        activation.unwrap_or(Activation { first_seq: 0, base_time: Time::ZERO });
    Ok(CopySource { segment, first_seq, base_time, count, is_old: true })
}
