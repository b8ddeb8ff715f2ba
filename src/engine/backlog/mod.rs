//! The backlog: what is known of the messages that are stored, segment by segment.
//!
//! Promises: a message is found by its Seq, wherever compaction has moved it; every store of a
//! state goes through [`Backlog::store`], which counts it and has the next sync of answers cover
//! it; damage is told, and a record is lost only if it was seen to be. Refuses to know who has a
//! message or when it may be handed out. Relies on the dispatch lock, under which all of it is
//! used.
//!
//! `Tracks` has a `Track` for each segment, which owns the segment's `Records`, its `SettledCount`
//! and its `Copying`, what compaction has said of it. It keeps them in `LogOrder`, by position and
//! ordinal; `Activity` lists those that something was done to, `DoneSegments` those that wait to be
//! let go. For all segments together, `Maps` keeps the limit of maps, `Losses` lists what was found
//! damaged, and `Changes` says what a sync covers.

pub(crate) mod activity;
mod answers;
mod body;
mod changes;
mod copying;
pub(crate) mod cursor;
mod done;
mod found;
mod log_order;
mod log_place;
pub(crate) mod losses;
pub(crate) mod maps;
pub(crate) mod records;
mod seq_bounds;
pub(crate) mod settled_count;
pub(crate) mod track;
mod tracks;
pub(crate) mod walk;

pub(crate) use body::Body;
pub(crate) use found::{FoundMessage, Lookup, LostRecords, Met, Spot};
pub(crate) use tracks::{IdleMaps, LeftMap};

use crate::error::Result;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::record;
use crate::format::segment::{RECORDS_START, Seal};
use crate::format::slot::{self, Delay, Slot, State};
use crate::format::standing::{Run, Standing};
use crate::leases::Place;
use crate::log::active::Active;
use crate::log::sealed::Status;
use crate::log::{Segment, merge::CopySource};
use crate::recovery::Log;
use crate::report::{Damage, DamageKind};
use activity::Activity;
use changes::Changes;
use cursor::Cursor;
use losses::Losses;
use maps::Maps;
use seq_bounds::SeqBounds;
use settled_count::{Recount, Special};
use std::ops::Range;
use std::sync::Arc;
use track::{Stored, Track};
use tracks::Tracks;

/// What is above the limits of maps and of open files, if a map was made.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Surplus {
    /// More files are open than the limit says, or will be idle once maps are given up.
    pub(crate) has_files_to_close: bool,
    /// So many of those maps are to be given up at once.
    pub(crate) too_many_maps: usize,
}

/// The stored messages.
#[derive(Debug)]
pub(crate) struct Backlog {
    tracks: Tracks,
    maps: Maps,
    losses: Losses,
    seq_bounds: SeqBounds,
    run: Run,
    changes: Changes,
}

impl Backlog {
    pub(super) fn new(log: &Log, run: Run, most_maps: usize) -> Self {
        let maps = Maps::new(most_maps);
        Self {
            tracks: Tracks::of_log(log, maps.activity()),
            maps,
            losses: Losses::new(log),
            seq_bounds: SeqBounds::default(),
            run,
            changes: Changes::new(!log.parts.is_empty()),
        }
    }

    /// Gives up all segments.
    pub(super) fn clear(&mut self) {
        self.tracks.clear();
    }

    #[inline]
    pub(crate) fn tracks(&self) -> &Tracks {
        &self.tracks
    }

    /// The track at a position that was found under this lock.
    #[inline]
    pub(crate) fn track_at(&self, at: usize) -> &Track {
        &self.tracks[at]
    }

    #[inline]
    pub(super) fn track_at_mut(&mut self, at: usize) -> &mut Track {
        &mut self.tracks[at]
    }

    pub(crate) fn tracks_mut(&mut self) -> &mut Tracks {
        &mut self.tracks
    }

    pub(crate) fn losses_mut(&mut self) -> &mut Losses {
        &mut self.losses
    }

    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    pub(crate) fn run(&self) -> Run {
        self.run
    }

    pub(crate) fn activity(&self) -> &Activity {
        self.maps.activity()
    }

    /// The segment that pushes go to is sealed, if there is one, and another takes its place.
    pub(crate) fn rotate(&mut self, seal: Option<Seal>, active: &Active) {
        if let Some(seal) = seal {
            self.seal_newest(seal);
        }
        self.tracks.push_back(Track::active(active, self.maps.activity()));
    }

    /// The newest segment is no longer pushed to.
    pub(crate) fn seal_newest(&mut self, seal: Seal) {
        self.tracks.seal_newest(seal);
    }

    /// Messages that are not settled.
    pub(crate) fn unsettled(&self, published: u64) -> u64 {
        self.tracks.unsettled(published)
    }

    /// The track of a segment, if it is still one.
    pub(crate) fn track(&mut self, ordinal: Ordinal) -> Option<&mut Track> {
        self.tracks.of_segment(ordinal)
    }

    /// Where a message is now: compaction may have moved it since `place` was noted. `None` if no
    /// segment has it any more.
    #[inline]
    pub(super) fn find_place(&self, place: Place) -> Result<Option<(Spot, Place)>> {
        match self.tracks.track_of(place.ordinal, place.seq) {
            Some((at, _)) => Ok(Some((Spot { at, index: place.index }, place))),
            None => self.find_moved(place),
        }
    }

    #[cold]
    fn find_moved(&self, place: Place) -> Result<Option<(Spot, Place)>> {
        let Some(at) = self.tracks.position_of_seq(place.seq) else { return Ok(None) };
        let track = &self.tracks[at];
        let (Some(index), ordinal) = (track.records().index_of(place.seq)?, track.ordinal()) else {
            return Ok(None);
        };
        let mapped = track.map()?;
        let slot = mapped.slot(index)?.unwrap_or(Status::REBUILT);
        // Where there is no record any more, a later look for it will see that.
        let offset = slot.offset.or_else(|| Some(mapped.record(slot, index)?.0));
        let offset = offset.unwrap_or(Offset::START);
        Ok(Some((Spot { at, index }, Place { ordinal, index, offset, ..place })))
    }

    /// A message by its number; also one whose slot cannot be read, as it would be rebuilt.
    pub(super) fn look_up(&self, seq: u64) -> Result<Lookup> {
        let Some(at) = self.tracks.position_of_seq(seq) else { return Ok(Lookup::Gone) };
        let run = self.run;
        let track = &self.tracks[at];
        let Some(index) = track.records().index_of(seq)? else { return Ok(Lookup::Gone) };
        let spot = Spot { at, index };
        let status = track.status(index, run)?;
        if status.standing.is_settled() {
            return Ok(Lookup::Gone);
        }
        Ok(match track.map()?.record(status.slot, index) {
            Some((offset, header)) => {
                let said = (seq, status.slot, status.standing);
                Lookup::Found(self.found(spot, said, offset, header))
            }
            None => Lookup::Lost(spot, status.slot.offset.unwrap_or(RECORDS_START)),
        })
    }

    /// What was found: `offset` and `header` are of its own record.
    pub(super) fn found(
        &self,
        spot: Spot,
        (seq, Slot { attempts, .. }, standing): (u64, Slot, Standing),
        offset: Offset,
        header: record::RecordHeader,
    ) -> FoundMessage {
        let ordinal = self.tracks[spot.at].ordinal();
        let (index, bytes) = (spot.index, header.bytes());
        let is_transient = header.flags.is_transient();
        let standing = standing.with_record(header.flags, self.run.is_old(seq));
        let place = Place { seq, ordinal, index, offset, attempts, bytes, is_transient };
        FoundMessage { spot, place, header, standing }
    }

    /// Stores the state of a message, unless it is settled. `record`: where its own record was
    /// found, and its length.
    pub(super) fn store(
        &mut self,
        spot: Spot,
        state: (State, u32),
        record: Option<(Offset, u32)>,
    ) -> Result<Stored> {
        let stored = self.tracks[spot.at].store(spot.index, state, record, self.run)?;
        if stored != Stored::WasSettled {
            self.changes.note(1);
        }
        Ok(stored)
    }

    /// Stores the state of a message that was found under this lock, and so is not settled. Gives
    /// its track.
    #[inline]
    pub(super) fn store_found(
        &mut self,
        spot: Spot,
        state: (State, u32),
        offset: Offset,
    ) -> Result<&mut Track> {
        self.changes.note(1);
        let track = &mut self.tracks[spot.at];
        track.store_unsettled(spot.index, state, offset)?;
        Ok(track)
    }

    /// Stores the time before which a message is not to be handed out.
    pub(super) fn store_delay(&mut self, spot: Spot, delay: Delay) -> Result<()> {
        self.changes.note(1);
        self.tracks[spot.at].store_delay(spot.index, delay)
    }

    /// Stores this state to a slot that was never written to its place.
    pub(super) fn rebuild_slot(&mut self, spot: Spot, state: (State, u32)) -> Result<()> {
        let Spot { at, index } = spot;
        let offset = slot::offset(self.tracks[at].size(), index);
        self.list_damage(spot, offset, DamageKind::Slot);
        self.store(spot, state, None).map(|_| ())
    }

    /// Counts all slots of a segment again that were counted. `published`: the newest message.
    pub(super) fn recount(&mut self, at: usize, published: u64) -> Result<Recount> {
        self.tracks[at].recount(published)
    }

    /// Whether the delay in a slot is damaged.
    pub(super) fn has_unreadable_delay(&self, spot: Spot) -> bool {
        let track = &self.tracks[spot.at];
        let base_time = track.base_time();
        track.map().is_ok_and(|mapped| mapped.has_unreadable_delay(spot.index, base_time))
    }

    /// A message was found damaged and is settled as lost: tells of it. `offset`: where it was
    /// sought.
    pub(super) fn note_loss(&mut self, spot: Spot, offset: Offset) {
        let (first, last) = self.seq_bounds.of(self.tracks[spot.at].records(), spot.index);
        self.losses.lose(first, last);
        self.list_damage(spot, offset, DamageKind::Corrupt);
    }

    /// Tells of damage that settles nothing.
    pub(super) fn list_damage(&mut self, spot: Spot, offset: Offset, kind: DamageKind) {
        let track = &mut self.tracks[spot.at];
        let (first, last) = self.seq_bounds.of(track.records(), spot.index);
        if !self.losses.has(first, kind) {
            let path = track.segment().path.clone();
            self.losses.list(Damage { first, last, path, offset: offset.0, kind });
        }
    }

    /// The track at which a cursor goes on; looks for its place anew if its segment is no more.
    #[inline]
    pub(crate) fn resume(&self, cursor: &mut Cursor) -> Result<Option<usize>> {
        match self.tracks.track_of(cursor.ordinal(), cursor.seq()) {
            Some((at, _)) => Ok(Some(at)),
            None => self.resume_anew(cursor),
        }
    }

    #[cold]
    fn resume_anew(&self, cursor: &mut Cursor) -> Result<Option<usize>> {
        let at = self.tracks.position_of_seq(cursor.seq()).unwrap_or(0);
        let Some(track) = self.tracks.get(at) else { return Ok(None) };
        *cursor = Cursor::in_track(track, cursor.seq())?;
        Ok(Some(at))
    }

    /// Counts some slots of a segment, and tells which are special.
    pub(super) fn count_some(
        &mut self,
        at: usize,
        is_last: impl Fn(u32) -> bool,
    ) -> Result<Special> {
        let special = self.tracks.count_some(at, self.run, is_last)?;
        // An earlier run found them lost: all numbers that they can have are.
        for &index in &special.lost_unnumbered {
            let (first, last) = self.seq_bounds.of(self.tracks[at].records(), index);
            self.losses.note(first, last);
        }
        Ok(special)
    }

    /// The changes of slots, and those that a sync covers.
    #[inline]
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    pub(super) fn changes_mut(&mut self) -> &mut Changes {
        &mut self.changes
    }

    /// The slots of messages side by side were stored to. Gives their track.
    #[inline(always)]
    pub(super) fn note_changes(&mut self, at: usize, indexes: Range<Index>) -> &mut Track {
        self.changes.note(indexes.end - indexes.start);
        let track = &mut self.tracks[at];
        track.note_changes(indexes);
        track
    }

    /// A sync begins. Gives the segments with changed slots that no sync has covered, and the
    /// number of the newest change.
    pub(super) fn begin_sync(&mut self) -> (u64, Vec<Arc<Segment>>) {
        (self.changes.begin_sync(), self.tracks.begin_sync())
    }

    /// Whether maps were made since those above the limit were last taken.
    #[inline]
    pub(super) fn has_new_maps(&self) -> bool {
        self.maps.has_new()
    }

    /// If a map was made since the last call: takes those above the limit from their tracks.
    pub(super) fn unmap_surplus(&mut self, reading: Ordinal, has_worker: bool) -> Surplus {
        if !self.maps.has_new() {
            return Surplus::default();
        }
        let holds_too_many = self.holds_too_many(1);
        let too_many_maps = self.maps.unmap_surplus(&mut self.tracks, reading, has_worker);
        let has_files_to_close = holds_too_many || self.tracks.has_left_maps();
        Surplus { has_files_to_close, too_many_maps }
    }

    /// A sync begins of those segments above the limit of open files that only unsynced answers
    /// hold open.
    pub(crate) fn begin_sync_of_held_open(&mut self) -> Vec<Arc<Segment>> {
        self.maps.begin_sync_of_held_open(&mut self.tracks)
    }

    /// Whether there are more of those than `factor` times the limit.
    pub(crate) fn holds_too_many(&self, factor: usize) -> bool {
        self.maps.holds_too_many(&self.tracks, factor)
    }

    /// Puts a copy in the place of its sources, which it gives back. Places that name a source are
    /// looked up anew when they are needed.
    pub(crate) fn replace(&mut self, sources: &[CopySource], copy: Track) -> Vec<Track> {
        let removed = self.tracks.replace(sources, copy);
        // The next sync of answers covers the copy.
        self.changes.note(1);
        removed
    }
}
