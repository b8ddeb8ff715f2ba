//! A message on its way to whoever looks at it.
//!
//! Promises: what is shown has passed its checks. Its body is copied under the dispatch lock, or
//! can be read without it.

use crate::engine::backlog::{Body, FoundMessage, Spot};
use crate::engine::dispatch::{Dispatch, Policy};
use crate::error::Result;
use crate::format::address::Offset;
use crate::format::extension::Verified;
use crate::format::record::RecordHeader;
use crate::format::standing::Standing;
use crate::log::sealed::Status;
use crate::time::{PushTime, Time};

/// A message that was looked at.
#[derive(Debug)]
pub(crate) struct Viewed {
    pub(crate) seq: u64,
    pub(crate) attempts: u32,
    pub(crate) pushed_at: PushTime,
    pub(crate) body: Vec<u8>,
    pub(crate) payload_start: usize,
    /// Not handed out before a clock shows this that is set like the system's now.
    pub(crate) not_before: Option<Time>,
}

/// A message that was met, and its body, which is verified outside of the lock.
pub(super) struct Unverified {
    pub(super) seq: u64,
    pub(super) attempts: u32,
    pub(super) due: DueTime,
    pub(super) pushed_at: PushTime,
    pub(super) header: RecordHeader,
    pub(super) offset: Offset,
    pub(super) body: Body,
}

/// When a message may be handed out.
#[derive(Clone, Copy, Debug)]
pub(super) enum DueTime {
    At(Time),
    /// When its record says, if that says anything.
    ByRecord,
    Now,
}

impl DueTime {
    /// Of a message that memory takes for ready. `status`: what its slot says.
    pub(super) fn of_ready(dispatch: &Dispatch, spot: Spot, seq: u64, status: &Status) -> Self {
        // A slot that cannot be read is rebuilt, and may have a delay then.
        let run = dispatch.backlog().run();
        let once_rebuilt = Standing::of(Some(status.slot), status.delay, run.is_old(seq), run);
        if let Standing::Scheduled(due) = once_rebuilt
            && status.standing == Standing::Unreadable
        {
            return Self::At(due);
        }
        let has_unreadable_delay = || dispatch.backlog().has_unreadable_delay(spot);
        let counts = Policy::counts_time_in_record(status.slot.attempts, has_unreadable_delay);
        if counts { Self::ByRecord } else { Self::Now }
    }
}

impl Unverified {
    /// A message that memory takes for ready.
    pub(super) fn ready(dispatch: &Dispatch, found: &FoundMessage) -> Result<Self> {
        let status = dispatch.ledger().status(found.spot)?;
        Self::of(dispatch, found, DueTime::of_ready(dispatch, found.spot, found.place.seq, &status))
    }

    pub(super) fn of(dispatch: &Dispatch, found: &FoundMessage, due: DueTime) -> Result<Self> {
        let (pushed_at, body) = Body::of_found(dispatch.backlog().track_at(found.spot.at), found)?;
        let FoundMessage { place, header, .. } = *found;
        let (seq, attempts, offset) = (place.seq, place.attempts, place.offset);
        Ok(Self { seq, attempts, due, pushed_at, header, offset, body })
    }
}

/// `None` if it is damaged, or if only a newer keepq can read it.
pub(super) fn view(unverified: Unverified) -> Option<Viewed> {
    let Unverified { seq, attempts, pushed_at, header, offset, mut body, .. } = unverified;
    let body = body.take(&header, offset);
    let Verified::Payload(payload_start) = header.verify(&body) else { return None };
    Some(Viewed { seq, attempts, pushed_at, body, payload_start, not_before: None })
}
