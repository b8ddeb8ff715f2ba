//! The first failed sync of a file is its last.
//!
//! Promises: once a sync has failed, no later one of the same file succeeds. After a failed sync
//! the operating system may drop what it could not write and report success the next time.

use parking_lot::Mutex;
use std::io;

/// How the first failed sync of a file failed, if one did.
#[derive(Debug, Default)]
pub(super) struct SyncLatch {
    failed: Mutex<Option<io::ErrorKind>>,
}

impl SyncLatch {
    /// Syncs what `open` gives, unless an earlier sync failed. What cannot be opened is no failed
    /// sync.
    pub(super) fn sync<F>(
        &self,
        open: impl FnOnce() -> io::Result<F>,
        sync: impl FnOnce(F) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut failed = self.failed.lock();
        if let Some(kind) = *failed {
            return Err(io::Error::new(kind, "an earlier sync of this file failed"));
        }
        sync(open()?).inspect_err(|error| *failed = Some(error.kind()))
    }
}
