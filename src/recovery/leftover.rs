//! Files that mean nothing any more, and what stays because of them.

use crate::format::address::Ordinal;

/// A file that means nothing any more.
#[derive(Clone, Debug)]
pub(crate) struct Leftover {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// What it was made from, if it is a copy.
    pub(crate) sources: Vec<Ordinal>,
}

/// A segment that stays while these files may come back, which have some of its messages with older
/// states: what it was made from, or a copy of it that was given up.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) ordinal: Ordinal,
    pub(crate) files: Vec<String>,
}
