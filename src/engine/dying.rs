//! Messages on their way to the dead letters.
//!
//! A message dies in three steps: its slot says *dying*, so that nobody is given it any more; it is pushed to
//! the queue in `dead/`, with where it comes from; once that is durable, its slot says *dead*. Promises: a
//! message that is dying is neither handed out nor lost, however long `dead/` refuses it; after a kill it
//! goes on where it was, and is in `dead/` once. Only one thread moves at a time (the `burial` lock, taken
//! before all others but `closing`), and nothing here is done by the drop of a delivery.

use super::deliver::Deliver;
use super::next::Body;
use super::{Engine, Role};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::extension::{self, Notes, Origin, Verified};
use crate::format::slot::{Slot, State};
use crate::format::{name, record};
use crate::leases::Place;
use crate::log::active::Draft;
use crate::options::Options;
use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Messages moved between two looks at what is to be done.
const STEP: usize = 64;
/// How soon the background tries again what `dead/` refused.
const RETRY: Duration = Duration::from_secs(1);

/// Why a message died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Rejected,
    Attempts,
    Expired,
}

impl Cause {
    pub(crate) fn encode(self) -> u8 {
        match self {
            Self::Rejected => 0,
            Self::Attempts => 1,
            Self::Expired => 2,
        }
    }
}

/// What is dying: some 40 bytes and the reason for each.
#[derive(Debug, Default)]
pub(super) struct Dying {
    /// Not yet in `dead/`, by Seq.
    waiting: BTreeMap<u64, Death>,
    /// There, but not known to be durable: with the Seq that it has there.
    moved: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug)]
struct Death {
    /// Not known of what an earlier run left: then its attempts tell.
    cause: Option<Cause>,
    reason: Option<Box<str>>,
}

impl Dying {
    pub(super) fn count(&self) -> u64 {
        crate::format::bytes::wide(self.waiting.len() + self.moved.len())
    }

    /// Whether one of these is among them.
    pub(super) fn has_any_in(&self, seqs: Range<u64>) -> bool {
        self.waiting.range(seqs.clone()).next().is_some() || self.moved.range(seqs).next().is_some()
    }

    /// The first number in `dead/` whose message is not settled; `u64::MAX` if there is none.
    fn first_moved(&self) -> u64 {
        self.moved.values().copied().min().unwrap_or(u64::MAX)
    }

    /// An earlier run left this one.
    pub(super) fn found(&mut self, seq: u64) {
        self.waiting.insert(seq, Death { cause: None, reason: None });
    }
}

/// What whoever moves messages remembers.
#[derive(Debug, Default)]
pub(super) struct Burial {
    /// Where what `dead/` held at its open comes from, with its number there; read when first needed.
    origins: Option<BTreeMap<u64, u64>>,
}

/// A message that is to be moved.
struct Corpse {
    place: Place,
    header: record::Header,
    pushed_at: u64,
    body: Body,
    death: Death,
}

impl Deliver {
    /// A message that is owed, and in no other place, dies; without dead letters it is settled.
    pub(super) fn die(
        &mut self,
        at: usize,
        place: Place,
        cause: Cause,
        reason: Option<&str>,
    ) -> Result<()> {
        if !self.policy.has_dead_letters {
            self.settle_silently(at, place.index, place.offset, State::Dead)?;
            self.counts.dropped += 1;
            return Ok(());
        }
        let (attempts, offset) = (place.attempts, Some(place.offset));
        let slot = Slot { state: State::Dying, attempts, offset };
        self.tracks[at].map()?.store_slot(place.index, slot)?;
        self.tracks[at].note_change(place.index);
        self.changes += 1;
        let death = Death { cause: Some(cause), reason: reason.map(Into::into) };
        self.dying.waiting.insert(place.seq, death);
        self.news.died = true;
        Ok(())
    }

    /// Some of those behind `after` that are not in `dead/` yet.
    fn next_corpses(&mut self, after: u64) -> Result<Vec<Corpse>> {
        let mut corpses = Vec::new();
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let waiting = self.dying.waiting.range(behind).map(|(seq, _)| *seq).take(STEP);
        let waiting: Vec<u64> = waiting.collect();
        for seq in waiting {
            // What turns out to be damaged is lost, and nothing is left to be moved.
            let Some(next) = self.look_up(seq)? else {
                self.dying.waiting.remove(&seq);
                continue;
            };
            let Some(death) = self.dying.waiting.get(&seq).cloned() else { continue };
            let track = &mut self.tracks[next.at];
            let pushed_at = track.base_time + u64::from(next.header.age);
            let body = Body::of(track.map()?, &next.header, next.place.offset);
            let (place, header) = (next.place, next.header);
            corpses.push(Corpse { place, header, pushed_at, body, death });
        }
        Ok(corpses)
    }

    /// All that was moved up to number `there` is durable there, and so settled here. Goes on after an
    /// error, and tells the first.
    fn settle_moved(&mut self, there: u64) -> Result<()> {
        let moved: Vec<(u64, u64)> = self.dying.moved.iter().map(|(a, b)| (*a, *b)).collect();
        let mut result = Ok(());
        for (seq, _) in moved.into_iter().filter(|&(_, number)| number <= there) {
            let settled = self.look_up(seq).and_then(|next| match next {
                Some(next) => {
                    let Place { index, offset, .. } = next.place;
                    self.settle_silently(next.at, index, offset, State::Dead)?;
                    self.counts.dead_lettered += 1;
                    Ok(())
                }
                None => Ok(()),
            });
            if settled.is_ok() {
                self.dying.moved.remove(&seq);
            }
            result = result.and(settled);
        }
        result
    }
}

impl Engine {
    /// Moves what is dying to `dead/`; with `durably`, returns when it is settled here. What `dead/`
    /// refuses stays, and is tried again by a later call, and by the background.
    pub(super) fn bury(&self, durably: bool) -> Result<()> {
        self.bury_some(durably, usize::MAX)
    }

    /// The same for so many at the most.
    pub(super) fn bury_some(&self, durably: bool, limit: usize) -> Result<()> {
        let is_pending = |deliver: &Deliver| {
            !deliver.dying.waiting.is_empty() || durably && !deliver.dying.moved.is_empty()
        };
        if !is_pending(&self.deliver.lock()) {
            return Ok(());
        }
        let mut burial = self.burial.lock();
        let moved = self.move_dying(&mut burial, durably, limit);
        let again = if moved.is_err() { self.clock.coarse() + clock::millis(RETRY) } else { 0 };
        // Relaxed: a hint.
        self.bury_again_at.store(again, Ordering::Relaxed);
        if moved.is_err() {
            self.worker.ask_within(RETRY);
        } else if is_pending(&self.deliver.lock()) {
            self.worker.ask();
        }
        moved
    }

    /// Whether it is worth trying, for whoever comes by.
    pub(super) fn may_bury_again(&self) -> bool {
        // Relaxed: a hint.
        let at = self.bury_again_at.load(Ordering::Relaxed);
        at == 0 || self.clock.is_past(at)
    }

    fn move_dying(&self, burial: &mut Burial, durably: bool, limit: usize) -> Result<()> {
        let dead = self.dead_letters()?;
        let moved = self.move_some(&dead, burial, limit);
        if durably {
            let there = dead.newest_published();
            dead.sync()?;
            let mut deliver = self.deliver.lock();
            let settled = deliver.settle_moved(there);
            // Before anybody can see that nothing is dying any more.
            // Release: pairs with the load in `newest_visible`.
            dead.held_back.store(deliver.dying.first_moved(), Ordering::Release);
            self.unlock(deliver);
            // Under this lock whoever waits has looked, or will look.
            drop(dead.deliver.lock());
            dead.readers.wake_one();
            settled?;
        }
        moved
    }

    fn move_some(&self, dead: &Arc<Self>, burial: &mut Burial, limit: usize) -> Result<()> {
        let (mut after, mut left, mut result) = (0, limit, Ok(()));
        // What is larger than something that found no room is not tried.
        let mut too_large = u32::MAX;
        while left > 0 {
            let mut deliver = self.deliver.lock();
            let corpses = deliver.next_corpses(after);
            self.unlock(deliver);
            let corpses = match corpses {
                Ok(corpses) => corpses,
                Err(error) => return result.and(Err(error)),
            };
            let Some(last) = corpses.last() else { break };
            after = last.place.seq;
            for corpse in corpses {
                let len = corpse.header.body_len;
                let known = self.known_there(dead, burial, &corpse);
                if len >= too_large && matches!(known, Ok(None)) {
                    continue;
                }
                left = left.saturating_sub(1);
                match known.and_then(|known| self.move_one(dead, known, corpse)) {
                    Ok(()) => {}
                    Err(error @ (Error::Closed | Error::Poisoned { .. })) => return Err(error),
                    // What cannot be moved does not hold up what is behind it.
                    Err(error) => {
                        let no_room =
                            matches!(error, Error::Full { .. } | Error::StorageFull { .. });
                        too_large = if no_room { len } else { too_large };
                        result = result.and(Err(error));
                    }
                }
            }
        }
        result
    }

    /// From here on what is pushed is not shown to consumers: here, a dead letter whose message has not been
    /// settled in its own queue. Were it taken and acked, and the process killed, nobody could tell that it was
    /// moved.
    fn hold_back(&self) {
        // Relaxed: only whoever has the `burial` lock stores.
        if self.held_back.load(Ordering::Relaxed) == u64::MAX {
            // Release: pairs with the load in `newest_visible`.
            self.held_back.store(self.newest_published() + 1, Ordering::Release);
        }
    }

    /// The number in `dead/` of a message that an earlier run moved there.
    fn known_there(
        &self,
        dead: &Self,
        burial: &mut Burial,
        corpse: &Corpse,
    ) -> Result<Option<u64>> {
        if !self.run.is_old(corpse.place.seq) {
            return Ok(None);
        }
        Ok(dead.held_origins(burial)?.get(&corpse.place.seq).copied())
    }

    /// `known`: its number there, if it is there already.
    fn move_one(&self, dead: &Arc<Self>, known: Option<u64>, mut corpse: Corpse) -> Result<()> {
        let Corpse { place, header, pushed_at, .. } = corpse;
        let Place { seq, attempts, .. } = place;
        let body = corpse.body.take(&header, place.offset);
        let payload_start = match header.verify(&body) {
            Verified::Payload(start) => start,
            Verified::Newer | Verified::Damaged => return self.lose_dying(place),
        };
        let there = if let Some(there) = known {
            there
        } else {
            let death = &corpse.death;
            let guess = || self.guess_cause(&header, &body, pushed_at, attempts);
            let cause = death.cause.unwrap_or_else(guess).encode();
            let reason = death.reason.as_deref().unwrap_or("");
            let origin = Some(Origin { seq, pushed_at, attempts, cause, reason });
            let notes = Notes { origin, ..Notes::default() };
            let (start, payload) = body.split_at(payload_start);
            let draft = Draft::new(extension::encode(extension::headers(start), &notes), payload);
            let max = record::MAX_BODY;
            dead.hold_back();
            dead.append(&[draft.ok_or(Error::TooLarge { len: max, max })?], None)?
        };
        let mut deliver = self.deliver.lock();
        deliver.dying.waiting.remove(&seq);
        deliver.dying.moved.insert(seq, there);
        Ok(())
    }

    /// A dying message turned out to be damaged.
    fn lose_dying(&self, place: Place) -> Result<()> {
        let mut deliver = self.deliver.lock();
        let lost = deliver.find_place(place).and_then(|found| match found {
            Some((at, place)) => deliver.lose_if_owed(at, place.index, place.offset),
            None => Ok(()),
        });
        if lost.is_ok() {
            deliver.dying.waiting.remove(&place.seq);
        }
        self.unlock(deliver);
        lost
    }

    /// Why a message died of which an earlier run left no more than that.
    fn guess_cause(
        &self,
        header: &record::Header,
        body: &[u8],
        pushed_at: u64,
        attempts: u32,
    ) -> Cause {
        let expires = self.expires_at(header, body, pushed_at);
        if self.options.max_attempts > 0 && attempts >= self.options.max_attempts {
            Cause::Attempts
        } else if expires.is_some_and(|time| self.clock.is_past(time)) {
            Cause::Expired
        } else {
            Cause::Rejected
        }
    }

    /// Where the messages come from that this queue of dead letters holds from earlier runs.
    fn held_origins<'b>(&self, burial: &'b mut Burial) -> Result<&'b BTreeMap<u64, u64>> {
        if burial.origins.is_none() {
            let mut origins = BTreeMap::new();
            self.for_each_owed(|seq, start| {
                if let Some(origin) = extension::notes(start).origin {
                    origins.insert(origin.seq, seq);
                }
            })?;
            burial.origins = Some(origins);
        }
        Ok(burial.origins.get_or_insert_default())
    }

    /// The queue of dead letters, to be taken from. What an earlier run moved and had no time to settle here
    /// is settled before: once it is taken from there, nobody could tell that it was moved.
    pub(crate) fn settled_dead_letters(&self) -> Result<Arc<Self>> {
        let dead = self.dead_letters()?;
        self.count_old_tracks()?;
        if self.deliver.lock().dying.count() > 0 {
            let origins = dead.held_origins(&mut self.burial.lock()).map(|_| ());
            self.health.note_background(origins);
            // What cannot be moved is moved later.
            self.health.note_background(self.bury(true));
        }
        Ok(dead)
    }

    /// The queue of dead letters: opened, or made, when it is first needed.
    pub(super) fn dead_letters(&self) -> Result<Arc<Self>> {
        if !self.options.dead_letters {
            return Err(Error::Disabled {
                operation: "dead letters",
                option: "dead_letters(false)",
            });
        }
        let mut open = self.dead.lock();
        self.check_open()?;
        if let Some(dead) = open.as_ref() {
            if dead.check_open().is_ok() {
                return Ok(Arc::clone(dead));
            }
            // After a failed sync nobody knows what is there: not in this run.
            dead.health.check(false)?;
        }
        let storage = self.storage.directory(name::DEAD);
        let storage = storage.map_err(|error| {
            Error::io("open directory", &self.storage.path(name::DEAD), 0, error)
        })?;
        let limit = self.options.segment_limit();
        let options = Options {
            sync_acks: self.options.sync_acks,
            ack_sync: self.options.ack_sync,
            visibility_timeout: self.options.visibility_timeout,
            segment_bytes: limit,
            background: false,
            dead_letters: false,
            max_attempts: 0,
            compaction: self.options.compaction,
            open_segments: self.options.open_segments,
            clock: self.options.clock.clone(),
            ..Options::default()
        };
        let (worker, space) = (Arc::clone(&self.worker), Arc::clone(&self.dead_space));
        let dead = Self::open_as(options, storage, Role::DeadLetters(worker), space)?;
        // What was moved, and is not settled, is not shown by this one either.
        // Release: pairs with the load in `newest_visible`.
        dead.held_back.store(self.deliver.lock().dying.first_moved(), Ordering::Release);
        *open = Some(Arc::clone(&dead));
        // Relaxed: as in `stats`.
        self.has_dead.store(true, Ordering::Relaxed);
        Ok(dead)
    }

    /// The queue of dead letters, if it is open.
    pub(super) fn open_dead_letters(&self) -> Option<Arc<Self>> {
        self.dead.lock().clone()
    }

    /// Pushes up to `limit` dead letters again, as new messages; tells how many.
    pub(crate) fn redrive(&self, limit: u64) -> Result<u64> {
        let dead = self.settled_dead_letters()?;
        // Those that come meanwhile are for the next time.
        let limit = limit.min(dead.ready());
        let mut redriven = 0;
        while redriven < limit {
            let step = usize::try_from(limit - redriven).unwrap_or(STEP).min(STEP);
            let letters = dead.pop_batch(step)?;
            if letters.is_empty() {
                break;
            }
            redriven += self.redrive_some(&dead, letters)?;
        }
        Ok(redriven)
    }

    fn redrive_some(&self, dead: &Self, letters: Vec<super::Taken>) -> Result<u64> {
        let (mut done, mut left, mut last_seq) = (Vec::new(), Vec::new(), 0);
        let mut pushed = Ok(());
        for letter in letters {
            let (start, payload) = letter.body.split_at(letter.payload_start);
            if pushed.is_ok() {
                let headers = extension::headers(start);
                let draft = Draft::new(extension::encode(headers, &Notes::default()), payload);
                let max = record::MAX_BODY;
                let draft = draft.ok_or(Error::TooLarge { len: max, max });
                let seq = draft.and_then(|draft| self.push(&[draft], None, super::WhenFull::Fail));
                pushed = seq.map(|seq| last_seq = seq);
            }
            if pushed.is_ok() { &mut done } else { &mut left }.push(letter.given);
        }
        let durable = if done.is_empty() { Ok(()) } else { self.wait_durable(last_seq) };
        if durable.is_err() {
            left.append(&mut done);
        }
        let count = crate::format::bytes::wide(done.len());
        let released = dead.answer(left.into_iter(), &super::Answer::Release);
        let acked = dead.answer(done.into_iter(), &super::Answer::Ack);
        durable.and(pushed).and(released).and(acked).map(|()| count)
    }
}
