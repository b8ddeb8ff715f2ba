//! Segments that nobody needs as memory go out of it bit by bit.
//!
//! Promises: a map that is given up here was given back before, and what was stored to a full
//! segment began to be written before it is synced, in steps with rests in between, unless pushes
//! would wait for the end of it, or maps pile up. A map that is needed again meanwhile serves as
//! before. Only the background does this; whoever needs the room takes the maps as they are.

use crate::clock;
use crate::engine::append::{Appender, Full, maker::Maker};
use crate::engine::context::Context;
use crate::engine::signal::DispatchLock;
use crate::log::sealed::Mapped;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A step takes about this long.
const STEP: Duration = Duration::from_micros(80);

/// Bytes that are given back by one call, and as many as fit into a step by as many calls: how long
/// one takes depends on how much of it is resident, and was stored to.
const PIECE: u64 = 256 << 10;

/// Where more maps wait than this, there is no time for rests.
const MOST_WAITING: usize = 2;

/// Gives maps up.
#[derive(Debug)]
pub(super) struct Unmapper {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
    resting: Mutex<Option<Resting>>,
}

/// While the background rests: the map of which some is given back, and how far.
#[derive(Debug)]
struct Resting {
    map: Weak<Mapped>,
    offset: u64,
}

impl Unmapper {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        appender: &Arc<Appender>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            appender: Arc::clone(appender),
            resting: Mutex::new(None),
        }
    }

    /// Gives up maps that nobody needs, until that is done or there is time for a rest; then has
    /// [`Unmapper::go_on`] called in a while, until which this does nothing. True if nothing is
    /// left.
    pub(super) fn unmap(&self) -> bool {
        let mut resting = self.resting.lock();
        while resting.is_none() && !self.context.worker.is_stopping() {
            let Some((map, waiting)) = self.next() else {
                self.context.unmapping.give_up(|| self.dispatch.lock().take_idle_maps(false));
                return true;
            };
            *resting = self.give_back(&map, 0, waiting <= MOST_WAITING);
        }
        false
    }

    /// A rest is over: goes on if there was one; true if nothing is left.
    pub(super) fn go_on(&self) -> bool {
        let mut resting = self.resting.lock();
        let Some(Resting { map, offset }) = resting.take() else { return false };
        // Somebody else may have given it up meanwhile.
        *resting = map.upgrade().and_then(|map| self.give_back(&map, offset, true));
        drop(resting);
        self.unmap()
    }

    /// The next map to be given back, and how many there are.
    fn next(&self) -> Option<(Arc<Mapped>, usize)> {
        let full = self.appender.unsealed().oldest_left().map(Full::ordinal);
        let dispatch = self.dispatch.lock();
        let reading = dispatch.ledger().places().cursor().ordinal();
        dispatch.backlog().tracks().to_give_back(reading, full)
    }

    /// Gives a map back from this offset on, until that is done or there is time for a rest: then
    /// tells how far it is.
    fn give_back(&self, map: &Arc<Mapped>, mut offset: u64, may_rest: bool) -> Option<Resting> {
        let size = map.segment.header.size;
        while !self.context.worker.is_stopping() {
            let (start, end) = (offset, clock::now() + STEP);
            loop {
                let bytes = PIECE.min(size - offset);
                map.region.give_back(offset, bytes);
                offset += bytes;
                if offset == size {
                    self.dispatch.lock().backlog().tracks().note_given_back(map);
                    return None;
                }
                if clock::now() >= end {
                    break;
                }
            }
            let rest = Maker::new(&self.appender).rest_after((size - offset) / (offset - start));
            if let Some(rest) = rest.filter(|_| may_rest) {
                self.context.worker.step_within(rest);
                return Some(Resting { map: Arc::downgrade(map), offset });
            }
        }
        None
    }
}
