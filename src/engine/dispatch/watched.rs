//! What tests watch of the short way.

/// Whether it is open, and who went it.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) is_closed: bool,
    /// How many messages were taken on it.
    pub(crate) taken: u64,
    /// How many of them were read ahead.
    pub(crate) read_ahead: u64,
}
