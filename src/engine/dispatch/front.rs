//! Looking whether the message at the front has expired, and settling it then.

use super::Dispatch;
use super::exchange::{Choice, Next};
use super::policy::Policy;
use crate::engine::backlog::{Body, FoundMessage};
use crate::error::Result;
use crate::format::extension::Verified;
use crate::time::{PushTime, Time};
use std::sync::atomic::{Ordering, fence};

/// The message at the front, to be looked at outside of the lock.
#[derive(Debug)]
pub(crate) struct FrontMessage {
    next: Next,
    body: Body,
    pushed_at: PushTime,
}

/// What a look at the front gives.
#[derive(Debug)]
pub(crate) enum FrontLook {
    Message(FrontMessage),
    /// Nothing waits, or nothing can expire.
    Nothing,
    /// Other work first: to be asked again.
    Again,
}

/// What the message at the front is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrontState {
    Whole {
        expires: Option<Time>,
    },
    Damaged,
    /// Only a newer version of keepq can read it.
    Newer,
}

/// Why the message at the front does not stay there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unfit {
    Expired,
    Damaged,
    /// Only a newer version of keepq can read it: it is set aside.
    Newer,
}

impl FrontMessage {
    /// Looks at the front, if any message may expire. Plans no other look.
    pub(crate) fn look(dispatch: &mut Dispatch, visible: impl Fn() -> u64) -> Result<FrontLook> {
        if !dispatch.ledger_mut().expiry_mut().begin_look() {
            return Ok(FrontLook::Nothing);
        }
        // Pairs with the fence of a producer, who publishes and then asks whether a look is
        // planned: one of the two sees the other.
        fence(Ordering::SeqCst);
        let next = match dispatch.choose(visible())? {
            Choice::Next(next) => next,
            Choice::Nothing => return Ok(FrontLook::Nothing),
            Choice::Again => return Ok(FrontLook::Again),
        };
        let (pushed_at, body) =
            Body::of_found(dispatch.backlog().track_at(next.found.spot.at), &next.found)?;
        Ok(FrontLook::Message(Self { next, body, pushed_at }))
    }

    /// Settles the message, or sets it aside, if it is still at the front.
    pub(crate) fn settle(&self, unfit: Unfit, dispatch: &mut Dispatch, visible: u64) -> Result<()> {
        let Choice::Next(next) = dispatch.choose(visible)? else { return Ok(()) };
        let FoundMessage { spot, ref place, .. } = next.found;
        if place.seq != self.next.found.place.seq {
            return Ok(());
        }
        match unfit {
            Unfit::Expired => dispatch.deliveries_mut().settle_expired(spot, place)?,
            Unfit::Damaged => {
                dispatch.ledger_mut().lose(spot, place.offset)?;
            }
            Unfit::Newer => dispatch.ledger_mut().set_aside(spot, place),
        }
        dispatch.leave_settled(&next);
        Ok(())
    }

    /// Reads the message, outside of the lock. `policy`: of its queue.
    pub(crate) fn read(&mut self, policy: &Policy) -> FrontState {
        let FoundMessage { ref header, place, .. } = self.next.found;
        let body = self.body.take(header, place.offset);
        match header.verify(&body) {
            Verified::Damaged => FrontState::Damaged,
            Verified::Newer => FrontState::Newer,
            Verified::Payload(_) => {
                FrontState::Whole { expires: policy.expires_at(header, &body, self.pushed_at.time) }
            }
        }
    }
}
