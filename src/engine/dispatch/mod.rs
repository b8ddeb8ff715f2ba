//! Dispatch: which message is handed out next, who has which, and what becomes of it.
//!
//! Promises: every message that is not settled is in one place: behind the cursor (never handed out
//! in this run), *returned* (given back, at the front), *scheduled* (not before its time),
//! *leased*, or *dying*. [`Dispatch::settle`] is the only way to settle one: it looks at the slot
//! first, so no message is settled twice, and takes the message out of wherever it is. Waits for no
//! I/O: work that takes long is done in steps, between which the lock is given up
//! ([`Again`](Leasing::Again)).
//!
//! Memory does not grow with the backlog but by two numbers for each delayed message. Who is next
//! is chosen in `choose`, answers are in `answer`, what takes time in `purge`,
//! `drop_oldest` and `counting`.

mod answer;
mod choose;
mod counting;
mod drop_oldest;
pub(super) mod dying;
mod exchange;
mod expiry;
mod front;
mod measure;
mod moving;
pub(super) mod news;
mod policy;
mod progress;
mod purge;
mod whereabouts;

pub(crate) use dying::{Cause, DyingMessage};
pub(crate) use exchange::{Answer, Body, Choice, Leased, Leasing};
pub(crate) use measure::{Measure, start_push};
pub(crate) use progress::{Dropped, Purge};

use super::backlog::cursor::Cursor;
use super::backlog::track::Stored;
use super::backlog::{Backlog, Found, Lookup, Spot};
use super::context::Context;
use super::waiters::Waiters;
use crate::clock::{self, Clock};
use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::format::slot::{Delay, Slot, State};
use crate::format::standing::Standing;
use crate::leases::{Leases, Place};
use crate::log::Segment;
use crate::log::sealed::{Mapped, Status};
use crate::recovery::Log;
use crate::report::DamageKind;
use crate::schedule::Schedule;
use crate::stats::Counts;
use dying::Dying;
use expiry::Expiry;
use news::News;
use policy::Policy;
use progress::Unfinished;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What comes next, and who has what.
#[derive(Debug)]
pub(crate) struct Dispatch {
    backlog: Backlog,
    cursor: Cursor,
    /// Handed out once, and given back.
    returned: BTreeMap<u64, Place>,
    /// Not to be handed out before their time: pushed so, or given back.
    schedule: Schedule,
    /// Those of which the slot does not tell the time, because it could not be stored.
    untold: BTreeMap<u64, u64>,
    leases: Leases,
    dying: Dying,
    /// Those that only a newer version of keepq can read: stored, and handed out to no consumer.
    set_aside: BTreeSet<u64>,
    /// What counting found and could not store.
    unfinished: Vec<Unfinished>,
    expiry: Expiry,
    counts: Counts,
    policy: Policy,
    clock: Arc<Clock>,
    waiters: Arc<Waiters>,
    measure: Measure,
    /// The newest message that was handed out for the first time in push order.
    newest_first: u64,
    /// The time that the background watches.
    watched: Option<u64>,
    /// What others have to be told once the lock is given up.
    news: News,
    /// How many slots were found or made settled in this run: for producers.
    settled_count: Arc<AtomicU64>,
    /// The worker knows that there are changes to sync.
    has_asked_for_sync: bool,
    is_closed: bool,
}

/// Where a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whereabouts {
    Ready,
    /// Not to be handed out before this time.
    Delayed(u64),
    InFlight,
    Dying,
    Settled,
}

impl Dispatch {
    pub(super) fn new(log: &Log, context: &Context) -> Self {
        let Context { options, run, clock, waiters, .. } = context;
        let most_maps = usize::try_from(options.open_segments).unwrap_or(usize::MAX);
        Self {
            backlog: Backlog::new(log, *run, most_maps),
            cursor: Cursor::START,
            returned: BTreeMap::new(),
            schedule: Schedule::default(),
            untold: BTreeMap::new(),
            leases: Leases::default(),
            dying: Dying::default(),
            set_aside: BTreeSet::new(),
            unfinished: Vec::new(),
            expiry: Expiry::new(options, !log.parts.is_empty()),
            counts: Counts::default(),
            policy: Policy::of(options),
            clock: Arc::clone(clock),
            waiters: Arc::clone(waiters),
            measure: Measure::default(),
            newest_first: 0,
            watched: None,
            news: News::default(),
            settled_count: Arc::default(),
            has_asked_for_sync: false,
            is_closed: false,
        }
    }

    /// From here on no message is handed out or answered.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Gives up maps and all that is known of messages.
    pub(crate) fn clear(&mut self) {
        self.backlog.clear();
        self.returned.clear();
        self.schedule.clear();
        self.untold.clear();
        self.dying = Dying::default();
        self.leases = Leases::default();
        self.unfinished.clear();
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    pub(crate) fn backlog_mut(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    pub(crate) fn dying(&self) -> &Dying {
        &self.dying
    }

    pub(crate) fn dying_mut(&mut self) -> &mut Dying {
        &mut self.dying
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn measure(&self) -> &Measure {
        &self.measure
    }

    #[inline]
    pub(crate) fn measure_mut(&mut self) -> &mut Measure {
        &mut self.measure
    }

    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// How many slots were found or made settled in this run, for producers.
    pub(super) fn settled_count(&self) -> &Arc<AtomicU64> {
        &self.settled_count
    }

    /// Messages in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        to_u64(self.leases.count())
    }

    /// Messages that wait for their time, which is looked at first.
    pub(crate) fn delayed(&mut self) -> u64 {
        self.advance_schedule();
        to_u64(self.schedule.delayed())
    }

    /// The same as of the last look.
    pub(crate) fn known_delayed(&self) -> u64 {
        to_u64(self.schedule.delayed())
    }

    /// Messages that can be handed out; reads what is published only under the lock.
    pub(crate) fn ready(&mut self, published: impl Fn() -> u64) -> u64 {
        let elsewhere = self.delayed() + self.in_flight() + self.dying.count();
        let elsewhere = elsewhere + to_u64(self.set_aside.len());
        self.backlog.unsettled(published()).saturating_sub(elsewhere)
    }

    /// These messages are not handed out before their times: said before they are published.
    pub(crate) fn schedule_new(&mut self, delayed: impl Iterator<Item = (u64, u64)>) {
        for (due, seq) in delayed {
            self.schedule.put(due, seq);
        }
    }

    /// Messages were dropped before they had a place.
    pub(crate) fn note_dropped(&mut self, messages: u64) {
        self.counts.dropped += messages;
    }

    /// Settles a message, wherever it is; false if it was settled already.
    pub(crate) fn settle(&mut self, spot: Spot, place: &Place, state: State) -> Result<bool> {
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (state, place.attempts), record)?;
        self.take_out(spot, place.seq);
        Ok(self.note_settled(spot, Some(place.seq), stored))
    }

    /// The same for one that was in flight until now: it is in no other place.
    #[inline]
    fn settle_answered(&mut self, spot: Spot, place: &Place) -> Result<bool> {
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (State::Dead, place.attempts), record)?;
        Ok(self.note_settled(spot, Some(place.seq), stored))
    }

    /// Settles a message that is damaged, wherever it is; false if it was settled already.
    /// `offset`: where its record is, or was sought.
    pub(crate) fn lose(&mut self, spot: Spot, offset: u64) -> Result<bool> {
        let seq = self.backlog.track_at(spot.at).records_mut().seq(spot.index)?;
        let stored = self.backlog.store(spot, (State::Lost, 0), None)?;
        if let Some(seq) = seq {
            self.take_out(spot, seq);
        }
        let is_new = self.note_settled(spot, seq, stored);
        if is_new {
            self.backlog.note_loss(spot, offset);
        }
        Ok(is_new)
    }

    /// Counts what a store settled, and has others told of it.
    #[inline]
    fn note_settled(&mut self, spot: Spot, seq: Option<u64>, stored: Stored) -> bool {
        let Stored::Settled { wakes_compaction } = stored else { return false };
        self.news.reclaims |= wakes_compaction;
        self.add_settled(1);
        self.news.settled = true;
        self.news.upkeep |= self.backlog.track_at(spot.at).is_done();
        if self.waiters.settled.has_waiters() {
            match seq {
                Some(seq) => self.news.settled_seqs.push(seq),
                None => self.news.settled_unknown = true,
            }
        }
        true
    }

    fn add_settled(&self, more: u64) {
        // Relaxed, and stored under the lock only: a reader that sees an older value takes more
        // for unsettled.
        let count = self.settled_count.load(Ordering::Relaxed);
        self.settled_count.store(count + more, Ordering::Relaxed);
    }

    /// Takes a message out of wherever it is: returned, scheduled, dying, or with a holder whose
    /// lease has run out. (One that is in flight is nowhere else.)
    fn take_out(&mut self, spot: Spot, seq: u64) {
        self.returned.remove(&seq);
        self.dying.remove(seq);
        self.set_aside.remove(&seq);
        let run_out = self.leases.end_expired(seq).filter(|&due| due > 0);
        let untold = self.untold.remove(&seq);
        if self.schedule.is_empty() {
            return;
        }
        let known = [run_out, untold].into_iter().flatten();
        if known.into_iter().any(|due| self.schedule.remove(due, seq)) {
            return;
        }
        let status = self.status(spot);
        let times = status.as_ref().map_or([None; 2], |status| self.times_of(seq, status));
        let mut is_out = false;
        for due in times.into_iter().flatten() {
            is_out |= self.schedule.remove(due, seq);
        }
        // A time that cannot be read is sought by the number; that is slow, and damage is rare.
        if !is_out && self.has_unreadable_delay(spot) {
            self.schedule.remove_seq(seq);
        }
    }

    fn has_unreadable_delay(&mut self, spot: Spot) -> bool {
        let track = self.backlog.track_at(spot.at);
        let base_time = track.base_time();
        track.map().is_ok_and(|mapped| mapped.has_unreadable_delay(spot.index, base_time))
    }

    fn status(&mut self, spot: Spot) -> Result<Status> {
        let run = self.backlog.run();
        self.backlog.track_at(spot.at).status(spot.index, run)
    }

    /// The times for which a message may be in the schedule, as its slot says.
    fn times_of(&self, seq: u64, status: &Status) -> [Option<u64>; 2] {
        let run = self.backlog.run();
        let as_if_ready = Some(Slot::UNTOUCHED);
        let first = match Standing::of(as_if_ready, status.delay, run.is_old(seq), run) {
            Standing::Scheduled(due) => Some(due),
            _ => None,
        };
        [status.delay.map(|delay| delay.due), first]
    }

    /// At the front again.
    fn give_back(&mut self, place: Place) {
        self.returned.insert(place.seq, place);
        self.expiry.note_head_changed(&self.clock);
        self.news.returned = true;
    }

    /// A message by its number, if it is not settled. Damage is settled, and a slot rebuilt, on the
    /// way.
    pub(crate) fn look_up(&mut self, seq: u64) -> Result<Option<Found>> {
        loop {
            match self.backlog.look_up(seq)? {
                Lookup::Gone => return Ok(None),
                Lookup::Found(found) if found.standing == Standing::Unreadable => {
                    self.backlog.rebuild_slot(found.spot)?;
                }
                Lookup::Lost(spot, offset) => {
                    if !self.may_be_in_flight(spot)? {
                        self.lose(spot, offset)?;
                    }
                    return Ok(None);
                }
                Lookup::Found(found) if found.standing == Standing::Outlived => {
                    self.settle(found.spot, &found.place, State::Dead)?;
                    return Ok(None);
                }
                Lookup::Found(found) => return Ok(Some(found)),
            }
        }
    }

    /// Rebuilds a slot, if it cannot be read.
    pub(crate) fn rebuild_if_bad(&mut self, spot: Spot) -> Result<()> {
        match self.status(spot)?.standing {
            Standing::Unreadable => self.backlog.rebuild_slot(spot),
            _ => Ok(()),
        }
    }

    /// Settles a transient message of an earlier run, whose record is at `offset`.
    pub(crate) fn settle_outlived(&mut self, spot: Spot, offset: u64) -> Result<()> {
        let status = self.status(spot)?;
        let track = self.backlog.track_at(spot.at);
        let header = track.map()?.header(offset, spot.index);
        if let Some((header, seq)) = header.zip(status.seq) {
            let found =
                self.backlog.found(spot, (seq, status.slot, status.standing), offset, header);
            if found.standing == Standing::Outlived {
                self.settle(spot, &found.place, State::Dead)?;
            }
        }
        Ok(())
    }

    /// Counts some slots of a segment; false once all of them are counted, or it is no more.
    pub(crate) fn count_segment(&mut self, ordinal: u64) -> Result<bool> {
        let at = self.backlog.tracks().iter().position(|track| track.ordinal() == ordinal);
        let Some(at) = at.filter(|&at| !self.backlog.tracks()[at].is_counted()) else {
            return Ok(false);
        };
        self.count_some_of(at)?;
        Ok(true)
    }

    /// The record of a message is of a newer version of keepq: it is not handed out.
    fn note_newer(&mut self, spot: Spot, seq: u64, offset: u64) {
        self.set_aside.insert(seq);
        self.backlog.list_damage(spot, offset, DamageKind::Newer);
    }

    /// Whether there is nothing to tell, and nothing to do outside of the lock: the common case.
    /// `has_producers`: some wait for room.
    #[inline]
    pub(super) fn is_quiet(&mut self, has_producers: bool) -> bool {
        let is_quiet = self.news.is_quiet(has_producers)
            && !self.backlog.has_new_maps()
            && (self.has_asked_for_sync || !self.backlog.has_unsynced_changes())
            && self.next_time().is_none()
            && self.watched.is_none();
        if is_quiet {
            self.news.settled = false;
        }
        is_quiet
    }

    /// What others have to be told. Also tells whether answers have to be synced some time soon.
    pub(super) fn take_news(&mut self) -> (News, bool) {
        let asks = self.backlog.has_unsynced_changes() && !self.has_asked_for_sync;
        self.has_asked_for_sync |= asks;
        (std::mem::take(&mut self.news), asks)
    }

    /// Maps above the limit, to be dropped outside of the lock.
    pub(super) fn take_surplus_maps(&mut self) -> Vec<Arc<Mapped>> {
        self.backlog.take_surplus_maps(self.cursor.ordinal())
    }

    /// A time that somebody has to watch, and nobody does: earlier than the one that is watched.
    /// `has_worker`: that says when it has looked; waiters do not.
    pub(super) fn take_watch(&mut self, has_worker: bool) -> Option<u64> {
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
    /// for what has expired.
    #[inline]
    pub(super) fn next_time(&self) -> Option<u64> {
        clock::earlier(self.next_delivery_time(), self.expiry.next_look())
    }

    /// When there will be something to hand out that is not there yet.
    #[inline]
    pub(super) fn next_delivery_time(&self) -> Option<u64> {
        let due = self.schedule.first_undue().filter(|_| !self.is_full());
        clock::earlier(due, self.leases.next_deadline())
    }

    /// Whether there is, or seems to be, something to hand out.
    pub(super) fn has_more(&self, published: u64) -> bool {
        let is_at_front = !self.returned.is_empty() || self.schedule.first_due().is_some();
        let is_behind_cursor = !self.backlog.tracks().is_empty() && self.cursor.seq() <= published;
        is_at_front || is_behind_cursor || self.next_delivery_time().is_some()
    }

    /// The segments with changed slots that no sync has covered, and the number of the newest
    /// change.
    pub(super) fn take_dirty(&mut self) -> (u64, Vec<Arc<Segment>>) {
        self.has_asked_for_sync = false;
        self.backlog.take_dirty()
    }

    /// A sync of answers failed, or could not begin: the worker has to be asked again.
    pub(super) fn ask_for_sync_again(&mut self) {
        self.has_asked_for_sync = false;
        self.backlog.forget_synced_changes();
    }

    /// Stores a delay; if that fails, it holds in this run all the same.
    fn store_delay(&mut self, spot: Spot, seq: u64, delay: Delay) -> Result<()> {
        let stored = self.backlog.store_delay(spot, delay);
        if stored.is_err() {
            self.untold.insert(seq, delay.due);
        }
        stored
    }
}
