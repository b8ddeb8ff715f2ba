//! The way in: messages are numbered, stored and published under one short lock.
//!
//! Promises: Seqs ascend without gaps within a run, in the order in which messages are published; a
//! batch is published whole; a message above a limit is refused before anything is written. Syncs
//! nothing but what it prepares. Refuses to make room: it says what is missing, and the engine
//! decides. Segments come from `prepare`.

mod leftovers;
mod prepare;
pub(crate) mod shrink;
mod supply;

use crate::time::{Millis, Shift, Time};
pub(crate) use leftovers::MOST_LEFTOVERS;
pub(super) use supply::FIRST_SEGMENT;
pub(crate) use supply::{Prepared, SupplyState};

use super::context::{Context, Padded};
use super::published::Published;
use super::settled_total::SettledTotal;
use super::signal::{DispatchGuard, DispatchLock};
use super::space::SMALLEST_SEGMENT;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::format::bytes::to_u64;
use crate::format::segment::{Seal, size_for};
use crate::format::slot::MAX_SEGMENT;
use crate::log::Segment;
use crate::log::active::{Active, Draft};
use crate::recovery::Log;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;
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
    unsealed: Padded<Mutex<Unsealed>>,
    /// How many records earlier runs left.
    records_before: u64,
    /// How many messages were found or made settled in this run.
    settled_total: SettledTotal,
    /// The time of the next look for expired messages.
    planned_look: Arc<AtomicU64>,
    /// Bytes of files that pushes took.
    taken_bytes: AtomicU64,
}

/// The segments of this run that have no seal: the active one, and those before it that are not
/// synced.
#[derive(Debug)]
pub(crate) struct Unsealed {
    active: Option<Active>,
    /// No longer pushed to; oldest first.
    full: VecDeque<Full>,
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

/// A segment that is no longer pushed to. Its map is not kept: with its pages unmapped, a sync
/// need not write-protect each of them on all processors.
#[derive(Clone, Debug)]
pub(crate) struct Full {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first_seq: u64,
    pub(crate) seal: Seal,
}

impl Full {
    /// Fails if what failed batches left behind its tail cannot be erased: that could be taken for
    /// the end of the log, in front of what later segments hold.
    fn of(active: &mut Active) -> Result<Self> {
        active.erase_remains()?;
        let segment = Arc::clone(active.segment());
        Ok(Self { segment, first_seq: active.first_seq(), seal: active.seal(false) })
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.seal.count) - 1
    }
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

/// What became of messages that were to be appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Appended {
    /// They are published, and this is the Seq of the first.
    At(u64),
    /// The active segment has no room for them.
    NeedsSegment,
}

impl Unsealed {
    fn new(log: &Log) -> Self {
        Self {
            active: None,
            full: VecDeque::new(),
            next_seq: log.next_seq,
            first_seq: log.next_seq,
            is_closed: false,
            is_over: false,
            sync_within: None,
            last_of_earlier_runs: log.last_seq,
            newest_time: log.newest_time,
            look_at: Time::ZERO,
            has_asked_for_supply: false,
        }
    }

    pub(crate) fn full(&self) -> &VecDeque<Full> {
        &self.full
    }

    pub(crate) fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// The oldest full segment is sealed.
    pub(super) fn pop_full(&mut self) {
        self.full.pop_front();
    }

    /// A round of syncs begins: a later push with an interval asks again.
    pub(super) fn forget_interval(&mut self) {
        self.sync_within = None;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Messages pushed since open.
    pub(crate) fn pushed(&self) -> u64 {
        self.next_seq - self.first_seq
    }

    /// The newest message, of this run or an earlier one.
    pub(crate) fn last_seq(&self) -> Option<u64> {
        if self.pushed() > 0 { Some(self.next_seq - 1) } else { self.last_of_earlier_runs }
    }

    pub(crate) fn newest_time(&self) -> Time {
        self.newest_time
    }

    /// Bytes of the records in the active segment.
    pub(crate) fn active_record_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, Active::record_bytes)
    }

    /// The push time: never before that of an earlier message.
    fn now(&mut self, clock: &Clock) -> Time {
        self.newest_time = self.newest_time.max(clock.coarse());
        self.newest_time
    }

    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// Fails if the directory, or a file that holds what was pushed and is not sealed, was removed
    /// by somebody else. Then nothing that is in them can be kept, so no sync is believed any more.
    #[cold]
    pub(crate) fn check_files(&self, context: &Context) -> Result<()> {
        context.check_directory()?;
        let full = self.full.iter().map(|full| &full.segment);
        full.chain(self.active.as_ref().map(Active::segment))
            .try_for_each(|segment| context.believe_name(segment))
    }

    /// Whether a next segment should be at hand: a quarter of the active one is used, or segments
    /// fill faster than they are synced. Not sooner, so that one may be recycled instead.
    fn wants_supply(&self) -> bool {
        let used = |active: &Active| active.used_bytes() * 4 >= active.segment().header.size;
        self.full.len() > 1 || self.active.as_ref().is_some_and(used)
    }

    /// Returns true if this segment is full, and has no seal yet.
    pub(crate) fn is_full(&self, segment: &Arc<Segment>) -> bool {
        self.full.iter().any(|full| Arc::ptr_eq(&full.segment, segment))
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
            unsealed: Padded(Mutex::new(Unsealed::new(log))),
            records_before: log.parts.iter().map(|part| u64::from(part.count)).sum(),
            settled_total: guard.ledger().settled_total().clone(),
            planned_look: Arc::clone(guard.ledger().expiry().planned()),
            taken_bytes: AtomicU64::new(0),
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

    /// Places and publishes `drafts` as one batch, if the active segment has room and no limit is
    /// in the way. `sync_within`: how soon the background has to sync them; `durable`: the newest
    /// Seq that a sync has covered.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there were too many messages then; [`Error::Closed`]; [`Error::Io`] or
    /// [`Error::StorageFull`] where stores are writes.
    pub(crate) fn append(
        &self,
        drafts: &[Draft<'_>],
        need: Need,
        sync_within: Option<Duration>,
        durable: u64,
    ) -> Result<Appended> {
        let mut unsealed = self.unsealed.lock();
        unsealed.check_open()?;
        let now = unsealed.now(&self.context.clock);
        if now >= unsealed.look_at {
            // Or else one that syncs nothing would not notice that they were removed.
            unsealed.look_at = now.saturating_add(LOOK_EVERY);
            unsealed.check_files(&self.context)?;
        }
        self.check_count(unsealed.pushed(), need.records)?;
        let first_seq = unsealed.next_seq;
        let unsynced = (first_seq - 1).saturating_sub(durable);
        let Some(active) = &mut unsealed.active else { return Ok(Appended::NeedsSegment) };
        // What a failed write left behind the tail could be taken for the end of the log.
        active.erase_remains()?;
        if !can_go_to(active, need, now, self.context.clock.shift()) {
            return Ok(Appended::NeedsSegment);
        }
        active.append(drafts, unsynced, now)?;
        unsealed.next_seq += need.records;
        let last_seq = unsealed.next_seq - 1;
        let are_plain = drafts.iter().all(Draft::is_plain);
        let guard = if are_plain { None } else { self.schedule(drafts, first_seq) };
        self.published.publish(last_seq);
        let consumers = &self.context.waiters.consumers;
        // Asked under the lock, which each consumer takes between registering and looking.
        let has_consumers = consumers.has_waiters();
        let is_sooner = sync_within
            .filter(|&within| unsealed.sync_within.is_none_or(|already| within < already));
        if is_sooner.is_some() {
            unsealed.sync_within = is_sooner;
        }
        let asks = !unsealed.has_asked_for_supply && unsealed.wants_supply();
        unsealed.has_asked_for_supply |= asks;
        // In this order, so that wakers are called outside of all locks.
        drop(unsealed);
        drop(guard);
        if !are_plain || self.context.options.message_ttl.is_some() {
            self.watch_expiry(drafts, now);
        }
        if has_consumers {
            (0..need.records).for_each(|_| consumers.wake_one());
        }
        if let Some(within) = is_sooner {
            self.context.worker.sync_within(within);
        }
        if asks {
            self.context.worker.ask();
        }
        Ok(Appended::At(first_seq))
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
        if self.unsettled(pushed) + records > max {
            return Err(Error::Full { limit: "max_messages", max });
        }
        Ok(())
    }

    /// How many messages are unsettled, as far as is known. Messages that are not counted yet are
    /// taken for unsettled.
    fn unsettled(&self, pushed: u64) -> u64 {
        (self.records_before + pushed).saturating_sub(self.settled_total.get())
    }

    /// Goes on to a segment that has room: the one that is ready, or one that is made now.
    pub(crate) fn rotate(&self, need: Need) -> Result<()> {
        let mut supply = self.supply.lock();
        {
            let mut unsealed = self.unsealed.lock();
            unsealed.check_open()?;
            let now = unsealed.now(&self.context.clock);
            let shift = self.context.clock.shift();
            let fits = |active: &Active| can_go_to(active, need, now, shift);
            if unsealed.active.as_ref().is_some_and(fits) {
                return Ok(());
            }
            // A step of the clock, not a segment that is full: there may be many of them.
            let is_step = |active: &Active| active.segment().header.clock_shift != shift;
            if unsealed.active.as_ref().is_some_and(is_step) {
                supply.next_bytes = supply.next_bytes.min(IDLE_SEGMENT);
            }
        }
        supply.spare = Spare::Kept;
        let prepared = self.take_supply(&mut supply, need)?;
        self.go_on_to(supply, prepared)
    }

    /// Goes on to a segment that was prepared.
    fn go_on_to(&self, mut supply: MutexGuard<'_, Supply>, prepared: Prepared) -> Result<()> {
        let mut unsealed = self.unsealed.lock();
        let started = self.start_active(&mut unsealed, prepared.clone());
        let (full, active) = started.inspect_err(|_| supply.ready = Some(prepared))?;
        let mut dispatch = self.dispatch.lock();
        dispatch.backlog_mut().rotate(full.as_ref().map(|full| full.seal), &active);
        unsealed.full.extend(full);
        unsealed.active = Some(active);
        unsealed.has_asked_for_supply = false;
        // In this order, so that wakers are called outside of all locks.
        drop((unsealed, supply));
        drop(dispatch);
        self.context.worker.ask();
        Ok(())
    }

    /// Starts to use a segment; gives also the one that is active until then.
    fn start_active(
        &self,
        unsealed: &mut Unsealed,
        prepared: Prepared,
    ) -> Result<(Option<Full>, Active)> {
        unsealed.check_open()?;
        let full = unsealed.active.as_mut().map(Full::of).transpose()?;
        let now = unsealed.now(&self.context.clock);
        let Prepared { segment, region } = prepared;
        Ok((full, Active::start(segment, region, unsealed.next_seq, now)?))
    }

    /// From here on nothing is pushed.
    pub(crate) fn close(&self) {
        self.unsealed.lock().is_closed = true;
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
