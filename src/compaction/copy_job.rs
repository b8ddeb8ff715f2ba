//! Copying the unsettled messages of some segments into one, a step at a time.
//!
//! Promises: every message that is unsettled when its slot is read is copied as it was pushed, or
//! is a finding; an error of reading is an error and not damage. Relies on the caller to note which
//! slots change from before the first step on, and to bring their copies up to date at the end.
//! Takes no lock.

use super::plan::CopyPlan;
use crate::error::Result;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::segment::RECORDS_START;
use crate::format::slot::{Slot, State, StoredDelay};
use crate::io::Storage;
use crate::io::window::Window;
use crate::log::copy::{Copied, CopyWriter, Finished, Progress, Survivor};
use crate::log::merge::CopySource;
use crate::log::sealed::{Located, Mapped};
use crate::log::{OnFailure, ReadSlot};
use std::sync::Arc;

/// Slots that are read at once.
const SLOTS_A_STEP: u32 = 4096;

/// What a job found besides messages to copy. The caller has to settle it under its lock; the
/// message may have been settled meanwhile. `ordinal`: of the segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// Records `from..to` are damaged, or were not found from this offset on.
    Lost { ordinal: Ordinal, from: Index, to: Index, offset: Offset },
    /// A slot is damaged.
    BadSlot { ordinal: Ordinal, index: Index },
    /// The delay in a slot is damaged.
    BadDelay { ordinal: Ordinal, index: Index },
    /// A transient message of an earlier run.
    Outlived { ordinal: Ordinal, index: Index, offset: Offset },
}

impl Finding {
    /// The segment that it was found in.
    pub(crate) fn ordinal(&self) -> Ordinal {
        match *self {
            Self::Lost { ordinal, .. }
            | Self::BadSlot { ordinal, .. }
            | Self::BadDelay { ordinal, .. }
            | Self::Outlived { ordinal, .. } => ordinal,
        }
    }
}

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    More,
    /// The first sources are copied, this many; there is no room for others.
    Done(usize),
}

/// A copy that is being made.
#[derive(Debug)]
pub(crate) struct CopyJob {
    sources: Vec<CopySource>,
    copy: CopyWriter,
    /// The number of the source that is being copied.
    at: usize,
    reading: Option<SourceReader>,
    /// What the copy had before this source.
    before: Progress,
    /// Messages before this one are of earlier runs of the queue.
    first_new: u64,
    findings: Vec<Finding>,
}

/// A source that is being read.
#[derive(Debug)]
struct SourceReader {
    window: Arc<Window>,
    mapped: Mapped,
    index: Index,
    offset: Offset,
    previous: Option<(Index, Offset)>,
}

impl SourceReader {
    fn new(source: &CopySource) -> Self {
        let window = source.segment.window();
        let region = Arc::clone(&window);
        let mapped = Mapped::new(Arc::clone(&source.segment), region, source.tail);
        Self { window, mapped, index: Index::FIRST, offset: RECORDS_START, previous: None }
    }

    /// Finds the next record, whose slot this is.
    ///
    /// # Errors
    ///
    /// If something could not be read on the way: what looks like damage then may be none.
    fn locate(&self, slot: Slot, index: Index, end_index: Index) -> Result<Located> {
        let located = self.mapped.locate(slot, index, end_index, self.offset, self.previous);
        match self.window.take_error() {
            None => Ok(located),
            Some((at, error)) => Err(self.mapped.segment.error("read segment", Offset(at), error)),
        }
    }
}

impl CopyJob {
    pub(crate) fn new(sources: Vec<CopySource>, copy: CopyWriter, first_new: u64) -> Self {
        let before = copy.progress();
        Self { sources, copy, at: 0, reading: None, before, first_new, findings: Vec::new() }
    }

    /// The size of a copy of these segments.
    pub(crate) fn size_for(choice: &CopyPlan) -> u64 {
        CopyWriter::size_for(choice.record_bytes, choice.records)
    }

    pub(crate) fn sources(&self) -> &[CopySource] {
        &self.sources
    }

    pub(crate) fn copy(&self) -> &CopyWriter {
        &self.copy
    }

    /// The source that was being copied when a step failed.
    pub(crate) fn failed_source(&self) -> Option<Ordinal> {
        self.sources.get(self.at).map(|source| source.segment.header.ordinal)
    }

    /// What was found since the last call.
    pub(crate) fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Goes on until about `budget` bytes were read or written; returns how many were.
    pub(crate) fn step(&mut self, budget: u64) -> Result<(Step, u64)> {
        let mut used = 0;
        while used < budget {
            let Some(source) = self.sources.get(self.at).cloned() else {
                return Ok((Step::Done(self.at), used));
            };
            let mut reading = self.reading.take().unwrap_or_else(|| SourceReader::new(&source));
            let written = self.copy.written();
            let most = budget - used;
            let fits = self.copy_some(&source, &mut reading, most)?;
            used += reading.window.take_read() + self.copy.written().since(written);
            used += u64::from(SLOTS_A_STEP);
            if !fits {
                self.copy.rewind(self.before);
                return Ok((Step::Done(self.at), used));
            }
            if reading.index < Index(source.count) {
                self.reading = Some(reading);
            } else {
                (self.at, self.before) = (self.at + 1, self.copy.progress());
            }
        }
        Ok((Step::More, used))
    }

    /// Copies the unsettled messages among some slots, until `most` bytes are written; false if
    /// there is no room for one of them.
    fn copy_some(
        &mut self,
        source: &CopySource,
        reading: &mut SourceReader,
        most: u64,
    ) -> Result<bool> {
        let number = SLOTS_A_STEP.min(Index(source.count).since(reading.index));
        if number == 0 {
            return Ok(true);
        }
        let CopySource { segment, first_seq, base_time, .. } = source;
        let start = self.copy.written();
        let slots = segment.read_slots(reading.index, number, *base_time)?;
        let seqs = segment.read_seqs(reading.index, number, *first_seq)?;
        for (seq, slot) in seqs.zip(slots) {
            if slot.index < reading.index {
                // It is lost, together with an earlier one.
                continue;
            }
            if !self.copy_one(source, reading, seq, slot)? {
                return Ok(false);
            }
            if self.copy.written().since(start) >= most {
                break;
            }
        }
        Ok(true)
    }

    /// Copies a message if it is unsettled; false if there is no room for it.
    fn copy_one(
        &mut self,
        source: &CopySource,
        reading: &mut SourceReader,
        seq: Option<u64>,
        ReadSlot { index, slot, delay }: ReadSlot,
    ) -> Result<bool> {
        let ordinal = source.segment.header.ordinal;
        let is_old = seq.map_or(source.is_old, |seq| seq < self.first_new);
        reading.index = index.next();
        if let Some(slot) = slot.filter(|slot| slot.is_settled(is_old)) {
            reading.previous = slot.offset.map(|offset| (index, offset)).or(reading.previous);
            return Ok(true);
        }
        // One that does not rise is damaged.
        let Progress { count, last_seq, .. } = self.copy.progress();
        let Some(seq) = seq.filter(|&seq| count == 0 || seq > last_seq) else {
            let offset = slot.and_then(|slot| slot.offset).unwrap_or(Offset::START);
            self.findings.push(Finding::Lost { ordinal, from: index, to: index.next(), offset });
            return Ok(true);
        };
        if slot.is_none() {
            self.findings.push(Finding::BadSlot { ordinal, index });
        }
        if delay == StoredDelay::Unreadable {
            self.findings.push(Finding::BadDelay { ordinal, index });
        }
        // A damaged slot is rebuilt like this.
        let slot = slot.unwrap_or(Slot { state: State::Delivered, attempts: 1, offset: None });
        let (offset, header) = match reading.locate(slot, index, Index(source.count))? {
            Located::At(offset, header) => (offset, header),
            Located::Lost { end_index, next } => {
                let (from, to) = (index, end_index.max(index.next()));
                self.findings.push(Finding::Lost { ordinal, from, to, offset: next });
                (reading.index, reading.offset, reading.previous) = (to, next, None);
                return Ok(true);
            }
        };
        (reading.offset, reading.previous) = (offset + header.record_len(), None);
        if header.flags.is_transient() && is_old && slot.state != State::Dying {
            self.findings.push(Finding::Outlived { ordinal, index, offset });
            return Ok(true);
        }
        let pushed_at = header.pushed_at(source.base_time);
        let survivor = Survivor { seq, pushed_at, slot, delay };
        match self.copy.add(&survivor, &reading.mapped, &header, offset)? {
            Copied::Yes => Ok(true),
            Copied::NoRoom => Ok(false),
            Copied::Damaged => {
                self.findings.push(Finding::Lost {
                    ordinal,
                    from: index,
                    to: index.next(),
                    offset,
                });
                Ok(true)
            }
        }
    }

    /// Gives the copy of the first `count` sources its name. `seq_limit`: that of the whole log.
    pub(crate) fn finish(
        self,
        storage: &dyn Storage,
        count: usize,
        seq_limit: u64,
        told: &dyn OnFailure,
    ) -> Result<Finished> {
        let ordinals = self.sources.iter().take(count);
        let ordinals = ordinals.map(|source| source.segment.header.ordinal).collect();
        self.copy.finish(storage, ordinals, seq_limit, told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::format::extension::Verified;
    use crate::format::segment::{Activation, SegmentHeader, most_slots};
    use crate::io::Access;
    use crate::io::memory::MemoryStorage;
    use crate::log::active::{Active, Placing, When};
    use crate::log::draft::Draft;
    use crate::log::scan::scan;
    use crate::log::unnamed::{Preparation, Unnamed};
    use crate::time::Time;
    use std::path::Path;

    /// What a newer keepq says of a message, and what a reader must not ignore of it.
    const MUST_BE_KNOWN: &[u8] = b"\x04\x00\x83\x01\x00A";

    /// No sync fails here.
    struct Refused;

    impl OnFailure for Refused {
        fn failed(&self, operation: &'static str, path: &Path, error: std::io::Error) -> Error {
            Error::io(operation, path, 0, error)
        }
    }

    fn header(ordinal: Ordinal, size: u64) -> SegmentHeader {
        SegmentHeader {
            queue_id: [1; 16],
            ordinal,
            predecessor: Ordinal::NONE,
            generation: ordinal.0,
            epoch: 1,
            size,
            seq_limit: 100,
            sources: 0,
            clock_shift: crate::time::Shift::default(),
        }
    }

    /// A record of a newer keepq is not damaged: it is read over and copied like any other.
    #[test]
    fn what_must_be_known_is_copied_as_it_is() {
        let storage = MemoryStorage::new();
        let preparation = Preparation { piece: 0, is_synced: false };
        let made = Unnamed::create(&storage, header(Ordinal(1), 64 << 10), preparation).unwrap();
        let segment = Arc::new(made.finish(&storage, &Refused).unwrap());
        let region = segment.map(Access::Commits).unwrap();
        let mut active =
            Active::start(Arc::clone(&segment), region, 7, Time(1000), Placing::Stored).unwrap();
        let drafts = [
            Draft::new(Vec::new(), b"known"[..].into()).unwrap(),
            Draft::new(MUST_BE_KNOWN.to_vec(), b"newer"[..].into()).unwrap(),
        ];
        active.append::<false>(&drafts, 0, Time(1000), When::Now).unwrap();
        let scanned = scan(&segment, Activation { first_seq: 7, base_time: Time(1000) }).unwrap();
        assert_eq!(
            (scanned.stretches.len(), scanned.stretches[0].end_index),
            (1, Index(2)),
            "no gap"
        );

        let source = CopySource {
            segment,
            first_seq: 7,
            base_time: Time(1000),
            count: 2,
            tail: None,
            is_old: false,
        };
        let target = header(Ordinal(2), 16 << 10);
        let most = most_slots(target.size).min(2);
        let copy = CopyWriter::create(&storage, target, most, Time(1000)).unwrap();
        let mut run = CopyJob::new(vec![source], copy, 1);
        assert_eq!(run.step(u64::MAX).unwrap().0, Step::Done(1));
        assert_eq!(run.take_findings(), []);
        let Finished { segment, count, .. } = run.finish(&storage, 1, 100, &Refused).unwrap();
        assert_eq!(count, 2);
        let region = segment.map(Access::Commits).unwrap();
        let copied = Mapped::new(segment, region, None);
        let (offset, header) = copied.walk_to(Index(1)).unwrap();
        let body = copied.body(&header, offset);
        assert_eq!(body, [MUST_BE_KNOWN, b"newer"].concat());
        assert_eq!(header.verify(&body), Verified::Newer);
    }
}
