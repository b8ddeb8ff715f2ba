//! Which files are the queue. From the page: "Reading a queue", 1.

use super::Refusal;
use super::checkpoint::Checkpoint;
use super::segment::{NoSegment, Segment};
use std::collections::BTreeMap;

/// A file's name and bytes.
pub(crate) type File = (String, Vec<u8>);

/// A compacted segment with all of its marks, and the sources of it that are still there.
pub(super) struct Copied<'a> {
    pub(super) segment: Segment<'a>,
    pub(super) sources: Vec<Segment<'a>>,
}

pub(super) struct Directory<'a> {
    pub(super) checkpoint: Option<Checkpoint>,
    /// All but compacted and replaced ones, by ordinal.
    pub(super) segments: BTreeMap<u64, Segment<'a>>,
    pub(super) copies: Vec<Copied<'a>>,
    /// Compacted segments without all of their marks.
    pub(super) broken: Vec<Segment<'a>>,
    /// What stands for each ordinal that was replaced, whether that is there or not.
    pub(super) replaced: BTreeMap<u64, u64>,
    /// How many files have a segment's name and no valid header.
    pub(super) unreadable: u64,
    /// Of the segments that say what they hold.
    pub(super) largest_ordinal: u64,
}

impl<'a> Directory<'a> {
    pub(super) fn read(files: &'a [File]) -> Result<Self, Refusal> {
        let file = files.iter().find(|(name, _)| name == "CHECKPOINT");
        let checkpoint = file.map(|(_, bytes)| Checkpoint::read(bytes));
        let checkpoint = checkpoint.transpose()?.flatten();
        let mut all = Vec::new();
        let mut unreadable = 0;
        let is_segment = |name: &str| {
            let digits = name.strip_suffix(".seg").unwrap_or_default();
            digits.len() == 16 && digits.bytes().all(|digit| b"0123456789abcdef".contains(&digit))
        };
        let mut named: Vec<&File> = files.iter().filter(|(name, _)| is_segment(name)).collect();
        named.sort();
        for (name, bytes) in named {
            match Segment::read(name, bytes) {
                Ok(segment) => all.push(segment),
                Err(NoSegment::Unreadable) => unreadable += 1,
                Err(NoSegment::Newer) => return Err(Refusal::Newer),
            }
        }
        let queue_id = queue_id(&all, checkpoint.as_ref());
        let checkpoint =
            checkpoint.filter(|hints| queue_id.is_none_or(|queue_id| hints.queue_id == *queue_id));
        all.retain(|segment| Some(segment.queue_id) == queue_id);
        all.retain(|segment| !is_retired(segment.ordinal, checkpoint.as_ref()));
        all.retain(|segment| !is_stale(segment, checkpoint.as_ref()));
        let mut segments = BTreeMap::new();
        for segment in all {
            let is_named_so = segment.name == format!("{:016x}.seg", segment.ordinal);
            if is_named_so || !segments.contains_key(&segment.ordinal) {
                segments.insert(segment.ordinal, segment);
            }
        }
        if segments.is_empty() && checkpoint.is_none() && unreadable > 0 {
            return Err(Refusal::Unreadable);
        }
        let mut directory = Self {
            checkpoint,
            unreadable,
            largest_ordinal: 0,
            segments,
            copies: Vec::new(),
            broken: Vec::new(),
            replaced: BTreeMap::new(),
        };
        directory.take_out_copies();
        Ok(directory)
    }

    /// Takes out compacted segments, and those that they replace. The larger ordinal counts.
    fn take_out_copies(&mut self) {
        // What stands in place of copies that share a source.
        let mut sharing: BTreeMap<u64, u64> = BTreeMap::new();
        let compacted: Vec<u64> = self
            .segments
            .values()
            .rev()
            .filter(|segment| segment.is_compacted())
            .map(|segment| segment.ordinal)
            .collect();
        for ordinal in compacted {
            let Some(segment) = self.segments.remove(&ordinal) else { continue };
            if segment.copied().is_none() {
                if !self.replaced.contains_key(&ordinal) {
                    self.broken.push(segment);
                }
                continue;
            }
            // By which copy it is replaced: one that was made from it, or has a source of it.
            let by = self.replaced.get(&ordinal).copied();
            let sources = segment.older_sources();
            let shared = sources.clone().chain([ordinal]).filter_map(|one| sharing.get(&one));
            let counts = shared.copied().chain(by).max();
            sources.clone().for_each(|source| {
                sharing.entry(source).or_insert(counts.unwrap_or(ordinal));
            });
            match counts {
                None => {
                    self.replaced.extend(sources.map(|source| (source, ordinal)));
                    self.copies.push(Copied { segment, sources: Vec::new() });
                }
                Some(counts) => {
                    // Only of one that it was made from: another may have had other sources, and
                    // those count.
                    if by == Some(counts) {
                        sources.for_each(|source| {
                            self.replaced.entry(source).or_insert(counts);
                        });
                    }
                    let mut copies = self.copies.iter_mut();
                    if let Some(copy) = copies.find(|copy| copy.segment.ordinal == counts) {
                        copy.sources.push(segment);
                    }
                }
            }
        }
        for copy in &mut self.copies {
            let ordinal = copy.segment.ordinal;
            for (source, _) in self.replaced.iter().filter(|(_, by)| **by == ordinal) {
                copy.sources.extend(self.segments.remove(source));
            }
        }
    }

    /// What CHECKPOINT says of this ordinal.
    pub(super) fn listed(&self, ordinal: u64) -> Option<super::Listed> {
        let listed = self.checkpoint.iter().flat_map(|hints| &hints.segments);
        listed.copied().find(|listed| listed.ordinal == ordinal)
    }

    /// Whether CHECKPOINT says that it was lost before.
    pub(super) fn knows_lost(&self, ordinal: u64) -> bool {
        self.checkpoint.as_ref().is_some_and(|hints| hints.apart.lost.contains(&ordinal))
    }

    /// Whether CHECKPOINT says that it was lost, or may have been.
    pub(super) fn awaits(&self, ordinal: u64) -> bool {
        let is_unseen = |hints: &Checkpoint| is_unseen(ordinal, hints);
        self.knows_lost(ordinal) || self.checkpoint.as_ref().is_some_and(is_unseen)
    }

    /// Whether CHECKPOINT says that it never counts.
    pub(super) fn is_left_out(&self, ordinal: u64) -> bool {
        self.checkpoint.as_ref().is_some_and(|hints| hints.apart.left_out.contains(&ordinal))
    }

    pub(super) fn accounted(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |hints| hints.accounted)
    }
}

/// That of CHECKPOINT if a segment carries it, else the one that most segments carry; of two, that
/// of the segment with the smallest ordinal.
fn queue_id<'a>(all: &[Segment<'a>], checkpoint: Option<&Checkpoint>) -> Option<&'a [u8]> {
    let mut counts: BTreeMap<&[u8], u64> = BTreeMap::new();
    for segment in all {
        *counts.entry(segment.queue_id).or_default() += 1;
    }
    let of_checkpoint = checkpoint.and_then(|hints| counts.get_key_value(&hints.queue_id[..]));
    let most = counts.values().max();
    let common = all.iter().filter(|segment| counts.get(segment.queue_id) == most);
    let oldest = common.min_by_key(|segment| segment.ordinal).map(|segment| segment.queue_id);
    of_checkpoint.map(|(queue_id, _)| *queue_id).or(oldest)
}

fn is_unseen(ordinal: u64, hints: &Checkpoint) -> bool {
    hints.apart.unseen.iter().any(|&(from, to)| from <= ordinal && ordinal <= to)
}

/// Whether it is left out, or not listed, and its ordinal is below the next, and not unseen.
fn is_retired(ordinal: u64, checkpoint: Option<&Checkpoint>) -> bool {
    checkpoint.is_some_and(|hints| {
        let is_listed = hints.segments.iter().any(|listed| listed.ordinal == ordinal);
        hints.apart.left_out.contains(&ordinal)
            || !is_listed && !is_unseen(ordinal, hints) && ordinal < hints.next_ordinal
    })
}

/// Whether it is a copy of what was retired, and is not listed with a message.
fn is_stale(segment: &Segment, checkpoint: Option<&Checkpoint>) -> bool {
    let is_used = |hints: &Checkpoint| {
        let mut used = hints.segments.iter().filter(|listed| listed.first_seq > 0);
        used.any(|listed| listed.ordinal == segment.ordinal)
    };
    !checkpoint.is_some_and(is_used)
        && segment.older_sources().any(|source| is_retired(source, checkpoint))
}
