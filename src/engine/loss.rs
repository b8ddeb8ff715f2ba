//! What was damaged, and what became of numbers that no segment has any more.
//!
//! Promises: damage is passed over, counted and listed; a message is settled as lost only after it
//! was seen to be. Relies on the `deliver` lock.

use super::deliver::Deliver;
use super::next::Leased;
use crate::error::Result;
use crate::format::slot::{self, Slot, State};
use crate::leases::Place;
use crate::ranges::Ranges;
use crate::recovery::Log;
use crate::report::{Damage, DamageKind};
use std::collections::BTreeMap;

/// So much damage is listed; more is only counted.
const LISTED_DAMAGE: usize = 1000;

/// What was found damaged or missing.
#[derive(Debug)]
pub(super) struct Losses {
    /// By the first Seq concerned.
    listed: BTreeMap<u64, Damage>,
    /// Messages that were lost in this run.
    pub(super) count: u64,
    /// Numbers that no segment has and that were not settled: never given out, or lost.
    pub(super) unaccounted: Ranges,
}

impl Losses {
    pub(super) fn new(log: &Log) -> Self {
        let listed = log.report.damage.iter().map(|damage| (damage.first, damage.clone()));
        Self {
            listed: listed.take(LISTED_DAMAGE).collect(),
            count: 0,
            unaccounted: log.unaccounted.clone(),
        }
    }

    pub(super) fn damage(&self) -> Vec<Damage> {
        self.listed.values().cloned().collect()
    }
}

impl Deliver {
    /// A slot that was never written to this place counts as delivered once.
    pub(super) fn rebuild_slot(&mut self, at: usize, index: u32) -> Result<()> {
        let offset = slot::offset(self.tracks[at].segment.header.size, index);
        self.list_damage(at, index, offset, DamageKind::Slot);
        self.changes += 1;
        self.tracks[at].note_change();
        let rebuilt = Slot { state: State::Delivered, attempts: 1, offset: None };
        self.tracks[at].map()?.store_slot(index, rebuilt)
    }

    /// The payload of a leased message turned out to be damaged.
    pub(super) fn lose_leased(&mut self, leased: &Leased) -> Result<()> {
        if let Some(place) = self.take_back_unseen(leased)
            && let Some(at) = self.position(place.ordinal)
        {
            let Place { index, offset, .. } = place;
            let lost = self.lose(at, index, offset);
            if lost.is_err() {
                self.returned.insert(place.seq, place);
            }
            lost?;
        }
        Ok(())
    }

    pub(super) fn lose_if_owed(&mut self, at: usize, index: u32, offset: u64) -> Result<()> {
        let track = &mut self.tracks[at];
        let is_old = track.is_old;
        let slot = track.map()?.slot(index)?;
        if slot.is_none_or(|slot| !slot.is_settled(is_old)) {
            self.lose(at, index, offset)?;
        }
        Ok(())
    }

    /// A message that is owed is damaged.
    pub(super) fn lose(&mut self, at: usize, index: u32, offset: u64) -> Result<()> {
        self.settle_silently(at, index, offset, State::Lost)?;
        self.losses.count += 1;
        let seq = self.tracks[at].first_seq + u64::from(index);
        self.losses.unaccounted.insert(seq, seq);
        self.list_damage(at, index, offset, DamageKind::Corrupt);
        Ok(())
    }

    /// Settles a message that is owed and not leased.
    pub(super) fn settle_silently(
        &mut self,
        at: usize,
        index: u32,
        offset: u64,
        state: State,
    ) -> Result<()> {
        let slot = Slot { state, attempts: 0, offset: Some(offset) };
        self.tracks[at].map()?.store_slot(index, slot)?;
        self.note_settled(at, index);
        self.changes += 1;
        self.news.silently = true;
        Ok(())
    }

    fn list_damage(&mut self, at: usize, index: u32, offset: u64, kind: DamageKind) {
        let track = &self.tracks[at];
        let seq = track.first_seq + u64::from(index);
        let listed = &mut self.losses.listed;
        let newest_before = listed.range(..=seq).next_back();
        let is_listed =
            newest_before.is_some_and(|(_, damage)| damage.last >= seq && damage.kind == kind);
        if !is_listed && listed.len() < LISTED_DAMAGE {
            let path = track.segment.path.clone();
            listed.insert(seq, Damage { first: seq, last: seq, path, offset, kind });
        }
    }
}
