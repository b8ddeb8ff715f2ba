//! What is pushed.

use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::extension::{MAX_ENTRIES, MAX_NAME, header_len};
use crate::format::slot;
use crate::options::{self, Durability};
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

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
    pub(crate) due: Option<Due>,
    pub(crate) ttl: Option<Duration>,
}

/// When a message may first be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    After(Duration),
    At(SystemTime),
}

/// The longest delay: 8 years of 365 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(8 * 365 * 86_400);
const _: () = assert!(MAX_DELAY.as_secs() * 1000 <= slot::MAX_DELAY, "a slot can hold it");

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
    /// take up to 64,000 bytes, and count as bytes of the message; what is larger is refused by
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

    /// Not to be handed out before so long after the push, up to 8 years; a moment more at most, also
    /// across restarts. Once it is due it comes before everything that was never handed out; what is due at
    /// the same time comes in push order. Until then it counts as [`Queue::delayed`](crate::Queue::delayed).
    ///
    /// While the queue is open the wall clock does not matter. After a restart what is left of the delay
    /// is what the wall clock says, but no more than the whole delay (to within 1 %).
    ///
    /// ```
    /// use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// let start = std::time::Instant::now();
    /// queue.push(keepq::Message::new("remind me").delay(Duration::from_millis(10)))?;
    /// queue.pop_wait()?.ack()?;
    /// assert!(start.elapsed() >= Duration::from_millis(10));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.due = Some(Due::After(delay));
        self
    }

    /// Not to be handed out before this time, by the wall clock as it goes when the message is pushed: at
    /// once if it has passed, and up to 8 years ahead. Else as [`Message::delay`], and instead of it.
    #[must_use]
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        self.due = Some(Due::At(time));
        self
    }

    /// Worth nothing so long after the push, up to 8 years: not handed out from then on, but dropped and
    /// counted, or dead-lettered ([`Options::expired`](crate::Options::expired)), when `pop` meets it. Of this and
    /// [`Options::message_ttl`](crate::Options::message_ttl) the shorter one counts. A message that was handed
    /// out in time may be answered late.
    ///
    /// ```
    /// use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// queue.push(keepq::Message::new("price: 42").ttl(Duration::from_millis(1)))?;
    /// std::thread::sleep(Duration::from_millis(20));
    /// assert!(queue.pop()?.is_none());
    /// assert_eq!(queue.stats().expired(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
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

    /// # Errors
    ///
    /// [`Error::TooLarge`] and [`Error::InvalidOption`] for what no queue takes.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(Durability::Interval(Duration::ZERO)) = self.durability {
            return Err(options::invalid_interval("Message::durability"));
        }
        let spans = [("Message::ttl", self.ttl), ("Message::delay", self.after())];
        for (option, span) in spans {
            if let Some(span) = span.filter(|&span| span > MAX_DELAY) {
                return Err(options::invalid(option, format!("{span:?}"), "up to 8 years"));
            }
        }
        let within = |len, max| if len > max { Err(Error::TooLarge { len, max }) } else { Ok(()) };
        let mut entries = 0;
        for header in &*self.headers {
            within(wide(header.name.len()), MAX_NAME)?;
            entries += header_len(&header.name, &header.value);
        }
        within(entries, MAX_ENTRIES)
    }

    fn after(&self) -> Option<Duration> {
        match self.due {
            Some(Due::After(delay)) => Some(delay),
            Some(Due::At(_)) | None => None,
        }
    }

    fn from_payload(payload: Cow<'a, [u8]>) -> Self {
        let headers = Cow::Borrowed(&[][..]);
        Self { payload, headers, durability: None, is_transient: false, due: None, ttl: None }
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
            due: message.due,
            ttl: message.ttl,
        }
    }
}
