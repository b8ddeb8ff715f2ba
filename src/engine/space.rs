//! What files take of the disk, and may take: of a queue and its dead letters together.
//!
//! Promises: no more than `max_bytes` are taken, but for a CHECKPOINT that has to grow. Relies on
//! whoever makes or removes a file to say so.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest segment that is made, where there is no room for a larger one.
pub(crate) const SMALLEST_SEGMENT: u64 = 64 << 10;

/// What a CHECKPOINT of a few hundred segments takes.
pub(super) const CHECKPOINT_ROOM: u64 = 2 * crate::format::PAGE;

/// What is left for the dead letters: two segments of the smallest size, so that there is room for
/// a new one before the old one is gone.
pub(crate) const DEAD_LETTERS_ROOM: u64 = 2 * SMALLEST_SEGMENT;

/// What files may take, and take: of a queue and its dead letters together.
#[derive(Debug, Default)]
pub(crate) struct Space {
    max: Option<u64>,
    used: AtomicU64,
}

/// The part of one engine in it.
#[derive(Debug)]
pub(crate) struct Share {
    space: Arc<Space>,
    own: AtomicU64,
    /// All that was ever given back.
    given_back: AtomicU64,
    /// So much is left for the others.
    reserve: u64,
    /// And so much for compaction.
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
}

impl Share {
    /// Of the queue itself, which leaves so much for its dead letters, and so much for compaction.
    pub(crate) fn of_queue(space: Arc<Space>, reserve: u64, scratch: u64) -> Arc<Self> {
        let (own, given_back) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { space, own, given_back, reserve, scratch })
    }

    /// Of its dead letters.
    pub(crate) fn of_dead_letters(of: &Self) -> Arc<Self> {
        Self::of_queue(Arc::clone(&of.space), 0, of.scratch)
    }

    /// What is found takes so much in all, over the limit or not.
    pub(super) fn set(&self, bytes: u64) {
        let before = self.own.swap(bytes, Ordering::SeqCst);
        self.space.used.fetch_add(bytes, Ordering::SeqCst);
        self.space.used.fetch_sub(before, Ordering::SeqCst);
    }

    /// So much more is there, over the limit or not.
    pub(super) fn add(&self, bytes: u64) {
        self.own.fetch_add(bytes, Ordering::SeqCst);
        // SeqCst, here and below: pairs with itself. Whoever waits for room registers and then
        // looks at this; whoever gives some back changes it and then asks who waits.
        self.space.used.fetch_add(bytes, Ordering::SeqCst);
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

    /// What the others have not taken yet of what is left for them.
    fn reserve_left(&self) -> u64 {
        self.reserve_beside(self.of_others())
    }

    /// What is left for the others once they take so much: always a segment of the smallest size,
    /// so that they can begin another while they cannot let go of the last one.
    fn reserve_beside(&self, others: u64) -> u64 {
        self.reserve.saturating_sub(others).max(self.reserve.min(SMALLEST_SEGMENT))
    }

    fn take_and_leave(&self, bytes: u64, reserve: u64) -> Result<()> {
        let max = self.space.max.unwrap_or(u64::MAX);
        let fits = |used: &u64| used.saturating_add(reserve) <= max;
        let add = |used: u64| used.checked_add(bytes).filter(fits);
        let taken = self.space.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        if taken.is_err() {
            return Err(Error::Full { limit: "max_bytes", max });
        }
        self.own.fetch_add(bytes, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.own.fetch_sub(bytes, Ordering::SeqCst);
        self.space.used.fetch_sub(bytes, Ordering::SeqCst);
        // Relaxed: a number by itself.
        self.given_back.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was taken was not needed.
    pub(super) fn undo(&self, bytes: u64) {
        self.own.fetch_sub(bytes, Ordering::SeqCst);
        self.space.used.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// Bytes that were given back since open.
    pub(crate) fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    /// What others take.
    pub(super) fn of_others(&self) -> u64 {
        self.space.used().saturating_sub(self.own.load(Ordering::SeqCst))
    }

    /// Whether a file of this size could be made if nothing but so much was taken, here and by the
    /// others.
    pub(super) fn could_ever_take(&self, bytes: u64, fixed: u64, others: u64) -> bool {
        let left = others + self.reserve_beside(others) + self.scratch;
        let all = bytes.saturating_add(fixed).saturating_add(left);
        self.space.max.is_none_or(|max| all <= max)
    }
}
