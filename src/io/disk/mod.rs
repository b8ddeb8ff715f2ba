//! The operating system's files.

#![expect(clippy::disallowed_types, reason = "the door to the operating system")]

mod file;

use super::directory::{self, Directory, Want};
use super::process::ProcessId;
use super::{Entry, Storage, StorageFile, os};
use crate::format::name;
use file::DiskFile;
use std::any::Any;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A directory of the operating system.
#[derive(Debug)]
pub(crate) struct DiskStorage {
    directory: Arc<Directory>,
    /// Nobody shares blocks of its files with other files: the user says so.
    is_unshared: bool,
    /// The directory's own lock does not keep this process from taking it twice.
    is_locked: Arc<AtomicBool>,
}

impl DiskStorage {
    /// The directory, which has to be there. `is_unshared`: as in
    /// [`Options::unshared_blocks`](crate::Options::unshared_blocks).
    pub(crate) fn existing(path: &Path, is_unshared: bool) -> io::Result<Self> {
        Ok(Self::of(Directory::open(path)?, is_unshared))
    }

    /// Makes the directory, and those above it, if they are not there.
    pub(crate) fn make(path: &Path) -> io::Result<()> {
        directory::make(&std::path::absolute(path)?)
    }

    fn of(directory: Directory, is_unshared: bool) -> Self {
        let (directory, is_locked) = (Arc::new(directory), Arc::default());
        Self { directory, is_unshared, is_locked }
    }

    /// Whether the directory at this path holds, or would hold, the dead letters of the queue in
    /// its parent. A parent that cannot be read is not that of a queue of this user.
    pub(crate) fn is_of_dead_letters(path: &Path) -> bool {
        let siblings = match Directory::open(path) {
            Ok(directory) => directory.siblings_if_named(name::DEAD).ok().flatten(),
            Err(_) if path.file_name().is_some_and(|own| own == name::DEAD) => {
                let parent = std::path::absolute(path).ok();
                let parent = parent.as_deref().and_then(Path::parent).map(Directory::open);
                parent.and_then(Result::ok).and_then(|parent| parent.list().ok())
            }
            Err(_) => None,
        };
        siblings.is_some_and(|all| all.iter().any(|entry| name::is_of_a_queue(&entry.name)))
    }

    fn create_file(&self, name: &str, size: u64) -> io::Result<DiskFile> {
        self.directory.remove(name)?;
        let file = self.directory.open_file(name, Want::New)?;
        match os::allocate(&file, size) {
            Ok(()) => {
                let directory = Arc::clone(&self.directory);
                DiskFile::new(directory, name, file, self.is_unshared)
            }
            Err(error) => {
                drop(file);
                // The first error is the one to tell; the next open removes a file that stays.
                self.directory.remove(name).ok();
                Err(error)
            }
        }
    }

    fn open_file(&self, name: &str) -> io::Result<DiskFile> {
        let file = self.directory.open_file(name, Want::Existing)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        DiskFile::found(Arc::clone(&self.directory), name, file, self.is_unshared)
    }

    /// The file `LOCK`, locked; `None` if it is locked. `is_ours`: the directory itself is locked,
    /// too.
    fn lock_file(&self, is_ours: bool) -> io::Result<Option<File>> {
        let mut file = self.directory.open_file(name::LOCK, Want::Any)?;
        if is_ours && os::links(&file)? > 1 {
            // The directory was copied by hard links: it is also the lock of the other one.
            self.directory.remove(name::LOCK)?;
            file = self.directory.open_file(name::LOCK, Want::Any)?;
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The lock of a directory, given back when this is dropped. Closing the files would not do: a
/// process that another thread is starting in this moment has them open, too.
struct Lock {
    directory: Arc<Directory>,
    is_locked: Arc<AtomicBool>,
    file: Option<File>,
    /// The process that has taken it: a forked child has the same one open, and leaves it.
    process: ProcessId,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.process != ProcessId::current() {
            return;
        }
        // Where that fails, the lock ends with the last descriptor of the file.
        self.file.take().map(|file| file.unlock().ok());
        self.directory.unlock();
        // Release: pairs with the swap in `lock`.
        self.is_locked.store(false, Ordering::Release);
    }
}

impl Storage for DiskStorage {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        // Acquire: pairs with the store in `Lock::drop`.
        if self.is_locked.swap(true, Ordering::Acquire) {
            return Ok(None);
        }
        let (directory, is_locked) = (Arc::clone(&self.directory), Arc::clone(&self.is_locked));
        let taken = directory.try_lock();
        if taken == Some(false) {
            is_locked.store(false, Ordering::Release);
            return Ok(None);
        }
        let mut lock = Lock { directory, is_locked, file: None, process: ProcessId::current() };
        lock.file = self.lock_file(taken.is_some())?;
        Ok(if lock.file.is_some() { Some(Box::new(lock)) } else { None })
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.directory.list()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(self.create_file(name, size)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(self.open_file(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.directory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.directory.sync()
    }

    fn sync_parents(&self) -> io::Result<()> {
        self.directory.sync_parents()
    }

    fn check_directory(&self) -> io::Result<()> {
        self.directory.check()
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self::of(self.directory.open_inner(name)?, self.is_unshared)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path(name)
    }
}

#[cfg(test)]
mod tests {
    use super::file::Way;
    use super::*;
    use crate::io::conformance;

    /// A disk that reaches all of its files in the same way, whatever their file system allows.
    #[derive(Debug)]
    struct Forced {
        disk: DiskStorage,
        way: Way,
    }

    impl Forced {
        fn file(&self, file: DiskFile) -> Arc<dyn StorageFile> {
            Arc::new(file.forced(self.way))
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

    fn disk(directory: &Path) -> DiskStorage {
        DiskStorage::existing(directory, false).unwrap()
    }

    #[test]
    fn maps_and_writes_keep_the_same_promises() {
        for way in [Way::Map, Way::MapAndWrites, Way::ReadsAndWrites] {
            let dir = tempfile::tempdir().unwrap();
            conformance::check(&Forced { disk: disk(dir.path()), way });
        }
    }

    /// Elsewhere, room is taken by writing zeros until there is none.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_there_is_no_room_for_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        conformance::check_without_room(&disk(dir.path()));
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_is_found_where_it_was_moved_to() {
        let dir = tempfile::tempdir().unwrap();
        let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
        DiskStorage::make(&here).unwrap();
        let storage = DiskStorage::existing(&here, false).unwrap();
        let file = storage.open_file("a").map(drop);
        assert_eq!(file.unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = storage.create("a", 4096).unwrap();
        std::fs::rename(&here, &there).unwrap();
        std::fs::create_dir(&here).unwrap();
        storage.rename("a", "b").unwrap();
        storage.create("c", 1).unwrap();
        storage.directory("inner").unwrap().create("d", 1).unwrap();
        file.write_at(0, b"x").unwrap();
        let again = storage.open("b").unwrap();
        again.release();
        let mut byte = [0];
        again.read_at(0, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let names = |path: &Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((names(&here), names(&there)), (0, 3));
        storage.sync_directory().unwrap();
        storage.check_directory().unwrap();
        std::fs::remove_dir_all(&there).unwrap();
        let gone = [
            storage.check_directory(),
            storage.sync_directory(),
            storage.create("e", 1).map(drop),
            storage.open("b").map(drop),
        ];
        for result in gone {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        assert!(!again.has_name().unwrap() && !file.has_name().unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn the_lock_does_not_end_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let lock = disk(dir.path()).lock().unwrap();
        std::fs::remove_file(dir.path().join(name::LOCK)).unwrap();
        assert!(lock.is_some() && disk(dir.path()).lock().unwrap().is_none());
        drop(lock);
        let lock = disk(dir.path()).lock().unwrap();
        assert!(lock.is_some() && disk(dir.path()).lock().unwrap().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn dead_letters_are_told_from_a_queue_of_that_name() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("orders");
        let dead = queue.join(name::DEAD);
        std::fs::create_dir(&queue).unwrap();
        let is_of_dead_letters = DiskStorage::is_of_dead_letters;
        assert!(!is_of_dead_letters(&dead), "what it would be in is no queue");
        std::fs::create_dir(&dead).unwrap();
        assert!(!is_of_dead_letters(&dead), "what it is in is no queue");
        std::fs::write(queue.join(name::LOCK), "").unwrap();
        assert!(is_of_dead_letters(&dead) && !is_of_dead_letters(&queue));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&dead, &link).unwrap();
        assert!(is_of_dead_letters(&link), "by whatever path");
        std::fs::remove_dir(&dead).unwrap();
        assert!(is_of_dead_letters(&dead), "before it is there");
        assert!(!is_of_dead_letters(&queue.join("other")));
    }
}
