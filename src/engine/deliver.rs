//! Handing out and settling messages.
//!
//! Promises: first deliveries follow the order of the log, what was returned comes before them, by
//! Seq; a message is with one consumer at a time; the attempt is stored before the message is
//! handed out; an answer is one store, after which a kill does not undo it. Nothing here grows with
//! the backlog. Relies on the `deliver` lock, and on `loss` for what is damaged.

use super::cursor::{Cursor, Seen};
use super::loss::Losses;
use super::track::Track;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::record;
use crate::format::segment::Seal;
use crate::format::slot::{MAX_ATTEMPTS, Slot, State};
use crate::leases::{Leases, Place, Ticket};
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::sealed::Mapped;
use crate::recovery::Log;
use crate::schedule::Schedule;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Bodies up to so many bytes are copied under the lock.
const COPY_UNDER_LOCK: u32 = 1024;

/// What comes next, and what is out.
#[derive(Debug)]
pub(crate) struct Deliver {
    pub(super) tracks: VecDeque<Track>,
    pub(super) cursor: Cursor,
    /// Handed out once, and given back.
    pub(super) returned: BTreeMap<u64, Place>,
    /// Given back, and not to be handed out before their time.
    pub(super) deferred: Schedule,
    pub(super) leases: Leases,
    pub(super) losses: Losses,
    pub(super) counts: Counts,
    /// How many were settled by nobody's answer: lost, outlived, purged.
    pub(super) silently_settled: u64,
    /// Number of the newest change of a slot.
    pub(super) changes: u64,
    /// The newest change for which a sync has begun.
    synced_changes: u64,
    /// The worker knows that there are changes to sync.
    is_asked: bool,
    is_closed: bool,
}

/// What was done since open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) popped: u64,
    pub(super) redelivered: u64,
    pub(super) acked: u64,
    pub(super) nacked: u64,
    pub(super) released: u64,
    pub(super) purged: u64,
}

/// What a consumer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Ack,
    /// Back, and the attempt counts.
    Nack,
    /// The same, but not to be handed out before this time.
    NackUntil(Instant),
    /// Back, as if it had not been handed out.
    Release,
}

/// A message that is handed out; its payload is copied outside of the lock.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) ticket: Ticket,
    pub(crate) seq: u64,
    pub(crate) attempts: u32,
    /// Milliseconds since 1970 UTC.
    pub(crate) pushed_at: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) payload_start: usize,
}

/// A message that can be leased.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) place: Place,
    header: record::Header,
    /// The position of its track.
    pub(super) at: usize,
}

/// What an answer did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) seq: u64,
    /// Its segment has nothing left that is owed.
    pub(super) is_done: bool,
}

/// A message that is leased and not yet verified.
pub(super) struct Leased {
    pub(super) ticket: Ticket,
    pub(super) seq: u64,
    pub(super) attempts: u32,
    pub(super) offset: u64,
    pub(super) pushed_at: u64,
    pub(super) body: Body,
    pub(super) header: record::Header,
}

/// Where the bytes of a leased message are. A short copy is cheaper than a reference count.
pub(super) enum Body {
    Copied(Vec<u8>),
    In(Arc<Mapped>),
}

impl Deliver {
    pub(super) fn new(log: &Log) -> Self {
        Self {
            tracks: log.parts.iter().map(Track::of_earlier_run).collect(),
            cursor: Cursor::start_of(0),
            returned: BTreeMap::new(),
            deferred: Schedule::default(),
            leases: Leases::default(),
            losses: Losses::new(log),
            counts: Counts::default(),
            silently_settled: 0,
            // What a run before this one changed may not be synced yet.
            changes: u64::from(!log.parts.is_empty()),
            synced_changes: 0,
            is_asked: false,
            is_closed: false,
        }
    }

    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Drops the maps.
    pub(super) fn let_go(&mut self) {
        self.tracks.clear();
        self.returned.clear();
        self.deferred.clear();
        self.leases = Leases::default();
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) fn add_track(&mut self, active: &Active) {
        let (segment, region) = (Arc::clone(&active.segment), Arc::clone(&active.region));
        let mapped = Mapped { segment, region };
        self.tracks.push_back(Track::active(Arc::new(mapped), active.first_seq, active.base_time));
    }

    /// The active segment is no longer pushed to.
    pub(super) fn seal_track(&mut self, seal: Seal) {
        if let Some(active) = self.tracks.back_mut() {
            active.count = Some(seal.count);
        }
    }

    pub(super) fn tracks(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter()
    }

    pub(super) fn in_flight(&self) -> u64 {
        crate::format::bytes::wide(self.leases.count())
    }

    pub(super) fn delayed(&mut self) -> u64 {
        self.take_back_due();
        crate::format::bytes::wide(self.deferred.count())
    }

    /// Messages that can be handed out; reads what is published only under the lock.
    pub(super) fn ready(&mut self, published: impl Fn() -> u64) -> u64 {
        let published = published();
        let owed: u64 = self.tracks.iter().map(|track| track.owed(published)).sum();
        owed.saturating_sub(self.in_flight() + self.delayed())
    }

    pub(super) fn segments(&self) -> u64 {
        crate::format::bytes::wide(self.tracks.len())
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.tracks.iter().map(|track| track.segment.header.size).sum()
    }

    /// The number of the newest change of a slot.
    pub(super) fn change_count(&self) -> u64 {
        self.changes
    }

    /// The segments with changed slots that no sync has covered, and the number of the newest
    /// change.
    pub(super) fn take_dirty(&mut self) -> (u64, Vec<Arc<Segment>>) {
        self.synced_changes = self.changes;
        self.is_asked = false;
        let answered = self.tracks.iter_mut().filter(|track| track.is_dirty);
        let take = |track: &mut Track| {
            track.is_dirty = false;
            Arc::clone(&track.segment)
        };
        (self.changes, answered.map(take).collect())
    }

    /// Segments in which nothing is owed, but whose slots are not synced yet.
    pub(super) fn done_and_dirty(&self) -> Vec<Arc<Segment>> {
        let done = self.tracks.iter().filter(|track| track.is_done() && track.is_dirty);
        done.map(|track| Arc::clone(&track.segment)).collect()
    }

    /// This segment, in which nothing is owed, was synced.
    pub(super) fn done_is_clean(&mut self, segment: &Arc<Segment>) {
        if let Some(track) = self.track(segment.header.ordinal) {
            track.is_dirty = false;
        }
    }

    /// Takes out the tracks in which nothing is owed and nothing unsynced. The newest segment
    /// stays: its header says how far numbers went.
    pub(super) fn take_done(&mut self, is_synced: impl Fn(&Arc<Segment>) -> bool) -> Vec<Track> {
        let newest = self.tracks.back().map_or(0, Track::ordinal);
        let tracks = std::mem::take(&mut self.tracks).into_iter();
        let can_go = |track: &Track| {
            let is_synced = !track.is_dirty && is_synced(&track.segment);
            track.is_done() && is_synced && track.ordinal() != newest
        };
        let (done, kept): (Vec<Track>, Vec<Track>) = tracks.partition(can_go);
        self.tracks = kept.into();
        done
    }

    /// Takes the maps that are not in use. The caller drops them outside of the lock.
    pub(super) fn take_idle_maps(&mut self) -> Vec<Arc<Mapped>> {
        let cursor = self.cursor.ordinal;
        let newest = self.tracks.back().map_or(0, Track::ordinal);
        let idle =
            |track: &&mut Track| track.leased == 0 && ![cursor, newest].contains(&track.ordinal());
        self.tracks.iter_mut().filter(idle).filter_map(|track| track.mapped.take()).collect()
    }

    /// Whether there is, or seems to be, something to hand out.
    pub(super) fn has_more(&self, published: u64) -> bool {
        let is_behind = |newest: &Track| {
            let end_index = newest.end_index(published);
            self.cursor.ordinal < newest.ordinal() || self.cursor.index < end_index
        };
        let is_returned = !self.returned.is_empty() || self.deferred.count() > 0;
        is_returned || self.tracks.back().is_some_and(is_behind)
    }

    /// Segments that are not mapped, and of which everything is synced.
    pub(super) fn unmapped_and_clean(&self, is_durable: impl Fn(u64) -> bool) -> Vec<Arc<Segment>> {
        let clean = self.tracks.iter().filter(|track| {
            let end_seq = track.count.map(|count| track.first_seq + u64::from(count));
            let is_synced = end_seq.is_some_and(|end_seq| is_durable(end_seq.saturating_sub(1)));
            track.mapped.is_none() && !track.is_dirty && is_synced
        });
        clean.map(|track| Arc::clone(&track.segment)).collect()
    }

    /// What could not be read may be readable now.
    pub(super) fn count_again(&mut self) {
        self.tracks.iter_mut().for_each(Track::count_again);
    }

    /// Counts some slots of earlier runs; false once all are counted.
    pub(super) fn count_some(&mut self) -> Result<bool> {
        let Some(track) = self.tracks.iter_mut().find(|track| track.can_be_counted()) else {
            return Ok(false);
        };
        for lost in track.count_some()? {
            self.losses.unaccounted.insert(lost, lost);
        }
        Ok(true)
    }

    /// Where the track of a segment is; most are at one of the ends.
    pub(super) fn position(&self, ordinal: u64) -> Option<usize> {
        let is = |track: Option<&Track>| track.is_some_and(|track| track.ordinal() == ordinal);
        if is(self.tracks.front()) {
            Some(0)
        } else if is(self.tracks.back()) {
            Some(self.tracks.len() - 1)
        } else {
            self.tracks.binary_search_by_key(&ordinal, Track::ordinal).ok()
        }
    }

    fn track(&mut self, ordinal: u64) -> Option<&mut Track> {
        let at = self.position(ordinal)?;
        self.tracks.get_mut(at)
    }

    /// Leases the next message.
    pub(super) fn lease_next(&mut self, published: u64) -> Result<Option<Leased>> {
        self.check_open()?;
        self.take_back_due();
        while let Some((_, place)) = self.returned.pop_first() {
            let leased = self.look_again(place).and_then(|next| match next {
                Some(next) => self.lease(next).map(Some),
                None => Ok(None),
            });
            match leased {
                Ok(Some(leased)) => return Ok(Some(leased)),
                Ok(None) => {}
                Err(error) => {
                    self.returned.insert(place.seq, place);
                    return Err(error);
                }
            }
        }
        let Some(next) = self.find_next(published)? else { return Ok(None) };
        let leased = self.lease(next)?;
        self.go_on_behind(&next);
        Ok(Some(leased))
    }

    /// Deferred messages whose time has come. No clock is read while there are none.
    fn take_back_due(&mut self) {
        if self.deferred.count() > 0 {
            let now = clock::now();
            while let Some(place) = self.deferred.take_due(now) {
                self.returned.insert(place.seq, place);
            }
        }
    }

    /// The message that `find_next` found at the cursor is taken.
    pub(super) fn go_on_behind(&mut self, next: &Next) {
        let offset = next.place.offset + next.header.record_len();
        let index = self.cursor.index + 1;
        self.cursor = Cursor { index, offset, previous: None, ..self.cursor };
    }

    /// A message that was given back; `None` if its header got damaged meanwhile.
    fn look_again(&mut self, place: Place) -> Result<Option<Next>> {
        let Some(at) = self.position(place.ordinal) else { return Ok(None) };
        if let Some(header) = self.tracks[at].map()?.header(place.offset, place.index) {
            return Ok(Some(Next { place, header, at }));
        }
        self.lose(at, place.index, place.offset)?;
        Ok(None)
    }

    /// The next message that is owed and was not handed out in this run. Leaves the cursor at it.
    pub(super) fn find_next(&mut self, published: u64) -> Result<Option<Next>> {
        loop {
            let Cursor { ordinal, index, has_skipped, .. } = self.cursor;
            let Some(at) = self.position(ordinal) else {
                match self.tracks.iter().map(Track::ordinal).find(|&next| next > ordinal) {
                    Some(next) => self.cursor = Cursor::start_of(next),
                    None => return Ok(None),
                }
                continue;
            };
            let track = &mut self.tracks[at];
            let end_index = track.end_index(published);
            if index >= end_index {
                match self.tracks.get(at + 1) {
                    Some(next) => self.cursor = Cursor::start_of(next.ordinal()),
                    None => return Ok(None),
                }
                continue;
            }
            if track.is_old && !has_skipped {
                let (index, previous) = track.skip_settled(index)?;
                self.cursor = Cursor { index, previous, has_skipped: true, ..self.cursor };
                continue;
            }
            match self.cursor.look(track, end_index)? {
                Seen::Owed(place, header) => return Ok(Some(Next { place, header, at })),
                Seen::Settled(offset) => self.pass(offset),
                Seen::Outlived(offset) => {
                    self.settle_silently(at, index, offset, State::Dead)?;
                    self.pass(Some(offset));
                }
                Seen::BadSlot => self.rebuild_slot(at, index)?,
                Seen::Lost { end_index, next } => {
                    for lost in index..end_index {
                        self.lose_if_owed(at, lost, self.cursor.offset)?;
                    }
                    let cursor = Cursor { index: end_index, offset: next, ..self.cursor };
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
    }

    /// Stores the attempt and begins the lease.
    fn lease(&mut self, next: Next) -> Result<Leased> {
        let Next { place, header, at } = next;
        let place = Place { attempts: MAX_ATTEMPTS.min(place.attempts + 1), ..place };
        let Place { seq, attempts, offset, .. } = place;
        let track = &mut self.tracks[at];
        let pushed_at = track.base_time + u64::from(header.age);
        let mapped = track.map()?;
        mapped.store_slot(place.index, owed_slot(&place))?;
        let body = if header.body_len <= COPY_UNDER_LOCK {
            Body::Copied(mapped.body(&header, offset))
        } else {
            Body::In(Arc::clone(mapped))
        };
        track.leased += 1;
        track.note_change();
        self.changes += 1;
        self.counts.popped += 1;
        self.counts.redelivered += u64::from(attempts > 1);
        let ticket = self.leases.begin(place);
        Ok(Leased { ticket, seq, attempts, offset, pushed_at, body, header })
    }

    /// Ends a lease as its holder says.
    pub(super) fn settle(&mut self, ticket: Ticket, answer: Answer) -> Result<Settled> {
        self.check_open()?;
        // A lease ends only through its own delivery, which is consumed by that.
        let place = self.leases.end(ticket).ok_or(Error::Closed)?;
        self.changes += 1;
        let track = self.track(place.ordinal).ok_or(Error::Closed)?;
        track.leased -= 1;
        track.note_change();
        let mut store = |slot| track.map().and_then(|mapped| mapped.store_slot(place.index, slot));
        let released = Place { attempts: place.attempts - 1, ..place };
        let (stored, back) = match answer {
            Answer::Nack | Answer::NackUntil(_) => (Ok(()), Some(place)),
            Answer::Ack => match store(Slot { state: State::Dead, ..owed_slot(&place) }) {
                Ok(()) => (Ok(()), None),
                error => (error, Some(place)),
            },
            Answer::Release => match store(owed_slot(&released)) {
                Ok(()) => (Ok(()), Some(released)),
                error => (error, Some(place)),
            },
        };
        if back.is_none() {
            track.settle(place.index);
        }
        let settled = Settled { seq: place.seq, is_done: back.is_none() && track.is_done() };
        match (back, answer) {
            (Some(place), Answer::NackUntil(time)) => self.deferred.put(time, place),
            (Some(place), _) => drop(self.returned.insert(place.seq, place)),
            (None, _) => {}
        }
        stored?;
        match answer {
            Answer::Ack => self.counts.acked += 1,
            Answer::Nack | Answer::NackUntil(_) => self.counts.nacked += 1,
            Answer::Release => self.counts.released += 1,
        }
        Ok(settled)
    }

    /// Whether the worker has to be asked to sync changed slots some time soon.
    pub(super) fn asks_for_sync(&mut self) -> bool {
        self.changes > self.synced_changes && !std::mem::replace(&mut self.is_asked, true)
    }

    /// The worker could not sync: it has to be asked again.
    pub(super) fn ask_again(&mut self) {
        self.is_asked = false;
        self.synced_changes = 0;
    }
}

/// The slot of a message that is owed again after a crash.
fn owed_slot(place: &Place) -> Slot {
    let state = match place {
        Place { is_transient: true, .. } => State::Transient,
        Place { attempts: 0, .. } => State::Ready,
        _ => State::Delivered,
    };
    Slot { state, attempts: place.attempts, offset: Some(place.offset) }
}
