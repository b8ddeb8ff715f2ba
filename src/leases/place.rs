//! Where a message lies that somebody has.

use crate::format::address::{Index, Offset, Ordinal};

/// What a lease knows of its message: which one it is, and where it lay when that was last looked
/// up. Compaction may have moved it since then; its Seq finds it again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) ordinal: Ordinal,
    pub(crate) index: Index,
    pub(crate) offset: Offset,
    /// The delivery that is under way is counted.
    pub(crate) attempts: u32,
    /// Bytes of its record.
    pub(crate) bytes: u32,
    pub(crate) is_transient: bool,
}
