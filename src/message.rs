//! What is pushed.

use crate::clock::MAX_DELAY;
use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::format::extension::{MAX_ENTRIES, MAX_NAME, header_len};
use crate::format::slot;
use crate::options::Durability;
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// What is pushed: a payload, and how to treat it.
///
/// These turn into a `Message` by themselves: `&[u8]`, `&[u8; N]`, `Vec<u8>`, `Box<[u8]>`, `&str`,
/// `String`, `Cow<[u8]>` and `Cow<str>`, and references to `Vec<u8>`, `String`, `&[u8]`,
/// `&[u8; N]`, `&str` and `Message`. An array has to be borrowed: `&[1, 2]`. A
/// [`Delivery`](crate::Delivery) or a [`Peeked`](crate::Peeked) is pushed as `&delivery[..]`.
///
/// ```
/// use keepq::{Durability, Message, Queue};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::open(dir.path().join("orders"))?;
/// queue.push(b"bytes")?;
/// queue.push("text")?;
/// queue.push(vec![1, 2, 3])?;
/// queue.push(&[1, 2])?;
/// queue.push(Message::new("not worth a sync").durability(Durability::Os))?;
/// queue.push(Message::new("pay 42").header("kind", b"refund"))?;
/// let job = queue.pop()?.expect("six are waiting");
/// queue.push(&job[..])?; // the same bytes again
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub(crate) payload: Cow<'a, [u8]>,
    pub(crate) durability: Option<Durability>,
    /// What most messages have not: so they need one look for all of it.
    pub(crate) extras: Option<Box<Extras<'a>>>,
}

/// What is special about a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extras<'a> {
    pub(crate) headers: Cow<'a, [Header]>,
    pub(crate) is_transient: bool,
    pub(crate) due: Option<NotBefore>,
    pub(crate) ttl: Option<Duration>,
}

/// When a message may first be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotBefore {
    After(Duration),
    At(SystemTime),
}

const _: () = assert!(MAX_DELAY.as_secs() * 1000 <= slot::MAX_DELAY.0, "a slot can hold it");

/// A name and a value that travel with the payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

impl<'a> Message<'a> {
    /// A message with this payload and the queue's settings. From another message: one like it.
    pub fn new(payload: impl Into<Message<'a>>) -> Self {
        payload.into()
    }

    /// Gives the message a header: a name (up to 255 bytes of UTF-8) and a value, which
    /// [`Delivery::header`](crate::Delivery::header) reads without looking into the payload. If the
    /// message already has a header with this name, that header gets the new value. All headers of
    /// a message together, with 4 bytes more for each, take up to 64,000 bytes, and their names and
    /// values count as bytes of the message. `push` refuses larger ones with
    /// [`Error::TooLarge`](crate::Error::TooLarge).
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
        let headers = self.extras.get_or_insert_default().headers.to_mut();
        match headers.iter_mut().find(|known| known.name == header.name) {
            Some(known) => *known = header,
            None => headers.push(header),
        }
        self
    }

    /// When `push` returns for this message. Overrides
    /// [`Options::durability`](crate::Options::durability). In a batch the strictest durability of
    /// its messages counts.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// The message is worth nothing after this run: `push` does not wait for the disk, and the
    /// next open drops the message.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.extras.get_or_insert_default().is_transient = true;
        self
    }

    /// Delays the message, up to 8 years: it becomes ready no sooner than this long after the push,
    /// and at most a moment later, also across restarts. Once it is due, it comes before all
    /// messages that were never handed out; messages that are due at the same time come in push
    /// order. (If it is due when the queue is opened, it comes in push order with all others.)
    /// Until then it counts in [`Queue::delayed`](crate::Queue::delayed).
    ///
    /// The time runs from the call of `push`, also while the push waits for room
    /// ([`Overflow::Block`](crate::Overflow::Block)).
    ///
    /// While the queue is open, time is that since boot, suspend included, and it does not matter
    /// if the wall clock is set. Between two runs in one boot of a Linux system the same holds, if
    /// one of that boot was closed before, or had a background for 30 s. Between others the wall
    /// clock says how much time has passed: if it was set back meanwhile, that time does not count.
    /// Never more than the whole delay is left (to within 1 %).
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
        self.extras.get_or_insert_default().due = Some(NotBefore::After(delay));
        self
    }

    /// The message is not handed out before this time, up to 8 years ahead; if the time has passed,
    /// the message is ready at once. This is a delay of as long as the wall clock needs to that
    /// time, as it is set at the push: if it is set later, the message does not follow. Otherwise
    /// this works like [`Message::delay`], and replaces it.
    #[must_use]
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        self.extras.get_or_insert_default().due = Some(NotBefore::At(time));
        self
    }

    /// The message expires this long after the push, up to 8 years. From then on it is not handed
    /// out; once it is at the front, it is dropped and counted, or moves to the dead letters
    /// ([`Options::expired`](crate::Options::expired)). The shorter of this time and
    /// [`Options::message_ttl`](crate::Options::message_ttl) counts. A message that was handed out
    /// in time may be answered late.
    ///
    /// Like that of [`Message::delay`], this time runs from the call of `push`. It may be shorter
    /// than the delay: such a message is accepted, and let go of once its delay is over.
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
        self.extras.get_or_insert_default().ttl = Some(ttl);
        self
    }

    /// Bytes of its payload and headers.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        to_u64(self.payload.len()) + self.extras.as_ref().map_or(0, |extras| extras.bytes())
    }

    #[inline]
    pub(crate) fn is_transient(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.is_transient)
    }

    /// # Errors
    ///
    /// [`Error::TooLarge`] and [`Error::InvalidOption`] for a message that no queue accepts.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(durability) = self.durability {
            durability.check("Message::durability")?;
        }
        self.extras.as_ref().map_or(Ok(()), |extras| extras.check())
    }

    #[inline]
    fn from_payload(payload: Cow<'a, [u8]>) -> Self {
        Self { payload, durability: None, extras: None }
    }
}

impl Extras<'_> {
    fn bytes(&self) -> u64 {
        let bytes = |header: &Header| to_u64(header.name.len() + header.value.len());
        self.headers.iter().map(bytes).sum()
    }

    fn check(&self) -> Result<()> {
        let after = match self.due {
            Some(NotBefore::After(delay)) => Some(delay),
            Some(NotBefore::At(_)) | None => None,
        };
        for (option, span) in [("Message::ttl", self.ttl), ("Message::delay", after)] {
            if let Some(span) = span.filter(|&span| span > MAX_DELAY) {
                return Err(Error::invalid_option(option, format!("{span:?}"), "up to 8 years"));
            }
        }
        let within = |len, max| if len > max { Err(Error::TooLarge { len, max }) } else { Ok(()) };
        let mut entries = 0;
        for header in &*self.headers {
            within(to_u64(header.name.len()), MAX_NAME)?;
            entries += header_len(&header.name, &header.value);
        }
        within(entries, MAX_ENTRIES)
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
        let extras = message.extras.as_deref().map(|extras| {
            let headers = Cow::Borrowed(&*extras.headers);
            Box::new(Extras { headers, ..*extras })
        });
        Self { payload: Cow::Borrowed(&message.payload), durability: message.durability, extras }
    }
}
