//! How to give back the disk space that settled messages hold.

use crate::error::{Error, Result, within};
use std::time::Duration;

/// How to give back the disk space that settled messages hold in files with unsettled ones: the
/// background copies the unsettled messages into a smaller file. For
/// [`Options::compaction`](crate::Options::compaction).
///
/// A file without unsettled messages is given back without compaction.
///
/// ```
/// use keepq::{Compaction, Queue};
/// # let dir = tempfile::tempdir()?;
/// let gently = Compaction::default().live_percent(25).max_rate(8 << 20);
/// let queue = Queue::options().compaction(gently).open(dir.path().join("orders"))?;
/// # queue.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Compaction {
    pub(crate) is_on: bool,
    pub(crate) live_percent: u64,
    pub(crate) idle: Duration,
    /// Bytes a second.
    pub(crate) rate: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        let (live_percent, idle, rate) = (50, Duration::from_secs(1), 128 << 20);
        Self { is_on: true, live_percent, idle, rate }
    }
}

impl Compaction {
    /// No compaction: a file stays until all its messages are settled.
    /// [`Queue::compact`](crate::Queue::compact) still works.
    pub fn off() -> Self {
        Self { is_on: false, ..Self::default() }
    }

    /// Files are copied once their unsettled messages take no more than this percentage of them, 10
    /// to 80; default 50. With p for this value, the disk in use is at most 100 / p times the bytes
    /// of the unsettled messages (twice at 50), and for each byte that pushes took, at most
    /// p / (100 - p) bytes are written again (one at 50). Besides, small files are gathered: see
    /// [`Stats::compacted_bytes`](crate::Stats::compacted_bytes).
    pub fn live_percent(mut self, percent: u64) -> Self {
        self.live_percent = percent;
        self
    }

    /// A file is copied once none of its messages was settled for this long; default 1 s, up to a
    /// day. If all messages of a file were handed out once, and less than a sixteenth of the file
    /// is unsettled, it waits for 50 ms at the most.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// How many bytes a second the background reads and writes for compaction, from 64 KiB; default
    /// 128 MiB. The limit does not apply to a push that finds no room, nor to
    /// [`Queue::compact`](crate::Queue::compact).
    pub fn max_rate(mut self, bytes: u64) -> Self {
        self.rate = bytes;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        within("compaction.live_percent", self.live_percent, &(10..=80))?;
        within("compaction.max_rate", self.rate, &(64 << 10..=u64::MAX))?;
        if self.idle > Duration::from_secs(86_400) {
            let value = format!("{:?}", self.idle);
            return Err(Error::invalid_option("compaction.idle", value, "up to a day"));
        }
        Ok(())
    }
}
