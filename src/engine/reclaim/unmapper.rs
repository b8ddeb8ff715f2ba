//! Segments that nobody needs as memory go out of it bit by bit.
//!
//! Promises: an idle map that is given up here was evicted before, and what was stored to a full
//! segment began to be written before the background syncs it, in steps with rests in between,
//! unless pushes would wait for the end of it, or maps pile up. Maps that left their tracks go as
//! they are. A map that is needed again meanwhile serves as before. Only the background does this;
//! whoever needs the room takes the maps as they are, and waits for one step at most. A call works
//! at one map, however many there are.

use crate::clock;
use crate::engine::append::{Appender, Full, maker::Maker};
use crate::engine::backlog::IdleMaps;
use crate::engine::context::Context;
use crate::engine::signal::DispatchLock;
use crate::log::sealed::Mapped;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A step takes about this long.
const STEP: Duration = Duration::from_micros(80);

/// Bytes that are evicted by the first call, and the next ones: how long one takes depends on how
/// much of it is resident, and was stored to. As long as calls are quick, each is for twice as many
/// as the last one.
const PIECE: u64 = 256 << 10;
const QUICK: Duration = Duration::from_micros(8);

/// Where more maps wait than this, there is no time for rests.
const MOST_WAITING: u64 = 2;

/// Gives maps up.
#[derive(Debug)]
pub(super) struct Unmapper {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
    /// While the background rests.
    resting: Mutex<Option<Eviction>>,
}

/// How far a map is evicted.
#[derive(Debug)]
struct Eviction {
    map: Weak<Mapped>,
    offset: u64,
    /// How many bytes the next call is for.
    piece: u64,
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

    /// Gives up the maps that are evicted, and evicts the next one that nobody needs, until that is
    /// done or there is time for a rest; then has [`Unmapper::go_on`] called in a while, until
    /// which this evicts no more, as long as there is time. Asks for upkeep whenever a map is
    /// evicted.
    pub(super) fn unmap(&self) {
        self.dispatch.give_up_maps(IdleMaps::Evicted);
        let Some((map, waiting)) = self.next() else { return };
        let may_rest = waiting <= MOST_WAITING.min(self.context.options.open_segments);
        let mut resting = self.resting.lock();
        // One at which it rests is finished first, if it may not rest any more.
        if resting.is_some() && may_rest {
            return;
        }
        let new = || Eviction { map, offset: 0, piece: PIECE };
        let eviction = resting.take().unwrap_or_else(new);
        *resting = self.evict(eviction, may_rest);
    }

    /// A rest is over: goes on if there was one.
    pub(super) fn go_on(&self) {
        let mut resting = self.resting.lock();
        *resting = resting.take().and_then(|eviction| self.evict(eviction, true));
    }

    /// Whether a map is to be evicted, and nothing leads to that: it came after the last look.
    pub(super) fn has_left_one(&self) -> bool {
        let rests = self.resting.lock().is_some();
        !rests && self.next().is_some()
    }

    /// Whether this segment is to be evicted before it is synced.
    pub(super) fn comes_first(&self, full: &Full) -> bool {
        self.dispatch.lock().backlog().tracks().is_to_evict(full.ordinal())
    }

    /// The next map to be evicted, and how many there are.
    fn next(&self) -> Option<(Weak<Mapped>, u64)> {
        let full = self.appender.unsealed().oldest_left().map(Full::ordinal);
        let dispatch = self.dispatch.lock();
        let reading = dispatch.ledger().places().cursor().ordinal();
        dispatch.backlog().tracks().to_evict(reading, full)
    }

    /// Evicts more of a map, until that is done or there is time for a rest: then tells how far it
    /// is.
    fn evict(&self, mut eviction: Eviction, may_rest: bool) -> Option<Eviction> {
        let worker = &self.context.worker;
        while !worker.is_stopping() {
            let Some(steps) = self.step(&mut eviction) else {
                // From here on it can be given up, synced and let go.
                worker.ask();
                return None;
            };
            let rest = Maker::new(&self.appender).rest_after(steps).filter(|_| may_rest);
            if let Some(rest) = rest {
                worker.step_within(rest);
                return Some(eviction);
            }
        }
        None
    }

    /// Tells how many such steps are left; `None` if all of the map is evicted, or somebody else
    /// has given it up.
    fn step(&self, eviction: &mut Eviction) -> Option<u64> {
        let Eviction { map, offset, piece } = eviction;
        let step = self.context.unmapping.with(map, |map| {
            let (size, start, end) = (map.segment.header.size, *offset, clock::now() + STEP);
            let mut now = clock::now();
            while *offset < size && now < end || *offset == start {
                let bytes = (*piece).min(size - *offset);
                map.region.evict(*offset, bytes);
                *offset += bytes;
                let began: Instant = std::mem::replace(&mut now, clock::now());
                *piece = if now - began < QUICK { *piece * 2 } else { PIECE };
            }
            (size - *offset).div_ceil(*offset - start)
        });
        if step == Some(0) {
            self.dispatch.lock().backlog().tracks().note_evicted(&eviction.map);
        }
        step.filter(|&steps| steps > 0)
    }
}
