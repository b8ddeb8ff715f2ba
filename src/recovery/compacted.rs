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
use std::collections::BTreeMap;
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
    /// Gives the segment back if the marks that say what it holds are damaged, or say what cannot
    /// be.
    pub(super) fn read(segment: Segment) -> Result<std::result::Result<Self, Segment>> {
        let marks = (segment.read_sources()?, segment.activation()?, segment.seal()?);
        let (Some(mut sources), Some(activation), Some(seal)) = marks else {
            return Ok(Err(segment));
        };
        if !sources.fits(activation.first_seq, &seal, segment.header.size) {
            return Ok(Err(segment));
        }
        // A copy is newer than what it was made from: nothing else is believed.
        let ordinal = segment.header.ordinal;
        sources.ordinals.retain(|source| (Ordinal(1)..ordinal).contains(source));
        let segment = Arc::new(segment.made_from(sources));
        Ok(Ok(Self { segment, activation, seal }))
    }

    pub(super) fn part(&self) -> Part {
        let Activation { first_seq, base_time } = self.activation;
        let Seal { tail, count, .. } = self.seal;
        let segment = Arc::clone(&self.segment);
        Part { segment, first_seq, base_time, count, tail, is_sealed: true }
    }

    fn ordinal(&self) -> Ordinal {
        self.segment.header.ordinal
    }

    fn sources(&self) -> &[Ordinal] {
        self.segment.sources.as_ref().map_or(&[], |sources| &sources.ordinals)
    }
}

/// What copies replace.
#[derive(Debug, Default)]
pub(super) struct AllReplaced {
    /// The copies that replace segments that are here.
    pub(super) found: Vec<Replaced>,
    /// Each segment that a copy replaces, here or not, and the copy. What is gone of them is no
    /// loss.
    pub(super) by_copy: BTreeMap<Ordinal, Ordinal>,
}

/// Takes the segments that a copy replaces out of both lists. A copy replaces another one that is
/// older, and that it was made from or shares a source with; and all that those replace. A copy
/// that does not say what it holds is among `segments`.
pub(super) fn take_replaced(
    segments: &mut Vec<Arc<Segment>>,
    compacted: &mut Vec<CompactedSegment>,
) -> Result<AllReplaced> {
    let mut all = AllReplaced::default();
    let mut candidates = Candidates::new(std::mem::take(segments), std::mem::take(compacted));
    // Newer ones first: a copy that is replaced itself replaces nothing.
    while let Some((_, copy)) = candidates.copies.pop_last() {
        let Group { plain, replaced, made_from } = candidates.take_group(&copy);
        for source in made_from {
            all.by_copy.entry(source).or_insert(copy.ordinal());
        }
        let mut sources = Vec::new();
        for segment in plain {
            sources.push(source_of(segment)?);
        }
        sources.extend(replaced.into_iter().map(|other| {
            let Part { segment, first_seq, base_time, count, tail, .. } = other.part();
            CopySource { segment, first_seq, base_time, count, tail: Some(tail), is_old: true }
        }));
        if !sources.is_empty() {
            bound(&mut sources);
            all.found.push(Replaced { copy: copy.part(), sources });
        }
        compacted.push(copy);
    }
    segments.extend(candidates.plain.into_values());
    Ok(all)
}

/// What no copy was found to replace, yet.
struct Candidates {
    /// Segments that are no copies, or do not say of what.
    plain: BTreeMap<Ordinal, Arc<Segment>>,
    copies: BTreeMap<Ordinal, CompactedSegment>,
    /// The copies that were made from a segment, older ones first. Those that are gone may be among
    /// them.
    made_from: BTreeMap<Ordinal, Vec<Ordinal>>,
}

/// What a copy replaces.
#[derive(Default)]
struct Group {
    plain: Vec<Arc<Segment>>,
    replaced: Vec<CompactedSegment>,
    /// What the copy was made from, and what that was made from, here or not.
    made_from: Vec<Ordinal>,
}

impl Candidates {
    fn new(segments: Vec<Arc<Segment>>, compacted: Vec<CompactedSegment>) -> Self {
        let plain = segments.into_iter().map(|segment| (segment.header.ordinal, segment));
        let copies: BTreeMap<Ordinal, CompactedSegment> =
            compacted.into_iter().map(|copy| (copy.ordinal(), copy)).collect();
        let mut made_from: BTreeMap<Ordinal, Vec<Ordinal>> = BTreeMap::new();
        for (ordinal, copy) in &copies {
            for &source in copy.sources() {
                made_from.entry(source).or_default().push(*ordinal);
            }
        }
        Self { plain: plain.collect(), copies, made_from }
    }

    /// Takes out what this copy replaces. Each source of each copy is looked at once: what a copy
    /// takes is older than it is, so copies are met in their order, newer ones first.
    fn take_group(&mut self, copy: &CompactedSegment) -> Group {
        let mut group = Group::default();
        // Those that are taken, and whether they are among what `copy` was made from.
        let mut taken: BTreeMap<Ordinal, (CompactedSegment, bool)> = BTreeMap::new();
        self.take_sources(copy, true, &mut taken, &mut group);
        while let Some((_, (one, is_inside))) = taken.pop_last() {
            self.take_sources(&one, is_inside, &mut taken, &mut group);
            group.replaced.push(one);
        }
        group
    }

    /// A copy that was given up, and in whose place another one was made, may have had other
    /// sources. Those count: only what is inside takes segments that are no copies.
    fn take_sources(
        &mut self,
        one: &CompactedSegment,
        is_inside: bool,
        taken: &mut BTreeMap<Ordinal, (CompactedSegment, bool)>,
        group: &mut Group,
    ) {
        for source in one.sources() {
            if is_inside {
                group.plain.extend(self.plain.remove(source));
                group.made_from.push(*source);
            }
            // Older ones that share this source.
            let sharing = self.made_from.get_mut(source);
            let older = sharing.map(|sharing| {
                let end = sharing.partition_point(|&other| other < one.ordinal());
                sharing.drain(..end).collect::<Vec<_>>()
            });
            for other in older.unwrap_or_default() {
                if let Some(other) = self.copies.remove(&other) {
                    taken.insert(other.ordinal(), (other, false));
                }
            }
            if let Some(other) = self.copies.remove(source) {
                taken.insert(*source, (other, false));
            }
            if let Some((_, is_taken_inside)) = taken.get_mut(source) {
                *is_taken_inside |= is_inside;
            }
        }
    }
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

/// A segment whose activation is damaged gives no states: its Seqs are not known. Nor does a copy
/// that does not say what it holds.
fn source_of(segment: Arc<Segment>) -> Result<CopySource> {
    let activation = if segment.header.sources > 0 { None } else { segment.activation()? };
    let seal = segment.seal()?;
    let (sealed, tail) = (seal.map(|seal| seal.count), seal.map(|seal| seal.tail));
    let most = most_slots(segment.header.size);
    let count = if activation.is_some() { sealed.unwrap_or(most).min(most) } else { 0 };
    let Activation { first_seq, base_time } =
        activation.unwrap_or(Activation { first_seq: 0, base_time: Time::ZERO });
    Ok(CopySource { segment, first_seq, base_time, count, tail, is_old: true })
}
