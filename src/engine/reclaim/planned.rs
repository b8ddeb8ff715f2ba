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

    /// Forgets those of a look for something else, or that was too long ago.
    pub(super) fn forget_old(&mut self, trigger: Trigger, now: Instant) {
        let is_fresh = |(looked_for, at): (Trigger, Instant)| {
            looked_for == trigger && now.saturating_duration_since(at) < KEPT_FOR
        };
        if !self.look.is_some_and(is_fresh) {
            *self = Self::default();
        }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<Vec<Ordinal>> {
        self.copies.pop_front()
    }
}
