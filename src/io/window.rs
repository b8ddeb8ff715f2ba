//! A file seen through a small window that is read as needed.
//!
//! Promises: bytes are read, not mapped, so that an unreadable sector is an error and not a signal;
//! the first such error is kept, so that it is not taken for damage. Reads are small where a few
//! bytes are loaded here and there, and grow where loads go on from the start to the end of a file.
//! Refuses to store.

use super::{Region, StorageFile, check_bounds};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Bytes read at once: at first, and at most where loads go on behind each other.
const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 256 << 10;

/// A file, read only.
#[derive(Debug)]
pub(crate) struct Window {
    file: Arc<dyn StorageFile>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    start: u64,
    bytes: Vec<u8>,
    read: u64,
    failed: Option<(u64, io::Error)>,
}

impl Window {
    pub(crate) fn new(file: Arc<dyn StorageFile>) -> Self {
        Self { file, held: Mutex::default() }
    }

    /// The first error since the last call, and the offset that could not be read.
    pub(crate) fn take_error(&self) -> Option<(u64, io::Error)> {
        self.held.lock().failed.take()
    }

    /// Bytes read since the last call.
    pub(crate) fn take_read(&self) -> u64 {
        std::mem::take(&mut self.held.lock().read)
    }
}

impl Held {
    /// `len` bytes at `offset`, if all of them are held.
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let skip = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(skip..skip.checked_add(len)?)
    }

    /// Reads at least `len` bytes from `offset` on.
    fn fill(&mut self, file: &dyn StorageFile, offset: u64, len: usize) -> io::Result<()> {
        let before = self.bytes.len();
        let behind = self.start + u64::try_from(before).unwrap_or(0);
        let goes_on = before > 0 && offset >= self.start && offset <= behind;
        let wanted = if goes_on { (before * 2).min(LARGEST) } else { SMALLEST };
        let rest = file.size().saturating_sub(offset);
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        self.bytes.resize(wanted.max(len).min(rest), 0);
        self.start = offset;
        let result = file.read_at(offset, &mut self.bytes);
        if result.is_err() {
            self.bytes.clear();
        }
        self.read += u64::try_from(self.bytes.len()).unwrap_or(0);
        result
    }
}

impl Region for Window {
    fn store(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        // An offset or length outside comes from damaged bytes: it is no error of reading.
        check_bounds(offset, into.len(), self.file.size())?;
        let mut held = self.held.lock();
        if held.get(offset, into.len()).is_none()
            && let Err(error) = held.fill(&*self.file, offset, into.len())
        {
            let kept = io::Error::new(error.kind(), error.to_string());
            held.failed.get_or_insert((offset, kept));
            return Err(error);
        }
        let found = held.get(offset, into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        // Before any memory is taken for it.
        check_bounds(offset, len, self.file.size())?;
        let start = into.len();
        into.resize(start + len, 0);
        self.load(offset, &mut into[start..])
    }

    fn store_word(&self, _offset: u64, _word: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn load_word(&self, offset: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.load(offset, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn populate(&self) {}
}
