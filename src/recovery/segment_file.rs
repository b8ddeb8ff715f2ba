//! A segment's file whose header was read, and what becomes of it.

use super::leftover::Leftover;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::segment::{Activation, SegmentHeader, most_slots};
use crate::io::{Storage, StorageFile};
use crate::log::{Marks, Segment};
use std::sync::Arc;

/// A file with a valid header.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) name: String,
    pub(super) header: SegmentHeader,
    pub(super) marks: Marks,
    pub(super) file: Arc<dyn StorageFile>,
    /// Why it is not used as a whole.
    pub(super) remark: Option<&'static str>,
}

impl SegmentFile {
    pub(super) fn is_compacted(&self) -> bool {
        self.header.sources > 0
    }

    pub(super) fn into_segment(self, storage: &dyn Storage) -> Segment {
        let Self { name, header, marks, file, .. } = self;
        Segment::found(storage, name, header, marks, file)
    }

    fn segment(&self, storage: &dyn Storage) -> Segment {
        let Self { name, header, marks, file, .. } = self;
        let (header, file) = (header.clone(), Arc::clone(file));
        Segment::found(storage, name.clone(), header, marks.clone(), file)
    }

    /// The segments that it was made from, as far as it says so.
    pub(super) fn sources(&self, storage: &dyn Storage) -> Result<Vec<Ordinal>> {
        let is_compacted = self.is_compacted();
        let sources = if is_compacted { self.segment(storage).read_sources()? } else { None };
        Ok(sources.map_or_else(Vec::new, |sources| sources.ordinals))
    }

    /// Its first Seq, and the last one that it may have; `None` if it does not say where they
    /// begin.
    pub(super) fn numbers(&self, storage: &dyn Storage) -> Result<Option<(u64, u64)>> {
        let segment = self.segment(storage);
        let Some(Activation { first_seq, .. }) = segment.activation()? else { return Ok(None) };
        let most = u64::from(most_slots(self.header.size));
        let count = segment.seal()?.map_or(most, |seal| u64::from(seal.count));
        let sources = if self.is_compacted() { segment.read_sources()? } else { None };
        let last = sources.map_or(first_seq + count.max(1) - 1, |sources| sources.last_seq);
        Ok(Some((first_seq, last)))
    }

    /// A segment that was let go.
    pub(super) fn into_leftover(self, storage: &dyn Storage) -> Result<Leftover> {
        let (bytes, sources) = (self.file.size(), self.sources(storage)?);
        Ok(Leftover { name: self.name, bytes, sources })
    }
}
