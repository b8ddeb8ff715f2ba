//! What keeps a segment from being read, and can be taken out of the way.

use super::Consumers;
use crate::engine::context::RoomTries;
use crate::engine::dispatch::give_up_vanished;
use crate::error::{Error, Result};
use std::io::ErrorKind;

impl Consumers {
    /// Takes out of the way what kept a segment from being read, if that can be done: then the
    /// caller tries again.
    ///
    /// # Errors
    ///
    /// The same, if nothing can be done.
    #[cold]
    pub(crate) fn clear_the_way(&self, error: Error, tries: &mut RoomTries) -> Result<()> {
        let Error::Io { source, .. } = &error else { return Err(error) };
        let is_cleared = match source.kind() {
            // There are too many maps, for this system or for the limits of this process.
            ErrorKind::OutOfMemory => self.dispatch.make_room_for_map(tries),
            ErrorKind::NotFound => self.give_up_vanished(),
            _ => false,
        };
        if !is_cleared {
            return Err(error);
        }
        // What could not be read for it may be readable now.
        self.dispatch.lock().count_again();
        Ok(())
    }

    /// Passes over segments whose files somebody removed; false if there are none.
    fn give_up_vanished(&self) -> bool {
        // Without its directory a queue has nothing left: that is for pushes and syncs to tell.
        if self.context.storage.check_directory().is_err() {
            return false;
        }
        let unsealed = self.appender.unsealed();
        let mut dispatch = self.dispatch.lock();
        let vanished = dispatch.backlog().tracks().vanished();
        let sealed = vanished.into_iter().filter(|ordinal| {
            !unsealed.full().iter().any(|full| full.segment.header.ordinal == *ordinal)
        });
        let (mut bytes, mut has_any) = (0, false);
        for ordinal in sealed.collect::<Vec<_>>() {
            bytes += give_up_vanished(dispatch.ledger_mut(), ordinal);
            has_any = true;
        }
        // In this order, so that wakers are called outside of all locks.
        drop(unsealed);
        drop(dispatch);
        self.context.space.give_back(bytes);
        has_any
    }
}
