//! Letting segments go: for whom it is done, and how far it came.

/// Who lets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// It leaves what is to be evicted first, and writes CHECKPOINT once enough has changed.
    Background,
    /// It takes a map as it is, and writes CHECKPOINT once enough has changed.
    Producer,
    /// It takes a map as it is, and writes CHECKPOINT at once.
    Caller,
}

/// What letting go did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LetGo {
    /// Segments that were removed, or will be used again.
    pub(crate) segments: usize,
    /// There may be more.
    pub(crate) has_more: bool,
}

impl LetGo {
    pub(super) const NOTHING: Self = Self { segments: 0, has_more: false };
}
