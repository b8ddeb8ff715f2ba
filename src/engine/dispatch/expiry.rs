//! When to look whether the message at the front has expired, though no consumer asks for it.
//!
//! Only the front is watched: what is behind a message that is worth something waits for it. A run
//! that found no segment plans no look before a message comes that expires. One that found segments
//! plans them in any case, once a second at most while the front changes.

use crate::clock::Clock;
use crate::options::Options;
use crate::time::{Millis, Time};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How soon after a change at the front the next look is: not for each message.
const LOOK_AGAIN: Millis = Millis(1000);

/// When the front is looked at.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// Some messages may expire.
    may_expire: bool,
    next_look: Option<Time>,
    /// What earlier runs left was not looked at yet.
    is_new: bool,
    /// The next look is soon, because another message is at the front.
    is_soon: bool,
    /// The same as `next_look`, for producers: one whose message expires earlier says so.
    planned: Arc<AtomicU64>,
}

/// No look is planned.
const NO_LOOK: u64 = u64::MAX;

impl Expiry {
    /// `has_old`: there are messages of earlier runs, which may have times of their own.
    pub(super) fn new(options: &Options, has_old: bool) -> Self {
        let may_expire = options.message_ttl.is_some() || has_old;
        Self {
            may_expire,
            next_look: None,
            is_new: true,
            is_soon: false,
            planned: Arc::new(AtomicU64::new(NO_LOOK)),
        }
    }

    #[inline]
    pub(super) fn may_expire(&self) -> bool {
        self.may_expire
    }

    #[inline]
    pub(super) fn next_look(&self) -> Option<Time> {
        self.next_look
    }

    /// Whether it is time to look at the front.
    pub(crate) fn is_due(&self, clock: &Clock) -> bool {
        let is_past = |look| clock.is_past(look);
        self.may_expire && (self.is_new || self.next_look.is_some_and(is_past))
    }

    fn plan(&mut self, look: Option<Time>) {
        self.next_look = look;
        // Relaxed: see the fence in `FrontMessage::look`.
        self.planned.store(look.map_or(NO_LOOK, |look| look.0), Ordering::Relaxed);
    }

    /// Another message is at the front now.
    #[inline(always)]
    pub(super) fn note_head_changed(&mut self, clock: &Clock) {
        if self.may_expire && !self.is_soon {
            self.is_soon = true;
            let soon = Some(clock.coarse() + LOOK_AGAIN);
            self.plan(Time::earlier(self.next_look, soon));
        }
    }

    /// The time of the next look, for producers; `u64::MAX` if none is planned.
    pub(crate) fn planned(&self) -> &Arc<AtomicU64> {
        &self.planned
    }

    /// A message that expires then is about to be published.
    pub(crate) fn note_expiring(&mut self, expires: Time) {
        self.may_expire = true;
        self.plan_before(expires);
    }

    /// There has to be a look then, if there is none before.
    pub(crate) fn plan_before(&mut self, time: Time) {
        self.plan(Time::earlier(self.next_look, Some(time)));
    }

    /// A look begins, and no other one is planned; false if there is nothing to look for.
    pub(super) fn begin_look(&mut self) -> bool {
        if self.may_expire {
            self.is_new = false;
            self.is_soon = false;
            self.plan(None);
        }
        self.may_expire
    }
}
