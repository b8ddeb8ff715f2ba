//! What directories by descriptor and by path share.

use crate::io::{Entry, os};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Which of the files with a name is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::io) enum Want {
    /// The one that is there.
    Existing,
    /// A new one: none may be there.
    New,
    /// The one that is there, or else a new one.
    Any,
}

/// What was removed under a queue that has it open.
pub(super) fn removed(what: &str) -> io::Error {
    let reason = format!("the {what} was removed while the queue was open");
    io::Error::new(io::ErrorKind::NotFound, reason)
}

/// Makes a directory and those above it, as far as they are not there. The result is not durable.
pub(in crate::io) fn make(directory: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    for ancestor in directory.ancestors() {
        if ancestor.try_exists()? {
            break;
        }
        missing.push(ancestor.to_path_buf());
    }
    for path in missing.into_iter().rev() {
        match os::create_directory(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(())
}

/// The entry for a name, which need not be UTF-8.
pub(super) fn entry(name: &OsStr, is_file: bool) -> Entry {
    Entry::new(name.to_string_lossy().into_owned(), is_file)
}
