//! What is to be tidied: the checkpoint, files that are no longer needed, copies to be synced.
//!
//! Promises: a source of a copy can be let go only once the copy is said to be synced, and its name
//! is known until it is removed for good. Only keeps the lists: `retire` syncs, removes and writes,
//! under the lock that guards this.

use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::log::Segment;
use crate::log::merge::CopySource;
use crate::recovery::Log;
use std::sync::Arc;

/// A segment that is not needed any more. With the number of its slots, it can be used again;
/// without, a payload may still be copied out of it.
type Retired = (Arc<Segment>, Option<u32>);

/// The ordinal of a copy, with the names of its sources.
type CopyOfSources = (Ordinal, Vec<String>);

/// What is to be tidied.
#[derive(Debug)]
pub(super) struct Upkeep {
    checkpoint: CheckpointFile,
    /// Names that mean nothing any more, with the bytes that count as used by them.
    leftovers: Vec<(String, u64)>,
    /// Segments without an unsettled message, with the number of their slots.
    done: Vec<Retired>,
    /// Copies, each with its sources, which are let go once the copy is synced with the latest
    /// states.
    replaced: Vec<(Arc<Segment>, Vec<Retired>)>,
    /// Copies whose sources are not known to be removed for good.
    with_sources: Vec<CopyOfSources>,
    is_closed: bool,
}

impl Upkeep {
    pub(super) fn new(log: Log) -> Self {
        let Log { checkpoint, leftovers, replaced, .. } = log;
        let counted = |source: CopySource| (source.segment, None);
        let replaced = replaced.into_iter().map(|replaced| {
            let sources = replaced.sources.into_iter().map(counted).collect();
            (replaced.copy.segment, sources)
        });
        Self {
            checkpoint,
            leftovers,
            done: Vec::new(),
            replaced: replaced.collect(),
            with_sources: Vec::new(),
            is_closed: false,
        }
    }

    /// This name means nothing any more; this many bytes count as used by it.
    pub(super) fn leave(&mut self, name: String, bytes: u64) {
        self.leftovers.push((name, bytes));
    }

    /// From here on a copy counts, and its sources do not. Payloads may still be copied out of the
    /// sources.
    pub(super) fn replace(&mut self, copy: Arc<Segment>, sources: Vec<Arc<Segment>>) {
        let sources = sources.into_iter().map(|source| (source, None));
        self.replaced.push((copy, sources.collect()));
    }

    /// A copy that is not synced with the states that it was given last.
    pub(super) fn unsynced_copy(&self) -> Option<&Arc<Segment>> {
        self.replaced.last().map(|(copy, _)| copy)
    }

    /// That copy is synced: its sources can be let go.
    pub(super) fn note_synced_copy(&mut self) {
        if let Some((copy, sources)) = self.replaced.pop() {
            let names = sources.iter().map(|(source, _)| source.name.clone()).collect();
            self.with_sources.push((copy.header.ordinal, names));
            self.done.extend(sources);
        }
    }

    /// Copies all of whose sources were removed.
    pub(super) fn take_copies_without_sources(&mut self) -> Vec<CopyOfSources> {
        let Self { done, leftovers, with_sources, .. } = self;
        let is_there = |name: &String| {
            done.iter().any(|(segment, _)| segment.name == *name)
                || leftovers.iter().any(|(left, _)| left == name)
        };
        let has_sources = |copy: &CopyOfSources| copy.1.iter().any(is_there);
        let (kept, removed) = std::mem::take(with_sources).into_iter().partition(has_sources);
        *with_sources = kept;
        removed
    }

    /// Puts copies back that were taken: the removal of their sources is not durable yet.
    pub(super) fn put_back_copies(&mut self, copies: Vec<CopyOfSources>) {
        self.with_sources.extend(copies);
    }

    /// This segment left the log without an unsettled message; it has this many slots.
    pub(super) fn add_done(&mut self, segment: Arc<Segment>, count: u32) {
        self.done.push((segment, Some(count)));
    }

    pub(super) fn done_count(&self) -> usize {
        self.done.len()
    }

    /// The first segments to be removed or used again, this many at most.
    pub(super) fn take_done(&mut self, limit: usize) -> Vec<Retired> {
        self.done.drain(..limit.min(self.done.len())).collect()
    }

    /// The first names to be removed, this many at most, with the bytes that count as used.
    pub(super) fn take_leftovers(&mut self, limit: usize) -> Vec<(String, u64)> {
        self.leftovers.drain(..limit.min(self.leftovers.len())).collect()
    }

    /// Whether any file is to be removed or used again, now or once a copy is synced.
    pub(super) fn has_files(&self) -> bool {
        !(self.done.is_empty() && self.leftovers.is_empty() && self.replaced.is_empty())
    }

    pub(super) fn checkpoint_file(&mut self) -> &mut CheckpointFile {
        &mut self.checkpoint
    }

    /// The run ends: nothing is let go after it.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }
}
