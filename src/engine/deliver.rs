//! What waits, what is out, and what happened to it: the state under the `deliver` lock.
//!
//! Promises: every message that is owed is in one place: behind the cursor's position (never handed out in
//! this run), in `returned` (at the front), in `schedule` (not before its time), leased, or dying. Nothing here
//! grows with the backlog but the schedule, by two numbers for each delayed message. Who is next is chosen in
//! `next`, answers are in `answer`, damage in `loss`.

use super::consume::{News, Watchers};
use super::cursor::{Cursor, Run};
use super::dying::Dying;
use super::loss::Losses;
use super::maps::{Maps, Tickets};
use super::measure::Measure;
use super::track::Track;
use crate::backoff::Backoff;
use crate::clock::{self, Clock};
use crate::error::{Error, Result};
use crate::format::segment::{RECORDS_START, Seal};
use crate::format::slot::{Slot, State};
use crate::leases::{Leases, Place};
use crate::log::Segment;
use crate::log::active::Active;
use crate::log::sealed::{Located, Mapped};
use crate::options::{Expired, Options};
use crate::recovery::{Log, Replaced};
use crate::schedule::Schedule;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What comes next, and what is out.
#[derive(Debug)]
pub(crate) struct Deliver {
    pub(super) tracks: VecDeque<Track>,
    pub(super) cursor: Cursor,
    /// Handed out once, and given back.
    pub(super) returned: BTreeMap<u64, Place>,
    /// Not to be handed out before their time: pushed so, or given back.
    pub(super) schedule: Schedule,
    pub(super) leases: Leases,
    pub(super) dying: Dying,
    pub(super) losses: Losses,
    pub(super) counts: Counts,
    pub(super) policy: Policy,
    pub(super) clock: Arc<Clock>,
    pub(super) maps: Maps,
    pub(super) run: Run,
    pub(super) measure: Measure,
    pub(super) watchers: Watchers,
    /// What others have to be told once the lock is given up.
    pub(super) news: News,
    /// How many were settled in this run, for whoever pushes.
    pub(super) settled_count: Arc<AtomicU64>,
    /// Number of the newest change of a slot.
    pub(super) changes: u64,
    /// The newest change for which a sync has begun.
    synced_changes: u64,
    /// The worker knows that there are changes to sync.
    is_asked: bool,
    is_closed: bool,
}

/// What was done since open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) popped: u64,
    pub(super) redelivered: u64,
    pub(super) acked: u64,
    pub(super) nacked: u64,
    pub(super) released: u64,
    pub(super) rejected: u64,
    pub(super) lease_expired: u64,
    pub(super) purged: u64,
    pub(super) expired: u64,
    pub(super) dropped: u64,
    pub(super) dead_lettered: u64,
    /// Handed out although their slot said settled.
    pub(super) duplicated: u64,
    /// First deliveries of messages behind one that was pushed later.
    pub(super) out_of_order: u64,
}

/// What the options say of deliveries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) visibility: Option<u64>,
    pub(super) max_attempts: u32,
    pub(super) max_in_flight: usize,
    pub(super) most_maps: usize,
    pub(super) backoff: Backoff,
    pub(super) has_dead_letters: bool,
    pub(super) expired: Expired,
    /// The clock is needed for each delivery.
    pub(super) has_times: bool,
}

impl Policy {
    pub(super) fn of(options: &Options) -> Self {
        let max_in_flight = options.max_in_flight.unwrap_or(u64::MAX);
        Self {
            visibility: options.visibility_timeout.map(clock::millis),
            max_attempts: options.max_attempts,
            max_in_flight: usize::try_from(max_in_flight).unwrap_or(usize::MAX),
            most_maps: usize::try_from(options.open_segments).unwrap_or(usize::MAX),
            backoff: options.backoff,
            has_dead_letters: options.dead_letters,
            expired: options.expired,
            has_times: options.visibility_timeout.is_some() || options.message_ttl.is_some(),
        }
    }

    /// Whether a message that was handed out so often, and failed, dies.
    pub(super) fn is_last(&self, attempts: u32) -> bool {
        self.max_attempts > 0 && attempts >= self.max_attempts
    }
}

impl Deliver {
    pub(super) fn new(
        log: &Log,
        options: &Options,
        clock: Arc<Clock>,
        settled_count: Arc<AtomicU64>,
    ) -> Self {
        let maps = Maps::default();
        Self {
            tracks: tracks_of(log, &maps.tickets),
            maps,
            policy: Policy::of(options),
            run: Run { start_time: clock.start_time(), first_seq: log.next_seq },
            clock,
            measure: Measure::default(),
            watchers: Watchers::default(),
            settled_count,
            dying: Dying::default(),
            cursor: Cursor::START,
            returned: BTreeMap::new(),
            schedule: Schedule::default(),
            leases: Leases::default(),
            losses: Losses::new(log),
            counts: Counts::default(),
            news: News::default(),
            // What a run before this one changed may not be synced yet.
            changes: u64::from(!log.parts.is_empty()),
            synced_changes: 0,
            is_asked: false,
            is_closed: false,
        }
    }

    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Drops the maps.
    pub(super) fn let_go(&mut self) {
        self.tracks.clear();
        self.returned.clear();
        self.schedule.clear();
        self.dying = Dying::default();
        self.leases = Leases::default();
    }

    /// # Errors
    ///
    /// [`Error::Closed`] once the queue is closed.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) fn add_track(&mut self, active: &Active) {
        let (segment, region) = (Arc::clone(&active.segment), Arc::clone(&active.region));
        let mapped = Mapped { segment, region };
        let (first_seq, base_time) = (active.first_seq, active.base_time);
        let tickets = &self.maps.tickets;
        self.tracks.push_back(Track::active(Arc::new(mapped), first_seq, base_time, tickets));
    }

    /// The active segment is no longer pushed to.
    pub(super) fn seal_track(&mut self, seal: Seal) {
        if let Some(active) = self.tracks.back_mut() {
            active.count = Some(seal.count);
            active.tail = Some(seal.tail);
        }
    }

    pub(super) fn tracks(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter()
    }

    pub(super) fn in_flight(&self) -> u64 {
        crate::format::bytes::wide(self.leases.count())
    }

    /// Messages that wait for their time.
    pub(super) fn delayed(&mut self) -> u64 {
        self.take_back_due();
        crate::format::bytes::wide(self.schedule.delayed())
    }

    /// Messages that can be handed out; reads what is published only under the lock.
    pub(super) fn ready(&mut self, published: impl Fn() -> u64) -> u64 {
        let elsewhere = self.delayed() + self.in_flight() + self.dying.count();
        self.owed(published()).saturating_sub(elsewhere)
    }

    /// Messages that are not settled.
    pub(super) fn owed(&self, published: u64) -> u64 {
        self.tracks.iter().map(|track| track.owed(published)).sum()
    }

    pub(super) fn segments(&self) -> u64 {
        crate::format::bytes::wide(self.tracks.len())
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.tracks.iter().map(|track| track.segment.header.size).sum()
    }

    /// The number of the newest change of a slot.
    pub(super) fn change_count(&self) -> u64 {
        self.changes
    }

    /// The segments with changed slots that no sync has covered, and the number of the newest
    /// change.
    pub(super) fn take_dirty(&mut self) -> (u64, Vec<Arc<Segment>>) {
        self.synced_changes = self.changes;
        self.is_asked = false;
        let answered = self.tracks.iter_mut().filter(|track| track.is_dirty);
        let take = |track: &mut Track| {
            track.is_dirty = false;
            Arc::clone(&track.segment)
        };
        (self.changes, answered.map(take).collect())
    }

    /// How many segments there are in which nothing is owed, and which can be let go.
    pub(super) fn done_segments(&self) -> u64 {
        let stays = |track: &Track| track.changed.is_some() || track.outlook.has_sources;
        let older = self.tracks.len().saturating_sub(1);
        let done = self.tracks.iter().take(older).filter(|track| track.is_done() && !stays(track));
        crate::format::bytes::wide(done.count())
    }

    /// How many segments of the backlog are mapped.
    pub(super) fn mapped_segments(&self) -> u64 {
        let mapped = self.tracks.iter().filter(|track| track.mapped.is_some());
        crate::format::bytes::wide(mapped.count())
    }

    /// Segments in which nothing is owed, but whose slots are not synced yet.
    pub(super) fn done_and_dirty(&self) -> Vec<Arc<Segment>> {
        let done = self.tracks.iter().filter(|track| track.is_done() && track.is_dirty);
        done.map(|track| Arc::clone(&track.segment)).collect()
    }

    /// This segment, in which nothing is owed, was synced.
    pub(super) fn done_is_clean(&mut self, segment: &Arc<Segment>) {
        if let Some(track) = self.track(segment.header.ordinal) {
            track.is_dirty = false;
        }
    }

    /// Takes out the tracks in which nothing is owed and nothing unsynced. The newest segment
    /// stays: its header says how far numbers went.
    pub(super) fn take_done(&mut self, is_synced: impl Fn(&Arc<Segment>) -> bool) -> Vec<Track> {
        let newest = self.tracks.back().map_or(0, Track::ordinal);
        let tracks = std::mem::take(&mut self.tracks).into_iter();
        let can_go = |track: &Track| {
            let is_synced = !track.is_dirty && is_synced(&track.segment);
            let is_free = track.changed.is_none() && !track.outlook.has_sources;
            let is_free = is_free && track.ordinal() != newest;
            track.is_done() && is_synced && is_free
        };
        let (done, kept): (Vec<Track>, Vec<Track>) = tracks.partition(can_go);
        self.tracks = kept.into();
        done
    }

    /// Takes the maps that are not in use. The caller drops them outside of the lock.
    pub(super) fn take_idle_maps(&mut self) -> Vec<Arc<Mapped>> {
        let cursor = self.cursor.ordinal;
        let newest = self.tracks.back().map_or(0, Track::ordinal);
        let idle =
            |track: &&mut Track| track.leased == 0 && ![cursor, newest].contains(&track.ordinal());
        self.tracks.iter_mut().filter(idle).filter_map(|track| track.mapped.take()).collect()
    }

    /// Whether there is, or seems to be, something to hand out.
    pub(super) fn has_more(&self, published: u64) -> bool {
        let is_returned = !self.returned.is_empty() || self.needs_watch();
        is_returned || !self.tracks.is_empty() && self.cursor.seq <= published
    }

    /// Segments that are not mapped, and of which everything is synced.
    pub(super) fn unmapped_and_clean(&self, is_durable: impl Fn(u64) -> bool) -> Vec<Arc<Segment>> {
        let clean = self.tracks.iter().filter(|track| {
            let end_seq = track.count.map(|_| track.end_seq(0));
            let is_synced = end_seq.is_some_and(|end_seq| is_durable(end_seq.saturating_sub(1)));
            track.mapped.is_none() && !track.is_dirty && is_synced
        });
        clean.map(|track| Arc::clone(&track.segment)).collect()
    }

    /// What could not be read may be readable now.
    pub(super) fn count_again(&mut self) {
        self.tracks.iter_mut().for_each(Track::count_again);
    }

    /// Counts some slots of earlier runs; false once all are counted.
    pub(super) fn count_some(&mut self) -> Result<bool> {
        let Some(at) = self.tracks.iter().position(Track::can_be_counted) else {
            return Ok(false);
        };
        self.count_some_of(at)?;
        Ok(true)
    }

    /// Counts some slots of a track, and takes up what they say.
    fn count_some_of(&mut self, at: usize) -> Result<()> {
        let special = self.tracks[at].count_some(self.run.start_time)?;
        for index in special.unnumbered {
            self.lose_if_owed(at, index, 0)?;
        }
        for lost in special.lost {
            self.losses.unaccounted.insert(lost, lost);
        }
        for (due, seq) in special.delayed {
            self.schedule.put(due, seq);
        }
        for seq in special.dying {
            if self.policy.has_dead_letters {
                self.dying.found(seq);
                self.news.died = true;
            } else if let Some(next) = self.look_up(seq)? {
                let Place { index, offset, .. } = next.place;
                self.settle_silently(next.at, index, offset, State::Dead)?;
                self.counts.dropped += 1;
            }
        }
        Ok(())
    }

    /// Counts all slots of a track: before the first of its messages is handed out, so that what is
    /// delayed or dying is known, and known once.
    pub(super) fn count_all_of(&mut self, at: usize) -> Result<()> {
        while !self.tracks[at].is_counted() {
            self.count_some_of(at)?;
        }
        Ok(())
    }

    /// Where the track of a segment is that has message `seq`; most are at one of the ends.
    #[inline]
    pub(super) fn position(&self, ordinal: u64, seq: u64) -> Option<usize> {
        let is = |track: Option<&Track>| track.is_some_and(|track| track.ordinal() == ordinal);
        if is(self.tracks.front()) {
            Some(0)
        } else if is(self.tracks.back()) {
            Some(self.tracks.len() - 1)
        } else {
            self.position_of_seq(seq).filter(|&at| is(self.tracks.get(at)))
        }
    }

    /// Where a message is now, and in which track: it may have been moved since.
    #[inline]
    pub(super) fn find_place(&mut self, place: Place) -> Result<Option<(usize, Place)>> {
        match self.position(place.ordinal, place.seq) {
            Some(at) => Ok(Some((at, place))),
            None => self.find_moved(place),
        }
    }

    #[cold]
    fn find_moved(&mut self, place: Place) -> Result<Option<(usize, Place)>> {
        let Some(at) = self.position_of_seq(place.seq) else { return Ok(None) };
        let track = &mut self.tracks[at];
        let (Some(index), ordinal) = (track.index_of(place.seq)?, track.ordinal()) else {
            return Ok(None);
        };
        let mapped = track.map()?;
        let slot = mapped.slot(index)?.unwrap_or(Slot::UNTOUCHED);
        // Where there is no record any more, whoever looks for it will see.
        let offset = match mapped.locate(slot, index, index + 1, RECORDS_START, None) {
            Located::At(offset, _) => offset,
            Located::Lost { .. } => slot.offset.unwrap_or(0),
        };
        Ok(Some((at, Place { ordinal, index, offset, ..place })))
    }

    /// The track of a segment, if it is still one.
    pub(super) fn track(&mut self, ordinal: u64) -> Option<&mut Track> {
        self.tracks.iter_mut().find(|track| track.ordinal() == ordinal)
    }

    /// The track at which a cursor goes on; looks for its place anew if its segment is no more.
    #[inline]
    pub(super) fn resume(&mut self, cursor: &mut Cursor) -> Result<Option<usize>> {
        match self.position(cursor.ordinal, cursor.seq) {
            Some(at) => Ok(Some(at)),
            None => self.resume_anew(cursor),
        }
    }

    #[cold]
    fn resume_anew(&mut self, cursor: &mut Cursor) -> Result<Option<usize>> {
        let at = self.position_of_seq(cursor.seq).unwrap_or(0);
        let Some(track) = self.tracks.get_mut(at) else { return Ok(None) };
        *cursor = Cursor::in_track(track, cursor.seq)?;
        Ok(Some(at))
    }

    /// Where the track is that has this message.
    pub(super) fn position_of_seq(&self, seq: u64) -> Option<usize> {
        self.tracks.partition_point(|track| track.first_seq <= seq).checked_sub(1)
    }

    /// Whether the worker has to be asked to sync changed slots some time soon.
    pub(super) fn asks_for_sync(&mut self) -> bool {
        self.changes > self.synced_changes && !std::mem::replace(&mut self.is_asked, true)
    }

    /// The worker could not sync: it has to be asked again.
    pub(super) fn ask_again(&mut self) {
        self.is_asked = false;
        self.synced_changes = 0;
    }
}

/// Tracks whose first Seqs rise: one without records has that of what follows it.
fn tracks_of(log: &Log, tickets: &Tickets) -> VecDeque<Track> {
    let mut tracks: VecDeque<Track> =
        log.parts.iter().map(|part| Track::of_earlier_run(part, tickets)).collect();
    for track in &mut tracks {
        let is_copy = |replaced: &Replaced| replaced.copy.segment.header.ordinal == track.ordinal();
        track.outlook.has_sources = log.replaced.iter().any(is_copy);
    }
    let mut next = log.next_seq;
    for track in tracks.iter_mut().rev() {
        if track.count == Some(0) {
            track.first_seq = next;
        }
        next = track.first_seq;
    }
    tracks
}
