//! What was found damaged, and what became of numbers that no segment has any more.

use crate::format::address::Ordinal;
use crate::format::checkpoint::{Apart, Listed};
use crate::format::ordinals::{OrdinalRanges, Ordinals};
use crate::ranges::Ranges;
use crate::recovery::Log;
use crate::report::{Damage, DamageKind};
use std::collections::{BTreeMap, BTreeSet};

/// At most this much damage is listed; more is only counted.
const MOST_LISTED: usize = 1000;

/// What was found damaged or missing.
#[derive(Debug)]
pub(crate) struct Losses {
    /// By the first Seq concerned.
    listed: BTreeMap<u64, Damage>,
    /// Messages that were lost in this run.
    count: u64,
    /// Numbers that no segment has and that were not settled: never given out, or lost.
    unaccounted: Ranges,
    /// Segments that are lost, by their first Seqs: their files may be back at a later open.
    segments: BTreeSet<LostSegment>,
    /// Segments that never count again.
    left_out: Ordinals,
    /// Ordinals of segments that may be back, besides those.
    unseen: OrdinalRanges,
}

/// A segment that is lost: its first Seq, its ordinal, and how many Seqs it has.
type LostSegment = (u64, Ordinal, u64);

impl Losses {
    pub(super) fn new(log: &Log) -> Self {
        let listed = log.report.damage.iter().map(|damage| (damage.first, damage.clone()));
        let listed = listed.take(MOST_LISTED).collect();
        let segments = log.lost.iter().map(|lost| (lost.first_seq, lost.ordinal, lost.span));
        Self {
            listed,
            count: 0,
            unaccounted: log.unaccounted.clone(),
            segments: segments.collect(),
            left_out: log.left_out.clone(),
            unseen: log.unseen.clone(),
        }
    }

    pub(crate) fn damage(&self) -> Vec<Damage> {
        self.listed.values().cloned().collect()
    }

    /// Messages that were lost in this run.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn unaccounted(&self) -> &Ranges {
        &self.unaccounted
    }

    /// A message was lost that has one of these numbers.
    pub(super) fn lose(&mut self, first: u64, last: u64) {
        self.count += 1;
        self.note(first, last);
    }

    /// The segments that are lost.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Listed> {
        let listed = |&(first_seq, ordinal, span)| Listed { ordinal, first_seq, span };
        self.segments.iter().map(listed)
    }

    /// What CHECKPOINT says of segments that are not in the log.
    pub(crate) fn apart(&self) -> Apart {
        let lost = self.segments.iter().map(|&(_, ordinal, _)| ordinal).collect();
        Apart { lost, left_out: self.left_out.clone(), unseen: self.unseen.clone() }
    }

    /// Whether a lost segment has numbers between a segment that ends before `end` and one that
    /// begins at `first`.
    pub(crate) fn has_segment_between(&self, end: u64, first: u64) -> bool {
        let before = self.segments.range(..(first, Ordinal::NONE, 0)).next_back();
        before.is_some_and(|&(first_seq, _, span)| first_seq > 0 && first_seq + span > end)
    }

    /// This segment was lost, with this many messages.
    pub(crate) fn lose_segment(&mut self, ordinal: Ordinal, messages: u64, damage: Damage) {
        self.segments.insert((damage.first, ordinal, damage.last + 1 - damage.first));
        self.count += messages;
        self.note(damage.first, damage.last);
        self.list(damage);
    }

    /// These numbers are lost, which an earlier run found.
    pub(crate) fn note(&mut self, first: u64, last: u64) {
        self.unaccounted.insert(first, last);
    }

    /// Tells of damage, unless it was told of already.
    pub(super) fn list(&mut self, damage: Damage) {
        let before = self.listed.range(..=damage.first).next_back();
        let is_listed = before
            .is_some_and(|(_, known)| known.last >= damage.first && known.kind == damage.kind);
        if !is_listed && self.listed.len() < MOST_LISTED {
            self.listed.insert(damage.first, damage);
        }
    }

    /// Whether this damage is listed.
    pub(super) fn has(&self, seq: u64, kind: DamageKind) -> bool {
        let before = self.listed.range(..=seq).next_back();
        before.is_some_and(|(_, known)| known.last >= seq && known.kind == kind)
    }
}
