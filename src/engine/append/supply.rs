//! What pushes will need: the segment that is ready, and what the next one will be.
//!
//! Plain data under the `supply` lock. No ordinal is given out twice, and `seq_limit` never falls.

use super::leftovers::Leftovers;
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::io::Region;
use crate::log::Segment;
use crate::log::active::Active;
use crate::options::Options;
use crate::recovery::{Log, Part};
use std::sync::Arc;

/// The first segment of a run; each next one is twice as large, up to `segment_bytes`.
pub(crate) const FIRST_SEGMENT: u64 = 1 << 20;

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
            compacting: None,
            leftovers: Leftovers::default(),
            old_tail: unsealed.collect(),
        }
    }

    /// The segment that the next one follows. `active`: the one that is pushed to.
    pub(super) fn predecessor(&self, active: Option<&Active>) -> Ordinal {
        active.map_or(self.last_of_earlier_runs, |active| active.segment().header.ordinal)
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
    /// Of the segment that is ready, and of the copy that is being made.
    pub(crate) ready: Option<Ordinal>,
    pub(crate) compacting: Option<Ordinal>,
    /// This run has a segment.
    pub(crate) has_begun: bool,
    /// All of earlier runs is durable and sealed.
    pub(crate) is_old_tail_finished: bool,
}
