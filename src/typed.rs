//! A queue of values instead of bytes.

use crate::delivery::{Delivery, Receipt};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::queue::Queue;
use crate::seq::Seq;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::{Duration, SystemTime};

/// How long a message that does not decode stays away at first, and how often that is doubled.
const UNDECODED_DELAY: Duration = Duration::from_secs(1);
const UNDECODED_DOUBLINGS: u32 = 6;

/// A queue of values of `T`, from [`Queue::typed`]: values of any type with `Serialize` and
/// `Deserialize`, in `postcard` encoding. The bytes do not say their type: read a queue as the type
/// that it was written as. Old messages and new programs can live together if the type is an enum
/// that only grows at its end, and the structs inside its variants never change.
///
/// Values of types that have to look at the data to know what it is can be encoded, but never
/// decoded: enums that are `untagged` or `tag`ged, `flatten`, `skip_serializing_if`,
/// `serde_json::Value`. A test that decodes what it has encoded finds that out before a queue does.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, PartialEq, Debug)]
/// enum Job {
///     Resize { image: u64, width: u32 },
///     Remove { image: u64 },
/// }
/// # let dir = tempfile::tempdir()?;
/// let jobs = keepq::Queue::open(dir.path().join("jobs"))?.typed::<Job>();
/// jobs.push(&Job::Resize { image: 7, width: 640 })?;
/// let job = jobs.pop()?.expect("one is waiting");
/// assert_eq!(*job, Job::Resize { image: 7, width: 640 });
/// job.ack()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Monitors
///
/// [`Queue::peek`], [`Queue::iter`] and [`Queue::get`] of [`TypedQueue::queue`] show the bytes. The
/// crate `postcard` (version 1) decodes them:
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let totals = keepq::Queue::open(dir.path().join("totals"))?.typed::<u64>();
/// totals.push(&42)?;
/// let peeked = totals.queue().peek()?.expect("one is waiting");
/// assert_eq!(postcard::from_bytes::<u64>(&peeked[..])?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Messages that do not decode
///
/// A payload that is not a `T`, or has more bytes behind the `T`, is [`Error::Decode`] with the
/// message's [`Seq`]. The message goes back with its attempt counted. It stays away for a second,
/// the next time for two, and so on up to 64, so that the messages behind it are reached meanwhile.
/// [`Queue::get`] shows its bytes at once; no `pop` hands it out before its time is over.
/// After [`Options::max_attempts`](crate::Options::max_attempts) attempts it becomes a dead letter.
pub struct TypedQueue<T> {
    queue: Queue,
    values: PhantomData<fn(T) -> T>,
}

impl Queue {
    /// The queue as a queue of values of `T`, in `postcard` encoding. It is the same queue, and
    /// both may be used at the same time.
    #[must_use]
    pub fn typed<T: Serialize + DeserializeOwned>(&self) -> TypedQueue<T> {
        TypedQueue { queue: self.clone(), values: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> TypedQueue<T> {
    /// The queue itself: its length, its statistics, and all else that does not depend on the type.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// A message with this value as its payload. Give it headers or a [`Durability`], and push it
    /// to [`TypedQueue::queue`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let totals = keepq::Queue::open(dir.path().join("totals"))?.typed::<u64>();
    /// totals.queue().push(totals.message(&42)?.header("kind", b"daily"))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Encode`].
    ///
    /// [`Durability`]: crate::Durability
    pub fn message(&self, value: &T) -> Result<Message<'static>> {
        match postcard::to_stdvec(value) {
            Ok(payload) => Ok(Message::new(payload)),
            Err(error) => Err(Error::Encode { source: error.into() }),
        }
    }

    /// Puts a value at the end of the queue: see [`Queue::push`].
    ///
    /// # Errors
    ///
    /// [`Error::Encode`]: nothing was pushed. Otherwise as [`Queue::push`].
    pub fn push(&self, value: &T) -> Result<Seq> {
        self.queue.push(self.message(value)?)
    }

    /// Puts a value at the end of the queue without waiting for room: see [`Queue::try_push`].
    ///
    /// # Errors
    ///
    /// [`Error::Encode`]: nothing was pushed. Otherwise as [`Queue::try_push`].
    pub fn try_push(&self, value: &T) -> Result<Seq> {
        self.queue.try_push(self.message(value)?)
    }

    /// Puts a value at the end of the queue without waiting for the disk: see [`Queue::submit`].
    ///
    /// # Errors
    ///
    /// [`Error::Encode`]: nothing was pushed. Otherwise as [`Queue::submit`].
    pub fn submit(&self, value: &T) -> Result<Receipt> {
        self.queue.submit(self.message(value)?)
    }

    /// Puts values at the end of the queue, all or none: see [`Queue::push_batch`].
    ///
    /// # Errors
    ///
    /// [`Error::Encode`]: nothing was pushed. Otherwise as [`Queue::push_batch`].
    pub fn push_batch<V: Borrow<T>>(
        &self,
        values: impl IntoIterator<Item = V>,
    ) -> Result<Vec<Seq>> {
        let values = values.into_iter();
        let messages = values.map(|value| self.message(value.borrow())).collect::<Result<Vec<_>>>();
        self.queue.push_batch(messages?)
    }

    /// Hands out the next value, if there is one: see [`Queue::pop`].
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: see the type's documentation. Otherwise as [`Queue::pop`].
    pub fn pop(&self) -> Result<Option<TypedDelivery<T>>> {
        self.queue.pop()?.map(Self::decode).transpose()
    }

    /// Hands out the next value, and waits for one as long as it takes: see [`Queue::pop_wait`].
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: see the type's documentation. Otherwise as [`Queue::pop_wait`].
    pub fn pop_wait(&self) -> Result<TypedDelivery<T>> {
        Self::decode(self.queue.pop_wait()?)
    }

    /// Hands out the next value, and waits for one up to `timeout`: see [`Queue::pop_timeout`].
    ///
    /// # Errors
    ///
    /// [`Error::Decode`]: see the type's documentation. Otherwise as [`Queue::pop_timeout`].
    pub fn pop_timeout(&self, timeout: Duration) -> Result<Option<TypedDelivery<T>>> {
        self.queue.pop_timeout(timeout)?.map(Self::decode).transpose()
    }

    /// Hands out up to `limit` values, as many as there are: see [`Queue::pop_batch`].
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] of the first message that does not decode. All messages that do not decode
    /// go back as the type's documentation says; the others are at the front again, as if they had
    /// not been handed out. Otherwise as [`Queue::pop_batch`].
    pub fn pop_batch(&self, limit: usize) -> Result<Vec<TypedDelivery<T>>> {
        let (mut decoded, mut first_error) = (Vec::new(), None);
        for delivery in self.queue.pop_batch(limit)? {
            match Self::decode(delivery) {
                Ok(delivery) => decoded.push(delivery),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let Some(error) = first_error else { return Ok(decoded) };
        for delivery in decoded {
            // If it cannot be released, it goes back with its attempt counted; `error` matters
            // more.
            delivery.release().ok();
        }
        Err(error)
    }

    /// Settles deliveries, with one sync under `sync_acks`: see [`Queue::ack_batch`].
    ///
    /// # Errors
    ///
    /// As [`Queue::ack_batch`].
    pub fn ack_batch(&self, deliveries: impl IntoIterator<Item = TypedDelivery<T>>) -> Result<()> {
        self.queue.ack_batch(deliveries.into_iter().map(|delivery| delivery.delivery))
    }

    /// Ends the queue for every handle: see [`Queue::close`].
    ///
    /// # Errors
    ///
    /// As [`Queue::close`].
    pub fn close(self) -> Result<()> {
        self.queue.close()
    }

    /// User code runs here: no lock is held, and if it panics, the delivery goes back.
    fn decode(delivery: Delivery) -> Result<TypedDelivery<T>> {
        let source = match postcard::take_from_bytes(&delivery) {
            Ok((value, [])) => return Ok(TypedDelivery { value, delivery }),
            Ok((_, rest)) => format!("{} bytes too many", rest.len()).into(),
            Err(error) => error.into(),
        };
        let seq = delivery.seq();
        let doublings = (delivery.attempts() - 1).min(UNDECODED_DOUBLINGS);
        // If it fails, the message is back, or comes back at the next open.
        delivery.nack_after(UNDECODED_DELAY * 2u32.pow(doublings)).ok();
        Err(Error::Decode { seq, source })
    }
}

impl<T> Clone for TypedQueue<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), values: PhantomData }
    }
}

impl<T> fmt::Debug for TypedQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedQueue").field(&self.queue).finish()
    }
}

/// A value that is handed out, and needs an answer. Derefs to the value.
///
/// Dropping it gives the message back, as it does for a [`Delivery`].
#[must_use = "a delivery that is dropped comes back; ack it once the work is done"]
pub struct TypedDelivery<T> {
    value: T,
    delivery: Delivery,
}

impl<T> TypedDelivery<T> {
    /// The delivery without its value: its number, attempts, headers, and when it was pushed.
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The value, to keep, and the delivery, which still needs its answer.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let names = keepq::Queue::open(dir.path().join("names"))?.typed::<String>();
    /// names.push(&"Ada".to_string())?;
    /// let (name, delivery): (String, _) = names.pop()?.expect("one is waiting").into_parts();
    /// delivery.ack()?;
    /// assert_eq!(name, "Ada");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_parts(self) -> (T, Delivery) {
        (self.value, self.delivery)
    }

    /// The message's number: see [`Delivery::seq`].
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.delivery.seq()
    }

    /// How often the message was handed out: see [`Delivery::attempts`].
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.delivery.attempts()
    }

    /// Whether the message was handed out before: see [`Delivery::is_redelivered`].
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.delivery.is_redelivered()
    }

    /// When the message was pushed: see [`Delivery::pushed_at`].
    #[must_use]
    pub fn pushed_at(&self) -> SystemTime {
        self.delivery.pushed_at()
    }

    /// The value of the header with this name: see [`Delivery::header`].
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.delivery.header(name)
    }

    /// Settles the message: see [`Delivery::ack`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::ack`].
    pub fn ack(self) -> Result<()> {
        self.delivery.ack()
    }

    /// Gives the message back, its attempt counted: see [`Delivery::nack`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::nack`].
    pub fn nack(self) -> Result<()> {
        self.delivery.nack()
    }

    /// Gives the message back as if it had not been handed out: see [`Delivery::release`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::release`].
    pub fn release(self) -> Result<()> {
        self.delivery.release()
    }

    /// Gives the message back after a time: see [`Delivery::nack_after`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::nack_after`].
    pub fn nack_after(self, delay: Duration) -> Result<()> {
        self.delivery.nack_after(delay)
    }

    /// Makes the message a dead letter: see [`Delivery::reject`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::reject`].
    pub fn reject(self, reason: impl Into<String>) -> Result<()> {
        self.delivery.reject(reason)
    }

    /// Gives the work more time: see [`Delivery::extend`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::extend`].
    pub fn extend(&self, time: Duration) -> Result<()> {
        self.delivery.extend(time)
    }
}

impl<T> Deref for TypedDelivery<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for TypedDelivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedDelivery")
            .field("delivery", &self.delivery)
            .field("value", &self.value)
            .finish()
    }
}
