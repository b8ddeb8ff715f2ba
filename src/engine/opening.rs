//! What open does before the rooms of an engine exist.

use super::space::{CHECKPOINT_ROOM, Share};
use super::worker::Worker;
use crate::error::{Error, Result};
use crate::io::{Access, Storage};
use crate::log::merge::merge;
use crate::log::sealed::Mapped;
use crate::options::Options;
use crate::recovery::{Log, Replaced};
use std::io::ErrorKind;
use std::sync::Arc;

/// What an engine is given besides options and storage.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The background thread, running or not.
    pub(crate) worker: Arc<Worker>,
    /// The bytes of the disk that its files take.
    pub(crate) space: Arc<Share>,
    /// It is for the dead letters of another queue.
    pub(crate) is_for_dead_letters: bool,
}

impl Setting {
    /// The bytes that the files of a log take. Room for CHECKPOINT counts from the start, also for
    /// that of the dead letters, before they are opened.
    pub(super) fn bytes_of(&self, log: &Log, options: &Options) -> u64 {
        let replaced = log.replaced.iter().flat_map(|replaced| &replaced.sources);
        let replaced = replaced.map(|source| &source.segment);
        let all = log.parts.iter().map(|part| &part.segment).chain(replaced);
        let segments: u64 = all.map(|segment| segment.header.size).sum();
        let leftovers: u64 = log.leftovers.iter().map(|left| left.bytes).sum();
        let segments = segments + leftovers + log.unusable_bytes;
        let checkpoint = log.checkpoint.size();
        if self.is_for_dead_letters {
            return segments + checkpoint.saturating_sub(CHECKPOINT_ROOM);
        }
        let others = if options.dead_letters { CHECKPOINT_ROOM } else { 0 };
        segments + checkpoint.max(CHECKPOINT_ROOM) + others
    }
}

/// Gives messages in copies their latest states, where a crash left the sources of a copy. From
/// then on the copies count, so their names have to outlast a power cut: a killed run may have left
/// one that does not.
pub(super) fn merge_replaced(storage: &dyn Storage, log: &Log) -> Result<()> {
    if !log.replaced.is_empty() {
        let synced = storage.sync_directory();
        synced.map_err(|error| Error::io("sync directory", &storage.path(""), 0, error))?;
    }
    for Replaced { copy, sources } in &log.replaced {
        let segment = Arc::clone(&copy.segment);
        let region = segment.map(Access::Commits)?;
        let mapped = Mapped::new(segment, region, Some(copy.tail));
        merge(&mapped, copy.first_seq, copy.base_time, copy.count, sources)?;
    }
    Ok(())
}

/// Fails if a queue is there, or is not there, against the options.
pub(super) fn check_presence(
    storage: &dyn Storage,
    options: &Options,
    is_sign: impl Fn(&str) -> bool,
) -> Result<()> {
    if options.create && !options.create_new {
        return Ok(());
    }
    let directory = storage.path("");
    let entries =
        storage.list().map_err(|error| Error::io("list directory", &directory, 0, error))?;
    let is_there = entries.iter().any(|entry| is_sign(&entry.name));
    let kind = match (is_there, options.create_new) {
        (true, true) => ErrorKind::AlreadyExists,
        (false, false) => ErrorKind::NotFound,
        _ => return Ok(()),
    };
    let what = if is_there { "a queue is there (create_new)" } else { "no queue (create(false))" };
    Err(Error::io("open", &directory, 0, std::io::Error::new(kind, what)))
}
