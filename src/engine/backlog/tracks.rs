//! The tracks of all segments, in the order of their Seqs.
//!
//! Promises: the first Seqs of the tracks never fall, so a message has one place. A copy stands
//! where its sources stood. The newest segment stays, as its header says how far numbers went.

use super::map_numbers::MapNumbers;
use super::track::Track;
use crate::format::address::Ordinal;
use crate::format::bytes::to_u64;
use crate::format::checkpoint::ConsumerOffset;
use crate::format::segment::Seal;
use crate::log::Segment;
use crate::log::merge::CopySource;
use crate::log::sealed::Mapped;
use crate::recovery::Log;
use std::collections::{BTreeSet, VecDeque};
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// The tracks, oldest first. One is known by its position until others come or go.
#[derive(Debug)]
pub(crate) struct Tracks(VecDeque<Track>);

impl Tracks {
    /// Of the segments that open found.
    pub(super) fn of_log(log: &Log, maps: &MapNumbers) -> Self {
        let kept: BTreeSet<Ordinal> = log.kept().into_iter().map(|kept| kept.ordinal).collect();
        let (mut tracks, mut next_seq) = (VecDeque::new(), log.next_seq);
        for part in log.parts.iter().rev() {
            let is_kept = kept.contains(&part.segment.header.ordinal);
            let track = Track::of_earlier_run(part, next_seq, is_kept, maps);
            next_seq = track.first_seq();
            tracks.push_front(track);
        }
        Self(tracks)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Track> {
        self.0.iter()
    }

    #[inline]
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Track> {
        self.0.iter_mut()
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<&Track> {
        self.0.get(at)
    }

    /// The newest one.
    pub(crate) fn back(&self) -> Option<&Track> {
        self.0.back()
    }

    /// That of the segment that pushes go to from here on.
    pub(super) fn push_back(&mut self, track: Track) {
        self.0.push_back(track);
    }

    /// The newest segment is no longer pushed to.
    pub(super) fn seal_newest(&mut self, seal: Seal) {
        if let Some(newest) = self.0.back_mut() {
            newest.records_mut().seal(seal);
        }
    }

    /// Where the track of the segment `ordinal` is that has message `seq`; most are at one end.
    #[inline]
    pub(super) fn position(&self, ordinal: Ordinal, seq: u64) -> Option<usize> {
        let is = |track: Option<&Track>| track.is_some_and(|track| track.ordinal() == ordinal);
        if is(self.0.front()) {
            Some(0)
        } else if is(self.0.back()) {
            Some(self.0.len() - 1)
        } else {
            self.position_of_seq(seq).filter(|&at| is(self.0.get(at)))
        }
    }

    /// Where the track is that has this message.
    pub(crate) fn position_of_seq(&self, seq: u64) -> Option<usize> {
        self.0.partition_point(|track| track.first_seq() <= seq).checked_sub(1)
    }

    /// The track of a segment, if it is still one.
    pub(super) fn of_segment(&mut self, ordinal: Ordinal) -> Option<&mut Track> {
        self.0.iter_mut().find(|track| track.ordinal() == ordinal)
    }

    /// Messages that are not settled.
    pub(super) fn unsettled(&self, published: u64) -> u64 {
        self.0.iter().map(|track| track.unsettled(published)).sum()
    }

    /// The first segment of an earlier run whose slots are not all counted.
    pub(crate) fn first_uncounted(&self) -> Option<usize> {
        self.0.iter().position(|track| track.settled_count().can_go_on())
    }

    /// What could not be read may be readable now.
    pub(crate) fn count_again(&mut self) {
        self.0.iter_mut().for_each(|track| track.settled_count_mut().try_again());
    }

    /// How many segments without an unsettled message there are that can be let go.
    pub(crate) fn done_segments(&self) -> u64 {
        to_u64(self.older().filter(|track| is_free(track)).count())
    }

    /// Takes out a segment in which nothing is unsettled and nothing unsynced.
    pub(crate) fn take_done(
        &mut self,
        is_synced: impl Fn(&Arc<Segment>) -> bool,
    ) -> Option<(Arc<Segment>, u32)> {
        let can_go = |track: &Track| {
            is_free(track) && track.answers().are_durable() && is_synced(track.segment())
        };
        let at = self.older().position(can_go)?;
        let track = self.0.remove(at)?;
        Some((Arc::clone(track.segment()), track.count().unwrap_or(0)))
    }

    /// Where the first message is that may be unsettled, as far as is known. `cursor`: no message
    /// from this number on was handed out. `published`: the newest message.
    pub(crate) fn consumer_offset(&self, cursor: u64, published: u64) -> ConsumerOffset {
        let first = self.0.iter().find(|track| !track.is_done());
        let Some(first) = first else {
            return ConsumerOffset { floor: cursor, cursor, ..ConsumerOffset::default() };
        };
        let index = first.records().look_for_floor(published).0;
        // A lower bound, where Seqs have gaps.
        let floor = first.first_seq().saturating_add(index.into());
        ConsumerOffset { floor, cursor, ordinal: first.ordinal(), index }
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
        let at = self.0.iter().position(|track| track.ordinal() == ordinal)?;
        self.0.remove(at)
    }

    /// Bytes of the file of the newest segment.
    pub(crate) fn newest_size(&self) -> u64 {
        self.0.back().map_or(0, Track::size)
    }

    /// Whether nothing in the newest segment is unsettled, and nothing keeps it.
    pub(crate) fn is_newest_empty(&self, published: u64) -> bool {
        self.0.back().is_some_and(|newest| {
            let is_settled = newest.is_counted() && newest.unsettled(published) == 0;
            is_settled && newest.leased() == 0 && !newest.copying().is_pinned()
        })
    }

    /// All but the newest.
    fn older(&self) -> impl Iterator<Item = &Track> {
        self.0.iter().take(self.0.len().saturating_sub(1))
    }

    /// Whether a copy has as many unsettled messages as its sources. It has not if the slot of a
    /// settled one went bad while it was made: that message is unsettled again, and not copied.
    pub(crate) fn can_replace(&self, sources: &[CopySource], copy: &Track) -> bool {
        let ordinals = sources.iter().map(|source| source.segment.header.ordinal);
        let sources = ordinals.filter_map(|ordinal| self.0.iter().find(|t| t.ordinal() == ordinal));
        sources.map(whole_unsettled).sum::<u32>() == whole_unsettled(copy)
    }

    /// Puts a copy in the place of its sources, which it gives back.
    pub(super) fn replace(&mut self, sources: &[CopySource], mut copy: Track) -> Vec<Track> {
        let sources: BTreeSet<Ordinal> =
            sources.iter().map(|source| source.segment.header.ordinal).collect();
        let is_source = |track: &Track| sources.contains(&track.ordinal());
        let at = self.0.iter().position(is_source).unwrap_or(self.0.len());
        let (removed, kept): (Vec<Track>, Vec<Track>) =
            std::mem::take(&mut self.0).into_iter().partition(is_source);
        self.0 = kept.into();
        copy.take_over(&removed);
        self.0.insert(at, copy);
        removed
    }

    /// How many segments are mapped.
    pub(crate) fn mapped_segments(&self) -> u64 {
        to_u64(self.0.iter().filter(|track| track.records().is_mapped()).count())
    }

    /// Maps that no delivery needs. The caller drops them outside of the lock. `reading`: the
    /// ordinal of the segment that is read.
    pub(crate) fn take_idle_maps(&mut self, reading: Ordinal) -> Vec<Arc<Mapped>> {
        let newest = self.0.back().map_or(Ordinal::NONE, Track::ordinal);
        let is_idle = |track: &&mut Track| {
            track.leased() == 0 && ![reading, newest].contains(&track.ordinal())
        };
        let idle = self.0.iter_mut().filter(is_idle);
        idle.filter_map(|track| track.records_mut().take_map()).collect()
    }

    /// The sync of answers that began last has ended. If it failed, the next one covers what it had
    /// to.
    pub(crate) fn end_sync(&mut self, is_synced: bool) {
        self.0.iter_mut().for_each(|track| track.answers_mut().end_sync(is_synced));
    }

    /// Closes segments that are not mapped, and of which everything is synced. Under the lock, so
    /// that nothing is stored in between, whose error of writing back would be missed.
    pub(crate) fn release_clean(&self, is_durable: impl Fn(u64) -> bool) {
        for track in self.clean() {
            let end_seq = track.count().map(|_| track.end_seq(0));
            if end_seq.is_some_and(|end_seq| is_durable(end_seq.saturating_sub(1))) {
                track.segment().release();
            }
        }
    }

    /// Closes those of these segments, which were just synced, that are not in use again.
    pub(crate) fn release_synced(&self, synced: &[Arc<Segment>]) {
        for track in self.clean() {
            if synced.iter().any(|segment| Arc::ptr_eq(segment, track.segment())) {
                track.segment().release();
            }
        }
    }

    /// Those whose segments are not mapped and have no unsynced answers.
    fn clean(&self) -> impl Iterator<Item = &Track> {
        self.0.iter().filter(|track| !track.records().is_mapped() && track.answers().are_durable())
    }
}

impl Index<usize> for Tracks {
    type Output = Track;

    #[inline]
    fn index(&self, at: usize) -> &Track {
        &self.0[at]
    }
}

impl IndexMut<usize> for Tracks {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut Track {
        &mut self.0[at]
    }
}

/// How many messages of a segment that is no longer pushed to are unsettled.
fn whole_unsettled(track: &Track) -> u32 {
    track.count().unwrap_or(0).saturating_sub(track.settled_count().messages())
}

/// Whether nothing in a segment is unsettled, and nothing else keeps it.
fn is_free(track: &Track) -> bool {
    track.is_done() && !track.copying().is_pinned()
}
