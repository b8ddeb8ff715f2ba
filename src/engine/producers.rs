//! The side of producers: what a push does when there is room, and when there is none.
//!
//! Promises: a message above a limit is refused before anything is written; no more than
//! `max_messages` are unsettled at any moment. No message is dropped, and no producer waits, where
//! that could not make room enough; while no file can be removed, two segments at most are dropped
//! in vain. Producers that wait for room are served in the order in which they came. An answer, a
//! time, poison and `close` wake them.

use super::append::{Appender, Need, Placed, Promise};
use super::commit::Commit;
use super::consumers::Consumers;
use super::context::{Context, RETRY_AFTER, RoomTries};
use super::dispatch::drop_segment::Dropping;
use super::dispatch::{Dispatch, Dropped};
use super::published::Published;
use super::reclaim::Reclaim;
use super::signal::DispatchLock;
use super::space::{CHECKPOINT_ROOM, SMALLEST_SEGMENT};
use super::wait::Look;
use crate::clock;
use crate::engine::append::maker::Maker;
use crate::error::{Error, Result};
use crate::log::draft::Draft;
use crate::options::Overflow;
use crate::time::Time;
use parking_lot::Mutex;
use std::sync::Arc;

/// Messages above the limit that are dropped under one lock.
const MESSAGES_A_STEP: u64 = 256;
/// Segments that are dropped one after the other though nothing comes of it. One file may be stuck
/// alone; if the next one is, too, it is likely that no file can be removed.
const DROPS_IN_VAIN: u32 = 2;

/// Where messages come in, and what is done for their room.
#[derive(Debug)]
pub(crate) struct Producers {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    published: Arc<Published>,
    appender: Arc<Appender>,
    commit: Arc<Commit>,
    reclaim: Arc<Reclaim>,
    consumers: Arc<Consumers>,
    /// Taken by the producer that drops the oldest messages, before all other locks.
    dropping: Mutex<InVain>,
}

/// The segments that were dropped since the last time that a file was given back or used again.
#[derive(Debug, Default)]
struct InVain {
    drops: u32,
    /// The bytes that had been given back or used again by then.
    bytes: u64,
}

impl InVain {
    /// Whether another drop may make room. `bytes`: those given back or used again since open.
    fn may_drop(&mut self, bytes: u64) -> bool {
        if self.bytes != bytes {
            *self = Self { drops: 0, bytes };
        }
        self.drops < DROPS_IN_VAIN
    }
}

/// How far the oldest messages are dropped.
enum Drops {
    /// Some of those that are above the limit anyway.
    More,
    Done,
}

/// What messages need, what is promised of them, and whom to ask for more room.
type How<'a> = (Need, Promise, MoreRoom<'a>);

/// Makes some room elsewhere for a push that was refused with this error. Returns true if there may
/// be room now, and false once nothing is left to do. Fails if there will be no room in this run: a
/// push that would wait for it fails with that error.
pub(crate) type MoreRoom<'a> = &'a dyn Fn(&Error) -> Result<bool>;

/// What a push does when the queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhenFull {
    /// As [`Options::overflow`](crate::Options::overflow) says.
    AsOptions,
    /// The same, but it does not wait.
    NoWait,
}

impl Producers {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        published: &Arc<Published>,
        reclaim: (&Arc<Appender>, &Arc<Commit>, &Arc<Reclaim>),
        consumers: &Arc<Consumers>,
    ) -> Self {
        let (appender, commit, reclaim) = reclaim;
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            published: Arc::clone(published),
            appender: Arc::clone(appender),
            commit: Arc::clone(commit),
            reclaim: Arc::clone(reclaim),
            consumers: Arc::clone(consumers),
            dropping: Mutex::default(),
        }
    }

    /// Places and publishes `drafts` as one batch, within the limits; gives their numbers, none
    /// if they were dropped. `more_room`: asked before anything is refused, or dropped, for want of
    /// room, until it says false.
    #[inline]
    pub(crate) fn push(
        &self,
        drafts: &[Draft<'_>],
        promise: Promise,
        when_full: WhenFull,
        more_room: MoreRoom<'_>,
    ) -> Result<Placed> {
        let Context { options, waiters, health, .. } = &*self.context;
        // One that may wait does not overtake those that wait already.
        let must_wait = options.overflow == Overflow::Block && !waiters.room.is_empty();
        health.check(false)?;
        let need = Need::of(drafts);
        if !must_wait {
            match self.appender.append(drafts, need, promise, self.commit.durable()) {
                Ok(Some(placed)) => return Ok(placed),
                Ok(None) | Err(Error::Full { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let must_wait = must_wait && when_full == WhenFull::AsOptions;
        self.push_slowly(drafts, when_full, must_wait, (need, promise, more_room))
    }

    /// The same where there is no room, or there are producers that wait.
    #[cold]
    #[inline(never)]
    fn push_slowly(
        &self,
        drafts: &[Draft<'_>],
        when_full: WhenFull,
        must_wait: bool,
        how: How<'_>,
    ) -> Result<Placed> {
        let (need, promise, more_room) = how;
        need.check()?;
        let overflow = match (when_full, self.context.options.overflow) {
            (WhenFull::NoWait, Overflow::Block) => Overflow::Reject,
            (WhenFull::NoWait | WhenFull::AsOptions, overflow) => overflow,
        };
        let full = if must_wait {
            None
        } else {
            match self.append_or_ask(drafts, need, promise, more_room) {
                Err(full @ Error::Full { .. }) => Some(full),
                result => return result,
            }
        };
        match overflow {
            Overflow::Block if self.could_fit(need, overflow) => {
                self.push_in_line(drafts, (need, promise, more_room), full)
            }
            Overflow::DropOldest if self.could_fit(need, overflow) => {
                self.push_over_oldest(drafts, need, promise)
            }
            Overflow::DropNewest => {
                self.dispatch.lock().ledger_mut().counts_mut().dropped += need.records();
                Ok(Placed::NONE)
            }
            Overflow::Reject | Overflow::Block | Overflow::DropOldest => match full {
                Some(full) => Err(full),
                None => self.append(drafts, need, promise),
            },
        }
    }

    /// Returns false if there could never be room: then no message is dropped, and no producer
    /// waits.
    fn could_fit(&self, need: Need, overflow: Overflow) -> bool {
        let space = &self.context.space;
        // The newest segment is not let go before there is a newer one, of the smallest size if
        // need be. What dead letters take is not freed by dropping the oldest.
        let others = if overflow == Overflow::DropOldest { space.of_others() } else { 0 };
        let bytes = need.segment_bytes().max(SMALLEST_SEGMENT);
        let max_messages = self.context.options.max_messages;
        max_messages.is_none_or(|max| need.records() <= max)
            && space.could_ever_take(bytes, SMALLEST_SEGMENT + 2 * CHECKPOINT_ROOM, others)
    }

    fn append_or_ask(
        &self,
        drafts: &[Draft<'_>],
        need: Need,
        promise: Promise,
        more_room: MoreRoom<'_>,
    ) -> Result<Placed> {
        let may_wait = self.context.options.overflow == Overflow::Block;
        loop {
            match self.append(drafts, need, promise) {
                Err(full @ (Error::Full { .. } | Error::StorageFull { .. })) => {
                    match more_room(&full) {
                        Ok(true) => {}
                        Err(error) if may_wait => return Err(error.before_anything()),
                        Ok(false) | Err(_) => return Err(full),
                    }
                }
                result => return result,
            }
        }
    }

    /// Places and publishes `drafts`, if there is room or room can be made at once.
    pub(crate) fn append(
        &self,
        drafts: &[Draft<'_>],
        need: Need,
        promise: Promise,
    ) -> Result<Placed> {
        self.context.health.check(false)?;
        let (mut may_count, mut may_make_room) = (true, true);
        let mut tries = self.context.unmapping.tries();
        loop {
            match self.appender.append(drafts, need, promise, self.commit.durable()) {
                Ok(Some(placed)) => return Ok(placed),
                Ok(None) => {}
                // There are too many messages, as far as is known.
                Err(Error::Full { .. }) if may_count => {
                    may_count = false;
                    self.context.health.note_background(self.consumers.count_all());
                    self.consumers.end_due();
                    self.context.health.note_background(self.consumers.sweep_all());
                    continue;
                }
                Err(error) => return Err(error),
            }
            match self.rotate(need) {
                Err(Error::StorageFull { .. } | Error::Full { .. }) if may_make_room => {
                    // Whatever fails here, nothing has been placed.
                    may_make_room = self.make_room().map_err(Error::before_anything)?;
                }
                Err(error) if error.lacks_room_for_map() => {
                    if !self.make_room_for_map(&mut tries).map_err(Error::before_anything)? {
                        return Err(error);
                    }
                }
                result => result?,
            }
        }
    }

    /// Goes on to a segment that has room. Where the background does not keep up, does the work of
    /// one file for it.
    fn rotate(&self, need: Need) -> Result<()> {
        // Whatever fails here, nothing has been placed, and the push finds out if it matters.
        let health = &self.context.health;
        if !self.appender.with_supply_state(|supply| supply.has_begun) {
            health.note_background(self.reclaim.tidy_small_segments());
        }
        if self.reclaim.is_behind() {
            health.note_background(self.reclaim.catch_up());
        }
        self.appender.rotate(need)
    }

    /// For another queue on the same disk: gives back files that are no longer needed, or else the
    /// segment that is kept ready; false if there was neither.
    pub(crate) fn make_room_for_others(&self) -> Result<bool> {
        Ok(self.make_room()? || Maker::new(&self.appender).give_up_ready())
    }

    /// Gives back files that are no longer needed; false if there were none.
    fn make_room(&self) -> Result<bool> {
        self.context.health.note_background(self.consumers.count_all());
        self.consumers.end_due();
        self.context.health.note_background(self.consumers.sweep_all());
        self.reclaim.make_room()
    }

    /// Unmaps other segments, or seals one that is full, which then need not stay mapped; false if
    /// there was none.
    fn make_room_for_map(&self, tries: &mut RoomTries) -> Result<bool> {
        Ok(self.dispatch.make_room_for_map(tries) || self.commit.sync_oldest_full()?)
    }

    /// Waits for room behind those that wait already.
    fn push_in_line(
        &self,
        drafts: &[Draft<'_>],
        (need, promise, more_room): How<'_>,
        full: Option<Error>,
    ) -> Result<Placed> {
        let timeout = self.context.options.push_timeout;
        let deadline = timeout.and_then(|timeout| clock::now().checked_add(timeout));
        let mut last = full;
        let look = || {
            // A thread that settles asks for producers under this lock.
            drop(self.dispatch.lock());
            match self.append_or_ask(drafts, need, promise, more_room) {
                Err(full @ Error::Full { .. }) => {
                    last = Some(full);
                    self.look_again_at()
                }
                result => Look::Found(result),
            }
        };
        if let Some(pushed) = self.context.waiters.room.wait(deadline, look) {
            return pushed;
        }
        match last {
            Some(full) => Err(full),
            // It was never the first in line.
            None => self.append(drafts, need, promise),
        }
    }

    /// Without a background, a producer that waits watches the next time itself, and tries again
    /// what failed in its look.
    fn look_again_at<T>(&self) -> Look<T> {
        if self.context.worker.is_running() {
            return Look::NotYet;
        }
        let next = self.dispatch.lock().next_time();
        let next = Time::earlier(next, self.consumers.next_move());
        let next = next.and_then(|time| self.context.clock.instant(time));
        let has_failed = self.context.space.take_retry();
        let retry = has_failed.then(|| clock::now() + RETRY_AFTER);
        let next = [next, retry].into_iter().flatten().min();
        next.map_or(Look::NotYet, Look::NotBefore)
    }

    fn push_over_oldest(
        &self,
        drafts: &[Draft<'_>],
        need: Need,
        promise: Promise,
    ) -> Result<Placed> {
        // One at a time: what another one has dropped may be room enough for this one, too.
        let mut in_vain = self.dropping.lock();
        let mut may_copy = self.context.options.compaction.is_on;
        loop {
            let full = match self.append(drafts, need, promise) {
                Err(full @ Error::Full { .. }) => full,
                result => return result,
            };
            let has_dropped = if let Error::Full { limit: "max_messages", max } = full {
                self.drop_oldest(need.records(), max)?
            } else {
                // For bytes, those of one segment, which is let go then.
                let bytes = self.context.space.given_back() + self.appender.taken_bytes();
                in_vain.may_drop(bytes)
                    && self.dispatch.with_room(|| self.drop_segment(need, &mut in_vain))?
            };
            if !has_dropped && may_copy {
                // What is being copied cannot be dropped, but will take less.
                may_copy = false;
                self.reclaim.copy_once().map_err(Error::before_anything)?;
            } else if !has_dropped {
                return Err(full);
            }
        }
    }

    /// Drops the oldest messages that wait, ready or delayed, until there is room for `records`
    /// more; false if there are too few, and then none is dropped but what is above the limit
    /// anyway.
    fn drop_oldest(&self, records: u64, max: u64) -> Result<bool> {
        self.context.health.note_background(self.consumers.count_all());
        self.consumers.end_due();
        // What a lowered limit leaves above it may be much: in steps.
        let drop_some = || {
            let mut dispatch = self.dispatch.lock();
            let Some(above) = self.missing(&dispatch, records, max)? else { return Ok(None) };
            if above > records {
                let most = (above - records).min(MESSAGES_A_STEP);
                let has_dropped = self.drop_up_to(&mut dispatch, most, 0, max)?;
                return Ok(has_dropped.then_some(Drops::More));
            }
            // The rest under one lock: or else a consumer could take what was counted on, and
            // messages would be dropped for a push that fails.
            let has_dropped = self.drop_up_to(&mut dispatch, above.max(1), records, max)?;
            Ok(has_dropped.then_some(Drops::Done))
        };
        loop {
            match self.dispatch.with_room(drop_some)? {
                Some(Drops::More) => {}
                Some(Drops::Done) => return Ok(true),
                None => return Ok(false),
            }
        }
    }

    /// How many messages are too many for `records` more; `None` if those that do not wait leave no
    /// room for them.
    fn missing(&self, dispatch: &Dispatch, records: u64, max: u64) -> Result<Option<u64>> {
        dispatch.check_open()?;
        let fits = dispatch.ledger().places().elsewhere() + records <= max;
        Ok(fits.then(|| self.too_many(dispatch, records, max)))
    }

    fn too_many(&self, dispatch: &Dispatch, records: u64, max: u64) -> u64 {
        let unsettled = dispatch.backlog().unsettled(self.published.newest());
        (unsettled + records).saturating_sub(max)
    }

    /// Drops this many messages, or until there are no more than `max` with `records` more; false
    /// if there are fewer.
    fn drop_up_to(
        &self,
        dispatch: &mut Dispatch,
        messages: u64,
        records: u64,
        max: u64,
    ) -> Result<bool> {
        let (published, mut left) = (self.published.newest(), messages);
        let maps_before = dispatch.backlog().activity().maps_made();
        // Those that are above the limit anyway go in steps.
        let may_stop = |dispatch: &Dispatch| {
            records == 0 && dispatch.backlog().activity().has_made_most(maps_before)
        };
        while left > 0 && !may_stop(dispatch) {
            match dispatch.drop_next(published)? {
                Dropped::One => left -= 1,
                // What was lost or over has made room, too.
                Dropped::Again => left = left.min(self.too_many(dispatch, records, max)),
                Dropped::None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Drops all waiting messages of the oldest segment that has no other unsettled messages; false
    /// if there is no such segment, or if all of them together do not make room enough.
    fn drop_segment(&self, need: Need, in_vain: &mut InVain) -> Result<bool> {
        self.consumers.end_due();
        let missing = self.context.space.missing(need.segment_bytes().max(SMALLEST_SEGMENT));
        let ready = self.appender.ready_bytes();
        let droppable = {
            let dispatch = self.dispatch.lock();
            dispatch.check_open()?;
            Dropping::bytes(&dispatch)
        };
        if ready.saturating_add(droppable) < missing {
            return Ok(false);
        }
        let mut after = None;
        loop {
            let dispatch = self.dispatch.lock();
            dispatch.check_open()?;
            let dropping = Dropping::of_oldest(&dispatch, after);
            drop(dispatch);
            let Some(mut dropping) = dropping else { return Ok(false) };
            let mut steps = self.dispatch.steps();
            while steps.next(|dispatch| dropping.drop_some(dispatch))? {}
            if dropping.dropped() > 0 {
                in_vain.drops += u32::from(dropping.is_whole());
                return Ok(true);
            }
            // One of which nothing could be dropped is left behind.
            after = Some(dropping.first_seq());
        }
    }
}
