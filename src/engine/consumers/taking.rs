//! A batch that is being taken: how far it goes, and what it has.
//!
//! Promises: a batch ends at the last message that was there when it began, and has no message
//! twice. Keeps no list before a message comes that was handed out before.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ops::Range;

/// A batch that is being taken.
#[derive(Debug)]
pub(super) struct Taking {
    /// The last message that it may have.
    visible: u64,
    /// The Seqs that it has.
    taken: Vec<Range<u64>>,
    /// The same one by one, once a message comes that was handed out before.
    seen: OnceCell<HashSet<u64>>,
}

impl Taking {
    pub(super) fn up_to(visible: u64) -> Self {
        Self { visible, taken: Vec::new(), seen: OnceCell::new() }
    }

    /// The last message that it may have.
    pub(super) fn visible(&self) -> u64 {
        self.visible
    }

    /// Whether the batch has this message, which was handed out before: its lease has run out since
    /// then.
    pub(super) fn has(&self, seq: u64) -> bool {
        self.seen.get_or_init(|| self.taken.iter().cloned().flatten().collect()).contains(&seq)
    }

    /// The batch has these messages now.
    pub(super) fn note(&mut self, seqs: Range<u64>) {
        if let Some(seen) = self.seen.get_mut() {
            seen.extend(seqs.clone());
        }
        match self.taken.last_mut() {
            Some(last) if last.end == seqs.start => last.end = seqs.end,
            _ => self.taken.push(seqs),
        }
    }
}
