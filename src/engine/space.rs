//! The disk space that the files of a queue and its dead letters take together, and may take.
//!
//! Promises: no more than `max_bytes` are taken, but for a CHECKPOINT that has to grow, and for
//! moves to the dead letters that free what they take. Relies on the callers that make and remove
//! files to say so. Whatever is given back wakes a producer that waits for room.

use super::line::Line;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The smallest segment that is made, where there is no room for a larger one.
pub(crate) const SMALLEST_SEGMENT: u64 = 64 << 10;

/// What a CHECKPOINT of a few hundred segments takes.
pub(super) const CHECKPOINT_ROOM: u64 = 2 * crate::format::PAGE;

/// What is left for the dead letters: two segments of the smallest size, so that there is room for
/// a new one before the old one is gone.
pub(crate) const DEAD_LETTERS_ROOM: u64 = 2 * SMALLEST_SEGMENT;

/// The bytes that files may take, and take: those of a queue and its dead letters together.
#[derive(Debug, Default)]
pub(crate) struct Space {
    max: Option<u64>,
    used: AtomicU64,
    /// What open found in all, as far as it was not given back since: the limit may be lower.
    found: AtomicU64,
    /// Of them, those of files that are never given back.
    kept: AtomicU64,
    /// Where producers wait for room.
    room: Arc<Line>,
    /// Something failed that may make room.
    has_to_retry: AtomicBool,
}

/// The share of one engine in that space.
#[derive(Debug)]
pub(crate) struct Share {
    space: Arc<Space>,
    own: AtomicU64,
    /// By this much it may pass what is allowed, or was found.
    above: AtomicU64,
    /// Of them, those of files that are never given back.
    own_kept: AtomicU64,
    /// All bytes that were given back since open.
    given_back: AtomicU64,
    /// Bytes that are left for the others.
    reserve: u64,
    /// Bytes that are left for compaction.
    scratch: u64,
}

impl std::ops::Deref for Share {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

impl Space {
    pub(crate) fn new(max: Option<u64>) -> Self {
        Self { max, ..Self::default() }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    pub(super) fn max(&self) -> Option<u64> {
        self.max
    }

    /// Where producers wait for room: what the dead letters give back wakes them, too.
    pub(super) fn room(&self) -> &Arc<Line> {
        &self.room
    }

    /// Something failed that may make room: a producer that waits has it tried again.
    pub(super) fn note_retry(&self) {
        // Relaxed, here and below: it is for the thread that sets it. Any other producer that
        // waits finds out in its own look.
        self.has_to_retry.store(true, Ordering::Relaxed);
    }

    /// Whether that was noted since the last call.
    pub(super) fn take_retry(&self) -> bool {
        self.has_to_retry.swap(false, Ordering::Relaxed)
    }
}

impl Share {
    /// The share of the queue itself. It leaves `reserve` bytes for its dead letters, and `scratch`
    /// bytes for compaction.
    pub(crate) fn of_queue(space: Arc<Space>, reserve: u64, scratch: u64) -> Arc<Self> {
        let (own, above, own_kept, given_back) = Default::default();
        Arc::new(Self { space, own, above, own_kept, given_back, reserve, scratch })
    }

    /// The share of its dead letters.
    pub(crate) fn of_dead_letters(of: &Self) -> Arc<Self> {
        Self::of_queue(Arc::clone(&of.space), 0, of.scratch)
    }

    /// Sets what the files that open found take in all, over the limit or not, and how much of that
    /// is never given back.
    pub(super) fn set(&self, bytes: u64, kept: u64) {
        let before = self.own.swap(bytes, Ordering::SeqCst);
        self.space.used.fetch_add(bytes, Ordering::SeqCst);
        self.space.used.fetch_sub(before, Ordering::SeqCst);
        self.space.found.store(self.space.used(), Ordering::SeqCst);
        let before = self.own_kept.swap(kept, Ordering::SeqCst);
        self.space.kept.fetch_add(kept, Ordering::SeqCst);
        self.space.kept.fetch_sub(before, Ordering::SeqCst);
    }

    /// Adds bytes that are taken already, over the limit or not.
    pub(super) fn add(&self, bytes: u64) {
        self.own.fetch_add(bytes, Ordering::SeqCst);
        // SeqCst, here and below: pairs with itself. A thread that waits for room registers and
        // then looks at this; a thread that gives some back changes it and then asks for waiters.
        self.space.used.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Takes room for `size` bytes, or else for the smallest that does; returns which.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is none for that.
    pub(super) fn take_at_least(&self, size: u64, smallest: u64) -> Result<u64> {
        let smallest = smallest.min(size);
        self.take(size).map(|()| size).or_else(|full| {
            if smallest < size { self.take(smallest).map(|()| smallest) } else { Err(full) }
        })
    }

    /// Takes room for something new.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is none.
    pub(super) fn take(&self, bytes: u64) -> Result<()> {
        self.take_and_leave(bytes, self.reserve_left() + self.scratch)
    }

    /// Takes room for a copy of what will be let go.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is none.
    pub(super) fn take_scratch(&self, bytes: u64) -> Result<()> {
        self.take_and_leave(bytes, self.reserve_left())
    }

    /// How large such a copy may be.
    pub(super) fn scratch_room(&self) -> u64 {
        let used = self.space.used().saturating_add(self.reserve_left());
        self.space.max.map_or(u64::MAX, |max| max.saturating_sub(used))
    }

    /// The bytes that are left for the others, and that they have not taken yet.
    fn reserve_left(&self) -> u64 {
        self.reserve_beside(self.of_others())
    }

    /// The bytes that are left for the others once they take `others`: always a segment of the
    /// smallest size, so that they can begin another while they cannot let go of the last one.
    fn reserve_beside(&self, others: u64) -> u64 {
        self.reserve.saturating_sub(others).max(self.reserve.min(SMALLEST_SEGMENT))
    }

    /// Makes something that gives back what it takes, and more: it may pass the limit by this many
    /// bytes. So may, meanwhile, all else in this share.
    pub(crate) fn above_limit<T>(&self, bytes: u64, make: impl FnOnce() -> T) -> T {
        self.above.store(bytes, Ordering::SeqCst);
        let result = make();
        self.above.store(0, Ordering::SeqCst);
        result
    }

    fn take_and_leave(&self, bytes: u64, reserve: u64) -> Result<()> {
        let max = self.space.max.unwrap_or(u64::MAX);
        let most = match self.above.load(Ordering::SeqCst) {
            0 => max,
            above => max.max(self.space.found.load(Ordering::SeqCst)).saturating_add(above),
        };
        let fits = |used: &u64| used.saturating_add(reserve) <= most;
        let add = |used: u64| used.checked_add(bytes).filter(fits);
        let taken = self.space.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        if taken.is_err() {
            return Err(Error::Full { limit: "max_bytes", max });
        }
        self.own.fetch_add(bytes, Ordering::SeqCst);
        Ok(())
    }

    /// Files are gone: a producer that waits looks again.
    pub(super) fn give_back(&self, bytes: u64) {
        // Relaxed: a number by itself.
        self.given_back.fetch_add(bytes, Ordering::Relaxed);
        self.undo(bytes);
    }

    /// Undoes a take that was not needed: a producer that waits looks again. This does not count as
    /// given back.
    pub(super) fn undo(&self, bytes: u64) {
        self.own.fetch_sub(bytes, Ordering::SeqCst);
        let before = self.space.used.fetch_sub(bytes, Ordering::SeqCst);
        self.space.found.fetch_min(before - bytes, Ordering::SeqCst);
        self.space.room.wake_first();
    }

    /// Bytes that were given back since open.
    pub(crate) fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    /// How many bytes have to be given back before there is room for this many.
    pub(super) fn missing(&self, bytes: u64) -> u64 {
        let left = self.reserve_left() + self.scratch;
        let all = self.space.used().saturating_add(bytes).saturating_add(left);
        self.space.max.map_or(0, |max| all.saturating_sub(max))
    }

    /// The bytes that others take.
    pub(super) fn of_others(&self) -> u64 {
        self.space.used().saturating_sub(self.own.load(Ordering::SeqCst))
    }

    /// Returns true if a file of this size could be made while only `fixed` bytes are taken here,
    /// and `others` by the others, besides what is never given back.
    pub(super) fn could_ever_take(&self, bytes: u64, fixed: u64, others: u64) -> bool {
        let kept = self.own_kept.load(Ordering::SeqCst);
        let others = others.max(self.space.kept.load(Ordering::SeqCst).saturating_sub(kept));
        let left = kept + others + self.reserve_beside(others) + self.scratch;
        let all = bytes.saturating_add(fixed).saturating_add(left);
        self.space.max.is_none_or(|max| all <= max)
    }
}
