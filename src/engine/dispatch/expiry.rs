//! When to look whether the message at the front has expired, though no consumer asks for it.
//!
//! Only the front is watched: what is behind a message that is worth something waits for it. Costs
//! nothing where no message has a time to live.

use super::Dispatch;
use super::choose::{Body, Choice, Next};
use crate::clock::{self, Clock};
use crate::error::Result;
use crate::options::Options;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// How soon after a change at the front the next look is, in milliseconds: not for each message.
const LOOK_AGAIN: u64 = 1000;

/// When the front is looked at.
#[derive(Debug)]
pub(super) struct Expiry {
    /// Some messages may expire.
    may_expire: bool,
    next_look: Option<u64>,
    /// That is soon, because another message is at the front.
    is_soon: bool,
    /// No look is planned: a producer says when its message expires.
    is_idle: Arc<AtomicBool>,
}

impl Expiry {
    /// `has_old`: there are messages of earlier runs, which may have times of their own.
    pub(super) fn new(options: &Options, has_old: bool) -> Self {
        let may_expire = options.message_ttl.is_some() || has_old;
        Self {
            may_expire,
            next_look: None,
            is_soon: false,
            is_idle: Arc::new(AtomicBool::new(true)),
        }
    }

    pub(super) fn next_look(&self) -> Option<u64> {
        self.next_look
    }

    fn plan(&mut self, look: Option<u64>) {
        self.next_look = look;
        // Relaxed: see the fence in `look_at_front`.
        self.is_idle.store(look.is_none(), Ordering::Relaxed);
    }

    /// Another message is at the front now.
    #[inline]
    pub(super) fn note_head_changed(&mut self, clock: &Clock) {
        if self.may_expire && !self.is_soon {
            self.is_soon = true;
            let soon = Some(clock.coarse() + LOOK_AGAIN);
            self.plan(clock::earlier(self.next_look, soon));
        }
    }
}

impl Dispatch {
    /// Whether a producer whose message expires has to say so.
    pub(in super::super) fn expiry_is_idle(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.expiry.is_idle)
    }

    /// A message that expires then is about to be published.
    pub(crate) fn note_expiring(&mut self, expires: u64) {
        self.expiry.may_expire = true;
        self.expiry.plan(clock::earlier(self.expiry.next_look, Some(expires)));
    }

    /// The message at the front, to be looked at outside of the lock, if any may expire. Plans no
    /// other look.
    pub(crate) fn look_at_front(
        &mut self,
        visible: impl Fn() -> u64,
    ) -> Result<Option<(Choice, Option<Body>)>> {
        if !self.expiry.may_expire {
            return Ok(None);
        }
        self.expiry.is_soon = false;
        self.expiry.plan(None);
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
            self.expiry.plan(clock::earlier(self.expiry.next_look, Some(expires)));
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
