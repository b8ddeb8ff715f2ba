//! Repairing slots that cannot be read, as far as memory knows what they said.
//!
//! Promises: a message keeps the place that it has in memory, and one that is in no place is handed
//! out again; no message is counted twice. Each slot has two words, the state and the delay, which
//! go bad one by one.

use super::ledger::Ledger;
use super::places::Whereabouts;
use crate::engine::backlog::{FoundMessage, Lookup, Spot};
use crate::engine::dispatch::exchange::unsettled_state;
use crate::error::Result;
use crate::format::address::{Index, Offset};
use crate::format::slot::{Delay, State};
use crate::format::standing::Standing;
use crate::log::sealed::Status;

/// The state and the attempts of a slot of which nothing is known.
const REBUILT: (State, u32) = (Status::REBUILT.state, Status::REBUILT.attempts);

/// Rebuilds a slot whose state cannot be read. If it was counted, others of its segment may have
/// gone bad with it, and some of them may have been settled: all slots are counted again, and all
/// that are damaged are rebuilt.
#[cold]
pub(crate) fn rebuild_slot(ledger: &mut Ledger, spot: Spot) -> Result<()> {
    if !ledger.backlog().track_at(spot.at).is_counted_at(spot.index) {
        return ledger.backlog_mut().rebuild_slot(spot, REBUILT);
    }
    let recount = ledger.recount(spot.at)?;
    let mut damaged = recount.damaged.into_iter();
    damaged.try_for_each(|index| rebuild_counted(ledger, Spot { index, ..spot }))
}

/// Rebuilds a slot, if it still cannot be read.
pub(crate) fn rebuild_if_bad(ledger: &mut Ledger, spot: Spot) -> Result<()> {
    match ledger.status(spot)?.standing {
        Standing::Unreadable => rebuild_slot(ledger, spot),
        _ => Ok(()),
    }
}

/// Settles a message whose record is damaged, and whose slot may be, too; false if it was settled
/// already. `offset`: where its record was sought.
pub(crate) fn lose(ledger: &mut Ledger, spot: Spot, offset: Offset) -> Result<bool> {
    // It may have been counted as settled.
    rebuild_if_bad(ledger, spot)?;
    ledger.lose(spot, offset)
}

/// A message by its number, if it is not settled. Damage is settled, and a slot rebuilt, on the
/// way.
pub(crate) fn look_up(ledger: &mut Ledger, seq: u64) -> Result<Option<FoundMessage>> {
    loop {
        match ledger.backlog().look_up(seq)? {
            Lookup::Gone => return Ok(None),
            Lookup::Found(found) if found.standing == Standing::Unreadable => {
                rebuild_slot(ledger, found.spot)?;
            }
            Lookup::Lost(spot, offset) => {
                if !ledger.may_be_in_flight(spot)? {
                    lose(ledger, spot, offset)?;
                }
                return Ok(None);
            }
            Lookup::Found(found) if found.standing == Standing::Outlived => {
                ledger.settle(found.spot, &found.place, State::Dead)?;
                return Ok(None);
            }
            Lookup::Found(found) => return Ok(Some(found)),
        }
    }
}

/// A message that is dying dies, and one that was given back keeps its attempts. Any other counts
/// as handed out once. One that is in no place, but was passed by, was settled: it is ready again.
fn rebuild_counted(ledger: &mut Ledger, spot: Spot) -> Result<()> {
    let seq = ledger.backlog().track_at(spot.at).records().seq(spot.index)?;
    let known = seq.and_then(|seq| ledger.find_in_places(spot, seq));
    let returned = seq.and_then(|seq| ledger.places().returned(seq));
    let state = match (known, returned) {
        (Some(Whereabouts::Dying), _) => (State::Dying, REBUILT.1),
        (_, Some(place)) => (unsettled_state(&place), place.attempts),
        _ => REBUILT,
    };
    ledger.backlog_mut().rebuild_slot(spot, state)?;
    let (Some(seq), None) = (seq, known) else { return Ok(()) };
    match ledger.status(spot)?.standing {
        Standing::Scheduled(due) => {
            ledger.places_mut().schedule_mut().put(due, seq);
            ledger.note_head_changed();
        }
        _ if has_passed(ledger, spot, seq) => match ledger.backlog().look_up(seq)? {
            Lookup::Found(found) if found.standing == Standing::Outlived => {
                ledger.settle(found.spot, &found.place, State::Dead)?;
            }
            Lookup::Found(found) => ledger.give_back(found.place),
            Lookup::Lost(spot, offset) => {
                ledger.lose(spot, offset)?;
            }
            Lookup::Gone => {}
        },
        // The cursor comes to it.
        _ => {}
    }
    Ok(())
}

/// Settles as lost the messages of a copy whose numbers cannot be read any more: nothing finds
/// them.
#[cold]
pub(super) fn lose_unnumbered(ledger: &mut Ledger, at: usize) -> Result<()> {
    let end_index = ledger.backlog().track_at(at).count().map_or(Index::FIRST, Index);
    for index in Index::FIRST.until(end_index) {
        let spot = Spot { at, index };
        let status = ledger.status(spot)?;
        let is_unsettled = status.seq.is_none() && !status.standing.is_settled();
        if is_unsettled && !ledger.may_be_in_flight(spot)? {
            lose(ledger, spot, status.slot.offset.unwrap_or(Offset::START))?;
        }
    }
    Ok(())
}

/// Whether the cursor has passed a message.
fn has_passed(ledger: &Ledger, spot: Spot, seq: u64) -> bool {
    let cursor = ledger.places().cursor();
    if ledger.backlog().track_at(spot.at).ordinal() == cursor.ordinal() {
        return spot.index < cursor.index();
    }
    seq < cursor.seq()
}

/// The delay in a slot cannot be read. If memory knows where its message is, the slot is made to
/// say so again, because the cursor and copies go by it. False if memory does not know.
#[cold]
pub(crate) fn repair_delay(ledger: &mut Ledger, spot: Spot) -> Result<bool> {
    if !ledger.backlog().has_unreadable_delay(spot) {
        return Ok(false);
    }
    let seq = ledger.backlog().track_at(spot.at).records().seq(spot.index)?;
    let known = seq.and_then(|seq| ledger.find_in_places(spot, seq));
    let start_time = ledger.backlog().run().start_time;
    let delay = match known {
        None => return Ok(false),
        Some(Whereabouts::Delayed(due)) => Delay { due, given: due.since(start_time) },
        Some(_) => Delay::over(start_time),
    };
    ledger.backlog_mut().store_delay(spot, delay)?;
    Ok(true)
}
