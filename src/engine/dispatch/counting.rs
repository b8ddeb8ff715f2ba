//! Taking up what earlier runs left, as their slots are counted, and what a walk meets besides
//! messages.
//!
//! Promises: what a counted slot says is taken up once, also if a store that it needs fails: that
//! is kept, and tried again later. What cannot be stored stops no other slot from being counted.

use super::dying::{Cause, Death};
use super::ledger::Ledger;
use super::places::Whereabouts;
use super::repair::{look_up, lose, rebuild_if_bad, rebuild_slot};
use crate::engine::backlog::cursor::Cursor;
use crate::engine::backlog::{FoundMessage, LostRecords, Met, Spot};
use crate::error::Result;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::slot::{Delay, State};
use crate::format::standing::Standing;
use std::collections::BTreeMap;

/// Such messages settled under one lock.
const MESSAGES_A_STEP: usize = 256;
/// Lost messages settled under one lock.
const LOSSES_A_STEP: u32 = 16_384;

/// What was counted, and is not taken up.
#[derive(Debug, Default)]
pub(super) struct Counting {
    /// To be stored.
    unfinished: BTreeMap<UnfinishedKey, Unfinished>,
    /// Could not be stored since it was last tried again.
    failed: BTreeMap<UnfinishedKey, Unfinished>,
    next_number: u64,
}

/// The segment of what counting found, if that matters, and a number in the order in which it was
/// found.
type UnfinishedKey = (Option<Ordinal>, u64);

/// What counting found and has to be stored.
#[derive(Clone, Copy, Debug)]
enum Unfinished {
    /// A record of this segment whose number cannot be read, and which is not settled: lost.
    Unnumbered { ordinal: Ordinal, index: Index },
    /// The slot of this record of a segment cannot be read: rebuilt, and taken up then.
    BadSlot { ordinal: Ordinal, index: Index },
    /// This delay was cut to its length when the run began. That is stored, or else the next run
    /// would begin it anew.
    Shortened { ordinal: Ordinal, index: Index, delay: Delay },
    /// Its last attempt ended with its run: it dies.
    WornOut { seq: u64 },
    /// It was dying, and there are no dead letters any more: dropped.
    Dropped { seq: u64 },
}

impl Counting {
    /// All that was found is given up.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What could not be stored is tried again.
    pub(super) fn try_again(&mut self) {
        self.unfinished.append(&mut self.failed);
    }

    /// Counts some slots of earlier runs, or takes up what they say; false once all of it is done,
    /// but for what could not be stored.
    pub(super) fn count_some(&mut self, ledger: &mut Ledger) -> Result<bool> {
        if !self.unfinished.is_empty() {
            self.finish_some(ledger)?;
            return Ok(true);
        }
        let Some(at) = ledger.backlog().tracks().first_uncounted() else { return Ok(false) };
        self.count_some_of(at, ledger)?;
        Ok(true)
    }

    /// Counts some slots of a segment, or takes up what they say; false once all of it is done, or
    /// the segment is no more.
    pub(super) fn count_segment(&mut self, ordinal: Ordinal, ledger: &mut Ledger) -> Result<bool> {
        let Some(at) = at_ordinal(ledger, ordinal) else { return Ok(false) };
        if ledger.backlog().tracks()[at].is_counted() {
            return self.finish_some_of(ordinal, ledger);
        }
        self.count_some_of(at, ledger)?;
        Ok(true)
    }

    /// Whether something of this segment is counted and not taken up.
    pub(super) fn is_unfinished(&self, ordinal: Ordinal) -> bool {
        self.first_of(ordinal).is_some()
    }

    /// Counts some slots of a segment, and takes up what they say.
    fn count_some_of(&mut self, at: usize, ledger: &mut Ledger) -> Result<()> {
        let policy = *ledger.policy();
        let special = ledger.backlog_mut().count_some(at, |attempts| policy.is_last(attempts))?;
        let ordinal = ledger.backlog().tracks()[at].ordinal();
        ledger.note_found_settled(at, special.settled);
        for lost in special.lost {
            ledger.backlog_mut().losses_mut().note(lost, lost);
        }
        for (due, seq) in special.delayed {
            ledger.places_mut().schedule_mut().put(due, seq);
        }
        let unnumbered = special.unnumbered.into_iter();
        self.note_all(unnumbered.map(|index| Unfinished::Unnumbered { ordinal, index }));
        self.note_all(special.worn_out.into_iter().map(|seq| Unfinished::WornOut { seq }));
        let bad_slots = special.bad_slots.into_iter();
        self.note_all(bad_slots.map(|index| Unfinished::BadSlot { ordinal, index }));
        let shortened = special.shortened.into_iter();
        self.note_all(shortened.map(|(index, delay)| Unfinished::Shortened {
            ordinal,
            index,
            delay,
        }));
        for seq in special.dying {
            if ledger.policy().has_dead_letters {
                ledger.note_dying(seq, Death { cause: None, reason: None });
            } else {
                self.note_all([Unfinished::Dropped { seq }]);
            }
        }
        self.finish_some(ledger)
    }

    fn note_all(&mut self, found: impl IntoIterator<Item = Unfinished>) {
        for unfinished in found {
            self.unfinished.insert((unfinished.ordinal(), self.next_number), unfinished);
            self.next_number += 1;
        }
    }

    /// Settles some of what counting found; tells the first error.
    fn finish_some(&mut self, ledger: &mut Ledger) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..MESSAGES_A_STEP {
            let Some((&key, _)) = self.unfinished.first_key_value() else { break };
            result = result.and(self.finish(key, ledger));
        }
        result
    }

    /// Settles some of what counting found in this segment; false once nothing of it is left.
    fn finish_some_of(&mut self, ordinal: Ordinal, ledger: &mut Ledger) -> Result<bool> {
        for _ in 0..MESSAGES_A_STEP {
            let Some(key) = self.first_of(ordinal) else { return Ok(false) };
            self.finish(key, ledger)?;
        }
        Ok(true)
    }

    /// The first thing that counting found in this segment; what could not be stored comes last.
    fn first_of(&self, ordinal: Ordinal) -> Option<UnfinishedKey> {
        let keys = (Some(ordinal), 0)..=(Some(ordinal), u64::MAX);
        let mut both = [&self.unfinished, &self.failed].into_iter();
        both.find_map(|found| found.range(keys.clone()).next().map(|(&key, _)| key))
    }

    /// Settles this one; if it cannot be stored, it is kept.
    fn finish(&mut self, key: UnfinishedKey, ledger: &mut Ledger) -> Result<()> {
        let found = self.unfinished.remove(&key).or_else(|| self.failed.remove(&key));
        found.map_or(Ok(()), |unfinished| {
            unfinished.finish(ledger).inspect_err(|_| {
                self.failed.insert(key, unfinished);
            })
        })
    }

    /// Takes a walk that settles past what it met besides messages: a segment of an earlier run is
    /// counted and entered, damage is settled.
    pub(super) fn pass_damage(
        &mut self,
        met: Met,
        cursor: &mut Cursor,
        ledger: &mut Ledger,
    ) -> Result<()> {
        match met {
            Met::Message(_) | Met::End | Met::Tired => {}
            // So that what is delayed or dying is known.
            Met::OldSegment(at) if !ledger.backlog().tracks()[at].is_counted() => {
                self.count_some_of(at, ledger)?;
            }
            Met::OldSegment(at) => {
                // Not before what its slots say is taken up: later, a slot that was rebuilt is
                // passed as known elsewhere.
                let ordinal = ledger.backlog().tracks()[at].ordinal();
                if !self.finish_some_of(ordinal, ledger)? {
                    ledger.backlog().skip_settled(at, cursor)?;
                }
            }
            Met::BadSlot(spot) => rebuild_slot(ledger, spot)?,
            Met::Unnumbered(spot) => {
                // One that is in flight is in a consumer's hands, whole.
                if !ledger.may_be_in_flight(spot)? {
                    lose(ledger, spot, Offset::START)?;
                }
                cursor.pass(None);
            }
            Met::Lost(LostRecords { at, indexes, offset, next }) => {
                // A step of a long hole; the next one is found behind it again.
                let end_index = indexes.end.min(indexes.start.saturating_add(LOSSES_A_STEP));
                let next = if end_index < indexes.end { offset } else { next };
                for index in indexes.start.until(end_index) {
                    let spot = Spot { at, index };
                    if !ledger.may_be_in_flight(spot)? {
                        lose(ledger, spot, offset)?;
                    }
                }
                cursor.pass_lost(end_index, next);
            }
        }
        Ok(())
    }
}

impl Unfinished {
    /// The segment that it is in, if that matters.
    fn ordinal(&self) -> Option<Ordinal> {
        match *self {
            Self::Unnumbered { ordinal, .. }
            | Self::BadSlot { ordinal, .. }
            | Self::Shortened { ordinal, .. } => Some(ordinal),
            Self::WornOut { .. } | Self::Dropped { .. } => None,
        }
    }

    fn finish(self, ledger: &mut Ledger) -> Result<()> {
        match self {
            Self::Unnumbered { ordinal, index } => {
                if let Some(at) = at_ordinal(ledger, ordinal) {
                    lose(ledger, Spot { at, index }, Offset::START)?;
                }
            }
            Self::BadSlot { ordinal, index } => {
                if let Some(at) = at_ordinal(ledger, ordinal) {
                    rebuild_if_bad(ledger, Spot { at, index })?;
                }
            }
            Self::Shortened { ordinal, index, delay } => {
                if let Some(at) = at_ordinal(ledger, ordinal) {
                    store_shortened(ledger, Spot { at, index }, delay)?;
                }
            }
            Self::WornOut { seq } => {
                if let Some(found) = look_up(ledger, seq)? {
                    die_of_attempts(ledger, &found)?;
                }
            }
            Self::Dropped { seq } => {
                if let Some(found) = look_up(ledger, seq)?
                    && ledger.settle(found.spot, &found.place, State::Dead)?
                {
                    ledger.counts_mut().dropped += 1;
                }
            }
        }
        Ok(())
    }
}

/// Where the track of a segment is, if there is one.
fn at_ordinal(ledger: &Ledger, ordinal: Ordinal) -> Option<usize> {
    ledger.backlog().tracks().position_of(ordinal)
}

/// The last attempt of a message ended with its run. It dies, unless it did meanwhile.
fn die_of_attempts(ledger: &mut Ledger, found: &FoundMessage) -> Result<()> {
    let waits =
        matches!(ledger.whereabouts_of(found)?, Whereabouts::Ready | Whereabouts::Delayed(_));
    if !waits {
        return Ok(());
    }
    ledger.die(found.spot, &found.place, Death { cause: Some(Cause::Attempts), reason: None })
}

/// Stores how long a message waits as of this run, if its slot still says `delay`.
fn store_shortened(ledger: &mut Ledger, spot: Spot, delay: Delay) -> Result<()> {
    let status = ledger.status(spot)?;
    if let Standing::Scheduled(due) = status.standing
        && status.delay == Some(delay)
    {
        // If it cannot be stored, the message waits a little longer after the next restart.
        ledger.backlog_mut().store_delay(spot, Delay { due, ..delay }).ok();
    }
    Ok(())
}
