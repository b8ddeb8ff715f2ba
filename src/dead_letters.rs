//! Moving messages between a queue and its dead letters: the only place that knows two engines.
//!
//! A message dies in three steps: its slot says *dying*, so that no consumer gets it any more; it
//! is pushed to the queue in `dead/`, with where it comes from; once that is durable, its slot says
//! *dead*. Promises: a message that is dying is neither handed out nor lost, however long `dead/`
//! refuses it; after a kill or a power cut it goes on where it was, and is in `dead/` once. For
//! that, a dead letter is shown to consumers only once its message is settled here *durably*. If it
//! were taken and acked earlier, a crash could bring the message back, and it would be moved again.
//!
//! One thread moves at a time (the `mover` lock, taken before all locks of both engines but
//! `closing`), and none of this is done when a delivery is dropped.

mod carried;
mod redrive;

use crate::engine::{Cause, DyingMessage, Engine, Identity, Need, Promise, RETRY_AFTER, Setting};
use crate::error::{Error, Result};
use crate::format::extension::{self, Notes, Origin, Verified};
use crate::format::{name, record};
use crate::options::Options;
use crate::time::{Millis, Time};
use carried::carried_over;
use parking_lot::Mutex;
use redrive::Redrive;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Messages moved by the background between two looks at what is due.
const MOVED_AT_ONCE: usize = 1024;

/// Where `max_bytes` leaves no room and all messages that are left are dying, one may still be
/// moved, since its segment goes once all of it is: dead letters take up to this many times the
/// bytes of that segment above the limit. Twice, because one of them may take nearly twice its
/// bytes in a segment of the smallest size.
const PASSED_SEGMENTS: u64 = 2;

/// The dead letters of a queue.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    /// The queue where messages die.
    queue: Arc<Engine>,
    setting: Setting,
    /// The queue in `dead/`, once it was needed.
    open: Mutex<Option<Arc<Engine>>>,
    mover: Mutex<Mover>,
}

/// What the thread that moves messages remembers.
#[derive(Debug, Default)]
struct Mover {
    /// The messages here were compared with the letters that earlier runs left in `dead/`.
    has_matched: bool,
    /// Those of these letters whose messages are not settled here, each with its number in `dead/`.
    earlier: BTreeMap<Identity, u64>,
    /// How far the last step of moving got; 0 if it tried all, so that the next one begins with
    /// the oldest.
    tried_up_to: u64,
}

impl Mover {
    /// The number in `dead/` of a message that an earlier run moved there: a crash may have undone
    /// what is known of it here.
    fn known_there(&self, message: &DyingMessage) -> Option<u64> {
        self.earlier.get(&(message.place.seq, message.pushed_at.utc())).copied()
    }
}

impl DeadLetters {
    pub(crate) fn new(queue: &Arc<Engine>, setting: Setting) -> Self {
        Self { queue: Arc::clone(queue), setting, open: Mutex::default(), mover: Mutex::default() }
    }

    /// The queue of dead letters: opened, or made, when it is first needed.
    pub(crate) fn engine(&self) -> Result<Arc<Engine>> {
        let mut open = self.open.lock();
        self.queue.check_open()?;
        if let Some(dead) = open.as_ref() {
            if dead.check_open().is_ok() {
                return Ok(Arc::clone(dead));
            }
            // After a failed sync it is not known what is there: not in this run.
            dead.check_health()?;
            // Another handle closes it: its directory is free once that is over.
            dead.close(|| Ok(())).ok();
        }
        let context = self.queue.context();
        let storage = context.storage.directory(name::DEAD);
        let storage = storage.map_err(|error| {
            Error::io("open directory", &context.storage.path(name::DEAD), 0, error)
        })?;
        let Setting { worker, space, .. } = &self.setting;
        let setting = Setting {
            worker: Arc::clone(worker),
            space: Arc::clone(space),
            is_for_dead_letters: true,
        };
        let dead = Engine::open(self.options(), storage, setting)?;
        // Nothing is shown before it is known which of them still have a message to settle.
        dead.published().hold_back_from(1);
        *open = Some(Arc::clone(&dead));
        Ok(dead)
    }

    fn options(&self) -> Options {
        let options = self.queue.options();
        Options {
            sync_acks: options.sync_acks,
            ack_sync: options.ack_sync,
            visibility_timeout: options.visibility_timeout,
            segment_bytes: options.segment_limit(),
            background: false,
            dead_letters: false,
            max_attempts: 0,
            compaction: options.compaction,
            open_segments: options.open_segments,
            first_seq: options.first_seq,
            shrink_after: options.shrink_after,
            clock: options.clock.clone(),
            ..Options::default()
        }
    }

    /// The queue of dead letters, if it is open.
    pub(crate) fn open_engine(&self) -> Option<Arc<Engine>> {
        self.open.lock().clone()
    }

    /// Opens them, if there were any when the queue was opened and they have not been opened since.
    pub(crate) fn open_if_any(&self) -> Result<()> {
        let is_due = self.queue.had_dead_letters() && self.open_engine().is_none();
        if is_due { self.engine().map(|_| ()) } else { Ok(()) }
    }

    /// The queue of dead letters, if there are any, or were when the queue was opened.
    pub(crate) fn engine_if_any(&self) -> Option<Arc<Engine>> {
        match self.open_engine() {
            Some(dead) if dead.check_open().is_ok() => Some(dead),
            None if !self.queue.had_dead_letters() => None,
            _ => self.engine().ok(),
        }
    }

    /// The queue of dead letters, for consumers. First finds out which messages an earlier run
    /// moved there and had no time to settle here.
    pub(crate) fn shown(&self) -> Result<Arc<Engine>> {
        let dead = self.with_room(|| self.engine())?;
        self.match_earlier(&dead, &mut self.mover.lock())?;
        // What cannot be moved is moved later.
        self.note(self.move_all());
        Ok(dead)
    }

    /// Returns true if a move is worth a try: something waits to be moved or settled, and the last
    /// failure is some time ago.
    fn is_worth_it(&self, durably: bool) -> bool {
        let context = self.queue.context();
        let may_try = context.move_again.get().is_none_or(|at| context.clock.is_past(at));
        may_try && self.queue.dying().are_pending(durably)
    }

    fn note(&self, result: Result<()>) {
        self.queue.context().health.note_background(result);
    }

    /// Moves dying messages, if that is worth a try; with `durably`, settles them, too.
    pub(crate) fn move_if_worth_it(&self, durably: bool) -> Result<()> {
        if !self.is_worth_it(durably) {
            return Ok(());
        }
        self.move_up_to(durably, MOVED_AT_ONCE)
    }

    /// Moves all that is dying, and settles it; but where much finds no room, some of it is tried.
    pub(crate) fn move_all(&self) -> Result<()> {
        self.move_up_to(true, usize::MAX)
    }

    /// A step of that for the background, if it is time: what was refused is tried again later, and
    /// the background asked to do so.
    pub(crate) fn move_in_time(&self) -> Result<()> {
        let context = self.queue.context();
        if !self.is_worth_it(true) && self.queue.dying().are_pending(true) {
            context.worker.ask_within(RETRY_AFTER);
            return Ok(());
        }
        self.move_up_to(true, MOVED_AT_ONCE)
    }

    /// For a push that was refused with this error: settles dying messages, or else gives back a
    /// file that the dead letters can do without. Returns true if there may be room now, and false
    /// once nothing of that is left to do. Fails if the dead letters are poisoned, so that nothing
    /// can be moved there, and no other answer can make room.
    pub(crate) fn make_room(&self, full: &Error) -> Result<bool> {
        if self.find_room(full) {
            return Ok(true);
        }
        self.check_movable(full).map(|()| false)
    }

    /// Fails if all that is unsettled waits to be moved, and nothing can be moved in this run.
    fn check_movable(&self, full: &Error) -> Result<()> {
        let dying = self.queue.dying().count();
        let is_full = matches!(full, Error::Full { .. });
        match self.open_engine() {
            Some(dead) if is_full && dying > 0 && self.queue.consumers().unsettled() <= dying => {
                dead.check_health()
            }
            _ => Ok(()),
        }
    }

    fn find_room(&self, full: &Error) -> bool {
        if self.is_worth_it(true) {
            let before = self.queue.dying().count();
            let moved = self.move_if_worth_it(true);
            let has_settled = moved.is_ok() || self.queue.dying().count() < before;
            self.note(moved);
            if has_settled {
                return true;
            }
        }
        // No file makes room for more messages.
        if matches!(full, Error::Full { limit: "max_messages", .. }) {
            return false;
        }
        // Their files are there, too, if another handle has closed them.
        let Some(dead) = self.engine_if_any() else { return false };
        let given_back = dead.producers().make_room_for_others();
        // A failure there is no concern of the producer here.
        let has_room = matches!(given_back, Ok(true));
        self.note(given_back.map(|_| ()));
        has_room
    }

    /// Moves up to `limit` dying messages to `dead/`. With `durably`, returns once they are settled
    /// here durably, and shown there. Messages that `dead/` refuses stay; a later call or the
    /// background tries them again.
    fn move_up_to(&self, durably: bool, limit: usize) -> Result<()> {
        if !self.queue.dying().are_pending(durably) {
            return Ok(());
        }
        let mut mover = self.mover.lock();
        let context = self.queue.context();
        // While this is under way, no thread that waits has to see to it.
        context.move_again.set(None);
        let mut result = self.move_dying(&mut mover, durably, limit);
        while matches!(result, Err(Error::Closed)) && self.queue.check_open().is_ok() {
            // Another handle has closed the dead letters meanwhile. They are opened again.
            result = self.move_dying(&mut mover, durably, limit);
        }
        let within = if result.is_err() { RETRY_AFTER } else { Duration::ZERO };
        let again = result.is_err().then(|| context.clock.coarse() + within.into());
        context.move_again.set(again);
        drop(mover);
        if result.is_err() || self.queue.dying().are_pending(durably) {
            context.worker.ask_within(within);
            // Without a background, a thread that waits goes on with it.
            context.died.note();
            self.queue.consumers().wake_to_watch();
        }
        result
    }

    fn move_dying(&self, mover: &mut Mover, durably: bool, limit: usize) -> Result<()> {
        let dead = self.with_room(|| self.engine())?;
        self.match_earlier(&dead, mover)?;
        let pushed = self.push_dying(&dead, mover, limit);
        let settled = if durably { self.settle_moved(&dead) } else { Ok(()) };
        pushed.and(settled)
    }

    /// Compares the letters that earlier runs left in `dead/` with the messages here: what is there
    /// is settled here, and not moved again. From then on the other letters are shown.
    ///
    /// Whatever the slots say, and however the last run ended: a power cut may have kept a letter
    /// and undone the death of its message, and none of the runs since may have compared them.
    fn match_earlier(&self, dead: &Engine, mover: &mut Mover) -> Result<()> {
        if !mover.has_matched {
            self.queue.consumers().count_all()?;
            mover.earlier = self.queue.dying().note_earlier(origins(dead)?)?;
            mover.has_matched = true;
        }
        self.show(dead, false);
        Ok(())
    }

    /// Shows the dead letters whose messages are settled here for good.
    fn show(&self, dead: &Engine, is_durable: bool) {
        let first_hidden = self.queue.dying().first_hidden(is_durable);
        if first_hidden != dead.published().held_back() {
            dead.published().hold_back_from(first_hidden);
            dead.consumers().wake_for_shown();
        }
    }

    fn settle_moved(&self, dead: &Engine) -> Result<()> {
        if !self.queue.dying().has_moved() {
            return Ok(());
        }
        let there = dead.published().newest();
        dead.sync()?;
        let (number, settled) = self.queue.dying().settle_moved(there);
        self.queue.commit().wait_answers(number)?;
        self.show(dead, true);
        settled
    }

    fn push_dying(&self, dead: &Engine, mover: &mut Mover, limit: usize) -> Result<()> {
        let (mut left, mut result) = (limit, Ok(()));
        // What is larger than something that found no room is not tried. After so many of those,
        // the next step goes on.
        let (mut too_large, mut passed_over) = (u32::MAX, 0);
        // Once around from where the last step ended: what cannot be moved does not hold up what is
        // behind it.
        let start = mover.tried_up_to;
        for (mut after, end) in [(start, u64::MAX), (0, start)] {
            while left > 0 && after < end && passed_over < MOVED_AT_ONCE {
                let Some(step) = self.queue.dying().next(after) else { break };
                (after, mover.tried_up_to) = (step.last, step.last);
                left = left.saturating_sub(step.looked_at);
                result = result.and(step.result);
                for message in step.messages {
                    let len = message.header.body_len;
                    let known = mover.known_there(&message);
                    let known = known.filter(|&there| !Self::is_gone(dead, there));
                    if len >= too_large && known.is_none() {
                        passed_over += 1;
                        continue;
                    }
                    match self.move_one(dead, known, message) {
                        Ok(()) => {}
                        Err(error @ (Error::Closed | Error::Poisoned { .. })) => return Err(error),
                        Err(error) => {
                            let no_room =
                                matches!(error, Error::Full { .. } | Error::StorageFull { .. });
                            too_large = if no_room { len } else { too_large };
                            result = result.and(Err(error));
                        }
                    }
                }
            }
        }
        if left > 0 && passed_over < MOVED_AT_ONCE {
            mover.tried_up_to = 0;
        }
        result
    }

    /// Whether a letter is there no more: a consumer has settled it, or it was lost.
    fn is_gone(dead: &Engine, there: u64) -> bool {
        let is_settled = dead.look(|inspect| inspect.is_settled(there));
        matches!(is_settled, Ok(true) | Err(Error::UnknownSeq { .. }))
    }

    /// `known`: its number there, if it is there already.
    fn move_one(&self, dead: &Engine, known: Option<u64>, message: DyingMessage) -> Result<()> {
        let seq = message.place.seq;
        // From here on it is not shown there.
        let there = known.unwrap_or_else(|| dead.published().newest() + 1);
        if dead.published().held_back() > there {
            dead.published().hold_back_from(there);
        }
        let there = known.map_or_else(|| self.push_one(dead, message), |there| Ok(Some(there)));
        match there {
            Ok(Some(there)) if self.queue.dying().note_moved(seq, there) => {}
            // It is not hidden, nor what others push there: there is nothing to settle here.
            Ok(_) | Err(_) => self.show(dead, false),
        }
        there.map(|_| ())
    }

    /// Its number there; `None` if it cannot be moved.
    fn push_one(&self, dead: &Engine, mut message: DyingMessage) -> Result<Option<u64>> {
        let DyingMessage { place, header, pushed_at, .. } = message;
        let body = message.body.take(&header, place.offset);
        let payload_start = match header.verify(&body) {
            Verified::Payload(start) => start,
            Verified::Damaged => return self.queue.dying().lose(place).map(|()| None),
            Verified::Newer => return self.queue.dying().set_aside(place).map(|()| None),
        };
        let (seq, attempts) = (place.seq, place.attempts);
        let death = &message.death;
        let guess = || self.guess_cause(&header, &body, pushed_at.time, attempts);
        let cause = death.cause.unwrap_or_else(guess).encode();
        let reason = death.reason.as_deref().unwrap_or("");
        let pushed_at = pushed_at.utc();
        let origin = Some(Origin { seq, pushed_at, attempts, cause, reason });
        let (start, payload) = body.split_at(payload_start);
        let draft = carried_over(start, &Notes { origin, ..Notes::default() }, payload)?;
        let drafts = [draft];
        let need = Need::of(&drafts);
        need.check()?;
        let append = || {
            let placed = dead.producers().append(&drafts, need, Promise::PLACED)?;
            Ok(Some(placed.first_seq()))
        };
        match self.with_room(append) {
            // Nobody can make room here but this. Once all messages of its segment are moved, that
            // gives back as much as they took.
            Err(Error::Full { limit: "max_bytes", .. }) if self.is_nothing_else_left() => {
                let above = PASSED_SEGMENTS * self.queue.dying().segment_bytes(seq);
                dead.context().space.above_limit(above, append)
            }
            moved => moved,
        }
    }

    /// Makes something in `dead/`. On a full disk the queue gives up for it what it can do without.
    fn with_room<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let full = match attempt() {
                Err(full @ Error::StorageFull { .. }) => full,
                made => return made,
            };
            let given_back = self.queue.producers().make_room_for_others();
            // A failure there is no concern of who makes this.
            let has_room = matches!(given_back, Ok(true));
            self.note(given_back.map(|_| ()));
            if !has_room {
                return Err(full);
            }
        }
    }

    /// Whether no message is left in the queue that somebody could settle.
    fn is_nothing_else_left(&self) -> bool {
        self.queue.consumers().unsettled() <= self.queue.dying().count()
    }

    /// The likely cause of death of a message that an earlier run left dying. The slot does not say
    /// why, so the options of this run have to do.
    fn guess_cause(
        &self,
        header: &record::RecordHeader,
        body: &[u8],
        pushed_at: Time,
        attempts: u32,
    ) -> Cause {
        let options = self.queue.options();
        let own = header.flags.has_extensions().then(|| extension::notes(body).expires).flatten();
        let ttl = options.message_ttl.map(|ttl| pushed_at.saturating_add(Millis::from(ttl)));
        let expires = Time::earlier(own, ttl);
        if options.max_attempts > 0 && attempts >= options.max_attempts {
            Cause::Attempts
        } else if expires.is_some_and(|time| self.queue.context().clock.is_past(time)) {
            Cause::Expired
        } else {
            Cause::Rejected
        }
    }

    /// Pushes up to `limit` dead letters again, as new messages; tells how many.
    pub(crate) fn redrive(&self, limit: u64) -> Result<u64> {
        let mut dead = self.shown()?;
        // Those that come meanwhile are for the next time.
        let mut redrive = Redrive::of(limit.min(dead.consumers().ready()));
        loop {
            match redrive.push_some(&self.queue, &dead) {
                Ok(true) => {}
                Ok(false) => break,
                // Another handle of the dead letters closed them, not this queue.
                Err(Error::Closed) if self.queue.check_open().is_ok() => {
                    redrive.forget_leases();
                    dead = self.shown()?;
                }
                Err(error) => {
                    redrive.end(&dead).ok();
                    return Err(error);
                }
            }
        }
        redrive.end(&dead).map(|()| redrive.pushed())
    }

    /// Ends the dead letters with their queue.
    pub(crate) fn close(&self) -> Result<()> {
        let Some(dead) = self.open_engine() else { return Ok(()) };
        match dead.close(|| Ok(())) {
            // By its own handle, which was told.
            Err(Error::Closed) => Ok(()),
            result => result,
        }
    }
}

/// The origins of the letters that `dead/` holds, each with the letter's number there.
fn origins(dead: &Engine) -> Result<BTreeMap<Identity, u64>> {
    let mut origins = BTreeMap::new();
    let mut walk = dead.inspect().walk_unsettled();
    while let Some(letter) = dead.look(|inspect| inspect.walk_on(&mut walk))? {
        let start = letter.body.get(..letter.payload_start).unwrap_or_default();
        if let Some(origin) = extension::notes(start).origin {
            origins.insert((origin.seq, origin.pushed_at), letter.seq);
        }
    }
    Ok(origins)
}
