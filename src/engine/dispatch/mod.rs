//! Dispatch: which message is handed out next, who has which, and what becomes of it.
//!
//! Three layers, each of which owns the one below: `Dispatch` chooses the next message, and knows
//! what others have to be told; [`Deliveries`] has the leases and the answers; [`Ledger`] settles,
//! and knows where each message is. Waits for no I/O: work that takes long is done in steps,
//! between which the lock is given up ([`Again`](Leasing::Again)).

pub(crate) mod answer_map;
mod choose;
mod counting;
mod deliveries;
pub(super) mod drop_segment;
pub(super) mod dying;
mod exchange;
mod expiry;
pub(super) mod front;
mod leased;
mod ledger;
mod measure;
pub(super) mod news;
mod places;
mod policy;
pub(super) mod purge;
mod read_ahead;
pub(super) mod repair;
mod short;
mod taken;
mod vanished;
#[cfg(test)]
mod watched;

use crate::format::checkpoint::ConsumerOffset;
use crate::time::Time;
pub(crate) use deliveries::Deliveries;
pub(crate) use dying::{Cause, Death, DyingMessage};
pub(crate) use exchange::{Answer, Answerable, Dropped, LeaseKey, Leased, Leasing};
pub(crate) use leased::{LeasedBatch, LeasedMessage, LeasedOne};
pub(crate) use ledger::Ledger;
pub(crate) use measure::start_push;
pub(crate) use places::Whereabouts;
pub(crate) use policy::Policy;
pub(crate) use short::ShortWay;
pub(crate) use taken::{BodyPlace, Taken, TakenBody};
pub(crate) use vanished::give_up_vanished;
#[cfg(test)]
pub(crate) use watched::Watched;

use super::backlog::cursor::Cursor;
use super::backlog::{Backlog, FoundMessage, Met};
use super::backlog::{IdleMaps, LeftMap, Surplus};
use super::context::Context;
use super::published::Published;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::slot::State;
use crate::format::standing::Standing;
use crate::log::Segment;
use crate::recovery::Log;
use crate::stats::Counts;
use counting::Counting;
use news::News;
use read_ahead::ReadAhead;
use std::sync::Arc;

/// What comes next, and what others have to be told.
#[derive(Debug)]
pub(crate) struct Dispatch {
    deliveries: Deliveries,
    counting: Counting,
    /// Records behind the cursor that are copied already.
    read_ahead: ReadAhead,
    /// The time that the background, or who waits, was last told to watch.
    watched: Option<Time>,
    /// The worker knows that there are changes to sync.
    has_asked_for_sync: bool,
}

/// Who watches the next time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Watcher {
    /// The background, if it is told of an earlier one than it watches.
    Worker,
    /// Threads that wait, where there is no background.
    Waiters,
    /// There are none.
    Nobody,
}

impl Dispatch {
    pub(super) fn new(log: &Log, context: &Context, published: &Arc<Published>) -> Self {
        Self {
            deliveries: Deliveries::new(log, context, published),
            counting: Counting::default(),
            read_ahead: ReadAhead::default(),
            watched: None,
            has_asked_for_sync: false,
        }
    }

    /// For plain messages, while nothing else comes first.
    #[inline]
    pub(crate) fn short_way(&mut self) -> ShortWay<'_> {
        ShortWay::of(&mut self.deliveries, &mut self.read_ahead)
    }

    /// From here on no message is handed out or answered.
    pub(crate) fn close(&mut self) {
        self.ledger_mut().close();
    }

    /// Gives up maps and all that is known of messages.
    pub(crate) fn clear(&mut self) {
        self.counting.clear();
        self.read_ahead = ReadAhead::default();
        self.ledger_mut().clear();
    }

    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed) once the queue is closed.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        self.ledger().check_open()
    }

    #[inline]
    pub(crate) fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    #[inline]
    pub(crate) fn deliveries_mut(&mut self) -> &mut Deliveries {
        &mut self.deliveries
    }

    /// Maps that left their tracks, or that no delivery needs, to be given up outside of the lock.
    pub(crate) fn take_idle_maps(&mut self, which: IdleMaps) -> Vec<LeftMap> {
        let reading = self.ledger().places().cursor().ordinal();
        self.backlog_mut().tracks_mut().take_idle_maps(reading, which)
    }

    #[inline]
    pub(crate) fn ledger(&self) -> &Ledger {
        self.deliveries.ledger()
    }

    #[inline]
    pub(crate) fn ledger_mut(&mut self) -> &mut Ledger {
        self.deliveries.ledger_mut()
    }

    #[inline]
    pub(crate) fn backlog(&self) -> &Backlog {
        self.ledger().backlog()
    }

    #[inline]
    pub(crate) fn backlog_mut(&mut self) -> &mut Backlog {
        self.ledger_mut().backlog_mut()
    }

    /// What could not be read or stored is tried again.
    pub(crate) fn count_again(&mut self) {
        self.backlog_mut().tracks_mut().count_again();
        self.counting.try_again();
    }

    /// Counts some slots of earlier runs; false once all are counted, but for those that could not
    /// be read or stored.
    pub(crate) fn count_some(&mut self) -> Result<bool> {
        self.counting.count_some(self.deliveries.ledger_mut())
    }

    /// Counts some slots of a segment; false once all of them are counted, or it is no more.
    pub(crate) fn count_segment(&mut self, ordinal: Ordinal) -> Result<bool> {
        self.counting.count_segment(ordinal, self.deliveries.ledger_mut())
    }

    /// Whether something of this segment is counted and not taken up: it is known by the ordinal,
    /// so the segment is not copied.
    pub(crate) fn is_unfinished(&self, ordinal: Ordinal) -> bool {
        self.counting.is_unfinished(ordinal)
    }

    /// Takes a walk that settles past what it met besides messages.
    fn pass_damage(&mut self, met: Met, cursor: &mut Cursor) -> Result<()> {
        self.counting.pass_damage(met, cursor, self.deliveries.ledger_mut())
    }

    /// Settles up to `most` messages that wait, ready or delayed, on a walk up to `last_seq`, and
    /// has each of them counted; false once none is left. Fails once the queue is closed.
    fn settle_on_walk(
        &mut self,
        cursor: &mut Cursor,
        last_seq: u64,
        most: usize,
        mut count: impl FnMut(&mut Counts),
    ) -> Result<bool> {
        self.check_open()?;
        let maps_before = self.backlog().activity().maps_made();
        for _ in 0..most {
            let wants = |standing| !matches!(standing, Standing::Dying | Standing::Unreadable);
            match self.backlog().walk(cursor, last_seq, wants)? {
                Met::Message(found) => {
                    if settle_if_it_waits(self.ledger_mut(), &found)? {
                        count(self.ledger_mut().counts_mut());
                    }
                    cursor.pass_found(&found);
                    if self.backlog().activity().has_made_most(maps_before) {
                        return Ok(true);
                    }
                }
                Met::End => return Ok(false),
                Met::Tired => return Ok(true),
                met => {
                    self.pass_damage(met, cursor)?;
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Whether there is nothing to tell, and, if nothing was mapped, nothing to do outside of the
    /// lock: the common case.
    #[inline]
    pub(super) fn is_quiet(&self, find_watcher: impl FnOnce() -> Watcher) -> bool {
        self.ledger().news().is_empty()
            && (self.has_asked_for_sync || !self.backlog().changes().has_unsynced())
            && !self.has_time_to_tell(find_watcher)
    }

    /// Whether somebody has to be told of the next time.
    #[inline]
    fn has_time_to_tell(&self, find_watcher: impl FnOnce() -> Watcher) -> bool {
        let has_times = self.ledger().places().has_times();
        if !has_times && self.watched.is_none() && self.ledger().expiry().next_look().is_none() {
            return false;
        }
        match find_watcher() {
            Watcher::Worker => {
                self.next_time().is_some_and(|next| self.watched.is_none_or(|at| next < at))
            }
            Watcher::Waiters => self.next_time() != self.watched,
            // So `watched` may be out of date. Whoever waits from here on looks for itself, and is
            // a waiter then: when the guard of that look is dropped, the time is told, once too
            // often perhaps.
            Watcher::Nobody => false,
        }
    }

    /// What others have to be told. Also tells whether answers have to be synced some time soon.
    pub(super) fn take_news(&mut self) -> (News, bool) {
        let asks = self.backlog().changes().has_unsynced() && !self.has_asked_for_sync;
        self.has_asked_for_sync |= asks;
        (std::mem::take(self.ledger_mut().news_mut()), asks)
    }

    /// If a map was made since the last call: takes those above the limit from their tracks.
    pub(super) fn unmap_surplus(&mut self, has_worker: bool) -> Surplus {
        let reading = self.ledger().places().cursor().ordinal();
        self.backlog_mut().unmap_surplus(reading, has_worker)
    }

    /// A time that somebody has to watch, and nobody does: earlier than the one that is watched.
    /// `has_worker`: that says when it has looked; waiters do not.
    pub(super) fn take_watch(&mut self, has_worker: bool) -> Option<Time> {
        let next = self.next_time();
        if has_worker {
            let next = next.filter(|&next| self.watched.is_none_or(|watched| next < watched));
            self.watched = next.or(self.watched);
            return next;
        }
        // A waiter that sleeps has looked when this was the next time.
        let before = std::mem::replace(&mut self.watched, next);
        next.filter(|&next| before.is_none_or(|before| next < before))
    }

    /// The background looks now: it watches nothing any more.
    pub(super) fn forget_watch(&mut self) {
        self.watched = None;
    }

    /// The next time at which there is something to do: the end of a lease or a delay, or a look
    /// for what has expired. Once the queue is closed, there is none.
    #[inline]
    pub(super) fn next_time(&self) -> Option<Time> {
        if self.check_open().is_err() {
            return None;
        }
        let expiry = self.ledger().expiry();
        let next = Time::earlier(self.next_delivery_time(), expiry.next_look());
        if !expiry.may_expire() {
            return next;
        }
        // What becomes due may expire then, also if nothing more is handed out.
        Time::earlier(next, self.ledger().places().schedule().first_undue())
    }

    /// When there will be something to hand out that is not there yet.
    #[inline]
    pub(super) fn next_delivery_time(&self) -> Option<Time> {
        self.deliveries.next_time()
    }

    /// Whether there is, or seems to be, something to hand out.
    pub(super) fn has_more(&self, published: u64) -> bool {
        let places = self.ledger().places();
        let has_segments = !self.backlog().tracks().is_empty();
        let is_behind_cursor = has_segments && places.cursor().seq() <= published;
        places.has_front() || is_behind_cursor || self.next_delivery_time().is_some()
    }

    /// A sync of answers begins. Gives the segments with changed slots that no sync has covered,
    /// and the number of the newest change.
    pub(super) fn begin_sync(&mut self) -> (u64, Vec<Arc<Segment>>) {
        self.has_asked_for_sync = false;
        self.backlog_mut().begin_sync()
    }

    /// How far consumers are. What is below its floor is settled.
    pub(crate) fn consumer_offset(&self) -> ConsumerOffset {
        let cursor = self.ledger().places().cursor().seq();
        self.backlog().tracks().consumer_offset(cursor, self.ledger().newest())
    }

    /// A sync of answers failed, or could not begin: the worker has to be asked again.
    pub(super) fn ask_for_sync_again(&mut self) {
        self.has_asked_for_sync = false;
        self.backlog_mut().changes_mut().forget_synced();
    }
}

/// Settles a message that waits, ready or delayed; false if it does not, or is set aside.
fn settle_if_it_waits(ledger: &mut Ledger, found: &FoundMessage) -> Result<bool> {
    match ledger.whereabouts_of(found)? {
        Whereabouts::Ready | Whereabouts::Delayed(_) => ledger.settle_unread(found),
        Whereabouts::Settled => {
            // Transient, and of an earlier run: it did not wait.
            ledger.settle(found.spot, &found.place, State::Dead).map(|_| false)
        }
        Whereabouts::InFlight | Whereabouts::Dying | Whereabouts::SetAside => Ok(false),
    }
}
