//! Compaction: unsettled messages in sparse segments are copied into one, and those are let go.
//!
//! Promises: a message is in one segment that counts at any moment, with the state that its last
//! answer gave it; nothing that was pushed is let go before its copy is durable. Copies a step at a
//! time and holds the dispatch lock only to begin, to settle what it met, and to switch over. One
//! job at a time (the `compaction` lock, taken before `upkeep`).
//!
//! 1. Under the dispatch lock: from here on each source notes which of its slots are stored to.
//! 2. The copy gets an ordinal, which every CHECKPOINT lists from here on; unsettled messages are
//!    copied.
//! 3. The copy is synced; a CHECKPOINT is written, so that what is not copied is known to be
//!    settled or lost; the copy gets its name.
//! 4. What changed meanwhile is brought up to date; the last of it under the dispatch lock, where
//!    the copy takes the sources' place. The `upkeep` lock is held from step 3 until the copy is
//!    listed as not synced, so no CHECKPOINT is written in between.
//! 5. The copy is synced again before the next CHECKPOINT is written; that one does not list the
//!    sources, and they go.

use super::job::{CopyState, Done, Job, Outcome};
use super::planned::Planned;
use super::planner::Planner;
use super::retire::Retirer;
use super::switch;
use super::trigger::Trigger;
use super::upkeep::Upkeep;
use crate::clock;
use crate::compaction::copy_job::{CopyJob, Step};
use crate::compaction::plan::CopyPlan;
use crate::engine::append::maker::Maker;
use crate::engine::append::{Appender, MOST_LEFTOVERS};
use crate::engine::context::{Context, SOON};
use crate::engine::signal::DispatchLock;
use crate::error::{Error, Result};
use crate::format::address::{Offset, Ordinal};
use crate::format::bytes::to_u64;
use crate::format::name;
use crate::log::copy::{CopyWriter, Finished};
use crate::log::merge::CopySource;
use crate::time::{Millis, Shift, Time};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes read and written in one step.
const BYTES_A_STEP: u64 = 1 << 20;
/// How soon a copy that failed is tried again.
const COPY_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Copies what is unsettled in sparse segments.
#[derive(Debug)]
pub(crate) struct Compactor {
    context: Arc<Context>,
    dispatch: Arc<DispatchLock>,
    appender: Arc<Appender>,
    retirer: Arc<Retirer>,
    planner: Planner,
    compaction: Mutex<CopyState>,
    /// Bytes of files that compaction wrote.
    compacted_bytes: AtomicU64,
}

impl Compactor {
    pub(super) fn new(
        context: &Arc<Context>,
        dispatch: &Arc<DispatchLock>,
        appender: &Arc<Appender>,
        retirer: &Arc<Retirer>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            dispatch: Arc::clone(dispatch),
            appender: Arc::clone(appender),
            retirer: Arc::clone(retirer),
            planner: Planner::new(context, dispatch, appender),
            compaction: Mutex::default(),
            compacted_bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of files that compaction wrote since open.
    pub(crate) fn compacted_bytes(&self) -> u64 {
        // Relaxed: a number by itself.
        self.compacted_bytes.load(Ordering::Relaxed)
    }

    /// One step in the background, if it is time for one; tells when the next one may be due.
    pub(crate) fn run_in_background(&self) -> Result<()> {
        let compacted = self.run_when_due();
        match &compacted {
            Ok(Some(again)) => self.context.worker.compact_within(*again),
            // What is poisoned is not compacted in this run.
            Ok(None) | Err(Error::Poisoned { .. }) => {}
            Err(_) => self.context.worker.compact_within(COPY_AGAIN_AFTER),
        }
        compacted.map(|_| ())
    }

    fn run_when_due(&self) -> Result<Option<Duration>> {
        if !self.context.options.compaction.is_on || self.check_open().is_err() {
            return Ok(None);
        }
        // Another thread is at it that will not rest.
        let Some(mut compaction) = self.compaction.try_lock() else { return Ok(Some(SOON)) };
        let now = clock::now();
        if let Some(next) = compaction.next_at.filter(|&next| next > now) {
            return Ok(Some(next - now));
        }
        let mut done = Done::default();
        // What failed rests for a while, as its track says.
        begin_call(&mut compaction);
        let used = self.compact_step(&mut compaction, Trigger::Idle, &mut done)?;
        let Some(used) = used else { return Ok(self.next_look()) };
        let rate = self.context.options.compaction.rate;
        let pause = u128::from(used) * 1_000_000_000 / u128::from(rate);
        let pause = Duration::from_nanos(u64::try_from(pause).unwrap_or(u64::MAX));
        compaction.next_at = now.checked_add(pause);
        Ok(Some(pause))
    }

    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    fn check_open(&self) -> Result<()> {
        self.appender.unsealed().check_open()
    }

    /// When something that is worth copying may have been idle for long enough.
    fn next_look(&self) -> Option<Duration> {
        self.planner.has_sparse(&BTreeSet::new()).then(|| self.context.look_interval())
    }

    /// Copies all that is worth it, if the options want any of it.
    pub(crate) fn compact_if_wanted(&self) -> Result<()> {
        if !self.context.options.compaction.is_on {
            return Ok(());
        }
        self.compact_now(Trigger::Requested, u64::MAX).result
    }

    /// Makes copies until none is worth it, or until `most` are made. What cannot be copied does
    /// not hold up the rest.
    pub(super) fn compact_now(&self, trigger: Trigger, most: u64) -> Outcome {
        let (mut done, mut result) = (Done::default(), Ok(()));
        let mut compaction = self.compaction.lock();
        begin_call(&mut compaction);
        while done.copies < most {
            let left_out = compaction.left_out.len();
            match self.compact_step(&mut compaction, trigger, &mut done) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    result = result.and(Err(error));
                    if compaction.left_out.len() == left_out {
                        break;
                    }
                }
            }
        }
        Outcome { done, left_out: std::mem::take(&mut compaction.left_out), result }
    }

    /// Makes a step of the job at hand, or of a new one; returns how many bytes it read and wrote,
    /// `None` if there is nothing to do.
    fn compact_step(
        &self,
        compaction: &mut CopyState,
        trigger: Trigger,
        done: &mut Done,
    ) -> Result<Option<u64>> {
        if compaction.job.is_none() {
            compaction.job = self.begin_copy(trigger, compaction)?;
        }
        let Some(mut job) = compaction.job.take() else { return Ok(None) };
        // Not in a poisoned queue: whatever is synced there is not believed.
        let may_go_on = self.check_open().and_then(|()| self.context.health.check(false));
        let stepped = may_go_on.and_then(|()| job.run.step(BYTES_A_STEP));
        if stepped.is_err() {
            compaction.left_out.extend(job.run.failed_source());
        }
        let stepped = stepped.and_then(|step| {
            let failed = &mut compaction.left_out;
            switch::settle_findings(&self.dispatch, &mut job.run, failed).map(|()| step)
        });
        match stepped {
            Ok((Step::More, used)) => {
                let written = job.run.copy().written();
                if trigger == Trigger::Idle && written.since(job.synced) >= BYTES_A_STEP {
                    if let Err(error) = job.run.copy().sync() {
                        self.give_up(job.run, None);
                        return Err(error);
                    }
                    job.synced = written;
                }
                compaction.job = Some(job);
                Ok(Some(used))
            }
            Ok((Step::Done(0), used)) => {
                // What the first one's records take was not known well: it is taken for more from
                // here on, once in a call. If it does not fit then, it is not copied.
                let first = job.run.sources().first().map(|first| first.segment.header.ordinal);
                let is_first_time = first.is_some_and(|first| compaction.enlarged.insert(first));
                let mut dispatch = self.dispatch.lock();
                let track = first.and_then(|first| dispatch.backlog_mut().track(first));
                let is_news = track.is_some_and(|track| track.settled_count_mut().forget_bytes());
                drop(dispatch);
                if !(is_first_time && is_news) {
                    compaction.left_out.extend(first);
                }
                self.give_up(job.run, None);
                Ok(Some(used))
            }
            Ok((Step::Done(count), used)) if !self.is_worth_it(&job.run, count) => {
                // Settled meanwhile; or what did not fit makes a difference.
                if !self.start_with(job.run.sources().get(count)) {
                    leave_out(compaction, job.run.sources());
                }
                self.give_up(job.run, None);
                Ok(Some(used))
            }
            Ok((Step::Done(count), used)) => {
                self.start_with(job.run.sources().get(count));
                let sources = job.run.sources().to_vec();
                self.finish_copy(job.run, count, done)
                    .inspect_err(|_| leave_out(compaction, &sources))?;
                // What it was made from goes, as far as it can: what cannot goes later.
                self.context.health.note_background(self.retirer.let_go(usize::MAX).map(|_| ()));
                Ok(Some(used))
            }
            Err(error) => {
                self.give_up(job.run, None);
                Err(error)
            }
        }
    }

    /// Returns true if a copy of the first `count` sources has a message in it, and gives back as
    /// much as it has to.
    fn is_worth_it(&self, run: &CopyJob, count: usize) -> bool {
        if run.copy().progress().count == 0 || count == run.sources().len() {
            return run.copy().progress().count > 0;
        }
        let before: u64 =
            run.sources().iter().take(count).map(|source| source.segment.header.size).sum();
        let percent = self.context.options.compaction.live_percent;
        run.copy().size() * 100 <= before * percent
    }

    /// Notes a source that does not fit behind others: from here on a copy may start with it, but
    /// may not have it behind others. False if that was known, or there is none.
    fn start_with(&self, source: Option<&CopySource>) -> bool {
        let mut dispatch = self.dispatch.lock();
        let track =
            source.and_then(|source| dispatch.backlog_mut().track(source.segment.header.ordinal));
        track.is_some_and(|track| track.copying_mut().set_starts_copy())
    }

    /// Chooses what to copy, and begins; `None` if nothing is worth it.
    fn begin_copy(&self, trigger: Trigger, compaction: &mut CopyState) -> Result<Option<Job>> {
        self.check_open()?;
        self.context.health.check(false)?;
        self.appender.finish_old_tail()?;
        self.retirer.release_kept(&mut self.retirer.upkeep())?;
        if self.retirer.upkeep().given_up_count() >= MOST_LEFTOVERS {
            // Where nothing can be renamed or removed, each copy would leave one more file.
            self.retirer.let_go_of_all()?;
        }
        let (mut limits, mut has_little_room) = (self.planner.limits(), false);
        loop {
            let CopyState { planned, left_out, .. } = &mut *compaction;
            let chosen = self.planner.choose(trigger, &limits, left_out, planned);
            let Some((sources, choice)) = chosen else { return Ok(None) };
            let begun = self.begin_with(&sources, &choice);
            let no_room = matches!(begun, Err(Error::Full { .. } | Error::StorageFull { .. }));
            if begun.is_err() {
                self.release_sources(&sources, !no_room);
            }
            match begun {
                // A smaller copy may have room.
                Err(error) if no_room => {
                    // If the options leave no room, that is not an error to report.
                    if !matches!(error, Error::Full { .. }) {
                        self.context.health.note_background(Err(error));
                    }
                    limits.room = choice.after / 2;
                    has_little_room = true;
                }
                begun => {
                    if has_little_room {
                        // The next copy may have more.
                        compaction.planned = Planned::default();
                    }
                    return begun.map(Some);
                }
            }
        }
    }

    fn begin_with(&self, sources: &[CopySource], choice: &CopyPlan) -> Result<Job> {
        let size = CopyJob::size_for(choice);
        let most = u32::try_from(choice.records).unwrap_or(u32::MAX);
        let base_time = base_time_of(sources);
        // The plan has none with another shift among them.
        let shift = sources.first().map(|source| source.segment.header.clock_shift);
        let times = (base_time, shift.unwrap_or_default());
        let copy = match self.create_copy(size, most, times) {
            // Here is what the segment that is kept ready can be given up for.
            Err(Error::Full { .. } | Error::StorageFull { .. })
                if Maker::new(&self.appender).give_up_ready() =>
            {
                self.create_copy(size, most, times)
            }
            copy => copy,
        };
        Ok(Job {
            run: CopyJob::new(sources.to_vec(), copy?, self.context.run.first_seq),
            synced: Offset::START,
        })
    }

    fn create_copy(
        &self,
        size: u64,
        most: u32,
        (base_time, clock_shift): (Time, Shift),
    ) -> Result<CopyWriter> {
        self.context.space.take_scratch(size)?;
        let header = Maker::new(&self.appender).begin_copy(size, clock_shift);
        let header = header.inspect_err(|_| self.context.space.undo(size))?;
        let ordinal = header.ordinal;
        let copy = CopyWriter::create(&*self.context.storage, header, most, base_time);
        copy.inspect_err(|_| {
            self.remove_copy(ordinal, size, None);
        })
    }

    /// The job has ended: its sources can be chosen again after a while.
    fn release_sources(&self, sources: &[CopySource], has_failed: bool) {
        let again = self.context.clock.coarse() + Millis::from(COPY_AGAIN_AFTER);
        let mut dispatch = self.dispatch.lock();
        for source in sources {
            if let Some(track) = dispatch.backlog_mut().track(source.segment.header.ordinal) {
                track.copying_mut().end_copy(has_failed.then_some(again));
                // It was settled meanwhile, and could not go.
                if track.is_done() {
                    self.context.worker.ask();
                }
            }
        }
    }

    /// Removes a copy that may have its name. Until it is gone for good, its sources stay.
    fn take_back(&self, upkeep: &mut Upkeep, (copy, size): (Ordinal, u64), sources: &[CopySource]) {
        let names = [name::segment(copy), name::temporary(copy)];
        for source in sources {
            upkeep.keep(source.segment.header.ordinal, names.to_vec());
        }
        // It has one of the names, at most.
        let mut bytes = size;
        for name in names.into_iter().filter(|name| self.context.remove(name).is_err()) {
            self.retirer.leave(upkeep, name, std::mem::take(&mut bytes));
        }
        self.context.space.undo(bytes);
        let mut dispatch = self.dispatch.lock();
        for source in sources {
            if let Some(track) = dispatch.backlog_mut().track(source.segment.header.ordinal) {
                track.copying_mut().keep();
            }
        }
    }

    /// Ends a job whose copy has no name yet, so that nothing of it stays.
    fn give_up(&self, run: CopyJob, upkeep: Option<&mut Upkeep>) {
        let (ordinal, size) = (run.copy().ordinal(), run.copy().size());
        // Relaxed: a number by itself. What was written was written.
        self.compacted_bytes.fetch_add(run.copy().written().0, Ordering::Relaxed);
        self.release_sources(run.sources(), true);
        // Some systems remove no file that is mapped.
        drop(run);
        self.remove_copy(ordinal, size, upkeep);
    }

    /// Removes a copy that has no name yet.
    fn remove_copy(&self, ordinal: Ordinal, size: u64, upkeep: Option<&mut Upkeep>) {
        let name = name::temporary(ordinal);
        let removed = self.context.remove(&name);
        Maker::new(&self.appender).end_copy();
        if removed.is_ok() {
            self.context.space.undo(size);
            return;
        }
        match upkeep {
            Some(upkeep) => self.retirer.leave(upkeep, name, size),
            None => self.retirer.leave(&mut self.retirer.upkeep(), name, size),
        }
    }

    /// Gives the copy of the first `count` sources its name, and lets it take their place.
    fn finish_copy(&self, run: CopyJob, count: usize, done: &mut Done) -> Result<()> {
        let mut upkeep = self.retirer.upkeep();
        let health = &self.context.health;
        let prepared = upkeep.check_open().and_then(|()| health.check(false));
        let prepared = prepared.and_then(|()| run.copy().sync());
        let prepared = prepared.and_then(|()| health.check(false));
        let prepared = prepared.and_then(|()| self.retirer.write_checkpoint(&mut upkeep));
        if let Err(error) = prepared {
            self.give_up(run, Some(&mut upkeep));
            return Err(error);
        }
        let (sources, ordinal, size) =
            (run.sources().to_vec(), run.copy().ordinal(), run.copy().size());
        let seq_limit = self.appender.with_supply_state(|supply| supply.seq_limit);
        let made = run.finish(&*self.context.storage, count, seq_limit, health);
        let switched = match made {
            Ok(made) => self.switch(&sources[..count], &made).map(|messages| (made, messages)),
            Err(error) => Err(error),
        };
        if switched.is_err() {
            self.take_back(&mut upkeep, (ordinal, size), &sources[..count]);
        }
        self.release_sources(&sources, switched.is_err());
        Maker::new(&self.appender).end_copy();
        let (made, messages) = switched?;
        // Relaxed: a number by itself.
        self.compacted_bytes.fetch_add(size, Ordering::Relaxed);
        done.copies += 1;
        done.replaced += to_u64(count);
        done.messages += messages;
        done.written += size;
        let replaced = sources.into_iter().take(count).map(|source| source.segment);
        self.retirer.replace(&mut upkeep, Arc::clone(&made.segment), replaced.collect());
        Ok(())
    }

    /// Lets a copy take the place of its sources; tells how many messages it has.
    fn switch(&self, sources: &[CopySource], made: &Finished) -> Result<u64> {
        // Not in a queue that was poisoned meanwhile.
        self.context.health.check(false)?;
        switch::replace_sources(&self.dispatch, self.context.run, sources, made)
    }

    /// Ends the copy that is under way, because the queue is closed.
    pub(crate) fn stop(&self) {
        let job = self.compaction.lock().job.take();
        if let Some(job) = job {
            self.give_up(job.run, None);
        }
    }
}

/// A call begins: what another one gave up may be tried again.
fn begin_call(compaction: &mut CopyState) {
    compaction.left_out.clear();
    compaction.enlarged.clear();
}

/// No message in a copy of these is older. One fits if it is at most 49 days younger than that.
/// So a time that is far from those before it does not count: its segment begins another copy.
fn base_time_of(sources: &[CopySource]) -> Time {
    const FAR: Millis = Millis(1 << 31);
    let mut times = sources.iter().map(|source| source.base_time);
    let first = times.next().unwrap_or_default();
    let (mut earliest, mut latest) = (first, first);
    for time in times {
        (earliest, latest) = match (earliest.min(time), latest.max(time)) {
            (earliest, latest) if latest.since(earliest) <= FAR => (earliest, latest),
            _ => break,
        };
    }
    earliest
}

/// The call at hand copies these no more.
fn leave_out(compaction: &mut CopyState, sources: &[CopySource]) {
    compaction.left_out.extend(sources.iter().map(|source| source.segment.header.ordinal));
}
