//! Directories by path, where the system has no calls relative to a directory: Windows.

#![expect(clippy::disallowed_types, reason = "part of the door to the operating system")]

use super::names::{Want, entry, removed};
use crate::io::{Entry, os};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// An open directory. While the handle is open, Windows refuses to move or remove it.
#[derive(Debug)]
pub(in crate::io) struct PathDirectory {
    /// Where it was when it was opened: for messages only.
    path: PathBuf,
    /// The same without links, which may be switched later.
    resolved: PathBuf,
    _handle: Option<File>,
}

impl PathDirectory {
    /// The directory at this path.
    pub(in crate::io) fn open(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let resolved = path.canonicalize()?;
        if !resolved.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let handle = os::hold_directory(&resolved)?;
        Ok(Self { path, resolved, _handle: handle })
    }

    /// The directory with this name in this one, which is made if it is not there.
    pub(in crate::io) fn open_inner(&self, name: &str) -> io::Result<Self> {
        let (path, resolved) = (self.path.join(name), self.resolved.join(name));
        match os::create_directory(&resolved) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // A link is not followed.
        if !resolved.symlink_metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let handle = os::hold_directory(&resolved)?;
        Ok(Self { path, resolved, _handle: handle })
    }

    /// Where a name lies, for messages to people.
    pub(in crate::io) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file that is not reached through a link.
    pub(in crate::io) fn open_file(&self, name: &str, want: Want) -> io::Result<File> {
        let mut options = os::private();
        match want {
            Want::Existing => {}
            Want::New => drop(options.create_new(true)),
            Want::Any => drop(options.create(true).truncate(false)),
        }
        options.open(self.resolved.join(name))
    }

    pub(in crate::io) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.resolved.join(from), self.resolved.join(to))
    }

    /// A name that is not there is not an error.
    pub(in crate::io) fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.resolved.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The identity of what has this name; `None` if nothing has it.
    pub(in crate::io) fn identity_of(&self, name: &str) -> io::Result<Option<os::FileId>> {
        match self.resolved.join(name).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(|_| Some(os::UNKNOWN)),
        }
    }

    /// All names.
    pub(in crate::io) fn list(&self) -> io::Result<Vec<Entry>> {
        list(&self.resolved)
    }

    /// Windows has no such call: there the file system's journal keeps names in order.
    pub(in crate::io) fn sync(&self) -> io::Result<()> {
        self.check()
    }

    /// Fails if it was removed.
    pub(in crate::io) fn check(&self) -> io::Result<()> {
        match self.resolved.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(removed("directory")),
            result => result.map(drop),
        }
    }

    /// As [`PathDirectory::sync`].
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as on other systems")]
    pub(in crate::io) fn sync_parents(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether it has this name in its parent. Also gives the names there.
    pub(in crate::io) fn siblings_if_named(&self, name: &str) -> io::Result<Option<Vec<Entry>>> {
        let has_name = self.resolved.file_name().is_some_and(|own| own == name);
        match self.resolved.parent().filter(|_| has_name) {
            Some(parent) => list(parent).map(Some),
            None => Ok(None),
        }
    }

    /// Directories have no locks here; and `LOCK` cannot be removed while it is open.
    #[expect(clippy::unused_self, reason = "as on other systems")]
    pub(in crate::io) fn try_lock(&self) -> Option<bool> {
        None
    }

    /// Gives that lock back.
    #[expect(clippy::unused_self, reason = "as on other systems")]
    pub(in crate::io) fn unlock(&self) {}
}

fn list(directory: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in directory.read_dir()? {
        let found = found?;
        entries.push(entry(&found.file_name(), found.file_type()?.is_file()));
    }
    Ok(entries)
}
