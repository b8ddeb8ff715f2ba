//! Compaction: what is owed in sparse segments is copied into one, and they are let go.
//!
//! Promises: a message is in one segment that counts at any moment, with the state that its last answer gave it;
//! nothing that was pushed is let go before its copy is durable. Copies a step at a time and holds the `deliver`
//! lock only to begin, to settle what it met, and to switch over. One job at a time (the `compaction` lock, taken
//! before `upkeep`).
//!
//! 1. Under `deliver`: from here on each source notes which of its slots are stored to.
//! 2. The copy gets an ordinal, which every CHECKPOINT lists from here on; what is owed is copied.
//! 3. The copy is synced; a CHECKPOINT is written, so that what is not copied is known to be settled or lost; the
//!    copy gets its name.
//! 4. What changed meanwhile is brought up to date; the last of it under `deliver`, where the copy takes the
//!    sources' place. The `upkeep` lock is held until
//! 5. the copy is synced again; only then can a CHECKPOINT without the sources be written, and they go.

use super::Engine;
use super::replace::Change;
use super::supply::FIRST_SEGMENT;
use super::track::Track;
use super::upkeep::Upkeep;
use crate::clock;
use crate::compaction::plan::{self, Choice, Limits};
use crate::compaction::run::{Run, Step};
use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::slot::Slot;
use crate::io::Access;
use crate::log::copy::{Copy, Finished};
use crate::log::merge::Source;
use crate::log::sealed::Mapped;
use crate::report::Compacted;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes read and written in one step.
const STEP: u64 = 1 << 20;
/// How soon a copy that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(10);
/// How often the background looks at what changes, in parts of what idle means.
const LOOKS: u32 = 4;
/// How soon it looks at the earliest.
pub(super) const SOON: Duration = Duration::from_millis(50);
/// While more slots than this change between two looks, they are brought up to date without the lock.
const FEW: usize = 256;
const ROUNDS: usize = 16;

/// What is copied at the moment, and when it goes on.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    job: Option<Job>,
    next_at: Option<Instant>,
}

#[derive(Debug)]
struct Job {
    run: Run,
    /// Bytes of the copy that are synced.
    synced: u64,
}

/// What may be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Haste {
    /// What has not changed for a while.
    WhenIdle,
    /// All that is worth it.
    Now,
    /// The small segments that short runs leave behind.
    Small,
}

/// What compaction did.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Done {
    pub(crate) copies: u64,
    pub(crate) replaced: u64,
    pub(crate) messages: u64,
    pub(crate) written: u64,
}

impl Engine {
    /// One step in the background, if it is time for one; tells when the next one may be due.
    pub(super) fn compact_in_background(&self) -> Result<Option<Duration>> {
        if !self.options.compaction.is_on || self.check_open().is_err() {
            return Ok(None);
        }
        // Somebody is at it who will not rest.
        let Some(mut compaction) = self.compaction.try_lock() else { return Ok(Some(SOON)) };
        let now = clock::now();
        if let Some(next) = compaction.next_at.filter(|&next| next > now) {
            return Ok(Some(next - now));
        }
        let mut done = Done::default();
        let used = self.compact_step(&mut compaction, Haste::WhenIdle, &mut done)?;
        let Some(used) = used else { return Ok(self.next_look()) };
        let pause = u128::from(used) * 1_000_000_000 / u128::from(self.options.compaction.rate);
        let pause = Duration::from_nanos(u64::try_from(pause).unwrap_or(u64::MAX));
        compaction.next_at = now.checked_add(pause);
        Ok(Some(pause))
    }

    /// When something that is worth copying may have been idle for long enough.
    fn next_look(&self) -> Option<Duration> {
        let pieces = self.deliver.lock().pieces(Haste::Now, self.clock.coarse(), 0, |_| false);
        let is_worth_it = plan::choose(&pieces, &self.limits()).is_some();
        is_worth_it.then(|| self.look_interval())
    }

    /// How soon the background looks again after something was settled.
    pub(super) fn look_interval(&self) -> Duration {
        (self.options.compaction.idle / LOOKS).max(SOON)
    }

    fn limits(&self) -> Limits {
        // The segment that is kept ready is given up for it.
        let ready = self.supply.lock().ready.as_ref().map_or(0, |ready| ready.segment.header.size);
        Limits {
            live_percent: self.options.compaction.live_percent,
            segment_bytes: self.options.segment_limit(),
            room: self.space.scratch_room().saturating_add(ready),
        }
    }

    /// Copies all that is worth it, if the options want any of it.
    pub(super) fn compact_by_hand(&self) -> Result<()> {
        if !self.options.compaction.is_on {
            return Ok(());
        }
        self.compact_now(Haste::Now, u64::MAX).map(|_| ())
    }

    /// Copies all that is worth it, here and in the dead letters, and lets go of what is in use for nothing.
    pub(crate) fn compact(&self) -> Result<Compacted> {
        self.check_open()?;
        self.count_old_tracks()?;
        let before = self.space.given_back();
        self.finish_old_tail()?;
        while self.sync_oldest_full()? {}
        self.let_segments_go()?;
        let done = self.compact_now(Haste::Now, u64::MAX)?;
        self.let_segments_go()?;
        let freed = (self.space.given_back() - before).saturating_sub(done.written);
        let own = Compacted {
            freed_bytes: freed,
            written_bytes: done.written,
            messages: done.messages,
            copies: done.copies,
            replaced: done.replaced,
        };
        let dead = self.open_dead_letters().map_or(Ok(Compacted::default()), |dead| dead.compact());
        match dead {
            // By its own handle.
            Err(Error::Closed) => Ok(own),
            dead => dead.map(|dead| own + dead),
        }
    }

    /// Copies what is worth it until nothing is, or so many copies are made.
    pub(super) fn compact_now(&self, haste: Haste, most: u64) -> Result<Done> {
        let mut done = Done::default();
        let mut compaction = self.compaction.lock();
        while done.copies < most && self.compact_step(&mut compaction, haste, &mut done)?.is_some()
        {
        }
        Ok(done)
    }

    /// A step of the job at hand, or of a new one; tells how many bytes it took, `None` if there is nothing to do.
    fn compact_step(
        &self,
        compaction: &mut Compaction,
        haste: Haste,
        done: &mut Done,
    ) -> Result<Option<u64>> {
        if compaction.job.is_none() {
            compaction.job = self.begin_copy(haste)?;
        }
        let Some(mut job) = compaction.job.take() else { return Ok(None) };
        let stepped = self.check_open().and_then(|()| job.run.step(STEP));
        let stepped = stepped.and_then(|step| self.settle_findings(&mut job.run).map(|()| step));
        match stepped {
            Ok((Step::More, used)) => {
                let written = job.run.copy().written();
                if haste == Haste::WhenIdle && written >= job.synced + STEP {
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
                // What the first one's records take was not known well: it is taken for more from here on.
                let first = job.run.sources().first().map(|first| first.segment.header.ordinal);
                let mut deliver = self.deliver.lock();
                if let Some(track) = first.and_then(|first| deliver.track(first)) {
                    track.forget_settled_bytes();
                }
                drop(deliver);
                self.give_up(job.run, None);
                Ok(Some(used))
            }
            Ok((Step::Done(count), used)) if !self.is_worth_it(&job.run, count) => {
                // Settled meanwhile; or what did not fit makes a difference.
                self.start_with(job.run.sources().get(count));
                self.give_up(job.run, None);
                Ok(Some(used))
            }
            Ok((Step::Done(count), used)) => {
                self.start_with(job.run.sources().get(count));
                self.finish_copy(job.run, count, done)?;
                // What it was made from goes, as far as it can: what cannot goes later.
                self.health.note_background(self.let_segments_go());
                Ok(Some(used))
            }
            Err(error) => {
                self.give_up(job.run, None);
                Err(error)
            }
        }
    }

    /// Whether a copy of the first `count` sources of a run has anything in it, and gives back what it is to.
    fn is_worth_it(&self, run: &Run, count: usize) -> bool {
        if run.copy().progress().count == 0 || count == run.sources().len() {
            return run.copy().progress().count > 0;
        }
        let before: u64 =
            run.sources().iter().take(count).map(|source| source.segment.header.size).sum();
        let percent = self.options.compaction.live_percent;
        run.copy().size() * 100 <= before * percent
    }

    /// This one does not fit behind others: from here on a copy may start with it, and not go over it.
    fn start_with(&self, source: Option<&Source>) {
        let mut deliver = self.deliver.lock();
        let track = source.and_then(|source| deliver.track(source.segment.header.ordinal));
        if let Some(track) = track {
            track.outlook.starts_copy = true;
        }
    }

    /// Chooses what to copy, and begins; `None` if nothing is worth it.
    fn begin_copy(&self, haste: Haste) -> Result<Option<Job>> {
        self.check_open()?;
        self.health.check(false)?;
        self.finish_old_tail()?;
        let mut limits = self.limits();
        loop {
            let Some((sources, choice)) = self.choose_sources(haste, &limits) else {
                return Ok(None);
            };
            let begun = self.begin_with(&sources, &choice);
            let no_room = matches!(begun, Err(Error::Full { .. } | Error::StorageFull { .. }));
            if begun.is_err() {
                self.release_sources(&sources, !no_room);
            }
            match begun {
                // A smaller copy may have room.
                Err(error) if no_room => {
                    // That options leave none is nobody's error.
                    if !matches!(error, Error::Full { .. }) {
                        self.health.note_background(Err(error));
                    }
                    limits.room = choice.after / 2;
                }
                begun => return begun.map(Some),
            }
        }
    }

    fn choose_sources(&self, haste: Haste, limits: &Limits) -> Option<(Vec<Source>, Choice)> {
        let idle = clock::millis(self.options.compaction.idle);
        let now = self.clock.coarse();
        let append = self.append.lock();
        let mut deliver = self.deliver.lock();
        let is_unsynced =
            |ordinal| append.full.iter().any(|full| full.segment.header.ordinal == ordinal);
        let pieces = deliver.pieces(haste, now, idle, is_unsynced);
        let choice = plan::choose(&pieces, limits)?;
        let chosen = deliver.tracks.range_mut(choice.pieces.clone());
        let sources = chosen.map(|track| {
            track.changed = Some(Vec::new());
            Source {
                segment: Arc::clone(&track.segment),
                first_seq: track.first_seq,
                base_time: track.base_time,
                count: track.count.unwrap_or(0),
            }
        });
        Some((sources.collect(), choice))
    }

    fn begin_with(&self, sources: &[Source], choice: &Choice) -> Result<Job> {
        let size = Run::size_for(choice);
        let most = u32::try_from(choice.records).unwrap_or(u32::MAX);
        let base_time = sources.iter().map(|source| source.base_time).min().unwrap_or(0);
        let copy = match self.create_copy(size, most, base_time) {
            // Here is what the segment that is kept ready can be given up for.
            Err(Error::Full { .. } | Error::StorageFull { .. }) if self.give_up_ready()? => {
                self.create_copy(size, most, base_time)
            }
            copy => copy,
        };
        Ok(Job { run: Run::new(sources.to_vec(), copy?, self.run.first_seq), synced: 0 })
    }

    fn create_copy(&self, size: u64, most: u32, base_time: u64) -> Result<Copy> {
        self.space.take_scratch(size)?;
        let header = self.supply.lock().copy_header(size);
        let copy = header.and_then(|header| Copy::create(&*self.storage, header, most, base_time));
        copy.inspect_err(|_| {
            self.supply.lock().compacting = None;
            self.space.undo(size);
        })
    }

    /// The job is no more; its sources can be chosen again, after a while.
    fn release_sources(&self, sources: &[Source], has_failed: bool) {
        let again = self.clock.coarse() + clock::millis(RETRY);
        let mut deliver = self.deliver.lock();
        for source in sources {
            if let Some(track) = deliver.track(source.segment.header.ordinal) {
                track.changed = None;
                if has_failed {
                    track.outlook.not_before = again;
                }
            }
        }
    }

    /// Ends a job whose copy has no name yet, so that nothing of it stays.
    fn give_up(&self, run: Run, upkeep: Option<&mut Upkeep>) {
        let (ordinal, size) = (run.copy().ordinal(), run.copy().size());
        // Relaxed: a number by itself. What was written was written.
        self.compacted_bytes.fetch_add(run.copy().written(), Ordering::Relaxed);
        self.release_sources(run.sources(), true);
        let discarded = run.discard(&*self.storage);
        self.supply.lock().compacting = None;
        if discarded.is_ok() {
            self.space.undo(size);
            self.space.room.wake_all();
            return;
        }
        let name = crate::format::name::temporary(ordinal);
        match upkeep {
            Some(upkeep) => upkeep.leave(name, size),
            None => self.upkeep.lock().leave(name, size),
        }
    }

    /// Settles what copying has met, each unless it is settled already.
    fn settle_findings(&self, run: &mut Run) -> Result<()> {
        let findings = run.take_findings();
        if findings.is_empty() {
            return Ok(());
        }
        let mut deliver = self.deliver.lock();
        let settled = findings.into_iter().try_for_each(|finding| deliver.settle_finding(finding));
        self.unlock(deliver);
        settled
    }

    /// Gives the copy of the first `count` sources its name, and lets it take their place.
    fn finish_copy(&self, run: Run, count: usize, done: &mut Done) -> Result<()> {
        let mut upkeep = self.upkeep.lock();
        let prepared = if upkeep.is_closed { Err(Error::Closed) } else { Ok(()) };
        let prepared = prepared.and_then(|()| run.copy().sync());
        let prepared = prepared.and_then(|()| self.write_checkpoint(&mut upkeep));
        if let Err(error) = prepared {
            self.give_up(run, Some(&mut upkeep));
            return Err(error);
        }
        let (sources, size) = (run.sources().to_vec(), run.copy().size());
        let seq_limit = self.supply.lock().seq_limit;
        let made = run.finish(&*self.storage, count, seq_limit);
        let switched = match made {
            Ok(made) => match self.switch(&sources[..count], &made) {
                Ok(messages) => Ok((made, messages)),
                Err(error) => {
                    // Should it stay, it is merged with its sources, or deleted, at the next open.
                    match self.storage.remove(&made.segment.name) {
                        Ok(()) => self.space.undo(size),
                        Err(_) => upkeep.leave(made.segment.name.clone(), size),
                    }
                    Err(error)
                }
            },
            Err(error) => {
                // What has its name is removed again, and else nothing of it is there.
                self.space.undo(size);
                Err(error)
            }
        };
        self.release_sources(&sources, switched.is_err());
        self.supply.lock().compacting = None;
        let (made, messages) = switched?;
        // Relaxed: a number by itself.
        self.compacted_bytes.fetch_add(size, Ordering::Relaxed);
        done.copies += 1;
        done.replaced += wide(count);
        done.messages += messages;
        done.written += size;
        // Relaxed: as in `retire`; a moment late.
        self.letting_go.fetch_add(wide(count), Ordering::Relaxed);
        let replaced = sources.into_iter().take(count).map(|source| source.segment);
        upkeep.replace(Arc::clone(&made.segment), replaced.collect());
        Ok(())
    }

    /// Brings the copy up to date, and lets it take the place of its sources; tells how many messages it has.
    fn switch(&self, sources: &[Source], made: &Finished) -> Result<u64> {
        let segment = Arc::clone(&made.segment);
        segment.map(Access::Commits).and_then(|region| {
            let mapped = Arc::new(Mapped { segment: Arc::clone(&segment), region });
            let tickets = Arc::clone(&self.deliver.lock().maps.tickets);
            let mut copy = Track::copied(mapped, made, &tickets);
            for _ in 0..ROUNDS {
                let changes = self.deliver.lock().take_changes(sources)?;
                let is_little =
                    changes.iter().map(|change| change.indexes.len()).sum::<usize>() < FEW;
                changes.iter().try_for_each(|change| self.update(&mut copy, change))?;
                if is_little {
                    break;
                }
            }
            let mut deliver = self.deliver.lock();
            let changes = deliver.take_changes(sources)?;
            changes.iter().try_for_each(|change| self.update(&mut copy, change))?;
            let replaced = deliver.replace_tracks(sources, copy);
            self.unlock(deliver);
            // Unmapped outside of the lock.
            drop(replaced);
            Ok(u64::from(made.count))
        })
    }

    /// Brings some slots of a copy up to date.
    fn update(&self, copy: &mut Track, change: &Change) -> Result<()> {
        let Change { mapped, first_seq, base_time, indexes } = change;
        for &index in indexes {
            let Some(seq) = mapped.seq(index, *first_seq)? else { continue };
            let Some(to) = copy.index_of(seq)? else { continue };
            let Some(slot) = mapped.slot(index)? else { continue };
            let delay = mapped.delay(index, *base_time)?;
            let is_old = self.run.is_old(seq);
            let (copy_base, target) = (copy.base_time, Arc::clone(copy.map()?));
            let known = target.slot(to)?.unwrap_or(Slot::UNTOUCHED);
            target.store_delay(to, copy_base, delay)?;
            target.store_slot(to, Slot { offset: known.offset, ..slot })?;
            if slot.is_settled(is_old) && !known.is_settled(is_old) {
                let header = known.offset.and_then(|offset| target.header(offset, to));
                copy.settle(to, header.map_or(0, |header| header.record_len()));
            }
        }
        Ok(())
    }

    /// Ends what is under way: the queue is closed.
    pub(super) fn stop_compaction(&self) {
        let job = self.compaction.lock().job.take();
        if let Some(job) = job {
            self.give_up(job.run, None);
        }
    }

    /// Before a run begins: short runs each leave a small segment behind, and may end before the background comes
    /// to it.
    pub(super) fn tidy_small_segments(&self) -> Result<()> {
        const MANY: usize = 3;
        let is_small = |track: &Track| track.segment.header.size <= FIRST_SEGMENT;
        let mut deliver = self.deliver.lock();
        if deliver.tracks.iter().filter(|track| is_small(track)).count() < MANY {
            return Ok(());
        }
        let count = deliver.tracks.len();
        let counted = (0..count).try_for_each(|at| {
            if is_small(&deliver.tracks[at]) { deliver.count_all_of(at) } else { Ok(()) }
        });
        self.unlock(deliver);
        counted?;
        self.finish_old_tail()?;
        self.let_segments_go()?;
        if self.options.compaction.is_on {
            self.compact_now(Haste::Small, u64::MAX)?;
        }
        Ok(())
    }
}
