//! Where a segment is in the log.

use crate::format::address::Ordinal;

/// Where a segment is in the log, whatever comes and goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct LogPlace {
    pub(super) first_seq: u64,
    pub(super) ordinal: Ordinal,
}
