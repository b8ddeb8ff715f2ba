//! What was found damaged, and what became of numbers that no segment has any more.

use crate::ranges::Ranges;
use crate::recovery::Log;
use crate::report::{Damage, DamageKind};
use std::collections::BTreeMap;

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
}

impl Losses {
    pub(super) fn new(log: &Log) -> Self {
        let listed = log.report.damage.iter().map(|damage| (damage.first, damage.clone()));
        let listed = listed.take(MOST_LISTED).collect();
        Self { listed, count: 0, unaccounted: log.unaccounted.clone() }
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

    /// This many messages were lost as one, with these numbers.
    pub(crate) fn lose_segment(&mut self, messages: u64, damage: Damage) {
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
