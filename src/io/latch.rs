//! The first failed sync of a file is its last.
//!
//! Promises: once a sync has failed, no later one of the same file succeeds. After a failed sync
//! the operating system may drop what it could not write and report success the next time.

use parking_lot::Mutex;
use std::{error, fmt, io};

/// Why a file or directory could not be opened that was to be synced. No sync was tried: all that
/// was stored is where it was, and a later sync covers it.
#[derive(Debug)]
pub(crate) struct Unopened(pub(crate) io::Error);

impl Unopened {
    /// The error of a sync that was not tried.
    pub(super) fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl error::Error for Unopened {}

/// How the first failed sync of a file failed, if one did.
#[derive(Debug, Default)]
pub(super) struct SyncLatch {
    failed: Mutex<Option<io::ErrorKind>>,
}

impl SyncLatch {
    /// Syncs what `open` gives, unless an earlier sync failed. What cannot be opened is no failed
    /// sync, and its error is an [`Unopened`].
    pub(super) fn sync<F>(
        &self,
        open: impl FnOnce() -> io::Result<F>,
        sync: impl FnOnce(F) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut failed = self.failed.lock();
        if let Some(kind) = *failed {
            return Err(io::Error::new(kind, "an earlier sync of this file failed"));
        }
        let synced = sync(open().map_err(Unopened::wrap)?);
        synced.inspect_err(|error| {
            let unopened = error.get_ref().and_then(|inner| inner.downcast_ref::<Unopened>());
            if unopened.is_none() {
                *failed = Some(error.kind());
            }
        })
    }
}
