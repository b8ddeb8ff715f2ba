//! Who lets segments go, and what became of it.

/// Who lets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// CHECKPOINT is written once enough has changed; what is to be given back first, waits.
    Background,
    /// The first holds for it, too.
    Producer,
    /// Whoever wants it now.
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
