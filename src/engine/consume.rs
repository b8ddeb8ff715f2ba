//! Handing out and settling, seen from a consumer: what is done under the lock, and what is not.
//!
//! Promises: payloads are copied and verified outside of the lock; whoever answers with
//! `sync_acks` returns after the sync; whoever waits is woken by what it waits for and polls
//! nothing. Relies on `deliver` for everything that needs the lock.

use super::Engine;
use super::answer::Answer;
use super::deliver::Deliver;
use super::next::Leased;
use super::wait::{Look, Soon};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::extension::{self, Verified};
use crate::leases::Ticket;
use parking_lot::MutexGuard;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A message that is handed out; its payload was copied outside of the lock.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) given: Given,
    pub(crate) attempts: u32,
    /// Milliseconds since 1970 UTC.
    pub(crate) pushed_at: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) payload_start: usize,
}

/// What it takes to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(crate) ticket: Ticket,
    pub(crate) seq: u64,
    /// How long it takes is measured.
    pub(crate) is_sample: bool,
}

/// When somebody who waits will look again by himself.
pub(super) type Watch = Cell<Option<u64>>;

/// Those who wait and will look again by themselves.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    count: usize,
    /// The earliest time at which one of them will, as far as is known.
    first: Option<u64>,
}

impl Watchers {
    /// One of them would have looked at `before`, and will at `time`.
    fn change(&mut self, before: Option<u64>, time: Option<u64>) {
        self.count = self.count + usize::from(time.is_some()) - usize::from(before.is_some());
        if self.first == before {
            self.first = None;
        }
        self.first = clock::earlier(self.first, time);
    }

    /// Whether somebody will look at `time`, or before.
    pub(super) fn will_look(&self, time: u64) -> bool {
        self.count > 0 && self.first.is_some_and(|first| first <= time)
    }
}

/// What others have to be told once the lock is given up.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(super) struct News {
    /// Messages were settled.
    pub(super) settled: bool,
    /// Some of them by nobody's answer: lost, outlived, purged, dropped, expired.
    pub(super) silently: bool,
    /// Messages are on their way to the dead letters.
    pub(super) died: bool,
    /// There may be something to compact.
    pub(super) reclaims: bool,
    /// There may be something to hand out that was not, or room for one more in flight.
    pub(super) returned: bool,
}

/// What a look for the next message gives.
pub(super) enum Popped {
    Taken(Taken),
    /// Nothing is ready; something will be at this time, if there is one.
    Nothing(Option<u64>),
}

impl Engine {
    /// The next message, if there is one.
    pub(crate) fn pop(&self) -> Result<Option<Taken>> {
        match self.try_pop(None)? {
            Popped::Taken(taken) => Ok(Some(taken)),
            Popped::Nothing(_) => Ok(None),
        }
    }

    /// `watch`: of somebody who waits, and will look again at the time that is told.
    fn try_pop(&self, watch: Option<&Watch>) -> Result<Popped> {
        loop {
            let mut deliver = self.deliver.lock();
            let leased = deliver.lease_next(self.newest_visible());
            let next_time = deliver.next_time();
            if let Some(watch) = watch {
                let time = next_time.filter(|_| matches!(leased, Ok(None)));
                deliver.watchers.change(watch.replace(time), time);
            }
            self.unlock_and_bury(deliver);
            let Some(leased) = leased? else { return Ok(Popped::Nothing(next_time)) };
            if let Some(taken) = self.copy_out(leased)? {
                return Ok(Popped::Taken(taken));
            }
        }
    }

    /// Gives up the lock, and tells others what changed under it. Whoever takes messages also moves what is
    /// dying, where no background does.
    fn unlock_and_bury(&self, deliver: MutexGuard<'_, Deliver>) {
        let is_dying = deliver.dying.count() > 0;
        self.unlock(deliver);
        if is_dying && !self.worker.is_running() && self.may_bury_again() {
            // What cannot be moved is parked: not the concern of whoever pops.
            self.health.note_background(self.bury(true));
        }
    }

    /// Gives up the lock, and tells others what changed under it.
    pub(super) fn unlock(&self, mut deliver: MutexGuard<'_, Deliver>) {
        deliver.mind_maps();
        let news = std::mem::take(&mut deliver.news);
        let asks = deliver.asks_for_sync();
        // A lease, or a delay, that ends before anybody who waits would look by himself counts, too.
        let has_readers = self.readers.has_waiters() && (news.returned || deliver.needs_watch());
        let has_pushers = news.settled && self.space.room.has_waiters();
        drop(deliver);
        if asks {
            self.worker.sync_answers();
        }
        if has_readers {
            self.readers.wake_one();
        }
        if has_pushers {
            self.space.room.wake_all();
        }
        if news.silently {
            self.settled.wake_all();
        }
        if news.silently || news.died {
            self.worker.ask();
        } else if news.reclaims {
            self.worker.look_within(self.look_interval());
        }
    }

    /// Waits until there is a message to pop; `None` once `deadline` has passed.
    pub(crate) fn pop_until(&self, deadline: Option<Instant>) -> Result<Option<Taken>> {
        let registered = || self.reader_registered();
        let watch = Watch::default();
        let look = || self.look_for_message(Some(&watch));
        let found = self.readers.wait_until(0, Soon::Perhaps, deadline, registered, look);
        if let Some(time) = watch.take() {
            self.deliver.lock().watchers.change(Some(time), None);
        }
        self.pass_on();
        found.transpose()
    }

    /// To be called between registering with `readers` and looking: pushes ask for waiters under the
    /// `append` lock, answers under `deliver`, which looking takes.
    pub(super) fn reader_registered(&self) {
        drop(self.append.lock());
    }

    pub(super) fn look_for_message(&self, watch: Option<&Watch>) -> Look<Result<Taken>> {
        match self.try_pop(watch) {
            Ok(Popped::Taken(taken)) => Look::Found(Ok(taken)),
            Ok(Popped::Nothing(None)) => Look::NotYet,
            Ok(Popped::Nothing(Some(time))) => {
                self.clock.instant(time).map_or(Look::NotYet, Look::NotBefore)
            }
            Err(error) => Look::Found(Err(error)),
        }
    }

    /// Whoever stops waiting wakes another waiting consumer, if there may be something for it: a
    /// message, or a time to wait for.
    pub(super) fn pass_on(&self) {
        // Whoever is woken looks for itself, so a hint is enough.
        if self.readers.has_waiters() && self.deliver.lock().has_more(self.newest_visible()) {
            self.readers.wake_one();
        }
    }

    /// Up to `limit` messages, as many as there are.
    pub(crate) fn pop_batch(&self, limit: usize) -> Result<Vec<Taken>> {
        let mut taken = Vec::new();
        let mut missing = limit;
        loop {
            let (batch, mut failed, is_cut) = self.lease_batch(missing)?;
            let complete = taken.len() + batch.len();
            taken.reserve(batch.len());
            for leased in batch {
                match self.copy_out(leased) {
                    Ok(more) => taken.extend(more),
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                // What was taken is handed out; the error comes again with the next pop.
                Some(error) if taken.is_empty() => return Err(error),
                // Others, for those that were not to be handed out, or because there are more.
                None if is_cut || taken.len() < complete => {
                    missing = if is_cut { limit } else { complete }.saturating_sub(taken.len());
                }
                _ => return Ok(taken),
            }
        }
    }

    /// Leases up to `limit` messages under one lock, and tells what ended that early: an error, or that they lie in
    /// too many segments to have all of those mapped.
    fn lease_batch(&self, limit: usize) -> Result<(Vec<Leased>, Option<Error>, bool)> {
        let (mut batch, mut failed, mut is_cut) = (Vec::new(), None, false);
        let mut deliver = self.deliver.lock();
        deliver.check_open()?;
        let published = self.newest_visible();
        let before = deliver.maps.made();
        while batch.len() < limit {
            is_cut = deliver.maps.made() - before >= self.options.open_segments;
            if is_cut {
                break;
            }
            match deliver.lease_next(published) {
                Ok(Some(leased)) => batch.push(leased),
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.unlock_and_bury(deliver);
        Ok((batch, failed, is_cut))
    }

    /// `None` if it is not to be handed out: damaged, over, or not yet due.
    #[inline]
    pub(super) fn copy_out(&self, mut leased: Leased) -> Result<Option<Taken>> {
        let body = leased.body.take(&leased.header, leased.offset);
        let payload_start = match leased.header.verify(&body) {
            Verified::Payload(start) => start,
            Verified::Newer | Verified::Damaged => {
                return self.pass_over_lost(&leased).map(|()| None);
            }
        };
        let has_times = leased.header.flags.has_extensions() || self.ttl_millis.is_some();
        if has_times && self.pass_over_in_time(&leased, &body)? {
            return Ok(None);
        }
        let Leased { ticket, seq, attempts, pushed_at, is_sample, .. } = leased;
        if is_sample {
            self.measure(ticket, pushed_at);
        }
        let given = Given { ticket, seq, is_sample };
        Ok(Some(Taken { given, attempts, pushed_at, body, payload_start }))
    }

    #[cold]
    fn measure(&self, ticket: Ticket, pushed_at: u64) {
        let waited = self.clock.coarse().saturating_sub(pushed_at);
        self.deliver.lock().measure.handed_out(ticket, Duration::from_millis(waited));
    }

    /// Its payload is damaged.
    #[cold]
    fn pass_over_lost(&self, leased: &Leased) -> Result<()> {
        let mut deliver = self.deliver.lock();
        let lost = deliver.lose_leased(leased);
        self.unlock(deliver);
        lost
    }

    /// Whether a message with a time is not to be handed out: its time is over, or has not come.
    fn pass_over_in_time(&self, leased: &Leased, body: &[u8]) -> Result<bool> {
        let Leased { header, pushed_at, .. } = *leased;
        let now = leased.now.unwrap_or_else(|| self.clock.coarse());
        let expires = self.expires_at(&header, body, pushed_at);
        if expires.is_some_and(|time| self.clock.is_past_at(now, time)) {
            let mut deliver = self.deliver.lock();
            let ended = deliver.expire(leased);
            self.unlock_and_bury(deliver);
            return ended.map(|()| true);
        }
        if !header.flags.has_extensions() || leased.attempts > 1 {
            return Ok(false);
        }
        // Its slot says when it is due. Should that be lost, the record still knows.
        let most = |due: u64| self.clock.start_time() + due.saturating_sub(pushed_at);
        let due = extension::notes(body).due;
        let is_old = self.run.is_old(leased.seq);
        let due = due.map(|due| if is_old { due.min(most(due)) } else { due });
        let Some(due) = due.filter(|&due| !self.clock.is_past_at(now, due)) else {
            return Ok(false);
        };
        let mut deliver = self.deliver.lock();
        let put_off = deliver.put_off(leased, due);
        self.unlock(deliver);
        put_off.map(|()| true)
    }

    /// Ends deliveries as their holder says.
    pub(crate) fn answer(
        &self,
        deliveries: impl Iterator<Item = Given>,
        answer: &Answer,
    ) -> Result<()> {
        let mut first_error = None;
        let (mut is_done, mut is_dying) = (false, false);
        let mut settled = Vec::new();
        let mut deliver = self.deliver.lock();
        let is_ack = matches!(answer, Answer::Ack);
        let is_waited_for = is_ack && self.settled.has_waiters();
        let was_full = deliver.is_full();
        for Given { ticket, seq, is_sample } in deliveries {
            if is_sample {
                deliver.measure.answered(ticket);
            }
            deliver.mind_maps();
            match deliver.settle(ticket, seq, answer) {
                Ok(one) => {
                    is_done |= one.is_done;
                    is_dying |= one.is_dying;
                    settled.extend(is_waited_for.then_some(seq));
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        deliver.news.returned |= !is_ack || first_error.is_some() || was_full;
        let number = deliver.change_count();
        self.unlock(deliver);
        if is_done {
            self.worker.ask();
        }
        for seq in settled {
            self.settled.wake_keys(seq..=seq);
        }
        first_error.map_or(Ok(()), Err)?;
        match answer {
            // Now, so that its reason outlives a kill.
            Answer::Reject(_) if is_dying && self.may_bury_again() => {
                self.health.note_background(self.bury(self.options.sync_acks));
                self.wait_answers(number)
            }
            Answer::Ack | Answer::Reject(_) => self.wait_answers(number),
            Answer::Nack | Answer::Drop | Answer::NackAfter(_) | Answer::Release => Ok(()),
        }
    }

    /// Gives a delivery more time.
    pub(crate) fn extend(&self, given: Given, time: Duration) -> Result<()> {
        let mut deliver = self.deliver.lock();
        let extended = deliver.extend(given.ticket, given.seq, time);
        self.unlock(deliver);
        extended
    }

    /// With `sync_acks`: returns when change number `number`, and all before it, are on the disk.
    pub(super) fn wait_answers(&self, number: u64) -> Result<()> {
        if self.options.sync_acks { self.wait_acks(number) } else { Ok(()) }
    }

    /// Counts the slots of earlier runs, as far as they can be read; tells the first error.
    pub(super) fn count_old_tracks(&self) -> Result<()> {
        self.deliver.lock().count_again();
        let mut result = Ok(());
        loop {
            let counted = self.deliver.lock().count_some();
            match counted {
                Ok(true) => {}
                Ok(false) => return result,
                Err(error) => result = result.and(Err(error)),
            }
        }
    }
}
