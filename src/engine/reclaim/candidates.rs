//! Segments as candidates of compaction.

use super::trigger::Trigger;
use crate::compaction::plan::Candidate;
use crate::engine::append::FIRST_SEGMENT;
use crate::engine::backlog::track::Track;
use crate::engine::context::SOON;
use crate::engine::dispatch::Dispatch;
use crate::format::address::Ordinal;
use crate::time::{Millis, Time};
use std::collections::BTreeSet;
use std::ops::Range;

/// A segment of which at most one part in this many is unsettled is cheap to copy.
const CHEAP_PART: u64 = 16;

/// The segments at these positions as the plan sees them at time `now`. A segment is idle if none
/// of its messages was settled for `idle`. `is_out`: one that cannot be copied now, for other
/// reasons.
pub(super) fn of(
    dispatch: &mut Dispatch,
    range: Range<usize>,
    trigger: Trigger,
    (now, idle): (Time, Millis),
    is_out: impl Fn(Ordinal) -> bool,
) -> Vec<Candidate> {
    let cursor = dispatch.ledger().places().cursor().seq();
    let newest = dispatch.backlog().tracks().len().saturating_sub(1);
    let ordinals = dispatch.backlog().tracks().range(range.clone()).map(Track::ordinal);
    let unfinished: BTreeSet<_> =
        ordinals.filter(|&ordinal| dispatch.is_unfinished(ordinal)).collect();
    // Between two segments that are in one copy no other one may come back.
    let losses = dispatch.backlog().losses();
    let mut last_end = 0;
    let is_behind_lost = dispatch.backlog().tracks().range(range.clone()).map(|track| {
        let end = last_end;
        last_end = track.end_seq(0).max(end);
        end > 0 && losses.has_segment_between(end, track.first_seq())
    });
    let is_behind_lost: Vec<bool> = is_behind_lost.collect();
    // Times that are shifted by other amounts cannot be in one copy.
    let mut last_shift = None;
    let tracks = dispatch.backlog_mut().tracks_mut().range_copying_mut(range.clone());
    let candidates = range.zip(tracks).zip(is_behind_lost).map(|((at, track), is_behind_lost)| {
        let size = track.size();
        let shift = Some(track.segment().header.clock_shift);
        let is_shifted = std::mem::replace(&mut last_shift, shift) != shift;
        let is_free = at < newest
            && track.can_be_copied()
            && !unfinished.contains(&track.ordinal())
            && (trigger == Trigger::Requested || !track.copying().rests_at(now))
            && !is_out(track.ordinal());
        if !is_free {
            return Candidate { size, record_bytes: 0, records: 0, is_free: false, starts: false };
        }
        let settled = track.settled_count().messages();
        let idle_since = track.copying_mut().idle_since(now, settled);
        let records = u64::from(track.count().unwrap_or(0).saturating_sub(settled));
        let record_bytes = if records == 0 { 0 } else { track.live_record_bytes(0) };
        // No consumer is about to take what is left, or it is next to nothing.
        let is_passed = track.end_seq(0) <= cursor || track.records().is_old();
        let is_cheap = is_passed && record_bytes <= size / CHEAP_PART;
        let needed = if is_cheap { Millis::from(SOON).min(idle) } else { idle };
        let is_free = match trigger {
            Trigger::Idle => now.since(idle_since) >= needed,
            Trigger::Requested => true,
            Trigger::NewRun => size <= FIRST_SEGMENT,
        };
        let starts = is_shifted || is_behind_lost || track.copying().starts_copy();
        Candidate { size, record_bytes, records, is_free, starts }
    });
    candidates.collect()
}
