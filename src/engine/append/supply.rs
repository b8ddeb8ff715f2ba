//! What pushes will need: the segment that is ready, and what the next one will be.
//!
//! Plain data under the `supply` lock. No ordinal is given out twice, and `seq_limit` never falls.

use super::leftovers::Leftovers;
use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::address::Ordinal;
use crate::format::segment::SegmentHeader;
use crate::io::Region;
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::unnamed::Unnamed;
use crate::options::Options;
use crate::recovery::{Log, Part};
use crate::time::Millis;
use std::mem;
use std::sync::Arc;

/// The first segment of a run. The next ones are larger, up to `segment_bytes`, where pushes come
/// fast.
pub(crate) const FIRST_SEGMENT: u64 = 1 << 20;

/// A segment that is filled in less time is followed by one twice as large.
const GROWS_BELOW: Millis = Millis(2_000);

/// One that takes longer is followed by one half as large.
const SHRINKS_ABOVE: Millis = Millis(30_000);

/// Where there are more segments than this, the next ones are larger, however slowly pushes come:
/// what is done for each at open, and in each CHECKPOINT, stays little.
const MANY: usize = 256;

/// How large the segment is to be that follows one of this size, which is filled in this time, if
/// that is known.
pub(super) fn next_size(size: u64, fill_time: Option<Millis>, segments: usize, limit: u64) -> u64 {
    let is_fast = fill_time.is_some_and(|time| time < GROWS_BELOW);
    let is_slow = fill_time.is_some_and(|time| time > SHRINKS_ABOVE);
    if is_fast || segments > MANY {
        limit.min(size.saturating_mul(2))
    } else if is_slow {
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

impl Prepared {
    /// Whether it is the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment)
    }
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

/// A segment that has no name yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) ordinal: Ordinal,
    pub(super) size: u64,
}

impl Made {
    pub(super) fn of(header: &SegmentHeader) -> Self {
        Self { ordinal: header.ordinal, size: header.size }
    }
}

/// The segment that is made ahead of need, until it has its name.
#[derive(Debug, Default)]
pub(super) enum Making {
    #[default]
    Nothing,
    /// A thread is at work on it, without the lock.
    UnderWay(Made),
    /// The same, and another one waits for it.
    Awaited(Made),
    /// Nobody is at work on it now. It can get its name at any time, as far as it is.
    Resting(Unnamed),
}

impl Making {
    /// Takes the segment at which nobody is at work, to go on with it.
    pub(super) fn take_resting(&mut self) -> Option<Unnamed> {
        match mem::take(self) {
            Self::Resting(unnamed) => {
                *self = Self::UnderWay(Made::of(unnamed.header()));
                Some(unnamed)
            }
            other => {
                *self = other;
                None
            }
        }
    }
}

/// Whether the background rests, and goes on in a while with the segment that it makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rest {
    UnderWay,
    Over,
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
    /// How large the active segment is, were it not for a large message; or how large the first
    /// one is to be.
    pub(super) base_bytes: u64,
    /// The same of the one that was prepared last.
    pub(super) prepared_bytes: u64,
    pub(super) seq_limit: u64,
    pub(super) ready: Option<Prepared>,
    pub(super) making: Making,
    /// A segment that is not resident as a whole, and how far it is.
    pub(super) warming: Option<(Prepared, u64)>,
    pub(super) rest: Rest,
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
            base_bytes: FIRST_SEGMENT.min(options.segment_limit()),
            prepared_bytes: FIRST_SEGMENT.min(options.segment_limit()),
            seq_limit: log.seq_limit,
            ready: None,
            making: Making::Nothing,
            warming: None,
            rest: Rest::Over,
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
    pub(super) fn made(&self) -> Option<Made> {
        match &self.making {
            Making::Nothing => None,
            Making::UnderWay(made) | Making::Awaited(made) => Some(*made),
            Making::Resting(unnamed) => Some(Made::of(unnamed.header())),
        }
    }

    /// Its ordinal.
    pub(super) fn making(&self) -> Option<Ordinal> {
        self.made().map(|made| made.ordinal)
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn segments_are_as_large_as_pushes_and_the_backlog_need() {
        let size = |size, millis, segments| {
            next_size(size, Some(Millis(millis)), segments, 100 * MIB) / MIB
        };
        assert_eq!([size(MIB, 0, 1), size(MIB, 1_999, 1), size(64 * MIB, 1_999, 1)], [2, 2, 100]);
        assert_eq!([size(4 * MIB, 2_000, 1), size(4 * MIB, 30_000, 1)], [4, 4]);
        assert_eq!([size(4 * MIB, 30_001, 1), size(MIB, 30_001, 1)], [2, 1]);
        // A small one took the place of a large one that was idle.
        assert_eq!(next_size(IDLE_SEGMENT, Some(Millis(99_999)), 1, MIB), IDLE_SEGMENT);
        assert_eq!([size(MIB, 30_001, MANY), size(MIB, 30_001, MANY + 1)], [1, 2]);
        assert_eq!(next_size(MIB, None, 1, 100 * MIB), MIB, "no segment was filled yet");
        assert_eq!(next_size(MIB, None, 1, MIB / 2), MIB / 2);
    }
}
