//! Group commit: one thread syncs for all.
//!
//! A thread that waits for the disk is in one of three cases: another thread has synced for it,
//! another thread is syncing, or it has to sync itself. Promises: when a wait returns `Ok`, what it
//! waited for was stored before a sync that succeeded began; when a sync fails, every waiter hears
//! it. Where records are written, a round begins with a write of all that is collected. Full
//! segments are synced before the active one, oldest first, so that what survives a power cut is a
//! prefix. Holds no lock while it syncs.

use super::append::{Appender, Full, Placed, UnsyncedPart};
use super::context::{Context, Padded};
use super::signal::DispatchLock;
use super::wait::{Look, Soon};
use super::worker::Scope;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::segment::Seal;
use crate::io::Access;
use crate::log::Segment;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// In the place of the Seq that a thread waits for: it looks again after each round.
const ANY_ROUND: u64 = u64::MAX;

/// A leader waits for others for this part of the time that a round takes, at most.
const GATHER_PART: u32 = 4;

/// Who syncs, and what is durable.
#[derive(Debug)]
pub(crate) struct Commit {
    context: Arc<Context>,
    appender: Arc<Appender>,
    dispatch: Arc<DispatchLock>,
    leading: AtomicBool,
    /// Every Seq up to here is on the disk.
    durable: Padded<AtomicU64>,
    /// The answer with this number, and all before it, are on the disk.
    durable_answers: AtomicU64,
    /// How many records the next round is likely to have if it waits a little.
    expected: AtomicU64,
    /// How long the last round of syncs took, in nanoseconds.
    round_time: AtomicU64,
}

/// What a round of syncs makes durable.
struct Round {
    /// The segments that were pushed to.
    pushed: Vec<Arc<Segment>>,
    /// The older ones with answers.
    answered: Vec<Arc<Segment>>,
    /// Records before the place where pushes go on.
    unsynced: Option<UnsyncedPart>,
    published: u64,
    answers: Option<u64>,
    /// About how many records were written for it.
    gathered: u64,
}

/// The lead. Its drop gives the lead up, whatever happened, and wakes the threads that waited for
/// this round, and one that leads the next.
pub(crate) struct Lead<'a>(&'a Commit);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // SeqCst: pairs with the loads in `lead` and `wait_for_leader`. In the one order of such
        // operations, either a thread that is about to wait sees this, or `wake_all` sees it.
        self.0.leading.store(false, Ordering::SeqCst);
        let waiting = &self.0.context.waiters.commit;
        waiting.wake_keys(0..=self.0.durable());
        waiting.wake_keys(ANY_ROUND..=ANY_ROUND);
        self.0.wake_next_leader();
    }
}

impl Commit {
    pub(super) fn new(
        context: &Arc<Context>,
        appender: &Arc<Appender>,
        dispatch: &Arc<DispatchLock>,
        durable: u64,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            appender: Arc::clone(appender),
            dispatch: Arc::clone(dispatch),
            leading: AtomicBool::new(false),
            durable: Padded(AtomicU64::new(durable)),
            durable_answers: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            round_time: AtomicU64::new(0),
        }
    }

    fn lead(&self) -> Option<Lead<'_>> {
        // SeqCst: pairs with the store of the last leader.
        let was_leading = self.leading.swap(true, Ordering::SeqCst);
        // Lazily: a `Lead` that is made and dropped would end the lead of another.
        (!was_leading).then(|| Lead(self))
    }

    /// The newest Seq up to which everything is on the disk.
    #[inline]
    pub(crate) fn durable(&self) -> u64 {
        // Acquire: pairs with the store in `finish_round`.
        self.durable.load(Ordering::Acquire)
    }

    /// Whether everything up to `seq` is on the disk.
    pub(crate) fn is_durable(&self, seq: u64) -> bool {
        self.durable() >= seq
    }

    /// Returns when this many messages that were placed, and all before them, are on the disk. If
    /// they could not be written, they are not in the queue.
    pub(crate) fn wait_placed(&self, placed: &Placed, records: u64) -> Result<()> {
        let last_seq = placed.first_seq() + records - 1;
        let waited = self.wait_for(Scope::Records, last_seq, || match placed.outcome() {
            Some(Ok(())) => self.is_durable(last_seq),
            Some(Err(_)) => true,
            None => false,
        });
        let Some(refused) = placed.refused() else { return waited };
        self.wake_next_leader();
        Err(self.context.health.refuse(refused))
    }

    /// Wakes one of those whose messages are not durable. Each round ends with this. The one that
    /// is woken leads, or its messages become durable by a later round, or it fails and passes this
    /// on: so none of them sleeps while nobody leads.
    fn wake_next_leader(&self) {
        self.context.waiters.commit.wake_first(self.durable() + 1..=ANY_ROUND - 1);
    }

    /// Returns when everything up to `seq`, which is published, is on the disk.
    pub(crate) fn wait_durable(&self, seq: u64) -> Result<()> {
        self.wait_for(Scope::Records, seq, || self.is_durable(seq))
    }

    /// Returns when answer number `count`, and all before it, are on the disk.
    pub(crate) fn wait_answers(&self, count: u64) -> Result<()> {
        // Acquire: pairs with the store in `finish_round`.
        let done = || self.durable_answers.load(Ordering::Acquire) >= count;
        self.wait_for(Scope::Answers, ANY_ROUND, done)
    }

    /// Syncs and seals the oldest segment that is no longer pushed to; false if there is none, or
    /// if it cannot be sealed now.
    pub(crate) fn sync_oldest_full(&self) -> Result<bool> {
        let oldest = || self.appender.unsealed().full().front().map(Full::last_seq);
        let Some(last_seq) = oldest() else { return Ok(false) };
        let is_done = || oldest() != Some(last_seq);
        while !is_done() {
            self.context.health.check(false)?;
            let Some(lead) = self.lead() else {
                self.wait_for_leader(ANY_ROUND, is_done);
                continue;
            };
            self.lead_round(Scope::OldestFull)?;
            drop(lead);
            return Ok(is_done());
        }
        Ok(true)
    }

    /// Waits until `is_done` holds: syncs, or lets another thread sync. `seq`: the message that is
    /// to be durable, or [`ANY_ROUND`].
    fn wait_for(&self, scope: Scope, seq: u64, is_done: impl Fn() -> bool) -> Result<()> {
        let waited = self.wait_or_lead(scope, seq, is_done);
        if waited.is_err() {
            self.wake_next_leader();
        }
        waited
    }

    fn wait_or_lead(&self, scope: Scope, seq: u64, is_done: impl Fn() -> bool) -> Result<()> {
        while !is_done() {
            self.context.health.check(true)?;
            match self.lead() {
                Some(lead) => {
                    let result = self.lead_round(scope);
                    drop(lead);
                    result.map_err(Error::after_the_change)?;
                }
                None => self.wait_for_leader(seq, &is_done),
            }
        }
        Ok(())
    }

    /// Waits until no thread leads, and takes the lead.
    pub(crate) fn lead_when_free(&self) -> Lead<'_> {
        loop {
            match self.lead() {
                Some(lead) => return lead,
                None => self.wait_for_leader(ANY_ROUND, || false),
            }
        }
    }

    /// Waits until `is_done` holds or no thread leads. `seq`: as in `wait_for`.
    fn wait_for_leader(&self, seq: u64, is_done: impl Fn() -> bool) {
        let is_worth_it = || is_done() || !self.leading.load(Ordering::SeqCst);
        // SeqCst: pairs with the store in `Lead::drop`. No lock is needed in between.
        let look = || if is_worth_it() { Look::Found(()) } else { Look::NotYet };
        self.context.waiters.commit.wait_until(seq, Soon::No, None, || (), look);
    }

    fn lead_round(&self, scope: Scope) -> Result<()> {
        // Only now: the last leader may have failed since anybody looked.
        self.context.health.check(true)?;
        let round = self.plan_round(scope)?;
        let began = clock::now();
        round.unsynced.iter().for_each(UnsyncedPart::evict);
        // Those that were pushed to are looked for below.
        let mut pushed = round.pushed.iter();
        let synced = pushed.try_for_each(|segment| self.context.health.sync(segment));
        let mut answered = round.answered.iter();
        let synced =
            synced.and_then(|()| answered.try_for_each(|segment| self.context.sync(segment)));
        if round.answers.is_some() {
            let mut dispatch = self.dispatch.lock();
            dispatch.backlog_mut().tracks_mut().end_sync(synced.is_ok());
            // What is done could not go before it was synced.
            if dispatch.backlog().tracks().done_segments() > 0 {
                self.context.worker.ask();
            }
        }
        if let Err(error) = synced {
            // It failed, or a file could not be opened to be synced.
            return self.context.health.check(true).and(Err(error));
        }
        // What is synced to a file that nobody finds again is not kept.
        if self.appender.unsealed().check_files(&self.context).is_err() {
            return self.context.health.check(true);
        }
        self.finish_round(&round);
        if scope == Scope::Records {
            let time = clock::now().saturating_duration_since(began);
            let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.round_time.store(time, Ordering::Relaxed);
            let waiting = self.appender.collected();
            self.expected.store(round.gathered + waiting, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits for a moment for producers that are likely to come: those of the last round, who push
    /// again as soon as they are told. Without that they would be half of the producers, and the
    /// other half would have a round of their own. One that stays away costs a part of one round.
    /// Gives how many records are collected then.
    fn gather(&self) -> u64 {
        // Relaxed: only the leader stores to these.
        let expected = self.expected.load(Ordering::Relaxed);
        let mut collected = self.appender.collected();
        if collected == 0 || collected >= expected {
            return collected;
        }
        let round = Duration::from_nanos(self.round_time.load(Ordering::Relaxed));
        let end = clock::now() + round / GATHER_PART;
        while collected < expected && clock::now() < end {
            thread::yield_now();
            collected = self.appender.collected();
        }
        collected
    }

    fn plan_round(&self, scope: Scope) -> Result<Round> {
        let mut gathered = 0;
        if scope != Scope::OldestFull {
            gathered = self.gather();
            // Whoever has records in it hears of a failure: the others are synced all the same.
            self.appender.write_staged().ok();
        }
        let mut unsealed = self.appender.unsealed();
        if unsealed.is_over() {
            return Err(Error::Closed);
        }
        let at_most = if scope == Scope::OldestFull { 1 } else { usize::MAX };
        let mut published = 0;
        let (mut pushed, mut answered, mut unsynced_part) = (Vec::new(), Vec::new(), None);
        for full in unsealed.full().iter().take(at_most) {
            published = full.last_seq();
            pushed.push(Arc::clone(&full.segment));
        }
        if scope != Scope::OldestFull {
            published = unsealed.written_end() - 1;
            unsealed.forget_interval();
            unsynced_part = unsealed.take_unsynced_part();
            let unsynced = unsealed.active().filter(|_| !self.is_durable(published));
            pushed.extend(unsynced.map(|active| Arc::clone(active.segment())));
        }
        drop(unsealed);
        let mut answers = None;
        if scope == Scope::Answers {
            let count;
            (count, answered) = self.dispatch.lock().begin_sync();
            answers = Some(count);
            answered.retain(|segment| !pushed.iter().any(|other| Arc::ptr_eq(other, segment)));
        }
        Ok(Round { pushed, answered, unsynced: unsynced_part, published, answers, gathered })
    }

    fn finish_round(&self, round: &Round) {
        // Relaxed: only the leader stores here.
        if round.published > self.durable.load(Ordering::Relaxed) {
            // Release: pairs with the loads in `durable`.
            self.durable.store(round.published, Ordering::Release);
        }
        if let Some(answers) = round.answers {
            // Release: pairs with the load in `wait_answers`.
            self.durable_answers.store(answers, Ordering::Release);
        }
        self.seal_durable();
    }

    /// Seals the full segments that are durable as a whole. If a seal cannot be stored, the segment
    /// stays in the list, and is tried again.
    fn seal_durable(&self) {
        let is_durable = |full: &&Full| self.is_durable(full.last_seq());
        let durable: Vec<(Arc<Segment>, Seal)> = {
            let unsealed = self.appender.unsealed();
            let full = unsealed.full().iter().take_while(is_durable);
            full.map(|full| (Arc::clone(&full.segment), full.seal)).collect()
        };
        for (segment, seal) in durable {
            let region = segment.map(Access::Commits);
            if region.and_then(|region| segment.store_seal(&*region, seal)).is_err() {
                self.context.retry_upkeep();
                return;
            }
            // Only the leader removes from the list, so this is the one that was sealed.
            self.appender.unsealed().pop_full();
        }
    }
}
