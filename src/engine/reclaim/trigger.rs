//! Why a copy is made.

/// What a copy is made for, and so what may be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trigger {
    /// The background found segments that have not changed for a while.
    Idle,
    /// A caller or a producer wants the room: all that is worth it.
    Requested,
    /// A run begins: the small segments that short runs leave behind.
    NewRun,
}
