//! Settling all that waits.
//!
//! Promises: takes what was published before the call and is neither in flight nor settled; what
//! is pushed meanwhile stays. Holds the `deliver` lock for a few hundred messages at a time, and no
//! other, so that pushes go on.

use super::Engine;
use super::deliver::Deliver;
use crate::error::Result;
use crate::format::slot::State;

/// Messages settled under one lock.
const STEP: usize = 256;

impl Engine {
    /// Settles all that waits, ready or delayed; tells how many there were.
    pub(crate) fn purge(&self) -> Result<u64> {
        let newest = self.newest_visible();
        let mut purged = 0;
        let result = loop {
            let mut deliver = self.deliver.lock();
            let before = deliver.counts.purged;
            let step = deliver.check_open().and_then(|()| deliver.purge_some(newest));
            // A step that failed may have settled some all the same.
            purged += deliver.counts.purged - before;
            let number = deliver.change_count();
            self.unlock(deliver);
            match step {
                Ok(true) => {}
                Ok(false) => break Ok(number),
                Err(error) => break Err(error),
            }
        };
        self.worker.ask();
        self.wait_answers(result?)?;
        Ok(purged)
    }
}

impl Deliver {
    /// Settles some of what waits, up to the message `newest`; false if nothing is left.
    fn purge_some(&mut self, newest: u64) -> Result<bool> {
        self.take_back_due();
        for _ in 0..STEP {
            self.mind_maps();
            let has_purged = self.purge_returned(newest)?
                || self.purge_next(newest)?
                || self.drop_delayed(newest)?;
            if !has_purged {
                return Ok(false);
            }
            self.counts.purged += 1;
        }
        Ok(true)
    }

    /// Settles one that was given back; false if there is none.
    fn purge_returned(&mut self, newest: u64) -> Result<bool> {
        while let Some((_, &place)) = self.returned.range(..=newest).next() {
            let found = self.find_place(place)?;
            if let Some((at, place)) = found {
                self.settle_silently(at, place.index, place.offset, State::Dead)?;
            }
            self.returned.remove(&place.seq);
            self.leases.end_expired(place.seq);
            if found.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Settles the next one that was never handed out in this run; false if there is none.
    fn purge_next(&mut self, newest: u64) -> Result<bool> {
        let next = self.find_next(newest)?.filter(|next| next.place.seq <= newest);
        let Some(next) = next else { return Ok(false) };
        self.settle_silently(next.at, next.place.index, next.place.offset, State::Dead)?;
        self.leave_queue(&next);
        Ok(true)
    }
}
