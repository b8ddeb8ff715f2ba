//! Directories by descriptor.

#![expect(clippy::disallowed_types, reason = "part of the door to the operating system")]

use super::names::{Want, entry, removed};
use crate::io::latch::Unopened;
use crate::io::{Entry, os};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An open directory.
#[derive(Debug)]
pub(in crate::io) struct Directory {
    /// Where it was when it was opened: for messages only.
    path: PathBuf,
    handle: File,
    /// Of one that belongs to another one: its name there, and which directory that is.
    place: Option<(String, os::FileId)>,
}

/// Without `CLOEXEC` a child process would keep it open.
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn retry<T>(call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    rustix::io::retry_on_intr(call).map_err(io::Error::from)
}

impl Directory {
    /// The directory at this path.
    pub(in crate::io) fn open(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let handle = retry(|| rustix::fs::open(&path, OPEN, Mode::empty()))?;
        Ok(Self { path, handle: handle.into(), place: None })
    }

    /// The directory with this name in this one, which is made if it is not there.
    pub(in crate::io) fn open_inner(&self, name: &str) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(0o700);
        match retry(|| rustix::fs::mkdirat(&self.handle, name, mode)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        let flags = OPEN | OFlags::NOFOLLOW;
        let handle = retry(|| rustix::fs::openat(&self.handle, name, flags, Mode::empty()))?;
        let place = Some((name.to_string(), os::identity(&self.handle)?));
        Ok(Self { path: self.path.join(name), handle: handle.into(), place })
    }

    /// Where a name lies, for messages to people.
    pub(in crate::io) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file that only its owner may read, and that is not reached through a link.
    pub(in crate::io) fn open_file(&self, name: &str, want: Want) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = match want {
            Want::Existing => flags,
            Want::New => flags | OFlags::CREATE | OFlags::EXCL,
            Want::Any => flags | OFlags::CREATE,
        };
        let mode = Mode::from_raw_mode(0o600);
        let file = retry(|| rustix::fs::openat(&self.handle, name, flags, mode))?;
        Ok(file.into())
    }

    pub(in crate::io) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        retry(|| rustix::fs::renameat(&self.handle, from, &self.handle, to))
    }

    /// A name that is not there is not an error.
    pub(in crate::io) fn remove(&self, name: &str) -> io::Result<()> {
        match retry(|| rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The identity of what has this name, which is not followed if it is a link; `None` if nothing
    /// has it.
    pub(in crate::io) fn identity_of(&self, name: &str) -> io::Result<Option<os::FileId>> {
        match os::identity_at(&self.handle, Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    /// All names.
    pub(in crate::io) fn list(&self) -> io::Result<Vec<Entry>> {
        list(&self.handle)
    }

    /// Makes all names durable.
    pub(in crate::io) fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()?;
        self.check()
    }

    /// Fails if it was removed; and if it belongs to another one, if it was moved away from there.
    pub(in crate::io) fn check(&self) -> io::Result<()> {
        let is_there = os::links(&self.handle)? > 0 && !self.was_moved_away()?;
        if is_there { Ok(()) } else { Err(removed("directory")) }
    }

    fn was_moved_away(&self) -> io::Result<bool> {
        let Some((name, parent)) = &self.place else { return Ok(false) };
        let own = os::identity(&self.handle)?;
        let name = Path::new("..").join(name);
        let is = |path: &Path, identity: os::FileId| {
            match os::identity_at(&self.handle, path) {
                Ok(found) => found == identity,
                // Who may not look does not know it.
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            }
        };
        Ok(!is(Path::new(".."), *parent) || !is(&name, own))
    }

    /// Makes it durable in its parents, up to the root.
    pub(in crate::io) fn sync_parents(&self) -> io::Result<()> {
        let mut below = os::identity(&self.handle)?;
        let mut parent = parent_of(&self.handle);
        loop {
            let handle = match parent {
                // A directory that this process may not read was not made by it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
                opened => opened.map_err(Unopened::wrap)?,
            };
            let identity = os::identity(&handle)?;
            if identity == below {
                // Above the root is the root.
                return Ok(());
            }
            match handle.sync_all() {
                // Nor was one on a file system that cannot sync directories, such as /proc's.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
                result => result?,
            }
            (parent, below) = (parent_of(&handle), identity);
        }
    }

    /// Whether it has this name in its parent. Also gives the names there.
    pub(in crate::io) fn siblings_if_named(&self, name: &str) -> io::Result<Option<Vec<Entry>>> {
        let parent = parent_of(&self.handle)?;
        let flags = OPEN | OFlags::NOFOLLOW;
        let Ok(same) = retry(|| rustix::fs::openat(&parent, name, flags, Mode::empty())) else {
            return Ok(None);
        };
        let is_same = os::identity(&same.into())? == os::identity(&self.handle)?;
        if is_same { list(&parent).map(Some) } else { Ok(None) }
    }

    /// Locks the directory itself; false if it is locked. `None` if this file system has no locks
    /// for directories.
    pub(in crate::io) fn try_lock(&self) -> Option<bool> {
        match self.handle.try_lock() {
            Ok(()) => Some(true),
            Err(TryLockError::WouldBlock) => Some(false),
            Err(TryLockError::Error(_)) => None,
        }
    }

    /// Gives that lock back.
    pub(in crate::io) fn unlock(&self) {
        // Where that fails, the lock ends with the last descriptor of the directory.
        self.handle.unlock().ok();
    }
}

fn parent_of(handle: &File) -> io::Result<File> {
    Ok(retry(|| rustix::fs::openat(handle, "..", OPEN, Mode::empty()))?.into())
}

fn list(handle: &File) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in retry(|| Dir::read_from(handle))? {
        let found = found.map_err(io::Error::from)?;
        let bytes = found.file_name().to_bytes();
        if [&b"."[..], b".."].contains(&bytes) {
            continue;
        }
        let name = OsStr::from_bytes(bytes);
        let is_file = match found.file_type() {
            FileType::Unknown => is_regular(handle, name)?,
            known => known == FileType::RegularFile,
        };
        entries.push(entry(name, is_file));
    }
    Ok(entries)
}

/// For file systems that do not tell it with the name. What is gone meanwhile is no file.
fn is_regular(handle: &File, name: &OsStr) -> io::Result<bool> {
    match rustix::io::retry_on_intr(|| rustix::fs::statat(handle, name, AtFlags::SYMLINK_NOFOLLOW))
    {
        Err(Errno::NOENT) => Ok(false),
        stat => Ok(FileType::from_raw_mode(RawMode::from(stat?.st_mode)) == FileType::RegularFile),
    }
}
