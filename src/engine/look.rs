//! Looking at messages without taking them.
//!
//! Promises: changes no message's state, but that what is met damaged or expired at the front is passed over
//! as `pop` would. A walk goes by Seq and holds the `deliver` lock for a few hundred slots at a time, so
//! it goes on whatever is pushed, answered or let go meanwhile.

use super::Engine;
use super::cursor::Cursor;
use super::deliver::Deliver;
use super::dying::Cause;
use super::next::{Body, Next};
use super::track::scheduled_for;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::extension::{self, Verified};
use crate::format::record;
use crate::format::slot::{Delay, Slot, State};
use crate::log::sealed::Located;
use crate::seq::Seq;

/// Slots looked at under one lock.
const STEP: u32 = 512;

/// A message that was looked at.
#[derive(Debug)]
pub(crate) struct Viewed {
    pub(crate) seq: u64,
    pub(crate) attempts: u32,
    pub(crate) pushed_at: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) payload_start: usize,
    /// Not handed out before this.
    pub(crate) due: Option<u64>,
}

/// Which messages a walk shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    /// Neither settled, in flight nor dying.
    Waiting,
    /// All that are not settled.
    Owed,
}

/// Where a walk over messages is.
#[derive(Debug)]
pub(crate) struct Walk {
    cursor: Cursor,
    which: Which,
    /// The last message it shows.
    last_seq: u64,
    is_over: bool,
}

/// What a step of a walk found: where it is, and what its slot says.
struct Sight {
    seq: u64,
    slot: Slot,
    due: Option<u64>,
    pushed_at: u64,
    header: record::Header,
    offset: u64,
    body: Body,
}

impl Engine {
    /// The message that `pop` would hand out now.
    pub(crate) fn peek(&self) -> Result<Option<Viewed>> {
        loop {
            let mut deliver = self.deliver.lock();
            deliver.check_open()?;
            deliver.take_back_due();
            let chosen = deliver.choose(self.newest_visible());
            let Some(next) = chosen? else {
                self.unlock(deliver);
                return Ok(None);
            };
            let is_dead = deliver.policy.is_last(next.place.attempts);
            let sight = deliver.sight_of(&next);
            self.unlock(deliver);
            let mut sight = sight?;
            match Self::view(&mut sight).filter(|_| !is_dead) {
                Some(viewed) if !self.is_over(&viewed, sight.header) => return Ok(Some(viewed)),
                // Damaged, over, or with its last attempt behind it: as `pop` would meet it.
                _ => self.pass_over(sight.seq)?,
            }
        }
    }

    /// A message that is not settled; `None` if it is.
    pub(crate) fn get(&self, seq: u64) -> Result<Option<Viewed>> {
        // It may have been settled, and let go, while this looked.
        let unknown = || match self.is_settled(seq) {
            Ok(true) => Ok(None),
            result => result.and(Err(Error::UnknownSeq { seq: Seq(seq) })),
        };
        if self.is_settled(seq)? {
            return Ok(None);
        }
        let mut deliver = self.deliver.lock();
        // It may have been settled, and let go, in this moment.
        let Some(at) = deliver.position_of_seq(seq) else { return Ok(None) };
        let track = &mut deliver.tracks[at];
        let end_index = track.end_index(self.newest_published());
        let Some(index) = track.index_of(seq)?.filter(|&index| index < end_index) else {
            return Ok(None);
        };
        let base_time = track.base_time;
        let mapped = track.map()?.clone();
        let slot = mapped.slot(index)?.unwrap_or(Slot::UNTOUCHED);
        let delay = mapped.delay(index, base_time)?;
        deliver.count_all_of(at)?;
        let due = deliver.waiting_until(seq, slot, delay);
        // The record may be far from any that is known: nobody waits for that.
        drop(deliver);
        let known = slot.offset.and_then(|at| Some((at, mapped.header(at, index)?)));
        let Some((offset, header)) = known.or_else(|| mapped.walk_to(index)) else {
            return unknown();
        };
        let mut sight = Sight {
            seq,
            slot,
            due: due.filter(|&due| due > 0),
            pushed_at: base_time + u64::from(header.age),
            header,
            offset,
            body: Body::In(mapped),
        };
        Self::view(&mut sight).map_or_else(unknown, |viewed| Ok(Some(viewed)))
    }

    /// Starts a walk over what waits now.
    pub(crate) fn walk(&self) -> Walk {
        self.start_walk(Which::Waiting)
    }

    fn start_walk(&self, which: Which) -> Walk {
        let last_seq = match which {
            Which::Waiting => self.newest_visible(),
            Which::Owed => self.newest_published(),
        };
        Walk { cursor: Cursor::START, which, last_seq, is_over: false }
    }

    /// The next message of a walk; `None` at its end. What is damaged is left out.
    pub(crate) fn walk_on(&self, walk: &mut Walk) -> Result<Option<Viewed>> {
        while !walk.is_over {
            let mut deliver = self.deliver.lock();
            deliver.check_open()?;
            deliver.take_back_due();
            let found = deliver.walk_some(walk);
            self.unlock(deliver);
            if let Some(mut sight) = found?
                && let Some(viewed) = Self::view(&mut sight)
                && (walk.which == Which::Owed || !self.is_over(&viewed, sight.header))
            {
                return Ok(Some(viewed));
            }
        }
        Ok(None)
    }

    /// Shows the Seq, and the part before the payload, of all that are owed.
    pub(super) fn for_each_owed(&self, mut each: impl FnMut(u64, &[u8])) -> Result<()> {
        let mut walk = self.start_walk(Which::Owed);
        while let Some(viewed) = self.walk_on(&mut walk)? {
            each(viewed.seq, viewed.body.get(..viewed.payload_start).unwrap_or_default());
        }
        Ok(())
    }

    /// `None` if it is damaged.
    fn view(sight: &mut Sight) -> Option<Viewed> {
        let body = sight.body.take(&sight.header, sight.offset);
        let payload_start = match sight.header.verify(&body) {
            Verified::Payload(start) => start,
            Verified::Newer | Verified::Damaged => return None,
        };
        let Sight { seq, slot, due, pushed_at, .. } = *sight;
        Some(Viewed { seq, attempts: slot.attempts, pushed_at, body, payload_start, due })
    }

    /// Whether its time is over.
    fn is_over(&self, viewed: &Viewed, header: record::Header) -> bool {
        let expires = self.expires_at(&header, &viewed.body, viewed.pushed_at);
        expires.is_some_and(|time| self.clock.is_past(time))
    }

    /// When a message's time is over, if ever.
    pub(super) fn expires_at(
        &self,
        header: &record::Header,
        body: &[u8],
        pushed_at: u64,
    ) -> Option<u64> {
        let own = header.flags.has_extensions().then(|| extension::notes(body).expires).flatten();
        let ttl = self.ttl_millis.map(|ttl| pushed_at.saturating_add(ttl));
        clock::earlier(own, ttl)
    }

    /// Has `pop` meet the message at the front, if it is still this one: it is damaged, or over.
    fn pass_over(&self, seq: u64) -> Result<()> {
        let mut deliver = self.deliver.lock();
        let next = deliver.choose(self.newest_visible())?;
        let Some(next) = next.filter(|next| next.place.seq == seq) else { return Ok(()) };
        if deliver.policy.is_last(next.place.attempts) {
            deliver.die(next.at, next.place, Cause::Attempts, None)?;
            deliver.leave_queue(&next);
            self.unlock(deliver);
            return Ok(());
        }
        let now = deliver.coarse_time();
        let leased = deliver.lease(&next, now)?;
        deliver.leave_queue(&next);
        self.unlock(deliver);
        // Whatever it is, it is not handed out.
        if let Some(taken) = self.copy_out(leased)? {
            self.answer([taken.given].into_iter(), &super::Answer::Release)?;
        }
        Ok(())
    }
}

impl Deliver {
    fn sight_of(&mut self, next: &Next) -> Result<Sight> {
        let track = &mut self.tracks[next.at];
        let pushed_at = track.base_time + u64::from(next.header.age);
        let body = Body::of(track.map()?, &next.header, next.place.offset);
        let (attempts, offset) = (next.place.attempts, next.place.offset);
        let slot = Slot { state: State::Ready, attempts, offset: Some(offset) };
        let (seq, header) = (next.place.seq, next.header);
        Ok(Sight { seq, slot, due: None, pushed_at, header, offset, body })
    }

    /// Some steps of a walk, up to the next message that it shows.
    fn walk_some(&mut self, walk: &mut Walk) -> Result<Option<Sight>> {
        for step in 0.. {
            if step == STEP {
                return Ok(None);
            }
            self.mind_maps();
            let Some(at) = self.resume(&mut walk.cursor)? else { break };
            let index = walk.cursor.index;
            let end_index = self.tracks[at].end_index(walk.last_seq);
            if index >= end_index {
                match self.tracks.get(at + 1) {
                    Some(next) => walk.cursor = Cursor::start_of(next),
                    None => break,
                }
                continue;
            }
            if self.tracks[at].first_seq + u64::from(index) > walk.last_seq {
                break;
            }
            // So that what is delayed is known.
            self.count_all_of(at)?;
            let sight = self.step(walk, at, end_index)?;
            if sight.is_some() || walk.is_over {
                return Ok(sight);
            }
        }
        walk.is_over = true;
        Ok(None)
    }

    /// Looks at one slot, and goes on behind it.
    fn step(&mut self, walk: &mut Walk, at: usize, end_index: u32) -> Result<Option<Sight>> {
        let Cursor { index, offset, previous, .. } = walk.cursor;
        let track = &mut self.tracks[at];
        let (base_time, first_seq) = (track.base_time, track.first_seq);
        let mapped = track.map()?;
        let Some(seq) = mapped.seq(index, first_seq)? else {
            walk.cursor.index += 1;
            walk.cursor.seq += 1;
            return Ok(None);
        };
        if seq > walk.last_seq {
            walk.is_over = true;
            return Ok(None);
        }
        let is_old = self.run.is_old(seq);
        let slot = mapped.slot(index)?.unwrap_or(Slot { attempts: 1, ..Slot::UNTOUCHED });
        if slot.is_settled(is_old) {
            let settled = slot.offset.map(|offset| (index, offset));
            walk.cursor.previous = settled.or(previous);
            walk.cursor.index += 1;
            walk.cursor.seq = seq + 1;
            return Ok(None);
        }
        let located = mapped.locate(slot, index, end_index, offset, previous);
        let (offset, header) = match located {
            Located::At(offset, header) => (offset, header),
            Located::Lost { end_index, next } => {
                let seq = seq + u64::from(end_index - index);
                let cursor = Cursor { seq, index: end_index, offset: next, ..walk.cursor };
                walk.cursor = Cursor { previous: None, ..cursor };
                return Ok(None);
            }
        };
        let behind = offset + header.record_len();
        let seq_behind = seq + 1;
        let cursor = Cursor { seq: seq_behind, index: index + 1, ..walk.cursor };
        walk.cursor = Cursor { offset: behind, previous: None, ..cursor };
        let delay = mapped.delay(index, base_time)?;
        let pushed_at = base_time + u64::from(header.age);
        let body = Body::of(mapped, &header, offset);
        if header.flags.is_transient() && is_old {
            return Ok(None);
        }
        let due = self.waiting_until(seq, slot, delay);
        if due.is_none() && walk.which == Which::Waiting {
            return Ok(None);
        }
        let due = due.filter(|&due| due > 0);
        Ok(Some(Sight { seq, slot, due, pushed_at, header, offset, body }))
    }

    /// Until when an owed message waits, 0 if it is ready; `None` if it is in flight or dying.
    pub(super) fn waiting_until(&self, seq: u64, slot: Slot, delay: Option<Delay>) -> Option<u64> {
        if slot.state == State::Dying {
            return None;
        }
        if self.returned.contains_key(&seq) {
            return Some(0);
        }
        let is_scheduled = |due: u64| self.schedule.contains(due, seq);
        let first = scheduled_for(delay, self.run.is_old(seq), self.run.start_time);
        let again = delay.map(|delay| delay.due);
        if let Some(due) = [again, first].into_iter().flatten().find(|&due| is_scheduled(due)) {
            return Some(if self.clock.is_past(due) { 0 } else { due });
        }
        // What has a delay is nowhere else; of the others, nobody has met what is behind the cursor's
        // position.
        (seq >= self.cursor.seq && first.is_none()).then_some(0)
    }
}
