//! Copies that were worth it when all segments were looked at.

use super::trigger::Trigger;
use crate::format::address::Ordinal;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// After this time others may be better.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The segments of each copy, the best copy first.
#[derive(Debug, Default)]
pub(super) struct Planned {
    copies: VecDeque<Vec<Ordinal>>,
    /// For what, and when.
    look: Option<(Trigger, Instant)>,
}

impl Planned {
    /// Those of a look at this time.
    pub(super) fn new(copies: Vec<Vec<Ordinal>>, trigger: Trigger, now: Instant) -> Self {
        Self { copies: copies.into(), look: Some((trigger, now)) }
    }

    /// The next one, if a look is not too old.
    pub(super) fn next(&mut self, trigger: Trigger, now: Instant) -> Option<Vec<Ordinal>> {
        let (looked_for, at) = self.look?;
        let is_fresh = looked_for == trigger && now.saturating_duration_since(at) < KEPT_FOR;
        if is_fresh { self.copies.pop_front() } else { None }
    }
}
