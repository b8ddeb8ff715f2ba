//! What to copy next.
//!
//! Promises: what is chosen is worth a copy at that moment, and from then on the slots of its
//! segments that are stored to are noted. A look at all segments costs as much as there are, so it
//! is made once for many copies; each of them is looked at again before it is made.

use super::candidates;
use super::planned::Planned;
use super::trigger::Trigger;
use crate::clock;
use crate::compaction::plan::{self, Candidate, CopyPlan, Limits};
use crate::engine::append::Appender;
use crate::engine::backlog::track::Track;
use crate::engine::context::Context;
use crate::engine::dispatch::Dispatch;
use crate::engine::signal::{DispatchGuard, DispatchLock};
use crate::format::address::Ordinal;
use crate::log::merge::CopySource;
use crate::time::Millis;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// What a look has planned may be settled by others before it is made. Then there is another look,
/// up to this many in a call.
const LOOKS: usize = 3;

/// Chooses what to copy.
#[derive(Debug)]
pub(super) struct Planner {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
}

impl Planner {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        appender: &Arc<Appender>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            appender: Arc::clone(appender),
        }
    }

    /// Whether a copy without these would be worth it, once segments that are not sealed are.
    pub(super) fn has_sparse(&self, left_out: &BTreeSet<Ordinal>) -> bool {
        let times = (self.context.clock.coarse(), Millis(0));
        let is_out = |ordinal| left_out.contains(&ordinal);
        let mut dispatch = self.dispatch.lock();
        let all = 0..dispatch.backlog().tracks().len();
        let candidates = candidates::of(&mut dispatch, all, Trigger::Requested, times, is_out);
        drop(dispatch);
        plan::is_any_worth_it(&candidates, &self.limits())
    }

    pub(super) fn limits(&self) -> Limits {
        // The segment that is kept ready is given up for it.
        let ready = self.appender.ready_bytes();
        Limits {
            live_percent: self.context.options.compaction.live_percent,
            segment_bytes: self.context.options.segment_limit(),
            room: self.context.space.scratch_room().saturating_add(ready),
        }
    }

    /// The next of the copies that are planned; of all that are worth it, if none is left.
    pub(super) fn choose(
        &self,
        trigger: Trigger,
        limits: &Limits,
        left_out: &BTreeSet<Ordinal>,
        planned: &mut Planned,
    ) -> Option<(Vec<CopySource>, CopyPlan)> {
        planned.forget_old(trigger, clock::now());
        let mut looks = 0;
        loop {
            while let Some(segments) = planned.next() {
                let chosen = self.choose_among(&segments, trigger, limits, left_out);
                if chosen.is_some() {
                    return chosen;
                }
            }
            if looks == LOOKS {
                return None;
            }
            looks += 1;
            let copies = self.plan(trigger, limits, left_out);
            if copies.is_empty() {
                return None;
            }
            *planned = Planned::new(copies, trigger, clock::now());
        }
    }

    /// All copies that are worth it.
    fn plan(
        &self,
        trigger: Trigger,
        limits: &Limits,
        left_out: &BTreeSet<Ordinal>,
    ) -> Vec<Vec<Ordinal>> {
        let (mut dispatch, full) = self.lock_with_full();
        let all = 0..dispatch.backlog().tracks().len();
        let candidates = self.candidates(&mut dispatch, all, trigger, left_out, &full);
        let ordinals: Vec<_> = dispatch.backlog().tracks().iter().map(Track::ordinal).collect();
        drop(dispatch);
        let copies = plan::choose_all(&candidates, limits).into_iter();
        copies.map(|copy| ordinals[copy.range].to_vec()).collect()
    }

    /// The best copy of some of these segments, which lay side by side, if it is still worth it.
    fn choose_among(
        &self,
        segments: &[Ordinal],
        trigger: Trigger,
        limits: &Limits,
        left_out: &BTreeSet<Ordinal>,
    ) -> Option<(Vec<CopySource>, CopyPlan)> {
        let (mut dispatch, full) = self.lock_with_full();
        let tracks = dispatch.backlog().tracks();
        let mut at = segments.iter().filter_map(|&ordinal| tracks.position_of(ordinal));
        let first = at.next()?;
        let range = first..at.last().unwrap_or(first) + 1;
        let candidates = self.candidates(&mut dispatch, range, trigger, left_out, &full);
        let choice = plan::choose(&candidates, limits)?;
        let from = first + choice.range.start;
        let tracks = dispatch.backlog_mut().tracks_mut();
        let sources = (from..from + choice.range.len()).map(|at| tracks[at].begin_copy());
        Some((sources.collect(), choice))
    }

    /// The dispatch lock, and the segments that are full and not sealed: both locks, so that none
    /// becomes full in between.
    fn lock_with_full(&self) -> (DispatchGuard<'_>, BTreeSet<Ordinal>) {
        let unsealed = self.appender.unsealed();
        let dispatch = self.dispatch.lock();
        (dispatch, unsealed.full().iter().map(|full| full.segment.header.ordinal).collect())
    }

    fn candidates(
        &self,
        dispatch: &mut Dispatch,
        range: Range<usize>,
        trigger: Trigger,
        left_out: &BTreeSet<Ordinal>,
        full: &BTreeSet<Ordinal>,
    ) -> Vec<Candidate> {
        let idle = Millis::from(self.context.options.compaction.idle);
        let times = (self.context.clock.coarse(), idle);
        let is_out = |ordinal| full.contains(&ordinal) || left_out.contains(&ordinal);
        candidates::of(dispatch, range, trigger, times, is_out)
    }
}
