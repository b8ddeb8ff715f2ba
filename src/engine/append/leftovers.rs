//! Files that were to become segments, mean nothing, and could not be removed yet.
//!
//! Promises: their bytes count as used for as long as they stay, and there are few. Relies on the
//! `supply` lock.

use crate::engine::context::Context;
use crate::error::Result;

/// Where this many files that mean nothing cannot be removed, no more are made for the same.
pub(crate) const MOST_LEFTOVERS: usize = 2;

/// Their names, with the bytes that count as used by each.
#[derive(Debug, Default)]
pub(super) struct Leftovers(Vec<(String, u64)>);

impl Leftovers {
    /// Removes a file of this size that has one of these names, if any. Returns false if it cannot
    /// be: then that is tried again.
    pub(super) fn clean_up(
        &mut self,
        context: &Context,
        names: impl IntoIterator<Item = String>,
        size: u64,
    ) -> bool {
        let stuck = names.into_iter().find(|name| context.remove(name).is_err());
        let is_gone = stuck.is_none();
        if let Some(name) = stuck {
            self.leave(context, name, size);
        }
        is_gone
    }

    /// A file of this size could not be removed.
    pub(super) fn leave(&mut self, context: &Context, name: String, size: u64) {
        self.0.push((name, size));
        context.retry_upkeep();
    }

    /// Tries again to remove them.
    pub(super) fn remove(&mut self, context: &Context) -> Result<()> {
        let (mut result, mut given_back) = (Ok(()), 0);
        self.0.retain(|(name, size)| match context.remove(name) {
            Ok(()) => {
                given_back += size;
                false
            }
            Err(error) => {
                // The first error is the one to tell.
                if result.is_ok() {
                    result = Err(error);
                }
                true
            }
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
        if self.0.len() < MOST_LEFTOVERS { Ok(()) } else { self.remove(context) }
    }
}
