//! Settling all that waits.
//!
//! Promises: takes what was published before the call and is neither in flight nor settled; what
//! is pushed meanwhile stays. Holds the `deliver` lock for a few microseconds at a time, and no
//! other, so that pushes go on.

use super::Engine;
use super::deliver::Deliver;
use crate::error::Result;
use crate::format::slot::State;
use crate::leases::Place;

/// Messages settled under one lock.
const STEP: u64 = 256;

impl Engine {
    /// Settles all that waits, ready or deferred; tells how many there were.
    pub(crate) fn purge(&self) -> Result<u64> {
        let newest = self.newest_published();
        let mut purged = 0;
        let result = loop {
            let mut deliver = self.deliver.lock();
            let before = deliver.counts.purged;
            let step = deliver.check_open().and_then(|()| deliver.purge_some(newest));
            // A step that failed may have settled some all the same.
            purged += deliver.counts.purged - before;
            let (asks, number) = (deliver.asks_for_sync(), deliver.change_count());
            drop(deliver);
            if asks {
                self.worker.sync_answers();
            }
            match step {
                Ok(true) => {}
                Ok(false) => break Ok(number),
                Err(error) => break Err(error),
            }
        };
        self.worker.ask();
        self.settled.wake_all();
        self.wait_answers(result?)?;
        Ok(purged)
    }
}

impl Deliver {
    /// Settles some of what waits, up to the message `newest`; false if nothing is left.
    fn purge_some(&mut self, newest: u64) -> Result<bool> {
        for _ in 0..STEP {
            if !self.purge_returned(newest)? && !self.purge_next(newest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Settles one that was given back; false if there is none.
    fn purge_returned(&mut self, newest: u64) -> Result<bool> {
        let returned = self.returned.range(..=newest).next().map(|(_, place)| (None, *place));
        let deferred = || {
            let (time, place) = self.deferred.first_up_to(newest)?;
            Some((Some(time), place))
        };
        let Some((time, place)) = returned.or_else(deferred) else { return Ok(false) };
        let Place { seq, ordinal, index, offset, .. } = place;
        if let Some(at) = self.position(ordinal) {
            self.settle_silently(at, index, offset, State::Dead)?;
            self.counts.purged += 1;
        }
        match time {
            None => drop(self.returned.remove(&seq)),
            Some(time) => self.deferred.remove(time, seq),
        }
        Ok(true)
    }

    /// Settles the next one that was never handed out in this run; false if there is none.
    fn purge_next(&mut self, newest: u64) -> Result<bool> {
        let next = self.find_next(newest)?.filter(|next| next.place.seq <= newest);
        let Some(next) = next else { return Ok(false) };
        let Place { index, offset, .. } = next.place;
        self.settle_silently(next.at, index, offset, State::Dead)?;
        self.go_on_behind(&next);
        self.counts.purged += 1;
        Ok(true)
    }
}
