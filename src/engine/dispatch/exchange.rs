//! What goes between dispatch and a consumer: what is chosen, what is leased, what is answered.

use crate::engine::backlog::{Body, FoundMessage};
use crate::format::address::Offset;
use crate::format::record::RecordHeader;
use crate::format::slot::State;
use crate::leases::{Place, Ticket};
use crate::time::{PushTime, Time};
use std::time::Duration;

/// A message that can be leased.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    pub(crate) found: FoundMessage,
    pub(super) from: WaitsAt,
}

/// Where a message waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WaitsAt {
    /// At the cursor: never handed out in this run, and pushed without a delay.
    Cursor,
    Returned,
    /// In the schedule, for this time.
    Schedule(Time),
}

/// What a choice gives.
#[derive(Debug)]
pub(crate) enum Choice {
    Next(Next),
    Nothing,
    /// A step of other work was done: to be asked again, once others had their turn.
    Again,
}

/// What taking the next message gives.
#[derive(Debug)]
pub(crate) enum Leasing {
    Leased(Leased),
    Nothing,
    /// As [`Choice::Again`].
    Again,
}

/// A message that is leased and not yet verified.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) ticket: Ticket,
    pub(crate) attempts: u32,
    pub(crate) offset: Offset,
    pub(crate) pushed_at: PushTime,
    pub(crate) body: Body,
    pub(crate) header: RecordHeader,
    /// How long things take is measured with this one.
    pub(crate) is_sample: bool,
    /// The coarse clock, if it was read.
    pub(crate) now: Option<Time>,
}

/// What a consumer needs to answer a delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseKey {
    pub(crate) ticket: Ticket,
    /// The time until its answer is measured.
    pub(crate) is_sample: bool,
}

/// A delivery that can be answered.
pub(crate) trait Answerable {
    fn key(&self) -> &LeaseKey;
}

impl Answerable for LeaseKey {
    #[inline]
    fn key(&self) -> &LeaseKey {
        self
    }
}

/// What dropping the next message did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dropped {
    One,
    /// Nothing waits.
    None,
    /// Other work first: to be asked again.
    Again,
}

/// What a consumer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Ack,
    /// It failed: back after the queue's backoff.
    Nack,
    /// The same, and there is no caller to hear of an error.
    Drop,
    /// It failed: back after this time.
    NackAfter(Duration),
    /// Back, as if it had not been handed out.
    Release,
    /// It will never succeed.
    Reject(String),
}

/// The state of a message that comes back after a crash.
#[inline]
pub(super) fn unsettled_state(place: &Place) -> State {
    match place {
        Place { is_transient: true, .. } => State::Transient,
        Place { attempts: 0, .. } => State::Ready,
        _ => State::Delivered,
    }
}
