//! Which messages of a damaged place are lost.
//!
//! Promises: a message whose slot says that it was settled needs no record, and is not lost. A slot
//! that cannot be read says nothing.

use crate::format::address::Index;
use crate::format::slot::{Slot, State};
use crate::log::Segment;
use crate::time::Time;

/// Slots read at once.
const SLOTS_A_STEP: u32 = 4096;

/// Calls `lost` with the first index and the end of each run of slots, of those from `first` to
/// before `end`, that do not say that their messages were settled by an earlier run.
pub(super) fn for_each_lost(
    segment: &Segment,
    (first, end): (Index, Index),
    base_time: Time,
    mut lost: impl FnMut(Index, Index),
) {
    let (mut start, mut index) = (first, first);
    while index < end {
        let number = end.since(index).min(SLOTS_A_STEP);
        if let Ok(slots) = segment.read_slots(index, number, base_time) {
            for read in slots {
                let settled = |slot: &Slot| slot.is_settled(true) && slot.state != State::Lost;
                if !read.slot.as_ref().is_some_and(settled) {
                    continue;
                }
                if start < read.index {
                    lost(start, read.index);
                }
                start = read.index.next();
            }
        }
        index = index + number;
    }
    if start < end {
        lost(start, end);
    }
}
