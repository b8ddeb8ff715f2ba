//! What every room of an engine is given: the door to the disk, options, time, and the places to
//! tell others.

mod unmapping;

use super::health::Health;
use super::space::Share;
use super::waiters::Waiters;
use super::worker::Worker;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::format::standing::Run;
use crate::io::Storage;
use crate::log::Segment;
use crate::options::Options;
use crate::seq::QueueId;
use crate::time::Time;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
pub(crate) use unmapping::{RoomTries, Unmapping};

/// After this time what failed for a moment is tried again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Shared by the rooms of one engine.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) id: QueueId,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) options: Options,
    pub(crate) clock: Arc<Clock>,
    pub(crate) run: Run,
    pub(crate) health: Health,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) worker: Arc<Worker>,
    /// The bytes of the disk that its files take.
    pub(crate) space: Arc<Share>,
    /// More files are open than the limit says: some may be held open by unsynced answers alone.
    pub(crate) surplus: Hint,
    /// Messages have died, and may wait to be moved to the dead letters.
    pub(crate) died: Hint,
    /// When those are moved that the dead letters refused, if they refused any.
    pub(crate) move_again: TimeHint,
    pub(crate) unmapping: Unmapping,
}

/// Says that something may have to be done. To ask it costs one load.
#[derive(Debug, Default)]
pub(crate) struct Hint(AtomicBool);

impl Hint {
    pub(crate) fn note(&self) {
        // Relaxed, here and below: a hint.
        self.0.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether it was noted since the last call.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// A time at which something may have to be done, if there is one.
#[derive(Debug, Default)]
pub(crate) struct TimeHint(AtomicU64);

impl TimeHint {
    pub(crate) fn set(&self, time: Option<Time>) {
        // Relaxed, here and below: a hint.
        self.0.store(time.unwrap_or(Time::ZERO).0, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Time> {
        Some(Time(self.0.load(Ordering::Relaxed))).filter(|&time| time > Time::ZERO)
    }
}

impl Context {
    pub(crate) fn directory(&self) -> PathBuf {
        self.storage.path("")
    }

    /// Fails if the directory was removed, with all in it; then no sync is believed any more.
    pub(super) fn check_directory(&self) -> Result<()> {
        let found = self.storage.check_directory();
        self.health.believe("find directory", &self.directory(), found)
    }

    /// Syncs a segment that holds messages or their states: a failed sync poisons the queue. So
    /// does one of a file whose name another file has: nothing that is in it is found again. What
    /// was only removed is lost with its messages, and nothing need be known of those.
    pub(super) fn sync(&self, segment: &Segment) -> Result<()> {
        self.health.sync(segment)?;
        if !segment.is_gone() {
            return Ok(());
        }
        match self.storage.open(&segment.name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            // Nothing can be said now, for want of a descriptor, say.
            Err(error) if error.kind() != ErrorKind::InvalidInput => {
                Err(Error::io("find segment", &segment.path, 0, error))
            }
            // Another file has the name, or a directory.
            _ => self.believe_name(segment),
        }
    }

    /// Syncs a copy whose sources are let go next: they still have what is lost with its file, also
    /// if that was only removed.
    pub(super) fn sync_copy(&self, copy: &Segment) -> Result<()> {
        self.sync(copy)?;
        if copy.is_gone() { self.believe_name(copy) } else { Ok(()) }
    }

    /// Poisons the queue if the name of a file was removed, or belongs to another file.
    pub(super) fn believe_name(&self, segment: &Segment) -> Result<()> {
        self.health.believe("find segment", &segment.path, segment.check_name())
    }

    /// Removes a file that means nothing any more, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match self.storage.remove(name) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove file", &self.storage.path(name), 0, error))
            }
            _ => Ok(()),
        }
    }

    /// Some upkeep failed, and is to be tried again: by the background, or by the producer that
    /// waits for room.
    pub(super) fn retry_upkeep(&self) {
        // In a poisoned queue it would fail for ever.
        if self.health.check(false).is_ok() {
            self.space.note_retry();
            self.worker.ask_within(RETRY_AFTER);
        }
    }

    /// How soon the background looks again for something to compact after a message was settled.
    pub(super) fn look_interval(&self) -> Duration {
        (self.options.compaction.idle / LOOKS).max(SOON)
    }
}

/// The background looks this often within the time after which a segment counts as idle.
const LOOKS: u32 = 4;
/// The soonest look.
pub(super) const SOON: Duration = Duration::from_millis(50);

/// On cache lines of its own, so that producers and consumers do not slow each other down.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
