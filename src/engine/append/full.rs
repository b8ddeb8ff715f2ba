//! A segment of this run that was pushed to, and has no seal yet.

use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::segment::Seal;
use crate::log::Segment;
use crate::log::active::Active;
use std::sync::Arc;

/// A segment that is no longer pushed to. Its map is not kept: with its pages unmapped, a sync
/// need not write-protect each of them on all processors.
#[derive(Clone, Debug)]
pub(crate) struct Full {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first_seq: u64,
    pub(crate) seal: Seal,
}

impl Full {
    /// Fails if what failed batches left behind its tail cannot be erased: that could be taken for
    /// the end of the log, in front of what later segments hold.
    pub(super) fn of(active: &mut Active) -> Result<Self> {
        active.erase_remains()?;
        let segment = Arc::clone(active.segment());
        Ok(Self { segment, first_seq: active.first_seq(), seal: active.seal(false) })
    }

    pub(crate) fn ordinal(&self) -> Ordinal {
        self.segment.header.ordinal
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.seal.count) - 1
    }
}
