//! Records on their way into the file: those of many pushes are written by one call.
//!
//! Promises: what is staged lies side by side, so that one write stores it, and a write that is cut
//! short stores a prefix of its records. Whoever staged something learns what became of it from the
//! [`Written`] that it has a part in, also after others have got its numbers and its place. Decides
//! nothing: the appender says when to write, and publishes.

use super::Segment;
use crate::error::{Error, Result, again};
use crate::format::address::Offset;
use crate::format::bytes::to_u64;
use crate::io::Region;
use std::io;
use std::mem;
use std::sync::{Arc, OnceLock};

/// A body of this length is written from where it is, by a call of its own: to copy it would take
/// longer than that call.
pub(super) const LARGE: usize = 16 << 10;

/// Bytes that are collected at most, but for one message.
pub(crate) const MOST_STAGED: usize = 1 << 20;

/// What becomes of records that are written together.
#[derive(Debug, Default)]
pub(crate) struct Written(OnceLock<std::result::Result<(), Arc<Refused>>>);

impl Written {
    /// Of records that were not written.
    pub(super) fn refused(refused: Refused) -> Self {
        Self(OnceLock::from(Err(Arc::new(refused))))
    }

    /// Whether they are in the file, or why they are not in the queue; `None` as long as neither is
    /// known.
    pub(crate) fn outcome(&self) -> Option<std::result::Result<(), &Refused>> {
        self.0.get().map(|outcome| outcome.as_ref().map(|&()| ()).map_err(|refused| &**refused))
    }
}

/// What a failed write left in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// No record that is whole: the next run finds none.
    Nothing,
    /// Whole records, which were erased; but the disk may still have them.
    Erased,
    /// Whole records. The next run finds them if it comes before they are erased.
    Records,
}

/// Why records are not in the queue, and whether they may be in the next run.
#[derive(Debug)]
pub(crate) struct Refused {
    segment: Arc<Segment>,
    offset: Offset,
    source: Arc<io::Error>,
    left: Left,
    /// Whether no later run can find any of them.
    are_gone: OnceLock<bool>,
}

impl Refused {
    pub(super) fn new(
        segment: &Arc<Segment>,
        offset: Offset,
        source: io::Error,
        left: Left,
    ) -> Self {
        let (segment, source) = (Arc::clone(segment), Arc::new(source));
        Self { segment, offset, source, left, are_gone: OnceLock::new() }
    }

    /// What went wrong, for one that placed nothing itself.
    pub(super) fn cause(&self) -> Error {
        Error::io("append", &self.segment.path, self.offset.0, again(&self.source))
    }

    /// The error for whoever pushed one of the records. What was erased is synced first, once for
    /// all of them, so that the error can say that no later run finds them; if it cannot, it says
    /// that they may come.
    pub(crate) fn error(&self, sync: impl FnOnce(&Segment) -> Result<()>) -> Error {
        let are_gone = self.are_gone.get_or_init(|| match self.left {
            Left::Nothing => true,
            Left::Erased => sync(&self.segment).is_ok(),
            Left::Records => false,
        });
        if *are_gone { self.cause() } else { self.cause().not_taken_back() }
    }
}

/// Records that are collected until somebody writes them.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    /// Where the bytes belong.
    start: Offset,
    bytes: Vec<u8>,
    /// Where each of the records begins for whose write nobody waits now.
    later: Vec<Offset>,
    written: Arc<Written>,
}

impl Stage {
    /// How many bytes are collected.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What will become of the records in it.
    pub(crate) fn written(&self) -> &Arc<Written> {
        &self.written
    }

    /// Where the first of the records begins that are to be written later.
    pub(super) fn first(&self) -> Option<Offset> {
        self.later.first().copied()
    }

    /// Collects the pieces of a record, which belongs to where the last one ends.
    fn add(&mut self, offset: Offset, pieces: [&[u8]; 3]) {
        if self.bytes.is_empty() {
            self.start = offset;
        }
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        // As `record::len` says.
        let end = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(end, 0);
    }

    /// The same for a record that is to be written later.
    pub(super) fn add_for_later(&mut self, offset: Offset, pieces: [&[u8]; 3]) {
        self.add(offset, pieces);
        self.later.push(offset);
    }

    /// The same for one that somebody is about to write: a large one is written at once, and so is
    /// what has become much.
    pub(super) fn add_or_write(
        &mut self,
        offset: Offset,
        pieces: [&[u8]; 3],
        region: &dyn Region,
    ) -> io::Result<()> {
        let [_, extensions, payload] = pieces;
        if extensions.len() + payload.len() >= LARGE {
            self.write_to(region)?;
            return region.write(offset.0, &pieces);
        }
        self.add(offset, pieces);
        if self.len() >= MOST_STAGED { self.write_to(region) } else { Ok(()) }
    }

    /// Writes what is collected to where it belongs, by one call.
    pub(crate) fn write_to(&mut self, region: &dyn Region) -> io::Result<()> {
        if !self.bytes.is_empty() {
            region.write(self.start.0, &[&self.bytes])?;
            self.start = self.start + to_u64(self.bytes.len());
            self.bytes.clear();
        }
        Ok(())
    }

    /// What was collected is not written.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// All is written, and counts: whoever waits for that may go on. Gives the number of records,
    /// and where they end.
    pub(super) fn succeed(&mut self) -> (usize, Offset) {
        let records = self.later.len();
        self.later.clear();
        self.end(Ok(()));
        (records, self.start)
    }

    /// Nothing of it counts: takes out where the records begin, of which some may be in the file.
    pub(super) fn take_later(&mut self) -> Vec<Offset> {
        mem::take(&mut self.later)
    }

    /// Tells those whose records they were.
    pub(super) fn refuse(&mut self, refused: &Arc<Refused>) {
        self.end(Err(Arc::clone(refused)));
    }

    fn end(&mut self, result: std::result::Result<(), Arc<Refused>>) {
        self.bytes.clear();
        // What one large record took is given back.
        self.bytes.shrink_to(MOST_STAGED);
        // Where nobody has it, it serves again.
        if Arc::get_mut(&mut self.written).is_none() {
            let written = mem::take(&mut self.written);
            // It has none before this.
            written.0.set(result).ok();
        }
    }
}
