//! The tracks of all segments, and what is to be done with them.
//!
//! Promises: a copy stands where its sources stood. The newest segment stays, as its header says
//! how far numbers went. What is done for each new segment, for each map and for each segment that
//! is let go looks at the busy segments only: whoever may change a track has it listed as busy. One
//! is at rest again once it is not mapped, has no answers to be synced, and is closed. If nothing
//! in it is unsettled either, it is listed as done.

use super::activity::Activity;
use super::done::DoneSegments;
use super::log_order::LogOrder;
use super::log_place::LogPlace;
use super::settled_count::Special;
use super::track::Track;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::bytes::to_u64;
use crate::format::segment::Seal;
use crate::format::standing::Run;
use crate::log::Segment;
use crate::log::merge::CopySource;
use crate::log::sealed::Mapped;
use crate::recovery::Log;
use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::ops::{Deref, Index, IndexMut, Range};
use std::sync::{Arc, Weak};

/// Which maps are given up: those that no delivery needs, and perhaps others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IdleMaps {
    All,
    /// The same; if there are none, those that deliveries need, which are mapped again then.
    OrLeased,
    /// Those that were evicted as a whole.
    Evicted,
}

/// A map that no track has any more. It goes first, and is no longer counted after that.
#[derive(Debug)]
pub(crate) struct LeftMap {
    _map: Arc<Mapped>,
    _counted: Arc<()>,
}

/// The tracks.
#[derive(Debug)]
pub(crate) struct Tracks {
    in_order: LogOrder,
    activity: Activity,
    /// Maps that no track has any more, until somebody takes them out to give them up.
    left: Vec<LeftMap>,
    /// Each of those owns it, too, also if it was taken out, until it is gone.
    left_count: Arc<()>,
    done: DoneSegments,
    /// Whether some may have answers of an earlier run that no sync has covered.
    have_inherited: bool,
    /// Those with a smaller first Seq have no slots to count.
    uncounted_from: Cell<u64>,
    /// Whether slots of one could not be read.
    has_unreadable: bool,
}

impl Tracks {
    /// Of the segments that open found.
    pub(super) fn of_log(log: &Log, activity: &Activity) -> Self {
        let kept: BTreeSet<Ordinal> = log.kept().into_iter().map(|kept| kept.ordinal).collect();
        let (mut tracks, mut next_seq) = (VecDeque::new(), log.next_seq);
        for part in log.parts.iter().rev() {
            let is_kept = kept.contains(&part.segment.header.ordinal);
            let track = Track::of_earlier_run(part, next_seq, is_kept, activity);
            next_seq = track.first_seq();
            tracks.push_front(track);
        }
        // Those without a record have nothing to be counted.
        let mut done = DoneSegments::default();
        tracks.iter().filter(|track| is_free(track)).for_each(|track| done.add(track));
        Self {
            have_inherited: !tracks.is_empty(),
            in_order: LogOrder::new(tracks),
            activity: activity.clone(),
            left: Vec::new(),
            left_count: Arc::default(),
            done,
            uncounted_from: Cell::default(),
            has_unreadable: false,
        }
    }

    pub(super) fn clear(&mut self) {
        self.in_order.clear();
        self.left.clear();
        self.done = DoneSegments::default();
    }

    /// Those at these positions, for what compaction notes: it may not change what makes one busy.
    pub(crate) fn range_copying_mut(
        &mut self,
        range: Range<usize>,
    ) -> impl Iterator<Item = &mut Track> {
        self.in_order.range_mut(range)
    }

    /// Where those are that are busy, oldest first.
    fn busy(&self) -> Vec<usize> {
        let busy = self.activity.busy().into_iter();
        let mut busy: Vec<usize> = busy.filter_map(|place| self.position_at(place)).collect();
        busy.sort_unstable();
        busy
    }

    /// Those that are busy, oldest first.
    pub(crate) fn iter_busy(&self) -> impl Iterator<Item = &Track> {
        self.busy().into_iter().map(|at| &self.in_order[at])
    }

    pub(super) fn for_each_busy_mut(&mut self, mut change: impl FnMut(&mut Track)) {
        for at in self.busy() {
            change(&mut self.in_order[at]);
        }
    }

    /// Those that are busy, but for the newest.
    fn iter_busy_older(&self) -> impl Iterator<Item = &Track> {
        self.iter_busy().filter(|track| !self.is_newest(track))
    }

    /// That of the segment that pushes go to from here on.
    pub(super) fn push_back(&mut self, track: Track) {
        track.records().note_busy();
        self.in_order.insert(self.in_order.len(), track);
    }

    /// The newest segment is no longer pushed to.
    pub(super) fn seal_newest(&mut self, seal: Seal) {
        if let Some(newest) = self.in_order.back_mut() {
            newest.records_mut().seal(seal);
        }
    }

    /// The track of a segment, if it is still one.
    pub(super) fn of_segment(&mut self, ordinal: Ordinal) -> Option<&mut Track> {
        self.position_of(ordinal).map(|at| &mut self[at])
    }

    /// Takes one out of the log, without its map.
    fn take_out(&mut self, at: usize) -> Option<Track> {
        let mut track = self.in_order.remove(at)?;
        let map = track.records_mut().take_map();
        self.leave(map);
        self.activity.retain(|busy| busy.ordinal != track.ordinal());
        self.done.remove(&track);
        Some(track)
    }

    /// The first segment of an earlier run whose slots are not all counted.
    pub(crate) fn first_uncounted(&self) -> Option<usize> {
        let from = self.position_from(self.uncounted_from.get());
        let first = self.find_from(from, |track| track.settled_count().can_go_on());
        self.uncounted_from.set(first.map_or(u64::MAX, |at| self.in_order[at].first_seq()));
        first
    }

    /// Counts some slots of a segment, and tells which are special.
    pub(super) fn count_some(
        &mut self,
        at: usize,
        run: Run,
        is_last: impl Fn(u32) -> bool,
    ) -> Result<Special> {
        let track = &mut self.in_order[at];
        let special = track.count_some(run, is_last);
        self.has_unreadable |= special.is_err();
        if is_free(track) && is_clean(track) {
            self.done.add(track);
        } else if track.is_done() {
            track.records().note_busy();
        }
        special
    }

    /// What could not be read may be readable now.
    pub(crate) fn count_again(&mut self) {
        if std::mem::take(&mut self.has_unreadable) {
            self.in_order.iter_mut().for_each(|track| track.settled_count_mut().try_again());
            self.uncounted_from.set(0);
        }
    }

    /// How many segments without an unsettled message there are that can be let go.
    pub(crate) fn done_segments(&self) -> u64 {
        let busy = self.iter_busy_older().filter(|track| is_free(track) && !self.done.has(track));
        let newest = self.in_order.back().is_some_and(|newest| self.done.has(newest));
        to_u64(self.done.len() - usize::from(newest) + busy.count())
    }

    /// Takes out a segment in which nothing is unsettled and nothing unsynced. The caller gives its
    /// map up.
    pub(crate) fn take_done(&mut self, is_synced: impl Fn(&Track) -> bool) -> Option<Track> {
        let can_go =
            |track: &Track| is_free(track) && track.answers().are_durable() && is_synced(track);
        let mut done = self.tracks_of(self.done.synced());
        let ordinal = done
            .find(|track| can_go(track))
            .or_else(|| self.iter_busy_older().find(|track| can_go(track)))
            .map(Track::ordinal)?;
        drop(done);
        self.remove(ordinal)
    }

    /// The first segment without an unsettled message whose slots are not synced yet, among those
    /// that can go then.
    pub(crate) fn first_done_and_unsynced(
        &self,
        can_go: impl Fn(&Track) -> bool,
    ) -> Option<&Arc<Segment>> {
        let is_unsynced =
            |track: &&Track| is_free(track) && track.answers().are_unsynced() && can_go(track);
        let mut done = self.tracks_of(self.done.unsynced());
        let first = done.find(is_unsynced).or_else(|| self.iter_busy_older().find(is_unsynced));
        first.map(Track::segment)
    }

    /// A segment that is done was synced: nothing is stored to it any more.
    pub(crate) fn note_done_synced(&mut self, ordinal: Ordinal) {
        let Some(at) = self.position_of(ordinal) else { return };
        let track = &mut self.in_order[at];
        track.answers_mut().set_durable();
        if self.done.has(track) {
            self.done.add(track);
        }
    }

    fn tracks_of(&self, places: impl Iterator<Item = LogPlace>) -> impl Iterator<Item = &Track> {
        let tracks = places.filter_map(|place| self.position_at(place));
        tracks.map(|at| &self.in_order[at]).filter(|track| !self.is_newest(track))
    }

    /// Where the segments are whose files somebody removed, and that hold nothing open. The newest
    /// one is looked after by pushes and syncs.
    pub(crate) fn vanished(&self) -> Vec<Ordinal> {
        let is_gone = |track: &&Track| {
            let is_free = !track.records().is_mapped() && !track.copying().is_pinned();
            is_free && track.segment().is_gone()
        };
        self.older().filter(is_gone).map(Track::ordinal).collect()
    }

    /// Takes a segment out.
    pub(crate) fn remove(&mut self, ordinal: Ordinal) -> Option<Track> {
        self.position_of(ordinal).and_then(|at| self.take_out(at))
    }

    /// All but the newest.
    fn older(&self) -> impl Iterator<Item = &Track> {
        self.in_order.iter().take(self.in_order.len().saturating_sub(1))
    }

    /// Whether a copy has as many unsettled messages as its sources. It has not if the slot of a
    /// settled one went bad while it was made: that message is unsettled again, and not copied.
    pub(crate) fn can_replace(&self, sources: &[CopySource], copy: &Track) -> bool {
        let ordinals = sources.iter().map(|source| source.segment.header.ordinal);
        let sources = ordinals.filter_map(|ordinal| self.position_of(ordinal));
        let unsettled = sources.map(|at| whole_unsettled(&self.in_order[at]));
        unsettled.sum::<u32>() == whole_unsettled(copy)
    }

    /// Puts a copy in the place of its sources, which it gives back.
    pub(super) fn replace(&mut self, sources: &[CopySource], mut copy: Track) -> Vec<Track> {
        let ordinals = sources.iter().map(|source| source.segment.header.ordinal);
        let mut at: Vec<usize> = ordinals.filter_map(|ordinal| self.position_of(ordinal)).collect();
        at.sort_unstable();
        let first = at.first().copied().unwrap_or(self.in_order.len());
        // The last one first, so that the others stay where they are.
        let removed = at.into_iter().rev().filter_map(|at| self.take_out(at));
        let mut removed: Vec<Track> = removed.collect();
        removed.reverse();
        copy.take_over(&removed);
        copy.records().note_busy();
        self.in_order.insert(first, copy);
        removed
    }

    /// How many segments are mapped, but for the maps that left their tracks.
    pub(crate) fn mapped_segments(&self) -> u64 {
        to_u64(self.iter_busy().filter(|track| track.records().is_mapped()).count())
    }

    /// Takes the map of this segment. The caller sees to its being given up.
    pub(super) fn unmap(&mut self, ordinal: Ordinal) {
        let map = self.of_segment(ordinal).and_then(|track| track.records_mut().take_map());
        self.leave(map);
    }

    fn leave(&mut self, map: Option<Arc<Mapped>>) {
        let count = &self.left_count;
        self.left.extend(map.map(|map| LeftMap { _map: map, _counted: Arc::clone(count) }));
    }

    /// How many maps no track has any more that are not gone, also of those that were taken out.
    pub(super) fn left_maps(&self) -> usize {
        Arc::strong_count(&self.left_count) - 1
    }

    /// Whether nobody has taken one of them out yet.
    pub(super) fn has_left_maps(&self) -> bool {
        !self.left.is_empty()
    }

    /// Up to `most` of them, to be given up outside of the lock. Those that left first go first.
    pub(crate) fn take_left_maps(&mut self, most: usize) -> Vec<LeftMap> {
        self.left.drain(..most.min(self.left.len())).collect()
    }

    /// Those, and maps that no delivery needs, to be given up outside of the lock. `reading`: the
    /// ordinal of the segment that is read.
    pub(crate) fn take_idle_maps(&mut self, reading: Ordinal, which: IdleMaps) -> Vec<LeftMap> {
        let newest = self.in_order.back().map_or(Ordinal::NONE, Track::ordinal);
        let kept = [reading, newest];
        self.leave_if(|track| {
            let is_idle = track.leased() == 0 && !kept.contains(&track.ordinal());
            is_idle && (which != IdleMaps::Evicted || !track.records().is_to_evict())
        });
        if which == IdleMaps::OrLeased && self.left.is_empty() {
            self.leave_if(|track| !kept.contains(&track.ordinal()));
        }
        std::mem::take(&mut self.left)
    }

    fn leave_if(&mut self, leaves: impl Fn(&Track) -> bool) {
        let mut maps = Vec::new();
        self.for_each_busy_mut(|track| {
            if leaves(track) {
                maps.extend(track.records_mut().take_map());
            }
        });
        for map in maps {
            self.leave(Some(map));
        }
    }

    /// Whether this segment is mapped, and not evicted as a whole.
    pub(crate) fn is_to_evict(&self, ordinal: Ordinal) -> bool {
        self.position_of(ordinal).is_some_and(|at| self.in_order[at].records().is_to_evict())
    }

    /// This map was evicted as a whole.
    pub(crate) fn note_evicted(&self, map: &Weak<Mapped>) {
        self.iter_busy().for_each(|track| track.records().note_evicted(map));
    }

    /// The first map that is to be evicted, and how many there are: that of segment `also`, those
    /// that no delivery needs and no cursor reads, and those without an unsettled message.
    pub(crate) fn to_evict(
        &self,
        reading: Ordinal,
        also: Option<Ordinal>,
    ) -> Option<(Weak<Mapped>, u64)> {
        let is_left = |track: &&Track| {
            let is_idle = track.leased() == 0 && (track.ordinal() != reading || track.is_done());
            track.records().is_to_evict() && (is_idle || Some(track.ordinal()) == also)
        };
        let left = || self.iter_busy_older().filter(is_left);
        let of_also = left().find(|track| Some(track.ordinal()) == also);
        let first = of_also.or_else(|| left().next())?;
        Some((Arc::downgrade(first.records().mapped()?), to_u64(left().count())))
    }

    /// A sync of answers begins. Gives the segments that have some that no sync has covered.
    pub(super) fn begin_sync(&mut self) -> Vec<Arc<Segment>> {
        if std::mem::take(&mut self.have_inherited) {
            let inherited = self.in_order.iter().filter(|track| track.answers().are_unsynced());
            inherited.for_each(|track| track.records().note_busy());
            self.done.begin_sync();
        }
        let mut begun = Vec::new();
        self.for_each_busy_mut(|track| {
            if track.answers().are_unsynced() {
                track.answers_mut().begin_sync();
                begun.push(Arc::clone(track.segment()));
            }
        });
        begun
    }

    /// The sync of answers that began last has ended. If it failed, the next one covers what it had
    /// to.
    pub(crate) fn end_sync(&mut self, is_synced: bool) {
        self.for_each_busy_mut(|track| track.answers_mut().end_sync(is_synced));
    }

    /// Closes segments that are not mapped, and of which everything is synced. Under the lock, so
    /// that nothing is stored in between, whose error of writing back would be missed.
    pub(crate) fn release_clean(&mut self, is_durable: impl Fn(u64) -> bool) {
        for at in self.busy() {
            let track = &self.in_order[at];
            let end_seq = track.count().map(|_| track.end_seq(0));
            let is_durable = end_seq.is_some_and(|end_seq| is_durable(end_seq.saturating_sub(1)));
            if !is_durable || !is_clean(track) {
                continue;
            }
            track.segment().release();
            if is_free(track) {
                self.done.add(track);
            }
            // What is done and kept for another reason is looked at again.
            if is_free(track) || !track.is_done() {
                track.records().rest();
            }
        }
        self.activity.retain(|&place| {
            self.position_at(place).is_some_and(|at| self.in_order[at].records().is_busy())
        });
    }

    /// Closes those of these segments, which were just synced, that are not in use again.
    pub(crate) fn release_synced(&self, synced: &[Arc<Segment>]) {
        for track in self.iter_busy().filter(|track| is_clean(track)) {
            if synced.iter().any(|segment| Arc::ptr_eq(segment, track.segment())) {
                track.segment().release();
            }
        }
    }
}

/// Whoever only looks at them makes none busy.
impl Deref for Tracks {
    type Target = LogOrder;

    #[inline]
    fn deref(&self) -> &LogOrder {
        &self.in_order
    }
}

impl Index<usize> for Tracks {
    type Output = Track;

    #[inline]
    fn index(&self, at: usize) -> &Track {
        &self.in_order[at]
    }
}

impl IndexMut<usize> for Tracks {
    #[inline(always)]
    fn index_mut(&mut self, at: usize) -> &mut Track {
        let track = &mut self.in_order[at];
        track.records().note_busy();
        track
    }
}

/// How many messages of a segment that is no longer pushed to are unsettled.
fn whole_unsettled(track: &Track) -> u32 {
    track.count().unwrap_or(0).saturating_sub(track.settled_count().messages())
}

/// Whether nobody has a segment mapped, or else its file stays open, and no answer in it has to be
/// synced through its descriptor.
fn is_clean(track: &Track) -> bool {
    !track.segment().is_mapped() && !track.answers().hold_open()
}

/// Whether nothing in a segment is unsettled, and nothing else keeps it.
fn is_free(track: &Track) -> bool {
    track.is_done() && !track.copying().is_pinned()
}
