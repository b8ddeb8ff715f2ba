//! The changes of slots, and those that a sync of answers covers.
//!
//! Promises: a change is unsynced until a sync begins after it, and again if that sync fails.

/// Counts the changes of slots.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Number of the newest one.
    newest: u64,
    /// The newest one for which a sync has begun.
    synced: u64,
}

impl Changes {
    /// `has_segments`: a run before this one may have changed slots that are not synced yet.
    pub(super) fn new(has_segments: bool) -> Self {
        Self { newest: u64::from(has_segments), synced: 0 }
    }

    /// So many slots are changed.
    #[inline]
    pub(super) fn note(&mut self, slots: u32) {
        self.newest += u64::from(slots);
    }

    /// The number of the newest change.
    #[inline]
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether there are changes for which no sync has begun.
    #[inline]
    pub(crate) fn has_unsynced(&self) -> bool {
        self.newest > self.synced
    }

    /// A sync of all of them begins; gives the number of the newest one.
    pub(super) fn begin_sync(&mut self) -> u64 {
        self.synced = self.newest;
        self.newest
    }

    /// A sync failed, or could not begin.
    pub(crate) fn forget_synced(&mut self) {
        self.synced = 0;
    }
}
