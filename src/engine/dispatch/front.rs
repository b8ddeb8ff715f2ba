//! Looking at the message at the front, and settling it once it has expired.

use super::Dispatch;
use super::exchange::{Body, Choice, Next};
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

impl Dispatch {
    /// Whether a producer whose message expires has to say so.
    pub(in super::super) fn expiry_is_idle(&self) -> Arc<AtomicBool> {
        Arc::clone(self.expiry.is_idle())
    }

    /// A message that expires then is about to be published.
    pub(crate) fn note_expiring(&mut self, expires: u64) {
        self.expiry.note_expiring(expires);
    }

    /// The message at the front, to be looked at outside of the lock, if any may expire. Plans no
    /// other look.
    pub(crate) fn look_at_front(
        &mut self,
        visible: impl Fn() -> u64,
    ) -> Result<Option<(Choice, Option<Body>)>> {
        if !self.expiry.begin_look() {
            return Ok(None);
        }
        // Pairs with the fence of a producer, who publishes and then asks whether a look is
        // planned: one of the two sees the other.
        fence(Ordering::SeqCst);
        let choice = self.choose(visible())?;
        let body = if let Choice::Next(next) = &choice { Some(self.body_of(next)?) } else { None };
        Ok(Some((choice, body)))
    }

    /// The front is to be looked at then, since it expires; `None`: it does not.
    pub(crate) fn plan_look(&mut self, expires: Option<u64>) {
        if let Some(expires) = expires {
            self.expiry.plan_before(expires);
        }
    }

    /// The message at the front has expired, if it is still this one.
    pub(crate) fn expire_front(&mut self, seq: u64, visible: u64) -> Result<()> {
        if let Choice::Next(next) = self.choose(visible)?
            && next.found.place.seq == seq
        {
            self.settle_expired(next.found.spot, &next.found.place)?;
            self.leave_chosen(&next);
        }
        Ok(())
    }

    /// The message at the front is damaged, if it is still this one.
    pub(crate) fn lose_front(&mut self, seq: u64, visible: u64) -> Result<()> {
        if let Choice::Next(next) = self.choose(visible)?
            && next.found.place.seq == seq
        {
            self.lose(next.found.spot, next.found.place.offset)?;
            self.leave_chosen(&next);
        }
        Ok(())
    }

    /// When a chosen message was pushed.
    pub(crate) fn pushed_at(&mut self, next: &Next) -> u64 {
        let track = self.backlog.track_at(next.found.spot.at);
        track.base_time() + u64::from(next.found.header.age)
    }
}
