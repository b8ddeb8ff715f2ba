//! Room on a full disk that is kept for dead letters.
//!
//! Promises: once the disk has run full, a few segments of the smallest size are left for the dead
//! letters, whatever pushes take. So messages that died reach their consumers, whose answers make
//! more room. The room is a file, as no other way keeps it from other programs. It is made before
//! segments are made smaller, at a time when a large one has no room, but this has. Where not even
//! this has room, messages are taken as long as none is on its way to the dead letters.

use crate::engine::context::Context;
use crate::engine::signal::DispatchLock;
use crate::engine::space::SMALLEST_SEGMENT;
use crate::error::{Error, Result};

/// In this room the newest segment of dead letters has four times the smallest size at most. Beside
/// it there is room for another one, by which it can be let go, and three times as much for their
/// directory, CHECKPOINT and what a file system adds (xfs: 64 inodes at once, and blocks that it
/// needs for each change).
const KEPT: u64 = 8 * SMALLEST_SEGMENT;

/// A queue that takes less keeps none: the room would be a large part of what it has.
const LEAST: u64 = 8 * KEPT;

/// What is known of the room for dead letters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LettersRoom {
    /// The disk has not run full.
    Unneeded,
    /// It has, and the room is kept by a file of this name.
    Kept(String),
    /// It has, and there is none.
    Missing,
}

impl LettersRoom {
    /// The disk was full: room has to be kept from here on.
    pub(super) fn begin(&mut self, context: &Context) {
        let is_worth_it = context.options.dead_letters && context.space.own() >= LEAST;
        if *self == Self::Unneeded && is_worth_it {
            *self = Self::Missing;
        }
    }

    /// Makes the file of this name, which keeps the room.
    ///
    /// # Errors
    ///
    /// [`Error::StorageFull`] if there is none, and messages are on their way to the dead letters.
    pub(super) fn keep(
        &mut self,
        name: String,
        context: &Context,
        dispatch: &DispatchLock,
    ) -> Result<()> {
        if context.space.take(KEPT).is_err() {
            return Ok(());
        }
        match context.storage.create(&name, KEPT) {
            Ok(_) => {
                *self = Self::Kept(name);
                Ok(())
            }
            Err(error) => {
                context.space.undo(KEPT);
                let path = context.storage.path(&name);
                let are_dying = dispatch.lock().ledger().places().dying().count() > 0;
                let error = Error::io("keep room for dead letters", &path, 0, error);
                if are_dying { Err(error) } else { Ok(()) }
            }
        }
    }

    /// Gives the room up; false if there is none. A file that cannot be removed is added to
    /// `leftovers`, with its bytes.
    pub(super) fn give_up(
        &mut self,
        context: &Context,
        leftovers: &mut Vec<(String, u64)>,
    ) -> bool {
        let Self::Kept(name) = self else { return false };
        let name = std::mem::take(name);
        *self = Self::Missing;
        if context.storage.remove(&name).is_ok() {
            context.space.give_back(KEPT);
            return true;
        }
        leftovers.push((name, KEPT));
        context.retry_upkeep();
        false
    }
}
