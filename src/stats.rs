//! Numbers about an open queue.

/// Numbers about an open queue, from [`Queue::stats`](crate::Queue::stats).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// queue.push(b"a")?;
/// assert_eq!(queue.stats().ready(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    pub(crate) ready: u64,
    pub(crate) in_flight: u64,
    pub(crate) delayed: u64,
    pub(crate) lost: u64,
    pub(crate) pushed: u64,
    pub(crate) popped: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) nacked: u64,
    pub(crate) released: u64,
    pub(crate) purged: u64,
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

    /// Messages that were given back and wait for their time, such as those that did not decode.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        self.delayed
    }

    /// Messages pushed since open.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Deliveries handed out since open; a message that came back counts again.
    #[must_use]
    pub fn popped(&self) -> u64 {
        self.popped
    }

    /// Deliveries among [`Stats::popped`] of messages that had been handed out before, in this run
    /// or an earlier one.
    #[must_use]
    pub fn redelivered(&self) -> u64 {
        self.redelivered
    }

    /// Deliveries acked since open.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Deliveries given back since open with their attempt counted: by `nack` or by drop.
    #[must_use]
    pub fn nacked(&self) -> u64 {
        self.nacked
    }

    /// Deliveries given back since open as if they had not been handed out.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.released
    }

    /// Messages that [`Queue::purge`](crate::Queue::purge) settled since open.
    #[must_use]
    pub fn purged(&self) -> u64 {
        self.purged
    }

    /// Messages that `pop` found damaged and passed over since open.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Segment files in use, without the one that is kept ready for what comes.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.segments
    }

    /// Bytes that those files take on the disk, whatever is in them.
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
