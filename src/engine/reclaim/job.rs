//! Copies: how far each has got, what came of it.

use super::planned::Planned;
use crate::compaction::copy_job::CopyJob;
use crate::error::Result;
use crate::format::address::{Offset, Ordinal};
use std::collections::BTreeSet;
use std::time::Instant;

/// What is copied at the moment, and when it goes on.
#[derive(Debug, Default)]
pub(super) struct CopyState {
    pub(super) job: Option<Job>,
    pub(super) next_at: Option<Instant>,
    /// What to copy after that.
    pub(super) planned: Planned,
    /// Segments that the call at hand copies no more, because that failed, or led to nothing.
    pub(super) left_out: BTreeSet<Ordinal>,
    /// Segments that the call at hand has taken for larger than before: once each.
    pub(super) enlarged: BTreeSet<Ordinal>,
}

/// A copy that is being made.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) run: CopyJob,
    /// The copy is synced up to here.
    pub(super) synced: Offset,
}

/// What a call for compaction did.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) done: Done,
    /// What could not be copied, or was not worth it after all.
    pub(super) left_out: BTreeSet<Ordinal>,
    /// The first error.
    pub(super) result: Result<()>,
}

/// What compaction made.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Done {
    pub(super) copies: u64,
    pub(super) replaced: u64,
    pub(super) messages: u64,
    pub(super) written: u64,
}
