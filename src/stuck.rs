//! What holds the disk.

use crate::seq::Seq;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file with unsettled messages, and the oldest of them: from
/// [`Queue::stuck`](crate::Queue::stuck).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// queue.push(b"never answered")?;
/// let forgotten = queue.pop()?.expect("one is waiting");
/// let oldest = &queue.stuck(1)?[0];
/// assert_eq!((oldest.seq(), oldest.messages()), (forgotten.seq(), 1));
/// assert_eq!(oldest.state(), keepq::MessageState::InFlight);
/// assert!(oldest.held_bytes() > oldest.live_bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stuck {
    pub(crate) seq: Seq,
    pub(crate) pushed_at: SystemTime,
    pub(crate) age: Duration,
    pub(crate) attempts: u32,
    pub(crate) state: MessageState,
    pub(crate) path: PathBuf,
    pub(crate) messages: u64,
    pub(crate) live_bytes: u64,
    pub(crate) held_bytes: u64,
}

/// Where an unsettled message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MessageState {
    /// It can be handed out.
    Ready,
    /// It waits for its time.
    Delayed,
    /// A consumer has it, and has not answered.
    InFlight,
    /// It is on its way to the dead letters.
    Dying,
    /// Only a newer version of keepq can read it, so no consumer gets it here.
    SetAside,
}

impl Stuck {
    /// The oldest unsettled message of the file.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// When that message was pushed: see [`Delivery::pushed_at`](crate::Delivery::pushed_at).
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        self.pushed_at
    }

    /// How long ago that was.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }

    /// How often the message was handed out so far.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Where the message is.
    #[must_use]
    pub fn state(&self) -> MessageState {
        self.state
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many messages of the file are unsettled.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes that those messages take, with their states.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The other bytes that the file takes on the disk: what could be given back if its unsettled
    /// messages were settled, or (except for the newest file) copied.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}
