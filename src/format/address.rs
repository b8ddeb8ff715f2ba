//! Where a record lies. Each number that is part of an address has a type of its own, so that the
//! compiler notices when one is taken for another.

use serde::{Deserialize, Serialize};

/// The number of a segment file, counted from 1: a larger one is a newer file, and no two files of
/// a queue have the same. The limit that open checks is 2^62.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ordinal(pub(crate) u64);

impl Ordinal {
    /// No segment has it.
    pub(crate) const NONE: Self = Self(0);

    /// That of the file that is made next.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
