//! What pushes will need: the segment that is ready, and what the next one will be.
//!
//! Plain data under the `supply` lock. No ordinal is given out twice, and `seq_limit` never falls.

use super::leftovers::Leftovers;
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::address::Ordinal;
use crate::io::Region;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::unnamed::Unnamed;
use crate::options::Options;
use crate::recovery::{Log, Part};
use crate::time::Millis;
use std::sync::Arc;

/// The first segment of a run. The next ones are larger, up to `segment_bytes`, where pushes come
/// fast.
pub(crate) const FIRST_SEGMENT: u64 = 1 << 20;

/// A segment that is filled in less time is followed by one twice as large.
const GROWS_BELOW: Millis = Millis(2_000);

/// One that takes longer is followed by one half as large.
const SHRINKS_ABOVE: Millis = Millis(30_000);

/// How large the segment is to be that follows one of this size, which is filled in this time.
pub(super) fn next_size(size: u64, fill_time: Millis, limit: u64) -> u64 {
    if fill_time < GROWS_BELOW {
        limit.min(size.saturating_mul(2))
    } else if fill_time > SHRINKS_ABOVE {
        (size / 2 / PAGE * PAGE).max(FIRST_SEGMENT).min(size)
    } else {
        size.min(limit)
    }
}

/// A queue that is idle and empty keeps no segment that is larger.
pub(super) const LARGEST_IDLE: u64 = 512 << 10;

/// What takes the place of a larger one.
pub(super) const IDLE_SEGMENT: u64 = 256 << 10;

/// A segment that can be pushed to at once.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) segment: Arc<Segment>,
    pub(crate) region: Arc<dyn Region>,
}

/// Whether a segment that is done is kept as the ready one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spare {
    /// It is, if there is none.
    Kept,
    /// It was given up because the queue was idle, or for what needed its room more: none is kept
    /// until pushes go on to another segment.
    NotKept,
}

/// The segment that is made ahead of need, until it has its name.
#[derive(Debug, Default)]
pub(super) enum Making {
    #[default]
    Nothing,
    /// A thread is at work on it, without the lock.
    UnderWay(Ordinal),
    /// The same, and another one waits for it.
    Awaited(Ordinal),
    /// Nobody is at work on it now. It can get its name at any time.
    Paused(Unnamed),
}

/// What pushes will need.
#[derive(Debug)]
pub(super) struct Supply {
    pub(super) queue_id: [u8; 16],
    pub(super) epoch: u64,
    /// Whether this run has a segment.
    pub(super) has_begun: bool,
    /// The directory itself may not be durable in its parents yet.
    pub(super) is_new: bool,
    pub(super) is_closed: bool,
    pub(super) spare: Spare,
    pub(super) next_ordinal: Ordinal,
    /// The newest segment that was there at open.
    pub(super) last_of_earlier_runs: Ordinal,
    pub(super) next_bytes: u64,
    pub(super) seq_limit: u64,
    pub(super) ready: Option<Prepared>,
    pub(super) making: Making,
    /// A segment that is not resident as a whole, and how far it is.
    pub(super) warming: Option<(Prepared, u64)>,
    /// The ordinal of a compacted segment in the making: it may have its name before anybody reads
    /// it.
    pub(super) compacting: Option<Ordinal>,
    pub(super) leftovers: Leftovers,
    /// Parts of earlier runs that have no seal yet.
    pub(super) old_tail: Vec<Part>,
}

impl Supply {
    pub(super) fn new(log: &Log, options: &Options) -> Self {
        let newest = log.parts.last().map(|part| part.segment.header.ordinal);
        let unsealed = log.parts.iter().filter(|part| !part.is_sealed).cloned();
        Self {
            queue_id: log.queue_id,
            epoch: log.epoch,
            has_begun: false,
            is_new: log.is_new,
            is_closed: false,
            spare: Spare::Kept,
            next_ordinal: log.next_ordinal,
            last_of_earlier_runs: newest.unwrap_or(Ordinal::NONE),
            next_bytes: FIRST_SEGMENT.min(options.segment_limit()),
            seq_limit: log.seq_limit,
            ready: None,
            making: Making::Nothing,
            warming: None,
            compacting: None,
            leftovers: Leftovers::default(),
            old_tail: unsealed.collect(),
        }
    }

    /// The segment that the next one follows. `active`: the one that is pushed to.
    pub(super) fn predecessor(&self, active: Option<&Active>) -> Ordinal {
        active.map_or(self.last_of_earlier_runs, |active| active.segment().header.ordinal)
    }

    /// The segment that is made ahead, if it has no name yet.
    pub(super) fn making(&self) -> Option<Ordinal> {
        match &self.making {
            Making::Nothing => None,
            Making::UnderWay(ordinal) | Making::Awaited(ordinal) => Some(*ordinal),
            Making::Paused(unnamed) => Some(unnamed.header().ordinal),
        }
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }
}

/// What others ask of the supply; CHECKPOINT tells most of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SupplyState {
    pub(crate) queue_id: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) seq_limit: u64,
    /// No ordinal from this one on was given out.
    pub(crate) next_ordinal: Ordinal,
    /// Of the segment that is ready, of that which is made ahead, and of the copy in the making.
    pub(crate) ready: Option<Ordinal>,
    pub(crate) making: Option<Ordinal>,
    pub(crate) compacting: Option<Ordinal>,
    /// This run has a segment.
    pub(crate) has_begun: bool,
    /// All of earlier runs is durable and sealed.
    pub(crate) is_old_tail_finished: bool,
}
