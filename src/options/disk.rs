//! Options about the disk that a queue is on.

use super::Options;
use crate::seq::Seq;
use std::time::Duration;

impl Options {
    /// How long nothing must be pushed before a queue gives up what it keeps for the next burst;
    /// default 10 s, `None`: never. A queue that is empty then takes less than 2 MiB, its dead
    /// letters included, and grows again as it did at first: each file is twice as large as the one
    /// before. The background does it; without one, [`Queue::maintain`](crate::Queue::maintain)
    /// does it once the time is over. `cargo bench --bench burst` in keepq's repository prints what
    /// it costs the next burst.
    pub fn shrink_after(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.shrink_after = idle.into();
        self
    }

    /// The first number that a push of this run may get; default none. It only raises: if the next
    /// number would be higher anyway, it changes nothing. Up to 2^61.
    ///
    /// For a queue whose directory was restored from an old copy: that does not know the numbers
    /// that were given out after it was made, and would give them out again. A consumer that
    /// remembers numbers would take new messages for ones that it has done. Give a number above
    /// all that the world has seen, at each open of the copy, or until a push has returned: a run
    /// that pushes nothing leaves no trace of it. The numbers of dead letters, which are numbers of
    /// their own, begin there, too: for those, until there was one. The numbers that are left out
    /// are unknown to [`Queue::is_acked`](crate::Queue::is_acked).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let options = keepq::Queue::options().first_seq(1_000_000);
    /// let queue = options.open(dir.path().join("restored"))?;
    /// assert_eq!(u64::from(queue.push("new")?), 1_000_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn first_seq(mut self, seq: impl Into<Seq>) -> Self {
        self.first_seq = seq.into().0;
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
