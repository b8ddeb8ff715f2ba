//! Files that were to become segments, mean nothing, and could not be removed yet.
//!
//! Promises: their bytes count as used for as long as they stay, and there are few. Relies on the
//! `supply` lock.

use crate::engine::context::Context;
use crate::error::Result;

/// Where this many files that mean nothing cannot be removed, no more are made for the same.
pub(crate) const MOST_LEFTOVERS: usize = 2;

/// Each with the names that it may have, and the bytes that count as used by it.
#[derive(Debug, Default)]
pub(super) struct Leftovers(Vec<(Vec<String>, u64)>);

impl Leftovers {
    /// Removes a file of this size that has one of these names, if any. Returns false if that may
    /// not have been: then it is tried again.
    pub(super) fn clean_up(
        &mut self,
        context: &Context,
        names: impl IntoIterator<Item = String>,
        size: u64,
    ) -> bool {
        let stuck = names.into_iter().filter(|name| context.remove(name).is_err());
        let stuck: Vec<String> = stuck.collect();
        let is_gone = stuck.is_empty();
        if !is_gone {
            self.leave(context, stuck, size);
        }
        is_gone
    }

    /// A file of this size, with one of these names, could not be removed.
    pub(super) fn leave(&mut self, context: &Context, names: Vec<String>, size: u64) {
        self.0.push((names, size));
        context.retry_upkeep();
    }

    /// Tries again to remove them.
    pub(super) fn remove(&mut self, context: &Context) -> Result<()> {
        let (mut result, mut given_back) = (Ok(()), 0);
        self.0.retain_mut(|(names, size)| {
            names.retain(|name| {
                let removed = context.remove(name);
                let is_left = removed.is_err();
                // The first error is the one to tell.
                if result.is_ok() {
                    result = removed;
                }
                is_left
            });
            given_back += if names.is_empty() { *size } else { 0 };
            !names.is_empty()
        });
        if given_back > 0 {
            context.space.give_back(given_back);
        }
        result
    }

    /// Whether another file can be made. Where files can be made but neither renamed nor removed,
    /// each try would leave one more.
    ///
    /// # Errors
    ///
    /// Why those that are left cannot be removed.
    pub(super) fn check_room(&mut self, context: &Context) -> Result<()> {
        let has_room = |this: &Self| this.0.len() < MOST_LEFTOVERS;
        if has_room(self) {
            return Ok(());
        }
        let removed = self.remove(context);
        if has_room(self) { Ok(()) } else { removed }
    }
}
