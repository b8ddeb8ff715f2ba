//! The work of compaction under the dispatch lock: it settles what copying met, and puts a copy in
//! the place of its sources.
//!
//! Promises: the numbers of unsettled, leased and settled messages are the same before and after; a
//! message that is known by its place is found again by its Seq. Relies on `compact` for everything
//! that takes time.

use crate::compaction::copy_job::{CopyJob, Finding};
use crate::engine::backlog::Spot;
use crate::engine::backlog::track::Track;
use crate::engine::dispatch::repair::{lose, rebuild_if_bad, repair_delay};
use crate::engine::dispatch::{Dispatch, Ledger};
use crate::engine::signal::DispatchLock;
use crate::error::{Error, Result};
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::slot::State;
use crate::format::standing::{Run, Standing};
use crate::io::Access;
use crate::log::copy::Finished;
use crate::log::merge::CopySource;
use crate::log::sealed::Mapped;
use crate::time::Time;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The slots that changed are brought up to date without the lock until fewer than this change
/// between two looks, but `ROUNDS` times at most.
const FEW_CHANGES: usize = 256;
const ROUNDS: usize = 16;

/// Lost messages settled under one lock.
const LOSSES_A_STEP: u32 = 4096;

/// Slots of a source that were stored to since it was copied.
struct Change {
    mapped: Arc<Mapped>,
    first_seq: u64,
    base_time: Time,
    indexes: Vec<Index>,
}

/// Settles what copying has met, each unless it is settled already. One that cannot be settled does
/// not hold up the others; its segment goes to `failed`, and the first error is told.
pub(super) fn settle_findings(
    dispatch: &DispatchLock,
    job: &mut CopyJob,
    failed: &mut BTreeSet<Ordinal>,
) -> Result<()> {
    let mut result = Ok(());
    for finding in job.take_findings() {
        if let Err(error) = settle_in_steps(dispatch, finding) {
            failed.insert(finding.ordinal());
            result = result.and(Err(error));
        }
    }
    result
}

fn settle_in_steps(dispatch: &DispatchLock, finding: Finding) -> Result<()> {
    let Finding::Lost { ordinal, mut from, to, offset } = finding else {
        return settle_finding(dispatch.lock().ledger_mut(), finding);
    };
    while from < to {
        let step_end = to.min(from.saturating_add(LOSSES_A_STEP));
        let step = Finding::Lost { ordinal, from, to: step_end, offset };
        settle_finding(dispatch.lock().ledger_mut(), step)?;
        from = step_end;
    }
    Ok(())
}

/// Brings the copy up to date, and lets it take the place of its sources; tells how many messages
/// it has.
pub(super) fn replace_sources(
    dispatch: &DispatchLock,
    run: Run,
    sources: &[CopySource],
    made: &Finished,
) -> Result<u64> {
    let segment = Arc::clone(&made.segment);
    let region = segment.map(Access::Commits)?;
    let mapped = Arc::new(Mapped::new(segment, region, Some(made.tail)));
    let activity = dispatch.lock().backlog().activity().clone();
    let mut copy = Track::copied(mapped, made, &activity);
    for _ in 0..ROUNDS {
        let changes = take_changes(&mut dispatch.lock(), sources)?;
        let slots: usize = changes.iter().map(|change| change.indexes.len()).sum();
        changes.iter().try_for_each(|change| update(run, &mut copy, change))?;
        if slots < FEW_CHANGES {
            break;
        }
    }
    let mut locked = dispatch.lock();
    let changes = take_changes(&mut locked, sources)?;
    changes.iter().try_for_each(|change| update(run, &mut copy, change))?;
    if !locked.backlog().tracks().can_replace(sources, &copy) {
        let path = made.segment.path.clone();
        let reason = "a slot went bad while its segment was copied, which is tried again";
        return Err(Error::Corrupt { operation: "compact", path, offset: 0, reason });
    }
    let replaced = locked.backlog_mut().replace(sources, copy);
    // Their maps have left their tracks, so that nothing is unmapped under the lock.
    drop((changes, replaced));
    drop(locked);
    dispatch.give_up_left_maps();
    Ok(u64::from(made.count))
}

/// Brings some slots of a copy up to date.
fn update(run: Run, copy: &mut Track, change: &Change) -> Result<()> {
    let Change { mapped, first_seq, base_time, indexes } = change;
    for &index in indexes {
        let Some(seq) = mapped.seq(index, *first_seq)? else { continue };
        let Some(to) = copy.records().index_of(seq)? else { continue };
        let (Some(slot), delay) = mapped.words(index, *base_time)? else { continue };
        copy.follow(to, slot, delay, run.is_old(seq))?;
    }
    Ok(())
}

/// Which slots of the sources were stored to since this was last asked.
fn take_changes(dispatch: &mut Dispatch, sources: &[CopySource]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for source in sources {
        let ordinal = source.segment.header.ordinal;
        let Some(track) = dispatch.backlog_mut().track(ordinal) else { continue };
        let indexes = track.copying_mut().take_changed();
        if !indexes.is_empty() {
            let mapped = Arc::clone(track.map()?);
            let (first_seq, base_time) = (source.first_seq, source.base_time);
            changes.push(Change { mapped, first_seq, base_time, indexes });
        }
    }
    Ok(changes)
}

/// Settles what copying met, unless it is settled already.
fn settle_finding(ledger: &mut Ledger, finding: Finding) -> Result<()> {
    let (Finding::Lost { ordinal, .. }
    | Finding::BadSlot { ordinal, .. }
    | Finding::BadDelay { ordinal, .. }
    | Finding::Outlived { ordinal, .. }) = finding;
    let Some(at) = ledger.backlog().tracks().position_of(ordinal) else { return Ok(()) };
    match finding {
        Finding::Lost { from, to, offset, .. } => {
            from.until(to).try_for_each(|index| lose_copied(ledger, Spot { at, index }, offset))
        }
        Finding::BadSlot { index, .. } => rebuild_if_bad(ledger, Spot { at, index }),
        Finding::BadDelay { index, .. } => repair_delay(ledger, Spot { at, index }).map(|_| ()),
        Finding::Outlived { index, offset, .. } => {
            settle_outlived(ledger, Spot { at, index }, offset)
        }
    }
}

/// Notes that a damaged message is lost, wherever it waits. Fails if the message may be in flight:
/// a consumer may have a copy of its payload.
fn lose_copied(ledger: &mut Ledger, spot: Spot, offset: Offset) -> Result<()> {
    if ledger.may_be_in_flight(spot)? {
        let path = ledger.backlog().track_at(spot.at).segment().path.clone();
        let reason = "a message that may be in flight is damaged; once it is answered, its \
                      segment can be compacted";
        return Err(Error::Corrupt { operation: "compact", path, offset: offset.0, reason });
    }
    lose(ledger, spot, offset).map(|_| ())
}

/// Settles a transient message of an earlier run, whose record is at `offset`.
fn settle_outlived(ledger: &mut Ledger, spot: Spot, offset: Offset) -> Result<()> {
    let status = ledger.status(spot)?;
    let header = ledger.backlog().track_at(spot.at).map()?.header(offset, spot.index);
    let Some((header, seq)) = header.zip(status.seq) else { return Ok(()) };
    let said = (seq, status.slot, status.standing);
    let found = ledger.backlog().found(spot, said, offset, header);
    if found.standing == Standing::Outlived {
        ledger.settle(spot, &found.place, State::Dead)?;
    }
    Ok(())
}
