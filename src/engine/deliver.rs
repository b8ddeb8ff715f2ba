//! Handing out and settling messages.
//!
//! Promises: first deliveries follow the order of the log, what was returned comes before them, by
//! Seq; a message is with one consumer at a time; the attempt is stored before the message is
//! handed out; an answer is one store, after which a kill does not undo it; damage is passed over,
//! counted and listed. Nothing here grows with the backlog. Relies on the `deliver` lock.

use super::track::{Located, Track};
use crate::error::{Error, Result};
use crate::format::record;
use crate::format::segment::{RECORDS_START, Seal};
use crate::format::slot::{self, Slot, State};
use crate::leases::{Leases, Place, Ticket};
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::sealed::Mapped;
use crate::recovery::Log;
use crate::report::{Damage, DamageKind};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// So much damage is listed; more is only counted.
const LISTED_DAMAGE: usize = 1000;

/// What comes next, and what is out.
#[derive(Debug)]
pub(crate) struct Deliver {
    tracks: VecDeque<Track>,
    cursor: Cursor,
    /// Handed out once, and given back.
    returned: BTreeMap<u64, Place>,
    leases: Leases,
    damage: BTreeMap<u64, Damage>,
    lost: u64,
    /// Number of the newest answer.
    answers: u64,
    /// The worker knows that there are answers to sync.
    has_asked_for_sync: bool,
    is_closed: bool,
}

/// The first message that was never handed out in this run.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    ordinal: u64,
    index: u32,
    offset: u64,
    /// A settled record before it, if the record right before it was not read.
    previous: Option<(u32, u64)>,
    /// Settled slots at the start of this old segment have been skipped.
    has_skipped: bool,
}

impl Cursor {
    fn start_of(ordinal: u64) -> Self {
        Self { ordinal, index: 0, offset: RECORDS_START, previous: None, has_skipped: false }
    }
}

/// What a consumer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Ack,
    /// Back, and the attempt counts.
    Nack,
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
struct Next {
    place: Place,
    header: record::Header,
    mapped: Arc<Mapped>,
    base_time: u64,
    /// The position of its track.
    at: usize,
}

/// A message that is leased and not yet copied.
pub(super) struct Leased {
    pub(super) ticket: Ticket,
    pub(super) seq: u64,
    pub(super) attempts: u32,
    pub(super) offset: u64,
    pub(super) pushed_at: u64,
    pub(super) mapped: Arc<Mapped>,
    pub(super) header: record::Header,
}

impl Deliver {
    pub(super) fn new(log: &Log) -> Self {
        let old = log.parts.iter().map(Track::of_earlier_run);
        let damage = log.report.damage.iter().map(|damage| (damage.first, damage.clone()));
        Self {
            tracks: old.collect(),
            cursor: Cursor::start_of(0),
            returned: BTreeMap::new(),
            leases: Leases::default(),
            damage: damage.take(LISTED_DAMAGE).collect(),
            lost: 0,
            answers: 0,
            has_asked_for_sync: false,
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

    /// Messages that can be handed out; reads what is published only under the lock.
    pub(super) fn ready(&self, published: impl Fn() -> u64) -> u64 {
        let published = published();
        let owed: u64 = self.tracks.iter().map(|track| track.owed(published)).sum();
        owed.saturating_sub(self.in_flight())
    }

    pub(super) fn damage(&self) -> Vec<Damage> {
        self.damage.values().cloned().collect()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn segments(&self) -> u64 {
        crate::format::bytes::wide(self.tracks.len())
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.tracks.iter().map(|track| track.segment.header.size).sum()
    }

    pub(super) fn answer_count(&self) -> u64 {
        self.answers
    }

    /// The segments with answers that no sync has covered, and the number of the newest answer.
    pub(super) fn take_answered(&mut self) -> (u64, Vec<Arc<Segment>>) {
        self.has_asked_for_sync = false;
        let answered = self.tracks.iter_mut().filter(|track| track.has_new_answers);
        let take = |track: &mut Track| {
            track.has_new_answers = false;
            Arc::clone(&track.segment)
        };
        (self.answers, answered.map(take).collect())
    }

    /// Takes out the tracks in which nothing is owed. The newest segment stays: its header says
    /// how far numbers went.
    pub(super) fn take_done(&mut self) -> Vec<Track> {
        let newest = self.tracks.back().map_or(0, Track::ordinal);
        let tracks = std::mem::take(&mut self.tracks).into_iter();
        let (done, kept): (Vec<Track>, Vec<Track>) =
            tracks.partition(|track| track.is_done() && track.ordinal() != newest);
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
        !self.returned.is_empty() || self.tracks.back().is_some_and(is_behind)
    }

    /// Counts some slots of earlier runs; false once all are counted.
    pub(super) fn count_some(&mut self) -> Result<bool> {
        match self.tracks.iter_mut().find(|track| !track.is_counted()) {
            Some(track) => track.count_some(),
            None => Ok(false),
        }
    }

    /// Where the track of a segment is; most are at one of the ends.
    fn position(&self, ordinal: u64) -> Option<usize> {
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
        if self.is_closed {
            return Err(Error::Closed);
        }
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
        let offset = next.place.offset + next.header.record_len();
        let leased = self.lease(next)?;
        let index = self.cursor.index + 1;
        self.cursor = Cursor { index, offset, previous: None, ..self.cursor };
        Ok(Some(leased))
    }

    /// A message that was given back; `None` if its header got damaged meanwhile.
    fn look_again(&mut self, place: Place) -> Result<Option<Next>> {
        let Some(at) = self.position(place.ordinal) else { return Ok(None) };
        let track = &mut self.tracks[at];
        let base_time = track.base_time;
        let mapped = Arc::clone(track.map()?);
        if let Some(header) = mapped.header(place.offset, place.index) {
            return Ok(Some(Next { place, header, mapped, base_time, at }));
        }
        self.lose(&mapped, place.seq, place.index, place.offset)?;
        Ok(None)
    }

    /// The next message that is owed and was not handed out in this run. Leaves the cursor at it.
    fn find_next(&mut self, published: u64) -> Result<Option<Next>> {
        loop {
            let Cursor { ordinal, index, offset, previous, has_skipped } = self.cursor;
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
            let (is_old, base_time) = (track.is_old, track.base_time);
            let seq = track.first_seq + u64::from(index);
            let mapped = Arc::clone(track.map()?);
            let slot = match mapped.slot(index)? {
                Some(slot) => slot,
                None => self.rebuild_slot(&mapped, index, seq)?,
            };
            if slot.is_settled(is_old) {
                let settled = slot.offset.map(|offset| (index, offset));
                self.cursor.previous = settled.or(previous);
                self.cursor.index += 1;
                continue;
            }
            let at_slot = slot.offset.and_then(|at| Some((at, mapped.header(at, index)?)));
            let located = match at_slot {
                Some((at, header)) => Located::At(at, header),
                None => Track::locate(&mapped, index, end_index, offset, previous),
            };
            match located {
                Located::At(offset, header) if header.flags.is_transient() && is_old => {
                    self.settle_silently(&mapped, index, offset, State::Dead)?;
                    self.cursor.previous = Some((index, offset));
                    self.cursor.index += 1;
                }
                Located::At(offset, header) => {
                    let is_transient = header.flags.is_transient();
                    let attempts = slot.attempts;
                    let place = Place { seq, ordinal, index, offset, attempts, is_transient };
                    return Ok(Some(Next { place, header, mapped, base_time, at }));
                }
                Located::Lost { end_index: end, next } => {
                    for lost in index..end {
                        self.lose(&mapped, seq + u64::from(lost - index), lost, offset)?;
                    }
                    let cursor = Cursor { index: end, offset: next, ..self.cursor };
                    self.cursor = Cursor { previous: None, ..cursor };
                }
            }
        }
    }

    /// A slot that was never written to this place counts as delivered once.
    fn rebuild_slot(&mut self, mapped: &Mapped, index: u32, seq: u64) -> Result<Slot> {
        let offset = slot::offset(mapped.segment.header.size, index);
        self.list_damage(mapped, seq, offset, DamageKind::Slot);
        let rebuilt = Slot { state: State::Delivered, attempts: 1, offset: None };
        mapped.store_slot(index, rebuilt)?;
        Ok(rebuilt)
    }

    /// Stores the attempt and begins the lease.
    fn lease(&mut self, next: Next) -> Result<Leased> {
        let Next { place, header, mapped, base_time, at } = next;
        let place = Place { attempts: place.attempts.saturating_add(1), ..place };
        mapped.store_slot(place.index, owed_slot(&place))?;
        let track = &mut self.tracks[at];
        track.leased += 1;
        track.note_answer();
        let ticket = self.leases.begin(place);
        let Place { seq, attempts, offset, .. } = place;
        let pushed_at = base_time + u64::from(header.age);
        Ok(Leased { ticket, seq, attempts, offset, pushed_at, mapped, header })
    }

    /// Ends a lease as its holder says; true if its segment has nothing left that is owed.
    pub(super) fn settle(&mut self, ticket: Ticket, answer: Answer) -> Result<bool> {
        if self.is_closed {
            return Err(Error::Closed);
        }
        // A lease ends only through its own delivery, which is consumed by that.
        let place = self.leases.end(ticket).ok_or(Error::Closed)?;
        self.answers += 1;
        let track = self.track(place.ordinal).ok_or(Error::Closed)?;
        track.leased -= 1;
        let stored = match answer {
            Answer::Nack => Ok(()),
            Answer::Ack => {
                let dead = Slot { state: State::Dead, ..owed_slot(&place) };
                track.map().and_then(|mapped| mapped.store_slot(place.index, dead))
            }
            Answer::Release => {
                let place = Place { attempts: place.attempts - 1, ..place };
                track.map().and_then(|mapped| mapped.store_slot(place.index, owed_slot(&place)))
            }
        };
        if answer == Answer::Ack && stored.is_ok() {
            track.settle(place.index);
            return Ok(track.is_done());
        }
        let uncounted = u32::from(answer == Answer::Release && stored.is_ok());
        self.returned.insert(place.seq, Place { attempts: place.attempts - uncounted, ..place });
        stored.map(|()| false)
    }

    /// The payload of a leased message turned out to be damaged.
    pub(super) fn lose_leased(&mut self, leased: &Leased) -> Result<()> {
        if let Some(Place { seq, ordinal, index, offset, .. }) = self.leases.end(leased.ticket) {
            if let Some(track) = self.track(ordinal) {
                track.leased -= 1;
            }
            self.lose(&leased.mapped, seq, index, offset)?;
        }
        Ok(())
    }

    fn lose(&mut self, mapped: &Mapped, seq: u64, index: u32, offset: u64) -> Result<()> {
        self.settle_silently(mapped, index, offset, State::Lost)?;
        self.lost += 1;
        self.list_damage(mapped, seq, offset, DamageKind::Corrupt);
        Ok(())
    }

    fn settle_silently(
        &mut self,
        mapped: &Mapped,
        index: u32,
        offset: u64,
        state: State,
    ) -> Result<()> {
        mapped.store_slot(index, Slot { state, attempts: 0, offset: Some(offset) })?;
        if let Some(track) = self.track(mapped.segment.header.ordinal) {
            track.settle(index);
        }
        Ok(())
    }

    fn list_damage(&mut self, mapped: &Mapped, seq: u64, offset: u64, kind: DamageKind) {
        let is_listed = self
            .damage
            .range(..=seq)
            .next_back()
            .is_some_and(|(_, listed)| listed.last >= seq && listed.kind == kind);
        if !is_listed && self.damage.len() < LISTED_DAMAGE {
            let path = mapped.segment.path.clone();
            self.damage.insert(seq, Damage { first: seq, last: seq, path, offset, kind });
        }
    }

    /// Whether the worker has to be asked to sync answers some time soon.
    pub(super) fn asks_for_sync(&mut self) -> bool {
        !std::mem::replace(&mut self.has_asked_for_sync, true)
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
