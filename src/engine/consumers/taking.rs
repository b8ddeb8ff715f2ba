//! A batch that is being taken: how far it goes, and what it has.
//!
//! Promises: a batch ends at the last message that was there when it began, and has no message
//! twice. Keeps no list before a message comes that was handed out before.

use std::cell::RefCell;
use std::collections::HashSet;

/// A batch that is being taken.
#[derive(Debug)]
pub(super) struct Taking {
    /// The last message that it may have.
    visible: u64,
    /// The Seqs that it has, once a message comes that was handed out before.
    seen: RefCell<Option<HashSet<u64>>>,
}

impl Taking {
    pub(super) fn up_to(visible: u64) -> Self {
        Self { visible, seen: RefCell::new(None) }
    }

    /// The last message that it may have.
    pub(super) fn visible(&self) -> u64 {
        self.visible
    }

    /// Whether the batch has this message, which was handed out before: its lease has run out since
    /// then. `all`: those that the batch has, asked for once.
    pub(super) fn has(&self, seq: u64, all: impl FnOnce() -> HashSet<u64>) -> bool {
        self.seen.borrow_mut().get_or_insert_with(all).contains(&seq)
    }

    /// The batch has this message now.
    pub(super) fn note(&mut self, seq: u64) {
        if let Some(seen) = self.seen.get_mut() {
            seen.insert(seq);
        }
    }
}
