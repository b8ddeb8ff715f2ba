//! The short way: plain messages that lie side by side, taken and acked together.
//!
//! Promises: what it does is what the long way (`Dispatch::lease_next_but`, `Deliveries::answer`)
//! would do with the same messages one by one, in memory and on the disk; each attempt is stored
//! before its message is handed out. It takes messages only while nothing else comes first, and
//! only those that nobody has touched; it acks only those whose slots say what their delivery
//! stored. Of all else it does nothing, and the caller goes the long way: that alone knows what is
//! special. A test compares the two over random histories (`queue/ways`).
//!
//! What it saves is what the long way asks for each message: where its segment is, where its record
//! lies, in which place it waits, and a lease, two calls of the storage and counters of its own
//! (`cargo bench --bench instructions`).

use super::deliveries::Deliveries;
use super::exchange::{Answerable, LeaseKey};
use super::leased::{LeasedBatch, LeasedMessages, LeasedOne};
use super::ledger::Ledger;
use super::measure::Measure;
use super::news::Event;
use super::read_ahead::ReadAhead;
use super::taken::{Taken, TakenBody};
#[cfg(test)]
use super::watched::Watched;
use crate::clock::TICK;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::record::RecordHeader;
use crate::format::slot::{Slot, State};
use crate::leases::{Batch, Holding, Place};
use crate::log::sealed::Mapped;
use crate::log::side_by_side::{LONGEST_BODY, SideBySide};
use crate::log::slots::{MOST_SLOTS, Slots};
use crate::time::Time;
use std::sync::Arc;

/// No more bytes are copied for a batch than these, and what a record takes: as long as one payload
/// is held, all are.
const MOST_BYTES: usize = 16 << 10;

/// The messages that are next at the cursor, if they lie where a short way leads.
#[derive(Debug)]
struct AtCursor<'a> {
    /// The position of their segment.
    at: usize,
    mapped: &'a Arc<Mapped>,
    /// The first of them, and where its record is sought.
    seq: u64,
    index: Index,
    offset: Offset,
    /// How many there are at most.
    most: u32,
}

/// Plain messages, while nothing else comes first.
#[derive(Debug)]
pub(crate) struct ShortWay<'d> {
    deliveries: &'d mut Deliveries,
    read_ahead: &'d mut ReadAhead,
}

impl<'d> ShortWay<'d> {
    #[inline]
    pub(super) fn of(deliveries: &'d mut Deliveries, read_ahead: &'d mut ReadAhead) -> Self {
        Self { deliveries, read_ahead }
    }

    #[inline]
    fn ledger(&self) -> &Ledger {
        self.deliveries.ledger()
    }

    #[inline]
    fn ledger_mut(&mut self) -> &mut Ledger {
        self.deliveries.ledger_mut()
    }

    /// What tests watch.
    #[cfg(test)]
    pub(crate) fn watched(&mut self) -> &mut Watched {
        self.deliveries.measure_mut().short_way()
    }

    /// What lies behind the cursor, up to message `visible`.
    #[inline]
    fn ahead(&self, visible: u64) -> Option<AtCursor<'_>> {
        let cursor = self.ledger().places().cursor();
        let tracks = self.ledger().backlog().tracks();
        let (at, track) = tracks.track_of(cursor.ordinal(), cursor.seq())?;
        let records = track.records();
        // The slots of an earlier run have to be counted before.
        let is_counted = cursor.has_skipped() || !records.is_old();
        let mapped = records.mapped().filter(|_| is_counted && !records.has_gaps())?;
        let (seq, index, offset) = (cursor.seq(), cursor.index(), cursor.position().offset());
        // Of a full segment, the end is that of its records, whether they are to be seen or not.
        let to_be_seen = visible.checked_sub(seq)?.saturating_add(1);
        let there = records.end_index(visible).since(index);
        let most = u32::try_from(to_be_seen).unwrap_or(u32::MAX).min(there);
        Some(AtCursor { at, mapped, seq, index, offset, most })
    }

    /// Whether a message behind the cursor is the next one, and may be handed out: nothing else
    /// comes first, there is room in flight, and none of what is in flight is due. `now`: the
    /// coarse clock, if anything has a time.
    #[inline(always)]
    fn is_cursor_next(&mut self, now: Option<Time>) -> bool {
        #[cfg(test)]
        if self.watched().is_closed {
            return false;
        }
        let (places, policy) = (self.ledger().places(), self.ledger().policy());
        self.ledger().is_open()
            && !places.has_front()
            && !self.deliveries.is_full()
            && policy.message_ttl.is_none()
            && !now.is_some_and(|now| places.has_due_at(now.saturating_add(TICK)))
    }

    /// Leases the message behind the cursor, up to message `visible`, if its record was read ahead:
    /// it is whole.
    #[inline(always)]
    pub(crate) fn lease_read_ahead(&mut self, visible: u64) -> Option<Taken> {
        let now = self.deliveries.coarse_time();
        if !self.is_cursor_next(now) {
            return None;
        }
        // That its segment is counted and has no gaps, and that the record is plain and placed for
        // good, was so when it was read ahead, and stays so.
        let cursor = self.ledger().places().cursor();
        let (seq, ordinal, index) = (cursor.seq(), cursor.ordinal(), cursor.index());
        let (header, offset) = self.read_ahead.next(ordinal, index)?;
        let (at, track) = self.ledger().backlog().tracks().track_of(ordinal, seq)?;
        let mapped = track.records().mapped().filter(|_| seq <= visible)?;
        if !mapped.replace_slot(index, Slot::UNTOUCHED, delivered(offset)) {
            return None;
        }
        #[cfg(test)]
        (self.watched().read_ahead += 1);
        let body = self.read_ahead.take_body(&header);
        let LeasedOne { taken, pushed_at, .. } =
            self.begin_lease(at, (seq, index, offset), &header, body, now);
        if taken.key.is_sample {
            self.deliveries.measure_mut().handed_out(taken.key.ticket, pushed_at);
        }
        Some(taken)
    }

    /// Leases the message behind the cursor, up to message `visible`; `None` if the next message
    /// has to go the long way. Reads ahead those behind it.
    pub(crate) fn lease_one(&mut self, visible: u64) -> Option<LeasedOne> {
        let now = self.deliveries.coarse_time();
        if !self.is_cursor_next(now) {
            return None;
        }
        let AtCursor { at, mapped, seq, index, offset, most } = self.ahead(visible)?;
        let header = mapped.header(offset, index).filter(|_| most > 0)?;
        // The body is copied under the lock.
        if !header.flags.is_plain() || header.body_len > LONGEST_BODY {
            return None;
        }
        // A slot that was never stored to has no delay, whatever its second word is.
        if !mapped.replace_slot(index, Slot::UNTOUCHED, delivered(offset)) {
            return None;
        }
        let body = TakenBody::Own(mapped.body(&header, offset));
        *self.read_ahead = self.read_ahead.behind(mapped, index, offset, &header, most - 1);
        Some(self.begin_lease(at, (seq, index, offset), &header, body, now))
    }

    /// Begins the lease of a message whose attempt is stored.
    #[inline(always)]
    fn begin_lease(
        &mut self,
        at: usize,
        (seq, index, offset): (u64, Index, Offset),
        header: &RecordHeader,
        body: TakenBody,
        now: Option<Time>,
    ) -> LeasedOne {
        #[cfg(test)]
        (self.watched().taken += 1);
        let track = self.ledger_mut().backlog_mut().note_changes(at, index..index.next());
        track.note_leased(1);
        let (ordinal, pushed_at) = (track.ordinal(), header.pushed_at(track.base_time()));
        let pushed_at_utc = header.pushed_at(track.records().base_in_utc());
        let (attempts, bytes, is_transient) = (1, header.bytes(), false);
        let place = Place { seq, ordinal, index, offset, attempts, bytes, is_transient };
        let (popped_before, deadline) = self.deliveries.note_first_deliveries(seq, 1, now);
        let places = self.ledger_mut().places_mut();
        places.cursor_mut().pass_messages(1, offset + header.record_len());
        let ticket = places.leases_mut().begin(place, deadline);
        self.ledger_mut().note_head_changed();
        let key = LeaseKey { ticket, is_sample: Measure::is_sample(popped_before + 1) };
        let taken = Taken { key, attempts, pushed_at: pushed_at_utc, body, payload_start: 0 };
        LeasedOne { taken, check: header.body_check, pushed_at }
    }

    /// Leases up to `most` messages up to `visible` that lie side by side behind the cursor; `None`
    /// if the next message has to go the long way.
    pub(crate) fn lease_batch(&mut self, visible: u64, most: usize) -> Option<LeasedBatch> {
        // Once it has begun, a batch ends no lease: that may be one of its own.
        if !self.is_cursor_next(None) {
            return None;
        }
        let most = most.min(Batch::MOST).min(self.deliveries.room_in_flight());
        let AtCursor { at, mapped, seq, index, offset, most: there } = self.ahead(visible)?;
        let most = most.min(usize::try_from(there).unwrap_or(usize::MAX));
        let mut records = SideBySide::copy(mapped, index, offset, most, MOST_BYTES);
        let number = deliver(mapped, &mut records);
        if number == 0 {
            return None;
        }
        #[cfg(test)]
        (self.watched().taken += u64::from(number));
        let end = records.end();
        let (bytes, starts) = records.into_parts();
        let track = self.ledger_mut().backlog_mut().note_changes(at, index..index + number);
        track.note_leased(number);
        let (base_time, base_in_utc) = (track.base_time(), track.records().base_in_utc());
        let batch = Batch::new(seq, track.ordinal(), index, starts);
        let now = self.deliveries.coarse_time();
        let (popped_before, deadline) = self.deliveries.note_first_deliveries(seq, number, now);
        let places = self.ledger_mut().places_mut();
        places.cursor_mut().pass_messages(number, end);
        let first = places.leases_mut().begin_batch(batch, deadline);
        self.ledger_mut().note_head_changed();
        let messages = LeasedMessages::new(first, number, popped_before);
        Some(LeasedBatch { bytes, messages, base_time, base_in_utc })
    }

    /// Settles the first of these deliveries, and those behind it that lie side by side with it.
    /// Tells how many; 0 if the first one has to go the long way.
    #[inline(always)]
    pub(crate) fn ack_side_by_side(&mut self, deliveries: &[impl Answerable]) -> usize {
        #[cfg(test)]
        if self.watched().is_closed {
            return 0;
        }
        let was_full = self.deliveries.is_full();
        let Some(first) = deliveries.first().filter(|_| self.ledger().is_open()) else { return 0 };
        let number = match self.ledger().places().leases().held(first.key().ticket) {
            Some(Holding::One(&place)) => self.ack_one(first.key(), &place),
            Some(Holding::Batch(_)) => self.ack_of_batch(deliveries).unwrap_or(0),
            None => 0,
        };
        // Room for more in flight.
        self.ledger_mut().news_mut().note_if(was_full && number > 0, Event::Returned);
        number
    }

    #[inline(always)]
    fn ack_one(&mut self, delivery: &LeaseKey, place: &Place) -> usize {
        if place.seq != delivery.ticket.seq() || place.is_transient {
            return 0;
        }
        let Some((at, mapped)) = self.map_of(place.ordinal, place.seq) else { return 0 };
        let (attempts, offset) = (place.attempts, Some(place.offset));
        let said = |state| Slot { state, attempts, offset };
        if !mapped.replace_slot(place.index, said(State::Delivered), said(State::Dead)) {
            return 0;
        }
        self.note_acked(delivery, (at, place.index, 1), place.bytes.into())
    }

    /// The first of these deliveries is of a batch.
    #[inline]
    fn ack_of_batch(&mut self, deliveries: &[impl Answerable]) -> Option<usize> {
        let delivery = deliveries.first()?.key();
        let first = delivery.ticket;
        let Holding::Batch(batch) = self.ledger().places().leases().held(first)? else {
            return None;
        };
        let tickets = deliveries.iter().map(|delivery| delivery.key().ticket);
        let tickets = tickets.zip(first.seq()..).take(MOST_SLOTS);
        let most = tickets.take_while(|(ticket, seq)| *ticket == first.of(*seq)).count();
        let (index, starts) = batch.side_by_side(first.seq(), most)?;
        let (at, mapped) = self.map_of(batch.ordinal(), first.seq())?;
        let settled = settle(mapped, index, starts);
        let bytes = starts.get(settled)?.since(*starts.first()?);
        let number = u32::try_from(settled).ok().filter(|&number| number > 0)?;
        Some(self.note_acked(delivery, (at, index, number), bytes))
    }

    /// Their slots say that they are settled. `at`: the position of their segment; `bytes`: what
    /// their records take. Tells how many they are.
    #[inline(always)]
    fn note_acked(
        &mut self,
        first: &LeaseKey,
        (at, index, number): (usize, Index, u32),
        bytes: u64,
    ) -> usize {
        let LeaseKey { ticket, is_sample } = *first;
        let settled = usize::try_from(number).unwrap_or(usize::MAX);
        self.ledger_mut().places_mut().leases_mut().end_held(ticket, settled);
        self.ledger_mut().note_acked(at, index..index + number, ticket.seq(), bytes);
        if settled > 1 || is_sample {
            self.deliveries.measure_mut().answered(ticket, settled);
        }
        settled
    }

    /// The segment of a message, with its position, if it is where it was, mapped, and its slots
    /// are counted.
    #[inline]
    fn map_of(&self, ordinal: Ordinal, seq: u64) -> Option<(usize, &Arc<Mapped>)> {
        let (at, track) = self.ledger().backlog().tracks().track_of(ordinal, seq)?;
        track.records().mapped().filter(|_| track.is_counted()).map(|mapped| (at, mapped))
    }
}

/// What the slot of a message says that was handed out for the first time.
#[inline]
fn delivered(offset: Offset) -> Slot {
    Slot { state: State::Delivered, attempts: 1, offset: Some(offset) }
}

/// What it says once the message is settled.
#[inline]
fn dead(offset: Offset) -> Slot {
    Slot { state: State::Dead, ..delivered(offset) }
}

/// Stores an attempt for each of these messages, up to the first one that somebody has touched: the
/// others are left out. Tells for how many.
fn deliver(mapped: &Mapped, records: &mut SideBySide) -> u32 {
    let (mut slots, mut stored) = (Slots::of(mapped), 0);
    while let Some(starts) = records.starts().get(stored..).filter(|starts| starts.len() > 1) {
        let first = records.first().saturating_add(u32::try_from(stored).unwrap_or(u32::MAX));
        if slots.load(first, starts.len() - 1).is_err() {
            break;
        }
        let mut untouched = 0;
        for (mut slot, &offset) in slots.each().zip(starts) {
            if !slot.is_untouched() {
                break;
            }
            slot.set(delivered(offset));
            untouched += 1;
        }
        let done = store(&mut slots, first, untouched, starts, delivered);
        stored += done;
        // For the others the long way tries it again, and tells of the error.
        if done == 0 || done < slots.number() {
            break;
        }
    }
    records.truncate(stored);
    u32::try_from(stored).unwrap_or(0)
}

/// Settles messages from record `first` on, whose records are between `starts`, as far as their
/// slots say that they were handed out once; tells how many are settled.
fn settle(mapped: &Mapped, first: Index, starts: &[Offset]) -> usize {
    let mut slots = Slots::of(mapped);
    if slots.load(first, starts.len() - 1).is_err() {
        return 0;
    }
    let mut number = 0;
    for (mut slot, &offset) in slots.each().zip(starts) {
        // A store that failed may have settled it, as the caller was told of none.
        if !slot.says(delivered(offset)) && !slot.says(dead(offset)) {
            break;
        }
        slot.set(dead(offset));
        number += 1;
    }
    store(&mut slots, first, number, starts, dead)
}

/// Stores the first `number` of these slots; tells how many from the first one on are stored. If a
/// write fails, some may be: what got an attempt has to be handed out, and what is settled has to
/// be counted.
#[inline]
fn store(
    slots: &mut Slots<'_>,
    first: Index,
    number: usize,
    starts: &[Offset],
    said: impl Fn(Offset) -> Slot,
) -> usize {
    if number == 0 || slots.store(number).is_ok() {
        return number;
    }
    if slots.load(first, number).is_err() {
        return 0;
    }
    slots.each().zip(starts).take_while(|(slot, offset)| slot.says(said(**offset))).count()
}
