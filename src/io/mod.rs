//! The only door to the operating system.
//!
//! [`Storage`] is one directory, [`StorageFile`] one file of fixed size, [`Region`] the same file
//! seen as memory. Two promises. Once a call has returned `Ok`, every later call sees its effect,
//! also a call of another process after this one was killed. Once [`StorageFile::sync`] or
//! [`Storage::sync_directory`] has returned `Ok`, everything that was there when it was called is
//! there after a power cut. Anything else may be in any state. Nothing here retries, interprets or
//! hides an error.

mod boot;
#[cfg(test)]
mod conformance;
pub(crate) mod copy_on_store;
mod directory;
pub(crate) mod disk;
#[cfg(feature = "fault-injection")]
pub(crate) mod fault;
mod latch;
#[cfg(feature = "fault-injection")]
pub(crate) mod memory;
mod mmap;
mod os;
pub(crate) mod process;
pub(crate) mod window;

pub(crate) use boot::boot_id;
pub(crate) use latch::Unopened;

use crate::format::bytes::to_u64;
use crate::format::record::HEADER;
use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A directory, and the names in it.
///
/// A failed [`Storage::sync_directory`] or [`Storage::sync_parents`] is not remembered here: the
/// caller must not rely on a later one of the same directory.
pub trait Storage: Debug + Send + Sync {
    /// Takes the exclusive lock of this directory; `None` if it is taken, here or in another
    /// process. It lasts as long as what is returned.
    ///
    /// # Errors
    ///
    /// If the lock file cannot be made.
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;

    /// All names, in any order, directories included.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Makes a file of `size` zero bytes, at least one, with all its blocks allocated; replaces the
    /// file that had the name. What is returned stays usable when the file gets another name.
    ///
    /// # Errors
    ///
    /// If there is no room; then there is no file of this name. If a directory has the name.
    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens a regular file. A link is not followed.
    ///
    /// # Errors
    ///
    /// If it is not there ([`io::ErrorKind::NotFound`]), or not a regular file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Gives a file another name; replaces the file that had that.
    ///
    /// # Errors
    ///
    /// If the file is not there, a directory has the new name, or the operating system refuses.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file's name. The file itself stays usable where it is open or mapped.
    ///
    /// # Errors
    ///
    /// If a directory has the name, or the operating system refuses; a name that is not there is
    /// not an error.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all names durable.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    fn sync_directory(&self) -> io::Result<()>;

    /// The directory with this name in this one; it is made if it is not there, and is then not yet
    /// durable.
    ///
    /// # Errors
    ///
    /// If the operating system refuses, or a file or a link has the name.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>>;

    /// Makes the directory itself durable in its parents; called once, for a new queue.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    fn sync_parents(&self) -> io::Result<()>;

    /// Fails if the directory was removed, with everything in it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] then; or whatever the operating system says.
    fn check_directory(&self) -> io::Result<()> {
        Ok(())
    }

    /// Where a name lies, for messages to people.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file of fixed size.
///
/// The first failed sync of a file is its last: every later [`StorageFile::sync`] of the same
/// object fails, too, with an error of the same kind. After a failed sync the operating system may
/// have dropped what it could not write, and report success the next time. A file that had to be
/// opened again to be synced, and could not be opened, was not a failed sync. An object from a
/// later [`Storage::open`] knows nothing of it.
pub trait StorageFile: Debug + Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Reads exactly `into.len()` bytes.
    ///
    /// # Errors
    ///
    /// If they cannot be read, or lie outside.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// If they cannot be written, or lie outside.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes zeros from `start` to `end`, where only zeros are, `piece` bytes at a time. What is
    /// written by one call stays together in the system's memory. Only the speed of what comes
    /// later depends on it, so a storage may do nothing.
    ///
    /// # Errors
    ///
    /// As [`StorageFile::write_at`].
    fn zero(&self, start: u64, end: u64, piece: u64) -> io::Result<()> {
        let _ = (start, end, piece);
        Ok(())
    }

    /// Makes content and size durable, stores through a [`Region`] included.
    ///
    /// # Errors
    ///
    /// If the operating system refuses: then nothing is known about any unsynced byte. Also
    /// if an earlier sync failed. If the file could not be opened to be synced: then no sync was
    /// tried, and the error wraps the one of opening.
    fn sync(&self) -> io::Result<()>;

    /// The file as memory: all regions of a file, and its reads and writes, see the same bytes.
    /// Valid also after the file was removed, and after this object is gone. A file that is mapped
    /// already keeps the access it has.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>>;

    /// Says that all that was stored is synced. If nothing is mapped, the file may be closed until
    /// it is needed again. It is then found by the name that it was opened by.
    fn release(&self) {}

    /// The offset of the first byte from this one on that may be other than zero, or the size:
    /// what lies in between need not be read.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }

    /// Makes the file longer, up to this size. What is added reads as zeros; where there is no room
    /// for it now, each of its blocks needs some when it is first stored to. This object keeps the
    /// size that it has: the file has to be opened again.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] if the storage cannot do that; or if the operating system
    /// refuses. Then the file has its size.
    fn extend(&self, size: u64) -> io::Result<()> {
        let _ = size;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether the file still has a name: false once somebody has removed that, and with it all
    /// that the file holds.
    ///
    /// # Errors
    ///
    /// If the operating system does not say.
    fn has_name(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Whether the same file has other names (hard links), by which others may know it.
    ///
    /// # Errors
    ///
    /// If the operating system does not say.
    fn has_other_names(&self) -> io::Result<bool> {
        Ok(false)
    }
}

/// How bytes will be stored to a file through a [`Region`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A few stores here and there, then a sync: the system should keep single pages, so that a
    /// sync writes little more than what was stored.
    Commits,
    /// From start to end, synced late or never: the system should take many pages at once.
    Streams,
}

/// A file as memory. Bounds are checked: a call with a place outside of the file fails and changes
/// nothing. Words may be loaded and stored to by several threads at once; other bytes that are
/// stored to are loaded by nobody meanwhile, which the layers above see to.
pub trait Region: Debug + Send + Sync {
    /// Copies `bytes` in.
    ///
    /// # Errors
    ///
    /// If they lie outside, or, where stores are writes, the write fails.
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Copies out.
    ///
    /// # Errors
    ///
    /// If they lie outside.
    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Copies `len` bytes out to the end of `into`.
    ///
    /// # Errors
    ///
    /// If they lie outside.
    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()>;

    /// Stores a word (little-endian) at a multiple of 8, whole or not at all.
    ///
    /// # Errors
    ///
    /// As [`Region::store`]; if `offset` is not a multiple of 8.
    fn store_word(&self, offset: u64, word: u64) -> io::Result<()>;

    /// Loads a word from a multiple of 8.
    ///
    /// # Errors
    ///
    /// As [`Region::load`]; if `offset` is not a multiple of 8.
    fn load_word(&self, offset: u64) -> io::Result<u64>;

    /// Copies a record in: the two pieces of its body to where its header ends, and then the
    /// header, so that a kill in between leaves none.
    ///
    /// Where stores are writes, it is one write of all of it. Should that be cut short by a kill,
    /// there may be a header without all of its body.
    ///
    /// # Errors
    ///
    /// As [`Region::store`]; some of it may be stored if a write fails.
    fn store_record(&self, offset: u64, header: &[u8; HEADER], body: [&[u8]; 2]) -> io::Result<()> {
        if self.stores_are_writes() {
            return self.write(offset, &[header, body[0], body[1]]);
        }
        // From the end, so that a record that reaches beyond the file changes nothing.
        let first = offset.saturating_add(to_u64(HEADER));
        let second = first.saturating_add(to_u64(body[0].len()));
        for (place, piece) in [(second, body[1]), (first, body[0])] {
            if !piece.is_empty() {
                self.store(place, piece)?;
            }
        }
        self.store(offset, header)
    }

    /// Stores words side by side, each whole or not at all. The last one is stored first, and so
    /// on: if a write fails, those are stored that lie behind a place.
    ///
    /// # Errors
    ///
    /// As [`Region::store_word`].
    fn store_words(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        // From the end, so that words that reach beyond the file change nothing.
        for (nth, word) in words.iter().enumerate().rev() {
            self.store_word(offset.saturating_add(8 * to_u64(nth)), *word)?;
        }
        Ok(())
    }

    /// Loads words side by side.
    ///
    /// # Errors
    ///
    /// As [`Region::load_word`].
    fn load_words(&self, offset: u64, into: &mut [u64]) -> io::Result<()> {
        for (offset, word) in (offset..).step_by(8).zip(into) {
            *word = self.load_word(offset)?;
        }
        Ok(())
    }

    /// Stores `word` where the word `said` is; false if another one is there, or either call fails.
    /// Nobody else may store there meanwhile.
    fn replace_word(&self, offset: u64, said: u64, word: u64) -> bool {
        self.load_word(offset).is_ok_and(|there| there == said)
            && self.store_word(offset, word).is_ok()
    }

    /// Copies the header of a record out.
    ///
    /// # Errors
    ///
    /// As [`Region::load`].
    fn load_header(&self, offset: u64) -> io::Result<[u8; HEADER]> {
        let mut header = [0; HEADER];
        self.load(offset, &mut header).map(|()| header)
    }

    /// Copies pieces in side by side, by one write also where stores are none. Should that be cut
    /// short by a kill or a full disk, the start of it is stored, up to the end of a block.
    ///
    /// # Errors
    ///
    /// As [`Region::store`]; some of it may be stored if a write fails.
    fn write(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        // Block by block, so that a storage that fails or stops shows all that a write may leave.
        let bytes = pieces.concat();
        let end = offset.saturating_add(to_u64(bytes.len()));
        if end > offset {
            // One that reaches beyond the file changes nothing.
            self.load(end - 1, &mut [0])?;
        }
        let mut left = &bytes[..];
        while !left.is_empty() {
            let place = end - to_u64(left.len());
            let in_block = usize::try_from(BLOCK - place % BLOCK).unwrap_or(left.len());
            let (block, rest) = left.split_at(in_block.min(left.len()));
            self.store(place, block)?;
            left = rest;
        }
        Ok(())
    }

    /// Makes all pages resident and ready to be stored to. Changes no byte.
    fn populate(&self);

    /// The same for the pages of `len` bytes, where that takes long for all of them.
    fn populate_part(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Says that `len` bytes, from a multiple of 64 KiB on, are hardly needed as memory any more,
    /// and will be synced: the system begins to write them, and takes its pages back until they
    /// are needed. Changes no byte, makes none durable, and may do nothing.
    fn evict(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Whether each store is a system call, so that few large ones are better than many small ones.
    fn stores_are_writes(&self) -> bool {
        false
    }
}

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name. What is not UTF-8 is replaced, so that it matches no name of keepq.
    pub name: String,
    /// Whether it is a regular file, not a directory or a link.
    pub is_file: bool,
}

impl Entry {
    /// An entry.
    #[must_use]
    pub fn new(name: String, is_file: bool) -> Self {
        Self { name, is_file }
    }
}

/// Whether this is the error of a disk that cannot read what it holds, and not one of the moment or
/// of the call: the same bytes may be somewhere else.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    // EIO on Unix, ERROR_CRC on Windows. A storage that is none of the system's says `Other`.
    let code = if cfg!(windows) { 23 } else { 5 };
    error.raw_os_error() == Some(code) || error.kind() == io::ErrorKind::Other
}

/// Bytes of the smallest block of a file system.
const BLOCK: u64 = 512;

/// Fails if `len` bytes at `offset` do not lie in a file of this size.
fn check_bounds(offset: u64, len: usize, size: u64) -> io::Result<()> {
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    if end.is_some_and(|end| end <= size) { Ok(()) } else { Err(outside(offset, len, size)) }
}

/// Fails if no words lie at `offset` in a file of this size, which take `len` bytes.
fn check_words(offset: u64, len: usize, size: u64) -> io::Result<()> {
    if offset.is_multiple_of(8) {
        return check_bounds(offset, len, size);
    }
    let reason = format!("a word lies at a multiple of 8, not at {offset}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

fn outside(offset: u64, len: usize, size: u64) -> io::Error {
    let reason = format!("{len} bytes at {offset} lie outside of the file's {size}");
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}
