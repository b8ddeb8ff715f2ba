//! How far work that is done in steps has got: counting, dropping, purging.

use crate::engine::backlog::cursor::Cursor;

/// What counting found and has to be stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unfinished {
    /// A record of this segment whose number cannot be read, and which is not settled: lost.
    Unnumbered { ordinal: u64, index: u32 },
    /// The slot of this record of a segment cannot be read: rebuilt, and taken up then.
    BadSlot { ordinal: u64, index: u32 },
    /// It was dying, and there are no dead letters any more: dropped.
    Dropped { seq: u64 },
}

/// How far dropping a segment has got.
#[derive(Debug)]
pub(crate) struct Dropping {
    pub(super) cursor: Cursor,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) dropped: u64,
}

impl Dropping {
    /// How many messages were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The first Seq of its segment.
    pub(crate) fn first_seq(&self) -> u64 {
        self.first_seq
    }
}

/// What a step of dropping did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dropped {
    One,
    /// Nothing waits.
    None,
    /// Other work first: to be asked again.
    Again,
}

/// How far a purge has got.
#[derive(Debug)]
pub(crate) struct Purge {
    pub(super) cursor: Cursor,
    pub(super) last_seq: u64,
    pub(super) purged: u64,
}

impl Purge {
    /// Of all that wait up to this message.
    pub(crate) fn up_to(last_seq: u64) -> Self {
        Self { cursor: Cursor::START, last_seq, purged: 0 }
    }

    /// How many messages it has settled.
    pub(crate) fn purged(&self) -> u64 {
        self.purged
    }
}
