//! How the background spreads what will be needed once the active segment is full.
//!
//! With few cores, each moment of its work is one less for producers and consumers, and the kernel
//! takes no core away from a thread inside a call. So it works in steps of about a tenth of a
//! millisecond, and rests in between, as long as no push would wait for the end of it.

use crate::time::Millis;
use parking_lot::Mutex;
use std::time::Duration;

/// It rests no longer than this between two steps; and not at all if it were for less than that,
/// which is about what it takes to go to sleep and to wake.
const LONGEST_REST: Duration = Duration::from_millis(2);
const SHORTEST_REST: Duration = Duration::from_micros(50);

/// How long it was until a push needs the next segment at the last look, if that could be told.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<Millis>>);

impl Pace {
    /// Now it is so long.
    pub(super) fn note(&self, left: Option<Millis>) {
        *self.0.lock() = left;
    }

    /// The rest after a step of which so many are left: all of them take half of that time. `None`
    /// if there is no time for rests.
    pub(super) fn rest(&self, steps: u64) -> Option<Duration> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX).max(1);
        let left = *self.0.lock();
        let rest = left.map_or(LONGEST_REST, |left| Duration::from(left) / 2 / steps);
        Some(rest.min(LONGEST_REST)).filter(|&rest| rest >= SHORTEST_REST)
    }
}
