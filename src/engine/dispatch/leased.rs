//! Messages that the short way has leased, on their way to a consumer.

use super::exchange::LeaseKey;
use super::measure::Measure;
use super::taken::Taken;
use crate::format::record::RecordHeader;
use crate::leases::Ticket;
use crate::log::side_by_side::bodies;
use crate::time::Time;
use std::ops::Range;

/// A message that is leased and not yet verified.
#[derive(Debug)]
pub(crate) struct LeasedOne {
    pub(crate) taken: Taken,
    /// The check of its body.
    pub(crate) check: u32,
    /// When it was pushed, by the queue's time.
    pub(crate) pushed_at: Time,
}

/// Messages side by side that are leased and not yet verified.
#[derive(Debug)]
pub(crate) struct LeasedBatch {
    /// Those of all, their headers included.
    pub(crate) bytes: Vec<u8>,
    pub(crate) messages: LeasedMessages,
    /// The time that the ages of their records count from, and the same in UTC.
    pub(crate) base_time: Time,
    pub(crate) base_in_utc: Time,
}

/// Their numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeasedMessages {
    /// The ticket of the first one.
    first: Ticket,
    number: u64,
    /// How many messages were handed out before it.
    popped_before: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct LeasedMessage {
    pub(crate) key: LeaseKey,
    pub(crate) header: RecordHeader,
    /// Where its body starts among the bytes of all.
    pub(crate) body: usize,
}

impl LeasedMessages {
    /// `first`: the ticket of the first one; `popped_before`: how many messages were handed out
    /// before it.
    pub(super) fn new(first: Ticket, number: u32, popped_before: u64) -> Self {
        Self { first, number: number.into(), popped_before }
    }

    pub(crate) fn seqs(self) -> Range<u64> {
        self.first.seq()..self.first.seq() + self.number
    }

    /// Each of them, in order. `bytes`: those of all.
    #[inline]
    pub(crate) fn each(self, bytes: &[u8]) -> impl Iterator<Item = LeasedMessage> {
        let numbered = self.seqs().zip(self.popped_before + 1..).zip(bodies(bytes));
        numbered.map(move |((seq, number), (header, body))| {
            let key =
                LeaseKey { ticket: self.first.of(seq), is_sample: Measure::is_sample(number) };
            LeasedMessage { key, header, body }
        })
    }
}
