#![doc = include_str!("../README.md")]

mod backoff;
mod checkpoint;
mod clock;
mod compaction;
mod dead_letters;
mod delivery;
mod distribution;
mod engine;
mod error;
mod format;
#[cfg_attr(
    not(feature = "fault-injection"),
    allow(unreachable_pub, reason = "the feature exports it")
)]
mod io;
mod leases;
mod log;
mod message;
mod open_queue;
mod options;
mod peeked;
mod queue;
mod random;
mod ranges;
mod recovery;
mod report;
mod schedule;
mod seq;
mod stats;
mod stuck;
mod time;
mod typed;

/// The pages: how to use keepq, what to choose, how it is built, and why it can be trusted.
pub mod docs {
    /// A tour: open, push, pop, ack, wait, headers, values, errors, testing.
    #[doc = include_str!("docs/guide.md")]
    pub mod guide {}
    /// Which durability, how many queues, what in one message, how to do things once.
    #[doc = include_str!("docs/choosing.md")]
    pub mod choosing {}
    /// The bytes on disk: enough to write a reader from.
    #[doc = include_str!("docs/format.md")]
    pub mod format {}
    /// Where keepq stands against the limits of disk and memory, and how to measure it.
    #[doc = include_str!("docs/performance.md")]
    pub mod performance {}
    /// How the parts work together, and which other ways were rejected.
    #[doc = include_str!("docs/design.md")]
    pub mod design {}
    /// The assumptions, the invariants, the argument for each crash, and the tests that attack it.
    #[doc = include_str!("docs/proof.md")]
    pub mod proof {}
}

/// The interface to the operating system's files, and other implementations of it: memory that
/// forgets like a disk that loses power, and calls that fail. For tests of keepq, and of programs
/// that use it.
#[cfg(feature = "fault-injection")]
pub mod fault {
    pub use crate::clock::ManualClock;
    pub use crate::io::fault::{FaultPlan, FaultStorage};
    pub use crate::io::memory::{CrashImage, MemoryStorage};
    pub use crate::io::{Access, Entry, Region, Storage, StorageFile};
}

pub use backoff::Backoff;
pub use delivery::{DeadLetter, DeathCause, Delivery, Receipt};
pub use distribution::Distribution;
pub use error::{Error, Result};
pub use message::Message;
pub use options::{Compaction, Durability, Expired, Options, Overflow};
pub use peeked::{Messages, Peeked};
pub use queue::Queue;
pub use report::{CheckpointState, Compacted, Damage, DamageKind, RecoveryReport};
pub use seq::{QueueId, Seq};
pub use stats::Stats;
pub use stuck::{MessageState, Stuck};
pub use typed::{TypedDelivery, TypedQueue};
