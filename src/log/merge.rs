//! Merging the states of copied messages. After a crash between the copy and the removal of its
//! sources, a message has two states: one in the copy, and one in a source.
//!
//! Promises: each message in the copy gets the later of its states; to merge again, or only half,
//! does no harm. Relies on the copy being synced before a source is let go.

use super::Segment;
use super::sealed::Mapped;
use crate::error::Result;
use crate::format::address::Index;
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
    /// An earlier run made it.
    pub(crate) is_old: bool,
}

impl CopySource {
    fn end_seq(&self) -> u64 {
        let count = u64::from(self.count);
        let sources = self.segment.sources.as_ref();
        sources.map_or(self.first_seq + count, |sources| sources.last_seq + 1)
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
    for source in sources {
        let from = copy.index_from(source.first_seq, Index(count), first_seq)?;
        let mut reader = SlotReader::new(source);
        for index in from.until(Index(count)) {
            let Some(seq) = copy.seq(index, first_seq)? else { continue };
            if seq >= source.end_seq() {
                break;
            }
            let Some((slot, delay)) = reader.state_of(seq)? else { continue };
            let (known, known_delay) = copy.words(index, base_time)?;
            let said = (slot, delay.readable());
            if known.is_some_and(|known| !is_later(said, (known, known_delay.readable()))) {
                continue;
            }
            let offset = known.and_then(|known| known.offset);
            copy.store_delay(index, base_time, delay)?;
            copy.store_slot(index, Slot { offset, ..slot })?;
        }
    }
    Ok(())
}

/// Reads slots of a source, in the order of the Seqs of their messages.
struct SlotReader<'a> {
    source: &'a CopySource,
    by_table: Option<Mapped>,
    first: Index,
    held: Vec<Option<(Slot, StoredDelay)>>,
}

impl<'a> SlotReader<'a> {
    fn new(source: &'a CopySource) -> Self {
        let segment = &source.segment;
        let by_table = segment.sources.is_some().then(|| {
            let (segment, region) = (Arc::clone(segment), segment.window());
            Mapped { segment, region }
        });
        Self { source, by_table, first: Index::FIRST, held: Vec::new() }
    }

    /// `None` if the source does not have this message, or its slot is damaged.
    fn state_of(&mut self, seq: u64) -> Result<Option<(Slot, StoredDelay)>> {
        let CopySource { segment, first_seq, base_time, count, .. } = self.source;
        let index = match &self.by_table {
            Some(mapped) => mapped.index_of(seq, Index(*count), *first_seq)?,
            None => u32::try_from(seq - first_seq).ok().filter(|index| index < count).map(Index),
        };
        let Some(index) = index else { return Ok(None) };
        let held = |this: &Self| {
            let skip = usize::try_from(index.checked_since(this.first)?).ok()?;
            this.held.get(skip).copied()
        };
        if held(self).is_none() {
            let end = Index((*count).min(most_slots(segment.header.size)));
            let rest = end.since(index);
            let slots = segment.read_slots(index, SLOTS_A_STEP.min(rest), *base_time)?;
            self.held = slots.map(|read| Some((read.slot?, read.delay))).collect();
            self.first = index;
        }
        Ok(held(self).flatten())
    }
}
