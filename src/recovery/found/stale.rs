//! Copies that are back when it is too late.
//!
//! Promises: what was settled in a segment that was let go does not come back with a copy of it
//! that never counted. One that counted is listed with a message for as long as it is there.

use super::super::segment_file::SegmentFile;
use super::DirectoryReader;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::checkpoint::Checkpoint;
use crate::io::Storage;
use std::collections::BTreeMap;

impl DirectoryReader {
    /// Takes the copies out that never counted, since no list has them with a message, though one
    /// of their sources was let go: what they have of that was settled.
    pub(super) fn take_stale_copies(
        &mut self,
        kept: &mut BTreeMap<Ordinal, SegmentFile>,
        checkpoint: Option<&Checkpoint>,
        storage: &dyn Storage,
    ) -> Result<Vec<SegmentFile>> {
        let Some(known) = checkpoint else { return Ok(Vec::new()) };
        let mut stale = Vec::new();
        let is_listed = |ordinal: &Ordinal| known.used_segment(*ordinal).is_some();
        for (ordinal, file) in kept.iter().filter(|(ordinal, _)| !is_listed(ordinal)) {
            let sources = file.sources(storage)?;
            if sources.iter().any(|source| source < ordinal && known.let_go(*source)) {
                stale.push(*ordinal);
            }
        }
        // They are seen now.
        self.half_made.extend(&stale);
        Ok(stale.into_iter().filter_map(|ordinal| kept.remove(&ordinal)).collect())
    }
}
