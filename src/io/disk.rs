//! The operating system's files.

#![expect(clippy::disallowed_types, reason = "the door to the operating system")]

use super::latch::SyncLatch;
use super::mmap::Map;
use super::{Access, Entry, Region, Storage, StorageFile, check_bounds, check_word, os, outside};
use crate::format::name;
use parking_lot::Mutex;
use std::any::Any;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// A directory of the operating system.
#[derive(Debug)]
pub(crate) struct DiskStorage {
    directory: PathBuf,
}

impl DiskStorage {
    /// The directory, which has to be there.
    pub(crate) fn existing(path: &Path) -> io::Result<Self> {
        // Absolute, so that a later change of the working directory moves nothing.
        let directory = std::path::absolute(path)?;
        if directory.metadata()?.is_dir() {
            return Ok(Self { directory });
        }
        Err(io::ErrorKind::NotADirectory.into())
    }

    /// Makes the directory, and those above it, if they are not there.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let directory = std::path::absolute(path)?;
        let mut missing = Vec::new();
        for ancestor in directory.ancestors() {
            if ancestor.try_exists()? {
                break;
            }
            missing.push(ancestor);
        }
        for path in missing.into_iter().rev() {
            match os::create_directory(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
        }
        Self::existing(path)
    }

    fn create_file(&self, name: &str, size: u64) -> io::Result<DiskFile> {
        self.remove(name)?;
        let file = os::private().create_new(true).open(self.path(name))?;
        match os::allocate(&file, size) {
            Ok(mappable) => Ok(DiskFile::new(self.path(name), size, mappable, Some(file))),
            Err(error) => {
                drop(file);
                // The first error is the one to tell; the next open removes a file that stays.
                self.remove(name).ok();
                Err(error)
            }
        }
    }

    fn open_file(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        let file = os::private().open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mappable = os::is_mappable(&file)?;
        os::advise_random(&file);
        let disk_file = DiskFile::new(path, metadata.len(), mappable, None);
        // Until it is released.
        *disk_file.stored_to.lock() = Some(Arc::new(file));
        Ok(disk_file)
    }
}

/// The lock of a directory, given back when this is dropped. Closing the file would not do: a
/// process that another thread is starting in this moment has it open, too.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Where that fails, the lock ends with the last descriptor of the file.
        self.0.unlock().ok();
    }
}

impl Storage for DiskStorage {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let file = os::private().create(true).truncate(false).open(self.path(name::LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(Lock(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.directory.read_dir()? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry::new(name, entry.file_type()?.is_file()));
        }
        Ok(entries)
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(self.create_file(name, size)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(self.open_file(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        os::sync_directory(&self.directory)
    }

    fn sync_parents(&self) -> io::Result<()> {
        for ancestor in self.directory.ancestors().skip(1) {
            match os::sync_directory(ancestor) {
                // A directory that this process may not read was not made by it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                // Nor was one on a file system that cannot sync directories, such as /proc's.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
                result => result?,
            }
        }
        Ok(())
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let path = self.path(name);
        // A link is not followed.
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Arc::new(Self::new(&path)?)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// A file that holds a descriptor only from when it is opened or mapped until it is released, and
/// otherwise for the length of a call: a backlog of thousands of segments needs no more descriptors
/// than a short one. What was stored is synced through the descriptor that it was stored under,
/// which cannot miss an error of writing back; and the first failed sync of a file is its last.
#[derive(Debug)]
struct DiskFile {
    path: PathBuf,
    size: u64,
    mappable: bool,
    /// A new file stays open, because its name will change.
    kept: Option<Arc<File>>,
    /// The one map of the file, however often `map` is called.
    region: Mutex<Weak<DiskRegion>>,
    /// The descriptor that it was opened or last mapped with, until all that was stored is synced.
    stored_to: Mutex<Option<Arc<File>>>,
    latch: SyncLatch,
}

impl DiskFile {
    fn new(path: PathBuf, size: u64, mappable: bool, kept: Option<File>) -> Self {
        let (kept, region) = (kept.map(Arc::new), Mutex::new(Weak::new()));
        let (stored_to, latch) = (Mutex::new(None), SyncLatch::default());
        Self { path, size, mappable, kept, region, stored_to, latch }
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
        let file = os::private().open(&self.path)?;
        let size = file.metadata()?.len();
        if size != self.size {
            return Err(outside(self.size, 0, size));
        }
        os::advise_random(&file);
        Ok(Arc::new(file))
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

    fn sync(&self) -> io::Result<()> {
        // On Linux fdatasync covers stores through a map; elsewhere there are none. It also makes a
        // new size durable. On macOS the standard library asks the drive itself (F_FULLFSYNC).
        self.latch.sync(|| self.open(), |file| file.sync_data())
    }

    fn map(&self, access: Access) -> io::Result<Arc<dyn Region>> {
        let mut region = self.region.lock();
        if let Some(region) = region.upgrade() {
            return Ok(region);
        }
        let file = self.open()?;
        let map = Map::new(&file, self.size, self.mappable)?;
        if access == Access::Commits {
            map.advise_random();
        }
        let (size, by_write) = (self.size, !self.mappable);
        let new = Arc::new(DiskRegion { map, file, size, by_write });
        *region = Arc::downgrade(&new);
        *self.stored_to.lock() = Some(Arc::clone(&new.file));
        Ok(new)
    }

    fn release(&self) {
        let region = self.region.lock();
        if region.strong_count() == 0 {
            *self.stored_to.lock() = None;
        }
    }
}

/// Stores into the map, or, where such a store could run out of room, by writes.
#[derive(Debug)]
struct DiskRegion {
    map: Map,
    file: Arc<File>,
    size: u64,
    by_write: bool,
}

impl Region for DiskRegion {
    #[inline]
    fn store(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.by_write {
            // Or else a write would make the file longer.
            check_bounds(offset, bytes.len(), self.size)?;
            return os::write_all_at(&self.file, offset, bytes);
        }
        self.map.store(offset, bytes)
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
    fn store_word(&self, offset: u64, word: u64) -> io::Result<()> {
        if self.by_write {
            check_word(offset, self.size)?;
            return os::write_all_at(&self.file, offset, &word.to_le_bytes());
        }
        self.map.store_word(offset, word)
    }

    #[inline]
    fn load_word(&self, offset: u64) -> io::Result<u64> {
        self.map.load_word(offset)
    }

    fn populate(&self) {
        if !self.by_write {
            self.map.populate();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::conformance;

    /// A disk that stores to all of its files in the same way, whatever their file system allows.
    #[derive(Debug)]
    struct Forced {
        disk: DiskStorage,
        mappable: bool,
    }

    impl Forced {
        fn file(&self, file: DiskFile) -> Arc<dyn StorageFile> {
            Arc::new(DiskFile { mappable: self.mappable, ..file })
        }
    }

    impl Storage for Forced {
        fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
            self.disk.lock()
        }

        fn list(&self) -> io::Result<Vec<Entry>> {
            self.disk.list()
        }

        fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
            Ok(self.file(self.disk.create_file(name, size)?))
        }

        fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
            Ok(self.file(self.disk.open_file(name)?))
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.disk.remove(name)
        }

        fn sync_directory(&self) -> io::Result<()> {
            self.disk.sync_directory()
        }

        fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
            self.disk.directory(name)
        }

        fn sync_parents(&self) -> io::Result<()> {
            self.disk.sync_parents()
        }

        fn path(&self, name: &str) -> PathBuf {
            self.disk.path(name)
        }
    }

    #[test]
    fn stores_into_maps_and_stores_by_write_keep_the_same_promises() {
        for mappable in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let disk = DiskStorage::existing(dir.path()).unwrap();
            conformance::check(&Forced { disk, mappable });
        }
    }

    /// Elsewhere, room is taken by writing zeros until there is none.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_there_is_no_room_for_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        conformance::check_without_room(&DiskStorage::existing(dir.path()).unwrap());
    }

    /// A pipe cannot be synced.
    #[cfg(unix)]
    #[test]
    fn the_first_failed_sync_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = DiskFile::new(path.clone(), 4096, false, None);
        assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::NotFound);
        let disk = DiskStorage::existing(dir.path()).unwrap();
        disk.create("file", 4096).unwrap();
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
}
