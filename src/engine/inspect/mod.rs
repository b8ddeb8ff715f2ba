//! Looking at messages, and asking what became of them.
//!
//! Promises: a look changes nothing. It leaves messages that are damaged, expired or given up for
//! `pop`, and shows the message behind them that `pop` would hand out. A walk goes by Seq and holds
//! the dispatch lock for a few hundred slots at a time, so it goes on whatever is pushed, answered
//! or let go meanwhile.

mod figures;
mod stuck;
mod viewed;

use super::append::Appender;
use super::backlog::Met;
use super::backlog::cursor::Cursor;
use super::backlog::track::Track;
use super::backlog::{Body, FoundMessage, Lookup, Spot};
use super::context::Context;
use super::dispatch::{Dispatch, Policy, Whereabouts};
use super::published::Published;
use super::reclaim::Reclaim;
use super::signal::DispatchLock;
use crate::distribution::Distribution;
use crate::error::{Error, Result};
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::extension;
use crate::format::record::RecordHeader;
use crate::format::slot::State;
use crate::format::standing::Standing;
use crate::seq::Seq;
use crate::time::Time;
use std::sync::Arc;
use viewed::{DueTime, Unverified, view};

pub(crate) use viewed::Viewed;

/// Messages looked at under one lock.
const MESSAGES_A_STEP: usize = 512;

/// Looks at messages.
#[derive(Debug)]
pub(crate) struct Inspect {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    published: Arc<Published>,
    appender: Arc<Appender>,
    reclaim: Arc<Reclaim>,
}

/// What the rooms above know of a queue, for its figures.
#[derive(Clone, Debug)]
pub(crate) struct Others {
    /// Messages among the dead letters.
    pub(crate) dead_letters: u64,
    pub(crate) failed_pushes: u64,
    pub(crate) push_time: Distribution,
}

/// Which messages a walk shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    /// Neither settled, in flight nor dying.
    Waiting,
    /// All that are not settled.
    Unsettled,
}

/// Where a walk over messages is.
#[derive(Debug)]
pub(crate) struct Walk {
    cursor: Cursor,
    which: Which,
    /// The last message that it shows.
    last_seq: u64,
    is_over: bool,
}

/// A step of a look ahead.
enum AheadStep {
    Message(Unverified),
    /// Nothing that `pop` would hand out: there is more.
    Passed,
    /// The slots of this segment are not counted.
    Uncounted(Ordinal),
    End,
}

/// What is at the front of the queue.
#[derive(Debug)]
pub(crate) enum Front {
    /// The message that `pop` would hand out now.
    Message(Viewed),
    /// Nothing that `pop` would hand out: there is more.
    Passed,
    Nothing,
    /// The front is not known before the slots of the segment with this ordinal are counted.
    Uncounted(Ordinal),
}

/// How far a look for the message at the front has got: the order is that of `pop`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ahead {
    /// From this Seq on among those that were given back.
    Returned(u64),
    /// Behind this entry of the schedule.
    Due((Time, u64)),
    Cursor(Cursor),
}

impl Ahead {
    /// Nothing is looked at yet.
    pub(crate) const START: Self = Self::Returned(0);
}

impl Inspect {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        published: &Arc<Published>,
        appender: &Arc<Appender>,
        reclaim: &Arc<Reclaim>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            published: Arc::clone(published),
            appender: Arc::clone(appender),
            reclaim: Arc::clone(reclaim),
        }
    }

    /// A step of the look for the message that `pop` would hand out now.
    pub(crate) fn peek(&self, ahead: &mut Ahead) -> Result<Front> {
        let dispatch = self.dispatch.lock();
        dispatch.check_open()?;
        let step = self.look_ahead(&dispatch, ahead)?;
        drop(dispatch);
        Ok(match step {
            AheadStep::Message(unverified) => {
                self.view_if_fresh(unverified).map_or(Front::Passed, Front::Message)
            }
            AheadStep::Passed => Front::Passed,
            AheadStep::Uncounted(segment) => Front::Uncounted(segment),
            AheadStep::End => Front::Nothing,
        })
    }

    /// Goes on to the next message that may be at the front.
    fn look_ahead(&self, dispatch: &Dispatch, ahead: &mut Ahead) -> Result<AheadStep> {
        match ahead {
            Ahead::Returned(from) => {
                let visible = self.published.visible();
                let Some(seq) = dispatch.ledger().places().next_returned(*from, visible) else {
                    *ahead = Ahead::Due((Time::ZERO, 0));
                    return Ok(AheadStep::Passed);
                };
                let step = Self::unverified_by_seq(dispatch, seq)?;
                *from = seq + 1;
                Ok(step)
            }
            Ahead::Due(after) => {
                let schedule = dispatch.ledger().places().schedule();
                let Some(entry) = schedule.next_due(*after, self.published.visible()) else {
                    *ahead = Ahead::Cursor(*dispatch.ledger().places().cursor());
                    return Ok(AheadStep::Passed);
                };
                let step = Self::unverified_by_seq(dispatch, entry.1)?;
                *after = entry;
                Ok(step)
            }
            Ahead::Cursor(cursor) => {
                let wants = |standing| matches!(standing, Standing::Ready | Standing::Unreadable);
                let met = dispatch.backlog().walk(cursor, self.published.visible(), wants)?;
                if let Met::OldSegment(at) = met {
                    let track = dispatch.backlog().track_at(at);
                    if !track.is_counted() || dispatch.is_unfinished(track.ordinal()) {
                        return Ok(AheadStep::Uncounted(track.ordinal()));
                    }
                }
                match pass(dispatch, cursor, met)? {
                    Passed::End => Ok(AheadStep::End),
                    Passed::Message(found) if found.standing != Standing::Outlived => {
                        Unverified::ready(dispatch, &found).map(AheadStep::Message)
                    }
                    Passed::Message(_) | Passed::Other | Passed::Tired => Ok(AheadStep::Passed),
                }
            }
        }
    }

    /// A message by its number, unless it is settled, damaged or given up.
    fn unverified_by_seq(dispatch: &Dispatch, seq: u64) -> Result<AheadStep> {
        match dispatch.backlog().look_up(seq)? {
            Lookup::Found(found) if found.standing != Standing::Outlived => {
                Unverified::ready(dispatch, &found).map(AheadStep::Message)
            }
            _ => Ok(AheadStep::Passed),
        }
    }

    /// The message, if `pop` would hand it out: it is whole, has not expired, and has an attempt
    /// left.
    fn view_if_fresh(&self, unverified: Unverified) -> Option<Viewed> {
        let Unverified { header, due, .. } = unverified;
        let policy = *self.dispatch.lock().ledger().policy();
        if policy.is_last(unverified.attempts) {
            return None;
        }
        let viewed = view(unverified)?;
        let expires = policy.expires_at(&header, &viewed.body, viewed.pushed_at.time);
        let is_over = expires.is_some_and(|time| self.context.clock.is_past(time));
        (!is_over && self.due(due, &header, &viewed).is_none()).then_some(viewed)
    }

    /// The message, with the time before which it is not handed out.
    fn with_time(&self, due: DueTime, header: &RecordHeader, viewed: Viewed) -> Viewed {
        let due = self.due(due, header, &viewed);
        Viewed { not_before: due.map(|due| self.context.clock.utc(due)), ..viewed }
    }

    /// When a message that waits is due, if that time has not come.
    fn due(&self, due: DueTime, header: &RecordHeader, viewed: &Viewed) -> Option<Time> {
        let due = match due {
            DueTime::At(time) => Some(time),
            DueTime::ByRecord => self.due_by_record(header, viewed),
            DueTime::Now => None,
        };
        due.filter(|&due| !self.context.clock.is_past(due))
    }

    fn due_by_record(&self, header: &RecordHeader, viewed: &Viewed) -> Option<Time> {
        let Viewed { seq, pushed_at, ref body, .. } = *viewed;
        if !header.flags.has_extensions() {
            return None;
        }
        let start_time = self.context.run.is_old(seq).then_some(self.context.run.start_time);
        Policy::due_by_record(&extension::notes(body), pushed_at.time, start_time)
    }

    /// A message that is not settled; `None` if it is.
    pub(crate) fn get(&self, seq: u64) -> Result<Option<Viewed>> {
        let unknown = Error::UnknownSeq { seq: Seq(seq) };
        if self.is_settled(seq)? {
            return Ok(None);
        }
        // It may be settled, and its segment let go, at any moment.
        let gone = || if self.is_settled(seq)? { Ok(None) } else { Err(unknown) };
        let dispatch = self.dispatch.lock();
        dispatch.check_open()?;
        let Some(known) = self.status_of(&dispatch, seq)? else {
            drop(dispatch);
            return gone();
        };
        drop(dispatch);
        let Known { mapped, index, slot_offset, .. } = &known;
        // The record may be far from any that is known: no other thread waits for that.
        let near = slot_offset.and_then(|at| Some((at, mapped.header(at, *index)?)));
        let Some((offset, header)) = near.or_else(|| mapped.walk_to(*index)) else {
            return gone();
        };
        // Its slot could not tell.
        if header.flags.is_transient() && self.context.run.is_old(seq) && !known.is_dying {
            return Ok(None);
        }
        let due = known.due;
        let unverified = Unverified {
            seq,
            attempts: known.attempts,
            due,
            pushed_at: mapped.segment.push_time(&header, known.base_time),
            header,
            offset,
            body: Body::In(known.mapped),
        };
        let viewed = view(unverified).map(|viewed| self.with_time(due, &header, viewed));
        viewed.map_or_else(gone, |viewed| Ok(Some(viewed)))
    }

    fn status_of(&self, dispatch: &Dispatch, seq: u64) -> Result<Option<Known>> {
        let Some(at) = dispatch.backlog().tracks().position_of_seq(seq) else { return Ok(None) };
        let run = self.context.run;
        let track = dispatch.backlog().track_at(at);
        let end_index = track.records().end_index(self.published.newest());
        let Some(index) = track.records().index_of(seq)?.filter(|&index| index < end_index) else {
            return Ok(None);
        };
        let status = track.status(index, run)?;
        let base_time = track.base_time();
        let mapped = Arc::clone(track.map()?);
        let (attempts, slot_offset) = (status.slot.attempts, status.slot.offset);
        let spot = Spot { at, index };
        let whereabouts = dispatch.ledger().whereabouts(spot, seq, &status);
        let is_dying = matches!(whereabouts, Whereabouts::Dying);
        let due = match whereabouts {
            Whereabouts::Delayed(due) => DueTime::At(due),
            Whereabouts::Ready => DueTime::of_ready(dispatch, spot, seq, &status),
            Whereabouts::Settled => return Ok(None),
            Whereabouts::InFlight | Whereabouts::Dying | Whereabouts::SetAside => DueTime::Now,
        };
        Ok(Some(Known { mapped, index, slot_offset, attempts, base_time, due, is_dying }))
    }

    /// Starts a walk over the messages that wait now.
    pub(crate) fn walk(&self) -> Walk {
        Self::start_walk(Which::Waiting, self.published.visible())
    }

    /// Starts a walk over all messages that are not settled.
    pub(crate) fn walk_unsettled(&self) -> Walk {
        Self::start_walk(Which::Unsettled, self.published.newest())
    }

    fn start_walk(which: Which, last_seq: u64) -> Walk {
        Walk { cursor: Cursor::START, which, last_seq, is_over: false }
    }

    /// The next message of a walk; `None` at its end. What is damaged is left out.
    pub(crate) fn walk_on(&self, walk: &mut Walk) -> Result<Option<Viewed>> {
        while !walk.is_over {
            let dispatch = self.dispatch.lock();
            dispatch.check_open()?;
            let met = Self::walk_some(&dispatch, walk);
            drop(dispatch);
            let Some(unverified) = met? else { continue };
            let viewed = match walk.which {
                Which::Waiting => {
                    let policy = *self.dispatch.lock().ledger().policy();
                    let Unverified { header, due, .. } = unverified;
                    let fresh = view(unverified).filter(|viewed| {
                        let expires =
                            policy.expires_at(&header, &viewed.body, viewed.pushed_at.time);
                        expires.is_none_or(|time| !self.context.clock.is_past(time))
                    });
                    fresh.map(|viewed| self.with_time(due, &header, viewed))
                }
                Which::Unsettled => view(unverified),
            };
            if viewed.is_some() {
                return Ok(viewed);
            }
        }
        Ok(None)
    }

    /// Some steps of a walk, up to the next message that it shows.
    fn walk_some(dispatch: &Dispatch, walk: &mut Walk) -> Result<Option<Unverified>> {
        for _ in 0..MESSAGES_A_STEP {
            let last_seq = walk.last_seq;
            let wants = |_| true;
            let met = dispatch.backlog().walk(&mut walk.cursor, last_seq, wants)?;
            let found = match pass(dispatch, &mut walk.cursor, met)? {
                Passed::Message(found) => found,
                Passed::Other => continue,
                Passed::Tired => return Ok(None),
                Passed::End => {
                    walk.is_over = true;
                    return Ok(None);
                }
            };
            let is_shown_at = match dispatch.ledger().whereabouts_of(&found)? {
                Whereabouts::Delayed(due) => Some(DueTime::At(due)),
                Whereabouts::Ready => return Unverified::ready(dispatch, &found).map(Some),
                Whereabouts::Settled => None,
                Whereabouts::InFlight | Whereabouts::Dying | Whereabouts::SetAside => {
                    (walk.which == Which::Unsettled).then_some(DueTime::Now)
                }
            };
            let Some(due) = is_shown_at else { continue };
            return Unverified::of(dispatch, &found, due).map(Some);
        }
        Ok(None)
    }

    /// Whether message `seq` will never be handed out again.
    pub(crate) fn is_settled(&self, seq: u64) -> Result<bool> {
        let unknown = Err(Error::UnknownSeq { seq: Seq(seq) });
        let dispatch = self.dispatch.lock();
        dispatch.check_open()?;
        // Read under the lock, so that the track of the newest message is there.
        let published = self.published.newest();
        if seq == 0 || seq > published {
            return unknown;
        }
        let run = self.context.run;
        let backlog = dispatch.backlog();
        let at = backlog.tracks().position_of_seq(seq);
        let at = at.filter(|&at| seq < backlog.tracks()[at].end_seq(published));
        let index = match at {
            Some(at) => backlog.track_at(at).records().index_of(seq)?,
            None => None,
        };
        let (Some(at), Some(index)) = (at, index) else {
            // What no segment has was settled, unless its number is lost; what a copy does not have
            // was settled before it was made, unless its number cannot be read there.
            let is_lost = match at {
                Some(at) => may_be_unreadable(backlog.track_at(at), seq)?,
                None => false,
            };
            let is_lost = is_lost || backlog.losses().unaccounted().contains(seq);
            return if is_lost { unknown } else { Ok(true) };
        };
        let status = backlog.track_at(at).status(index, run)?;
        if status.slot.state == State::Lost {
            return unknown;
        }
        Ok(status.standing.is_settled())
    }
}

/// What is known of a message before its record is found.
struct Known {
    mapped: Arc<crate::log::sealed::Mapped>,
    index: Index,
    slot_offset: Option<Offset>,
    attempts: u32,
    base_time: Time,
    due: DueTime,
    is_dying: bool,
}

/// What a walk has passed.
enum Passed {
    Message(FoundMessage),
    Other,
    /// Nothing yet: others should have their turn.
    Tired,
    End,
}

/// Moves a walk past what it met, and stores nothing.
fn pass(dispatch: &Dispatch, cursor: &mut Cursor, met: Met) -> Result<Passed> {
    match met {
        Met::Message(found) => {
            cursor.pass_found(&found);
            return Ok(Passed::Message(found));
        }
        Met::End => return Ok(Passed::End),
        Met::Tired => return Ok(Passed::Tired),
        Met::OldSegment(at) => {
            dispatch.backlog().skip_settled(at, cursor)?;
            return Ok(Passed::Tired);
        }
        Met::BadSlot(_) | Met::Unnumbered(_) => cursor.pass(None),
        Met::Lost(lost) => cursor.pass_lost(lost.indexes.end, lost.next),
    }
    Ok(Passed::Other)
}

/// Whether a copy may have this message at a place whose number cannot be read.
fn may_be_unreadable(track: &Track, seq: u64) -> Result<bool> {
    let index = track.records().index_from(seq)?;
    let count = track.count().unwrap_or(0);
    let before = index.previous().map_or(Ok(Some(0)), |before| track.records().seq(before))?;
    let here = if index < Index(count) { track.records().seq(index)? } else { Some(0) };
    Ok(before.is_none() || here.is_none())
}
