//! The tracks in the order of the log, and where each of them is.
//!
//! Promises: the first Seqs of the tracks never fall, so a message has one place, and a segment is
//! found in a few steps, however many there are.

use super::log_place::LogPlace;
use super::track::Track;
use crate::format::address::Ordinal;
use crate::format::checkpoint::ConsumerOffset;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Index, IndexMut, Range};

/// The tracks, oldest first. One is known by its position until others come or go.
#[derive(Debug)]
pub(crate) struct LogOrder {
    tracks: VecDeque<Track>,
    /// The first Seq of each: side by side, so that a search touches few lines of the cache.
    first_seqs: VecDeque<u64>,
    /// The same by ordinals.
    by_ordinal: BTreeMap<Ordinal, u64>,
    /// Where the last one was that was sought. It is asked for again and again.
    last_found: Cell<usize>,
}

impl LogOrder {
    pub(super) fn new(tracks: VecDeque<Track>) -> Self {
        let first_seqs = tracks.iter().map(Track::first_seq).collect();
        let by_ordinal = tracks.iter().map(|track| (track.ordinal(), track.first_seq())).collect();
        Self { tracks, first_seqs, by_ordinal, last_found: Cell::default() }
    }

    pub(super) fn clear(&mut self) {
        self.tracks.clear();
        self.first_seqs.clear();
        self.by_ordinal.clear();
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.tracks.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }

    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter()
    }

    /// Those at these positions, which were found under this lock.
    pub(crate) fn range(&self, range: Range<usize>) -> impl Iterator<Item = &Track> {
        self.tracks.range(range)
    }

    /// The same.
    pub(super) fn range_mut(&mut self, range: Range<usize>) -> impl Iterator<Item = &mut Track> {
        self.tracks.range_mut(range)
    }

    #[inline]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Track> {
        self.tracks.iter_mut()
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<&Track> {
        self.tracks.get(at)
    }

    /// The newest one.
    pub(crate) fn back(&self) -> Option<&Track> {
        self.tracks.back()
    }

    pub(super) fn back_mut(&mut self) -> Option<&mut Track> {
        self.tracks.back_mut()
    }

    pub(super) fn is_newest(&self, track: &Track) -> bool {
        self.back().is_some_and(|newest| newest.ordinal() == track.ordinal())
    }

    /// Puts one in where the number of its first message belongs.
    pub(super) fn insert(&mut self, at: usize, track: Track) {
        self.first_seqs.insert(at, track.first_seq());
        self.by_ordinal.insert(track.ordinal(), track.first_seq());
        self.tracks.insert(at, track);
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, at: usize) -> Option<Track> {
        let track = self.tracks.remove(at)?;
        self.first_seqs.remove(at);
        self.by_ordinal.remove(&track.ordinal());
        Some(track)
    }

    /// The track of the segment `ordinal`, which has message `seq`, and where it is.
    #[inline]
    pub(crate) fn track_of(&self, ordinal: Ordinal, seq: u64) -> Option<(usize, &Track)> {
        let last = self.last_found.get();
        match self.track_if_at(last, ordinal) {
            Some(track) => Some((last, track)),
            None => self.track_anew(ordinal, seq),
        }
    }

    #[inline(never)]
    fn track_anew(&self, ordinal: Ordinal, seq: u64) -> Option<(usize, &Track)> {
        // A cursor behind the last message of a segment has the number of the next one's first.
        let ends = [0, self.tracks.len().saturating_sub(1)];
        let mut places = ends.into_iter().chain(self.position_of_seq(seq));
        let found = places.find_map(|at| Some((at, self.track_if_at(at, ordinal)?)))?;
        self.last_found.set(found.0);
        Some(found)
    }

    #[inline]
    fn track_if_at(&self, at: usize, ordinal: Ordinal) -> Option<&Track> {
        self.tracks.get(at).filter(|track| track.ordinal() == ordinal)
    }

    /// Where the track is that has this message.
    pub(crate) fn position_of_seq(&self, seq: u64) -> Option<usize> {
        self.first_seqs.partition_point(|&first_seq| first_seq <= seq).checked_sub(1)
    }

    /// Where the first track is that begins at this message, or behind it.
    pub(super) fn position_from(&self, seq: u64) -> usize {
        self.first_seqs.partition_point(|&first_seq| first_seq < seq)
    }

    /// Where the track of a segment is, if it is still one.
    pub(crate) fn position_of(&self, ordinal: Ordinal) -> Option<usize> {
        let first_seq = *self.by_ordinal.get(&ordinal)?;
        self.position_at(LogPlace { first_seq, ordinal })
    }

    /// The same, where its first Seq is known.
    pub(super) fn position_at(&self, place: LogPlace) -> Option<usize> {
        let LogPlace { first_seq, ordinal } = place;
        let first = self.position_from(first_seq);
        // Those without a record have the number of what follows them.
        let same = self.tracks.range(first..).take_while(|track| track.first_seq() == first_seq);
        let mut ordinals = same.map(Track::ordinal);
        ordinals.position(|other| other == ordinal).map(|nth| first + nth)
    }

    /// The first one from a position on that is as described.
    pub(super) fn find_from(&self, from: usize, is_it: impl Fn(&Track) -> bool) -> Option<usize> {
        self.tracks.range(from..).position(is_it).map(|nth| from + nth)
    }

    /// Messages that are not settled.
    pub(super) fn unsettled(&self, published: u64) -> u64 {
        self.tracks.iter().map(|track| track.unsettled(published)).sum()
    }

    /// Where the first message is that may be unsettled, as far as is known. `cursor`: no message
    /// from this number on was handed out. `published`: the newest message.
    pub(crate) fn consumer_offset(&self, cursor: u64, published: u64) -> ConsumerOffset {
        let first = self.tracks.iter().find(|track| !track.is_done());
        let Some(first) = first else {
            let floor = cursor.max(published + 1);
            return ConsumerOffset { floor, cursor: floor, ..ConsumerOffset::default() };
        };
        let index = first.records().look_for_floor(published).0;
        // A lower bound, where Seqs have gaps.
        let floor = first.first_seq().saturating_add(index.into());
        // In a run that has handed nothing out yet, it may be behind.
        ConsumerOffset { floor, cursor: cursor.max(floor), ordinal: first.ordinal(), index }
    }

    /// Bytes of the file of the newest segment.
    pub(crate) fn newest_size(&self) -> u64 {
        self.tracks.back().map_or(0, Track::size)
    }

    /// Whether nothing in the newest segment is unsettled, and nothing keeps it.
    pub(crate) fn is_newest_empty(&self, published: u64) -> bool {
        self.tracks.back().is_some_and(|newest| {
            let is_settled = newest.is_counted() && newest.unsettled(published) == 0;
            is_settled && newest.leased() == 0 && !newest.copying().is_pinned()
        })
    }
}

impl Index<usize> for LogOrder {
    type Output = Track;

    #[inline]
    fn index(&self, at: usize) -> &Track {
        &self.tracks[at]
    }
}

impl IndexMut<usize> for LogOrder {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut Track {
        &mut self.tracks[at]
    }
}
