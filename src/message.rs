//! What is pushed.

use crate::options::Durability;
use std::borrow::Cow;

/// What is pushed: a payload, and how it is to be treated.
///
/// Bytes and strings, owned or borrowed, turn into a `Message` by themselves:
///
/// ```
/// use keepq::{Durability, Message, Queue};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::open(dir.path().join("orders"))?;
/// queue.push(b"bytes")?;
/// queue.push("text")?;
/// queue.push(vec![1, 2, 3])?;
/// queue.push(Message::new("not worth a sync").durability(Durability::Os))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub(crate) payload: Cow<'a, [u8]>,
    pub(crate) durability: Option<Durability>,
    pub(crate) is_transient: bool,
}

impl<'a> Message<'a> {
    /// A message with this payload and the queue's settings.
    pub fn new(payload: impl Into<Message<'a>>) -> Self {
        payload.into()
    }

    /// When `push` returns for this message: overrides [`Options::durability`](crate::Options::durability).
    /// In a batch the strictest of its messages counts.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Worth nothing after this run: never waited for, and dropped at the next open.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.is_transient = true;
        self
    }

    fn from_payload(payload: Cow<'a, [u8]>) -> Self {
        Self { payload, durability: None, is_transient: false }
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(payload: &'a [u8]) -> Self {
        Self::from_payload(Cow::Borrowed(payload))
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    fn from(payload: &'a [u8; N]) -> Self {
        Self::from_payload(Cow::Borrowed(payload))
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(payload: &'a str) -> Self {
        Self::from_payload(Cow::Borrowed(payload.as_bytes()))
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    fn from(payload: &'a Vec<u8>) -> Self {
        Self::from_payload(Cow::Borrowed(payload))
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(payload: &'a String) -> Self {
        Self::from_payload(Cow::Borrowed(payload.as_bytes()))
    }
}

impl From<Vec<u8>> for Message<'_> {
    fn from(payload: Vec<u8>) -> Self {
        Self::from_payload(Cow::Owned(payload))
    }
}

impl From<String> for Message<'_> {
    fn from(payload: String) -> Self {
        Self::from_payload(Cow::Owned(payload.into_bytes()))
    }
}

impl<'a> From<&'a Message<'_>> for Message<'a> {
    fn from(message: &'a Message<'_>) -> Self {
        Self { payload: Cow::Borrowed(&message.payload), ..*message }
    }
}
