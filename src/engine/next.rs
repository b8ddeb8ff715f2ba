//! Choosing what is handed out next, and leasing it.
//!
//! Promises: what was given back comes first, by Seq; then what has become due, by its time; then what was
//! never handed out, in push order. The attempt is stored before the message is handed out. No clock is read
//! while there is nothing with a time. Relies on the `deliver` lock, and on `loss` for what is damaged.
//!
//! What is on the way of every `pop` is inlined into one function: handed from one to the next by value, these
//! structs would be stored and loaded again, at 20 ns a message (`cargo bench --bench pop`).

#![expect(clippy::inline_always, reason = "measured: see above")]

use super::cursor::{Cursor, Seen};
use super::deliver::Deliver;
use super::measure::Measure;
use crate::clock;
use crate::error::Result;
use crate::format::record;
use crate::format::segment::RECORDS_START;
use crate::format::slot::{MAX_ATTEMPTS, Slot, State};
use crate::leases::{Place, Ticket};
use crate::log::sealed::{Located, Mapped};
use std::sync::Arc;

/// Bodies up to so many bytes are copied under the lock.
const COPY_UNDER_LOCK: u32 = 1024;

/// A message that can be leased.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) place: Place,
    pub(super) header: record::Header,
    /// The position of its track.
    pub(super) at: usize,
    source: Source,
}

/// Where a message waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// At the cursor: never handed out in this run, and pushed without a delay.
    Cursor,
    Returned,
    /// In the schedule, for this time.
    Schedule(u64),
    /// Wherever it may be.
    Unknown,
}

/// A message that is leased and not yet verified.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) ticket: Ticket,
    pub(super) seq: u64,
    pub(super) attempts: u32,
    pub(super) offset: u64,
    pub(super) pushed_at: u64,
    pub(super) body: Body,
    pub(super) header: record::Header,
    /// How long things take is measured with this one.
    pub(super) is_sample: bool,
    /// The coarse clock, if it was read.
    pub(super) now: Option<u64>,
}

/// Where the bytes of a message are. A short copy is cheaper than a reference count.
#[derive(Debug)]
pub(super) enum Body {
    Copied(Vec<u8>),
    In(Arc<Mapped>),
}

impl Body {
    pub(super) fn of(mapped: &Arc<Mapped>, header: &record::Header, offset: u64) -> Self {
        if header.body_len <= COPY_UNDER_LOCK {
            Self::Copied(mapped.body(header, offset))
        } else {
            Self::In(Arc::clone(mapped))
        }
    }

    /// The bytes, not yet verified.
    pub(super) fn take(&mut self, header: &record::Header, offset: u64) -> Vec<u8> {
        match self {
            Self::Copied(body) => std::mem::take(body),
            Self::In(mapped) => mapped.body(header, offset),
        }
    }
}

impl Deliver {
    /// Leases the next message; `None` if none is ready, or as many are in flight as may be.
    pub(super) fn lease_next(&mut self, published: u64) -> Result<Option<Leased>> {
        self.check_open()?;
        self.mind_maps();
        let now = self.coarse_time();
        self.take_back_due_at(now);
        if self.is_full() {
            return Ok(None);
        }
        loop {
            let Some(next) = self.choose(published)? else { return Ok(None) };
            // One whose last attempt ended with its process.
            if self.policy.is_last(next.place.attempts) {
                self.die(next.at, next.place, super::dying::Cause::Attempts, None)?;
                self.leave_queue(&next);
                continue;
            }
            let leased = self.lease(&next, now)?;
            self.leave_queue(&next);
            return Ok(Some(leased));
        }
    }

    /// Whether as many are in flight as may be.
    pub(super) fn is_full(&self) -> bool {
        self.leases.count() >= self.policy.max_in_flight
    }

    /// Leases that have run out, and delays that are over. No clock is read while there are none.
    pub(super) fn take_back_due(&mut self) {
        self.take_back_due_at(self.coarse_time());
    }

    /// The coarse clock, if anything here has a time.
    pub(super) fn coarse_time(&self) -> Option<u64> {
        let has_times =
            self.schedule.first_time().is_some() || self.leases.next_deadline().is_some();
        (has_times || self.policy.has_times).then(|| self.clock.coarse())
    }

    fn take_back_due_at(&mut self, coarse: Option<u64>) {
        let Some(coarse) = coarse else { return };
        if let Some(deadline) = self.leases.next_deadline()
            && self.clock.is_past_at(coarse, deadline)
        {
            self.end_overdue_leases();
        }
        if let Some(time) = self.schedule.first_time()
            && self.clock.is_past_at(coarse, time)
        {
            self.schedule.advance(self.clock.now());
        }
    }

    /// When there will be something to hand out that is not there yet: the end of a delay or a lease.
    pub(super) fn next_time(&self) -> Option<u64> {
        let due = self.schedule.first_time().filter(|_| !self.is_full());
        clock::earlier(due, self.leases.next_deadline())
    }

    /// Whether there is such a time, and nobody who waits will look then.
    pub(super) fn needs_watch(&self) -> bool {
        self.next_time().is_some_and(|time| !self.watchers.will_look(time))
    }

    /// The next message that is ready. It stays where it is until [`Deliver::leave_queue`].
    #[inline(always)]
    pub(super) fn choose(&mut self, published: u64) -> Result<Option<Next>> {
        while let Some((_, &place)) = self.returned.first_key_value() {
            if let Some(next) = self.look_again(place)? {
                return Ok(Some(next));
            }
            self.returned.remove(&place.seq);
        }
        while let Some((due, seq)) = self.schedule.first_due() {
            if let Some(next) = self.look_up(seq)? {
                return Ok(Some(Next { source: Source::Schedule(due), ..next }));
            }
            self.schedule.remove(due, seq);
        }
        self.find_next(published)
    }

    /// The message that `choose` gave is leased, dying or settled.
    pub(super) fn leave_queue(&mut self, next: &Next) {
        let seq = next.place.seq;
        // Whoever had it before has it no more.
        self.leases.end_expired(seq);
        match next.source {
            Source::Cursor => {
                let offset = next.place.offset + next.header.record_len();
                let index = self.cursor.index + 1;
                self.cursor = Cursor { seq: seq + 1, index, offset, previous: None, ..self.cursor };
            }
            Source::Returned => {
                self.returned.remove(&seq);
            }
            Source::Schedule(due) => {
                self.schedule.remove(due, seq);
            }
            Source::Unknown => {}
        }
    }

    /// A message that was given back; `None` if its header got damaged meanwhile.
    fn look_again(&mut self, place: Place) -> Result<Option<Next>> {
        let Some((at, place)) = self.find_place(place)? else { return Ok(None) };
        let is_old = self.run.is_old(place.seq);
        let mapped = self.tracks[at].map()?;
        if let Some(header) = mapped.header(place.offset, place.index) {
            // Where a slot was looked at to find the message, it said that it is owed. Here nobody looked.
            if mapped.slot(place.index)?.is_some_and(|slot| slot.is_settled(is_old)) {
                self.counts.duplicated += 1;
                return Ok(None);
            }
            return Ok(Some(Next { place, header, at, source: Source::Returned }));
        }
        self.lose(at, place.index, place.offset)?;
        Ok(None)
    }

    /// A message by its number, from its slot; `None` if it is settled or damaged.
    pub(super) fn look_up(&mut self, seq: u64) -> Result<Option<Next>> {
        let Some(at) = self.position_of_seq(seq) else { return Ok(None) };
        let is_old = self.run.is_old(seq);
        let track = &mut self.tracks[at];
        let Some(index) = track.index_of(seq)? else { return Ok(None) };
        let ordinal = track.ordinal();
        let mapped = track.map()?;
        let Some(slot) = mapped.slot(index)? else {
            self.rebuild_slot(at, index)?;
            return self.look_up(seq);
        };
        if slot.is_settled(is_old) {
            return Ok(None);
        }
        match mapped.locate(slot, index, index + 1, RECORDS_START, None) {
            // One that is dying is to be a dead letter, and no longer transient.
            Located::At(offset, header)
                if header.flags.is_transient() && is_old && slot.state != State::Dying =>
            {
                self.settle_silently(at, index, offset, State::Dead)?;
                Ok(None)
            }
            Located::At(offset, header) => {
                let (attempts, is_transient) = (slot.attempts, header.flags.is_transient());
                let bytes = header.bytes();
                let place = Place { seq, ordinal, index, offset, attempts, bytes, is_transient };
                Ok(Some(Next { place, header, at, source: Source::Unknown }))
            }
            Located::Lost { next, .. } => {
                self.lose(at, index, slot.offset.unwrap_or(next))?;
                Ok(None)
            }
        }
    }

    /// The next message that is owed and was not handed out in this run. Leaves the cursor at it.
    #[inline(always)]
    pub(super) fn find_next(&mut self, published: u64) -> Result<Option<Next>> {
        loop {
            let mut cursor = self.cursor;
            let Some(at) = self.resume(&mut cursor)? else { return Ok(None) };
            self.cursor = cursor;
            let Cursor { index, has_skipped, .. } = cursor;
            let end_index = self.tracks[at].end_index(published);
            if index >= end_index {
                match self.tracks.get(at + 1) {
                    Some(next) => self.cursor = Cursor::start_of(next),
                    None => return Ok(None),
                }
                continue;
            }
            // Not yet to be shown, though its segment is full already.
            // A lower bound, where Seqs have gaps: what is there is looked at again below.
            if self.tracks[at].first_seq + u64::from(index) > published {
                return Ok(None);
            }
            if self.tracks[at].is_old && !has_skipped {
                self.count_all_of(at)?;
                let (next, previous) = self.tracks[at].skip_settled(index)?;
                let seq = cursor.seq + u64::from(next - index);
                self.cursor = Cursor { seq, index: next, previous, has_skipped: true, ..cursor };
                continue;
            }
            match self.cursor.look(&mut self.tracks[at], end_index, self.run)? {
                Seen::Owed(place, _) if place.seq > published => return Ok(None),
                Seen::Owed(place, header) => {
                    return Ok(Some(Next { place, header, at, source: Source::Cursor }));
                }
                Seen::Settled(offset) | Seen::Elsewhere(offset) => self.pass(offset),
                Seen::Outlived(offset) => {
                    self.settle_silently(at, index, offset, State::Dead)?;
                    self.pass(Some(offset));
                }
                Seen::BadSlot => self.rebuild_slot(at, index)?,
                Seen::Lost { end_index, next } => {
                    for lost in index..end_index {
                        self.lose_if_owed(at, lost, self.cursor.offset)?;
                    }
                    let seq = self.cursor.seq + u64::from(end_index - index);
                    let cursor = Cursor { seq, index: end_index, offset: next, ..self.cursor };
                    self.cursor = Cursor { previous: None, ..cursor };
                }
            }
        }
    }

    /// The record at the cursor needs nothing more.
    fn pass(&mut self, offset: Option<u64>) {
        let settled = offset.map(|offset| (self.cursor.index, offset));
        self.cursor.previous = settled.or(self.cursor.previous);
        self.cursor.index += 1;
        // Where Seqs have gaps, no more than its own.
        self.cursor.seq += 1;
    }

    /// Stores the attempt and begins the lease.
    #[inline(always)]
    pub(super) fn lease(&mut self, next: &Next, now: Option<u64>) -> Result<Leased> {
        let Next { place, header, at, source } = *next;
        let place = Place { attempts: MAX_ATTEMPTS.min(place.attempts + 1), ..place };
        let Place { seq, attempts, offset, .. } = place;
        let track = &mut self.tracks[at];
        let pushed_at = track.base_time + u64::from(header.age);
        let mapped = track.map()?;
        mapped.store_slot(place.index, owed_slot(&place))?;
        let body = Body::of(mapped, &header, offset);
        track.leased += 1;
        track.note_change(place.index);
        self.changes += 1;
        self.counts.popped += 1;
        self.counts.redelivered += u64::from(attempts > 1);
        if source == Source::Cursor {
            self.counts.out_of_order += u64::from(seq < self.measure.newest_first);
            self.measure.newest_first = self.measure.newest_first.max(seq);
        }
        let deadline = self.policy.visibility.zip(now);
        let deadline = deadline.map(|(timeout, now)| self.clock.after(now, timeout));
        let ticket = self.leases.begin(place, deadline);
        let is_sample = Measure::is_sample(self.counts.popped);
        Ok(Leased { ticket, seq, attempts, offset, pushed_at, body, header, is_sample, now })
    }
}

/// The slot of a message that is owed again after a crash.
pub(super) fn owed_slot(place: &Place) -> Slot {
    let state = match place {
        Place { is_transient: true, .. } => State::Transient,
        Place { attempts: 0, .. } => State::Ready,
        _ => State::Delivered,
    };
    Slot { state, attempts: place.attempts, offset: Some(place.offset) }
}
