//! The way in: messages are numbered, stored and published under one short lock.
//!
//! Promises: Seqs ascend without gaps within a run, in the order in which messages are published; a
//! batch is published whole; a message above a limit is refused before anything is written. Syncs
//! nothing but what it prepares. Refuses to make room: it says what is missing, and the engine
//! decides. Segments come from `prepare`.

mod by_write;
mod files;
mod full;
mod leftovers;
pub(crate) mod maker;
mod pace;
mod placed;
mod prepare;
pub(crate) mod shrink;
mod supply;
mod unsealed;
mod unsynced_part;

use crate::time::{Millis, Shift, Time};
pub(crate) use full::Full;
pub(crate) use leftovers::MOST_LEFTOVERS;
use pace::Pace;
pub(crate) use placed::{Placed, Promise};
pub(super) use supply::FIRST_SEGMENT;
pub(crate) use supply::{Prepared, SupplyState};
pub(crate) use unsynced_part::UnsyncedPart;

use super::context::{Context, Padded};
use super::published::Published;
use super::settled_total::SettledTotal;
use super::signal::{DispatchGuard, DispatchLock};
use super::space::SMALLEST_SEGMENT;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::format::segment::size_for;
use crate::format::slot::MAX_SEGMENT;
use crate::log::active::{Active, Placing, When};
use crate::log::draft::Draft;
use crate::log::stage::Stage;
use crate::options::Durability;
use crate::recovery::Log;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};
use supply::{IDLE_SEGMENT, Spare, Supply};

/// Messages of a batch that are scheduled before other threads have their turn.
const DELAYS_A_STEP: usize = 256;

/// After this time a push that syncs nothing looks whether its file is still there.
const LOOK_EVERY: Millis = Millis(100);

/// Where messages come in.
#[derive(Debug)]
pub(crate) struct Appender {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    published: Arc<Published>,
    supply: Mutex<Supply>,
    /// The step of a segment that is made ahead is over.
    made: Condvar,
    /// Taken by the thread that writes what is collected, before `unsealed`: an empty stage, which
    /// changes places with the one that is written.
    writing: Mutex<Stage>,
    unsealed: Padded<Mutex<Unsealed>>,
    /// About how many records wait to be written.
    collected: AtomicU64,
    /// How many records earlier runs left.
    records_before: u64,
    /// How many messages were found or made settled in this run.
    settled_total: SettledTotal,
    /// The time of the next look for expired messages.
    planned_look: Arc<AtomicU64>,
    /// Bytes of files that pushes took.
    taken_bytes: AtomicU64,
    pace: Pace,
}

/// The segments of this run that have no seal: the active one, and those before it that are not
/// synced.
#[derive(Debug)]
pub(crate) struct Unsealed {
    active: Option<Active>,
    /// No longer pushed to; oldest first.
    full: VecDeque<Full>,
    /// Records of the active segment before this offset were evicted.
    evicted: u64,
    /// How long pushes went to the last segment that was filled, and when they left it.
    last_fill_time: Option<Millis>,
    left_last_at: Option<Instant>,
    next_seq: u64,
    /// The first Seq of this run.
    first_seq: u64,
    is_closed: bool,
    /// The directory belongs, or will soon belong, to another handle.
    is_over: bool,
    /// The shortest interval that an unsynced message waits for.
    sync_within: Option<Duration>,
    last_of_earlier_runs: Option<u64>,
    newest_time: Time,
    /// When a push looks again whether its file is still there.
    look_at: Time,
    /// The worker knows that the active segment will be full soon.
    has_asked_for_supply: bool,
}

/// How much room messages need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    bytes: u64,
    records: u64,
}

impl Need {
    #[inline]
    pub(crate) fn of(drafts: &[Draft<'_>]) -> Self {
        let bytes = drafts.iter().map(Draft::record_len).sum();
        Self { bytes, records: to_u64(drafts.len()) }
    }

    /// # Errors
    ///
    /// [`Error::TooLarge`] if no segment can hold them.
    pub(crate) fn check(self) -> Result<()> {
        if self.segment_bytes() > MAX_SEGMENT {
            return Err(Error::TooLarge { len: self.bytes, max: MAX_SEGMENT });
        }
        Ok(())
    }

    pub(crate) fn records(self) -> u64 {
        self.records
    }

    /// What a segment of its own takes for them.
    pub(crate) fn segment_bytes(self) -> u64 {
        size_for(self.bytes, self.records)
    }
}

impl Appender {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        published: &Arc<Published>,
        log: &Log,
    ) -> Self {
        let guard = dispatch.lock();
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            published: Arc::clone(published),
            supply: Mutex::new(Supply::new(log, &context.options)),
            made: Condvar::new(),
            writing: Mutex::default(),
            unsealed: Padded(Mutex::new(Unsealed::new(log))),
            collected: AtomicU64::new(0),
            records_before: log.parts.iter().map(|part| u64::from(part.count)).sum(),
            settled_total: guard.ledger().settled_total().clone(),
            planned_look: Arc::clone(guard.ledger().expiry().planned()),
            taken_bytes: AtomicU64::new(0),
            pace: Pace::default(),
        }
    }

    /// The unsealed segments. While they are locked nothing is pushed.
    pub(crate) fn unsealed(&self) -> MutexGuard<'_, Unsealed> {
        self.unsealed.lock()
    }

    /// Bytes of files that pushes took since open.
    pub(crate) fn taken_bytes(&self) -> u64 {
        // Relaxed: a number by itself.
        self.taken_bytes.load(Ordering::Relaxed)
    }

    /// Places `drafts` as one batch, if no limit is in the way; `None` if the active segment has no
    /// room for them. They are published, unless the caller has to wait for the write of them.
    /// `durable`: the newest Seq that a sync has covered.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there were too many messages then; [`Error::Closed`]; [`Error::Io`] or
    /// [`Error::StorageFull`] where records are written.
    pub(crate) fn append(
        &self,
        drafts: &[Draft<'_>],
        need: Need,
        promise: Promise,
        durable: u64,
    ) -> Result<Option<Placed>> {
        let mut unsealed = self.unsealed.lock();
        if unsealed.is_written() {
            return self.append_by_write(unsealed, drafts, need, (promise, durable));
        }
        let how = (need, When::Now);
        let placed = self.place::<false>(&mut unsealed, drafts, how, durable)?;
        let Some(Placed { first_seq, .. }) = placed else { return Ok(None) };
        self.publish_placed(unsealed, (), drafts, promise);
        Ok(Some(Placed::new(first_seq, None)))
    }

    /// Places `drafts` if the active segment has room for them.
    #[inline]
    fn place<const WRITTEN: bool>(
        &self,
        unsealed: &mut Unsealed,
        drafts: &[Draft<'_>],
        (need, when): (Need, When),
        durable: u64,
    ) -> Result<Option<Placed>> {
        unsealed.check_open()?;
        let now = unsealed.now(&self.context.clock);
        if now >= unsealed.look_at {
            // Or else one that syncs nothing would not notice that they were removed.
            unsealed.look_at = now.saturating_add(LOOK_EVERY);
            unsealed.check_files(&self.context)?;
        }
        let first_seq = unsealed.next_seq;
        self.check_count(first_seq - unsealed.first_seq, need.records)?;
        let unsynced = (first_seq - 1).saturating_sub(durable);
        if WRITTEN && !unsealed.is_written() {
            // Another segment has come meanwhile; the caller finds that out, and comes again.
            return Ok(None);
        }
        let Some(active) = &mut unsealed.active else { return Ok(None) };
        // What a failed write left behind the tail could be taken for the end of the log.
        active.erase_remains()?;
        if !can_go_to(active, need, now, self.context.clock.shift()) {
            return Ok(None);
        }
        let placed = Placed::new(first_seq, active.append::<WRITTEN>(drafts, unsynced, now, when)?);
        if !WRITTEN || placed.refused().is_none() {
            unsealed.next_seq += need.records;
        }
        Ok(Some(placed))
    }

    /// Publishes what was placed last, gives up the locks (`turn`: that to write, if it is held),
    /// and tells those whom it concerns.
    #[inline]
    fn publish_placed<T>(
        &self,
        mut unsealed: MutexGuard<'_, Unsealed>,
        turn: T,
        drafts: &[Draft<'_>],
        promise: Promise,
    ) {
        let (end, records, now) = (unsealed.next_seq, to_u64(drafts.len()), unsealed.newest_time);
        let are_plain = drafts.iter().all(Draft::is_plain);
        let guard = if are_plain { None } else { self.schedule(drafts, end - records) };
        let consumers = self.publish(end - 1, records);
        let is_sooner = promise
            .sync_within()
            .filter(|&within| unsealed.sync_within.is_none_or(|already| within < already));
        if is_sooner.is_some() {
            unsealed.sync_within = is_sooner;
        }
        let asks = unsealed.takes_to_ask();
        // In this order, so that wakers are called outside of all locks.
        drop(unsealed);
        drop(turn);
        drop(guard);
        if !are_plain || self.context.options.message_ttl.is_some() {
            self.watch_expiry(drafts, now);
        }
        self.context.waiters.wake_consumers(consumers);
        if let Some(within) = is_sooner {
            self.context.worker.sync_within(within);
        }
        if asks {
            self.context.worker.ask();
        }
    }

    /// Publishes all up to this message. Gives how many consumers are to be woken for `records`
    /// more. Called with the lock of the unsealed segments, which each consumer takes between
    /// registering and looking.
    #[inline]
    fn publish(&self, last_seq: u64, records: u64) -> u64 {
        self.published.publish(last_seq);
        if self.context.waiters.consumers.has_waiters() { records } else { 0 }
    }

    /// Messages with a delay are known to have it before they can be seen. The guard is to be
    /// dropped once they are published, and outside of the lock of the unsealed segments.
    #[cold]
    fn schedule(&self, drafts: &[Draft<'_>], first_seq: u64) -> Option<DispatchGuard<'_>> {
        if drafts.iter().all(|draft| draft.due().is_none()) {
            return None;
        }
        let mut dispatch = self.dispatch.lock();
        for (seqs, step) in (first_seq..).step_by(DELAYS_A_STEP).zip(drafts.chunks(DELAYS_A_STEP)) {
            let schedule = dispatch.ledger_mut().places_mut().schedule_mut();
            for (seq, draft) in (seqs..).zip(step) {
                draft.due().into_iter().for_each(|due| schedule.put(due, seq));
            }
            dispatch.let_others_in();
        }
        Some(dispatch)
    }

    /// Plans a look for expired messages, if one of these can expire before the next one.
    #[cold]
    fn watch_expiry(&self, drafts: &[Draft<'_>], now: Time) {
        let ttl = self.context.options.message_ttl.map(Millis::from);
        let ttl = ttl.map(|ttl| now.saturating_add(ttl));
        let own = drafts.iter().filter_map(Draft::expires).min();
        let Some(expires) = Time::earlier(ttl, own) else { return };
        // Pairs with the fence in `FrontMessage::look`.
        fence(Ordering::SeqCst);
        if expires.0 < self.planned_look.load(Ordering::Relaxed) {
            self.dispatch.lock().ledger_mut().expiry_mut().note_expiring(expires);
        }
    }

    /// Fails if there would be too many unsettled messages. Called with the lock, so that nothing
    /// is pushed meanwhile. `pushed`: in this run.
    fn check_count(&self, pushed: u64, records: u64) -> Result<()> {
        let Some(max) = self.context.options.max_messages else { return Ok(()) };
        // Those that are not counted yet are taken for unsettled.
        let unsettled = (self.records_before + pushed).saturating_sub(self.settled_total.get());
        if unsettled + records > max {
            return Err(Error::Full { limit: "max_messages", max });
        }
        Ok(())
    }

    /// Goes on to a segment that has room: the one that is ready, or one that is made now.
    pub(crate) fn rotate(&self, need: Need) -> Result<()> {
        let has_room = |unsealed: &mut Unsealed| -> Result<bool> {
            unsealed.check_open()?;
            let (now, shift) = (unsealed.now(&self.context.clock), self.context.clock.shift());
            Ok(unsealed.active.as_ref().is_some_and(|active| can_go_to(active, need, now, shift)))
        };
        let mut supply = self.supply.lock();
        if has_room(&mut self.unsealed())? {
            return Ok(());
        }
        self.await_made(&mut supply);
        // Another thread had the lock meanwhile.
        if has_room(&mut self.unsealed())? {
            return Ok(());
        }
        let shift = self.context.clock.shift();
        let is_step = |active: &Active| active.segment().header.clock_shift != shift;
        // A step of the clock, not a segment that is full: there may be many of them.
        if self.unsealed().active().is_some_and(is_step) {
            supply.base_bytes = supply.base_bytes.min(IDLE_SEGMENT);
        }
        supply.spare = Spare::Kept;
        let prepared = self.take_supply(&mut supply, need)?;
        self.go_on_to(supply, prepared)
    }

    /// Goes on to a segment that was prepared.
    fn go_on_to(&self, mut supply: MutexGuard<'_, Supply>, prepared: Prepared) -> Result<()> {
        let mut staged = self.writing.lock();
        let mut unsealed = self.unsealed.lock();
        let (written, consumers) = self.write_out(&mut unsealed, &mut staged);
        let begun = match &written {
            Ok(()) => self.begin_segment(&mut unsealed, prepared.clone()).map(Some),
            Err(_) => Ok(None),
        };
        if matches!(begun, Ok(Some(_))) {
            supply.base_bytes = supply.prepared_bytes;
        } else {
            supply.ready = Some(prepared);
        }
        // In this order, so that wakers are called outside of all locks.
        drop((unsealed, staged, supply));
        let begun = begun.map(drop);
        self.context.waiters.tell_written(written.is_err(), consumers);
        begun?;
        self.context.worker.ask();
        written
    }

    /// Starts to use a segment. The guard is to be dropped outside of the lock of the unsealed
    /// segments.
    fn begin_segment(
        &self,
        unsealed: &mut Unsealed,
        prepared: Prepared,
    ) -> Result<DispatchGuard<'_>> {
        unsealed.check_open()?;
        let full = unsealed.active.as_mut().map(Full::of).transpose()?;
        let now = unsealed.now(&self.context.clock);
        let Prepared { segment, region } = prepared;
        let syncs_each_push = self.context.options.durability == Durability::Always;
        let is_written = syncs_each_push || region.stores_are_writes();
        let placing = if is_written { Placing::Written } else { Placing::Stored };
        let active = Active::start(segment, region, unsealed.next_seq, now, placing)?;
        if let Some(filled) = &unsealed.active {
            unsealed.last_fill_time = Some(now.since(filled.base_time()));
            unsealed.left_last_at = Some(clock::now());
        }
        let mut dispatch = self.dispatch.lock();
        dispatch.backlog_mut().rotate(full.as_ref().map(|full| full.seal), &active);
        unsealed.full.extend(full);
        unsealed.active = Some(active);
        (unsealed.evicted, unsealed.has_asked_for_supply) = (0, false);
        Ok(dispatch)
    }

    /// From here on nothing is pushed; what is collected is written.
    pub(crate) fn close(&self) {
        self.unsealed.lock().is_closed = true;
        // Those whose records they are hear of a failure.
        self.write_staged().ok();
    }

    /// Gives up the maps: from here on the directory may belong to another handle.
    pub(crate) fn clear(&self) {
        let mut unsealed = self.unsealed.lock();
        unsealed.is_over = true;
        unsealed.active = None;
        unsealed.full.clear();
    }
}

/// Whether messages can go to this segment: it has room, and the clock was not set since it was
/// made, so that its header says how far its times are ahead of UTC.
#[inline]
fn can_go_to(active: &Active, need: Need, now: Time, shift: Shift) -> bool {
    active.segment().header.clock_shift == shift && active.fits(need.bytes, need.records, now)
}

#[cfg(all(test, feature = "fault-injection"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail")]

    use super::supply::{Made, Making};
    use super::*;
    use crate::engine::futures::{self, engine};
    use crate::format::address::Ordinal;

    /// Of many producers that find a segment full, one goes on to the next. The others do not hurry
    /// the one after that, which is only begun.
    #[test]
    fn nobody_waits_for_a_segment_where_there_is_room() {
        let engine = engine();
        futures::push(&engine, b"message");
        let appender = &engine.appender;
        let made = Made { ordinal: Ordinal(9), size: 64 << 10 };
        appender.supply.lock().making = Making::UnderWay(made);
        std::thread::scope(|scope| {
            let draft = Draft::new(Vec::new(), b"message"[..].into()).unwrap();
            let rotated = scope.spawn(move || appender.rotate(Need::of(&[draft])));
            let is_awaited = || matches!(appender.supply.lock().making, Making::Awaited(_));
            while !rotated.is_finished() && !is_awaited() {
                std::thread::yield_now();
            }
            let was_awaited = is_awaited();
            appender.supply.lock().making = Making::Nothing;
            appender.made.notify_all();
            rotated.join().unwrap().unwrap();
            assert!(!was_awaited);
        });
    }
}
