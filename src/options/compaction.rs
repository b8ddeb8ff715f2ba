//! How the disk that settled messages hold is given back.

use super::{invalid, within};
use crate::error::Result;
use std::time::Duration;

/// How the disk that settled messages hold is given back, where others beside them are owed: those are copied
/// into a smaller file, in the background. For [`Options::compaction`](crate::Options::compaction).
///
/// A file in which nothing is owed is given back without this.
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
    /// None at all: a file stays until nothing in it is owed. [`Queue::compact`](crate::Queue::compact) works all
    /// the same.
    pub fn off() -> Self {
        Self { is_on: false, ..Self::default() }
    }

    /// Files are copied once what is owed in them takes no more than this part of them, 10 to 80; default 50. So
    /// the disk in use is at most 100 / this times what is owed, and for each byte that pushes took at most
    /// this / (100 - this) bytes are written again: twice and once at 50. (Small files are gathered besides: see
    /// [`Stats::compacted_bytes`](crate::Stats::compacted_bytes).)
    pub fn live_percent(mut self, percent: u64) -> Self {
        self.live_percent = percent;
        self
    }

    /// How long nothing was settled in a file before it is copied; default 1 s. A file whose messages were all handed
    /// out once, and of which less than a sixteenth is still owed, waits for 50 ms at the most.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Bytes a second that the background reads and writes for it, from 64 KiB; default 128 MiB. A push that
    /// finds no room, and [`Queue::compact`](crate::Queue::compact), do not wait.
    pub fn max_rate(mut self, bytes: u64) -> Self {
        self.rate = bytes;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        within("compaction.live_percent", self.live_percent, &(10..=80))?;
        within("compaction.max_rate", self.rate, &(64 << 10..=u64::MAX))?;
        if self.idle > Duration::from_secs(86_400) {
            let value = format!("{:?}", self.idle);
            return Err(invalid("compaction.idle", value, "up to a day"));
        }
        Ok(())
    }
}
