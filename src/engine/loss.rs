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
        self.tracks[at].note_change(index);
        let rebuilt = Slot { state: State::Delivered, attempts: 1, offset: None };
        self.tracks[at].map()?.store_slot(index, rebuilt)
    }

    /// The payload of a leased message turned out to be damaged.
    pub(super) fn lose_leased(&mut self, leased: &Leased) -> Result<()> {
        if let Some((at, place)) = self.take_back_unseen(leased)? {
            let Place { index, offset, .. } = place;
            let lost = self.lose_if_owed(at, index, offset);
            if lost.is_err() {
                self.returned.insert(place.seq, place);
            }
            lost?;
        }
        Ok(())
    }

    pub(super) fn lose_if_owed(&mut self, at: usize, index: u32, offset: u64) -> Result<()> {
        let track = &mut self.tracks[at];
        // Where nobody knows which it is: as old as it can be.
        let is_old = track.seq(index)?.map_or(track.is_old, |seq| self.run.is_old(seq));
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
        let (first, last) = self.seqs_of(at, index);
        self.losses.unaccounted.insert(first, last);
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
        let mapped = self.tracks[at].map()?;
        mapped.store_slot(index, slot)?;
        let bytes = mapped.header(offset, index).map_or(0, |header| header.record_len());
        self.note_settled(at, index, bytes);
        self.changes += 1;
        self.news.silently = true;
        Ok(())
    }

    fn list_damage(&mut self, at: usize, index: u32, offset: u64, kind: DamageKind) {
        let (seq, last) = self.seqs_of(at, index);
        let listed = &mut self.losses.listed;
        let newest_before = listed.range(..=seq).next_back();
        let is_listed =
            newest_before.is_some_and(|(_, damage)| damage.last >= seq && damage.kind == kind);
        if !is_listed && listed.len() < LISTED_DAMAGE {
            let path = self.tracks[at].segment.path.clone();
            listed.insert(seq, Damage { first: seq, last, path, offset, kind });
        }
    }

    /// The Seq of a record; where its segment does not say it any more, all that it can have.
    fn seqs_of(&mut self, at: usize, index: u32) -> (u64, u64) {
        let track = &mut self.tracks[at];
        let (count, mut seq_of) =
            (track.count.unwrap_or(0), |index| track.seq(index).ok().flatten());
        if let Some(seq) = seq_of(index) {
            return (seq, seq);
        }
        let before = (0..index).rev().find_map(&mut seq_of);
        let behind = (index + 1..count).find_map(&mut seq_of);
        let first = before.map_or(track.first_seq, |seq| seq + 1);
        let last = behind.unwrap_or_else(|| track.end_seq(0)) - 1;
        (first, last.max(first))
    }
}
