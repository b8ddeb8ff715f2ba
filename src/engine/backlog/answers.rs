//! Whether the answers in a segment are on the disk.
//!
//! Promises: an answer is unsynced until a sync that covers it begins, and again if that sync fails
//! or cannot begin. While it is under way, the answers are not durable yet.

/// Whether the answers in a segment are on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answers {
    /// All are.
    Durable,
    /// An earlier run may have been killed before it synced them. This one has stored none.
    Inherited,
    /// Some are not, and no sync has begun that covers them.
    Unsynced,
    /// A sync has begun that covers all of them, and has not ended.
    InSync,
}

impl Answers {
    /// One was stored.
    #[inline]
    pub(super) fn note(&mut self) {
        *self = Self::Unsynced;
    }

    /// Whether there are some that the next sync has to cover.
    pub(crate) fn are_unsynced(self) -> bool {
        matches!(self, Self::Unsynced | Self::Inherited)
    }

    /// Whether the descriptor through which they were stored has to stay open for their sync.
    pub(super) fn hold_open(self) -> bool {
        matches!(self, Self::Unsynced | Self::InSync)
    }

    /// Whether all are on the disk.
    pub(crate) fn are_durable(self) -> bool {
        self == Self::Durable
    }

    /// A sync begins that covers all of them.
    pub(super) fn begin_sync(&mut self) {
        *self = Self::InSync;
    }

    /// That sync ended. If it failed, the next one has to cover them.
    pub(super) fn end_sync(&mut self, is_synced: bool) {
        if *self == Self::InSync {
            *self = if is_synced { Self::Durable } else { Self::Unsynced };
        }
    }

    /// All were synced, and nothing is stored any more.
    pub(crate) fn set_durable(&mut self) {
        *self = Self::Durable;
    }
}
