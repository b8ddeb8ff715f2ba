//! Options about the disk that a queue is on.

use super::Options;
use std::time::Duration;

impl Options {
    /// How long nothing must be pushed before a queue gives up what it keeps for the next burst;
    /// default 10 s, `None`: never. A queue that is empty then takes less than 2 MiB, its dead
    /// letters included, and grows again as it did at first: each file is twice as large as the one
    /// before. The background does it; without one, [`Queue::maintain`](crate::Queue::maintain)
    /// does it once the time is over.
    pub fn shrink_after(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.shrink_after = idle.into();
        self
    }

    /// Says that nobody shares blocks of this queue's files with other files; default false. Blocks
    /// are shared by `cp` on xfs (reflinks: `cp --reflink=auto` is its default), and by snapshots
    /// and `cp` on btrfs. Where that is possible, keepq stores by `write`, which fails on a full
    /// disk; with this option it stores into maps, which is faster.
    ///
    /// If blocks are shared all the same, and the disk is full, the next store ends the process
    /// (SIGBUS). On ext4, tmpfs and xfs without reflinks the option changes nothing: no blocks can
    /// be shared there. Nor does it on file systems that copy each block that is written.
    pub fn unshared_blocks(mut self, are_unshared: bool) -> Self {
        self.unshared_blocks = are_unshared;
        self
    }
}
