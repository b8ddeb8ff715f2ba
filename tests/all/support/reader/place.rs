//! Where things lie, for tests that damage them or look at CHECKPOINT.

use super::checkpoint::Checkpoint;
use super::record::{Record, records};
use super::segment::Segment;
use std::fs;
use std::path::Path;

/// Where a message lies in a segment.
pub(crate) struct Place {
    /// Offset of its record's header.
    pub(crate) header: u64,
    pub(crate) body_len: u64,
    /// Offset of its slot.
    pub(crate) slot: u64,
}

/// Where this segment has the message with this payload, in a record without damage.
pub(crate) fn place(bytes: &[u8], payload: &[u8]) -> Option<Place> {
    let segment = Segment::read("", bytes).ok()?;
    let mut whole = records(&segment).whole.into_iter();
    place_of(&segment, &whole.find(|record| record.body.ends_with(payload))?)
}

fn place_of(segment: &Segment, record: &Record) -> Option<Place> {
    let body_len = record.body.len() as u64;
    Some(Place { header: record.offset, body_len, slot: segment.slot_offset(record.index)? })
}

/// What a segment's header and marks say.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) ordinal: u64,
    pub(crate) is_compacted: bool,
    pub(crate) first_seq: Option<u64>,
    /// From its first Seq to its last.
    pub(crate) span: Option<u64>,
    /// The segments that it was made from.
    pub(crate) sources: Vec<u64>,
}

impl Used {
    fn of(segment: &Segment) -> Self {
        Self {
            ordinal: segment.ordinal,
            is_compacted: segment.is_compacted(),
            first_seq: segment.activation.map(|activation| activation.first_seq),
            span: segment.span().map(|(first, last)| last + 1 - first),
            sources: segment.older_sources().collect(),
        }
    }
}

/// A payload, and where it lies.
pub(crate) type Placed = (Vec<u8>, Place);

/// What a segment says of itself, and its messages whose records are without damage.
pub(crate) fn places(bytes: &[u8]) -> Option<(Used, Vec<Placed>)> {
    let segment = Segment::read("", bytes).ok()?;
    let whole = records(&segment).whole;
    let placed = whole.iter().filter_map(|record| {
        let payload = record.content()?.payload;
        Some((payload, place_of(&segment, record)?))
    });
    Some((Used::of(&segment), placed.collect()))
}

/// What each slot of CHECKPOINT says, if it is valid.
pub(crate) fn checkpoint_slots(bytes: &[u8]) -> [Option<Checkpoint>; 2] {
    let half = bytes.len() / 2;
    [0, half].map(|other| {
        let mut alone = bytes.to_vec();
        alone[other..][..half].fill(0);
        Checkpoint::read(&alone).ok().flatten()
    })
}

/// The newest valid checkpoint, and the queue that the segments belong to.
pub(crate) fn read_checkpoint(directory: &Path) -> (Checkpoint, [u8; 16], Vec<Used>) {
    let bytes = fs::read(directory.join("CHECKPOINT")).unwrap();
    let mut segments = Vec::new();
    let mut queue_id = [0; 16];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            let bytes = fs::read(path).unwrap();
            let Ok(segment) = Segment::read("", &bytes) else { panic!("a segment") };
            queue_id.copy_from_slice(segment.queue_id);
            segments.push(Used::of(&segment));
        }
    }
    segments.sort_by_key(|used| used.ordinal);
    (Checkpoint::read(&bytes).unwrap().unwrap(), queue_id, segments)
}
