//! The poison latch: after the first failed sync no other is believed.
//!
//! Promises: once [`Health::poison`] was told of a failed sync, every later check returns that
//! failure, and every thread that waits looks again. `Segment::sync` demands one of these, so no
//! result of a sync gets past it. A file that could not be opened to be synced was not a failed
//! sync: that is an error of the moment, and the next sync covers it.

use super::waiters::Waiters;
use crate::error::{Error, Result, again};
use crate::io::Unopened;
use crate::log::stage::Refused;
use crate::log::{OnFailure, Segment};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;

/// Whether syncs can still be believed, and what the background met last.
#[derive(Debug)]
pub(crate) struct Health {
    cause: OnceLock<FailedSync>,
    background_error: Mutex<Option<String>>,
    waiters: Arc<Waiters>,
}

#[derive(Debug)]
struct FailedSync {
    operation: &'static str,
    path: PathBuf,
    source: Arc<io::Error>,
}

impl Health {
    pub(super) fn new(waiters: Arc<Waiters>) -> Self {
        Self { cause: OnceLock::new(), background_error: Mutex::default(), waiters }
    }

    /// Syncs a segment that holds messages or their states: a failed sync poisons the queue.
    pub(super) fn sync(&self, segment: &Segment) -> Result<()> {
        segment.sync(self)
    }

    /// The error for a push whose write failed. Syncs, if what that left was erased.
    pub(super) fn refuse(&self, refused: &Refused) -> Error {
        refused.error(|segment| self.check(true).and_then(|()| self.sync(segment)))
    }

    /// Takes the result of a sync of something that the queue relies on.
    pub(super) fn believe(
        &self,
        operation: &'static str,
        path: &Path,
        synced: io::Result<()>,
    ) -> Result<()> {
        synced.map_err(|error| self.failed(operation, path, error))
    }

    /// Latches the first failed sync, for the rest of the run.
    fn poison(&self, operation: &'static str, path: &Path, source: io::Error) -> Error {
        let cause = FailedSync { operation, path: path.to_path_buf(), source: Arc::new(source) };
        let error = self.cause.get_or_init(|| cause).error(false);
        self.waiters.wake_all();
        error
    }

    /// # Errors
    ///
    /// [`Error::Poisoned`] once a sync has failed. `indeterminate`: the caller's change is visible.
    #[inline]
    pub(super) fn check(&self, indeterminate: bool) -> Result<()> {
        self.cause.get().map_or(Ok(()), |cause| Err(cause.error(indeterminate)))
    }

    /// Keeps an error for `stats`, because no caller can be told of it.
    pub(crate) fn note_background(&self, result: Result<()>) {
        if let Err(error) = result {
            *self.background_error.lock() = Some(error.full_text());
        }
    }

    pub(super) fn last_background_error(&self) -> Option<String> {
        self.background_error.lock().clone()
    }
}

impl OnFailure for Health {
    fn failed(&self, operation: &'static str, path: &Path, error: io::Error) -> Error {
        match error.downcast::<Unopened>() {
            // For want of a descriptor, say. No sync was tried, so it can be tried again.
            Ok(Unopened(error)) => Error::io("open for a sync", path, 0, error),
            Err(error) => self.poison(operation, path, error),
        }
    }
}

impl FailedSync {
    fn error(&self, indeterminate: bool) -> Error {
        let (path, source) = (self.path.clone(), again(&self.source));
        Error::Poisoned { operation: self.operation, path, indeterminate, source }
    }
}
