//! What is to be tidied: the checkpoint, files that are no longer needed, copies to be synced.
//!
//! Promises: a source of a copy can be let go only once the copy is said to be synced; a segment is
//! listed as kept until every other file that has some of its messages is removed for good. Only
//! keeps the lists: `retire` syncs, removes and writes, under the lock that guards this.

use crate::checkpoint::CheckpointFile;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::format::bytes::to_u64;
use crate::log::Segment;
use crate::log::merge::CopySource;
use crate::recovery::{Kept, Leftover, Log};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A segment that is not needed any more. With the number of its slots, it can be used again;
/// without, a payload may still be copied out of it.
type Retired = (Arc<Segment>, Option<u32>);

/// What is to be tidied.
#[derive(Debug)]
pub(super) struct Upkeep {
    checkpoint: CheckpointFile,
    /// Files that mean nothing any more; their bytes count as used.
    leftovers: Vec<Leftover>,
    /// Those of them that no slot of CHECKPOINT lists.
    unlisted_leftovers: Vec<Leftover>,
    /// Those that this run gave up, some of which may be removed.
    given_up: Vec<String>,
    /// Segments without an unsettled message, with the number of their slots.
    done: Vec<Retired>,
    /// Those of them that no slot of CHECKPOINT lists.
    unlisted: VecDeque<Retired>,
    /// Copies, each with its sources, which are let go once the copy is synced with the latest
    /// states.
    replaced: Vec<(Arc<Segment>, Vec<Retired>)>,
    /// Segments that stay while others may come back.
    kept: Vec<Kept>,
    /// This run has synced the directory: names that a killed run gave last are durable.
    has_durable_names: bool,
    /// When the list was written last, and the next ordinal then.
    listed: Option<(Instant, Ordinal)>,
    is_closed: bool,
}

impl Upkeep {
    pub(super) fn new(log: Log) -> Self {
        let kept = log.kept();
        let Log { checkpoint, leftovers, replaced, .. } = log;
        let counted = |source: CopySource| (source.segment, None);
        let replaced = replaced.into_iter().map(|replaced| {
            let sources = replaced.sources.into_iter().map(counted).collect();
            (replaced.copy.segment, sources)
        });
        Self {
            checkpoint,
            leftovers,
            unlisted_leftovers: Vec::new(),
            given_up: Vec::new(),
            done: Vec::new(),
            unlisted: VecDeque::new(),
            replaced: replaced.collect(),
            kept,
            has_durable_names: false,
            listed: None,
            is_closed: false,
        }
    }

    /// A copy that may have this name was given up; this many bytes count as used by it.
    pub(super) fn give_up(&mut self, name: String, bytes: u64) {
        self.given_up.push(name.clone());
        self.leftovers.push(Leftover { name, bytes, sources: Vec::new() });
    }

    /// A file that no slot of CHECKPOINT lists means nothing any more.
    pub(super) fn leave_unlisted(&mut self, name: String, bytes: u64) {
        self.unlisted_leftovers.push(Leftover { name, bytes, sources: Vec::new() });
    }

    /// This segment stays until these files, which have some of its messages, are gone for good.
    pub(super) fn keep(&mut self, ordinal: Ordinal, files: Vec<String>) {
        self.kept.push(Kept { ordinal, files });
    }

    /// From here on a copy counts, and its sources do not. Payloads may still be copied out of the
    /// sources.
    pub(super) fn replace(&mut self, copy: Arc<Segment>, sources: Vec<Arc<Segment>>) {
        let files = sources.iter().map(|source| source.name.clone()).collect();
        self.keep(copy.header.ordinal, files);
        let sources = sources.into_iter().map(|source| (source, None));
        self.replaced.push((copy, sources.collect()));
    }

    /// Whether all names that open found outlast a power cut.
    pub(super) fn has_durable_names(&self) -> bool {
        self.has_durable_names
    }

    /// The directory is synced.
    pub(super) fn note_durable_names(&mut self) {
        self.has_durable_names = true;
    }

    /// A copy that is not synced with the states that it was given last.
    pub(super) fn unsynced_copy(&self) -> Option<&Arc<Segment>> {
        self.replaced.last().map(|(copy, _)| copy)
    }

    /// That copy is synced: its sources can be let go.
    pub(super) fn note_synced_copy(&mut self) {
        if let Some((_, sources)) = self.replaced.pop() {
            self.done.extend(sources);
        }
    }

    /// Takes those that were kept because of files that are all removed.
    pub(super) fn take_last_kept(&mut self) -> Vec<Kept> {
        if self.kept.is_empty() {
            return Vec::new();
        }
        let Self { done, unlisted, leftovers, unlisted_leftovers, replaced, kept, .. } = self;
        let sources = replaced.iter().flat_map(|(_, sources)| sources);
        let segments = done.iter().chain(&*unlisted).chain(sources);
        let segments = segments.map(|(segment, _)| &segment.name);
        let leftovers = leftovers.iter().chain(&*unlisted_leftovers).map(|left| &left.name);
        let there: BTreeSet<&String> = segments.chain(leftovers).collect();
        let is_needed = |kept: &Kept| kept.files.iter().any(|name| there.contains(name));
        let (needed, last) = std::mem::take(kept).into_iter().partition(is_needed);
        self.kept = needed;
        last
    }

    /// Keeps these all the same: the removal of the files is not durable yet.
    pub(super) fn keep_on(&mut self, kept: Vec<Kept>) {
        self.kept.extend(kept);
    }

    /// The segments that are kept.
    pub(super) fn kept_ordinals(&self) -> BTreeSet<Ordinal> {
        self.kept.iter().map(|kept| kept.ordinal).collect()
    }

    /// This segment left the log without an unsettled message; it has this many slots.
    pub(super) fn add_done(&mut self, segment: Arc<Segment>, count: u32) {
        self.done.push((segment, Some(count)));
    }

    /// How many files are to be removed or used again, now or once a copy is synced, and may be in
    /// a slot of CHECKPOINT.
    fn listed_files(&self) -> usize {
        let sources = self.replaced.iter().map(|(_, sources)| sources.len());
        self.done.len() + self.leftovers.len() + sources.sum::<usize>()
    }

    /// Whether there are any of those.
    pub(super) fn has_listed_files(&self) -> bool {
        self.listed_files() > 0
    }

    /// CHECKPOINT was written, with all segments below this ordinal that are in use. `is_whole`: no
    /// slot lists another one.
    pub(super) fn note_listed(&mut self, next_ordinal: Ordinal, is_whole: bool) {
        if is_whole {
            self.unlisted.extend(self.done.drain(..));
            self.unlisted_leftovers.append(&mut self.leftovers);
        }
        self.listed = Some((clock::now(), next_ordinal));
    }

    /// How many segments came or are to go since the list was written, and how long ago that was;
    /// nothing if it was not written yet.
    pub(super) fn listed_since(&self, next_ordinal: Ordinal) -> Option<(u64, Duration)> {
        let (at, listed) = self.listed?;
        let new = next_ordinal.0.saturating_sub(listed.0);
        Some((new + to_u64(self.listed_files()), clock::now() - at))
    }

    /// Segments that were taken out of the log, and may be in a slot of CHECKPOINT.
    pub(super) fn done_count(&self) -> usize {
        self.done.len()
    }

    /// Segments that can be removed or used again now.
    pub(super) fn unlisted_count(&self) -> usize {
        self.unlisted.len()
    }

    /// The first of those, this many at most.
    pub(super) fn take_unlisted(&mut self, limit: usize) -> Vec<Retired> {
        self.unlisted.drain(..limit.min(self.unlisted.len())).collect()
    }

    /// How many copies that were given up are not removed yet.
    pub(super) fn given_up_count(&mut self) -> usize {
        let leftovers = self.leftovers.iter().chain(&self.unlisted_leftovers);
        let there: BTreeSet<&String> = leftovers.map(|left| &left.name).collect();
        self.given_up.retain(|name| there.contains(name));
        self.given_up.len()
    }

    /// The files that mean nothing any more, and can be removed now.
    pub(super) fn take_leftovers(&mut self) -> Vec<Leftover> {
        std::mem::take(&mut self.unlisted_leftovers)
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
