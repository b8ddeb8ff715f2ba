//! What is found in the log: a message, a place without one, or what cannot be read.

use crate::format::address::{Index, Offset};
use crate::format::record::RecordHeader;
use crate::format::standing::Standing;
use crate::leases::Place;
use std::ops::Range;

/// A record, by the position of its segment among the tracks and its index: good until tracks come
/// or go, which they do under the same lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    pub(crate) at: usize,
    pub(crate) index: Index,
}

/// A message that is stored and not settled, with its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundMessage {
    pub(crate) spot: Spot,
    pub(crate) place: Place,
    pub(crate) header: RecordHeader,
    /// Where it stands, as the disk says, its record included.
    pub(crate) standing: Standing,
}

/// What is stored where a message should be.
#[derive(Debug)]
pub(crate) enum Lookup {
    Found(FoundMessage),
    /// No segment has it, or it is settled.
    Gone,
    /// Its record cannot be found; it was sought from this offset on.
    Lost(Spot, Offset),
}

/// What a walk meets. The cursor stays at it until it is told to pass.
#[derive(Debug)]
pub(crate) enum Met {
    Message(FoundMessage),
    /// A slot that cannot be read, if that is not wanted.
    BadSlot(Spot),
    /// A message whose number cannot be read.
    Unnumbered(Spot),
    Lost(LostRecords),
    /// A segment of an earlier run, before its first slot.
    OldSegment(usize),
    /// Nothing yet: the lock is to be given up, so that others have their turn.
    Tired,
    /// Nothing more up to the last Seq.
    End,
}

/// Records that cannot be found.
#[derive(Clone, Debug)]
pub(crate) struct LostRecords {
    /// The position of their segment.
    pub(crate) at: usize,
    pub(crate) indexes: Range<Index>,
    /// Where they were sought from.
    pub(crate) offset: Offset,
    /// Where the one behind them is, or is sought from.
    pub(crate) next: Offset,
}
