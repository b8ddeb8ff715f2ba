//! Where things lie, for tests that damage them or look at CHECKPOINT.

use super::checkpoint::Checkpoint;
use super::record::records;
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
    let record =
        records(&segment).whole.into_iter().find(|record| record.body.ends_with(payload))?;
    let body_len = record.body.len() as u64;
    Some(Place { header: record.offset, body_len, slot: segment.slot_offset(record.index)? })
}

/// What a segment's marks say.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) ordinal: u64,
    pub(crate) first_seq: Option<u64>,
    /// From its first Seq to its last.
    pub(crate) span: Option<u64>,
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
            let first_seq = segment.activation.map(|activation| activation.first_seq);
            let span = segment.span().map(|(first, last)| last + 1 - first);
            segments.push(Used { ordinal: segment.ordinal, first_seq, span });
        }
    }
    segments.sort_by_key(|used| used.ordinal);
    (Checkpoint::read(&bytes).unwrap().unwrap(), queue_id, segments)
}
