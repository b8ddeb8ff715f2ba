//! Pushing.

use super::Queue;
use crate::clock::{Clock, MAX_DELAY};
use crate::delivery::Receipt;
use crate::engine::{Context, Engine, Placed, Promise, WhenFull, start_push};
use crate::error::{Error, Result};
use crate::format::extension::Notes;
use crate::format::{extension, record};
use crate::log::draft::Draft;
use crate::message::{Extras, Message, NotBefore};
use crate::options::{Durability, Options};
use crate::seq::Seq;
use crate::time::{Millis, Time};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Messages of a batch for which memory is taken before they are seen.
const EXPECTED_AT_MOST: usize = 1024;

impl Queue {
    /// Puts a message at the end of the queue. `Ok` promises what the message's [`Durability`]
    /// says: with the default, the message is on the disk. Consumers may see it before this
    /// returns. If the queue is full, [`Options::overflow`] says what happens.
    ///
    /// # Errors
    ///
    /// * [`Error::TooLarge`], [`Error::Full`], [`Error::StorageFull`], [`Error::Closed`],
    ///   [`Error::Io`], and [`Error::InvalidOption`] for a [`Message::durability`], delay, time or
    ///   ttl that is not allowed: the message is not in the queue.
    ///   ([`Overflow::DropNewest`](crate::Overflow::DropNewest) drops the message with `Ok`.)
    /// * [`Error::Poisoned`]: a sync failed. If [`Error::is_indeterminate`], the message may be
    ///   delivered all the same.
    /// * [`Error::Io`] that is indeterminate: no file descriptor was left to begin the sync, the
    ///   message may be delivered all the same, and [`Queue::sync`] tries the sync again; or what a
    ///   failed write left could not be erased, and the next open may find the message.
    pub fn push<'a>(&self, message: impl Into<Message<'a>>) -> Result<Seq> {
        self.push_one(message.into(), WhenFull::AsOptions)
    }

    /// Like [`Queue::push`], but never waits for room: if the queue is full, this returns
    /// [`Error::Full`] at once under [`Overflow::Block`](crate::Overflow::Block), too. It waits for
    /// the disk as the [`Durability`] says.
    ///
    /// # Errors
    ///
    /// As [`Queue::push`].
    pub fn try_push<'a>(&self, message: impl Into<Message<'a>>) -> Result<Seq> {
        self.push_one(message.into(), WhenFull::NoWait)
    }

    /// Puts a message at the end of the queue without waiting for the disk. When it returns, the
    /// message survives a kill of the process; [`Receipt::wait`] makes it survive a power cut. It
    /// waits for room like [`Queue::push`], under [`Overflow::Block`](crate::Overflow::Block).
    ///
    /// If [`Overflow::DropNewest`](crate::Overflow::DropNewest) drops the message, the receipt has
    /// the number 0, counts as durable, and its wait returns `Ok` with that number at once: see
    /// [`Seq::is_dropped`].
    ///
    /// # Errors
    ///
    /// As [`Queue::push`]. The message is not in the queue; after an [`Error::Io`] that is
    /// indeterminate the next open may find it.
    pub fn submit<'a>(&self, message: impl Into<Message<'a>>) -> Result<Receipt> {
        let message = message.into();
        let durability = durability_of(self.engine().options(), &message);
        let start = start_push(false);
        let placed = self.noting_failure(1, || {
            let draft = draft(self.engine().context(), message)?;
            let promise = Promise::Placed { sync_within: interval(durability) };
            self.open_queue().push(&[draft], promise, WhenFull::AsOptions)
        })?;
        self.engine().end_push(start);
        Ok(Receipt::new(Arc::clone(self.engine()), placed.first_seq()))
    }

    /// Puts messages at the end of the queue, all or none, side by side, with one sync. After a
    /// crash the whole batch is there, or none of it.
    ///
    /// At a limit the batch stays whole, too. Under
    /// [`Overflow::DropNewest`](crate::Overflow::DropNewest) all of it is dropped, and all numbers
    /// are 0. Otherwise a batch that could never fit is [`Error::Full`] at once, and nothing is
    /// dropped for it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let queue = keepq::Queue::open(dir.path().join("orders"))?;
    /// let seqs = queue.push_batch([b"a", b"b", b"c"])?;
    /// assert_eq!(seqs.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::push`], for the batch as a whole.
    pub fn push_batch<'a, M: Into<Message<'a>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Vec<Seq>> {
        let context = self.engine().context();
        let max = context.options.max_batch_bytes;
        let messages = messages.into_iter();
        // An iterator without an end says that it has more than any.
        let expected = messages.size_hint().0.min(EXPECTED_AT_MOST);
        let mut drafts = Ok(Vec::with_capacity(expected));
        let (mut number, mut bytes, mut durability) = (0, 0, None);
        for message in messages {
            let message = message.into();
            (number, bytes) = (number + 1, bytes + message.bytes());
            if bytes > max {
                self.engine().note_failed_pushes(number);
                return Err(Error::TooLarge { len: bytes, max });
            }
            let own = durability_of(&context.options, &message);
            durability = Some(durability.map_or(own, |durability| own.stricter(durability)));
            // After an error the others are counted, and not looked at.
            if let Ok(placed) = &mut drafts {
                match draft(context, message) {
                    Ok(draft) => placed.push(draft),
                    Err(error) => drafts = Err(error),
                }
            }
        }
        let Some(durability) = durability else {
            return self.engine().check_open().map(|()| Vec::new());
        };
        let promise = promise_of(durability);
        let start = start_push(promise == Promise::Durable);
        let placed = self.noting_failure(number, || {
            self.open_queue().push(&drafts?, promise, WhenFull::AsOptions)
        })?;
        let first = placed.first_seq();
        let seq_of = |nth| if first == 0 { Seq(0) } else { Seq(first + nth) };
        let seqs = (0..number).map(seq_of).collect();
        let waited = self.wait(&placed, number, promise);
        self.engine().end_push(start);
        waited.map(|()| seqs)
    }

    fn push_one(&self, message: Message<'_>, when_full: WhenFull) -> Result<Seq> {
        let promise = promise_of(durability_of(self.engine().options(), &message));
        let start = start_push(promise == Promise::Durable);
        let placed = self.noting_failure(1, || {
            let draft = draft(self.engine().context(), message)?;
            self.open_queue().push(&[draft], promise, when_full)
        })?;
        let waited = self.wait(&placed, 1, promise);
        self.engine().end_push(start);
        waited.map(|()| Seq(placed.first_seq()))
    }

    /// Counts messages that did not get into the queue.
    #[inline]
    fn noting_failure(
        &self,
        messages: u64,
        push: impl FnOnce() -> Result<Placed>,
    ) -> Result<Placed> {
        match push() {
            Ok(placed) if !placed.is_none() => Ok(placed),
            failed => {
                self.engine().note_failed_pushes(messages);
                failed
            }
        }
    }

    #[inline]
    fn wait(&self, placed: &Placed, messages: u64, promise: Promise) -> Result<()> {
        match promise {
            Promise::Durable if !placed.is_none() => wait_for_sync(self.engine(), placed, messages),
            Promise::Durable | Promise::Placed { .. } => Ok(()),
        }
    }
}

/// Waits for messages that were placed; those that could not be written have failed after all.
#[inline(never)]
fn wait_for_sync(engine: &Engine, placed: &Placed, messages: u64) -> Result<()> {
    let waited = engine.commit().wait_placed(placed, messages);
    if placed.refused().is_some() {
        engine.note_failed_pushes(messages);
    }
    waited
}

/// The message as it goes into the log.
#[inline]
fn draft<'m>(context: &Context, message: Message<'m>) -> Result<Draft<'m>> {
    let max = context.options.max_message_bytes;
    let len = message.bytes();
    if len > max {
        return Err(Error::TooLarge { len, max });
    }
    message.check()?;
    let draft = match message.extras {
        None => Draft::plain(message.payload),
        Some(extras) => draft_with(&extras, message.payload, &context.clock)?,
    };
    draft.ok_or_else(|| Error::TooLarge { len, max: record::MAX_PAYLOAD })
}

/// The same for one that has more than a payload; `None` if no record can hold it.
fn draft_with<'m>(
    extras: &Extras<'_>,
    payload: Cow<'m, [u8]>,
    clock: &Clock,
) -> Result<Option<Draft<'m>>> {
    let headers = extras.headers.iter();
    let headers = headers.map(|header| (header.name.as_str(), &header.value[..]));
    let (due, expires) = times_of(extras, clock)?;
    let notes = Notes { due, expires, origin: None };
    let has_extensions = !extras.headers.is_empty() || due.is_some() || expires.is_some();
    let extensions = if has_extensions { extension::encode(headers, &notes) } else { Vec::new() };
    let draft = Draft::new(extensions, payload);
    Ok(draft.map(|draft| draft.with(extras.is_transient, due, expires)))
}

/// When a message may be handed out, and when it expires. Reads no clock for a message without
/// times.
fn times_of(extras: &Extras<'_>, clock: &Clock) -> Result<(Option<Time>, Option<Time>)> {
    if extras.due.is_none() && extras.ttl.is_none() {
        return Ok((None, None));
    }
    let now = clock.next();
    let due = extras.due.map(|due| match due {
        NotBefore::After(delay) => now + Millis::from(delay),
        NotBefore::At(time) => clock.at(time),
    });
    let due = due.filter(|&due| due > now);
    if due.is_some_and(|due| due.since(now) > MAX_DELAY.into()) {
        let moment = format!("{:?}", due.map(|due| SystemTime::from(clock.utc(due))));
        let bound = "at most 8 years ahead";
        return Err(Error::invalid_option("Message::deliver_at", moment, bound));
    }
    Ok((due, extras.ttl.map(|ttl| now + Millis::from(ttl))))
}

/// A push of a transient message does not wait for the disk.
#[inline]
fn durability_of(options: &Options, message: &Message<'_>) -> Durability {
    if message.is_transient() {
        return Durability::Os;
    }
    message.durability.unwrap_or(options.durability)
}

/// What is promised when a push returns.
fn promise_of(durability: Durability) -> Promise {
    match durability {
        Durability::Always => Promise::Durable,
        durability => Promise::Placed { sync_within: interval(durability) },
    }
}

fn interval(durability: Durability) -> Option<Duration> {
    match durability {
        Durability::Interval(interval) => Some(interval),
        Durability::Always | Durability::Os => None,
    }
}
