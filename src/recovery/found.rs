//! What a directory holds, as it was read.
//!
//! A segment that does not count has one of these names; "told" says by what, and when:
//!
//! | name | which | its file | told |
//! |---|---|---|---|
//! | unreadable | no valid header | stays | ignored, always |
//! | unusable | a valid header, and marks that do not say what it holds | stays | lost, always |
//! | absent | listed with a message, and no file | counts if it is back | lost, once |
//! | unseen | given out, not listed with a message, and no file | counts if it is back | - |
//! | left out | has numbers that another one has | stays, for ever | ignored, always |
//! | let go | not listed, though older than the list | removed | - |
//! | stale | a copy that never counted, of a source that was let go | removed | - |
//! | replaced | a source of a copy that counts | removed | - |

mod missing;
mod stale;

use super::compacted::{self, AllReplaced, CompactedSegment};
use super::leftover::Leftover;
use super::lost_numbers::LostNumbers;
use super::segment_file::SegmentFile;
use super::set_aside::SetAside;
use super::unusable::{Unusable, take_unusable};
use crate::checkpoint::{CheckpointFile, CheckpointRead};
use crate::error::{Error, Result};
use crate::format::address::Ordinal;
use crate::format::bytes::to_u64;
use crate::format::checkpoint::Checkpoint;
use crate::format::limits::NUMBER_END;
use crate::format::name::{self, Kind};
use crate::format::segment::{DecodedHeader, MIN_SEGMENT, SegmentHeader, capacity};
use crate::format::{FORMAT_VERSION, PAGE, slot};
use crate::io::copy_on_store::CopyOnStore;
use crate::io::{Entry, Storage, StorageFile};
use crate::log::{Marks, ReadHeader, Segment, read_header};
use crate::random;
use crate::report::{CheckpointState, Ignored, RecoveryReport};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// What a directory holds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) queue_id: [u8; 16],
    /// The segments of this queue that are not compacted: one for each ordinal, in order, without
    /// those that were let go.
    pub(super) segments: Vec<Arc<Segment>>,
    /// Its compacted segments.
    pub(super) compacted: Vec<CompactedSegment>,
    /// The segments that copies replace.
    pub(super) replaced: AllReplaced,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) checkpoint_file: CheckpointFile,
    pub(super) leftovers: Vec<Leftover>,
    /// Segments that do not say what they hold.
    pub(super) unusable: Vec<Unusable>,
    /// Segments that do not count, though they say what they hold.
    pub(super) set_aside: SetAside,
    /// How many segments have no valid header.
    pub(super) unreadable: usize,
    pub(super) directory: PathBuf,
    pub(super) has_dead_letters: bool,
    pub(super) report: RecoveryReport,
    half_made: BTreeSet<Ordinal>,
    largest_ordinal: Ordinal,
    newest_epoch: u64,
}

/// Behind a name that no header vouches for, numbers have to go on.
const ORDINAL_LIMIT_OF_NAMES: Ordinal = Ordinal(NUMBER_END / 2);

/// Segments that are not compacted, and those that are.
type Kinds = (Vec<Arc<Segment>>, Vec<CompactedSegment>);

/// What is told of a segment that is left out.
pub(super) const LEFT_OUT: &str = "a segment with numbers that another one has";

/// Several threads read segments where there are more than this many for each.
const SEGMENTS_PER_THREAD: usize = 32;
const MOST_THREADS: usize = 8;

impl Found {
    /// Reads headers and checkpoint. Writes nothing.
    pub(crate) fn read(storage: &Arc<dyn Storage>) -> Result<Self> {
        let directory = storage.path("");
        let mut entries =
            storage.list().map_err(|error| Error::io("list directory", &directory, 0, error))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let is_file = entries.iter().find(|entry| entry.name == name::CHECKPOINT);
        let read = CheckpointFile::read(&**storage, is_file.map(|entry| entry.is_file))?;
        let is_partly_read = matches!(read, CheckpointRead::Partly(..));
        let (checkpoint_file, state, checkpoint) = match read {
            CheckpointRead::Known(file, state, checkpoint) => (file, state, checkpoint),
            CheckpointRead::Partly(file, known) => (file, CheckpointState::Used, Some(known)),
            CheckpointRead::Newer(version) => return Err(unsupported(version)),
        };
        let mut reading = DirectoryReader {
            directory,
            leftovers: Vec::new(),
            half_made: BTreeSet::new(),
            set_aside: SetAside::default(),
            unreadable: 0,
            largest_ordinal: Ordinal::NONE,
            newest_epoch: 0,
            report: RecoveryReport { checkpoint: state, ..RecoveryReport::default() },
        };
        if is_partly_read {
            reading.ignore(name::CHECKPOINT, "only one of its slots can be read");
        }
        let has_dead_letters =
            entries.iter().any(|entry| entry.name == name::DEAD && !entry.is_file);
        let files = reading.read_entries(storage, entries)?;
        let hint = checkpoint.as_ref().map(|checkpoint| checkpoint.queue_id);
        let queue_id = match choose_queue(&files, hint) {
            Some(id) => id,
            None => random::bytes()?,
        };
        let checkpoint = checkpoint.filter(|checkpoint| checkpoint.queue_id == queue_id);
        if hint.is_some() && checkpoint.is_none() {
            reading.report.checkpoint = CheckpointState::Foreign;
        }
        let mut let_go = Vec::new();
        let mut kept = reading.keep(files, queue_id, checkpoint.as_ref(), &mut let_go);
        let_go.extend(reading.take_stale_copies(&mut kept, checkpoint.as_ref(), &**storage)?);
        let (mut segments, mut compacted) = segments_of(&**storage, kept)?;
        let replaced = compacted::take_replaced(&mut segments, &mut compacted)?;
        let mut unusable = reading.take_broken_copies(&mut segments, checkpoint.as_ref());
        for (segment, without_start) in take_unusable(&mut segments, checkpoint.as_ref())? {
            reading.ignore(&segment.name, "a segment that does not say where its messages begin");
            unusable.push(without_start);
        }
        // Epochs increase with ordinals; keepq wrote no header that says otherwise.
        segments.sort_by_key(|segment| (segment.header.epoch, segment.header.ordinal));
        let found = Self {
            queue_id,
            segments,
            compacted,
            replaced,
            checkpoint,
            checkpoint_file,
            leftovers: reading.leftovers,
            unusable,
            half_made: reading.half_made,
            set_aside: reading.set_aside,
            unreadable: reading.unreadable,
            directory: reading.directory,
            has_dead_letters,
            report: reading.report,
            largest_ordinal: reading.largest_ordinal,
            newest_epoch: reading.newest_epoch,
        };
        without_let_go(found, &**storage, let_go)
    }

    /// Larger than every ordinal that is known, even if only from a file's name: none is used
    /// twice.
    pub(super) fn next_ordinal(&self) -> Ordinal {
        let listed = self.checkpoint.iter().flat_map(|checkpoint| checkpoint.segments.iter());
        let known = listed
            .map(|listed| listed.ordinal)
            .max()
            .unwrap_or(Ordinal::NONE)
            .max(self.largest_ordinal);
        let next = self.checkpoint.as_ref().map_or(Ordinal::NONE, |known| known.next_ordinal);
        next.max(known.next())
    }

    pub(super) fn newest_epoch(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.epoch).max(self.newest_epoch)
    }

    /// No Seq at or above this one was given out; Seqs begin at 1.
    pub(super) fn seq_limit(&self) -> u64 {
        let compacted = self.compacted.iter().map(|compacted| &compacted.segment);
        let replaced = self.replaced.found.iter().flat_map(|replaced| &replaced.sources);
        let all =
            self.segments.iter().chain(compacted).chain(replaced.map(|source| &source.segment));
        let headers = all.map(|segment| segment.header.seq_limit);
        let headers = headers.chain(self.unusable.iter().map(|unusable| unusable.seq_limit));
        let headers = headers.chain([self.set_aside.seq_limit()]);
        let hint = self.checkpoint.as_ref().map(|checkpoint| checkpoint.seq_limit);
        // Each segment whose header is damaged may have had a higher limit, by what it and its
        // predecessor hold.
        let unknown = to_u64(self.unreadable) * 2 * capacity(slot::MAX_SEGMENT);
        headers.chain(hint).fold(1, u64::max).saturating_add(unknown).min(NUMBER_END)
    }

    /// Whether a segment is known that is newer than all that are here.
    pub(super) fn lacks_newest(&self) -> bool {
        let ordinal = self.ordinals().max().unwrap_or(Ordinal::NONE);
        let epoch = self.segments.last().map_or(0, |newest| newest.header.epoch);
        self.is_newest_unusable()
            || self.checkpoint.as_ref().is_some_and(|checkpoint| {
                checkpoint.last_ordinal() > ordinal || checkpoint.epoch > epoch
            })
    }

    /// Whether the newest segment, or the only one, does not say what it holds. Copies do not
    /// count: they are made of older ones.
    pub(super) fn is_newest_unusable(&self) -> bool {
        let newest =
            self.segments.last().map(|newest| (newest.header.epoch, newest.header.ordinal));
        let plain = self.unusable.iter().filter(|unusable| !unusable.is_compacted);
        let mut places = plain.map(|unusable| (unusable.epoch, unusable.listed.ordinal));
        places.any(|place| newest.is_none_or(|newest| place > newest))
    }

    fn replaced_ordinals(&self) -> impl Iterator<Item = Ordinal> {
        let sources = self.replaced.found.iter().flat_map(|replaced| &replaced.sources);
        sources.map(|source| source.segment.header.ordinal)
    }

    /// The ordinals of all segments that are here.
    fn ordinals(&self) -> impl Iterator<Item = Ordinal> {
        let segments = self.segments.iter().map(|segment| segment.header.ordinal);
        let compacted = self.compacted.iter().map(|one| one.segment.header.ordinal);
        segments.chain(compacted).chain(self.replaced_ordinals())
    }
}

/// What is noted while the files of a directory are read.
struct DirectoryReader {
    directory: PathBuf,
    leftovers: Vec<Leftover>,
    /// The ordinals of files that are half made, or half removed.
    half_made: BTreeSet<Ordinal>,
    set_aside: SetAside,
    unreadable: usize,
    largest_ordinal: Ordinal,
    newest_epoch: u64,
    report: RecoveryReport,
}

impl DirectoryReader {
    fn ignore(&mut self, name: &str, reason: &'static str) {
        let path = self.directory.join(name);
        self.report.ignored.push(Ignored { path, reason, is_foreign: false });
    }

    fn ignore_foreign(&mut self, name: &str) {
        let (path, reason) = (self.directory.join(name), "not a file of keepq");
        self.report.ignored.push(Ignored { path, reason, is_foreign: true });
    }

    fn read_entries(
        &mut self,
        storage: &Arc<dyn Storage>,
        entries: Vec<Entry>,
    ) -> Result<Vec<SegmentFile>> {
        let mut names = Vec::new();
        for Entry { name, is_file } in entries {
            let ordinal = name::ordinal(&name).filter(|&at| at < ORDINAL_LIMIT_OF_NAMES);
            self.largest_ordinal = self.largest_ordinal.max(ordinal.unwrap_or(Ordinal::NONE));
            match name::kind(&name) {
                Kind::Own if is_file && name == name::DEAD => {
                    self.ignore(&name, "not a directory: no message can be moved there");
                }
                Kind::Own if !is_file && name == name::CHECKPOINT => {
                    self.ignore(&name, "not a regular file");
                }
                Kind::Own => {}
                Kind::Foreign => self.ignore_foreign(&name),
                Kind::Temporary if is_file => {
                    let opened = storage.open(&name);
                    let path = storage.path(&name);
                    let file = opened.map_err(|error| Error::io("open file", &path, 0, error))?;
                    let bytes = file.size();
                    self.half_made.extend(ordinal);
                    self.leftovers.push(Leftover { name, bytes, sources: Vec::new() });
                }
                Kind::Segment if is_file => names.push(name),
                Kind::Temporary | Kind::Segment => self.ignore(&name, "not a regular file"),
            }
        }
        let mut files = Vec::new();
        for (name, read) in read_all(storage, names) {
            match read? {
                Ok((header, marks, file, remark)) => {
                    files.push(SegmentFile { name, header, marks, file, remark });
                }
                Err(reason) => {
                    self.unreadable += 1;
                    self.ignore(&name, reason);
                }
            }
        }
        Ok(files)
    }

    /// The files of the chosen queue, one for each ordinal, without those that are left out or were
    /// let go.
    fn keep(
        &mut self,
        files: Vec<SegmentFile>,
        queue_id: [u8; 16],
        checkpoint: Option<&Checkpoint>,
        let_go: &mut Vec<SegmentFile>,
    ) -> BTreeMap<Ordinal, SegmentFile> {
        if let Some(checkpoint) = checkpoint {
            self.set_aside = SetAside::known(&checkpoint.added.apart.left_out);
        }
        let mut kept: BTreeMap<Ordinal, SegmentFile> = BTreeMap::new();
        for found in files {
            let SegmentFile { name, header, .. } = &found;
            let (name, ordinal) = (name.clone(), header.ordinal);
            if header.queue_id != queue_id {
                self.ignore(&name, "a segment of another queue");
                continue;
            }
            self.largest_ordinal = self.largest_ordinal.max(ordinal);
            self.newest_epoch = self.newest_epoch.max(header.epoch);
            if self.set_aside.has_left_out(ordinal) {
                self.ignore(&name, LEFT_OUT);
                self.set_aside.add_file(found.file.size());
                continue;
            }
            if checkpoint.is_some_and(|checkpoint| checkpoint.let_go(ordinal)) {
                let_go.push(found);
                continue;
            }
            let right_name = name == name::segment(ordinal);
            if let Some(remark) = found.remark {
                self.ignore(&name, remark);
            }
            match kept.get(&ordinal).map(|other| other.name.clone()) {
                Some(other) if !right_name => self.ignore(&name, copy_of(&other)),
                Some(other) => {
                    self.ignore(&other, copy_of(&name));
                    kept.insert(ordinal, found);
                }
                None => {
                    kept.insert(ordinal, found);
                }
            }
        }
        kept
    }

    /// Takes the copies out that do not say what they hold, and that no other copy replaces.
    fn take_broken_copies(
        &mut self,
        segments: &mut Vec<Arc<Segment>>,
        checkpoint: Option<&Checkpoint>,
    ) -> Vec<Unusable> {
        let broken = segments.extract_if(.., |segment| segment.header.sources > 0);
        let broken = broken.map(|segment| {
            self.ignore(&segment.name, "a compacted segment that does not say what it holds");
            Unusable::of(&segment, checkpoint)
        });
        broken.collect()
    }
}

/// What was let go is removed. But a segment that may have numbers of a lost one may be what that
/// was made from, and then it stays until that is back.
fn without_let_go(
    mut found: Found,
    storage: &dyn Storage,
    let_go: Vec<SegmentFile>,
) -> Result<Found> {
    let lost = LostNumbers::of(found.lost_numbers());
    for file in let_go {
        if lost.may_be_in(&file, storage)? {
            let (path, reason) =
                (storage.path(&file.name), "it may have numbers of a lost segment");
            found.report.ignored.push(Ignored { path, reason, is_foreign: false });
            found.set_aside.add_file(file.file.size());
        } else {
            found.leftovers.push(file.into_leftover(storage)?);
        }
    }
    Ok(found)
}

/// Tells compacted segments from others. One that does not say what it holds is among the others.
fn segments_of(storage: &dyn Storage, kept: BTreeMap<Ordinal, SegmentFile>) -> Result<Kinds> {
    let (mut segments, mut compacted) = (Vec::new(), Vec::new());
    for found in kept.into_values() {
        let is_compacted = found.is_compacted();
        let segment = found.into_segment(storage);
        if !is_compacted {
            segments.push(Arc::new(segment));
            continue;
        }
        match CompactedSegment::read(segment)? {
            Ok(copy) => compacted.push(copy),
            Err(segment) => segments.push(Arc::new(segment)),
        }
    }
    Ok((segments, compacted))
}

/// Chooses the queue of CHECKPOINT, `hint`, if a segment is of that queue, too. Otherwise chooses
/// the queue that most segments are of; if two queues have equally many, the one with the oldest of
/// these segments. `None` if neither CHECKPOINT nor a segment names one.
fn choose_queue(files: &[SegmentFile], hint: Option<[u8; 16]>) -> Option<[u8; 16]> {
    let mut counts: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    for SegmentFile { header, .. } in files {
        *counts.entry(header.queue_id).or_default() += 1;
    }
    let hinted = hint.filter(|id| counts.contains_key(id));
    let most = counts.values().copied().max().unwrap_or(0);
    let common = files.iter().map(|file| &file.header);
    let common = common.filter(|header| counts.get(&header.queue_id) == Some(&most));
    let oldest = common.min_by_key(|header| header.ordinal).map(|header| header.queue_id);
    hinted.or(oldest).or(hint)
}

/// A segment's header, the marks beside it, its file, and why that is not used as a whole; or why
/// it cannot be used.
type ReadSegment = std::result::Result<
    (SegmentHeader, Marks, Arc<dyn StorageFile>, Option<&'static str>),
    &'static str,
>;

/// Reads the headers of all these files, several at a time, because each may have to wait for the
/// disk. The results are in order.
fn read_all(storage: &Arc<dyn Storage>, names: Vec<String>) -> Vec<(String, Result<ReadSegment>)> {
    let read = |names: &[String]| -> Vec<Result<ReadSegment>> {
        names.iter().map(|name| read_segment(storage, name)).collect()
    };
    let per_thread = names.len().div_ceil(MOST_THREADS).max(SEGMENTS_PER_THREAD);
    let all: Vec<_> = if names.len() <= per_thread {
        read(&names)
    } else {
        std::thread::scope(|scope| {
            let read = &read;
            let begin = |part| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || read(part));
                (part, thread.ok())
            };
            let parts: Vec<_> = names.chunks(per_thread).map(begin).collect();
            // This thread reads the parts for which there was no other.
            let ended = parts.into_iter().map(|(part, thread)| {
                let ended = thread.and_then(|thread| thread.join().ok());
                ended.unwrap_or_else(|| read(part))
            });
            ended.flatten().collect()
        })
    };
    names.into_iter().zip(all).collect()
}

fn read_segment(storage: &Arc<dyn Storage>, name: &str) -> Result<ReadSegment> {
    let path = storage.path(name);
    let file = storage.open(name).map_err(|error| Error::io("open segment", &path, 0, error))?;
    let ReadHeader { copies, marks, is_first_unreadable } = read_header(&*file)
        .map_err(|(offset, error)| Error::io("read header", &path, offset.0, error))?;
    file.release();
    for copy in &copies {
        if let DecodedHeader::Newer { version, sure: true } = copy {
            return Err(unsupported(*version));
        }
    }
    if let [DecodedHeader::Newer { version, .. }, DecodedHeader::Newer { version: other, .. }] =
        copies
        && version == other
    {
        return Err(unsupported(version));
    }
    let valid = copies.into_iter().find_map(|copy| match copy {
        DecodedHeader::Valid(header) => Some(header),
        DecodedHeader::Newer { .. } | DecodedHeader::Invalid => None,
    });
    let Some(header) = valid else { return Ok(Err("no readable header")) };
    if marks.is_impossible() {
        return Ok(Err("its first number or its time is not possible"));
    }
    if !is_possible(header.size) {
        return Ok(Err("its size is not possible"));
    }
    let remark = match file.size().cmp(&header.size) {
        Ordering::Less => Some("shorter than its header says: what is missing was read as zeros"),
        Ordering::Greater => Some("longer than its header says: the rest was not read"),
        Ordering::Equal if is_first_unreadable => {
            Some("its first page cannot be read, and the last one serves")
        }
        Ordering::Equal => None,
    };
    let file = Arc::new(CopyOnStore::new(storage, name, file, header.size));
    Ok(Ok((header, marks, file, remark)))
}

fn copy_of(_kept: &str) -> &'static str {
    "a copy of another segment in the directory"
}

fn is_possible(size: u64) -> bool {
    (MIN_SEGMENT..=slot::MAX_SEGMENT).contains(&size) && size.is_multiple_of(PAGE)
}

fn unsupported(version: u16) -> Error {
    Error::UnsupportedVersion { found: version.into(), supported: FORMAT_VERSION.into() }
}
