//! The number of a message.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// The number of a message. Numbers increase in push order, and no number is ever given to another
/// message.
///
/// Numbers may be skipped (after a crash, numbering goes on above every number that may have been
/// given out), but are never reused. So a `Seq` can be the key that makes processing idempotent.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let queue = keepq::Queue::open(dir.path().join("orders"))?;
/// let first = queue.push(b"a")?;
/// let second = queue.push(b"b")?;
/// assert!(first < second);
/// assert_eq!(second, second.to_string().parse()?);
/// assert_eq!(second, u64::from(second).into());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub(crate) u64);

impl Seq {
    /// Whether this is the number 0, which no message has. A push returns it when
    /// [`Overflow::DropNewest`](crate::Overflow::DropNewest) dropped the message.
    #[must_use]
    pub fn is_dropped(self) -> bool {
        self.0 == 0
    }
}

/// What tells one queue from every other: 16 random bytes, made with the queue. It stays the same
/// through opens, moves and copies of its directory.
///
/// A `Seq` is unique in the life of one queue. A consumer that remembers the numbers that it has
/// done, in another database say, keeps the id beside them: a queue that was removed and made anew
/// begins its numbers again, and has another id. A *copy* that was restored has the same id and may
/// give out numbers again that were given out after it was made: see
/// [`Options::first_seq`](crate::Options::first_seq).
///
/// Its text is 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueueId(pub(crate) [u8; 16]);

impl QueueId {
    /// The 16 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueId({self})")
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// For a number that was stored elsewhere, to ask [`Queue::is_acked`](crate::Queue::is_acked).
impl From<u64> for Seq {
    fn from(seq: u64) -> Self {
        Self(seq)
    }
}

/// For a number that was stored as text.
impl FromStr for Seq {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

impl From<Seq> for u64 {
    fn from(seq: Seq) -> Self {
        seq.0
    }
}
