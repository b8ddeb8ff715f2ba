//! The side of consumers: taking messages, waiting for them, answering.
//!
//! Promises: a body is verified outside of the dispatch lock, whatever its size, unless its record
//! was read ahead; one above 4 KiB (`LONGEST_BODY`; above 1 KiB on the long way, `COPY_UNDER_LOCK`)
//! is copied outside of it, too; an answer with `sync_acks` returns after its sync; a consumer that
//! waits is woken by what it waits for and polls nothing. Work that takes long is done in steps,
//! between which other threads have their turn.

mod batch;
mod counts;
mod obstacles;
mod settling;
mod taking;

use super::append::Appender;
use super::commit::Commit;
use super::context::Context;
use super::dispatch::front::{FrontLook, FrontMessage, FrontState, Unfit};
use super::dispatch::{
    Answer, Dispatch, LeaseKey, Leased, LeasedOne, Leasing, Policy, Taken, TakenBody,
};
use super::published::Published;
use super::signal::{DispatchGuard, DispatchLock};
use super::wait::{Look, Soon};
use crate::clock;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::checksum::crc32;
use crate::format::extension::{self, Verified};
use crate::leases::Ticket;
use crate::time::{Millis, PushTime, Time};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where messages go out.
#[derive(Debug)]
pub(crate) struct Consumers {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    published: Arc<Published>,
    appender: Arc<Appender>,
    commit: Arc<Commit>,
}

/// What a look for the next message gives.
enum Popped {
    Taken(Taken),
    /// Nothing is ready; something will be at this time, if there is one.
    Nothing(Option<Time>),
    /// The time was over before it was known what is ready.
    Late,
}

/// Messages that are taken, or answered, under one lock.
const MESSAGES_A_STEP: usize = 256;
/// Messages that a pop passes over at most before it looks at the time. A step may be one message
/// or thousands; a body is verified before it is known what becomes of its message.
const MOST_PASSED_OVER: u32 = 256;
const A_STEP_AS_MESSAGES: u32 = 64;
const BYTES_AS_A_MESSAGE: u32 = 4096;
/// Messages that a look at the front settles at most.
const MESSAGES_A_SWEEP: usize = 1024;

impl Consumers {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        published: &Arc<Published>,
        appender: &Arc<Appender>,
        commit: &Arc<Commit>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            published: Arc::clone(published),
            appender: Arc::clone(appender),
            commit: Arc::clone(commit),
        }
    }

    /// The next message, if there is one, as `hand_out` makes it. `between`: called before this
    /// returns, without a lock.
    #[inline]
    pub(crate) fn pop<T>(
        &self,
        hand_out: impl Fn(Taken) -> T,
        between: impl FnOnce(),
    ) -> Result<Option<T>> {
        let visible = || self.published.visible();
        let popped = self.dispatch.go_short(|way| way.lease_read_ahead(visible()).map(&hand_out));
        match popped {
            Ok(popped) => {
                between();
                Ok(Some(popped))
            }
            Err(dispatch) => {
                let popped = self.pop_unread(dispatch, None);
                between();
                Ok(match popped? {
                    Popped::Taken(taken) => Some(hand_out(taken)),
                    Popped::Nothing(_) | Popped::Late => None,
                })
            }
        }
    }

    /// The next message, or what there is instead.
    fn try_pop(&self, deadline: Option<Instant>) -> Result<Popped> {
        let visible = || self.published.visible();
        let leased = self.dispatch.go_short(|way| way.lease_read_ahead(visible()));
        leased.map_or_else(
            |dispatch| self.pop_unread(dispatch, deadline),
            |taken| Ok(Popped::Taken(taken)),
        )
    }

    /// The next message, if its record was not read ahead. What is in its way may be millions that
    /// have expired: each call passes over some, and then looks at the time.
    #[inline(never)]
    fn pop_unread<'c>(
        &'c self,
        mut dispatch: DispatchGuard<'c>,
        deadline: Option<Instant>,
    ) -> Result<Popped> {
        let (mut passed_over, mut tries) = (0, self.context.unmapping.tries());
        loop {
            passed_over += 1;
            let visible = self.published.visible();
            if let Some(leased) = dispatch.short_way().lease_one(visible) {
                drop(dispatch);
                let LeasedOne { taken, check, pushed_at } = leased;
                if crc32(&taken.body) == check {
                    if taken.key.is_sample {
                        self.measure(taken.key.ticket, pushed_at);
                    }
                    return Ok(Popped::Taken(taken));
                }
                lose(&self.dispatch, taken.key.ticket, 1)?;
            } else {
                match dispatch.lease_next(visible) {
                    Ok(Leasing::Leased(leased)) => {
                        drop(dispatch);
                        passed_over += leased.header.body_len / BYTES_AS_A_MESSAGE;
                        match self.copy_out(leased) {
                            Ok(Some(taken)) => return Ok(Popped::Taken(taken)),
                            Ok(None) => tries.note_progress(),
                            // It is back; its map had gone, perhaps.
                            Err(error) => self.clear_the_way(error, &mut tries)?,
                        }
                    }
                    Ok(Leasing::Nothing) => {
                        return Ok(Popped::Nothing(dispatch.next_delivery_time()));
                    }
                    // Others have their turn.
                    Ok(Leasing::Again) => {
                        drop(dispatch);
                        tries.note_progress();
                        passed_over += A_STEP_AS_MESSAGES;
                    }
                    Err(error) => {
                        drop(dispatch);
                        self.clear_the_way(error, &mut tries)?;
                        // After three pauses the error is told, also if there is no time left.
                        passed_over += A_STEP_AS_MESSAGES;
                    }
                }
            }
            let is_over = || deadline.is_some_and(|end| end <= clock::now());
            if passed_over >= MOST_PASSED_OVER && is_over() {
                return Ok(Popped::Late);
            }
            dispatch = self.dispatch.lock();
        }
    }

    /// Waits until there is a message to pop; `None` once `deadline` has passed, or if there is no
    /// background and the caller has to do its work.
    pub(crate) fn pop_until(&self, deadline: Option<Instant>) -> Result<Option<Taken>> {
        let registered = || self.registered();
        let look = || self.look_for_message(deadline);
        let consumers = &self.context.waiters.consumers;
        let found = consumers.wait_until(0, Soon::Perhaps, deadline, registered, look);
        self.pass_on();
        found.map_or(Ok(None), |found| found)
    }

    /// To be called between registering as a waiter and looking: pushes ask for waiters under the
    /// lock of the unsealed segments, answers under the dispatch lock, which looking takes.
    pub(super) fn registered(&self) {
        drop(self.appender.unsealed());
    }

    /// Looks for a message until `deadline`. It passes over some in any case, so that calls come to
    /// an end.
    pub(super) fn look_for_message(
        &self,
        deadline: Option<Instant>,
    ) -> Look<Result<Option<Taken>>> {
        let Context { clock, died, move_again, worker, .. } = &*self.context;
        // Messages have died, and there is no background to move them.
        let has_work = || {
            let is_time = |at| clock.is_past(at);
            died.is_noted() && !worker.is_running() && move_again.get().is_none_or(is_time)
        };
        match self.try_pop(deadline) {
            Ok(Popped::Taken(taken)) => Look::Found(Ok(Some(taken))),
            Ok(Popped::Late) => Look::Found(Ok(None)),
            Ok(Popped::Nothing(_)) if has_work() => Look::Found(Ok(None)),
            Ok(Popped::Nothing(next)) => {
                let next = Time::earlier(next, self.next_move());
                let next = next.and_then(|time| self.context.clock.instant(time));
                next.map_or(Look::NotYet, Look::NotBefore)
            }
            Err(error) => Look::Found(Err(error)),
        }
    }

    /// When a thread that waits has to see to messages that the dead letters refused, because there
    /// is no background.
    pub(super) fn next_move(&self) -> Option<Time> {
        let again = self.context.move_again.get().filter(|_| !self.context.worker.is_running());
        again.filter(|_| self.dispatch.lock().ledger().places().dying().count() > 0)
    }

    /// A consumer that stops waiting wakes another one, if there may be something for it: a
    /// message, or a time to wait for.
    pub(super) fn pass_on(&self) {
        // The one that is woken looks for itself, so a hint is enough.
        let consumers = &self.context.waiters.consumers;
        if !consumers.has_waiters() {
            return;
        }
        let has_more = self.dispatch.lock().has_more(self.published.visible());
        if has_more || self.next_move().is_some() {
            consumers.wake_one();
        }
    }

    /// Messages that died are to be moved at a time: without a background, a thread that waits
    /// watches that.
    pub(crate) fn wake_to_watch(&self) {
        if self.context.worker.is_running() {
            return;
        }
        // Under this lock each consumer that waits has looked, or will look.
        drop(self.dispatch.lock());
        self.context.waiters.consumers.wake_one();
        self.context.waiters.room.wake_first();
    }

    /// Messages that were held back are shown: consumers look again.
    pub(crate) fn wake_for_shown(&self) {
        // Under this lock each consumer that waits has looked, or will look. One of them may be at
        // the front now.
        self.dispatch.lock().ledger_mut().note_head_changed();
        self.context.waiters.consumers.wake_one();
    }

    /// `None` if it is not to be handed out: damaged, expired, or not yet due.
    #[inline]
    fn copy_out(&self, mut leased: Leased) -> Result<Option<Taken>> {
        let body = leased.body.take(&leased.header, leased.offset);
        let payload_start = match leased.header.verify(&body) {
            Verified::Payload(start) => u32::try_from(start).unwrap_or(u32::MAX),
            unusable => return self.pass_over(&leased, unusable).map(|()| None),
        };
        let has_extensions = leased.header.flags.has_extensions();
        let has_times = has_extensions || self.context.options.message_ttl.is_some();
        if has_times && self.pass_over_in_time(&leased, &body)? {
            return Ok(None);
        }
        let Leased { ticket, attempts, pushed_at, is_sample, .. } = leased;
        if is_sample {
            self.measure(ticket, pushed_at.time);
        }
        let pushed_at = pushed_at.utc();
        let (key, body) = (LeaseKey { ticket, is_sample }, TakenBody::Own(body));
        Ok(Some(Taken { key, attempts, pushed_at, body, payload_start }))
    }

    #[cold]
    fn measure(&self, ticket: Ticket, pushed_at: Time) {
        self.dispatch.lock().deliveries_mut().measure_mut().handed_out(ticket, pushed_at);
    }

    /// Passes over a message whose payload is damaged, or can be read only by a newer keepq.
    #[cold]
    fn pass_over(&self, leased: &Leased, verified: Verified) -> Result<()> {
        let (ticket, attempts) = (leased.ticket, leased.attempts);
        match verified {
            Verified::Newer => self.dispatch.lock().deliveries_mut().set_aside(ticket, attempts),
            Verified::Damaged | Verified::Payload(_) => lose(&self.dispatch, ticket, attempts),
        }
    }

    /// Whether a message with a time is not to be handed out: it has expired, or is not yet due.
    fn pass_over_in_time(&self, leased: &Leased, body: &[u8]) -> Result<bool> {
        let Leased { header, pushed_at: PushTime { time: pushed_at, .. }, .. } = *leased;
        let clock = &self.context.clock;
        let now = leased.now.unwrap_or_else(|| clock.coarse());
        let own = header.flags.has_extensions().then(|| extension::notes(body));
        let ttl = self.context.options.message_ttl.map(Millis::from);
        let ttl = ttl.map(|ttl| pushed_at.saturating_add(ttl));
        let expires = Time::earlier(own.and_then(|notes| notes.expires), ttl);
        if expires.is_some_and(|time| clock.is_past_at(now, time)) {
            return self.dispatch.lock().deliveries_mut().expire(leased).map(|()| true);
        }
        // Its slot says when it is due. Should that be lost, the record still knows.
        let start_time = self.context.run.is_old(leased.ticket.seq()).then_some(clock.start_time());
        let due = own.and_then(|notes| Policy::due_by_record(&notes, pushed_at, start_time));
        let Some(due) = due.filter(|&due| !clock.is_past_at(now, due)) else { return Ok(false) };
        self.dispatch.lock().deliveries_mut().put_off(leased, due)
    }

    /// What tests watch of the short way.
    #[cfg(all(test, feature = "fault-injection"))]
    pub(crate) fn watch<T>(&self, look: impl FnOnce(&mut super::dispatch::Watched) -> T) -> T {
        look(self.dispatch.lock().short_way().watched())
    }

    /// Gives a delivery more time.
    pub(crate) fn extend(&self, key: LeaseKey, time: Duration) -> Result<()> {
        self.dispatch.lock().deliveries_mut().extend(key.ticket, time)
    }

    /// Counts the slots of earlier runs, and stores what follows, as far as that can be done; tells
    /// the first error.
    pub(crate) fn count_all(&self) -> Result<()> {
        self.dispatch.lock().count_again();
        let (mut steps, mut result) = (self.dispatch.steps(), Ok(()));
        let mut tries = self.context.unmapping.tries();
        loop {
            let counted = steps.next(Dispatch::count_some);
            match counted {
                Ok(true) => tries.note_progress(),
                Ok(false) => break,
                Err(error) => result = result.and(self.clear_the_way(error, &mut tries)),
            }
        }
        result.inspect_err(|_| self.context.retry_upkeep())
    }

    /// Ends leases and delays that are over, step by step.
    pub(crate) fn end_due(&self) {
        let mut steps = self.dispatch.steps();
        while steps.next(|dispatch| dispatch.deliveries_mut().end_due()) {}
    }

    /// The same as [`Self::sweep_expired`], if it is time to look at the front.
    pub(crate) fn sweep_in_time(&self) -> Result<()> {
        let is_due = self.dispatch.lock().ledger().expiry().is_due(&self.context.clock);
        if is_due { self.sweep_expired().map(|_| ()) } else { Ok(()) }
    }

    /// Settles messages at the front that have expired, and plans the next look; tells whether it
    /// settled any. Up to a thousand in one call.
    pub(crate) fn sweep_expired(&self) -> Result<bool> {
        let swept = self.sweep_some();
        if swept.is_err() {
            // Whatever failed, the front is looked at again.
            self.dispatch.lock().ledger_mut().note_head_changed();
        }
        swept
    }

    fn sweep_some(&self) -> Result<bool> {
        let mut has_settled = false;
        let mut left = MESSAGES_A_SWEEP;
        while left > 0 {
            let look = || {
                let mut dispatch = self.dispatch.lock();
                if dispatch.check_open().is_err() {
                    return Ok((FrontLook::Nothing, *dispatch.ledger().policy()));
                }
                let front = FrontMessage::look(&mut dispatch, || self.published.visible())?;
                Ok((front, *dispatch.ledger().policy()))
            };
            let (front, policy) = self.dispatch.with_room(look)?;
            let mut front = match front {
                FrontLook::Message(front) => front,
                FrontLook::Nothing => return Ok(has_settled),
                FrontLook::Again => continue,
            };
            let unfit = match front.read(&policy) {
                FrontState::Damaged => Unfit::Damaged,
                FrontState::Newer => Unfit::Newer,
                FrontState::Whole { expires } => {
                    if !expires.is_some_and(|time| self.context.clock.is_past(time)) {
                        self.plan_look(expires);
                        return Ok(has_settled);
                    }
                    Unfit::Expired
                }
            };
            let visible = self.published.visible();
            let settle = || front.settle(unfit, &mut self.dispatch.lock(), visible);
            self.dispatch.with_room(settle)?;
            has_settled = true;
            left -= 1;
        }
        // There are more.
        self.plan_look(Some(Time::ZERO));
        Ok(has_settled)
    }

    /// Settles all that has expired at the front.
    pub(crate) fn sweep_all(&self) -> Result<()> {
        while self.sweep_expired()? {}
        Ok(())
    }

    /// Plans the next look at the front for `time`; `None`: the message there does not expire.
    fn plan_look(&self, time: Option<Time>) {
        if let Some(time) = time {
            self.dispatch.lock().ledger_mut().expiry_mut().plan_before(time);
        }
    }

    /// Counts some slots of a segment; false once all of them are counted.
    pub(crate) fn count_segment(&self, ordinal: Ordinal) -> Result<bool> {
        self.dispatch.with_room(|| self.dispatch.lock().count_segment(ordinal))
    }

    /// The next time at which there is something to do, for a thread that waits where there is no
    /// background.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let time = self.dispatch.lock().next_time()?;
        self.context.clock.instant(time)
    }
}

/// Passes over a message whose payload is damaged.
#[cold]
fn lose(dispatch: &DispatchLock, ticket: Ticket, attempts: u32) -> Result<()> {
    dispatch.lock().deliveries_mut().lose_leased(ticket, attempts)
}
