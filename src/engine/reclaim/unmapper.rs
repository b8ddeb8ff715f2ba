//! Segments that nobody needs as memory go out of it bit by bit.
//!
//! Promises: a map that is given up here was given back before, and what was stored to a full
//! segment began to be written before it is synced, in steps with rests in between, unless pushes
//! would wait for the end of it, or maps pile up. A map that is needed again meanwhile serves as
//! before. Only the background does this; whoever needs the room takes the maps as they are.

use crate::clock;
use crate::engine::append::{Appender, Full, pace};
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
    /// The map of which some is given back, while the background rests.
    resting: Mutex<Option<Weak<Mapped>>>,
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
            let Some((mapped, waiting)) = self.next() else {
                self.context.unmapping.give_up(|| self.dispatch.lock().take_given_back_maps());
                return true;
            };
            let may_rest = waiting <= MOST_WAITING;
            if self.give_back(&mapped, may_rest) {
                *resting = Some(Arc::downgrade(&mapped));
            }
        }
        false
    }

    /// A rest is over: goes on if there was one; true if nothing is left.
    pub(super) fn go_on(&self) -> bool {
        let mut resting = self.resting.lock();
        let Some(map) = resting.take() else { return false };
        // Somebody else may have given it up meanwhile.
        *resting = map.upgrade().filter(|mapped| self.give_back(mapped, true)).map(|_| map);
        drop(resting);
        self.unmap()
    }

    /// The next map to be given back, and how many there are.
    fn next(&self) -> Option<(Arc<Mapped>, usize)> {
        let full = self.appender.unsealed().oldest_left().map(Full::ordinal);
        let dispatch = self.dispatch.lock();
        dispatch.backlog().tracks().to_give_back(dispatch.reading(), full)
    }

    /// Gives a map back, until that is done or there is time for a rest: true if it rests.
    fn give_back(&self, mapped: &Mapped, may_rest: bool) -> bool {
        while mapped.left_to_give_back() > 0 && !self.context.worker.is_stopping() {
            let (left, end) = (mapped.left_to_give_back(), clock::now() + STEP);
            loop {
                mapped.give_back(PIECE);
                if mapped.left_to_give_back() == 0 || clock::now() >= end {
                    break;
                }
            }
            let steps = mapped.left_to_give_back() / (left - mapped.left_to_give_back());
            let rest = if may_rest { pace::rest(&self.appender, steps) } else { None };
            if let Some(rest) = rest {
                self.context.worker.step_within(rest);
                return true;
            }
        }
        false
    }
}
