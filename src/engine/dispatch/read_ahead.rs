//! Records behind the cursor that were copied before their messages are handed out.
//!
//! Promises: each of them was found at its own place, as its header's check says, and the copy of
//! its body is verified. Relies on records to stay as they are while their segment is in the log:
//! what may change is in slots, and those are looked at when a message is handed out.

use super::taken::{BodyPlace, TakenBody};
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::bytes::to_u64;
use crate::format::record::{HEADER, RecordHeader};
use crate::log::sealed::Mapped;
use crate::log::side_by_side::whole_side_by_side;
use std::sync::Arc;

/// No more bytes are copied than these: as long as one payload is held, all are.
const MOST_BYTES: u64 = 4096;
/// So many at first: a consumer may take only one message here and there.
const FEWEST_BYTES: u64 = 512;
/// Behind a longer record none are copied: there would be too few in a copy.
const LONGEST: u64 = 1024;

/// Records side by side, of which the first few may be handed out already.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// `None` once all are handed out: the memory is that of their holders.
    bytes: Option<Arc<Vec<u8>>>,
    /// Where the next one starts among them.
    start: usize,
    /// Where it lies in the log.
    ordinal: Ordinal,
    index: Index,
    offset: Offset,
    /// How many bytes to copy next, if all of these are used up then.
    next_bytes: u64,
}

impl ReadAhead {
    /// Record `index`, which is this one, at `offset`, is handed out by itself: a copy of records
    /// behind it, up to one that is not plain, in the bytes of `most` records as long as this one.
    /// Shorter ones among them may be more, and not to be seen yet: they are placed for good, and
    /// whoever takes one asks that again. Each time that consumers have used up a copy and go on
    /// behind it, the next one takes twice as many bytes.
    pub(super) fn behind(
        &self,
        mapped: &Mapped,
        index: Index,
        offset: Offset,
        this: &RecordHeader,
        most: u32,
    ) -> Self {
        let ordinal = mapped.segment.header.ordinal;
        let is_used_up = self.bytes.is_none() && (self.ordinal, self.index) == (ordinal, index);
        let most_bytes = if is_used_up { self.next_bytes } else { FEWEST_BYTES };
        let len = this.record_len();
        let (index, offset) = (index.next(), offset + len);
        let wanted =
            if len > LONGEST { 0 } else { most_bytes.min(len.saturating_mul(most.into())) };
        let bytes = whole_side_by_side(mapped, index, offset, wanted);
        let is_worth_it = 2 * to_u64(bytes.len()) >= most_bytes;
        let next_bytes = if is_worth_it { MOST_BYTES.min(2 * most_bytes) } else { FEWEST_BYTES };
        let bytes = Some(bytes).filter(|bytes| !bytes.is_empty()).map(Arc::new);
        Self { bytes, start: 0, ordinal, index, offset, next_bytes }
    }

    /// The header of record `index`, and where it lies, if it is the next one.
    #[inline]
    pub(super) fn next(&self, ordinal: Ordinal, index: Index) -> Option<(RecordHeader, Offset)> {
        if index != self.index || ordinal != self.ordinal {
            return None;
        }
        let header = self.bytes.as_ref()?.get(self.start..)?.first_chunk()?;
        Some((RecordHeader::of_checked(header), self.offset))
    }

    /// Takes the body of the next one, whose header this is.
    #[inline]
    pub(super) fn take_body(&mut self, header: &RecordHeader) -> TakenBody {
        let (start, len) = (self.start, header.record_len());
        self.start += usize::try_from(len).unwrap_or(usize::MAX);
        (self.index, self.offset) = (self.index.next(), self.offset + len);
        let is_last = self.bytes.as_ref().is_none_or(|bytes| bytes.len() <= self.start);
        let bytes = if is_last { self.bytes.take() } else { self.bytes.clone() };
        TakenBody::Shared(bytes.unwrap_or_default(), BodyPlace::of(start + HEADER, header))
    }
}

#[cfg(all(test, feature = "fault-injection"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail")]

    use super::*;
    use crate::engine::futures::{ack, engine, push};
    use crate::engine::{Engine, Need, Promise};
    use crate::log::draft::Draft;

    /// With its header a plain record takes 64 bytes.
    const PAYLOAD: [u8; 40] = [7; 40];

    /// Pops all that is there. Tells of each copy how many bytes it has, and has memory for.
    fn copies(engine: &Engine) -> (Vec<usize>, Vec<usize>) {
        let mut copies = Vec::new();
        while let Some(taken) = engine.consumers().pop(|taken| taken, || {}).unwrap() {
            let dispatch = engine.dispatch.lock();
            let ReadAhead { bytes, start, .. } = &dispatch.read_ahead;
            copies.extend(bytes.iter().filter(|_| *start == 0).map(|b| (b.len(), b.capacity())));
            drop(dispatch);
            ack(engine, &taken);
        }
        copies.into_iter().unzip()
    }

    /// A payload keeps the memory of all that were copied with it.
    #[test]
    fn a_copy_has_memory_for_little_more_than_it_holds_and_grows_by_use() {
        let engine = engine();
        let push_plain = |number| (0..number).for_each(|_| assert!(push(&engine, &PAYLOAD) > 0));
        // Behind the first one, whose file has to be mapped, copies of 8, 16, 32, 64 and 1, each
        // behind one that is handed out by itself.
        push_plain(1 + 9 + 17 + 33 + 65 + 2);
        assert_eq!(copies(&engine).0, [512, 1024, 2048, 4096, 64]);
        push_plain(9 + 17 + 33 + 65 + 2);
        let draft = [Draft::plain((&PAYLOAD[..]).into()).unwrap().with(true, None, None)];
        engine.producers().append(&draft, Need::of(&draft), Promise::PLACED).unwrap();
        push_plain(9 + 17 + 33 + 9);
        let (bytes, memory) = copies(&engine);
        assert_eq!(bytes, [512, 1024, 2048, 4096, 64, 512, 1024, 2048, 512]);
        assert!(memory.iter().zip(bytes).all(|(&memory, bytes)| memory <= 2 * bytes), "{memory:?}");
    }
}
