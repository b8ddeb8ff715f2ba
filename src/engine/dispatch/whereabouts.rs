//! Where a message is that is not settled: every one is in one place.

use super::{Dispatch, Whereabouts};
use crate::engine::backlog::{Found, Spot};
use crate::error::Result;
use crate::format::standing::Standing;
use crate::log::sealed::Status;

impl Dispatch {
    /// Whether a message may be in flight: its segment has deliveries, and its slot does not say
    /// where it waits.
    pub(crate) fn may_be_in_flight(&mut self, spot: Spot) -> Result<bool> {
        if self.backlog.track_at(spot.at).leased() == 0 {
            return Ok(false);
        }
        let status = self.status(spot)?;
        let is_counted = self.backlog.track_at(spot.at).is_counted_at(spot.index);
        let whereabouts = status.seq.map(|seq| self.whereabouts(seq, &status, is_counted));
        Ok(whereabouts.is_none_or(|is| is == Whereabouts::InFlight))
    }

    /// Where a message is, of which `status` is said.
    pub(crate) fn whereabouts(&self, seq: u64, status: &Status, is_counted: bool) -> Whereabouts {
        match status.standing {
            Standing::Settled | Standing::Lost | Standing::Outlived => return Whereabouts::Settled,
            Standing::Dying => return Whereabouts::Dying,
            Standing::Scheduled(_) | Standing::Ready | Standing::Unreadable => {}
        }
        if self.returned.contains_key(&seq) {
            return Whereabouts::Ready;
        }
        let waits_until = |due: u64| {
            if self.clock.is_past(due) { Whereabouts::Ready } else { Whereabouts::Delayed(due) }
        };
        let times = self.times_of(seq, status).into_iter();
        let mut times = times.chain([self.untold.get(&seq).copied()]).flatten();
        if let Some(due) = times.find(|&due| self.schedule.contains(due, seq)) {
            return waits_until(due);
        }
        match status.standing {
            // What is not counted yet was not handed out in this run.
            Standing::Scheduled(due) if !is_counted => waits_until(due),
            // No one has met what is behind the cursor.
            Standing::Ready | Standing::Unreadable if seq >= self.cursor.seq() => {
                Whereabouts::Ready
            }
            _ => Whereabouts::InFlight,
        }
    }

    /// Where a message is that was found.
    pub(crate) fn whereabouts_of(
        &mut self,
        found: &Found,
        is_counted: bool,
    ) -> Result<Whereabouts> {
        let status = self.status(found.spot)?;
        let status = Status { standing: found.standing, ..status };
        Ok(self.whereabouts(found.place.seq, &status, is_counted))
    }

    /// Messages that were given back, from this number on; and those whose time has come, from
    /// behind this entry on: as `pop` would take them.
    pub(crate) fn next_returned(&self, from: u64) -> Option<u64> {
        self.returned.range(from..).next().map(|(seq, _)| *seq)
    }

    /// The first scheduled message behind `after` whose time has come.
    pub(crate) fn next_due(&self, after: (u64, u64)) -> Option<(u64, u64)> {
        self.schedule.next_due(after)
    }
}
