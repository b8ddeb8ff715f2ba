//! The poison latch: after the first failed sync nobody believes another one.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;

/// Whether syncs can still be believed, and what the background met last.
#[derive(Debug, Default)]
pub(crate) struct Health {
    cause: OnceLock<Cause>,
    background_error: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Cause {
    operation: &'static str,
    path: PathBuf,
    source: Arc<io::Error>,
}

impl Health {
    /// Latches the first failed sync, for ever.
    pub(super) fn poison(&self, operation: &'static str, path: &Path, source: io::Error) -> Error {
        let cause = Cause { operation, path: path.to_path_buf(), source: Arc::new(source) };
        let cause = self.cause.get_or_init(|| cause);
        cause.error(false)
    }

    /// # Errors
    ///
    /// [`Error::Poisoned`] once a sync has failed. `indeterminate`: the caller's change is visible.
    pub(super) fn check(&self, indeterminate: bool) -> Result<()> {
        self.cause.get().map_or(Ok(()), |cause| Err(cause.error(indeterminate)))
    }

    /// Keeps what nobody was there to be told.
    pub(super) fn note_background(&self, result: Result<()>) {
        if let Err(error) = result {
            *self.background_error.lock() = Some(error.to_string());
        }
    }

    pub(super) fn last_background_error(&self) -> Option<String> {
        self.background_error.lock().clone()
    }
}

impl Cause {
    fn error(&self, indeterminate: bool) -> Error {
        // Each caller gets an error of its own, of the same kind.
        let source = match self.source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.source.kind(), Arc::clone(&self.source)),
        };
        let path = self.path.clone();
        Error::Poisoned { operation: self.operation, path, indeterminate, source }
    }
}
