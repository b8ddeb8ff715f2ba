//! Merging the states of copied messages. After a crash between the copy and the removal of its
//! sources, a message has two states: one in the copy, and one in a source.
//!
//! Promises: each message in the copy gets the later of its states; to merge again, or only half,
//! does no harm. Relies on the copy being synced before a source is let go.

use super::Segment;
use super::sealed::Mapped;
use crate::error::Result;
use crate::format::address::{Index, Offset};
use crate::format::segment::most_slots;
use crate::format::slot::{Slot, StoredDelay, is_later};
use crate::time::Time;
use std::sync::Arc;

/// Slots read at once: a page of them.
const SLOTS_A_STEP: u32 = 256;

/// A segment whose unsettled messages a copy has, or will have.
#[derive(Clone, Debug)]
pub(crate) struct CopySource {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first_seq: u64,
    pub(crate) base_time: Time,
    /// How many records it has.
    pub(crate) count: u32,
    /// Where they end, if that is known.
    pub(crate) tail: Option<Offset>,
    /// An earlier run made it.
    pub(crate) is_old: bool,
}

impl CopySource {
    /// Its Seq table, if it is a copy itself.
    fn numbers(&self) -> Option<Mapped> {
        let segment = &self.segment;
        segment.sources.as_ref()?;
        Some(Mapped::new(Arc::clone(segment), segment.window(), self.tail))
    }
}

/// Gives each of `count` messages in `copy` the later of its states there and in `sources`.
pub(crate) fn merge(
    copy: &Mapped,
    first_seq: u64,
    base_time: Time,
    count: u32,
    sources: &[CopySource],
) -> Result<()> {
    let end = Index(count);
    for source in sources {
        let mut reader = SlotReader::new(source);
        let mut take_over = |index: Index, source_index: Index| {
            let Some((slot, delay)) = reader.state_of(source_index)? else { return Ok(()) };
            let (known, known_delay) = copy.words(index, base_time)?;
            let said = (slot, delay.readable());
            if known.is_some_and(|known| !is_later(said, (known, known_delay.readable()))) {
                return Ok(());
            }
            let offset = known.and_then(|known| known.offset);
            copy.store_delay(index, base_time, delay)?;
            copy.store_slot(index, Slot { offset, ..slot })
        };
        // Each way looks at no more records than the source has.
        if let Some(numbers) = source.numbers() {
            for source_index in Index::FIRST.until(Index(source.count)) {
                let Some(seq) = numbers.seq(source_index, source.first_seq)? else { continue };
                let index = copy.index_of(seq, end, first_seq)?;
                index.map_or(Ok(()), |index| take_over(index, source_index))?;
            }
            continue;
        }
        for index in copy.index_from(source.first_seq, end, first_seq)?.until(end) {
            let Some(seq) = copy.seq(index, first_seq)? else { continue };
            if seq >= source.first_seq + u64::from(source.count) {
                break;
            }
            let source_index = seq.checked_sub(source.first_seq).map(Index::saturating_from);
            source_index.map_or(Ok(()), |source_index| take_over(index, source_index))?;
        }
    }
    Ok(())
}

/// Reads slots of a source, in the order of its records.
struct SlotReader<'a> {
    source: &'a CopySource,
    first: Index,
    held: Vec<Option<(Slot, StoredDelay)>>,
}

impl<'a> SlotReader<'a> {
    fn new(source: &'a CopySource) -> Self {
        Self { source, first: Index::FIRST, held: Vec::new() }
    }

    /// `None` if the source does not have this record, or its slot is damaged.
    fn state_of(&mut self, index: Index) -> Result<Option<(Slot, StoredDelay)>> {
        let CopySource { segment, base_time, count, .. } = self.source;
        let end = Index((*count).min(most_slots(segment.header.size)));
        if index >= end {
            return Ok(None);
        }
        let held = |this: &Self| {
            let skip = usize::try_from(index.checked_since(this.first)?).ok()?;
            this.held.get(skip).copied()
        };
        if held(self).is_none() {
            let rest = end.since(index);
            let slots = segment.read_slots(index, SLOTS_A_STEP.min(rest), *base_time)?;
            self.held = slots.map(|read| Some((read.slot?, read.delay))).collect();
            self.first = index;
        }
        Ok(held(self).flatten())
    }
}
