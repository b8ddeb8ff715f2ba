//! What is pushed.

use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::extension::{LENGTH, MAX_ENTRIES, MAX_NAME, header_len};
use crate::options::{self, Durability};
use std::borrow::Cow;
use std::time::Duration;

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
/// queue.push(Message::new("pay 42").header("kind", b"refund"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub(crate) payload: Cow<'a, [u8]>,
    pub(crate) headers: Cow<'a, [Header]>,
    pub(crate) durability: Option<Durability>,
    pub(crate) is_transient: bool,
}

/// A name and a value that travel with the payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

impl<'a> Message<'a> {
    /// A message with this payload and the queue's settings; of another message, one like it.
    pub fn new(payload: impl Into<Message<'a>>) -> Self {
        payload.into()
    }

    /// Gives the message a header: a name (up to 255 bytes of UTF-8) and a value, read with
    /// [`Delivery::header`](crate::Delivery::header) without looking into the payload. A name that
    /// it has already gets the new value. All headers of a message together, with 4 bytes more for each,
    /// take up to 65,535 bytes, and count as bytes of the message; what is larger is refused by
    /// `push`, with [`Error::TooLarge`](crate::Error::TooLarge).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push(keepq::Message::new("pay 42").header("kind", b"refund").header("try", "1"))?;
    /// let job = queue.pop()?.expect("one is waiting");
    /// assert_eq!(job.header("kind"), Some(&b"refund"[..]));
    /// assert_eq!(&job[..], b"pay 42");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        let header = Header { name: name.into(), value: value.as_ref().to_vec() };
        let headers = self.headers.to_mut();
        match headers.iter_mut().find(|known| known.name == header.name) {
            Some(known) => *known = header,
            None => headers.push(header),
        }
        self
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

    /// Bytes of its payload and headers.
    pub(crate) fn bytes(&self) -> u64 {
        let mut bytes = wide(self.payload.len());
        for header in &*self.headers {
            bytes += wide(header.name.len() + header.value.len());
        }
        bytes
    }

    /// Bytes that its headers take in a record besides their own.
    pub(crate) fn header_overhead(&self) -> u64 {
        let entries = self.headers.iter().map(|header| header_len(&header.name, &header.value));
        if self.headers.is_empty() {
            return 0;
        }
        wide(LENGTH) + entries.sum::<u64>() + wide(self.payload.len()) - self.bytes()
    }

    /// # Errors
    ///
    /// [`Error::TooLarge`] and [`Error::InvalidOption`] for what no queue takes.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(Durability::Interval(Duration::ZERO)) = self.durability {
            return Err(options::invalid_interval("Message::durability"));
        }
        let within = |len, max| if len > max { Err(Error::TooLarge { len, max }) } else { Ok(()) };
        let mut entries = 0;
        for header in &*self.headers {
            within(wide(header.name.len()), MAX_NAME)?;
            entries += header_len(&header.name, &header.value);
        }
        within(entries, MAX_ENTRIES)
    }

    fn from_payload(payload: Cow<'a, [u8]>) -> Self {
        Self { payload, headers: Cow::Borrowed(&[]), durability: None, is_transient: false }
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

impl<'a> From<&'a &[u8]> for Message<'a> {
    fn from(payload: &'a &[u8]) -> Self {
        Self::from_payload(Cow::Borrowed(payload))
    }
}

impl<'a, const N: usize> From<&'a &[u8; N]> for Message<'a> {
    fn from(payload: &'a &[u8; N]) -> Self {
        Self::from_payload(Cow::Borrowed(*payload))
    }
}

impl<'a> From<&'a &str> for Message<'a> {
    fn from(payload: &'a &str) -> Self {
        Self::from_payload(Cow::Borrowed(payload.as_bytes()))
    }
}

impl<'a> From<Cow<'a, str>> for Message<'a> {
    fn from(payload: Cow<'a, str>) -> Self {
        Self::from_payload(match payload {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        })
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

impl<'a> From<Cow<'a, [u8]>> for Message<'a> {
    fn from(payload: Cow<'a, [u8]>) -> Self {
        Self::from_payload(payload)
    }
}

impl From<Box<[u8]>> for Message<'_> {
    fn from(payload: Box<[u8]>) -> Self {
        Self::from_payload(Cow::Owned(payload.into_vec()))
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
        Self {
            payload: Cow::Borrowed(&message.payload),
            headers: Cow::Borrowed(&message.headers),
            durability: message.durability,
            is_transient: message.is_transient,
        }
    }
}
