//! The records that are the log, and what is missing of it. From the page: "Reading a queue", 1 to
//! 4 and 7.

use super::checkpoint::Listed;
use super::directory::Directory;
use super::epoch::{Cut, Epoch, Part, Watermark};
use super::ranges::Ranges;
use super::segment::{NUMBER_END, Segment};
use std::collections::BTreeMap;

/// What a file without a valid header adds to the next number: twice the records that the largest
/// segment can hold.
const PER_UNREADABLE: u64 = 2 * (((1 << 29) - 1) * 8 / (24 + 16));

pub(super) struct Log<'a> {
    /// In the order of their Seqs.
    pub(super) parts: Vec<Part<'a>>,
    pub(super) cut: Option<Cut>,
    /// Numbers that were durable and have no record.
    pub(super) lost: Ranges,
    pub(super) next_seq: u64,
    pub(super) newest_time: u64,
    /// How far the queue's time was ahead of UTC at the end.
    pub(super) clock_shift: i64,
    /// Numbers of segments that do not count, since others have some of them.
    pub(super) overlapping: Ranges,
}

/// No run starts later.
const LATEST_START: u64 = (1 << 48) - (1 << 40);

/// The segment that is the last to have been made: its epoch and ordinal.
type Newest = (u64, u64);

impl<'a> Log<'a> {
    pub(super) fn read(directory: &mut Directory<'a>) -> Self {
        let hints = directory.checkpoint.as_ref();
        let newest_time = hints.map_or(0, |hints| hints.newest_time.max(hints.added.time));
        let clock_shift = hints.map_or(0, |hints| hints.added.clock_shift);
        let mut lost = Ranges::default();
        for (first, last) in directory.absent() {
            lost.add(first, last);
        }
        let mut log = Self {
            parts: Vec::new(),
            cut: None,
            lost,
            next_seq: directory.seq_limit(),
            newest_time,
            clock_shift,
            overlapping: Ranges::default(),
        };
        let broken_newest = log.take_broken(directory);
        directory.largest_ordinal = directory.whole().map(|one| one.ordinal).max().unwrap_or(0);
        let newest = log.read_epochs(directory);
        if let Some((newest, end_seq)) = newest
            && directory.unreadable == 0
            && broken_newest.is_none_or(|broken| broken < newest)
            && !directory.knows_newer(newest)
        {
            log.next_seq = end_seq.unwrap_or(log.next_seq);
        }
        for copy in std::mem::take(&mut directory.copies) {
            if let Some(part) = Part::read(copy.segment) {
                log.parts.push(Part { sources: copy.sources, ..part });
            }
        }
        for part in &log.parts {
            log.newest_time = part.newest_time.max(log.newest_time);
        }
        log.parts.retain(|part| part.count > 0);
        let ends = log.parts.iter().map(Part::end_seq);
        log.next_seq = ends.fold(log.next_seq.min(NUMBER_END), u64::max);
        log.leave_out_overlapping(directory);
        log
    }

    /// Leaves out what has a Seq in common with one that was made later, and puts the others in the
    /// order of their Seqs.
    fn leave_out_overlapping(&mut self, directory: &mut Directory<'a>) {
        let mut parts = std::mem::take(&mut self.parts);
        parts.sort_by_key(|part| part.segment.ordinal);
        while let Some(part) = parts.pop() {
            let is_apart =
                |one: &Part| one.end_seq() <= part.first_seq || part.end_seq() <= one.first_seq;
            if self.parts.iter().all(is_apart) {
                self.parts.push(part);
                continue;
            }
            let ordinal = part.segment.ordinal;
            self.overlapping.add(part.first_seq, part.end_seq() - 1);
            directory.replaced.retain(|_, by| *by != ordinal);
        }
        self.parts.sort_by_key(|part| part.first_seq);
        let mut lost = self.overlapping.clone();
        self.parts.iter().for_each(|part| lost.remove(part.first_seq, part.end_seq() - 1));
        lost.iter().for_each(|(first, last)| self.lost.add(first, last));
    }

    /// The queue's time when it is opened at this time.
    pub(super) fn start(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.clock_shift).max(self.newest_time).min(LATEST_START)
    }

    /// Takes out segments that have lost the marks that say what they hold. Tells the newest that
    /// is not compacted.
    fn take_broken(&mut self, directory: &mut Directory<'a>) -> Option<Newest> {
        let mut broken = std::mem::take(&mut directory.broken);
        let without_start: Vec<u64> = directory
            .segments
            .values()
            .filter(|segment| has_lost_its_start(segment, directory))
            .map(|segment| segment.ordinal)
            .collect();
        broken.extend(without_start.iter().filter_map(|one| directory.segments.remove(one)));
        let mut newest = None;
        for segment in broken {
            let count = segment.seal.map_or(0, |seal| seal.count);
            let listed = directory.listed(segment.ordinal).filter(|listed| listed.first_seq > 0);
            let range = match listed {
                Some(listed) => {
                    let (first, last) = directory.range_of(&listed);
                    let count = if segment.is_compacted() { 0 } else { count };
                    Some((first, last.max(first.saturating_add(count).saturating_sub(1))))
                }
                None if segment.is_compacted() || count == 0 => None,
                None => directory
                    .first_by_neighbours(&segment, count)
                    .map(|first| (first, first.saturating_add(count - 1))),
            };
            if let Some((first, last)) = range {
                self.lost.add(first, last.max(first));
            }
            if !segment.is_compacted() {
                newest = newest.max(Some((segment.epoch, segment.ordinal)));
            }
        }
        newest
    }

    /// Tells the newest segment, and the number after its last if the run ended there.
    fn read_epochs(&mut self, directory: &mut Directory<'a>) -> Option<(Newest, Option<u64>)> {
        let noted = directory.checkpoint.as_ref().map(|hints| {
            let ordinal = hints.last_used().map_or(0, |used| used.ordinal);
            Watermark { seq: hints.watermark, ordinal }
        });
        let mut epochs: BTreeMap<u64, Vec<Segment>> = BTreeMap::new();
        for (_, segment) in std::mem::take(&mut directory.segments) {
            epochs.entry(segment.epoch).or_default().push(segment);
        }
        let newest = epochs.values().next_back()?.last()?;
        let end = newest.seal.filter(|seal| seal.is_end);
        let end_seq = newest
            .activation
            .zip(end)
            .map(|(activation, seal)| activation.first_seq.saturating_add(seal.count));
        if directory.checkpoint.as_ref().is_none_or(|hints| newest.ordinal >= hints.next_ordinal) {
            self.clock_shift = newest.clock_shift;
        }
        let newest = (newest.epoch, newest.ordinal);
        for (epoch, segments) in epochs {
            let noted = noted.unwrap_or(Watermark { seq: 0, ordinal: 0 });
            let noted = Some(noted).filter(|_| epoch == newest.0);
            let read = Epoch::read(segments, noted, |ordinal| directory.durable_end(ordinal));
            self.parts.extend(read.parts);
            read.lost.iter().for_each(|(first, last)| self.lost.add(first, last));
            self.cut = read.cut;
        }
        Some((newest, end_seq))
    }
}

/// Whether it has no activation, and a seal, or else CHECKPOINT, says that it holds something.
fn has_lost_its_start(segment: &Segment, directory: &Directory) -> bool {
    let listed = directory.listed(segment.ordinal);
    segment.activation.is_none()
        && match segment.seal {
            Some(seal) => seal.count > 0,
            None => {
                listed.is_some_and(|listed| (1..=directory.accounted()).contains(&listed.first_seq))
            }
        }
}

impl Directory<'_> {
    /// First and last Seq of each listed segment that is absent and held something, and was not
    /// known to be lost.
    fn absent(&self) -> Vec<(u64, u64)> {
        let listed = self.checkpoint.iter().flat_map(|hints| &hints.segments);
        let is_absent = |listed: &&Listed| {
            listed.first_seq > 0
                && !self.knows_lost(listed.ordinal)
                && !self.is_left_out(listed.ordinal)
                && !self.all().any(|segment| segment.ordinal == listed.ordinal)
                && !self.replaced.contains_key(&listed.ordinal)
        };
        listed.filter(is_absent).map(|listed| self.range_of(listed)).collect()
    }

    /// The first and the last Seq that a listed segment had when the list was written.
    pub(super) fn range_of(&self, listed: &Listed) -> (u64, u64) {
        let range = self.checkpoint.as_ref().map(|hints| hints.range_of(listed));
        range.unwrap_or((listed.first_seq, listed.first_seq))
    }

    /// The last number that was durable in a segment that is listed, or was when it was lost.
    fn durable_end(&self, ordinal: u64) -> u64 {
        let Some(hints) = &self.checkpoint else { return 0 };
        let listed = self.listed(ordinal).filter(|listed| listed.first_seq > 0);
        listed.map_or(0, |listed| hints.last_of(&listed).min(hints.watermark))
    }

    /// Where the Seqs of a segment with this many records began: within an epoch they have no gap.
    fn first_by_neighbours(&self, segment: &Segment, count: u64) -> Option<u64> {
        let mut same = self.segments.values().filter(|other| other.epoch == segment.epoch);
        let is_behind = |other: &&Segment| {
            other.predecessor == segment.ordinal && segment.ordinal < other.ordinal
        };
        let next = same.clone().find(is_behind);
        if let Some(next) = next.and_then(|next| next.activation) {
            return next.first_seq.checked_sub(count);
        }
        let before = same.find(|other| other.ordinal == segment.predecessor)?;
        (before.ordinal < segment.ordinal).then_some(())?;
        before.activation?.first_seq.checked_add(before.seal?.count)
    }

    /// Those that say what they hold.
    fn whole(&self) -> impl Iterator<Item = &Segment<'_>> {
        let copies =
            self.copies.iter().flat_map(|copy| [&copy.segment].into_iter().chain(&copy.sources));
        self.segments.values().chain(copies)
    }

    fn all(&self) -> impl Iterator<Item = &Segment<'_>> {
        self.whole().chain(&self.broken)
    }

    /// No Seq at or above it was given out.
    fn seq_limit(&self) -> u64 {
        let limits = self.all().map(|segment| segment.seq_limit);
        let noted = self.checkpoint.as_ref().map(|hints| hints.seq_limit);
        let limit = limits.chain(noted).max().unwrap_or(1);
        limit.max(1).saturating_add(self.unreadable.saturating_mul(PER_UNREADABLE))
    }

    /// Whether CHECKPOINT knows a segment or an epoch that is newer than all that are here.
    fn knows_newer(&self, (epoch, _): Newest) -> bool {
        self.checkpoint.as_ref().is_some_and(|hints| {
            let listed = hints.segments.iter().map(|listed| listed.ordinal);
            let listed = listed.filter(|ordinal| !hints.apart.lost.contains(ordinal)).max();
            hints.epoch > epoch || listed.unwrap_or(0) > self.largest_ordinal
        })
    }
}
