//! One file of the operating system.
//!
//! Promises: it holds a descriptor only from when it is opened or mapped until it is released, and
//! otherwise for the length of a call; so a backlog of thousands of segments needs no more
//! descriptors than a short one. What was stored is synced through the descriptor that it was
//! stored under, which cannot miss an error of writing back; and the first failed sync of a file is
//! its last. A map is stored to only where that can never need a block that is not there; elsewhere
//! stores are writes. A file that lacks blocks is not mapped at all where a load of a missing block
//! may need one, too, as on tmpfs and on what lies above it. Another file that has taken the name
//! is not taken for this one.

#![expect(clippy::disallowed_types, reason = "part of the door to the operating system")]

use crate::format::bytes::to_u64;
use crate::format::record::HEADER;
use crate::io::directory::{Directory, Want};
use crate::io::latch::SyncLatch;
use crate::io::mmap::{self, Map};
use crate::io::os::{self, FileId};
use crate::io::{Access, BLOCK, Region, StorageFile, check_bounds, check_words, outside};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// How a file is reached as memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// By a map, for loads and stores.
    Map,
    /// Loads by a map, stores by writes.
    MapAndWrites,
    /// By reads and writes.
    ReadsAndWrites,
}

/// A file.
#[derive(Debug)]
pub(super) struct DiskFile {
    directory: Arc<Directory>,
    name: String,
    size: u64,
    /// Nobody shares its blocks with other files: the user says so.
    is_unshared: bool,
    /// How it is reached as memory, for tests that want each way.
    forced: Option<Way>,
    /// A new file stays open, because its name will change.
    kept: Option<Arc<File>>,
    /// The one map of the file, however often `map` is called.
    region: Mutex<Option<Weak<dyn Region>>>,
    /// Another file that has its name later is not this one.
    identity: FileId,
    /// The descriptor that it was opened or last mapped with, until all that was stored is synced.
    stored_to: Mutex<Option<Arc<File>>>,
    latch: SyncLatch,
}

impl DiskFile {
    /// A file that was just made.
    pub(super) fn new(
        directory: Arc<Directory>,
        name: &str,
        file: File,
        is_unshared: bool,
    ) -> io::Result<Self> {
        let (size, identity) = (file.metadata()?.len(), os::identity(&file)?);
        Ok(Self {
            directory,
            name: name.to_string(),
            size,
            is_unshared,
            forced: None,
            kept: Some(Arc::new(file)),
            region: Mutex::new(None),
            identity,
            stored_to: Mutex::new(None),
            latch: SyncLatch::default(),
        })
    }

    /// A file that was there. It stays open until it is released.
    pub(super) fn found(
        directory: Arc<Directory>,
        name: &str,
        file: File,
        is_unshared: bool,
    ) -> io::Result<Self> {
        os::advise_random(&file);
        let made = Self::new(directory, name, file, is_unshared)?;
        Ok(Self { kept: None, stored_to: Mutex::new(made.kept), ..made })
    }

    /// The same, reached in this way, whatever the file system allows.
    #[cfg(test)]
    pub(super) fn forced(self, way: Way) -> Self {
        Self { forced: Some(way), ..self }
    }

    fn open(&self) -> io::Result<Arc<File>> {
        if let Some(kept) = &self.kept {
            return Ok(Arc::clone(kept));
        }
        match &*self.stored_to.lock() {
            Some(file) => Ok(Arc::clone(file)),
            None => self.open_anew(),
        }
    }

    fn open_anew(&self) -> io::Result<Arc<File>> {
        let file = self.directory.open_file(&self.name, Want::Existing)?;
        if os::identity(&file)? != self.identity {
            let reason = "another file has taken its place";
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let size = file.metadata()?.len();
        if size != self.size {
            return Err(outside(self.size, 0, size));
        }
        os::advise_random(&file);
        Ok(Arc::new(file))
    }

    fn way(&self, file: &File) -> io::Result<Way> {
        if let Some(way) = self.forced {
            return Ok(way);
        }
        let rewrites_in_place = os::rewrites_in_place(file, self.is_unshared)?;
        if !rewrites_in_place && os::loads_need_no_block(file)? {
            return Ok(Way::MapAndWrites);
        }
        let is_whole = self.kept.is_some() || os::has_all_blocks(file, self.size)?;
        Ok(match (is_whole, rewrites_in_place) {
            (true, true) => Way::Map,
            (true, false) => Way::MapAndWrites,
            (false, _) => Way::ReadsAndWrites,
        })
    }
}

impl StorageFile for DiskFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        check_bounds(offset, into.len(), self.size)?;
        os::read_exact_at(&*self.open()?, offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_bounds(offset, bytes.len(), self.size)?;
        os::write_all_at(&*self.open()?, offset, bytes)
    }

    fn zero(&self, start: u64, end: u64, piece: u64) -> io::Result<()> {
        check_bounds(end, 0, self.size)?;
        let file = self.open()?;
        // Elsewhere a file is made of zeros already, or each write takes a block of its own.
        if cfg!(target_os = "linux") && self.way(&file)? == Way::Map {
            os::write_zeros(&file, start, end, piece)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // On Linux fdatasync covers stores through a map; elsewhere there are none. It also makes a
        // new size durable. On macOS the standard library asks the drive itself (F_FULLFSYNC).
        self.latch.sync(|| self.open(), |file| file.sync_data())
    }

    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>> {
        let mut region = self.region.lock();
        if let Some(region) = region.as_ref().and_then(Weak::upgrade) {
            return Ok(region);
        }
        let file = self.open()?;
        let (way, size) = (self.way(&file)?, self.size);
        let new: Arc<dyn Region> = if way == Way::ReadsAndWrites {
            Arc::new(UnmappedRegion { file: Arc::clone(&file), size })
        } else {
            let map = Map::new(&file, size, way == Way::Map)?;
            if access == Access::Commits {
                map.advise_random();
            }
            let (file, by_write) = (Arc::clone(&file), way == Way::MapAndWrites);
            Arc::new(MappedRegion { map, file, size, by_write })
        };
        *region = Some(Arc::downgrade(&new));
        *self.stored_to.lock() = Some(file);
        Ok(new)
    }

    fn release(&self) {
        let region = self.region.lock();
        if region.as_ref().is_none_or(|region| region.strong_count() == 0) {
            *self.stored_to.lock() = None;
        }
    }

    fn extend(&self, size: u64) -> io::Result<()> {
        let file = self.open()?;
        let found = file.metadata()?.len();
        // Somebody else is making it longer.
        if found != self.size {
            return Err(outside(self.size, 0, found));
        }
        os::extend(&file, (found, size))
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(os::next_data(&*self.open()?, offset)?.min(self.size))
    }

    fn has_name(&self) -> io::Result<bool> {
        if let Ok(found) = self.directory.identity_of(&self.name) {
            return Ok(found == Some(self.identity));
        }
        // Nobody may look into the directory now. At least it must have a name somewhere.
        match self.open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            file => Ok(os::links(&*file?)? > 0),
        }
    }

    fn has_other_names(&self) -> io::Result<bool> {
        Ok(os::links(&*self.open()?)? > 1)
    }
}

/// Stores into the map, or, where such a store could run out of room, by writes.
#[derive(Debug)]
struct MappedRegion {
    map: Map,
    file: Arc<File>,
    size: u64,
    by_write: bool,
}

impl MappedRegion {
    // Apart, so that stores to a map do not pay for them.
    #[inline(never)]
    fn write_bytes(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Or else a write would make the file longer.
        check_bounds(offset, bytes.len(), self.size)?;
        os::write_all_at(&self.file, offset, bytes)
    }

    #[inline(never)]
    fn write_words(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        write_words(&self.file, self.size, offset, words)
    }

    #[inline(never)]
    fn replace_by_write(&self, offset: u64, said: u64, word: u64) -> bool {
        self.map.load_word(offset).is_ok_and(|there| there == said)
            && self.write_words(offset, &[word]).is_ok()
    }

    #[inline(never)]
    fn write_record(&self, offset: u64, header: &[u8; HEADER], body: [&[u8]; 2]) -> io::Result<()> {
        self.write(offset, &[header, body[0], body[1]])
    }
}

impl Region for MappedRegion {
    #[inline]
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.by_write { self.write_bytes(offset, bytes) } else { self.map.store(offset, bytes) }
    }

    #[inline]
    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.map.load(offset, into)
    }

    #[inline]
    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.map.load_into(offset, len, into)
    }

    #[inline]
    fn store_record(&self, offset: u64, header: &[u8; HEADER], body: [&[u8]; 2]) -> io::Result<()> {
        if self.by_write {
            self.write_record(offset, header, body)
        } else {
            self.map.store_record(offset, header, body)
        }
    }

    #[inline]
    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        if self.by_write {
            self.write_words(offset, &[word])
        } else {
            self.map.store_word(offset, word)
        }
    }

    #[inline]
    fn load_word(&self, offset: u64) -> io::Result<u64> {
        self.map.load_word(offset)
    }

    #[inline]
    fn replace_word(&self, offset: u64, said: u64, word: u64) -> bool {
        if self.by_write {
            self.replace_by_write(offset, said, word)
        } else {
            self.map.replace_word(offset, said, word)
        }
    }

    #[inline]
    fn load_header(&self, offset: u64) -> io::Result<[u8; HEADER]> {
        self.map.load_header(offset)
    }

    #[inline]
    fn store_words(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        if self.by_write {
            self.write_words(offset, words)
        } else {
            self.map.store_words(offset, words)
        }
    }

    #[inline]
    fn load_words(&self, offset: u64, into: &mut [u64]) -> io::Result<()> {
        self.map.load_words(offset, into)
    }

    fn write(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        write_pieces(&self.file, self.size, offset, pieces)
    }

    fn populate(&self) {
        self.populate_part(0, self.size);
    }

    fn populate_part(&self, offset: u64, len: u64) {
        if !self.by_write {
            self.map.populate(offset, len);
        }
    }

    fn evict(&self, offset: u64, len: u64) {
        // First, so that the system need not protect each page of it.
        self.map.evict(offset, len);
        mmap::begin_to_write(&self.file, offset, len);
    }

    #[inline]
    fn stores_are_writes(&self) -> bool {
        self.by_write
    }
}

/// Loads by reads and stores by writes.
#[derive(Debug)]
struct UnmappedRegion {
    file: Arc<File>,
    size: u64,
}

impl Region for UnmappedRegion {
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_bounds(offset, bytes.len(), self.size)?;
        os::write_all_at(&self.file, offset, bytes)
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        check_bounds(offset, into.len(), self.size)?;
        os::read_exact_at(&self.file, offset, into)
    }

    fn load_into(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        // Before any memory is taken for it.
        check_bounds(offset, len, self.size)?;
        let start = into.len();
        into.resize(start + len, 0);
        let loaded = os::read_exact_at(&self.file, offset, &mut into[start..]);
        loaded.inspect_err(|_| into.truncate(start))
    }

    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        self.store_words(offset, &[word])
    }

    fn load_word(&self, offset: u64) -> io::Result<u64> {
        let mut word = [0];
        self.load_words(offset, &mut word).map(|()| word[0])
    }

    fn store_words(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        write_words(&self.file, self.size, offset, words)
    }

    fn load_words(&self, offset: u64, into: &mut [u64]) -> io::Result<()> {
        let mut bytes = vec![0; into.len().saturating_mul(WORD)];
        check_words(offset, bytes.len(), self.size)?;
        os::read_exact_at(&self.file, offset, &mut bytes)?;
        let (words, _) = bytes.as_chunks();
        into.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        Ok(())
    }

    fn write(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        write_pieces(&self.file, self.size, offset, pieces)
    }

    fn populate(&self) {}

    fn evict(&self, offset: u64, len: u64) {
        mmap::begin_to_write(&self.file, offset, len);
    }

    fn stores_are_writes(&self) -> bool {
        true
    }
}

/// Writes pieces side by side.
fn write_pieces(file: &File, size: u64, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
    // Or else a write would make the file longer.
    check_bounds(offset, pieces.iter().map(|piece| piece.len()).sum(), size)?;
    os::write_pieces_at(file, offset, pieces)
}

/// Stores words by one write for each block, the last one first: a write can be cut short between
/// blocks only, where the file system has no room for one of them.
fn write_words(file: &File, size: u64, offset: u64, words: &[u64]) -> io::Result<()> {
    // Or else a write would make the file longer.
    check_words(offset, words.len().saturating_mul(WORD), size)?;
    let mut left = words;
    while !left.is_empty() {
        let end = offset + to_u64(left.len().saturating_mul(WORD));
        let in_block = usize::try_from((end - 1) % BLOCK + 1).unwrap_or(WORD);
        let (before, last) = left.split_at(left.len().saturating_sub(in_block / WORD));
        let bytes: Vec<u8> = last.iter().flat_map(|word| word.to_le_bytes()).collect();
        os::write_all_at(file, offset + to_u64(before.len().saturating_mul(WORD)), &bytes)?;
        left = before;
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::io::Storage;
    use crate::io::disk::DiskStorage;

    /// A pipe cannot be synced.
    #[test]
    fn the_first_failed_sync_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let disk = DiskStorage::existing(dir.path(), false).unwrap();
        disk.create("file", 4096).unwrap();
        let file = disk.open_file("file").unwrap();
        file.release();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.create("file", 4096).unwrap();
        assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::NotFound, "another file");
        std::fs::rename(&elsewhere, &path).unwrap();
        file.sync().expect("what could not be opened was no failed sync");
        let (_reader, pipe) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        *file.stored_to.lock() = Some(Arc::new(pipe));
        let failed = file.sync().unwrap_err().kind();
        *file.stored_to.lock() = None;
        assert_eq!(file.sync().unwrap_err().kind(), failed, "although it could be synced");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.sync().unwrap_err().kind(), failed, "although it is not there");
        disk.create("file", 4096).unwrap();
        disk.open("file").unwrap().sync().expect("another object knows nothing of it");
    }

    #[test]
    fn other_names_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskStorage::existing(dir.path(), false).unwrap();
        let file = disk.create("a", 4096).unwrap();
        assert!(file.has_name().unwrap() && !file.has_other_names().unwrap());
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert!(file.has_other_names().unwrap());
        assert!(disk.open("b").unwrap().has_other_names().unwrap());
    }
}
