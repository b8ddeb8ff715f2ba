//! Placing messages: numbered, stored and published under one short lock.
//!
//! Promises: Seqs rise without gaps within a run, in the order in which messages are published; a
//! batch is published whole. Relies on `supply` for segments. Syncs nothing.

use super::Engine;
use super::compact::Haste;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::format::bytes::wide;
use crate::format::segment::Seal;
use crate::format::segment::size_for;
use crate::format::slot::MAX_SEGMENT;
use crate::log::Segment;
use crate::log::active::{Active, Draft};
use crate::recovery::Log;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So many segments may wait to be let go, while another one is ready.
const MOST_DONE: u64 = 1;

/// Where the next message goes.
#[derive(Debug)]
pub(crate) struct Append {
    pub(super) active: Option<Active>,
    /// No longer pushed to, and not yet synced and sealed; oldest first.
    pub(super) full: VecDeque<Full>,
    pub(super) next_seq: u64,
    /// The first Seq of this run.
    first_seq: u64,
    pub(super) is_closed: bool,
    /// The shortest interval that an unsynced message waits for.
    pub(super) sync_within: Option<Duration>,
    last_seq: Option<u64>,
    newest_time: u64,
    /// The directory is, or will soon be, somebody else's.
    pub(super) is_over: bool,
    /// The worker knows that the active segment will be full soon.
    asked_for_supply: bool,
}

impl Append {
    pub(super) fn new(log: &Log) -> Self {
        Self {
            active: None,
            full: VecDeque::new(),
            next_seq: log.next_seq,
            first_seq: log.next_seq,
            is_closed: false,
            is_over: false,
            sync_within: None,
            last_seq: log.last_seq,
            newest_time: log.newest_time,
            asked_for_supply: false,
        }
    }

    pub(super) fn last_seq(&self) -> Option<u64> {
        self.last_seq
    }

    pub(super) fn newest_time(&self) -> u64 {
        self.newest_time
    }

    /// Messages pushed since open.
    pub(super) fn pushed(&self) -> u64 {
        self.next_seq - self.first_seq
    }

    /// The push time: never before that of an earlier message.
    fn now(&mut self, clock: &Clock) -> u64 {
        self.newest_time = self.newest_time.max(clock.coarse());
        self.newest_time
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// Drops the maps.
    pub(super) fn let_go(&mut self) {
        self.is_over = true;
        self.active = None;
        self.full.clear();
    }

    /// Whether a next segment should be at hand: a quarter of the active one is used, or segments
    /// fill faster than they are synced. Not sooner, so that one may be recycled instead.
    pub(super) fn wants_supply(&self) -> bool {
        let used = |active: &Active| active.used_bytes() * 4 >= active.segment.header.size;
        self.full.len() > 1 || self.active.as_ref().is_some_and(used)
    }
}

/// A segment that is no longer pushed to. Its map is not kept: with its pages unmapped, a sync
/// need not write-protect each of them on all processors.
#[derive(Debug)]
pub(super) struct Full {
    pub(super) segment: Arc<Segment>,
    pub(super) first_seq: u64,
    pub(super) seal: Seal,
}

impl Full {
    fn of(active: &Active) -> Self {
        let segment = Arc::clone(&active.segment);
        Self { segment, first_seq: active.first_seq, seal: active.seal(false) }
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.seal.count) - 1
    }
}

/// How much room messages need.
#[derive(Clone, Copy)]
struct Need {
    bytes: u64,
    records: u64,
}

impl Need {
    fn of(drafts: &[Draft<'_>]) -> Self {
        let mut bytes = 0;
        for draft in drafts {
            bytes += draft.record_len();
        }
        Self { bytes, records: wide(drafts.len()) }
    }
}

impl Engine {
    /// Places and publishes `drafts` as one batch; gives the Seq of the first. `sync_within`: how
    /// soon the background has to sync them.
    pub(crate) fn append(
        &self,
        drafts: &[Draft<'_>],
        sync_within: Option<Duration>,
    ) -> Result<u64> {
        self.health.check(false)?;
        let need = Need::of(drafts);
        if size_for(need.bytes, need.records) > MAX_SEGMENT {
            return Err(Error::TooLarge { len: need.bytes, max: MAX_SEGMENT });
        }
        let mut may_make_room = true;
        self.count_for_limit();
        loop {
            if let Some((first_seq, has_waiters)) = self.try_append(drafts, need, sync_within)? {
                if has_waiters {
                    (0..need.records).for_each(|_| self.readers.wake_one());
                }
                return Ok(first_seq);
            }
            match self.rotate(need) {
                Err(Error::StorageFull { .. } | Error::Full { .. }) if may_make_room => {
                    may_make_room = false;
                    // Whatever fails here, nothing has been placed.
                    self.make_room().map_err(Error::before_anything)?;
                }
                result => result?,
            }
        }
    }

    /// Lets go of all that is in use for nothing.
    fn make_room(&self) -> Result<()> {
        self.finish_old_tail()?;
        while self.sync_oldest_full()? {}
        self.count_old_tracks()?;
        if let Some(dead) = self.open_dead_letters() {
            // What fails there is not the concern of who pushes here.
            self.health.note_background(dead.let_segments_go());
        }
        self.let_segments_go()?;
        if self.options.compaction.is_on {
            // One copy at the most: whoever pushes waits for it.
            self.health.note_background(self.compact_now(Haste::Now, 1).map(|_| ()));
            // What a copy that was given up has kept.
            self.let_segments_go()?;
        }
        Ok(())
    }

    /// The first Seq and whether a consumer waits; `None` if the active segment has no room.
    fn try_append(
        &self,
        drafts: &[Draft<'_>],
        need: Need,
        sync_within: Option<Duration>,
    ) -> Result<Option<(u64, bool)>> {
        let mut append = self.append.lock();
        append.check_open()?;
        let now = append.now(&self.clock);
        self.check_count(append.pushed(), need.records)?;
        let first_seq = append.next_seq;
        // Relaxed: an older value only says less than is true.
        let unsynced = (first_seq - 1).saturating_sub(self.durable.load(Ordering::Relaxed));
        if let Some(active) = &mut append.active {
            // What a failed write left behind the tail could be taken for the end of the log.
            active.erase_remains()?;
        }
        match &mut append.active {
            Some(active) if active.fits(need.bytes, need.records, now) => {
                active.append(drafts, unsynced, now)?;
            }
            _ => return Ok(None),
        }
        append.next_seq += need.records;
        let last_seq = append.next_seq - 1;
        append.last_seq = Some(last_seq);
        if drafts.iter().any(|draft| draft.due().is_some()) {
            self.publish_delayed(drafts, first_seq, last_seq);
        } else {
            self.publish(last_seq);
        }
        let has_waiters = self.readers.has_waiters();
        let is_sooner =
            sync_within.filter(|&within| append.sync_within.is_none_or(|already| within < already));
        if is_sooner.is_some() {
            append.sync_within = is_sooner;
        }
        let asks = !append.asked_for_supply && append.wants_supply();
        append.asked_for_supply |= asks;
        drop(append);
        if let Some(within) = is_sooner {
            self.worker.sync_within(within);
        }
        if asks {
            self.worker.ask();
        }
        Ok(Some((first_seq, has_waiters)))
    }

    fn publish(&self, last_seq: u64) {
        // Release: pairs with the load in `newest_published`.
        self.published.store(last_seq, Ordering::Release);
    }

    /// What is delayed is known to be so before it can be seen.
    fn publish_delayed(&self, drafts: &[Draft<'_>], first_seq: u64, last_seq: u64) {
        let mut deliver = self.deliver.lock();
        for (seq, draft) in (first_seq..).zip(drafts) {
            if let Some(due) = draft.due() {
                deliver.schedule.put(due, seq);
            }
        }
        self.publish(last_seq);
    }

    /// Whether the background does not keep up: segments in which nothing is owed take the disk, or those that are
    /// not synced would hold too many files open.
    fn is_behind(&self) -> bool {
        let most_done = if self.supply.lock().ready.is_some() { MOST_DONE } else { 0 };
        let append = self.append.lock();
        let too_many = wide(append.full.len()) > self.options.open_segments;
        let deliver = self.deliver.lock();
        let too_many = too_many || deliver.mapped_segments() > self.options.open_segments + 2;
        // Relaxed: a segment that goes is in one of the two, under the lock that is held here.
        let going = self.letting_go.load(Ordering::Relaxed);
        too_many || deliver.done_segments() + going > most_done
    }

    /// Does what the background would, so that the queue takes no more disk because it is fast.
    fn catch_up(&self) -> Result<()> {
        self.drop_idle_maps();
        while self.is_behind() && self.sync_oldest_full()? {}
        self.let_segments_go()?;
        self.drop_idle_maps();
        Ok(())
    }

    /// Goes on to a segment that has room.
    fn rotate(&self, need: Need) -> Result<()> {
        if !self.supply.lock().has_begun {
            self.health.note_background(self.tidy_small_segments());
        }
        if self.is_behind() {
            // Whatever fails here, nothing has been placed, and the push finds out if it matters.
            self.health.note_background(self.catch_up());
        }
        let mut supply = self.supply.lock();
        {
            let mut append = self.append.lock();
            append.check_open()?;
            let now = append.now(&self.clock);
            let fits = |active: &Active| active.fits(need.bytes, need.records, now);
            if append.active.as_ref().is_some_and(fits) {
                return Ok(());
            }
        }
        let prepared =
            self.take_supply(&mut supply, size_for(need.bytes, need.records), need.records)?;
        let mut append = self.append.lock();
        append.check_open().inspect_err(|_| supply.put_back(prepared.clone()))?;
        let now = append.now(&self.clock);
        let mut deliver = self.deliver.lock();
        let super::supply::Prepared { segment, region } = prepared.clone();
        let active = Active::start(segment, region, append.next_seq, now)
            .inspect_err(|_| supply.put_back(prepared.clone()))?;
        let full = append.active.as_ref().map(Full::of);
        if let Some(full) = &full {
            deliver.seal_track(full.seal);
        }
        append.full.extend(full);
        deliver.add_track(&active);
        append.active = Some(active);
        append.asked_for_supply = false;
        drop((deliver, append, supply));
        self.worker.ask();
        Ok(())
    }
}
