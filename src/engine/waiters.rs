//! All waiters of one queue, by what they wait for.

use super::line::Line;
use super::wait::WaitList;
use std::sync::Arc;

/// The wait lists by name.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// Consumers that wait for a message.
    pub(super) consumers: WaitList,
    /// Threads that wait for a message to be settled, by its Seq.
    pub(super) settled: WaitList,
    /// Threads that wait for the end of a round of syncs.
    pub(super) commit: WaitList,
    /// Producers that wait for room; what the dead letters give back wakes them, too.
    pub(super) room: Arc<Line>,
}

impl Waiters {
    /// With the line of another queue.
    pub(super) fn beside(room: &Arc<Line>) -> Self {
        Self { room: Arc::clone(room), ..Self::default() }
    }

    /// Wakes this many consumers, those first that wait longest.
    #[inline]
    pub(super) fn wake_consumers(&self, consumers: u64) {
        (0..consumers).for_each(|_| self.consumers.wake_one());
    }

    /// Wakes those who wait for a write that is over: this many consumers; if it has failed, its
    /// producers, and those who wait for room.
    pub(super) fn tell_written(&self, has_failed: bool, consumers: u64) {
        self.wake_consumers(consumers);
        if has_failed {
            self.commit.wake_all();
            // What is taken back has left room.
            self.room.wake_first();
        }
    }

    /// Makes all waiters look again: the queue is closed, or poisoned.
    pub(super) fn wake_all(&self) {
        self.consumers.wake_all();
        self.settled.wake_all();
        self.commit.wake_all();
        self.room.wake_first_for_good();
    }
}
