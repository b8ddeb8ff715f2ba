//! Numbers about an open queue.

/// Numbers about an open queue, from [`Queue::stats`](crate::Queue::stats).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// queue.push(b"a")?;
/// assert_eq!(queue.stats()?.ready(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    pub(crate) ready: u64,
    pub(crate) in_flight: u64,
    pub(crate) lost: u64,
    pub(crate) segments: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) background_error: Option<String>,
}

impl Stats {
    /// Messages that can be handed out.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.ready
    }

    /// Messages that are handed out and not answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Messages that `pop` found damaged and passed over since open.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Segment files in use, without the one that is kept ready.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.segments
    }

    /// Bytes that those files take.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The last error that the background thread met, such as a full disk while it prepared a
    /// file ahead of need.
    #[must_use]
    pub fn last_background_error(&self) -> Option<&str> {
        self.background_error.as_deref()
    }
}
