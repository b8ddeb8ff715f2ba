//! A segment that counts, and how much of it.

use crate::format::address::Offset;
use crate::log::Segment;
use crate::time::Time;
use std::sync::Arc;

/// A segment that counts.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first_seq: u64,
    pub(crate) base_time: Time,
    pub(crate) count: u32,
    /// Where its records end.
    pub(crate) tail: Offset,
    /// Whether its seal already says the same.
    pub(crate) is_sealed: bool,
}

impl Part {
    /// The Seq after its last one.
    pub(crate) fn end_seq(&self) -> u64 {
        let sources = self.segment.sources.as_ref();
        sources.map_or(self.first_seq + u64::from(self.count), |sources| sources.last_seq + 1)
    }
}
