//! Messages that are shown and not taken.

use crate::delivery::{DeadLetter, dead_letter};
use crate::engine::{Engine, Viewed, Walk};
use crate::error::Result;
use crate::format::extension;
use crate::seq::Seq;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

/// A copy of a message that stays in the queue, from [`Queue::peek`](crate::Queue::peek),
/// [`Queue::iter`](crate::Queue::iter) or [`Queue::get`](crate::Queue::get). Derefs to the payload.
/// It needs no answer, and it shows what was true when it was made.
pub struct Peeked {
    viewed: Viewed,
}

impl Peeked {
    pub(crate) fn new(viewed: Viewed) -> Self {
        Self { viewed }
    }

    /// The message's number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.viewed.seq)
    }

    /// How often the message was handed out so far.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.viewed.attempts
    }

    /// When the message was pushed: see [`Delivery::pushed_at`](crate::Delivery::pushed_at).
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        SystemTime::from(self.viewed.pushed_at.utc())
    }

    /// The earliest time at which the message will be handed out, as the system's clock is set now;
    /// `None` if that is now.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        self.viewed.not_before.map(SystemTime::from)
    }

    /// The value of the header with this name, if the message has one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All headers, in the order in which they were given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        extension::headers(self.start())
    }

    /// Where the message comes from, if it is a dead letter.
    #[must_use]
    pub fn dead_letter(&self) -> Option<DeadLetter<'_>> {
        dead_letter(self.start())
    }

    fn start(&self) -> &[u8] {
        self.viewed.body.get(..self.viewed.payload_start).unwrap_or_default()
    }
}

impl Deref for Peeked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.viewed.body.get(self.viewed.payload_start..).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Peeked {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Peeked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peeked")
            .field("seq", &self.viewed.seq)
            .field("attempts", &self.viewed.attempts)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// A walk over the waiting messages, from [`Queue::iter`](crate::Queue::iter). It does not keep the
/// queue open.
#[must_use = "a walk does nothing until it is iterated over"]
pub struct Messages {
    engine: Arc<Engine>,
    /// `None` once the walk is over.
    walk: Option<Walk>,
}

impl Messages {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let walk = Some(engine.inspect().walk());
        Self { engine, walk }
    }
}

impl Iterator for Messages {
    type Item = Result<Peeked>;

    fn next(&mut self) -> Option<Result<Peeked>> {
        self.engine.consumers().end_due();
        let walk = self.walk.as_mut()?;
        let found = self.engine.look(|inspect| inspect.walk_on(walk)).transpose();
        self.engine.sync_surplus();
        if !matches!(found, Some(Ok(_))) {
            self.walk = None;
        }
        found.map(|viewed| viewed.map(Peeked::new))
    }
}

impl FusedIterator for Messages {}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").field("walk", &self.walk).finish_non_exhaustive()
    }
}
